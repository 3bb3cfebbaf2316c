"""Programs beside the suite; each package has its README.md."""

import sys

from core.command import space_bars

space_bars(sys.argv[:1] == ["-m"])
