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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from core.command import needed
from core.errors import InputError
from core.files import Kind, keep_apart, own_folder, whole, write_text, write_together, writing
from core.names import markdown_table
from core.settings import to_dict
from core.stored import read_json, read_npz, write_json
from core.versions import processor, versions
from figures.plotting import COLOURS, page, styled, write
from sed.metrics import student_mean
from studies.denoise import data, denoisers, environment
from studies.denoise.data import BATCH
from studies.denoise.environment import JOINT, Chain, Corpus, worth
from studies.denoise.settings import CrossConfig, Reward, TrainConfig
from studies.denoise.training import learn, plain

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
        """Folder of its results."""
        return f"{self.speaker}-{self.fold}"


def rounds_of(corpus: Corpus, which: str) -> list[Round]:
    """All rounds, those first that have every speaker once."""
    rows = [clip.row for clip in corpus.clips]
    for name in ("speaker_id", "fold"):
        if not rows[0].get(name):
            cure = "make the clips with `mix --cells`"
            raise InputError(f"--features: no column {name}; {cure}")
    speaker, fold = (np.array([row[name] for row in rows]) for name in ("speaker_id", "fold"))
    speakers, folds = np.unique(speaker), np.unique(fold)
    if min(len(speakers), len(folds)) < 2:
        have = f"{len(speakers)} speakers and {len(folds)} folds"
        raise InputError(f"--features: {have}; at least 2 of each are needed")
    rounds = []
    for shift in range(len(folds)):
        for place, name in enumerate(speakers):
            held = folds[(place + shift) % len(folds)]
            train = np.flatnonzero((speaker != name) & (fold != held))
            test = np.flatnonzero((speaker == name) & (fold == held))
            if not len(train) or not len(test):
                none = f"no clip {'of' if len(train) else 'without'} speaker {name}"
                cure = "make the clips with `mix --cells`"
                raise InputError(f"--features: {none} and fold {held}; {cure}")
            rounds.append(Round(str(name), str(held), train, test))
    return rounds[: len(speakers)] if which == "diagonal" else rounds


