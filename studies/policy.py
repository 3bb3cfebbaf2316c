"""Which learned policy beats tuned thresholds? Variants, compared on held-out training recordings.

Run:    python studies/policy.py run --variants dense iou   # by name, 3 seeds each
        python studies/policy.py list                           # their names and settings
        python studies/policy.py table                          # all that was run, beside the rules
Reads:  cache/esc10-fold<F>-slides-present/train, data/esc10-fold<F>/clips.tsv
Writes: runs/policy/fold<F>-dev<D>/<variant>-seed<S>.npz, rules.npz, table.md
Shapes: B pairs of a batch, T frames of the longest, C channels, A actions, H width
Next:   nothing

The validation split is never read here. A training clip plays the recordings of one bank fold: the
clips of fold D are the judge, those of the others train, and the scores of both come from networks
that never heard their recordings. The first variants add one thing after another; the others are
one change to `1.0`, of which the preset `best` of DQN.py has three members, or to `decisions`.

A dense Q-network reads the whole clip once and gives Q(s, a) of every frame: the windowed one runs
its 21 frames anew for each. As in bandit.py an action shifts the threshold of a frame; what is new
is listed in `Variant`.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a program
    sys.path.insert(0, str(ROOT))

import event_metrics  # noqa: E402
import opponents  # noqa: E402
from bandit import decide, reward_cells, reward_table, rivals, shift  # noqa: E402
from config import (  # noqa: E402
    Bandit,
    Checked,
    InputError,
    number,
    process_pool,
    run_script,
    to_dict,
    whole,
    write_text,
)
from core.stored import parse_json, read_npz, read_text  # noqa: E402
from dense import iou_gain, union_weight  # noqa: E402
from entrants import predicted_events  # noqa: E402
from metrics import NAMES, bootstrap_mean, count_pairs, scores_of  # noqa: E402
from preprocess import Cache, load_cache  # noqa: E402
from qlearning import DuelingHead, PrioritizedReplay, anneal, sync, td_target  # noqa: E402
from runfolder import known_config  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Variant(Checked):
    """What is learned, from what, and around which base."""

    reward: Literal["slides", "iou", "iou-scaled", "iou-weighted"] = "slides"
    """the slides' four cells; what a decision changes in the pair's IoU; that times its union; and
    that with the pair's loss weighted by one over its union, which aims at the same decisions as
    `iou` with targets that vary less"""
    short_cost: float = number(0.0, 0, 10)
    """cost of a decision inside an event or a pause shorter than `short_s`"""
    short_s: float = number(0.2, above=0)
    """what is short, in seconds"""
    learn: Literal["all", "taken", "expected"] = "all"
    """from the rewards of all actions, which are known, or of the taken one only; or without a
    value: the rewards expected of drawing from softmax(Q) are raised, a policy gradient"""
    head: Literal["actions", "decisions"] = "actions"
    """a Q-value of each action, or of off and on: an action has that of the decision it leads to"""
    epsilon: float = number(0.3, 0, 1)
    """share of random actions while learning from taken ones"""
    class_context: bool = False
    """an embedding of the queried class"""
    clip_context: bool = False
    """statistics of scores and loudness over the whole clip"""
    rival_context: bool = False
    """the highest raw score of the clip's other queries, frame by frame"""
    base: Literal["t_base", "per-class", "calibrated"] = "t_base"
    """shift around T_base (of prob), a tuned threshold a class (of d_adj), or 0.5 (of the raw score
    after logistic calibration a class)"""
    max_delta: float = number(0.2, above=0, high=1)
    """largest shift"""
    num_actions: int = number(21, 3, 127)
    """steps of the shift"""
    passes: int = number(1, 1, 8)
    """decisions a frame, each a shift of the one before"""
    gamma: float = number(0.0, 0, 1)
    """discount between passes"""
    target_every: int = number(0, 0)
    """gradient steps between copies to a target network; 0: none, the network itself"""
    double: bool = False
    """the next action by the network, its value by the target"""
    dueling: bool = False
    """value and advantage heads"""
    prioritized: bool = False
    """draw pairs in proportion to their last error (alpha 0.6, beta 0.4 to 1)"""
    hidden: int = number(32, 4)
    """width H"""
    layers: int = number(7, 1, 9)
    """residual dilated convolutions: 7 see 2.5 s to each side of a frame of 20 ms"""
    gru: bool = False
    """a bidirectional GRU behind them, as in the slides' network"""
    transformer: bool = False
    """an encoder layer behind that"""
    dropout: float = number(0.2, 0, 0.9)
    """in every block"""
    epochs: int = number(15, 1)
    """passes over the training pairs"""
    share: float = number(1.0, above=0, high=1)
    """of the training clips that is learned from"""
    batch: int = number(32, 1)
    """pairs in a gradient step"""
    lr: float = number(2e-3, above=0, high=1)
    """highest learning rate of AdamW, rising for 30 % of the steps, then falling to 0"""
    weight_decay: float = number(1e-2, 0, 1)
    """of AdamW"""
    flip: bool = False
    """show half of the pairs backwards in training"""
    jitter: float = number(0.0, 0, 1)
    """deviation of the random slope and offset of a pair's log odds in training"""
    average: float = number(0.0, 0, 0.9999)
    """decay of an average of the weights, which decides in the end; 0: the last weights decide"""
    members: int = number(1, 1, 16)
    """networks that start and shuffle differently; their mean Q-value decides"""


