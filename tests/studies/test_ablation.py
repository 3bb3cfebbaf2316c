"""The ablation: every change has its row, the policy itself is left as it was."""

import numpy as np
import pytest
import torch
from corpora import write_cache

import evaluate
from config import EvaluateConfig, Events, TrainConfig
from core.errors import InputError
from core.stored import read_json
from DQN import main
from studies import ablation

SMALL = Events(hidden=8, layers=3, batch=4, box_batch=32, tag_limit=0.0)
LENGTHS = [120, 120, 90, 90, 160, 160, 104, 104, 132, 132, 142, 142, 98, 98, 118, 118]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with one small finished run where the benchmark leaves it."""
    root = tmp_path_factory.mktemp("root")
    cache = root / "cache" / "esc10-fold5-slides-all"
    for seed, split in enumerate(("train", "validation")):
        write_cache(cache / split, LENGTHS, seed, absent=(1, 6, 11))
    run = root / "runs" / "bench5-best-0"
    common = {"method": "events", "events": SMALL, "holdout": 0.0, "looks": 1, "passes": 4}
    main(TrainConfig(cache=cache, run=run, device="cpu", **common))
    (root / "docs" / "results").mkdir(parents=True)
    return root


def test_every_change_has_its_row_and_the_first_is_the_policy(finished, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "ROOT", finished)
    ablation.main([])
    assert "bench4-best-0: not found, left out" in capsys.readouterr().out
    rows = read_json(finished / "runs" / "ablation" / "fold5-scorer0.json", "", ())
    assert list(rows) == list(ablation.CHANGES)
    run, cache = finished / "runs" / "bench5-best-0", finished / "cache" / "esc10-fold5-slides-all"
    out = finished / "table"
    evaluate.main(EvaluateConfig(cache=cache, compare=(f"best={run}",), out=out, workers=1))
    table = {row["name"]: row["mean"] for row in read_json(out / "results.json", "")["entrants"]}
    for metric in ablation.METRICS:
        assert rows["preset `best`"][metric] == pytest.approx(table["best"][metric], abs=1e-12)
    text = (finished / "docs" / "results" / "ablation.md").read_text(encoding="utf-8")
    assert all(f"| {change} |" in text for change in ablation.CHANGES)
    measured = (finished / "runs" / "ablation" / "fold5-scorer0.json").stat().st_mtime_ns
    ablation.main([])  # what is measured is not measured again
    assert (finished / "runs" / "ablation" / "fold5-scorer0.json").stat().st_mtime_ns == measured


def test_a_change_leaves_the_policy_as_it_was(finished, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", finished)
    setting = ablation.trained(ablation.SETTINGS[0])
    before = {name: each.clone() for name, each in setting.trainer.network.state_dict().items()}
    first = ablation.weighed(setting)
    for change in (ablation.one_value, ablation.one_network, ablation.threshold_of_class):
        change(setting)
    ablation.weighed(setting, collar_weight=0.0)
    again = ablation.weighed(setting)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    after = setting.trainer.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    with pytest.raises(InputError, match="benchmark"):
        ablation.main([])
