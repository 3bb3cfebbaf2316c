"""Unlabelled recordings in, sound events out: what evaluate.py decides, without labels.

Run:    python detect.py --policy runs/demo/best.pt --audio recordings --out events.tsv
        python detect.py --scores scores         # of any detector, nothing trained
        python detect.py --policy runs/mine/best.pt --audio recordings --scores scores
        python detect.py --policy runs/mine/best.pt --scores scores      # no audio: r = 1
        from detect import detect       # in Python: arrays in, events out, no files
Reads:  a checkpoint, recordings, and their score files or <corpus>/scorer.pt
Writes: <out> (a DCASE TSV), with --audacity a label file a recording
Shapes: S samples, T frames of a recording, K classes, N frames of all rows together

A recording as long as the policy's training clips is one block, and gets the events that
evaluate.py gives it. A longer one is cut into blocks of the typical training clip, each half over
the next. A block is normalised by itself (min-max over its own frames), passes the tag gate by
itself and is decided like a clip; for a frame in two blocks the one counts whose centre is nearer.
Audio is read block by block, from front to back.
"""

import io
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from config import PRETRAINED, DetectConfig, PreprocessConfig, Signal, renames
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(DetectConfig)

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, check_file, check_ours, keep_apart, made, own_folder, whole
from core.names import isolated
from core.ranks import pick_device
from core.stored import read_json
from policy import runfolder
from policy.apply import Policy, decisions, load_policy
from policy.bandit import query_of, resident
from policy.event_policy import decide_clips
from policy.gate import Gate, opens
from policy.posterior import Asked, Queried
from scores import crnn, score_files
from sed.audio import TRUNCATED, AudioFile, wav_from
from sed.caches import MOST_MANIFEST, listed
from sed.event_metrics import ScoredEvent
from sed.labels import audio_below, check_names, clip_id, fit_events
from sed.provenance import no_negatives, other_classes, other_frames
from sed.signals import (
    FELL_BACK,
    SILENT,
    VERSION,
    WINDOWS,
    check_duration,
    clip_tag,
    compute_signals,
    falls_back,
    loudness_on_grid,
)
from sed.timeline import (
    COLUMNS,
    SLACK_S,
    ClipScores,
    Event,
    frame_edges,
    frames_to_events,
    tidy_events,
    write_audacity,
    write_labels,
)

LOW_RATE = (
    f"sample rate below the {crnn.SAMPLE_RATE // 1000} kHz that the scorer was trained on: it"
    " hears nothing above half of it and misses events"
)
BLOCK_S = 10.0  # where neither the policy nor the user says: clips of DESED and AudioSet
FRAMES_AT_ONCE = 100_000  # rows are decided together until they have so many frames
SHEETS_AT_ONCE = 256  # or so many recordings wait for their decisions
FILES_AT_ONCE, SECONDS_AT_ONCE = 16, 160.0  # open and, where the built-in scorer hears them, scored

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
    cfg: DetectConfig
    signal: Signal
    gate: Gate | None
    listen: bool  # False: the loudness is 1 everywhere
    block_s: float
    longest_s: float  # recordings up to this long are one block
    device: torch.device

    def cut(self, num_frames: int, frame_s: float) -> list[Block]:
        """Blocks of a recording on its own grid."""
        size = max(2, round(self.block_s / frame_s))
        return blocks(num_frames, size, round(self.longest_s / frame_s) + 1)


class Recording(NamedTuple):
    """One recording; `filename` is its path below the folder searched, as in the output."""

    filename: str
    audio: Path | bytes | None  # bytes: what a file would hold
    clip: str | None = None  # id of its scores, where these alone tell of it


class Opened(NamedTuple):
    """A recording that is read next."""

    recording: Recording
    audio: AudioFile | ValueError | None  # an error: it cannot be opened; None: there is none
    duration_s: float  # as its header says


Features = dict[str, np.ndarray | ValueError]  # of the built-in scorer by recording, or its flaw


