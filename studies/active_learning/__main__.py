"""The program `python -m studies.active_learning`; it imports torch, which takes seconds, last."""

import sys

from core.command import needed, run_script
from studies.active_learning.settings import COMMANDS, with_command

if __name__ == "__main__":
    sys.argv[1:] = with_command(sys.argv[1:])
    run_script(
        COMMANDS, lambda cfg: needed("studies.active_learning.commands", "this study").main(cfg)
    )
