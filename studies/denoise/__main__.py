"""The program `python -m studies.denoise`; it imports torch, which takes seconds, last."""

from core.command import needed, run_script
from studies.denoise.settings import COMMANDS

if __name__ == "__main__":
    run_script(COMMANDS, lambda cfg: needed("studies.denoise.commands", "this study").main(cfg))
