"""`best` against the best rule of each column, pooled over bank folds, scorers and policies.

Reads:  runs/table-best-fold*/{results.json, rules.json}, runs/bench*-best-*/{best.pt, decisions/},
        cache/esc10-fold*-slides-*/validation/, data/esc10-fold*/clips.tsv
Shapes: D draws, M metrics

A figure is the mean over folds, in a fold over scorers, of a scorer over policies. The rule of a
column is the one that is best in it so pooled: chosen on these very clips, which favours the rules.
Settings that are not finished are left out, and counted: no claim is made before all folds are in.
"""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, variance
from typing import Any, NamedTuple

import numpy as np

from baselines.tuned_rules import Rule
from comparison import clustered, scoring, systems
from comparison.scoring import TITLES, in_points, word
from comparison.systems import BASE, GATED, Member, System
from config import EvaluateConfig
from core.errors import InputError
from core.names import markdown as as_markdown
from core.names import markdown_table
from core.stored import read_json
from core.versions import made_on
from sed.caches import Cache, load_cache
from sed.labels import records
from studies import benchmark
from studies.benchmark import Setting

BEST = "best"
CURE = "delete the folder and run: python -m studies.reproduce benchmark"
COLUMNS = {
    "all": ("macro_f1", "micro_f1", "event_f1", "intersection_f1", "psds1", "psds2"),
    "present": ("accuracy", "iou", "f1", "event_f1", "intersection_f1"),
}
PSDS_DRAWS = 200  # each takes as long as a PSDS
TITLES_OF = {"all": "all pairs", "present": "present pairs"}


def recordings_of(corpus: Path, split: str) -> dict[str, list[str]]:
    """The recordings that each clip plays, from the corpus's clips.tsv.

    Pieces of one recording (ESC-50 names them by a last letter: 5-198411-E) are the same one.
    InputError for a list without them.
    """
    path = corpus / "clips.tsv"
    rows = records(path)
    if not rows or any(not row.get(key) for row in rows for key in ("filename", "recordings")):
        raise InputError(f"{path}: expected columns split, filename, recordings and a row a clip")
    return {
        row["filename"]: [name.rpartition("-")[0] for name in row["recordings"].split(";")]
        for row in rows
        if row["split"] == split
    }


class Table(NamedTuple):
    """A finished comparison of `best` with the rules."""

    setting: Setting
    queries: str
    results: dict[str, Any]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.results["entrants"]}

    @property
    def folder(self) -> str:
        """Where it lies, from the project root."""
        return self.setting.table(self.queries)

    @property
    def runs(self) -> list[Path]:
        """Checkpoints of `best`."""
        return [benchmark.ROOT / member["source"] for member in self.rows[BEST]["members"]]

    def load(self, split: str) -> Cache:
        """The pairs that it judges, or on which its rules were tuned."""
        return load_cache(benchmark.ROOT / self.setting.cache("slides", self.queries) / split)


def read_tables(queries: str) -> list[Table]:
    """The finished tables; InputError without any, and where they do not hold the same rows."""
    tables = []
    for setting in benchmark.SETTINGS:
        path = benchmark.ROOT / setting.table(queries) / "results.json"
        if path.exists():
            tables.append(Table(setting, queries, read_json(path, CURE)))
    if not tables:
        wanted = benchmark.SETTINGS[0].table(queries)
        raise InputError(f"{wanted}: no table; run: python -m studies.reproduce benchmark")
    for table in tables:
        if other := tables[0].rows.keys() ^ table.rows.keys():
            raise InputError(f"{table.folder}: {min(other)!r} is not in every table; {CURE}")
    return tables


def over_settings(values: dict[Setting, Any]) -> Any:
    """Mean over folds of the means over scorers."""
    folds = {setting.fold for setting in values}
    each = [[v for setting, v in values.items() if setting.fold == fold] for fold in folds]
    return sum(sum(some) / len(some) for some in each) / len(each)


