"""Few labelled clips? Each is decided by a policy and by rules that never saw it: K-fold by clip.

Run:    python -m studies.crossval --labels labels.tsv --scores scores --audio audio --out runs/mine
        python -m studies.crossval --labels labels.tsv --scores scores --pairs all --out runs/mine
Reads:  labels, score files and audio in any form that preprocess.py takes
Writes: <out>/cache/, a run folder and its log for each part and seed, <out>/final/ (all clips),
        <out>/parts.tsv, <out>/{present,all}/{results.json, table.md, table.tex, pairs.csv, events/}

The clips are preprocessed once and dealt to K parts; clips of one recording stay together where a
list says so. For each part a policy learns from the other parts, the rules are tuned on them, and
the tag gate too. What is finished is kept, so the study can be interrupted; other labels, scores or
settings train anew. Few clips are a few gradient steps a pass, so the passes follow from a floor of
steps. 20 clips are few: read the intervals.
"""

import shutil
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from config import (
    PRETRAINED,
    SUPERVISED,
    Bandit,
    EvaluateConfig,
    PreprocessConfig,
    PresetName,
    TrainConfig,
)
from core.command import parse_first, run_script
from core.processes import num_workers, process_pool
from core.settings import Checked, config_key, number

SPLIT = "train"  # folder of the cache, which holds all clips


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig(Checked):
    """K-fold cross-validation of a policy by clip, with the tuned rules beside it."""

    labels: Path
    """labels, in any form of preprocess.py"""
    scores: Path
    """score folder (TSV a clip), or NPZ"""
    audio: Path | None = None
    """audio folder (default: none, loudness is 1)"""
    map: tuple[str, ...] = ()
    """class names, SCORES=LABELS, e.g. dog=Dog"""
    cut_scores: bool = False
    """cut scores at the end of the audio"""
    allow_missing: bool = False
    """leave out clips without readable audio or scores"""
    clips: Path | None = None
    """table filename, recording: a recording stays in one part"""
    pairs: Literal["present", "all"] = "present"
    """classes queried for a clip (slides: present)"""
    policy: PresetName = "slides"  # `best` wants more clips, see docs/scores.md
    """preset of the policy"""
    parts: int = number(5, 2)
    """K, parts of the clips"""
    passes: int | None = number(None, 1)
    """passes over the training pairs (default: the preset's)"""
    seeds: int = number(1, 1)
    """policies for each part, one a seed"""
    init: Path | None = None
    """policy over events to recalibrate, instead of a training"""
    seed: int = number(0, 0)
    """seed of the parts"""
    out: Path = Path("runs/crossval")
    """folder to write"""
    workers: int | None = number(None, 1)
    """processes (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.inputs  # what preprocess.py cannot take is refused here

    @property
    def inputs(self) -> PreprocessConfig:
        """How the clips are preprocessed."""
        return PreprocessConfig(
            cache=self.out / "cache",
            split=SPLIT,
            labels=self.labels,
            audio=self.audio,
            scores=self.scores,
            map=self.map,
            pairs=self.pairs,
            cut_scores=self.cut_scores,
            allow_missing=self.allow_missing,
            workers=num_workers(self.workers),
        )


if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(CrossvalConfig)

import numpy as np
from tqdm import tqdm

import DQN
import preprocess
from baselines import tuned_rules
from comparison import scoring, systems
from comparison.systems import BASE, GATED, Member, System
from core.errors import InputError
from core.files import Kind, keep_apart, own_folder, write_text
from core.ranks import ALONE, pick_device
from core.stored import file_sha256, read_json, write_json
from policy import gate, runfolder
from sed.caches import Cache, load_cache
from sed.splits import draw_parts, groups_of, read_list

CROSSVAL = Kind("cross-validation")
SHIPPED = Path("runs/pretrained/best.pt")
MARK = "crossval.json"  # of a finished run folder: what it was trained on, and how


class Learned(NamedTuple):
    """A row that is trained: its name, and the settings; cache, run folder and seed are set here.

    `queries`: the pairs that it learns from; None: those of the table. `given`: a policy that is
    applied as it is instead, and learns nothing here.
    """

    name: str
    cfg: TrainConfig
    queries: Literal["present", "all"] | None = None
    given: Path | None = None

    @property
    def kind(self) -> str:
        """As in comparison/systems.py."""
        return "supervised" if self.cfg.method in SUPERVISED else "policy"


def pretrained_rows() -> list[Learned]:
    """The rows of policy/pretrained.pt: as it is, without any label, and recalibrated. The former
    is a copy in `SHIPPED`, since decisions are kept beside a policy."""
    SHIPPED.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PRETRAINED, SHIPPED)
    best = TrainConfig.with_preset("best")
    return [
        Learned("best, pretrained", best, given=SHIPPED),
        Learned("best, recalibrated", replace(best, init=PRETRAINED)),
    ]


class Study(NamedTuple):
    """Where everything is, and how the clips are dealt to the parts."""

    cache: Path  # folder of the cache of all clips
    out: Path
    divisions: list[list[list[str]]]  # rules are tuned on each
    seeds: range  # of the policies; each further division adds 1
    workers: int
    learned: int = 1  # divisions that policies are trained on

    @property
    def splits(self) -> list[tuple[int, int]]:
        """Division and seed of each member of a learned row."""
        return [(split, split + seed) for split in range(self.learned) for seed in self.seeds]

    def run(self, learned: Learned, queries: str, part: int, split: int, seed: int) -> Path:
        """Run folder of one training."""
        name = learned.name.replace(" ", "-") + ("-all" if queries == "all" else "")
        return self.out / f"{name}{f'-split{split}' * (split > 0)}-part{part}-seed{seed}"


class Training(NamedTuple):
    """One training: on the clips of `names`, and on their pairs of `queries`."""

    cfg: TrainConfig
    cache: Path
    queries: str
    names: list[str]


def some_clips(cache: Cache, names: list[str], queries: str) -> Cache:
    """The cache of some clips, with the pairs that are asked for."""
    part = cache.subset(names)
    return part.present_only() if queries == "present" else part


def train_one(job: Training) -> None:
    """Train in a run folder; skipped where this very training is finished there."""
    cache = some_clips(load_cache(job.cache), job.names, job.queries)
    given = None if job.cfg.init is None else file_sha256(runfolder.checkpoint_of(job.cfg.init))
    mark = {"cache": cache.key, "config": config_key(job.cfg), "init": given}
    path = job.cfg.run / MARK
    with suppress(InputError):
        if read_json(path, "") == mark:
            return
    path.unlink(missing_ok=True)
    job.cfg.run.parent.mkdir(parents=True, exist_ok=True)
    log = job.cfg.run.with_suffix(".log")  # many at a time: their bars would mix on the screen
    with (
        open(log, "w", encoding="utf-8") as stream,
        redirect_stdout(stream),
        redirect_stderr(stream),
    ):
        device = pick_device(job.cfg.device, 1)
        with runfolder.held_run(job.cfg.run):
            if DQN.train(job.cfg, device, ALONE, cache):  # it caught a signal, and is not finished
                raise KeyboardInterrupt
    write_json(path, mark)


def trainings(study: Study, learned: list[Learned], tables: list[str]) -> list[Training]:
    """Every training that the tables need, each once."""
    found: dict[Path, Training] = {}
    names = [name for part in study.divisions[0] for name in part]
    for one in (one for one in learned if one.given is None):
        for queries in tables:
            queries = one.queries or queries
            for split, seed in study.splits:
                for part, test in enumerate(study.divisions[split]):
                    run = study.run(one, queries, part, split, seed)
                    cfg = replace(
                        one.cfg,
                        cache=study.cache.parent,
                        split=study.cache.name,
                        run=run,
                        seed=seed,
                        holdout=0.0,  # a part of few clips would choose by chance
                        looks=1,
                        overwrite=True,
                    )
                    rest = sorted(set(names) - set(test))
                    found[run] = Training(cfg, study.cache, queries, rest)
    return list(found.values())


def put(whole: np.ndarray, cache: Cache, names: list[str], part: np.ndarray) -> None:
    """Write the decisions of some clips, in the order of `cache.subset`, into those of all."""
    mine = np.array([pair.filename in set(names) for pair in cache.pairs])
    whole[mine[cache.frames_of_pair]] = part


def rule_rows(study: Study, cache: Cache) -> list[System]:
    """Every rule, tuned and applied out of fold, a member for each division; over all pairs those
    behind each part's gate too."""
    rows: dict[str, System] = {}
    for number_, parts in enumerate(study.divisions):
        names = [name for part in parts for name in part]
        found: dict[str, System] = {}
        for test in parts:
            train, part = cache.subset(set(names) - set(test)), cache.subset(test)
            its_gate = systems.tuned_gate(train)
            gated = gate.silenced(its_gate, train) if its_gate else None
            with tuned_rules.tuning(
                train, Bandit(), cache.queries, quiet=True, gated=gated
            ) as tuned:
                rules = [rule for rule in tuned() if rule.name != BASE]
            for row in systems.rows_of_rules(rules, part, its_gate, (), quiet=True):
                whole = found.setdefault(row.name, everywhere(row, cache, f"split {number_}"))
                (own,), (member,) = row.members, whole.members
                put(member.pred, cache, test, own.pred)
                if own.scores is not None:
                    put(member.scores, cache, test, own.scores)
                if own.boxes is not None:
                    member.boxes.update(own.boxes)
        for name, row in found.items():
            before = rows[name].members if name in rows else []
            rows[name] = row._replace(members=before + row.members)
    fixed = ("all o", "fixed")  # the same in every division
    return [
        row._replace(members=row.members[:1]) if row.name.startswith(fixed) else row
        for row in rows.values()
    ]


