"""Who is compared: what --compare understands, decisions stored once, events from elsewhere."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache, write_policy

import evaluate
import preprocess
from baselines import tuned_rules
from comparison import systems
from comparison.systems import (
    Member,
    Spec,
    System,
    behind_gate,
    find_systems,
    fitted_rules,
    from_checkpoint,
    from_events,
    same_pairs,
    stored_decisions,
)
from config import Bandit, EvaluateConfig, Learning, TrainConfig
from core.errors import InputError
from DQN import main
from policy import gate, runfolder
from policy.apply import decisions, greedy_actions, load_policy
from policy.bandit import thresholds, to_device
from sed.caches import load_cache
from sed.labels import read_labels
from sed.timeline import write_labels

CPU = torch.device("cpu")
LABELS = ("Dog", "Speech", "Cat")
LENGTHS = [50, 50, 50, 41, 41, 41, 64, 64, 64, 33, 33, 33]
ABSENT = (1, 3, 8, 9, 10)


def change_signals(source, target, **formulas):
    """A copy of caches whose manifests say that other formulas made them; other keys too."""
    shutil.copytree(source, target)
    for path in target.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["signal"] |= formulas
        manifest["key"] += "-other"
        preprocess.write_json(path, manifest)
    return target


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """cache/{present,all}/{train,validation}, a policy of two seeds, a classifier; all tiny."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("entrants")
    for name, absent in (("present", ()), ("all", ABSENT)):
        write_cache(folder / name / "train", LENGTHS, seed=1, labels=LABELS, absent=absent)
        write_cache(folder / name / "validation", LENGTHS, seed=2, labels=LABELS, absent=absent)
    for seed in (0, 1):
        write_policy(folder / "runs" / f"dqn-{seed}", folder / "present" / "train", seed)
    main(
        TrainConfig(
            method="classifier",
            cache=folder / "present",
            run=folder / "runs" / "classifier",
            network=SMALLEST,
            bandit=Bandit(context=3),
            learning=Learning(frames_per_step=100),
            passes=1,
            device="cpu",
        )
    )
    return folder


@pytest.fixture(scope="module")
def present(home):
    return load_cache(home / "present" / "validation")


@pytest.fixture(scope="module")
def every(home):
    return load_cache(home / "all" / "validation")


def config(home, out, *compare, queries="present", **changes):
    defaults = {"cache": home / queries, "out": out, "compare": compare, "device": "cpu"}
    return EvaluateConfig(**(defaults | changes))


def find(home, out, *compare, queries="present", **changes):
    cfg = config(home, out, *compare, queries=queries, **changes)
    out.mkdir(parents=True, exist_ok=True)
    return find_systems(cfg, *(load_cache(cfg.cache / s) for s in ("validation", "train")))


# ---------------------------------------------------------------------------- the command line


def test_items_of_compare(home, monkeypatch):
    monkeypatch.chdir(home / "runs")
    (home / "runs" / "lr=0.1").mkdir(exist_ok=True)
    shutil.copy("dqn-0/best.pt", "lr=0.1/best.pt")
    (home / "runs" / "other.tsv").touch()
    for text, name, files, cache in (
        ("dqn-0", "dqn-0", ["dqn-0/best.pt"], None),
        ("dqn-0/best.pt", "dqn-0", ["dqn-0/best.pt"], None),
        ("classifier/last.pt", "last", ["classifier/last.pt"], None),
        ("other.tsv", "other", ["other.tsv"], None),
        ("A B=dqn-0,dqn-1", "A B", ["dqn-0/best.pt", "dqn-1/best.pt"], None),
        ("X=dqn-0@../all", "X", ["dqn-0/best.pt"], "../all"),
        ("T_base@../all", "T_base of ../all", [], "../all"),
        ("no fallback=T_base@../all", "no fallback", [], "../all"),
        ("slow=lr=0.1", "slow", ["lr=0.1/best.pt"], None),
    ):
        spec = Spec.parse(text)
        assert (spec.name, [str(file) for file in spec.files]) == (name, files)
        assert (spec.cache and str(spec.cache)) == cache


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere", r"nowhere not found; give a run folder, a checkpoint, an event TSV"),
        ("", r"best.pt not found"),
        ("runs", r"runs/best\.pt not found"),
        ("A=runs/dqn-0,runs/dqn-7", r"runs/dqn-7 not found"),
        ("A=runs/dqn-0,runs/dqn-0", "there twice"),
        ("T_base", "always the first row"),
        ("mine=T_base", "always the first row"),
        ("runs/other.tsv@all", "leave out @all"),
    ],
)
def test_items_that_make_no_sense(home, monkeypatch, text, said):
    monkeypatch.chdir(home)
    (home / "runs" / "other.tsv").touch()
    with pytest.raises(InputError, match=said):
        Spec.parse(text)


