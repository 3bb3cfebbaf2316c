"""The 20 real DESED clips with scores of the DCASE 2023 baseline: 5-fold by clip, scores only.

Run:    python -m studies.dcase [DATA]
Reads:  DATA/dcase2023_baseline/ (default: SED_SHARED_DATA or ../shared/data)
Writes: cache/dcase/, runs/dcase/<queries>/{results.json, table.md, table.tex, pairs.csv, events/}

Every clip is decided by rules and policies that never saw it (crossval.py). Rules are tuned on 20
divisions into five folds; learned rows take the first five, a seed each, trained on present pairs,
the preset `best` once for present and once for all pairs, as the rules are tuned: from nothing,
recalibrated from policy/pretrained.pt, and that file as it is, without any label. 16 clips
are a gradient step or two a pass, so policies make as many passes as their floor of steps asks for.
Nothing was tried out here, but for the pretrained file: a first version was judged on these clips.
There is no audio, so the loudness is 1 everywhere. 20 clips are few: read the intervals.
"""

from pathlib import Path

from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

import preprocess
from config import Learning, Network, PreprocessConfig, TrainConfig
from scores.score_files import open_scores
from sed.labels import read_labels
from sed.splits import draw_parts
from sed.timeline import write_labels
from studies import crossval
from studies.benchmark import data_folder
from studies.crossval import Learned, Study

FOLDS, DIVISIONS, LEARNED_ON, PROCESSES = 5, 20, 5, 2
SMALL = {"network": Network(hidden=32), "learning": Learning(lr=1e-3, frames_per_step=32)}
HOME = Path("cache/dcase")
SUPERVISED = {"passes": 5, **SMALL}
LEARNED = [
    Learned("DQN slides", TrainConfig(**SMALL), "present"),
    Learned("supervised classifier", TrainConfig(method="classifier", **SUPERVISED), "present"),
    Learned("all 21 rewards", TrainConfig(method="rewards", **SUPERVISED), "present"),
    Learned("best", TrainConfig.with_preset("best")),
]


def make_cache(data: Path) -> list[str]:
    """Cache of the clips that have scores, all pairs; returns their names."""
    home = data / "dcase2023_baseline"
    scores, truth = home / "baseline2_run1_scores", home / "metadata" / "ground_truth.tsv"
    events = read_labels(truth)
    names = sorted(set(events) - set(open_scores(scores).missing(list(events))))
    HOME.mkdir(parents=True, exist_ok=True)
    write_labels(HOME / "labels.tsv", {name: events[name] for name in names})
    given = {"labels": HOME / "labels.tsv", "scores": scores, "pairs": "all", "workers": 1}
    preprocess.main(PreprocessConfig(cache=HOME, split=crossval.SPLIT, **given))
    return names


def main(args: list[str]) -> None:
    names = make_cache(data_folder(args, "dcase2023_baseline"))
    learned = [*LEARNED, *crossval.pretrained_rows()]
    divisions = [draw_parts([[name] for name in names], FOLDS, seed) for seed in range(DIVISIONS)]
    out = Path("runs/dcase")
    study = Study(HOME / crossval.SPLIT, out, divisions, range(1), PROCESSES, LEARNED_ON)
    crossval.cross_validate(study, learned, ["present", "all"])


if __name__ == "__main__":
    run_script(__doc__, main)
