"""Event metrics of the field: collar, segment and intersection F1, PSDS.

Reads:  events of each clip, or frame scores of each clip; durations; the classes
Shapes: C clips, K classes, T frames, E events; counts (C, K), score values (K, T), edges (T + 1,) s

All of it is counted over events: work and memory grow with their number, not with clips times
classes. The figures equal those of sed_eval and sed_scores_eval (J. Ebbers et al., ICASSP 2022),
with which the tests compare them.

What is evaluated. `durations` names the clips. A clip that truth or prediction lacks has no events
there (label files often leave such clips out); a clip or class that is not named is an InputError.
In truth and prediction alike, events are cut to 0 .. duration, those without length or outside the
clip are left out (the rule of labels.fit_events), times are rounded to microseconds, and events of
one class that overlap or touch are one event: the libraries refuse them.

Defined values. A class with neither truth nor prediction has F1 = 1, as in metrics.py, but takes no
part in the macro average, where it would flatter. A class with only false alarms has F1 = 0 and
takes part (sed_eval leaves such a class out). Where no class takes part, macro and micro are 1:
nothing was there and nothing was said. PSDS is over the classes with an event in the truth
(`Psds.per_class`), as no other has a true positive rate; without any it is 0. No value is ever NaN.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from core.errors import InputError
from sed.metrics import f1_score, macro_average
from sed.timeline import ClipScores, Event

DECIMALS = 6  # of a second; also what sed_scores_eval compares times with
TICKS = 10**DECIMALS  # a second: times are whole numbers, so that no rounding decides a collar
COLLAR = TICKS // 5  # of an onset, and the least one of an offset (DCASE Task 4)
LONG = 5  # the collar of an offset is at least the true event's length over this (DCASE Task 4)
SEGMENT = TICKS  # DCASE Task 4
HALF = 0.5  # dtc = gtc of the DESED baselines, intersection F1
MAX_EFPR = 100.0  # effective false positives an hour, the end of PSDS's curve
ALPHA_ST = 1.0  # what PSDS takes off for classes that differ: their standard deviation
RATE_DIGITS = 9  # of false positives an hour: sums in another order give another last bit

Clips = Mapping[str, list[Event]]


class Scenario(NamedTuple):
    """Criteria of a PSDS (C. Bilen et al., ICASSP 2020): shares of a detection in true events of
    its class (dtc), of a true event in detections (gtc), of a false alarm in another class (cttc),
    and what such a cross trigger costs beside a false alarm."""

    dtc: float
    gtc: float
    cttc: float | None = None
    alpha_ct: float = 0.0


# DCASE Task 4 since 2021: 1 wants exact times, 2 the right class.
SCENARIOS = {1: Scenario(0.7, 0.7), 2: Scenario(0.1, 0.1, 0.3, 0.5)}


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


class Psds(NamedTuple):
    """Polyphonic sound detection score, and that of each class with an event in the truth."""

    value: float
    per_class: dict[str, float]


# ---------------------------------------------------------------------------- what comes in


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
    """Events of every clip that has a duration, rounded and cut to it: what is left of them.

    InputError for a clip without a duration, and for a class that is not among those asked for.
    """
    if unknown := [name for name in clips if name not in durations]:
        raise InputError(f"{what}: {len(unknown)} clips have no duration, first {unknown[0]!r}")
    names, number = list(durations), {name: k for k, name in enumerate(classes)}
    given = [clips.get(name, ()) for name in names]
    rows = [event for events in given for event in events]
    if odd := sorted({event.event_label for event in rows} - number.keys()):
        raise InputError(f"{what}: {odd[0]!r} is not a class to evaluate ({', '.join(classes)})")
    clip = np.repeat(np.arange(len(names)), [len(events) for events in given])
    label = np.array([number[event.event_label] for event in rows], np.int64)
    times = np.array([event[:2] for event in rows], np.float64).reshape(-1, 2)
    confidence = np.array([event[3] if len(event) > 3 else 1.0 for event in rows], np.float64)
    end = np.array(list(durations.values()), np.float64)[clip]
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


# ---------------------------------------------------------------------------- one line for all


class _Spans(NamedTuple):
    """Stretches of time of all clips and classes on one line of ticks, where every (clip, class)
    has a place of its own, whole segments long: (E,) each."""

    place: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def some(self, chosen: np.ndarray) -> "_Spans":
        """Spans by index or mask."""
        return _Spans(*(part[chosen] for part in self))


class _Line(NamedTuple):
    """Place clip * num_classes + label begins at so many times the length."""

    length: int
    num_clips: int
    num_classes: int

    @classmethod
    def of(cls, durations: Mapping[str, float], classes: list[str]) -> "_Line":
        """A line whose places are so far apart that events of different ones cannot match."""
        longest = int(max(durations.values()) * TICKS)
        return cls((longest // SEGMENT + 2) * SEGMENT, len(durations), len(classes))

    def put(self, events: _Events) -> _Spans:
        """Events on the line, in their order."""
        place = events.clip * self.num_classes + events.label
        at = place * self.length
        return _Spans(place, events.onset + at, events.offset + at)

    def count(self, places: np.ndarray) -> csr_array:
        """How often each place is named, (C, K); memory grows with the places."""
        shape = self.num_clips, self.num_classes
        return csr_array((np.ones(len(places), np.int64), np.divmod(places, shape[1])), shape)


def _ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges first .. last - 1 (E,) -> which range and which number, for each number in them."""
    size = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(size)), size)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(size) - size - first, size)


