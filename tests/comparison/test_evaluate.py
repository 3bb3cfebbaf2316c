"""The before/after table and its files."""

import contextlib
import dataclasses
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_cache
from reference import METRICS, moved, slow_mean

import evaluate
import preprocess
from baselines import tuned_rules
from config import Bandit, EvaluateConfig, Learning, Network, TrainConfig
from core import files
from core.errors import InputError
from DQN import QNetwork, Trainer
from policy import runfolder
from policy.apply import greedy_actions
from policy.bandit import to_device
from sed.caches import load_cache
from sed.labels import read_labels
from sed.timeline import label_frames

CPU = torch.device("cpu")
LENGTHS = [80, 61, 75, 40, 1, 90]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Folder with a training and a validation cache of different pairs; `Cat` is in one only."""
    folder = tmp_path_factory.mktemp("evaluate") / "cache"
    write_cache(folder / "train", [70, 50, 90, 66, 41, 77], seed=1)
    write_cache(folder / "validation", LENGTHS, seed=2, labels=("Dog", "Speech", "Cat"))
    return folder


@pytest.fixture(scope="module")
def train(caches):
    return load_cache(caches / "train")


@pytest.fixture(scope="module")
def cache(caches):
    return load_cache(caches / "validation")


def own_pairs(cache, label):
    """The pairs of one class as a cache of their own."""
    chosen = [i for i, pair in enumerate(cache.pairs) if pair.event_label == label]
    frames = np.concatenate([np.arange(*cache.offsets[i : i + 2]) for i in chosen])
    lengths = [cache.pairs[i].num_frames for i in chosen]
    return replace(
        cache,
        pairs=[cache.pairs[i] for i in chosen],
        signals={name: values[frames] for name, values in cache.signals.items()},
        label=cache.label[frames],
        offsets=np.cumsum([0, *lengths]),
    )


# ---------------------------------------------------------------------------- the table

TINY = Network(hidden=8, heads=2)


def write_policy(run, cache_folder, bandit=None, change=lambda network: None):
    """A checkpoint with random weights: what a training run leaves, without the training."""
    cfg = TrainConfig(
        cache=cache_folder.parent,
        run=run,
        bandit=bandit or Bandit(),
        network=TINY,
        learning=Learning(),
        seed=4,
    )
    trainer = Trainer(cfg, load_cache(cache_folder), CPU)
    with torch.no_grad():
        trainer.network.head[2].weight *= 20  # so that actions differ between frames
        change(trainer.network)
    run.mkdir(parents=True, exist_ok=True)
    runfolder.write_checkpoint(run / "best.pt", trainer.policy())
    return trainer


def never_act(network):
    network.head[2].weight.zero_()
    network.head[2].bias.zero_()
    network.head[2].bias[10] = 1


def run_evaluate(caches, run=None, **changes):
    given = {"cache": caches, "device": "cpu"} | ({"run": run} if run else {}) | changes
    evaluate.main(EvaluateConfig(**given))
    return json.loads((changes.get("out", run) / "results.json").read_text())


@dataclasses.dataclass
class Finished:
    run: Path
    text: str
    results: dict
    trainer: Trainer


READINGS = {
    "independent": Bandit(),
    "sequential": Bandit(reading="sequential", boundary_test="after", channel_order="original"),
}


@pytest.fixture(scope="module", params=READINGS)
def finished(request, caches, tmp_path_factory):
    """An evaluated policy with random weights, and what was printed."""
    run = tmp_path_factory.mktemp("run") / "a"
    trainer = write_policy(run, caches / "train", READINGS[request.param])
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        results = run_evaluate(caches, run, full=True)
    return Finished(run, text.getvalue(), results, trainer)


def test_results_against_a_slow_loop(finished, cache):
    results = finished.results
    with np.load(finished.run / "decisions.npz") as arrays:
        pred, action = arrays["binary"].astype(bool), arrays["action"]
    before = slow_mean(cache, cache.signals["prob"] > cache.signals["t_base"])
    after = slow_mean(cache, pred)
    assert results["before"] == pytest.approx(before)
    assert results["after"] == pytest.approx(after)
    assert results["gain"] == pytest.approx({name: after[name] - before[name] for name in METRICS})
    assert len(set(action)) > 3 and any(results["gain"].values())  # the policy does something
    fixed = broken = 0
    for i, label in enumerate(cache.label):
        base = moved(cache, i, 0)
        fixed += base != label and pred[i] == label
        broken += base == label and pred[i] != label
    assert (results["fixed_frames"], results["broken_frames"]) == (fixed, broken)
    assert fixed and broken
    assert (results["num_pairs"], results["num_frames"]) == (len(LENGTHS), sum(LENGTHS))
    assert results["cache_key"] == cache.key


def test_per_class_is_the_mean_over_its_pairs(finished, cache):
    with np.load(finished.run / "decisions.npz") as arrays:
        pred = arrays["binary"].astype(bool)
    assert list(finished.results["per_class"]) == ["Cat", "Dog", "Speech"]
    for label, row in finished.results["per_class"].items():
        own = own_pairs(cache, label)
        mine = np.repeat([pair.event_label == label for pair in cache.pairs], LENGTHS)
        assert row["pairs"] == len(own.pairs)
        assert row["before"] == pytest.approx(slow_mean(own, own.signals["binary"] > 0.5))
        assert row["after"] == pytest.approx(slow_mean(own, pred[mine]))


def test_threshold_selection_against_a_slow_loop(finished, cache):
    with np.load(finished.run / "decisions.npz") as arrays:
        pred = arrays["binary"].astype(bool)
    frames = right = 0
    for i, label in enumerate(cache.label):
        if abs(float(cache.signals["prob"][i]) - float(cache.signals["t_base"][i])) > 0.2 + 1e-6:
            continue
        if any(moved(cache, i, step / 50) == label for step in range(-10, 11)):
            frames += 1
            right += pred[i] == label
    found = finished.results["threshold_selection"]
    assert found["frames"] == frames > right > 0
    assert found["accuracy"] == pytest.approx(right / frames)


def test_decisions_are_those_of_the_policy(finished, cache):
    bandit, network = finished.trainer.bandit, finished.trainer.network
    with np.load(finished.run / "decisions.npz") as arrays:
        assert str(arrays["cache_key"]) == cache.key
        action, t_adj, binary = (arrays[name] for name in ("action", "t_adj", "binary"))
    assert np.array_equal(binary == 1, cache.signals["prob"] > t_adj)
    expected = greedy_actions(network, to_device(cache, bandit, CPU), bandit, 256).numpy()
    assert np.array_equal(action, expected)
    for i in range(len(cache.label)):
        assert t_adj[i] == pytest.approx(
            min(max(float(cache.signals["t_base"][i]) + (int(action[i]) - 10) / 50, 0), 1), abs=1e-6
        )


def test_events_are_the_decisions(finished, cache):
    events = read_labels(finished.run / "events.tsv")
    assert set(events) == {pair.filename for pair in cache.pairs}
    with np.load(finished.run / "decisions.npz") as arrays:
        binary = arrays["binary"].astype(bool)
    for index, pair in enumerate(cache.pairs):
        on = label_frames(events[pair.filename], pair.event_label, pair.edges)
        assert np.array_equal(on, binary[cache.offsets[index] : cache.offsets[index + 1]])


def test_printed_lines_agree_with_the_file(finished):
    lines = dict(re.findall(r"^(\w+): ([+-]?[0-9.]+)", finished.text, re.MULTILINE))
    results = finished.results
    for name in METRICS:
        assert float(lines[f"{name}_before"]) == pytest.approx(results["before"][name], abs=5e-5)
        assert float(lines[f"{name}_after"]) == pytest.approx(results["after"][name], abs=5e-5)
        assert float(lines[f"gain_{name}"]) == pytest.approx(results["gain"][name], abs=5e-5)
    chosen = results["threshold_selection"]["accuracy"]
    assert float(lines["threshold_selection_accuracy"]) == pytest.approx(chosen, abs=5e-5)
    assert int(lines["fixed_frames"]) == results["fixed_frames"]
    assert int(lines["broken_frames"]) == results["broken_frames"]


def test_one_screen_without_full(finished, caches, tmp_path, capsys):
    write_policy(tmp_path / "run", caches / "train")
    run_evaluate(caches, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 < len(finished.text.splitlines())
    assert lines[-1].startswith("verdict: ")
    assert not [line for line in lines if line.startswith("per class")]


def test_the_two_blocks_of_the_slides(finished):
    for title, when in (("npz binary only", "before"), ("env mode", "after")):
        mean = finished.results[when]
        block = (
            rf"=+ FINAL RESULTS \({title}\) =+\n"
            rf"Accuracy *: {mean['accuracy']:.4f}\nIoU *: {mean['iou']:.4f}\n"
            rf"F1 Score *: {mean['f1']:.4f}\n=+\n"
        )
        assert re.search(block, finished.text), title


def test_yardsticks_stand_in_the_table(finished, train, cache):
    rows = {row["name"]: row for row in finished.results["yardsticks"]}
    for yardstick in tuned_rules.yardsticks(cache, train, finished.trainer.bandit):
        name = yardstick.rule.name
        row = rows.pop(name)
        assert row["params"] == yardstick.rule.params
        assert {name: row[name] for name in METRICS} == pytest.approx(
            slow_mean(cache, yardstick.pred)
        )
        assert re.search(rf"^{re.escape(name)} .*{row['f1']:.2%}$", finished.text, re.M)
    assert not rows


def test_a_name_in_a_table_does_not_turn_its_numbers(capsys):
    values = {"accuracy": 0.5, "iou": 0.25, "f1": 0.125}
    evaluate.print_rows("x", [("\u05e9\u05dc\u05d5\u05dd", values), ("\u202edog", values)])
    one, two = capsys.readouterr().out.splitlines()[-2:]
    assert one.startswith("\u2068") and two.startswith("\u2068\u202e\u2069dog")
    assert one.endswith("50.00%    25.00%    12.50%")


def test_no_half_written_file_is_left(finished):
    names = ["best.pt", "decisions.npz", "events.tsv", "onsets.tsv", "results.json"]
    assert files.contents(finished.run) == names


@pytest.mark.parametrize("reading", READINGS)
def test_a_policy_that_never_acts_gains_nothing(caches, cache, tmp_path, reading):
    write_policy(tmp_path / "run", caches / "train", READINGS[reading], never_act)
    results = run_evaluate(caches, tmp_path / "run")
    assert results["before"] == results["after"]
    assert results["gain"] == {"accuracy": 0, "iou": 0, "f1": 0}
    assert results["fixed_frames"] == results["broken_frames"] == 0
    with np.load(tmp_path / "run" / "decisions.npz") as arrays:
        assert (arrays["action"] == 10).all()
        assert np.array_equal(arrays["t_adj"], cache.signals["t_base"])
        assert np.array_equal(arrays["binary"], cache.signals["binary"])


def test_batch_size_and_output_folder_change_no_number(caches, tmp_path):
    write_policy(tmp_path / "run", caches / "train")
    one = run_evaluate(caches, tmp_path / "run", batch=5, out=tmp_path / "one")
    other = run_evaluate(caches, tmp_path / "run", out=tmp_path / "deep" / "other")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best.pt"]
    for results in (one, other):
        del results["deciding_seconds"], results["sha256"]
    assert (one.pop("batch"), other.pop("batch")) == (5, 256)
    assert one == other


def test_without_a_training_cache(caches, tmp_path, capsys):
    write_policy(tmp_path / "run", caches / "train")
    results = run_evaluate(caches, tmp_path / "run", train_split="none")
    text = capsys.readouterr().out
    assert f"no cache in {caches / 'none'}: tuned baselines are left out" in text
    names = [row["name"] for row in results["yardsticks"]]
    assert "all on" in names and "best action per frame (ceiling)" in names
    assert not [name for name in names if re.search("best (single|per-class|constant)", name)]


# ---------------------------------------------------------------------------- what is refused


def test_a_policy_of_other_signals_is_refused(caches, tmp_path):
    write_cache(tmp_path / "cache" / "train", [30, 40])
    path = tmp_path / "cache" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["signal"] |= {"beta": 1.3, "fusion": "harmonic"}
    preprocess.write_json(path, manifest)
    write_policy(tmp_path / "run", tmp_path / "cache" / "train")
    with pytest.raises(InputError) as error:
        run_evaluate(caches, tmp_path / "run")
    message = str(error.value)
    assert "best.pt was trained on other signals than" in message
    assert "beta 1.3 -> 1.2" in message and "fusion harmonic -> product" in message
    assert "flat_range" not in message
    assert not (tmp_path / "run" / "results.json").exists()


def test_missing_checkpoint_and_missing_cache(caches, tmp_path):
    with pytest.raises(InputError, match=r"best\.pt: not found; train first"):
        run_evaluate(caches, tmp_path / "none")
    write_policy(tmp_path / "run", caches / "train")
    with pytest.raises(InputError, match=r"no manifest in .*nowhere; run: python preprocess"):
        run_evaluate(caches, tmp_path / "run", split="nowhere")


def test_a_bare_state_dict_is_read_by_its_preset(caches, cache, tmp_path):
    """The original authors' checkpoint: no settings in it, default sizes, sequential reading."""
    torch.manual_seed(0)
    bandit = READINGS["sequential"]
    network = QNetwork(bandit, Network()).eval()
    path = tmp_path / "dqn_threshold.pt"
    torch.save(network.state_dict(), path)
    results = run_evaluate(caches, checkpoint=path, preset="original", out=tmp_path / "out")
    assert results["policy"] == {"source": "state dict", "preset": "original"}
    expected = greedy_actions(network, to_device(cache, bandit, CPU), bandit, 256)
    with np.load(tmp_path / "out" / "decisions.npz") as arrays:
        assert np.array_equal(arrays["action"], expected.numpy())
    with pytest.raises(InputError, match="neither a checkpoint of this suite nor"):
        torch.save({"weights": torch.zeros(1)}, path)
        run_evaluate(caches, checkpoint=path, out=tmp_path)
