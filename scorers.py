"""Where frame scores come from: score files of any SED system, or the built-in trained scorer.

Run:    python scorers.py --preset demo     (one CRNN a bank fold, about a minute on two cores)
        python scorers.py --convert scores/train --out scores/train.npz     (or back into TSVs)
Reads:  <corpus>/clips.tsv, <corpus>/<split>/labels.tsv, <corpus>/<split>/audio
Writes: <corpus>/<split>/scores/<clip id>.tsv (`onset, offset`, a column a class), scorer.json,
        <corpus>/scorer.pt (the network of the validation clips, for detect.py)
Shapes: K classes, T frames; values (K, T) in 0..1, edges (T + 1,) seconds; B clips, S samples

Every clip is scored by a network that never heard its recordings: training clips by the fit on all
other folds, validation clips by one more fit on all training clips.
"""

import csv
import difflib
import hashlib
import io
import json
import shutil
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

if __name__ == "__main__":  # before torch, which takes seconds to import
    from config import ScorersConfig, parse_first

    parse_first(ScorersConfig)

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from config import (
    InputError,
    ScorersConfig,
    config_key,
    in_order,
    name_flaw,
    num_workers,
    process_pool,
    run_script,
    to_dict,
    whole,
    write_text,
)
from core.files import (
    MARKER,
    Kind,
    contents,
    discard,
    kind_of,
    lock,
    made,
    mark,
    new_folder,
    scratch_folder,
    writing,
)
from core.names import isolated
from core.stored import (
    MOST_LINE,
    check_form,
    file_sha256,
    is_count,
    is_text,
    map_npz,
    parse_json,
    read_json,
    read_text,
    regular,
    write_json,
)
from core.tensors import fitted, read_checkpoint, with_digest
from labels import clip_id, read_labels, spellings
from sed.audio import read_samples, resample
from timeline import CLIP_COLUMNS, SPLITS, Event, classes_of, frame_edges, label_frames

TIME_COLUMNS = ["onset", "offset"]
JITTER = 0.1  # of a frame, by which an edge may be off: times are often rounded to milliseconds
ROUNDING = 1e-6  # by which a score may lie outside 0..1: it is taken for 0 or 1

# ---------------------------------------------------------------------------- score sources


class ClipScores(NamedTuple):
    """Scores of one clip on the source's own grid."""

    values: np.ndarray  # (K, T) float32, finite, 0..1
    edges: np.ndarray  # (T + 1,) float64 seconds, rising, edges[0] = 0
    tag: np.ndarray | None = None  # (K,) clip-level scores, where the source has them
    step_s: float | None = None  # length of a frame, where the edges cannot tell

    @property
    def frame_s(self) -> float:
        """Length of a frame in seconds (the first and the last frame may be shorter or longer)."""
        return self.step_s or _even_frames(self.edges)[0]

    @property
    def start_s(self) -> float:
        """Where the first frame would begin if it were as long as the others; usually 0.

        Windows of 3 s every 1.5 s are frames of 1.5 s around the windows' centres, from 0.75 s on.
        """
        if self.step_s is None:
            return _even_frames(self.edges)[1]
        late = float(self.edges[1]) - self.step_s
        return late if abs(late) > JITTER * self.step_s and len(self.edges) > 2 else 0.0

    def span_s(self, first: int, stop: int) -> tuple[float, float]:
        """Seconds that frames [first, stop) span, each as long as the others."""
        if not self.start_s:
            return float(self.edges[first]), float(self.edges[stop])
        return self.start_s + first * self.frame_s, self.start_s + stop * self.frame_s


def _even_frames(edges: np.ndarray) -> tuple[float, float]:
    """Length of the equal frames between edges (T + 1,), and where the first would begin."""
    num_frames = len(edges) - 1
    if num_frames > 2:
        step = (edges[-2] - edges[1]) / (num_frames - 2)
        if abs(edges[1] - step) > JITTER * step:
            return float(step), float(edges[1] - step)
    return float(edges[-2] / (num_frames - 1) if num_frames > 1 else edges[-1]), 0.0


def cut_scores(scores: ClipScores, duration_s: float) -> ClipScores:
    """The frames that begin before the end of the audio, at `duration_s` seconds."""
    inside = max(1, int(np.searchsorted(scores.edges[:-1], duration_s - 1e-6)))
    if inside == scores.values.shape[1]:
        return scores
    edges = scores.edges[: inside + 1].copy()
    edges[-1] = min(edges[-1], duration_s)
    return scores._replace(
        values=np.ascontiguousarray(scores.values[:, :inside]), edges=edges, step_s=scores.frame_s
    )


Stamp = tuple[int, int, str]  # size, time (ns) and SHA-256 of a file when it was checked


class ScoreSource(Protocol):
    """What preprocess.py knows about a scorer."""

    classes: list[str]

    def meta(self) -> dict[str, Any]:
        """JSON-ready facts that identify these scores; other facts, other cache."""

    def missing(self, filenames: list[str]) -> list[str]:
        """The clips (names as in the labels) that this source cannot score."""

    def scores(self, filename: str) -> ClipScores:
        """Scores of a clip; raises InputError naming file, line and column."""

    def identity(self, filename: str) -> list[Any]:
        """JSON-ready facts that change when this clip's scores do; what a rerun may skip by."""

    def clips(self) -> list[str]:
        """Ids of all clips that have scores; `read` takes such an id."""

    def read(self, clip: str) -> ClipScores:
        """Scores of a clip by its id; `scores` takes its name in the labels."""


def open_scores(
    path: Path,
    classes: list[str] | None = None,
    rename: dict[str, str] | None = None,
    checked: dict[str, Stamp] | None = None,
) -> ScoreSource:
    """Scores of any form: a folder of TSV files, an .npz file or a folder of .npz files.

    `classes` are the wanted ones in order (None: all that are there); `rename` maps a class name
    of the scores to that of the labels; `checked`: see `ScoreArchive`. Raises InputError where
    there are no scores.
    """
    path = Path(path)
    parts = any(path.glob("*.npz")) if path.is_dir() else path.suffix == ".npz"
    tables = path.glob("*.tsv") if parts and path.is_dir() else ()
    if any(_read_header(table, strict=False) for table in tables):
        raise InputError(f"scores {path}: both .tsv and .npz files; keep one form in the folder")
    if parts:
        return ScoreArchive(path, classes, rename, checked)
    return ScoreFiles(path, classes, rename)


