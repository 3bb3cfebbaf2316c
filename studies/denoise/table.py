"""The table of the denoising study: policies beside their baselines, intervals, figures, samples.

Run:    python -m studies.denoise metrics
Reads:  <split>/meta.csv with its audio, run folders, tune.json
Writes: <out>/{table.md, results.json, metrics.csv, measured/}, <plot-dir>/*.png,
        <output-dir>/{*.wav, samples.csv}
Shapes: n clips, m members of a row (seeds, or draws of the random policy)
"""

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from core.errors import InputError
from core.files import (
    Kind,
    check_file,
    keep_apart,
    own_folder,
    whole,
    write_text,
    write_together,
    writing,
)
from core.names import markdown, markdown_table
from core.stored import file_sha256, read_json, read_npz, write_json
from core.versions import processor, versions
from figures.plotting import COLOURS, page, write
from sed.metrics import DRAWS, bootstrap_mean
from studies.denoise import data, denoisers, environment
from studies.denoise.data import MEASURES, write_csv
from studies.denoise.environment import (
    HURT,
    Agent,
    Chain,
    Chooser,
    Corpus,
    Reward,
    load_agent,
    worth,
)

if TYPE_CHECKING:  # it imports this file
    from studies.denoise.settings import MetricsConfig

TITLES = {"si_sdr": "SI-SDR (dB)", "stoi": "STOI", "estoi": "ESTOI", "gain": "return"}
DIGITS = {"si_sdr": 2, "stoi": 3, "estoi": 3, "gain": 3}
DRAWN = 5  # members of the random policy
CONSTANT, NOISY, ORACLE = "constant chain", "noisy", "search oracle"
Made = tuple[list[np.ndarray], list[Chain]]  # waves, chains
FILL = {"policy": "t_adj", "opponent": "yardstick", "noisy": "label", "oracle": "ceiling"}


class Row(NamedTuple):
    """A system of the table."""

    name: str
    kind: str  # policy, opponent, noisy, oracle
    scores: np.ndarray  # (m, n, 4) SI-SDR, STOI, ESTOI, return
    chains: list[list[Chain]]  # of each member; empty where it has none
    agents: tuple[Agent, ...] = ()  # of a policy's members


def read_corpus(cfg: "MetricsConfig") -> Corpus:
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
    scores = data.measure(clips, [clip.noisy for clip in clips], sample_rate)
    return Corpus(clips, np.zeros((len(clips), 0), np.float32), scores, sample_rate)


class Judge:
    """Measures members of rows on the clips; what was measured before is not measured again.

    A measurement is known by everything it depends on: the table of clips, the code,
    the task, and what its maker says about the member.
    """

    def __init__(self, cfg: "MetricsConfig", corpus: Corpus, task: Reward):
        self.corpus, self.task, self.folder = corpus, task, cfg.out / "measured"
        codes = [data.code_of(module) for module in (denoisers, data, environment)]
        ids = [clip.row["utt_id"] for clip in corpus.clips]
        self.known = [file_sha256(cfg.meta), *codes, ids, vars(task)]

    def __call__(self, about: Any, make: Callable[[], Made]) -> tuple[np.ndarray, list[Chain]]:
        """Scores (n, 4) with the return, and chains, of what `make` makes of the noisy clips."""
        text = json.dumps([*self.known, about], default=str)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            waves, chains = make()
            found = data.measure(self.corpus.clips, waves, self.corpus.sample_rate)
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, scores=found, chains=json.dumps(chains))
        forms = {"scores": ("f", (len(self.corpus.clips), None)), "chains": ("U", ())}
        stored = read_npz(path, forms, "delete it")
        found, chains = stored["scores"], json.loads(str(stored["chains"]))
        gain = worth(found, self.task) - worth(self.corpus.scores, self.task)
        read = [[(method, tuple(params)) for method, params in chain] for chain in chains]
        return np.column_stack((found, gain)), read


