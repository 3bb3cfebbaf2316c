"""The parts of a deep Q-learner that know nothing of sound.

Shapes: n rows of a ring, B batch, A actions

Replay ring and its prioritised kin, TD target (plain, double), dueling head, target network.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

RISE = 0.3  # share of the steps over which a learning rate rises
FLOOR = 1e-6  # added to errors: no transition is forgotten
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
        return self.rows(rng.choice(len(self), n, replace=False, shuffle=False))

    def rows(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """The transitions at some places (B,) of the ring, each column (B, ...)."""
        at = torch.from_numpy(index).to(self.device)
        return {name: column[at] for name, column in self.columns.items()}


class Draw(NamedTuple):
    """A prioritised batch of B transitions."""

    rows: dict[str, torch.Tensor]  # each column (B, ...)
    index: np.ndarray  # (B,) places in the ring, for `PrioritizedReplay.update`
    weights: torch.Tensor  # (B,) importance weights of the loss, the largest is 1


class PrioritizedReplay(Replay):
    """Ring that draws transitions in proportion to how wrong the network was about them.

    Proportional variant of Schaul et al., *Prioritized Experience Replay* (2016): P(i) = p_i / sum
    p, p_i = (|error_i| + floor)^alpha, in a sum tree, so a draw and an update take log(capacity)
    steps, each for the whole batch at once. New transitions get the largest priority so far.
    """

    def __init__(self, capacity: int, columns: Columns, device: torch.device, alpha: float = 0.6):
        super().__init__(capacity, columns, device)
        self.alpha, self.highest = alpha, 1.0
        self.leaves = 1 << (capacity - 1).bit_length()
        # Node i has the children 2i and 2i + 1; the root is 1.
        self.tree = np.zeros(2 * self.leaves)

    def add(self, **rows: torch.Tensor) -> None:
        before = self.count
        super().add(**rows)
        self.set_priority(np.arange(before, self.count) % self.capacity, self.highest)

    def set_priority(self, index: np.ndarray, priority: np.ndarray | float) -> None:
        """Write p of the places `index`, then every sum above them."""
        node = index + self.leaves
        self.tree[node] = priority
        for _ in range(self.leaves.bit_length() - 1):
            node >>= 1
            self.tree[node] = self.tree[2 * node] + self.tree[2 * node + 1]

    def draw(self, n: int, rng: np.random.Generator, beta: float) -> Draw:
        """n transitions, one from each n-th of the priorities' sum; the same may come twice.

        `beta` is the exponent of the importance weights (N P(i))^-beta; 1 undoes the preference.
        """
        total = self.tree[1]
        mass = (np.arange(n) + rng.random(n)) * (total / n)
        node = np.ones(n, dtype=np.int64)
        for _ in range(self.leaves.bit_length() - 1):
            node *= 2
            left = self.tree[node]
            # Rounding must not lead to an empty leaf.
            right = (mass >= left) & (self.tree[node + 1] > 0)
            mass -= np.where(right, left, 0.0)
            node += right
        weights = (len(self) * self.tree[node] / total) ** -beta
        index = node - self.leaves
        scaled = torch.from_numpy(weights / weights.max()).float()
        return Draw(self.rows(index), index, scaled.to(self.device))

    def update(self, index: np.ndarray, errors: torch.Tensor) -> None:
        """New TD errors (B,) of drawn transitions."""
        sizes = errors.detach().abs().cpu().numpy().astype(np.float64)
        priority = (sizes + FLOOR) ** self.alpha
        self.highest = max(self.highest, float(priority.max()))
        self.set_priority(index, priority)


def anneal(start: float, end: float, share: Any) -> Any:
    """Straight line from start to end, reached at share 1 and kept; a number or an array."""
    return start + (end - start) * np.minimum(1.0, share)


def td_target(
    reward: torch.Tensor,
    terminated: torch.Tensor,
    next_q: torch.Tensor,
    gamma: float,
    next_online_q: torch.Tensor | None = None,
) -> torch.Tensor:
    """What Q(s, a) should have been, (B,): reward + gamma * value of the next state.

    next_q (B, A) is the target network's. With next_online_q (B, A) the online network chooses the
    action and the target network only rates it: double DQN (van Hasselt, Guez and Silver, 2016).
    Where `terminated` (B,) bool, nothing follows; a truncated episode goes on, so it is not here.
    """
    choice = (next_q if next_online_q is None else next_online_q).argmax(1, keepdim=True)
    return reward + gamma * next_q.gather(1, choice)[:, 0] * ~terminated


class DuelingHead(nn.Module):
    """Last layer in two streams: (..., inputs) -> Q (..., A) = value + advantage - its centre.

    The centre is the advantages' mean, or their maximum, which makes the best one 0 (Wang et al.,
    *Dueling Network Architectures*, 2016, have both).
    """

    def __init__(self, inputs: int, num_actions: int, centre: Literal["mean", "max"] = "mean"):
        super().__init__()
        self.value, self.advantage = nn.Linear(inputs, 1), nn.Linear(inputs, num_actions)
        self.centre = centre

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        advantage = self.advantage(x)
        centre = advantage.mean if self.centre == "mean" else advantage.amax
        return self.value(x) + advantage - centre(-1, keepdim=True)


def sync(target: nn.Module, online: nn.Module) -> None:
    """Copy the online network into the target network."""
    target.load_state_dict(online.state_dict())


def rate_at(share: float) -> float:
    """Learning rate of a run's `share` relative to the highest: up for `RISE` of it, then down."""
    if share < RISE:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * share / RISE)) / 2
    return (1 + math.cos(math.pi * (share - RISE) / (1 - RISE))) / 2
