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
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from core.command import needed
from core.errors import InputError
from policy import qlearning
from policy.qlearning import Replay, anneal, sync
from policy.runfolder import load_weights, read_checkpoint, write_checkpoint
from studies.classic.mdp import SCRIPT, stream
from studies.classic.settings import Checking, DqnSettings, Variant

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
    gymnasium = needed("gymnasium", SCRIPT)
    try:
        return gymnasium.make_vec(env, num_envs=lanes, max_episode_steps=max_steps)
    except gymnasium.error.DependencyNotInstalled:
        cure = "install gymnasium's extra box2d: pip install -r requirements-studies.txt"
        raise InputError(f"{env} needs the package box2d; {cure}") from None


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


def step_alive(
    envs: Any, obs: np.ndarray, actions: np.ndarray, alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step the lanes (L,) that are alive -> observations (L, S), rewards (L,), ended (L,) bool.

    Where the lanes are environments of their own (LunarLander), those that ended are left alone:
    of 100 episodes most are over long before the last. Where all are one array, they move on.
    """
    if not hasattr(envs, "envs"):
        obs, rewards, terminated, truncated, _ = envs.step(actions)
        return obs, rewards, terminated | truncated
    obs, rewards, ended = obs.copy(), np.zeros(len(alive)), np.zeros(len(alive), dtype=bool)
    for lane in np.flatnonzero(alive):
        obs[lane], rewards[lane], terminated, truncated, _ = envs.envs[lane].step(actions[lane])
        ended[lane] = terminated or truncated
    return obs, rewards, ended


def play(envs: Any, act: Callable[[np.ndarray], np.ndarray], seed: int) -> Rollout:
    """Reset all lanes, then one episode of each; `act` maps observations (L, S) to actions (L,)."""
    obs, _ = envs.reset(seed=seed)
    alive = np.ones(envs.num_envs, dtype=bool)
    steps = []
    while alive.any():
        actions = act(obs)
        following, rewards, ended = step_alive(envs, obs, actions, alive)
        steps.append((obs, actions, np.where(alive, rewards, 0.0), alive))
        alive = alive & ~ended
        obs = following
    return Rollout(*(np.stack(column) for column in zip(*steps, strict=True)))


def make_network(
    envs: Any, hidden: tuple[int, ...], activation: str, dueling: str | None = None
) -> nn.Sequential:
    """(B, S) -> (B, A): Q-values or logits; `dueling` says what its advantages are centred on."""
    sizes = (envs.single_observation_space.shape[0], *hidden)
    ends = sizes[-1], int(envs.single_action_space.n)
    last = qlearning.DuelingHead(*ends, dueling) if dueling else nn.Linear(*ends)
    pairs, kind = itertools.pairwise(sizes), ACTIVATIONS[activation]
    layers = [part for a, b in pairs for part in (nn.Linear(a, b), kind())]
    return nn.Sequential(*layers, last)


def greedy(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Policy that takes the action of the highest output."""

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(obs)).argmax(1).numpy()

    return act


