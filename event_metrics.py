"""Event metrics of the field: collar, segment and intersection F1, PSDS. Needs extra packages.

Reads:  events of each clip, or frame scores of each clip; durations; the classes
Shapes: C clips, K classes, T frames; counts (C, K), score values (K, T), edges (T + 1,) seconds
Next:   bandit.py

`pip install -r requirements-eval.txt` brings sed_scores_eval (J. Ebbers et al., ICASSP 2022), which
does the matching; without it everything else in the suite runs.

What is evaluated. `durations` names the clips. A clip that truth or prediction lacks has no events
there (label files often leave such clips out); a clip or class that is not named is an InputError.
In truth and prediction alike, events are cut to 0 .. duration, those without length or outside the
clip are left out (labels.fit_events, the rule for every label file), times are rounded to
microseconds, and events of one class that overlap or touch are one event (timeline.merge_events):
the libraries refuse them.

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

from config import InputError
from labels import fit_events
from metrics import f1_score, macro_average
from scorers import ClipScores
from timeline import Event, merge_events

DECIMALS = 6  # of a second; also what sed_scores_eval compares times with
COLLAR = {"onset_collar": 0.2, "offset_collar": 0.2, "offset_collar_rate": 0.2}  # DCASE Task 4
SEGMENT_S = 1.0  # DCASE Task 4
INTERSECTION = {"dtc_threshold": 0.5, "gtc_threshold": 0.5}  # DESED baselines, intersection F1
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
    """Matches, false alarms and misses, (C, K) int64 each: clips in the order of the durations."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


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


@functools.cache
def _library() -> SimpleNamespace:
    """The modules of sed_scores_eval and pandas; imported on first use, which takes seconds."""
    try:
        with warnings.catch_warnings():  # old packages: what they warn of is what the pins are for
            warnings.simplefilter("ignore")
            import pandas
            from sed_scores_eval import collar_based, intersection_based, segment_based
    except ImportError as error:
        raise InputError(
            f"event-based metrics and PSDS need packages that are not installed ({error}):"
            " pip install -r requirements-eval.txt"
        ) from None
    return SimpleNamespace(
        data_frame=pandas.DataFrame,
        collar=collar_based.intermediate_statistics.intermediate_statistics_deltas,
        intersection=intersection_based.intermediate_statistics.intermediate_statistics_deltas,
        segment=segment_based.intermediate_statistics.intermediate_statistics_deltas,
        psds=intersection_based.psds,
    )


def missing_packages() -> str:
    """Why these metrics cannot be computed here and what to install; empty where they can."""
    try:
        _library()
    except InputError as error:
        return str(error)
    return ""


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


def _check_classes(classes: list[str]) -> None:
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes to evaluate must be names that differ but {classes} was given")


def _inside(
    clips: Mapping[str, list], durations: Mapping[str, float], classes: list[str], what: str
) -> dict[str, list]:
    """Events of every clip that has a duration, rounded and cut to it; what is left of them."""
    _check_clips(clips, durations, what)
    _check_classes(classes)
    known, found = set(classes), {}
    for name, duration in durations.items():
        found[name] = []
        for event in clips.get(name, []):
            if event.event_label not in known:
                raise InputError(
                    f"{what}, clip {name}: {event.event_label!r} is not a class to evaluate"
                    f" ({', '.join(classes)})"
                )
            if not (np.isfinite(event[:2]).all() and event.onset <= event.offset):
                raise InputError(
                    f"{what}, clip {name}: {event.onset} .. {event.offset} s is not a time span"
                )
        for event in fit_events(name, clips.get(name, []), float(duration))[0]:
            onset, offset = (round(float(time), DECIMALS) for time in event[:2])
            if onset < offset:
                found[name].append(event._replace(onset=onset, offset=offset))
    return found


def _merged(clips: Clips, durations: Mapping[str, float], classes: list[str], what: str) -> Clips:
    cut = _inside(clips, durations, classes, what)
    return {name: merge_events(events) for name, events in cut.items()}


def _tuples(truth: Clips, classes: list[str]) -> dict[str, list[tuple[float, float, str]]]:
    """Truth as the library wants it. Classes are numbers there: any name is a good name."""
    number = {name: str(k) for k, name in enumerate(classes)}
    return {
        clip: [
            (e.onset, e.offset, number[e.event_label]) for e in events if e.event_label in number
        ]
        for clip, events in truth.items()
    }


def _table(values: np.ndarray, edges: np.ndarray) -> Any:
    """Score data frame of values (K, T) on edges (T + 1,)."""
    columns = ["onset", "offset", *(str(k) for k in range(len(values)))]
    cells = np.column_stack([edges[:-1], edges[1:], values.T.astype(np.float64)])
    return _library().data_frame(cells, columns=columns)


