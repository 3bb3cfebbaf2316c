"""Label files as people have them: every form, which rows count, names that are refused."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from sed import labels
from sed.labels import (
    CUT_AT_BEGIN,
    CUT_AT_END,
    NO_LENGTH,
    OUTSIDE,
    clip_id,
    find_audio,
    fit_events,
    read_labels,
    read_rows,
    same_clips,
    say_asides,
    spellings,
    write_asides,
)
from sed.metrics import count_pairs, mean_over_pairs
from sed.timeline import Event, classes_of, frame_edges, label_frames, write_audacity, write_labels

HEADER = "filename\tonset\toffset\tevent_label\n"
ROWS = [("b.wav", "2.5", "3", "Dog"), ("a.wav", "0", "10", "Bell"), ("b.wav", "0.25", "1", "Cat")]
CLIPS = {
    "b.wav": [Event(0.25, 1.0, "Cat"), Event(2.5, 3.0, "Dog")],
    "a.wav": [Event(0.0, 10.0, "Bell")],
}


def put(folder: Path, text: str | bytes, name: str = "labels.tsv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(*columns: int, header: str = "", extra: str = "", sign: str = "\t") -> str:
    """ROWS with their columns in another order, under another header."""
    names = ("filename", "onset", "offset", "event_label")
    first = header or sign.join(names[k] for k in columns or range(4))
    lines = [first, *(sign.join(row[k] for k in columns or range(4)) + extra for row in ROWS)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------- forms of a table

AUDIOSET = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel"
NAMED = "filename\tonset\toffset\tevent_label"
TABLES = {
    "as DESED": table(),
    "order": table(1, 2, 3, 0),
    "label before times": table(0, 3, 1, 2),
    "commas": table(sign=","),
    "one more column": table(header=f"{NAMED}\tduration", extra="\t10.0"),
    "a column without a name": table(header=f"{NAMED}\t", extra="\t"),
    "trailing tab in the rows alone": table(extra="\t"),
    "AudioSet strong": table(header=AUDIOSET),
    "dcase_util": table(header="file\tevent_onset\tevent_offset\tevent_label"),
    "upper case": table(header=NAMED.upper()),
    "byte order mark, Windows": "\ufeff" + table().replace("\n", "\r\n"),
    "blank lines": "\n\n" + table(sign=",").replace("\n", "\n\n"),
    "an index, as pandas writes it": "\n".join(
        [f"\t{NAMED}", *(f"{i}\t" + "\t".join(row) for i, row in enumerate(ROWS))]
    ),
    "quoted in a CSV": table(sign=",").replace("Bell", '"Bell"'),
}


@pytest.mark.parametrize("form", TABLES)
def test_columns_are_found_by_name(tmp_path, form):
    found = read_rows(put(tmp_path, TABLES[form]))
    assert found.clips == CLIPS and found.asides == []
    assert list(found.clips) == list(CLIPS)  # in file order


def test_names_with_commas_and_quotes(tmp_path):
    path = put(tmp_path, 'filename,onset,offset,event_label\n"a, b.wav",0,1,"Dog, barking"\n')
    assert read_labels(path) == {"a, b.wav": [Event(0, 1, "Dog, barking")]}
    clips = {'a "1.wav': [Event(0, 1, "개 짖는 소리")]}
    write_labels(tmp_path / "l.tsv", clips)
    assert read_labels(tmp_path / "l.tsv") == clips


@pytest.mark.parametrize("row", ["a.wav\t\t\t", "a.wav\tNaN\tnan\tNA", "a.wav\t\t\tNone"])
def test_clip_without_events(tmp_path, row):
    clips = read_labels(put(tmp_path, HEADER + row + "\nb.wav\t0\t1\tDog\n"))
    assert clips == {"a.wav": [], "b.wav": [Event(0, 1, "Dog")]}


@pytest.mark.parametrize("name", ["None", "NA", "nan", "null", "/m/04rlf", "Speech, male"])
def test_any_name_is_a_class_where_there_are_times(tmp_path, name):
    assert read_labels(put(tmp_path, f"{HEADER}a\t0\t1\t{name}\n")) == {"a": [Event(0, 1, name)]}


UNREADABLE = [
    ("", "a header is needed"),
    ("a.wav\t0\t1\tDog\n", "line 1: no header"),
    (table(header="clip\tonset\toffset\tevent_label"), "no column filename"),
    (table(header="filename\tonset\toffset\tclass"), "no column event_label"),
    (table(header="filename\tonset\tonset\tevent_label"), "line 1: column onset occurs twice"),
    (table(sign=";"), "semicolons"),
    (table().encode("utf-16"), "iconv"),
    (table().encode("utf-16-le"), "iconv"),
    (HEADER.encode() + b"a\xff.wav\t0\t1\tDog\n", "UTF-8"),
    ("x" * 1_100_000, "longer than"),
    (HEADER + "x" * 1_100_000, "longer than"),
    (HEADER, "no clips"),
]


@pytest.mark.parametrize(("text", "cause"), UNREADABLE)
def test_a_file_that_is_no_label_table_is_named_with_the_cause(tmp_path, text, cause):
    path = put(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert str(path) in str(error.value) and cause in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hostile_row_is_told_without_its_signs(tmp_path):
    with pytest.raises(InputError) as error:
        read_labels(put(tmp_path, HEADER + "a.wav\t0\t1\t\x1b[31mDog" + "x" * 9000 + "\n"))
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 600


def test_a_track_whose_name_is_not_fit_for_a_table(tmp_path):
    put(tmp_path, AUDACITY, "a\nb.txt")
    with pytest.raises(InputError, match="no table can hold"):
        read_rows(tmp_path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.tsv"):
        read_labels(tmp_path / "none.tsv")
    with pytest.raises(InputError, match="a folder without"):
        read_labels(tmp_path)


# ---------------------------------------------------------------------------- rows

IMPOSSIBLE = [
    ("a.wav\tx\t1\tDog", "not a number"),
    ("a.wav\t0\t\tDog", "not a number"),
    ("a.wav\tnan\t1\tDog", "not a number"),
    ("a.wav\t0\tinf\tDog", "not a number"),
    ("a.wav\t0\t1,5\tDog", "decimal comma"),
    ("a.wav\t\t\tDog", "without times"),
    ("a.wav\t2\t1\tDog", "offset before onset"),
    ("a.wav\t0\t1\t", "without a label"),
    ("a.wav\t0\t1\tDog\tx", "5 cells"),
    ("a.wav\t0\t1", "3 cells"),  # a half-copied file ends so
    ("a.wav\t0", "2 cells"),
    ("a.w", "1 cells"),
    ("\t0\t1\tDog", "file name is empty"),
    ("../../evil.wav\t0\t1\tDog", "leads out"),
    ("/tmp/evil.wav\t0\t1\tDog", "absolute"),
    ("C:/evil.wav\t0\t1\tDog", "absolute"),
    ("a\\b.wav\t0\t1\tDog", "backslash"),
    ("a\x00b.wav\t0\t1\tDog".replace("\x00", "\x0b"), "no table can hold"),
    ("a.wav\t0\t1\t../../Dog", "leads out"),
    ("a.wav\t0\t1\tDog\u2028Cat", "no table can hold"),
]


@pytest.mark.parametrize(("row", "cause"), IMPOSSIBLE)
def test_an_impossible_row_is_named_with_its_line(tmp_path, row, cause):
    path = put(tmp_path, "\n" + HEADER + "b.wav\t0\t1\tDog\n" + row + "\n")
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert f"{path} line 4" in str(error.value) and cause in str(error.value)


def test_all_impossible_rows_are_named_at_once(tmp_path):
    bad = "a.wav\t2\t1\tDog\n" * 3 + "a.wav\t0\t1\tDog\n" + "a.wav\t5\t4\tDog\nb.wav\tx\t1\tDog\n"
    path = put(tmp_path, HEADER + bad)
    with pytest.raises(InputError) as error:
        read_labels(path)
    text = str(error.value)
    assert "5 impossible rows" in text and "lines 2-4, 6: offset before onset" in text
    assert "line 7: onset or offset is not a number" in text and "\n" not in text


def test_a_label_file_cut_off_anywhere_is_refused_or_whole(tmp_path):
    """Whatever the place of the cut: what is read is rows that the file really has."""
    text = HEADER + "".join("\t".join(row) + "\n" for row in ROWS)
    whole = {(name, event) for name, events in CLIPS.items() for event in events}
    cut_in_a_cell = 0
    for size in range(len(HEADER) + 1, len(text)):
        try:
            clips = read_rows(put(tmp_path, text[:size])).clips
        except InputError:
            continue
        rows = {(name, event) for name, events in clips.items() for event in events}
        last = text[:size].splitlines()[-1].split("\t")
        assert all(clips.values()), f"{text[:size]!r}: a clip without events"
        assert len(last) == 4  # a cut in the last cell cannot be seen: Do for Dog
        cut_in_a_cell += bool(rows - whole)
    assert cut_in_a_cell == sum(len(row[3]) - 1 for row in ROWS)


def test_rows_that_do_not_count_are_counted_and_told(tmp_path, capsys):
    rows = "c1 1 2 Dog, c1 0 0 Speech, c3 5.2 5.2 Dog, c3 -0.05 1 Dog, c3 -2 -1 Dog, c4 -1 0 Cat"
    path = put(tmp_path, HEADER + rows.replace(", ", "\n").replace(" ", "\t"))
    found = read_rows(path)
    assert found.clips == {"c1": [Event(1, 2, "Dog")], "c3": [Event(0, 1, "Dog")], "c4": []}
    reasons = [aside.reason for aside in found.asides]
    assert sorted(reasons) == sorted([NO_LENGTH, NO_LENGTH, CUT_AT_BEGIN, OUTSIDE, OUTSIDE])
    assert read_labels(path) == found.clips
    told = capsys.readouterr().out
    assert f"2 x {NO_LENGTH}: c1 0 .. 0 Speech; c3 5.2 .. 5.2 Dog" in told
    assert f"1 x {CUT_AT_BEGIN}: c3 -0.05 .. 1 Dog" in told


def test_of_many_rows_ten_are_told_and_all_are_in_the_file(tmp_path, capsys):
    rows = "".join(f"c{i}\t{i}\t{i}\tDog\n" for i in range(36))
    found = read_rows(put(tmp_path, HEADER + rows))
    file = tmp_path / "left_out.tsv"
    say_asides("labels.tsv", found.asides, file)
    write_asides(file, found.asides, [["x.wav", "no scores"]])
    told = capsys.readouterr().out
    assert "36 x" in told and "c9 9 .. 9 Dog and 26 more" in told and str(file) in told
    assert "c10 " not in told and told.count("\n") == 1
    lines = file.read_text().splitlines()
    assert len(lines) == 38 and lines[1] == "x.wav\t\t\t\tno scores"
    assert lines[-1] == f"c35\t35\t35\tDog\t{NO_LENGTH}"


TIMES = st.integers(-300, 1400).map(lambda hundredths: hundredths / 100)


@given(st.lists(st.tuples(TIMES, TIMES).map(sorted), max_size=8), st.sampled_from([10.0, 9.984]))
def test_what_is_kept_is_what_lies_in_the_clip(spans, duration):
    events = [Event(a, b, "Dog") for a, b in spans]
    kept, asides = fit_events("c", events, duration)
    assert all(0 <= event.onset < event.offset <= duration for event in kept)
    edges = np.arange(-3000, 14_001) / 1000  # frames of 1 ms
    inside = (edges[:-1] >= 0) & (edges[1:] <= duration + 1e-9)
    before = label_frames(events, "Dog", edges) & inside
    after = label_frames(kept, "Dog", edges)
    assert np.array_equal(before, after & inside)
    untouched = [e for e in events if 0 <= e.onset < e.offset <= duration]
    assert len(asides) == len(events) - len(untouched)
    assert [aside.event for aside in asides] == [e for e in events if e not in untouched]


def test_less_than_a_millisecond_is_not_told():
    kept, asides = fit_events("c", [Event(-1e-4, 10.0004, "Dog")], 10.0)
    assert kept == [Event(0.0, 10.0, "Dog")] and asides == []
    kept, asides = fit_events("c", [Event(9.9996, 11, "Dog"), Event(8, 11, "Dog")], 10.0)
    assert kept == [Event(8, 10.0, "Dog")]
    assert [aside.reason for aside in asides] == [OUTSIDE, CUT_AT_END]


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
        assert read_rows(path) == (clips, [])
        assert [each.name for each in Path(folder).iterdir()] == ["labels.tsv"]


# ---------------------------------------------------------------------------- a file a clip

AUDACITY = "1.904000\t2.494000\tDog\n\\\t200.0\t4000.0\n1.878000\t4.581000\tSpeech\n"
RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t{}\n"
    "1\tWaveform 1\t1\t1.9\t2.5\t0\t8000\tDog\n"
    "1\tSpectrogram 1\t1\t1.9\t2.5\t0\t8000\tDog\n"
    "2\tSpectrogram 1\t1\t3\t4.5\t0\t8000\tBark owl\n"
)


def test_audacity_tracks(tmp_path):
    put(tmp_path, AUDACITY, "tracks/clip1.txt")
    put(tmp_path, "", "tracks/deep/clip2.txt")
    put(tmp_path, "0.5\t0.5\tpoint\n", "tracks/clip3.txt")
    found = read_rows(tmp_path / "tracks")
    events = [Event(1.878, 4.581, "Speech"), Event(1.904, 2.494, "Dog")]
    assert found.clips == {"clip1": events, "clip3": [], "deep/clip2": []}
    assert [aside.reason for aside in found.asides] == [NO_LENGTH]
    assert read_rows(tmp_path / "tracks" / "clip1.txt").clips == {"clip1": events}


def test_tracks_that_detect_writes_are_read(tmp_path):
    clips = {"a": [Event(0.5, 1.25, "Dog")], "deep/Y--x_30.000": [], "b": [Event(0, 2, "Cat")]}
    for name, events in clips.items():
        write_audacity(tmp_path / f"{name}.txt", events)
    assert read_rows(tmp_path).clips == clips


@pytest.mark.parametrize("column", ["Annotation", "Species", "Common Name", "event_label"])
@pytest.mark.parametrize("name", ["c1.Table.1.selections.txt", "c1.selections.txt", "c1.txt"])
def test_raven_tables(tmp_path, column, name):
    put(tmp_path, RAVEN.format(column), name)
    expected = {"c1": [Event(1.9, 2.5, "Dog"), Event(3.0, 4.5, "Bark owl")]}
    assert read_rows(tmp_path / name).clips == read_rows(tmp_path).clips == expected


def test_a_raven_table_of_several_files(tmp_path):
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tAnnotation\tBegin File"
    rows = "1\t1\t2\tDog\ta.wav\n2\t63\t64.5\tDog\tb.wav\n"
    with pytest.raises(InputError, match="File Offset"):
        read_rows(put(tmp_path, f"{head}\n{rows}"))
    lines = [f"{head}\tFile Offset (s)", "1\t1\t2\tDog\ta.wav\t1", "2\t63\t64.5\tDog\tb.wav\t3"]
    clips = read_rows(put(tmp_path, "\n".join(lines))).clips
    assert clips == {"a.wav": [Event(1, 2, "Dog")], "b.wav": [Event(3, 4.5, "Dog")]}


def test_tables_of_birdnet(tmp_path):
    head = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
    head += "\tCommon Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)\n"
    row = "1\tSpectrogram 1\t1\t1.9\t2.5\t0\t8000\tDog\tdog1\t0.81\tx/clip1.wav\t1.9\n"
    assert read_rows(put(tmp_path, head + row)).clips == {"clip1.wav": [Event(1.9, 2.5, "Dog")]}
    head = "Start (s),End (s),Scientific name,Common name,Confidence"
    text = head + "\n3.0,6.0,Turdus merula,Blackbird,0.7\n"
    path = put(tmp_path, text, "clip1.BirdNET.results.csv")
    assert read_rows(path).clips == {"clip1": [Event(3, 6, "Blackbird")]}
    path = put(tmp_path, text.replace("nce\n", "nce,File\n").replace("0.7\n", "0.7,/x/c.wav\n"))
    assert read_rows(path).clips == {"c.wav": [Event(3, 6, "Blackbird")]}


def test_a_raven_table_without_names(tmp_path):
    with pytest.raises(InputError, match="event_label"):
        read_rows(put(tmp_path, RAVEN.format("My notes")))


def test_a_table_of_many_clips_among_tracks_is_refused(tmp_path):
    put(tmp_path, AUDACITY, "clip1.txt")
    put(tmp_path, table(), "labels.tsv")
    with pytest.raises(InputError, match=r"labels\.tsv"):
        read_rows(tmp_path)


# ---------------------------------------------------------------------------- names of clips


def test_what_begins_with_a_digit_is_no_extension():
    assert clip_id("Y--x_30.000_40.000") == "Y--x_30.000_40.000"
    assert clip_id("Y--x_30.000_40.000.wav") == "Y--x_30.000_40.000"
    assert clip_id("deep/a.b.flac") == "deep/a.b" and clip_id("a.MP3") == "a"
    assert spellings("Y_30.000") == ("Y_30.000", "Y_30") and spellings("a") == ("a",)


def test_the_same_clip_under_another_name():
    known = ["a.wav", "Y_30.000_40.000", "deep/b.flac", "c.wav", "c.flac"]
    names = ["a", "a.wav", "Y_30.000_40.000.wav", "deep/b.wav", "b.flac", "c", "c.flac"]
    assert same_clips(names, known) == {
        "a": "a.wav",
        "a.wav": "a.wav",
        "Y_30.000_40.000.wav": "Y_30.000_40.000",
        "deep/b.wav": "deep/b.flac",
        "c.flac": "c.flac",  # c alone may be either
    }


def test_audio_of_a_clip(tmp_path):
    for name in ("a.wav", "Y_30.000.flac", "b.WAV", "deep/c.ogg"):
        put(tmp_path, "x", name)
    wanted = {"a.wav": "a.wav", "a": "a.wav", "a.flac": "a.wav", "Y_30.000": "Y_30.000.flac"}
    wanted |= {"b": "b.WAV", "deep/c": "deep/c.ogg", "deep/c.wav": "deep/c.ogg"}
    for name, file in wanted.items():
        assert find_audio(tmp_path, name) == tmp_path / file
    assert find_audio(tmp_path, "c") is None


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
    clips, asides = read_rows(shared_data / "desed_timelines" / f"{name}.tsv")
    pairs = {(clip, event.event_label) for clip, events in clips.items() for event in events}
    assert (len(clips), len(pairs)) == (num_clips, num_pairs) and not asides
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


def test_a_long_line_is_not_read_whole(tmp_path):
    """A file of one line of 50 MB is refused after its first MiB."""
    path = tmp_path / "labels.tsv"
    with open(path, "wb") as stream:
        stream.truncate(0)
        stream.write(b"x" * 50_000_000)
    with pytest.raises(InputError, match="longer than"):
        list(labels.cells(path))
