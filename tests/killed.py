"""Run a script that kills itself at a chosen moment: what SIGKILL from outside does, but seeded.

Run:    python tests/killed.py COUNT DELAY SCRIPT FLAGS ..

The moment is DELAY seconds after the COUNT-th time that the process is about to open a file for
writing, to rename, to delete or to make something: that is where a file or folder is half done, on
a busy machine too. With COUNT 0 the script runs to its end and these times are counted into the
file named by KILLED_COUNT.
"""

import atexit
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile")


def die(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(at: int, delay: float) -> None:
    """Count the moments of this process; die at one of them."""
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
    if at == 0:
        counts = Path(os.environ["KILLED_COUNT"])
        atexit.register(lambda: counts.write_text(str(seen)))


if __name__ == "__main__":
    moment, delay, script, *flags = sys.argv[1:]
    sys.argv = [script, *flags]
    sys.path[0] = str(Path(script).resolve().parent)
    watch(int(moment), float(delay))
    runpy.run_path(script, run_name="__main__")
