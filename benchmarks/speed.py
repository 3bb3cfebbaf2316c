"""What people wait for, before and now; acting and training: naive against suite.

Run:    make bench   (or: python -m benchmarks.speed)
        python -m benchmarks.speed --quick                 # tries everything, tiny
        python -m benchmarks.speed --sections gpu          # on a machine with CUDA
        python -m benchmarks.speed --sections tf32 --policy runs/demo/best.pt --cache cache/demo
Reads:  a cache of the slides' shape (default: simulated, see simulate_cache.py)
Writes: <out>/speed.md, <out>/speed.json, <out>/demo/: corpus, cache and policy of the demo

The first five sections are what people wait for; but for event metrics they run the scripts
themselves, in processes of their own. `before` of these is what they took before they were made
faster, on another day. The naive version is naive.py, at the thread count that suits it best. Both
sides run in turns; a figure is the median of the repeats with the range behind it, and a ratio is
the median of the repeats' own ratios. What takes hours is measured in slices of `--slice-s` seconds
and extrapolated; the table says so. Read CPU seconds and ratios: wall seconds depend on what else
the machine does.
"""

import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from config import Bandit, Learning, Network, TrainConfig
from core.command import parse_first, run_script
from core.settings import Checked, number

SECTIONS = ("start", "preprocess", "compare", "memory", "detect", "acting", "whole", "training")
SECTIONS += ("gpu", "tf32")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(Checked):
    """Measure the suite against the naive version."""

    sections: tuple[str, ...] = ()
    """parts (default: all that this machine can run)"""
    quick: bool = False
    """tiny sizes: a trial without meaning"""
    slice_s: float = number(120.0, above=0)
    """longest slice of a long measurement, seconds"""
    repeats: int = number(3, 1)
    """measurements of both sides, in turns"""
    cache: Path | None = None
    """caches of the slides' shape (default: simulated)"""
    policy: Path | None = None
    """trained policy whose decisions are rounded, for tf32"""
    out: Path = Path("runs/bench")
    """folder of speed.md and speed.json"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.sections if name not in SECTIONS]:
            raise ValueError(f"--sections: {unknown[0]} is not one of {', '.join(SECTIONS)}")

    @property
    def times(self) -> int:
        return 1 if self.quick else self.repeats

    @property
    def network(self) -> Network:
        """The slides' network, or a tiny one."""
        return Network(hidden=8, heads=2) if self.quick else Network()


if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(SpeedConfig)

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import naive, simulate_cache
from benchmarks.tf32 import TF32
from core.errors import InputError
from core.files import Kind, keep_apart, own_folder, write_text
from core.names import markdown_table
from core.processes import num_cores
from core.ranks import pick_device
from core.versions import processor
from DQN import QNetwork, Trainer, learner_of
from policy.apply import decide_cache, greedy_actions, load_policy
from policy.bandit import Signals, make_states, near, to_device
from policy.device import CPU_BATCHES, fastest_batch, wait
from policy.event_policy import EventTrainer
from scores.score_files import write_archive
from sed.caches import Cache, load_cache
from sed.event_metrics import KINDS, event_counts
from sed.metrics import mean_f1
from sed.timeline import ClipScores, Event, frame_edges, write_labels

ROOT = Path(__file__).resolve().parent.parent

CPU = torch.device("cpu")
MEASURED = Kind("folder of measurements", older=(("speed.json", "machine"), ("speed.json", "rows")))
SLIDES = {"train": 28_592, "validation": 5_570, "frames": 500}
# Epsilon falls from 1 to 0.05 over 70 % of the episodes: Simpson's rule over the fall, then 30 %.
EPSILONS = {1.0: 0.7 / 6, 0.525: 0.7 * 4 / 6, 0.05: 0.7 / 6 + 0.3}


class Row(NamedTuple):
    section: str
    what: str
    before: str  # of the naive version, or of the suite before its mending
    now: str
    value: float  # what is compared with `need`
    need: str  # `>= number unit` or `<= number unit`; empty: nothing is asked
    met: bool | None


def row(
    section: str, what: str, value: float, need: str = "", before: str = "", now: str = ""
) -> Row:
    met = None
    if need:
        sign, limit = need.split()[:2]
        met = bool(value >= float(limit) if sign == ">=" else value <= float(limit))
    return Row(section, what, before, now, float(value), need, met)


def text(values: list[float], form: str = ",.0f") -> str:
    """Median and range."""
    middle, low, high = (f"{f(values):{form}}" for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


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


def forward_flops(network: Network) -> int:
    """Multiplications and additions that deciding one frame executes: torch's count, but of the
    GRU, whose matrices are applied once a frame of the window."""
    bandit = Bandit()
    model = QNetwork(bandit, network).train()  # in evaluation torch fuses what it does not count
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, len(bandit.channels), bandit.window))
    gru = sum(w.numel() for name, w in model.gru.named_parameters() if name.startswith("weight"))
    own = sum(counter.get_flop_counts()["QNetwork.gru"].values())
    return counter.get_total_flops() - own + 2 * bandit.window * gru


