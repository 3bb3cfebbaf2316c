"""Commands' settings of the denoising study.

Run:    not a script; see commands.py
Shapes: none
Next:   training.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import Checked, Device, number, require
from studies.denoise.environment import Algo, Reward

RUNS = Path("runs/denoise")
TRAIN = Path("data/denoise/train/features.csv")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Reward):
    """Train a policy; what is kept is the best on all validation clips."""

    algo: Algo = "ppo"
    """ppo: one choice of 48 settings or stop; ppo-separate: method and levels, each for itself"""
    features: Path = TRAIN
    """training clips, a table of `features`"""
    validation_features: Path | None = None
    """validation clips (default: those of the training table's neighbour, ../validation)"""
    run: Path | None = None
    """folder to write (default: runs/denoise/<algo>)"""
    overwrite: bool = False
    """replace an earlier run"""
    resume: bool = False
    """go on with a stopped run; the result is that of an uninterrupted one"""
    total_steps: int = number(50_000, 1)
    """denoisers to apply in training, all lanes together, for PPO rounded up to whole rollouts
    (HEAR's recipe; its default is 200,000)"""
    num_envs: int = number(32, 1)
    """clips that are denoised together"""
    eval_every: int = number(5_000, 1)
    """steps from one look at the validation clips to the next"""
    scaler_steps: int = number(1024, 1)
    """steps of random chains on training clips, from which the observations are normalised"""
    hidden: tuple[int, ...] = (256, 256)
    """width of the networks' layers (HEAR)"""
    learning_rate: float = number(3e-4, above=0, high=1)
    """Adam, actor and critic (HEAR)"""
    batch_size: int = number(256, 1)
    """transitions of a gradient step (HEAR)"""
    gamma: float = number(0.99, 0, 1)
    """discount (HEAR)"""
    rollout_steps: int = number(2048, 1)
    """PPO: steps between two updates, all lanes together (HEAR)"""
    update_epochs: int = number(10, 1)
    """PPO: passes over a rollout (HEAR)"""
    clip_range: float = number(0.2, above=0, high=1)
    """PPO: clipping of the ratio (HEAR)"""
    entropy_coef: float = number(0.01, 0)
    """PPO: bonus for indecision (HEAR: 0)"""
    replay: int = number(200_000, 1)
    """SAC, TD3: transitions kept (HEAR)"""
    random_steps: int = number(2000, 0)
    """SAC, TD3: steps at random before learning begins (HEAR)"""
    tau: float = number(0.005, above=0, high=1)
    """SAC, TD3: share of the target network that is renewed in a gradient step (HEAR)"""
    updates_per_step: float = number(1.0, above=0)
    """SAC, TD3: gradient steps for each step of a lane (HEAR: 1)"""
    exploration: float = number(0.3, 0)
    """TD3: standard deviation of the noise on actions (HEAR: 0.1, which rarely changes a choice)"""
    seed: int = number(0, 0)
    """weights, exploration, order of the clips"""
    device: Device = "cpu"
    """of the networks; the denoisers run on the CPU"""
    wandb_project: str | None = None
    """also log to this project of Weights & Biases; needs pip install wandb"""

    def __post_init__(self) -> None:
        super().__post_init__()
        ppo = self.algo.startswith("ppo")
        for name in ("num_envs", "batch_size"):  # stable-baselines3 only warns
            divisor = getattr(self, name)
            rule = f"a multiple of --{name.replace('_', '-')} {divisor}"
            require(
                not ppo or self.rollout_steps % divisor == 0,
                "rollout-steps",
                rule,
                self.rollout_steps,
            )
        require(not ppo or self.batch_size > 1, "batch-size", "at least 2", self.batch_size)
        enough = ppo or self.total_steps > self.random_steps
        require(
            enough, "total-steps", f"above --random-steps {self.random_steps}", self.total_steps
        )

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.run or RUNS / self.algo

    @property
    def validation(self) -> Path:
        """Table of the validation clips."""
        return self.validation_features or self.features.parent.with_name("validation") / (
            self.features.name
        )


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Reward):
    """Opponents tuned on training clips: the best constant chain, and noisereduce."""

    features: Path = TRAIN
    """training clips, a table of `features`"""
    out: Path = RUNS / "tune.json"
    """file to write"""
    clips: int = number(96, 1)
    """clips to tune on, drawn by the seed; the finalists are compared on four times as many"""
    beam: int = number(2, 1)
    """chains that are continued at each step"""
    seed: int = number(0, 0)
    """which clips"""


