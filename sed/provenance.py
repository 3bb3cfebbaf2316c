"""What something was trained on, held against what it is applied to.

Formulas, frame length, audio or none, classes: a policy, or a rule, that meets other ones than in
its training decides without any error message, and badly.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from config import Signal
from core.errors import InputError
from core.settings import to_dict
from sed.caches import Cache, listed
from sed.signals import SLIDES_FRAME_S

# Of some classes; a tag gate that is tuned on such clips closes nothing.
NO_NEGATIVES = "no clip without {}: nothing teaches a policy or its tag gate when to be silent"
FLAT = ("flat_fallback", "flat_range")  # they change signals of scores without contrast only


class Origin(NamedTuple):
    """Where signals come from: the formulas' settings, and `Cache.facts`. None: unknown."""

    signal: dict[str, Any] | None
    facts: dict[str, Any]

    @property
    def formulas(self) -> int | None:
        """Version of the formulas; the first one is not written down."""
        return None if self.signal is None else self.facts.get("formulas") or 1


def origin_of(cache: Cache) -> Origin:
    """Where the signals of a cache come from."""
    return Origin(cache.manifest["signal"], cache.facts)


def same_length(a: float, b: float) -> bool:
    """Whether two frame lengths agree within 1 %."""
    return abs(a / b - 1) <= 0.01


def other_formulas(who: str, trained: Origin, where: str, here: Origin) -> list[str]:
    """Notes on the formulas; InputError where they are others.

    Another treatment of scores without contrast is said and accepted: it may be compared. At 20 ms
    the first version made the same signals of mono recordings.
    """
    if trained.signal is None or here.signal is None:
        return []
    usual, notes = to_dict(Signal()), []
    theirs, ours = usual | trained.signal, usual | here.signal  # older versions had fewer settings
    differ = [name for name in ours if ours[name] != theirs.get(name)]
    text = ", ".join(f"{name} {theirs.get(name)} -> {ours[name]}" for name in differ)
    if set(differ) - set(FLAT):
        raise InputError(f"{who} was trained on other signals than {where}: {text}")
    if trained.formulas != here.formulas:
        text = f"version {trained.formulas} of the formulas, {where} is of {here.formulas}"
        if not same_length(here.facts["frame_s"], SLIDES_FRAME_S):
            raise InputError(f"{who} was trained with {text}: its filters lagged; train it again")
        notes.append(f"{who} was trained with {text}")
    elif differ and here.facts["audio"] is not False:
        notes.append(f"{who} was trained with another treatment of flat scores: {text}")
    return notes


def other_frames(who: str, trained: Origin, frames_s: Iterable[float], window: int | None) -> str:
    """A note where frames are of another length; `window`: frames that a decision is made from."""
    length = trained.facts.get("frame_s")
    other = [x for x in frames_s if length and not same_length(x, length)]
    if not other:
        return ""
    text = f"frames of {other[0] * 1000:.4g} ms, {who} was trained on {length * 1000:.4g} ms"
    if window is None:
        return text
    here, there = (f"{window * x:.3g} s" for x in (other[0], length))
    return f"{text}: its {window} frames are {here} here, {there} there"


def other_audio(who: str, trained: Origin, where: str, audio: bool | None) -> str:
    """A note where loudness was known in the training and is not here, or the other way round."""
    before = trained.facts.get("audio")
    if None in (before, audio) or before == audio:
        return ""
    there, now = ("with audio" if each else "without audio" for each in (before, audio))
    return f"{who} was trained {there}, {where} is {now}"


def other_classes(
    who: str, trained: Origin, where: str, classes: Iterable[str], allowed: bool
) -> str:
    """A note on classes that are new; InputError where all are, unless that is `allowed`."""
    known = trained.facts.get("classes")
    new = sorted(set(classes) - set(known or classes))
    if len(new) == len(set(classes)) and new and not allowed:
        raise InputError(
            f"{who} was trained on {listed(known)}, {where} has none of these but {listed(new)};"
            " other scores, --map, or --other-classes if that is meant"
        )
    return f"{who} was not trained on {listed(new)}" if new else ""


def no_negatives(who: str, trained: Origin, classes: Iterable[str]) -> str:
    """A note where classes, which may be absent here, were never absent in the training."""
    names = sorted(set(trained.facts.get("never_absent", [])) & set(classes))
    return f"{who} was trained on {NO_NEGATIVES.format(listed(names))}" if names else ""


def held_against(
    who: str,
    trained: Origin,
    cache: Cache,
    allowed: bool = False,
    window: int | None = None,
) -> list[str]:
    """What is to be said where something is applied to a cache; InputError where it does not fit.

    `allowed`: entirely other classes are meant.
    """
    here, where = origin_of(cache), str(cache.folder)
    notes = [
        *other_formulas(who, trained, where, here),
        other_frames(who, trained, [here.facts["frame_s"]], window),
        other_audio(who, trained, where, here.facts["audio"]),
        other_classes(who, trained, where, here.facts["classes"], allowed),
    ]
    if cache.queries == "all":
        notes.append(no_negatives(who, trained, here.facts["classes"]))
    return [note for note in notes if note]