class Source(NamedTuple):
    """Where scores come from: names of the K classes, and the scores of a recording."""

    classes: list[str]
    score: Callable[[Recording, AudioFile | None, "Tally"], ClipScores]
    text: str
    clips: Callable[[], list[str]] = list  # ids of all clips that have scores, where that is known
    # What comes next: decoded in a thread of its own, and then taken over.
    decode: Callable[[list[Opened]], Features] = lambda _: {}
    take: Callable[[Features], object] = len


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
    if policy.signal is None:
        print(f"note: {cfg.policy} does not know its formulas: those of preset {cfg.preset}")
    elif policy.origin.formulas != VERSION:
        print(
            f"note: {cfg.policy} was trained with version {policy.origin.formulas}"
            f" of the formulas, these are of {VERSION}: on frames of other than 20 ms its filters"
            " lagged; train it again"
        )
    if policy.over_events:
        if not cfg.gate:
            print("note: --no-gate says nothing here: a policy over events has no tag gate")
        if cfg.batch != DetectConfig.batch:
            print("note: --batch does nothing for a policy over events")
    elif not cfg.gate:
        print("note: no tag gate (--no-gate): the signals of every class peak somewhere")
    elif policy.gate is None:
        print(
            "note: this policy has no tag gate (imported, or of an older version): every class of"
            " every recording may have events; train again to get one"
        )
    plan = plan_of(policy, cfg, device)
    if cfg.audio is None:
        but = ", but the policy was trained with audio" if policy.origin.facts.get("audio") else ""
        print(f"note: no audio (--audio not given): the normalised loudness is 1 everywhere{but}")
    elif not plan.listen:
        print("note: the policy was trained without audio: the loudness is 1 everywhere here too")
    return plan


def plan_of(policy: Policy, cfg: DetectConfig, device: torch.device) -> Plan:
    """How a policy is applied. InputError for formulas that are unknown to this version."""
    known = policy.origin.facts
    signal = PreprocessConfig.with_preset(cfg.preset).signal
    if policy.signal is not None:
        signal = runfolder.config_of(Signal, policy.signal)
    listen = cfg.audio is not None and known.get("audio") is not False
    block_s = cfg.block_s or known.get("clip_s", BLOCK_S)
    longest_s = 1.5 * block_s
    if cfg.block_s is None:
        longest_s = max(longest_s, known.get("longest_s", 0.0))
    gate = policy.gate if cfg.gate else None
    if cfg.min_confidence and not policy.over_events:
        raise InputError(
            f"--min-confidence {cfg.min_confidence:g}: {cfg.policy} decides frames and is sure of"
            " no event; leave it out, or take a policy of DQN.py --method events"
        )
    return Plan(policy, cfg, signal, gate, listen, block_s, longest_s, device)


# ---------------------------------------------------------------------------- scores


def corpus_scorer(policy: Path) -> Path | None:
    """scorer.pt of the corpus whose scores the policy was trained on, where all that is found."""
    try:
        run = read_json(policy.parent / "config.json", "")
        path = Path(run["cache"]) / run["split"] / "manifest.json"
        manifest = read_json(path, "", most=MOST_MANIFEST)
        path = Path(manifest["scores"]["folder"]).parent.parent / crnn.SCORER
    except (InputError, KeyError, TypeError):
        return None
    return path if path.is_file() else None


def scored_parts(audio: AudioFile, plan: Plan) -> list[Block]:
    """Blocks of a recording on the grid of the built-in scorer."""
    whole = audio.num_samples * crnn.SAMPLE_RATE // (audio.sample_rate * crnn.HOP)
    return plan.cut(whole, crnn.FRAME_S)


