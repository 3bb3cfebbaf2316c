"""The cache end to end: against slow signals, on reruns, of damaged and unusual inputs."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import write_cache
from test_signals import slow_loudness, slow_on_grid, slow_signals

import preprocess
from config import PreprocessConfig, Signal
from core import files
from core.errors import InputError
from core.settings import to_dict
from core.stored import file_sha256
from scores import corpora, crnn, score_files
from scores.score_files import write_scores
from sed import caches, signals
from sed.caches import load_cache
from sed.signals import SIGNALS
from sed.timeline import Event, frame_edges, write_labels

# ---------------------------------------------------------------------------- cache files


def test_shard_and_cache_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [30, 1, 47]
    values = [
        {name: rng.random(n).astype(np.float32) for name in SIGNALS}
        | {"binary": (rng.random(n) > 0.5).astype(np.float32)}
        for n in lengths
    ]
    labels = [rng.random(n) > 0.5 for n in lengths]
    write_cache(tmp_path / "train", lengths)
    caches.write_shard(tmp_path / "train" / "shard-00000.npz", values, labels)
    rewrite(tmp_path / "train", sha256=file_sha256(tmp_path / "train" / "shard-00000.npz"))
    cache = load_cache(tmp_path / "train")
    assert cache.offsets.tolist() == [0, 30, 31, 78]
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        pair = cache.of_pair(index)
        assert np.array_equal(pair.pop("label"), label)
        for name, array in pair.items():
            assert array.dtype == np.float32 and np.array_equal(array, value[name]), name
    assert cache.pairs[2].edges[[0, 47]] == pytest.approx([0, 0.94])
    assert cache.find("0.wav", "Speech") == 1
    with pytest.raises(InputError, match=r"no pair 0\.wav / Cat; of this clip there are .*Speech"):
        cache.find("0.wav", "Cat")


def rewrite(folder, **changes):
    """Change entries of the manifest, or of its first shard."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for key, value in changes.items():
        (manifest if key in manifest else manifest["shards"][0])[key] = value
    preprocess.write_json(path, manifest)


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(folder, old, new):
    """Change a text in the manifest, as an editor does."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(old, new))


def pipe(folder):
    """A pipe in place of the manifest: whoever opens it waits forever."""
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


LONGER = [["0.wav", "Dog", 30, 0.02], ["0.wav", "Speech", 21, 0.02]]
MOVED = [["0.wav", "Dog", 31, 0.02], ["0.wav", "Speech", 19, 0.02]]
DAMAGED = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest in "),
    "no folder": (shutil.rmtree, "no manifest in "),
    "cut manifest": (lambda f: (f / "manifest.json").write_text('{"format": 1,'), "damaged ("),
    "list": (lambda f: (f / "manifest.json").write_text("[]"), "damaged ("),
    "no shards": (lambda f: rewrite(f, shards=3), "damaged ("),
    "odd pairs": (lambda f: rewrite(f, pairs=[["a.wav"]]), "damaged ("),
    "other format": (lambda f: rewrite(f, format=0), "format 0, not 2"),
    "no shard": (lambda f: (f / "shard-00000.npz").unlink(), "shard-00000.npz is missing"),
    "changed": (lambda f: flip(f / "shard-00000.npz"), "shard-00000.npz does not match its check"),
    "unknown clip": (lambda f: rewrite(f, pairs=[["a.wav", "Dog", 30, 0.02]]), "damaged ("),
    "lengths": (lambda f: rewrite(f, pairs=LONGER), "shard-00000.npz: damaged ("),
    "other lengths": (lambda f: rewrite(f, pairs=MOVED), "not as long as the manifest says"),
    "no frames": (lambda f: rewrite(f, pairs=[["0.wav", "Dog", 0, 0.02]]), "damaged ("),
    "terabytes": (lambda f: rewrite(f, pairs=[["0.wav", "Dog", 2**42, 0.02]]), "damaged ("),
    "no tag": (lambda f: rewrite(f, clips=[["0.wav", 1.0, [], [0.5]]]), "damaged ("),
    "file elsewhere": (lambda f: rewrite(f, file="../train/shard-00000.npz"), "damaged ("),
    "edited": (lambda f: edit(f, '"Dog"', '"Cat"'), "does not match its checksum"),
    "one pipe": (pipe, "is a pipe, not a file"),
    "brackets": (lambda f: (f / "manifest.json").write_text("[" * 200_000), "too deep"),
    "nan": (lambda f: spoil(f, "prob", np.nan), "prob is nan in '0.wav' / 'Speech'"),
    "range": (lambda f: spoil(f, "d_adj", 5.0), "d_adj is 5.0 in '0.wav' / 'Speech'"),
    "label": (lambda f: spoil(f, "label", 2), "label is 2 in '0.wav' / 'Speech'"),
}


def spoil(folder, name, value):
    """A value that no formula gives, in a shard with the right checksum."""
    path = folder / "shard-00000.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[name][35] = value
    np.savez(path, **arrays)
    rewrite(folder, sha256=file_sha256(path))


def test_a_manifest_without_checksum_is_read_as_older_versions_wrote_it(tmp_path):
    folder = tmp_path / "cache" / "train"
    write_cache(folder, [30, 20])
    path, pairs = folder / "manifest.json", load_cache(folder).pairs
    manifest = json.loads(path.read_text()) | {"signal": None}  # of others an older version lags
    for name in ("sha256", *caches.NEWER):
        manifest.pop(name, None)
    path.write_text(json.dumps(manifest))
    assert load_cache(folder).pairs == pairs
    path.write_text(json.dumps(manifest | {"sha257": ""}))  # a checksum, its name damaged
    with pytest.raises(InputError, match="no checksum"):
        load_cache(folder)


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_cache_is_named_with_the_cure(tmp_path, damage, message):
    folder = tmp_path / "cache" / "train"
    write_cache(folder, [30, 20])
    damage(folder)
    with pytest.raises(InputError) as error:
        load_cache(folder)
    assert message in str(error.value) and str(folder) in str(error.value)
    assert f"python preprocess.py --cache {tmp_path / 'cache'} --split train" in str(error.value)


# ---------------------------------------------------------------------------- end to end

CLASSES = ["Cat", "Dog", "Alarm_bell_ringing"]
CLIPS = {
    "b.wav": [Event(0.1, 0.5, "Dog"), Event(0.3, 0.6, "Cat"), Event(0.55, 0.9, "Dog")],
    "a.flac": [Event(0.2, 0.7, "Alarm_bell_ringing")],
    "empty.wav": [],
    "Y--x_9.000_19.000.wav": [Event(0, 1, "Cat")],
    "stereo.wav": [Event(0.4, 0.8, "Dog")],
    "short.wav": [Event(0.4, 0.8, "Cat")],
}
PAIRS = [
    ("b.wav", "Cat"),
    ("b.wav", "Dog"),
    ("a.flac", "Alarm_bell_ringing"),
    ("Y--x_9.000_19.000.wav", "Cat"),
    ("stereo.wav", "Dog"),
    ("short.wav", "Cat"),
]


def write_corpus(folder, clips, num_frames=50, frame_s=0.02, sample_rate=16_000):
    """Noise that is loud where something is labelled, and scores that are high there."""
    rng = np.random.default_rng(0)
    for name in ("audio", "scores"):
        (folder / name).mkdir(parents=True)
    write_labels(folder / "labels.tsv", clips)
    edges = frame_edges(num_frames, frame_s)
    for name, events in clips.items():
        seconds = 0.9 if name == "short.wav" else math.ceil(num_frames * frame_s)
        time = np.arange(round(seconds * sample_rate)) / sample_rate
        level, values = np.full(len(time), 0.02), rng.random((len(CLASSES), num_frames)) * 0.4
        for event in events:
            level[(time >= event.onset) & (time < event.offset)] = 0.3
            inside = (edges[:-1] >= event.onset) & (edges[:-1] < event.offset)
            values[CLASSES.index(event.event_label), inside] += 0.5
        wav = np.clip(rng.normal(0, 1, len(time)) * level, -1, 1)
        wav = np.column_stack([wav, wav / 3]) if name == "stereo.wav" else wav
        soundfile.write(folder / "audio" / name, wav, sample_rate)
        write_scores(folder / "scores" / f"{name.rpartition('.')[0]}.tsv", edges, CLASSES, values)
    return folder


def config_of(home, **changes):
    corpus = home / "corpus"
    inputs = {"labels": corpus / "labels.tsv", "audio": corpus / "audio"}
    inputs |= {"scores": corpus / "scores", "split": "train", "cache": home / "cache"}
    return PreprocessConfig(**(inputs | {"workers": 1} | changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A corpus of six clips and its cache, made by a process of the pool, two clips a shard."""
    home = tmp_path_factory.mktemp("done")
    write_corpus(home / "corpus", CLIPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "CLIPS_PER_SHARD", 2)
        preprocess.main(config_of(home, workers=2))  # real processes, once
    return home


