"""Event metrics against slow definitions on a grid of whole steps, and against the libraries.

The references draw events on a grid, where times are whole numbers, so that no rounding decides a
collar or a share. sed_eval and sed_scores_eval are compared with where they are installed.
"""

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import all_f1, f1_of, library_hits, library_psds, score_tables

from core.errors import InputError
from scores.score_files import ScoreFiles
from sed.event_metrics import (
    EventCounts,
    ScoredEvent,
    averages,
    event_counts,
    mean_scores,
    psds,
    swept,
)
from sed.labels import read_labels
from sed.timeline import ClipScores, Event, frames_to_events, merge_events, write_labels

CLASSES = ["Dog", "Cat", "Speech"]
STEP = 0.05  # seconds; the collar of 200 ms is 4 steps
COLLAR, SECOND = 4, 20  # steps
KINDS = ("event_f1", "segment_f1", "intersection_f1")


# ---------------------------------------------------------------------------- generated clips


class Made(NamedTuple):
    """Clips in steps: (first, last + 1, class, level) of each event, and the steps of each clip."""

    predicted: dict[str, list[tuple[int, int, str, int]]]
    truth: dict[str, list[tuple[int, int, str, int]]]
    steps: dict[str, int]

    def seconds(self, shift: float = 0.0, step: float = STEP):
        """What the suite is given; `shift` moves the predicted events."""

        def events(rows, late):
            return [Event(a * step + late, b * step + late, label) for a, b, label, _ in rows]

        return (
            {clip: events(rows, shift) for clip, rows in self.predicted.items()},
            {clip: events(rows, 0.0) for clip, rows in self.truth.items()},
            {clip: steps * step for clip, steps in self.steps.items()},
        )

    def scored(self):
        """Predicted events with their level as confidence."""
        return {
            clip: [ScoredEvent(a * STEP, b * STEP, label, level / 4) for a, b, label, level in rows]
            for clip, rows in self.predicted.items()
        }


@st.composite
def events_of(draw, steps: int, most: int):
    rows = []
    for _ in range(draw(st.integers(0, most))):
        first = draw(st.integers(0, steps - 1))
        length = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 10, 20, 30]))
        level = draw(st.integers(1, 4))
        rows.append((first, min(first + length, steps), draw(st.sampled_from(CLASSES)), level))
    return rows


@st.composite
def made(draw, most: int = 5):
    """Up to three clips; a prediction is free, or a true event with its ends moved."""
    predicted, truth, steps = {}, {}, {}
    for index in range(draw(st.integers(1, 3))):
        clip = f"{index}.wav"
        steps[clip] = draw(st.sampled_from([3, 40, 61, 90]))
        truth[clip] = draw(events_of(steps[clip], most))
        rows = draw(events_of(steps[clip], 2))
        for first, last, label, _ in truth[clip]:
            moves = st.integers(-5, 5)
            a = min(max(first + draw(moves), 0), steps[clip] - 1)
            b = min(max(last + draw(moves), a + 1), steps[clip])
            rows.append((a, b, label, draw(st.integers(1, 4))))
        predicted[clip] = rows
    return Made(predicted, truth, steps)


# ---------------------------------------------------------------------------- slow definitions


def drawn(rows, label: str, steps: int, level: int = 0) -> list[tuple[int, int]]:
    """Spans of a class: steps covered by an event of at least the level, joined where they meet."""
    on = [
        any(a <= i < b and name == label and own >= level for a, b, name, own in rows)
        for i in range(steps)
    ]
    spans, begin = [], None
    for i, here in enumerate([*on, False]):
        if here and begin is None:
            begin = i
        elif not here and begin is not None:
            spans.append((begin, i))
            begin = None
    return spans


