"""Figures of a comparison: who is better by how much, for which classes, and what a policy does.

Run:    python visualize.py --table runs/table
Reads:  <table>/{results.json, pairs.csv} of evaluate.py --compare; for what the first policy does
        its checkpoint, its stored decisions and the cache that the table was made from
Shapes: T frames of a pair, N frames of all pairs, P pairs, B bins of prob - T_base, K classes
"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from baselines.tuned_rules import class_of_pair
from comparison.evaluations import Evaluated, View, as_title, policy_name, short, view_of
from comparison.scoring import DECISIVE, HEADLINE, TITLES, TRIVIAL
from comparison.systems import BASE, GATED, from_checkpoint, same_pairs, store_of
from config import EvaluateConfig
from core.errors import InputError
from core.names import csv_text
from core.stored import file_sha256, read_json, read_text
from figures.plotting import (
    COLOURS,
    MOST_CLASSES,
    PAGE,
    Drawn,
    bars,
    draw_curves,
    each_figure,
    legend,
    look,
    name_rows,
    page,
    row_value,
    scale,
    shade_changes,
    stripe,
    time_axis,
    unit_axis,
)
from policy.apply import load_policy
from policy.bandit import near
from sed.caches import load_cache
from sed.matching import BIN_MS, BINS_MS, ENDS
from sed.metrics import DRAWS, bootstrap_mean

if TYPE_CHECKING:  # matplotlib is imported where a figure is drawn: it builds a font cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {  # kind of a row -> colour, legend entry
    "base": ("t_base", "Base threshold, untouched"),
    "policy": ("t_adj", "Policy"),  # a DQN, or one over events
    "supervised": ("supervised", "Supervised baseline: the DQN's state and network"),
    "rule": ("yardstick", "Rule, tuned on training clips unless fixed"),
    "events": ("events", "Events from elsewhere"),
    "ceiling": ("ceiling", "Ceiling: knows the labels"),
}
FORMER = "twin"  # the kind `supervised` in tables of older versions
MARKERS, LINES = "osD^vP", ("-", "--", "-.", ":")  # several rows of one kind


# ---------------------------------------------------------------------------- what is drawn


class PairScores(NamedTuple):
    """pairs.csv: arrays (P,); `f1` by name of the row."""

    filename: np.ndarray
    event_label: np.ndarray
    present: np.ndarray
    f1: dict[str, np.ndarray]


class Table(NamedTuple):
    """A comparison, read back."""

    folder: Path
    results: dict[str, Any]
    pairs: PairScores

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the table by name."""
        return {row["name"]: row for row in self.results["entrants"]}

    @property
    def split(self) -> str:
        """Split of the cache."""
        return Path(self.results["cache"]).name

    @property
    def decisive(self) -> str:
        """The metric that verdicts are about."""
        return DECISIVE[self.results["queries"]]

    @property
    def what(self) -> str:
        """How many pairs of which kind, for titles."""
        present = f"{self.results['present_pairs']:,}"
        if self.results["queries"] == "present":
            return f"{present} present pairs, {self.split} split"
        return f"all {self.results['num_pairs']:,} pairs ({present} present), {self.split} split"

    def bare(self, kind: str) -> list[str]:
        """Names of the rows of a kind that do not stand behind the tag gate."""
        return [name for name, row in self.rows.items() if row["kind"] == kind and not row["gated"]]


# What a checksum does not say: that it is such a table, and not of a version that had less.
TABLE = {"cache", "cache_key", "queries", "num_pairs", "present_pairs", "entrants", "best_opponent"}
ROW = {"name", "kind", "gated", "base", "members", "ends", "mean", "std", "interval"}


