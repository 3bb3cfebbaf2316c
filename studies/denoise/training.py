"""Training a policy of the denoising study: looks at the validation clips, stopping, resuming.

Run:    python -m studies.denoise train [--resume]
Reads:  the features.csv of training and validation clips, <run>/last.pt
Writes: <run>/{model.zip, agent.json, metrics.json, history.csv}, <run>/last.pt until it is finished
Shapes: L lanes, D numbers of an observation

A run can stop between two updates only: after PPO's update on a rollout, after a tick of SAC or
TD3. There it is looked at and saved, so that a resumed run equals an uninterrupted one bit for bit.
A run is stopped there too, saved without a look.
"""

import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from core.command import needed
from core.errors import InputError
from core.files import Kind, contents, keep_apart, own_folder, remove_ours
from core.settings import to_dict
from core.stored import write_json
from policy.runfolder import (
    catch_signals,
    differences,
    open_wandb,
    read_checkpoint,
    resume_command,
    write_checkpoint,
)
from studies.denoise import environment
from studies.denoise.data import write_csv
from studies.denoise.environment import SCRIPT, Agent, Corpus, DenoiseVectorEnv, load_corpus
from studies.denoise.settings import TrainConfig


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


def plain(value: float) -> float | None:
    """A number for JSON, which has none for what is not defined."""
    return None if math.isnan(value) else value


