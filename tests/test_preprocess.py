"""The six signals against slow versions written from the specification; the cache end to end.

Next:   test_metrics.py
"""

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
from hypothesis import given
from hypothesis import strategies as st

import preprocess
import scorers
from config import InputError, PreprocessConfig, Signal, to_dict
from preprocess import SIGNALS, compute_signals, load_cache, loudness
from scorers import write_scores
from timeline import Event, frame_edges, write_labels

# ---------------------------------------------------------------------------- slow versions


def mm(x, eps=1e-8):
    low, high = min(x), max(x)
    return [(v - low) / (high - low + eps) for v in x]


def clip95(x):
    ordered, at = sorted(x), 0.95 * (len(x) - 1)
    low = math.floor(at)
    high = min(low + 1, len(x) - 1)
    top = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return [min(v, top) for v in x]


def mirrored(x, i):
    """scipy's default border: d c b a | a b c d | d c b a."""
    i %= 2 * len(x)
    return x[i] if i < len(x) else x[2 * len(x) - 1 - i]


def median(x, size):
    """scipy's windows of even size reach one frame further to the left; of the two middle values
    the upper one counts."""
    first = -(size // 2)
    return [
        sorted(mirrored(x, i + k) for k in range(first, first + size))[size // 2]
        for i in range(len(x))
    ]


def gauss(x, sigma):
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-reach, reach + 1)]
    return [
        sum(w * mirrored(x, i + k - reach) for k, w in enumerate(weights)) / sum(weights)
        for i in range(len(x))
    ]


def slow_signals(rms, score, fusion="product", flat=0.03, alpha=0.7):
    """Specification, section 2, on frames of 20 ms -> d_adj, prob, t_base."""
    s1 = median(score, 5)
    s_med, s_pow = median(s1, 8), [v**2.2 for v in s1]
    mix = [0.7 * a + 0.3 * b for a, b in zip(mm(s_med), mm(s_pow), strict=True)]
    d_adj = mm(clip95(mix))
    if max(score) - min(score) < flat:
        ordered, at = sorted(rms), 0.1 * (len(rms) - 1)
        low = math.floor(at)
        p10 = ordered[low] + (at - low) * (ordered[min(low + 1, len(rms) - 1)] - ordered[low])
        mean = sum(rms) / len(rms)
        std = math.sqrt(sum((v - mean) ** 2 for v in rms) / len(rms))
        return d_adj, list(rms), [min(max(min(p10, mean - std), 0), 1)] * len(rms)
    fused = []
    for r, d in zip(rms, d_adj, strict=True):
        harmonic = 2 / (1 / r + 1 / d) if r > 0 and d > 0 else 0
        fused.append(r * d if fusion == "product" else harmonic)
    prob = gauss(mm(clip95(fused)), 2)
    background = gauss(median(rms, 200), 3)
    away = gauss([(1 - d) ** 1.2 for d in d_adj], 3)
    return d_adj, prob, mm([alpha * b * w for b, w in zip(background, away, strict=True)])