def scored_in_blocks(scorer: crnn.Scorer, audio: AudioFile, plan: Plan) -> np.ndarray:
    """Scores (K, T) of a long recording by the built-in scorer, block by block."""
    found = []
    for part in scored_parts(audio, plan):
        wav = audio.span(part.start * crnn.FRAME_S, part.stop * crnn.FRAME_S)
        values = scorer.score_recording(wav, audio.sample_rate)
        found.append(values[:, part.first - part.start : part.last - part.start])
    return np.concatenate(found, axis=1)


def open_source(cfg: DetectConfig, plan: Plan) -> Source:
    """The user's score files, or the built-in scorer. Raises InputError."""
    if cfg.scores is not None:
        files = score_files.open_scores(cfg.scores, list(cfg.classes) or None, renames(cfg.map))

        def read(one: Recording, *_: Any) -> ClipScores:
            return files.scores(one.filename) if one.clip is None else files.read(one.clip)

        return Source(files.classes, read, f"{cfg.scores}", files.clips)
    path = cfg.scorer or corpus_scorer(cfg.policy)
    if path is None:
        which = f"scorer.pt of the corpus that {cfg.policy} was trained on, written by scorers.py"
        if cfg.policy.resolve() == PRETRAINED:  # of many corpora, none of which is here
            which = "a scorer.pt of scorers.py"
        what = "no scores: give --scores (your model's score files) or --scorer"
        raise InputError(f"{what} ({which})")
    scorer = crnn.load_scorer(path, plan.device)
    classes = list(cfg.classes) or scorer.classes
    for name in classes:
        if name not in scorer.classes:
            raise InputError(f"--classes {name}: {path} knows {', '.join(scorer.classes)}")
    order = [scorer.classes.index(name) for name in classes]
    ready: dict[str, np.ndarray | ValueError] = {}  # scores (K, T) of what comes next, or its flaw

    def decode(opened: list[Opened]) -> Features:
        """Recordings of one block."""
        features: Features = {}
        for one, audio, _ in opened:
            if isinstance(audio, AudioFile) and len(scored_parts(audio, plan)) == 1:
                try:
                    wav = audio.span(0, audio.duration_s)
                    features[one.filename] = crnn.features_of(wav, audio.sample_rate)
                except ValueError as error:
                    features[one.filename] = error
        return features

    def take(features: Features) -> None:
        """Score them together."""
        ready.clear()
        ready.update(features)
        whole = {k: v for k, v in features.items() if not isinstance(v, ValueError)}
        ready.update(zip(whole, scorer.scores_of_many(list(whole.values())), strict=True))

    def score(one: Recording, audio: AudioFile, tally: Tally) -> ClipScores:
        if audio.sample_rate < crnn.SAMPLE_RATE:
            tally.note(LOW_RATE, one.filename)
        values = ready.get(one.filename)
        if isinstance(values, ValueError):
            raise values
        if values is None:
            values = scored_in_blocks(scorer, audio, plan)
            if audio.truncated:
                tally.note(TRUNCATED, one.filename)
        return ClipScores(values[order], frame_edges(values.shape[1], crnn.FRAME_S))

    return Source(classes, score, f"built-in scorer {path}", decode=decode, take=take)


def find_recordings(cfg: DetectConfig, source: Source) -> list[Recording]:
    """Recordings by name; without audio, the clips that have scores. Raises InputError."""
    if cfg.audio is None:  # labels name recordings, most with an extension: so do the results
        clips = source.clips()
        check_names(clips, f"--scores {cfg.scores}")
        return [Recording(clip + ".wav" * (clip == clip_id(clip)), None, clip) for clip in clips]
    if cfg.audio.is_file():
        found = [Recording(cfg.audio.name, cfg.audio)]
    elif cfg.audio.is_dir():
        found = [Recording(name, cfg.audio / name) for name in audio_below(cfg.audio)]
    else:
        raise InputError(f"--audio {cfg.audio}: no such file or folder")
    check_names([one.filename for one in found], f"--audio {cfg.audio}")
    return found


# ---------------------------------------------------------------------------- rows and decisions


