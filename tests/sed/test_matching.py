"""Which found event is which true one, and how far found events are off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sed.matching import BINS_MS, Match, end_errors, match_events
from sed.timeline import Event


def test_events_that_meet_one_to_one():
    truth = {
        "a": [
            Event(1, 2, "Dog"),
            Event(0, 3, "Cat"),
            Event(8, 10, "Cat"),
            Event(4, 5, "Dog"),
            Event(6, 7, "Dog"),
        ],
        "b": [Event(1, 2, "Dog"), Event(2.5, 3, "Dog")],
        "c": [Event(1, 2, "Dog")],
    }
    found = {
        "a": [
            Event(1.25, 1.75, "Dog"),  # late by 250 ms, early by 250 ms
            Event(0, 3.5, "Cat"),  # an onset at the clip's start is not in the recording,
            Event(7.9, 9, "Cat"),  # nor an offset at its end
            *(Event(4, 4.2, "Dog"), Event(4.5, 5, "Dog")),  # two for one
            Event(7, 8, "Dog"),  # touches only
            Event(1, 2, "Speech"),
        ],
        "b": [Event(0.5, 3, "Dog")],  # one for two
    }
    matches = match_events(truth, found, dict.fromkeys(truth, 10.0))
    late = {
        end: sorted(round(1000 * m.late_s(end)) for m in matches if m.heard(end))
        for end in ("onset", "offset")
    }
    assert late == {"onset": [-100, 250], "offset": [-250, 500]}


def test_events_that_overlap_are_one():
    truth = {"a": [Event(1, 2, "Dog"), Event(1.5, 3, "Dog")]}
    found = {"a": [Event(1, 2.5, "Dog"), Event(2.5, 3.5, "Dog")]}
    (match,) = match_events(truth, found, {"a": 10.0})
    assert match == ("a", Event(1, 3, "Dog"), Event(1, 3.5, "Dog"), 10.0)
    assert match.wrong_s() == 0.5


spans = st.tuples(st.integers(0, 20), st.integers(1, 4), st.sampled_from(["Dog", "Cat"]))
some_events = st.lists(spans.map(lambda s: Event(s[0], s[0] + s[1], s[2])), max_size=8)


@given(some_events, some_events)
def test_against_frames(true, found):
    """Runs of whole seconds, and every pair of them that overlaps: what has one partner only."""

    def runs(events: list[Event], label: str) -> list[set[int]]:
        on = {s for e in events if e.event_label == label for s in range(e.onset, e.offset)}
        first = sorted(s for s in on if s - 1 not in on)
        return [set(range(s, next(t for t in range(s, 99) if t not in on))) for s in first]

    expected = []
    for label in ("Cat", "Dog"):
        meet = [(a, b) for a in runs(true, label) for b in runs(found, label) if a & b]
        expected += [
            (label, min(a), max(a) + 1, min(b), max(b) + 1)
            for a, b in meet
            if sum(a == c for c, _ in meet) == 1 == sum(b == d for _, d in meet)
        ]
    matches = match_events({"a": true}, {"a": found}, {"a": 30.0})
    assert sorted((m.true.event_label, *m.true[:2], *m.found[:2]) for m in matches) == expected


def match(true: tuple[float, float], found: tuple[float, float], clip_s: float = 20.0) -> Match:
    return Match("a", Event(*true, "x"), Event(*found, "x"), clip_s)


def test_errors_against_numbers_by_hand():
    matches = [
        match((1.0, 2.0), (1.3, 1.9)),
        match((3.0, 4.0), (2.9, 4.2)),
        match((0.0, 2.0), (0.5, 2.0)),  # starts before the clip
        match((8.0, 10.0), (8.2, 9.0), 10.0),  # ends after it
    ]
    table = end_errors(matches)
    onset, offset = table["onset"], table["offset"]
    assert onset["events"] == offset["events"] == 3
    assert (onset["median_ms"], onset["mean_ms"]) == (200, 200)
    assert onset["bias_ms"] == pytest.approx(400 / 3)
    assert onset["within_200_ms"] == pytest.approx(2 / 3) and offset["within_200_ms"] == 1
    assert sum(onset["histogram"]) == sum(offset["histogram"]) == 3
    assert end_errors([]) == {"onset": {"events": 0}, "offset": {"events": 0}}


def test_an_exact_end_falls_into_the_middle_bin():
    histogram = np.array(end_errors([match((1.0, 2.0), (1.0, 2.0))])["onset"]["histogram"])
    (bin_,) = np.flatnonzero(histogram)
    assert BINS_MS[bin_] == -BINS_MS[bin_ + 1]
    far = end_errors([match((1.0, 2.0), (1.0, 9.0))])["offset"]
    assert far["events"] == 1 and sum(far["histogram"]) == 0  # beyond the last bin
