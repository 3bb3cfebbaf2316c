"""Cross-validation: nobody decides a clip that it has seen; one command; what is done is kept."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_docs_scores import blocks
from test_forms import NAMES, write_corpus

from baselines import tuned_rules
from baselines.tuned_rules import Part
from comparison import systems
from config import PRETRAINED, Bandit, EvaluateConfig, Events, Network, TrainConfig
from core.command import parse
from core.errors import InputError
from policy import gate
from policy.event_policy import EventTrainer
from policy.runfolder import read_checkpoint
from sed.caches import load_cache
from sed.labels import read_labels
from sed.timeline import Event, write_labels
from studies import crossval
from studies.crossval import CrossvalConfig, Learned, Study

TITLE = "One folder, two splits, or K parts"
SMALL = replace(TrainConfig.with_preset("best"), passes=2, events=Events(hidden=4, layers=2))
CLASSIFIER = TrainConfig(method="classifier", passes=1, network=Network(hidden=4, heads=2))
LEARNED = [
    Learned("DQN small", SMALL),
    Learned("classifier", CLASSIFIER, "present"),
    Learned("given", SMALL, given=Path("given/best.pt")),
    Learned("recalibrated", replace(SMALL, events=Events(), init=Path("given/best.pt"))),
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with five labelled clips, their scores and audio; trainings run in this process."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    (tmp_path / "given").mkdir()
    shutil.copy(PRETRAINED, tmp_path / "given" / "best.pt")
    monkeypatch.setattr(crossval, "process_pool", lambda _: Here())
    monkeypatch.setattr(TrainConfig, "with_preset", classmethod(lambda *_: SMALL))
    monkeypatch.setattr(EventTrainer, "FLOOR", 30)
    return tmp_path


class Here:
    """A pool of processes that is none."""

    map = staticmethod(map)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def config(here: Path, *more: str) -> CrossvalConfig:
    """The command of docs/scores.md, with two parts."""
    line = next(line for line in blocks(TITLE, "bash")[-1].splitlines() if "crossval" in line)
    words = shlex.split(line.replace("--parts 5", "--parts 2"))[3:]
    return parse(CrossvalConfig, [*words, "--workers", "1", *more])


def decisions(folder: Path) -> dict[str, dict]:
    """Events of every row of a table, as written."""
    return {path.stem: read_labels(path) for path in sorted((folder / "events").glob("*.tsv"))}


@pytest.mark.parametrize("pairs", ["present", pytest.param("all", marks=pytest.mark.slow)])
def test_one_command(here, capsys, pairs):
    cfg = config(here, "--pairs", pairs)
    crossval.main(cfg)
    out = here / "runs" / "few"
    printed = capsys.readouterr().out
    table = (out / pairs / "table.md").read_text()
    assert table in printed and "T_base" in table and "DQN slides" in table and "median" in table
    assert str(out / "final" / "best.pt").removeprefix(f"{here}/") in printed
    cache = load_cache(out / "cache" / "train")
    parts = dict(line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()[1:])
    assert sorted(parts) == NAMES and set(parts.values()) == {"0", "1"}
    found = decisions(out / pairs)
    assert all(set(events) == set(NAMES) for events in found.values()) and len(found) > 10
    keys = set()
    for part in "01":
        name = f"DQN-slides{'-all' * (pairs == 'all')}-part{part}-seed0"
        content = read_checkpoint(out / name / "best.pt")
        rest = cache.subset([name for name in NAMES if parts[name] != part])
        assert content["cache_key"] == rest.key
        keys.add(rest.key)
    assert read_checkpoint(out / "final" / "best.pt")["cache_key"] not in keys


def study_of(here: Path, out: str) -> Study:
    crossval.preprocess.main(
        crossval.PreprocessConfig(
            cache=here / out / "cache",
            split="train",
            labels=here / "labels.tsv",
            scores=here / "scores",
            pairs="all",
            workers=1,
        )
    )
    divisions = [[NAMES[:2], NAMES[2:]]]
    return Study(here / out / "cache" / "train", here / out, divisions, range(1), 1)


def test_a_clips_own_labels_decide_nothing_about_it(here, monkeypatch):
    """Other labels of a clip: every row that does not know the labels decides it as before."""
    truth = read_labels(here / "labels.tsv")
    tables, shown, tune = ["all"], set(), gate.tune_gate

    def seen(cache):
        shown.add(tuple(clip.filename for clip in cache.clips))
        return tune(cache)

    with monkeypatch.context() as patch:  # a tag gate that has seen the part need not decide else
        patch.setattr(gate, "tune_gate", seen)
        crossval.cross_validate(study_of(here, "a"), LEARNED, tables)
    assert shown == {tuple(NAMES[:2]), tuple(NAMES[2:])}
    cache, given = load_cache(here / "a" / "cache" / "train"), here / "given" / "best.pt"
    pred = systems.from_checkpoint(given, cache, EvaluateConfig())[1].pred  # of all parts at once
    found = decisions(here / "a" / "all")["given"]
    for name, events in systems.predicted_events(cache, pred).items():
        ends = [list(event[:2]) for event in events]
        assert np.array([list(e[:2]) for e in found[name]]) == pytest.approx(np.array(ends))
    moved = [Event(0.0, 2.0, "Cat")]  # other classes too, which a tag gate is tuned on
    write_labels(here / "labels.tsv", truth | {"c0.wav": moved})
    crossval.cross_validate(study_of(here, "b"), LEARNED, tables)
    changed = 0
    for queries in tables:
        one, other = (decisions(here / name / queries) for name in "ab")
        assert one.keys() == other.keys()
        for row in one:
            if "ceiling" in row:
                continue
            assert one[row]["c0.wav"] == other[row]["c0.wav"], (queries, row)
            changed += any(one[row][name] != other[row][name] for name in NAMES[2:])
    assert changed > 5


def test_rules_are_those_of_a_table_of_each_part(here, monkeypatch):
    """Behind the gate too; who is tuned for a PSDS is ranked by scores or boxes, as in a table."""
    parts = [Part("csebbs", "d_raw"), Part("median", "d_raw"), Part("threshold", "d_adj")]
    monkeypatch.setattr(tuned_rules, "PARTS", [*parts, Part("csebbs", "d_raw", True)])
    study = study_of(here, "a")
    cache, ((one, other),) = load_cache(study.cache), study.divisions
    found = {row.name: row for row in crossval.rule_rows(study, cache)}
    kinds = dict.fromkeys(("pred", "scores", "boxes"), 0)
    for test, rest in ((one, other), (other, one)):
        train, part = cache.subset(rest), cache.subset(test)
        mine = cache.of_frames(np.array([pair.filename in test for pair in cache.pairs]))
        its_gate = systems.tuned_gate(train)
        gated = gate.silenced(its_gate, train)
        with tuned_rules.tuning(train, Bandit(), "all", quiet=True, gated=gated) as tuned:
            rules = [rule for rule in tuned() if rule.name != systems.BASE]
        rows = systems.rows_of_rules(rules, part, its_gate, (), quiet=True)
        assert [(r.name, r.kind, r.gated) for r in rows] == [
            (r.name, r.kind, r.gated) for r in found.values()
        ]
        for row in rows:
            (expected,), (member,) = row.members, found[row.name].members
            assert np.array_equal(member.pred[mine], expected.pred)
            kinds["pred"] += expected.pred.any()
            if expected.scores is not None:
                assert np.array_equal(member.scores()[mine], expected.scores())
                kinds["scores"] += 1
            if expected.boxes is not None:
                assert {name: member.boxes[name] for name in test} == expected.boxes
                kinds["boxes"] += row.gated
    assert kinds["scores"] == 4 and kinds["boxes"] == 6 and kinds["pred"] > 20


def test_policies_of_several_divisions(here):
    """Each division has policies and a gate of its own, which have not seen the clips they decide;
    a policy that is given is the same in all."""
    one = study_of(here, "a")
    study = one._replace(
        divisions=[*one.divisions, [NAMES[1:3], [NAMES[0], *NAMES[3:]]]], learned=2
    )
    learned = [Learned("classifier", CLASSIFIER, "present"), LEARNED[2]]
    (_, rows) = crossval.cross_validate(study, learned, ["all"])["all"]
    found = {row.name: row for row in rows if row.kind in ("base", "policy", "supervised")}
    counts = {name: len(row.members) for name, row in found.items()}
    assert counts["T_base"] == counts["given"] == 1 and counts["classifier"] == 2
    assert counts["T_base, behind the gate"] == counts["classifier, behind the gate"] == 2
    cache = load_cache(study.cache)
    for split, parts in enumerate(study.divisions):
        seen = crossval.open_pairs(cache, parts)
        for name in ("T_base", "classifier"):
            bare = found[name].members[split if name == "classifier" else 0].pred
            behind = found[f"{name}, behind the gate"].members[split].pred
            assert np.array_equal(behind, bare & seen)
        for part, test in enumerate(parts):
            folder = study.run(learned[0], "present", part, split, split)
            rest = [name for name in NAMES if name not in test]
            known = read_checkpoint(folder / "best.pt")["cache_key"]
            assert known == cache.subset(rest).present_only().key


def test_what_is_done_is_kept(here, monkeypatch):
    study = study_of(here, "a")
    crossval.cross_validate(study, LEARNED, ["present"])
    table = (here / "a" / "present" / "table.md").read_text()
    files = {path: path.stat().st_mtime_ns for path in (here / "a").glob("*-part*/best.pt")}
    assert len(files) == 2 * 3  # the given policy learns nothing
    crossval.cross_validate(study, LEARNED, ["present"])
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (here / "a" / "present" / "table.md").read_text() == table
    other = [Learned("DQN small", replace(SMALL, passes=3)), *LEARNED[1:]]
    crossval.cross_validate(study, other, ["present"])
    again = {path for path in files if path.stat().st_mtime_ns != files[path]}
    assert again == {path for path in files if "DQN-small" in str(path)}


def test_a_training_that_a_signal_has_stopped_is_not_done(here, monkeypatch):
    (job, *_) = crossval.trainings(study_of(here, "a"), LEARNED, ["all"])
    monkeypatch.setattr(crossval.DQN, "train", lambda *_: 128 + 15)
    with pytest.raises(KeyboardInterrupt):
        crossval.train_one(job)
    assert not (job.cfg.run / crossval.MARK).exists()


def test_recordings_stay_in_one_part(here, monkeypatch):
    for work in ("cross_validate", "train_one"):  # the parts are written before
        monkeypatch.setattr(crossval, work, lambda *_: None)
    rows = [f"{name},r{i % 2}" for i, name in enumerate(NAMES)]
    (here / "clips.csv").write_text("filename,recording\n" + "\n".join(rows))
    crossval.main(config(here, "--clips", "clips.csv"))
    lines = (here / "runs" / "few" / "parts.tsv").read_text().splitlines()[1:]
    part = dict(line.split("\t") for line in lines)
    assert part["c0.wav"] == part["c2.wav"] == part["c4.wav"] != part["c1.wav"] == part["c3.wav"]


def test_more_parts_than_clips(here):
    with pytest.raises(InputError, match="cannot make"):
        crossval.main(replace(config(here), parts=6))


def test_the_fold_of_a_seed_is_the_same_as_ever():
    """studies/dcase.py's divisions: a seeded permutation, dealt like cards."""
    names = [f"{i}.wav" for i in range(20)]
    for seed in range(3):
        order = np.random.default_rng([seed, 7]).permutation(20)
        expected = [[names[i] for i in order[k::5]] for k in range(5)]
        assert crossval.draw_parts([[name] for name in names], 5, seed) == expected