def learn(
    cfg: TrainConfig,
    envs: DenoiseVectorEnv,
    model: Any,
    look: Callable[[int], None],
    ends: Callable[[], bool] = lambda: False,
) -> bool:
    """Train with a `look(step)` every so many steps; `ends()`, asked between two updates, ends it
    earlier. Returns whether it came to its end."""
    callbacks = needed("stable_baselines3.common.callbacks", SCRIPT)
    begin, total, every = model.num_timesteps, cfg.total_steps, cfg.eval_every

    class Between(callbacks.BaseCallback):
        """Looks before a rollout; of SAC and TD3 each tick is one."""

        due = (begin // every + 1) * every
        stopped = False

        def _on_rollout_start(self) -> None:
            if model.num_timesteps >= self.due:
                self.due = (model.num_timesteps // every + 1) * every
                look(model.num_timesteps)
            self.stopped = model.num_timesteps > begin and ends()

        def _on_step(self) -> bool:
            bar.update(envs.num_envs)
            return not self.stopped

    between = Between()
    with tqdm(total=total, initial=begin, desc=cfg.algo, unit="step", smoothing=0.05) as bar:
        model.learn(total - begin, callback=between, reset_num_timesteps=begin == 0)
    return not between.stopped


REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def generators(model: Any, envs: DenoiseVectorEnv) -> dict[str, np.random.Generator]:
    """What draws the order of clips and random actions."""
    return {"lanes": envs.np_random, "actions": model.action_space.np_random}


def snapshot(model: Any, envs: DenoiseVectorEnv) -> dict[str, Any]:
    """Everything that the next step depends on, as tensors, numbers and text."""
    _, variables = model._get_torch_save_params()
    lanes, random = envs.lanes, np.random.get_state()  # noqa: NPY002 (stable-baselines3 draws from it)
    states = {name: rng.bit_generator.state for name, rng in generators(model, envs).items()}
    content = {
        "weights": model.get_parameters(),
        "variables": {name: getattr(model, name).detach() for name in variables},
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": model._episode_num,
        "seen": torch.from_numpy(model._last_obs),
        "starts": torch.from_numpy(np.asarray(model._last_episode_starts, bool)),
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(random[1].astype(np.int64)), *random[2:]],
        "generators": {name: json.dumps(state) for name, state in states.items()},
        "lanes": {name: torch.from_numpy(value) for name, value in lanes.arrays().items()},
        "queue": lanes.queue,
        "finished": lanes.finished,
    }
    if (replay := getattr(model, "replay_buffer", None)) is not None:
        arrays = {name: getattr(replay, name)[: replay.size()] for name in REPLAY}
        content["replay"] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        content["replay"] |= {"pos": replay.pos, "full": replay.full}
    return content


def restore(model: Any, envs: DenoiseVectorEnv, content: dict[str, Any]) -> None:
    """Inverse of `snapshot`, on a new model and new lanes of the same settings."""
    model.set_parameters(content["weights"])
    for name, value in content["variables"].items():
        getattr(model, name).data.copy_(value)
    model.num_timesteps, model._n_updates = content["steps"], content["updates"]
    model._last_obs = content["seen"].numpy()
    model._last_episode_starts = content["starts"].numpy()
    model._episode_num = content["episodes"]  # of SAC and TD3; PPO has no use for it
    envs.reset(seed=0)
    lanes = envs.lanes
    lanes.restore({name: value.numpy() for name, value in content["lanes"].items()})
    lanes.queue, lanes.finished = list(content["queue"]), list(content["finished"])
    if (replay := getattr(model, "replay_buffer", None)) is not None:
        for name in REPLAY:
            stored = content["replay"][name].numpy()
            getattr(replay, name)[: len(stored)] = stored
        replay.pos, replay.full = content["replay"]["pos"], content["replay"]["full"]
    for name, rng in generators(model, envs).items():
        rng.bit_generator.state = json.loads(content["generators"][name])
    keys, *rest = content["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(content["torch"])


RUN = Kind(
    "run of this study",
    ("model.zip", "agent.json", "metrics.json", "history.csv", "last.pt"),
    (("agent.json", "algo"), ("agent.json", "scaler")),
)
FREE = ("run", "overwrite", "resume", "wandb_project")  # may change on resumption


def settings_of(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that the numbers of a run depend on."""
    return {name: value for name, value in to_dict(cfg).items() if name not in FREE}


def reopen(cfg: TrainConfig) -> dict[str, Any] | None:
    """The state to go on from, None for a new run; InputError where the folder says otherwise."""
    path = cfg.folder / "last.pt"
    if path.exists() and not (cfg.resume or cfg.overwrite):
        raise InputError(f"{cfg.folder} holds a stopped run; give --resume or --overwrite")
    if contents(cfg.folder) and not (path.exists() or cfg.overwrite):
        done = "finished " * (cfg.folder / "metrics.json").exists()
        raise InputError(f"{cfg.folder} holds a {done}run; give --overwrite or another --run")
    if not cfg.resume:
        return None
    if not path.exists():
        raise InputError(f"{path}: not found; leave out --resume")
    content = read_checkpoint(path)
    for flag, was, is_now in differences(json.loads(content["settings"]), settings_of(cfg)):
        raise InputError(f"{path} was made with --{flag} {was}, not {is_now}; leave out --resume")
    return content


def begun(cfg: TrainConfig, corpus: Corpus) -> tuple[DenoiseVectorEnv, Any, Agent]:
    """What a training on these clips begins with: lanes, model, and its policy as an agent."""
    scaler = environment.fit_scaler(corpus, cfg)
    envs = DenoiseVectorEnv(corpus, cfg, cfg.num_envs, cfg.algo, scaler)
    model = environment.make_model(cfg, envs)
    return envs, model, Agent(cfg.algo, model.policy, scaler, corpus.sample_rate, cfg)


def judge(agent: Agent, corpus: Corpus) -> environment.Evaluation:
    """What a policy in training makes of other clips; training goes on as if nobody had looked."""
    agent.policy.set_training_mode(False)
    with torch.random.fork_rng(devices=[]):
        return environment.evaluate(corpus, agent.task, agent.choose)


def train(cfg: TrainConfig) -> int:
    """Train one policy, in a folder that nobody else writes into; the best on the validation clips
    is kept. Returns the exit code, that of a signal where one has stopped it."""
    keep_apart(cfg.folder, [cfg.features.parent, cfg.validation.parent], "--run")
    with own_folder(cfg.folder, RUN, flag="--run"):
        stored = reopen(cfg)
        wandb = open_wandb(cfg.wandb_project, cfg.folder, to_dict(cfg))
        corpus, validation = load_corpus(cfg.features), load_corpus(cfg.validation)
        check_apart(cfg, corpus, validation)
        envs, model, agent = begun(cfg, corpus)
        history: list[Watch] = []
        zero = time.process_time()  # of the CPU time spent, which stands still during looks
        if stored is None:
            remove_ours(cfg.folder, RUN.files)
        else:
            restore(model, envs, stored)
            history = [Watch(int(step), *row) for step, *row in stored["history"]]
            zero -= stored.get("spent") or (history[-1].seconds if history else 0.0)
        received = catch_signals()

        def save() -> None:
            rows = [[float(value) for value in watch] for watch in history]
            content = {"settings": json.dumps(settings_of(cfg)), "history": rows}
            content["spent"] = time.process_time() - zero
            write_checkpoint(cfg.folder / "last.pt", content | snapshot(model, envs))

        def ends() -> bool:
            if received:
                save()
                done = f"stopped and saved after {model.num_timesteps} steps"
                tqdm.write(f"{done}; to go on, run:\n  {resume_command()}")
            return bool(received)

        def look(step: int) -> None:
            nonlocal zero
            began = time.process_time()
            seconds = began - zero
            found, returns = judge(agent, validation), envs.lanes.finished or [math.nan]
            gain, recent = float(found.gain.mean()), float(np.mean(returns))
            envs.lanes.finished = []
            speed, means = step / max(seconds, 1e-9), np.nanmean(found.scores, axis=0).tolist()
            watch = Watch(step, round(seconds, 1), round(speed, 1), recent, gain, *means)
            if gain > max([w.validation_gain for w in history], default=-math.inf):
                about = {"hidden": [*cfg.hidden], "step": step}
                about |= {"train_table": str(cfg.features), "validation_table": str(cfg.validation)}
                environment.save_agent(cfg.folder, model, agent, about)
            history.append(watch)
            write_csv(cfg.folder / "history.csv", Watch._fields, [w._asdict() for w in history])
            if wandb is not None:
                wandb.log(watch._asdict(), step=step)
            tqdm.write(
                f"{step:7d} steps, {watch.steps_per_s:6.1f} a second: training return"
                f" {recent:+.3f}, validation gain {gain:+.4f}, SI-SDR {watch.si_sdr:.2f} dB"
            )
            zero += time.process_time() - began
            save()

        if not learn(cfg, envs, model, look, ends):
            return 128 + received[0]
        if not history or history[-1].step < model.num_timesteps:
            look(model.num_timesteps)
        best = max(history, key=lambda watch: watch.validation_gain)
        metrics = {"algo": cfg.algo, "best": {n: plain(v) for n, v in best._asdict().items()}}
        metrics |= {"steps": model.num_timesteps, "gradient_steps": int(model._n_updates)}
        metrics |= {"steps_per_s": history[-1].steps_per_s, "args": to_dict(cfg)}
        write_json(cfg.folder / "metrics.json", metrics)
        (cfg.folder / "last.pt").unlink()
        print(f"best: step {best.step}, validation gain {best.validation_gain:+.4f}; {cfg.folder}")
        return 0


def check_apart(cfg: TrainConfig, corpus: Corpus, validation: Corpus) -> None:
    """InputError where training and validation share a speaker or a noise recording."""
    here, there = validation.sample_rate, corpus.sample_rate
    if here != there:
        raise InputError(f"{cfg.validation}: has {here} Hz, training {there} Hz")
    for name in ("speaker_id", "noise_source"):
        ours, theirs = ({clip.row.get(name) for clip in one.clips} for one in (corpus, validation))
        if shared := sorted((ours & theirs) - {None, ""}):
            where = f"{cfg.features} too; use splits of `mix`"
            raise InputError(f"{cfg.validation}: {name} {shared[0]} is in {where}")