def shared(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def most_matches(found, truth, near) -> int:
    """The largest number of pairs, each span used once: by trying everything."""
    if not truth:
        return 0
    first, rest = truth[0], truth[1:]
    best = most_matches(found, rest, near)
    for i, span in enumerate(found):
        if near(span, first):
            best = max(best, 1 + most_matches(found[:i] + found[i + 1 :], rest, near))
    return best


def within_collars(span, true) -> bool:
    late, length = abs(span[1] - true[1]), true[1] - true[0]
    return abs(span[0] - true[0]) <= COLLAR and (late <= COLLAR or 5 * late <= length)


def by_collar(found, truth, steps):
    hits = most_matches(found, truth, within_collars)
    return hits, len(found) - hits, len(truth) - hits


def by_segment(found, truth, steps):
    seconds = [(i, i + SECOND) for i in range(0, steps, SECOND)]
    said = [any(shared(span, second) for span in found) for second in seconds]
    there = [any(shared(span, second) for span in truth) for second in seconds]
    cells = list(zip(said, there, strict=True))
    return cells.count((True, True)), cells.count((True, False)), cells.count((False, True))


def relevant(found, truth, share: Fraction):
    """Detections of which the share lies in true events (DTC)."""
    return [d for d in found if sum(shared(d, t) for t in truth) >= share * (d[1] - d[0])]


def by_intersection(found, truth, steps, dtc=Fraction(1, 2), gtc=Fraction(1, 2)):
    good = relevant(found, truth, dtc)
    hits = sum(sum(shared(t, d) for d in good) >= gtc * (t[1] - t[0]) for t in truth)
    return hits, len(found) - len(good), len(truth) - hits


def slow_counts(clips: Made, rule) -> EventCounts:
    cells = [
        [
            rule(
                drawn(clips.predicted.get(clip, []), label, steps),
                drawn(clips.truth.get(clip, []), label, steps),
                steps,
            )
            for label in CLASSES
        ]
        for clip, steps in clips.steps.items()
    ]
    return EventCounts(*np.moveaxis(np.array(cells), 2, 0))


def slow_f1(tp: int, fp: int, fn: int) -> float:
    if tp + fp + fn == 0:
        return 1.0
    if tp == 0:
        return 0.0
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def slow_psds(clips: Made, hours, levels, dtc, gtc, cttc=None, alpha_ct=0.0) -> float:
    """Every threshold is an operating point; the best true positive rate up to each false alarm
    rate; mean less deviation over classes; area up to 100 an hour."""
    true = {
        label: {clip: drawn(clips.truth[clip], label, n) for clip, n in clips.steps.items()}
        for label in CLASSES
    }
    there = [label for label in CLASSES if any(true[label].values())]
    points = {label: [(0.0, 0.0)] for label in there}
    for label in there:
        number = sum(map(len, true[label].values()))
        for level in levels:
            hits = alarms = 0
            crossed = dict.fromkeys((other for other in there if other != label), 0)
            for clip, steps in clips.steps.items():
                found, own = drawn(clips.predicted[clip], label, steps, level), true[label][clip]
                tp, fp, _ = by_intersection(found, own, steps, dtc, gtc)
                hits, alarms = hits + tp, alarms + fp
                false = [span for span in found if span not in relevant(found, own, dtc)]
                for other in crossed if cttc else ():
                    crossed[other] += len(relevant(false, true[other][clip], cttc))
            rate = alarms / hours
            if crossed and alpha_ct:
                each = [
                    count
                    * 3600
                    / (STEP * sum(b - a for spans in true[other].values() for a, b in spans))
                    for other, count in crossed.items()
                ]
                rate += alpha_ct * sum(each) / len(each)
            points[label].append((rate, hits / number))
    rates = sorted({x for rows in points.values() for x, _ in rows if x <= 100} | {0.0, 100.0})
    area = 0.0
    for left, right in itertools.pairwise(rates):
        best = [max(y for x, y in points[label] if x <= left) for label in there]
        area += max(0.0, np.mean(best) - np.std(best)) * (right - left) if best else 0.0
    return area / 100


# ---------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
    ("kind", "rule"), list(zip(KINDS, (by_collar, by_segment, by_intersection), strict=True))
)
@given(made())
def test_counts_against_the_definition(kind, rule, clips):
    found, slow = event_counts(*clips.seconds(), CLASSES)[kind], slow_counts(clips, rule)
    for cell, expected in zip(found, slow, strict=True):
        assert cell.toarray().tolist() == expected.tolist()
    f1, total = f1_of(found, CLASSES), [cell.sum(0).tolist() for cell in slow]
    each = [slow_f1(*cells) for cells in zip(*total, strict=True)]
    assert list(f1.per_class) == CLASSES
    assert list(f1.per_class.values()) == pytest.approx(each, abs=1e-12)
    taking_part = [f for f, *cells in zip(each, *total, strict=True) if sum(cells)]
    assert f1.num_classes == len(taking_part)
    macro = sum(taking_part) / len(taking_part) if taking_part else 1.0
    assert f1.macro == pytest.approx(macro, abs=1e-12)
    assert f1.micro == pytest.approx(slow_f1(*map(sum, total)), abs=1e-12)


