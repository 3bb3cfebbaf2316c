"""The gymnasium environment: the checkers of its users, the reference version, DQN.py, training."""

import dataclasses
import json
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_cache
from reference import play

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")

import gymnasium
import stable_baselines3
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from config import Bandit, Learning, Network, TrainConfig
from core.errors import InputError
from core.files import contents
from DQN import QNetwork, Trainer
from policy.apply import greedy_actions
from policy.bandit import decide, make_states, near, thresholds, to_device
from sed.caches import Cache, load_cache
from studies import gym
from studies.gym import (
    ThresholdEnv,
    ThresholdEnvConfig,
    ThresholdVectorEnv,
    make_dqn,
    mean_reward,
    register,
)

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent
READINGS = {
    "independent": Bandit(),
    "sequential": Bandit(reading="sequential", boundary_test="after", channel_order="original"),
}
TINY = Network(hidden=8, heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("env") / "cache"
    write_cache(folder / "train", [70, 90, 12, 40, 2, 1])
    write_cache(folder / "validation", [60, 80], seed=1)
    return folder


@pytest.fixture(scope="module")
def cache(folder) -> Cache:
    return load_cache(folder / "train")


def episode(env: ThresholdEnv, pair: int, choose) -> list[tuple]:
    """(state, action, reward, terminated, info) of each step of a pair; never truncated."""
    state, info = env.reset(options={"pair": pair})
    assert info["pair"] == pair
    steps, over, frame = [], False, info["frame"]
    while not over:
        action = choose(state)
        following, reward, over, truncated, info = env.step(action)
        assert not truncated and (info["pair"], info["frame"]) >= (pair, frame)
        steps.append((state, action, reward, over, info))
        state, frame = following, info["frame"]
    return steps


# ---------------------------------------------------------------------------- their checkers


@pytest.mark.parametrize("boundary_only", [False, True])
@pytest.mark.parametrize("reading", READINGS)
def test_checkers_of_gymnasium_and_stable_baselines3(folder, reading, boundary_only):
    bandit = READINGS[reading]
    options = {"bandit": bandit, "boundary_only": boundary_only}
    if boundary_only and reading == "sequential":
        with pytest.raises(InputError, match="boundary_only needs the independent reading"):
            gym.make(folder / "train", **options)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(register(), cache_folder=folder / "train", **options)
        check_env(env.unwrapped)
    assert env.observation_space.shape == (6, 21) and env.action_space.n == 21
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*unconventional shape")  # (C, W), no picture
        sb3_check_env(gym.make(folder / "train", **options))


def test_registered_vector(folder):
    envs = gymnasium.make_vec(register(), num_envs=3, cache_folder=folder / "train")
    assert isinstance(envs.unwrapped, ThresholdVectorEnv)
    states, _ = envs.reset(seed=0)
    assert states.shape == (3, 6, 21)


def test_misuse(cache):
    env = ThresholdEnv(cache)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction):
        env.step(21)
    with pytest.raises(InputError, match="pair 9"):
        env.reset(options={"pair": 9})

    far = dict.fromkeys(cache.signals, np.full(len(cache.label), 0.9, np.float32))
    far["t_base"] = far["prob"] - np.float32(0.5)
    with pytest.raises(InputError, match="none of 6 pairs has a frame to visit"):
        ThresholdEnv(dataclasses.replace(cache, signals=far), boundary_only=True)


# ---------------------------------------------------------------------------- against the others


@pytest.mark.parametrize("reading", READINGS)
def test_episodes_are_those_of_the_naive_version(cache, reading):
    """States, rewards, decisions over whole episodes under a random policy."""
    bandit = READINGS[reading]
    env = ThresholdEnv(cache, bandit)
    rng = np.random.default_rng(0)
    for pair in range(5):  # the naive version has no pair of a single frame
        steps = episode(env, pair, lambda _: int(rng.integers(21)))
        given, seen = iter(steps), []

        def again(state, given=given, seen=seen):
            seen.append(state[0].numpy())
            return next(given)[1]

        want = play(cache.of_pair(pair), again, bandit.channels, list(bandit.deltas), reading)
        assert len(steps) == len(want)
        for (state, action, reward, over, info), shown, row in zip(steps, seen, want, strict=True):
            frame, taken, paid, before, after, decision = row
            np.testing.assert_array_equal(state, shown)
            assert (info["frame"], action, info["decision"]) == (frame, taken, decision)
            assert reward == pytest.approx(paid)
            assert info["stored"] == (before if bandit.boundary_test == "before" else after)
            assert info["label"] == cache.of_pair(pair)["label"][frame]
            assert over == (frame == cache.pairs[pair].num_frames - 1)


