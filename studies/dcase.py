"""The 20 real DESED clips with scores of the DCASE 2023 baseline: 5-fold by clip, scores only.

Run:    python studies/dcase.py [DATA]
Reads:  DATA/dcase2023_baseline/ (default: SED_SHARED_DATA or ../shared/data)
Writes: cache/dcase/, runs/dcase/<queries>/{results.json, table.md, table.tex, pairs.csv, events/}
Next:   nothing

Every clip is decided by rules and policies that never saw it: five folds by clip. Rules are tuned
on 20 such splits; learned rows take the first split and three seeds, trained on present pairs, the
preset `best` once for present and once for all pairs, as the rules are tuned. 16 clips are a
gradient step or two of `best`, so it makes 80 passes over them; nothing was tried out here.
There is no audio, so the loudness is 1 everywhere. 20 clips are few: read the intervals.
"""

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "studies")]

from benchmark import data_folder  # noqa: E402

import comparison  # noqa: E402
import csebbs  # noqa: E402
import DQN  # noqa: E402
import gate  # noqa: E402
import opponents  # noqa: E402
import preprocess  # noqa: E402
import twins  # noqa: E402
from config import (  # noqa: E402
    Bandit,
    EvaluateConfig,
    InputError,
    Learning,
    Network,
    PreprocessConfig,
    TrainConfig,
    TwinsConfig,
    process_pool,
    run_main,
    with_preset,
)
from core.files import own_folder  # noqa: E402
from entrants import BASE, GATED, Entrant, Member, from_checkpoint, kind_of_rule  # noqa: E402
from preprocess import Cache, load_cache  # noqa: E402
from timeline import read_labels, write_labels  # noqa: E402

FOLDS, SPLITS, SEEDS, PROCESSES = 5, 20, (0, 1, 2), 2
NETWORK, LR, FRAMES_PER_STEP, PASSES = Network(hidden=32), 1e-3, 32, 5
BEST_PASSES = 80
HOME = Path("cache/dcase")
KINDS = {
    "DQN slides": "policy",
    "supervised classifier": "twin",
    "all 21 rewards": "twin",
    "DQN best": "policy",
}


def folds_of(names: list[str], seed: int) -> list[list[str]]:
    """Clip names dealt to the folds in a seeded order."""
    order = np.random.default_rng([seed, 7]).permutation(len(names))
    return [[names[i] for i in order[k::FOLDS]] for k in range(FOLDS)]


def make_cache(data: Path, folder: Path, names: list[str] | None, queries: str) -> Cache:
    """Cache of some of the clips (default: those that have scores), from score files alone."""
    home = data / "dcase2023_baseline"
    scores, truth = home / "baseline2_run1_scores", home / "metadata" / "ground_truth.tsv"
    if not truth.is_file():
        raise InputError(f"{truth}: not found; give the folder that holds dcase2023_baseline/")
    scored = {path.stem for path in scores.glob("*.tsv")}
    events = {n: e for n, e in read_labels(truth).items() if Path(n).stem in scored}
    events = {name: events[name] for name in names or sorted(events)}
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "labels.tsv", events)
    cfg = PreprocessConfig(
        cache=folder,
        split="train",
        labels=folder / "labels.tsv",
        scores=scores,
        pairs=queries,
        workers=1,
    )
    preprocess.main(cfg)
    return load_cache(folder / "train")


def fold_cache(fold: int, queries: str) -> Path:
    """Cache of the training clips of a fold."""
    return HOME / (f"fold{fold}" if queries == "present" else f"fold{fold}-all")


def run_of(kind: str, fold: int, seed: int, queries: str) -> Path:
    """Run folder of one training."""
    name = kind.replace(" ", "-") + ("-all" if queries == "all" else "")
    return ROOT / "runs" / "dcase" / f"{name}-fold{fold}-seed{seed}"


def learned_for(kind: str, queries: str) -> str:
    """The pairs that a learned row is trained on where a table is of `queries`."""
    return queries if kind == "DQN best" else "present"


def train_one(job: tuple[str, int, int, str]) -> None:
    """One learned row on the training clips of a fold; skipped where it is complete."""
    kind, fold, seed, queries = job
    run = run_of(*job)
    if (run / "complete").exists():
        return
    same = {
        "cache": fold_cache(fold, queries),
        "run": run,
        "passes": PASSES,
        "holdout": 0.0,
        "looks": 1,
        "seed": seed,
        "network": NETWORK,
        "overwrite": True,
    }
    if kind == "DQN best":
        own = same | {"passes": BEST_PASSES, "network": Network()}
        DQN.main(replace(with_preset(TrainConfig, "best"), **own))
    elif kind == "DQN slides":
        learning = Learning(lr=LR, frames_per_step=FRAMES_PER_STEP)
        DQN.main(TrainConfig(**same, learning=learning))
    else:
        name = "classifier" if kind == "supervised classifier" else "rewards"
        twins.main(TwinsConfig(**same, kind=name, lr=LR, frames_per_step=FRAMES_PER_STEP))
    (run / "complete").touch()


