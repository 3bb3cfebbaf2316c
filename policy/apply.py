"""A network applied to frames: actions of a Q-network, decisions of a classifier.

Shapes: N frames of all pairs, P pairs, B batch, A actions
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from config import Bandit, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks
from core.tensors import fitted
from policy import event_policy, runfolder
from policy.bandit import (
    Signals,
    check_finite,
    decide,
    frames_of,
    make_states,
    near,
    thresholds,
    to_device,
)
from policy.device import fastest_batch
from policy.event_policy import EventNetwork
from policy.gate import Gate
from policy.network import Classifier, QNetwork, make_network
from sed.caches import Cache
from sed.provenance import Origin


def outputs(
    network: QNetwork,
    signals: Signals,
    bandit: Bandit,
    owner: torch.Tensor,
    frame: torch.Tensor,
    batch: int,
    progress: str | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Frames (n,) of the pairs `owner` (n,), so many at a time, and what the network says: (B, A).

    InputError where that is not finite.
    """
    finite = torch.ones((), dtype=torch.bool, device=frame.device)
    bar = tqdm(total=len(frame), desc=progress, unit="frame", disable=progress is None)
    for part in torch.arange(len(frame), device=frame.device).split(batch):
        found = network(make_states(signals, owner[part], frame[part], bandit))
        finite &= found.isfinite().all()
        yield frame[part], found
        bar.update(len(part))
    bar.close()
    check_finite(finite)