SETTINGS = {
    1: {"dtc": Fraction(7, 10), "gtc": Fraction(7, 10)},
    2: {
        "dtc": Fraction(1, 10),
        "gtc": Fraction(1, 10),
        "cttc": Fraction(3, 10),
        "alpha_ct": 0.5,
    },
}
LONG_S = 1200.0  # the first clip goes on in silence: a false alarm more is not yet 100 an hour


@pytest.mark.parametrize("scenario", [1, 2])
@given(clips=made(most=4))
def test_event_psds_against_the_definition(scenario, clips):
    _, truth, durations = clips.seconds()
    durations["0.wav"] = LONG_S
    found = psds(clips.scored(), truth, durations, CLASSES)[scenario]
    hours = sum(durations.values()) / 3600
    assert found.value == pytest.approx(
        slow_psds(clips, hours, (4, 3, 2, 1), **SETTINGS[scenario]), abs=1e-9
    )
    assert list(found.per_class) == [name for name in CLASSES if name in labels_of(truth)]


@given(made(), st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_a_clip_of_weight_two_is_there_twice(clips, weights):
    """PSDS of weighted clips: whole weights are clips repeated under other names."""
    _, truth, durations = clips.seconds()
    times = dict(zip(durations, weights, strict=False))

    def repeated(some):
        return {f"{n}-{k}": some[n] for n in durations for k in range(times[n])}

    sweep, regions = swept(clips.scored(), truth, durations, CLASSES)
    expected = psds(*map(repeated, (clips.scored(), truth, durations)), CLASSES)
    for scenario, whole in expected.items():
        trials = sweep.trials(regions, scenario)
        found = sweep.psds_of(trials, scenario, np.array([float(times[n]) for n in durations]))
        assert found.value == pytest.approx(whole.value, abs=1e-9)


def labels_of(clips) -> set[str]:
    return {event.event_label for events in clips.values() for event in events}


@pytest.mark.parametrize("scenario", [1, 2])
@given(clips=made(most=4))
def test_psds_of_scores_against_the_definition(scenario, clips):
    """Frames of one step with the highest level of the events there, or 0: below 0 all is on."""
    _, truth, durations = clips.seconds()
    durations["0.wav"] = LONG_S
    scores = {}
    for clip, steps in clips.steps.items():
        values = np.zeros((len(CLASSES), steps), np.float32)
        for first, last, label, level in clips.predicted[clip]:
            span = values[CLASSES.index(label), first:last]
            np.maximum(span, level / 4, out=span)
        scores[clip] = ClipScores(values, np.arange(steps + 1) * STEP)
    found = psds(scores, truth, durations, CLASSES)[scenario].value
    for clip, steps in clips.steps.items():
        clips.predicted[clip].extend((0, steps, label, 0) for label in CLASSES)
    hours = sum(durations.values()) / 3600
    slow = slow_psds(clips, hours, (4, 3, 2, 1, 0), **SETTINGS[scenario])
    assert found == pytest.approx(slow, abs=1e-9)


def in_sed_eval(predicted, truth, durations, classes):
    """The same events, merged, given to sed_eval: its event and its segment metrics."""
    sed_eval = pytest.importorskip("sed_eval")

    events = sed_eval.sound_event.EventBasedMetrics(
        classes, t_collar=0.2, percentage_of_length=0.2, empty_system_output_handling="zero_score"
    )
    segments = sed_eval.sound_event.SegmentBasedMetrics(classes, time_resolution=1.0)
    for clip, duration in durations.items():
        both = [
            [
                {"onset": round(e.onset, 6), "offset": round(e.offset, 6), "event_label": e[2]}
                for e in merge_events(side.get(clip, []))
            ]
            for side in (truth, predicted)
        ]
        events.evaluate(*both)
        segments.evaluate(*both, evaluated_length_seconds=duration)
    return events, segments


def assert_same(found, metric, classes):
    """Counts and F1 of each class and of all, where sed_eval has a number."""
    compared = 0
    for name in classes:
        theirs = metric.class_wise_f_measure(name)["f_measure"]
        if not np.isnan(theirs):
            assert found.per_class[name] == pytest.approx(theirs, abs=1e-9)
            compared += 1
    theirs = metric.overall_f_measure()["f_measure"]
    if not np.isnan(theirs):
        assert found.micro == pytest.approx(theirs, abs=1e-9)
    return compared


@settings(max_examples=25)
@given(made())
def test_event_and_segment_f1_equal_sed_eval(clips):
    """7 ms late on a grid of 30 ms: no distance is exactly a collar, where sed_eval's answer is
    chance. Predictions are cut to the clip here, as sed_eval counts what lies behind its end."""
    predicted, truth, durations = clips.seconds(shift=0.007, step=0.03)
    predicted = {
        clip: [e._replace(offset=min(e.offset, durations[clip])) for e in rows]
        for clip, rows in predicted.items()
    }
    events, segments = in_sed_eval(predicted, truth, durations, CLASSES)
    counts = event_counts(predicted, truth, durations, CLASSES)
    for kind, metric in (("event_f1", events), ("segment_f1", segments)):
        for cell, name in zip(counts[kind], ("Ntp", "Nfp", "Nfn"), strict=True):
            theirs = [metric.class_wise[label][name] for label in CLASSES]
            assert cell.sum(axis=0).tolist() == theirs
        assert_same(f1_of(counts[kind], CLASSES), metric, CLASSES)


CENTISECONDS = st.integers(0, 990)


@st.composite
def crowded(draw):
    """A few clips full of short events, so that many are within the collars of many: seconds, to
    the hundredth; of one class, or of two."""
    sides = []
    for _ in range(2):
        clips = {}
        for clip in ("a.wav", "b.wav"):
            rows = draw(st.lists(st.tuples(CENTISECONDS, st.integers(2, 70)), max_size=12))
            names = draw(st.sampled_from([CLASSES[:1], CLASSES[:2]]))
            clips[clip] = [
                Event(a / 100, min(a + n, 1_000) / 100, names[i % len(names)])
                for i, (a, n) in enumerate(rows)
            ]
        sides.append(clips)
    return sides


@settings(max_examples=50, deadline=None)
@given(crowded())
def test_counts_equal_sed_scores_eval(sides):
    durations = {"a.wav": 10.0, "b.wav": 10.0}
    counts = event_counts(*sides, durations, CLASSES)
    pytest.importorskip("sed_scores_eval")
    for kind, hits in library_hits(*sides, durations, CLASSES).items():
        found = [cell.toarray() for cell in counts[kind][:2]]
        np.testing.assert_array_equal(np.moveaxis(found, 0, 2), hits)


@st.composite
def ranked(draw):
    """Truth and scored events of a few clips that overlap in many ways, levels often equal."""
    predicted, truth = draw(crowded())
    return {
        clip: [ScoredEvent(*e, draw(st.integers(1, 6)) / 6) for e in events]
        for clip, events in predicted.items()
    }, truth


@settings(max_examples=25, deadline=None)
@given(ranked())
def test_psds_equals_sed_scores_eval(sides):
    """Of events with confidences, and of frame scores that are 0 outside them."""
    pytest.importorskip("sed_scores_eval")
    durations = {"a.wav": 500.0, "b.wav": 10.0}  # a false alarm more is not yet 100 an hour
    for outside, found in (
        (-np.inf, psds(*sides, durations, CLASSES)),
        (0.0, psds(drawn_scores(sides[0], durations), sides[1], durations, CLASSES)),
    ):
        tables = score_tables(sides[0], durations, CLASSES, outside)
        for scenario, (value, of_class) in library_psds(tables, sides[1], durations).items():
            assert found[scenario].value == pytest.approx(value, abs=1e-9)
            assert found[scenario].per_class == pytest.approx(of_class, abs=1e-9)


def drawn_scores(clips, durations) -> dict[str, ClipScores]:
    """The highest confidence of the events at each frame of 10 ms, 0 where there is none."""
    scores = {}
    for clip, duration in durations.items():
        edges = np.arange(round(100 * duration) + 1) / 100
        values = np.zeros((len(CLASSES), len(edges) - 1))
        for onset, offset, label, level in clips[clip]:
            first, last = np.searchsorted(edges, (onset - 1e-9, offset - 1e-9))
            span = values[CLASSES.index(label), first:last]
            np.maximum(span, level, out=span)
        scores[clip] = ClipScores(values, edges)
    return scores


def test_as_many_as_possible_are_matched():
    """The first found event meets both true ones, the second the first one only: two matches, which
    who takes the first that fits, or the nearest, does not find."""
    truth = {"a.wav": [Event(1.0, 1.05, "Dog"), Event(1.19, 1.24, "Dog")]}
    found = {"a.wav": [Event(1.02, 1.06, "Dog"), Event(0.85, 0.9, "Dog")]}
    counts = event_counts(found, truth, TEN, ["Dog"])["event_f1"]
    assert [cell.sum() for cell in counts] == [2, 0, 0]


def test_work_grows_with_events_not_with_clips_and_classes():
    """10,000 clips of 500 classes with 5 events: no array has a cell for each of 5 M pairs."""
    durations = {f"{i}.wav": 10.0 for i in range(10_000)}
    classes = [f"class {k}" for k in range(500)]
    truth = {f"{i}.wav": [Event(1, 3, classes[i])] for i in range(5)}
    counts = event_counts(truth, truth, durations, classes)
    for each in counts.values():
        assert each.tp.nnz == 5
        assert each.tp.shape == (10_000, 500)


# ---------------------------------------------------------------------------- real clips


class Real(NamedTuple):
    """The 20 real clips: events of scores above 0.5, and what they are compared with."""

    predicted: dict[str, list[Event]]
    truth: dict[str, list[Event]]
    durations: dict[str, float]
    scores: dict[str, ClipScores]
    classes: list[str]


@pytest.fixture(scope="module")
def real(shared_data) -> Real:
    folder = shared_data / "dcase2023_baseline"
    files = sorted((folder / "baseline2_run1_scores").glob("*.tsv"))
    clips = [f"{path.stem}.wav" for path in files]
    labels = read_labels(folder / "metadata" / "ground_truth.tsv")
    truth = {clip: labels[clip] for clip in clips}
    classes = sorted(labels_of(truth))
    source = ScoreFiles(folder / "baseline2_run1_scores", classes)
    scores = {clip: source.scores(clip) for clip in clips}
    rows = (folder / "metadata" / "audio_durations.tsv").read_text().splitlines()[1:]
    every = {name: float(length) for name, length in (row.split("\t") for row in rows)}
    predicted = {
        clip: [
            event
            for row, name in zip(scores[clip].values, classes, strict=True)
            for event in frames_to_events(row > 0.5, name, scores[clip].edges)
        ]
        for clip in clips
    }
    return Real(predicted, truth, {clip: every[clip] for clip in clips}, scores, classes)


def test_published_values_on_real_clips(real):
    """Collar F1 at 0.5 and PSDS 1 of the raw scores, as measured with the library alone."""
    *given, scores, classes = real
    assert all_f1(*given, classes)["event_f1"].macro == pytest.approx(0.447, abs=5e-4)
    found = psds(scores, *given[1:], classes)
    assert found[1].value == pytest.approx(0.270, abs=5e-4)
    assert found[2].value == pytest.approx(0.581, abs=5e-4)


def test_real_clips_equal_both_libraries(real, shared_data):
    """sed_scores_eval straight from the score files at threshold 0.5, and sed_eval."""
    pytest.importorskip("sed_scores_eval")
    from sed_scores_eval import collar_based, intersection_based, io, segment_based

    *given, _, classes = real
    files = io.read_sed_scores(shared_data / "dcase2023_baseline" / "baseline2_run1_scores")
    frames = {f"{name}.wav": table[["onset", "offset", *classes]] for name, table in files.items()}
    truth = {clip: [tuple(event) for event in events] for clip, events in real.truth.items()}
    share = {"dtc_threshold": 0.5, "gtc_threshold": 0.5}
    collar = {"onset_collar": 0.2, "offset_collar": 0.2, "offset_collar_rate": 0.2}
    ours = all_f1(*given, classes)
    for kind, (theirs, *_) in zip(
        KINDS,
        (
            collar_based.fscore(frames, truth, 0.5, **collar),
            segment_based.fscore(frames, truth, real.durations, 0.5, segment_length=1.0),
            intersection_based.fscore(frames, truth, 0.5, **share),
        ),
        strict=True,
    ):
        f1 = ours[kind]
        assert f1.macro == pytest.approx(theirs["macro_average"], abs=1e-9)
        assert f1.micro == pytest.approx(theirs["micro_average"], abs=1e-9)
        assert f1.per_class == pytest.approx({name: theirs[name] for name in classes}, abs=1e-9)
    events, segments = in_sed_eval(*given, classes)
    assert assert_same(ours["event_f1"], events, classes) >= 9
    assert assert_same(ours["segment_f1"], segments, classes) >= 9


def test_written_events_score_the_same_in_sed_eval(real, tmp_path):
    """The TSV read by sed_eval itself, clip by clip, against the events that were written."""
    sed_eval = pytest.importorskip("sed_eval")

    write_labels(tmp_path / "events.tsv", real.predicted)
    file = sed_eval.io.load_event_list(str(tmp_path / "events.tsv"), csv_header=True)
    metric = sed_eval.sound_event.EventBasedMetrics(
        real.classes, t_collar=0.2, percentage_of_length=0.2
    )
    read = 0
    for clip, events in real.truth.items():
        rows = [dict(zip(("onset", "offset", "event_label"), e, strict=True)) for e in events]
        mine = [dict(row) for row in file if row.filename == clip and row.event_label]
        metric.evaluate(rows, mine)
        read += len(mine)
    assert read == sum(map(len, real.predicted.values()))
    *given, _, classes = real
    ours = all_f1(*given, classes)
    assert assert_same(ours["event_f1"], metric, classes) >= 9
    again = read_labels(tmp_path / "events.tsv")
    assert all_f1(again, *given[1:], classes) == ours


def test_confidences_of_real_events(real):
    """The mean score inside an event is that of its frames; only their order matters to PSDS."""
    *given, scores, classes = real
    clip = max(real.predicted, key=lambda name: len(real.predicted[name]))
    scored = {
        name: mean_scores(events, scores[name], classes) for name, events in real.predicted.items()
    }
    edges = scores[clip].edges
    for event in scored[clip]:
        first, last = np.searchsorted(edges, (event.onset - 1e-6, event.offset - 1e-6))
        frames = scores[clip].values[classes.index(event.event_label), first:last]
        assert (frames > 0.5).all()
        assert event.confidence == pytest.approx(float(frames.mean()), abs=1e-6)
    value = psds(scored, *given[1:], classes)
    other = {
        name: [event._replace(confidence=event.confidence**3 - 7) for event in events]
        for name, events in scored.items()
    }
    assert psds(other, *given[1:], classes) == value
    assert 0 < value[1].value < value[2].value < 1


# ---------------------------------------------------------------------------- defined values

TEN = {"a.wav": 10.0, "b.wav": 10.0}
DOG = {"a.wav": [Event(1, 2, "Dog"), Event(4, 8, "Dog")]}
ALL_F1 = [lambda *given, kind=kind: all_f1(*given)[kind] for kind in KINDS]
event_f1 = ALL_F1[0]


def sure(clips, confidence=1.0):
    return {name: [ScoredEvent(*e, confidence) for e in events] for name, events in clips.items()}


@pytest.mark.parametrize("metric", ALL_F1, ids=KINDS)
def test_perfect_empty_and_wrong_predictions(metric):
    """Classes without positives and clips without events take no part but by false alarms."""
    perfect = metric(DOG, DOG, TEN, CLASSES)
    assert perfect == (1.0, 1.0, {"Dog": 1.0, "Cat": 1.0, "Speech": 1.0}, 1)
    assert metric({}, DOG, TEN, CLASSES) == (0.0, 0.0, {"Dog": 0.0, "Cat": 1.0, "Speech": 1.0}, 1)
    assert metric({}, {}, TEN, CLASSES) == (1.0, 1.0, {"Dog": 1.0, "Cat": 1.0, "Speech": 1.0}, 0)
    cats = {**DOG, "b.wav": [Event(0, 10, "Cat")]}
    alarms = metric(cats, DOG, TEN, CLASSES)
    assert (alarms.macro, alarms.num_classes) == (0.5, 2)
    assert alarms.per_class == {"Dog": 1.0, "Cat": 0.0, "Speech": 1.0}
    assert 0 < alarms.micro < 1
    nothing_there = metric(cats, {"b.wav": []}, TEN, CLASSES)
    assert (nothing_there.macro, nothing_there.micro, nothing_there.num_classes) == (0.0, 0.0, 2)


def test_psds_of_perfect_and_empty_predictions():
    for scenario in (1, 2):
        assert psds(sure(DOG), DOG, TEN, CLASSES)[scenario] == (1.0, {"Dog": 1.0})
        assert psds({}, DOG, TEN, CLASSES)[scenario] == (0.0, {"Dog": 0.0})
        assert psds(sure(DOG), {}, TEN, CLASSES)[scenario] == (0.0, {})
        two = {**DOG, "b.wav": [Event(0, 3, "Cat")]}
        half = psds(sure(DOG), two, TEN, CLASSES)[scenario]
        assert half == (pytest.approx(0.0), {"Dog": 1.0, "Cat": 0.0})  # mean .5 less deviation .5


def test_confidence_zero_is_a_detection_and_larger_confidence_wins():
    assert psds(sure(DOG, 0.0), DOG, TEN, CLASSES)[1].value == 1.0
    # A sure event with a doubtful one around it: the first threshold sees the sure one alone.
    both = {"a.wav": [ScoredEvent(4, 8, "Dog", 0.9), ScoredEvent(2, 9.9, "Dog", 0.1)]}
    one = {"a.wav": [Event(4, 8, "Dog")]}
    assert psds(both, one, TEN, CLASSES)[1].value == 1.0
    doubtful = {"a.wav": [ScoredEvent(2, 9.9, "Dog", 0.1)]}
    assert psds(doubtful, one, TEN, CLASSES)[1].value == 0.0


def test_policy_cannot_be_on_everywhere():
    """Outside its events no threshold switches a class on, though all of it is truth."""
    whole = {"a.wav": [Event(0, 10, "Dog")], "b.wav": [Event(0, 10, "Dog")]}
    found = {"a.wav": [ScoredEvent(0, 10, "Dog", 0.8)]}
    assert psds(found, whole, TEN, CLASSES)[1].value == 0.5


@pytest.mark.parametrize("metric", ALL_F1, ids=KINDS)
def test_connected_events_are_one_and_ends_are_cut(metric):
    parts = [Event(1, 1.4, "Dog"), Event(1.4, 1.6, "Dog"), Event(1.5, 2, "Dog")]
    late = [Event(4, 6, "Dog"), Event(5, 8, "Dog"), Event(4.5, 5, "Dog")]
    assert metric({"a.wav": parts + late}, DOG, TEN, CLASSES).macro == 1.0
    assert metric(DOG, {"a.wav": late + parts}, TEN, CLASSES).macro == 1.0
    past = {"a.wav": [Event(7, 12, "Dog")]}
    inside = {"a.wav": [Event(7, 10, "Dog")]}
    assert metric(past, inside, TEN, CLASSES).macro == 1.0
    assert metric(inside, past, TEN, CLASSES).macro == 1.0
    behind = {"a.wav": [*inside["a.wav"], Event(10, 10.02, "Dog")]}
    assert metric(behind, inside, TEN, CLASSES).micro == 1.0


def test_distance_of_exactly_a_collar_is_inside():
    """2.2 - 2 is a little more than 0.2 for a computer."""
    truth, found = {"a.wav": [Event(2, 3, "Dog")]}, {"a.wav": [Event(2.2, 3.2, "Dog")]}
    assert event_f1(found, truth, TEN, CLASSES).macro == 1.0
    found = {"a.wav": [Event(2.201, 3, "Dog")]}
    assert event_f1(found, truth, TEN, CLASSES).macro == 0.0
    long = {"a.wav": [Event(2, 7, "Dog")]}  # 20 % of 5 s
    assert event_f1({"a.wav": [Event(2, 6, "Dog")]}, long, TEN, CLASSES).macro == 1.0
    assert event_f1({"a.wav": [Event(2, 5.999, "Dog")]}, long, TEN, CLASSES).macro == 0.0


def test_confidence_of_an_event_between_frames_and_past_the_scores():
    scores = ClipScores(np.array([[0.0, 1.0, 0.5]], np.float32), np.array([0.0, 1.0, 2.0, 3.0]))
    events = [Event(0.5, 1.5, "Dog"), Event(2, 5, "Dog"), Event(4, 5, "Dog"), Event(0, 3, "Dog")]
    found = [event.confidence for event in mean_scores(events, scores, ["Dog"])]
    assert found == pytest.approx([0.5, 0.5, 0.0, 0.5])


def test_scores_past_the_end_are_cut():
    values = np.zeros((1, 12), np.float32)
    values[0, 4:] = 0.9
    scores = {
        "a.wav": ClipScores(values, np.arange(13.0)),
        "b.wav": ClipScores(values * 0, np.arange(13.0)),
    }
    truth = {"a.wav": [Event(5.0, 10.0, "Dog")]}  # 5 of 6 s inside the clip, 5 of 8 s with the rest
    assert psds(scores, truth, TEN, ["Dog"])[1].value == 1.0


def test_counts_of_clips_can_be_drawn_again():
    """Rows are clips in the order of the durations, so that a bootstrap needs no new matching."""
    truth = {**DOG, "b.wav": DOG["a.wav"]}
    counts = event_counts({"b.wav": DOG["a.wav"]}, truth, TEN, CLASSES)["event_f1"]
    assert counts.tp.toarray()[:, 0].tolist() == [0, 2]
    assert counts.fn.toarray()[:, 0].tolist() == [2, 0]
    times_drawn = np.array([[0, 2], [1, 1], [2, 0]])
    macro, micro = averages(EventCounts(*(times_drawn @ cell for cell in counts)))
    assert macro.tolist() == micro.tolist() == pytest.approx([1.0, 2 / 3, 0.0])


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"c": []}, DOG, TEN, CLASSES), "prediction: 1 clips have no duration, first 'c'"),
        ((DOG, {"a": []}, TEN, CLASSES), "truth: 1 clips have no duration"),
        ((DOG, DOG, TEN, ["Cat"]), "prediction: 'Dog' is not a class to evaluate"),
        (({}, DOG, TEN, ["Cat"]), "truth: 'Dog' is not a class to evaluate"),
    ],
)
def test_wrong_input_is_named(given, message):
    with pytest.raises(InputError, match=message):
        all_f1(*given)
