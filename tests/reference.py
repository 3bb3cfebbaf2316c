"""What figures are held against: slow definitions of metrics, and the field's library."""

from typing import NamedTuple

import numpy as np

from benchmarks.naive import walk
from sed.event_metrics import EventCounts, averages, event_counts
from sed.metrics import f1_score
from sed.timeline import merge_events

METRICS = ("accuracy", "iou", "f1")


def play(pair: dict, choose, channels: tuple[str, ...], deltas: list[float], reading: str) -> list:
    """`walk` to the end, without the states."""
    return [step[1:] for step in walk(pair, choose, channels, deltas, reading)]


def slow_mean(cache, pred):
    """Mean over pairs of accuracy, IoU, F1, frame by frame."""
    sums = dict.fromkeys(METRICS, 0.0)
    for index in range(len(cache.pairs)):
        cells = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
        for i in range(cache.offsets[index], cache.offsets[index + 1]):
            right = "t" if pred[i] == cache.label[i] else "f"
            cells[right + ("p" if pred[i] else "n")] += 1
        union = cells["tp"] + cells["fp"] + cells["fn"]
        sums["accuracy"] += (cells["tp"] + cells["tn"]) / (union + cells["tn"])
        sums["iou"] += cells["tp"] / union if union else 1
        sums["f1"] += 2 * cells["tp"] / (union + cells["tp"]) if union else 1
    return {name: value / len(cache.pairs) for name, value in sums.items()}


def moved(cache, i, delta):
    """Decision of frame i with its base threshold moved, in float32 as on every device."""
    threshold = cache.signals["t_base"][i] + np.float32(delta)
    return bool(cache.signals["prob"][i] > min(max(threshold, np.float32(0)), np.float32(1)))


# ---------------------------------------------------------------------------- event metrics


class F1(NamedTuple):
    """F1 of all clips: mean over classes, of the summed counts, of each class."""

    macro: float
    micro: float
    per_class: dict[str, float]
    num_classes: int  # in the macro average


def f1_of(counts: EventCounts, classes: list[str]) -> F1:
    """F1 of counts (C, K) over all clips."""
    total = EventCounts(*(cell.sum(axis=0) for cell in counts))
    macro, micro = averages(total)
    per_class = dict(zip(classes, f1_score(*total).tolist(), strict=True))
    return F1(float(macro), float(micro), per_class, int((sum(total) > 0).sum()))


def all_f1(predicted: dict, truth: dict, durations: dict, classes: list[str]) -> dict[str, F1]:
    """`event_f1`, `segment_f1` and `intersection_f1` by name; InputError as `event_counts`."""
    counts = event_counts(predicted, truth, durations, classes)
    return {name: f1_of(each, classes) for name, each in counts.items()}


def score_tables(clips: dict, durations: dict, classes: list[str], outside: float) -> dict:
    """Events of each clip, (onset, offset, class, confidence), as score frames of sed_scores_eval:
    the highest confidence at each moment, `outside` where there is no event."""
    import pandas

    tables = {}
    for clip, duration in durations.items():
        rows = clips.get(clip, [])
        edges = np.unique([0.0, duration, *(time for row in rows for time in row[:2])])
        values = np.full((len(edges) - 1, len(classes)), outside)
        for onset, offset, label, confidence in rows:
            first, last = np.searchsorted(edges, (onset, offset))
            span = values[first:last, classes.index(label)]
            np.maximum(span, confidence, out=span)
        cells = np.column_stack([edges[:-1], edges[1:], values])
        tables[clip] = pandas.DataFrame(cells, columns=["onset", "offset", *classes])
    return tables


def library_hits(
    predicted: dict, truth: dict, durations: dict, classes: list[str]
) -> dict[str, np.ndarray]:
    """True and false positives (C, K, 2) by collar, segment and intersection, as sed_scores_eval
    counts merged events that have the score 1."""
    from sed_scores_eval import collar_based, intersection_based, segment_based

    merged = {clip: merge_events(events) for clip, events in predicted.items()}
    sure = {clip: [(*event, 1.0) for event in events] for clip, events in merged.items()}
    lengths = {**durations, "more": 1.0}  # the library wants each class in the truth: not counted
    tables = score_tables(sure, lengths, classes, 0.0)
    true = {clip: [tuple(event) for event in merge_events(truth.get(clip, []))] for clip in lengths}
    true["more"] = [(0.0, 1.0, name) for name in classes]
    collar, segment, intersection = (
        kind.intermediate_statistics.intermediate_statistics_deltas
        for kind in (collar_based, segment_based, intersection_based)
    )
    collars = {"onset_collar": 0.2, "offset_collar": 0.2, "offset_collar_rate": 0.2}
    deltas = {
        "event_f1": collar(tables, true, **collars),
        "segment_f1": segment(tables, true, lengths, segment_length=1.0),
        "intersection_f1": intersection(tables, true, dtc_threshold=0.5, gtc_threshold=0.5),
    }

    def hits(scores: np.ndarray, cells: dict) -> list[int]:
        return [int(cells[name][scores > 0.5].sum()) for name in ("tps", "fps")]

    return {
        kind: np.array([[hits(*found[clip][name]) for name in classes] for clip in durations])
        for kind, found in deltas.items()
    }


def library_psds(tables: dict, truth: dict, durations: dict) -> dict[int, tuple[float, dict]]:
    """PSDS 1 and 2 of score frames, over the classes with an event, and that of each class."""
    from sed_scores_eval import intersection_based

    true = {clip: [tuple(event) for event in merge_events(truth.get(clip, []))] for clip in tables}
    there = sorted({event[2] for events in true.values() for event in events})
    if not there:
        return {1: (0.0, {}), 2: (0.0, {})}
    tables = {clip: table[["onset", "offset", *there]] for clip, table in tables.items()}
    settings = {1: {"dtc_threshold": 0.7, "gtc_threshold": 0.7}}
    settings[2] = {"dtc_threshold": 0.1, "gtc_threshold": 0.1}
    if len(there) > 1:  # the library divides by the number of other classes
        settings[2] |= {"cttc_threshold": 0.3, "alpha_ct": 0.5}
    found = {}
    for scenario, setting in settings.items():
        criteria = {key: value for key, value in setting.items() if "threshold" in key}
        deltas = intersection_based.intermediate_statistics.intermediate_statistics_deltas(
            tables, true, **criteria
        )
        for name in there:  # without a change at any threshold the library has no curve
            if not any(len(clip[name][0]) for clip in deltas.values()):
                one = next(iter(deltas.values()))
                one[name] = (np.array([-np.inf]), {key: np.zeros(1) for key in one[name][1]})
        value, of_class, *_ = intersection_based.psds(
            None, true, durations, deltas=deltas, **setting, alpha_st=1.0, max_efpr=100.0
        )
        found[scenario] = (float(value), {name: float(of_class[name]) for name in there})
    return found
