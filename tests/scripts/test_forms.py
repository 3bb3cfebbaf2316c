"""Inputs as people have them, through all scripts: preprocessing, evaluation, table, detection."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_detect import CLASSES, make_clip, write_policy

import detect
import evaluate
import preprocess
from comparison.systems import from_events, predicted_events
from config import Bandit, DetectConfig, EvaluateConfig, PreprocessConfig
from core.errors import InputError
from core.stored import read_json
from policy import gate
from policy.apply import load_policy
from scores import score_files
from sed.caches import Cache, load_cache
from sed.labels import NO_LENGTH, OUTSIDE, read_labels, read_rows, write_asides
from sed.timeline import Event, frame_edges, write_audacity, write_labels

RATE, FRAMES, FRAME_S = 8000, 100, 0.02
NAMES = [f"c{i}.wav" for i in range(5)]


def write_corpus(folder: Path, seed: int = 0) -> None:
    """Five clips of 2 s: audio, scores of 20 ms, labels."""
    rng, labels = np.random.default_rng(seed), {}
    for kind in ("audio", "scores"):
        (folder / kind).mkdir(parents=True)
    for name in NAMES:
        wav, values, labels[name] = make_clip(rng, FRAMES)
        soundfile.write(folder / "audio" / name, wav, RATE)
        path = folder / "scores" / f"{Path(name).stem}.tsv"
        score_files.write_scores(path, frame_edges(FRAMES, FRAME_S), CLASSES, values)
    write_labels(folder / "labels.tsv", labels)


def prepare(folder: Path, cache: Path, split: str = "validation", **changes) -> Cache:
    """Cache of a corpus, all pairs; what is printed is not shown."""
    given = {
        "cache": cache,
        "split": split,
        "labels": folder / "labels.tsv",
        "audio": folder / "audio",
        "scores": folder / "scores",
        "pairs": "all",
        "workers": 1,
    } | changes
    preprocess.main(PreprocessConfig(**given))
    return load_cache(cache / split) if split else None


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus, its caches, and a policy with random weights."""
    folder = tmp_path_factory.mktemp("forms")
    with contextlib.redirect_stdout(io.StringIO()):
        write_corpus(folder / "corpus")
        for split in ("train", "validation"):
            prepare(folder / "corpus", folder / "cache", split)
        write_policy(folder / "run", folder / "cache", Bandit())
    return folder


@pytest.fixture
def corpus(home, tmp_path) -> Path:
    """A copy of the corpus to change."""
    shutil.copytree(home / "corpus", tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def clean(home) -> Cache:
    """The cache of the corpus as it is."""
    return load_cache(home / "cache" / "validation")


def check_same(cache: Cache, other: Cache, rename: Callable[[str], str] = str) -> None:
    """The same pairs, signals, labels, events and durations, under other names of the clips."""
    pairs = [pair._replace(filename=rename(pair.filename)) for pair in other.pairs]
    found = {pair[:2]: k for k, pair in enumerate(cache.pairs)}
    assert sorted(found) == sorted(pair[:2] for pair in pairs)
    for k, pair in enumerate(pairs):
        ours, theirs = cache.of_pair(found[pair[:2]]), other.of_pair(k)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), pair
    assert cache.truth == {rename(name): events for name, events in other.truth.items()}
    assert cache.durations == {rename(n): seconds for n, seconds in other.durations.items()}


# ---------------------------------------------------------------------------- labels


