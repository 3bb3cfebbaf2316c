"""What we write: files whole or not at all, folders of ours only, one process at a time.

Reads:  the marker `.threshold-dqn` of a folder: which kind of folder it is, of which version
Writes: that marker, `.lock` while a process writes into a folder, files under temporary names

A folder is ours by its marker, or, made by an older version, by what such folders have always held.
Nothing in a folder that is not ours is written or deleted, and in ours only what we wrote.
"""

import fnmatch
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from core.errors import InputError, WriteError
from core.processes import start_of

# ---------------------------------------------------------------------------- one file


def system_error(error: BaseException | None) -> OSError | None:
    """The system's own word for a failed write, which torch and others wrap; None: something else.

    Network errors are OSErrors too, but not about a file.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    network = isinstance(error, (ConnectionError, TimeoutError))
    return None if network or type(error).__module__ != "builtins" else error


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make a failed write of `path` (or of the temporary file for it) one line that names it.

    Raises WriteError for it; errors about other files pass through.
    """
    try:
        yield
    except WriteError as error:  # of a function that wrote the temporary file by itself
        text = str(error)
        raise WriteError(text.replace(str(temporary), str(path)) if temporary else text) from None
    except (OSError, RuntimeError) as error:
        cause = system_error(error)
        named = {cause.filename, cause.filename2} - {None} if cause else set()
        if cause is None or (named and not named & {str(path), str(temporary)}):
            raise
        reason = os.strerror(cause.errno) if cause.errno else f"{cause}; is the disk full?"
        raise WriteError(f"{path}: cannot be written ({reason})") from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed at the end, so a file is never half.

    The name cannot be foreseen and is new: nobody can have put a link there. It goes where
    anything fails. Raises WriteError.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    if path.exists() and not path.is_file():
        raise WriteError(f"{path}: cannot be written (it is a folder or a device)")
    with writing(path, temporary):
        os.close(os.open(temporary, new, 0o666))
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # what `whole` calls them


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises WriteError."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, line ends as they are, whole or not at all. Raises WriteError."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_together(parts: dict[Path, Callable[[Path], None]]) -> None:
    """Write files that belong together: path -> what writes it, given a temporary name.

    They take their places when all are written. The last one says what the others are: it is
    removed before the first is replaced and comes last, so it never stands beside files of another
    time. The caller has a lock on their folders. Raises WriteError.
    """
    with ExitStack() as stack:  # which leaves in the reverse order
        for home in {path.parent for path in parts}:
            stack.enter_context(made(home))
            sweep(home)
        temporary = {path: stack.enter_context(whole(path)) for path in reversed(parts)}
        for path, write in parts.items():
            with writing(path, temporary[path]):
                write(temporary[path])
        next(reversed(parts)).unlink(missing_ok=True)


# ---------------------------------------------------------------------------- one folder

MARKER, LOCK = ".threshold-dqn", ".lock"
VERSION = 1


class Kind(NamedTuple):
    """A kind of folder that we make."""

    name: str
    files: tuple[str, ...] = ()  # all that we write there, as patterns; only that is ever deleted
    # What those of older versions, without a marker, have: file (or pattern) and a key of its JSON.
    older: tuple[tuple[str, str], ...] = ()


