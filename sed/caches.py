"""The cache: signals, labels and pairs of a split; its format, written and read.

Reads:  <cache>/<split>/manifest.json, shard-*.npz
Shapes: P pairs, N frames of all pairs

Of a cache of present pairs the arrays are resident, but for a job of several processes on one
machine. One of all pairs may have hundreds for a clip, most of them of absent classes: there, and
in such a job, a signal stays on disk until all of it is asked for, and `Cache.one` maps single
pairs, so that who reads a clip after the other holds one shard; `Cache.parts` are for who counts.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from core.errors import InputError
from core.files import Kind, whole
from core.names import isolated
from core.processes import started_together
from core.stored import (
    Each,
    check_form,
    file_sha256,
    is_count,
    is_number,
    is_share,
    is_text,
    map_npz,
    maybe,
    misfit,
    read_json,
    read_npz,
    regular,
)
from sed.signals import SIGNALS
from sed.signals import VERSION as FORMULAS
from sed.timeline import Event, frame_edges, usual_least

FORMAT = 2
CHECKED = "scores.json"  # which score files were held against their own checksums
LEFT_OUT = "left_out.tsv"  # clips that were left out; label rows that were cut or left out
CACHE = Kind(
    "cache",
    ("manifest.json", "manifest-*.json", CHECKED, LEFT_OUT, f"shard-{5 * '[0-9]'}.*"),
    (("manifest.json", "format"), ("manifest.json", "shards")),
)
SLACK = 1e-6  # by which a filter may leave 0..1: rounding of float32
LONGEST_FRAME_S = 3600.0
LARGE = 2_000_000  # frames of a shard, 25 bytes each
PART_FRAMES, PART_PAIRS = 1_000_000, 10_000  # most of what is counted or decided at once
MOST_MANIFEST = 1 << 31  # bytes; a million clips are a fifth of it


class Pair(NamedTuple):
    """One (clip, class) query of a cache."""

    filename: str
    event_label: str
    num_frames: int
    frame_s: float
    start_s: float = 0.0  # where the first frame would begin, were it as long as the others

    @property
    def edges(self) -> np.ndarray:
        """(T + 1,) frame edges in seconds."""
        return frame_edges(self.num_frames, self.frame_s, self.start_s)


class ClipRecord(NamedTuple):
    """What a cache knows of a clip beside its pairs."""

    filename: str
    duration_s: float  # of the audio; without audio, up to the last frame or label
    events: list[Event]  # as in the label file
    tag: Sequence[float] | None  # (K,) clip-level score of every class; None: imported arrays


class Shard(NamedTuple):
    """A file of a cache, and what it was when its checksum was compared: size, time, number."""

    path: Path
    state: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> "Shard":
        found = path.stat()
        return cls(path, (found.st_size, found.st_mtime_ns, found.st_ino))


class Stored(Mapping[str, np.ndarray]):
    """Signals of pairs in the shards of a cache: `[name]`, (N,) float32, is read when it is asked
    for, and once more where nobody holds it any longer.

    Pair i is `length[i]` frames from `start[i]` on in `shards[shard[i]]`; of signals in `silent`,
    (P,) bool each, those pairs are 0. InputError where a shard is gone or not what it was.
    """

    def __init__(
        self,
        shards: list[Shard],
        shard: np.ndarray,
        start: np.ndarray,
        length: np.ndarray,
        silent: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.shards, self.shard, self.start, self.length = shards, shard, start, length
        self.silent = silent or {}
        self.kept: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        self.mapped: tuple[int, dict[str, np.ndarray]] | None = None  # the shard read last

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in SIGNALS:
            raise KeyError(name)
        if (found := self.kept.get(name)) is None:
            found = self.kept[name] = self.flat(name)
        return found[:]  # numpy computes in place in an array that nothing else refers to strongly

    def __iter__(self) -> Iterator[str]:
        return iter(SIGNALS)

    def __len__(self) -> int:
        return len(SIGNALS)

    def __or__(self, other: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**self, **other}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"kept": None, "mapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, kept=WeakValueDictionary())

    def arrays(self, shard: int) -> dict[str, np.ndarray]:
        """Arrays of a shard, mapped read-only; one shard at a time, so that its pages can go."""
        if self.mapped is None or self.mapped[0] != shard:
            self.mapped = None
            known = self.shards[shard]
            if not known.path.exists() or Shard.of(known.path) != known:
                what = "has changed since it was read, or is gone"
                raise InputError(f"{known.path}: {what}; run the command again")
            self.mapped = shard, map_npz(known.path, check=False)
        return self.mapped[1]

    def one(self, name: str, index: int) -> np.ndarray:
        """A signal (T,) float32, or `label` (T,) bool, of one pair."""
        first = self.start[index]
        if name in self.silent and self.silent[name][index]:
            return np.zeros(self.length[index], np.float32)
        array = self.arrays(self.shard[index])[name][first : first + self.length[index]]
        return np.array(array, bool if name == "label" else np.float32)

    def flat(self, name: str, dtype: type = np.float32) -> np.ndarray:
        """A signal, or `label`, of all pairs, (N,)."""
        found = np.empty(self.length.sum(), dtype)
        follows = self.start[1:] == self.start[:-1] + self.length[:-1]
        cuts = np.flatnonzero(~follows | (np.diff(self.shard) != 0)) + 1
        filled = 0
        for run in np.split(np.arange(len(self.shard)), cuts):  # pairs that lie back to back
            count = int(self.length[run].sum())
            first = self.start[run[0]] if len(run) else 0
            if count:
                array = self.arrays(self.shard[run[0]])[name]
                found[filled : filled + count] = array[first : first + count]
            filled += count
        self.mapped = None
        if name in self.silent:
            found[np.repeat(self.silent[name], self.length)] = 0
        return found

    def choose(self, pairs: np.ndarray | slice) -> "Stored":
        """The signals of some pairs, by mask or slice."""
        silent = {name: each[pairs] for name, each in self.silent.items()}
        return Stored(self.shards, self.shard[pairs], self.start[pairs], self.length[pairs], silent)

    def silenced(self, names: Iterable[str], pairs: np.ndarray) -> "Stored":
        """The same, but signals of some names are 0 in some pairs, (P,) bool."""
        silent = self.silent | dict.fromkeys(names, pairs)
        return Stored(self.shards, self.shard, self.start, self.length, silent)


class Late:
    """A field whose value may be given as a function, called when the value is first asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            raise AttributeError(self.name)  # a dataclass asks for its default: there is none
        if callable(value := vars(instance)[self.name]):
            value = vars(instance)[self.name] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value


