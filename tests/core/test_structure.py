"""The suite's shape: one import order, silent imports, pinned packages, no dead config field."""

import ast
import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import config
from benchmarks import structure
from core import settings

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.stem != "config")
FILES = {
    name: path
    for name, path in structure.modules().items()
    if structure.wing_of(name) not in ("studies", "benchmarks")
}
PROGRAMS = [
    p for p in structure.modules().values() if '\nif __name__ == "__main__":' in p.read_text()
]
CLASSES = [
    cls
    for cls in vars(config).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls is not config.Script
]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(dotted module, line, inside a `try`?) of every import of a file, wherever it stands."""

    def visit(node: ast.AST, guarded: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            yield node.module, node.lineno, guarded
            for alias in node.names:  # `from torch.utils import tensorboard` counts as both
                yield f"{node.module}.{alias.name}", node.lineno, guarded
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded or isinstance(node, ast.Try))

    yield from visit(tree_of(path), False)


# ---------------------------------------------------------------------------- files and imports


def test_no_utils_file():
    folders = [ROOT / name for name in ("tests", "benchmarks", "studies")]
    found = [path for folder in folders for path in folder.rglob("util*.py")]
    assert not [*found, *ROOT.glob("util*.py")]


def test_no_script_imports_a_script_and_folders_import_downwards():
    assert not structure.upward()


def test_nothing_is_imported_in_a_circle():
    structure.floors(structure.graph())  # ValueError names it
    assert max(structure.floors(structure.rooms()).values()) + 1 <= 9


def test_whatever_is_run_reads_its_command_line():
    """No program takes a flag that it does not know for nothing."""
    ends = [path.read_text().partition('\nif __name__ == "__main__":\n    ') for path in PROGRAMS]
    assert len(ends) > 20 and all(re.search(r"run_(script|main)\(", end) for _, _, end in ends)


def test_a_broken_law_is_found(monkeypatch):
    found = {name: set(others) for name, others in structure.graph().items()}
    found["core.errors"].add("sed.audio")
    found["evaluate"].add("DQN")
    found["policy.bandit"].add("scores.crnn")
    monkeypatch.setattr(structure, "graph", lambda: found)
    assert len(structure.upward()) == 3
    with pytest.raises(ValueError, match="sed"):
        structure.floors(found)


def test_the_top_level_holds_what_a_person_types():
    assert len(SCRIPTS) <= 9
    for path in SCRIPTS:
        assert "if __name__ ==" in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_third_party_imports_are_required(path):
    known = {*requirements("requirements.txt"), *structure.LEVEL, *sys.stdlib_module_names}
    unknown = {
        f"{path.name}:{line} imports {name}"
        for name, line, _ in imported(path)
        if name.partition(".")[0] not in known
    }
    assert not unknown


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_tensorboard_is_optional(path):
    """torch.utils.tensorboard needs a package that is not required: one module has it, in a try."""
    for name, line, guarded in imported(path):
        if name.startswith("torch.utils.tensorboard"):
            assert path.stem == "runfolder" and guarded, f"{path.name}:{line}"


# ---------------------------------------------------------------------------- import is silent

# The first argument is the suite's folder, each of the others a script: imported in a fork of its
# own, which has torch already, as that takes seconds.
PROBE = """
import os, sys
import torch
sys.path.insert(0, sys.argv[1])
environ, path, threads = dict(os.environ), list(sys.path), torch.get_num_threads()
for name in sys.argv[2:]:
    if not os.fork():
        __import__(name)
        assert dict(os.environ) == environ, name + ": the environment was changed"
        assert sys.path == path, name + ": sys.path was changed"
        assert torch.get_num_threads() == threads, name + ": the number of threads was changed"
        assert not torch.cuda.is_initialized(), name + ": the GPU was touched"
        sys.exit()
    if os.wait()[1]:
        sys.exit(name + " failed")
"""


def quiet_python(cwd: Path, *args: str) -> subprocess.CompletedProcess:
    # Without OMP_NUM_THREADS torch takes all cores, so a script that sets a number is seen.
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, "-B", *args],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_is_silent(tmp_path):
    done = quiet_python(tmp_path, "-c", PROBE, str(ROOT), *(path.stem for path in SCRIPTS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_config_needs_no_package(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import config; "
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = quiet_python(tmp_path, "-c", code, str(ROOT))
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---------------------------------------------------------------------------- requirements

PIN = re.compile(r"([A-Za-z0-9_.-]+)==(\d[A-Za-z0-9.]*)  # \S.+")


def requirements(name: str) -> dict[str, str]:
    """Package -> version of a requirements file; each line must be a pin with its reason."""
    pins = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith(("#", "-r ")):
            continue
        match = PIN.fullmatch(line)
        assert match, f"{name}: not `package==version  # reason`: {line}"
        pins[match[1]] = match[2]
    return pins


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_requirements_are_pinned_with_a_reason(name):
    assert requirements(name)


def test_every_requirement_is_used():
    """A package that no script imports does not belong into the requirements."""
    used = {name.partition(".")[0] for path in FILES.values() for name, _, _ in imported(path)}
    assert set(requirements("requirements.txt")) <= used


# ---------------------------------------------------------------------------- config


@functools.cache
def read_outside_config() -> dict[str, frozenset[str]]:
    """Script -> attribute names it reads from anything that is not an imported module."""
    found = {}
    for module, path in FILES.items():
        if module == "config":
            continue
        modules = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        found[module] = frozenset(
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and not (isinstance(node.value, ast.Name) and node.value.id in modules)
        )
    return found


def derived(cls: type, read: set[str]) -> set[str]:
    """Fields that a class's own properties read, for those properties that are read themselves."""
    (body,) = (
        node
        for node in tree_of(ROOT / "config.py").body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    methods = {node.name: node for node in body.body if isinstance(node, ast.FunctionDef)}
    known, fresh = set(read), set(read)
    while fresh:
        fresh = {
            node.attr
            for name in fresh & set(methods)
            for node in ast.walk(methods[name])
            if isinstance(node, ast.Attribute)
        } - known
        known |= fresh
    return known


def script_of(cls: type) -> str:
    """The script that a config class belongs to; one with several commands has a class for each."""
    name = cls.__name__.removesuffix("Config").lower()
    stems = [path.stem for path in SCRIPTS]
    return "DQN" if name == "train" else next(stem for stem in stems if name.startswith(stem))


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
def test_every_config_field_is_read(cls):
    """No flag does nothing: a group is read anywhere, other fields in their script or a folder."""
    scripts = {path.stem for path in SCRIPTS}
    mine = scripts if cls.GROUP else {script_of(cls)}
    reads = read_outside_config()
    read = set().union(*(reads[name] for name in reads if name in mine or name not in scripts))
    fields = set(settings.stored_hints(cls)) - {"preset"}  # constants too
    assert not fields - derived(cls, read)


@pytest.mark.parametrize("preset", config.PRESETS)
def test_preset_keys_exist(preset):
    known = {
        f"{cls.GROUP}.{spec.name}" if cls.GROUP else spec.name
        for cls in CLASSES
        for spec in dataclasses.fields(cls)
    }
    assert not set(config.PRESETS[preset]) - known
