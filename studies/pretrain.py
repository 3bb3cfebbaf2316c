"""The policy for scores of any detector: trained on soundscapes, without class and loudness.

Run:    python -m studies.pretrain CORPUS [CORPUS ..]
Reads:  <corpus>/{train,validation}/{labels.tsv, scores/}, <corpus>/clips.tsv (soundscapes.py,
        scorers.py)
Writes: runs/pretrain/ (a run folder), policy/pretrained.pt (below 200 kB, half precision)
Shapes: K classes, T frames of a clip

Of both splits of each corpus some clips are drawn (in their timelines sounds are on for 8 and 11 %
of the time), each on one of several frame lengths and with its log odds stretched and shifted by
chance, as scores of another detector may be. Two networks are trained, each on half of the bank
folds. Of what is known about classes the mean is kept, so that any class may be asked for. What is
finished is kept; runs/pretrain/ must go before it is made from other corpora.
"""

import hashlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

import numpy as np
import torch

import DQN
import preprocess
from config import Events, Signal, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, pick_device
from core.settings import to_dict
from policy import runfolder
from policy.posterior import log_odds
from scores.score_files import open_scores
from sed.caches import Cache, ClipRecord, Pair
from sed.candidates import running_sum, sum_before
from sed.labels import read_labels
from sed.signals import clip_tag
from sed.timeline import SPLITS, ClipScores, frame_edges, label_frames

ROOT = Path(__file__).resolve().parent.parent
RUN, OUT = Path("runs/pretrain"), Path("policy/pretrained.pt")
FRAMES_S = (0.02, 0.04, 0.064)
STRETCH, SHIFT = 1.5, 0.5  # log odds: times up to 1.5 or a part of it, plus a normal deviate
CLIPS, PASSES = 100, 3  # of each split of each corpus; over the queries


def varied(scores: ClipScores, frame_s: float, stretch: float, shift: float) -> ClipScores:
    """Scores (K, T) averaged over frames of another length, with other log odds."""
    at = frame_edges(max(1, round(scores.edges[-1] / frame_s)), frame_s)
    where = np.interp(at, scores.edges, np.arange(len(scores.edges)))
    sums = np.stack([sum_before(running_sum(row), where) for row in scores.values])
    mean = np.diff(sums) / np.maximum(np.diff(where), 1e-9)
    odds = stretch * log_odds(mean) + shift
    return ClipScores((1 / (1 + np.exp(-odds))).astype(np.float32), at)


def read_corpora(corpora: list[Path]) -> Cache:
    """Some clips of both splits of some corpora, varied, as a cache of all pairs without audio.

    InputError where one has no scores, or no list of clips with bank folds.
    """
    pairs, clips, values, labels, groups = [], [], [], [], {}
    rng, classes = np.random.default_rng(0), set()
    for number, (corpus, split) in enumerate(itertools.product(corpora, SPLITS)):
        home, folds = corpus / split, preprocess.bank_folds(corpus, split)
        if not folds:
            raise InputError(f"{corpus}: no clips.tsv with folds; give corpora of soundscapes.py")
        files = open_scores(home / "scores", sorted(open_scores(home / "scores").classes))
        classes |= set(files.classes)
        events_of = read_labels(home / "labels.tsv")
        for place, name in enumerate(sorted(rng.permutation(sorted(events_of))[:CLIPS])):
            stretch, shift = STRETCH ** rng.uniform(-1, 1), rng.normal(0, SHIFT)
            frame_s = FRAMES_S[place % len(FRAMES_S)]
            scores = varied(files.scores(name), frame_s, stretch, shift)
            clip = f"{number}/{name}"
            groups[clip] = "odd" if int(folds[name]) % 2 else "even"
            tag = clip_tag(scores, Signal()).tolist()
            clips.append(ClipRecord(clip, float(scores.edges[-1]), events_of[name], tag))
            for label, row in zip(files.classes, scores.values, strict=True):
                pairs.append(Pair(clip, label, len(row), frame_s))
                values.append(row)
                labels.append(label_frames(events_of[name], label, scores.edges))
    score, label = np.concatenate(values), np.concatenate(labels)
    manifest = {"queries": "all", "classes": sorted(classes), "groups": groups, "audio": None}
    manifest["signal"] = to_dict(Signal())
    manifest["key"] = hashlib.sha256(score.tobytes() + label.tobytes()).hexdigest()[:16]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in values])))
    signals = {"d_raw": score, "rms": np.ones_like(score)}
    return Cache(RUN, manifest, pairs, clips, signals, label, offsets)


def packed(content: dict, corpora: list[Path]) -> dict:
    """What is shipped of best.pt: half precision, no classes, no list of what was seen."""
    network = content["network"]
    weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in network.items()}
    weights["prices"] = network["prices"][:, -1:].clone()
    facts = content["info"]["trained_on"] | {"classes": [], "frame_s": None}
    names = ", ".join(path.name for path in corpora)
    info = content["info"] | {"trained_on": facts, "corpora": names}
    kept = {name: value for name, value in content.items() if name != "seen"}
    return kept | {"network": weights, "classes": [], "info": info}


def main(args: list[str]) -> None:
    if not args:
        raise InputError("give corpora: python -m studies.pretrain data/a data/b")
    corpora = [Path(arg) for arg in args]
    same = {"run": RUN, "resume": (RUN / "last.pt").exists(), "device": "cpu", "passes": PASSES}
    cfg = replace(TrainConfig.with_preset("best"), **same, events=Events(class_context=False))
    RUN.parent.mkdir(exist_ok=True)
    cache = read_corpora(corpora)
    with runfolder.held_run(RUN):
        if code := DQN.train(cfg, pick_device("cpu", 1), ALONE, cache):
            print("here without --resume: the same command goes on")
            sys.exit(code)
    content = packed(runfolder.read_checkpoint(RUN / "best.pt"), corpora)
    runfolder.write_checkpoint(OUT, content)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, of {len(cache.clips)} clips")


if __name__ == "__main__":
    run_script(__doc__, main)
