"""What each part of the preset best is worth: the trained policy with one part changed at a time.

Run:    python -m studies.ablation
Reads:  caches and runs of studies/benchmark.py: bank folds 5 and 4, scorer seeds 0 and 1, all pairs
Writes: runs/ablation/<setting>.json, docs/results/ablation.md

Each change is made to the finished policy, its prices found anew on the training clips; only where
boxes come from other scores the networks that value them are trained again. Two changes concern
the scores of the validation clips, which come from a network fitted on all training clips: here
from those fitted without one bank fold each, as the training clips' own; they are fitted again, a
quarter of an hour of one core, and their scores kept. A setting that is measured is skipped.
Shapes as in policy/event_policy.py.
"""

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from comparison.scoring import TITLES, counts_of, event_row, event_tasks, headline, spread
from comparison.systems import Member, System, scored_boxes
from config import ScorersConfig, Signal
from core.errors import InputError
from core.files import scratch_folder, whole, write_text
from core.names import markdown_table
from core.processes import process_pool
from core.ranks import pick_device
from core.stored import file_sha256, read_json, write_json
from core.versions import processor
from policy import event_policy, runfolder
from policy.apply import load_policy
from policy.bandit import query_of
from policy.event_policy import COLLAR, IOU, OVERLAP, Candidates, EventTrainer, decide_cache
from policy.posterior import LOUDNESS, SCALE, Posterior
from scores import crnn
from sed.caches import Cache, load_cache
from sed.signals import tag_of
from sed.timeline import classes_of
from studies.benchmark import PROCESSES, ROOT, Setting
from studies.pooled import COLUMNS

SETTINGS = [Setting(fold, scorer) for fold in (5, 4) for scorer in (0, 1)]
METRICS = COLUMNS["all"]
CPU = torch.device("cpu")
RARE = -4.0  # log odds of an onset or offset where nobody estimates them: none is paired
LEVELS = np.linspace(0.02, 0.98, 49)  # of a confidence


class RawScores(nn.Module):
    """In place of the posterior networks: the scores as they are, on the same steps."""

    def __init__(self, networks: int):
        super().__init__()
        self.inputs = nn.Linear(1, networks)  # its rows say how many networks stand side by side
        self.channel_std = torch.ones(LOUDNESS + 1)  # finite: clips are shown with their loudness

    def forward(self, channels, statistics, query, inside, which=slice(None)) -> torch.Tensor:
        """As `Posterior.forward`: (M, B, N, C) -> (M, B, N, 3)."""
        odds = channels[..., 0] * SCALE
        rare = torch.full_like(odds, RARE)
        return torch.stack((odds, rare, rare), 3)


class Finished(NamedTuple):
    """A finished run, and the validation clips that it decides."""

    setting: Setting
    trainer: EventTrainer  # with the boxes of the training clips
    cache: Cache

    def apart(self) -> "Finished":
        """With a network of its own, to be changed."""
        trainer = copy(self.trainer)
        trainer.network = deepcopy(trainer.network)
        return self._replace(trainer=trainer)

    def decided(self) -> Candidates:
        return decide_cache(self.trainer.network, self.cache, CPU)[1]


def checkpoint_of(setting: Setting) -> Path:
    """The policy that is taken apart."""
    return ROOT / setting.run("best", 0) / "best.pt"


def trained(setting: Setting) -> Finished:
    """A finished run with its boxes of the training clips."""
    path, cache = checkpoint_of(setting), ROOT / setting.cache("slides", "all")
    content = runfolder.read_checkpoint(path, CPU)
    cfg = replace(runfolder.facts_of(content, path).config, cache=cache)
    trainer = EventTrainer(cfg, load_cache(cache / "train"), CPU)
    trainer.network.load_state_dict(content["network"])
    trainer.make_boxes()
    return Finished(setting, trainer, load_cache(cache / "validation"))


def weighed(finished: Finished, **weights: float) -> Candidates:
    """Other weights of the metrics in the reward."""
    changed = finished.apart()
    trainer = changed.trainer
    trainer.network.events = replace(trainer.cfg.events, **weights)
    trainer.cfg = replace(trainer.cfg, events=trainer.network.events)
    trainer.find_prices()
    return changed.decided()


def one_value(finished: Finished) -> Candidates:
    """The expected IoU in place of the probabilities of a hit."""
    changed = finished.apart()
    with torch.no_grad():
        for each in changed.trainer.network.values.answers.parameters():
            each[..., [OVERLAP, COLLAR]] = each[..., [IOU, IOU]]
    return weighed(changed)


