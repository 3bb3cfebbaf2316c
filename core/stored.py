"""What is read back: text, JSON and NPZ files, bounded, whole, and as they were written.

Reads:  what its callers name

A file is looked at before anything is allocated for it: a pipe is not opened, a header that claims
more than its file holds is not believed. Every function raises InputError, one line that names the
file and what to do. JSON files of the suite carry a checksum of their content.
"""

import hashlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import InputError
from core.files import write_text

MOST_LINE = 1 << 20  # bytes of a line of text: thousands of classes
MOST_JSON = 1 << 25  # bytes: parsed, JSON takes up to 25 times its size
MOST_UNPACKED = 1 << 28  # bytes of a compressed array whose shape the caller does not know
MOST_ARRAYS = 1_000  # of an .npz file
MOST_NUMBER = 2**63
CHECKSUM = "sha256"  # name of the field

# ---------------------------------------------------------------------------- any file

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def regular(path: Path, cure: str = "") -> os.stat_result:
    """Stat of a file. InputError where there is none, or one that cannot be read twice."""
    cure = f"; {cure}" if cure else ""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({why(error)}){cure}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in KINDS.items() if test(found.st_mode)), "no file")
        raise InputError(f"{path}: is {kind}, not a file{cure}")
    return found


def why(error: BaseException) -> str:
    """One line of why something failed; of an OSError without the path, which is said already."""
    text = os.strerror(error.errno) if getattr(error, "errno", None) else str(error)
    return text.splitlines()[0][:200] if text.strip() else type(error).__name__


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_text(path: Path, cure: str = "") -> str:
    """A text file in UTF-8, each line ending in a line feed.

    InputError, which ends with `cure`: no text, or lines too long for one.
    """
    regular(path, cure)
    cure = f"; {cure}" if cure else ""
    lines = []
    try:
        with open(path, "rb") as stream:
            while line := stream.readline(MOST_LINE + 1):
                if len(line) > MOST_LINE:
                    at = len(lines) + 1
                    raise InputError(f"{path} line {at}: longer than {MOST_LINE:,} bytes{cure}")
                lines.append(line)
        content = b"".join(lines)
        if b"\0" in content:
            raise ValueError("UTF-16, which iconv -f UTF-16 -t UTF-8 converts, or no text")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({why(error)}){cure}") from None
    except ValueError as error:
        raise InputError(f"{path}: not UTF-8 ({why(error)}); save it as UTF-8{cure}") from None


# ---------------------------------------------------------------------------- JSON


def content_hash(value: dict[str, Any]) -> str:
    """SHA-256 of a JSON dictionary: of its content in order, not of blanks and line ends.

    Long lists in it are written item by item: a manifest's text as a whole is as large as itself.
    """
    write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    digest = hashlib.sha256()
    for i, (name, item) in enumerate(value.items()):
        items = item if isinstance(item, list) else []
        text = write({name: [] if items else item})[1:-1]
        digest.update(f"{',' if i else '{'}{text[:-1] if items else text}".encode())
        for j, one in enumerate(items):
            digest.update(f"{',' * (j > 0)}{write(one)}".encode())
        digest.update(b"]" * bool(items))
    digest.update(b"}" if value else b"{}")
    return digest.hexdigest()


def write_json(path: Path, value: dict[str, Any], large: bool = False) -> None:
    """Write JSON with the checksum of its content, for `read_json`. Raises WriteError.

    `large`: a line for each entry of the dictionary; with indents json writes ten times slower.
    """
    content = {name: item for name, item in value.items() if name != CHECKSUM}
    content[CHECKSUM] = content_hash(content)
    if large:
        lines = (
            f" {json.dumps({name: item}, allow_nan=False)[1:-1]}" for name, item in content.items()
        )
        write_text(path, "{\n" + ",\n".join(lines) + "\n}")
    else:
        write_text(path, json.dumps(content, indent=1, allow_nan=False))


Hook = Callable[[dict[str, Any]], Any]  # what to hold in place of a dictionary just parsed