def spread_of(values: dict[Setting, list[float]]) -> float | None:
    """Standard deviation of one run in a fold, over scorers and policies: the root of the mean
    variance over folds; None where no fold has two runs."""
    runs: dict[int, list[float]] = {}
    for setting, some in values.items():
        runs.setdefault(setting.fold, []).extend(some)
    found = [variance(some) for some in runs.values() if len(some) > 1]
    return mean(found) ** 0.5 if found else None


def pooled_rows(tables: list[Table]) -> dict[str, dict[str, Any]]:
    """Rows by name: `kind`, the pooled mean of each metric, and `std` of each."""
    found = {}
    for name, row in tables[0].rows.items():
        found[name] = {"kind": row["kind"], "std": {}}
        for metric in COLUMNS[tables[0].queries]:
            of = {t.setting: [m[metric] for m in t.rows[name]["members"]] for t in tables}
            found[name][metric] = over_settings({key: mean(some) for key, some in of.items()})
            found[name]["std"][metric] = spread_of(of)
    return found


def members_of(table: Table, name: str, cache: Cache) -> list[Member]:
    """A row's members from what is stored: decisions of checkpoints, tuned rules."""
    if name == BEST:
        return [systems.from_checkpoint(path, cache, EvaluateConfig())[1] for path in table.runs]
    stored = read_json(benchmark.ROOT / table.folder / "rules.json", CURE)["rules"]
    plain = name.removesuffix(f", {GATED}")
    rules = [Rule(**rule) for rule in stored if rule["name"] == plain]
    gate = systems.tuned_gate(table.load("train")) if any(rule.gated for rule in rules) else None
    rows = systems.rows_of_rules(rules, cache, gate, ())
    return next(row.members for row in rows if row.name == name)


# Of a row in one setting, by metric: the figure, then what it is in every draw, (1 + D,).
Draws = dict[str, np.ndarray]


def draws_of(table: Table, name: str, cache: Cache, weigh: clustered.Weigh, psds: bool) -> Draws:
    """Figures of a row from what is stored. InputError where they are not those of its table."""
    sampler = scoring.Resampler(cache, weigh)
    members = members_of(table, name, cache)
    tasks = scoring.event_tasks([System(name, "", "", members)], cache)
    values, drawn = [], []
    for member, task in zip(members, tasks, strict=True):
        counts = scoring.counts_of(member, cache)
        row, of_events = scoring.event_row(task if psds else task._replace(scored=None))
        values.append(scoring.headline(counts, cache) | row)
        parts = (sampler.draws(counts), sampler.event_draws(of_events))
        names = (*scoring.HEADLINE[table.queries], *scoring.DRAWN_FOR_EVENTS)
        drawn.append(dict(zip(names, np.concatenate(parts, axis=1).T, strict=True)))
        if psds:
            some = weigh(np.array(list(task.durations)))[:PSDS_DRAWS]
            drawn[-1] |= scoring.psds_draws(task, some)
    value, written = scoring.spread(values)[0], table.rows[name]["mean"]
    if any(abs(value[each] - written[each]) > 1e-9 for each in value):
        raise InputError(f"{table.folder}: not made of the decisions that are stored now; {CURE}")
    means = {key: np.mean([each[key] for each in drawn], axis=0) for key in drawn[0]}
    return {key: np.concatenate(([value[key]], each)) for key, each in means.items()}


def differences(tables: list[Table], rules: dict[str, str]) -> dict[str, dict[Setting, Draws]]:
    """`best` minus each rule in every setting, by rule; `rules`: that of each metric.

    A timeline and a recording have one weight in all settings.
    """
    homes = {t.setting: benchmark.ROOT / t.setting.corpus for t in tables}
    played = {setting: recordings_of(home, "validation") for setting, home in homes.items()}
    timelines = clustered.level_weights((clip for some in played.values() for clip in some), seed=0)
    every = (name for some in played.values() for clip in some.values() for name in clip)
    recordings = clustered.level_weights(every, seed=1)
    found: dict[str, dict[Setting, Draws]] = {rule: {} for rule in rules.values()}
    ranked = {rules.get(metric) for metric in ("psds1", "psds2")}
    for table in tables:
        cache = table.load("validation")
        weigh = clustered.clip_weights(timelines, recordings, played[table.setting])
        ours = draws_of(table, BEST, cache, weigh, scoring.ranked(cache))
        for rule in found:
            theirs = draws_of(table, rule, cache, weigh, rule in ranked)  # may lack the PSDS
            found[rule][table.setting] = {key: ours[key] - each for key, each in theirs.items()}
    return found