def kind_of(folder: Path) -> str | None:
    """Kind that the marker of a folder names; None without one. InputError for a newer version."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        name, version = str(found["kind"]), int(found["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version > VERSION:
        raise InputError(f"{folder}: made by a newer version of this suite; give another folder")
    return name


def is_ours(folder: Path, kind: Kind) -> bool:
    """Whether a folder is of this kind and made by us, in whatever version."""
    if (found := kind_of(folder)) is not None:
        return found == kind.name

    def has(path: Path, key: str) -> bool:
        try:
            return not key or key in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return False

    signs = [any(has(path, key) for path in folder.glob(file)) for file, key in kind.older]
    return bool(signs) and all(signs)


def contents(folder: Path) -> list[str]:
    """Sorted names in a folder, without what only this module puts there."""

    def is_own(name: str) -> bool:
        # The library keeps a lock that it breaks under a longer name for a moment.
        return name == MARKER or name.startswith(LOCK) or bool(TEMPORARY.fullmatch(name))

    return sorted(path.name for path in folder.iterdir() if not is_own(path.name))


def mark(folder: Path, kind: Kind) -> None:
    """Say in a folder of which kind it is. Raises WriteError."""
    write_text(folder / MARKER, json.dumps({"kind": kind.name, "version": VERSION}))


def check_ours(folder: Path, *kinds: Kind, flag: str = "--out") -> None:
    """InputError where a folder is neither new, empty, nor one of ours of such a kind."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder}: is a file, not a folder")
    if not folder.exists() or not (found := contents(folder)):
        return
    if not any(is_ours(folder, kind) for kind in kinds):
        marked = kind_of(folder)
        what = f"is a {marked} and" if marked else "holds other files and"
        cure = "give a new or an empty folder"
        raise InputError(f"{flag} {folder}: {what} no {kinds[0].name} ({found[0]}); {cure}")


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder with those above it; new ones that are empty in the end go again.

    Raises WriteError.
    """
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()


def matching(folder: Path, patterns: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """All files below a folder: those that one of the patterns names, and the others.

    A pattern has a part for each folder on the way. The lock and folders are neither.
    """
    split = [pattern.split("/") for pattern in patterns]

    def is_meant(parts: tuple[str, ...]) -> bool:
        if parts[-1] == MARKER or TEMPORARY.fullmatch(parts[-1]):
            return True
        same = [pattern for pattern in split if len(pattern) == len(parts)]
        return any(all(map(fnmatch.fnmatchcase, parts, pattern)) for pattern in same)

    ours, others = [], []
    for path in sorted(folder.rglob("*")):
        if (path.is_symlink() or not path.is_dir()) and not path.name.startswith(LOCK):
            (ours if is_meant(path.relative_to(folder).parts) else others).append(path)
    return ours, others


def check_file(path: Path, start: str, flag: str = "--out") -> None:
    """InputError where a file is there that does not begin as those that we would write."""
    if path.is_dir():
        raise InputError(f"{flag} {path}: is a folder; give the name of a file")
    if path.exists():
        with open(path, "rb") as stream:
            if not stream.read(len(start.encode())) == start.encode():
                raise InputError(f"{flag} {path}: is there and not of this suite; move it away")


def remove_ours(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the files that the patterns name, and the folders below that are empty then."""
    ours, _ = matching(folder, patterns)
    for path in ours:
        if path != folder / MARKER:
            path.unlink()
    homes = {home for path in ours for home in path.parents if folder in home.parents}
    for home in sorted(homes, reverse=True):
        if not any(home.iterdir()):
            home.rmdir()


def keep_apart(
    output: Path, inputs: Iterable[Path | None], flag: str = "--out", replaced: bool = False
) -> None:
    """InputError where an output is one of the command's own inputs, under whatever name.

    `replaced`: what the output holds will go, so no input may lie in it either.
    """
    place = output.resolve()
    for path in filter(None, inputs):
        found = path.resolve()
        same = found == place or (replaced and place in found.parents)
        with suppress(OSError):
            same = same or output.samefile(path)  # hard links, names that differ in case
        if same:
            what = "is an input of this command" if found == place else f"holds the input {path}"
            raise InputError(f"{flag} {output}: {what}; give another name")


# ---------------------------------------------------------------------------- one writer

LEASE_S = 60.0  # a holder on another machine that is silent for so long is gone


