"""One table of many systems: statistics against slow versions, verdicts, files, all pairs."""

import csv
import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache, write_policy
from reference import slow_mean
from scipy.ndimage import median_filter

import evaluate
import preprocess
import visualize
from baselines import tuned_rules
from comparison import evaluations, scoring, systems
from comparison.scoring import (
    Resampler,
    base_for,
    difference,
    headline,
    interval,
    latex,
    markdown,
    measure,
    raw_psds,
    slugs,
    system_ends,
    word,
)
from comparison.systems import BASE, GATED, Member, System
from config import Bandit, EvaluateConfig, Learning, TrainConfig, VisualizeConfig
from core.errors import InputError
from core.files import contents
from core.names import isolated
from core.stored import file_sha256
from figures import table_figures
from policy import gate, runfolder
from policy.apply import decisions
from policy.bandit import to_device
from policy.supervised import SupervisedTrainer
from sed import caches, event_metrics
from sed.caches import load_cache
from sed.labels import read_labels
from sed.metrics import count_pairs
from sed.timeline import Event, label_frames, write_labels

CPU = torch.device("cpu")
LABELS = ("Dog", "Speech", "Cat")
LENGTHS = [n for n in (50, 41, 64, 33, 47) for _ in LABELS]
ABSENT = (1, 3, 8, 9, 10)
QUERIES = ("present", "all")


