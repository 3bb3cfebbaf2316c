"""What depends on the machine: batch size by measurement, training steps without a wait on CUDA.

Shapes: L lanes, B batch, A actions, C channels, W window

On a GPU the host must not wait for the device: `FixedSteps` acts and learns in fixed shapes, reads
nothing back, and is recorded as two CUDA graphs. The CPU has its own path in DQN.py.
"""

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bandit import Signals, make_states, outcome
from config import Bandit, InputError

CPU_BATCHES = (256, 64, 128, 512)  # the first is the reference, and what small jobs take
CUDA_BATCHES = (256, 1024, 4096, 16_384)
SMALL_JOB = 50_000  # frames; fewer are decided sooner than measured


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def fastest_batch(network: nn.Module, signals: Signals, bandit: Bandit) -> int:
    """Frames in a forward pass that this machine decides fastest, by measuring a few.

    On a CPU a size takes part only if its Q-values equal those of the reference bit for bit, so
    that the choice changes no decision. On a GPU two actions that tie within float rounding may
    change places.
    """
    device, num_frames = signals.prob.device, len(signals.prob)
    sizes = CUDA_BATCHES if device.type == "cuda" else CPU_BATCHES
    if num_frames < SMALL_JOB:
        return sizes[0]
    was_training = network.training
    network.eval()
    frame = torch.arange(max(sizes), device=device) % num_frames
    pair = torch.searchsorted(signals.end, frame, right=True)
    states = make_states(signals, pair, frame, bandit)
    reference, times = network(states[: sizes[0]]), {}
    for size in sizes:
        try:
            q_values = network(states[:size])  # warm-up
            same = min(size, sizes[0])
            if device.type == "cpu" and not torch.equal(q_values[:same], reference[:same]):
                continue
            began = time.perf_counter()
            network(states[:size])
            wait(device)
            times[size] = (time.perf_counter() - began) / size
        except torch.cuda.OutOfMemoryError:
            break
    network.train(was_training)
    return min(times, key=times.__getitem__)


