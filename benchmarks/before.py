"""The suite as it is and as it was before what people wait for was made faster; how both are run.

Reads:  the repository's history; once, a package index
Writes: <out>/before/<commit>/: the files of that commit, and an environment of its requirements

Both run in processes of their own, on the same corpora, score files and shards. What has changed
since in flags, modules and manifests is said here. Policies are not read across: the suite before
trains one of its own.
"""

import functools
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from core.errors import InputError
from core.files import work_folder

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "9bb5d10b8c6bef013f1732f8bb094a60ba2efe5c"  # the last one before any of it
NAMES = {"sed.caches": "preprocess", "sed.metrics": "metrics", "sed.timeline": "timeline"}
NOT_MEASURED = "not measured"


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


# Peak of a process. Linux: ru_maxrss would not do, it outlives exec and is that of the benchmark.
PEAK = """
import re, sys
from pathlib import Path
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
# The events of two sides, durations and classes of clips, from a file.
EVENTS = """
import json, sys, time
from sed.timeline import Event
sides, durations, names = json.load(open(sys.argv[1]))
sides = [{clip: [Event(*one) for one in found] for clip, found in side.items()} for side in sides]
taken = []
"""


@dataclass(frozen=True)
class Suite:
    """The files of a suite and the Python that runs them: today's."""

    root: Path
    python: Path

    # CPU seconds of the slowest of the three F1; the first counts warm up.
    COUNTING: ClassVar[str] = """
from sed.event_metrics import KINDS, event_counts
for kind in (*KINDS, *KINDS):
    began = time.process_time()
    event_counts(*sides, durations, names, (kind,))
    taken.append(time.process_time() - began)
print(max(taken[len(KINDS) :]))
"""
    # Loads all pairs, learns from them for a tick of each kind, decides: what training and deciding
    # read, without their hours.
    ALL_PAIRS: ClassVar[str] = """
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
    # Tunes thresholds on frames over all pairs, decides and counts: all rules take minutes.
    RULES: ClassVar[str] = """
from baselines.tuned_rules import Objective, decided, threshold_rules
from sed.caches import load_cache
from sed.metrics import counts_in
cache = load_cache(Path(sys.argv[1]))
for rule in threshold_rules(Objective(cache, "all"), "d_raw"):
    counts_in(cache, decided(rule, cache))
print(peak(), len(cache.pairs))
"""

    def spent(self, *command: Any, code: int = 0) -> Spent:
        """Run Python with some arguments on one thread; InputError where it ends with another
        code."""
        arguments, began = [str(self.python), *map(str, command)], time.perf_counter()
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what starts again is compiled
        with tempfile.TemporaryFile("w+") as said:
            given = {"stdout": said, "stderr": said, "cwd": self.root, "env": environ}
            process = subprocess.Popen(arguments, **given)
            own = own_seconds(process.pid)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            output = said.read()
        if process.returncode != code:
            raise InputError(f"{' '.join(arguments[1:])} failed: {output.strip()[-300:]}")
        return Spent(used.ru_utime + used.ru_stime, wall, output, own)

    def numbers(self, code: str, *arguments: Any) -> list[float]:
        """What Python code prints last, on a line."""
        said = self.spent("-c", self.spelt(code), *arguments).said
        return [float(word) for word in said.splitlines()[-1].split()]

    def spelt(self, code: str) -> str:
        """Code with the suite's own names of modules."""
        return code

    def cache(self, split: Path, folder: Path) -> Path:
        """A cache as this suite reads it: itself, or written into a new folder."""
        return split.resolve()

    def demo(self, home: Path) -> Path:
        """A folder with caches of the demo and a policy, in `home` or itself."""
        return home


