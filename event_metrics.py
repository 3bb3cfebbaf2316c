"""Event metrics of the field: collar, segment and intersection F1, PSDS.

Reads:  events of each clip, or frame scores of each clip; durations; the classes
Shapes: C clips, K classes, T frames, E events; counts (C, K), score values (K, T), edges (T + 1,) s
Next:   bandit.py

The three F1 are counted here, over events: work and memory grow with their number, not with clips
times classes. They equal sed_eval and sed_scores_eval (J. Ebbers et al., ICASSP 2022), which the
tests compare them with. PSDS alone needs sed_scores_eval: `pip install -r requirements-eval.txt`.

What is evaluated. `durations` names the clips. A clip that truth or prediction lacks has no events
there (label files often leave such clips out); a clip or class that is not named is an InputError.
Times are rounded to microseconds, events are cut to 0 .. duration, and events of one class that
overlap or touch are one event, in truth and prediction alike. A predicted event that begins at the
end of its clip or later is gone (frames may reach past it); a true one is an InputError, as labels
and durations do not belong together.

Defined values. A class with neither truth nor prediction has F1 = 1, as in metrics.py, but takes no
part in the macro average, where it would flatter; `F1.num_classes` tells how many do. A class with
only false alarms has F1 = 0 and takes part (sed_eval leaves such a class out). Where no class takes
part, macro and micro are 1: nothing was there and nothing was said. PSDS is over the classes with
an event in the truth (`Psds.per_class`), as no other has a true positive rate; without any it is 0.
No value is ever NaN.
"""

import functools
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from config import InputError
from metrics import f1_score, macro_average
from scorers import ClipScores
from timeline import Event

DECIMALS = 6  # of a second; also what sed_scores_eval compares times with
TICKS = 10**DECIMALS  # a second: times are whole numbers, so that no rounding decides a collar
COLLAR = TICKS // 5  # of an onset, and the least one of an offset (DCASE Task 4)
LONG = 5  # the collar of an offset is at least the true event's length over this (DCASE Task 4)
SEGMENT = TICKS  # DCASE Task 4
SHARE = 2  # dtc = gtc = 1 / 2 of the DESED baselines, intersection F1
SCENARIOS = {  # DCASE Task 4 since 2021: 1 wants exact times, 2 the right class
    1: {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1.0},
    2: {
        "dtc_threshold": 0.1,
        "gtc_threshold": 0.1,
        "cttc_threshold": 0.3,
        "alpha_ct": 0.5,
        "alpha_st": 1.0,
    },
}
MAX_EFPR = 100.0  # effective false positives an hour, the end of PSDS's curve

Clips = Mapping[str, list[Event]]


class ScoredEvent(NamedTuple):
    """An event and how sure the system is of it; only the order of confidences matters."""

    onset: float
    offset: float
    event_label: str
    confidence: float


class EventCounts(NamedTuple):
    """Matches, false alarms and misses: (C, K) sparse int64, clips in the order of the durations;
    or dense sums of them, (.., K)."""

    tp: Any
    fp: Any
    fn: Any


class F1(NamedTuple):
    """F1 of all clips: mean over classes, of the summed counts, of each class."""

    macro: float
    micro: float
    per_class: dict[str, float]
    num_classes: int  # in the macro average


class Psds(NamedTuple):
    """Polyphonic sound detection score, and that of each class with an event in the truth."""

    value: float
    per_class: dict[str, float]


# ---------------------------------------------------------------------------- what comes in


def _check_clips(names: Mapping[str, Any], durations: Mapping[str, float], what: str) -> None:
    """InputError for no or wrong durations, and for clips without one."""
    if not durations:
        raise InputError("no clip to evaluate: the durations are empty")
    for name, duration in durations.items():
        if not (np.isfinite(duration) and duration > 0):
            raise InputError(
                f"clip {name}: a duration above 0 s is needed but {duration} was given"
            )
    if unknown := [name for name in names if name not in durations]:
        raise InputError(
            f"{what}: {len(unknown)} clips have no duration, the first is {unknown[0]!r}"
            f" (a clip that has one: {next(iter(durations))!r})"
        )


