"""Score files of any system: a TSV a clip, or NPZ; one check for all of them.

Reads:  <folder>/<clip id>.tsv (`onset, offset`, a column a class), or .npz
Shapes: K classes, T frames; values (K, T) in 0..1, edges (T + 1,) seconds
"""

import difflib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, made, new_folder, whole, write_text
from core.names import name_flaw
from core.stored import MOST_LINE, check_form, file_sha256, map_npz, parse_json, read_text, regular
from sed.caches import listed
from sed.labels import spellings
from sed.timeline import JITTER, ClipScores, _even_frames

TIME_COLUMNS = ["onset", "offset"]
ROUNDING = 1e-6  # by which a score may lie outside 0..1: it is taken for 0 or 1


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

    def identity(self, filename: str) -> list[Any]:
        """JSON-ready facts that change when this clip's scores do; what a rerun may skip by."""

    def clips(self) -> list[str]:
        """Ids of all clips that have scores; `read` takes such an id."""

    def find(self, filename: str) -> str:
        """Id of a clip by its name in the labels: the whole name, else without its extension."""

    def read(self, clip: str) -> ClipScores:
        """Scores of a clip by its id, rows in the order of `classes`; raises InputError naming
        file, line and column."""

    def scores(self, filename: str) -> ClipScores:
        """Scores of a clip by its name in the labels, as `read` gives them."""
        return self.read(self.find(filename))


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


class ScoreFiles(ScoreSource):
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
        self._files: dict[str, Path] | None = None
        if not self.folder.is_dir():
            raise InputError(f"scores {self.folder}: not a folder of .tsv files, nor an .npz file")
        if next(self.folder.rglob("*.tsv"), None) is None:
            raise InputError(f"scores {self.folder}: no .tsv files")
        if classes is None:
            first = next(iter(self.files.values()))
            classes = _renamed(f"{first}", _read_header(first).classes, self.rename)
        self.classes = list(classes)

    def __getstate__(self) -> dict[str, Any]:
        """A worker reads single clips: the list of all files would go with each of its tasks."""
        return vars(self) | {"_files": None}

    @property
    def files(self) -> dict[str, Path]:
        """All score files by clip id (path below the folder without `.tsv`), sorted by path. Looks
        into each once; names those that are none.

        InputError where there is no other, or a name cannot stand in a table.
        """
        if self._files is None:
            found = sorted(self.folder.rglob("*.tsv"))
            headers = [_read_header(path, strict=False) for path in found]
            others = [path for path, header in zip(found, headers, strict=True) if header is None]
            if len(others) == len(found):
                raise InputError(f"{_no_times(others[0])} (of {len(found)} files: none has them)")
            if others:
                names = listed([str(path.relative_to(self.folder)) for path in others])
                print(f"note: {self.folder}: no scores in {names} (no onset, offset)")
            scores = [path for path, header in zip(found, headers, strict=True) if header]
            self._files = {path.relative_to(self.folder).as_posix()[:-4]: path for path in scores}
            for clip, path in self._files.items():
                if flaw := name_flaw(clip, path=True):
                    raise InputError(f"scores {self.folder}: the name {path.name!r} {flaw}")
        return self._files

    def clips(self) -> list[str]:
        """Ids of all score files, sorted."""
        return sorted(self.files)

    def path(self, clip: str) -> Path:
        """Score file of a clip id."""
        return self.folder / f"{clip}.tsv"

    def find(self, filename: str) -> str:
        names = spellings(filename)
        return next((name for name in names if self._is_there(name)), names[-1])

    def _is_there(self, clip: str) -> bool:
        return os.path.isfile(f"{self.folder}/{clip}.tsv")  # no Path: asked for every clip

    def missing(self, filenames: list[str]) -> list[str]:
        """The clips without a score file; reads one file, so that a wrong folder fails at once."""
        absent = [name for name in filenames if not self._is_there(self.find(name))]
        present = set(filenames) - set(absent)
        if self._first is None and present:
            self.scores(min(present))
        return absent

    def meta(self) -> dict[str, Any]:
        """Folder, classes in order, and a hash over all score files."""
        digest = hashlib.sha256()
        for clip, path in self.files.items():
            regular(path)
            digest.update(f"{clip}.tsv\0".encode() + path.read_bytes())
        return {
            "source": "files",
            "folder": str(self.folder),
            "classes": self.classes,
            "renamed": self.rename,
            "sha256": digest.hexdigest(),
        }

    def identity(self, filename: str) -> list[Any]:
        """Name, size and time of the score file; the names that are read in it."""
        path = self.path(self.find(filename))
        stat = path.stat()
        return [path.name, stat.st_size, stat.st_mtime_ns, sorted(self.rename.items())]

    def read(self, clip: str) -> ClipScores:
        path = self.path(clip)
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


