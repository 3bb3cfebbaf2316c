"""Commands, flags and settings of studies.classic: tuned ones, and those of its sources.

The sources are a lecture on reinforcement learning (policy search, MDPs, Q-learning, DQN and its
variants) and a DQN tutorial with replay and target network on CartPole.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.command import flag_in
from core.settings import Checked, number, require

HOME = Path("runs/classic")
Source = Literal["tuned", "lecture"]
TabularEnv = Literal["three-state", "FrozenLake-v1", "Taxi-v4"]
EnvName = Literal["CartPole-v1", "LunarLander-v3"]
Activation = Literal["relu", "elu", "tanh"]


@dataclass(frozen=True, kw_only=True)
class TabularLearning(Checked):
    """What TD(0) and Q-learning need beside the environment."""

    GROUP = "learning"
    steps: int = number(200_000, 1)
    """steps in the environment"""
    alpha: float = number(1.0, above=0, high=1)
    """first learning rate"""
    decay: float = number(0.05, 0)
    """d of alpha / (1 + d * count)"""
    count: Literal["visits", "steps"] = "visits"
    """count of that decay: visits of a state, or steps"""
    epsilon_end: float = number(0.2, 0, 1)
    """last share of random actions; the first is 1 (Q-learning)"""
    curiosity: float = number(10.0, 0)
    """bonus c / (1 + visits) of an action (Q-learning)"""


@dataclass(frozen=True, kw_only=True)
class GeneticSettings(Checked):
    """Policy search without gradients: the best survive and have children with a little noise."""

    GROUP = "learning"
    policies: int = number(100, 2)
    """policies of a generation (lecture)"""
    survivors: int = number(20, 1)
    """parents of the next generation (lecture)"""
    generations: int = number(10, 1)
    """generations"""
    episodes: int = number(5, 1)
    """episodes that rate a policy"""
    max_steps: int = number(500, 1)
    """longest episode, steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.policies % self.survivors == 0 and self.policies > self.survivors
        rule = f"a multiple of --learning.survivors, {self.survivors}, and larger,"
        require(fits, self.flag("policies"), rule, self.policies)


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings(Checked):
    """REINFORCE: after each batch of episodes one step up the policy's gradient."""

    GROUP = "learning"
    hidden: tuple[int, ...] = (32,)
    """sizes of the hidden layers"""
    activation: Activation = "tanh"
    """activation between layers"""
    optimizer: Literal["adam", "nadam"] = "adam"
    """optimizer"""
    lr: float = number(1e-2, above=0)
    """first learning rate"""
    lr_end: float = number(1e-3, 0)
    """last learning rate, falling linearly"""
    gamma: float = number(0.99, 0, 1)
    """discount"""
    episodes: int = number(10, 1)
    """episodes for each gradient step"""
    max_steps: int = number(500, 1)
    """longest training episode, steps"""
    baseline: Literal["all", "step"] = "step"
    """mean return over all steps, or of each step"""
    iterations: int | None = number(None, 1)
    """gradient steps at most (None: no limit)"""
    steps: int | None = number(200_000, 1)
    """training steps at most (None: no limit)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.episodes * self.max_steps
        rule = f"{most} or more, which one gradient step can take,"
        require(self.steps is None or self.steps >= most, self.flag("steps"), rule, self.steps)
        endless = self.steps is None and self.iterations is None
        require(not endless, self.flag("steps"), "a number, or --learning.iterations,", "None")


@dataclass(frozen=True, kw_only=True)
class Checking(Checked):
    """When the greedy policy is checked on validation episodes, and what ends a training early."""

    GROUP = "checking"
    every: int = number(1_000, 1)
    """training steps between checks"""
    stop_at: float | None = number(None)
    """mean return that ends the training (None: none)"""


@dataclass(frozen=True, kw_only=True)
class DqnSettings(Checked):
    """DQN with replay and target network. Its clock ticks in steps, or in finished episodes."""

    GROUP = "learning"
    hidden: tuple[int, ...] = (256, 256)
    """sizes of the hidden layers"""
    activation: Activation = "relu"
    """activation between layers"""
    optimizer: Literal["adam", "nadam"] = "adam"
    """optimizer"""
    lr: float = number(2.3e-3, above=0)
    """first learning rate"""
    lr_end: float = number(2.3e-4, 0)
    """last learning rate, falling linearly"""
    loss: Literal["huber", "mse"] = "huber"
    """smooth L1, or squared error"""
    max_grad_norm: float | None = number(10.0, above=0)
    """largest gradient norm (None: none)"""
    gamma: float = number(0.99, 0, 1)
    """discount"""
    reward_scale: float = number(1.0, above=0)
    """factor of stored rewards"""
    clock: Literal["steps", "episodes"] = "steps"
    """unit of budget, epsilon-span, train-every, sync-every"""
    budget: int = number(100_000, 1)
    """length of the training"""
    max_steps: int = number(500, 1)
    """longest episode, steps"""
    lanes: int = number(8, 1)
    """parallel episodes"""
    epsilon_start: float = number(1.0, 0, 1)
    """first share of random actions"""
    epsilon_end: float = number(0.04, 0, 1)
    """last share of random actions"""
    epsilon_span: int = number(10_000, 1)
    """length of the decay of epsilon"""
    replay: int = number(100_000, 1)
    """transitions kept"""
    batch: int = number(64, 1)
    """transitions in a gradient step"""
    start_steps: int = number(1_000, 0)
    """transitions stored before learning"""
    start_episodes: int = number(0, 0)
    """episodes finished before learning"""
    train_every: int = number(256, 1)
    """time between rounds of gradient steps"""
    updates: int = number(128, 1)
    """gradient steps of a round"""
    sync_every: int = number(256, 1)
    """time between target updates"""
    dueling_centre: Literal["mean", "max"] = "mean"
    """centre of the advantages of --dueling"""
    alpha: float = number(0.6, 0)
    """priority exponent of --prioritized"""
    beta: float = number(0.4, 0, 1)
    """first importance exponent of --prioritized"""


# Presets: of a value of --settings, and what another --env has in its place.
REINFORCE = {
    "tuned": ReinforceSettings(),
    ("LunarLander-v3", "tuned"): ReinforceSettings(
        hidden=(64, 64), lr=5e-3, lr_end=5e-4, episodes=16, max_steps=1000, steps=1_000_000
    ),
    "lecture": ReinforceSettings(
        hidden=(5,),
        activation="relu",
        optimizer="nadam",
        lr_end=1e-2,
        gamma=0.95,
        max_steps=200,
        baseline="all",
        iterations=150,
        steps=None,
    ),
}
SOURCES = {"max_grad_norm": None, "clock": "episodes", "lanes": 1, "epsilon_end": 0.01, "batch": 32}
SOURCES |= {"train_every": 1}
DQN = {
    "tuned": DqnSettings(),
    ("LunarLander-v3", "tuned"): DqnSettings(
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
    ),
    "lecture": DqnSettings(
        **SOURCES,
        hidden=(32, 32),
        activation="elu",
        optimizer="nadam",
        lr=1e-2,
        lr_end=1e-2,
        loss="mse",
        gamma=0.95,
        budget=600,
        max_steps=200,
        epsilon_span=495,  # 1 - episode / 500, until 0.01
        replay=2_000,
        start_steps=32,
        start_episodes=52,
        updates=1,
        sync_every=50,
        dueling_centre="max",
    ),
    "tutorial": DqnSettings(  # its longest episode, 10,000 steps, CartPole-v1 itself ends at 500
        **SOURCES,
        hidden=(128, 128),
        lr=5e-4,
        lr_end=5e-4,
        gamma=0.98,
        reward_scale=0.01,
        budget=1_000,
        epsilon_start=0.08,
        epsilon_span=1_400,  # a hundredth less every 200 episodes
        replay=50_000,
        start_steps=2_000,
        updates=10,
        sync_every=20,
    ),
}
TABULAR = {
    "tuned": TabularLearning(),
    ("FrozenLake-v1", "tuned"): TabularLearning(
        alpha=0.2, decay=0.001, epsilon_end=0.1, curiosity=0.0
    ),
    # Nothing in Taxi is left to chance but the start, so the newest step is the truth.
    ("Taxi-v4", "tuned"): TabularLearning(alpha=1.0, decay=0.0, epsilon_end=0.1, curiosity=0.0),
    "lecture": TabularLearning(
        steps=10_000, alpha=0.05, decay=0.005, count="steps", epsilon_end=1.0, curiosity=0.0
    ),
}
LANDER_CHECKING = Checking(every=20_000, stop_at=230.0)
CHECKING = {  # the sources train to the end
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
    def variant(self) -> str:
        """The extensions that are on, e.g. double+dueling; plain: none."""
        on = [name for name in ("double", "dueling", "prioritized") if getattr(self, name)]
        return "+".join(on) or "plain"


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
    """seed of the episodes (score: 100, render: one)"""


@dataclass(frozen=True, kw_only=True)
class RenderConfig(ScoreConfig):
    """An episode of a saved CartPole or LunarLander policy as an animated GIF."""

    out: Path = HOME / "cartpole.gif"
    """GIF to write"""
    frames: int = number(125, 1)
    """pictures at most, one every other step"""
    width: int = number(300, 16)
    """width, pixels"""


def commands(args: list[str]) -> dict[str, Any]:
    """Command -> its defaults, which follow from --settings and --env."""
    settings, env = flag_in(args, "--settings") or "tuned", flag_in(args, "--env")

    def preset(table: dict[Any, Any]) -> Any:
        return table.get((env, settings)) or table.get(settings) or table["tuned"]

    checking = LANDER_CHECKING if env == "LunarLander-v3" else preset(CHECKING)
    gamma = 0.9 if env in (None, "three-state") else 0.99
    report_every = 20 if settings == "tutorial" else None
    return {
        "value-iteration": ValueIterationConfig(gamma=gamma),
        "q-value-iteration": QValueIterationConfig(gamma=gamma),
        "td": TdConfig(learning=preset(TABULAR), gamma=gamma),
        "q-learning": QLearningConfig(learning=preset(TABULAR), gamma=gamma),
        "angle": AngleConfig,
        "genetic": GeneticConfig,
        "reinforce": ReinforceConfig(learning=preset(REINFORCE), checking=checking),
        "dqn": DqnConfig(learning=preset(DQN), checking=checking, report_every=report_every),
        "table": TableConfig,
        "score": ScoreConfig,
        "render": RenderConfig,
    }