class Sheet(NamedTuple):
    """Decisions of one recording, (K, T) bool, between edges (T + 1,); it ends at `duration_s`.

    `boxes`: of a policy over events, by class, the boxes that are on and their confidences.
    """

    filename: str
    on: np.ndarray
    edges: np.ndarray
    duration_s: float
    boxes: dict[int, list[tuple[int, int, float]]]


class Sight(NamedTuple):
    """What a policy over events sees of one block, and where its boxes go."""

    num_frames: int  # of all classes; counts for `FRAMES_AT_ONCE`
    clip: Queried
    block: Block
    sheet: Sheet


class Row(NamedTuple):
    """One class in one block: signals (n,) of the frames to decide after `skip` more."""

    num_frames: int  # n, counts for `FRAMES_AT_ONCE`
    signals: dict[str, np.ndarray]
    skip: int
    on: np.ndarray  # where the decisions go: a part of a sheet


def block_loudness(
    one: Opened, scores: ClipScores, parts: list[Block], plan: Plan, tally: Tally
) -> Iterator[np.ndarray | None]:
    """Normalised loudness (n,) of each block, None where it is unknown. ValueError on bad audio.

    A recording of several blocks was read past its first one: it is opened again.
    """
    if not plan.listen:
        yield from (None for _ in parts)
        return
    name, rate = one.recording.filename, one.audio.sample_rate
    with AudioFile(one.recording.audio) if one.audio.at else nullcontext(one.audio) as audio:
        if notice := check_duration(audio.duration_s, scores):
            tally.note(notice, name)
        silent = True
        for part in parts:
            start_s, stop_s = scores.span_s(part.start, part.stop)
            wav = wav_from(audio.span(max(0.0, start_s), stop_s), rate, min(0.0, start_s))
            silent = silent and not wav.any()
            size = part.stop - part.start
            yield loudness_on_grid(wav, rate, stop_s - start_s, size, plan.signal)
        if silent:
            tally.note(SILENT, name)
        if audio.truncated:
            tally.note(TRUNCATED, name)


def open_some(left: Iterator[Recording], stack: ExitStack) -> list[Opened]:
    """The next few recordings, open until the stack closes."""
    some: list[Opened] = []
    seconds = 0.0
    for recording in itertools.islice(left, FILES_AT_ONCE):
        audio, duration_s = None, np.inf
        try:
            if recording.audio is not None:
                audio = stack.enter_context(AudioFile(recording.audio))
                duration_s = audio.duration_s
                seconds += duration_s
        except ValueError as error:
            audio = error
        some.append(Opened(recording, audio, duration_s))
        if seconds >= SECONDS_AT_ONCE:
            break
    return some


def decoded(
    recordings: list[Recording], source: Source
) -> Iterator[tuple[ExitStack, list[Opened], Features]]:
    """A few recordings at a time, the next ones decoded beside the caller's work on these."""
    left = iter(recordings)

    def coming() -> tuple[ExitStack, list[Opened], Features]:
        stack = ExitStack()
        some = open_some(left, stack)
        return stack, some, source.decode(some)

    with ThreadPoolExecutor(1) as decoder:
        waiting = decoder.submit(coming)
        while (found := waiting.result())[1]:
            waiting = decoder.submit(coming)
            yield found