def load_table(folder: Path) -> Table:
    """results.json and pairs.csv of a comparison; InputError where one is missing or damaged."""
    cure = f"run: python evaluate.py --compare .. --out {folder}"
    path = folder / "results.json"
    results = read_json(path, cure, ())
    rows = results.get("entrants", [])
    if absent := (TABLE - results.keys()).union(*(ROW - row.keys() for row in rows)):
        raise InputError(f"{path}: not of such a comparison (no {min(absent)}); {cure}")
    for row in rows:
        if row["kind"] == FORMER:
            row["kind"] = "supervised"
    csv_path = folder / "pairs.csv"
    if not csv_path.exists():
        raise InputError(f"{csv_path}: not found; {cure}")
    if file_sha256(csv_path) != results.get("files", {}).get("pairs.csv"):
        raise InputError(f"{csv_path}: not the file that {path} was written with; {cure}")
    lines = csv.reader(io.StringIO(read_text(csv_path), newline=""), strict=True)
    header, *cells = ([csv_text(cell) for cell in line] for line in lines)
    columns = dict(zip(header, zip(*cells, strict=True), strict=True))
    pairs = PairScores(
        np.array(columns["filename"]),
        np.array(columns["event_label"]),
        np.array(columns["present"], int) > 0,
        {row["name"]: np.array(columns[f"{row['name']}: f1"], float) for row in rows},
    )
    return Table(folder, results, pairs)


class FirstPolicy(NamedTuple):
    """The first policy of a table with the decisions of its first seed."""

    name: str  # with the number of the seed where there are several
    data: Evaluated
    max_delta: float
    who: str  # what its decisions are called


def load_first_policy(table: Table, preset: str) -> FirstPolicy | None:
    """The first policy's stored decisions and the cache behind them; None where there is no policy.

    InputError where the cache is not that of the table any more, or the decisions are gone.
    """
    names = table.bare("policy")
    if not names:
        return None
    results, members = table.results, table.rows[names[0]]["members"]
    cure = f"run evaluate.py --compare again for {table.folder}"
    if not Path(results["cache"]).is_dir():
        raise InputError(
            f"{results['cache']}: cache of {table.folder} not found; run this in the folder where"
            " evaluate.py ran"
        )
    cache = load_cache(Path(results["cache"]))
    if cache.key != results["cache_key"]:
        raise InputError(
            f"{table.folder / 'results.json'}: made from another cache than {cache.folder}"
            f" (key {results['cache_key']}, now {cache.key}); {cure}"
        )
    if home := members[0].get("home"):
        cache = same_pairs(Path(home), cache)
    path = Path(members[0]["source"])
    if not path.is_file():
        raise InputError(f"{path}: checkpoint of {names[0]} not found; {cure}")
    if not (store := store_of(path, cache)).is_file():
        raise InputError(f"{store}: decisions of {names[0]} not found; {cure}")
    _, member = from_checkpoint(path, cache, EvaluateConfig(preset=preset, device="cpu"))
    policy = load_policy(path, torch.device("cpu"), preset)
    seed = f" (first of {len(members)} seeds)" if len(members) > 1 else ""
    data = Evaluated(cache, results, member.threshold, cache.base, member.pred)
    who = policy_name({"over_events": policy.over_events})
    return FirstPolicy(names[0] + seed, data, policy.bandit.max_delta, who)


# ---------------------------------------------------------------------------- the whole table


