"""What the tests of the studies share: a package run as `python -m` runs it, in this process, and
a temporary folder in which stable-baselines3 may leave nothing."""

import runpy
import sys
import tempfile
from collections.abc import Callable

import pytest


@pytest.fixture(scope="module", autouse=True)  # not longer: tests elsewhere need a public folder
def nothing_left_behind(tmp_path_factory):
    """Unless told otherwise, each training of stable-baselines3 leaves the folder of a log."""
    home = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(home))
        yield
    assert not list(home.glob("SB3-*"))


@pytest.fixture
def run_module(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`run_module("studies.classic", "angle")` -> exit code, what it printed, its errors."""

    def run(package: str, *args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [package, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(package, run_name="__main__", alter_sys=True)
        text = capsys.readouterr()
        return int(stop.value.code or 0), text.out, text.err

    return run
