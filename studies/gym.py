"""The bandit as a gymnasium environment, so that other people's RL libraries train on a cache.

Run:    python -m studies.gym --cache cache/demo --steps 20000 --out runs/sb3
        (trains the DQN of stable-baselines3 and prints the table of evaluate.py)
Reads:  <cache>/<split>/ (preprocess.py)
Writes: <out>/{model.zip, results.json}
Shapes: L lanes, N frames of all pairs, P pairs, C channels, W window

Needs requirements-studies.txt. An episode is a pair, a step one frame of it; observation, action
and reward are those of policy/bandit.py:

- observation (C, W) float32: `bandit.make_states`, in both readings;
- action 0 .. num_actions - 1: the shift of the threshold, `bandit.deltas`;
- reward: the cell of the frame, `bandit.reward_cells`;
- the last frame terminates the episode: nothing follows it. An episode is never truncated; the
  observation that comes with the end is the last frame's once more;
- info: pair (index in the cache) and frame (index in the pair). After a step, of the frame just
  decided, with its t_adj, decision, label, and stored: whether DQN.py would keep the transition.

The sequential reading leaves the first frame of a pair alone, as DQN.py does. `boundary_only`
visits only the frames whose transitions DQN.py stores. That set is known before acting only in the
independent reading with the boundary tested before acting; elsewhere it is refused.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from config import Bandit, Device, Learning, Network, Script
from core.command import needed, parse_first, run_script
from core.settings import number, to_dict


@dataclass(frozen=True, kw_only=True)
class ThresholdEnvConfig(Script):
    """Train the DQN of stable-baselines3 on a training cache, then the before/after table."""

    cache: Path = Path("cache")
    """folder of the caches"""

    out: Path = Path("runs/sb3")
    """folder of model.zip and results.json"""
    overwrite: bool = False
    """replace an earlier result"""
    policy: Literal["mlp", "qnetwork"] = "mlp"
    """network: two layers of 64, or that of DQN.py"""
    steps: int = number(20_000, 1)
    """training frames of all lanes"""
    all_frames: bool = False
    """visit frames outside the boundary too"""
    seed: int = number(0, 0)
    """weights, exploration, replay, order of pairs"""
    device: Device = "auto"
    """auto: CUDA if present"""

    bandit: Bandit = field(default_factory=Bandit)
    network: Network = field(default_factory=Network)
    learning: Learning = field(default_factory=Learning)


if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(ThresholdEnvConfig)

import numpy as np
import torch
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, keep_apart, own_folder, write_together
from core.ranks import pick_device
from core.stored import write_json
from core.versions import made_with
from DQN import QNetwork
from evaluate import print_rows, tables
from policy.apply import decisions
from policy.bandit import Signals, make_states, near, outcome, reward_table, to_device
from sed.caches import Cache, load_cache
from sed.metrics import NAMES
from sed.provenance import held_against, origin_of
from sed.timeline import SPLITS

try:  # the environments are classes of gymnasium's, so there is no way around it
    gymnasium = needed("gymnasium", __file__)
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space
except InputError as problem:
    if __name__ != "__main__":
        raise
    print(f"{Path(__file__).name}: error: {problem}", file=sys.stderr)
    sys.exit(2)

ENV_ID = "Threshold-v0"
CPU = torch.device("cpu")


class Order:
    """What `draw` takes: one random order of all `items` after the other, without end."""

    def __init__(self, items: np.ndarray):
        self.items = items
        self.queue: list[int] = []

    def draw(self, rng: np.random.Generator) -> int:
        if not self.queue:
            self.queue = rng.permutation(self.items).tolist()
        return self.queue.pop()


class Lanes(Order):
    """Pairs that advance together, one frame a tick: what both environments are made of.

    InputError where nothing can be visited.
    """

    def __init__(self, cache: Cache, bandit: Bandit, num_lanes: int, boundary_only: bool):
        self.bandit = bandit
        self.signals = to_device(cache, bandit, CPU)
        self.table = reward_table(bandit).double()
        self.visited = np.flatnonzero(self.visits(cache.offsets, boundary_only))
        self.bounds = np.searchsorted(self.visited, cache.offsets)  # (P + 1,)
        super().__init__(np.flatnonzero(np.diff(self.bounds)))  # a pair without a frame: no episode
        if not len(self.items):
            count = len(cache.pairs)
            raise InputError(f"{cache.folder}: none of {count} pairs has a frame to visit")
        self.pair = np.zeros(num_lanes, dtype=np.int64)
        self.position = np.zeros(num_lanes, dtype=np.int64)  # index into `visited`
        self.left = torch.full((num_lanes, bandit.context), bandit.no_change)

    def visits(self, offsets: np.ndarray, boundary_only: bool) -> np.ndarray:
        """Which frames (N,) are steps of an episode."""
        bandit = self.bandit
        if boundary_only:
            if not has_fixed_boundary(bandit):
                raise InputError(
                    f"boundary_only needs the independent reading and the boundary test before"
                    f" acting, not {bandit.reading} and {bandit.boundary_test}: the stored frames"
                    " are not known otherwise"
                )
            return near(self.signals.prob, self.signals.t_base, bandit.boundary_width).numpy()
        visits = np.ones(offsets[-1], dtype=bool)
        if bandit.reading == "sequential":  # as DQN.Trainer.fill_lanes
            visits[offsets[:-1][np.diff(offsets) > 1]] = False
        return visits

    def start(self, lane: int, pair: int) -> None:
        self.pair[lane], self.position[lane] = pair, self.bounds[pair]
        self.left[lane] = self.bandit.no_change

    def frames(self) -> np.ndarray:
        """(L,) frame that each lane is at, global; after the end of an episode its last one."""
        return self.visited[np.minimum(self.position, self.bounds[self.pair + 1] - 1)]

    def where(self) -> dict[str, np.ndarray]:
        """(L,) each: the pair, its index in the cache, and the frame, counted from its start."""
        frame = self.frames() - self.signals.start.numpy()[self.pair]
        return {"pair": self.pair.copy(), "frame": frame}

    def states(self) -> np.ndarray:
        """(L, C, W) float32 state of each lane; the caller's to keep."""
        left = self.left if self.bandit.reading == "sequential" else None
        pair, frame = torch.from_numpy(self.pair), torch.from_numpy(self.frames())
        return make_states(self.signals, pair, frame, self.bandit, left).contiguous().numpy()

    def tick(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Decide a frame in every lane and advance -> rewards, whether the episode is over, and the
        infos of that frame; (L,) each."""
        frame, action = torch.from_numpy(self.frames()), torch.as_tensor(actions).long()
        found = outcome(self.signals, frame, action, self.bandit)
        infos = self.where() | {"t_adj": found.t_adj.numpy(), "decision": found.on.numpy()}
        infos |= {"label": self.signals.label[frame].numpy(), "stored": found.stored.numpy()}
        self.position += 1
        over = self.position == self.bounds[self.pair + 1]
        if self.bandit.context:
            moved = torch.cat([self.left[:, 1:], action[:, None]], 1)
            self.left = torch.where(torch.from_numpy(over)[:, None], self.left, moved)
        return self.table[found.cells].numpy(), over, infos


def has_fixed_boundary(bandit: Bandit) -> bool:
    """Whether the frames that DQN.py stores are known before acting."""
    return bandit.reading == "independent" and bandit.boundary_test == "before"


def spaces_of(lanes: Lanes) -> tuple[Any, Any]:
    """Box of (C, W) states, 0..1 (wider only where imported arrays are), and Discrete actions."""
    bandit, channels = lanes.bandit, lanes.signals.channels
    low, high = min(0.0, float(channels.min())), max(1.0, float(channels.max()))
    shape = (len(bandit.channels), bandit.window)
    box = gymnasium.spaces.Box(low, high, shape, np.float32)
    return box, gymnasium.spaces.Discrete(bandit.num_actions)


class ThresholdEnv(gymnasium.Env):
    """One pair an episode, one frame a step.

    `reset(seed=)` chooses the order of the pairs: one random order of all after the other, without
    end; `reset(options={"pair": index})` begins with that pair. Holds a copy of the signals: for
    many lanes use ThresholdVectorEnv, which is also faster.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, cache: Cache, bandit: Bandit | None = None, boundary_only: bool = False):
        self.lanes = Lanes(cache, bandit or Bandit(), 1, boundary_only)
        self.observation_space, self.action_space = spaces_of(self.lanes)
        self.over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next pair -> state (C, W), info."""
        super().reset(seed=seed)
        lanes = self.lanes
        if seed is not None:
            lanes.queue = []
        pair = (options or {}).get("pair")
        if pair is not None and pair not in lanes.items:
            raise InputError(f"options: pair {pair} is not one of this environment's")
        lanes.start(0, lanes.draw(self.np_random) if pair is None else pair)
        self.over = False
        return lanes.states()[0], {name: value[0].item() for name, value in lanes.where().items()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide a frame -> state (C, W), reward, terminated, truncated (never), info."""
        if self.over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"{action!r} is not in {self.action_space}")
        reward, over, infos = self.lanes.tick(np.array([action]))
        self.over = bool(over[0])
        info = {name: value[0].item() for name, value in infos.items()}
        return self.lanes.states()[0], float(reward[0]), self.over, False, info


