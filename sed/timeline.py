"""Events and the frame clock: seconds <-> frames, frames <-> events; label files written.

Writes: label TSV `filename, onset, offset, event_label` (DESED/DCASE; seconds), Audacity tracks
Shapes: T frames; `edges` (T + 1,) seconds, frame t spans [edges[t], edges[t + 1])
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.files import write_text

SPLITS = ("train", "validation")  # folders of a corpus and of a cache
CLIP_COLUMNS = ("split", "filename", "fold", "duration", "recordings")  # of a corpus's clips.tsv
COLUMNS = ("filename", "onset", "offset", "event_label")


class Event(NamedTuple):
    """One labelled sound: onset and offset in seconds."""

    onset: float
    offset: float
    event_label: str


def in_recording(event: Event, end: str, clip_s: float) -> bool:
    """Whether the onset (or offset) of an event can be heard: not so at the clip's very ends.

    To the millisecond, the precision of label files.
    """
    return event.onset > 1e-3 if end == "onset" else event.offset < clip_s - 1e-3


def write_labels(path: Path, clips: dict[str, list[Any]], more: tuple[str, ...] = ()) -> None:
    """Write the form of DESED, in milliseconds; no events: one empty row. `more`: numbers that the
    events have beside, each a column."""
    lines = ["\t".join(COLUMNS + more)]
    for filename, events in clips.items():
        for e in events:
            beside = "".join(f"\t{getattr(e, name):.4f}" for name in more)
            lines.append(f"{filename}\t{e.onset:.3f}\t{e.offset:.3f}\t{e.event_label}{beside}")
        if not events:
            lines.append(filename + "\t" * (len(COLUMNS + more) - 1))
    write_text(path, "\n".join(lines) + "\n")


def write_audacity(path: Path, events: list[Event]) -> None:
    """Write one recording's events as an Audacity label track: start, end, label a line."""
    text = "".join(f"{e.onset:.6f}\t{e.offset:.6f}\t{e.event_label}\n" for e in events)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def classes_of(clips: dict[str, list[Event]]) -> list[str]:
    """Sorted class names that occur in the labels."""
    return sorted({event.event_label for events in clips.values() for event in events})


SLACK_S = 1e-6  # rounding of frame edges: a gap of exactly the limit stays one


def merge_events(events: list[Event], gap_s: float = 0.0) -> list[Event]:
    """Events of a clip by onset, those of one class that overlap or touch made into one.

    So are those with a gap shorter than `gap_s` seconds between them.
    """
    merged: list[Event] = []
    for event in sorted(events, key=lambda event: (event.event_label, event.onset, event.offset)):
        last = merged[-1] if merged else None
        gap = event.onset - last.offset if last and last.event_label == event.event_label else None
        if gap is not None and (gap <= 0 or gap < gap_s - SLACK_S):
            merged[-1] = last._replace(offset=max(last.offset, event.offset))
        else:
            merged.append(event)
    return sorted(merged)


def usual_least(clips: list[list[Event]]) -> tuple[float | None, float | None]:
    """Seconds that 95 % of events last, and of the gaps within a class; None: there are none."""
    lasts, gaps = [], []
    for events in clips:
        for name in {event.event_label for event in events}:
            own = merge_events([event for event in events if event.event_label == name])
            lasts += [event.offset - event.onset for event in own]
            gaps += [later.onset - event.offset for event, later in itertools.pairwise(own)]
    both = (np.quantile(some, 0.05) if some else None for some in (lasts, gaps))
    return tuple(None if least is None else round(float(least), 2) for least in both)


def tidy_events(events: list[Event], min_duration_s: float, merge_gap_s: float) -> list[Event]:
    """Gaps shorter than `merge_gap_s` closed, then events shorter than `min_duration_s` dropped."""
    merged = merge_events(events, merge_gap_s)
    return [event for event in merged if event.offset - event.onset >= min_duration_s - SLACK_S]


