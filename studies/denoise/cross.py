"""Cross-validation over speakers and folds of the noise: agents beside chains that are looked up.

Run:    python -m studies.denoise cross
Reads:  a features.csv with the columns speaker_id and fold
Writes: <out>/search/*.npz, <out>/<speaker>-<fold>/<who>.json, <out>/{table.md, results.json,
        cross.png}
Shapes: n clips, J choices of JOINT but stop, K chains of a selector

A round holds out a speaker and a fold: it learns from the other speakers with the other folds, and
is judged on the clips of that speaker with that fold. Nothing is chosen on those clips: the last
policy is judged. What a chain gains is looked up in tables of all clips, of which a round reads the
training rows only.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from core.command import needed
from core.errors import InputError
from core.files import Kind, keep_apart, made, own_folder, whole, write_text, write_together
from core.names import markdown_table
from core.settings import to_dict
from core.stored import read_json, read_npz, write_json
from core.versions import processor, versions
from figures.plotting import COLOURS, page, styled, write
from sed.metrics import student_mean
from studies.denoise import data, denoisers, environment
from studies.denoise.environment import JOINT, Chain, Corpus, Evaluation, worth
from studies.denoise.settings import CrossConfig, Reward, TrainConfig
from studies.denoise.training import begun, judge, learn, plain

CONSTANT, SEARCH = "constant chain", "per-clip search"
SELECTOR, GATE, KNOWN = "supervised selector", "chain or nothing", "chain or nothing, known"
YARDSTICKS = (CONSTANT, GATE, SELECTOR, KNOWN, SEARCH)
TREES = {"n_estimators": 300, "min_samples_leaf": 3, "random_state": 0}
Prefix = tuple[int, ...]  # places in JOINT


class Round(NamedTuple):
    """What is held out, and the clips."""

    speaker: str
    fold: str
    train: np.ndarray  # places of the clips
    test: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.fold}"


def rounds_of(corpus: Corpus, which: str) -> list[Round]:
    """All rounds, those first that have every speaker once."""
    rows, cure = [clip.row for clip in corpus.clips], "make the clips with `mix --cells`"
    for name in ("speaker_id", "fold"):
        if not rows[0].get(name):
            raise InputError(f"--features: no column {name}; {cure}")
    speaker, fold = (np.array([row[name] for row in rows]) for name in ("speaker_id", "fold"))
    speakers, folds = np.unique(speaker), np.unique(fold)
    if min(len(speakers), len(folds)) < 2:
        have = f"{len(speakers)} speakers and {len(folds)} folds"
        raise InputError(f"--features: {have}; at least 2 of each are needed")
    rounds = []
    for shift, (place, name) in product(range(len(folds)), enumerate(speakers)):
        held = folds[(place + shift) % len(folds)]
        train = np.flatnonzero((speaker != name) & (fold != held))
        test = np.flatnonzero((speaker == name) & (fold == held))
        if not len(train) or not len(test):
            none = f"no clip {'of' if len(train) else 'without'} speaker {name}"
            raise InputError(f"--features: {none} and fold {held}; {cure}")
        rounds.append(Round(str(name), str(held), train, test))
    return rounds[: len(speakers)] if which == "diagonal" else rounds


class Search:
    """What every chain of JOINT gains on every clip, measured when it is first asked for."""

    def __init__(self, corpus: Corpus, task: Reward, folder: Path):
        self.corpus, self.task, self.folder = corpus, task, folder
        self.known: dict[Prefix, np.ndarray] = {}
        found = data.measure(corpus.clips, corpus.noisy, corpus.sample_rate, task.quality_stride)
        self.before = worth(found, task)
        ids = [clip.row["utt_id"] for clip in corpus.clips]
        about = [ids, JOINT, self.before.round(3).tolist()]
        about += [task.quality_stride, task.reward_scale, task.stoi_weight, task.estoi_weight]
        about.append(data.code_of(denoisers))
        self.key = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def gains(self, prefix: Prefix) -> np.ndarray:
        """Return (n, J) of the chains that begin with `prefix` and have one more denoiser."""
        if prefix not in self.known:
            name = "-".join(map(str, prefix)) or "first"
            path = self.folder / f"{name}.npz"
            if not path.exists():
                measured = self.measured(prefix, name)
                with made(self.folder), whole(path) as temporary, open(temporary, "wb") as stream:
                    np.savez(stream, gains=measured, key=self.key)
            forms = {"key": ("U", ()), "gains": ("f", (None, len(JOINT) - 1))}
            stored = read_npz(path, forms, "delete it")
            if str(stored["key"]) != self.key:
                cure = f"delete {self.folder} or give another --out"
                raise InputError(f"{path}: is of other clips or settings; {cure}")
            self.known[prefix] = stored["gains"]
        return self.known[prefix]

    def measured(self, prefix: Prefix, name: str) -> np.ndarray:
        clips, rate = self.corpus.clips, self.corpus.sample_rate
        choose = environment.constant(chain_of(prefix))
        waves, _ = environment.run_chains(self.corpus.noisy, rate, len(prefix), choose)
        found = np.zeros((len(clips), len(JOINT) - 1))
        parts = [*data.batches(waves)]
        for here, batch in tqdm(parts, desc=f"chains {name}", unit="batch", leave=False):
            for place, (method, params) in enumerate(JOINT[:-1]):
                settings = torch.tensor([params]).expand(len(batch.lengths), -1)
                methods = torch.full((len(settings),), method)
                after = batch._replace(audio=denoisers.denoise(batch, methods, settings, rate))
                scores = data.scores_of(clips[here], after, rate, self.task.quality_stride)
                found[here, place] = worth(scores, self.task) - self.before[here]
        return found

    def best_constant(self, rows: np.ndarray) -> Prefix:
        """The chain with the largest mean on these clips, one denoiser after the other."""
        prefix, best = (), 0.0
        while len(prefix) < self.task.max_steps:
            means = self.gains(prefix)[rows].mean(0)
            if means.max() <= best:
                break
            prefix, best = (*prefix, int(means.argmax())), means.max()
        return prefix

    def library(self, prefix: Prefix) -> tuple[list[Prefix], np.ndarray]:
        """Every chain that the search for this constant chain has seen -> chains, gains (n, K)."""
        chains, columns = [], []
        for length in range(min(len(prefix) + 1, self.task.max_steps)):
            start = prefix[:length]
            chains += [(*start, place) for place in range(len(JOINT) - 1)]
            columns.append(self.gains(start))
        return chains, np.concatenate(columns, axis=1)


def chain_of(prefix: Prefix) -> Chain:
    return [JOINT[place] for place in prefix]


def complementary(gains: np.ndarray, count: int) -> list[int]:
    """Columns that together gain most where each clip gets the best of them, or nothing."""
    kept: list[int] = []
    best = np.zeros(len(gains))
    while len(kept) < count:
        together = np.maximum(best[:, None], gains).mean(0)
        kept.append(int(together.argmax()))
        best = np.maximum(best, gains[:, kept[-1]])
    return kept


def predicted(seen: np.ndarray, gains: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Gains (n, K) as trees guess them from features (n, F), learned on the training rows."""
    trees = needed("sklearn.ensemble", environment.SCRIPT).ExtraTreesRegressor(**TREES)
    target = gains[train].squeeze(1) if gains.shape[1] == 1 else gains[train]
    return trees.fit(seen[train], target).predict(seen).reshape(len(seen), -1)


