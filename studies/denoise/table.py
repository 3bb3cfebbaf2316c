"""The table of the denoising study: policies beside their baselines, intervals, figures, samples.

Run:    python -m studies.denoise metrics
Reads:  <split>/meta.csv with its audio, run folders, tune.json
Writes: <out>/{table.md, results.json, metrics.csv}, <plot-dir>/*.png,
        <output-dir>/{*.wav, samples.csv}
Shapes: n clips, m members of a row (seeds, or draws of the random policy)
"""

import csv
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, own_folder, write_text, write_together
from core.names import markdown, markdown_table
from core.stored import read_json, write_json
from core.versions import processor, versions
from figures.plotting import COLOURS, page, styled, write
from sed.metrics import DRAWS, bootstrap_mean
from studies.denoise import data, denoisers, environment
from studies.denoise.cross import said
from studies.denoise.data import MEASURES, write_csv
from studies.denoise.environment import HURT, Agent, Chain, Corpus, Evaluation
from studies.denoise.settings import MetricsConfig, Reward

TITLES = {"si_sdr": "SI-SDR (dB)", "stoi": "STOI", "estoi": "ESTOI", "gain": "return"}
DIGITS = {"si_sdr": 2, "stoi": 3, "estoi": 3, "gain": 3}
DRAWN = 5  # members of the random policy
SAMPLES = 3  # clips of --output-dir
CONSTANT = "constant chain"
FILL = {"policy": "t_adj", "opponent": "yardstick", "noisy": "label"}


class Row(NamedTuple):
    """A system of the table."""

    name: str
    kind: str  # policy, opponent, noisy
    scores: np.ndarray  # (m, n, 4) SI-SDR, STOI, ESTOI, return
    chains: list[list[Chain]]  # of each member; empty where it has none
    waves: list[np.ndarray]  # n of the first member


def row_of(name: str, kind: str, members: list[Evaluation]) -> Row:
    """Members that were judged -> a row."""
    scores = np.stack([np.column_stack((one.scores, one.gain)) for one in members])
    return Row(name, kind, scores, [m.chains for m in members if m.chains], members[0].waves)


def read_corpus(cfg: MetricsConfig) -> Corpus:
    """The clips to judge; all of the table unless asked otherwise."""
    rows = data.read_meta(cfg.meta)
    if cfg.snr_db:
        rows = [row for row in rows if float(row["snr_db"]) in cfg.snr_db]
        if not rows:
            raise InputError(f"{cfg.meta}: no clip with --snr-db {cfg.snr_db}")
    if 0 < cfg.sample_size < len(rows):
        chosen = np.random.default_rng(cfg.seed).choice(len(rows), cfg.sample_size, replace=False)
        rows = [rows[i] for i in sorted(chosen)]
    sample_rate = data.rate_of(cfg.meta, rows)
    clips = data.read_clips(cfg.meta, rows, sample_rate)
    if all(clip.reference is None for clip in clips):
        raise InputError(f"{cfg.meta}: no clip is long enough for STOI, there is nothing to judge")
    scores = data.measure(clips, [clip.noisy for clip in clips], sample_rate)
    return Corpus(clips, np.zeros((len(clips), 0), np.float32), scores, sample_rate)