def draw_comparison(table: Table) -> "Figure":
    """Every row with its headline metrics and intervals, best first."""
    results = table.results
    metrics, decisive = HEADLINE[results["queries"]], table.decisive
    rows = sorted(results["entrants"], key=lambda row: -row["mean"][decisive])
    title = f"{len(rows)} systems by {TITLES[decisive]}: {table.what}"
    height = max(5.0, 2.6 + 0.31 * len(rows))
    figure, axes = page(title, 1, len(metrics), height, sharey=True)
    for ax, metric in zip(axes[0], metrics, strict=True):
        draw_metric(ax, table, rows, metric)
    names = [short(row["name"].replace(GATED, "gated"), 44) for row in rows]
    name_rows(axes[0, 0], names, [row["kind"] == "policy" for row in rows])
    for text, row in zip(axes[0, 0].get_yticklabels(), rows, strict=True):
        text.set_color(COLOURS[KINDS[row["kind"]][0]] if row["kind"] != "ceiling" else "#6b7380")
    note = f"Thin line: 95 % of {DRAWS:,} bootstraps of clips, of each system alone"
    if any(len(row["members"]) > 1 for row in rows):
        note += "; pale bar: ± standard deviation of the seeds"
    note += ".\nDifferences between systems are paired, their intervals narrower: see table.md."
    for kind, (colour, text) in KINDS.items():
        if any(row["kind"] == kind for row in rows):
            axes[0, 0].plot([], [], "o", **look(colour, text))
    if any(row["gated"] for row in rows):
        hollow = {"markerfacecolor": "white", "label": "Hollow: behind the tag gate"}
        axes[0, 0].plot([], [], "o", color=COLOURS["constant"], **hollow)
    return legend(figure, 3, note)


PER_WHAT = {
    "macro_f1": "F1 of each class, then the mean (%)",
    "micro_f1": "F1 over all frames (%)",
    "false_alarms": "Share of the absent pairs (%)\nlower is better",
}


def draw_metric(ax: "Axes", table: Table, rows: list[dict[str, Any]], metric: str) -> None:
    """One headline metric: points, intervals, seeds, reference lines and the numbers."""
    ends = [row["interval"][metric] for row in rows if row["name"] not in TRIVIAL]
    scale(ax, (0, 1) if metric == "false_alarms" else ends)
    for i, row in enumerate(rows):
        value, std = 100 * row["mean"][metric], 100 * row["std"][metric]
        colour = COLOURS[KINDS[row["kind"]][0]]
        several = len(row["members"]) > 1
        number = f"{value:.1f}" + f" ± {std:.1f}" * several
        if not row_value(ax, i, value, number, row["kind"] == "policy", colour):
            continue  # a rule that says nothing, far away
        if several:
            seeds = ([value - std, value + std], [-i, -i])
            ax.plot(*seeds, color=colour, lw=9, alpha=0.3, solid_capstyle="butt")
        low, high = row["interval"][metric]
        ax.plot([100 * low, 100 * high], [-i, -i], color=colour, lw=1.8)
        face = "white" if row["gated"] else colour
        point = {"marker": "o", "markersize": 7, "markerfacecolor": face, "linestyle": "none"}
        ax.plot([value], [-i], zorder=4, color=colour, **point)
    levels = [(BASE, "t_base", "--", f"Level of {BASE}")]
    if (best := table.results["best_opponent"]) is not None:
        levels.append((best, "best", ":", named(table, best)))
    for name, colour, line, text in levels:
        at = 100 * table.rows[name]["mean"][metric]
        ax.axvline(at, linestyle=line, linewidth=1.5, zorder=1, **look(colour, text))
    ax.set_title(TITLES[metric] + " (rows sorted by it)" * (metric == table.decisive))
    ax.set_xlabel(PER_WHAT.get(metric, "Mean over pairs (%)"))


# ---------------------------------------------------------------------------- classes, ends