def frame_edges(num_frames: int, frame_s: float, start_s: float = 0.0) -> np.ndarray:
    """Edges (T + 1,) in seconds of a grid of equal frames.

    Where the first frame would not begin at 0, but at `start_s`, it begins at 0 all the same.
    """
    edges = start_s + np.arange(num_frames + 1) * frame_s
    edges[0] = 0.0
    return edges


def seconds_at(
    position: np.ndarray, frame_s: float | np.ndarray, start_s: float | np.ndarray = 0.0
) -> np.ndarray:
    """Seconds of positions in frames, whole or between two, where `frame_edges` has them."""
    first = position * (start_s + frame_s)  # the first frame begins at 0 and may be longer
    return np.where(position < 1, first, start_s + position * frame_s)


def frame_centres(edges: np.ndarray) -> np.ndarray:
    """Centres (T,) in seconds of the frames between `edges` (T + 1,)."""
    return (edges[:-1] + edges[1:]) / 2


def label_frames(events: list[Event], event_label: str, edges: np.ndarray) -> np.ndarray:
    """(T,) bool: a frame is on when its centre lies in [onset, offset) of an event of the class."""
    centres = frame_centres(edges)
    on = np.zeros(len(centres), dtype=bool)
    for event in events:
        if event.event_label == event_label:
            on |= (centres >= event.onset) & (centres < event.offset)
    return on


def runs_of(on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T,) bool -> begin and end (B,) of its true runs, whole frames."""
    step = np.diff(np.concatenate(([0], on.astype(np.int8), [0])))
    return np.flatnonzero(step == 1), np.flatnonzero(step == -1)


def frames_to_events(on: np.ndarray, event_label: str, edges: np.ndarray) -> list[Event]:
    """Runs of true frames (T,) -> events whose onset and offset are the runs' outer edges."""
    runs = zip(*runs_of(on), strict=True)
    return [Event(float(edges[a]), float(edges[b]), event_label) for a, b in runs]


JITTER = 0.1  # of a frame, by which an edge may be off: times are often rounded to milliseconds


class ClipScores(NamedTuple):
    """Scores of one clip on the source's own grid."""

    values: np.ndarray  # (K, T) float32, finite, 0..1
    edges: np.ndarray  # (T + 1,) float64 seconds, rising, edges[0] = 0
    tag: np.ndarray | None = None  # (K,) clip-level scores, where the source has them
    step_s: float | None = None  # length of a frame, where the edges cannot tell

    @property
    def frame_s(self) -> float:
        """Length of a frame in seconds (the first and the last frame may be shorter or longer)."""
        return self.step_s or _even_frames(self.edges)[0]

    @property
    def start_s(self) -> float:
        """Where the first frame would begin if it were as long as the others; usually 0.

        Windows of 3 s every 1.5 s are frames of 1.5 s around the windows' centres, from 0.75 s on.
        """
        if self.step_s is None:
            return _even_frames(self.edges)[1]
        late = float(self.edges[1]) - self.step_s
        return late if abs(late) > JITTER * self.step_s and len(self.edges) > 2 else 0.0

    def span_s(self, first: int, stop: int) -> tuple[float, float]:
        """Seconds that frames [first, stop) span, each as long as the others."""
        if not self.start_s:
            return float(self.edges[first]), float(self.edges[stop])
        return self.start_s + first * self.frame_s, self.start_s + stop * self.frame_s


def _even_frames(edges: np.ndarray) -> tuple[float, float]:
    """Length of the equal frames between edges (T + 1,), and where the first would begin."""
    num_frames = len(edges) - 1
    if num_frames > 2:
        step = (edges[-2] - edges[1]) / (num_frames - 2)
        if abs(edges[1] - step) > JITTER * step:
            return float(step), float(edges[1] - step)
    return float(edges[-2] / (num_frames - 1) if num_frames > 1 else edges[-1]), 0.0