def _is_here(pid: int, host: str) -> bool:
    """Whether the holder of a lock is a process of this machine that is not dead."""
    if host.partition("?")[0] != socket.gethostname():  # behind ?: the container
        return False
    if os.path.exists("/proc/self/stat"):
        return start_of(pid) is not None
    if os.name == "nt":  # where signal 0 is Ctrl-C; the library looks by itself
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _held(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock file `path` of a folder.

    The library frees it where its holder is gone: at once where that was a process of this machine,
    after LEASE_S of silence where it was elsewhere (a thread of the holder touches the file).
    """
    held = SoftFileLease(path, lease_duration=LEASE_S)
    patience = 0.0
    while not held.is_locked:
        try:
            with writing(path):
                held.acquire(timeout=patience, poll_interval=0.5)
        except (Timeout, LeaseSettingsMismatch):
            owner = held.owner
            who = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
            if patience or (owner and _is_here(owner.pid, owner.hostname)):
                cure = "wait until it has ended, or give another folder"
                raise InputError(f"{folder}: {who} is writing there; {cure}") from None
            patience = 1.25 * LEASE_S
            print(f"{folder}: {who} was writing there; looking for {patience:.0f} s if it still is")
    try:
        yield
    finally:
        with suppress(OSError):
            held.release()


def sweep(folder: Path) -> None:
    """Delete the temporary files that a killed process has left; the caller holds the folder."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder. InputError names the one that already does."""
    with _held(folder / LOCK, folder):
        sweep(folder)
        yield


@contextmanager
def own_folder(folder: Path, *kinds: Kind, flag: str = "--out") -> Iterator[None]:
    """Make or take a folder of ours and be the only process that writes into it.

    Raises as `check_ours`, WriteError, and InputError that names the process which already writes
    there. A new folder into which nothing was written goes again.
    """
    check_ours(folder, *kinds, flag=flag)
    new = not folder.exists()
    with made(folder):
        try:
            if kind_of(folder) is None:  # an empty folder becomes one of the first kind
                known = [kind for kind in kinds if is_ours(folder, kind)]
                mark(folder, (known or kinds)[0])
            with lock(folder):
                yield
        finally:
            if new and not (folder.is_dir() and contents(folder)):
                with suppress(OSError):
                    (folder / MARKER).unlink()


# ---------------------------------------------------------------------------- a whole folder


def work_folder(target: Path) -> Path:
    """Where the folder that will be `target` is made: beside it, so that renaming is enough."""
    target = Path(os.path.realpath(target))
    return target.with_name(f".{target.name}.partial")


def discard(folder: Path, kind: Kind) -> None:
    """Delete a folder of ours as far as what it holds is ours; one that is not there is fine."""
    with suppress(OSError):
        remove_ours(folder, kind.files)
        (folder / MARKER).unlink(missing_ok=True)
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):  # not empty
                path.rmdir()
        folder.rmdir()


def check_in_the_way(folder: Path, kind: Kind) -> None:
    """InputError where something foreign has the name of a folder that comes and goes."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is in the way; move it away")
    if others := matching(folder, kind.files)[1]:
        raise InputError(f"{folder}: is in the way and holds {others[0].name}; move it away")


@contextmanager
def scratch_folder(path: Path, kind: Kind, keep: bool = False) -> Iterator[Path]:
    """A folder for what is being made; what is left in it at the end goes. The caller has a lock.

    `keep`: what an interrupted run has left there stays and is taken on, unless a write failed.
    Raises InputError where something foreign has its name, and WriteError.
    """
    check_in_the_way(path, kind)
    if not keep:
        discard(path, kind)
    try:
        with writing(path):
            path.mkdir(exist_ok=True)
        sweep(path)
        yield path
    except BaseException as error:
        if not keep or isinstance(error, WriteError):
            discard(path, kind)
        raise
    discard(path, kind)


def check_replaceable(target: Path, kind: Kind, flag: str = "--out", fresh: bool = False) -> None:
    """InputError where a folder cannot be replaced whole: foreign, or with foreign files in it.

    `fresh`: none is replaced at all.
    """
    check_ours(target, kind, flag=flag)
    if fresh and target.exists() and contents(target):
        raise InputError(f"{flag} {target}: is there already; remove it or give another name")
    if target.exists() and (others := matching(target, kind.files)[1]):
        name = others[0].relative_to(target)
        raise InputError(
            f"{flag} {target}: holds a file that this suite did not write ({name}); move it away"
        )


@contextmanager
def new_folder(
    target: Path, kind: Kind, flag: str = "--out", keep: bool = False, fresh: bool = False
) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` whole when all went well, under a lock.

    `keep`: what an interrupted run has left in it is taken on; else it is empty, and goes where
    anything fails. A failed write leaves nothing in any case. `fresh`: `target` is not replaced but
    must be new or empty. Raises InputError where `target` or what stands in the way is not ours or
    another process writes there, and WriteError.
    """
    check_replaceable(target, kind, flag, fresh)
    real = Path(os.path.realpath(target))
    old = real.with_name(f".{real.name}.old")
    with made(real.parent), _held(real.with_name(f".{real.name}{LOCK}"), target):
        check_in_the_way(old, kind)
        if old.exists() and not real.exists():  # killed between the two renames below
            old.rename(real)
        discard(old, kind)
        with scratch_folder(work_folder(real), kind, keep) as work:
            mark(work, kind)
            yield work
            check_replaceable(target, kind, flag, fresh)
            with writing(target):
                if real.exists():
                    real.rename(old)
                work.rename(real)
        discard(old, kind)
