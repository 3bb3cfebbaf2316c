"""The suite before beside today's: out of the history, on today's files, or not measured."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from benchmarks import before, simulate_cache, speed
from benchmarks.before import NOW, Before, Spent
from core.errors import InputError

HISTORY = ("git", "-C", before.ROOT, "show")


class Recorded(Before):
    """Runs nothing; knows what it was asked to run."""

    def spent(self, *command, code=0):
        calls.append([str(part) for part in command])
        return Spent(6.0, 7.0, "5.5 100", 5.0)


calls: list[list[str]] = []


@pytest.fixture
def suite(tmp_path):
    calls.clear()
    return Recorded(tmp_path / "suite", tmp_path / "suite" / "python")


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("before") / "cache"
    given = {"train_pairs": 9, "validation_pairs": 5, "frames": 20, "workers": 1}
    simulate_cache.main(simulate_cache.SimulateConfig(out=out, **given))
    return out / "train"


# ---------------------------------------------------------------------------- out of the history


def test_without_the_commit_a_line_says_so_and_cells_stay_empty(tmp_path, monkeypatch, capsys):
    """No repository, as in the container, or a shallow one."""
    monkeypatch.setattr(before, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    cells = [before.was(tmp_path / "out", lambda suite: 1 / 0, str) for _ in range(2)]
    assert cells == ["not measured", "not measured"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("before: not measured: commit 9bb5d10 ") and "git" in line
    assert not list((tmp_path / "out").rglob("*"))


def test_a_trial_fetches_nothing(monkeypatch, capsys):
    monkeypatch.setattr(before, "set_up", lambda out: 1 / 0)
    assert speed.SpeedConfig(quick=True).before is None
    assert before.was(None, lambda suite: 1 / 0, str) == "not measured"
    assert capsys.readouterr().out == ""


def fake_runs(monkeypatch, fails: str) -> list[list[str]]:
    """Commands that the set-up runs, one of which fails."""
    asked, packed = [], io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("DQN.py", "")

    def ran(*command):
        asked.append([str(part) for part in command])
        if fails in asked[-1]:
            raise InputError(f"{fails} failed: no network")
        return packed.getvalue()

    monkeypatch.setattr(before, "ran", ran)
    return asked


def test_it_is_made_once_whole(tmp_path, monkeypatch):
    asked = fake_runs(monkeypatch, fails="nothing")
    monkeypatch.setattr(Before, "spent", lambda suite, *command: asked.append([*command]))
    suite = before.set_up(tmp_path)
    assert (suite.root / "DQN.py").exists() and suite.root.parent == tmp_path / "before"
    assert asked[0][0] == "git" and asked[0][-1] == before.COMMIT
    (pip,) = (command for command in asked if "pip" in command)
    assert [Path(part).name for part in pip if part.endswith(".txt")] == [
        "requirements.txt",
        "requirements-eval.txt",
    ]
    count = len(asked)
    assert before.set_up(tmp_path) == suite and len(asked) == count


def test_or_not_at_all(tmp_path, monkeypatch):
    fake_runs(monkeypatch, fails="pip")
    with pytest.raises(InputError, match="pip failed: no network"):
        before.set_up(tmp_path)
    assert not list((tmp_path / "before").iterdir())


def test_what_fails_is_a_cell_less(tmp_path, monkeypatch, capsys, suite):
    monkeypatch.setattr(before, "suite_before", lambda out: suite)
    say = before.against(0.25, "s")
    assert before.was(tmp_path, lambda given: given.spent("x").cpu, say) == "6.0 s (24 x now)"

    def fail(suite):
        raise InputError("no such flag")

    assert before.was(tmp_path, fail, say) == "not measured"
    assert "before: no such flag" in capsys.readouterr().out


def test_a_command_that_fails_is_named():
    with pytest.raises(InputError, match="cannot be run"):
        before.ran("no-such-program")
    with pytest.raises(InputError, match="failed: no word"):
        before.ran(NOW.python, "-c", "raise SystemExit(1)")


# ---------------------------------------------------------------------------- told in its own words


def test_names_are_those_of_that_commit():
    try:
        texts = {name: before.ran(*HISTORY, f"{before.COMMIT}:{name}.py").decode() for name in OLD}
    except InputError:
        pytest.skip("this checkout lacks the history")
    for name, asked in OLD.items():
        for one in asked:
            assert re.search(rf"^(def|class) {one}\b", texts[name], re.M), one


OLD = {
    "preprocess": ["load_cache"],
    "metrics": ["bootstrap_mean"],
    "timeline": ["Event"],
    "config": ["TrainConfig", "with_preset"],
    "dense": ["DenseTrainer", "greedy"],
    "event_metrics": ["event_counts", "segment_counts", "intersection_counts"],
}


def test_code_gets_the_names_of_then(suite):
    suite.numbers("from sed.caches import load_cache\nfrom sed.timeline import Event\n", "a")
    assert calls == [["-c", "from preprocess import load_cache\nfrom timeline import Event\n", "a"]]


def test_a_cache_is_the_same_shards_with_pairs_of_then(suite, split, tmp_path):
    folder = suite.cache(split, tmp_path / "older")
    now, then = (json.loads((each / "manifest.json").read_text()) for each in (split, folder))
    assert all(len(pair) == 4 for shard in then["shards"] for pair in shard["pairs"])
    assert [shard["sha256"] for shard in then["shards"]] == [s["sha256"] for s in now["shards"]]
    for shard in then["shards"]:
        assert (folder / shard["file"]).read_bytes() == (split / shard["file"]).read_bytes()
    assert "loudness" in now["signal"] and "loudness" not in then["signal"]
    assert NOW.cache(split, tmp_path / "unused") == split.resolve()


def test_its_policy_is_trained_once(suite, split, tmp_path):
    for name in ("cache", "cache-all"):
        (tmp_path / name).symlink_to(split.parent)
    demo = suite.demo(tmp_path)
    assert demo == suite.demo(tmp_path) and len(calls) == 1
    assert calls[0][:3] == ["DQN.py", "--preset", "demo"]
    assert (demo / "cache-all" / "validation" / "manifest.json").exists()


def test_its_commands_are_those_of_today_on_its_own_files(suite, split, tmp_path):
    for name in ("cache", "cache-all"):
        (tmp_path / name).symlink_to(split.parent)
    home = suite.demo(tmp_path)
    calls.clear()
    speed.slowest(["DQN.py"], "--status", tmp_path, 1, suite)
    speed.table(tmp_path, suite)
    assert speed.each_file(tmp_path, tmp_path, 20, suite) == 0
    status, table, few, many = (" ".join(call) for call in calls)
    assert status == f"DQN.py --status {home}/run"
    assert table.startswith(f"evaluate.py --cache {home}/cache-all --compare DQN={home}/run rules")
    assert f"--policy {home}/run/best.pt --scorer {tmp_path}/data/scorer.pt" in few
    assert "--overwrite" not in many and f"--audio {tmp_path}/many" in many


def test_todays_suite_counts_the_same_events(tmp_path):
    event = [1.0, 2.0, "Cat"]
    sides = [{"a.wav": [event], "b.wav": []}] * 2
    seconds = speed.counted(sides, {"a.wav": 10.0, "b.wav": 10.0}, ["Cat", "Dog"], 2, NOW)
    assert 0 < seconds < 10


def test_processes_are_measured():
    assert NOW.numbers("print('x'); print(1, 2.5)") == [1.0, 2.5]
    with pytest.raises(InputError, match="failed: no"):
        NOW.spent("-c", "raise SystemExit('no')")
    assert NOW.spent("-c", "raise SystemExit(2)", code=2).cpu > 0
