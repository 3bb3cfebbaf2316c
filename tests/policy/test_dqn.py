"""The bandit and its training: batched = one at a time, rewards, exploration, learning."""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache
from reference import play
from torch import nn

from benchmarks.naive import greedy, reward_of
from config import Bandit, Learning, Network, TrainConfig
from core.errors import InputError
from core.processes import process_pool
from DQN import QNetwork, Trainer, epsilon_at, main, replay_columns
from policy import runfolder
from policy.apply import greedy_actions, load_policy
from policy.bandit import (
    hold_out,
    make_states,
    near,
    reward_cells,
    reward_table,
    thresholds,
    to_device,
)
from policy.qlearning import Replay
from sed.caches import load_cache

TINY = Network(hidden=8, heads=2)
LEARNING = Learning(lanes=4, batch=4, train_start=4, lr=3e-3)
ROOT = Path(__file__).resolve().parent.parent.parent
READINGS = {
    "independent": Bandit(),
    "sequential": Bandit(reading="sequential", boundary_test="after", channel_order="original"),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dqn") / "cache" / "train"
    write_cache(folder, [137, 160, 12, 90, 2, 75])
    return load_cache(folder)


def network_for(bandit, seed=0, network=TINY):
    torch.manual_seed(seed)
    net = QNetwork(bandit, network)
    with torch.no_grad():  # larger weights in the head, so that actions differ between frames
        net.head[2].weight *= 20
    return net


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_batched_equals_one_at_a_time(cache, reading, batch):
    bandit = READINGS[reading]
    net = network_for(bandit)
    signals = to_device(cache, bandit, CPU)
    actions = greedy_actions(net, signals, bandit, batch)
    pred = (signals.prob > thresholds(signals, actions, bandit)).numpy()
    deltas, distinct = list(bandit.deltas), set()
    for index in range(len(cache.pairs)):
        choose = greedy(net)
        steps = play(cache.of_pair(index), choose, bandit.channels, deltas, reading)
        first = int(cache.offsets[index])
        for (frame, action, _, inside, _, decision), gap in zip(steps, choose.gaps, strict=True):
            got = int(actions[first + frame])
            if gap < 1e-5:
                continue  # two Q-values tie within float tolerance
            assert pred[first + frame] == decision
            if inside or reading == "sequential":
                assert got == action
                distinct.add(action)
    assert len(distinct) > 2  # the comparison means something


def test_sequential_keeps_the_first_frame(cache):
    bandit = READINGS["sequential"]
    actions = greedy_actions(network_for(bandit), to_device(cache, bandit, CPU), bandit, 64)
    assert (actions[torch.from_numpy(cache.offsets[:-1])] == bandit.no_change).all()


def test_chosen_pairs_equal_a_full_pass(cache):
    for bandit in READINGS.values():
        net, signals = network_for(bandit), to_device(cache, bandit, CPU)
        full = greedy_actions(net, signals, bandit, 64)
        some = greedy_actions(net, signals, bandit, 64, np.array([3, 1]))
        for index in range(len(cache.pairs)):
            span = slice(cache.offsets[index], cache.offsets[index + 1])
            expected = full[span] if index in (1, 3) else torch.full_like(full[span], 10)
            assert torch.equal(some[span], expected)


@pytest.mark.parametrize("reading", ["independent", "sequential"])
def test_no_pairs_need_no_decision(cache, reading):
    """A process may have none: there are more of them than pairs."""
    bandit = Bandit(reading=reading)
    none = np.array([], dtype=np.int64)
    actions = greedy_actions(network_for(bandit), to_device(cache, bandit, CPU), bandit, 64, none)
    assert (actions == bandit.no_change).all() and len(actions) == len(cache.label)


def test_greedy_twice_is_equal_in_any_mode(cache):
    bandit = READINGS["independent"]
    net, signals = network_for(bandit), to_device(cache, bandit, CPU)
    net.train()
    first = greedy_actions(net, signals, bandit, 64)
    assert torch.equal(first, greedy_actions(net, signals, bandit, 64))


def test_last_layer_of_one_frame_equals_the_whole_layer():
    bandit = Bandit()
    net = QNetwork(bandit, Network()).eval()
    assert sum(p.numel() for p in net.parameters()) == 1_736_213  # spec section 4
    x = torch.randn(5, bandit.window, 256)
    whole = net.transformer.layers[-1](x)[:, bandit.context]
    assert torch.allclose(net.last_layer(x), whole, atol=2e-6)


def test_state_dict_has_the_original_names():
    names = set(QNetwork(Bandit(), Network()).state_dict())
    expected = {"tcn.0.weight", "tcn.2.weight", "tcn.9.bias", "gru.weight_ih_l1_reverse"}
    expected |= {"transformer.layers.1.self_attn.in_proj_weight", "pre_norm.weight"}
    assert expected | {"head.0.weight", "head.2.bias"} <= names


class OriginalTwin(nn.Module):
    """The original program's network with every layer whole, as the specification describes it."""

    def __init__(self):
        super().__init__()
        layers = []
        for i, dilation in enumerate((1, 2, 4, 8)):
            conv = nn.Conv1d(128 if i else 6, 128, 3, padding=dilation, dilation=dilation)
            layers += [conv, nn.GELU(), nn.GroupNorm(4, 128)]
        self.tcn = nn.Sequential(*layers)
        self.gru = nn.GRU(128, 128, 2, batch_first=True, bidirectional=True)
        layer = nn.TransformerEncoderLayer(256, 4, 512, 0.1, "gelu", batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2)
        self.pre_norm = nn.LayerNorm(256)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 21))

    def forward(self, states):
        x = self.tcn(states).permute(0, 2, 1)
        x = self.transformer(self.pre_norm(self.gru(x)[0]))
        return self.head(x[:, 10])