@torch.inference_mode()
def greedy_actions(
    network: QNetwork,
    signals: Signals,
    bandit: Bandit,
    batch: int,
    pairs: np.ndarray | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Best action of every frame of `pairs` (default: all) -> (N,) int64 on the device.

    Frames that are not decided hold the no-change action: in the independent reading those whose
    answer no action can change, in the sequential one the first frame of each pair.
    """
    device = signals.prob.device
    network.eval()
    chosen = np.arange(len(signals.start)) if pairs is None else np.asarray(pairs)
    pair = torch.from_numpy(chosen).to(device)
    actions = torch.full_like(signals.prob, bandit.no_change, dtype=torch.int64)
    if bandit.reading == "independent":
        owner, frame = frames_of(signals, pair)
        acts = near(signals.prob[frame], signals.t_base[frame], bandit.max_delta)
        asked = owner[acts], frame[acts]
        for part, q_values in outputs(network, signals, bandit, *asked, batch, progress):
            actions[part] = q_values.argmax(1)
    else:
        finite = torch.ones((), dtype=torch.bool, device=device)
        # The longest first: how many go on is known on the host, without asking the device.
        lengths, order = (signals.end[pair] - signals.start[pair]).sort(
            descending=True, stable=True
        )
        pair, lengths = pair[order], lengths.cpu().numpy()
        reach = torch.arange(-bandit.context, 0, device=device)
        ticks = range(1, int(lengths.max(initial=0)))
        for step in tqdm(ticks, desc=progress, unit="tick", disable=progress is None):
            for part in pair[: np.count_nonzero(lengths > step)].split(batch):
                frame = signals.start[part] + step
                seen = (frame[:, None] + reach).maximum(signals.start[part][:, None])
                q_values = network(make_states(signals, part, frame, bandit, actions[seen]))
                actions[frame] = q_values.argmax(1)
                finite &= q_values.isfinite().all()
        check_finite(finite)
    return actions


@torch.inference_mode()
def decisions(
    network: QNetwork,
    signals: Signals,
    bandit: Bandit,
    batch: int,
    pairs: np.ndarray | None = None,
    progress: str | None = None,
    ranks: Ranks = ALONE,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decisions (N,) bool on `pairs` (default: all), elsewhere those of T_base, and the actions
    (N,) int64 that lead to them; a classifier takes none.

    The pairs are dealt out over the processes; every process gets all decisions.
    """
    pairs = np.arange(len(signals.start)) if pairs is None else np.asarray(pairs)
    own = pairs[ranks.owns(np.arange(len(pairs)))]
    progress = progress if ranks.leads else None
    if not isinstance(network, Classifier):
        actions = greedy_actions(network, signals, bandit, batch, own, progress)
        actions = ranks.total(actions - bandit.no_change) + bandit.no_change
        return decide(signals.prob, thresholds(signals, actions, bandit)), actions
    network.eval()
    base = decide(signals.prob, signals.t_base)
    changed = torch.zeros_like(base, dtype=torch.int64)
    asked = frames_of(signals, torch.from_numpy(own).to(base.device))
    for part, logit in outputs(network, signals, bandit, *asked, batch, progress):
        changed[part] = ((logit[:, 0] > 0) != base[part]).long()
    return base ^ (ranks.total(changed) > 0), None


class Policy(NamedTuple):
    """A trained network with what is needed to apply it."""

    network: QNetwork | EventNetwork  # or a Classifier, which is a QNetwork
    bandit: Bandit
    signal: dict | None  # formulas of the cache it was trained on; None: unknown
    gate: Gate | None  # for queries without known tags; None: unknown
    info: dict[str, Any]
    classes: tuple[str, ...] = ()  # those that it knows apart
    seen: torch.Tensor | None = None  # see `runfolder.prints_of`; None: unknown
    method: str = "windowed"  # of `config.TrainConfig`

    @property
    def origin(self) -> Origin:
        """What it was trained on."""
        return Origin(self.signal, self.info.get("trained_on") or {})

    @property
    def over_events(self) -> bool:
        """Whether it decides about boxes of a whole clip, not about thresholds of frames."""
        return isinstance(self.network, EventNetwork)


def load_policy(path: Path, device: torch.device, preset: str = "slides") -> Policy:
    """Open a checkpoint of this suite, or a bare state dict of the original program.

    A bare state dict holds no settings; they are the preset's. InputError if it does not fit.
    """
    content = runfolder.read_checkpoint(path, device)
    if "config" in content:
        facts, weights = runfolder.facts_of(content, path), content.get("network")
    elif "tcn.0.weight" in content:
        info, weights = {"source": "state dict", "preset": preset}, content
        facts = runfolder.Facts(TrainConfig.with_preset(preset), None, None, info)
    else:
        raise InputError(f"{path}: neither a checkpoint of this suite nor a Q-network's state dict")
    config = facts.config
    make = partial(make_network, config.method, config.bandit, config.network)
    if config.method == "events":
        make = partial(EventNetwork.like, config.events, facts.classes, weights)
    network = fitted(make, weights, path).to(device).eval()
    if config.method == "events" and not network.prices.any():
        raise InputError(f"{path}: training has not ended, nothing can be decided; use --resume")
    return Policy(network, config.bandit, *facts[1:], config.method)


class Decided(NamedTuple):
    """What a policy says about a cache: decisions, by thresholds of frames or by boxes."""

    pred: np.ndarray  # (N,) bool
    action: np.ndarray | None  # (N,) int8; None: no threshold is shifted
    t_adj: np.ndarray | None  # (N,) float32
    boxes: event_policy.Candidates | None
    batch: int | None


def decide_cache(
    policy: Policy,
    cache: Cache,
    device: torch.device,
    batch: int | None = None,
    ranks: Ranks = ALONE,
    progress: str | None = None,
) -> Decided:
    """Decisions about all frames of a cache; `batch` frames at a time (default: the fastest)."""
    if policy.over_events:
        progress = progress if ranks.leads else None
        pred, boxes = event_policy.decide_cache(policy.network, cache, device, progress)
        return Decided(pred, None, None, boxes, None)
    signals = to_device(cache, policy.bandit, device)
    batch = batch or fastest_batch(policy.network, signals, policy.bandit)
    given = (policy.network, signals, policy.bandit, batch)
    on, actions = decisions(*given, None, progress, ranks)
    if actions is None:
        return Decided(on.cpu().numpy(), None, None, None, batch)
    t_adj = thresholds(signals, actions, policy.bandit)
    arrays = actions.cpu().numpy().astype(np.int8), t_adj.cpu().numpy().astype(np.float32)
    return Decided(on.cpu().numpy(), *arrays, None, batch)
