"""One table of many systems on one split: metrics, paired intervals, a verdict.

Run:    python evaluate.py --compare DQN=runs/slides twin=runs/twin rules --out runs/table
Reads:  nothing but what entrants.py read
Writes: <out>/{results.json, table.md, table.tex, pairs.csv, events/}
Shapes: N frames of all pairs, P pairs, C clips, K classes, D bootstrap draws
Next:   evaluate.py

A cache of present pairs gives the slides' protocol: accuracy, IoU and F1 of each pair, then the
mean; it hands every system the clip's tags. A cache of all pairs lets false alarms count: F1 over
the frames of each class in all clips, then the mean (macro), F1 over all frames (micro), and the
share of absent pairs with a frame on. There, policies, twins and T_base stand bare and behind the
tag gate. Rules are tuned on the training cache: mean-pair F1, or macro-F1 over all pairs.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import event_metrics
import gate as tag_gate
from config import EvaluateConfig, num_workers, process_pool
from entrants import BASE, GATED, Entrant, Member, events_of, find_entrants
from event_metrics import ScoredEvent
from metrics import (
    SHARE,
    Counts,
    bootstrap_weights,
    count_pairs,
    f1_score,
    mean_over_pairs,
    over_all_pairs,
    scores_of,
)
from opponents import class_of_pair
from preprocess import Cache
from scorers import ClipScores
from timeline import Event, write_labels

HEADLINE = {"present": ("accuracy", "iou", "f1"), "all": ("macro_f1", "micro_f1", "false_alarms")}
DECISIVE = {"present": "f1", "all": "macro_f1"}  # rules are tuned for it, verdicts are about it
FIELD = ("event_f1", "segment_f1", "intersection_f1", "psds1", "psds2")
ENDS = ("onset", "offset")
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
NOT_OPPONENTS = ("all on", "all off")


# ---------------------------------------------------------------------------- headline metrics


def counts_of(member: Member, cache: Cache) -> Counts:
    """Confusion counts (P,) of a member's decisions."""
    return count_pairs(member.pred, cache.label, cache.offsets)


def headline(counts: Counts, cache: Cache) -> dict[str, float]:
    """The split's headline metrics of one member."""
    if cache.queries == "present":
        return mean_over_pairs(counts)
    return over_all_pairs(counts, class_of_pair(cache), cache.present)


class Resampler:
    """Clips drawn with replacement, the same draws for every member of a table."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        row = {clip.filename: i for i, clip in enumerate(cache.clips)}
        self.clip = np.array([row[pair.filename] for pair in cache.pairs])  # (P,)
        self.weights = bootstrap_weights(len(cache.clips))  # (D, C)
        labels = class_of_pair(cache)
        self.classes = [np.flatnonzero(labels == name) for name in sorted(set(labels))]
        self.absent = ~cache.present

    def _drawn(self, values: np.ndarray, pairs: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Sum over the drawn clips of a value (P,) of some pairs -> (D,)."""
        num_clips = self.weights.shape[1]
        return self.weights @ np.bincount(self.clip[pairs], values[pairs], num_clips)

    def draws(self, counts: Counts) -> np.ndarray:
        """Headline metrics of a member in every draw, (D, M)."""
        if self.cache.queries == "present":
            scores = scores_of(counts)
            size = self._drawn(np.ones(len(self.clip)))
            return np.stack([self._drawn(scores[m]) / size for m in HEADLINE["present"]], axis=1)
        per_class = np.stack(
            [[self._drawn(cell, pairs) for cell in counts[:3]] for pairs in self.classes]
        )  # (K, 3, D): tp, fp, fn
        some = per_class.sum(axis=1) > 0
        f1 = f1_score(*per_class.swapaxes(0, 1))
        macro = np.where(some, f1, 0).sum(axis=0) / np.maximum(some.sum(axis=0), 1)
        micro = f1_score(*per_class.sum(axis=0))
        alarms = self._drawn((counts.fp > 0).astype(float), self.absent)
        absent = self._drawn(np.ones(len(self.clip)), self.absent)
        return np.stack([macro, micro, alarms / np.maximum(absent, 1)], axis=1)


def interval(draws: np.ndarray) -> np.ndarray:
    """95 % interval (2, M) of draws (D, M)."""
    return np.quantile(draws, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)


# ---------------------------------------------------------------------------- event metrics


def clip_scores(cache: Cache, signal: np.ndarray) -> dict[str, ClipScores]:
    """A signal (N,) of a cache of all pairs -> values (K, T) of each clip, `cache.classes` rows."""
    pairs: dict[str, dict[str, int]] = {}
    for index, pair in enumerate(cache.pairs):
        pairs.setdefault(pair.filename, {})[pair.event_label] = index
    found = {}
    for name, rows in pairs.items():
        spans = [slice(*cache.offsets[rows[label] : rows[label] + 2]) for label in cache.classes]
        edges = cache.pairs[rows[cache.classes[0]]].edges
        found[name] = ClipScores(np.stack([signal[span] for span in spans]), edges)
    return found


