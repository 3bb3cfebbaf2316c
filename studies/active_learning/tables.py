"""Tables and figure of the active learning study.

Writes: the figure
Shapes: M strategies, S seeds, R cycles

Differences are paired over seeds: the runs of a seed share first labels, initial weights and draws.
Their intervals are Student's t over seeds, 95 %, each by itself (no correction for many).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.names import markdown_table
from figures.plotting import COLOURS, page, styled, write
from sed.metrics import student_mean

NAMES = {
    "random": "random",
    "entropy": "entropy",
    "margin": "margin",
    "least-confidence": "least confidence",
    "k-centre": "k-centre",
    "badge": "BADGE",
}
LOOKS = {  # colour, marker; green is the DQN, as in all figures
    "random": (COLOURS["label"], "o"),
    "entropy": (COLOURS["epsilon"], "v"),
    "margin": (COLOURS["prob"], "s"),
    "least-confidence": (COLOURS["rms"], "^"),
    "k-centre": (COLOURS["d_adj"], "P"),
    "badge": (COLOURS["f1"], "D"),
}
GREENS = ("#16913a", "#0b4f1f", "#5fc47f", "#a8c94b", "#0e7c86", "#9fe0c0")


QUERIES = {  # what is noted of every query -> its column, the mean over queries and seeds
    "wrong": "wrong when bought, %",
    "wrong_left": "wrong in the pool, %",
    "ranking": "ranking of the errors, %",
    "as_margin": "also margin's choice, %",
    "balance": "balance of the classes, %",
}


class Finished(NamedTuple):
    """All finished runs of a command."""

    names: list[str]  # M
    seeds: list[int]  # S
    labels: np.ndarray  # (R,) labels in each cycle
    accuracy: np.ndarray  # (M, S, R) on the test images
    seconds: np.ndarray  # (M, S, R)
    queries: dict[str, np.ndarray]  # name of QUERIES -> (M, S, R - 1), 0..1; NaN: has none
    warm_start: str = "margin"  # rule of the first queries of dqn-warm

    def of(self, name: str) -> np.ndarray:
        """Accuracy (S, R) of a strategy."""
        return self.accuracy[self.names.index(name)]

    def spoken(self, name: str) -> str:
        """dqn-warm3-200 -> margin 3 times, then DQN, 200 steps: as tables and figure say it."""
        if not name.startswith("dqn"):
            return NAMES[name]
        who, _, steps = name.rpartition("-")
        warm = who.removeprefix("dqn-warm")
        times = "once" if warm == "1" else f"{warm} times"
        first = "" if who == "dqn" else f"{NAMES[self.warm_start]} {times}, then "
        return f"{first}DQN, {steps} steps"


def area(accuracy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under accuracy over labels by the trapezoidal rule, divided by the width: (.., R) -> ..

    It is the mean accuracy over the range of labels, 0..1.
    """
    return np.trapezoid(accuracy, labels, axis=-1) / (labels[-1] - labels[0])


