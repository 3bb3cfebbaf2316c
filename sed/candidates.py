"""Stretches of a score that may be sound events: changes, the merging of boxes, runs above a level.

Shapes: T frames of a pair, B boxes; positions in frames, not always whole: frame t is [t, t + 1)

Change detection and merging are those of Ebbers, Germain, Wichern, Le Roux, "Sound Event Bounding
Boxes" (Interspeech 2024, arXiv 2406.04212): a step filter turns scores into changes; a box runs
from a maximum of the change to the next minimum; boxes with a shallow gap between them are merged.
The authors' code (merlresearch/sebbs, commit 0939a34) is AGPL; it was run, not read: on the 20 real
clips of its tests, 10 classes and the 18 settings of its grid, all boxes of all 3,600 scores are
the same, and confidences differ by less than one part in 10,000.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

from sed.timeline import runs_of

DIGITS = 6  # positions are rounded: the same one comes from three sums
NOISE_DIGITS = 9  # changes are rounded: sums of equal scores differ in their last bits
FLOOR = 1e-3  # added to both levels before their ratio is taken, as the authors' results show


class MergedBoxes(NamedTuple):
    """Boxes of one pair, by onset: positions and mean score, each (B,)."""

    begin: np.ndarray
    end: np.ndarray
    confidence: np.ndarray


def running_sum(x: np.ndarray) -> np.ndarray:
    """(T,) -> (T + 1,): sum of what lies before each position."""
    return np.concatenate(([0], np.cumsum(x, dtype=np.float64)))


def sum_before(total: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Running sum (T + 1,) at any positions: a part of a frame counts as that part."""
    return np.interp(at, np.arange(len(total)), total)


def first_frame(position: np.ndarray) -> np.ndarray:
    """The first frame whose centre is not before a position: the frame-centre rule of labels."""
    return np.ceil(position - 0.5).astype(np.int64)


