"""Who is compared: checkpoints, tuned rules, events from elsewhere, with their decisions.

Reads:  checkpoints of DQN.py, event TSVs, <out>/rules.json
Writes: <out>/rules.json, <checkpoint's folder>/decisions/: a checkpoint decides once for each cache
Shapes: N frames of all pairs, P pairs
"""

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from baselines.csebbs import sebbs
from baselines.tuned_rules import Rule, after_median, decide_rule, tuning
from config import SUPERVISED, Bandit, EvaluateConfig
from core.errors import InputError
from core.files import whole, writing
from core.processes import num_workers
from core.ranks import pick_device
from core.stored import file_sha256, read_json, read_npz, write_json
from policy import event_policy, runfolder
from policy import gate as tag_gate
from policy.apply import decide_cache, load_policy
from policy.bandit import thresholds, to_device
from sed.caches import LEFT_OUT, Cache, load_cache
from sed.labels import (
    SUFFIXES,
    Aside,
    Labels,
    fit_events,
    read_rows,
    same_clips,
    say_asides,
    write_asides,
)
from sed.provenance import held_against, origin_of
from sed.timeline import Event, frames_to_events, label_frames

BASE, GATED = "T_base", "behind the gate"
LIST = 3  # of rules: those of another list, kept beside a table, are tuned again


class Packed(NamedTuple):
    """Decisions (N,) bool as compressed bits: a table holds dozens of them, most of them off."""

    held: bytes
    count: int

    @classmethod
    def of(cls, pred: np.ndarray) -> "Packed":
        return cls(zlib.compress(np.packbits(pred), level=1), len(pred))

    @property
    def pred(self) -> np.ndarray:
        bits = np.frombuffer(zlib.decompress(self.held), np.uint8)
        return np.unpackbits(bits, count=self.count).view(bool)


class Member(NamedTuple):
    """One system: a checkpoint, a rule, or events from elsewhere, with its decisions."""

    source: str
    decided: np.ndarray | Packed  # (N,) bool; see `pred`
    seconds: float  # what deciding took, when it was done
    gate: tag_gate.Gate | None = None
    threshold: np.ndarray | None = None  # (N,) of a policy
    events: dict[str, list[Event]] | None = None  # as given; None: the decisions' own
    boxes: dict[str, list[tuple]] | None = None  # events with confidences of their own, for PSDS
    scores: Callable[[], np.ndarray] | None = None  # (N,) of frames, for PSDS in place of events
    home: Cache | None = None  # where its signals and tags are; None: in the table's cache
    rule: Rule | None = None
    asides: tuple[Aside, ...] = ()  # rows of given events that do not lie in their clips
    notes: tuple[str, ...] = ()  # in what its training was another than this cache

    @property
    def pred(self) -> np.ndarray:
        """(N,) bool: what is on."""
        return self.decided.pred if isinstance(self.decided, Packed) else self.decided


class System(NamedTuple):
    """A row of the table: one system, or several seeds of one."""

    name: str
    kind: str  # base, policy, supervised, rule, ceiling or events
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
            tracks = path.is_dir() and not (path / "best.pt").exists()
            tracks = tracks and next(path.rglob("*.txt"), None) is not None
            path = path / "best.pt" if path.is_dir() and not tracks else path
            if not (path.is_file() or tracks):
                what = "give a run folder, a checkpoint, an event TSV, T_base or rules"
                raise InputError(f"--compare {text}: {path} not found; {what}")
            if path in files:
                raise InputError(f"--compare {text}: {path} is there twice, that is no other seed")
            if home and (path.suffix.lower() in SUFFIXES or tracks):
                raise InputError(f"--compare {text}: events need no signals; leave out @{home}")
            files.append(path)
        if not name and files:
            name = files[0].parent.name if files[0].name == "best.pt" else files[0].stem
        return cls(name or f"{BASE} of {home}", files, Path(home) if home else None)


