"""Frame metrics: per pair, pooled, per class. One definition for tables, tuning and `best.pt`.

Shapes: N frames of all pairs together, P pairs, `offsets` (P + 1,)

Accuracy = (TP + TN) / all, IoU = TP / (TP + FP + FN), F1 = 2 TP / (2 TP + FP + FN) (slides, page
"evaluation metrics"). Where truth and prediction are both empty, IoU and F1 are 1: nothing was
there and nothing was said. No value is ever NaN.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from sed.caches import Cache

NAMES = ("accuracy", "iou", "f1")


class Counts(NamedTuple):
    """Confusion counts; arrays of one shape, or numbers."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray


def count_pairs(pred: np.ndarray, label: np.ndarray, offsets: np.ndarray) -> Counts:
    """Decisions and truth (N,) bool -> counts (P,) of each pair. Every pair has a frame."""
    cells = (pred & label, pred & ~label, ~pred & label, ~pred & ~label)
    starts = offsets[:-1]
    return Counts(*(np.add.reduceat(cell.astype(np.int64), starts) for cell in cells))


def counts_in(cache: Cache, decided: Iterable[np.ndarray]) -> Counts:
    """Counts (P,) of each pair of a cache, of the decisions about each of its `parts`."""
    found = [
        count_pairs(pred, part.label, part.offsets)
        for part, pred in zip(cache.parts(), decided, strict=True)
    ]
    return Counts(*map(np.concatenate, zip(*found, strict=True)))


def f1_score(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Counts -> F1 of the same shape."""
    total = np.asarray(2 * tp + fp + fn, dtype=np.float64)
    return np.where(total == 0, 1.0, 2 * tp / np.where(total == 0, 1, total))


def scores_of(counts: Counts) -> dict[str, np.ndarray]:
    """Counts -> accuracy, IoU, F1 of the same shape."""
    tp, fp, fn, tn = (np.asarray(cell, dtype=np.float64) for cell in counts)
    union = tp + fp + fn
    empty = union == 0
    return {
        "accuracy": (tp + tn) / (union + tn),
        "iou": np.where(empty, 1.0, tp / np.where(empty, 1, union)),
        "f1": f1_score(tp, fp, fn),
    }


def mean_over_pairs(counts: Counts) -> dict[str, float]:
    """The slides' figures: each metric per pair, then the mean over pairs."""
    return {name: float(values.mean()) for name, values in scores_of(counts).items()}


def subset(counts: Counts, chosen: np.ndarray) -> Counts:
    """Counts of some pairs, by index or mask."""
    return Counts(*(cell[chosen] for cell in counts))


def pooled(counts: Counts) -> dict[str, float]:
    """Each metric of the summed counts: long pairs weigh more."""
    total = Counts(*(cell.sum() for cell in counts))
    return {name: float(value) for name, value in scores_of(total).items()}


def per_class(counts: Counts, event_labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean over the pairs of each class; `event_labels` (P,). Adds the number of pairs."""
    table = {}
    for name in sorted(set(event_labels.tolist())):
        chosen = event_labels == name
        table[name] = {"pairs": int(chosen.sum()), **mean_over_pairs(subset(counts, chosen))}
    return table


def macro_average(f1: np.ndarray, some: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean F1 of the classes along an axis; `some`: which have a true or a false frame or event.

    A class without any has no F1 and is left out; without any class the mean is 1: nothing was
    there and nothing was said.
    """
    count = some.sum(axis)
    mean = np.where(some, f1, 0.0).sum(axis) / np.maximum(count, 1)
    return np.where(count > 0, mean, 1.0)


def over_all_pairs(
    counts: Counts, event_labels: np.ndarray, present: np.ndarray
) -> dict[str, float]:
    """F1 over every class of every clip, and how often an absent class is heard.

    `counts` (P,), `event_labels` (P,) and `present` (P,) bool of a cache of all pairs. `macro_f1`:
    per class over its frames in all clips, then the mean over classes; a class without a true and
    without a false frame has no F1 and is left out. `micro_f1`: over all frames at once.
    `false_alarms`: share of the absent pairs with any frame on. Accuracy would flatter: it is high
    where nothing is ever on.
    """
    _, number = np.unique(event_labels, return_inverse=True)
    classes = np.stack([np.bincount(number, cell) for cell in counts[:3]])  # (3, K)
    absent = ~present
    return {
        "macro_f1": float(macro_average(f1_score(*classes), classes.sum(0) > 0)),
        "micro_f1": pooled(counts)["f1"],
        "false_alarms": float((counts.fp[absent] > 0).mean()) if absent.any() else 0.0,
    }


def mean_f1(cache: Cache, pred: np.ndarray, pairs: np.ndarray) -> float:
    """Mean-pair F1 of decisions (N,) over some pairs: what selects best.pt."""
    counts = count_pairs(pred, cache.label, cache.offsets)
    return mean_over_pairs(subset(counts, pairs))["f1"]


DRAWS, SHARE = 1_000, 0.95  # bootstrap: draws, and the share of them inside the interval


BLOCK = 1 << 24  # clips times draws that are unpacked at once, 8 bytes each


def blocks_of(draws: int, num_clips: int) -> Iterator[slice]:
    """All draws, so many at once as `BLOCK` allows."""
    step = max(1, BLOCK // num_clips)
    return (slice(first, min(first + step, draws)) for first in range(0, draws, step))


def bootstrap_weights(num_clips: int, seed: int = 0) -> np.ndarray:
    """(DRAWS, C) uint8, how often each clip is drawn: C clips with replacement, in every draw.

    Of many clips none is drawn 256 times: the odds are below 1 in 10^500.
    """
    rng, share = np.random.default_rng(seed), np.full(num_clips, 1 / num_clips)
    found = np.empty((DRAWS, num_clips), np.uint8)
    for some in blocks_of(DRAWS, num_clips):
        found[some] = rng.multinomial(num_clips, share, size=some.stop - some.start)
    return found


def resampled(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum over the drawn clips, weights (D, C), of values (C,) or (C, M): (D,) or (D, M)."""
    blocks = blocks_of(*weights.shape)
    return np.concatenate([weights[some].astype(np.float64) @ values for some in blocks])


def interval(draws: np.ndarray) -> np.ndarray:
    """95 % interval (2, M) of draws (D, M)."""
    return np.quantile(draws, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)


def student_mean(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of (S,) and its 95 % interval by Student's t; the ends of one value are NaN."""
    mean, half = float(values.mean()), math.nan
    if len(values) > 1:
        half = stdtrit(len(values) - 1, (1 + SHARE) / 2) * values.std(ddof=1)
        half = float(half / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def bootstrap_mean(
    values: np.ndarray, group: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the mean of (P, M) over pairs, (M,) low and high; `group` (P,) is the clip.

    Pairs of a clip share its sound, so whole clips are drawn, each as often as chance has it.
    """
    _, clip = np.unique(group, return_inverse=True)
    size = np.bincount(clip)  # (C,) pairs of each clip
    sums = np.stack([np.bincount(clip, column) for column in values.T], axis=1)  # (C, M)
    drawn = bootstrap_weights(len(size), seed)  # (DRAWS, C)
    means = resampled(drawn, sums) / resampled(drawn, size)[:, None]
    return tuple(interval(means))
