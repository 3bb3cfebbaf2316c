"""What people wait for, before and now; acting and training: naive against suite.

Run:    make bench   (or: python -m benchmarks.speed)
        python -m benchmarks.speed --quick                 # tries everything, tiny
        python -m benchmarks.speed --sections gpu          # on a machine with CUDA
        python -m benchmarks.speed --sections tf32 --policy runs/demo/best.pt --cache cache/demo
Reads:  a cache of the slides' shape (default: simulated, see simulate_cache.py)
Writes: <out>/speed.md, <out>/speed.json, <out>/demo/: corpus, cache and policy of the demo;
        <out>/before/, see before.py

The first five sections are what people wait for; but for event metrics they run the scripts
themselves, in processes of their own. `before` of these is the suite as it was before they were
made faster, in the same run on the same files, or on fewer where it takes long (event metrics: the
first 100 clips; else the cell says so), once, with its ratio to now. It is taken out of the history
and gets an environment of its own; where that fails, and with --quick, it is not measured. The
naive version of the others is naive.py, at the thread count that suits it best. Both sides run in
turns; a figure is the median of the repeats with the range behind it, and a ratio is the median of
the repeats' own ratios. What takes hours is measured in slices of `--slice-s` seconds and
extrapolated; the table says so. Read CPU seconds and ratios: wall seconds depend on what else the
machine does.
"""

import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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
    def before(self) -> Path | None:
        """Where the suite before is; None: it is not measured."""
        return None if self.quick else self.out

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
from benchmarks.before import EVENTS, NOW, PEAK, Spent, Suite, against, was
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
from sed.metrics import mean_f1
from sed.timeline import ClipScores, Event, frame_edges, write_labels

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


def demo(cfg: SpeedConfig) -> Path:
    """A folder with the demo's corpus, scores of one epoch, caches of present and of all pairs, and
    a policy; made once."""
    home = (cfg.out / ("demo-quick" if cfg.quick else "demo")).resolve()
    corpus, few = home / "data", ["--train-clips", 12, "--validation-clips", 6] * cfg.quick
    if not (home / "cache-all" / "validation").exists():
        NOW.spent("soundscapes.py", "--preset", "demo", "--out", corpus, *few)
        NOW.spent("scorers.py", "--preset", "demo", "--corpus", corpus, "--epochs", 1)
        call = ("preprocess.py", "--preset", "demo", "--corpus", corpus, "--cache")
        NOW.spent(*call, home / "cache")
        # Any policy will do: one pass, few gradient steps.
        policy = ("--cache", home / "cache", "--run", home / "run", "--overwrite", "--passes", 1)
        NOW.spent("DQN.py", "--preset", "demo", *policy, "--learning.frames-per-step", 4096)
        NOW.spent(*call, home / "cache-all", "--pairs", "all")
    return home


NAMES = "soundscapes scorers dasm preprocess DQN evaluate detect visualize"
SCRIPTS, WRONG = [f"{name}.py" for name in NAMES.split()], "--nonsense"


def slowest(
    scripts: Iterable[str], flag: str, home: Path, times: int, suite: Suite
) -> tuple[list[float], str]:
    """CPU seconds until a script has said what needs no work, of the one that takes most; which."""
    given = (flag, suite.demo(home) / "run") if flag == "--status" else (flag,)
    found = {}
    for name in scripts:
        calls = (suite.spent(name, *given, code=2 * (flag == WRONG)) for _ in range(times))
        found[name] = [call.cpu for call in calls]
    name = max(found, key=lambda name: statistics.median(found[name]))
    return found[name], name


def start(cfg: SpeedConfig) -> list[Row]:
    """CPU seconds until a script has said what needs no work, the slowest one of each kind."""
    home, rows = demo(cfg), []
    NOW.spent("DQN.py", "--help")  # compiled and in the page cache
    torch_s = statistics.median(NOW.spent("-c", "import torch").cpu for _ in range(cfg.times))
    many, few = SCRIPTS[:2] if cfg.quick else SCRIPTS, ["preprocess.py", "DQN.py", "evaluate.py"]
    kinds = {"--help": (many, few), "--status": (["DQN.py"], ["DQN.py"]), WRONG: (many, few)}
    for flag, (scripts, fewer) in kinds.items():
        found, name = slowest(scripts, flag, home, cfg.times, NOW)
        middle, take = statistics.median(found), partial(slowest, fewer, flag, home, 1)
        say = against(middle, "s")
        old = was(cfg.before, take, lambda found, say=say: say(found[0][0]))
        note = f"{text(found, '.2f')} s ({name}); import torch: {torch_s:.2f} s"
        what = {"--status": "--status of a run", WRONG: "a wrong flag"}.get(flag, flag)
        what += f", CPU s, the slowest of {len(scripts)} scripts"
        what += f" (before: of {len(fewer)})" * (len(scripts) > 1)
        rows.append(row("start", what, middle, "<= 1 s", old, note))
    return rows


