"""Acting, training, evaluating, preprocessing: naive against suite, in one run on this machine.

Run:    make bench   (or: PYTHONPATH=. python benchmarks/speed.py)
        PYTHONPATH=. python benchmarks/speed.py --quick                 # tries everything, tiny
        PYTHONPATH=. python benchmarks/speed.py --sections acting training
        PYTHONPATH=. python benchmarks/speed.py --sections gpu          # on a machine with CUDA
Reads:  a cache of the slides' shape (default: simulated, see simulate_cache.py)
Writes: <out>/speed.md, <out>/speed.json
Next:   simulate_cache.py

The naive version is `tests/naive.py`: one pair, one frame at a time, the same network, at the
thread count that suits it best. Both sides run in turns; a figure is the median of the repeats
with the range behind it, and a ratio is the median of the repeats' own ratios. What takes hours is
measured in slices of `--slice-s` seconds and extrapolated; the table says so. Read the ratios: the
seconds depend on what else the machine does.
"""

import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import naive  # noqa: E402
import simulate_cache  # noqa: E402

import event_metrics  # noqa: E402
import preprocess  # noqa: E402
import runfolder  # noqa: E402
from apply import decisions, greedy_actions  # noqa: E402
from bandit import decide, make_states, near, thresholds, to_device  # noqa: E402
from config import (  # noqa: E402
    Bandit,
    Checked,
    InputError,
    Learning,
    Network,
    PreprocessConfig,
    TrainConfig,
    num_cores,
    number,
    run_script,
    with_preset,
    write_text,
)
from core.files import Kind, keep_apart, own_folder  # noqa: E402
from core.versions import processor  # noqa: E402
from device import fastest_batch, wait  # noqa: E402
from DQN import AGREE_EVERY, QNetwork, Trainer, learner_of  # noqa: E402
from metrics import count_pairs, scores_of  # noqa: E402
from preprocess import Cache, load_cache  # noqa: E402
from ranks import ALONE, Ranks, together  # noqa: E402
from sed.audio import AudioFile  # noqa: E402
from timeline import Event  # noqa: E402

CPU = torch.device("cpu")
MEASURED = Kind("folder of measurements", older=(("speed.json", "machine"), ("speed.json", "rows")))
SLIDES = {"train": 28_592, "validation": 5_570, "frames": 500}
# Epsilon falls from 1 to 0.05 over 70 % of the episodes: Simpson's rule over the fall, then 30 %.
EPSILONS = {1.0: 0.7 / 6, 0.525: 0.7 * 4 / 6, 0.05: 0.7 / 6 + 0.3}
LOCKSTEP = 60  # frames


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(Checked):
    """Measure the suite against the naive version."""

    sections: tuple[str, ...] = ()
    """which parts, by name (default: all that this machine can run)"""
    quick: bool = False
    """try everything at tiny sizes: the figures mean nothing"""
    slice_s: float = number(120.0, above=0)
    """seconds of one slice of what would take hours"""
    repeats: int = number(3, 1)
    """how often both sides are measured, in turns"""
    cache: Path | None = None
    """folder with train/ and validation/ of the slides' shape (default: simulated into <out>)"""
    out: Path = Path("runs/bench")
    """folder for speed.md and speed.json"""
    worker: str | None = None
    """used by this program itself: what one of several processes does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.sections if name not in SECTIONS]:
            raise ValueError(f"--sections: {unknown[0]} is not one of {', '.join(SECTIONS)}")

    @property
    def seconds(self) -> float:
        """Length of a slice."""
        return 0.3 if self.quick else self.slice_s

    @property
    def times(self) -> int:
        """Repeats."""
        return 1 if self.quick else self.repeats

    @property
    def network(self) -> Network:
        """The slides' network, or a tiny one."""
        return Network(hidden=8, heads=2) if self.quick else Network()

    @property
    def small_network(self) -> Network:
        """The demo's network, where the result or the rest of the cost is what counts."""
        return self.network if self.quick else with_preset(TrainConfig, "demo").network


class Row(NamedTuple):
    """A line of the table."""

    section: str
    what: str
    naive: str
    suite: str
    value: float  # what is compared with `need`
    need: str  # e.g. ">= 5.5 x"; empty: nothing is asked
    met: bool | None


def row(
    section: str, what: str, value: float, need: str = "", naive: str = "", suite: str = ""
) -> Row:
    """A line; `need` is `>= number unit` or `<= number unit`."""
    met = None
    if need:
        sign, limit = need.split()[:2]
        met = bool(value >= float(limit) if sign == ">=" else value <= float(limit))
    return Row(section, what, naive, suite, float(value), need, met)