@pytest.fixture
def home(done, tmp_path, monkeypatch):
    """A copy of it to damage; shards are made in this process and in order, which is quicker."""
    shutil.copytree(done, tmp_path / "home")
    monkeypatch.setattr(preprocess, "CLIPS_PER_SHARD", 2)
    work_here(monkeypatch)
    return tmp_path / "home"


def work_here(monkeypatch):
    """One worker stays in this process, where a test can reach into it."""
    monkeypatch.setattr(preprocess, "num_workers", lambda workers: 1)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_signals_and_labels_of_a_corpus(done):
    cache = load_cache(done / "cache" / "train")
    assert [(pair.filename, pair.event_label) for pair in cache.pairs] == PAIRS
    assert {(pair.num_frames, pair.frame_s) for pair in cache.pairs} == {(50, 0.02)}
    for index, (filename, event_label) in enumerate(PAIRS):
        values = cache.of_pair(index)
        path = done / "corpus" / "audio" / filename
        wav, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        wav = np.pad(wav, [(0, sample_rate - len(wav)), (0, 0)])  # scores go on where audio ends
        level = slow_loudness(wav, 1024, 256)
        rms = slow_on_grid(level, 256, len(wav), 50)
        rows = (done / "corpus" / "scores" / f"{filename.rpartition('.')[0]}.tsv").read_text()
        column = 2 + CLASSES.index(event_label)
        score = [float(row.split("\t")[column]) for row in rows.splitlines()[1:]]
        d_adj, prob, t_base = slow_signals(rms.tolist(), score)
        expected = {"rms": rms, "d_raw": score, "d_adj": d_adj, "prob": prob, "t_base": t_base}
        for name, array in expected.items():
            assert values[name] == pytest.approx(np.array(array), abs=1e-3), name
        assert np.array_equal(values["binary"] == 1, values["prob"] > values["t_base"])
        for t in range(50):
            events = [e for e in CLIPS[filename] if e.event_label == event_label]
            assert values["label"][t] == any(e.onset <= 0.02 * t + 0.01 < e.offset for e in events)