def on_demo(corpus: Path, flags: tuple[Any, ...], suite: Suite) -> float:
    """CPU seconds of preprocessing both splits of a corpus."""
    with tempfile.TemporaryDirectory() as folder:
        call = ("preprocess.py", "--preset", "demo", "--corpus", corpus, *flags)
        return suite.spent(*call, "--cache", Path(folder) / "cache").cpu


def preprocessing(cfg: SpeedConfig) -> list[Row]:
    """Both splits of the demo's corpus; many clips; many short ones."""
    corpus, rows = demo(cfg) / "data", []
    for kind, flags in (("", ()), (", two workers", ("--workers", 2))):
        cpu = [on_demo(corpus, flags, NOW) for _ in range(cfg.times)]
        middle = statistics.median(cpu)
        old = was(cfg.before, partial(on_demo, corpus, flags), against(middle, "s"))
        what = f"preprocess.py --preset demo, 300 clips{kind}, CPU s"
        rows.append(row("preprocess", what, middle, "<= 10 s", old, f"{text(cpu, '.1f')} s"))
    return [*rows, sharing(cfg, corpus / "train"), growing(cfg)]


def shares(corpus: Path, copies: tuple[int, int], times: int, suite: Suite) -> tuple[float, float]:
    """CPU milliseconds a clip, of the first process and of its two workers, from few and many
    copies of a corpus."""
    names, found = sorted(path.stem for path in (corpus / "audio").iterdir()), []
    lines = (corpus / "labels.tsv").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        home = Path(folder)
        for number_of_copies in copies:
            split, rows = home / str(number_of_copies), lines[:1]
            numbers = range(number_of_copies)
            for kind, suffix in (("audio", ".flac"), ("scores", ".tsv")):
                (split / kind).mkdir(parents=True)
                for name, k in itertools.product(names, numbers):
                    os.link(corpus / kind / (name + suffix), split / kind / f"{name}-{k}{suffix}")
            for line, k in itertools.product(lines[1:], numbers):
                name, _, rest = line.partition(".flac")
                rows.append(f"{name}-{k}.flac{rest}")
            write_text(split / "labels.tsv", "\n".join(rows))
            given = [f"--{name}={split / name}" for name in ("audio", "scores")]
            call = ("preprocess.py", "--labels", split / "labels.tsv", *given, "--split", "train")
            runs = [
                suite.spent(*call, "--workers", 2, "--cache", split / f"cache-{k}")
                for k in range(times)
            ]
            medians = zip(*((run.own, run.cpu - run.own) for run in runs), strict=True)
            found.append(np.array([statistics.median(each) for each in medians]))
    clips = len(names) * (copies[1] - copies[0])
    own, workers = (1000 * (found[1] - found[0]) / clips).tolist()
    return own, workers


def sharing(cfg: SpeedConfig, corpus: Path) -> Row:
    """What the first process does for a clip against a sixteenth of what a worker does: below 1,
    16 workers wait for audio, not for the first process."""

    def say(found: tuple[float, float]) -> str:
        own, workers = found
        return f"{16 * own / workers:.2f} x: {own:.2f} against {workers:.1f} ms of CPU a clip"

    copies = (1, 2) if cfg.quick else (2, 10)
    found = shares(corpus, copies, cfg.times, NOW)
    old = was(cfg.before, partial(shares, corpus, copies, 1), say)
    what = "preprocess.py, the first process against a sixteenth of its workers"
    need = "" if cfg.quick else "<= 1 x"
    return row("preprocess", what, 16 * found[0] / found[1], need, old, say(found))


def growth(sizes: tuple[int, int], times: int, suite: Suite) -> tuple[float, float]:
    """CPU milliseconds of a clip among few and among many, the start left out: short clips, so that
    the manifest and all else that is kept of a clip counts."""
    rng, edges, cpu = np.random.default_rng(0), frame_edges(10, 0.02), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for count in (1, *sizes):
            names = [f"{i:05}" for i in range(count)]
            values = (rng.random((2, 10), np.float32) for _ in names)
            clips = zip(names, (ClipScores(each, edges) for each in values), strict=True)
            write_archive(home / f"{count}.npz", ["Cat", "Dog"], clips)
            events = {f"{name}.wav": [Event(0.0, 0.1, "Cat")] for name in names}
            write_labels(home / f"{count}.tsv", events)
            given = ("--labels", home / f"{count}.tsv", "--scores", home / f"{count}.npz")
            call = ("preprocess.py", "--split", "train", *given, "--workers", 1, "--cache")
            # the fastest: a start differs by a second
            cpu.append(min(suite.spent(*call, home / f"{count}-{k}").cpu for k in range(times)))
    return tuple(1000 * (cpu[i] - cpu[0]) / (sizes[i - 1] - 1) for i in (1, 2))


