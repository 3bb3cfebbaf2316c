"""Cross-validation of the denoising study: what a round may see, looked-up chains, the table."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("pystoi")
pytest.importorskip("pywt")

from core.command import parse
from core.errors import InputError
from studies.denoise import commands, cross, data, environment
from studies.denoise.environment import JOINT
from studies.denoise.settings import COMMANDS, CrossConfig, FeaturesConfig, MixConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> environment.Corpus:
    """Two clips of each of 20 built-in speakers with each of 5 folds would take long: 3 x 2 x 2."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cells") / "cells"
    speech, all_noise = data.list_speech(None), data.list_bank
    with pytest.MonkeyPatch.context() as patch:
        few = {name: speech[name] for name in ("11", "12", "23")}
        patch.setattr(data, "list_speech", lambda _: few)
        patch.setattr(data, "list_bank", lambda *a: [n for n in all_noise(*a) if n.fold < 3])
        data.mix(MixConfig(out=folder, cells=2, join=1))
    data.write_features(FeaturesConfig(meta=(folder / "meta.csv",)))
    return environment.load_corpus(folder / "features.csv"), folder / "features.csv"


def run(args: list[str]) -> None:
    commands.main(parse(COMMANDS, args))


@pytest.fixture(scope="module")
def search(corpus, tmp_path_factory) -> cross.Search:
    return cross.Search(corpus[0], CrossConfig(max_steps=2), tmp_path_factory.mktemp("search"))


def test_a_round_hears_neither_speaker_nor_fold(corpus):
    rounds = cross.rounds_of(corpus[0], "all")
    assert len(rounds) == len({one.name for one in rounds}) == 6
    rows = [clip.row for clip in corpus[0].clips]
    assert sorted(np.concatenate([one.test for one in rounds])) == list(range(len(rows)))
    for one in rounds:
        assert {rows[i]["speaker_id"] for i in one.test} == {one.speaker}
        assert {rows[i]["fold"] for i in one.test} == {one.fold}
        assert one.speaker not in {rows[i]["speaker_id"] for i in one.train}
        assert one.fold not in {rows[i]["fold"] for i in one.train}
        heard = {rows[i]["noise_source"] for i in one.train}
        assert not heard & {rows[i]["noise_source"] for i in one.test}
    diagonal = cross.rounds_of(corpus[0], "diagonal")
    assert len({one.speaker for one in diagonal}) == 3 and {one.fold for one in diagonal} == {
        "1",
        "2",
    }


def test_looked_up_gains_are_what_the_environment_pays(corpus, search):
    gains = search.gains(())
    assert gains.shape == (12, len(JOINT) - 1)
    again = cross.Search(search.corpus, search.task, search.folder).gains(())
    assert np.array_equal(again, gains)  # from the file
    chain, place = (7, 20), 3
    lanes = environment.Lanes(corpus[0], search.task, 1, environment.AS_IT_IS)
    lanes.start(0, place)
    actions = [environment.read_actions("ppo", np.array([action])) for action in chain]
    paid = [float(lanes.tick(*action)[0][0]) for action in actions]
    assert paid[0] == pytest.approx(gains[place, 7], abs=1e-3)
    assert sum(paid) == pytest.approx(search.gains((7,))[place, 20], abs=1e-3)


def test_the_constant_chain_is_the_best_on_the_training_clips_only(search):
    rows = np.arange(6)
    chain = search.best_constant(rows)
    means = search.gains(())[rows].mean(0)
    assert chain[:1] == ((int(means.argmax()),) if means.max() > 0 else ())
    spoiled = cross.Search(search.corpus, search.task, search.folder)
    for prefix in list(search.known):
        spoiled.known[prefix] = search.gains(prefix).copy()
        spoiled.known[prefix][6:] = 1000 * np.random.default_rng(0).standard_normal(
            (6, len(JOINT) - 1)
        )
    assert spoiled.best_constant(rows) == chain


def test_complementary_columns_beat_the_best_ones():
    gains = np.array([[1.0, 0.9, -5.0], [1.0, 0.9, -5.0], [-5.0, -5.0, 0.5]])
    assert cross.complementary(gains, 2) == [0, 2]


def test_what_nobody_gains_from_is_left_alone():
    values = np.array([[0.2, 0.1], [-0.1, -0.2], [-0.3, 0.4]])
    chains = cross.chosen([(0,), (5, 6)], values, np.array([0, 1, 2]))
    assert chains == [[JOINT[0]], [], [JOINT[5], JOINT[6]]]


def test_the_selector_learns_from_the_training_rows(corpus):
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((80, 5))
    gains = np.stack([seen[:, 0], -seen[:, 0]], 1)
    train = np.arange(60)
    gains[60:] *= -1  # what is held out says the contrary, and is not listened to
    found = cross.predicted(seen, gains, train)
    assert np.corrcoef(found[60:, 0], seen[60:, 0])[0, 1] > 0.8


def test_intervals_are_students_over_speakers():
    values = np.array([1.0, 3.0, 5.0, 5.0, 9.0])
    mean, low, high = cross.over_speakers(values, np.array(["a", "a", "b", "b", "c"]))
    assert mean == pytest.approx(np.mean([2.0, 5.0, 9.0]))
    half = 4.302653 * np.std([2.0, 5.0, 9.0], ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=1e-4)