class LaneVectorEnv(gymnasium.vector.VectorEnv):
    """Lanes (an Order with `start` and `states`) in lockstep.

    A lane whose episode ends begins the next one within the same step (AutoresetMode.SAME_STEP).
    Lanes take their episodes from one order, chosen by `reset(seed=)`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (gymnasium's own form)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, lanes: Any, num_envs: int, observation_space: Any, action_space: Any):
        self.lanes, self.num_envs = lanes, num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every lane -> states (L, ..), infos."""
        super().reset(seed=seed)
        if seed is not None:
            self.lanes.queue = []
        for lane in range(self.num_envs):
            self.lanes.start(lane, self.lanes.draw(self.np_random))
        return self.lanes.states(), {}

    def next_states(self, over: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """States after a step, new episodes begun where it was the last (L,); `final_obs`."""
        states = self.lanes.states()
        if not over.any():
            return states, {}
        last = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(over):
            last[lane] = states[lane]
            self.lanes.start(lane, self.lanes.draw(self.np_random))
        return self.lanes.states(), {"final_obs": last, "_final_obs": over.copy()}


class ThresholdVectorEnv(LaneVectorEnv):
    """Many pairs in lockstep with one batched gather a step: `num_envs` lanes over one cache.

    `final_obs` and `final_info` hold what an ended episode gave. With one lane the order of the
    pairs is that of ThresholdEnv.
    """

    def __init__(
        self,
        cache: Cache,
        num_envs: int,
        bandit: Bandit | None = None,
        boundary_only: bool = False,
    ):
        lanes = Lanes(cache, bandit or Bandit(), num_envs, boundary_only)
        super().__init__(lanes, num_envs, *spaces_of(lanes))

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a pair in every lane -> states (L, C, W), infos."""
        states, _ = super().reset(**options)
        return states, masked(self.lanes.where(), np.ones(self.num_envs, dtype=bool))

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decide a frame in every lane -> states, rewards, terminations, truncations, infos."""
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise gymnasium.error.InvalidAction(f"{actions!r} is not in {self.action_space}")
        rewards, over, values = self.lanes.tick(actions)
        infos = masked(values, ~over)
        states, ended = self.next_states(over)
        if ended:
            ended |= {"final_info": masked(values, over), "_final_info": over.copy()}
            new = masked(self.lanes.where(), over)  # an ended lane tells of its new pair
            infos |= {name: np.where(over, new[name], infos.get(name, new[name])) for name in new}
        return states, rewards, over, np.zeros_like(over), infos | ended


def masked(values: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Gymnasium's infos of a vector: each array (L,), zero where unset, and `_name` its mask.

    Nothing where no lane has it.
    """
    if not mask.any():
        return {}
    arrays = {name: np.where(mask, value, 0).astype(value.dtype) for name, value in values.items()}
    return arrays | {f"_{name}": mask.copy() for name in values}


def make(cache_folder: Path | str, **options: Any) -> ThresholdEnv:
    """ThresholdEnv over cache/<split>; `options` are those of the class."""
    return ThresholdEnv(load_cache(Path(cache_folder)), **options)


def make_vec(cache_folder: Path | str, num_envs: int = 1, **options: Any) -> ThresholdVectorEnv:
    """ThresholdVectorEnv over cache/<split>; `options` are those of the class."""
    return ThresholdVectorEnv(load_cache(Path(cache_folder)), num_envs, **options)


def register() -> str:
    """Tell gymnasium the id: `gymnasium.make(register(), cache_folder=...)`, make_vec as well."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point=make, vector_entry_point=make_vec)
    return ENV_ID


def sb3_env(envs: ThresholdVectorEnv) -> Any:
    """The lanes as a VecEnv, the form that stable-baselines3 trains on."""
    sb3 = needed("stable_baselines3.common.vec_env", __file__)

    class LockstepVecEnv(sb3.VecEnv):
        """stable-baselines3 wants a list of infos, and the last observation inside them."""

        def __init__(self) -> None:
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self) -> np.ndarray:
            states, _ = envs.reset(seed=self._seeds[0])
            self._reset_seeds()
            return states

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
            states, rewards, over, _, infos = envs.step(self.actions)
            each: list[dict] = [{} for _ in over]
            for lane in np.flatnonzero(over):
                each[lane]["terminal_observation"] = infos["final_obs"][lane]
            return states, rewards, over, each

        def get_attr(self, attr_name: str, indices: Any = None) -> list:
            return [getattr(envs, attr_name) for _ in self._get_indices(indices)]

        def env_method(self, method_name: str, *args: Any, **kwargs: Any):
            raise NotImplementedError("the lanes share one environment")

        set_attr = env_method

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False for _ in self._get_indices(indices)]

        def close(self) -> None:
            envs.close()

    return LockstepVecEnv()