def test_checkpoint_of_the_original_authors(cache, tmp_path):
    torch.manual_seed(5)
    twin = OriginalTwin()
    with torch.no_grad():
        twin.head[2].weight *= 20
    torch.save(twin.state_dict(), tmp_path / "dqn_threshold.pt")
    policy = load_policy(tmp_path / "dqn_threshold.pt", CPU, "original")
    bandit = policy.bandit
    assert bandit.channels == ("d_raw", "d_adj", "prob", "rms", "t_base", "binary")
    actions = greedy_actions(policy.network, to_device(cache, bandit, CPU), bandit, 64)
    for index in (0, 2):
        choose = greedy(twin)
        steps = play(
            cache.of_pair(index), choose, bandit.channels, list(bandit.deltas), "sequential"
        )
        for (frame, action, *_), gap in zip(steps, choose.gaps, strict=True):
            if gap > 1e-4:
                assert int(actions[cache.offsets[index] + frame]) == action


# ---------------------------------------------------------------------------- reward, boundary


def test_reward_table():
    table = reward_table(Bandit())
    for before in (False, True):
        for after in (False, True):
            cell = reward_cells(torch.tensor([before]), torch.tensor([after]))
            assert table[cell].item() == pytest.approx(reward_of(before, after))


def test_boundary_is_inclusive_and_knows_no_action():
    prob = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.9])
    t_base = torch.tensor([0.3, 0.7, 0.29, 0.9, 0.9])
    assert near(prob, t_base, 0.2).tolist() == [True, True, False, False, True]


def test_states_repeat_the_edges(cache):
    bandit = Bandit(context=2)
    signals = to_device(cache, bandit, CPU)
    pair, frame = torch.tensor([1, 1]), torch.tensor(cache.offsets[1:3] - [0, 1])
    states = make_states(signals, pair, frame, bandit)
    rms = torch.from_numpy(cache.of_pair(1)["rms"])
    assert torch.equal(states[0, 0], rms[[0, 0, 0, 1, 2]])
    assert torch.equal(states[1, 0], rms[[-3, -2, -1, -1, -1]])