class Search:
    """What every chain of JOINT gains on every clip, measured when it is first asked for."""

    def __init__(self, corpus: Corpus, task: Reward, folder: Path):
        self.corpus, self.task, self.folder = corpus, task, folder
        self.known: dict[Prefix, np.ndarray] = {}
        noisy = [clip.noisy for clip in corpus.clips]
        found = data.measure(corpus.clips, noisy, corpus.sample_rate, task.quality_stride)
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
            if path.exists():
                shape = len(self.corpus.clips), len(JOINT) - 1
                forms = {"key": ("U", ()), "gains": ("f", (None, shape[1]))}
                stored = read_npz(path, forms, "delete it")
                if str(stored["key"]) != self.key or stored["gains"].shape != shape:
                    cure = f"delete {self.folder} or give another --out"
                    raise InputError(f"{path}: is of other clips or settings; {cure}")
                self.known[prefix] = stored["gains"]
            else:
                self.known[prefix] = self.measured(prefix, name)
                with writing(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                with whole(path) as temporary, open(temporary, "wb") as stream:
                    np.savez(stream, gains=self.known[prefix], key=self.key)
        return self.known[prefix]

    def measured(self, prefix: Prefix, name: str) -> np.ndarray:
        """The same, computed."""
        clips, rate = self.corpus.clips, self.corpus.sample_rate
        choose = environment.constant(chain_of(prefix))
        waves = [clip.noisy for clip in clips]
        if prefix:
            waves, _ = environment.run_chains(waves, rate, len(prefix), choose)
        found = np.zeros((len(clips), len(JOINT) - 1))
        bar = tqdm(range(0, len(clips), BATCH), desc=f"chains {name}", unit="batch", leave=False)
        for first in bar:
            here = slice(first, first + BATCH)
            batch, count = denoisers.batch_of(waves[here]), len(waves[here])
            for place, (method, params) in enumerate(JOINT[:-1]):
                settings = torch.tensor([params]).repeat(count, 1)
                audio = denoisers.denoise(batch, torch.full((count,), method), settings, rate)
                pairs = zip(audio.numpy(), batch.lengths, strict=True)
                after = [wave[:length] for wave, length in pairs]
                scores = data.measure(clips[here], after, rate, self.task.quality_stride)
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
    """Places in JOINT -> a chain."""
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


def subset(corpus: Corpus, index: np.ndarray) -> Corpus:
    """Some clips of a corpus."""
    clips = [corpus.clips[i] for i in index]
    return Corpus(clips, corpus.seen[index], corpus.scores[index], corpus.sample_rate)


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


def trained(
    cfg: TrainConfig, train: Corpus, test: Corpus
) -> tuple[environment.Evaluation, list[tuple[int, float]]]:
    """Train on some clips -> what the last policy makes of the others, its gain meanwhile."""
    scaler = environment.fit_scaler(train, cfg, cfg.scaler_steps, cfg.seed)
    envs = environment.DenoiseVectorEnv(train, cfg, cfg.num_envs, cfg.algo, scaler)
    model = environment.make_model(cfg, envs)
    agent = environment.Agent(cfg.algo, model.policy, scaler, train.sample_rate, cfg)
    curve = []

    def look(step: int) -> None:
        model.policy.set_training_mode(False)
        with torch.random.fork_rng(devices=[]):
            curve.append((step, float(environment.evaluate(test, cfg, agent.choose).gain.mean())))

    learn(model, envs, cfg.total_steps, cfg.eval_every, look)
    model.policy.set_training_mode(False)
    found = environment.evaluate(test, cfg, agent.choose)
    return found, [*curve, (model.num_timesteps, float(found.gain.mean()))]


def result_of(path: Path, settings: Any, make: Callable[[], tuple]) -> dict[str, Any]:
    """What a file of a round holds, made where it is missing."""
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        found, curve = make()
        content = {"settings": settings, "gain": found.gain.tolist(), "chains": found.chains}
        content["scores"] = [[*map(plain, row)] for row in found.scores.tolist()]
        content["curve"] = curve
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    content = read_json(path, "delete it")
    if content.get("settings") != settings:
        raise InputError(f"{path} was made with other settings; give another --out")
    return content


class Row(NamedTuple):
    """What somebody made of the held-out clips of all rounds that are there."""

    name: str
    rounds: list[Round]
    gain: np.ndarray  # (n,)
    scores: np.ndarray  # (n, 3)
    chains: list[Chain]  # n
    speaker: np.ndarray  # (n,)
    curves: np.ndarray  # (rounds, looks, 2) step, gain; of agents


def row_of(name: str, rounds: list[Round], found: list[dict[str, Any]]) -> Row:
    """Results of rounds, one after the other."""
    return Row(
        name,
        rounds,
        np.concatenate([one["gain"] for one in found]),
        np.concatenate([np.array(one["scores"], float) for one in found]),
        [chain for one in found for chain in one["chains"]],
        np.repeat([one.speaker for one in rounds], [len(one["gain"]) for one in found]),
        np.array([one["curve"] for one in found]),
    )


def collect(cfg: CrossConfig, corpus: Corpus, rounds: list[Round]) -> list[Row]:
    """Every row, trained where it is missing and wanted."""
    search = Search(corpus, cfg, cfg.out / "search")
    rows = []
    for name in YARDSTICKS:
        found = []
        for one in tqdm(rounds, desc=name, unit="round", leave=False):

            def make(name: str = name, one: Round = one) -> tuple[environment.Evaluation, list]:
                chains = environment.given(yardstick(name, one, search, cfg.kept))
                return environment.evaluate(subset(corpus, one.test), cfg, chains), []

            about = {"key": search.key, "kept": cfg.kept, **cfg.task}
            path = cfg.out / one.name / f"{name.replace(' ', '-').replace(',', '')}.json"
            found.append(result_of(path, about, make))
        rows.append(row_of(name, rounds, found))
    trainings: dict[str, list[tuple[Round, dict[str, Any]]]] = {algo: [] for algo in cfg.agents}
    for place, one in enumerate(rounds):  # all agents of a round, so that a part is a comparison
        for algo in cfg.agents:
            training = training_of(cfg, algo, cfg.seed + place)
            about = {"key": search.key, "train": to_dict(training)}
            path = cfg.out / one.name / f"{algo}.json"
            if cfg.present and not path.exists():
                continue
            parts = subset(corpus, one.train), subset(corpus, one.test)
            result = result_of(path, about, partial(trained, training, *parts))
            trainings[algo].append((one, result))
            print(f"{algo}, round {one.name}: {np.mean(result['gain']):+.3f}", flush=True)
    for algo, made in trainings.items():
        if made:
            rows.append(row_of(algo, [one for one, _ in made], [result for _, result in made]))
    return rows


def over_speakers(values: np.ndarray, speaker: np.ndarray) -> tuple[float, float, float]:
    """Mean of the speakers' means of (n,) and its 95 % interval, Student's t over speakers."""
    return student_mean(np.array([values[speaker == name].mean() for name in np.unique(speaker)]))


def against(row: Row, other: Row) -> tuple[np.ndarray, np.ndarray]:
    """What a row gains more than another on the rounds that both have (n,), and the speakers."""
    mine, theirs = places_of(row), places_of(other)
    both = [name for name in mine if name in theirs]
    here, there = (
        np.concatenate([np.empty(0, int), *(places[name] for name in both)])
        for places in (mine, theirs)
    )
    return row.gain[here] - other.gain[there], row.speaker[here]


def places_of(row: Row) -> dict[str, np.ndarray]:
    """Round -> where its clips are in a row."""
    ends = np.cumsum([len(one.test) for one in row.rounds])
    return {
        one.name: np.arange(end - len(one.test), end)
        for one, end in zip(row.rounds, ends, strict=True)
    }


def said(value: float, low: float, high: float, digits: int = 3, sign: str = "+") -> str:
    """+0.24 [+0.13, +0.35]"""
    mean, *ends = (f"{number:{sign}.{digits}f}" for number in (value, low, high))
    return mean if math.isnan(low) else f"{mean} [{ends[0]}, {ends[1]}]"


def told(rows: list[Row], cfg: CrossConfig, corpus: Corpus) -> str:
    """Table and verdict in Markdown."""
    constant = rows[0]
    clips, speakers = len(constant.gain), len(np.unique(constant.speaker))
    first = constant.rounds
    head = ["", "rounds", "return", f"return - {CONSTANT}", "SI-SDR (dB)", "STOI", "ESTOI"]
    head += ["left alone", "hurt"]
    fewer = " Of a row with fewer rounds only the differences compare: they are of its own rounds."
    fewer *= any(len(row.rounds) < len(first) for row in rows)
    lines = [
        f"{clips} held-out clips at {corpus.sample_rate} Hz: {len(first)} rounds, {speakers}"
        f" speakers, {len({one.fold for one in first})} folds of the noise. Intervals: 95 %,"
        f" Student's t over speakers. Return: dB gained / {cfg.reward_scale:g} +"
        f" {cfg.stoi_weight:g} STOI gained + {cfg.estoi_weight:g} ESTOI gained. Hurt: the share of"
        f" clips that lose more than {environment.HURT:g}.{fewer}",
        "",
    ]

    def means(scores: np.ndarray) -> list[str]:
        pairs = zip(np.nanmean(scores, axis=0), (2, 3, 3), strict=True)
        return [f"{mean:.{digits}f}" for mean, digits in pairs]

    noisy = np.concatenate([corpus.scores[one.test] for one in first])
    cells = [["noisy", str(len(first)), "0", "", *means(noisy), "100%", "0%"]]
    for row in rows:
        gap = "" if row is constant else said(*over_speakers(*against(row, constant)))
        alone = np.mean([not chain for chain in row.chains])
        gain = said(*over_speakers(row.gain, row.speaker))
        hurt = f"{(row.gain < -environment.HURT).mean():.0%}"
        measures = means(row.scores)
        cells.append([row.name, str(len(row.rounds)), gain, gap, *measures, f"{alone:.0%}", hurt])
    lines += [*markdown_table(head, cells), ""]
    for row in rows:
        if row.name in YARDSTICKS and row.name not in (GATE, SELECTOR):
            continue
        others = rows[:1]
        if row.name not in YARDSTICKS:
            others = rows[:3] + rows[len(YARDSTICKS) : rows.index(row)]
        for other in others:
            gap, speaker = against(row, other)
            if other is row or not len(gap):
                continue
            value, low, high = over_speakers(gap, speaker)
            word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
            lines.append(
                f"- {title_of(row, constant)}: {word} {other.name} ({said(value, low, high)})"
            )
    lines += ["", f"Made on {processor()}."]
    return "\n".join(lines) + "\n"


def learning(row: Row, constant: Row) -> list[np.ndarray]:
    """Steps (k,) of an agent's looks, then what it gains more than the constant chain on its rounds
    (k,), with the interval's ends (k,) each."""
    places = places_of(constant)
    chain = np.array([constant.gain[places[one.name]].mean() for one in row.rounds])
    speaker = np.array([one.speaker for one in row.rounds])
    gaps = row.curves[:, :, 1] - chain[:, None]
    told = [over_speakers(gap, speaker) for gap in gaps.T]
    return [row.curves[0, :, 0], *np.array(told).T]


def title_of(row: Row, constant: Row) -> str:
    """A row's name; how many rounds it has where they are fewer."""
    few = len(row.rounds) < len(constant.rounds)
    return f"{row.name} ({len(row.rounds)} rounds)" if few else row.name


AGENT_KINDS = ("t_adj", "prob", "supervised", "epsilon")  # of COLOURS


@styled
def draw(rows: list[Row], path: Path) -> None:
    """Left: difference to the constant chain, its interval, the speakers; right: while learning."""
    constant = rows[0]
    others = list(reversed(rows[1:]))
    agents = [row for row in rows if row.name not in YARDSTICKS]
    kinds = dict(zip((row.name for row in agents), AGENT_KINDS, strict=False))
    title = "Held-out speakers and noise: what is gained over the best constant chain"
    figure, ((left, right),) = page(title, 1, 2, 6.2)
    for y, row in enumerate(others):
        gap, speaker = against(row, constant)
        mean, low, high = over_speakers(gap, speaker)
        kind = "ceiling" if row.name in (KNOWN, SEARCH) else kinds.get(row.name, "yardstick")
        means = [gap[speaker == name].mean() for name in np.unique(speaker)]
        left.plot(means, [y] * len(means), "|", color=COLOURS[kind], ms=12, mew=1.5)
        left.plot([low, high], [y, y], color=COLOURS[kind], lw=3, solid_capstyle="butt")
        left.plot(mean, y, "o", color=COLOURS[kind], ms=8)
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
        results = {"config": to_dict(cfg), "versions": versions()}
        results["rows"] = {
            row.name: {
                "rounds": [one.name for one in row.rounds],
                "gain": [*map(plain, over_speakers(row.gain, row.speaker))],
                "minus_constant": [*map(plain, over_speakers(*against(row, rows[0])))],
            }
            for row in rows
        }
        write_together(
            {
                cfg.out / "table.md": lambda path: write_text(path, text),
                cfg.out / "results.json": lambda path: write_json(path, results),
            }
        )
        draw(rows, cfg.out / "cross.png")
        print(text, end="")
        print(f"table: {cfg.out / 'table.md'}")
