"""Sound event bounding boxes by change detection (cSEBBs): scores -> events with a confidence.

Shapes: T frames of a pair, B boxes; positions in frames

Ebbers, Germain, Wichern, Le Roux, "Sound Event Bounding Boxes" (Interspeech 2024, arXiv
2406.04212): boxes as candidates.py finds them; one threshold accepts or rejects a box as a whole,
so that it no longer moves the box's ends. The grid of settings is the authors'.
"""

from typing import Any

import numpy as np

from sed.caches import Cache
from sed.candidates import MergedBoxes, find_changes, merge
from sed.timeline import seconds_at

FILTERS_S = (0.32, 0.48, 0.64)  # length of the step filter
MERGE = {"difference": (0.15, 0.2, 0.3), "ratio": (1.5, 2.0, 3.0)}  # a setting has one of the two


def boxes_of(score: np.ndarray, frame_s: float, setting: dict[str, Any]) -> MergedBoxes:
    """Boxes of one pair's score (T,); `setting` has `filter_s`, `by`, `limit`."""
    found = find_changes(score, setting["filter_s"] / 2 / frame_s)
    return merge(score, *found, [(setting["by"], setting["limit"])])[0]


def sebbs(cache: Cache, params: dict[str, Any]) -> dict[str, list[tuple[float, float, str, float]]]:
    """Every box of every clip: (onset, offset, event_label, confidence), seconds, by pair.

    `params` are those of a fitted rule; its threshold is not applied. Clips without a box are there
    too. Boxes of a pair do not touch.
    """
    found = {clip.filename: [] for clip in cache.clips}
    for index, pair in enumerate(cache.pairs):
        setting = params["classes"].get(pair.event_label, params["fallback"])
        boxes = boxes_of(cache.one("d_raw", index), pair.frame_s, setting)
        ends = [seconds_at(each, pair.frame_s, pair.start_s) for each in (boxes.begin, boxes.end)]
        for onset, offset, confidence in np.stack((*ends, boxes.confidence), axis=1).tolist():
            found[pair.filename].append((onset, offset, pair.event_label, confidence))
    return found
