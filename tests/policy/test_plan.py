"""How long a run is: passes, too few gradient steps, more passes, given weights; what it says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_cache
from tqdm import tqdm

import evaluate
from config import Bandit, EvaluateConfig, Events, Learning, Network, TrainConfig
from core.command import run_main
from core.errors import InputError
from DQN import Trainer, main
from policy import longrun, runfolder
from policy.apply import load_policy
from policy.bandit import episode_order, near, planned
from policy.event_policy import EventTrainer
from sed.caches import load_cache

CPU = torch.device("cpu")
TINY = Network(hidden=4, tcn_layers=1, gru_layers=1, transformer_layers=1, heads=1, tcn_groups=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55, 60, 40])
    return tmp_path


def config(**changes) -> TrainConfig:
    learning = Learning(lanes=4, batch=8, train_start=16, lr=3e-3)
    base = {"run": Path("runs/a"), "network": TINY, "learning": learning, "device": "cpu"}
    return TrainConfig(**(base | {"passes": 2, "holdout": 0.25} | changes))


def best(**changes) -> TrainConfig:
    events = Events(hidden=4, layers=2, batch=4, box_batch=32, tag_limit=0.0)
    base = {"run": Path("runs/best"), "events": events, "device": "cpu", "passes": 3}
    return replace(TrainConfig.with_preset("best"), **(base | changes))


def info_of(run: Path | str) -> dict:
    return runfolder.read_checkpoint(Path(run) / "last.pt")["info"]


# ---------------------------------------------------------------------------- number of passes


def test_few_pairs_get_as_many_passes_as_learning_needs(folder, monkeypatch):
    cache = load_cache(folder / "cache" / "train")
    for cfg, kind in ((config(), Trainer), (best(), EventTrainer)):
        monkeypatch.setattr(kind, "FLOOR", 40)
        trainer = kind(replace(cfg, passes=None), cache, CPU)
        passes = trainer.cfg.passes
        assert trainer.gradient_steps(passes) >= 40 > trainer.gradient_steps(passes - 1)
        pairs = len(cache.pairs) - len(trainer.held_out)
        episodes = passes * pairs if kind is Trainer else trainer.gradient_steps(passes)
        assert len(trainer.order) == episodes
        monkeypatch.setattr(kind, "FLOOR", 1)  # where there is enough, the method's own number
        assert kind(replace(cfg, passes=None), cache, CPU).cfg.passes >= kind.PASSES
        assert kind(replace(cfg, passes=2), cache, CPU).cfg.passes == 2  # what is given counts
    assert planned(replace(config(), passes=None), 7, 3, lambda n: n).passes == 7


@pytest.mark.parametrize("test", ["before", "after"])
def test_the_estimate_is_what_is_made(folder, test):
    """Of a test before acting nearly exact; after acting it depends on the actions."""
    write_cache(folder / "cache" / "train", [160] * 12, seed=3)
    cache = load_cache(folder / "cache" / "train")
    learning = Learning(lanes=4, batch=8, train_start=200, lr=3e-3)
    bandit = Bandit(boundary_test=test)
    trainer = Trainer(config(learning=learning, bandit=bandit, passes=4), cache, CPU)
    inside = near(trainer.signals.prob, trainer.signals.t_base, bandit.boundary_width)
    if test == "before":
        _, frame = np.unique(trainer.order, return_index=True)
        rows = np.isin(cache.frames_of_pair, trainer.order[frame])
        assert trainer.stored_share == pytest.approx(inside.numpy()[rows].mean())
    expected = trainer.gradient_steps(4)
    while not trainer.done:
        trainer.tick()
    assert trainer.progress["steps"] == pytest.approx(
        expected, rel=0.1 if test == "before" else 0.4
    )
    over_events = EventTrainer(best(), cache, CPU)
    while not over_events.done:
        over_events.tick()
    assert over_events.progress["steps"] == over_events.gradient_steps(3)


def test_a_run_that_would_never_learn_is_refused(folder):
    """Before anything is written, an earlier run is not touched either; the cure works."""
    main(config())
    before = sorted(Path("runs/a").iterdir())
    learning = replace(config().learning, train_start=5_000)
    with pytest.raises(InputError, match=r"--passes 2 .*5,000 \(--learning.train-start\)"):
        main(config(learning=learning, overwrite=True))
    assert sorted(Path("runs/a").iterdir()) == before
    with pytest.raises(InputError):
        main(config(learning=learning, run=Path("runs/b")))
    assert not Path("runs/b").exists()
    cache = load_cache(folder / "cache" / "train")
    free = Trainer(config(learning=learning, passes=None), cache, CPU)
    assert free.gradient_steps(free.cfg.passes) >= Trainer.FLOOR


def test_no_frame_inside_the_boundary_is_refused(folder):
    cache = load_cache(folder / "cache" / "train")
    far = replace(cache, signals=cache.signals | {"t_base": cache.signals["prob"] + 0.5})
    with pytest.raises(InputError, match="boundary-width"):
        Trainer(config(passes=None), far, CPU)


def test_too_few_steps_are_said(folder, capsys):
    for cfg, kind in ((config(), Trainer), (best(), EventTrainer)):
        assert main(cfg) == 0
        assert f"{kind.FLOOR:,}" in capsys.readouterr().out
    enough = replace(best(), passes=None, overwrite=True)
    assert main(enough) == 0
    said = capsys.readouterr().out
    assert "too few" not in said
    assert info_of("runs/best")["steps"] >= EventTrainer.FLOOR


# ---------------------------------------------------------------------------- more passes


def test_a_finished_run_is_trained_further(folder, capsys):
    cfg = config(passes=1)
    main(cfg)
    first = runfolder.read_history(cfg.run)
    steps = info_of(cfg.run)["steps"]
    with pytest.raises(InputError, match="--seed was 0"):
        main(again(cfg, seed=5, passes=3))
    capsys.readouterr()
    assert main(again(cfg, passes=3)) == 0
    said = capsys.readouterr().out
    assert "3 passes in place of 1" in said
    assert "epsilon" in said
    history = runfolder.read_history(cfg.run)
    count = len(first["Episode"])
    assert len(history["Episode"]) == 3 * count
    for name in first:
        assert np.array_equal(history[name][:count], first[name])
    assert info_of(cfg.run)["steps"] > steps
    # Exploration is over, and stays so.
    assert (history["Epsilon"][count:] == cfg.learning.epsilon_end).all()
    assert json.loads((cfg.run / "config.json").read_text())["passes"] == 3
    with pytest.raises(InputError, match="--passes was 3, now 2"):
        main(again(cfg, passes=2))
    assert main(again(cfg, passes=None)) == 0  # complete with what it has
    assert len(runfolder.read_history(cfg.run)["Episode"]) == 3 * count


def again(cfg: TrainConfig, **changes) -> TrainConfig:
    return replace(cfg, resume=True, **changes)


def test_more_passes_are_resumed_bit_exactly(folder, monkeypatch):
    """Stopped in the added passes: as if they had not been stopped; with lanes that were idle."""
    ends = []
    for stop in (False, True):
        cfg = config(run=Path(f"runs/{stop}"), passes=1)
        main(cfg)
        if stop:
            monkeypatch.setattr(runfolder, "catch_signals", lambda: [15])
            assert main(again(cfg, passes=3)) == 128 + 15
            monkeypatch.undo()
            monkeypatch.chdir(folder)
        assert main(again(cfg, passes=3)) == 0
        ends.append(runfolder.read_checkpoint(cfg.run / "last.pt"))
    for key in ("network", "optimizer", "replay", "lanes", "rng", "info"):
        assert runfolder.digest(ends[0][key]) == runfolder.digest(ends[1][key]), key


# ---------------------------------------------------------------------------- given weights


def test_a_run_begins_with_the_weights_of_a_policy(folder, monkeypatch):
    cfg = config()
    main(cfg)
    given = runfolder.read_checkpoint(cfg.run / "best.pt")["network"]
    monkeypatch.setattr(runfolder, "catch_signals", lambda: [15])  # stopped before the first step
    new = replace(cfg, run=Path("runs/new"), init=cfg.run / "best.pt", seed=7)
    main(new)
    begun = runfolder.read_checkpoint(new.run / "last.pt")
    assert begun["info"]["steps"] == 0
    assert runfolder.digest(begun["network"]) == runfolder.digest(given)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(replace(new, init=None, resume=True)) == 0  # the file is needed once
    assert runfolder.digest(load_policy(new.run / "best.pt", CPU).network.state_dict()) != (
        runfolder.digest(given)
    )


def test_weights_of_something_else_are_refused(folder):
    main(config())
    main(best())
    ours = Path("runs/a/best.pt")
    cases = [
        (config(bandit=Bandit(num_actions=11)), ours, "num-actions was 21, now 11"),
        (config(network=replace(TINY, hidden=8)), ours, "do not fit"),
        (config(), Path("runs/best/best.pt"), "was trained otherwise"),
        (config(), Path("none.pt"), "none.pt: not found"),
    ]
    for cfg, path, message in cases:
        with pytest.raises(InputError, match=message):
            main(replace(cfg, init=path, run=Path("runs/new")))
        assert not Path("runs/new").exists()
    with pytest.raises(ValueError, match="--init"):
        config(init=ours, overwrite=True)


# ---------------------------------------------------------------------------- words


@pytest.mark.parametrize("ends", [(0.1, 0.1), (0.99, 0.1), (0.99, 0.98)])
def test_a_run_that_ends_below_its_base_says_so(folder, capsys, ends):
    best_f1, last_f1 = ends
    trainer = Trainer(config(), load_cache(folder / "cache" / "train"), CPU)
    main(config())
    trainer.progress |= {"best_f1": best_f1, "last_f1": last_f1, "best_episode": 3}
    capsys.readouterr()
    longrun.summarise(trainer, 10, 1.0)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == (0 if last_f1 > 0.9 else 1)
    if notes:
        assert ("no better than its base threshold" in notes[0]) == (best_f1 < 0.5)


def test_an_evaluation_on_what_was_trained_on_says_so(folder, capsys):
    """The clips are known again in another split, under another name; held-out ones are none."""
    main(config())
    cache = load_cache(folder / "cache" / "train")
    trained = len(Trainer(config(), cache, CPU).order) // 2
    names = [f"other {i}.wav" for i in range(4)]
    lengths = [60, 40, 50, 60, 45, 55, 60, 40]
    write_cache(folder / "cache" / "validation", lengths, clips=names)
    write_cache(folder / "cache" / "new", lengths, seed=5)
    for split, count in (("train", trained), ("validation", trained), ("new", 0)):
        capsys.readouterr()
        evaluate.main(EvaluateConfig(run=Path("runs/a"), split=split, device="cpu", full=True))
        said = capsys.readouterr().out
        assert (f"was trained on {count} of these 8 pairs" in said) == (count > 0)
        assert f"trained_on_pairs: {count}\n" in said
        high = float(said.partition("gain_f1_interval: ")[2].split()[1])
        assert ("does harm" in said) == ("loses to T_base" in said) == (high < 0)
    out = Path("table")
    evaluate.main(EvaluateConfig(compare=("runs/a",), out=out, device="cpu", workers=1))
    assert f"was trained on {trained} of these 8 pairs" in capsys.readouterr().out


def test_an_error_stands_on_a_line_of_its_own(monkeypatch, capsys):
    """The bar is closed first, whoever holds it."""

    def work() -> None:
        held = tqdm(total=3, desc="outer")
        for _ in tqdm(range(3), desc="inner"):
            held.update()
            raise InputError("something is wrong")

    monkeypatch.setattr(sys, "argv", ["DQN.py"])
    with pytest.raises(SystemExit) as ended:
        run_main(work)
    lines = capsys.readouterr().err.split("\n")
    assert ended.value.code == 2
    assert lines[-2:] == ["DQN.py: error: something is wrong", ""]
    assert any("outer" in line for line in lines[:-2])


def test_more_frames_than_a_transition_can_count_are_refused(folder):
    cache = load_cache(Path("cache") / "train")
    huge = replace(cache, offsets=np.append(cache.offsets[:-1], 2**31))
    with pytest.raises(InputError, match=r"2,147,483,648 frames of pairs, more than the 2,147,"):
        episode_order(huge, np.arange(8), config())