def same_pairs(path: Path, cache: Cache) -> Cache:
    """A cache with other signals of the very same pairs and labels; else InputError."""
    other = load_cache(path / cache.folder.name)
    labels = zip(other.parts(), cache.parts(), strict=True)
    if other.pairs != cache.pairs or any((a.label != b.label).any() for a, b in labels):
        raise InputError(f"{other.folder} and {cache.folder} do not hold the same pairs and labels")
    return other


def store_of(path: Path, cache: Cache) -> Path:
    """Where the decisions of a checkpoint on a cache are kept."""
    of_cache = f"{cache.key}-{cache.queries}"  # one key where every clip has every class
    return path.parent / "decisions" / f"{path.stem}-{file_sha256(path)[:12]}-{of_cache}.npz"


def asked_of(cache: Cache) -> str:
    """Hash of a cache's queries: its key is of the numbers, and an absent class may be renamed."""
    return hashlib.sha256(repr(cache.pairs).encode()).hexdigest()[:16]


class Stored(NamedTuple):
    """What is kept of a checkpoint's decisions on a cache."""

    pred: np.ndarray  # (N,) bool
    action: np.ndarray  # (N,) int64; (0,) where no threshold is shifted
    seconds: float
    preset: str  # by which a bare state dict was read; empty for others
    asked: str  # see `asked_of`; empty in older files
    boxes: event_policy.Candidates | None = None


