"""Train the threshold policy: a TCN-BiGRU-Transformer Q-network as a contextual bandit.

Run:    python DQN.py                         # slides' settings on cache/train
        python DQN.py --preset original --run runs/original
        python DQN.py --run runs/slides --resume
        python DQN.py --status runs/slides
Reads:  <cache>/<split>/ (preprocess.py)
Writes: <run>/{last.pt, best.pt, episode-*.pt, reward_history.tsv, config.json, train.log}
Shapes: N frames of all pairs, P pairs, L lanes, B batch, C channels, W window, A actions
Next:   evaluate.py

"DQN" with gamma = 0: the target of Q(s, a) is the reward alone, so there is no next state and no
target network. In the `independent` reading (slides) a state holds cached arrays only; frames whose
answer no action can change keep action 0.0 without being computed. In the `sequential` reading
(original program) the state shows what was decided to the left, and the policy is myopic.
"""

import json
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

import longrun
import runfolder
from bandit import (
    Signals,
    decide,
    episode_order,
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
from config import (
    Bandit,
    InputError,
    Learning,
    Network,
    TrainConfig,
    from_dict,
    run_script,
    with_preset,
)
from gate import Gate, tune_gate
from metrics import mean_f1
from preprocess import Cache, load_cache
from qlearning import Columns, Replay

FORMAT = 1
# ---------------------------------------------------------------------------- Q-network


class QNetwork(nn.Module):
    """TCN -> BiGRU -> Transformer -> head on the centre frame; (B, C, W) -> Q-values (B, A)."""

    def __init__(self, bandit: Bandit, network: Network):
        super().__init__()
        hidden, width = network.hidden, network.width
        blocks: list[nn.Module] = []
        for i in range(network.tcn_layers):
            inputs = hidden if i else len(bandit.channels)
            same = 2**i * (network.tcn_kernel // 2)
            conv = nn.Conv1d(inputs, hidden, network.tcn_kernel, padding=same, dilation=2**i)
            blocks += [conv, nn.GELU(), nn.GroupNorm(network.tcn_groups, hidden)]
        self.tcn = nn.Sequential(*blocks)
        self.gru = nn.GRU(hidden, hidden, network.gru_layers, batch_first=True, bidirectional=True)
        self.pre_norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, network.heads, network.inner, network.dropout, "gelu", batch_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, network.transformer_layers, enable_nested_tensor=False
        )
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bandit.num_actions)
        )
        self.centre = bandit.context

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, C, W) -> (B, A): expected reward of each threshold shift."""
        x = self.tcn(states).transpose(1, 2)  # (B, W, hidden)
        x, _ = self.gru(x)  # (B, W, width)
        x = self.pre_norm(x)
        for layer in self.transformer.layers[:-1]:
            x = layer(x)  # (B, W, width)
        return self.head(self.last_layer(x))

    def last_layer(self, x: torch.Tensor) -> torch.Tensor:
        """Last encoder layer for the centre frame alone, the only one the head reads.

        (B, W, width) -> (B, width); the same numbers as the whole layer, a fifth less work.
        """
        layer = self.transformer.layers[-1]
        query = x[:, self.centre : self.centre + 1]  # (B, 1, width)
        attended = layer.self_attn(query, x, x, need_weights=False)[0]
        y = layer.norm1(query + layer.dropout1(attended))
        inner = layer.dropout(layer.activation(layer.linear1(y)))
        return layer.norm2(y + layer.dropout2(layer.linear2(inner)))[:, 0]


def best_actions(q_values: torch.Tensor) -> torch.Tensor:
    """(B, A) -> (B,) action of the highest Q-value; InputError where they are not finite."""
    if not q_values.isfinite().all():
        raise InputError("Q-values are not finite: the weights are damaged or training diverged")
    return q_values.argmax(1)


@torch.inference_mode()
def greedy_actions(
    network: QNetwork,
    signals: Signals,
    bandit: Bandit,
    batch: int,
    pairs: np.ndarray | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Best action of every frame of `pairs` (default: all) -> (N,) int64 on the device.

    Frames that are not decided hold the no-change action: in the independent reading those whose
    answer no action can change, in the sequential one the first frame of each pair.
    """
    device, was_training = signals.prob.device, network.training
    network.eval()
    chosen = np.arange(len(signals.start)) if pairs is None else np.asarray(pairs)
    pair = torch.from_numpy(chosen).to(device)
    actions = torch.full_like(signals.prob, bandit.no_change, dtype=torch.int64)
    if bandit.reading == "independent":
        owner, within = frames_of(signals, pair)
        acts = near(signals.prob[within], signals.t_base[within], bandit.max_delta)
        owner, within = owner[acts], within[acts]
        bar = tqdm(total=len(within), desc=progress, unit="frame", disable=progress is None)
        for part in torch.arange(len(within), device=device).split(batch):
            states = make_states(signals, owner[part], within[part], bandit)
            actions[within[part]] = best_actions(network(states))
            bar.update(len(part))
        bar.close()
    else:
        lengths = signals.end[pair] - signals.start[pair]
        reach = torch.arange(-bandit.context, 0, device=device)
        longest = int(lengths.max())
        for step in tqdm(range(1, longest), desc=progress, unit="tick", disable=progress is None):
            for part in pair[lengths > step].split(batch):
                frame = signals.start[part] + step
                seen = (frame[:, None] + reach).maximum(signals.start[part][:, None])
                states = make_states(signals, part, frame, bandit, actions[seen])
                actions[frame] = best_actions(network(states))
    network.train(was_training)
    return actions


