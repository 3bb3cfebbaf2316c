"""Several seeds in one process: one gradient step of all networks side by side against plain steps.

Run:    python -m benchmarks.seeds
Shapes: S seeds, B batch, W window, T frames, Q queries, F features, H hidden units

The slides' network under `vmap`, with its GRU written out, as `vmap` refuses `nn.GRU`; those of the
preset `best` along the axis of its networks, four a seed (one a fold). CPU seconds in turns on one
thread. Operators stand for what a GPU is given to launch; views are none.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from config import Bandit, Events, Network
from core.command import parse_first, run_script
from core.settings import Checked, number


@dataclass(frozen=True, kw_only=True)
class SeedsConfig(Checked):
    """Time S plain gradient steps against one of S seeds."""

    seeds: tuple[int, ...] = (2, 4, 8)
    """how many seeds"""
    repeats: int = number(7, 1)
    """steps of each kind, in turns"""


if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(SeedsConfig)

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from core.names import markdown_table
from policy.event_policy import FEATURES, VALUES, Values, clip_each
from policy.network import QNetwork
from policy.posterior import CHANNELS, STATISTICS, Posterior, loss_of

BATCH, CLASSES, FRAMES, FOLDS = 32, 10, 250, 4

Step = Callable[[], None]


class WrittenGRU(nn.Module):
    """Frame by frame what a bidirectional nn.GRU computes: (B, W, in) -> (B, W, 2 H)."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        for layer in range(self.gru.num_layers):
            inner, bias_in, own, bias_own = (
                torch.stack([getattr(self.gru, f"{k}_l{layer}{way}") for way in ("", "_reverse")])
                for k in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
            )
            both = torch.stack([x, x.flip(1)])  # forwards and backwards
            gates = torch.einsum("dbwi,dgi->wdbg", both, inner) + bias_in[:, None]
            state, states = torch.zeros(2, len(x), self.gru.hidden_size), []
            for gate in gates:
                mine = torch.einsum("dbh,dgh->dbg", state, own) + bias_own[:, None]
                (r, z, n), (r2, z2, n2) = gate.chunk(3, -1), mine.chunk(3, -1)
                new = torch.tanh(n + torch.sigmoid(r + r2) * n2)
                state = torch.lerp(new, state, torch.sigmoid(z + z2))
                states.append(state)
            ways = torch.stack(states, 2)  # (2, B, W, H)
            x = torch.cat([ways[0], ways[1].flip(1)], 2)
        return x, None


class NoGRU(nn.Module):
    """In the place of a GRU that is one call of a library."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.cat([x, x], 2), None


class Counter(TorchDispatchMode):
    """Counts operators that compute."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operators(step: Step) -> int:
    with Counter() as counter:
        step()
    return counter.count


def windowed(network: Network, seeds: int) -> tuple[Step, Step, Step]:
    """Gradient steps of the slides' network: one seed, all of them, one seed without its GRU."""
    bandit, rng = Bandit(), torch.Generator().manual_seed(0)
    shape = (seeds, BATCH, len(bandit.channels), bandit.window)
    states, reward = torch.rand(shape, generator=rng), torch.rand(seeds, BATCH, generator=rng)
    action = torch.randint(bandit.num_actions, (seeds, BATCH, 1), generator=rng)

    def plain(model: QNetwork) -> Step:
        optimizer = torch.optim.Adam(model.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            value = model(states[0]).gather(1, action[0])[:, 0]
            functional.mse_loss(value, reward[0]).backward()
            optimizer.step()

        return step

    models = [QNetwork(bandit, network) for _ in range(seeds)]
    written, cut = copy.deepcopy(models[0]), copy.deepcopy(models[0])
    written.gru, cut.gru = WrittenGRU(written.gru), NoGRU()
    params = stack_module_state(models)[0]
    params = {name.replace("gru.", "gru.gru."): value for name, value in params.items()}
    optimizer = torch.optim.Adam(params.values(), fused=True)
    forward = vmap(lambda p, x: functional_call(written, p, x), randomness="different")

    def together() -> None:
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap has a rule for
            value = forward(params, states).gather(2, action)[..., 0]
            ((value - reward) ** 2).mean(1).sum().backward()
        optimizer.step()

    return plain(models[0]), together, plain(cut)


def of_events(networks: int) -> tuple[Step, Step]:
    """Gradient steps of the preset `best`, with so many networks, on frames and on boxes."""
    events = Events()
    posterior, values = (
        Posterior(events, CLASSES, networks),
        Values(events, FEATURES, CLASSES, networks),
    )
    first, second = (
        torch.optim.AdamW(model.parameters(), fused=True) for model in (posterior, values)
    )
    rows, boxes = (networks, events.batch), (networks, events.box_batch)
    valid = torch.ones(*rows, FRAMES, dtype=torch.bool)
    queries = torch.randn(*rows, FRAMES, CHANNELS), torch.randn(*rows, STATISTICS)
    seen = (*queries, torch.randint(CLASSES, rows), valid)
    target, wanted = torch.rand(*rows, FRAMES, 3), torch.rand(*boxes, len(VALUES))
    features, of_class = torch.randn(*boxes, FEATURES), torch.randint(CLASSES, boxes)

    def on_frames() -> None:
        first.zero_grad(set_to_none=True)
        loss_of(posterior(*seen), target, valid).sum().backward()
        clip_each(posterior.parameters())
        first.step()

    def on_boxes() -> None:
        second.zero_grad(set_to_none=True)
        answers = values(features, of_class)
        loss = functional.binary_cross_entropy_with_logits(answers, wanted, reduction="none")
        loss.mean((1, 2)).sum().backward()
        clip_each(values.parameters())
        second.step()

    return on_frames, on_boxes


def spent(step: Step, times: int) -> float:
    """CPU seconds of so many steps."""
    began = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - began


def ratio(one: Step, together: Step, seeds: int, repeats: int) -> float:
    """Time of one step of all seeds over that of as many plain ones; median of the turns."""
    one(), together()
    turns = ((spent(together, 1), spent(one, seeds)) for _ in range(repeats))
    return statistics.median(all_of_them / plain for all_of_them, plain in turns)


def table(cfg: SeedsConfig) -> Iterator[list[str]]:
    for what, network in (("slides, hidden 128", Network()), ("hidden 32", Network(hidden=32))):
        for seeds in cfg.seeds:
            one, together, cut = windowed(network, seeds)
            found = f"{ratio(one, together, seeds, cfg.repeats):.2f}"
            plain = f"{seeds} x ({operators(cut)} and the GRU)"
            yield [what, str(seeds), found, str(operators(together)), plain]
    kinds = ("best, on frames", "best, on boxes")
    for what, one, k in zip(kinds, of_events(FOLDS), range(2), strict=True):
        for seeds in cfg.seeds:
            together = of_events(FOLDS * seeds)[k]
            found = f"{ratio(one, together, seeds, cfg.repeats):.2f}"
            yield [what, str(seeds), found, str(operators(together)), f"{seeds} x {operators(one)}"]


def main(cfg: SeedsConfig) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    header = ["gradient step", "S", "one of S seeds / S plain ones, CPU s", "operators"]
    print("\n".join(markdown_table([*header, "of S plain steps"], table(cfg))))


if __name__ == "__main__":
    run_script(SeedsConfig, main)
