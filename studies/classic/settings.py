"""Commands, flags and settings of studies.classic: tuned ones, and those of its sources.

The sources are a lecture on reinforcement learning (policy search, MDPs, Q-learning, DQN and its
variants) and a DQN tutorial with replay and target network on CartPole.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.command import flag_in
from core.settings import Checked, number
from studies.classic.agents import LIMIT, Checking, DqnSettings, EnvName, Variant
from studies.classic.mdp import TabularEnv, TabularLearning
from studies.classic.policy_search import GeneticSettings, ReinforceSettings

HOME = Path("runs/classic")
Source = Literal["tuned", "lecture"]


REINFORCE = {
    ("CartPole-v1", "tuned"): ReinforceSettings(),
    ("LunarLander-v3", "tuned"): ReinforceSettings(
        hidden=(64, 64), lr=5e-3, lr_end=5e-4, episodes=16, max_steps=1000, steps=1_000_000
    ),
}
for _env in LIMIT:
    REINFORCE[_env, "lecture"] = ReinforceSettings(
        hidden=(5,),
        activation="relu",
        optimizer="nadam",
        lr=1e-2,
        lr_end=1e-2,
        gamma=0.95,
        episodes=10,
        max_steps=200,
        baseline="all",
        iterations=150,
        steps=None,
    )
LUNAR_LANDER = DqnSettings(
    hidden=(128, 128),
    lr=1e-3,
    lr_end=1e-4,
    budget=400_000,
    max_steps=1_000,
    epsilon_end=0.05,
    epsilon_span=40_000,
    batch=128,
    train_every=8,
    updates=2,
    sync_every=1_000,
)
DQN = {
    "tuned": DqnSettings(),
    "lecture": DqnSettings(
        hidden=(32, 32),
        activation="elu",
        optimizer="nadam",
        lr=1e-2,
        lr_end=1e-2,
        loss="mse",
        max_grad_norm=None,
        gamma=0.95,
        clock="episodes",
        budget=600,
        max_steps=200,
        lanes=1,
        epsilon_end=0.01,
        epsilon_span=495,  # 1 - episode / 500, until 0.01
        replay=2_000,
        batch=32,
        start_steps=32,
        start_episodes=52,
        train_every=1,
        updates=1,
        sync_every=50,
        dueling_centre="max",
    ),
    "tutorial": DqnSettings(
        hidden=(128, 128),
        lr=5e-4,
        lr_end=5e-4,
        max_grad_norm=None,
        gamma=0.98,
        reward_scale=0.01,
        clock="episodes",
        budget=1_000,
        max_steps=500,  # there it is 10,000, but CartPole-v1 itself ends at 500
        lanes=1,
        epsilon_start=0.08,
        epsilon_end=0.01,
        epsilon_span=1_400,  # a hundredth less every 200 episodes
        replay=50_000,
        batch=32,
        start_steps=2_000,
        train_every=1,
        updates=10,
        sync_every=20,
    ),
}
TABULAR = {
    ("three-state", "tuned"): TabularLearning(),
    ("FrozenLake-v1", "tuned"): TabularLearning(
        alpha=0.2, decay=0.001, epsilon_end=0.1, curiosity=0.0
    ),
    ("Taxi-v4", "tuned"): TabularLearning(alpha=1.0, decay=0.0, epsilon_end=0.1, curiosity=0.0),
}  # nothing in Taxi is left to chance but the start, so the newest step is the truth
for _env in ("three-state", "FrozenLake-v1", "Taxi-v4"):
    TABULAR[_env, "lecture"] = TabularLearning(
        steps=10_000,
        alpha=0.05,
        decay=0.005,
        power=1.0,
        count="steps",
        epsilon_start=1.0,
        epsilon_end=1.0,
        curiosity=0.0,
    )
WATCHED = {  # the sources train to the end
    "tuned": Checking(stop_at=490.0),
    "lecture": Checking(every=2_500),
    "tutorial": Checking(every=10_000),
}


@dataclass(frozen=True, kw_only=True)
class ValueIterationConfig(Checked):
    """V* of a known MDP, beside the analytic solution."""

    env: TabularEnv = "three-state"
    """the lecture's MDP, or gymnasium"""
    gamma: float = number(0.9, 0, 0.9999)
    """discount (other environments: 0.99)"""
    tolerance: float = number(1e-10, 0)
    """largest change of a value at the end"""
    sweeps: int = number(10_000, 1)
    """sweeps at most"""
    episodes: int = number(1_000, 1)
    """episodes of the greedy policy"""
    seed: int = number(0, 0)
    """seed of those episodes"""


@dataclass(frozen=True, kw_only=True)
class QValueIterationConfig(ValueIterationConfig):
    """Q* of a known MDP, beside the analytic solution."""


@dataclass(frozen=True, kw_only=True)
class TdConfig(Checked):
    """TD(0): values of the random policy from steps alone, beside the analytic ones."""

    env: TabularEnv = "three-state"
    """the lecture's MDP, or gymnasium"""
    settings: Source = "tuned"
    """defaults of the learning group"""
    gamma: float = number(0.9, 0, 0.9999)
    """discount (other environments: 0.99)"""
    seed: int = number(0, 0)
    """environment and actions"""
    learning: TabularLearning = field(default_factory=TabularLearning)


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(TdConfig):
    """Q-learning: epsilon-greedy, decaying learning rate, a bonus for rare actions."""

    episodes: int = number(1_000, 1)
    """episodes of the greedy policy at the end"""


