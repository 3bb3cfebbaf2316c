"""Rules to hold a policy against, tuned on the training cache only; stored as JSON, repeatable.

Shapes: N frames of all pairs, P pairs, C classes, G thresholds of the grid, K settings, R runs;
        Q rows of counts: classes, or the pairs where each counts by itself

Two rules are older post-processing of the field (Cances, Guyot, Pellegrini, "Evaluation of
Post-Processing Algorithms for Polyphonic Sound Event Detection", WASPAA 2019, arXiv 1906.06909):
a threshold from a clip's own statistics (there the mean of each class's scores in the file, here
the mean plus k standard deviations), and onsets and offsets by the slope of the score.

All rules are tuned for one operating point, on one grid of thresholds, by trying every setting.

- `present`: mean over the present pairs of the frame F1 (the slides' protocol);
- `all`: macro F1, the mean over classes of the F1 of a class's frames in all clips together. Needs
  a cache of all pairs.

Who is judged by events is tuned for events: every kind with a filter or durations, on raw and
adjusted scores, once more for event F1 and intersection F1; on raw scores over all pairs cSEBBs and
the median filter for each PSDS too: the other kinds rank nothing over clips. Over all pairs the
kinds that a tag gate may help are tuned once more behind it: on a cache whose closed pairs are
silent.

Counts of some pairs add up to those of all: over all pairs a rule is tuned on the parts of a cache,
one after the other (`Cache.parts`), so that memory does not grow with the clips.

A rule has a setting for each class, and one for all classes together, which a class falls back on
that is not in the training clips. Of equally good settings the first of the grid wins: the lowest
threshold, the shortest filter.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from baselines.csebbs import FILTERS_S, MERGE, boxes_of
from config import Bandit
from core.errors import InputError
from core.processes import process_pool
from policy.bandit import decide, shift
from sed.caches import Cache
from sed.candidates import find_changes, first_frame, merge, running_sum
from sed.event_metrics import Changes, Regions, Sweep
from sed.metrics import Counts, counts_in, f1_score, macro_average
from sed.signals import filter_frames, median
from sed.timeline import seconds_at

Point = Literal["present", "all"]
Setting = dict[str, Any]  # values of one rule's parameters, ready for JSON

# Thresholds of all rules: even in steps of 0.01 for signals that fill 0..1, and even on the logit
# scale for raw scores, where rare classes live below 0.01.
_LOGITS = np.linspace(np.log(0.0005 / 0.9995), np.log(0.99 / 0.01), 70)
GRID = np.unique(
    np.concatenate((1 / (1 + np.exp(-_LOGITS)), np.arange(1, 100) / 100)).round(6)
).astype(np.float32)
MEDIAN_S = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)  # lengths of the median filter; 0 is none
MIN_ON_S = MIN_OFF_S = (0.0, 0.1, 0.25, 0.5)  # shortest event, shortest pause
ROWS = 1000  # pairs that are filtered at once
Z_SCORES = np.arange(-4, 25) / 4  # k, deviations above a pair's mean; no more than thresholds
Z_MEDIAN_S = (0.0, 0.3, 1.2)  # filter before them
SLOPE_S = (0.3, 0.6)  # length of the step filter that finds slopes
RISES = FALLS = (0.03, 0.1, 0.3)  # least change of the score over it
HIGHS = (0.4, 0.8)  # a score that is on without a slope
THINNED = 8  # hysteresis: every 8th threshold, besides the best plain thresholds
THINNED_EVENTS = 16  # the same where events are counted, which takes longer
MOST_COUNTS = 2_000_000  # settings times classes of hysteresis that are counted at once


class Rule(NamedTuple):
    """A tuned rule. `Rule(**rule._asdict())` through JSON decides the same.

    `kind` is the key of `DECIDE`, `on` the signal it reads; `params["classes"]` has the settings of
    single classes, `params["fallback"]` that of all others; `metric`, what it was tuned for where
    that is not the operating point's figure; `gated`: tuned behind a tag gate, for a cache whose
    closed pairs are silent (`policy.gate.silenced`).
    """

    name: str
    kind: str
    on: str
    setting: str
    params: dict[str, Any]
    metric: str = ""
    gated: bool = False


class Yardstick(NamedTuple):
    """A rule and its decisions on the evaluated cache, (N,) bool."""

    rule: Rule
    pred: np.ndarray


def class_of_pair(cache: Cache) -> np.ndarray:
    """(P,) label of each pair."""
    return np.array([pair.event_label for pair in cache.pairs])


def frame_s_of_pair(cache: Cache) -> np.ndarray:
    """(P,) frame length of each pair in seconds."""
    return np.array([pair.frame_s for pair in cache.pairs])


def pieces(cache: Cache, values: np.ndarray) -> list[np.ndarray]:
    """(N,) -> the (T,) of each pair, as views."""
    return np.split(values, cache.offsets[1:-1])


# ---------------------------------------------------------------------------- what is maximised


class Block:
    """Pairs that are counted at once: the cache of them, `first` (their place among all) and the
    row (P,) that each is counted in, of `num_rows`."""

    def __init__(self, cache: Cache, first: int, row: np.ndarray, num_rows: int) -> None:
        self.cache, self.first, self.row, self.num_rows = cache, first, row, num_rows
        self.before = running_sum(cache.label)  # (N + 1,) true frames before each frame
        true = np.diff(self.before[cache.offsets])
        self.positives = np.bincount(row, true, num_rows)  # (Q,) true frames

    def _sums(self, row: np.ndarray, *counts: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(row, each, self.num_rows)[:, None] for each in counts])

    def of_runs(self, runs: "Runs") -> np.ndarray:
        """True positives and frames on, (2, Q, 1)."""
        true = self.before[runs.end] - self.before[runs.begin]
        return self._sums(self.row[runs.pair], true, runs.end - runs.begin)

    def of_frames(self, pred: np.ndarray) -> np.ndarray:
        """The same of decisions (N,)."""
        on = running_sum(pred & self.cache.label), running_sum(pred)
        return self._sums(self.row, *(np.diff(each[self.cache.offsets]) for each in on))

    def of_signal(self, score: np.ndarray) -> np.ndarray:
        """The same of `score > t`, (2, Q, G)."""
        row = self.cache.of_frames(self.row)
        return counts_over_grid(score, self.cache.label, row, self.num_rows)

    def of_boxes(self, boxes: "PairBoxes") -> np.ndarray:
        """The same of the boxes of each pair above each threshold, (2, Q, G)."""
        first = self.cache.offsets[boxes.pair]
        begin, end = (first + first_frame(side) for side in (boxes.begin, boxes.end))
        cell, row = below(boxes.confidence), self.row[boxes.pair]
        counts = self.before[end] - self.before[begin], end - begin
        return np.stack([table_over_grid(row, cell, each, self.num_rows) for each in counts])


class Objective:
    """Counts of many settings at once -> the figure to maximise, of each class and of all."""

    def __init__(self, cache: Cache, point: Point) -> None:
        if point == "all" and cache.queries != "all":
            raise InputError(
                f"{cache.folder} has present pairs only: rules cannot be tuned on all pairs;"
                " run: python preprocess.py --pairs all"
            )
        self.cache, self.point = cache, point
        present = cache.present
        if not present.any():
            raise InputError(
                f"{cache.folder}: no clip has an event, so there is nothing to tune on"
            )
        labels = class_of_pair(cache)
        counted = np.flatnonzero(present if point == "present" else np.ones_like(present))
        self._rows = counted[np.argsort(labels[counted], kind="stable")]
        self._names, self._first = np.unique(labels[self._rows], return_index=True)
        self._seen = set(labels[present].tolist())
        self._labels, self._only = labels, None
        self.positives = added(block.positives for block in self.blocks())

    def blocks(self) -> Iterator[Block]:
        """All pairs, some at a time. Over present pairs each counts by itself: all at once."""
        if self._only is not None:
            yield self._only
            return
        whole, first = self.point == "present", 0
        for part in [self.cache] if whole else self.cache.parts():
            count = len(part.pairs)
            some = self._labels[first : first + count]
            rows = (np.arange(count), count)
            if not whole:
                rows = np.searchsorted(self._names, some), len(self._names)
            block = Block(part, first, *rows)
            if count == len(self.cache.pairs):
                self._only = block  # made once
            yield block
            first += count

    def values(self, counts: np.ndarray) -> np.ndarray:
        """True positives and frames that are on, (2, Q, K), of all blocks -> (C + 1, K): each
        class, then all."""
        cells = (*counts, self.positives[:, None])
        if self.point == "present":
            cells = tuple(cell[self._rows] for cell in cells)
        tp, on, positives = cells
        f1 = f1_score(tp, on - tp, positives - tp)
        if self.point == "all":
            return np.vstack((f1, macro_average(f1, on + positives > 0, axis=0)))
        pairs = np.diff(self._first, append=len(self._rows))[:, None]
        return np.vstack((np.add.reduceat(f1, self._first) / pairs, f1.mean(0)))

    def tune(self, settings: list[Setting], values: np.ndarray) -> dict[str, Any]:
        """Settings (K,) with their values (C + 1, K) -> the best of each class and of all."""
        return self.params(Best().add(settings, values))

    def params(self, best: "Best") -> dict[str, Any]:
        """Parameters of the best settings."""
        classes = dict(zip(self._names.tolist(), best.settings[:-1], strict=True))
        seen = {name: setting for name, setting in classes.items() if name in self._seen}
        return {"fallback": best.settings[-1], "classes": seen}


class Best:
    """The best setting so far, of each class and of all; of equals the first."""

    def __init__(self) -> None:
        self.settings: list[Setting] = []
        self.values = np.zeros(0)

    def add(self, settings: list[Setting], values: np.ndarray) -> "Best":
        """Settings (K,) with their values (C + 1, K)."""
        best, rows = values.argmax(axis=1), np.arange(len(values))
        found = values[rows, best]
        if not self.settings:
            self.settings, self.values = [settings[k] for k in best], found
        for row in np.flatnonzero(found > self.values):
            self.settings[row], self.values[row] = settings[best[row]], found[row]
        return self


def added(parts: Iterable[Any]) -> Any:
    """The sum of what blocks count: of arrays or `Trials`, or of each in a list or dictionary."""
    return reduce(_plus, parts)


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {name: _plus(each, other[name]) for name, each in one.items()}
    if isinstance(one, list):
        return [_plus(*each) for each in zip(one, other, strict=True)]
    return one + other


def side_by_side(counts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Counts of settings, by metric, (2, Q, 1) each -> (2, Q, K)."""
    found: dict[str, list[np.ndarray]] = {}
    for each in counts:
        for name, count in each.items():
            found.setdefault(name, []).append(count)
    return {name: np.concatenate(each, axis=-1) for name, each in found.items()}


