"""The dense policy: one pass over the whole clip gives the Q-values of every frame.

Run:    python DQN.py --preset best
Reads:  nothing
Writes: nothing
Shapes: N frames of all pairs, B pairs of a batch, T frames of the longest, C channels, A actions,
        H width, S statistics, M members
Next:   DQN.py

The windowed network computes 21 frames anew for each frame and sees nothing else. This one runs
dilated convolutions over the clip, knows the queried class and the statistics of the whole clip,
and is paid by what a decision changes in the IoU of its pair (`iou_gain`). The rewards of all
actions are known, so it learns from all of them and needs no exploration.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import runfolder
from bandit import (
    Signals,
    check_finite,
    decide,
    delta_table,
    episode_order,
    hold_out,
    near,
    planned,
    reward_cells,
    shift,
    thresholds,
    to_device,
)
from config import Bandit, Dense, InputError, TrainConfig
from gate import Gate, lowered, open_pairs, tune_gate
from metrics import mean_f1
from preprocess import Cache
from qlearning import rate_at
from ranks import ALONE, Ranks

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PAIRS = 64  # decided at a time
MIN_UNION = 15  # frames; below, a pair's weight grows no more
POOL = 0.98  # share of a class's counts that is left after a gradient step
FLAT = 1e-4  # deviation of a channel that says nothing
TINY = 1e-6  # of a value, for each unit of shift

# ---------------------------------------------------------------------------- clips


class Clips(NamedTuple):
    """Some pairs on the T frames of the longest; behind the end of a pair its last frame stands."""

    channels: torch.Tensor  # (B, C, T) float32
    prob: torch.Tensor  # (B, T)
    t_base: torch.Tensor  # (B, T)
    label: torch.Tensor  # (B, T) bool
    inside: torch.Tensor  # (B, T) bool, frames that exist
    frame: torch.Tensor  # (B, T) int64, where they are among the N
    query: torch.Tensor  # (B,) int64, index of the class, -1: unknown
    rival: torch.Tensor | None  # (B, T), see `bandit.rivals`


def clips_of(signals: Signals, pairs: torch.Tensor) -> Clips:
    """Pairs (B,) of resident signals. ValueError where these do not say what each asks for."""
    if signals.query is None:
        raise ValueError("a dense policy needs signals that know their queries")
    start, end = signals.start[pairs], signals.end[pairs]
    length = (end - start)[:, None]
    steps = torch.arange(int(length.max()), device=pairs.device)
    frame = start[:, None] + steps.minimum(length - 1)
    return Clips(
        signals.channels[:, frame].transpose(0, 1),
        signals.prob[frame],
        signals.t_base[frame],
        signals.label[frame],
        steps < length,
        frame,
        signals.query[pairs],
        None if signals.rival is None else signals.rival[frame],
    )


def statistics(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """(B, C, T) -> (B, 3C + 5): mean, deviation and maximum of each channel over the clip, and
    quantiles of the first one."""
    count = inside.sum(1)[:, None].float()
    there = inside[:, None]
    mean = (x * there).sum(2) / count
    deviation = (((x - mean[:, :, None]) * there).square().sum(2) / count).sqrt()
    highest = x.masked_fill(~there, -torch.inf).amax(2)
    ranked = x[:, 0].masked_fill(~inside, torch.inf).sort(1).values
    shares = torch.tensor(QUANTILES, device=x.device)
    at = (shares * (count - 1)).round().long()  # (B, 5)
    return torch.cat([mean, deviation, highest, ranked.gather(1, at)], 1)


def leads_to(clips: Clips, deltas: torch.Tensor) -> torch.Tensor:
    """(B, T, A) bool: the decision that each shift (A,) of a frame's threshold leads to."""
    return decide(clips.prob[:, :, None], shift(clips.t_base[:, :, None], deltas))


# ---------------------------------------------------------------------------- network


def log_odds(score: torch.Tensor) -> torch.Tensor:
    """Of a score kept off 0 and 1, divided by 3, which brings it to the size of the others."""
    return torch.logit(score, eps=1e-4) / 3


