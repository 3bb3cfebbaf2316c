"""`best` over bank folds and scorers: what is said of policies whose worth is known; what is done
is skipped. Tables are evaluate.py's own, on fabricated caches; only the rules are two."""

import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import SMALLEST, write_cache

import evaluate
from baselines import tuned_rules
from comparison import clustered, scoring, systems
from config import Bandit, EvaluateConfig, Learning, TrainConfig
from core.command import parse
from core.errors import InputError
from policy import runfolder
from policy.supervised import SupervisedTrainer
from sed.caches import load_cache
from studies import benchmark, pooled, reproduce
from studies.benchmark import Setting
from studies.pooled import Claim, Study

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LABELS, NUM_CLIPS, FRAMES = ("Dog", "Speech"), 24, 60
CLIPS = [f"{i}.wav" for i in range(NUM_CLIPS)]
# So wide that a policy can do harm.
WIDE = Bandit(context=3, max_delta=0.6, boundary_width=0.6)
POLICIES = ("learned", "shuffled", "loser")
FIRST = [setting for setting in benchmark.SETTINGS if setting.scorer == 0]
RULES = [
    tuned_rules.Rule(
        f"fixed {t} on d_raw", "threshold", "d_raw", f"{t}", {"fallback": {"t": t}, "classes": {}}
    )
    for t in (0.65, 0.7)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Caches of five folds, and three policies: one that has learned, one whose
    labels were those of other pairs, one that has learned the contrary."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("pooled")
    size = {"lengths": [FRAMES] * len(LABELS) * NUM_CLIPS, "labels": LABELS, "clips": CLIPS}
    for setting in FIRST:
        rng = np.random.default_rng(setting.fold)
        cache, corpus = root / setting.cache("slides", "present"), root / setting.corpus
        for split, seed in (("train", 1), ("validation", 100)):
            write_cache(cache / split, seed=seed + setting.fold + 10 * setting.scorer, **size)
        corpus.mkdir(parents=True)
        lines = ["split\tfilename\tfold\tduration\trecordings"]
        for clip in CLIPS:
            some = sorted(rng.choice(10, 2, replace=False))
            played = ";".join(f"Dog/{setting.fold}-{i}-A.ogg" for i in some)
            lines.append(f"validation\t{clip}\t{setting.fold}\t1.2\t{played}")
        (corpus / "clips.tsv").write_text("\n".join(lines) + "\n")
    train = load_cache(root / Setting(5).cache("slides", "present") / "train")
    order = np.random.default_rng(0).permutation(len(train.pairs))
    labels = {
        "learned": train.label,
        "loser": ~train.label,
        "shuffled": train.label.reshape(-1, FRAMES)[order].ravel(),
    }
    for name, label in labels.items():
        cfg = TrainConfig(
            network=SMALLEST,
            bandit=WIDE,
            holdout=0.0,
            run=root,
            method="classifier",
            learning=Learning(lr=1e-2, frames_per_step=32),
            passes=4,
        )
        trainer = SupervisedTrainer(cfg, replace(train, label=label), CPU)
        while not trainer.done:
            trainer.tick()
        (root / name).mkdir()
        runfolder.write_checkpoint(root / name / "best.pt", trainer.policy())
    return root


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """A project of its own whose scripts run in this process; returns the commands so far."""
    commands = []

    def run(log, *command):
        commands.append([str(word) for word in command])
        if command[0] == "evaluate.py":
            evaluate.main(parse(EvaluateConfig, commands[-1][1:]))

    for name in ("cache", "data"):
        shutil.copytree(home / name, tmp_path / name)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(systems, "tuning", lambda *_, **__: nullcontext(lambda: RULES))
    return commands


def put_policy(home, name, settings):
    """The policy as both seeds of `best` in some settings."""
    for setting in settings:
        for seed in benchmark.BEST_SEEDS:
            folder = benchmark.ROOT / setting.run("best", seed)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(home / name, folder, copy_function=shutil.copy)  # as new


def judge(home, name, settings, queries="present"):
    put_policy(home, name, settings)
    for setting in settings:
        benchmark.compare_best(setting, queries)
    return pooled.study(queries)


def of_f1(study):
    return next(claim for claim in study.claims if claim.metric == "f1")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_of_known_worth(home, here, name, monkeypatch):
    drawn, draw = [], clustered.level_weights
    spy = lambda levels, seed: drawn.append(draw(levels, seed)) or drawn[-1]  # noqa: E731
    monkeypatch.setattr(clustered, "level_weights", spy)
    found = judge(home, name, FIRST)
    (timelines, recordings) = (np.stack(list(each.values())) for each in drawn)  # independent
    assert abs(np.corrcoef(timelines[:9].ravel(), recordings[:9].ravel())[0, 1]) < 0.1
    claim = of_f1(found)
    text = pooled.screen([found])
    seeds = "seeds of scorer and policy 0 and 0 in 5, 0 and 1 in 5"
    assert f"5 of 5 bank folds (1, 2, 3, 4 and 5), {seeds}" in text
    said = {"learned": {"beats"}, "loser": {"loses to"}}
    assert claim.told in said.get(name, {"loses to", "cannot be told from"})
    if name != "learned":
        assert not any(each.told == "beats" for each in found.claims)
    assert f"**F1, present pairs**: `best` {claim.told} fixed 0" in text
    assert "the scores of 1 of 2 scorers are complete" in text
    if name == "loser":
        assert (
            "is below zero over all 5 bank folds pooled, above zero in 0 of 5, below in 5" in text
        )
    gains = [claim.folds[fold][0] for fold in range(1, 6)]
    assert claim.whole[0] == pytest.approx(np.mean(gains))
    values = [[member["f1"] for member in table.rows["best"]["members"]] for table in found.tables]
    assert found.rows["best"]["f1"] == pytest.approx(np.mean(values))
    assert found.rows["best"]["std"]["f1"] == 0  # both seeds are one policy
    assert claim.rule == max((rule.name for rule in RULES), key=lambda rule: found.rows[rule]["f1"])


def test_folds_left_out_are_counted_and_claim_nothing(home, here):
    found = judge(home, "learned", FIRST[:4])
    assert len(of_f1(found).folds) == 4
    text = pooled.screen([found])
    assert text.count("no claim, 4 of 5 bank folds are judged. So far `best` minus") == 5
    assert not re.search("beats|loses to|cannot be told", text)


def study_of(folds, of_scorer):
    """A study of F1 with these intervals by fold, pooled and of each scorer."""

    def claim(some):
        ends = {fold: [sum(each) / 2, *each] for fold, each in some.items()}
        low, high = np.mean(list(some.values()), axis=0)
        return Claim("f1", "a rule", [(low + high) / 2, low, high], ends)

    each = {scorer: [claim(some)] for scorer, some in of_scorer.items()}
    rows = {"a rule": {"f1": 0.5}}
    return Study("present", [], rows, {"f1": "a rule"}, [claim(folds)], each)


ABOVE, BELOW = (0.01, 0.03), (-0.03, -0.01)
ALL = range(1, 6)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (dict.fromkeys(ALL, ABOVE), "the scores of each scorer alone say the same"),
        (dict.fromkeys(ALL, BELOW), "the scorer changes it, those of scorer 1 alone: loses to"),
        (dict.fromkeys((5, 4), BELOW), "the scores of 1 of 2 scorers are complete"),
    ],
)
def test_a_scorer_that_changes_the_verdict_is_named(second, said):
    whole = dict.fromkeys(ALL, ABOVE)
    study = study_of(whole, {0: whole, 1: second})
    assert pooled.sentence(study.claims[0], study) == (
        "**F1, present pairs**: `best` beats a rule (50.00): +2.00 [+1.00, +3.00] points. The"
        f" interval is above zero over all 5 bank folds pooled, above zero in 5 of 5; {said}."
    )


