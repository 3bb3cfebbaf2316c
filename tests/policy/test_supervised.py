"""Supervised baselines: rewards of all actions, learning, seeds, resume, older checkpoints."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache
from no_reads import NoCrossings, NoHostCopies, NoOpReads, on_meta
from reference import moved
from torch.nn import functional

import evaluate
import visualize
from benchmarks.naive import reward_of
from comparison import evaluations
from config import Bandit, EvaluateConfig, Learning, TrainConfig, VisualizeConfig
from core.errors import InputError
from core.ranks import Ranks
from DQN import main
from policy import runfolder
from policy.apply import decide_cache, decisions, load_policy
from policy.bandit import hold_out, make_states, near, to_device
from policy.network import make_network
from policy.supervised import SupervisedTrainer, all_rewards
from sed.caches import load_cache
from sed.metrics import mean_f1

CPU = torch.device("cpu")
SHORT = Bandit(context=3)
METHODS = ("classifier", "rewards")


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("supervised") / "cache"
    write_cache(folder / "train", [60, 45, 80, 1, 52, 66, 71, 49], seed=1)
    return folder


@pytest.fixture(scope="module")
def cache(caches):
    return load_cache(caches / "train")


def config(caches, run, **changes):
    """About 20 gradient steps."""
    names = {"lr", "batch", "frames_per_step"} & changes.keys()
    given = {name: changes.pop(name) for name in names}
    defaults = {
        "cache": caches,
        "run": run,
        "network": SMALLEST,
        "bandit": SHORT,
        "method": "classifier",
        "passes": 1,
        "learning": Learning(**({"frames_per_step": 16, "batch": 8, "lr": 3e-3} | given)),
        "looks": 4,
        "holdout": 0.25,
        "device": "cpu",
    }
    return TrainConfig(**(defaults | changes))


def random_network(method, cache, seed=0):
    """Its outputs are centred on these frames, so that decisions differ between them."""
    torch.manual_seed(seed)
    network = make_network(method, SHORT, SMALLEST).eval()
    signals = to_device(cache, SHORT, CPU)
    frame = torch.arange(len(cache.label))
    with torch.no_grad():
        network.head[-1].weight *= 50
        states = make_states(signals, torch.from_numpy(cache.frames_of_pair), frame, SHORT)
        network.head[-1].bias -= network(states).median(0).values
    return network


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


@pytest.mark.parametrize("method", METHODS)
def test_frames_to_learn_from(caches, cache, tmp_path, method):
    trainer = SupervisedTrainer(config(caches, tmp_path / "a", method=method), cache, CPU)
    train, aside = hold_out(cache, TrainConfig(holdout=0.25, seed=0))
    assert set(trainer.held_out) == set(aside) and len(aside)
    expected = []
    for index in train:
        for i in range(cache.offsets[index], cache.offsets[index + 1]):
            gap = abs(float(cache.signals["prob"][i]) - float(cache.signals["t_base"][i]))
            if method == "classifier" or gap <= 0.2 + 1e-6:
                expected.append(i)
    assert sorted(trainer.frames) == sorted(expected)
    assert len(trainer.order) == sum(np.diff(cache.offsets)[train]) // 16


def test_one_step_is_the_gradient_of_its_loss(caches, cache, tmp_path):
    """Cross-entropy with the label; squared error against every reward."""
    for method in METHODS:
        network = replace(SMALLEST, dropout=0.0)
        cfg = config(caches, tmp_path / method, method=method, network=network)
        trainer, seen = SupervisedTrainer(cfg, cache, CPU), []
        trainer.network.register_forward_hook(
            lambda _, given, out, seen=seen: seen.append((given[0], out))
        )
        drawn = np.random.default_rng([0, 4]).choice(trainer.frames, 8)
        trainer.tick()
        trainer.read_sums()
        loss = trainer.progress["loss_sum"]
        (states, out), frame = seen[0], torch.from_numpy(drawn)
        channel = SHORT.channels.index("prob")
        assert torch.equal(states[:, channel, SHORT.context], trainer.signals.prob[frame])
        if method == "classifier":
            truth, logit = trainer.signals.label[frame].double(), out[:, 0].double()
            expected = (functional.softplus(logit) - truth * logit).mean()
        else:
            expected = (out - all_rewards(trainer.signals, frame, SHORT)).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_for_its_numbers_once(caches, cache, tmp_path, monkeypatch, method):
    """One wait for a GPU: loss, answer and cells come together, the row of the history has none."""
    trainer = SupervisedTrainer(config(caches, tmp_path / "a", method=method), cache, CPU)
    asked, real = [], torch.Tensor.tolist
    told = lambda x: [asked.append(x.device), real(x)][1]  # noqa: E731
    with monkeypatch.context() as patch, NoOpReads():
        patch.setattr(torch.Tensor, "tolist", told)
        ((episode, cells),) = trainer.tick()
    assert len(asked) == 1 and episode == 0 and sum(cells) == 8
    assert all(isinstance(n, int) for n in cells) and trainer.sums.device.type == "cpu"
    trainer, frame = on_meta(trainer), torch.zeros(8, dtype=torch.int64, device="meta")
    trainer.gradient_step(frame)  # brings the tables of actions and rewards
    with NoHostCopies(), NoCrossings():
        assert trainer.gradient_step(frame).device.type == "meta"


@pytest.mark.parametrize("method", METHODS)
def test_several_steps_between_two_looks_are_the_same_steps(caches, cache, tmp_path, method):
    """As on a GPU, where a look is a wait; the last tick has fewer."""
    cfg = config(caches, tmp_path / "a", method=method)
    one, many = (SupervisedTrainer(cfg, cache, CPU) for _ in range(2))
    torch.manual_seed(0)
    rows = [row for _ in one.order for row in one.tick()]
    many.steps_a_tick, ticks = 8, []
    torch.manual_seed(0)
    while not many.done:
        ticks.append(many.tick())
    assert [len(tick) for tick in ticks[:2]] == [8, 8] and len(ticks[-1]) < 8
    assert [row for tick in ticks for row in tick] == rows and one.done
    one.sums -= many.sums  # of losses and answers; sums of sums round otherwise
    assert one.sums.abs().max() < 1e-9 and one.progress == many.progress
    assert runfolder.digest(one.network.state_dict()) == runfolder.digest(many.network.state_dict())


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


def learned(trainer) -> list[float]:
    """Loss of each step of a whole run."""
    losses = []
    while not trainer.done:
        trainer.tick()
        trainer.read_sums()
        losses.append(trainer.progress["loss_sum"])
        trainer.reset_sums()
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_an_easy_task_is_learned_and_noise_is_not(tmp_path, method):
    write_cache(tmp_path / "train", [80] * 10, seed=3)
    cache = easy(load_cache(tmp_path / "train"))
    cfg = config(tmp_path, tmp_path / "a", method=method, lr=1e-2, batch=32, frames_per_step=4)
    trainer = SupervisedTrainer(cfg, cache, CPU)
    losses = learned(trainer)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    base = mean_f1(cache, cache.signals["binary"] > 0.5, trainer.held_out)
    assert trainer.held_out_f1() > base + 0.2
    if method == "rewards":  # the same code path
        return
    noise = replace(cache, label=np.random.default_rng(1).random(len(cache.label)) > 0.5)
    trainer = SupervisedTrainer(cfg, noise, CPU)
    learned(trainer)
    on = decisions(trainer.network, trainer.signals, cfg.bandit, 256)[0].numpy()
    assert (on == noise.label).mean() < 0.65


@pytest.mark.parametrize("method", METHODS)
def test_batch_and_chosen_pairs_change_no_decision(cache, method):
    network, signals = random_network(method, cache), to_device(cache, SHORT, CPU)
    network.train()
    full, actions = decisions(network, signals, SHORT, 256)
    assert (actions is None) == (method == "classifier")
    assert 0.05 < full.float().mean() < 0.95
    assert torch.equal(full, decisions(network, signals, SHORT, 7)[0])
    some, _ = decisions(network, signals, SHORT, 64, np.array([4, 1]))
    base = signals.prob > signals.t_base
    for index in range(len(cache.pairs)):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        assert torch.equal(some[span], full[span] if index in (1, 4) else base[span])


def test_what_a_baseline_decides(cache):
    """A classifier is on above logit 0; one of rewards takes the best action."""
    signals = to_device(cache, SHORT, CPU)
    frames = torch.arange(int(cache.offsets[1]), int(cache.offsets[2]))
    for method in METHODS:
        network = random_network(method, cache)
        on, _ = decisions(network, signals, SHORT, 64)
        for frame in frames.tolist():
            own = range(frame - 3, frame + 4)
            own = [min(max(i, int(frames[0])), int(frames[-1])) for i in own]
            with torch.no_grad():
                out = network(signals.channels[:, own][None])[0]
            if method == "classifier":
                assert bool(on[frame]) == bool(out[0] > 0)
            elif near(float(signals.prob[frame]), float(signals.t_base[frame]), 0.2):
                delta = SHORT.deltas[int(out.argmax())]
                assert bool(on[frame]) == moved(cache, frame, delta)


def test_damaged_weights_never_decide_and_are_never_saved(caches, cache, tmp_path):
    for method in METHODS:
        network = random_network(method, cache)
        with torch.no_grad():
            network.head[-1].bias[0] = float("nan")
        with pytest.raises(InputError, match="not finite"):
            decisions(network, to_device(cache, SHORT, CPU), SHORT, 64)
        trainer = SupervisedTrainer(config(caches, tmp_path / "a", method=method), cache, CPU)
        trainer.network.load_state_dict(network.state_dict())
        with pytest.raises(InputError, match="weights are not finite"):
            trainer.policy()
        with pytest.raises(InputError, match=r"loss is nan at gradient step 0 .*--learning\.lr"):
            trainer.tick()


def test_no_frame_inside_the_boundary(caches, cache, tmp_path):
    far = replace(cache, signals=cache.signals | {"t_base": cache.signals["prob"] + 0.5})
    with pytest.raises(InputError, match="no frame lies inside the boundary"):
        SupervisedTrainer(config(caches, tmp_path / "a", method="rewards"), far, CPU)


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
        real = SupervisedTrainer.tick

        def tick(trainer):
            ended = real(trainer)
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    self.received.append(15)
            return ended

        monkeypatch.setattr(SupervisedTrainer, "tick", tick)
        monkeypatch.setattr(runfolder, "catch_signals", self.catch)

    def catch(self):
        self.received = []
        return self.received


@pytest.mark.parametrize("method", METHODS)
def test_resume_bit_exact(caches, tmp_path, monkeypatch, capsys, method):
    """Stopped twice, and thrown back to an older last.pt as after a power failure; then more
    passes, as a run that had them from the start but for its looks at the held-out pairs."""
    stop = Stop(monkeypatch)
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    cfg = config(caches, torn, method=method, passes=2)
    assert main(replace(cfg, run=calm)) == 0
    total = runfolder.read_checkpoint(calm / "last.pt")["info"]["steps"]
    assert total > 24
    stop.left = 7
    assert main(cfg) == 128 + 15
    assert "stopped and saved after 7 episodes; to go on, run:" in capsys.readouterr().out
    shutil.copy(torn / "last.pt", tmp_path / "old.pt")
    stop.left = 11
    assert main(replace(cfg, resume=True)) == 128 + 15
    assert runfolder.read_checkpoint(torn / "last.pt")["info"]["steps"] == 18
    shutil.copy(tmp_path / "old.pt", torn / "last.pt")
    stop.left = None
    assert main(replace(cfg, resume=True)) == 0
    for name in ("last.pt", "best.pt"):
        assert digest_of(calm / name) == digest_of(torn / name), name
    histories = [(run / "reward_history.tsv").read_text() for run in (calm, torn)]
    assert histories[0] == histories[1] and histories[0].count("\n") == total + 1
    before = (torn / "last.pt").read_bytes()
    assert main(replace(cfg, resume=True)) == 0
    assert "this run is complete" in capsys.readouterr().out
    assert (torn / "last.pt").read_bytes() == before
    assert main(replace(cfg, resume=True, passes=3)) == 0
    assert main(replace(cfg, run=tmp_path / "three", passes=3)) == 0
    three, more = (torch.load(run / "last.pt") for run in (tmp_path / "three", torn))
    for key in ("network", "optimizer", "rng"):
        assert runfolder.digest({key: three[key]}) == runfolder.digest({key: more[key]}), key


def test_the_best_of_all_looks_is_kept(caches, tmp_path, monkeypatch):
    seen = []
    real = SupervisedTrainer.held_out_f1

    def look(trainer):
        seen.append((real(trainer), trainer.progress["steps"]))
        return seen[-1][0]

    monkeypatch.setattr(SupervisedTrainer, "held_out_f1", look)
    assert main(config(caches, tmp_path / "a", passes=3)) == 0
    assert len(seen) == 4
    info = runfolder.read_checkpoint(tmp_path / "a" / "best.pt")["info"]
    best = max(seen, key=lambda row: row[0])
    assert (info["best_f1"], info["best_episode"], info["steps"]) == (*best, best[1])
    assert main(config(caches, tmp_path / "b", holdout=0.0)) == 0  # the newest is the best
    both = [runfolder.read_checkpoint(tmp_path / "b" / f"{name}.pt") for name in ("last", "best")]
    assert runfolder.digest(both[0]["network"]) == runfolder.digest(both[1]["network"])


def test_the_history_counts_the_decisions_of_each_step(caches, tmp_path):
    for method in METHODS:
        cfg = config(caches, tmp_path / method, method=method)
        assert main(cfg) == 0
        history = runfolder.read_history(cfg.run)
        steps = runfolder.read_checkpoint(cfg.run / "last.pt")["info"]["steps"]
        assert history["Steps"].tolist() == list(range(1, steps + 1))
        cells = np.stack([history[name] for name in runfolder.CELLS])
        assert (cells.sum(0) == cfg.learning.batch).all() and not history["Epsilon"].any()
        assert (cells.sum(1) > 0).sum() >= 3  # of both decisions before, right and wrong ones


def test_refusals(caches, tmp_path):
    cfg = config(caches, tmp_path / "a")
    assert main(cfg) == 0
    with pytest.raises(InputError, match="already holds a run"):
        main(cfg)
    with pytest.raises(InputError, match="--method was classifier, now rewards"):
        main(replace(cfg, method="rewards", resume=True))
    with pytest.raises(InputError, match=r"--learning.frames-per-step was 16, now 8"):
        main(replace(cfg, learning=replace(cfg.learning, frames_per_step=8), resume=True))
    with pytest.raises(InputError, match="--method classifier trains in one process"):
        SupervisedTrainer(cfg, load_cache(caches / "train"), CPU, Ranks(0, 2))
    with pytest.raises(InputError, match="the cache has changed"):
        write_cache(tmp_path / "other" / "train", [60, 45, 80, 52], seed=5)
        main(replace(cfg, cache=tmp_path / "other", resume=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning": Learning(epsilon_end=0.1)}, "--learning.epsilon-end must be left alone"),
        ({"learning": Learning(replay=9_000)}, "--learning.replay must be left alone"),
        ({"learning": Learning(lanes=4)}, "--learning.lanes must be left alone"),
        ({"learning": Learning(acting="dropout")}, "--learning.acting must be left alone"),
        ({"bandit": Bandit(reading="sequential")}, "--bandit.reading must be independent"),
        ({"cuda_steps": "plain"}, "--cuda-steps must be auto"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_settings_without_effect_are_refused(method, changes, said):
    with pytest.raises(ValueError, match=f"{said} with --method {method}"):
        TrainConfig(method=method, **changes)


def test_a_batch_may_be_larger_than_what_trying_needs(caches, cache, tmp_path):
    """--learning.train-start, which the batch may not exceed, has no effect here."""
    trainer = SupervisedTrainer(config(caches, tmp_path / "a", batch=3_000), cache, CPU)
    ((_, cells),) = trainer.tick()
    assert sum(cells) == 3_000


@pytest.mark.parametrize("change", ["size", "method", "text", "config"])
def test_foreign_checkpoints_end_in_one_line(caches, tmp_path, change):
    assert main(config(caches, tmp_path / "a")) == 0
    path = tmp_path / "a" / "best.pt"
    content = torch.load(path, weights_only=True)
    config_ = json.loads(content["config"])
    if change == "size":
        config_["network"]["hidden"] = 8
    elif change == "method":
        config_["method"] = "rewards"  # 21 outputs
    elif change == "config":
        config_["surprise"] = 1
    content["config"] = "{" if change == "text" else json.dumps(config_)
    runfolder.write_checkpoint(path, content)
    with pytest.raises(InputError) as error:
        load_policy(path, CPU)
    assert "\n" not in str(error.value)
    expected = "do not fit" if change in ("size", "method") else ""
    assert expected in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_baseline_decides_the_same(caches, cache, tmp_path, method):
    cfg = config(caches, tmp_path / "a", method=method, bandit=replace(SHORT, num_actions=11))
    assert main(cfg) == 0
    policy = load_policy(cfg.run / "last.pt", CPU)
    assert policy.method == method and policy.signal == cache.manifest["signal"]
    trainer = SupervisedTrainer(cfg, cache, CPU)
    trainer.restore(runfolder.read_checkpoint(cfg.run / "last.pt"))
    assert policy.gate == trainer.gate and policy.gate is not None
    expected, _ = decisions(trainer.network, trainer.signals, cfg.bandit, 64)
    found = decide_cache(policy, cache, CPU)
    assert np.array_equal(found.pred, expected.numpy())
    assert found.boxes is None and (found.t_adj is None) == (method == "classifier")


@pytest.mark.parametrize("method", METHODS)
def test_a_baseline_is_evaluated_and_drawn(caches, tmp_path, method):
    write_cache(tmp_path / "validation", [60, 45, 80, 52], seed=2)
    shutil.copytree(caches / "train", tmp_path / "train")
    cfg = config(tmp_path, tmp_path / "run", method=method)
    assert main(cfg) == 0
    evaluate.main(EvaluateConfig(cache=tmp_path, run=cfg.run, device="cpu"))
    show = VisualizeConfig(cache=tmp_path, run=cfg.run, dpi=30)
    data = evaluations.load_evaluated(show)
    found = decide_cache(load_policy(cfg.run / "best.pt", CPU), data.cache, CPU)
    assert np.array_equal(data.after, found.pred)
    assert (data.t_adj is None) == (method == "classifier")
    assert visualize.main(replace(show, html=True)) == 0
    drawn = {path.stem for path in (cfg.run / "figures").iterdir()}
    assert ("signals" in drawn) == (method == "rewards")  # which shifts thresholds
    assert {"decisions", "avg10", "network"} <= drawn and "epsilon" not in drawn
    arrays = dict(np.load(cfg.run / "decisions.npz"))
    np.savez(cfg.run / "decisions.npz", **arrays | {"binary": 1 - arrays["binary"]})
    with pytest.raises(InputError, match="not the decisions of"):
        evaluations.load_evaluated(show)


# ---------------------------------------------------------------------------- older checkpoints


def as_before(content: dict, reading: str) -> dict:
    """A checkpoint as twins.py wrote it, whose settings lay elsewhere."""
    config_, info = json.loads(content["config"]), content["info"]
    learning = config_.pop("learning")
    names = "preset cache split run passes holdout looks checkpoint_minutes resume overwrite"
    names = (*names.split(), "seed", "device", "threads", "network")
    kept = {name: config_[name] for name in names} | {"kind": config_["method"]}
    kept |= {name: learning[name] for name in ("lr", "batch", "frames_per_step")}
    kept["bandit"] = config_["bandit"] | {"reading": reading}
    told = {"steps": info["steps"], "best_f1": info["best_f1"], "best_step": info["best_episode"]}
    told["trained_on"] = info["trained_on"]
    rest = {name: value for name, value in content.items() if name not in ("digest", "recent")}
    return {"twin": config_["method"]} | rest | {"config": json.dumps(kept), "info": told}


@pytest.mark.parametrize("reading", ["independent", "sequential"])
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_an_older_version_decides_the_same(
    caches, cache, tmp_path, capsys, method, reading
):
    cfg = config(caches, tmp_path / "a", method=method)
    assert main(cfg) == 0
    expected = decide_cache(load_policy(cfg.run / "best.pt", CPU), cache, CPU).pred
    for name in ("best.pt", "last.pt"):
        content = torch.load(cfg.run / name, weights_only=True)
        runfolder.write_checkpoint(cfg.run / name, as_before(content, reading))
    policy = load_policy(cfg.run / "best.pt", CPU)
    assert policy.method == method and policy.bandit == cfg.bandit
    assert np.array_equal(decide_cache(policy, cache, CPU).pred, expected)
    assert policy.info["finished"] == policy.info["steps"] == policy.info["best_episode"] > 0
    capsys.readouterr()
    assert main(replace(cfg, resume=True)) == 0
    assert "this run is complete" in capsys.readouterr().out
    assert main(replace(cfg, resume=True, passes=2)) == 0
    assert runfolder.begun_passes(replace(cfg, resume=True, passes=None)) == 2