def matched_late_ms(
    truth: dict[str, list[Event]], found: dict[str, list[Event]]
) -> dict[str, list[float]]:
    """By how many milliseconds onsets and offsets of found events come late.

    Only where a true event meets exactly one found event of its class, which meets no other true
    one. An onset at the clip's start is left out: it is not in the recording.
    """
    late: dict[str, list[float]] = {end: [] for end in ENDS}
    for name, events in truth.items():
        for event in events:
            same = [e for e in found.get(name, []) if e.event_label == event.event_label]
            met = [e for e in same if e.onset < event.offset and e.offset > event.onset]
            if len(met) != 1:
                continue
            others = [e for e in events if e.event_label == event.event_label]
            if sum(e.onset < met[0].offset and e.offset > met[0].onset for e in others) > 1:
                continue
            if event.onset > 0:
                late["onset"].append(1000 * (met[0].onset - event.onset))
            late["offset"].append(1000 * (met[0].offset - event.offset))
    return late


class EventTask(NamedTuple):
    """What a process needs to score one member's events."""

    events: dict[str, list[Event]]
    scored: dict[str, list[ScoredEvent]] | None  # None: no PSDS (present pairs only)
    truth: dict[str, list[Event]]
    durations: dict[str, float]
    classes: list[str]


def event_row(task: EventTask) -> dict[str, float]:
    """Event-based metrics of one member."""
    given = (task.truth, task.durations, task.classes)
    row = {
        "event_f1": event_metrics.event_f1(task.events, *given).macro,
        "segment_f1": event_metrics.segment_f1(task.events, *given).macro,
        "intersection_f1": event_metrics.intersection_f1(task.events, *given).macro,
    }
    if task.scored is not None:
        for scenario in (1, 2):
            psds = event_metrics.event_psds(task.scored, *given, scenario)
            row[f"psds{scenario}"] = psds.value
    return row


def score_events(
    entrants: list[Entrant], cache: Cache, workers: int | None
) -> dict[str, list[dict[str, float]]]:
    """Event metrics of every member, by entrant; processes share the work."""
    truth = {clip.filename: clip.events for clip in cache.clips}
    durations = {clip.filename: clip.duration_s for clip in cache.clips}
    raw = clip_scores(cache, cache.signals["d_raw"]) if cache.queries == "all" else None
    tasks = []
    for entrant in entrants:
        for member in entrant.members:
            events = events_of(member, cache)
            scored = None
            if member.boxes is not None and raw is not None:
                scored = {k: [ScoredEvent(*e) for e in v] for k, v in member.boxes.items()}
            elif raw is not None:
                scored = {
                    name: event_metrics.mean_scores(found, raw[name], cache.classes)
                    for name, found in events.items()
                }
            task = EventTask(events, scored, truth, durations, cache.classes)
            tasks.append((entrant.name, task))
    with process_pool(min(num_workers(workers), len(tasks))) as pool:
        found = pool.map(event_row, [task for _, task in tasks])
        rows = list(tqdm(found, total=len(tasks), desc="Event metrics", unit="system"))
    table: dict[str, list[dict[str, float]]] = {}
    for (name, _), row in zip(tasks, rows, strict=True):
        table.setdefault(name, []).append(row)
    return table


def raw_psds(cache: Cache, entrants: list[Entrant]) -> list[dict[str, Any]]:
    """PSDS 1 and 2 of the raw scores, and, as an appendix, of `prob - threshold` of the policies.

    A policy has spent its threshold, and signals normalised in each pair cannot be compared across
    clips: the appendix shows how little such a margin is worth as a score.
    """
    truth = {clip.filename: clip.events for clip in cache.clips}
    durations = {clip.filename: clip.duration_s for clip in cache.clips}
    signals = [("raw scores", cache.signals["d_raw"])]
    for entrant in entrants:
        threshold = entrant.members[0].threshold
        if entrant.kind == "policy" and threshold is not None and GATED not in entrant.name:
            name = f"prob - threshold of {entrant.name}, first seed (appendix)"
            signals.append((name, cache.signals["prob"] - threshold))
    rows = []
    for name, signal in signals:
        scores = clip_scores(cache, signal)
        given = (scores, truth, durations, cache.classes)
        row = {f"psds{s}": event_metrics.psds(*given, s).value for s in (1, 2)}
        rows.append({"name": name, **row})
    return rows


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