# ---------------------------------------------------------------------------- replay, exploration


def replay_columns(context: int, sequential: bool) -> Columns:
    """A transition as indices: (pair, frame, action, reward[, left actions]), 13 bytes."""
    columns: Columns = {
        "pair": ((), torch.int32),
        "frame": ((), torch.int32),
        "action": ((), torch.int8),
        "reward": ((), torch.float32),
    }
    return columns | ({"left": ((context,), torch.int8)} if sequential else {})


def epsilon_at(episode: Any, num_episodes: int, learning: Learning) -> Any:
    """Exploration rate of episodes (a number or an array, from 0): linear decay, then constant."""
    decay = learning.epsilon_episodes or max(1, round(learning.epsilon_fraction * num_episodes))
    share = np.minimum(1.0, episode / decay)
    return learning.epsilon_start + (learning.epsilon_end - learning.epsilon_start) * share


# ---------------------------------------------------------------------------- checkpoints


class Policy(NamedTuple):
    """A trained network with what is needed to apply it."""

    network: QNetwork
    bandit: Bandit
    signal: dict | None  # formulas of the cache it was trained on; None: unknown
    info: dict[str, Any]
    gate: Gate | None = None  # for queries without known tags; None: unknown


def load_policy(path: Path, device: torch.device, preset: str = "slides") -> Policy:
    """Open a checkpoint of this suite, or a bare state dict of the original program.

    A bare state dict holds no settings; they are the preset's. InputError if it does not fit.
    """
    content = runfolder.read_checkpoint(path, device)
    bare = "config" not in content
    if bare and "tcn.0.weight" not in content:
        raise InputError(f"{path}: neither a checkpoint of this suite nor a Q-network's state dict")
    if bare:
        config = with_preset(TrainConfig, preset)
        weights, info, trained_on = content, {"source": "state dict", "preset": preset}, None
    else:
        config = from_dict(TrainConfig, runfolder.known_config(TrainConfig, content))
        weights, info, trained_on = content["network"], content["info"], content["signal"]
    network = QNetwork(config.bandit, config.network).to(device)
    runfolder.load_weights(network, weights, path)
    signal = json.loads(trained_on) if trained_on else None
    gate = json.loads(content.get("gate", "null"))
    return Policy(network.eval(), config.bandit, signal, info, gate and Gate(**gate))


# ---------------------------------------------------------------------------- training