class Claim(NamedTuple):
    """`best` against one rule in one metric: difference, low and high end, pooled and by fold."""

    metric: str
    rule: str
    whole: list[float]
    folds: dict[int, list[float]]

    @property
    def told(self) -> str:
        """What the intervals say together, see `clustered.told`."""
        ends = [each[1:] for each in self.folds.values()]
        return clustered.told(self.metric, self.whole[1:], ends)


def claim_of(metric: str, rule: str, changes: dict[Setting, Draws]) -> Claim:
    """Pooled over the settings that are given."""

    def with_interval(some: dict[Setting, Draws]) -> list[float]:
        value, *drawn = over_settings({key: each[metric] for key, each in some.items()})
        return [float(value), *clustered.widened(np.array(drawn), value).tolist()]

    by_fold = {
        fold: with_interval({key: each for key, each in changes.items() if key.fold == fold})
        for fold in sorted({setting.fold for setting in changes})
    }
    return Claim(metric, rule, with_interval(changes), by_fold)


class Study(NamedTuple):
    """One kind of pairs: pooled rows, the rule of each column, claims, and those of each scorer."""

    queries: str
    tables: list[Table]
    rows: dict[str, dict[str, Any]]
    rules: dict[str, str]
    claims: list[Claim]
    of_scorer: dict[int, list[Claim]]


def study(queries: str) -> Study:
    tables = read_tables(queries)
    rows = pooled_rows(tables)
    rules = {metric: scoring.best_of(rows, metric, ("rule",)) for metric in COLUMNS[queries]}
    changes = differences(tables, rules)

    def claims_of(*scorers: int) -> list[Claim]:
        return [
            claim_of(metric, rule, {k: v for k, v in changes[rule].items() if k.scorer in scorers})
            for metric, rule in rules.items()
        ]

    scorers = sorted({setting.scorer for some in changes.values() for setting in some})
    of_scorer = {scorer: claims_of(scorer) for scorer in scorers}
    return Study(queries, tables, rows, rules, claims_of(*scorers), of_scorer)