def end_errors(entrant: Entrant, cache: Cache) -> dict[str, Any]:
    """Onset and offset errors of an entrant's matched events, all members together, in ms."""
    truth = {clip.filename: clip.events for clip in cache.clips}
    late: dict[str, list[float]] = {end: [] for end in ENDS}
    for member in entrant.members:
        for end, values in matched_late_ms(truth, events_of(member, cache)).items():
            late[end] += values
    table: dict[str, Any] = {}
    for end, values in late.items():
        size = np.abs(values)
        table[end] = {"events": len(values)}
        if len(values):
            table[end] |= {
                "median_ms": float(np.median(size)),
                "bias_ms": float(np.mean(values)),
                "within_200_ms": float((size <= 200 + 1e-6).mean()),
                "histogram": np.histogram(values, END_BINS)[0].tolist(),
            }
    return table


END_BINS = np.linspace(-1000, 1000, 41)  # ms, of the stored histograms


def word(metric: str, low: float, high: float) -> str:
    """What an interval of a difference says; fewer false alarms are better, more F1 is."""
    if metric == "false_alarms":
        low, high = -high, -low
    return "beats" if low > 0 else "loses to" if high < 0 else "cannot be told from"


def verdicts(results: dict[str, Any]) -> list[str]:
    """One sentence for each policy: against T_base and against the best opponent."""
    metric = DECISIVE[results["queries"]]
    title = TITLES[metric]
    rows = {row["name"]: row for row in results["entrants"]}
    lines = []
    for row in results["entrants"]:
        if row["kind"] != "policy":
            continue
        parts = []
        base = f"{BASE}, {GATED}" if GATED in row["name"] and f"{BASE}, {GATED}" in rows else BASE
        for key, other in (("vs_base", base), ("vs_best", results["best_opponent"])):
            if other is None:
                continue
            gain, low, high = row[key][metric]
            value = 100 * rows[other]["mean"][metric]
            parts.append(
                f"{word(metric, low, high)} {other} ({value:.2f}) by {100 * gain:+.2f} points"
                f" [{100 * low:+.2f}, {100 * high:+.2f}]"
            )
        value = 100 * row["mean"][metric]
        lines.append(f"{row['name']} ({title} {value:.2f}) " + " and ".join(parts) + ".")
    return lines


def compare(cfg: EvaluateConfig, cache: Cache, train: Cache) -> dict[str, Any]:
    """Decide and measure: everything that goes into results.json."""
    entrants = find_entrants(cfg, cache, train)
    facts = {"split": cfg.split, "train_cache": str(train.folder), "train_cache_key": train.key}
    return facts | measure(entrants, cache, cfg.out, cfg.workers)


def measure(
    entrants: list[Entrant], cache: Cache, out: Path, workers: int | None
) -> dict[str, Any]:
    """Metrics, intervals and differences of all rows, T_base first; writes pairs.csv and events/.

    The best opponent is the one that is hardest to beat on this very split: the best rule, twin or
    foreign system by the metric that rules are tuned for. That favours the opponents.
    """
    names = HEADLINE[cache.queries]
    sampler = Resampler(cache)
    found: dict[str, tuple[dict[str, float], np.ndarray]] = {}
    members: dict[str, list[dict[str, float]]] = {}
    for entrant in tqdm(entrants, desc="Frame metrics", unit="row"):
        counts = [counts_of(member, cache) for member in entrant.members]
        rows = [headline(each, cache) for each in counts]
        draws = np.mean([sampler.draws(each) for each in counts], axis=0)
        found[entrant.name] = (spread(rows)[0], draws)
        members[entrant.name] = rows
    psds, missing = [], event_metrics.missing_packages()
    if missing:
        print(f"note: {missing}")
    else:
        for name, rows in score_events(entrants, cache, workers).items():
            members[name] = [a | b for a, b in zip(members[name], rows, strict=True)]
        psds = raw_psds(cache, entrants) if cache.queries == "all" else []
    rivals = [row.name for row in entrants if row.kind in ("rule", "twin", "events")]
    rivals = [name for name in rivals if name not in NOT_OPPONENTS]
    decisive = DECISIVE[cache.queries]
    best = max(rivals, key=lambda name: found[name][0][decisive], default=None)
    table = []
    for entrant in entrants:
        mean, std = spread(members[entrant.name])
        low, high = interval(found[entrant.name][1])
        base = f"{BASE}, {GATED}"
        base = base if GATED in entrant.name and base in found else BASE
        row = {
            "name": entrant.name,
            "kind": entrant.kind,
            "setting": entrant.setting,
            "members": [
                {
                    "source": member.source,
                    "home": None if member.home is None else str(member.home),
                    "deciding_seconds": round(member.seconds, 3),
                    **values,
                }
                for member, values in zip(entrant.members, members[entrant.name], strict=True)
            ],
            "mean": mean,
            "std": std,
            "interval": {m: [float(low[i]), float(high[i])] for i, m in enumerate(names)},
            "vs_base": difference(names, found[entrant.name], found[base]),
            "ends": end_errors(entrant, cache),
        }
        if best is not None:
            row["vs_best"] = difference(names, found[entrant.name], found[best])
        if cache.queries == "all" and GATED in entrant.name:
            gates = [tag_gate.tagging(member.gate, cache) for member in entrant.members]
            row["gate"] = spread(gates)[0]
        table.append(row)
    results = {
        "cache": str(cache.folder),
        "cache_key": cache.key,
        "queries": cache.queries,
        "tuned_for": decisive,
        "num_clips": len(cache.clips),
        "num_pairs": len(cache.pairs),
        "present_pairs": int(cache.present.sum()),
        "entrants": table,
        "best_opponent": best,
        "psds_of_scores": psds,
    }
    results["verdict"] = verdicts(results)
    write_pairs(out / "pairs.csv", entrants, cache)
    write_events(out / "events", entrants, cache)
    return results


