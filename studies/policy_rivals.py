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
import os
import sys
from dataclasses import dataclass
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
    number,
    process_pool,
    run_script,
    write_text,
)
from dense import PAIRS, DenseTrainer, clips_of  # noqa: E402
from entrants import Entrant, Member  # noqa: E402
from metrics import count_pairs  # noqa: E402
from preprocess import Cache  # noqa: E402
from studies.policy import home_of, keep, over_seeds, split  # noqa: E402
from studies.policy_pairs import CPU, single, stored_run, text_of, trained  # noqa: E402

KINDS = {"without": 0, "with": 1}  # networks that see the other queries' scores
TOGETHER = 3
COLUMNS = ("iou", "f1", "macro_f1", "micro_f1", "psds1", "psds2")


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


def judges_of(fold: int) -> list[int]:
    """The bank folds of the training clips."""
    return [dev for dev in range(1, 6) if dev != fold]


def path_of(fold: int, dev: int, kind: str, seed: int) -> Path:
    """Where a network's values are kept."""
    return home_of(fold, dev) / "rivals" / f"{kind}-seed{seed}.npz"


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


def run_one(fold: int, dev: int, kind: str, seed: int) -> str:
    """Train a network, keep its values; what is there already is left alone."""
    path, cfg = path_of(fold, dev, kind, seed), single(seed, rival_members=KINDS[kind])
    name, text = f"fold {dev} judges, {kind}, seed {seed}", text_of("present", cfg)
    if stored_run(path, text) is not None:
        return f"{name}: done before"
    train_cache, present = split(fold, dev)
    trainer = trained(cfg, train_cache)
    of = {c.queries: gains(trainer, c) for c in (present, split(fold, dev, "all")[1])}
    keep(path, settings=text, **of)
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


def judged(fold: int, dev: int) -> list[np.ndarray]:
    """(turns, 6) in percent for each number of networks that see; none and all have one turn."""
    stored: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for kind, seed in itertools.product(KINDS, range(TOGETHER)):
        path, cfg = path_of(fold, dev, kind, seed), single(seed, rival_members=KINDS[kind])
        values = stored_run(path, text_of("present", cfg))
        if values is None:
            said = "not there or of other settings; run: python studies/policy_rivals.py run"
            raise InputError(f"{path}: {said}")
        stored[kind, seed] = values
    train_cache, judge = split(fold, dev, "all")
    caches, tags = (split(fold, dev)[1], judge), gate.tune_gate(train_cache)
    found = []
    for seeing in range(TOGETHER + 1):
        rows = []
        for turn in range(TOGETHER if 0 < seeing < TOGETHER else 1):
            these = [stored[each] for each in chosen(seeing, turn)]
            scores: dict[str, float] = {}
            for cache in caches:
                mean = np.mean([values[cache.queries] for values in these], axis=0)
                pred = decisions(mean, cache, cfg.bandit)
                if cache.queries == "all":
                    row = Entrant("", "policy", "", [Member("", pred, 0.0)])
                    task = next(comparison.event_tasks([row], cache))
                    scores |= comparison.event_row(task)
                    pred = gate.behind(tags, cache, pred)
                counts = count_pairs(pred, cache.label, cache.offsets)
                scores |= comparison.headline(counts, cache)
            rows.append([100 * scores[name] for name in COLUMNS])
        found.append(np.array(rows))
    return found


def table(cfg: TableConfig) -> None:
    """Means over the folds that judge; ± is the deviation over the three combinations."""
    each = [judged(cfg.fold, dev) for dev in judges_of(cfg.fold)]
    judges = ", ".join(map(str, judges_of(cfg.fold)))
    titles = [comparison.TITLES[name] for name in COLUMNS]
    head = ["networks that see them", *titles, f"IoU with folds {judges} as judges"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for seeing, values in enumerate(map(np.stack, zip(*each, strict=True))):  # (D, turns, 6)
        cells = over_seeds(values.mean(0))
        by_fold = ", ".join(f"{iou:.2f}" for iou in values[:, :, 0].mean(1))
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
