"""State, action, reward and episodes of the bandit: pure functions, one definition each.

Shapes: N frames of all pairs, P pairs, B batch, C channels, W window

`decide`, `shift` and `near` take tensors and arrays alike, so that training, evaluation and the
yardsticks share them.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from config import Bandit, Learning, TrainConfig
from core.errors import InputError
from policy.qlearning import Columns, anneal
from sed.caches import Cache

Array = TypeVar("Array", torch.Tensor, np.ndarray)
# Rounding of prob - t_base in float32; keeps a distance of exactly 0.2 inside the boundary.
BOUNDARY_SLACK = 1e-6
MOST_EPISODES = 100_000_000  # their order is drawn at once
MOST_FRAMES = 2**31 - 1  # of a cache that is trained on; see `replay_columns`
CPU = torch.device("cpu")
MISS, FIX, BREAK, KEEP = range(4)  # reward cells: 2 * (base decision right) + (new decision right)


class Signals(NamedTuple):
    """Resident signals of all pairs on the device."""

    channels: torch.Tensor  # (C, N) float32, in `bandit.channels` order
    prob: torch.Tensor  # (N,)
    t_base: torch.Tensor  # (N,)
    label: torch.Tensor  # (N,) bool
    start: torch.Tensor  # (P,) int64, first frame of each pair
    end: torch.Tensor  # (P,) int64, one past the last


def resident(
    signals: dict[str, np.ndarray],
    label: np.ndarray,
    offsets: np.ndarray,
    bandit: Bandit,
    device: torch.device,
) -> Signals:
    """Signals and label (N,) of pairs back to back, bounds `offsets` (P + 1,), on the device.

    `prob` and `t_base` are rows of `channels`, not copies.
    """
    channels = np.empty((len(bandit.channels), len(label)), np.float32)
    for row, name in zip(channels, bandit.channels, strict=True):
        row[:] = signals[name]  # one by one: mapped signals are read when they are asked for
    arrays = channels, label, offsets
    channels, label, bounds = (torch.from_numpy(array).to(device) for array in arrays)
    prob, t_base = (channels[bandit.channels.index(name)] for name in ("prob", "t_base"))
    return Signals(channels, prob, t_base, label, bounds[:-1], bounds[1:])


def query_of(labels: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    """Index of each label among the classes that a policy was trained on; -1: not among them."""
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(label, -1) for label in labels], dtype=np.int64)


def to_device(cache: Cache, bandit: Bandit, device: torch.device) -> Signals:
    return resident(cache.signals, cache.label, cache.offsets, bandit, device)


def frames_of(signals: Signals, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (n,) -> the pair of each of their frames and the frames themselves, back to back."""
    start, length = signals.start[pairs], signals.end[pairs] - signals.start[pairs]
    owner = torch.repeat_interleave(pairs, length)
    first = torch.repeat_interleave(start - (length.cumsum(0) - length), length)
    return owner, first + torch.arange(len(owner), device=pairs.device)


def decide(prob: Array, threshold: Array) -> Array:
    """On where the probability is strictly above the threshold."""
    return prob > threshold


def shift(t_base: Array, delta: Array | float) -> Array:
    """New threshold: clamp(T_base + delta, 0, 1)."""
    return (t_base + delta).clip(0, 1)