def parse_json(text: str, hook: Hook | None = None) -> Any:
    """A JSON value; ValueError for what is none, NaN included, or nested too deep to be ours."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=refuse, object_hook=hook)
    except RecursionError:
        raise ValueError("brackets in brackets, too deep") from None


def read_json(
    path: Path,
    cure: str,
    unsealed: Collection[str] | None = None,
    most: int = MOST_JSON,
    hook: Hook | None = None,
) -> dict[str, Any]:
    """A JSON dictionary, without its checksum, which must be that of the content.

    `unsealed`: the keys that a file without checksum may have, which are those of the versions that
    wrote none; None: any. InputError ends with `cure`, the command that makes the file.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; {cure}")
    size = regular(path, cure).st_size
    if size > most:
        raise InputError(f"{path}: {size:,} bytes, more than {most:,}; {cure}")
    try:
        value = parse_json(path.read_bytes().decode("utf-8-sig"), hook)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} in place of a dictionary")
        checksum = value.pop(CHECKSUM, None)
        if checksum is None:
            if unsealed is not None and not set(value) <= set(unsealed):
                raise ValueError("no checksum in it")
        elif checksum != content_hash(value):
            raise ValueError("it does not match its checksum")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: damaged ({why(error)}); {cure}") from None
    return value


# ---------------------------------------------------------------------------- what a value may be

Form = Any  # a test, or a list or dictionary of forms; see `misfit`


class Each(NamedTuple):
    """A dictionary of any names whose values have one form."""

    form: Form


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """A finite number of a size that arrays can have; True and False are none."""
    return type(value) in (float, int) and -MOST_NUMBER < value < MOST_NUMBER


def is_count(value: Any) -> bool:
    """A whole number from 0 on."""
    return type(value) is int and 0 <= value < MOST_NUMBER


def is_share(value: Any) -> bool:
    """A number from 0 to 1."""
    return type(value) in (float, int) and 0 <= value <= 1


def maybe(form: Form) -> Callable[[Any], bool]:
    """The form, or None."""

    def test(value: Any) -> bool:
        return value is None or misfit(value, form) is None

    return test