def growing(cfg: SpeedConfig) -> Row:
    """What a clip costs among many, against a clip among few."""
    sizes = (20, 80) if cfg.quick else (2_048, 8_192)
    few, many = growth(sizes, 1 if cfg.quick else 3, NOW)
    note = "{1:.2f} against {0:.2f} ms of CPU".format
    take, say = partial(growth, sizes, 1), lambda each: f"{each[1] / each[0]:.2f} x: {note(*each)}"
    what = "preprocess.py, a clip of 10 frames without audio among"
    what += f" {sizes[1]:,} against {sizes[0]:,}"
    old = was(cfg.before, take, say)
    return row("preprocess", what, many / few, "<= 1.3 x", old, note(few, many))


def counted(
    sides: list[dict], durations: dict[str, float], names: list[str], clips: int, suite: Suite
) -> float:
    """CPU seconds a 100 clips, of the first of some clips."""
    few = dict(itertools.islice(durations.items(), clips))
    some = [{clip: side[clip] for clip in few} for side in sides]
    with tempfile.TemporaryDirectory() as folder:
        write_text(path := Path(folder) / "events.json", json.dumps([some, few, names]))
        return suite.numbers(EVENTS + suite.COUNTING, path)[0] * 100 / len(few)


def counting(cfg: SpeedConfig) -> list[Row]:
    """Collar, segment and intersection F1 of made-up clips with three events each, the slowest."""
    size, rows = 50 if cfg.quick else 500, []
    for classes in (10, 500):
        names = [f"{k:03}" for k in range(classes)]
        rng, sides = np.random.default_rng(0), []
        for _ in range(2):
            onset, label = rng.uniform(0, 9, (size, 3)), rng.integers(0, classes, (size, 3))
            spans = zip(np.sort(onset).tolist(), label.tolist(), strict=True)
            clips = (
                [Event(t, t + 0.8, names[k]) for t, k in zip(*each, strict=True)] for each in spans
            )
            sides.append({f"{i}.wav": found for i, found in enumerate(clips)})
        given = (sides, dict.fromkeys(sides[0], 10.0), names)
        taken = statistics.median(counted(*given, size, NOW) for _ in range(cfg.times))
        old = was(cfg.before, partial(counted, *given, 100), against(taken, "s", ".2f"))
        what = f"collar, segment, intersection F1, {classes} classes, the slowest, CPU s a"
        what += " 100 clips"
        rows.append(row("compare", what, taken, "<= 0.03 s", old, f"{taken:.4f} s"))
    return rows


def table(home: Path, suite: Suite) -> Spent:
    """A policy and all rules on the demo's clips, all pairs."""
    home = suite.demo(home)
    shutil.rmtree(home / "run" / "decisions", ignore_errors=True)  # it decides once
    with tempfile.TemporaryDirectory() as folder:
        entrants = (f"DQN={home / 'run'}", "rules", "--out", Path(folder) / "table")
        return suite.spent("evaluate.py", "--cache", home / "cache-all", "--compare", *entrants)


def comparing(cfg: SpeedConfig) -> list[Row]:
    """Event metrics alone; then a table."""
    home = demo(cfg)
    found = [table(home, NOW) for _ in range(cfg.times)]
    wall, cpu = ([getattr(each, name) for each in found] for name in ("wall", "cpu"))
    middle = statistics.median(wall)
    say = against(middle, "s")
    take = partial(table, home)
    old = was(cfg.before, take, lambda spent: f"{say(spent.wall)}; CPU {spent.cpu:.1f} s")
    note = f"{text(wall, '.1f')} s; CPU {text(cpu, '.1f')} s"
    what = "evaluate.py --compare DQN=.. rules, demo, all pairs, wall s"
    return [*counting(cfg), row("compare", what, middle, "<= 45 s", old, note)]


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


def grown(folders: list[Path], suite: Suite, what: str = "ALL_PAIRS") -> list[int]:
    """What some work takes more on the last of some caches than on the first: bytes at the peak,
    pairs, and what else it says (kept queries, clips). The difference leaves out what does not
    grow."""
    code = PEAK + getattr(suite, what)
    with tempfile.TemporaryDirectory() as home:
        caches = [suite.cache(each, Path(home) / each.parent.name) for each in folders]
        first, last = (suite.numbers(code, each) for each in caches)
    return [int(b - a) for a, b in zip(first, last, strict=True)]


