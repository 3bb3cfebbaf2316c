"""The policy for any scores: how scores are varied, what is trained on, what is shipped."""

import numpy as np
import pytest
import torch

from config import Events, TrainConfig
from core.errors import InputError
from policy.apply import decide_cache, load_policy
from policy.event_policy import EventTrainer
from policy.posterior import log_odds
from policy.runfolder import write_checkpoint
from scores.score_files import write_scores
from sed.timeline import SPLITS, ClipScores, Event, frame_edges, write_labels
from studies import pretrain

CPU = torch.device("cpu")


def write_corpus(folder, classes=("Dog", "Cat")) -> None:
    """Four clips a split, of two bank folds, an event of each class in each; columns in this
    order."""
    rng, rows = np.random.default_rng(0), ["split\tfilename\tfold"]
    for split in SPLITS:
        (folder / split / "scores").mkdir(parents=True)
        edges, labels = frame_edges(100, 0.02), {}
        for i in range(4):
            first = rng.integers(10, 50, 2)
            values = np.full((2, 100), 0.1) + rng.uniform(0, 0.05, (2, 100))
            for row, at in zip(values, first, strict=True):
                row[at : at + 30] += 0.7
            name = f"{i}.wav"
            labels[name] = [
                Event(float(edges[at]), float(edges[at + 30]), label)
                for at, label in zip(first, classes, strict=True)
            ]
            write_scores(folder / split / "scores" / f"{i}.tsv", edges, list(classes), values)
            rows.append(f"{split}\t{name}\t{1 + i % 2}")
        write_labels(folder / split / "labels.tsv", labels)
    (folder / "clips.tsv").write_text("\n".join(rows) + "\n")


def test_scores_are_averaged_over_time_and_stretched():
    values = np.tile([0.2, 0.4, 0.6, 0.8], (1, 8)).astype(np.float32)
    same = ClipScores(values, frame_edges(32, 0.02))
    found = pretrain.varied(same, 0.04, 1.0, 0.0)
    np.testing.assert_allclose(found.values, np.tile([0.3, 0.7], (1, 8)), atol=1e-6)
    np.testing.assert_allclose(found.edges, frame_edges(16, 0.04))
    wide = pretrain.varied(same, 0.064, 1.0, 0.0)  # 3.2 frames: parts of frames count as parts
    assert wide.values[0, 0] == pytest.approx((0.2 + 0.4 + 0.6 + 0.2 * 0.8) / 3.2)
    odds = log_odds(pretrain.varied(same, 0.02, 1.5, -0.5).values)
    np.testing.assert_allclose(odds, 1.5 * log_odds(values) - 0.5, atol=1e-4)


def test_what_is_shipped_decides_as_what_was_trained(tmp_path, monkeypatch):
    """Two corpora: no clip is two, tags and labels are of their class; classes are forgotten."""
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain, "FRAMES_S", (0.02,))
    for name in ("one", "two"):
        write_corpus(tmp_path / name)
    cache = pretrain.read_corpora([tmp_path / "one", tmp_path / "two"])
    assert cache.classes == ["Cat", "Dog"] and len(cache.clips) == 16 and len(cache.pairs) == 32
    assert len({clip.filename for clip in cache.clips}) == 16 and cache.present.all()
    assert sorted(set(cache.groups.values())) == ["even", "odd"] and cache.facts["audio"] is False
    for index, pair in enumerate(cache.pairs):
        one = slice(cache.offsets[index], cache.offsets[index + 1])
        score, on = cache.signals["d_raw"][one], cache.label[one]
        assert on.sum() == 30 and score[on].min() > score[~on].max()
        (clip,) = [clip for clip in cache.clips if clip.filename == pair.filename]
        assert clip.tag[cache.classes.index(pair.event_label)] == pytest.approx(
            score.max(), abs=0.1
        )
    cfg = TrainConfig(
        method="events",
        passes=8,
        holdout=0.0,
        events=Events(hidden=8, layers=3, batch=4, box_batch=32, class_context=False),
    )
    trainer = EventTrainer(cfg, cache, CPU)
    while not trainer.done:
        trainer.tick()
    path = tmp_path / "shipped.pt"
    write_checkpoint(path, pretrain.packed(trainer.policy(), [tmp_path / "one"]))
    policy = load_policy(path, CPU)
    assert policy.classes == () and policy.info["corpora"] == "one"
    assert policy.network.prices.tolist() == trainer.network.prices[:, -1:].tolist()
    trainer.network.prices[:] = trainer.network.prices[:, -1:]
    ours = decide_cache(policy._replace(network=trainer.network.eval()), cache, CPU)
    assert (decide_cache(policy, cache, CPU).pred != ours.pred).mean() < 0.01  # half precision
    assert ours.pred.any()


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no clips\.tsv"):
        pretrain.read_corpora([tmp_path])
    with pytest.raises(InputError, match="give corpora"):
        pretrain.main([])


def test_the_command_makes_a_small_file_and_goes_on(tmp_path, monkeypatch, capsys):
    """From corpora to a file that decides for any class; a second run trains nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").mkdir()
    write_corpus(tmp_path / "one")
    pretrain.main(["one"])
    shipped = tmp_path / pretrain.OUT
    assert f"{shipped.stat().st_size:,} bytes, of 8 clips" in capsys.readouterr().out
    assert shipped.stat().st_size < 200_000
    policy = load_policy(shipped, CPU)
    assert policy.over_events and policy.classes == () and not policy.info["trained_on"]["classes"]
    before = shipped.read_bytes()
    pretrain.main(["one"])
    assert shipped.read_bytes() == before
