"""SIGKILL, SIGSTOP, a parent that is gone: no orphan, nothing lost, the bytes of a calm run.

Every script is killed again and again in one folder, each time started anew as its user would; in
the end, and whenever a life was not killed, the files are those of a run that was left alone. A few
moments in the normal run, twenty for each script with `-m slow`.
"""

import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import killed
import numpy as np
import pytest
import torch
from test_ranks import documented, free_port

from core.files import MARKER, TEMPORARY
from policy import runfolder
from scores import corpora

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.1"]
if not Path("/proc/self/environ").exists():
    pytest.skip("needs /proc to find the processes that are left over", allow_module_level=True)

# ---------------------------------------------------------------------------- processes


class Job:
    """A started command and all processes that come of it, known by a mark in their environment."""

    def __init__(self, command: list[object], folder: Path, **environ: str):
        self.mapped: set[str] = set()
        self.mark = f"KILL_TEST={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.log = folder.parent / f"{folder.name}-{value[:8]}.log"
        with open(self.log, "w") as stream:
            self.process = subprocess.Popen(
                [*map(str, command)],
                cwd=folder,
                env=os.environ | {name: value, "PYTHONHASHSEED": "0"} | environ,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """The processes that are alive, the first one too."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has ended, or is somebody else's
                continue
            if marked and state not in "ZX":
                found.append(int(folder.name))
        return sorted(found)

    def children(self, pid: int | None = None) -> list[int]:
        """Its own processes that were started by one of them, by default the first."""
        parent, found = self.process.pid if pid is None else pid, []
        for one in self.pids():
            try:
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(one)
        return found

    def wait(self, seconds: float = 900) -> int:
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait(seconds)
        self.process.join(seconds)
        return self.process.exitcode

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def shared(self) -> set[str]:
        """What its processes have mapped of shared memory."""
        found = set()
        for pid in self.pids():
            with suppress(OSError):
                found |= set(re.findall(r"/dev/shm/(\S+)", Path(f"/proc/{pid}/maps").read_text()))
        return found

    def send(self, pid: int, number: int) -> None:
        """A signal to one of its processes."""
        self.mapped |= self.shared()
        os.kill(pid, number)

    def nothing_is_left(self, seconds: float = 60) -> None:
        """Assert that all processes end by themselves, soon, and their shared memory with them."""
        give_up = time.monotonic() + seconds
        while (left := self.pids()) and time.monotonic() < give_up:
            time.sleep(0.1)
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, lines
        assert not [name for name in self.mapped if Path("/dev/shm", name).exists()]


def until(condition, job: Job, seconds: float = 900) -> None:
    """Wait for something that the job brings about."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert job.process.poll() is None and time.monotonic() < give_up, job.said()
        time.sleep(0.02)


# ---------------------------------------------------------------------------- files

# What says how a run went, and is written anew by each of its lives.
VOLATILE = re.compile(r"status\.json|train\.log|.*\.lock|tensorboard(/.*)?|config\.json")
# Seconds, what a clock decides (the fastest batch), and the checksum of a file that holds such.
TIMES = re.compile(r"seconds|_s$|at$|^batch$|^sha256$")


def without_times(value: object) -> object:
    """JSON without what a clock has said."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not TIMES.search(k)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> object:
    """The bytes of a file, or what it holds without the times that were taken."""
    if path.suffix == ".pt":
        return runfolder.digest(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return json.dumps(without_times(json.loads(path.read_text())))
    if path.suffix == ".npz" and path.parent.name == "decisions":  # they keep how long it took
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {n: arrays[n].tobytes() for n in arrays.files if n != "seconds"}
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, object]:
    """Every file of a folder but the volatile ones, by name."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    # The next writer sweeps a folder of ours; in one of the user's the hidden file of a writer that
    # was killed while it wrote stays, as it might be that of another one.
    for name, path in list(files.items()):
        if TEMPORARY.fullmatch(path.name) and not (path.parent / MARKER).exists():
            del files[name]
    return {
        name: content(path)
        for name, path in sorted(files.items())
        if not any(VOLATILE.fullmatch(part) for part in name.split("/"))
    }


def same(found: dict[str, object], wanted: dict[str, object]) -> None:
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


# ---------------------------------------------------------------------------- scripts


@dataclass(frozen=True)
class Case:
    """A command; `run` is the folder with the last.pt that says whether it is to be resumed."""

    command: str
    run: str = ""

    def words(self, folder: Path) -> list[str]:
        script, *flags = shlex.split(self.command)
        resume = ["--resume"] * bool(self.run and (folder / self.run / "last.pt").exists())
        return [str(ROOT / script), *flags, *resume]


TINY = "--network.hidden 4 --network.heads 1 --network.tcn-groups 1 --network.transformer-layers 1"
LEARN = "--learning.lanes 4 --learning.batch 8 --learning.train-start 8"
OFTEN = "--checkpoint-minutes 0.00001 --checkpoint-every 3 --device cpu"
CASES = {
    "soundscapes": Case(
        "soundscapes.py --out new --train-clips 4 --validation-clips 2 --clip-s 1 --workers 1"
    ),
    "scorers": Case("scorers.py --corpus plain --epochs 1 --channels 4 --workers 1"),
    "preprocess": Case("preprocess.py --corpus corpus --cache new --workers 1"),
    "slides": Case(
        f"DQN.py --cache cache --run new {TINY} {LEARN} {OFTEN} --passes 2 --holdout 0.3", "new"
    ),
    "best": Case(
        f"DQN.py --preset best --cache cache --run new {OFTEN} --events.hidden 4 --events.batch 2"
        " --passes 8 --holdout 0.3",
        "new",
    ),
    "evaluate": Case("evaluate.py --cache cache --run run --device cpu"),
    "compare": Case(
        "evaluate.py --cache cache --compare DQN=run best=best rules --out new --workers 1"
        " --device cpu"
    ),
    "detect": Case(
        "detect.py --policy run/best.pt --audio corpus/validation/audio"
        " --scores corpus/validation/scores --out new/events.tsv --overwrite"
        " --audacity new/labels --device cpu"
    ),
    "visualize": Case("visualize.py --cache cache --run shown --html --dpi 30"),
}
QUICK = {"preprocess": 2, "slides": 2, "detect": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus without and with scores, its cache, two policies, an evaluated run."""
    folder = tmp_path_factory.mktemp("kill") / "home"
    folder.mkdir()
    before, where = sys.argv, Path.cwd()
    handlers = {number: signal.getsignal(number) for number in range(1, 16)}

    def run(name: str, old: str, new: str) -> None:
        """In this process: nothing has to be imported again."""
        sys.argv = Case(CASES[name].command.replace(old, new)).words(folder)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert not ended.value.code

    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "TAKES", 1)  # all of a bank are made, few are played
        run("soundscapes", "new", "plain")
    shutil.copytree("plain", "corpus")
    run("scorers", "plain", "corpus")
    run("preprocess", "new", "cache")
    run("slides", "--run new", "--run run")
    run("best", "--run new", "--run best")
    shutil.copytree("run", "shown")
    run("evaluate", "--run run", "--run shown")
    sys.argv = before
    os.chdir(where)
    for number, handler in handlers.items():
        if number not in (signal.SIGKILL, signal.SIGSEGV):
            signal.signal(number, handler)
    return folder


class Life(Job):
    """One life of a script, killed at a moment of its own; 0 lets it live and counts them."""

    def __init__(self, server: ForkServerContext, case: Case, folder: Path, at: int, delay: float):
        self.mapped = set()
        name, value = "KILL_TEST", uuid.uuid4().hex
        self.mark, self.log = f"{name}={value}", folder.parent / f"{value}.log"
        self.counts = folder.parent / f"{value}.count"
        given = at, delay, self.counts, case.words(folder), folder, self.log
        self.process = server.Process(target=killed.script, args=given, kwargs={name: value})
        self.process.start()


def life(server: ForkServerContext, case: Case, folder: Path, at: int, delay: float) -> int:
    """The exit code of a life, or how many moments one has that is let alone."""
    job = Life(server, case, folder, at, delay)
    code = job.wait()
    assert code in (0, -signal.SIGKILL), job.said()
    job.nothing_is_left()
    return int(job.counts.read_text()) if at == 0 else code


def survives(
    name: str, home: Path, place: Path, server: ForkServerContext, kills: int, seed: int
) -> None:
    """Kill a script so many times; compare whatever came to its end with a calm run."""
    case, rng = CASES[name], np.random.default_rng([seed, len(name)])
    folder = place / "home"  # always the same path, which some files hold
    shutil.copytree(home, folder)
    moments = life(server, case, folder, 0, 0)
    assert moments > 2
    wanted, done = snapshot(folder), 0
    shutil.rmtree(folder)
    shutil.copytree(home, folder)
    while done < kills:
        delay = float(rng.choice([0.0, rng.uniform(0, 0.05)]))
        if life(server, case, folder, int(rng.integers(1, moments + 1)), delay) == 0:
            same(snapshot(folder), wanted)
            shutil.rmtree(folder)
            shutil.copytree(home, folder)
        else:
            done += 1
    life(server, case, folder, 0, 0)
    same(snapshot(folder), wanted)


@pytest.mark.parametrize("name", QUICK)
def test_a_killed_script_starts_again(home, tmp_path, fork_server, name):
    survives(name, home, tmp_path, fork_server, QUICK[name], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_script_killed_twenty_times(home, tmp_path, fork_server, name):
    survives(name, home, tmp_path, fork_server, 20, seed=1)


# ---------------------------------------------------------------------------- pools


POOLED = {
    "soundscapes": CASES["soundscapes"].command.replace("--workers 1", "--workers 2"),
    "scorers": CASES["scorers"].command.replace("--workers 1", "--workers 2"),
}
POOL = """
import sys, time
sys.path.insert(0, {root!r})
from core.processes import process_pool
if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(time.sleep, [0.01] * 2))
        print("ready", flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_a_pool_ends_with_its_killed_parent(tmp_path):
    """The worker that waits for work, the one that works, and what multiprocessing starts."""
    (tmp_path / "pool.py").write_text(POOL.format(root=str(ROOT)))
    job = Job([sys.executable, tmp_path / "pool.py"], tmp_path)
    until(lambda: "ready" in job.said(), job)
    assert len(job.pids()) >= 3
    job.send(job.process.pid, signal.SIGKILL)
    job.wait()
    job.nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLED)
def test_workers_end_with_their_killed_script(home, tmp_path, name):
    shutil.copytree(home, tmp_path / "home")
    folder = tmp_path / "home"
    for _ in range(3):
        job = Job([sys.executable, *Case(POOLED[name]).words(folder)], folder)
        until(lambda job=job: len(job.children()) >= 3, job)  # two workers and their tracker
        job.send(job.process.pid, signal.SIGKILL)
        job.wait()
        job.nothing_is_left()
    job = Job([sys.executable, *Case(POOLED[name]).words(folder)], folder)
    assert job.wait() == 0, job.said()


# ---------------------------------------------------------------------------- ranks

IMPATIENT = """
import runpy, sys
from datetime import timedelta
sys.path.insert(0, {root!r})
from core import ranks
ranks.PATIENCE = ranks.TRAINING_PATIENCE = timedelta(seconds=10)
runpy.run_path({script!r}, run_name="__main__")
"""
FLAGS = f"--cache cache --run new {TINY} {LEARN} --checkpoint-minutes 0.001 --device cpu"
FLAGS = shlex.split(f"{FLAGS} --passes 150 --holdout 0.3")


@pytest.fixture
def job_of_two(home, tmp_path):
    """`start(name)`: torchrun's own command line with two processes that train in a folder."""
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT.format(root=str(ROOT), script=str(ROOT / "DQN.py")))

    def start(name: str, *flags: str) -> tuple[Job, Path]:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(home, folder)
        words = ["--nproc-per-node=2", f"--master-port={free_port()}", *flags]
        again = ["--resume"] * (folder / "new" / "last.pt").exists()
        return Job([*TORCHRUN, *words, "--", script, *FLAGS, *again], folder), folder

    return start


