"""Repeat RESULTS.md: every corpus, score, training and table, then docs/results/ and what it marks.

Run:    python -m studies.reproduce all [DATA]        # everything below; `make results`
        python -m studies.reproduce benchmark [DATA]  # ESC-10 recordings on the DESED timelines
        python -m studies.reproduce dcase [DATA]      # 20 real clips, scores only
        python -m studies.reproduce vad [DATA]        # Silero VAD on digits in noise, its own rule
        python -m studies.reproduce demo              # the demo with 5 seeds, corpus and all
        python -m studies.reproduce table NAME        # only write a part from finished runs
Reads:  DATA/{esc10,desed_timelines,dcase2023_baseline,fsdd}
        (default: SED_SHARED_DATA or ../shared/data)
Writes: data/, cache/, runs/ like the scripts, runs/logs/, docs/results/, marked parts of RESULTS.md

Two processes, one thread each. What is finished is skipped, so the study can be interrupted; the
rules of the 20 clips and of the digits are tuned anew each time, minutes.
"""

import statistics
from functools import partial
from pathlib import Path

from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

from comparison import scoring
from comparison.scoring import in_points
from comparison.systems import GATED
from config import Bandit
from core.errors import InputError
from core.files import write_text
from core.names import markdown_table
from core.stored import read_json
from core.versions import made_on
from policy.runfolder import learning_curve
from sed.metrics import NAMES
from studies import benchmark, pooled
from studies.benchmark import QUERIES, ROOT, SLIDES_FOLDS, Setting, data_folder, in_parallel, run
from studies.pooled import BEST, COLUMNS

DEMO = {"demo" + f"-{seed}" * (seed > 0): seed for seed in range(5)}


def demo(name: str, seed: int) -> None:
    """The demo's own commands for one seed: another corpus, another scorer, another policy."""
    few = ["--preset", "demo", "--workers", 1]  # two seeds run side by side
    run(name, "soundscapes.py", "--out", f"data/{name}", "--seed", seed, *few)
    run(name, "scorers.py", "--corpus", f"data/{name}", "--seed", seed, *few)
    run(name, "preprocess.py", "--corpus", f"data/{name}", "--cache", f"cache/{name}", *few)
    benchmark.train(f"runs/{name}", f"cache/{name}", seed, ["--preset", "demo"])
    run(name, "evaluate.py", "--cache", f"cache/{name}", "--run", f"runs/{name}")


def results_of(name: str, cure: str = "run: python -m studies.reproduce benchmark") -> dict:
    """results.json of a comparison, or of a run."""
    return read_json(ROOT / "runs" / name / "results.json", cure)


def demo_table() -> str:
    """Gains and learning curves of the demo's seeds."""
    header = ["seed", *(f"{metric} before → after" for metric in ("Accuracy", "IoU", "F1"))]
    header += ["gain (points)", "avg10 first → last tenth", "always 0.0"]
    gains, lines = [], []
    for name, seed in DEMO.items():
        results = results_of(name, "evaluate it again")
        before, after = results["before"], results["after"]
        gains.append([100 * results["gain"][m] for m in NAMES])
        pairs = (f"{100 * before[m]:.2f} → {100 * after[m]:.2f}" for m in NAMES)
        gain = " / ".join(f"{value:+.2f}" for value in gains[-1])
        curve = learning_curve(ROOT / "runs" / name, Bandit())
        first, last, zero = (f"{value:.1f}" for value in curve.values())
        lines.append([str(seed), *pairs, gain, f"{first} → {last}", zero])
    both = [(statistics.mean(some), statistics.stdev(some)) for some in zip(*gains, strict=True)]
    gain = " / ".join(f"{mean:+.2f} ± {std:.2f}" for mean, std in both)
    lines.append(["mean ± std", "", "", "", gain, "", ""])
    positive = sum(min(gain) > 0 for gain in gains)
    said = f"All three gains above zero in {positive} of {len(gains)} seeds."
    return "\n".join([*markdown_table(header, lines), "", said])


def claim(name: str, key: str, tables: list[dict]) -> str:
    """What the tables of all bank folds say together: a claim must hold in each of them."""
    metric = tables[0]["tuned_for"]
    words, texts = [], []
    for table in tables:
        row = next(row for row in table["entrants"] if row["name"] == name)
        words.append(scoring.word(metric, *row[key][metric][1:]))
        beside = f" ({table['best_opponent']})" * (key == "vs_best")
        texts.append(scoring.in_points(row[key][metric]) + beside)
    other = row["base"] if key == "vs_base" else "the best baseline"
    said = f"{words[0]} {other} in both bank folds"
    if len(set(words)) > 1:
        said = f"{' in one bank fold and '.join(words)} {other} in the other, which is no claim"
    return f"{said}: {' and '.join(texts)}"


