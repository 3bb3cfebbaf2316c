"""Policy search on gymnasium's environments: a genetic search, REINFORCE.

Shapes: L lanes (episodes side by side), T steps, S observation, A actions
"""

import math

import numpy as np
import torch
from scipy.signal import lfilter
from torch.nn import functional
from tqdm import tqdm, trange

from policy.qlearning import anneal
from studies.classic import agents
from studies.classic.agents import Policy, Trained
from studies.classic.mdp import stream
from studies.classic.settings import GeneticConfig, ReinforceConfig

NOISE = 0.3  # standard deviation of the weights of a child, around those of its parent


def genetic(cfg: GeneticConfig, progress: bool = False) -> Trained:
    """Search linear policies, argmax of obs @ w + b; the best of the last generation."""
    learning = cfg.learning
    policies, episodes = learning.policies, learning.episodes
    envs = agents.make_envs(cfg.env, policies * episodes, learning.max_steps)
    rng = np.random.default_rng([cfg.seed, 1])
    num_actions = int(envs.single_action_space.n)
    size = envs.single_observation_space.shape[0] + 1
    weights = rng.normal(size=(policies, size, num_actions))
    children, steps, history = policies // learning.survivors - 1, 0, []
    bar = trange(learning.generations, desc="genetic", unit="generation", disable=not progress)
    for generation in bar:
        if generation:
            parents = weights[order[: learning.survivors]]  # noqa: F821, from the one before
            born = np.repeat(parents, children, axis=0)
            weights = np.concatenate([parents, born + rng.normal(0, NOISE, born.shape)])
        lanes = np.repeat(weights, episodes, axis=0)

        def act(obs: np.ndarray, lanes: np.ndarray = lanes) -> np.ndarray:
            return (np.einsum("ls,lsa->la", obs, lanes[:, :-1]) + lanes[:, -1]).argmax(1)

        rollout = agents.play(envs, act, stream(cfg.seed, 1000 + generation))
        fitness = rollout.returns.reshape(policies, episodes).mean(1)
        order = np.argsort(-fitness, kind="stable")
        steps += int(rollout.alive.sum())
        history.append((steps, float(fitness.max()), float(fitness.mean())))
        bar.set_postfix_str(f"best {fitness.max():.1f}, mean {fitness.mean():.1f}")
    best = torch.from_numpy(weights[order[0]]).float()
    state = {"0.weight": best[:-1].T.contiguous(), "0.bias": best[-1].clone()}
    return Trained(Policy(cfg.env, [], "relu", None, state), {"generations": history})


def returns_to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted sum of this and all later rewards of an episode, (T, L) -> (T, L)."""
    return lfilter([1.0], [1.0, -gamma], rewards[::-1], axis=0)[::-1]


def normalised(totals: np.ndarray, alive: np.ndarray, baseline: str) -> np.ndarray:
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


def reinforce(cfg: ReinforceConfig, progress: bool = False) -> Trained:
    """Train a policy; see ReinforceSettings."""
    learning, budget = cfg.learning, cfg.learning.steps
    envs = agents.make_envs(cfg.env, learning.episodes, learning.max_steps)
    torch.manual_seed(cfg.seed)
    network = agents.make_network(envs, learning.hidden, learning.activation)
    optimizer = agents.OPTIMIZERS[learning.optimizer](network.parameters(), learning.lr)
    act = agents.acting(network, np.random.default_rng([cfg.seed, 1]))
    checks = agents.Checks(cfg)
    steps, iteration, episodes = 0, 0, []
    most = learning.episodes * learning.max_steps
    bar = tqdm(total=budget, unit="step", desc="reinforce", disable=not progress)
    while iteration < (learning.iterations or math.inf) and steps + most <= (budget or math.inf):
        rollout = agents.play(envs, act, stream(cfg.seed, 1000 + iteration))
        share = steps / budget if budget else iteration / learning.iterations
        optimizer.param_groups[0]["lr"] = anneal(learning.lr, learning.lr_end, share)
        totals = returns_to_go(rollout.rewards, learning.gamma)
        advantage = normalised(totals, rollout.alive, learning.baseline)[rollout.alive]
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
        bar.set_postfix_str(f"return {rollout.returns.mean():.1f}, {checks.said}")
        if stop:
            break
    bar.close()
    return checks.end(network, steps, episodes)
