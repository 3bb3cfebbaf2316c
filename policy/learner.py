"""What the learners of all methods share: how far a run is, and what its checkpoints hold."""

import json
import math
from collections import deque
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from config import Bandit, TrainConfig
from core.errors import InputError
from core.ranks import Ranks
from core.versions import made_with
from policy import runfolder
from policy.bandit import hold_out
from policy.gate import Gate
from sed.caches import Cache

STEPS_A_TICK = 8  # gradient steps between two looks at the device


def tenths(values: np.ndarray) -> tuple[str, str]:
    """Means of the first and of the last tenth."""
    tenth = math.ceil(len(values) / 10)
    return f"{values[:tenth].mean():.4f}", f"{values[-tenth:].mean():.4f}"


class Learner:
    """The state of a run; what changes is in the checkpoint.

    A method is a class with

    gradient_steps(passes)  about how many so many passes make
    total_frames            that the whole run visits
    tick()                  go on a little: (episode, its four reward cells) of those that end
    restore(content)        take over the state of last.pt
    announce()              say what is about to happen
    learned()               what the run has learned: `key: value` lines, and a sentence
    held_out_f1()           mean-pair F1 on the held-out pairs

    and the loop of DQN.py runs it. Several passes make an `order` of episodes.
    """

    PASSES: ClassVar[int]  # over the training pairs, where there is enough
    FLOOR: ClassVar[int]  # gradient steps, see "How much data" in docs/scores.md
    SCHEDULE: ClassVar[str]  # said where a run gets more passes than planned
    SHOWN: ClassVar[tuple[str, ...]] = ("epsilon", "reward", "avg10", "loss")  # by bar and --status

    cfg: TrainConfig
    bandit: Bandit
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    order: np.ndarray
    held_out: np.ndarray
    gate: Gate | None = None

    def __init__(self, cache: Cache, device: torch.device, ranks: Ranks):
        self.cache, self.device, self.ranks = cache, device, ranks
        self.recent: deque[float] = deque(maxlen=10)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of loss and mean answer
        self.progress = runfolder.new_progress()

    @property
    def done(self) -> bool:
        return self.progress["finished"] == len(self.order)

    def epsilon(self, episode: int) -> float:
        """Exploration rate: 0 where the rewards of all actions are known."""
        return 0.0

    def read_sums(self) -> None:
        """Bring the sums of loss and answers into `progress`."""
        self.progress["loss_sum"], self.progress["q_sum"] = self.sums.tolist()

    def reset_sums(self) -> None:
        self.sums.zero_()
        self.progress |= {"loss_sum": 0.0, "q_sum": 0.0, "loss_count": 0}

    @staticmethod
    def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take over an optimizer's state, but work as this device works, whichever one saved it.

        Where `fused` or `capturable` says so, PyTorch puts Adam's `step` on the weights' device; on
        the host each step of it would wait.
        """
        ways = ("foreach", "capturable", "fused")
        own = {name: optimizer.param_groups[0][name] for name in ways}
        groups = [group | own for group in state["param_groups"]]
        optimizer.load_state_dict(state | {"param_groups": groups})

    @property
    def facts(self) -> dict[str, Any]:
        """What the policy must know of its data, see `Cache.facts`."""
        return self.cache.facts

    def cache_of(self, pairs: np.ndarray) -> Cache:
        """The cache of some pairs, by index."""
        return self.cache.choose(np.isin(np.arange(len(self.cache.pairs)), pairs))

    def policy(self) -> dict[str, Any]:
        """What best.pt and the numbered checkpoints hold: enough to apply the policy.
        InputError for bad weights."""
        self.read_sums()
        if not all(weight.isfinite().all() for weight in self.network.parameters()):
            raise InputError("weights are not finite: the last good checkpoint is kept")
        return {
            "config": json.dumps(runfolder.stored_config(self.cfg)),
            "cache_key": self.cache.key,
            "signal": json.dumps(self.cache.manifest["signal"]),
            "gate": json.dumps(self.gate and self.gate._asdict()),
            **made_with(),
            "device": next(self.network.parameters()).device.type,
            "info": self.progress | {"trained_on": self.facts},
            "seen": torch.from_numpy(self.prints),
            "network": self.network.state_dict(),
        }

    @cached_property
    def prints(self) -> np.ndarray:
        """(n,) int64: by what the training pairs are known again."""
        return runfolder.prints_of(self.cache, hold_out(self.cache, self.cfg)[0])

    def optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def own_state(self) -> dict[str, Any]:
        """What differs between processes."""
        return {"rng": runfolder.torch_rng(self.device)}

    def state(self) -> dict[str, Any]:
        """What last.pt holds: everything that a bit-exact resume needs."""
        own, *others = self.ranks.gather(self.own_state())
        shared = {"optimizer": self.optimizer_state(), "recent": list(self.recent)}
        return self.policy() | shared | own | ({"others": others} if others else {})

    def take_over(self, content: dict[str, Any]) -> dict[str, Any]:
        """Weights, progress, sums and torch's random state of last.pt; the `own_state` in it."""
        self.network.load_state_dict(content["network"])
        self.recent.extend(content["recent"])
        known = content["info"]
        self.progress |= {name: known[name] for name in self.progress if name in known}
        sums = [self.progress["loss_sum"], self.progress["q_sum"]]
        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))
        own = content if self.ranks.leads else content["others"][self.ranks.rank - 1]
        runfolder.restore_torch_rng(own["rng"], self.device)
        return own