def put(whole: np.ndarray, cache: Cache, names: list[str], part: np.ndarray) -> None:
    """Write the decisions of some clips, in the order of `cache.subset`, into those of all."""
    mine = np.array([pair.filename in set(names) for pair in cache.pairs])
    whole[mine[cache.frames_of_pair]] = part


def rule_rows(cache: Cache) -> list[Entrant]:
    """Every rule, tuned and applied out of fold, a member for each split."""
    names = [clip.filename for clip in cache.clips]
    rows: dict[str, list[Member]] = {}
    kinds: dict[str, str] = {}
    for split in range(SPLITS):
        found: dict[str, np.ndarray] = {}
        boxes: dict[str, dict] = {}
        for test in folds_of(names, split):
            train = cache.subset(set(names) - set(test))
            part = cache.subset(test)
            for rule in opponents.fit_all(train, Bandit(), cache.queries, quiet=True):
                kinds[rule.name] = kind_of_rule(rule)
                whole = found.setdefault(rule.name, np.zeros(len(cache.label), bool))
                put(whole, cache, test, opponents.decide_rule(rule, part))
                if rule.kind == "csebbs":
                    boxes.setdefault(rule.name, {}).update(csebbs.sebbs(part, rule.params))
        for name, pred in found.items():
            member = Member(f"split {split}", pred, 0.0, boxes=boxes.get(name))
            rows.setdefault(name, []).append(member)
    fixed = ("all o", "fixed", BASE)  # the same in every split
    return [
        Entrant(name, kinds[name], "", found[:1] if name.startswith(fixed) else found)
        for name, found in rows.items()
        if name != BASE
    ]


def learned_rows(cache: Cache) -> list[Entrant]:
    """T_base and the learned rows, out of fold; over all pairs also behind each fold's gate."""
    names = [clip.filename for clip in cache.clips]
    folds = folds_of(names, 0)
    base = cache.signals["binary"] > 0.5
    rows = [Entrant(BASE, "base", "", [Member("", base, 0.0)])]
    closed = np.zeros(len(cache.label), bool)
    for fold, test in enumerate(folds):
        train_gate = gate.tune_gate(load_cache(fold_cache(fold, "present") / "train"))
        part = cache.subset(test)
        put(closed, cache, test, ~gate.behind(train_gate, part, np.ones(len(part.label), bool)))
    for kind, role in KINDS.items():
        members = []
        for seed in SEEDS:
            whole = np.zeros(len(cache.label), bool)
            for fold, test in enumerate(folds):
                path = run_of(kind, fold, seed, learned_for(kind, cache.queries)) / "best.pt"
                decided = from_checkpoint(path, cache.subset(test), EvaluateConfig())[1]
                put(whole, cache, test, decided.pred)
            members.append(Member(f"seed {seed}", whole, 0.0))
        rows.append(Entrant(kind, role, f"{len(SEEDS)} seeds", members))
    if cache.queries == "all":
        for row in list(rows):
            members = [m._replace(pred=m.pred & ~closed) for m in row.members]
            rows.append(row._replace(name=f"{row.name}, {GATED}", members=members, gated=True))
    return rows


def main(args: list[str]) -> None:
    """Caches, trainings, rules, tables."""
    data = data_folder(args)
    caches = {q: make_cache(data, HOME / q, None, q) for q in ("present", "all")}
    names = [clip.filename for clip in caches["all"].clips]
    for fold, test in enumerate(folds_of(names, 0)):
        train = sorted(set(names) - set(test))
        for queries in caches:
            make_cache(data, fold_cache(fold, queries), train, queries)
    jobs = sorted(
        {
            (kind, fold, seed, learned_for(kind, queries))
            for kind, queries in itertools.product(KINDS, caches)
            for fold, seed in itertools.product(range(FOLDS), SEEDS)
        }
    )
    with process_pool(PROCESSES) as pool:
        list(pool.map(train_one, jobs))
    for queries, cache in caches.items():
        out = ROOT / "runs" / "dcase" / queries
        with own_folder(out, comparison.TABLE):
            entrants = learned_rows(cache) + rule_rows(cache)
            results = comparison.measure(entrants, cache, PROCESSES)
            comparison.write_table(out, results, entrants, cache)
        print(comparison.markdown(results))


if __name__ == "__main__":
    os.chdir(ROOT)
    run_main(lambda: main(sys.argv[1:]))
