"""Policies: the bandit, networks, checkpoints, training logs, how they are applied."""