def row_of(name: str, kind: str, members: list[tuple[np.ndarray, list[Chain]]], *agents) -> Row:
    """Members that were measured -> a row."""
    chains = [chains for _, chains in members if chains]
    return Row(name, kind, np.stack([scores for scores, _ in members]), chains, agents)


def parse_entrant(text: str) -> tuple[str, list[Path]]:
    """PATH, NAME=PATH or NAME=PATH,PATH -> name, folders."""
    name, given, paths = text.partition("=")
    folders = [Path(path) for path in (paths if given else name).split(",")]
    return (name if given else environment.home_of(folders[0]).name), folders


def policy_rows(cfg: "MetricsConfig", judge: Judge) -> list[Row]:
    """A row for each --checkpoint."""
    rows, corpus = [], judge.corpus
    for text in cfg.checkpoint:
        name, folders = parse_entrant(text)
        members, agents = [], []
        for folder in folders:
            agent = load_agent(folder)
            if agent.sample_rate != corpus.sample_rate:
                raise InputError(
                    f"{folder}: was trained at {agent.sample_rate} Hz, {cfg.meta} has"
                    f" {corpus.sample_rate} Hz"
                )
            home = environment.home_of(folder)
            files = [file_sha256(home / file) for file in ("model.zip", "agent.json")]
            make = partial(applied, corpus, agent.task.max_steps, agent.choose)
            members.append(judge(files, make))
            agents.append(agent)
        rows.append(row_of(name, "policy", members, *agents))
        print(f"{name}: done", flush=True)
    names = Counter(row.name for row in rows)
    if names and max(names.values()) > 1:
        raise InputError(f"--checkpoint: two rows are named {names.most_common(1)[0][0]}")
    return rows


def applied(corpus: Corpus, max_steps: int, choose: Chooser) -> Made:
    """Waves and chains of a policy for every clip."""
    noisy = [clip.noisy for clip in corpus.clips]
    return environment.run_chains(noisy, corpus.sample_rate, max_steps, choose)


def reduced(corpus: Corpus, steady: bool, share: float) -> Made:
    """What noisereduce makes of every clip."""
    return environment.noisereduce_waves(corpus, steady, share), []


def searched(cfg: "MetricsConfig", corpus: Corpus, task: Reward, chain: Chain) -> Made:
    """The best chain that a search finds for every clip."""
    found = [
        environment.search_clip(
            clip, task, corpus.sample_rate, cfg.tries, cfg.beam, cfg.seed + index, chain
        )
        for index, clip in enumerate(tqdm(corpus.clips, desc="oracle", unit="clip"))
    ]
    return [wave for wave, _ in found], [chain for _, chain in found]


def opponent_rows(
    cfg: "MetricsConfig", judge: Judge, chain: Chain, reduce: dict[str, Any] | None
) -> list[Row]:
    """Rows of what needs no policy; `reduce` None: nothing was tuned."""
    corpus, task = judge.corpus, judge.task
    most, asked = task.max_steps, set(cfg.baselines)
    if reduce is None:
        asked -= {"constant", "oracle"}
    untouched = np.column_stack((corpus.scores, np.zeros(len(corpus.clips))))
    rows = [row_of(NOISY, "noisy", [(untouched, [])])]
    if "constant" in asked:
        make = partial(applied, corpus, most, environment.constant(chain))
        rows.append(row_of(CONSTANT, "opponent", [judge(["constant", chain], make)]))
    if "random" in asked:
        seeds = range(cfg.seed + 1, cfg.seed + 1 + DRAWN)
        members = [
            judge(["random", seed], partial(applied, corpus, most, environment.random_policy(seed)))
            for seed in seeds
        ]
        rows.append(row_of("random policy", "opponent", members))
    if "noisereduce" in asked:
        settings = {"noisereduce": (False, 1.0)}
        if reduce is not None:
            settings["noisereduce, tuned"] = (reduce["stationary"], reduce["prop_decrease"])
        for name, (steady, share) in settings.items():
            member = judge(["noisereduce", steady, share], partial(reduced, corpus, steady, share))
            rows.append(row_of(name, "opponent", [member]))
    if "oracle" in asked:
        about = ["oracle", chain, cfg.tries, cfg.beam, cfg.seed]
        member = judge(about, partial(searched, cfg, corpus, task, chain))
        rows.append(row_of(ORACLE, "oracle", [member]))
    return rows


