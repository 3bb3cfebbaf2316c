"""The straightforward version: one pair, one frame at a time, written from the specification; and
event counts by the field's library.

Slow and obvious on purpose: the reference of the equality tests and the yardstick of
benchmarks/speed.py, for nothing else. It shares no code with the suite but the network's forward
pass and what an event is.
"""

import random
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from sed.timeline import merge_events

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


def play(pair: dict, choose, channels: tuple[str, ...], deltas: list[float], reading: str) -> list:
    """`walk` to the end, without the states."""
    return [step[1:] for step in walk(pair, choose, channels, deltas, reading)]


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


# ---------------------------------------------------------------------------- event metrics


def score_tables(clips: dict, durations: dict, classes: list[str], outside: float) -> dict:
    """Events of each clip, (onset, offset, class, confidence), as score frames of sed_scores_eval:
    the highest confidence at each moment, `outside` where there is no event."""
    import pandas

    tables = {}
    for clip, duration in durations.items():
        rows = clips.get(clip, [])
        edges = np.unique([0.0, duration, *(time for row in rows for time in row[:2])])
        values = np.full((len(edges) - 1, len(classes)), outside)
        for onset, offset, label, confidence in rows:
            first, last = np.searchsorted(edges, (onset, offset))
            span = values[first:last, classes.index(label)]
            np.maximum(span, confidence, out=span)
        cells = np.column_stack([edges[:-1], edges[1:], values])
        tables[clip] = pandas.DataFrame(cells, columns=["onset", "offset", *classes])
    return tables


def library_hits(
    predicted: dict, truth: dict, durations: dict, classes: list[str]
) -> dict[str, np.ndarray]:
    """True and false positives (C, K, 2) by collar, segment and intersection, as sed_scores_eval
    counts merged events that have the score 1."""
    from sed_scores_eval import collar_based, intersection_based, segment_based

    merged = {clip: merge_events(events) for clip, events in predicted.items()}
    sure = {clip: [(*event, 1.0) for event in events] for clip, events in merged.items()}
    lengths = {**durations, "more": 1.0}  # the library wants each class in the truth: not counted
    tables = score_tables(sure, lengths, classes, 0.0)
    true = {clip: [tuple(event) for event in merge_events(truth.get(clip, []))] for clip in lengths}
    true["more"] = [(0.0, 1.0, name) for name in classes]
    collar, segment, intersection = (
        kind.intermediate_statistics.intermediate_statistics_deltas
        for kind in (collar_based, segment_based, intersection_based)
    )
    collars = {"onset_collar": 0.2, "offset_collar": 0.2, "offset_collar_rate": 0.2}
    deltas = {
        "event_f1": collar(tables, true, **collars),
        "segment_f1": segment(tables, true, lengths, segment_length=1.0),
        "intersection_f1": intersection(tables, true, dtc_threshold=0.5, gtc_threshold=0.5),
    }

    def hits(scores: np.ndarray, cells: dict) -> list[int]:
        return [int(cells[name][scores > 0.5].sum()) for name in ("tps", "fps")]

    return {
        kind: np.array([[hits(*found[clip][name]) for name in classes] for clip in durations])
        for kind, found in deltas.items()
    }


def library_psds(tables: dict, truth: dict, durations: dict) -> dict[int, tuple[float, dict]]:
    """PSDS 1 and 2 of score frames, over the classes with an event, and that of each class."""
    from sed_scores_eval import intersection_based

    true = {clip: [tuple(event) for event in merge_events(truth.get(clip, []))] for clip in tables}
    there = sorted({event[2] for events in true.values() for event in events})
    if not there:
        return {1: (0.0, {}), 2: (0.0, {})}
    tables = {clip: table[["onset", "offset", *there]] for clip, table in tables.items()}
    settings = {1: {"dtc_threshold": 0.7, "gtc_threshold": 0.7}}
    settings[2] = {"dtc_threshold": 0.1, "gtc_threshold": 0.1}
    if len(there) > 1:  # the library divides by the number of other classes
        settings[2] |= {"cttc_threshold": 0.3, "alpha_ct": 0.5}
    found = {}
    for scenario, setting in settings.items():
        criteria = {key: value for key, value in setting.items() if "threshold" in key}
        deltas = intersection_based.intermediate_statistics.intermediate_statistics_deltas(
            tables, true, **criteria
        )
        for name in there:  # without a change at any threshold the library has no curve
            if not any(len(clip[name][0]) for clip in deltas.values()):
                one = next(iter(deltas.values()))
                one[name] = (np.array([-np.inf]), {key: np.zeros(1) for key in one[name][1]})
        value, of_class, *_ = intersection_based.psds(
            None, true, durations, deltas=deltas, **setting, alpha_st=1.0, max_efpr=100.0
        )
        found[scenario] = (float(value), {name: float(of_class[name]) for name in there})
    return found
