"""Commands' settings of the denoising study. No torch: `--help` does not wait for it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import Device
from core.settings import Checked, number, require

RUNS = Path("runs/denoise")
TRAIN = Path("data/denoise/train/features.csv")
Algo = Literal["ppo", "ppo-separate", "sac", "td3"]


@dataclass(frozen=True, kw_only=True)
class MixConfig(Checked):
    """Mix speech with noise at chosen signal-to-noise ratios."""

    out: Path = Path("data/denoise")
    """folder to write"""
    clean: Path | None = None
    """speech, <speaker>/*.wav, flac or ogg (default: synthesised)"""
    noise: Path | None = None
    """noise, <class>/[<fold>-]*.wav (default: synthesised)"""
    macro_scenes: Path | None = None
    """JSON file, noise class -> group of classes"""
    sample_rate: int = number(8000, 2000, 48000)
    """sample rate of the clips, Hz"""
    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0)
    """signal-to-noise ratios, dB"""
    clips: tuple[int, int, int] = (600, 120, 240)
    """clips of train, validation, test"""
    cells: int = number(0, 0)
    """clips of each speaker and fold, for `cross`"""
    join: int = number(4, 1, 100)
    """recordings of one speaker in a clip"""
    speakers: tuple[int, int] = (1, 2)
    """speakers of validation and of test"""
    folds: tuple[int, int] = (4, 5)
    """noise folds of validation and of test"""
    seed: int = number(0, 0)
    """speakers, order, pauses, noise, ratios"""
    overwrite: bool = False
    """replace an earlier folder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        finite = bool(self.snr_db) and all(math.isfinite(snr) for snr in self.snr_db)
        require(finite, "snr-db", "finite numbers", self.snr_db)
        require(min(self.clips) >= 1, "clips", "at least 1 each", self.clips)
        require(min(self.speakers) >= 1, "speakers", "at least 1 each", self.speakers)
        require(self.folds[0] != self.folds[1], "folds", "two different folds", self.folds)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Checked):
    """Features of the noisy clips and their SI-SDR, STOI, ESTOI: what `train` reads."""

    meta: tuple[Path, ...] = (
        Path("data/denoise/train/meta.csv"),
        Path("data/denoise/validation/meta.csv"),
    )
    """tables of `mix` (default: train and validation)"""
    limit: int | None = number(None, 1)
    """clips of each table (default: all)"""


@dataclass(frozen=True, kw_only=True)
class Reward(Checked):
    """What an episode is and what it pays."""

    max_steps: int = number(3, 1, 20)
    """denoisers in a chain, at most"""
    reward_scale: float = number(4.0, above=0)
    """dB of SI-SDR for a reward of 1 (HEAR's recipe)"""
    stoi_weight: float = number(10.0)
    """reward of 1 STOI (HEAR's recipe)"""
    estoi_weight: float = number(10.0)
    """reward of 1 ESTOI (HEAR's recipe)"""
    diversity_weight: float = number(0.0)
    """bonus for a change of method (HEAR: 0.1)"""
    quality_interval: int = number(1, 0)
    """steps between STOI measurements, 0: the end (HEAR)"""
    quality_stride: int = number(4, 1)
    """STOI segments in training: every n-th"""

    @property
    def task(self) -> dict[str, float]:
        """These settings alone, of a larger config."""
        return {name: getattr(self, name) for name in Reward.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Reward):
    """Train a policy; the best on all validation clips is kept."""

    algo: Algo = "ppo"
    """algorithm"""
    features: Path = TRAIN
    """training table of `features`"""
    validation_features: Path | None = None
    """validation clips (default: beside the training table)"""
    run: Path | None = None
    """folder to write (default: runs/denoise/<algo>)"""
    overwrite: bool = False
    """replace an earlier run"""
    resume: bool = False
    """go on with a stopped run"""
    total_steps: int = number(50_000, 1)
    """denoisers applied in training (HEAR's recipe)"""
    num_envs: int = number(32, 1)
    """clips denoised together"""
    eval_every: int = number(5_000, 1)
    """steps between validations"""
    scaler_steps: int = number(1024, 1)
    """random steps that set the feature scale"""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the layers (HEAR)"""
    learning_rate: float = number(3e-4, above=0, high=1)
    """learning rate, Adam (HEAR)"""
    batch_size: int = number(256, 1)
    """transitions in a gradient step (HEAR)"""
    gamma: float = number(0.99, 0, 1)
    """discount (HEAR)"""
    rollout_steps: int = number(2048, 1)
    """PPO: steps of a rollout, all lanes (HEAR)"""
    update_epochs: int = number(10, 1)
    """PPO: passes over a rollout (HEAR)"""
    clip_range: float = number(0.2, above=0, high=1)
    """PPO: clipping of the ratio (HEAR)"""
    entropy_coef: float = number(0.01, 0)
    """PPO: entropy bonus (HEAR: 0)"""
    replay: int = number(200_000, 1)
    """SAC, TD3: transitions kept (HEAR)"""
    random_steps: int = number(2000, 0)
    """SAC, TD3: random steps before learning (HEAR)"""
    tau: float = number(0.005, above=0, high=1)
    """SAC, TD3: step of the target network (HEAR)"""
    updates_per_step: float = number(1.0, above=0)
    """SAC, TD3: gradient steps for each step (HEAR)"""
    exploration: float = number(0.3, 0)
    """TD3: standard deviation of the action noise (HEAR: 0.1)"""
    seed: int = number(0, 0)
    """weights, exploration, order of clips"""
    device: Device = "cpu"
    """device of the networks"""
    wandb_project: str | None = None
    """project of Weights & Biases"""

    def __post_init__(self) -> None:
        super().__post_init__()
        total, rollout, few = self.total_steps, self.rollout_steps, self.random_steps
        if not self.algo.startswith("ppo"):
            require(total > few, "total-steps", f"above --random-steps {few}", total)
            return
        for name in ("num_envs", "batch_size"):  # stable-baselines3 only warns
            divisor = getattr(self, name)
            rule = f"a multiple of --{name.replace('_', '-')} {divisor}"
            require(rollout % divisor == 0, "rollout-steps", rule, rollout)
        require(self.batch_size > 1, "batch-size", "at least 2", self.batch_size)
        require(total >= rollout, "total-steps", f"at least one rollout, {rollout}", total)

    @property
    def folder(self) -> Path:
        return self.run or RUNS / self.algo

    @property
    def validation(self) -> Path:
        beside = self.features.parent / ".." / "validation" / self.features.name
        return self.validation_features or Path(os.path.normpath(beside))


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Reward):
    """Baselines tuned on training clips: the best constant chain, and noisereduce."""

    features: Path = TRAIN
    """training table of `features`"""
    out: Path = RUNS / "tune.json"
    """file to write"""
    clips: int = number(96, 1)
    """clips to tune on"""
    beam: int = number(2, 1)
    """chains continued at each step"""
    seed: int = number(0, 0)
    """seed of the clips"""


@dataclass(frozen=True, kw_only=True)
class InferConfig(Checked):
    """Denoise a recording with one policy or several."""

    checkpoint: tuple[Path, ...] = (RUNS / "ppo",)
    """run folders, or their model.zip"""
    input: Path = Path("noisy.wav")
    """recording"""
    output: Path = Path("denoised.wav")
    """file to write"""
    clean: Path | None = None
    """the same without noise, for SI-SDR, STOI and ESTOI"""
    max_steps: int | None = number(None, 1)
    """denoisers, at most (default: as in training)"""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Checked):
    """Train every combination of a JSON file's settings; finished ones are skipped."""

    config: Path = Path("experiments.json")
    """JSON file, see studies/denoise/README.md"""
    features: Path | None = None
    """training clips, if base_args names none"""
    output_root: Path = Path("runs/denoise-experiments")
    """folder to write"""
    wandb_project: str | None = None
    """project of Weights & Biases"""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig(Checked):
    """Compare policies with their baselines on a split, all clips of it."""

    checkpoint: tuple[str, ...] = ()
    """rows: PATH, NAME=PATH or NAME=PATH,PATH"""
    meta: Path = Path("data/denoise/test/meta.csv")
    """table of `mix`"""
    tuned: Path = RUNS / "tune.json"
    """baselines of `tune`"""
    sample_size: int = number(0, 0)
    """clips drawn (0: all)"""
    snr_db: tuple[float, ...] = ()
    """ratios of the clips, dB (default: all)"""
    seed: int = number(0, 0)
    """random policy, draw of clips"""
    out: Path = RUNS / "metrics"
    """folder to write"""
    csv: Path | None = None
    """a row a clip and system (default: metrics.csv in --out)"""
    plot_dir: Path | None = None
    """folder of box plots and learning curves"""
    output_dir: Path | None = None
    """folder of audio samples"""


@dataclass(frozen=True, kw_only=True)
class CrossConfig(Reward):
    """Cross-validation over speakers and folds of the noise."""

    features: Path = Path("data/denoise-cells/features.csv")
    """cells, a table of `features`"""
    out: Path = Path("runs/denoise-cross")
    """folder to write"""
    agents: tuple[Algo, ...] = ("ppo", "ppo-separate", "sac", "td3")
    """policies trained"""
    rounds: Literal["all", "diagonal"] = "all"
    """every speaker with every fold, or once"""
    total_steps: int = number(4096, 1)
    """denoisers applied in each training"""
    eval_every: int = number(1024, 1)
    """steps between points of the figure"""
    kept: int = number(8, 1, 48)
    """chains of the supervised selector"""
    seed: int = number(0, 0)
    """seed of the first round"""
    present: bool = False
    """train nothing, only make the table"""


COMMANDS = {
    "mix": MixConfig,
    "features": FeaturesConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "sweep": SweepConfig,
    "cross": CrossConfig,
    "infer": InferConfig,
    "metrics": MetricsConfig,
}
