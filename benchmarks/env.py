"""Other people's library against DQN.py at the same number of frames, in one run on this machine.

Run:    make bench-env   (or: python -m benchmarks.env [SEEDS])

First the environments alone under random actions, then the DQN of stable-baselines3 on
studies/gym.py beside DQN.py: the demo's network and learning rate, 32 lanes, a gradient
step of 32 for 32 frames. Reward and F1 are those of the greedy policy on the validation cache, all
frames counted. The pairs are fabricated. One thread; seeds in turns; each figure is the median over
the seeds, with the range behind it. CPU time, so that other programs on the machine count for
little.

DQN.py makes fewer gradient steps of the same frames: learning starts at 2,000 stored transitions
on both sides, but it stores only those inside the boundary, while the library stores what it
visits. The time for each gradient step, acting included, is in the table for that.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

import numpy as np
import torch

absent = [name for name in ("gymnasium", "stable_baselines3") if find_spec(name) is None]
if absent:
    print(f"skipped: {', '.join(absent)} not installed (pip install -r requirements-studies.txt)")
    sys.exit(0)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import gymnasium
from corpora import write_cache

from benchmarks.speed import text
from config import TrainConfig
from core.errors import InputError
from core.names import markdown_table
from DQN import Trainer
from policy.apply import greedy_actions
from policy.bandit import decide, thresholds, to_device
from sed.caches import Cache, load_cache
from sed.metrics import mean_f1
from studies import gym
from studies.gym import ThresholdEnv, ThresholdVectorEnv

CPU = torch.device("cpu")
DEMO = TrainConfig.with_preset("demo")
LANES, ENV_FRAMES = 32, 3_200


class Reached(NamedTuple):
    """Of one training: frames, CPU seconds, gradient steps; of its policy: reward, F1."""

    frames: int
    seconds: float
    steps: int
    reward: float
    f1: float

    @property
    def rate(self) -> float:
        """Frames per CPU second."""
        return self.frames / self.seconds


def single(env: ThresholdEnv) -> None:
    """Random actions, one frame at a time."""
    env.reset(seed=0)
    for action in np.random.default_rng(0).integers(21, size=ENV_FRAMES):
        if env.step(action)[2]:
            env.reset()


def vector(envs: gymnasium.vector.VectorEnv) -> None:
    """Random actions, a frame in every lane at a time."""
    envs.reset(seed=0)
    for actions in np.random.default_rng(0).integers(21, size=(ENV_FRAMES // LANES, LANES)):
        envs.step(actions)


def environments(cache: Cache, repeats: int) -> None:
    """Table of the environments' own speed."""
    many = gymnasium.vector.SyncVectorEnv(
        [lambda: ThresholdEnv(cache)] * LANES,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    rows = [("ThresholdEnv", single, ThresholdEnv(cache))]
    rows += [(f"gymnasium's SyncVectorEnv of {LANES}", vector, many)]
    rows += [(f"ThresholdVectorEnv of {LANES}", vector, ThresholdVectorEnv(cache, LANES))]
    first, lines = 0.0, []
    for name, work, env in rows:
        work(env)  # warm-up
        rates = []
        for _ in range(repeats):
            began = time.process_time()
            work(env)
            rates.append(ENV_FRAMES / (time.process_time() - began))
        first = first or statistics.median(rates)
        lines.append([name, text(rates), f"{statistics.median(rates) / first:.1f}"])
    header = ["environment alone", "frames per CPU second", "ratio"]
    print(*markdown_table(header, lines), sep="\n")


def judge(network: torch.nn.Module | None, cache: Cache) -> tuple[float, float]:
    """Mean reward per frame and mean-pair F1 of the greedy policy; None: always action 0.0."""
    signals, bandit = to_device(cache, DEMO.bandit, CPU), DEMO.bandit
    actions = torch.full_like(signals.label, bandit.no_change, dtype=torch.int64)
    if network is not None:
        actions = greedy_actions(network, signals, bandit, 256)
    pred = decide(signals.prob, thresholds(signals, actions, bandit)).numpy()
    f1 = mean_f1(cache, pred, np.arange(len(cache.pairs)))
    return gym.mean_reward(signals, actions, bandit), f1


def suite(train: Cache, validation: Cache, **same: Any) -> Reached:
    """DQN.py's own training, one pass."""
    trainer = Trainer(TrainConfig(passes=1, holdout=0.0, **same), train, CPU)
    began = time.process_time()
    while not trainer.done:
        trainer.tick()
    seconds, progress = time.process_time() - began, trainer.progress
    reached = judge(trainer.network, validation)
    return Reached(progress["frames"], seconds, progress["steps"], *reached)


def library(train: Cache, validation: Cache, **settings: Any) -> Reached:
    """stable-baselines3's training for as many frames."""
    steps = len(train.label)
    model = gym.make_dqn(gym.ThresholdEnvConfig(steps=steps, **settings), train, CPU)
    began = time.process_time()
    gym.learn(model, steps)
    seconds = time.process_time() - began
    reached = judge(model.q_net, validation)
    return Reached(model.num_timesteps, seconds, model._n_updates, *reached)


CONTENDERS: dict[str, Callable[..., Reached]] = {
    "DQN.py": suite,
    "SB3, the network of DQN.py, every frame": partial(library, policy="qnetwork", all_frames=True),
    "SB3, the network of DQN.py, boundary only": partial(library, policy="qnetwork"),
    "SB3, MLP, boundary only": partial(library, policy="mlp"),
}


def training(train: Cache, validation: Cache, seeds: int) -> None:
    """Table of speed and of what was reached, seeds in turns."""
    found: dict[str, list[Reached]] = {name: [] for name in CONTENDERS}
    for seed in range(seeds):
        for name, run in CONTENDERS.items():
            row = run(train, validation, seed=seed, network=DEMO.network, learning=DEMO.learning)
            found[name].append(row)
            print(f"seed {seed}, {name}: {row.rate:.0f} frames per CPU second", file=sys.stderr)
    reward, f1 = judge(None, validation)
    header = ["training", "frames per CPU second", "ratio", "gradient steps", "CPU ms for each"]
    header += ["mean reward", "F1"]
    lines = [["always 0.0", "", "", "", "", f"{reward:.4f}", f"{100 * f1:.2f}"]]
    median = statistics.median
    first = median(row.rate for row in found["DQN.py"])
    for name, rows in found.items():
        rates = [row.rate for row in rows]
        cells = [name, text(rates), f"{median(rates) / first:.2f}"]
        cells += [f"{median(row.steps for row in rows):,.0f}"]
        cells += [f"{median(1000 * row.seconds / max(row.steps, 1) for row in rows):.1f}"]
        cells += [text([row.reward for row in rows], ".4f")]
        lines.append([*cells, text([100 * row.f1 for row in rows], ".2f")])
    print("", *markdown_table(header, lines), sep="\n")


def main(args: list[str]) -> None:
    if args[1:]:
        raise InputError(f"{args[1]}: only the number of seeds may be given")
    seeds = int(args[0]) if args else 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        write_cache(home / "train", [500] * 64)
        write_cache(home / "validation", [500] * 32, seed=1)
        train, validation = load_cache(home / "train"), load_cache(home / "validation")
    print(f"torch {torch.__version__}, one thread, {seeds} seeds, {len(train.label):,} frames\n")
    environments(train, seeds)
    training(train, validation, seeds)


if __name__ == "__main__":
    run_script(__doc__, main)