def write_present(source, target):
    """The present pairs of a cache of all pairs as `--pairs present` would have cached them."""
    cache = load_cache(source)
    target.mkdir(parents=True)
    chosen = np.flatnonzero(cache.present)
    parts = [cache.of_pair(index) for index in chosen]
    truths = [part.pop("label") for part in parts]
    caches.write_shard(target / "shard-00000.npz", parts, truths)
    manifest = json.loads((source / "manifest.json").read_text())
    (entry,) = manifest["shards"]
    entry["pairs"] = [entry["pairs"][index] for index in chosen]
    entry["sha256"] = file_sha256(target / "shard-00000.npz")
    manifest |= {"queries": "present", "key": manifest["key"] + "-present"}
    preprocess.write_json(target / "manifest.json", manifest)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """cache/{all,present}/{train,validation} of the same clips, and a policy of two seeds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("comparison")
    for split, seed in (("train", 1), ("validation", 2)):
        write_cache(folder / "all" / split, LENGTHS, seed, labels=LABELS, absent=ABSENT)
        write_present(folder / "all" / split, folder / "present" / split)
    for seed in (0, 1):
        write_policy(folder / "runs" / f"dqn-{seed}", folder / "present" / "train", seed)
    return folder


@pytest.fixture(scope="module", params=QUERIES)
def cache(request, home):
    return load_cache(home / request.param / "validation")


def some_decisions(cache, seed, share=0.2):
    """The truth with a share of the frames turned over, in blocks."""
    rng = np.random.default_rng(seed)
    wrong = np.repeat(rng.random(len(cache.label) // 5 + 1) < share, 5)[: len(cache.label)]
    return cache.label ^ wrong


def row(name, kind, *preds, **more):
    members = [Member(f"{name} {i}", pred, 0.0) for i, pred in enumerate(preds)]
    return System(name, kind, "", members, **more)


def base_row(cache):
    return row(BASE, "base", cache.signals["binary"] > 0.5)


# ---------------------------------------------------------------------------- statistics


def slow_headline(cache, pred, clips):
    """Headline metrics of some clips, named as often as they were drawn, frame by frame."""
    own = {}
    for index, pair in enumerate(cache.pairs):
        own.setdefault(pair.filename, []).append(index)
    chosen = [index for clip in clips for index in own[clip]]
    cells = {}  # by class: tp, fp, fn
    per_pair, absent, alarms = [], 0, 0
    for index in chosen:
        tp = fp = fn = tn = 0
        for i in range(cache.offsets[index], cache.offsets[index + 1]):
            p, y = bool(pred[i]), bool(cache.label[i])
            tp, fp, fn, tn = tp + (p and y), fp + (p > y), fn + (p < y), tn + (not p and not y)
        total = tp + fp + fn
        per_pair.append(
            [(tp + tn) / (total + tn), tp / total if total else 1, tp / (tp + (fp + fn) / 2)]
            if total
            else [1, 1, 1]
        )
        sums = cells.setdefault(cache.pairs[index].event_label, [0, 0, 0])
        sums[0], sums[1], sums[2] = sums[0] + tp, sums[1] + fp, sums[2] + fn
        clip = next(c for c in cache.clips if c.filename == cache.pairs[index].filename)
        if cache.pairs[index].event_label not in {e.event_label for e in clip.events}:
            absent, alarms = absent + 1, alarms + (fp > 0)
    if cache.queries == "present":
        return [sum(column) / len(per_pair) for column in zip(*per_pair, strict=True)]
    f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in cells.values() if tp + fp + fn]
    tp, fp, fn = (sum(column) for column in zip(*cells.values(), strict=True))
    micro = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
    return [sum(f1) / len(f1) if f1 else 1.0, micro, alarms / absent if absent else 0.0]


def clips_in_order(cache):
    return sorted({pair.filename for pair in cache.pairs})


def test_headline_against_a_slow_loop(cache):
    heard = cache.of_frames(np.cumsum(~cache.present) == 1)  # the first absent pair, and beyond
    some = (some_decisions(cache, 0), cache.label, ~cache.label, cache.label & False)
    for pred in (*some, heard & ~cache.of_frames(cache.present)):
        counts = count_pairs(pred, cache.label, cache.offsets)
        found = headline(counts, cache)
        assert list(found) == list(scoring.HEADLINE[cache.queries])
        assert list(found.values()) == pytest.approx(
            slow_headline(cache, pred, clips_in_order(cache))
        )


def test_draws_against_concatenated_clips(cache):
    """Also where a class, every absent pair or every frame that is on is not drawn."""
    sampler, names = Resampler(cache), clips_in_order(cache)
    dog = np.array([pair.event_label == "Dog" for pair in cache.pairs])[cache.frames_of_pair]
    for pred in (some_decisions(cache, 0), cache.signals["binary"] > 0.5, cache.label & dog):
        found = sampler.draws(count_pairs(pred, cache.label, cache.offsets))
        assert found.shape == (1000, 3) and np.isfinite(found).all()
        for k in range(0, 1000, 40):
            drawn = [
                n
                for n, times in zip(names, sampler.weights[k], strict=True)
                for _ in range(int(times))
            ]
            assert len(drawn) == len(names)
            assert found[k] == pytest.approx(slow_headline(cache, pred, drawn))


def test_no_true_and_no_false_frame(home):
    cache = load_cache(home / "all" / "validation")
    silent = replace(cache, label=cache.label & False)
    counts = count_pairs(silent.label, silent.label, silent.offsets)
    expected = {"macro_f1": 1.0, "micro_f1": 1.0, "false_alarms": 0.0}
    assert headline(counts, silent) == expected
    assert (Resampler(silent).draws(counts) == list(expected.values())).all()


def test_the_interval_is_that_of_the_single_evaluation(home):
    """Draw for draw: the two tables of one policy cannot disagree."""
    cache = load_cache(home / "present" / "validation")
    sampler, found, scores = Resampler(cache), [], []
    for pred in (some_decisions(cache, 0), cache.signals["binary"] > 0.5):
        counts = count_pairs(pred, cache.label, cache.offsets)
        found.append((headline(counts, cache), sampler.draws(counts)))
        scores.append(scoring.scores_of(counts))
    table = difference(scoring.HEADLINE["present"], *found)
    for name, ends in evaluations.gain_interval(cache, *scores).items():
        gain, low, high = table[name]
        assert [low, high] == pytest.approx(ends, abs=1e-12)
        assert low < gain < high


def slow_event_draws(cache, pred, weights) -> dict[str, list[float]]:
    """Macro F1 of events over clips drawn again and again, clip by clip, class by class."""
    events = systems.predicted_events(cache, pred)
    names = sorted({pair.filename for pair in cache.pairs})
    found = {"event_f1": [], "intersection_f1": []}
    one_clip = {}
    for name in names:
        given = ({name: events[name]}, {name: cache.truth[name]}, {name: cache.durations[name]})
        counts = event_metrics.event_counts(*given, cache.classes)
        for metric in found:
            cells = [cell.toarray()[0] for cell in counts[metric]]
            one_clip[name, metric] = np.array(cells)  # tp, fp, fn; K
    for draw in weights:
        for metric, values in found.items():
            parts = [times * one_clip[n, metric] for n, times in zip(names, draw, strict=True)]
            tp, fp, fn = np.sum(parts, axis=0, dtype=float)
            f1 = [2 * a / (2 * a + b + c) for a, b, c in zip(tp, fp, fn, strict=True) if a + b + c]
            values.append(float(np.mean(f1)) if f1 else 1.0)
    return found


def test_differences_are_paired(cache, tmp_path, monkeypatch):
    """Equal decisions: no difference in any draw, whatever the clips. Seeds: the mean of each."""
    cache = replace(cache, clips=cache.clips[::-1])  # not in the order of their names
    one, two = some_decisions(cache, 0), some_decisions(cache, 1, 0.4)
    rows = [base_row(cache), row("A", "policy", one, two), row("B", "rule", two, one)]
    rows += [row("C", "rule", one), row("D", "rule", two)]
    results = measure(rows, cache, 1)
    table = {each["name"]: each for each in results["entrants"]}
    assert results["best_opponent"] == "C"
    assert table["A"]["interval"] == table["B"]["interval"]
    for name in scoring.HEADLINE[cache.queries]:
        assert table["C"]["vs_best"][name] == [0, 0, 0]
        assert table[BASE]["vs_base"][name] == [0, 0, 0]
        values = [table[each]["mean"][name] for each in "ACD"]
        assert values[0] == pytest.approx((values[1] + values[2]) / 2)
        assert table["A"]["std"][name] == pytest.approx(np.std(values[1:], ddof=1))
        assert table["C"]["std"][name] == 0
    sampler = Resampler(cache)
    draws = [
        sampler.draws(count_pairs(pred, cache.label, cache.offsets))
        for pred in (one, two, cache.signals["binary"] > 0.5)
    ]
    for member, pred in ((table["C"], one), (table["D"], two)):
        ends = slow_event_draws(cache, pred, sampler.weights)
        for metric, drawn in ends.items():
            assert member["interval"][metric] == pytest.approx(
                np.quantile(drawn, [0.025, 0.975]).tolist()
            )
    low, high = interval((draws[0] + draws[1]) / 2 - draws[2])
    for i, name in enumerate(scoring.HEADLINE[cache.queries]):
        assert table["A"]["vs_base"][name][1:] == pytest.approx([low[i], high[i]])


# ---------------------------------------------------------------------------- verdicts


def test_words():
    assert word("f1", 0.01, 0.02) == word("false_alarms", -0.02, -0.01) == "beats"
    assert word("f1", -0.02, -0.01) == word("false_alarms", 0.01, 0.02) == "loses to"
    for low, high in ((-0.01, 0.01), (0.0, 0.01), (-0.01, 0.0), (0.0, 0.0)):
        assert word("f1", low, high) == word("false_alarms", low, high) == "cannot be told from"


def test_a_losing_policy_is_said_to_lose(cache, tmp_path, monkeypatch):
    rows = [base_row(cache), row("good rule", "rule", some_decisions(cache, 3, 0.12))]
    rows += [row("loser", "policy", ~cache.label), row("winner", "policy", cache.label)]
    same = rows[0].members[0].pred.copy()
    for index in (0, 4):  # as much gained as lost, in different clips
        at = cache.offsets[index] + 20
        same[at : at + 2] = ~same[at : at + 2]
    rows += [row("chance", "policy", same), row("ceiling", "ceiling", cache.label)]
    results = measure(rows, cache, 1)
    lines = {line.partition(" (")[0]: line for line in results["verdict"]}
    assert list(lines) == ["loser", "winner", "chance"]
    assert re.search(r"loses to T_base \(\d.*: -\d.* and loses to good rule \(", lines["loser"])
    assert re.search(r"beats T_base \(\d.*: \+\d.* and beats good rule \(", lines["winner"])
    assert "cannot be told from T_base" in lines["chance"]
    loser, winner, _ = results["columns"]
    assert loser.startswith("loser against the best baseline of each column: ")
    assert re.search(r"event F1 100\.00 beats good rule \(\d+\.\d+\): \+\d", winner)
    assert ("PSDS 1 100.00 against good rule (" in winner) == (cache.queries == "all")
    assert ("points, no interval" in winner) == (cache.queries == "all")
    assert results["best_opponent"] == "good rule"  # a ceiling is none
    header, cells = scoring.table_rows(results)
    table = {each[0]: dict(zip(header, each, strict=True)) for each in cells}
    column = next(name for name in header if "minus its T_base" in name)
    assert table["chance"][column].endswith("(within the noise)")
    assert "noise" not in table["loser"][column] + table["winner"][column]
    assert table[BASE][column] == ""  # nothing to be held against
    title = "F1" if cache.queries == "present" else "macro-F1"
    mean = {each["name"]: each["mean"] for each in results["entrants"]}
    gain = mean["loser"][results["tuned_for"]] - mean[BASE][results["tuned_for"]]
    assert table["loser"][column].startswith(f"{100 * gain:+.2f} [")
    assert column == f"{title} minus its T_base"


def test_nothing_can_be_told_from_one_clip(cache, tmp_path, monkeypatch):
    alone = cache.subset([cache.clips[0].filename])
    rows = [base_row(alone), row("A", "policy", alone.label), row("B", "rule", ~alone.label)]
    results = measure(rows, alone, 1)
    assert "cannot be told from T_base" in results["verdict"][0]
    assert "One clip has no interval" in results["verdict"][1]
    assert markdown(results).count("(within the noise)") == 4


def test_without_a_baseline_or_a_policy(cache, tmp_path, monkeypatch):
    results = measure([base_row(cache), row("A", "policy", cache.label)], cache, 1)
    assert results["best_opponent"] is None and "vs_best" not in results["entrants"][1]
    assert len(results["verdict"]) == 1 and " and " not in results["verdict"][0]
    assert markdown(results) and latex(results)
    on = row("all on", "rule", cache.label | True)  # it may well be the best, as in PSDS 2
    results = measure([base_row(cache), on], cache, 1)
    assert results["best_opponent"] == "all on" and results["verdict"] == []


def shuffled(cache, seed):
    """Every pair gets the truth of another pair, in frames and events; all are of one length."""
    order = np.random.default_rng(seed).permutation(len(cache.pairs))
    truth = cache.label.reshape(len(cache.pairs), -1)[order]
    events = {clip.filename: [] for clip in cache.clips}
    for pair, on in zip(cache.pairs, truth, strict=True):
        events[pair.filename] += systems.frames_to_events(on, pair.event_label, pair.edges)
    clips = [clip._replace(events=sorted(events[clip.filename])) for clip in cache.clips]
    return replace(cache, label=truth.ravel(), clips=clips)


def too_high(cache):
    """The base threshold lies too high everywhere, so that there is something to learn."""
    t_base = np.minimum(cache.signals["t_base"] + np.float32(0.15), 1)
    binary = (cache.signals["prob"] > t_base).astype(np.float32)
    return replace(cache, signals=cache.signals | {"t_base": t_base, "binary": binary})


def test_nothing_is_gained_by_what_does_not_know_the_truth(tmp_path, monkeypatch):
    """The base's own decisions of other pairs, where the truth is of other pairs too, are seldom
    called better; a classifier that has learned is."""
    for split, seed in (("train", 1), ("validation", 2)):
        write_cache(tmp_path / split, [60] * 16, seed=seed)
    train, cache = (too_high(load_cache(tmp_path / s)) for s in ("train", "validation"))
    same = {"network": SMALLEST, "bandit": Bandit(context=3), "holdout": 0.0, "run": tmp_path}
    learning = Learning(lr=1e-2, frames_per_step=8)
    cfg = TrainConfig(**same, method="classifier", learning=learning, passes=4)
    trainer = SupervisedTrainer(cfg, train, CPU)
    while not trainer.done:
        trainer.tick()
    on = decisions(trainer.network, to_device(cache, cfg.bandit, CPU), cfg.bandit, 256)[0].numpy()
    results = measure([base_row(cache), row("learned", "policy", on)], cache, 1)
    assert results["entrants"][1]["vs_base"]["f1"][1] > 0
    assert "learned (F1" in results["verdict"][0] and ") beats T_base" in results["verdict"][0]
    called = []
    for seed in range(10):
        wrong, rng = shuffled(cache, seed), np.random.default_rng([seed, 7])
        base = (cache.signals["binary"] > 0.5).reshape(len(cache.pairs), -1)
        rows = [base_row(wrong), row("other", "policy", rng.permutation(base).ravel())]
        called.append("beats" in measure(rows, wrong, 1)["verdict"][0])
    assert sum(called) <= 2


# ---------------------------------------------------------------------------- ends of events


def test_end_errors_of_all_members(home):
    cache = load_cache(home / "present" / "validation")
    late = np.zeros(len(cache.label), bool)
    for index in range(len(cache.pairs)):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        late[span][3:] = cache.label[span][:-3]  # three frames of 20 ms
    table = system_ends(row("A", "policy", late, cache.label), cache)
    onset = table["onset"]
    assert onset["bias_ms"] == pytest.approx(30)
    assert onset["median_ms"] == pytest.approx(30)
    assert onset["within_200_ms"] == 1.0
    assert sum(onset["histogram"]) == onset["events"] > 8
    assert system_ends(row("none", "rule", cache.label & False), cache)["onset"] == {"events": 0}


# ---------------------------------------------------------------------------- PSDS of scores


def test_psds_of_scores(home, tmp_path):
    """Raw, after the median filter of a rule, and of a policy's margin in its own signals."""
    cache = load_cache(home / "all" / "validation")
    lengths = {"Cat": 0.3, "Dog": 0.5, "Speech": 0.0}
    params = {
        "fallback": {"t": 0.5, "median_s": 0.5},
        "classes": {name: {"t": 0.5, "median_s": s} for name, s in lengths.items()},
    }
    rule = tuned_rules.Rule("median + threshold on d_raw", "median", "d_raw", "", params)
    other = rule._replace(on="d_adj", name="median + threshold on d_adj")
    there = replace(
        cache, signals=cache.signals | {"prob": 1 - cache.signals["prob"]}, folder=tmp_path
    )
    policy = Member("p", cache.label, 0.0, threshold=cache.signals["t_base"])
    rows = [base_row(cache), *(row_of(each, cache) for each in (other, rule))]
    rows += [
        System("A", "policy", "", [policy]),
        System("A, gated", "policy", "", [policy], True),
    ]
    rows += [System("B", "policy", "", [policy._replace(home=there)])]
    found = raw_psds(cache, rows)
    margin = "prob - threshold of {}, first seed (appendix)"
    assert [each["name"] for each in found] == [
        "raw scores",
        "raw scores after the filter of median + threshold on d_raw",
        margin.format("A"),
        margin.format("B"),
    ]
    truth = {clip.filename: clip.events for clip in cache.clips}
    given = (truth, {clip.filename: clip.duration_s for clip in cache.clips}, cache.classes)
    smooth = cache.signals["d_raw"].copy()
    for index, pair in enumerate(cache.pairs):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        size = {0.5: 25, 0.3: 15, 0.0: 1}[lengths[pair.event_label]]  # of 20 ms
        smooth[span] = median_filter(smooth[span], size)
    prob, t_base = cache.signals["prob"], cache.signals["t_base"]
    expected = (cache.signals["d_raw"], smooth, prob - t_base, 1 - prob - t_base)
    for each, signal in zip(found, expected, strict=True):
        for scenario in (1, 2):
            value = event_metrics.psds(scoring.SignalOfClips(cache, signal), *given)[scenario].value
            assert each[f"psds{scenario}"] == pytest.approx(value)
    assert found[0]["psds1"] != found[1]["psds1"]