def test_manifest(done):
    folder = done / "cache" / "train"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["signal"] == to_dict(Signal())
    assert (manifest["split"], manifest["left_out"]) == ("train", [])
    assert manifest["audio"] == str((done / "corpus" / "audio").resolve())
    assert manifest["scores"]["classes"] == sorted(CLASSES)
    assert [len(shard["pairs"]) for shard in manifest["shards"]] == [3, 2, 1]
    assert files.contents(folder) == [
        "left_out.tsv",
        "manifest.json",
        *(f"shard-{i:05d}.npz" for i in range(3)),
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["train"]  # nothing half-done left


# ---------------------------------------------------------------------------- reruns


def test_rerun_reuses_everything(home, capsys):
    before = load_cache(home / "cache" / "train")
    preprocess.main(config_of(home))
    assert (
        "train: 5 of 5 clips, 6 of 6 pairs, missing 0 clips and 0 pairs; 1 clips without events"
        in (text := capsys.readouterr().out)
    )
    assert "taken over from an earlier run: 3 of 3" in text
    after = load_cache(home / "cache" / "train")
    assert after.key == before.key
    assert all(np.array_equal(after.signals[name], before.signals[name]) for name in SIGNALS)


@pytest.mark.parametrize("damage", [Path.unlink, flip], ids=["missing", "changed"])
def test_only_a_damaged_shard_is_made_again(home, capsys, damage):
    before = content_of(home / "cache" / "train")
    path = home / "cache" / "train" / "shard-00001.npz"
    damage(path)
    preprocess.main(config_of(home))
    text = capsys.readouterr().out
    assert "taken over from an earlier run: 2 of 3" in text
    assert (f"{path} does not match its checksum: rebuilt" in text) == (damage is flip)
    after = content_of(home / "cache" / "train")
    assert all(after[name] == before[name] for name in before if name.startswith("shard"))


def test_what_changed_is_made_again(home, capsys):
    key = load_cache(home / "cache" / "train").key
    os.utime(home / "corpus" / "scores" / "short.tsv")
    preprocess.main(config_of(home))
    assert "taken over from an earlier run: 2 of 3" in capsys.readouterr().out
    assert load_cache(home / "cache" / "train").key == key  # touched, but the same numbers
    changed = dict(CLIPS) | {"b.wav": [Event(0.2, 0.5, "Dog"), Event(0.3, 0.6, "Cat")]}
    write_labels(home / "corpus" / "labels.tsv", changed)
    preprocess.main(config_of(home))
    assert "taken over from an earlier run: 2 of 3" in capsys.readouterr().out
    assert load_cache(home / "cache" / "train").key != key
    preprocess.main(config_of(home, signal=Signal(fusion="harmonic")))
    assert "taken over from an earlier run" not in capsys.readouterr().out
    assert load_cache(home / "cache" / "train").manifest["signal"]["fusion"] == "harmonic"


def test_a_score_archive_gives_the_same_cache_and_is_taken_over(home, capsys):
    first = load_cache(home / "cache" / "train")
    archive = home / "corpus" / "scores.npz"
    score_files.convert(home / "corpus" / "scores", archive)
    cfg = config_of(home, scores=archive, cache=home / "new")
    preprocess.main(cfg)
    cache = load_cache(home / "new" / "train")
    assert cache.pairs == first.pairs and cache.key == first.key
    assert cache.manifest["scores"]["source"] == "archive"
    record = cfg.cache / "train" / caches.CHECKED
    stamps = preprocess.read_checked(record)
    assert stamps[str(archive)][2] == file_sha256(archive)
    preprocess.main(cfg)
    assert "taken over from an earlier run: 3 of 3" in capsys.readouterr().out
    scores = score_files.open_scores(archive)
    clips = {name: scores.read(name) for name in scores.clips()}
    clips["short"] = clips["short"]._replace(values=1 - clips["short"].values)
    score_files.write_archive(archive, scores.classes, clips.items())
    preprocess.main(cfg)
    assert "taken over from an earlier run: 2 of 3" in capsys.readouterr().out
    assert preprocess.read_checked(record) != stamps  # the file is another one: checked again
    record.write_text("{")
    assert preprocess.read_checked(record) == {}


def test_mapped_classes(home, capsys):
    """The labels' names change, the scores keep theirs; another map is not taken over."""
    first = load_cache(home / "cache" / "train")
    labels = home / "corpus" / "labels.tsv"
    labels.write_text(labels.read_text().replace("Dog", "Bello"))
    with pytest.raises(
        InputError, match=r"no column for class 'Bello'.*--map 'NAME=Bello' renames"
    ):
        preprocess.main(config_of(home))
    preprocess.main(config_of(home, map=("Dog=Bello",)))
    cache = load_cache(home / "cache" / "train")
    for name, event_label in PAIRS:
        if event_label == "Dog":
            found = cache.of_pair(cache.find(name, "Bello"))
            expected = first.of_pair(first.find(name, "Dog"))
            np.testing.assert_array_equal(found["d_raw"], expected["d_raw"])
    assert cache.manifest["scores"]["renamed"] == {"Dog": "Bello"}
    capsys.readouterr()
    others = ("Dog=Cat", "Cat=Dog")
    labels.write_text(labels.read_text().replace("Bello", "Dog"))
    preprocess.main(config_of(home))
    preprocess.main(config_of(home, map=others))
    assert "taken over from an earlier run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="--map must be SCORES=LABELS"):
        config_of(home, map=("Dog",))


def test_a_broken_off_run_is_continued(home, capsys, monkeypatch):
    complete = content_of(home / "cache" / "train")
    shutil.rmtree(home / "cache")
    real = preprocess.make_shard

    def fail(job):
        if job.path.name == "shard-00002.npz":
            raise OSError("no space left on device")
        return real(job)

    monkeypatch.setattr(preprocess, "make_shard", fail)
    with pytest.raises(OSError, match="no space left"):
        preprocess.main(config_of(home))
    assert not (home / "cache" / "train").exists()
    monkeypatch.setattr(preprocess, "make_shard", real)
    preprocess.main(config_of(home))
    assert "taken over from an earlier run: 2 of 3" in capsys.readouterr().out
    again = content_of(home / "cache" / "train")
    assert all(again[name] == complete[name] for name in complete if name.startswith("shard"))


# ---------------------------------------------------------------------------- bad inputs


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def half_of_the_scores(path):
    write_scores(path, frame_edges(25, 0.02), CLASSES, np.full((3, 25), 0.5))


def samples(path, values):
    soundfile.write(path, np.array(values, np.float32), 16_000, "FLOAT", format="WAV")


def claim(path):
    """2^36 - 1 samples, 256 GB, in the header of a FLAC file (RFC 9639, 8.2)."""
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)


