"""Heartbeat and log of a run while it goes on; `--status` reads them, without torch.

Run:    python DQN.py --status runs/slides; tail -f runs/slides/train.log
Reads:  <run>/{status.json, last.pt}
Writes: <run>/status.json every few seconds, a line of <run>/train.log every minute

Neither file is needed to go on: a heartbeat that cannot be written never stops a run.
"""

import math
import os
import socket
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from config import TrainConfig
from core.errors import InputError, WriteError
from core.processes import start_of
from core.stored import Each, check_form, is_count, is_number, is_text, maybe, read_json, write_json

BEAT_S = 5.0  # between two heartbeats
LINE_S = 60.0  # between two lines of the log
RECENT_S = 300.0  # the speed is that of so many seconds
SILENT_S = 60.0  # a run on another machine that is silent for longer counts as dead

# ---------------------------------------------------------------------------- who is running


def machine() -> dict[str, str]:
    """What must be equal for a process number to mean the same process: host, boot, container."""
    found = {"host": socket.gethostname(), "boot": "", "pids": ""}
    with suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["pids"] = os.readlink("/proc/self/ns/pid")
    return found


def is_alive(beat: dict[str, Any]) -> bool:
    """Whether the process that wrote a heartbeat still runs; elsewhere, whether it still writes."""
    here = machine()
    if here["boot"] and all(beat.get(key) == value for key, value in here.items()):
        return start_of(beat["pid"]) == beat["started"] is not None
    return time.time() - beat["at"] < SILENT_S


# ---------------------------------------------------------------------------- heartbeat and log


def span(seconds: float) -> str:
    """Seconds for people: `5 h 03 min`, `12 min 40 s`, `8 s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def share(done: int, total: int) -> str:
    """`13,897 of 28,592 (48.6 %)`."""
    return f"{done:,} of {total:,} ({done / max(total, 1):.1%})"


class Heartbeat:
    """Writes status.json and train.log while a run goes on; of several processes, one does.

    `totals`: episodes and frames of the whole run. Use as a context manager: how the run ended is
    the last thing written.
    """

    def __init__(self, folder: Path, totals: dict[str, int], processes: int, writes: bool = True):
        self.path, self.log = folder / "status.json", folder / "train.log"
        self.writes = writes
        pid = os.getpid()
        self.identity = {**machine(), "pid": pid, "started": start_of(pid), "processes": processes}
        self.totals = {f"total_{name}": count for name, count in totals.items()}
        self.metrics: dict[str, float] = {}
        self.earlier_s = float((read_beat(folder) or {}).get("elapsed_s", 0.0))
        self.began = self.next_beat = self.next_line = time.monotonic()
        self.recent: deque[tuple[float, int]] = deque()
        self.progress: dict[str, Any] = {}

    def __call__(self, progress: dict[str, Any], state: str = "running") -> None:
        """Write what is due of the run's `progress` (`finished`, `frames`, `steps`, `best_f1`)."""
        now = time.monotonic()
        self.progress = progress
        if not self.writes or (now < self.next_beat and state == "running"):
            return
        self.next_beat = now + BEAT_S
        self.recent.append((now, progress["frames"]))
        while now - self.recent[0][0] > RECENT_S:
            self.recent.popleft()
        content = self.identity | self.content(state)
        with suppress(OSError, WriteError):
            write_json(self.path, content)
            if now >= self.next_line or state != "running":
                self.next_line = now + LINE_S
                with open(self.log, "ab", buffering=0) as stream:
                    stream.write(f"{time.strftime('%F %T')}  {one_line(content)}\n".encode())

    def content(self, state: str) -> dict[str, Any]:
        """The heartbeat without the identity."""
        (first, frames), (last, newest) = self.recent[0], self.recent[-1]
        speed = (newest - frames) / (last - first) if last > first else 0.0
        left = self.totals["total_frames"] - newest
        return {
            "state": state,
            "at": time.time(),
            "elapsed_s": round(self.earlier_s + time.monotonic() - self.began, 1),
            "episodes": self.progress["finished"],
            "frames": newest,
            "gradient_steps": self.progress["steps"],
            **self.totals,
            "frames_per_s": round(speed, 2),
            "left_s": round(left / speed, 1) if speed > 0 else None,
            "best_f1": self.progress["best_f1"],
            "best_episode": self.progress["best_episode"],
            "metrics": {k: value for k, value in self.metrics.items() if math.isfinite(value)},
        }

    def __enter__(self) -> "Heartbeat":
        return self

    def end(self, state: str) -> None:
        """Say how the run ended: `complete` or `stopped`."""
        self(self.progress, state)
        self.writes = False

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if error is not None and self.progress:
            self.end(f"failed: {str(error) or kind.__name__}")


