"""The parts of a deep Q-learner that know nothing of sound: the replay ring.

Run:    not a script; DQN.py and the studies import it
Reads:  nothing
Writes: nothing
Shapes: n rows of a ring
Next:   DQN.py
"""

import numpy as np
import torch

Columns = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> (shape of one row, dtype)


class Replay:
    """Ring of the newest transitions, one preallocated tensor for each of its columns."""

    def __init__(self, capacity: int, columns: Columns, device: torch.device):
        self.capacity, self.count = capacity, 0  # count: transitions ever added
        self.device = device
        self.columns = {
            name: torch.zeros((capacity, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in columns.items()
        }

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def add(self, **rows: torch.Tensor) -> None:
        """Append n rows (n, ...) of every column, overwriting the oldest."""
        n = len(next(iter(rows.values())))
        at = torch.arange(self.count, self.count + n, device=self.device) % self.capacity
        for name, column in self.columns.items():
            column[at] = rows[name].to(column.dtype)
        self.count += n

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """n different transitions, each column (n, ...)."""
        chosen = rng.choice(len(self), n, replace=False, shuffle=False)
        at = torch.from_numpy(chosen).to(self.device)
        return {name: column[at] for name, column in self.columns.items()}
