"""Events in unlabelled recordings: those of evaluate.py, whatever the length; what goes wrong."""

import contextlib
import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

import detect
import evaluate
import preprocess
from comparison.systems import predicted_events
from config import (
    Bandit,
    DetectConfig,
    EvaluateConfig,
    Network,
    PreprocessConfig,
    TrainConfig,
)
from core.errors import InputError
from DQN import Trainer
from policy import gate, runfolder
from policy.apply import decisions, load_policy
from policy.bandit import make_states, resident, to_device
from policy.supervised import SupervisedTrainer
from scores import crnn, score_files
from sed import caches, timeline
from sed.audio import AudioFile
from sed.labels import clip_id, read_labels
from sed.signals import NOTICES, SIGNALS
from sed.timeline import (
    Event,
    frame_edges,
    frames_to_events,
    label_frames,
    tidy_events,
    usual_least,
    write_labels,
)

CPU = torch.device("cpu")
CLASSES = ["Cat", "Dog", "Speech"]
RATE = 8000
TINY = Network(hidden=4, heads=2, gru_layers=1, tcn_layers=2)
READINGS = {
    "independent": Bandit(),
    "sequential": Bandit(reading="sequential", boundary_test="after", channel_order="original"),
}


def make_clip(rng: np.random.Generator, num_frames: int) -> tuple:
    """Samples, scores (K, T) and events of a clip: one or two classes sound, scores are noisy."""
    edges, events = frame_edges(num_frames, 0.02), []
    for name in rng.choice(CLASSES, size=rng.integers(1, 3), replace=False):
        onset = rng.uniform(0, 0.6) * edges[-1]
        events.append(Event(round(onset, 3), round(onset + 0.3 * edges[-1], 3), str(name)))
    wav = 0.01 * rng.standard_normal(round(edges[-1] * RATE))
    time = np.arange(len(wav)) / RATE
    rows = []
    for k, name in enumerate(CLASSES):
        label = label_frames(events, name, edges)
        noise = gaussian_filter1d(rng.normal(0, 1, num_frames), 3) * 3
        rows.append(1 / (1 + np.exp(-(4.0 * label - 3.0 + noise))))
        for event in events:
            if event.event_label == name:
                on = (time >= event.onset) & (time < event.offset)
                wav += 0.3 * on * np.sin(2 * np.pi * (300 + 200 * k) * time)
    return wav.astype(np.float32), np.array(rows, np.float32), sorted(events)


def write_split(folder: Path, seed: int, lengths: list[int]) -> None:
    """Audio, scores and labels of some clips; the first one lies in a folder of its own."""
    rng = np.random.default_rng(seed)
    labels = {}
    for i, num_frames in enumerate(lengths):
        name = f"deep/{i}.flac" if i == 0 else f"{i}.wav"
        wav, values, labels[name] = make_clip(rng, num_frames)
        for kind in ("audio", "scores"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "audio" / name, wav, RATE)
        path = folder / "scores" / f"{clip_id(name)}.tsv"
        score_files.write_scores(path, frame_edges(num_frames, 0.02), CLASSES, values)
    write_labels(folder / "labels.tsv", labels)


def preprocess_split(home: Path, split: str, cache: str, audio: bool = True) -> None:
    preprocess.main(
        PreprocessConfig(
            cache=home / cache,
            split=split,
            labels=home / split / "labels.tsv",
            audio=home / split / "audio" if audio else None,
            scores=home / split / "scores",
            pairs="all",
            workers=1,
        )
    )


def write_policy(run: Path, cache: Path, bandit: Bandit) -> None:
    """A checkpoint with random weights."""
    cfg = TrainConfig(cache=cache, run=run, bandit=bandit, network=TINY, seed=3)
    trainer = Trainer(cfg, caches.load_cache(cache / "train"), CPU)
    with torch.no_grad():
        trainer.network.head[2].weight *= 30  # so that actions differ between frames
    run.mkdir(parents=True, exist_ok=True)
    runfolder.write_checkpoint(run / "best.pt", trainer.policy())


