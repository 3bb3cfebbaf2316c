"""The policy over events: a contextual bandit that emits a box, another in its place, or nothing.

Run:    python DQN.py --preset best
Shapes: Q queries of a clip, T frames, R rows (see posterior.py), B boxes, F features of a box,
        V values of a box, M networks, K known classes

Context, actions, reward and decision are described in docs/policy.md; here is the derivation.

A class's F1 over all clips is 2 TP / N with N = predicted + true. A box more
that covers d frames, s of them true, changes the frame F1 by (2 s - F d) / (N + d), where F is the
F1 before; as one event more that matches a true one (h = 1) or none (h = 0) it changes the event F1
by (2 h - F) / (N + 1). Emitting nothing is worth 0. So a box is worth

    (2 S - F_f d) / N_f + (2 Q_c - F_c) / N_e + (2 Q_o - F_o) / N_e

with S the expected true frames, Q_c and Q_o the probabilities that it is a hit by collars and by
overlap, and F_f, F_c, F_o, N_f, N_e of its class: that is K times what it changes in the averages
over K classes. In the F1 of all frames together (micro) it changes (2 S - F_m d) / sum N_f, so that
K times it, (2 S - F_m d) / mean N_f, is added with a weight of its own.

Where one decision moves the metric little, a set of boxes is worth the sum. F and N depend on the
decisions and these on F and N: a few rounds over the training clips, each by networks that did not
see it, find the fixed point.

For one event alone this is the rule for frames: on where P > F / 2 (Lipton et al., arXiv
1402.1892).

Where a class is known to sound, pairs are judged one by one, by the IoU of their frames: the frames
are on that make the expected IoU highest, sum(on P) / (sum(on) + sum(off P)).
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from config import Events, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks
from policy import runfolder
from policy.bandit import diverged, hold_out, planned, query_of, reward_cells
from policy.learner import STEPS_A_TICK, Learner, tenths
from policy.posterior import (
    LOUDNESS,
    Asked,
    Posterior,
    Resident,
    Rows,
    Stacked,
    apply,
    asked_clips,
    class_vectors,
    fit_scale,
    frames_of_steps,
    log_odds,
    loss_of,
    rows_of,
    steps_of,
    true_events,
    with_targets,
)
from policy.qlearning import rate_at
from sed.caches import Cache
from sed.candidates import propose, running_sum
from sed.metrics import mean_f1

NEAR_S, FAR_S, EDGE_S, STEP_S = 0.25, 1.0, 0.2, 0.1  # spans beside and inside the ends of a box
ALIKE = 0.8  # IoU above which candidates say the same
LIMIT = 6.0  # deviations beyond which a feature is cut
ROUNDS = 5  # of the fixed point
# What is asked about a box: its IoU with the best true event, whether the two overlap by 0.7 and by
# 0.5 of either (PSDS 1, intersection F1), whether it is a hit by collars (event F1).
VALUES = ("iou", "overlap_70", "overlap_50", "collar")
IOU, TIGHT, OVERLAP, COLLAR = range(len(VALUES))
SHARES = {TIGHT: 0.7, OVERLAP: 0.5}
RANKING = [IOU, TIGHT]  # a confidence is their mean
FIRST_F1 = 0.5  # of every class, before the first round
SLACK_S = 1e-6  # rounding
FEATURES = 44
BOXES_AT_ONCE, CLIPS_AT_ONCE = 8_192, 64  # applied at a time
BOXES_A_ROW = 8  # about; how many boxes there will be decides on the number of steps beforehand

BoxesT = TypeVar("BoxesT", "Boxes", "Candidates")

# ---------------------------------------------------------------------------- boxes of a clip


class Boxes(NamedTuple):
    """Candidates of some rows, by row and begin."""

    row: np.ndarray  # (B,)
    begin: np.ndarray  # (B,) frames [begin, end)
    end: np.ndarray
    soft: np.ndarray  # (B,) expected true frames: the posterior summed over the box
    features: np.ndarray  # (B, F) float32


class _Means:
    """Means of (R, T) over spans of frames, parts outside the clip left out; 0 where nothing is."""

    def __init__(self, values: np.ndarray, row: np.ndarray):
        self.total = np.concatenate(
            (np.zeros((len(values), 1)), np.cumsum(values, axis=1, dtype=np.float64)), axis=1
        )
        self.row, self.last = row, values.shape[1]

    def sum(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Sums over [first, end), (B,)."""
        first, end = first.clip(0, self.last), end.clip(0, self.last)
        return self.total[self.row, np.maximum(first, end)] - self.total[self.row, first]

    def __call__(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        length = end.clip(0, self.last) - first.clip(0, self.last)
        return self.sum(first, end) / np.maximum(length, 1)


def clip_boxes(asked: Asked, odds: list[np.ndarray], first_row: int) -> Boxes:
    """Candidates and their features of a clip's rows; `odds` (N, 3) of each, see `ANSWERS`."""
    clip = asked.clip
    count, frame_s = len(clip.loudness), clip.frame_s
    first = steps_of(count, frame_s)
    logits = np.stack([frames_of_steps(each.T.astype(np.float64), first, count) for each in odds])
    found = 1 / (1 + np.exp(-logits))  # (R, 3, T)
    parts = [propose(*each, frame_s) for each in found]
    row = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    boxes = tuple(map(np.concatenate, zip(*parts, strict=True)))
    features, soft = box_features(asked, logits[:, 0], np.moveaxis(found, 1, 0), row, boxes)
    return Boxes(row + first_row, *boxes[:2], soft, features)


def box_features(
    asked: Asked,
    logits: np.ndarray,
    probabilities: np.ndarray,
    row: np.ndarray,
    boxes: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(B, F) float32: what is known of each box; (B,): the posterior summed over it.

    Log odds (R, T) and probabilities (3, R, T) of the rows; `boxes`: begin, end and ways, (B,)."""
    clip, (posterior, *of_edges), (begin, end, ways) = asked.clip, probabilities, boxes
    count, spans = posterior.shape[1], (NEAR_S, FAR_S, EDGE_S, STEP_S)
    near, far, edge, step = (max(1, round(span / clip.frame_s)) for span in spans)
    seen = (posterior, logits / 3, log_odds(clip.scores[asked.wanted]) / 3, *of_edges)
    post, odds, raw, onset, offset = (_Means(each, row) for each in seen)
    loud = _Means(np.broadcast_to(clip.loudness, posterior.shape), row)
    inside, length = post.sum(begin, end), end - begin
    whole = post.sum(0 * begin, 0 * begin + count)
    around = post.sum(begin - 2 * far, end + 2 * far) - inside
    within = [shape_of(posterior[r, a:b]) for r, a, b in zip(row, begin, end, strict=True)]
    others = (post.total[:, end] - post.total[:, begin]) / length  # (R, B)
    others[row, np.arange(len(row))] = 0
    tags = log_odds(clip.tags)
    above = np.argsort(np.argsort(-tags, kind="stable")) / max(len(tags) - 1, 1)
    columns = [
        inside / length,
        *np.array(within).reshape(-1, 4).T,
        *(post(begin - span, begin) for span in (near, far)),
        *(post(end, end + span) for span in (near, far)),
        post(begin, np.minimum(begin + near, end)),
        post(np.maximum(end - near, begin), end),
        inside / (length + whole - inside),  # IoU with all that may be true in the clip
        inside / (length + around),
        odds(begin, end),
        raw(begin, end),
        *(
            side
            for each in (raw, odds, loud)
            for side in (
                each(begin, begin + step) - each(begin - step, begin),
                each(end - step, end) - each(end, end + step),
            )
        ),
        others.max(axis=0, initial=0),
        others.sum(axis=0),
        loud(begin, end),
        loud(begin - near, begin),
        loud(end, end + near),
        np.log(length * clip.frame_s),
        begin == 0,
        end == count,
        whole * clip.frame_s / 10,
        tags[asked.wanted][row] / 3,
        above[asked.wanted][row],
        *agreement(row, begin, end, ways),
        *edges(onset, begin, begin + edge, end, edge),
        *edges(offset, end, begin, end - edge, edge),
        clip.present,
    ]
    features = np.stack([np.broadcast_to(each, len(row)) for each in columns], 1)
    return features.astype(np.float32), inside


def shape_of(posterior: np.ndarray) -> tuple[float, float, float, float]:
    """Of the frames inside a box: maximum, 20 % quantile, share of low ones, deviation."""
    fifth = len(posterior) // 5
    low = (posterior < 0.2).mean()
    return posterior.max(), np.partition(posterior, fifth)[fifth], low, posterior.std()


def edges(
    means: _Means, at: np.ndarray, first: np.ndarray, last: np.ndarray, edge: int
) -> list[np.ndarray]:
    """How probable an onset (or offset) is at an end of a box, around it, and inside the box."""
    close = max(1, edge // 5)
    return [
        means(at - close, at + close),
        means(at - edge, at + edge),
        means.sum(at - edge, at + edge),
        means(first, last),
    ]


def agreement(
    row: np.ndarray, begin: np.ndarray, end: np.ndarray, ways: np.ndarray
) -> list[np.ndarray]:
    """Mean IoU of a box with the candidates of its row, in how many ways it was found, and in how
    many it or nearly it was."""
    mean, alike = np.zeros(len(row)), np.zeros(len(row))
    for mine in np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1):
        iou = overlap(begin[mine], end[mine])[0]
        mean[mine] = iou @ ways[mine] / max(ways[mine].sum(), 1)
        alike[mine] = (iou > ALIKE) @ ways[mine]
    return [mean, np.log1p(ways), np.log1p(alike)]


def overlap(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs of boxes (B, B): IoU, and the share of the shorter one that both cover."""
    both = np.minimum(end[:, None], end) - np.maximum(begin[:, None], begin)
    both, length = np.maximum(both, 0), end - begin
    return both / (length[:, None] + length - both), both / np.minimum(length[:, None], length)


def joined(parts: list[BoxesT]) -> BoxesT:
    """Boxes or candidates of many clips."""
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


# ---------------------------------------------------------------------------- values of a box


class Values(nn.Module):
    """M networks: features of boxes -> log odds of their values."""

    def __init__(self, events: Events, num_features: int, num_classes: int, members: int):
        super().__init__()
        width = events.box_hidden
        self.of_class = None
        if events.class_context:
            self.of_class = nn.Parameter(0.1 * torch.randn(members, num_classes, width))
        self.inputs = Stacked(members, num_features, width)
        self.hidden = Stacked(members, width, width)
        self.answers = Stacked(members, width, len(VALUES))
        self.drop = nn.Dropout(events.dropout)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(
        self, features: torch.Tensor, query: torch.Tensor, which: slice = slice(None)
    ) -> torch.Tensor:
        """(M, B, F), (M, B) -> (M, B, V)."""
        x = self.inputs(((features - self.mean) / self.std).clamp(-LIMIT, LIMIT), which)
        if self.of_class is not None:
            x = x + class_vectors(self.of_class[which], query)
        x = self.drop(functional.gelu(x))
        x = self.drop(functional.gelu(self.hidden(x, which)))
        return self.answers(x, which)


@torch.inference_mode()
def apply_values(
    network: Values,
    features: np.ndarray,
    query: np.ndarray,
    device: torch.device,
    which: slice = slice(None),
) -> np.ndarray:
    """Mean values (B, V) that some networks give boxes."""
    network.eval()
    members, found = len(network.inputs.weight[which]), [np.zeros((0, len(VALUES)), np.float32)]
    for start in range(0, len(features), BOXES_AT_ONCE):
        part = slice(start, start + BOXES_AT_ONCE)
        x = torch.from_numpy(features[part]).to(device).expand(members, -1, -1)
        q = torch.from_numpy(query[part]).to(device).expand(members, -1)
        found.append(network(x, q, which).sigmoid().mean(0).cpu().numpy())
    return np.concatenate(found)


class Truth(NamedTuple):
    """What is true of candidates."""

    values: np.ndarray  # (B, V) float32
    frames: np.ndarray  # (B,) true frames inside


def true_values(
    boxes: Boxes, true: list[np.ndarray], label: list[np.ndarray], edges: list[np.ndarray]
) -> Truth:
    """Events (E, 2) in seconds, label (T,) and edges (T + 1,) of each row -> what its boxes are."""
    values, frames = np.zeros((len(boxes.row), len(VALUES)), np.float32), np.zeros(len(boxes.row))
    ends = np.searchsorted(boxes.row, np.arange(len(true) + 1))
    for row, (events, on, at) in enumerate(zip(true, label, edges, strict=True)):
        mine = slice(ends[row], ends[row + 1])
        total = running_sum(on)
        frames[mine] = total[boxes.end[mine]] - total[boxes.begin[mine]]
        if len(events):
            begin, end = at[boxes.begin[mine]], at[boxes.end[mine]]
            values[mine] = values_against(begin, end, events[:, 0], events[:, 1].clip(max=at[-1]))
    return Truth(values, frames)


def values_against(
    begin: np.ndarray, end: np.ndarray, onset: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Boxes (B,) against true events (E,), seconds -> (B, V): the best IoU; whether box and event
    overlap by .7 and by .5 of either; whether it is a hit by collars (DCASE Task 4)."""
    begin, end, length, size = begin[:, None], end[:, None], offset - onset, (end - begin)[:, None]
    both = np.maximum(np.minimum(end, offset) - np.maximum(begin, onset), 0)
    found = np.zeros((len(begin), len(VALUES)), np.float32)
    found[:, IOU] = (both / (length + size - both)).max(axis=1)
    for value, share in SHARES.items():
        enough = (both >= share * size - SLACK_S) & (both >= share * length - SLACK_S)
        found[:, value] = enough.any(axis=1)
    late = np.maximum(0.2, 0.2 * length) + SLACK_S
    near = (np.abs(begin - onset) <= 0.2 + SLACK_S) & (np.abs(end - offset) <= late)
    found[:, COLLAR] = near.any(axis=1)
    return found


# ---------------------------------------------------------------------------- decision


class Prices(NamedTuple):
    """F1 and predicted + true of each known class and, last, of a class that nobody knows, (K + 1,)
    each: of frames, of events by collars, of events by overlap."""

    frame_f1: np.ndarray
    frames: np.ndarray
    collar_f1: np.ndarray
    overlap_f1: np.ndarray
    events: np.ndarray


def worth(
    boxes: Boxes, values: np.ndarray, query: np.ndarray, prices: Prices, events: Events
) -> np.ndarray:
    """(B,): the expected difference that emitting each box makes, see the module's text."""
    frame_f1, frames, collar_f1, overlap_f1, number = (each[query] for each in prices)
    length = boxes.end - boxes.begin
    classes = slice(max(len(prices.frames) - 1, 1))  # where none is known, what stands for all
    known = prices.frames[classes]
    micro_f1 = (prices.frame_f1[classes] * known).sum() / known.sum()
    return (
        events.frame_weight * (2 * boxes.soft - frame_f1 * length) / frames
        + events.micro_weight * (2 * boxes.soft - micro_f1 * length) / known.mean()
        + events.collar_weight * (2 * values[:, COLLAR] - collar_f1) / number
        + events.overlap_weight * (2 * values[:, OVERLAP] - overlap_f1) / number
    )


def best_set(begin: np.ndarray, end: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Indices of the boxes (B,) that neither overlap nor touch with the highest sum of worth, by
    end: weighted interval scheduling, exact, in O(B log B). Those that touch would be one event."""
    some = np.flatnonzero(worth > 0)
    some = some[np.argsort(end[some], kind="stable")]
    before = np.searchsorted(end[some], begin[some], "left").tolist()  # how many end earlier
    best, taken = [0.0], []
    for gain, rest in zip(worth[some].tolist(), before, strict=True):
        taken.append(best[rest] + gain > best[-1])
        best.append(max(best[rest] + gain, best[-1]))
    chosen, i = [], len(some)
    while i:
        if taken[i - 1]:
            chosen.append(some[i - 1])
            i = before[i - 1]
        else:
            i -= 1
    return np.array(chosen[::-1], np.int64)


def decide(boxes: Boxes, worth: np.ndarray) -> np.ndarray:
    """(B,) bool: the best set of each row."""
    chosen = np.zeros(len(worth), bool)
    rows = boxes.row[worth > 0]
    for row in np.unique(rows):
        part = slice(*np.searchsorted(boxes.row, (row, row + 1)))
        chosen[part.start + best_set(boxes.begin[part], boxes.end[part], worth[part])] = True
    return chosen


def fixed_point(
    boxes: Boxes,
    values: np.ndarray,
    query: np.ndarray,
    truth: Truth,
    true_frames: np.ndarray,
    true_events: np.ndarray,
    events: Events,
) -> Prices:
    """F and N under the decisions that they lead to, over training boxes valued out of fold.

    True frames and events (K,) are those of each class in all training clips. A class that never
    sounds there has no F; it is priced as one that nobody knows, by the mean of the others.
    """
    known = true_events > 0 if true_events.any() else true_events == 0

    def with_mean(sums: np.ndarray) -> np.ndarray:
        """Sums (K,), and last their mean over classes that sound, which the others have too."""
        mean = sums[known].mean()
        return np.append(np.where(known, sums, mean), mean)

    def of_class(amount: np.ndarray) -> np.ndarray:
        """Sums over chosen boxes of each class."""
        return np.bincount(query[on], amount[on], len(known))

    start = np.full(len(known) + 1, FIRST_F1)
    # At least 1, as without a true event: worth divides by them.
    frames, number = (np.maximum(with_mean(2 * x), 1) for x in (true_frames, true_events))
    prices = Prices(start, frames, start, start, number)
    for _ in range(ROUNDS):
        on = decide(boxes, worth(boxes, values, query, prices, events))
        length = np.maximum(with_mean(of_class(boxes.end - boxes.begin) + true_frames), 1)
        number = np.maximum(with_mean(of_class(np.ones(len(on))) + true_events), 1)
        hits = [
            with_mean(of_class(amount))
            for amount in (truth.frames, truth.values[:, COLLAR], truth.values[:, OVERLAP])
        ]
        f1 = [2 * hit / size for hit, size in zip(hits, (length, number, number), strict=True)]
        # Halfway: two sets of decisions could lead to each other for ever.
        f1 = [(old + new) / 2 for old, new in zip((prices.frame_f1, *prices[2:4]), f1, strict=True)]
        prices = Prices(f1[0], length, f1[1], f1[2], number)
    return prices


def surely(values: np.ndarray) -> np.ndarray:
    """Values (B, V) -> confidences (B,): the mean of expected IoU and P(overlap of 0.7)."""
    return values[:, RANKING].mean(axis=1, dtype=np.float64)


def ranks_of(boxes: Boxes, confidence: np.ndarray) -> np.ndarray:
    """(B,): by what boxes that overlap are told apart where all boxes are handed over, for a PSDS.

    The surest box of a row keeps its confidence; every other is lowered by the share that surer
    ones cover of it or it of them, so that one of those that overlap is left at a high threshold.
    """
    found = np.zeros(len(confidence))
    ends = np.searchsorted(boxes.row, np.arange(boxes.row.max(initial=-1) + 2))
    for first, last in pairwise(ends):
        part = slice(first, last)
        covered = overlap(boxes.begin[part], boxes.end[part])[1]
        left, open_ = confidence[part].copy(), np.ones(last - first, bool)
        for _ in range(last - first):
            best = int(np.argmax(np.where(open_, left, -1.0)))
            found[first + best] = left[best]
            open_[best] = False
            left[open_] *= 1 - covered[best, open_]
    return found


# ---------------------------------------------------------------------------- policy


class EventNetwork(nn.Module):
    """All that a policy has learned: networks of frames and of boxes, and the prices."""

    window = None  # it sees the whole clip

    def __init__(self, events: Events, classes: tuple[str, ...], members: int):
        super().__init__()
        self.events, self.classes = events, classes
        self.posterior = Posterior(events, len(classes), members)
        self.values = Values(events, FEATURES, len(classes), members)
        shape = len(Prices._fields), len(classes) + 1
        self.register_buffer("prices", torch.zeros(shape, dtype=torch.float64))  # 0: not yet found

    def shown(self, asked: Iterable[Asked]) -> Iterator[Asked]:
        """What it sees of clips: one that was trained without audio is shown no loudness."""
        hears = bool(self.posterior.channel_std[LOUDNESS].isfinite())  # a GPU is asked once
        for one in asked:
            loudness = one.clip.loudness if hears else np.ones_like(one.clip.loudness)
            yield one._replace(clip=one.clip._replace(loudness=loudness))

    @classmethod
    def like(cls, events: Events, classes: tuple[str, ...], weights: Any) -> "EventNetwork":
        """A network with as many networks side by side as stored weights have."""
        stored = weights.get("posterior.inputs.weight") if isinstance(weights, dict) else None
        return cls(events, classes, len(stored) if isinstance(stored, torch.Tensor) else 1)


class Candidates(NamedTuple):
    """Boxes that a policy had to choose from, by pair and begin."""

    pair: np.ndarray  # (B,) index of the pair
    begin: np.ndarray  # (B,) frames [begin, end) within the pair
    end: np.ndarray
    values: np.ndarray  # (B, V)
    worth: np.ndarray  # (B,)
    confidence: np.ndarray  # (B,) see `surely`
    rank: np.ndarray  # (B,) see `ranks_of`
    chosen: np.ndarray  # (B,) bool, emitted


_NONE = np.zeros(0, np.int64)
NO_BOXES = Candidates(
    _NONE, _NONE, _NONE, np.zeros((0, len(VALUES)), np.float32), *[np.zeros(0)] * 3, _NONE > 0
)

# Forms of the arrays that hold candidates in a file, see `core.stored.read_npz`.
KINDS = ("iu", "iu", "iu", "f", "f", "f", "f", "b")
FORMS = {f"box_{n}": (kind, None) for n, kind in zip(Candidates._fields, KINDS, strict=True)}


def as_arrays(boxes: Candidates) -> dict[str, np.ndarray]:
    return dict(zip(FORMS, boxes, strict=True))


def from_arrays(arrays: dict[str, np.ndarray], cache: Cache) -> Candidates:
    """Candidates of a cache as they were stored. ValueError where they cannot be of it."""
    boxes = Candidates(*(arrays[name] for name in FORMS))
    count = len(boxes.pair)
    if any(len(each) != count or each.ndim != 1 + (each is boxes.values) for each in boxes):
        raise ValueError("boxes of different numbers")
    if count and not 0 <= boxes.pair.min() <= boxes.pair.max() < len(cache.pairs):
        raise ValueError("boxes of unknown pairs")
    inside = (boxes.begin >= 0) & (boxes.end > boxes.begin)
    inside &= boxes.end <= np.diff(cache.offsets)[boxes.pair]
    if not inside.all() or not all(np.isfinite(each).all() for each in boxes):
        raise ValueError("boxes outside their clips")
    return boxes


def seconds_of(boxes: Candidates, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Onset and offset (B,) of candidates in seconds."""
    ends = np.zeros((2, len(boxes.pair)))
    for index in np.unique(boxes.pair):
        mine, edges = boxes.pair == index, cache.pairs[index].edges
        ends[:, mine] = edges[boxes.begin[mine]], edges[boxes.end[mine]]
    return ends[0], ends[1]


def chunks(asked: Iterable[Asked]) -> Iterator[list[Asked]]:
    left = iter(asked)
    while some := list(islice(left, CLIPS_AT_ONCE)):
        yield some


def boxes_of(asked: list[Asked], odds: list[np.ndarray], first_row: int = 0) -> Boxes:
    """Candidates of some clips, whose first row is `first_row`; log odds (N, 3) of all rows."""
    parts = []
    for one in asked:
        end = first_row + len(one.pair)
        parts.append(clip_boxes(one, odds[first_row:end], first_row))
        first_row = end
    return joined(parts)


def best_iou(posterior: np.ndarray) -> np.ndarray:
    """(T,) bool: the frames that make the expected IoU of a class that sounds highest."""
    order = np.argsort(-posterior, kind="stable")
    inside = np.cumsum(posterior[order])
    iou = inside / (np.arange(1, len(order) + 1) + inside[-1] - inside)
    on = np.zeros(len(posterior), bool)
    on[order[: int(iou.argmax()) + 1]] = True
    return on


def decide_clips(
    network: EventNetwork, asked: list[Asked], query: np.ndarray, device: torch.device
) -> tuple[Candidates, np.ndarray, list[np.ndarray]]:
    """Candidates of some clips' queries, the pair of each row and its log odds (N, 3); `query` (P,)
    of each pair. InputError where the networks' answers are not finite."""
    asked = list(network.shown(asked))
    rows = rows_of(asked, query)
    odds = apply(network.posterior, Resident.of(rows, device), np.arange(len(rows.pair)))
    if not all(np.isfinite(each).all() for each in odds):
        raise InputError("answers are not finite: the weights are damaged")
    return decide_boxes(network, boxes_of(asked, odds), rows, device), rows.pair, odds


def decide_boxes(
    network: EventNetwork, boxes: Boxes, rows: Rows, device: torch.device
) -> Candidates:
    """Boxes of some rows with their values and worth, and which of them are emitted."""
    query = rows.query[boxes.row]
    values = apply_values(network.values, boxes.features, query, device)
    gain = worth(boxes, values, query, Prices(*network.prices.cpu().numpy()), network.events)
    sure, chosen = surely(values), decide(boxes, gain)
    spans = rows.pair[boxes.row], boxes.begin, boxes.end
    return Candidates(*spans, values, gain, sure, ranks_of(boxes, sure), chosen)


def turn_on(pred: np.ndarray, boxes: Candidates, cache: Cache) -> None:
    """The frames of emitted boxes in the decisions (N,) of a cache."""
    first = cache.offsets[boxes.pair]
    for begin, end in zip(*((first + x)[boxes.chosen] for x in boxes[1:3]), strict=True):
        pred[begin:end] = True


def decide_cache(
    network: EventNetwork, cache: Cache, device: torch.device, progress: str | None = None
) -> tuple[np.ndarray, Candidates]:
    """Decisions (N,) and candidates of every pair of a cache; pairs below the tag limit have none.

    Of classes that are known to sound the frames are decided (`best_iou`), and no box is chosen.
    Raises what `decide_clips` raises.
    """
    query = query_of((pair.event_label for pair in cache.pairs), network.classes)
    known, pred, parts = cache.queries == "present", np.zeros(cache.num_frames, bool), [NO_BOXES]
    bar = tqdm(total=len(cache.clips), desc=progress, unit="clip", disable=progress is None)
    for asked in chunks(asked_clips(cache, network.events.tag_limit)):
        found, pairs, odds = decide_clips(network, asked, query, device)
        if known:  # decided by frames, below
            found = found._replace(chosen=np.zeros_like(found.chosen))
        parts.append(found)
        turn_on(pred, found, cache)
        for index, each in zip(pairs, odds, strict=True) if known else ():
            span = slice(cache.offsets[index], cache.offsets[index + 1])
            steps = steps_of(span.stop - span.start, cache.pairs[index].frame_s)
            of_frames = frames_of_steps(each[:, 0].astype(np.float64), steps, len(pred[span]))
            pred[span] = best_iou(1 / (1 + np.exp(-of_frames)))
        bar.update(len(asked))
    bar.close()
    return pred, joined(parts)


# ---------------------------------------------------------------------------- training


def groups_of(cache: Cache, folds: int, seed: int) -> dict[str, int]:
    """Number of the group of each clip: clips of different groups share no recording where the
    cache knows bank folds; else clips are dealt out by chance."""
    names = sorted({pair.filename for pair in cache.pairs})
    known = {cache.groups.get(name) for name in names}
    if None not in known and len(known) > 1:
        number = {group: i for i, group in enumerate(sorted(known))}
        return {name: number[cache.groups[name]] for name in names}
    if len(names) < 2:
        raise InputError(f"{cache.folder}: one clip; --method events needs two to learn from")
    order = np.random.default_rng([seed, 4]).permutation(len(names))
    return {names[i]: place % min(folds, len(names)) for place, i in enumerate(order)}


class EventTrainer(Learner):
    """The state of a run; what changes is in the checkpoint.

    An episode is a gradient step: first of the networks of frames, on a batch of queries each, then
    of those of boxes. Between them all boxes are made, after the last the prices are found: both
    follow from the weights, so that a resumed run repeats them.
    """

    PASSES, FLOOR = 6, 600  # gradient steps, see "How much data" in the README
    SCHEDULE = ""  # more passes than planned need a new run
    SHOWN = ("loss",)  # its episodes are gradient steps, which have no reward of their own

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        if ranks.size > 1:
            raise InputError("--method events trains in one process; leave out torchrun")
        super().__init__(cache, device, ranks)
        self.bandit, self.events = cfg.bandit, cfg.events
        train, self.held_out = hold_out(cache, cfg)
        self.held_out = self.held_out[cache.present[self.held_out]]
        self.train_cache = self.cache_of(train)
        self.classes = tuple(cache.classes)
        self.query = query_of((pair.event_label for pair in self.train_cache.pairs), self.classes)
        self.true = true_events(self.train_cache)  # of each pair
        self.rows = with_targets(rows_of(self.asked(), self.query), self.train_cache, self.true)
        self.cfg = cfg
        self.begin()
        self.order = np.arange(self.frame_steps + self.box_steps)
        self.boxes: Boxes | None = None

    def begin(self) -> None:
        """Groups of clips, networks that each leave one out, what they are shown, optimizers."""
        cfg, cache, rows = self.cfg, self.train_cache, self.rows
        events, group = cfg.events, groups_of(cache, cfg.events.folds, cfg.seed)
        self.group = np.array([group[cache.pairs[i].filename] for i in rows.pair])
        count = self.group.max() + 1
        self.left_out = np.arange(events.members * count) % count  # group of each network
        outside = [np.flatnonzero(self.group != k) for k in self.left_out]
        self.pass_rows = max(map(len, outside))
        self.cfg = cfg = planned(cfg, self.PASSES, self.FLOOR, self.gradient_steps)
        self.frame_steps, self.box_steps = self.phases(cfg.passes)
        self.rows_shown = self.deal(outside, self.frame_steps, events.batch, 5)
        torch.manual_seed(cfg.seed)  # initial weights and dropout
        self.network = EventNetwork(events, self.classes, len(outside)).to(self.device)
        fit_scale(self.network.posterior, "channel_", rows.channels)
        fit_scale(self.network.posterior, "clip_", rows.statistics)
        self.resident = Resident.of(rows, self.device)
        given = {"lr": events.lr, "weight_decay": events.weight_decay, "fused": True}
        self.optimizers = {
            name: torch.optim.AdamW(getattr(self.network, name).parameters(), **given)
            for name in ("posterior", "values")
        }

    def phases(self, passes: int) -> tuple[int, int]:
        """Gradient steps on frames and on boxes in so many passes."""
        events, shown = self.events, passes * self.pass_rows
        boxes = events.box_passes * BOXES_A_ROW * shown
        return math.ceil(shown / events.batch), math.ceil(boxes / events.box_batch)

    def gradient_steps(self, passes: int) -> int:
        return sum(self.phases(passes))

    def asked(self) -> Iterator[Asked]:
        """The training clips as they are learned from, always in the same order."""
        return asked_clips(self.train_cache, self.events.tag_limit, known_too=True)

    def deal(self, items: list[np.ndarray], steps: int, batch: int, stream: int) -> torch.Tensor:
        """What each network is shown, (M, steps, batch), on the device: all its items again and
        again, each time in another order."""
        if not all(map(len, items)):
            raise InputError(
                f"{self.train_cache.folder}: nothing to learn from outside one group of clips: no"
                " query, or no box in which the scores rise; give more clips that hold sounds"
            )
        dealt, count = [], steps * batch
        for m, mine in enumerate(items):
            rng = np.random.default_rng([self.cfg.seed, stream, m])
            passes = [rng.permutation(mine) for _ in range(-(-count // len(mine)))]
            dealt.append(np.concatenate(passes)[:count].reshape(steps, batch))
        return torch.from_numpy(np.stack(dealt)).to(self.device)

    @property
    def total_frames(self) -> int:
        """Steps of 40 ms that the networks of frames are shown, about."""
        mean = len(self.rows.channels) / len(self.rows.pair)
        return round(self.rows_shown.numel() * mean)

    def frame_step(self, step: int) -> torch.Tensor:
        """A gradient step on queries; the cells of their decisions, (4,)."""
        seen, at = self.resident.batch(self.rows_shown[:, step])
        network = self.network.posterior.train()
        found, target, inside = network(*seen), self.resident.target[at], seen[3]
        self.gradient_step("posterior", loss_of(found, target, inside), step / self.frame_steps)
        odds, true = found.detach()[..., 0], target[..., 0] > 0.5
        self.sums[1] += (odds.sigmoid() * inside).sum() / inside.sum()
        before = (seen[0][..., 0] > 0) == true  # the score is above 0.5
        return self.cells(before, (odds > 0) == true, inside)

    def make_boxes(self) -> None:
        """All candidates with their truth, by the networks that did not see their clips."""
        odds: list[np.ndarray] = [np.zeros(0)] * len(self.rows.pair)
        for mine, apart in self.left_out_of(self.group):
            found = apply(self.network.posterior, self.resident, mine, apart)
            for row, each in zip(mine, found, strict=True):
                odds[row] = each
        parts, first = [], 0
        for asked in chunks(self.asked()):
            parts.append(boxes_of(asked, odds, first))
            first += sum(len(one.pair) for one in asked)
        cache, pair = self.train_cache, self.rows.pair
        label = [cache.one("label", i) for i in pair]
        edges = [cache.pairs[i].edges for i in pair]
        self.boxes = joined(parts)
        self.truth = true_values(self.boxes, [self.true[i] for i in pair], label, edges)
        self.show_boxes()

    def left_out_of(self, group: np.ndarray) -> Iterator[tuple[np.ndarray, slice]]:
        """Of each group the places (n,) of its members in `group`, and the networks without it."""
        count = int(self.group.max()) + 1  # of the clips; of what lies in them some may have none
        for k in range(count):
            yield np.flatnonzero(group == k), slice(k, None, count)

    def show_boxes(self) -> None:
        """Boxes and their truth on the device, and which of them the networks are shown."""
        boxes = self.boxes
        fit_scale(self.network.values, "", boxes.features)
        outside = [np.flatnonzero(self.group[boxes.row] != k) for k in self.left_out]
        self.boxes_shown = self.deal(outside, self.box_steps, self.events.box_batch, 6)
        parts = (boxes.features, self.rows.query[boxes.row], self.truth.values)
        self.box_tensors = tuple(torch.from_numpy(part).to(self.device) for part in parts)

    def box_step(self, step: int) -> torch.Tensor:
        """A gradient step on boxes; the cells of their decisions, (4,)."""
        features, query, true = (part[self.boxes_shown[:, step]] for part in self.box_tensors)
        found = self.network.values.train()(features, query)
        error = functional.binary_cross_entropy_with_logits(found, true, reduction="none")
        self.gradient_step("values", error.mean((1, 2)), step / self.box_steps)
        extent, good = found.detach()[..., IOU], true[..., IOU] > 0.5
        self.sums[1] += extent.sigmoid().mean()
        return self.cells(~good, (extent > 0) == good, torch.ones_like(good))  # before: nothing

    def out_of_fold(self) -> np.ndarray:
        """Values (B, V) of the training boxes, by the networks that did not see their clips."""
        boxes, query = self.boxes, self.rows.query[self.boxes.row]
        values = np.zeros((len(boxes.row), len(VALUES)), np.float32)
        for mine, apart in self.left_out_of(self.group[boxes.row]):
            given = boxes.features[mine], query[mine]
            values[mine] = apply_values(self.network.values, *given, self.device, apart)
        return values

    def events_of(self) -> list[int]:
        """How many true events each pair of the training cache has."""
        return list(map(len, self.true))

    def find_prices(self) -> None:
        """F and N at the fixed point, over the boxes of clips whose tags are not known."""
        boxes, values = self.boxes, self.out_of_fold()
        query, cache = self.rows.query[boxes.row], self.train_cache
        asks = self.rows.present == self.rows.present.all()  # those that nobody knows, or all
        some = asks[boxes.row]
        own = Boxes(*(part[some] for part in boxes))
        truth = Truth(*(part[some] for part in self.truth))
        frames = np.zeros(len(cache.pairs))  # of all pairs: those below the tag limit have no row
        for index in np.flatnonzero(cache.present):
            frames[index] = cache.one("label", index).sum()
        true = [np.bincount(self.query, x, len(self.classes)) for x in (frames, self.events_of())]
        prices = fixed_point(own, values[some], query[some], truth, *true, self.cfg.events)
        self.network.prices.copy_(torch.from_numpy(np.stack(prices)))

    def gradient_step(self, name: str, losses: torch.Tensor, share: float) -> None:
        """One step of AdamW on the losses (M,) of networks side by side."""
        self.optimizers[name].zero_grad(set_to_none=True)
        losses.sum().backward()
        clip_each(getattr(self.network, name).parameters())
        self.step(self.optimizers[name], self.cfg.events.lr * rate_at(share), losses)

    def step(self, optimizer: torch.optim.Optimizer, lr: float, losses: torch.Tensor) -> None:
        """Let an optimizer use the gradients, and count that."""
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        self.sums[0] += losses.detach().mean()
        self.progress["steps"] += 1
        self.progress["loss_count"] += 1

    @staticmethod
    def cells(before: torch.Tensor, after: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """How many decisions fall into each of the four reward cells."""
        each = torch.arange(4, device=before.device)  # one_hot would check ranges: a wait
        cells = (reward_cells(before, after)[..., None] == each) & inside[..., None]
        return cells.flatten(0, -2).sum(0)

    def tick(self) -> list[tuple[int, list[int]]]:
        first = self.progress["finished"]
        in_boxes = first >= self.frame_steps
        if in_boxes and self.boxes is None:
            self.make_boxes()
        end = len(self.order) if in_boxes else self.frame_steps
        steps = range(first, min(first + STEPS_A_TICK, end))
        work = self.box_step if in_boxes else self.frame_step
        cells = [work(step - self.frame_steps * in_boxes) for step in steps]
        self.progress["finished"] = steps.stop
        self.progress["frames"] = round(self.total_frames * min(steps.stop / self.frame_steps, 1))
        if not self.sums.isfinite().all():
            step = self.progress["steps"]
            raise diverged(f"loss is not finite near gradient step {step}", "events.lr")
        if self.done:
            self.find_prices()
        return list(zip(steps, torch.stack(cells).tolist(), strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        """As of every learner; of present pairs no class is ever absent."""
        known = {"never_absent": list(self.classes)} if self.cache.queries == "present" else {}
        return super().facts | known

    def policy(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "queries": self.cache.queries} | super().policy()

    def optimizer_state(self) -> dict[str, Any]:
        return {name: each.state_dict() for name, each in self.optimizers.items()}

    def restore(self, content: dict[str, Any]) -> None:
        self.take_over(content)
        for name, each in self.optimizers.items():
            self.load_optimizer(each, content["optimizer"][name])

    def what(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        return (
            f"policy over events, {weights:,} parameters in {len(self.left_out)} networks of frames"
            f" and as many of boxes, each leaving out one of {self.group.max() + 1} groups of clips"
        )

    def announce(self) -> None:
        print(
            f"device {self.device}, {self.cfg.threads} thread(s); {self.what()}\n"
            f"{len(self.rows.pair)} queries of {len(self.train_cache.clips)} clips,"
            f" {len(self.held_out)} present pairs held out; {self.frame_steps:,} gradient steps"
            f" on frames, {self.box_steps:,} on boxes; run folder {self.cfg.run}"
        )

    def learned(self) -> tuple[dict[str, str], str]:
        loss = runfolder.read_history(self.cfg.run)["Loss"]
        lines, said, steps = {}, [], self.frame_steps
        for name, kind, part in ("frame", "frames", loss[:steps]), ("box", "boxes", loss[steps:]):
            first, last = tenths(part[part > 0])  # a tick of several steps has one, their mean
            lines |= {f"{name}_loss_first_tenth": first, f"{name}_loss_last_tenth": last}
            said.append(f"from {first} to {last} on {kind}")
        went = "from the first to the last tenth of the steps the loss went"
        return lines, f"{went} {' and '.join(said)}"

    def held_out_f1(self) -> float:
        """Of present pairs alone, asked for as the cache asks; -1 before the boxes have prices."""
        if not self.done:
            return -1.0
        some = self.cache.subset({self.cache.pairs[i].filename for i in self.held_out})
        pred, _ = decide_cache(self.network, some, self.device)
        return mean_f1(some, pred, np.flatnonzero(some.present))


def clip_each(parameters: Iterable[nn.Parameter]) -> None:
    """Shorten the gradient of each of the networks side by side to a norm of at most 1."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    squares = torch.stack([each.square().flatten(1).sum(1) for each in gradients]).sum(0)
    factor = (1 / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)  # (M,)
    for each in gradients:
        each.mul_(factor.view(-1, *[1] * (each.dim() - 1)))
