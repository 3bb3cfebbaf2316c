"""What `--preset best` has to learn from where nobody knows which classes occur in a clip.

Run:    python studies/policy_pairs.py run        # every variant, 3 seeds
        python studies/policy_pairs.py table      # what was run, beside the rules
Reads:  cache/esc10-fold<F>-slides-{present,all}/train, data/esc10-fold<F>/clips.tsv
Writes: runs/policy/fold<F>-dev<D>/{rules-all.npz, pairs/{<variant>-seed<S>.npz, table.md}}
Shapes: N frames of all pairs, K classes
Next:   nothing

As policy.py: the training clips of one bank fold judge, the others train, validation is not read.
Judged over all pairs behind the tag gate, by the F1 of each class over all its frames. Variants are
settings of `--preset best` with one member and the pairs that it is trained on.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a program
    sys.path.insert(0, str(ROOT))

import gate  # noqa: E402
from bandit import decide, thresholds, to_device  # noqa: E402
from comparison import HEADLINE, Resampler, headline, interval  # noqa: E402
from config import (  # noqa: E402
    Checked,
    Dense,
    InputError,
    TrainConfig,
    number,
    process_pool,
    run_script,
    to_dict,
    with_preset,
    write_text,
)
from core.stored import parse_json, read_npz  # noqa: E402
from dense import DenseTrainer, greedy  # noqa: E402
from metrics import count_pairs  # noqa: E402
from preprocess import Cache  # noqa: E402
from runfolder import known_config  # noqa: E402
from studies.policy import TableConfig, home_of, keep, over_seeds, rules_of, split  # noqa: E402

CPU = torch.device("cpu")
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "trained on present pairs": ("present", {}),
    "all pairs": ("all", {}),
    "all pairs, known head": ("all", {"known_head": True}),
    "all pairs, without rivals": ("all", {"rival_context": False}),
    "all pairs, gate_share 0.2": ("all", {"gate_share": 0.2}),
    "all pairs, gate_share 1": ("all", {"gate_share": 1.0}),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Train every variant and keep its decisions on the held-out training clips."""

    fold: int = number(5, 1)
    """bank fold of the validation split, which is not read"""
    dev: int = number(4, 1)
    """bank fold whose training clips judge"""
    seeds: int = number(3, 1)
    """seeds 0, 1, .."""
    workers: int = number(2, 1)
    """processes, one thread each"""


def single(seed: int, **changes: Any) -> TrainConfig:
    """The preset with one member, and changes to how it learns."""
    best = with_preset(TrainConfig, "best")
    dense = replace(best.dense, **({"members": 1, "rival_members": 0} | changes))
    passes = best.passes or DenseTrainer.PASSES
    return replace(best, seed=seed, dense=dense, passes=passes)


def text_of(queries: str, cfg: TrainConfig) -> str:
    """What the results of a network depend on, beside its seed."""
    return json.dumps([queries, *map(to_dict, (cfg.bandit, cfg.dense)), cfg.passes])


def stored_run(path: Path, text: str) -> dict[str, np.ndarray] | None:
    """What was kept of a network; None if that is not there or of other settings."""
    if not path.exists():
        return None
    stored = read_npz(path, None, "delete it")
    try:
        queries, bandit, dense, passes = parse_json(str(stored.get("settings")))
    except (ValueError, TypeError):
        raise InputError(f"{path}: holds no settings; delete it") from None
    known = [queries, bandit, known_config(Dense, dense), passes]
    return stored if known == json.loads(text) else None


def trained(cfg: TrainConfig, cache: Cache) -> DenseTrainer:
    """A trainer that has done all its work, on one thread."""
    torch.set_num_threads(1)
    trainer = DenseTrainer(cfg, cache, CPU)
    while not trainer.done:
        trainer.tick()
    return trainer


