"""Caches of all pairs, caches without audio, clip-level scores: what whoever lacks tags needs."""

import numpy as np
import pytest
from test_preprocess import CLASSES, CLIPS, config_of, write_corpus

import preprocess
from baselines.tuned_rules import class_of_pair
from scores import score_files
from sed import signals
from sed.caches import load_cache
from sed.labels import read_labels
from sed.metrics import count_pairs, mean_over_pairs, over_all_pairs
from sed.signals import SIGNALS
from sed.timeline import classes_of, frame_edges, write_labels


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("queries")
    write_corpus(home / "corpus", CLIPS)
    preprocess.main(config_of(home))
    preprocess.main(config_of(home, pairs="all", cache=home / "all"))
    return home


def test_every_class_of_every_clip(home):
    cache = load_cache(home / "all" / "train")
    heard = classes_of(CLIPS)
    assert cache.queries == "all" and cache.classes == heard
    assert [clip.filename for clip in cache.clips] == list(CLIPS)  # the one without events too
    asked = [(pair.filename, pair.event_label) for pair in cache.pairs]
    assert asked == [(name, label) for name in CLIPS for label in heard]
    truth = [label in classes_of({name: CLIPS[name]}) for name, label in asked]
    assert cache.present.tolist() == truth
    on = np.add.reduceat(cache.label, cache.offsets[:-1])
    assert not on[~cache.present].any() and on[cache.present].all()


def test_present_pairs_are_the_same_in_both(home):
    present = load_cache(home / "cache" / "train")
    chosen = load_cache(home / "all" / "train").present_only()
    assert chosen.queries == "present" and chosen.key != present.key
    assert [*map(str, chosen.pairs)] == [*map(str, present.pairs)]
    assert (chosen.offsets == present.offsets).all() and (chosen.label == present.label).all()
    for name in SIGNALS:
        assert (chosen.signals[name] == present.signals[name]).all()
    assert [clip.filename for clip in chosen.clips] == [name for name in CLIPS if CLIPS[name]]


def test_subset_keeps_whole_clips(home):
    cache = load_cache(home / "all" / "train")
    part = cache.subset(["b.wav", "empty.wav"])
    assert {pair.filename for pair in part.pairs} == {"b.wav", "empty.wav"}
    assert len(part.label) == part.offsets[-1] == sum(pair.num_frames for pair in part.pairs)
    index, whole = part.find("b.wav", "Dog"), cache.find("b.wav", "Dog")
    for name, values in part.of_pair(index).items():
        assert (values == cache.of_pair(whole)[name]).all()
    assert part.key not in (cache.key, cache.subset(["b.wav"]).key)


def test_more_classes_than_the_labels_have(home, tmp_path):
    spare = sorted(set(CLASSES) - set(classes_of(CLIPS)))
    preprocess.main(config_of(home, pairs="all", classes=tuple(spare), cache=tmp_path))
    cache = load_cache(tmp_path / "train")
    assert cache.classes == sorted(CLASSES)
    assert len(cache.pairs) == len(CLIPS) * len(CLASSES)


def test_other_queries_make_other_shards(home, tmp_path, capsys):
    preprocess.main(config_of(home, cache=tmp_path))
    before = load_cache(tmp_path / "train").key
    preprocess.main(config_of(home, cache=tmp_path, pairs="all"))
    assert "taken over from an earlier run" not in capsys.readouterr().out
    assert load_cache(tmp_path / "train").key != before


def test_clip_level_score_ignores_a_single_frame(home):
    source = score_files.ScoreFiles(home / "corpus" / "scores", classes_of(CLIPS))
    scores = source.scores("b.wav")
    spiked = scores.values.copy()
    spiked[:, 25] = 1.0
    signal = preprocess.Signal()
    tag = signals.clip_tag(scores._replace(values=spiked), signal)
    assert (tag < 1).all() and (tag >= np.median(scores.values, axis=1)).all()
    given = np.array([0.25] * len(source.classes), np.float32)
    assert (signals.clip_tag(scores._replace(tag=given), signal) == given).all()
    clip = next(c for c in load_cache(home / "all" / "train").clips if c.filename == "b.wav")
    assert clip.tag == pytest.approx(signals.clip_tag(scores, signal).tolist())


def test_without_audio_the_scores_decide_alone(home, tmp_path, capsys):
    preprocess.main(config_of(home, audio=None, cache=tmp_path))
    out = capsys.readouterr().out
    assert "5 x no audio (--audio not given): the normalised loudness is 1 everywhere" in out
    cache = load_cache(tmp_path / "train")
    assert (cache.signals["rms"] == 1).all() and cache.manifest["audio"] is None
    assert np.isfinite(cache.signals["t_base"]).all()
    # A product with 1 is the score alone: their peaks are where the score's are.
    index = cache.find("b.wav", "Dog")
    values = cache.of_pair(index)
    assert values["prob"][values["d_adj"] > 0.9].min() > 0.5


def test_clips_of_any_length_in_one_cache(tmp_path):
    """Half a second, ten minutes, one frame; the grid of a real baseline (156 x 64 ms)."""
    lengths = {"half.wav": 8, "ten.wav": 9375, "tick.wav": 1, "usual.wav": 156}
    edges = {n: frame_edges(t, 0.064) for n, t in lengths.items()}
    events = {n: [preprocess.Event(0, e[-1] / 2 + 0.04, "Dog")] for n, e in edges.items()}
    (tmp_path / "scores").mkdir()
    write_labels(tmp_path / "labels.tsv", events)
    rng = np.random.default_rng(0)
    for name, times in edges.items():
        path = tmp_path / "scores" / f"{name.removesuffix('.wav')}.tsv"
        score_files.write_scores(path, times, ["Dog"], rng.random((1, len(times) - 1)))
    folders = {"labels": tmp_path / "labels.tsv", "scores": tmp_path / "scores", "audio": None}
    preprocess.main(config_of(tmp_path, **folders))
    cache = load_cache(tmp_path / "cache" / "train")
    assert {p.filename: p.num_frames for p in cache.pairs} == lengths
    assert all(np.isfinite(array).all() for array in cache.signals.values())


def test_the_real_score_files(shared_data, tmp_path):
    """20 clips of DESED, scores of the DCASE 2023 baseline, no audio: fixed 0.5, both protocols."""
    home = shared_data / "dcase2023_baseline"
    scores = home / "baseline2_run1_scores"
    truth = read_labels(home / "metadata" / "ground_truth.tsv")
    names = {path.stem for path in scores.glob("*.tsv")}
    clips = {name: events for name, events in truth.items() if name.rpartition(".")[0] in names}
    write_labels(tmp_path / "labels.tsv", clips)
    inputs = {"labels": tmp_path / "labels.tsv", "scores": scores, "audio": None}
    preprocess.main(config_of(tmp_path, **inputs, pairs="all"))
    cache = load_cache(tmp_path / "cache" / "train")
    assert len(cache.clips) == 20 and len(cache.pairs) == 200 and cache.present.sum() == 59
    pred = cache.signals["d_raw"] > 0.5
    counts = count_pairs(pred, cache.label, cache.offsets)
    table = over_all_pairs(counts, class_of_pair(cache), cache.present)
    assert table["micro_f1"] == pytest.approx(0.741, abs=5e-4)
    assert table["false_alarms"] == pytest.approx(0.014, abs=5e-4)
    present = cache.present_only()
    on = present.signals["d_raw"] > 0.5
    mean = mean_over_pairs(count_pairs(on, present.label, present.offsets))
    assert [round(mean[name], 4) for name in ("accuracy", "iou", "f1")] == [0.8352, 0.5589, 0.6165]
