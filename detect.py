"""Unlabelled recordings in, sound events out: what evaluate.py decides, without labels.

Run:    python detect.py --policy runs/demo/best.pt --audio recordings --out events.tsv
        python detect.py --policy runs/mine/best.pt --audio recordings --scores scores
        python detect.py --policy runs/mine/best.pt --scores scores      # no audio: r = 1
Reads:  a checkpoint, recordings, and their score files or <corpus>/scorer.pt
Writes: <out> (a DCASE TSV), with --audacity a label file a recording
Shapes: S samples, T frames of a recording, K classes, N frames of all rows together
Next:   report.py

A recording as long as the policy's training clips is one block, and gets the events that
evaluate.py gives it. A longer one is cut into blocks of the typical training clip, each half over
the next. A block is normalised by itself (min-max over its own frames), passes the tag gate by
itself and is decided like a clip; for a frame in two blocks the one counts whose centre is nearer.
Audio is read block by block, from front to back.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import runfolder
import scorers
from bandit import decide, highest_other, query_of, resident, thresholds
from config import (
    DetectConfig,
    InputError,
    PreprocessConfig,
    Signal,
    run_script,
    with_preset,
)
from core.files import Kind, check_file, check_ours, keep_apart, made, own_folder
from core.names import isolated
from core.stored import check_form, is_text, read_json
from dense import DenseQNetwork
from DQN import Policy, greedy_actions, load_policy
from gate import Gate, opens
from preprocess import FELL_BACK, MOST_MANIFEST, SILENT, check_duration, clip_tag, listed
from provenance import Origin, other_classes, other_frames
from sed.audio import TRUNCATED, AudioFile
from sed.signals import VERSION, compute_signals, falls_back, loudness_on_grid
from timeline import (
    COLUMNS,
    Event,
    frame_edges,
    frames_to_events,
    tidy_events,
    write_audacity,
    write_labels,
)

LOW_RATE = (
    f"sample rate below the {scorers.SAMPLE_RATE // 1000} kHz that the scorer was trained on: it"
    " hears nothing above half of it and misses events"
)
SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")
BLOCK_S = 10.0  # where neither the policy nor the user says: clips of DESED and AudioSet
FRAMES_AT_ONCE = 100_000  # rows are decided together until they have so many frames
SHEETS_AT_ONCE = 256  # or so many recordings wait for their decisions

# ---------------------------------------------------------------------------- blocks


class Block(NamedTuple):
    """Frames [start, stop) that are decided together; those in [first, last) count."""

    start: int
    stop: int
    first: int
    last: int


def blocks(num_frames: int, size: int, single: int) -> list[Block]:
    """Cut T frames into blocks of `size`, each half over the next; up to `single` frames: one.

    The last block ends with the recording, so it may share more with the one before. Of the frames
    that two blocks share, the first half counts in the earlier one.
    """
    if num_frames <= max(single, size):
        return [Block(0, num_frames, 0, num_frames)]
    starts = [*range(0, num_frames - size, max(1, size // 2)), num_frames - size]
    cuts = [(start + size + later) // 2 for start, later in itertools.pairwise(starts)]
    bounds = zip(starts, [0, *cuts], [*cuts, num_frames], strict=True)
    return [Block(start, start + size, first, last) for start, first, last in bounds]


# ---------------------------------------------------------------------------- what is to be done


@dataclass(frozen=True)
class Plan:
    """How recordings are decided: the policy, its formulas, and what the user chose."""

    policy: Policy
    signal: Signal
    gate: Gate | None
    listen: bool  # False: the loudness is 1 everywhere
    block_s: float
    longest_s: float  # recordings up to this long are one block
    device: torch.device
    batch: int

    @property
    def origin(self) -> Origin:
        """What the policy was trained on."""
        return Origin(self.policy.signal, self.policy.info.get("trained_on") or {})

    def cut(self, num_frames: int, frame_s: float) -> list[Block]:
        """Blocks of a recording on its own grid."""
        size = max(2, round(self.block_s / frame_s))
        return blocks(num_frames, size, round(self.longest_s / frame_s) + 1)


class Recording(NamedTuple):
    """One recording; `filename` is its path below the folder searched, as in the output."""

    filename: str
    audio: Path | None


class Source(NamedTuple):
    """Where scores come from: names of the K classes, and the scores of a recording."""

    classes: list[str]
    score: Callable[[Recording, "Tally"], scorers.ClipScores]
    text: str
    clips: Callable[[], list[str]] = list  # ids of all clips that have scores, where that is known


@dataclass
class Tally:
    """What is to be said in the end."""

    failed: list[str] = field(default_factory=list)
    notices: dict[str, dict[str, None]] = field(default_factory=dict)  # notice -> names in order
    seconds: float = 0.0
    pairs: int = 0  # recordings x classes
    closed: int = 0  # of these, closed by the gate in every block
    blocks: int = 0
    frame_lengths: set[float] = field(default_factory=set)

    def note(self, notice: str, name: str) -> None:
        """Note something of a recording, or of a class in it, once."""
        self.notices.setdefault(notice, {})[name] = None


def make_plan(cfg: DetectConfig, device: torch.device) -> Plan:
    """Open the policy; say what it does not know. Raises InputError."""
    policy = load_policy(cfg.policy, device, cfg.preset)
    known = policy.info.get("trained_on") or {}
    signal = with_preset(PreprocessConfig, cfg.preset).signal
    if policy.signal is not None:
        signal = runfolder.config_of(Signal, policy.signal)
        formulas = Origin(policy.signal, known).formulas
        if formulas != VERSION:
            print(
                f"note: {cfg.policy} was trained with version {formulas} of the formulas, these are"
                f" of {VERSION}: on frames of other than 20 ms its filters lagged; train it again"
            )
    else:
        print(f"note: {cfg.policy} does not know its formulas: those of preset {cfg.preset}")
    if not cfg.gate:
        print("note: no tag gate (--no-gate): the signals of every class peak somewhere")
    elif policy.gate is None:
        print(
            "note: this policy has no tag gate (imported, or of an older version): every class of"
            " every recording may have events; train again to get one"
        )
    listen = cfg.audio is not None and known.get("audio") is not False
    if cfg.audio is None:
        but = ", but the policy was trained with audio" if known.get("audio") else ""
        print(f"note: no audio (--audio not given): the normalised loudness is 1 everywhere{but}")
    elif not listen:
        print("note: the policy was trained without audio: the loudness is 1 everywhere here too")
    block_s = cfg.block_s or known.get("clip_s", BLOCK_S)
    longest_s = 1.5 * block_s
    if cfg.block_s is None:
        longest_s = max(longest_s, known.get("longest_s", 0.0))
    gate = policy.gate if cfg.gate else None
    return Plan(policy, signal, gate, listen, block_s, longest_s, device, cfg.batch)


# ---------------------------------------------------------------------------- scores


def corpus_scorer(policy: Path) -> Path | None:
    """scorer.pt of the corpus whose scores the policy was trained on, where all that is found."""
    try:
        run = read_json(policy.parent / "config.json", "")
        check_form(run, {"cache": is_text, "split": is_text})
        path = Path(run["cache"]) / run["split"] / "manifest.json"
        manifest = read_json(path, "", most=MOST_MANIFEST)
        check_form(manifest, {"scores": {"folder": is_text}})
    except (InputError, ValueError):
        return None
    path = Path(manifest["scores"]["folder"]).parent.parent / scorers.SCORER
    return path if path.is_file() else None


def builtin_scores(
    scorer: scorers.Scorer, recording: Recording, plan: Plan, tally: Tally
) -> scorers.ClipScores:
    """Scores of a recording by the built-in scorer; a long one is scored in the plan's blocks."""
    with AudioFile(recording.audio) as audio:
        if audio.sample_rate < scorers.SAMPLE_RATE:
            tally.note(LOW_RATE, recording.filename)
        whole = audio.num_samples * scorers.SAMPLE_RATE // (audio.sample_rate * scorers.HOP)
        parts = plan.cut(whole, scorers.FRAME_S)
        if len(parts) == 1:  # a last part of a frame is a frame
            wav = audio.span(0, audio.duration_s)
            values = scorer.score_recording(wav, audio.sample_rate)
            return scorers.ClipScores(values, frame_edges(values.shape[1], scorers.FRAME_S))
        values = np.empty((len(scorer.classes), whole), np.float32)
        for part in parts:
            wav = audio.span(part.start * scorers.FRAME_S, part.stop * scorers.FRAME_S)
            found = scorer.score_recording(wav, audio.sample_rate)
            span = slice(part.first - part.start, part.last - part.start)
            values[:, part.first : part.last] = found[:, span]
        if audio.truncated:
            tally.note(TRUNCATED, recording.filename)
    return scorers.ClipScores(values, frame_edges(whole, scorers.FRAME_S))


