"""Tables and figure of the active learning study.

Writes: the figure
Shapes: S seeds, R cycles

Differences are paired over seeds: the runs of a seed share first labels, initial weights and draws.
Their intervals are Student's t over seeds, 95 %, each by itself (no correction for many).
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.names import markdown_table
from figures.plotting import COLOURS, page, styled, write
from sed.metrics import student_mean

RULES = {  # name in tables, colour, marker
    "random": ("random", COLOURS["label"], "o"),
    "entropy": ("entropy", COLOURS["epsilon"], "v"),
    "margin": ("margin", COLOURS["prob"], "s"),
    "least-confidence": ("least confidence", COLOURS["rms"], "^"),
    "k-centre": ("k-centre", COLOURS["d_adj"], "P"),
    "badge": ("BADGE", COLOURS["f1"], "D"),
}
GREENS = ("#16913a", "#0b4f1f", "#5fc47f", "#a8c94b", "#0e7c86", "#9fe0c0")  # of DQNs, as elsewhere
QUERIES = {  # what is noted of every query -> its column, the mean over queries and seeds
    "wrong": "wrong when bought, %",
    "wrong_left": "wrong in the pool, %",
    "ranking": "ranking of the errors, %",
    "as_margin": "also margin's choice, %",
    "balance": "balance of the classes, %",
}
CYCLES = (("cycle 2", 1, 2), ("cycles 4 and later", 3, None), ("last cycle", -1, None))


class Finished(NamedTuple):
    """All finished runs of a command; strategies in the order of the rows."""

    seeds: list[int]  # S
    labels: np.ndarray  # (R,) labels in each cycle
    accuracy: dict[str, np.ndarray]  # strategy -> (S, R) on the test images
    seconds: dict[str, np.ndarray]  # strategy -> (S, R)
    queries: dict[str, dict[str, np.ndarray]]  # QUERIES -> strategy -> (S, R - 1), 0..1; NaN: none
    warm_start: str = "margin"  # rule of the first queries of dqn-warm

    @property
    def areas(self) -> dict[str, np.ndarray]:
        """Strategy -> area (S,), see `area`."""
        return {name: area(runs, self.labels) for name, runs in self.accuracy.items()}

    @property
    def dqns(self) -> list[str]:
        """Strategies that are a DQN."""
        return [name for name in self.accuracy if name.startswith("dqn")]

    @property
    def others(self) -> list[str]:
        """Strategies that all are compared with."""
        return [name for name in ("random", "margin") if name in self.accuracy]

    def spoken(self, name: str) -> str:
        """dqn-warm3-200 -> margin 3 times, then DQN, 200 steps: as tables and figure say it."""
        if name in RULES:
            return RULES[name][0]
        who, _, steps = name.rpartition("-")
        warm = who.removeprefix("dqn-warm")
        times = "once" if warm == "1" else f"{warm} times"
        first = "" if who == "dqn" else f"{RULES[self.warm_start][0]} {times}, then "
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
    for name, runs in outcome.accuracy.items():
        cells = [f"{100 * value:.2f}" for value in runs.mean(0)]
        rows.append([outcome.spoken(name), *cells, spread(outcome.areas[name])])
    return "\n".join(markdown_table(header, rows))


def difference_table(outcome: Finished) -> str:
    """Each strategy against random and margin; a cell is empty where there are too few cycles."""
    columns = {f"area minus {other}'s": (other, outcome.areas) for other in outcome.others}
    for what, first, last in CYCLES:
        runs = {name: runs[:, first:last] for name, runs in outcome.accuracy.items()}
        means = {name: some.mean(1) for name, some in runs.items() if some.size}
        columns[f"{what} minus random's"] = ("random", means)

    def cell(name: str, other: str, values: dict[str, np.ndarray]) -> str:
        empty = name == other or name not in values
        return "" if empty else points(student_mean(values[name] - values[other]))

    rows = [
        [outcome.spoken(name), *(cell(name, *column) for column in columns.values())]
        for name in outcome.accuracy
    ]
    return "\n".join(markdown_table(["", *columns], rows))


def query_table(outcome: Finished) -> str:
    """What each strategy bought: mean over all queries, and over those from the third on."""
    rows = []
    for name in outcome.accuracy:
        cells = [outcome.spoken(name)]
        for queries in outcome.queries.values():
            values = queries[name]
            later = values[:, 2:] if values.shape[1] > 2 else values
            text = f"{100 * values.mean():.0f} → {100 * later.mean():.0f}"
            cells.append("" if np.isnan(values.mean()) else text)
        rows.append(cells)
    return "\n".join(markdown_table(["", *QUERIES.values()], rows))


def verdict(outcome: Finished) -> str:
    """A sentence for each DQN against random and margin."""
    lines = []
    for name, other in itertools.product(outcome.dqns, outcome.others):
        _, low, high = gap = student_mean(outcome.areas[name] - outcome.areas[other])
        said = "above" if low > 0 else "below" if high < 0 else "cannot be told apart"
        said = "one seed, so nothing is shown" if np.isnan(low) else said
        lines.append(f"- {outcome.spoken(name)} against {other}: area {points(gap)}: {said}")
    return "\n".join(lines)


def comparison(outcome: Finished) -> str:
    """The report of several strategies."""
    count, first, last = len(outcome.seeds), outcome.seeds[0], outcome.seeds[-1]
    several = count > 1
    seeds = f"mean over {count} seeds ({first} to {last})" if several else f"seed {first}"
    about = f"Test accuracy in percent, {seeds}; area: mean accuracy over the range of"
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
    later = np.stack([outcome.accuracy[name].mean(0)[2:] for name in outcome.dqns])
    best = (later == later.max(0)).sum(1)
    return dict(zip(outcome.dqns, best.tolist(), strict=True))


def steps_table(outcome: Finished, won: dict[str, int], best: str) -> str:
    """The report of several numbers of gradient steps: a comparison, and the source's count."""
    areas = [100 * outcome.areas[name].mean() for name in won]
    said = ", ".join(f"{outcome.spoken(name)} {count}" for name, count in won.items())
    return f"""{comparison(outcome)}
Cycles from the third on in which it is the best: {said}.

Best by that count: {outcome.spoken(best)}. Areas lie between {min(areas):.2f} and {max(areas):.2f}.
"""


