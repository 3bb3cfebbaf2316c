"""Intervals over timelines and recordings, against slow versions and known truths; claims."""

import numpy as np
import pytest
from corpora import write_cache

from comparison import clustered
from comparison.clustered import SPREAD, clip_weights, level_weights, told, widened
from comparison.scoring import Resampler
from sed.caches import load_cache
from sed.metrics import DRAWS, bootstrap_mean, count_pairs

CLIPS = [f"{i}.wav" for i in range(120)]


def weights_of(played, seed=0):
    timelines = level_weights(played, seed)
    recordings = level_weights((r for some in played.values() for r in some), seed + 1)
    return timelines, recordings, clip_weights(timelines, recordings, played)


def test_a_clip_weighs_the_product_of_its_levels():
    """The slow version: a level, a clip and a draw at a time."""
    played = {"b.wav": ["r2", "r1", "r1"], "a.wav": ["r1"], "c.wav": ["r3"]}
    timelines, recordings, weigh = weights_of(played)
    found = weigh(np.array(["c.wav", "b.wav"]))
    assert found.shape == (DRAWS, 2) and (found > 0).all()
    for draw in range(0, DRAWS, 50):
        expected = [timelines["c.wav"][draw] * recordings["r3"][draw]]
        expected += [timelines["b.wav"][draw] * recordings["r1"][draw] * recordings["r2"][draw]]
        assert found[draw] == pytest.approx(expected)
    every = np.array([*timelines.values(), *recordings.values()])
    assert every.mean() == pytest.approx(1, abs=0.02)
    assert every.std() == pytest.approx(SPREAD, abs=0.02)
    assert len({tuple(each[:3]) for each in every}) == len(every)  # independent of each other


def test_levels_draw_the_same_again():
    one, again = level_weights("ab", 0), level_weights(["b", "a", "a"], 0)
    assert all((one[name] == again[name]).all() for name in "ab")
    assert (level_weights("ab", 1)["a"] != one["a"]).all()


def test_draws_are_those_of_counts_added_up(tmp_path):
    """Headline metrics of weighted clips: pair by pair, class by class, nothing vectorised."""
    write_cache(tmp_path / "all", [40, 31] * 8, absent=(1, 5, 6))
    cache = load_cache(tmp_path / "all")
    played = {clip.filename: [f"r{i % 3}", f"r{i % 2}"] for i, clip in enumerate(cache.clips)}
    weigh = weights_of(played)[2]
    pred = cache.label ^ (np.random.default_rng(0).random(len(cache.label)) < 0.2)
    counts = count_pairs(pred, cache.label, cache.offsets)
    sampler = Resampler(cache, weigh)
    found = sampler.draws(counts)
    for draw in range(0, DRAWS, 100):
        weight = dict(zip(sampler.names, sampler.weights[draw], strict=True))
        cells, absent, alarms = {}, 0.0, 0.0
        for i, pair in enumerate(cache.pairs):
            sums = cells.setdefault(pair.event_label, [0.0, 0.0, 0.0])
            for k, cell in enumerate(counts[:3]):
                sums[k] += weight[pair.filename] * cell[i]
            if not cache.present[i]:
                absent += weight[pair.filename]
                alarms += weight[pair.filename] * (counts.fp[i] > 0)
        f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in cells.values()]
        tp, fp, fn = np.sum(list(cells.values()), axis=0)
        assert found[draw] == pytest.approx(
            [np.mean(f1), 2 * tp / (2 * tp + fp + fn), alarms / absent]
        )


def half_width(values, weights):
    """Half of the interval of a mean over clips."""
    low, high = widened(weights @ values / weights.sum(axis=1), values.mean())
    assert low < values.mean() < high
    return (high - low) / 2


def test_one_recording_a_clip_is_the_bootstrap_over_recordings():
    """Clips that share a recording are perfectly correlated: 12 recordings, not 120 clips."""
    rng = np.random.default_rng(3)
    recording = rng.integers(0, 12, len(CLIPS))
    effect = rng.normal(size=12)
    values = effect[recording]
    played = {clip: [f"r{r}"] for clip, r in zip(CLIPS, recording, strict=True)}
    _, recordings, _ = weights_of(played)
    alone = clip_weights(dict.fromkeys(CLIPS, np.ones(DRAWS)), recordings, played)(CLIPS)
    low, high = bootstrap_mean(values[:, None], recording)
    assert half_width(values, alone) == pytest.approx((high - low)[0] / 2, rel=0.15)
    both = half_width(values, weights_of(played)[2](CLIPS))
    low, high = bootstrap_mean(values[:, None], np.arange(len(CLIPS)))
    assert both > 2 * (high - low)[0] / 2  # which takes the clips for independent


@pytest.mark.parametrize("chance", ["of recordings", "of clips"])
def test_many_recordings_a_clip(chance):
    """The true deviation of the mean over fresh worlds lies inside what the interval claims, which
    is not wider than its text says: each of up to five recordings and the timeline once."""
    rng = np.random.default_rng(5)
    played = {c: [f"r{r}" for r in rng.choice(40, rng.integers(1, 6), False)] for c in CLIPS}
    weights = weights_of(played)[2](CLIPS)
    means, widths = [], []
    for _ in range(60):
        effect = {f"r{i}": rng.normal() for i in range(40)}
        values = np.array([np.mean([effect[r] for r in played[clip]]) for clip in CLIPS])
        values = values if chance == "of recordings" else rng.normal(size=len(CLIPS))
        means.append(values.mean())
        widths.append(half_width(values, weights))
    ratio = np.mean(widths) / (1.96 * np.std(means))
    assert 0.85 < ratio < (1.5 if chance == "of recordings" else 2.4)


def test_a_timeline_counts_once_in_all_folds():
    """The same clip in two folds is no second clip."""
    timelines = level_weights(CLIPS, 0)
    folds = []
    for fold in "ab":
        played = {clip: [f"{fold}{i}"] for i, clip in enumerate(CLIPS)}
        none = dict.fromkeys((r for some in played.values() for r in some), np.ones(DRAWS))
        folds.append(clip_weights(timelines, none, played)(CLIPS))
    assert (folds[0] == folds[1]).all()


# ---------------------------------------------------------------------------- claims

ABOVE, BELOW, OVER = (0.01, 0.02), (-0.02, -0.01), (-0.01, 0.01)


@pytest.mark.parametrize(
    ("whole", "folds", "said"),
    [
        (ABOVE, [ABOVE] * 5, "beats"),
        (ABOVE, [ABOVE] * 4 + [BELOW], "beats"),
        (ABOVE, [ABOVE] * 3 + [OVER] * 2, "cannot be told from"),
        (OVER, [ABOVE] * 5, "cannot be told from"),
        (BELOW, [BELOW] * 4 + [OVER], "loses to"),
        (BELOW, [BELOW] * 3 + [OVER] * 2, "cannot be told from"),
        (BELOW, [ABOVE] * 5, "cannot be told from"),
        (ABOVE, [ABOVE] * 4, "cannot be told from"),  # a fold is not judged yet
        ((0.0, 0.02), [ABOVE] * 5, "cannot be told from"),
        (OVER, [OVER] * 5, "cannot be told from"),
    ],
)
def test_four_of_five_folds(whole, folds, said):
    assert told("f1", whole, folds) == said
    swap = {"beats": "loses to", "loses to": "beats"}
    assert told("false_alarms", whole, folds) == swap.get(said, said)
    assert clustered.NUM_FOLDS == 5
