"""The posterior of a sound in every frame, from scores, loudness and the clip's other queries.

Shapes: Q queries of a clip, T frames, N steps of about 40 ms, C channels, S statistics of a row,
        R rows, B rows of a batch, M networks computed side by side, K known classes

A score says how much a frame sounds like a class to somebody who hears nothing else of the clip's
scores. The network sees the whole clip: score and loudness around, how high the other queries are
at the same time, the clip-level scores, and which class is asked for. Binary cross-entropy makes
its answer the probability that the class sounds; two further answers are those that an event of
the class begins or ends here.

A row is a query as somebody asks it: without knowing the clip's tags, or for a class that is known
to sound, where only queries that are known to sound too compete. One network serves both. Each
of several networks leaves out one group of clips: what follows is trained on what they say about
the clips that they never saw, and a new clip gets the mean of their log odds.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn
from torch.nn import functional

from config import Events
from sed.caches import Cache
from sed.timeline import merge_events, seconds_at

STEP_S = 0.04
SMOOTH_S = 0.1  # deviation of the Gaussian over the own score; half the span of the loudness slope
NEAR_S = 0.08  # deviation of the Gaussian around true onsets and offsets, which is learned
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST = 1e-4  # scores are kept off 0 and 1 by this
SCALE = 3.0  # log odds are divided by it, which brings them to the size of the others
CHANNELS, LOUDNESS = 7, 5  # how many, which one
STATISTICS = 4 + len(QUANTILES) + 4 + 1
ANSWERS = ("sounds", "begins", "ends")
EDGE_WEIGHT = 0.5  # of the two last answers in the loss
ROWS_AT_ONCE = 64  # applied at a time
FLAT = 1e-4  # deviation of an input that says nothing


def log_odds(score: np.ndarray) -> np.ndarray:
    """Of scores, kept off 0 and 1."""
    score = np.clip(score, LEAST, 1 - LEAST)
    return np.log(score / (1 - score))


NO_ODDS = float(log_odds(np.zeros(1))[0])  # of a query that is not there

# ---------------------------------------------------------------------------- steps


def steps_of(num_frames: int, frame_s: float) -> np.ndarray:
    """First frame of each step (N,); the last step may have fewer frames."""
    return np.arange(0, num_frames, max(1, round(STEP_S / frame_s)))


def mean_of_steps(x: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(.., T) -> (.., N)."""
    size = np.diff(np.append(first, x.shape[-1]))
    return np.add.reduceat(x, first, axis=-1) / size


def frames_of_steps(x: np.ndarray, first: np.ndarray, num_frames: int) -> np.ndarray:
    """(.., N) -> (.., T), linear between the middles of the steps."""
    middle = (first + np.append(first[1:], num_frames) - 1) / 2
    at = np.interp(np.arange(num_frames), middle, np.arange(len(first)))
    low = np.minimum(at.astype(np.int64), max(len(first) - 2, 0))
    high = np.minimum(low + 1, len(first) - 1)
    return x[..., low] + (at - low) * (x[..., high] - x[..., low])


# ---------------------------------------------------------------------------- what is seen


class Queried(NamedTuple):
    """A clip as it is asked for: its queries' scores, its loudness, and what is known of it."""

    scores: np.ndarray  # (Q, T) 0..1
    loudness: np.ndarray  # (T,)
    tags: np.ndarray  # (Q,) clip-level scores
    frame_s: float
    present: bool  # the queries are known to sound


def highest_other(values: np.ndarray) -> np.ndarray:
    """(K, T) -> (K, T): the highest value of the other rows; 0 where there is none."""
    if len(values) < 2:
        return np.zeros_like(values)
    first, second = -np.partition(-values, 1, axis=0)[:2]
    best = np.arange(len(values))[:, None] == values.argmax(axis=0)
    return np.where(best, second, first)


def share_above(x: np.ndarray) -> np.ndarray:
    """(Q, ..) -> (Q, ..): the share of the other rows that are higher."""
    rank = np.argsort(np.argsort(-x, axis=0, kind="stable"), axis=0)
    return rank / max(len(x) - 1, 1)


def sum_of_others(x: np.ndarray) -> np.ndarray:
    """Log odds (Q, ..) -> (Q, ..): log of the sum of the other rows' odds."""
    odds = np.exp(x)
    return np.log(np.maximum(odds.sum(axis=0) - odds, LEAST))


