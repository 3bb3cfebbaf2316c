"""A policy over events on other scores: recalibration, resume, refusals, the shipped file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import write_cache, write_policy
from no_reads import NoCrossings, NoHostCopies, NoOpReads, on_meta

import detect
from config import PRETRAINED, DetectConfig, Events, TrainConfig
from core.errors import InputError
from DQN import main
from policy.apply import decide_cache, load_policy
from policy.event_policy import EventNetwork, EventTrainer
from policy.posterior import (
    Resident,
    apply,
    asked_clips,
    log_odds,
    rows_of,
    true_events,
    with_targets,
)
from policy.recalibration import Mixing, Recalibrator
from policy.runfolder import digest, read_checkpoint
from scores.score_files import write_scores
from sed.caches import load_cache
from sed.labels import read_labels
from sed.metrics import mean_f1
from sed.timeline import frame_edges

CPU = torch.device("cpu")
SMALL = Events(hidden=8, layers=3, batch=4, box_batch=32, tag_limit=0.0, class_context=False)
LENGTHS = [120, 120, 90, 90, 160, 160, 104, 104, 132, 132, 142, 142, 98, 98, 118, 118]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Caches `train` and `validation` of one detector, and of another one, whose classes and
    calibration differ; runs/given/best.pt learned from the first."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recalibration")
    write_cache(folder / "cache" / "train", LENGTHS, seed=1, absent=(1, 4, 9))
    names = ("Bird", "Train")
    for split, seed in (("other", 2), ("judge", 3)):
        write_cache(folder / "cache" / split, LENGTHS, seed=seed, absent=(0, 7, 10), labels=names)
    cfg = TrainConfig.with_preset("best")
    given = replace(cfg, cache=folder / "cache", run=folder / "runs" / "given", device="cpu")
    assert main(replace(given, events=SMALL, passes=60)) == 0
    return folder


def other(home, split="other"):
    """A cache of the second detector: its log odds are half as large, and lower by 2."""
    cache = load_cache(home / "cache" / split)
    odds = log_odds(cache.signals["d_raw"].astype(np.float64)) / 2 - 2
    scores = (1 / (1 + np.exp(-odds))).astype(np.float32)
    tags = [clip._replace(tag=[0.5] * len(clip.tag)) for clip in cache.clips]
    return replace(cache, signals=cache.signals | {"d_raw": scores}, clips=tags)


@pytest.fixture
def cfg(home, tmp_path):
    best = TrainConfig.with_preset("best")
    init = home / "runs" / "given" / "best.pt"
    return replace(best, cache=home / "cache", run=tmp_path / "run", device="cpu", init=init)


def test_steps_wait_for_nothing(home, cfg):
    """As those of the training, on a GPU."""
    trainer = Recalibrator(cfg, other(home), CPU)
    with NoOpReads():
        trainer.frame_step(0)
    trainer.make_boxes()
    with NoOpReads():
        trainer.box_step(0)
    trainer = on_meta(trainer)
    with NoHostCopies(), NoCrossings():
        cells = trainer.frame_step(1), trainer.box_step(1)
    assert [each.device.type for each in cells] == ["meta"] * 2


def finished(trainer):
    while not trainer.done:
        trainer.tick()
    return trainer


def loss_on(network, cache):
    """Log loss of the posterior."""
    asked = asked_clips(cache, 0.0)
    rows = with_targets(rows_of(asked, np.full(len(cache.pairs), -1)), cache, true_events(cache))
    odds = np.concatenate(apply(network, Resident.of(rows, CPU), np.arange(len(rows.pair))))[:, 0]
    true = rows.target[:, 0]
    return (np.logaddexp(0, odds) - true * odds).mean()


# ---------------------------------------------------------------------------- what is learned


def test_it_brings_other_scores_back(home, cfg):
    """Labels of eight clips; judged on eight others, whose scores are off in the same way."""
    trainer = finished(Recalibrator(cfg, other(home), CPU))
    judge = other(home, "judge")
    given, ours = trainer.given, trainer.network
    assert loss_on(ours.posterior, judge) < 0.9 * loss_on(given.posterior, judge)
    assert ours.classes == ("Bird", "Train") and ours.prices.all()
    found = [
        mean_f1(judge, decide_cache(policy, judge, CPU).pred, judge.present.nonzero()[0])
        for policy in (
            load_policy(cfg.init, CPU),
            load_policy(cfg.init, CPU)._replace(network=ours),
        )
    ]
    assert found[1] > found[0]


def test_the_last_layer_takes_in_the_mixing(home, cfg):
    """Mixed answers are the answers of the networks that are left, for every network."""
    trainer = finished(Recalibrator(cfg, other(home), CPU))
    features, query = torch.randn(5, 44), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        given = [features.expand(len(trainer.left_out), -1, -1), query.expand(4, -1)]
        mixed = trainer.mixing["values"](trainer.given.values.eval()(*given))
        assert torch.allclose(trainer.network.values.eval()(*given), mixed, atol=1e-5)
    same = Mixing(3)
    answers, layer = trainer.given.posterior.answers, trainer.network.posterior.answers
    same.behind(answers, layer)
    assert torch.equal(layer.weight, answers.weight) and same.moved() == 0


def test_prices_of_few_events_are_near_the_mean(home, cfg):
    """A class with ten events, predicted and true, is believed by half."""
    trainer = finished(Recalibrator(replace(cfg, passes=20), other(home), CPU))
    drawn = trainer.network.prices.clone()
    EventTrainer.find_prices(trainer)  # as they are found, without the mean
    found = trainer.network.prices
    mean, number = found[:, -1:], found[-1]
    assert torch.allclose(drawn - mean, (found - mean) * number / (number + 10))
    assert not torch.allclose(drawn, found)


# ---------------------------------------------------------------------------- resume


def test_resume_is_exact(home, cfg):
    """Stopped after every tick and taken up again by a new trainer."""
    cfg, cache = replace(cfg, passes=20), other(home)
    whole, parts = finished(Recalibrator(cfg, cache, CPU)), Recalibrator(cfg, cache, CPU)
    while not parts.done:
        parts.tick()
        kept = parts.state()
        parts = Recalibrator(cfg, cache, CPU)
        parts.restore(kept)
    assert digest(whole.state()) == digest(parts.state())


def test_the_script_begins_with_the_policy_and_goes_on(home, cfg, monkeypatch, capsys):
    cfg = replace(cfg, split="other", passes=20)
    assert main(cfg) == 0
    whole = read_checkpoint(cfg.run / "best.pt")["network"]
    assert "recalibrates the policy over events" in capsys.readouterr().out
    stopped = replace(cfg, run=cfg.run.with_name("stopped"))
    tick, ticks = Recalibrator.tick, iter(range(4))

    def stopping(self):
        if next(ticks, None) is None:
            raise KeyboardInterrupt
        return tick(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recalibrator, "tick", stopping)
        main(replace(stopped, checkpoint_minutes=1e-9))
    with pytest.raises(InputError, match=r"--init was .*best\.pt, now None"):
        main(replace(stopped, resume=True, init=None))
    assert main(replace(stopped, resume=True)) == 0
    assert digest(read_checkpoint(stopped.run / "best.pt")["network"]) == digest(whole)
    policy = load_policy(cfg.run / "best.pt", CPU)
    assert policy.classes == ("Bird", "Train") and policy.over_events


def test_what_cannot_be_recalibrated_is_refused(home, cfg, tmp_path):
    cache = other(home)
    with pytest.raises(InputError, match=r"--events\.hidden: leave it out"):
        Recalibrator(replace(cfg, events=Events(hidden=8)), cache, CPU)
    frames = write_policy(tmp_path / "frames", home / "cache" / "train")
    with pytest.raises(InputError, match="trained otherwise: --method windowed"):
        Recalibrator(replace(cfg, init=frames), cache, CPU)
    with pytest.raises(InputError, match=r"none\.pt: not found"):
        main(replace(cfg, init=tmp_path / "none.pt"))
    assert not cfg.run.exists()
    trainer = Recalibrator(cfg, cache, CPU)
    kept = trainer.state()
    trainer.given.values.answers.bias += 1
    with pytest.raises(InputError, match="another policy than the run began with"):
        trainer.restore(kept)
    known = replace(
        cfg, init=None, run=tmp_path / "known", events=replace(SMALL, class_context=True)
    )
    assert main(replace(known, passes=2)) == 0
    with pytest.raises(InputError, match="knows Dog, Speech, the cache has Bird, Train"):
        Recalibrator(replace(cfg, init=known.run), cache, CPU)


# ---------------------------------------------------------------------------- the shipped file


def test_the_shipped_policy_is_small_and_knows_no_class():
    assert PRETRAINED.stat().st_size < 200_000
    policy = load_policy(PRETRAINED, CPU)
    assert policy.classes == () and policy.seen is None
    assert isinstance(policy.network, EventNetwork) and policy.network.prices.shape[1] == 1
    assert policy.info["trained_on"]["audio"] is False


def test_scores_alone_become_events(tmp_path, capsys):
    """A clear sound in scores of classes that nobody knows; loudness makes no difference."""
    (tmp_path / "scores").mkdir()
    edges = frame_edges(300, 0.032)
    values = np.full((2, 300), 0.02)
    values[1, 100:180] = 0.9
    write_scores(tmp_path / "scores" / "a.tsv", edges, ["Owl", "Rain"], values)
    cfg = DetectConfig(scores=tmp_path / "scores", out=tmp_path / "events.tsv", device="cpu")
    assert detect.main(cfg) == 0
    (event,) = read_labels(tmp_path / "events.tsv")["a.wav"]
    assert event.event_label == "Rain"
    assert event.onset == pytest.approx(edges[100], abs=0.1)
    assert event.offset == pytest.approx(edges[180], abs=0.1)
    said = capsys.readouterr().out
    assert "for any scores" in said and "not trained on" not in said
    wav = np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32)
    arrays = values.astype(np.float32), edges, ["Owl", "Rain"]
    heard = detect.detect(*arrays, wav=wav, sample_rate=16_000, device="cpu")
    assert heard == detect.detect(*arrays, device="cpu") and len(heard) == 1


def test_a_damaged_file_is_refused(tmp_path):
    content = bytearray(PRETRAINED.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "scores").mkdir()
    write_scores(tmp_path / "scores" / "a.tsv", frame_edges(9, 0.1), ["Owl"], np.full((1, 9), 0.5))
    path = tmp_path / "pretrained.pt"
    for damaged in (bytes(content), b"", b"other"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pretrained\.pt: damaged") as error:
            detect.main(DetectConfig(policy=path, scores=tmp_path / "scores", device="cpu"))
        assert "\n" not in str(error.value)
