"""Every script on a full disk, without permission, with foreign folders, beside another process.

The commands run as `__main__` in this process; `-m slow` runs the studies too, and fills the disk
at more moments. What needs root (a small file system of its own) is skipped elsewhere.
"""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534
LAYERS = "--network.tcn-layers 1 --network.gru-layers 1 --network.transformer-layers 1"
TINY = f"--network.hidden 8 --network.heads 2 {LAYERS} --device cpu"
RUN = f"DQN.py --cache {{w}}/cache {TINY} --learning.train-start 64 --learning.lanes 8 --looks 2"
DQN = f"{RUN} --passes 2"
CLASSIFIER = f"DQN.py --method classifier --passes 1 --cache {{w}}/cache {TINY}"
BEST = "DQN.py --preset best --cache {w}/cache --events.hidden 8 --passes 2 --device cpu"
INPUTS = "--labels {w}/corpus/train/labels.tsv --audio {w}/corpus/train/audio"
CLIP = "{w}/corpus/validation/audio/00000.flac"
FEW_IMAGES = "--dataset digits --cycles 2 --epochs 1 --seeds 1 --strategies random --workers 1"


class Task(NamedTuple):
    """A command line; {w} holds its inputs, {o} what it writes."""

    line: str
    writes: str  # what of {o} it writes: a file or a folder
    prepare: str = ""  # name in {w} -> name in {o}, copied first: the command writes into it
    again: str = ""  # flags of a second try in the same folder
    slow: bool = False

    @property
    def script(self) -> str:
        """Path from the project's root."""
        return self.line.split()[0]


TASKS = {
    "soundscapes": Task(
        "soundscapes.py --bank {w}/bank --train-clips 4 --validation-clips 2 --clip-s 2 --workers 1"
        " --out {o}/corpus",
        "corpus",
    ),
    "scorers": Task(
        "scorers.py --corpus {o}/bare --epochs 1 --channels 4 --workers 1", "bare", "bare"
    ),
    "to npz": Task("scorers.py --convert {w}/corpus/train/scores --out {o}/s.npz", "s.npz"),
    "to tsv": Task("scorers.py --convert {w}/scores.npz --out {o}/s", "s"),
    "preprocess": Task(
        f"preprocess.py --split train {INPUTS} --scores {{w}}/corpus/train/scores --workers 1"
        " --cache {o}/cache",
        "cache/train",
    ),
    "DQN": Task(f"{DQN} --run {{o}}/run", "run", again="--overwrite"),
    "best": Task(f"{BEST} --run {{o}}/run", "run", again="--overwrite"),
    "classifier": Task(f"{CLASSIFIER} --run {{o}}/run", "run", again="--overwrite"),
    "evaluate": Task(
        "evaluate.py --cache {w}/cache --checkpoint {w}/run/best.pt --batch 64 --out {o}/results",
        "results",
    ),
    "evaluate in the run": Task(
        "evaluate.py --cache {w}/cache --run {o}/run --batch 64", "run", "run"
    ),
    "compare": Task(
        "evaluate.py --cache {w}/cache --compare A={w}/run rules --workers 1 --out {o}/table",
        "table",
    ),
    "detect": Task(
        "detect.py --policy {w}/run/best.pt --audio {w}/corpus/validation/audio --scores"
        " {w}/corpus/validation/scores --out {o}/events.tsv",
        "events.tsv",
        again="--overwrite",
    ),
    "tracks": Task(
        "detect.py --policy {w}/run/best.pt --audio {w}/corpus/validation/audio --scores"
        " {w}/corpus/validation/scores --out {o}/events.tsv --audacity {o}/tracks",
        "tracks",
        again="--overwrite",
    ),
    "figures": Task(
        "visualize.py --run {w}/run --cache {w}/cache --dpi 40 --out {o}/figures", "figures"
    ),
    "page": Task("visualize.py --run {o}/results --cache {w}/cache --html", "results", "results"),
    "figures in the run": Task(
        "visualize.py --run {o}/run --cache {w}/cache --dpi 40", "run", "run", slow=True
    ),
    "table's figures": Task(
        "visualize.py --table {w}/table --dpi 40 --out {o}/figures", "figures", slow=True
    ),
    "gym": Task(
        "-m studies.gym --cache {w}/cache --steps 300 --learning.train-start 100"
        " --learning.lanes 8 --device cpu --out {o}/sb3",
        "sb3",
        slow=True,
    ),
    "images": Task(f"-m studies.active_learning {FEW_IMAGES} --out {{o}}/a", "a", slow=True),
    "classic": Task(
        "-m studies.classic genetic --learning.generations 1 --out {o}/c", "c", slow=True
    ),
    "simulated cache": Task(
        "-m benchmarks.simulate_cache --train-pairs 8 --validation-pairs 4 --frames 50 --workers 1"
        " --out {o}/cache",
        "cache/train",
        slow=True,
    ),
    "mix": Task(
        "-m studies.denoise mix --clips 3 2 2 --join 1 --out {o}/noisy", "noisy", slow=True
    ),
}
QUICK = [name for name, task in TASKS.items() if not task.slow]
ALL = [
    pytest.param(name, marks=pytest.mark.slow) if task.slow else name
    for name, task in TASKS.items()
]

