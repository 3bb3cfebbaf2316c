"""Caches read back: resident or from disk, the same numbers; shards that change."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import write_cache

from core.errors import InputError
from core.stored import file_sha256, read_json, write_json
from sed import caches
from sed.caches import Stored, load_cache
from sed.signals import SIGNALS


@pytest.fixture
def folder(tmp_path) -> Path:
    """A cache of all pairs in two shards: five clips, two classes, three pairs absent."""
    write_cache(tmp_path / "train", [40, 40, 30, 30, 1, 1], seed=1, absent=(1, 2))
    names = ["x.wav", "y.wav"]
    write_cache(tmp_path / "other", [25, 25, 60, 60], seed=2, absent=(3,), clips=names)
    manifest, other = (
        read_json(tmp_path / name / "manifest.json", "") for name in ("train", "other")
    )
    (tmp_path / "other" / "shard-00000.npz").rename(tmp_path / "train" / "shard-00001.npz")
    manifest["shards"].append(other["shards"][0] | {"file": "shard-00001.npz"})
    write_json(tmp_path / "train" / "manifest.json", manifest)
    return tmp_path / "train"


def resident(cache):
    """The same cache, all arrays read by numpy."""
    shards = [np.load(path) for path in sorted(cache.folder.glob("*.npz"))]
    flat = lambda name: np.concatenate([shard[name] for shard in shards])  # noqa: E731
    signals = {name: flat(name).astype(np.float32) for name in SIGNALS}
    return replace(cache, signals=signals, label=flat("label").astype(bool))


def test_processes_of_a_job_share_the_arrays_of_present_pairs(tmp_path, monkeypatch):
    write_cache(tmp_path / "train", [60, 40, 50])
    alone = load_cache(tmp_path / "train")
    assert alone.queries == "present" and not isinstance(alone.signals, Stored)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun does
    shared = load_cache(tmp_path / "train")
    assert isinstance(shared.signals, Stored)
    assert isinstance(shared.signals.arrays(0)["prob"], np.memmap)
    for name in SIGNALS:
        assert np.array_equal(shared.signals[name], alone.signals[name])
    assert np.array_equal(shared.label, alone.label) and shared.pairs == alone.pairs


@pytest.mark.parametrize("large", [caches.LARGE, 1])
def test_arrays_from_disk_are_those_of_the_files(folder, monkeypatch, large):
    monkeypatch.setattr(caches, "LARGE", large)
    cache = load_cache(folder)
    assert isinstance(cache.signals, Stored) and list(cache.signals) == list(SIGNALS)
    there = resident(load_cache(folder))
    some = np.array([True, False, True, True, False, True, True, True, False, True])
    chosen = some & (np.arange(10) != 3)
    for ours, theirs in (
        (cache, there),
        (cache.choose(some), there.choose(some)),
        (cache.choose(some).choose(chosen[some]), there.choose(chosen)),
        (cache.present_only(), there.present_only()),
        (cache.subset(["1.wav", "y.wav"]), there.subset(["1.wav", "y.wav"])),
        (cache.choose(some & False), there.choose(some & False)),
        (pickle.loads(pickle.dumps(cache.choose(some))), there.choose(some)),
    ):
        for index in range(len(ours.pairs)):  # from disk, one pair after the other
            for name, values in ours.of_pair(index).items():
                assert np.array_equal(values, theirs.of_pair(index)[name])
        assert not ours.signals.kept and ours.pairs == theirs.pairs
        assert ours.num_frames == len(theirs.label) == len(ours.label)
        held = dict(ours.signals)
        for name in SIGNALS:
            assert held[name].dtype == np.float32 and held[name].base is ours.signals[name].base
            assert np.array_equal(held[name], theirs.signals[name])
        for base in (ours.base, theirs.base):
            assert base.dtype == bool and np.array_equal(base, held["binary"] == 1)
        assert ours.label.dtype == bool and np.array_equal(ours.label, theirs.label)
        for index in range(len(ours.pairs)):  # now resident
            for name, values in ours.of_pair(index).items():
                assert np.array_equal(values, theirs.of_pair(index)[name])
    # It stays while somebody holds it; another process reads again.
    assert held["prob"].base is ours.signals["prob"].base
    assert not pickle.loads(pickle.dumps(ours)).signals.kept
    del held
    assert not ours.signals.kept


def test_parts_of_a_cache_are_its_pairs_in_order(folder, monkeypatch):
    """By frames, by pairs, a pair longer than a part; what is silent is so in its part."""
    cache = load_cache(folder)
    assert list(cache.parts()) == [cache]
    closed = np.arange(len(cache.pairs)) % 3 == 0
    silent = replace(cache, signals=cache.signals.silenced(["prob"], closed))
    expected = cache.signals["prob"] * ~cache.of_frames(closed)
    for frames, pairs, count in ((75, 10, 6), (1000, 3, 4), (1, 10, 10)):
        monkeypatch.setattr(caches, "PART_FRAMES", frames)
        monkeypatch.setattr(caches, "PART_PAIRS", pairs)
        for each in (silent, replace(silent, signals=dict(silent.signals))):
            parts = list(each.parts())
            assert len(parts) == count and [p for x in parts for p in x.pairs] == cache.pairs
            assert np.array_equal(np.concatenate([x.signals["prob"] for x in parts]), expected)
            assert np.array_equal(np.concatenate([x.label for x in parts]), cache.label)
            for part, piece in zip(parts, each.cut(expected), strict=True):
                assert np.array_equal(part.signals["prob"], piece)
                assert np.array_equal(part.one("prob", 0), piece[: part.offsets[1]])


def test_arithmetic_does_not_write_into_a_signal(tmp_path):
    """numpy works in place in an operand of 256 kB or more that nothing refers to."""
    write_cache(tmp_path, [40_000, 40_000], absent=(1,))
    signals = load_cache(tmp_path).signals
    before = signals["d_raw"].copy()
    silent = {"d_raw": np.zeros(80_000, bool) * signals["d_raw"]}  # held on, as a cache would
    assert not silent["d_raw"].any() and np.array_equal(signals["d_raw"], before)


def test_a_replaced_label_or_signal_counts(folder):
    cache = load_cache(folder)
    other = replace(
        cache, label=~cache.label, signals=cache.signals | {"rms": 1 - cache.signals["rms"]}
    )
    assert np.array_equal(other.one("label", 2), ~cache.one("label", 2))
    assert np.array_equal(other.one("rms", 2), 1 - cache.one("rms", 2))
    assert np.array_equal(other.choose(np.arange(10) == 2).label, ~cache.one("label", 2))


def test_a_shard_that_changes_meanwhile(folder):
    cache = load_cache(folder)
    cache.one("prob", 0)
    path = folder / "shard-00001.npz"
    path.write_bytes(path.read_bytes())
    cache.one("prob", 1)
    with pytest.raises(InputError, match=r"shard-00001\.npz: has changed since it was read, or is"):
        cache.one("prob", 9)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.npz: .* gone; run the command again"):
        assert cache.signals["prob"].any()


def test_a_large_shard_is_checked_array_by_array(folder, monkeypatch):
    monkeypatch.setattr(caches, "LARGE", 1)
    path = folder / "shard-00001.npz"
    manifest = read_json(folder / "manifest.json", "")
    for name, value, message in (
        ("prob", np.nan, r"prob is nan in 'x\.wav' / 'Speech', not in 0\.\.1 \(one of 1\)"),
        ("offsets", 7, "its pairs are not as long as the manifest says"),
    ):
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays[name][3 if name == "offsets" else 30] = value
        np.savez(path, **arrays)
        manifest["shards"][1]["sha256"] = file_sha256(path)
        write_json(folder / "manifest.json", manifest)
        with pytest.raises(InputError, match=message):
            load_cache(folder)


def test_names_are_held_once(folder):
    cache = load_cache(folder)
    assert cache.pairs[0].filename is cache.pairs[1].filename
    assert cache.pairs[0].event_label is cache.pairs[2].event_label
    assert all(type(pair.num_frames) is int and type(pair.frame_s) is float for pair in cache.pairs)
