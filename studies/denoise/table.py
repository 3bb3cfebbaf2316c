"""The table of the denoising study: policies beside their baselines, intervals, figures, samples.

Run:    python -m studies.denoise metrics
Reads:  <split>/meta.csv with its audio, run folders, tune.json
Writes: <out>/{table.md, results.json, metrics.csv}, <plot-dir>/*.png,
        <output-dir>/{*.wav, samples.csv}
Shapes: n clips, m members of a row (seeds, or draws of the random policy)
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
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
from studies.denoise.cross import CONSTANT, draw_interval, outcome, priced, said
from studies.denoise.data import MEASURES, write_csv
from studies.denoise.environment import HURT, Agent, Chain, Corpus, Evaluation
from studies.denoise.settings import MetricsConfig, Reward

TITLES = {"si_sdr": "SI-SDR (dB)", "stoi": "STOI", "estoi": "ESTOI", "gain": "return"}
DIGITS = (2, 3, 3, 3)  # of these, behind the point
DRAWN = 5  # members of the random policy
SAMPLES = 3  # clips of --output-dir
Entrants = dict[str, list[tuple[Path, Agent]]]  # rows of --checkpoint: run folders, policies
FILL = {"policy": "t_adj", "opponent": "yardstick", "noisy": "label"}


class Row(NamedTuple):
    """A system of the table."""

    name: str
    kind: str  # policy, opponent, noisy
    scores: np.ndarray  # (m, n, 4) SI-SDR, STOI, ESTOI, return
    chains: list[Sequence[Chain]]  # of each member; empty where it has none
    waves: list[np.ndarray]  # n of the first member


def row_of(name: str, kind: str, members: list[Evaluation]) -> Row:
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
    clips, sample_rate = data.read_clips(cfg.meta, rows)
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


def entrants_of(cfg: MetricsConfig) -> Entrants:
    """--checkpoint PATH, NAME=PATH or NAME=PATH,PATH."""
    found: Entrants = {}
    for text in cfg.checkpoint:
        name, given, paths = text.partition("=")
        folders = [environment.home_of(Path(path)) for path in (paths or name).split(",")]
        name = name if given else folders[0].name
        if name in found:
            raise InputError(f"--checkpoint: two rows are named {name}")
        found[name] = [(folder, environment.load_agent(folder)) for folder in folders]
    return found


def policy_row(name: str, agents: list[Agent], corpus: Corpus, task: Reward) -> Row:
    """A row of --checkpoint; each policy has as many steps as in its training."""
    found = [
        environment.evaluate(corpus, replace(task, max_steps=agent.task.max_steps), agent.choose)
        for agent in agents
    ]
    print(f"{name}: done", flush=True)
    return row_of(name, "policy", found)


def opponent_rows(
    cfg: MetricsConfig, corpus: Corpus, task: Reward, chain: Chain, reduce: dict[str, Any] | None
) -> list[Row]:
    """Rows of what needs no policy; `reduce` None: nothing was tuned."""
    choosers = {}
    reduced = {"noisereduce": (False, 1.0)}
    if reduce is not None:
        choosers[CONSTANT] = [environment.constant(chain)]
        reduced["noisereduce, tuned"] = (reduce["stationary"], reduce["prop_decrease"])
    seeds = range(cfg.seed + 1, cfg.seed + 1 + DRAWN)
    choosers["random policy"] = [environment.random_policy(seed) for seed in seeds]
    rows = [row_of("noisy", "noisy", [environment.judged(corpus, task, corpus.noisy)])]
    for name, several in choosers.items():
        found = [environment.evaluate(corpus, task, choose) for choose in several]
        rows.append(row_of(name, "opponent", found))
    for name, options in reduced.items():
        waves = environment.noisereduce_waves(corpus, *options)
        rows.append(row_of(name, "opponent", [environment.judged(corpus, task, waves)]))
    return rows


class Numbers(NamedTuple):
    """Means of a row and what they differ from the constant chain's: value, low, high."""

    mean: np.ndarray  # (3, 4)
    std: np.ndarray  # (4,) over members; NaN for one
    versus: np.ndarray | None  # (3, 4)


