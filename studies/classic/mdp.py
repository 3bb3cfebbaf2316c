"""Tabular reinforcement learning: value iteration, Q-value iteration, TD(0), Q-learning.

Shapes: S states, A actions

On the lecture's 3-state MDP, and on gymnasium's FrozenLake and Taxi. All three are environments
with a table `P[state][action] = [(probability, next state, reward, terminated), ...]`, gymnasium's
own form for them. The planners read the table; the learners only take steps. Formulas: Sutton and
Barto, *Reinforcement Learning*, 2nd edition, chapters 4 and 6.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from tqdm import trange

from policy.qlearning import anneal
from studies.classic.settings import TabularEnv, TabularLearning

Table = dict[int, dict[int, list[tuple[float, int, float, bool]]]]


def stream(seed: int, number: int) -> int:
    """Seed of one of the independent streams of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class ThreeState:
    """The lecture's MDP behind gymnasium's reset and step. It never ends."""

    P: ClassVar[Table] = {  # action 1 is not possible in state 1, nor 0 and 2 in state 2
        0: {
            0: [(0.7, 0, 10.0, False), (0.3, 1, 0.0, False)],
            1: [(1.0, 0, 0.0, False)],
            2: [(0.8, 0, 0.0, False), (0.2, 1, 0.0, False)],
        },
        1: {0: [(1.0, 1, 0.0, False)], 2: [(1.0, 2, -50.0, False)]},
        2: {1: [(0.8, 0, 40.0, False), (0.1, 1, 0.0, False), (0.1, 2, 0.0, False)]},
    }

    @property
    def unwrapped(self) -> "ThreeState":
        """Itself, as of any environment without wrappers."""
        return self

    def reset(self, *, seed: int | None = None) -> tuple[int, dict]:
        """Start in state 0."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.state = 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Next state, reward, terminated, truncated, info."""
        outcomes, mass = self.P[self.state][action], self.rng.random()
        for p, after, reward, over in outcomes:  # noqa: B007
            mass -= p
            if mass < 0:
                break
        self.state = after
        return after, reward, over, False, {}


def make_tabular(name: TabularEnv) -> Any:
    """The environment of that name."""
    return ThreeState() if name == "three-state" else gymnasium.make(name)


class Mdp(NamedTuple):
    """A table as arrays."""

    moves: np.ndarray  # (S, A, S): probability to go on in the next state; an end is left out
    reward: np.ndarray  # (S, A): expected; -inf where the action is not possible

    @property
    def possible(self) -> np.ndarray:
        """(S, A) bool."""
        return np.isfinite(self.reward)


def as_mdp(env: Any) -> Mdp:
    """An environment's table as arrays."""
    table: Table = env.unwrapped.P
    num_actions = 1 + max(action for actions in table.values() for action in actions)
    moves = np.zeros((len(table), num_actions, len(table)))
    reward = np.full(moves.shape[:2], -np.inf)
    for state, actions in table.items():
        for action, outcomes in actions.items():
            reward[state, action] = sum(p * gain for p, _, gain, _ in outcomes)
            for p, after, _, over in outcomes:
                moves[state, action, after] += 0.0 if over else p
    return Mdp(moves, reward)


def q_of(mdp: Mdp, values: np.ndarray, gamma: float) -> np.ndarray:
    """Q (S, A) of acting once and being worth `values` (S,) afterwards; -inf: not possible."""
    return mdp.reward + gamma * mdp.moves @ values


def value_iteration(
    mdp: Mdp, gamma: float, tolerance: float, most: int, of_q: bool = False
) -> tuple[np.ndarray, int]:
    """Q (S, A) <- r + gamma E max over a' of Q, and the number of sweeps; V = max over a of Q.

    It ends where no V (`of_q`: no Q) moves by more than `tolerance`, or after `most` sweeps.
    """
    q, sweep, moved = np.where(mdp.possible, 0.0, -np.inf), 0, np.inf
    while moved > tolerance and sweep < most:
        before, q = q, q_of(mdp, q.max(1), gamma)
        old, new = (x[mdp.possible] if of_q else x.max(1) for x in (before, q))
        moved, sweep = np.abs(new - old).max(), sweep + 1
    return q, sweep


