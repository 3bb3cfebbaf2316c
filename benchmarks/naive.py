"""The straightforward version: one pair, one frame at a time, written from the specification.

Slow and obvious on purpose: the reference of the equality tests and the yardstick of
benchmarks/speed.py, for nothing else. It shares no code with the suite but the network's forward
pass.
"""

import random
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch


def state_of(signals: dict, frame: int, channels: tuple[str, ...], context: int) -> torch.Tensor:
    """Window of every channel around `frame`, edge frames repeated -> (1, C, W)."""
    last = len(signals["prob"]) - 1
    rows = []
    for name in channels:
        window = range(frame - context, frame + context + 1)
        rows.append([float(signals[name][min(max(i, 0), last)]) for i in window])
    return torch.tensor([rows], dtype=torch.float32)


def reward_of(right_before: bool, right_after: bool) -> float:
    """The slides' table."""
    if right_before:
        return 0.2 if right_after else -1.0
    return 1.0 if right_after else -0.2


def walk(
    pair: dict, choose, channels: tuple[str, ...], deltas: list[float], reading: str
) -> Iterator[tuple]:
    """Walk through a pair; `choose(state)` gives an action index.

    Yields (state, frame, action, reward, stored before?, stored after?, decision) of each frame.
    """
    signals = {name: np.array(pair[name], dtype=np.float32) for name in pair}
    label = pair["label"]
    context = 10
    for frame in range(1 if reading == "sequential" else 0, len(label)):
        state = state_of(signals, frame, channels, context)
        action = choose(state)
        prob, base = signals["prob"][frame], pair["t_base"][frame]
        threshold = min(max(np.float32(base + np.float32(deltas[action])), np.float32(0)), 1)
        before, after = bool(prob > base), bool(prob > threshold)
        reward = reward_of(before == label[frame], after == label[frame])
        # 1e-6: rounding of float32, so that a distance of exactly 0.2 counts
        near_before = abs(float(prob) - float(base)) <= 0.2 + 1e-6
        near_after = abs(float(prob) - float(threshold)) <= 0.2 + 1e-6
        yield state, frame, action, reward, near_before, near_after, after
        if reading == "sequential":  # what was decided is shown to the frames on the right
            signals["t_base"][frame] = threshold
            signals["binary"][frame] = float(after)


def train(
    network: torch.nn.Module,
    episodes: Iterator[tuple[dict, float]],
    channels: tuple[str, ...],
    deltas: list[float],
    reading: str,
    start: int = 2_000,
    seed: int = 0,
) -> Iterator[int]:
    """Train on episodes (pair, epsilon) as the specification says; yields the gradient steps made
    after every frame: a deque of tensors, one step of 32 for every 32 frames visited."""
    rng, memory, best = random.Random(seed), deque(maxlen=50_000), greedy(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    visited = steps = 0
    for pair, epsilon in episodes:

        def choose(state: torch.Tensor, epsilon: float = epsilon) -> int:
            if rng.random() < epsilon:
                return rng.randrange(len(deltas))
            network.eval()
            return best(state)

        for state, _, action, reward, before, after, _ in walk(
            pair, choose, channels, deltas, reading
        ):
            visited += 1
            if before if reading == "independent" else after:
                memory.append((state, action, reward))
            if visited % 32 == 0 and len(memory) > start:
                states, actions, rewards = zip(*rng.sample(memory, 32), strict=True)
                network.train()
                q_values = network(torch.cat(states))
                taken = q_values[torch.arange(32), torch.tensor(actions)]
                loss = (taken - torch.tensor(rewards)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
            yield steps


def greedy(network: torch.nn.Module):
    """Best action by the network, a tie goes to the lower index; also keeps the Q-value gaps."""
    network.eval()
    gaps: list[float] = []

    def choose(state: torch.Tensor) -> int:
        with torch.no_grad():
            q_values = network(state)[0]
        top = q_values.topk(2).values
        gaps.append(float(top[0] - top[1]))
        return int(q_values.argmax())

    choose.gaps = gaps
    return choose
