"""DQN and its variants on gymnasium's CartPole and LunarLander; what every learner of them needs.

Writes: policy.pt files, for commands.py
Shapes: L lanes (episodes side by side), T steps, B batch, S observation, A actions

Needs requirements-studies.txt. The parts of a DQN, without an environment: policy/qlearning.py.
While a learner trains, its greedy policy plays 100 validation episodes every thousand steps, and
the best policy is kept. Nothing is learned from those episodes, and they are not counted as
training steps. The score that is reported comes later, from the policy file, on episodes with
other seeds.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from core.command import needed, program
from core.errors import InputError
from policy import qlearning
from policy.qlearning import PrioritizedReplay, Replay, anneal, sync
from policy.runfolder import load_weights, read_checkpoint
from studies.classic.mdp import stream
from studies.classic.settings import DqnConfig, ReinforceConfig

ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}
OPTIMIZERS = {"adam": torch.optim.Adam, "nadam": torch.optim.NAdam}
LIMIT = {"CartPole-v1": 500, "LunarLander-v3": 1000}  # gymnasium's longest episode
CPU = torch.device("cpu")
EPISODES = 100  # of every check and every score
VALIDATION, FRESH = 10, 11  # streams of seeds; a learner's own are 0 to 3


def make_envs(env: str, lanes: int, max_steps: int) -> Any:
    """Vector environment of `lanes` episodes that end after max_steps at the latest.

    InputError where the environment's own package is missing.
    """
    try:
        return gymnasium.make_vec(env, num_envs=lanes, max_episode_steps=max_steps)
    except gymnasium.error.DependencyNotInstalled:
        cure = "install gymnasium's extra box2d: pip install -r requirements-studies.txt"
        raise InputError(f"{env} needs the package box2d; {cure}") from None


def longest(cfg: DqnConfig | ReinforceConfig) -> int:
    """Steps of the longest validation episode."""
    return min(cfg.learning.max_steps, LIMIT[cfg.env])


class Rollout(NamedTuple):
    """One episode of each lane; after a lane's end its numbers mean nothing."""

    obs: np.ndarray  # (T, L, S)
    actions: np.ndarray  # (T, L)
    rewards: np.ndarray  # (T, L), 0 after the end
    alive: np.ndarray  # (T, L) bool: the step belongs to the episode

    @property
    def returns(self) -> np.ndarray:
        """Sum of rewards of each episode, (L,)."""
        return self.rewards.sum(0)


def play(envs: Any, act: Callable[[np.ndarray], np.ndarray], seed: int) -> Rollout:
    """Reset all lanes, then one episode of each; `act` maps observations (L, S) to actions (L,).

    Where the lanes are environments of their own (LunarLander), those that ended are left alone:
    of 100 episodes most are over long before the last. Where all are one array, they move on.
    """
    obs, _ = envs.reset(seed=seed)
    alive = np.ones(envs.num_envs, dtype=bool)
    steps = []
    while alive.any():
        actions = act(obs)
        if hasattr(envs, "envs"):
            following, rewards, over = obs.copy(), np.zeros(len(alive)), np.zeros_like(alive)
            for i in np.flatnonzero(alive):
                following[i], rewards[i], *ends, _ = envs.envs[i].step(actions[i])
                over[i] = any(ends)
        else:
            following, rewards, terminated, truncated, _ = envs.step(actions)
            over = terminated | truncated
        steps.append((obs, actions, np.where(alive, rewards, 0.0), alive))
        alive = alive & ~over
        obs = following
    return Rollout(*(np.stack(column) for column in zip(*steps, strict=True)))


def make_network(
    envs: Any, hidden: Sequence[int], activation: str, dueling: str | None = None
) -> nn.Sequential:
    """(B, S) -> (B, A): Q-values or logits; `dueling` says what its advantages are centred on."""
    sizes = (envs.single_observation_space.shape[0], *hidden)
    ends = sizes[-1], int(envs.single_action_space.n)
    last = qlearning.DuelingHead(*ends, dueling) if dueling else nn.Linear(*ends)
    pairs, kind = itertools.pairwise(sizes), ACTIVATIONS[activation]
    layers = [part for a, b in pairs for part in (nn.Linear(a, b), kind())]
    return nn.Sequential(*layers, last)