class Trainer:
    """The state of a run: everything here that changes is in the checkpoint."""

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device):
        self.cfg, self.cache, self.device = cfg, cache, device
        self.bandit, self.learning = cfg.bandit, cfg.learning
        self.sequential = self.bandit.reading == "sequential"
        train, self.held_out = hold_out(cache, cfg.holdout, cfg.seed)
        self.order = episode_order(cache, train, cfg)
        self.signals = to_device(cache, self.bandit, device)
        self.gate = tune_gate(cache)
        self.deltas = torch.tensor(self.bandit.deltas, device=device)
        self.table = reward_table(self.bandit).to(device)
        prob, t_base = self.signals.prob, self.signals.t_base
        # On the host, so that choosing the frames to compute needs no wait for the device.
        self.acts = near(prob, t_base, self.bandit.max_delta).cpu().numpy()
        torch.manual_seed(cfg.seed)  # initial weights and dropout; all else has its own generator
        self.network = QNetwork(self.bandit, cfg.network).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.learning.lr, fused=True)
        columns = replay_columns(self.bandit.context, self.sequential)
        self.replay = Replay(self.learning.replay, columns, device)
        self.explore_rng = np.random.default_rng([cfg.seed, 1])
        self.replay_rng = np.random.default_rng([cfg.seed, 2])
        lanes = self.learning.lanes
        self.episode = np.full(lanes, -1)  # running episode of each lane; -1: none
        self.frame = np.zeros(lanes, dtype=np.int64)  # its next frame, global index
        self.left = torch.full(
            (lanes, self.bandit.context), self.bandit.no_change, dtype=torch.int64, device=device
        )
        self.cells = torch.zeros(lanes, 4, dtype=torch.int64, device=device)
        self.recent: deque[float] = deque(maxlen=10)
        self.progress = {
            "next_episode": 0,
            "finished": 0,
            "steps": 0,
            "frames": 0,
            "owed": 0,  # frames visited since the last gradient step
            "loss_sum": 0.0,  # of these three since the last finished episode
            "q_sum": 0.0,
            "loss_count": 0,
            "best_f1": -1.0,
            "best_episode": -1,
        }
        self.fill_lanes()

    @property
    def done(self) -> bool:
        """All episodes have finished."""
        return self.progress["finished"] == len(self.order)

    @property
    def total_frames(self) -> int:
        """Frames that the whole run visits."""
        start = 1 if self.sequential else 0  # the original starts at frame 1, if there is one
        lengths = np.diff(self.cache.offsets)[self.order]
        return int(np.maximum(lengths - start, 1).sum())

    def fill_lanes(self) -> None:
        """Give idle lanes the next episodes, in order."""
        for lane in np.flatnonzero(self.episode < 0):
            if self.progress["next_episode"] == len(self.order):
                break
            self.episode[lane] = self.progress["next_episode"]
            first = int(self.cache.offsets[self.order[self.episode[lane]]])
            # The original starts at frame 1: frame 0 keeps its base decision.
            length = int(self.cache.offsets[self.order[self.episode[lane]] + 1]) - first
            self.frame[lane] = first + (1 if self.sequential and length > 1 else 0)
            self.left[lane] = self.bandit.no_change
            self.cells[lane] = 0
            self.progress["next_episode"] += 1

    def select_actions(
        self, lane: np.ndarray, pair: torch.Tensor, frame: torch.Tensor, left: torch.Tensor
    ) -> torch.Tensor:
        """Epsilon-greedy actions (L,) of the active lanes; 0.0 where no action matters."""
        epsilon = epsilon_at(self.episode[lane], len(self.order), self.learning)
        explore = self.explore_rng.random(len(lane)) < epsilon
        choice = self.explore_rng.integers(self.bandit.num_actions, size=len(lane))
        acts = np.ones(len(lane), bool) if self.sequential else self.acts[self.frame[lane]]
        actions = torch.from_numpy(np.where(acts, choice, self.bandit.no_change)).to(self.device)
        greedy = torch.from_numpy(np.flatnonzero(acts & ~explore)).to(self.device)
        if len(greedy):
            self.network.train(self.learning.acting == "dropout")
            left = left[greedy] if self.sequential else None
            with torch.inference_mode():
                states = make_states(self.signals, pair[greedy], frame[greedy], self.bandit, left)
                actions[greedy] = best_actions(self.network(states))
        return actions

    def tick(self) -> list[tuple[int, list[int]]]:
        """Advance every active lane by a frame and learn; (episode, cells) of those that end."""
        lane = np.flatnonzero(self.episode >= 0)
        on_device = torch.from_numpy(lane).to(self.device)
        pair = torch.from_numpy(self.order[self.episode[lane]]).to(self.device)
        frame = torch.from_numpy(self.frame[lane]).to(self.device)
        left = self.left[on_device]
        actions = self.select_actions(lane, pair, frame, left)
        prob, t_base = self.signals.prob[frame], self.signals.t_base[frame]
        label = self.signals.label[frame]
        t_new = shift(t_base, self.deltas[actions])
        cells = reward_cells(decide(prob, t_base) == label, decide(prob, t_new) == label)
        self.cells[on_device, cells] += 1
        tested = t_base if self.bandit.boundary_test == "before" else t_new
        kept = near(prob, tested, self.bandit.boundary_width).nonzero()[:, 0]
        self.replay.add(
            pair=pair[kept],
            frame=frame[kept],
            action=actions[kept],
            reward=self.table[cells[kept]],
            left=left[kept],
        )
        if self.sequential and self.bandit.context:
            self.left[on_device] = torch.cat([left[:, 1:], actions[:, None]], 1)
        self.frame[lane] += 1
        self.progress["frames"] += len(lane)
        self.progress["owed"] += len(lane)
        while self.progress["owed"] >= self.learning.frames_per_step:
            self.progress["owed"] -= self.learning.frames_per_step
            if self.replay.count > self.learning.train_start:
                self.gradient_step()
        over = self.frame[lane] == self.cache.offsets[self.order[self.episode[lane]] + 1]
        ended = [(int(self.episode[i]), self.cells[i].tolist()) for i in lane[over]]
        self.episode[lane[over]] = -1
        self.progress["finished"] += len(ended)
        self.fill_lanes()
        return sorted(ended)

    def gradient_step(self) -> None:
        """One step of Adam on the squared error between Q(state, action) and the reward."""
        rows = self.replay.sample(self.learning.batch, self.replay_rng)
        left = rows["left"].long() if self.sequential else None
        pair, frame = rows["pair"].long(), rows["frame"].long()
        states = make_states(self.signals, pair, frame, self.bandit, left)
        self.network.train()
        q_values = self.network(states)  # (B, A)
        q_taken = q_values.gather(1, rows["action"].long()[:, None])[:, 0]
        loss = functional.mse_loss(q_taken, rows["reward"])
        value = loss.item()
        if not (np.isfinite(value) and q_values.isfinite().all()):
            raise InputError(
                f"loss is {value} at gradient step {self.progress['steps']}"
                f" (learning rate {self.learning.lr:g}, states {states.min():.3g}.."
                f"{states.max():.3g}, rewards {rows['reward'].min():.3g}.."
                f"{rows['reward'].max():.3g}, Q {q_values.min():.3g}..{q_values.max():.3g});"
                " last.pt holds a good state; start anew with --overwrite and a smaller"
                " --learning.lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.progress["steps"] += 1
        self.progress["loss_sum"] += value
        self.progress["q_sum"] += q_taken.mean().item()
        self.progress["loss_count"] += 1

    def policy(self) -> dict[str, Any]:
        """What best.pt and the numbered checkpoints hold: enough to apply the policy."""
        info = self.progress | {"trained_on": self.cache.facts}
        content = runfolder.policy_content(self.cfg, self.cache, self.network, self.gate, info)
        return {"format": FORMAT} | content

    def state(self) -> dict[str, Any]:
        """What last.pt holds: everything that a bit-exact resume needs."""
        rng = runfolder.torch_rng(self.device)
        rng["explore"] = self.explore_rng.bit_generator.state
        rng["replay"] = self.replay_rng.bit_generator.state
        return self.policy() | {
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.columns | {"count": self.replay.count},
            "lanes": {
                "episode": torch.from_numpy(self.episode.copy()),
                "frame": torch.from_numpy(self.frame.copy()),
                "left": self.left,
                "cells": self.cells,
            },
            "recent": list(self.recent),
            "rng": rng,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take over the state of last.pt."""
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, column in self.replay.columns.items():
            column.copy_(content["replay"][name])
        self.replay.count = content["replay"]["count"]
        lanes = content["lanes"]
        self.episode, self.frame = (lanes[name].cpu().numpy() for name in ("episode", "frame"))
        self.left.copy_(lanes["left"])
        self.cells.copy_(lanes["cells"])
        self.recent.extend(content["recent"])
        self.progress = dict(content["info"])
        self.explore_rng.bit_generator.state = content["rng"]["explore"]
        self.replay_rng.bit_generator.state = content["rng"]["replay"]
        runfolder.restore_torch_rng(content["rng"], self.device)

    def held_out_f1(self) -> float:
        """Mean-pair F1 of the greedy policy on the held-out pairs."""
        actions = greedy_actions(self.network, self.signals, self.bandit, 256, self.held_out)
        pred = decide(self.signals.prob, thresholds(self.signals, actions, self.bandit))
        return mean_f1(self.cache, pred.cpu().numpy(), self.held_out)


def announce(trainer: Trainer) -> None:
    """Say what is about to happen: device, memory, pairs, steps, estimated time."""
    cfg, order, learning = trainer.cfg, trainer.order, trainer.learning
    lengths = np.diff(trainer.cache.offsets)[order]
    steps = int(lengths.sum()) // learning.frames_per_step
    resident = trainer.signals.channels.numel() * 4 + trainer.signals.label.numel()
    ring = sum(column.numel() * column.element_size() for column in trainer.replay.columns.values())
    inside = trainer.acts.mean()
    epsilons = epsilon_at(np.arange(len(order)), len(order), learning)
    asked = lengths.sum() * (1 if trainer.sequential else inside) * (1 - epsilons.mean())
    step_s, frame_s = measure_speed(trainer)
    seconds = (step_s * steps + frame_s * asked) * (1 - trainer.progress["steps"] / max(steps, 1))
    name = str(trainer.device)
    if trainer.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = f"{torch.cuda.get_device_name()} ({free / 1e9:.1f} of {total / 1e9:.1f} GB free)"
    print(
        f"device {name}, {cfg.threads} thread(s); network"
        f" {sum(p.numel() for p in trainer.network.parameters()):,} parameters;"
        f" signals {resident / 1e6:.1f} MB, replay {ring / 1e6:.1f} MB\n"
        f"{len(order) // cfg.passes} training pairs, {len(trainer.held_out)} held out,"
        f" {len(order)} episodes, {lengths.sum():,} frames,"
        f" {inside:.1%} inside the boundary, about {steps:,} gradient steps;"
        f" {trainer.bandit.reading} reading\n"
        f"estimated time {seconds / 60:.0f} min, run folder {cfg.run}"
    )
    if epsilons[-1] > learning.epsilon_end + 1e-9:
        cure = f"--learning.epsilon-episodes {round(0.7 * len(order))} falls over 70 % of them"
        print(f"note: epsilon will fall to {epsilons[-1]:.2f} in {len(order)} episodes; {cure}")


def measure_speed(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a gradient step and of deciding a frame; random state and weights untouched."""
    shape = (trainer.learning.batch, len(trainer.bandit.channels), trainer.bandit.window)
    states, times = torch.zeros(shape, device=trainer.device), []
    with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
        for grad in (True, True, False, False):
            began = time.perf_counter()
            with torch.set_grad_enabled(grad):
                loss = trainer.network.train(grad)(states).square().mean()
            if grad:
                loss.backward()
            trainer.network.zero_grad()
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return min(times[:2]), min(times[2:]) / len(states)


def train(cfg: TrainConfig) -> int:
    """The run: from the caches to last.pt and best.pt. Returns the exit code."""
    device = runfolder.pick_device(cfg.device, cfg.threads)
    cache = load_cache(cfg.cache / cfg.split)
    trainer = Trainer(cfg, cache, device)
    content = runfolder.open_run(cfg, cache.key, device)
    if content is None:
        runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())  # resumable from the start
    else:
        trainer.restore(content)
    if trainer.done:
        print(f"{cfg.run}: this run is complete ({len(trainer.order)} episodes)")
        return 0
    announce(trainer)
    stopped = runfolder.catch_signals()
    began, frames = time.perf_counter(), trainer.progress["frames"]
    totals = {"episodes": len(trainer.order), "frames": trainer.total_frames}
    with longrun.Heartbeat(cfg.run, totals, 1) as beat:
        run_episodes(trainer, beat, stopped)
        beat.end("stopped" if stopped else "complete")
    if stopped:
        print(f"stopped and saved after {trainer.progress['finished']} episodes; to go on, run:")
        print(f"  {runfolder.resume_command()}")
        return 128 + stopped[0]
    summarise(trainer, trainer.progress["frames"] - frames, time.perf_counter() - began)
    return 0


def run_episodes(trainer: Trainer, beat: longrun.Heartbeat, stopped: list[int]) -> None:
    """Tick until all episodes have finished or a signal was caught; writes the run folder."""
    cfg, total = trainer.cfg, len(trainer.order)
    history = runfolder.History(cfg.run, trainer.progress["finished"])
    saved = time.perf_counter()
    bar = tqdm(total=total, initial=trainer.progress["finished"], desc="Training")
    while not trainer.done and not stopped:
        beat(trainer.progress)
        before = trainer.progress["finished"]
        for episode, cells in trainer.tick():
            beat.metrics = record(trainer, history, episode, cells)
            eps, reward, avg10 = (beat.metrics[name] for name in ("epsilon", "reward", "avg10"))
            bar.set_postfix(eps=f"{eps:.3f}", reward=f"{reward:.1f}", avg10=f"{avg10:.1f}")
            bar.update()
        after = trainer.progress["finished"]
        if after * cfg.looks // total > before * cfg.looks // total:
            keep_best(trainer)
        if after // cfg.checkpoint_every > before // cfg.checkpoint_every:
            number = after // cfg.checkpoint_every * cfg.checkpoint_every
            runfolder.write_checkpoint(cfg.run / f"episode-{number:06d}.pt", trainer.policy())
        if time.perf_counter() - saved > 60 * cfg.checkpoint_minutes:
            runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())
            saved = time.perf_counter()
    bar.close()
    history.close()
    runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())


