"""The suite's structure, counted: modules, imports, floors, lines, and whether the laws hold.

Run:    python -m benchmarks.structure

A room is a folder, or a file at the top level; a floor is the longest chain of rooms below it. The
laws: no script imports a script; folders import downwards only, in the order of `WINGS`; modules
import in no circle. tests/core/test_structure.py asks for the same.
"""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

from core.command import run_script
from core.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
# A wing may import from itself and from those before it; between two bars all are on one level.
WINGS = "core|config|sed|scores policy|baselines|comparison|figures|scripts|studies|benchmarks"
LEVEL = {wing: level for level, wings in enumerate(WINGS.split("|")) for wing in wings.split()}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the suite, tests left out."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for wing in LEVEL:
        for path in sorted((ROOT / wing).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def wing_of(module: str) -> str:
    """The folder of a module; `scripts` at the top, `config` for itself."""
    first, _, rest = module.partition(".")
    return first if rest or first in LEVEL else "scripts"


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the suite that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {name if name in known else name.rpartition(".")[0] for name in names}
    return {name for name in found if known.get(name, path) != path}


@functools.cache
def graph() -> dict[str, set[str]]:
    """What each module imports."""
    known = modules()
    return {name: imports(path, known) for name, path in known.items()}


def upward() -> list[str]:
    """Imports that run up, and those of a script by a script."""
    wrong = []
    for name, others in graph().items():
        for other in sorted(others):
            ours, theirs = wing_of(name), wing_of(other)
            if LEVEL[theirs] > LEVEL[ours]:
                wrong.append(f"{name} imports {other}, which stands above it")
            elif ours == theirs == "scripts":
                wrong.append(f"the script {name} imports the script {other}")
            elif LEVEL[ours] == LEVEL[theirs] and ours != theirs:
                wrong.append(f"{name} imports {other}, which stands beside it")
    return wrong


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """Floor of each node of a graph, from 0. CycleError, a ValueError, names a circle."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(edges).static_order():
        found[name] = max((1 + found[other] for other in edges[name]), default=0)
    return found


def rooms() -> dict[str, set[str]]:
    """What each folder and each file at the top level imports of the others."""
    found: dict[str, set[str]] = {}
    for name, others in graph().items():
        room = name.partition(".")[0]
        theirs = {other.partition(".")[0] for other in others}
        found.setdefault(room, set()).update(theirs - {room})
    return found


def main(args: list[str]) -> int:
    """Print the counts; exit code 1 where a law is broken."""
    if args:
        raise InputError(f"{args[0]}: nothing may be given; run: python -m benchmarks.structure")
    known, lines = modules(), dict.fromkeys(LEVEL, 0)
    for name, path in known.items():
        lines[wing_of(name)] += len(path.read_text(encoding="utf-8").splitlines())
    print(f"modules: {len(known)}, at the top level {len(list(ROOT.glob('*.py')))}")
    print(f"rooms: {len(rooms())}, imports between them: {sum(map(len, rooms().values()))}")
    floors(graph())  # ValueError names a circle
    print(f"floors: {max(floors(rooms()).values()) + 1}")
    for wing, count in lines.items():
        print(f"lines of {wing}: {count:,}")
    print(f"lines without tests: {sum(lines.values()):,}")
    wrong = upward()
    print("\n".join(["laws: hold" if not wrong else "laws: broken", *wrong]))
    return int(bool(wrong))


if __name__ == "__main__":
    run_script(__doc__, main)
