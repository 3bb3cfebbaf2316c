"""Cross-validation: nobody decides a clip that it has seen; one command; what is done is kept."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_docs_scores import blocks
from test_forms import NAMES, write_corpus

from config import PRETRAINED, Events, Network, TrainConfig
from core.command import parse
from core.errors import InputError
from policy.event_policy import EventTrainer
from policy.runfolder import read_checkpoint
from sed.caches import load_cache
from sed.labels import read_labels
from sed.timeline import write_labels
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


def test_a_clips_own_labels_decide_nothing_about_it(here):
    """Other labels of a clip: every row that does not know the labels decides it as before."""
    truth = read_labels(here / "labels.tsv")
    tables = ["all"]
    crossval.cross_validate(study_of(here, "a"), LEARNED, tables)
    classes = {event.event_label for event in truth["c0.wav"]}
    moved = [e._replace(onset=0.0, offset=2.0) for e in truth["c0.wav"]]
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
    assert classes and changed > 5


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


def test_recordings_stay_in_one_part(here):
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
