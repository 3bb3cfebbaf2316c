"""How many of the networks that know which classes sound should see the clip's other scores?

Run:    python studies/policy_rivals.py run        # single networks of both kinds, 3 seeds, 4 folds
        python studies/policy_rivals.py table      # three together, 0 to 3 of which see them
Reads:  cache/esc10-fold<F>-slides-{present,all}/train, data/esc10-fold<F>/clips.tsv
Writes: runs/policy/fold<F>-dev<D>/rivals/<kind>-seed<S>.npz, runs/policy/fold<F>-rivals.md
Shapes: N frames of all pairs, m networks that decide together, D bank folds that judge
Next:   nothing

As policy_pairs.py, with each bank fold of the training clips as the judge in turn. A network that
sees them draws the line between two classes that sound better, and is misled where classes are
asked for that do not; judged on present pairs and, for its events, on all of them. Networks of
three seeds are combined in the three ways in which each is used alike.
"""

import itertools
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a program
    sys.path.insert(0, str(ROOT))

import comparison  # noqa: E402
import gate  # noqa: E402
from bandit import decide, shift, to_device  # noqa: E402
from config import (  # noqa: E402
    Bandit,
    Checked,
    InputError,
    TrainConfig,
    number,
    process_pool,
    run_script,
    to_dict,
    whole,
    with_preset,
    write_text,
)
from dense import PAIRS, DenseTrainer, clips_of  # noqa: E402
from entrants import Entrant, Member  # noqa: E402
from metrics import count_pairs  # noqa: E402
from preprocess import Cache  # noqa: E402
from studies.policy import home_of, over_seeds, split  # noqa: E402

CPU = torch.device("cpu")
KINDS = {"without": 0, "with": 1}  # networks that see the other queries' scores
TOGETHER = 3
COLUMNS = ("IoU", "F1", "macro-F1", "micro-F1", "PSDS 1", "PSDS 2")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Train single networks with every bank fold of the training clips as the judge."""

    fold: int = number(5, 1)
    """bank fold of the validation split, which is not read"""
    workers: int = number(2, 1)
    """processes, one thread each"""


@dataclass(frozen=True, kw_only=True)
class TableConfig(Checked):
    """Three networks together, none to all of which see the other queries' scores."""

    fold: int = number(5, 1)
    """bank fold of the validation split, which is not read"""


def settings_of(kind: str, seed: int) -> TrainConfig:
    """Of a single network."""
    best = with_preset(TrainConfig, "best")
    return replace(best, seed=seed, dense=replace(best.dense, members=1, rival_members=KINDS[kind]))


def judges_of(fold: int) -> list[int]:
    """The bank folds of the training clips."""
    return [dev for dev in range(1, 6) if dev != fold]


def path_of(fold: int, dev: int, kind: str, seed: int) -> Path:
    """Where a network's values are kept."""
    return home_of(fold, dev) / "rivals" / f"{kind}-seed{seed}.npz"


def text_of(kind: str, seed: int) -> str:
    """What the values of a network depend on."""
    cfg = settings_of(kind, seed)
    return json.dumps([*map(to_dict, (cfg.bandit, cfg.dense)), cfg.passes])


@torch.inference_mode()
def gains(trainer: DenseTrainer, cache: Cache) -> np.ndarray:
    """(N,) float32: by how much a network values on above off."""
    network = trainer.network.eval()
    signals = to_device(cache, trainer.bandit, CPU, network.classes, network.rivals)
    found = torch.empty(len(cache.label))
    for part in torch.arange(len(cache.pairs)).split(PAIRS):
        clips = clips_of(signals, part)
        (value,) = network.values(clips)
        found[clips.frame[clips.inside]] = (value[..., 1] - value[..., 0])[clips.inside]
    return found.numpy()


def decisions(gain: np.ndarray, cache: Cache, bandit: Bandit) -> np.ndarray:
    """(N,) bool: the better decision of those that some shift leads to."""
    prob, t_base = cache.signals["prob"], cache.signals["t_base"]
    may_on, must_on = (decide(prob, shift(t_base, s * bandit.max_delta)) for s in (-1, 1))
    return must_on | may_on & (gain > 0)


def stored_gains(path: Path, text: str) -> dict[str, np.ndarray] | None:
    """What was kept of a network by kind of pairs; None if that is not there or of others."""
    if not path.exists():
        return None
    with np.load(path) as stored:
        return dict(stored) if str(stored["settings"]) == text else None


