"""The straightforward version: one pair, one frame at a time, written from the specification.

Slow and obvious on purpose: the reference of the equality tests, for nothing else. It shares no
code with the suite but the network's forward pass.
"""

import numpy as np
import torch

METRICS = ("accuracy", "iou", "f1")


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


def play(pair: dict, choose, channels: tuple[str, ...], deltas: list[float], reading: str) -> list:
    """Walk through a pair; `choose(state)` gives an action index.

    Returns (frame, action, reward, stored before?, stored after?, decision) of each visited frame.
    """
    signals = {name: np.array(pair[name], dtype=np.float32) for name in pair}
    label = pair["label"]
    context = 10
    steps = []
    for frame in range(1 if reading == "sequential" else 0, len(label)):
        action = choose(state_of(signals, frame, channels, context))
        prob, base = signals["prob"][frame], pair["t_base"][frame]
        threshold = min(max(np.float32(base + np.float32(deltas[action])), np.float32(0)), 1)
        before, after = bool(prob > base), bool(prob > threshold)
        reward = reward_of(before == label[frame], after == label[frame])
        # 1e-6: rounding of float32, so that a distance of exactly 0.2 counts
        near_before = abs(float(prob) - float(base)) <= 0.2 + 1e-6
        near_after = abs(float(prob) - float(threshold)) <= 0.2 + 1e-6
        steps.append((frame, action, reward, near_before, near_after, after))
        if reading == "sequential":  # what was decided is shown to the frames on the right
            signals["t_base"][frame] = threshold
            signals["binary"][frame] = float(after)
    return steps


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


def slow_mean(cache, pred):
    """Mean over pairs of accuracy, IoU, F1, frame by frame."""
    sums = dict.fromkeys(METRICS, 0.0)
    for index in range(len(cache.pairs)):
        cells = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
        for i in range(cache.offsets[index], cache.offsets[index + 1]):
            right = "t" if pred[i] == cache.label[i] else "f"
            cells[right + ("p" if pred[i] else "n")] += 1
        union = cells["tp"] + cells["fp"] + cells["fn"]
        sums["accuracy"] += (cells["tp"] + cells["tn"]) / (union + cells["tn"])
        sums["iou"] += cells["tp"] / union if union else 1
        sums["f1"] += 2 * cells["tp"] / (union + cells["tp"]) if union else 1
    return {name: value / len(cache.pairs) for name, value in sums.items()}


def moved(cache, i, delta):
    """Decision of frame i with its base threshold moved, in float32 as on every device."""
    threshold = cache.signals["t_base"][i] + np.float32(delta)
    return bool(cache.signals["prob"][i] > min(max(threshold, np.float32(0)), np.float32(1)))
