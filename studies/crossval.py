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
from functools import partial
from itertools import product
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
        same = ("labels", "audio", "scores", "map", "pairs", "cut_scores", "allow_missing")
        given = {name: getattr(self, name) for name in same}
        where = {"cache": self.out / "cache", "split": SPLIT}
        return PreprocessConfig(**where, **given, workers=num_workers(self.workers))


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
        name = learned.name.replace(" ", "-") + ("-all" if queries == "all" else "")
        return self.out / f"{name}{f'-split{split}' * (split > 0)}-part{part}-seed{seed}"


class Training(NamedTuple):
    """One training: on the clips of `names`, and on their pairs of `queries`."""

    cfg: TrainConfig
    queries: str
    names: list[str]


def train_one(job: Training) -> None:
    """Train in a run folder; skipped where this very training is finished there."""
    cfg, cache = job.cfg, load_cache(job.cfg.cache / job.cfg.split).subset(job.names)
    cache = cache.present_only() if job.queries == "present" else cache
    given = None if cfg.init is None else file_sha256(runfolder.checkpoint_of(cfg.init))
    mark = {"cache": cache.key, "config": config_key(cfg), "init": given}
    path = cfg.run / MARK
    with suppress(InputError):
        if read_json(path, "") == mark:
            return
    path.unlink(missing_ok=True)
    cfg.run.parent.mkdir(parents=True, exist_ok=True)
    log = cfg.run.with_suffix(".log")  # many at a time: their bars would mix on the screen
    with (
        open(log, "w", encoding="utf-8") as stream,
        redirect_stdout(stream),
        redirect_stderr(stream),
    ):
        device = pick_device(cfg.device, 1)
        with runfolder.held_run(cfg.run):
            if DQN.train(cfg, device, ALONE, cache):  # it caught a signal, and is not finished
                raise KeyboardInterrupt
    write_json(path, mark)


def trainings(study: Study, learned: list[Learned], tables: list[str]) -> list[Training]:
    """Every training that the tables need, each once."""
    found: dict[Path, Training] = {}
    names = {name for test in study.divisions[0] for name in test}
    apart = {"cache": study.cache.parent, "split": study.cache.name, "overwrite": True}
    apart |= {"holdout": 0.0, "looks": 1}  # a part of few clips would choose by chance
    trained = [one for one in learned if one.given is None]
    for one, table, (split, seed) in product(trained, tables, study.splits):
        queries = one.queries or table
        for part, test in enumerate(study.divisions[split]):
            run = study.run(one, queries, part, split, seed)
            cfg = replace(one.cfg, run=run, seed=seed, **apart)
            found[run] = Training(cfg, queries, sorted(names - set(test)))
    return list(found.values())


def joined(source: str, cache: Cache, tests: list[list[str]], parts: list[Member]) -> Member:
    """A member of all clips from one for the clips of each part, in the order of `cache.subset`."""
    names = np.array([pair.filename for pair in cache.pairs])
    frames = [np.flatnonzero(cache.of_frames(np.isin(names, test))) for test in tests]
    order = np.argsort(np.concatenate(frames))
    pred = np.concatenate([part.pred for part in parts])[order]
    scores = None
    if parts[0].scores is not None:
        values = [part.scores() for part in parts]
        scores = partial(np.take, np.concatenate(values), order)
    boxes = {name: found for part in parts for name, found in (part.boxes or {}).items()}
    return Member(source, pred, 0.0, boxes=boxes or None, scores=scores)


def rule_rows(study: Study, cache: Cache) -> list[System]:
    """Every rule, tuned and applied out of fold, a member for each division; over all pairs those
    behind each part's gate too."""
    rows: dict[str, System] = {}
    for division, tests in enumerate(study.divisions):
        names = {name for test in tests for name in test}
        found: dict[str, list[Member]] = {}
        for test in tests:
            train, part = cache.subset(names - set(test)), cache.subset(test)
            its_gate = systems.tuned_gate(train)
            gated = gate.silenced(its_gate, train) if its_gate else None
            with tuned_rules.tuning(
                train, Bandit(), cache.queries, quiet=True, gated=gated
            ) as tuned:
                rules = [rule for rule in tuned() if rule.name != BASE]
            for row in systems.rows_of_rules(rules, part, its_gate, (), quiet=True):
                rows.setdefault(row.name, row._replace(setting="", members=[]))
                found.setdefault(row.name, []).extend(row.members)
        for name, parts in found.items():
            rows[name].members.append(joined(f"split {division}", cache, tests, parts))
    fixed = ("all o", "fixed")  # the same in every division
    return [
        row._replace(members=row.members[:1]) if row.name.startswith(fixed) else row
        for row in rows.values()
    ]


def learned_rows(study: Study, cache: Cache, learned: list[Learned]) -> list[System]:
    """T_base and the learned rows, out of fold; over all pairs also behind each part's gate."""
    rows = [System(BASE, "base", "", [Member("", cache.base, 0.0)])]
    what = "splits" if study.learned > 1 else "seeds"
    for one in learned:
        members = []
        for split, seed in study.splits if one.given is None else study.splits[:1]:
            tests, decided = study.divisions[split], []
            for number_, test in enumerate(tests):
                run = study.run(one, one.queries or cache.queries, number_, split, seed)
                part, path = cache.subset(test), one.given or run / "best.pt"
                decided.append(systems.from_checkpoint(path, part, EvaluateConfig())[1])
            members.append(joined(f"split {split}, seed {seed}", cache, tests, decided))
        setting = f"{len(members)} {what}" if len(members) > 1 else ""
        rows.append(System(one.name, one.kind, setting, members))
    if cache.queries == "all":
        opened = [open_pairs(cache, tests) for tests in study.divisions[: study.learned]]
        for row in [row for row in rows if row.members[0].boxes is None]:  # it needs no gate
            splits, before = [split for split, _ in study.splits], row.members
            if len(before) == 1:  # the same in every division
                splits, before = range(study.learned), before * study.learned
            each = zip(splits, before, strict=True)
            members = [m._replace(decided=m.pred & opened[split]) for split, m in each]
            rows.append(row._replace(name=f"{row.name}, {GATED}", members=members, gated=True))
    return rows


def open_pairs(cache: Cache, tests: list[list[str]]) -> np.ndarray:
    """(N,) bool: frames of the pairs that the tag gate of the other parts leaves open."""
    names, opened = {name for test in tests for name in test}, []
    for test in tests:
        its_gate, part = gate.tune_gate(cache.subset(names - set(test))), cache.subset(test)
        pred = gate.behind(its_gate, part, np.ones(part.num_frames, bool))
        opened.append(Member("", pred, 0.0))
    return joined("", cache, tests, opened).pred


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
        train_one(Training(final, cfg.pairs, names))
        print(f"policy of all clips, for detect.py: {final.run / 'best.pt'}")


if __name__ == "__main__":
    run_script(CrossvalConfig, main)
