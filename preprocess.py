"""Audio + scores + labels -> the six signals of every (clip, class) pair -> cache/<split>.

Run:    python preprocess.py                    # built-in corpus, made and scored first if missing
        python preprocess.py --split train --labels L.tsv --audio DIR --scores DIR
        python preprocess.py --split train --labels L.tsv --scores DIR   # no audio: r = 1
        python preprocess.py --split train --labels L.tsv --import-npz DIR
        torchrun --nproc-per-node=2 preprocess.py
        python preprocess.py --pairs all --cache cache/all                  # absent classes too
Reads:  <corpus>/<split>/{labels.tsv, audio/, scores/} or the files named
Writes: <cache>/<split>/manifest.json + shard-*.npz, whole or not at all; a rerun skips the done
Shapes: S samples, T frames of a pair, N frames of all pairs together, P pairs, C clips, K classes
Next:   DQN.py

Formulas: slides, appendix 1; bracketed constants from the original program (see `config.Signal`).
"""

import csv
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from scipy.ndimage import gaussian_filter1d, median_filter
from tqdm import tqdm

import scorers
import soundscapes
from config import (
    InputError,
    PreprocessConfig,
    ScorersConfig,
    Signal,
    SoundscapesConfig,
    num_workers,
    process_pool,
    run_script,
    to_dict,
    whole,
    with_preset,
    write_text,
)
from ranks import Ranks, together
from timeline import SPLITS, Event, classes_of, frame_edges, label_frames, read_labels

SIGNALS = ("rms", "d_raw", "d_adj", "prob", "t_base", "binary")
EPS = 1e-8  # spec: mm(x) = (x - min) / (max - min + eps)
CLIPS_PER_SHARD = 64  # a shard is what one process holds in memory and what a rerun can skip
FORMAT = 2

# ---------------------------------------------------------------------------- the formulas


def min_max(x: np.ndarray) -> np.ndarray:
    """Scale to 0..1 over the frames of one pair; a constant becomes 0."""
    return (x - x.min()) / (x.max() - x.min() + EPS)


def clip_percentile(x: np.ndarray, percentile: float) -> np.ndarray:
    """Cut values above the percentile of x."""
    return np.minimum(x, np.percentile(x, percentile))


def size_in_frames(duration_s: float, frame_s: float) -> int:
    """Filter length in frames of the grid at hand; 0.1 s is 5 frames of 20 ms."""
    return max(1, round(duration_s / frame_s))


def loudness(wav: np.ndarray, sample_rate: int, signal: Signal) -> np.ndarray:
    """(S,) samples -> (R,) normalised log-RMS: mm(clip95(log(1 + RMS))), 0..1, at the RMS hop."""
    import librosa  # slow to import; only needed where there is audio

    frame = max(1, round(signal.rms_window_s * sample_rate))
    hop = max(1, round(signal.rms_hop_s * sample_rate))
    rms = librosa.feature.rms(y=wav, frame_length=frame, hop_length=hop, center=True)[0]
    return min_max(clip_percentile(np.log1p(rms.astype(np.float64)), signal.clip_percentile))


def interpolate(x: np.ndarray, num_frames: int) -> np.ndarray:
    """Linear interpolation of (R,) to (T,), first on first and last on last."""
    return np.interp(np.linspace(0, 1, num_frames), np.linspace(0, 1, len(x)), x)


def adjust_score(d_raw: np.ndarray, frame_s: float, signal: Signal) -> np.ndarray:
    """Raw score (T,) -> D_adj (T,): twice median filtered, sharpened, mixed, cut, scaled."""
    smooth = median_filter(d_raw, size_in_frames(signal.score_median_s, frame_s))
    median = median_filter(smooth, size_in_frames(signal.score_median2_s, frame_s))
    power = smooth**signal.score_power
    mix = signal.score_mix * min_max(median) + (1 - signal.score_mix) * min_max(power)
    return min_max(clip_percentile(mix, signal.clip_percentile))


def fuse(rms: np.ndarray, d_adj: np.ndarray, frame_s: float, signal: Signal) -> np.ndarray:
    """Loudness and score (T,) -> probability (T,)."""
    # The original adds eps to avoid dividing by zero.
    harmonic = 2 / (1 / (rms + EPS) + 1 / (d_adj + EPS))
    fused = rms * d_adj if signal.fusion == "product" else harmonic
    scaled = min_max(clip_percentile(fused, signal.clip_percentile))
    return gaussian_filter1d(scaled, signal.prob_sigma_s / frame_s)


