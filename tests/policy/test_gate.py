"""The tag gate: its thresholds are the best ones, and it closes what it should."""

import numpy as np
import pytest
from corpora import write_cache
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from policy import gate
from sed.caches import load_cache
from sed.metrics import Counts, scores_of

CLASSES = ("Cat", "Dog", "Speech")


def f1_of(score: np.ndarray, present: np.ndarray, threshold: float) -> float:
    """Tagging F1 by counting."""
    on = score > threshold
    tp, fp, fn = (int((a & b).sum()) for a, b in ((on, present), (on, ~present), (~on, present)))
    return 2 * tp / (2 * tp + fp + fn)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1).filter(
        lambda rows: any(truth for _, truth in rows)
    )
)
def test_no_threshold_is_better(rows):
    score = np.array([value / 10 for value, _ in rows])
    present = np.array([truth for _, truth in rows])
    found = gate.best_threshold(score, present)
    every = [f1_of(score, present, step / 20) for step in range(21)]
    assert f1_of(score, present, found) == pytest.approx(max(every))


def test_of_equal_thresholds_the_highest_counts():
    score, present = np.array([0.9, 0.5, 0.5, 0.4]), np.array([True, False, True, True])
    # opening for one clip, for three or for all: F1 1/2, 2/3, 6/7
    assert gate.best_threshold(score, present) == pytest.approx(0.2)
    assert gate.best_threshold(score[:2], present[:2]) == pytest.approx(0.7)
    never = np.append(score, [0.0] * 9), np.append([True, False, False, False], [True] * 9)
    assert gate.best_threshold(*never) == pytest.approx(0.7)  # a score of 0 never opens


@pytest.fixture()
def cache(tmp_path):
    absent = (0, 4, 7, 9, 11)
    write_cache(tmp_path / "train", [50] * 15, labels=CLASSES, absent=absent)
    return load_cache(tmp_path / "train")


def test_gate_of_a_cache(cache):
    found = gate.tune_gate(cache)
    assert list(found.thresholds) == list(CLASSES)
    opened = gate.open_pairs(found, cache)
    score, present = gate.clip_tags(cache)
    for index, pair in enumerate(cache.pairs):
        tag = score[index // 3, CLASSES.index(pair.event_label)]
        assert opened[index] == (tag > found.thresholds[pair.event_label])
    assert present.sum() == 10 and (cache.present == present.ravel()).all()
    table = gate.tagging(found, cache)
    tp = int((opened & cache.present).sum())
    assert table["precision"] == pytest.approx(tp / opened.sum())
    assert table["recall"] == pytest.approx(tp / 10)
    assert table["clips"] == 5


def test_closed_pairs_are_off_everywhere(cache):
    closed = gate.Gate({"Cat": 0.0, "Dog": 1.0}, fallback=0.0)
    pred = gate.behind(closed, cache, np.ones(len(cache.label), bool))
    by_pair = pred.reshape(15, 50)
    names = np.array([pair.event_label for pair in cache.pairs])
    assert by_pair[names != "Dog"].all() and not by_pair[names == "Dog"].any()


def test_class_without_a_positive_gets_the_fallback(cache):
    names = [pair.event_label for pair in cache.pairs]
    keep = np.array([n != "Cat" or not p for n, p in zip(names, cache.present, strict=True)])
    found = gate.tune_gate(cache.choose(keep).subset({"0.wav"}))
    assert "Cat" not in found.thresholds
    assert gate.opens(found, "Cat", found.fallback + 0.01)
    assert not gate.opens(found, "Cat", found.fallback)


def test_without_a_negative_the_gate_closes_nothing(tmp_path):
    """A class that every clip has: no threshold above 0 is learned, which is said where it is
    trained and where it meets clips that may lack it."""
    write_cache(tmp_path / "train", [50] * 6, labels=("Speech",))
    everywhere = load_cache(tmp_path / "train")
    found = gate.tune_gate(everywhere)
    assert found == gate.Gate({"Speech": 0.0}, 0.0)
    assert gate.opens(found, "Speech", 1e-3) and gate.opens(found, "Dog", 1e-3)
    assert everywhere.never_absent == ["Speech"]


def test_imported_arrays_have_no_gate(cache):
    clips = [clip._replace(tag=None) for clip in cache.clips]
    object.__setattr__(cache, "clips", clips)
    assert gate.tune_gate(cache) is None
    with pytest.raises(InputError, match="no clip-level scores"):
        gate.open_pairs(gate.Gate({}, 0.5), cache)


def test_nothing_said_is_not_wrong(cache):
    table = gate.tagging(gate.Gate({}, 2.0), cache)
    assert (table["precision"], table["recall"], table["f1"]) == (1.0, 0.0, 0.0)
    f1 = scores_of(Counts(0, 0, 10, 5))["f1"]
    assert table["f1"] == float(f1)
