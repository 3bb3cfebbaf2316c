"""Choosing denoisers by reinforcement learning: `python -m studies.denoise --help`, README.md."""