class ScoreFiles:
    """A folder of `<clip>.tsv` in the form of sed_scores_eval: onset, offset, a column a class.

    Columns are found by name and further ones are not read; tabs or commas. Other TSVs in the
    folder, without onset and offset, are skipped. Raises InputError where `folder` is no folder or
    has no score file. All files must share their columns and frame length with the first one read;
    call `missing` before handing copies to other processes, so that all of them compare with the
    same file.
    """

    def __init__(
        self,
        folder: Path,
        classes: list[str] | None = None,
        rename: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.rename = Path(folder), dict(rename or {})
        self._first: tuple[Path, frozenset[str]] | None = None
        self._frame: tuple[str, float] | None = None
        self._files: list[Path] | None = None
        if not self.folder.is_dir():
            raise InputError(f"scores {self.folder}: not a folder of .tsv files, nor an .npz file")
        if next(self.folder.rglob("*.tsv"), None) is None:
            raise InputError(f"scores {self.folder}: no .tsv files")
        if classes is None:
            first = self.files[0]
            classes = _renamed(f"{first}", _read_header(first).classes, self.rename)
        self.classes = list(classes)

    @property
    def files(self) -> list[Path]:
        """All score files, sorted. Looks into each once; names those that are none.

        InputError where there is no other, or a name cannot stand in a table.
        """
        if self._files is None:
            found = sorted(self.folder.rglob("*.tsv"))
            headers = [_read_header(path, strict=False) for path in found]
            others = [path for path, header in zip(found, headers, strict=True) if header is None]
            if len(others) == len(found):
                raise InputError(f"{_no_times(others[0])} (of {len(found)} files: none has them)")
            if others:
                names = ", ".join(str(path.relative_to(self.folder)) for path in others[:5])
                more = f" and {len(others) - 5} more" if len(others) > 5 else ""
                print(f"note: {self.folder}: no scores in {names}{more} (no onset, offset)")
            self._files = [p for p, header in zip(found, headers, strict=True) if header]
            for path in self._files:
                if flaw := name_flaw(self.id_of(path), path=True):
                    raise InputError(f"scores {self.folder}: the name {path.name!r} {flaw}")
        return self._files

    def id_of(self, path: Path) -> str:
        """Id of a score file: its path below the folder without `.tsv`."""
        return path.relative_to(self.folder).as_posix().removesuffix(".tsv")

    def clips(self) -> list[str]:
        """Ids of all score files, sorted."""
        return sorted(map(self.id_of, self.files))

    def path(self, filename: str) -> Path:
        """Score file of a clip: of the whole name, else without its extension."""
        paths = [self.folder / f"{name}.tsv" for name in spellings(filename)]
        return next((path for path in paths if path.is_file()), paths[-1])

    def missing(self, filenames: list[str]) -> list[str]:
        """The clips without a score file; reads one file, so that a wrong folder fails at once."""
        absent = [name for name in filenames if not self.path(name).is_file()]
        present = set(filenames) - set(absent)
        if self._first is None and present:
            self.scores(min(present))
        return absent

    def meta(self) -> dict[str, Any]:
        """Folder, classes in order, and a hash over all score files."""
        digest = hashlib.sha256()
        for path in self.files:
            regular(path)
            digest.update(str(path.relative_to(self.folder)).encode() + b"\0" + path.read_bytes())
        return {
            "source": "files",
            "folder": str(self.folder),
            "classes": self.classes,
            "renamed": self.rename,
            "sha256": digest.hexdigest(),
        }

    def identity(self, filename: str) -> list[Any]:
        """Name, size and time of the score file; the names that are read in it."""
        path = self.path(filename)
        stat = path.stat()
        return [path.name, stat.st_size, stat.st_mtime_ns, sorted(self.rename.items())]

    def scores(self, filename: str) -> ClipScores:
        """Scores of a clip, rows in the order of `classes`. May raise InputError."""
        return self._read(self.path(filename))

    def read(self, clip: str) -> ClipScores:
        """Scores of a clip id, rows in the order of `classes`. May raise InputError."""
        return self._read(self.folder / f"{clip}.tsv")

    def _read(self, path: Path) -> ClipScores:
        header = _read_header(path)
        names = _renamed(str(path), header.classes, self.rename)
        order = _columns(str(path), names, self.classes)
        clock, values = _read_table(path, header, [header.classes[k] for k in order])
        self._first = self._first or (path, frozenset(names))
        if frozenset(names) != self._first[1]:
            odd = ", ".join(sorted(self._first[1] ^ frozenset(names)))
            raise InputError(f"{path}: classes differ from {self._first[0].name} ({odd})")
        scores = clock.scores(np.ascontiguousarray(values.T, dtype=np.float32))
        if len(clock.edges) > 2:  # a single frame is a last frame, whose length says nothing
            self._frame = self._frame or (path.name, scores.frame_s)
            _check_frame(str(path), scores, *self._frame, clock.unit_s)
        return scores


# ---------------------------------------------------------------------------- score archives

ARCHIVE_ARRAYS = ("classes", "clips", "lengths", "values", "edges")
KEPT_OPEN = 32  # parts; each map keeps a file open, and a process may open a thousand or so


class Part(NamedTuple):
    """One .npz file: clip i is rows starts[i] .. starts[i + 1] of `values`.

    Its edges are one more, so they start at starts[i] + i.
    """

    path: Path
    classes: list[str]
    clips: list[str]
    starts: np.ndarray  # (clips + 1,)
    values: np.ndarray | None  # (rows, K) float32 or float16, mapped from disk; None: not now
    edges: np.ndarray | None  # (rows + clips,) seconds, mapped from disk
    tag: np.ndarray | None  # (clips, K)
    meta: dict[str, Any]


class ScoreArchive:
    """Scores of many clips in one uncompressed .npz file, or in all .npz files of a folder.

    Nothing is parsed or copied before a clip is asked for: the numbers stay on disk, mapped, and
    all processes share what the system has read. A copy sent to another process opens the files
    again. Each file is held against its own checksums once: those of `checked` are left out that
    still have the size and time of their stamp. Raises InputError where a file is damaged or the
    files do not belong together.
    """

    def __init__(
        self,
        path: Path,
        classes: list[str] | None = None,
        rename: dict[str, str] | None = None,
        checked: dict[str, Stamp] | None = None,
    ) -> None:
        self.location, self.rename = Path(path), dict(rename or {})
        paths = [self.location]
        if self.location.is_dir():
            paths = sorted(self.location.glob("*.npz"))
        elif not self.location.is_file():
            raise InputError(f"scores {self.location}: no such file")
        self._parts, self.checked = [], {}
        self._maps: OrderedDict[Path, Part] = OrderedDict()  # the last parts that were read
        for path in paths:
            stat, key = regular(path), str(path.resolve())
            stamp = (checked or {}).get(key, ())
            known = tuple(stamp[:2]) == (stat.st_size, stat.st_mtime_ns)
            self._parts.append(_closed(_open_part(path, check=not known)))
            sha256 = stamp[2] if known else file_sha256(path)
            self.checked[key] = (stat.st_size, stat.st_mtime_ns, sha256)
        first = self._parts[0]
        self._index: dict[str, tuple[Part, int]] = {}
        for part in self._parts:
            if (part.classes, part.tag is None) != (first.classes, first.tag is None):
                raise InputError(f"{part.path}: classes differ from {first.path.name}")
            if part.meta != first.meta:
                raise InputError(f"{part.path}: made with other settings than {first.path.name}")
            for i, clip in enumerate(part.clips):
                if clip in self._index:
                    raise InputError(f"{part.path}: clip {clip!r} occurs twice")
                self._index[clip] = (part, i)
        names = _renamed(str(first.path), first.classes, self.rename)
        self.classes = names if classes is None else list(classes)
        self._order = _columns(str(first.path), names, self.classes)
        self.scorer = first.meta  # what the writer said about itself
        self._frame: tuple[str, float] | None = None
        for name, (part, i) in self._index.items():
            if part.starts[i + 1] - part.starts[i] > 1:  # a single frame has no usual length
                self._frame = (f"clip {name}", self.read(name).frame_s)
                break

    def __reduce__(self) -> tuple:
        return ScoreArchive, (self.location, self.classes, self.rename, self.checked)

    def _find(self, filename: str) -> str:
        """Id of a clip: the whole name, else without its extension."""
        names = spellings(filename)
        return next((name for name in names if name in self._index), names[-1])

    def _rows(self, part: Part, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (T, K) and edges (T + 1,) of clip i as they lie on disk."""
        if part.path not in self._maps:
            self._maps[part.path] = _mapped(part)
            if len(self._maps) > KEPT_OPEN:
                self._maps.popitem(last=False)
        self._maps.move_to_end(part.path)
        mapped = self._maps[part.path]
        a, b = int(part.starts[i]), int(part.starts[i + 1])
        return mapped.values[a:b], mapped.edges[a + i : b + i + 1]

    def clips(self) -> list[str]:
        """Ids of all clips, in the order of the files."""
        return list(self._index)

    def missing(self, filenames: list[str]) -> list[str]:
        """The clips that are not in the archive."""
        return [name for name in filenames if self._find(name) not in self._index]

    def meta(self) -> dict[str, Any]:
        """Place, classes in order, what the writer said about itself, a hash over all files."""
        digest = hashlib.sha256()
        for _, _, sha256 in self.checked.values():
            digest.update(bytes.fromhex(sha256))
        return {
            "source": "archive",
            "folder": str(self.location),
            "classes": self.classes,
            "renamed": self.rename,
            "scorer": self.scorer,
            "sha256": digest.hexdigest(),
        }

    def identity(self, filename: str) -> list[Any]:
        """A hash of the clip's numbers; the classes that are read as others."""
        part, i = self._index[self._find(filename)]
        values, edges = self._rows(part, i)
        tag = b"" if part.tag is None else part.tag[i].tobytes()
        digest = hashlib.sha256(values.tobytes() + edges.tobytes() + tag)
        return [digest.hexdigest(), part.classes, sorted(self.rename.items())]

    def scores(self, filename: str) -> ClipScores:
        """Scores of a clip, rows in the order of `classes`. May raise InputError."""
        return self.read(self._find(filename))

    def read(self, clip: str) -> ClipScores:
        """Scores of a clip id, rows in the order of `classes`. May raise InputError."""
        if clip not in self._index:
            raise InputError(f"{self.location}: no scores of clip {clip!r}")
        part, i = self._index[clip]
        values, edges = self._rows(part, i)
        place = f"{part.path} clip {clip}"
        table = np.column_stack([edges[:-1], edges[1:], values]).astype(np.float64)
        clock, values = _checked(
            lambda row: f"{place} frame {row}", [*TIME_COLUMNS, *part.classes], table
        )
        tag = None
        if part.tag is not None:
            tag = np.asarray(part.tag[i], dtype=np.float32)
            for k in np.flatnonzero(~((tag >= -ROUNDING) & (tag <= 1 + ROUNDING)))[:1]:
                raise InputError(
                    f"{place}: tag {tag[k]:g} of class {part.classes[k]!r} is outside 0..1"
                )
            tag = np.clip(tag[self._order], 0, 1)
        order = self._order
        scores = clock.scores(np.ascontiguousarray(values[:, order].T, dtype=np.float32), tag)
        if self._frame is not None and len(edges) > 2:
            _check_frame(place, scores, *self._frame, clock.unit_s)
        return scores


def _closed(part: Part) -> Part:
    """A part without its maps, which would keep the file open."""
    tag = None if part.tag is None else np.array(part.tag)
    return part._replace(values=None, edges=None, tag=tag)


def _mapped(part: Part) -> Part:
    """A part with its maps; InputError where the file has changed since it was opened."""
    arrays = map_npz(part.path, check=False)
    if not {"values", "edges"} <= arrays.keys():
        raise InputError(f"{part.path}: changed while it was read; start again")
    values, edges = arrays["values"], arrays["edges"]
    rows, clips = int(part.starts[-1]), len(part.clips)
    if values.shape != (rows, len(part.classes)) or edges.shape != (rows + clips,):
        raise InputError(f"{part.path}: changed while it was read; start again")
    return part._replace(values=values, edges=edges)


def _open_part(path: Path, check: bool) -> Part:
    """Map a score archive and check that its arrays fit each other; InputError if not."""
    arrays = map_npz(path, check)
    for name in ARCHIVE_ARRAYS:
        if name not in arrays:
            raise InputError(
                f"{path}: no array {name!r}; a score archive has {', '.join(ARCHIVE_ARRAYS)}"
            )
    kinds = {"classes": "U", "clips": "U", "lengths": "iu", "values": "f", "edges": "f", "tag": "f"}
    for name in kinds.keys() & arrays.keys():
        flat = arrays[name].ndim < 2 or name in ("values", "tag")
        if arrays[name].dtype.kind not in kinds[name] or not flat:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise InputError(f"{path}: array {name!r} is of type {found}")
    classes, clips = (np.atleast_1d(arrays[name]).tolist() for name in ("classes", "clips"))
    lengths = np.atleast_1d(arrays["lengths"]).astype(np.int64)
    if not clips or not 1 <= lengths.min() <= lengths.max() <= arrays["edges"].size:
        raise InputError(f"{path}: no clips, or a clip without frames or with more than there are")
    num_rows = int(lengths.sum())
    wanted = {
        "lengths": (len(clips),),
        "values": (num_rows, len(classes)),
        "edges": (num_rows + len(clips),),
    }
    if "tag" in arrays:
        wanted["tag"] = (len(clips), len(classes))
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            found = arrays[name].shape
            raise InputError(
                f"{path}: array {name!r} has shape {found}, but {len(clips)} clips of {num_rows}"
                f" frames in all and {len(classes)} classes need {shape}"
            )
    for what, names in (("class", classes), ("clip", clips)):
        for name in names:
            if flaw := name_flaw(name, path=what == "clip"):
                raise InputError(f"{path}: the name of {what} {name!r} {flaw}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path}: {what} {twice!r} occurs twice")
    try:
        meta = parse_json(str(arrays.get("meta", "{}")))
        check_form(meta, {})
    except ValueError:
        raise InputError(f"{path}: array 'meta' is no JSON dictionary") from None
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tag = arrays.get("tag")
    return Part(path, classes, clips, starts, arrays["values"], arrays["edges"], tag, meta)


def write_archive(
    path: Path,
    classes: list[str],
    clips: Iterable[tuple[str, ClipScores]],
    meta: dict[str, Any] | None = None,
) -> None:
    """Write (clip id, scores) one after the other into an .npz; it appears when complete.

    Memory stays that of one clip. Equal scores, equal bytes. `meta` is what the scorer says about
    itself. Raises ValueError where only some clips have a tag.
    """
    names: list[str] = []
    lengths: list[int] = []
    tags: list[np.ndarray] = []
    with (
        whole(path) as temporary,
        tempfile.TemporaryFile(dir=path.parent) as values,
        tempfile.TemporaryFile(dir=path.parent) as edges,
    ):
        for name, clip in clips:
            names.append(name)
            lengths.append(clip.values.shape[1])
            values.write(clip.values.T.astype("<f4").tobytes())
            edges.write(clip.edges.astype("<f8").tobytes())
            if clip.tag is not None:
                tags.append(np.asarray(clip.tag, dtype=np.float32))
        if tags and len(tags) < len(names):
            raise ValueError(f"{path}: {len(names) - len(tags)} clips without a tag")
        small = {
            "classes": np.array(classes),
            "clips": np.array(names),
            "lengths": np.array(lengths, dtype=np.int64),
            "meta": np.array(json.dumps(meta or {})),
        }
        if tags:
            small["tag"] = np.stack(tags)
        rows = sum(lengths)
        large = (
            ("values", values, "<f4", (rows, len(classes))),
            ("edges", edges, "<f8", (rows + len(names),)),
        )
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in small.items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, stream, descr, shape in large:
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                stream.seek(0)
                with _member(archive, name) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(stream, member, 1 << 20)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A new array of an .npz file; without a time stamp, so that equal scores are equal bytes."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def convert(path: Path, out: Path) -> None:
    """Write scores in the other form: an archive if `out` ends in .npz, else a folder of TSVs.

    Raises InputError where `out` is there already, unless it is an archive made from these very
    scores, or where a score is damaged; nothing is left then.
    """
    source = open_scores(path)
    if path.is_dir() and path.resolve() in out.resolve().parents:
        raise InputError(f"--out {out}: lies in the scores {path}, and would be one of them")
    if out.exists():
        if out.suffix == ".npz" and ScoreArchive(out).scorer == source.meta():
            print(f"{out}: made from {path} as it is, nothing to do")
            return
        raise InputError(f"--out {out}: is there already; remove it or give another name")
    clips = source.clips()
    bar = tqdm(clips, desc="scores", unit="clip")
    if out.suffix == ".npz":
        read = ((clip, source.read(clip)) for clip in bar)
        with made(out.parent):
            write_archive(out, source.classes, read, source.meta())
    else:
        with new_folder(out, SCORES, fresh=True) as folder:
            for clip in bar:
                file = folder / f"{clip}.tsv"
                file.parent.mkdir(parents=True, exist_ok=True)
                scores = source.read(clip)
                write_scores(file, scores.edges, source.classes, scores.values)
        if scores.tag is not None:
            print(f"{path}: clip-level tags have no place in TSV files and were left out")
    print(f"{len(clips)} clips, {len(source.classes)} classes -> {out}")


# ---------------------------------------------------------------------------- what is checked


def _renamed(place: str, names: list[str], rename: dict[str, str]) -> list[str]:
    """Class names after `--map`; InputError for a name that is not there, or there twice then."""
    for name in rename:
        if name not in names:
            raise InputError(f"{place}: --map: no column {name!r} (columns: {', '.join(names)})")
    found = [rename.get(name, name) for name in names]
    for name in found:
        if found.count(name) > 1:
            raise InputError(f"{place}: column {name!r} occurs twice after --map")
    return found


def _columns(place: str, names: list[str], classes: list[str]) -> list[int]:
    """Column of each class; InputError for one that is not there."""
    for name in classes:
        if name not in names:
            same = [other for other in names if other.lower() == name.lower()]
            near = same or difflib.get_close_matches(name, names, n=1, cutoff=0.5) or ["NAME"]
            raise InputError(
                f"{place}: no column for class {name!r} (columns: {', '.join(names)})."
                f" --map '{near[0]}={name}' renames"
            )
    return [names.index(name) for name in classes]


def _check_frame(
    place: str, clip: ClipScores, first: str, expected: float, unit_s: float = 0.0
) -> None:
    """All clips of a source share their frame length, in seconds; times are printed in `unit_s`."""
    num_frames = len(clip.edges) - 1
    # 0.1 %, and a last edge rounded to milliseconds, or to what the file is rounded to
    slack = 1e-3 * expected + max(1e-3, unit_s) / (num_frames - 1)
    if abs(clip.frame_s - expected) > slack:
        text = f"frame length {clip.frame_s:.6g} s, {first} has {expected:.6g} s"
        raise InputError(f"{place}: {text}")


class Clock(NamedTuple):
    """When the frames of a clip are."""

    edges: np.ndarray  # (T + 1,) seconds
    step_s: float | None = None  # length of a frame, where the edges cannot tell
    unit_s: float = 0.0  # to which coarsely printed times are rounded

    def scores(self, values: np.ndarray, tag: np.ndarray | None = None) -> ClipScores:
        """Scores (K, T) on these frames."""
        return ClipScores(values, self.edges, tag, self.step_s)


def _checked(
    where: Callable[[int], str], names: list[str], table: np.ndarray
) -> tuple[Clock, np.ndarray]:
    """Onset, offset and a column a class (T, 2 + K) -> clock and values (T, K).

    `where` says in which file and line a row stands. Raises InputError for a number that is not
    finite, a score out of 0..1 or a broken time axis.
    """
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"{where(row)}, column {names[column]}: {table[row, column]} is not finite"
        )
    bad = np.argwhere((table[:, 2:] < -ROUNDING) | (table[:, 2:] > 1 + ROUNDING))
    if len(bad):
        row, column = bad[0] + (0, 2)
        far = table[:, 2:].min() < -0.5 or table[:, 2:].max() > 1.5
        hint = "; these look like logits, apply a sigmoid first" if far else ""
        raise InputError(
            f"{where(row)}, column {names[column]}: {table[row, column]:.7g} is outside 0..1{hint}"
        )
    return _checked_clock(where, table[:, 0], table[:, 1]), table[:, 2:].clip(0, 1)


def _checked_clock(where: Callable[[int], str], onset: np.ndarray, offset: np.ndarray) -> Clock:
    """Onsets and offsets (T,) of frames or windows -> when the frames are.

    Frames have no gaps and are equal but for the first and the last. Windows overlap, or leave
    gaps, and come in a constant step: each is a frame of one step around its centre. Times that are
    printed with few decimals may be off by half of the last one.
    """
    length = offset - onset
    for row in np.flatnonzero(length <= 0)[:1]:
        text = f"offset {offset[row]:g} is not after onset {onset[row]:g}"
        raise InputError(f"{where(row)}: {text}")
    found = _clock(where, onset, offset, 0.0)
    if isinstance(found, str) and (unit := _printed_unit(onset, offset)):
        rounded = _clock(where, onset, offset, unit)
        found = found if isinstance(rounded, str) else rounded
    if isinstance(found, str):
        raise InputError(found)
    return found


def checked_scores(
    values: np.ndarray, edges: np.ndarray, classes: list[str], tag: np.ndarray | None = None
) -> ClipScores:
    """Scores (K, T) of one recording on edges (T + 1,), checked as those of score files are.

    Raises InputError for arrays that do not fit each other, scores out of 0..1, unequal frames.
    """
    values, edges = np.asarray(values, np.float64), np.asarray(edges, np.float64)
    if values.ndim != 2 or not values.size or edges.shape != (values.shape[1] + 1,):
        raise InputError(
            f"scores {values.shape} and edges {edges.shape} do not fit: (classes, frames) and"
            " (frames + 1,) are needed"
        )
    if len(classes) != len(values) or len(set(classes)) < len(classes):
        raise InputError(f"{len(values)} rows of scores need as many class names: {classes}")
    for name in classes:
        if flaw := name_flaw(name):
            raise InputError(f"the class name {name!r} {flaw}")
    table = np.column_stack([edges[:-1], edges[1:], values.T])
    names = [*TIME_COLUMNS, *classes]
    clock, values = _checked(lambda row: f"scores, frame {row}", names, table)
    return clock.scores(np.ascontiguousarray(values.T, dtype=np.float32), tag)


def _printed_unit(onset: np.ndarray, offset: np.ndarray) -> float:
    """The unit of the last printed decimal of times where that is coarse for their frames, else 0.

    Frames of 16 ms with two decimals begin at 0.00, 0.02, 0.03, 0.05 s.
    """
    step = (onset[-1] - onset[0]) / max(len(onset) - 1, 1)
    times = np.concatenate([onset, offset])
    for decimals in range(7):
        scaled = times * 10**decimals
        if np.abs(scaled - np.rint(scaled)).max() < 1e-3:
            unit = 10.0**-decimals
            return unit if 2 * JITTER * step < unit < step else 0.0
    return 0.0


def _clock(
    where: Callable[[int], str], onset: np.ndarray, offset: np.ndarray, unit: float
) -> Clock | str:
    """When the frames are, to `unit` seconds where that is more than JITTER; or what is wrong."""
    length, last = offset - onset, len(onset) - 1
    fine = unit if 2 * unit * last < onset[-1] - onset[0] else 0.0  # else a row would be missed
    gap = np.abs(onset[1:] - offset[:-1]) > np.maximum(JITTER * length[1:], 1.001 * fine)
    if gap.any():
        windows = _windows(onset, offset, fine)
        if windows is not None:
            return windows
        row = int(np.flatnonzero(gap)[0]) + 1
        return (
            f"{where(row)}: starts at {onset[row]:.3f} but the frame before ends at"
            f" {offset[row - 1]:.3f}, and these are no windows in a constant step"
        )
    if abs(onset[0]) > JITTER * length[0]:
        return f"{where(0)}: first frame starts at {onset[0]:g}, not 0"
    edges = np.append(onset, offset[-1])
    edges[0] = 0.0
    step, start = (edges[-2] / max(last, 1), 0.0) if unit else _even_frames(edges)
    even = np.append(0.0, start + step * np.arange(1, last + 1))  # onsets of equal frames
    usual = step if unit else float(np.median(np.diff(edges)))
    if np.any(np.abs(edges[:-1] - even) > max(JITTER * usual, 1.001 * unit)):
        row = int(np.argmax(np.abs(np.diff(edges)[:-1] - usual)))
    elif last and edges[-1] - edges[-2] > max((2 + JITTER) * usual, start + (1 + JITTER) * usual):
        row = last
    else:
        return Clock(np.append(even, edges[-1]) if unit else edges, unit_s=unit)
    text = f"a frame of {length[row]:.3g} s among frames of {usual:.3g} s"
    return f"{where(row)}: {text}; all frames must be equally long"


def _windows(onset: np.ndarray, offset: np.ndarray, unit: float) -> Clock | None:
    """Frames around the centres of windows (T,); None where their step or length is not constant.

    The first frame begins with the clip, the last one ends with its window.
    """
    length, last = float(np.median(offset - onset)), len(onset) - 1
    step = float(onset[-1] - onset[0]) / last
    slack = max(JITTER * step, 1.001 * unit)
    even = np.abs(np.diff(onset) - step) <= slack
    same = np.abs(offset - onset - length) <= slack
    same[-1] = offset[-1] - onset[-1] <= length + slack  # the last one may be cut off
    overlap = last > 1 or step < length  # of two rows with a gap between them one is missing
    centre = onset[0] + length / 2
    begins = -slack <= centre and onset[0] <= JITTER * length
    if not (even.all() and same.all() and overlap and begins):
        return None
    edges = np.append(0.0, centre + step * (np.arange(1, last + 2) - 0.5))
    begin = max(centre - step / 2, 0.0)  # by so much a window is longer, at the end as well
    edges[-1] = min(max(edges[-1], offset[-1]), edges[-1] + begin)
    return Clock(edges, step, unit)


# ---------------------------------------------------------------------------- the score file


def write_scores(path: Path, edges: np.ndarray, classes: list[str], values: np.ndarray) -> None:
    """Write values (K, T) on edges (T + 1,) seconds, six digits; the file appears when complete."""
    table = np.column_stack([edges[:-1], edges[1:], values.T])  # (T, 2 + K)
    row = "\t".join(["%.10g", "%.10g"] + ["%.6g"] * len(classes)) + "\n"
    text = "\t".join([*TIME_COLUMNS, *classes]) + "\n" + row * len(table) % tuple(table.ravel())
    write_text(path, text)


class Header(NamedTuple):
    """First line of a score file: its columns, what separates them, and the classes among them."""

    names: list[str]
    delimiter: str
    classes: list[str]


def _no_times(path: Path) -> str:
    return f"{path} line 1: no columns onset and offset, so these are no scores"


def _read_header(path: Path, strict: bool = True) -> Header | None:
    """Header of a score file. InputError for a bad one; None where it is no score file and not
    `strict`."""
    if not path.exists():
        raise InputError(f"{path}: no such score file")
    regular(path)
    try:
        with open(path, encoding="utf-8-sig") as stream:
            line = stream.readline(MOST_LINE).rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        if not strict and isinstance(error, UnicodeDecodeError):
            return None
        raise InputError(f"{path}: cannot be read ({error})") from None
    delimiter = "," if "," in line and "\t" not in line else "\t"
    names = [name.strip() for name in line.split(delimiter)]
    if not set(TIME_COLUMNS) <= set(names):
        if strict:
            raise InputError(f"{_no_times(path)}; found {line[:60]!r}")
        return None
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} line 1: column {name!r} occurs twice")
        if name and (flaw := name_flaw(name)):
            raise InputError(f"{path} line 1: the name of column {name!r} {flaw}")
    return Header(names, delimiter, [name for name in names if name and name not in TIME_COLUMNS])


