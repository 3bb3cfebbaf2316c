"""Choosing denoisers as a game: the environment, the agents of stable-baselines3, their baselines.

Reads:  <split>/features.csv (`python -m studies.denoise features`), <run>/{agent.json, model.zip}
Writes: <run>/{agent.json, model.zip}
Shapes: L lanes, B clips, S samples, D numbers of an observation

An episode is a clip, a step one denoiser on what the last one left:

- observation (D,) float32: `denoisers.features` of the audio as it is now, what was taken away so
  far, the previous method (one of METHODS or none) and its parameters, the share of the steps used;
- action: a method or `stop`, and three parameters. PPO takes one of JOINT, or (`ppo-separate`)
  MultiDiscrete: method, three levels. SAC and TD3 know boxes only: a preference for each choice,
  the highest counts, and the parameters;
- reward: the gain in SI-SDR / reward_scale + weights x gains in STOI and ESTOI + diversity;
- `stop`, or the last of max_steps, terminates the episode.
"""

import io
import itertools
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from core.command import needed
from core.errors import InputError
from core.files import write_together
from core.ranks import pick_device
from core.stored import read_json, write_json
from core.versions import versions
from sed.audio import resample
from studies.denoise import data, denoisers
from studies.denoise.data import MEASURES, NOISY, Clip
from studies.denoise.denoisers import FEATURES, METHODS, PARAMETERS, STOP
from studies.denoise.settings import Algo, Reward, TrainConfig
from studies.gym import LaneVectorEnv, Order, gymnasium, save_model, sb3_env, without_log

SCRIPT = "python -m studies.denoise"  # the program that a message names
CHOICES = (*METHODS, "stop")
MEMORY = ("removed_db", *METHODS, *PARAMETERS, "share_of_steps")
OBSERVATION = len(FEATURES) + len(MEMORY)
LEVELS = 6  # of each parameter, for PPO, the constant chain and the searches: 0, 0.2 .. 1
COARSE = ((0.0, 0.4, 0.8), (0.2, 0.8), (0.4, 1.0))  # strength, depth, tracking of JOINT
# PPO's one discrete choice: every method with every coarse setting, then stop. A draw of method and
# levels one by one (ppo-separate) cannot know that a setting suits one method and not the other.
JOINT: tuple[tuple[int, tuple[float, ...]], ...] = (
    *itertools.product(range(len(METHODS)), itertools.product(*COARSE)),
    (STOP, (0.0,) * len(PARAMETERS)),
)
HURT = 0.05  # of return; a clip that loses more counts as hurt
NOISEREDUCE_FRAME = 1024  # samples; the package takes none that are fewer
CLIPPED = 5.0  # standard deviations an observation may lie from the mean
Chain = list[tuple[int, tuple[float, float, float]]]  # (method, parameters) of each step
# (observations (B, D), step) -> choices (B,), parameters (B, 3)
Chooser = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def worth(scores: np.ndarray, task: Reward) -> np.ndarray:
    """SI-SDR, STOI, ESTOI (..., 3) -> what they are worth; a NaN (too short) is worth nothing."""
    weights = np.array([1 / task.reward_scale, task.stoi_weight, task.estoi_weight])
    return (np.nan_to_num(scores) * weights).sum(-1)


class Corpus(NamedTuple):
    """Clips of a split with what `features` found out about them."""

    clips: list[Clip]
    seen: np.ndarray  # (n, len(FEATURES)) of the noisy clips
    scores: np.ndarray  # (n, 3) SI-SDR, STOI, ESTOI of the noisy clips
    sample_rate: int


def load_corpus(path: Path) -> Corpus:
    """A features.csv with its audio. InputError where it is missing or does not fit the audio."""
    cure = f"run: python -m studies.denoise features --meta {path.with_name('meta.csv')}"
    columns = ("utt_id", "clean_path", "noisy_path", "snr_db", *NOISY, *FEATURES)
    rows = data.read_table(path, columns, cure)
    sample_rate = data.rate_of(path, rows)
    clips = data.read_clips(path, rows, sample_rate)
    try:
        seen = np.array([[float(row[name]) for name in FEATURES] for row in rows], np.float32)
        scores = np.array([[float(row[name]) for name in NOISY] for row in rows])
    except ValueError as error:
        raise InputError(f"{path}: {error}; {cure}") from None
    now = denoisers.features(denoisers.batch_of([clips[0].noisy]), sample_rate)[0].numpy()
    if not np.allclose(now, seen[0], atol=1e-2):
        raise InputError(f"{path}: was made from other audio or by another version; {cure}")
    return Corpus(clips, seen, scores, sample_rate)


