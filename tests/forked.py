"""Scripts as processes of `fork_server` (conftest.py), which need not import torch first."""

import os
import runpy
import sys
from pathlib import Path


def script(words: list[str], folder: Path, log: Path, **environ: str) -> None:
    """In such a process: run a script as `__main__` in a folder; `log` gets all that it says."""
    with open(log, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environ)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