def row_of(rule, cache):
    return System(rule.name, "rule", "", [systems.from_rule(rule, cache)])


def test_confidences_are_mean_raw_scores_of_the_own_cache(home, tmp_path):
    cache = load_cache(home / "all" / "validation")
    there = replace(
        cache, signals=cache.signals | {"d_raw": cache.signals["d_raw"] / 2}, folder=tmp_path
    )
    pred = cache.signals["binary"] > 0.5
    rows = [row("here", "base", pred), row("there", "base", pred)]
    rows[1] = rows[1]._replace(members=[rows[1].members[0]._replace(home=there)])
    here, elsewhere = scoring.event_tasks(rows, cache)
    assert here.events == elsewhere.events
    for name, events in here.scored.items():
        for one, other in zip(events, elsewhere.scored[name], strict=True):
            assert other.confidence == pytest.approx(one.confidence / 2, rel=1e-5)
        first = events[0]
        index = cache.find(name, first.event_label)
        at = label_frames([Event(*first[:3])], first.event_label, cache.pairs[index].edges)
        assert first.confidence == pytest.approx(cache.of_pair(index)["d_raw"][at].mean(), rel=1e-5)
    assert pickle.loads(pickle.dumps(here)) == here  # what a process is given
    ours, theirs = (scoring.event_row(task)[0] for task in (here, elsewhere))
    assert ours == theirs  # only the order counts


