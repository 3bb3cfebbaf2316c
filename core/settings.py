"""Checked fields and config classes, as dictionaries and back: the engine below config.py."""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from core.errors import InputError
from core.names import name_flaw

LARGEST = 1_000_000_000  # of a number without a limit of its own: more is a slip, or fills memory
MOST_SEED = 2**63 - 1
MOST_PROCESSES = 1024  # and threads
MOST_CLIPS = 1_000_000
MOST_BATCH = 1_000_000
MOST_LANES = 100_000


def number(default: Any, low: float = -LARGEST, high: float = LARGEST, *, above: float = -math.inf):
    """A numeric field with its allowed range: `low <= value <= high` and `value > above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def split_name(default: Any):
    """A field that names a split: the plain name of a folder, no path."""
    return field(default=default, metadata={"split": True})


def require(ok: bool, flag: str, rule: str, value: Any) -> None:
    """Raise ValueError naming flag, rule and value (if it has one) unless `ok`."""
    if not ok:
        got = "" if value is None or value is True else f" but {str(value)[:200]} was given"
        raise ValueError(f"--{flag} must be {rule}{got}")


class Checked:
    """Base of every config class: checks `number` and `split_name` fields after construction.

    A constant (ClassVar) is stored with the fields, as one that was a field once: caches,
    checkpoints and their keys stay what they were.
    """

    GROUP: ClassVar[str] = ""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> `field` or `group.field` -> default
    NOT_MINE = ()  # keys of presets that are other scripts'

    @classmethod
    def with_preset(cls, name: str) -> Any:
        """Default instance under a preset."""
        changes: dict[str, dict[str, Any]] = {"": {"preset": name}}
        names = {spec.name for spec in fields(cls)}
        for key, value in cls.PRESETS[name].items():
            group, _, leaf = key.rpartition(".")
            if group in names or (not group and leaf in names - {*cls.NOT_MINE}):
                changes.setdefault(group, {})[leaf] = value
        base = cls()
        for group in [key for key in changes if key]:
            changes[""][group] = dataclasses.replace(getattr(base, group), **changes[group])
        return dataclasses.replace(base, **changes[""])

    def flag(self, name: str) -> str:
        """Command-line spelling of a field, e.g. `bandit.num-actions`."""
        return (f"{self.GROUP}." if self.GROUP else "") + name.replace("_", "-")

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if "split" in spec.metadata and value is not None:
                plain = not name_flaw(value, path=True) and "/" not in value and value[0] != "."
                rule = "the plain name of a folder, e.g. train,"
                require(plain, self.flag(spec.name), rule, repr(value))
            if "low" not in spec.metadata or value is None:
                continue
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            finite = real and (isinstance(value, int) or math.isfinite(value))
            require(finite, self.flag(spec.name), "a finite number", value)
            low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
            rules = [f"at least {low:g}"] * (low > -LARGEST or value < low)
            rules += [f"above {above:g}"] * math.isfinite(above)
            rules += [f"at most {high:g}"] * (high < LARGEST or value > high)
            rule = " and ".join(rules)
            require(low <= value <= high and value > above, self.flag(spec.name), rule, value)


def stored_hints(cls: type) -> dict[str, Any]:
    """Type of each field and constant of a config, in the order in which they are written."""
    own = ("GROUP", "PRESETS")  # of the class, not settings
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in own}


def to_dict(cfg: Any) -> dict[str, Any]:
    """Config -> plain dictionary for JSON (paths become strings, tuples lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {name: plain(getattr(value, name)) for name in stored_hints(type(value))}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(cfg)


def _is_kind(value: Any, hint: Any) -> bool:
    """Whether a JSON value suits a field's type, e.g. `Path | None`."""
    json_types = {Path: (str,), float: (float, int)}
    kinds = typing.get_args(hint) or (hint,)
    return any(type(value) in json_types.get(kind, (kind,)) for kind in kinds)


def from_dict(cls: type, data: dict[str, Any]) -> Any:
    """Inverse of `to_dict`. Unknown and missing keys raise InputError with the nearest name, and so
    does another value of a constant."""
    if not isinstance(data, dict):
        raise InputError(f"{cls.__name__}: expected a dictionary, found {type(data).__name__}")
    hints = stored_hints(cls)
    names = [spec.name for spec in fields(cls)]
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{cls.__name__}: unknown key {key!r}{hint}")
    missing = [name for name in names if name not in data]
    if missing:
        raise InputError(f"{cls.__name__}: missing key {missing[0]!r}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if typing.get_origin(hint) is ClassVar:
            fixed = getattr(cls, name)
            if type(value) not in (int, float) or value != fixed:
                text = f"{name} is fixed at {fixed} in this version, not {value!r}"
                raise InputError(f"{cls.__name__}: {text}")
            continue
        if dataclasses.is_dataclass(hint):
            value = from_dict(hint, value)
        elif typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise InputError(
                    f"{cls.__name__}: {name} must be one of {typing.get_args(hint)}, not {value!r}"
                )
        elif typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
            (kind, _) = typing.get_args(hint)  # tuple[kind, ...]: JSON has lists only
            if not all(_is_kind(item, kind) for item in value):
                raise InputError(f"{cls.__name__}: {name} must hold {kind.__name__}, not {value!r}")
            value = tuple(value)
        elif not _is_kind(value, hint):
            kind = getattr(hint, "__name__", hint)
            raise InputError(f"{cls.__name__}: {name} must be of type {kind}, not {value!r}")
        elif value is not None and Path in (hint, *typing.get_args(hint)):
            value = Path(value)
        values[name] = value
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{cls.__name__}: {error}") from None


def config_key(*groups: Any) -> str:
    """Short hash of config groups; equal keys mean interchangeable artefacts."""
    text = json.dumps([to_dict(group) for group in groups], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