def series(table: Table, kinds: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(row, colour, number within its kind) of bare rows of some kinds, then the best baseline."""
    found, best = [], table.results["best_opponent"]
    for kind in kinds:
        names = [name for name in table.bare(kind) if name != best]
        found += [(name, KINDS[kind][0], i) for i, name in enumerate(names)]
    return found + [(best, "best", 0)] * (best is not None)


def named(table: Table, name: str) -> str:
    """A row's name for a legend."""
    best = "Best baseline: " * (name == table.results["best_opponent"])
    return best + short(name, 40)


def draw_class_gains(table: Table) -> "Figure | str":
    """F1 gained in the present pairs of each class over the T_base that the table holds a row
    against, with intervals over clips."""
    rows, pairs = series(table, ("policy", "supervised")), table.pairs
    if not rows:
        return "the table has neither a policy nor a baseline"
    labels, counts = np.unique(pairs.event_label[pairs.present], return_counts=True)
    order = np.lexsort((labels, -counts))[:MOST_CLASSES]
    groups = {"All classes": pairs.present}
    groups |= {labels[k]: pairs.present & (pairs.event_label == labels[k]) for k in order}
    which = f" ({len(order)} most frequent of {len(labels)})" if len(order) < len(labels) else ""
    title = f"F1 gained over {BASE} by class{which}: {counts.sum():,} present pairs"
    height = max(PAGE[1], 2.2 + len(groups) * (0.3 + 0.13 * len(rows)))
    figure, axes = page(f"{title}, {table.split} split", height=height)
    ax, step = axes[0, 0], 0.8 / len(rows)
    gains, texts = [], []
    for name, _, _ in rows:
        base = table.rows[name]["base"]
        gains.append(100 * (pairs.f1[name] - pairs.f1[base]))
        texts.append(named(table, name) + f"\nover {base}" * (base != BASE))
    gains = np.stack(gains, axis=1)
    for i, chosen in enumerate(groups.values()):
        stripe(ax, i)
        low, high = bootstrap_mean(gains[chosen], pairs.filename[chosen])
        for j, (_, colour, number) in enumerate(rows):
            y = -i + step * ((len(rows) - 1) / 2 - j)
            ax.plot([low[j], high[j]], [y, y], color=COLOURS[colour])
            point = {"marker": MARKERS[number % len(MARKERS)], "linestyle": "none", "markersize": 8}
            ax.plot([gains[chosen, j].mean()], [y], **point, **look(colour, texts[j]))
    ax.axvline(0, color=COLOURS["t_base"], linestyle="--", linewidth=1.5, label=f"Level of {BASE}")
    names = [f"{short(name, 30)}\npairs: {chosen.sum():,}" for name, chosen in groups.items()]
    ax.set_yticks(-np.arange(len(groups)), names)
    ax.set_ylim(-len(groups) + 0.5, 0.5)
    ax.set_xlabel(
        "Gain in F1, mean over pairs (percentage points)\n"
        f"Lines: 95 % of {DRAWS:,} bootstraps of clips, each difference paired"
    )
    ax.grid(axis="y", visible=False)
    return legend(figure, 3)


def draw_ends(table: Table) -> "Figure":
    """How late onsets and offsets of matched events come: shares by error, medians."""
    rows = [(BASE, "t_base", 0), *series(table, ("policy",))]
    title, height = f"Onset and offset errors: {table.what}", 6.2 + 0.5 * len(rows)
    figure, axes = page(title, 1, 2, height, sharex=True, sharey=True)
    beyond = 0.0
    for ax, end in zip(axes[0], ENDS, strict=True):
        ax.axvline(0, color=COLOURS["constant"], linewidth=1)
        for name, colour, number in rows:
            found = table.rows[name]["ends"][end]
            text = f"{named(table, name)}\n{found['events']:,} {end}s"
            if not found["events"]:
                ax.plot([], [], **look(colour, text))
                continue
            share = 100 * np.array(found["histogram"]) / found["events"]
            beyond = max(beyond, 100 - share.sum())
            text += f", median |error| {found['median_ms']:.0f} ms"
            style = {"linewidth": 2, "linestyle": LINES[number % len(LINES)], "baseline": None}
            ax.stairs(share, BINS_MS, **style, **look(colour, text))
        ax.set_title(f"{end.capitalize()}s")
        ax.set_xlabel(f"{end.capitalize()} error (ms): left early, right late")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14))
    axes[0, 0].set_ylabel(f"Share of the matched events\n(% in a bin of {BIN_MS} ms)")
    axes[0, 0].set_xlim(BINS_MS[0], BINS_MS[-1])
    axes[0, 0].set_ylim(bottom=0)
    figure.supxlabel(
        "Matched: a true event and the one found event of its class that it meets, all seeds"
        " together.\nOnsets at the start of a clip and offsets at its end do not count."
        f" Off the axis: at most {beyond:.1f} % of a row.",
        fontsize=12,
    )
    return figure