def dynamic_threshold(
    rms: np.ndarray, d_adj: np.ndarray, frame_s: float, signal: Signal
) -> np.ndarray:
    """Base threshold (T,): background loudness where the class is not.

    The slides' factor alpha = 0.7 is left out: the min-max that follows cancels it.
    """
    sigma = signal.background_sigma_s / frame_s
    background = median_filter(rms, size_in_frames(signal.background_s, frame_s))
    anti_mask = gaussian_filter1d((1 - d_adj) ** signal.beta, sigma)
    return min_max(gaussian_filter1d(background, sigma) * anti_mask)


def compute_signals(
    rms: np.ndarray, d_raw: np.ndarray, frame_s: float, signal: Signal
) -> dict[str, np.ndarray]:
    """Loudness and raw score (T,) of one pair -> the six signals, each (T,) float32.

    A score with less contrast than `flat_range` falls back on loudness alone (original program).
    `binary` is decided on the stored float32 values, so that every reader repeats it exactly.
    """
    rms, d_raw = rms.astype(np.float64), d_raw.astype(np.float64)
    d_adj = adjust_score(d_raw, frame_s, signal)
    if signal.flat_fallback and d_raw.max() - d_raw.min() < signal.flat_range:
        prob = rms
        threshold = min(np.percentile(rms, 10), rms.mean() - rms.std())
        t_base = np.full_like(rms, np.clip(threshold, 0, 1))
    else:
        prob = fuse(rms, d_adj, frame_s, signal)
        t_base = dynamic_threshold(rms, d_adj, frame_s, signal)
    values = {"rms": rms, "d_raw": d_raw, "d_adj": d_adj, "prob": prob, "t_base": t_base}
    values = {name: array.astype(np.float32) for name, array in values.items()}
    values["binary"] = (values["prob"] > values["t_base"]).astype(np.float32)
    return values


# ---------------------------------------------------------------------------- cache format


class Pair(NamedTuple):
    """One (clip, class) query of a cache."""

    filename: str
    event_label: str
    num_frames: int
    frame_s: float

    @property
    def edges(self) -> np.ndarray:
        """(T + 1,) frame edges in seconds."""
        return frame_edges(self.num_frames, self.frame_s)


class ClipRecord(NamedTuple):
    """What a cache knows of a clip beside its pairs."""

    filename: str
    duration_s: float  # of the audio; without audio, up to the last frame or label
    events: list[Event]  # as in the label file
    tag: list[float] | None  # (K,) clip-level score of every class; None: imported arrays


