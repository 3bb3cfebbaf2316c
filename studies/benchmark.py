"""ESC-10 recordings on the DESED timelines: every bank fold, scores of two scorers, all systems.

Run:    python -m studies.benchmark [DATA]
Reads:  DATA/{esc10,desed_timelines} (default: SED_SHARED_DATA or ../shared/data)
Writes: data/esc10-fold*, cache/esc10-fold*, runs/bench*, runs/table-best-fold*, runs/table-fold*,
        runs/logs/

600 training and 500 validation clips; the validation clips play a bank fold that nobody heard
before. `best`, as it is, and the tuned rules are judged on all five bank folds, so that each of the
400 recordings is judged once, with the scores of two scorers (seeds): a table of present and one of
all pairs for each, which studies/pooled.py puts together. Other timelines (matched halves; those of
AudioSet strong as well, lengths stretched) are tried on one and two bank folds, all pairs. The
slides' rows (two presets and their supervised baselines) need more time and are judged on two bank
folds with one scorer: trained on present pairs, three seeds each, with the demo's small network
(hidden 32, learning rate 1e-3) and a gradient step of 32 for every 64 or 128 frames.

Two processes, one thread each; what is finished is skipped, so it can be interrupted.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from core.command import run_script
from core.errors import InputError
from core.processes import ENDS_WITH_PARENT
from core.stored import read_json
from sed.caches import read_manifest

ROOT = Path(__file__).resolve().parent.parent

PROCESSES = 2
FOLDS = (5, 4, 3, 2, 1)
SCORERS = (0, 1)  # seeds
SLIDES_FOLDS = (5, 4)
SEEDS = (0, 1, 2)  # of the slides' rows
BEST_SEEDS = (0, 1)
QUERIES = ("present", "all")
# Files of training timelines, and further flags of soundscapes.py.
DESED, STRETCHED = "synthetic21_train", ["--stretch-min", 0.5, "--stretch-max", 2]
TIMELINES: dict[str, tuple[list[str], list[object]]] = {
    "usual": ([DESED], []),
    "matched": ([DESED], ["--halve-timelines"]),
    "strong": ([DESED, "audioset_strong"], STRETCHED),
}
CLIPS = {"train": 600, "validation": 500}
SMALL = ["--network.hidden", 32, "--looks", 5, "--learning.lr", 1e-3]
FEWER_STEPS = ["--learning.frames-per-step", 128]
DQN = [*SMALL, "--learning.frames-per-step", 64]
# Half the policy's gradient steps: on held-out training clips a baseline is best before that.
SUPERVISED = ["--passes", 1, *SMALL, *FEWER_STEPS]
# The sequential reading decides every frame while it trains: more pairs at a time, fewer steps.
# Epsilon: 70 % of the planned episodes, as 20,000 is of the slides' 28,592.
ORIGINAL = [*SMALL, *FEWER_STEPS, "--learning.lanes", 128, "--learning.epsilon-episodes", 800]
# Name in the table, preset of the signals, flags of DQN.py.
SLIDES_ROWS = {
    "slides": ("DQN slides", "slides", ["--preset", "slides", *DQN]),
    "original": ("DQN original", "original", ["--preset", "original", *ORIGINAL]),
    "classifier": ("supervised classifier", "slides", ["--method", "classifier", *SUPERVISED]),
    "rewards": ("all 21 rewards", "slides", ["--method", "rewards", *SUPERVISED]),
}


class Setting(NamedTuple):
    """A bank fold held out, the seed of the scorer, and the timelines; paths are from the project
    root."""

    fold: int
    scorer: int = 0
    timelines: str = "usual"

    @property
    def _suffix(self) -> str:
        other = f"-{self.timelines}" * (self.timelines != "usual")
        return f"{self.fold}" + f"-scorer{self.scorer}" * bool(self.scorer) + other

    @property
    def corpus(self) -> str:
        """Soundscapes; the scorer's scores lie with them."""
        return f"data/esc10-fold{self._suffix}"

    def cache(self, signals: str, queries: str) -> str:
        """Signals of a preset for present or all pairs."""
        return f"cache/esc10-fold{self._suffix}-{signals}-{queries}"

    def run(self, kind: str, seed: int) -> str:
        return f"runs/bench{self._suffix}-{kind}-{seed}"

    def table(self, queries: str) -> str:
        """`best` and the rules."""
        return f"runs/table-best-fold{self._suffix}-{queries}"