def without_rivals(x: torch.Tensor, about: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled channels (B, C, T) and statistics (B, S) with the second channel, the rivals', at its
    mean over the training clips, where it says nothing."""
    count = x.shape[1]
    x, about = x.clone(), about.clone()
    x[:, 1], about[:, 1 : 3 * count : count] = 0, 0
    return x, about


class Member(nn.Module):
    """Residual dilated convolutions over the clip -> what off and on are worth in each frame."""

    def __init__(self, num_channels: int, num_classes: int, dense: Dense, heads: int):
        super().__init__()
        h, k = dense.hidden, dense.kernel
        self.inputs = nn.Conv1d(num_channels, h, 1)
        self.of_class = nn.Embedding(num_classes, h) if dense.class_context else None
        self.of_clip = nn.Linear(3 * num_channels + len(QUANTILES), h)
        self.convs = nn.ModuleList(
            nn.Conv1d(h, h, k, padding=k // 2 * 2**i, dilation=2**i) for i in range(dense.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(h) for _ in range(dense.layers))
        self.drop = nn.Dropout(dense.dropout)
        self.head = nn.Sequential(nn.Linear(h, h), nn.GELU(), nn.Linear(h, 2 * heads))

    def forward(
        self, x: torch.Tensor, about: torch.Tensor, inside: torch.Tensor, query: torch.Tensor
    ) -> torch.Tensor:
        """Channels (B, C, T), statistics (B, S) -> (B, T, 2) of each head, side by side."""
        context = self.of_clip(about)
        if self.of_class is not None:  # an unknown class adds nothing
            context = context + self.of_class(query.clamp_min(0)) * (query >= 0)[:, None]
        there = inside[:, None].float()
        x = (self.inputs(x) + context[:, :, None]) * there
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(x).transpose(1, 2)).transpose(1, 2)
            x = x + self.drop(functional.gelu(y)) * there
        return self.head(x.transpose(1, 2))


class DenseQNetwork(nn.Module):
    """Members that start differently; their mean Q-value decides.

    An action does nothing but lead to a decision, and which one is known, so Q(s, a) is what the
    network thinks of that decision. Of actions that lead to the same, the smallest shift wins.

    Channels are shown as the training clips' mean and deviation scale them, raw scores as their
    log odds. Frames behind the end of a pair are zero in every block: a batch changes nothing.

    `queries` are those of the training cache. Where they were `all` classes, the highest raw score
    of the clip's other queries is a channel too: of two that are high one is often wrong. Where
    they were the `present` ones, the last `rival_members` see it: they draw the line between two
    that sound better, and the first ones are not misled by a class that does not. With `known_head`
    a second head answers as if the class were known to sound; the first one decides.
    """

    def __init__(self, bandit: Bandit, dense: Dense, classes: tuple[str, ...], queries: str):
        super().__init__()
        self.bandit, self.classes, self.raw = bandit, classes, bandit.channels.index("d_raw")
        seeing = dense.members if queries == "all" else dense.rival_members
        self.blind = dense.members - (seeing if dense.rival_context else 0)
        self.rivals = self.blind < dense.members
        self.heads = 2 if dense.known_head and queries == "all" else 1
        count = len(bandit.channels) + self.rivals
        self.members = nn.ModuleList(
            Member(count, len(classes), dense, self.heads) for _ in range(dense.members)
        )
        for name, size in (("channel", count), ("clip", 3 * count + len(QUANTILES))):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        # Frames of each class lately: on and true, on, true, all. See `pooled_gain`.
        self.register_buffer("counts", torch.zeros(len(classes), 4))

    @property
    def window(self) -> int:
        """Frames that the convolutions see."""
        convs = self.members[0].convs
        return 1 + sum((conv.kernel_size[0] - 1) * conv.dilation[0] for conv in convs)

    def shown(self, clips: Clips) -> tuple[torch.Tensor, torch.Tensor]:
        """Channels (B, C, T), raw scores first as log odds, and statistics (B, S), unscaled."""
        scores = clips.channels[:, self.raw : self.raw + 1]
        if self.rivals:
            scores = torch.cat([scores, clips.rival[:, None]], 1)
        rest = [i for i in range(clips.channels.shape[1]) if i != self.raw]
        x = torch.cat([log_odds(scores), clips.channels[:, rest]], 1)
        return x, statistics(x, clips.inside)

    @torch.no_grad()
    def fit_scale(self, signals: Signals, pairs: np.ndarray) -> None:
        """Mean and deviation of channels and statistics over the training pairs."""
        channels, clips = [], []
        for part in torch.from_numpy(pairs).to(signals.prob.device).split(PAIRS):
            some = clips_of(signals, part)
            x, about = self.shown(some)
            channels.append(x.transpose(1, 2)[some.inside])
            clips.append(about)
        for name, values in (("channel", torch.cat(channels)), ("clip", torch.cat(clips))):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            deviation = values.std(0, correction=0)
            flat = deviation < FLAT  # e.g. the loudness without audio
            getattr(self, f"{name}_std").copy_(deviation.masked_fill(flat, 1.0))

    def values(self, clips: Clips) -> list[torch.Tensor]:
        """What every member thinks of off and on: (B, T, 2 H) each, for the H heads in turn."""
        x, about = self.shown(clips)
        x = (x - self.channel_mean[:, None]) / self.channel_std[:, None]
        about = (about - self.clip_mean) / self.clip_std
        seen = [(x, about)] * len(self.members)
        if self.rivals and self.blind:
            seen[: self.blind] = [without_rivals(x, about)] * self.blind
        return [
            member(*shown, clips.inside, clips.query)
            for member, shown in zip(self.members, seen, strict=True)
        ]

    def forward(self, clips: Clips) -> torch.Tensor:
        """-> (B, T, A): expected reward of each threshold shift of each frame."""
        value = torch.stack(self.values(clips)).mean(0)[..., :2]
        deltas = delta_table(self.bandit, value.device)
        return value.gather(2, leads_to(clips, deltas).long()) - TINY * deltas.abs()


@torch.inference_mode()
def greedy(
    network: DenseQNetwork,
    signals: Signals,
    bandit: Bandit,
    pairs: np.ndarray,
    progress: str | None = None,
) -> torch.Tensor:
    """Best action of every frame of `pairs` -> (N,) int64; no change where no action matters.

    InputError where Q-values are not finite.
    """
    device, was_training = signals.prob.device, network.training
    network.eval()
    actions = torch.full_like(signals.prob, bandit.no_change, dtype=torch.int64)
    bar = tqdm(total=len(pairs), desc=progress, unit="pair", disable=progress is None)
    parts = torch.from_numpy(np.asarray(pairs)).to(device).split(PAIRS)
    for part in parts if len(pairs) else ():
        clips = clips_of(signals, part)
        q_values = network(clips)
        check_finite(q_values[clips.inside].isfinite().all())
        acts = clips.inside & near(clips.prob, clips.t_base, bandit.max_delta)
        actions[clips.frame[acts]] = q_values.argmax(2)[acts]
        bar.update(len(part))
    bar.close()
    network.train(was_training)
    return actions


# ---------------------------------------------------------------------------- reward


def iou_gain(on: torch.Tensor, clips: Any, scaled: bool) -> torch.Tensor:
    """A pair's IoU with a frame off and on, the others decided as in `on` -> (B, T, 2).

    IoU = I / U with I = #(on and true), U = #(on or true). Let I', U' be those of all frames but t.
    Off gives I' / (U' + y) and on (I' + y) / (U' + 1), so that on - off is about 1 / U for a true
    frame (y = 1) and -IoU / U for another: the frame's decision is worth turning on where
    P(y = 1) > IoU / (1 + IoU). That is the difference reward of frame t: what its own decision
    changes in the metric. Times the pair's frames, which makes the mean over frames the mean over
    pairs, or `scaled` by the union: then a reward is 1 or IoU, whatever the length of the event.

    `clips` has `label` and `inside`, (B, T) bool each.
    """
    true, on = clips.label & clips.inside, on & clips.inside
    both, either = true & on, true | on
    inner = both.sum(1, keepdim=True) - both.float()  # I' (B, T)
    outer = either.sum(1, keepdim=True) - either.float()
    y = true.float()
    off_union, on_union = outer + y, outer + 1
    off = torch.where(off_union > 0, inner / off_union.clamp_min(1), 1.0)
    gain = torch.stack([off, (inner + y) / on_union], 2)
    size = either.sum(1).clamp_min(1) if scaled else clips.inside.sum(1)
    return gain * size[:, None, None]


def union_weight(on: torch.Tensor, clips: Any) -> torch.Tensor:
    """(B, 1): a pair's frames over its union, which the error of a `scaled` reward is weighted
    with: the same decisions are aimed at as without both, by targets that vary less."""
    union = (clips.label & clips.inside | on & clips.inside).sum(1, keepdim=True)
    return clips.inside.sum(1, keepdim=True) / union.clamp_min(MIN_UNION)


def reachable(clips: Clips, bandit: Bandit) -> torch.Tensor:
    """(B, T): the share of the actions that turn a frame on."""
    return leads_to(clips, delta_table(bandit, clips.t_base.device)).float().mean(2)


def better(value: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Values of off and on (..., 2) -> the better decision of those that some action leads to."""
    return (share == 1) | (share > 0) & (value[..., 1] > value[..., 0])