def slug(name: str) -> str:
    """A name as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def write_events(folder: Path, entrants: list[Entrant], cache: Cache) -> None:
    """Events of the first member of every entrant, a DCASE TSV each."""
    folder.mkdir(parents=True, exist_ok=True)
    for entrant in entrants:
        write_labels(folder / f"{slug(entrant.name)}.tsv", events_of(entrant.members[0], cache))


def write_pairs(path: Path, entrants: list[Entrant], cache: Cache) -> None:
    """A row a pair: accuracy, IoU and F1 of every entrant, the mean over its members."""
    columns, cells = [], []
    for entrant in entrants:
        scores = [scores_of(counts_of(member, cache)) for member in entrant.members]
        for name in HEADLINE["present"]:
            columns.append(f"{entrant.name}: {name}")
            cells.append(np.mean([each[name] for each in scores], axis=0))
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "event_label", "present", "frames", *columns])
        for i, (pair, there) in enumerate(zip(cache.pairs, cache.present, strict=True)):
            values = [f"{column[i]:.6f}" for column in cells]
            writer.writerow([pair.filename, pair.event_label, int(there), pair.num_frames, *values])
    temporary.replace(path)


# ---------------------------------------------------------------------------- tables


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table, in percent; milliseconds for the errors."""
    names = HEADLINE[results["queries"]]
    decisive = results["tuned_for"]
    field = [name for name in FIELD if name in results["entrants"][0]["mean"]]
    header = ["", *(TITLES[name] for name in names)]
    header += [f"{TITLES[decisive]} minus {BASE}", f"{TITLES[decisive]} minus best opponent"]
    header += [*(TITLES[name] for name in field), "median onset error"]
    lines = []
    for row in results["entrants"]:
        several = len(row["members"]) > 1

        def value(name: str, row: dict = row, several: bool = several) -> str:
            text = f"{100 * row['mean'][name]:.2f}"
            return text + f" ± {100 * row['std'][name]:.2f}" * several

        cells = [row["name"], *(value(name) for name in names)]
        for key in ("vs_base", "vs_best"):
            if key not in row:
                cells.append("")
                continue
            gain, low, high = (100 * x for x in row[key][decisive])
            inside = " (within the noise)" if low <= 0 <= high and gain else ""
            cells.append(f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]{inside}")
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
    return f"{what[0].upper()}{what[1:]}: {count}{', ' * bool(rest)}{rest}; percent; {tuned}."


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown, best opponent in italics, with caption, verdict and PSDS of scores."""
    header, lines = table_rows(results)
    text = [caption(results), ""]
    text += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for cells in lines:
        name = f"*{cells[0]}*" if cells[0] == results["best_opponent"] else cells[0]
        text.append("| " + " | ".join([name, *cells[1:]]) + " |")
    text += [""]
    for row in results["psds_of_scores"]:
        text.append(f"PSDS 1 / 2 of {row['name']}: {row['psds1']:.3f} / {row['psds2']:.3f}\n")
    for row in results["entrants"]:
        if "gate" in row:
            gate = row["gate"]
            text.append(
                f"Tag gate of {row['name'].partition(',')[0]}: precision"
                f" {100 * gate['precision']:.1f}, recall {100 * gate['recall']:.1f}\n"
            )
    text += [*results["verdict"], ""]
    return "\n".join(text)


LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "Δ": r"$\Delta$"}


def latex(results: dict[str, Any]) -> str:
    """The table as LaTeX (booktabs)."""

    def plain(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    header, lines = table_rows(results)
    text = [f"% {caption(results)}", r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}"]
    text += [r"\toprule", " & ".join(map(plain, header)) + r" \\", r"\midrule"]
    text += [" & ".join(map(plain, cells)) + r" \\" for cells in lines]
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


def write_tables(out: Path, results: dict[str, Any]) -> None:
    """table.md and table.tex."""
    for name, text in (("table.md", markdown(results)), ("table.tex", latex(results))):
        temporary = out / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)