def ranks_of(job: Job) -> list[int]:
    """The training processes."""
    return job.children()


def rows_of(folder: Path) -> int:
    path = folder / "new" / "reward_history.tsv"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def calm_of_two(home, tmp_path_factory) -> dict[str, object]:
    """What two processes that are left alone write."""
    folder = tmp_path_factory.mktemp("calm") / "home"
    shutil.copytree(home, folder)
    words = ["--nproc-per-node=2", f"--master-port={free_port()}", "--", ROOT / "DQN.py", *FLAGS]
    job = Job([*TORCHRUN, *words], folder)
    assert job.wait() == 0, job.said()
    return snapshot(folder / "new")


HARM = {
    "killed": signal.SIGKILL,
    "stopped": signal.SIGSTOP,
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_of_the_job_is_lost(job_of_two, calm_of_two, harm, which):
    """torchrun ends the others, also one that hangs, and starts all again from last.pt."""
    job, folder = job_of_two("home", "--max-restarts=1")
    until(lambda: rows_of(folder) > 20, job)
    job.send(ranks_of(job)[which], HARM[harm])
    assert job.wait() == 0, job.said()
    job.nothing_is_left()
    same(snapshot(folder / "new"), calm_of_two)


@pytest.mark.slow
def test_a_process_that_is_stopped_for_a_while(job_of_two, calm_of_two):
    """Shorter than the others' patience: they wait for it."""
    job, folder = job_of_two("home")
    until(lambda: rows_of(folder) > 20, job)
    one = ranks_of(job)[1]
    os.kill(one, signal.SIGSTOP)
    time.sleep(3)
    os.kill(one, signal.SIGCONT)
    assert job.wait() == 0, job.said()
    same(snapshot(folder / "new"), calm_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_torchrun_itself_ends(job_of_two, calm_of_two, number):
    """Its processes save and end with it; SIGUSR1 as a batch system sends it, to all of them."""
    job, folder = job_of_two("home", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    until(lambda: rows_of(folder) > 20, job)
    for pid in [*(ranks_of(job) if number == signal.SIGUSR1 else []), job.process.pid]:
        job.send(pid, number)
    assert job.wait() != 0
    job.nothing_is_left()
    saved = runfolder.read_checkpoint(folder / "new" / "last.pt")["info"]["finished"]
    assert saved == rows_of(folder) - 1  # they ended at an agreed moment, with all saved
    job, folder = job_of_two("home")
    assert job.wait() == 0, job.said()
    same(snapshot(folder / "new"), calm_of_two)


# ---------------------------------------------------------------------------- commands, recipes


def as_here(command: str) -> list[str]:
    """The words of a documented or printed torchrun command, as they can be run in any folder."""
    words = shlex.split(command)
    at = words.index("--")
    script = str(ROOT / Path(words[at + 1]).name)
    return [*TORCHRUN, *words[1:at], f"--master-port={free_port()}", "--", script, *words[at + 2 :]]


def test_torchruns_real_command_line(home, tmp_path):
    """The documented command; it is stopped, and the command that it prints then goes on."""
    (command,) = [text for text in documented() if text.endswith("DQN.py --run runs/slides")]
    shutil.copytree(home, tmp_path / "home")
    folder, more = tmp_path / "home", [*shlex.split(f"{TINY} {LEARN}"), "--passes", "12"]
    job = Job([*as_here(command), *more, "--device", "cpu"], folder)
    history = folder / "runs/slides/reward_history.tsv"
    until(lambda: history.exists() and history.read_text().count("\n") > 2, job)  # it trains
    job.send(job.process.pid, signal.SIGTERM)
    assert job.wait() != 0
    job.nothing_is_left()
    (printed,) = re.findall(r"(?m)^ *(torchrun .*)$", job.log.read_text())
    assert printed.endswith("--resume") and "--run runs/slides" in printed
    again = Job(as_here(printed), folder)
    assert again.wait() == 0, again.said()
    assert json.loads((folder / "runs/slides/status.json").read_text())["state"] == "complete"


@pytest.mark.slow
def test_documented_torchrun_commands(home, tmp_path):
    """Every one, with small sizes; that of several machines as two of them."""
    shutil.copytree(home, tmp_path / "home")
    folder = tmp_path / "home"
    shutil.copytree(folder / "corpus", folder / "data" / "builtin")
    small = [*shlex.split(f"{TINY} {LEARN}"), "--passes", "4", "--device", "cpu", "--overwrite"]
    flags = {"preprocess.py": ["--workers", "1"], "DQN.py": small, "evaluate.py": []}
    for command, start in documented().items():
        script = re.search(r"-- (\w+\.py)", command)[1]
        if start == "srun":
            continue
        job = Job([*as_here(command), *flags[script]], folder)
        assert job.wait() == 0, f"{command}\n{job.said()}"
    (command,) = [command for command, start in documented().items() if start == "srun"]
    command = command.replace("$RESUME", "").replace("$HEAD:29500", f"127.0.0.1:{free_port()}")
    words = as_here(command.replace("--nproc-per-node=4", "--nproc-per-node=1"))
    words = [word for word in words if "master-port" not in word]  # the rendezvous knows it
    nodes = [Job([*words, *small], folder) for _ in range(2)]
    assert [job.wait() for job in nodes] == [0, 0], nodes[0].said()


RECIPES = re.findall(
    r"```text\n#!/bin/bash\n(.*?)```", (ROOT / "docs" / "long-runs.md").read_text(), re.S
)
SLURM = """
srun() { "$@"; }
scontrol() { if [ "$1" = requeue ]; then echo "requeue $2" >> queue; else echo 127.0.0.1; fi; }
python() { "$PYTHON" "$ROOT/$1" "${@:2}" $SMALL; }
torchrun() {
  words=()
  for word in "$@"; do [ "$word" = DQN.py ] && word="$ROOT/DQN.py $SMALL"; words+=($word); done
  "$PYTHON" -m torch.distributed.run "${words[@]}"
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=["array", "nodes"])
def test_a_batch_system_that_warns_and_starts_again(home, tmp_path, recipe):
    """The recipe as it stands, with a Slurm of a few lines: SIGUSR1 to all processes of the step,
    then the same script again, until nothing is put back into the queue."""
    shutil.copytree(home, tmp_path / "home")
    folder = tmp_path / "home"
    small = f"{TINY} {LEARN} --passes 100 --device cpu"
    recipe = recipe.replace("torchrun --nnodes=2 --nproc-per-node=4", "torchrun --nproc-per-node=2")
    recipe = recipe.replace(":29500", f":{free_port()}")
    (folder / "job.sh").write_text(SLURM + recipe)
    environ = {"PYTHON": sys.executable, "ROOT": str(ROOT), "SMALL": small}
    environ |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "x"}
    job = Job(["bash", "job.sh"], folder, **environ)
    place = folder / ("runs/slides" if "torchrun" in recipe else "runs/seed-3")
    until(lambda: (place / "status.json").exists(), job)
    for pid in job.pids():
        if pid != job.process.pid:  # Slurm spares the batch script
            os.kill(pid, signal.SIGUSR1)
    job.wait()
    job.nothing_is_left()
    assert (folder / "queue").read_text() == "requeue 77\n", job.said()
    finished = runfolder.read_checkpoint(place / "last.pt")["info"]["finished"]
    job = Job(["bash", "job.sh"], folder, **environ)
    job.wait()
    assert (folder / "queue").read_text() == "requeue 77\n", job.said()
    assert json.loads((place / "status.json").read_text())["state"] == "complete"
    assert runfolder.read_checkpoint(place / "last.pt")["info"]["finished"] > finished
