"""The run folder: checkpoints, their digest, the reward history, what may change on resume.

Reads:  <run>/*.pt, <run>/reward_history.tsv
Writes: the same, each checkpoint whole or not at all
"""

import errno
import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import Bandit, TrainConfig
from core import ranks, tensors
from core.command import started_module
from core.errors import InputError, WriteError
from core.files import Kind, own_folder, remove_ours, whole, write_text, writing
from core.settings import MOST_LANES, from_dict, to_dict
from core.stored import (
    Each,
    check_form,
    is_number,
    is_text,
    maybe,
    misfit,
    parse_json,
    read_text,
    why,
    write_json,
)
from core.tensors import digest as digest  # the suite asks here for everything about checkpoints
from core.versions import processor
from policy.gate import Gate
from sed.caches import Cache

# What is written where; only this is ever deleted.
_SHOWN = "thresholds preprocessing signals decisions onset events epsilon avg10 loss before_after"
_SHOWN += " network yardsticks per_class pair-*"
_FILES = tuple(f"{name}.png" for name in _SHOWN.split())
FIGURES = Kind("folder of figures", _FILES, (("before_after.png", ""),))
_FILES = "index.html report.js vendor/* vendor/*/* data/*.js clips/[0-9]*.mp3 clips/[0-9]*.webp"
PAGE = Kind("page", tuple(_FILES.split()), (("report.js", ""), ("data/index.js", "")))
RESULTS = ("results.json", "decisions.npz", "events.tsv", "onsets.tsv")
_KEYS = (("results.json", "cache_key"), ("results.json", "before"))
EVALUATION = Kind("evaluation", RESULTS, _KEYS)
_FILES = ("last.pt", "best.pt", "episode-[0-9]*.pt", "reward_history.tsv", "status.json")
_FILES += ("train.log", *RESULTS, "decisions/*.npz", "tensorboard/events.out.tfevents.*")
_FILES += tuple(f"figures/{name}" for name in FIGURES.files)
_FILES += tuple(f"report/{name}" for name in PAGE.files)
RUN = Kind("run", _FILES, tuple(("config.json", key) for key in ("cache", "run", "seed")))

# ---------------------------------------------------------------------------- checkpoint files


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, flush to disk, rename: never a half-written file."""
    try:
        with whole(path) as temporary:
            tensors.write_checkpoint(temporary, content, flush=True)
        flush_folder(path.parent)
    except WriteError as error:
        raise WriteError(f"{error}; the last good one is kept") from None


def flush_folder(folder: Path) -> None:
    """Make a renaming in a folder outlast a power failure."""
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checkpoint_of(path: Path) -> Path:
    """A run folder stands for its best.pt."""
    return path / "best.pt" if path.is_dir() else path


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it; InputError where it is damaged."""
    if not path.exists():
        run = path.parent if path.suffix else path  # a run folder stands for its best.pt
        raise InputError(f"{path}: not found; train first: python DQN.py --run {run}")
    content = tensors.read_checkpoint(path, device)
    return of_baseline(content, path) if "twin" in content else content


def of_baseline(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A supervised baseline of former versions, which had a script of its own, as DQN.py writes it.

    InputError where it is damaged.
    """
    try:
        config, info = parse_json(content["config"]), content["info"]
        learning = {name: config.pop(name) for name in ("lr", "batch", "frames_per_step")}
        # Whatever reading was set, it took no earlier decision.
        bandit = config["bandit"] | {"reading": "independent"}
        config |= {"method": config.pop("kind"), "learning": learning, "bandit": bandit}
        done = {"finished": info["steps"], "frames": info["steps"] * learning["batch"]}
        done["best_episode"] = info.pop("best_step")
        rest = {"config": json.dumps(config), "info": new_progress() | info | done, "recent": []}
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{path}: damaged, or of another script ({why(error)})") from None
    return {name: value for name, value in content.items() if name != "twin"} | rest


# Ctrl-C, kill, a closed terminal, and what Slurm and its like send before the time is up.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def catch_signals() -> list[int]:
    """From now on `STOP_SIGNALS` are noted in the returned list; a second Ctrl-C stops at once.

    A batch system sends several, to torchrun and to its processes: none may end a run that saves.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    for name in STOP_SIGNALS:
        number = getattr(signal, name, None)  # Windows has not all of them
        if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):  # nohup
            signal.signal(number, note)
    return received