def _read_table(path: Path, header: Header, classes: list[str]) -> tuple[Clock, np.ndarray]:
    """Clock and values (T, K) of some classes, all checked. Raises InputError naming the cell."""
    _, _, body = read_text(path).partition("\n")
    if not body.strip():
        raise InputError(f"{path}: no frames below the header")
    wanted = [*TIME_COLUMNS, *classes]
    columns = [header.names.index(name) for name in wanted]
    lines = [line for line in body.splitlines() if line.strip()]
    try:
        if {line.count(header.delimiter) for line in lines} != {len(header.names) - 1}:
            raise ValueError("columns")
        table = np.loadtxt(
            lines, delimiter=header.delimiter, ndmin=2, comments=None, usecols=columns
        )
    except ValueError:  # the slow way knows line and column
        table = _parse_slowly(path, header, columns, body)
    return _checked(lambda row: f"{path} line {_line(body, row)}", wanted, table)


def _line(body: str, row: int) -> int:
    """Line in the file of a table row; empty lines have no row."""
    return [i for i, line in enumerate(body.splitlines(), start=2) if line.strip()][row]


def _parse_slowly(path: Path, header: Header, columns: list[int], body: str) -> np.ndarray:
    rows = []
    for number, line in enumerate(body.splitlines(), start=2):
        cells = line.split(header.delimiter)
        if not line.strip():
            continue
        if len(cells) != len(header.names):
            raise InputError(
                f"{path} line {number}: {len(cells)} columns, the header has {len(header.names)}"
            )
        for column in columns:
            try:
                float("_" if "_" in cells[column] else cells[column])  # 1_0 is no number here
            except ValueError:
                raise InputError(
                    f"{path} line {number}, column {header.names[column]}:"
                    f" {cells[column]!r} is not a number"
                ) from None
        rows.append([float(cells[column]) for column in columns])
    return np.array(rows)


