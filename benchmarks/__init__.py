"""Speed, memory and structure of the suite, measured; `make bench`."""

import sys

from core.command import space_bars

if sys.argv[:1] == ["-m"]:  # `python -m` is about to run a program of ours
    space_bars()
