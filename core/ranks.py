"""Several processes on one job, started by torchrun: who this one is, sums, means, pieces gathered.

Run:    torchrun --nproc-per-node=2 -- DQN.py --run runs/slides
Reads:  what torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, TORCHELASTIC_*

torchrun brings rendezvous, restarts and Slurm; nothing of that is here. Without it there is one
process, and every method is the identity. The run folder, the caches and the data must be seen by
all processes under the same names. `--` keeps torchrun from reading the script's flags: it would
take --run for its own --run-path.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from torch import distributed

from core.errors import InputError
from core.processes import end_with

# A process that died is noticed at once, one that hangs after this: shares of a preprocessing or an
# evaluation may end at different times, gradient steps may not.
PATIENCE = timedelta(hours=1)
TRAINING_PATIENCE = timedelta(minutes=10)


def local_rank() -> int:
    """Which process of this machine this one is; its GPU has the same number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def pick_device(name: str, threads: int) -> torch.device:
    """Choose the device and set the thread count: the one place for both."""
    torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= (count := torch.cuda.device_count()):
        cure = f"torchrun --nproc-per-node={count}, or --device cpu"
        raise InputError(f"more processes than the {count} CUDA devices of this machine; {cure}")
    # TF32 is on for convolutions and off for matrices by default: float32 in both, as on a CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def restarted() -> bool:
    """torchrun has started this job again because a process died: it goes on, whatever the flags.

    (`TORCHELASTIC_RESTART_COUNT`, "Environment Variables" of torchrun's manual)
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def lost_peer() -> Iterator[None]:
    """Say in one line that another process of the job is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        text = str(error).splitlines()[0]
        raise InputError(
            f"another process of this job has ended ({text}); with torchrun --max-restarts=3 all"
            " start again from the last checkpoint"
        ) from None


class Ranks(NamedTuple):
    """This process among those of its job. Every method is called by all of them together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def owns(self, index: Any) -> Any:
        """Whether items (a number or an array) are this process's: every `size`-th."""
        return index % self.size == self.rank

    def deal(self, first: np.ndarray) -> np.ndarray:
        """(L,) bool: which of L items are this process's, so that each gets as many of the `first`
        (L,) bool, give or take one, as of all."""
        place = np.empty(len(first), dtype=np.int64)
        place[np.argsort(~first, kind="stable")] = np.arange(len(first))
        return self.owns(place)

    def share(self, total: int, flag: str) -> int:
        """The part of a global number that one process takes. InputError unless it is even."""
        if total % self.size:
            raise InputError(f"--{flag} {total} cannot be split evenly over {self.size} processes")
        return total // self.size

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            with lost_peer():
                distributed.all_reduce(tensor)
        return tensor

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Mean over the processes of several tensors, in place, in one message.

        The layout of the message never changes, so a resumed run adds in the same order. That of
        DistributedDataParallel changes after the first step.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        flat = self.total(flat) / self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in the order of the processes."""
        values = [value] * self.size
        if self.size > 1:
            with lost_peer():
                distributed.all_gather_object(values, value)
        return values

    def to_leader(self, value: Any) -> list[Any]:
        """What each process gives, in their order, for the first one; the others get nothing."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.leads else []
        with lost_peer():
            distributed.gather_object(value, values or None)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in any process."""
        return [any(column) for column in zip(*self.gather(flags), strict=True)]

    def leader_first(self, work: Callable[[], Any]) -> Any:
        """Let one process work while the others wait; all get its (small) result.

        An InputError is raised there, and ends the others without a second line.
        """
        if self.size == 1:
            return work()
        found, error = None, None
        if self.leads:
            try:
                found = work()
            except InputError as raised:
                error = raised
        found, failed = self.gather((found, error is not None))[0]
        if failed:
            raise error or SystemExit(2)
        return found


ALONE = Ranks()


def meet() -> tuple[distributed.Store, int, int]:
    """The store of this life of the job, this process's rank, and how many there are.

    torchrun keeps one store for all lives of a job, so a restarted process could find addresses of
    the dead. The first process names each life anew, and waits until all others have heard it.
    """
    store, rank, size = next(distributed.rendezvous("env://"))
    if rank:
        question = uuid4().hex
        store.set(f"ask/{rank}", question)
        life = store.get(f"answer/{question}").decode()  # waits for it
        store.set(f"heard/{life}/{rank}", "")
        return distributed.PrefixStore(life, store), rank, size
    life, others, give_up = uuid4().hex, range(1, size), time.monotonic() + PATIENCE.seconds
    while not store.check([f"heard/{life}/{other}" for other in others]):
        for other in others:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", life)
        if time.monotonic() > give_up:
            raise InputError(f"only some of the {size} processes of this job have come")
        time.sleep(0.01)
    return distributed.PrefixStore(life, store), rank, size


@contextmanager
def together(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Ranks]:
    """The processes that torchrun started, connected; one without it. The others print nothing.

    They end with torchrun. One that waits for another for longer than `patience` says so.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid(), save=True)
    if size == 1:
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with lost_peer():
        store, rank, size = meet()
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=patience
        )
    found = Ranks(rank, size)
    stdout = sys.stdout
    with open(os.devnull, "w") as nowhere:
        try:
            sys.stdout = stdout if found.leads else nowhere
            yield found
        finally:
            sys.stdout = stdout
    distributed.destroy_process_group()
