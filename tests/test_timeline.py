"""Label files and the frame clock, against slow loops and the real label files.

Next:   test_preprocess.py
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import InputError
from metrics import count_pairs, mean_over_pairs
from timeline import (
    Event,
    classes_of,
    frame_centres,
    frame_edges,
    frames_to_events,
    label_frames,
    merge_events,
    read_labels,
    write_labels,
)

HEADER = "filename\tonset\toffset\tevent_label\n"
GRIDS = [0.02, 0.064, 512 / 22050, 1 / 64]


def put(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---------------------------------------------------------------------------- label files


def test_reading(tmp_path):
    text = HEADER + "b.wav\t2.5\t3\tDog\na.wav\t0\t10\tAlarm_bell_ringing\nb.wav\t0.25\t1\tCat\n"
    clips = read_labels(put(tmp_path, text))
    assert list(clips) == ["b.wav", "a.wav"]  # in file order
    assert clips["b.wav"] == [Event(0.25, 1.0, "Cat"), Event(2.5, 3.0, "Dog")]  # by onset
    assert classes_of(clips) == ["Alarm_bell_ringing", "Cat", "Dog"]


@pytest.mark.parametrize("row", ["a.wav\t\t\t", "a.wav", "a.wav\tNaN\tnan\tNA", "a.wav\t\t\tNone"])
def test_clip_without_events(tmp_path, row):
    clips = read_labels(put(tmp_path, HEADER + row + "\nb.wav\t0\t1\tDog\n"))
    assert clips == {"a.wav": [], "b.wav": [Event(0, 1, "Dog")]}


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path):
    text = HEADER + "a.wav\t0\t1\tDog\n\nb.wav\t\t\t\n\n"
    plain = read_labels(put(tmp_path, text))
    marked = put(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_labels(marked) == plain == {"a.wav": [Event(0, 1, "Dog")], "b.wav": []}


def test_quotes_and_non_ascii_names_are_kept(tmp_path):
    clips = {'a "1.wav': [Event(0, 1, "개 짖는 소리")]}
    write_labels(tmp_path / "l.tsv", clips)
    assert read_labels(tmp_path / "l.tsv") == clips


BROKEN = [
    ("", "line 1: the header must be filename, onset, offset, event_label", "an empty file"),
    ("filename,onset,offset,event_label\n", "line 1: the header must be", "found filename,onset"),
    ("a.wav\t0\t1\tDog\n", "line 1: the header must be", "found a.wav, 0, 1, Dog"),
    (HEADER + "a.wav\t0\t1\tDog\tx\n", "line 2: unknown column layout", "filename, onset"),
    (HEADER + "\t0\t1\tDog\n", "line 2: unknown column layout", ""),
    (HEADER + "a.wav\t0\t1\tDog\nb.wav\tx\t1\tDog\n", "line 3: onset 'x'", "is not a number"),
    (HEADER + "a.wav\t0\t1\tDog\n\nb.wav\t0\t1,5\tDog\n", "line 4: onset '0' or offset '1,5'", ""),
    (HEADER + "a.wav\t0\t\tDog\n", "line 2: onset '0' or offset ''", "is not a number"),
    (HEADER + "a.wav\tnan\t1\tDog\n", "line 2: onset nan .. offset 1 is not a time span", ""),
    (HEADER + "a.wav\tnan\tnan\tDog\n", "line 2: onset nan", "is not a time span"),
    (HEADER + "a.wav\t0\tinf\tDog\n", "line 2: onset 0 .. offset inf is not a time span", ""),
    (HEADER + "a.wav\t-0.1\t1\tDog\n", "line 2: onset -0.1 .. offset 1 is not a time span", ""),
    (HEADER + "a.wav\t1\t1\tDog\n", "line 2: offset 1 is not after onset 1", ""),
    (HEADER + "a.wav\t2\t1\tDog\n", "line 2: offset 1 is not after onset 2", ""),
    (HEADER + "a.wav\t0\t1\t\n", "line 2: an event without event_label", ""),
    (HEADER + "a.wav\t0\t1\tNaN\n", "line 2: an event without event_label", ""),
    (HEADER, "no clips in the file", ""),
    (HEADER.encode() + b"a\xff.wav\t0\t1\tDog\n", "cannot be read", ""),
    ("x" * 200_000, "cannot be read", "field larger"),
]


@pytest.mark.parametrize(("text", "message", "more"), BROKEN)
def test_broken_label_file_is_named_with_its_line(tmp_path, text, message, more):
    path = put(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert str(path) in str(error.value)
    assert message in str(error.value) and more in str(error.value)


def test_absent_label_file(tmp_path):
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read|is a folder"):
            read_labels(path)


MILLISECONDS = st.tuples(st.integers(0, 9000), st.integers(1, 4000), st.sampled_from(["A", "b c"]))


@given(st.lists(st.lists(MILLISECONDS, max_size=4), min_size=1, max_size=4))
def test_round_trip(rows):
    clips = {
        f"Y--x_{i}.000.wav": sorted(Event(a / 1000, (a + n) / 1000, c) for a, n, c in events)
        for i, events in enumerate(rows)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.tsv"
        write_labels(path, clips)
        assert read_labels(path) == clips
        assert [each.name for each in Path(folder).iterdir()] == ["labels.tsv"]


# ---------------------------------------------------------------------------- the frame clock


def test_edges_and_centres():
    edges = frame_edges(500, 0.02)
    assert len(edges) == 501 and edges[0] == 0 and edges[-1] == pytest.approx(10)
    assert frame_centres(edges)[[0, 1, 499]] == pytest.approx([0.01, 0.03, 9.99])


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


# ---------------------------------------------------------------------------- real label files


@pytest.mark.parametrize(
    ("name", "num_clips", "num_pairs"),
    [
        ("synthetic21_train", 10_000, 21_383),
        ("synthetic21_validation", 2_500, 5_570),
        ("audioset_strong", 3_470, 7_209),
    ],
)
def test_clips_and_pairs_of_the_slides(shared_data, name, num_clips, num_pairs):
    clips = read_labels(shared_data / "desed_timelines" / f"{name}.tsv")
    pairs = {(clip, event.event_label) for clip, events in clips.items() for event in events}
    assert (len(clips), len(pairs)) == (num_clips, num_pairs)
    assert len(classes_of(clips)) == 10


def test_all_on_scores_what_the_label_file_says(shared_data):
    """On the slides' validation pairs, saying "on" everywhere gives 49.4 / 49.4 / 57.9 %."""
    clips = read_labels(shared_data / "desed_timelines" / "synthetic21_validation.tsv")
    edges = frame_edges(500, 0.02)
    label = np.concatenate(
        [
            label_frames(events, name, edges)
            for events in clips.values()
            for name in {event.event_label for event in events}
        ]
    )
    offsets = np.arange(0, len(label) + 1, 500)
    mean = mean_over_pairs(count_pairs(np.ones(len(label), bool), label, offsets))
    assert mean == pytest.approx({"accuracy": 0.4937, "iou": 0.4937, "f1": 0.5792}, abs=1e-4)
