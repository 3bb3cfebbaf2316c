"""Gradients of several processes: in one message, or through memory that all of them see.

Run:    not a script; DQN.py trains with it
Reads:  nothing
Writes: nothing
Shapes: a list has an entry for each weight tensor of the network
Next:   bandit.py

On the CPUs of one machine weights and Adam's moments lie in shared memory. A process adds up the
gradients of its share of the weights and steps these, so that no gradient is sent, no weight is
stepped twice, and the processes only wait for each other. Elsewhere (several machines, GPUs) each
gets the mean of all gradients in one message and steps all weights: the same numbers.
"""

import os

import numpy as np
import torch

from ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")  # of torch.optim.Adam


class Message:
    """Every process gets the mean of all gradients and steps all weights."""

    def __init__(self, optimizer: torch.optim.Adam, ranks: Ranks):
        self.optimizer, self.ranks = optimizer, ranks
        self.weights = weights_of(optimizer)

    def average(self, means: torch.Tensor) -> None:
        """The gradients, and a few other numbers, become their means over the processes."""
        self.ranks.average([*(weight.grad for weight in self.weights), means])

    def step(self) -> None:
        """A step of Adam."""
        self.optimizer.step()

    def restored(self) -> None:
        """To be called when the optimizer has loaded a state."""


class Shards(Message):
    """Each process steps a share of the weights, which lie in memory that all of them see."""

    def __init__(self, optimizer: torch.optim.Adam, ranks: Ranks, memory: list[torch.Tensor]):
        """`memory`: zeros of the sizes that `places` says, the same for all processes."""
        super().__init__(optimizer, ranks)
        sizes = [weight.numel() for weight in self.weights]
        owner = dealt(sizes, ranks.size)
        self.own = [i for i, rank in enumerate(owner) if rank == ranks.rank]
        self.rest = [i for i, rank in enumerate(owner) if rank != ranks.rank]
        self.steps, flat_weights, *flat = memory
        views = [
            [part.view_as(w) for part, w in zip(one.split(sizes), self.weights, strict=True)]
            for one in (flat_weights, *flat)
        ]
        shared, self.moments = views[0], dict(zip(MOMENTS, views[1:3], strict=True))
        self.given = views[3:]  # of each process: the gradients that are not its own to step
        for weight, place in zip(self.weights, shared, strict=True):
            if ranks.leads:
                place.copy_(weight.data)
            weight.data = place
        self.restored()

    def restored(self) -> None:
        """Bring what the optimizer holds, if anything, to the memory that all see."""
        for i, weight in enumerate(self.weights):
            state = self.optimizer.state[weight]
            shared = {name: self.moments[name][i] for name in MOMENTS} | {"step": self.steps[i]}
            if self.ranks.leads and state:
                for name, place in shared.items():
                    place.copy_(state[name])
            state.update(shared)
        self.ranks.gather(None)  # nobody goes on before the first one has written

    def average(self, means: torch.Tensor) -> None:
        """As of `Message`, but for the own gradients only; the others' are handed on."""
        mine, rest = self.given[self.ranks.rank], self.rest
        grads = [weight.grad for weight in self.weights]
        torch._foreach_copy_([mine[i] for i in rest], [grads[i] for i in rest])
        self.ranks.average([means])  # when all have come here, all have handed on
        own = [grads[i] for i in self.own]
        for rank, given in enumerate(self.given):
            if rank != self.ranks.rank:
                torch._foreach_add_(own, [given[i] for i in self.own])
        torch._foreach_div_(own, self.ranks.size)
        for i in rest:
            self.weights[i].grad = None  # Adam passes over it

    def step(self) -> None:
        """A step of Adam for the own share, and all others' with it."""
        self.optimizer.step()
        self.ranks.total(torch.zeros(1))  # when all have come here, all have stepped


def weights_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What it trains."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def dealt(sizes: list[int], count: int) -> list[int]:
    """The process of each weight: the largest first, each to the one that has least."""
    loads, owner = [0] * count, [0] * len(sizes)
    for i in np.argsort(sizes, kind="stable")[::-1]:
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    return owner


def places(weights: list[torch.Tensor], count: int) -> list[int]:
    """Sizes of what `Shards` share: steps, weights, two moments, gradients of each process."""
    total = sum(weight.numel() for weight in weights)
    return [len(weights), total, total, total, *[total] * count]


def exchange(optimizer: torch.optim.Adam, ranks: Ranks) -> Message:
    """Shared memory where all processes are on the CPUs of one Linux machine."""
    weights = weights_of(optimizer)
    here = ranks.size == int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if ranks.size > 1 and here and weights[0].device.type == "cpu":
        memory = shared_memory(places(weights, ranks.size), ranks)
        if memory is not None:
            return Shards(optimizer, ranks, memory)
    return Message(optimizer, ranks)


def shared_memory(sizes: list[int], ranks: Ranks) -> list[torch.Tensor] | None:
    """Float32 zeros that all processes of the machine see, or None where the system has none.

    Files without a name, in memory: gone with the last process, whatever ends it. /dev/shm would be
    64 MB in a container.
    """
    handles: list[int] = []
    if ranks.leads and hasattr(os, "memfd_create"):  # Linux
        handles = [os.memfd_create("weights") for _ in sizes]
    paths = ranks.gather([f"/proc/{os.getpid()}/fd/{handle}" for handle in handles])[0]
    found = None
    if paths:
        try:
            found = [
                torch.from_file(path, shared=True, size=size, dtype=torch.float32)
                for path, size in zip(paths, sizes, strict=True)
            ]
        except RuntimeError:  # torch has no class of its own for a file that cannot be opened
            found = None
    everywhere = all(ranks.gather(found is not None))
    for handle in handles:
        os.close(handle)
    return found if everywhere else None
