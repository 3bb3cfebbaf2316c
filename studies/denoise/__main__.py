"""The program `python -m studies.denoise`; its commands are in commands.py.

They are imported once the command line is parsed: torch takes seconds.
"""

from core.command import needed, program, run_script
from studies.denoise.settings import COMMANDS

if __name__ == "__main__":
    run_script(COMMANDS, lambda cfg: needed("studies.denoise.commands", program()).main(cfg))