# ---------------------------------------------------------------------------- thresholds


def below(score: np.ndarray) -> np.ndarray:
    """How many thresholds of the grid lie strictly below each score: on for those."""
    return np.searchsorted(GRID, score, side="left")


def table_over_grid(row: np.ndarray, cell: np.ndarray, weight: Any, num_rows: int) -> np.ndarray:
    """Weight that is on at each threshold, (rows, G), of items that are on for the first `cell`."""
    size = len(GRID) + 1
    found = np.bincount(row * size + cell, weight, num_rows * size).reshape(num_rows, size)
    return found[:, ::-1].cumsum(1)[:, ::-1][:, 1:]


def counts_over_grid(
    score: np.ndarray, label: np.ndarray, row: np.ndarray, num_rows: int
) -> np.ndarray:
    """True positives and frames that are on, (2, Q, G), of `score > t`, thresholds in one pass;
    `row` (N,) is what each frame is counted in."""
    cell = below(score)
    tp = table_over_grid(row[label], cell[label], None, num_rows)
    return np.stack((tp, table_over_grid(row, cell, None, num_rows)))


def f1_over_grid(cache: Cache, score: np.ndarray) -> np.ndarray:
    """F1 of `score > t` for each pair and threshold, (P, G)."""
    tp, on = counts_over_grid(score, cache.label, cache.frames_of_pair, len(cache.pairs))
    positives = np.add.reduceat(cache.label.astype(np.int64), cache.offsets[:-1])[:, None]
    return f1_score(tp, on - tp, positives - tp)


def thresholds_of(**others: Any) -> list[Setting]:
    """One setting for each threshold of the grid."""
    return [{"t": float(t), **others} for t in GRID]


