"""Shared by the tests: import path, quiet libraries, real data where it is, scripts as programs."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from hypothesis import settings

# Read when numpy, torch and matplotlib are first imported, which happens after this file; started
# scripts inherit them. The tests run on two processes: a second thread each only slows them down.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

ROOT = Path(__file__).resolve().parent.parent
# The suite, and what tests share: a folder of tests is one wing of it.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.path += [str(path) for path in sorted((ROOT / "tests").iterdir()) if path.is_dir()]

# Deterministic, and no deadline: the machine may be busy, an input is not wrong because it is slow.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real recordings, labels and scores; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SED_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set SED_SHARED_DATA to the folder that holds it")
    return folder.resolve()


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """`run_script("DQN.py", "--preset", "demo", cwd=tmp_path)` -> finished process, text output."""

    def run(
        script: str, *args: object, cwd: Path, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / script), *map(str, args)]
        return subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session", autouse=True)
def one_worker_is_a_thread() -> Iterator[None]:
    """`scorers.py --workers 1` starts no process, which would import torch; two are two."""
    from scores import crnn

    start_pool = crnn.process_pool

    def pool(workers: int, start: Callable[[], None]) -> Executor:
        one = workers == 1
        return ThreadPoolExecutor(1, initializer=start) if one else start_pool(workers, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crnn, "process_pool", pool)
        yield


# Of torch what the first optimizer imports, too.
PRELOADED = ["torch._dynamo", "detect", "DQN", "evaluate", "preprocess", "test_ranks"]


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """`fork_server.Process(target=..)`: a process that has imported torch and the suite already,
    which takes an interpreter of its own two seconds. All tests share the one server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # it finds modules by PYTHONPATH only
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


DISK = 32 << 20  # bytes of the small file system


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of its own; the test is skipped where it cannot be had."""
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("a file system of its own needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def fill_disk(disk) -> Callable[[int], None]:
    """`fill_disk(n)` leaves n bytes of `disk`; without its file `ballast` there is room again."""

    def fill(free: int) -> None:
        left = os.statvfs(disk)
        size = left.f_bavail * left.f_frsize - free
        with open(disk / "ballast", "wb") as stream:
            if size > 0:
                os.posix_fallocate(stream.fileno(), 0, size)

    return fill


# Files of ten seconds and more, the longest first.
LONGEST = ["report", "denoise", "scripts", "kill", "dqn", "writers", "supervised", "platforms"]
LONGEST += ["event_policy", "plan", "soundscapes", "scorers", "fuzz", "vad", "crossval", "pooled"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that processes end with short ones, at about the same time."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