class _Events(NamedTuple):
    """Events of all clips, (E,) each: clip and class by number, ticks, and any confidence."""

    clip: np.ndarray
    label: np.ndarray
    onset: np.ndarray
    offset: np.ndarray
    confidence: np.ndarray


def _events(
    clips: Mapping[str, list], durations: Mapping[str, float], classes: list[str], what: str
) -> _Events:
    """Events of every clip that has a duration, rounded and cut to it: what is left of them."""
    _check_clips(clips, durations, what)
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes to evaluate must be names that differ but {classes} was given")
    names, number = list(durations), {name: k for k, name in enumerate(classes)}
    given = [clips.get(name, ()) for name in names]
    rows = [event for events in given for event in events]
    clip = np.repeat(np.arange(len(names)), [len(events) for events in given])
    label = np.array([number.get(event.event_label, -1) for event in rows], np.int64)
    times = np.array([event[:2] for event in rows], np.float64).reshape(-1, 2)

    def first(wrong: np.ndarray) -> tuple[str, Any] | None:
        """Place and event of the first that is wrong."""
        at = np.flatnonzero(wrong)
        return (f"{what}, clip {names[clip[at[0]]]}", rows[at[0]]) if len(at) else None

    if found := first(label < 0):
        known = ", ".join(classes)
        raise InputError(
            f"{found[0]}: {found[1].event_label!r} is not a class to evaluate ({known})"
        )
    if found := first(~(np.isfinite(times[:, 0]) & (times[:, 0] < times[:, 1]))):
        raise InputError(f"{found[0]}: {found[1].onset} .. {found[1].offset} s is not a time span")
    confidence = np.array([event[3] if len(event) > 3 else 1.0 for event in rows], np.float64)
    if found := first(~np.isfinite(confidence)):
        raise InputError(f"{found[0]}: confidence {found[1].confidence} in {found[1]}")
    end = np.array(list(durations.values()), np.float64)[clip]
    if what == "truth" and (found := first(times[:, 0] >= end)):
        raise InputError(
            f"{found[0]}: {found[1].event_label} begins at {found[1].onset} s, after the end of the"
            f" clip ({durations[names[clip[np.flatnonzero(times[:, 0] >= end)[0]]]]} s)"
        )
    onset = np.rint(times[:, 0].clip(0) * TICKS).astype(np.int64)
    offset = np.rint(np.minimum(times[:, 1], end) * TICKS).astype(np.int64)
    return _Events(*(part[onset < offset] for part in (clip, label, onset, offset, confidence)))


def _merged(events: _Events) -> _Events:
    """Events by clip, class and onset, those of a class that overlap or touch made into one."""
    order = np.lexsort((events.onset, events.label, events.clip))
    clip, label, onset, offset, confidence = (part[order] for part in events)
    fresh = np.ones(len(clip), bool)  # begins another clip or class
    fresh[1:] = (clip[1:] != clip[:-1]) | (label[1:] != label[:-1])
    away = np.cumsum(fresh) * (offset.max(initial=0) + 1)  # keeps the running maximum inside
    reach = np.maximum.accumulate(offset + away)
    fresh[1:] |= (onset + away)[1:] > reach[:-1]
    last = np.append(fresh[1:], True)[: len(fresh)]
    return _Events(clip[fresh], label[fresh], onset[fresh], (reach - away)[last], confidence[fresh])


# ---------------------------------------------------------------------------- F1 of events


