"""Score files and the built-in scorer: formats, every message, out-of-fold, same bytes."""

import itertools
import json
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import scorers
from config import ScorersConfig
from core.errors import InputError
from core.tensors import with_digest
from scores import crnn, score_files
from scores.score_files import ScoreFiles, convert, open_scores, write_archive, write_scores
from sed.labels import read_labels
from sed.timeline import ClipScores, Event, classes_of, frame_edges, label_frames, write_labels

GOOD = "onset\toffset\tCat\tDog\n0\t0.5\t0.1\t0.2\n0.5\t1\t0.3\t0.4\n1\t1.4\t0.5\t1\n"


def put(folder: Path, text: str, name: str = "a.tsv") -> ScoreFiles:
    (folder / name).write_text(text, encoding="utf-8")
    return ScoreFiles(folder, ["Dog", "Cat"])


# ---------------------------------------------------------------------------- score files


def test_columns_come_in_label_order_and_extra_ones_are_accepted(tmp_path):
    text = GOOD.replace("\n", "\t0.9\n").replace("Dog\t0.9", "Dog\tBird")
    clip = put(tmp_path, text).scores("a.wav")
    assert clip.values.dtype == np.float32 and clip.edges.dtype == np.float64
    np.testing.assert_allclose(clip.values, [[0.2, 0.4, 1], [0.1, 0.3, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(clip.edges, [0, 0.5, 1, 1.4])
    assert clip.frame_s == 0.5 and clip.tag is None


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random((3, 500)).astype(np.float32)
    values[:, :2] = [0, 1]
    edges = frame_edges(500, 0.02)
    write_scores(tmp_path / "Y--x_9.000_19.000.tsv", edges, ["a", "b c", "d%"], values)
    clip = ScoreFiles(tmp_path, ["a", "b c", "d%"]).scores("Y--x_9.000_19.000.wav")
    np.testing.assert_allclose(clip.values, values, rtol=1e-5)
    np.testing.assert_allclose(clip.edges, edges, atol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["Y--x_9.000_19.000.tsv"]


@pytest.mark.parametrize("frame_s", [512 / 22050, 0.02, 0.064])
def test_times_rounded_to_milliseconds_are_equal_frames(tmp_path, frame_s):
    edges = frame_edges(431, frame_s).round(3)
    write_scores(tmp_path / "a.tsv", edges, ["Dog"], np.full((1, 431), 0.5))
    write_scores(tmp_path / "b.tsv", edges[:6], ["Dog"], np.full((1, 5), 0.5))
    source = ScoreFiles(tmp_path, ["Dog"])
    assert abs(source.scores("a.wav").frame_s - frame_s) < 1e-5
    assert source.scores("b.wav").values.shape == (1, 5)


def test_blank_lines_windows_line_ends_and_a_byte_order_mark(tmp_path):
    text = "\ufeff" + GOOD.replace("\n", "\r\n") + "\r\n"
    assert put(tmp_path, text).scores("a.wav").values.shape == (2, 3)


ROWS = [
    ("", "a.tsv line 1: no columns onset and offset"),
    (GOOD.replace("\t", ";"), "a.tsv line 1: no columns onset and offset"),
    (
        GOOD.replace("Dog", "dog"),
        "a.tsv: no column for class 'Dog' (columns: Cat, dog). --map 'dog=",
    ),
    (GOOD.replace("Cat", "Dog"), "a.tsv line 1: column 'Dog' occurs twice"),
    (GOOD.replace("0.4", "x"), "a.tsv line 3, column Dog: 'x' is not a number"),
    (GOOD.replace("0.4", ""), "a.tsv line 3, column Dog: '' is not a number"),
    (GOOD.replace("0.4", "nan"), "a.tsv line 3, column Dog: nan is not finite"),
    (GOOD.replace("0.5\t1\t", "inf\t1\t"), "a.tsv line 3, column onset: inf is not finite"),
    (GOOD.replace("0.4", "4.2"), "a.tsv line 3, column Dog: 4.2 is outside 0..1; these look like"),
    (GOOD.replace("0.3", "-0.1"), "a.tsv line 3, column Cat: -0.1 is outside 0..1"),
    (GOOD.replace("0.5\t1\t", "0.6\t1\t"), "line 3: starts at 0.600 but the frame before ends at"),
    (GOOD.replace("0.5\t1\t", "0.5\t0.5\t"), "a.tsv line 3: offset 0.5 is not after onset 0.5"),
    (GOOD.replace("\n0\t0.5", "\n0.2\t0.5"), "a.tsv line 2: first frame starts at 0.2, not 0"),
    (GOOD.replace("\t0.4", "\t0.4\t0.4"), "a.tsv line 3: 5 columns, the header has 4"),
    (GOOD.replace("1.4", "2.4"), "a.tsv line 4: a frame of 1.4 s among frames of 0.5 s"),
    (
        GOOD.replace("1.4", "1.37") + "1.37\t1.9\t0\t0\n1.9\t2.4\t0\t0\n",
        "line 4: a frame of 0.37 s",
    ),
    ("onset\toffset\tCat\tDog\n\n", "a.tsv: no frames below the header"),
    (GOOD.replace("0.5\t1\t0.3\t0.4", "\n0.5\t1\t0.3\t9"), "a.tsv line 4, column Dog: 9 is out"),
]


@pytest.mark.parametrize(("text", "message"), ROWS)
def test_broken_score_file_is_named_with_its_line(tmp_path, text, message):
    source = put(tmp_path, text)
    with pytest.raises(InputError) as error:
        source.scores("a.wav")
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "a.tsv"))


def test_folder_errors(tmp_path):
    with pytest.raises(InputError, match=r"no \.tsv files"):
        ScoreFiles(tmp_path, ["Dog"])
    with pytest.raises(InputError, match="not a folder"):
        ScoreFiles(tmp_path / "nowhere", ["Dog"])


def test_clips_without_scores_and_files_that_differ(tmp_path):
    source = put(tmp_path, GOOD)
    (tmp_path / "b.tsv").write_text("onset\toffset\tDog\tCat\n0\t0.2\t0\t1\n0.2\t0.4\t0\t1\n")
    extra = GOOD.replace("\n", "\t0\n").replace("Dog\t0", "Dog\tBird")
    (tmp_path / "c.tsv").write_text(extra)
    assert source.missing(["a.wav", "17.wav"]) == ["17.wav"]
    with pytest.raises(InputError, match=r"17\.tsv: no such score file"):
        source.scores("17.wav")
    with pytest.raises(InputError, match=r"b\.tsv: frame length 0\.2 s, a\.tsv has 0\.5 s"):
        source.scores("b.wav")
    with pytest.raises(InputError, match=r"c\.tsv: classes differ from a\.tsv \(Bird\)"):
        source.scores("c.wav")


def test_meta_changes_with_a_score(tmp_path):
    before = put(tmp_path, GOOD).meta()
    assert json.loads(json.dumps(before)) == before == put(tmp_path, GOOD).meta()
    assert before != put(tmp_path, GOOD.replace("0.4", "0.5")).meta()


def test_other_class_names_are_mapped(tmp_path):
    put(tmp_path, GOOD)
    plain = ScoreFiles(tmp_path, ["Dog", "Cat"])
    source = open_scores(tmp_path, ["Bello", "Cat"], {"Dog": "Bello"})
    np.testing.assert_array_equal(source.scores("a.wav").values, plain.scores("a.wav").values)
    assert source.meta() != plain.meta() and source.identity("a.wav") != plain.identity("a.wav")
    with pytest.raises(InputError, match=r"a\.tsv: --map: no column 'dog' \(columns: Cat, Dog\)"):
        open_scores(tmp_path, ["Bello"], {"dog": "Bello"}).scores("a.wav")
    with pytest.raises(InputError, match=r"a\.tsv: column 'Cat' occurs twice after --map"):
        open_scores(tmp_path, ["Cat"], {"Dog": "Cat"}).scores("a.wav")
    with pytest.raises(InputError) as error:
        open_scores(tmp_path, ["cat"]).missing(["a.wav"])
    expected = "no column for class 'cat' (columns: Cat, Dog). --map 'Cat=cat' renames"
    assert str(error.value) == f"{tmp_path / 'a.tsv'}: {expected}"


# ---------------------------------------------------------------------------- forms people have


@pytest.mark.parametrize("sign", ["\t", ","])
def test_columns_by_name_tabs_or_commas(tmp_path, sign):
    rows = ["Dog,filename,offset,Cat,onset,", "0.2,a.wav,0.5,0.1,0,x", "0.4,a.wav,1,0.3,0.5,y"]
    clip = put(tmp_path, "\n".join(rows).replace(",", sign)).scores("a.wav")
    np.testing.assert_allclose(clip.values, [[0.2, 0.4], [0.1, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(clip.edges, [0, 0.5, 1])


@pytest.mark.parametrize(
    "name", ["Yab_30.000_40.000", "Yab_30.000_40.000.wav", "Yab_30.000_40.mp3"]
)
@pytest.mark.parametrize("form", ["files", "archive"])
def test_ids_with_dots_with_and_without_extension(tmp_path, name, form):
    ids = ["Yab_30.000_40.000", "Yab_30.000_40"]
    for i, clip in enumerate(ids):
        put(tmp_path, GOOD.replace("0.4", f"0.{4 + i}"), f"{clip}.tsv")
    path = tmp_path
    if form == "archive":
        convert(tmp_path, tmp_path.parent / f"{tmp_path.name}.npz")
        path = tmp_path.parent / f"{tmp_path.name}.npz"
    source = open_scores(path, ["Dog"])
    assert source.missing([name, "Yab_31.000_40.000"]) == ["Yab_31.000_40.000"]
    expected = 0.4 + 0.1 * name.endswith("mp3")
    assert source.scores(name).values[0, 1] == pytest.approx(expected)
    assert source.identity(name) != source.identity("Yab_30.000_40.ogg") or name.endswith("mp3")


def test_foreign_tsvs_among_the_scores_are_named_once(tmp_path, capsys):
    put(tmp_path, GOOD)
    (tmp_path / "audio_durations.tsv").write_text("filename\tduration\na.wav\t1.4\n")
    (tmp_path / "utf16.tsv").write_bytes(GOOD.encode("utf-16"))
    source = open_scores(tmp_path)
    assert source.clips() == ["a"] and source.classes == ["Cat", "Dog"]
    source.meta()
    told = capsys.readouterr().out
    assert told.count("audio_durations.tsv") == 1 and "utf16.tsv" in told
    convert(tmp_path, tmp_path.parent / f"{tmp_path.name}.npz")
    assert open_scores(tmp_path.parent / f"{tmp_path.name}.npz").clips() == ["a"]
    (tmp_path / "a.tsv").unlink()
    with pytest.raises(InputError, match="no columns onset and offset"):
        open_scores(tmp_path)


@pytest.mark.parametrize("form", ["files", "archive"])
def test_scores_within_rounding_of_0_and_1(tmp_path, form):
    edges, values = frame_edges(3, 0.5), np.array([[1.0000001, -1e-9, 0.5]])
    tag = np.array([[1.0000001]], np.float32)
    if form == "files":
        write_scores(tmp_path / "a.tsv", edges, ["Dog"], values)
        text = (tmp_path / "a.tsv").read_text().replace("\t1\n", "\t1.0000001\n")
        (tmp_path / "a.tsv").write_text(text)
        found = open_scores(tmp_path).scores("a")
    else:
        archive = {"classes": ["Dog"], "clips": ["a"], "lengths": [3], "values": values.T}
        np.savez(tmp_path / "x.npz", **archive, edges=edges, tag=tag)
        found = open_scores(tmp_path / "x.npz").scores("a")
        assert found.tag.tolist() == [1.0]
    assert found.values.tolist() == [[1.0, 0.0, 0.5]]


@pytest.mark.parametrize(("value", "logit"), [(1.001, False), (-0.1, False), (4.2, True)])
def test_the_hint_at_logits_is_for_what_lies_far_outside(tmp_path, value, logit):
    with pytest.raises(InputError) as error:
        put(tmp_path, GOOD.replace("0.4", str(value))).scores("a.wav")
    assert ("sigmoid" in str(error.value)) == logit


@pytest.mark.parametrize(("frame_s", "decimals"), [(0.016, 2), (0.032, 2), (0.012, 2), (0.3, 1)])
def test_times_rounded_to_few_decimals_are_equal_frames(tmp_path, frame_s, decimals):
    for name, count in (("a", 625), ("b", 40)):
        edges = frame_edges(count, frame_s)
        times = [f"{a:.{decimals}f}\t{b:.{decimals}f}\t0.5" for a, b in itertools.pairwise(edges)]
        (tmp_path / f"{name}.tsv").write_text("onset\toffset\tDog\n" + "\n".join(times))
    source = open_scores(tmp_path)
    clip = source.scores("a")
    np.testing.assert_allclose(clip.edges, frame_edges(625, frame_s), atol=0.6 * 10**-decimals)
    assert clip.frame_s == pytest.approx(frame_s, rel=2e-3) and clip.start_s == 0
    assert np.ptp(np.diff(clip.edges[:-1])) < 1e-9  # no jitter is left
    assert source.scores("b").values.shape == (1, 40)


def test_a_missing_row_is_found_at_any_precision(tmp_path):
    for frame_s, decimals in ((0.016, 2), (0.02, 2), (0.02, 3), (0.5, 1), (1.0, 0)):
        edges = frame_edges(50, frame_s)
        rows = [f"{a:.{decimals}f}\t{b:.{decimals}f}\t0.5" for a, b in itertools.pairwise(edges)]
        del rows[20]
        (tmp_path / "a.tsv").write_text("onset\toffset\tDog\n" + "\n".join(rows))
        with pytest.raises(InputError, match="line 22: starts at"):
            open_scores(tmp_path).scores("a")


def windows_of(folder: Path, onsets: np.ndarray, length: float, name: str = "a") -> None:
    """A score file of windows; the k-th has the score k / 100."""
    rows = [f"{t:.6g}\t{t + length:.6g}\t{k / 100:g}" for k, t in enumerate(onsets)]
    (folder / f"{name}.tsv").write_text("onset\toffset\tDog\n" + "\n".join(rows))


@pytest.mark.parametrize(
    ("begin", "length", "step"),
    [
        (0, 3, 1.5),
        (0, 0.062, 0.017),
        (-0.031, 0.062, 0.017),
        (0, 1, 2),
        (-1.5, 3, 0.5),
        (0, 3, 0.5),
    ],
)
def test_a_window_is_a_frame_of_one_step_around_its_centre(tmp_path, begin, length, step):
    onsets = begin + step * np.arange(40)
    windows_of(tmp_path, onsets, length)
    windows_of(tmp_path, onsets[:7], length, "b")
    source = open_scores(tmp_path)
    clip = source.scores("a")
    centres = onsets + length / 2
    assert clip.frame_s == pytest.approx(step)
    assert clip.start_s == pytest.approx(centres[0] - step / 2, abs=1e-9)
    inner = np.stack([centres - step / 2, centres + step / 2])
    np.testing.assert_allclose(clip.edges[1:-1], inner[0, 1:], atol=1e-6)
    np.testing.assert_allclose(clip.edges[1:-1], inner[1, :-1], atol=1e-6)
    assert clip.edges[0] == 0 and clip.edges[-1] >= inner[1, -1] - 1e-6
    assert source.scores("b").values.shape == (1, 7)
    other = tmp_path.with_name(f"{tmp_path.name}.npz")
    convert(tmp_path, other)  # and the other form says the same
    again = open_scores(other).scores("a")
    np.testing.assert_allclose(again.edges, clip.edges, atol=1e-9)
    assert (again.frame_s, again.start_s) == pytest.approx((clip.frame_s, clip.start_s))


@pytest.mark.parametrize(
    "onsets",
    [[0, 1.5, 3, 5.5, 7], [5, 6.5, 8, 9.5], [0, 1.5, 1.5, 3]],
    ids=["gap", "late", "twice"],
)
def test_windows_without_a_constant_step_are_refused(tmp_path, onsets):
    windows_of(tmp_path, np.array(onsets), 3.0)
    with pytest.raises(InputError, match="constant step"):
        open_scores(tmp_path).scores("a")


def test_scores_are_cut_at_the_end_of_the_audio():
    values = np.arange(20, dtype=np.float32)[None] / 20
    clip = ClipScores(values, frame_edges(20, 0.5), np.array([0.7]))
    for seconds, count, end in ((6.3, 13, 6.3), (6.0, 12, 6.0), (10.0, 20, 10.0), (12.0, 20, 10.0)):
        cut = score_files.cut_scores(clip, seconds)
        assert cut.values.shape == (1, count) and cut.edges[-1] == end
        np.testing.assert_array_equal(cut.values, values[:, :count])
        np.testing.assert_array_equal(cut.edges[:-1], clip.edges[:count])
        assert cut.frame_s == pytest.approx(0.5) and cut.start_s == 0 and cut.tag is clip.tag


def test_more_parts_than_a_process_may_open_files(tmp_path):
    clips = [
        (f"c{i}", ClipScores(np.full((1, 3), i / 300), frame_edges(3, 0.5))) for i in range(300)
    ]
    for name, scores in clips:
        write_archive(tmp_path / f"{name}.npz", ["Dog"], [(name, scores)])
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 64
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 150, limits[1]))
    try:
        source = open_scores(tmp_path)
        for name, scores in [*clips, *clips[::-1]]:
            np.testing.assert_allclose(source.scores(name).values, scores.values, atol=1e-6)
            source.identity(name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_names_that_would_leave_the_folder_or_forge_rows(tmp_path):
    for name in ("../evil", "/tmp/evil", "a\nb", "a\tb", "..\\evil"):
        archive_of(tmp_path / "x.npz", clips=np.array(["a", name]))
        with pytest.raises(InputError, match="clip"):
            open_scores(tmp_path / "x.npz")
    for name in ("Dog\nCat", "Dog\tCat", "../Dog", " "):
        archive_of(tmp_path / "x.npz", classes=np.array(["Cat", name]))
        with pytest.raises(InputError, match="class"):
            open_scores(tmp_path / "x.npz")
    folder = tmp_path / "files"
    folder.mkdir()
    put(folder, GOOD.replace("Dog", "../Dog"))
    with pytest.raises(InputError, match="leads out"):
        open_scores(folder)
    (folder / "a.tsv").unlink()
    put(folder, GOOD, "a\nb.tsv")
    with pytest.raises(InputError, match="no table can hold"):
        open_scores(folder).clips()


# ---------------------------------------------------------------------------- score archives

TAG = np.array([0.9, 0.4], dtype=np.float32)


def archive_of(path: Path, **changes) -> Path:
    """Two clips of 3 and 2 frames, Cat and Dog, written as a user would, with numpy alone."""
    arrays = {
        "classes": np.array(["Cat", "Dog"]),
        "clips": np.array(["a", "b"]),
        "lengths": np.array([3, 2]),
        "values": np.float32([[0.1, 0.2], [0.3, 0.4], [0.5, 1], [0, 1], [1, 0]]),
        "edges": np.array([0, 0.5, 1, 1.4, 0, 0.5, 1.0]),
    }
    arrays = {name: x for name, x in (arrays | changes).items() if x is not None}
    np.savez(path, **arrays)
    return path


def test_an_archive_gives_what_the_files_give(tmp_path):
    files = put(tmp_path, GOOD)
    source = open_scores(archive_of(tmp_path / "x.npz"), ["Dog", "Cat"])
    for clip in (source.scores("a.wav"), pickle.loads(pickle.dumps(source)).scores("a.wav")):
        expected = files.scores("a.wav")
        np.testing.assert_array_equal(clip.values, expected.values)
        np.testing.assert_array_equal(clip.edges, expected.edges)
        assert clip.values.dtype == np.float32 and clip.edges.dtype == np.float64
        assert clip.tag is None and clip.frame_s == 0.5
    assert source.missing(["a.wav", "b.flac", "17.wav"]) == ["17.wav"]
    assert source.clips() == ["a", "b"]
    with pytest.raises(InputError, match="no scores of clip '17'"):
        source.scores("17.wav")


def test_archive_round_trip_in_parts_with_tags(tmp_path):
    rng = np.random.default_rng(0)
    clips = {
        f"Y{i}_9.000": ClipScores(
            rng.random((2, length), dtype=np.float32), frame_edges(length, 0.02), TAG - i / 10
        )
        for i, length in enumerate((500, 1, 499, 2))
    }
    names = list(clips)
    write_archive(tmp_path / "part-0.npz", ["Cat", "Dog"], [(n, clips[n]) for n in names[:3]])
    write_archive(tmp_path / "part-1.npz", ["Cat", "Dog"], [(n, clips[n]) for n in names[3:]])
    source = open_scores(tmp_path, ["Dog", "Cat"])
    assert source.missing([f"{name}.wav" for name in names]) == []
    for name, clip in clips.items():
        found = source.scores(f"{name}.wav")
        np.testing.assert_array_equal(found.values, clip.values[::-1])
        np.testing.assert_array_equal(found.edges, clip.edges)
        np.testing.assert_array_equal(found.tag, clip.tag[::-1])
    first = (tmp_path / "part-0.npz").read_bytes()
    write_archive(tmp_path / "part-0.npz", ["Cat", "Dog"], [(n, clips[n]) for n in names[:3]])
    assert (tmp_path / "part-0.npz").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.npz", "part-1.npz"]
    with np.load(tmp_path / "part-0.npz") as arrays:  # numpy alone can read it
        assert arrays["values"].shape == (1000, 2) and arrays["clips"].tolist() == names[:3]


def test_an_archive_stays_on_disk(tmp_path):
    source = open_scores(archive_of(tmp_path / "x.npz"))
    source.scores("a.wav")
    assert all(isinstance(array, np.memmap) for array in source._rows(*source._index["a"]))
    assert len(pickle.dumps(source)) < 1000


def test_half_precision_and_clips_named_with_their_extension(tmp_path):
    values = np.float16([[0.1, 0.2], [0.3, 0.4], [0.5, 1], [0, 1], [1, 0]])
    path = archive_of(tmp_path / "x.npz", values=values, clips=np.array(["a.wav", "b.wav"]))
    clip = open_scores(path, ["Dog"]).scores("a.wav")
    np.testing.assert_array_equal(clip.values, np.float32(values[:3, 1:].T))


def nothing(path):
    path.write_bytes(b"")


def shorten(path):
    path.write_bytes(archive_of(path).read_bytes()[:-40])


def pickled(path):
    np.savez(path, values=np.array([{}], dtype=object))


def compressed(path):
    np.savez_compressed(path, values=np.zeros(3))


def changed(**changes):
    return lambda path: archive_of(path, **changes)


def score(row, column, value):
    values = np.float32([[0.1, 0.2], [0.3, 0.4], [0.5, 1], [0, 1], [1, 0]])
    values[row, column] = value
    return changed(values=values)


ARCHIVES = [
    (nothing, "x.npz: cannot be read (File is not a zip file)"),
    (shorten, "x.npz: cannot be read ("),
    (pickled, "x.npz: cannot be read (array 'values' holds Python objects)"),
    (compressed, "x.npz: cannot be read (compressed; numpy.savez writes what can be mapped)"),
    (changed(edges=None), "x.npz: no array 'edges'; a score archive has classes, clips, lengths"),
    (changed(clips=np.array([1, 2])), "x.npz: array 'clips' is of type int64"),
    (changed(values=np.ones((5, 2), int)), "x.npz: array 'values' is of type int64"),
    (changed(lengths=np.array([3, 3])), "x.npz: array 'values' has shape (5, 2), but 2 clips of 6"),
    (changed(lengths=np.array([5])), "x.npz: array 'lengths' has shape (1,)"),
    (changed(edges=np.arange(6.0)), "x.npz: array 'edges' has shape (6,)"),
    (changed(tag=TAG), "x.npz: array 'tag' has shape (2,)"),
    (changed(lengths=np.array([5, 0])), "x.npz: no clips, or a clip without frames"),
    (changed(clips=np.array(["a", "a"])), "x.npz: clip 'a' occurs twice"),
    (changed(classes=np.array(["Dog", "Dog"])), "x.npz: class 'Dog' occurs twice"),
    (changed(classes=np.array(["Cat", "dog"])), "(columns: Cat, dog). --map 'dog=Dog' renames"),
    (changed(meta=np.array("{")), "x.npz: array 'meta' is no JSON"),
    (score(1, 1, np.nan), "x.npz clip a frame 1, column Dog: nan is not finite"),
    (score(1, 1, 4.2), "x.npz clip a frame 1, column Dog: 4.2 is outside 0..1; these look like"),
    (score(4, 0, -0.1), "x.npz clip b frame 1, column Cat: -0.1 is outside 0..1"),
    (
        changed(edges=np.array([0, 0.5, 0.5, 1, 0, 0.5, 1])),
        "clip a frame 1: offset 0.5 is not after",
    ),
    (changed(edges=np.array([0.2, 0.5, 1, 1.4, 0, 0.5, 1])), "clip a frame 0: first frame starts"),
    (changed(edges=np.array([0, 0.5, 1, 2.4, 0, 0.5, 1])), "clip a frame 2: a frame of 1.4 s"),
    (changed(edges=np.array([0, 0.5, 1, 1.4, 0, 0.2, 0.4])), "clip b: frame length 0.2 s, clip a"),
    (changed(tag=np.float32([[0, 1], [0, 2]])), "clip b: tag 2 of class 'Dog' is outside 0..1"),
]


@pytest.mark.parametrize(("write", "message"), ARCHIVES)
def test_a_broken_archive_is_named_with_its_clip(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(InputError) as error:
        source = open_scores(tmp_path / "x.npz", ["Dog", "Cat"])
        for name in ("a.wav", "b.wav"):
            source.scores(name)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "x.npz"))


def test_parts_that_do_not_belong_together(tmp_path):
    archive_of(tmp_path / "0.npz")

    def fails(message: str, **changes) -> None:
        archive_of(tmp_path / "1.npz", **({"clips": np.array(["c", "d"])} | changes))
        with pytest.raises(InputError, match=message):
            open_scores(tmp_path, ["Dog"])

    fails(r"1\.npz: clip 'a' occurs twice", clips=np.array(["c", "a"]))
    fails(r"1\.npz: classes differ from 0\.npz", classes=np.array(["Cat", "dog"]))
    fails(r"1\.npz: made with other settings than 0\.npz", meta=np.array('{"a": 1}'))
    put(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"both \.tsv and \.npz files"):
        open_scores(tmp_path, ["Dog"])
    with pytest.raises(InputError, match=r"nowhere\.npz: no such file"):
        open_scores(tmp_path / "nowhere.npz", ["Dog"])


def test_identity_follows_the_numbers_of_a_clip(tmp_path):
    source = open_scores(archive_of(tmp_path / "x.npz", tag=np.float32([[0, 1], [1, 0]])))
    again = open_scores(archive_of(tmp_path / "y.npz", tag=np.float32([[0, 1], [0, 0]])))
    assert json.loads(json.dumps(source.identity("a.wav"))) == again.identity("a.wav")
    assert source.identity("b.wav") != again.identity("b.wav")  # another tag
    score(3, 0, 0.5)(tmp_path / "y.npz")
    archive_of(tmp_path / "x.npz")
    other, source = open_scores(tmp_path / "y.npz"), open_scores(tmp_path / "x.npz")
    assert source.identity("a.wav") == other.identity("a.wav")
    assert source.identity("b.wav") != other.identity("b.wav")
    assert json.loads(json.dumps(source.meta())) == source.meta()
    assert source.meta()["sha256"] != other.meta()["sha256"]
    mapped = open_scores(tmp_path / "x.npz", ["Bello"], {"Dog": "Bello"})
    assert mapped.identity("a.wav") != source.identity("a.wav")


def test_convert_there_and_back(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "tsv" / "sub").mkdir(parents=True)
    for name in ("b", "sub/a"):
        edges = frame_edges(6, 0.064)
        edges[-1] -= 0.01
        write_scores(tmp_path / "tsv" / f"{name}.tsv", edges, ["Dog", "Cat"], rng.random((2, 6)))
    scorers.main(ScorersConfig(convert=tmp_path / "tsv", out=tmp_path / "x.npz"))
    assert "2 clips, 2 classes" in capsys.readouterr().out
    files, archive = open_scores(tmp_path / "tsv"), open_scores(tmp_path / "x.npz")
    assert archive.clips() == files.clips() == ["b", "sub/a"] and archive.classes == files.classes
    for clip in files.clips():
        np.testing.assert_array_equal(archive.read(clip).values, files.read(clip).values)
        np.testing.assert_array_equal(archive.read(clip).edges, files.read(clip).edges)
    convert(tmp_path / "x.npz", tmp_path / "back")
    for path in sorted((tmp_path / "tsv").rglob("*.tsv")):
        back = tmp_path / "back" / path.relative_to(tmp_path / "tsv")
        assert back.read_text() == path.read_text()
    capsys.readouterr()
    convert(tmp_path / "tsv", tmp_path / "x.npz")
    assert "nothing to do" in capsys.readouterr().out
    write_scores(tmp_path / "tsv" / "b.tsv", edges, ["Dog", "Cat"], rng.random((2, 6)))
    for source, out in (("tsv", "x.npz"), ("x.npz", "back"), ("x.npz", "tsv/b.tsv")):
        with pytest.raises(InputError, match="is there already"):
            convert(tmp_path / source, tmp_path / out)


@pytest.mark.parametrize("out", ["x.npz", "files"])
def test_convert_leaves_nothing_half_written(tmp_path, out):
    (tmp_path / "in").mkdir()
    put(tmp_path / "in", GOOD)
    put(tmp_path / "in", GOOD.replace("0.4", "4"), "b.tsv")
    source = tmp_path / "in"
    if out == "files":
        source = score(4, 0, -1)(tmp_path / "y.npz")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        convert(source, tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["files", "archive"])
def test_real_files_reproduce_published_anchors(shared_data, tmp_path, form):
    """DCASE 2023 baseline on 20 real clips: fixed 0.5 over the 59 present pairs."""
    home = shared_data / "dcase2023_baseline"
    truth = read_labels(home / "metadata" / "ground_truth.tsv")  # of more clips than were scored
    names = classes_of(truth)
    path = home / "baseline2_run1_scores"
    if form == "archive":
        convert(path, tmp_path / "scores.npz")
        path = tmp_path / "scores.npz"
    source = open_scores(path, names)
    absent = source.missing(list(truth))
    labels = {name: events for name, events in truth.items() if name not in absent}
    assert len(labels) == 20
    rows = []
    for filename, events in labels.items():
        clip = source.scores(filename)
        assert clip.values.shape == (10, 156) and abs(clip.frame_s - 0.064) < 1e-9
        for k, name in enumerate(names):
            label, on = label_frames(events, name, clip.edges), clip.values[k] > 0.5
            if label.any():
                both = (label & on).sum()
                rows.append(
                    (
                        (label == on).mean(),
                        both / (label | on).sum(),
                        2 * both / (label.sum() + on.sum()),
                    )
                )
    assert len(rows) == 59
    np.testing.assert_allclose(np.mean(rows, axis=0), [0.8352, 0.5589, 0.6165], atol=5e-5)


# ---------------------------------------------------------------------------- features, network


def test_a_click_lands_in_its_own_frame(tmp_path):
    wav = np.zeros(16_000, dtype=np.float32)
    wav[20 * 320 + 160] = 1.0  # centre of frame 20
    soundfile.write(tmp_path / "a.wav", wav, 16_000, subtype="FLOAT")
    mel = crnn.log_mel(tmp_path / "a.wav")
    assert mel.shape == (50, crnn.N_MELS)
    assert mel.astype(float).sum(axis=1).argmax() == 20


@pytest.mark.parametrize("num_samples", [1, 319, 321, 16_000])
def test_any_length_and_rate(tmp_path, num_samples):
    soundfile.write(tmp_path / "a.wav", np.full((num_samples, 2), 0.1), 16_000)
    mel = crnn.log_mel(tmp_path / "a.wav")
    assert mel.shape == (-(-num_samples // 320), crnn.N_MELS) and np.isfinite(mel).all()
    soundfile.write(tmp_path / "b.wav", np.zeros(32_000), 32_000)
    assert len(crnn.log_mel(tmp_path / "b.wav")) == 50


@pytest.mark.parametrize("num_frames", [1, 4, 7, 50])
def test_padding_hardly_moves_the_scores_of_a_shorter_clip(num_frames):
    torch.manual_seed(0)
    ones = np.ones(crnn.N_MELS, dtype=np.float32)
    net = crnn.CRNN(4, 0 * ones, ones, np.array([0.2, 0.1], dtype=np.float32)).eval()
    mel = torch.randn(2, num_frames + 9, crnn.N_MELS)
    real = torch.ones(2, num_frames + 9)
    real[1, num_frames:] = 0
    with torch.inference_mode():
        padded = net(mel, real)[1, :num_frames]
        alone = net(mel[1:, :num_frames], real[1:, :num_frames])[0]
    assert alone.shape == (num_frames, 2)
    assert (padded.sigmoid() - alone.sigmoid()).abs().max() < 0.02


# ---------------------------------------------------------------------------- the built-in scorer

CONFIG = ScorersConfig(epochs=12, batch=2, lr=1e-2, channels=4, workers=1)


def make_corpus(folder: Path, folds: str = "12") -> Path:
    """Bursts of a tone and of noise in 1.5 to 2 s clips, eight a training fold."""
    rng = np.random.default_rng(0)
    rows = ["split\tfilename\tfold\tduration\trecordings"]
    for split, own, count in (("train", folds, 16), ("validation", "5", 4)):
        (folder / split / "audio").mkdir(parents=True)
        labels = {}
        for i in range(count):
            duration, filename = rng.uniform(1.5, 2.0), f"{i}.flac"
            time = np.arange(int(duration * 16_000)) / 16_000
            wav, events = 0.003 * rng.standard_normal(len(time)), []
            for name in ("noise", "tone"):
                onset = rng.uniform(0, 0.9)
                on = (time >= onset) & (time < onset + 0.5)
                tone = np.sin(2 * np.pi * rng.uniform(400, 600) * time)
                wav += 0.1 * on * (tone if name == "tone" else rng.standard_normal(len(time)))
                events.append(Event(onset, onset + 0.5, name))
            labels[filename] = events
            soundfile.write(folder / split / "audio" / filename, wav, 16_000)
            rows.append(f"{split}\t{filename}\t{own[i % len(own)]}\t{duration:.3f}\t")
        write_labels(folder / split / "labels.tsv", labels)
    (folder / "clips.tsv").write_text("\n".join(rows) + "\n")
    return folder


def files_of(corpus: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(corpus)): path.read_bytes()
        for path in sorted(corpus.glob("*/scores/*"))
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.mktemp("scored") / "corpus")
    scorers.main(replace(CONFIG, corpus=corpus))
    return corpus


def test_every_clip_is_scored_and_the_tone_is_heard(scored):
    for split, count in (("train", 16), ("validation", 4)):
        labels = read_labels(scored / split / "labels.tsv")
        source = ScoreFiles(scored / split / "scores", ["noise", "tone"])
        assert source.missing(list(labels)) == [] and len(labels) == count
        heard = []
        for filename, events in labels.items():
            clip = source.scores(filename)
            assert isinstance(clip, ClipScores) and abs(clip.frame_s - 0.02) < 1e-9
            audio = soundfile.info(scored / split / "audio" / filename)
            assert clip.values.shape == (2, -(-audio.frames // 320))
            on = label_frames(events, "tone", clip.edges)
            heard.append(clip.values[1, on].mean() - clip.values[1, ~on].mean())
        assert np.mean(heard) > 0.3


def test_no_network_scores_a_clip_whose_fold_it_knows(scored):
    listing = [row.split("\t") for row in (scored / "clips.tsv").read_text().splitlines()[1:]]
    fold_of = {(split, filename): fold for split, filename, fold, *_ in listing}
    fits = json.loads((scored / "scorer.json").read_text())["fits"]
    *cross, refit = fits
    assert sorted(name for fit in cross for name in fit["scored"]) == sorted(
        filename for split, filename in fold_of if split == "train"
    )
    for fit in cross:
        known = {fold_of["train", name] for name in fit["trained_on"]}
        asked = {fold_of["train", name] for name in fit["scored"]}
        assert known == set(fit["trained_folds"]) and known and not known & asked
    assert len(refit["trained_on"]) == 16 and refit["trained_folds"] == ["1", "2"]
    assert len(refit["scored"]) == 4
    assert all(fit["bce"] < fit["bce_of_rates"] for fit in fits)


def test_same_seed_same_bytes_with_two_workers_and_a_rerun_skips(scored, tmp_path, capsys):
    corpus = tmp_path / "copy"
    ignored = shutil.ignore_patterns("scores", "scorer.*")
    shutil.copytree(scored, corpus, ignore=ignored)
    cfg = replace(CONFIG, corpus=corpus, workers=2)
    scorers.main(cfg)
    assert files_of(corpus) == files_of(scored) and len(files_of(corpus)) == 20 + 2  # and markers
    assert sorted(path.name for path in corpus.iterdir()) == [
        "clips.tsv",
        "scorer.json",
        "scorer.pt",
        "train",
        "validation",
    ]
    capsys.readouterr()
    stamp = (corpus / "scorer.json").stat().st_mtime_ns
    scorers.main(replace(cfg, workers=1))
    assert "up to date" in capsys.readouterr().out
    assert (corpus / "scorer.json").stat().st_mtime_ns == stamp


def test_the_kept_network_gives_the_scores_of_the_validation_clips(scored):
    scorer = crnn.load_scorer(scored / "scorer.pt", torch.device("cpu"))
    assert scorer.classes == ["noise", "tone"]
    source = ScoreFiles(scored / "validation" / "scores", scorer.classes)
    for i in range(4):
        wav, rate = soundfile.read(scored / "validation" / "audio" / f"{i}.flac", dtype="float32")
        found = scorer.score_recording(wav, rate)
        written = np.array([[float(f"{x:.6g}") for x in row] for row in found], np.float32)
        assert np.array_equal(written, source.scores(f"{i}.flac").values)


def test_a_scorer_that_is_none(scored, tmp_path):
    def fails(message: str) -> None:
        with pytest.raises(InputError, match=message):
            crnn.load_scorer(tmp_path / "scorer.pt", torch.device("cpu"))

    fails(r"scorer\.pt: no such scorer; python scorers\.py --corpus .* writes one")
    content = torch.load(scored / "scorer.pt", weights_only=True)
    torch.save(with_digest(content | {"version": 0}), tmp_path / "scorer.pt")
    fails("made by version 0 of the scorer, not 1; run python scorers")
    torch.save(with_digest(content | {"classes": ["noise"]}), tmp_path / "scorer.pt")
    fails("weights do not fit the network")
    (tmp_path / "scorer.pt").write_bytes((scored / "scorer.pt").read_bytes()[:2000])
    fails("damaged, or not a file of tensors")


def test_other_configuration_or_missing_file_is_not_up_to_date(scored, tmp_path, capsys):
    corpus = shutil.copytree(scored, tmp_path / "copy")
    cfg = replace(CONFIG, corpus=corpus)
    clips = crnn.read_corpus(corpus)
    key = crnn.scorer_key(cfg, clips, ["noise", "tone"])
    assert crnn.is_done(cfg, clips, ["noise", "tone"], key)
    other = crnn.scorer_key(replace(cfg, seed=1), clips, ["noise", "tone"])
    assert not crnn.is_done(cfg, clips, ["noise", "tone"], other)
    assert "another configuration" in capsys.readouterr().out
    (corpus / "validation" / "scores" / "0.tsv").unlink()
    assert not crnn.is_done(cfg, clips, ["noise", "tone"], key)
    assert "incomplete" in capsys.readouterr().out
    shutil.copy(scored / "validation" / "scores" / "0.tsv", corpus / "validation" / "scores")
    assert crnn.is_done(cfg, clips, ["noise", "tone"], key)
    (corpus / "scorer.pt").unlink()
    assert not crnn.is_done(cfg, clips, ["noise", "tone"], key)
    (corpus / "scorer.json").unlink()
    with pytest.raises(InputError, match=r"not written by scorers\.py"):
        scorers.main(cfg)


def test_damaged_audio_is_named_and_nothing_is_written(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "train" / "audio" / "3.flac").write_bytes(b"fLaC, but not really")
    before = sorted(corpus.rglob("*"))
    with pytest.raises(InputError, match=r"train/audio/3\.flac: cannot be read"):
        scorers.main(replace(CONFIG, corpus=corpus))
    assert sorted(corpus.rglob("*")) == before


def test_corpus_errors(tmp_path):
    def fails(corpus: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            scorers.main(replace(CONFIG, corpus=corpus))

    fails(tmp_path / "nowhere", r"no clips\.tsv; run python soundscapes\.py first")
    fails(make_corpus(tmp_path / "one", folds="1"), "two folds are needed")
    corpus = make_corpus(tmp_path / "two")
    listing = corpus / "clips.tsv"
    text = listing.read_text()
    listing.write_text(text.replace("train\t3.flac", "train\t99.flac"))
    fails(corpus, r"clip 99\.flac of train is not in its labels\.tsv")
    listing.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    fails(corpus, r"3\.flac of validation/labels\.tsv is not listed")
    listing.write_text(text.replace("fold", "group", 1))
    fails(corpus, "expected columns split, filename, fold")
    listing.write_text(text)
    (corpus / "train" / "audio" / "3.flac").unlink()
    fails(corpus, r"3\.flac: no such audio file")


def test_a_single_gradient_step_is_allowed(tmp_path):
    """One epoch of one batch: the learning-rate schedule must not trip over a single step."""
    rng = np.random.default_rng(0)
    starts = np.array([0, 40, 90])
    features = rng.standard_normal((90, crnn.N_MELS)).astype(np.float16)
    store = crnn.Store(features, rng.random((90, 2)) < 0.3, starts)
    cfg = replace(CONFIG, epochs=1, batch=16)
    net, seen = crnn.train_network(cfg, store, crnn.Fit(0, "x", [0, 1], []), torch.device("cpu"))
    assert seen == [0, 1] and not net.training
    # On another device nothing stays behind: with a tensor of the CPU the meta device refuses.
    net, seen = crnn.train_network(cfg, store, crnn.Fit(0, "x", [0, 1], []), torch.device("meta"))
    assert seen == [0, 1] and {each.device.type for each in net.state_dict().values()} == {"meta"}
    assert crnn.Scorer(net, ["a", "b"]).scores_of(store.clip(0)[0]).device.type == "meta"


def test_only_what_fits_a_network_opens_a_gpu(tmp_path, monkeypatch):
    """Features need none: a GPU has at most as many processes as there are fits; all are on it."""
    opened, used, train = [], [], crnn.train_network
    monkeypatch.setattr(crnn, "pick_device", lambda name, threads: opened.append(name))
    cpu = torch.device("cpu")
    on_the_cpu = lambda *given: [used.append(given[-1]), train(*given[:-1], cpu)][1]  # noqa: E731
    monkeypatch.setattr(crnn, "train_network", on_the_cpu)
    clips = crnn.read_corpus(make_corpus(tmp_path / "corpus"))
    (tmp_path / "work").mkdir()
    given = (tmp_path / "work", clips, ["noise", "tone"], torch.device("cuda"))
    found = crnn.score_corpus(replace(CONFIG, epochs=1), *given)
    assert len(found) == 3 and opened == ["cpu"] + ["cuda"] * 3 and used == [given[-1]] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    before = sorted(corpus.rglob("*"))
    with pytest.raises(InputError, match="--device cuda: no CUDA device; use --device cpu"):
        scorers.main(replace(CONFIG, corpus=corpus, device="cuda"))
    assert sorted(corpus.rglob("*")) == before