def run_one(name: str, fold: int, dev: int, seed: int) -> str:
    """Train a variant, keep its decisions; what is there already is left alone."""
    path = home_of(fold, dev) / "pairs" / f"{name.replace(' ', '_')}-seed{seed}.npz"
    queries, changes = VARIANTS[name]
    cfg = single(seed, **changes)
    text = text_of(queries, cfg)
    if stored_run(path, text) is not None:
        return f"{name}, seed {seed}: done before"
    train_cache, judge = split(fold, dev, queries)[0], split(fold, dev, "all")[1]
    began = time.process_time()
    trainer = trained(cfg, train_cache)
    seconds = time.process_time() - began
    network = trainer.network
    signals = to_device(judge, cfg.bandit, CPU, network.classes, network.rivals)
    actions = greedy(network, signals, cfg.bandit, np.arange(len(judge.pairs)))
    pred = decide(signals.prob, thresholds(signals, actions, cfg.bandit)).numpy()
    pred = gate.behind(trainer.gate, judge, pred)
    keep(path, pred=pred, seconds=seconds, settings=text)
    found = headline(count_pairs(pred, judge.label, judge.offsets), judge)
    said = ", ".join(f"{100 * found[metric]:.2f}" for metric in HEADLINE["all"])
    return f"{name}, seed {seed}: {said}, {seconds:.0f} s"


def run(cfg: RunConfig) -> None:
    """Every variant and seed, a process each."""
    with process_pool(cfg.workers) as pool:
        jobs = [
            pool.submit(run_one, name, cfg.fold, cfg.dev, seed)
            for seed in range(cfg.seeds)
            for name in VARIANTS
        ]
        for job in tqdm(jobs, unit="run"):
            tqdm.write(job.result())


def table(cfg: TableConfig) -> None:
    """Means over seeds, and the difference to the best rule with its interval over clips."""
    home, judge = home_of(cfg.fold, cfg.dev), split(cfg.fold, cfg.dev, "all")[1]
    rows = {
        name: [pred]
        for name, pred in rules_of(cfg.fold, cfg.dev, "all").items()
        if "ceiling" not in name
    }
    rules, times = list(rows), {}
    for name, (queries, changes) in VARIANTS.items():
        text = text_of(queries, single(0, **changes))
        for path in sorted(home.glob(f"pairs/{name.replace(' ', '_')}-seed*.npz")):
            stored = stored_run(path, text)
            if stored is None:
                print(f"note: {path} is of other settings and left out")
                continue
            rows.setdefault(name, []).append(stored["pred"])
            times.setdefault(name, []).append(float(stored["seconds"]))
    counts = {
        name: [count_pairs(pred, judge.label, judge.offsets) for pred in preds]
        for name, preds in rows.items()
    }
    means, names = {}, HEADLINE["all"]
    for name, each in counts.items():
        found = [headline(one, judge) for one in each]
        means[name] = 100 * np.array([[one[metric] for metric in names] for one in found])
    best = max(rules, key=lambda name: means[name][0, 0])
    resampler, lines = Resampler(judge), []
    rival = resampler.draws(counts[best][0])
    lines += [f"{len(judge.pairs)} pairs of {len(judge.clips)} training clips with sounds of bank"]
    lines[0] += f" fold {cfg.dev}, trained and tuned on the other folds; *{best}* is the best rule."
    lines += ["", "| | macro-F1 | micro-F1 | absent pairs on | macro-F1 minus best rule |"]
    lines[-1] += " micro-F1 minus best rule | s |"
    lines += ["|---|---|---|---|---|---|---|"]
    for name, values in means.items():
        cells = over_seeds(values)
        draws = np.mean([resampler.draws(one) for one in counts[name]], axis=0) - rival
        low, high = 100 * interval(draws)
        gain = values.mean(0) - means[best][0]
        for k in (0, 1):
            text = f"{gain[k]:+.2f} [{low[k]:+.2f}, {high[k]:+.2f}]"
            cells.append(text if name != best else "")
        cells.append(f"{np.mean(times[name]):.0f}" if name in times else "")
        lines.append(f"| {f'*{name}*' if name == best else name} | {' | '.join(cells)} |")
    write_text(home / "pairs" / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


COMMANDS = {"run": (RunConfig, run), "table": (TableConfig, table)}


def main(cfg: RunConfig | TableConfig) -> None:
    """The command that the settings belong to."""
    next(work for kind, work in COMMANDS.values() if isinstance(cfg, kind))(cfg)


if __name__ == "__main__":
    os.chdir(ROOT)
    run_script({name: kind for name, (kind, _) in COMMANDS.items()}, main)