@dataclass(frozen=True)
class Cache:
    """All pairs of a split. `signals[name]` and `label` are (N,), `offsets` (P + 1,)."""

    folder: Path
    manifest: dict[str, Any]
    pairs: list[Pair]
    clips: list[ClipRecord]
    signals: dict[str, np.ndarray]
    label: np.ndarray
    offsets: np.ndarray

    @property
    def queries(self) -> str:
        """`present`: a pair for each class of a clip's labels; `all`: for each of `classes`."""
        return self.manifest["queries"]

    @property
    def classes(self) -> list[str]:
        """(K,) sorted names of the classes that the clips were queried for."""
        return self.manifest["classes"]

    @property
    def key(self) -> str:
        """Hash of the cached numbers: equal keys, equal signals."""
        return self.manifest["key"]

    @property
    def groups(self) -> dict[str, str]:
        """Group of each clip: clips of different groups share no recording (bank folds of a
        corpus); empty where nobody knows."""
        return self.manifest.get("groups", {})

    @property
    def present(self) -> np.ndarray:
        """(P,) bool: the pair's class occurs in the labels of its clip."""
        truth = {(clip.filename, event.event_label) for clip in self.clips for event in clip.events}
        return np.array([(pair.filename, pair.event_label) in truth for pair in self.pairs], bool)

    @property
    def facts(self) -> dict[str, Any]:
        """What a policy trained here must know of its data, to be applied to other data."""
        seconds = [pair.num_frames * pair.frame_s for pair in self.pairs]
        imported = self.manifest["signal"] is None  # then nobody knows whether there was audio
        return {
            "clip_s": float(np.median(seconds)),
            "longest_s": float(max(seconds)),
            "frame_s": float(np.median([pair.frame_s for pair in self.pairs])),
            "audio": None if imported else self.manifest["audio"] is not None,
        }

    @property
    def truth(self) -> dict[str, list[Event]]:
        """Events of each clip, as in the label file."""
        return {clip.filename: clip.events for clip in self.clips}

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each clip."""
        return {clip.filename: clip.duration_s for clip in self.clips}

    @property
    def frames_of_pair(self) -> np.ndarray:
        """(N,) index of the pair that each frame belongs to."""
        return np.repeat(np.arange(len(self.pairs)), np.diff(self.offsets))

    def choose(self, pairs: np.ndarray) -> "Cache":
        """The cache of some pairs, (P,) bool, and of the clips that they belong to.

        Clips without a pair (no events, present classes only) leave with the pairs.
        """
        frames = pairs[self.frames_of_pair]
        names = {pair.filename for pair, wanted in zip(self.pairs, pairs, strict=True) if wanted}
        text = self.key + np.packbits(pairs).tobytes().hex()
        lengths = np.diff(self.offsets)[pairs]
        return replace(
            self,
            manifest=self.manifest | {"key": hashlib.sha256(text.encode()).hexdigest()[:16]},
            pairs=[pair for pair, wanted in zip(self.pairs, pairs, strict=True) if wanted],
            clips=[clip for clip in self.clips if clip.filename in names],
            signals={name: array[frames] for name, array in self.signals.items()},
            label=self.label[frames],
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        )

    def subset(self, filenames: Iterable[str]) -> "Cache":
        """The cache of some clips, e.g. of one fold."""
        wanted = set(filenames)
        return self.choose(np.array([pair.filename in wanted for pair in self.pairs], bool))

    def present_only(self) -> "Cache":
        """The present pairs of a cache of all pairs, as `--pairs present` would have made them."""
        if self.queries == "present":
            return self
        cache = self.choose(self.present)
        return replace(cache, manifest=cache.manifest | {"queries": "present"})

    def find(self, filename: str, event_label: str) -> int:
        """Index of a pair; InputError where the cache has none."""
        for index, pair in enumerate(self.pairs):
            if (pair.filename, pair.event_label) == (filename, event_label):
                return index
        raise InputError(f"{self.folder}: no pair {filename} / {event_label}")

    def of_pair(self, index: int) -> dict[str, np.ndarray]:
        """Signals and label of one pair, each (T,)."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return {name: self.signals[name][span] for name in SIGNALS} | {"label": self.label[span]}


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_shard(path: Path, values: list[dict[str, np.ndarray]], labels: list[np.ndarray]) -> None:
    """Write the pairs of a shard: flat float32 signals, uint8 decisions and labels, offsets."""
    lengths = [len(label) for label in labels]
    arrays = {name: np.concatenate([pair[name] for pair in values]) for name in SIGNALS}
    arrays["binary"] = arrays["binary"].astype(np.uint8)
    arrays["label"] = np.concatenate(labels).astype(np.uint8)
    arrays["offsets"] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False))


def load_cache(folder: Path) -> Cache:
    """Read cache/<split>, checksums verified. InputError says what is missing or damaged."""
    manifest_path = folder / "manifest.json"
    cure = f"run: python preprocess.py --cache {folder.parent} --split {folder.name}"
    if not manifest_path.exists():
        raise InputError(f"no manifest in {folder}; {cure}")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise InputError(f"{manifest_path}: format {manifest['format']}, not {FORMAT}; {cure}")
        shards = [(folder / shard["file"], shard["sha256"]) for shard in manifest["shards"]]
        pairs = [Pair(*row) for shard in manifest["shards"] for row in shard["pairs"]]
        clips = [
            ClipRecord(name, duration_s, [Event(*event) for event in events], tag)
            for shard in manifest["shards"]
            for name, duration_s, events, tag in shard["clips"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest_path}: damaged ({error!r}); {cure}") from None
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*SIGNALS, "label")}
    for path, checksum in shards:
        if not path.exists() or _sha256(path) != checksum:
            what = "does not match its checksum" if path.exists() else "is missing"
            raise InputError(f"{path} {what}; {cure} (it rebuilds that shard only)")
        with np.load(path) as arrays:
            for name in parts:
                parts[name].append(arrays[name])
    signals = {name: np.concatenate(parts[name]).astype(np.float32) for name in SIGNALS}
    label = np.concatenate(parts["label"]).astype(bool)
    offsets = np.concatenate(([0], np.cumsum([pair.num_frames for pair in pairs]))).astype(np.int64)
    if any(len(array) != offsets[-1] for array in (*signals.values(), label)):
        raise InputError(f"{manifest_path}: frame counts do not match the shards; {cure}")
    return Cache(folder, manifest, pairs, clips, signals, label, offsets)


# ---------------------------------------------------------------------------- one shard


class Clip(NamedTuple):
    """A clip to process: file name in the labels, events, audio file (None: there is none)."""

    filename: str
    events: list[Event]
    audio: Path | None


