"""Acting and training, naive against suite, in one run on this machine.

Run:    make bench   (or: PYTHONPATH=. python benchmarks/speed.py [REPEATS])
Writes: nothing; prints a Markdown table

The naive version is `tests/naive.py`: one pair, one frame at a time, the same network. Both sides
run on one thread, in turns; each figure is the median of the repeats, with the range behind it.
Read the ratios: the seconds depend on what else the machine does.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from corpora import write_cache  # noqa: E402
from naive import greedy, play  # noqa: E402

from bandit import near, to_device  # noqa: E402
from config import Bandit, Learning, Network, TrainConfig, with_preset  # noqa: E402
from DQN import QNetwork, Trainer, greedy_actions  # noqa: E402
from preprocess import Cache, load_cache  # noqa: E402

CPU = torch.device("cpu")
NAIVE_FRAMES = 100  # one at a time takes about 10 ms each


def frames_per_second(work: Callable[[], int], repeats: int) -> list[float]:
    """Rates of `work`, which returns how many frames it did; one warm-up before."""
    work()
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        frames = work()
        rates.append(frames / (time.perf_counter() - began))
    return rates


def naive_acting(cache: Cache, bandit: Bandit, network: QNetwork) -> int:
    """Decide some frames one at a time."""
    pair = {name: values[:NAIVE_FRAMES] for name, values in cache.of_pair(0).items()}
    steps = play(pair, greedy(network), bandit.channels, list(bandit.deltas), bandit.reading)
    return len(steps)


def acting(cache: Cache, bandit: Bandit, network: QNetwork) -> int:
    """Decide the whole cache; frames that need no decision count as decided."""
    greedy_actions(network, to_device(cache, bandit, CPU), bandit, 256)
    return len(cache.label)


def naive_training(network: QNetwork, ticks: int) -> int:
    """The naive schedule at epsilon 0: 32 frames one at a time, then a gradient step of 32."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    states = torch.rand(32, 6, 21)
    for _ in range(ticks):
        network.eval()
        for state in states:
            with torch.no_grad():
                network(state[None]).argmax()
        network.train()
        loss = (network(states)[:, 0] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 32 * ticks


def training(trainer: Trainer, ticks: int) -> int:
    """The suite's ticks, replay already filled."""
    frames = trainer.progress["frames"]
    for _ in range(ticks):
        trainer.tick()
    return trainer.progress["frames"] - frames


def show(name: str, naive: list[float], suite: list[float]) -> None:
    """A row: medians, ranges, ratio of the medians."""

    def text(rates: list[float]) -> str:
        return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"

    ratio = statistics.median(suite) / statistics.median(naive)
    print(f"| {name} | {text(naive)} | {text(suite)} | {ratio:.1f} |", flush=True)


def main(repeats: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder) / "cache" / "train", [500] * 64)
        cache = load_cache(Path(folder) / "cache" / "train")
    print(f"torch {torch.__version__}, one thread, {repeats} repeats, slides' network\n")
    print("| frames per second | naive | suite | ratio |\n|---|---|---|---|")
    for preset in ("slides", "original"):
        bandit = with_preset(TrainConfig, preset).bandit
        network = QNetwork(bandit, Network())
        naive = frames_per_second(lambda b=bandit, n=network: naive_acting(cache, b, n), repeats)
        suite = frames_per_second(lambda b=bandit, n=network: acting(cache, b, n), repeats)
        show(f"acting, {bandit.reading} reading", naive, suite)
    # Epsilon 0 asks for the most: every frame that matters is decided by the network.
    learning = Learning(train_start=100, epsilon_start=0.0, epsilon_end=0.0)
    cfg = TrainConfig(learning=learning, holdout=0.0, device="cpu")
    trainer = Trainer(cfg, cache, CPU)
    while trainer.replay.count <= learning.train_start:
        trainer.tick()
    naive = frames_per_second(lambda: naive_training(QNetwork(Bandit(), Network()), 4), repeats)
    suite = frames_per_second(lambda: training(trainer, 8), repeats)
    show("training at epsilon 0, independent reading", naive, suite)
    signals = trainer.signals
    inside = near(signals.prob, signals.t_base, 0.2).float().mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\ninside the boundary: {inside:.1%} of the frames; peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