def read_tuned(path: Path) -> tuple[Chain, dict[str, Any], Reward] | None:
    """What `tune` wrote, or None where there is no file."""
    if not path.exists():
        return None
    try:
        content = read_json(path, "run `tune` again")
        chain = [(int(method), tuple(params)) for method, params in content["chain"]]
        return chain, content["noisereduce"], Reward(**content["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a file of `tune` ({error!r}); run it again") from None


def entrants_of(cfg: MetricsConfig) -> dict[str, list[Path]]:
    """--checkpoint PATH, NAME=PATH or NAME=PATH,PATH: run folders by name."""
    found: dict[str, list[Path]] = {}
    for text in cfg.checkpoint:
        name, given, paths = text.partition("=")
        folders = [
            environment.home_of(Path(path)) for path in (paths if given else name).split(",")
        ]
        name = name if given else folders[0].name
        if name in found:
            raise InputError(f"--checkpoint: two rows are named {name}")
        found[name] = folders
    return found


def policy_row(name: str, agents: list[Agent], corpus: Corpus, task: Reward) -> Row:
    """A row of --checkpoint."""
    tasks = [replace(task, max_steps=agent.task.max_steps) for agent in agents]
    pairs = zip(agents, tasks, strict=True)
    found = [environment.evaluate(corpus, own, agent.choose) for agent, own in pairs]
    print(f"{name}: done", flush=True)
    return row_of(name, "policy", found)


def opponent_rows(
    cfg: MetricsConfig, corpus: Corpus, task: Reward, chain: Chain, reduce: dict[str, Any] | None
) -> list[Row]:
    """Rows of what needs no policy; `reduce` None: nothing was tuned."""
    noisy = [clip.noisy for clip in corpus.clips]
    rows = [row_of("noisy", "noisy", [environment.judged(corpus, task, noisy, [])])]
    choosers = {}
    if reduce is not None:
        choosers[CONSTANT] = [environment.constant(chain)]
    seeds = range(cfg.seed + 1, cfg.seed + 1 + DRAWN)
    choosers["random policy"] = map(environment.random_policy, seeds)
    for name, several in choosers.items():
        found = [environment.evaluate(corpus, task, choose) for choose in several]
        rows.append(row_of(name, "opponent", found))
    settings = {"noisereduce": (False, 1.0)}
    if reduce is not None:
        settings["noisereduce, tuned"] = (reduce["stationary"], reduce["prop_decrease"])
    for name, (steady, share) in settings.items():
        waves = environment.noisereduce_waves(corpus, steady, share)
        rows.append(row_of(name, "opponent", [environment.judged(corpus, task, waves, [])]))
    return rows


class Numbers(NamedTuple):
    """Means of a row and what they differ from the constant chain's, with intervals."""

    mean: np.ndarray  # (4,)
    low: np.ndarray
    high: np.ndarray
    std: np.ndarray  # over members; NaN for one
    versus: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # difference, low, high


def numbers(row: Row, other: Row | None, group: np.ndarray) -> Numbers:
    """Over all clips; those with the same noise recording (`group`) are drawn together."""
    values = row.scores.mean(0)
    fine = np.isfinite(values).all(1)  # too short for STOI: named when they were read
    members = row.scores[:, fine].mean(1)
    std = members.std(0, ddof=1) if len(members) > 1 else np.full(4, math.nan)
    versus = None
    if other is not None and other is not row:
        gap = values[fine] - other.scores.mean(0)[fine]
        versus = (gap.mean(0), *bootstrap_mean(gap, group[fine]))
    return Numbers(values[fine].mean(0), *bootstrap_mean(values[fine], group[fine]), std, versus)


def ratios_of(corpus: Corpus) -> dict[float, np.ndarray]:
    """Which clips (n,) have each signal-to-noise ratio, in dB."""
    ratios = np.array([float(clip.row["snr_db"]) for clip in corpus.clips])
    return {ratio: ratios == ratio for ratio in np.unique(ratios)}


def table_lines(rows: list[Row], found: dict[str, Numbers]) -> list[str]:
    """All clips: every measure with its interval, and the return against the constant chain."""
    lines = []
    for row in rows:
        mine, cells = found[row.name], [f"{markdown(row.name)} ({len(row.scores)})"]
        for place, name in enumerate(TITLES):
            text = said(*(v[place] for v in mine[:3]), DIGITS[name], "")
            if math.isfinite(mine.std[place]):
                text += f" ± {mine.std[place]:.{DIGITS[name]}f}"
            cells.append(text)
        gap = said(*(values[3] for values in mine.versus)) if mine.versus else ""
        lines.append([*cells, gap])
    return markdown_table(["", *TITLES.values(), f"return - {CONSTANT}"], lines)


def ratio_lines(rows: list[Row], corpus: Corpus) -> list[str]:
    """Means for each signal-to-noise ratio."""
    ratios, lines = ratios_of(corpus), []
    heads = [f"{ratio:g} dB ({chosen.sum()} clips)" for ratio, chosen in ratios.items()]
    for row in rows:
        cells, values = [markdown(row.name)], row.scores.mean(0)
        for chosen in ratios.values():
            fine = chosen & np.isfinite(values).all(1)
            mean = zip(values[fine].mean(0), MEASURES, strict=False)
            cells.append(" / ".join(f"{value:.{DIGITS[name]}f}" for value, name in mean))
        lines.append(cells)
    return markdown_table(["SI-SDR / STOI / ESTOI", *heads], lines)


def chain_lines(rows: list[Row]) -> list[str]:
    """Which methods follow which, the three most frequent of each; how many clips are left alone,
    and how many are hurt."""
    lines = []
    for row in rows:
        chains = [chain for member in row.chains for chain in member]
        if not chains:
            continue
        names = Counter(" → ".join(denoisers.METHODS[m] for m, _ in chain) for chain in chains)
        frequent = "; ".join(
            f"{name or 'none'} {count / len(chains):.0%}" for name, count in names.most_common(3)
        )
        cells = [markdown(row.name), f"{np.mean([len(chain) for chain in chains]):.2f}"]
        cells += [f"{names[''] / len(chains):.0%}", f"{(row.scores[..., 3] < -HURT).mean():.0%}"]
        lines.append([*cells, frequent])
    heads = ["", "denoisers a clip", "left alone", "hurt", "most frequent chains"]
    told = f"Hurt: the share of clips whose return is below -{HURT:g}; 0 is to leave a clip alone."
    return [*markdown_table(heads, lines), "", told] if lines else []


def verdict(rows: list[Row], found: dict[str, Numbers]) -> list[str]:
    """One sentence for each policy; a difference counts where its interval leaves out zero."""
    lines = []
    for row in rows:
        versus = found[row.name].versus
        if row.kind != "policy" or versus is None:
            continue
        words = []
        for place, name in enumerate(TITLES):
            gap, low, high = (values[place] for values in versus)
            word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
            words.append(f"{TITLES[name]} {word} ({said(gap, low, high, DIGITS[name])})")
        lines.append(f"- **{markdown(row.name)}** against the {CONSTANT}: {'; '.join(words)}.")
    return lines


@styled
def draw_boxes(rows: list[Row], corpus: Corpus, folder: Path) -> None:
    """One figure a measure: all clips, and each ratio."""
    panels = {"all clips": np.ones(len(corpus.clips), bool)}
    panels |= {f"{ratio:g} dB": chosen for ratio, chosen in ratios_of(corpus).items()}
    for place, name in enumerate(MEASURES):
        height = 2.2 + 0.42 * len(rows)
        figure, axes = page(f"{TITLES[name]} of single clips", 1, len(panels), height, sharey=True)
        for ax, (title, chosen) in zip(axes[0], panels.items(), strict=True):
            values = [row.scores.mean(0)[chosen, place] for row in reversed(rows)]
            boxes = ax.boxplot(
                [column[np.isfinite(column)] for column in values],
                orientation="horizontal",
                manage_ticks=False,  # the panels share them
                patch_artist=True,
                flierprops={"markersize": 2},
                medianprops={"color": "black"},
            )
            for box, row in zip(boxes["boxes"], reversed(rows), strict=True):
                box.set_facecolor(COLOURS[FILL[row.kind]])
            ax.set_title(title)
            ax.set_xlabel(TITLES[name])
        axes[0, 0].set_yticks(range(1, 1 + len(rows)), [row.name for row in reversed(rows)])
        write(figure, folder / f"{name}.png", 100, "box plots of denoised clips")


@styled
def draw_gaps(rows: list[Row], found: dict[str, Numbers], folder: Path) -> None:
    """Difference to the constant chain with intervals."""
    told = [row for row in reversed(rows) if found[row.name].versus is not None]
    if not told:  # there is no constant chain
        return
    title = f"Difference to the {CONSTANT}, mean over clips"
    figure, axes = page(title, 1, 3, 1.9 + 0.42 * len(told), sharey=True)
    for ax, name in zip(axes[0], ("gain", "si_sdr", "estoi"), strict=True):
        place = list(TITLES).index(name)
        for y, row in enumerate(told):
            gap, low, high = (values[place] for values in found[row.name].versus)
            colour = COLOURS[FILL[row.kind]]
            ax.plot([low, high], [y, y], color=colour, lw=3, solid_capstyle="butt")
            ax.plot(gap, y, "o", color=colour, ms=8)
        ax.axvline(0, color="black", lw=1)
        ax.set_yticks(range(len(told)), [row.name for row in told])
        ax.set_xlabel(TITLES[name])
    axes[0, 0].set_title(f"lines: 95 % of {DRAWS:,} bootstraps of noise recordings")
    write(figure, folder / "gaps.png", 100, "differences to the constant chain")


def chain_on_validation(run: Path, chain: Chain, task: Reward) -> float | None:
    """The constant chain's gain on the validation clips of a run; None: they are gone."""
    table = read_json(run / "agent.json", "train again").get("validation_table")
    if not chain or not table or not Path(table).exists():
        return None
    corpus = environment.load_corpus(Path(table))
    return float(environment.evaluate(corpus, task, environment.constant(chain)).gain.mean())


@styled
def draw_curves(entrants: dict[str, list[Path]], folder: Path, constant: float | None) -> None:
    """Validation gain of every run over the steps of its training, and the constant chain's."""
    figure, ((ax,),) = page("Gain on the validation clips while training", 1, 1, 5.0)
    colours = ("t_adj", "prob", "t_base", "supervised", "d_raw", "steps") * len(entrants)
    for (name, runs), colour in zip(entrants.items(), colours, strict=False):
        for place, run in enumerate(runs):
            with open(run / "history.csv", newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            steps, gains = ([float(r[key]) for r in rows] for key in ("step", "validation_gain"))
            ax.plot(steps, gains, "o-", ms=4, color=COLOURS[colour], label="" if place else name)
    if constant is not None:
        ax.axhline(constant, color="black", lw=1.5, ls="--", label=CONSTANT)
    ax.set_xlabel("denoisers applied in training")
    ax.set_ylabel("mean return")
    ax.legend()
    write(figure, folder / "curves.png", 100, "learning curves")


def clip_line(clip: data.Clip) -> dict[str, str]:
    """What every table of clips says first."""
    return {name: clip.row.get(name, "") for name in ("utt_id", "scene", "snr_db")}


def write_samples(corpus: Corpus, row: Row, folder: Path) -> None:
    """Clean, noisy and denoised audio of some clips, a policy's worst to best; their SI-SDR."""
    order, lines = np.argsort(row.scores[0, :, 3]), []
    few = np.linspace(0, len(order) - 1, min(SAMPLES, len(order))).round().astype(int)
    for index in order[few]:
        clip = corpus.clips[index]
        line = clip_line(clip)
        triple = {"clean": clip.clean, "noisy": clip.noisy, "denoised": row.waves[index]}
        for kind, wave in triple.items():
            path = folder / f"{line['utt_id']}_{kind}.wav"
            data.write_wave(path, wave, corpus.sample_rate)
            clean = denoisers.batch_of([clip.clean]).audio
            value = denoisers.si_sdr(clean, denoisers.batch_of([wave]))
            line[f"{kind}_si_sdr"] = f"{float(value[0]):.2f}"
        chain = environment.told(row.chains[0][index])
        lines.append(line | {"model": row.name, "chain": chain})
    write_csv(folder / "samples.csv", tuple(lines[0]), lines)
    print(f"{len(lines)} samples: {folder / 'samples.csv'}")


def clip_rows(rows: list[Row], corpus: Corpus) -> list[dict[str, Any]]:
    """A line for each clip, system and member."""
    lines = []
    for row in rows:
        for member, scores in enumerate(row.scores):
            for index, (clip, values) in enumerate(zip(corpus.clips, scores, strict=True)):
                line = {"idx": index} | clip_line(clip) | {"model": row.name, "member": member}
                line |= {n: f"{v:.5f}" for n, v in zip(TITLES, values, strict=True)}
                chain = environment.told(row.chains[member][index]) if row.chains else ""
                lines.append(line | {"chain": chain})
    return lines


METRICS = Kind("folder of metrics", older=(("results.json", "meta"), ("results.json", "rows")))
PICTURES = Kind("folder of pictures", older=(("gaps.png", ""),))
HEARD = Kind("folder of samples", older=(("samples.csv", ""),))


def metrics(cfg: MetricsConfig) -> None:
    """The whole comparison, in folders that nobody else writes into."""
    entrants = entrants_of(cfg)
    inputs = [
        cfg.meta.parent,
        cfg.meta,
        cfg.tuned,
        *(run for runs in entrants.values() for run in runs),
    ]
    folders = {cfg.out: ("--out", (METRICS,)), cfg.output_dir: ("--output-dir", (HEARD,))}
    if cfg.plot_dir and cfg.plot_dir.resolve() != cfg.out.resolve():
        folders[cfg.plot_dir] = ("--plot-dir", (PICTURES, METRICS))
    if cfg.csv:
        keep_apart(cfg.csv, inputs, "--csv")
        check_file(cfg.csv, "idx,utt_id,", "--csv")
    with ExitStack() as held:
        for folder, (flag, kinds) in folders.items():
            if folder:
                keep_apart(folder, inputs, flag)
                held.enter_context(own_folder(folder, *kinds, flag=flag))
        if cfg.output_dir and not entrants:
            raise InputError("--output-dir needs a --checkpoint")
        agents = {name: [*map(environment.load_agent, runs)] for name, runs in entrants.items()}
        tuned = read_tuned(cfg.tuned)
        if tuned is None:
            left = "no constant chain; noisereduce with its library's defaults"
            print(f"note: {cfg.tuned} not found: {left}. For them: python -m studies.denoise tune")
        chain, reduce, task = tuned or ([], None, Reward())
        corpus = read_corpus(cfg)
        for name, several in agents.items():
            for agent, run in zip(several, entrants[name], strict=True):
                if agent.sample_rate != corpus.sample_rate:
                    here = f"{cfg.meta} has {corpus.sample_rate} Hz"
                    raise InputError(f"{run}: was trained at {agent.sample_rate} Hz, {here}")
        rows = opponent_rows(cfg, corpus, task, chain, reduce)
        policies = [policy_row(name, several, corpus, task) for name, several in agents.items()]
        rows += policies
        group = np.array(
            [clip.row.get("noise_source") or clip.row["utt_id"] for clip in corpus.clips]
        )
        other = next((row for row in rows if row.name == CONSTANT), None)
        found = {row.name: numbers(row, other, group) for row in rows}
        told = [
            f"{len(corpus.clips)} clips of {cfg.meta.parent.name}. In brackets 95 % of {DRAWS:,}"
            " bootstraps of noise recordings; behind ± the standard deviation over the members,"
            f" whose number stands behind the name. Return: dB gained / {task.reward_scale:g}"
            f" + {task.stoi_weight:g} STOI gained + {task.estoi_weight:g} ESTOI gained.",
            "",
            *table_lines(rows, found),
            "",
            *ratio_lines(rows, corpus),
            "",
            *chain_lines(rows),
            "",
            *([f"Constant chain: {environment.told(chain)}.", ""] if other else []),
            *verdict(rows, found),
            "",
            f"Made on {processor()}.",
        ]
        lines = clip_rows(rows, corpus)
        write_together(
            {
                cfg.csv or cfg.out / "metrics.csv": lambda p: write_csv(p, tuple(lines[0]), lines),
                cfg.out / "table.md": lambda path: write_text(path, "\n".join(told) + "\n"),
                cfg.out / "results.json": lambda p: write_json(p, results(rows, found, cfg)),
            }
        )
        print("\n".join(told))
        if cfg.plot_dir:
            draw_boxes(rows, corpus, cfg.plot_dir)
            draw_gaps(rows, found, cfg.plot_dir)
            if entrants:
                first = next(iter(entrants.values()))[0]
                draw_curves(entrants, cfg.plot_dir, chain_on_validation(first, chain, task))
        if cfg.output_dir:
            write_samples(corpus, policies[0], cfg.output_dir)


def results(rows: list[Row], found: dict[str, Numbers], cfg: MetricsConfig) -> dict[str, Any]:
    """What the table says, for programs."""
    entries = []
    for row in rows:
        mine = found[row.name]
        entry: dict[str, Any] = {"name": row.name, "kind": row.kind, "members": len(row.scores)}
        for place, name in enumerate(TITLES):
            entry[name] = [float(v[place]) for v in (mine.mean, mine.low, mine.high)]
            if mine.versus:
                entry[f"{name}_minus_constant"] = [float(v[place]) for v in mine.versus]
        entries.append(entry)
    return {"meta": str(cfg.meta), "versions": versions(), "rows": entries}
