"""Choosing denoisers as a game: the environment, the agents of stable-baselines3, their baselines.

Reads:  <split>/features.csv (`python -m studies.denoise features`), <run>/{agent.json, model.zip}
Writes: <run>/{agent.json, model.zip}
Shapes: L lanes, B clips, S samples, D numbers of an observation

An episode is a clip, a step one denoiser on what the last one left:

- observation (D,) float32: `denoisers.features` of the audio as it is now, then MEMORY;
- action: a method or `stop`, and three parameters, see `action_space`;
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
from studies.denoise.settings import Algo, Reward, TrainConfig, TuneConfig
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
Choice = tuple[np.ndarray, np.ndarray]  # choices (B,), parameters (B, 3)
Chooser = Callable[[np.ndarray, int], Choice]  # of raw observations (B, D) and the step
OBSERVATIONS = gymnasium.spaces.Box(-CLIPPED, CLIPPED, (OBSERVATION,), np.float32)  # scaled


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

    @property
    def noisy(self) -> list[np.ndarray]:
        return [clip.noisy for clip in self.clips]

    def some(self, index: np.ndarray) -> "Corpus":
        clips = [self.clips[i] for i in index]
        return Corpus(clips, self.seen[index], self.scores[index], self.sample_rate)


def load_corpus(path: Path) -> Corpus:
    """A features.csv with its audio. InputError where it is missing or does not fit the audio."""
    cure = f"run: python -m studies.denoise features --meta {path.with_name('meta.csv')}"
    columns = ("utt_id", "clean_path", "noisy_path", "snr_db", *NOISY, *FEATURES)
    rows = data.read_table(path, columns, cure)
    clips, sample_rate = data.read_clips(path, rows)
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

    def __init__(self, before: np.ndarray):
        self.before = before  # RMS of the noisy clip
        self.choice = np.full(len(before), -1)
        self.params = np.zeros((len(before), len(PARAMETERS)))
        self.steps = np.zeros(len(before), int)

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
            known = corpus.clips, corpus.noisy, corpus.sample_rate
            self.first = data.measure(*known, task.quality_stride)
        self.audio = torch.zeros(num_lanes, longest)
        self.lengths = torch.ones(num_lanes, dtype=torch.int64)
        self.seen = np.zeros((num_lanes, len(FEATURES)), np.float32)
        self.scores = np.zeros((num_lanes, len(MEASURES)))
        self.clip = np.zeros(num_lanes, int)
        self.memory = Memory(np.ones(num_lanes))
        self.returns = np.zeros(num_lanes)
        self.finished: list[float] = []  # returns of the episodes that ended

    def start(self, lane: int, index: int) -> None:
        """Begin a clip; nothing is computed, as its features and scores are known."""
        clip = self.corpus.clips[index]
        self.lengths[lane], self.clip[lane] = len(clip.noisy), index
        self.audio[lane] = 0
        self.audio[lane, : len(clip.noisy)] = torch.from_numpy(clip.noisy)
        self.seen[lane], self.scores[lane] = self.corpus.seen[index], self.first[index]
        self.memory.start(lane, float(np.sqrt(np.mean(clip.noisy**2))))
        self.returns[lane] = 0

    def changing(self) -> dict[str, Any]:
        """What changes from step to step: a name, and the object that has an array so named."""
        mine = dict.fromkeys(("seen", "scores", "clip", "returns"), self)
        return mine | dict.fromkeys(vars(self.memory), self.memory)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `restore` needs."""
        found = {name: getattr(owner, name) for name, owner in self.changing().items()}
        return found | {"audio": self.audio.numpy()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on where `arrays` were taken."""
        for lane, index in enumerate(arrays["clip"]):
            self.start(lane, int(index))
        self.audio[:] = torch.from_numpy(arrays["audio"])
        for name, owner in self.changing().items():
            setattr(owner, name, arrays[name])

    def batch(self) -> denoisers.Batch:
        """The audio as it is now, without the padding that no lane needs."""
        return denoisers.Batch(self.audio[:, : int(self.lengths.max())], self.lengths)

    def states(self) -> np.ndarray:
        """Scaled observations (L, D)."""
        rms = denoisers.level(self.batch()).numpy()[:, 0]
        return self.scaler(self.memory.observe(self.seen, rms, self.task.max_steps))

    def measure(self, over: np.ndarray) -> np.ndarray:
        """Scores (L, 3) of the audio now; where STOI is not due, the last one."""
        task, every = self.task, self.task.quality_interval
        due = over | (every > 0 and self.memory.steps % max(every, 1) == 0)
        due &= bool(task.stoi_weight or task.estoi_weight)
        clips = [self.corpus.clips[index] for index in self.clip]
        rate, stride = self.corpus.sample_rate, task.quality_stride
        scores = data.scores_of(clips, self.batch(), rate, stride, due)
        scores[~due, 1:] = self.scores[~due, 1:]
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
        memory.choice, memory.params = choices, params
        over = stop | (memory.steps >= self.task.max_steps)
        scores = self.measure(over)
        gain = worth(scores, self.task) - worth(self.scores, self.task)
        self.scores = scores
        self.seen = denoisers.features(self.batch(), rate).numpy()
        rewards = gain + self.task.diversity_weight * diversity
        self.returns += rewards
        self.finished += self.returns[over].tolist()
        return rewards, over


def action_space(algo: Algo) -> Any:
    """One of JOINT; or (`ppo-separate`) method and three levels. SAC and TD3 know boxes only: a
    preference for each choice, the highest counts, and the parameters, -1..1."""
    if algo == "ppo":
        return gymnasium.spaces.Discrete(len(JOINT))
    if algo == "ppo-separate":
        return gymnasium.spaces.MultiDiscrete([len(CHOICES), *[LEVELS] * len(PARAMETERS)])
    return gymnasium.spaces.Box(-1.0, 1.0, (len(CHOICES) + len(PARAMETERS),), np.float32)


def read_actions(algo: Algo, actions: np.ndarray) -> Choice:
    """Actions (B, ...) -> choices and parameters, 0..1."""
    if algo == "ppo":
        methods, params = zip(*(JOINT[action] for action in actions), strict=True)
        return np.array(methods), np.array(params)
    if algo == "ppo-separate":
        return actions[:, 0].astype(int), actions[:, 1:] / (LEVELS - 1)
    names = len(CHOICES)
    return actions[:, :names].argmax(1), (actions[:, names:].astype(float) + 1).clip(0, 2) / 2


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
        super().__init__(lanes, num_envs, OBSERVATIONS, action_space(algo))
        self.algo = algo

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """One denoiser in every lane -> observations, rewards, over, truncated (never), infos."""
        rewards, over = self.lanes.tick(*read_actions(self.algo, np.asarray(actions)))
        states, infos = self.next_states(over)
        return states, rewards, over, np.zeros_like(over), infos


def fit_scaler(corpus: Corpus, cfg: TrainConfig) -> Scaler:
    """Mean and std of what random chains on these clips show."""
    envs = DenoiseVectorEnv(corpus, cfg, 32, "ppo-separate")
    rng = np.random.default_rng(cfg.seed)
    raw = [envs.reset(seed=cfg.seed)[0]]
    highs = envs.single_action_space.nvec
    for _ in range(-(-cfg.scaler_steps // envs.num_envs)):
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
    for _, batch in data.batches(waves):
        count = len(batch.lengths)
        memory, going = Memory(denoisers.level(batch).numpy()[:, 0]), np.ones(count, bool)
        mine: list[Chain] = [[] for _ in range(count)]
        for step in range(max_steps):
            rms, shown = denoisers.level(batch).numpy()[:, 0], batch
            if seen_rate != sample_rate:
                own = [resample(wave, sample_rate, seen_rate) for wave in data.waves_of(batch)]
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
        outs += data.waves_of(batch)
        chains += mine
    return outs, chains


def given(chains: Iterable[Chain]) -> Chooser:
    """To each clip its own chain, in the order of the clips."""
    left, here = iter(chains), []

    def choose(raw: np.ndarray, step: int) -> Choice:
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

    def choose(raw: np.ndarray, step: int) -> Choice:
        count = len(raw)
        levels = rng.integers(0, LEVELS, (count, len(PARAMETERS)))
        return rng.integers(0, len(CHOICES), count), levels / (LEVELS - 1)

    return choose


def noisereduce_waves(corpus: Corpus, stationary: bool, share: float) -> list[np.ndarray]:
    """What the package noisereduce makes of the noisy clips; `share` is its prop_decrease."""
    options = {"sr": corpus.sample_rate, "stationary": stationary, "prop_decrease": share}
    reduce_noise = partial(needed("noisereduce", SCRIPT).reduce_noise, **options)
    waves = []
    for noisy in corpus.noisy:
        padded = np.pad(noisy, (0, max(0, NOISEREDUCE_FRAME - len(noisy))))
        waves.append(reduce_noise(y=padded)[: len(noisy)].astype(np.float32))
    return waves


def told(chain: Chain) -> str:
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

    def choose(self, raw: np.ndarray, _: int) -> Choice:
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
    write_together(
        {
            folder / "model.zip": partial(save_model, model),
            folder / "agent.json": lambda path: write_json(path, content | about),
        }
    )


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
        algo, options = content["algo"], {"net_arch": content["hidden"]}
        options["activation_fn"] = torch.nn.ReLU
        kind = needed(f"stable_baselines3.{algo.partition('-')[0]}.policies", SCRIPT).MlpPolicy
        policy = kind(OBSERVATIONS, action_space(algo), lambda _: 0.0, **options)
        policy.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        scaler = Scaler(*(np.array(content["scaler"][name]) for name in ("mean", "std")))
        task = Reward(**content["task"])
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise InputError(f"{folder}: no {name}; train first: {SCRIPT} train") from None
    except pickle.UnpicklingError:
        flaw = "its weights are no tensors"
        raise InputError(f"{folder}: is not a run of this study: {flaw}") from None
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and torch have their own classes for damaged files
        raise InputError(f"{folder}: is not a run of this study ({error})") from None
    policy.set_training_mode(False)
    return Agent(algo, policy, scaler, content["sample_rate"], task)


class Evaluation(NamedTuple):
    """What a chooser made of a corpus."""

    waves: list[np.ndarray]
    chains: Sequence[Chain]  # none where no chain was chosen
    scores: np.ndarray  # (n, 3)
    gain: np.ndarray  # (n,) return without diversity: what the scores gained is worth


def judged(
    corpus: Corpus, task: Reward, waves: list[np.ndarray], chains: Sequence[Chain] = ()
) -> Evaluation:
    """What waves made of the clips are worth."""
    scores = data.measure(corpus.clips, waves, corpus.sample_rate)
    return Evaluation(waves, chains, scores, worth(scores, task) - worth(corpus.scores, task))


def evaluate(corpus: Corpus, task: Reward, choose: Chooser) -> Evaluation:
    found = run_chains(corpus.noisy, corpus.sample_rate, task.max_steps, choose)
    return judged(corpus, task, *found)


def make_model(cfg: TrainConfig, envs: DenoiseVectorEnv) -> Any:
    kind = cfg.algo.partition("-")[0]
    options = {
        "policy": "MlpPolicy",
        "env": sb3_env(envs),
        "learning_rate": cfg.learning_rate,
        "batch_size": cfg.batch_size,
        "gamma": cfg.gamma,
        "seed": cfg.seed,
        "device": pick_device(cfg.device, 1),
        "policy_kwargs": {"net_arch": [*cfg.hidden], "activation_fn": torch.nn.ReLU},
    }
    if kind == "ppo":
        options |= {"n_steps": cfg.rollout_steps // cfg.num_envs, "n_epochs": cfg.update_epochs}
        options |= {"clip_range": cfg.clip_range, "ent_coef": cfg.entropy_coef}
    else:
        options |= {"buffer_size": cfg.replay, "learning_starts": cfg.random_steps, "tau": cfg.tau}
        options["train_freq"] = 1  # tick of all lanes
        options["gradient_steps"] = max(1, round(cfg.num_envs * cfg.updates_per_step))
    if kind == "td3":
        noise = needed("stable_baselines3.common.noise", SCRIPT).NormalActionNoise
        shape = action_space("td3").shape
        options["action_noise"] = noise(np.zeros(shape), np.full(shape, cfg.exploration))
    return without_log(getattr(needed("stable_baselines3", SCRIPT), kind.upper())(**options))


def tune_constant(corpus: Corpus, cfg: TuneConfig) -> Chain:
    """Best constant chain on these clips: a beam of prefixes, each step by coordinate search.

    For each method all levels of one parameter are tried after another, twice round, from the
    middle of the grid.
    """

    def tried(waves: list[np.ndarray], step: tuple) -> tuple[float, list[np.ndarray]]:
        outs, _ = run_chains(waves, corpus.sample_rate, 1, constant([step]))
        return float(judged(corpus, cfg, outs).gain.mean()), outs

    best: list[tuple[float, list[np.ndarray], Chain]] = [(0.0, corpus.noisy, [])]
    finished = list(best)
    for depth in range(cfg.max_steps):
        found = []
        for (_, waves, chain), method in itertools.product(best, range(len(METHODS))):
            point, known, kept = [LEVELS // 2 - 1] * len(PARAMETERS), {}, (-math.inf,)
            for axis, value in itertools.product((*range(len(PARAMETERS)),) * 2, range(LEVELS)):
                place = (*point[:axis], value, *point[axis + 1 :])
                if place not in known:
                    step = (method, tuple(level / (LEVELS - 1) for level in place))
                    known[place], outs = tried(waves, step)
                    if known[place] > kept[0]:
                        kept = known[place], outs, [*chain, step]
                if value == LEVELS - 1:
                    point = list(max(known, key=known.get))
            found.append(kept)
        best = sorted(found, key=lambda item: -item[0])[: cfg.beam]
        finished += best
        print(f"{depth + 1} denoisers: {best[0][0]:+.4f}  {told(best[0][2])}")
    return max(finished, key=lambda item: item[0])[2]