def test_who_ranks_by_boxes_or_scores_of_its_own_is_ranked_by_them(home):
    """Boxes of cSEBBs and of a policy over events; the filtered scores of a rule tuned for PSDS."""
    cache = load_cache(home / "all" / "validation")
    boxed = {"t": 0.5, "filter_s": 0.32, "by": "difference", "limit": 0.2}
    filtered = {"t": 0.5, "median_s": 0.5}
    csebbs = tuned_rules.Rule("C", "csebbs", "d_raw", "", tuned_rules.of_all(boxed))
    median = tuned_rules.Rule("M", "median", "d_raw", "", tuned_rules.of_all(filtered), "psds2")
    rows = [row_of(each, cache) for each in (csebbs, median, median._replace(metric="event_f1"))]
    boxes, scores, means = (task.scored for task in scoring.event_tasks(rows, cache))
    found = systems.sebbs(cache, csebbs.params)
    assert {name: list(map(tuple, some)) for name, some in boxes.items()} == found
    smooth = scoring.SignalOfClips(cache, tuned_rules.after_median(median, cache))
    assert all(np.array_equal(scores[name].values, smooth[name].values) for name in smooth)
    assert all(
        isinstance(each, event_metrics.ScoredEvent) for some in means.values() for each in some
    )


def test_the_t_base_that_a_row_is_held_against(home, tmp_path):
    cache = load_cache(home / "all" / "validation")
    there = replace(cache, folder=tmp_path)
    none = cache.label & False

    def make(name, kind, gated=False, away=False):
        home_ = there if away else None
        return System(name, kind, "", [Member("", none, 0.0, home=home_)], gated)

    bases = [make("T_base", "base"), make("other", "base", away=True)]
    bases += [make("T_base, gated", "base", True), make("other, gated", "base", True, True)]
    for gated, away, name in (
        (False, False, "T_base"),
        (False, True, "other"),
        (True, False, "T_base, gated"),
        (True, True, "other, gated"),
    ):
        policy = make("A", "policy", gated, away)
        assert base_for(policy, [*bases, policy]) == name
    assert base_for(make("A", "policy", True, True), bases[:1]) == "T_base"
    assert base_for(make("A", "policy", True, True), bases[:3]) == "T_base, gated"