def points(difference: tuple[float, float, float]) -> str:
    """+1.20 [+0.80, +1.60], in percentage points."""
    mean, low, high = (round(100 * value, 2) + 0.0 for value in difference)  # no -0.00
    return f"{mean:+.2f}" + ("" if np.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")


def spread(values: np.ndarray) -> str:
    """Mean and, of several seeds, standard deviation of (S,), in percent."""
    text = f"{100 * values.mean():.2f}"
    return text + (f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else "")


def accuracy_table(outcome: Finished) -> str:
    """Accuracy in each cycle, mean over seeds, with the area."""
    header = ["labels", *(f"{count:,}" for count in outcome.labels), "area"]
    rows = []
    for name, runs in zip(outcome.names, outcome.accuracy, strict=True):
        cells = [f"{100 * value:.2f}" for value in runs.mean(0)]
        rows.append([outcome.spoken(name), *cells, spread(area(runs, outcome.labels))])
    return "\n".join(markdown_table(header, rows))


def difference_table(outcome: Finished) -> str:
    """Each strategy against random and margin."""
    others = [name for name in ("random", "margin") if name in outcome.names]
    header = ["", *(f"area minus {name}'s" for name in others), "cycle 2 minus random's"]
    header += ["cycles 4 and later minus random's", "last cycle minus random's"]
    rows = []
    areas = area(outcome.accuracy, outcome.labels)
    base = outcome.of("random")
    for i, name in enumerate(outcome.names):
        gaps = [areas[i] - areas[outcome.names.index(other)] for other in others]
        pairs = zip(others, gaps, strict=True)
        cells = ["" if other == name else points(student_mean(gap)) for other, gap in pairs]
        for cycles in (slice(1, 2), slice(3, None), slice(-1, None)):
            if base[:, cycles].size:
                gap = outcome.accuracy[i][:, cycles].mean(1) - base[:, cycles].mean(1)
                cells.append("" if name == "random" else points(student_mean(gap)))
            else:  # fewer than four cycles
                cells.append("")
        rows.append([outcome.spoken(name), *cells])
    return "\n".join(markdown_table(header, rows))


def query_table(outcome: Finished) -> str:
    """What each strategy bought: mean over all queries, and over those from the third on."""
    header = ["", *QUERIES.values()]
    rows = []
    for i, name in enumerate(outcome.names):
        cells = []
        for values in (outcome.queries[key][i] for key in QUERIES):
            later = values[:, 2:] if values.shape[1] > 2 else values
            text = f"{100 * values.mean():.0f} → {100 * later.mean():.0f}"
            cells.append("" if np.isnan(values.mean()) else text)
        rows.append([outcome.spoken(name), *cells])
    return "\n".join(markdown_table(header, rows))


def verdict(outcome: Finished) -> str:
    """A sentence for each DQN against random and margin."""
    lines = []
    areas = dict(zip(outcome.names, area(outcome.accuracy, outcome.labels), strict=True))
    for name in (name for name in outcome.names if name.startswith("dqn")):
        for other in (other for other in ("random", "margin") if other in areas):
            _, low, high = gap = student_mean(areas[name] - areas[other])
            said = "above" if low > 0 else "below" if high < 0 else "cannot be told apart"
            said = "one seed, so nothing is shown" if np.isnan(low) else said
            lines.append(f"- {outcome.spoken(name)} against {other}: area {points(gap)}: {said}")
    return "\n".join(lines)


def seeds_of(outcome: Finished) -> str:
    """mean over 3 seeds (0 to 2)"""
    first, last = outcome.seeds[0], outcome.seeds[-1]
    several = f"mean over {len(outcome.seeds)} seeds ({first} to {last})"
    return several if first != last else f"seed {first}"


def hours(outcome: Finished) -> str:
    """Time of all trainings and queries, the first cycle of a seed once."""
    seconds = outcome.seconds[:, :, 1:].sum() + outcome.seconds[0, :, 0].sum()
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def comparison(outcome: Finished) -> str:
    """The report of several strategies."""
    several = len(outcome.seeds) > 1
    about = f"Test accuracy in percent, {seeds_of(outcome)}; area: mean accuracy over the range of"
    about += f" labels{', ± standard deviation over seeds' * several}."
    in_brackets = ", paired over seeds, in brackets 95 % (Student's t)" * several
    gaps = f"Differences in percentage points{in_brackets}."
    bought = "What was bought, mean over seeds: over all queries → from the third query on."
    parts = [about, accuracy_table(outcome), gaps, difference_table(outcome)]
    parts += [bought, query_table(outcome), verdict(outcome)]
    return "\n\n".join(part for part in parts if part) + "\n"


def wins(outcome: Finished) -> dict[str, int]:
    """In how many cycles each DQN is the best of the DQNs, the source's rule.

    Cycles 1 and 2 do not count: the first query comes before any gradient step, so all are equal.
    """
    names = [name for name in outcome.names if name.startswith("dqn")]
    later = np.stack([outcome.of(name).mean(0)[2:] for name in names])
    best = later == later.max(0)
    return {name: int(count) for name, count in zip(names, best.sum(1), strict=True)}


def steps_table(outcome: Finished, won: dict[str, int], best: str) -> str:
    """The report of several numbers of gradient steps: a comparison, and the source's count."""
    areas = [100 * area(outcome.of(name), outcome.labels).mean() for name in won]
    said = ", ".join(f"{outcome.spoken(name)} {count}" for name, count in won.items())
    low, high = min(areas), max(areas)
    counts = f"""Cycles from the third on in which it is the best: {said}.

Best by that count: {outcome.spoken(best)}. Areas lie between {low:.2f} and {high:.2f}.
"""
    return f"{comparison(outcome)}\n{counts}"


def as_dict(outcome: Finished) -> dict[str, Any]:
    """For results.json."""
    areas = area(outcome.accuracy, outcome.labels)
    by_name = dict(zip(outcome.names, areas, strict=True))
    others = [name for name in ("random", "margin") if name in by_name and outcome.seeds[1:]]
    gaps = {
        name: {other: student_mean(mine - by_name[other]) for other in others if other != name}
        for name, mine in by_name.items()
    }
    return {
        "strategies": outcome.names,
        "seeds": outcome.seeds,
        "labels": outcome.labels.tolist(),
        "accuracy": outcome.accuracy.tolist(),
        "area": areas.tolist(),
        "area_minus": gaps,
        "queries": {
            name: np.where(np.isnan(values), None, values).tolist()
            for name, values in outcome.queries.items()
        },
        "seconds": outcome.seconds.round(2).tolist(),
    }


def as_tsv(outcome: Finished) -> str:
    """A line for each strategy, seed and cycle."""
    lines = ["strategy\tseed\tcycle\tlabels\taccuracy"]
    for name, runs in zip(outcome.names, outcome.accuracy, strict=True):
        for seed, values in zip(outcome.seeds, runs, strict=True):
            for cycle, value in enumerate(values):
                place = f"{cycle + 1}\t{outcome.labels[cycle]}"
                lines.append(f"{name}\t{seed}\t{place}\t{value:.6f}")
    return "\n".join(lines) + "\n"


@styled
def draw(outcome: Finished, dataset: str, path: Path) -> None:
    """The slides' two figures side by side: accuracy, and the difference to random."""
    seeds = len(outcome.seeds)
    title = f"Active learning on {dataset}: {seeds} seed{'s' if seeds > 1 else ''}"
    figure, ((left, right),) = page(title, 1, 2, 6.6)
    greens = iter(GREENS * (1 + len(outcome.names) // len(GREENS)))
    base = outcome.of("random")
    for name, runs in zip(outcome.names, outcome.accuracy, strict=True):
        colour, marker = LOOKS.get(name) or (next(greens), "*")
        line = {"color": colour, "marker": marker, "markersize": 6}
        line["label"] = outcome.spoken(name)
        if name.startswith("dqn"):
            line |= {"linewidth": 2.6, "zorder": 3, "markersize": 10}
        left.plot(outcome.labels, 100 * runs.mean(0), **line)
        gap = 100 * (runs - base)
        right.plot(outcome.labels, gap.mean(0), **line)
        if seeds > 1 and name.startswith("dqn"):
            low, high = np.transpose([student_mean(cycle)[1:] for cycle in gap.T])
            right.fill_between(outcome.labels, low, high, color=colour, alpha=0.13, lw=0)
    left.set_ylabel("Test accuracy (%)")
    right.set_ylabel("Accuracy minus random's (points)")
    left.set_title("Accuracy" + (", mean over seeds" if seeds > 1 else ""))
    band = "; band: 95 % over seeds (DQN)" if seeds > 1 else ""
    right.set_title(f"Relative to random{band}")
    for ax in (left, right):
        ax.set_xlabel("Labelled images")
        ax.set_xticks(outcome.labels)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    write(figure, path, 90, title)
