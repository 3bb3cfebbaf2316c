"""Who is compared: checkpoints, tuned rules, events from elsewhere, with their decisions.

Run:    nothing here runs; see evaluate.py --compare
Reads:  checkpoints of DQN.py and twins.py, event TSVs, <out>/rules.json
Writes: <out>/rules.json, <checkpoint's folder>/decisions/: a checkpoint decides once for each cache
Shapes: N frames of all pairs, P pairs
Next:   comparison.py
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import gate as tag_gate
import runfolder
import twins
from bandit import decide, thresholds, to_device
from config import (
    Bandit,
    EvaluateConfig,
    InputError,
    whole,
)
from csebbs import sebbs
from device import fastest_batch
from DQN import greedy_actions, load_policy
from opponents import Rule, after_median, decide_rule, fit_all
from preprocess import Cache, load_cache, write_json
from timeline import Event, frames_to_events, label_frames, read_labels

BASE, GATED = "T_base", "behind the gate"


class Member(NamedTuple):
    """One system: a checkpoint, a rule, or events from elsewhere, with its decisions."""

    source: str
    pred: np.ndarray  # (N,) bool
    seconds: float  # what deciding took, when it was done
    gate: tag_gate.Gate | None = None
    threshold: np.ndarray | None = None  # (N,) of a policy
    events: dict[str, list[Event]] | None = None  # as given; None: the decisions' own
    boxes: dict[str, list[tuple]] | None = None  # events with confidences of their own, for PSDS
    scores: np.ndarray | None = None  # (N,) frame scores, for PSDS in place of events
    home: Cache | None = None  # where its signals and tags are; None: in the table's cache
    rule: Rule | None = None


class Entrant(NamedTuple):
    """A row of the table: one system, or several seeds of one."""

    name: str
    kind: str  # base, policy, twin, rule, ceiling or events
    setting: str
    members: list[Member]
    gated: bool = False  # every pair off that the tag gate closes


class Spec(NamedTuple):
    """An item of --compare: `[NAME=]PATH[,PATH..][@CACHE]` or `[NAME=]T_base@CACHE`."""

    name: str
    files: list[Path]  # empty: T_base
    cache: Path | None  # where its signals are, if elsewhere

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """A run folder stands for its best.pt; the name ends at the first `=`, so that a path may
        hold one where a name is given. InputError for a file that is not there or comes twice.
        """
        name, rest = text.split("=", 1) if "=" in text else ("", text)
        rest, _, home = rest.partition("@")
        files: list[Path] = []
        if rest == BASE and not home:
            raise InputError(
                f"--compare {text}: {BASE} is always the first row; that of other signals is"
                f" {BASE}@CACHE"
            )
        for part in [] if rest == BASE else rest.split(","):
            path = Path(part)
            path = path / "best.pt" if path.is_dir() else path
            if not path.is_file():
                what = "give a run folder, a checkpoint, an event TSV, T_base or rules"
                raise InputError(f"--compare {text}: {path} not found; {what}")
            if path in files:
                raise InputError(f"--compare {text}: {path} is there twice, that is no other seed")
            if home and path.suffix == ".tsv":
                raise InputError(f"--compare {text}: events need no signals; leave out @{home}")
            files.append(path)
        if not name and files:
            name = files[0].parent.name if files[0].name == "best.pt" else files[0].stem
        return cls(name or f"{BASE} of {home}", files, Path(home) if home else None)


def same_pairs(path: Path, cache: Cache) -> Cache:
    """A cache with other signals of the very same pairs and labels; else InputError."""
    other = load_cache(path / cache.folder.name)
    if other.pairs != cache.pairs or (other.label != cache.label).any():
        raise InputError(f"{other.folder} and {cache.folder} do not hold the same pairs and labels")
    return other


FLAT = ("flat_fallback", "flat_range")  # they change signals of scores without contrast only


def check_same_signals(signal: dict | None, cache: Cache, path: Path) -> None:
    """InputError where a checkpoint and a cache were made with different formulas, naming them.

    Another treatment of scores without contrast is said and accepted: it may be compared.
    """
    ours, theirs = cache.manifest["signal"], signal
    if ours is None or theirs is None:  # imported arrays, or a bare state dict: nothing is known
        return
    differ = [name for name in ours if ours[name] != theirs.get(name)]
    text = ", ".join(f"{name} {theirs.get(name)} -> {ours[name]}" for name in differ)
    if set(differ) - set(FLAT):
        raise InputError(f"{path} was trained on other signals than {cache.folder}: {text}")
    if differ:
        print(f"note: {path} was trained with other scores without contrast than here: {text}")


def store_of(path: Path, cache: Cache) -> Path:
    """Where the decisions of a checkpoint on a cache are kept."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return path.parent / "decisions" / f"{path.stem}-{digest}-{cache.key}.npz"