def record(
    trainer: Trainer, history: runfolder.History, episode: int, cells: list[int]
) -> dict[str, float]:
    """Log a finished episode; returns what the progress line and the heartbeat show."""
    reward = float((torch.tensor(cells) * reward_table(trainer.bandit).double()).sum())
    trainer.recent.append(reward)
    average = sum(trainer.recent) / len(trainer.recent)
    epsilon = epsilon_at(episode, len(trainer.order), trainer.learning)
    progress, count = trainer.progress, trainer.progress["loss_count"] or 1
    loss, q = progress["loss_sum"] / count, progress["q_sum"] / count
    progress |= {"loss_sum": 0.0, "q_sum": 0.0, "loss_count": 0}
    row = {"Episode": episode, "Reward": round(reward, 4), "Avg10": round(average, 4)}
    row |= {"Epsilon": round(epsilon, 4), **dict(zip(runfolder.CELLS, cells, strict=True))}
    history.add(row | {"Steps": progress["steps"], "Loss": loss, "Q": q})
    return {"epsilon": epsilon, "reward": reward, "avg10": average, "loss": loss, "q": q}


def keep_best(trainer: Trainer) -> None:
    """Write best.pt if the held-out F1 rose; without held-out clips the newest is the best."""
    f1 = trainer.held_out_f1() if len(trainer.held_out) else -1.0  # -1: nothing to measure on
    if f1 > trainer.progress["best_f1"] or not len(trainer.held_out):
        trainer.progress["best_f1"] = f1
        trainer.progress["best_episode"] = trainer.progress["finished"]
        runfolder.write_checkpoint(trainer.cfg.run / "best.pt", trainer.policy())


