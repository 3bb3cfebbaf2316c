"""A cache of the slides' size without their data: real timelines, plausible signals.

Run:    python -m benchmarks.simulate_cache --out cache/slides
        python -m benchmarks.simulate_cache --out cache/many --train-pairs 200 --classes 500
Reads:  DESED label files, where they are given
Writes: <out>/{train,validation}/, as preprocess.py does
Shapes: T frames of a pair

28,592 training and 5,570 validation pairs of 500 frames of 20 ms. Without label files (or where
they hold fewer pairs) the timelines are random, DESED-like. A pair's score is a noisy copy of its
label, its loudness rises where the class sounds; the six signals come from preprocess.py's own
formulas. A process holds one shard of 64 clips at a time, whatever the size. With `--classes` every
clip is asked for all of so many classes; those that are absent have low, plain noise for a score.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.command import parse_first, run_script
from core.settings import Checked, number, to_dict


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(Checked):
    """Write a cache of the slides' size with simulated signals."""

    out: Path = Path("cache/slides-scale")
    """folder to write"""
    train_labels: tuple[Path, ...] = ()
    """label TSVs of training clips (default: random)"""
    validation_labels: tuple[Path, ...] = ()
    """label TSVs of validation clips (default: random)"""
    train_pairs: int = number(28_592, 1)
    """training pairs (slides)"""
    validation_pairs: int = number(5_570, 0)
    """validation pairs (slides); 0: no such cache"""
    classes: int | None = number(None, 10)
    """instead: pairs of all so many classes, those asked for present"""
    frames: int = number(500, 1)
    """frames of a pair (slides)"""
    frame_s: float = number(0.02, above=0)
    """frame length, seconds (slides)"""
    seed: int = number(0, 0)
    """timelines and signals"""
    workers: int | None = number(None, 1)
    """processes (default: all cores)"""


if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(SimulateConfig)

import numpy as np
from scipy.ndimage import gaussian_filter1d

from config import Signal
from core.files import keep_apart, new_folder
from core.processes import num_workers
from core.stored import file_sha256, write_json
from preprocess import CLIPS_PER_SHARD
from scores.corpora import in_parallel
from scores.synthesiser import HABITS
from sed.caches import CACHE, FORMAT, ClipRecord, Pair, config_key_of, write_shard
from sed.labels import read_labels
from sed.signals import VERSION as FORMULAS
from sed.signals import compute_signals, min_max
from sed.timeline import Event, classes_of, frame_edges, label_frames

CLASSES = tuple(HABITS)
STEADY = {name for name, habit in HABITS.items() if habit.full}  # they often fill the clip


def random_events(rng: np.random.Generator, clip_s: float) -> list[Event]:
    """DESED-like: one to three classes, steady ones long, the others short and repeated."""
    events = []
    for name in rng.choice(CLASSES, int(rng.integers(1, 4)), replace=False):
        steady = name in STEADY
        for _ in range(1 if steady else int(rng.integers(1, 4))):
            length = clip_s * (rng.uniform(0.4, 1) if steady else rng.uniform(0.03, 0.3))
            onset = rng.uniform(0, clip_s - length)
            events.append(Event(round(onset, 3), round(onset + length, 3), str(name)))
    return sorted(events)


def timelines(
    labels: tuple[Path, ...], pairs: int, clip_s: float, seed: int
) -> Iterator[tuple[str, list[Event]]]:
    """Clips with events, real ones first, until they hold `pairs` pairs; the last may be cut."""
    rng, left = np.random.default_rng([seed, pairs]), pairs
    given = (
        (f"{i}/{name}", [e._replace(offset=min(e.offset, clip_s)) for e in events])
        for i, path in enumerate(labels)
        for name, events in read_labels(path).items()
    )
    random = ((f"random-{i:05d}.wav", random_events(rng, clip_s)) for i in itertools.count())
    for name, events in itertools.chain(given, random):
        inside = [event for event in events if event.onset < clip_s]
        wanted = classes_of({name: inside})[:left]
        if wanted:
            yield name, [event for event in inside if event.event_label in wanted]
        left -= len(wanted)
        if not left:
            return