@dataclass(frozen=True)
class Cache:
    """All pairs of a split. `signals[name]` and `label` are (N,), `offsets` (P + 1,)."""

    folder: Path
    manifest: dict[str, Any]
    pairs: list[Pair]
    clips: list[ClipRecord]
    signals: Mapping[str, np.ndarray]
    label: np.ndarray | Callable[[], np.ndarray] = Late()
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
    def base(self) -> np.ndarray:
        """(N,) bool: decisions of the base threshold."""
        if isinstance(self.signals, Stored):
            return self.signals.flat("binary", bool)
        return self.signals["binary"] > 0.5

    @property
    def never_absent(self) -> list[str]:
        """Classes that every clip has: nothing here tells when they are absent."""
        labels = [{event.event_label for event in clip.events} for clip in self.clips]
        return [name for name in self.classes if all(name in some for some in labels)]

    @property
    def facts(self) -> dict[str, Any]:
        """What a policy trained here must know of its data, to be applied to other data."""
        seconds = [pair.num_frames * pair.frame_s for pair in self.pairs]
        short, gap = usual_least([clip.events for clip in self.clips])
        imported = self.manifest["signal"] is None  # then nobody knows whether there was audio
        return {
            "clip_s": float(np.median(seconds)),
            "longest_s": float(max(seconds)),
            "frame_s": float(np.median([pair.frame_s for pair in self.pairs])),
            "short_s": short,
            "gap_s": gap,
            "audio": None if imported else self.manifest["audio"] is not None,
            "classes": sorted({pair.event_label for pair in self.pairs}),
            "never_absent": self.never_absent,
            "formulas": None if imported else FORMULAS,
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
    def num_frames(self) -> int:
        """N."""
        return int(self.offsets[-1])

    def of_frames(self, values: np.ndarray) -> np.ndarray:
        """What is so of each pair, (P,), of each of its frames, (N,)."""
        return np.repeat(values, np.diff(self.offsets))

    @property
    def frames_of_pair(self) -> np.ndarray:
        """(N,) index of the pair that each frame belongs to."""
        return np.repeat(np.arange(len(self.pairs)), np.diff(self.offsets))

    def choose(self, pairs: np.ndarray) -> "Cache":
        """The cache of some pairs, (P,) bool, and of the clips that they belong to.

        Clips without a pair (no events, present classes only) leave with the pairs.
        """
        lengths = np.diff(self.offsets)
        names = {pair.filename for pair, wanted in zip(self.pairs, pairs, strict=True) if wanted}
        text = self.key + np.packbits(pairs).tobytes().hex()
        signals, label = self._some(pairs, partial(self.of_frames, pairs))
        return replace(
            self,
            manifest=self.manifest | {"key": hashlib.sha256(text.encode()).hexdigest()[:16]},
            pairs=[pair for pair, wanted in zip(self.pairs, pairs, strict=True) if wanted],
            clips=[clip for clip in self.clips if clip.filename in names],
            signals=signals,
            label=label,
            offsets=np.concatenate(([0], np.cumsum(lengths[pairs]))).astype(np.int64),
        )

    def _some(self, pairs: np.ndarray | slice, frames: Callable[[], np.ndarray | slice]) -> tuple:
        """Signals and label of some pairs, which are these frames."""
        if isinstance(self.signals, Stored):
            signals = self.signals.choose(pairs)
            if callable(vars(self)["label"]):
                return signals, partial(signals.flat, "label", bool)
        else:
            signals = {name: array[frames()] for name, array in self.signals.items()}
        return signals, self.label[frames()]

    def parts(self) -> Iterator["Cache"]:
        """The pairs in their order, so many at a time as `PART_FRAMES` and `PART_PAIRS` allow; one
        part is the cache itself. Clips and manifest of a part are those of all."""
        count, first = len(self.pairs), 0
        if self.num_frames <= PART_FRAMES and count <= PART_PAIRS:
            yield self
            return
        while first < count:
            full = int(np.searchsorted(self.offsets, self.offsets[first] + PART_FRAMES, "right"))
            last = min(max(full - 1, first + 1), first + PART_PAIRS)
            bounds = self.offsets[first : last + 1]
            signals, label = self._some(slice(first, last), partial(slice, bounds[0], bounds[-1]))
            some = {"signals": signals, "label": label, "offsets": bounds - bounds[0]}
            yield replace(self, pairs=self.pairs[first:last], **some)
            first = last

    def cut(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """(N,) -> the frames of each of `parts`, as views."""
        ends = np.cumsum([part.num_frames for part in self.parts()])
        return iter(np.split(values, ends[:-1]))

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
        labels = [pair.event_label for pair in self.pairs if pair.filename == filename]
        others = f"; of this clip there are {listed(labels)}" if labels else ""
        raise InputError(f"{self.folder}: no pair {filename} / {event_label}{others}")

    def one(self, name: str, index: int) -> np.ndarray:
        """A signal, or `label`, of one pair, (T,); from disk where that of all is not resident."""
        known = self.signals
        if name == "label":
            known = vars(self)
            on_disk = callable(known[name])
        else:
            on_disk = isinstance(known, Stored) and name not in known.kept
        if on_disk:
            return self.signals.one(name, index)
        return known[name][self.offsets[index] : self.offsets[index + 1]]

    def of_pair(self, index: int) -> dict[str, np.ndarray]:
        """Signals and label of one pair, each (T,)."""
        return {name: self.one(name, index) for name in (*SIGNALS, "label")}


def write_shard(path: Path, values: list[dict[str, np.ndarray]], labels: list[np.ndarray]) -> None:
    """Write the pairs of a shard: flat float32 signals, uint8 decisions and labels, offsets."""
    lengths = [len(label) for label in labels]
    arrays = {name: np.concatenate([pair[name] for pair in values]) for name in SIGNALS}
    arrays["binary"] = arrays["binary"].astype(np.uint8)
    arrays["label"] = np.concatenate(labels).astype(np.uint8)
    arrays["offsets"] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    with whole(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def is_shard_name(value: Any) -> bool:
    """A file beside the manifest, and no other."""
    return isinstance(value, str) and re.fullmatch(r"shard-\d{5,}\.npz", value) is not None


def is_pair(value: Any) -> bool:
    """A row of `Pair`; those of older versions do not say where the first frame begins."""
    form = (is_text, is_text, is_count, is_number, is_number)
    return isinstance(value, (list, tuple)) and any(misfit(value, form[:n]) is None for n in (4, 5))


SHARD = {
    "file": is_shard_name,
    "sha256": is_text,
    "inputs": is_text,
    "failed": [is_text],
    "notices": Each([is_text]),
    "pairs": [is_pair],
    "clips": [(is_text, is_number, [(is_number, is_number, is_text)], maybe([is_share]))],
}
ASIDES = [(is_text, (is_number, is_number, is_text), is_text)]
MANIFEST = {
    "split": is_text,
    "queries": ("present", "all").__contains__,
    "classes": [is_text],
    "key": is_text,
    "signal": maybe(Each(lambda value: is_number(value) or isinstance(value, (str, bool)))),
    "scores": Each(lambda _: True),
    "audio": maybe(is_text),
    "left_out": [is_text],
    "shards": [SHARD],
}
# Parts that older versions have not written.
NEWER = {
    "formulas": maybe(is_count),
    "sources": Each(maybe(is_text)),
    "home": is_text,
    "fell_back": is_count,
    "groups": Each(is_text),
}


def read_manifest(path: Path, cure: str) -> dict[str, Any]:
    """The manifest of a cache, every value of it checked. InputError ends with `cure`."""
    names: dict[str, str] = {}  # each held once

    def packed(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(packed, value))
        return names.setdefault(value, value) if isinstance(value, str) else value

    def pack_rows(found: dict[str, Any]) -> dict[str, Any]:
        """Make a shard's rows small before the next shard is parsed: Python gives little back."""
        return found | {name: packed(found[name]) for name in ("pairs", "clips") if name in found}

    known = {"format", "versions", *MANIFEST}
    manifest = read_json(path, cure, known, MOST_MANIFEST, pack_rows)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')!r}, not {FORMAT}; {cure}")
    try:
        check_form(manifest, MANIFEST | {k: form for k, form in NEWER.items() if k in manifest})
        classes, seen = manifest["classes"], set()
        for shard in manifest["shards"]:
            clips = {name: duration for name, duration, _, _ in shard["clips"]}
            for name, duration_s, events, tag in shard["clips"]:
                spans = all(onset <= offset for onset, offset, _ in events)
                if duration_s < 0 or not spans or (tag and len(tag) != len(classes)):
                    raise ValueError(f"clip {name[:60]!r} cannot be so")
            check_form(shard.get("asides", []), ASIDES)
            for name, label, num_frames, frame_s, *_ in shard["pairs"]:
                known = name in clips and label in classes and (name, label) not in seen
                if not (known and num_frames and 0 < frame_s <= LONGEST_FRAME_S):
                    raise ValueError(f"pair {name[:60]!r} / {label[:60]!r} cannot be so")
                seen.add((name, label))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {cure}") from None
    return manifest


def read_shard(path: Path, pairs: list[Pair], cure: str) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of a shard, those of its pairs one after the other: finite, and from 0 to 1.

    Those of a large shard are read one by one.
    """
    lengths = [pair.num_frames for pair in pairs]
    num_frames, ends = sum(lengths), np.cumsum(lengths)
    forms = {"offsets": ("i", (len(pairs) + 1,)), "label": ("u", (num_frames,))}
    forms |= {name: ("u" if name == "binary" else "f", (num_frames,)) for name in SIGNALS}
    for part in [forms] if num_frames < LARGE else [{name: forms[name]} for name in forms]:
        arrays = read_npz(path, part, cure)
        if "offsets" in arrays and (arrays.pop("offsets") != [0, *ends]).any():
            raise InputError(f"{path}: its pairs are not as long as the manifest says; {cure}")
        for name in list(arrays):
            values = arrays.pop(name)
            bad = np.flatnonzero(~((values >= -SLACK) & (values <= 1 + SLACK)))  # NaN is neither
            for i in bad[:1]:
                pair = pairs[int(np.searchsorted(ends, i, "right"))]
                where = f"in {pair.filename!r} / {pair.event_label!r}"
                raise InputError(
                    f"{path}: {name} is {values[i]} {where}, not in 0..1 (one of {len(bad):,}):"
                    f" the cache is damaged, or its inputs were; {cure}"
                )
            yield name, values
            del values


def load_cache(folder: Path) -> Cache:
    """Read cache/<split>, checksums verified. InputError says what is missing or damaged."""
    manifest_path = folder / "manifest.json"
    cure = f"run: python preprocess.py --cache {folder.parent} --split {folder.name}"
    if not manifest_path.exists():
        raise InputError(f"no manifest in {folder}; {cure}")
    manifest = read_manifest(manifest_path, cure)
    formulas = manifest.get("formulas", 1)  # the first version did not say
    if manifest["signal"] is not None and formulas != FORMULAS:
        what = f"made by version {formulas} of the formulas, not {FORMULAS}"
        raise InputError(f"{folder}: an old cache, {what} (filters are centred now); {cure}")
    pairs: list[Pair] = []
    clips: list[ClipRecord] = []
    shards: list[Shard] = []
    # Processes that were started together share mapped pages.
    resident = manifest["queries"] == "present" and started_together() == 1
    num_frames = sum(row[2] for shard in manifest["shards"] for row in shard["pairs"])
    try:  # filled shard by shard: nothing is held twice but one shard
        size, filled = num_frames * resident, 0
        signals = {name: np.empty(size, np.float32) for name in SIGNALS}
        label = np.empty(size, bool)
    except (MemoryError, ValueError):
        what = f"damaged ({num_frames:,} frames do not fit into memory)"
        raise InputError(f"{manifest_path}: {what}; {cure}") from None
    shared: dict[type, dict] = defaultdict(dict)  # names and numbers, which a manifest repeats

    def once(values: list) -> Iterator[Any]:
        return (shared[type(x)].setdefault(x, x) for x in values)

    for shard in manifest["shards"]:
        some = [Pair(*once(row)) for row in shard["pairs"]]
        known = [
            ClipRecord(name, duration_s, [Event(*once(event)) for event in events], tag)
            for name, duration_s, events, tag in shard["clips"]
        ]
        shard["pairs"], shard["clips"] = some, known  # in place of lists of their own
        clips += known
        path = folder / shard["file"]
        if not path.exists() or (regular(path) and file_sha256(path) != shard["sha256"]):
            what = "does not match its checksum" if path.exists() else "is missing"
            raise InputError(f"{path} {what}; {cure} (it rebuilds that shard only)")
        shards.append(Shard.of(path))
        stop = filled + sum(pair.num_frames for pair in some)
        for name, array in read_shard(path, some, cure):
            if resident:
                (label if name == "label" else signals[name])[filled:stop] = array
            del array  # before the next one is read
        pairs += some
        filled = stop
    if not pairs:
        raise InputError(f"{manifest_path}: no pairs; {cure}")
    length = np.array([pair.num_frames for pair in pairs], np.int64)
    offsets = np.concatenate(([0], np.cumsum(length)))
    if not resident:
        counts = [len(shard["pairs"]) for shard in manifest["shards"]]
        number = np.repeat(np.arange(len(counts)), counts)
        first = offsets[np.concatenate(([0], np.cumsum(counts)))[number]]  # frame of each shard
        signals = Stored(shards, number, offsets[:-1] - first, length)
        label = partial(signals.flat, "label", bool)
    return Cache(folder, manifest, pairs, clips, signals, label, offsets)


def listed(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    some = ", ".join(isolated(name) for name in names[:most])
    return some + (f" and {len(names) - most} more" if len(names) > most else "")


def config_key_of(signal: dict | None, entries: list[dict]) -> str:
    """Hash of the formulas, of every shard's bytes, of the clips' labels and tags."""
    facts = [[entry["sha256"], entry["clips"]] for entry in entries]
    text = json.dumps([signal, FORMULAS, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
