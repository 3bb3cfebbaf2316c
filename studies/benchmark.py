"""ESC-10 recordings on the DESED timelines: every system, both kinds of pairs, two bank folds.

Run:    python -m studies.benchmark [DATA]
Reads:  DATA/{esc10,desed_timelines} (default: SED_SHARED_DATA or ../shared/data)
Writes: data/esc10-fold*, cache/esc10-fold*, runs/bench*, runs/table-fold*-{present,all}, runs/logs/

600 training and 500 validation clips; the validation clips play a bank fold that nobody heard
before. All of it is done twice, with another fold held out: a claim must hold in both. Learned rows
are trained on present pairs, three seeds each, with the demo's small network (hidden 32, learning
rate 1e-3) and a gradient step of 32 for every 64 or 128 frames, so that the study ends within hours
on two CPU cores. `best` is trained as it is, on all pairs, and judged on both kinds. Two processes,
one thread each; what is finished is skipped, so it can be interrupted.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.command import plain_words, run_main
from core.errors import InputError
from core.processes import ENDS_WITH_PARENT

ROOT = Path(__file__).resolve().parent.parent

PROCESSES = 2
FOLDS = (5, 4)
SEEDS = (0, 1, 2)
CLIPS = {"train": 600, "validation": 500}
SMALL = ["--network.hidden", 32, "--looks", 5]
DQN_FLAGS = [*SMALL, "--learning.lr", 1e-3, "--learning.frames-per-step", 64]
# Half the policy's gradient steps: on held-out training clips a baseline is best before that.
SUPERVISED_FLAGS = ["--passes", 1, *SMALL]
SUPERVISED_FLAGS += ["--learning.lr", 1e-3, "--learning.frames-per-step", 128]
# The sequential reading decides every frame while it trains: more pairs at a time, fewer steps.
# Epsilon: 70 % of the planned episodes, as 20,000 is of the slides' 28,592.
ORIGINAL_FLAGS = ["--learning.frames-per-step", 128, "--learning.lanes", 128]
ORIGINAL_FLAGS += ["--learning.epsilon-episodes", 800]
TRAININGS = {
    "slides": ("slides", ["--preset", "slides", *DQN_FLAGS]),
    "original": ("original", ["--preset", "original", *DQN_FLAGS, *ORIGINAL_FLAGS]),
    "classifier": ("slides", ["--method", "classifier", *SUPERVISED_FLAGS]),
    "rewards": ("slides", ["--method", "rewards", *SUPERVISED_FLAGS]),
    "best": ("slides", ["--preset", "best"]),  # as it is, on all pairs
}
NAMES = {
    "slides": "DQN slides",
    "original": "DQN original",
    "classifier": "supervised classifier",
    "rewards": "all 21 rewards",
    "best": "best",
}


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


def data_folder(args: list[str]) -> Path:
    """The folder of the real data: the first argument, or where it is looked for by default."""
    default = os.environ.get("SED_SHARED_DATA") or ROOT.parent / "shared" / "data"
    return Path(args[0] if args else default)


def in_parallel(jobs: list[tuple]) -> None:
    """Run `function(*arguments)` jobs, PROCESSES at a time; the first failure is raised."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        for future in [pool.submit(job[0], *job[1:]) for job in jobs]:
            future.result()


def corpus_and_caches(fold: int, data: Path) -> None:
    """Soundscapes, scores of networks that never heard their recordings, all caches."""
    name, lines = f"esc10-fold{fold}", data / "desed_timelines"
    corpus = ["soundscapes.py", "--out", f"data/{name}", "--bank", data / "esc10"]
    corpus += ["--class-map", "studies/esc10_classes.tsv", "--validation-fold", fold]
    corpus += ["--train-timeline", lines / "synthetic21_train.tsv"]
    corpus += ["--validation-timeline", lines / "synthetic21_validation.tsv"]
    corpus += ["--train-clips", CLIPS["train"], "--validation-clips", CLIPS["validation"]]
    run(name, *corpus, "--workers", 1)
    run(name, "scorers.py", "--corpus", f"data/{name}", "--workers", 1)
    same = ["preprocess.py", "--corpus", f"data/{name}", "--workers", 1]
    for preset in ("slides", "original"):
        for queries in ("present", "all"):
            flags = ["--preset", preset, "--pairs", queries]
            run(name, *same, *flags, "--cache", f"cache/{name}-{preset}-{queries}")
    for queries in ("present", "all"):
        flags = ["--pairs", queries, "--signal.no-flat-fallback"]
        run(name, *same, *flags, "--cache", f"cache/{name}-noflat-{queries}")


def folder_of(fold: int, kind: str, seed: int) -> str:
    """Run folder of one training, from the project root."""
    return f"runs/bench{fold}-{kind}-{seed}"


def train(fold: int, kind: str, seed: int) -> None:
    """One training: from nothing, from where it stopped, or not at all."""
    preset, flags = TRAININGS[kind]
    folder, began = folder_of(fold, kind, seed), time.perf_counter()
    more = ["--resume"] if (ROOT / folder / "last.pt").exists() else []
    queries = "all" if kind == "best" else "present"
    cache = f"cache/esc10-fold{fold}-{preset}-{queries}"
    words = ["DQN.py", *flags, "--seed", seed, "--cache", cache, "--run", folder, *more]
    run(Path(folder).name, *words)
    print(f"{folder}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


def compare(fold: int, queries: str) -> None:
    """The table of one fold and kind of pairs; decisions are stored, so a rerun is quick."""
    rows = []
    for kind, name in NAMES.items():
        paths = ",".join(folder_of(fold, kind, seed) for seed in SEEDS)
        home = f"@cache/esc10-fold{fold}-original-{queries}" if kind == "original" else ""
        rows.append(f"{name}={paths}{home}")
    rows.append(f"T_base original=T_base@cache/esc10-fold{fold}-original-{queries}")
    noflat = f"cache/esc10-fold{fold}-noflat-{queries}"
    rows += [f"T_base without fallback=T_base@{noflat}"]
    rows += [f"DQN slides without fallback={folder_of(fold, 'slides', 0)}@{noflat}"]
    words = ["evaluate.py", "--cache", f"cache/esc10-fold{fold}-slides-{queries}"]
    out = f"runs/table-fold{fold}-{queries}"
    run(Path(out).name, *words, "--compare", *rows, "rules", "--out", out, "--workers", 1)


def main(args: list[str]) -> None:
    """Everything, two processes at a time."""
    data = data_folder(args)
    in_parallel([(corpus_and_caches, fold, data) for fold in FOLDS])
    jobs = [(train, fold, kind, seed) for kind in TRAININGS for fold in FOLDS for seed in SEEDS]
    in_parallel(jobs)
    in_parallel([(compare, fold, queries) for queries in ("present", "all") for fold in FOLDS])


if __name__ == "__main__":
    run_main(lambda: main(plain_words(__doc__)))