def everywhere(row: System, cache: Cache, source: str) -> System:
    """The row of a rule with room for all pairs of a cache; it has a setting for each part."""
    (own,) = row.members
    pred = np.zeros(cache.num_frames, bool)
    scores = None if own.scores is None else np.zeros(cache.num_frames, own.scores.dtype)
    boxes = None if own.boxes is None else {}
    return row._replace(setting="", members=[Member(source, pred, 0.0, boxes=boxes, scores=scores)])


def learned_rows(study: Study, cache: Cache, learned: list[Learned]) -> list[System]:
    """T_base and the learned rows, out of fold; over all pairs also behind each part's gate."""
    rows = [System(BASE, "base", "", [Member("", cache.base, 0.0)])]
    for one in learned:
        members = []
        for split, seed in study.splits if one.given is None else study.splits[:1]:
            whole, boxes = np.zeros(len(cache.label), bool), {}
            for number_, test in enumerate(study.divisions[split]):
                run = study.run(one, one.queries or cache.queries, number_, split, seed)
                part, path = cache.subset(test), one.given or run / "best.pt"
                decided = systems.from_checkpoint(path, part, EvaluateConfig())[1]
                put(whole, cache, test, decided.pred)
                boxes |= decided.boxes or {}  # of a policy over events, with its confidences
            source = f"split {split}, seed {seed}"
            members.append(Member(source, whole, 0.0, boxes=boxes or None))
        what = "splits" if study.learned > 1 else "seeds"
        setting = f"{len(members)} {what}" if len(members) > 1 else ""
        rows.append(System(one.name, one.kind, setting, members))
    if cache.queries == "all":
        open_ = [open_pairs(cache, parts) for parts in study.divisions[: study.learned]]
        for row in [row for row in rows if row.members[0].boxes is None]:  # it needs no gate
            splits = [split for split, _ in study.splits]
            if len(row.members) == 1:  # the same in every division
                splits, row = (
                    range(study.learned),
                    row._replace(members=row.members * study.learned),
                )
            each = zip(splits, row.members, strict=True)
            members = [m._replace(pred=m.pred & open_[split]) for split, m in each]
            rows.append(row._replace(name=f"{row.name}, {GATED}", members=members, gated=True))
    return rows