def open_source(cfg: DetectConfig, plan: Plan) -> Source:
    """The user's score files, or the built-in scorer. Raises InputError."""
    if cfg.scores is not None:
        files = scorers.open_scores(cfg.scores, list(cfg.classes) or None, cfg.rename)
        return Source(
            files.classes, lambda one, _: files.scores(one.filename), f"{cfg.scores}", files.clips
        )
    path = cfg.scorer or corpus_scorer(cfg.policy)
    if path is None:
        raise InputError(
            f"no scores: give --scores (your model's score files) or --scorer (scorer.pt of the"
            f" corpus that {cfg.policy} was trained on, written by scorers.py)"
        )
    scorer = scorers.load_scorer(path, plan.device)
    classes = list(cfg.classes) or scorer.classes
    for name in classes:
        if name not in scorer.classes:
            raise InputError(f"--classes {name}: {path} knows {', '.join(scorer.classes)}")
    order = [scorer.classes.index(name) for name in classes]

    def score(one: Recording, tally: Tally) -> scorers.ClipScores:
        scores = builtin_scores(scorer, one, plan, tally)
        return scores._replace(values=scores.values[order])

    return Source(classes, score, f"built-in scorer {path}")


def find_recordings(cfg: DetectConfig, source: Source) -> list[Recording]:
    """Recordings by name; without audio, the clips that have scores. Raises InputError."""
    if cfg.audio is None:  # labels name recordings, with an extension: so do the results
        return [Recording(f"{clip}.wav", None) for clip in source.clips()]
    if cfg.audio.is_file():
        found = [Recording(cfg.audio.name, cfg.audio)]
    elif cfg.audio.is_dir():
        found = [
            Recording(path.relative_to(cfg.audio).as_posix(), path)
            for path in sorted(cfg.audio.rglob("*"))
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."
        ]
    else:
        raise InputError(f"--audio {cfg.audio}: no such file or folder")
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise InputError(f"--audio {cfg.audio}: no recordings in it or below ({kinds})")
    by_id: dict[str, str] = {}
    for filename, _ in found:
        if any(sign in filename for sign in "\t\r\n"):
            raise InputError(f"--audio {cfg.audio}: {filename!r} cannot stand in a TSV; rename it")
        other = by_id.setdefault(scorers.clip_id(filename), filename)
        if other != filename:
            raise InputError(
                f"--audio {cfg.audio}: {other} and {filename} differ in their extension only, so"
                " one score file or label file would be of both; rename or move one"
            )
    return found


