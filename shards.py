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
import platform
import select
import time
from contextlib import suppress

import numpy as np
import torch

from ranks import TRAINING_PATIENCE, Ranks, lost_peer

MOMENTS = ("exp_avg", "exp_avg_sq")  # of torch.optim.Adam
LINE = 16  # floats of a cache line: no two processes write into the same one
GLANCES = 2000  # at another's count, before somebody looks whether it is alive


class Message:
    """Every process gets the mean of all gradients and steps all weights."""

    def __init__(self, optimizer: torch.optim.Adam, ranks: Ranks):
        self.optimizer, self.ranks = optimizer, ranks
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def average(self, means: torch.Tensor) -> None:
        """The gradients, and a few other numbers, become their means over the processes."""
        self.ranks.average([*(weight.grad for weight in self.weights), means])

    def step(self) -> None:
        """A step of Adam."""
        self.optimizer.step()

    def restored(self) -> None:
        """To be called when the optimizer has loaded a state."""


class Meeting:
    """Where all processes wait for each other, awake.

    One that sleeps is woken late, twice in every gradient step: that is a tenth of its time. What
    was written before a meeting is read behind it, as x86 lets nobody see writes out of order.
    """

    def __init__(self, memory: torch.Tensor, rank: int, others: list[int]):
        """`memory`: zeros, a line for each process; `others`: descriptors of the other ones."""
        self.counts, self.rank = memory.view(torch.int64).view(-1, LINE // 2)[:, 0].numpy(), rank
        self.others = select.poll()
        for other in others:
            self.others.register(other, select.POLLIN)  # readable when it has ended

    def __call__(self) -> None:
        """Go on when all have come here. InputError where one has ended."""
        counts, mine = self.counts, int(self.counts[self.rank]) + 1
        counts[self.rank] = mine
        glances, give_up = 0, time.monotonic() + TRAINING_PATIENCE.total_seconds()
        for i in range(len(counts)):
            while counts[i] < mine:
                glances += 1
                if glances % GLANCES == 0:
                    self.look_around(give_up)

    def look_around(self, give_up: float) -> None:
        """Let somebody else compute, and see whether all are there."""
        os.sched_yield()
        with lost_peer():
            if self.others.poll(0):
                raise RuntimeError("its gradients did not come")
            if time.monotonic() > give_up:
                raise RuntimeError(f"nothing was heard of it for {TRAINING_PATIENCE}")


class Shards(Message):
    """Each process steps a share of the weights, which lie in memory that all of them see."""

    def __init__(
        self,
        optimizer: torch.optim.Adam,
        ranks: Ranks,
        memory: list[torch.Tensor],
        others: list[int],
    ):
        """`memory`: zeros of the sizes that `places` says, the same for all processes; `others`:
        see `Meeting`."""
        super().__init__(optimizer, ranks)
        meeting, numbers, *memory = memory
        self.meet = Meeting(meeting, ranks.rank, others)
        self.numbers = numbers.view(-1, LINE)  # what each process wants the mean of
        sizes = [weight.numel() for weight in self.weights]
        owner = dealt(sizes, ranks.size)
        own = [i for i, rank in enumerate(owner) if rank == ranks.rank]
        rest = [i for i, rank in enumerate(owner) if rank != ranks.rank]
        self.own = [self.weights[i] for i in own]
        self.rest = [self.weights[i] for i in rest]
        self.steps, flat_weights, *flat = memory
        views = [
            [part.view_as(w) for part, w in zip(one.split(sizes), self.weights, strict=True)]
            for one in (flat_weights, *flat)
        ]
        shared, self.moments = views[0], dict(zip(MOMENTS, views[1:3], strict=True))
        given = views[3:]  # of each process: the gradients that are not its own to step
        self.handed_on = [given[ranks.rank][i] for i in rest]
        self.taken = [
            [part[i] for i in own] for rank, part in enumerate(given) if rank != ranks.rank
        ]
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
        torch._foreach_copy_(self.handed_on, [weight.grad for weight in self.rest])
        self.numbers[self.ranks.rank, : len(means)] = means
        self.meet()  # all have handed on
        means.copy_(self.numbers[:, : len(means)].sum(0) / self.ranks.size)
        own = [weight.grad for weight in self.own]
        for given in self.taken:
            torch._foreach_add_(own, given)
        torch._foreach_div_(own, self.ranks.size)
        for weight in self.rest:
            weight.grad = None  # Adam passes over it

    def step(self) -> None:
        """A step of Adam for the own share, and all others' with it."""
        self.optimizer.step()
        self.meet()  # all have stepped, and read the numbers


def dealt(sizes: list[int], count: int) -> list[int]:
    """The process of each weight: the largest first, each to the one that has least."""
    loads, owner = [0] * count, [0] * len(sizes)
    for i in np.argsort(sizes, kind="stable")[::-1]:
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    return owner


def places(weights: list[torch.Tensor], count: int) -> list[int]:
    """Sizes of what `Shards` share: two lines of each process, steps, weights, two moments, and
    gradients of each process."""
    total = sum(weight.numel() for weight in weights)
    return [LINE * count, LINE * count, len(weights), total, total, total, *[total] * count]


def exchange(optimizer: torch.optim.Adam, ranks: Ranks) -> Message:
    """Shared memory where all processes are on the x86 CPUs of one Linux machine."""
    message = Message(optimizer, ranks)
    here = ranks.size == int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    x86 = platform.machine() in ("x86_64", "AMD64")
    if ranks.size > 1 and here and x86 and message.weights[0].device.type == "cpu":
        memory = shared_memory(places(message.weights, ranks.size), ranks)
        others = watched(ranks)
        if memory is not None and others is not None:
            return Shards(optimizer, ranks, memory, others)
    return message


def watched(ranks: Ranks) -> list[int] | None:
    """Descriptors of the other processes, or None where some process cannot have them."""
    pids, found = ranks.gather(os.getpid()), None
    with suppress(AttributeError, OSError):  # before Linux 5.3, or forbidden
        found = [os.pidfd_open(pid) for pid in pids if pid != os.getpid()]
    return found if all(ranks.gather(found is not None)) else None


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
