"""Sound event bounding boxes by change detection (cSEBBs): scores -> events with a confidence.

Shapes: T frames of a pair, B boxes; a box spans the frames [begin, end)
Next:   opponents.py

Written after Ebbers, Germain, Wichern, Le Roux, "Sound Event Bounding Boxes" (Interspeech 2024,
arXiv 2406.04212): a step filter turns scores into changes; a box runs from a maximum of the change
to the next minimum; boxes with a shallow gap between them are merged; one threshold accepts or
rejects a box as a whole, so that it no longer moves the box's ends. The authors' code is AGPL and
was not read, so details may differ from it. The choices made here:

- scores outside the clip are 0, so that a sound may begin before the clip and end after it;
- on a plateau of the change an onset is its last position and an offset its first, which is exact
  for a sound shorter than half the filter;
- the confidence of a box and the level of a gap are means of their frames;
- a gap's depth is measured from the higher of its two boxes: from the lower one, a loud sound would
  swallow the noise around it;
- the shallowest gap is merged first, and levels are taken anew after every merge.
"""

from typing import Any, NamedTuple

import numpy as np

from preprocess import Cache
from sed.signals import filter_frames

FILTERS_S = (0.32, 0.48, 0.64)  # length of the step filter
# Boxes are merged where the higher of them is less than this above their gap, as a difference or as
# a ratio; a setting has one of the two.
MERGE = {"difference": (0.15, 0.2, 0.3), "ratio": (1.5, 2.0, 3.0)}
NOISE_DIGITS = 9  # changes are rounded: sums of equal scores differ in their last bits


class Boxes(NamedTuple):
    """Boxes of one pair, by onset: frames and mean score, each (B,)."""

    begin: np.ndarray
    end: np.ndarray
    confidence: np.ndarray


def half_filter(filter_s: float, frame_s: float) -> int:
    """Frames on each side of a change, which lies on the edge between two frames."""
    return filter_frames(filter_s, frame_s, least=2, odd=False) // 2


def running_sum(x: np.ndarray) -> np.ndarray:
    """(T,) -> (T + 1,): sum of what lies before each position."""
    return np.concatenate(([0], np.cumsum(x, dtype=np.float64)))


def find_changes(score: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Score (T,) -> first frames and end frames (B,) of the boxes before merging.

    The change at t is the mean of the `half` frames from t on minus that of the `half` before it.
    It rises from 0 before the clip and ends with 0 after it, so that maxima and minima alternate,
    a maximum first.
    """
    total = running_sum(np.pad(score, half + 1))
    at = np.arange(half, len(score) + half + 3)  # one position before the clip to one after it
    change = (total[at + half] - 2 * total[at] + total[at - half]) / half
    change = np.concatenate(([0], change.round(NOISE_DIGITS), [0]))
    first = np.concatenate(([0], np.flatnonzero(np.diff(change)) + 1))  # of each run of equals
    steps = np.sign(np.diff(change[first]))
    run = np.arange(1, len(first) - 1)
    highest, lowest = (
        run[(steps[:-1] > 0) & (steps[1:] < 0)],
        run[(steps[:-1] < 0) & (steps[1:] > 0)],
    )
    return first[highest + 1] - 1 - 2, first[lowest] - 2


def merge(
    score: np.ndarray, begin: np.ndarray, end: np.ndarray, by: str, limits: tuple[float, ...]
) -> list[Boxes]:
    """Boxes (B,) of a score (T,) after merging, for each of the rising `limits`.

    A higher limit goes on from where a lower one stopped: the order of merging does not depend on
    the limit.
    """
    total = running_sum(score).tolist()
    first, last = begin.tolist(), end.tolist()

    def level(a: int, b: int) -> float:
        return (total[b] - total[a]) / (b - a)

    def depth(i: int) -> float:
        """How much the gap after box i lies below the higher of its neighbours."""
        side = max(levels[i], levels[i + 1])
        gap = level(last[i], first[i + 1])
        if by == "difference":
            return side - gap
        return side / gap if gap > 0 else np.inf

    levels = [level(a, b) for a, b in zip(first, last, strict=True)]
    depths = [depth(i) for i in range(len(first) - 1)]
    found = []
    for limit in limits:
        while depths and (shallowest := min(depths)) < limit:
            i = depths.index(shallowest)
            last[i] = last[i + 1]
            levels[i] = level(first[i], last[i])
            del first[i + 1], last[i + 1], levels[i + 1], depths[i]
            for near in (i - 1, i):
                if 0 <= near < len(depths):
                    depths[near] = depth(near)
        found.append(Boxes(np.array(first, int), np.array(last, int), np.array(levels)))
    return found


def boxes_of(score: np.ndarray, frame_s: float, setting: dict[str, Any]) -> Boxes:
    """Boxes of one pair's score (T,); `setting` has `filter_s`, `by`, `limit`."""
    begin, end = find_changes(score, half_filter(setting["filter_s"], frame_s))
    return merge(score, begin, end, setting["by"], (setting["limit"],))[0]


def sebbs(cache: Cache, params: dict[str, Any]) -> dict[str, list[tuple[float, float, str, float]]]:
    """Every box of every clip: (onset, offset, event_label, confidence), seconds, by pair.

    `params` are those of a fitted rule; its threshold is not applied. Clips without a box are there
    too. Boxes of a pair do not touch.
    """
    found = {clip.filename: [] for clip in cache.clips}
    for index, pair in enumerate(cache.pairs):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        setting = params["classes"].get(pair.event_label, params["fallback"])
        boxes = boxes_of(cache.signals["d_raw"][span], pair.frame_s, setting)
        edges = pair.edges
        for begin, end, confidence in zip(*boxes, strict=True):
            box = (float(edges[begin]), float(edges[end]), pair.event_label, float(confidence))
            found[pair.filename].append(box)
    return found
