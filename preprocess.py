"""Audio + scores + labels -> the six signals of every (clip, class) pair -> cache/<split>.

Run:    python preprocess.py                    # built-in corpus, made and scored first if missing
        python preprocess.py --split train --labels L.tsv --audio DIR --scores DIR
        python preprocess.py --split train --labels L.tsv --scores DIR   # no audio: r = 1
        python preprocess.py --split train --labels L.tsv --import-npz DIR
        python preprocess.py --labels L.tsv --scores DIR --validation-share 0.2    # both splits
        torchrun --nproc-per-node=2 -- preprocess.py
        python preprocess.py --pairs all --cache cache/all                  # absent classes too
Reads:  <corpus>/<split>/{labels.tsv, audio/, scores/} or the files named
Writes: <cache>/<split>/{manifest.json, left_out.tsv, shard-*.npz}, whole or not at all; a rerun
        skips the done; scores.json there: score files that were held against their own checksums
Shapes: S samples, T frames of a pair, N frames of all pairs together, P pairs, C clips, K classes

The formulas are in sed/signals.py.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from config import PreprocessConfig, ScorersConfig, Signal, SoundscapesConfig, renames
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(PreprocessConfig)

import numpy as np
import soundfile
from tqdm import tqdm

from core.errors import InputError
from core.files import contents, keep_apart, new_folder, work_folder, writing
from core.processes import end_children, num_workers, process_pool
from core.settings import to_dict
from core.stored import file_sha256, map_npz, read_json, read_npz, write_json
from scores import corpora, score_files
from sed import timeline
from sed.audio import SHORT_AUDIO, TRUNCATED, AudioFile, audio_seconds, wav_from
from sed.caches import (
    CACHE,
    CHECKED,
    FORMAT,
    LEFT_OUT,
    MOST_MANIFEST,
    SLACK,
    ClipRecord,
    Pair,
    config_key_of,
    listed,
    read_manifest,
    write_shard,
)
from sed.labels import (
    Aside,
    Labels,
    clip_id,
    find_audio,
    fit_events,
    read_rows,
    records,
    say_asides,
    say_left_out,
    write_asides,
)
from sed.signals import (
    CUT,
    DISAGREE,
    FELL_BACK,
    NO_AUDIO,
    NOTICES,
    SILENT,
    TOO_SHORT,
    WINDOWS,
    check_duration,
    clip_tag,
    compute_signals,
    falls_back,
    loudness_on_grid,
)
from sed.signals import VERSION as FORMULAS
from sed.splits import two_splits
from sed.timeline import SPLITS, Event, classes_of, label_frames

if TYPE_CHECKING:
    from core.ranks import Ranks

CLIPS_PER_SHARD = 64  # a shard is what one process holds in memory and what a rerun can skip


# ---------------------------------------------------------------------------- one shard


class ClipInput(NamedTuple):
    """A clip to process: file name in the labels, events, audio file (None: there is none)."""

    filename: str
    events: list[Event]
    audio: Path | None


class Job(NamedTuple):
    """What a process needs to make one shard."""

    path: Path
    clips: list[ClipInput]
    source: score_files.ScoreSource | Path  # scores, or the folder of NPZ files to import
    cfg: PreprocessConfig


def clip_end(end: float, slack_s: float, events: list[Event]) -> float:
    """Duration of a clip without audio, whose frames end at `end` seconds.

    Grids of frames end up to a frame (`slack_s`) early: 9.984 of 10.0 s in DCASE. So the labels are
    believed that far.
    """
    last = max((event.offset for event in events), default=0.0)
    return max(end, last) if last <= end + slack_s + 1e-6 else end


def clip_loudness(
    clip: ClipInput, scores: timeline.ClipScores, signal: Signal, notices: dict[str, list[str]]
) -> tuple[np.ndarray | None, float]:
    """Normalised loudness (T,) on the scores' grid, None without audio, and the clip's duration in
    seconds."""
    end, num_frames = float(scores.edges[-1]), len(scores.edges) - 1
    if clip.audio is None:
        notices[NO_AUDIO].append(clip.filename)
        return None, clip_end(end, scores.frame_s + scores.start_s, clip.events)
    with AudioFile(clip.audio) as audio:
        wav = audio.read()
    if notice := check_duration(audio.duration_s, scores):
        notices[notice].append(clip.filename)
    if audio.truncated:
        notices[TRUNCATED].append(clip.filename)
    if not wav.any():
        notices[SILENT].append(clip.filename)
    start_s, stop_s = scores.span_s(0, num_frames)
    wav = wav_from(wav, audio.sample_rate, start_s)
    rms = loudness_on_grid(wav, audio.sample_rate, stop_s - start_s, num_frames, signal)
    return rms, audio.duration_s


Row = tuple[Pair, dict[str, np.ndarray], np.ndarray]  # a pair, its signals, its label (T,)


def clip_signals(
    clip: ClipInput, job: Job, notices: dict[str, list[str]]
) -> tuple[list[Row], ClipRecord, list[Aside]]:
    """Every queried pair of a clip, what else is known of it, and the label rows that were cut or
    left out; ValueError on bad input."""
    source, signal = job.source, job.cfg.signal
    scores = source.scores(clip.filename)
    if job.cfg.cut_scores:
        scores = score_files.cut_scores(scores, audio_seconds(clip.audio))
    edges, end = scores.edges, float(scores.edges[-1])
    num_frames, frame_s, start_s = len(edges) - 1, float(scores.frame_s), scores.start_s
    if start_s:
        notices[WINDOWS].append(clip.filename)
    rms, duration = clip_loudness(clip, scores, signal, notices)
    events, asides = fit_events(clip.filename, clip.events, duration)
    last_label = max((event.offset for event in events), default=0.0)
    if last_label > end + frame_s + start_s + 1e-6:
        raise ValueError(f"scores end at {end:.2f} s but labels go to {last_label:.2f} s")
    if any(event.offset > end + 1e-6 for event in events):
        notices[CUT].append(clip.filename)
    present = classes_of({clip.filename: events})
    rows = []
    queried = source.classes if job.cfg.pairs == "all" else present
    d_raw = scores.values[[source.classes.index(name) for name in queried]]
    signals, flat = compute_signals(rms, d_raw, frame_s, signal), falls_back(rms, d_raw, signal)
    for i, event_label in enumerate(queried):
        pair = Pair(clip.filename, event_label, num_frames, frame_s, start_s)
        label = label_frames(events, event_label, edges)
        if event_label in present and not label.any():
            notices[TOO_SHORT].append(f"{clip.filename} / {event_label}")
        if flat[i]:
            notices[FELL_BACK].append(f"{clip.filename} / {event_label}")
        rows.append((pair, {name: array[i] for name, array in signals.items()}, label))
    tag = [float(value) for value in clip_tag(scores, signal)]
    return rows, ClipRecord(clip.filename, duration, events, tag), asides


ORIGINAL_NAMES = {
    "rms": "rms",
    "d_raw": "D_raw",
    "d_adj": "D_adj",
    "prob": "prob_95",
    "t_base": "T_norm",
    "binary": "binary",
}


def npz_name(filename: str, event_label: str) -> str:
    """How the original program names the file of a pair."""
    return f"{Path(clip_id(filename)).name}_{event_label}.npz"


def imported_signals(
    folder: Path, filename: str, event_label: str, frame_s: float
) -> tuple[Pair, dict[str, np.ndarray]]:
    """One per-pair NPZ of the original program -> its six signals. ValueError if it is damaged."""
    name = npz_name(filename, event_label)
    forms = dict.fromkeys(ORIGINAL_NAMES.values(), ("fiub", None))
    try:
        arrays = read_npz(folder / name, forms, "export it again")
    except InputError as error:
        raise ValueError(str(error).removeprefix(f"{folder}/")) from None
    values = {
        ours: arrays[theirs].astype(np.float32).reshape(-1)
        for ours, theirs in ORIGINAL_NAMES.items()
    }
    lengths = {ours: len(array) for ours, array in values.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{name}: arrays of different lengths {lengths}")
    for ours, array in values.items():
        if not ((array >= -SLACK) & (array <= 1 + SLACK)).all():  # NaN is neither
            raise ValueError(f"{name}: values of {ORIGINAL_NAMES[ours]} are not from 0 to 1")
    return Pair(filename, event_label, lengths["rms"], frame_s), values


def imported_clip(
    clip: ClipInput, job: Job, notices: dict[str, list[str]]
) -> tuple[list[Row], ClipRecord, list[Aside]]:
    """Every present pair of a clip of the original program; ValueError on a damaged file."""
    arrays, frame_s = [], job.cfg.import_frame_s
    for event_label in classes_of({clip.filename: clip.events}):
        pair, values = imported_signals(job.source, clip.filename, event_label, frame_s)
        arrays.append((pair, values))
        if ((values["prob"] > values["t_base"]) != (values["binary"] > 0.5)).any():
            notices[DISAGREE].append(npz_name(clip.filename, event_label))
    end = clip_end(max(float(pair.edges[-1]) for pair, _ in arrays), frame_s, clip.events)
    events, asides = fit_events(clip.filename, clip.events, end)
    present = classes_of({clip.filename: events})
    rows = [
        (pair, values, label_frames(events, pair.event_label, pair.edges))
        for pair, values in arrays
        if pair.event_label in present
    ]
    return rows, ClipRecord(clip.filename, end, events, None), asides


def fingerprint(job: Job) -> str:
    """Hash of everything a shard is made from: names, labels, file sizes and times, formulas."""
    cfg = job.cfg
    parts: list[Any] = [FORMAT, FORMULAS, to_dict(cfg.signal), cfg.import_frame_s, cfg.pairs]
    parts += ["cut"] * cfg.cut_scores
    if not isinstance(job.source, Path):
        parts.append(job.source.classes)
    for clip in job.clips:
        if isinstance(job.source, Path):
            files = [job.source / npz_name(clip.filename, e.event_label) for e in clip.events]
        else:
            files = [clip.audio] * bool(clip.audio)
            parts.append(job.source.identity(clip.filename))
        stats = ((file.name, file.stat()) for file in files)
        stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        parts.append([clip.filename, clip.events, stamps])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_shard(job: Job) -> dict[str, Any]:
    """Compute and write one shard and, beside it, its entry in the manifest, for a run that goes on
    from here. Clips that fail are named, the others are written; `notices` name the clips behind
    each."""
    rows: list[Row] = []
    entry = {"file": job.path.name, "sha256": "", "inputs": "", "failed": []}
    with suppress(OSError):  # a file that is gone by now is named below
        entry["inputs"] = fingerprint(job)
    entry |= {"notices": {name: [] for name in NOTICES}, "pairs": [], "clips": [], "asides": []}
    made = imported_clip if isinstance(job.source, Path) else clip_signals
    for clip in job.clips:
        try:
            found, record, asides = made(clip, job, entry["notices"])
            rows += found  # a clip whole or not at all
            entry["clips"].append(record)
            entry["asides"] += asides
        except (ValueError, InputError) as error:
            entry["failed"].append(f"{clip.filename}: {error}")
    if rows:
        entry["pairs"] = [row[0] for row in rows]
        write_shard(job.path, [row[1] for row in rows], [row[2] for row in rows])
        entry["sha256"] = file_sha256(job.path)
    write_json(job.path.with_suffix(".json"), {"shard": entry}, large=True)
    return entry


# ---------------------------------------------------------------------------- one split


class Task(NamedTuple):
    """What a split is made from."""

    split: str
    labels: Path
    rows: Labels  # of this split
    audio: Path | None
    scores: Path | None
    import_npz: Path | None
    classes: list[str]
    groups: dict[str, str]  # see Cache.groups

    @property
    def sources(self) -> dict[str, str | None]:
        """Labels, audio, scores: what a cache of the split is made from."""
        paths = {"labels": self.labels, "audio": self.audio, "scores": self.scores}
        paths["import_npz"] = self.import_npz
        return {name: path and str(path.resolve()) for name, path in paths.items()}


NO_EVENT = "no clip has an event, so there is no pair"


def flaws(clips: list[ClipInput]) -> dict[str, str]:
    """What is wrong with recordings, by clip, as far as it is known without decoding."""
    found = {}
    for clip in clips:
        try:
            AudioFile(clip.audio).stream.close()
        except ValueError as error:
            found[clip.filename] = str(error)
    return found


def find_inputs(
    task: Task, cfg: PreprocessConfig, crew: "Crew"
) -> tuple[list[ClipInput], Any, list[str]]:
    """Labels -> clips with their inputs, the score source, and `name: reason` of those left out.

    Everything that can be known without decoding is checked here, before anything is written; each
    process of the job, and each of its workers, opens a share of the recordings.
    """
    clips, ranks = task.rows.clips, crew.ranks
    ready: list[ClipInput] = []
    missing: dict[str, str] = {}  # reason by clip
    queried = {name: events for name, events in clips.items() if events or cfg.pairs == "all"}
    if not queried:
        raise InputError(f"{task.labels}: {NO_EVENT}")
    if task.import_npz is not None:
        if not task.import_npz.is_dir():
            raise InputError(f"--import-npz {task.import_npz}: no such folder")
        source: Any = task.import_npz
        for name, events in queried.items():
            wanted = [npz_name(name, label) for label in classes_of({name: events})]
            absent = [file for file in wanted if not (source / file).exists()]
            if absent:
                missing[name] = f"no {listed(absent)} in {source}"
            else:
                ready.append(ClipInput(name, events, None))
    else:
        checked = read_checked(cfg.cache / task.split / CHECKED)
        source = score_files.open_scores(task.scores, task.classes, renames(cfg.map), checked)
        unscored = set(source.missing(list(queried)))
        for name, events in islice(queried.items(), ranks.rank, None, ranks.size):
            path = find_audio(task.audio, name) if task.audio else None
            if name in unscored:
                missing[name] = f"no scores in {task.scores}"
            elif task.audio is not None and path is None:
                missing[name] = f"no audio in {task.audio}"
            else:
                ready.append(ClipInput(name, events, path))
        if task.audio is not None:
            parts = range(0, len(ready), CLIPS_PER_SHARD)
            some = [ready[start : start + CLIPS_PER_SHARD] for start in parts]
            for found in crew.each(flaws, some, crew.workers_for(ready, some, cfg)):
                missing |= found
        found = {}
        for some, reasons in ranks.gather((ready, missing)):
            found |= {clip.filename: clip for clip in some}
            missing |= reasons
        ready = [found[name] for name in queried if name in found and name not in missing]
    left_out = [f"{name}: {missing[name]}" for name in queried if name in missing]
    stop_on_failures(task, cfg, left_out, len(clips))
    return ready, source, left_out


def read_checked(path: Path) -> dict[str, score_files.Stamp]:
    """Stamps of the score files by path; none where there is no whole record of them."""
    with suppress(InputError):
        return read_json(path, "", ()).get("files", {})
    return {}


def stop_on_failures(task: Task, cfg: PreprocessConfig, failed: list[str], total: int) -> None:
    """Raise InputError naming missing or damaged clips, unless they may be left out."""
    if failed and not cfg.allow_missing:
        what = f"{len(failed)} of {total} clips in {task.labels} are missing or damaged"
        cure = "--allow-missing leaves them out and lists them"
        clips_of: dict[str, list[str]] = {}  # by reason, which is said once
        for line in failed:
            name, reason = line.split(": ", 1)
            clips_of.setdefault(reason, []).append(name)
        told = [f"{listed(names)}: {reason}" for reason, names in clips_of.items()]
        raise InputError(f"{what}: {listed(told)}. {cure}")


def known_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a cache, or {} where there is none that can be read."""
    with suppress(InputError):
        return read_json(folder / "manifest.json", "", most=MOST_MANIFEST)
    return {}