# ---------------------------------------------------------------------------- numbers


class Numbers(NamedTuple):
    """Means of a row and what they differ from the constant chain's, with intervals."""

    mean: np.ndarray  # (4,)
    low: np.ndarray
    high: np.ndarray
    std: np.ndarray  # over members; NaN for one
    versus: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # difference, low, high


def numbers(row: Row, other: Row | None, group: np.ndarray, chosen: np.ndarray) -> Numbers:
    """Over the chosen clips; clips with the same noise recording (`group`) are drawn together."""
    values = row.scores.mean(0)[chosen]
    fine = np.isfinite(values).all(1)  # too short for STOI: named when they were read
    low, high = bootstrap_mean(values[fine], group[chosen][fine])
    members = row.scores[:, chosen][:, fine].mean(1)
    std = members.std(0, ddof=1) if len(members) > 1 else np.full(4, math.nan)
    versus = None
    if other is not None and other is not row:
        gap = values[fine] - other.scores.mean(0)[chosen][fine]
        versus = (gap.mean(0), *bootstrap_mean(gap, group[chosen][fine]))
    return Numbers(values[fine].mean(0), low, high, std, versus)


def number_text(value: float, low: float, high: float, digits: int, sign: str = "") -> str:
    """`7.21 [6.90, 7.55]`"""
    form = f"{{:{sign}.{digits}f}}"
    return f"{form.format(value)} [{form.format(low)}, {form.format(high)}]"


def table_lines(rows: list[Row], found: dict[str, Numbers]) -> list[str]:
    """All clips: every measure with its interval, and the return against the constant chain."""
    lines = []
    for row in rows:
        mine, cells = found[row.name], [f"{markdown(row.name)} ({len(row.scores)})"]
        for place, name in enumerate(TITLES):
            text = number_text(*(v[place] for v in mine[:3]), DIGITS[name])
            if math.isfinite(mine.std[place]):
                text += f" ± {mine.std[place]:.{DIGITS[name]}f}"
            cells.append(text)
        gap = number_text(*(values[3] for values in mine.versus), 3, "+") if mine.versus else ""
        lines.append([*cells, gap])
    return markdown_table(["", *TITLES.values(), f"return - {CONSTANT}"], lines)


def ratio_lines(rows: list[Row], corpus: Corpus, group: np.ndarray) -> list[str]:
    """Means for each signal-to-noise ratio."""
    ratios = np.array([float(clip.row["snr_db"]) for clip in corpus.clips])
    heads = [f"{ratio:g} dB ({(ratios == ratio).sum()} clips)" for ratio in np.unique(ratios)]
    lines = []
    for row in rows:
        cells = [markdown(row.name)]
        for ratio in np.unique(ratios):
            mean = numbers(row, None, group, ratios == ratio).mean
            cells.append(
                " / ".join(f"{mean[i]:.{DIGITS[name]}f}" for i, name in enumerate(MEASURES))
            )
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
            text = number_text(gap, low, high, DIGITS[name], "+")
            words.append(f"{TITLES[name]} {word} ({text})")
        lines.append(f"- **{markdown(row.name)}** against the {CONSTANT}: {'; '.join(words)}.")
    return lines


# ---------------------------------------------------------------------------- figures


