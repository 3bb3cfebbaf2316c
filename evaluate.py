"""Before/after table of a policy, with yardsticks: the figures of the slides and what they hide.

Run:    python evaluate.py                        # best.pt of runs/slides on cache/validation
        python evaluate.py --run runs/original --cache cache/original
        python evaluate.py --preset original --checkpoint dqn_threshold.pt
Reads:  <cache>/<split>/, <cache>/<train-split>/ (yardsticks), a checkpoint
Writes: <out>/{results.json, events.tsv, decisions.npz}
Shapes: N frames of all pairs, P pairs
Next:   visualize.py

The metric: change it and old numbers are void.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import runfolder
from bandit import decide, near, thresholds, to_device
from config import Bandit, EvaluateConfig, InputError, run_script
from DQN import Policy, greedy_actions, load_policy
from metrics import NAMES, count_pairs, mean_over_pairs, per_class, pooled
from opponents import best_possible, class_of_pair, yardsticks
from preprocess import Cache, load_cache, write_json
from timeline import Event, frames_to_events, write_labels

TITLES = {"accuracy": "Accuracy", "iou": "IoU", "f1": "F1 Score"}


def check_same_signals(policy: Policy, cache: Cache, path: Path) -> None:
    """InputError where policy and cache were made with different formulas, naming the fields."""
    ours, theirs = cache.manifest["signal"], policy.signal
    if ours is None or theirs is None:  # imported arrays, or a bare state dict: nothing is known
        return
    differ = [
        f"{name} {theirs.get(name)} -> {ours[name]}"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
    if differ:
        raise InputError(
            f"{path} was trained on other signals than {cache.folder}: " + ", ".join(differ)
        )


def selection(cache: Cache, pred: np.ndarray, bandit: Bandit) -> dict[str, float | int | None]:
    """Threshold selection accuracy: of the boundary frames where some action is right, the share
    where the chosen one is (named on the slides, without a number)."""
    prob, t_base = (torch.from_numpy(cache.signals[name]) for name in ("prob", "t_base"))
    inside = near(prob, t_base, bandit.boundary_width).numpy()
    some_right = inside & (best_possible(cache, bandit) == cache.label)
    right = some_right & (pred == cache.label)
    frames = int(some_right.sum())
    return {"accuracy": float(right.sum() / frames) if frames else None, "frames": frames}


def predicted_events(cache: Cache, pred: np.ndarray) -> dict[str, list[Event]]:
    """Decisions (N,) -> events of each clip, by onset."""
    clips: dict[str, list[Event]] = {}
    for index, pair in enumerate(cache.pairs):
        on = pred[cache.offsets[index] : cache.offsets[index + 1]]
        clips.setdefault(pair.filename, []).extend(
            frames_to_events(on, pair.event_label, pair.edges)
        )
    return {name: sorted(events) for name, events in clips.items()}


def tables(cache: Cache, pred: np.ndarray, bandit: Bandit, train: Cache | None) -> dict[str, Any]:
    """Everything that goes into results.json about decisions (N,) after the policy."""
    base = cache.signals["binary"] > 0.5
    counts = {
        "before": count_pairs(base, cache.label, cache.offsets),
        "after": count_pairs(pred, cache.label, cache.offsets),
    }
    mean = {when: mean_over_pairs(each) for when, each in counts.items()}
    labels = class_of_pair(cache)
    classes = {when: per_class(each, labels) for when, each in counts.items()}
    wrong_before, wrong_after = base != cache.label, pred != cache.label
    rows = []
    for rule in yardsticks(cache, train, bandit):
        metrics = mean_over_pairs(count_pairs(rule.pred, cache.label, cache.offsets))
        rows.append({"name": rule.name, "setting": rule.setting, **metrics})
    return {
        **mean,
        "gain": {name: mean["after"][name] - mean["before"][name] for name in NAMES},
        "pooled": {when: pooled(each) for when, each in counts.items()},
        "per_class": {
            label: {
                "pairs": row.pop("pairs"),
                "before": row,
                "after": {name: classes["after"][label][name] for name in NAMES},
            }
            for label, row in classes["before"].items()
        },
        "threshold_selection": selection(cache, pred, bandit),
        "fixed_frames": int((wrong_before & ~wrong_after).sum()),
        "broken_frames": int((~wrong_before & wrong_after).sum()),
        "yardsticks": rows,
    }


def print_block(title: str, metrics: dict[str, float]) -> None:
    """One of the slides' two result blocks."""
    line = f"========== FINAL RESULTS ({title}) =========="
    print(line)
    for name in NAMES:
        print(f"{TITLES[name]:<9}: {metrics[name]:.4f}")
    print("=" * len(line))


