"""The program `python -m studies.active_learning`; its commands are in commands.py."""

from core.command import run_main
from studies.active_learning.commands import main

if __name__ == "__main__":
    run_main(main)
