"""The run folder: checkpoints, their digest, the reward history, what may change on resume.

Reads:  <run>/*.pt, <run>/reward_history.tsv
Writes: the same, each checkpoint whole or not at all
Next:   DQN.py
"""

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ranks
from config import Bandit, InputError, TrainConfig, TwinsConfig, from_dict, to_dict
from gate import Gate
from preprocess import Cache, write_json

# ---------------------------------------------------------------------------- checkpoint files


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, flush to disk, rename: never a half-written file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({reason(error)}); the last good one is kept"
        ) from None


def flush_folder(folder: Path) -> None:
    """Make a renaming in a folder outlast a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """One line of why a file could not be written; torch hides the system's own word for it."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return os.strerror(error.errno) if getattr(error, "errno", 0) else str(error).splitlines()[0]


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it (`weights_only`)."""
    if not path.exists():
        raise InputError(f"{path}: not found; train first: python DQN.py --run {path.parent}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own errors
        reason = type(error).__name__  # torch's own text advises to load without safety
        raise InputError(f"{path}: damaged, or not a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def digest(value: Any) -> str:
    """SHA-256 of nested dictionaries, lists, tensors and plain values, independent of the file."""
    state = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                state.update(f"{{{key}".encode())
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            state.update(f"[{len(item)}".encode())
            for each in item:
                feed(each)
        elif isinstance(item, torch.Tensor):
            state.update(f"{item.dtype}{tuple(item.shape)}".encode())
            state.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            state.update(repr(item).encode())

    feed(value)
    return state.hexdigest()


def versions() -> dict[str, str]:
    """What made a checkpoint: torch, numpy and the suite's commit ('unknown' outside git)."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "code": commit or "unknown",
    }


def processor() -> str:
    """The processor's name and the instructions that torch uses: they decide the last digits."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.partition(":")[::2] for line in lines)
        known = {key.strip(): value.strip() for key, value in fields.items()}
        family = f"family {known.get('cpu family')}, model {known.get('model')}"
        name = f"{known.get('model name', name)} ({family})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def pick_device(name: str, threads: int) -> torch.device:
    """Choose the device and set the thread count: the one place for both."""
    torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_rank() >= (count := torch.cuda.device_count()):
        cure = f"torchrun --nproc-per-node={count}, or --device cpu"
        raise InputError(f"more processes than the {count} CUDA devices of this machine; {cure}")
    torch.cuda.set_device(ranks.local_rank())
    return torch.device("cuda", ranks.local_rank())


def catch_signals() -> list[int]:
    """From now on SIGINT, SIGTERM and SIGHUP are noted in the returned list; a second one stops."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return received


# Fields that may differ between a run and its resumption: they change no number.
FREE_FIELDS = (
    "resume",
    "overwrite",
    "digest",
    "status",
    "checkpoint_minutes",
    "cache",
    "run",
    "device",
    "threads",
    "cuda_steps",
)


def stored_config(cfg: TrainConfig | TwinsConfig) -> dict[str, Any]:
    """The config as kept in checkpoints: without what may change on resume."""
    defaults = to_dict(type(cfg)())
    return to_dict(cfg) | {name: defaults[name] for name in FREE_FIELDS if name in defaults}


def known_config(cls: type, stored: Any) -> Any:
    """The config of a checkpoint or config.json; a field that it does not know yet, in a group too,
    has its default, which is what an older version did."""

    def completed(found: Any, defaults: Any) -> Any:
        if not (isinstance(found, dict) and isinstance(defaults, dict)):
            return found
        known = {name: completed(value, defaults.get(name)) for name, value in found.items()}
        return defaults | known

    return completed(stored, to_dict(cls()))


def config_of(cls: type, stored: Any) -> Any:
    """The config itself. InputError for unknown fields and values that do not suit."""
    return from_dict(cls, known_config(cls, stored))


