"""Before/after table of a policy, with yardsticks: the figures of the slides and what they hide.

Run:    python evaluate.py                        # best.pt of runs/slides on cache/validation
        python evaluate.py --run runs/original --cache cache/original
        python evaluate.py --preset original --checkpoint dqn_threshold.pt --out runs/authors
        torchrun --nproc-per-node=2 -- evaluate.py
        python evaluate.py --compare DQN=runs/slides rules --out runs/table    # see comparison/
Reads:  <cache>/<split>/, <cache>/<train-split>/ (yardsticks), a checkpoint
Writes: <out>/{results.json, events.tsv, onsets.tsv, decisions.npz}
Shapes: N frames of all pairs, P pairs

The metric: change it and old numbers are void.
"""

import tempfile
import time
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Bandit, EvaluateConfig
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(EvaluateConfig)

import numpy as np
import torch

from baselines.tuned_rules import best_possible, class_of_pair, yardsticks, yardsticks_of_all
from comparison import scoring
from comparison.evaluations import (
    Evaluated,
    digest_of,
    find_matches,
    gain_interval,
    policy_name,
    write_matches,
)
from comparison.systems import BASE, Spec, kind_of_rule, predicted_events
from core.errors import InputError
from core.files import is_ours, keep_apart, mark, matching, own_folder, write_together
from core.names import isolated
from core.ranks import Ranks, pick_device, together
from core.stored import write_json
from core.versions import made_with
from policy import event_policy, runfolder
from policy import gate as tag_gate
from policy.apply import Policy, decide_cache, load_policy
from policy.bandit import near
from sed import event_metrics
from sed.caches import Cache, load_cache
from sed.matching import ENDS, end_errors
from sed.metrics import (
    NAMES,
    Counts,
    count_pairs,
    counts_in,
    mean_over_pairs,
    per_class,
    pooled,
    scores_of,
)
from sed.provenance import held_against, origin_of
from sed.timeline import Event, write_labels

TITLES = {"accuracy": "Accuracy", "iou": "IoU", "f1": "F1 Score"}
GATED_DQN = "DQN, gated"


def selection(cache: Cache, pred: np.ndarray, bandit: Bandit) -> dict[str, float | int | None]:
    """Threshold selection accuracy: of the boundary frames where some action is right, the share
    where the chosen one is (named on the slides, without a number)."""
    prob, t_base = (torch.from_numpy(cache.signals[name]) for name in ("prob", "t_base"))
    inside = near(prob, t_base, bandit.boundary_width).numpy()
    some_right = inside & (best_possible(cache, bandit.max_delta) == cache.label)
    right = some_right & (pred == cache.label)
    frames = int(some_right.sum())
    return {"accuracy": float(right.sum() / frames) if frames else None, "frames": frames}


def tables(
    cache: Cache, pred: np.ndarray, bandit: Bandit | None, train: Cache | None
) -> dict[str, Any]:
    """Everything that goes into results.json about decisions (N,) after the policy; `bandit` None:
    of one that shifts no threshold."""
    base = cache.base
    counts = {
        "before": count_pairs(base, cache.label, cache.offsets),
        "after": count_pairs(pred, cache.label, cache.offsets),
    }
    mean = {when: mean_over_pairs(each) for when, each in counts.items()}
    labels, clips = class_of_pair(cache), np.array([pair.filename for pair in cache.pairs])
    classes = {when: per_class(each, labels) for when, each in counts.items()}
    wrong_before, wrong_after = base != cache.label, pred != cache.label
    scores = {when: scores_of(each) for when, each in counts.items()}
    rows = []
    for rule, decided in yardsticks(cache, train, bandit):
        found = count_pairs(decided, cache.label, cache.offsets)
        row = {"name": rule.name, "kind": kind_of_rule(rule), "setting": rule.setting}
        row |= {"params": rule.params, **mean_over_pairs(found)}
        rows.append(row | {"interval": gain_interval(cache, scores["after"], scores_of(found))})
    return {
        "num_clips": len(set(clips)),
        **mean,
        "gain": {name: mean["after"][name] - mean["before"][name] for name in NAMES},
        "interval": gain_interval(cache, scores["after"], scores["before"]),
        "pooled": {when: pooled(each) for when, each in counts.items()},
        "per_class": {
            label: {
                "pairs": row.pop("pairs"),
                "num_clips": len(set(clips[labels == label])),
                "before": row,
                "after": {name: classes["after"][label][name] for name in NAMES},
                "interval": gain_interval(
                    cache, scores["after"], scores["before"], labels == label
                ),
            }
            for label, row in classes["before"].items()
        },
        "threshold_selection": {"accuracy": None, "frames": 0}
        if bandit is None
        else selection(cache, pred, bandit),
        "fixed_frames": int((wrong_before & ~wrong_after).sum()),
        "broken_frames": int((~wrong_before & wrong_after).sum()),
        "yardsticks": rows,
    }