DENSE = Variant()
IOU = replace(DENSE, reward="iou-weighted")
CLASS = replace(IOU, class_context=True)
CLIP = replace(CLASS, clip_context=True)
DECISIONS = replace(CLIP, head="decisions")
BEST = replace(DECISIONS, max_delta=1.0)
PASSES = replace(DECISIONS, passes=3, gamma=0.9)
SHORT = replace(PASSES, epochs=5)
VARIANTS = {
    "dense": DENSE,
    "taken": replace(DENSE, learn="taken"),
    "iou": IOU,
    "iou, class": CLASS,
    "iou, class, clip": CLIP,
    "decisions": DECISIONS,
    "0.5": replace(DECISIONS, max_delta=0.5),
    "1.0": BEST,
    "1.0, actions": replace(BEST, head="actions"),
    "1.0, slides' reward": replace(BEST, reward="slides"),
    "1.0, not scaled": replace(BEST, reward="iou"),
    "1.0, not weighted": replace(BEST, reward="iou-scaled"),
    "1.0, taken": replace(BEST, learn="taken"),
    "1.0, expected": replace(BEST, learn="expected"),
    "1.0, without class": replace(BEST, class_context=False),
    "1.0, without clip": replace(BEST, clip_context=False),
    "1.0, calibrated": replace(BEST, base="calibrated"),
    "1.0, per-class": replace(BEST, base="per-class"),
    "1.0, short events cost": replace(BEST, short_cost=0.3),
    "1.0, dueling": replace(BEST, dueling=True),
    "1.0, GRU": replace(BEST, gru=True),
    "1.0, hidden 64": replace(BEST, hidden=64),
    "1.0, 30 epochs": replace(BEST, epochs=30),
    "1.0, flip": replace(BEST, flip=True),
    "1.0, jitter": replace(BEST, jitter=0.2),
    "1.0, rivals": replace(BEST, rival_context=True),
    "1.0, averaged": replace(BEST, average=0.99),
    "1.0, 5 members": replace(BEST, members=5),
    "1.0, prioritized": replace(BEST, prioritized=True),
    "1.0, half the clips": replace(BEST, share=0.5, epochs=30),
    "1.0, a quarter of them": replace(BEST, share=0.25, epochs=60),
    "3 passes": PASSES,
    "3 passes, 5 epochs": SHORT,
    "3 passes, target": replace(SHORT, target_every=50),
    "3 passes, double": replace(SHORT, target_every=50, double=True),
    "3 passes, actions": replace(SHORT, target_every=50, head="actions"),
    "3 passes, dueling": replace(SHORT, target_every=50, head="actions", dueling=True),
    "3 passes, prioritized": replace(SHORT, target_every=50, prioritized=True),
    "1 pass, 5 epochs": replace(DECISIONS, epochs=5),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Train variants and keep their decisions on the held-out training clips."""

    variants: tuple[str, ...] = ("dense",)
    """names, or all"""
    fold: int = number(5, 1)
    """bank fold of the validation split, which is not read"""
    dev: int = number(4, 1)
    """bank fold whose training clips judge"""
    seeds: int = number(3, 1)
    """seeds 0, 1, .."""
    workers: int = number(2, 1)
    """processes, one thread each"""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.variants if name not in (*VARIANTS, "all")]
        if unknown:
            raise InputError(f"--variants {unknown[0]}: not one of {', '.join(VARIANTS)}, all")
        if self.dev == self.fold:
            raise InputError(f"--dev {self.dev}: that fold is the validation split's; give another")


@dataclass(frozen=True, kw_only=True)
class TableConfig(Checked):
    """Everything that was run, beside T_base, the tuned rules and the ceiling."""

    fold: int = number(5, 1)
    """bank fold of the validation split, which is not read"""
    dev: int = number(4, 1)
    """bank fold whose training clips judge"""


@dataclass(frozen=True, kw_only=True)
class ListConfig(Checked):
    """Names of the variants, with what each changes."""


# ---------------------------------------------------------------------------- data


class Clips(NamedTuple):
    """The pairs of a split on the T frames of the longest, zero behind the end of each."""

    channels: torch.Tensor  # (P, C, T) float32
    context: torch.Tensor  # (P, S) float32, statistics of the whole clip
    event_label: torch.Tensor  # (P,) int64
    score: torch.Tensor  # (P, T) float32, what is held against the threshold
    base: torch.Tensor  # (P, T) float32
    label: torch.Tensor  # (P, T) bool
    inside: torch.Tensor  # (P, T) bool, frames that exist
    frame_s: torch.Tensor  # (P,) float32

    def of(self, pairs: torch.Tensor) -> "Clips":
        """Some pairs, without frames that none of them has."""
        longest = int(self.inside[pairs].sum(1).max())
        return Clips(
            *(
                x[pairs][..., :longest] if x.shape[1:] and i != 1 else x[pairs]
                for i, x in enumerate(self)
            )
        )


def logit(score: np.ndarray) -> np.ndarray:
    """Log odds of scores kept off 0 and 1."""
    kept = np.clip(score, 1e-4, 1 - 1e-4)
    return np.log(kept / (1 - kept))


def calibrate(cache: Cache) -> np.ndarray:
    """Slope and offset (K, 2) of a class's log odds: logistic regression on all its frames."""
    labels, found = opponents.class_of_pair(cache), []
    for name in cache.classes:
        mine = (labels == name)[cache.frames_of_pair]
        x, y = logit(cache.signals["d_raw"][mine]), cache.label[mine]

        def loss(w: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            odds = w[0] * x + w[1]
            return float(np.mean(np.logaddexp(0, odds) - y * odds) + 1e-4 * np.square(w).sum())

        found.append(minimize(loss, np.array([1.0, 0.0])).x if mine.any() else (1.0, 0.0))
    return np.array(found)


class Fitted(NamedTuple):
    """What is taken from the training pairs before anything is learned."""

    rule: opponents.Rule  # threshold of each class on d_adj
    calibration: np.ndarray  # (K, 2)


def fit(cache: Cache) -> Fitted:
    """Per-class thresholds and calibration of the training pairs."""
    aim = opponents.Objective(cache, "present")
    rules = opponents.threshold_rules(aim, "d_adj")
    rule = next(rule for rule in rules if rule.name.startswith("best per-class"))
    return Fitted(rule, calibrate(cache))


def padded(cache: Cache, values: np.ndarray) -> np.ndarray:
    """(N,) -> (P, T), zero behind the end of each pair."""
    lengths = np.diff(cache.offsets)
    table = np.zeros((len(lengths), lengths.max()), values.dtype)
    table[np.arange(lengths.max()) < lengths[:, None]] = values
    return table


def clips_of(cache: Cache, fitted: Fitted, variant: Variant) -> Clips:
    """Cache -> tensors of all pairs."""
    label = np.array([cache.classes.index(name) for name in opponents.class_of_pair(cache)])
    odds = logit(cache.signals["d_raw"])
    if variant.base == "t_base":
        score, base = cache.signals["prob"], cache.signals["t_base"]
    elif variant.base == "per-class":
        score = cache.signals["d_adj"]
        base = opponents.spread(fitted.rule, cache, "t")[cache.frames_of_pair]
    else:
        slope, offset = fitted.calibration[label].T[:, cache.frames_of_pair]
        score = 1 / (1 + np.exp(-(slope * odds + offset)))
        base = np.full(len(score), 0.5)
    names = ("rms", "d_adj", "prob", "t_base")
    channels = [odds / 3, *(cache.signals[name] for name in names), score]
    if variant.rival_context:
        channels.append(logit(rivals(cache)) / 3)
    statistics = [
        [f(part) for f in (np.mean, np.std, np.max)]
        + np.quantile(part, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        for part in opponents.pieces(cache, odds / 3)
    ]
    others = [
        [f(part) for f in (np.mean, np.std) for part in parts]
        for parts in zip(*(opponents.pieces(cache, cache.signals[n]) for n in names), strict=True)
    ]
    as_float = partial(torch.tensor, dtype=torch.float32)
    tables = [padded(cache, np.asarray(channel, np.float32)) for channel in channels]
    return Clips(
        torch.from_numpy(np.stack(tables, 1)),
        as_float(np.concatenate([statistics, others], 1)),
        torch.from_numpy(label),
        torch.from_numpy(padded(cache, score.astype(np.float32))),
        torch.from_numpy(padded(cache, base.astype(np.float32))),
        torch.from_numpy(padded(cache, cache.label)),
        torch.from_numpy(padded(cache, np.ones(len(cache.label), bool))),
        as_float(opponents.frame_s_of_pair(cache)),
    )


# ---------------------------------------------------------------------------- network


TINY = 1e-6  # of the actions that lead to the best decision, the one that shifts least


class DenseQNetwork(nn.Module):
    """Dilated convolutions [-> BiGRU -> Transformer] over the whole clip; Q-values of each frame.

    Input channels are the clip's, then threshold and decision of the pass before and its number.
    Frames behind the end of a pair are zero in every block, so a batch changes nothing.
    """

    def __init__(self, variant: Variant, example: Clips, num_classes: int):
        super().__init__()
        h = variant.hidden
        self.variant = variant
        self.inputs = nn.Conv1d(example.channels.shape[1] + 3, h, 1)
        self.of_class = nn.Embedding(num_classes, h)
        self.of_clip = nn.Linear(example.context.shape[1], h)
        self.convs = nn.ModuleList(
            nn.Conv1d(h, h, 5, padding=2 * 2**i, dilation=2**i) for i in range(variant.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(h) for _ in range(variant.layers))
        self.gru = nn.GRU(h, h // 2, batch_first=True, bidirectional=True) if variant.gru else None
        self.encoder = None
        if variant.transformer:
            self.encoder = nn.TransformerEncoderLayer(
                h, 4, 2 * h, variant.dropout, "gelu", batch_first=True
            )
        self.drop = nn.Dropout(variant.dropout)
        self.hidden = nn.Linear(h, h)
        head = DuelingHead if variant.dueling else nn.Linear
        self.head = head(h, variant.num_actions if variant.head == "actions" else 2)
        mean, std = statistics_of(example)
        for name, (a, b) in {"channel": (mean[0], std[0]), "clip": (mean[1], std[1])}.items():
            self.register_buffer(f"{name}_mean", a)
            self.register_buffer(f"{name}_std", b)

    def forward(self, clips: Clips, threshold: torch.Tensor, k: int) -> torch.Tensor:
        """Thresholds (B, T) of the pass before -> Q-values (B, T, A)."""
        inside = clips.inside[:, None].float()  # (B, 1, T)
        x = (clips.channels - self.channel_mean[:, None]) / self.channel_std[:, None]
        on = decide(clips.score, threshold).float()
        now = torch.stack([threshold, on, torch.full_like(on, k)], 1)
        x = self.inputs(torch.cat([x, now], 1))
        if self.variant.class_context:
            x = x + self.of_class(clips.event_label)[:, :, None]
        if self.variant.clip_context:
            x = x + self.of_clip((clips.context - self.clip_mean) / self.clip_std)[:, :, None]
        x = x * inside
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(x).transpose(1, 2)).transpose(1, 2)
            x = x + self.drop(functional.gelu(y)) * inside
        x = x.transpose(1, 2)  # (B, T, H)
        if self.gru is not None:
            lengths = clips.inside.sum(1).cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            x = x + pad_packed_sequence(self.gru(packed)[0], True, total_length=x.shape[1])[0]
        if self.encoder is not None:
            x = self.encoder(x, src_key_padding_mask=~clips.inside)
        values = self.head(functional.gelu(self.hidden(x)))
        if self.variant.head == "actions":
            return values
        deltas = deltas_of(self.variant)
        leads_to = decide(clips.score[:, :, None], shift(threshold[:, :, None], deltas)).long()
        return values.gather(2, leads_to) - TINY * deltas.abs()


class Members(nn.Module):
    """Several networks as one: the mean of their Q-values."""

    def __init__(self, networks: list[DenseQNetwork]):
        super().__init__()
        self.networks, self.variant = nn.ModuleList(networks), networks[0].variant

    def forward(self, clips: Clips, threshold: torch.Tensor, k: int) -> torch.Tensor:
        """As of each: (B, T, A)."""
        return torch.stack([network(clips, threshold, k) for network in self.networks]).mean(0)


def statistics_of(clips: Clips) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Mean and deviation of the channels (C,) and of the clip statistics (S,)."""
    values = clips.channels.transpose(1, 2)[clips.inside]
    both = (values, clips.context)
    return [x.mean(0) for x in both], [x.std(0) + 1e-6 for x in both]


# ---------------------------------------------------------------------------- rewards


def run_lengths(on: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Frames of the event or pause that a frame is in if it is off and if on -> (B, T, 2).

    A run that reaches an end of the pair counts as long: what is beyond cannot be known.
    """
    time_axis = torch.arange(on.shape[1], device=on.device).expand_as(on)
    end = inside.sum(1, keepdim=True)
    lengths = []
    for value in (False, True):
        other = on != value
        last = torch.where(other, time_axis, -1).cummax(1).values  # last other frame up to t
        left = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)  # before t
        after = torch.where(other & inside, time_axis, on.shape[1]).flip(1).cummin(1).values.flip(1)
        right = torch.cat([after[:, 1:], torch.full_like(after[:, :1], on.shape[1])], 1)
        right = torch.minimum(right, end)
        open_end = (left < 0) | (right >= end)
        lengths.append(torch.where(open_end, on.shape[1] + 1, right - left - 1))
    return torch.stack(lengths, 2)


def rewards(on: torch.Tensor, before: torch.Tensor, clips: Clips, variant: Variant) -> torch.Tensor:
    """Reward of deciding each frame off and on -> (B, T, 2).

    `before` (B, T): the decisions that the pass begins with; `on` (B, T): those of the current
    policy for all frames, which a difference reward holds the others at.
    """
    if variant.reward == "slides":
        right = torch.stack([~clips.label, clips.label], 2)
        was = (before == clips.label)[:, :, None].expand_as(right)
        value = reward_table(Bandit()).to(on.device)[reward_cells(was, right)]
    else:
        both = iou_gain(on, clips, variant.reward != "iou")
        value = both - both.gather(2, before[:, :, None].long())
    if variant.short_cost:
        short = (variant.short_s / clips.frame_s)[:, None, None]
        value = value - variant.short_cost * (run_lengths(on, clips.inside) < short)
    return value


# ---------------------------------------------------------------------------- learning


class Step(NamedTuple):
    """One pass over a batch."""

    threshold: torch.Tensor  # (B, T) it begins with
    on: torch.Tensor  # (B, T) greedy decisions
    taken: torch.Tensor  # (B, T) actions


def deltas_of(variant: Variant) -> torch.Tensor:
    """(A,) shift of each action."""
    bandit = Bandit(
        num_actions=variant.num_actions,
        max_delta=variant.max_delta,
        boundary_width=variant.max_delta,
    )
    return torch.tensor(bandit.deltas)


def act(
    network: DenseQNetwork | Members, clips: Clips, explore: torch.Generator | None
) -> list[Step]:
    """All passes of the current policy over a batch; with `explore`, epsilon-greedy."""
    variant, deltas = network.variant, deltas_of(network.variant)
    threshold, steps = clips.base, []
    for k in range(variant.passes):
        with torch.no_grad():
            best = network(clips, threshold, k).argmax(2)
        taken = best
        if explore is not None:
            random = torch.randint(variant.num_actions, best.shape, generator=explore)
            coin = torch.rand(best.shape, generator=explore) < variant.epsilon
            taken = torch.where(coin, random, best)
        on = decide(clips.score, shift(threshold, deltas[best]))
        steps.append(Step(threshold, on, taken))
        threshold = shift(threshold, deltas[taken])
    return steps


def augmented(clips: Clips, variant: Variant, rng: torch.Generator) -> Clips:
    """What is shown of a batch in training: some pairs backwards, log odds of another slope."""
    count, length = len(clips.label), clips.inside.sum(1, keepdim=True)
    if variant.flip:
        time_axis = torch.arange(clips.label.shape[1]).expand_as(clips.label)
        coin = torch.rand(count, 1, generator=rng) < 0.5
        at = torch.where(coin & clips.inside, length - 1 - time_axis, time_axis)
        wide = at[:, None].expand_as(clips.channels)
        clips = clips._replace(
            channels=clips.channels.gather(2, wide),
            score=clips.score.gather(1, at),
            base=clips.base.gather(1, at),
            label=clips.label.gather(1, at),
        )
    if variant.jitter:
        slope, offset = variant.jitter * torch.randn(2, count, 1, generator=rng)
        slope = slope.exp()
        channels, context = clips.channels.clone(), clips.context.clone()
        channels[:, 0] = (channels[:, 0] * slope + offset) * clips.inside
        context[:, :8] = context[:, :8] * slope + offset  # the statistics of the log odds
        context[:, 1:2] -= offset  # a deviation knows no offset
        clips = clips._replace(channels=channels, context=context)
    return clips


def loss_of(
    network: DenseQNetwork, target: DenseQNetwork, clips: Clips, explore: torch.Generator
) -> torch.Tensor:
    """Squared error between Q and reward (+ gamma x the next pass's value) -> (B,): the mean over
    the frames of a pair, times the pair's share of the batch's frames."""
    variant, deltas = network.variant, deltas_of(network.variant)
    learns_all = variant.learn != "taken"
    network.eval()
    steps = act(network, clips, None if learns_all and variant.passes == 1 else explore)
    network.train()
    total = torch.zeros(len(clips.label))
    for k, step in enumerate(steps):
        q = network(clips, step.threshold, k)  # (B, T, A)
        before = decide(clips.score, step.threshold)
        both = rewards(step.on, before, clips, variant)
        if learns_all and k + 1 == len(steps):
            shifted = shift(step.threshold[:, :, None], deltas)  # (B, T, A)
            wanted = both.gather(2, decide(clips.score[:, :, None], shifted).long())
        else:
            taken = step.taken[:, :, None]
            q = q.gather(2, taken)
            shifted = shift(step.threshold, deltas[step.taken])
            wanted = both.gather(2, decide(clips.score, shifted)[:, :, None].long())
            if variant.gamma and k + 1 < len(steps):
                with torch.no_grad():
                    next_q = target(clips, shifted, k + 1).flatten(0, 1)  # (B T, A)
                    own = network(clips, shifted, k + 1).flatten(0, 1) if variant.double else None
                goes_on = torch.zeros(len(next_q), dtype=torch.bool)
                paid = td_target(wanted.flatten(), goes_on, next_q, variant.gamma, own)
                wanted = paid.view_as(wanted)
        if variant.learn == "expected":
            error = -(q.softmax(2) * wanted).sum(2)
        else:
            error = (q - wanted).square().mean(2)  # (B, T)
        if variant.reward == "iou-weighted":
            error = error * union_weight(step.on, clips)
        total = total + (error * clips.inside).sum(1)
    return total * len(total) / clips.inside.sum() / len(steps)


def train(variant: Variant, clips: Clips, num_classes: int, seed: int) -> DenseQNetwork:
    """Learn on all pairs."""
    torch.manual_seed(seed)
    explore = torch.Generator().manual_seed(seed + 1)
    order_rng = np.random.default_rng(seed)
    network = DenseQNetwork(variant, clips, num_classes)
    target = DenseQNetwork(variant, clips, num_classes).eval() if variant.target_every else network
    count = len(clips.label)
    per_epoch = max(1, count // variant.batch)
    optimizer = torch.optim.AdamW(
        network.parameters(), variant.lr, weight_decay=variant.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, variant.lr, total_steps=variant.epochs * per_epoch
    )
    done, mean = 0, None
    if variant.average:
        mean = DenseQNetwork(variant, clips, num_classes).eval()
        sync(mean, network)
    pool = PrioritizedReplay(count, {"pair": ((), torch.int64)}, torch.device("cpu"))
    pool.add(pair=torch.arange(count))
    weights = torch.ones(())
    for _ in range(variant.epochs):
        order = torch.from_numpy(order_rng.permutation(count))
        for part in order[: per_epoch * variant.batch].split(variant.batch):
            if variant.prioritized:
                beta = anneal(0.4, 1.0, done / (variant.epochs * per_epoch))
                rows, index, weights = pool.draw(variant.batch, order_rng, beta)
                part = rows["pair"]
            if variant.target_every and done % variant.target_every == 0:
                sync(target, network)
            shown = augmented(clips.of(part), variant, explore)
            errors = loss_of(network, target, shown, explore)
            loss = (weights * errors).mean()
            if not loss.isfinite():
                raise InputError(
                    f"loss is {loss.item()}: the learning rate {variant.lr:g} is too large"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if variant.prioritized:
                pool.update(index, errors)
            if mean is not None:
                sync(mean, network, 1 - variant.average)
    return (network if mean is None else mean).eval()


def train_members(variant: Variant, clips: Clips, num_classes: int, seed: int) -> Members:
    """All networks of a variant; no two seeds share one."""
    seeds = range(seed * variant.members, (seed + 1) * variant.members)
    return Members([train(variant, clips, num_classes, each) for each in seeds])


def decisions(network: DenseQNetwork | Members, clips: Clips) -> np.ndarray:
    """Greedy decisions (N,) bool of all frames, after the last pass."""
    parts = torch.arange(len(clips.label)).split(64)
    found = []
    for part in parts:
        some = clips.of(part)
        found.append(act(network, some, None)[-1].on[some.inside].numpy())
    return np.concatenate(found)


# ---------------------------------------------------------------------------- the study


def split(fold: int, dev: int, queries: str = "present") -> tuple[Cache, Cache]:
    """Training pairs without and of a bank fold; InputError names what is missing."""
    path = ROOT / "data" / f"esc10-fold{fold}" / "clips.tsv"
    if not path.exists():
        raise InputError(f"{path}: not found; run: python studies/benchmark.py DATA")
    rows = [line.split("\t") for line in read_text(path).split("\n")[1:]]
    held = {row[1] for row in rows if row[:1] == ["train"] and row[2:3] == [str(dev)]}
    cache = load_cache(ROOT / "cache" / f"esc10-fold{fold}-slides-{queries}" / "train")
    names = {clip.filename for clip in cache.clips}
    if not held & names or not names - held:
        raise InputError(f"--dev {dev}: {path} has no training clip of that bank fold, or no other")
    return cache.subset(names - held), cache.subset(held & names)


def part_of(cache: Cache, share: float, seed: int) -> Cache:
    """A random share of the clips."""
    if share == 1:
        return cache
    names = sorted({clip.filename for clip in cache.clips})
    chosen = np.random.default_rng([seed, 1]).permutation(names)
    return cache.subset(set(chosen[: round(share * len(names))]))


def home_of(fold: int, dev: int) -> Path:
    """Folder of a split's results."""
    return ROOT / "runs" / "policy" / f"fold{fold}-dev{dev}"


def settings_of(name: str) -> str:
    """What the results of a variant depend on."""
    return json.dumps(to_dict(VARIANTS[name]))


def is_of(stored: str, name: str) -> bool:
    """Whether stored settings are a variant's; one that is newer than they are has its default."""
    try:
        return known_config(Variant, parse_json(stored)) == to_dict(VARIANTS[name])
    except ValueError:
        return False


def keep(path: Path, **arrays: Any) -> None:
    """Write arrays to an .npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def run_one(name: str, fold: int, dev: int, seed: int) -> str:
    """Train a variant, keep its decisions; what is there already is left alone."""
    path = home_of(fold, dev) / f"{name.replace(' ', '_')}-seed{seed}.npz"
    variant = VARIANTS[name]
    if path.exists() and is_of(str(read_npz(path, None, "delete it").get("settings")), name):
        return f"{name}, seed {seed}: done before"
    torch.set_num_threads(1)
    train_cache, dev_cache = split(fold, dev)
    fitted = fit(train_cache)
    began = time.process_time()
    clips = clips_of(part_of(train_cache, variant.share, seed), fitted, variant)
    network = train_members(variant, clips, len(train_cache.classes), seed)
    middle = time.process_time()
    pred = decisions(network, clips_of(dev_cache, fitted, variant))
    seconds = [middle - began, time.process_time() - middle]
    keep(path, pred=pred, seconds=seconds, settings=settings_of(name), name=name)
    counts = count_pairs(pred, dev_cache.label, dev_cache.offsets)
    means = [100 * scores_of(counts)[metric].mean() for metric in NAMES]
    return (
        f"{name}, seed {seed}: " + " / ".join(f"{m:.2f}" for m in means) + f", {seconds[0]:.0f} s"
    )


def run(cfg: RunConfig) -> None:
    """Every variant and seed, a process each."""
    names = list(VARIANTS) if "all" in cfg.variants else list(cfg.variants)
    with process_pool(cfg.workers) as pool:
        jobs = [
            pool.submit(run_one, n, cfg.fold, cfg.dev, s) for n in names for s in range(cfg.seeds)
        ]
        for job in tqdm(jobs, unit="run"):
            tqdm.write(job.result())


def rules_of(fold: int, dev: int, queries: str = "present") -> dict[str, np.ndarray]:
    """Decisions (N,) of T_base and every rule, tuned on the other folds; stored."""
    path = home_of(fold, dev) / ("rules.npz" if queries == "present" else f"rules-{queries}.npz")
    train_cache, dev_cache = split(fold, dev, queries)
    if path.exists():
        stored = read_npz(path, None, "delete it")
        if str(stored.pop("keys", "")) == train_cache.key + dev_cache.key:
            return stored
    found = {"T_base": dev_cache.signals["binary"] > 0.5}
    for rule in opponents.fit_all(train_cache, Bandit(), queries):
        found[rule.name] = opponents.decide_rule(rule, dev_cache)
    keep(path, keys=train_cache.key + dev_cache.key, **found)
    return found


def over_seeds(values: np.ndarray) -> list[str]:
    """(n, M) of n seeds -> M times mean ± deviation; of one seed the value."""
    some = len(values) > 1
    both = zip(values.mean(0), values.std(0, ddof=int(some)), strict=True)
    return [f"{mean:.2f}" + (f" ± {std:.2f}" if some else "") for mean, std in both]


def table(cfg: TableConfig) -> None:
    """Means, event-based F1, and the paired difference in F1 to the best rule."""
    home, cache = home_of(cfg.fold, cfg.dev), split(cfg.fold, cfg.dev)[1]
    rows = {name: [pred] for name, pred in rules_of(cfg.fold, cfg.dev).items()}
    times: dict[str, list[np.ndarray]] = {}
    for path in sorted(home.glob("*-seed*.npz")):
        stored = read_npz(path, None, "delete it")
        name = str(stored.get("name"))
        if name not in VARIANTS or not is_of(str(stored.get("settings")), name):
            print(f"note: {path} is of other settings and left out")
            continue
        rows.setdefault(name, []).append(stored["pred"])
        times.setdefault(name, []).append(stored["seconds"])
    clip = np.array([pair.filename for pair in cache.pairs])
    pairs, events = {}, {}
    for name, preds in tqdm(rows.items(), desc="Metrics", unit="row"):
        each = [scores_of(count_pairs(pred, cache.label, cache.offsets)) for pred in preds]
        pairs[name] = np.array(
            [[scores[metric] for metric in NAMES] for scores in each]
        )  # (n, 3, P)
        given = (cache.truth, cache.durations, cache.classes)
        found = [predicted_events(cache, pred) for pred in preds]
        events[name] = [100 * event_metrics.all_f1(f, *given)["event_f1"].macro for f in found]
    rivals = [name for name in rows if name not in times and "ceiling" not in name]
    best = max(rivals, key=lambda name: pairs[name][:, 2].mean())
    lines = [
        f"{len(cache.pairs)} pairs of {len(cache.clips)} training clips with sounds of bank fold"
    ]
    lines[0] += f" {cfg.dev}, trained and tuned on the other folds; *{best}* is the best rule."
    lines += [
        "",
        "| | Accuracy | IoU | F1 | IoU minus best rule | F1 minus best rule | event F1 |",
    ]
    lines[-1] += " s to train | s to decide |"
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name, values in pairs.items():
        cells = over_seeds(100 * values.mean(2))
        gain = 100 * (values.mean(0) - pairs[best].mean(0)).T  # (P, 3)
        low, high = bootstrap_mean(gain, clip)
        for k in (1, 2):
            interval = f"{gain[:, k].mean():+.2f} [{low[k]:+.2f}, {high[k]:+.2f}]"
            cells.append(interval if name != best else "")
        cells.append(f"{np.mean(events[name]):.2f}")
        if name in times:
            train_s, decide_s = np.mean(times[name], axis=0)
            cells += [f"{train_s:.0f}", f"{decide_s:.1f}"]
        else:  # a rule
            cells += ["", ""]
        lines.append(f"| {f'*{name}*' if name == best else name} | {' | '.join(cells)} |")
    write_text(home / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def show(_: ListConfig) -> None:
    """One line a variant."""
    for name, variant in VARIANTS.items():
        changed = {k: v for k, v in to_dict(variant).items() if v != to_dict(DENSE)[k]}
        print(f"{name}: " + ", ".join(f"{k}={v}" for k, v in changed.items()))


COMMANDS = {"run": (RunConfig, run), "table": (TableConfig, table), "list": (ListConfig, show)}


def main(cfg: RunConfig | TableConfig | ListConfig) -> None:
    """The command that the settings belong to."""
    next(work for kind, work in COMMANDS.values() if isinstance(cfg, kind))(cfg)


if __name__ == "__main__":
    os.chdir(ROOT)
    run_script({name: kind for name, (kind, _) in COMMANDS.items()}, main)
