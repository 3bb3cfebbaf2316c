"""The dense policy: batches, scales, unknown classes, learning, resume, the scripts around it.

Next:   nothing
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import write_cache

from apply import greedy_actions
from bandit import decide, highest_other, query_of, rivals, thresholds, to_device
from config import Bandit, Dense, InputError, Learning, TrainConfig, with_preset
from dense import (
    POOL,
    DenseQNetwork,
    DenseTrainer,
    better,
    class_weight,
    clips_of,
    greedy,
    lessons,
    pooled_gain,
    rate_at,
    reachable,
    statistics,
)
from device import fastest_batch
from DQN import load_policy, main
from gate import Gate, lowered
from metrics import mean_f1
from preprocess import load_cache
from ranks import Ranks
from runfolder import digest, read_checkpoint

CPU = torch.device("cpu")
SMALL = Dense(hidden=8, layers=3, dropout=0.1, batch=4, members=2)
BANDIT = with_preset(TrainConfig, "best").bandit


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dense") / "cache" / "train"
    write_cache(folder, [60, 45, 80, 1, 52, 66, 71, 49, 58, 33, 90, 41], seed=1)
    return load_cache(folder)


@pytest.fixture(scope="module")
def all_pairs(tmp_path_factory):
    """Two of the six clips hold one class only."""
    folder = tmp_path_factory.mktemp("all") / "cache" / "train"
    write_cache(folder, [60, 60, 45, 45, 80, 80, 52, 52, 66, 66, 71, 71], seed=2, absent=(1, 4))
    found = load_cache(folder)
    assert found.queries == "all" and (~found.present).sum() == 2
    return found


@pytest.fixture
def cfg(cache, tmp_path):
    best = with_preset(TrainConfig, "best")
    folder = cache.folder.parent
    return replace(
        best, dense=SMALL, passes=3, run=tmp_path / "run", cache=folder, holdout=0.2, device="cpu"
    )


def network_for(cache, dense=SMALL):
    torch.manual_seed(0)
    network = DenseQNetwork(BANDIT, dense, tuple(cache.classes), cache.queries)
    signals = to_device(cache, BANDIT, CPU, cache.classes, network.rivals)
    network.fit_scale(signals, np.arange(len(cache.pairs)))
    return network.eval(), signals


def test_a_batch_changes_nothing(cache):
    """A pair of another length beside it, or none: the same Q-values."""
    network, signals = network_for(cache)
    together = clips_of(signals, torch.arange(len(cache.pairs)))
    with torch.no_grad():
        q_values = network(together)
        for pair, length in enumerate(np.diff(cache.offsets)):
            alone = network(clips_of(signals, torch.tensor([pair])))[0]
            assert torch.allclose(q_values[pair, :length], alone, atol=1e-5)


def test_clips_hold_the_signals_of_their_pairs(cache):
    _, signals = network_for(cache)
    clips = clips_of(signals, torch.tensor([3, 1]))
    for row, pair in enumerate((3, 1)):
        values = cache.of_pair(pair)
        there = clips.inside[row]
        for i, name in enumerate(BANDIT.channels):
            assert np.array_equal(clips.channels[row, i][there], values[name])
        assert np.array_equal(clips.label[row][there], values["label"])
        assert cache.classes[clips.query[row]] == cache.pairs[pair].event_label


def test_statistics_leave_out_what_is_behind_the_end():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 3, 41)).astype(np.float32))
    inside = torch.ones(2, 41, dtype=torch.bool)
    inside[1, 21:] = False
    for row, length in ((0, 41), (1, 21)):
        part = x[row, :, :length].numpy()
        expected = [*part.mean(1), *part.std(1), *part.max(1)]
        expected += np.quantile(part[0], (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
        assert np.allclose(statistics(x, inside)[row], expected, atol=1e-5)


def test_an_unknown_class_adds_nothing(cache):
    """Neither that of another class nor a crash: what is left is what all classes share."""
    network, signals = network_for(cache)
    clips = clips_of(signals, torch.tensor([0]))
    names = ["never heard of", *cache.classes]
    assert query_of(names, cache.classes).tolist() == [-1, *range(len(cache.classes))]
    with torch.no_grad():
        unknown = network(clips._replace(query=torch.tensor([-1])))
        for member in network.members:
            member.of_class.weight.zero_()
        assert torch.equal(network(clips), unknown)


def test_without_class_context_no_class_is_told_apart(cache):
    network, signals = network_for(cache, replace(SMALL, class_context=False))
    clips = clips_of(signals, torch.tensor([0]))
    others = [network(clips._replace(query=torch.tensor([i]))) for i in (-1, 0, 1)]
    assert torch.equal(others[0], others[1]) and torch.equal(others[1], others[2])


def test_signals_without_queries_are_refused(cache):
    network, signals = network_for(cache)
    with pytest.raises(ValueError, match="queries"):
        network(clips_of(signals._replace(query=None), torch.tensor([0])))


def test_rivals_are_the_clips_other_queries(cache, all_pairs):
    """On the same frames; of a clip whose pairs have other lengths there is none."""
    assert not rivals(cache).any()
    score, found, at = all_pairs.signals["d_raw"], rivals(all_pairs), all_pairs.offsets
    for pair in range(0, len(all_pairs.pairs), 2):
        one, other = slice(at[pair], at[pair + 1]), slice(at[pair + 1], at[pair + 2])
        assert np.array_equal(found[one], score[other])
        assert np.array_equal(found[other], score[one])


def test_rivals_are_of_the_same_clip_and_length(tmp_path):
    write_cache(tmp_path, [60, 60, 60, 80, 52, 52, 52], labels=("Cat", "Dog", "Speech"))
    found, cache = {}, load_cache(tmp_path)
    rival, score = rivals(cache), cache.signals["d_raw"]
    spans = [slice(*cache.offsets[i : i + 2]) for i in range(len(cache.pairs))]
    for i, pair in enumerate(cache.pairs):
        same = [j for j, p in enumerate(cache.pairs) if p.filename == pair.filename and j != i]
        others = [score[spans[j]] for j in same if cache.pairs[j].num_frames == pair.num_frames]
        found[i] = len(others)
        assert np.array_equal(rival[spans[i]], np.max([0 * score[spans[i]], *others], axis=0))
    assert sorted(found.values()) == [0, 0, 1, 1, 2, 2, 2]


def test_the_highest_other_row():
    values = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 1.0], [2.0, 0.0, 0.0]])
    assert highest_other(values).tolist() == [[3, 5, 1], [2, 5, 2], [3, 5, 2]]
    assert highest_other(values[:1]).tolist() == [[0, 0, 0]]


def test_rivals_are_shown_where_they_are_asked_for(all_pairs):
    signals = to_device(all_pairs, BANDIT, CPU, all_pairs.classes, with_rivals=True)
    clips = clips_of(signals, torch.tensor([0, 5]))
    for wanted in (True, False):
        network, _ = network_for(all_pairs, replace(SMALL, rival_context=wanted))
        assert network.rivals is wanted
        with torch.no_grad():
            q_values = network(clips)
            other = network(clips._replace(rival=1 - clips.rival))
        assert torch.equal(q_values, other) is not wanted


def test_some_members_see_rivals_where_classes_are_known_to_sound(tmp_path):
    """The last ones; the others decide as if there were none, and learn nothing from them."""
    write_cache(tmp_path, [60, 60, 60, 80, 52, 52, 52], labels=("Cat", "Dog", "Speech"))
    cache = load_cache(tmp_path)
    three = replace(SMALL, members=3)
    signals = to_device(cache, BANDIT, CPU, cache.classes, with_rivals=True)
    clips = clips_of(signals, torch.tensor([0, 5]))
    for seeing in (0, 2, 3):
        network, _ = network_for(cache, replace(three, rival_members=seeing))
        assert network.rivals is (seeing > 0)
        with torch.no_grad():
            values = network.values(clips)
            others = network.values(clips._replace(rival=1 - clips.rival))
        same = [torch.equal(*both) for both in zip(values, others, strict=True)]
        assert same == [True] * (3 - seeing) + [False] * seeing
    network, _ = network_for(cache, replace(three, rival_members=2))
    for value in network.values(clips):
        value.square().sum().backward()
    first, *rest = [member.inputs.weight.grad[:, 1].abs().sum() for member in network.members]
    assert first == 0 and min(rest) > 0
    first, *rest = [
        member.of_clip.weight.grad[:, 1::7][:, :3].abs().sum() for member in network.members
    ]
    assert first == 0 and min(rest) > 0
    off, _ = network_for(cache, replace(three, rival_members=2, rival_context=False))
    assert not off.rivals and off.members[0].inputs.in_channels == 6


def test_the_second_head_learns_from_present_pairs_and_decides_nothing(all_pairs, cache, cfg):
    two = replace(SMALL, known_head=True)
    assert DenseQNetwork(BANDIT, two, ("Dog",), "present").heads == 1
    assert DenseQNetwork(BANDIT, SMALL, ("Dog",), "all").heads == 1
    trainer = DenseTrainer(replace(cfg, dense=two, holdout=0.0), all_pairs, CPU)
    network, absent = trainer.network, np.flatnonzero(~all_pairs.present)
    network.counts += torch.tensor([10.0, 40.0, 50.0, 500.0])
    for pairs, learns in ((absent, False), (np.flatnonzero(all_pairs.present), True)):
        clips = clips_of(trainer.signals, torch.from_numpy(pairs))
        values = network.values(clips)
        assert values[0].shape[2] == 4
        network.zero_grad()
        sum(trainer.losses(clips, reachable(clips, BANDIT), values)).backward()
        last = [member.head[-1].weight.grad for member in network.members]
        assert all(grad[:2].any() for grad in last)
        assert all(grad[2:].any() == learns for grad in last)
    network.eval()
    before = network(clips)
    with torch.no_grad():
        for member in network.members:
            member.head[-1].bias[2:] += 1
        assert torch.equal(network(clips), before)


def test_better_is_the_better_decision_that_an_action_leads_to(cache):
    for bandit in (BANDIT, Bandit()):
        signals = to_device(cache, bandit, CPU, cache.classes)
        clips = clips_of(signals, torch.arange(len(cache.pairs)))
        share = reachable(clips, bandit)
        value = torch.rand(*share.shape, 2, generator=torch.Generator().manual_seed(0))
        on = better(value, share)
        for pair, frame in ((0, 7), (4, 50), (8, 3), (11, 40), (10, 77)):
            t_base, prob = float(clips.t_base[pair, frame]), float(clips.prob[pair, frame])
            reached = [prob > min(max(t_base + d, 0), 1) for d in bandit.deltas]
            assert share[pair, frame] == pytest.approx(np.mean(reached))
            best = max(set(reached), key=lambda r: float(value[pair, frame, int(r)]))
            assert on[pair, frame] == best
    assert 0 < ((share > 0) & (share < 1)).float().mean() < 1  # +-0.2 does not always matter


def test_pooled_gain_is_the_change_of_the_pooled_f1(all_pairs):
    """Of one frame more or less, up to the size of a frame; and what weighs a class."""
    signals = to_device(all_pairs, BANDIT, CPU, all_pairs.classes)
    clips = clips_of(signals, torch.arange(len(all_pairs.pairs)))
    tp, on, true = 900.0, 1400.0, 1600.0
    pooled = torch.tensor([[tp, on, true, 9000.0], [300.0, 400.0, 500.0, 9000.0]])
    gain = pooled_gain(clips, pooled)
    f1 = 2 * tp / (on + true)
    for y in (0, 1):
        after = 2 * (tp + y) / (on + 1 + true)
        there = (clips.query == 0)[:, None] & (clips.label == y)
        assert torch.allclose(gain[..., 1][there], torch.tensor(2 * y - f1))
        assert (after - f1) * (on + true) == pytest.approx(2 * y - f1, abs=1e-3)
    assert not gain[..., 0].any()
    assert class_weight(clips, pooled)[clips.query == 0].unique().item() == pytest.approx(3)
    assert class_weight(clips, pooled)[clips.query == 1].unique().item() == pytest.approx(10)


def test_what_is_learned_from_a_cache_of_all_pairs(all_pairs, cfg):
    """Present pairs, and those that the lowered gate lets through; of a class, its own F1."""
    gate = Gate({"Dog": 0.5, "Speech": 0.8}, 0.6)
    assert lowered(gate, 0.5) == Gate({"Dog": 0.25, "Speech": 0.4}, 0.3)
    assert lessons(all_pairs, None, 0.3).all() and lessons(all_pairs, gate, 0.0).all()
    high = Gate({"Dog": 1.0, "Speech": 1.0}, 1.0)
    assert np.array_equal(lessons(all_pairs, high, 1.0), all_pairs.present)
    for share in (0.0, 1.0):
        dense = replace(SMALL, gate_share=share)
        trainer = DenseTrainer(replace(cfg, dense=dense, holdout=0.0), all_pairs, CPU)
        chosen = lessons(all_pairs, trainer.gate, share)
        assert set(trainer.order) == set(np.flatnonzero(chosen))
    trainer = DenseTrainer(replace(cfg, passes=1, dense=dense), all_pairs, CPU)
    assert len(trainer.held_out) and all_pairs.present[trainer.held_out].all()
    while not trainer.done:
        trainer.tick()
    frames = np.array([all_pairs.of_pair(i)["label"].sum() for i in trainer.order])
    kinds = trainer.signals.query[torch.from_numpy(trainer.order)].numpy()
    age = (len(frames) - 1) // SMALL.batch - np.arange(len(frames)) // SMALL.batch  # in steps
    assert np.allclose(trainer.network.counts[:, 2], np.bincount(kinds, frames * POOL**age))


def test_a_channel_that_says_nothing_is_left_alone(cache):
    """As the loudness without audio: over a deviation of zero, rounding would become noise."""
    network, signals = network_for(cache)
    flat = signals.channels.clone()
    flat[BANDIT.channels.index("rms")] = 0.7
    network.fit_scale(signals._replace(channels=flat), np.arange(len(cache.pairs)))
    assert (network.channel_std == 1).sum() == 1 and (network.clip_std == 1).sum() == 3


def test_greedy_decides_what_the_network_says(cache):
    """Through DQN.py's function too; frames that no action can change hold no change."""
    network, signals = network_for(cache)
    actions = greedy_actions(network, signals, BANDIT, fastest_batch(network, signals, BANDIT))
    assert torch.equal(actions, greedy(network, signals, BANDIT, np.arange(len(cache.pairs))))
    far = (signals.prob - signals.t_base).abs() > BANDIT.max_delta + 1e-6
    assert (actions[far] == BANDIT.no_change).all()
    clips = clips_of(signals, torch.tensor([2]))
    best = network(clips)[0].argmax(1)
    at = clips.frame[0]
    assert torch.equal(actions[at][~far[at]], best[~far[at]])
    assert len(greedy(network, signals, BANDIT, np.array([], np.int64))) == len(signals.prob)


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [rate_at(share) for share in np.linspace(0, 1, 101)]
    assert max(rates) == rates[30] == 1 and rates[0] < 0.05 and rates[-1] < 1e-6
    assert np.all(np.diff(rates[:31]) > 0) and np.all(np.diff(rates[30:]) < 0)