def sharp(network: Network, bandit: Bandit) -> QNetwork:
    """A network whose actions differ between frames."""
    torch.manual_seed(0)
    found = QNetwork(bandit, network)
    with torch.no_grad():
        found.head[2].weight *= 20
    return found.eval()


def naive_training(cfg: SpeedConfig, cache: Cache, epsilon: float) -> Iterator[int]:
    """The naive version in the middle of its training, replay above its start."""
    bandit, network = Bandit(), sharp(cfg.network, Bandit())
    episodes = ((cache.of_pair(i), epsilon) for i in itertools.cycle(range(len(cache.pairs))))
    deltas, reading = list(bandit.deltas), bandit.reading
    visits = naive.train(network, episodes, bandit.channels, deltas, reading, 32)
    while not next(visits):
        pass
    for _ in visits:
        yield 1


def endless(cfg: SpeedConfig, cache: Cache, learning: Learning) -> TrainConfig:
    """A training that no slice reaches the end of: enough for a million frames a second."""
    passes = 1 + int(max(2_000_000, 1_000_000 * cfg.slice_s)) // len(cache.label)
    return TrainConfig(network=cfg.network, learning=learning, holdout=0.0, passes=passes)


def suite_training(cfg: SpeedConfig, cache: Cache, epsilon: float) -> Iterator[int]:
    """DQN.py's training at a constant epsilon, replay filled so far that it learns."""
    learning = Learning(train_start=32, epsilon_start=epsilon, epsilon_end=epsilon)
    trainer = Trainer(endless(cfg, cache, learning), cache, CPU)
    while not trainer.progress["steps"]:
        trainer.tick()
    while not trainer.done:
        before = trainer.progress["frames"]
        trainer.tick()
        yield trainer.progress["frames"] - before


def in_turns(
    cfg: SpeedConfig,
    section: str,
    what: str,
    slow: Callable[[], Iterator[int]],
    fast: Callable[[], Iterator[int]],
    need: str,
) -> Row:
    """Rates of the naive version and, on one thread, of the suite; the ratio of each repeat.
    Nothing is extrapolated from these: a quarter of a slice each."""
    seconds = cfg.slice_s / 4
    count, ours, theirs = best_threads(slow, seconds), [], []
    for _ in range(cfg.times):
        with threads(count):
            theirs.append(rate(slow(), seconds))
        ours.append(rate(fast(), seconds))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    note = f"naive: {text(theirs)}/s, {count} thread(s)"
    return row(section, what, ratio, need, note, f"{text(ours)}/s")


LOCKSTEP = 60  # frames of a pair: the sequential reading costs the same whatever comes after


def whole(cfg: SpeedConfig) -> list[Row]:
    """Greedy decisions of whole pairs in both readings; frames that need none count as decided."""
    cache, rows = load_cache(cfg.cache / "validation"), []
    for preset, need, pairs in (("slides", ">= 15 x", 20), ("original", ">= 5 x", 500)):
        bandit, pairs = TrainConfig.with_preset(preset).bandit, min(pairs, len(cache.pairs))
        network, signals = sharp(cfg.network, bandit), to_device(cache, bandit, CPU)
        batch = fastest_batch(network, signals, bandit)
        inside = near(signals.prob, signals.t_base, bandit.max_delta).float().mean()
        if bandit.reading == "sequential":
            signals = signals._replace(end=signals.end.minimum(signals.start + LOCKSTEP))
        naively = partial(naive_acting, cache, bandit, network)
        together = partial(suite_acting, signals, bandit, network, batch, pairs)
        what = f"{bandit.reading} reading, frames/s, {pairs} pairs at a time (batch {batch}, "
        what += f"{inside:.1%} inside the boundary)"
        rows.append(in_turns(cfg, "whole", what, naively, together, need))
    return rows


def naive_acting(cache: Cache, bandit: Bandit, network: QNetwork) -> Iterator[int]:
    """Frame after frame."""
    choose, deltas = naive.greedy(network), list(bandit.deltas)
    for index in itertools.cycle(range(len(cache.pairs))):
        pair = cache.of_pair(index)
        for _ in naive.walk(pair, choose, bandit.channels, deltas, bandit.reading):
            yield 1


def suite_acting(
    signals: Signals, bandit: Bandit, network: QNetwork, batch: int, pairs: int
) -> Iterator[int]:
    """So many pairs at a time."""
    lengths = (signals.end - signals.start).numpy()
    for start in itertools.count(0, pairs):
        chosen = np.arange(start, start + pairs) % len(lengths)
        greedy_actions(network, signals, bandit, batch, chosen)
        yield int(lengths[chosen].sum())