# ---------------------------------------------------------------------------- what a policy does

STEPS = 20  # bins of prob - T_base within the reach of the actions


class ShiftMap(NamedTuple):
    """What a policy does at a distance from T_base: bins `edges` (B + 1,), arrays (K, B)."""

    edges: np.ndarray
    classes: list[str]
    frames: np.ndarray  # number of frames
    mean_shift: np.ndarray  # NaN without a frame
    changed: np.ndarray  # frames whose decision is another one than before
    frames_of_class: np.ndarray  # (K,) all frames, those out of reach too


def shift_map(policy: FirstPolicy) -> ShiftMap:
    """Mean shift of the threshold by `prob - T_base` and class, of all frames within reach."""
    data, reach = policy.data, policy.max_delta
    prob, t_base = (data.cache.signals[name].astype(np.float64) for name in ("prob", "t_base"))
    labels = class_of_pair(data.cache)[data.cache.frames_of_pair]
    classes, row = np.unique(labels, return_inverse=True)
    edges = np.linspace(-reach, reach, STEPS + 1)
    within = near(prob, t_base, reach)
    column = np.digitize((prob - t_base)[within], edges[1:-1])  # the ends belong to the end bins
    cell = row[within] * STEPS + column

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values[within], len(classes) * STEPS).reshape(-1, STEPS)

    frames, changed = (
        summed(on.astype(float)).astype(int) for on in (within, data.before != data.after)
    )
    mean = np.where(frames > 0, summed(data.t_adj - t_base) / np.maximum(frames, 1), np.nan)
    return ShiftMap(edges, classes.tolist(), frames, mean, changed, np.bincount(row))


def draw_policy_map(policy: FirstPolicy, what: str) -> "Figure | str":
    """Mean shift by `prob - T_base` and class, under the share of frames and changed decisions."""
    if policy.data.t_adj is None:
        return f"{policy.name} decides events and shifts no threshold"
    found = shift_map(policy)
    order = np.lexsort((found.classes, -found.frames_of_class))[:MOST_CLASSES]
    height, title = max(PAGE[1], 3.8 + 0.42 * len(order)), f"What {policy.name} does: {what}"
    figure, axes = page(title, 2, 1, height, sharex=True, height_ratios=(2.2, 5))
    top, ax = axes[:, 0]
    total = found.frames_of_class.sum()
    for counts, colour, text in (
        (found.frames, "yardstick", "Frames"),
        (found.changed, "t_adj", "Frames with another decision than before"),
    ):
        share = 100 * counts.sum(axis=0) / total
        top.stairs(share, found.edges, fill=True, **look(colour, text))
    top.axvline(0, color=COLOURS["constant"], linewidth=1)
    inside, changed = (counts.sum() / total for counts in (found.frames, found.changed))
    top.set_title(
        f"{inside:.1%} of {total:,} frames are within reach (±{policy.max_delta:g});"
        f" {changed:.1%} get another decision"
    )
    top.set_ylabel("Share of all\nframes (%)")
    scale = {"cmap": "RdBu_r", "vmin": -policy.max_delta, "vmax": policy.max_delta}
    rows = np.arange(len(order) + 1) - 0.5
    mesh = ax.pcolormesh(found.edges, rows, found.mean_shift[order], **scale)
    ax.set_facecolor("#d9dce1")
    ax.invert_yaxis()
    ax.axvline(0, color=COLOURS["constant"], linewidth=1)
    share = found.frames.sum(axis=1) / np.maximum(found.frames_of_class, 1)
    names = [f"{short(found.classes[k], 26)}: {share[k]:.0%} within reach" for k in order]
    ax.set_yticks(np.arange(len(order)), names)
    ax.set_title("Mean shift of the threshold; grey: no frame")
    ax.set_xlabel(
        "Prob95 - Base_T (probability units)\nleft of 0: off before the DQN; right of 0: on before"
    )
    ax.grid(False)
    text = "Mean shift (probability units)\nblue: lower, red: higher"
    figure.colorbar(mesh, ax=ax, pad=0.01, label=text)
    return legend(figure)


