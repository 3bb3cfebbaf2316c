"""The policy over events: candidates, decoder, prices, out of fold, learning, resume, scripts."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_cache, write_policy
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from no_reads import NoCrossings, NoHostCopies, NoOpReads, on_meta

import detect
import evaluate
import visualize
from comparison import evaluations
from comparison.evaluations import load_evaluated
from comparison.systems import predicted_events
from config import PRETRAINED, DetectConfig, EvaluateConfig, Events, TrainConfig, VisualizeConfig
from core.errors import InputError
from core.stored import read_json
from DQN import main
from policy import event_policy
from policy.apply import decide_cache, load_policy
from policy.event_policy import (
    COLLAR,
    IOU,
    OVERLAP,
    TIGHT,
    VALUES,
    Boxes,
    EventTrainer,
    Prices,
    Truth,
    apply_values,
    as_arrays,
    best_iou,
    best_set,
    fixed_point,
    from_arrays,
    groups_of,
    ranks_of,
    values_against,
    worth,
)
from policy.posterior import (
    NO_ODDS,
    SCALE,
    STEP_S,
    Queried,
    asked_clips,
    highest_others,
    inputs,
    loss_of,
    rows_of,
    share_above,
    sum_of_others,
    true_events,
    with_targets,
)
from policy.runfolder import digest, read_checkpoint
from scores.score_files import write_scores
from sed.caches import load_cache
from sed.candidates import propose
from sed.labels import read_labels
from sed.metrics import mean_f1
from sed.timeline import Event, frame_centres, frame_edges, label_frames

CPU = torch.device("cpu")
SMALL = Events(hidden=8, layers=3, batch=4, box_batch=32, tag_limit=0.0)
LENGTHS = [120, 120, 90, 90, 160, 160, 104, 104, 132, 132, 142, 142, 98, 98, 118, 118]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Eight clips of two classes, one class absent from each of three clips."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("events") / "cache"
    write_cache(folder / "train", LENGTHS, seed=1, absent=(1, 4, 9))
    write_cache(folder / "validation", LENGTHS, seed=2, absent=(0, 7, 10))
    return load_cache(folder / "train")


@pytest.fixture
def cfg(cache, tmp_path):
    best = TrainConfig.with_preset("best")
    home = {"cache": cache.folder.parent, "run": tmp_path / "run", "device": "cpu"}
    return replace(best, **home, events=SMALL, passes=4)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """Run folder of a policy that learned from the small cache until it had learned enough."""
    run = tmp_path_factory.mktemp("runs") / "events"
    best = TrainConfig.with_preset("best")
    home = {"cache": cache.folder.parent, "run": run, "device": "cpu"}
    assert main(replace(best, **home, events=replace(SMALL, hidden=16), passes=60)) == 0
    return run


def test_a_cache_of_all_pairs_is_read_clip_by_clip(cache, cfg):
    """Learning and deciding ask for no array of all pairs; the result is that of resident ones."""
    found = []
    stored = load_cache(cache.folder)
    for some in (stored, replace(stored, signals=dict(cache.signals), label=cache.label.copy())):
        trainer = EventTrainer(replace(cfg, passes=2), some, CPU)
        while not trainer.done:
            trainer.tick()
        pred, boxes = event_policy.decide_cache(trainer.network, some, CPU)
        checkpoint = {"network": trainer.network.state_dict(), "seen": trainer.policy()["seen"]}
        found.append((digest(checkpoint), digest([torch.from_numpy(x) for x in (pred, *boxes)])))
        if some is stored:
            assert not stored.signals.kept and callable(vars(stored)["label"])
            assert not trainer.train_cache.signals.kept
    assert found[0] == found[1]


# ---------------------------------------------------------------------------- decisions


def test_the_best_set_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(0, 9))
        begin = rng.integers(0, 20, count)
        end = begin + rng.integers(1, 9, count)
        gain = rng.normal(0.3, 1, count).round(2)
        best = 0.0
        for size in range(count + 1):
            for some in itertools.combinations(range(count), size):
                spans = sorted((begin[i], end[i]) for i in some)
                if all(a[1] < b[0] for a, b in itertools.pairwise(spans)):
                    best = max(best, gain[list(some)].sum())
        found = best_set(begin, end, gain)
        assert gain[found].sum() == pytest.approx(best)
        assert (begin[found][1:] > end[found][:-1]).all()


def test_a_box_is_worth_what_it_changes_in_the_three_f1():
    """One box more in a class of many: the difference of the metrics, to first order."""
    tp, predicted, true = 3_000.0, 5_000.0, 6_000.0  # frames
    hits, found, events = 200.0, 350.0, 400.0

    def f1(tp: float, size: float) -> float:
        return 2 * tp / size

    prices = Prices(
        *(np.full(2, value) for value in (f1(tp, predicted + true), predicted + true)),
        *(np.full(2, f1(hits, found + events)) for _ in range(2)),
        np.full(2, found + events),
    )
    boxes = Boxes(*(np.array([value]) for value in (0, 10, 40, 18.0)), np.zeros((1, 1)))
    values = np.zeros((1, len(VALUES)), np.float32)
    values[0, COLLAR] = 1.0  # a hit by collars, none by overlap
    ours = worth(boxes, values, np.zeros(1, int), prices, Events())[0]
    frames = f1(tp + 18, predicted + true + 30) - f1(tp, predicted + true)
    collar = f1(hits + 1, found + events + 1) - f1(hits, found + events)
    overlap = f1(hits, found + events + 1) - f1(hits, found + events)
    assert ours == pytest.approx(1.5 * frames + collar + overlap, rel=0.01)  # half of it: micro-F1
    only = worth(
        boxes,
        values,
        np.zeros(1, int),
        prices,
        Events(micro_weight=0, collar_weight=0, overlap_weight=0),
    )
    assert only[0] == pytest.approx(frames, rel=0.01)
    # Another class is rare and bad: of all frames together it has its small part.
    size = np.array([predicted + true, 500.0, 1e9])  # the last one of no class
    both = prices._replace(frame_f1=np.array([f1(tp, size[0]), 0.1, 1.0]), frames=size)
    both = both._replace(
        **{name: np.full(3, 1e9) for name in ("collar_f1", "overlap_f1", "events")}
    )
    micro = f1(tp + 25 + 18, 11_500 + 30) - f1(tp + 25, 11_500)
    with_it, without = (
        worth(boxes, values, np.zeros(1, int), both, Events(micro_weight=weight))[0]
        for weight in (1, 0)
    )
    assert with_it - without == pytest.approx(2 * micro, rel=0.01)  # times the classes


def test_prices_of_boxes_that_are_known_are_those_of_their_best_set():
    """Of a true box and a wrong one in each of ten clips the true ones are taken: F1 is 1."""
    row = np.repeat(np.arange(10), 2)
    begin, end = np.tile([10, 50], 10), np.tile([30, 60], 10)
    true = np.tile([True, False], 10)
    boxes = Boxes(row, begin, end, np.where(true, 20.0, 0.0), np.zeros((20, 1)))
    values = np.repeat(true[:, None], len(VALUES), axis=1).astype(np.float32)
    given = Truth(values, boxes.soft), np.array([200.0]), np.array([10])
    prices = fixed_point(boxes, values, np.zeros(20, int), *given, Events())
    assert prices.frames[0] == 400 and prices.events[0] == 20
    for f1 in (prices.frame_f1, prices.collar_f1, prices.overlap_f1):
        assert f1[0] == pytest.approx(1 - 0.5 / 2**5)  # from 0.5 halfway to 1, five times
        assert f1[1] == f1[0]  # of a class that nobody knows: the mean


def test_a_class_that_never_sounds_in_training_is_priced_as_an_unknown_one():
    """Its boxes are all wrong; priced by themselves they would cost next to nothing."""
    row, right = np.arange(20), np.arange(20) < 10
    begin, end = np.full(20, 10), np.where(right, 30, 20)
    boxes = Boxes(row, begin, end, np.where(right, 20.0, 4.0), np.zeros((20, 1)))
    values = np.where(right, 0.9, 0.3)[:, None].repeat(len(VALUES), axis=1).astype(np.float32)
    truth = Truth(right[:, None].repeat(len(VALUES), axis=1), np.where(right, 20.0, 0.0))
    query = (~right).astype(int)
    true = np.array([200.0, 0.0]), np.array([10, 0])
    prices = fixed_point(boxes, values, query, truth, *true, Events())
    for each in prices:
        assert each[1] == each[2] == each[0]
    gain = worth(boxes, values, query, prices, Events())
    assert (gain[right] > 0).all() and (gain[~right] < 0).all()


def test_values_of_boxes_against_true_events():
    onset, offset = np.array([1.0, 6.0]), np.array([3.0, 7.0])
    begin, end = np.array([1.1, 1.0, 2.9, 6.25, 4.0]), np.array([3.3, 2.3, 4.9, 7.0, 5.0])
    found = values_against(begin, end, onset, offset)
    assert found[:, IOU] == pytest.approx([1.9 / 2.3, 0.65, 0.1 / 3.9, 0.75, 0])
    assert found[:, TIGHT].tolist() == [1, 0, 0, 1, 0]
    assert found[:, OVERLAP].tolist() == [1, 1, 0, 1, 0]
    assert found[:, COLLAR].tolist() == [1, 0, 0, 0, 0]  # 0.2 s, or a fifth of the event


def test_boxes_that_overlap_a_surer_box_rank_lower():
    boxes = Boxes(*np.array([[0, 0, 0, 1], [0, 5, 20, 0], [10, 15, 30, 10]]), None, None)
    rank = ranks_of(boxes, np.array([0.8, 0.6, 0.5, 0.3]))
    assert rank == pytest.approx([0.8, 0.3, 0.5, 0.3])  # half of the second lies in the first


def test_the_best_frames_by_expected_iou_are_those_of_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(7)

        def expected(on: np.ndarray, p: np.ndarray = p) -> float:
            return p[on].sum() / (on.sum() + p[~on].sum())

        sets = [np.array(bits) for bits in itertools.product([False, True], repeat=7)]
        assert expected(best_iou(p)) == pytest.approx(max(expected(on) for on in sets))


# ---------------------------------------------------------------------------- what is seen


def test_candidates_hold_the_events_of_a_clean_posterior():
    on = np.zeros(200)
    on[20:60] = on[100:130] = 0.9
    begin, end, ways = propose(on, np.zeros(200), np.zeros(200), 0.02)
    found = set(zip(begin.tolist(), end.tolist(), strict=True))
    assert {(20, 60), (100, 130)} <= found and len(found) == len(begin)
    assert ways[begin == 20].max() > 5  # many ways find what is clear
    assert (begin >= 0).all() and (end > begin).all() and (end <= 200).all()
    assert len(propose(np.zeros(200), np.zeros(200), np.zeros(200), 0.02)[0]) == 0
    edges = np.zeros((2, 200))  # an onset in the midst of what sounds: a box begins there
    edges[0, 40] = edges[1, 59] = 0.8
    begin, end, _ = propose(on, *edges, 0.02)
    assert (40, 60) in set(zip(begin.tolist(), end.tolist(), strict=True))
    for frame_s, gap in ((0.02, 8), (0.064, 2)):  # the longest that is closed, about 0.15 s
        for more in (0, 1):
            two, second = np.zeros(200), 80 + gap + more
            two[50:80] = two[second : second + 30] = 0.9
            begin, end, _ = propose(two, np.zeros(200), np.zeros(200), frame_s)
            assert ((begin == 50) & (end == second + 30)).any() == (more == 0)


def test_what_a_query_is_told_of_the_others():
    x = np.array([2.0, -1.0, 0.5, 2.0])
    assert sum_of_others(x[:, None])[1, 0] == pytest.approx(np.log(2 * np.exp(2.0) + np.exp(0.5)))
    assert highest_others(x).tolist()[0] == [2.0, 2.0, 2.0, 2.0]
    assert highest_others(x).tolist()[1] == [0.5, 2.0, 2.0, 0.5]
    assert sorted(share_above(x).tolist()) == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_channels_of_a_frame_by_hand():
    """Frames of 40 ms are steps; a query of two, the loudness rising."""
    scores, count = np.array([[0.2] * 20, [0.8] * 20]), 20
    clip = Queried(scores, np.arange(count) / 20, np.array([0.2, 0.9]), STEP_S, False)
    (channels,), (statistics,) = inputs(clip, np.array([1]))
    own = np.log(4) / SCALE
    middle = [own, own, -own, -own, 0.0, 0.5, 4 / 20]  # log odds of 0.2 are those of 0.8, negative
    assert channels[10] == pytest.approx(middle, abs=1e-6)
    assert channels[0, -1] == channels[-1, -1] == 0  # no slope where one side is outside
    tag, other = np.log(9) / SCALE, NO_ODDS / SCALE
    loud = clip.loudness.mean(), clip.loudness.std()
    known = [tag, -own, other, 0.0, *[own] * 6, 0.0, *loud, 0.0]
    assert statistics == pytest.approx(known, abs=1e-6)


def test_the_loss_counts_onsets_and_offsets_half_and_no_step_outside():
    rng = np.random.default_rng(0)
    found, target = rng.normal(size=(2, 3, 5, 3)), rng.random((2, 3, 5, 3))
    inside = np.arange(5) < np.array([5, 2, 3])[:, None]
    inside = np.stack([inside, inside[::-1]])
    error = np.logaddexp(0, found) - target * found
    whole = [(error[m] @ [1, 0.5, 0.5])[inside[m]].mean() for m in range(2)]
    given = (torch.from_numpy(each) for each in (found, target, inside))
    assert loss_of(*given).tolist() == pytest.approx(whole, rel=1e-5)


def test_a_stored_policy_decides_as_it_always_did(tmp_path):
    """Channels, candidates, features, values, prices: who changes one changes every policy."""
    write_cache(tmp_path / "validation", [250] * 4, seed=3, absent=(1,))
    policy = load_policy(PRETRAINED, CPU)
    boxes = decide_cache(policy, load_cache(tmp_path / "validation"), CPU).boxes
    on = np.flatnonzero(boxes.chosen)
    spans = np.stack(boxes[:3], axis=1)[on].tolist()
    assert spans == [[0, 120, 213], [1, 0, 250], [2, 0, 250], [3, 3, 68], [3, 112, 198]]
    values = [[0.555, 0.394, 0.641, 0.165], [0.668, 0.634, 0.757, 0.586]]
    assert np.abs(boxes.values[on[[0, 3]]] - values).max() < 1e-3
    assert boxes.worth[on] * 1000 == pytest.approx([3.85, 3.07, 1.38, 5.72, 2.05], abs=0.02)
    assert boxes.rank[on] == pytest.approx([0.475, 0.411, 0, 0.651, 0], abs=1e-3)


def test_onsets_are_learned_where_they_are_with_overlapping_windows(tmp_path):
    write_cache(tmp_path / "train", LENGTHS[:6], frame_s=0.04, start_s=0.06, absent=(1,))
    cache = load_cache(tmp_path / "train")
    rows = with_targets(
        rows_of(asked_clips(cache, 0.0), np.zeros(len(cache.pairs), int)), cache, true_events(cache)
    )
    true = {(clip.filename, e.event_label): e for clip in cache.clips for e in clip.events}
    for row, index in enumerate(rows.pair):
        pair, target = cache.pairs[index], rows.target[rows.offsets[row] : rows.offsets[row + 1]]
        event, centres = true.get((pair.filename, pair.event_label)), frame_centres(pair.edges)
        for k, end in enumerate(event[:2] if event else ()):
            if 0 < end < pair.edges[-1]:
                assert abs(centres[target[:, k + 1].argmax()] - end) <= 0.021


def test_groups_are_bank_folds_where_they_are_known(cache):
    names = [clip.filename for clip in cache.clips]
    dealt = groups_of(cache, 4, 0)
    assert sorted(dealt.values()) == [0, 0, 1, 1, 2, 2, 3, 3] and set(dealt) == set(names)
    known = {name: "ab"[i % 2] for i, name in enumerate(names)}
    folds = replace(cache, manifest=cache.manifest | {"groups": known})
    assert groups_of(folds, 4, 0) == {name: i % 2 for i, name in enumerate(names)}
    with pytest.raises(InputError, match="needs two"):
        groups_of(cache.subset(names[:1]), 4, 0)


def test_boxes_are_made_by_networks_that_never_saw_their_clip(cache, cfg):
    """The labels of a group change: the boxes of its own clips do not, those of others do."""
    group = groups_of(cache, SMALL.folds, cfg.seed)
    mine = {name for name, k in group.items() if k == 0}
    label = cache.label.copy()
    for index, pair in enumerate(cache.pairs):
        if pair.filename in mine and cache.present[index]:
            label[cache.offsets[index] : cache.offsets[index + 1]] ^= True
    found = []
    for some in (cache, replace(cache, label=label)):
        trainer = EventTrainer(cfg, some, CPU)
        while trainer.boxes is None:
            trainer.tick()
        own = trainer.group[trainer.boxes.row] == 0
        found.append((trainer.boxes.soft[own], trainer.boxes.soft[~own]))
    assert np.array_equal(found[0][0], found[1][0]) and len(found[0][0])
    assert not np.array_equal(found[0][1], found[1][1])
    of_box, count = trainer.group[trainer.boxes.row], len(trainer.left_out)
    for shown, groups in ((trainer.rows_shown, trainer.group), (trainer.boxes_shown, of_box)):
        for k, some in zip(trainer.left_out, shown.flatten(1).numpy(), strict=True):
            assert set(groups[some]) == set(range(count)) - {k}
    query, out = trainer.rows.query[trainer.boxes.row], trainer.out_of_fold()
    for k in range(count):
        given = trainer.boxes.features, query, CPU, slice(k, k + 1)
        apart = apply_values(trainer.network.values, *given)[of_box == k]
        assert np.abs(out[of_box == k] - apart).max() < 1e-6


# ---------------------------------------------------------------------------- learning


def test_it_learns(cache, trained):
    """Half as many wrong frames as the base threshold at the most, on clips never seen too."""
    policy = load_policy(trained / "best.pt", CPU)
    for split in ("train", "validation"):
        some = load_cache(cache.folder.parent / split)
        found = decide_cache(policy, some, CPU)
        ours, base = ((on != some.label).sum() for on in (found.pred, some.signals["binary"] > 0.5))
        assert ours < base / 2
        boxes = found.boxes
        on = np.zeros(len(some.label), bool)
        for pair, begin, end in zip(
            *(x[boxes.chosen] for x in (boxes.pair, boxes.begin, boxes.end)), strict=True
        ):
            on[some.offsets[pair] + begin : some.offsets[pair] + end] = True
        assert (on == found.pred).all()


def test_of_known_actions_the_best_is_learned(cache, cfg):
    """Boxes whose first feature says what they are: good ones are valued, others are not."""
    trainer = EventTrainer(replace(cfg, passes=40), cache, CPU)
    trainer.make_boxes()
    good = np.arange(len(trainer.boxes.row)) % 2 == 0
    features, query, true = trainer.box_tensors
    features[:, 0] = torch.from_numpy(good).float()
    true[:] = torch.from_numpy(good).float()[:, None]
    for step in range(trainer.box_steps):
        trainer.box_step(step)
    with torch.inference_mode():
        count = len(trainer.left_out)
        given = features.expand(count, -1, -1), query.expand(count, -1)
        value = trainer.network.values.eval()(*given).sigmoid().mean(0).numpy()
    assert ((value > 0.5) == good[:, None]).mean() > 0.99


def test_steps_read_nothing_back(cache, cfg):
    """Where a GPU would have to be waited for: not in steps, nor where boxes are brought to it."""
    trainer = EventTrainer(cfg, cache, CPU)
    with NoOpReads():
        cells = [trainer.frame_step(step) for step in range(2)]
    trainer.make_boxes()  # of log odds that the host must see
    with NoOpReads():
        trainer.show_boxes()
        cells += [trainer.box_step(step) for step in range(2)]
    events, members = cfg.events, len(trainer.left_out)
    assert [each.dtype for each in cells] == [torch.int64] * 4
    assert int(cells[0].sum()) > members * events.batch  # steps of 40 ms of each query
    assert int(cells[3].sum()) == members * events.box_batch
    trainer = on_meta(trainer)
    with NoHostCopies(), NoCrossings():
        cells = [trainer.frame_step(2), trainer.box_step(2)]
    assert [each.device.type for each in cells] == ["meta"] * 2


def test_cells_are_counted_where_something_is():
    before, after, inside = torch.from_numpy(np.random.default_rng(0).random((3, 4, 5, 6)) > 0.4)
    found = EventTrainer.cells(before, after, inside).tolist()
    cells = 2 * before[inside].long() + after[inside].long()
    assert found == torch.bincount(cells, minlength=4).tolist() and min(found) > 0


def test_the_same_seed_gives_the_same_numbers_and_resume_is_exact(cache, cfg):
    """Stopped after every tick and taken up again by a new trainer."""
    whole = EventTrainer(cfg, cache, CPU)
    while not whole.done:
        whole.tick()
    parts = EventTrainer(cfg, cache, CPU)
    while not parts.done:
        parts.tick()
        kept = parts.state()
        torch.manual_seed(99)
        parts = EventTrainer(cfg, cache, CPU)
        parts.restore(kept)
    assert digest(whole.state()) == digest(parts.state())
    assert whole.network.prices.all()
    other = EventTrainer(replace(cfg, seed=1), cache, CPU)
    assert digest(other.state()) != digest(EventTrainer(cfg, cache, CPU).state())


def test_prices_are_of_queries_that_are_not_known_to_sound(cache, cfg):
    trainer = EventTrainer(cfg, cache, CPU)
    while not trainer.done:
        trainer.tick()
    known = trainer.rows.present[trainer.boxes.row]
    prices = trainer.network.prices.clone()
    for some, same in ((known, True), (~known, False)):
        trainer.truth.values[some] = trainer.truth.frames[some] = 0  # no box of them is right
        trainer.find_prices()
        assert torch.equal(trainer.network.prices, prices) == same


def test_held_out_f1_is_of_present_pairs_among_all_queries(cache, cfg):
    trainer = EventTrainer(replace(cfg, holdout=0.4, passes=20), cache, CPU)
    assert trainer.held_out_f1() == -1
    while not trainer.done:
        trainer.tick()
    held = trainer.held_out
    assert len(held) and cache.present[held].all()
    pred, _ = event_policy.decide_cache(trainer.network, cache, CPU)
    found = trainer.held_out_f1()
    assert found == pytest.approx(mean_f1(cache, pred, held))
    alone, _ = event_policy.decide_cache(trainer.network, cache.present_only(), CPU)
    pred[cache.of_frames(cache.present)] = alone
    assert found != pytest.approx(mean_f1(cache, pred, held)) and 0 < found != 0.5


def test_little_data_gets_as_many_steps_as_it_needs(cache, cfg):
    trainer = EventTrainer(replace(cfg, passes=None), cache, CPU)
    assert trainer.FLOOR <= len(trainer.order) == trainer.gradient_steps(trainer.cfg.passes)
    assert trainer.gradient_steps(trainer.cfg.passes - 1) < trainer.FLOOR


def test_the_script_trains_and_resumes_and_unfinished_policies_decide_nothing(
    cache, cfg, capsys, monkeypatch
):
    ticks = itertools.count()
    tick = EventTrainer.tick

    def stopping(self):
        if next(ticks) == 2:
            raise KeyboardInterrupt
        return tick(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EventTrainer, "tick", stopping)
        main(cfg)
    with pytest.raises(InputError, match="training has not ended"):
        load_policy(cfg.run / "last.pt", CPU)
    with pytest.raises(InputError, match="passes"):
        main(replace(cfg, resume=True, passes=9))
    assert main(replace(cfg, resume=True)) == 0
    assert "networks of frames" in capsys.readouterr().out
    policy = load_policy(cfg.run / "best.pt", CPU)
    assert policy.classes == tuple(cache.classes) and policy.over_events
    whole = EventTrainer(cfg, cache, CPU)
    while not whole.done:
        whole.tick()
    weights = read_checkpoint(cfg.run / "last.pt")["network"]
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_learning_without_an_absent_class_is_said_in_training_and_in_use(
    cache, cfg, tmp_path, capsys
):
    said = "no clip without Dog, Speech: nothing teaches a policy or its tag gate when to be silent"
    write_cache(tmp_path / "present" / "train", LENGTHS, seed=1)
    assert main(replace(cfg, cache=tmp_path / "present")) == 0
    assert f"note: {tmp_path / 'present' / 'train'}: {said}\n" in capsys.readouterr().out
    where = {"run": cfg.run, "cache": cache.folder.parent, "device": "cpu", "workers": 1}
    evaluate.main(EvaluateConfig(**where))
    assert f"best.pt was trained on {said}\n" in capsys.readouterr().out
    assert main(replace(cfg, overwrite=True)) == 0  # one class was absent from three clips
    assert "no clip without" not in capsys.readouterr().out


# ---------------------------------------------------------------------------- the scripts


def test_it_is_evaluated_on_all_and_on_present_pairs(cache, trained, tmp_path, capsys):
    home = {"cache": cache.folder.parent, "run": trained, "device": "cpu"}
    evaluate.main(EvaluateConfig(**home, out=tmp_path / "one", batch=64))
    assert "note: --batch does nothing for a policy over events\n" in capsys.readouterr().out
    results = read_json(tmp_path / "one" / "results.json", "")
    assert "DQN" not in results["all_pairs"]
    assert results["all_pairs"]["policy"]["behind"] == [0, 0, 0]
    some = load_cache(cache.folder.parent / "validation")
    found = decide_cache(load_policy(trained / "best.pt", CPU), some, CPU)
    assert results["after"]["f1"] == pytest.approx(
        mean_f1(some, found.pred, some.present.nonzero()[0])
    )
    events = read_labels(tmp_path / "one" / "events.tsv")
    expected = predicted_events(some, found.pred)
    assert {k: len(v) for k, v in events.items()} == {k: len(v) for k, v in expected.items()}
    data = load_evaluated(VisualizeConfig(run=tmp_path / "one", cache=cache.folder.parent))
    assert data.t_adj is None and sum(map(len, data.boxes.values())) == len(found.boxes.pair)
    one = data.boxes[int(found.boxes.pair[0])][0]
    assert set(one["values"]) == {*VALUES, "worth"} and 0 <= one["confidence"] <= 1


def test_it_is_compared_with_rules_and_its_boxes_are_ranked(cache, trained, tmp_path):
    cfg = EvaluateConfig(
        cache=cache.folder.parent,
        out=tmp_path / "table",
        compare=(f"Events={trained}", "rules"),
        device="cpu",
        workers=1,
    )
    evaluate.main(cfg)
    rows = {
        row["name"]: row for row in read_json(tmp_path / "table" / "results.json", "")["entrants"]
    }
    ours = rows["Events"]["mean"]
    assert not any(name.startswith("Events,") for name in rows)  # it needs no tag gate
    assert 0 < ours["psds1"] <= ours["psds2"] <= 1
    assert ours["macro_f1"] > rows["T_base"]["mean"]["macro_f1"]
    again = evaluate.main(replace(cfg, out=tmp_path / "again"))  # by the stored decisions
    rows = {
        row["name"]: row for row in read_json(tmp_path / "again" / "results.json", "")["entrants"]
    }
    assert again is None and rows["Events"]["mean"] == ours


def test_stored_boxes_are_checked(cache, trained):
    some = load_cache(cache.folder.parent / "validation")
    boxes = decide_cache(load_policy(trained / "best.pt", CPU), some, CPU).boxes
    own = Boxes(boxes.pair, boxes.begin, boxes.end, None, None)
    assert np.array_equal(boxes.rank, ranks_of(own, boxes.confidence))
    assert (boxes.rank < boxes.confidence).any()
    arrays = as_arrays(boxes)
    assert all(map(np.array_equal, from_arrays(arrays, some), boxes))
    for name, value in (("pair", len(some.pairs)), ("end", 10_000), ("confidence", np.nan)):
        wrong = {k: v.copy() for k, v in arrays.items()}
        wrong[f"box_{name}"][0] = value
        with pytest.raises(ValueError, match="boxes"):
            from_arrays(wrong, some)
    with pytest.raises(ValueError, match="numbers"):
        from_arrays(arrays | {"box_rank": boxes.rank[1:]}, some)


def scores_of(cache, folder):
    """Scores of a cache's clips as files; returns the clips' values (K, T)."""
    found = {}
    for clip in cache.clips:
        rows = [cache.find(clip.filename, name) for name in cache.classes]
        values = np.stack([cache.of_pair(i)["d_raw"] for i in rows])
        found[clip.filename] = values
        edges = cache.pairs[rows[0]].edges
        write_scores(folder / f"{clip.filename[:-4]}.tsv", edges, cache.classes, values)
    return found


def test_detect_finds_the_events_of_evaluate_with_their_confidences(
    cache, trained, tmp_path, capsys
):
    """Without audio: caches of scores alone, a policy trained on them."""
    folder = tmp_path / "scores"
    folder.mkdir()
    some = load_cache(cache.folder.parent / "validation")
    values = scores_of(some, folder)
    silent = replace(some, signals=some.signals | {"rms": np.ones_like(some.signals["rms"])})
    policy = load_policy(trained / "best.pt", CPU)
    expected = predicted_events(silent, decide_cache(policy, silent, CPU).pred)
    assert sum(map(len, expected.values())) > 5
    total, sure = 0, []
    for name, rows in values.items():
        edges = frame_edges(rows.shape[1], 0.02)
        events = detect.detect(rows, edges, some.classes, policy, device="cpu")
        assert [Event(*event[:3]) for event in events] == expected[name]
        sure += [event.confidence for event in events]
        total += len(events)
    assert all(0 < each <= 1 for each in sure)
    out = {"policy": trained / "best.pt", "scores": folder, "device": "cpu"}
    assert detect.main(DetectConfig(**out, out=tmp_path / "all.tsv")) == 0
    lines = (tmp_path / "all.tsv").read_text().splitlines()
    assert lines[0].split("\t")[-1] == "confidence"
    assert sorted(float(x.split("\t")[4]) for x in lines[1:] if x.split("\t")[4]) == pytest.approx(
        sorted(sure), abs=1e-4
    )
    assert sum(map(len, read_labels(tmp_path / "all.tsv").values())) == total
    least = float(np.mean(sorted(sure)[len(sure) // 2 - 1 : len(sure) // 2 + 1]))
    capsys.readouterr()
    detect.main(DetectConfig(**out, out=tmp_path / "sure.tsv", min_confidence=least, batch=64))
    assert "note: --batch does nothing for a policy over events\n" in capsys.readouterr().out
    kept = sum(map(len, read_labels(tmp_path / "sure.tsv").values()))
    assert kept == sum(each >= least for each in sure) < total


def test_a_sound_over_the_seam_of_two_blocks_is_one_event(cache, trained):
    count = 400
    edges = frame_edges(count, 0.02)
    label = label_frames([Event(2.6, 5.1, "Dog")], "Dog", edges)
    rng = np.random.default_rng(3)
    values = np.stack([0.1 + 0.8 * label, np.full(count, 0.05)]).astype(np.float32)
    values += rng.uniform(0, 0.02, values.shape).astype(np.float32)
    policy = load_policy(trained / "best.pt", CPU)
    found = [
        detect.detect(values, edges, cache.classes, policy, block_s=s, device="cpu")
        for s in (8.0, 3.0)
    ]
    for events in found:
        dogs = [event for event in events if event.event_label == "Dog"]
        assert len(dogs) == 1
        assert dogs[0].onset == pytest.approx(2.6, abs=0.1)
        assert dogs[0].offset == pytest.approx(5.1, abs=0.1)


def test_frame_policies_are_sure_of_no_event(cache, tmp_path):
    path = write_policy(tmp_path / "frames", cache.folder)
    values, edges = np.full((2, 50), 0.2, np.float32), frame_edges(50, 0.02)
    with pytest.raises(InputError, match="min-confidence"):
        detect.detect(values, edges, cache.classes, path, min_confidence=0.5, device="cpu")


def test_clips_below_the_tag_limit_are_not_asked_for(cache, trained):
    policy = load_policy(trained / "best.pt", CPU)
    some = load_cache(cache.folder.parent / "validation")
    quiet = [clip._replace(tag=[0.0] * len(clip.tag)) for clip in some.clips]
    found = decide_cache(policy, replace(some, clips=quiet), CPU)
    assert not found.pred.any() and len(found.boxes.pair) == 0


def test_its_figures_are_those_of_events(cache, trained, tmp_path):
    """Candidates in place of thresholds, losses in place of rewards; those emitted are drawn so."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    home = {"cache": cache.folder.parent, "run": out}
    evaluate.main(EvaluateConfig(**home, device="cpu"))
    data = load_evaluated(VisualizeConfig(**home))
    explained = (Path(visualize.__file__).parent / "docs" / "files.md").read_text()
    assert not [key for key in data.results if f"`{key}`" not in explained]
    curve = data.results["curve"]
    chosen = [box for boxes in data.boxes.values() for box in boxes if box["chosen"]]
    assert curve["confidence"][0] == 0 and len(chosen) > 0
    assert curve["recall"] == sorted(curve["recall"], reverse=True)  # fewer events, fewer found
    drawn = dict(visualize.figures(VisualizeConfig(**home, dpi=30)))
    assert {"loss.png", "signals.png"} <= drawn.keys() and "avg10.png" not in drawn
    assert data.results["verdict"].startswith("policy (macro-F1 ")  # it is no DQN
    figures = [each for each in drawn.values() if not isinstance(each, str)]
    said = [text.get_text() for each in figures for text in each.findobj(Text)]
    assert not [text for text in said if "DQN" in text]
    assert {"Before policy", "After policy", "Policy decision"} <= set(said)
    index = max(data.boxes, key=lambda i: sum(box["chosen"] for box in data.boxes[i]))
    figure = visualize.draw_boxes(evaluations.view_of(data, index), data.boxes[index], "")
    edges = [tuple(bar.get_edgecolor()) for bar in figure.axes[1].patches]
    emitted = sum(box["chosen"] for box in data.boxes[index])
    assert sum(edge == (*to_rgb(visualize.COLOURS["constant"]), 1.0) for edge in edges) == emitted


def test_candidates_share_no_lane_where_they_overlap():
    rng = np.random.default_rng(0)
    onset = rng.uniform(0, 9, 40)
    boxes = [
        {"onset": a, "offset": a + rng.uniform(0.1, 3), "confidence": rng.uniform()} for a in onset
    ]
    lanes = visualize.in_lanes(boxes)
    assert lanes[max(range(40), key=lambda i: boxes[i]["confidence"])] == 0
    for i, j in itertools.combinations(range(40), 2):
        apart = boxes[i]["offset"] <= boxes[j]["onset"] or boxes[j]["offset"] <= boxes[i]["onset"]
        assert apart or lanes[i] != lanes[j]