class _Spans(NamedTuple):
    """Merged events of all clips and classes on one line of ticks, where every (clip, class) with
    an event has a stretch of its own, whole segments long: (E,) each, by begin."""

    stretch: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def _on_a_line(
    one: _Events, other: _Events, num_classes: int
) -> tuple[_Spans, _Spans, np.ndarray, int]:
    """Both sides on the same line; (clip, class) of each stretch as one number; its length."""
    cells = [events.clip * num_classes + events.label for events in (one, other)]
    known, stretch = np.unique(np.concatenate(cells), return_inverse=True)
    # A segment more than the longest event reaches: so far apart no two of them can match.
    longest = max(one.offset.max(initial=0), other.offset.max(initial=0))
    length = int(longest // SEGMENT + 2) * SEGMENT
    spans, at = [], 0
    for events in (one, other):
        mine = stretch[at : at + len(events.clip)]
        spans.append(_Spans(mine, events.onset + mine * length, events.offset + mine * length))
        at += len(mine)
    return *spans, known, length


def _pairs(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges first .. last - 1 (E,) -> which range and which number, for each number in them."""
    size = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(size)), size)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(size) - size - first, size)


def _collar(found: _Spans, true: _Spans, count: Any, length: int) -> tuple[Any, Any, Any]:
    """Matches by collars (DCASE Task 4): onset within 200 ms, offset within 200 ms or 20 % of the
    true event's length, whichever is more; each event is matched once, and as many as possible are.

    A distance of exactly the collar counts as inside; in sed_eval rounding errors decide it.
    """
    first = np.searchsorted(found.begin, true.begin - COLLAR, "left")
    last = np.searchsorted(found.begin, true.begin + COLLAR, "right")
    t, f = _pairs(first, last)
    late = np.abs(found.end[f] - true.end[t])
    near = (late <= COLLAR) | (LONG * late <= true.end[t] - true.begin[t])
    t, f = t[near], f[near]
    edges = csr_array((np.ones(len(t), np.int8), (t, f)), (len(true.begin), len(found.begin)))
    tp = count(true.stretch[maximum_bipartite_matching(edges, "column") >= 0])
    return tp, count(found.stretch) - tp, count(true.stretch) - tp


def _intersection(found: _Spans, true: _Spans, count: Any, length: int) -> tuple[Any, Any, Any]:
    """Matches by overlap (C. Bilen et al., ICASSP 2020), dtc = gtc = 0.5 as in the DESED baselines.

    A detection is a false alarm unless at least half of it lies in true events of its class; a true
    event is found when at least half of it lies in detections that are no false alarms.
    """
    first = np.searchsorted(true.end, found.begin, "right")
    last = np.searchsorted(true.begin, found.end, "left")
    f, t = _pairs(first, last)
    shared = np.minimum(found.end[f], true.end[t]) - np.maximum(found.begin[f], true.begin[t])
    inside = np.bincount(f, shared, len(found.begin))  # sums of whole numbers: exact
    good = SHARE * inside >= found.end - found.begin
    heard = np.bincount(t, shared * good[f], len(true.begin))
    tp = count(true.stretch[SHARE * heard >= true.end - true.begin])
    return tp, count(found.stretch[~good]), count(true.stretch) - tp


def _segment(found: _Spans, true: _Spans, count: Any, length: int) -> tuple[Any, Any, Any]:
    """Segments of 1 s from the clip's begin, the last one may be shorter: a class is on in a
    segment when an event of it overlaps the segment."""
    on, there = (
        np.unique(_pairs(side.begin // SEGMENT, -(-side.end // SEGMENT))[1])
        for side in (found, true)
    )
    both = np.intersect1d(on, there, assume_unique=True)
    tp, said, needed = (count(each * SEGMENT // length) for each in (both, on, there))
    return tp, said - tp, needed - tp


KINDS = {"event_f1": _collar, "segment_f1": _segment, "intersection_f1": _intersection}


def event_counts(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> dict[str, EventCounts]:
    """Counts (C, K) for `event_f1`, `segment_f1` and `intersection_f1`.

    Raises InputError for clips without a duration, unknown classes, and events that are none.
    """
    found = _merged(_events(predicted, durations, classes, "prediction"))
    true = _merged(_events(truth, durations, classes, "truth"))
    found, true, cells, length = _on_a_line(found, true, len(classes))
    row, column = np.divmod(cells, len(classes))
    shape = len(durations), len(classes)

    def count(stretches: np.ndarray) -> np.ndarray:
        return np.bincount(stretches, minlength=len(cells))

    return {
        name: EventCounts(
            *(csr_array((n, (row, column)), shape) for n in kind(found, true, count, length))
        )
        for name, kind in KINDS.items()
    }


def averages(counts: EventCounts) -> tuple[np.ndarray, np.ndarray]:
    """Counts (.., K) of classes -> macro and micro F1 (..), as the module's text defines them."""
    macro = macro_average(f1_score(*counts), sum(counts) > 0)
    return macro, f1_score(*(cell.sum(-1) for cell in counts))


def f1_of(counts: EventCounts, classes: list[str]) -> F1:
    """F1 of counts (C, K) over all clips."""
    total = EventCounts(*(cell.sum(axis=0) for cell in counts))
    macro, micro = averages(total)
    per_class = dict(zip(classes, f1_score(*total).tolist(), strict=True))
    return F1(float(macro), float(micro), per_class, int((sum(total) > 0).sum()))


def all_f1(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> dict[str, F1]:
    """`event_f1`, `segment_f1` and `intersection_f1` by name; InputError as `event_counts`."""
    counts = event_counts(predicted, truth, durations, classes)
    return {name: f1_of(each, classes) for name, each in counts.items()}


# ---------------------------------------------------------------------------- PSDS


@functools.cache
def _library() -> SimpleNamespace:
    """The modules of sed_scores_eval and pandas; imported on first use, which takes seconds."""
    try:
        with warnings.catch_warnings():  # old packages: what they warn of is what the pins are for
            warnings.simplefilter("ignore")
            import pandas
            from sed_scores_eval import intersection_based
    except ImportError as error:
        raise InputError(
            f"PSDS needs packages that are not installed ({error}):"
            " pip install -r requirements-eval.txt"
        ) from None
    return SimpleNamespace(
        data_frame=pandas.DataFrame,
        intersection=intersection_based.intermediate_statistics.intermediate_statistics_deltas,
        psds=intersection_based.psds,
    )


def missing_packages() -> str:
    """Why PSDS cannot be computed here and what to install; empty where it can."""
    try:
        _library()
    except InputError as error:
        return str(error)
    return ""


def _table(values: np.ndarray, edges: np.ndarray) -> Any:
    """Score data frame of values (K, T) on edges (T + 1,)."""
    columns = ["onset", "offset", *(str(k) for k in range(len(values)))]
    cells = np.column_stack([edges[:-1], edges[1:], values.T.astype(np.float64)])
    return _library().data_frame(cells, columns=columns)


def _event_tables(
    events: _Events, durations: Mapping[str, float], rows: np.ndarray
) -> dict[str, Any]:
    """Score data frames of events: the confidence inside, the larger one where events overlap, and
    -inf outside, where no threshold switches the class on. A frame lasts from change to change.

    `rows` (K,): the row of each class in the tables, -1: none.
    """
    order = np.argsort(events.clip, kind="stable")
    parts = [part[order] for part in events]
    ends = np.searchsorted(parts[0], np.arange(len(durations) + 1))
    tables = {}
    for i, (clip, duration) in enumerate(durations.items()):
        _, label, onset, offset, confidence = (part[ends[i] : ends[i + 1]] for part in parts)
        edges = np.unique(np.concatenate(([0, round(duration * TICKS)], onset, offset)))
        values = np.full((rows.max(initial=-1) + 1, len(edges) - 1), -np.inf)
        spans = zip(rows[label], *np.searchsorted(edges, (onset, offset)), confidence, strict=True)
        for row, first, last, level in spans:
            if row >= 0:
                np.maximum(values[row, first:last], level, out=values[row, first:last])
        tables[clip] = _table(values, edges / TICKS)
    return tables


class _Truth(NamedTuple):
    """The truth as the library wants it; classes are numbers there: any name is a good name."""

    events: dict[str, list[tuple[float, float, str]]]
    classes: list[str]  # those that occur, in order
    rows: np.ndarray  # (K,) number of each class among them, -1: does not occur


def _truth(truth: Clips, durations: Mapping[str, float], classes: list[str]) -> _Truth:
    events = _merged(_events(truth, durations, classes, "truth"))
    there = np.unique(events.label)
    rows = np.full(len(classes), -1)
    rows[there] = np.arange(len(there))
    names, clips = list(durations), {name: [] for name in durations}
    for clip, label, onset, offset, _ in zip(*events, strict=True):
        clips[names[clip]].append((onset / TICKS, offset / TICKS, str(rows[label])))
    return _Truth(clips, [classes[k] for k in there], rows)


def _psds(
    tables: dict[str, Any], truth: _Truth, durations: Mapping[str, float], scenario: int
) -> Psds:
    """PSDS of score data frames, whose columns are the numbers of the classes in the truth."""
    classes = truth.classes
    if not classes:
        return Psds(0.0, {})
    setting = dict(SCENARIOS[scenario])
    if len(classes) == 1:  # nothing else could be triggered, and the library divides by that
        setting = {key: setting[key] for key in SCENARIOS[1]}
    criteria = {key: value for key, value in setting.items() if "threshold" in key}
    deltas = _library().intersection(tables, truth.events, **criteria, time_decimals=DECIMALS)
    for k in map(str, range(len(classes))):
        if not any(len(clip[k][0]) for clip in deltas.values()):
            # Nothing was found or falsely found at any threshold: the library needs one step.
            one = next(iter(deltas.values()))
            one[k] = (np.array([-np.inf]), {name: np.zeros(1) for name in one[k][1]})
    value, of_class, *_ = _library().psds(
        None,
        truth.events,
        {clip: float(duration) for clip, duration in durations.items()},
        deltas=deltas,
        **setting,
        max_efpr=MAX_EFPR,
        unit_of_time="hour",
        time_decimals=DECIMALS,
    )
    return Psds(float(value), {name: float(of_class[str(k)]) for k, name in enumerate(classes)})


def psds(
    scores: Mapping[str, ClipScores],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
    scenario: int,
) -> Psds:
    """PSDS 1 or 2 of frame scores, rows of their values in the order of `classes`.

    Area under the PSD-ROC up to 100 effective false positives an hour (C. Bilen et al., ICASSP
    2020) over all thresholds (J. Ebbers et al., ICASSP 2022); parameters in SCENARIOS. Frames are
    cut to the clip's duration. Raises InputError as `event_counts`, for clips without scores, and
    for missing packages.
    """
    known = _truth(truth, durations, classes)
    _check_clips(scores, durations, "scores")
    if missing := [name for name in durations if name not in scores]:
        raise InputError(f"scores: {len(missing)} clips have none, the first is {missing[0]!r}")
    tables = {}
    for clip, duration in durations.items():
        values, edges = scores[clip].values, scores[clip].edges
        if values.shape != (len(classes), len(edges) - 1):
            raise InputError(
                f"scores, clip {clip}: {len(classes)} classes and {len(edges)} edges need values"
                f" ({len(classes)}, {len(edges) - 1}) but {values.shape} was given"
            )
        inside = int(np.searchsorted(edges, duration))  # frames that begin before the end
        cut = np.minimum(edges[: inside + 1], duration)
        tables[clip] = _table(values[known.rows >= 0, :inside], cut)
    return _psds(tables, known, durations, scenario)


def event_psds(
    predicted: Mapping[str, list[ScoredEvent]],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
) -> dict[int, Psds]:
    """PSDS 1 and 2 of events with a confidence: a threshold keeps events, it never changes them.

    Where events of a class overlap, the larger confidence counts. Raises InputError as
    `event_counts`, for a confidence that is no number, and for missing packages.
    """
    known = _truth(truth, durations, classes)
    found = _events(predicted, durations, classes, "prediction")
    tables = _event_tables(found, durations, known.rows)
    return {each: _psds(tables, known, durations, each) for each in SCENARIOS}


def mean_scores(events: list[Event], scores: ClipScores, classes: list[str]) -> list[ScoredEvent]:
    """Events of a clip with the mean score of their class inside each as confidence.

    Where scores do not reach is left out of the mean; an event that they do not reach has 0.
    """
    areas = np.cumsum(scores.values * np.diff(scores.edges), axis=1, dtype=np.float64)
    areas = np.pad(areas, ((0, 0), (1, 0)))  # (K, T + 1) integral of the score up to each edge
    times = np.array([event[:2] for event in events]).reshape(-1, 2)  # (events, 2)
    times = np.clip(times, scores.edges[0], scores.edges[-1])
    row = np.array([classes.index(event.event_label) for event in events], int)
    area = np.zeros(len(events))
    for k in set(row.tolist()):
        mine = row == k
        area[mine] = np.diff(np.interp(times[mine], scores.edges, areas[k]))[:, 0]
    length = times[:, 1] - times[:, 0]
    mean = np.where(length > 0, area / np.where(length > 0, length, 1), 0.0).tolist()
    return [ScoredEvent(*event, each) for event, each in zip(events, mean, strict=True)]
