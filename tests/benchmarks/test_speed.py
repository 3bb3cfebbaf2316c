"""What the benchmarks stand on: the simulated cache, the naive training, a row."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_policy
from torch.nn import functional

from benchmarks import naive, simulate_cache, speed
from benchmarks.tf32 import TF32, rounded
from config import PRETRAINED, Bandit, Learning, Network
from core.errors import InputError
from policy.network import QNetwork
from sed.caches import load_cache
from sed.labels import read_labels

TINY = Network(hidden=8, heads=2)


def simulated(folder: Path, **changes) -> simulate_cache.SimulateConfig:
    given = {"out": folder, "train_pairs": 90, "validation_pairs": 7, "frames": 40, "workers": 1}
    return simulate_cache.SimulateConfig(**(given | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("speed")
    simulate_cache.main(simulated(folder))
    return load_cache(folder / "train")


def test_a_simulated_cache_has_exactly_the_pairs_asked_for(cache):
    assert len(cache.pairs) == 90 and set(np.diff(cache.offsets)) == {40}
    assert len(load_cache(cache.folder.parent / "validation").pairs) == 7
    assert cache.present.all() and len(set(cache.pairs)) == 90
    share = cache.label.mean()
    assert 0.1 < share < 0.8
    base = (cache.signals["binary"] > 0.5) == cache.label
    assert 0.5 < base.mean() < 0.99  # neither noise nor the truth


def test_the_same_seed_simulates_the_same(cache, tmp_path):
    for seed in (0, 1):
        simulate_cache.main(simulated(tmp_path / str(seed), seed=seed, validation_pairs=0))
    assert load_cache(tmp_path / "0" / "train").key == cache.key
    assert load_cache(tmp_path / "1" / "train").key != cache.key
    assert not (tmp_path / "0" / "validation").exists()


def test_real_timelines_come_first(tmp_path):
    rows = ["filename\tonset\toffset\tevent_label", "a.wav\t0.1\t0.3\tDog", "a.wav\t0.2\t9\tCat"]
    rows += ["b.wav\t5\t6\tDog", "c.wav\t0\t0.1\tDog"]
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    labels = (tmp_path / "labels.tsv",)
    clips = list(simulate_cache.timelines(labels, 5, 0.8, 0))
    assert [name for name, _ in clips[:2]] == ["0/a.wav", "0/c.wav"]  # b begins after the end
    first = read_labels(labels[0])["a.wav"]
    assert clips[0][1][0] == first[0] and clips[0][1][1].offset == 0.8
    assert sum(len({e.event_label for e in events}) for _, events in clips) == 5
    assert clips[2][0].startswith("random-")


def test_the_slides_sizes_are_the_defaults():
    cfg = simulate_cache.SimulateConfig()
    assert (cfg.train_pairs, cfg.validation_pairs, cfg.frames) == (28_592, 5_570, 500)


# ---------------------------------------------------------------------------- naive training


@pytest.mark.parametrize("reading", ["independent", "sequential"])
def test_naive_training_steps_once_in_32_frames(cache, reading):
    bandit = Bandit(reading=reading)
    network = QNetwork(bandit, TINY)
    before = network.head[2].weight.detach().clone()
    pairs = [cache.of_pair(i) for i in range(12)]
    stored = frames = 0
    expected = []
    for pair in pairs:
        skip = 1 if reading == "sequential" else 0
        inside = np.abs(pair["prob"] - pair["t_base"]) <= 0.2
        for flag in inside[skip:]:
            stored, frames = stored + int(flag), frames + 1
            expected.append(frames % 32 == 0 and stored > 40)
    visits = naive.train(
        network, ((p, 1.0) for p in pairs), bandit.channels, list(bandit.deltas), reading, 40
    )
    steps = list(visits)
    assert len(steps) == frames
    if reading == "independent":  # after acting, what is stored depends on the action
        assert steps == list(itertools.accumulate(expected))
    assert 0 < steps[-1] <= frames // 32
    assert not torch.equal(before, network.head[2].weight)


def test_a_requirement_is_met_or_not():
    assert speed.row("a", "b", 5.5, ">= 5.5 x").met is True
    assert speed.row("a", "b", 5.4, ">= 5.5 x").met is False
    assert speed.row("a", "b", 4.1, "<= 4 MB").met is False
    assert speed.row("a", "b", 1.0).met is None
    table = speed.markdown([speed.row("a", "b", 5.4, ">= 5.5 x")])
    assert table.splitlines()[-1].endswith("| 5.40 | >= 5.5 x | NO |")


def test_the_schedule_weights_are_a_mean():
    assert sum(speed.EPSILONS.values()) == pytest.approx(1)
    assert speed.over_schedule(dict.fromkeys(speed.EPSILONS, 7.0)) == pytest.approx(7)
    # the mean epsilon: half of the fall from 1 to 0.05 over 70 %, then 0.05
    mean = sum(epsilon * weight for epsilon, weight in speed.EPSILONS.items())
    assert mean == pytest.approx(0.7 * 0.525 + 0.3 * 0.05)


def test_rates_leave_the_first_step_out():
    steps = iter([10**9, 1, 1, 1])
    assert speed.rate(steps, 60) < 10**8


# ---------------------------------------------------------------------------- on a GPU, and TF32

CPU = torch.device("cpu")


@pytest.fixture
def setting(cache):
    return speed.SpeedConfig(quick=True, slice_s=0.3, cache=cache.folder.parent)


def test_the_rows_of_a_gpu_on_a_cpu(setting):
    deciding, *training, best = speed.on_device(setting, CPU, "a card")
    assert deciding.need == "<= 10 s" and best.need == "<= 5 min"
    kinds = [("plain", 32, ""), ("graphs", 32, "<= 15 min"), ("graphs", 256, "")]
    for one, (steps, batch, need) in zip(training, kinds, strict=True):
        assert f"{steps}, batch and frames a step {batch} (" in one.what and one.need == need
    assert all(one.value > 0 and one.what.startswith("a card: ") for one in (deciding, *training))
    assert best.value > 0 and "boxes" in best.now and "from 90 pairs" in best.what


def test_a_training_that_ends_within_its_slice_is_no_measurement(setting, cache, monkeypatch):
    """After its last episode a tick does nothing, and a step would seem to take ever longer."""
    long = speed.endless
    monkeypatch.setattr(speed, "endless", lambda *given: replace(long(*given), passes=1))
    few = load_cache(cache.folder.parent / "validation")
    with pytest.raises(InputError, match="ended within the slice"):
        speed.stepping(setting, few, CPU, "plain", 32, "")


def test_a_million_frames_a_second_do_not_reach_the_end(setting, cache):
    cfg = speed.endless(replace(setting, slice_s=120.0), cache, Learning())
    assert cfg.passes * len(cache.label) > 120 * 1_000_000


def test_rounding_keeps_ten_bits_of_mantissa():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal(1_000).astype(np.float32))
    x = torch.cat([x, torch.tensor([0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, -(2**100)])])
    mantissa, exponent = np.frexp(x.double().numpy())
    expected = np.ldexp(np.round(mantissa * 2**11), exponent - 11)  # ties to the even one
    assert np.array_equal(rounded(x).double().numpy(), expected)


def test_operands_are_rounded_and_what_is_added_is_not():
    torch.manual_seed(0)
    x, w, bias = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
    conv, gru = torch.nn.Conv1d(7, 4, 3), torch.nn.GRU(7, 4, bidirectional=True)
    query = torch.randn(1, 2, 5, 8)
    with torch.no_grad():
        plain = conv(rounded(x.T)[None]), gru(x)[0]
    with torch.inference_mode(), TF32():
        assert torch.equal(x @ w, rounded(x) @ rounded(w))
        assert torch.equal(torch.addmm(bias, x, w), bias + rounded(x) @ rounded(w))
        assert torch.equal(torch.baddbmm(bias, x[None], w[None])[0], torch.addmm(bias, x, w))
        found = conv(x.T[None]), gru(x)[0]
        attended = functional.scaled_dot_product_attention(query, query, query)
    exact = functional.scaled_dot_product_attention(*[rounded(query)] * 3)
    assert torch.allclose(attended, exact, atol=1e-6) and not torch.equal(found[0], plain[0])
    assert 0 < (found[1] - plain[1]).abs().max() < 1e-2  # a GRU is taken apart
    assert torch.equal(x.double() @ w.double(), x.double() @ w.double())


@pytest.mark.parametrize("kind", ["windowed", "events"])
def test_what_tf32_changes_is_counted(setting, cache, tmp_path, kind):
    path = PRETRAINED
    if kind == "windowed":
        path = write_policy(tmp_path / "run", cache.folder, bandit=Bandit())
    rows = speed.rounding(replace(setting, policy=path))
    asked = [one.what.split(",")[0] for one in rows]
    last = "actions changed" if kind == "windowed" else "boxes emitted no more or elsewhere"
    assert asked == ["decisions changed", last]
    assert all(0 <= one.value < 5 for one in rows) and "280 frames" in rows[0].what
    assert torch.backends.mha.get_fastpath_enabled()


def test_whole_pairs_in_both_readings(setting):
    rows = speed.whole(setting)
    assert [one.what.partition(" ")[0] for one in rows] == ["independent", "sequential"]
    assert all(one.value > 1 for one in rows)  # naive: a pair and a frame after the other