class FixedSteps:
    """Acting and learning on fixed shapes, all state on the device, nothing read back.

    Lanes that are idle, frames that are not stored and actions that are drawn are masks. The ring
    of the trainer of DQN.py gets one more row, where what is not stored is thrown; its `cells`
    (L, 4) and `left` (L, context) are changed in place.
    """

    def __init__(self, trainer: Any, bf16: bool):
        self.trainer, self.bf16, self.recorded = trainer, bf16, False
        self.network, self.optimizer = trainer.network, trainer.optimizer
        self.signals, self.replay, bandit = trainer.signals, trainer.replay, trainer.bandit
        self.cells, self.left, self.device = trainer.cells, trainer.left, trainer.device
        self.bandit, self.dropout = bandit, trainer.learning.acting == "dropout"
        self.sequential, self.table = trainer.sequential, trainer.table
        self.ring: dict[str, torch.Tensor] = {}
        for name, column in self.replay.columns.items():
            self.ring[name] = torch.cat([column, column[:1]])
            self.replay.columns[name] = self.ring[name][:-1]
        whole = {"dtype": torch.int64, "device": self.device}
        self.count = torch.tensor(self.replay.count, **whole)
        # Rows: pair, frame, choice, greedy?, active?
        self.asked = torch.zeros(5, len(self.cells), **whole)
        self.drawn = torch.zeros(trainer.batch, **whole)
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of loss and Q
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)  # anything not finite?

    def q_values(self, states: torch.Tensor) -> torch.Tensor:
        """(B, C, W) -> (B, A) float32, computed in bfloat16 where that was asked for."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            q_values = self.network(states)
        return q_values.float()

    @torch.no_grad()
    def act(self) -> None:
        """Choose, pay and store an action in every lane that `asked` calls active."""
        pair, frame, choice, greedy, active = self.asked
        self.network.train(self.dropout)
        left = self.left if self.sequential else None
        q_values = self.q_values(make_states(self.signals, pair, frame, self.bandit, left))
        self.bad |= ~q_values.isfinite().all()
        actions = torch.where(greedy > 0, q_values.argmax(1), choice)
        found = outcome(self.signals, frame, actions, self.bandit)
        self.cells.scatter_add_(1, found.cells[:, None], active[:, None])
        kept = found.stored & (active > 0)
        trash = self.replay.capacity
        at = torch.where(kept, (self.count + kept.cumsum(0) - 1) % trash, trash)
        rows = {"pair": pair, "frame": frame, "action": actions, "left": self.left}
        rows["reward"] = self.table[found.cells]
        for name, column in self.ring.items():
            column[at] = rows[name].to(column.dtype)
        self.count += kept.sum()
        if self.sequential and self.bandit.context:
            self.left.copy_(torch.cat([self.left[:, 1:], actions[:, None]], 1))

    def learn(self) -> None:
        """Gradients and a step of Adam on the stored transitions `drawn`."""
        rows = {name: column[self.drawn] for name, column in self.ring.items()}
        left = rows["left"].long() if self.sequential else None
        pair, frame = rows["pair"].long(), rows["frame"].long()
        self.network.train()
        q_values = self.q_values(make_states(self.signals, pair, frame, self.bandit, left))
        q_taken = q_values.gather(1, rows["action"].long()[:, None])[:, 0]
        loss = functional.mse_loss(q_taken, rows["reward"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        means = torch.stack([loss.detach(), q_taken.detach().mean()])
        self.trainer.exchange.average(means)
        self.trainer.exchange.step()
        self.sums += means
        self.bad |= ~(loss.isfinite() & q_values.isfinite().all())

    def send(self, target: torch.Tensor, values: np.ndarray) -> None:
        """Bring host numbers to the device without a wait."""
        source = torch.from_numpy(values)
        if self.device.type == "cuda":
            source = source.pin_memory()  # the allocator keeps it until the copy is done
        target.copy_(source, non_blocking=True)

    def play(self, lane: np.ndarray, choice: np.ndarray, greedy: np.ndarray) -> None:
        """Let some lanes act: `choice` (L,) or, where `greedy` (L,) is true, the network's."""
        if not self.recorded and self.device.type == "cuda" and self.trainer.ranks.size == 1:
            self.record()
        frame = self.trainer.frame[lane]
        asked = np.zeros(tuple(self.asked.shape), dtype=np.int64)
        pair = self.trainer.order[self.trainer.episode[lane]]
        asked[:, lane] = np.stack([pair, frame, choice, greedy, np.ones_like(frame)])
        self.send(self.asked, asked)
        self.act()
        if self.bandit.boundary_test == "before":
            self.replay.count += int(self.trainer.inside[frame].sum())
        elif len(self.replay) < self.replay.capacity:  # how many are stored depends on the actions
            self.replay.count = int(self.count)

    def study(self) -> None:
        """Draw a batch and learn from it."""
        size, batch = len(self.replay), len(self.drawn)
        drawn = self.trainer.replay_rng.choice(size, batch, replace=False, shuffle=False)
        self.send(self.drawn, drawn)
        self.learn()

    def restart(self) -> None:
        """Take over what a checkpoint has brought."""
        self.count.fill_(self.replay.count)
        for group in self.optimizer.param_groups:  # one of a CPU run says no
            group["capturable"] = self.device.type == "cuda"

    def state(self) -> list[torch.Tensor]:
        """Every tensor that `act` and `learn` change."""
        moments = chain(*(values.values() for values in self.optimizer.state.values()))
        rest = (self.cells, self.left, self.count, self.sums, self.bad)
        return [*self.network.parameters(), *moments, *self.ring.values(), *rest]

    def record(self) -> None:
        """Replace `act` and `learn` by CUDA graphs of them; the state stays as it is.

        Where recording fails, the plain functions stay: slower, the same numbers.
        """
        self.recorded = True
        make_moments(self.optimizer)
        rng, kept = torch.cuda.get_rng_state(self.device), [x.clone() for x in self.state()]
        graphs = None
        try:
            graphs = graph_of(self.act), graph_of(self.learn)
        except RuntimeError as error:
            print(f"note: no CUDA graphs ({str(error).splitlines()[0]}); plain steps instead")
        with torch.no_grad():
            for tensor, value in zip(self.state(), kept, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(rng, self.device)
        if graphs is not None:
            self.act, self.learn = graphs

    def check(self) -> None:
        """InputError where something was not finite since the start: one wait for the device."""
        if self.bad.item():
            raise InputError(
                f"loss or Q-values are not finite at or before gradient step"
                f" {self.trainer.progress['steps']}; last.pt"
                " holds a good state; start anew with --overwrite and a smaller --learning.lr"
            )


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam make its state: a step on zero gradients moves no weight; it is not counted."""
    if optimizer.state:
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for values in optimizer.state.values():
        values["step"].zero_()


def graph_of(work: Callable[[], None]) -> Callable[[], None]:
    """Record `work` as a CUDA graph (torch.cuda.CUDAGraph: warm-up on a stream of its own)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