def policy_values(mdp: Mdp, policy: np.ndarray, gamma: float) -> np.ndarray:
    """V (S,) of a policy (S, A) of probabilities: the solution of V = r + gamma P V."""
    reward = (policy * np.where(mdp.possible, mdp.reward, 0.0)).sum(1)
    moves = np.einsum("sa,sat->st", policy, mdp.moves)
    return np.linalg.solve(np.eye(len(reward)) - gamma * moves, reward)


def analytic(mdp: Mdp, gamma: float) -> np.ndarray:
    """V* (S,) without a limit process: policy iteration, each policy's values solved exactly."""
    actions = mdp.reward.argmax(1)
    while True:
        values = policy_values(mdp, np.eye(mdp.reward.shape[1])[actions], gamma)
        q = q_of(mdp, values, gamma)
        here = q[np.arange(len(q)), actions]
        better = q.max(1) > here + 1e-12 * (1 + np.abs(here))
        if not better.any():
            return values
        actions = np.where(better, q.argmax(1), actions)


def rate(cfg: TabularLearning, visits: float, step: int) -> float:
    """Learning rate of one update."""
    return cfg.alpha / (1.0 + cfg.decay * (visits if cfg.count == "visits" else step))


def td0(env: Any, gamma: float, cfg: TabularLearning, seed: int) -> np.ndarray:
    """V (S,) of the random policy from its steps: V(s) += alpha (r + gamma V(s') - V(s))."""
    options = {state: list(actions) for state, actions in env.unwrapped.P.items()}
    values, visits = np.zeros(len(options)), np.zeros(len(options))
    rng = np.random.default_rng([seed, 1])
    state, _ = env.reset(seed=stream(seed, 3))
    for step in trange(cfg.steps, desc="TD(0)", unit="step"):
        action = options[state][int(rng.random() * len(options[state]))]
        after, reward, terminated, truncated, _ = env.step(action)
        ahead = 0.0 if terminated else values[after]
        values[state] += rate(cfg, visits[state], step) * (reward + gamma * ahead - values[state])
        visits[state] += 1
        state = env.reset()[0] if terminated or truncated else after
    return values


def q_learning(env: Any, gamma: float, cfg: TabularLearning, seed: int) -> np.ndarray:
    """Q (S, A) learned from steps; -inf: not possible.

    Epsilon-greedy. What has been tried n times looks better by curiosity / (1 + n), to the greedy
    choice and in the target: r + gamma max over a' of f(Q(s', a'), n(s', a')).
    """
    options = {state: list(actions) for state, actions in env.unwrapped.P.items()}
    q = np.where(as_mdp(env).possible, 0.0, -np.inf)
    visits = np.zeros_like(q)

    def hopeful(state: int) -> np.ndarray:
        return q[state] + cfg.curiosity / (1.0 + visits[state])

    rng = np.random.default_rng([seed, 1])
    state, _ = env.reset(seed=stream(seed, 3))
    for step in trange(cfg.steps, desc="Q-learning", unit="step"):
        if rng.random() < anneal(1.0, cfg.epsilon_end, step / cfg.steps):
            action = options[state][int(rng.random() * len(options[state]))]
        else:
            action = int(hopeful(state).argmax())
        after, reward, terminated, truncated, _ = env.step(action)
        ahead = 0.0 if terminated else float(hopeful(after).max())
        alpha = rate(cfg, visits[state, action], step)
        q[state, action] += alpha * (reward + gamma * ahead - q[state, action])
        visits[state, action] += 1
        state = env.reset()[0] if terminated or truncated else after
    return q


def returns_of(env: Any, act: Callable[[Any], int], seeds: Iterable[int]) -> np.ndarray:
    """Undiscounted return of an episode for each seed; for environments that end."""
    returns = []
    for seed in seeds:
        state, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            state, reward, terminated, truncated, _ = env.step(act(state))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.array(returns)


def greedy_returns(env: Any, q: np.ndarray, episodes: int, seed: int) -> np.ndarray:
    """The same of the greedy policy."""
    seeds = (stream(seed, 100 + episode) for episode in range(episodes))
    best = q.argmax(1)
    return returns_of(env, lambda state: int(best[state]), seeds)