def sampled(network: nn.Module, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Policy that draws from the softmax of the outputs."""

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            share = network(torch.from_numpy(obs)).softmax(1).cumsum(1).numpy()
        return np.minimum((share < rng.random((len(obs), 1))).sum(1), share.shape[1] - 1)

    return act


class Checks:
    """Greedy validation episodes every `every` steps of training; keeps the best network."""

    def __init__(self, env: str, max_steps: int, checking: Checking, seed: int):
        self.envs = make_envs(env, EPISODES, max_steps)
        self.every = self.due = checking.every
        self.stop_at = checking.stop_at
        self.seed = stream(seed, VALIDATION)
        self.best, self.kept = -math.inf, {}
        self.history: list[tuple[int, float]] = []  # (steps, mean return)

    def look(self, network: nn.Module, steps: int, last: bool = False) -> bool:
        """Check if it is time, keep the best, of equals the latest; True: good enough to stop."""
        if steps < self.due and not (last and steps != (self.history or [(0,)])[-1][0]):
            return False
        self.due = (steps // self.every + 1) * self.every
        score = float(play(self.envs, greedy(network), self.seed).returns.mean())
        self.history.append((steps, score))
        if score >= self.best:
            self.best, self.kept = score, copy.deepcopy(network.state_dict())
        return self.stop_at is not None and score >= self.stop_at

    def spoken(self) -> str:
        """Last and best check for a progress bar; empty before the first."""
        return f"check {self.history[-1][1]:.1f}, best {self.best:.1f}" if self.history else ""


class Trained(NamedTuple):
    """What a learner hands back."""

    network: nn.Module  # as training left it
    kept: dict[str, torch.Tensor]  # weights of the best check
    checks: list[tuple[int, float]]  # (steps, greedy mean return of the validation episodes)
    episodes: list[tuple[int, float]]  # (steps at its end, return) of the training episodes


class Policy(NamedTuple):
    """A network and what is needed to build it again."""

    env: str
    hidden: tuple[int, ...]
    activation: str
    dueling: str | None
    weights: dict[str, torch.Tensor]


def save_policy(path: Path, policy: Policy) -> None:
    """Write policy.pt, whole or not at all."""
    write_checkpoint(path, {**policy._asdict(), "hidden": list(policy.hidden)})


def load_policy(path: Path) -> tuple[str, nn.Module]:
    """Environment and network of a policy.pt, or of the run folder that holds one; InputError where
    it is missing or something else."""
    if path.is_dir():
        path = path / "policy.pt"
    if not path.exists():
        lunar = " --env LunarLander-v3" * ("lunarlander" in str(path).lower())
        raise InputError(f"{path}: not found; train first: {SCRIPT} dqn{lunar}")
    content = read_checkpoint(path)
    if set(content) != set(Policy._fields):
        raise InputError(f"{path}: not a policy of studies.classic")
    policy = Policy(**content)
    envs = make_envs(policy.env, 1, 1)
    network = make_network(envs, tuple(policy.hidden), policy.activation, policy.dueling)
    load_weights(network, policy.weights, path)
    return policy.env, network.eval()


def fresh_returns(env: str, network: nn.Module, max_steps: int, seed: int) -> np.ndarray:
    """Returns (100,) of the greedy policy; neither training nor checks saw these episodes."""
    envs = make_envs(env, EPISODES, max_steps)
    return play(envs, greedy(network), stream(seed, FRESH)).returns


def explore(
    best: np.ndarray, num_actions: int, epsilon: float, rng: np.random.Generator
) -> np.ndarray:
    """Each of the best actions (L,) replaced by a random one with probability epsilon."""
    random = rng.integers(num_actions, size=len(best))
    return np.where(rng.random(len(best)) < epsilon, random, best)


class DqnLearner:
    """Network, target network, replay and optimiser; what happens between two gradient steps."""

    def __init__(self, envs: Any, cfg: DqnSettings, variant: Variant, seed: int):
        self.cfg, self.variant = cfg, variant
        torch.manual_seed(seed)
        centre = cfg.dueling_centre if variant.dueling else None
        self.network = make_network(envs, cfg.hidden, cfg.activation, centre)
        self.target = copy.deepcopy(self.network)
        fused = {"fused": True} if cfg.optimizer == "adam" else {}
        self.optimizer = OPTIMIZERS[cfg.optimizer](self.network.parameters(), cfg.lr, **fused)
        shape = envs.single_observation_space.shape
        columns: qlearning.Columns = {
            "obs": (shape, torch.float32),
            "action": ((), torch.int64),
            "reward": ((), torch.float32),
            "next_obs": (shape, torch.float32),
            "terminated": ((), torch.bool),
        }
        if variant.prioritized:
            self.replay = qlearning.PrioritizedReplay(cfg.replay, columns, CPU, cfg.alpha)
        else:
            self.replay = Replay(cfg.replay, columns, CPU)
        self.rng = np.random.default_rng([seed, 2])

    def update(self, share: float) -> None:
        """One gradient step; `share` of the budget has passed."""
        cfg = self.cfg
        if self.variant.prioritized:
            beta = anneal(cfg.beta, 1.0, share)
            rows, index, weights = self.replay.draw(cfg.batch, self.rng, beta)
        else:
            some = min(cfg.batch, len(self.replay))
            rows, weights = self.replay.sample(some, self.rng), 1.0
        with torch.no_grad():
            online = self.network(rows["next_obs"]) if self.variant.double else None
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
        if self.variant.prioritized:
            self.replay.update(index, target - q)


class Report(NamedTuple):
    """What is said every so many episodes, as the tutorial does."""

    episode: int
    score: float  # mean return of the episodes since the last report
    buffer: int  # transitions in the replay
    epsilon: float

    def __str__(self) -> str:
        text = f"n_episode :{self.episode}, score : {self.score:.1f}, n_buffer : {self.buffer},"
        return f"{text} eps : {100 * self.epsilon:.1f}%"


def dqn(
    env: str,
    cfg: DqnSettings,
    variant: Variant,
    seed: int,
    checking: Checking,
    progress: bool = False,
    every: int | None = None,
    say: Callable[[Report], None] = print,
) -> Trained:
    """Train a Q-network; see DqnSettings. A report is said `every` so many episodes."""
    envs = make_envs(env, cfg.lanes, cfg.max_steps)
    learner = DqnLearner(envs, cfg, variant, seed)
    best, rng = greedy(learner.network), np.random.default_rng([seed, 1])
    checks = Checks(env, min(cfg.max_steps, LIMIT[env]), checking, seed)
    num_actions = int(envs.single_action_space.n)
    obs, _ = envs.reset(seed=stream(seed, 3))
    resetting = np.zeros(cfg.lanes, dtype=bool)  # lanes whose step only starts a new episode
    totals, episodes = np.zeros(cfg.lanes), []
    steps = clock = 0
    bar = tqdm(total=cfg.budget, unit=cfg.clock[:-1], desc=f"dqn {variant}", disable=not progress)
    while clock < cfg.budget:
        epsilon = anneal(cfg.epsilon_start, cfg.epsilon_end, clock / cfg.epsilon_span)
        actions = explore(best(obs), num_actions, epsilon, rng)
        following, rewards, terminated, truncated, _ = envs.step(actions)
        kept = np.flatnonzero(~resetting)
        learner.replay.add(
            obs=torch.from_numpy(obs[kept]),
            action=torch.from_numpy(actions[kept]),
            reward=torch.from_numpy(rewards[kept] * cfg.reward_scale),
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
                say(Report(len(episodes), score, len(learner.replay), float(epsilon)))
        totals[resetting] = 0.0
        obs, before = following, clock
        clock = steps if cfg.clock == "steps" else len(episodes)
        bar.update(min(clock, cfg.budget) - before)
        if learner.replay.count > cfg.start_steps and len(episodes) >= cfg.start_episodes:
            for _ in range((clock // cfg.train_every - before // cfg.train_every) * cfg.updates):
                learner.update(clock / cfg.budget)
        if clock // cfg.sync_every > before // cfg.sync_every:
            sync(learner.target, learner.network)
        stop = checks.look(learner.network, steps)
        bar.set_postfix_str(checks.spoken(), refresh=False)
        if stop:
            break
    checks.look(learner.network, steps, last=True)
    bar.close()
    return Trained(learner.network, checks.kept, checks.history, episodes)


def check_sb3(cfg: DqnSettings, variant: Variant, report_every: int | None = None) -> None:
    """InputError for what the DQN of stable-baselines3 cannot do: no flag is silently ignored."""
    wrong = {
        "--double, --dueling, --prioritized": variant != Variant(),
        "--learning.clock episodes": cfg.clock != "steps",
        "--learning.loss mse": cfg.loss != "huber",
        "--learning.reward-scale": cfg.reward_scale != 1,
        "--learning.start-episodes": cfg.start_episodes > 0,
        "--learning.train-every that --learning.lanes does not divide": cfg.train_every % cfg.lanes,
        "--learning.epsilon-span above --learning.budget": cfg.epsilon_span > cfg.budget,
        "--report-every": report_every is not None,
    }
    for flag, given in wrong.items():
        if given:
            raise InputError(f"stable-baselines3's DQN cannot do {flag}; use --library own")


def sb3_dqn(
    env: str, cfg: DqnSettings, seed: int, checking: Checking, progress: bool = False
) -> Trained:
    """The DQN of stable-baselines3 with the numbers of `cfg`, checked in the same way.

    What stays different: in each step all lanes explore or none, and a batch may hold the same
    transition twice.
    """
    # It imports the suite, for which the other agents need not wait.
    from studies.gym import without_log

    sb3 = needed("stable_baselines3", SCRIPT)
    callbacks = needed("stable_baselines3.common.callbacks", SCRIPT)
    envs = needed("stable_baselines3.common.env_util", SCRIPT).make_vec_env(
        env, cfg.lanes, seed=stream(seed, 3), env_kwargs={"max_episode_steps": cfg.max_steps}
    )
    model = sb3.DQN(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: anneal(cfg.lr, cfg.lr_end, 1.0 - left),
        buffer_size=cfg.replay,
        learning_starts=cfg.start_steps,
        batch_size=cfg.batch,
        gamma=cfg.gamma,
        train_freq=cfg.train_every // cfg.lanes,  # in steps of all lanes
        gradient_steps=cfg.updates,
        target_update_interval=max(cfg.sync_every, cfg.lanes),
        exploration_initial_eps=cfg.epsilon_start,
        exploration_final_eps=cfg.epsilon_end,
        exploration_fraction=cfg.epsilon_span / cfg.budget,
        max_grad_norm=math.inf if cfg.max_grad_norm is None else cfg.max_grad_norm,
        policy_kwargs={
            "net_arch": list(cfg.hidden),
            "activation_fn": ACTIVATIONS[cfg.activation],
            "optimizer_class": OPTIMIZERS[cfg.optimizer],
        },
        seed=seed,
        device="cpu",
    )
    without_log(model)
    network = model.q_net.q_net  # the layers of make_network, in the same order
    checks = Checks(env, min(cfg.max_steps, LIMIT[env]), checking, seed)
    episodes: list[tuple[int, float]] = []

    class Watch(callbacks.BaseCallback):
        """Checks; and the returns of training episodes, which its Monitor notes."""

        def _on_step(self) -> bool:
            bar.update(cfg.lanes)
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            episodes.extend((self.num_timesteps, float(total)) for total in ended)
            stop = checks.look(network, self.num_timesteps)
            bar.set_postfix_str(checks.spoken(), refresh=False)
            return not stop

    with tqdm(total=cfg.budget, unit="step", desc="sb3", disable=not progress) as bar:
        model.learn(cfg.budget, callback=Watch())
    checks.look(network, model.num_timesteps, last=True)
    return Trained(network, checks.kept, checks.history, episodes)


def film(path: Path, seed: int, frames: int, every: int, width: int) -> tuple[list[Any], float]:
    """Pictures (PIL, 16 colours) of one greedy episode of a policy file, and its return.

    Filming stops after `frames` pictures; the episode is played to its end.
    """
    name, network = load_policy(path)
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # the renderer needs no screen, no sound
        os.environ.setdefault(driver, "dummy")
    gymnasium, image = needed("gymnasium", SCRIPT), needed("PIL.Image", SCRIPT)
    try:
        env = gymnasium.make(name, render_mode="rgb_array")
        obs, _ = env.reset(seed=stream(seed, FRESH))
        env.render()
    except gymnasium.error.DependencyNotInstalled:
        cure = "run: pip install -r requirements-studies.txt"
        raise InputError(f"drawing {name} needs the package pygame-ce; {cure}") from None
    act, pictures, total, step, over = greedy(network), [], 0.0, 0, False
    while not over:
        if step % every == 0 and len(pictures) < frames:
            picture = image.fromarray(env.render())
            height = round(picture.height * width / picture.width)
            small = picture.resize((width, height), image.Resampling.LANCZOS)
            palette = pictures[0] if pictures else small.quantize(16)
            pictures.append(small.quantize(palette=palette, dither=image.Dither.NONE))
        action = int(act(obs[None])[0])
        obs, reward, terminated, truncated, _ = env.step(action)
        total, step, over = total + float(reward), step + 1, terminated or truncated
    env.close()
    return pictures, total