# ---------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Clip:
    """One audio file of the corpus; `filename` is unique within its split only."""

    split: str
    filename: str
    fold: str
    audio: Path
    events: list[Event]


def read_corpus(corpus: Path) -> list[Clip]:
    """Clips of both splits in the order of clips.tsv.

    Raises InputError where a file is missing, or clips.tsv and labels.tsv name different clips.
    """
    listing = corpus / "clips.tsv"
    if not listing.is_file():
        raise InputError(f"corpus {corpus}: no clips.tsv; run python soundscapes.py first")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(listing)), delimiter="\t"))
    except csv.Error as error:
        raise InputError(f"{listing}: cannot be read ({error})") from None
    if not rows or any(row.get(name) is None for row in rows for name in CLIP_COLUMNS[:3]):
        raise InputError(f"{listing}: expected columns {', '.join(CLIP_COLUMNS)} and a row a clip")
    labels = {split: read_labels(corpus / split / "labels.tsv") for split in SPLITS}
    clips: list[Clip] = []
    for row in rows:
        split, filename = row["split"], row["filename"]
        if filename not in labels.get(split, {}):
            raise InputError(f"{listing}: clip {filename} of {split} is not in its labels.tsv")
        events = labels[split].pop(filename)
        audio = corpus / split / "audio" / filename
        if not audio.is_file():
            raise InputError(f"{audio}: no such audio file; run python soundscapes.py again")
        clips.append(Clip(split, filename, row["fold"], audio, events))
    for split, rest in labels.items():
        for filename in rest:
            raise InputError(f"{listing}: clip {filename} of {split}/labels.tsv is not listed")
    if len({(clip.split, clip_id(clip.filename)) for clip in clips}) < len(clips):
        raise InputError(f"{listing}: two clips of a split differ in their extension only")
    folds = {clip.fold for clip in clips if clip.split == "train"}
    if len(folds) < 2:
        raise InputError(
            f"{listing}: all training clips are of fold {next(iter(folds), 'none')!r}; a clip must"
            " be scored by a network that never heard its recordings, so two folds are needed"
        )
    return clips


