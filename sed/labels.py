"""Label files of every form people have -> events of each clip; which of their rows count.

Reads:  a table of many clips (DESED/DCASE, AudioSet strong, Raven), or a folder with a file a clip
        (Audacity label tracks, Raven selection tables)

One rule for labels and predictions, here and nowhere else. A row is *kept*; *cut* where it reaches
over the clip's begin or end; *left out* where nothing of it lies in the clip or it has no length;
or it is *impossible* (no number, an offset before its onset, a name that no table can hold): then
nothing is read, and all such rows are named at once.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from core.errors import InputError
from core.files import write_text
from core.names import UNWRITABLE, name_flaw
from core.stored import read_text
from sed.timeline import COLUMNS, Event

# Our column -> what it is called elsewhere, in lower case; the first one that a table has counts.
NAMES = {
    "filename": ("filename", "segment_id", "file", "begin file", "begin path"),
    "onset": ("onset", "start_time_seconds", "event_onset", "begin time (s)", "start (s)"),
    "offset": ("offset", "end_time_seconds", "event_offset", "end time (s)", "end (s)"),
    "event_label": (
        *("event_label", "label", "annotation", "common name", "species", "species code"),
        *("sound type", "call type", "type", "tags"),
    ),
}
ONE_CLIP = ("begin time (s)", "start (s)")  # Raven and BirdNET: a table may be of one clip
FILE_OFFSET = "file offset (s)"  # Raven: an onset in its own file, where a table spans several
SUFFIXES = (".txt", ".tsv", ".csv")  # of a file a clip
TRACK = re.compile(r"\.(Table\.\d+\.selections|selections|BirdNET\.(selection\.table|results))$")
EMPTY = ("", "nan", "na", "none")  # how an empty cell is written in DESED-like files
TOLD = 10  # rows or clips that are named on the screen; all are in a file
PRECISION_S = 1e-3  # of label files: nobody is told of less, and no event is shorter for a cut


# ---------------------------------------------------------------------------- which rows count

CUT_AT_BEGIN = "begins before 0 (cut there)"
CUT_AT_END = "ends after the clip (cut there)"
NO_LENGTH = "offset equals onset (left out)"
OUTSIDE = "lies outside the clip (left out)"


class Aside(NamedTuple):
    """A row that does not count as it was given, and why."""

    filename: str
    event: Event
    reason: str

    def __str__(self) -> str:
        onset, offset, label = self.event[:3]
        return f"{self.filename} {onset:g} .. {offset:g} {label}"


def fit_events(
    filename: str, events: Iterable[Event], duration_s: float = math.inf
) -> tuple[list[Event], list[Aside]]:
    """What of a clip's events lies in 0 .. duration; and the rows that were cut or left out.

    Any tuples with onset and offset do. Times are finite and no offset comes before its onset.
    """
    kept, asides = [], []
    for event in events:
        onset, offset = max(event.onset, 0.0), min(event.offset, duration_s)
        over = max(onset - event.onset, event.offset - offset)
        if event.offset == event.onset:
            reason = NO_LENGTH
        elif offset <= onset or (over > 0 and offset - onset < PRECISION_S):
            reason = OUTSIDE
        else:
            reason = CUT_AT_BEGIN if event.onset < -PRECISION_S else CUT_AT_END
            reason = reason if over > PRECISION_S else ""
            kept.append(event._replace(onset=onset, offset=offset))
        if reason:
            asides.append(Aside(filename, event, reason))
    return kept, asides


def say_asides(place: str, asides: Sequence[Aside], file: Path | None = None) -> None:
    """Print how many rows were cut or left out for each reason, and the first of them."""
    for reason in dict.fromkeys(aside.reason for aside in asides):
        rows = [str(aside) for aside in asides if aside.reason == reason]
        more = f" and {len(rows) - TOLD} more" if len(rows) > TOLD else ""
        where = f" (all in {file})" if file and more else ""
        print(f"note: {place}: {len(rows)} x {reason}: {'; '.join(rows[:TOLD])}{more}{where}")


def write_asides(path: Path, asides: Sequence[Aside], clips: Iterable[Iterable[str]] = ()) -> None:
    """A TSV with every row that was cut or left out, as it was given, and why.

    `clips` are whole clips that were left out: name and reason.
    """
    lines = ["\t".join([*COLUMNS, "reason"])]
    for filename, reason in clips:
        lines.append(f"{filename}\t\t\t\t{' '.join(reason.split())}")
    for filename, event, reason in asides:
        lines.append(f"{filename}\t{event.onset:.10g}\t{event.offset:.10g}\t{event[2]}\t{reason}")
    write_text(path, "\n".join(lines) + "\n")


def say_left_out(left_out: list[str], file: Path | None = None) -> None:
    """Print how many clips were left out, `name: reason` each, by reason; and the first of them."""
    reasons: dict[str, list[str]] = {}
    for line in left_out:
        name, _, reason = line.partition(": ")
        reasons.setdefault(reason, []).append(name)
    most = sorted(reasons, key=lambda reason: -len(reasons[reason]))
    for reason in most[:TOLD]:
        names = reasons[reason]
        more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
        if len(names) == 1:
            print(f"  left out: {names[0]}: {reason}")
        else:
            print(f"  left out: {len(names)} x {reason}: {', '.join(names[:TOLD])}{more}")
    if len(left_out) > 1:
        more = f", for {len(most) - TOLD} reasons more" if len(most) > TOLD else ""
        where = f", see {file}" if file else ""
        print(f"  left out: {len(left_out)} clips in all{more}{where}")


# ---------------------------------------------------------------------------- names of clips


def clip_id(filename: str) -> str:
    """Clip name without its extension. What begins with a digit is none: `Y--x_30.000_40.000`."""
    return re.sub(r"\.[A-Za-z][A-Za-z0-9]{0,4}$", "", filename)


def spellings(filename: str) -> tuple[str, ...]:
    """What a clip's files may be called: the whole name first, then without its extension."""
    return tuple(dict.fromkeys((filename, os.path.splitext(filename)[0])))


