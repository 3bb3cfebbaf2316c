"""Dense policies of studies/policy.py: rewards against brute force, batches, learning, table.

Next:   nothing
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import write_cache

from bandit import shift
from config import InputError, TrainConfig, with_preset
from dense import iou_gain
from metrics import count_pairs, mean_over_pairs
from preprocess import load_cache
from studies import policy, policy_pairs, policy_rivals
from studies.policy import DENSE, VARIANTS, Clips, act, clips_of, decisions, fit

TINY = replace(DENSE, hidden=8, layers=2, dropout=0.0, epochs=2, batch=4)
CHANGES = {
    "slides": {},
    "taken": {"learn": "taken"},
    "free": {"reward": "iou-weighted", "base": "calibrated", "max_delta": 0.4},
    "context": {"reward": "iou", "base": "per-class", "class_context": True, "clip_context": True},
    "blocks": {"gru": True, "transformer": True, "dueling": True, "short_cost": 0.3},
    "augmented": {"flip": True, "jitter": 0.2, "clip_context": True},
    "rivals": {"rival_context": True, "members": 2, "average": 0.9},
    "passes": {"passes": 3, "gamma": 0.9, "target_every": 2, "double": True},
    "prioritized": {"prioritized": True, "reward": "iou-weighted", "head": "decisions"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("policy") / "train"
    write_cache(folder, [60, 45, 80, 1, 52, 66, 71, 49], seed=1)
    return load_cache(folder)


@pytest.fixture(scope="module")
def clips(cache):
    return clips_of(cache, fit(cache), DENSE)


def coin(clips: Clips) -> torch.Tensor:
    return torch.rand(clips.label.shape, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.mark.parametrize("scaled", [False, True])
def test_the_reward_is_what_one_decision_changes_in_the_iou(clips, scaled):
    on = coin(clips)
    gain = iou_gain(on, clips, scaled)
    for pair in range(len(clips.label)):
        length = int(clips.inside[pair].sum())
        true = clips.label[pair, :length]
        size = int((on[pair, :length] | true).sum().clamp_min(1)) if scaled else length
        for frame in range(0, length, 7):
            for decided in (False, True):
                now = on[pair, :length].clone()
                now[frame] = decided
                union = int((now | true).sum())
                iou = int((now & true).sum()) / union if union else 1.0
                assert float(gain[pair, frame, int(decided)]) == pytest.approx(iou * size, abs=1e-4)


def test_run_lengths_are_those_of_a_slow_count(clips):
    on = coin(clips)
    found = policy.run_lengths(on, clips.inside)
    for pair in range(len(on)):
        length = int(clips.inside[pair].sum())
        for frame in range(0, length, 5):
            for decided in (False, True):
                row = on[pair, :length].tolist()
                row[frame] = decided
                first, last = frame, frame
                while first > 0 and row[first - 1] == decided:
                    first -= 1
                while last < length - 1 and row[last + 1] == decided:
                    last += 1
                count = int(found[pair, frame, int(decided)])
                if first == 0 or last == length - 1:
                    assert count > length
                else:
                    assert count == last - first + 1


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_batch_changes_no_decision(cache, change):
    """Pairs of other lengths in the batch are neither seen nor waited for."""
    variant = replace(TINY, **{"class_context": True, "clip_context": True} | change)
    clips = clips_of(cache, fit(cache), variant)
    torch.manual_seed(0)
    network = policy.DenseQNetwork(variant, clips, len(cache.classes)).eval()
    alone = [
        act(network, clips.of(torch.tensor([i])), None)[-1].on[0] for i in range(len(clips.label))
    ]
    np.testing.assert_array_equal(decisions(network, clips), torch.cat(alone).numpy())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_same_seed_same_numbers(cache, change):
    variant = replace(TINY, **change)
    clips = clips_of(cache, fit(cache), variant)
    first, second = (policy.train(variant, clips, len(cache.classes), 3) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    taken = act(first, clips, None)[0].taken
    reach = policy.deltas_of(variant)
    assert (
        float((shift(clips.base, reach[taken]) - clips.base).abs().max())
        <= variant.max_delta + 1e-6
    )


@pytest.mark.parametrize("reward", ["slides", "iou", "iou-scaled", "iou-weighted"])
def test_it_learns_to_beat_its_base(cache, reward):
    variant = replace(TINY, reward=reward, hidden=16, epochs=40, lr=1e-2)
    clips = clips_of(cache, fit(cache), variant)
    network = policy.train(variant, clips, len(cache.classes), 0)
    before, after = (
        mean_over_pairs(count_pairs(pred, cache.label, cache.offsets))["iou"]
        for pred in (cache.signals["binary"] > 0.5, decisions(network, clips))
    )
    assert after > before + 0.03


def test_a_share_of_the_clips_is_of_whole_clips(cache):
    assert policy.part_of(cache, 1.0, 0) is cache
    names = {clip.filename for clip in cache.clips}
    parts = [{clip.filename for clip in policy.part_of(cache, 0.5, s).clips} for s in range(12)]
    assert all(part < names and len(part) == round(len(names) / 2) for part in parts)
    assert len({frozenset(part) for part in parts}) > 1


def test_names(capsys):
    policy.show(policy.ListConfig())
    assert len(capsys.readouterr().out.splitlines()) == len(VARIANTS)
    with pytest.raises(InputError, match="--variants nonsense: not one of dense, "):
        policy.RunConfig(variants=("nonsense",))
    with pytest.raises(InputError, match="--dev 5: that fold is the validation split's"):
        policy.RunConfig(dev=5)


def test_run_and_table(tmp_path, monkeypatch, capsys):
    """The program on a cache of its own: training, what is done is skipped, a table."""
    monkeypatch.setattr(policy, "ROOT", tmp_path)
    monkeypatch.setitem(VARIANTS, "dense", TINY)
    folder = tmp_path / "cache" / "esc10-fold5-slides-present" / "train"
    names = [f"{i}.wav" for i in range(6)]
    write_cache(folder, [60, 45, 80, 31, 52, 66, 71, 49, 40, 44, 58, 62], seed=1, clips=names)
    table = tmp_path / "data" / "esc10-fold5" / "clips.tsv"
    with pytest.raises(InputError, match=r"not found; run: python studies/benchmark\.py"):
        policy.split(5, 4)
    table.parent.mkdir(parents=True)
    rows = [f"train\t{name}\t{3 + i % 2}\t1\t-" for i, name in enumerate(names)]
    table.write_text("split\tfilename\tfold\tduration\trecordings\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match=r"--dev 1: .* no training clip of that bank fold"):
        policy.split(5, 1)
    for seed in (0, 1):
        assert "done before" not in policy.run_one("dense", 5, 4, seed)
        assert "done before" in policy.run_one("dense", 5, 4, seed)
    policy.table(policy.TableConfig())
    said = capsys.readouterr().out
    assert "| dense | " in said and "best rule" in said and " ± " in said
    assert (tmp_path / "runs" / "policy" / "fold5-dev4" / "table.md").exists()


def test_pairs_that_may_be_absent(tmp_path, monkeypatch, capsys):
    """The program on caches of its own: trained on present pairs and on all, judged on all."""
    monkeypatch.setattr(policy, "ROOT", tmp_path)
    small = with_preset(TrainConfig, "best")
    small = replace(small, passes=2, dense=replace(small.dense, hidden=8, layers=2, batch=4))
    monkeypatch.setattr(policy_pairs, "with_preset", lambda *_: small)
    names, lengths = [f"{i}.wav" for i in range(6)], np.repeat([60, 45, 80, 52, 66, 71], 2)
    for queries, absent in (("present", ()), ("all", (1, 4, 11))):
        folder = tmp_path / "cache" / f"esc10-fold5-slides-{queries}" / "train"
        write_cache(folder, lengths.tolist(), seed=1, clips=names, absent=absent)
    table = tmp_path / "data" / "esc10-fold5" / "clips.tsv"
    table.parent.mkdir(parents=True)
    rows = [f"train\t{name}\t{3 + i % 2}\t1\t-" for i, name in enumerate(names)]
    table.write_text("split\tfilename\tfold\tduration\trecordings\n" + "\n".join(rows) + "\n")
    for name in list(policy_pairs.VARIANTS)[:2]:
        for seed in (0, 1):
            assert "done before" not in policy_pairs.run_one(name, 5, 4, seed)
            assert "done before" in policy_pairs.run_one(name, 5, 4, seed)
    policy_pairs.table(policy_pairs.TableConfig())
    said = capsys.readouterr().out
    assert "| all pairs | " in said and "best rule" in said and " ± " in said
    assert (tmp_path / "runs/policy/fold5-dev4/pairs/table.md").exists()
    monkeypatch.setattr(policy_rivals, "judges_of", lambda _: [4, 3])
    with pytest.raises(InputError, match=r"without-seed0.npz: not there or of other settings; run"):
        policy_rivals.table(policy_rivals.TableConfig())
    for dev in (4, 3):
        for kind in policy_rivals.KINDS:
            for seed in range(policy_rivals.TOGETHER):
                assert "done before" not in policy_rivals.run_one(5, dev, kind, seed)
    assert "done before" in policy_rivals.run_one(5, 4, "with", 0)
    policy_rivals.table(policy_rivals.TableConfig())
    rows = (tmp_path / "runs/policy/fold5-rivals.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {n} of 3" for n in range(4)]
    assert [" ± " in row for row in rows] == [False, True, True, False]


def test_three_networks_of_each_kind_are_used_alike():
    for seeing in range(4):
        turns = [policy_rivals.chosen(seeing, turn) for turn in range(3)]
        assert all(sum(kind == "with" for kind, _ in turn) == seeing for turn in turns)
        assert all(sorted(seed for _, seed in turn) == [0, 1, 2] for turn in turns)
        used = sorted(one for turn in turns for one in turn)
        assert used == sorted(
            [
                (kind, seed)
                for kind, count in (("with", seeing), ("without", 3 - seeing))
                for seed in range(3)
                for _ in range(count)
            ]
        )


def test_what_is_shown_backwards_is_the_same_clip(clips):
    shown = policy.augmented(clips, replace(DENSE, flip=True), torch.Generator().manual_seed(0))
    turned = set()
    for pair, length in enumerate(clips.inside.sum(1).tolist()):
        for before, after in ((clips.score, shown.score), (clips.channels, shown.channels)):
            old, new = before[pair][..., :length], after[pair][..., :length]
            same, back = torch.equal(old, new), torch.equal(old.flip(-1), new)
            assert same or back
            turned.add(back and not same)
        assert torch.equal(clips.label[pair].sum(), shown.label[pair].sum())
    assert turned == {True, False}


def test_jitter_moves_scores_and_their_statistics_alike(clips):
    shown = policy.augmented(clips, replace(DENSE, jitter=0.3), torch.Generator().manual_seed(0))
    assert not torch.equal(shown.channels[:, 0], clips.channels[:, 0])
    assert torch.equal(shown.channels[:, 1:], clips.channels[:, 1:])
    for pair, length in enumerate(clips.inside.sum(1).tolist()):
        odds = shown.channels[pair, 0, :length].numpy()
        expected = [odds.mean(), odds.std(), odds.max()]
        expected += np.quantile(odds, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        assert np.allclose(shown.context[pair, :8], expected, atol=1e-4)