def acting(cfg: SpeedConfig) -> list[Row]:
    """Decisions by the network alone, a quarter of a slice each: nothing is extrapolated."""
    bandit, network = Bandit(), sharp(cfg.network, Bandit())
    signals = to_device(load_cache(cfg.cache / "validation"), bandit, CPU)
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

    found = in_turns(
        cfg, "acting", f"network alone, frames/s (batch {batch})", one, many, ">= 5.5 x"
    )
    flops = forward_flops(cfg.network)
    shares = [100 * rate(many(), cfg.slice_s / 4) * flops / matmul_peak() for _ in range(cfg.times)]
    what, now = "network alone, FLOP/s of matmul peak", text(shares, ".0f") + " %"
    return [found, row("acting", what, statistics.median(shares), ">= 60 %", now=now)]


def over_schedule(rates: dict[float, float]) -> float:
    """Frames/s over the whole epsilon schedule, from those at some of its points."""
    return 1 / sum(EPSILONS[epsilon] / found for epsilon, found in rates.items())


def training(cfg: SpeedConfig) -> list[Row]:
    """Training over the epsilon schedule, on one thread and on all."""
    cache, slow, fast, wide = load_cache(cfg.cache / "train"), [], [], []
    naively, suite = (partial(work, cfg, cache) for work in (naive_training, suite_training))
    count, cores = best_threads(lambda: naively(0.525), cfg.slice_s), num_cores()
    turns = ((count, naively, slow), (1, suite, fast), (cores, suite, wide))
    for some, make, rates in turns * cfg.times:
        with threads(some):
            found = {e: rate(make(e), cfg.slice_s / len(EPSILONS)) for e in EPSILONS}
        rates.append(over_schedule(found))
    rows, note = [], f"naive: {text(slow)}/s, {count} thread(s)"
    for what, ours in (("1 thread", fast), (f"--threads {cores}", wide)):
        full = SLIDES["train"] * SLIDES["frames"] / statistics.median(ours) / 3600
        what = f"frames/s over the epsilon schedule, one process, {what}"
        what += f" (28,592 episodes: {full:.1f} h, extrapolated)"
        ratio = statistics.median(a / b for a, b in zip(ours, slow, strict=True))
        rows.append(row("training", what, ratio, ">= 1.8 x", note, f"{text(ours)}/s"))
    return rows


def deciding(cache: Cache, network: QNetwork, device: torch.device) -> Row:
    """Deciding the slides' validation pairs."""
    bandit = Bandit()
    signals = to_device(cache, bandit, device)
    batch = fastest_batch(network, signals, bandit)
    some = np.arange(min(10, len(cache.pairs)))
    greedy_actions(network, signals, bandit, batch, some)  # warm-up
    taken = timed(lambda: greedy_actions(network, signals, bandit, batch), device)
    what = f"deciding 5,570 pairs, s (batch {batch}, from {len(cache.pairs):,} pairs)"
    return row("gpu", what, taken / len(cache.pairs) * SLIDES["validation"], "<= 10 s")


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of some work, from a device that has nothing to do until it has nothing to do."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def stepping(
    cfg: SpeedConfig, cache: Cache, device: torch.device, steps: str, batch: int, need: str
) -> Row:
    """Training on the slides' pairs, at the mean epsilon of the schedule. InputError where the
    run ends within the slice, as nothing is learned after it."""
    learning = Learning(
        batch=batch,
        frames_per_step=batch,
        train_start=2 * batch,
        epsilon_start=0.3825,
        epsilon_end=0.3825,
    )
    train = replace(endless(cfg, cache, learning), cuda_steps=steps)
    trainer = learner_of(train, device)(train, cache, device)
    while trainer.progress["steps"] < (2 if cfg.quick else 50) and not trainer.done:
        trainer.tick()
    before, until = trainer.progress["frames"], time.perf_counter() + cfg.slice_s

    def some() -> None:
        while time.perf_counter() < until and not trainer.done:
            trainer.tick()

    taken = timed(some, device)
    trainer.read_sums()  # InputError where something was not finite
    if trainer.done:
        raise InputError("the training ended within the slice; give a shorter --slice-s")
    each = taken / (trainer.progress["frames"] - before)
    what = f"training 28,592 episodes, min, {steps}, batch and frames a step {batch}"
    what += f" ({1000 * each * batch:.2f} ms a step, extrapolated)"
    return row("gpu", what, each * SLIDES["train"] * SLIDES["frames"] / 60, need)


