"""What depends on the machine: batch size by measurement, training steps without a wait on CUDA.

Shapes: L lanes, B batch, A actions, C channels, W window

On a GPU the host must not wait for the device: `GraphSteps` acts and learns in fixed shapes, reads
nothing back, and is recorded as two CUDA graphs. Plain steps are those of `Trainer` in DQN.py.
"""

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from config import Bandit, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks
from policy.bandit import Signals, diverged, make_states, outcome
from sed.caches import Cache

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
            wait(device)  # the warm-up has ended
            began = time.perf_counter()
            network(states[:size])
            wait(device)
            times[size] = (time.perf_counter() - began) / size
        except torch.cuda.OutOfMemoryError:
            break
    return min(times, key=times.__getitem__)


class GraphSteps:
    """Acting and learning of `Trainer` of DQN.py on fixed shapes, all state on the device, nothing
    read back; the checkpoints are the same.

    Lanes that are idle, frames that are not stored and actions that are drawn are masks. The ring
    gets one more row, where what is not stored is thrown; `cells` (L, 4) and `left` (L, context)
    are changed in place.
    """

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        super().__init__(cfg, cache, device, ranks)
        self.recorded = False
        self.ring: dict[str, torch.Tensor] = {}
        for name, column in self.replay.columns.items():
            self.ring[name] = torch.cat([column, column[:1]])
            self.replay.columns[name] = self.ring[name][:-1]
        whole = {"dtype": torch.int64, "device": device}
        self.count = torch.tensor(self.replay.count, **whole)
        # Rows: pair, frame, choice, greedy?, active?
        self.asked = torch.zeros(5, len(self.cells), **whole)
        self.drawn = torch.zeros(self.batch, **whole)
        self.bad = torch.zeros((), dtype=torch.bool, device=device)  # anything not finite?

    @torch.no_grad()
    def act_all(self) -> None:
        """Choose, pay and store an action in every lane that `asked` calls active."""
        pair, frame, choice, greedy, active = self.asked
        self.network.train(self.learning.acting == "dropout")
        left = self.left if self.sequential else None
        q_values = self.network(make_states(self.signals, pair, frame, self.bandit, left))
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

    def learn_drawn(self) -> None:
        """Gradients and a step of Adam on the stored transitions `drawn`."""
        rows = {name: column[self.drawn] for name, column in self.ring.items()}
        left = rows["left"].long() if self.sequential else None
        pair, frame = rows["pair"].long(), rows["frame"].long()
        self.network.train()
        q_values = self.network(make_states(self.signals, pair, frame, self.bandit, left))
        means = self.gradients(q_values, rows)
        self.optimizer.step()
        self.sums += means
        self.bad |= ~(means[0].isfinite() & q_values.isfinite().all())

    def send(self, target: torch.Tensor, values: np.ndarray) -> None:
        """Bring host numbers to the device without a wait."""
        source = torch.from_numpy(values)
        if self.device.type == "cuda":
            source = source.pin_memory()  # the allocator keeps it until the copy is done
        target.copy_(source, non_blocking=True)

    def act(self, lane: np.ndarray, choice: np.ndarray, asked: np.ndarray) -> None:
        """Let some lanes act: `choice` (L,) or, where `asked` (L,) is true, the network's."""
        if not self.recorded and self.device.type == "cuda" and self.ranks.size == 1:
            self.record()
        frame, pair = self.frame[lane], self.order[self.episode[lane]]
        rows = np.zeros(tuple(self.asked.shape), dtype=np.int64)
        rows[:, lane] = np.stack([pair, frame, choice, asked, np.ones_like(frame)])
        self.send(self.asked, rows)
        self.act_all()
        if self.bandit.boundary_test == "before":
            self.replay.count += int(self.inside[frame].sum())
        elif len(self.replay) < self.replay.capacity:  # how many are stored depends on the actions
            self.replay.count = int(self.count)

    def learn(self) -> None:
        size, batch = len(self.replay), len(self.drawn)
        self.send(self.drawn, self.replay_rng.choice(size, batch, replace=False, shuffle=False))
        self.learn_drawn()

    def read_sums(self) -> None:
        """As of `Trainer`. InputError where something was not finite since the start: one wait."""
        if self.bad.item():
            what = "loss or Q-values are not finite at or before gradient step"
            raise diverged(f"{what} {self.progress['steps']}")
        super().read_sums()

    def own_state(self) -> dict[str, Any]:
        self.replay.count = int(self.count)
        return super().own_state()

    def restore(self, content: dict[str, Any]) -> None:
        super().restore(content)
        self.count.fill_(self.replay.count)

    def changing(self) -> list[torch.Tensor]:
        """Every tensor that `act_all` and `learn_drawn` change."""
        moments = chain(*(values.values() for values in self.optimizer.state.values()))
        rest = (self.cells, self.left, self.count, self.sums, self.bad)
        return [*self.network.parameters(), *moments, *self.ring.values(), *rest]

    def record(self) -> None:
        """Replace `act_all` and `learn_drawn` by CUDA graphs of them; the state stays as it is.

        Where recording fails, the plain functions stay: slower, the same numbers. InputError
        where graphs were asked for.
        """
        self.recorded = True
        make_moments(self.optimizer)
        rng, kept = torch.cuda.get_rng_state(self.device), [x.clone() for x in self.changing()]
        graphs = None
        try:
            graphs = graph_of(self.act_all), graph_of(self.learn_drawn)
        except RuntimeError as error:
            failed = f"no CUDA graphs ({str(error).splitlines()[0]})"
            if self.cfg.cuda_steps == "graphs":
                raise InputError(f"--cuda-steps graphs: {failed}; use --cuda-steps plain") from None
            print(f"note: {failed}; plain steps instead")
        with torch.no_grad():
            for tensor, value in zip(self.changing(), kept, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(rng, self.device)
        if graphs is not None:
            self.act_all, self.learn_drawn = graphs


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
    """Record `work` as a CUDA graph (torch.cuda.CUDAGraph: warm-up on a stream of its own).
    RuntimeError where it cannot be; the current stream is then the one before."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own
    return graph.replay