def tune_thresholds(aim: Objective, on: str) -> dict[str, Any]:
    """Best threshold of each class and of all together."""
    counts = added(block.of_signal(block.cache.signals[on]) for block in aim.blocks())
    return aim.tune(thresholds_of(), aim.values(counts))


# ---------------------------------------------------------------------------- median filter


def smoothed(cache: Cache, on: str, seconds: np.ndarray) -> np.ndarray:
    """A signal (N,) after a median filter of its own length for each pair, `seconds` (P,)."""
    score, frame_s = cache.signals[on], frame_s_of_pair(cache)
    out, length = np.empty_like(score), np.diff(cache.offsets)
    size = [filter_frames(*each) for each in zip(seconds, frame_s, strict=True)]
    alike = np.unique(np.stack([length, size], axis=1), axis=0, return_inverse=True)
    for i, (num_frames, frames) in enumerate(alike[0]):
        rows = np.flatnonzero(alike[1].ravel() == i)
        for some in np.split(rows, range(ROWS, len(rows), ROWS)):
            at = cache.offsets[some][:, None] + np.arange(num_frames)
            out[at] = median(score[at], frames)  # a filter of 1 changes nothing
    return out


# ---------------------------------------------------------------------------- clip statistics


def z_scores(cache: Cache, score: np.ndarray) -> np.ndarray:
    """A signal (N,) in standard deviations from its mean over each pair; below all in a flat pair,
    which has no event that stands out."""
    first, owner, length = cache.offsets[:-1], cache.frames_of_pair, np.diff(cache.offsets)
    mean = np.add.reduceat(score, first, dtype=np.float64) / length
    away = score - mean[owner]
    std = np.sqrt(np.add.reduceat(away**2, first) / length)
    flat = std <= 1e-9 * np.abs(mean)  # what is left is the mean's rounding error
    std[flat] = 1
    return np.where(flat[owner], -np.inf, away / std[owner])


def all_z_scores(cache: Cache, on: str) -> Iterator[tuple[Setting, np.ndarray]]:
    """The z-scores (N,) after each median filter, as a signal that exceeds as many thresholds of
    the grid as there are k below."""
    for seconds in Z_MEDIAN_S:
        score = smoothed(cache, on, np.full(len(cache.pairs), seconds))
        steps = np.searchsorted(Z_SCORES, z_scores(cache, score).round(9), side="left")
        yield {"median_s": seconds}, np.append(GRID, np.float32(1))[steps]


# ---------------------------------------------------------------------------- hysteresis


class Runs(NamedTuple):
    """Stretches that are on: frames [begin, end) and pair, each (R,)."""

    begin: np.ndarray
    end: np.ndarray
    pair: np.ndarray


def runs_between(up: np.ndarray, down: np.ndarray, offsets: np.ndarray) -> Runs:
    """Read forward: on from a frame that is `up` until one that is `down`, (N,) bool each.

    Off before the first such frame of a pair. No frame is both.
    """
    first = np.zeros(len(up) + 1, bool)
    first[offsets] = True
    at = np.flatnonzero(up | down | first[:-1])
    on, fresh = up[at], first[at]
    was_on = np.concatenate(([False], on[:-1]))
    begin, end = at[on & (fresh | ~was_on)], at[was_on & (fresh | ~on)]
    if on[-1]:
        end = np.append(end, offsets[-1])
    return Runs(begin, end, np.searchsorted(offsets, begin, side="right") - 1)


def filled(runs: Runs, min_off: np.ndarray) -> Runs:
    """Runs with pauses shorter than `min_off` frames (P,) taken as on."""
    apart = np.ones(len(runs.pair) + 1, bool)
    pause = runs.begin[1:] - runs.end[:-1]
    apart[1:-1] = (runs.pair[1:] != runs.pair[:-1]) | (pause >= min_off[runs.pair[1:]])
    return Runs(runs.begin[apart[:-1]], runs.end[apart[1:]], runs.pair[apart[:-1]])


def long_enough(runs: Runs, min_on: np.ndarray) -> Runs:
    """Runs without those shorter than `min_on` frames (P,)."""
    keep = runs.end - runs.begin >= min_on[runs.pair]
    return Runs(*(part[keep] for part in runs))


def frames_of_runs(runs: Runs, num_frames: int) -> np.ndarray:
    """Runs -> (N,) bool."""
    step = np.zeros(num_frames + 1, np.int8)
    step[runs.begin] += 1
    step[runs.end] -= 1
    return step[:-1].cumsum(dtype=np.int8).astype(bool)


def in_frames(seconds: np.ndarray | float, frame_s: np.ndarray) -> np.ndarray:
    """Durations in frames (P,), not rounded: 0.1 s is more than 5 frames of 18 ms, less than 6."""
    return seconds / frame_s - 1e-6


def durations() -> list[Setting]:
    """Every pair of minimum durations."""
    return [{"min_off_s": off, "min_on_s": on} for off in MIN_OFF_S for on in MIN_ON_S]


def under_durations(runs: Runs, frame_s: np.ndarray) -> Iterator[Runs]:
    """Runs under each of `durations`."""
    for min_off in MIN_OFF_S:
        closed = filled(runs, in_frames(min_off, frame_s)) if min_off else runs
        for min_on in MIN_ON_S:
            yield long_enough(closed, in_frames(min_on, frame_s)) if min_on else closed


def hysteresis_levels(plain: dict[str, Any], thinned: int) -> list[int]:
    """Thresholds by index into the grid: every so many, and the best plain ones (parameters of the
    plain rule)."""
    best = [plain["fallback"], *plain["classes"].values()]
    levels = {int(np.searchsorted(GRID, np.float32(setting["t"]))) for setting in best}
    return sorted(levels | set(range(0, len(GRID), thinned)))