def recording_rows(
    one: Opened, source: Source, plan: Plan, tally: Tally
) -> Iterator[Row | Sight | Sheet]:
    """Every row of a recording that the gate lets through (of a policy over events: every block),
    then its sheet, all off as yet.

    ValueError or InputError where the recording or its scores are bad.
    """
    recording, audio, duration_s = one
    if isinstance(audio, ValueError):
        raise audio
    scores = source.score(recording, audio, tally)
    if plan.cfg.cut_scores:
        scores = score_files.cut_scores(scores, duration_s)
    num_frames, frame_s = len(scores.edges) - 1, float(scores.frame_s)
    if scores.start_s:
        tally.note(WINDOWS, recording.filename)
    edges = frame_edges(num_frames, frame_s, scores.start_s)
    on = np.zeros((len(source.classes), num_frames), bool)
    sheet = Sheet(recording.filename, on, edges, min(duration_s, float(scores.edges[-1])), {})
    parts, ever_open = plan.cut(num_frames, frame_s), np.zeros(len(source.classes), bool)
    loudness = block_loudness(one, scores, parts, plan, tally)
    for part, rms in zip(parts, loudness, strict=True):
        tally.blocks += 1
        values = scores.values[:, part.start : part.stop]
        if plan.policy.over_events or plan.gate is not None:  # which alone ask for tags
            span = scores.edges[part.start : part.stop + 1]
            # of the whole recording where the source has its own
            tags = clip_tag(ClipScores(values, span - span[0], scores.tag), plan.signal)
        if plan.policy.over_events:
            loud = np.ones(values.shape[1]) if rms is None else rms
            seen = values.astype(np.float32), loud.astype(np.float32)
            yield Sight(values.size, Queried(*seen, tags, frame_s, False), part, sheet)
            continue
        opened = np.ones(len(source.classes), bool)
        if plan.gate is not None:
            cells = zip(source.classes, tags.tolist(), strict=True)
            opened = np.array([opens(plan.gate, *cell) for cell in cells])
        ever_open |= opened
        wanted = np.flatnonzero(opened)
        for k in wanted[falls_back(rms, values[wanted], plan.signal)]:
            tally.note(FELL_BACK, f"{recording.filename} / {source.classes[k]}")
        signals = compute_signals(rms, values[wanted], frame_s, plan.signal)
        for i, k in enumerate(wanted):
            of_class = {name: array[i] for name, array in signals.items()}
            yield cut_row(of_class, part, sheet.on[k], plan)
    tally.seconds += num_frames * frame_s
    tally.pairs += len(ever_open)  # counted where there is a gate
    tally.closed += int((~ever_open).sum())
    if num_frames > 1:  # of a single frame the length says nothing
        tally.frame_lengths.add(round(frame_s, 6))
    yield sheet


def cut_row(signals: dict[str, np.ndarray], block: Block, on: np.ndarray, plan: Plan) -> Row:
    """The part of a block's signals (n,) that its counting frames depend on; `on` (T,).

    A state reaches `context` frames to both sides; in the sequential reading it also shows what
    was decided on its left, which goes back to the start of the block.
    """
    bandit = plan.policy.bandit
    before = bandit.context if bandit.reading == "independent" else block.first - block.start
    start = max(block.start, block.first - before)
    stop = min(block.stop, block.last + bandit.context)
    span = slice(start - block.start, stop - block.start)
    needed = {name: signal[span] for name, signal in signals.items()}
    return Row(stop - start, needed, block.first - start, on[block.first : block.last])


def all_rows(
    recordings: list[Recording], source: Source, plan: Plan, tally: Tally, quiet: bool
) -> Iterator[Row | Sight | Sheet]:
    """Rows, blocks and sheets of all recordings; what fails is named in the tally and left out."""
    shown = sys.stderr.isatty()  # else a line a minute, see BarLines
    with tqdm(total=len(recordings), desc="Detecting", unit="recording", disable=quiet) as bar:
        for stack, some, features in decoded(recordings, source):
            with stack:
                source.take(features)
                for one in some:
                    try:
                        for item in recording_rows(one, source, plan, tally):
                            text = f"{tally.blocks} block{'s' * (tally.blocks != 1)}"
                            bar.set_postfix_str(text, refresh=shown and not tally.blocks % 50)
                            yield item
                    except (ValueError, InputError) as error:
                        tally.failed.append(f"{one.recording.filename}: {error}")
                    bar.update()


