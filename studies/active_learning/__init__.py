"""Active learning with a bandit DQN: `python -m studies.active_learning --help`, README.md."""
