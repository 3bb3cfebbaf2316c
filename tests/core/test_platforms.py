"""macOS and Windows, as far as Linux can show it: all scripts without the functions they lack."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import write_cache

from core import processes
from scores.score_files import write_scores
from sed.timeline import Event, frame_edges, write_labels

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = 8_000

# Takes away what a system lacks, then runs scripts one after the other: `NAME FLAG.. + NAME FLAG..`
ELSEWHERE = """
import os, runpy, select, signal, sys
kind, root, *words = sys.argv[1:]
missing = {os: ["sched_getaffinity", "sched_setaffinity", "pidfd_open", "memfd_create"]}
if kind == "windows":
    missing[os] += ["sched_yield", "getuid", "geteuid", "getloadavg", "killpg", "getpgid"]
    missing[signal] = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT"]
    missing[select] = ["poll"]
    for name in ("resource", "termios", "pwd", "grp"):
        sys.modules[name] = None
    real = os.open
    def no_folders(path, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)
    os.open = no_folders
for module, names in missing.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.path.insert(0, root)
while words:
    end = words.index("+") if "+" in words else len(words)
    sys.argv, words = words[:end], words[end + 1 :]
    try:
        runpy.run_path(os.path.join(root, sys.argv[0]), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    print(f"finished: {sys.argv[0]}")
"""


def write_inputs(folder: Path) -> None:
    """Two clips of a second with labels and scores, and caches to train and evaluate on."""
    rng, events, edges = np.random.default_rng(0), {}, frame_edges(50, 0.02)
    for name in ("audio", "scores"):
        (folder / name).mkdir()
    for clip in ("a", "b"):
        soundfile.write(folder / "audio" / f"{clip}.wav", rng.normal(0, 0.1, RATE), RATE)
        write_scores(folder / "scores" / f"{clip}.tsv", edges, ["Dog"], rng.random((1, 50)))
        events[f"{clip}.wav"] = [Event(0.2, 0.6, "Dog")]
    write_labels(folder / "labels.tsv", events)
    for split in ("train", "validation"):
        write_cache(folder / "cache" / split, [90] * 8)


@pytest.mark.parametrize("kind", ["macos", "windows"])
def test_the_whole_path_without_what_linux_alone_has(tmp_path, kind):
    write_inputs(tmp_path)
    layers = "--network.tcn-layers 1 --network.gru-layers 1 --network.transformer-layers 1"
    small = f"--network.hidden 8 {layers} --learning.train-start 64 --device cpu"
    scripts = [
        "preprocess.py --cache own --split train --labels labels.tsv --audio audio --scores scores",
        f"DQN.py --cache cache --run run --passes 2 {small}",
        "DQN.py --status run",
        "DQN.py --method classifier --cache cache --run labels --passes 1 --network.hidden 8"
        " --device cpu",
        "evaluate.py --cache cache --run run --device cpu",
        "evaluate.py --cache cache --compare run labels --out table --workers 1 --device cpu",
        "detect.py --policy run/best.pt --audio audio --scores scores --other-classes",
        "visualize.py --cache cache --run run --html --dpi 40",
    ]
    words = " + ".join(scripts).split()
    runner = tmp_path / "elsewhere.py"
    runner.write_text(ELSEWHERE)
    found = subprocess.run(
        [sys.executable, str(runner), kind, str(ROOT), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    finished = [x.split()[1] for x in found.stdout.splitlines() if x.startswith("finished: ")]
    assert finished == [line.split()[0] for line in scripts]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["versions"]["processor"] and results["kernels"]
    assert (tmp_path / "events.tsv").exists() and (tmp_path / "run/report/index.html").exists()


def test_cores_where_affinity_is_unknown(monkeypatch):
    assert processes.num_cores() >= 1
    monkeypatch.delattr(processes.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes.num_cores() == processes.num_workers(None) == 6
    monkeypatch.setattr(processes.os, "cpu_count", lambda: None)
    assert processes.num_workers(None) == 1
