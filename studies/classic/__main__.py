"""The program `python -m studies.classic`; its commands are in commands.py.

They are imported once the command line is parsed: torch takes seconds.
"""

import sys

from core.command import needed, program, run_script
from studies.classic.settings import commands

if __name__ == "__main__":
    run_script(
        commands(sys.argv[1:]), lambda cfg: needed("studies.classic.commands", program()).main(cfg)
    )