def write_classifier(run: Path, cache: Path) -> None:
    """A checkpoint of a classifier with random weights, whose decisions differ between frames."""
    cfg = TrainConfig(method="classifier", cache=cache, run=run, network=TINY, seed=4)
    trainer = SupervisedTrainer(cfg, caches.load_cache(cache / "train"), CPU)
    frame = torch.arange(len(trainer.owner))
    states = make_states(trainer.signals, trainer.owner, frame, cfg.bandit)
    with torch.no_grad():
        trainer.network.head[2].weight *= 20
        trainer.network.head[2].bias -= trainer.network.eval()(states).median(0).values
    run.mkdir(parents=True, exist_ok=True)
    runfolder.write_checkpoint(run / "best.pt", trainer.policy())


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two splits of mixed lengths, caches with and without audio, a policy for each reading."""
    folder = tmp_path_factory.mktemp("detect")
    with contextlib.redirect_stdout(io.StringIO()):
        write_split(folder / "train", 0, [70, 100, 100, 110, 100, 100])
        write_split(folder / "validation", 1, [100, 25, 61, 100, 148, 110])
        for split in ("train", "validation"):
            preprocess_split(folder, split, "cache")
            preprocess_split(folder, split, "silent", audio=False)
        for name, bandit in READINGS.items():
            write_policy(folder / name, folder / "cache", bandit)
        write_classifier(folder / "classifier", folder / "cache")
        write_policy(folder / "scores-only", folder / "silent", Bandit())
    return folder


def run(home: Path, folder: Path, reading: str = "independent", **changes) -> tuple[int, dict]:
    """Exit code and events of detect.py on the validation split; `folder` is to write to."""
    given = {
        "policy": home / reading / "best.pt",
        "audio": home / "validation" / "audio",
        "scores": home / "validation" / "scores",
        "out": folder / "events.tsv",
        "overwrite": True,
        "device": "cpu",
    } | changes
    code = detect.main(DetectConfig(**given))
    return code, read_labels(given["out"])


def evaluated_events(policy: Path, cache: Path, out: Path) -> dict:
    """What evaluate.py writes for a policy on a cache of all pairs."""
    with contextlib.redirect_stdout(io.StringIO()):
        folder = {"run": policy, "cache": cache.parent, "out": out / "evaluated"}
        evaluate.main(EvaluateConfig(split=cache.name, device="cpu", **folder))
    return read_labels(out / "evaluated" / "events.tsv")


def policy_events(policy: Path, cache: Path, out: Path, gated: bool = True) -> dict:
    """The same from the parts of it, in milliseconds; with or without the gate."""
    loaded, data = load_policy(policy / "best.pt", CPU), caches.load_cache(cache)
    signals = to_device(data, loaded.bandit, CPU)
    pred = decisions(loaded.network, signals, loaded.bandit, 256)[0].numpy()
    assert 0 < (pred != (data.signals["binary"] > 0.5)).mean() < 1
    if gated:
        opened = gate.open_pairs(loaded.gate, data)
        assert 0 < opened.sum() < len(opened)
        pred = gate.behind(loaded.gate, data, pred)
    write_labels(out / "expected.tsv", predicted_events(data, pred))
    return read_labels(out / "expected.tsv")


# ---------------------------------------------------------------------------- as evaluate.py


@pytest.mark.parametrize("reading", [*READINGS, "classifier"])
@pytest.mark.parametrize("gated", [True, False])
def test_events_are_those_of_evaluate(home, tmp_path, capsys, reading, gated):
    code, events = run(home, tmp_path, reading, gate=gated)
    expected = policy_events(home / reading, home / "cache" / "validation", tmp_path, gated)
    assert code == 0 and events == expected and sum(map(len, events.values())) > 10
    if gated:
        ours = evaluated_events(home / reading, home / "cache" / "validation", tmp_path)
        assert events == ours
    text = capsys.readouterr().out
    assert "recordings: 6 of 6" in text and "blocks: 6\n" in text
    opened = gate.open_pairs(
        load_policy(home / reading / "best.pt", CPU).gate,
        caches.load_cache(home / "cache" / "validation"),
    )
    line = f"closed_by_gate: {(~opened).sum()} of 18 (recording, class) pairs"
    assert (line in text) == gated and ("--no-gate" in text) != gated


@pytest.mark.parametrize("reading", [*READINGS, "classifier"])
def test_how_rows_are_gathered_changes_nothing(home, tmp_path, monkeypatch, reading):
    usual = run(home, tmp_path, reading)
    monkeypatch.setattr(detect, "FRAMES_AT_ONCE", 150)
    assert run(home, tmp_path, reading, batch=7) == usual
    if reading == "independent":
        monkeypatch.setattr(detect, "SHEETS_AT_ONCE", 1)
        assert run(home, tmp_path, reading) == usual


def test_scores_alone(home, tmp_path, capsys):
    """Names are those of the labels where these say .wav, as here all but one do."""
    code, events = run(home, tmp_path, "scores-only", audio=None)
    expected = evaluated_events(home / "scores-only", home / "silent" / "validation", tmp_path)
    expected["deep/0.wav"] = expected.pop("deep/0.flac")
    assert code == 0 and events == expected
    text = capsys.readouterr().out
    assert "loudness is 1 everywhere\n" in text
    run(home, tmp_path, audio=None)
    assert "is 1 everywhere, but the policy was trained with audio" in capsys.readouterr().out
    _, listened = run(home, tmp_path, "scores-only")
    listened["deep/0.wav"] = listened.pop("deep/0.flac")
    assert listened == expected
    assert "trained without audio: the loudness is 1" in capsys.readouterr().out


def of_class(clips: dict, name: str) -> dict:
    """The events of one class."""
    return {clip: [e for e in events if e.event_label == name] for clip, events in clips.items()}


def test_scores_of_another_form_under_other_names(home, tmp_path):
    _, events = run(home, tmp_path)
    tsv = score_files.open_scores(home / "validation" / "scores")
    clips = [(clip, tsv.read(clip)) for clip in tsv.clips()]
    score_files.write_archive(tmp_path / "a.npz", ["Cat", "dog", "talk"], clips)
    names = ("dog=Dog", "talk=Speech")
    assert run(home, tmp_path, scores=tmp_path / "a.npz", map=names) == (0, events)


def test_one_file_and_some_classes(home, tmp_path):
    _, events = run(home, tmp_path)
    audio = home / "validation" / "audio" / "3.wav"
    assert run(home, tmp_path, audio=audio) == (0, {"3.wav": events["3.wav"]})
    _, cats = run(home, tmp_path, classes=("Cat",))
    assert cats == of_class(events, "Cat")


# ---------------------------------------------------------------------------- blocks


@given(st.integers(1, 400), st.integers(2, 90), st.integers(0, 150))
def test_every_frame_counts_once_in_the_block_with_the_nearest_centre(num_frames, size, single):
    parts = detect.blocks(num_frames, size, single)
    owner = np.full(num_frames, -1)
    for i, part in enumerate(parts):
        assert part.start <= part.first < part.last <= part.stop
        assert (owner[part.first : part.last] == -1).all()
        owner[part.first : part.last] = i
    if num_frames <= max(size, single):
        assert parts == [(0, num_frames, 0, num_frames)]
    else:
        assert all(part.stop - part.start == size for part in parts)
        assert (parts[0].start, parts[-1].stop) == (0, num_frames)
        for before, after in itertools.pairwise(parts):
            assert 0 < after.start - before.start <= max(1, size // 2)
    for frame in range(num_frames):  # of equally near ones the later
        far = [abs(part.start + part.stop - 2 * frame - 1) for part in parts]
        assert owner[frame] == len(far) - 1 - int(np.argmin(far[::-1]))


class Fixed:
    """Scores from memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.classes, self.values = CLASSES, values

    def scores(self, filename: str) -> timeline.ClipScores:
        return timeline.ClipScores(self.values, frame_edges(self.values.shape[1], 0.02))