SETTINGS = [Setting(fold, scorer) for scorer in SCORERS for fold in FOLDS]
OTHERS = [Setting(5, 0, "matched")]  # other timelines: all pairs, one policy seed
OTHERS += [Setting(fold, scorer, "strong") for fold in (5, 4) for scorer in SCORERS]


def queries_of(setting: Setting) -> tuple[str, ...]:
    """Kinds of pairs that a setting is judged on."""
    return QUERIES if setting in SETTINGS else ("all",)


def seeds_of(setting: Setting) -> tuple[int, ...]:
    """Seeds of `best` in a setting."""
    return BEST_SEEDS if setting in SETTINGS else BEST_SEEDS[:1]


def run(log: str, *command: object) -> None:
    """Run one script from the project root, output into runs/logs/<log>.log."""
    path = ROOT / "runs" / "logs" / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *map(str, command)]
    print("python", *words[1:], flush=True)
    environ = os.environ | {ENDS_WITH_PARENT: "1"}
    with open(path, "a") as stream:
        done = subprocess.run(words, cwd=ROOT, stdout=stream, stderr=stream, env=environ)
    if code := done.returncode:
        raise InputError(f"{' '.join(words)} ended with exit code {code}; see {path}")


def data_folder(args: list[str], *needed: str) -> Path:
    """The folder of the real data: the first argument, or where it is looked for by default.

    InputError where it has no folder of a name that is needed.
    """
    default = os.environ.get("SED_SHARED_DATA") or ROOT.parent / "shared" / "data"
    folder = Path(args[0] if args else default)
    for name in needed:
        if not (folder / name).is_dir():
            raise InputError(f"{folder / name}: not found; give the folder that holds it")
    return folder