def over_events(cfg: SpeedConfig, cache: Cache, device: torch.device) -> Row:
    """Training of the preset `best`: gradient steps from a few ticks of each phase, all else whole;
    by the number of pairs it is brought to that of the slides."""
    made: list[EventTrainer] = []
    train = TrainConfig.with_preset("best")
    parts = {"inputs": timed(lambda: made.append(EventTrainer(train, cache, device)), device)}
    trainer, ticks = made[0], 2 if cfg.quick else 20

    def step_s() -> float:
        trainer.tick()  # warm-up
        before = trainer.progress["steps"]
        taken = timed(lambda: [trainer.tick() for _ in range(ticks)], device)
        return taken / (trainer.progress["steps"] - before)

    parts["steps on frames"] = step_s() * trainer.frame_steps
    trainer.progress["finished"] = trainer.frame_steps
    parts["boxes"] = timed(trainer.make_boxes, device)
    parts["steps on boxes"] = step_s() * trainer.box_steps
    parts["prices"] = timed(trainer.find_prices, device)
    scale = SLIDES["train"] / len(cache.pairs)
    note = ", ".join(f"{name} {scale * taken:.0f} s" for name, taken in parts.items())
    what = f"training preset best on 28,592 pairs, min (from {len(cache.pairs):,} pairs; steps"
    what += " extrapolated)"
    return row("gpu", what, scale * sum(parts.values()) / 60, "<= 5 min", now=note)


def gpu(cfg: SpeedConfig) -> list[Row]:
    """Evaluating and training at the slides' scale on a GPU."""
    return on_device(cfg, pick_device("cuda", 1), torch.cuda.get_device_name())


def on_device(cfg: SpeedConfig, device: torch.device, name: str) -> list[Row]:
    """The rows of `gpu`, of a device of some name."""
    cache, network = load_cache(cfg.cache / "validation"), sharp(cfg.network, Bandit()).to(device)
    rows = [deciding(cache, network, device)]
    for steps, batch, need in (("plain", 32, ""), ("graphs", 32, "<= 15 min"), ("graphs", 256, "")):
        rows.append(stepping(cfg, cache, device, steps, batch, need))
    rows.append(over_events(cfg, load_cache(cfg.cache / "train"), device))
    return [one._replace(what=f"{name}: {one.what}") for one in rows]


def rounding(cfg: SpeedConfig) -> list[Row]:
    """What TF32 would change in the decisions of a trained policy: its products emulated."""
    policy, cache = load_policy(cfg.policy, CPU), load_cache(cfg.cache / "validation")
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator: its products are not met
    try:
        exact = decide_cache(policy, cache, CPU, CPU_BATCHES[0])
        with TF32():
            other = decide_cache(policy, cache, CPU, CPU_BATCHES[0])
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    pairs = np.flatnonzero(cache.present)
    was, now = (100 * mean_f1(cache, each.pred, pairs) for each in (exact, other))
    share = 100 * (exact.pred != other.pred).mean()
    note = f"{share:.4f} %; F1 {was:.3f}, with TF32 {now:.3f}"
    rows = [row("tf32", f"decisions changed, % of {len(exact.pred):,} frames", share, now=note)]
    if exact.action is not None:
        prob, t_base = cache.signals["prob"], cache.signals["t_base"]
        asked = near(prob, t_base, policy.bandit.max_delta)  # elsewhere none is chosen
        if policy.bandit.reading == "sequential":
            asked[:] = True
        share = 100 * (exact.action != other.action)[asked].mean()
        what = f"actions changed, % of {asked.sum():,}"
        rows.append(row("tf32", what, share, now=f"{share:.4f} %"))
    if exact.boxes is not None:
        spans = [
            set(zip(*(part[each.chosen].tolist() for part in each[:3]), strict=True))
            for each in (exact.boxes, other.boxes)
        ]
        share = 100 * len(spans[0] - spans[1]) / max(len(spans[0]), 1)
        what = f"boxes emitted no more or elsewhere, % of {len(spans[0]):,}"
        rows.append(row("tf32", what, share, now=f"{share:.4f} %"))
    return rows


class Spent(NamedTuple):
    """What a process took: CPU seconds with its children, wall seconds, what it printed, and the
    CPU seconds without its children (Linux)."""

    cpu: float
    wall: float
    said: str
    own: float