# ---------------------------------------------------------------------------- running a command


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line; a failure of the test where there is not exactly one."""
        lines = re.findall(r"(?:[\w.]+\.py|python -m [\w.]+): error: .*", self.err)
        assert (self.code, len(lines)) == (2, 1) and "Traceback" not in self.err, self
        return lines[0]


def run_line(line: str, workspace: Path, out: Path, *more: str) -> int:
    """Run a command line as its script would, {w} and {o} filled in; its exit code."""
    script, *flags = shlex.split(line.format(w=workspace, o=out))
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "argv", [*([] if script == "-m" else [script]), *flags, *more])
        patch.setattr(sys, "path", list(sys.path))
        try:
            if script == "-m":
                runpy.run_module(flags[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            return 0
        except SystemExit as stop:
            return stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.fixture
def call(capfd, workspace) -> Callable[..., Done]:
    """`call(line, out, *more flags)` runs a command."""

    def run(line: str, out: Path, *more: str) -> Done:
        capfd.readouterr()
        return Done(run_line(line, workspace, out, *more), *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """Inputs of every command, where anybody may read them."""
    with tempfile.TemporaryDirectory(prefix="writers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        rng = np.random.default_rng(0)
        for take in range(10):
            tone = 0.3 * np.sin(np.arange(8000) * rng.uniform(0.1, 0.4))
            for kind, wav in (("Beep", tone), ("Hiss", rng.normal(0, 0.1, 8000))):
                (folder / "bank" / kind).mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / "bank" / kind / f"{take}.wav", wav, 16000)
        for line in (
            "soundscapes.py --bank {w}/bank --train-clips 8 --validation-clips 4 --clip-s 2"
            " --workers 1 --out {w}/corpus",
            "scorers.py --corpus {w}/corpus --epochs 1 --channels 4 --workers 1",
            "scorers.py --convert {w}/corpus/validation/scores --out {w}/scores.npz",
            "preprocess.py --corpus {w}/corpus --cache {w}/cache --workers 1",
            f"{DQN} --run {{w}}/run",
            "evaluate.py --cache {w}/cache --run {w}/run --batch 64",
            TASKS["evaluate"].line.replace("{o}", "{w}"),
            "evaluate.py --cache {w}/cache --compare A={w}/run --out {w}/table --workers 1",
        ):
            assert run_line(line, folder, folder) == 0, line
        shutil.copytree(folder / "corpus", folder / "bare")
        for path in (folder / "bare").glob("scorer.*"):
            path.unlink()
        for path in (folder / "bare").glob("*/scores"):
            shutil.rmtree(path)
        yield folder


def everything(folder: Path) -> dict[str, bytes | None]:
    """What lies below a folder: content of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def prepared(task: Task, workspace: Path, out: Path) -> dict[str, bytes | None]:
    """Put what the command writes into in place; what lies there then."""
    if task.prepare:
        shutil.copytree(workspace / task.prepare, out / task.prepare)
    return everything(out)