ARCHIVE_ARRAYS = ("classes", "clips", "lengths", "values", "edges")
KEPT_OPEN = 32  # parts; each map keeps a file open, and a process may open a thousand or so


class Part(NamedTuple):
    """One .npz file: clip i is rows starts[i] .. starts[i + 1] of its array `values`.

    Its `edges` are one more, so they start at starts[i] + i.
    """

    path: Path
    classes: list[str]
    clips: list[str]
    starts: np.ndarray  # (clips + 1,)
    tag: np.ndarray | None  # (clips, K)
    meta: dict[str, Any]


class ScoreArchive(ScoreSource):
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
        self._mapped = lru_cache(KEPT_OPEN)(_mapped)  # the last parts that were read
        for path in paths:
            stat, key = regular(path), str(path.resolve())
            stamp = (checked or {}).get(key, ())
            known = tuple(stamp[:2]) == (stat.st_size, stat.st_mtime_ns)
            self._parts.append(_open_part(path, check=not known))
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

    def find(self, filename: str) -> str:
        names = spellings(filename)
        return next((name for name in names if name in self._index), names[-1])

    def _rows(self, part: Part, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (T, K) and edges (T + 1,) of clip i as they lie on disk.

        InputError where the file has changed since it was opened.
        """
        values, edges = self._mapped(part.path)
        rows = int(part.starts[-1])
        shapes = (rows, len(part.classes)), (rows + len(part.clips),)
        if (np.shape(values), np.shape(edges)) != shapes:
            raise InputError(f"{part.path}: changed while it was read; start again")
        a, b = int(part.starts[i]), int(part.starts[i + 1])
        return values[a:b], edges[a + i : b + i + 1]

    def clips(self) -> list[str]:
        """Ids of all clips, in the order of the files."""
        return list(self._index)

    def missing(self, filenames: list[str]) -> list[str]:
        """The clips that are not in the archive."""
        return [name for name in filenames if self.find(name) not in self._index]

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
        part, i = self._index[self.find(filename)]
        values, edges = self._rows(part, i)
        tag = b"" if part.tag is None else part.tag[i].tobytes()
        digest = hashlib.sha256(values.tobytes() + edges.tobytes() + tag)
        return [digest.hexdigest(), part.classes, sorted(self.rename.items())]

    def read(self, clip: str) -> ClipScores:
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


def _mapped(path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Values (rows, K) float32 or float16 and edges (rows + clips,) seconds, mapped from disk."""
    arrays = map_npz(path, check=False)
    return arrays.get("values"), arrays.get("edges")


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
    tag = np.array(arrays["tag"]) if "tag" in arrays else None  # a map would keep the file open
    return Part(path, classes, clips, starts, tag, meta)


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


def checked_scores(values: np.ndarray, edges: np.ndarray, classes: list[str]) -> ClipScores:
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
    return clock.scores(np.ascontiguousarray(values.T, dtype=np.float32))


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

    def where(row: int) -> str:  # empty lines have no row
        numbers = [i for i, line in enumerate(body.splitlines(), start=2) if line.strip()]
        return f"{path} line {numbers[row]}"

    return _checked(where, wanted, table)


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


SCORES = Kind("folder of scores", ("*.tsv", "*/*.tsv", "*/*/*.tsv"))
