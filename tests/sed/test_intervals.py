"""Intervals by resampling clips."""

import time

import numpy as np
import pytest

from sed import metrics


def test_against_a_loop_over_draws():
    """The same draws, clip by clip: the mean over all pairs of the drawn clips."""
    rng = np.random.default_rng(0)
    clip = np.sort(rng.integers(0, 12, 30))
    values = rng.normal(size=(30, 2))
    names = np.unique(clip)
    drawn = np.random.default_rng(7).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=metrics.DRAWS
    )
    means = []
    for row in drawn:
        pairs = [i for j, times in enumerate(row) for _ in range(times)
                 for i in np.flatnonzero(clip == names[j])]  # fmt: skip
        means.append(values[pairs].mean(0))
    slow = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(metrics.bootstrap_mean(values, clip, 7), slow)


def test_width_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3, 2, (400, 1))
    low, high = metrics.bootstrap_mean(values, np.arange(400))
    assert low < values.mean() < high
    assert (high - low)[0] == pytest.approx(2 * 1.96 * 2 / np.sqrt(400), rel=0.15)


def test_pairs_of_a_clip_go_together():
    """Ten copies of a pair in one clip tell no more than one."""
    values = np.random.default_rng(2).normal(size=(50, 1))
    alone = metrics.bootstrap_mean(values, np.arange(50))
    copied = metrics.bootstrap_mean(np.repeat(values, 10, axis=0), np.repeat(np.arange(50), 10))
    np.testing.assert_allclose(copied, alone)


def test_one_clip_and_repetition():
    values = np.array([[1.0], [3.0]])
    low, high = metrics.bootstrap_mean(values, np.array(["a", "a"]))
    assert low == high == 2
    many = np.random.default_rng(3).normal(size=(500, 3))
    began = time.perf_counter()
    first, second = (metrics.bootstrap_mean(many, np.arange(500)) for _ in range(2))
    assert time.perf_counter() - began < 5
    np.testing.assert_array_equal(first, second)