def draw_boxes(rows: list[Row], corpus: Corpus, folder: Path) -> None:
    """One figure a measure: all clips, and each ratio."""
    ratios = np.array([float(clip.row["snr_db"]) for clip in corpus.clips])
    panels = {"all clips": np.ones(len(ratios), bool)}
    panels |= {f"{ratio:g} dB": ratios == ratio for ratio in np.unique(ratios)}
    for place, name in enumerate(MEASURES):
        height = 2.2 + 0.42 * len(rows)
        figure, axes = page(f"{TITLES[name]} of single clips", 1, len(panels), height, sharey=True)
        for ax, (title, chosen) in zip(axes[0], panels.items(), strict=True):
            values = [row.scores.mean(0)[chosen, place] for row in reversed(rows)]
            boxes = ax.boxplot(
                [column[np.isfinite(column)] for column in values],
                orientation="horizontal",
                tick_labels=[row.name for row in reversed(rows)],
                patch_artist=True,
                flierprops={"markersize": 2},
                medianprops={"color": "black"},
            )
            for box, row in zip(boxes["boxes"], reversed(rows), strict=True):
                box.set_facecolor(COLOURS[FILL[row.kind]])
            ax.set_title(title)
            ax.set_xlabel(TITLES[name])
        write(figure, folder / f"{name}.png", 100, "box plots of denoised clips")


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
    axes[0, 0].set_title(f"lines: 95 % of {DRAWS:,} bootstraps of noise recordings", fontsize=11)
    write(figure, folder / "gaps.png", 100, "differences to the constant chain")


def chain_on_validation(cfg: "MetricsConfig", chain: Chain, task: Reward) -> float | None:
    """The constant chain's gain on the validation clips of the first run; None: they are gone."""
    run = environment.home_of(parse_entrant(cfg.checkpoint[0])[1][0])
    table = read_json(run / "agent.json", "train again").get("validation_table")
    if not chain or not table or not Path(table).exists():
        return None
    corpus = environment.load_corpus(Path(table))
    return float(environment.evaluate(corpus, task, environment.constant(chain)).gain.mean())


def draw_curves(cfg: "MetricsConfig", folder: Path, constant: float | None) -> None:
    """Validation gain of every run over the steps of its training, and the constant chain's."""
    figure, axes = page("Gain on the validation clips while training", 1, 1, 5.0)
    ax, colours = axes[0, 0], ("t_adj", "prob", "t_base", "supervised", "d_raw", "steps")
    for text, colour in zip(cfg.checkpoint, colours * len(cfg.checkpoint), strict=False):
        name, folders = parse_entrant(text)
        for place, run in enumerate(folders):
            with open(
                environment.home_of(run) / "history.csv", newline="", encoding="utf-8"
            ) as stream:
                rows = list(csv.DictReader(stream))
            steps, gains = (
                [float(row[key]) for row in rows] for key in ("step", "validation_gain")
            )
            ax.plot(steps, gains, "o-", ms=4, color=COLOURS[colour], label="" if place else name)
    if constant is not None:
        ax.axhline(constant, color="black", lw=1.5, ls="--", label=CONSTANT)
    ax.set_xlabel("denoisers applied in training")
    ax.set_ylabel("mean return")
    ax.legend()
    write(figure, folder / "curves.png", 100, "learning curves")


# ---------------------------------------------------------------------------- samples


def write_samples(cfg: "MetricsConfig", corpus: Corpus, rows: list[Row]) -> None:
    """Clean, noisy and denoised audio, and a table of their SI-SDR."""
    policies = [row for row in rows if row.kind == "policy"]
    if not policies:
        raise InputError("--output-dir needs a --checkpoint")
    row, folder = policies[0], cfg.output_dir
    order = np.argsort(row.scores[0, :, 3])
    count = cfg.samples or len(order)
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    agent, table = row.agents[0], []
    for index in chosen:
        clip = corpus.clips[index]
        most = agent.task.max_steps
        (wave,), _ = environment.run_chains([clip.noisy], agent.sample_rate, most, agent.choose)
        triple = {"clean": clip.clean, "noisy": clip.noisy, "denoised": wave}
        values = {}
        for kind, wave in triple.items():
            path = folder / f"{clip.row['utt_id']}_{kind}.wav"
            data.write_wave(path, wave, corpus.sample_rate)
            value = denoisers.si_sdr(
                denoisers.batch_of([clip.clean]).audio, denoisers.batch_of([wave])
            )
            values[f"{kind}_si_sdr"] = f"{float(value[0]):.2f}"
        line = {"utt_id": clip.row["utt_id"], "scene": clip.row.get("scene", "")}
        line |= {"snr_db": clip.row["snr_db"], **values, "model": row.name}
        table.append(line | {"chain": environment.told(row.chains[0][index])})
    write_csv(folder / "samples.csv", tuple(table[0]), table)
    print(f"{len(table)} samples: {folder / 'samples.csv'}")