def row(name: str, gains: dict[str, list[float]], curve: dict[str, list[float]] | None = None):
    """A row with a round for each speaker; two looks where it has a curve."""
    results = {}
    for who, some in gains.items():
        one = cross.Round(who, "1", np.arange(0), np.arange(len(some)))
        looks = list(zip((10, 20), (curve or {}).get(who, ()), strict=False))
        scores, chains = np.zeros((len(some), 3)), [[]] * len(some)
        results[who] = cross.Result(one, np.array(some), scores, chains, np.array(looks))
    return cross.Row(name, results)


def test_rows_are_compared_on_the_rounds_that_both_have():
    chain = row("constant chain", {"a": [1.0, 3.0], "b": [0.5], "c": [9.0]})
    agent = row("ppo", {"c": [10.0], "a": [1.0, 2.0]}, {"c": [8.0, 10.0], "a": [1.5, 1.5]})
    gap, speaker = cross.against(agent, chain)
    assert gap.tolist() == [1.0, 0.0, -1.0] and speaker.tolist() == ["c", "a", "a"]
    steps, means, low, high = cross.learning(agent, chain)
    assert steps.tolist() == [10, 20] and means.tolist() == [-0.75, 0.25]
    assert (low < means).all() and (means < high).all()
    other = row("td3", {"b": [7.0]}, {"b": [1.0, 7.0]})
    assert not len(cross.against(agent, other)[0])


def test_agents_are_told_apart_from_each_other(corpus):
    rows = [
        row(name, {"a": [g], "b": [g + 1]})
        for name, g in zip(cross.YARDSTICKS, range(5), strict=True)
    ]
    rows += [row("ppo", {"a": [2.0], "b": [3.01]}), row("sac", {"a": [1.0], "b": [1.99]})]
    text = cross.told(rows, CrossConfig(), corpus[0])
    assert "- sac: worse than ppo (-1.010 [-1.137, -0.883])" in text
    assert "- ppo: better than constant chain (+2.005 [+1.941, +2.069])" in text


def test_too_few_steps_are_refused_before_anything_is_measured(corpus, tmp_path):
    given = ["cross", "--features", str(corpus[1]), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--total-steps must be at least one rollout, 256"):
        run([*given, "--agents", "ppo", "--total-steps", "100"])
    assert not (tmp_path / "out" / "search").exists()


@pytest.mark.slow  # a minute
def test_cross_validates_and_goes_on(corpus, tmp_path, capsys):
    given = ["cross", "--features", str(corpus[1]), "--out", str(tmp_path / "out")]
    rounds = cross.rounds_of(corpus[0], "diagonal")
    given += ["--total-steps", "256", "--eval-every", "256", "--rounds", "diagonal"]
    given += ["--max-steps", "2", "--kept", "3", "--agents", "ppo", "td3"]
    run(given)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    for name in (*cross.YARDSTICKS, "ppo", "td3"):
        assert f"| {name} | 3 |" in table
    assert (tmp_path / "out" / "cross.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"]["constant chain"]["minus_constant"][0] == 0
    known, search = (results["rows"][name]["gain"][0] for name in (cross.KNOWN, cross.SEARCH))
    assert search >= known - 0.1 >= results["rows"][cross.CONSTANT]["gain"][0] - 0.2
    files = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.rglob("*.json")
        if path.parent.name != "out"
    }
    run([*given, "--present"])
    assert all(path.stat().st_mtime_ns == when for path, when in files.items())
    with pytest.raises(InputError, match="other settings"):
        run([*given[: given.index("--kept")], "--kept", "2", "--agents", "ppo"])
    path = tmp_path / "out" / rounds[0].name / "ppo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"curve": [[256, 9.0]]}))
    with pytest.raises(InputError, match="checksum"):
        run([*given, "--present"])


def test_folders_of_others_are_left_alone(corpus, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years")
    given = ["cross", "--features", str(corpus[1]), "--agents", "ppo", "--out"]
    for out in (tmp_path / "theirs", corpus[1].parent):
        before = sorted(out.rglob("*"))
        with pytest.raises(InputError, match="--out"):
            run([*given, str(out)])
        assert sorted(out.rglob("*")) == before


def test_tables_without_folds_are_refused(tmp_path, corpus):
    clips = [clip._replace(row={**clip.row, "fold": ""}) for clip in corpus[0].clips]
    with pytest.raises(InputError, match="mix --cells"):
        cross.rounds_of(corpus[0]._replace(clips=clips), "all")


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({("11", "1"), ("12", "1"), ("12", "2")}, "no clip of speaker 11 and fold 2"),
        ({("11", "1"), ("11", "2"), ("12", "1")}, "no clip without speaker 11 and fold 1"),
    ],
)
def test_a_round_without_clips_is_refused(kept, said, corpus):
    """As of a split of `mix`, which is no table of cells."""
    clips = [c for c in corpus[0].clips if (c.row["speaker_id"], c.row["fold"]) in kept]
    with pytest.raises(InputError, match=f"--features: {said}; make the clips with `mix --cells`"):
        cross.rounds_of(corpus[0]._replace(clips=clips), "all")