@pytest.mark.parametrize("reading", READINGS)
def test_the_greedy_policy_decides_as_in_dqn(cache, reading):
    """One frame at a time through the environment, and `greedy_actions` over the whole cache."""
    bandit = READINGS[reading]
    torch.manual_seed(0)
    network = QNetwork(bandit, TINY).eval()
    signals = to_device(cache, bandit, CPU)
    frame = torch.arange(cache.offsets[1])
    with torch.no_grad():  # each action equally good on average, so that frames differ in the best
        states = make_states(signals, torch.zeros_like(frame), frame, bandit)
        network.head[2].bias -= network(states).mean(0)
    actions = greedy_actions(network, signals, bandit, 64)
    t_adj = thresholds(signals, actions, bandit).numpy()
    pred = decide(signals.prob.numpy(), t_adj)
    matters = near(signals.prob, signals.t_base, bandit.max_delta).numpy()
    env, distinct = ThresholdEnv(cache, bandit), set()

    gaps = []

    def choose(state):
        with torch.inference_mode():
            q_values = network(torch.from_numpy(state)[None])[0]
        top = q_values.topk(2).values
        gaps.append(float(top[0] - top[1]))
        return int(q_values.argmax())

    for pair in range(5):  # a pair of one frame: DQN.py trains on it, but never decides it
        gaps.clear()
        steps = episode(env, pair, choose)
        for (_, action, _, _, info), gap in zip(steps, gaps, strict=True):
            if gap < 1e-5:
                continue  # two Q-values tie within float tolerance
            frame = cache.offsets[pair] + info["frame"]
            assert info["decision"] == pred[frame]
            if matters[frame] or reading == "sequential":  # elsewhere DQN.py keeps action 0.0
                assert action == actions[frame]
                assert info["t_adj"] == t_adj[frame]
                distinct.add(action)
    assert len(distinct) > 2  # the comparison means something


def test_boundary_only_visits_what_dqn_stores(cache):
    bandit = Bandit(boundary_width=0.1)
    learning = Learning(train_start=40_000, epsilon_end=1.0)
    cfg = TrainConfig(bandit=bandit, network=TINY, learning=learning, holdout=0.0, passes=1)
    trainer = Trainer(cfg, cache, CPU)
    while not trainer.done:
        trainer.tick()
    stored = trainer.replay.columns["frame"][: len(trainer.replay)].tolist()
    env = ThresholdEnv(cache, bandit, boundary_only=True)
    visited = []
    for pair in env.lanes.items:
        steps = episode(env, pair, lambda _: 3)
        assert all(step[4]["stored"] for step in steps)
        visited += [cache.offsets[pair] + step[4]["frame"] for step in steps]
    assert sorted(visited) == sorted(stored)
    assert 10 < len(visited) < len(cache.label) / 2


# ---------------------------------------------------------------------------- order and lanes


def pairs_of(env: ThresholdEnv, count: int) -> list[int]:
    return [env.reset()[1]["pair"] for _ in range(count)]


def test_the_seed_chooses_the_order(cache):
    env, other = ThresholdEnv(cache), ThresholdEnv(cache)
    first = [env.reset(seed=1)[1]["pair"], *pairs_of(env, 11)]
    assert sorted(first[:6]) == sorted(first[6:]) == list(range(6))  # each pair once a pass
    assert [other.reset(seed=1)[1]["pair"], *pairs_of(other, 11)] == first
    assert [env.reset(seed=1)[1]["pair"], *pairs_of(env, 11)] == first  # also in mid-pass
    assert [env.reset(seed=2)[1]["pair"], *pairs_of(env, 11)] != first