class Stored(NamedTuple):
    """What is kept of a checkpoint's decisions on a cache."""

    pred: np.ndarray  # (N,) bool
    action: np.ndarray  # (N,) int64; of a twin (0,)
    seconds: float
    preset: str  # by which a bare state dict was read; empty for others


def stored_decisions(store: Path, cache: Cache) -> Stored:
    """Read decisions back; InputError where they are damaged."""
    try:
        with np.load(store) as arrays:
            packed, action = arrays["pred"], arrays["action"].astype(np.int64)
            seconds = float(arrays["seconds"])
            preset = str(arrays["preset"]) if "preset" in arrays else ""
        num_frames = len(cache.label)
        if len(packed) != -(-num_frames // 8) or len(action) not in (0, num_frames):
            raise ValueError(f"{len(packed)} bytes and {len(action)} actions")
    except Exception as error:  # zipfile and zlib have their own error classes
        raise InputError(f"{store}: damaged ({type(error).__name__}); delete it") from None
    return Stored(np.unpackbits(packed, count=num_frames).astype(bool), action, seconds, preset)


def from_checkpoint(path: Path, cache: Cache, cfg: EvaluateConfig) -> tuple[str, Member]:
    """Kind and decisions of a policy or twin, computed once for each cache.

    InputError for a checkpoint that is damaged or of other signals, and for damaged decisions.
    """
    device = runfolder.pick_device(cfg.device, cfg.threads)
    content = runfolder.read_checkpoint(path)
    is_twin = "twin" in content
    preset = "" if "config" in content else cfg.preset  # by which a bare state dict was read
    system: Any = (
        twins.load_twin(path, device) if is_twin else load_policy(path, device, cfg.preset)
    )
    check_same_signals(system.signal, cache, path)
    kind, store = "twin" if is_twin else "policy", store_of(path, cache)
    if not store.exists() or stored_decisions(store, cache).preset != preset:
        known = () if is_twin else (system.classes, system.network.rivals)
        signals = to_device(cache, system.bandit, device, *known)
        began = time.perf_counter()
        action = torch.zeros(0)
        batch = cfg.batch or fastest_batch(system.network, signals, system.bandit)
        if is_twin:
            pred = twins.decisions(system, signals, batch, None, path.parent.name)
        else:
            action = greedy_actions(
                system.network, signals, system.bandit, batch, None, path.parent.name
            )
            pred = decide(signals.prob, thresholds(signals, action, system.bandit))
        seconds = time.perf_counter() - began
        store.parent.mkdir(exist_ok=True)
        with whole(store) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream,
                pred=np.packbits(pred.cpu().numpy()),
                action=action.cpu().numpy().astype(np.int8),
                seconds=seconds,
                preset=preset,
            )
    stored = stored_decisions(store, cache)
    threshold = None
    if len(stored.action):
        signals = to_device(cache, system.bandit, torch.device("cpu"))
        threshold = thresholds(signals, torch.from_numpy(stored.action), system.bandit).numpy()
    return kind, Member(str(path), stored.pred, stored.seconds, system.gate, threshold)


def from_events(path: Path, cache: Cache) -> Member:
    """Events of another program, drawn on the cache's frames by the frame-centre rule.

    A clip that the file leaves out has no events. Events of a class that its clip was not queried
    for are left out, as they are of every system, and counted. InputError for a clip or class that
    the cache does not have.
    """
    events = read_labels(path)
    known = {clip.filename for clip in cache.clips}
    if unknown := sorted(set(events) - known):
        raise InputError(f"{path}: {len(unknown)} clips are not in {cache.folder}: {unknown[0]}")
    for name, found in events.items():
        if odd := sorted({event.event_label for event in found} - set(cache.classes)):
            raise InputError(
                f"{path}: {name} has events of a class that was not asked for: {odd[0]}"
            )
    queried = {(pair.filename, pair.event_label) for pair in cache.pairs}
    given = sum(map(len, events.values()))
    events = {
        name: [event for event in found if (name, event.event_label) in queried]
        for name, found in events.items()
    }
    if left_out := given - sum(map(len, events.values())):
        print(f"note: {path}: {left_out} of {given} events are of classes absent from their clips")
    parts = [
        label_frames(events.get(pair.filename, []), pair.event_label, pair.edges)
        for pair in cache.pairs
    ]
    return Member(str(path), np.concatenate(parts), 0.0, events=events)


def fitted_rules(train: Cache, cfg: EvaluateConfig) -> list[Rule]:
    """Rules tuned on the training cache; kept in <out>/rules.json and read from there."""
    path, key = cfg.out / "rules.json", f"{train.key}-{train.queries}"
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["train"] == key:
                return [Rule(**rule) for rule in stored["rules"]]
        except (ValueError, KeyError, TypeError):
            print(f"{path}: damaged; tuning again")
    rules = fit_all(train, Bandit(), train.queries)
    write_json(path, {"train": key, "rules": [rule._asdict() for rule in rules]})
    return rules


