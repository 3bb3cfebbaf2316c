"""Supervised baselines: the policy's state and network, learned from labels instead of by trying.

Run:    python DQN.py --method classifier --run runs/classifier
        python DQN.py --method rewards --run runs/rewards
Shapes: N frames of all pairs, B batch, A actions

With gamma 0 a policy is a classifier of the state, and the labels give the reward of every action.
Two baselines ask what reinforcement learning adds to that:

classifier  one output, cross-entropy with the label, on every frame; on where its logit is above 0
rewards     the Q-network itself, squared error against the rewards of all actions at once, on the
            frames inside the boundary, which are those that the policy learns from

A baseline always sees cached arrays (the independent reading): it takes no earlier decision.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from config import Bandit, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks
from policy import runfolder
from policy.apply import decisions
from policy.bandit import (
    Signals,
    decide,
    delta_table,
    diverged,
    hold_out,
    make_states,
    near,
    planned,
    reward_cells,
    reward_table,
    shift,
    to_device,
)
from policy.device import CPU_BATCHES, fastest_batch
from policy.gate import tune_gate
from policy.learner import STEPS_A_TICK, Learner, tenths
from policy.network import make_network
from sed.caches import Cache
from sed.metrics import mean_f1


def all_rewards(signals: Signals, frame: torch.Tensor, bandit: Bandit) -> torch.Tensor:
    """Reward of every action on some frames (B,) -> (B, A)."""
    prob, t_base, label = (x[frame] for x in (signals.prob, signals.t_base, signals.label))
    deltas = delta_table(bandit, frame.device)
    before = decide(prob, t_base) == label
    after = decide(prob[:, None], shift(t_base[:, None], deltas)) == label[:, None]
    cells = reward_cells(before[:, None].expand_as(after), after)
    return reward_table(bandit, frame.device)[cells]


class FrameLearner(Learner):
    """What the learners share that decide frame by frame."""

    PASSES, FLOOR = 1, 2_000  # slides; gradient steps, see "How much data" in docs/scores.md

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks):
        super().__init__(cache, device, ranks)
        self.bandit, self.learning = cfg.bandit, cfg.learning
        self.learns_from, self.held_out = hold_out(cache, cfg)
        self.signals = to_device(cache, self.bandit, device)
        self.gate = tune_gate(cache)

    @cached_property
    def deciding_batch(self) -> int:
        """Held-out frames in a forward pass: on a GPU as many as it decides fastest, measured once;
        on a CPU, where it matters little, the reference."""
        if self.device.type == "cuda":
            return fastest_batch(self.network, self.signals, self.bandit)
        return CPU_BATCHES[0]

    def held_out_f1(self) -> float:
        """Mean-pair F1 of what the network decides on the held-out pairs."""
        given = (self.network, self.signals, self.bandit, self.deciding_batch, self.held_out)
        pred, _ = decisions(*given, ranks=self.ranks)
        return mean_f1(self.cache, pred.cpu().numpy(), self.held_out)


class SupervisedTrainer(FrameLearner):
    """A supervised baseline: an episode is a gradient step, on frames drawn at random."""

    SCHEDULE = "the learning rate is constant"

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        if ranks.size > 1:
            raise InputError(f"--method {cfg.method} trains in one process; leave out torchrun")
        super().__init__(cfg, cache, device, ranks)
        self.classifies = cfg.method == "classifier"
        self.owner = torch.from_numpy(cache.frames_of_pair).to(device)
        mine = np.isin(cache.frames_of_pair, self.learns_from)
        self.pass_frames = int(mine.sum())
        self.cfg = cfg = planned(cfg, self.PASSES, self.FLOOR, self.gradient_steps)
        self.order = np.arange(self.gradient_steps(cfg.passes))
        if not self.classifies:
            prob, t_base = cache.signals["prob"], cache.signals["t_base"]
            mine &= near(prob, t_base, self.bandit.boundary_width)
        self.frames = np.flatnonzero(mine)
        if not len(self.frames):
            raise InputError(f"{cache.folder}: no frame lies inside the boundary")
        torch.manual_seed(cfg.seed)  # initial weights and dropout
        self.network = make_network(cfg.method, self.bandit, cfg.network).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.learning.lr, fused=True)
        self.rng = np.random.default_rng([cfg.seed, 4])
        self.sums = self.sums.cpu()  # each tick tells the host its losses
        self.steps_a_tick = STEPS_A_TICK if device.type == "cuda" else 1  # no more looks at a GPU

    def gradient_steps(self, passes: int) -> int:
        return max(1, passes * self.pass_frames // self.learning.frames_per_step)

    @property
    def total_frames(self) -> int:
        """Frames that the whole run learns from, one that is drawn again counted again."""
        return len(self.order) * self.learning.batch

    def loss_of(self, out: torch.Tensor, frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Answers on frames (B,) -> loss, decisions (B,) bool, mean answer: the probability that
        the frames are on, or the Q-value of the best action."""
        if self.classifies:
            logit, target = out[:, 0], self.signals.label[frame].float()
            loss = functional.binary_cross_entropy_with_logits(logit, target)
            return loss, logit > 0, logit.detach().sigmoid().mean()
        loss = functional.mse_loss(out, all_rewards(self.signals, frame, self.bandit))
        value, action = out.detach().max(1)
        threshold = shift(self.signals.t_base[frame], delta_table(self.bandit, self.device)[action])
        return loss, decide(self.signals.prob[frame], threshold), value.mean()

    def gradient_step(self, frame: torch.Tensor) -> torch.Tensor:
        """One step of Adam on frames (B,) -> (6,): loss, mean answer, the four reward cells."""
        states = make_states(self.signals, self.owner[frame], frame, self.bandit)
        self.network.train()
        loss, on, answer = self.loss_of(self.network(states), frame)
        prob, t_base, label = (part[frame] for part in self.signals[1:4])
        cells = reward_cells(decide(prob, t_base) == label, on == label)
        counts = (cells[:, None] == torch.arange(4, device=self.device)).sum(0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return torch.cat([torch.stack([loss.detach(), answer]).double(), counts])

    def tick(self) -> list[tuple[int, list[int]]]:
        first = self.progress["finished"]
        steps = range(first, min(first + self.steps_a_tick, len(self.order)))
        drawn = self.rng.choice(self.frames, (len(steps), self.learning.batch))
        frames = torch.from_numpy(drawn).to(self.device)
        told = torch.stack([self.gradient_step(frame) for frame in frames])
        told = told.tolist()  # the one wait for a GPU
        for step, (loss, *_) in zip(steps, told, strict=True):
            if not math.isfinite(loss):
                what = f"loss is {loss} at gradient step {step}"
                raise diverged(f"{what} (learning rate {self.learning.lr:g})")
        self.sums += torch.tensor(told, dtype=torch.float64)[:, :2].sum(0)
        for name in ("finished", "steps", "loss_count"):
            self.progress[name] += len(steps)
        self.progress["frames"] += frames.numel()
        return [(step, list(map(int, row[2:]))) for step, row in zip(steps, told, strict=True)]

    def own_state(self) -> dict[str, Any]:
        return {"rng": super().own_state()["rng"] | {"draws": self.rng.bit_generator.state}}

    def restore(self, content: dict[str, Any]) -> None:
        own = self.take_over(content)
        self.load_optimizer(self.optimizer, content["optimizer"])
        self.rng.bit_generator.state = own["rng"]["draws"]

    def learned(self) -> tuple[dict[str, str], str]:
        loss = runfolder.read_history(self.cfg.run)["Loss"]
        first, last = tenths(loss[loss > 0])  # a tick of several steps has one, their mean
        said = f"from the first to the last tenth of the steps the loss went from {first} to {last}"
        return {"loss_first_tenth": first, "loss_last_tenth": last}, said

    def announce(self) -> None:
        cfg = self.cfg
        print(
            f"device {self.device}, {cfg.threads} thread(s); supervised baseline ({cfg.method}),"
            f" network {sum(p.numel() for p in self.network.parameters()):,} parameters\n"
            f"{len(self.frames):,} training frames, {len(self.held_out)} pairs held out,"
            f" {len(self.order):,} gradient steps of {cfg.learning.batch}; run folder {cfg.run}"
        )