class Outcome(NamedTuple):
    """What became of a shard: its pairs and clips, what failed (name: reason), clips behind each
    notice."""

    pairs: list[Pair]
    clips: list[ClipRecord]
    failed: list[str]
    notices: dict[str, list[str]]


class AudioFile:
    """An open audio file, read from front to back. ValueError says what is wrong with it."""

    def __init__(self, path: Path) -> None:
        try:
            self.stream = soundfile.SoundFile(path)
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise ValueError(f"cannot be read ({error})") from None
        self.num_samples, self.sample_rate = self.stream.frames, self.stream.samplerate
        if self.num_samples == 0:
            raise ValueError("no samples")
        if self.num_samples >= 2**62:  # how libsndfile says that it does not know
            raise ValueError("its header does not say how long it is; convert it once")

    def read(self, num_samples: int) -> np.ndarray:
        """The next samples, mono float32 (S,); fewer where a damaged file ends early."""
        try:
            wav = self.stream.read(num_samples, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot be read ({error})") from None
        if not np.isfinite(wav).all():
            raise ValueError("samples are not finite")
        return wav.mean(axis=1)

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Audio file -> mono float32 (S,) and sample rate. ValueError says what is wrong with it."""
    with AudioFile(path) as audio:
        return audio.read(audio.num_samples), audio.sample_rate


SHORT_AUDIO = 0.1  # share of the scores' length that may be missing at the end of the audio
PADDED = "scores run past the end of the audio (silence assumed)"
SILENT = "audio is all zero"
CUT = "events reach past the last frame (cut there)"
TOO_SHORT = "events cover no frame centre, so the pair is off everywhere"
DISAGREE = "imported decisions differ from prob > threshold in some frames"
NO_AUDIO = "no audio (--audio not given): the normalised loudness is 1 everywhere"
NOTICES = (PADDED, SILENT, CUT, TOO_SHORT, DISAGREE, NO_AUDIO)


def fit_length(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut or zero-pad (S,) so that audio and scores span the same time."""
    return np.pad(wav[:num_samples], (0, max(0, num_samples - len(wav))))


def loudness_on_grid(
    wav: np.ndarray, sample_rate: int, duration_s: float, num_frames: int, signal: Signal
) -> np.ndarray:
    """Normalised loudness (T,) of the samples (S,) over the time that T frames of scores span."""
    wav = fit_length(wav, round(duration_s * sample_rate))
    return interpolate(loudness(wav, sample_rate, signal), num_frames)


def check_duration(
    filename: str, duration: float, scores: scorers.ClipScores, notices: dict[str, list[str]]
) -> None:
    """ValueError where the scores go on long after the end of the audio, `duration` seconds."""
    end = float(scores.edges[-1])
    # A truncated WAV or OGG reads as a short one, so a large gap is an error, not a notice.
    if end > duration + max(scores.frame_s, SHORT_AUDIO * end):
        raise ValueError(f"audio ends at {duration:.2f} s but its scores go to {end:.2f} s")
    if end > duration + scores.frame_s:
        notices[PADDED].append(filename)


def clip_tag(scores: scorers.ClipScores, signal: Signal) -> np.ndarray:
    """(K,) clip-level score of each class: the source's own, or a robust maximum of its frames.

    The first median filter of the score (k1) takes away a peak that is too short to be a sound.
    """
    if scores.tag is not None:
        return scores.tag
    size = (1, size_in_frames(signal.score_median_s, scores.frame_s))
    return median_filter(scores.values, size).max(axis=1)


def clip_loudness(
    clip: Clip, scores: scorers.ClipScores, signal: Signal, notices: dict[str, list[str]]
) -> tuple[np.ndarray, float]:
    """Normalised loudness (T,) on the scores' grid and the clip's duration in seconds.

    Without audio the loudness is 1 everywhere, which leaves the product with the score unchanged.
    """
    end, num_frames = float(scores.edges[-1]), len(scores.edges) - 1
    if clip.audio is None:
        notices[NO_AUDIO].append(clip.filename)
        return np.ones(num_frames), max([end, *(event.offset for event in clip.events)])
    wav, sample_rate = read_audio(clip.audio)
    duration = len(wav) / sample_rate
    check_duration(clip.filename, duration, scores, notices)
    if not wav.any():
        notices[SILENT].append(clip.filename)
    return loudness_on_grid(wav, sample_rate, end, num_frames, signal), duration


Row = tuple[Pair, dict[str, np.ndarray], np.ndarray]  # a pair, its signals, its label (T,)


def clip_signals(
    clip: Clip,
    source: scorers.ScoreSource,
    queries: str,
    signal: Signal,
    notices: dict[str, list[str]],
) -> tuple[list[Row], ClipRecord]:
    """Every queried pair of a clip and what else is known of it; ValueError on bad input."""
    scores = source.scores(clip.filename)
    edges, end = scores.edges, float(scores.edges[-1])
    num_frames, frame_s = len(edges) - 1, float(scores.frame_s)
    rms, duration = clip_loudness(clip, scores, signal, notices)
    # Score grids end up to a frame early (DCASE: 9.984 of 10.0 s); more means the wrong files.
    last_label = min(max((event.offset for event in clip.events), default=0.0), duration)
    if last_label > end + frame_s + 1e-6:
        raise ValueError(f"scores end at {end:.2f} s but labels go to {last_label:.2f} s")
    if any(event.offset > end + 1e-6 for event in clip.events):
        notices[CUT].append(clip.filename)
    present = classes_of({clip.filename: clip.events})
    rows = []
    for event_label in source.classes if queries == "all" else present:
        d_raw = scores.values[source.classes.index(event_label)]
        label = label_frames(clip.events, event_label, edges)
        if event_label in present and not label.any():
            notices[TOO_SHORT].append(f"{clip.filename} / {event_label}")
        values = compute_signals(rms, d_raw, frame_s, signal)
        rows.append((Pair(clip.filename, event_label, num_frames, frame_s), values, label))
    tag = [float(value) for value in clip_tag(scores, signal)]
    return rows, ClipRecord(clip.filename, duration, clip.events, tag)


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
    return f"{Path(filename).stem}_{event_label}.npz"


def imported_signals(
    folder: Path, filename: str, event_label: str, frame_s: float
) -> tuple[Pair, dict[str, np.ndarray]]:
    """One per-pair NPZ of the original program -> its six signals. ValueError if it is damaged."""
    name = npz_name(filename, event_label)
    try:
        with np.load(folder / name) as arrays:
            values = {
                ours: np.asarray(arrays[theirs], dtype=np.float32).reshape(-1)
                for ours, theirs in ORIGINAL_NAMES.items()
            }
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
    except Exception as error:  # zipfile and zlib have their own error classes for damaged files
        raise ValueError(f"{name}: cannot be read ({type(error).__name__}: {error})") from None
    lengths = {ours: len(array) for ours, array in values.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{name}: arrays of different lengths {lengths}")
    if not all(np.isfinite(array).all() for array in values.values()):
        raise ValueError(f"{name}: values are not finite")
    return Pair(filename, event_label, lengths["rms"], frame_s), values


class Job(NamedTuple):
    """What a process needs to make one shard."""

    path: Path
    clips: list[Clip]
    source: scorers.ScoreSource | Path  # scores, or the folder of NPZ files to import
    queries: str  # present or all
    signal: Signal
    import_frame_s: float


def imported_clip(
    clip: Clip, folder: Path, frame_s: float, notices: dict[str, list[str]]
) -> tuple[list[Row], ClipRecord]:
    """Every present pair of a clip of the original program; ValueError on a damaged file."""
    rows, end = [], 0.0
    for event_label in classes_of({clip.filename: clip.events}):
        pair, values = imported_signals(folder, clip.filename, event_label, frame_s)
        rows.append((pair, values, label_frames(clip.events, event_label, pair.edges)))
        end = max(end, float(pair.edges[-1]))
        if ((values["prob"] > values["t_base"]) != (values["binary"] > 0.5)).any():
            notices[DISAGREE].append(npz_name(clip.filename, event_label))
    return rows, ClipRecord(clip.filename, end, clip.events, None)


def make_shard(job: Job) -> Outcome:
    """Compute and write one shard. Clips that fail are named, the others are written."""
    rows: list[Row] = []
    clips: list[ClipRecord] = []
    failed: list[str] = []
    notices: dict[str, list[str]] = {name: [] for name in NOTICES}
    for clip in job.clips:
        try:
            if isinstance(job.source, Path):
                found, record = imported_clip(clip, job.source, job.import_frame_s, notices)
            else:
                found, record = clip_signals(clip, job.source, job.queries, job.signal, notices)
            rows += found  # a clip whole or not at all
            clips.append(record)
        except (ValueError, InputError) as error:
            failed.append(f"{clip.filename}: {error}")
    if rows:
        write_shard(job.path, [row[1] for row in rows], [row[2] for row in rows])
    return Outcome([row[0] for row in rows], clips, failed, notices)


# ---------------------------------------------------------------------------- one split


class Task(NamedTuple):
    """Where a split's inputs are."""

    split: str
    labels: Path
    audio: Path | None
    scores: Path | None
    import_npz: Path | None
    classes: list[str]
    groups: dict[str, str]  # see Cache.groups


def listed(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def find_inputs(task: Task, cfg: PreprocessConfig) -> tuple[list[Clip], Any, list[str]]:
    """Labels -> clips with their inputs, the score source, and `name: reason` of those left out.

    Everything that can be known without decoding is checked here, before anything is written.
    """
    clips = read_labels(task.labels)
    ready, missing = [], []
    queried = {name: events for name, events in clips.items() if events or cfg.pairs == "all"}
    if task.import_npz is not None:
        if not task.import_npz.is_dir():
            raise InputError(f"--import-npz {task.import_npz}: no such folder")
        source: Any = task.import_npz
        for name, events in queried.items():
            wanted = [npz_name(name, label) for label in classes_of({name: events})]
            absent = [file for file in wanted if not (source / file).exists()]
            if absent:
                missing.append(f"{name}: no {listed(absent)} in {source}")
            else:
                ready.append(Clip(name, events, None))
    else:
        source = scorers.open_scores(task.scores, task.classes, cfg.rename)
        unscored = set(source.missing(list(queried)))
        for name, events in queried.items():
            path = task.audio / name if task.audio else None
            if name in unscored:
                missing.append(f"{name}: no scores in {task.scores}")
            elif path is not None and not path.is_file():
                missing.append(f"{name}: no audio in {task.audio}")
            else:
                try:
                    if path is not None:
                        soundfile.info(path)
                    ready.append(Clip(name, events, path))
                except (OSError, RuntimeError) as error:
                    missing.append(f"{name}: cannot be read ({error})")
    stop_on_failures(task, cfg, missing, len(clips))
    return ready, source, missing


def stop_on_failures(task: Task, cfg: PreprocessConfig, failed: list[str], total: int) -> None:
    """Raise InputError naming missing or damaged clips, unless they may be left out."""
    if failed and not cfg.allow_missing:
        what = f"{len(failed)} of {total} clips in {task.labels} are missing or damaged"
        cure = "--allow-missing leaves them out and lists them"
        raise InputError(f"{what}: {listed(failed)}. {cure}")


def fingerprint(job: Job) -> str:
    """Hash of everything a shard is made from: names, labels, file sizes and times, formulas."""
    parts: list[Any] = [FORMAT, to_dict(job.signal), job.import_frame_s, job.queries]
    if not isinstance(job.source, Path):
        parts.append(job.source.classes)
    for clip in job.clips:
        if isinstance(job.source, Path):
            files = [job.source / npz_name(clip.filename, e.event_label) for e in clip.events]
        else:
            files = [clip.audio] * bool(clip.audio)
            parts.append(job.source.identity(clip.filename))
        stats = [(str(file.name), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        parts.append([clip.filename, clip.events, stats])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def reuse_shard(
    folder: Path, known: dict[str, dict], file: str, inputs: str, partial: Path
) -> bool:
    """Take a shard over from an earlier run if it is whole, of the same inputs, unchanged."""
    entry, path = known.get(file), folder / file
    if entry is None or entry["inputs"] != inputs or entry["failed"] or not path.exists():
        return False
    if _sha256(path) != entry["sha256"]:
        print(f"{path} does not match its checksum: rebuilt")
        return False
    if folder != partial:
        shutil.copy2(path, partial / file)
    return True


def known_shards(path: Path) -> dict[str, dict]:
    """Shards that an earlier manifest (finished or not) vouches for, by file name."""
    try:
        return {shard["file"]: shard for shard in json.loads(path.read_text())["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def made_shards(todo: list[tuple[Job, str]], workers: int) -> Iterator[tuple[Job, str, Outcome]]:
    """Shards as they are finished; one worker stays in this process and saves its start."""
    if workers == 1:
        yield from ((job, inputs, make_shard(job)) for job, inputs in todo)
        return
    with process_pool(workers) as pool:
        futures = {pool.submit(make_shard, job): (job, inputs) for job, inputs in todo}
        for future in as_completed(futures):
            yield *futures[future], future.result()


def run_jobs(
    jobs: list[tuple[Job, str]], folder: Path, partial: Path, cfg: PreprocessConfig, ranks: Ranks
) -> tuple[list[dict], int]:
    """Make or take over every shard. Returns manifest entries and how many were taken over.

    A shard with failed clips is written but never taken over: the next run tries them again.
    """
    old, begun = known_shards(folder / "manifest.json"), {}
    for path in partial.glob("manifest*.json"):  # one for each process of a run that was stopped
        begun |= known_shards(path)
    done: dict[str, dict] = {}
    todo = []
    for job, inputs in jobs:
        file = job.path.name
        for known, home in ((begun, partial), (old, folder)):
            if reuse_shard(home, known, file, inputs, partial):
                done[file] = known[file]
                break
        else:
            todo.append((job, inputs))
    reused = len(done)
    bar = tqdm(
        total=sum(len(job.clips) for job, _ in jobs),
        desc="Signals",
        unit="clip",
        disable=not ranks.leads,
    )
    bar.update(bar.total - sum(len(job.clips) for job, _ in todo))
    workers = min(num_workers(cfg.workers), len(todo)) or 1
    with bar:
        for job, inputs, outcome in made_shards(todo, workers):
            bar.update(len(job.clips))
            done[job.path.name] = {
                "file": job.path.name,
                "sha256": _sha256(job.path) if outcome.pairs else "",
                "inputs": inputs,
                "failed": outcome.failed,
                "notices": outcome.notices,
                "pairs": outcome.pairs,
                "clips": outcome.clips,
            }
            name = f"manifest-{ranks.rank}.json"
            write_json(partial / name, {"shards": list(done.values())})
    return [done[file] for file in sorted(done)], reused


def preprocess_split(task: Task, cfg: PreprocessConfig, ranks: Ranks) -> None:
    """Compute one split into a hidden folder, then put it in place whole.

    The shards are dealt out over the processes; the first one finishes the split.
    """
    began = time.perf_counter()
    clips, source, left_out = find_inputs(task, cfg)
    if not clips:
        raise InputError(f"{task.labels}: no clip is left that has all its inputs")
    folder = cfg.cache / task.split
    partial = cfg.cache / f".{task.split}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    jobs = []
    starts = list(enumerate(range(0, len(clips), CLIPS_PER_SHARD)))
    for i, start in starts[ranks.rank :: ranks.size]:
        some = clips[start : start + CLIPS_PER_SHARD]
        path = partial / f"shard-{i:05d}.npz"
        job = Job(path, some, source, cfg.pairs, cfg.signal, cfg.import_frame_s)
        jobs.append((job, fingerprint(job)))
    parts = ranks.gather(run_jobs(jobs, folder, partial, cfg, ranks))
    entries = sorted((entry for some, _ in parts for entry in some), key=itemgetter("file"))
    reused = sum(count for _, count in parts)

    def finish() -> None:
        finish_split(task, cfg, partial, folder, entries, source, left_out)
        report(folder, read_labels(task.labels), left_out, began)
        print(f"  shards taken over from an earlier run: {reused} of {len(starts)}")

    ranks.leader_first(finish)


def finish_split(
    task: Task,
    cfg: PreprocessConfig,
    partial: Path,
    folder: Path,
    entries: list[dict],
    source: Any,
    left_out: list[str],
) -> None:
    """Write the manifest of all shards and swap the finished folder in; names what was left out."""
    left_out += sorted(line for entry in entries for line in entry["failed"])
    stop_on_failures(task, cfg, left_out, len(read_labels(task.labels)))
    entries = [entry for entry in entries if entry["pairs"]]
    if not entries:
        raise InputError(f"{task.labels}: no readable clip is left")
    imported = isinstance(source, Path)
    signal = None if imported else to_dict(cfg.signal)
    manifest = {
        "format": FORMAT,
        "split": task.split,
        "queries": cfg.pairs,
        "classes": task.classes,
        "key": config_key_of(signal, entries),
        "signal": signal,  # None: imported from the original program
        "scores": {"source": "imported NPZ files"} if imported else source.meta(),
        "audio": str(task.audio.resolve()) if task.audio else None,
        "left_out": left_out,
        "groups": task.groups,
        "versions": {"numpy": np.__version__, "soundfile": soundfile.__version__},
        "shards": entries,
    }
    write_json(partial / "manifest.json", manifest)
    wanted = {entry["file"] for entry in entries} | {"manifest.json"}
    for path in partial.iterdir():
        if path.name not in wanted:
            path.unlink()
    old = cfg.cache / f".{task.split}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def config_key_of(signal: dict | None, entries: list[dict]) -> str:
    """Hash of the formulas, of every shard's bytes, of the clips' labels and tags."""
    facts = [[entry["sha256"], entry["clips"]] for entry in entries]
    text = json.dumps([signal, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def report(folder: Path, labels: dict[str, list[Event]], left_out: list[str], began: float) -> None:
    """Say what was expected, found and left out."""
    cache = load_cache(folder)
    num_clips = len(cache.clips)
    seconds = time.perf_counter() - began
    audio_s = sum({pair.filename: pair.edges[-1] for pair in cache.pairs}.values())
    for line in left_out:
        print(f"  left out: {line}")
    for notice in NOTICES:
        shards = cache.manifest["shards"]
        names = [name for shard in shards for name in shard["notices"].get(notice, [])]
        if names:
            print(f"  note: {len(names)} x {notice}: {listed(names)}")
    present = cache.present
    if cache.queries == "all":
        expected, expected_pairs = len(labels), len(labels) * len(cache.classes)
        what = f"; all {len(cache.classes)} classes of every clip, {present.sum()} present"
    else:
        expected = sum(bool(events) for events in labels.values())
        expected_pairs = sum(len(classes_of({name: events})) for name, events in labels.items())
        what = f"; {len(labels) - expected} clips without events make no pair"
    on = np.add.reduceat(cache.label, cache.offsets[:-1]) / np.diff(cache.offsets)
    share = f"{on[present].mean():.1%}" if present.any() else "none"
    print(
        f"{folder.name}: {num_clips} of {expected} clips, {len(cache.pairs)} of {expected_pairs}"
        f" pairs, missing {expected - num_clips} clips and {expected_pairs - len(cache.pairs)}"
        f" pairs{what}\n"
        f"  a present pair is on for {share} of the time; {seconds:.1f} s,"
        f" {num_clips / seconds:.1f} clips/s, {audio_s / seconds:.0f} x real time -> {folder}"
    )


def ensure_corpus(cfg: PreprocessConfig) -> None:
    """Make the preset's own corpus and its scores where they are missing; no other."""
    wanted = SPLITS if cfg.split is None else (cfg.split,)
    if not any((cfg.corpus / split / "labels.tsv").exists() for split in SPLITS):
        base = with_preset(SoundscapesConfig, cfg.preset)
        if base.out != cfg.corpus:
            cure = f"python soundscapes.py --out {cfg.corpus}"
            raise InputError(f"--corpus {cfg.corpus}: no corpus there; make one: {cure}")
        print(f"no corpus in {cfg.corpus}: making the built-in one (your own data: see --help)")
        soundscapes.main(replace(base, workers=cfg.workers))
    if not all((cfg.corpus / split / "scores").is_dir() for split in wanted):
        base = with_preset(ScorersConfig, cfg.preset)
        if base.corpus != cfg.corpus:
            cure = f"python scorers.py --corpus {cfg.corpus}"
            raise InputError(f"--corpus {cfg.corpus}: no scores there; make some: {cure}")
        scorers.main(replace(base, workers=cfg.workers))


def bank_folds(corpus: Path, split: str) -> dict[str, str]:
    """Bank fold of each clip of a corpus; none where it has no list of clips."""
    listing = corpus / "clips.tsv"
    if not listing.is_file():
        return {}
    with open(listing, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t")
        mine = [row for row in rows if row.get("split") == split]
        return {row["filename"]: row["fold"] for row in mine if row.get("fold")}


def main(cfg: PreprocessConfig) -> None:
    """Preprocess the configured split, or both splits of the corpus."""
    with together(torch.device("cpu")) as ranks:
        preprocess(cfg, ranks)


def preprocess(cfg: PreprocessConfig, ranks: Ranks) -> None:
    """`main` as one of several processes."""
    if cfg.labels is not None:
        classes = sorted({*classes_of(read_labels(cfg.labels)), *cfg.classes})
        task = Task(cfg.split, cfg.labels, cfg.audio, cfg.scores, cfg.import_npz, classes, {})
        if task.audio is not None and not task.audio.is_dir():
            raise InputError(f"--audio {task.audio}: no such folder")
        preprocess_split(task, cfg, ranks)
        return
    ranks.leader_first(lambda: ensure_corpus(cfg))
    # A class may occur in one split only: both are queried for the same ones.
    homes = {split: cfg.corpus / split for split in SPLITS}
    files = [home / "labels.tsv" for home in homes.values()]
    labels = [read_labels(path) for path in files if path.exists()]
    classes = sorted({*cfg.classes}.union(*map(classes_of, labels)))
    for split in SPLITS if cfg.split is None else (cfg.split,):
        labels_tsv, audio, scores = (
            homes[split] / name for name in ("labels.tsv", "audio", "scores")
        )
        folds = bank_folds(cfg.corpus, split)
        preprocess_split(Task(split, labels_tsv, audio, scores, None, classes, folds), cfg, ranks)


if __name__ == "__main__":
    run_script(PreprocessConfig, main)
