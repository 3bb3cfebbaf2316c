"""Tag gate: which classes sound in a clip at all, one threshold a class on a clip-level score.

Shapes: C clips, K classes, P pairs, N frames of all pairs

The signals of a pair are min-max normalised, so the peak of every queried class comes near 1,
whether it sounds or not. Whoever queries without knowing the tags needs this gate: a pair whose
clip-level score (`sed.signals.clip_tag`) does not exceed its class's threshold is off everywhere.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from core.errors import InputError
from sed.caches import Cache, Stored
from sed.metrics import Counts, scores_of


class Gate(NamedTuple):
    """Thresholds of a tag gate, and the one for classes that were not in its training data."""

    thresholds: dict[str, float]
    fallback: float


def clip_tags(cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Clip-level scores (C, K) and whether the class occurs in the clip's labels (C, K).

    Raises InputError for imported caches, which know no clip-level score.
    """
    if any(clip.tag is None for clip in cache.clips):
        raise InputError(f"{cache.folder}: holds no clip-level scores, so there is no tag gate")
    score = np.array([clip.tag for clip in cache.clips], np.float64)
    labels = [{event.event_label for event in clip.events} for clip in cache.clips]
    present = [[name in events for name in cache.classes] for events in labels]
    return score.reshape(-1, len(cache.classes)), np.array(present, bool).reshape(score.shape)


def best_threshold(score: np.ndarray, present: np.ndarray) -> float:
    """The t >= 0 of the highest F1 of `score > t`; scores 0..1 and truth (n,), somewhere true.

    Candidates lie halfway between neighbouring scores, below the lowest one too; of equals the
    highest counts, which opens for the fewest clips. A score of 0 never opens. Where all is true
    nothing says when to close: 0.
    """
    if present.all():
        return 0.0
    order = np.argsort(-score, kind="stable")
    ranked, truth = score[order], present[order]
    tp = np.cumsum(truth)
    f1 = 2 * tp / (np.arange(1, len(ranked) + 1) + truth.sum())  # F1 of opening for the first i + 1
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores cannot be told apart
    f1[ranked <= 0] = -1
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def tune_gate(cache: Cache) -> Gate | None:
    """Threshold of each class for the best tagging F1 over the clips of a training cache.

    A class without a positive clip gets the fallback, the best threshold of all classes together.
    None where the cache knows no clip-level scores.
    """
    if any(clip.tag is None for clip in cache.clips):
        return None
    score, present = clip_tags(cache)
    fallback = best_threshold(score.ravel(), present.ravel())
    known = [k for k in range(len(cache.classes)) if present[:, k].any()]
    thresholds = {cache.classes[k]: best_threshold(score[:, k], present[:, k]) for k in known}
    return Gate(thresholds, fallback)


def opens(gate: Gate, event_label: str, tag: float) -> bool:
    """Whether the gate lets a class through in a clip of this clip-level score."""
    return tag > gate.thresholds.get(event_label, gate.fallback)


def open_pairs(gate: Gate, cache: Cache) -> np.ndarray:
    """(P,) bool: pairs that the gate lets through. InputError where the cache has no tags."""
    score, _ = clip_tags(cache)
    row = {clip.filename: i for i, clip in enumerate(cache.clips)}
    column = {name: k for k, name in enumerate(cache.classes)}
    tags = [score[row[pair.filename], column[pair.event_label]] for pair in cache.pairs]
    return np.array(
        [opens(gate, p.event_label, tag) for p, tag in zip(cache.pairs, tags, strict=True)], bool
    )


def behind(gate: Gate, cache: Cache, pred: np.ndarray) -> np.ndarray:
    """Decisions (N,) with every closed pair off."""
    return pred & cache.of_frames(open_pairs(gate, cache))


def silenced(gate: Gate, cache: Cache) -> Cache:
    """The cache with score and probability of closed pairs at 0, for rules behind the gate: no
    threshold above 0 switches them on. InputError where the cache has no tags."""
    opened, names = open_pairs(gate, cache), ("d_raw", "d_adj", "prob")
    if isinstance(cache.signals, Stored):
        return replace(cache, signals=cache.signals.silenced(names, ~opened))
    some = {name: cache.of_frames(opened) * cache.signals[name] for name in names}
    return replace(cache, signals=cache.signals | some)


def tagging(gate: Gate, cache: Cache) -> dict[str, float | int]:
    """Precision, recall and F1 of the gate over all clips and classes of a cache."""
    score, present = clip_tags(cache)
    opened = np.array(
        [[opens(gate, *cell) for cell in zip(cache.classes, row, strict=True)] for row in score]
    ).reshape(present.shape)
    cells = (opened & present, opened & ~present, ~opened & present, ~opened & ~present)
    tp, fp, fn, tn = (int(cell.sum()) for cell in cells)
    return {
        "precision": tp / (tp + fp) if tp + fp else 1.0,  # nothing said, nothing wrong
        "recall": tp / (tp + fn) if tp + fn else 1.0,
        "f1": float(scores_of(Counts(tp, fp, fn, tn))["f1"]),
        "clips": len(cache.clips),
    }