def test_it_learns(cache, cfg):
    """Nearly perfect on the pairs it has learned from; of one with a single frame prob is 0, which
    no threshold switches on."""
    dense = replace(SMALL, hidden=16, lr=1e-2, dropout=0.0)
    trainer = DenseTrainer(replace(cfg, passes=60, dense=dense, holdout=0.0), cache, CPU)
    while not trainer.done:
        trainer.tick()
    pairs = np.arange(len(cache.pairs))
    signals = trainer.signals
    actions = greedy(trainer.network, signals, trainer.bandit, pairs)
    pred = decide(signals.prob, thresholds(signals, actions, trainer.bandit)).numpy()
    before = mean_f1(cache, cache.signals["binary"] > 0.5, pairs)
    assert before < 0.88 and mean_f1(cache, pred, pairs) > 0.99 * 11 / 12


def test_it_learns_that_absent_classes_stay_off(all_pairs, cfg):
    dense = replace(SMALL, hidden=16, lr=1e-2, dropout=0.0, gate_share=0.0)
    trainer = DenseTrainer(replace(cfg, passes=60, dense=dense, holdout=0.0), all_pairs, CPU)
    while not trainer.done:
        trainer.tick()
    pairs, signals = np.arange(len(all_pairs.pairs)), trainer.signals
    actions = greedy(trainer.network, signals, trainer.bandit, pairs)
    pred = decide(signals.prob, thresholds(signals, actions, trainer.bandit)).numpy()
    assert mean_f1(all_pairs, pred, pairs[all_pairs.present]) > 0.97
    assert not pred[~all_pairs.present[all_pairs.frames_of_pair]].any()


