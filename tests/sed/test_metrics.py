"""Frame metrics against a slow loop."""

import numpy as np
import pytest
from corpora import write_cache
from hypothesis import given
from hypothesis import strategies as st

from sed.caches import load_cache
from sed.metrics import count_pairs, mean_f1, mean_over_pairs, per_class, pooled, scores_of, subset

PAIRS = st.lists(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    min_size=1,
    max_size=6,
)


def arrays(pairs):
    """Rows of (decision, truth) of each pair -> arrays over all frames and offsets."""
    flat = [row for pair in pairs for row in pair]
    offsets = np.cumsum([0] + [len(pair) for pair in pairs])
    return np.array([p for p, _ in flat]), np.array([y for _, y in flat]), offsets


def slow_counts(rows):
    tp = sum(p and y for p, y in rows)
    fp = sum(p and not y for p, y in rows)
    fn = sum(not p and y for p, y in rows)
    return tp, fp, fn, len(rows) - tp - fp - fn


def slow_scores(rows):
    """The slides' definitions; F1 from precision and recall."""
    tp, fp, fn, tn = slow_counts(rows)
    accuracy = (tp + tn) / (tp + tn + fp + fn)
    if tp + fp + fn == 0:  # nothing was there and nothing was said
        return {"accuracy": accuracy, "iou": 1.0, "f1": 1.0}
    if tp == 0:
        return {"accuracy": accuracy, "iou": 0.0, "f1": 0.0}
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    return {"accuracy": accuracy, "iou": tp / (tp + fp + fn), "f1": f1}


@given(PAIRS)
def test_against_a_slow_loop(pairs):
    counts = count_pairs(*arrays(pairs))
    assert list(zip(*(cell.tolist() for cell in counts), strict=True)) == [
        slow_counts(pair) for pair in pairs
    ]
    each = [slow_scores(pair) for pair in pairs]
    found, mean = scores_of(counts), mean_over_pairs(counts)
    for name in ("accuracy", "iou", "f1"):
        values = [scores[name] for scores in each]
        assert found[name] == pytest.approx(values)
        assert mean[name] == pytest.approx(sum(values) / len(values))
        assert np.isfinite(found[name]).all()
    assert pooled(counts) == pytest.approx(slow_scores([row for pair in pairs for row in pair]))


@given(PAIRS)
def test_f1_and_iou_of_one_set_of_frames_are_one_number(pairs):
    total = pooled(count_pairs(*arrays(pairs)))
    assert total["f1"] == pytest.approx(2 * total["iou"] / (1 + total["iou"]))


def test_known_answer():
    """3 found, 1 false alarm, 2 missed, 4 rightly silent."""
    pred = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    label = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], bool)
    mean = mean_over_pairs(count_pairs(pred, label, np.array([0, 10])))
    assert mean == pytest.approx({"accuracy": 0.7, "iou": 0.5, "f1": 2 / 3})


@pytest.mark.parametrize(
    ("pred", "label", "expected"),
    [
        (False, False, {"accuracy": 1, "iou": 1, "f1": 1}),
        (True, False, {"accuracy": 0, "iou": 0, "f1": 0}),
        (False, True, {"accuracy": 0, "iou": 0, "f1": 0}),
        (True, True, {"accuracy": 1, "iou": 1, "f1": 1}),
    ],
)
def test_empty_truth_and_empty_prediction(pred, label, expected):
    counts = count_pairs(np.full(5, pred), np.full(5, label), np.array([0, 5]))
    assert mean_over_pairs(counts) == pooled(counts) == expected


def test_mean_weighs_pairs_and_pooled_weighs_frames():
    pred, label = np.ones(100, bool), np.arange(100) < 10
    counts = count_pairs(pred, label, np.array([0, 10, 100]))
    assert mean_over_pairs(counts)["accuracy"] == pytest.approx(0.5)
    assert pooled(counts)["accuracy"] == pytest.approx(0.1)


def test_per_class_and_subset():
    pairs = [[(True, True)], [(True, False), (True, True)], [(False, True)], [(False, False)]]
    counts, labels = count_pairs(*arrays(pairs)), np.array(["Dog", "Cat", "Dog", "Cat"])
    table = per_class(counts, labels)
    assert list(table) == ["Cat", "Dog"]
    assert table["Dog"] == {"pairs": 2, "accuracy": 0.5, "iou": 0.5, "f1": 0.5}
    assert table["Cat"] == pytest.approx({"pairs": 2, "accuracy": 0.75, "iou": 0.75, "f1": 5 / 6})
    assert mean_over_pairs(subset(counts, np.array([3, 0])))["f1"] == 1.0


def test_mean_f1_of_some_pairs(tmp_path):
    write_cache(tmp_path / "train", [20, 30, 25])
    cache = load_cache(tmp_path / "train")
    pred = cache.signals["binary"] > 0.5
    f1 = []
    for index in (2, 0):
        own = cache.of_pair(index)
        f1.append(
            slow_scores(
                [(bool(p), bool(y)) for p, y in zip(own["binary"], own["label"], strict=True)]
            )
        )
    assert mean_f1(cache, pred, np.array([2, 0])) == pytest.approx((f1[0]["f1"] + f1[1]["f1"]) / 2)
