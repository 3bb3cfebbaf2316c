"""Supervised twins: rewards of all actions, learning, seeds, resume, foreign checkpoints."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache
from naive import moved, reward_of
from torch.nn import functional

import DQN
import runfolder
from bandit import hold_out, make_states, near, to_device
from config import Bandit, InputError, Learning, TrainConfig, TwinsConfig, with_preset
from metrics import mean_f1
from preprocess import load_cache
from twins import Trainer, Twin, all_rewards, decisions, load_twin, main, make_network

CPU = torch.device("cpu")
SHORT = Bandit(context=3)
KINDS = ("classifier", "rewards")


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("twins") / "cache"
    write_cache(folder / "train", [60, 45, 80, 1, 52, 66, 71, 49], seed=1)
    return folder


@pytest.fixture(scope="module")
def cache(caches):
    return load_cache(caches / "train")


def config(caches, run, **changes):
    """About 20 gradient steps."""
    defaults = {
        "cache": caches,
        "run": run,
        "network": SMALLEST,
        "bandit": SHORT,
        "frames_per_step": 16,
        "batch": 8,
        "lr": 3e-3,
        "looks": 4,
        "holdout": 0.25,
        "device": "cpu",
    }
    return TwinsConfig(**(defaults | changes))


def random_twin(kind, cache, seed=0):
    """Its outputs are centred on these frames, so that decisions differ between them."""
    torch.manual_seed(seed)
    network = make_network(kind, SHORT, SMALLEST).eval()
    signals = to_device(cache, SHORT, CPU)
    frame = torch.arange(len(cache.label))
    with torch.no_grad():
        network.head[-1].weight *= 50
        states = make_states(signals, torch.from_numpy(cache.frames_of_pair), frame, SHORT)
        network.head[-1].bias -= network(states).median(0).values
    return Twin(kind, network, SHORT, None, None, {})


# ---------------------------------------------------------------------------- targets


def test_rewards_of_all_actions_against_a_slow_loop(cache):
    frames = np.arange(0, len(cache.label), 3)
    bandit = Bandit()
    found = all_rewards(to_device(cache, bandit, CPU), torch.from_numpy(frames), bandit)
    assert found.shape == (len(frames), 21)
    for row, i in zip(found.tolist(), frames, strict=True):
        before = moved(cache, i, 0) == cache.label[i]
        expected = [reward_of(before, moved(cache, i, d) == cache.label[i]) for d in bandit.deltas]
        assert row == pytest.approx(expected)
    assert len(set(found.flatten().tolist())) == 4  # every cell of the table occurs


@pytest.mark.parametrize("kind", KINDS)
def test_frames_to_learn_from(caches, cache, tmp_path, kind):
    trainer = Trainer(config(caches, tmp_path / "a", kind=kind), cache, CPU)
    train, aside = hold_out(cache, TwinsConfig(holdout=0.25, seed=0))
    assert set(trainer.held_out) == set(aside) and len(aside)
    expected = []
    for index in train:
        for i in range(cache.offsets[index], cache.offsets[index + 1]):
            gap = abs(float(cache.signals["prob"][i]) - float(cache.signals["t_base"][i]))
            if kind == "classifier" or gap <= 0.2 + 1e-6:
                expected.append(i)
    assert sorted(trainer.frames) == sorted(expected)
    assert trainer.steps == sum(np.diff(cache.offsets)[train]) // 16


def test_one_step_is_the_gradient_of_its_loss(caches, cache, tmp_path):
    """Cross-entropy with the label; squared error against every reward."""
    for kind in KINDS:
        cfg = config(caches, tmp_path / kind, kind=kind, network=replace(SMALLEST, dropout=0.0))
        trainer, seen = Trainer(cfg, cache, CPU), []
        trainer.network.register_forward_hook(
            lambda _, given, out, seen=seen: seen.append((given[0], out))
        )
        drawn = np.random.default_rng([0, 4]).choice(trainer.frames, 8)
        loss = trainer.gradient_step()
        (states, out), frame = seen[0], torch.from_numpy(drawn)
        channel = SHORT.channels.index("prob")
        assert torch.equal(states[:, channel, SHORT.context], trainer.signals.prob[frame])
        if kind == "classifier":
            truth, logit = trainer.signals.label[frame].double(), out[:, 0].double()
            expected = (functional.softplus(logit) - truth * logit).mean()
        else:
            expected = (out - all_rewards(trainer.signals, frame, SHORT)).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------------------- learning, deciding


def easy(cache):
    """The truth is `rms > 0.5`; the base threshold knows nothing of it."""
    rng = np.random.default_rng(0)
    n = len(cache.label)
    blocks = np.repeat(rng.random(n // 20 + 1), 20)[:n].astype(np.float32)
    signals = {name: values.copy() for name, values in cache.signals.items()}
    signals["rms"][:], signals["prob"][:] = blocks, 0.5
    signals["t_base"][:] = rng.choice([0.4, 0.6], n)
    signals["binary"][:] = signals["prob"] > signals["t_base"]
    return replace(cache, signals=signals, label=blocks > 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_easy_task_is_learned_and_noise_is_not(tmp_path, kind):
    write_cache(tmp_path / "train", [80] * 10, seed=3)
    cache = easy(load_cache(tmp_path / "train"))
    cfg = config(tmp_path, tmp_path / "a", kind=kind, lr=1e-2, batch=32, frames_per_step=4)
    trainer = Trainer(cfg, cache, CPU)
    losses = [trainer.gradient_step() for _ in range(trainer.steps)]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    base = mean_f1(cache, cache.signals["binary"] > 0.5, trainer.held_out)
    assert trainer.held_out_f1() > base + 0.2
    if kind == "rewards":  # the same code path
        return
    noise = replace(cache, label=np.random.default_rng(1).random(len(cache.label)) > 0.5)
    trainer = Trainer(cfg, noise, CPU)
    for _ in range(trainer.steps):
        trainer.gradient_step()
    on = decisions(trainer.twin, trainer.signals, 256).numpy()
    assert (on == noise.label).mean() < 0.65


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_chosen_pairs_change_no_decision(cache, kind):
    twin, signals = random_twin(kind, cache), to_device(cache, SHORT, CPU)
    twin.network.train()
    full = decisions(twin, signals, 256)
    assert twin.network.training  # as it was
    assert 0.05 < full.float().mean() < 0.95
    assert torch.equal(full, decisions(twin, signals, 7))
    some = decisions(twin, signals, 64, np.array([4, 1]))
    base = signals.prob > signals.t_base
    for index in range(len(cache.pairs)):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        assert torch.equal(some[span], full[span] if index in (1, 4) else base[span])


def test_what_a_twin_decides(cache):
    """A classifier is on above logit 0; one of rewards takes the best action."""
    signals = to_device(cache, SHORT, CPU)
    frames = torch.arange(int(cache.offsets[1]), int(cache.offsets[2]))
    for kind in KINDS:
        twin = random_twin(kind, cache)
        on = decisions(twin, signals, 64)
        twin.network.eval()
        for frame in frames.tolist():
            own = range(frame - 3, frame + 4)
            own = [min(max(i, int(frames[0])), int(frames[-1])) for i in own]
            with torch.no_grad():
                out = twin.network(signals.channels[:, own][None])[0]
            if kind == "classifier":
                assert bool(on[frame]) == bool(out[0] > 0)
            elif near(float(signals.prob[frame]), float(signals.t_base[frame]), 0.2):
                delta = SHORT.deltas[int(out.argmax())]
                assert bool(on[frame]) == moved(cache, frame, delta)


def test_damaged_weights_never_decide_and_are_never_saved(caches, cache, tmp_path):
    for kind in KINDS:
        twin = random_twin(kind, cache)
        with torch.no_grad():
            twin.network.head[-1].bias[0] = float("nan")
        with pytest.raises(InputError, match="not finite"):
            decisions(twin, to_device(cache, SHORT, CPU), 64)
        trainer = Trainer(config(caches, tmp_path / "a", kind=kind), cache, CPU)
        trainer.network.load_state_dict(twin.network.state_dict())
        with pytest.raises(InputError, match="weights are not finite"):
            trainer.policy()
        with pytest.raises(InputError, match=r"loss is nan at gradient step 0 .*smaller --lr"):
            trainer.gradient_step()


def test_no_frame_inside_the_boundary(caches, cache, tmp_path):
    far = replace(cache, signals=cache.signals | {"t_base": cache.signals["prob"] + 0.5})
    with pytest.raises(InputError, match="no frame lies inside the boundary"):
        Trainer(config(caches, tmp_path / "a", kind="rewards"), far, CPU)


# ---------------------------------------------------------------------------- run folder


def digest_of(path):
    return runfolder.digest(runfolder.read_checkpoint(path))


def test_same_seed_same_weights_other_seed_others(caches, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main(config(caches, tmp_path / name, seed=seed)) == 0
    for file in ("last.pt", "best.pt"):
        digests = [digest_of(tmp_path / name / file) for name in "abc"]
        assert digests[0] == digests[1] != digests[2]


class Stop:
    """Plays a signal that arrives after some gradient steps of a life."""

    def __init__(self, monkeypatch):
        self.received, self.left = [], None
        real = Trainer.gradient_step

        def step(trainer):
            value = real(trainer)
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    self.received.append(15)
            return value

        monkeypatch.setattr(Trainer, "gradient_step", step)
        monkeypatch.setattr(runfolder, "catch_signals", self.catch)

    def catch(self):
        self.received = []
        return self.received


@pytest.mark.parametrize("kind", KINDS)
def test_resume_bit_exact(caches, tmp_path, monkeypatch, capsys, kind):
    """Stopped twice, and thrown back to an older last.pt as after a power failure."""
    stop = Stop(monkeypatch)
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    cfg = config(caches, torn, kind=kind, passes=2)
    assert main(replace(cfg, run=calm)) == 0
    total = runfolder.read_checkpoint(calm / "last.pt")["info"]["steps"]
    assert total > 24
    stop.left = 7
    assert main(cfg) == 128 + 15
    assert "stopped and saved after 7 steps; to go on, run:" in capsys.readouterr().out
    shutil.copy(torn / "last.pt", tmp_path / "old.pt")
    stop.left = 11
    assert main(replace(cfg, resume=True)) == 128 + 15
    assert runfolder.read_checkpoint(torn / "last.pt")["info"]["steps"] == 18
    shutil.copy(tmp_path / "old.pt", torn / "last.pt")
    stop.left = None
    assert main(replace(cfg, resume=True)) == 0
    for name in ("last.pt", "best.pt"):
        assert digest_of(calm / name) == digest_of(torn / name), name
    assert not list(torn.glob("*.tmp"))
    before = (torn / "last.pt").read_bytes()
    assert main(replace(cfg, resume=True)) == 0
    assert "this run is complete" in capsys.readouterr().out
    assert (torn / "last.pt").read_bytes() == before


def test_the_best_of_all_looks_is_kept(caches, tmp_path, monkeypatch):
    seen = []
    real = Trainer.held_out_f1

    def look(trainer):
        seen.append((real(trainer), trainer.progress["steps"]))
        return seen[-1][0]

    monkeypatch.setattr(Trainer, "held_out_f1", look)
    assert main(config(caches, tmp_path / "a", passes=3)) == 0
    assert len(seen) == 4
    info = runfolder.read_checkpoint(tmp_path / "a" / "best.pt")["info"]
    best = max(seen, key=lambda row: row[0])
    assert (info["best_f1"], info["best_step"], info["steps"]) == (*best, best[1])
    assert main(config(caches, tmp_path / "b", holdout=0.0)) == 0  # the newest is the best
    both = [runfolder.read_checkpoint(tmp_path / "b" / f"{name}.pt") for name in ("last", "best")]
    assert runfolder.digest(both[0]["network"]) == runfolder.digest(both[1]["network"])


def test_refusals(caches, tmp_path):
    cfg = config(caches, tmp_path / "twin")
    assert main(cfg) == 0
    with pytest.raises(InputError, match="already holds a run"):
        main(cfg)
    with pytest.raises(InputError, match="--kind was classifier, now rewards"):
        main(replace(cfg, kind="rewards", resume=True))
    with pytest.raises(InputError, match=r"--frames-per-step was 16, now 8; --lr was 0\.003"):
        main(replace(cfg, lr=1e-3, frames_per_step=8, resume=True))
    write_cache(tmp_path / "other" / "train", [60, 45, 80, 52], seed=5)
    with pytest.raises(InputError, match="the cache has changed"):
        main(replace(cfg, cache=tmp_path / "other", resume=True))
    with pytest.raises(InputError, match="nothing to resume"):
        main(replace(cfg, run=tmp_path / "none", resume=True))
    (tmp_path / "twin" / "decisions").mkdir()
    (tmp_path / "twin" / "decisions" / "best-0-0.npz").touch()
    assert main(replace(cfg, overwrite=True)) == 0
    assert not (tmp_path / "twin" / "decisions").exists()  # of the twin that is gone


def test_a_policy_is_no_twin_and_the_other_way_round(caches, cache, tmp_path):
    same = {"cache": caches, "network": SMALLEST, "bandit": SHORT, "device": "cpu"}
    learning = Learning(lanes=4, batch=8, train_start=8)
    policy = TrainConfig(**same, run=tmp_path / "dqn", learning=learning, passes=1)
    twin = config(caches, tmp_path / "twin")
    assert DQN.main(policy) == main(twin) == 0
    with pytest.raises(InputError, match=r"holds no twin; only a last\.pt of twins\.py"):
        main(replace(twin, run=policy.run, resume=True))
    with pytest.raises(InputError, match=r"holds no recent; only a last\.pt of DQN\.py"):
        DQN.main(replace(policy, run=twin.run, resume=True))
    shutil.copy(twin.run / "best.pt", twin.run / "last.pt")
    with pytest.raises(InputError, match="holds no optimizer"):
        main(replace(twin, resume=True))
    with pytest.raises(InputError, match=r"best\.pt: not a checkpoint of twins\.py"):
        load_twin(policy.run / "best.pt", CPU)
    with pytest.raises(InputError) as error:
        DQN.load_policy(twin.run / "best.pt", CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["size", "kind", "no gate", "text", "bare", "config"])
def test_foreign_checkpoints_end_in_one_line(caches, tmp_path, change):
    assert main(config(caches, tmp_path / "a")) == 0
    path = tmp_path / "a" / "best.pt"
    content = torch.load(path, weights_only=True)
    config_ = json.loads(content["config"])
    if change == "size":
        config_["network"]["hidden"] = 8
    elif change == "kind":
        config_["kind"] = "rewards"  # 21 outputs
    elif change == "config":
        config_["surprise"] = 1
    content["config"] = "{" if change == "text" else json.dumps(config_)
    if change == "no gate":
        del content["gate"]
    runfolder.write_checkpoint(path, {"twin": "classifier"} if change == "bare" else content)
    with pytest.raises(InputError) as error:
        load_twin(path, CPU)
    assert "\n" not in str(error.value)
    expected = "do not fit" if change in ("size", "kind") else ""
    assert expected in str(error.value)


def test_a_loaded_twin_decides_the_same(caches, cache, tmp_path):
    cfg = replace(with_preset(TwinsConfig, "original"), cache=caches, run=tmp_path / "a")
    cfg = replace(cfg, network=SMALLEST, frames_per_step=32, device="cpu", kind="rewards")
    assert (cfg.bandit.reading, cfg.bandit.channel_order) == ("sequential", "original")
    assert main(cfg) == 0
    twin = load_twin(cfg.run / "best.pt", CPU)
    assert twin.bandit.reading == "independent"  # a twin has taken no earlier decision
    assert twin.bandit.channels[0] == "d_raw"
    assert twin.signal == cache.manifest["signal"]
    trainer = Trainer(cfg, cache, CPU)
    trainer.restore(runfolder.read_checkpoint(cfg.run / "last.pt"))
    twin = load_twin(cfg.run / "last.pt", CPU)
    assert twin.gate == trainer.gate and twin.gate is not None
    assert torch.equal(
        decisions(twin, trainer.signals, 64), decisions(trainer.twin, trainer.signals, 64)
    )


def test_a_preset_never_points_a_twin_at_the_policys_folder():
    for preset in ("slides", "original", "demo"):
        runs = [with_preset(cls, preset).run for cls in (TrainConfig, TwinsConfig)]
        assert runs[0] != runs[1]