def print_rows(title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    """A table of accuracy, IoU, F1 in percent."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title:<{width}} {'Accuracy':>9} {'IoU':>9} {'F1':>9}")
    for name, metrics in rows:
        print(f"{name:<{width}} " + " ".join(f"{metrics[m]:>9.2%}" for m in NAMES))


def print_results(results: dict[str, Any]) -> None:
    """The tables for people, then `key: value` lines for grep."""
    before, after, gain = results["before"], results["after"], results["gain"]
    print_block("npz binary only", before)
    print_block("env mode", after)
    mean = f"mean over {results['num_pairs']} pairs of present classes"
    rows = [("before (T_base)", before), ("after (DQN)", after), ("gain (points)", gain)]
    print_rows(mean, rows)
    both = results["pooled"]
    print_rows(
        "pooled over frames", [("before (T_base)", both["before"]), ("after (DQN)", both["after"])]
    )
    classes = []
    for label, row in results["per_class"].items():
        classes.append((f"{label} ({row['pairs']}) before", row["before"]))
        classes.append((f"{label} ({row['pairs']}) after", row["after"]))
    print_rows("per class (pairs)", classes)
    print_rows(
        "yardsticks, tuned on the training cache",
        [*((row["name"], row) for row in results["yardsticks"]), ("after (DQN)", after)],
    )
    print()
    for name in NAMES:
        print(f"{name}_before: {before[name]:.4f}")
        print(f"{name}_after: {after[name]:.4f}")
        print(f"gain_{name}: {gain[name]:+.4f}")
    chosen = results["threshold_selection"]
    share = "none" if chosen["accuracy"] is None else f"{chosen['accuracy']:.4f}"
    print(f"threshold_selection_accuracy: {share}")
    print(f"threshold_selection_frames: {chosen['frames']}")
    print(f"fixed_frames: {results['fixed_frames']}")
    print(f"broken_frames: {results['broken_frames']}")


def main(cfg: EvaluateConfig) -> None:
    """Apply the policy to a cache, print the tables, write results into the output folder."""
    device = runfolder.pick_device(cfg.device, cfg.threads)
    path = cfg.checkpoint or cfg.run / "best.pt"
    policy = load_policy(path, device, cfg.preset)
    cache = load_cache(cfg.cache / cfg.split)
    check_same_signals(policy, cache, path)
    train_folder = cfg.cache / cfg.train_split
    train = load_cache(train_folder) if (train_folder / "manifest.json").exists() else None
    if train is None:
        print(f"no cache in {train_folder}: yardsticks that need tuning are left out")
    signals = to_device(cache, policy.bandit, device)
    began = time.perf_counter()
    actions = greedy_actions(policy.network, signals, policy.bandit, cfg.batch, None, "Evaluating")
    t_adj = thresholds(signals, actions, policy.bandit)
    pred = decide(signals.prob, t_adj).cpu().numpy()
    seconds = time.perf_counter() - began
    results = {
        "split": cfg.split,
        "cache": str(cache.folder),
        "cache_key": cache.key,
        "checkpoint": str(path),
        "policy": policy.info,
        "num_pairs": len(cache.pairs),
        "num_frames": len(cache.label),
        "deciding_seconds": round(seconds, 3),
        **tables(cache, pred, policy.bandit, train),
    }
    out = cfg.out or (cfg.run if cfg.split == "validation" else cfg.run / cfg.split)
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "decisions.npz.tmp"
    with open(temporary, "wb") as stream:
        np.savez(
            stream,
            action=actions.cpu().numpy().astype(np.int8),
            t_adj=t_adj.cpu().numpy().astype(np.float32),
            binary=pred.astype(np.uint8),
            cache_key=np.array(cache.key),
        )
    temporary.replace(out / "decisions.npz")
    write_labels(out / "events.tsv", predicted_events(cache, pred))
    write_json(out / "results.json", results)
    print_results(results)  # last: nothing is lost where nobody reads to the end
    print(f"results: {out / 'results.json'}, {out / 'events.tsv'}, {out / 'decisions.npz'}")


if __name__ == "__main__":
    run_script(EvaluateConfig, main)