# ---------------------------------------------------------------------------- rows and decisions


class Sheet(NamedTuple):
    """Decisions of one recording, (K, T) bool, on frames of `frame_s` seconds."""

    filename: str
    on: np.ndarray
    frame_s: float


class Row(NamedTuple):
    """One class in one block: signals (n,) of the frames to decide after `skip` more."""

    event_label: str
    signals: dict[str, np.ndarray]
    skip: int
    on: np.ndarray  # where the decisions go: a part of a sheet


def block_loudness(
    recording: Recording,
    scores: scorers.ClipScores,
    parts: list[Block],
    plan: Plan,
    tally: Tally,
) -> Iterator[np.ndarray | None]:
    """Normalised loudness (n,) of each block, None where it is unknown. ValueError on bad audio."""
    if not plan.listen:
        yield from (None for _ in parts)
        return
    with AudioFile(recording.audio) as audio:
        rate = audio.sample_rate
        if notice := check_duration(audio.duration_s, scores):
            tally.note(notice, recording.filename)
        silent = True
        for part in parts:
            start_s, stop_s = float(scores.edges[part.start]), float(scores.edges[part.stop])
            wav = audio.span(start_s, stop_s)
            silent = silent and not wav.any()
            size = part.stop - part.start
            yield loudness_on_grid(wav, rate, stop_s - start_s, size, plan.signal)
        if silent:
            tally.note(SILENT, recording.filename)
        if audio.truncated:
            tally.note(TRUNCATED, recording.filename)


def opened_classes(
    scores: scorers.ClipScores, classes: list[str], part: Block, plan: Plan
) -> np.ndarray:
    """(K,) bool: classes that the gate lets through in a block.

    Where the source gives tags of its own, they are of the whole recording.
    """
    if plan.gate is None:
        return np.ones(len(classes), bool)
    edges = scores.edges[part.start : part.stop + 1]
    values = scores.values[:, part.start : part.stop]
    tag = clip_tag(scorers.ClipScores(values, edges - edges[0], scores.tag), plan.signal)
    return np.array([opens(plan.gate, *cell) for cell in zip(classes, tag.tolist(), strict=True)])