def chosen(chains: list[Prefix], values: np.ndarray, rows: np.ndarray) -> list[Chain]:
    """The chain with the highest value for each clip; none where no value is above 0."""
    best = values[rows].argmax(1)
    positive = values[rows].max(1) > 0
    return [chain_of(chains[b]) if fine else [] for b, fine in zip(best, positive, strict=True)]


def yardstick(name: str, one: Round, search: Search, kept: int) -> list[Chain]:
    """The chains (n,) of a yardstick for the held-out clips."""
    seen, constant = search.corpus.seen, search.best_constant(one.train)
    if name == CONSTANT:
        return [chain_of(constant)] * len(one.test)
    chains, gains = search.library(constant)
    if name == SEARCH:
        return chosen(chains, gains, one.test)
    mine = [chains.index(constant)] if constant else [0]
    if name == SELECTOR:
        mine = complementary(gains[one.train], kept)
    values = gains[:, mine]
    if name != KNOWN:
        values = predicted(seen, values, one.train)
    return chosen([chains[place] for place in mine], values, one.test)


def looked_up(name: str, one: Round, search: Search, cfg: CrossConfig) -> tuple[Evaluation, list]:
    """What a yardstick makes of the held-out clips; it learns without steps, so without a curve."""
    choose = environment.given(yardstick(name, one, search, cfg.kept))
    return environment.evaluate(search.corpus.some(one.test), cfg, choose), []