def as_dict(outcome: Finished) -> dict[str, Any]:
    """For results.json."""
    areas = outcome.areas
    others = outcome.others if outcome.seeds[1:] else []

    def rows(values: dict[str, np.ndarray]) -> list:
        return [np.where(np.isnan(one), None, one).tolist() for one in values.values()]

    return {
        "strategies": list(outcome.accuracy),
        "seeds": outcome.seeds,
        "labels": outcome.labels.tolist(),
        "accuracy": rows(outcome.accuracy),
        "area": rows(areas),
        "area_minus": {
            name: {other: student_mean(mine - areas[other]) for other in others if other != name}
            for name, mine in areas.items()
        },
        "queries": {key: rows(values) for key, values in outcome.queries.items()},
        "seconds": [runs.round(2).tolist() for runs in outcome.seconds.values()],
    }


def as_tsv(outcome: Finished) -> str:
    """A line for each strategy, seed and cycle."""
    lines = ["strategy\tseed\tcycle\tlabels\taccuracy"]
    for name, runs in outcome.accuracy.items():
        for (i, cycle), value in np.ndenumerate(runs):
            place = f"{outcome.seeds[i]}\t{cycle + 1}\t{outcome.labels[cycle]}"
            lines.append(f"{name}\t{place}\t{value:.6f}")
    return "\n".join(lines) + "\n"


@styled
def draw(outcome: Finished, dataset: str, path: Path) -> None:
    """The slides' two figures side by side: accuracy, and the difference to random."""
    seeds = len(outcome.seeds)
    title = f"Active learning on {dataset}: {seeds} seed{'s' if seeds > 1 else ''}"
    figure, ((left, right),) = page(title, 1, 2, 6.6)
    greens = itertools.cycle(GREENS)
    base = outcome.accuracy["random"]
    for name, runs in outcome.accuracy.items():
        _, colour, marker = RULES.get(name) or ("", next(greens), "*")
        line = {"color": colour, "marker": marker, "markersize": 6, "label": outcome.spoken(name)}
        if name in outcome.dqns:
            line |= {"linewidth": 2.6, "zorder": 3, "markersize": 10}
        left.plot(outcome.labels, 100 * runs.mean(0), **line)
        gap = 100 * (runs - base)
        right.plot(outcome.labels, gap.mean(0), **line)
        if seeds > 1 and name in outcome.dqns:
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