@pytest.mark.parametrize("queries", ["present", "all"])
def test_the_same_seed_gives_the_same_numbers_and_resume_is_exact(cache, all_pairs, cfg, queries):
    """Stopped after every tick and taken up again by a new trainer."""
    cache = cache if queries == "present" else all_pairs
    whole = DenseTrainer(cfg, cache, CPU)
    while not whole.done:
        whole.tick()
    parts = DenseTrainer(cfg, cache, CPU)
    while not parts.done:
        parts.tick()
        kept = parts.state()
        torch.manual_seed(99)
        parts = DenseTrainer(cfg, cache, CPU)
        parts.restore(kept)
    assert digest(whole.state()) == digest(parts.state())
    other = DenseTrainer(replace(cfg, seed=1), cache, CPU)
    assert digest(other.state()) != digest(DenseTrainer(cfg, cache, CPU).state())


def test_the_script_trains_resumes_and_its_policy_is_read(cache, cfg, capsys):
    assert main(cfg) == 0
    text = capsys.readouterr().out
    assert "member(s)" in text and "held_out_f1_best" in text
    assert main(replace(cfg, resume=True)) == 0
    assert "complete" in capsys.readouterr().out
    policy = load_policy(cfg.run / "best.pt", CPU)
    assert policy.classes == tuple(cache.classes) and policy.network.window == 1 + 4 * 7
    assert read_checkpoint(cfg.run / "last.pt")["info"]["finished"] == 3 * (
        len(cache.pairs) - len(DenseTrainer(cfg, cache, CPU).held_out)
    )
    with pytest.raises(InputError, match="already holds a run"):
        main(cfg)


def test_several_processes_are_refused(cache, cfg):
    with pytest.raises(InputError, match="leave out torchrun"):
        DenseTrainer(cfg, cache, CPU, Ranks(0, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"learning": Learning(batch=64)},
        {"bandit": Bandit(reading="sequential")},
        {"method": "windowed"},
    ],
    ids=["learning", "reading", "dense"],
)
def test_flags_of_the_other_method_are_refused(cfg, change):
    with pytest.raises(ValueError, match="method"):
        replace(cfg, **change)
