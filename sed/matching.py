"""Which found event is which true one, and how far its ends are off: one definition everywhere.

Reads:  events of each clip, true ones as in the label file
Shapes: B bins of a histogram

A true event is matched where it meets exactly one found event of its class, which meets no other
true one. Each system is judged by its own matches: a table of many has no events that all of them
found, so the number of matches stands beside every error. Events of a class that overlap or touch
are one event (`timeline.merge_events`), true and found ones alike. Truth keeps the times of the
label file: on the frames of the cache they would be off by up to half a frame.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sed.timeline import Event, in_recording, merge_events

ENDS = ("onset", "offset")
CLOSE_MS = 200  # the collar of the event F1 of DCASE Task 4
BIN_MS = 50
BINS_MS = np.arange(-1000 - BIN_MS / 2, 1000 + BIN_MS, BIN_MS)  # (B + 1,); one bin is centred on 0


class Match(NamedTuple):
    """A true event of a clip of `clip_s` seconds and the one event that a system found there."""

    filename: str
    true: Event
    found: Event
    clip_s: float

    def late_s(self, end: str = "onset") -> float:
        """Seconds by which the found onset (or offset) comes after the true one."""
        return getattr(self.found, end) - getattr(self.true, end)

    def wrong_s(self) -> float:
        """Seconds by which the found event differs from the true one, both ends together."""
        return abs(self.late_s("onset")) + abs(self.late_s("offset"))

    def heard(self, end: str) -> bool:
        """Whether the true end can be heard: not so at the clip's own ends."""
        return in_recording(self.true, end, self.clip_s)


def by_class(events: list[Event]) -> dict[str, list[Event]]:
    """Events of a clip, those that overlap or touch made one."""
    found: dict[str, list[Event]] = {}
    for event in merge_events(events):
        found.setdefault(event.event_label, []).append(event)
    return found


def match_events(
    truth: Mapping[str, list[Event]],
    found: Mapping[str, list[Event]],
    durations: Mapping[str, float],
) -> list[Match]:
    """The matches of a system, clips in the order of `truth`; `durations` in seconds."""
    matches = []
    for filename, events in truth.items():
        theirs = by_class(found.get(filename, []))
        for event_label, same in by_class(events).items():
            there = theirs.get(event_label, [])
            onset, offset = (np.array([getattr(e, end) for e in there]) for end in ENDS)
            true_onset, true_offset = (np.array([getattr(e, end) for e in same]) for end in ENDS)
            meets = (true_onset[:, None] < offset) & (true_offset[:, None] > onset)
            one_to_one = meets & (meets.sum(1, keepdims=True) == 1) & (meets.sum(0) == 1)
            matches += [
                Match(filename, same[i], there[j], durations[filename])
                for i, j in np.argwhere(one_to_one)
            ]
    return matches


def end_errors(matches: list[Match]) -> dict[str, Any]:
    """How far onsets and offsets are off, in milliseconds; a positive bias is late.

    An end at the clip's own end is left out: it is not in the recording. `histogram` counts the
    errors in `BINS_MS`; what lies beyond is in none of its bins. Without a match there is only the
    number of events, 0.
    """
    table: dict[str, Any] = {}
    for end in ENDS:
        # to the microsecond: frame edges are sums of a step that no float holds
        late = np.round([1000 * match.late_s(end) for match in matches if match.heard(end)], 3)
        size = np.abs(late)
        table[end] = {"events": len(late)}
        if len(late):
            table[end] |= {
                "median_ms": float(np.median(size)),
                "mean_ms": float(size.mean()),
                "bias_ms": float(late.mean()),
                "within_200_ms": float((size <= CLOSE_MS).mean()),
                "histogram": np.histogram(late, BINS_MS)[0].tolist(),
            }
    return table