def recording_rows(
    recording: Recording, source: Source, plan: Plan, tally: Tally
) -> Iterator["Row | Sheet"]:
    """Every row of a recording that the gate lets through, then its sheet, all off as yet.

    ValueError or InputError where the recording or its scores are bad.
    """
    scores = source.score(recording, tally)
    num_frames, frame_s = len(scores.edges) - 1, float(scores.frame_s)
    sheet = Sheet(recording.filename, np.zeros((len(source.classes), num_frames), bool), frame_s)
    parts, ever_open = plan.cut(num_frames, frame_s), np.zeros(len(source.classes), bool)
    for part, rms in zip(parts, block_loudness(recording, scores, parts, plan, tally), strict=True):
        tally.blocks += 1
        opened = opened_classes(scores, source.classes, part, plan)
        ever_open |= opened
        values = scores.values[:, part.start : part.stop]
        rival = highest_other(values).astype(np.float32) if plan.policy.network.rivals else None
        for k in np.flatnonzero(opened):
            if falls_back(rms, values[k], plan.signal):
                tally.note(FELL_BACK, f"{recording.filename} / {source.classes[k]}")
            signals = compute_signals(rms, values[k], frame_s, plan.signal)
            if rival is not None:
                signals["rival"] = rival[k]
            yield cut_row(source.classes[k], signals, part, sheet.on[k], plan)
    tally.seconds += num_frames * frame_s
    tally.pairs += len(ever_open)
    tally.closed += int((~ever_open).sum())
    if num_frames > 1:  # of a single frame the length says nothing
        tally.frame_lengths.add(round(frame_s, 6))
    yield sheet


def cut_row(
    event_label: str, signals: dict[str, np.ndarray], block: Block, on: np.ndarray, plan: Plan
) -> Row:
    """The part of a block's signals (n,) that its counting frames depend on; `on` (T,).

    A state reaches `context` frames to both sides; in the sequential reading it also shows what
    was decided on its left, which goes back to the start of the block. A dense policy sees all of
    the block.
    """
    bandit = plan.policy.bandit
    if isinstance(plan.policy.network, DenseQNetwork):
        skip = block.first - block.start
        return Row(event_label, signals, skip, on[block.first : block.last])
    before = bandit.context if bandit.reading == "independent" else block.first - block.start
    start = max(block.start, block.first - before)
    span = slice(start - block.start, min(block.stop, block.last + bandit.context) - block.start)
    needed = {name: signal[span] for name, signal in signals.items()}
    return Row(event_label, needed, block.first - start, on[block.first : block.last])


def all_rows(
    recordings: list[Recording], source: Source, plan: Plan, tally: Tally
) -> Iterator[Row | Sheet]:
    """Rows and sheets of all recordings; what fails is named in the tally and left out."""
    with tqdm(total=len(recordings), desc="Detecting", unit="recording") as bar:
        for recording in recordings:
            try:
                for item in recording_rows(recording, source, plan, tally):
                    bar.set_postfix_str(f"{tally.blocks} blocks", refresh=not tally.blocks % 50)
                    yield item
            except (ValueError, InputError) as error:
                tally.failed.append(f"{recording.filename}: {error}")
            bar.update()


def decide_rows(rows: list[Row], plan: Plan) -> None:
    """Write the policy's decisions on some rows into their sheets."""
    if not rows:
        return
    policy = plan.policy
    values = {name: np.concatenate([row.signals[name] for row in rows]) for name in rows[0].signals}
    starts = np.cumsum([0] + [len(row.signals["prob"]) for row in rows])
    label = np.zeros(starts[-1], bool)  # nobody knows
    query = query_of((row.event_label for row in rows), policy.classes)
    rival = values.get("rival")
    signals = resident(values, label, starts, policy.bandit, plan.device, query, rival)
    actions = greedy_actions(policy.network, signals, policy.bandit, plan.batch)
    pred = decide(signals.prob, thresholds(signals, actions, policy.bandit)).cpu().numpy()
    for row, start in zip(rows, starts, strict=False):
        row.on[:] = pred[start + row.skip :][: len(row.on)]