def pooled_gain(clips: Clips, counts: torch.Tensor) -> torch.Tensor:
    """What off and on change in the F1 of the class over all pairs -> (B, T, 2).

    F1 = 2 TP / (P + T) over all frames of the class, of which P are on and T true. A frame more
    that is on changes it by (2 y - F1) / (P + T + 1), so it is worth that where P(y = 1) > F1 / 2.
    Times P + T, as if `iou_gain` were scaled: off is worth 0 and on 2 y - F1. Absent classes count:
    where nothing is true, on costs F1.

    `counts` (K, 4): TP, P, T and all frames of each class, lately.
    """
    tp, on, true, _ = counts[clips.query].T
    f1 = 2 * tp / (on + true).clamp_min(1)
    gain = 2 * clips.label.float() - f1[:, None]
    return torch.stack([torch.zeros_like(gain), gain], 2)


def class_weight(clips: Clips, counts: torch.Tensor) -> torch.Tensor:
    """(B, 1): all frames over those that count for a class, so that each class weighs the same."""
    counted = (counts[:, 1] + counts[:, 2]).clamp_min(MIN_UNION)
    return (counts[:, 3].sum() / len(counts) / counted)[clips.query][:, None]


# ---------------------------------------------------------------------------- training


def lessons(cache: Cache, gate: Gate | None, share: float) -> np.ndarray:
    """(P,) bool: pairs to learn from: the present ones, and those above a share of the gate's
    thresholds, which the gate lets through or nearly does."""
    if gate is None:
        return np.ones(len(cache.pairs), bool)
    return cache.present | open_pairs(lowered(gate, share), cache)


