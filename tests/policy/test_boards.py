"""TensorBoard and Weights & Biases: optional, and the same curves as in the reward history."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from corpora import write_cache

from config import Learning, Network, TrainConfig
from core.errors import InputError
from DQN import main
from policy import runfolder

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55])
    return tmp_path


def config(**changes) -> TrainConfig:
    learning = Learning(lanes=4, batch=8, train_start=8, lr=3e-3)
    base = {"run": Path("runs/a"), "network": Network(hidden=8, heads=2), "learning": learning}
    return TrainConfig(**(base | {"passes": 2, "device": "cpu"} | changes))


def test_without_its_package_nothing_is_begun(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--wandb-project needs wandb; run: pip install wandb"):
        main(config(wandb_project="x"))
    assert not Path("runs/a/config.json").exists()


def test_a_refused_project_is_one_line_and_nothing_is_begun(folder, monkeypatch):
    class Refused(Exception):
        pass

    def init(**_):
        raise Refused("no key\nmore")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Refused))
    with pytest.raises(InputError, match=r"--wandb-project x: no key; .*WANDB_MODE=offline"):
        main(config(wandb_project="x"))
    assert not Path("runs/a/config.json").exists()


def test_a_run_gets_the_rows_of_the_history(folder, monkeypatch):
    """Also of a resumed training, whose second run goes on where the first one ended."""
    begun, rows, ended = [], [], []

    def init(**given):
        begun.append(given)
        add = lambda values, step: rows.append((step, values))  # noqa: E731
        return types.SimpleNamespace(log=add, finish=lambda: ended.append(len(rows)))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=OSError))
    main(config(wandb_project="x"))
    main(config(wandb_project="x", passes=3, resume=True))
    history = runfolder.read_history(Path("runs/a"))
    assert [(one["project"], one["group"]) for one in begun] == [("x", "a")] * 2
    assert [step for step, _ in rows] == list(range(len(history["Episode"])))
    assert 0 < ended[0] < ended[1] == len(rows)
    for name, values in history.items():
        logged = [row[f"train/{name}"] for _, row in rows]
        np.testing.assert_allclose(logged, values, rtol=1e-5)


READ = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(sys.argv[1])
board.Reload()
for tag in board.Tags()["scalars"]:
    for event in board.Scalars(tag):
        print(tag, event.step, event.value)
"""


@pytest.mark.slow
def test_with_the_packages_installed(folder):
    """`pip install tensorboard wandb`, a training, a resumption; then both hold the history."""
    site = folder / "site"
    pins = ["-q", "--target", site, "-c", ROOT / "requirements.txt"]
    command = [sys.executable, "-m", "pip", "install", *pins, "tensorboard", "wandb"]
    subprocess.run(command, check=True)
    environ = os.environ | {"PYTHONPATH": str(site), "WANDB_MODE": "offline"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environ, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    flags = ["--network.hidden", "8", "--network.heads", "2", "--learning.lanes", "4"]
    flags += ["--learning.batch", "8", "--learning.train-start", "8", "--device", "cpu"]
    flags += ["--run", "runs/a", "--wandb-project", "x"]
    run(str(ROOT / "DQN.py"), *flags, "--passes", "2")
    run(str(ROOT / "DQN.py"), *flags, "--passes", "3", "--resume")
    history = runfolder.read_history(Path("runs/a"))
    found: dict[str, dict[int, float]] = {}
    for line in run("-c", READ, "runs/a/tensorboard").splitlines():
        tag, step, value = line.split()
        found.setdefault(tag, {})[int(step)] = float(value)
    assert set(found) == {f"train/{name}" for name in runfolder.HISTORY[1:]}
    for name in runfolder.HISTORY[1:]:
        logged = [found[f"train/{name}"][int(episode)] for episode in history["Episode"]]
        np.testing.assert_allclose(logged, history[name], rtol=1e-5)
    kept = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 2 and all(b"train/Reward" in path.read_bytes() for path in kept)