def threshold_of_class(finished: Finished) -> Candidates:
    """In place of the decoder: boxes above a confidence, tuned for each class by event F1."""
    trainer, boxes, cache = finished.trainer, finished.trainer.boxes, finished.cache
    asked, query = ~trainer.rows.present, trainer.rows.query
    rank = event_policy.ranks_of(boxes, event_policy.surely(trainer.out_of_fold()))
    hit, limits = trainer.truth.values[:, COLLAR], np.ones(len(trainer.classes))
    number = np.bincount(trainer.query, trainer.events_of(), len(limits))
    for k in range(len(limits)):
        mine = (asked & (query == k))[boxes.row]
        on = rank[mine, None] > LEVELS
        f1 = 2 * (hit[mine] @ on) / np.maximum(on.sum(axis=0) + number[k], 1)
        limits[k] = LEVELS[f1.argmax()]
    found = finished.decided()
    of_pair = query_of((pair.event_label for pair in cache.pairs), trainer.network.classes)
    return found._replace(chosen=found.rank > limits[of_pair[found.pair]])


def one_network(finished: Finished) -> Candidates:
    """On new clips one posterior network, in place of the mean of all."""
    changed = finished.apart()
    network = changed.trainer.network
    first = {
        name: each if name.endswith(("_mean", "_std")) else each[:1]
        for name, each in network.posterior.state_dict().items()
    }
    network.posterior = Posterior(network.events, len(network.classes), 1)
    network.posterior.load_state_dict(first)
    return changed.decided()


def raw_boxes(finished: Finished) -> Candidates:
    """Boxes from the scores as they are, without a posterior; their values learned anew."""
    trainer = EventTrainer(finished.trainer.cfg, finished.trainer.cache, CPU)
    trainer.network.posterior = RawScores(len(trainer.left_out))
    trainer.progress["finished"] = trainer.frame_steps
    while not trainer.done:
        trainer.tick()
    return finished._replace(trainer=trainer).decided()


def scores_of_fold(
    cfg: ScorersConfig, folder: Path, rest: list[int], fit: crnn.Fit, path: Path
) -> None:
    """Scores (C, K, T) of the clips `rest`, which all have one length, by the network of one fit,
    into a file."""
    store = crnn.Store.open(folder)
    network, _ = crnn.train_network(cfg, store, fit, CPU)
    scorer = crnn.Scorer(network, [])
    found = np.stack([scorer.scores_of(store.clip(i)[0]).T.numpy() for i in rest])
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, found)


def fold_scores(setting: Setting) -> np.ndarray:
    """(M, C, K, T): scores of the validation clips by the networks that the scorer fitted without
    one bank fold each; only the one of all folds is kept with the corpus."""
    cfg = ScorersConfig(corpus=ROOT / setting.corpus, seed=setting.scorer)
    clips = crnn.read_corpus(cfg.corpus)
    *fits, of_all = crnn.plan(clips)
    out = ROOT / "runs" / "ablation" / Path(setting.corpus).name
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{fit.name.replace(' ', '-')}.npy" for fit in fits]
    left = [(fit, path) for fit, path in zip(fits, paths, strict=True) if not path.exists()]
    if left:
        classes = classes_of({f"{clip.split}/{clip.filename}": clip.events for clip in clips})
        with (
            scratch_folder(out / ".partial", crnn.SCRATCH) as folder,
            process_pool(PROCESSES, partial(pick_device, "cpu", 1)) as pool,
        ):
            crnn.write_store(folder, clips, classes, pool)
            work = partial(scores_of_fold, cfg, folder, of_all.score)
            list(pool.map(work, *zip(*left, strict=True)))
    return np.stack([np.load(path) for path in paths])


def with_scores(cache: Cache, clips: list[str], scores: np.ndarray) -> Cache:
    """A cache of all pairs with other scores (C, K, T) of these clips, and tags that follow."""
    of_clip, frame_s = dict(zip(clips, scores, strict=True)), cache.pairs[0].frame_s
    tags = {name: tag_of(each, frame_s, Signal()).tolist() for name, each in of_clip.items()}
    raw = [of_clip[pair.filename][cache.classes.index(pair.event_label)] for pair in cache.pairs]
    signals = {"d_raw": np.concatenate(raw), "rms": cache.signals["rms"]}
    records = [clip._replace(tag=tags[clip.filename]) for clip in cache.clips]
    return replace(cache, signals=signals, clips=records)


def scored_by(finished: Finished, networks: slice) -> Candidates:
    """Validation scores by the mean of some of the scorer's networks of a fold each."""
    corpus = crnn.read_corpus(ROOT / finished.setting.corpus)
    clips = [clip.filename for clip in corpus if clip.split == "validation"]
    scores = fold_scores(finished.setting)[networks].mean(axis=0)
    return finished._replace(cache=with_scores(finished.cache, clips, scores)).decided()