def all_pairs(cfg: SpeedConfig) -> list[Row]:
    """What more clips take where all pairs of many classes are loaded, learned from and decided,
    and where thresholds are tuned on them."""
    home = cfg.out / ("all-pairs-quick" if cfg.quick else "all-pairs")
    sizes, frames = ((20, 40) if cfg.quick else (150, 400)), 50 if cfg.quick else 250
    folders = [home.resolve() / str(size) / "train" for size in sizes]
    for size, folder in zip(sizes, folders, strict=True):
        if not (folder / "manifest.json").exists():
            many = {"classes": 500, "frames": frames, "frame_s": 0.04, "workers": 1}
            pairs = {"train_pairs": size, "validation_pairs": 0}
            simulate_cache.main(simulate_cache.SimulateConfig(out=folder.parent, **pairs, **many))
    needs = {"ALL_PAIRS": "<= 0.25 x", "RULES": "<= 0.2 x"}
    return [peak_over_arrays(cfg, folders, 25 * frames, work, need) for work, need in needs.items()]


WORDS = {"ALL_PAIRS": "loading, training and deciding", "RULES": "tuning and applying thresholds"}


def peak_over_arrays(
    cfg: SpeedConfig, folders: list[Path], pair_bytes: int, work: str, need: str
) -> Row:
    """The peak of some work over the arrays of the clips that the last cache has more."""
    peak, pairs, *others = grown(folders, NOW, work)
    arrays = pair_bytes * pairs
    take = partial(grown, folders, what=work)
    old = was(cfg.before, take, lambda more: f"{more[0] / arrays:.2f} x")
    what = f"--pairs all, 500 classes, {pairs // 500} clips more: peak of {WORDS[work]} over their"
    what += f" arrays of {arrays / 1e6:,.0f} MB"
    now = f"{peak / 1e6:,.0f} MB" + (f", {others[0]} queries kept" if others else "")
    return row("memory", what, peak / arrays, "" if cfg.quick else need, old, now)


def loading(split: Path, suite: Suite) -> list[float]:
    """Peak over the arrays, and their bytes."""
    with tempfile.TemporaryDirectory() as home:
        return suite.numbers(PEAK + LOADING, suite.cache(split, Path(home) / split.name))


def drawing(clips: int, suite: Suite) -> float:
    """Peak, bytes a clip."""
    return suite.numbers(PEAK + DRAWING, clips)[0]


def memory(cfg: SpeedConfig) -> list[Row]:
    """Peaks of processes of their own, above what their imports take."""
    ratio, size = loading(cfg.cache / "train", NOW)
    take = partial(loading, cfg.cache / "train")
    old = was(cfg.before, take, lambda found: f"{found[0]:.2f} x")
    what = f"load_cache, peak over its arrays of {size / 1e6:,.0f} MB"
    rows = [row("memory", what, ratio, "<= 1.1 x", old)]
    clips, fewer = 1_000 if cfg.quick else 100_000, 10_000
    take = partial(drawing, fewer)
    old = was(cfg.before, take, lambda each: f"{each:,.0f} bytes, of {fewer:,} clips")
    what = f"1,000 bootstrap draws of {clips:,} clips, peak, bytes a clip"
    rows.append(row("memory", what, drawing(clips, NOW), "<= 5000 bytes", old))
    return rows + all_pairs(cfg)


def each_file(home: Path, folder: Path, count: int, suite: Suite) -> float:
    """CPU milliseconds that a file costs: those of folder/many more than the ten of folder/few."""
    policy, found = suite.demo(home) / "run" / "best.pt", []
    for name in ("few", "many"):
        given = ("--policy", policy, "--scorer", home / "data" / "scorer.pt")
        with tempfile.TemporaryDirectory() as out:
            call = ("detect.py", *given, "--audio", folder / name, "--out", Path(out) / "out.tsv")
            found.append(suite.spent(*call).cpu)
    return 1000 * (found[1] - found[0]) / (count - 10)


def detecting(cfg: SpeedConfig) -> list[Row]:
    """Files of 2 s: what each of 1,000 costs more than the first ten."""
    home, count = demo(cfg), 20 if cfg.quick else 1_000
    parts = []
    for path in sorted((home / "data").glob("*/audio/*")):
        wav, rate = soundfile.read(path, dtype="int16")
        parts += [wav[at : at + 2 * rate] for at in range(0, len(wav) - 2 * rate + 1, 2 * rate)]
    with tempfile.TemporaryDirectory() as folder:
        for name, number_of_files in (("few", 10), ("many", count)):
            (Path(folder) / name).mkdir()
            for i, wav in enumerate(parts[:number_of_files]):
                soundfile.write(Path(folder) / name / f"{i:04}.wav", wav, rate)
        given = (home, Path(folder), count)
        found = [each_file(*given, NOW) for _ in range(cfg.times)]
        middle = statistics.median(found)
        old = was(cfg.before, partial(each_file, *given), against(middle, "ms"))
    what = f"detect.py, {count:,} files of 2 s, CPU ms a file"
    return [row("detect", what, middle, "<= 8 ms", old, f"{text(found, '.1f')} ms")]


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
