"""Train the threshold policy: a TCN-BiGRU-Transformer Q-network as a contextual bandit.

Run:    python DQN.py                         # slides' settings on cache/train
        python DQN.py --preset original --run runs/original
        python DQN.py --method classifier --run runs/classifier
        python DQN.py --run runs/slides --resume        # --passes 2 as well: train it further
        torchrun --nproc-per-node=2 -- DQN.py --run runs/slides
        python DQN.py --status runs/slides
Reads:  <cache>/<split>/ (preprocess.py)
Writes: <run>/{last.pt, best.pt, episode-*.pt, reward_history.tsv, config.json, train.log}
Shapes: N frames of all pairs, P pairs, L lanes, B batch, C channels, W window, A actions

"DQN" with gamma = 0: the target of Q(s, a) is the reward alone, so there is no next state and no
target network. In the `independent` reading (slides) a state holds cached arrays only; frames whose
answer no action can change keep action 0.0 without being computed. In the `sequential` reading
(original program) the state shows what was decided to the left, and the policy is myopic.
"""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import SUPERVISED, TrainConfig
from core.command import parse_first, run_script
from policy.heartbeat import answer

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(TrainConfig, answer)

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from core.errors import InputError
from core.files import keep_apart
from core.ranks import ALONE, TRAINING_PATIENCE, Ranks, pick_device, together
from core.settings import to_dict
from policy import event_policy, heartbeat, longrun, recalibration, runfolder, supervised
from policy.apply import load_policy
from policy.bandit import (
    check_finite,
    diverged,
    episode_order,
    epsilon_at,
    frames_of,
    make_states,
    near,
    outcome,
    planned,
    replay_columns,
    reward_table,
    stored_share,
)
from policy.device import GraphSteps
from policy.learner import Learner
from policy.network import QNetwork
from policy.qlearning import Replay
from sed.caches import Cache, load_cache

FORMAT = 1
AGREE_EVERY = 16  # ticks after which several processes ask each other whether to stop or save


def begin_from(trainer: Learner, path: Path) -> None:
    """Give a new run the weights of a checkpoint. InputError where they would mean another thing:
    states, actions or rewards differ, or the network. (Events: `policy.recalibration`.)"""
    policy, network = load_policy(path, trainer.device, trainer.cfg.preset), trainer.network
    rows = runfolder.differences(to_dict(policy.bandit), to_dict(trainer.bandit), "bandit.")
    if type(policy.network) is not type(network):
        rows.insert(0, ("--method", "another", trainer.cfg.method))
    if rows:
        text = "; ".join(f"{flag} was {was}, now {now}" for flag, was, now in rows)
        raise InputError(f"--init {path}: was trained otherwise: {text}")
    runfolder.load_weights(network, policy.network.state_dict(), path)


# ---------------------------------------------------------------------------- training