# ---------------------------------------------------------------------------- features

VERSION = 1  # raise it with any change below that changes scores
SAMPLE_RATE = 16_000
HOP = 320  # samples a frame: 20 ms
FRAME_S = HOP / SAMPLE_RATE
N_FFT = 1024
N_MELS = 64
STEP = 4  # frames that the network decides at once
RARE = 0.3  # weight of a frame in which a class sounds: (off / on frames) ** RARE


def log_mel(path: Path) -> np.ndarray:
    """Features of an audio file, (T, N_MELS) float16.

    Raises InputError naming a file that cannot be read or holds no usable samples.
    """
    try:
        wav, rate = read_samples(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return features_of(wav, rate)


@cache
def mel_tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Window (N_FFT,) and mel bank (N_MELS, N_FFT / 2 + 1), made once."""
    import librosa  # takes a second, and who reads score files needs none of it

    bank = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS)
    return torch.hann_window(N_FFT), torch.from_numpy(bank)


def features_of(wav: np.ndarray, rate: int) -> np.ndarray:
    """Samples (S,) or (S, C) -> (T, N_MELS) float16; frame t is centred on [t, t + 1) * HOP.

    The power of several channels is their mean: that of their mix is none where they cancel.
    """
    channels = np.atleast_2d(resample(wav, rate, SAMPLE_RATE).T)  # (C, S)
    num_samples = channels.shape[1]
    num_frames = -(-num_samples // HOP)
    left = (N_FFT - HOP) // 2
    padded = np.zeros((len(channels), (num_frames - 1) * HOP + N_FFT), dtype=np.float32)
    padded[:, left : left + num_samples] = channels[:, : padded.shape[1] - left]
    window, bank = mel_tables()
    spectrum = torch.stft(
        torch.from_numpy(padded), N_FFT, HOP, window=window, center=False, return_complex=True
    )  # (C, N_FFT / 2 + 1, T)
    power = bank @ spectrum.abs().square().mean(0)  # (N_MELS, T)
    return torch.log(power + 1e-6).T.numpy().astype(np.float16)


class Store(NamedTuple):
    """Features and labels of all clips back to back; clip i is rows starts[i] .. starts[i + 1]."""

    features: np.ndarray  # (rows, N_MELS) float16, mapped from disk: shared by all processes
    targets: np.ndarray  # (rows, K) bool
    starts: np.ndarray  # (clips + 1,)

    @classmethod
    def open(cls, folder: Path) -> "Store":
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls._fields))

    def clip(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (T, N_MELS) and targets (T, K), float32."""
        rows = slice(self.starts[i], self.starts[i + 1])
        return self.features[rows].astype(np.float32), self.targets[rows].astype(np.float32)


def write_store(
    folder: Path, clips: list[Clip], classes: list[str], pool: ProcessPoolExecutor
) -> None:
    """Compute features in the pool and write the arrays that `Store.open` reads."""
    found = in_order(pool, log_mel, (clip.audio for clip in clips))
    features = list(tqdm(found, total=len(clips), desc="features", unit="clip"))
    targets = []
    for clip, frames in zip(clips, features, strict=True):
        edges = frame_edges(len(frames), FRAME_S)
        targets.append(np.stack([label_frames(clip.events, c, edges) for c in classes], axis=1))
    starts = np.cumsum([0] + [len(frames) for frames in features])
    arrays = (np.concatenate(features), np.concatenate(targets), starts)
    for name, array in zip(Store._fields, arrays, strict=True):
        with writing(folder / f"{name}.npy"):
            np.save(folder / f"{name}.npy", array)


# ---------------------------------------------------------------------------- network


class CRNN(nn.Module):
    """Log-mel (B, T, N_MELS) -> logits (B, T, K)."""

    def __init__(self, channels: int, mean: np.ndarray, std: np.ndarray, rates: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))  # (N_MELS,)
        self.register_buffer("std", torch.from_numpy(std))
        # A quarter of the time steps makes four times the epochs; the head gives all frames back.
        self.blocks = nn.Sequential(
            self.block(1, channels, 5, 2, (2, 2)),
            self.block(channels, 2 * channels, 3, 1, (1, 4)),
            self.block(2 * channels, 4 * channels, 3, 1, (1, 4)),
        )  # N_MELS = 64 bands -> 32 -> 16 -> 4 -> 1
        self.gru = nn.GRU(4 * channels, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(4 * channels + 128, STEP * len(rates))
        with torch.no_grad():  # start from the share of frames in which each class sounds
            self.head.bias.copy_(torch.logit(torch.from_numpy(rates).repeat(STEP)))

    @staticmethod
    def block(inputs: int, outputs: int, kernel: int, stride: int, pool: tuple) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool))

    def forward(self, mel: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """`real` (B, T) is 1 in frames of the clip, 0 in padding."""
        num_frames = mel.shape[1]
        x = (mel - self.mean) / self.std * real[..., None]  # (B, T, N_MELS)
        x = nn.functional.pad(x, (0, 0, 0, -num_frames % STEP))  # whole steps of STEP frames
        x = x[:, None].to(memory_format=torch.channels_last)  # twice as fast on a CPU
        x = self.blocks(x).squeeze(3).transpose(1, 2)  # (B, ceil(T / STEP), 4 * channels)
        x = x * real[:, ::STEP, None]
        x = torch.cat([x, self.gru(x)[0]], dim=2)  # (B, ceil(T / STEP), 4 * channels + 128)
        return self.head(x).unflatten(2, (STEP, -1)).flatten(1, 2)[:, :num_frames]


def augment(mel: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple:
    """Turn a clip in time, change its gain, hide a few bands and a short stretch of time."""
    shift = int(rng.integers(len(mel)))
    mel, target = np.roll(mel, shift, axis=0), np.roll(target, shift, axis=0)
    floor = mel.mean(axis=0)  # (N_MELS,)
    band, width = rng.integers(N_MELS), rng.integers(9)
    mel[:, band : band + width] = floor[band : band + width]
    start, length = rng.integers(len(mel)), rng.integers(max(len(mel) // 25, 1))
    mel[start : start + length] = floor
    return mel + np.float32(rng.uniform(-1.5, 1.5)), target


def make_batch(
    store: Store, chosen: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips (B,) -> mel (B, T, N_MELS), target (B, T, K), real (B, T); shorter ones padded."""
    pairs = [augment(*store.clip(i), rng) for i in chosen]
    shape = (len(pairs), max(len(mel) for mel, _ in pairs))
    mels = np.zeros((*shape, N_MELS), dtype=np.float32)
    targets = np.zeros((*shape, store.targets.shape[1]), dtype=np.float32)
    real = np.zeros(shape, dtype=np.float32)
    for b, (mel, target) in enumerate(pairs):
        mels[b, : len(mel)], targets[b, : len(mel)], real[b, : len(mel)] = mel, target, 1
    return torch.from_numpy(mels), torch.from_numpy(targets), torch.from_numpy(real)


# ---------------------------------------------------------------------------- fits


VALIDATION = "validation"  # the fit on all training clips


@dataclass(frozen=True)
class Fit:
    """One network: the clips (indices into the store) it is trained on and those it scores."""

    stream: int  # its own random numbers, whichever process runs it
    name: str
    train: list[int]
    score: list[int]


def plan(clips: list[Clip]) -> list[Fit]:
    """One fit a training fold, scoring that fold, then one on all of them for validation."""
    train = [i for i, clip in enumerate(clips) if clip.split == "train"]
    rest = [i for i, clip in enumerate(clips) if clip.split == "validation"]
    fits = []
    for stream, fold in enumerate(sorted({clips[i].fold for i in train})):
        inside = [i for i in train if clips[i].fold == fold]
        outside = [i for i in train if clips[i].fold != fold]
        fits.append(Fit(stream, f"fold {fold}", outside, inside))
    return [*fits, Fit(len(fits), VALIDATION, train, rest)]


def class_rates(store: Store, chosen: list[int]) -> np.ndarray:
    """(K,) float32: share of the frames of some clips in which each class sounds."""
    targets = np.concatenate([store.clip(i)[1] for i in chosen])  # (rows, K)
    return targets.mean(axis=0).clip(1e-3, 0.5)


def train_network(cfg: ScorersConfig, store: Store, fit: Fit) -> tuple[CRNN, list[int]]:
    """A trained network, and the sorted clips that it really was shown."""
    rng = np.random.default_rng([cfg.seed, fit.stream])
    torch.manual_seed(int(rng.integers(2**63)))  # weights only
    frames = np.concatenate([store.clip(i)[0] for i in fit.train])  # (rows, N_MELS)
    rates = class_rates(store, fit.train)
    net = CRNN(cfg.channels, frames.mean(axis=0), frames.std(axis=0) + 1e-3, rates).train()
    del frames
    # Without a weight rare classes hardly ever reach 0.5; with the full one, everything does.
    weight = torch.from_numpy(((1 - rates) / rates) ** RARE)  # (K,)
    loss_of = nn.BCEWithLogitsLoss(reduction="none", pos_weight=weight)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=0.01)
    num_batches = -(-len(fit.train) // cfg.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, cfg.epochs * num_batches)
    seen: set[int] = set()
    for _ in range(cfg.epochs):
        for chosen in np.array_split(rng.permutation(fit.train), num_batches):
            mel, target, real = make_batch(store, chosen, rng)
            loss = loss_of(net(mel, real), target)  # (B, T, K)
            loss = (loss.mean(dim=2) * real).sum() / real.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            seen.update(chosen.tolist())
    return net.eval(), sorted(seen)


class Scorer(NamedTuple):
    """A trained network and its classes."""

    network: CRNN
    classes: list[str]

    @torch.inference_mode()
    def scores_of(self, features: np.ndarray) -> torch.Tensor:
        """Features (T, N_MELS) of one clip -> scores (T, K), 0..1; no batch, so that a score does
        not depend on its neighbours' lengths."""
        mel = torch.from_numpy(features.astype(np.float32)).to(self.network.mean.device)
        return self.network(mel[None], torch.ones(1, len(mel), device=mel.device))[0].sigmoid()

    def score_recording(self, wav: np.ndarray, rate: int) -> np.ndarray:
        """Samples (S,) or (S, C) -> scores (K, T) float32, the numbers of the score files."""
        return self.scores_of(features_of(wav, rate)).T.cpu().numpy()


SCORER = "scorer.pt"  # beside the corpus: the network that scored the validation clips
MOST_RECORD = 1 << 31  # bytes of it
RECORD = "scorer.json"  # beside it: what the score files follow from
SCORES = Kind("folder of scores", ("*.tsv", "*/*.tsv", "*/*/*.tsv"))
SCRATCH = Kind("", ("features.npy", "targets.npy", "starts.npy", SCORER, "*/*.tsv"))


def write_scorer(path: Path, scorer: Scorer, channels: int) -> None:
    """Keep a network. Raises WriteError."""
    content = {
        "version": VERSION,
        "channels": channels,
        "classes": scorer.classes,
        "network": scorer.network.state_dict(),
    }
    with whole(path) as temporary, open(temporary, "wb") as stream:
        torch.save(with_digest(content), stream)


def load_scorer(path: Path, device: torch.device) -> Scorer:
    """Read `scorer.pt` without running code from it; InputError where it is none."""
    if not path.is_file():
        cure = f"python scorers.py --corpus {path.parent} writes one"
        raise InputError(f"{path}: no such scorer; {cure}")
    content = read_checkpoint(path, device)
    try:
        check_form(content, {"version": is_count, "channels": is_count, "classes": [is_text]})
        if not (content["classes"] and 1 <= content["channels"] < 1 << 20):
            raise ValueError("no usable sizes")
        if flaws := [name for name in content["classes"] if name_flaw(name)]:
            raise ValueError(f"class {flaws[0]!r}")
    except ValueError as error:
        raise InputError(f"{path}: damaged, or no scorer of scorers.py ({error})") from None
    version, classes = content["version"], list(content["classes"])
    if version != VERSION:
        cure = f"run python scorers.py --corpus {path.parent} again"
        raise InputError(f"{path}: made by version {version} of the scorer, not {VERSION}; {cure}")

    def make() -> CRNN:
        mean, std = np.zeros((2, N_MELS), np.float32)  # apart in memory: both are loaded into
        return CRNN(content["channels"], mean, std, np.full(len(classes), 0.5, np.float32))

    return Scorer(fitted(make, content.get("network"), path).to(device).eval(), classes)


def fit_and_score(
    cfg: ScorersConfig, fit: Fit, folder: Path, clips: list[Clip], classes: list[str]
) -> dict[str, Any]:
    """Train one network and write the score files of its clips below `folder`; returns a record."""
    began = time.monotonic()
    store = Store.open(folder)
    net, seen = train_network(cfg, store, fit)
    scorer = Scorer(net, classes)
    if fit.name == VALIDATION:
        write_scorer(folder / SCORER, scorer, cfg.channels)
    rates = torch.from_numpy(class_rates(store, fit.train))  # (K,)
    bce = nn.functional.binary_cross_entropy
    losses = []
    for i in fit.score:
        mel, target = store.clip(i)
        target = torch.from_numpy(target)
        scores = scorer.scores_of(mel)  # (T, K)
        with torch.inference_mode():
            losses.append([float(bce(p, target)) for p in (scores, rates.expand_as(target))])
        path = folder / clips[i].split / f"{clip_id(clips[i].filename)}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scores(path, frame_edges(len(mel), FRAME_S), classes, scores.T.numpy())
    bces = np.mean(losses, axis=0).tolist() if losses else [None, None]
    return {
        "name": fit.name,
        "trained_on": [clips[i].filename for i in seen],
        "trained_folds": sorted({clips[i].fold for i in seen}),
        "scored": [clips[i].filename for i in fit.score],
        "bce": bces[0],
        "bce_of_rates": bces[1],  # of one who knows only how often each class sounds
        "seconds": time.monotonic() - began,
    }


# ---------------------------------------------------------------------------- main


def scorer_key(cfg: ScorersConfig, clips: list[Clip], classes: list[str]) -> str:
    """Hash of all that the scores follow from; audio counts by its size, which is quick to see."""
    settings = {
        "version": VERSION,
        "epochs": cfg.epochs,
        "lr": cfg.lr,
        "batch": cfg.batch,
        "channels": cfg.channels,
    }
    facts = [
        (clip.split, clip.filename, clip.fold, clip.events, clip.audio.stat().st_size)
        for clip in clips
    ]
    return config_key(settings, cfg.seed, classes, facts)


def check_scores(folder: Path, record: dict[str, Any]) -> None:
    """InputError where a folder of scores, or a file in it, was not written by this script."""
    if not folder.exists():
        return
    written = {f"{clip_id(name)}.tsv" for fit in record.get("fits", ()) for name in fit["scored"]}
    # Older versions have put no marker there.
    ours = kind_of(folder) == SCORES.name or "marker" not in record
    if others := sorted(set(contents(folder)) - (written if ours else set())):
        cure = "move the folder away"
        raise InputError(f"{folder}: {others[0]} was not written by scorers.py; {cure}")


def is_done(cfg: ScorersConfig, clips: list[Clip], classes: list[str], key: str) -> bool:
    """Whether the corpus holds these very scores; says what it will replace otherwise.

    Raises InputError where score files or a scorer lie that this script has not written.
    """
    path, folders = cfg.corpus / RECORD, {split: cfg.corpus / split / "scores" for split in SPLITS}
    record: dict[str, Any] = {}
    if path.exists():
        cure = "remove it and the folders of scores"
        record = read_json(path, cure, most=MOST_RECORD)
        try:
            check_form(record, {"key": is_text, "fits": [{"scored": [is_text]}]})
        except ValueError:
            raise InputError(f"{path}: not written by scorers.py; {cure}") from None
    elif (cfg.corpus / SCORER).exists():
        raise InputError(f"{cfg.corpus / SCORER}: not written by scorers.py; move it away")
    for folder in folders.values():
        check_scores(folder, record)
    if not record:
        return False
    files = (folders[clip.split] / f"{clip_id(clip.filename)}.tsv" for clip in clips)
    if record["key"] == key and all(map(Path.is_file, files)) and (cfg.corpus / SCORER).is_file():
        print(f"{cfg.corpus}: score files are up to date (scorer {key}), nothing to do")
        return True
    why = "incomplete" if record["key"] == key else "of another configuration or corpus"
    print(f"{cfg.corpus}: the score files there are {why}; scoring again")
    return False


def one_thread() -> None:
    """Two processes beat two threads on small batches, and sums keep their order."""
    torch.set_num_threads(1)


def score_corpus(
    cfg: ScorersConfig, folder: Path, clips: list[Clip], classes: list[str]
) -> list[dict[str, Any]]:
    """Fit every scorer and write all score files below `folder`; a record of each fit."""
    fits = plan(clips)
    with process_pool(min(num_workers(cfg.workers), len(clips)), one_thread) as pool:
        write_store(folder, clips, classes, pool)
        # The fit on all clips takes longest: it starts first.
        tasks = [
            pool.submit(fit_and_score, cfg, fit, folder, clips, classes) for fit in reversed(fits)
        ]
        for _ in tqdm(as_completed(tasks), total=len(tasks), desc="fits", unit="fit"):
            pass
        return [task.result() for task in reversed(tasks)]


def publish(cfg: ScorersConfig, folder: Path, record: dict[str, Any]) -> None:
    """Move score files and network into place; until then scorer.json has no key."""
    path = cfg.corpus / RECORD
    write_json(path, {**record, "key": ""})
    for split in SPLITS:
        target = cfg.corpus / split / "scores"
        discard(target, SCORES)
        with writing(target):
            mark(folder / split, SCORES)
            (folder / split).replace(target)
    with writing(cfg.corpus / SCORER):
        (folder / SCORER).replace(cfg.corpus / SCORER)
    write_json(path, record)


def make_scores(cfg: ScorersConfig) -> None:
    """Score every clip of a corpus out of fold, unless it is done. InputError for a bad corpus."""
    began = time.monotonic()
    clips = read_corpus(cfg.corpus)
    classes = classes_of({f"{clip.split}/{clip.filename}": clip.events for clip in clips})
    key = scorer_key(cfg, clips, classes)
    if is_done(cfg, clips, classes, key):
        return
    with lock(cfg.corpus), scratch_folder(cfg.corpus / ".scores.partial", SCRATCH) as folder:
        done = score_corpus(cfg, folder, clips, classes)
        seconds = [fit.pop("seconds") for fit in done]
        record = {"key": key, "marker": MARKER, "config": to_dict(cfg), "classes": classes}
        publish(cfg, folder, record | {"fits": done})
    print(f"scorer: {len(classes)} classes: {', '.join(map(isolated, classes))}")
    for fit, taken in zip(done, seconds, strict=True):
        if fit["scored"]:
            print(
                f"  {fit['name']}: fitted on {len(fit['trained_on'])} clips in {taken:.0f} s;"
                f" cross-entropy of {len(fit['scored'])} unheard clips {fit['bce']:.3f}"
                f" (class frequencies alone: {fit['bce_of_rates']:.3f})"
            )
    print(f"network for new recordings: {cfg.corpus / SCORER}")
    print(f"score files: {cfg.corpus}/<split>/scores, {time.monotonic() - began:.0f} s in all")


def main(cfg: ScorersConfig) -> None:
    """Score every clip of a corpus out of fold, or convert score files from form to form.

    Raises InputError for a corpus or scores that it cannot use.
    """
    if cfg.convert is not None:
        convert(cfg.convert, cfg.out)
    else:
        make_scores(cfg)


if __name__ == "__main__":
    run_script(ScorersConfig, main)
