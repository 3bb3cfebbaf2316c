"""Does reinforcement learning choose denoisers better than a constant chain? The study's commands.

Run:    python -m studies.denoise mix        # noisy speech; without folders it is synthesised
        python -m studies.denoise features   # what the policy sees, what the noisy clips score
        python -m studies.denoise train --algo ppo
        python -m studies.denoise tune       # the constant chain and the other opponents
        python -m studies.denoise metrics --checkpoint runs/denoise/ppo
        python -m studies.denoise infer --input noisy.wav --output denoised.wav
        python -m studies.denoise sweep --config experiments.json
Reads:  data/denoise/<split>/{meta.csv, features.csv}, runs/denoise/*
Writes: runs/denoise/<name>/{model.zip, agent.json, metrics.json, history.csv}; others: --help
Shapes: none
Next:   table.py

Needs requirements-studies.txt. README.md has the formulas, the tables and the verdict.
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
import torch

from config import (
    Checked,
    Device,
    InputError,
    from_dict,
    needed,
    number,
    parse,
    require,
    to_dict,
    whole,
    write_text,
)
from studies.denoise import data, environment
from studies.denoise.data import MEASURES, FeaturesConfig, MixConfig, write_csv
from studies.denoise.environment import Agent, Algo, Chain, Corpus, Reward, load_agent, load_corpus

RUNS = Path("runs/denoise")
TRAIN = Path("data/denoise/train/features.csv")
NOISEREDUCE = [(steady, share) for steady in (False, True) for share in (0.3, 0.5, 0.7, 0.85, 1.0)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Reward):
    """Train a policy; what is kept is the best on all validation clips."""

    algo: Algo = "ppo"
    """of stable-baselines3"""
    features: Path = TRAIN
    """training clips, a table of `features`"""
    validation_features: Path | None = None
    """validation clips (default: those of the training table's neighbour, ../validation)"""
    run: Path | None = None
    """folder to write (default: runs/denoise/<algo>)"""
    overwrite: bool = False
    """replace an earlier run"""
    total_steps: int = number(50_000, 1)
    """denoisers to apply in training, all lanes together (HEAR's recipe; its default is 200,000)"""
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
        whole_rollout = self.rollout_steps % self.num_envs == 0
        rule = f"a multiple of --num-envs {self.num_envs}"
        require(self.algo != "ppo" or whole_rollout, "rollout-steps", rule, self.rollout_steps)
        enough = self.algo == "ppo" or self.total_steps > self.random_steps
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
    """run folders; with several, each writes <output>__<name of its folder>.wav"""
    input: Path = Path("noisy.wav")
    """recording, any rate and number of channels (it is mixed to mono at the policy's rate)"""
    output: Path = Path("denoised.wav")
    """file to write, at the policy's rate"""
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
    """run folders: PATH, NAME=PATH, or NAME=PATH,PATH for the seeds of one row"""
    meta: Path = Path("data/denoise/test/meta.csv")
    """table of `mix`"""
    tuned: Path = RUNS / "tune.json"
    """opponents of `tune`; without the file there is no constant chain and no oracle"""
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


# ---------------------------------------------------------------------------- train


class Watch(NamedTuple):
    """What is noted at each look at the validation clips."""

    step: int
    seconds: float  # of CPU
    steps_per_s: float  # a second of CPU, environment and learning together, looks left out
    train_return: float  # mean of the episodes since the last look
    validation_gain: float  # mean return without diversity, greedy
    si_sdr: float
    stoi: float
    estoi: float


def start_wandb(cfg: TrainConfig) -> Callable[[dict[str, float], int], None]:
    """Logging to Weights & Biases, or nothing where it is not wanted."""
    if cfg.wandb_project is None:
        return lambda values, step: None
    try:
        import wandb
    except ModuleNotFoundError:
        raise InputError("--wandb-project needs wandb; run: pip install wandb") from None
    wandb.init(project=cfg.wandb_project, name=cfg.folder.name, config=to_dict(cfg))
    return lambda values, step: wandb.log(values, step=step)


def train(cfg: TrainConfig) -> None:
    """Train one policy."""
    if (cfg.folder / "metrics.json").exists() and not cfg.overwrite:
        raise InputError(f"{cfg.folder} holds a run; give --overwrite or another --run")
    needed("stable_baselines3", __file__)
    log = start_wandb(cfg)
    corpus, validation = load_corpus(cfg.features), load_corpus(cfg.validation)
    check_apart(cfg, corpus, validation)
    scaler = environment.fit_scaler(corpus, cfg, cfg.scaler_steps, cfg.seed)
    envs = environment.DenoiseVectorEnv(corpus, cfg, cfg.num_envs, cfg.algo, scaler)
    model = environment.make_model(cfg, envs)
    agent = Agent(cfg.algo, model.policy, scaler, corpus.sample_rate, cfg)
    shutil.rmtree(cfg.folder, ignore_errors=True)
    history: list[Watch] = []
    about = {"hidden": [*cfg.hidden], "train_table": str(cfg.features)}
    state = {"looking": 0.0, "began": time.process_time(), "next": cfg.eval_every}

    def look(step: int) -> None:
        began = time.process_time()
        model.policy.set_training_mode(False)
        found = environment.evaluate(validation, cfg, agent.choose)
        learned = began - state["began"] - state["looking"]
        recent = envs.finished or [math.nan]
        watch = Watch(
            step,
            round(learned, 1),
            round(step / max(learned, 1e-9), 1),
            float(np.mean(recent)),
            float(found.gain.mean()),
            *(float(value) for value in np.nanmean(found.scores, axis=0)),
        )
        envs.finished = []
        if watch.validation_gain > max([w.validation_gain for w in history], default=-math.inf):
            environment.save_agent(cfg.folder, model, agent, about | {"step": step})
        history.append(watch)
        write_csv(cfg.folder / "history.csv", Watch._fields, [w._asdict() for w in history])
        log(watch._asdict(), step)
        print(
            f"{step:7d} steps, {watch.steps_per_s:6.1f} a second: training return"
            f" {watch.train_return:+.3f}, validation gain {watch.validation_gain:+.4f},"
            f" SI-SDR {watch.si_sdr:.2f} dB",
            flush=True,
        )
        state["looking"] += time.process_time() - began

    def each_step(*_: Any) -> bool:
        if model.num_timesteps >= state["next"]:
            state["next"] += cfg.eval_every
            look(model.num_timesteps)
        return model.num_timesteps < cfg.total_steps

    model.learn(cfg.total_steps, callback=each_step)
    if not history or history[-1].step < model.num_timesteps:
        look(model.num_timesteps)
    best = max(history, key=lambda watch: watch.validation_gain)
    metrics = {
        "algo": cfg.algo,
        "best": best._asdict(),
        "steps": model.num_timesteps,
        "gradient_steps": int(model._n_updates),
        "steps_per_s": history[-1].steps_per_s,
        "args": to_dict(cfg),
    }
    write_text(cfg.folder / "metrics.json", json.dumps(metrics, indent=1))
    print(f"best: step {best.step}, validation gain {best.validation_gain:+.4f}; {cfg.folder}")


def check_apart(cfg: TrainConfig, corpus: Corpus, validation: Corpus) -> None:
    """InputError where training and validation share a speaker or a noise recording."""
    if corpus.sample_rate != validation.sample_rate:
        raise InputError(
            f"{cfg.validation}: has {validation.sample_rate} Hz, training {corpus.sample_rate} Hz"
        )
    for name in ("speaker_id", "noise_source"):
        both = {clip.row.get(name) for clip in corpus.clips}
        both &= {clip.row.get(name) for clip in validation.clips}
        shared = sorted(value for value in both if value)
        if shared:
            where = f"{cfg.features} too; use splits of `mix`"
            raise InputError(f"{cfg.validation}: {name} {shared[0]} is in {where}")


# ---------------------------------------------------------------------------- tune


def tune(cfg: TuneConfig) -> None:
    """Write the constant chain and the setting of noisereduce that gain most on training clips."""
    corpus = load_corpus(cfg.features)
    order = np.random.default_rng(cfg.seed).permutation(len(corpus.clips))
    few = subset(corpus, order[: cfg.clips])
    began = time.perf_counter()
    chain, _ = environment.tune_constant(few, cfg, cfg.beam, print)
    many = subset(corpus, order[: 4 * cfg.clips])
    finalists = [chain[:length] for length in range(len(chain) + 1)]
    scored = [
        float(environment.evaluate(many, cfg, environment.constant(one)).gain.mean())
        for one in finalists
    ]
    chain = finalists[int(np.argmax(scored))]
    print(f"constant chain: {max(scored):+.4f}  {environment.told(chain)}")
    reduced = {}
    for steady, share in NOISEREDUCE:
        waves = environment.noisereduce_waves(few, steady, share)
        scores = data.measure(few.clips, waves, few.sample_rate)
        gains = environment.worth(scores, cfg) - environment.worth(few.scores, cfg)
        reduced[steady, share] = float(gains.mean())
        print(f"noisereduce stationary={steady} prop_decrease={share}: {gains.mean():+.4f}")
    steady, share = max(reduced, key=reduced.get)
    content = {
        "chain": chain,
        "told": environment.told(chain),
        "gain": max(scored),
        "clips": len(many.clips),
        "noisereduce": {"stationary": steady, "prop_decrease": share},
        "task": {name: getattr(cfg, name) for name in Reward.__dataclass_fields__},
        "seconds": round(time.perf_counter() - began, 1),
    }
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(cfg.out, json.dumps(content, indent=1))
    print(f"opponents: {cfg.out}")


def subset(corpus: Corpus, index: np.ndarray) -> Corpus:
    """Some clips of a corpus."""
    clips = [corpus.clips[i] for i in index]
    return Corpus(clips, corpus.seen[index], corpus.scores[index], corpus.sample_rate)


# ---------------------------------------------------------------------------- infer


def infer(cfg: InferConfig) -> None:
    """Denoise one recording; the chosen chain is printed."""
    names = [path.name for path in cfg.checkpoint]
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint: two folders have the same name: {', '.join(names)}")
    agents = [load_agent(path) for path in cfg.checkpoint]
    cfg.output.parent.mkdir(parents=True, exist_ok=True)
    for name, agent in zip(names, agents, strict=True):
        noisy = data.read_wave(cfg.input, agent.sample_rate)
        most = cfg.max_steps or agent.task.max_steps
        (wave,), (chain,) = environment.run_chains([noisy], agent.sample_rate, most, agent.choose)
        path = cfg.output
        if len(agents) > 1:
            path = path.with_name(f"{path.stem}__{name}{path.suffix}")
        with whole(path) as temporary, open(temporary, "wb") as stream:
            kind = path.suffix[1:] or "wav"
            soundfile.write(stream, wave, agent.sample_rate, subtype="PCM_16", format=kind)
        print(f"{name}: {environment.told(chain)}\n{path}")
        if cfg.clean:
            print_scores(cfg, agent, noisy, wave)


def print_scores(cfg: InferConfig, agent: Agent, noisy: np.ndarray, wave: np.ndarray) -> None:
    """SI-SDR, STOI, ESTOI before and after."""
    from studies.denoise.denoisers import batch_of, pystoi_pair, si_sdr

    clean = data.read_wave(cfg.clean, agent.sample_rate)
    if len(clean) != len(noisy):
        raise InputError(f"{cfg.clean}: has {len(clean)} samples, the noisy clip {len(noisy)}")
    for name, audio in (("noisy", noisy), ("denoised", wave)):
        value = float(si_sdr(batch_of([clean]).audio, batch_of([audio]))[0])
        stoi, estoi = pystoi_pair(clean, audio, agent.sample_rate)
        print(f"  {name:9s} SI-SDR {value:6.2f} dB  STOI {stoi:.3f}  ESTOI {estoi:.3f}")


# ---------------------------------------------------------------------------- sweep


class Planned(NamedTuple):
    """One training of a sweep."""

    name: str
    folder: Path
    swept: dict[str, Any]
    cfg: TrainConfig


def text_of(value: Any) -> str:
    """A setting as part of a folder's name, without = and comma; 0.00003 stays 3e-05."""
    if isinstance(value, (list, tuple)):
        return "x".join(text_of(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "-")


def plan(cfg: SweepConfig) -> list[Planned]:
    """All trainings of the file, checked before the first one starts."""
    try:
        experiments = json.loads(cfg.config.read_text(encoding="utf-8"))["experiments"]
        names = [one["name"] for one in experiments]
    except FileNotFoundError:
        raise InputError(f"--config {cfg.config}: not found") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--config {cfg.config}: not a list of experiments ({error!r})") from None
    unknown = sorted(set(cfg.only) - set(names))
    if unknown:
        raise InputError(f"--only {unknown[0]}: the file has {', '.join(names)}")
    if len(set(names)) < len(names):
        raise InputError(f"--config {cfg.config}: two experiments have the same name")
    planned = []
    for one in experiments:
        if cfg.only and one["name"] not in cfg.only:
            continue
        base = {"algo": one.get("algo", "ppo"), **one.get("base_args", {})}
        if cfg.features:
            base.setdefault("features", str(cfg.features))
        if cfg.wandb_project:
            base["wandb_project"] = cfg.wandb_project
        grid = one.get("sweep_params", {})
        for index, values in enumerate(itertools.product(*grid.values())):
            swept = dict(zip(grid, values, strict=True))
            tag = "_".join(f"{key}-{text_of(value)}" for key, value in swept.items()) or "base"
            folder = cfg.output_root / one["name"] / f"{index:02d}_{tag}"
            given = {**base, **swept, "run": str(folder), "overwrite": True}
            try:
                settings = from_dict(TrainConfig, to_dict(TrainConfig()) | given)
            except InputError as error:
                raise InputError(f"--config {cfg.config}: {one['name']}: {error}") from None
            planned.append(Planned(one["name"], folder, swept, settings))
    return planned


def flags_of(cfg: TrainConfig) -> list[str]:
    """Command line of a training."""
    words: list[str] = []
    for spec in fields(cfg):
        value = getattr(cfg, spec.name)
        flag = f"--{spec.name.replace('_', '-')}"
        if value is None or value is False:
            continue
        words.append(flag)
        if value is not True:
            words += [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    return words


def is_finished(one: Planned) -> bool:
    """Whether its folder holds a run with exactly these settings."""
    path = one.folder / "metrics.json"
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8"))["args"] == json.loads(
        json.dumps(to_dict(one.cfg))
    )


def sweep(cfg: SweepConfig) -> int:
    """One process after the other; a failure does not stop the rest. Exit code 1 if any did."""
    planned = plan(cfg)
    rows: list[dict[str, Any]] = []
    cfg.output_root.mkdir(parents=True, exist_ok=True)
    for place, one in enumerate(planned, 1):
        print(f"[{place}/{len(planned)}] {one.folder}", flush=True)
        if not is_finished(one):
            one.folder.mkdir(parents=True, exist_ok=True)
            log = one.folder.with_name(one.folder.name + ".log")
            with open(log, "w", encoding="utf-8") as stream:
                command = [sys.executable, "-m", "studies.denoise", "train", *flags_of(one.cfg)]
                done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT)
            if done.returncode:
                print(f"  failed with exit code {done.returncode}; see {log}")
        row = {"experiment": one.name, "run": one.folder.name, "algo": one.cfg.algo, **one.swept}
        row["finished"] = is_finished(one)
        if row["finished"]:
            metrics = json.loads((one.folder / "metrics.json").read_text(encoding="utf-8"))
            row |= {name: metrics["best"][name] for name in ("validation_gain", *MEASURES)}
            row["steps_per_s"] = metrics["steps_per_s"]
            print(f"  validation gain {row['validation_gain']:+.4f}")
        rows.append(row)
        columns = tuple(dict.fromkeys(key for row in rows for key in row))
        write_csv(cfg.output_root / "summary.csv", columns, rows)
    print(f"summary: {cfg.output_root / 'summary.csv'}")
    return int(not all(row["finished"] for row in rows))


# ---------------------------------------------------------------------------- all commands


def read_tuned(path: Path) -> tuple[Chain, dict[str, Any], Reward] | None:
    """What `tune` wrote, or None where there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        chain = [(int(method), tuple(params)) for method, params in content["chain"]]
        return chain, content["noisereduce"], Reward(**content["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a file of `tune` ({error!r}); run it again") from None


def main(args: list[str] | None = None) -> int | None:
    """The command line: a command and its flags."""
    return run(parse(NAMES, args))


def run(cfg: Any) -> int | None:
    """The command that was given."""
    torch.set_num_threads(1)  # small tensors are slower on two
    if isinstance(cfg, MetricsConfig):
        from studies.denoise import table  # matplotlib, pystoi, noisereduce

        return table.metrics(cfg, read_tuned(cfg.tuned))
    return COMMANDS[type(cfg)](cfg)


COMMANDS = {
    MixConfig: data.mix,
    FeaturesConfig: data.write_features,
    TrainConfig: train,
    TuneConfig: tune,
    SweepConfig: sweep,
    InferConfig: infer,
}
NAMES = {
    "mix": MixConfig,
    "features": FeaturesConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "sweep": SweepConfig,
    "infer": InferConfig,
    "metrics": MetricsConfig,
}