def with_interval(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of (n, 4), low and high; what has the same `group` (n,) is drawn together."""
    return np.stack([values.mean(0), *bootstrap_mean(values, group)])


def numbers(row: Row, other: Row | None, group: np.ndarray) -> Numbers:
    """Over all clips; those with the same noise recording (`group`) are drawn together."""
    values = row.scores.mean(0)
    fine = np.isfinite(values).all(1)  # too short for STOI: named when they were read
    members = row.scores[:, fine].mean(1)
    std = members.std(0, ddof=1) if len(members) > 1 else np.full(4, math.nan)
    versus = None
    if other is not None and other is not row:
        versus = with_interval(values[fine] - other.scores.mean(0)[fine], group[fine])
    return Numbers(with_interval(values[fine], group[fine]), std, versus)


def ratios_of(corpus: Corpus) -> dict[float, np.ndarray]:
    """Which clips (n,) have each signal-to-noise ratio, in dB."""
    ratios = np.array([float(clip.row["snr_db"]) for clip in corpus.clips])
    return {ratio: ratios == ratio for ratio in np.unique(ratios)}


def table_lines(rows: list[Row], found: dict[str, Numbers]) -> list[str]:
    """All clips: every measure with its interval, and the return against the constant chain."""
    lines = []
    for row in rows:
        mine, cells = found[row.name], [f"{markdown(row.name)} ({len(row.scores)})"]
        for ends, std, digits in zip(mine.mean.T, mine.std, DIGITS, strict=True):
            spread = "" if math.isnan(std) else f" ± {std:.{digits}f}"
            cells.append(said(*ends, digits, "") + spread)
        gap = "" if mine.versus is None else said(*mine.versus[:, 3])
        lines.append([*cells, gap])
    return markdown_table(["", *TITLES.values(), f"return - {CONSTANT}"], lines)


def ratio_lines(rows: list[Row], corpus: Corpus) -> list[str]:
    ratios, lines = ratios_of(corpus), []
    heads = [f"{ratio:g} dB ({chosen.sum()} clips)" for ratio, chosen in ratios.items()]
    for row in rows:
        cells, values = [markdown(row.name)], row.scores.mean(0)
        for chosen in ratios.values():
            means = values[chosen & np.isfinite(values).all(1), :3].mean(0)
            pairs = zip(means, DIGITS, strict=False)
            cells.append(" / ".join(f"{mean:.{digits}f}" for mean, digits in pairs))
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
        ends = zip(TITLES.values(), versus.T, DIGITS, strict=True)
        words = [f"{title} {outcome(*e[1:])} ({said(*e, digits)})" for title, e, digits in ends]
        lines.append(f"- **{markdown(row.name)}** against the {CONSTANT}: {'; '.join(words)}.")
    return lines


@styled
def draw_boxes(rows: list[Row], corpus: Corpus, folder: Path) -> None:
    """One figure a measure: all clips, and each ratio."""
    rows = rows[::-1]  # the first one on top
    panels = {"all clips": np.ones(len(corpus.clips), bool)}
    panels |= {f"{ratio:g} dB": chosen for ratio, chosen in ratios_of(corpus).items()}
    for place, name in enumerate(MEASURES):
        height = 2.2 + 0.42 * len(rows)
        figure, axes = page(f"{TITLES[name]} of single clips", 1, len(panels), height, sharey=True)
        for ax, (title, chosen) in zip(axes[0], panels.items(), strict=True):
            values = [row.scores.mean(0)[chosen, place] for row in rows]
            boxes = ax.boxplot(
                [column[np.isfinite(column)] for column in values],
                orientation="horizontal",
                manage_ticks=False,  # the panels share them
                patch_artist=True,
                flierprops={"markersize": 2},
                medianprops={"color": "black"},
            )
            for box, row in zip(boxes["boxes"], rows, strict=True):
                box.set_facecolor(COLOURS[FILL[row.kind]])
            ax.set_title(title)
            ax.set_xlabel(TITLES[name])
        axes[0, 0].set_yticks(range(1, 1 + len(rows)), [row.name for row in rows])
        write(figure, folder / f"{name}.png", 100, "box plots of denoised clips")


@styled
def draw_gaps(rows: list[Row], found: dict[str, Numbers], folder: Path) -> None:
    told = [row for row in reversed(rows) if found[row.name].versus is not None]
    if not told:  # there is no constant chain
        return
    title = f"Difference to the {CONSTANT}, mean over clips"
    figure, axes = page(title, 1, 3, 1.9 + 0.42 * len(told), sharey=True)
    for ax, name in zip(axes[0], ("gain", "si_sdr", "estoi"), strict=True):
        place = list(TITLES).index(name)
        for y, row in enumerate(told):
            draw_interval(ax, y, found[row.name].versus[:, place], COLOURS[FILL[row.kind]])
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
def draw_curves(entrants: Entrants, folder: Path, constant: float | None) -> None:
    """Validation gain of every run over the steps of its training, and the constant chain's."""
    figure, ((ax,),) = page("Gain on the validation clips while training", 1, 1, 5.0)
    colours = ("t_adj", "prob", "t_base", "supervised", "d_raw", "steps") * len(entrants)
    for (name, several), colour in zip(entrants.items(), colours, strict=False):
        for place, (run, _) in enumerate(several):
            names = ("step", "validation_gain")
            rows = data.read_table(run / "history.csv", names, "train again")
            steps, gains = ([float(row[name]) for row in rows] for name in names)
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
        line, waves = clip_line(clip), (clip.clean, clip.noisy, row.waves[index])
        found = data.measure([clip] * 3, waves, corpus.sample_rate)[:, 0]
        for kind, wave, value in zip(("clean", "noisy", "denoised"), waves, found, strict=True):
            data.write_wave(folder / f"{line['utt_id']}_{kind}.wav", wave, corpus.sample_rate)
            line[f"{kind}_si_sdr"] = f"{value:.2f}"
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
    members = [*itertools.chain(*entrants.values())]
    inputs = [cfg.meta.parent, cfg.meta, cfg.tuned, *(run for run, _ in members)]
    folders = {cfg.out: ("--out", METRICS), cfg.output_dir: ("--output-dir", HEARD)}
    if cfg.plot_dir and cfg.plot_dir.resolve() != cfg.out.resolve():
        folders[cfg.plot_dir] = ("--plot-dir", PICTURES, METRICS)
    if cfg.csv:
        keep_apart(cfg.csv, inputs, "--csv")
        check_file(cfg.csv, "idx,utt_id,", "--csv")
    with ExitStack() as held:
        for folder, (flag, *kinds) in folders.items():
            if folder:
                keep_apart(folder, inputs, flag)
                held.enter_context(own_folder(folder, *kinds, flag=flag))
        if cfg.output_dir and not entrants:
            raise InputError("--output-dir needs a --checkpoint")
        tuned = read_tuned(cfg.tuned)
        if tuned is None:
            left = "no constant chain; noisereduce with its library's defaults"
            print(f"note: {cfg.tuned} not found: {left}. For them: python -m studies.denoise tune")
        chain, reduce, task = tuned or ([], None, Reward())
        corpus = read_corpus(cfg)
        for run, agent in members:
            if agent.sample_rate != corpus.sample_rate:
                here = f"{cfg.meta} has {corpus.sample_rate} Hz"
                raise InputError(f"{run}: was trained at {agent.sample_rate} Hz, {here}")
        rows = opponent_rows(cfg, corpus, task, chain, reduce)
        for name, several in entrants.items():
            rows.append(policy_row(name, [agent for _, agent in several], corpus, task))
        group = [clip.row.get("noise_source") or clip.row["utt_id"] for clip in corpus.clips]
        other = next((row for row in rows if row.name == CONSTANT), None)
        found = {row.name: numbers(row, other, np.array(group)) for row in rows}
        told = [
            f"{len(corpus.clips)} clips of {cfg.meta.parent.name}. In brackets 95 % of {DRAWS:,}"
            " bootstraps of noise recordings; behind ± the standard deviation over the members,"
            f" whose number stands behind the name. Return: {priced(task)}",
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
        text, lines = "\n".join(told) + "\n", clip_rows(rows, corpus)
        write_together(
            {
                cfg.csv or cfg.out / "metrics.csv": lambda p: write_csv(p, tuple(lines[0]), lines),
                cfg.out / "table.md": lambda path: write_text(path, text),
                cfg.out / "results.json": lambda p: write_json(p, results(rows, found, cfg)),
            }
        )
        print(text, end="")
        if cfg.plot_dir:
            draw_boxes(rows, corpus, cfg.plot_dir)
            draw_gaps(rows, found, cfg.plot_dir)
            if entrants:
                gain = chain_on_validation(members[0][0], chain, task)
                draw_curves(entrants, cfg.plot_dir, gain)
        if cfg.output_dir:
            first = next(row for row in rows if row.kind == "policy")
            write_samples(corpus, first, cfg.output_dir)


def results(rows: list[Row], found: dict[str, Numbers], cfg: MetricsConfig) -> dict[str, Any]:
    """What the table says, for programs."""
    entries = []
    for row in rows:
        mine = found[row.name]
        entry: dict[str, Any] = {"name": row.name, "kind": row.kind, "members": len(row.scores)}
        for place, name in enumerate(TITLES):
            entry[name] = mine.mean[:, place].tolist()
            if mine.versus is not None:
                entry[f"{name}_minus_constant"] = mine.versus[:, place].tolist()
        entries.append(entry)
    return {"meta": str(cfg.meta), "versions": versions(), "rows": entries}