def own_seconds(pid: int) -> float:
    """CPU seconds of a process without its children, when it has ended: `utime` and `stime` of
    proc(5); nan where there is no /proc."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return math.nan
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ticks = path.read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def spent(*command: Any, code: int = 0) -> Spent:
    """Run Python with some arguments, one thread; InputError where it ends with another code."""
    arguments = [sys.executable, *map(str, command)]
    environ, began = os.environ | {"OMP_NUM_THREADS": "1"}, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said, cwd=ROOT, env=environ)
        own = own_seconds(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode, wall = os.waitstatus_to_exitcode(status), time.perf_counter() - began
        said.seek(0)
        output = said.read()
    if process.returncode != code:
        raise InputError(f"{' '.join(arguments[1:])} failed: {output.strip()[-300:]}")
    return Spent(used.ru_utime + used.ru_stime, wall, output, own)


def demo(cfg: SpeedConfig) -> Path:
    """A folder with the demo's corpus, scores of one epoch, and a policy; made once."""
    home = (cfg.out / ("demo-quick" if cfg.quick else "demo")).resolve()
    corpus, few = home / "data", ["--train-clips", 12, "--validation-clips", 6] * cfg.quick
    if not (home / "run" / "best.pt").exists():
        spent("soundscapes.py", "--preset", "demo", "--out", corpus, *few)
        spent("scorers.py", "--preset", "demo", "--corpus", corpus, "--epochs", 1)
        spent("preprocess.py", "--preset", "demo", "--corpus", corpus, "--cache", home / "cache")
        # Any policy will do: one pass, few gradient steps.
        policy = ("--cache", home / "cache", "--run", home / "run", "--overwrite", "--passes", 1)
        spent("DQN.py", "--preset", "demo", *policy, "--learning.frames-per-step", 4096)
    return home


SCRIPTS = ["soundscapes", "scorers", "dasm", "preprocess", "DQN", "evaluate", "detect", "visualize"]


def start(cfg: SpeedConfig) -> list[Row]:
    """CPU seconds until a script has said what needs no work, the slowest one of each kind."""
    scripts = SCRIPTS[:2] if cfg.quick else SCRIPTS
    kinds = {
        "--help": [(f"{name}.py", "--help") for name in scripts],
        "--status of a run": [("DQN.py", "--status", demo(cfg) / "run")],
        "a wrong flag": [(f"{name}.py", "--nonsense") for name in scripts],
    }
    spent("DQN.py", "--help")  # compiled and in the page cache
    torch_s = statistics.median(spent("-c", "import torch").cpu for _ in range(cfg.times))
    rows = []
    for what, calls in kinds.items():
        code, times = 2 if what == "a wrong flag" else 0, range(cfg.times)
        found = {call[0]: [spent(*call, code=code).cpu for _ in times] for call in calls}
        slowest = max(found, key=lambda name: statistics.median(found[name]))
        seconds = statistics.median(found[slowest])
        note = f"{text(found[slowest], '.2f')} s ({slowest}); import torch: {torch_s:.2f} s"
        what = f"{what}, CPU s, the slowest of {len(calls)} scripts"
        rows.append(row("start", what, seconds, "<= 1 s", "5.4 to 6.4 s", note))
    return rows


def preprocessing(cfg: SpeedConfig) -> list[Row]:
    """Both splits of the demo's corpus."""
    home, rows = demo(cfg), []
    for kind, flags in (("", ()), (", two workers", ("--workers", 2))):
        cpu = []
        for _ in range(cfg.times):
            with tempfile.TemporaryDirectory() as folder:
                call = ("preprocess.py", "--preset", "demo", "--corpus", home / "data", *flags)
                cpu.append(spent(*call, "--cache", Path(folder) / "cache").cpu)
        note = f"{text(cpu, '.1f')} s"
        what = f"preprocess.py --preset demo, 300 clips{kind}, CPU s"
        rows.append(row("preprocess", what, statistics.median(cpu), "<= 10 s", "43 s", note))
    return [*rows, sharing(cfg, home / "data" / "train"), growing(cfg)]


def sharing(cfg: SpeedConfig, corpus: Path) -> Row:
    """What the first process does for a clip against a sixteenth of what a worker does: below 1,
    16 workers wait for audio, not for the first process. From few and many clips, two workers."""
    names, found = sorted(path.stem for path in (corpus / "audio").iterdir()), []
    lines = (corpus / "labels.tsv").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        home = Path(folder)
        for copies in (1, 2) if cfg.quick else (2, 16):
            split, rows = home / str(copies), lines[:1]
            for kind, suffix in (("audio", ".flac"), ("scores", ".tsv")):
                (split / kind).mkdir(parents=True)
                for name, k in itertools.product(names, range(copies)):
                    os.link(corpus / kind / (name + suffix), split / kind / f"{name}-{k}{suffix}")
            for line, k in itertools.product(lines[1:], range(copies)):
                name, _, rest = line.partition(".flac")
                rows.append(f"{name}-{k}.flac{rest}")
            write_text(split / "labels.tsv", "\n".join(rows))
            given = [f"--{name}={split / name}" for name in ("audio", "scores")]
            call = ("preprocess.py", "--labels", split / "labels.tsv", *given, "--split", "train")
            runs = [
                spent(*call, "--workers", 2, "--cache", split / f"cache-{k}")
                for k in range(cfg.times)
            ]
            medians = zip(*((run.own, run.cpu - run.own) for run in runs), strict=True)
            found.append(np.array([statistics.median(each) for each in medians]))
    own, workers = found[1] - found[0]
    clips = len(names) * (1 if cfg.quick else 14)
    note = f"{1000 * own / clips:.2f} against {1000 * workers / clips:.1f} ms of CPU a clip"
    what = "preprocess.py, the first process against a sixteenth of its workers"
    need = "" if cfg.quick else "<= 1 x"
    return row("preprocess", what, 16 * own / workers, need, "over a minute", note)