FORMER_METHOD = "dense"  # of `best` before it decided over events
# Fields that may differ between a run and its resumption: they change no number.
FREE_FIELDS = ("resume", "overwrite", "init", "digest", "status", "checkpoint_minutes", "cache")
FREE_FIELDS += ("run", "device", "threads", "cuda_steps", "wandb_project")


def stored_config(cfg: TrainConfig) -> dict[str, Any]:
    """The config as kept in checkpoints: without what may change on resume. Whether a policy over
    events is trained or recalibrated (`init`) may not."""
    defaults = to_dict(TrainConfig())
    free = [name for name in FREE_FIELDS if (name, cfg.method) != ("init", "events")]
    return to_dict(cfg) | {name: defaults[name] for name in free}


def config_of(cls: type, stored: Any) -> Any:
    """The config of a checkpoint or config.json; a field that it does not know yet, in a group too,
    has its default, which is what an older version did. InputError for unknown fields and values
    that do not suit."""

    def completed(found: Any, defaults: Any) -> Any:
        if not (isinstance(found, dict) and isinstance(defaults, dict)):
            return found
        known = {name: completed(value, defaults.get(name)) for name, value in found.items()}
        return defaults | known

    if cls is TrainConfig and isinstance(stored, dict):
        stored = {name: value for name, value in stored.items() if name != FORMER_METHOD}
        if stored.get("method") == FORMER_METHOD:
            raise InputError(f"--method {FORMER_METHOD} is gone; --preset best decides over events")
        if stored.get("preset") == "best_events":  # what `best` was called before
            stored["preset"] = "best"
    return from_dict(cls, completed(stored, to_dict(cls())))


def new_progress() -> dict[str, Any]:
    """What every training counts; sums of loss and answers are since the last finished episode."""
    counts = dict.fromkeys(("finished", "steps", "frames"), 0)
    sums = {"loss_sum": 0.0, "q_sum": 0.0, "loss_count": 0}
    return counts | sums | {"best_f1": -1.0, "best_episode": -1, "last_f1": -1.0}


def is_plain(value: Any) -> bool:
    """A value of a setting."""
    return value is None or is_number(value) or isinstance(value, (str, bool))


def is_told(value: Any) -> bool:
    """A value of what a checkpoint tells of its training: plain, texts, a dictionary of these."""

    def is_leaf(item: Any) -> bool:
        return is_plain(item) or misfit(item, [is_text]) is None

    return is_leaf(value) or misfit(value, Each(is_leaf)) is None


FACTS = {
    "signal": maybe(Each(is_plain)),
    "gate": maybe({"thresholds": Each(is_number), "fallback": is_number}),
    "info": Each(is_told),
    "classes": [is_text],
}


class Facts(NamedTuple):
    """What a checkpoint says of itself."""

    config: TrainConfig
    signal: dict[str, Any] | None  # formulas of the cache that it was trained on
    gate: Gate | None
    info: dict[str, Any]
    classes: tuple[str, ...] = ()  # those that it knows apart; none for a windowed policy
    seen: torch.Tensor | None = None  # see `prints_of`; None: unknown


def facts_of(content: dict[str, Any], path: Path) -> Facts:
    """Settings, formulas, tag gate, progress, classes and pairs of a checkpoint.

    InputError where one is missing, damaged, or of another script.
    """
    try:
        config = config_of(TrainConfig, parse_json(content["config"]))
        signal, gate = (parse_json(content.get(name, "null")) for name in ("signal", "gate"))
        info, classes = content["info"], content.get("classes", ())
        check_form({"signal": signal, "gate": gate, "info": info, "classes": classes}, FACTS)
        seen = content.get("seen")
        if seen is not None and not (isinstance(seen, torch.Tensor) and seen.dtype == torch.int64):
            raise ValueError("seen is no list of pairs")
        gate = gate and Gate(gate["thresholds"], gate["fallback"])
        return Facts(config, signal, gate, info, tuple(classes), seen)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{path}: damaged, or of another script ({why(error)})") from None


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Inside, a run takes over the state of a checkpoint; InputError where that does not fit."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if "out of memory" in str(error).lower():
            raise
        raise InputError(f"{path}: cannot be resumed, it does not fit ({why(error)})") from None


def prints_of(cache: Cache, pairs: np.ndarray) -> np.ndarray:
    """(n,) int64: hash of class, loudness and score of some pairs, by which they are known again in
    another cache, whatever their clips are called there; pairs without any contrast have none."""
    found = []
    for i in pairs:
        values = [cache.one(name, i) for name in ("rms", "d_raw")]
        if any(np.ptp(value) for value in values):
            state = hashlib.blake2b(cache.pairs[i].event_label.encode(), digest_size=8)
            for value in values:
                state.update(value.tobytes())
            found.append(int.from_bytes(state.digest(), signed=True))
    return np.array(found, np.int64)