def policy_content(
    cfg: TrainConfig | TwinsConfig,
    cache: Cache,
    network: torch.nn.Module,
    gate: Gate | None,
    info: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint needs so that its network can be applied. InputError for bad weights."""
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise InputError("weights are not finite: the last good checkpoint is kept")
    return {
        "config": json.dumps(stored_config(cfg)),
        "cache_key": cache.key,
        "signal": json.dumps(cache.manifest["signal"]),
        "gate": json.dumps(gate and gate._asdict()),
        "versions": versions(),
        "device": next(network.parameters()).device.type,
        "info": info,
        "network": network.state_dict(),
    }


def load_weights(network: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint; InputError naming the file where they do not fit."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(f"{path}: weights do not fit the network: {lines[-1].strip()}") from None


def torch_rng(device: torch.device) -> dict[str, Any]:
    """State of torch's own generators, which dropout draws from."""
    rng = {"torch": torch.get_rng_state()}
    return rng | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_torch_rng(rng: dict[str, Any], device: torch.device) -> None:
    """Inverse of `torch_rng`; a state of another kind of device is left out."""
    torch.set_rng_state(rng["torch"].cpu())
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"].cpu(), device)


def differences(old: dict, new: dict, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(flag, old value, new value) of every setting that differs between two stored configs."""
    rows = []
    for name in new:
        was, now = old.get(name), new[name]
        if isinstance(now, dict) and isinstance(was, dict):
            rows += differences(was, now, f"{prefix}{name}.")
        elif was != now:
            rows.append(((prefix + name).replace("_", "-"), was, now))
    return rows


def resume_command(processes: int = 1) -> str:
    """The command line of this run with --resume."""
    words = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
    start = ["python"] if processes == 1 else ["torchrun", f"--nproc-per-node={processes}"]
    return shlex.join([*start, *words, "--resume"])


def remove_run(folder: Path) -> None:
    """Delete what an earlier run left, results and pictures of its policy too; nothing else."""
    ours = ("last.pt", "best.pt", "episode-*.pt", "*.tmp", "reward_history.tsv")
    for pattern in (*ours, "status.json", "train.log"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in ("results.json", "decisions.npz", "events.tsv", "onsets.tsv"):
        (folder / name).unlink(missing_ok=True)
    for name in ("decisions", "figures", "report", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def open_run(
    cfg: TrainConfig | TwinsConfig,
    cache_key: str,
    device: torch.device,
    processes: int = 1,
    again: bool = False,
) -> dict[str, Any] | None:
    """Create the run folder (None), or return the last.pt to resume from.

    `again`: a job that torchrun has restarted resumes, whatever the flags. InputError where an
    earlier run would be lost, or mixed with another config, cache or number of processes.
    """
    last = cfg.run / "last.pt"
    if not (cfg.resume or (again and last.exists())):
        if last.exists() and not cfg.overwrite:
            cure = "--resume goes on, --overwrite starts anew"
            raise InputError(f"{cfg.run} already holds a run; {cure}")
        if cfg.run.exists() and not cfg.run.is_dir():
            raise InputError(f"--run {cfg.run}: is a file, not a folder")
        if cfg.run.exists() and any(cfg.run.iterdir()) and not (cfg.run / "config.json").exists():
            raise InputError(f"--run {cfg.run}: holds other files and no run; give another folder")
        cfg.run.mkdir(parents=True, exist_ok=True)
        remove_run(cfg.run)
        write_json(cfg.run / "config.json", to_dict(cfg))
        return None
    if not last.exists():
        raise InputError(f"{last}: not found, so there is nothing to resume; leave out --resume")
    content = read_checkpoint(last, device)
    script, mark = ("twins.py", "twin") if isinstance(cfg, TwinsConfig) else ("DQN.py", "recent")
    for key in ("config", "optimizer", mark):
        if key not in content:
            raise InputError(f"{last}: holds no {key}; only a last.pt of {script} can be resumed")
    begun = len(content.get("others", ())) + 1
    if begun != processes:
        cure = f"torchrun --nproc-per-node={begun}" if begun > 1 else "leave out torchrun"
        raise InputError(
            f"{last}: begun with {begun} process(es), cannot go on with {processes}; {cure}"
        )
    rows = differences(known_config(type(cfg), json.loads(content["config"])), stored_config(cfg))
    if rows:
        text = "; ".join(f"--{flag} was {was}, now {now}" for flag, was, now in rows)
        raise InputError(f"{last}: cannot resume with another config: {text}")
    if content["cache_key"] != cache_key:
        raise InputError(f"{last}: the cache has changed since; it cannot be resumed on this one")
    if content["device"] != device.type:
        print(f"note: begun on {content['device']}, resumed on {device.type}: not bit-exact")
    return content


def open_together(
    cfg: TrainConfig, cache_key: str, device: torch.device, job: ranks.Ranks
) -> dict[str, Any] | None:
    """`open_run` as several processes: the first one opens the folder, all read what is there."""
    (again,) = job.any(ranks.restarted())  # with several machines, only where one died
    if job.size == 1:
        return open_run(cfg, cache_key, device, 1, again)

    def resumes() -> bool:
        return open_run(cfg, cache_key, device, job.size, again) is not None

    return read_checkpoint(cfg.run / "last.pt", device) if job.leader_first(resumes) else None


# ---------------------------------------------------------------------------- reward history

CELLS = ("Missed", "Fixed", "Broken", "Kept")  # in the order of the reward cells of bandit.py
# Loss and Q: means over the gradient steps since the row before; Q of the actions taken.
HISTORY = ("Episode", "Reward", "Avg10", "Epsilon", *CELLS, "Steps", "Loss", "Q")


class History:
    """reward_history.tsv, a line an episode (and TensorBoard where it is installed)."""

    def __init__(self, folder: Path, rows: int):
        self.path = folder / "reward_history.tsv"
        known = self.path.read_text() if rows and self.path.exists() else ""
        lines = known.splitlines(keepends=True)[: rows + 1]
        if rows and len(lines) < rows + 1:  # after a power failure; the training is not harmed
            print(f"note: {self.path} lost {rows + 1 - len(lines)} of its rows")
        temporary = folder / "reward_history.tsv.tmp"
        temporary.write_text("".join(lines) or "\t".join(HISTORY) + "\n")
        temporary.replace(self.path)
        # Unbuffered: a line is there at once, and nothing is left over that a full disk refused.
        self.stream = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open for the whole run)
        self.board = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=rows)
        except ImportError:
            pass

    def add(self, row: dict[str, float]) -> None:
        """Append one episode. InputError where the disk does not take it."""
        cells = [
            f"{row[name]:.6g}" if name in ("Loss", "Q") else f"{row[name]}" for name in HISTORY
        ]
        line = ("\t".join(cells) + "\n").encode()
        try:
            if self.stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({reason(error)}); the last good checkpoint is"
                " kept: make room, then go on with --resume"
            ) from None
        if self.board:
            for name in HISTORY[1:]:
                self.board.add_scalar(f"train/{name}", row[name], row["Episode"])

    def close(self) -> None:
        """Flush everything."""
        self.stream.close()
        if self.board:
            self.board.close()


def read_history(folder: Path) -> dict[str, np.ndarray]:
    """reward_history.tsv -> column name -> values (E,), at least one episode.

    The columns are those of the file, so runs of an older version can be read. Raises InputError.
    """
    path, cure = folder / "reward_history.tsv", f"run: python DQN.py --run {folder}"
    if not path.exists():
        raise InputError(f"{path}: not found; {cure}")
    with open(path, encoding="utf-8", errors="replace") as stream:
        names = stream.readline().rstrip("\n").split("\t")
        lines = [line.split("\t") for line in stream]
    if names[: len(HISTORY) - 1] != list(HISTORY[:-1]) or any(len(x) != len(names) for x in lines):
        raise InputError(f"{path}: damaged; {cure}")
    if not lines:
        raise InputError(f"{path}: no finished episode; {cure}")
    try:
        rows = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {cure}") from None
    return dict(zip(names, rows.T, strict=True))


def unchanged_rewards(history: dict[str, np.ndarray], bandit: Bandit) -> np.ndarray:
    """(E,) what the always-0.0 action earns in each episode; right frames are Kept + Broken."""
    right, wrong = history["Kept"] + history["Broken"], history["Missed"] + history["Fixed"]
    return right * bandit.reward_keep + wrong * bandit.reward_miss


def last_ten(values: np.ndarray) -> np.ndarray:
    """Mean of each value and the nine before it (fewer at the start), as the log's avg10."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - 10)
    return (total[end] - total[start]) / (end - start)


def learning_curve(folder: Path, bandit: Bandit) -> dict[str, float]:
    """Did it learn: mean avg10 of the first and last tenth of the episodes, and the reward that
    the always-0.0 action earns on the pairs of the last tenth."""
    history = read_history(folder)
    tenth = max(1, len(history["Avg10"]) // 10)
    unchanged = unchanged_rewards(history, bandit)
    return {
        "avg10_first_tenth": float(history["Avg10"][:tenth].mean()),
        "avg10_last_tenth": float(history["Avg10"][-tenth:].mean()),
        "always_zero_last_tenth": float(unchanged[-tenth:].mean()),
    }