@lru_cache(maxsize=8)
def delta_table(bandit: Bandit, device: torch.device) -> torch.Tensor:
    """(A,) threshold shift of each action, brought to the device once."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not train
        return torch.tensor(bandit.deltas, device=device)


def near(prob: Array, threshold: Array, width: float) -> Array:
    """|prob - threshold| <= width: the boundary (slides, "Boundary-based Learning")."""
    return abs(prob - threshold) <= width + BOUNDARY_SLACK


def make_states(
    signals: Signals,
    pair: torch.Tensor,
    frame: torch.Tensor,
    bandit: Bandit,
    left: torch.Tensor | None = None,
) -> torch.Tensor:
    """Windows around `frame` (B,), edge frames repeated -> (B, C, W).

    `left` (B, context) int64: actions taken on the frames before (sequential reading); threshold
    and decision of those frames are shown as shifted.
    """
    c = bandit.context
    reach = torch.arange(-c, c + 1, device=frame.device)
    first, last = signals.start[pair][:, None], signals.end[pair][:, None] - 1
    index = (frame[:, None] + reach).maximum(first).minimum(last)  # (B, W)
    states = signals.channels[:, index].transpose(0, 1)  # (B, C, W)
    if left is not None and c:
        t_left = shift(signals.t_base[index[:, :c]], delta_table(bandit, frame.device)[left])
        states = states.contiguous()
        states[:, bandit.channels.index("t_base"), :c] = t_left  # (B, c)
        on_left = decide(signals.prob[index[:, :c]], t_left).float()
        states[:, bandit.channels.index("binary"), :c] = on_left
    return states


def reward_cells(right_before: torch.Tensor, right_after: torch.Tensor) -> torch.Tensor:
    """Which of the four reward cells each frame falls into: MISS, FIX, BREAK, KEEP."""
    return 2 * right_before.long() + right_after.long()


class Outcome(NamedTuple):
    """What actions on n frames led to."""

    t_adj: torch.Tensor  # (n,) shifted threshold
    on: torch.Tensor  # (n,) bool, the decision under it
    cells: torch.Tensor  # (n,) int64, see `reward_cells`
    stored: torch.Tensor  # (n,) bool, whether the transition is worth keeping: near the boundary


def outcome(
    signals: Signals, frame: torch.Tensor, actions: torch.Tensor, bandit: Bandit
) -> Outcome:
    """Take `actions` (n,) on frames (n,): the one place that pays them."""
    prob, t_base, label = signals.prob[frame], signals.t_base[frame], signals.label[frame]
    t_adj = shift(t_base, delta_table(bandit, frame.device)[actions])
    on = decide(prob, t_adj)
    cells = reward_cells(decide(prob, t_base) == label, on == label)
    tested = t_base if bandit.boundary_test == "before" else t_adj
    return Outcome(t_adj, on, cells, near(prob, tested, bandit.boundary_width))


@lru_cache(maxsize=8)
def reward_table(bandit: Bandit, device: torch.device = CPU) -> torch.Tensor:
    """(4,) rewards in the order MISS, FIX, BREAK, KEEP, brought to the device once."""
    rewards = [bandit.reward_miss, bandit.reward_fix, bandit.reward_break, bandit.reward_keep]
    with torch.inference_mode(False):
        return torch.tensor(rewards, device=device)


def check_finite(finite: torch.Tensor) -> None:
    """InputError unless all Q-values were finite."""
    if not finite:
        raise InputError("Q-values are not finite: the weights are damaged or training diverged")


def diverged(what: str, flag: str = "learning.lr") -> InputError:
    """What is said of a training whose loss or answers are not finite."""
    cure = f"start anew with --overwrite and a smaller --{flag}"
    return InputError(f"{what}; last.pt holds a good state; {cure}")


def thresholds(signals: Signals, actions: torch.Tensor, bandit: Bandit) -> torch.Tensor:
    """Actions (N,) -> adjusted thresholds (N,)."""
    return shift(signals.t_base, delta_table(bandit, actions.device)[actions])


# ---------------------------------------------------------------------------- episodes, replay


def hold_out(cache: Cache, cfg: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs to train on and of those kept aside, a seeded share of whole clips."""
    names = sorted({pair.filename for pair in cache.pairs})
    order = np.random.default_rng([cfg.seed, 3]).permutation(len(names))
    share = cfg.holdout
    count = min(len(names) - 1, max(1, round(share * len(names)))) if share > 0 else 0
    aside = {names[i] for i in order[:count]}
    mask = np.array([pair.filename in aside for pair in cache.pairs])
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def planned(
    cfg: TrainConfig, usual: int, floor: int, gradient_steps: Callable[[int], int]
) -> TrainConfig:
    """The config with its number of passes: the given one, or the `usual` one of the method, or as
    many as make a `floor` of gradient steps, which so many passes make."""
    if cfg.passes is not None:
        return cfg
    passes = next(n for n in itertools.count(usual) if gradient_steps(n) >= floor)
    return replace(cfg, passes=passes)


def stored_share(signals: Signals, frame: torch.Tensor, bandit: Bandit) -> float:
    """Share of the frames (n,) whose transition is stored; of a test after acting, the mean over
    all actions, which is what exploring stores. InputError where it is none."""
    prob, t_base = signals.prob[frame], signals.t_base[frame]
    before = bandit.boundary_test == "before"
    tested = [t_base] if before else [shift(t_base, delta) for delta in bandit.deltas]
    inside = (near(prob, threshold, bandit.boundary_width) for threshold in tested)
    share = float(np.mean([each.double().mean().item() for each in inside]))
    if share == 0:
        raise InputError(
            "no training frame lies inside the boundary (--bandit.boundary-width"
            f" {bandit.boundary_width:g}), so there is nothing to learn from"
        )
    return share


def episode_order(cache: Cache, train: np.ndarray, cfg: TrainConfig) -> np.ndarray:
    """(E,) pair of each episode: all passes over the training pairs; more passes come behind.

    InputError: too many, or more frames than a transition can count.
    """
    if cache.num_frames > MOST_FRAMES:
        raise InputError(
            f"{cache.folder}: {cache.num_frames:,} frames of pairs, more than the {MOST_FRAMES:,}"
            " that replay counts; train on fewer clips"
        )
    if (count := cfg.passes * len(train)) > MOST_EPISODES:
        raise InputError(
            f"--passes {cfg.passes}: {count:,} episodes, more than the {MOST_EPISODES:,} of a run"
        )
    if cfg.learning.episode_order == "sorted":
        return np.tile(
            sorted(train, key=lambda i: cache.pairs[i][:2]), cfg.passes
        )  # by name, class
    rng = np.random.default_rng([cfg.seed, 0])
    return np.concatenate([rng.permutation(train) for _ in range(cfg.passes)])


def epsilon_at(episode: Any, num_episodes: int, learning: Learning) -> Any:
    """Exploration rate of episodes (a number or an array, from 0): linear decay, then constant."""
    decay = learning.epsilon_episodes or max(1, round(learning.epsilon_fraction * num_episodes))
    return anneal(learning.epsilon_start, learning.epsilon_end, episode / decay)


def replay_columns(context: int, sequential: bool) -> Columns:
    """A transition as indices: (pair, frame, action, reward[, left actions]), 13 bytes."""
    columns: Columns = {
        "pair": ((), torch.int32),
        "frame": ((), torch.int32),
        "action": ((), torch.int8),
        "reward": ((), torch.float32),
    }
    return columns | ({"left": ((context,), torch.int8)} if sequential else {})