@dataclass(frozen=True, kw_only=True)
class AngleConfig(Checked):
    """CartPole by the lecture's rule: push to the side that the pole leans to."""

    episodes: int = number(500, 1)
    """episodes, seeds 0, 1, .."""
    max_steps: int = number(200, 1)
    """longest episode, steps"""


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(Checked):
    """What every trained policy has."""

    env: EnvName = "CartPole-v1"
    """environment of gymnasium"""
    seed: int = number(0, 0)
    """weights, exploration, replay, environment"""
    out: Path | None = None
    """folder to write (default: runs/classic/<name>-<seed>)"""
    overwrite: bool = False
    """replace an earlier result"""


@dataclass(frozen=True, kw_only=True)
class GeneticConfig(TrainedConfig):
    """Policy search without gradients: linear policies, the best have children."""

    learning: GeneticSettings = field(default_factory=GeneticSettings)


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(TrainedConfig):
    """REINFORCE with normalised discounted returns."""

    settings: Source = "tuned"
    """defaults of both groups"""
    learning: ReinforceSettings = field(default_factory=ReinforceSettings)
    checking: Checking = field(default_factory=Checking)


@dataclass(frozen=True, kw_only=True)
class DqnConfig(TrainedConfig):
    """DQN with replay and target network, and its variants, alone and together."""

    settings: Literal["tuned", "lecture", "tutorial"] = "tuned"
    """defaults of both groups"""
    double: bool = False
    """double DQN"""
    dueling: bool = False
    """dueling network"""
    prioritized: bool = False
    """prioritized replay"""
    report_every: int | None = number(None, 1)
    """episodes between reports (tutorial: 20)"""
    library: Literal["own", "stable-baselines3"] = "own"
    """trainer"""
    learning: DqnSettings = field(default_factory=DqnSettings)
    checking: Checking = field(default_factory=Checking)

    @property
    def variant(self) -> Variant:
        """The extensions that are on."""
        return Variant(self.double, self.dueling, self.prioritized)


@dataclass(frozen=True, kw_only=True)
class TableConfig(Checked):
    """Every variant over several seeds: one table, one figure; finished runs are kept."""

    env: EnvName = "CartPole-v1"
    """environment of gymnasium"""
    seeds: int = number(5, 1)
    """seeds 0, 1, .. of every row"""
    out: Path = HOME
    """folder of runs, table and figure"""
    present: bool = False
    """train nothing, only make the table"""
    workers: int = number(1, 1)
    """processes, one thread each"""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Checked):
    """Fresh episodes of a saved policy."""

    policy: Path = HOME / "cartpole-dqn-plain-tuned-0" / "policy.pt"
    """run folder, or its policy.pt (default: dqn, seed 0)"""
    seed: int = number(0, 0)
    """seed of the 100 episodes"""


@dataclass(frozen=True, kw_only=True)
class RenderConfig(Checked):
    """An episode of a saved CartPole or LunarLander policy as an animated GIF."""

    policy: Path = HOME / "cartpole-dqn-plain-tuned-0" / "policy.pt"
    """run folder, or its policy.pt (default: dqn, seed 0)"""
    out: Path = HOME / "cartpole.gif"
    """GIF to write"""
    seed: int = number(0, 0)
    """seed of the episode"""
    frames: int = number(125, 1)
    """pictures at most"""
    every: int = number(2, 1)
    """steps between pictures"""
    width: int = number(300, 16)
    """width, pixels"""


def commands(args: list[str]) -> dict[str, Any]:
    """Command -> its defaults, which follow from --settings and --env."""
    settings, env = flag_in(args, "--settings") or "tuned", flag_in(args, "--env")
    checking = WATCHED.get(settings, Checking())
    if env == "LunarLander-v3":
        checking = Checking(every=20_000, stop_at=230.0)
    tabular = TABULAR.get((env or "three-state", settings), TabularLearning())
    gamma = 0.9 if env in (None, "three-state") else 0.99
    policy_gradient = REINFORCE.get((env or "CartPole-v1", settings), ReinforceSettings())
    deep = DQN.get(settings, DqnSettings())
    if (env, settings) == ("LunarLander-v3", "tuned"):
        deep = LUNAR_LANDER
    report_every = 20 if settings == "tutorial" else None
    return {
        "value-iteration": ValueIterationConfig(gamma=gamma),
        "q-value-iteration": QValueIterationConfig(gamma=gamma),
        "td": TdConfig(learning=tabular, gamma=gamma),
        "q-learning": QLearningConfig(learning=tabular, gamma=gamma),
        "angle": AngleConfig,
        "genetic": GeneticConfig,
        "reinforce": ReinforceConfig(learning=policy_gradient, checking=checking),
        "dqn": DqnConfig(learning=deep, checking=checking, report_every=report_every),
        "table": TableConfig,
        "score": ScoreConfig,
        "render": RenderConfig,
    }