BAD = {
    "claimed length": ("audio/a.flac", claim, "a.flac: its header claims"),
    "missing audio": ("audio/b.wav", Path.unlink, "b.wav: no audio in "),
    "missing scores": ("scores/a.tsv", Path.unlink, "a.flac: no scores in "),
    "cut flac": ("audio/a.flac", cut, "a.flac: cannot be read ("),
    "cut wav": ("audio/b.wav", cut, "b.wav: truncated: ends at 0.50 s, its header"),
    "nothing but a header": ("audio/b.wav", lambda p: samples(p, []), "b.wav: no samples"),
    "no byte": ("audio/b.wav", lambda p: p.write_bytes(b""), "b.wav: cannot be read ("),
    "text": ("audio/b.wav", lambda p: p.write_text("hello"), "b.wav: cannot be read ("),
    "nan": (
        "audio/b.wav",
        lambda p: samples(p, [0, np.nan]),
        "b.wav: samples are not finite",
    ),
    "scores end early": (
        "scores/b.tsv",
        half_of_the_scores,
        "b.wav: audio lasts 1.00 s, its scores 0.50 s",
    ),
    "cut scores": ("scores/b.tsv", cut, "b.wav: "),
    "empty scores": ("scores/b.tsv", lambda p: p.write_text(""), "b.tsv line 1"),
}


@pytest.mark.parametrize(("path", "damage", "message"), BAD.values(), ids=BAD)
def test_a_missing_or_damaged_clip_stops_the_run_and_can_be_left_out(
    home, capsys, path, damage, message
):
    before = content_of(home / "cache" / "train")
    damage(home / "corpus" / path)
    clip = {"a": "a.flac", "b": "b.wav"}[Path(path).stem]
    rest = [pair for pair in PAIRS if pair[0] != clip]
    for cache in (home / "cache", home / "new"):  # over an earlier cache, and without one
        with pytest.raises(InputError) as error:
            preprocess.main(config_of(home, cache=cache))
        text = str(error.value)
        assert f"1 of 6 clips in {home / 'corpus' / 'labels.tsv'} are missing or damaged" in text
        assert message in text and "--allow-missing leaves them out" in text
    assert content_of(home / "cache" / "train") == before
    assert not (home / "new" / "train").exists()
    capsys.readouterr()
    preprocess.main(config_of(home, allow_missing=True))
    text = capsys.readouterr().out
    assert message in text and "  left out: " in text
    assert f"4 of 5 clips, {len(rest)} of 6 pairs, missing 1 clips and" in text
    cache = load_cache(home / "cache" / "train")
    assert [(pair.filename, pair.event_label) for pair in cache.pairs] == rest
    assert len(cache.manifest["left_out"]) == 1 and message in cache.manifest["left_out"][0]


