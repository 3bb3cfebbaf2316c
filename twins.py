"""Learned opponents: the policy's state and network, trained with supervision instead of reward.

Run:    python twins.py                                      # classifier on cache/train
        python twins.py --kind rewards --run runs/rewards
        python evaluate.py --compare DQN=runs/slides twin=runs/twin rules --out runs/table
Reads:  <cache>/<split>/ (preprocess.py)
Writes: <run>/{last.pt, best.pt, config.json}
Shapes: N frames of all pairs, B batch, C channels, W window, A actions

With gamma 0 a policy is a classifier of the state, and the labels give the reward of every action.
Two twins ask what reinforcement learning adds to that:

classifier  one output, cross-entropy with the label, on every frame; on where its logit is above 0
rewards     the Q-network itself, squared error against the rewards of all actions at once, on the
            frames inside the boundary, which are those that the policy learns from

A twin always sees cached arrays, as in the independent reading: it has taken no earlier decision.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # before torch, which takes seconds to import
    from config import TwinsConfig, parse_first

    parse_first(TwinsConfig)

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import runfolder
from bandit import (
    Signals,
    decide,
    frames_of,
    hold_out,
    make_states,
    near,
    reward_cells,
    reward_table,
    shift,
    thresholds,
    to_device,
)
from config import Bandit, InputError, Network, TwinsConfig, run_script
from core.files import keep_apart
from core.tensors import fitted
from DQN import QNetwork, greedy_actions
from gate import Gate, tune_gate
from metrics import mean_f1
from preprocess import Cache, load_cache


class Twin(NamedTuple):
    """A trained twin with what is needed to apply it."""

    kind: str  # classifier or rewards
    network: QNetwork
    bandit: Bandit
    signal: dict | None  # formulas of the cache it was trained on; None: unknown
    gate: Gate | None
    info: dict[str, Any]
    seen: torch.Tensor | None = None  # see `runfolder.prints_of`; None: unknown


def make_network(kind: str, bandit: Bandit, network: Network) -> QNetwork:
    """The Q-network; a classifier has one output in place of the Q-values."""
    model = QNetwork(bandit, network)
    if kind == "classifier":
        model.head[-1] = nn.Linear(network.hidden, 1)
    return model


def all_rewards(signals: Signals, frame: torch.Tensor, bandit: Bandit) -> torch.Tensor:
    """Reward of every action on some frames (B,) -> (B, A)."""
    prob, t_base, label = (x[frame] for x in (signals.prob, signals.t_base, signals.label))
    deltas = torch.tensor(bandit.deltas, device=frame.device)
    before = decide(prob, t_base) == label
    after = decide(prob[:, None], shift(t_base[:, None], deltas)) == label[:, None]
    cells = reward_cells(before[:, None].expand_as(after), after)
    return reward_table(bandit).to(frame.device)[cells]


@torch.inference_mode()
def decisions(
    twin: Twin,
    signals: Signals,
    batch: int,
    pairs: np.ndarray | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Decisions (N,) bool of a twin on some pairs (default: all); elsewhere those of T_base."""
    if twin.kind == "rewards":
        actions = greedy_actions(twin.network, signals, twin.bandit, batch, pairs, progress)
        return decide(signals.prob, thresholds(signals, actions, twin.bandit))
    on = decide(signals.prob, signals.t_base)
    was_training = twin.network.training
    twin.network.eval()
    chosen = torch.arange(len(signals.start)) if pairs is None else torch.as_tensor(pairs)
    owner, within = frames_of(signals, chosen.to(on.device))
    bar = tqdm(total=len(within), desc=progress, unit="frame", disable=progress is None)
    for part in torch.arange(len(within), device=on.device).split(batch):
        states = make_states(signals, owner[part], within[part], twin.bandit)
        logit = twin.network(states)[:, 0]
        if not logit.isfinite().all():
            raise InputError("logits are not finite: the weights are damaged or training diverged")
        on[within[part]] = logit > 0
        bar.update(len(part))
    bar.close()
    twin.network.train(was_training)
    return on