def find_changes(score: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Score (T,) -> begin and end (B,) of the boxes before merging.

    The change at t is the mean of the score over `half` frames from t on minus that over `half`
    frames before it; scores outside the clip are 0, so that a sound may begin before the clip and
    end after it. It is linear between places where t, t + half or t - half is a frame's edge, rises
    from 0 before the clip and ends with 0 after it, so that maxima and minima alternate, a maximum
    first. On a plateau of the change an onset is its last position and an offset its first, which
    is exact for a sound shorter than half the filter.
    """
    total, edges = running_sum(score), np.arange(len(score) + 1)
    at = np.concatenate((edges, edges - half, edges + half)).round(DIGITS)
    at = np.unique(at[(at >= 0) & (at <= len(score))])
    before, here, after = (sum_before(total, at + x) for x in (-half, 0, half))
    change = np.concatenate(([0], ((before - 2 * here + after) / half).round(NOISE_DIGITS), [0]))
    first = np.concatenate(([0], np.flatnonzero(np.diff(change)) + 1))  # of each run of equals
    steps = np.sign(np.diff(change[first]))
    run = np.arange(1, len(first) - 1)
    highest, lowest = (
        run[(steps[:-1] > 0) & (steps[1:] < 0)],
        run[(steps[:-1] < 0) & (steps[1:] > 0)],
    )
    return at[first[highest + 1] - 2], at[first[lowest] - 1]


def over_spans(extreme: np.ufunc, score: np.ndarray, begin: np.ndarray, end: np.ndarray):
    """Maximum or minimum of a score (T,) over the frames that each of some spans (B,) touches."""
    bounds = np.stack([np.floor(begin), np.ceil(end)], axis=1).astype(np.int64).ravel()
    return extreme.reduceat(np.append(score, 0), bounds)[::2] if len(bounds) else np.zeros(0)


def merge(
    score: np.ndarray, begin: np.ndarray, end: np.ndarray, settings: Iterable[tuple[str, float]]
) -> list[MergedBoxes]:
    """Boxes (B,) of a score (T,) with those merged that have a shallow gap between them, for each
    setting `(by, limit)`.

    A gap is shallow where the higher maximum of its two boxes is no more than `limit` above the
    gap's minimum: as a `difference`, or as a `ratio`. All gaps are judged at once, by the boxes as
    they were found. The confidence of a box is the mean of the score over all of it.
    """
    highest = over_spans(np.maximum, score, begin, end)
    lowest = over_spans(np.minimum, score, end[:-1], begin[1:])
    side = np.maximum(highest[:-1], highest[1:])
    difference, ratio = side - lowest, (side + FLOOR) / (lowest + FLOOR)
    total, some, found = running_sum(score), np.ones(min(len(begin), 1), bool), []
    before_begin, before_end = sum_before(total, begin), sum_before(total, end)
    for by, limit in settings:
        deep = (difference if by == "difference" else ratio) > limit
        first, last = np.append(some, deep), np.append(deep, some)
        inside, length = before_end[last] - before_begin[first], end[last] - begin[first]
        found.append(MergedBoxes(begin[first], end[last], inside / length))
    return found


# ---------------------------------------------------------------------------- candidates

FILTERS_S = (0.32, 0.64)
MERGING = (("difference", 0.1), ("difference", 0.2), ("difference", 0.35), ("ratio", 2.0))
MERGING += (("ratio", 4.0),)
LEVELS = (0.08, 0.15, 0.25, 0.4, 0.55, 0.7)  # above which a run is a candidate
MEDIAN_S = 0.3  # runs of the posterior as it is, and after a median filter
GAP_S = 0.15  # shorter gaps between runs are closed
EDGE = 0.05  # least probability of an onset or offset that boxes are made of
MOST_EDGES = 6  # the surest onsets and offsets of a pair, which all combine
MOST_PAIRED = 15  # of their combinations, the fullest
LEAST_PAIRED = 0.15  # mean posterior inside such a box
LEAST_MEAN = 0.03  # and inside any
SHORTEST = 2  # frames of a box between a paired onset and offset


def peaks(x: np.ndarray, least: float) -> np.ndarray:
    """Where (T,) is highest around and above `least`; of equals the last."""
    wide = np.concatenate(([-np.inf], x, [-np.inf]))
    return np.flatnonzero((x >= wide[:-2]) & (x > wide[2:]) & (x > least))


def paired(
    posterior: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes between probable onsets and offsets (T,), the fullest of all combinations.

    The clip's own ends count where the posterior there is not low.
    """
    count = len(posterior)
    first, last = peaks(begins, EDGE), peaks(ends, EDGE) + 1
    first = first[np.argsort(-begins[first], kind="stable")][:MOST_EDGES]
    last = last[np.argsort(-ends[last - 1], kind="stable")][:MOST_EDGES]
    first = np.unique(np.append(first, 0) if posterior[0] > EDGE else first)
    last = np.unique(np.append(last, count) if posterior[-1] > EDGE else last)
    begin, end = (each.ravel() for each in np.meshgrid(first, last, indexing="ij"))
    some = end - begin >= SHORTEST
    begin, end = begin[some], end[some]
    total = running_sum(posterior)
    mean = (total[end] - total[begin]) / (end - begin)
    best = np.argsort(-mean, kind="stable")[:MOST_PAIRED]
    best = best[mean[best] > LEAST_PAIRED]
    return begin[best], end[best]


def close_gaps(begin: np.ndarray, end: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs with gaps of up to so many frames between them made into one."""
    apart = begin[1:] - end[:-1] > gap
    some = np.ones(min(len(begin), 1), bool)
    return begin[np.append(some, apart)], end[np.append(apart, some)]


def propose(
    posterior: np.ndarray, begins: np.ndarray, ends: np.ndarray, frame_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior and probabilities of onset and offset (T,) -> begin and end (B,) in whole frames of
    the boxes that may be events, by begin, and how many ways each was found.

    Ways: change detection with several filters and mergings, runs above several levels, pairs of
    probable onsets and offsets. Merging, splitting and shifting an event are choices among them.
    """
    found = [paired(posterior, begins, ends)]
    for filter_s in FILTERS_S:
        changes = find_changes(posterior, filter_s / 2 / frame_s)
        found += [boxes[:2] for boxes in merge(posterior, *changes, MERGING)]
    size, gap = 2 * max(0, round((MEDIAN_S / frame_s - 1) / 2)) + 1, round(GAP_S / frame_s)
    for score in (posterior, median_filter(posterior, size)):
        found += [close_gaps(*runs_of(score > level), gap) for level in LEVELS]
    begin, end = (first_frame(np.concatenate(side)) for side in zip(*found, strict=True))
    count = len(posterior) + 1
    boxes, ways = np.unique(begin * count + end, return_counts=True)
    begin, end = boxes // count, boxes % count
    total = running_sum(posterior)
    full = (end > begin) & (total[end] - total[begin] > LEAST_MEAN * (end - begin))
    return begin[full], end[full], ways[full]