def test_a_repaired_clip_comes_back(home, done, capsys):
    audio = home / "corpus" / "audio" / "short.wav"
    whole = audio.read_bytes()
    samples(audio, [])
    preprocess.main(config_of(home, allow_missing=True))
    assert len(load_cache(home / "cache" / "train").pairs) == 5
    audio.write_bytes(whole)
    preprocess.main(config_of(home))
    cache, first = load_cache(home / "cache" / "train"), load_cache(done / "cache" / "train")
    assert (cache.key, cache.manifest["left_out"]) == (first.key, [])


def test_a_clip_that_failed_is_tried_again(home, monkeypatch):
    """A reading error may pass without the file having changed."""
    shutil.rmtree(home / "cache")
    real = preprocess.clip_loudness

    def fail(clip, *rest):
        if clip.filename == "stereo.wav":
            raise ValueError("cannot be read (stale file handle)")
        return real(clip, *rest)

    monkeypatch.setattr(preprocess, "clip_loudness", fail)
    with pytest.raises(InputError, match=r"stereo\.wav: cannot be read \(stale"):
        preprocess.main(config_of(home))
    monkeypatch.setattr(preprocess, "clip_loudness", real)
    preprocess.main(config_of(home))
    assert len(load_cache(home / "cache" / "train").pairs) == 6


def test_many_bad_clips_are_counted_and_some_named(home):
    for path in (home / "corpus" / "audio").iterdir():
        path.unlink()
    why = r"stereo.wav, short.wav: no audio in \S+\. --allow-missing"  # said once
    with pytest.raises(InputError, match=rf"5 of 6 clips [^:]*: [^:]*{why}"):
        preprocess.main(config_of(home))
    with pytest.raises(InputError, match="no clip is left that has all its inputs"):
        preprocess.main(config_of(home, allow_missing=True))


def test_workers_open_the_recordings_and_nothing_is_written_where_one_is_damaged(home):
    samples(home / "corpus" / "audio" / "b.wav", [])
    claim(home / "corpus" / "audio" / "a.flac")
    (home / "corpus" / "audio" / "short.wav").unlink()
    said = set()
    for workers in (1, 2):
        with pytest.raises(
            InputError, match=r"3 of 6 clips .* a\.flac: its header claims"
        ) as error:
            preprocess.main(config_of(home, cache=home / "new", workers=workers))
        said.add(str(error.value))
    assert len(said) == 1 and not (home / "new").exists()


def test_a_recording_that_goes_while_shards_are_made_is_named(home, monkeypatch):
    shutil.rmtree(home / "cache")
    real = preprocess.make_shard

    def too_late(job):
        (home / "corpus" / "audio" / "b.wav").unlink(missing_ok=True)
        return real(job)

    monkeypatch.setattr(preprocess, "make_shard", too_late)
    with pytest.raises(InputError, match=r"1 of 6 clips .* b\.wav: "):
        preprocess.main(config_of(home))


def test_no_readable_clip(home):
    for name in CLIPS:
        samples(home / "corpus" / "audio" / name, [0, np.nan])
    with pytest.raises(InputError, match="no readable clip is left"):
        preprocess.main(config_of(home, allow_missing=True))


@pytest.mark.parametrize("pairs", ["present", "all"])
def test_no_event_at_all(home, pairs):
    rows = "".join(f"{name}\t\t\t\n" for name in CLIPS)
    table = home / "corpus" / "labels.tsv"
    table.write_text(f"filename\tonset\toffset\tevent_label\n{rows}")
    with pytest.raises(InputError, match=r"labels\.tsv: no clip has an event, so there is no pair"):
        preprocess.main(config_of(home, pairs=pairs, replace=True))
    assert load_cache(home / "cache" / "train").pairs


@pytest.mark.parametrize("flag", ["labels", "audio", "scores", "import_npz"])
def test_folders_that_are_not_there(home, flag):
    changes = {flag: home / "nowhere"}
    if flag == "import_npz":
        changes |= {"audio": None, "scores": None}
    with pytest.raises(InputError, match=f"{flag.replace('_', '-')} .*nowhere"):
        preprocess.main(config_of(home, **changes))