def _shared(found: _Spans, true: _Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which found and which true spans overlap, and by how much; the true ones do not overlap each
    other and are in order."""
    first = np.searchsorted(true.end, found.begin, "right")
    last = np.searchsorted(true.begin, found.end, "left")
    f, t = _ranges(first, last)
    return f, t, np.minimum(found.end[f], true.end[t]) - np.maximum(found.begin[f], true.begin[t])


def _enough(part: np.ndarray, share: float, spans: _Spans) -> np.ndarray:
    """Whether a part (E,) is at least a share of each span, to the tick."""
    return part >= np.rint(share * (spans.end - spans.begin))


# ---------------------------------------------------------------------------- F1 of events


def _within_collars(found: _Spans, true: _Spans) -> tuple[np.ndarray, np.ndarray]:
    """Which found and which true spans match by collars (DCASE Task 4): onset within 200 ms, offset
    within 200 ms or 20 % of the true event's length, whichever is more.

    A distance of exactly the collar counts as inside; in sed_eval rounding errors decide it. The
    true spans are in order.
    """
    first = np.searchsorted(true.begin, found.begin - COLLAR, "left")
    last = np.searchsorted(true.begin, found.begin + COLLAR, "right")
    f, t = _ranges(first, last)
    late = np.abs(found.end[f] - true.end[t])
    near = (late <= COLLAR) | (LONG * late <= true.end[t] - true.begin[t])
    return f[near], t[near]


def _collar(found: _Spans, true: _Spans, line: _Line) -> tuple[csr_array, ...]:
    """Matches by collars: each event is matched once, and as many as possible are."""
    f, t = _within_collars(found, true)
    edges = csr_array((np.ones(len(t), np.int8), (t, f)), (len(true.begin), len(found.begin)))
    tp = line.count(true.place[maximum_bipartite_matching(edges, "column") >= 0])
    return tp, line.count(found.place) - tp, line.count(true.place) - tp


def _intersection(found: _Spans, true: _Spans, line: _Line) -> tuple[csr_array, ...]:
    """Matches by overlap (C. Bilen et al., ICASSP 2020), dtc = gtc = 0.5 as in the DESED baselines.

    A detection is a false alarm unless at least half of it lies in true events of its class; a true
    event is found when at least half of it lies in detections that are no false alarms.
    """
    f, t, shared = _shared(found, true)
    good = _enough(np.bincount(f, shared, len(found.begin)), HALF, found)
    heard = _enough(np.bincount(t, shared * good[f], len(true.begin)), HALF, true)
    tp = line.count(true.place[heard])
    return tp, line.count(found.place[~good]), line.count(true.place) - tp


def _segment(found: _Spans, true: _Spans, line: _Line) -> tuple[csr_array, ...]:
    """Segments of 1 s from the clip's begin, the last one may be shorter: a class is on in a
    segment when an event of it overlaps the segment."""
    on, there = (
        np.unique(_ranges(side.begin // SEGMENT, -(-side.end // SEGMENT))[1])
        for side in (found, true)
    )
    both = np.intersect1d(on, there, assume_unique=True)
    tp, said, needed = (line.count(each // (line.length // SEGMENT)) for each in (both, on, there))
    return tp, said - tp, needed - tp


KINDS = {"event_f1": _collar, "segment_f1": _segment, "intersection_f1": _intersection}


def event_counts(
    predicted: Clips,
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
    only: Iterable[str] | None = None,
) -> dict[str, EventCounts]:
    """Counts (C, K) for `event_f1`, `segment_f1` and `intersection_f1`, or `only` some of them.

    Raises InputError for clips without a duration and for unknown classes.
    """
    found = _merged(_events(predicted, durations, classes, "prediction"))
    true = _merged(_events(truth, durations, classes, "truth"))
    line = _Line.of(durations, classes)
    sides = line.put(found), line.put(true)
    return {name: EventCounts(*KINDS[name](*sides, line)) for name in only or KINDS}


def averages(counts: EventCounts) -> tuple[np.ndarray, np.ndarray]:
    """Counts (.., K) of classes -> macro and micro F1 (..), as the module's text defines them."""
    macro = macro_average(f1_score(*counts), sum(counts) > 0)
    return macro, f1_score(*(cell.sum(-1) for cell in counts))


def macro_f1(counts: EventCounts) -> float:
    """Mean F1 over classes of counts (C, K) over all clips."""
    return float(averages(EventCounts(*(cell.sum(axis=0) for cell in counts)))[0])


# ---------------------------------------------------------------------------- all thresholds


class Regions(NamedTuple):
    """What thresholds switch on: stretches (R,) that are an event of their own for thresholds from
    `low` to below `high`. Those of a lower threshold hold those of a higher one."""

    spans: _Spans
    high: np.ndarray
    low: np.ndarray

    def some(self, chosen: np.ndarray) -> "Regions":
        """Regions by index or mask."""
        return Regions(self.spans.some(chosen), self.high[chosen], self.low[chosen])


class Changes(NamedTuple):
    """By how much a count of a class changes, (M,), where a threshold falls below a level, and in
    which clip."""

    label: np.ndarray
    level: np.ndarray
    change: np.ndarray
    clip: np.ndarray


class Trials(NamedTuple):
    """What thresholds find in a scenario of PSDS: true events, false alarms, and the false alarms
    that lie in true events of another class, by that class. Each counts 1."""

    tp: Changes
    fp: Changes
    crossed: dict[int, Changes]

    def summed(self) -> "Trials":
        """The same in fewer changes, for clips that all weigh 1."""
        crossed = {other: _summed(some) for other, some in self.crossed.items()}
        return Trials(_summed(self.tp), _summed(self.fp), crossed)

    def __add__(self, other: "Trials") -> "Trials":
        """Trials of other pairs too; all clips weigh 1."""
        (tp, fp), both = (_joined(list(each)) for each in zip(self[:2], other[:2], strict=True)), {}
        for name in self.crossed:
            both[name] = _joined([self.crossed[name], other.crossed[name]])
        return Trials(tp, fp, both).summed()


def _joined(parts: list[Changes]) -> Changes:
    return Changes(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _summed(some: Changes) -> Changes:
    """Changes of a class at a level made one, by class and level, whatever clip they are of."""
    order = np.lexsort((some.level, some.label))
    label, level, change, clip = (part[order] for part in some)
    fresh = np.ones(len(label), bool)
    fresh[1:] = (label[1:] != label[:-1]) | (level[1:] != level[:-1])
    first = np.flatnonzero(fresh)
    change = np.add.reduceat(change, first) if len(first) else change
    return Changes(label[first], level[first], change, clip[first])


def _nearest_lower(level: np.ndarray, or_equal: bool) -> np.ndarray:
    """(S,) -> index of the nearest step to the left that is lower, by doubling jumps: a jump never
    passes a lower step. The first step must be -inf, and is its own."""
    left = np.maximum(np.arange(len(level)) - 1, 0)
    todo = np.arange(1, len(level))
    passed = np.greater if or_equal else np.greater_equal
    while len(todo):
        at = left[todo]
        todo = todo[passed(level[at], level[todo]) & (at > 0)]
        left[todo] = left[left[todo]]
    return left


class Sweep:
    """Metrics of what all thresholds together switch on, against a truth.

    Raises InputError as `event_counts`.
    """

    def __init__(self, truth: Clips, durations: Mapping[str, float], classes: list[str]) -> None:
        self.true = _merged(_events(truth, durations, classes, "truth"))
        self.classes, self.line = classes, _Line.of(durations, classes)
        self.spans = self.line.put(self.true)
        self.number = np.bincount(self.true.label, minlength=len(classes))  # (K,) true events
        self.durations = np.array(list(durations.values()), np.float64)  # (C,) s

    # What is on.

    def of_steps(self, edges: np.ndarray, level: np.ndarray) -> Regions:
        """Steps between edges (S + 1,) on the line, in ticks, with their levels (S,): -inf at both
        ends and between places."""
        before = _nearest_lower(level, or_equal=True)
        after = len(level) - 1 - _nearest_lower(level[::-1], or_equal=False)[::-1]
        # Of steps of one level in a region, the first stands for it.
        at = np.flatnonzero((level > -np.inf) & (level[before] < level))
        begin, end = edges[before[at] + 1], edges[after[at]]
        low = np.maximum(level[before[at]], level[after[at]])
        return Regions(_Spans(begin // self.line.length, begin, end), level[at], low)

    def of_boxes(
        self,
        clip: np.ndarray,
        label: np.ndarray,
        begin_s: np.ndarray,
        end_s: np.ndarray,
        level: np.ndarray,
    ) -> Regions:
        """Boxes (B,) that do not overlap in a clip and class: numbers of clip and class, seconds
        inside the clip, and the level below which a threshold switches each on."""
        times = (np.rint(side * TICKS).astype(np.int64) for side in (begin_s, end_s))
        spans = self.line.put(_Events(clip, label, *times, level))
        return Regions(spans, level, np.full(len(level), -np.inf))

    def of_events(self, events: _Events) -> Regions:
        """Events with a confidence; where some of a class overlap, the larger one counts."""
        found = self.line.put(events)
        edges = np.unique(np.concatenate((found.begin, found.end)))
        edges = np.concatenate((edges[:1] - 1, edges, edges[-1:] + 1))
        level = np.full(max(len(edges) - 1, 0), -np.inf)
        which, step = _ranges(*(np.searchsorted(edges, side) for side in (found.begin, found.end)))
        np.maximum.at(level, step, events.confidence[which])
        return self.of_steps(edges, level)

    def of_scores(self, rows: Iterable[tuple[int, int, np.ndarray, np.ndarray]]) -> Regions:
        """Frame scores: number of the clip and of the class, values (T,), edges (T + 1,) in
        seconds, by rising clip and class. Frames must end with the clip."""
        edges, level = [np.array([-1])], [[-np.inf]]
        for clip, label, values, times in rows:
            at = (clip * self.line.num_classes + label) * self.line.length
            edges.append(np.rint(times * TICKS).astype(np.int64) + at)
            level += [values, [-np.inf]]
        edges.append(edges[-1][-1:] + 1)
        return self.of_steps(np.concatenate(edges), np.concatenate(level).astype(np.float64))

    # What it is worth.

    def _come_and_go(self, regions: Regions) -> Changes:
        """Each region counts from its highest threshold to its lowest."""
        clip, label = np.divmod(regions.spans.place, len(self.classes))
        ends = regions.low > -np.inf
        return Changes(
            np.concatenate((label, label[ends])),
            np.concatenate((regions.high, regions.low[ends])),
            np.repeat((1.0, -1.0), (len(label), ends.sum())),
            np.concatenate((clip, clip[ends])),
        )

    def _found(
        self, regions: Regions, r: np.ndarray, t: np.ndarray, part: np.ndarray, needed: np.ndarray
    ) -> Changes:
        """Where true events become found, and lost again: those of which the regions that are on
        hold the needed (E,); region r holds a part of event t, (M,) each."""
        ends = regions.low[r] > -np.inf
        event = np.concatenate((t, t[ends]))
        level = np.concatenate((regions.high[r], regions.low[r][ends]))
        part = np.concatenate((part, -part[ends]))
        order = np.lexsort((-level, event))
        event, level, held = event[order], level[order], np.cumsum(part[order])
        first = np.searchsorted(event, event)  # sums are of each event alone
        held = held - np.where(first > 0, held[first - 1], 0)
        last = np.ones(len(event), bool)  # of the changes at one level
        last[:-1] = (event[1:] != event[:-1]) | (level[1:] != level[:-1])
        event, level, held = event[last], level[last], held[last]
        found = (held >= needed[event]).astype(np.int64)
        fresh = np.ones(len(event), bool)
        fresh[1:] = event[1:] != event[:-1]
        change = np.where(fresh, found, np.diff(found, prepend=0))
        moved = change != 0
        clip, label = (side[event[moved]] for side in (self.true.clip, self.true.label))
        return Changes(label, level[moved], change[moved].astype(np.float64), clip)

    def by_overlap(self, regions: Regions, dtc: float, gtc: float) -> tuple[Changes, Regions]:
        """True positives, and the regions that are false alarms."""
        r, t, shared = _shared(regions.spans, self.spans)
        good = _enough(np.bincount(r, shared, len(regions.high)), dtc, regions.spans)
        kept, size = good[r], self.spans.end - self.spans.begin
        tp = self._found(regions, r[kept], t[kept], shared[kept], np.rint(gtc * size))
        return tp, regions.some(~good)

    def event_f1(self, regions: Regions) -> tuple[Changes, Changes]:
        """True positives and everything on. Where one event takes two true ones, both count."""
        r, t = _within_collars(regions.spans, self.spans)
        one = np.ones(len(self.spans.begin))
        tp = self._found(regions, r, t, np.ones(len(r)), one)
        return tp, self._come_and_go(regions)

    def intersection_f1(self, regions: Regions) -> tuple[Changes, Changes]:
        """True positives, and these with the false alarms."""
        tp, bad = self.by_overlap(regions, HALF, HALF)
        return tp, _joined([tp, self._come_and_go(bad)])

    def _cross_triggers(self, bad: Regions, cttc: float) -> dict[int, Changes]:
        """False alarms of which a share lies in true events of another class, by that class."""
        clip, label = np.divmod(bad.spans.place, len(self.classes))
        found = {}
        for other in np.flatnonzero(self.number).tolist():
            mine = self.true.label == other
            asked = np.flatnonzero((label != other) & np.isin(clip, self.true.clip[mine]))
            moved = (other - label[asked]) * self.line.length
            spans = _Spans(clip[asked], *(side[asked] + moved for side in bad.spans[1:]))
            r, _, shared = _shared(spans, self.spans.some(mine))
            hit = _enough(np.bincount(r, shared, len(asked)), cttc, spans)
            found[other] = self._come_and_go(bad.some(asked[hit]))
        return found

    def trials(self, regions: Regions, scenario: int) -> Trials:
        """What `psds_of` counts, once for all weights of the clips."""
        setting = SCENARIOS[scenario]
        tp, bad = self.by_overlap(regions, setting.dtc, setting.gtc)
        crossed = {} if setting.cttc is None else self._cross_triggers(bad, setting.cttc)
        return Trials(tp, self._come_and_go(bad), crossed)

    def psds(self, regions: Regions, scenario: int) -> Psds:
        """Area under the PSD-ROC up to 100 effective false positives an hour (C. Bilen et al.,
        ICASSP 2020) over all thresholds (J. Ebbers et al., ICASSP 2022)."""
        return self.psds_of(self.trials(regions, scenario), scenario)

    def psds_of(self, trials: Trials, scenario: int, weights: np.ndarray | None = None) -> Psds:
        """PSDS of trials, where each clip counts as its weight (C,), above 0; 1 where not given."""
        weights = np.ones(self.line.num_clips) if weights is None else weights
        there, setting = np.flatnonzero(self.number), SCENARIOS[scenario]
        if not len(there):
            return Psds(0.0, {})
        num_classes, label, clip = len(self.classes), self.true.label, self.true.clip
        number = np.bincount(label, weights[clip], num_classes)  # (K,) true events
        length = (self.true.offset - self.true.onset) * weights[clip] / TICKS / 3600
        hours = np.bincount(label, length, num_classes)  # (K,) that they last

        def weighed(some: Changes, each: float) -> Changes:
            return some._replace(change=some.change * (each * weights[some.clip]))

        tp = weighed(trials.tp, 1.0)
        fp = [weighed(trials.fp, 1 / (self.durations @ weights / 3600))]
        if len(there) > 1:  # else nothing else could be triggered; the mean over all others
            for other, crossed in trials.crossed.items():
                each = 1 / hours[other] / (len(there) - 1)
                fp.append(weighed(crossed, setting.alpha_ct * each))
        fp = _joined(fp)
        curves = [_curve(tp, fp, label) for label in there]
        rates = np.concatenate([[0.0, MAX_EFPR], *(x[x <= MAX_EFPR] for x, _ in curves)])
        rates = np.unique(rates.clip(0).round(RATE_DIGITS))
        best = np.array(
            [
                y[np.searchsorted(x, rates + 10.0**-RATE_DIGITS, "right") - 1] / number[label]
                for (x, y), label in zip(curves, there, strict=True)
            ]
        )  # up to each rate, and so to the next one
        width = np.diff(rates) / MAX_EFPR
        effective = np.maximum(best.mean(0) - ALPHA_ST * best.std(0), 0.0)
        of_class = best[:, :-1] @ width
        return Psds(
            float(effective[:-1] @ width),
            {self.classes[k]: float(area) for k, area in zip(there, of_class, strict=True)},
        )


def _curve(tp: Changes, fp: Changes, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Effective false positive rates that a class's thresholds give, rising, and the most true
    positives up to each."""
    mine = [side.label == label for side in (tp, fp)]
    level = np.concatenate((tp.level[mine[0]], fp.level[mine[1]]))
    order = np.argsort(-level, kind="stable")
    level = level[order]
    sums = np.zeros((2, len(level)))
    sums[0, : mine[0].sum()], sums[1, mine[0].sum() :] = tp.change[mine[0]], fp.change[mine[1]]
    sums = sums[:, order].cumsum(axis=1)[:, np.append(level[1:] != level[:-1], True)[: len(level)]]
    y, x = (np.concatenate(([0.0], each)) for each in sums)
    order = np.lexsort((y, x))
    return x[order], np.maximum.accumulate(y[order])


# ---------------------------------------------------------------------------- PSDS


def psds(
    found: Mapping[str, list[ScoredEvent]] | Mapping[str, ClipScores],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
) -> dict[int, Psds]:
    """PSDS 1 and 2 of events with a confidence, or of frame scores.

    Raises InputError as `event_counts`.
    """
    sweep, regions = swept(found, truth, durations, classes)
    return {each: sweep.psds(regions, each) for each in SCENARIOS}


def swept(
    found: Mapping[str, list[ScoredEvent]] | Mapping[str, ClipScores],
    truth: Clips,
    durations: Mapping[str, float],
    classes: list[str],
) -> tuple[Sweep, Regions]:
    """What `psds` is counted from: all thresholds on what was found in each clip.

    Events: a threshold keeps events, it never changes them. Where events of a class overlap, the
    larger confidence counts; outside them no threshold switches a class on. Scores: their rows are
    in the order of `classes`; frames are cut to the clip's duration. Raises InputError as
    `event_counts`.
    """
    if any(isinstance(each, ClipScores) for each in found.values()):
        sweep = Sweep(truth, durations, classes)
        return sweep, sweep.of_scores(_score_rows(found, sweep, durations))
    events = _events(found, durations, classes, "prediction")
    sweep = Sweep(truth, durations, classes)
    return sweep, sweep.of_events(events)


def _score_rows(
    scores: Mapping[str, ClipScores], sweep: Sweep, durations: Mapping[str, float]
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Clip, class, scores (T,) and times (T + 1,) of every row of a class that sounds somewhere."""
    for number, (clip, duration) in enumerate(durations.items()):
        values, edges = scores[clip][:2]
        inside = int(np.searchsorted(edges, duration))  # frames that begin before the end
        times = np.minimum(edges[: inside + 1], duration)
        for k in np.flatnonzero(sweep.number):
            yield number, int(k), values[k, :inside], times


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