def without_log(model: Any) -> Any:
    """The model, which then logs nowhere; else stable-baselines3 leaves a folder in /tmp."""
    logger = needed("stable_baselines3.common.logger", __file__)
    model.set_logger(logger.Logger(folder=None, output_formats=[]))
    return model


def save_model(model: Any, path: Path) -> None:
    """Write stable-baselines3's archive to this very path; the library would add .zip to a name."""
    with open(path, "wb") as stream:
        model.save(stream)


def qnetwork_kwargs(bandit: Bandit, network: Network) -> dict[str, Any]:
    """Policy settings that make stable-baselines3's Q-network the one of DQN.py."""
    layers = needed("stable_baselines3.common.torch_layers", __file__)

    class Trunk(layers.BaseFeaturesExtractor):
        """QNetwork up to its last linear layer, which stable-baselines3 adds itself."""

        def __init__(self, space: Any):
            super().__init__(space, network.hidden)
            self.trunk = QNetwork(bandit, network)
            self.trunk.head = self.trunk.head[:-1]

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.trunk(states)

    return {"features_extractor_class": Trunk, "net_arch": []}


def check(cfg: ThresholdEnvConfig) -> None:
    """InputError for what stable-baselines3's DQN cannot do: no flag is silently ignored."""
    learning = cfg.learning
    for name, only in (("acting", "eval"), ("episode_order", "shuffled")):
        given = getattr(learning, name)
        if given != only:
            flag = f"--{learning.flag(name)}"
            raise InputError(f"{flag} {given}: not with stable-baselines3; use {flag} {only}")
    if learning.frames_per_step % learning.lanes and learning.lanes % learning.frames_per_step:
        raise InputError(
            "--learning.frames-per-step and --learning.lanes must divide one another, not"
            f" {learning.frames_per_step} and {learning.lanes}: stable-baselines3 counts in ticks"
        )
    if cfg.steps <= learning.train_start:
        raise InputError(
            f"--steps {cfg.steps}: learning starts above --learning.train-start"
            f" {learning.train_start}, so nothing would be learned"
        )
    if cfg.policy == "mlp" and cfg.network != type(cfg).with_preset(cfg.preset).network:
        raise InputError("--network.* flags need --policy qnetwork")
    taken = [cfg.out / name for name in ("model.zip", "results.json")]
    if not cfg.overwrite and any(path.exists() for path in taken):
        raise InputError(f"{cfg.out} holds an earlier run; give --overwrite or another --out")


