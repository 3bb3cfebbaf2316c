"""Processes: how many, who lives, in which order results come, and that workers end with us."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any


def num_cores() -> int:
    """Cores that this process may run on; only Linux knows of fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def started_together() -> int:
    """Processes that torchrun started on this machine, this one among them; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def num_workers(workers: int | None) -> int:
    """Processes to use: the given number, else one a core, shared with the others that torchrun
    started on this machine."""
    return workers or max(1, num_cores() // started_together())


def start_of(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None: no such process.

    Pid and start together are never used twice, which the pid alone is (proc(5), field 22).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # Z: dead, not yet waited for


ENDS_WITH_PARENT = "ENDS_WITH_PARENT"  # set for a script that another one starts; see `run_main`
GRACE_S = 30.0  # for a training to save, as torchrun grants it


def end_with(parent: int, save: bool = False) -> None:
    """From now on this process ends with process `parent`, which started it: kill -9 included.

    A thread looks twice a second who the parent is now. With `save` it plays SIGTERM first, which
    a training answers by writing its checkpoint.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if save:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(parent: int, initializer: Callable[[], None] | None) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if initializer:
        initializer()


def end_children() -> None:
    """Stop the worker processes of this one, and wait until they have."""
    for process in active_children():
        process.terminate()
        process.join()


@contextmanager
def process_pool(
    workers: int, initializer: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Spawned worker processes that end with the parent: an error, Ctrl-C or kill -9 stops them.

    Forking after threads were started can deadlock, so they are spawned.
    """
    start = partial(_start_worker, os.getpid(), initializer)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        end_children()  # they may be writing where the caller cleans up next
        raise
    pool.shutdown()


WAITING = 4  # tasks a core that are handed to a pool before their turn


def in_order(pool: Executor, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """`pool.map`, but tasks are made and results held a few at a time, however many there are."""
    waiting: deque[Future] = deque()
    for task in tasks:
        if len(waiting) == WAITING * num_cores():
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, task))
    while waiting:
        yield waiting.popleft().result()
