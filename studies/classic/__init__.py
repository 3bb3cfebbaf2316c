"""Classic reinforcement learning: `python -m studies.classic --help`, README.md."""
