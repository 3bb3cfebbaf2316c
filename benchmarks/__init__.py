"""Speed, memory and structure of the suite, measured; `make bench`."""

import sys

from core.command import space_bars

space_bars(sys.argv[:1] == ["-m"])