def in_parallel(work: Callable[..., None], jobs: list[tuple]) -> None:
    """Run `work(*job)` for every job, PROCESSES at a time; the first failure is raised."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        for future in [pool.submit(work, *job) for job in jobs]:
            future.result()


def corpus_and_caches(setting: Setting, data: Path) -> None:
    """Soundscapes, scores of networks that never heard their recordings, all caches."""
    name, lines = Path(setting.corpus).name, data / "desed_timelines"
    train, flags = TIMELINES[setting.timelines]
    corpus = ["soundscapes.py", "--out", setting.corpus, "--bank", data / "esc10"]
    corpus += ["--class-map", "studies/esc10_classes.tsv", "--validation-fold", setting.fold]
    corpus += ["--train-timeline", *(lines / f"{file}.tsv" for file in train), *flags]
    corpus += ["--validation-timeline", lines / "synthetic21_validation.tsv"]
    corpus += ["--train-clips", CLIPS["train"], "--validation-clips", CLIPS["validation"]]
    run(name, *corpus, "--workers", 1)
    scores = ["scorers.py", "--corpus", setting.corpus, "--seed", setting.scorer]
    run(name, *scores, "--workers", 1)
    same = ["preprocess.py", "--corpus", setting.corpus, "--workers", 1]
    signals = {"slides": ["--preset", "slides"]}
    if setting in map(Setting, SLIDES_FOLDS):
        signals |= {"original": ["--preset", "original"], "noflat": ["--signal.no-flat-fallback"]}
    for kind, flags in signals.items():
        for queries in queries_of(setting):
            run(name, *same, *flags, "--pairs", queries, "--cache", setting.cache(kind, queries))


def train(folder: str, cache: str, seed: int, flags: list[object]) -> None:
    """One training: from nothing, from where it stopped, or not at all."""
    began = time.perf_counter()
    more = ["--resume"] if (ROOT / folder / "last.pt").exists() else []
    words = ["DQN.py", *flags, "--seed", seed, "--cache", cache, "--run", folder, *more]
    run(Path(folder).name, *words)
    print(f"{folder}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


def train_row(setting: Setting, kind: str, seed: int) -> None:
    """`best` as it is, on all pairs; a row of the slides on present ones."""
    if kind == "best":
        cache, flags = setting.cache("slides", "all"), ["--preset", "best"]
    else:
        _, preset, flags = SLIDES_ROWS[kind]
        cache = setting.cache(preset, "present")
    train(setting.run(kind, seed), cache, seed, flags)


def is_finished(table: str, cache: str, runs: list[str]) -> bool:
    """Whether a table is there, of these very caches and today's list of rules, and newer than the
    checkpoints."""
    path, rules = (ROOT / table / name for name in ("results.json", "rules.json"))
    if not (path.exists() and rules.exists()):
        return False
    from comparison.systems import rules_key  # not above: it takes seconds

    validation, train = (
        read_manifest(ROOT / cache / split / "manifest.json", "make the cache again")
        for split in ("validation", "train")
    )
    results, tuned = (read_json(each, "delete it") for each in (path, rules))
    made_of = results.get("cache_key"), results.get("train_cache_key"), tuned["train"]
    if made_of != (validation["key"], train["key"], rules_key(train["key"], train["queries"])):
        return False
    newest = max((ROOT / run / "best.pt").stat().st_mtime for run in runs)
    return path.stat().st_mtime >= newest


def compare(out: str, cache: str, runs: list[str], rows: list[str]) -> None:
    """A table of some rows and the rules, unless it is finished."""
    if is_finished(out, cache, runs):
        print(f"{out}: finished", flush=True)
        return
    words = ["evaluate.py", "--cache", cache, "--compare", *rows, "rules", "--out", out]
    run(Path(out).name, *words, "--workers", 1)


def compare_best(setting: Setting, queries: str) -> None:
    """`best` and the rules on one setting and kind of pairs."""
    runs = [setting.run("best", seed) for seed in seeds_of(setting)]
    cache = setting.cache("slides", queries)
    compare(setting.table(queries), cache, runs, [f"best={','.join(runs)}"])


def compare_slides(setting: Setting, queries: str) -> None:
    """The slides' rows, `best` and the rules on one bank fold and kind of pairs."""
    rows, runs = [], []
    original, noflat = (setting.cache(kind, queries) for kind in ("original", "noflat"))
    for kind, (name, preset, _) in SLIDES_ROWS.items():
        paths = [setting.run(kind, seed) for seed in SEEDS]
        rows.append(f"{name}={','.join(paths)}" + f"@{original}" * (preset == "original"))
        runs += paths
    best = [setting.run("best", seed) for seed in BEST_SEEDS]
    rows.append(f"best={','.join(best)}")
    runs += best
    rows += [f"T_base original=T_base@{original}", f"T_base without fallback=T_base@{noflat}"]
    rows.append(f"DQN slides without fallback={setting.run('slides', 0)}@{noflat}")
    table = f"runs/table-fold{setting.fold}-{queries}"
    compare(table, setting.cache("slides", queries), runs, rows)


def main(args: list[str]) -> None:
    data, every = data_folder(args, "esc10", "desed_timelines"), [*SETTINGS, *OTHERS]
    in_parallel(corpus_and_caches, [(one, data) for one in every])
    in_parallel(train_row, [(one, "best", seed) for one in every for seed in seeds_of(one)])
    in_parallel(compare_best, [(one, queries) for one in every for queries in queries_of(one)])
    few = [Setting(fold) for fold in SLIDES_FOLDS]
    in_parallel(train_row, [(one, k, seed) for k in SLIDES_ROWS for one in few for seed in SEEDS])
    in_parallel(compare_slides, [(one, queries) for queries in QUERIES for one in few])


if __name__ == "__main__":
    run_script(__doc__, main)