def misfit(value: Any, form: Form) -> str | None:
    """Where a JSON value has not its form: the place of the first wrong part; None: it has.

    A form is a test of a value, `[form]` for a list, a tuple of forms for a list of just so many, a
    dictionary of forms for one that has these keys (others may be there), or `Each`.
    """
    if isinstance(form, (dict, Each)):
        if not isinstance(value, dict):
            return ""
        inner = dict.fromkeys(value, form.form) if isinstance(form, Each) else form
        for name, one in inner.items():
            wrong = "" if name not in value else misfit(value[name], one)
            if wrong is not None:
                return f".{name[:40]}{wrong}"
    elif isinstance(form, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return ""
        if isinstance(form, tuple) and len(form) != len(value):
            return ""
        inner = form if isinstance(form, tuple) else form * len(value)
        for i, (item, one) in enumerate(zip(value, inner, strict=True)):
            # The first is the usual case: a manifest has millions of values.
            wrong = (None if one(item) else "") if callable(one) else misfit(item, one)
            if wrong is not None:
                return f"[{i}]{wrong}"
    elif not form(value):
        return ""
    return None


def check_form(value: Any, form: Form) -> None:
    """ValueError naming the place where a JSON value has not its form, see `misfit`."""
    wrong = misfit(value, form)
    if wrong is not None:
        raise ValueError(f"no usable {wrong.lstrip('.') or 'content'}")


# ---------------------------------------------------------------------------- NPZ


class ArrayEntry(NamedTuple):
    """An array of an .npz file, as its own header and the directory of the file describe it."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    header: int  # bytes before the first number


def open_npz(
    path: Path, cure: str = "", wanted: Collection[str] | None = None
) -> tuple[zipfile.ZipFile, dict[str, ArrayEntry]]:
    """An .npz file and its arrays (or the wanted ones) by name, nothing of them read yet.

    Raises whatever zipfile and numpy raise for damaged files, ValueError for arrays of Python
    objects and for headers that do not fit the file.
    """
    size = regular(path, cure).st_size
    archive = zipfile.ZipFile(path)
    try:
        if len(archive.infolist()) > MOST_ARRAYS:
            raise ValueError(f"{len(archive.infolist()):,} arrays")
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if wanted is not None and name not in wanted:
                continue
            if info.flag_bits & 1 or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise ValueError(f"array {name!r} is packed in an unknown way")
            if name in members:
                raise ValueError(f"array {name!r} is there twice")
            if info.header_offset + info.compress_size > size:
                raise ValueError(f"array {name!r} ends behind the file")
            with archive.open(info) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                header = stream.tell()
            if dtype.hasobject or not dtype.itemsize:
                what = "Python objects" if dtype.hasobject else "items of no size"
                raise ValueError(f"array {name!r} holds {what}")
            claimed = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or claimed != info.file_size - header:
                raise ValueError(f"array {name!r} claims {claimed:,} bytes, which are not there")
            members[name] = ArrayEntry(info, shape, fortran, dtype, header)
    except BaseException:
        archive.close()
        raise
    return archive, members


# Of each dimension its length, a tuple of possible lengths, or None for any; None: any shape.
Shape = tuple[int | tuple[int, ...] | None, ...] | None


def read_npz(
    path: Path,
    forms: dict[str, tuple[str, Shape]],
    cure: str,
    optional: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, checked against the file's own checksums.

    `forms`: name -> (kinds of `dtype.kind`, shape) of those to read. InputError where one is
    missing (but not an `optional` one) or another, where the file is damaged, or unpacks to more
    than is believable.
    """
    try:
        archive, members = open_npz(path, cure, forms)
        with archive:
            arrays = {}
            for name, (kinds, shape) in forms.items():
                if name not in members:
                    if name in optional:
                        continue
                    raise ValueError(f"no array {name!r}")
                member = members[name]
                fits = shape is None or (
                    len(shape) == len(member.shape)
                    and all(
                        wanted in (None, there) or (isinstance(wanted, tuple) and there in wanted)
                        for wanted, there in zip(shape, member.shape, strict=True)
                    )
                )
                if member.dtype.kind not in kinds or not fits:
                    found = f"{member.dtype} {member.shape}"
                    raise ValueError(f"array {name!r} is {found}, not {kinds} {shape}")
                size = member.info.file_size
                stored = member.info.compress_type == zipfile.ZIP_STORED
                known = shape is not None and None not in shape
                if not (stored or known) and size > MOST_UNPACKED:
                    raise ValueError(f"array {name!r} unpacks to {size:,} bytes")
                data = archive.read(member.info)  # checks CRC-32
                array = np.frombuffer(data, member.dtype, offset=member.header)
                arrays[name] = array.reshape(member.shape, order="F" if member.fortran else "C")
            return arrays
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have their own classes for damaged files
        raise InputError(f"{path}: damaged ({why(error)}); {cure}") from None


def map_npz(path: Path, check: bool) -> dict[str, np.ndarray]:
    """Arrays of an .npz file that `numpy.savez` wrote, mapped from disk: processes share the pages.

    With `check`, the file's own checksums are compared first, which reads all of it once. numpy
    itself maps .npy files only. InputError where the file is damaged or compressed.
    """
    try:
        archive, members = open_npz(path)
        with archive, open(path, "rb") as stream:
            if any(m.info.compress_type != zipfile.ZIP_STORED for m in members.values()):
                raise ValueError("compressed; numpy.savez writes what can be mapped")
            if check and (damaged := archive.testzip()):
                raise ValueError(f"{damaged} does not match its checksum")
            arrays = {}
            for name, (info, shape, fortran, dtype, header) in members.items():
                stream.seek(info.header_offset + 26)  # zip: lengths of the name and the extra field
                lengths = np.frombuffer(stream.read(4), "<u2")
                start = info.header_offset + 30 + int(lengths.sum()) + header
                order = "F" if fortran else "C"
                empty = 0 in shape  # which cannot be mapped
                arrays[name] = (
                    np.empty(shape, dtype, order)
                    if empty
                    else np.memmap(path, dtype, "r", start, shape, order)
                )
            return arrays
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have their own classes for damaged files
        raise InputError(f"{path}: cannot be read ({why(error)})") from None