def summarise(trainer: Trainer, frames: int, seconds: float) -> None:
    """`key: value` lines that grep can read."""
    cache, held_out, progress = trainer.cache, trainer.held_out, trainer.progress
    print(f"episodes: {progress['finished']}")
    print(f"gradient_steps: {progress['steps']}")
    print(f"train_seconds: {seconds:.1f}")
    print(f"train_frames_per_s: {frames / seconds:.0f}")
    for name, value in runfolder.learning_curve(trainer.cfg.run, trainer.bandit).items():
        print(f"{name}: {value:.2f}")
    if len(held_out):
        base = decide(cache.signals["prob"], cache.signals["t_base"])
        print(f"held_out_f1_before: {mean_f1(cache, base, held_out):.4f}")
        print(f"held_out_f1_best: {progress['best_f1']:.4f} (episode {progress['best_episode']})")
    print(f"policy: {trainer.cfg.run / 'best.pt'}")


def main(cfg: TrainConfig) -> int:
    """Train, or print a checkpoint's digest, or how a run is doing."""
    if cfg.status is not None:
        print(longrun.status(cfg.status))
        return 0
    if cfg.digest is not None:
        print(runfolder.digest(runfolder.read_checkpoint(cfg.digest)))
        return 0
    return train(cfg)


if __name__ == "__main__":
    run_script(TrainConfig, main)
