"""core/files.py: whole files, folders of ours only, one writer at a time."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import SoftFileLease

from core import files
from core.errors import InputError, WriteError
from core.files import (
    Kind,
    check_file,
    contents,
    keep_apart,
    kind_of,
    lock,
    new_folder,
    own_folder,
    remove_ours,
    whole,
    work_folder,
    write_text,
    write_together,
)
from core.stored import write_json

ROOT = Path(__file__).resolve().parent.parent.parent
NOTES = Kind("folder of notes", ("note-*.txt", "sub/*.txt"), (("notes.json", "notes"),))
OTHER = Kind("other folder")


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    found = {path for path in folder.rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


# ---------------------------------------------------------------------------- one file


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "first")
    with pytest.raises(KeyboardInterrupt), whole(path) as temporary:
        temporary.write_text("second")
        raise KeyboardInterrupt
    assert everything(tmp_path) == {"x.txt": b"first"}


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Even where the temporary name could be foreseen."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(WriteError, match=r"x\.txt"):
        write_text(tmp_path / "x.txt", "theirs")
    assert victim.read_text() == "mine" and not (tmp_path / "x.txt").exists()


def test_temporary_names_are_not_foreseeable(tmp_path):
    with whole(tmp_path / "x") as first, whole(tmp_path / "x") as second:
        assert first != second


def test_a_link_to_a_file_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "target").read_text() == "mine" and (tmp_path / "x").read_text() == "new"


def test_a_device_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(WriteError):
            write_text(path, "x")
    assert (tmp_path / "pipe").is_fifo()


class FullDisk:
    """A stream that takes nothing."""

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        pass


FAILING = {
    "plain": lambda: FullDisk().write(b""),
    "torch": lambda: torch.save({"x": torch.zeros(10)}, FullDisk()),
    "numpy": lambda: np.zeros(2**20).tofile("/dev/full"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_full_disk_is_one_line_that_names_the_file(name, tmp_path):
    match = r"x\.pt: cannot be written"
    with pytest.raises(WriteError, match=match) as failed, whole(tmp_path / "x.pt"):
        FAILING[name]()
    assert "\n" not in str(failed.value) and not everything(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/another/input.wav"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError("slow"),
        RuntimeError("CUDA out of memory"),
        ValueError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_left_alone(error, tmp_path):
    with pytest.raises(type(error)) as failed, whole(tmp_path / "x"):
        raise error
    assert failed.value is error and not everything(tmp_path)


# ---------------------------------------------------------------------------- what belongs together


def parts_of(folder: Path, text: str) -> dict:
    return {folder / name: lambda path: path.write_text(text) for name in ("a", "sub/b", "first")}


def test_files_that_belong_together_are_replaced_together(tmp_path):
    write_together(parts_of(tmp_path, "one"))
    assert everything(tmp_path) == {"a": b"one", "first": b"one", "sub/b": b"one"}

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("a", "sub/b", "first"):
        with pytest.raises(WriteError, match=name):
            write_together(parts_of(tmp_path, "two") | {tmp_path / name: fails})
        assert everything(tmp_path) == {"a": b"one", "first": b"one", "sub/b": b"one"}


def test_leftovers_of_a_killed_process_go_from_all_their_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / ".0123456789abcdef.tmp").write_text("half")
    write_together(parts_of(tmp_path, "one"))
    assert set(everything(tmp_path)) == {"a", "first", "sub/b"}


def test_nothing_is_left_of_what_was_new(tmp_path):
    def fails(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match="first"):
        write_together(parts_of(tmp_path, "x") | {tmp_path / "first": fails})
    assert not list(tmp_path.iterdir())


def test_the_one_that_speaks_for_the_others_never_stands_beside_newer_ones(tmp_path, monkeypatch):
    """Killed between any two renames: the old one is gone before the first file is new."""
    write_together(parts_of(tmp_path, "old"))
    replace, seen = Path.replace, []

    def spy(self: Path, target: Path) -> Path:
        found = {n: (tmp_path / n).exists() for n in ("a", "sub/b", "first")}
        seen.append((target.name, found["first"]))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    write_together(parts_of(tmp_path, "new"))
    assert seen == [("a", False), ("b", False), ("first", False)]


# ---------------------------------------------------------------------------- whose folder


def test_a_new_folder_is_marked_and_taken_again(tmp_path):
    for _ in range(2):
        with own_folder(tmp_path / "x", NOTES):
            (tmp_path / "x" / "note-1.txt").write_text("x")
    assert kind_of(tmp_path / "x") == NOTES.name and contents(tmp_path / "x") == ["note-1.txt"]


def test_a_foreign_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    for refused in (own_folder, new_folder):
        with pytest.raises(InputError, match=r"thesis\.tex"), refused(tmp_path, NOTES):
            raise AssertionError("not reached")
    assert everything(tmp_path) == {"thesis.tex": b"years"}


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with own_folder(tmp_path / "x", OTHER):
        (tmp_path / "x" / "y").write_text("y")
    for refused in (own_folder, new_folder):
        with pytest.raises(InputError, match="other folder"), refused(tmp_path / "x", NOTES):
            raise AssertionError("not reached")
    with own_folder(tmp_path / "x", NOTES, OTHER):
        pass
    assert kind_of(tmp_path / "x") == OTHER.name


def test_folders_of_older_versions_are_known(tmp_path):
    write_json(tmp_path / "notes.json", {"notes": []})
    with own_folder(tmp_path, OTHER, NOTES):
        pass
    assert kind_of(tmp_path) == NOTES.name
    (tmp_path / files.MARKER).unlink()
    for text in ('{"other": 1}', "[", '"notes"'[:3], "3"):
        (tmp_path / "notes.json").write_text(text)
        with pytest.raises(InputError, match=r"notes\.json"), own_folder(tmp_path, NOTES):
            raise AssertionError("not reached")


def test_a_newer_version_is_not_touched(tmp_path):
    (tmp_path / files.MARKER).write_text(json.dumps({"kind": NOTES.name, "version": 99}))
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match="newer"), own_folder(tmp_path, NOTES):
        raise AssertionError("not reached")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("x")
    for refused in (own_folder, new_folder):
        with pytest.raises(InputError, match="file"), refused(tmp_path / "x", NOTES):
            raise AssertionError("not reached")


def test_a_folder_without_anything_in_it_goes_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(InputError, match="no input"), own_folder(tmp_path / name, NOTES):
            raise InputError("no input")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_what_we_wrote_is_removed(tmp_path):
    ours = ("note-1.txt", "sub/a.txt", ".0123456789abcdef.tmp")
    theirs = ("note-1.md", "sub/b.md", "sub/deep/a.txt", "deep/note-2.txt", "x.tmp", "a.txt")
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "a.txt").write_text("mine")
    (tmp_path / "sub" / "link.txt").symlink_to(outside / "a.txt")
    remove_ours(tmp_path, NOTES.files)
    assert set(everything(tmp_path)) == set(theirs)
    assert (outside / "a.txt").read_text() == "mine"


# ---------------------------------------------------------------------------- a folder replaced


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "x"
    for text in ("one", "two"):
        with new_folder(target, NOTES) as folder:
            (folder / f"note-{text}.txt").write_text(text)
            if text == "two":  # until the end the old one is there
                assert contents(target) == ["note-one.txt"]
    assert contents(target) == ["note-two.txt"] and contents(tmp_path) == ["x"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "x"
    with new_folder(target, NOTES) as folder:
        (folder / "note-1.txt").write_text("one")
    for error in (InputError("x"), WriteError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), new_folder(target, NOTES) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a.txt").write_text("half")
            raise error
        assert contents(target) == ["note-1.txt"] and contents(tmp_path) == ["x"]


def test_what_an_interrupted_run_left_is_taken_on(tmp_path):
    target = tmp_path / "x"
    for error in (KeyboardInterrupt, InputError):
        with pytest.raises(error), new_folder(target, NOTES, keep=True) as folder:
            (folder / f"note-{error.__name__}.txt").write_text("done")
            (folder / ".0123456789abcdef.tmp").write_text("half")
            raise error
    with new_folder(target, NOTES, keep=True) as folder:
        assert contents(folder) == ["note-InputError.txt", "note-KeyboardInterrupt.txt"]
        assert not (folder / ".0123456789abcdef.tmp").exists()
    with pytest.raises(WriteError), new_folder(target, NOTES, keep=True):
        raise WriteError("full")
    assert contents(tmp_path) == ["x"]


def test_foreign_files_in_a_folder_of_ours_are_not_thrown_away(tmp_path):
    with new_folder(tmp_path / "x", NOTES) as folder:
        (folder / "note-1.txt").write_text("one")
    (tmp_path / "x" / "mine.doc").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.doc"), new_folder(tmp_path / "x", NOTES):
        raise AssertionError("not reached")
    assert contents(tmp_path / "x") == ["mine.doc", "note-1.txt"]


@pytest.mark.parametrize("name", [".x.partial", ".x.old"])
def test_foreign_folders_in_the_way_stay(name, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "note-1.txt").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="in the way"), new_folder(tmp_path / "x", NOTES):
        raise AssertionError("not reached")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis\.tex"), new_folder(tmp_path / "x", NOTES):
        raise AssertionError("not reached")
    assert (tmp_path / "elsewhere" / "note-1.txt").read_text() == "mine"
    assert (tmp_path / name / "thesis.tex").read_text() == "years"


def test_killed_between_the_two_renames(tmp_path):
    with new_folder(tmp_path / "x", NOTES) as folder:
        (folder / "note-1.txt").write_text("one")
    (tmp_path / "x").rename(tmp_path / ".x.old")
    with pytest.raises(InputError, match="no input"), new_folder(tmp_path / "x", NOTES):
        raise InputError("no input")
    assert contents(tmp_path / "x") == ["note-1.txt"] and contents(tmp_path) == ["x"]


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "real")
    for text in ("one", "two"):
        with new_folder(tmp_path / "x", NOTES) as folder:
            assert folder.parent == tmp_path / "disk" and folder == work_folder(tmp_path / "x")
            (folder / f"note-{text}.txt").write_text(text)
    assert (tmp_path / "x").is_symlink()
    assert contents(tmp_path / "disk" / "real") == ["note-two.txt"]


def test_fresh_replaces_nothing(tmp_path):
    with new_folder(tmp_path / "x", NOTES, fresh=True) as folder:
        (folder / "note-1.txt").write_text("one")
    refused = new_folder(tmp_path / "x", NOTES, fresh=True)
    with pytest.raises(InputError, match="there already"), refused:
        raise AssertionError("not reached")


# ---------------------------------------------------------------------------- inputs as outputs


def test_an_output_that_is_an_input(tmp_path):
    path = tmp_path / "in.npz"
    path.write_text("x")
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "hard")
    for output in (path, tmp_path / "link", tmp_path / "hard", tmp_path / "y" / ".." / "in.npz"):
        with pytest.raises(InputError, match="input"):
            keep_apart(output, [None, path])
    keep_apart(tmp_path / "out.npz", [None, path, tmp_path])
    keep_apart(tmp_path, [path])
    with pytest.raises(InputError, match=r"in\.npz"):
        keep_apart(tmp_path, [path], replaced=True)


def test_a_file_that_does_not_look_like_ours_is_not_replaced(tmp_path):
    path = tmp_path / "x.tsv"
    check_file(path, "a\tb\n")
    path.write_text("a\tb\n1\t2\n")
    check_file(path, "a\tb\n")
    for content in (b"", b"a,b\n", b"\x00\xff", b"a\tb"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.tsv"):
            check_file(path, "a\tb\n")


# ---------------------------------------------------------------------------- one writer

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from core.files import Kind, own_folder
with own_folder(Path(sys.argv[2]), Kind("folder of notes")):
    Path(sys.argv[2], "note-1.txt").write_text("x")
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into tmp_path / x."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path / "x")], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_the_first_one_is(holder, tmp_path, capsys):
    refused = own_folder(tmp_path / "x", NOTES)
    with pytest.raises(InputError, match=rf"process {holder.pid} on \S+"), refused:
        raise AssertionError("not reached")
    assert capsys.readouterr().out == ""  # it does not wait for one that is alive
    with own_folder(tmp_path / "y", NOTES):  # another folder is free
        pass
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_ends_with_its_process(number, holder, tmp_path):
    holder.send_signal(number)
    holder.wait()
    with own_folder(tmp_path / "x", NOTES):
        pass
    assert contents(tmp_path / "x") == ["note-1.txt"]
    assert not (tmp_path / "x" / files.LOCK).exists()


def test_a_dead_holder_that_nobody_waited_for_is_not_alive(holder):
    assert files._is_here(holder.pid, socket.gethostname())
    assert not files._is_here(holder.pid, "elsewhere")
    holder.send_signal(signal.SIGSTOP)
    assert files._is_here(holder.pid, socket.gethostname())
    holder.kill()
    if not Path("/proc/self/stat").exists():
        pytest.skip("only Linux tells")
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert not files._is_here(holder.pid, socket.gethostname())


def foreign_lock(path: Path, lease_s: float) -> None:
    """A lock that a process of another machine holds, or held."""
    held = SoftFileLease(path, lease_duration=lease_s)
    held.acquire()
    text = path.read_text()
    held.release()
    lines = [
        f"host=elsewhere\npid={2**22 + 1}" if x.startswith("host=") else x
        for x in text.splitlines()
        if not x.startswith(("pid=", "start="))
    ]
    path.write_text("\n".join(lines) + "\n")


def test_a_silent_holder_elsewhere_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "LEASE_S", 1.0)
    foreign_lock(tmp_path / files.LOCK, 1.0)
    with lock(tmp_path):
        assert "elsewhere" in capsys.readouterr().out


def test_a_holder_elsewhere_that_is_heard_of_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEASE_S", 1.0)
    path = tmp_path / files.LOCK
    foreign_lock(path, 1.0)
    beats = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\nwhile True: os.utime(sys.argv[1]); "
         "time.sleep(0.1)", str(path)]
    )  # fmt: skip
    try:
        with pytest.raises(InputError, match="elsewhere"), lock(tmp_path):
            raise AssertionError("not reached")
    finally:
        beats.kill()
        beats.wait()


def test_a_held_lock_is_heard_of(tmp_path, monkeypatch):
    """The holder touches its file well within the time after which others give it up."""
    monkeypatch.setattr(files, "LEASE_S", 0.6)
    with lock(tmp_path):
        first = (tmp_path / files.LOCK).stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while (tmp_path / files.LOCK).stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / ".0123456789abcdef.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("mine")
    with lock(tmp_path):
        assert contents(tmp_path) == ["mine.tmp"]
    assert set(everything(tmp_path)) == {"mine.tmp"}


def test_a_folder_that_vanishes_under_its_holder(tmp_path):
    with own_folder(tmp_path / "x", NOTES):
        (tmp_path / "x" / files.MARKER).unlink()
        (tmp_path / "x" / files.LOCK).unlink()
        (tmp_path / "x").rmdir()