def known_splits(cache: Path) -> list[str]:
    """Names of the splits that a cache folder holds."""
    names = (path.parent.name for path in cache.glob("*/manifest.json"))
    return sorted(name for name in names if name[0] != ".")


def check_sources(cache: Path, task: Task) -> None:
    """InputError where a split was made from other files than it would be now.

    Files that have moved together with the cache are the same ones.
    """
    found = known_manifest(cache / task.split)
    theirs, home = found.get("sources"), found.get("home", str(cache.resolve()))
    for name, path in task.sources.items():
        old = (theirs or {}).get(name, path)
        moved = old and path and os.path.relpath(old, home) == os.path.relpath(path, cache)
        if old != path and not moved:
            flag = f"--{name.replace('_', '-')}"
            made = f"with {flag} {old}" if old else f"without {flag}"
            cure = "give its own, another --cache, or --replace if that is meant"
            now = f"this is {path}" if path else f"now {flag} is left out"
            raise InputError(f"{cache / task.split} was made {made}, {now}; {cure}")


def check_classes(cache: Path, task: Task) -> None:
    """InputError where another split of the cache has entirely other classes; some are named."""
    for name in known_splits(cache):
        others = set(known_manifest(cache / name).get("classes", task.classes))
        new = sorted(set(task.classes) - others)
        if name == task.split or not new:
            continue
        if not others & set(task.classes):
            raise InputError(
                f"{cache / name} holds other classes ({listed(sorted(others))}) than {task.labels}"
                f" ({listed(new)}); give another --cache, or --replace if that is meant"
            )
        print(f"note: {cache / name} has no pairs of {listed(new)}")