# ---------------------------------------------------------------------------- the command


def clip_rows(rows: list[Row], corpus: Corpus) -> list[dict[str, Any]]:
    """A line for each clip, system and member."""
    lines = []
    for row in rows:
        for member, scores in enumerate(row.scores):
            for index, (clip, values) in enumerate(zip(corpus.clips, scores, strict=True)):
                line = {"idx": index, "utt_id": clip.row["utt_id"]}
                line |= {"scene": clip.row.get("scene", ""), "snr_db": clip.row["snr_db"]}
                line |= {"model": row.name, "member": member}
                line |= {n: f"{v:.5f}" for n, v in zip(TITLES, values, strict=True)}
                chain = row.chains[member][index] if row.chains else []
                lines.append(line | {"chain": environment.told(chain) if row.chains else ""})
    return lines


METRICS = Kind("folder of metrics", older=(("results.json", "meta"), ("results.json", "rows")))
PICTURES = Kind("folder of pictures", older=(("gaps.png", ""),))
SAMPLES = Kind("folder of samples", older=(("samples.csv", ""),))


def metrics(cfg: "MetricsConfig", tuned: tuple[Chain, dict[str, Any], Reward] | None) -> None:
    """The whole comparison, in folders that nobody else writes into."""
    inputs = [cfg.meta.parent, cfg.meta, cfg.tuned]
    runs = [run for text in cfg.checkpoint for run in parse_entrant(text)[1]]
    inputs += map(environment.home_of, runs)
    folders = {cfg.out: ("--out", (METRICS,)), cfg.output_dir: ("--output-dir", (SAMPLES,))}
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
        compare(cfg, tuned)


def compare(cfg: "MetricsConfig", tuned: tuple[Chain, dict[str, Any], Reward] | None) -> None:
    """The comparison itself."""
    for text in cfg.checkpoint:  # a wrong path should not be found out after the oracle
        for folder in parse_entrant(text)[1]:
            load_agent(folder)
    if tuned is None:
        left = "neither constant chain nor oracle; noisereduce with its library's defaults"
        print(f"note: {cfg.tuned} not found: {left}. For them: python -m studies.denoise tune")
    chain, reduce, task = tuned or ([], None, Reward())
    corpus = read_corpus(cfg)
    judge = Judge(cfg, corpus, task)
    rows = [*opponent_rows(cfg, judge, chain, reduce), *policy_rows(cfg, judge)]
    rows.sort(key=lambda row: row.kind == "oracle")  # the ceiling is the last line
    group = np.array([clip.row.get("noise_source") or clip.row["utt_id"] for clip in corpus.clips])
    other = next((row for row in rows if row.name == CONSTANT), None)
    everything = np.ones(len(corpus.clips), bool)
    found = {row.name: numbers(row, other, group, everything) for row in rows}
    told = [
        f"{len(corpus.clips)} clips of {cfg.meta.parent.name}. In brackets 95 % of {DRAWS:,}"
        " bootstraps of noise recordings; behind ± the standard deviation over the members, whose"
        f" number stands behind the name. Return: dB gained / {task.reward_scale:g}"
        f" + {task.stoi_weight:g} STOI gained + {task.estoi_weight:g} ESTOI gained.",
        "",
        *table_lines(rows, found),
        "",
        *ratio_lines(rows, corpus, group),
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
        if cfg.checkpoint:
            draw_curves(cfg, cfg.plot_dir, chain_on_validation(cfg, chain, task))
    if cfg.output_dir:
        write_samples(cfg, corpus, rows)


def results(rows: list[Row], found: dict[str, Numbers], cfg: "MetricsConfig") -> dict[str, Any]:
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