def trained_on(seen: torch.Tensor | None, cache: Cache, path: Path) -> int:
    """How many pairs of a cache a checkpoint was trained on, which is said; 0: none, or unknown."""
    if seen is None:
        return 0
    known = int(np.isin(prints_of(cache, np.arange(len(cache.pairs))), seen.cpu().numpy()).sum())
    if known:
        print(
            f"note: {path} was trained on {known} of these {len(cache.pairs)} pairs: results on"
            " them say nothing about new recordings"
        )
    return known


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
    for name, now in new.items():
        was = old.get(name)
        if isinstance(now, dict) and isinstance(was, dict):
            rows += differences(was, now, f"{prefix}{name}.")
        elif was != now:
            rows.append(((prefix + name).replace("_", "-"), was, now))
    return rows


def resume_command(processes: int = 1) -> str:
    """The command line of this run with --resume; of several machines, that of each of them."""
    words = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
    if name := started_module():
        words[:1] = ["-m", name]
    start = ["python"]
    if processes > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        start = ["torchrun", f"--nproc-per-node={here}"]
        if here < processes:
            start += [f"--nnodes={processes // here}", "--rdzv-backend=c10d"]
            start.append(f"--rdzv-endpoint={os.environ['MASTER_ADDR']}:29500")
        start.append("--")  # see core/ranks.py
    return shlex.join([*start, *words, "--resume"])


@contextmanager
def held_run(folder: Path, job: ranks.Ranks = ranks.ALONE) -> Iterator[None]:
    """Be the only job that writes into a run folder; of several processes the first one holds it.

    Raises what `own_folder` raises.
    """
    with ExitStack() as held:
        job.leader_first(lambda: held.enter_context(own_folder(folder, RUN, flag="--run")))
        yield


def begun_passes(cfg: TrainConfig) -> int | None:
    """Passes of the run that is resumed without a number of its own; else the config's."""
    last = cfg.run / "last.pt"
    goes_on = (cfg.resume or ranks.restarted()) and last.exists()
    if cfg.passes is not None or not goes_on:
        return cfg.passes
    return facts_of(read_checkpoint(last), last).config.passes


def open_run(
    cfg: TrainConfig, cache_key: str, device: torch.device, processes: int = 1, again: bool = False
) -> dict[str, Any] | None:
    """Clear the run folder (None), or return the last.pt to resume from, with more passes too;
    `held_run` holds it.

    `again`: a job that torchrun has restarted resumes, whatever the flags. InputError where an
    earlier run would be lost, or mixed with another config, cache or number of processes.
    """
    last = cfg.run / "last.pt"
    if not (cfg.resume or (again and last.exists())):
        if last.exists() and not cfg.overwrite:
            cure = "--resume goes on, --overwrite starts anew"
            raise InputError(f"{cfg.run} already holds a run; {cure}")
        remove_ours(cfg.run, RUN.files)  # results and pictures of the earlier policy too
        write_json(cfg.run / "config.json", to_dict(cfg))
        return None
    if not last.exists():
        raise InputError(f"{last}: not found, so there is nothing to resume; leave out --resume")
    content = read_checkpoint(last, device)
    for key in ("config", "cache_key", "device", "optimizer", "recent"):
        if key not in content:
            raise InputError(f"{last}: holds no {key}; only a last.pt of DQN.py can be resumed")
    begun = len(content.get("others", ())) + 1
    if begun != processes:
        cure = f"torchrun --nproc-per-node={begun}" if begun > 1 else "leave out torchrun"
        raise InputError(
            f"{last}: begun with {begun} process(es), cannot go on with {processes}; {cure}"
        )
    was = stored_config(facts_of(content, last).config)
    rows = differences(was, stored_config(cfg))
    goes_on = cfg.method != "events"  # its passes end before its boxes begin
    more = [row for row in rows if goes_on and row[0] == "passes" and (row[1] or 0) < row[2]]
    if rows := [row for row in rows if row not in more]:
        text = "; ".join(f"--{flag} was {was}, now {now}" for flag, was, now in rows)
        raise InputError(f"{last}: cannot resume with another config: {text}")
    if content["cache_key"] != cache_key:
        raise InputError(f"{last}: the cache has changed since; it cannot be resumed on this one")
    if more:
        write_json(cfg.run / "config.json", to_dict(cfg))
    if content["device"] != device.type:
        print(f"note: begun on {content['device']}, resumed on {device.type}: not bit-exact")
    begun = content["versions"].get("processor", here := processor())
    if begun != here:
        print(f"note: begun on {begun}, resumed on {here}: not bit-exact")
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


