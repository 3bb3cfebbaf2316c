"""One table of many systems on one split: metrics, paired intervals, a verdict.

Run:    python evaluate.py --compare DQN=runs/slides C=runs/classifier rules --out runs/table
Writes: <out>/{results.json, table.md, table.tex, pairs.csv, events/}
Shapes: N frames of all pairs, P pairs, C clips, K classes, D bootstrap draws

A cache of present pairs gives the slides' protocol: accuracy, IoU and F1 of each pair, then the
mean; it hands every system the clip's tags. A cache of all pairs lets false alarms count: F1 over
the frames of each class in all clips, then the mean (macro), F1 over all frames (micro), and the
share of absent pairs with a frame on. There, policies, baselines and T_base stand bare and behind
the tag gate. Rules are tuned on the training cache: mean-pair F1, or macro-F1 over all pairs.

Intervals are of clips drawn with replacement, the same draws for every row, so that differences are
paired; of several seeds the mean is taken in every draw. They do not cover the choice of seeds (see
the standard deviation) nor of recordings. One clip has no interval: nothing can be told from it.
"""

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from baselines.tuned_rules import after_median, class_of_pair
from comparison.systems import BASE, GATED, Member, System, events_of, find_systems, with_events
from config import EvaluateConfig
from core.errors import InputError
from core.files import Kind, write_text, write_together
from core.names import csv_cell, markdown_table
from core.names import latex as as_latex
from core.names import markdown as as_markdown
from core.processes import in_order, num_workers, process_pool
from core.stored import file_sha256, read_json, write_json
from core.versions import made_on, made_with
from policy import gate as tag_gate
from sed import event_metrics
from sed.caches import Cache
from sed.event_metrics import EventCounts, ScoredEvent, averages
from sed.matching import end_errors, match_events
from sed.metrics import (
    Counts,
    bootstrap_weights,
    counts_in,
    f1_score,
    interval,
    macro_average,
    mean_over_pairs,
    over_all_pairs,
    resampled,
    scores_of,
)
from sed.timeline import ClipScores, Event, write_labels

TABLE = Kind("table", older=(("results.json", "entrants"), ("results.json", "cache_key")))
BEGUN = TABLE._replace(older=(("rules.json", "train"), ("rules.json", "rules")))  # and stopped
HEADLINE = {"present": ("accuracy", "iou", "f1"), "all": ("macro_f1", "micro_f1", "false_alarms")}
DECISIVE = {"present": "f1", "all": "macro_f1"}  # rules are tuned for it, verdicts are about it
DRAWN_FOR_EVENTS = ("event_f1", "intersection_f1")  # those that have an interval too
FIELD = ("event_f1", "segment_f1", "intersection_f1", "psds1", "psds2")
TITLES = {
    "accuracy": "Accuracy",
    "iou": "IoU",
    "f1": "F1",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "false_alarms": "absent pairs on",
    "event_f1": "event F1",
    "segment_f1": "segment F1",
    "intersection_f1": "intersection F1",
    "psds1": "PSDS 1",
    "psds2": "PSDS 2",
    "onset_ms": "onset error",
    "offset_ms": "offset error",
}
BASELINES = ("rule", "supervised", "events")  # kinds of rows that a policy is held against
TRIVIAL = ("all on", "all off")  # left out where an axis is cut to what differs
# Frames of all members together whose events take longer to score than to start a process for them.
WORK_OF_A_PROCESS = 30_000_000


# ---------------------------------------------------------------------------- headline metrics


def counts_of(member: Member, cache: Cache) -> Counts:
    """Confusion counts (P,) of a member's decisions."""
    return counts_in(cache, cache.cut(member.pred))


def headline(counts: Counts, cache: Cache) -> dict[str, float]:
    """The split's headline metrics of one member."""
    if cache.queries == "present":
        return mean_over_pairs(counts)
    return over_all_pairs(counts, class_of_pair(cache), cache.present)


