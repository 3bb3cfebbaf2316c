"""A policy over events that goes over to other scores: few clips, few parameters.

Run:    python DQN.py --preset best --init policy/pretrained.pt --cache cache/mine --run runs/mine
Shapes: see event_policy.py; A answers of a network

A network has some 30,000 weights, and 20 clips cannot tell them. What they can tell is how far its
probabilities are off: the log odds of its answers are mixed and shifted, z -> z W + b, with W = 1
and b = 0 at first. That is a logistic regression on what the networks say, once on frames (3
answers) and once on boxes (4 values), 32 numbers in all. A Gaussian prior around where they begin
keeps them there as far as the clips say nothing. A linear map behind a linear layer is one linear
layer, so that the policy stays as large as it was.

The networks never saw these clips, so none is left out. F and N, the prices of the decision, are
found on these clips; of a class with few events there they are drawn to the mean of all classes.
A step sees all clips and nothing is drawn by chance, so that a seed only says which are held out.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from config import Events, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks
from core.tensors import digest
from policy.apply import load_policy
from policy.bandit import planned
from policy.event_policy import IOU, VALUES, EventNetwork, EventTrainer, Prices
from policy.posterior import ANSWERS, EDGE_WEIGHT, Asked, Resident, Stacked, apply
from policy.qlearning import rate_at
from policy.runfolder import checkpoint_of
from sed.caches import Cache

LR = 0.05
LEAST = 1e-6  # probabilities are kept off 0 and 1 by this
SPREAD = 0.5  # deviation of the Gaussian prior around "as it was"
FEW = 10.0  # events, predicted and true: a class with so many is believed by half
# How many independent observations the frames and the boxes of a query are worth: neighbouring
# frames, and boxes that overlap, say the same.
OBSERVATIONS = {"posterior": 10.0, "values": 3.0}


class Mixing(nn.Module):
    """Log odds (.., A) -> (.., A), mixed and shifted; at first as they are."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, odds: torch.Tensor) -> torch.Tensor:
        return odds @ self.weight + self.bias

    def moved(self) -> torch.Tensor:
        """Squared distance from where it began."""
        turned = self.weight - torch.eye(len(self.bias), device=self.bias.device)
        return turned.square().sum() + self.bias.square().sum()

    @torch.no_grad()
    def behind(self, before: Stacked, layer: Stacked) -> None:
        """Make `layer` what `before` and this are together."""
        layer.weight.copy_(before.weight @ self.weight)
        layer.bias.copy_(before.bias @ self.weight + self.bias)