def open_wandb(project: str | None, folder: Path, config: dict[str, Any]) -> Any | None:
    """A run of Weights & Biases, which lies in wandb/ of the current folder; None: none is wanted.

    Each start is a run of its own, in a group named after the run folder: a training that is
    resumed goes on in the next one. Raises InputError where the package or the project says no.
    """
    if project is None:
        return None
    try:
        wandb = import_module("wandb")
    except ModuleNotFoundError:
        raise InputError("--wandb-project needs wandb; run: pip install wandb") from None
    try:
        return wandb.init(project=project, name=folder.name, group=folder.name, config=config)
    except wandb.Error as error:
        said = f"{str(error).splitlines()[0]}; WANDB_MODE=offline keeps the run on this machine"
        raise InputError(f"--wandb-project {project}: {said}") from None


class History:
    """reward_history.tsv, a line an episode; the same to TensorBoard where it is installed, and to
    a run of Weights & Biases where there is one."""

    def __init__(self, folder: Path, rows: int, wandb_run: Any = None):
        self.rows, self.wandb_run = rows, wandb_run
        self.path = folder / "reward_history.tsv"
        there = rows and self.path.exists()
        known = self.path.read_text(encoding="utf-8", errors="replace") if there else ""
        lines = known.splitlines(keepends=True)[: rows + 1]
        if rows and len(lines) < rows + 1:  # after a power failure; the training is not harmed
            print(f"note: {self.path} lost {rows + 1 - len(lines)} of its rows")
        write_text(self.path, "".join(lines) or "\t".join(HISTORY) + "\n")
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
        row_text = row | {name: f"{row[name]:.6g}" for name in ("Loss", "Q")}
        line = ("\t".join(f"{row_text[name]}" for name in HISTORY) + "\n").encode()
        try:
            with writing(self.path):
                if self.stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except WriteError as error:
            cure = "make room, then go on with --resume"
            raise WriteError(f"{error}; the last good checkpoint is kept: {cure}") from None
        if self.board:
            for name in HISTORY[1:]:
                self.board.add_scalar(f"train/{name}", row[name], row["Episode"])
        if self.wandb_run:
            self.wandb_run.log({f"train/{name}": row[name] for name in HISTORY}, step=self.rows)
        self.rows += 1

    def close(self) -> None:
        self.stream.close()
        if self.board:
            self.board.close()
        if self.wandb_run:
            self.wandb_run.finish()


def read_history(folder: Path) -> dict[str, np.ndarray]:
    """reward_history.tsv -> column name -> values (E,), at least one episode.

    The columns are those of the file, so runs of an older version can be read. Raises InputError.
    """
    path, cure = folder / "reward_history.tsv", f"run: python DQN.py --run {folder}"
    if not path.exists():
        raise InputError(f"{path}: not found; {cure}")
    names, *lines = [line.split("\t") for line in read_text(path, cure).rstrip("\n").split("\n")]
    if names[: len(HISTORY) - 1] != list(HISTORY[:-1]) or any(len(x) != len(names) for x in lines):
        raise InputError(f"{path}: damaged; {cure}")
    if not lines:
        raise InputError(f"{path}: no finished episode; {cure}")
    try:
        rows = np.array(lines, dtype=np.float64)
        episodes = rows[:, names.index("Episode")]
        counted = [i for i, name in enumerate(names) if name not in ("Loss", "Q")]
        if not np.isfinite(rows[:, counted]).all() or episodes.min() < 0:
            raise ValueError("not a number")
        if episodes.max() >= len(rows) + MOST_LANES:  # lanes run side by side, so some are ahead
            raise ValueError(f"episode {episodes.max():.0f} in {len(rows)} rows")
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
    average, unchanged = history["Avg10"], unchanged_rewards(history, bandit)
    tenth = max(1, len(average) // 10)
    return {
        "avg10_first_tenth": float(average[:tenth].mean()),
        "avg10_last_tenth": float(average[-tenth:].mean()),
        "always_zero_last_tenth": float(unchanged[-tenth:].mean()),
    }