def test_each_scorer_speaks_for_itself(monkeypatch):
    """Claims of one scorer are of its own settings, in every metric; the pooled ones of all."""
    metrics = pooled.COLUMNS["present"]
    rows = {"a rule": {"kind": "rule", **dict.fromkeys(metrics, 0.5)}}

    def draws(setting):
        return dict.fromkeys(metrics, np.full(4, 0.01 * setting.fold + 0.1 * setting.scorer))

    changes = {"a rule": {setting: draws(setting) for setting in benchmark.SETTINGS}}
    given = {"read_tables": [], "pooled_rows": rows, "differences": changes}
    for name, value in given.items():
        monkeypatch.setattr(pooled, name, lambda *_, value=value: value)
    found = pooled.study("present")
    assert [claim.whole[0] for claim in found.claims] == pytest.approx([0.08] * len(metrics))
    for scorer, claims in found.of_scorer.items():
        mean = 0.03 + 0.1 * scorer
        assert [claim.whole[0] for claim in claims] == pytest.approx([mean] * len(metrics))
        assert [each[0] for each in claims[0].folds.values()] == pytest.approx(
            [0.01 * fold + 0.1 * scorer for fold in range(1, 6)]
        )
    assert list(found.of_scorer) == [0, 1]


def test_pieces_of_a_recording_are_the_same_one(tmp_path):
    rows = ["split\tfilename\trecordings", "train\t0.flac\tDog/1-7-A.ogg"]
    rows += [
        "validation\t0.flac\tDog/5-7-A.ogg;Dog/5-7-B.ogg;Rain/5-7-A.ogg",
        "validation\t1.flac\t",
    ]
    (tmp_path / "clips.tsv").write_text("\n".join(rows[:3]) + "\n")
    played = pooled.recordings_of(tmp_path, "validation")
    assert played == {"0.flac": ["Dog/5-7", "Dog/5-7", "Rain/5-7"]}
    (tmp_path / "clips.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="recordings"):
        pooled.recordings_of(tmp_path, "validation")


def test_mean_and_spread_over_settings():
    """Folds weigh the same, whatever has been judged of them; spread is that within a fold."""
    values = {Setting(5): [1.0, 3.0], Setting(5, 1): [5.0, 7.0], Setting(4): [10.0, 12.0]}
    means = {key: sum(some) / 2 for key, some in values.items()}
    assert pooled.over_settings(means) == ((2 + 6) / 2 + 11) / 2
    expected = ((np.var([1, 3, 5, 7], ddof=1) + np.var([10, 12], ddof=1)) / 2) ** 0.5
    assert pooled.spread_of(values) == pytest.approx(expected)
    assert pooled.spread_of({Setting(5): [1.0], Setting(4): [3.0]}) is None


def test_what_is_finished_is_skipped(home, here, monkeypatch):
    judge(home, "learned", FIRST[:2])
    assert len(here) == 2
    for setting in FIRST[:2]:
        benchmark.compare_best(setting, "present")
    assert len(here) == 2
    changed = benchmark.ROOT / FIRST[1].run("best", 1) / "best.pt"
    table = benchmark.ROOT / FIRST[1].table("present") / "results.json"
    os.utime(changed, (table.stat().st_mtime + 5,) * 2)
    for setting in FIRST[:2]:
        benchmark.compare_best(setting, "present")
    assert len(here) == 3 and FIRST[1].table("present") in here[-1]
    cache, other = (benchmark.ROOT / each.cache("slides", "present") for each in FIRST[1:3])
    (cache / "train").rename(cache / "gone")
    shutil.copytree(other / "train", cache / "train")  # rules were tuned on others
    for setting in FIRST[:2]:
        benchmark.compare_best(setting, "present")
    assert len(here) == 4 and FIRST[1].table("present") in here[-1]
    monkeypatch.setattr(systems, "LIST", systems.LIST + 1)
    benchmark.compare_best(FIRST[0], "present")
    assert len(here) == 5 and FIRST[0].table("present") in here[-1]


def test_a_table_of_other_decisions_is_refused(home, here):
    judge(home, "learned", FIRST[:1])
    put_policy(home, "loser", FIRST[:1])
    with pytest.raises(InputError, match="not made of the decisions that are stored now"):
        pooled.study("present")


def test_both_places_are_written(home, here, monkeypatch):
    """RESULTS.md between its marks, docs/results/best.md below its title; all pairs with PSDS."""
    root = benchmark.ROOT
    setting = FIRST[0]
    size = {"lengths": [FRAMES] * len(LABELS) * NUM_CLIPS, "labels": LABELS, "clips": CLIPS}
    for split, seed in (("train", 1), ("validation", 100)):
        cache = root / setting.cache("slides", "all") / split
        write_cache(cache, seed=seed, absent=(0, 3, 8), **size)
    judge(home, "learned", [setting])
    monkeypatch.setattr(pooled, "PSDS_DRAWS", 20)
    judge(home, "learned", [setting], "all")
    (root / "RESULTS.md").write_text("a\n<!-- begin best -->\nstale\n<!-- end best -->\nz\n")
    (root / "docs" / "results" / "best.md").write_text("# Title\n\nWords.\n\n## Stale\n")
    reproduce.write_table("best")
    results = (root / "RESULTS.md").read_text()
    page = (root / "docs" / "results" / "best.md").read_text()
    assert results.startswith("a\n<!-- begin best -->\nAll pairs: 1 of 5 bank folds (5), seeds of")
    assert results.endswith("<!-- end best -->\nz\n") and "stale" not in results
    assert page.startswith("# Title\n\nWords.\n\n## `best`") and "Stale" not in page
    screen = results.partition("-->\n")[2].partition("\n<!-- end")[0]
    assert screen in page
    assert re.search(
        r"^- \*\*PSDS 1, all pairs\*\*: no claim, .*points; the interval", screen, re.M
    )
    assert re.search(r"Made until \d{4}-\d\d-\d\d on \w.*; suite .*, torch .*, numpy", screen)
    for rule in RULES:
        assert f"| {rule.name} |" in page
    lines = [line for line in screen.splitlines() if line.startswith("| ")]
    header = lines[0].split(" | ")
    rows = [
        line.split(" | ") for line in lines[1 : lines.index(next(x for x in lines if "minus" in x))]
    ]
    values = [
        [float(cell.strip("*| ").split(" ")[0].strip("*")) for cell in row[1:]] for row in rows
    ]
    assert len(header) == 7 and [row[0] for row in values] == sorted(row[0] for row in values)[::-1]
    for column in range(6):
        bold = {
            row[column] for row, line in zip(values, rows, strict=True) if "**" in line[column + 1]
        }
        assert bold == {max(row[column] for row in values)}


def test_the_plan(monkeypatch, tmp_path):
    """Every fold and scorer for `best`, and five settings of other timelines; the slides' rows on
    two folds; names are these."""
    done = []
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "PROCESSES", 1)
    monkeypatch.setattr(benchmark, "run", lambda log, *words: done.append([*map(str, words)]))
    for name in ("esc10", "desed_timelines"):
        (tmp_path / name).mkdir()
    benchmark.main([str(tmp_path)])
    scripts = [words[0] for words in done]
    count = {name: scripts.count(name) for name in set(scripts)}
    assert count == {
        "soundscapes.py": 10 + 5,
        "scorers.py": 10 + 5,
        "preprocess.py": 10 * 2 + 5 + 2 * 4,
        "DQN.py": 10 * 2 + 5 + 2 * 4 * 3,
        "evaluate.py": 10 * 2 + 5 + 2 * 2,
    }
    made = {words[words.index("--cache") + 1] for words in done if words[0] == "preprocess.py"}
    asked = {
        words[words.index("--cache") + 1] for words in done if words[0] in ("DQN.py", "evaluate.py")
    }
    assert asked <= made
    assert {"cache/esc10-fold3-slides-all", "cache/esc10-fold1-scorer1-slides-present"} <= made
    runs = {words[words.index("--run") + 1] for words in done if words[0] == "DQN.py"}
    assert {"runs/bench5-best-0", "runs/bench1-scorer1-best-1", "runs/bench4-slides-2"} <= runs
    for words in done:
        if words[0] == "DQN.py":
            parse(TrainConfig, words[1:])
        if words[0] == "scorers.py":
            corpus, seed = words[words.index("--corpus") + 1], words[words.index("--seed") + 1]
            assert ("-scorer1" in corpus) == (seed == "1")
        if words[0] == "evaluate.py":
            paths = [p for w in words for p in re.findall(r"runs/bench[\w-]+", w)]
            assert set(paths) <= runs and paths