def test_mistakes_are_found_before_anything_is_decided(home, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("tuned or decided although an item is wrong")

    monkeypatch.setattr(systems, "tuning", never)
    monkeypatch.setattr(systems, "decide_cache", never)
    one, two = str(home / "runs" / "dqn-0"), str(home / "runs" / "dqn-1")
    shutil.copytree(home / "runs" / "dqn-0", tmp_path / "new")  # nothing is stored beside it
    for items, said in (
        (("rules", str(tmp_path / "new"), "nowhere"), "nowhere not found"),
        (("rules", "rules"), "named twice"),
        ((f"A={tmp_path / 'new'}", f"A={two}"), "two rows are called 'A'"),
        ((f"T_base={one}",), "two rows are called 'T_base'"),
        ((str(tmp_path / "new"), f"{two}@{home / 'none'}"), "no manifest in"),
        ((str(tmp_path / "new"), f"{two}@{home / 'all'}"), "do not hold the same pairs"),
    ):
        with pytest.raises(InputError, match=said):
            find(home, tmp_path / "out", *items)


def test_rows_of_one_kind_only(home, tmp_path):
    runs = home / "runs"
    with pytest.raises(InputError, match=r"one kind of system, not \['policy', 'supervised'\]"):
        find(home, tmp_path, f"A={runs / 'dqn-0'},{runs / 'classifier'}")


# ---------------------------------------------------------------------------- checkpoints


def test_decisions_are_stored_once(home, present, every, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(home / "runs" / "dqn-0", run)
    shutil.rmtree(run / "decisions", ignore_errors=True)
    cfg = config(home, tmp_path)
    kind, member = from_checkpoint(run / "best.pt", present, cfg)
    policy = load_policy(run / "best.pt", CPU)
    signals = to_device(present, policy.bandit, CPU)
    threshold = thresholds(
        signals, greedy_actions(policy.network, signals, policy.bandit, 64), policy.bandit
    )
    assert kind == "policy" and member.gate == policy.gate
    assert np.array_equal(member.threshold, threshold.numpy())
    assert np.array_equal(member.pred, (signals.prob > threshold).numpy())
    assert (member.pred != (present.signals["binary"] > 0.5)).any()
    (stored,) = (run / "decisions").iterdir()
    assert present.key in stored.name and stored.suffix == ".npz"

    def never(*_, **__):
        raise AssertionError("decided again")

    with monkeypatch.context() as patch:
        patch.setattr(systems, "decide_cache", never)
        again = from_checkpoint(run / "best.pt", present, cfg)[1]
        assert np.array_equal(again.pred, member.pred) and again.seconds == member.seconds
        assert np.array_equal(again.threshold, member.threshold)
        renamed = [pair._replace(event_label=f"{pair.event_label}2") for pair in present.pairs]
        for other in (every, replace(present, pairs=renamed)):  # the same numbers: the same key
            with pytest.raises(AssertionError, match="decided again"):
                from_checkpoint(run / "best.pt", other, replace(cfg, other_classes=True))
    from_checkpoint(run / "best.pt", every, cfg)
    assert len(list((run / "decisions").iterdir())) == 2  # another cache, another file
    shutil.copy(home / "runs" / "dqn-1" / "best.pt", run / "best.pt")
    other = from_checkpoint(run / "best.pt", present, cfg)[1]
    assert (other.pred != member.pred).any()  # other weights under the same name
    assert len(list((run / "decisions").iterdir())) == 3
    assert not list((run / "decisions").glob("*.tmp"))


def test_a_classifiers_decisions(home, present, tmp_path, monkeypatch):
    path = home / "runs" / "classifier" / "best.pt"
    kind, member = from_checkpoint(path, present, config(home, tmp_path))
    policy = load_policy(path, CPU)
    signals = to_device(present, policy.bandit, CPU)
    expected, _ = decisions(policy.network, signals, policy.bandit, 9)
    assert kind == "supervised" and member.threshold is None and member.gate == policy.gate
    assert np.array_equal(member.pred, expected.numpy())
    monkeypatch.setattr(systems, "decide_cache", None)
    again = from_checkpoint(path, present, config(home, tmp_path))[1]
    assert np.array_equal(again.pred, member.pred)


@pytest.mark.parametrize("damage", ["cut", "text", "short", "actions", "empty"])
def test_damaged_decisions_are_named(home, present, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(home / "runs" / "dqn-0", run)
    from_checkpoint(run / "best.pt", present, config(home, tmp_path))
    store = systems.store_of(run / "best.pt", present)
    with np.load(store) as arrays:
        values = dict(arrays)
    if damage == "cut":
        store.write_bytes(store.read_bytes()[:100])
    elif damage == "text":
        store.write_text("decisions")
    elif damage == "empty":
        store.write_bytes(b"")
    else:
        name = "pred" if damage == "short" else "action"
        np.savez(store, **(values | {name: values[name][:20]}))
    with pytest.raises(InputError, match=rf"{store.name}: damaged \(.+\); delete it"):
        from_checkpoint(run / "best.pt", present, config(home, tmp_path))


@pytest.mark.parametrize("older", [("asked",), ("asked", "preset")])
def test_older_decisions_are_still_good(home, present, tmp_path, older):
    """What was stored before presets were, is of checkpoints that hold their settings."""
    run = tmp_path / "run"
    shutil.copytree(home / "runs" / "dqn-0", run)
    member = from_checkpoint(run / "best.pt", present, config(home, tmp_path))[1]
    store = systems.store_of(run / "best.pt", present)
    with np.load(store) as arrays:
        values = dict(arrays)
    np.savez(store, **{name: each for name, each in values.items() if name not in older})
    before = store.stat().st_mtime_ns
    again = from_checkpoint(run / "best.pt", present, config(home, tmp_path))[1]
    assert np.array_equal(again.pred, member.pred) and store.stat().st_mtime_ns == before


def test_a_bare_state_dict_is_decided_anew_for_another_preset(home, present, tmp_path, monkeypatch):
    content = runfolder.read_checkpoint(home / "runs" / "dqn-0" / "best.pt")
    torch.save(content["network"], tmp_path / "bare.pt")
    small = replace(load_policy(home / "runs" / "dqn-0" / "best.pt", CPU).bandit)

    def load(path, device, preset):
        policy = load_policy(home / "runs" / "dqn-0" / "best.pt", device)
        reading = "sequential" if preset == "original" else "independent"
        return policy._replace(bandit=replace(small, reading=reading), signal=None)

    monkeypatch.setattr(systems, "load_policy", load)
    found = {}
    for preset in ("slides", "original", "slides"):
        cfg = config(home, tmp_path, preset=preset)
        member = from_checkpoint(tmp_path / "bare.pt", present, cfg)[1]
        assert np.array_equal(found.setdefault(preset, member.pred), member.pred)
        assert stored_decisions(systems.store_of(tmp_path / "bare.pt", present), present)
    assert (found["slides"] != found["original"]).any()


def test_foreign_files_end_in_one_line(home, present, tmp_path):
    (tmp_path / "text.pt").write_text("no")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "odd.pt")
    torch.save({"twin": "classifier"}, tmp_path / "half.pt")
    for name in ("text", "odd", "half"):
        with pytest.raises(InputError, match=rf"{name}\.pt") as error:
            from_checkpoint(tmp_path / f"{name}.pt", present, config(home, tmp_path))
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- events


@pytest.mark.parametrize("queries", ["present", "all"])
def test_events_of_evaluate_give_the_same_decisions(home, tmp_path, queries):
    cache = load_cache(home / queries / "validation")
    cfg = EvaluateConfig(
        cache=home / queries, run=home / "runs" / "dqn-0", out=tmp_path, device="cpu"
    )
    evaluate.main(cfg)
    with np.load(tmp_path / "decisions.npz") as arrays:
        pred = arrays["binary"].astype(bool)
    if queries == "all":
        policy = load_policy(home / "runs" / "dqn-0" / "best.pt", CPU)
        pred = gate.behind(policy.gate, cache, pred)
    member = from_events(tmp_path / "events.tsv", cache)
    assert np.array_equal(member.pred, pred) and pred.any()
    assert member.gate is None and member.threshold is None


def test_events_of_nowhere_are_named(present, tmp_path):
    truth = {clip.filename: clip.events for clip in present.clips}
    path = tmp_path / "events.tsv"
    write_labels(path, truth | {"strange.wav": []})
    with pytest.raises(InputError, match=r"1 clips are not in .*validation: strange\.wav"):
        from_events(path, present)
    name = present.clips[0].filename
    odd = truth[name][0]._replace(event_label="Cow")
    write_labels(path, truth | {name: [odd]})
    with pytest.raises(InputError, match=rf"{name} has events of a class .*: Cow"):
        from_events(path, present)


def test_a_clip_that_a_file_leaves_out_has_no_events(present, tmp_path):
    write_labels(tmp_path / "events.tsv", {present.clips[1].filename: present.clips[1].events})
    member = from_events(tmp_path / "events.tsv", present)
    for index, pair in enumerate(present.pairs):
        span = slice(present.offsets[index], present.offsets[index + 1])
        own = pair.filename == present.clips[1].filename
        assert np.array_equal(member.pred[span], present.label[span] & own)


def test_events_of_absent_classes_are_counted(home, every, tmp_path, capsys):
    """On present pairs nobody is asked for them."""
    first = every.clips[0]
    truth = {event.event_label for event in first.events}
    assert truth < set(LABELS)
    alarm = first.events[0]._replace(event_label=next(iter(set(LABELS) - truth)))
    write_labels(tmp_path / "events.tsv", {first.filename: [*first.events, alarm]})
    heard = from_events(tmp_path / "events.tsv", every)
    assert not capsys.readouterr().out
    assert (heard.pred & ~every.present[every.frames_of_pair]).any()
    cache = every.present_only()
    member = from_events(tmp_path / "events.tsv", cache)
    count = len(first.events) + 1
    assert f"1 of {count} events are of classes absent" in capsys.readouterr().out
    assert member.events == {first.filename: sorted(first.events)}
    assert read_labels(tmp_path / "events.tsv")[first.filename] != member.events[first.filename]


# ---------------------------------------------------------------------------- rules, gates, homes


def test_rules_are_tuned_once(home, present, tmp_path, monkeypatch, capsys):
    train = load_cache(home / "present" / "train")
    calls = []

    def quick(train, bandit, point, workers, gated):
        calls.append(point)
        assert (gated is None) == (point == "present")
        aim = tuned_rules.Objective(train, point)
        rules = tuned_rules.fixed_rules() + tuned_rules.threshold_rules(aim, "d_raw")
        return nullcontext(lambda: rules)

    def fitted(train, gate):
        with fitted_rules(train, gate, config(home, tmp_path, "rules")) as tuned:
            return tuned()

    monkeypatch.setattr(systems, "tuning", quick)
    first = fitted(train, None)
    assert fitted(train, None) == first and calls == ["present"]
    for rule in first:
        pred = systems.from_rule(rule, present).pred
        assert np.array_equal(pred, tuned_rules.decide_rule(rule, present))
    (tmp_path / "rules.json").write_text('{"train": 1')
    assert fitted(train, None) == first and len(calls) == 2
    assert "tuning again" in capsys.readouterr().out
    train = load_cache(home / "all" / "train")  # other clips
    fitted(train, systems.tuned_gate(train))
    assert calls == ["present", "present", "all"]


def test_behind_the_gate(every):
    pred = np.ones(len(every.label), bool)
    gates = [gate.tune_gate(every), gate.Gate({}, 0.0), gate.Gate({}, 2.0)]
    row = System("A", "policy", "", [Member("x", pred, 3.0, each) for each in gates])
    gated = behind_gate(row, every)
    assert gated.name == "A, behind the gate" and gated.gated and not row.gated
    opened = gate.open_pairs(gates[0], every)[every.frames_of_pair]
    assert np.array_equal(gated.members[0].pred, opened) and 0 < opened.mean() < 1
    assert gated.members[1].pred.all() and not gated.members[2].pred.any()
    assert all(member.seconds == 0 for member in gated.members)  # timed in the bare row
    without = row._replace(members=[*row.members, Member("x", pred, 0.0)])
    assert behind_gate(without, every) is None
    untagged = replace(every, clips=[clip._replace(tag=None) for clip in every.clips])
    assert behind_gate(row, untagged) is None


def test_rules_behind_the_gate(home, every, tmp_path):
    """Closed pairs are silent; a rule there is one that is tuned on what the gate lets through."""
    with mock.patch.multiple(tuned_rules, GRID=tuned_rules.GRID[::5], MEDIAN_S=(0.0, 0.2)):
        rows = {row.name: row for row in find(home, tmp_path, "rules", queries="all")}
        train = load_cache(home / "all" / "train")
        tuned = gate.tune_gate(train)
        aim = tuned_rules.Objective(gate.silenced(tuned, train), "all")
        params = tuned_rules.tune_thresholds(aim, "d_adj")
    gated = {name: row for name, row in rows.items() if row.gated and row.kind == "rule"}
    assert all(name.endswith(", behind the gate") for name in gated)
    kinds = {row.members[0].rule.kind for row in gated.values()}
    assert kinds == {"threshold", "median", "hysteresis", "csebbs", "slope", "z-score"}
    closed = ~gate.open_pairs(tuned, every)[every.frames_of_pair]
    assert 0 < closed.mean() < 1
    silent = gate.silenced(tuned, every)
    for on in ("d_raw", "d_adj", "prob"):
        assert not silent.signals[on][closed].any()
        assert np.array_equal(silent.signals[on][~closed], every.signals[on][~closed])
    for name, row in gated.items():
        (member,) = row.members
        assert not member.pred[closed].any(), name
        assert np.array_equal(member.pred, tuned_rules.decide_rule(member.rule, silent))
    best = gated["best per-class threshold on d_adj, behind the gate"].members[0]
    assert best.rule.params == params
    bare = rows["best per-class threshold on d_adj"].members[0]
    assert bare.rule.params != params or (bare.pred != best.pred).any()
    untagged = replace(every, clips=[clip._replace(tag=None) for clip in every.clips])
    rules = [row.members[0].rule for row in gated.values()]
    assert systems.rows_of_rules(rules, untagged, tuned, ()) == []


def test_rows_on_signals_of_another_cache(home, every, tmp_path):
    """Decisions, T_base and gate come from there: its scores may be another system's."""
    other = change_signals(home / "all", tmp_path / "other", flat_fallback=False)
    for path in other.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        for shard in manifest["shards"]:
            for clip in shard["clips"]:
                clip[3] = [1 - tag for tag in clip[3]]
        preprocess.write_json(path, manifest)
    items = (f"A={home / 'runs' / 'dqn-0'}@{other}", f"T_base there=T_base@{other}")
    rows = {row.name: row for row in find(home, tmp_path / "out", *items, queries="all")}
    names = ["T_base", "A", "T_base there"]
    assert list(rows) == [*names, *(f"{name}, behind the gate" for name in names)]
    there = load_cache(other / "validation")
    assert rows["T_base"].members[0].home is None
    for name in ("A", "T_base there"):
        (bare,), (closed,) = (rows[name + more].members for more in ("", ", behind the gate"))
        assert bare.home.folder == there.folder
        assert np.array_equal(closed.pred, gate.behind(bare.gate, there, bare.pred))
    assert rows["T_base there"].members[0].gate == gate.tune_gate(load_cache(other / "train"))
    assert rows["T_base there"].members[0].gate != rows["T_base"].members[0].gate
    # Without audio no score falls back on loudness; present pairs teach no silence.
    (note,) = rows["A"].members[0].notes
    assert "when to be silent" in note


def test_a_policy_without_a_gate_is_named(home, tmp_path, capsys):
    shutil.copytree(home / "runs" / "dqn-0", tmp_path / "run")
    content = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    runfolder.write_checkpoint(tmp_path / "run" / "best.pt", content | {"gate": "null"})
    rows = find(home, tmp_path / "out", str(tmp_path / "run"), queries="all")
    assert [row.name for row in rows] == ["T_base", "run", "T_base, behind the gate"]
    assert "note: run has no tag gate; it stands bare only" in capsys.readouterr().out


def test_same_pairs(home, present, tmp_path):
    assert same_pairs(home / "present", present).pairs == present.pairs
    write_cache(tmp_path / "other" / "validation", LENGTHS, seed=9, labels=LABELS)
    with pytest.raises(InputError, match="do not hold the same pairs and labels"):
        same_pairs(tmp_path / "other", present)  # the same lengths, other labels