def simulate_pair(
    rng: np.random.Generator, label: np.ndarray, frame_s: float, signal: Signal
) -> dict[str, np.ndarray]:
    """Label (T,) -> six signals: a noisy score, blurred and sometimes wrong, and a loudness."""
    frames = len(label)
    noise = gaussian_filter1d(rng.normal(0, 1, frames), 8) * 6
    d_raw = 1 / (1 + np.exp(-(rng.uniform(1, 4) * (label - 0.5) + noise * rng.uniform(0.3, 1))))
    loud = label * rng.uniform(0.2, 1) + np.abs(gaussian_filter1d(rng.normal(0, 1.5, frames), 5))
    return compute_signals(min_max(gaussian_filter1d(loud, 2)), d_raw, frame_s, signal)


def absent_pair(rng: np.random.Generator, frames: int) -> dict[str, np.ndarray]:
    """Six signals (T,) of a class that is not there and that no tag lets through."""
    low = 0.02 * rng.random(frames, dtype=np.float32)  # below `config.Events.tag_limit`
    signals = dict.fromkeys(("rms", "d_raw", "d_adj", "prob"), low)
    return signals | {"t_base": low + np.float32(0.1), "binary": np.zeros_like(low)}


Job = tuple[Path, list[tuple[str, list[Event]]], tuple[int, ...]]  # file, clips, seed of signals


def simulate_shard(job: Job, classes: list[str], cfg: SimulateConfig) -> dict:
    """Write a shard, of present pairs or of every class; its entry in the manifest."""
    path, clips, seed = job
    rng, edges = np.random.default_rng(seed), frame_edges(cfg.frames, cfg.frame_s)
    values, labels, pairs, records = [], [], [], []
    for name, events in clips:
        tag = rng.uniform(0, 0.3, len(classes)).tolist()
        present = classes_of({"": events})
        for event_label in classes if cfg.classes else present:
            labels.append(label_frames(events, event_label, edges))
            if event_label in present:
                values.append(simulate_pair(rng, labels[-1], cfg.frame_s, Signal()))
            else:
                values.append(absent_pair(rng, cfg.frames))
            tag[classes.index(event_label)] = float(values[-1]["d_raw"].max())
            pairs.append(Pair(name, event_label, cfg.frames, cfg.frame_s))
        records.append(ClipRecord(name, float(edges[-1]), events, tag))
    write_shard(path, values, labels)
    entry = {"file": path.name, "sha256": file_sha256(path), "inputs": "simulated"}
    return entry | {"failed": [], "notices": {}, "pairs": pairs, "clips": records}


def simulate_split(split: str, labels: tuple[Path, ...], pairs: int, cfg: SimulateConfig) -> None:
    """Write one split, a shard at a time, and put it in place whole."""
    folder = cfg.out / split
    clips = list(timelines(labels, pairs, cfg.frames * cfg.frame_s, cfg.seed))
    classes = sorted({*CLASSES, *classes_of(dict(clips))})
    classes += [f"absent_{i:04}" for i in range(len(classes), cfg.classes or 0)]
    keep_apart(folder, labels, replaced=True)
    with new_folder(folder, CACHE) as partial_folder:
        jobs = []
        for i, start in enumerate(range(0, len(clips), CLIPS_PER_SHARD)):
            path = partial_folder / f"shard-{i:05d}.npz"
            jobs.append((path, clips[start : start + CLIPS_PER_SHARD], (cfg.seed, pairs, i)))
        work = partial(simulate_shard, classes=classes, cfg=cfg)
        workers = min(num_workers(cfg.workers), len(jobs))
        entries = in_parallel(work, jobs, workers, f"Simulating {split}")
        signal, queries = to_dict(Signal()), "all" if cfg.classes else "present"
        manifest = {"format": FORMAT, "split": split, "queries": queries, "classes": classes}
        manifest |= {"key": config_key_of(signal, entries), "signal": signal, "formulas": FORMULAS}
        manifest |= {"scores": {"source": "simulated"}, "audio": None, "left_out": []}
        manifest |= {"versions": {"numpy": np.__version__}, "shards": entries}
        write_json(partial_folder / "manifest.json", manifest, large=True)
    count = sum(len(entry["pairs"]) for entry in entries)
    print(f"{folder}: {len(clips):,} clips, {count:,} pairs of {cfg.frames} frames")


def main(cfg: SimulateConfig) -> None:
    simulate_split("train", cfg.train_labels, cfg.train_pairs, cfg)
    if cfg.validation_pairs:
        simulate_split("validation", cfg.validation_labels, cfg.validation_pairs, cfg)


if __name__ == "__main__":
    run_script(SimulateConfig, main)