def assert_same(ours: dict, theirs: dict) -> None:
    """Infos of a vector: the same keys and values, whatever the dtype of a number."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        if isinstance(value, dict):
            assert_same(value, theirs[name])
        elif value.dtype == object:
            for one, two in zip(value, theirs[name], strict=True):
                np.testing.assert_array_equal(one, two)
        else:
            np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.parametrize("reading", READINGS)
def test_one_lane_is_the_single_environment(cache, reading):
    """Against gymnasium's own vector of one ThresholdEnv, infos and ends of episodes included."""
    bandit = READINGS[reading]
    lanes = ThresholdVectorEnv(cache, 1, bandit=bandit)
    single = SyncVectorEnv(
        [lambda: ThresholdEnv(cache, bandit)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert lanes.observation_space == single.observation_space
    assert lanes.action_space == single.action_space
    rng, ends = np.random.default_rng(0), 0
    ours, theirs = lanes.reset(seed=5), single.reset(seed=5)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert_same(ours[1], theirs[1])
    for _ in range(600):
        action = rng.integers(21, size=1)
        *ours, our_info = lanes.step(action)
        *theirs, their_info = single.step(action)
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, two)
        assert_same(our_info, their_info)
        ends += bool(ours[2][0])
    assert ends > 5


@pytest.mark.parametrize("reading", READINGS)
def test_each_lane_is_an_episode_of_the_single_environment(cache, reading):
    bandit = READINGS[reading]
    envs, env = ThresholdVectorEnv(cache, 4, bandit=bandit), ThresholdEnv(cache, bandit)
    rng = np.random.default_rng(0)
    states, infos = envs.reset(seed=0)
    running = [[] for _ in range(4)]  # (state, action, reward, decision) of each lane's episode
    pairs, played = infos["pair"].tolist(), 0
    for _ in range(200):
        actions = rng.integers(21, size=4)
        following, rewards, over, truncated, infos = envs.step(actions)
        assert not truncated.any()
        for lane in range(4):
            source = infos["final_info"] if over[lane] else infos
            assert source["_decision"][lane]
            row = (states[lane], actions[lane], rewards[lane], source["decision"][lane])
            running[lane].append(row)
            if not over[lane]:
                assert infos["pair"][lane] == pairs[lane]
                continue
            given = iter(running[lane])
            steps = episode(env, pairs[lane], lambda _, given=given: next(given)[1])
            for (state, _, reward, decision), step in zip(running[lane], steps, strict=True):
                np.testing.assert_array_equal(state, step[0])
                assert (reward, decision) == (step[2], step[4]["decision"])
            running[lane], pairs[lane] = [], int(infos["pair"][lane])
            played += 1
        states = following
    assert played > 12


def test_what_is_handed_out_stays(cache):
    """Arrays of earlier steps are not written to."""
    envs = ThresholdVectorEnv(cache, 2)
    states, infos = envs.reset(seed=0)
    kept = states.copy(), {name: value.copy() for name, value in infos.items()}
    for _ in range(20):
        envs.step(np.array([0, 20]))
    np.testing.assert_array_equal(states, kept[0])
    assert_same(infos, kept[1])


# ---------------------------------------------------------------------------- stable-baselines3

LEARN = Learning(train_start=64, batch=16, lr=1e-3, lanes=4, frames_per_step=8)


def study_config(folder: Path, out: Path, **changes) -> ThresholdEnvConfig:
    changes = {"learning": LEARN, "steps": 400} | changes
    return ThresholdEnvConfig(cache=folder, out=out, device="cpu", **changes)


def test_dqn_of_stable_baselines3_on_one_environment(cache):
    """The plain way of its users: the single environment, flattened by the policy."""
    model = stable_baselines3.DQN(
        "MlpPolicy", ThresholdEnv(cache), gamma=0.0, learning_starts=100, seed=0, device="cpu"
    )
    gym.without_log(model).learn(300)
    assert model._n_updates == 50  # every 4 steps after the first 100
    state, _ = ThresholdEnv(cache).reset(seed=0)
    action, _ = model.predict(state, deterministic=True)
    assert 0 <= int(action) < 21


@pytest.mark.parametrize(
    ("policy", "reading"), [("mlp", "sequential"), ("qnetwork", "independent")]
)
def test_the_study(folder, tmp_path, capsys, policy, reading):
    """Trained, evaluated, written; the saved model decides as the results say."""
    bandit = READINGS[reading]
    changes = {"bandit": bandit, "policy": policy}
    if policy == "qnetwork":
        changes["network"] = TINY
    cfg = study_config(folder, tmp_path / "sb3", **changes)
    gym.main(cfg)
    printed = capsys.readouterr().out
    results = json.loads((cfg.out / "results.json").read_text())
    assert f"gain_f1: {results['gain']['f1']:+.4f}" in printed
    assert results["gradient_steps"] == (400 - 64) // 8
    assert contents(cfg.out) == ["model.zip", "results.json"]
    cache = load_cache(folder / "validation")
    model = stable_baselines3.DQN.load(cfg.out / "model.zip", device="cpu")
    env, rewards = ThresholdEnv(cache, bandit), []

    def choose(state):
        return int(model.predict(state, deterministic=True)[0])

    for pair in range(len(cache.pairs)):
        rewards += [step[2] for step in episode(env, pair, choose)]
    signals = to_device(cache, bandit, CPU)
    same = mean_reward(
        signals, torch.full_like(signals.label, bandit.no_change, dtype=torch.int64), bandit
    )
    assert results["mean_reward_before"] == pytest.approx(same)
    if reading == "independent":  # the other one leaves the first frame out
        assert results["mean_reward_after"] == pytest.approx(np.mean(rewards), abs=1e-6)
    else:
        assert results["mean_reward_after"] == pytest.approx(np.mean(rewards), abs=0.03)
    with pytest.raises(InputError, match="holds an earlier run"):
        gym.main(cfg)
    if policy == "qnetwork":
        return
    gym.main(dataclasses.replace(cfg, overwrite=True))
    again = json.loads((cfg.out / "results.json").read_text())
    assert (again["after"], again["gain"]) == (results["after"], results["gain"])  # same seed


def test_the_settings_of_learning_arrive(folder, cache, tmp_path):
    learning = Learning(lanes=8, replay=4_000, train_start=200, epsilon_end=0.1)
    cfg = study_config(folder, tmp_path, learning=learning, steps=2_000, policy="qnetwork")
    model = make_dqn(cfg, cache, CPU)
    assert (model.gamma, model.batch_size, model.learning_rate) == (0.0, 32, 1e-4)
    assert model.replay_buffer.buffer_size * model.n_envs == 4_000
    assert (model.train_freq.frequency, model.gradient_steps, model.n_envs) == (4, 1, 8)
    assert (model.exploration_initial_eps, model.exploration_final_eps) == (1.0, 0.1)
    assert model.exploration_fraction == 0.7
    ours = sum(weight.numel() for weight in QNetwork(Bandit(), Network()).parameters())
    assert sum(weight.numel() for weight in model.q_net.parameters()) == ours
    learning = dataclasses.replace(learning, epsilon_episodes=10)
    model = make_dqn(dataclasses.replace(cfg, learning=learning, all_frames=True), cache, CPU)
    assert model.exploration_fraction == pytest.approx(10 * len(cache.label) / 6 / 2_000)


def test_it_learns_which_action_pays(tmp_path):
    """Every frame is on and just below its threshold: only lower thresholds are right."""
    write_cache(tmp_path / "cache" / "train", [80] * 4)
    cache = load_cache(tmp_path / "cache" / "train")
    signals = {name: values.copy() for name, values in cache.signals.items()}
    signals["t_base"][:] = signals["prob"] + np.float32(0.01)
    signals["t_base"].clip(0.3, 0.9, out=signals["t_base"])
    signals["prob"] = signals["t_base"] - np.float32(0.01)
    signals["binary"][:] = 0
    cache = dataclasses.replace(cache, signals=signals, label=np.ones(len(cache.label), bool))
    learning = Learning(lanes=8, frames_per_step=8, train_start=200, lr=3e-3)
    cfg = study_config(tmp_path, tmp_path / "sb3", learning=learning, steps=4_000)
    model = make_dqn(cfg, cache, CPU)
    gym.learn(model, cfg.steps)
    resident = to_device(cache, cfg.bandit, CPU)
    actions = greedy_actions(model.q_net, resident, cfg.bandit, 64)
    assert mean_reward(resident, torch.full_like(actions, 10), cfg.bandit) == pytest.approx(-0.2)
    assert mean_reward(resident, actions, cfg.bandit) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 64}, "nothing would be learned"),
        ({"learning": Learning(acting="dropout")}, "--learning.acting eval"),
        ({"learning": Learning(episode_order="sorted")}, "--learning.episode-order shuffled"),
        ({"learning": Learning(lanes=5)}, "divide one another"),
        ({"network": TINY}, "--policy qnetwork"),
    ],
)
def test_what_it_cannot_do_is_refused(folder, tmp_path, changes, message):
    cfg = study_config(folder, tmp_path / "sb3", **changes)
    with pytest.raises(InputError, match=message):
        gym.main(cfg)
    assert not cfg.out.exists()


def test_missing_stable_baselines3_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    cfg = study_config(folder, tmp_path / "sb3")
    with pytest.raises(InputError, match="needs stable_baselines3; run: pip install -r requirem"):
        gym.main(cfg)
    assert not cfg.out.exists()


def test_missing_gymnasium_is_named(monkeypatch, capsys):
    """As a program: one line, exit code 2."""
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.setattr(sys, "argv", ["gym.py"])  # not what pytest was given
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "studies" / "gym.py"), run_name="__main__")
    line = "gym.py needs gymnasium; run: pip install -r requirements-studies.txt"
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"gym.py: error: {line}\n"
    with pytest.raises(InputError, match=line):
        runpy.run_path(str(ROOT / "studies" / "gym.py"))