def tune_hysteresis(
    on: str, aim: Objective, events: "EventObjective | None" = None
) -> dict[str, dict[str, Any]]:
    """Best onset and offset threshold and minimum durations of each class, as `tune_settings` has
    them; it ranks nothing: no PSDS.

    Never worse on the training clips than the best plain threshold, which is among the settings.
    For events fewer pairs of thresholds are tried, all plain thresholds, and what is best for the
    operating point.
    """
    plain = tune_thresholds(aim, on)
    levels = hysteresis_levels(plain, THINNED)
    steps = [(k, k) for k in range(len(GRID))] + [(a, b) for a in levels for b in levels if b < a]
    few = set(hysteresis_levels(plain, THINNED_EVENTS)) if events else set()
    best = {name: Best() for name in ("", *(EVENT_F1 if events else ()))}

    def judge(settings: list[Setting], counts: dict[str, np.ndarray]) -> None:
        for name, count in counts.items():
            best[name].add(settings, events.values(count, name) if name else aim.values(count))

    def settings_of(some: list[tuple[int, int]]) -> list[Setting]:
        ends = ({"onset": float(GRID[a]), "offset": float(GRID[b])} for a, b in some)
        return [both | least for both in ends for least in durations()]

    if events:
        never = {"min_off_s": 0.0, "min_on_s": 0.0}
        same = [{"onset": float(t), "offset": float(t), **never} for t in GRID]
        signals = ((block, block.cache.signals[on]) for block in aim.blocks())
        judge(same, added(events.of_signal(*each, EVENT_F1) for each in signals))
    size = max(1, MOST_COUNTS // (len(durations()) * len(aim.positives)))
    for first in range(0, len(steps), size):
        some = steps[first : first + size]
        asked = [step for step in some if few.issuperset(step)]
        found = added(count_hysteresis(each, on, some, asked, events) for each in aim.blocks())
        judge(settings_of(some), {"": found.pop("")})
        judge(settings_of(asked), found)
    if events:
        point = aim.params(best[""])
        settings = [point["fallback"], *point["classes"].values()]
        rules = [tuned_rule("", "hysteresis", on, of_all(setting)) for setting in settings]

        def of_rules(block: Block) -> Iterator[dict[str, np.ndarray]]:
            score = block.cache.signals[on]
            for rule in rules:
                yield events.of_runs(block, runs_of_hysteresis(rule, block.cache, score))

        judge(settings, added(side_by_side(of_rules(block)) for block in aim.blocks()))
    return {name: (events if name else aim).params(each) for name, each in best.items()}


def count_hysteresis(
    block: Block,
    on: str,
    steps: list[tuple[int, int]],
    few: list[tuple[int, int]],
    events: "EventObjective | None",
) -> dict[str, np.ndarray]:
    """Counts of pairs of thresholds, by index into the grid, under all `durations`: of frames by
    "", and of `few` of the pairs for each event metric, (2, Q, K)."""
    cell = below(block.cache.signals[on]).astype(np.uint8)
    # Only where a pair begins or the cell changes can anything be switched.
    fresh = np.append(True, cell[1:] != cell[:-1])
    fresh[block.cache.offsets[:-1]] = True
    at = np.append(np.flatnonzero(fresh), len(cell))
    cell, offsets = cell[at[:-1]], np.searchsorted(at, block.cache.offsets)
    frame_s, chosen = frame_s_of_pair(block.cache), set(few)
    known: dict[int, dict[str, np.ndarray]] = {}  # by hashes of runs that were counted by events

    def counts() -> Iterator[dict[str, np.ndarray]]:
        for onset, offset in steps:
            runs = runs_between(cell > onset, cell <= offset, offsets)
            runs = runs._replace(begin=at[runs.begin], end=at[runs.end])
            for kept in under_durations(runs, frame_s):
                found = {"": block.of_runs(kept)}
                if (onset, offset) in chosen:
                    key = hash(tuple(part.tobytes() for part in kept))
                    if key not in known:
                        known[key] = events.of_runs(block, kept)
                    found |= known[key]
                yield found

    return side_by_side(counts())


# ---------------------------------------------------------------------------- slopes


def slopes(cache: Cache, score: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Change of a signal (N,) at the beginning of each frame: its mean over half the filter from
    there on minus that over half before; `seconds` (P,) is the filter's length.

    Outside the clip scores are 0, as in `candidates.find_changes`.
    """
    lengths = zip(seconds, frame_s_of_pair(cache), strict=True)
    size = [filter_frames(*each, 2, odd=False) for each in lengths]
    owner, here, total = cache.frames_of_pair, np.arange(len(score)), running_sum(score)
    half = np.array(size)[owner] // 2
    before = total[np.maximum(here - half, cache.offsets[:-1][owner])]
    after = total[np.minimum(here + half, cache.offsets[1:][owner])]
    return ((before - 2 * total[here] + after) / half).round(9)


def runs_of_slopes(
    cache: Cache, score: np.ndarray, slope: np.ndarray, rise: Any, fall: Any, high: Any
) -> Runs:
    """On from a slope above `rise` or a score above `high` until a slope below -`fall` where
    neither is; a number, or (N,) one for each frame."""
    up = (score > high) | (slope > rise)
    return runs_between(up, ~up & (slope < -fall), cache.offsets)


def tune_slopes(
    on: str, aim: Objective, events: "EventObjective | None" = None
) -> dict[str, dict[str, Any]]:
    """Best settings of the slope rule, as `tune_settings` has them; it ranks nothing: no PSDS."""
    names = ("slope_s", "rise", "fall", "high")
    tried = list(product(SLOPE_S, RISES, FALLS, HIGHS))

    def counts(block: Block) -> Iterator[dict[str, np.ndarray]]:
        cache, score = block.cache, block.cache.signals[on]
        for slope_s in SLOPE_S:
            slope = slopes(cache, score, np.full(len(cache.pairs), slope_s))
            for limits in product(RISES, FALLS, HIGHS):
                runs = runs_of_slopes(cache, score, slope, *limits)
                yield {"": block.of_runs(runs)} | (events.of_runs(block, runs) if events else {})

    found, tuned = added(side_by_side(counts(block)) for block in aim.blocks()), {}
    settings = [dict(zip(names, each, strict=True)) for each in tried]
    for name, each in found.items():
        whose = events if name else aim
        values = events.values(each, name) if name else aim.values(each)
        tuned[name] = whose.tune(settings, values)
    return tuned


# ---------------------------------------------------------------------------- cSEBBs


class PairBoxes(NamedTuple):
    """Boxes of all pairs: pair, positions within it, mean score, (B,) each."""

    pair: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    confidence: np.ndarray


def all_boxes(cache: Cache, on: str) -> Iterator[tuple[Setting, PairBoxes]]:
    """The boxes of every pair under every setting of filter and merging."""
    scores = pieces(cache, cache.signals[on])
    for filter_s in FILTERS_S:
        changes = [
            find_changes(score, filter_s / 2 / pair.frame_s)
            for pair, score in zip(cache.pairs, scores, strict=True)
        ]
        settings = [(by, limit) for by, limits in MERGE.items() for limit in limits]
        every = [merge(score, *ends, settings) for score, ends in zip(scores, changes, strict=True)]
        for (by, limit), boxes in zip(settings, zip(*every, strict=True), strict=True):
            pair = np.repeat(np.arange(len(boxes)), [len(each.begin) for each in boxes])
            parts = (np.concatenate(part) for part in zip(*boxes, strict=True))
            yield {"filter_s": filter_s, "by": by, "limit": limit}, PairBoxes(pair, *parts)


# ---------------------------------------------------------------------------- events


EVENT_F1 = ("event_f1", "intersection_f1")


class EventObjective:
    """Regions that thresholds switch on -> event metrics at every threshold, of each class."""

    def __init__(self, cache: Cache, ranked: bool = True) -> None:
        """`ranked`: the PSDS too, where all pairs are there."""
        self.cache, self.names = cache, cache.classes
        self.sweep = Sweep(cache.truth, cache.durations, cache.classes)
        numbers = {clip.filename: i for i, clip in enumerate(cache.clips)}
        self.clip = np.array([numbers[pair.filename] for pair in cache.pairs])
        labels = {name: k for k, name in enumerate(cache.classes)}
        self.label = np.array([labels[pair.event_label] for pair in cache.pairs])
        self.length = np.array([clip.duration_s for clip in cache.clips])[self.clip]  # (P,) s
        self.grid = np.array([(pair.frame_s, pair.start_s) for pair in cache.pairs]).T  # (2, P)
        self.metrics = [*EVENT_F1]
        # Over present pairs a clip is asked for what it has, and nothing is ranked.
        if ranked and cache.queries == "all":
            self.metrics += ["psds1", "psds2"]

    def regions_of_boxes(self, boxes: PairBoxes, first: int = 0) -> Regions:
        """Boxes with the number of thresholds below their confidence as level; their pairs count
        from `first`."""
        pair = boxes.pair + first
        grid, last = self.grid[:, pair], self.length[pair]
        times = [np.minimum(seconds_at(side, *grid), last) for side in (boxes.begin, boxes.end)]
        level = below(boxes.confidence).astype(np.float64)
        some = (level > 0) & (times[0] < times[1])
        which = self.clip[pair], self.label[pair]
        return self.sweep.of_boxes(*(part[some] for part in (*which, *times, level)))

    def regions_of_signal(self, cache: Cache, score: np.ndarray, first: int = 0) -> Regions:
        """A signal (N,) of some pairs with the number of thresholds below it as level."""
        level = below(score).astype(np.float64)
        level[level == 0] = -np.inf  # on at no threshold
        parts, mine = pieces(cache, level), slice(first, first + len(cache.pairs))

        def rows() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
            for i in np.lexsort((self.label[mine], self.clip[mine])):
                pair, last = first + i, self.length[first + i]
                edges = np.minimum(cache.pairs[i].edges, last)
                fresh = np.flatnonzero(np.append(True, parts[i][1:] != parts[i][:-1]))
                fresh = fresh[edges[fresh] < last]
                times = edges[np.append(fresh, len(edges) - 1)]
                yield self.clip[pair], self.label[pair], parts[i][fresh], times

        return self.sweep.of_scores(rows())

    def of_runs(self, block: Block, runs: Runs) -> dict[str, np.ndarray]:
        """Counts (2, C, 1) by metric; runs are on at every threshold."""
        first = block.cache.offsets[runs.pair]
        ends = runs.begin - first, runs.end - first
        boxes = PairBoxes(runs.pair, *ends, np.ones(len(first)))
        regions, found = self.regions_of_boxes(boxes, block.first), {}
        for name in EVENT_F1:
            each = [(x.label, x.change) for x in getattr(self.sweep, name)(regions)]
            counts = [np.bincount(*changes, len(self.names)) for changes in each]
            found[name] = np.stack(counts)[..., None]
        return found

    def of_boxes(self, block: Block, boxes: PairBoxes, metrics: Iterable[str]) -> dict[str, Any]:
        """What `counts` has of the boxes of a block."""
        return self.counts(self.regions_of_boxes(boxes, block.first), metrics)

    def of_signal(self, block: Block, score: np.ndarray, metrics: Iterable[str]) -> dict[str, Any]:
        """What `counts` has of a signal (N,) of a block."""
        return self.counts(self.regions_of_signal(block.cache, score, block.first), metrics)

    def counts(self, regions: Regions, metrics: Iterable[str]) -> dict[str, Any]:
        """By metric what adds up over regions: true positives and all that is on, (2, C, G), of
        each class at each threshold; the trials of a PSDS."""
        found = {}
        for name in metrics:
            if name.startswith("psds"):
                found[name] = self.sweep.trials(regions, int(name[-1])).summed()
            else:
                each = getattr(self.sweep, name)(regions)
                found[name] = np.stack([self.at_thresholds(changes) for changes in each])
        return found

    def values(self, counts: Any, metric: str) -> np.ndarray:
        """(C + 1, K) of each class, then of all; a PSDS needs no threshold and is the same at all,
        that of all being the mean over classes."""
        true = self.sweep.number
        if metric.startswith("psds"):
            area = self.sweep.psds_of(counts, int(metric[-1])).per_class
            each = np.array([area.get(name, 0.0) for name in self.names])
            each = np.append(each, each[true > 0].mean())
            return np.repeat(each[:, None], len(GRID), axis=1)
        tp, on = counts
        f1 = f1_score(tp, on - tp, true[:, None] - tp)
        return np.vstack((f1, macro_average(f1, on + true[:, None] > 0, axis=0)))

    def at_thresholds(self, changes: Changes) -> np.ndarray:
        """A count of each class at each threshold, (C, G)."""
        cell = changes.level.astype(np.int64)
        return table_over_grid(changes.label, cell, changes.change, len(self.names))

    def tune(self, settings: list[Setting], values: np.ndarray) -> dict[str, Any]:
        """Settings (K,) with their values (C + 1, K) -> the best of each class and of all."""
        return self.params(Best().add(settings, values))

    def params(self, best: Best) -> dict[str, Any]:
        """Parameters of the best settings."""
        seen = zip(self.names, best.settings[:-1], self.sweep.number > 0, strict=True)
        classes = {name: setting for name, setting, some in seen if some}
        return {"fallback": best.settings[-1], "classes": classes}


def all_smoothed(cache: Cache, on: str) -> Iterator[tuple[Setting, np.ndarray]]:
    """The signal (N,) after every median filter."""
    for seconds in MEDIAN_S:
        yield {"median_s": seconds}, smoothed(cache, on, np.full(len(cache.pairs), seconds))


SEARCHED = {"csebbs": all_boxes, "median": all_smoothed, "z-score": all_z_scores}


def tune_settings(
    kind: str, on: str, aim: Objective, events: EventObjective | None = None
) -> dict[str, dict[str, Any]]:
    """Settings of cSEBBs, the median filter or z-scores, each of them looked at once: by "" those
    for the operating point, and with `events` by metric those tuned for each event metric.

    The threshold of a rule tuned for PSDS, which ranks and decides nothing, is that of the highest
    intersection F1 under the same setting.
    """
    few = kind == "z-score" or on != "d_raw"
    metrics = [] if events is None else EVENT_F1 if few else events.metrics
    boxed = kind == "csebbs"

    def counts(block: Block) -> Iterator[tuple[Setting, dict[str, Any]]]:
        for setting, found in SEARCHED[kind](block.cache, on):
            each = {"": block.of_boxes(found) if boxed else block.of_signal(found)}
            if events:
                each |= (events.of_boxes if boxed else events.of_signal)(block, found, metrics)
            yield setting, each

    searched: list[Setting] = []

    def of_block(block: Block) -> list[dict[str, Any]]:
        searched[:], found = zip(*counts(block), strict=True)
        return list(found)

    settings, values = [], {name: [] for name in ("", *metrics)}
    totals = added(map(of_block, aim.blocks()))
    for setting, total in zip(searched, totals, strict=True):
        some = thresholds_of(**setting)
        if kind == "z-score":
            some = [{"k": float(k), **setting} for k in Z_SCORES]
        settings += some
        for name, each in total.items():
            value = events.values(each, name) if name else aim.values(each)
            values[name].append(value[:, : len(some)])
    tuned = {"": aim.tune(settings, np.hstack(values.pop("")))}
    for name in values:
        value = np.hstack(values[name])
        if name.startswith("psds"):  # the smallest difference of a PSDS counts for more than all F1
            value = np.unique(value, return_inverse=True)[1].reshape(value.shape)
            value = 2 * value + np.hstack(values["intersection_f1"])
        tuned[name] = events.tune(settings, value)
    return tuned


# ---------------------------------------------------------------------------- deciding


def setting_of(rule: Rule, event_label: str) -> Setting:
    """The setting that a rule uses for a class."""
    return rule.params["classes"].get(event_label, rule.params["fallback"])


def spread(rule: Rule, cache: Cache, name: str) -> np.ndarray:
    """(P,) float32 value of a parameter for each pair."""
    return np.array([setting_of(rule, pair.event_label)[name] for pair in cache.pairs], np.float32)


def above(rule: Rule, cache: Cache, name: str, score: np.ndarray) -> np.ndarray:
    """(N,) bool: score above a threshold of the rule."""
    return score > spread(rule, cache, name)[cache.frames_of_pair]


def decide_constant(rule: Rule, cache: Cache) -> np.ndarray:
    return np.full(cache.num_frames, rule.params["fallback"]["on"])


def decide_threshold(rule: Rule, cache: Cache) -> np.ndarray:
    return above(rule, cache, "t", cache.signals[rule.on])


def after_median(rule: Rule, cache: Cache) -> np.ndarray:
    """The signal (N,) of a median rule after the filter of each class, before its threshold."""
    seconds = [setting_of(rule, pair.event_label)["median_s"] for pair in cache.pairs]
    return smoothed(cache, rule.on, np.array(seconds))


def decide_median(rule: Rule, cache: Cache) -> np.ndarray:
    return above(rule, cache, "t", after_median(rule, cache))


def decide_z_score(rule: Rule, cache: Cache) -> np.ndarray:
    return above(rule, cache, "k", z_scores(cache, after_median(rule, cache)).round(9))


def decide_slopes(rule: Rule, cache: Cache) -> np.ndarray:
    score, owner = cache.signals[rule.on], cache.frames_of_pair
    slope_s, rise, fall = (
        np.array([setting_of(rule, pair.event_label)[name] for pair in cache.pairs])
        for name in ("slope_s", "rise", "fall")
    )
    high, slope = spread(rule, cache, "high"), slopes(cache, score, slope_s)
    runs = runs_of_slopes(cache, score, slope, rise[owner], fall[owner], high[owner])
    return frames_of_runs(runs, len(score))


def runs_of_hysteresis(rule: Rule, cache: Cache, score: np.ndarray) -> Runs:
    """What a hysteresis rule switches on, by its signal (N,)."""
    frame_s = frame_s_of_pair(cache)
    up, down = above(rule, cache, "onset", score), ~above(rule, cache, "offset", score)
    runs = runs_between(up, down, cache.offsets)
    min_off, min_on = (
        in_frames(
            np.array([setting_of(rule, pair.event_label)[name] for pair in cache.pairs]), frame_s
        )
        for name in ("min_off_s", "min_on_s")
    )
    return long_enough(filled(runs, min_off), min_on)


def decide_hysteresis(rule: Rule, cache: Cache) -> np.ndarray:
    runs = runs_of_hysteresis(rule, cache, cache.signals[rule.on])
    return frames_of_runs(runs, cache.num_frames)


def decide_csebbs(rule: Rule, cache: Cache) -> np.ndarray:
    on = np.zeros(cache.num_frames, bool)
    for pair, score, part in zip(
        cache.pairs, pieces(cache, cache.signals[rule.on]), pieces(cache, on), strict=True
    ):
        setting = setting_of(rule, pair.event_label)
        boxes = boxes_of(score, pair.frame_s, setting)
        chosen = boxes.confidence > setting["t"]
        ends = (first_frame(side[chosen]) for side in (boxes.begin, boxes.end))
        for begin, end in zip(*ends, strict=True):
            part[begin:end] = True
    return on


def shifted(cache: Cache, delta: float) -> np.ndarray:
    """Decisions (N,) with the base threshold shifted by one constant everywhere."""
    return decide(cache.signals["prob"], shift(cache.signals["t_base"], delta))


def best_possible(cache: Cache, max_delta: float) -> np.ndarray:
    """Decisions (N,) of the best action per frame: the ceiling of any policy with these actions."""
    can_be_on, can_be_off = shifted(cache, -max_delta), ~shifted(cache, max_delta)
    return np.where(cache.label, can_be_on, ~can_be_off)


def decide_best_threshold(rule: Rule, cache: Cache) -> np.ndarray:
    """The best threshold of each pair by its own label; off where the class is not to be heard."""
    score = cache.signals[rule.on]
    best = GRID[f1_over_grid(cache, score).argmax(axis=1)]
    true = np.add.reduceat(cache.label.astype(np.int64), cache.offsets[:-1]) > 0
    return (score > best[cache.frames_of_pair]) & true[cache.frames_of_pair]


DECIDE: dict[str, Callable[[Rule, Cache], np.ndarray]] = {
    "constant": decide_constant,
    "threshold": decide_threshold,
    "median": decide_median,
    "z-score": decide_z_score,
    "hysteresis": decide_hysteresis,
    "slope": decide_slopes,
    "csebbs": decide_csebbs,
    "shift": lambda rule, cache: shifted(cache, rule.params["fallback"]["delta"]),
    "best action": lambda rule, cache: best_possible(cache, rule.params["fallback"]["max_delta"]),
    "best threshold": decide_best_threshold,
}


def decided(rule: Rule, cache: Cache) -> Iterator[np.ndarray]:
    """Decisions of a rule on each of a cache's parts: each pair is decided by itself."""
    return (DECIDE[rule.kind](rule, part) for part in cache.parts())


def decide_rule(rule: Rule, cache: Cache) -> np.ndarray:
    """Decisions (N,) bool of a rule on any cache."""
    return np.concatenate(list(decided(rule, cache)))


# ---------------------------------------------------------------------------- the rules

SETTING_TEXT = {
    "threshold": "{t:.4g}",
    "median": "{t:.4g} after {median_s:g} s",
    "z-score": "mean {k:+g} deviations after {median_s:g} s",
    "slope": "rise {rise:g} / fall {fall:g} in {slope_s:g} s or above {high:g}",
    "hysteresis": "on {onset:.4g} off {offset:.4g}, at least {min_on_s:g} / {min_off_s:g} s",
    "csebbs": "{t:.4g}, filter {filter_s:g} s, {by} {limit:g}",
}
EVENT_TITLES = {
    "event_f1": "event F1",
    "intersection_f1": "intersection F1",
    "psds1": "PSDS 1",
    "psds2": "PSDS 2",
}
QUICK_ON = ("d_raw", "d_adj", "prob")


def of_all(setting: Setting) -> dict[str, Any]:
    """Parameters of a rule with one setting for all classes."""
    return {"fallback": setting, "classes": {}}


def tuned_rule(name: str, kind: str, on: str, params: dict[str, Any]) -> Rule:
    """A rule with its settings in words."""
    text = SETTING_TEXT[kind]
    by_class = (f"{label} {text.format(**each)}" for label, each in params["classes"].items())
    setting = "; ".join(by_class) or "t = " + text.format(**params["fallback"])
    return Rule(name, kind, on, setting, params)


def fixed_rules() -> list[Rule]:
    """Rules that need no tuning."""
    rules = [
        Rule("all on", "constant", "", "", of_all({"on": True})),
        Rule("all off", "constant", "", "", of_all({"on": False})),
        Rule("T_base", "shift", "prob", "", of_all({"delta": 0.0})),
    ]
    half = of_all({"t": 0.5})
    return rules + [Rule(f"fixed 0.5 on {on}", "threshold", on, "", half) for on in QUICK_ON]


def threshold_rules(aim: Objective, on: str) -> list[Rule]:
    """One threshold for all classes, and one for each."""
    params = tune_thresholds(aim, on)
    single = of_all(params["fallback"])
    return [
        tuned_rule(f"best single threshold on {on}", "threshold", on, single),
        tuned_rule(f"best per-class threshold on {on}", "threshold", on, params),
    ]


def tune_kind(
    kind: str, on: str, aim: Objective, events: EventObjective | None = None
) -> dict[str, dict[str, Any]]:
    """Settings of a kind of `TUNED_FOR_EVENTS`, by metric as `tune_settings` has them."""
    of_runs = {"slope": tune_slopes, "hysteresis": tune_hysteresis}
    return (of_runs.get(kind) or partial(tune_settings, kind))(on, aim, events)


def rules_of_settings(
    name: str, kind: str, on: str, aim: Objective, events: EventObjective | None
) -> list[Rule]:
    """A kind of rule, tuned for the operating point, and with `events` for each event metric."""
    point, *others = tune_kind(kind, on, aim, events).items()
    rules = [tuned_rule(f"{name} on {on}", kind, on, point[1])]
    short = name.removesuffix(" + threshold")
    for metric, params in others:
        rule = tuned_rule(f"{short} on {on}, for {EVENT_TITLES[metric]}", kind, on, params)
        rules.append(rule._replace(metric=metric))
    return rules


def constant_action(aim: Objective, bandit: Bandit) -> Rule:
    """The one threshold shift that is best for all frames of the training cache."""
    settings = [{"delta": float(delta)} for delta in bandit.deltas]

    def counts(block: Block) -> Iterator[dict[str, np.ndarray]]:
        held = [block.cache.signals[name] for name in ("prob", "t_base")]  # read once
        for setting in settings:
            yield {"": block.of_frames(shifted(block.cache, setting["delta"]))}
        del held

    found = added(side_by_side(counts(block)) for block in aim.blocks())
    params = aim.tune(settings, aim.values(found[""]))
    best = params["fallback"]
    text = f"{best['delta']:+.2f} everywhere"
    return Rule("best constant action", "shift", "prob", text, of_all(best))


def ceilings(bandit: Bandit) -> list[Rule]:
    """What no policy with these actions, and no constant threshold in a pair, can exceed."""
    action = of_all({"max_delta": bandit.max_delta})
    within = f"labels known, within ±{bandit.max_delta:g}"
    threshold = "best threshold per pair on d_raw (ceiling)"
    return [
        Rule("best action per frame (ceiling)", "best action", "prob", within, action),
        Rule(threshold, "best threshold", "d_raw", "labels known", of_all({})),
    ]


TUNED_FOR_EVENTS = {
    "csebbs": "cSEBBs",
    "median": "median + threshold",
    "z-score": "z-score + threshold",
    "slope": "slope",
    "hysteresis": "hysteresis",
}
EVENTS_ON = ("d_raw", "d_adj")  # signals of these


class Tuning(NamedTuple):
    """What rules are tuned on, and the parts of it, longest first: they share nothing."""

    aim: Objective
    events: EventObjective | None = None  # tune for event metrics too
    bandit: Bandit = Bandit()

    def part(self, kind: str, on: str) -> list[Rule]:
        """The rules of one kind on one signal."""
        events = self.events if on in EVENTS_ON else None
        if kind in TUNED_FOR_EVENTS:
            return rules_of_settings(TUNED_FOR_EVENTS[kind], kind, on, self.aim, events)
        if kind == "threshold":
            return threshold_rules(self.aim, on)
        return [constant_action(self.aim, self.bandit)]


class Part(NamedTuple):
    """What is tuned at once."""

    kind: str
    on: str
    gated: bool = False  # behind the tag gate


# The longest first. Behind the gate: normalised signals have a peak in every clip, as z-scores
# have: without one they say that every class sounds; the others for a fair comparison.
PARTS = [Part("hysteresis", "d_adj"), Part("hysteresis", "d_adj", True)]
PARTS += [Part("hysteresis", "d_raw"), Part("median", "d_raw"), Part("csebbs", "d_raw")]
PARTS += [Part("median", "d_adj"), Part("csebbs", "d_raw", True), Part("median", "d_adj", True)]
PARTS += [Part("median", "prob"), Part("z-score", "d_raw"), Part("z-score", "d_raw", True)]
PARTS += [Part("shift", "prob"), Part("slope", "d_raw"), Part("slope", "d_raw", True)]
PARTS += [*(Part("threshold", on) for on in QUICK_ON), Part("threshold", "d_adj", True)]
ORDER = ("threshold", "z-score", "median", "hysteresis", "slope", "csebbs", "shift")  # in the list
WORK_OF_A_PROCESS = 500_000  # frames whose tuning takes longer than to start a process for them
_given: list[Any] = []  # of a process: what its parts are tuned on
_tunings: dict[bool, Tuning] = {}  # of it: bare and behind the gate, each made for its first part


def prepare(train: Cache, gated: Cache | None, bandit: Bandit, point: Point) -> None:
    """Give a process what parts of the tuning need."""
    _given[:] = train, gated, bandit, point
    _tunings.clear()


def tuned_part(part: Part) -> list[Rule]:
    """A part of the tuning that the process was given."""
    if part.gated not in _tunings:
        train, gated, bandit, point = _given
        cache = gated if part.gated else train
        events = EventObjective(cache, ranked=not part.gated)
        _tunings[part.gated] = Tuning(Objective(cache, point), events, bandit)
    rules = _tunings[part.gated].part(part.kind, part.on)
    return [rule._replace(gated=part.gated) for rule in rules]


@contextmanager
def tuning(
    train: Cache,
    bandit: Bandit,
    point: Point,
    quiet: bool = False,
    workers: int = 1,
    gated: Cache | None = None,
) -> Iterator[Callable[[], list[Rule]]]:
    """Every rule, tuned on the training cache for one operating point; `quiet`: no progress bar.

    `gated`: the training cache with closed pairs silent, for the rules behind the tag gate, which
    come last. At most `workers` processes share the work, each with the cache; no more
    than it is worth. They begin at once, so that the caller may do something else before it calls
    what it is given, which waits for the rules. That raises InputError where a cache of present
    pairs is to be tuned on all of them.
    """
    todo = [part for part in PARTS if gated is not None or not part.gated]
    workers = min(workers, len(todo), 1 + train.num_frames // WORK_OF_A_PROCESS)
    ready = partial(prepare, train, gated, bandit, point)
    with nullcontext(ready()) if workers == 1 else process_pool(workers, ready) as pool:
        found = map(tuned_part, todo) if pool is None else pool.map(tuned_part, todo)

        def tuned() -> list[Rule]:
            parts = list(tqdm(found, desc="Tuning", total=len(todo), unit="part", disable=quiet))
            _given.clear()
            _tunings.clear()
            rules = [rule for some in parts for rule in some]
            of = (*ORDER, *QUICK_ON).index
            rules.sort(key=lambda rule: (rule.metric != "", of(rule.kind), of(rule.on)))
            bare, behind = ([rule for rule in rules if rule.gated == on] for on in (False, True))
            return fixed_rules() + bare + ceilings(bandit) + behind

        yield tuned


QUICK = ("all on", *(f"fixed 0.5 on {on}" for on in QUICK_ON))


def yardsticks(cache: Cache, train: Cache | None, bandit: Bandit | None) -> list[Yardstick]:
    """The quick rules, tuned on present pairs; without a training cache those without tuning.

    `bandit`: of a policy that shifts the threshold, whose actions have a ceiling; None: of another.
    """
    rules = [rule for rule in fixed_rules() if rule.name in QUICK]
    if train is not None:
        aim = Objective(train.present_only(), "present")
        for on in QUICK_ON:
            rules += threshold_rules(aim, on)
        rules += [Tuning(aim).part(kind, "d_adj")[0] for kind in ("median", "hysteresis")]
        rules.append(constant_action(aim, bandit or Bandit()))
    if bandit is not None and bandit.max_delta < 1:  # 1: from end to end, nothing is out of reach
        rules += ceilings(bandit)[:1]
    return [Yardstick(rule, decide_rule(rule, cache)) for rule in rules]


def yardsticks_of_all(cache: Cache, train: Cache) -> Iterator[tuple[Rule, Counts]]:
    """The quick rules on raw scores, tuned over all pairs for macro-F1, with the counts of their
    decisions on the evaluated cache; InputError as `tuning`."""
    aim = Objective(train, "all")
    kinds = ("threshold", "median", "hysteresis", "csebbs")
    rules = [rule for kind in kinds for rule in Tuning(aim).part(kind, "d_raw")]
    return ((rule, counts_in(cache, decided(rule, cache))) for rule in rules)