class Scaler(NamedTuple):
    """Mean and standard deviation of the observations, from training clips only."""

    mean: np.ndarray  # (D,)
    std: np.ndarray  # (D,)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw observations (B, D) -> those that networks see, float32."""
        return ((raw - self.mean) / self.std).clip(-CLIPPED, CLIPPED).astype(np.float32)


AS_IT_IS = Scaler(np.zeros(OBSERVATION), np.ones(OBSERVATION))


class Memory:
    """What an observation holds beside the audio's features, for B clips."""

    def __init__(self, count: int):
        self.before = np.ones(count)  # RMS of the noisy clip
        self.choice = np.full(count, -1)
        self.params = np.zeros((count, len(PARAMETERS)))
        self.steps = np.zeros(count, int)

    def start(self, index: int, rms: float) -> None:
        """Forget all of one clip."""
        self.before[index], self.choice[index] = rms, -1
        self.params[index], self.steps[index] = 0, 0

    def observe(self, seen: np.ndarray, rms: np.ndarray, max_steps: int) -> np.ndarray:
        """Features (B, F) and RMS (B,) of the audio now -> raw observations (B, D)."""
        removed = 20 * np.log10(np.maximum(self.before, 1e-12) / np.maximum(rms, 1e-12))
        previous = self.choice[:, None] == np.arange(len(METHODS))
        share = self.steps[:, None] / max_steps
        parts = (seen, removed.clip(-60, 60)[:, None], previous, self.params, share)
        return np.concatenate(parts, axis=1).astype(np.float32)