@pytest.mark.parametrize("reading", READINGS)
def test_training_visits_are_those_of_the_naive_version(cache, reading):
    """One lane: the replay holds what walking frame by frame with the same actions stores."""
    bandit = READINGS[reading]
    learning = Learning(lanes=1, train_start=40_000, episode_order="sorted")
    cfg = TrainConfig(bandit=bandit, network=TINY, learning=learning, holdout=0.0, passes=1)
    trainer = Trainer(cfg, cache, CPU)
    totals, taken = {}, {}
    choose_actions = trainer.select_actions

    def spy(pair, frame, left, *drawn):
        actions = choose_actions(pair, frame, left, *drawn)
        taken.update(zip(frame.tolist(), actions.tolist(), strict=True))
        return actions

    trainer.select_actions = spy
    while not trainer.done:
        for episode, cells in trainer.tick():
            totals[episode] = float((torch.tensor(cells) * reward_table(bandit)).sum())
    rows = trainer.replay.columns
    stored = {
        (int(rows["pair"][i]), int(rows["frame"][i])): (
            int(rows["action"][i]),
            float(rows["reward"][i]),
        )
        for i in range(len(trainer.replay))
    }
    seen = 0
    for episode, index in enumerate(trainer.order):
        first, length = int(cache.offsets[index]), cache.pairs[index].num_frames
        frames = range(1 if reading == "sequential" else 0, length)
        given = iter([taken[first + frame] for frame in frames])
        steps = play(
            cache.of_pair(index),
            lambda _, given=given: next(given),
            bandit.channels,
            list(bandit.deltas),
            reading,
        )
        for frame, action, reward, before, after, _ in steps:
            key = (int(index), first + frame)
            assert (key in stored) == (before if bandit.boundary_test == "before" else after)
            if key in stored:
                seen += 1
                assert stored[key] == (action, pytest.approx(reward))
        assert totals[episode] == pytest.approx(sum(step[2] for step in steps), abs=1e-3)
    assert seen == len(stored) > 20


@pytest.mark.parametrize("reading", READINGS)
def test_pairs_of_a_single_frame(tmp_path, reading):
    write_cache(tmp_path / "cache" / "train", [1, 1, 1, 30])
    cfg = small_config(tmp_path, bandit=READINGS[reading], passes=12)
    assert main(cfg) == 0
    assert load_policy(cfg.run / "best.pt", CPU).info["finished"] > 0


def test_replayed_states_show_the_actions_to_the_left(cache):
    """Sequential reading: a sampled transition shows the state in which it was taken."""
    bandit = READINGS["sequential"]
    learning = Learning(lanes=3, train_start=40_000)
    cfg = TrainConfig(bandit=bandit, network=TINY, learning=learning, holdout=0.0, passes=1)
    trainer = Trainer(cfg, cache, CPU)
    shown = {}
    choose = trainer.select_actions

    def spy(pair, frame, left, *drawn):
        states = make_states(trainer.signals, pair, frame, bandit, left)
        for i in range(len(pair)):
            shown[int(frame[i])] = states[i].clone()
        return choose(pair, frame, left, *drawn)

    trainer.select_actions = spy
    while not trainer.done:
        trainer.tick()
    rows = trainer.replay.sample(20, np.random.default_rng(0))
    states = make_states(
        trainer.signals, rows["pair"].long(), rows["frame"].long(), bandit, rows["left"].long()
    )
    for i in range(20):
        assert torch.equal(states[i], shown[int(rows["frame"][i])])


# ---------------------------------------------------------------------------- replay, exploration


def test_epsilon_end_points():
    learning = Learning()
    assert epsilon_at(0, 1000, learning) == 1.0
    assert epsilon_at(350, 1000, learning) == pytest.approx(0.525)
    assert epsilon_at(700, 1000, learning) == pytest.approx(0.05)
    assert epsilon_at(5000, 1000, learning) == pytest.approx(0.05)
    fixed = Learning(epsilon_episodes=20_000)
    assert epsilon_at(10_000, 1, fixed) == pytest.approx(0.525)
    assert epsilon_at(20_000, 1, fixed) == pytest.approx(0.05)


def test_replay_keeps_the_newest():
    replay = Replay(5, replay_columns(2, True), CPU)
    for first in (0, 4):
        n = torch.arange(first, first + 4)
        left = torch.stack([n, n], 1)
        replay.add(pair=n, frame=n + 10, action=n, reward=n.float(), left=left)
    assert len(replay) == 5
    assert sorted(replay.columns["pair"].tolist()) == [3, 4, 5, 6, 7]
    rows = replay.sample(5, np.random.default_rng(0))
    assert sorted(rows["pair"].tolist()) == [3, 4, 5, 6, 7]  # without repetition
    assert torch.equal(rows["frame"], rows["pair"] + 10)
    assert torch.equal(rows["left"][:, 0].int(), rows["pair"])


def test_a_pool_ends_with_what_uses_it():
    began = time.monotonic()
    with pytest.raises(KeyError), process_pool(1) as pool:
        pool.submit(time.sleep, 60)
        pool.submit(time.sleep, 60)
        raise KeyError
    while multiprocessing.active_children() and time.monotonic() < began + 20:
        time.sleep(0.05)
    assert time.monotonic() < began + 20


def test_resume_command_is_quoted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["DQN.py", "--run", "my run", "--overwrite"])
    assert runfolder.resume_command() == "python DQN.py --run 'my run' --resume"