def make_dqn(cfg: ThresholdEnvConfig, cache: Cache, device: torch.device) -> Any:
    """stable-baselines3's DQN with the settings of the learning group, on the lanes of a cache.

    What stays different from DQN.py: Huber loss, a target network that gamma = 0 never uses but
    that is computed, replay sampled with replacement, and in each tick all lanes explore or none.
    """
    learning = cfg.learning
    boundary_only = has_fixed_boundary(cfg.bandit) and not cfg.all_frames
    envs = ThresholdVectorEnv(cache, learning.lanes, bandit=cfg.bandit, boundary_only=boundary_only)
    decay = learning.epsilon_fraction
    if learning.epsilon_episodes is not None:
        frames = len(envs.lanes.visited) / len(envs.lanes.items)  # of an episode, on average
        decay = min(1.0, learning.epsilon_episodes * frames / cfg.steps)
    network = qnetwork_kwargs(cfg.bandit, cfg.network) if cfg.policy == "qnetwork" else None
    model = needed("stable_baselines3", __file__).DQN(
        "MlpPolicy",
        sb3_env(envs),
        learning_rate=learning.lr,
        buffer_size=learning.replay,
        learning_starts=learning.train_start,
        batch_size=learning.batch,
        gamma=0.0,
        train_freq=max(1, learning.frames_per_step // learning.lanes),  # in ticks of all lanes
        gradient_steps=max(1, learning.lanes // learning.frames_per_step),
        target_update_interval=max(10_000, learning.lanes),  # never read, as gamma is 0
        exploration_initial_eps=learning.epsilon_start,
        exploration_final_eps=learning.epsilon_end,
        exploration_fraction=decay,
        max_grad_norm=math.inf,  # DQN.py does not clip
        policy_kwargs=network,
        seed=cfg.seed,
        device=device,
    )
    return without_log(model)


def learn(model: Any, steps: int, progress: str | None = None) -> None:
    """Train for `steps` frames, all lanes together."""
    with tqdm(total=steps, desc=progress, unit="frame", disable=progress is None) as bar:

        def go_on(*_: Any) -> bool:
            bar.update(model.n_envs)
            return True

        model.learn(steps, callback=go_on)


SB3 = Kind("run of gym.py", older=(("results.json", "algorithm"), ("results.json", "cache_key")))


def mean_reward(signals: Signals, actions: torch.Tensor, bandit: Bandit) -> float:
    """Reward per frame of the actions (N,), over all frames."""
    frame = torch.arange(len(actions), device=actions.device)
    cells = outcome(signals, frame, actions, bandit).cells
    return float(reward_table(bandit)[cells.cpu()].double().mean())


def print_table(results: dict[str, Any]) -> None:
    """Before, after and yardsticks, then `key: value` lines for grep."""
    rows = [("before (T_base)", results["before"])]
    rows += [("after (DQN of stable-baselines3)", results["after"])]
    rows += [(row["name"], row) for row in results["yardsticks"]]
    print_rows(f"mean over {results['num_pairs']} pairs", rows)
    print()
    for name in NAMES:
        print(f"gain_{name}: {results['gain'][name]:+.4f}")
    for name in ("mean_reward_before", "mean_reward_after"):
        print(f"{name}: {results[name]:+.4f}")
    for name in ("train_frames_per_s", "gradient_steps"):
        print(f"{name}: {results[name]}")


def main(cfg: ThresholdEnvConfig) -> None:
    """Train, apply the greedy policy to the other cache, write and print what came out."""
    check(cfg)
    needed("stable_baselines3", __file__)
    device = pick_device(cfg.device, 1)
    homes = [cfg.cache / split for split in SPLITS]
    keep_apart(cfg.out, [cfg.cache, *homes])
    with own_folder(cfg.out, SB3):
        train, cache = map(load_cache, homes)
        notes = held_against("the agent", origin_of(train), cache)
        for note in notes:
            print(f"note: {note}")
        model = make_dqn(cfg, train, device)
        began = time.perf_counter()
        learn(model, cfg.steps, "Training")
        seconds = time.perf_counter() - began
        signals = to_device(cache, cfg.bandit, device)
        on, actions = decisions(model.q_net, signals, cfg.bandit, 256, None, "Evaluating")
        same = torch.full_like(actions, cfg.bandit.no_change)
        results = {
            "algorithm": "dqn",
            "split": cache.folder.name,
            "cache": str(cache.folder),
            "cache_key": cache.key,
            "num_pairs": len(cache.pairs),
            "notes": notes,
            "train_seconds": round(seconds, 1),
            "train_frames_per_s": round(model.num_timesteps / seconds),
            "gradient_steps": model._n_updates,
            "mean_reward_before": mean_reward(signals, same, cfg.bandit),
            "mean_reward_after": mean_reward(signals, actions, cfg.bandit),
            **made_with(),
            "libraries": {name: version(name) for name in ("gymnasium", "stable_baselines3")},
            "config": to_dict(cfg),
            **tables(cache, on.cpu().numpy(), cfg.bandit, train),
        }
        write_together(
            {
                cfg.out / "model.zip": partial(save_model, model),
                cfg.out / "results.json": lambda path: write_json(path, results),
            }
        )
        print_table(results)
        print(f"results: {cfg.out / 'results.json'}, {cfg.out / 'model.zip'}")


if __name__ == "__main__":
    run_script(ThresholdEnvConfig, main)