def from_rule(rule: Rule, cache: Cache) -> Member:
    """Decisions of a tuned rule."""
    began = time.perf_counter()
    pred = decide_rule(rule, cache)
    seconds = time.perf_counter() - began
    boxes = sebbs(cache, rule.params) if rule.kind == "csebbs" else None
    ranks = rule.kind == "median" and rule.metric.startswith("psds")
    scores = after_median(rule, cache) if ranks else None
    return Member(rule.setting, pred, seconds, boxes=boxes, scores=scores, rule=rule)


def kind_of_rule(rule: Rule) -> str:
    """`ceiling` for what needs the labels, else `rule`."""
    return "ceiling" if rule.name.endswith("(ceiling)") else "rule"


def behind_gate(entrant: Entrant, cache: Cache) -> Entrant | None:
    """The entrant with every closed pair off; None where it has no gate, or the cache no tags."""
    members = []
    for member in entrant.members:
        home = member.home or cache
        if member.gate is None or any(clip.tag is None for clip in home.clips):
            return None
        # Its decisions were timed in the row that is not gated.
        pred = tag_gate.behind(member.gate, home, member.pred)
        members.append(member._replace(pred=pred, seconds=0.0))
    return entrant._replace(name=f"{entrant.name}, {GATED}", members=members, gated=True)


def find_entrants(cfg: EvaluateConfig, cache: Cache, train: Cache) -> list[Entrant]:
    """Every row of the table: T_base, what was asked for, and on all pairs those with a tag gate
    behind it too. What can be known to be wrong is said before anything is tuned or decided."""

    def base_of(home: Cache, its_train: Cache) -> Member:
        gate = tag_gate.tune_gate(its_train) if cache.queries == "all" else None
        elsewhere = None if home is cache else home
        pred = home.signals["binary"] > 0.5
        return Member(str(home.folder), pred, 0.0, gate, home=elsewhere)

    rows = [Entrant(BASE, "base", "", [base_of(cache, train)])]
    if len(set(cfg.compare)) < len(cfg.compare):
        raise InputError("--compare: the same entrant is named twice")
    specs = {text: Spec.parse(text) for text in cfg.compare if text != "rules"}
    check_names([BASE, *(spec.name for spec in specs.values())])
    folders = dict.fromkeys(spec.cache for spec in specs.values() if spec.cache)
    homes = {folder: same_pairs(folder, cache) for folder in folders}
    for text in cfg.compare:
        if text == "rules":
            rules = [rule for rule in fitted_rules(train, cfg) if rule.name != BASE]
            for rule in tqdm(rules, desc="Rules", unit="rule"):
                member = from_rule(rule, cache)
                rows.append(Entrant(rule.name, kind_of_rule(rule), rule.setting, [member]))
            continue
        name, files, elsewhere = specs[text]
        home = homes.get(elsewhere)
        kinds, members = set(), []
        for path in files:
            if path.suffix == ".tsv":
                kind, member = "events", from_events(path, cache)
            else:
                kind, member = from_checkpoint(path, home or cache, cfg)
            kinds.add(kind)
            members.append(member._replace(home=home))
        if len(kinds) > 1:
            raise InputError(
                f"--compare {text}: a row holds one kind of system, not {sorted(kinds)}"
            )
        setting = f"{len(members)} seeds" if len(members) > 1 else ""
        if files:
            rows.append(Entrant(name, kinds.pop(), setting, members))
        else:
            its_train = load_cache(elsewhere / train.folder.name)
            rows.append(Entrant(name, "base", "", [base_of(home, its_train)]))
    if cache.queries == "all":
        for row in list(rows):
            gated = behind_gate(row, cache)
            if gated is not None:
                rows.append(gated)
            elif row.kind in ("base", "policy", "twin"):
                print(f"note: {row.name} has no tag gate; it stands bare only")
    check_names([row.name for row in rows])
    return rows


def check_names(names: list[str]) -> None:
    """InputError where two rows have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--compare: two rows are called {twice[0]!r}; name them: NAME=PATH")


# ---------------------------------------------------------------------------- events


def predicted_events(cache: Cache, pred: np.ndarray) -> dict[str, list[Event]]:
    """Decisions (N,) -> events of each clip, by onset."""
    clips: dict[str, list[Event]] = {clip.filename: [] for clip in cache.clips}
    for index, pair in enumerate(cache.pairs):
        on = pred[cache.offsets[index] : cache.offsets[index + 1]]
        clips[pair.filename].extend(frames_to_events(on, pair.event_label, pair.edges))
    return {name: sorted(events) for name, events in clips.items()}


def events_of(member: Member, cache: Cache) -> dict[str, list[Event]]:
    """A member's events: those that it brought, or its decisions'."""
    return predicted_events(cache, member.pred) if member.events is None else member.events