def highest_others(x: np.ndarray) -> np.ndarray:
    """(Q,) -> (2, Q): the two highest of the others, `NO_ODDS` where there are none."""
    best = np.sort(np.concatenate((x, np.full(3, NO_ODDS))))[::-1][:3]
    place = np.argsort(np.argsort(-x, kind="stable"))
    return np.stack([np.where(place < 1, best[1], best[0]), np.where(place < 2, best[2], best[1])])


def inputs(clip: Queried, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels (R, N, C) and statistics (R, S) of some of a clip's queries, unscaled.

    Channels: the own log odds as they are and smoothed; those of the highest other query, and of
    the sum of the others' odds; the share of queries that are higher; loudness and its slope.
    Statistics: clip-level log odds of the query and of the two highest others, and the share of
    higher ones; quantiles, mean and deviation of the own log odds; mean and deviation of the
    loudness; whether the class is known to sound.
    """
    first = steps_of(len(clip.loudness), clip.frame_s)
    frames = log_odds(clip.scores)
    odds = mean_of_steps(frames, first)
    other = log_odds(highest_other(1 / (1 + np.exp(-odds))))
    smooth = gaussian_filter1d(frames[wanted], SMOOTH_S / clip.frame_s, axis=1)
    far = min(max(1, round(SMOOTH_S / clip.frame_s)), (len(clip.loudness) - 1) // 2)
    slope = np.zeros(len(clip.loudness))
    if far:
        slope[far:-far] = clip.loudness[2 * far :] - clip.loudness[: -2 * far]
    own = odds[wanted] / SCALE
    shape = own.shape
    channels = [
        own,
        mean_of_steps(smooth, first) / SCALE,
        other[wanted] / SCALE,
        sum_of_others(odds)[wanted] / SCALE,
        share_above(odds)[wanted],
        np.broadcast_to(mean_of_steps(clip.loudness, first), shape),
        np.broadcast_to(mean_of_steps(slope, first), shape),
    ]
    tags = log_odds(clip.tags)
    rows = np.ones(len(wanted))
    statistics = [
        tags[wanted] / SCALE,
        *(each[wanted] / SCALE for each in highest_others(tags)),
        share_above(tags)[wanted],
        *np.quantile(own, QUANTILES, axis=1),
        own.mean(axis=1),
        own.std(axis=1),
        *(rows * x for x in (clip.loudness.mean(), clip.loudness.std(), clip.present)),
    ]
    return np.stack(channels, axis=2).astype(np.float32), np.stack(statistics, 1).astype(np.float32)


# ---------------------------------------------------------------------------- rows


class Asked(NamedTuple):
    """Queries of a clip that are answered together."""

    clip: Queried
    wanted: np.ndarray  # (R,) which of its queries; the others only compete
    pair: np.ndarray  # (R,) their pairs in the cache


def asked_clips(cache: Cache, limit: float, known_too: bool = False) -> Iterator[Asked]:
    """A cache's clips as it asks for them: all queries with a clip-level score above `limit`, or
    the present ones. `known_too`: of all queries the present ones once more, as known to sound.

    Pairs of a clip on other frames are another clip.
    """
    tags = {clip.filename: clip.tag for clip in cache.clips}
    column = {name: k for k, name in enumerate(cache.classes)}
    there, knows = cache.present, cache.queries == "present"
    groups: dict[tuple[str, int], list[int]] = {}
    for index, pair in enumerate(cache.pairs):
        groups.setdefault((pair.filename, pair.num_frames), []).append(index)
    for (name, _), members in groups.items():
        pairs = np.array(members)
        scores = np.stack([cache.one("d_raw", i) for i in members])
        if tags[name] is None:  # imported arrays
            tag = scores.max(axis=1)
        else:
            tag = np.array([tags[name][column[cache.pairs[i].event_label]] for i in members])
        loudness, frame_s = cache.one("rms", members[0]), cache.pairs[members[0]].frame_s
        clip = Queried(scores, loudness, tag, frame_s, knows)
        wanted = np.arange(len(pairs)) if knows else np.flatnonzero(tag > limit)
        if len(wanted):
            yield Asked(clip, wanted, pairs[wanted])
        known = np.flatnonzero(there[pairs])
        if known_too and not knows and len(known):
            own = clip._replace(scores=scores[known], tags=tag[known], present=True)
            yield Asked(own, np.arange(len(known)), pairs[known])


class Rows(NamedTuple):
    """Rows of many clips, their steps back to back."""

    channels: np.ndarray  # (all steps, C) float32
    statistics: np.ndarray  # (R, S) float32
    offsets: np.ndarray  # (R + 1,)
    pair: np.ndarray  # (R,) index in the cache
    query: np.ndarray  # (R,) index of the class among the known ones; -1: none of them
    present: np.ndarray  # (R,) bool, known to sound
    target: np.ndarray | None = None  # (all steps, 3) float32


def rows_of(asked: Iterable[Asked], query: np.ndarray) -> Rows:
    """What is seen of some clips; `query` (P,) of each pair of the cache."""
    parts, lengths = [], [0]
    for one in asked:
        channels, statistics = inputs(one.clip, one.wanted)
        count, steps, _ = channels.shape
        lengths += [steps] * count
        known = np.full(count, one.clip.present)
        parts.append((channels.reshape(-1, CHANNELS), statistics, one.pair, known))
    channels, statistics, pair, present = map(np.concatenate, zip(*parts, strict=True))
    return Rows(channels, statistics, np.cumsum(lengths), pair, query[pair], present)


def true_events(cache: Cache) -> list[np.ndarray]:
    """Onset and offset (E, 2) in seconds of the true events of each pair, merged."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for clip in cache.clips:
        for onset, offset, label in merge_events(clip.events):
            found.setdefault((clip.filename, label), []).append((onset, offset))
    events = (found.get((pair.filename, pair.event_label), []) for pair in cache.pairs)
    return [np.array(each, np.float64).reshape(-1, 2) for each in events]


def with_targets(rows: Rows, cache: Cache, true: list[np.ndarray]) -> Rows:
    """The rows of a cache with what is true, the `true_events` of its pairs: of each step the share
    that is on, and how near it is to an onset and to an offset."""
    parts = []
    for index in rows.pair:
        label, pair = cache.one("label", index).astype(np.float64), cache.pairs[index]
        first = steps_of(len(label), pair.frame_s)
        middle = (first + np.append(first[1:], len(label))) / 2
        middle = seconds_at(middle, pair.frame_s, pair.start_s)
        far = (middle[:, None, None] - true[index]) / NEAR_S  # (N, E, 2)
        near = np.exp(-0.5 * far**2).max(axis=1, initial=0.0)
        parts.append(np.column_stack([mean_of_steps(label, first), near]))
    return rows._replace(target=np.concatenate(parts).astype(np.float32))


# ---------------------------------------------------------------------------- network


class Stacked(nn.Module):
    """M linear layers side by side: (M, .., in) -> (M, .., out)."""

    def __init__(self, members: int, num_in: int, num_out: int):
        super().__init__()
        bound = num_in**-0.5
        self.weight = nn.Parameter(torch.empty(members, num_in, num_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, num_out).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor, which: slice = slice(None)) -> torch.Tensor:
        flat = x.reshape(len(x), -1, x.shape[-1])
        found = torch.baddbmm(self.bias[which], flat, self.weight[which])
        return found.reshape(*x.shape[:-1], -1)


class ConvBlock(nn.Module):
    """Residual dilated convolution over the steps, normalised over the width."""

    def __init__(self, members: int, events: Events, dilation: int):
        super().__init__()
        self.taps, self.dilation = events.kernel, dilation
        self.conv = Stacked(members, self.taps * events.hidden, events.hidden)
        self.scale = nn.Parameter(torch.ones(members, 1, 1, events.hidden))
        self.shift = nn.Parameter(torch.zeros(members, 1, 1, events.hidden))
        self.drop = nn.Dropout(events.dropout)

    def forward(self, x: torch.Tensor, there: torch.Tensor, which: slice) -> torch.Tensor:
        """(M, B, N, H), zero where there is no step -> the same."""
        size, far = x.shape[2], self.taps // 2 * self.dilation
        wide = functional.pad(x, (0, 0, far, far))
        taps = [wide[:, :, i * self.dilation :][:, :, :size] for i in range(self.taps)]
        y = functional.layer_norm(self.conv(torch.cat(taps, 3), which), x.shape[-1:])
        y = functional.gelu(y * self.scale[which] + self.shift[which])
        return x + self.drop(y) * there


def class_vectors(table: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Vectors of known classes (M, K, H), queries (M, B) -> (M, B, H); 0 for an unknown class."""
    rows = torch.arange(len(table), device=query.device)[:, None]
    return table[rows, query.clamp_min(0)] * (query >= 0)[..., None]


def fit_scale(network: nn.Module, prefix: str, values: np.ndarray) -> None:
    """Mean and deviation of inputs (n, F) over the training rows into a network's buffers."""
    deviation = values.std(axis=0)
    deviation[deviation < FLAT] = np.inf  # it says nothing, e.g. the loudness without audio
    getattr(network, f"{prefix}mean").copy_(torch.from_numpy(values.mean(axis=0)))
    getattr(network, f"{prefix}std").copy_(torch.from_numpy(deviation))


class Posterior(nn.Module):
    """M networks: what is seen of rows -> log odds of the three answers at each step."""

    def __init__(self, events: Events, num_classes: int, members: int):
        super().__init__()
        width = events.hidden
        self.inputs = Stacked(members, CHANNELS, width)
        self.of_clip = Stacked(members, STATISTICS, width)
        self.to_width = Stacked(members, width, width)
        self.of_class = None
        if events.class_context:
            self.of_class = nn.Parameter(0.1 * torch.randn(members, num_classes, width))
        self.blocks = nn.ModuleList(ConvBlock(members, events, 2**i) for i in range(events.layers))
        self.before = Stacked(members, width, width)
        self.answers = Stacked(members, width, len(ANSWERS))
        for name, size in (("channel", CHANNELS), ("clip", STATISTICS)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def forward(
        self,
        channels: torch.Tensor,
        statistics: torch.Tensor,
        query: torch.Tensor,
        inside: torch.Tensor,
        which: slice = slice(None),
    ) -> torch.Tensor:
        """(M, B, N, C), (M, B, S), (M, B), (M, B, N) bool -> (M, B, N, 3); `which` networks."""
        about = (statistics - self.clip_mean) / self.clip_std
        context = self.to_width(functional.gelu(self.of_clip(about, which)), which)
        if self.of_class is not None:
            context = context + class_vectors(self.of_class[which], query)
        there = inside[..., None].float()
        x = self.inputs((channels - self.channel_mean) / self.channel_std, which)
        x = (x + context[:, :, None]) * there
        for block in self.blocks:
            x = block(x, there, which)
        return self.answers(functional.gelu(self.before(x, which)), which)


class Resident(NamedTuple):
    """Rows on the device."""

    channels: torch.Tensor
    statistics: torch.Tensor
    start: torch.Tensor  # (R,)
    length: torch.Tensor  # (R,)
    query: torch.Tensor
    target: torch.Tensor | None
    longest: int  # steps of a batch: the same for all, so that shapes do not change

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> "Resident":
        """Rows, brought to the device once."""
        start, length = rows.offsets[:-1], np.diff(rows.offsets)
        parts = (rows.channels, rows.statistics, start, length, rows.query, rows.target)
        there = (None if part is None else torch.from_numpy(part).to(device) for part in parts)
        return cls(*there, int(length.max(initial=1)))

    def batch(self, row: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows (M, B) -> what `Posterior` is given, and where it is (M, B, N)."""
        steps = torch.arange(self.longest, device=row.device)
        length = self.length[row][..., None]
        at = self.start[row][..., None] + steps.minimum(length - 1)
        return (self.channels[at], self.statistics[row], self.query[row], steps < length), at


def loss_of(found: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of log odds (M, B, N, 3), the mean over steps, of each network (M,)."""
    error = functional.binary_cross_entropy_with_logits(found, target, reduction="none")
    error = error[..., 0] + EDGE_WEIGHT * (error[..., 1] + error[..., 2])
    there = inside.float()
    return (error * there).sum((1, 2)) / there.sum((1, 2))


@torch.inference_mode()
def apply(
    network: Posterior, rows: Resident, row: np.ndarray, which: slice = slice(None)
) -> list[np.ndarray]:
    """Mean log odds (N, 3) that some networks give each of some rows (R,)."""
    network.eval()
    found, members = [], len(network.inputs.weight[which])
    for part in np.array_split(row, max(1, -(-len(row) // ROWS_AT_ONCE))):
        seen, _ = rows.batch(torch.from_numpy(part).to(rows.start.device)[None])
        odds = network(*(each.expand(members, *each.shape[1:]) for each in seen), which).mean(0)
        lengths = rows.length[part].tolist()
        found += [each[:n] for each, n in zip(odds.cpu().numpy(), lengths, strict=True)]
    return found