def growing(cfg: SpeedConfig) -> Row:
    """What a clip costs among many, against a clip among few: short ones, so that the manifest and
    all else that is kept of a clip counts."""
    sizes, classes = ((1, 20, 80) if cfg.quick else (1, 2_048, 8_192)), ["Cat", "Dog"]
    rng, edges, cpu = np.random.default_rng(0), frame_edges(10, 0.02), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for count in sizes:
            names = [f"{i:05}" for i in range(count)]
            values = (rng.random((2, 10), np.float32) for _ in names)
            clips = zip(names, (ClipScores(each, edges) for each in values), strict=True)
            write_archive(home / f"{count}.npz", classes, clips)
            events = {f"{name}.wav": [Event(0.0, 0.1, "Cat")] for name in names}
            write_labels(home / f"{count}.tsv", events)
            given = ("--labels", home / f"{count}.tsv", "--scores", home / f"{count}.npz")
            call = ("preprocess.py", "--split", "train", *given, "--workers", 1, "--cache")
            times = range(1 if cfg.quick else 3)  # the fastest: a start differs by a second
            cpu.append(min(spent(*call, home / f"{count}-{k}").cpu for k in times))
    each = [1000 * (cpu[i] - cpu[0]) / (sizes[i] - 1) for i in (1, 2)]
    what = "preprocess.py, a clip of 10 frames without audio among"
    what += f" {sizes[2]:,} against {sizes[1]:,}"
    note = f"{each[1]:.2f} against {each[0]:.2f} ms of CPU"
    return row("preprocess", what, each[1] / each[0], "<= 1.3 x", "quadratic", note)


def counting(cfg: SpeedConfig) -> list[Row]:
    """Collar, segment and intersection F1 of made-up clips with three events each, the slowest."""
    size, rows = 50 if cfg.quick else 500, []
    for classes, need, before in ((10, "<= 0.03 s", "0.9 s"), (500, "<= 0.03 s", "18 s")):
        names = [f"{k:03}" for k in range(classes)]
        rng, sides = np.random.default_rng(0), []
        for _ in range(2):
            onset, label = rng.uniform(0, 9, (size, 3)), rng.integers(0, classes, (size, 3))
            spans = zip(np.sort(onset).tolist(), label.tolist(), strict=True)
            clips = (
                [Event(t, t + 0.8, names[k]) for t, k in zip(*each, strict=True)] for each in spans
            )
            sides.append({f"{i}.wav": found for i, found in enumerate(clips)})
        durations, found = dict.fromkeys(sides[0], 10.0), {}
        for name in KINDS:
            for _ in range(1 + cfg.times):  # the first one warms up
                began = time.process_time()
                event_counts(*sides, durations, names, (name,))
                found.setdefault(name, []).append((time.process_time() - began) * 100 / size)
        slowest = max(statistics.median(each[1:]) for each in found.values())
        what = f"collar, segment, intersection F1, {classes} classes, the slowest, CPU s a"
        what += " 100 clips"
        rows.append(row("compare", what, slowest, need, before, f"{slowest:.4f} s"))
    return rows


def comparing(cfg: SpeedConfig) -> list[Row]:
    """Event metrics alone; then a policy and all rules on the demo's clips, all pairs."""
    home, found = demo(cfg), []
    cache = home / "cache-all"
    call = ("preprocess.py", "--preset", "demo", "--corpus", home / "data", "--cache", cache)
    spent(*call, "--pairs", "all")  # only what is not there yet
    for _ in range(cfg.times):
        shutil.rmtree(home / "run" / "decisions", ignore_errors=True)  # it decides once
        with tempfile.TemporaryDirectory() as folder:
            table = ("--compare", f"DQN={home / 'run'}", "rules", "--out", Path(folder) / "table")
            found.append(spent("evaluate.py", "--cache", cache, *table))
    wall, cpu = ([getattr(each, name) for each in found] for name in ("wall", "cpu"))
    note = f"{text(wall, '.1f')} s; CPU {text(cpu, '.1f')} s"
    what = "evaluate.py --compare DQN=.. rules, demo, all pairs, wall s"
    whole_table = row("compare", what, statistics.median(wall), "<= 45 s", "225 s", note)
    return [*counting(cfg), whole_table]


