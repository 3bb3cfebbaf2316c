"""The program `python -m studies.classic`; its commands are in commands.py."""

from core.command import run_main
from studies.classic.commands import main

if __name__ == "__main__":
    run_main(main)
