"""Differences pooled over folds: intervals over clips and over what the clips play, and claims.

Shapes: D draws, C clips of a fold

Clips are not independent of each other: validation clips of one fold play the same recordings, and
the same timeline stands in every fold. So the levels of both factors are weighted, not the clips.
In every draw each timeline and each recording has a weight of its own, and a clip weighs as much as
the product of all of its: what shares a recording moves together. (A. B. Owen, The pigeonhole
bootstrap, Ann. Appl. Stat. 1, 2007. Products of weights for any number of factors: A. B. Owen and
D. Eckles, Bootstrapping data arrays of arbitrary order, Ann. Appl. Stat. 6, 2012.)

A clip has up to nine levels, and a product of nine draws with replacement is nearly always 0. So
the weights are close to 1 (gamma, mean 1, standard deviation `SPREAD`), and what a draw moves a
figure by is divided by `SPREAD`. (J. Praestgaard and J. A. Wellner, Exchangeably weighted
bootstraps of the general empirical process, Ann. Probab. 21, 1993.) For one factor that is the
bootstrap over clusters. With several the interval errs on the wide side: chance that belongs to a
clip alone is counted for its timeline and for each of its recordings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from comparison.scoring import word
from sed.metrics import DRAWS, interval

Weigh = Callable[[np.ndarray], np.ndarray]  # names of clips (C,) -> weights (D, C)

SPREAD = 0.25
NUM_FOLDS, ENOUGH = 5, 4  # a claim must hold pooled, and in so many of all folds


def level_weights(levels: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """Weight (D,) of every level of a factor."""
    names, shape = sorted(set(levels)), 1 / SPREAD**2
    drawn = np.random.default_rng(seed).gamma(shape, 1 / shape, (len(names), DRAWS))
    return dict(zip(names, drawn, strict=True))


def clip_weights(
    timelines: Mapping[str, np.ndarray],
    recordings: Mapping[str, np.ndarray],
    played: Mapping[str, Sequence[str]],
) -> Weigh:
    """What gives clips (C,) their weights (D, C): of a clip's timeline, which has its name, times
    those of the recordings that it has `played`."""

    def weigh(clips: np.ndarray) -> np.ndarray:
        parts = [[timelines[clip], *(recordings[r] for r in set(played[clip]))] for clip in clips]
        return np.stack([np.prod(part, axis=0) for part in parts], axis=1)

    return weigh


def widened(draws: np.ndarray, value: float) -> np.ndarray:
    """95 % interval (2,) of a figure from its weighted draws (D,)."""
    return interval(value + (draws - value) / SPREAD)


def told(metric: str, pooled: Sequence[float], folds: Sequence[Sequence[float]]) -> str:
    """`beats`, `loses to` or `cannot be told from`, of intervals (low, high).

    The first two where the interval lies on one side of zero pooled over all folds and in at least
    four of the five; with folds left out nothing can be told.
    """
    said = word(metric, *pooled)
    same = sum(word(metric, *each) == said for each in folds)
    return said if len(folds) == NUM_FOLDS and same >= ENOUGH else word(metric, 0.0, 0.0)
