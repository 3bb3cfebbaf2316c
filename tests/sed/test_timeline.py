"""The frame clock and events, against slow loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sed.timeline import (
    Event,
    frame_centres,
    frame_edges,
    frames_to_events,
    label_frames,
    merge_events,
    seconds_at,
    usual_least,
)

GRIDS = [0.02, 0.064, 512 / 22050, 1 / 64]


MILLISECONDS = st.tuples(st.integers(0, 9000), st.integers(1, 4000), st.sampled_from(["A", "b c"]))


# ---------------------------------------------------------------------------- the frame clock


def test_edges_and_centres():
    edges = frame_edges(500, 0.02)
    assert len(edges) == 501 and edges[0] == 0 and edges[-1] == pytest.approx(10)
    assert frame_centres(edges)[[0, 1, 499]] == pytest.approx([0.01, 0.03, 9.99])


@given(st.integers(1, 40), st.sampled_from(GRIDS), st.sampled_from([0.0, 0.021, 0.75]))
def test_positions_lie_where_the_frames_do(num_frames, frame_s, start_s):
    """A longer first frame, as of windows that overlap, is one frame all the same."""
    position, edges = np.arange(num_frames + 1), frame_edges(num_frames, frame_s, start_s)
    np.testing.assert_allclose(seconds_at(position, frame_s, start_s), edges)
    middle = seconds_at(position[:-1] + 0.5, frame_s, start_s)
    np.testing.assert_allclose(middle, frame_centres(edges))


# On a grid of 1/64 s with events in 1/256 s every number is exact, ties with a centre included.
QUARTERS = st.tuples(st.integers(0, 130), st.integers(1, 60), st.sampled_from("AB"))


@given(st.lists(QUARTERS, max_size=5), st.integers(1, 40))
def test_a_frame_is_on_when_its_centre_lies_in_an_event(rows, num_frames):
    events = [Event(a / 256, (a + n) / 256, c) for a, n, c in rows]
    on = label_frames(events, "A", frame_edges(num_frames, 1 / 64))
    assert on.dtype == bool
    for t in range(num_frames):
        centre = 4 * t + 2  # in 1/256 s
        assert on[t] == any(c == "A" and a <= centre < a + n for a, n, c in rows)


@given(st.lists(MILLISECONDS, max_size=5))
def test_labels_in_milliseconds_on_frames_of_20_ms(rows):
    rows = [row for row in rows if row[0] % 20 != 10 and sum(row[:2]) % 20 != 10]  # no ties
    events = [Event(a / 1000, (a + n) / 1000, c) for a, n, c in rows]
    on = label_frames(events, "A", frame_edges(500, 0.02))
    for t in range(500):
        assert on[t] == any(c == "A" and a <= 20 * t + 10 < a + n for a, n, c in rows)


def test_onset_is_inside_and_offset_is_not():
    edges = frame_edges(8, 1 / 64)  # centres at 1/128, 3/128, ...
    on = label_frames([Event(3 / 128, 7 / 128, "A")], "A", edges)
    assert on.tolist() == [False, True, True, False, False, False, False, False]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from(GRIDS))
def test_frames_to_events_and_back(flags, frame_s):
    on, edges = np.array(flags), frame_edges(len(flags), frame_s)
    events = frames_to_events(on, "A", edges)
    assert np.array_equal(label_frames(events, "A", edges), on)
    runs = "".join("x" if flag else " " for flag in flags).split()
    assert [round((e.offset - e.onset) / frame_s) for e in events] == [len(run) for run in runs]
    assert all(a.offset < b.onset for a, b in itertools.pairwise(events))
    rounded = [Event(round(e.onset, 3), round(e.offset, 3), "A") for e in events]
    assert np.array_equal(label_frames(rounded, "A", edges), on)  # as written, in milliseconds


def test_overlapping_and_touching_events_merge():
    edges = frame_edges(50, 0.02)
    events = [Event(0.1, 0.3, "A"), Event(0.2, 0.4, "A"), Event(0.4, 0.5, "A"), Event(0, 1, "B")]
    merged = frames_to_events(label_frames(events, "A", edges), "A", edges)
    assert [(e.onset, e.offset) for e in merged] == [pytest.approx((0.1, 0.5))]
    assert merged[0].event_label == "A"


@given(st.lists(QUARTERS, max_size=8))
def test_merged_events_cover_the_same_and_never_meet(rows):
    events = [Event(a / 256, (a + n) / 256, c) for a, n, c in rows]
    merged = merge_events(events)
    assert merged == sorted(merged) == merge_events(merged)
    edges = frame_edges(200, 1 / 256)
    for label in "AB":
        own = [event for event in merged if event.event_label == label]
        assert all(a.offset < b.onset for a, b in itertools.pairwise(own))
        assert np.array_equal(label_frames(events, label, edges), label_frames(own, label, edges))


def test_lengths_and_gaps_that_few_labels_fall_below():
    """Gaps are within a class of a clip, and touching events are one."""
    first = [Event(0, 1, "Dog"), Event(1, 2, "Dog"), Event(2.5, 3.5, "Dog"), Event(2.1, 4, "Cat")]
    assert usual_least([first, [Event(0, 2, "Dog")]]) == (pytest.approx(1.13, abs=0.02), 0.5)
    many = [[Event(0, 0.5 + i, "Dog"), Event(10 + 2 * i, 20 + 3 * i, "Dog")] for i in range(21)]
    assert usual_least(many) == (2.55, 10.5)  # of 42 and of 21
    assert usual_least([[Event(0, 1, "Dog")], []]) == (1.0, None)
    assert usual_least([[]]) == (None, None)
