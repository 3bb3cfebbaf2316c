"""Commands' settings of the active learning study. No torch: `--help` does not wait for it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from config import Device
from core.errors import InputError
from core.settings import Checked, number, require

DatasetName = Literal["digits", "cifar10", "cifar100", "fashion-mnist"]
NetworkName = Literal["resnet18", "small"]
StrategyName = Literal[
    "random", "entropy", "margin", "least-confidence", "k-centre", "badge", "dqn", "dqn-warm"
]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
REPLAY = 10_000  # transitions kept

# Where a flag is not given. "slides": the source's protocol; the digits are this study's own.
SLIDES: dict[str, Any] = {"network": "resnet18", "width": 64, "first": 1000, "per_cycle": 1000}
SLIDES |= {"epochs": 200, "batch": 128, "lr": 0.1}
DEFAULTS: dict[DatasetName, dict[str, Any]] = {
    "cifar10": SLIDES,
    "cifar100": SLIDES | {"first": 2000, "per_cycle": 2000},
    "fashion-mnist": SLIDES,
    "digits": {"network": "small", "width": 16, "first": 20, "per_cycle": 20}
    | {"epochs": 40, "batch": 32, "lr": 0.05},
}


@dataclass(frozen=True, kw_only=True)
class Protocol(Checked):
    """What changes a number of a run."""

    dataset: DatasetName = "digits"
    """data set"""
    cycles: int = number(10, 2)
    """trainings of the classifier (slides)"""
    first: int | None = number(None, 1)
    """labels at the start (cifar100 2,000, digits 20, else 1,000)"""
    per_cycle: int | None = number(None, 1, REPLAY // 2)  # a query stores twice as many
    """labels bought a cycle (cifar100 2,000, digits 20, else 1,000)"""
    network: NetworkName | None = None
    """classifier (digits: small, else resnet18; slides)"""
    width: int | None = number(None, 2)
    """channels of its first layer (digits 16, else 64)"""
    epochs: int | None = number(None, 1)
    """epochs of each cycle (digits 40, else 200; slides)"""
    batch: int | None = number(None, 2)
    """images in a step of SGD (digits 32, else 128; slides)"""
    lr: float | None = number(None, above=0)
    """learning rate of SGD (digits 0.05, else 0.1; slides)"""
    carry_over: bool = False
    """keep the weights of the cycle before (original)"""
    dqn_lr: float = number(1e-3, above=0, high=1)
    """learning rate of the Q-network, Adam (slides)"""

    @property
    def augmentation(self) -> tuple[int, bool]:
        """Pixels around an image before its random crop; whether it is mirrored at random."""
        return (1, False) if self.dataset == "digits" else (4, True)  # (slides: 4, mirrored)


@dataclass(frozen=True, kw_only=True)
class Study(Protocol):
    """What every command has beside the protocol."""

    data: Path | None = None
    """folder of the official files (default: data/images)"""
    out: Path | None = None
    """folder to write (default: runs/active-<dataset>)"""
    overwrite: bool = False
    """do the runs of this command anew"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int = number(1, 1)
    """CPU threads of each process"""
    workers: int | None = number(None, 1)
    """processes (default: all cores; CUDA: one)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        embedded = self.dataset == "digits" and self.data is not None
        require(not embedded, "data", "left out, as the digits are in scikit-learn,", self.data)

    @property
    def folder(self) -> Path:
        """Where runs and tables go."""
        return self.out or Path("runs") / f"active-{self.dataset}"


def counts(values: tuple[int, ...]) -> bool:
    """Whether these are one or more different numbers above 0."""
    return 0 < len(set(values)) == len(values) and min(values) > 0


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Study):
    """The DQN and other strategies; the command if none is given."""

    strategies: tuple[StrategyName, ...] = STRATEGIES
    """rows"""
    seeds: int = number(6, 1)
    """seeds 0, 1, .."""
    gradient_steps: tuple[int, ...] = (200,)
    """gradient steps after each query, a row each"""
    dqn_warm_start: Literal["margin", "entropy", "least-confidence"] = "margin"
    """first strategy of dqn-warm"""
    dqn_warm_queries: tuple[int, ...] = (1, 3)
    """queries of that strategy, a row each"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gradient_steps", "dqn_warm_queries"):
            values = getattr(self, name)
            require(counts(values), self.flag(name), "different numbers above 0", values)
        require("random" in self.strategies, "strategies", "a list with random", self.strategies)
        different = len(set(self.strategies)) == len(self.strategies)
        require(different, "strategies", "all different", self.strategies)


@dataclass(frozen=True, kw_only=True)
class StepsConfig(Study):
    """The source's first study: several numbers of gradient steps."""

    gradient_steps: tuple[int, ...] = (100, 200, 300, 400, 500)
    """of the DQN after each query (slides)"""
    seeds: int = number(1, 1)
    """seeds 0, 1, .. (slides: 1)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps, rule = self.gradient_steps, "two or more different numbers above 0"
        require(counts(steps) and len(steps) > 1, "gradient-steps", rule, steps)


@dataclass(frozen=True, kw_only=True)
class RepeatsConfig(Study):
    """The source's second study: the best number of gradient steps on more seeds."""

    gradient_steps: int | None = number(None, 1)
    """gradient steps after each query (default: best of `steps`)"""
    repeats: int = number(5, 1)
    """seeds 1, 2, .. (slides: 5)"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """Accuracy of a saved classifier on the test images, overall and for each class."""

    classifier: Path
    """classifier.pt of a finished run"""
    data: Path | None = None
    """folder of the official files (default: data/images)"""
    device: Device = "auto"
    """auto: CUDA if present"""


@dataclass(frozen=True, kw_only=True)
class DrawConfig(Checked):
    """A small part of CIFAR-10 or CIFAR-100, for a computer without a GPU."""

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    """data set"""
    data: Path | None = None
    """folder of the official files (default: data/images)"""
    train: int = number(4_000, 1)
    """training images"""
    test: int = number(1_000, 1)
    """test images"""
    out: Path | None = None
    """folder to write (default: data/<dataset>-small)"""


def settle(cfg: Study) -> Any:
    """The config with the data set's own numbers where no flag was given."""
    missing = {
        name: value for name, value in DEFAULTS[cfg.dataset].items() if getattr(cfg, name) is None
    }
    try:
        return replace(cfg, **missing)
    except ValueError as error:  # a default of the data set against a flag
        raise InputError(str(error)) from None


COMMANDS = {
    "compare": CompareConfig,
    "steps": StepsConfig,
    "repeats": RepeatsConfig,
    "evaluate": EvaluateConfig,
    "draw": DrawConfig,
}


def with_command(args: list[str]) -> list[str]:
    """The words of a command line; where no command is given, it is `compare`."""
    none = not args or (args[0].startswith("-") and args[0] not in ("-h", "--help"))
    return ["compare", *args] if none else args