def decide_rows(rows: list[Row], plan: Plan) -> None:
    """Write the policy's decisions on some rows into their sheets."""
    if not rows:
        return
    policy = plan.policy
    values = {name: np.concatenate([row.signals[name] for row in rows]) for name in rows[0].signals}
    starts = np.cumsum([0] + [row.num_frames for row in rows])
    label = np.zeros(starts[-1], bool)  # nobody knows
    signals = resident(values, label, starts, policy.bandit, plan.device)
    pred = decisions(policy.network, signals, policy.bandit, plan.cfg.batch)[0].cpu().numpy()
    for row, start in zip(rows, starts, strict=False):
        row.on[:] = pred[start + row.skip :][: len(row.on)]


def decide_sights(sights: list[Sight], classes: list[str], plan: Plan) -> None:
    """Write the boxes that a policy over events chooses in some blocks into their sheets.

    Of a box the frames count that count in its block; what two blocks say of a sound at the seam
    touches there, and is one event.
    """
    network, asked = plan.policy.network, []
    for i, sight in enumerate(sights):
        wanted = np.flatnonzero(sight.clip.tags > network.events.tag_limit)
        if len(wanted):
            asked.append(Asked(sight.clip, wanted, i * len(classes) + wanted))
    if not asked:
        return
    query = query_of(classes * len(sights), network.classes)
    boxes, *_ = decide_clips(network, asked, query, plan.device)
    some = boxes.chosen & (boxes.confidence >= plan.cfg.min_confidence)
    columns = (boxes.pair, boxes.begin, boxes.end, boxes.confidence)
    for pair, begin, end, sure in zip(*(each[some] for each in columns), strict=True):
        sight, k = sights[pair // len(classes)], pair % len(classes)
        block = sight.block
        span = slice(max(block.start + begin, block.first), min(block.start + end, block.last))
        if span.start < span.stop:
            sight.sheet.on[k, span] = True
            sight.sheet.boxes.setdefault(k, []).append((span.start, span.stop, sure))


def events_of(sheet: Sheet, classes: list[str], plan: Plan) -> list[Event] | list[ScoredEvent]:
    """Events of a decided recording by onset; those of a policy over events have the highest
    confidence of the boxes that each is made of."""
    rows = zip(sheet.on, classes, strict=True)
    events = [e for on, name in rows for e in frames_to_events(on, name, sheet.edges)]
    events = fit_events(sheet.filename, events, sheet.duration_s)[0]
    events = tidy_events(events, plan.cfg.min_duration, plan.cfg.merge_gap)
    if not plan.policy.over_events:
        return events
    boxes = {classes[k]: np.array(some) for k, some in sheet.boxes.items()}
    found = []
    for event in events:
        begin, end, sure = boxes[event.event_label].T
        begin, end = (sheet.edges[at.astype(int)] for at in (begin, end))
        mine = (begin < event.offset - SLACK_S) & (end > event.onset + SLACK_S)
        found.append(ScoredEvent(*event, float(sure[mine].max())))
    return found


def detect_all(
    recordings: list[Recording], source: Source, plan: Plan, tally: Tally, quiet: bool = False
) -> Iterator[tuple[str, list[Event] | list[ScoredEvent]]]:
    """Name and `events_of` every recording that could be read, in order.

    Rows of many classes, blocks and recordings are decided together; memory holds the rows of
    `FRAMES_AT_ONCE` frames and the sheets that wait for them.
    """
    rows: list[Row | Sight] = []
    sheets: list[Sheet] = []
    frames = 0

    def finished() -> Iterator[tuple[str, list[Event] | list[ScoredEvent]]]:
        if plan.policy.over_events:
            decide_sights(rows, source.classes, plan)
        else:
            decide_rows(rows, plan)
        for sheet in sheets:
            yield sheet.filename, events_of(sheet, source.classes, plan)
        rows.clear()
        sheets.clear()

    for item in all_rows(recordings, source, plan, tally, quiet):
        if isinstance(item, Sheet):
            sheets.append(item)
        else:
            rows.append(item)
            frames += item.num_frames
        if frames >= FRAMES_AT_ONCE or len(sheets) >= SHEETS_AT_ONCE:
            yield from finished()
            frames = 0
    yield from finished()


# ---------------------------------------------------------------------------- arrays in, events out


FLAGS = {"gate", "cut_scores", "block_s", "min_duration", "merge_gap", "min_confidence", "device"}


def detect(
    values: np.ndarray,
    edges: np.ndarray,
    classes: list[str],
    policy: Policy | Path | str = PRETRAINED,
    wav: np.ndarray | None = None,
    sample_rate: int | None = None,
    **flags: Any,
) -> list[Event] | list[ScoredEvent]:
    """Events of one recording, by onset: what detect.py finds in files, in arrays.

    `values` (K, T) are frame scores 0..1 of K classes, `edges` (T + 1,) the frames' edges in
    seconds, `policy` a checkpoint or what `load_policy` opened. `wav` (S,) or (S, channels) are the
    samples; without them the loudness is 1 everywhere. `flags`: `FLAGS` of `DetectConfig`. Events
    of a policy over events have a `confidence`. Raises InputError for arrays that do not fit each
    other, scores out of 0..1, unequal frames and flags that are unknown here or wrong.
    """
    if (wav is None) != (sample_rate is None):
        raise InputError("detect: wav and sample_rate go together")
    if unknown := sorted(flags.keys() - FLAGS):
        raise InputError(f"detect: no {unknown[0]} here, but {', '.join(sorted(FLAGS))}")
    path = Path(policy) if isinstance(policy, (str, Path)) else PRETRAINED
    heard = None if wav is None else Path("wav")
    try:
        cfg = DetectConfig(policy=path, audio=heard, scores=Path("values"), **flags)
        scores, audio = score_files.checked_scores(values, edges, list(classes)), None
        if wav is not None:
            stream = io.BytesIO()
            wav = np.asarray(wav, np.float32)
            soundfile.write(stream, wav, sample_rate, "FLOAT", format="WAV")
            audio = stream.getvalue()
    except (TypeError, ValueError, RuntimeError) as error:  # soundfile's are RuntimeErrors
        raise InputError(f"detect: {error}") from None
    torch_device = pick_device(cfg.device, cfg.threads)
    if isinstance(policy, (str, Path)):
        policy = load_policy(path, torch_device, cfg.preset)
    source, tally = Source(list(classes), lambda *_: scores, "arrays"), Tally()
    plan = plan_of(policy, cfg, torch_device)
    found = dict(detect_all([Recording("wav", audio)], source, plan, tally, quiet=True))
    if tally.failed:
        raise InputError(f"detect: {tally.failed[0]}")
    return found["wav"]


# ---------------------------------------------------------------------------- what is said


def describe(cfg: DetectConfig, source: Source, plan: Plan, num_recordings: int) -> None:
    """Say what is about to happen. InputError where the policy knows none of the classes."""
    origin, classes = plan.policy.origin, source.classes
    said = other_classes("the policy", origin, source.text, classes, cfg.other_classes)
    print(f"{num_recordings} recording{'s' * (num_recordings != 1)}; scores: {source.text}")
    print(f"{len(classes)} classes: {', '.join(map(isolated, classes))}")
    for text in (said, no_negatives("the policy", origin, classes)):
        if text:
            print(f"note: {isolated(text)}")
    print(f"longer than {plan.longest_s:.4g} s: blocks of {plan.block_s:.4g} s, half over the next")
    if plan.gate and (others := [name for name in classes if name not in plan.gate.thresholds]):
        print(
            f"note: the gate has no threshold for {listed(others)}:"
            f" {plan.gate.fallback:.3f}, that of all classes together"
        )


def summarise(tally: Tally, plan: Plan, num_events: int, num_recordings: int, s: float) -> None:
    """What failed, what was noticed, then `key: value` lines for grep."""
    for notice, names in tally.notices.items():
        print(f"note: {len(names)} x {notice}: {listed(list(names))}")
    window = plan.policy.network.window
    if text := other_frames("the policy", plan.policy.origin, sorted(tally.frame_lengths), window):
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


MIN_DURATION_S, MERGE_GAP_S = 0.1, 0.2  # advised where nobody knows the training labels
FRAGMENTED = 0.8  # share of events that the advice may leave, below which it is given


def advise(plan: Plan, clips: list[list[Event]]) -> None:
    """Say what would join the fragments of a policy that decides frames, and how many it leaves:
    events shorter, and closer to another of their class, than nearly all of the training labels."""
    if plan.policy.over_events or plan.cfg.min_duration or plan.cfg.merge_gap:
        return
    known = plan.policy.origin.facts
    shortest, gap = known.get("short_s") or MIN_DURATION_S, known.get("gap_s") or MERGE_GAP_S
    left = sum(len(tidy_events(events, shortest, gap)) for events in clips)
    total = sum(map(len, clips))
    if left < FRAGMENTED * total:
        flags = f"--merge-gap {gap:g} --min-duration {shortest:g}"
        why = ", shorter or closer than most training labels" if known.get("short_s") else ""
        print(f"note: many events are fragments{why}; {flags} would leave {left} of these {total}")


TRACKS = Kind("folder of label tracks")


def check_outputs(cfg: DetectConfig) -> None:
    """InputError where an output is an input, or would replace what is not a list of events, or
    one that nobody gave up: labels made by hand look the same."""
    inputs = (cfg.policy, cfg.audio, cfg.scores, cfg.scorer)
    keep_apart(cfg.out, inputs)
    check_file(cfg.out, "\t".join(COLUMNS))
    if cfg.out.exists() and not cfg.overwrite:
        raise InputError(f"--out {cfg.out}: is there already; give --overwrite or another --out")
    if cfg.audacity is not None:
        keep_apart(cfg.audacity, inputs, "--audacity")
        check_ours(cfg.audacity, TRACKS, flag="--audacity")


def main(cfg: DetectConfig) -> int:
    """Detect, write the events, name what failed. Returns the exit code."""
    if cfg.audio is None and cfg.scores is None:
        raise InputError("nothing to do: give --audio, --scores, or both")
    if cfg.policy is None:
        text = (
            f"note: no --policy: {PRETRAINED.name}, for any scores; on labelled clips one of your"
        )
        print(f"{text}\n  own decides better: DQN.py --init, see docs/scores.md")
    cfg = replace(cfg, policy=runfolder.checkpoint_of(cfg.policy or PRETRAINED))
    check_outputs(cfg)
    plan = make_plan(cfg, pick_device(cfg.device, cfg.threads))
    source = open_source(cfg, plan)
    recordings = find_recordings(cfg, source)
    describe(cfg, source, plan, len(recordings))
    tally, began = Tally(), time.perf_counter()
    clips = dict(detect_all(recordings, source, plan, tally))
    seconds = time.perf_counter() - began
    if not clips:
        raise InputError(f"none of {len(recordings)} recordings could be done: {tally.failed[0]}")
    with made(cfg.out.parent), ExitStack() as stack:  # which puts the tracks in place at its end
        if cfg.audacity is not None:
            stack.enter_context(own_folder(cfg.audacity, TRACKS, flag="--audacity"))
        for filename, events in clips.items() if cfg.audacity else ():
            path = cfg.audacity / f"{clip_id(filename)}.txt"
            stack.enter_context(made(path.parent))
            write_audacity(stack.enter_context(whole(path)), events)
        write_labels(cfg.out, clips, ("confidence",) if plan.policy.over_events else ())
    summarise(tally, plan, sum(map(len, clips.values())), len(recordings), seconds)
    advise(plan, list(clips.values()))
    print(f"results: {cfg.out}" + (f", {cfg.audacity}" if cfg.audacity else ""))
    return 1 if tally.failed else 0


if __name__ == "__main__":
    run_script(DetectConfig, main)