# ---------------------------------------------------------------------------- the whole script


def config(home, out, *compare, queries="present", **changes):
    defaults = {"cache": home / queries, "out": out, "compare": compare, "workers": 1}
    return EvaluateConfig(**(defaults | {"device": "cpu"} | changes))


@pytest.fixture(scope="module")
def tables(home, tmp_path_factory):
    """Both kinds of pairs, with everything in the table. Queries -> its folder."""
    out = tmp_path_factory.mktemp("table")
    seeds = ",".join(str(home / "runs" / f"dqn-{seed}") for seed in (0, 1))
    cache = load_cache(home / "all" / "validation")
    write_labels(out / "theirs.tsv", {clip.filename: clip.events[:1] for clip in cache.clips})
    for queries in QUERIES:
        (out / queries / "events").mkdir(parents=True)
        (out / queries / "events" / "old.tsv").touch()
        earlier = {"cache_key": "", "entrants": [{"name": "old"}]}  # of an older version
        preprocess.write_json(out / queries / "results.json", earlier)
        items = (f"D_Q&N | 50%={seeds}", f"they={out / 'theirs.tsv'}", "rules")
        items += (f"T_base again=T_base@{home / queries}",)
        evaluate.main(config(home, out / queries, *items, queries=queries))
    return out


def read(folder):
    def never(name):
        raise AssertionError(f"{name} in results.json")

    return json.loads((folder / "results.json").read_text(), parse_constant=never)


@pytest.mark.parametrize("queries", QUERIES)
def test_results_of_the_script(home, tables, queries):
    results = read(tables / queries)
    cache = load_cache(home / queries / "validation")
    names = [each["name"] for each in results["entrants"]]
    assert names[0] == BASE and {"they", "T_base again", "cSEBBs on d_raw"} < set(names)
    assert results["num_clips"] == len(cache.clips) == 5
    assert (results["num_pairs"], results["present_pairs"]) == (
        (10, 10) if queries == "present" else (15, 10)
    )
    rules = {each["name"] for each in results["entrants"] if each["kind"] == "rule"}
    gated = [name for name in names if name.endswith(GATED) and name not in rules]
    expected = [BASE, "D_Q&N | 50%", "T_base again"] if queries == "all" else []
    assert gated == [f"{name}, {GATED}" for name in expected]
    for each in results["entrants"]:
        assert each["gated"] == each["name"].endswith(GATED)
        assert ("gate" in each) == (each["name"] in gated)
        assert len(each["members"]) == (2 if "D_Q" in each["name"] else 1)
        fields = {*scoring.HEADLINE[queries], "event_f1", "segment_f1", "intersection_f1"}
        if queries == "all":
            fields |= {"psds1", "psds2"}
        assert set(each["mean"]) == set(each["std"]) == fields
        for name, value in each["mean"].items():
            assert 0 <= value <= 1
            assert value == pytest.approx(np.mean([m[name] for m in each["members"]]))
        for name, (low, high) in each["interval"].items():
            assert low - 1e-9 <= each["mean"][name] <= high + 1e-9
    assert results["train_cache_key"] == load_cache(home / queries / "train").key
    again = results["entrants"][names.index("T_base again")]
    assert again["mean"] == results["entrants"][0]["mean"]