def test_every_part_has_its_place():
    """A page of docs/results with a section, or two marks in RESULTS.md; a mark that is gone is
    said, and nothing is written."""
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for name in (pooled.BEST, *reproduce.TABLES):
        page = ROOT / "docs" / "results" / f"{name}.md"
        if page.exists():
            assert "\n## " in page.read_text(encoding="utf-8")
        if name == pooled.BEST or not page.exists():
            assert text.index(f"<!-- begin {name} -->\n") < text.index(f"<!-- end {name} -->")


@pytest.mark.parametrize("text", ["a\n", "a\n<!-- begin x -->\nb\n", "a\n<!-- end x -->\nb\n"])
def test_a_mark_that_is_gone(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(InputError, match="put it back"):
        reproduce.put(path, "table", "<!-- begin x -->\n", "<!-- end x -->")
    assert path.read_text() == text


def test_matched_timelines(home, here):
    """Both settings side by side, the better rule of each column, then every row of the matched."""
    size = {"lengths": [FRAMES] * len(LABELS) * NUM_CLIPS, "labels": LABELS, "clips": CLIPS}
    for setting in (Setting(5), Setting(5, 0, "matched")):
        for split, seed in (("train", 1), ("validation", 100)):
            cache = benchmark.ROOT / setting.cache("slides", "all") / split
            write_cache(cache, seed=seed, absent=(0, 3, 8), **size)
        put_policy(home, "learned", [setting])
        benchmark.compare_best(setting, "all")
    text = reproduce.matched_table()
    for line in ("`best`, usual", "best rule, usual", "difference, matched"):
        assert f"| {line} |" in text
    table = reproduce.results_of("table-best-fold5-matched-all")
    row = next(row for row in table["entrants"] if row["name"] == "best")
    assert f"| `best`, matched | {100 * row['mean']['macro_f1']:.2f} |" in text
    assert scoring.markdown(table) in text
