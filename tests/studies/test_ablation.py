"""The ablation: every change has its row, the policy itself is left as it was."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

import evaluate
import preprocess
import soundscapes
from config import (
    EvaluateConfig,
    Events,
    PreprocessConfig,
    ScorersConfig,
    SoundscapesConfig,
    TrainConfig,
)
from core.errors import InputError
from core.stored import read_json, write_json
from DQN import main
from scores import corpora
from scores.crnn import make_scores
from scores.score_files import open_scores
from sed.caches import load_cache
from studies import ablation
from studies.benchmark import Setting

SMALL = Events(hidden=8, layers=3, batch=4, box_batch=32, tag_limit=0.0)
BASE = Setting(5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with one small finished setting where the benchmark leaves it; the run with other
    timelines is the same one."""
    root = tmp_path_factory.mktemp("root")
    corpus, cache = root / BASE.corpus, root / BASE.cache("slides", "all")
    sizes = {"train_clips": 12, "validation_clips": 6, "clip_s": 3.0, "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "TAKES", 2)  # all of a bank are made, few are played
        soundscapes.main(SoundscapesConfig(out=corpus, **sizes))
    make_scores(ScorersConfig(corpus=corpus, workers=1, epochs=2))
    preprocess.main(PreprocessConfig(corpus=corpus, cache=cache, pairs="all", workers=1))
    run = root / BASE.run("best", 0)
    common = {"method": "events", "events": SMALL, "holdout": 0.0, "looks": 1, "passes": 4}
    main(TrainConfig(cache=cache, run=run, device="cpu", **common))
    other = BASE._replace(timelines="strong")
    shutil.copytree(cache, root / other.cache("slides", "all"))
    shutil.copytree(run, root / other.run("best", 0))
    (root / "docs" / "results").mkdir(parents=True)
    return root


def test_scores_of_the_corpus_are_those_of_its_cache(finished):
    cache = load_cache(finished / BASE.cache("slides", "all") / "validation")
    files = open_scores(finished / BASE.corpus / "validation" / "scores", cache.classes)
    names = [clip.filename for clip in cache.clips]
    found = ablation.with_scores(cache, names, np.stack([files.scores(n).values for n in names]))
    assert np.array_equal(found.signals["d_raw"], cache.signals["d_raw"])
    assert [list(clip.tag) for clip in found.clips] == [list(clip.tag) for clip in cache.clips]
    halved = np.stack([files.scores(name).values / 2 for name in names])
    found = ablation.with_scores(cache, names, halved)
    assert np.array_equal(found.signals["d_raw"], cache.signals["d_raw"] / 2)
    assert all(max(a.tag) < max(b.tag) for a, b in zip(found.clips, cache.clips, strict=True))


def test_networks_of_a_fold_are_those_that_scored_the_training_clips(finished, monkeypatch):
    """The network fitted without a bank fold, on validation clips: no other than the scorer's."""
    monkeypatch.setattr(ablation, "ROOT", finished)
    monkeypatch.setattr(ablation, "ScorersConfig", partial(ScorersConfig, epochs=2))
    monkeypatch.setattr(ablation, "process_pool", lambda *_: ThreadPoolExecutor(1))
    found = ablation.fold_scores(BASE)
    assert len(found) == 4 and found.min() >= 0 and found.max() <= 1
    assert len({each.tobytes() for each in found}) == 4
    again = ablation.fold_scores(BASE)  # kept
    assert np.array_equal(found, again)


def test_every_change_has_its_row_and_the_first_is_the_policy(finished, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "ROOT", finished)
    ablation.main([])
    assert "bench4-best-0: not found, left out" in capsys.readouterr().out
    path = finished / "runs" / "ablation" / "fold5-scorer0.json"
    rows = read_json(path, "", ())["changes"]
    assert list(rows) == list(ablation.CHANGES)
    run, cache = finished / BASE.run("best", 0), finished / BASE.cache("slides", "all")
    out = finished / "table"
    evaluate.main(EvaluateConfig(cache=cache, compare=(f"best={run}",), out=out, workers=1))
    table = {row["name"]: row["mean"] for row in read_json(out / "results.json", "")["entrants"]}
    for metric in ablation.METRICS:
        assert rows["preset `best`"][metric] == pytest.approx(table["best"][metric], abs=1e-12)
    same = rows["training timelines of AudioSet strong too, lengths stretched"]
    assert same == rows["preset `best`"]
    text = (finished / "docs" / "results" / "ablation.md").read_text(encoding="utf-8")
    assert all(f"| {change} |" in text for change in ablation.CHANGES)
    measured = path.stat().st_mtime_ns
    ablation.main([])  # what is measured is not measured again
    assert path.stat().st_mtime_ns == measured
    monkeypatch.setattr(ablation, "CHANGES", {"preset `best`": ablation.weighed})
    kept = read_json(path, "", ())
    write_json(path, kept | {"checkpoints": ["another"]})  # what was measured of another policy is
    ablation.main([])
    assert list(read_json(path, "", ())["changes"]) == ["preset `best`"]


def test_a_change_leaves_the_policy_as_it_was(finished, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", finished)
    setting = ablation.trained(ablation.SETTINGS[0])
    before = {name: each.clone() for name, each in setting.trainer.network.state_dict().items()}
    first = ablation.weighed(setting)
    for change in (ablation.one_value, ablation.one_network, ablation.threshold_of_class):
        change(setting)
    ablation.weighed(setting, collar_weight=0.0)
    after = setting.trainer.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = ablation.weighed(setting)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_without_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    with pytest.raises(InputError, match="benchmark"):
        ablation.main([])
