"""Programs beside the suite; each package has its README.md."""

import sys

from core.command import space_bars

if sys.argv[:1] == ["-m"]:  # `python -m` is about to run a program of ours
    space_bars()