def one_line(beat: dict[str, Any]) -> str:
    """A heartbeat as a line of the log."""
    words = [beat["state"], f"{share(beat['episodes'], beat['total_episodes'])} episodes"]
    words.append(f"{beat['gradient_steps']:,} steps")
    if beat["left_s"] is not None:
        words += [f"{beat['frames_per_s']:,.0f} frames/s", f"{span(beat['left_s'])} left"]
    words += [f"{name} {value:.4g}" for name, value in beat["metrics"].items()]
    return ", ".join(words)


# ---------------------------------------------------------------------------- --status


def is_time(value: Any) -> bool:
    """Seconds, up to the year 5138: what a clock can show."""
    return is_number(value) and 0 <= value < 1e11


BEAT = {
    **dict.fromkeys(("host", "boot", "pids", "state"), is_text),
    **dict.fromkeys(("pid", "processes", "episodes", "frames", "gradient_steps"), is_count),
    **dict.fromkeys(("total_episodes", "total_frames"), is_count),
    **dict.fromkeys(("frames_per_s", "best_f1", "best_episode"), is_number),
    **dict.fromkeys(("at", "elapsed_s"), is_time),
    "left_s": maybe(is_time),
    "started": maybe(is_count),
    "metrics": Each(is_number),
}


def read_beat(folder: Path) -> dict[str, Any] | None:
    """The newest heartbeat of a run folder; None where there is none, or no whole one."""
    try:
        beat = read_json(folder / "status.json", "", BEAT)
        check_form(beat, BEAT)
        return beat
    except (InputError, ValueError):
        return None


def condition(beat: dict[str, Any]) -> str:
    """Whether it runs, where, and when it was last heard of."""
    ago = f"last heard of {span(time.time() - beat['at'])} ago"
    where = f"process {beat['pid']} on {beat['host']}"
    where += f", {beat['processes']} processes" * (beat["processes"] > 1)
    cure = "; --resume goes on from last.pt"
    if beat["state"] != "running":
        return f"{beat['state']} ({where}, {ago}){cure if beat['state'] != 'complete' else ''}"
    if not is_alive(beat):
        return f"dead: stopped without saving ({where}, {ago}){cure}"
    silent = time.time() - beat["at"] > SILENT_S
    return f"running ({where}, {ago})" + ("; it seems to hang, or the disk is full" * silent)


def lines_of_beat(folder: Path, beat: dict[str, Any]) -> dict[str, Any]:
    """What the newest heartbeat of a run says."""
    lines = {
        "run": folder,
        "state": condition(beat),
        "episodes": share(beat["episodes"], beat["total_episodes"]),
        "frames": share(beat["frames"], beat["total_frames"]),
        "gradient_steps": f"{beat['gradient_steps']:,}",
        "elapsed": span(beat["elapsed_s"]),
        "speed": f"{beat['frames_per_s']:,.0f} frames/s",
    }
    if beat["state"] == "running" and beat["left_s"] is not None and is_alive(beat):
        ready = time.strftime("%F %H:%M", time.localtime(beat["at"] + beat["left_s"]))
        lines["left"] = f"{span(beat['left_s'])}, ready {ready}, at this speed"
    lines |= {name: f"{value:.4g}" for name, value in beat["metrics"].items()}
    if beat["best_episode"] >= 0 and beat["best_f1"] >= 0:  # -1: no clip was held out
        lines["best"] = f"held-out F1 {beat['best_f1']:.4f} after {beat['best_episode']} episodes"
    return lines


def lines_of_checkpoint(folder: Path) -> dict[str, Any]:
    """What the last checkpoint says, where no heartbeat is left. InputError: no run there."""
    if not (folder / "last.pt").exists():
        raise InputError(f"--status {folder}: no run there; give a run folder, e.g. runs/slides")
    from core.tensors import read_checkpoint  # torch takes seconds to import

    info = read_checkpoint(folder / "last.pt").get("info")
    counts = info if isinstance(info, dict) else {}
    some = [name for name in ("finished", "frames", "steps") if is_count(counts.get(name))]
    lines = {"run": folder, "state": "unknown, no heartbeat that can be read"}
    return lines | {name: f"{counts[name]:,}" for name in some}


def status(folder: Path) -> str:
    """What is known of a run, alive or not, as `key: value` lines. InputError: no run there."""
    beat, last = read_beat(folder), folder / "last.pt"
    lines = lines_of_checkpoint(folder) if beat is None else lines_of_beat(folder, beat)
    age = f"{span(time.time() - last.stat().st_mtime)} ago" if last.exists() else "none"
    lines["last_checkpoint"] = age
    if beat is not None:
        lines["log"] = f"tail -f {folder / 'train.log'}"
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


def answer(cfg: TrainConfig) -> bool:
    """Print what `--status` asks for; False where nothing is asked."""
    if cfg.status is not None:
        print(status(cfg.status))
    return cfg.status is not None