def stored_decisions(store: Path, cache: Cache) -> Stored:
    """Read decisions back; InputError where they are damaged."""
    num_frames = cache.num_frames
    forms = {"pred": ("u", (-(-num_frames // 8),)), "action": ("i", ((0, num_frames),))}
    texts = ("preset", "asked")  # newer than the others
    forms |= {"seconds": ("f", ()), **dict.fromkeys(texts, ("U", ())), **event_policy.FORMS}
    arrays = read_npz(store, forms, "delete it", (*texts, *event_policy.FORMS))
    action, seconds = arrays["action"].astype(np.int64), float(arrays["seconds"])
    if not 0 <= seconds < np.inf:
        raise InputError(f"{store}: damaged ({seconds} s); delete it")
    pred = np.unpackbits(arrays["pred"], count=num_frames).astype(bool)
    found = Stored(pred, action, seconds, *(str(arrays.get(name, "")) for name in texts))
    if "box_pair" not in arrays:
        return found
    try:
        return found._replace(boxes=event_policy.from_arrays(arrays, cache))
    except (KeyError, ValueError) as error:
        raise InputError(f"{store}: damaged ({error}); delete it") from None


def scored_boxes(
    boxes: event_policy.Candidates, cache: Cache
) -> dict[str, list[tuple[float, float, str, float]]]:
    """Every candidate of every clip, as a PSDS takes it; clips without one are there too."""
    found = {clip.filename: [] for clip in cache.clips}
    onset, offset = event_policy.seconds_of(boxes, cache)
    for index, *rest, rank in zip(
        *(x.tolist() for x in (boxes.pair, onset, offset, boxes.rank)), strict=True
    ):
        pair = cache.pairs[index]
        found[pair.filename].append((*rest, pair.event_label, rank))
    return found


def from_checkpoint(path: Path, cache: Cache, cfg: EvaluateConfig) -> tuple[str, Member]:
    """Kind and decisions of a policy or supervised baseline, computed once for each cache.

    InputError for a checkpoint that is damaged or of other signals, and for damaged decisions.
    """
    device = pick_device(cfg.device, cfg.threads)
    bare = "config" not in runfolder.read_checkpoint(path)
    preset = cfg.preset if bare else ""  # by which a bare state dict was read
    system = load_policy(path, device, cfg.preset)
    given = cache, cfg.other_classes, system.network.window
    notes = tuple(held_against(str(path), system.origin, *given))
    runfolder.trained_on(system.seen, cache, path)
    kind = "supervised" if system.method in SUPERVISED else "policy"
    store = store_of(path, cache)
    asked = asked_of(cache)
    known = stored_decisions(store, cache) if store.exists() else None
    if known is None or known.preset != preset or known.asked not in ("", asked):
        began = time.perf_counter()
        pred, action, _, boxes, _ = decide_cache(
            system, cache, device, cfg.batch, progress=path.parent.name
        )
        seconds = time.perf_counter() - began
        with writing(store.parent):
            store.parent.mkdir(exist_ok=True)
        with whole(store) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream,
                pred=np.packbits(pred),
                action=np.zeros(0, np.int8) if action is None else action,
                seconds=seconds,
                preset=preset,
                asked=asked,
                **({} if boxes is None else event_policy.as_arrays(boxes)),
            )
        known = stored_decisions(store, cache)
    threshold = None
    if len(known.action):
        signals = to_device(cache, system.bandit, torch.device("cpu"))
        usual = (known.action >= 0) & (known.action < system.bandit.num_actions)
        if usual.all():
            threshold = thresholds(signals, torch.from_numpy(known.action), system.bandit).numpy()
        if not usual.all() or ((cache.signals["prob"] > threshold) != known.pred).any():
            raise InputError(f"{store}: damaged (other actions than decisions); delete it")
    boxes = None if known.boxes is None else scored_boxes(known.boxes, cache)
    gate = None if boxes is not None else system.gate
    member = Member(str(path), known.pred, known.seconds, gate, threshold, None, boxes)
    return kind, member._replace(notes=notes)


def fitted_rows(path: Path, cache: Cache) -> Labels:
    """Events of another program in the cache's clips, under the names that these have there.

    Clips that were left out of the cache are left out here, and counted. InputError for any other
    clip that the cache does not have.
    """
    given = read_rows(path, empty=True)  # a header alone: a system that says nothing
    same = same_clips(given.clips, cache.durations)
    unknown = [name for name in given.clips if name not in same]
    gone = (line.partition(": ")[0] for line in cache.manifest["left_out"])
    left_out = same_clips(unknown, gone)
    if strange := sorted(set(unknown) - set(left_out)):
        raise InputError(f"{path}: {len(strange)} clips are not in {cache.folder}: {strange[0]}")
    if left_out:
        print(f"note: {path}: {len(left_out)} clips were left out of {cache.folder}, and here too")
    found: dict[str, list[Event]] = {}
    asides = [aside for aside in given.asides if aside.filename in same]
    for name, clip in same.items():
        kept, some = fit_events(name, given.clips[name], cache.durations[clip])
        found.setdefault(clip, []).extend(kept)
        asides += some
    return Labels(found, asides)


def from_events(path: Path, cache: Cache) -> Member:
    """Events of another program, drawn on the cache's frames by the frame-centre rule.

    A clip that the file leaves out has no events. Events of a class that its clip was not queried
    for are left out, as they are of every system, and counted. InputError for a clip or class that
    the cache does not have.
    """
    events, asides = fitted_rows(path, cache)
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
    return Member(str(path), np.concatenate(parts), 0.0, events=events, asides=tuple(asides))


def tuned_gate(train: Cache) -> tag_gate.Gate | None:
    """The tag gate of who brings none; over present pairs there is none."""
    return tag_gate.tune_gate(train) if train.queries == "all" else None


def rules_key(key: str, queries: str) -> str:
    """What rules are tuned on, a training cache's key and queries, and the list of rules."""
    return f"{key}-{queries}-{LIST}"


@contextmanager
def fitted_rules(
    train: Cache, gate: tag_gate.Gate | None, cfg: EvaluateConfig
) -> Iterator[Callable[[], list[Rule]]]:
    """Rules tuned on the training cache, those behind its gate too; kept in <out>/rules.json and
    read from there. What is given waits for them: they are tuned beside what the caller does."""
    path, key = cfg.out / "rules.json", rules_key(train.key, train.queries)
    rules: list[Rule] = []
    if path.exists():
        try:
            stored = read_json(path, "tuning again", ())
            if stored.get("train") == key:
                rules = [Rule(**rule) for rule in stored["rules"]]
        except (InputError, KeyError, TypeError) as error:
            print(f"note: {error}")
    if rules:
        yield lambda: rules
        return
    gated = tag_gate.silenced(gate, train) if gate else None
    workers = num_workers(cfg.workers)
    with tuning(train, Bandit(), train.queries, workers=workers, gated=gated) as tuned:

        def finished() -> list[Rule]:
            rules = tuned()
            write_json(path, {"train": key, "rules": [rule._asdict() for rule in rules]})
            return rules

        yield finished


def from_rule(rule: Rule, cache: Cache, notes: tuple[str, ...] = ()) -> Member:
    """Decisions of a tuned rule; `notes`: in what its training cache is another."""
    began = time.perf_counter()
    pred = decide_rule(rule, cache)
    boxes = sebbs(cache, rule.params) if rule.kind == "csebbs" else None
    seconds = time.perf_counter() - began
    ranks = rule.kind == "median" and rule.metric.startswith("psds")
    scores = partial(after_median, rule, cache) if ranks else None
    given = {"boxes": boxes, "scores": scores, "rule": rule, "notes": notes}
    return Member(rule.setting, Packed.of(pred), seconds, **given)


def kind_of_rule(rule: Rule) -> str:
    """`ceiling` for what needs the labels, else `rule`."""
    return "ceiling" if rule.name.endswith("(ceiling)") else "rule"


def rows_of_rules(
    rules: list[Rule],
    cache: Cache,
    gate: tag_gate.Gate | None,
    notes: tuple[str, ...],
    quiet: bool = False,
) -> list[System]:
    """A row a rule; those behind the gate where the cache knows tags. `quiet`: no progress bar."""
    tagged = gate is not None and all(clip.tag is not None for clip in cache.clips)
    silent = tag_gate.silenced(gate, cache) if tagged else None
    rows = []
    for rule in tqdm(rules, desc="Rules", unit="rule", disable=quiet):
        home = silent if rule.gated else cache
        if home is not None:
            name = f"{rule.name}, {GATED}" if rule.gated else rule.name
            member = from_rule(rule, home, notes)
            rows.append(System(name, kind_of_rule(rule), rule.setting, [member], rule.gated))
    return rows


def behind_gate(system: System, cache: Cache) -> System | None:
    """The system with every closed pair off; None where it has no gate, or the cache no tags."""
    members = []
    for member in system.members:
        home = member.home or cache
        if member.gate is None or any(clip.tag is None for clip in home.clips):
            return None
        # Its decisions were timed in the row that is not gated.
        pred = tag_gate.behind(member.gate, home, member.pred)
        members.append(member._replace(decided=pred, seconds=0.0))
    return system._replace(name=f"{system.name}, {GATED}", members=members, gated=True)


def row_of_files(text: str, spec: Spec, home: Cache, cache: Cache, cfg: EvaluateConfig) -> System:
    """The row of checkpoints, with their signals in `home`, or of events from elsewhere. InputError
    where one row is asked for both."""
    kinds, members = set(), []
    for path in spec.files:
        if path.suffix.lower() in SUFFIXES or path.is_dir():
            kind, member = "events", from_events(path, cache)
            say_asides(str(path), member.asides, cfg.out / LEFT_OUT)
        else:
            kind, member = from_checkpoint(path, home, cfg)
        kinds.add(kind)
        members.append(member)
    if len(kinds) > 1:
        raise InputError(f"--compare {text}: a row holds one kind of system, not {sorted(kinds)}")
    setting = f"{len(members)} seeds" if len(members) > 1 else ""
    return System(spec.name, kinds.pop(), setting, members)


def find_systems(cfg: EvaluateConfig, cache: Cache, train: Cache) -> list[System]:
    """Every row of the table: T_base, what was asked for, and on all pairs those with a tag gate
    behind it too. What can be known to be wrong is said before anything is tuned or decided."""

    def base_of(home: Cache, its_gate: tag_gate.Gate | None) -> Member:
        elsewhere = None if home is cache else home
        pred = home.base
        return Member(str(home.folder), pred, 0.0, its_gate, home=elsewhere)

    gate = tuned_gate(train)
    rows = [System(BASE, "base", "", [base_of(cache, gate)])]
    if len(set(cfg.compare)) < len(cfg.compare):
        raise InputError("--compare: the same system is named twice")
    specs = {text: Spec.parse(text) for text in cfg.compare if text != "rules"}
    check_names([BASE, *(spec.name for spec in specs.values())])
    folders = dict.fromkeys(spec.cache for spec in specs.values() if spec.cache)
    homes = {folder: same_pairs(folder, cache) for folder in folders}
    asides: list[Aside] = []
    rules_behind: list[System] = []
    with fitted_rules(train, gate, cfg) if "rules" in cfg.compare else nullcontext() as tuned:
        for text in cfg.compare:
            if text == "rules":
                said = held_against("each rule", origin_of(train), cache, cfg.other_classes)
                rules = [rule for rule in tuned() if rule.name != BASE]
                of_rules = rows_of_rules(rules, cache, gate, tuple(said))
                rows += [row for row in of_rules if not row.gated]
                rules_behind += [row for row in of_rules if row.gated]
                continue
            spec = specs[text]
            home = homes.get(spec.cache)
            if spec.files:
                row = row_of_files(text, spec, home or cache, cache, cfg)
                row = row._replace(members=[m._replace(home=home) for m in row.members])
            else:
                its_gate = tuned_gate(load_cache(spec.cache / train.folder.name))
                row = System(spec.name, "base", "", [base_of(home, its_gate)])
            rows.append(row)
            asides += [aside for member in row.members for aside in member.asides]
    if cache.queries == "all":
        for row in list(rows):
            gated = behind_gate(row, cache)
            if gated is not None:
                rows.append(gated)
            elif row.kind in ("base", "policy", "supervised") and row.members[0].boxes is None:
                print(f"note: {row.name} has no tag gate; it stands bare only")
    rows += rules_behind
    check_names([row.name for row in rows])
    if asides or (cfg.out / LEFT_OUT).exists():
        write_asides(cfg.out / LEFT_OUT, asides)
    return rows


def check_names(names: list[str]) -> None:
    """InputError where two rows have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--compare: two rows are called {twice[0]!r}; name them: NAME=PATH")


# ---------------------------------------------------------------------------- events


def predicted_events(cache: Cache, pred: np.ndarray) -> dict[str, list[Event]]:
    """Decisions (N,) -> events of each clip, by onset, cut where a frame reaches past its end."""
    clips: dict[str, list[Event]] = {clip.filename: [] for clip in cache.clips}
    for index in np.flatnonzero(np.logical_or.reduceat(pred, cache.offsets[:-1])):
        pair = cache.pairs[index]
        on = pred[cache.offsets[index] : cache.offsets[index + 1]]
        clips[pair.filename].extend(frames_to_events(on, pair.event_label, pair.edges))
    durations = cache.durations
    return {
        name: fit_events(name, sorted(events), durations[name])[0] for name, events in clips.items()
    }


def with_events(systems: list[System], cache: Cache) -> list[System]:
    """Rows whose members have their events, so that nobody makes them again."""
    return [
        row._replace(members=[m._replace(events=events_of(m, cache)) for m in row.members])
        for row in systems
    ]


def events_of(member: Member, cache: Cache) -> dict[str, list[Event]]:
    """A member's events: those that it brought, or its decisions'."""
    return predicted_events(cache, member.pred) if member.events is None else member.events
