"""Long runs: the heartbeat and --status, alive or not, full disks, checkpoints by wall time."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from corpora import write_cache

from config import Learning, Network, TrainConfig
from core.command import run_main
from core.errors import InputError
from DQN import Trainer, main
from policy import heartbeat, runfolder

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = Network(hidden=8, heads=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55])
    return tmp_path


def config(**changes) -> TrainConfig:
    learning = Learning(lanes=4, batch=8, train_start=8, lr=3e-3)
    base = {"run": Path("runs/a"), "network": TINY, "learning": learning, "device": "cpu"}
    base["passes"] = 1
    return TrainConfig(**(base | changes))


def told(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


# ---------------------------------------------------------------------------- status


def test_status_of_a_finished_run(folder, capsys):
    assert main(config(passes=6)) == 0
    capsys.readouterr()
    assert main(config(status=Path("runs/a"))) == 0
    lines = told(capsys.readouterr().out)
    history = runfolder.read_history(Path("runs/a"))
    count = len(history["Episode"])
    assert lines["state"].startswith(f"complete (process {os.getpid()} on ")
    assert lines["episodes"] == f"{count} of {count} (100.0%)"
    frames = int(sum(history[name].sum() for name in runfolder.CELLS))
    assert lines["frames"] == f"{frames:,} of {frames:,} (100.0%)"
    assert float(lines["reward"]) == pytest.approx(history["Reward"][-1], abs=0.06)
    assert float(lines["avg10"]) == pytest.approx(history["Avg10"][-1], rel=1e-3)
    learned = history["Loss"][history["Loss"] > 0]  # 0: no gradient step since the episode before
    assert float(lines["loss"]) == pytest.approx(learned[-1], rel=1e-3)
    assert "left" not in lines and "held-out F1" in lines["best"]
    log = Path("runs/a/train.log").read_text()
    assert "complete, " in log and log.endswith("\n")


def test_status_of_a_running_and_of_a_killed_run(folder, fork_server):
    write_cache(folder / "cache" / "train", [400] * 8)
    process = fork_server.Process(target=main, args=(config(passes=50),))
    process.start()
    try:
        while heartbeat.read_beat(Path("runs/a")) is None:
            assert process.is_alive()
            time.sleep(0.02)
        lines = told(heartbeat.status(Path("runs/a")))
        assert lines["state"].startswith(f"running (process {process.pid} on ")
        assert lines["log"] == "tail -f runs/a/train.log"
    finally:
        process.kill()
        process.join()
    lines = told(heartbeat.status(Path("runs/a")))
    assert lines["state"].startswith("dead: stopped without saving")
    assert "--resume" in lines["state"] and "left" not in lines


def beat_of(**changes) -> dict:
    pid = os.getpid()
    beat = {
        **heartbeat.machine(),
        "pid": pid,
        "started": heartbeat.start_of(pid),
        "at": time.time(),
    }
    return beat | changes


def test_a_process_number_used_again_is_not_the_run():
    assert heartbeat.is_alive(beat_of())
    assert not heartbeat.is_alive(beat_of(started=beat_of()["started"] - 1))
    assert not heartbeat.is_alive(beat_of(pid=2**22 + 1))  # above the largest pid


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"boot": "other"}, {"pids": "other"}])
def test_on_another_machine_the_heartbeat_counts(elsewhere):
    assert heartbeat.is_alive(beat_of(**elsewhere, pid=1, started=1))
    assert not heartbeat.is_alive(beat_of(**elsewhere, at=time.time() - 2 * heartbeat.SILENT_S))


def test_a_dead_child_that_nobody_waited_for_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in the table
    assert heartbeat.start_of(child.pid) is None
    child.wait()


def test_status_without_a_heartbeat(folder):
    main(config())
    (folder / "runs/a/status.json").write_text("{ half")
    lines = told(heartbeat.status(Path("runs/a")))
    assert lines["state"].startswith("unknown") and int(lines["finished"]) > 0
    with pytest.raises(InputError, match="no run there"):
        heartbeat.status(Path("runs/none"))


def test_elapsed_time_and_log_go_on_after_a_resume(folder, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.0)
    beat = heartbeat.Heartbeat(folder, {"episodes": 4, "frames": 100}, 1)
    progress = {"finished": 1, "frames": 20, "steps": 3, "best_f1": -1.0, "best_episode": -1}
    beat(progress)
    time.sleep(0.05)
    beat(progress | {"frames": 60, "finished": 2})
    first = heartbeat.read_beat(folder)
    assert first["left_s"] == pytest.approx(40 / first["frames_per_s"], abs=0.06)
    again = heartbeat.Heartbeat(folder, {"episodes": 4, "frames": 100}, 1)
    again(progress | {"frames": 60})
    assert heartbeat.read_beat(folder)["elapsed_s"] >= first["elapsed_s"]
    assert (folder / "train.log").read_text().count("\n") == 2  # one line of each life


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (760, "12 min 40 s"), (18180, "5 h 03 min"), (59.7, "1 min 00 s")],
)
def test_spans(seconds, text):
    assert heartbeat.span(seconds) == text


# ---------------------------------------------------------------------------- checkpoints, disks


def test_last_pt_is_written_by_wall_time(folder, monkeypatch):
    written = []
    write = runfolder.write_checkpoint

    def spy(path, content):
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(runfolder, "write_checkpoint", spy)
    main(config(checkpoint_minutes=60))
    assert written.count("last.pt") == 2  # at the start and at the end
    written.clear()
    main(config(checkpoint_minutes=1e-9, overwrite=True))
    assert written.count("last.pt") > 50  # after every tick


def test_a_full_disk_under_the_history():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system to play a full disk")
    history = runfolder.History.__new__(runfolder.History)
    history.path, history.board = Path("reward_history.tsv"), None
    history.wandb_run, history.rows = None, 0
    with (
        open("/dev/full", "ab", buffering=0) as history.stream,
        pytest.raises(InputError, match=r"No space left on device\); the last good"),
    ):
        history.add(dict.fromkeys(runfolder.HISTORY, 0))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system to fill it")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(
    folder, small_disk, monkeypatch, capsys
):
    """A run on a full disk ends with one line and exit code 2; after making room it goes on."""
    learning = Learning(lanes=4, batch=8, train_start=8, lr=3e-3, replay=2000)
    run, ballast = small_disk / "a", small_disk / "ballast"
    cfg = config(run=run, learning=learning, checkpoint_minutes=1e-9)
    tick = Trainer.tick

    def fill_disk(trainer):
        if trainer.progress["frames"] == 200:
            with suppress(OSError):
                ballast.write_bytes(bytes(2**20))
        return tick(trainer)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Trainer, "tick", fill_disk)
        run_main(lambda: main(cfg))
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert f"error: {run}/" in lines[-1] and "No space left on device" in lines[-1], lines[-1]
    assert "is kept" in lines[-1]
    assert not list(run.glob("*.pt.tmp"))
    assert runfolder.read_checkpoint(run / "last.pt")["info"]["frames"] == 200
    ballast.unlink()
    assert main(replace(cfg, resume=True)) == 0
    assert json.loads((run / "status.json").read_text())["state"] == "complete"


def test_a_checkpoint_of_before_a_free_field_can_be_resumed(folder):
    main(config())
    path = folder / "runs/a/last.pt"
    content = torch.load(path, weights_only=True)
    stored = json.loads(content["config"])
    del stored["status"]
    runfolder.write_checkpoint(path, content | {"config": json.dumps(stored)})
    assert main(config(resume=True)) == 0