def _event_tables(
    clips: Mapping[str, list[ScoredEvent]], durations: Mapping[str, float], classes: list[str]
) -> dict[str, Any]:
    """Score data frames of events: the confidence inside, the larger one where events overlap, and
    -inf outside, where no threshold switches the class on. A frame lasts from change to change."""
    number = {name: k for k, name in enumerate(classes)}
    tables = {}
    for clip, events in clips.items():
        times = [time for event in events for time in (event.onset, event.offset)]
        edges = np.unique([0.0, round(float(durations[clip]), DECIMALS), *times])
        values = np.full((len(classes), len(edges) - 1), -np.inf)
        for event in events:
            if event.event_label in number:
                first, last = np.searchsorted(edges, (event.onset, event.offset))
                span = values[number[event.event_label], first:last]
                np.maximum(span, event.confidence, out=span)
        tables[clip] = _table(values, edges)
    return tables


# ---------------------------------------------------------------------------- F1 of events

EVERY_CLASS = "\0"  # a clip more, as the library wants each class in the truth; not counted


def _hits(
    deltas: Mapping[str, Any], clips: Mapping[str, float], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (C, K) of what the library found at the scores of events, 1."""
    found = np.zeros((2, len(clips), num_classes), dtype=np.int64)
    for c, clip in enumerate(clips):
        for k in range(num_classes):
            scores, cells = deltas[clip][str(k)]
            if len(scores):
                on = scores > 0.5
                found[0, c, k] = cells["tps"][on].sum()
                found[1, c, k] = cells["fps"][on].sum()
    return found[0], found[1]


class _Prepared(NamedTuple):
    """Both sides as the library wants them, and the true events of each clip and class (C, K)."""

    tables: dict[str, Any]
    truth: dict[str, list[tuple[float, float, str]]]
    events: np.ndarray


def _prepare(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> _Prepared:
    found = _merged(predicted, durations, classes, "prediction")
    truth = _merged(truth, durations, classes, "truth")
    sure = {clip: [ScoredEvent(*e[:3], 1.0) for e in events] for clip, events in found.items()}
    tables, tuples = _event_tables(sure, durations, classes), _tuples(truth, classes)
    names = [str(k) for k in range(len(classes))]
    events = [[sum(e[2] == name for e in tuples[clip]) for name in names] for clip in durations]
    tables[EVERY_CLASS] = _table(np.full((len(classes), 1), -np.inf), np.array([0.0, 1.0]))
    tuples[EVERY_CLASS] = [(0.0, 1.0, name) for name in names]
    return _Prepared(tables, tuples, np.array(events, dtype=np.int64))


def event_counts(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> EventCounts:
    """Matches by collars (DCASE Task 4): onset within 200 ms, offset within 200 ms or 20 % of the
    true event's length, whichever is more; each event is matched once, and as many as possible are.

    A distance of exactly the collar counts as inside; in sed_eval rounding errors decide it.
    Raises InputError for clips without a duration, unknown classes, and missing packages.
    """
    return _collar(_prepare(predicted, truth, durations, classes), durations)


def _collar(given: _Prepared, durations: Mapping[str, float]) -> EventCounts:
    deltas = _library().collar(given.tables, given.truth, **COLLAR, time_decimals=DECIMALS)
    tp, fp = _hits(deltas, durations, given.events.shape[1])
    return EventCounts(tp, fp, given.events - tp)


def intersection_counts(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> EventCounts:
    """Matches by overlap (C. Bilen et al., ICASSP 2020), dtc = gtc = 0.5 as in the DESED baselines.

    A detection is a false alarm unless at least half of it lies in true events of its class; a true
    event is found when at least half of it lies in detections that are no false alarms. Raises
    InputError as `event_counts`.
    """
    return _intersection(_prepare(predicted, truth, durations, classes), durations)


def _intersection(given: _Prepared, durations: Mapping[str, float]) -> EventCounts:
    deltas = _library().intersection(
        given.tables, given.truth, **INTERSECTION, time_decimals=DECIMALS
    )
    tp, fp = _hits(deltas, durations, given.events.shape[1])
    return EventCounts(tp, fp, given.events - tp)


def segment_counts(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> EventCounts:
    """Segments of 1 s from the clip's begin, the last one may be shorter: a class is on in a
    segment when an event of it overlaps the segment. Raises InputError as `event_counts`."""
    return _segment(_prepare(predicted, truth, durations, classes), durations)


def _segment(given: _Prepared, durations: Mapping[str, float]) -> EventCounts:
    lengths = {**{clip: float(length) for clip, length in durations.items()}, EVERY_CLASS: 1.0}
    deltas = _library().segment(
        given.tables, given.truth, lengths, segment_length=SEGMENT_S, time_decimals=DECIMALS
    )
    num_classes = given.events.shape[1]
    tp, fp = _hits(deltas, durations, num_classes)
    there = [
        [deltas[clip][str(k)][1]["tps"].sum() for k in range(num_classes)] for clip in durations
    ]
    return EventCounts(tp, fp, np.array(there, dtype=np.int64) - tp)


def averages(counts: EventCounts) -> tuple[np.ndarray, np.ndarray]:
    """Counts (.., K) of classes -> macro and micro F1 (..), as the module's text defines them."""
    macro = macro_average(f1_score(*counts), sum(counts) > 0)
    return macro, f1_score(*(cell.sum(-1) for cell in counts))


def f1_of(counts: EventCounts, classes: list[str]) -> F1:
    """F1 of counts (C, K) over all clips."""
    total = EventCounts(*(cell.sum(0) for cell in counts))
    macro, micro = averages(total)
    per_class = dict(zip(classes, f1_score(*total).tolist(), strict=True))
    return F1(float(macro), float(micro), per_class, int((sum(total) > 0).sum()))


def event_f1(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> F1:
    """Collar-based F1, see `event_counts`."""
    return f1_of(event_counts(predicted, truth, durations, classes), classes)


def intersection_f1(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> F1:
    """Intersection-based F1, see `intersection_counts`."""
    return f1_of(intersection_counts(predicted, truth, durations, classes), classes)


def segment_f1(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> F1:
    """Segment-based F1, see `segment_counts`."""
    return f1_of(segment_counts(predicted, truth, durations, classes), classes)


def all_f1(
    predicted: Clips, truth: Clips, durations: Mapping[str, float], classes: list[str]
) -> dict[str, F1]:
    """`event_f1`, `segment_f1` and `intersection_f1` by name, prepared once: a third less time."""
    given = _prepare(predicted, truth, durations, classes)
    ways = {"event_f1": _collar, "segment_f1": _segment, "intersection_f1": _intersection}
    return {name: f1_of(count(given, durations), classes) for name, count in ways.items()}


# ---------------------------------------------------------------------------- PSDS


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


def _psds(
    tables: dict[str, Any],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
    scenario: int,
) -> Psds:
    """PSDS of score data frames, whose columns are the numbers of `classes`, all in the truth."""
    if not classes:
        return Psds(0.0, {})
    setting = dict(SCENARIOS[scenario])
    if len(classes) == 1:  # nothing else could be triggered, and the library divides by that
        setting = {key: setting[key] for key in SCENARIOS[1]}
    tuples, criteria = (
        _tuples(truth, classes),
        {k: v for k, v in setting.items() if "threshold" in k},
    )
    deltas = _library().intersection(tables, tuples, **criteria, time_decimals=DECIMALS)
    for k in map(str, range(len(classes))):
        if not any(len(clip[k][0]) for clip in deltas.values()):
            # Nothing was found or falsely found at any threshold: the library needs one step.
            one = next(iter(deltas.values()))
            one[k] = (np.array([-np.inf]), {name: np.zeros(1) for name in one[k][1]})
    value, of_class, *_ = _library().psds(
        None,
        tuples,
        {clip: float(duration) for clip, duration in durations.items()},
        deltas=deltas,
        **setting,
        max_efpr=MAX_EFPR,
        unit_of_time="hour",
        time_decimals=DECIMALS,
    )
    return Psds(float(value), {name: float(of_class[str(k)]) for k, name in enumerate(classes)})


def _with_truth(truth: Clips, classes: list[str]) -> list[str]:
    there = {event.event_label for events in truth.values() for event in events}
    return [name for name in classes if name in there]


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
    cut to the clip's duration. Raises InputError as `event_counts`, and for clips without scores.
    """
    truth = _merged(truth, durations, classes, "truth")
    _check_clips(scores, durations, "scores")
    if missing := [name for name in durations if name not in scores]:
        raise InputError(f"scores: {len(missing)} clips have none, the first is {missing[0]!r}")
    counted = _with_truth(truth, classes)
    rows = [classes.index(name) for name in counted]
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
        tables[clip] = _table(values[rows, :inside], cut)
    return _psds(tables, truth, durations, counted, scenario)


def event_psds(
    predicted: Mapping[str, list[ScoredEvent]],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
    scenario: int,
) -> Psds:
    """PSDS 1 or 2 of events with a confidence: a threshold keeps events, it never changes them.

    Where events of a class overlap, the larger confidence counts. Raises InputError as
    `event_counts`, and for a confidence that is no number.
    """
    return _event_psds(predicted, truth, durations, classes, (scenario,))[scenario]


def both_event_psds(
    predicted: Mapping[str, list[ScoredEvent]],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
) -> dict[int, Psds]:
    """`event_psds` of either scenario, prepared once."""
    return _event_psds(predicted, truth, durations, classes, (1, 2))


def _event_psds(
    predicted: Mapping[str, list[ScoredEvent]],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
    scenarios: tuple[int, ...],
) -> dict[int, Psds]:
    truth = _merged(truth, durations, classes, "truth")
    found = _inside(predicted, durations, classes, "prediction")
    for clip, events in found.items():
        if bad := [event for event in events if not np.isfinite(event.confidence)]:
            raise InputError(f"prediction, clip {clip}: confidence {bad[0].confidence} in {bad[0]}")
    counted = _with_truth(truth, classes)
    tables = _event_tables(found, durations, counted)
    return {each: _psds(tables, truth, durations, counted, each) for each in scenarios}