def text(values: list[float], form: str = ",.0f") -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return (
        f"{middle:{form}} ({low:{form}} to {high:{form}})"
        if len(values) > 1
        else f"{middle:{form}}"
    )


# ---------------------------------------------------------------------------- clocks


def rate(steps: Iterator[int], seconds: float) -> float:
    """Work a second: `steps` yields how much each step did; the first one is a warm-up."""
    next(steps)
    began, done = time.perf_counter(), 0
    for count in steps:
        done += count
        if time.perf_counter() - began >= seconds:
            break
    return done / (time.perf_counter() - began)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Some code with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def best_threads(make: Callable[[], Iterator[int]], seconds: float) -> int:
    """The thread count at which the naive version is fastest."""
    found = {}
    for count in range(1, num_cores() + 1):
        with threads(count):
            found[count] = rate(make(), seconds / 4)
    return max(found, key=found.__getitem__)


def in_turns(
    section: str,
    what: str,
    cfg: SpeedConfig,
    slow: Callable[[], Iterator[int]],
    fast: Callable[[], Iterator[int]],
    need: str,
) -> Row:
    """Rates of both sides, one thread for the suite, ratio of each repeat.

    Nothing is extrapolated from these, so a quarter of a slice is enough.
    """
    seconds = cfg.seconds / 4
    count, ours, theirs = best_threads(slow, seconds), [], []
    for _ in range(cfg.times):
        with threads(count):
            theirs.append(rate(slow(), seconds))
        ours.append(rate(fast(), seconds))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    note = f"{text(theirs)}/s, {count} thread(s)"
    return row(section, what, ratio, need, note, f"{text(ours)}/s")


def matmul_peak() -> float:
    """FLOP/s of float32 matrix products at the current thread count, the best of some."""
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return max(rates)


def forward_flops(bandit: Bandit, network: Network) -> int:
    """Multiplications and additions that deciding one frame executes."""
    w, h, d, inner = bandit.window, network.hidden, network.width, network.inner
    conv = sum(
        2 * w * network.tcn_kernel * h * (h if layer else len(bandit.channels))
        for layer in range(network.tcn_layers)
    )
    gru = sum(2 * 2 * w * 3 * h * ((d if layer else h) + h) for layer in range(network.gru_layers))
    layer = 2 * w * 4 * d * d + 4 * w * w * d + 4 * w * d * inner
    last = 2 * 2 * d * d + 2 * w * 2 * d * d + 4 * w * d + 4 * d * inner  # the centre asks alone
    head = 2 * d * h + 2 * h * bandit.num_actions
    return conv + gru + (network.transformer_layers - 1) * layer + last + head


# ---------------------------------------------------------------------------- what both sides do


def some_pairs(cache: Cache, count: int) -> Cache:
    """The first pairs of a cache."""
    return cache.choose(np.arange(len(cache.pairs)) < count)


def sharp(bandit: Bandit, network: Network) -> QNetwork:
    """A network whose actions differ between frames."""
    torch.manual_seed(0)
    found = QNetwork(bandit, network)
    with torch.no_grad():
        found.head[2].weight *= 20
    return found.eval()


def plain(network: QNetwork) -> QNetwork:
    """The same network with PyTorch's own GRU: what a straightforward version would train."""
    own = network.gru
    network.gru = nn.GRU(
        own.input_size, own.hidden_size, own.num_layers, batch_first=True, bidirectional=True
    )
    network.gru.load_state_dict(own.state_dict())
    return network


def naive_acting(cache: Cache, bandit: Bandit, network: nn.Module) -> Iterator[int]:
    """Frame after frame."""
    choose = naive.greedy(network)
    for index in itertools.cycle(range(len(cache.pairs))):
        pair = cache.of_pair(index)
        for _ in naive.walk(pair, choose, bandit.channels, list(bandit.deltas), bandit.reading):
            yield 1


def suite_acting(
    cache: Cache, bandit: Bandit, network: QNetwork, batch: int, pairs: int
) -> Iterator[int]:
    """Greedy decisions of so many pairs at a time; frames that need none count as decided.

    In lockstep a frame costs the same whatever comes after it, so pairs end after `LOCKSTEP`.
    """
    signals = to_device(cache, bandit, CPU)
    if bandit.reading == "sequential":
        signals = signals._replace(end=signals.end.minimum(signals.start + LOCKSTEP))
    lengths = (signals.end - signals.start).numpy()
    for start in itertools.count(0, pairs):
        chosen = np.arange(start, start + pairs) % len(lengths)
        greedy_actions(network, signals, bandit, batch, chosen)
        yield int(lengths[chosen].sum())