def test_notices(tmp_path, monkeypatch, capsys):
    work_here(monkeypatch)
    clips = {
        "silent.wav": [Event(0.1, 0.5, "Dog")],
        "tick.wav": [Event(0.101, 0.105, "Dog")],
        "late.wav": [Event(0.5, 1.5, "Dog")],
        "short.wav": [Event(0.1, 0.5, "Dog")],
    }
    write_corpus(tmp_path / "corpus", clips)
    samples(tmp_path / "corpus" / "audio" / "silent.wav", np.zeros(16_000))
    preprocess.main(config_of(tmp_path))
    text = capsys.readouterr().out
    for notice in (
        "1 x audio is all zero: silent.wav",
        "1 x events cover no frame centre, so the pair is off everywhere: tick.wav / Dog",
        "1 x scores run past the end of the audio (silence assumed): short.wav",
    ):
        assert f"note: {notice}\n" in text
    assert "1 x ends after the clip (cut there): late.wav 0.5 .. 1.5 Dog\n" in text
    cache = load_cache(tmp_path / "cache" / "train")
    silent = cache.of_pair(0)
    assert not silent["prob"].any() and not silent["binary"].any()
    assert not cache.of_pair(1)["label"].any() and cache.of_pair(2)["label"][-1]


def test_pairs_that_fall_back_on_loudness_are_counted(home, capsys):
    scores = home / "corpus" / "scores" / "b.tsv"
    values = np.full((3, 50), 0.2)
    values[1, 10:20] = 0.21
    write_scores(scores, frame_edges(50, 0.02), CLASSES, values)
    preprocess.main(config_of(home))
    assert f"2 x {signals.FELL_BACK}: b.wav / Cat, b.wav / Dog" in capsys.readouterr().out
    cache = load_cache(home / "cache" / "train")
    assert cache.manifest["fell_back"] == 2
    values = cache.of_pair(cache.find("b.wav", "Dog"))
    assert np.array_equal(values["prob"], values["rms"])
    preprocess.main(config_of(home, audio=None, replace=True))
    assert signals.FELL_BACK not in capsys.readouterr().out
    cache = load_cache(home / "cache" / "train")
    assert cache.manifest["fell_back"] == 0
    assert cache.of_pair(cache.find("b.wav", "Dog"))["binary"][10:18].all()


def test_channels_in_antiphase_are_a_sound(tmp_path, monkeypatch, capsys):
    work_here(monkeypatch)
    write_corpus(tmp_path / "corpus", {"a.wav": [Event(0.2, 0.6, "Dog")]})
    path = tmp_path / "corpus" / "audio" / "a.wav"
    mono, rate = soundfile.read(path)
    preprocess.main(config_of(tmp_path))
    expected = load_cache(tmp_path / "cache" / "train")
    soundfile.write(path, np.column_stack([mono, -mono]), rate)
    preprocess.main(config_of(tmp_path))
    assert "audio is all zero" not in capsys.readouterr().out
    cache = load_cache(tmp_path / "cache" / "train")
    assert cache.signals["rms"] == pytest.approx(expected.signals["rms"], abs=1e-3)
    assert cache.signals["binary"].any()


DURATIONS = {  # seconds of audio where the scores span 1 s -> what is said
    "a frame less": (0.985, ""),
    "some frames less": (0.93, signals.PADDED),
    "a frame more": (1.015, ""),
    "some frames more": (1.07, signals.LONGER),
    "half": (0.5, "audio lasts 0.50 s, its scores 1.00 s"),
    "twice, as of a wrong rate": (2.0, "audio lasts 2.00 s, its scores 1.00 s"),
}


@pytest.mark.parametrize(("seconds", "said"), DURATIONS.values(), ids=DURATIONS)
def test_audio_and_scores_of_other_lengths(tmp_path, monkeypatch, capsys, seconds, said):
    work_here(monkeypatch)
    clips = {name: [Event(0.1, 0.4, "Dog")] for name in ("a.wav", "b.wav")}
    write_corpus(tmp_path / "corpus", clips)
    wav = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))
    soundfile.write(tmp_path / "corpus" / "audio" / "a.wav", wav, 16_000)
    if "lasts" in said:
        with pytest.raises(InputError, match=f"a.wav: {said}.*sample rate"):
            preprocess.main(config_of(tmp_path))
        preprocess.main(config_of(tmp_path, allow_missing=True))
        assert len(load_cache(tmp_path / "cache" / "train").pairs) == 1
        return
    preprocess.main(config_of(tmp_path))
    text = capsys.readouterr().out
    for notice in (signals.PADDED, signals.LONGER):
        assert (f"1 x {notice}: a.wav" in text) == (notice == said)


def test_a_header_of_half_the_rate(tmp_path, monkeypatch):
    """16 kHz samples under a header that says 8 kHz: twice as long as their scores."""
    work_here(monkeypatch)
    write_corpus(tmp_path / "corpus", {"a.wav": [Event(0.1, 0.4, "Dog")]})
    path = tmp_path / "corpus" / "audio" / "a.wav"
    soundfile.write(path, soundfile.read(path)[0], 8_000)
    with pytest.raises(InputError, match=r"a\.wav: audio lasts 2\.00 s, its scores 1\.00 s"):
        preprocess.main(config_of(tmp_path))