def open_pairs(cache: Cache, parts: list[list[str]]) -> np.ndarray:
    """(N,) bool: frames of the pairs that the tag gate of the other parts leaves open."""
    found = np.zeros(len(cache.label), bool)
    for test in parts:
        others = [name for some in parts if some is not test for name in some]
        part = cache.subset(test)
        on = np.ones(len(part.label), bool)
        put(found, cache, test, gate.behind(gate.tune_gate(cache.subset(others)), part, on))
    return found


def cross_validate(
    study: Study, learned: list[Learned], tables: list[str], given: dict[str, Path] | None = None
) -> dict[str, tuple[dict[str, Any], list[System]]]:
    """Train what is not trained yet, decide every clip out of fold, write and print the tables;
    results and rows of each. `given`: event tables of other systems by name, rows as well.

    InputError where a part is left without pairs.
    """
    found = {}
    cache = load_cache(study.cache)
    jobs = trainings(study, learned, tables)
    with process_pool(min(study.workers, len(jobs))) as pool:
        list(tqdm(pool.map(train_one, jobs), total=len(jobs), desc="Trainings", unit="run"))
    for queries in tables:
        chosen = cache.present_only() if queries == "present" else cache
        out = study.out / queries
        with own_folder(out, scoring.TABLE):
            rows = learned_rows(study, chosen, learned)
            for name, path in (given or {}).items():
                rows.append(System(name, "events", "", [systems.from_events(path, chosen)]))
            rows = systems.with_events(rows + rule_rows(study, chosen), chosen)
            results = scoring.measure(rows, chosen, study.workers)
            scoring.write_table(out, results, rows, chosen)
        print(scoring.markdown(results))
        found[queries] = results, rows
    return found


