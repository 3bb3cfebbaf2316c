"""Policy search on gymnasium's environments: a rule by hand, a genetic search, REINFORCE.

Shapes: L lanes (episodes side by side), T steps, S observation, A actions
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm, trange

from core.command import needed
from policy.qlearning import anneal
from studies.classic import agents
from studies.classic.agents import Policy, Trained
from studies.classic.mdp import SCRIPT, returns_of, stream
from studies.classic.settings import Checking, GeneticSettings, ReinforceSettings


def angle_returns(episodes: int, max_steps: int) -> np.ndarray:
    """Returns on CartPole of pushing the cart to the side that the pole leans to, one seed an
    episode, as in the lecture."""
    env = needed("gymnasium", SCRIPT).make("CartPole-v1", max_episode_steps=max_steps)
    return returns_of(env, lambda obs: int(obs[2] >= 0), range(episodes))


class Generation(NamedTuple):
    """What a generation reached."""

    steps: int  # since the beginning
    best: float  # mean return of its best policy
    mean: float  # of all


def genetic(
    env: str, cfg: GeneticSettings, seed: int, progress: bool = False
) -> tuple[Policy, list[Generation]]:
    """Search linear policies, argmax of obs @ w + b; the best of the last generation, history."""
    envs = agents.make_envs(env, cfg.policies * cfg.episodes, cfg.max_steps)
    rng = np.random.default_rng([seed, 1])
    num_actions = int(envs.single_action_space.n)
    size = envs.single_observation_space.shape[0] + 1
    weights = rng.normal(size=(cfg.policies, size, num_actions))
    children, steps, history = cfg.policies // cfg.survivors - 1, 0, []
    bar = trange(cfg.generations, desc="genetic", unit="generation", disable=not progress)
    for generation in bar:
        if generation:
            parents = weights[order[: cfg.survivors]]  # noqa: F821, from the generation before
            born = np.repeat(parents, children, axis=0)
            weights = np.concatenate([parents, born + rng.normal(0, cfg.noise, born.shape)])
        lanes = np.repeat(weights, cfg.episodes, axis=0)

        def act(obs: np.ndarray, lanes: np.ndarray = lanes) -> np.ndarray:
            return (np.einsum("ls,lsa->la", obs, lanes[:, :-1]) + lanes[:, -1]).argmax(1)

        rollout = agents.play(envs, act, stream(seed, 1000 + generation))
        fitness = rollout.returns.reshape(cfg.policies, cfg.episodes).mean(1)
        order = np.argsort(-fitness, kind="stable")
        steps += int(rollout.alive.sum())
        history.append(Generation(steps, float(fitness.max()), float(fitness.mean())))
        bar.set_postfix_str(f"best {fitness.max():.1f}, mean {fitness.mean():.1f}")
    best = torch.from_numpy(weights[order[0]]).float()
    state = {"0.weight": best[:-1].T.contiguous(), "0.bias": best[-1].clone()}
    return Policy(env, (), "relu", None, state), history


def returns_to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted sum of this and all later rewards of an episode, (T, L) -> (T, L)."""
    totals = np.zeros_like(rewards, dtype=np.float64)
    running = np.zeros(rewards.shape[1:])
    for step in reversed(range(len(rewards))):
        running = rewards[step] + gamma * running
        totals[step] = running
    return totals


def normalised(totals: np.ndarray, alive: np.ndarray, baseline: str = "all") -> np.ndarray:
    """Advantage of each live step: return minus mean, over the standard deviation; (T, L).

    `step` first subtracts the mean of the same step in the episodes that got there. What is not
    alive is 0.
    """
    advantage = np.where(alive, totals, 0.0)
    if baseline == "step":
        mean = advantage.sum(1, keepdims=True) / alive.sum(1, keepdims=True)
        advantage = np.where(alive, advantage - mean, 0.0)
    chosen = advantage[alive]
    return np.where(alive, (advantage - chosen.mean()) / (chosen.std() + 1e-8), 0.0)


def reinforce(
    env: str, cfg: ReinforceSettings, seed: int, checking: Checking, progress: bool = False
) -> Trained:
    """Train a policy; see ReinforceSettings."""
    envs = agents.make_envs(env, cfg.episodes, cfg.max_steps)
    torch.manual_seed(seed)
    network = agents.make_network(envs, cfg.hidden, cfg.activation)
    optimizer = agents.OPTIMIZERS[cfg.optimizer](network.parameters(), cfg.lr)
    act = agents.sampled(network, np.random.default_rng([seed, 1]))
    checks = agents.Checks(env, cfg.max_steps, checking, seed)
    steps, iteration, episodes = 0, 0, []
    most = cfg.episodes * cfg.max_steps
    bar = tqdm(total=cfg.steps, unit="step", desc="reinforce", disable=not progress)
    while iteration < (cfg.iterations or math.inf) and steps + most <= (cfg.steps or math.inf):
        rollout = agents.play(envs, act, stream(seed, 1000 + iteration))
        share = steps / cfg.steps if cfg.steps else iteration / cfg.iterations
        optimizer.param_groups[0]["lr"] = anneal(cfg.lr, cfg.lr_end, share)
        totals = returns_to_go(rollout.rewards, cfg.gamma)
        advantage = normalised(totals, rollout.alive, cfg.baseline)[rollout.alive]
        logits = network(torch.from_numpy(rollout.obs[rollout.alive]))
        actions = torch.from_numpy(rollout.actions[rollout.alive])
        surprise = functional.cross_entropy(logits, actions, reduction="none")
        loss = (surprise * torch.from_numpy(advantage).float()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        iteration += 1
        steps += int(rollout.alive.sum())
        episodes += [(steps, float(total)) for total in rollout.returns]
        bar.update(int(rollout.alive.sum()))
        stop = checks.look(network, steps)
        bar.set_postfix_str(f"return {rollout.returns.mean():.1f}, {checks.spoken()}")
        if stop:
            break
    checks.look(network, steps, last=True)
    bar.close()
    return Trained(network, checks.kept, checks.history, episodes)