def slow_loudness(wav, window, hop):
    """Centred windows, zeros outside: mm(clip95(log(1 + RMS)))."""
    levels = []
    for centre in range(0, len(wav) + 1, hop):
        inside = wav[max(0, centre - window // 2) : centre + window // 2]
        levels.append(math.log1p(math.sqrt(sum(float(v) ** 2 for v in inside) / window)))
    return mm(clip95(levels))


def random_pair(seed, num_frames=230):
    """Loudness (0..1) and score (0.05..0.9) of T frames, with bursts and plateaus."""
    rng = np.random.default_rng(seed)
    rms = rng.random(num_frames) * np.repeat(rng.random(num_frames // 10 + 1), 10)[:num_frames]
    score = np.repeat(rng.random(num_frames // 15 + 1), 15)[:num_frames] * rng.random(num_frames)
    score[20:40], score[60:80] = 0, 1
    return preprocess.min_max(rms), (0.05 + 0.85 * score).astype(np.float32)


# ---------------------------------------------------------------------------- formulas

VALUES = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=40)


@given(VALUES)
def test_min_max_and_percentile(x):
    assert preprocess.min_max(np.array(x)) == pytest.approx(mm(x))
    assert preprocess.clip_percentile(np.array(x), 95) == pytest.approx(clip95(x))


def test_a_constant_becomes_zero():
    assert preprocess.min_max(np.full(5, 0.7)).tolist() == [0] * 5


@pytest.mark.parametrize("fusion", ["product", "harmonic"])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 60, 230])
def test_signals_against_the_specification(fusion, num_frames):
    rms, score = random_pair(num_frames, num_frames)
    signal = Signal(fusion=fusion)
    values = compute_signals(rms, score, 0.02, signal)
    if num_frames == 1:  # a single frame has no contrast at all
        assert values["prob"] == pytest.approx(rms)
        return
    d_adj, prob, t_base = slow_signals(rms.tolist(), score.tolist(), fusion)
    assert values["rms"] == pytest.approx(rms, abs=1e-6)
    assert np.array_equal(values["d_raw"], score)
    assert values["d_adj"] == pytest.approx(d_adj, abs=1e-5)
    assert values["prob"] == pytest.approx(prob, abs=1e-5)
    assert values["t_base"] == pytest.approx(t_base, abs=1e-5)


@pytest.mark.parametrize("spread", [0.0, 0.029, 0.031])
def test_flat_score_falls_back_on_loudness(spread):
    rms, _ = random_pair(3)
    rms = 0.5 + 0.5 * rms if spread else rms
    score = np.linspace(0.4, 0.4 + spread, len(rms))
    values = compute_signals(rms, score, 0.02, Signal())
    _, prob, t_base = slow_signals(rms.tolist(), score.tolist())
    assert values["prob"] == pytest.approx(prob, abs=1e-5)
    assert values["t_base"] == pytest.approx(t_base, abs=1e-5)
    assert (values["prob"] == values["rms"]).all() == (spread < 0.03)
    off = compute_signals(rms, score, 0.02, Signal(flat_fallback=False))
    _, prob, t_base = slow_signals(rms.tolist(), score.tolist(), flat=-1)
    assert off["prob"] == pytest.approx(prob, abs=1e-5)
    assert off["t_base"] == pytest.approx(t_base, abs=1e-5)


def test_alpha_cancels():
    rms, score = (x.tolist() for x in random_pair(1))
    with_alpha = slow_signals(rms, score, alpha=0.7)[2]
    assert with_alpha == pytest.approx(slow_signals(rms, score, alpha=1.0)[2], abs=1e-6)


def test_constants_on_frames_of_20_ms(monkeypatch):
    seen = {"median_filter": [], "gaussian_filter1d": []}
    for name in seen:
        real = getattr(preprocess, name)

        def spy(x, size, name=name, real=real):
            seen[name].append(size)
            return real(x, size)

        monkeypatch.setattr(preprocess, name, spy)
    rms, score = random_pair(0)
    compute_signals(rms, score, 0.02, Signal())
    assert sorted(seen["median_filter"]) == [5, 8, 200]
    assert sorted(seen["gaussian_filter1d"]) == pytest.approx([2, 3, 3], abs=1e-12)
    for sizes in seen.values():
        sizes.clear()
    compute_signals(rms, score, 0.064, Signal())
    for frames, seconds in zip(sorted(seen["median_filter"]), (0.1, 0.16, 4.0), strict=True):
        assert isinstance(frames, int) and abs(frames * 0.064 - seconds) <= 0.032 + 1e-9
    assert sorted(seen["gaussian_filter1d"]) == pytest.approx([0.625, 0.9375, 0.9375])
    compute_signals(rms, score, 10.0, Signal())  # no window is shorter than a frame
    assert min(seen["median_filter"]) == 1


@given(VALUES, VALUES, st.sampled_from(["product", "harmonic"]), st.booleans())
def test_signals_are_float32_within_0_and_1_and_decided_strictly(rms, score, fusion, fallback):
    size = min(len(rms), len(score))
    signal = Signal(fusion=fusion, flat_fallback=fallback)
    values = compute_signals(np.array(rms[:size]), np.array(score[:size]), 0.02, signal)
    assert set(values) == set(SIGNALS)
    for name, array in values.items():
        assert array.dtype == np.float32 and array.shape == (size,), name
        assert (array >= 0).all() and (array <= 1).all(), name
    assert np.array_equal(values["binary"] == 1, values["prob"] > values["t_base"])
    assert set(values["binary"]) <= {0.0, 1.0}


def test_equal_is_off():
    """Silence under a flat score: probability and threshold are both 0."""
    values = compute_signals(np.zeros(10), np.full(10, 0.5), 0.02, Signal())
    assert (values["prob"] == values["t_base"]).all() and not values["binary"].any()


@pytest.mark.parametrize(
    ("sample_rate", "window", "hop"), [(32_000, 2048, 512), (16_000, 1024, 256)]
)
def test_loudness_is_centred_log_rms(sample_rate, window, hop):
    rng = np.random.default_rng(0)
    wav = rng.normal(0, 0.2, sample_rate // 4 + 100) * np.linspace(0, 1, sample_rate // 4 + 100)
    found = loudness(wav.astype(np.float32), sample_rate, Signal())
    assert found == pytest.approx(slow_loudness(wav.astype(np.float32), window, hop), abs=1e-4)
    assert len(found) == 1 + len(wav) // hop


def test_loudness_of_silence_and_of_a_few_samples():
    assert not loudness(np.zeros(16_000, np.float32), 16_000, Signal()).any()
    assert np.isfinite(loudness(np.ones(3, np.float32), 16_000, Signal())).all()


@pytest.mark.parametrize(("size", "num_frames"), [(63, 50), (10, 50), (50, 50), (1, 4), (5, 1)])
def test_interpolation_puts_first_on_first_and_last_on_last(size, num_frames):
    x = np.random.default_rng(0).random(size)
    found = preprocess.interpolate(x, num_frames)
    assert len(found) == num_frames and found[0] == x[0]
    if num_frames > 1:
        assert found[-1] == x[-1]
        for t in range(num_frames):
            at = t * (size - 1) / (num_frames - 1)
            low = min(math.floor(at), size - 1)
            high = min(low + 1, size - 1)
            assert found[t] == pytest.approx(x[low] + (at - low) * (x[high] - x[low]))


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
    preprocess.write_shard(tmp_path / "train" / "shard-00000.npz", values, labels)
    rewrite(tmp_path / "train", sha256=preprocess._sha256(tmp_path / "train" / "shard-00000.npz"))
    cache = load_cache(tmp_path / "train")
    assert cache.offsets.tolist() == [0, 30, 31, 78]
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        pair = cache.of_pair(index)
        assert np.array_equal(pair.pop("label"), label)
        for name, array in pair.items():
            assert array.dtype == np.float32 and np.array_equal(array, value[name]), name
    assert cache.pairs[2].edges[[0, 47]] == pytest.approx([0, 0.94])
    assert cache.find("0.wav", "Speech") == 1
    with pytest.raises(InputError, match=r"no pair 0\.wav / Cat"):
        cache.find("0.wav", "Cat")


def rewrite(folder, **changes):
    """Change entries of the manifest, or of its first shard."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        (manifest if key in manifest else manifest["shards"][0])[key] = value
    path.write_text(json.dumps(manifest))


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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
    "lengths": (lambda f: rewrite(f, pairs=[["a.wav", "A", 9, 0.02]]), "frame counts do not match"),
}


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
        wav, sample_rate = soundfile.read(done / "corpus" / "audio" / filename, dtype="float32")
        wav = wav.mean(axis=1) if wav.ndim == 2 else wav
        wav = np.append(wav, np.zeros(sample_rate - len(wav)))  # scores go on where audio ends
        rms = preprocess.interpolate(np.array(slow_loudness(wav, 1024, 256)), 50)
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
    assert sorted(path.name for path in folder.iterdir()) == [
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
    assert "taken over from an earlier run: 0 of 3" in capsys.readouterr().out
    assert load_cache(home / "cache" / "train").manifest["signal"]["fusion"] == "harmonic"


def test_a_score_archive_gives_the_same_cache_and_is_taken_over(home, capsys):
    first = load_cache(home / "cache" / "train")
    archive = home / "corpus" / "scores.npz"
    scorers.convert(home / "corpus" / "scores", archive)
    cfg = config_of(home, scores=archive, cache=home / "new")
    preprocess.main(cfg)
    cache = load_cache(home / "new" / "train")
    assert cache.pairs == first.pairs and cache.key == first.key
    assert cache.manifest["scores"]["source"] == "archive"
    preprocess.main(cfg)
    assert "taken over from an earlier run: 3 of 3" in capsys.readouterr().out
    scores = scorers.open_scores(archive)
    clips = {name: scores.read(name) for name in scores.clips()}
    clips["short"] = clips["short"]._replace(values=1 - clips["short"].values)
    scorers.write_archive(archive, scores.classes, clips.items())
    preprocess.main(cfg)
    assert "taken over from an earlier run: 2 of 3" in capsys.readouterr().out


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
    assert capsys.readouterr().out.count("taken over from an earlier run: 0 of 3") == 2
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


BAD = {
    "missing audio": ("audio/b.wav", Path.unlink, "b.wav: no audio in "),
    "missing scores": ("scores/a.tsv", Path.unlink, "a.flac: no scores in "),
    "cut flac": ("audio/a.flac", cut, "a.flac: cannot be read ("),
    "cut wav": ("audio/b.wav", cut, "b.wav: audio ends at 0.50 s but its scores go to 1.00 s"),
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
        "b.wav: scores end at 0.50 s but labels go to 0.90 s",
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
    real = preprocess.read_audio

    def fail(path):
        if path.name == "stereo.wav":
            raise ValueError("cannot be read (stale file handle)")
        return real(path)

    monkeypatch.setattr(preprocess, "read_audio", fail)
    with pytest.raises(InputError, match=r"stereo\.wav: cannot be read \(stale"):
        preprocess.main(config_of(home))
    monkeypatch.setattr(preprocess, "read_audio", real)
    preprocess.main(config_of(home))
    assert len(load_cache(home / "cache" / "train").pairs) == 6


def test_many_bad_clips_are_counted_and_some_named(home):
    for path in (home / "corpus" / "audio").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"5 of 6 clips .*\. --allow-missing"):
        preprocess.main(config_of(home))
    with pytest.raises(InputError, match="no clip is left that has all its inputs"):
        preprocess.main(config_of(home, allow_missing=True))


def test_no_readable_clip(home):
    for name in CLIPS:
        samples(home / "corpus" / "audio" / name, [])
    with pytest.raises(InputError, match="no readable clip is left"):
        preprocess.main(config_of(home, allow_missing=True))
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
    return config_of(home, audio=None, scores=None, import_npz=home / "npz", **changes)


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
    "cut": (cut, "b.wav: b_Dog.npz: cannot be read ("),
    "text": (lambda p: p.write_text("hello"), "b.wav: b_Dog.npz: cannot be read ("),
    "no T_norm": (lambda p: resave(p, T_norm=None), "b.wav: b_Dog.npz: cannot be read ("),
    "lengths": (lambda p: resave(p, rms=np.zeros(49)), "b.wav: b_Dog.npz: arrays of different"),
    "nan": (lambda p: resave(p, rms=np.full(50, np.nan)), "b.wav: b_Dog.npz: values are not fin"),
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

    monkeypatch.setattr(preprocess.soundscapes, "main", soundscapes)
    monkeypatch.setattr(preprocess.scorers, "main", scorers)
    monkeypatch.chdir(home)
    made = PreprocessConfig().corpus
    cfg = PreprocessConfig(cache=home / "both", workers=1)
    preprocess.main(cfg)
    preprocess.main(replace(cfg, split="validation"))
    assert asked == [("soundscapes", made, 0), ("scorers", made, 0)]
    with pytest.raises(InputError, match=r"no corpus there; make one: python soundscapes\.py"):
        preprocess.main(replace(cfg, corpus=home / "typo"))
    caches = [load_cache(home / "both" / split) for split in ("train", "validation")]
    assert [len(cache.pairs) for cache in caches] == [6, 6]