def test_a_truncated_file_is_named(home, capsys):
    path = home / "corpus" / "audio" / "b.wav"
    path.write_bytes(path.read_bytes()[: 44 + 2 * 15_500])
    preprocess.main(config_of(home))
    assert f"1 x {preprocess.TRUNCATED}: b.wav" in capsys.readouterr().out


# ---------------------------------------------------------------------------- other sources


def test_a_cache_of_other_sources_is_not_replaced_unless_told(home, tmp_path, capsys):
    before = content_of(home / "cache" / "train")
    other = write_corpus(tmp_path / "other", {"x.wav": [Event(0.1, 0.4, "Dog")]})
    cases = {
        "labels": {"labels": other / "labels.tsv", "audio": other / "audio"}
        | {"scores": other / "scores"},
        "audio": {"audio": None},
        "scores": {"scores": shutil.copytree(home / "corpus" / "scores", tmp_path / "scores")},
    }
    for flag, inputs in cases.items():
        with pytest.raises(InputError, match=f"was made with --{flag} .*--replace"):
            preprocess.main(config_of(home, **inputs))
        assert content_of(home / "cache" / "train") == before
    preprocess.main(config_of(home, **cases["labels"], replace=True))
    assert load_cache(home / "cache" / "train").pairs[0].filename == "x.wav"


def test_a_cache_that_has_moved_with_its_sources_is_made_again(home):
    """`home` is a copy: the paths in its manifest are those of the original."""
    manifest = json.loads((home / "cache" / "train" / "manifest.json").read_text())
    assert manifest["sources"]["labels"] != str(home / "corpus" / "labels.tsv")
    preprocess.main(config_of(home, signal=Signal(beta=1.3)))
    assert load_cache(home / "cache" / "train").manifest["signal"]["beta"] == 1.3


def test_other_classes_in_the_other_split(home, tmp_path, capsys):
    """Entirely other ones are refused; some new ones are said."""
    clips = {"x.wav": [Event(0.1, 0.4, "Dog")]}
    other = write_corpus(tmp_path / "other", clips)
    labels = other / "labels.tsv"
    inputs = {"labels": labels, "audio": other / "audio", "scores": other / "scores"}
    inputs |= {"split": "validation", "map": ("Dog=Owl",)}
    labels.write_text(labels.read_text().replace("Dog", "Owl"))
    with pytest.raises(InputError, match=r"other classes .*Owl.*--replace"):
        preprocess.main(config_of(home, **inputs))
    assert not (home / "cache" / "validation").exists()
    preprocess.main(config_of(home, **inputs, pairs="all", classes=("Cat",)))
    assert "has no pairs of Owl" in capsys.readouterr().out
    preprocess.main(config_of(home, **inputs, replace=True))
    assert load_cache(home / "cache" / "validation").classes == ["Owl"]


@pytest.mark.parametrize("split", [None, "validation"])
def test_forgotten_labels_make_no_corpus_in_another_cache(home, monkeypatch, split):
    def fail(_):
        raise AssertionError("a corpus was made")

    monkeypatch.setattr(corpora, "make_corpus", fail)
    monkeypatch.chdir(home)
    before = content_of(home / "cache" / "train")
    with pytest.raises(InputError, match="was made with --labels"):
        preprocess.main(PreprocessConfig(cache=home / "cache", workers=1, split=split))
    assert content_of(home / "cache" / "train") == before
    with pytest.raises(AssertionError, match="a corpus was made"):
        preprocess.main(PreprocessConfig(cache=home / "cache", split=split, replace=True))


def test_a_cache_of_older_formulas_is_named_and_made_again(home, capsys):
    folder = home / "cache" / "train"
    manifest = json.loads((folder / "manifest.json").read_text())
    key = manifest["key"]
    for name in ("sha256", *caches.NEWER):  # older versions did not know them
        del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"key": "older"}))
    with pytest.raises(InputError, match=r"an old cache, .*run: python preprocess\.py"):
        load_cache(folder)
    preprocess.main(config_of(home, replace=True))
    assert load_cache(folder).key == key


def test_frames_of_64_ms(tmp_path, monkeypatch):
    """The DCASE grid: 156 frames end at 9.984 s of a 10 s clip."""
    work_here(monkeypatch)
    clips = {"a.wav": [Event(2.0, 10.0, "Dog")]}
    write_corpus(tmp_path / "corpus", clips, 156, 0.064)
    preprocess.main(config_of(tmp_path))
    cache = load_cache(tmp_path / "cache" / "train")
    assert cache.pairs[0].num_frames == 156 and cache.pairs[0].frame_s == pytest.approx(0.064)
    label = [2.0 <= 0.064 * t + 0.032 < 10.0 for t in range(156)]
    assert cache.of_pair(0)["label"].tolist() == label


# ---------------------------------------------------------------------------- original NPZ files

NPZ_KEYS = ("rms", "D_raw", "D_adj", "prob_95", "T_norm", "binary")