def training_pairs(cache: Cache, cfg: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs that a run trains on and of those kept aside. A dense policy learns from
    `lessons` of all pairs, and is looked at on present ones."""
    train, aside = hold_out(cache, cfg)
    if cfg.method == "dense" and cache.queries == "all":
        train = train[lessons(cache, tune_gate(cache), cfg.dense.gate_share)[train]]
        aside = aside[cache.present[aside]]
    return train, aside


class DenseTrainer:
    """The state of a run; what changes is in the checkpoint. As `Trainer` of DQN.py to its user.

    An episode is a pair; a tick is a gradient step on the next `batch` of them.
    """

    PASSES, FLOOR = 15, 150  # gradient steps, see "How much data" in docs/scores.md
    SCHEDULE = "the learning rate goes on as if all had been planned from the start"

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        if ranks.size > 1:
            raise InputError("--method dense trains in one process; leave out torchrun")
        self.cache, self.device, self.ranks = cache, device, ranks
        self.bandit = cfg.bandit
        train, self.held_out = training_pairs(cache, cfg)
        self.pass_pairs, self.batch = len(train), cfg.dense.batch
        self.cfg = cfg = planned(cfg, self.PASSES, self.FLOOR, self.gradient_steps)
        self.gate, self.pooled = tune_gate(cache), cache.queries == "all"
        self.order = episode_order(cache, train, cfg)
        torch.manual_seed(cfg.seed)  # initial weights and dropout
        self.network = DenseQNetwork(
            self.bandit, cfg.dense, tuple(cache.classes), cache.queries
        ).to(device)
        known = self.network.classes, self.network.rivals
        self.signals = to_device(cache, self.bandit, device, *known)
        self.network.fit_scale(self.signals, train)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), cfg.dense.lr, weight_decay=cfg.dense.weight_decay
        )
        self.recent: deque[float] = deque(maxlen=10)
        self.progress = runfolder.new_progress()

    @property
    def done(self) -> bool:
        """All episodes have finished."""
        return self.progress["finished"] == len(self.order)

    @property
    def total_frames(self) -> int:
        """Frames that the whole run visits."""
        return int(np.diff(self.cache.offsets)[self.order].sum())

    def gradient_steps(self, passes: int) -> int:
        """How many so many passes make."""
        return -(-passes * self.pass_pairs // self.batch)

    def epsilon(self, episode: int) -> float:
        """Exploration rate: the rewards of all actions are known, so nothing is tried out."""
        return 0.0

    def losses(
        self, clips: Clips, share: torch.Tensor, values: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Squared error of every member between the values of off and on and their rewards, over
        the actions: a decision weighs as much as the `share` of those that lead to it. A head's own
        decisions are the others' in a difference reward.
        """
        base = decide(clips.prob, clips.t_base)[:, :, None].long()
        weight, found = torch.stack([1 - share, share], 2), []

        def error_of(value: torch.Tensor, gain: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            wanted = gain - gain.gather(2, base)
            return ((value - wanted).square() * weight).sum(2) * scale

        def error_if_present(value: torch.Tensor) -> torch.Tensor:
            on = better(value.detach(), share)
            return error_of(value, iou_gain(on, clips, scaled=True), union_weight(on, clips))

        for value in values:
            if not self.pooled:
                error = error_if_present(value)
            else:
                counts = self.network.counts
                pooled = pooled_gain(clips, counts), class_weight(clips, counts)
                error = error_of(value[..., :2], *pooled)
                if self.network.heads == 2:
                    present = clips.label.any(1, keepdim=True)
                    error = error + error_if_present(value[..., 2:]) * present
            found.append(error[clips.inside].mean())
        return found

    def count(self, on: torch.Tensor, clips: Clips) -> None:
        """Add a batch to what is known of each class's F1; what is older counts less."""
        true, on, inside = clips.label & clips.inside, on & clips.inside, clips.inside
        counts = torch.stack([x.sum(1) for x in (true & on, on, true, inside)], 1).float()
        self.network.counts.mul_(POOL).index_add_(0, clips.query, counts)

    def tick(self) -> list[tuple[int, list[int]]]:
        """A gradient step on the next pairs; (episode, cells of the greedy decisions) of each."""
        first = self.progress["finished"]
        pairs = torch.from_numpy(self.order[first : first + self.batch]).to(self.device)
        clips = clips_of(self.signals, pairs)
        share = reachable(clips, self.bandit)
        self.network.train()
        values = self.network.values(clips)
        value = torch.stack(values).detach().mean(0)[..., :2]
        on = better(value, share)
        if self.pooled:
            self.count(on, clips)
        rate = self.cfg.dense.lr * rate_at(first / len(self.order))
        self.gradient_step(self.losses(clips, share, values), rate)
        self.progress["finished"] += len(pairs)
        self.progress["frames"] += int(clips.inside.sum())
        q_taken = value.gather(2, on[:, :, None].long())[:, :, 0]
        self.progress["q_sum"] += q_taken[clips.inside].mean().item()
        right = decide(clips.prob, clips.t_base) == clips.label
        cells = functional.one_hot(reward_cells(right, on == clips.label), 4)
        counts = (cells * clips.inside[:, :, None]).sum(1)
        return list(enumerate(counts.tolist(), start=first))

    def gradient_step(self, losses: list[torch.Tensor], rate: float) -> None:
        """One step of AdamW, of each member by itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for member in self.network.members:
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        if not loss.isfinite():
            raise InputError(
                f"loss is {loss.item()} at gradient step {self.progress['steps']}; last.pt holds a"
                " good state; start anew with --overwrite and a smaller --dense.lr"
            )
        self.optimizer.step()
        self.progress["steps"] += 1
        self.progress["loss_count"] += 1
        self.progress["loss_sum"] += loss.item() / len(losses)

    def read_sums(self) -> None:
        """They are in `progress` already."""

    def reset_sums(self) -> None:
        """Begin to add up loss and Q anew."""
        self.progress |= {"loss_sum": 0.0, "q_sum": 0.0, "loss_count": 0}

    def policy(self) -> dict[str, Any]:
        """What best.pt and the numbered checkpoints hold: enough to apply the policy."""
        info = self.progress | {"trained_on": self.cache.facts}
        content = runfolder.policy_content(self.cfg, self.cache, self.network, self.gate, info)
        return {"classes": list(self.network.classes), "queries": self.cache.queries} | content

    def state(self) -> dict[str, Any]:
        """What last.pt holds: everything that a bit-exact resume needs."""
        rest = {"optimizer": self.optimizer.state_dict(), "recent": list(self.recent)}
        return self.policy() | rest | {"rng": runfolder.torch_rng(self.device)}

    def restore(self, content: dict[str, Any]) -> None:
        """Take over the state of last.pt."""
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.recent.extend(content["recent"])
        self.progress |= content["info"]
        runfolder.restore_torch_rng(content["rng"], self.device)

    def held_out_f1(self) -> float:
        """Mean-pair F1 of the greedy policy on the held-out pairs."""
        actions = greedy(self.network, self.signals, self.bandit, self.held_out)
        pred = decide(self.signals.prob, thresholds(self.signals, actions, self.bandit))
        return mean_f1(self.cache, pred.cpu().numpy(), self.held_out)


def announce(trainer: DenseTrainer) -> None:
    """Say what is about to happen."""
    cfg, order, members = trainer.cfg, trainer.order, trainer.network.members
    print(
        f"device {trainer.device}, {cfg.threads} thread(s); dense network,"
        f" {sum(p.numel() for p in trainer.network.parameters()):,} parameters in"
        f" {len(members)} member(s)\n"
        f"{len(order) // cfg.passes} training pairs, {len(trainer.held_out)} held out,"
        f" {len(order)} episodes, {trainer.total_frames:,} frames,"
        f" {trainer.gradient_steps(cfg.passes):,} gradient steps; run folder {cfg.run}"
    )
