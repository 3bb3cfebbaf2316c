"""What evaluate.py leaves, read back: results, decisions, events; one pair of it.

Shapes: N frames of all pairs, T frames of a pair
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from comparison.systems import predicted_events
from config import VisualizeConfig
from core.errors import InputError
from core.files import write_text
from core.stored import (
    Each,
    check_form,
    is_count,
    is_number,
    is_share,
    is_text,
    maybe,
    read_json,
    read_npz,
)
from policy import event_policy
from sed.caches import Cache, Pair, load_cache
from sed.matching import ENDS, Match, match_events
from sed.metrics import (
    NAMES,
    bootstrap_mean,
    count_pairs,
    counts_in,
    mean_over_pairs,
    scores_of,
)
from sed.timeline import Event, frame_centres, frames_to_events


def gain_interval(
    cache: Cache,
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    chosen: np.ndarray | None = None,
) -> dict[str, list[float]]:
    """95 % interval of the mean over pairs of `ours - theirs`, clips resampled; of `chosen` pairs
    (P,) bool only where given."""
    clip = np.array([pair.filename for pair in cache.pairs])
    gains = np.stack([ours[name] - theirs[name] for name in NAMES], axis=1)
    chosen = slice(None) if chosen is None else chosen
    low, high = bootstrap_mean(gains[chosen], clip[chosen])
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(NAMES)}


def short(text: str, most: int) -> str:
    """Text with its middle left out where it is too long for a figure."""
    half = most // 2 - 1
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def policy_name(results: dict[str, Any]) -> str:
    """What figures and verdicts call a policy: one over events shifts no threshold, is no DQN."""
    return "policy" if results.get("over_events") else "DQN"


def as_title(text: str) -> str:
    """With a capital, the rest as it is: no `Dqn`."""
    return text[:1].upper() + text[1:]


class Evaluated(NamedTuple):
    """A split with the decisions before and after: `t_adj`, `before`, `after` are (N,); a policy
    over events has no `t_adj`.

    `boxes`: by index of a pair, what a policy over events had to choose from, each a dictionary
    `onset`, `offset` (seconds), `confidence`, `chosen` (bool), `values` (name -> number).
    """

    cache: Cache
    results: dict[str, Any]
    t_adj: np.ndarray | None
    before: np.ndarray
    after: np.ndarray
    boxes: dict[int, list[dict[str, Any]]] | None = None

    def scores(self, on: np.ndarray) -> dict[str, np.ndarray]:
        """Accuracy, IoU and F1 (P,) of decisions (N,)."""
        return scores_of(counts_in(self.cache, self.cache.cut(on)))


class View(NamedTuple):
    """One pair: its clock in seconds and its signals; arrays (T,), `edges` (T + 1,)."""

    pair: Pair
    edges: np.ndarray
    centres: np.ndarray
    signals: dict[str, np.ndarray]
    before: np.ndarray
    after: np.ndarray
    label: np.ndarray

    @property
    def name(self) -> str:
        """`label in clip`, short enough for a title."""
        return f"{short(self.pair.event_label, 32)} in {short(self.pair.filename, 44)}"

    def scores(self, on: np.ndarray) -> dict[str, float]:
        """Accuracy, IoU and F1 of decisions (T,)."""
        return mean_over_pairs(count_pairs(on, self.label, np.array([0, len(on)])))

    def events(self, on: np.ndarray) -> list[Event]:
        """Runs of true frames (T,) in seconds."""
        return frames_to_events(on, self.pair.event_label, self.edges)


SHARES = dict.fromkeys(NAMES, is_share)
BOTH = {"before": SHARES, "after": SHARES}
FORMS = {
    **BOTH,
    "split": lambda value: is_text(value) and value == Path(value).name,
    **dict.fromkeys(("cache_key", "decisions", "verdict"), is_text),
    **dict.fromkeys(("num_clips", "num_pairs", "num_frames"), is_count),
    **dict.fromkeys(("fixed_frames", "broken_frames"), is_count),
    "per_class": Each({"pairs": is_count, **BOTH}),
    "yardsticks": [{"name": is_text, **SHARES}],
    "pooled": BOTH,
    "interval": Each((is_number, is_number)),
    "threshold_selection": {"accuracy": maybe(is_share), "frames": is_count},
    "ends": {"before": Each({"events": is_count}), "after": Each({"events": is_count})},
}
OPTIONAL = {
    "checkpoint": is_text,
    **dict.fromkeys(("present_pairs", "present_frames"), is_count),
    "gain": Each(is_number),
    "notes": [is_text],
}


def load_evaluated(cfg: VisualizeConfig) -> Evaluated:
    """Results and decisions of evaluate.py with the cache they were made from.

    InputError where one is missing, damaged or of another evaluation.
    """
    cure = f"run: python evaluate.py --run {cfg.run} --cache {cfg.cache}"
    where, path = cfg.run / "results.json", cfg.run / "decisions.npz"
    results = read_json(where, cure, ())
    if missing := sorted(FORMS.keys() - results.keys()):
        raise InputError(f"{where}: no {', '.join(missing)}; {cure}")
    try:
        check_form(results, FORMS | {k: form for k, form in OPTIONAL.items() if k in results})
    except ValueError as error:
        raise InputError(f"{where}: damaged ({error}); {cure}") from None
    if not path.exists():
        raise InputError(f"{path}: not found; {cure}")
    cache = load_cache(cfg.cache / results["split"])
    then, now = results.get("queries", cache.queries), cache.queries
    if (results["cache_key"], then) != (cache.key, now):
        raise InputError(
            f"{where}: made from another cache than {cache.folder} ({then} pairs, key"
            f" {results['cache_key']}; now {now} pairs, {cache.key}); {cure}"
        )
    size = (cache.num_frames,)
    forms = {"action": ("i", size), "t_adj": ("f", size), "binary": ("ub", size)}
    forms |= event_policy.FORMS
    arrays = read_npz(path, forms, cure, ("action", "t_adj", *event_policy.FORMS))
    if results.get("decisions") != digest_of(arrays):
        raise InputError(f"{path}: not the decisions of {where}; {cure}")
    try:
        boxes = boxes_of_pairs(arrays, cache) if "box_pair" in arrays else None
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {cure}") from None
    return Evaluated(cache, results, arrays.get("t_adj"), cache.base, arrays["binary"] > 0, boxes)


def boxes_of_pairs(arrays: dict[str, np.ndarray], cache: Cache) -> dict[int, list[dict[str, Any]]]:
    """Stored candidates as `Evaluated` holds them. ValueError where they cannot be of the cache."""
    boxes = event_policy.from_arrays(arrays, cache)
    ends, found = event_policy.seconds_of(boxes, cache), {}
    columns = (boxes.pair, *ends, boxes.confidence, boxes.chosen, boxes.values, boxes.worth)
    for pair, onset, offset, sure, chosen, values, worth in zip(
        *(each.tolist() for each in columns), strict=True
    ):
        asked = dict(zip(event_policy.VALUES, values, strict=True)) | {"worth": worth}
        row = {"onset": onset, "offset": offset, "confidence": sure, "chosen": chosen}
        found.setdefault(pair, []).append(row | {"values": asked})
    return found


def view_of(data: Evaluated, index: int) -> View:
    """One pair of the split."""
    pair, values = data.cache.pairs[index], data.cache.of_pair(index)
    span = slice(data.cache.offsets[index], data.cache.offsets[index + 1])
    label = values.pop("label")
    if data.t_adj is not None:
        values["t_adj"] = data.t_adj[span]
    edges, before, after = pair.edges, data.before[span], data.after[span]
    return View(pair, edges, frame_centres(edges), values, before, after, label)


class Matches(NamedTuple):
    """The matches of the base threshold and of the policy, each judged by its own."""

    before: list[Match]
    after: list[Match]

    def both(self) -> list[tuple[Match, Match]]:
        """(base, policy) of the true events that both found, in the order of `after`."""
        base = {(match.filename, match.true): match for match in self.before}
        return [
            (base[key], match)
            for match in self.after
            if (key := (match.filename, match.true)) in base
        ]


def find_matches(data: Evaluated) -> Matches:
    """What the base threshold and the policy found, over all pairs of the split."""
    cache = data.cache
    return Matches(
        *(
            match_events(cache.truth, predicted_events(cache, on), cache.durations)
            for on in (data.before, data.after)
        )
    )


def write_matches(path: Path, matches: Matches) -> None:
    """A row a true event that base or DQN found: true, base and DQN times in seconds; the cells of
    what did not find it are empty."""
    whose = [{(m.filename, m.true): m.found for m in some} for some in matches]
    times = [f"{who}_{end}" for who in ("true", "base", "dqn") for end in ENDS]
    lines = ["\t".join(["filename", "event_label", *times])]
    for filename, true in sorted(whose[0].keys() | whose[1].keys()):
        events = [true, *(found.get((filename, true)) for found in whose)]
        cells = [
            "" if event is None else f"{getattr(event, end):.3f}"
            for event in events
            for end in ENDS
        ]
        lines.append("\t".join([filename, true.event_label, *cells]))
    write_text(path, "\n".join(lines) + "\n")


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """Hash of stored decisions; results.json names those that it is about. The file will not do: it
    has the time in it."""
    state = hashlib.sha256()
    kinds = {"action": np.int8, "t_adj": np.float32, "binary": np.uint8}
    for name in (*kinds, *event_policy.FORMS):
        if name in arrays:
            state.update(np.ascontiguousarray(arrays[name], kinds.get(name)))
    return state.hexdigest()[:16]
