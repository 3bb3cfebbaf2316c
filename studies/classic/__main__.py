"""The program `python -m studies.classic`; it imports torch, which takes seconds, last."""

import sys

from core.command import needed, run_script
from studies.classic.settings import commands

if __name__ == "__main__":
    run_script(
        commands(sys.argv[1:]),
        lambda cfg: needed("studies.classic.commands", "this study").main(cfg),
    )