def run_one(fold: int, dev: int, kind: str, seed: int) -> str:
    """Train a network, keep its values; what is there already is left alone."""
    path, text = path_of(fold, dev, kind, seed), text_of(kind, seed)
    name = f"fold {dev} judges, {kind}, seed {seed}"
    if stored_gains(path, text) is not None:
        return f"{name}: done before"
    torch.set_num_threads(1)
    train_cache, present = split(fold, dev)
    trainer = DenseTrainer(settings_of(kind, seed), train_cache, CPU)
    while not trainer.done:
        trainer.tick()
    of = {c.queries: gains(trainer, c) for c in (present, split(fold, dev, "all")[1])}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, settings=text, **of)
    pred = decisions(of["present"], present, trainer.bandit)
    found = comparison.headline(count_pairs(pred, present.label, present.offsets), present)
    return f"{name}: IoU {100 * found['iou']:.2f}, F1 {100 * found['f1']:.2f}"


def run(cfg: RunConfig) -> None:
    """Every fold, kind and seed, a process each."""
    with process_pool(cfg.workers) as pool:
        each = itertools.product(judges_of(cfg.fold), KINDS, range(TOGETHER))
        jobs = [pool.submit(run_one, cfg.fold, *one) for one in each]
        for job in tqdm(jobs, unit="network"):
            tqdm.write(job.result())


def chosen(seeing: int, turn: int) -> list[tuple[str, int]]:
    """Kind and seed of the networks that decide together; `turn` of TOGETHER seeds see first."""
    seeds = [(turn + i) % TOGETHER for i in range(TOGETHER)]
    return [("with" if i < seeing else "without", seed) for i, seed in enumerate(seeds)]


def judged(fold: int, dev: int) -> np.ndarray:
    """(TOGETHER + 1, TOGETHER, 6): by number of networks that see and by turn, in percent."""
    stored: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for one in itertools.product(KINDS, range(TOGETHER)):
        path = path_of(fold, dev, *one)
        values = stored_gains(path, text_of(*one))
        if values is None:
            said = "not there or of other settings; run: python studies/policy_rivals.py run"
            raise InputError(f"{path}: {said}")
        stored[one] = values
    bandit = settings_of("with", 0).bandit
    caches = {queries: split(fold, dev, queries)[1] for queries in ("present", "all")}
    tags = gate.tune_gate(split(fold, dev, "all")[0])
    found = np.empty((TOGETHER + 1, TOGETHER, len(COLUMNS)))
    for seeing in range(TOGETHER + 1):
        for turn in range(TOGETHER):
            these = [stored[each] for each in chosen(seeing, turn)]
            scores: dict[str, float] = {}
            for queries, cache in caches.items():
                mean = np.mean([values[queries] for values in these], axis=0)
                pred = decisions(mean, cache, bandit)
                if queries == "all":
                    row = Entrant("", "policy", "", [Member("", pred, 0.0)])
                    task = next(comparison.event_tasks([row], cache))
                    scores |= comparison.event_row(task)
                    pred = gate.behind(tags, cache, pred)
                counts = count_pairs(pred, cache.label, cache.offsets)
                scores |= comparison.headline(counts, cache)
            names = ("iou", "f1", "macro_f1", "micro_f1", "psds1", "psds2")
            found[seeing, turn] = [100 * scores[name] for name in names]
    return found


def table(cfg: TableConfig) -> None:
    """Means over the folds that judge; ± is the deviation over the three combinations."""
    each = np.stack([judged(cfg.fold, dev) for dev in judges_of(cfg.fold)])  # (D, 4, 3, 6)
    judges = ", ".join(map(str, judges_of(cfg.fold)))
    head = ["networks that see them", *COLUMNS, f"IoU with folds {judges} as judges"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for seeing in range(TOGETHER + 1):
        values = each[:, seeing].mean(0)
        one = seeing in (0, TOGETHER)  # a single combination
        cells = over_seeds(values[:1] if one else values)
        by_fold = ", ".join(f"{iou:.2f}" for iou in each[:, seeing, :, 0].mean(1))
        lines.append(f"| {seeing} of {TOGETHER} | {' | '.join(cells)} | {by_fold} |")
    write_text(home_of(cfg.fold, 0).parent / f"fold{cfg.fold}-rivals.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


COMMANDS = {"run": (RunConfig, run), "table": (TableConfig, table)}


def main(cfg: RunConfig | TableConfig) -> None:
    """The command that the settings belong to."""
    next(work for kind, work in COMMANDS.values() if isinstance(cfg, kind))(cfg)


if __name__ == "__main__":
    os.chdir(ROOT)
    run_script({name: kind for name, (kind, _) in COMMANDS.items()}, main)