class Resampler:
    """Clips with a pair drawn with replacement, the same draws for every member of a table; or
    weighted: `weights` takes the names of the clips (C,) and gives (D, C)."""

    def __init__(
        self, cache: Cache, weights: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.cache = cache
        names = [pair.filename for pair in cache.pairs]
        self.names, self.clip = np.unique(names, return_inverse=True)  # (C,), (P,)
        num_clips = len(self.names)
        self.weights = bootstrap_weights(num_clips) if weights is None else weights(self.names)
        labels = class_of_pair(cache)
        self.classes = [np.flatnonzero(labels == name) for name in sorted(set(labels))]
        self.absent = ~cache.present

    def _drawn(self, values: np.ndarray, pairs: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Sum over the drawn clips of a value (P,) of some pairs -> (D,)."""
        num_clips = self.weights.shape[1]
        return resampled(self.weights, np.bincount(self.clip[pairs], values[pairs], num_clips))

    def event_draws(self, counts: dict[str, EventCounts]) -> np.ndarray:
        """Macro F1 of events in every draw, (D, 2): by collars and by intersection.

        `counts` (C, K) of a cache's clips in order; one without a pair is not drawn.
        """
        names = {clip.filename: row for row, clip in enumerate(self.cache.clips)}
        rows = [names[name] for name in self.names]
        found = []
        for metric in DRAWN_FOR_EVENTS:
            cells = (cell[rows].toarray().astype(np.float64) for cell in counts[metric])
            drawn = EventCounts(*(resampled(self.weights, cell) for cell in cells))  # (D, K) each
            found.append(averages(drawn)[0])
        return np.stack(found, axis=1)

    def draws(self, counts: Counts) -> np.ndarray:
        """Headline metrics of a member in every draw, (D, M)."""
        if self.cache.queries == "present":
            scores = scores_of(counts)
            size = self._drawn(np.ones(len(self.clip)))
            return np.stack([self._drawn(scores[m]) / size for m in HEADLINE["present"]], axis=1)
        cells = np.stack(
            [[self._drawn(cell, pairs) for pairs in self.classes] for cell in counts[:3]]
        )  # (3, K, D): tp, fp, fn
        macro = macro_average(f1_score(*cells), cells.sum(axis=0) > 0, axis=0)
        micro = f1_score(*cells.sum(axis=1))
        alarms = self._drawn((counts.fp > 0).astype(float), self.absent)
        absent = self._drawn(np.ones(len(self.clip)), self.absent)
        return np.stack([macro, micro, alarms / np.maximum(absent, 1)], axis=1)


# ---------------------------------------------------------------------------- event metrics


def ranked(cache: Cache) -> bool:
    """Whether there is a PSDS, which needs the scores of all classes of every clip."""
    return cache.queries == "all" and len(cache.pairs) == len(cache.clips) * len(cache.classes)


class SignalOfClips(Mapping[str, ClipScores]):
    """A signal (N,) of a cache of all pairs as values (K, T) of each clip, `cache.classes` rows;
    they are put together when a clip is asked for."""

    def __init__(self, cache: Cache, signal: np.ndarray) -> None:
        self.signal, self.offsets, self.pairs = signal, cache.offsets, cache.pairs
        row = {name: k for k, name in enumerate(cache.classes)}
        self.rows: dict[str, list[int]] = {}  # pair of each class
        for index, pair in enumerate(cache.pairs):
            rows = self.rows.setdefault(pair.filename, [0] * len(row))
            rows[row[pair.event_label]] = index

    def __getitem__(self, name: str) -> ClipScores:
        rows = self.rows[name]
        values = [self.signal[self.offsets[i] : self.offsets[i + 1]] for i in rows]
        return ClipScores(np.stack(values), self.pairs[rows[0]].edges)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class EventTask(NamedTuple):
    """What a process needs to score one member's events, or the scores of a signal."""

    events: dict[str, list[Event]]
    scored: Mapping[str, list[ScoredEvent]] | Mapping[str, ClipScores] | None  # None: no PSDS
    truth: dict[str, list[Event]]
    durations: dict[str, float]
    classes: list[str]


def event_row(task: EventTask) -> tuple[dict[str, float], dict[str, EventCounts]]:
    """Event-based metrics of one member, and what those with an interval are counted from."""
    given = (task.truth, task.durations, task.classes)
    counts = event_metrics.event_counts(task.events, *given)
    row = {name: event_metrics.macro_f1(each) for name, each in counts.items()}
    if task.scored is not None:
        row |= named(event_metrics.psds(task.scored, *given))
    return row, {name: counts[name] for name in DRAWN_FOR_EVENTS}


def named(both: dict[int, event_metrics.Psds]) -> dict[str, float]:
    """PSDS 1 and 2 by their names in a table."""
    return {f"psds{scenario}": found.value for scenario, found in both.items()}


def psds_draws(task: EventTask, weights: np.ndarray) -> dict[str, np.ndarray]:
    """PSDS 1 and 2 of a member in every draw, (D,) each; `weights` (D, C) of the clips that have a
    duration, in order."""
    given = (task.scored, task.truth, task.durations, task.classes)
    sweep, regions = event_metrics.swept(*given)
    found = {}
    for scenario in event_metrics.SCENARIOS:
        trials = sweep.trials(regions, scenario)
        values = [sweep.psds_of(trials, scenario, each).value for each in weights]
        found[f"psds{scenario}"] = np.array(values)
    return found


def event_tasks(systems: list[System], cache: Cache) -> Iterator[EventTask]:
    """One task a member, in order; made when it is asked for."""
    truth, durations = cache.truth, cache.durations
    raw: dict[Path, SignalOfClips] = {}  # by the cache that a member's signals are in
    for system in systems:
        for member in system.members:
            events, scored, home = events_of(member, cache), None, member.home or cache
            if ranked(cache) and member.scores is not None:
                scored = SignalOfClips(cache, member.scores())
            elif ranked(cache) and member.boxes is not None:
                scored = {k: [ScoredEvent(*e) for e in v] for k, v in member.boxes.items()}
            elif ranked(cache):
                if home.folder not in raw:
                    raw[home.folder] = SignalOfClips(home, home.signals["d_raw"])
                scored = {
                    name: event_metrics.mean_scores(found, raw[home.folder][name], cache.classes)
                    for name, found in events.items()
                }
            yield EventTask(events, scored, truth, durations, cache.classes)


def score_all(
    work: Callable[[Any], Any],
    tasks: Iterator[Any],
    total: int,
    pool: ProcessPoolExecutor | None,
    title: str,
) -> list[Any]:
    """The result of every task, in order, with a progress bar."""
    rows = map(work, tasks) if pool is None else in_order(pool, work, tasks)
    return list(tqdm(rows, total=total, desc=title, unit="system"))


def score_events(
    systems: list[System], cache: Cache, pool: ProcessPoolExecutor | None = None
) -> dict[str, list[tuple[dict[str, float], dict[str, EventCounts]]]]:
    """`event_row` of every member, by system; the processes of a pool share the work."""
    total = sum(len(system.members) for system in systems)
    tasks = event_tasks(systems, cache)
    left = iter(score_all(event_row, tasks, total, pool, "Event metrics"))
    return {system.name: [next(left) for _ in system.members] for system in systems}


def score_row(task: EventTask) -> dict[str, float]:
    """PSDS 1 and 2 of one signal."""
    return named(event_metrics.psds(task.scored, task.truth, task.durations, task.classes))


def margin(cache: Cache, threshold: np.ndarray) -> np.ndarray:
    """How far the probability lies above a threshold, (N,) both."""
    return cache.signals["prob"] - threshold


def raw_psds(
    cache: Cache, systems: list[System], pool: ProcessPoolExecutor | None = None
) -> list[dict[str, Any]]:
    """PSDS 1 and 2 of scores without any decision.

    The raw scores; the same after the class-wise median filter of a rule on them, if one is among
    the systems, as raw scores may flicker and a fragment overlaps no event by enough; and, as an
    appendix, `prob - threshold` of the policies. A policy has spent its threshold, and signals
    normalised in each pair cannot be compared across clips: the appendix shows how little such a
    margin is worth as a score.
    """
    signals = [("raw scores", partial(cache.signals.__getitem__, "d_raw"))]  # made in their turn
    for system in systems:
        rule = system.members[0].rule
        if rule is not None and (rule.kind, rule.on) == ("median", "d_raw"):
            name = f"raw scores after the filter of {system.name}"
            signals.append((name, partial(after_median, rule, cache)))
    for system in systems:
        home, threshold = system.members[0].home or cache, system.members[0].threshold
        if system.kind == "policy" and threshold is not None and not system.gated:
            name = f"prob - threshold of {system.name}, first seed (appendix)"
            signals.append((name, partial(margin, home, threshold)))
    truth, durations = cache.truth, cache.durations
    tasks = (
        EventTask({}, SignalOfClips(cache, signal()), truth, durations, cache.classes)
        for _, signal in signals
    )
    rows = score_all(score_row, tasks, len(signals), pool, "PSDS of scores")
    return [{"name": name} | row for (name, _), row in zip(signals, rows, strict=True)]


# ---------------------------------------------------------------------------- the results


def spread(rows: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation over members of every metric (0 for one member)."""
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    mean = {name: float(values.mean()) for name, values in table.items()}
    std = {n: float(v.std(ddof=1)) if len(v) > 1 else 0.0 for n, v in table.items()}
    return mean, std


def difference(
    names: tuple[str, ...],
    ours: tuple[dict[str, float], np.ndarray],
    theirs: tuple[dict[str, float], np.ndarray],
) -> dict[str, list[float]]:
    """Difference of the means of each metric, and the interval of it over the same draws."""
    low, high = interval(ours[1] - theirs[1])
    return {
        name: [ours[0][name] - theirs[0][name], float(low[i]), float(high[i])]
        for i, name in enumerate(names)
    }


def system_ends(system: System, cache: Cache) -> dict[str, Any]:
    """Onset and offset errors of an system's matched events, all members together."""
    matches = [
        match
        for member in system.members
        for match in match_events(cache.truth, events_of(member, cache), cache.durations)
    ]
    return end_errors(matches)


def word(metric: str, low: float, high: float) -> str:
    """What an interval of a difference says; fewer false alarms are better, more F1 is."""
    if metric == "false_alarms":
        low, high = -high, -low
    return "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"


def in_the_noise(results: dict[str, Any], low: float, high: float) -> bool:
    """Whether a difference with this interval may be chance; one clip has no interval.

    `results`: of a table, of a run, or of one of its classes.
    """
    return results["num_clips"] == 1 or low <= 0 <= high


def in_points(change: Iterable[float]) -> str:
    """A difference with its interval, in points."""
    gain, low, high = (100 * value for value in change)
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"


def judged(
    results: dict[str, Any], metric: str, other: str, value: float, change: list[float]
) -> str:
    """What is to be said of a system against another one: `beats T_base (70.12): +2.48 points
    [+2.01, +2.96]`. `value` is the other one's, `change` the difference to it with its interval,
    which a PSDS has not.
    """
    gain, *ends = change
    if not ends:  # nothing is claimed without an interval
        return f"against {other} ({100 * value:.2f}): {100 * gain:+.2f} points, no interval"
    said = word(metric, *((0, 0) if in_the_noise(results, *ends) else ends))
    points = f"{100 * gain:+.2f} points [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]"
    return f"{said} {other} ({100 * value:.2f}): {points}"


def best_of(
    rows: dict[str, dict[str, Any]], metric: str, kinds: tuple[str, ...] = BASELINES
) -> str | None:
    """Name of the row that is best in a metric; each row has its `kind`."""
    names = [name for name, row in rows.items() if row["kind"] in kinds]
    return max(names, key=lambda name: rows[name][metric], default=None)


def verdicts(results: dict[str, Any]) -> list[str]:
    """One sentence for each policy: against its T_base and against the best baseline."""
    metric = results["tuned_for"]
    rows = {row["name"]: row for row in results["entrants"]}
    lines = []
    for row in results["entrants"]:
        if row["kind"] != "policy":
            continue
        parts = [
            judged(results, metric, other, rows[other]["mean"][metric], row[key][metric])
            for key, other in (("vs_base", row["base"]), ("vs_best", results["best_opponent"]))
            if other is not None
        ]
        value = 100 * row["mean"][metric]
        lines.append(f"{row['name']} ({TITLES[metric]} {value:.2f}) " + " and ".join(parts) + ".")
    if lines and results["num_clips"] == 1:
        lines.append(ONE_CLIP)
    return lines


def in_each_column(
    row: dict[str, Any], rows: dict[str, dict[str, Any]], results: dict[str, Any]
) -> str:
    """A system against the best baseline of each metric."""
    parts = []
    for metric, change in row["vs_best_of"].items():
        other = results["best_of"][metric]
        said = judged(results, metric, other, rows[other]["mean"][metric], change)
        parts.append(f"{TITLES[metric]} {100 * row['mean'][metric]:.2f} {said}")
    return f"{row['name']} against the best baseline of each column: {'; '.join(parts)}."


ONE_CLIP = "One clip has no interval: nothing can be told from it."


def base_for(system: System, systems: list[System]) -> str:
    """Name of the T_base that a row is held against: behind the gate like the row, and of the same
    signals, where there is one; else the first that fits best."""

    def fits(base: System) -> tuple[bool, bool]:
        homes = [row.members[0].home for row in (base, system)]
        ours, theirs = (None if home is None else home.folder for home in homes)
        return base.gated == system.gated, ours == theirs

    bases = [row for row in systems if row.kind == "base"]
    return max(bases, key=fits).name


def compare(cfg: EvaluateConfig, cache: Cache, train: Cache) -> tuple[dict[str, Any], list[System]]:
    """Decide and measure: everything that goes into results.json, and the rows."""
    began = time.perf_counter()
    systems = with_events(find_systems(cfg, cache, train), cache)
    found = time.perf_counter()
    facts = {"split": cfg.split, "train_cache": str(train.folder), "train_cache_key": train.key}
    facts |= {"tuning_and_deciding_seconds": round(found - began, 1)}
    facts |= measure(systems, cache, cfg.workers)
    return facts | {"seconds": round(time.perf_counter() - found, 1)}, systems


def measure(systems: list[System], cache: Cache, workers: int | None) -> dict[str, Any]:
    """Metrics, intervals and differences of all rows, T_base first.

    The best baseline is the one that is hardest to beat on this very split: the best rule,
    supervised baseline or foreign system by the metric that rules are tuned for. That favours the
    baselines. A row is held against the T_base of `base_for`.
    """
    names = (*HEADLINE[cache.queries], *DRAWN_FOR_EVENTS)
    sampler = Resampler(cache)
    draws: dict[str, np.ndarray] = {}
    members: dict[str, list[dict[str, float]]] = {}
    for system in tqdm(systems, desc="Frame metrics", unit="row"):
        counts = [counts_of(member, cache) for member in system.members]
        rows = [headline(each, cache) for each in counts]
        draws[system.name] = np.mean([sampler.draws(each) for each in counts], axis=0)
        members[system.name] = rows
    total = sum(len(system.members) for system in systems)
    count = min(num_workers(workers), 1 + total * cache.num_frames // WORK_OF_A_PROCESS)
    with nullcontext() if count == 1 or not ranked(cache) else process_pool(count) as pool:
        scored = score_events(systems, cache, pool)
        psds = raw_psds(cache, systems, pool) if ranked(cache) else []
    found: dict[str, tuple[dict[str, float], np.ndarray]] = {}
    for name, rows in scored.items():
        members[name] = [a | b for a, (b, _) in zip(members[name], rows, strict=True)]
        of_events = np.mean([sampler.event_draws(counts) for _, counts in rows], axis=0)
        found[name] = spread(members[name])[0], np.concatenate([draws[name], of_events], axis=1)
    rows = {row.name: {"kind": row.kind, **found[row.name][0]} for row in systems}
    decisive = DECISIVE[cache.queries]
    best = best_of(rows, decisive)
    columns = [name for name in found[BASE][0] if name not in ("false_alarms", "segment_f1")]
    hardest = {metric: best_of(rows, metric) for metric in columns if best is not None}
    table = []
    for system in systems:
        mean, std = spread(members[system.name])
        low, high = interval(found[system.name][1])
        base = base_for(system, systems)
        row = {
            "name": system.name,
            "kind": system.kind,
            "setting": system.setting,
            "gated": system.gated,
            "base": base,
            "members": [
                {
                    "source": member.source,
                    "home": None if member.home is None else str(member.home.folder.parent),
                    "deciding_seconds": round(member.seconds, 3),
                    **values,
                }
                for member, values in zip(system.members, members[system.name], strict=True)
            ],
            "mean": mean,
            "std": std,
            "interval": {m: [float(low[i]), float(high[i])] for i, m in enumerate(names)},
            "vs_base": difference(names, found[system.name], found[base]),
            "ends": system_ends(system, cache),
        }
        if best is not None:
            row["vs_best"] = difference(names, found[system.name], found[best])
            row["vs_best_of"] = {
                metric: difference(names, found[system.name], found[other]).get(
                    metric, [mean[metric] - found[other][0][metric]]
                )
                for metric, other in hardest.items()
            }
        gates = [
            tag_gate.tagging(member.gate, member.home or cache)
            for member in system.members
            if system.gated and member.gate is not None
        ]
        if gates:
            row["gate"] = spread(gates)[0]
        table.append(row)
    results = {
        "cache": str(cache.folder),
        "cache_key": cache.key,
        "queries": cache.queries,
        "tuned_for": decisive,
        "num_clips": sampler.weights.shape[1],
        "num_pairs": len(cache.pairs),
        "present_pairs": int(cache.present.sum()),
        "entrants": table,
        "best_opponent": best,
        "best_of": hardest,
        "psds_of_scores": psds,
        "date": time.strftime("%Y-%m-%d"),
        **made_with(),
    }
    results["notes"] = list(
        dict.fromkeys(note for row in systems for member in row.members for note in member.notes)
    )
    results["verdict"] = verdicts(results)
    rows = {row["name"]: row for row in table}
    results["columns"] = [
        in_each_column(row, rows, results) for row in table if row["kind"] == "policy" and hardest
    ]
    return results


def slugs(names: list[str]) -> list[str]:
    """Names as file names, no two alike even where case does not count."""
    found: list[str] = []
    for name in names:
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        taken = [other.lower() for other in found]
        number = next(
            n for n in range(1, len(names) + 1) if (plain + f"-{n}" * (n > 1)).lower() not in taken
        )
        found.append(plain + f"-{number}" * (number > 1))
    return found


def event_files(results: dict[str, Any]) -> list[str]:
    """Names of the files in events/, one a row of the table."""
    return [f"{name}.tsv" for name in slugs([row["name"] for row in results["entrants"]])]


def earlier_files(out: Path) -> list[str]:
    """The files in events/ that an earlier table in this folder has written."""
    try:
        return event_files(read_json(out / "results.json", ""))
    except (InputError, KeyError, TypeError, AttributeError):
        return []


def write_table(out: Path, results: dict[str, Any], systems: list[System], cache: Cache) -> None:
    """Everything of a table, all of it or nothing; events are those of a row's first member.

    Event files of an earlier table in the folder go. Raises WriteError.
    """
    earlier, files = earlier_files(out), event_files(results)

    def write_named(place: Path) -> None:
        write_pairs(place, systems, cache)
        results["files"] = {"pairs.csv": file_sha256(place)}  # before results.json is written

    parts = {
        out / "events" / file: partial(write_labels, clips=events_of(system.members[0], cache))
        for system, file in zip(systems, files, strict=True)
    }
    parts |= {
        out / "pairs.csv": write_named,
        out / "table.md": partial(write_text, text=markdown(results)),
        out / "table.tex": partial(write_text, text=latex(results)),
        out / "results.json": partial(write_json, value=results),
    }
    write_together(parts)
    for file in set(earlier) - set(files):
        (out / "events" / file).unlink(missing_ok=True)


def write_pairs(path: Path, systems: list[System], cache: Cache) -> None:
    """A row a pair: accuracy, IoU and F1 of every system, the mean over its members."""
    columns, cells = [], []
    for system in systems:
        scores = [scores_of(counts_of(member, cache)) for member in system.members]
        for name in HEADLINE["present"]:
            columns.append(f"{system.name}: {name}")
            cells.append(np.mean([each[name] for each in scores], axis=0))
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(map(csv_cell, ["filename", "event_label", "present", "frames", *columns]))
        for i, (pair, there) in enumerate(zip(cache.pairs, cache.present, strict=True)):
            names = map(csv_cell, (pair.filename, pair.event_label))
            values = [f"{column[i]:.6f}" for column in cells]
            writer.writerow([*names, int(there), pair.num_frames, *values])


# ---------------------------------------------------------------------------- tables


def table_rows(results: dict[str, Any], strong: str = "{}") -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table, in percent, milliseconds for the errors; the rows by what
    rules are tuned for, the best figure of a column in the form `strong`.

    A ceiling, which knows the labels, is the best of nothing; nor is silence, as the share of
    absent pairs has no best one.
    """
    names = HEADLINE[results["queries"]]
    decisive = results["tuned_for"]
    field = [name for name in FIELD if name in results["entrants"][0]["mean"]]
    header = ["", *(TITLES[name] for name in names)]
    header += [f"{TITLES[decisive]} minus its {BASE}", f"{TITLES[decisive]} minus best baseline"]
    header += [*(TITLES[name] for name in field), "median onset error"]
    rows = sorted(results["entrants"], key=lambda row: -row["mean"][decisive])
    real = [row["mean"] for row in rows if row["kind"] != "ceiling"]
    top = {m: max(row[m] for row in real) for m in (*names, *field) if m != "false_alarms"}
    lines = []
    for row in rows:
        several = len(row["members"]) > 1

        def value(name: str, row: dict = row, several: bool = several) -> str:
            text = f"{100 * row['mean'][name]:.2f}"
            if row["kind"] != "ceiling" and row["mean"][name] == top.get(name):
                text = strong.format(text)
            return text + f" ± {100 * row['std'][name]:.2f}" * several

        cells = [row["name"], *(value(name) for name in names)]
        for key, other in (("vs_base", row["base"]), ("vs_best", results["best_opponent"])):
            if other in (None, row["name"]):  # nothing to be held against
                cells.append("")
                continue
            inside = " (within the noise)" * in_the_noise(results, *row[key][decisive][1:])
            cells.append(in_points(row[key][decisive]) + inside)
        cells += [value(name) for name in field]
        onset = row["ends"]["onset"]
        cells.append(f"{onset['median_ms']:.0f} ms" if onset["events"] else "")
        lines.append(cells)
    return header, lines


def caption(results: dict[str, Any]) -> str:
    """What a table is about, in one sentence."""
    what = "present pairs" if results["queries"] == "present" else "all pairs"
    count = f"{results['num_pairs']:,} pairs of {results['num_clips']:,} clips"
    rest = f"{results['present_pairs']:,} of them present" * (results["queries"] == "all")
    tuned = f"rules tuned on training clips for {TITLES[results['tuned_for']]}"
    said = "in brackets 95 % of the bootstraps over clips, ± one standard deviation over seeds"
    return (
        f"{what[0].upper()}{what[1:]}: {count}{', ' * bool(rest)}{rest}; percent; {tuned}; {said}."
    )


def other_bases(results: dict[str, Any]) -> list[str]:
    """Which rows are held against another T_base than the first row; of a rule its name says it."""
    rows: dict[str, list[str]] = {}
    for row in results["entrants"]:
        if row["base"] not in (BASE, row["name"]) and row["kind"] != "rule":
            rows.setdefault(row["base"], []).append(row["name"])
    return [f"Held against {base}: {'; '.join(names)}." for base, names in rows.items()]


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown, the best of a column bold, the best baseline in italics; with caption,
    PSDS of scores, a sentence for each claim, and what made it."""
    header, lines = table_rows(results, "**{}**")
    rows = []
    for first, *cells in lines:
        name = as_markdown(first)
        rows.append([f"*{name}*" if first == results["best_opponent"] else name, *cells])
    marks = "Bold: the best of a column; italics: the best baseline on these very clips."
    text = [f"{caption(results)} {marks}", "", *markdown_table(header, rows), ""]
    text += [f"{as_markdown(line)}\n" for line in other_bases(results)]
    for row in results["psds_of_scores"]:
        values = f"{row['psds1']:.3f} / {row['psds2']:.3f}"
        text.append(f"PSDS 1 / 2 of {as_markdown(row['name'])}: {values}\n")
    for row in results["entrants"]:
        if "gate" in row:
            gate = row["gate"]
            name = as_markdown(row["name"].removesuffix(f", {GATED}"))
            values = f"{100 * gate['precision']:.1f}, recall {100 * gate['recall']:.1f}"
            text.append(f"Tag gate of {name}: precision {values}\n")
    text += [f"{as_markdown(line)}\n" for line in results["verdict"] + results["columns"]]
    text += [f"Note: {as_markdown(note)}\n" for note in results.get("notes", [])]
    text.append(f"{made_on(results['date'], results['versions'])}\n" if "date" in results else "")
    return "\n".join(text)


def latex(results: dict[str, Any]) -> str:
    """The table as LaTeX (booktabs)."""
    header, lines = table_rows(results)
    text = [f"% {caption(results)}", r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}"]
    text += [r"\toprule", " & ".join(map(as_latex, header)) + r" \\", r"\midrule"]
    text += [" & ".join(map(as_latex, cells)) + r" \\" for cells in lines]
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])
