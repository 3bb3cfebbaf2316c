"""The generic parts of a deep Q-learner, against slow versions and numbers by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from policy import qlearning
from policy.qlearning import DuelingHead, PrioritizedReplay, Replay, anneal, sync, td_target

CPU = torch.device("cpu")
COLUMNS = {"value": ((), torch.int64)}


def filled(capacity: int, priorities: list[float], **options) -> PrioritizedReplay:
    """A ring whose rows 0, 1, 2 ... have these priorities."""
    replay = PrioritizedReplay(capacity, COLUMNS, CPU, **options)
    replay.add(value=torch.arange(len(priorities)))
    replay.set_priority(np.arange(len(priorities)), np.array(priorities, dtype=float))
    return replay


# ---------------------------------------------------------------------------- prioritised replay


@given(
    priorities=st.lists(st.floats(1e-3, 100.0), min_size=1, max_size=40),
    spare=st.integers(0, 9),
    draws=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_draws_are_those_of_a_plain_cumulative_sum(priorities, spare, draws, seed):
    replay = filled(len(priorities) + spare, priorities)
    batch = replay.draw(draws, np.random.default_rng(seed), beta=0.4)
    mass = np.random.default_rng(seed).random(draws) + np.arange(draws)
    total = sum(priorities)
    edges = np.cumsum(priorities)
    # where a mass lies on an edge, rounding may go to either side
    low = np.searchsorted(edges, mass * total / draws - 1e-9 * total, "right")
    high = np.searchsorted(edges, mass * total / draws + 1e-9 * total, "right")
    high = np.minimum(high, len(priorities) - 1)
    assert ((low <= batch.index) & (batch.index <= high)).all()
    assert batch.rows["value"].tolist() == batch.index.tolist()


@given(st.lists(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=6), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_node_is_the_sum_of_its_children(rounds):
    replay = filled(7, [1.0] * 7)
    rng = np.random.default_rng(0)
    for errors in rounds:
        index = rng.integers(7, size=len(errors))
        replay.update(index, torch.tensor(errors))
    tree = replay.tree
    assert np.array_equal(tree[1 : replay.leaves], tree[2::2] + tree[3::2])
    assert tree[1] == pytest.approx(tree[replay.leaves :].sum())


def test_how_often_a_transition_comes_and_how_it_is_weighted():
    replay = filled(4, [1.0, 2.0, 5.0, 0.0])
    batch = replay.draw(8000, np.random.default_rng(0), beta=0.5)
    share = np.bincount(batch.index, minlength=4) / 8000
    assert share == pytest.approx([0.125, 0.25, 0.625, 0.0], abs=0.002)
    raw = (4 * np.array([0.125, 0.25, 0.625])) ** -0.5
    assert batch.weights.numpy() == pytest.approx((raw / raw[0])[batch.index], rel=1e-6)
    assert replay.draw(9, np.random.default_rng(0), beta=0.0).weights.tolist() == [1.0] * 9


def test_with_beta_1_the_weights_undo_the_preference():
    values = np.array([3.0, -1.0, 7.0, 10.0])
    replay = filled(4, [0.5, 3.0, 1.0, 2.0])
    batch = replay.draw(40_000, np.random.default_rng(1), beta=1.0)
    weights = batch.weights.numpy().astype(float)
    mean = (weights * values[batch.index]).sum() / weights.sum()
    assert mean == pytest.approx(values.mean(), abs=0.02)


def test_priority_is_the_error_to_the_power_alpha(monkeypatch):
    monkeypatch.setattr(qlearning, "FLOOR", 0.25)
    replay = filled(5, [1.0] * 5, alpha=0.5)
    replay.update(np.array([1, 3]), torch.tensor([-3.75, 0.0], requires_grad=True))
    assert replay.tree[replay.leaves :][:5].tolist() == [1.0, 2.0, 1.0, 0.5, 1.0]


def test_new_rows_get_the_largest_priority_and_push_out_old_ones(monkeypatch):
    monkeypatch.setattr(qlearning, "FLOOR", 0.0)
    replay = filled(3, [1.0, 1.0, 1.0], alpha=1.0)
    replay.update(np.array([0, 2]), torch.tensor([6.0, 0.0]))
    replay.add(value=torch.tensor([7]))  # over row 0
    replay.update(np.array([0]), torch.tensor([2.0]))
    replay.add(value=torch.tensor([8]))  # over row 1, with the largest so far, which was 6
    assert replay.tree[replay.leaves :][:3].tolist() == [2.0, 6.0, 0.0]
    batch = replay.draw(64, np.random.default_rng(0), beta=0.4)
    assert set(batch.rows["value"].tolist()) == {7, 8}


def test_a_prioritised_ring_still_samples_uniformly_like_any_ring():
    plain, other = Replay(6, COLUMNS, CPU), PrioritizedReplay(6, COLUMNS, CPU)
    for replay in (plain, other):
        replay.add(value=torch.arange(9))
    rows = [replay.sample(4, np.random.default_rng(3))["value"] for replay in (plain, other)]
    assert torch.equal(*rows)
    assert len(other) == 6


# ---------------------------------------------------------------------------- targets, networks


def test_td_target_plain_and_double():
    reward = torch.tensor([1.0, 2.0, 3.0])
    over = torch.tensor([False, False, True])
    rated = torch.tensor([[1.0, 4.0], [10.0, 0.0], [9.0, 9.0]])
    chosen = torch.tensor([[5.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    assert td_target(reward, over, rated, 0.5).tolist() == [3.0, 7.0, 3.0]
    assert td_target(reward, over, rated, 0.5, chosen).tolist() == [1.5, 2.0, 3.0]


@pytest.mark.parametrize("centre", ["mean", "max"])
def test_the_centre_of_the_advantages_is_zero(centre):
    torch.manual_seed(0)
    head, x = DuelingHead(5, 3, centre), torch.randn(7, 5)
    q = head(x)
    middle = q.mean(1) if centre == "mean" else q.amax(1)
    assert torch.allclose(middle, head.value(x)[:, 0], atol=1e-6)
    difference = head.advantage(x)
    assert torch.allclose(q[:, 0] - q[:, 2], difference[:, 0] - difference[:, 2], atol=1e-6)


def test_sync_copies():
    torch.manual_seed(0)
    online, target = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    online(torch.randn(8, 2))  # moves the running mean, a buffer
    sync(target, online)
    for name, value in online.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    assert target[0].weight.grad_fn is None


def test_anneal():
    assert [anneal(1.0, 0.5, share) for share in (0.0, 0.5, 1.0, 3.0)] == [1.0, 0.75, 0.5, 0.5]