def naive_training(cache: Cache, network: QNetwork, epsilon: float) -> Iterator[int]:
    """The naive version in the middle of its training, replay above its start."""
    bandit = Bandit()
    pairs = map(cache.of_pair, itertools.cycle(range(len(cache.pairs))))
    episodes = ((pair, epsilon) for pair in pairs)
    deltas, reading = list(bandit.deltas), bandit.reading
    visits = naive.train(network, episodes, bandit.channels, deltas, reading, 32)
    while not next(visits):
        pass
    for _ in visits:
        yield 1


def enough_passes(cache: Cache) -> int:
    """Passes over a cache that no slice reaches the end of."""
    return 1 + 2_000_000 // len(cache.label)


def trainer_at(cfg: SpeedConfig, cache: Cache, epsilon: float, ranks: Ranks = ALONE) -> Trainer:
    """A trainer at a constant epsilon, replay filled so far that it learns."""
    learning = Learning(train_start=32, epsilon_start=epsilon, epsilon_end=epsilon)
    passes = enough_passes(cache)
    train = TrainConfig(network=cfg.network, learning=learning, holdout=0.0, passes=passes)
    trainer = Trainer(train, cache, CPU, ranks)
    while not trainer.progress["steps"]:
        trainer.tick()
    return trainer


def suite_training(trainer: Trainer) -> Iterator[int]:
    """Tick after tick."""
    while not trainer.done:
        before = trainer.progress["frames"]
        trainer.tick()
        yield trainer.progress["frames"] - before


# ---------------------------------------------------------------------------- sections