def verdict() -> str:
    """The first line of RESULTS.md, from the four tables of the slides' rows."""
    lines = []
    for queries, suffix in (("present", ""), ("all", f", {GATED}")):
        tables = [results_of(f"table-fold{fold}-{queries}") for fold in SLIDES_FOLDS]
        title = scoring.TITLES[tables[0]["tuned_for"]]
        where = "present pairs" if queries == "present" else f"all pairs {GATED}"
        for name in ("DQN slides", "DQN original"):
            claims = [claim(name + suffix, key, tables) for key in ("vs_base", "vs_best")]
            lines.append(f"- **{name}** on {where} ({title}, points): {'; '.join(claims)}.")
    note = "Scores of one scorer; the intervals are over clips, not over recordings and scorers."
    last = max(tables, key=lambda table: table["date"])
    return "\n".join([*lines, "", f"{note} {made_on(last['date'], last['versions'])}"])


def under_titles(folders: dict[str, str]) -> str:
    """Tables of some comparisons, title -> folder, one below the other."""
    tables = ((title, scoring.markdown(results_of(name))) for title, name in folders.items())
    return "\n".join(f"## {title}\n\n{table}" for title, table in tables)


def matched_table() -> str:
    """`best` and the best baseline of each column on the usual and on matched timelines of bank
    fold 5, then every row of the latter."""
    columns, lines = COLUMNS["all"], []
    homes = {name: Setting(5, 0, name).table("all") for name in ("usual", "matched")}
    tables = {name: results_of(Path(home).name) for name, home in homes.items()}
    for name, table in tables.items():
        rows = {row["name"]: row for row in table["entrants"]}
        ours, theirs = rows[BEST], [rows[table["best_of"][m]] for m in columns]
        change = [ours["vs_best_of"][m] for m in columns]
        points = [in_points(c) if len(c) == 3 else f"{100 * c[0]:+.2f}" for c in change]
        best = [f"{100 * ours['mean'][m]:.2f}" for m in columns]
        other = [f"{100 * row['mean'][m]:.2f}" for m, row in zip(columns, theirs, strict=True)]
        lines += [[f"`best`, {name}", *best], [f"best rule, {name}", *other]]
        lines.append([f"difference, {name}", *points])
    header = ["", *(scoring.TITLES[m] for m in columns)]
    text = ["## `best` and the best rules", "", *markdown_table(header, lines), ""]
    return "\n".join([*text, "## Every row, matched", "", scoring.markdown(tables["matched"])])


def vad_text() -> str:
    """What studies.vad has written."""
    path = ROOT / "runs" / "vad.md"
    if not path.is_file():
        raise InputError(f"{path}: not found; run: python -m studies.vad")
    return path.read_text(encoding="utf-8").rstrip("\n")


BENCHMARK = {
    f"Bank fold {fold} held out, {queries} pairs": f"table-fold{fold}-{queries}"
    for queries in QUERIES
    for fold in SLIDES_FOLDS
}
DCASE = {f"{queries.capitalize()} pairs": f"dcase/{queries}" for queries in QUERIES}
TABLES = {
    "verdict": verdict,
    "benchmark": partial(under_titles, BENCHMARK),
    "matched": matched_table,
    "dcase": partial(under_titles, DCASE),
    "vad": vad_text,
    "demo": demo_table,
}


def put(path: Path, table: str, begin: str, end: str = "") -> None:
    """Write a part between its markers; without an end, all from `begin` on. InputError where a
    marker is missing."""
    head, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise InputError(f"{path}: no {begin.strip()!r} or no {end!r} behind it; put it back")
    if end:
        table = f"{begin}{table}"
        end += rest.partition(end)[2]
    write_text(path, f"{head}{table}\n{end}")


def write_table(name: str) -> None:
    """Write docs/results/<name>.md below its title; small ones: RESULTS.md, between the markers.
    `best` has both."""
    page = ROOT / "docs" / "results" / f"{name}.md"
    if name == BEST:
        studies = [pooled.study(queries) for queries in ("all", "present")]
        table = pooled.screen(studies)
        put(page, pooled.page(studies), "## ")
    else:
        table = TABLES[name]()
        if page.exists():
            put(page, table, "## ")
    if name == BEST or not page.exists():
        put(ROOT / "RESULTS.md", table, f"<!-- begin {name} -->\n", f"<!-- end {name} -->")
    print(table)


def main(args: list[str]) -> None:
    study, rest = (args[0] if args else ""), args[1:]
    if study == "table" and len(rest) == 1 and rest[0] in (BEST, *TABLES):
        write_table(rest[0])
        return
    takes_data = study != "demo"
    if study not in ("demo", "benchmark", "dcase", "vad", "all") or len(rest) > takes_data:
        usage = "all [DATA] | benchmark [DATA] | dcase [DATA] | vad [DATA] | demo | table NAME"
        names = ", ".join((BEST, *TABLES))
        raise InputError(f"give {usage}; NAME: {names}; {' '.join(args) or 'nothing'} was given")
    if study == "all":
        data_folder(rest, "esc10", "desed_timelines", "dcase2023_baseline", "fsdd")
    if study in ("benchmark", "all"):
        benchmark.main(rest)
        for name in (BEST, "matched", "benchmark", "verdict"):
            write_table(name)
        run("ablation", "-m", "studies.ablation")
    for name in ("dcase", "vad"):
        if study in (name, "all"):
            run(name, "-m", f"studies.{name}", *rest)
            write_table(name)
    if study in ("demo", "all"):
        in_parallel(demo, list(DEMO.items()))
        write_table("demo")


if __name__ == "__main__":
    run_script(__doc__, main)