class Before(Suite):
    """The suite before."""

    COUNTING = """
import event_metrics
assert not event_metrics.missing_packages()  # and they are imported
for kind in ("event", "segment", "intersection"):
    began = time.process_time()
    getattr(event_metrics, kind + "_counts")(*sides, durations, names)
    taken.append(time.process_time() - began)
print(max(taken))
"""
    # It decides some: all take no more.
    ALL_PAIRS = """
from dataclasses import replace
import numpy as np
import torch
import dense
from config import TrainConfig, with_preset
from preprocess import load_cache
torch.set_num_threads(1)
cfg = with_preset(TrainConfig, "best")
cfg = replace(cfg, dense=replace(cfg.dense, hidden=16, layers=2), passes=1, holdout=0.1)
cache = load_cache(Path(sys.argv[1]))
trainer = dense.DenseTrainer(cfg, cache, torch.device("cpu"))
trainer.tick()
dense.greedy(trainer.network, trainer.signals, cfg.bandit, np.arange(640))
trainer.policy()
print(peak(), len(cache.pairs), len(trainer.order), len(cache.clips))
"""
    RULES = """
from metrics import count_pairs
from opponents import Objective, decide_rule, threshold_rules
from preprocess import load_cache
cache = load_cache(Path(sys.argv[1]))
for rule in threshold_rules(Objective(cache, "all"), "d_raw"):
    count_pairs(decide_rule(rule, cache), cache.label, cache.offsets)
print(peak(), len(cache.pairs))
"""

    def spelt(self, code: str) -> str:
        for today, then in NAMES.items():
            code = code.replace(f"from {today} import", f"from {then} import")
        return code

    def cache(self, split: Path, folder: Path) -> Path:
        """The same shards; in the manifest a pair does not say where it begins, nor the signals how
        channels become a loudness (there is one)."""
        manifest = json.loads((split / "manifest.json").read_text(encoding="utf-8"))
        manifest["signal"].pop("loudness", None)
        folder.mkdir(parents=True)
        for shard in manifest["shards"]:
            shard["pairs"] = [pair[:4] for pair in shard["pairs"]]
            (folder / shard["file"]).symlink_to((split / shard["file"]).resolve())
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    def demo(self, home: Path) -> Path:
        """Made once. What the policy decides costs the same however good it is: one pass of random
        actions, few gradient steps."""
        demo = home / "before"
        if not demo.exists():
            work = work_folder(demo)
            shutil.rmtree(work, ignore_errors=True)
            for name, split in itertools.product(("cache", "cache-all"), ("train", "validation")):
                self.cache(home / name / split, work / name / split)
            given = ("--cache", work / "cache", "--run", work / "run", "--passes", 1)
            given += ("--holdout", 0, "--learning.epsilon-end", 1)
            self.spent("DQN.py", "--preset", "demo", *given, "--learning.frames-per-step", 4096)
            work.rename(demo)
        return demo


NOW = Suite(ROOT, Path(sys.executable))

# Python compiles what is imported, and librosa its loudness, on first use and keeps it; that is
# nobody's start.
FIRST_USE = """
import librosa, numpy, tyro
import DQN, detect, evaluate, event_metrics, preprocess
librosa.feature.rms(y=numpy.zeros(32000, "float32"))
event_metrics.missing_packages()
"""


def set_up(out: Path, commit: str = COMMIT) -> Before:
    """The suite before, made once below `out`, whole or not at all. InputError says why it cannot
    be had: no git, a history that lacks the commit, packages that cannot be installed."""
    home = out.resolve() / "before" / commit[:7]
    if not home.exists():
        work = work_folder(home)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        try:
            take_out(commit, work)
            print(f"before: installing its packages in {home} (once; torch is large)", flush=True)
            ran(sys.executable, "-m", "venv", work / "env")
            python, files = work / "env" / "bin" / "python", []
            for name in ("requirements.txt", "requirements-eval.txt"):
                files += ["-r", work / name]
            # Compiling all of it would be two thirds of the time.
            given = ("-q", "--disable-pip-version-check", "--no-compile")
            ran(python, "-m", "pip", "install", *given, *files)
            Before(work, python).spent("-c", FIRST_USE)
            work.rename(home)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Before(home, home / "env" / "bin" / "python")


def take_out(commit: str, folder: Path) -> None:
    """Write the files of a commit of the history."""
    try:
        packed = ran("git", "-C", ROOT, "archive", "--format=zip", commit)
    except InputError as error:
        what = f"commit {commit[:7]} cannot be taken out of the history, a full clone has it"
        raise InputError(f"{what} ({error})") from None
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        archive.extractall(folder)


def ran(*command: Any) -> bytes:
    """What a command prints; InputError with its last line where it fails."""
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"{arguments[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise InputError(f"{' '.join(arguments[:4])} .. failed: {said[-1]}")
    return done.stdout


@functools.cache
def suite_before(out: Path) -> Before | None:
    """`set_up`; None after a line that says why it cannot be had."""
    try:
        return set_up(out)
    except InputError as error:
        print(f"before: {NOT_MEASURED}: {error}", flush=True)
        return None


def was(out: Path | None, take: Callable[[Suite], Any], say: Callable[[Any], str]) -> str:
    """Cell of what the suite before takes, measured once; `out`: see `set_up`, None: a trial."""
    suite = out and suite_before(out)
    if suite is None:
        return NOT_MEASURED
    began = time.perf_counter()
    try:
        cell = say(take(suite))
    except (InputError, OSError) as error:  # a cell less, not the table
        cell = NOT_MEASURED
        print(f"before: {error}", flush=True)
    print(f"before: {cell}, in {time.perf_counter() - began:.0f} s", flush=True)
    return cell


def against(now: float, unit: str, form: str = ".1f") -> Callable[[float], str]:
    """How a cell says what was, and how many times what is now."""

    def say(value: float) -> str:
        ratio = value / now
        return f"{value:{form}} {unit} ({ratio:,.{int(ratio < 10)}f} x now)"

    return say