def acting(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Decisions by the network alone, and how much of the machine it reaches."""
    bandit, network = Bandit(), sharp(Bandit(), cfg.network)
    signals = to_device(cache, bandit, CPU)
    batch = fastest_batch(network, signals, bandit)
    frame = torch.arange(batch)
    states = make_states(signals, torch.searchsorted(signals.end, frame, right=True), frame, bandit)

    @torch.inference_mode()
    def one() -> Iterator[int]:
        for state in itertools.cycle(states):
            int(network(state[None])[0].argmax())
            yield 1

    @torch.inference_mode()
    def many() -> Iterator[int]:
        while True:
            network(states).argmax(1)
            yield batch

    what = f"network alone, frames/s (batch {batch})"
    found = in_turns("acting", what, cfg, one, many, ">= 5.5 x")
    return [found, share_of_peak("acting", "network alone", cfg, many, bandit, 1)]


def share_of_peak(
    section: str,
    what: str,
    cfg: SpeedConfig,
    make: Callable[[], Iterator[int]],
    bandit: Bandit,
    passes: int,
) -> Row:
    """FLOP/s that the network executes as a share of the matmul peak; `passes` forward passes
    each: a backward pass counts as two."""
    flops = passes * forward_flops(bandit, cfg.network)
    rates = [(rate(make(), cfg.seconds / 4), matmul_peak()) for _ in range(cfg.times)]
    shares = [100 * found * flops / peak for found, peak in rates]
    need = ">= 60 %" if passes == 1 else ">= 55 %"
    share = row(section, f"{what}, FLOP/s of matmul peak", statistics.median(shares), need)
    return share._replace(suite=text(shares, ".0f") + " %")


def whole(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Greedy decisions of whole pairs, both readings."""
    rows = []
    for preset, need, pairs in (("slides", ">= 15 x", 20), ("original", ">= 5 x", 500)):
        bandit = with_preset(TrainConfig, preset).bandit
        network = sharp(bandit, cfg.network)
        pairs = min(pairs, len(cache.pairs))
        signals = to_device(cache, bandit, CPU)
        batch = fastest_batch(network, signals, bandit)
        inside = near(signals.prob, signals.t_base, bandit.max_delta).float().mean()
        what = f"whole, {bandit.reading} reading, frames/s, {pairs} pairs at a time"
        what += f" (batch {batch}, {inside:.1%} inside the boundary)"
        slow = lambda b=bandit, n=network: naive_acting(cache, b, n)  # noqa: E731
        fast = lambda b=bandit, n=network, s=batch, p=pairs: suite_acting(cache, b, n, s, p)  # noqa: E731
        rows.append(in_turns("whole", what, cfg, slow, fast, need))
    return rows


def over_schedule(rates: dict[float, float]) -> float:
    """Frames/s over the whole epsilon schedule, from those at some of its points."""
    return 1 / sum(EPSILONS[epsilon] / found for epsilon, found in rates.items())


def training(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Training over the epsilon schedule, one and two processes, and the gradient step alone."""
    slow, fast, wide, double = [], [], [], []
    seconds, cores = cfg.seconds / len(EPSILONS), num_cores()
    make = lambda e: naive_training(cache, plain(sharp(Bandit(), cfg.network)), e)  # noqa: E731
    count = best_threads(lambda: make(0.525), cfg.seconds)
    for _ in range(cfg.times):
        with threads(count):
            slow.append(over_schedule({e: rate(make(e), seconds) for e in EPSILONS}))
        for number_of_threads, rates in ((1, fast), (cores, wide)):
            with threads(number_of_threads):
                found = {
                    e: rate(suite_training(trainer_at(cfg, cache, e)), seconds) for e in EPSILONS
                }
            rates.append(over_schedule(found))
        double.append(over_schedule(in_processes(cfg, 2, "training")))
    rows = []
    for what, ours, need in (
        ("one process, 1 thread", fast, ">= 1.8 x"),
        (f"one process, --threads {cores}", wide, ">= 1.8 x"),
        ("two processes", double, ""),
    ):
        ratio = statistics.median(a / b for a, b in zip(ours, slow, strict=True))
        note = f"{text(slow)}/s, {count} thread(s)"
        full = SLIDES["train"] * SLIDES["frames"] / statistics.median(ours) / 3600
        what = f"frames/s over the epsilon schedule, {what}"
        what += f" (28,592 episodes: {full:.1f} h, extrapolated)"
        rows.append(row("training", what, ratio, need, note, f"{text(ours)}/s"))
    gain = statistics.median(b / a for a, b in zip(fast, double, strict=True))
    rows.append(row("training", "two processes against one", gain))
    trainer = trainer_at(cfg, cache, 1.0)
    make = lambda: gradient_steps(trainer)  # noqa: E731
    what = f"gradient step of {trainer.batch}"
    return [*rows, share_of_peak("training", what, cfg, make, trainer.bandit, 3)]


def gradient_steps(trainer: Trainer) -> Iterator[int]:
    """Gradient steps alone; a step is as many frames as its batch."""
    while True:
        trainer.gradient_step()
        yield trainer.batch


def evaluating(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Evaluating with two processes against one."""
    gains, ones = [], []
    for _ in range(cfg.times):
        one, two = (in_processes(cfg, count, "evaluating")[0.0] for count in (1, 2))
        gains.append(two / one)
        ones.append(one)
    full = SLIDES["validation"] * SLIDES["frames"] / statistics.median(ones) / 60
    what = f"two processes against one (5,570 pairs in one: {full:.1f} min, extrapolated)"
    return [row("evaluating", what, statistics.median(gains), ">= 1.7 x", suite=f"{text(ones)}/s")]


def memory(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Replay, resident signals, loading time, at the size of the cache."""
    folder = cfg.cache / "train"
    times = []
    for _ in range(cfg.times):
        began = time.perf_counter()
        load_cache(folder)
        times.append(time.perf_counter() - began)
    trainer = Trainer(TrainConfig(network=cfg.network, holdout=0.0), cache, CPU)
    ring = sum(x.numel() * x.element_size() for x in trainer.replay.columns.values())
    signals = trainer.signals
    resident = signals.channels.numel() * 4 + signals.label.numel() + 16 * len(signals.start)
    size = f"{len(cache.pairs):,} pairs"
    return [
        row("memory", "replay of 50,000 transitions, MB", ring / 1e6, "<= 4 MB"),
        row("memory", f"resident training signals, MB, {size}", resident / 1e6, "<= 400 MB"),
        row(
            "memory",
            f"loading, s, {size}",
            statistics.median(times),
            "<= 10 s",
            suite=text(times, ".2f"),
        ),
    ]


def pairs(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Cost of a pair at different numbers of pairs; each number in turns.

    With the demo's network: a small one leaves all other costs the largest share.
    """
    bandit = Bandit()
    network = sharp(bandit, cfg.small_network)
    numbers = (5, 10, 20) if cfg.quick else (100, 500, 1_000, 5_000)
    numbers = [n for n in numbers if n <= len(cache.pairs)]
    inside = np.add.reduceat(
        near(cache.signals["prob"], cache.signals["t_base"], bandit.max_delta), cache.offsets[:-1]
    )
    cost = defaultdict(list)
    greedy_actions(network, to_device(some_pairs(cache, 5), bandit, CPU), bandit, 256)  # warm-up
    for _, n in itertools.product(range(cfg.times), numbers):
        signals = to_device(some_pairs(cache, n), bandit, CPU)
        began = time.perf_counter()
        greedy_actions(network, signals, bandit, 256)
        seconds = time.perf_counter() - began
        cost[n].append(1000 * seconds / n * inside.mean() / inside[:n].mean())
    middles = [statistics.median(values) for values in cost.values()]
    spread = 100 * (max(middles) / min(middles) - 1)
    costs = ", ".join(f"{n:,}: {text(values, '.1f')}" for n, values in cost.items())
    what = "cost of a pair, ms, at equal shares inside the boundary: largest against smallest"
    return [row("pairs", what, spread, "<= 15 %", suite=costs)]


RESULT_LEARNING = {32: 1e-3, 128: 2e-3, 256: 2.8e-3}  # batch -> learning rate, its square root


def result(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Wall time until the gain in mean-pair IoU on held-out pairs reaches 95 % of its end."""
    reached, notes = {}, []
    for batch, lr in RESULT_LEARNING.items():
        learning = Learning(batch=batch, frames_per_step=batch, lr=lr, train_start=max(256, batch))
        train = TrainConfig(
            network=cfg.small_network, learning=learning, passes=1 if cfg.quick else 4
        )
        trainer = Trainer(train, some_pairs(cache, 40 if cfg.quick else 300), CPU)
        curve = iou_curve(trainer, looks=4 if cfg.quick else 40)
        final = statistics.mean(gain for _, gain in curve[-3:])
        if final > 0:
            reached[batch] = next(at for at, gain in curve if gain >= 0.95 * final)
        at = f"{reached[batch]:.1f} s to" if final > 0 else "no gain:"
        notes.append(f"batch {batch}: {at} {100 * final:+.2f} points")
    first, *others = RESULT_LEARNING
    best = min(others, key=lambda batch: reached.get(batch, math.inf))
    ratio = reached[first] / reached[best] if first in reached and best in reached else 0.0
    what = f"time to 95 % of the gain in IoU, batch {best} against {first}"
    return [row("result", what, ratio, ">= 2 x", suite="; ".join(notes))]


def iou_curve(trainer: Trainer, looks: int) -> list[tuple[float, float]]:
    """(seconds of training, gain in mean-pair IoU on the held-out pairs) at every look."""
    cache, held = trainer.cache, np.isin(np.arange(len(trainer.cache.pairs)), trainer.held_out)
    some = cache.choose(held)
    frames = held[cache.frames_of_pair]
    base = decide(some.signals["prob"], some.signals["t_base"])
    before = scores_of(count_pairs(base, some.label, some.offsets))["iou"].mean()
    seconds, curve, due = 0.0, [], 1
    while not trainer.done:
        began = time.perf_counter()
        trainer.tick()
        seconds += time.perf_counter() - began
        if trainer.progress["frames"] * looks >= due * trainer.total_frames:
            due += 1
            actions = greedy_actions(
                trainer.network, trainer.signals, trainer.bandit, 256, trainer.held_out
            )
            t_adj = thresholds(trainer.signals, actions, trainer.bandit)
            pred = decide(trainer.signals.prob, t_adj).numpy()[frames]
            after = scores_of(count_pairs(pred, some.label, some.offsets))["iou"].mean()
            curve.append((seconds, float(after - before)))
    return curve


def simulated_events(clips: int, classes: list[str], rng: np.random.Generator) -> list[dict]:
    """Found and true events of clips of 10 s: a third of the classes sounds, twice each; most are
    found, with other ends, and there are as many false alarms."""
    found, truth = {}, {}
    for name in (f"{i}.wav" for i in range(clips)):
        true, said = [], []
        for label in rng.permutation(classes)[: 1 + min(3, len(classes) // 3)]:
            for onset in rng.uniform([0, 5], [4, 8]):
                offset = onset + rng.uniform(0.2, 2.0)
                true.append(Event(onset, offset, str(label)))
                late = onset + rng.uniform(-0.3, 0.3)
                at, last = max(0.0, late), max(late + 0.1, offset + rng.uniform(-0.3, 0.3))
                said.append(Event(at, last, str(rng.choice([label, rng.choice(classes)]))))
        truth[name], found[name] = true, said
    return [found, truth]


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def events(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Event metrics of 100 clips: sed_scores_eval against the suite."""
    rows, rng = [], np.random.default_rng(0)
    clips = 10 if cfg.quick else 100
    for count in (10, 500):
        classes = [f"class {k}" for k in range(count)]
        found, truth = simulated_events(clips, classes, rng)
        scored = {
            name: [event_metrics.ScoredEvent(*event, float(rng.random())) for event in each]
            for name, each in found.items()
        }
        durations = {name: 10.0 for name in found}
        tables = naive.score_tables(scored, durations, classes, -np.inf)  # imports: seconds
        both = {
            "three F1": (
                partial(naive.library_hits, found, truth, durations, classes),
                partial(event_metrics.event_counts, found, truth, durations, classes),
            ),
            "PSDS 1 and 2": (
                partial(naive.library_psds, tables, truth, durations),
                partial(event_metrics.event_psds, scored, truth, durations, classes),
            ),
        }
        for what, (theirs, ours) in both.items():
            pairs = [(cpu_seconds(theirs), cpu_seconds(ours)) for _ in range(cfg.times)]
            ratio = statistics.median(a / max(b, 1e-6) for a, b in pairs)
            cells = (f"{text(list(seconds), '.4f')} s" for seconds in zip(*pairs, strict=True))
            what = f"{what} of {clips} clips of {count} classes, CPU seconds"
            need = ">= 30 x" if "F1" in what else ""
            rows.append(row("events", what, ratio, need, *cells))
    return rows


def seeds(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Whether two processes learn what one learns: against the spread of five seeds."""
    alone = [in_processes(cfg, 1, f"seed:{seed}")[0.0] for seed in range(2 if cfg.quick else 5)]
    double = in_processes(cfg, 2, "seed:0")[0.0]
    distance = abs(double - alone[0]) / max(statistics.stdev(alone), 1e-9)
    what = "two processes against one, seed 0: distance in standard deviations of the seeds"
    note = f"gain in IoU, points: {100 * double:+.2f} against {100 * alone[0]:+.2f}"
    note += f"; seeds {text([100 * gain for gain in alone], '+.2f')}"
    return [row("seeds", what, distance, "<= 2 std", suite=note)]


def gain_of_seed(cfg: SpeedConfig, cache: Cache, seed: int, ranks: Ranks) -> float:
    """Gain in mean-pair IoU on held-out pairs at the end of a run with the demo's network."""
    learning = Learning(lr=1e-3, train_start=64 if cfg.quick else 1_000)
    train = TrainConfig(
        network=cfg.small_network, learning=learning, seed=seed, passes=1 if cfg.quick else 4
    )
    trainer = Trainer(train, some_pairs(cache, 40 if cfg.quick else 200), CPU, ranks)
    return statistics.mean(gain for _, gain in iou_curve(trainer, looks=20)[-3:])


def preprocessing(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Clips a second, times real time, and where the time goes, one process."""
    clips, clip_s, sample_rate = (4, 2.0, 16_000) if cfg.quick else (600, 10.0, 16_000)
    classes, rng = list(simulate_cache.CLASSES), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        (home / "audio").mkdir()
        frames = round(clip_s / 0.02)
        labels = ["filename\tonset\toffset\tevent_label"]
        for clip in range(clips):
            wav = rng.normal(0, 0.1, round(clip_s * sample_rate))
            soundfile.write(home / "audio" / f"{clip}.flac", wav, sample_rate)
            events = simulate_cache.random_events(rng, clip_s)
            labels += [f"{clip}.flac\t{e.onset}\t{e.offset}\t{e.event_label}" for e in events]
        write_text(home / "labels.tsv", "\n".join(labels) + "\n")
        np.savez(
            home / "scores.npz",
            classes=classes,
            clips=[f"{clip}.flac" for clip in range(clips)],
            lengths=np.full(clips, frames),
            values=rng.random((clips * frames, len(classes)), dtype=np.float32),
            edges=np.tile(0.02 * np.arange(frames + 1), clips),
        )
        job = PreprocessConfig(
            cache=home / "cache",
            split="train",
            labels=home / "labels.tsv",
            audio=home / "audio",
            scores=home / "scores.npz",
            workers=1,
        )
        spent, total = profile(job)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in spent.items())
    other = 1 - sum(spent.values()) / total
    what = f"clips/s, one process ({clips * clip_s / total:,.0f} x real time; peak {peak:,.0f} MB)"
    return [row("preprocessing", what, clips / total, suite=f"{shares}, other {other:.0%}")]


def profile(job: PreprocessConfig) -> tuple[dict[str, float], float]:
    """Seconds spent in each step of preprocess.py, and in all."""
    steps = {
        "decode": (AudioFile, "read"),
        "RMS": (preprocess, "loudness_on_grid"),
        "filters": (preprocess, "compute_signals"),
        "write": (preprocess, "write_shard"),
    }
    spent = dict.fromkeys(steps, 0.0)
    originals = [(home, name, getattr(home, name)) for home, name in steps.values()]

    def timed(name: str, work: Callable) -> Callable:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args)
            finally:
                spent[name] += time.perf_counter() - began

        return run

    for step, (home, name, original) in zip(steps, originals, strict=True):
        setattr(home, name, timed(step, original))
    began = time.perf_counter()
    try:
        preprocess.main(job)
    finally:
        for place in originals:
            setattr(*place)
    return spent, time.perf_counter() - began


def gpu(cfg: SpeedConfig, cache: Cache) -> list[Row]:
    """Evaluating and training at the slides' scale on a GPU: plain steps, CUDA graphs, bfloat16."""
    device = runfolder.pick_device("cuda", 1)
    bandit, network = Bandit(), sharp(Bandit(), cfg.network).to(device)
    signals = to_device(cache, bandit, device)
    batch = fastest_batch(network, signals, bandit)
    greedy_actions(network, signals, bandit, batch, np.arange(10))  # warm-up
    wait(device)
    began = time.perf_counter()
    greedy_actions(network, signals, bandit, batch)
    wait(device)
    seconds = (time.perf_counter() - began) / len(cache.pairs) * SLIDES["validation"]
    name = torch.cuda.get_device_name()
    what = f"{name}: deciding 5,570 pairs, s (batch {batch}, from {len(cache.pairs):,} pairs)"
    rows = [row("gpu", what, seconds, "<= 10 s")]
    for steps in ("plain", "graphs", "graphs-bf16"):
        learning = Learning(train_start=64, epsilon_start=0.3825, epsilon_end=0.3825)
        train = TrainConfig(
            network=cfg.network,
            learning=learning,
            holdout=0.0,
            passes=enough_passes(cache),
            cuda_steps=steps,
        )
        trainer = learner_of(train, device)(train, cache, device)
        while trainer.progress["steps"] < 50:
            trainer.tick()
        wait(device)
        began, before = time.perf_counter(), trainer.progress["steps"]
        while time.perf_counter() - began < cfg.seconds:
            trainer.tick()
        wait(device)
        trainer.read_sums()
        each = (time.perf_counter() - began) / (trainer.progress["steps"] - before)
        minutes = each * SLIDES["train"] * SLIDES["frames"] / 32 / 60
        what = f"{name}: training 28,592 episodes, min, {steps}"
        what += f" ({1000 * each:.2f} ms a tick and step, extrapolated)"
        rows.append(row("gpu", what, minutes, "<= 15 min" if steps == "graphs" else ""))
        if steps != "plain":
            save_profile(cfg, trainer, steps)
    return rows


def save_profile(cfg: SpeedConfig, trainer: Trainer, steps: str) -> None:
    """What bounds it: the kernels of 20 ticks by device time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(20):
            trainer.tick()
        wait(trainer.device)
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    write_text(cfg.out / f"profile-{steps}.txt", table + "\n")


SECTIONS: dict[str, Callable[[SpeedConfig, Cache], list[Row]]] = {
    "acting": acting,
    "whole": whole,
    "training": training,
    "evaluating": evaluating,
    "memory": memory,
    "pairs": pairs,
    "result": result,
    "seeds": seeds,
    "events": events,
    "preprocessing": preprocessing,
    "gpu": gpu,
}

# ---------------------------------------------------------------------------- several processes


def in_processes(cfg: SpeedConfig, count: int, work: str) -> dict[float, float]:
    """Rates that torchrun's processes reach together: epsilon -> frames/s (0.0: no epsilon)."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["--master-port=0", "--standalone", __file__, "--worker", work]
    command += ["--cache", str(cfg.cache), "--slice-s", str(cfg.slice_s)]
    command += ["--quick"] * cfg.quick
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return {float(key): value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def agreed(ranks: Ranks, steps: Iterator[int], seconds: float) -> float:
    """`rate` of several processes: all stop at the same step, when the first one says so."""
    next(steps)
    ranks.gather(0)
    began, done = time.perf_counter(), 0
    for i, count in enumerate(steps, start=1):
        done += count
        if i % AGREE_EVERY == 0 and ranks.any(time.perf_counter() - began >= seconds)[0]:
            break
    return done / (time.perf_counter() - began)


def serve(cfg: SpeedConfig) -> None:
    """One of several processes: measure together, the first one prints."""
    torch.set_num_threads(1)
    with together(CPU) as ranks:
        if cfg.worker == "training":
            cache, seconds = load_cache(cfg.cache / "train"), cfg.seconds / len(EPSILONS)
            found = {}
            for epsilon in EPSILONS:
                trainer = trainer_at(cfg, cache, epsilon, ranks)
                found[epsilon] = agreed(ranks, suite_training(trainer), seconds)
        elif cfg.worker.startswith("seed:"):
            cache, seed = load_cache(cfg.cache / "train"), int(cfg.worker.removeprefix("seed:"))
            found = {0.0: gain_of_seed(cfg, cache, seed, ranks)}
        else:
            cache, bandit = load_cache(cfg.cache / "validation"), Bandit()
            network, signals = sharp(bandit, cfg.network), to_device(cache, bandit, CPU)
            batch = fastest_batch(network, signals, bandit)
            ranks.gather(0)
            began, done = time.perf_counter(), 0
            step = min(100, len(cache.pairs))
            for start in itertools.count(0, step):
                chosen = np.arange(start, start + step) % len(cache.pairs)
                decisions(network, signals, bandit, batch, chosen, ranks=ranks)
                done += int(np.diff(cache.offsets)[chosen].sum())
                if ranks.any(time.perf_counter() - began >= cfg.seconds)[0]:
                    break
            found = {0.0: done / (time.perf_counter() - began)}
        print(json.dumps(found))


# ---------------------------------------------------------------------------- table


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = ["| section | what | naive | suite | value | needed | |", "|---" * 7 + "|"]
    for one in rows:
        verdict = "" if one.met is None else "yes" if one.met else "NO"
        cells = [
            one.section,
            one.what,
            one.naive,
            one.suite,
            f"{one.value:,.2f}",
            one.need,
            verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """What the figures depend on."""
    load, peak = os.getloadavg()[0], matmul_peak() / 1e9
    return (
        f"{processor()}, {num_cores()} cores, load {load:.1f} at the start;"
        f" Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__};"
        f" float32 matmul on one thread {peak:.0f} GFLOP/s"
    )


def earlier_rows(path: Path, setting: dict[str, Any]) -> list[Row]:
    """Rows of sections that were measured before on the same kind of machine, in the same way."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    kind = lambda found: [found["machine"].split(",")[0], found["quick"], found["slice_s"]]  # noqa: E731
    if kind(report) != kind(setting):
        return []
    return [Row(**one) for one in report["rows"]]


def main(cfg: SpeedConfig) -> None:
    """Measure and print."""
    if cfg.worker is not None:
        serve(cfg)
        return
    torch.set_num_threads(1)
    keep_apart(cfg.out, [cfg.cache])
    with own_folder(cfg.out, MEASURED):
        measure(cfg)


def measure(cfg: SpeedConfig) -> None:
    """All sections that are asked for, the caches made first where there are none."""
    if cfg.cache is None:
        folder = cfg.out / ("cache-quick" if cfg.quick else "cache")
        sizes = (40, 20) if cfg.quick else (SLIDES["train"], SLIDES["validation"])
        if not (folder / "validation" / "manifest.json").exists():
            simulate_cache.main(
                simulate_cache.SimulateConfig(
                    out=folder,
                    train_pairs=sizes[0],
                    validation_pairs=sizes[1],
                    frames=60 if cfg.quick else SLIDES["frames"],
                    workers=1 if cfg.quick else None,
                )
            )
        cfg = replace(cfg, cache=folder)
    head = machine()
    setting = {"machine": head, "quick": cfg.quick, "slice_s": cfg.seconds}
    rows = earlier_rows(cfg.out / "speed.json", setting)
    print(head + "\n", flush=True)
    caches = {split: load_cache(cfg.cache / split) for split in ("train", "validation")}
    of_validation = ("acting", "whole", "evaluating", "gpu")
    for name in cfg.sections or SECTIONS:
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu: no CUDA device; there, run: python benchmarks/speed.py --sections gpu")
            continue
        began = time.perf_counter()
        found = SECTIONS[name](cfg, caches["validation" if name in of_validation else "train"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        note = f"{name}: {time.perf_counter() - began:.0f} s, peak memory so far {peak:,.0f} MB"
        print(f"{note}\n{markdown(found)}\n", flush=True)
        rows = [one for one in rows if one.section != name] + found
        rows.sort(key=lambda one: list(SECTIONS).index(one.section))
        report = setting | {"rows": [one._asdict() for one in rows]}
        write_text(cfg.out / "speed.json", json.dumps(report, indent=1))
        write_text(cfg.out / "speed.md", f"{head}\n\n{markdown(rows)}\n")
    print(f"{markdown(rows)}\n\ntable: {cfg.out}/speed.md, speed.json")


if __name__ == "__main__":
    run_script(SpeedConfig, main)