class Trainer(supervised.FrameLearner):
    """The policy of the slides, learning by trial: the lanes and the replay memory of a run."""

    SCHEDULE = "epsilon goes on as first planned"  # said where a run gets more passes

    def __init__(self, cfg: TrainConfig, cache: Cache, device: torch.device, ranks: Ranks = ALONE):
        super().__init__(cfg, cache, device, ranks)
        self.sequential = self.bandit.reading == "sequential"
        _, frame = frames_of(self.signals, torch.from_numpy(self.learns_from).to(device))
        self.pass_frames = len(frame)
        self.stored_share = stored_share(self.signals, frame, self.bandit)
        self.cfg = cfg = planned(cfg, self.PASSES, self.FLOOR, self.gradient_steps)
        self.order = episode_order(cache, self.learns_from, cfg)
        self.table = reward_table(self.bandit, device)
        prob, t_base = self.signals.prob, self.signals.t_base
        # On the host, so that choosing the frames to compute needs no wait for the device.
        self.acts = near(prob, t_base, self.bandit.max_delta).cpu().numpy()
        self.inside = near(prob, t_base, self.bandit.boundary_width).cpu().numpy()
        torch.manual_seed(cfg.seed)  # initial weights and dropout; all else has its own generator
        self.network = QNetwork(self.bandit, cfg.network).to(device)
        weights, on_gpu = self.network.parameters(), device.type == "cuda"
        self.optimizer = torch.optim.Adam(weights, self.learning.lr, fused=True, capturable=on_gpu)
        columns = replay_columns(self.bandit.context, self.sequential)
        self.batch = ranks.share(self.learning.batch, "learning.batch")
        self.replay = Replay(self.learning.replay // ranks.size, columns, device)
        self.explore_rng = np.random.default_rng([cfg.seed, 1])
        self.replay_rng = np.random.default_rng([cfg.seed, 2])
        lanes = self.learning.lanes
        self.episode = np.full(lanes, -1)  # running episode of each lane; -1: none
        self.frame = np.zeros(lanes, dtype=np.int64)  # its next frame, global index
        self.left = torch.full(
            (lanes, self.bandit.context), self.bandit.no_change, dtype=torch.int64, device=device
        )
        self.cells = torch.zeros(lanes, 4, dtype=torch.int64, device=device)
        self.progress |= {
            "next_episode": 0,
            "owed": 0,  # frames visited since the last gradient step
            "planned": len(self.order),  # episodes that the schedule of epsilon is made for
        }
        self.fill_lanes()

    def gradient_steps(self, passes: int) -> int:
        """About how many so many passes make: learning waits for stored transitions."""
        waits = self.learning.train_start / self.stored_share  # frames
        return max(0, int(passes * self.pass_frames - waits) // self.learning.frames_per_step)

    def epsilon(self, episode: Any) -> Any:
        return epsilon_at(episode, self.progress["planned"], self.learning)

    @property
    def total_frames(self) -> int:
        start = 1 if self.sequential else 0  # the original starts at frame 1, if there is one
        lengths = np.diff(self.cache.offsets)[self.order]
        return int(np.maximum(lengths - start, 1).sum())

    def fill_lanes(self) -> None:
        """Give idle lanes the next episodes, in order."""
        for lane in np.flatnonzero(self.episode < 0):
            if self.progress["next_episode"] == len(self.order):
                break
            self.episode[lane] = self.progress["next_episode"]
            pair = self.order[self.episode[lane]]
            first, end = self.cache.offsets[pair : pair + 2]
            # The original starts at frame 1: frame 0 keeps its base decision.
            self.frame[lane] = first + (self.sequential and end - first > 1)
            self.left[lane] = self.bandit.no_change
            self.cells[lane] = 0
            self.progress["next_episode"] += 1

    def draw(self, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epsilon-greedy: random actions (L,) of lanes, 0.0 where no action matters, and the lanes
        (L,) bool whose action the network chooses instead."""
        epsilon = self.epsilon(self.episode[lane])
        explore = self.explore_rng.random(len(lane)) < epsilon
        choice = self.explore_rng.integers(self.bandit.num_actions, size=len(lane))
        acts = np.ones(len(lane), bool) if self.sequential else self.acts[self.frame[lane]]
        return np.where(acts, choice, self.bandit.no_change), acts & ~explore

    def select_actions(
        self,
        pair: torch.Tensor,
        frame: torch.Tensor,
        left: torch.Tensor,
        choice: np.ndarray,
        asked: np.ndarray,
    ) -> torch.Tensor:
        """Actions (L,) of some lanes: the `choice` drawn, or the network's where it is `asked`."""
        actions = torch.from_numpy(choice).to(self.device)
        greedy = torch.from_numpy(np.flatnonzero(asked)).to(self.device)
        if len(greedy):
            self.network.train(self.learning.acting == "dropout")
            left = left[greedy] if self.sequential else None
            with torch.inference_mode():
                states = make_states(self.signals, pair[greedy], frame[greedy], self.bandit, left)
                q_values = self.network(states)
                check_finite(q_values.isfinite().all())
                actions[greedy] = q_values.argmax(1)
        return actions

    def act(self, lane: np.ndarray, choice: np.ndarray, asked: np.ndarray) -> None:
        on_device = torch.from_numpy(lane).to(self.device)
        pair = torch.from_numpy(self.order[self.episode[lane]]).to(self.device)
        frame = torch.from_numpy(self.frame[lane]).to(self.device)
        left = self.left[on_device]
        actions = self.select_actions(pair, frame, left, choice, asked)
        found = outcome(self.signals, frame, actions, self.bandit)
        self.cells[on_device, found.cells] += 1
        kept = found.stored.nonzero()[:, 0]
        self.replay.add(
            pair=pair[kept],
            frame=frame[kept],
            action=actions[kept],
            reward=self.table[found.cells[kept]],
            left=left[kept],
        )
        if self.sequential and self.bandit.context:
            self.left[on_device] = torch.cat([left[:, 1:], actions[:, None]], 1)

    def tick(self) -> list[tuple[int, list[int]]]:
        """Advance every active lane by a frame and learn; (episode, cells) of those that end.

        The clock of all lanes runs in every process, and each draws for all of them, so that their
        number changes no draw; each acts on its share, as many that ask the network as any other.
        In the sequential reading a lane stays with the process that knows its last actions.
        """
        active = np.flatnonzero(self.episode >= 0)
        choice, asked = self.draw(active)
        own = self.ranks.owns(active) if self.sequential else self.ranks.deal(asked)
        self.act(active[own], choice[own], asked[own])
        self.frame[active] += 1
        self.progress["frames"] += len(active)
        self.progress["owed"] += len(active)
        while self.progress["owed"] >= self.learning.frames_per_step:
            self.progress["owed"] -= self.learning.frames_per_step
            if self.ready():
                self.gradient_step()
        over = active[
            self.frame[active] == self.cache.offsets[self.order[self.episode[active]] + 1]
        ]
        if not len(over):
            return []
        cells = self.ranks.total(self.cells[torch.from_numpy(over).to(self.device)]).tolist()
        ended = list(zip(self.episode[over].tolist(), cells, strict=True))
        self.episode[over] = -1
        self.progress["finished"] += len(ended)
        self.fill_lanes()
        return sorted(ended)

    def ready(self) -> bool:
        """Whether enough is stored to learn: of all processes, and of each for its batch."""
        if self.progress["steps"]:
            return True
        counts = self.ranks.gather(self.replay.count)
        return sum(counts) > self.learning.train_start and min(counts) >= self.batch

    def gradient_step(self) -> None:
        self.progress["steps"] += 1
        self.progress["loss_count"] += 1
        self.learn()

    def learn(self) -> None:
        """One step of Adam on the squared error between Q(state, action) and the reward."""
        rows = self.replay.sample(self.batch, self.replay_rng)
        left = rows["left"].long() if self.sequential else None
        pair, frame = rows["pair"].long(), rows["frame"].long()
        states = make_states(self.signals, pair, frame, self.bandit, left)
        self.network.train()
        q_values = self.network(states)  # (B, A)
        means = self.gradients(q_values, rows)
        if not (means.isfinite().all() and q_values.isfinite().all()):
            ranges = ((states, "states"), (rows["reward"], "rewards"), (q_values, "Q"))
            text = ", ".join(f"{name} {x.min():.3g}..{x.max():.3g}" for x, name in ranges)
            what = f"loss is {means[0].item()} at gradient step {self.progress['steps'] - 1}"
            raise diverged(f"{what} (learning rate {self.learning.lr:g}, {text})")
        self.optimizer.step()
        self.sums += means

    def gradients(self, q_values: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Gradients of the loss of Q values (B, A) on stored rows; mean loss and mean Q, (2,)."""
        q_taken = q_values.gather(1, rows["action"].long()[:, None])[:, 0]
        loss = functional.mse_loss(q_taken, rows["reward"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        means = torch.stack([loss.detach(), q_taken.detach().mean()])
        gradients = (weight.grad for weight in self.network.parameters())
        self.ranks.average([*gradients, means])  # over the processes
        return means

    def policy(self) -> dict[str, Any]:
        return {"format": FORMAT} | super().policy()

    def own_state(self) -> dict[str, Any]:
        rng = super().own_state()["rng"]
        rng["explore"] = self.explore_rng.bit_generator.state
        rng["replay"] = self.replay_rng.bit_generator.state
        return {
            "replay": self.replay.columns | {"count": self.replay.count},
            "lanes": {
                "episode": torch.from_numpy(self.episode.copy()),
                "frame": torch.from_numpy(self.frame.copy()),
                "left": self.left,
                "cells": self.cells,
            },
            "rng": rng,
        }

    def restore(self, content: dict[str, Any]) -> None:
        own = self.take_over(content)
        self.load_optimizer(self.optimizer, content["optimizer"])
        for name, column in self.replay.columns.items():
            column.copy_(own["replay"][name])
        self.replay.count = own["replay"]["count"]
        lanes = own["lanes"]
        self.episode, self.frame = (lanes[name].cpu().numpy() for name in ("episode", "frame"))
        self.left.copy_(lanes["left"])
        self.cells.copy_(lanes["cells"])
        self.explore_rng.bit_generator.state = own["rng"]["explore"]
        self.replay_rng.bit_generator.state = own["rng"]["replay"]
        self.fill_lanes()  # with pairs of further passes

    announce = longrun.announce

    def learned(self) -> tuple[dict[str, str], str]:
        curve = runfolder.learning_curve(self.cfg.run, self.bandit)
        first, last = curve["avg10_first_tenth"], curve["avg10_last_tenth"]
        said = "the reward of an episode (avg10, its mean over ten) went from"
        lines = {name: f"{value:.2f}" for name, value in curve.items()}
        return lines, f"{said} {first:.1f} in the first tenth of the run to {last:.1f} in the last"


class GraphTrainer(GraphSteps, Trainer):
    """The same on a GPU, acting and learning as CUDA graphs."""


def learner_of(cfg: TrainConfig, device: torch.device) -> type[Learner]:
    """The class that trains by the method."""
    over_events = event_policy.EventTrainer if cfg.init is None else recalibration.Recalibrator
    kinds = {"windowed": Trainer, "events": over_events}
    kinds |= dict.fromkeys(SUPERVISED, supervised.SupervisedTrainer)
    if device.type == "cuda" and cfg.cuda_steps != "plain":
        kinds["windowed"] = GraphTrainer
    return kinds[cfg.method]


def train(cfg: TrainConfig, device: torch.device, ranks: Ranks, cache: Cache | None = None) -> int:
    """The run: from the caches to last.pt and best.pt. Returns the exit code.

    `cache` is what to train on instead of all that is cached, e.g. the clips of some folds.
    """
    if cfg.cuda_steps == "graphs":  # what was asked for is not left out silently
        if ranks.size > 1:
            raise InputError("--cuda-steps graphs trains in one process; leave out torchrun")
        if device.type != "cuda":
            raise InputError("--cuda-steps graphs: no CUDA device; use --cuda-steps auto")
    cache = cache or load_cache(cfg.cache / cfg.split)
    cfg = replace(cfg, passes=runfolder.begun_passes(cfg))
    trainer = learner_of(cfg, device)(cfg, cache, device, ranks)
    cfg = trainer.cfg
    longrun.refuse_no_step(trainer)
    if cfg.init is not None and not cfg.resume and cfg.method != "events":
        begin_from(trainer, runfolder.checkpoint_of(cfg.init))
    board = cfg.wandb_project, cfg.run, to_dict(cfg)
    opened: list[Any] = []  # before the run folder is cleared
    ranks.leader_first(lambda: opened.append(runfolder.open_wandb(*board)))
    content = runfolder.open_together(cfg, cache.key, device, ranks)
    if content is None:
        save_last(trainer)  # resumable from the start
    else:
        with runfolder.restoring(cfg.run / "last.pt"):
            trainer.restore(content)
        was = runfolder.facts_of(content, cfg.run / "last.pt").config.passes
        if was != cfg.passes:
            print(f"{cfg.run}: {cfg.passes} passes in place of {was}; {trainer.SCHEDULE}")
    if trainer.done:
        print(f"{cfg.run}: this run is complete ({len(trainer.order)} episodes)")
        return 0
    trainer.announce()
    longrun.warn(trainer)
    stopped = runfolder.catch_signals()
    began, frames = time.perf_counter(), trainer.progress["frames"]
    totals = {"episodes": len(trainer.order), "frames": trainer.total_frames}
    with heartbeat.Heartbeat(cfg.run, totals, ranks.size, ranks.leads) as beat:
        run_episodes(trainer, beat, stopped, *opened)
        beat.end("complete" if trainer.done else "stopped")
    if not trainer.done:
        print(f"stopped and saved after {trainer.progress['finished']} episodes; to go on, run:")
        print(f"  {runfolder.resume_command(ranks.size)}")
        return 128 + max(ranks.gather(stopped[0] if stopped else 0))
    if not trainer.progress["steps"]:
        raise InputError(f"{cfg.run}: no gradient step was made, nothing is learned: more --passes")
    if ranks.leads:
        seconds = time.perf_counter() - began
        longrun.summarise(trainer, trainer.progress["frames"] - frames, seconds)
    return 0


def save_last(trainer: Learner) -> None:
    """Write last.pt; every process has a part of it."""
    content = trainer.state()
    if trainer.ranks.leads:
        runfolder.write_checkpoint(trainer.cfg.run / "last.pt", content)


def run_episodes(
    trainer: Learner, beat: heartbeat.Heartbeat, stopped: list[int], wandb_run: Any = None
) -> None:
    """Tick until all episodes have finished or a signal was caught; writes the run folder."""
    cfg, total, ranks = trainer.cfg, len(trainer.order), trainer.ranks
    finished = trainer.progress["finished"]
    history = runfolder.History(cfg.run, finished, wandb_run) if ranks.leads else None
    agree_every = 1 if ranks.size == 1 else AGREE_EVERY
    saved = time.perf_counter()
    bar = tqdm(total=total, initial=finished, desc="Training", disable=not ranks.leads)
    for tick in itertools.count():
        beat(trainer.progress)
        stop = save = False
        if tick % agree_every == 0:
            due = time.perf_counter() - saved > 60 * cfg.checkpoint_minutes
            stop, save = ranks.any(bool(stopped), due)
        if save:
            save_last(trainer)
            saved = time.perf_counter()
        if trainer.done or stop:
            break
        before = trainer.progress["finished"]
        for episode, cells in trainer.tick():
            beat.metrics |= record(trainer, history, episode, cells)
            shown = {name: f"{value:.4g}" for name, value in beat.metrics.items()}
            bar.set_postfix(shown, refresh=False)  # a line for each would fill a log
            bar.update()
        after = trainer.progress["finished"]
        if after * cfg.looks // total > before * cfg.looks // total:
            keep_best(trainer)
        if after // cfg.checkpoint_every > before // cfg.checkpoint_every and ranks.leads:
            number = after // cfg.checkpoint_every * cfg.checkpoint_every
            runfolder.write_checkpoint(cfg.run / f"episode-{number:06d}.pt", trainer.policy())
    bar.close()
    if history is not None:
        history.close()
    save_last(trainer)


def record(
    trainer: Learner, history: runfolder.History | None, episode: int, cells: list[int]
) -> dict[str, float]:
    """Log a finished episode; returns what the progress line and the heartbeat show."""
    reward = float((torch.tensor(cells) * reward_table(trainer.bandit).double()).sum())
    trainer.recent.append(reward)
    average = sum(trainer.recent) / len(trainer.recent)
    epsilon = trainer.epsilon(episode)
    progress, count = trainer.progress, trainer.progress["loss_count"]
    loss = q = 0.0
    if count:  # of several episodes of a tick the first has it; to ask again would be a wait
        trainer.read_sums()
        loss, q = progress["loss_sum"] / count, progress["q_sum"] / count
        trainer.reset_sums()
    row = {"Episode": episode, "Reward": round(reward, 4), "Avg10": round(average, 4)}
    row |= {"Epsilon": round(epsilon, 4), **dict(zip(runfolder.CELLS, cells, strict=True))}
    if history is not None:
        history.add(row | {"Steps": progress["steps"], "Loss": loss, "Q": q})
    found = {"epsilon": epsilon, "reward": reward, "avg10": average}
    found |= {"loss": loss} if count else {}  # several episodes may end in one tick
    return {name: found[name] for name in trainer.SHOWN if name in found}


def keep_best(trainer: Learner) -> None:
    """Write best.pt if the held-out F1 rose; without held-out clips the newest is the best."""
    f1 = trainer.held_out_f1() if len(trainer.held_out) else -1.0  # -1: nothing to measure on
    trainer.progress["last_f1"] = f1
    if f1 > trainer.progress["best_f1"] or not len(trainer.held_out):
        trainer.progress["best_f1"] = f1
        trainer.progress["best_episode"] = trainer.progress["finished"]
        if trainer.ranks.leads:
            runfolder.write_checkpoint(trainer.cfg.run / "best.pt", trainer.policy())


def main(cfg: TrainConfig) -> int:
    """Train, or print a checkpoint's digest, or how a run is doing."""
    if heartbeat.answer(cfg):
        return 0
    if cfg.digest is not None:
        print(runfolder.digest(runfolder.read_checkpoint(cfg.digest)))
        return 0
    device = pick_device(cfg.device, cfg.threads)
    keep_apart(cfg.run, [cfg.cache, cfg.cache / cfg.split], "--run")
    if cfg.overwrite:
        keep_apart(cfg.run, [cfg.init], "--run", replaced=True)
    with together(device, TRAINING_PATIENCE) as ranks, runfolder.held_run(cfg.run, ranks):
        return train(cfg, device, ranks)


if __name__ == "__main__":
    run_script(TrainConfig, main)
