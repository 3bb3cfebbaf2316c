"""What numbers were made with: the suite, its packages, the processor."""

import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

VERSION = "1.1.0"


def processor() -> str:
    """What decides how sums are rounded: the processor, and the instructions that torch uses on it.

    The same seed gives the same numbers on one kind only.
    """
    name = platform.processor() or platform.machine()
    with suppress(OSError, KeyError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        about = {key.strip(): text.strip() for key, _, text in (x.partition(":") for x in lines)}
        name = f"{about['model name']} (family {about['cpu family']}, model {about['model']})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    """What made a checkpoint: the suite's version and commit ('unknown' outside git), torch, numpy,
    and the processor."""
    command = ["git", "-C", str(Path(__file__).parent.parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "suite": VERSION,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "code": commit or "unknown",
        "processor": processor(),
    }


def version_text() -> str:
    """What `--version` prints, a line each; no commit outside git."""
    found = versions()
    rows = {"threshold-dqn": found.pop("suite"), "commit": found.pop("code")} | found
    return "\n".join(f"{name}: {text}" for name, text in rows.items() if text != "unknown")


def made_on(day: str, found: dict[str, str]) -> str:
    """One sentence of when and with which `versions` something was made."""
    names = ", ".join(f"{key} {found[key]}" for key in ("suite", "torch", "numpy"))
    return f"Made {day} on {found['processor']}; {names}."


def made_with() -> dict[str, Any]:
    """What is kept beside results and weights: `versions`, and the kernels that torch has."""
    return {"versions": versions(), "kernels": torch.__config__.show()}