def leftovers(folder: Path) -> list[str]:
    """What only a process at work may leave."""
    return [name for name in everything(folder) if re.search(r"\.(tmp|partial|old|lock)$", name)]


# ---------------------------------------------------------------------------- full disk


def size_of(folder: Path) -> int:
    """Bytes on disk, in pages."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


KEEPS = (
    "DQN",
    "best",
    "classifier",
    "compare",
    "images",
)  # what was whole before stays, to go on from


def check_full(
    call: Callable, name: str, workspace: Path, disk: Path, fill_disk: Callable, free: int
) -> None:
    """One line that names a file there; what was there before is as it was, and nothing more."""
    task = TASKS[name]
    before = prepared(task, workspace, disk)
    fill_disk(free)
    failed = call(task.line, disk)
    if failed.code == 0:  # it needs less than was thought
        return
    assert str(disk) in failed.error
    (disk / "ballast").unlink()
    assert not leftovers(disk)
    found = everything(disk)
    if name in KEEPS:
        assert before.items() <= found.items()
    else:
        assert found == before


@pytest.mark.parametrize("name", QUICK)
def test_full_disk(name, call, workspace, disk, fill_disk):
    """No room at all: not for the first byte."""
    check_full(call, name, workspace, disk, fill_disk, 0)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", TASKS)
def test_full_disk_in_the_middle(name, share, call, workspace, disk, fill_disk, tmp_path):
    task = TASKS[name]
    prepared(task, workspace, tmp_path)
    given = size_of(tmp_path)
    assert call(task.line, tmp_path).code == 0
    free = int(share * (size_of(tmp_path) - given))
    check_full(call, name, workspace, disk, fill_disk, free)
    done = call(task.line, disk, *task.again.split())  # with room
    assert done.code == 0, done


@pytest.mark.parametrize("name", ["DQN", "evaluate", "compare", "page", "preprocess"])
def test_half_full_disk(name, call, workspace, disk, fill_disk, tmp_path):
    """Something is written before the disk is full."""
    test_full_disk_in_the_middle(name, 0.5, call, workspace, disk, fill_disk, tmp_path)


# ---------------------------------------------------------------------------- no permission


@contextmanager
def powerless() -> Iterator[None]:
    """As a user who may read but not write; root is one for a while."""
    root = os.geteuid() == 0
    if root:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that anybody may read, and its owner may write."""
    with tempfile.TemporaryDirectory(prefix="readable-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("name", ALL)
def test_a_folder_without_permission(name, call, workspace, readable, tmp_path):
    task = TASKS[name]
    prepared(task, workspace, tmp_path)
    assert call(task.line, tmp_path).code == 0  # imports what nobody else may be able to read
    before = prepared(task, workspace, readable)
    folders = [readable, *(path for path in readable.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        with powerless():
            failed = call(task.line, readable)
        assert str(readable) in failed.error and everything(readable) == before
    finally:
        for path in folders:
            path.chmod(0o755)


@pytest.mark.parametrize("name", ALL)
def test_a_read_only_file_system(name, call, workspace, disk):
    task = TASKS[name]
    before = prepared(task, workspace, disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    failed = call(task.line, disk)
    assert str(disk) in failed.error and everything(disk) == before


@pytest.mark.parametrize("buffered", [True, False])
def test_standard_output_on_a_full_disk(buffered, workspace):
    environ = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, str(ROOT / "DQN.py"), "--status", str(workspace / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environ)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "standard output" in done.stderr


# ---------------------------------------------------------------------------- foreign folders

FOREIGN = {
    "thesis.tex": b"years",
    "config.json": b'{"model": "theirs"}',
    "manifest.json": b'{"name": "theirs"}',
    "results.json": b'{"score": 1}',
    "best.pt": b"theirs",
    "last.pt": b"theirs",
    "labels.tsv": b"theirs",
    "scores/a.tsv": b"theirs",
    "events/a.tsv": b"theirs",
    "figures/signals.png": b"theirs",
    "report/index.html": b"theirs",
    "audio/a.flac": b"theirs",
}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("again", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("name", [n for n, task in TASKS.items() if not task.prepare])
def test_foreign_files_stay(name, again, call, tmp_path):
    task = TASKS[name]
    place = tmp_path / task.writes
    if task.writes.endswith((".tsv", ".npz")):
        put(tmp_path, {task.writes: b"theirs"})
    else:
        put(place, FOREIGN)
    before = everything(tmp_path)
    more = (task.again or "").split() if again else []
    if name == "mix" and again:
        more = ["--overwrite"]
    failed = call(task.line, tmp_path, *more)
    assert str(place) in failed.error or "/cache/train" in failed.error
    assert {k: v for k, v in everything(tmp_path).items() if k != "events.tsv" or k in before} == (
        before
    )


@pytest.mark.parametrize("name", ["DQN", "classifier"])
def test_overwriting_a_run_removes_what_the_run_wrote(name, call, workspace, tmp_path):
    task = TASKS[name]
    shutil.copytree(workspace / "run", tmp_path / "run")
    shutil.copytree(workspace / "results", tmp_path / "results")
    assert call(TASKS["page"].line, tmp_path).code == 0
    (tmp_path / "results" / "report").rename(tmp_path / "run" / "report")
    put(tmp_path / "run", {"figures/signals.png": b"x"})
    mine = {"notes.txt": b"x", "figures/mine.png": b"x", "report/mine.html": b"x"}
    mine |= {"decisions/mine.csv": b"x", "events/mine.tsv": b"x", "episodes.pt": b"x"}
    put(tmp_path / "run", mine)
    assert call(task.line, tmp_path, "--overwrite").code == 0
    found = everything(tmp_path / "run")
    assert mine.items() <= found.items()
    assert not {"results.json", "figures/signals.png", "report/index.html"} & set(found)
    assert "last.pt" in found and (tmp_path / "run" / "config.json").exists()


def test_a_table_deletes_the_events_of_its_own_older_rows_only(call, workspace, tmp_path):
    shutil.copytree(workspace / "table", tmp_path / "table")
    put(tmp_path / "table" / "events", {"mine.tsv": b"x"})
    assert (tmp_path / "table" / "events" / "A.tsv").exists()
    line = TASKS["compare"].line.replace("A={w}", "B={w}")
    assert call(line, tmp_path).code == 0
    found = {path.name for path in (tmp_path / "table" / "events").iterdir()}
    assert {"mine.tsv", "B.tsv"} <= found and "A.tsv" not in found


def test_the_page_does_not_throw_away_what_others_put_there(call, workspace, tmp_path):
    shutil.copytree(workspace / "results", tmp_path / "results")
    assert call(TASKS["page"].line, tmp_path).code == 0
    put(tmp_path / "results" / "report", {"mine.html": b"x"})
    assert "mine.html" in call(TASKS["page"].line, tmp_path).error
    assert (tmp_path / "results" / "report" / "mine.html").read_bytes() == b"x"


def test_scores_that_somebody_put_into_a_corpus_stay(call, workspace, tmp_path):
    """In the place of those that scorers.py wrote, or beside them."""
    line = TASKS["scorers"].line.replace("bare", "corpus") + " --seed 5"
    shutil.copytree(workspace / "corpus", tmp_path / "corpus")
    scores = tmp_path / "corpus" / "train" / "scores"
    put(scores, {"mine.tsv": b"x"})
    assert "mine.tsv" in call(line, tmp_path).error
    shutil.rmtree(scores)
    put(scores, {"00000.tsv": b"theirs"})
    assert "00000.tsv" in call(line, tmp_path).error
    assert (scores / "00000.tsv").read_bytes() == b"theirs"


# ---------------------------------------------------------------------------- inputs as outputs

OWN_INPUTS = {
    "the labels' folder as a cache": (
        "preprocess.py --cache {o}/corpus --split train --labels {o}/corpus/train/labels.tsv"
        " --audio {o}/corpus/train/audio --scores {o}/corpus/train/scores --workers 1"
    ),
    "the scores' folder as a cache": (
        "preprocess.py --cache {o}/corpus/train --split scores"
        " --labels {o}/corpus/train/labels.tsv --scores {o}/corpus/train/scores --workers 1"
    ),
    "events over scores": (
        "detect.py --policy {w}/run/best.pt --scores {o}/scores.npz --out {o}/scores.npz"
    ),
    "events over the policy": (
        "detect.py --policy {o}/run/best.pt --scores {o}/scores.npz --out {o}/run/best.pt"
    ),
    "events over a recording": (
        "detect.py --policy {w}/run/best.pt --scorer {o}/corpus/scorer.pt"
        " --audio {o}/corpus/train/audio/00000.flac --out {o}/corpus/train/audio/00000.flac"
    ),
    "events over one of the recordings": (
        "detect.py --policy {w}/run/best.pt --scorer {o}/corpus/scorer.pt"
        " --audio {o}/corpus/train/audio --out {o}/corpus/train/audio/00000.flac"
    ),
    "events over the scorer": (
        "detect.py --policy {w}/run/best.pt --scorer {o}/corpus/scorer.pt"
        " --audio {o}/corpus/train/audio --out {o}/corpus/scorer.pt"
    ),
    "tracks among the recordings": (
        "detect.py --policy {w}/run/best.pt --scorer {o}/corpus/scorer.pt"
        " --audio {o}/corpus/train/audio --out {o}/e.tsv --audacity {o}/corpus/train/audio"
    ),
    "a cache as a run": "DQN.py --cache {o}/cache --run {o}/cache/train --overwrite",
    "caches as a run": "DQN.py --cache {o}/cache --run {o}/cache --overwrite",
    "a cache as results": (
        "evaluate.py --cache {o}/cache --checkpoint {w}/run/best.pt --out {o}/cache/validation"
    ),
    "another run as results": (
        "evaluate.py --cache {w}/cache --checkpoint {w}/run/best.pt --out {o}/run"
    ),
    "a run as a table": "evaluate.py --cache {w}/cache --compare A={o}/run --out {o}/run",
    "a cache as a table": "evaluate.py --cache {o}/cache --compare A={w}/run --out {o}/cache",
    "its own events as a row": (
        "evaluate.py --cache {w}/cache --compare B={o}/table/events/A.tsv --out {o}/table"
    ),
    "figures into the cache": (
        "visualize.py --run {w}/run --cache {o}/cache --out {o}/cache/validation"
    ),
    "figures into a corpus": "visualize.py --run {w}/run --cache {w}/cache --out {o}/corpus",
    "scores over themselves": "scorers.py --convert {o}/scores.npz --out {o}/scores.npz",
    "scores among themselves": (
        "scorers.py --convert {o}/corpus/train/scores --out {o}/corpus/train/scores/x.npz"
    ),
    "a bank as a corpus": "soundscapes.py --bank {o}/bank --out {o}/bank",
    "a timeline as a corpus": (
        "soundscapes.py --train-timeline {o}/table/events/A.tsv --out {o}/table/events/A.tsv"
    ),
}


@pytest.mark.parametrize("name", OWN_INPUTS)
def test_an_input_is_no_output(name, call, workspace, tmp_path):
    for folder in ("bank", "corpus", "cache", "run", "table"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    shutil.copy(workspace / "scores.npz", tmp_path)
    before = everything(tmp_path)
    done = call(OWN_INPUTS[name], tmp_path)
    if name != "scores over themselves":  # which says that there is nothing to do
        assert str(tmp_path) in done.error
    assert everything(tmp_path) == before


# ---------------------------------------------------------------------------- two at once

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from core.files import _held
with _held(Path(sys.argv[2]), Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(1000)
"""
LOCKS = {  # of the folders that are replaced whole the lock lies beside them
    "soundscapes": ".corpus.lock",
    "to tsv": ".s.lock",
    "preprocess": "cache/.train.lock",
    "simulated cache": "cache/.train.lock",
    "mix": ".noisy.lock",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if task.slow else name
        for name, task in TASKS.items()
        if not task.writes.endswith((".tsv", ".npz"))
    ],
)
def test_two_writers(name, call, workspace, tmp_path):
    """The second one is told who the first one is, and changes nothing."""
    task = TASKS[name]
    prepared(task, workspace, tmp_path)
    path = tmp_path / LOCKS.get(name, f"{task.writes}/.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(ROOT), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            before = everything(tmp_path)
            assert f"process {other.pid} on" in call(task.line, tmp_path, *task.again.split()).error
            found = everything(tmp_path)
            assert {n: found[n] for n in before} == before
            new = set(found) - set(before) - {"events.tsv"}  # of which nobody else writes any
            assert new <= {f"{task.writes}/.threshold-dqn"}
        finally:
            other.kill()
    if name not in ("scorers", "soundscapes"):  # the lock ended with it
        assert call(task.line, tmp_path, *task.again.split()).code == 0


def started(line: str, workspace: Path, out: Path) -> subprocess.Popen:
    """A command as a process of its own."""
    script, *flags = shlex.split(line.format(w=workspace, o=out))
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *flags],
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preprocess", "soundscapes", "scorers", "DQN", "compare"])
def test_two_real_processes_at_once(name, workspace, tmp_path):
    """One of them does it all, or one after the other; no third way."""
    task = TASKS[name]
    for turn in range(3):
        out = tmp_path / str(turn)
        out.mkdir()
        prepared(task, workspace, out)
        both = [started(task.line, workspace, out) for _ in range(2)]
        ended = [(process.communicate(), process.returncode) for process in both]
        assert 0 in [code for _, code in ended], ended
        for (_, err), code in ended:
            if code:
                assert code == 2 and "Traceback" not in err
                assert re.search(r"process \d+ on|already holds a run|there already", err), err
        assert not leftovers(out)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--resume", "--overwrite", ""])
def test_a_live_run_is_left_alone(flag, call, workspace, tmp_path):
    line = f"{RUN} --passes 200 --run {{o}}/run"
    with started(line, workspace, tmp_path) as run:
        try:
            while not (tmp_path / "run" / "last.pt").exists():
                assert run.poll() is None, run.communicate()
            assert f"process {run.pid} on" in call(line, tmp_path, *flag.split()).error
            for other in ("evaluate in the run", "figures in the run"):
                for file in ("best.pt", "results.json"):
                    shutil.copy(workspace / "run" / file, tmp_path / "run")
                assert f"process {run.pid} on" in call(TASKS[other].line, tmp_path).error
        finally:
            run.kill()
    assert call(TASKS["evaluate in the run"].line, tmp_path).code == 0  # the lock ended with it


# ---------------------------------------------------------------------------- interrupted


DRAW = "visualize.py --run {o}/run --cache {w}/cache --html"


def test_an_interrupted_evaluation_is_not_believed(call, workspace, tmp_path, monkeypatch):
    """Stopped before any of its files takes its place: old and new are never drawn together."""
    line, run, replace = TASKS["evaluate in the run"].line, tmp_path / "run", Path.replace
    renamed: list[str] = []

    def spy(self: Path, target: Path) -> Path:
        renamed.append(Path(target).name)
        if len(renamed) == stop:
            raise KeyboardInterrupt
        return replace(self, target)

    def evaluated() -> dict[str, bytes | None]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(workspace / "run", run)
        renamed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", spy)
            assert call(line, tmp_path).code == (0 if stop is None else 130)
        return everything(run)

    stop, before = None, everything(workspace / "run")
    evaluated()
    places = {name: place for place, name in enumerate(renamed, 1)}
    assert {"decisions.npz", "events.tsv", "onsets.tsv", "results.json"} <= set(places)
    for name, place in places.items():
        stop = place
        found = evaluated()
        if any(found.get(name) != before[name] for name in ("decisions.npz", "results.json")):
            assert "evaluate.py" in call(DRAW, tmp_path).error
        else:
            assert name.startswith("."), name  # only the marker was to be written


def test_decisions_of_another_evaluation_are_not_drawn(call, workspace, tmp_path):
    shutil.copytree(workspace / "run", tmp_path / "run")
    with np.load(tmp_path / "run" / "decisions.npz") as stored:
        arrays = dict(stored)
    arrays["t_adj"] = np.clip(arrays["t_adj"] + 0.01, 0, 1).astype(np.float32)
    np.savez(tmp_path / "run" / "decisions.npz", **arrays)
    assert "decisions.npz" in call(DRAW, tmp_path).error