@pytest.mark.parametrize("queries", QUERIES)
def test_pairs_csv(home, tables, queries):
    cache = load_cache(home / queries / "validation")
    results = read(tables / queries)
    with open(tables / queries / "pairs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(cache.pairs)
    names = [each["name"] for each in results["entrants"]]
    metrics = ("accuracy", "iou", "f1")
    columns = [f"{name}: {metric}" for name in names for metric in metrics]
    assert list(rows[0]) == ["filename", "event_label", "present", "frames", *columns]
    base = cache.signals["binary"] > 0.5
    for index, (each, pair) in enumerate(zip(rows, cache.pairs, strict=True)):
        assert (each["filename"], each["event_label"]) == pair[:2]
        assert int(each["frames"]) == pair.num_frames
        assert bool(int(each["present"])) == cache.present[index]
        alone = cache.choose(np.arange(len(cache.pairs)) == index)
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        for metric, value in slow_mean(alone, base[span]).items():
            assert float(each[f"{BASE}: {metric}"]) == pytest.approx(value, abs=1e-6)
    if queries == "present":
        for each in results["entrants"]:
            for metric in metrics:
                column = [float(line[f"{each['name']}: {metric}"]) for line in rows]
                assert np.mean(column) == pytest.approx(each["mean"][metric], abs=1e-6)


@pytest.mark.parametrize("queries", QUERIES)
def test_event_files_hold_the_decisions(home, tables, queries):
    cache = load_cache(home / queries / "validation")
    results = read(tables / queries)
    names = [each["name"] for each in results["entrants"]]
    files = [f"{name}.tsv" for name in slugs(names)]
    found = {path.name for path in (tables / queries / "events").iterdir()}
    assert found == set(files)  # those of an earlier table are gone
    for each, file in zip(results["entrants"], files, strict=True):
        member = systems.from_events(tables / queries / "events" / file, cache)
        counts = count_pairs(member.pred, cache.label, cache.offsets)
        first = each["members"][0]
        for name, value in headline(counts, cache).items():
            assert first[name] == pytest.approx(value, abs=1e-12), each["name"]


@pytest.mark.parametrize("queries", QUERIES)
def test_tables_hold_every_row(tables, queries):
    results = read(tables / queries)
    text = (tables / queries / "table.md").read_text()
    assert text == markdown(results)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(results["entrants"])
    header, cells = scoring.table_rows(results)
    for line, own in zip(lines, cells, strict=True):
        parts = re.split(r"(?<!\\)\|", line)[1:-1]
        assert len(parts) == len(header)  # no name breaks the table
        name = parts[0].strip().strip("*").replace("\\", "")
        assert name == own[0]
        assert [part.strip().replace("**", "") for part in parts[1:]] == own[1:]
    decisive = header.index(scoring.TITLES[results["tuned_for"]])
    values = [float(own[decisive].split(" ")[0]) for own in cells]
    assert values == sorted(values, reverse=True)
    columns = [
        [re.split(r"(?<!\\)\|", line)[1:-1][i] for line in lines] for i in range(len(header))
    ]
    for i, column in enumerate(columns[1:], start=1):
        strong = [own for cell, own in zip(column, cells, strict=True) if "**" in cell]
        if " minus " in header[i] or header[i] in ("absent pairs on", "median onset error"):
            assert not strong
            continue
        known = [own for own in cells if "(ceiling)" not in own[0]]
        best = max(float(own[i].split(" ")[0]) for own in known)
        assert strong and all(float(own[i].split(" ")[0]) == best for own in strong)
        assert not any("(ceiling)" in own[0] for own in strong)
    assert re.search(r"Made \d{4}-\d\d-\d\d on \w.*; suite \S+, torch \S+, numpy", text)
    assert f"| *{results['best_opponent']}* |" in text
    assert "D_Q&N \\| 50%" in text and "±" in text
    assert all(re.sub(r"\|", r"\\|", line) in text for line in results["verdict"])
    tex = (tables / queries / "table.tex").read_text()
    assert tex == latex(results)
    body = tex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(results["entrants"])
    for line in body:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(header) - 1
        assert not re.search(r"(?<!\\)[%_#]|±|Δ", line)
    assert r"D\_Q\&N \textbar{} 50\%" in tex
    assert f"{{l{'r' * (len(header) - 1)}}}" in tex
    caption = text.splitlines()[0]
    start = {"present": "Present pairs: 10 pairs", "all": "All pairs: 15 pairs"}[queries]
    assert caption.startswith(f"{start} of 5 clips")
    assert ("10 of them present" in caption) == (queries == "all")
    assert ("Tag gate of T_base: precision" in text) == (queries == "all")
    assert ("Held against T_base, behind the gate: D_Q" in text) == (queries == "all")


def test_odd_names():
    tricky = r"a\b{$x^2$}~#1"
    values = dict.fromkeys(scoring.HEADLINE["present"], 0.5)
    row_ = {"name": tricky, "mean": values, "std": values, "members": [{}], "base": BASE}
    row_["kind"] = "policy"
    row_["ends"] = {"onset": {"events": 0}}
    results = {"queries": "present", "tuned_for": "f1", "entrants": [row_], "num_clips": 2}
    results |= {"num_pairs": 1, "present_pairs": 1, "best_opponent": None, "verdict": []}
    results |= {"psds_of_scores": []}
    row_["vs_base"] = {"f1": [0.0, -0.1, 0.1]}
    line = latex(results).splitlines()[5]
    assert line.startswith(r"a\textbackslash{}b\{\$x\textasciicircum{}2\$\}\textasciitilde{}\#1 &")
    names = ["a b", "a_b", "A_B", "x", "a/b", "é"]
    found = slugs(names)
    assert found == ["a_b", "a_b-2", "A_B-3", "x", "a_b-4", "é"]


def test_names_in_a_table_are_text(home, tmp_path, monkeypatch):
    """No formula in a CSV, no markup in Markdown, nothing turned; read back they are the same."""
    names = ["=1+1", "@x", "-2", "'=x", "<b>[x](y)|", "\u05e9\u05dc\u05d5\u05dd\u202e", "\u0645 1"]
    cache = load_cache(home / "present" / "validation")
    rows = [base_row(cache), *(row(name, "policy", cache.label) for name in names)]
    results = measure(rows, cache, 1)
    scoring.write_table(tmp_path, results, rows, cache)
    with open(tmp_path / "pairs.csv", newline="", encoding="utf-8") as stream:
        cells = [cell for line in csv.reader(stream) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]
    assert all(float(cell) is not None for cell in cells if cell[:1] == "-")
    table = table_figures.load_table(tmp_path)
    assert list(table.pairs.f1) == [BASE, *names] == list(table.rows)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "<b>" not in text.replace(r"\<b>", "") and r"\<b>[x\](y)\|" in text
    for line in text.splitlines():
        assert isolated(line) == line


def test_what_is_printed(home, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "runs" / "dqn-0", run)
    evaluate.main(config(home, tmp_path / "out", f"A={run}", queries="all"))
    text = capsys.readouterr().out
    results = read(tmp_path / "out")
    assert markdown(results) in text
    found = dict(re.findall(r"^(\w+_seconds): ([0-9.]+)", text, re.MULTILINE))
    assert set(found) == {"deciding_seconds", "tuning_and_deciding_seconds", "table_seconds"}
    seconds = [m["deciding_seconds"] for each in results["entrants"] for m in each["members"]]
    assert seconds[1] > 0 == seconds[3]  # bare, and the same decisions behind the gate
    names = ["events", "pairs.csv", "results.json", "table.md", "table.tex"]
    assert contents(tmp_path / "out") == names


def test_a_second_table_decides_nothing(home, tables, tmp_path, monkeypatch):
    """The same numbers from what is stored, in another order of rows."""
    monkeypatch.setattr(systems, "decide_cache", None)
    monkeypatch.setattr(systems, "tuning", None)
    shutil.copy(tables / "present" / "rules.json", tmp_path / "rules.json")
    seeds = ",".join(str(home / "runs" / f"dqn-{seed}") for seed in (0, 1))
    evaluate.main(config(home, tmp_path, "rules", f"D_Q&N | 50%={seeds}"))
    first = {each["name"]: each for each in read(tables / "present")["entrants"]}
    for each in read(tmp_path)["entrants"]:
        for key in ("interval", "vs_base", "vs_best", "ends", "kind"):
            assert each[key] == first[each["name"]][key]


def test_mistakes_end_in_one_line(home, tmp_path):
    run = str(home / "runs" / "dqn-0")
    with pytest.raises(ValueError, match="--checkpoint must be left out with --compare"):
        EvaluateConfig(compare=(run,), out=tmp_path, checkpoint=tmp_path / "best.pt")
    shutil.copytree(home / "all" / "validation", tmp_path / "cache" / "validation")
    with pytest.raises(InputError, match=r"no manifest in .*train; run: python preprocess\.py"):
        evaluate.main(config(home, tmp_path / "out", run, cache=tmp_path / "cache"))
    shutil.copytree(home / "present" / "train", tmp_path / "cache" / "train")
    with pytest.raises(InputError, match=r"holds all pairs but .* present pairs; run preprocess"):
        evaluate.main(config(home, tmp_path / "out", run, cache=tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/best\.pt not found"):
        evaluate.main(config(home, tmp_path / "out", str(tmp_path / "empty")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds other files and no table"):
        evaluate.main(config(home, tmp_path / "run", run))
    assert not (tmp_path / "out" / "results.json").exists()


def test_clips_and_classes_without_anything(home, tmp_path):
    """No absent pair, no present pair, a class and a clip without events: numbers, no NaN."""
    cache = load_cache(home / "all" / "validation")
    everywhere = cache.choose(cache.present)
    nowhere = cache.choose(~cache.present)
    for index, part in enumerate((everywhere, nowhere)):
        clips = len(part.clips)
        rows = [base_row(part), row("A", "policy", part.label), row("B", "rule", ~part.label)]
        folder = tmp_path / str(index)
        folder.mkdir()
        results = measure(rows, part, 1)  # no clip has the scores of all classes: no PSDS
        preprocess.write_json(folder / "results.json", results)
        perfect = read(folder)["entrants"][1]["mean"]
        assert perfect.items() >= {"macro_f1": 1.0, "micro_f1": 1.0, "false_alarms": 0.0}.items()
        assert "psds1" not in perfect
        assert results["num_clips"] == clips and markdown(results)
    assert results["present_pairs"] == 0
    assert results["entrants"][2]["mean"]["false_alarms"] == 1.0


def test_no_event_anywhere(home, tmp_path):
    cache = load_cache(home / "all" / "validation")
    silent = replace(
        cache,
        label=cache.label & False,
        clips=[clip._replace(events=[]) for clip in cache.clips],
    )
    rows = [base_row(silent), row("A", "policy", silent.label)]
    results = measure(rows, silent, 1)
    preprocess.write_json(tmp_path / "results.json", results)
    mean = read(tmp_path)["entrants"][1]["mean"]
    assert (mean["event_f1"], mean["psds1"], mean["macro_f1"]) == (1.0, 0.0, 1.0)
    assert markdown(results) and latex(results)


# ---------------------------------------------------------------------------- one policy, all pairs


@pytest.fixture(scope="module")
def evaluated(home, tmp_path_factory):
    """The single evaluation of one policy on either kind of pairs. Queries -> its folder."""
    out = tmp_path_factory.mktemp("single")
    for queries in QUERIES:
        cfg = config(home, out / queries, queries=queries, run=home / "runs" / "dqn-0")
        evaluate.main(cfg)
    return out


def test_all_pairs_have_the_present_tables_of_the_present_pairs(home, evaluated):
    every, present = (read(evaluated / queries) for queries in ("all", "present"))
    for key in ("before", "after", "gain", "interval", "pooled", "per_class", "present_pairs"):
        assert every[key] == present[key], key
    for key in ("yardsticks", "threshold_selection", "fixed_frames", "broken_frames", "ends"):
        assert every[key] == present[key], key
    assert (every["num_pairs"], present["num_pairs"]) == (15, 10)
    assert "all_pairs" not in present


def test_ends_are_those_of_a_table(home, evaluated):
    """One definition: a single evaluation and a table cannot disagree about onset errors."""
    for queries in QUERIES:
        cache = load_cache(home / queries / "validation")
        with np.load(evaluated / queries / "decisions.npz") as arrays:
            pred = arrays["binary"].astype(bool)
        ends = read(evaluated / queries)["ends"]
        assert ends["before"] == system_ends(base_row(cache), cache)
        assert ends["after"] == system_ends(row("A", "policy", pred), cache)
        assert ends["before"] != ends["after"] and ends["after"]["onset"]["events"] > 0


def test_all_pairs_of_one_policy(home, evaluated):
    results = read(evaluated / "all")
    cache = load_cache(home / "all" / "validation")
    with np.load(evaluated / "all" / "decisions.npz") as arrays:
        pred = arrays["binary"].astype(bool)
    base = cache.signals["binary"] > 0.5
    tuned = gate.tune_gate(load_cache(home / "present" / "train"))
    opened = gate.open_pairs(tuned, cache)[cache.frames_of_pair]
    expected = {
        BASE: base,
        "DQN": pred,
        f"{BASE}, gated": base & opened,
        "DQN, gated": pred & opened,
    }
    train, clips = load_cache(home / "all" / "train"), clips_in_order(cache)
    aim = tuned_rules.Objective(train, "all")
    kinds = ("threshold", "median", "hysteresis", "csebbs")
    rules = [rule for kind in kinds for rule in tuned_rules.Tuning(aim).part(kind, "d_raw")]
    expected |= {rule.name: tuned_rules.decide_rule(rule, cache) for rule in rules}
    rows = results["all_pairs"]
    assert list(rows) == list(expected)
    ours = slow_headline(cache, pred & opened, clips)[0]
    for name, on in expected.items():
        values = slow_headline(cache, on, clips)
        assert [rows[name][metric] for metric in scoring.HEADLINE["all"]] == pytest.approx(values)
        gain, low, high = rows[name]["behind"]
        assert gain == pytest.approx(ours - values[0]) and low <= gain <= high
    best = max((rule.name for rule in rules), key=lambda name: rows[name]["macro_f1"])
    said = results["verdict"]
    assert said.startswith(f"DQN, gated (macro-F1 {100 * ours:.2f}) ")
    assert f" {BASE}, gated (" in said and f" {best} ({100 * rows[best]['macro_f1']:.2f}): " in said
    assert results["gate"] == gate.tagging(tuned, cache)
    events = read_labels(evaluated / "all" / "events.tsv")
    for index, pair in enumerate(cache.pairs):
        span = slice(cache.offsets[index], cache.offsets[index + 1])
        on = label_frames(events[pair.filename], pair.event_label, pair.edges)
        assert np.array_equal(on, (pred & opened)[span])  # the file is what one would use


def test_a_policy_without_a_gate_on_all_pairs(home, tmp_path, capsys):
    shutil.copytree(home / "runs" / "dqn-0", tmp_path / "run")
    content = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    runfolder.write_checkpoint(tmp_path / "run" / "best.pt", content | {"gate": "null"})
    evaluate.main(config(home, tmp_path / "out", queries="all", run=tmp_path / "run"))
    assert "note: the policy has no tag gate" in capsys.readouterr().out
    results = read(tmp_path / "out")
    assert results["gate"] is None and list(results["all_pairs"])[:3] == [
        BASE,
        "DQN",
        f"{BASE}, gated",
    ]
    cache = load_cache(home / "all" / "validation")
    with np.load(tmp_path / "out" / "decisions.npz") as arrays:
        pred = arrays["binary"].astype(bool)
    member = systems.from_events(tmp_path / "out" / "events.tsv", cache)
    assert np.array_equal(member.pred, pred)


def test_nothing_to_hear_is_an_input_error(home, tmp_path):
    shutil.copytree(home / "all", tmp_path / "cache")
    path = tmp_path / "cache" / "validation" / "manifest.json"
    manifest = json.loads(path.read_text())
    for clip in manifest["shards"][0]["clips"]:
        clip[2] = []
    preprocess.write_json(path, manifest)
    with pytest.raises(InputError, match="no clip has an event, so there is nothing to evaluate"):
        evaluate.main(
            config(home, tmp_path / "out", cache=tmp_path / "cache", run=home / "runs" / "dqn-0")
        )


def test_figures_and_page_of_a_run_on_all_pairs(home, evaluated, tmp_path):
    cfg = VisualizeConfig(run=evaluated / "all", cache=home / "all", dpi=30)
    data = evaluations.load_evaluated(cfg)
    for draw in (visualize.draw_before_after, visualize.draw_yardsticks):
        title = draw(data.results)._suptitle.get_text()
        assert "10 present of 15 pairs, validation split" in title  # what is drawn is of those
    assert visualize.draw_per_class(data.results)
    shutil.copytree(evaluated / "all", tmp_path / "run")
    assert visualize.main(replace(cfg, run=tmp_path / "run", html=True)) == 0
    assert (tmp_path / "run" / "report" / "index.html").exists()