def all_pairs_tables(
    cache: Cache,
    train: Cache | None,
    pred: np.ndarray,
    gate: tag_gate.Gate | None,
    name: str,
) -> dict[str, dict[str, Any]]:
    """Over all pairs: T_base and the policy called `name`, bare and behind the tag gate, and the
    rules.

    The gate is the policy's; of one without, that of the training cache stands before T_base.
    Each row has its `kind` and `behind`: by how much the policy's last row is better in macro-F1,
    with the interval.
    """
    base, rows = cache.base, {}

    def count(on: np.ndarray) -> Counts:
        return counts_in(cache, cache.cut(on))

    rows[BASE], rows[name] = ("base", count(base)), ("policy", count(pred))
    of_base = gate or (train and train.queries == "all" and tag_gate.tune_gate(train)) or None
    if of_base is not None:
        rows[f"{BASE}, gated"] = ("base", count(tag_gate.behind(of_base, cache, base)))
    if gate is not None:
        rows[GATED_DQN] = ("policy", count(tag_gate.behind(gate, cache, pred)))
    if train is not None and train.queries == "all":
        rows |= {rule.name: ("rule", each) for rule, each in yardsticks_of_all(cache, train)}
    sampler = scoring.Resampler(cache)
    found = {name: (scoring.headline(c, cache), sampler.draws(c)) for name, (_, c) in rows.items()}
    ours = found[judged_row(found)]
    names = scoring.HEADLINE["all"]
    return {
        name: found[name][0]
        | {"kind": kind, "behind": scoring.difference(names, ours, found[name])["macro_f1"]}
        for name, (kind, _) in rows.items()
    }


LEVELS = np.linspace(0, 0.95, 20)  # of the operating curve


def operating_curve(cache: Cache, boxes: event_policy.Candidates) -> dict[str, Any]:
    """What `--min-confidence` does to a policy's events: precision, recall and F1 of all events
    together by collars (DCASE Task 4), a value for each of `LEVELS`."""
    ends, found = event_policy.seconds_of(boxes, cache), {clip.filename: [] for clip in cache.clips}
    for i in np.flatnonzero(boxes.chosen):
        pair = cache.pairs[boxes.pair[i]]
        event = Event(float(ends[0][i]), float(ends[1][i]), pair.event_label)
        found[pair.filename].append((float(boxes.confidence[i]), event))
    given, rows = (cache.truth, cache.durations, cache.classes, ("event_f1",)), []
    for level in LEVELS:
        some = {name: [e for sure, e in events if sure >= level] for name, events in found.items()}
        counts = event_metrics.event_counts(some, *given)
        tp, fp, fn = (float(each.sum()) for each in counts["event_f1"])
        rows.append((tp / max(tp + fp, 1), tp / max(tp + fn, 1), 2 * tp / max(2 * tp + fp + fn, 1)))
    columns = dict(zip(("precision", "recall", "f1"), zip(*rows, strict=True), strict=True))
    what = "Events by collars, those with at least this confidence (--min-confidence)"
    return {"what": what, "confidence": LEVELS.tolist(), **columns}