MOST = 3  # pairs on each side


def best_and_worst(data: Evaluated) -> tuple[list[int], list[int], np.ndarray]:
    """Present pairs with the largest gains and losses in F1, and the F1 before and after (2, P)."""
    f1 = np.stack([data.scores(on)["f1"] for on in (data.before, data.after)])
    gain = np.where(data.cache.present, f1[1] - f1[0], 0.0)
    order = np.argsort(-gain, kind="stable").tolist()
    best = [i for i in order[:MOST] if gain[i] > 0]
    return best, [i for i in order[::-1][:MOST] if gain[i] < 0], f1


def draw_best_worst(policy: FirstPolicy, what: str) -> "Figure":
    """Signals, decisions and truth of the pairs where a policy helps and hurts most."""
    best, worst, f1 = best_and_worst(policy.data)
    title = f"Where {policy.name} helps and hurts most: {what}"
    figure, axes = page(title, 2 * MOST, 2, 13.5, height_ratios=(5, 3) * MOST)
    for column, (word, chosen) in enumerate([("Helps", best), ("Hurts", worst)]):
        for place in range(MOST):
            curves, strip = axes[2 * place : 2 * place + 2, column]
            if place >= len(chosen):
                curves.set_axis_off()
                strip.set_axis_off()
                curves.text(0.5, 0.5, f"no further pair where it {word.lower()}", ha="center")
                continue
            view, (before, after) = view_of(policy.data, chosen[place]), f1[:, chosen[place]]
            curves.set_title(
                f"{word}, F1 {100 * before:.1f} to {100 * after:.1f}:"
                f" {short(view.pair.event_label, 26)} in {short(view.pair.filename, 24)}",
                fontsize=12,
            )
            draw_pair(curves, strip, view, policy.who)
    note = "Of the present pairs, those with the largest gains and losses in F1 over Base_T"
    return legend(figure, 4, note)


def draw_pair(curves: "Axes", strip: "Axes", view: View, who: str) -> None:
    """Probability and thresholds of a pair over its decisions and the truth; `who` decided."""
    first, last = view.edges[0], view.edges[-1]
    shown = [name for name in ("prob", "t_base", "t_adj") if name in view.signals]
    draw_curves(curves, view, *shown)  # a policy over events has no t_adj
    shade_changes(curves, view, f"{{}} by the {who}")
    unit_axis(curves, "Probability")
    curves.set_xlim(first, last)
    curves.tick_params(labelbottom=False)
    time_axis(strip, first, last)
    rows = [
        ("Base", view.before, "t_base", "Base decision"),
        (as_title(who), view.after, "t_adj", f"{as_title(who)} decision"),
        ("Truth", view.label, "label", "Ground Truth"),
    ]
    for y, (_, on, colour, text) in enumerate(rows):
        bars(strip, view.events(on), -y, colour, text)
    name_rows(strip, [name for name, *_ in rows])
    strip.grid(axis="y", visible=False)


# ---------------------------------------------------------------------------- all of them


def figures(folder: Path, preset: str) -> Drawn:
    """(file name, figure); a text says why a figure is left out."""
    table = load_table(folder)
    policy, none = load_first_policy(table, preset), "the table has no policy"
    drawings = {
        "comparison": lambda: draw_comparison(table),
        "per_class_gains": lambda: draw_class_gains(table),
        "ends": lambda: draw_ends(table),
        "policy_map": lambda: draw_policy_map(policy, table.what) if policy else none,
        "best_worst": lambda: draw_best_worst(policy, table.what) if policy else none,
    }
    return each_figure(drawings)
