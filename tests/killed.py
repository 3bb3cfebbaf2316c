"""Run a script that kills itself at a chosen moment: what SIGKILL from outside does, but seeded.

The moment is DELAY seconds after the COUNT-th time that the process is about to open a file for
writing, to rename, to delete or to make something: that is where a file or folder is half done, on
a busy machine too. With COUNT 0 the script runs to its end and these times are counted.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import forked

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile")


def die(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(at: int, delay: float) -> Callable[[], int]:
    """Count the moments of this process and die at one of them; how many there were."""
    seen = 0

    def hook(event: str, given: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = given
            if not flags & (os.O_WRONLY | os.O_RDWR) or str(path).startswith(("/dev/", "/proc/")):
                return
        elif event not in CHANGES:
            return
        seen += 1
        if seen == at:
            if delay == 0:
                die(0)
            threading.Thread(target=die, args=(delay,), daemon=True).start()

    sys.addaudithook(hook)
    return lambda: seen


def script(
    at: int, delay: float, counts: Path, words: list[str], folder: Path, log: Path, **environ: str
) -> None:
    """In a process of its own: run a script, die at a moment or write how many there were."""
    seen = watch(at, delay)
    try:
        forked.script(words, folder, log, **environ)
    finally:
        counts.write_text(str(seen()))
