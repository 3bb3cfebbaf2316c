"""The Dockerfile without Docker: its rules checked as text, its installation replayed."""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import structure

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Dockerfile -> (instruction, argument) pairs, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in pairs]


STEPS = instructions(TEXT)
PIP = [i for i, (name, rest) in enumerate(STEPS) if name == "RUN" and "pip install" in rest]


def arguments(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments("ENV") for pair in shlex.split(rest))


def commands(rest: str) -> list[list[str]]:
    """Words of each command of a RUN line; shell operators end a command."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
    lexer.wordchars += "${}:+"
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def apt_packages() -> list[str]:
    words = [
        word
        for rest in arguments("RUN")
        for command in commands(rest)
        if command[:2] == ["apt-get", "install"]
        for word in command[2:]
    ]
    return [word for word in words if not word.startswith("-")]


# ---------------------------------------------------------------------------- rules


def test_base_is_pinned():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert ":latest" not in TEXT


def test_requirements_are_installed_before_the_sources_are_copied():
    copies = {rest: i for i, (name, rest) in enumerate(STEPS) if name == "COPY"}
    (requirements,) = (i for rest, i in copies.items() if "requirements.txt" in rest)
    assert requirements < min(PIP) <= max(PIP) < copies[". ."]


def test_nothing_is_installed_or_upgraded_past_the_pins():
    for i in PIP:
        for command in commands(STEPS[i][1]):
            files = [word for word in command if word.endswith(".txt")]
            assert files, "packages come from the requirements files only"
            assert "--no-cache-dir" in command
            assert not {"-U", "--upgrade"} & set(command)


@pytest.mark.parametrize("rest", arguments("RUN"))
def test_no_version_specifier_is_a_redirect(rest):
    """`RUN pip install a>=1` writes a file called `=1` and drops the version."""
    words = [word for command in commands(rest) for word in command]
    assert not [word for word in words if set(word) <= set("<>")]


def test_redirects_are_seen():
    assert ">" in commands("pip install a>=1")[0]
    assert commands("pip install 'a>=1' && true") == [["pip", "install", "a>=1"], ["true"]]


def test_apt_leaves_nothing_behind():
    for rest in arguments("RUN"):
        if "apt-get install" in rest:
            assert rest.startswith("apt-get update && ")
            assert "--no-install-recommends" in rest
            assert rest.endswith("rm -rf /var/lib/apt/lists/*")
    assert "tmux" in apt_packages()


def test_any_user_can_work():
    """An arbitrary uid has no passwd entry: home, shell and caches must be given and writable."""
    user = arguments("USER")[-1]
    assert user.partition(":")[0] not in ("root", "0")
    given = environment()
    home = given["HOME"]
    assert any(f"chmod 1777 {home}" in rest for rest in arguments("RUN"))
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert given[name].startswith(f"{home}/")
    assert given["SHELL"] == "/bin/bash"
    assert given["USER"]  # torch and getpass ask for a name
    assert given["LANG"] == "C.UTF-8"
    folder = arguments("WORKDIR")[-1]
    assert any(f"chmod -R a+rwX {folder}" in rest for rest in arguments("RUN"))


def test_outputs_and_environments_stay_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "data", "runs", "cache/*", "!cache/.gitkeep"} <= set(ignored)


def test_dockerfile_is_short():
    code = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 25


def test_apt_packages_exist():
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("needs apt-get and root")
    if not glob.glob("/var/lib/apt/lists/*Packages*"):
        pytest.skip("apt has no package lists; apt-get update fetches them")
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", *apt_packages()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------- replay


@pytest.mark.slow
def test_installation_replayed(tmp_path):
    """The COPY and `pip install` lines in a new environment, then the scripts start in it.

    TORCH_INDEX is the Dockerfile's build argument: name a CPU index to spare the CUDA libraries.
    """
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    folder, home = tmp_path / "workspace", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    # What the container sees: its own variables, its home, nothing of this environment's Python.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    given = environment()
    environ |= {key: value.replace(given["HOME"], str(home)) for key, value in given.items()}
    environ["PATH"] = f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"
    (declared,) = (rest for rest in arguments("ARG") if rest.startswith("TORCH_INDEX="))
    default = "".join(shlex.split(declared.partition("=")[2]))
    environ["TORCH_INDEX"] = os.environ.get("TORCH_INDEX", default)

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for i, (name, rest) in enumerate(STEPS):
        if name == "COPY" and rest != ". .":
            *sources, target = rest.split()
            assert target == "./"
            for source in sources:
                shutil.copy(ROOT / source, folder)
        elif i in PIP:
            run("sh", "-c", rest)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    for name in set(structure.LEVEL) - {"config", "scripts"}:
        shutil.copytree(ROOT / name, folder / name)

    run("python", "-c", "import torch, librosa, soundfile, matplotlib.pyplot, scipy, tqdm")
    assert "torch" in run("pip", "freeze")
    run("pip", "check")
    run("python", "-c", "import config; config.TrainConfig.with_preset('demo')")
    for stem in ("preprocess", "DQN", "evaluate", "visualize"):
        if (folder / f"{stem}.py").exists():
            assert "--preset" in run("python", f"{stem}.py", "--help")