def as_table(folder: Path, header: str, sign: str = "\t", name: Callable[[str], str] = str) -> Path:
    """The labels under another header, with other names of the clips."""
    lines = (folder / "labels.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    text = "".join(sign.join([name(row[0]), *row[1:]]) + "\n" for row in rows)
    (folder / "labels.tsv").write_text(f"{header}\n{text}")
    return folder / "labels.tsv"


AUDIOSET = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel"


def stem(name: str) -> str:
    return Path(name).stem


def dotted(name: str) -> str:
    return f"Y{stem(name)}_30.000_40.000"


def audioset(folder: Path) -> Path:
    return as_table(folder, AUDIOSET)


def commas(folder: Path) -> Path:
    return as_table(folder, "filename,onset,offset,event_label", ",")


def ids_alone(folder: Path) -> Path:
    return as_table(folder, AUDIOSET, name=stem)


def dotted_ids(folder: Path) -> Path:
    for kind in ("audio", "scores"):
        for path in list((folder / kind).iterdir()):
            path.rename(path.with_name(dotted(path.name) + path.suffix))
    return as_table(folder, AUDIOSET, name=dotted)


def tracks(folder: Path) -> Path:
    for name, events in read_labels(folder / "labels.tsv").items():
        write_audacity(folder / "tracks" / f"{stem(name)}.txt", events)
    return folder / "tracks"


def raven(folder: Path) -> Path:
    (folder / "tables").mkdir()
    head = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tAnnotation\n"
    for name, events in read_labels(folder / "labels.tsv").items():
        rows = [f"{i}\tWaveform 1\t{a}\t{b}\t{c}\n" for i, (a, b, c) in enumerate(events)]
        file = folder / "tables" / f"{stem(name)}.Table.1.selections.txt"
        file.write_text(head + "".join(rows))
    return folder / "tables"


LABELS = {
    "AudioSet strong": (audioset, str),
    "commas": (commas, str),
    "ids without extension": (ids_alone, stem),
    "ids with dots, without extension": (dotted_ids, dotted),
    "Audacity tracks": (tracks, stem),
    "Raven tables": (raven, stem),
}


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("scores", ["files", "archive"])
def test_labels_of_every_form_give_the_same_cache(corpus, clean, tmp_path, form, scores):
    write, rename = LABELS[form]
    path = write(corpus)
    given = {"labels": path}
    if scores == "archive":
        given["scores"] = tmp_path / "scores.npz"
        score_files.convert(corpus / "scores", given["scores"])
    check_same(prepare(corpus, tmp_path / "cache", **given), clean, rename)


# ---------------------------------------------------------------------------- rows


def test_rows_that_reach_over_their_clip_are_cut_or_left_out(corpus, clean, tmp_path, capsys):
    """Labels and predictions by one rule, with audio and without."""
    truth = read_labels(corpus / "labels.tsv")
    odd = [
        *(Event(-0.05, 0.3, "Cat"), Event(1.6, 2.15, "Cat"), Event(2.05, 2.1, "Cat")),
        *(Event(-1.0, -0.5, "Cat"), Event(0.7, 0.7, "Cat")),
    ]
    even = [Event(0.0, 0.3, "Cat"), Event(1.6, 2.0, "Cat")]
    write_labels(corpus / "even.tsv", truth | {"c0.wav": truth["c0.wav"] + even})
    write_labels(corpus / "labels.tsv", truth | {"c0.wav": truth["c0.wav"] + odd})
    for k, audio in enumerate((corpus / "audio", None)):
        kept = prepare(corpus, tmp_path / f"{k}", audio=audio)
        told = capsys.readouterr().out
        for text in ("1 x offset equals onset", "2 x lies outside", "1 x begins", "1 x ends"):
            assert text in told
        want = prepare(corpus, tmp_path / f"even-{k}", audio=audio, labels=corpus / "even.tsv")
        check_same(kept, want)
        capsys.readouterr()
        prepare(corpus, tmp_path / f"{k}", audio=audio)  # taken over, and told again
        assert "2 x lies outside" in capsys.readouterr().out
        found, wanted = (from_events(corpus / f, want) for f in ("labels.tsv", "even.tsv"))
        assert np.array_equal(found.pred, wanted.pred) and found.events == wanted.events
        assert len(found.asides) == 5 and not wanted.asides
    rows = (tmp_path / "0" / "validation" / "left_out.tsv").read_text().splitlines()
    assert len(rows) == 6 and f"c0.wav\t0.7\t0.7\tCat\t{NO_LENGTH}" in rows
    assert f"c0.wav\t2.05\t2.1\tCat\t{OUTSIDE}" in rows


def test_labels_that_go_on_long_after_all_scores_are_of_other_clips(corpus, tmp_path):
    truth = read_labels(corpus / "labels.tsv")
    write_labels(corpus / "labels.tsv", {n: [*e, Event(3, 5, "Dog")] for n, e in truth.items()})
    with pytest.raises(InputError, match="scores of these clips"):
        prepare(corpus, tmp_path / "cache", audio=None)
    assert len(prepare(corpus, tmp_path / "cache").clips) == len(NAMES)  # audio knows better


def test_many_missing_clips_are_summed_up(corpus, tmp_path, capsys):
    truth = read_labels(corpus / "labels.tsv")
    gone = {f"gone{i}.wav": [Event(0, 1, "Dog")] for i in range(672)}
    write_labels(corpus / "labels.tsv", truth | gone)
    (corpus / "audio" / "c4.wav").unlink()
    cache = prepare(corpus, tmp_path / "cache", allow_missing=True)
    told = capsys.readouterr().out
    assert len(cache.clips) == 4 and len(cache.manifest["left_out"]) == 673
    assert "672 x no scores" in told and "gone9.wav and 662 more" in told and "gone10" not in told
    assert "no audio" in told and told.count("\n") < 12
    rows = read_rows_of(tmp_path / "cache" / "validation" / "left_out.tsv")
    assert len(rows) == 673 and {row[0] for row in rows} == {*gone, "c4.wav"}
    member = from_events(corpus / "labels.tsv", cache)  # they are left out of predictions as well
    assert np.array_equal(member.pred, cache.label) and "673 clips" in capsys.readouterr().out


def read_rows_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def test_a_system_that_says_nothing_has_a_row(home, tmp_path):
    (tmp_path / "silence.tsv").write_text("filename\tonset\toffset\tevent_label\n")
    compare = {"cache": home / "cache", "out": tmp_path / "table", "workers": 1, "device": "cpu"}
    files = (f"nothing={tmp_path / 'silence.tsv'}",)
    evaluate.main(EvaluateConfig(compare=files, **compare))
    results = read_json(tmp_path / "table" / "results.json", "")
    row = results["entrants"][1]
    assert row["name"] == "nothing" and row["mean"]["macro_f1"] == row["mean"]["micro_f1"] == 0
    assert row["mean"]["false_alarms"] == 0 and row["mean"].get("event_f1", 0) == 0


def test_predictions_over_the_ends_have_a_row(home, clean, tmp_path, capsys):
    """The table is made to its end, and says which rows were cut or left out."""
    early = {name: [Event(-0.03, 1, "Dog"), Event(1.9, 9, "Dog")] for name in NAMES}
    write_labels(tmp_path / "a.tsv", early | {"c0.wav": [Event(5, 6, "Cat")] * 12})
    exact = {name: [Event(0, 1, "Dog"), Event(1.9, 2.0, "Dog")] for name in NAMES}
    write_labels(tmp_path / "b.tsv", exact | {"c0.wav": []})
    given = {"cache": home / "cache", "out": tmp_path / "table", "workers": 1, "device": "cpu"}
    names = (str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv"))
    evaluate.main(EvaluateConfig(compare=names, **given))
    told = capsys.readouterr().out
    assert "12 x lies outside" in told and "and 2 more" in told and "4 x begins before 0" in told
    rows = read_rows_of(tmp_path / "table" / "left_out.tsv")
    assert len(rows) == 12 + 2 * 4
    results = read_json(tmp_path / "table" / "results.json", "")
    first, second = (row["mean"] for row in results["entrants"][1:3])
    assert first == second


def test_events_under_other_spellings_of_the_clips(home, clean, tmp_path):
    truth = clean.truth
    write_labels(tmp_path / "a.tsv", {stem(name): events for name, events in truth.items()})
    member = from_events(tmp_path / "a.tsv", clean)
    assert np.array_equal(member.pred, clean.label) and member.events.keys() == truth.keys()
    for name, events in truth.items():
        write_audacity(tmp_path / "tracks" / f"{stem(name)}.txt", events)
    given = {"cache": home / "cache", "out": tmp_path / "table", "workers": 1, "device": "cpu"}
    names = (str(tmp_path / "a.tsv"), str(tmp_path / "tracks"))
    evaluate.main(EvaluateConfig(compare=names, **given))
    results = read_json(tmp_path / "table" / "results.json", "")
    first, second = (row["mean"] for row in results["entrants"][1:3])
    assert first == second and first["micro_f1"] == 1


def test_set_aside_rows_are_no_events_when_read_again(tmp_path):
    """The file of what was left out is a table with a header of its own: no clip without events."""
    asides = read_rows(put(tmp_path, "a\t1\t1\tDog\n")).asides
    write_asides(tmp_path / "left_out.tsv", asides)
    assert read_rows(tmp_path / "left_out.tsv").asides == asides


def put(folder: Path, rows: str) -> Path:
    path = folder / "labels.tsv"
    path.write_text("filename\tonset\toffset\tevent_label\n" + rows)
    return path


# ---------------------------------------------------------------------------- scores


def rewrite(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Every score file with another table (T, 2 + K): onset, offset, values."""
    for path in (folder / "scores").glob("*.tsv"):
        head, *_ = path.read_text().splitlines()
        table = change(np.loadtxt(path, skiprows=1))
        rows = ["\t".join(f"{x:.10g}" for x in row) for row in table]
        path.write_text("\n".join([head, *rows]) + "\n")


def padded(folder: Path) -> dict:
    """Scores to 3 s of a clip of 2 s: as of a model that pads its input."""

    def longer(table: np.ndarray) -> np.ndarray:
        edges = frame_edges(150, FRAME_S)
        values = np.vstack([table[:, 2:], np.full((50, len(CLASSES)), 0.9)])
        return np.column_stack([edges[:-1], edges[1:], values])

    rewrite(folder, longer)
    return {"cut_scores": True}


def overlapping(folder: Path) -> dict:
    """Windows of 62 ms every 20 ms."""

    def wider(table: np.ndarray) -> np.ndarray:
        table[:, 1] = table[:, 0] + 0.062
        return table

    rewrite(folder, wider)
    return {}


def rounded(folder: Path) -> dict:
    """Frames of 16 ms with two decimals."""

    def coarse(table: np.ndarray) -> np.ndarray:
        edges = frame_edges(125, 0.016).round(2)
        return np.column_stack([edges[:-1], edges[1:], table[np.arange(125) * 4 // 5, 2:]])

    rewrite(folder, coarse)
    return {}


def beyond_rounding(folder: Path) -> dict:
    """Scores that lie a rounding error outside 0..1."""

    def odd(table: np.ndarray) -> np.ndarray:
        table[:, 2:][table[:, 2:] > 0.99] = 1.0000001
        table[:, 2:][table[:, 2:] < 0.01] = -1e-9
        return table

    rewrite(folder, odd)
    return {}


def foreign(folder: Path) -> dict:
    text = "filename\tduration\n" + "".join(f"{name}\t2.0\n" for name in NAMES)
    (folder / "scores" / "audio_durations.tsv").write_text(text)
    return {}


def parts(folder: Path) -> dict:
    """An NPZ file for each clip."""
    source = score_files.open_scores(folder / "scores")
    for clip in source.clips():
        path = folder / "parts" / f"{clip}.npz"
        path.parent.mkdir(exist_ok=True)
        score_files.write_archive(path, source.classes, [(clip, source.read(clip))])
    return {"scores": folder / "parts"}


SCORES = {f.__name__: f for f in (padded, overlapping, rounded, beyond_rounding, foreign, parts)}


@pytest.mark.parametrize("form", SCORES)
@pytest.mark.parametrize("audio", [True, False])
def test_detect_and_evaluate_agree_on_scores_of_every_form(home, corpus, tmp_path, form, audio):
    changes = SCORES[form](corpus)
    if form == "padded" and not audio:
        pytest.skip("only audio tells that scores were padded")
    sound = {} if audio else {"audio": None}
    cache = prepare(corpus, tmp_path / "cache", **changes, **sound)
    given = {"run": home / "run", "cache": tmp_path / "cache", "device": "cpu"}
    evaluate.main(EvaluateConfig(**given, train_split="validation", out=tmp_path / "evaluated"))
    given = {"policy": home / "run" / "best.pt", "out": tmp_path / "e.tsv", "device": "cpu"}
    given |= {"audio": corpus / "audio", "scores": corpus / "scores"} | changes | sound
    assert detect.main(DetectConfig(**given)) == 0
    found = read_labels(tmp_path / "e.tsv")
    assert found == read_labels(tmp_path / "evaluated" / "events.tsv")
    assert sum(map(len, found.values())) > 5
    assert max(e.offset for events in found.values() for e in events) <= 2.0
    with np.load(tmp_path / "evaluated" / "decisions.npz") as arrays:
        policy = load_policy(home / "run" / "best.pt", torch.device("cpu"))
        pred = gate.behind(policy.gate, cache, arrays["binary"].astype(bool))
    assert np.array_equal(from_events(tmp_path / "e.tsv", cache).pred, pred)
    assert read_labels(tmp_path / "e.tsv") == rounded_events(predicted_events(cache, pred))


def rounded_events(clips: dict[str, list[Event]]) -> dict[str, list[Event]]:
    return {
        name: [Event(round(a, 3), round(b, 3), label) for a, b, label in events]
        for name, events in clips.items()
    }


def test_the_loudness_of_a_window_is_that_around_its_centre(corpus, tmp_path):
    """A burst around 1 s is loud in windows whose centres lie around 1 s, wherever they begin."""
    wav = np.full(2 * RATE, 1e-3, np.float32)
    wav[RATE * 7 // 10 : RATE * 13 // 10] = 0.5
    soundfile.write(corpus / "audio" / "c0.wav", wav, RATE)
    for begin, length, step in ((0, 0.4, 0.1), (-0.2, 0.4, 0.1), (0, 0.05, 0.1), (0, 0.1, 0.1)):
        onsets = begin + step * np.arange(round((2.0 - length - 2 * begin) / step) + 1)
        for path in (corpus / "scores").glob("*.tsv"):
            rows = [f"{t:.6g}\t{t + length:.6g}\t0.5\t0.5\t0.5" for t in onsets]
            path.write_text("\t".join(["onset", "offset", *CLASSES]) + "\n" + "\n".join(rows))
        cache = prepare(corpus, tmp_path / f"{begin}-{length}")
        rms = cache.of_pair(0)["rms"]
        centres = onsets + length / 2
        assert cache.pairs[0].filename == "c0.wav" and len(rms) == len(onsets)
        assert abs(centres[rms > 0.5].mean() - 1.0) <= step / 2 + 0.016


def test_harmless_forms_change_nothing(corpus, clean, tmp_path):
    for form in (foreign, parts):
        check_same(prepare(corpus, tmp_path / form.__name__, **form(corpus)), clean)


def test_cut_scores_are_those_of_the_audio(corpus, clean, tmp_path):
    changes = padded(corpus)
    check_same(prepare(corpus, tmp_path / "cache", **changes), clean)
    with pytest.raises(InputError, match="--cut-scores"):
        prepare(corpus, tmp_path / "other")


def test_windows_are_said_once_and_lie_around_their_centres(corpus, tmp_path, capsys):
    overlapping(corpus)
    cache = prepare(corpus, tmp_path / "cache")
    assert capsys.readouterr().out.count("5 x windows") == 1
    pair = cache.pairs[0]
    assert pair.edges[0] == 0 and pair.start_s == pytest.approx(0.021)
    np.testing.assert_allclose(pair.edges[1:4], [0.041, 0.061, 0.081], atol=1e-9)
    centres = (pair.edges[1:-1] + pair.edges[2:]) / 2
    for k, pair in enumerate(cache.pairs):
        label = cache.of_pair(k)["label"][1:]
        on = np.zeros(len(label), bool)
        for event in cache.truth[pair.filename]:
            if event.event_label == pair.event_label:
                on |= (centres >= event.onset) & (centres < event.offset)
        assert np.array_equal(label, on)


# ---------------------------------------------------------------------------- two splits


def test_one_folder_gives_two_splits(corpus, tmp_path, capsys):
    prepare(corpus, tmp_path / "a", None, validation_share=0.4, seed=1)
    train, held = (load_cache(tmp_path / "a" / split) for split in ("train", "validation"))
    names = [{clip.filename for clip in cache.clips} for cache in (train, held)]
    assert not names[0] & names[1] and names[0] | names[1] == set(NAMES)
    assert len(names[1]) == 2 and train.classes == held.classes
    assert "3 train, 2 validation" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("\n".join(sorted(map(stem, names[1]))))
    prepare(corpus, tmp_path / "b", None, clips=tmp_path / "list.txt")
    for split, cache in (("train", train), ("validation", held)):
        check_same(load_cache(tmp_path / "b" / split), cache)


# ---------------------------------------------------------------------------- arrays in, events out


@pytest.mark.parametrize("audio", [True, False])
def test_arrays_in_events_out(home, corpus, tmp_path, audio):
    given = {"policy": home / "run" / "best.pt", "out": tmp_path / "e.tsv", "device": "cpu"}
    sound = {"audio": corpus / "audio"} if audio else {}
    detect.main(DetectConfig(**given, **sound, scores=corpus / "scores", merge_gap=0.05))
    wanted = read_labels(tmp_path / "e.tsv")
    policy = load_policy(home / "run" / "best.pt", torch.device("cpu"))
    source = score_files.open_scores(corpus / "scores")
    for k, name in enumerate(NAMES):
        scores = source.scores(name)
        wav = soundfile.read(corpus / "audio" / name, dtype="float32") if audio else ()
        kind = policy if k % 2 else home / "run" / "best.pt"
        events = detect.detect(
            scores.values, scores.edges, source.classes, kind, *wav, merge_gap=0.05
        )
        assert rounded_events({name: events})[name] == wanted[name]
    assert sum(map(len, wanted.values())) > 3


def test_arrays_that_do_not_fit(home):
    policy, edges = home / "run" / "best.pt", frame_edges(10, 0.02)
    values = np.full((2, 10), 0.5)
    for given, cause in (
        ((values.T, edges, ["a", "b"]), "do not fit"),
        ((values, edges[:-1], ["a", "b"]), "do not fit"),
        ((values, edges, ["a"]), "class names"),
        ((values, edges, ["a", "a"]), "class names"),
        ((values, edges, ["a", "b\tc"]), "no table can hold"),
        ((values * 9, edges, ["a", "b"]), "sigmoid"),
        ((values, edges + 1, ["a", "b"]), "starts at"),
    ):
        with pytest.raises(InputError, match=cause):
            detect.detect(*given, policy)
    with pytest.raises(InputError, match="go together"):
        detect.detect(values, edges, ["a", "b"], policy, np.zeros(100))
    with pytest.raises(InputError, match="merge-gap"):
        detect.detect(values, edges, ["a", "b"], policy, merge_gap=-1)
    with pytest.raises(InputError, match="detect"):
        detect.detect(values, edges, ["a", "b"], policy, np.zeros((1, 2000)), RATE)
    with pytest.raises(InputError, match="audio lasts"):
        detect.detect(values, edges, ["a", "b"], policy, np.zeros(100), RATE)