class Recalibrator(EventTrainer):
    """`EventTrainer` where a policy is given: a gradient step is one of Adam on all frames, or on
    all boxes, and changes the mixing alone. InputError for a policy that does not fit."""

    PASSES, FLOOR = 150, 300

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        path = checkpoint_of(cfg.init)
        policy = load_policy(path, device, cfg.preset)
        if not policy.over_events:
            raise InputError(f"--init {path}: was trained otherwise: --method {policy.method}")
        theirs, usual = policy.network.events, Events()
        if theirs.class_context and policy.classes != tuple(cache.classes):
            known, here = (", ".join(names) for names in (policy.classes, cache.classes))
            raise InputError(
                f"--init {path}: knows {known}, the cache has {here}; a policy for any classes is"
                " trained with --events.no-class-context"
            )
        free = ("tag_limit", "micro_weight", "collar_weight", "overlap_weight")
        for name in (spec.name for spec in fields(Events) if spec.name not in free):
            if getattr(cfg.events, name) != getattr(usual, name):
                flag = cfg.events.flag(name)
                raise InputError(f"--{flag}: leave it out, --init {path} has networks of its own")
        given = {name: getattr(cfg.events, name) for name in free}
        own = {name: value for name, value in given.items() if value != getattr(usual, name)}
        self.given = policy.network.requires_grad_(False).eval()
        super().__init__(replace(cfg, events=replace(theirs, **own)), cache, device, ranks)

    def asked(self) -> Iterator[Asked]:
        return self.given.shown(super().asked())

    def begin(self) -> None:
        """The given networks, what they say of all frames, and the mixing that will be learned."""
        self.cfg = planned(self.cfg, self.PASSES, self.FLOOR, self.gradient_steps)
        self.frame_steps, self.box_steps = self.phases(self.cfg.passes)
        rows, given = self.rows, self.given
        self.group = 0 * rows.pair
        members = len(given.posterior.inputs.weight)
        self.left_out = [None] * members
        torch.manual_seed(self.cfg.seed)
        self.network = EventNetwork(self.events, self.classes, members).to(self.device)
        own = self.network.state_dict()
        own |= {name: each for name, each in given.state_dict().items() if name != "prices"}
        self.network.load_state_dict(own)
        sizes = {"posterior": len(ANSWERS), "values": len(VALUES)}
        self.mixing = {name: Mixing(size).to(self.device) for name, size in sizes.items()}
        self.optimizers = {
            name: torch.optim.Adam(each.parameters(), LR, fused=True)
            for name, each in self.mixing.items()
        }
        count, steps = len(rows.pair), np.diff(rows.offsets)
        self.resident = Resident.of(rows, self.device)
        odds = apply(given.posterior, self.resident, np.arange(count))
        weight = np.repeat(1 / (steps * count), steps)  # every row is worth the same
        self.frames = self.on_device(np.concatenate(odds), rows.target, weight)

    def on_device(self, *parts: np.ndarray) -> list[torch.Tensor]:
        return [torch.from_numpy(part.astype(np.float32)).to(self.device) for part in parts]

    def phases(self, passes: int) -> tuple[int, int]:
        return passes, passes

    @property
    def total_frames(self) -> int:
        return self.frame_steps * len(self.rows.channels)

    def frame_step(self, step: int) -> torch.Tensor:
        odds, target, weight = self.frames
        found = self.mixing["posterior"](odds)
        error = functional.binary_cross_entropy_with_logits(found, target, reduction="none")
        error = error[:, 0] + EDGE_WEIGHT * (error[:, 1] + error[:, 2])
        self.gradient_step("posterior", (error * weight).sum(), step / self.frame_steps)
        true, sounds = target[:, 0] > 0.5, found.detach()[:, 0]
        self.sums[1] += (sounds.sigmoid() * weight).sum()
        return self.cells((odds[:, 0] > 0) == true, (sounds > 0) == true, torch.ones_like(true))

    def make_boxes(self) -> None:
        self.take_in("posterior")
        super().make_boxes()

    def show_boxes(self) -> None:
        """What the given networks say of the boxes, and what is true."""
        boxes, values = self.boxes, self.given.values
        query = torch.from_numpy(self.rows.query[boxes.row]).to(self.device)
        (features, truth) = self.on_device(boxes.features, self.truth.values)
        members = len(values.inputs.weight)
        with torch.no_grad():
            odds = values(features.expand(members, -1, -1), query.expand(members, -1))
        count = np.bincount(boxes.row, minlength=len(self.rows.pair))
        weight = 1 / (count[boxes.row] * (count > 0).sum())
        self.box_tensors = (odds, truth, *self.on_device(weight))

    def box_step(self, step: int) -> torch.Tensor:
        odds, true, weight = self.box_tensors
        found = self.mixing["values"](odds).sigmoid().mean(0).clamp(LEAST, 1 - LEAST)
        error = functional.binary_cross_entropy(found, true, reduction="none").sum(1)
        self.gradient_step("values", (error * weight).sum(), step / self.box_steps)
        extent, good = found.detach()[:, IOU], true[:, IOU] > 0.5
        self.sums[1] += (extent * weight).sum()
        before = odds[..., IOU].sigmoid().mean(0) > 0.5
        return self.cells(before == good, (extent > 0.5) == good, torch.ones_like(good))

    def gradient_step(self, name: str, losses: torch.Tensor, share: float) -> None:
        certain = OBSERVATIONS[name] * len(self.rows.pair)
        self.optimizers[name].zero_grad(set_to_none=True)
        (losses + self.mixing[name].moved() / (2 * SPREAD**2 * certain)).backward()
        self.step(self.optimizers[name], LR * rate_at(share), losses)

    def find_prices(self) -> None:
        """F and N at the fixed point, with the recalibrated values; of a class with few events they
        are near the mean."""
        self.take_in("values")
        super().find_prices()
        prices = self.network.prices
        number, mean = prices[Prices._fields.index("events")], prices[:, -1:]
        prices.copy_(mean + (prices - mean) * number / (number + FEW))

    def take_in(self, name: str) -> None:
        """Bring the mixing into the last layer of the networks."""
        given, own = (getattr(each, name).answers for each in (self.given, self.network))
        self.mixing[name].behind(given, own)

    def state(self) -> dict[str, Any]:
        mixing = {name: each.state_dict() for name, each in self.mixing.items()}
        return super().state() | {"mixing": mixing, "given": digest(self.given.state_dict())}

    def restore(self, content: dict[str, Any]) -> None:
        if content["given"] != digest(self.given.state_dict()):
            raise InputError(f"--init {self.cfg.init}: another policy than the run began with")
        super().restore(content)
        for name, each in self.mixing.items():
            each.load_state_dict(content["mixing"][name])

    def what(self) -> str:
        numbers = sum(p.numel() for each in self.mixing.values() for p in each.parameters())
        return f"recalibrates the policy over events {self.cfg.init}: {numbers} numbers"