def write_npz(home):
    """The per-pair files of the original program for every pair, random values."""
    rng = np.random.default_rng(0)
    folder, arrays = home / "npz", {}
    folder.mkdir()
    for filename, event_label in PAIRS:
        values = {key: rng.random(50) for key in NPZ_KEYS}
        values["binary"] = (values["prob_95"] > values["T_norm"]).astype(int)
        stem = filename.rpartition(".")[0]
        np.savez(folder / f"{stem}_{event_label}.npz", **values)
        arrays[filename, event_label] = values
    return folder, arrays


def npz_config(home, **changes):
    inputs = {"audio": None, "scores": None, "import_npz": home / "npz", "replace": True}
    return config_of(home, **(inputs | changes))


def test_import_of_original_files(home):
    folder, arrays = write_npz(home)
    assert (folder / "a_Alarm_bell_ringing.npz").exists()
    assert (folder / "Y--x_9.000_19.000_Cat.npz").exists()
    shutil.rmtree(home / "cache")
    preprocess.main(npz_config(home))
    cache = load_cache(home / "cache" / "train")
    assert [(pair.filename, pair.event_label) for pair in cache.pairs] == PAIRS
    assert cache.manifest["signal"] is None and cache.manifest["audio"] is None
    for index, key in enumerate(PAIRS):
        values = cache.of_pair(index)
        for ours, theirs in zip(SIGNALS, NPZ_KEYS, strict=True):
            assert np.array_equal(values[ours], arrays[key][theirs].astype(np.float32)), ours
    assert cache.of_pair(3)["label"].all() and cache.of_pair(0)["label"].sum() == 15


def test_import_takes_the_frame_length_from_the_flag(home):
    write_npz(home)
    preprocess.main(npz_config(home, import_frame_s=0.01))
    cache = load_cache(home / "cache" / "train")
    assert {pair.frame_s for pair in cache.pairs} == {0.01}
    assert cache.of_pair(0)["label"].sum() == 20  # 0.3 .. 0.5 s of the half second that is there


def resave(path, **changes):
    with np.load(path) as arrays:
        values = dict(arrays) | changes
    np.savez(path, **{key: value for key, value in values.items() if value is not None})


BAD_NPZ = {
    "missing": (Path.unlink, "b.wav: no b_Dog.npz in "),
    "cut": (cut, "b.wav: b_Dog.npz: damaged ("),
    "text": (lambda p: p.write_text("hello"), "b.wav: b_Dog.npz: damaged ("),
    "no T_norm": (lambda p: resave(p, T_norm=None), "b.wav: b_Dog.npz: damaged ("),
    "lengths": (lambda p: resave(p, rms=np.zeros(49)), "b.wav: b_Dog.npz: arrays of different"),
    "nan": (
        lambda p: resave(p, rms=np.full(50, np.nan)),
        "b.wav: b_Dog.npz: values of rms are not from 0",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_original_file(home, capsys, damage, message):
    folder, _ = write_npz(home)
    damage(folder / "b_Dog.npz")
    before = content_of(home / "cache" / "train")
    with pytest.raises(InputError) as error:
        preprocess.main(npz_config(home))
    assert "1 of 6 clips" in str(error.value) and message in str(error.value)
    assert content_of(home / "cache" / "train") == before
    preprocess.main(npz_config(home, allow_missing=True))
    assert message in capsys.readouterr().out
    pairs = load_cache(home / "cache" / "train").pairs
    assert [(pair.filename, pair.event_label) for pair in pairs] == PAIRS[2:]


def test_the_built_in_corpus_is_made_where_it_is_missing(home, monkeypatch):
    """Both splits are read from the corpus folder, which the two makers are asked for first."""
    asked = []

    def soundscapes(cfg):
        asked.append(("soundscapes", cfg.out, cfg.seed))
        for split in ("train", "validation"):
            shutil.copytree(home / "corpus", cfg.out / split)
            shutil.move(cfg.out / split / "scores", cfg.out / f"{split}-scores")

    def scorers(cfg):
        asked.append(("scorers", cfg.corpus, cfg.seed))
        for split in ("train", "validation"):
            shutil.move(cfg.corpus / f"{split}-scores", cfg.corpus / split / "scores")

    monkeypatch.setattr(corpora, "make_corpus", soundscapes)
    monkeypatch.setattr(crnn, "make_scores", scorers)
    monkeypatch.chdir(home)
    made = PreprocessConfig().corpus
    cfg = PreprocessConfig(cache=home / "both", workers=1)
    preprocess.main(cfg)
    preprocess.main(replace(cfg, split="validation"))
    assert asked == [("soundscapes", made, 0), ("scorers", made, 0)]
    with pytest.raises(InputError, match=r"no corpus there; make one: python soundscapes\.py"):
        preprocess.main(replace(cfg, corpus=home / "typo", cache=home / "another"))
    caches = [load_cache(home / "both" / split) for split in ("train", "validation")]
    assert [len(cache.pairs) for cache in caches] == [6, 6]