def acting(
    network: nn.Module, rng: np.random.Generator | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Policy of a network: the action of its highest output, or with `rng` one drawn from the
    softmax of the outputs."""

    @torch.inference_mode()
    def act(obs: np.ndarray) -> np.ndarray:
        outputs = network(torch.from_numpy(obs))
        if rng is None:
            return outputs.argmax(1).numpy()
        share = outputs.softmax(1).cumsum(1).numpy()
        return np.minimum((share < rng.random((len(obs), 1))).sum(1), share.shape[1] - 1)

    return act


class Policy(NamedTuple):
    """A network and what is needed to build it again."""

    env: str
    hidden: list[int]
    activation: str
    dueling: str | None
    weights: dict[str, torch.Tensor]


class Trained(NamedTuple):
    """What a learner hands back."""

    policy: Policy  # the one to keep
    # For result.json. checks: (steps, greedy mean return of the validation episodes); episodes:
    # (steps at its end, return) of the training episodes. Of the genetic search: generations,
    # (steps since the beginning, mean return of the best policy, of all).
    history: dict[str, list[tuple]]
    network: nn.Module | None = None  # as training left it; None: genetic search


def load_policy(path: Path) -> tuple[str, nn.Module]:
    """Environment and network of a policy.pt, or of the run folder that holds one; InputError where
    it is missing or something else."""
    if path.is_dir():
        path = path / "policy.pt"
    if not path.exists():
        lunar = " --env LunarLander-v3" * ("lunarlander" in str(path).lower())
        raise InputError(f"{path}: not found; train first: python -m studies.classic dqn{lunar}")
    content = read_checkpoint(path)
    if set(content) != set(Policy._fields):
        raise InputError(f"{path}: not a policy of studies.classic")
    policy = Policy(**content)
    envs = make_envs(policy.env, 1, 1)
    network = make_network(envs, policy.hidden, policy.activation, policy.dueling)
    load_weights(network, policy.weights, path)
    return policy.env, network.eval()


def fresh_returns(env: str, network: nn.Module, seed: int) -> np.ndarray:
    """Returns (100,) of the greedy policy; neither training nor checks saw these episodes."""
    envs = make_envs(env, EPISODES, LIMIT[env])
    return play(envs, acting(network), stream(seed, FRESH)).returns


class Checks:
    """Greedy validation episodes every `every` steps of training; keeps the best network."""

    def __init__(self, cfg: DqnConfig | ReinforceConfig):
        self.cfg, self.due = cfg, cfg.checking.every
        self.envs = make_envs(cfg.env, EPISODES, longest(cfg))
        self.best, self.kept = -math.inf, {}
        self.history: list[tuple[int, float]] = []  # (steps, mean return)
        self.said = ""  # last and best check, for a progress bar

    def look(self, network: nn.Module, steps: int, last: bool = False) -> bool:
        """Check if it is time, keep the best, of equals the latest; True: good enough to stop."""
        if steps < self.due and not (last and steps != (self.history or [(0,)])[-1][0]):
            return False
        every, stop_at = self.cfg.checking.every, self.cfg.checking.stop_at
        self.due = (steps // every + 1) * every
        rollout = play(self.envs, acting(network), stream(self.cfg.seed, VALIDATION))
        score = float(rollout.returns.mean())
        self.history.append((steps, score))
        if score >= self.best:
            self.best, self.kept = score, copy.deepcopy(network.state_dict())
        self.said = f"check {score:.1f}, best {self.best:.1f}"
        return stop_at is not None and score >= stop_at

    def end(self, network: nn.Module, steps: int, episodes: list[tuple[int, float]]) -> Trained:
        """A last check, and the result of a training."""
        self.look(network, steps, last=True)
        env, learning, dueling = self.cfg.env, self.cfg.learning, None
        if isinstance(self.cfg, DqnConfig) and self.cfg.dueling:
            dueling = learning.dueling_centre
        policy = Policy(env, list(learning.hidden), learning.activation, dueling, self.kept)
        return Trained(policy, {"checks": self.history, "episodes": episodes}, network)


class DqnLearner:
    """Network, target network, replay and optimiser; what happens between two gradient steps."""

    def __init__(self, envs: Any, cfg: DqnConfig):
        self.cfg, learning = cfg, cfg.learning
        torch.manual_seed(cfg.seed)
        centre = learning.dueling_centre if cfg.dueling else None
        self.network = make_network(envs, learning.hidden, learning.activation, centre)
        self.target = copy.deepcopy(self.network)
        fused = {"fused": True} if learning.optimizer == "adam" else {}
        optimizer = OPTIMIZERS[learning.optimizer]
        self.optimizer = optimizer(self.network.parameters(), learning.lr, **fused)
        shape = envs.single_observation_space.shape
        columns: qlearning.Columns = {
            "obs": (shape, torch.float32),
            "action": ((), torch.int64),
            "reward": ((), torch.float32),
            "next_obs": (shape, torch.float32),
            "terminated": ((), torch.bool),
        }
        self.replay = Replay(learning.replay, columns, CPU)
        if cfg.prioritized:
            self.replay = PrioritizedReplay(learning.replay, columns, CPU, learning.alpha)
        self.rng = np.random.default_rng([cfg.seed, 2])

    def update(self, share: float) -> None:
        """One gradient step; `share` of the budget has passed."""
        cfg = self.cfg.learning
        if self.cfg.prioritized:
            beta = anneal(cfg.beta, 1.0, share)
            rows, index, weights = self.replay.draw(cfg.batch, self.rng, beta)
        else:
            some = min(cfg.batch, len(self.replay))
            rows, weights = self.replay.sample(some, self.rng), 1.0
        with torch.no_grad():
            online = self.network(rows["next_obs"]) if self.cfg.double else None
            target = qlearning.td_target(
                rows["reward"], rows["terminated"], self.target(rows["next_obs"]), cfg.gamma, online
            )
        q = self.network(rows["obs"]).gather(1, rows["action"][:, None])[:, 0]
        criterion = functional.smooth_l1_loss if cfg.loss == "huber" else functional.mse_loss
        loss = (weights * criterion(q, target, reduction="none")).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if cfg.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), cfg.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = anneal(cfg.lr, cfg.lr_end, share)
        self.optimizer.step()
        if self.cfg.prioritized:
            self.replay.update(index, target - q)


def open_board(folder: Path) -> Any | None:
    """A TensorBoard writer of a run; without that package None, which a note says."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("note: no TensorBoard events without its package: pip install tensorboard")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=0)


def dqn(cfg: DqnConfig, progress: bool = False) -> Trained:
    """Train a Q-network; see DqnSettings.

    With `progress`, every `report_every` episodes the tutorial's line is printed, and its score
    goes to `<out>/tensorboard`: the mean return of the episodes since the last line.
    """
    if cfg.library != "own":
        return sb3_dqn(cfg, progress)
    learning, every = cfg.learning, cfg.report_every if progress else None
    board = open_board(cfg.out) if every else None
    envs = make_envs(cfg.env, learning.lanes, learning.max_steps)
    learner = DqnLearner(envs, cfg)
    best, rng = acting(learner.network), np.random.default_rng([cfg.seed, 1])
    checks = Checks(cfg)
    num_actions = int(envs.single_action_space.n)
    obs, _ = envs.reset(seed=stream(cfg.seed, 3))
    resetting = np.zeros(learning.lanes, dtype=bool)  # lanes whose step only starts a new episode
    totals, episodes = np.zeros(learning.lanes), []
    steps = clock = 0
    start, end = learning.epsilon_start, learning.epsilon_end
    unit, name = learning.clock[:-1], f"dqn {cfg.variant}"
    bar = tqdm(total=learning.budget, unit=unit, desc=name, disable=not progress)
    while clock < learning.budget:
        epsilon = anneal(start, end, clock / learning.epsilon_span)
        random = rng.integers(num_actions, size=learning.lanes)
        actions = np.where(rng.random(learning.lanes) < epsilon, random, best(obs))
        following, rewards, terminated, truncated, _ = envs.step(actions)
        kept = np.flatnonzero(~resetting)
        learner.replay.add(
            obs=torch.from_numpy(obs[kept]),
            action=torch.from_numpy(actions[kept]),
            reward=torch.from_numpy(rewards[kept] * learning.reward_scale),
            next_obs=torch.from_numpy(following[kept]),
            terminated=torch.from_numpy(terminated[kept]),
        )
        totals[kept] += rewards[kept]
        steps += len(kept)
        resetting = terminated | truncated
        for total in totals[resetting].tolist():
            episodes.append((steps, total))
            if every and len(episodes) % every == 0:
                score = float(np.mean([total for _, total in episodes[-every:]]))
                text = f"n_episode :{len(episodes)}, score : {score:.1f}"
                bar.write(f"{text}, n_buffer : {len(learner.replay)}, eps : {100 * epsilon:.1f}%")
                if board is not None:
                    board.add_scalar("score", score, len(episodes))
        totals[resetting] = 0.0
        obs, before = following, clock
        clock = steps if learning.clock == "steps" else len(episodes)
        bar.update(min(clock, learning.budget) - before)
        if learner.replay.count > learning.start_steps and len(episodes) >= learning.start_episodes:
            rounds = clock // learning.train_every - before // learning.train_every
            for _ in range(rounds * learning.updates):
                learner.update(clock / learning.budget)
        if clock // learning.sync_every > before // learning.sync_every:
            sync(learner.target, learner.network)
        stop = checks.look(learner.network, steps)
        bar.set_postfix_str(checks.said, refresh=False)
        if stop:
            break
    bar.close()
    if board is not None:
        board.close()
    return checks.end(learner.network, steps, episodes)


def check_sb3(cfg: DqnConfig) -> None:
    """InputError for what the DQN of stable-baselines3 cannot do: no flag is silently ignored."""
    learning = cfg.learning
    uneven, slow = learning.train_every % learning.lanes, learning.epsilon_span > learning.budget
    wrong = {
        "--double, --dueling, --prioritized": cfg.variant != "plain",
        "--learning.clock episodes": learning.clock != "steps",
        "--learning.loss mse": learning.loss != "huber",
        "--learning.reward-scale": learning.reward_scale != 1,
        "--learning.start-episodes": learning.start_episodes > 0,
        "--learning.train-every that --learning.lanes does not divide": uneven,
        "--learning.epsilon-span above --learning.budget": slow,
        "--report-every": cfg.report_every is not None,
    }
    for flag, given in wrong.items():
        if given:
            raise InputError(f"stable-baselines3's DQN cannot do {flag}; use --library own")


def sb3_dqn(cfg: DqnConfig, progress: bool = False) -> Trained:
    """The DQN of stable-baselines3 with the numbers of `cfg`, checked in the same way.

    What stays different: in each step all lanes explore or none, and a batch may hold the same
    transition twice.
    """
    check_sb3(cfg)
    sb3 = needed("stable_baselines3", program())
    # It imports the suite, for which the other agents need not wait.
    from studies.gym import without_log

    learning = cfg.learning
    envs = sb3.common.env_util.make_vec_env(
        cfg.env,
        learning.lanes,
        seed=stream(cfg.seed, 3),
        env_kwargs={"max_episode_steps": learning.max_steps},
    )
    model = sb3.DQN(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: anneal(learning.lr, learning.lr_end, 1.0 - left),
        buffer_size=learning.replay,
        learning_starts=learning.start_steps,
        batch_size=learning.batch,
        gamma=learning.gamma,
        train_freq=learning.train_every // learning.lanes,  # in steps of all lanes
        gradient_steps=learning.updates,
        target_update_interval=max(learning.sync_every, learning.lanes),
        exploration_initial_eps=learning.epsilon_start,
        exploration_final_eps=learning.epsilon_end,
        exploration_fraction=learning.epsilon_span / learning.budget,
        max_grad_norm=math.inf if learning.max_grad_norm is None else learning.max_grad_norm,
        policy_kwargs={
            "net_arch": list(learning.hidden),
            "activation_fn": ACTIVATIONS[learning.activation],
            "optimizer_class": OPTIMIZERS[learning.optimizer],
        },
        seed=cfg.seed,
        device="cpu",
    )
    without_log(model)
    network = model.q_net.q_net  # the layers of make_network, in the same order
    checks = Checks(cfg)
    episodes: list[tuple[int, float]] = []

    def watch(now: dict[str, Any], _: dict[str, Any]) -> bool:
        """Note the returns of training episodes, which the Monitor of an environment gives."""
        bar.update(learning.lanes)
        ended = [info["episode"]["r"] for info in now["infos"] if "episode" in info]
        episodes.extend((model.num_timesteps, float(total)) for total in ended)
        stop = checks.look(network, model.num_timesteps)
        bar.set_postfix_str(checks.said, refresh=False)
        return not stop

    with tqdm(total=learning.budget, unit="step", desc="sb3", disable=not progress) as bar:
        model.learn(learning.budget, callback=watch)
    return checks.end(network, model.num_timesteps, episodes)