# Linux: ru_maxrss would not do, it outlives exec and is that of the benchmark itself.
PEAK = """
import re, sys
from pathlib import Path
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
LOADING = """
from sed.caches import load_cache
before = peak()
cache = load_cache(Path(sys.argv[1]))
size = sum(array.nbytes for array in (*cache.signals.values(), cache.label, cache.offsets))
print((peak() - before) / size, size)
"""
DRAWING = """
import numpy as np
from sed.metrics import bootstrap_mean
before, count = peak(), int(sys.argv[1])
bootstrap_mean(np.random.default_rng(0).random((count, 3)), np.arange(count))
print((peak() - before) / count)
"""


# Loads all pairs, learns from them for a tick of each kind, decides: what training and deciding
# read, without their hours.
ALL_PAIRS = """
from dataclasses import replace
import torch
from config import Events, TrainConfig
from policy.event_policy import EventTrainer, decide_cache
from sed.caches import load_cache
torch.set_num_threads(1)
cfg = TrainConfig.with_preset("best")
cfg = replace(cfg, events=Events(hidden=16, layers=2), passes=1, holdout=0.1)
cache = load_cache(Path(sys.argv[1]))
trainer = EventTrainer(cfg, cache, torch.device("cpu"))
trainer.tick()
trainer.progress["finished"] = trainer.frame_steps
trainer.tick()
trainer.find_prices()
decide_cache(trainer.network, cache, torch.device("cpu"))
trainer.policy()
print(peak(), len(cache.pairs), len(trainer.rows.pair), len(cache.clips))
"""

# Tunes thresholds and slopes on frames over all pairs, and decides: all rules take minutes.
RULES = """
from baselines.tuned_rules import Objective, decided, threshold_rules, tune_slopes
from sed.caches import load_cache
from sed.metrics import counts_in
cache = load_cache(Path(sys.argv[1]))
aim = Objective(cache, "all")
tune_slopes("d_raw", aim)
for rule in threshold_rules(aim, "d_raw"):
    counts_in(cache, decided(rule, cache))
print(peak(), len(cache.pairs))
"""


def all_pairs(cfg: SpeedConfig) -> list[Row]:
    """What more clips take where all pairs are loaded, learned from and decided, by their number of
    classes: the difference between few and more clips leaves out what does not grow."""
    home = cfg.out / ("all-pairs-quick" if cfg.quick else "all-pairs")
    sizes, frames = ((20, 40) if cfg.quick else (150, 400)), 50 if cfg.quick else 250
    rows = []
    for classes in (40, 500):
        found = []
        for size in sizes:
            folder = home / f"{classes}-{size}"
            if not (folder / "train" / "manifest.json").exists():
                many = {"classes": classes, "frames": frames, "frame_s": 0.04, "workers": 1}
                pairs = {"train_pairs": size, "validation_pairs": 0}
                simulate_cache.main(simulate_cache.SimulateConfig(out=folder, **pairs, **many))
            found.append(
                [int(x) for x in spent("-c", PEAK + ALL_PAIRS, folder / "train").said.split()]
            )
        peak, pairs, kept, clips = (b - a for a, b in zip(*found, strict=True))
        arrays = 25 * frames * pairs
        what = f"--pairs all, {classes} classes: {clips} clips more, peak of loading, training and"
        what += f" deciding over their arrays of {arrays / 1e6:,.0f} MB"
        now = f"{peak / 1e6:,.0f} MB, {kept} queries kept"
        # Of few classes most queries are kept: only the many are held to a limit. Before: measured
        # while caches lay in memory.
        need, before = ("<= 0.25 x", "2.1 x") if classes == 500 else ("", "")
        rows.append(row("memory", what, peak / arrays, need, before, now))
    ends = [spent("-c", PEAK + RULES, home / f"500-{size}" / "train").said for size in sizes]
    peak, pairs = (int(b) - int(a) for a, b in zip(*map(str.split, ends), strict=True))
    what = "--pairs all, 500 classes: the same clips more, peak of tuning thresholds and slopes"
    need = "" if cfg.quick else "<= 0.2 x"
    now = f"{peak / 1e6:,.0f} MB"
    rows.append(row("memory", what, peak / (25 * frames * pairs), need, "3.4 x", now))
    return rows


def memory(cfg: SpeedConfig) -> list[Row]:
    """Peaks of processes of their own, above what their imports take."""
    ratio, size = map(float, spent("-c", PEAK + LOADING, cfg.cache / "train").said.split())
    clips = 1_000 if cfg.quick else 100_000
    each = float(spent("-c", PEAK + DRAWING, clips).said)
    what = f"load_cache, peak over its arrays of {size / 1e6:,.0f} MB"
    rows = [row("memory", what, ratio, "<= 1.1 x", "2.1 x")]
    what = f"1,000 bootstrap draws of {clips:,} clips, peak, bytes a clip"
    rows.append(row("memory", what, each, "<= 5000 bytes", "16,000 bytes"))
    return rows + all_pairs(cfg)


def detecting(cfg: SpeedConfig) -> list[Row]:
    """Files of 2 s: what each of 1,000 costs more than the first ten."""
    home, count = demo(cfg), 20 if cfg.quick else 1_000
    parts = []
    for path in sorted((home / "data").glob("*/audio/*")):
        wav, rate = soundfile.read(path, dtype="int16")
        parts += [wav[at : at + 2 * rate] for at in range(0, len(wav) - 2 * rate + 1, 2 * rate)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, number_of_files in (("few", 10), ("many", count)):
            (Path(folder) / name).mkdir()
            for i, wav in enumerate(parts[:number_of_files]):
                soundfile.write(Path(folder) / name / f"{i:04}.wav", wav, rate)
        for _ in range(cfg.times):
            call = ["detect.py", "--policy", home / "run" / "best.pt", "--scorer"]
            call += [home / "data" / "scorer.pt", "--out", Path(folder) / "events.tsv"]
            call += ["--overwrite", "--audio"]
            few, many = (spent(*call, Path(folder) / name).cpu for name in ("few", "many"))
            found.append(1000 * (many - few) / (count - 10))
    what = f"detect.py, {count:,} files of 2 s, CPU ms a file"
    note, middle = f"{text(found, '.1f')} ms", statistics.median(found)
    return [row("detect", what, middle, "<= 8 ms", "15 to 19 ms", note)]


WORK = (start, preprocessing, comparing, memory, detecting, acting, whole, training, gpu, rounding)
MEASURE: dict[str, Callable[[SpeedConfig], list[Row]]] = dict(zip(SECTIONS, WORK, strict=True))
ON_SLIDES = ("memory", "acting", "whole", "training", "gpu", "tf32")  # need a cache of that shape


def markdown(rows: list[Row]) -> str:
    header = ["section", "what", "before", "now", "value", "needed", ""]
    met = {None: "", True: "yes", False: "NO"}
    cells = ([*one[:4], f"{one.value:,.2f}", one.need, met[one.met]] for one in rows)
    return "\n".join(markdown_table(header, cells))


def machine() -> str:
    load, python = os.getloadavg()[0], platform.python_version()
    found = f"{processor()}, {num_cores()} cores, load {load:.1f} at the start; Python {python}"
    return f"{found}, torch {torch.__version__}, numpy {np.__version__}"


def earlier_rows(path: Path, setting: dict[str, Any]) -> list[Row]:
    """Rows of sections that were measured before on the same kind of machine, in the same way."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    same = all(report[key] == setting[key] for key in ("quick", "slice_s"))
    same = same and report["machine"].split(",")[0] == setting["machine"].split(",")[0]
    return [Row(**one) for one in report["rows"] if same and one["section"] in SECTIONS]