def main(cfg: CrossvalConfig) -> None:
    """Preprocess once, cross-validate, train the policy of all clips."""
    keep_apart(cfg.out, (cfg.labels, cfg.scores, cfg.audio, cfg.clips), replaced=True)
    with own_folder(cfg.out, CROSSVAL):
        preprocess.main(cfg.inputs)
        folder = cfg.out / "cache" / SPLIT
        cache = load_cache(folder)
        names = sorted({pair.filename for pair in cache.pairs})
        listed = None if cfg.clips is None else read_list(cfg.clips, names)
        parts = draw_parts(groups_of(names, listed), cfg.parts, cfg.seed)
        lines = [f"{name}\t{part}" for part, clips in enumerate(parts) for name in clips]
        write_text(cfg.out / "parts.tsv", "filename\tpart\n" + "\n".join(lines) + "\n")
        settings = TrainConfig.with_preset(cfg.policy if cfg.init is None else "best")
        settings = replace(settings, passes=cfg.passes, init=cfg.init)
        print(f"{len(names)} clips, {cfg.parts} parts")
        name = f"DQN {cfg.policy}" if cfg.init is None else f"{cfg.init.stem}, recalibrated"
        learned = Learned(name, settings)
        study = Study(folder, cfg.out, [parts], range(cfg.seeds), cfg.inputs.workers)
        (example, *_) = trainings(study, [learned], [cfg.pairs])
        final = replace(example.cfg, run=cfg.out / "final")
        cross_validate(study, [learned], [cfg.pairs])
        train_one(Training(final, folder, cfg.pairs, names))
        print(f"policy of all clips, for detect.py: {final.run / 'best.pt'}")


if __name__ == "__main__":
    run_script(CrossvalConfig, main)