def training_of(cfg: CrossConfig, algo: str, seed: int) -> TrainConfig:
    """The settings of one training: short, so with a high learning rate and small rollouts."""
    return TrainConfig(
        algo=algo,
        total_steps=cfg.total_steps,
        eval_every=cfg.eval_every,
        rollout_steps=256,
        batch_size=64,
        learning_rate=1e-3,
        random_steps=min(512, cfg.total_steps // 2),
        updates_per_step=0.5,
        seed=seed,
        **cfg.task,
    )


def trained(cfg: TrainConfig, train: Corpus, test: Corpus) -> tuple[Evaluation, list]:
    """Train on some clips -> what the last policy makes of the others; steps and gain meanwhile."""
    envs, model, agent = begun(cfg, train)
    curve = []

    def look(step: int) -> None:
        curve.append((step, float(judge(agent, test).gain.mean())))

    learn(cfg, envs, model, look)
    found = judge(agent, test)
    return found, [*curve, (model.num_timesteps, float(found.gain.mean()))]


class Result(NamedTuple):
    """What somebody made of the held-out clips of a round."""

    round: Round
    gain: np.ndarray  # (n,)
    scores: np.ndarray  # (n, 3)
    chains: list[Chain]  # n
    curve: np.ndarray  # (looks, 2) step, gain; of agents


def result_of(path: Path, one: Round, settings: Any, make: Callable[[], tuple]) -> Result:
    """What the file of a round holds, made where it is missing."""
    if not path.exists():
        found, curve = make()
        content = {"settings": settings, "gain": found.gain.tolist(), "chains": found.chains}
        content["scores"] = [[*map(plain, row)] for row in found.scores.tolist()]
        with made(path.parent):
            write_json(path, content | {"curve": curve})
    content = read_json(path, "delete it")
    if content.get("settings") != settings:
        raise InputError(f"{path} was made with other settings; give another --out")
    gain, scores, curve = (np.array(content[n], float) for n in ("gain", "scores", "curve"))
    return Result(one, gain, scores, content["chains"], curve)


class Row(NamedTuple):
    """What somebody made of all rounds that are there."""

    name: str
    results: dict[str, Result]  # by the round's name


def collect(cfg: CrossConfig, corpus: Corpus, rounds: list[Round]) -> list[Row]:
    """Every row, trained where it is missing and wanted."""
    search = Search(corpus, cfg, cfg.out / "search")
    rows = {name: Row(name, {}) for name in (*YARDSTICKS, *cfg.agents)}
    for name, one in tqdm([*product(YARDSTICKS, rounds)], unit="round", leave=False):
        about = {"key": search.key, "kept": cfg.kept, **cfg.task}
        path = cfg.out / one.name / f"{name.replace(' ', '-').replace(',', '')}.json"
        make = partial(looked_up, name, one, search, cfg)
        rows[name].results[one.name] = result_of(path, one, about, make)
    # All agents of a round, so that a part is a comparison.
    for (place, one), algo in product(enumerate(rounds), cfg.agents):
        path = cfg.out / one.name / f"{algo}.json"
        if path.exists() or not cfg.present:
            training = training_of(cfg, algo, cfg.seed + place)
            about = {"key": search.key, "train": to_dict(training)}
            make = partial(trained, training, corpus.some(one.train), corpus.some(one.test))
            result = rows[algo].results[one.name] = result_of(path, one, about, make)
            print(f"{algo}, round {one.name}: {result.gain.mean():+.3f}", flush=True)
    return [row for row in rows.values() if row.results]


def over_speakers(values: np.ndarray, speaker: np.ndarray) -> tuple[float, float, float]:
    """Mean of the speakers' means of (n,) and its 95 % interval, Student's t over speakers."""
    return student_mean(np.array([values[speaker == name].mean() for name in np.unique(speaker)]))


def against(row: Row, other: Row | None) -> tuple[np.ndarray, np.ndarray]:
    """What a row gains (n,), more than another on the rounds that both have, and the speakers."""
    both = [n for n in row.results if other is None or n in other.results]
    gaps = [row.results[n].gain - (other.results[n].gain if other else 0) for n in both]
    speaker = [row.results[n].round.speaker for n in both]
    return np.concatenate([[], *gaps]), np.repeat(speaker, [len(gap) for gap in gaps])


def said(value: float, low: float, high: float, digits: int = 3, sign: str = "+") -> str:
    """+0.24 [+0.13, +0.35]"""
    mean, *ends = (f"{number:{sign}.{digits}f}" for number in (value, low, high))
    return mean if math.isnan(low) else f"{mean} [{ends[0]}, {ends[1]}]"


def outcome(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else "not told apart"


def priced(task: Reward) -> str:
    """What the return is made of."""
    return (
        f"dB gained / {task.reward_scale:g} + {task.stoi_weight:g} STOI gained +"
        f" {task.estoi_weight:g} ESTOI gained."
    )


def draw_interval(ax: Any, y: int, ends: Sequence[float], colour: str) -> None:
    """Value, low and high as a point on a line."""
    value, *sides = ends
    ax.plot(sides, [y, y], color=colour, lw=3, solid_capstyle="butt")
    ax.plot(value, y, "o", color=colour, ms=8)


def told(rows: list[Row], cfg: CrossConfig, corpus: Corpus) -> str:
    """Table and verdict in Markdown."""
    constant = rows[0]
    first = constant.results.values()
    speakers, folds = ({getattr(one.round, n) for one in first} for n in ("speaker", "fold"))
    fewer = " Of a row with fewer rounds only the differences compare: they are of its own rounds."
    fewer *= any(len(row.results) < len(first) for row in rows)
    lines = [
        f"{sum(len(one.gain) for one in first)} held-out clips at {corpus.sample_rate} Hz:"
        f" {len(first)} rounds, {len(speakers)} speakers, {len(folds)} folds of the noise."
        f" Intervals: 95 %, Student's t over speakers. Return: {priced(cfg)} Hurt: the"
        f" share of clips that lose more than {environment.HURT:g}.{fewer}",
        "",
    ]

    def means(scores: list[np.ndarray]) -> list[str]:
        pairs = zip(np.nanmean(np.concatenate(scores), axis=0), (2, 3, 3), strict=True)
        return [f"{mean:.{digits}f}" for mean, digits in pairs]

    noisy = means([corpus.scores[one.round.test] for one in first])
    cells = [["noisy", str(len(first)), "0", "", *noisy, "100%", "0%"]]
    for row in rows:
        found = row.results.values()
        gain, speaker = against(row, None)
        gap = "" if row is constant else said(*over_speakers(*against(row, constant)))
        alone = np.mean([not chain for one in found for chain in one.chains])
        mine = [row.name, str(len(found)), said(*over_speakers(gain, speaker)), gap]
        mine += means([one.scores for one in found])
        cells.append([*mine, f"{alone:.0%}", f"{(gain < -environment.HURT).mean():.0%}"])
    head = ["", "rounds", "return", f"return - {CONSTANT}", "SI-SDR (dB)", "STOI", "ESTOI"]
    lines += [*markdown_table([*head, "left alone", "hurt"], cells), ""]
    agents = [row for row in rows if row.name not in YARDSTICKS]
    pairs = [(row, constant) for row in rows if row.name in (GATE, SELECTOR)]
    for place, row in enumerate(agents):
        pairs += [(row, other) for other in (*rows[:3], *agents[:place])]
    for row, other in pairs:
        gap, speaker = against(row, other)
        if len(gap):
            ends = over_speakers(gap, speaker)
            word = outcome(*ends[1:])
            word += " from" if word == "not told apart" else " than"
            lines.append(f"- {title_of(row, constant)}: {word} {other.name} ({said(*ends)})")
    lines += ["", f"Made on {processor()}."]
    return "\n".join(lines) + "\n"


def learning(row: Row, constant: Row) -> list[np.ndarray]:
    """Steps (k,) of an agent's looks, then what it gains more than the constant chain on its rounds
    (k,), with the interval's ends (k,) each."""
    speaker = np.array([one.round.speaker for one in row.results.values()])
    chain = np.array([constant.results[name].gain.mean() for name in row.results])
    curves = np.array([one.curve for one in row.results.values()])
    told = [over_speakers(gap, speaker) for gap in (curves[:, :, 1] - chain[:, None]).T]
    return [curves[0, :, 0], *np.array(told).T]


def title_of(row: Row, constant: Row) -> str:
    """A row's name; how many rounds it has where they are fewer."""
    few = len(row.results) < len(constant.results)
    return f"{row.name} ({len(row.results)} rounds)" if few else row.name


AGENT_KINDS = ("t_adj", "prob", "supervised", "epsilon")  # of COLOURS


@styled
def draw(rows: list[Row], path: Path) -> None:
    """Left: difference to the constant chain, its interval, the speakers; right: while learning."""
    constant, *others = rows
    agents = [row for row in others if row.name not in YARDSTICKS]
    kinds = {KNOWN: "ceiling", SEARCH: "ceiling"}
    kinds |= dict(zip((row.name for row in agents), AGENT_KINDS, strict=False))
    title = "Held-out speakers and noise: what is gained over the best constant chain"
    figure, ((left, right),) = page(title, 1, 2, 6.2)
    others.reverse()
    for y, row in enumerate(others):
        gap, speaker = against(row, constant)
        colour = COLOURS[kinds.get(row.name, "yardstick")]
        means = [gap[speaker == name].mean() for name in np.unique(speaker)]
        left.plot(means, [y] * len(means), "|", color=colour, ms=12, mew=1.5)
        draw_interval(left, y, over_speakers(gap, speaker), colour)
    left.axvline(0, color="black", lw=1)
    left.set_yticks(range(len(others)), [title_of(row, constant) for row in others])
    left.set_xlabel("return minus the constant chain's")
    left.set_title("line: 95 % over speakers; strokes: speakers")
    for row in agents:
        steps, means, low, high = learning(row, constant)
        colour = COLOURS[kinds[row.name]]
        right.plot(steps, means, "o-", color=colour, label=title_of(row, constant))
        right.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    right.axhline(0, color="black", lw=1.5, ls="--", label=CONSTANT)
    right.set_xlabel("denoisers applied in training")
    right.set_ylabel("return minus the constant chain's, held-out clips")
    right.set_title("while learning; band: 95 % over speakers")
    if agents:
        right.legend()
    write(figure, path, 100, "cross-validation of denoising agents")


CROSS = Kind("cross-validation", older=(("*/constant-chain.json", "settings"),))


def cross(cfg: CrossConfig) -> None:
    """All rounds, then table and figure, in a folder that nobody else writes into."""
    keep_apart(cfg.out, [cfg.features.parent])
    with own_folder(cfg.out, CROSS):
        try:  # what does not fit is said before the chains are measured
            for algo in cfg.agents:
                training_of(cfg, algo, cfg.seed)
        except ValueError as error:
            raise InputError(str(error)) from None
        corpus = environment.load_corpus(cfg.features)
        rounds = rounds_of(corpus, cfg.rounds)
        print(f"{len(corpus.clips)} clips, {len(rounds)} rounds; folder {cfg.out}")
        rows = collect(cfg, corpus, rounds)
        text = told(rows, cfg, corpus)
        found = {
            row.name: {
                "rounds": [*row.results],
                "gain": [*map(plain, over_speakers(*against(row, None)))],
                "minus_constant": [*map(plain, over_speakers(*against(row, rows[0])))],
            }
            for row in rows
        }
        results = {"config": to_dict(cfg), "versions": versions(), "rows": found}
        write_together(
            {
                cfg.out / "table.md": lambda path: write_text(path, text),
                cfg.out / "results.json": lambda path: write_json(path, results),
            }
        )
        draw(rows, cfg.out / "cross.png")
        print(text, end="")
        print(f"table: {cfg.out / 'table.md'}")