def main(cfg: SpeedConfig) -> None:
    torch.set_num_threads(1)
    keep_apart(cfg.out, [cfg.cache])
    with own_folder(cfg.out, MEASURED):
        if cfg.cache is None and set(cfg.sections or SECTIONS) & set(ON_SLIDES):
            folder = cfg.out / ("cache-quick" if cfg.quick else "cache")
            small = {"train_pairs": 40, "validation_pairs": 20, "frames": 60, "workers": 1}
            if not (folder / "validation" / "manifest.json").exists():
                sizes = small if cfg.quick else {}  # those of the slides
                simulate_cache.main(simulate_cache.SimulateConfig(out=folder, **sizes))
            cfg = replace(cfg, cache=folder)
        cfg = replace(cfg, slice_s=0.3) if cfg.quick else cfg
        head = machine()
        setting = {"machine": head, "quick": cfg.quick, "slice_s": cfg.slice_s}
        rows = earlier_rows(cfg.out / "speed.json", setting)
        print(head + "\n", flush=True)
        for name in cfg.sections or SECTIONS:
            if name == "gpu" and not torch.cuda.is_available():
                print("gpu: no CUDA device; there, run: python -m benchmarks.speed --sections gpu")
                continue
            if name == "tf32" and cfg.policy is None:
                print("tf32: no trained policy; give --policy and its --cache")
                continue
            began = time.perf_counter()
            found = MEASURE[name](cfg)
            print(f"{name}: {time.perf_counter() - began:.0f} s\n{markdown(found)}\n", flush=True)
            rows = [one for one in rows if one.section != name] + found
            rows.sort(key=lambda one: SECTIONS.index(one.section))
            report = setting | {"rows": [one._asdict() for one in rows]}
            write_text(cfg.out / "speed.json", json.dumps(report, indent=1))
            write_text(cfg.out / "speed.md", f"{head}\n\n{markdown(rows)}\n")
        print(f"{markdown(rows)}\n\ntable: {cfg.out}/speed.md, speed.json")


if __name__ == "__main__":
    run_script(SpeedConfig, main)
