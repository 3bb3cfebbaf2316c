"""Yardsticks to hold a policy against: simple rules, tuned on the training cache only.

Shapes: N frames of all pairs, P pairs, G thresholds of the grid
Next:   evaluate.py

Every rule is tuned for one operating point, the mean over pairs of the frame F1, on one grid.
"""

from typing import NamedTuple

import numpy as np

from bandit import decide, shift
from config import Bandit
from metrics import Counts, count_pairs, mean_over_pairs, scores_of
from preprocess import Cache

GRID = np.arange(1, 100, dtype=np.float32) / 100  # thresholds on signals that run from 0 to 1
TUNED_ON = ("d_adj", "prob")


class Yardstick(NamedTuple):
    """A rule's decisions on the evaluated cache, (N,) bool, and how it was set."""

    name: str
    setting: str
    pred: np.ndarray


def pair_of_frame(cache: Cache) -> np.ndarray:
    """(N,) index of the pair that each frame belongs to."""
    return np.repeat(np.arange(len(cache.pairs)), np.diff(cache.offsets))


def class_of_pair(cache: Cache) -> np.ndarray:
    """(P,) label of each pair."""
    return np.array([pair.event_label for pair in cache.pairs])


def f1_over_grid(cache: Cache, score: np.ndarray) -> np.ndarray:
    """F1 of `score > t` for each pair and threshold, (P, G), all thresholds in one pass.

    A frame is on for the first k thresholds, k = how many lie strictly below its score.
    """
    num_pairs, size = len(cache.pairs), len(GRID) + 1
    below = np.searchsorted(GRID, score, side="left")  # (N,) 0..G
    cell = pair_of_frame(cache) * size + below

    def on(chosen: np.ndarray) -> np.ndarray:
        counts = np.bincount(cell[chosen], minlength=num_pairs * size).reshape(num_pairs, size)
        return counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # (P, G) frames on at each threshold

    tp, fp = on(cache.label), on(~cache.label)
    positives = np.add.reduceat(cache.label.astype(np.int64), cache.offsets[:-1])[:, None]
    frames = np.diff(cache.offsets)[:, None]
    fn = positives - tp
    return scores_of(Counts(tp, fp, fn, frames - tp - fp - fn))["f1"]


def tuned_thresholds(train: Cache, score_name: str) -> tuple[float, dict[str, float]]:
    """Best single threshold and best threshold of each class on the training cache."""
    f1 = f1_over_grid(train, train.signals[score_name])
    labels = class_of_pair(train)
    classes = {
        name: float(GRID[f1[labels == name].mean(0).argmax()]) for name in sorted(set(labels))
    }
    return float(GRID[f1.mean(0).argmax()]), classes


def shifted(cache: Cache, delta: float) -> np.ndarray:
    """Decisions (N,) with the base threshold shifted by one constant everywhere."""
    return decide(cache.signals["prob"], shift(cache.signals["t_base"], delta))


def best_constant_action(train: Cache, bandit: Bandit) -> float:
    """The one threshold shift that is best for all frames of the training cache."""

    def f1(delta: float) -> float:
        pred = shifted(train, delta)
        return mean_over_pairs(count_pairs(pred, train.label, train.offsets))["f1"]

    return max(bandit.deltas, key=f1)


def best_possible(cache: Cache, bandit: Bandit) -> np.ndarray:
    """Decisions (N,) of the best action per frame: the ceiling of any policy with these actions."""
    can_be_on, can_be_off = shifted(cache, -bandit.max_delta), ~shifted(cache, bandit.max_delta)
    return np.where(cache.label, can_be_on, ~can_be_off)


def yardsticks(cache: Cache, train: Cache | None, bandit: Bandit) -> list[Yardstick]:
    """All rules on the evaluated cache; without a training cache only those that need no tuning."""
    signals, labels = cache.signals, class_of_pair(cache)
    rows = [Yardstick("all on", "", np.ones(len(cache.label), bool))]
    fixed = ("d_raw", *TUNED_ON)
    rows += [Yardstick(f"fixed 0.5 on {name}", "", signals[name] > 0.5) for name in fixed]
    if train is not None:
        for name in TUNED_ON:
            single, by_class = tuned_thresholds(train, name)
            rows.append(
                Yardstick(
                    f"best single threshold on {name}",
                    f"t = {single:.2f}",
                    signals[name] > np.float32(single),
                )
            )
            # A class that never occurs in training falls back on the single threshold.
            per_pair = np.array([by_class.get(label, single) for label in labels], np.float32)
            setting = ", ".join(f"{label} {value:.2f}" for label, value in by_class.items())
            pred = signals[name] > per_pair[pair_of_frame(cache)]
            rows.append(Yardstick(f"best per-class threshold on {name}", setting, pred))
        delta = best_constant_action(train, bandit)
        rows.append(
            Yardstick("best constant action", f"{delta:+.2f} everywhere", shifted(cache, delta))
        )
    ceiling = f"labels known, within ±{bandit.max_delta:g}"
    rows.append(Yardstick("best action per frame (ceiling)", ceiling, best_possible(cache, bandit)))
    return rows