def strong_timelines(finished: Finished) -> Candidates:
    """Corpus, scorer and policy of other training timelines."""
    setting = finished.setting._replace(timelines="strong")
    path = checkpoint_of(setting)
    if not path.exists():
        raise InputError(f"{path}: not found; run: python -m studies.benchmark")
    cache = load_cache(ROOT / setting.cache("slides", "all") / "validation")
    if cache.pairs != finished.cache.pairs:
        raise InputError(f"{cache.folder}: other clips than {finished.cache.folder}")
    return decide_cache(load_policy(path, CPU).network, cache, CPU)[1]


WITHOUT = dict.fromkeys(("micro_weight", "collar_weight", "overlap_weight"), 0.0)
CHANGES: dict[str, Callable[[Finished], Candidates]] = {
    "preset `best`": weighed,
    "boxes from raw scores": raw_boxes,
    "one posterior network, not the mean of four": one_network,
    "one value of a box (IoU), not three": one_value,
    "threshold per class, not the decoder": threshold_of_class,
    "reward: frames only": partial(weighed, **WITHOUT),
    "reward: without collars": partial(weighed, collar_weight=0.0),
    "reward: without overlap": partial(weighed, overlap_weight=0.0),
    "reward: without micro-F1": partial(weighed, micro_weight=0.0),
    "reward: events count twice": partial(weighed, collar_weight=2.0, overlap_weight=2.0),
    "validation scored by one network of a fold": partial(scored_by, networks=slice(1)),
    "validation scored by the mean of four": partial(scored_by, networks=slice(None)),
    "training timelines of AudioSet strong too, lengths stretched": strong_timelines,
}


def measured(boxes: Candidates, cache: Cache) -> dict[str, float]:
    """All metrics of a policy's decisions, as a comparison has them."""
    pred = np.zeros(len(cache.label), bool)
    event_policy.turn_on(pred, boxes, cache)
    member = Member("", pred, 0.0, boxes=scored_boxes(boxes, cache))
    (task,) = event_tasks([System("", "policy", "", [member])], cache)
    return headline(counts_of(member, cache), cache) | event_row(task)[0]


def measure(setting: Setting, out: Path) -> dict[str, dict[str, float]]:
    """Every change in one setting, kept as it is done; of other checkpoints, all anew."""
    runs = [checkpoint_of(each) for each in (setting, setting._replace(timelines="strong"))]
    made_of = [file_sha256(path) for path in runs if path.exists()]
    kept = read_json(out, "delete it", ()) if out.exists() else {}
    rows = kept["changes"] if kept.get("checkpoints") == made_of else {}
    if left := [change for change in CHANGES if change not in rows]:
        finished = trained(setting)
        for change in tqdm(left, desc=out.stem, unit="change"):
            rows[change] = measured(CHANGES[change](finished), finished.cache)
            write_json(out, {"checkpoints": made_of, "changes": rows})
    return rows


def table(settings: list[dict[str, dict[str, float]]]) -> str:
    """The mean of `best` over settings; each change: the mean difference to it, ± over settings."""
    best, *changes = CHANGES
    mean, _ = spread([rows[best] for rows in settings])
    lines = [[best, *(f"{100 * mean[m]:.2f}" for m in METRICS)]]
    for change in changes:
        gaps = [{m: rows[change][m] - rows[best][m] for m in METRICS} for rows in settings]
        gap, std = spread(gaps)
        lines.append([change, *(f"{100 * gap[m]:+.2f} ± {100 * std[m]:.2f}" for m in METRICS)])
    return "\n".join(markdown_table(["", *(TITLES[m] for m in METRICS)], lines))


HEAD = """# What each part of the preset best is worth

    python -m studies.ablation   # after python -m studies.benchmark

All pairs of the validation clips, percent; mean over {count} settings, policy seed 0:
{settings}.
The first row is the policy as it is; below it the difference that one change makes, in points, ±
one standard deviation over the settings. Nothing was chosen here: the preset is older than the
table. {processor}.

"""


def main(args: list[str]) -> None:
    """All settings that the benchmark has finished, then the table."""
    if args:
        raise InputError(f"{args[0]}: nothing may be given; run: python -m studies.ablation")
    found = {}
    for setting in SETTINGS:
        if not (path := checkpoint_of(setting)).exists():
            cure = "left out; run: python -m studies.benchmark"
            print(f"note: {path.parent}: not found, {cure}")
            continue
        out = ROOT / "runs" / "ablation" / f"fold{setting.fold}-scorer{setting.scorer}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        where = f"bank fold {setting.fold}, scorer seed {setting.scorer}"
        found[where] = measure(setting, out)
    if not found:
        raise InputError("no finished run of the benchmark; run: python -m studies.benchmark")
    head = HEAD.format(count=len(found), settings="; ".join(found), processor=processor())
    text = table(list(found.values()))
    write_text(ROOT / "docs" / "results" / "ablation.md", f"{head}{text}\n")
    print(text)


if __name__ == "__main__":
    run_script(__doc__, main)