class Trainer:
    """The state of a run: everything here that changes is in last.pt."""

    def __init__(self, cfg: TwinsConfig, cache: Cache, device: torch.device):
        self.cfg, self.cache, self.device = cfg, cache, device
        self.bandit = replace(cfg.bandit, reading="independent")
        train, self.held_out = hold_out(cache, cfg)
        self.signals = to_device(cache, self.bandit, device)
        self.gate = tune_gate(cache)
        self.owner = torch.from_numpy(cache.frames_of_pair).to(device)
        mine = np.isin(cache.frames_of_pair, train)
        visited = int(mine.sum()) * cfg.passes
        self.steps = max(1, visited // cfg.frames_per_step)
        if cfg.kind == "rewards":
            prob, t_base = cache.signals["prob"], cache.signals["t_base"]
            mine &= near(prob, t_base, self.bandit.boundary_width)
        self.frames = np.flatnonzero(mine)
        if not len(self.frames):
            raise InputError(f"{cache.folder}: no frame lies inside the boundary")
        torch.manual_seed(cfg.seed)  # initial weights and dropout
        self.network = make_network(cfg.kind, self.bandit, cfg.network).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), cfg.lr, fused=True)
        self.rng = np.random.default_rng([cfg.seed, 4])
        self.progress = {"steps": 0, "best_f1": -1.0, "best_step": -1}

    @property
    def twin(self) -> Twin:
        """The network as it is now."""
        signal = self.cache.manifest["signal"]
        info = self.progress | {"trained_on": self.cache.facts}
        return Twin(self.cfg.kind, self.network, self.bandit, signal, self.gate, info)

    def gradient_step(self) -> float:
        """One step of Adam on a batch of frames drawn at random; returns the loss."""
        drawn = self.rng.choice(self.frames, self.cfg.batch)
        frame = torch.from_numpy(drawn).to(self.device)
        states = make_states(self.signals, self.owner[frame], frame, self.bandit)
        self.network.train()
        out = self.network(states)
        if self.cfg.kind == "classifier":
            target = self.signals.label[frame].float()
            loss = functional.binary_cross_entropy_with_logits(out[:, 0], target)
        else:
            loss = functional.mse_loss(out, all_rewards(self.signals, frame, self.bandit))
        value = loss.item()
        if not np.isfinite(value):
            raise InputError(
                f"loss is {value} at gradient step {self.progress['steps']} (learning rate"
                f" {self.cfg.lr:g}); start anew with --overwrite and a smaller --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.progress["steps"] += 1
        return value

    def held_out_f1(self) -> float:
        """Mean-pair F1 on the held-out pairs."""
        on = decisions(self.twin, self.signals, 256, self.held_out)
        return mean_f1(self.cache, on.cpu().numpy(), self.held_out)

    def policy(self) -> dict[str, Any]:
        """What best.pt holds: enough to apply the twin."""
        info = self.twin.info
        content = runfolder.policy_content(self.cfg, self.cache, self.network, self.gate, info)
        return {"twin": self.cfg.kind} | content

    def state(self) -> dict[str, Any]:
        """What last.pt holds: everything that a bit-exact resume needs."""
        rng = runfolder.torch_rng(self.device) | {"draws": self.rng.bit_generator.state}
        return self.policy() | {"optimizer": self.optimizer.state_dict(), "rng": rng}

    def restore(self, content: dict[str, Any]) -> None:
        """Take over the state of last.pt."""
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.progress = {name: content["info"][name] for name in self.progress}
        self.rng.bit_generator.state = content["rng"]["draws"]
        runfolder.restore_torch_rng(content["rng"], self.device)


def load_twin(path: Path, device: torch.device) -> Twin:
    """Open a checkpoint of this script. InputError if it is another's, damaged or does not fit."""
    content = runfolder.read_checkpoint(path, device)
    if not {"twin", "gate", "signal"} <= content.keys():
        raise InputError(f"{path}: not a checkpoint of twins.py")
    cfg, signal, gate, info = runfolder.facts_of(TwinsConfig, content, path)
    bandit = replace(cfg.bandit, reading="independent")
    make = partial(make_network, cfg.kind, bandit, cfg.network)
    network = fitted(make, content.get("network"), path).to(device)
    seen = runfolder.seen_of(content, path)
    return Twin(cfg.kind, network.eval(), bandit, signal, gate, info, seen)


def keep_best(trainer: Trainer) -> None:
    """Write best.pt if the held-out F1 rose; without held-out clips the newest is the best."""
    f1 = trainer.held_out_f1() if len(trainer.held_out) else -1.0
    if f1 > trainer.progress["best_f1"] or not len(trainer.held_out):
        trainer.progress |= {"best_f1": f1, "best_step": trainer.progress["steps"]}
        runfolder.write_checkpoint(trainer.cfg.run / "best.pt", trainer.policy())


def main(cfg: TwinsConfig, cache: Cache | None = None) -> int:
    """Train a twin on the cache that is configured, or on a part of it. Returns the exit code."""
    keep_apart(cfg.run, [cfg.cache, cfg.cache / cfg.split], "--run")
    device = runfolder.pick_device(cfg.device, cfg.threads)
    with runfolder.held_run(cfg.run):
        return train(cfg, device, cache or load_cache(cfg.cache / cfg.split))


def train(cfg: TwinsConfig, device: torch.device, cache: Cache) -> int:
    """The run: from the cache to last.pt and best.pt. Returns the exit code."""
    trainer = Trainer(cfg, cache, device)
    content = runfolder.open_run(cfg, cache.key, device)
    if content is None:
        runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())
    else:
        with runfolder.restoring(cfg.run / "last.pt"):
            trainer.restore(content)
    if trainer.progress["steps"] == trainer.steps:
        print(f"{cfg.run}: this run is complete ({trainer.steps} gradient steps)")
        return 0
    print(
        f"{cfg.kind}: {len(trainer.frames):,} training frames, {len(trainer.held_out)} pairs held"
        f" out, {trainer.steps:,} gradient steps of {cfg.batch}; run folder {cfg.run}"
    )
    stopped = runfolder.catch_signals()
    began = saved = time.perf_counter()
    first = trainer.progress["steps"]
    bar = tqdm(total=trainer.steps, initial=first, desc=f"Training {cfg.kind}", unit="step")
    while trainer.progress["steps"] < trainer.steps and not stopped:
        loss = trainer.gradient_step()
        done = trainer.progress["steps"]
        if done % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
        bar.update()
        if done * cfg.looks // trainer.steps > (done - 1) * cfg.looks // trainer.steps:
            keep_best(trainer)
        if time.perf_counter() - saved > 60 * cfg.checkpoint_minutes:
            runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())
            saved = time.perf_counter()
    bar.close()
    runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())
    if stopped:
        print(f"stopped and saved after {trainer.progress['steps']} steps; to go on, run:")
        print(f"  {runfolder.resume_command()}")
        return 128 + stopped[0]
    print(f"gradient_steps: {trainer.progress['steps']}")
    print(f"train_seconds: {time.perf_counter() - began:.1f}")
    if len(trainer.held_out):
        best = trainer.progress
        print(f"held_out_f1_best: {best['best_f1']:.4f} (step {best['best_step']})")
    print(f"twin: {cfg.run / 'best.pt'}")
    return 0


if __name__ == "__main__":
    run_script(TwinsConfig, main)
