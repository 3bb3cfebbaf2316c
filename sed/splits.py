"""One folder, two splits; or K parts: which clip goes where, by a seed or by a list.

Reads:  a list of clips (`filename`; where it has them, `split` and `recording`)

Clips that were cut from one recording are not independent: where the list says so, in a column
`recording`, they stay together.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import InputError
from sed.labels import NAMES, cells, same_clips
from sed.timeline import SPLITS, Event, classes_of

RECORDING = "recording"


class ClipList(NamedTuple):
    """What a list says of each labelled clip that it names; a plain list says neither."""

    path: Path
    names: list[str]
    split: dict[str, str]
    recording: dict[str, str]


def read_list(path: Path, known: Iterable[str]) -> ClipList:
    """A table with a column `filename`, or a name a line. Clips are known by their labels' names.

    Raises InputError for a list that cannot be read or names none of the known clips, and for a
    clip that is named twice.
    """
    rows = list(cells(path))
    if not rows:
        raise InputError(f"--clips {path}: empty")
    header = [name.lower() for name in rows[0][1]]
    column = {name: header.index(name) for name in ("split", RECORDING) if name in header}
    title = next((name for name in NAMES["filename"] if name in header), None)
    if title is None and max(len(row) for _, row in rows) > 1:
        raise InputError(f"--clips {path} line 1: no column filename (found {', '.join(header)})")
    at = 0 if title is None else header.index(title)
    rows = rows if title is None else rows[1:]
    found: dict[str, list[str]] = {}
    for line, row in rows:
        row += [""] * (len(header) - len(row))
        if not row[at] or row[at] in found:
            what = "is named twice" if row[at] else "has no name"
            raise InputError(f"--clips {path} line {line}: the clip {row[at]!r} {what}")
        found[row[at]] = row
    same = same_clips(found, known)
    if not same:
        name = next(iter(found), "no clip")
        raise InputError(f"--clips {path}: none of its clips has labels (first: {name})")
    told = {
        name: {same[clip]: found[clip][k] for clip in same if found[clip][k]}
        for name, k in column.items()
    }
    return ClipList(path, list(same.values()), told.get("split", {}), told.get(RECORDING, {}))


def groups_of(names: Iterable[str], listed: ClipList | None) -> list[list[str]]:
    """Clips that stay together: those of one recording, each other one by itself; in order."""
    groups: dict[tuple[bool, str], list[str]] = {}
    recording = listed.recording if listed else {}
    for name in names:
        key = (name in recording, recording.get(name, name))
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def draw_parts(groups: list[list[str]], parts: int, seed: int) -> list[list[str]]:
    """Clips dealt to K parts in a seeded order, each group to the part with the fewest clips.

    Raises InputError where there are fewer groups than parts.
    """
    if len(groups) < parts:
        raise InputError(f"{len(groups)} clips or recordings cannot make {parts} parts")
    dealt: list[list[str]] = [[] for _ in range(parts)]
    for i in np.random.default_rng([seed, 7]).permutation(len(groups)):
        min(dealt, key=len).extend(groups[i])
    return dealt


def draw_share(groups: list[list[str]], share: float, seed: int) -> list[str]:
    """About a share of the clips, drawn group by group in a seeded order.

    Raises InputError where there are fewer than two groups.
    """
    if len(groups) < 2:
        raise InputError("one clip or recording cannot be split in two")
    wanted = share * sum(map(len, groups))
    order = np.random.default_rng([seed, 8]).permutation(len(groups))
    chosen = list(groups[order[0]])
    for i in order[1:-1]:  # the last one trains
        if abs(len(chosen) + len(groups[i]) - wanted) < abs(len(chosen) - wanted):
            chosen += groups[i]
    return chosen


def two_splits(
    clips: dict[str, list[Event]],
    share: float | None,
    seed: int,
    path: Path | None,
    say: Callable[[str], None] = print,
) -> dict[str, list[str]]:
    """Clips of each split: a share of them for validation, or as the list says.

    A list with a column `split` tells both; a plain one names the validation clips. Raises
    InputError where a split is left without clips, or a recording is on both sides.
    """
    listed = None if path is None else read_list(path, clips)
    if share is not None:
        validation = draw_share(groups_of(sorted(clips), listed), share, seed)
    elif listed.split:
        validation = by_column(listed, clips)
    elif listed.recording:
        raise InputError(f"--clips {path}: no column split; draw one with --validation-share")
    else:
        validation = listed.names
    inside = set(validation)
    found = {"train": [name for name in clips if name not in inside]}
    found["validation"] = [name for name in clips if name in inside]
    for split, names in found.items():
        if not names:
            raise InputError(f"--clips {path}: no clip is left for {split}")
    if listed is not None:
        for group in groups_of(clips, listed):
            if 0 < len(inside & set(group)) < len(group):
                name = listed.recording[group[0]]
                raise InputError(f"--clips {path}: recording {name} is in both splits")
    how = f"seed {seed}" if share is not None else f"as {path} says"
    say(f"split by clip ({how}): " + ", ".join(f"{len(names)} {s}" for s, names in found.items()))
    here = {split: classes_of({n: clips[n] for n in names}) for split, names in found.items()}
    for split, other in (SPLITS, SPLITS[::-1]):
        if alone := sorted(set(here[split]) - set(here[other])):
            say(f"note: only {split} has {', '.join(alone)}")
    return found


def by_column(listed: ClipList, clips: Iterable[str]) -> list[str]:
    """Validation clips by the list's column `split`; InputError for a clip without or another."""
    for name in clips:
        split = listed.split.get(name)
        if split not in SPLITS:
            what = f"split {split!r}" if split else "no split"
            raise InputError(
                f"--clips {listed.path}: clip {name} has {what}; train or validation is needed"
            )
    return [name for name in clips if listed.split[name] == "validation"]