def detect(
    recordings: list[Recording], source: Source, plan: Plan, tally: Tally
) -> Iterator[tuple[str, list[Event]]]:
    """Name and events of every recording that could be read, in order, events by onset.

    Rows of many classes, blocks and recordings are decided together; memory holds the rows of
    `FRAMES_AT_ONCE` frames and the sheets that wait for them.
    """
    rows: list[Row] = []
    sheets: list[Sheet] = []
    frames = 0

    def finished() -> Iterator[tuple[str, list[Event]]]:
        decide_rows(rows, plan)
        for sheet in sheets:
            edges = frame_edges(sheet.on.shape[1], sheet.frame_s)
            found = zip(sheet.on, source.classes, strict=True)
            events = [event for on, name in found for event in frames_to_events(on, name, edges)]
            yield sheet.filename, sorted(events)
        rows.clear()
        sheets.clear()

    for item in all_rows(recordings, source, plan, tally):
        if isinstance(item, Sheet):
            sheets.append(item)
        else:
            rows.append(item)
            frames += len(item.signals["prob"])
        if frames >= FRAMES_AT_ONCE or len(sheets) >= SHEETS_AT_ONCE:
            yield from finished()
            frames = 0
    yield from finished()


# ---------------------------------------------------------------------------- what is said


def describe(cfg: DetectConfig, source: Source, plan: Plan, num_recordings: int) -> None:
    """Say what is about to happen. InputError where the policy knows none of the classes."""
    said = other_classes("the policy", plan.origin, source.text, source.classes, cfg.other_classes)
    print(f"{num_recordings} recordings; scores: {source.text}")
    print(f"{len(source.classes)} classes: {', '.join(map(isolated, source.classes))}")
    if said:
        print(f"note: {isolated(said)}")
    print(f"longer than {plan.longest_s:.4g} s: blocks of {plan.block_s:.4g} s, half over the next")
    if plan.gate is not None:
        others = [name for name in source.classes if name not in plan.gate.thresholds]
        if others:
            print(
                f"note: the gate has no threshold for {listed(others)}:"
                f" {plan.gate.fallback:.3f}, that of all classes together"
            )


def summarise(tally: Tally, plan: Plan, num_events: int, num_recordings: int, s: float) -> None:
    """What failed, what was noticed, then `key: value` lines for grep."""
    for notice, names in tally.notices.items():
        if names:
            print(f"note: {len(names)} x {notice}: {listed(list(names))}")
    window = plan.policy.network.window
    if text := other_frames("the policy", plan.origin, sorted(tally.frame_lengths), window):
        print(f"note: {text}")
    for line in tally.failed:
        print(f"failed: {isolated(line)}")
    print(f"recordings: {num_recordings - len(tally.failed)} of {num_recordings}")
    print(f"blocks: {tally.blocks}")
    print(f"recorded_seconds: {tally.seconds:.1f}")
    if plan.gate is not None:
        print(f"closed_by_gate: {tally.closed} of {tally.pairs} (recording, class) pairs")
    print(f"events: {num_events}")
    print(f"detecting_seconds: {s:.1f}")


TRACKS = Kind("folder of label tracks")


def check_outputs(cfg: DetectConfig) -> None:
    """InputError where an output is an input, or would replace what is not a list of events."""
    inputs = (cfg.policy, cfg.audio, cfg.scores, cfg.scorer)
    keep_apart(cfg.out, inputs)
    check_file(cfg.out, "\t".join(COLUMNS) + "\n")
    if cfg.audacity is not None:
        keep_apart(cfg.audacity, inputs, "--audacity")
        check_ours(cfg.audacity, TRACKS, flag="--audacity")


def main(cfg: DetectConfig) -> int:
    """Detect, write the events, name what failed. Returns the exit code."""
    if cfg.audio is None and cfg.scores is None:
        raise InputError("nothing to do: give --audio, --scores, or both")
    check_outputs(cfg)
    plan = make_plan(cfg, runfolder.pick_device(cfg.device, cfg.threads))
    source = open_source(cfg, plan)
    recordings = find_recordings(cfg, source)
    describe(cfg, source, plan, len(recordings))
    tally, began = Tally(), time.perf_counter()
    clips = {
        filename: tidy_events(events, cfg.min_duration, cfg.merge_gap)
        for filename, events in detect(recordings, source, plan, tally)
    }
    seconds = time.perf_counter() - began
    if not clips:
        raise InputError(f"none of {len(recordings)} recordings could be done: {tally.failed[0]}")
    with made(cfg.out.parent):
        write_labels(cfg.out, clips)
    if cfg.audacity is not None:
        with own_folder(cfg.audacity, TRACKS, flag="--audacity"):
            for filename, events in clips.items():
                write_audacity(cfg.audacity / f"{scorers.clip_id(filename)}.txt", events)
    summarise(tally, plan, sum(map(len, clips.values())), len(recordings), seconds)
    print(f"results: {cfg.out}" + (f", {cfg.audacity}" if cfg.audacity else ""))
    return 1 if tally.failed else 0


if __name__ == "__main__":
    run_script(DetectConfig, main)