def test_hold_out_keeps_clips_whole(cache):
    train, held_out = hold_out(cache, TrainConfig(holdout=0.4, seed=0))
    assert sorted([*train, *held_out]) == list(range(len(cache.pairs)))
    sides = [{cache.pairs[i].filename for i in side} for side in (train, held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(hold_out(cache, TrainConfig(holdout=0.0, seed=0))[1]) == 0


def small_config(folder, **changes):
    learning = changes.pop("learning", LEARNING)
    defaults = {
        "cache": folder / "cache",
        "run": folder / "runs" / "a",
        "network": TINY,
        "learning": learning,
        "passes": 1,
        "holdout": 0.2,
        "device": "cpu",
    }
    return TrainConfig(**(defaults | changes))


def test_one_gradient_step_per_32_frames(tmp_path):
    write_cache(tmp_path / "cache" / "train", [50, 70, 64, 81])
    # A boundary of 1 stores every frame, so that learning starts early.
    bandit, learning = Bandit(boundary_width=1, max_delta=1), Learning(lanes=3, train_start=32)
    cfg = small_config(tmp_path, holdout=0.0, learning=learning, bandit=bandit)
    trainer = Trainer(cfg, load_cache(tmp_path / "cache" / "train"), CPU)
    ready = None
    while not trainer.done:
        before = trainer.progress["frames"]
        trainer.tick()
        if ready is None and trainer.replay.count > 32:
            ready = before
    assert trainer.progress["frames"] == 265
    assert trainer.progress["steps"] == 265 // 32 - ready // 32


def test_a_known_best_action_is_learned_and_noise_is_not(tmp_path):
    """Toy task: the truth is `rms > 0.5`, far from where the base threshold cuts."""
    folder = tmp_path / "cache" / "train"
    write_cache(folder, [200] * 8)
    cache = load_cache(folder)
    rng = np.random.default_rng(0)
    n = len(cache.label)
    blocks = np.repeat(rng.random(n // 20), 20)[:n].astype(np.float32)
    cache.signals["rms"][:] = blocks
    cache.signals["prob"][:] = 0.5
    cache.signals["t_base"][:] = rng.choice([0.4, 0.6], n)
    cache.signals["binary"][:] = cache.signals["prob"] > cache.signals["t_base"]
    learned = {}
    for kind in ("truth", "noise"):
        cache.label[:] = blocks > 0.5 if kind == "truth" else rng.random(n) > 0.5
        learning = Learning(lanes=8, train_start=100, lr=3e-3, frames_per_step=8)
        bandit = Bandit(context=2)
        changes = {"learning": learning, "bandit": bandit, "network": SMALLEST}
        cfg = small_config(tmp_path, holdout=0.0, passes=3, **changes)
        trainer = Trainer(cfg, cache, CPU)
        while not trainer.done:
            trainer.tick()
        actions = greedy_actions(trainer.network, trainer.signals, cfg.bandit, 256)
        pred = trainer.signals.prob > thresholds(trainer.signals, actions, cfg.bandit)
        learned[kind] = float((pred.numpy() == cache.label).mean())
    assert learned["truth"] > 0.85  # nothing learned: 0.5
    assert learned["noise"] < 0.65


# ---------------------------------------------------------------------------- run folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55, 60, 40])
    return tmp_path


def test_same_seed_same_numbers_other_seed_others(small):
    digests = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main(small_config(small, run=small / "runs" / name, seed=seed)) == 0
        content = runfolder.read_checkpoint(small / "runs" / name / "last.pt")
        digests[name] = runfolder.digest({k: content[k] for k in ("network", "replay", "rng")})
    assert digests["a"] == digests["b"] != digests["c"]
    texts = [(small / "runs" / name / "reward_history.tsv").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_history_and_files(small):
    assert main(small_config(small, checkpoint_every=4)) == 0
    run = small / "runs" / "a"
    history = runfolder.read_history(run)
    episodes = len(history["Episode"])
    assert sorted(history["Episode"]) == list(range(episodes))
    frames = sum(history[name] for name in runfolder.CELLS)
    assert set(frames) <= {40, 45, 50, 55, 60}
    reward = 0.2 * history["Kept"] - history["Broken"] - 0.2 * history["Missed"] + history["Fixed"]
    assert np.allclose(history["Reward"], reward, atol=1e-3)
    last = [history["Reward"][max(0, i - 9) : i + 1].mean() for i in range(episodes)]
    assert np.allclose(history["Avg10"], last, atol=1e-3)
    assert json.loads((run / "config.json").read_text())["seed"] == 0
    for name in ("best.pt", "last.pt", "episode-000004.pt"):
        assert load_policy(run / name, CPU).network is not None
    assert not list(run.glob("*.tmp"))


def test_an_earlier_run_is_not_overwritten(small):
    main(small_config(small))
    with pytest.raises(InputError, match="already holds a run"):
        main(small_config(small))
    assert main(small_config(small, overwrite=True)) == 0
    assert main(small_config(small, resume=True)) == 0  # complete: says so, changes nothing


def test_only_an_earlier_run_is_removed(small):
    run = small / "runs" / "a"
    main(small_config(small))
    for name in ("results.json", "notes.txt", "mine.pt"):
        (run / name).write_text("{}")
    main(small_config(small, overwrite=True))
    assert not (run / "results.json").exists()  # of the policy that is gone
    assert (run / "notes.txt").exists() and (run / "mine.pt").exists()
    (small / "authors").mkdir()
    (small / "authors" / "dqn_threshold.pt").write_text("precious")
    with pytest.raises(InputError, match="holds other files and no run"):
        main(small_config(small, run=small / "authors", overwrite=True))
    assert (small / "authors" / "dqn_threshold.pt").read_text() == "precious"


def test_a_lost_history_row_does_not_stop_a_resume(small, capsys):
    cfg = small_config(small)
    trainer = Trainer(cfg, load_cache(small / "cache" / "train"), CPU)
    with runfolder.held_run(cfg.run):
        runfolder.open_run(cfg, trainer.cache.key, CPU)
    while trainer.progress["finished"] < 3:
        trainer.tick()
    runfolder.write_checkpoint(cfg.run / "last.pt", trainer.state())
    assert main(replace(cfg, resume=True)) == 0
    lost = trainer.progress["finished"] + 1  # the header too
    assert f"lost {lost} of its rows" in capsys.readouterr().out


def test_resume_refuses_another_config_or_cache(small):
    main(small_config(small))
    changed = replace(LEARNING, lr=1e-3)
    with pytest.raises(InputError, match=r"--learning\.lr was 0\.003, now 0\.001"):
        main(small_config(small, resume=True, learning=changed))
    write_cache(small / "cache" / "train", [60, 40, 50, 60, 45, 55, 60, 40], seed=9)
    with pytest.raises(InputError, match="cache has changed"):
        main(small_config(small, resume=True))
    with pytest.raises(InputError, match="not found"):
        main(small_config(small, resume=True, run=small / "runs" / "none"))


@pytest.mark.parametrize("damage", ["truncate", "text", "list"])
def test_damaged_checkpoint(small, damage):
    main(small_config(small))
    path = small / "runs" / "a" / "best.pt"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"best.pt"):
        load_policy(path, CPU)


def test_a_checkpoint_of_an_older_version(small):
    """One that knows fewer settings did what is their default now: it is read, and goes on."""
    main(small_config(small))
    for name in ("best.pt", "last.pt"):
        path = small / "runs" / "a" / name
        content = torch.load(path, weights_only=True)
        config = json.loads(content["config"])
        del config["events"], config["bandit"]["boundary_test"], config["looks"]
        runfolder.write_checkpoint(path, content | {"config": json.dumps(config)})
    assert load_policy(path, CPU).bandit == Bandit()
    assert main(small_config(small, resume=True)) == 0
    former = config | {"dense": {"hidden": 32}, "method": "dense", "preset": "best"}
    runfolder.write_checkpoint(path, content | {"config": json.dumps(former)})
    with pytest.raises(InputError, match="--method dense is gone"):
        load_policy(path, CPU)
    of_then = config | {"dense": {"hidden": 32}}  # a group of settings that it did not use
    runfolder.write_checkpoint(path, content | {"config": json.dumps(of_then)})
    assert load_policy(path, CPU).bandit == Bandit()
    del config["learning"]["lr"]
    runfolder.write_checkpoint(path, content | {"config": json.dumps(config)})
    with pytest.raises(InputError, match=r"--learning\.lr was 0\.0001, now 0\.003"):
        main(small_config(small, resume=True))


def test_weights_of_another_size(small):
    main(small_config(small))
    path = small / "runs" / "a" / "best.pt"
    content = torch.load(path, weights_only=True)
    config = json.loads(content["config"])
    config["network"]["hidden"] = 16
    runfolder.write_checkpoint(path, content | {"config": json.dumps(config)})
    with pytest.raises(InputError, match="do not fit"):
        load_policy(path, CPU)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    good = tmp_path / "last.pt"
    runfolder.write_checkpoint(good, {"step": 1})
    save = torch.save

    def full(content: dict, _: object) -> None:
        with open("/dev/full", "wb") as stream:
            save(content, stream)

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system to play a full disk")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"last\.pt: .*last good one is kept"):
        runfolder.write_checkpoint(good, {"x": torch.zeros(100_000)})
    assert runfolder.read_checkpoint(good) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_damaged_weights_never_act_and_are_never_saved(small):
    main(small_config(small))
    path = small / "runs" / "a" / "best.pt"
    content = torch.load(path, weights_only=True)
    content["network"]["head.2.bias"][3] = float("nan")
    runfolder.write_checkpoint(path, content)
    policy, cache = load_policy(path, CPU), load_cache(small / "cache" / "train")
    signals = to_device(cache, policy.bandit, CPU)
    for bandit in (policy.bandit, replace(policy.bandit, reading="sequential")):
        with pytest.raises(InputError, match="Q-values are not finite"):
            greedy_actions(policy.network, signals, bandit, 64)
    trainer = Trainer(small_config(small), cache, CPU)
    trainer.network.load_state_dict(content["network"])
    with pytest.raises(InputError, match="weights are not finite"):
        trainer.state()


def test_loss_that_is_not_finite_stops_the_run(small):
    cfg = small_config(small, bandit=Bandit(boundary_width=1, max_delta=1))
    trainer = Trainer(cfg, load_cache(small / "cache" / "train"), CPU)
    trainer.table = torch.full((4,), float("inf"))
    with pytest.raises(InputError, match=r"loss is inf at gradient step 0 .*rewards inf"):
        while not trainer.done:
            trainer.tick()


def episodes_logged(run: Path) -> int:
    path = run / "reward_history.tsv"
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


@pytest.mark.parametrize("reading", READINGS)
def test_resume_bit_exact(tmp_path, monkeypatch, fork_server, reading):
    """Killed at 3 moments and resumed each time, a run equals one that was left alone."""
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55, 60, 40])
    acting = "dropout" if reading == "sequential" else "eval"
    learning = Learning(lanes=4, train_start=64, lr=3e-3, acting=acting)
    changes = {"bandit": READINGS[reading], "learning": learning, "network": SMALLEST}
    cfg = small_config(tmp_path, checkpoint_minutes=0.001, passes=6, looks=9, **changes)
    calm, killed = tmp_path / "runs" / "calm", tmp_path / "runs" / "killed"
    rng, total = np.random.default_rng(0), 6 * 6
    for kill in range(3):
        life = replace(cfg, run=killed, resume=kill > 0)
        process = fork_server.Process(target=main, args=(life,))
        process.start()
        while episodes_logged(killed) < total * (2 * kill + 1) // 9:
            assert process.is_alive() or process.exitcode == 0
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.05)))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert main(replace(cfg, run=killed, resume=True)) == 0
    assert main(replace(cfg, run=calm)) == 0
    for name in ("last.pt", "best.pt"):
        both = [runfolder.digest(runfolder.read_checkpoint(run / name)) for run in (calm, killed)]
        assert both[0] == both[1], name
    assert (calm / "reward_history.tsv").read_bytes() == (
        killed / "reward_history.tsv"
    ).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_says_how_to_go_on(tmp_path, fork_server, number):
    write_cache(tmp_path / "cache" / "train", [100] * 8)
    flags = "--network.hidden 8 --network.heads 2 --device cpu --passes 200 --run runs/a"
    flags, log = flags.split(), tmp_path / "log"
    given = ([str(ROOT / "DQN.py"), *flags], tmp_path, log)
    process = fork_server.Process(target=forked.script, args=given)
    process.start()
    while not episodes_logged(tmp_path / "runs" / "a"):
        assert process.is_alive(), log.read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    output = log.read_text()
    assert process.exitcode == 128 + number
    assert "stopped and saved after" in output
    assert " ".join([*flags, "--resume"]) in output
    finished = runfolder.read_checkpoint(tmp_path / "runs" / "a" / "last.pt")["info"]["finished"]
    assert finished == episodes_logged(tmp_path / "runs" / "a")