def best_rule(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rule that is best by F1 on this very split; none where none was tuned."""
    rows = {row["name"]: row for row in results["yardsticks"] if row["kind"] == "rule"}
    if not any(row["setting"] for row in rows.values()):
        return []
    return [rows[scoring.best_of(rows, "f1")]]


def judged_row(rows: Container[str]) -> str:
    """Which row over all pairs is the policy as it is used: behind its gate, where it has one."""
    return next(name for name in (GATED_DQN, "DQN", "policy") if name in rows)


def verdict(results: dict[str, Any]) -> str:
    """The policy's worth in one sentence: against its base threshold, and against the rule that is
    best on this very split, which favours the rule.

    On present pairs by the mean F1 of a pair, on all pairs by macro-F1, behind the gate.
    """
    name = policy_name(results)
    if rows := results.get("all_pairs"):
        metric, row = "macro_f1", judged_row(rows)
        name, ours = row, rows[row]["macro_f1"]
        others = [scoring.best_of(rows, metric, (kind,)) for kind in ("base", "rule")]
        against = [(other, rows[other], rows[other]["behind"]) for other in others if other]
    else:
        metric, ours = "f1", results["after"]["f1"]
        whole = [(BASE, results["before"], results["interval"])]
        whole += [(row["name"], row, row["interval"]) for row in best_rule(results)]
        against = [(who, row, [ours - row["f1"], *ends["f1"]]) for who, row, ends in whole]
    parts = [
        scoring.judged(results, metric, who, row[metric], change) for who, row, change in against
    ]
    said = f"{name} ({scoring.TITLES[metric]} {100 * ours:.2f}) {' and '.join(parts)}."
    return said if results["num_clips"] > 1 else f"{said} {scoring.ONE_CLIP}"


def print_block(title: str, metrics: dict[str, float]) -> None:
    """One of the slides' two result blocks."""
    line = f"========== FINAL RESULTS ({title}) =========="
    print(line)
    for name in NAMES:
        print(f"{TITLES[name]:<9}: {metrics[name]:.4f}")
    print("=" * len(line))


GAIN = "gain (points)"  # a row of `print_rows` that holds differences


def print_rows(title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    """A table of accuracy, IoU, F1 in percent."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title:<{width}} {'Accuracy':>9} {'IoU':>9} {'F1':>9}")
    for name, metrics in rows:
        form = "+.2f" if name == GAIN else ".2f"
        cells = (f"{100 * metrics[m]:{form}}" + "%" * (name != GAIN) for m in NAMES)
        print(isolated(f"{name:<{width}} " + " ".join(f"{cell:>9}" for cell in cells)))


def print_margins(results: dict[str, Any]) -> None:
    """What the policy gains over each yardstick, in points, with the interval of the difference."""
    rows = [("before (T_base)", results["before"], results["interval"])]
    rows += [(row["name"], row, row["interval"]) for row in results["yardsticks"]]
    title = f"{policy_name(results)} minus .., points [95 % of bootstraps]"
    width = max(len(title), *(len(name) for name, _, _ in rows))
    print(f"\n{title:<{width}}" + "".join(f"{TITLES[name]:>24}" for name in NAMES))
    for name, row, between in rows:
        cells = [scoring.in_points((results["after"][m] - row[m], *between[m])) for m in NAMES]
        print(f"{name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))


def print_ends(ends: dict[str, Any]) -> None:
    """Median errors of the events that each threshold found, one line an end."""
    for end in ENDS:
        texts = [
            f"{row['median_ms']:.0f} ms {when} ({row['events']} events)"
            for when, table in ends.items()
            if (row := table[end])["events"]
        ]
        if texts:
            print(f"median_{end}_error: {', '.join(texts)}")


def print_all_pairs(results: dict[str, Any], full: bool) -> None:
    """What a cache of all pairs adds: false alarms count."""
    rows = results["all_pairs"]
    title = f"all {results['num_pairs']} pairs"
    width = max(map(len, [title, *rows]))
    print(f"\n{title:<{width}} {'macro-F1':>9} {'micro-F1':>9} {'absent pairs on':>16}")
    best = scoring.best_of(rows, "macro_f1", ("rule",))
    for name, row in rows.items():
        if row["kind"] == "rule" and name != best and not full:
            continue
        values = f"{row['macro_f1']:>9.2%} {row['micro_f1']:>9.2%} {row['false_alarms']:>16.2%}"
        print(f"{name:<{width}} {values}")
    print(
        "absent classes count here; in the table above they do not, which favours T_base and rules"
    )
    if results["gate"] is None and not results["over_events"]:
        print("note: the policy has no tag gate, so nothing is gated and the events are all of its")
    if results["gate"] is not None:
        gate = results["gate"]
        print(f"gate_precision: {gate['precision']:.4f}\ngate_recall: {gate['recall']:.4f}")


def print_results(results: dict[str, Any], full: bool = False) -> None:
    """One screen: the slides' two blocks, a table, `key: value` lines for grep, the verdict last.

    `full` adds per-class results, every yardstick and the other `key: value` lines.
    """
    before, after, gain = results["before"], results["after"], results["gain"]
    print_block("npz binary only", before)
    print_block("env mode", after)
    then = f"after ({policy_name(results)})"
    rows = [("before (T_base)", before), (then, after), (GAIN, gain)]
    rows += [(f"best rule by F1: {row['name']}", row) for row in best_rule(results)]
    print_rows(f"mean over {results['present_pairs']} pairs of present classes", rows)
    if full:
        print_details(results)
    if "all_pairs" in results:
        print_all_pairs(results, full)
    print()
    for name in NAMES:
        low, high = results["interval"][name]
        print(f"gain_{name}: {gain[name]:+.4f}\ngain_{name}_interval: {low:+.4f} {high:+.4f}")
    if full:
        print_numbers(results)
    print_ends(results["ends"])
    low, high = results["interval"]["f1"]
    harms = high < 0 and not scoring.in_the_noise(results, low, high)
    if harms and "all_pairs" not in results:  # there T_base hears what is not there
        print(
            f"note: the policy does harm here: F1 {100 * gain['f1']:+.2f} points"
            f" [{100 * low:+.2f}, {100 * high:+.2f}] over its base threshold"
        )
    print(f"verdict: {results['verdict']}")


def print_details(results: dict[str, Any]) -> None:
    """Over frames, by class, every yardstick."""
    both, then = results["pooled"], f"after ({policy_name(results)})"
    print_rows("pooled over frames", [("before (T_base)", both["before"]), (then, both["after"])])
    classes = []
    for label, row in results["per_class"].items():
        classes.append((f"{label} ({row['pairs']}) before", row["before"]))
        classes.append((f"{label} ({row['pairs']}) after", row["after"]))
    print_rows("per class (pairs)", classes)
    print_rows(
        "baselines, tuned on the training cache",
        [*((row["name"], row) for row in results["yardsticks"]), (then, results["after"])],
    )
    print_margins(results)


def print_numbers(results: dict[str, Any]) -> None:
    """`key: value` lines beside the gains."""
    for name in NAMES:
        print(f"{name}_before: {results['before'][name]:.4f}")
        print(f"{name}_after: {results['after'][name]:.4f}")
    chosen = results["threshold_selection"]
    share = "none" if chosen["accuracy"] is None else f"{chosen['accuracy']:.4f}"
    print(f"threshold_selection_accuracy: {share}")
    print(f"threshold_selection_frames: {chosen['frames']}")
    print(f"fixed_frames: {results['fixed_frames']}")
    print(f"broken_frames: {results['broken_frames']}")
    print(f"trained_on_pairs: {results['trained_on_pairs']}")


# ---------------------------------------------------------------------------- the evaluation


@contextmanager
def held_results(out: Path, run: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only job that writes results into a folder: `run`, the policy's own, or another.

    Of several processes the first one holds it. Raises what `own_folder` raises.
    """
    at_home = out.resolve() == run.resolve()
    kinds = (runfolder.RUN, runfolder.EVALUATION) if at_home else (runfolder.EVALUATION,)

    def hold() -> None:
        known = any(is_ours(out, kind) for kind in kinds)
        if at_home and not known and not matching(out, runfolder.RUN.files)[1]:
            mark(out, runfolder.RUN)  # a policy that was copied without its training
        held.enter_context(own_folder(out, *kinds))

    with ExitStack() as held:
        ranks.leader_first(hold)
        yield


def compare(cfg: EvaluateConfig) -> None:
    """The table of --compare: print it, and with --out write it in every form.

    InputError for caches of different queries, and for an output folder that is no table's: a run
    folder's own results.json would be lost.
    """
    if cfg.out is None:  # print it only
        with tempfile.TemporaryDirectory() as folder:
            make_table(replace(cfg, out=Path(folder)))
        print("not kept; --out FOLDER writes tables, events and results.json")
        return
    given = [path for text in cfg.compare if text != "rules" for path in Spec.parse(text).files]
    keep_apart(cfg.out, [cfg.cache, cfg.cache / cfg.split, cfg.cache / cfg.train_split, *given])
    keep_apart(cfg.out / "events", given, replaced=True)
    with own_folder(cfg.out, scoring.TABLE, scoring.BEGUN):
        make_table(cfg)
    print(f"results: {cfg.out}/results.json, table.md, table.tex, pairs.csv, events/")


def make_table(cfg: EvaluateConfig) -> None:
    """The table itself; nobody else writes into the output folder meanwhile."""
    cache, train = (load_cache(cfg.cache / split) for split in (cfg.split, cfg.train_split))
    if cache.queries != train.queries:
        raise InputError(
            f"{cache.folder} holds {cache.queries} pairs but {train.folder} {train.queries} pairs;"
            " run preprocess.py for both with the same --pairs"
        )
    results, systems = scoring.compare(cfg, cache, train)
    deciding = sum(m["deciding_seconds"] for row in results["entrants"] for m in row["members"])
    scoring.write_table(cfg.out, results, systems, cache)
    print(scoring.markdown(results))
    print(f"deciding_seconds: {deciding:.1f} (once for each checkpoint and cache; stored)")
    print(f"tuning_and_deciding_seconds: {results['tuning_and_deciding_seconds']:.1f} (this time)")
    print(f"table_seconds: {results['seconds']:.1f}")


def evaluate(cfg: EvaluateConfig, device: torch.device, ranks: Ranks) -> None:
    """Apply the policy to a cache, print the tables, write results into the output folder.

    The pairs are dealt out over the processes; the first one makes the tables.
    """
    path = runfolder.checkpoint_of(cfg.checkpoint or cfg.run / "best.pt")
    policy = load_policy(path, device, cfg.preset)
    if policy.over_events and cfg.batch is not None:
        print("note: --batch does nothing for a policy over events")
    out = cfg.out or (cfg.run if cfg.split == "validation" else cfg.run / cfg.split)
    keep_apart(out, [cfg.cache, cfg.cache / cfg.split, cfg.cache / cfg.train_split])
    with held_results(out, path.parent, ranks):
        apply(cfg, path, policy, out, device, ranks)


def apply(
    cfg: EvaluateConfig, path: Path, policy: Policy, out: Path, device: torch.device, ranks: Ranks
) -> None:
    """The evaluation itself; nobody else writes into the output folder meanwhile."""
    cache = load_cache(cfg.cache / cfg.split)
    notes = held_against(str(path), policy.origin, cache, cfg.other_classes, policy.network.window)
    seen = runfolder.trained_on(policy.seen, cache, path)
    if not cache.present.any():
        raise InputError(f"{cache.folder}: no clip has an event, so there is nothing to evaluate")
    train_folder = cfg.cache / cfg.train_split
    train = load_cache(train_folder) if (train_folder / "manifest.json").exists() else None
    if train is None:
        print(f"no cache in {train_folder}: tuned baselines are left out")
    else:
        notes += held_against("each baseline", origin_of(train), cache, cfg.other_classes)
    for note in notes:
        print(f"note: {note}")
    began = time.perf_counter()
    pred, action, t_adj, boxes, batch = decide_cache(
        policy, cache, device, cfg.batch, ranks, "Evaluating"
    )
    if not ranks.leads:
        return
    seconds = time.perf_counter() - began
    results = {
        "split": cfg.split,
        "cache": str(cache.folder),
        "cache_key": cache.key,
        "checkpoint": str(path),
        "policy": policy.info,
        "over_events": policy.over_events,
        "notes": notes,
        **made_with(),
        "queries": cache.queries,
        "num_pairs": len(cache.pairs),
        "present_pairs": int(cache.present.sum()),
        "trained_on_pairs": seen,
        "num_frames": cache.num_frames,
        "present_frames": int(np.diff(cache.offsets)[cache.present].sum()),
        "deciding_seconds": round(seconds, 3),
        "processes": ranks.size,
        "batch": batch,
    }
    heard = pred[cache.of_frames(cache.present)]  # the slides' tables: present classes only
    results |= tables(
        cache.present_only(), heard, None if policy.over_events else policy.bandit, train
    )
    events = pred
    if cache.queries == "all":
        given = cache, train, pred, policy.gate, policy_name(results)
        results["all_pairs"] = all_pairs_tables(*given)
        results["gate"] = policy.gate and tag_gate.tagging(policy.gate, cache)
        if policy.gate is not None:
            events = tag_gate.behind(policy.gate, cache, pred)
        if boxes is not None:
            results["curve"] = operating_curve(cache, boxes)
    results["verdict"] = verdict(results)
    before = cache.base
    data = Evaluated(cache, results, t_adj, before, pred)
    matches = find_matches(data)
    results["ends"] = {when: end_errors(some) for when, some in matches._asdict().items()}
    decided = {"binary": pred.view(np.uint8)}
    if boxes is not None:
        decided |= event_policy.as_arrays(boxes)
    elif action is not None:
        decided |= {"action": action, "t_adj": t_adj}
    results["decisions"] = digest_of(decided)
    found = predicted_events(cache, events)

    def write_decisions(place: Path) -> None:
        with open(place, "wb") as stream:
            np.savez(stream, **decided, cache_key=np.array(cache.key))

    write_together(
        {
            out / "decisions.npz": write_decisions,
            out / "events.tsv": lambda place: write_labels(place, found),
            out / "onsets.tsv": lambda place: write_matches(place, matches),
            out / "results.json": lambda place: write_json(place, results),
        }
    )
    files = ("results.json", "events.tsv", "onsets.tsv", "decisions.npz")
    print("results: " + ", ".join(str(out / file) for file in files))
    print_results(results, cfg.full)  # last: nothing is lost where nobody reads to the end


def main(cfg: EvaluateConfig) -> None:
    """Evaluate a policy, or compare many."""
    device = pick_device(cfg.device, cfg.threads)
    with together(device) as ranks:
        if cfg.compare and ranks.size > 1:
            raise InputError("--compare runs in one process; leave out torchrun")
        if cfg.compare:
            compare(cfg)
        else:
            evaluate(cfg, device, ranks)


if __name__ == "__main__":
    run_script(EvaluateConfig, main)