class Lanes(Order):
    """Clips that are denoised together, one step a tick."""

    def __init__(self, corpus: Corpus, task: Reward, num_lanes: int, scaler: Scaler):
        super().__init__(np.arange(len(corpus.clips)))
        longest = max(len(clip.noisy) for clip in corpus.clips)
        self.corpus, self.task, self.scaler = corpus, task, scaler
        self.first = corpus.scores  # of the noisy clips, measured as those of later steps are
        if task.quality_stride > 1 and (task.stoi_weight or task.estoi_weight):
            noisy = [clip.noisy for clip in corpus.clips]
            self.first = data.measure(corpus.clips, noisy, corpus.sample_rate, task.quality_stride)
        self.audio = torch.zeros(num_lanes, longest)
        self.clean = torch.zeros(num_lanes, longest)
        self.lengths = torch.ones(num_lanes, dtype=torch.int64)
        self.seen = np.zeros((num_lanes, len(FEATURES)), np.float32)
        self.scores = np.zeros((num_lanes, len(MEASURES)))
        self.clip = np.zeros(num_lanes, int)
        self.memory = Memory(num_lanes)

    def start(self, lane: int, index: int) -> None:
        """Begin a clip; nothing is computed, as its features and scores are known."""
        clip = self.corpus.clips[index]
        length = len(clip.noisy)
        for buffer, wave in ((self.audio, clip.noisy), (self.clean, clip.clean)):
            buffer[lane] = 0
            buffer[lane, :length] = torch.from_numpy(wave)
        self.lengths[lane], self.clip[lane] = length, index
        self.seen[lane], self.scores[lane] = self.corpus.seen[index], self.first[index]
        self.memory.start(lane, float(np.sqrt(np.mean(clip.noisy**2))))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a lane is beside its audio; with `audio`, all that `restore` needs."""
        mine = {name: getattr(self, name) for name in ("seen", "scores", "clip")}
        memory = {name: getattr(self.memory, name) for name in vars(self.memory)}
        return {name: value.copy() for name, value in (mine | memory).items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on where `arrays` and `audio` were taken."""
        for lane, index in enumerate(arrays["clip"]):
            self.start(lane, int(index))
        self.audio[:] = torch.from_numpy(arrays["audio"])
        for name in ("seen", "scores", "clip"):
            setattr(self, name, arrays[name].copy())
        for name in vars(self.memory):
            setattr(self.memory, name, arrays[name].copy())

    def batch(self) -> denoisers.Batch:
        """The audio as it is now, without the padding that no lane needs."""
        return denoisers.Batch(self.audio[:, : int(self.lengths.max())], self.lengths)

    def states(self) -> np.ndarray:
        """Scaled observations (L, D)."""
        rms = denoisers.level(self.batch()).numpy()[:, 0]
        return self.scaler(self.memory.observe(self.seen, rms, self.task.max_steps))

    def measure(self, over: np.ndarray) -> np.ndarray:
        """Scores (L, 3) of the audio now; where STOI is not due, the last one."""
        task, batch, scores = self.task, self.batch(), self.scores.copy()
        scores[:, 0] = denoisers.si_sdr(self.clean[:, : batch.audio.shape[1]], batch).numpy()
        if task.stoi_weight or task.estoi_weight:
            every = task.quality_interval
            due = over | (every > 0 and self.memory.steps % max(every, 1) == 0)
            rows, rate = np.flatnonzero(due), self.corpus.sample_rate
            clips = [self.corpus.clips[index] for index in self.clip[rows]]
            part = denoisers.Batch(batch.audio[rows], batch.lengths[rows])
            scores[rows, 1:] = data.stoi_of(clips, part, rate, task.quality_stride)
        return scores

    def tick(self, choices: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One denoiser in each lane -> rewards (L,), whether the episode is over (L,)."""
        memory, rate = self.memory, self.corpus.sample_rate
        batch, stop = self.batch(), choices == STOP
        chosen = torch.from_numpy(choices), torch.from_numpy(params).float()
        audio = denoisers.denoise(batch, *chosen, rate)
        self.audio[:, : audio.shape[1]] = audio
        again, first = choices == memory.choice, memory.choice < 0
        diversity = np.where(first | stop, 0.0, np.where(again, -0.5, 1.0))
        memory.steps += 1
        memory.choice, memory.params = choices.copy(), params.copy()
        over = stop | (memory.steps >= self.task.max_steps)
        scores = self.measure(over)
        gain = worth(scores, self.task) - worth(self.scores, self.task)
        self.scores = scores
        self.seen = denoisers.features(self.batch(), rate).numpy()
        return gain + self.task.diversity_weight * diversity, over


def action_space(algo: Algo) -> Any:
    """What stable-baselines3's algorithm can choose from."""
    if algo == "ppo":
        return gymnasium.spaces.Discrete(len(JOINT))
    if algo == "ppo-separate":
        return gymnasium.spaces.MultiDiscrete([len(CHOICES), *[LEVELS] * len(PARAMETERS)])
    return gymnasium.spaces.Box(-1.0, 1.0, (len(CHOICES) + len(PARAMETERS),), np.float32)


def read_actions(algo: Algo, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actions (B, ...) -> choices (B,) and parameters (B, 3), 0..1."""
    if algo == "ppo":
        methods, params = zip(*(JOINT[action] for action in actions), strict=True)
        return np.array(methods), np.array(params)
    if algo == "ppo-separate":
        return actions[:, 0].astype(int), actions[:, 1:] / (LEVELS - 1)
    names = len(CHOICES)
    return actions[:, :names].argmax(1), (actions[:, names:].astype(float) + 1).clip(0, 2) / 2


def observation_space() -> Any:
    """Scaled observations."""
    return gymnasium.spaces.Box(-CLIPPED, CLIPPED, (OBSERVATION,), np.float32)


class DenoiseVectorEnv(LaneVectorEnv):
    """Many clips in lockstep, a batched call a step; an ended lane begins its next clip at once."""

    def __init__(
        self,
        corpus: Corpus,
        task: Reward,
        num_envs: int,
        algo: Algo = "ppo",
        scaler: Scaler = AS_IT_IS,
    ):
        lanes = Lanes(corpus, task, num_envs, scaler)
        super().__init__(lanes, num_envs, observation_space(), action_space(algo))
        self.algo = algo
        self.returns = np.zeros(num_envs)
        self.finished: list[float] = []  # returns of the episodes that ended

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a clip in every lane -> observations (L, D)."""
        self.returns[:] = 0
        return super().reset(**options)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One denoiser in every lane."""
        rewards, over = self.lanes.tick(*read_actions(self.algo, np.asarray(actions)))
        self.returns += rewards
        self.finished += self.returns[over].tolist()
        self.returns[over] = 0
        states, infos = self.next_states(over)
        return states, rewards, over, np.zeros_like(over), infos


def fit_scaler(corpus: Corpus, task: Reward, steps: int, seed: int) -> Scaler:
    """Mean and std of what random chains on these clips show."""
    envs = DenoiseVectorEnv(corpus, task, 32, "ppo-separate")
    rng = np.random.default_rng(seed)
    raw = [envs.reset(seed=seed)[0]]
    highs = envs.single_action_space.nvec
    for _ in range(-(-steps // envs.num_envs)):
        actions = rng.integers(0, highs, (envs.num_envs, len(highs)))
        raw += [envs.step(actions)[0]]
    raw = np.concatenate(raw).astype(np.float64)
    return Scaler(raw.mean(0), np.maximum(raw.std(0), 1e-3))


def run_chains(
    waves: Sequence[np.ndarray],
    sample_rate: int,
    max_steps: int,
    choose: Chooser,
    seen_rate: int | None = None,
) -> tuple[list[np.ndarray], list[Chain]]:
    """Denoise waves (S,) by what `choose` says -> waves, chains. No clean clip is needed.

    `choose` sees the audio at `seen_rate` (default: the waves' own); it is denoised at its own.
    """
    seen_rate = seen_rate or sample_rate
    outs: list[np.ndarray] = []
    chains: list[Chain] = []
    for first in range(0, len(waves), data.BATCH):
        batch = denoisers.batch_of(list(waves[first : first + data.BATCH]))
        count = len(batch.lengths)
        memory, going = Memory(count), np.ones(count, bool)
        memory.before = denoisers.level(batch).numpy()[:, 0]
        mine: list[Chain] = [[] for _ in range(count)]
        for step in range(max_steps):
            rms = denoisers.level(batch).numpy()[:, 0]
            shown = batch
            if seen_rate != sample_rate:
                pairs = zip(batch.audio.numpy(), batch.lengths, strict=True)
                own = [resample(wave[:n], sample_rate, seen_rate) for wave, n in pairs]
                shown = denoisers.batch_of(own)
            seen = denoisers.features(shown, seen_rate).numpy()
            choices, params = choose(memory.observe(seen, rms, max_steps), step)
            choices = np.where(going, choices, STOP)
            going &= choices != STOP
            for index in np.flatnonzero(going):
                mine[index].append((int(choices[index]), tuple(params[index].tolist())))
            if not going.any():
                break
            chosen = torch.from_numpy(choices), torch.from_numpy(params).float()
            batch = batch._replace(audio=denoisers.denoise(batch, *chosen, sample_rate))
            memory.choice, memory.params = choices, params
            memory.steps += 1
        pairs = zip(batch.audio.numpy(), batch.lengths, strict=True)
        outs += [wave[:length] for wave, length in pairs]
        chains += mine
    return outs, chains


def given(chains: Iterable[Chain]) -> Chooser:
    """To each clip its own chain, in the order of the clips."""
    left, here = iter(chains), []

    def choose(raw: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        if step == 0:
            here[:] = itertools.islice(left, len(raw))
        rest = [chain[step] if step < len(chain) else JOINT[-1] for chain in here]
        methods, params = zip(*rest, strict=True)
        return np.array(methods), np.array(params)

    return choose


def constant(chain: Chain) -> Chooser:
    """The same chain for every clip."""
    return given(itertools.repeat(chain))


def random_policy(seed: int) -> Chooser:
    """Every choice and level as likely as every other."""
    rng = np.random.default_rng(seed)

    def choose(raw: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(raw)
        levels = rng.integers(0, LEVELS, (count, len(PARAMETERS)))
        return rng.integers(0, len(CHOICES), count), levels / (LEVELS - 1)

    return choose


def noisereduce_waves(corpus: Corpus, stationary: bool, share: float) -> list[np.ndarray]:
    """What the package noisereduce makes of the noisy clips; `share` is its prop_decrease."""
    options = {"sr": corpus.sample_rate, "stationary": stationary, "prop_decrease": share}
    reduce_noise = partial(needed("noisereduce", SCRIPT).reduce_noise, **options)
    waves = []
    for noisy in (clip.noisy for clip in corpus.clips):
        padded = np.pad(noisy, (0, max(0, NOISEREDUCE_FRAME - len(noisy))))
        waves.append(reduce_noise(y=padded)[: len(noisy)].astype(np.float32))
    return waves


def told(chain: Chain) -> str:
    """A chain in words."""
    steps = []
    for choice, params in chain:
        values = zip(PARAMETERS, params, strict=True)
        steps.append(f"{METHODS[choice]}({', '.join(f'{n}={v:.2f}' for n, v in values)})")
    return " -> ".join(steps) or "stop at once"


class Agent(NamedTuple):
    """A trained policy, ready to choose."""

    algo: Algo
    policy: torch.nn.Module
    scaler: Scaler
    sample_rate: int
    task: Reward

    def choose(self, raw: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
        """The policy's first choice for raw observations (B, D)."""
        with torch.inference_mode():
            actions, _ = self.policy.predict(self.scaler(raw), deterministic=True)
        return read_actions(self.algo, actions)

    def value(self, raw: np.ndarray) -> np.ndarray:
        """What it expects the rest of the chain to gain (B,); to stop is worth 0."""
        with torch.inference_mode():
            seen = torch.from_numpy(self.scaler(raw))
            if self.algo.startswith("ppo"):
                return self.policy.predict_values(seen)[:, 0].numpy()
            action = self.policy._predict(seen, deterministic=True)
            return torch.cat(self.policy.critic(seen, action), 1).amin(1).numpy()


def save_agent(folder: Path, model: Any, agent: Agent, about: dict[str, Any]) -> None:
    """agent.json, all that is needed beside the weights, and stable-baselines3's own archive."""
    content = {"algo": agent.algo, "sample_rate": agent.sample_rate, "task": agent.task.task}
    content |= {"features": [*FEATURES, *MEMORY], "choices": CHOICES, "levels": LEVELS}
    content["scaler"] = {"mean": agent.scaler.mean.tolist(), "std": agent.scaler.std.tolist()}
    content["versions"] = versions() | {"stable_baselines3": version("stable_baselines3")}
    content |= about
    write_together(
        {
            folder / "model.zip": partial(save_model, model),
            folder / "agent.json": lambda path: write_json(path, content),
        }
    )


def empty_policy(algo: Algo, hidden: list[int]) -> torch.nn.Module:
    """stable-baselines3's policy network with random weights."""
    module = f"stable_baselines3.{algo.partition('-')[0]}.policies"
    kind = needed(module, SCRIPT).MlpPolicy
    spaces = observation_space(), action_space(algo)
    return kind(*spaces, lambda _: 0.0, net_arch=hidden, activation_fn=torch.nn.ReLU)


def home_of(path: Path) -> Path:
    """The run folder of a checkpoint, which is named by itself or by its model.zip."""
    return path.parent if path.suffix == ".zip" else path


def load_agent(path: Path) -> Agent:
    """The policy of a run folder, or of the model.zip in it. Nothing is unpickled: the archive's
    `data`, which stable-baselines3 writes with cloudpickle, is not opened, and its weights are read
    as tensors only."""
    folder = home_of(path)
    try:
        content = read_json(folder / "agent.json", f"train first: {SCRIPT} train")
        if content["features"] != [*FEATURES, *MEMORY] or content["choices"] != [*CHOICES]:
            raise InputError(f"{folder}: was trained on other features or denoisers; train again")
        with zipfile.ZipFile(folder / "model.zip") as archive:
            weights = io.BytesIO(archive.read("policy.pth"))
        policy = empty_policy(content["algo"], content["hidden"])
        policy.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        scaler = Scaler(*(np.array(content["scaler"][name]) for name in ("mean", "std")))
        task = Reward(**content["task"])
    except FileNotFoundError as error:
        cure = "train first: python -m studies.denoise train"
        raise InputError(f"{folder}: no {Path(error.filename).name}; {cure}") from None
    except pickle.UnpicklingError:
        text = f"{folder}: is not a run of this study: its weights are no tensors"
        raise InputError(text) from None
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and torch have their own classes for damaged files
        raise InputError(f"{folder}: is not a run of this study ({error})") from None
    policy.set_training_mode(False)
    return Agent(content["algo"], policy, scaler, content["sample_rate"], task)


class Evaluation(NamedTuple):
    """What a chooser made of a corpus."""

    waves: list[np.ndarray]
    chains: list[Chain]
    scores: np.ndarray  # (n, 3)
    gain: np.ndarray  # (n,) return without diversity: what the scores gained is worth


def judged(
    corpus: Corpus, task: Reward, waves: list[np.ndarray], chains: list[Chain]
) -> Evaluation:
    """What waves made of the clips are worth."""
    scores = data.measure(corpus.clips, waves, corpus.sample_rate)
    return Evaluation(waves, chains, scores, worth(scores, task) - worth(corpus.scores, task))


def evaluate(corpus: Corpus, task: Reward, choose: Chooser) -> Evaluation:
    """Every clip once."""
    noisy = [clip.noisy for clip in corpus.clips]
    return judged(corpus, task, *run_chains(noisy, corpus.sample_rate, task.max_steps, choose))


def make_model(cfg: TrainConfig, envs: DenoiseVectorEnv) -> Any:
    """PPO, SAC or TD3 with these settings."""
    sb3 = needed("stable_baselines3", SCRIPT)
    same = {
        "policy": "MlpPolicy",
        "env": sb3_env(envs),
        "learning_rate": cfg.learning_rate,
        "batch_size": cfg.batch_size,
        "gamma": cfg.gamma,
        "seed": cfg.seed,
        "device": pick_device(cfg.device, 1),
        "policy_kwargs": {"net_arch": [*cfg.hidden], "activation_fn": torch.nn.ReLU},
    }
    if cfg.algo.startswith("ppo"):
        model = sb3.PPO(
            **same,
            n_steps=cfg.rollout_steps // cfg.num_envs,
            n_epochs=cfg.update_epochs,
            clip_range=cfg.clip_range,
            ent_coef=cfg.entropy_coef,
        )
        return without_log(model)
    same |= {
        "buffer_size": cfg.replay,
        "learning_starts": cfg.random_steps,
        "tau": cfg.tau,
        "train_freq": 1,  # tick of all lanes
        "gradient_steps": max(1, round(cfg.num_envs * cfg.updates_per_step)),
    }
    if cfg.algo == "sac":
        return without_log(sb3.SAC(**same))
    size = action_space("td3").shape
    noise = needed("stable_baselines3.common.noise", SCRIPT).NormalActionNoise(
        np.zeros(size), np.full(size, cfg.exploration)
    )
    return without_log(sb3.TD3(**same, action_noise=noise))


def tune_constant(
    corpus: Corpus, task: Reward, beam: int, report: Callable[[str], None]
) -> tuple[Chain, float]:
    """Best constant chain on these clips: a beam of prefixes, each step by coordinate search.

    For each method all levels of one parameter are tried after another, twice round, from the
    middle of the grid. Returns the chain and what it gains on average.
    """
    noisy = [clip.noisy for clip in corpus.clips]

    def tried(waves: list[np.ndarray], step: tuple) -> tuple[float, list[np.ndarray]]:
        outs, chains = run_chains(waves, corpus.sample_rate, 1, constant([step]))
        return float(judged(corpus, task, outs, chains).gain.mean()), outs

    best: list[tuple[float, list[np.ndarray], Chain]] = [(0.0, noisy, [])]
    finished = list(best)
    for depth in range(task.max_steps):
        found = []
        for _, waves, chain in best:
            for method in range(len(METHODS)):
                point, top, known = [LEVELS // 2 - 1] * len(PARAMETERS), -math.inf, {}
                for axis in (*range(len(PARAMETERS)),) * 2:
                    for value in range(LEVELS):
                        place = (*point[:axis], value, *point[axis + 1 :])
                        if place in known:
                            continue
                        step = (method, tuple(level / (LEVELS - 1) for level in place))
                        known[place], outs = tried(waves, step)
                        if known[place] > top:
                            top, kept = known[place], (outs, [*chain, step])
                    point = list(max(known, key=known.get))
                found.append((top, *kept))
        best = sorted(found, key=lambda item: -item[0])[:beam]
        finished += best
        report(f"{depth + 1} denoisers: {best[0][0]:+.4f}  {told(best[0][2])}")
    gain, _, chain = max(finished, key=lambda item: item[0])
    return chain, gain