def same_clips(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Name -> the same clip's name among the known ones; names of no known clip are left out.

    The whole name first, then without extensions on either side, where that is one clip.
    """
    known = list(known)
    whole, found = set(known), {}
    ids: dict[str, list[str]] = {}
    for name in known:
        ids.setdefault(clip_id(name), []).append(name)
    for name in names:
        same = [name] if name in whole else ids.get(clip_id(name), [])
        if len(same) == 1:
            found[name] = same[0]
    return found


AUDIO = (".wav", ".flac", ".ogg", ".mp3")


def find_audio(folder: Path, filename: str) -> Path | None:
    """Audio file of a clip: of the whole name, else of one of its spellings with an extension."""
    ends = [end for suffix in AUDIO for end in (suffix, suffix.upper())]
    names = (f"{name}{end}" for name in spellings(filename) for end in ends)
    paths = (f"{folder}/{name}" for name in chain([filename], names))
    found = next(filter(os.path.isfile, paths), None)  # no Path: asked for every clip
    return found and Path(found)


def audio_below(folder: Path) -> list[str]:
    """Names of the recordings in a folder and below it; none of hidden files. InputError without
    any."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO]
    found = [path for path in found if path.is_file() and path.name[0] != "."]
    if not found:
        kinds = ", ".join(AUDIO)
        raise InputError(f"--audio {folder}: no recordings in it or below ({kinds})")
    return [path.relative_to(folder).as_posix() for path in found]


def check_names(names: Iterable[str], where: str) -> None:
    """InputError for a recording whose name no table can hold, and where two names differ in their
    extension only."""
    by_id: dict[str, str] = {}
    for name in names:
        if flaw := name_flaw(name, path=True):
            raise InputError(f"{where}: the name {name!r} {flaw}; rename it")
        if (other := by_id.setdefault(clip_id(name), name)) != name:
            raise InputError(
                f"{where}: {other} and {name} differ in their extension only, so one name would"
                " stand for both; rename or move one"
            )


# ---------------------------------------------------------------------------- reading


class Labels(NamedTuple):
    """Events of each clip by onset, clips in file order; rows that were cut or left out."""

    clips: dict[str, list[Event]]
    asides: list[Aside]

    def of(self, names: Iterable[str]) -> "Labels":
        """The labels of some clips."""
        wanted = set(names)
        clips = {name: events for name, events in self.clips.items() if name in wanted}
        return Labels(clips, [aside for aside in self.asides if aside.filename in wanted])


class Wrong(NamedTuple):
    """A row that is impossible: where it is, why, and what it says."""

    file: Path
    line: int
    why: str
    row: list[str]


def read_labels(path: Path) -> dict[str, list[Event]]:
    """`read_rows`; says which rows were cut or left out."""
    labels = read_rows(path)
    say_asides(str(path), labels.asides)
    return labels.clips


def read_rows(path: Path, empty: bool = False) -> Labels:
    """Label file, or folder with a file a clip -> events of each clip, and the rows set aside.

    The columns are found by name, in any order, further ones are not read; tabs or commas. A row
    without times and label is a clip without events; no clip at all is refused unless `empty`.
    Raises InputError naming every impossible row.
    """
    wrong: list[Wrong] = []
    clips: dict[str, list[Event]] = {}
    if not path.exists():
        raise InputError(f"labels {path}: not found")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        for file in files:
            name = TRACK.sub("", file.relative_to(path).with_suffix("").as_posix())
            for filename, event in _rows_of(file, name, wrong, several=True):
                clips.setdefault(filename, []).extend([event] * (event is not None))
        if not files:
            raise InputError(f"labels {path}: a folder without {', '.join(SUFFIXES)} files")
    else:
        name = TRACK.sub("", path.stem)
        for filename, event in _rows_of(path, name, wrong, several=False):
            clips.setdefault(filename, []).extend([event] * (event is not None))
    if wrong:
        raise InputError(_told(path, wrong))
    if not clips and not empty:
        raise InputError(f"labels {path}: no clips in the file, only a header")
    found, asides = {}, []
    for filename, events in clips.items():
        kept, some = fit_events(filename, events)
        found[filename] = sorted(kept)
        asides += some
    return Labels(found, asides)


def _told(path: Path, wrong: list[Wrong]) -> str:
    """Every impossible row in one line, by file and reason."""

    def said(row: Wrong) -> str:
        return UNWRITABLE.sub("?", ", ".join(row.row))[:120]

    if len(wrong) == 1:
        (row,) = wrong
        return f"{row.file} line {row.line}: {row.why} ({said(row)})"
    groups: dict[tuple[Path, str], list[Wrong]] = {}
    for row in wrong:
        groups.setdefault((row.file, row.why), []).append(row)
    parts = []
    for (file, why), rows in groups.items():
        place = "" if file == path else f"{file.relative_to(path)} "
        lines = _ranges([row.line for row in rows])
        parts.append(f"{place}{lines}: {why} (first: {said(rows[0])})")
    return f"{path}: {len(wrong)} impossible rows, nothing was read; {'; '.join(parts)}"


def _ranges(lines: list[int]) -> str:
    """Line numbers with neighbours drawn together."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return ("line " if len(lines) == 1 else "lines ") + text


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of every line of a table that is not empty; tabs or commas.

    Raises InputError where there is no text to read.
    """
    text = read_text(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    comma = "\t" not in first and "," in first
    quoting = csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE  # a name with a comma needs quotes
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="," if comma else "\t", quoting=quoting)
    try:
        for row in reader:
            stripped = [cell.strip() for cell in row]
            if any(stripped):
                yield reader.line_num, stripped
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: cannot be read ({error})") from None


def records(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a header, by column; raises as `cells`."""
    (_, header), *rows = list(cells(path)) or [(0, [])]
    return [dict(zip(header, row, strict=False)) for _, row in rows]


def _number(text: str) -> float | None:
    try:
        value = float("_" if "_" in text else text)  # Python would read 1_0 as 10
    except ValueError:
        return None
    return value if math.isfinite(value) else None


Row = tuple[str, Event | None]  # a clip and an event of it; None: the row says that there is none


def _rows_of(path: Path, clip: str, wrong: list[Wrong], several: bool) -> Iterator[Row]:
    """Rows of one file; `clip` is the clip of a file that names none. `wrong` gets what is."""
    rows = cells(path)
    line, header = next(rows, (0, []))
    if flaw := name_flaw(clip, path=True):
        raise InputError(f"labels {path.parent}: the name {path.name!r} {flaw}")
    if not header:
        if several:  # a track without labels: as detect.py writes it
            yield clip, None
            return
        raise InputError(f"labels {path}: empty; a header is needed: {', '.join(COLUMNS)}")
    if len(header) in (2, 3) and None not in map(_number, header[:2]):
        yield from _audacity(path, clip, [(line, header), *rows], wrong)
        return
    columns = _columns(path, header)
    if "filename" not in columns:
        if header[columns["onset"]].lower() not in ONE_CLIP:
            raise InputError(f"{path} line {line}: no column filename (found {', '.join(header)})")
        yield clip, None
    elif several and header[columns["onset"]].lower() not in ONE_CLIP:
        raise InputError(
            f"labels {path}: a table of many clips in a folder of label files; give it by itself"
        )
    yield from _table(path, clip, header, columns, rows, wrong)


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Our columns -> theirs by name. InputError for one that is missing or there twice."""
    lower = [name.lower() for name in header]
    columns = {}
    for ours, names in NAMES.items():
        there = [name for name in names if name in lower]
        if there and lower.count(there[0]) > 1:
            raise InputError(f"{path} line 1: column {there[0]} occurs twice")
        if there:
            columns[ours] = lower.index(there[0])
    missing = [name for name in COLUMNS[1:] if name not in columns]
    if not missing:
        return columns
    found = ", ".join(header)
    if any(_number(cell) is not None for cell in header):
        cure = f"put one above it, tab separated: {' '.join(COLUMNS)}"
        raise InputError(f"{path} line 1: no header but {found[:80]}; {cure}")
    what = f"no column {' and no column '.join(missing)}"
    if missing == ["event_label"]:
        what += " (call the column with the names so)"
    semicolon = "; is it separated by semicolons? Use tabs or commas" if ";" in found else ""
    raise InputError(
        f"{path} line 1: {what}; found {found[:200]}; needed: {', '.join(COLUMNS)}{semicolon}"
    )


def _audacity(
    path: Path, clip: str, rows: list[tuple[int, list[str]]], wrong: list[Wrong]
) -> Iterator[Row]:
    """A label track: begin, end, label a line; lines with a backslash hold frequencies."""
    yield clip, None
    for line, row in rows:
        if not row[0].strip("\\"):
            continue
        cells = row + [""] * (3 - len(row))
        event, why = _event(*cells[:3], "" if len(row) <= 3 else "more than three cells")
        if why:
            wrong.append(Wrong(path, line, why, row))
        else:
            yield clip, event


def _event(
    onset_text: str, offset_text: str, label: str, why: str = ""
) -> tuple[Event | None, str]:
    """An event, or None where the cells say that there is none; else why they are impossible."""
    if why:
        return None, why
    times = [text for text in (onset_text, offset_text) if text.lower() not in EMPTY]
    if not times and label.lower() in EMPTY:
        return None, ""
    if not times:
        return None, "a label without times"
    onset, offset = _number(onset_text), _number(offset_text)
    if onset is None or offset is None:
        comma = any(re.fullmatch(r"-?\d+,\d+", text) for text in times)
        return None, "a decimal comma, write 1.5" if comma else "onset or offset is not a number"
    if offset < onset:
        return None, "offset before onset"
    if not label:
        return None, "an event without a label"
    if flaw := name_flaw(label):
        return None, f"the label {flaw}"
    return Event(onset, offset, label), ""


def _table(
    path: Path,
    clip: str,
    header: list[str],
    columns: dict[str, int],
    rows: Iterator[tuple[int, list[str]]],
    wrong: list[Wrong],
) -> Iterator[Row]:
    """Rows of a table with a header."""
    lower = [name.lower() for name in header]
    elsewhere = lower[columns["onset"]] in ONE_CLIP  # such tables name files by their full paths
    spans = lower[columns["onset"]] == "begin time (s)" and "filename" in columns
    in_file = lower.index(FILE_OFFSET) if spans and FILE_OFFSET in lower else None
    seen: dict[Row, None] = {}
    for line, row in rows:
        why = ""
        if len(row) <= max(columns.values()):
            why = f"{len(row)} cells where the header has {len(header)}: cut off?"
        elif any(row[len(header) :]):
            why = f"{len(row)} cells where the header has {len(header)}"
        given, row = row, row + [""] * (len(header) - len(row))
        filename = row[columns["filename"]] if "filename" in columns else clip
        if elsewhere:
            filename = re.split(r"[/\\]", filename)[-1]
        flaw = name_flaw(filename, path=True)
        why = why or (f"the file name {flaw}" if flaw else "")
        cells = [row[columns[name]] for name in COLUMNS[1:]]
        event, why = _event(*cells, why)
        if event is not None and in_file is not None:
            onset = _number(row[in_file])
            why = f"{header[in_file]} is not a number" if onset is None else ""
            late = (onset or 0.0) - event.onset
            event = event._replace(onset=onset or 0.0, offset=event.offset + late)
        if why:
            wrong.append(Wrong(path, line, why, given))
            continue
        if spans and in_file is None and seen and next(iter(seen))[0] != filename:
            raise InputError(
                f"{path} line {line}: times of several files one after the other; export"
                " the column 'File Offset (s)' from Raven too"
            )
        if "view" in lower and (filename, event) in seen:
            continue  # Raven writes a selection once for each view that shows it
        if elsewhere:
            seen[filename, event] = None
        yield filename, event