def slow_long(policy: Path, wav: np.ndarray, values: np.ndarray, size: int, folder: Path) -> list:
    """Every block as a clip of its own through preprocess.py, decided alone; then joined."""
    loaded = load_policy(policy / "best.pt", CPU)
    total = values.shape[1]
    starts = [*range(0, total - size, size // 2), total - size]
    found, opened = [], []
    for start in starts:
        first, last = (round(frame * 0.02 * RATE) for frame in (start, start + size))
        soundfile.write(folder / "b.wav", wav[first:last], RATE, subtype="FLOAT")
        clip = preprocess.ClipInput("b.wav", [], folder / "b.wav")
        notices = {name: [] for name in NOTICES}
        source = Fixed(values[:, start : start + size])
        job = preprocess.Job(Path(), [clip], source, PreprocessConfig(pairs="all"))
        rows, record, _ = preprocess.clip_signals(clip, job, notices)
        found += [signals for _, signals, _ in rows]
        opened += [gate.opens(loaded.gate, *cell) for cell in zip(CLASSES, record.tag, strict=True)]
    assert 0 < sum(opened) < len(opened)
    signals = {name: np.concatenate([row[name] for row in found]) for name in SIGNALS}
    offsets = np.arange(len(found) + 1) * size
    nobody_knows = np.zeros(offsets[-1], bool)
    there = resident(signals, nobody_knows, offsets, loaded.bandit, CPU)
    pred = decisions(loaded.network, there, loaded.bandit, 64)[0].numpy()
    pieces = pred.reshape(len(starts), len(CLASSES), size)
    pieces = pieces & np.array(opened).reshape(len(starts), len(CLASSES), 1)
    on = np.zeros(values.shape, bool)
    for frame in range(total):
        far = [abs(2 * start + size - 2 * frame - 1) for start in starts]
        i = len(far) - 1 - int(np.argmin(far[::-1]))
        on[:, frame] = pieces[i][:, frame - starts[i]]
    edges = frame_edges(total, 0.02)
    rows = zip(on, CLASSES, strict=True)
    return sorted(event for row, name in rows for event in frames_to_events(row, name, edges))


@pytest.mark.parametrize("reading", [*READINGS, "classifier"])
def test_a_long_recording_is_decided_in_blocks(home, tmp_path, capsys, reading):
    rng = np.random.default_rng(5)
    clips = [make_clip(rng, 100) for _ in range(5)]
    wav = np.concatenate([clip[0] for clip in clips])[: -7 * 160]
    values = np.concatenate([clip[1] for clip in clips], axis=1)[:, :-7]
    for name in ("audio", "scores"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "audio" / "long.wav", wav, RATE, subtype="FLOAT")
    path = tmp_path / "scores" / "long.tsv"
    score_files.write_scores(path, frame_edges(493, 0.02), CLASSES, values)
    values = score_files.ScoreFiles(path.parent, CLASSES).scores("long.wav").values
    here = {"audio": tmp_path / "audio", "scores": tmp_path / "scores"}
    cases = ((100, None, 9), (50, 1.0, 19)) if reading == "independent" else ((50, 1.0, 19),)
    for size, block_s, num_blocks in cases:
        _, events = run(home, tmp_path, reading, block_s=block_s, **here)
        assert f"blocks: {num_blocks}\n" in capsys.readouterr().out
        slow = slow_long(home / reading, wav, values, size, tmp_path)
        write_labels(tmp_path / "slow.tsv", {"long.wav": slow})
        assert events == read_labels(tmp_path / "slow.tsv")
    if reading == "independent":
        _, whole = run(home, tmp_path, reading, block_s=10.0, **here)
        assert "blocks: 1\n" in capsys.readouterr().out and whole != events


# ---------------------------------------------------------------------------- the built-in scorer


@pytest.fixture(scope="module")
def scorer(home) -> crnn.Scorer:
    """A network with random weights, as scorers.py keeps it."""
    torch.manual_seed(0)
    mean, std = np.zeros(64, np.float32), np.ones(64, np.float32)
    net = crnn.CRNN(4, mean - 5, 3 * std, np.full(3, 0.3, np.float32)).eval()
    with torch.no_grad():
        net.head.weight *= 8
    scorer = crnn.Scorer(net, CLASSES)
    (home / "corpus").mkdir()
    crnn.write_scorer(home / "corpus" / "scorer.pt", scorer, 4)
    return scorer


def test_the_built_in_scorer_scores_recordings(home, scorer, tmp_path, capsys):
    """As if its score files had been written: these are rounded to six digits."""
    audio = home / "validation" / "audio"
    for path in audio.rglob("*.*"):
        wav, rate = soundfile.read(path, dtype="float32")
        values = scorer.score_recording(wav, rate)
        target = tmp_path / "scores" / path.relative_to(audio).with_suffix(".tsv")
        target.parent.mkdir(parents=True, exist_ok=True)
        edges = frame_edges(values.shape[1], 0.02)
        score_files.write_scores(target, edges, CLASSES, values)
    given = {"scores": None, "scorer": home / "corpus" / "scorer.pt", "gate": False}
    _, events = run(home, tmp_path, **given)
    assert "built-in scorer" in capsys.readouterr().out
    assert events == run(home, tmp_path, scores=tmp_path / "scores", gate=False)[1]
    _, one = run(home, tmp_path, **given, classes=("Dog",))
    assert one == of_class(events, "Dog")
    with pytest.raises(InputError, match=r"--classes Bird: .*scorer\.pt knows Cat, Dog, Speech"):
        run(home, tmp_path, **given, classes=("Bird",))


def test_a_recording_of_one_block_is_opened_once(home, scorer, tmp_path, monkeypatch):
    opened, sound_file = [], soundfile.SoundFile
    monkeypatch.setattr(soundfile, "SoundFile", lambda f: (opened.append(f), sound_file(f))[1])
    run(home, tmp_path, scores=None, scorer=home / "corpus" / "scorer.pt", gate=False)
    assert len(opened) == len(set(opened)) > 1


def test_recordings_of_one_length_are_scored_together(home, scorer, tmp_path, monkeypatch):
    """To float rounding the scores of each alone, and the same whatever lies beside it."""
    (tmp_path / "alike").mkdir()
    for i in range(5):
        wav = make_clip(np.random.default_rng(i), 100)[0]
        soundfile.write(tmp_path / "alike" / f"{i}.wav", wav, RATE)
    built_in = {"scores": None, "scorer": home / "corpus" / "scorer.pt", "gate": False}
    built_in["audio"] = tmp_path / "alike"
    sizes, forward = [], crnn.CRNN.forward
    record = lambda self, mel, real: (sizes.append(len(mel)), forward(self, mel, real))[1]  # noqa: E731
    monkeypatch.setattr(crnn.CRNN, "forward", record)
    _, together = run(home, tmp_path, **built_in)
    assert max(sizes) >= crnn.TOGETHER
    monkeypatch.setattr(detect, "FILES_AT_ONCE", 1)
    _, alone = run(home, tmp_path, **built_in)
    assert together == alone and sum(map(len, alone.values())) > 0
    rng = np.random.default_rng(0)
    clips = [rng.normal(-5, 3, (80, crnn.N_MELS)).astype(np.float16) for _ in range(7)]
    clips.insert(2, clips[0][:33])
    found, few = scorer.scores_of_many(clips), scorer.scores_of_many(clips[3:7])
    for clip, scores in zip(clips, found, strict=True):
        np.testing.assert_allclose(scores, scorer.scores_of(clip).numpy().T, atol=1e-5)
    assert all(map(np.array_equal, few, found[3:7]))


def test_long_recordings_are_scored_in_blocks(home, scorer, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_clip(np.random.default_rng(1), 400)[0], RATE)
    wav, _ = soundfile.read(path, dtype="float32")
    cfg = DetectConfig(policy=home / "independent" / "best.pt", audio=path, block_s=2.0)
    plan = detect.make_plan(cfg, CPU)
    with AudioFile(path) as audio:
        scores = detect.scored_in_blocks(scorer, audio, plan)
    assert scores.shape == (3, 400)
    for start, first, last in ((0, 0, 75), (50, 75, 125), (300, 325, 400)):
        found = scorer.score_recording(wav[start * 160 : (start + 100) * 160], RATE)
        expected = found[:, first - start : last - start]
        assert np.array_equal(scores[:, first:last], expected)


def test_low_rates_are_said_and_all_channels_heard(home, scorer, tmp_path, capsys):
    """The scorer knows sounds up to 8 kHz; channels in antiphase are no silence to it."""
    wav = np.random.default_rng(0).normal(0, 0.1, 32_000) * (np.arange(32_000) % 8000 < 4000)
    (tmp_path / "audio").mkdir()
    found = {}
    for name, channels, rate in (("mono", [wav], 16_000), ("anti", [wav, -wav], 16_000)):
        path = tmp_path / "audio" / f"{name}.wav"
        soundfile.write(path, np.column_stack(channels), rate, subtype="FLOAT")
    cfg = {"scores": None, "scorer": home / "corpus" / "scorer.pt", "gate": False}
    _, found = run(home, tmp_path, audio=tmp_path / "audio", **cfg)
    text = capsys.readouterr().out
    assert found["anti.wav"] == found["mono.wav"] != []
    assert "all zero" not in text and detect.LOW_RATE not in text
    soundfile.write(tmp_path / "audio" / "anti.wav", wav[::2], 8_000)
    run(home, tmp_path, audio=tmp_path / "audio", **cfg)
    assert f"1 x {detect.LOW_RATE}: anti.wav" in capsys.readouterr().out


def test_a_truncated_recording_is_named(home, scorer, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_clip(np.random.default_rng(1), 100)[0], RATE)
    path.write_bytes(path.read_bytes()[:-1200])
    run(home, tmp_path, audio=path, scores=None, scorer=home / "corpus" / "scorer.pt")
    assert "1 x audio ends before its header says: a.wav" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(InputError, match="truncated"):
        run(home, tmp_path, audio=path, scores=None, scorer=home / "corpus" / "scorer.pt")


def test_the_scorer_of_the_policys_corpus_is_found(home, scorer, tmp_path):
    shutil.copytree(home / "independent", tmp_path / "run")
    run_config = {"cache": str(tmp_path / "cache"), "split": "train"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(run_config))
    (tmp_path / "cache" / "train").mkdir(parents=True)
    scores = {"scores": {"folder": str(home / "corpus" / "train" / "scores")}}
    (tmp_path / "cache" / "train" / "manifest.json").write_text(json.dumps(scores))
    given = {"scores": None, "policy": tmp_path / "run" / "best.pt"}
    _, events = run(home, tmp_path, **given)
    assert events == run(home, tmp_path, scores=None, scorer=home / "corpus" / "scorer.pt")[1]
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"no scores: give --scores .* or --scorer"):
        run(home, tmp_path, **given)


# ---------------------------------------------------------------------------- tidy events


def runs(on: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) of every run of true cells."""
    found, start = [], None
    for i, value in enumerate([*on, False]):
        if value and start is None:
            start = i
        if not value and start is not None:
            found.append((start, i))
            start = None
    return found


@given(
    st.lists(st.lists(st.booleans(), min_size=30, max_size=30), min_size=1, max_size=3),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_gaps_are_closed_before_short_events_go(rows, shortest, gap):
    """On a raster of 0.02 s; limits that a cell's rounding must not cross."""
    events, expected = [], []
    for k, row in enumerate(rows):
        events += [Event(a * 0.02, b * 0.02, f"{k}") for a, b in runs(row)]
        filled = list(row)
        for a, b in runs(~np.array(row)):
            if a > 0 and b < len(row) and b - a < gap:
                filled[a:b] = [True] * (b - a)
        long = [(a, b) for a, b in runs(filled) if b - a >= shortest]
        expected += [Event(a * 0.02, b * 0.02, f"{k}") for a, b in long]
    assert tidy_events(events, shortest * 0.02, gap * 0.02) == sorted(expected)


def test_tidy_flags_and_audacity_files(home, tmp_path):
    _, events = run(home, tmp_path)
    wanted = {name: tidy_events(found, 0.1, 0.06) for name, found in events.items()}
    _, found = run(
        home, tmp_path, min_duration=0.1, merge_gap=0.06, audacity=tmp_path / "new" / "labels"
    )
    assert found == wanted != events
    labels = tmp_path / "new" / "labels"
    assert len(list(labels.rglob("*.txt"))) == 6 and (labels / "deep" / "0.txt").is_file()
    for name, ours in found.items():
        text = (labels / name).with_suffix(".txt").read_text()
        rows = [line.split("\t") for line in text.splitlines()]
        assert [(f"{float(a):.3f}", f"{float(b):.3f}", c) for a, b, c in rows] == [
            (f"{e.onset:.3f}", f"{e.offset:.3f}", e.event_label) for e in ours
        ]
    assert found["1.wav"] == [] or min(e.offset - e.onset for e in found["1.wav"]) > 0.09


# ---------------------------------------------------------------------------- what goes wrong


@pytest.fixture()
def split(home, tmp_path) -> dict[str, Path]:
    """A copy of the validation split, to be damaged."""
    for name in ("audio", "scores"):
        shutil.copytree(home / "validation" / name, tmp_path / name)
    return {"audio": tmp_path / "audio", "scores": tmp_path / "scores"}


def test_bad_files_are_named_and_the_others_done(home, split, tmp_path, capsys):
    _, events = run(home, tmp_path)
    content = (split["audio"] / "deep" / "0.flac").read_bytes()
    (split["audio"] / "deep" / "0.flac").write_bytes(content[: len(content) // 2])
    (split["audio"] / "1.wav").write_bytes(b"no audio")
    (split["scores"] / "2.tsv").unlink()
    (split["scores"] / "3.tsv").write_text("onset\toffset\tCat\tDog\tSpeech\n0\t1\t0\tx\t0\n")
    wav, _ = soundfile.read(split["audio"] / "4.wav")
    soundfile.write(split["audio"] / "4.wav", wav[:8000], RATE)
    capsys.readouterr()
    code, found = run(home, tmp_path, **split)
    assert code == 1 and found == {"5.wav": events["5.wav"]}
    text = capsys.readouterr().out
    assert "recordings: 1 of 6" in text and text.count("failed: ") == 5
    for line in (
        "failed: deep/0.flac: cannot be read",
        "failed: 1.wav: cannot be read",
        "scores/2.tsv: no such score file",
        "scores/3.tsv line 2, column Dog: 'x' is not a number",
        "failed: 4.wav: audio lasts 1.00 s, its scores 2.96 s",
    ):
        assert line in text
    (split["audio"] / "5.wav").write_bytes(b"")
    (tmp_path / "events.tsv").unlink()
    with pytest.raises(InputError, match=r"none of 6 recordings could be done: 1\.wav: cannot be"):
        run(home, tmp_path, **split)
    assert not (tmp_path / "events.tsv").exists()


def test_nothing_half_written(home, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    old = "filename\tonset\toffset\tevent_label\n"
    (out / "events.tsv").write_text(old)

    def fail(*_):
        raise InputError("weights are damaged")

    monkeypatch.setattr(detect, "decide_rows", fail)
    with pytest.raises(InputError, match="weights are damaged"):
        run(home, out, audacity=out / "labels")
    assert [path.name for path in out.iterdir()] == ["events.tsv"]
    assert (out / "events.tsv").read_text() == old


def test_mistakes(home, split, tmp_path):
    def fails(message: str, **changes) -> None:
        with pytest.raises(InputError, match=message):
            run(home, tmp_path, **(split | changes))
        assert not (tmp_path / "events.tsv").exists()

    fails("give --audio, --scores, or both", audio=None, scores=None)
    fails(r"none: no such file or folder", audio=tmp_path / "none")
    fails(r"no recordings in it or below \(\.wav, \.flac", audio=tmp_path / "scores")
    fails(r"not a folder of \.tsv files, nor an \.npz file", scores=tmp_path / "none")
    fails("is a folder; give the name of a file", out=tmp_path)
    fails("is a file, not a folder", audacity=tmp_path / "audio" / "1.wav")
    fails(r"best\.pt: not found; train first", policy=tmp_path / "best.pt")
    fails(r"no such scorer; python scorers\.py", scores=None, scorer=tmp_path / "scorer.pt")
    fails(r"none of 6 .*: no column for class 'Bird'", classes=("Bird", "Dog"))
    fails("none of these but Bird; other scores", classes=("Bird",))
    fails("--map: no column 'cat'", map=("cat=Cat",))
    for path in (tmp_path / "scores").rglob("*.tsv"):
        path.write_text("time,Cat\n")
    fails(r"no columns onset and offset")
    shutil.copy(tmp_path / "audio" / "3.wav", tmp_path / "audio" / "3.ogg")
    scores = home / "validation" / "scores"
    fails(r"3\.ogg and 3\.wav differ in their extension only", scores=scores)
    (tmp_path / "audio" / "3.ogg").rename(tmp_path / "audio" / "a\tb.ogg")
    fails(r"'a\\tb\.ogg' .* no table can hold", scores=scores)


def test_labels_made_by_hand_are_not_replaced(home, tmp_path):
    """They have the columns of a result: only --overwrite tells that they may go."""
    mine = "filename\tonset\toffset\tevent_label\nmy.wav\t0.1\t0.5\tDog\n"
    out = tmp_path / "mine.tsv"
    out.write_text(mine)
    said = r"--out .*mine\.tsv: is there already; give --overwrite or another --out$"
    with pytest.raises(InputError, match=said):  # before anything is read
        run(home, tmp_path, out=out, overwrite=False, scores=tmp_path / "none")
    assert out.read_text() == mine
    code, events = run(home, tmp_path, out=out)
    assert code == 0 and "my.wav" not in events
    out.write_text("a table of something else\n")
    with pytest.raises(InputError, match="is there and not of this suite; move it away"):
        run(home, tmp_path, out=out)


def test_clips_of_one_name_are_refused_without_audio(tmp_path):
    """Both would be events of a.wav."""
    (tmp_path / "scores").mkdir()
    for name in ("a.tsv", "a.wav.tsv"):
        values = np.full((1, 9), 0.5)
        score_files.write_scores(tmp_path / "scores" / name, frame_edges(9, 0.1), ["Owl"], values)
    cfg = DetectConfig(scores=tmp_path / "scores", out=tmp_path / "events.tsv", device="cpu")
    with pytest.raises(InputError, match=r"scores: a and a\.wav differ in their extension only"):
        detect.main(cfg)
    assert not cfg.out.exists()


def test_the_policy_for_any_scores_has_no_corpus_of_a_scorer(home):
    with pytest.raises(InputError, match=r"or --scorer \(a scorer\.pt of scorers\.py\)$"):
        detect.main(DetectConfig(audio=home / "validation" / "audio", device="cpu"))


def test_a_policy_that_knows_little(home, tmp_path, capsys):
    """Imported, or of an older version: no gate, no formulas, no word on its data."""
    path = tmp_path / "old.pt"
    content = runfolder.read_checkpoint(home / "independent" / "best.pt")
    content |= {"gate": "null", "signal": "null", "info": {"finished": 1}}
    runfolder.write_checkpoint(path, content)
    _, events = run(home, tmp_path, policy=path)
    text = capsys.readouterr().out
    assert "old.pt does not know its formulas: those of preset slides" in text
    assert "this policy has no tag gate" in text and "blocks of 10 s" in text
    assert events == run(home, tmp_path, gate=False)[1]


def test_unusual_classes_frames_and_sound_are_said(home, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    (tmp_path / "scores").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.zeros(16_000), RATE)
    values = np.random.default_rng(0).uniform(0, 1, (2, 32))
    path = tmp_path / "scores" / "a.tsv"
    score_files.write_scores(path, frame_edges(32, 0.064), ["Bird", "Dog"], values)
    run(home, tmp_path, audio=tmp_path / "audio", scores=tmp_path / "scores")
    text = capsys.readouterr().out
    assert "the gate has no threshold for Bird" in text
    assert "the policy was not trained on Bird" in text
    assert "frames of 64 ms, the policy was trained on 20 ms: its 21 frames are 1.34 s" in text
    assert "1 x audio is all zero: a.wav" in text


def test_scores_of_entirely_other_classes(home, tmp_path, capsys):
    scores = score_files.open_scores(home / "validation" / "scores")
    clips = [(clip, scores.read(clip)) for clip in scores.clips()]
    score_files.write_archive(tmp_path / "a.npz", ["Owl", "Wren", "Lark"], clips)
    with pytest.raises(InputError, match=r"none of these but Lark, Owl, Wren.*--other-classes"):
        run(home, tmp_path, scores=tmp_path / "a.npz")
    assert not (tmp_path / "events.tsv").exists()
    run(home, tmp_path, scores=tmp_path / "a.npz", other_classes=True)
    assert "the policy was not trained on Lark, Owl, Wren" in capsys.readouterr().out


def test_a_policy_of_older_formulas(home, tmp_path, capsys):
    path = tmp_path / "old.pt"
    content = runfolder.read_checkpoint(home / "independent" / "best.pt")
    signal = json.loads(content["signal"])
    signal = {k: v for k, v in signal.items() if k != "loudness"}
    facts = {k: v for k, v in content["info"]["trained_on"].items() if k != "formulas"}
    content |= {"signal": json.dumps(signal), "info": {"trained_on": facts}}
    runfolder.write_checkpoint(path, content)
    assert run(home, tmp_path, policy=path)[1] == run(home, tmp_path)[1]
    assert "version 1 of the formulas" in capsys.readouterr().out


def test_mixed_lengths_are_known_to_the_policy(home):
    policy = load_policy(home / "independent" / "best.pt", CPU)
    known = policy.info["trained_on"]
    assert (known.pop("classes"), known.pop("formulas")) == (CLASSES, preprocess.FORMULAS)
    assert known.pop("never_absent") == []
    truth = caches.load_cache(home / "cache" / "train").truth
    assert (known.pop("short_s"), known.pop("gap_s")) == usual_least(list(truth.values()))
    assert known == pytest.approx({"clip_s": 2.0, "longest_s": 2.2, "frame_s": 0.02, "audio": True})
    plan = detect.make_plan(DetectConfig(policy=home / "independent" / "best.pt"), CPU)
    assert len(plan.cut(150, 0.02)) == 1 and len(plan.cut(152, 0.02)) == 3
    far = replace(plan, longest_s=4.0)
    assert len(far.cut(201, 0.02)) == 1 and len(far.cut(202, 0.02)) > 1


def test_what_would_join_fragments_is_said(home, tmp_path, capsys):
    """The advice, followed, makes as many events as it says; then there is none."""
    _, events = run(home, tmp_path, "independent", gate=False)
    total = sum(map(len, events.values()))
    (said,) = [row for row in capsys.readouterr().out.splitlines() if "are fragments" in row]
    left, of = map(int, re.findall(r"leave (\d+) of these (\d+)", said)[0])
    assert of == total and left < 0.8 * total
    known = load_policy(home / "independent" / "best.pt", CPU).info["trained_on"]
    assert known["gap_s"] is None  # no class has two events in a clip: the usual gap is advised
    flags = {"merge_gap": 0.2, "min_duration": known["short_s"]}
    assert f"--merge-gap 0.2 --min-duration {known['short_s']:g} would" in said
    _, events = run(home, tmp_path, "independent", gate=False, **flags)
    assert sum(map(len, events.values())) == left
    assert "are fragments" not in capsys.readouterr().out