def in_words(values: list[Any]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def scorers_said(claim: Claim, study: Study) -> str:
    """Whether the scorer's seed changes what is said, once all folds of each are in."""
    complete = {
        scorer: own.told
        for scorer, claims in study.of_scorer.items()
        for own in claims
        if own.metric == claim.metric and len(own.folds) == clustered.NUM_FOLDS
    }
    if len(complete) < len(benchmark.SCORERS):
        return f"the scores of {len(complete)} of {len(benchmark.SCORERS)} scorers are complete"
    others = [f"{scorer} alone: {said}" for scorer, said in complete.items() if said != claim.told]
    if not others:
        return "the scores of each scorer alone say the same"
    return f"the scorer changes it, {in_words([f'those of scorer {each}' for each in others])}"


def sentence(claim: Claim, study: Study) -> str:
    """One claim, or that it is none, in the words of the rule."""
    number, folds = len(claim.folds), clustered.NUM_FOLDS
    said = [word(claim.metric, *ends) for _, *ends in claim.folds.values()]
    above, below = said.count("beats"), said.count("loses to")
    where = {"beats": "is above zero", "loses to": "is below zero"}
    side = where.get(word(claim.metric, *claim.whole[1:]), "covers zero")
    counted = f"above zero in {above} of {number}" + f", below in {below}" * (below > 0)
    value = 100 * study.rows[claim.rule][claim.metric]
    rule = as_markdown(f"{claim.rule} ({value:.2f})")
    what = f"{TITLES[claim.metric]}, {TITLES_OF[study.queries]}"
    points = f"{rule}: {in_points(claim.whole)} points"
    if number < folds:
        text = f"**{what}**: no claim, {number} of {folds} bank folds are judged. So far `{BEST}`"
        return f"{text} minus {points}; the interval {side} over these pooled, {counted}."
    text = f"**{what}**: `{BEST}` {claim.told} {points}. The interval {side} over all {folds} bank"
    return f"{text} folds pooled, {counted}; {scorers_said(claim, study)}."


def rows_table(study: Study, names: Iterable[str]) -> list[str]:
    """Some rows as Markdown: mean and standard deviation in percent, the best of a column in bold;
    sorted by what rules are tuned for, with the differences below."""
    columns, rows = COLUMNS[study.queries], {name: study.rows[name] for name in names}
    top = {metric: max(row[metric] for row in rows.values()) for metric in columns}
    decisive = scoring.DECISIVE[study.queries]
    lines = []
    for name, row in sorted(rows.items(), key=lambda item: -item[1][decisive]):
        cells = [as_markdown(name)]
        for metric in columns:
            text, std = f"{100 * row[metric]:.2f}", row["std"][metric]
            text = f"**{text}**" if row[metric] == top[metric] else text
            cells.append(text if std is None else f"{text} ± {100 * std:.2f}")
        lines.append(cells)
    gaps = [in_points(claim.whole) for claim in study.claims]
    lines.append(["`best` minus the best rule", *gaps])
    return markdown_table(["", *(TITLES[metric] for metric in columns)], lines)


def screen(studies: list[Study]) -> str:
    """The tables with the rule of each column, a sentence for each claim, and what made them."""
    lines = []
    for study in studies:
        folds = sorted({table.setting.fold for table in study.tables})
        runs = Counter(
            (table.setting.scorer, int(path.parent.name.rpartition("-")[2]))
            for table in study.tables
            for path in table.runs
        )
        each = (f"{in_words(seeds)} in {count}" for seeds, count in sorted(runs.items()))
        counted = [f"{len(folds)} of {clustered.NUM_FOLDS} bank folds ({in_words(folds)})"]
        counted.append(f"seeds of scorer and policy {', '.join(each)}")
        title = TITLES_OF[study.queries]
        lines += [f"{title[0].upper()}{title[1:]}: {', '.join(counted)}.", ""]
        lines += [*rows_table(study, dict.fromkeys([BEST, *study.rules.values(), BASE])), ""]
    lines += [f"- {sentence(claim, study)}" for study in studies for claim in study.claims]
    return "\n".join([*lines, "", made(studies)])


def made(studies: list[Study]) -> str:
    """When, on which processors and with which versions the tables were made."""
    tables = [table for study in studies for table in study.tables]
    paths = [benchmark.ROOT / table.folder / "results.json" for table in tables]
    day = time.strftime("%Y-%m-%d", time.localtime(max(p.stat().st_mtime for p in paths)))
    with_ = [table.results["versions"] for table in tables]
    found = {key: in_words(sorted({each[key] for each in with_})) for key in with_[0]}
    return made_on(f"until {day}", found)


def page(studies: list[Study]) -> str:
    """`screen`, then each bank fold, then every row."""
    lines = ["## `best` and the best rules", "", screen(studies), ""]
    for study in studies:
        lines += [f"## Each bank fold, {TITLES_OF[study.queries]}: `best` minus the same rules", ""]
        rows = [
            [str(fold), *(in_points(claim.folds[fold]) for claim in study.claims)]
            for fold in study.claims[0].folds
        ]
        header = ["bank fold", *(TITLES[metric] for metric in COLUMNS[study.queries])]
        lines += [*markdown_table(header, rows), ""]
    for study in studies:
        lines += [f"## Every row, {TITLES_OF[study.queries]}", ""]
        lines += [*rows_table(study, study.rows), ""]
    return "\n".join(lines).rstrip()