def reuse_shard(home: Path, entry: dict[str, Any] | None, job: Job) -> bool:
    """Take a shard over from an earlier run if it is whole, of the same inputs, unchanged."""
    path = home / job.path.name
    if entry is None or entry["failed"] or not path.is_file():
        return False
    if entry["inputs"] != fingerprint(job):
        return False
    if file_sha256(path) != entry["sha256"]:
        print(f"{path} does not match its checksum: rebuilt")
        return False
    if path != job.path:
        with writing(job.path):
            shutil.copy2(path, job.path)
    return True


def known_shards(folder: Path, partial: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Shards that the manifest of an earlier run vouches for, and those of a run that was stopped,
    by file name; what cannot be read is made again."""
    old, begun = {}, {}
    with suppress(InputError):
        shards = read_manifest(folder / "manifest.json", "")["shards"]
        old = {shard["file"]: shard for shard in shards}
    for path in partial.glob("shard-*.json"):
        with suppress(InputError):
            begun[path.with_suffix(".npz").name] = read_json(path, "", ())["shard"]
    return old, begun


WORK_OF_A_PROCESS = 300e6  # bytes of audio that take longer than to start a process for them
SCORES_ONLY = 300e3  # bytes that a clip without audio counts for


class Crew(NamedTuple):
    """Who does the work: the processes of the job, and the workers of this one, which start when
    they are first asked for."""

    ranks: "Ranks"
    pool: Callable[[], Executor]

    def workers_for(self, clips: list[ClipInput], tasks: list[Any], cfg: PreprocessConfig) -> int:
        """How many workers are worth their start for clips that are dealt out as some tasks."""
        workers = cfg.workers
        if workers is None:
            size = sum(os.stat(clip.audio).st_size if clip.audio else SCORES_ONLY for clip in clips)
            workers = min(num_workers(None), 1 + int(size / WORK_OF_A_PROCESS))
        return min(workers, len(tasks)) or 1

    def each(self, work: Callable[[Any], Any], tasks: list[Any], workers: int) -> Iterator[Any]:
        """Results as they are finished; one worker stays in this process and saves its start."""
        if workers == 1:
            yield from map(work, tasks)
            return
        rest, pool = iter(tasks), self.pool()
        waiting = {pool.submit(work, task) for task in islice(rest, workers)}
        while waiting:  # no more at a time, so that no more processes start
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(work, task) for task in islice(rest, len(done))}
            yield from (future.result() for future in done)


def run_jobs(
    jobs: list[Job], folder: Path, partial: Path, cfg: PreprocessConfig, crew: Crew
) -> tuple[list[dict], int]:
    """Make or take over every shard. Returns manifest entries and how many were taken over.

    A shard with failed clips is written but never taken over: the next run tries them again.
    """
    old, begun = known_shards(folder, partial)
    done: dict[str, dict] = {}
    for job in jobs:
        for known, home in ((begun, partial), (old, folder)):
            if reuse_shard(home, known.get(job.path.name), job):
                done[job.path.name] = known[job.path.name]
                break
    todo, reused = [job for job in jobs if job.path.name not in done], len(done)
    clips = [clip for job in todo for clip in job.clips]
    count = sum(len(job.clips) for job in jobs)
    bar = tqdm(total=count, desc="Signals", unit="clip", disable=not crew.ranks.leads)
    bar.update(count - len(clips))
    workers = crew.workers_for(clips, todo, cfg)
    try:
        with bar:
            for entry in crew.each(make_shard, todo, workers):
                bar.update(len(entry["clips"]) + len(entry["failed"]))
                done[entry["file"]] = entry
    except BaseException:
        if workers > 1:
            end_children()  # they may be writing where the caller cleans up next
        raise
    return [done[file] for file in sorted(done)], reused


def preprocess_split(task: Task, cfg: PreprocessConfig, crew: Crew) -> None:
    """Compute one split into a hidden folder, then put it in place whole.

    The shards are dealt out over the processes; the first one finishes the split.
    """
    began, ranks = time.perf_counter(), crew.ranks
    clips, source, left_out = find_inputs(task, cfg, crew)
    if not cfg.replace:
        ranks.leader_first(lambda: check_sources(cfg.cache, task))
        ranks.leader_first(lambda: check_classes(cfg.cache, task))
    if not clips:
        raise InputError(f"{task.labels}: no clip is left that has all its inputs")
    folder = cfg.cache / task.split
    inputs = (task.labels, task.audio, task.scores, task.import_npz, cfg.clips)
    keep_apart(folder, inputs, "--cache", replaced=True)
    partial = work_folder(folder)  # of all processes; the first one holds it

    def hold() -> None:
        held.enter_context(new_folder(folder, CACHE, "--cache", keep=True))
        if isinstance(source, score_files.ScoreArchive):
            write_json(partial / CHECKED, {"files": source.checked})

    def finish() -> None:
        kept = finish_split(task, cfg, partial, entries, source, left_out)
        held.close()  # puts it in place
        report(folder, task, cfg.pairs, kept, left_out, began)
        if reused:
            print(f"  shards taken over from an earlier run: {reused} of {len(starts)}")

    with ExitStack() as held:
        ranks.leader_first(hold)
        jobs = []
        starts = list(enumerate(range(0, len(clips), CLIPS_PER_SHARD)))
        for i, start in starts[ranks.rank :: ranks.size]:
            some = clips[start : start + CLIPS_PER_SHARD]
            jobs.append(Job(partial / f"shard-{i:05d}.npz", some, source, cfg))
        parts = ranks.to_leader(run_jobs(jobs, folder, partial, cfg, crew))
        entries = sorted((entry for some, _ in parts for entry in some), key=itemgetter("file"))
        reused = sum(count for _, count in parts)
        ranks.leader_first(finish)


def finish_split(
    task: Task,
    cfg: PreprocessConfig,
    partial: Path,
    entries: list[dict],
    source: Any,
    left_out: list[str],
) -> list[dict]:
    """Write the manifest of all shards that have pairs, remove what is not of it; names what was
    left out. Returns the shards' entries."""
    left_out += sorted(line for entry in entries for line in entry["failed"])
    stop_on_failures(task, cfg, left_out, len(task.rows.clips))
    asides, imported = task.rows.asides + shard_asides(entries), isinstance(source, Path)
    if task.audio is None and not imported:
        check_ends(task, entries, asides)
    read = any(entry["clips"] for entry in entries)
    entries = [entry for entry in entries if entry["pairs"]]
    if not entries:
        raise InputError(f"{task.labels}: {NO_EVENT if read else 'no readable clip is left'}")
    signal = None if imported else to_dict(cfg.signal)
    manifest = {
        "format": FORMAT,
        "split": task.split,
        "queries": cfg.pairs,
        "classes": task.classes,
        "key": config_key_of(signal, entries),
        "signal": signal,  # None: imported from the original program
        "formulas": None if imported else FORMULAS,
        "scores": {"source": "imported NPZ files"} if imported else source.meta(),
        "audio": str(task.audio.resolve()) if task.audio else None,
        "sources": task.sources,
        "home": str(cfg.cache.resolve()),
        "left_out": left_out,
        "fell_back": sum(len(entry["notices"].get(FELL_BACK, [])) for entry in entries),
        "groups": task.groups,
        "versions": {"numpy": np.__version__, "soundfile": soundfile.__version__},
        "shards": entries,
    }
    write_json(partial / "manifest.json", manifest, large=True)
    write_asides(partial / LEFT_OUT, asides, [line.split(": ", 1) for line in left_out])
    wanted = {entry["file"] for entry in entries} | {"manifest.json", CHECKED, LEFT_OUT}
    for name in contents(partial):
        if name not in wanted:
            (partial / name).unlink()
    return entries


def shard_asides(entries: list[dict]) -> list[Aside]:
    """Label rows that did not fit into their clips, of all shards."""
    rows = [row for entry in entries for row in entry.get("asides", [])]
    return [Aside(name, Event(*event), reason) for name, event, reason in rows]


def check_ends(task: Task, entries: list[dict], asides: list[Aside]) -> None:
    """InputError where most clips' labels go on long after their scores: these belong to others.

    With audio this is known of each clip.
    """
    ends = {name: end for entry in entries for name, end, *_ in entry["clips"]}
    late = [
        name
        for name, event, _ in asides
        if name in ends and event.offset > (1 + SHORT_AUDIO) * ends[name]
    ]
    if 2 * len(set(late)) > len(ends):
        name = late[0]
        last = max(event.offset for other, event, _ in asides if other == name)
        raise InputError(
            f"{task.labels}: the labels of {len(set(late))} of {len(ends)} clips go on after the"
            f" end of their scores (first: {name}, scores to {ends[name]:.2f} s, labels to"
            f" {last:.2f} s); are these the scores of these clips?"
        )


def report(
    folder: Path, task: Task, queries: str, entries: list[dict], left_out: list[str], began: float
) -> None:
    """Say what was expected, found and left out; `entries`: the shards' in the manifest."""
    clips = [clip for entry in entries for clip in entry["clips"]]
    pairs = [Pair(*pair) for entry in entries for pair in entry["pairs"]]
    truth = {name: [Event(*event) for event in events] for name, _, events, _ in clips}
    labels = task.rows.clips | truth
    seconds = time.perf_counter() - began
    audio_s = sum(pair.edges[-1] for pair in {pair.filename: pair for pair in pairs}.values())
    say_left_out(left_out, folder / LEFT_OUT)
    say_asides(str(task.labels), task.rows.asides + shard_asides(entries), folder / LEFT_OUT)
    for notice in NOTICES:
        names = [name for entry in entries for name in entry["notices"].get(notice, [])]
        if names:
            print(f"  note: {len(names)} x {notice}: {listed(names)}")
    classes = {name: set(classes_of({name: events})) for name, events in labels.items()}
    present = np.array([pair.event_label in classes[pair.filename] for pair in pairs], bool)
    if queries == "all":
        num_clips, expected = len(clips), len(labels)
        expected_pairs = len(labels) * len(task.classes)
        what = f"; all {len(task.classes)} classes of every clip, {present.sum()} present"
    else:
        num_clips = sum(bool(events) for events in truth.values())
        expected = sum(bool(events) for events in labels.values())
        expected_pairs = sum(map(len, classes.values()))
        what = f"; {len(labels) - expected} clips without events make no pair"
    files = (folder / entry["file"] for entry in entries)
    label = np.concatenate([map_npz(path, check=False)["label"] for path in files])
    frames = np.array([pair.num_frames for pair in pairs])
    on = np.add.reduceat(label, np.cumsum(frames) - frames, dtype=np.int64) / frames
    share = f"{on[present].mean():.1%}" if present.any() else "none"
    print(
        f"{folder.name}: {num_clips} of {expected} clips, {len(pairs)} of {expected_pairs} pairs,"
        f" missing {expected - num_clips} clips and {expected_pairs - len(pairs)} pairs{what}\n"
        f"  a present pair is on for {share} of the time; {seconds:.1f} s,"
        f" {num_clips / seconds:.1f} clips/s, {audio_s / seconds:.0f} x real time -> {folder}"
    )


def corpus_task(cfg: PreprocessConfig, split: str, rows: Labels, classes: list[str]) -> Task:
    """The inputs of a split of a corpus folder."""
    home = cfg.corpus / split
    labels, audio, scores = (home / name for name in ("labels.tsv", "audio", "scores"))
    groups = bank_folds(cfg.corpus, split)
    return Task(split, labels, rows, audio, scores, None, classes, groups)


def ensure_corpus(cfg: PreprocessConfig) -> None:
    """Make the preset's own corpus and its scores where they are missing; no other.

    InputError where the cache is of another one: somebody has forgotten --labels.
    """
    wanted = SPLITS if cfg.split is None else (cfg.split,)
    missing = not any((cfg.corpus / split / "labels.tsv").exists() for split in SPLITS)
    base = SoundscapesConfig.with_preset(cfg.preset)
    if missing and base.out != cfg.corpus:
        cure = f"python soundscapes.py --out {cfg.corpus}"
        raise InputError(f"--corpus {cfg.corpus}: no corpus there; make one: {cure}")
    for split in [] if cfg.replace else known_splits(cfg.cache):
        check_sources(cfg.cache, corpus_task(cfg, split, Labels({}, []), []))
    if missing:
        print(f"no corpus in {cfg.corpus}: making the built-in one (your own data: see --help)")
        corpora.make_corpus(replace(base, workers=cfg.workers))
    if not all((cfg.corpus / split / "scores").is_dir() for split in wanted):
        base = ScorersConfig.with_preset(cfg.preset)
        if base.corpus != cfg.corpus:
            cure = f"python scorers.py --corpus {cfg.corpus}"
            raise InputError(f"--corpus {cfg.corpus}: no scores there; make some: {cure}")
        from scores import crnn  # not above, as in `main`

        crnn.make_scores(replace(base, workers=cfg.workers))


def bank_folds(corpus: Path, split: str) -> dict[str, str]:
    """Bank fold of each clip of a corpus; none where it has no list of clips."""
    listing = corpus / "clips.tsv"
    if not listing.is_file():
        return {}
    rows = records(listing)
    mine = [row for row in rows if row.get("split") == split and row.get("fold")]
    return {row["filename"]: row["fold"] for row in mine}


def tasks_of(cfg: PreprocessConfig, ranks: "Ranks") -> Iterator[Task]:
    """The configured split, or both splits of the corpus."""
    if cfg.labels is not None:
        labels = read_rows(cfg.labels)
        if cfg.audio is not None and not cfg.audio.is_dir():
            raise InputError(f"--audio {cfg.audio}: no such folder")
        # A class may occur in one split only: both are queried for the same ones.
        classes = sorted({*classes_of(labels.clips), *cfg.classes})
        splits = {cfg.split: list(labels.clips)}
        if cfg.split is None:
            say = print if ranks.leads else lambda _: None
            splits = two_splits(labels.clips, cfg.validation_share, cfg.seed, cfg.clips, say)
        for split, names in splits.items():
            some = labels.of(names)
            yield Task(split, cfg.labels, some, cfg.audio, cfg.scores, cfg.import_npz, classes, {})
        return
    ranks.leader_first(lambda: ensure_corpus(cfg))
    homes = {split: cfg.corpus / split for split in SPLITS}
    paths = {split: home / "labels.tsv" for split, home in homes.items()}
    found = {split: read_rows(path) for split, path in paths.items() if path.exists()}
    classes = sorted({*cfg.classes}.union(*(classes_of(labels.clips) for labels in found.values())))
    for split in SPLITS if cfg.split is None else (cfg.split,):
        yield corpus_task(cfg, split, found.get(split) or read_rows(paths[split]), classes)


def main(cfg: PreprocessConfig) -> None:
    """Preprocess every task, with one pool of workers."""
    # Not above: the workers import this file, and torch would take them seconds.
    import torch

    from core.ranks import together

    with together(torch.device("cpu")) as ranks, ExitStack() as started:
        most = cfg.workers or num_workers(None)
        crew = Crew(ranks, cache(lambda: started.enter_context(process_pool(most))))
        for task in tasks_of(cfg, ranks):
            preprocess_split(task, cfg, crew)


if __name__ == "__main__":
    run_script(PreprocessConfig, main)