@dataclass(frozen=True, kw_only=True)
class InferConfig(Checked):
    """Denoise a recording with one policy or several."""

    checkpoint: tuple[Path, ...] = (RUNS / "ppo",)
    """run folders or their model.zip; of several, each writes <output>__<name of its folder>.wav"""
    input: Path = Path("noisy.wav")
    """recording of any rate; several channels are mixed to one"""
    output: Path = Path("denoised.wav")
    """file to write, at the input's rate"""
    clean: Path | None = None
    """the same without noise: SI-SDR, STOI and ESTOI are then printed"""
    max_steps: int | None = number(None, 1)
    """denoisers, at most (default: as in training)"""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Checked):
    """Train every combination of a JSON file's settings; finished ones are skipped."""

    config: Path = Path("experiments.json")
    """{"experiments": [{"name", "algo", "base_args": {..}, "sweep_params": {key: [values]}}]};
    keys are the flags of `train` with _ for -"""
    features: Path | None = None
    """training clips, where base_args do not name them"""
    output_root: Path = Path("runs/denoise-experiments")
    """folder for <name>/<number>_<settings>/ and summary.csv"""
    only: tuple[str, ...] = ()
    """names of experiments to run (default: all)"""
    wandb_project: str | None = None
    """passed on to `train`"""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig(Checked):
    """Compare policies with their opponents on a split, all clips of it."""

    checkpoint: tuple[str, ...] = ()
    """run folders or model.zip: PATH, NAME=PATH, or NAME=PATH,PATH for the seeds of one row"""
    meta: Path = Path("data/denoise/test/meta.csv")
    """table of `mix`"""
    tuned: Path = RUNS / "tune.json"
    """opponents of `tune`; without the file, noisereduce with its library's defaults, and neither
    constant chain nor oracle"""
    opponents: tuple[Literal["constant", "random", "noisereduce", "oracle"], ...] = (
        "constant",
        "random",
        "noisereduce",
    )
    """beside the noisy clips; oracle searches a chain for each clip, with its clean version known,
    and takes about a second a clip"""
    sample_size: int = number(0, 0)
    """only so many clips, drawn by the seed; 0 is all"""
    snr_db: tuple[float, ...] = ()
    """only clips of these ratios"""
    seed: int = number(0, 0)
    """random policy, searches, bootstrap, --sample-size"""
    tries: int = number(96, 8)
    """oracle: candidates for each step"""
    beam: int = number(3, 1)
    """oracle: chains that are continued"""
    out: Path = RUNS / "metrics"
    """folder for table.md, results.json; what was measured is kept there for the next call"""
    csv: Path | None = None
    """a row for each clip and entrant (default: metrics.csv in --out)"""
    plot_dir: Path | None = None
    """folder for box plots and learning curves"""
    output_dir: Path | None = None
    """folder for clean, noisy and denoised audio of --samples clips, and samples.csv"""
    samples: int = number(3, 0)
    """clips to write, spread from the worst gain to the best of the first checkpoint; 0 is all"""


@dataclass(frozen=True, kw_only=True)
class CrossConfig(Reward):
    """Cross-validation: every speaker and every fold of the noise is once what nobody has heard."""

    features: Path = Path("data/denoise-cells/features.csv")
    """clips of `mix --cells`, a table of `features`"""
    out: Path = Path("runs/denoise-cross")
    """folder for rounds, table and figure; what is finished is not done again"""
    agents: tuple[Algo, ...] = ("ppo", "ppo-separate", "sac", "td3")
    """who is trained; none: the yardsticks alone"""
    rounds: Literal["all", "diagonal"] = "all"
    """every speaker with every fold, or every speaker once, with another fold each"""
    total_steps: int = number(4096, 1)
    """denoisers to apply in each training"""
    eval_every: int = number(1024, 1)
    """steps from one look at the held-out clips to the next; for the figure, nothing is chosen"""
    kept: int = number(8, 1, 48)
    """chains that the supervised selector chooses from"""
    seed: int = number(0, 0)
    """of the first round's training; each round has the next one"""
    present: bool = False
    """train nothing: the table of what is there"""
