"""A strongly labelled corpus: timelines and a sound bank -> recordings and labels.

Shapes: S samples of a recording, n samples of a clip or an event; waves are (S,) or (n,)
"""

import difflib
import io
import math
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from config import SoundscapesConfig
from core.errors import InputError
from core.files import Kind, contents, keep_apart, new_folder, write_bytes, write_text, writing
from core.names import name_flaw
from core.processes import in_order, num_workers, process_pool
from core.settings import to_dict
from core.stored import read_json, write_json
from scores.synthesiser import (
    BUILT_IN,
    CLASSES_A_CLIP,
    HABITS,
    LONG_S,
    RATE,
    SHORTEST_S,
    Habit,
    Random,
    generator,
    synthesise,
    tilted,
)
from sed.audio import TRUNCATED, AudioFile
from sed.labels import cells, read_labels
from sed.timeline import CLIP_COLUMNS, SPLITS, Event, classes_of, runs_of, write_labels

# An earlier corpus is never replaced; what is half made is deleted.
CORPUS = Kind(
    "corpus",
    ("corpus.json", "clips.tsv", "*/labels.tsv", "*/audio/*.flac", "bank/[0-9]*.npy"),
    (("corpus.json", "validation_fold"), ("corpus.json", "out")),
)
AUDIO = (".wav", ".flac", ".ogg")
FADE = RATE // 100  # 10 ms where sounds are cut and joined: no click, and the label stays true
GAP_S = 0.15  # shortest pause between events of one class in DESED
REDRAWS = 20  # tries with other sounds before too long ones are cut
BACKGROUND_DB = (-60.0, -40.0)  # RMS of the background, dB re full scale
TILT_DB = (-6.0, 0.0)  # slope of the background's spectrum, dB an octave
SILENT = 1e-4  # a bank file with a lower peak (3 steps of 16 bits) has nothing to play
PEAK = 0.9  # a louder clip is scaled down as a whole, which keeps every SNR
FOLDS = 5  # of a bank that brings no folds, and of the built-in one
TAKES = 8  # built-in recordings of a class in a fold


Timeline = dict[str, list[Event]]  # events of each clip by file name


class BankSound(NamedTuple):
    """A bank sound. `source` is its file or its take; `parts` are (start, end) active samples."""

    number: int
    name: str
    bank_class: str
    fold: int
    source: Path | int
    parts: tuple[tuple[int, int], ...] = ()


class PlacedSound(NamedTuple):
    """An event and what plays it: from part `first`, `skip` samples in, at `snr_db`."""

    event: Event
    recording: BankSound
    first: int
    skip: int
    snr_db: float


class PlannedClip(NamedTuple):
    """A planned clip; `number` counts inside its split."""

    split: str
    number: int
    filename: str
    fold: int
    sounds: tuple[PlacedSound, ...]


def list_bank(bank: Path | None, seed: int, flag: str = "--bank") -> list[BankSound]:
    """Recordings with class and fold, without audio. InputError names an unusable folder's flag.

    Folds: the integer before the first `-` of the file name where every file of the bank has one
    (ESC-10), else five seeded ones a class. This is the only place that reads a fold from a name.
    """
    if bank is None:
        keys = [(c, f, t) for c in BUILT_IN for f in range(1, FOLDS + 1) for t in range(TAKES)]
        return [BankSound(i, f"{c}/{f}-{t}", c, f, t) for i, (c, f, t) in enumerate(keys)]
    files = sorted(p for p in bank.glob("*/*") if p.suffix.lower() in AUDIO and p.name[0] != ".")
    if not files:
        endings = ", ".join(AUDIO)
        raise InputError(f"{flag} {bank}: no <class>/*({endings}) found; give a folder per class")
    names = [f"{file.parent.name}/{file.name}" for file in files]
    for name in names:
        flaw = name_flaw(name, path=True)
        if re.search('[;"]', name):
            flaw = "has a quote or semicolon in it"
        if flaw:
            raise InputError(f"{flag} {bank}: {name!r} {flaw}; rename it")
    prefixes = [re.match(r"(\d+)-", file.name) for file in files]
    folds = [int(prefix[1]) if prefix else 0 for prefix in prefixes]
    if not all(prefixes):
        folds = [0] * len(files)
        for bank_class in {file.parent.name for file in files}:
            members = [i for i, file in enumerate(files) if file.parent.name == bank_class]
            rng = generator(seed, "folds", zlib.crc32(bank_class.encode()))
            for place, i in enumerate(rng.permutation(members)):
                folds[i] = 1 + place % FOLDS
    rows = zip(names, files, folds, strict=True)
    return [BankSound(i, n, p.parent.name, fold, p) for i, (n, p, fold) in enumerate(rows)]


def read_class_map(path: Path | None, bank_classes: list[str]) -> dict[str, str]:
    """Event label -> bank class; without a file every bank class plays itself."""
    if path is None:
        return {name: name for name in bank_classes}
    rows = list(cells(path))
    if not rows or rows[0][1] != ["event_label", "bank_class"]:
        found = ", ".join(rows[0][1]) if rows else "an empty file"
        raise InputError(f"{path} line 1: no header event_label, bank_class; found {found}")
    class_map: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != 2 or not all(row):
            raise InputError(f"{path} line {line}: expected event_label<TAB>bank_class, got {row}")
        label, bank_class = row
        if flaw := name_flaw(label):
            raise InputError(f"{path} line {line}: the label {label!r} {flaw}")
        if label in class_map:
            raise InputError(f"{path} line {line}: {label!r} is mapped twice; keep one row")
        if bank_class not in bank_classes:
            near = difflib.get_close_matches(bank_class, bank_classes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(bank_classes)}"
            raise InputError(f"{path} line {line}: the bank has no class {bank_class!r}; {hint}")
        class_map[label] = bank_class
    if not class_map:
        raise InputError(f"{path}: no rows under the header; map at least one event_label")
    return class_map


def read_recording(path: Path) -> np.ndarray:
    """Mono wave (S,) float32 at 16 kHz. Raises InputError naming a damaged or silent file."""
    try:
        with AudioFile(path) as audio:
            wave, rate = audio.read().mean(axis=1), audio.sample_rate
        if audio.truncated:
            raise ValueError(TRUNCATED)
    except ValueError as error:
        raise InputError(f"bank file {path}: {error}; replace it") from None
    if np.abs(wave).max() < SILENT:
        raise InputError(f"bank file {path}: silent; replace or remove it")
    if rate != RATE:
        shared = math.gcd(rate, RATE)
        from scipy.signal import resample_poly  # most of a second to import

        wave = resample_poly(wave, RATE // shared, rate // shared)
    return wave.astype(np.float32)


def active_parts(wave: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, end) samples of the stretches of a recording (S,) that sound.

    Blocks of 10 ms count where they are 10 dB above the recording's floor, within 25 to 35 dB
    below its loudest; pauses under 0.2 s are bridged, blips under 50 ms dropped.
    """
    block = RATE // 100
    blocks = np.pad(wave, (0, -len(wave) % block)).reshape(-1, block).astype(np.float64)
    level = 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)
    gate = np.clip(np.percentile(level, 10) + 10, level.max() - 35, level.max() - 25)
    runs: list[list[int]] = []
    for a, b in zip(*runs_of(level >= gate), strict=True):
        if runs and a - runs[-1][1] < 20:
            runs[-1][1] = b
        else:
            runs.append([a, b])
    longest = max(runs, key=lambda run: run[1] - run[0])
    runs = [run for run in runs if run[1] - run[0] >= 5] or [longest]
    return tuple((int(a) * block, min(int(b) * block, len(wave))) for a, b in runs)


def decode(recording: BankSound, seed: int, folder: Path) -> BankSound:
    """Write the recording's wave to `folder` for the renderers; return it with its parts."""
    if isinstance(recording.source, Path):
        wave = read_recording(recording.source)
    else:
        wave = synthesise(seed, recording.bank_class, recording.fold, recording.source)
    path = folder / f"{recording.number}.npy"
    with writing(path):
        np.save(path, wave)
    return recording._replace(parts=active_parts(wave))


def check_folds(cfg: SoundscapesConfig, bank: list[BankSound], needed: dict[str, set[str]]) -> None:
    """Every class that a split needs has recordings in every fold of that split, or InputError."""
    folds = sorted({recording.fold for recording in bank})
    told = f"--validation-fold {cfg.validation_fold}: the bank's folds are {folds}"
    if cfg.validation_fold not in folds:
        raise InputError(f"{told}; choose one of them")
    if len(folds) < 2:
        raise InputError(f"{told}; at least one more is needed for training clips")
    held = {(recording.bank_class, recording.fold) for recording in bank}
    for split, bank_classes in needed.items():
        for bank_class in sorted(bank_classes):
            for fold in folds_of(split, folds, cfg.validation_fold):
                if (bank_class, fold) not in held:
                    raise InputError(
                        f"bank class {bank_class!r}: no recording in fold {fold}, which {split} "
                        f"clips play; add recordings or leave the class out"
                    )


def folds_of(split: str, folds: Iterable[int], validation_fold: int) -> list[int]:
    """Bank folds that clips of a split may play."""
    return [fold for fold in folds if (fold == validation_fold) == (split == "validation")]


def flac_name(filename: str) -> str:
    """`0.wav` -> `0.flac`. Only an audio ending is cut: AudioSet ids contain dots."""
    name = Path(filename).name
    known = (*AUDIO, ".mp3", ".m4a")
    return (
        name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in known else name
    ) + ".flac"


def read_timeline(path: Path, prefix: str, cfg: SoundscapesConfig) -> Timeline:
    """Timeline -> events of each clip by output name, rounded to 1 ms, cut at the clip's end.

    Raises InputError for an event outside the clip, shorter than 1 ms, or for two clips that
    would have one name.
    """
    clips: Timeline = {}
    num_cut = 0
    for filename, events in read_labels(path).items():
        name = prefix + flac_name(filename)
        if name in clips:
            raise InputError(f"{path}: two clips would be {name}; rename {filename}")
        clips[name] = []
        for event in events:
            onset, offset = round(event.onset, 3), round(min(event.offset, cfg.clip_s), 3)
            if offset <= onset:
                raise InputError(
                    f"{path}: {filename} has {event.event_label} at {event.onset:g} .. "
                    f"{event.offset:g} s, which leaves no sound in a clip of {cfg.clip_s:g} s; "
                    f"raise --clip-s or remove the row"
                )
            num_cut += event.offset > cfg.clip_s
            clips[name].append(Event(onset, offset, event.event_label))
    if num_cut:
        print(f"{num_cut} events of {path} end after {cfg.clip_s:g} s and are cut there")
    return clips


def read_timelines(paths: list[Path], cfg: SoundscapesConfig) -> dict[Path, Timeline]:
    """Clips of each file. Those of several files have the file's name before their own."""
    found: dict[Path, Timeline] = {}
    for path in paths:
        if path.stem in {other.stem for other in found}:
            raise InputError(f"{path}: a second timeline named {path.stem!r}; rename one of them")
        found[path] = read_timeline(path, f"{path.stem}-" if len(paths) > 1 else "", cfg)
    return found


def timelines_of_splits(cfg: SoundscapesConfig) -> dict[str, dict[Path, Timeline]]:
    """The timelines of each split by file; none for a split of random ones.

    `--halve-timelines`: a seeded half of each file's clips trains and the other half validates, so
    that both splits have one distribution and no timeline is in both.
    """
    train = [*cfg.train_timeline]
    validation = [cfg.validation_timeline] if cfg.validation_timeline else []
    if not cfg.halve_timelines:
        files = zip(SPLITS, (train, validation), strict=True)
        return {split: read_timelines(paths, cfg) for split, paths in files}
    halves: dict[str, dict[Path, Timeline]] = {split: {} for split in SPLITS}
    for number, (path, clips) in enumerate(read_timelines(train + validation, cfg).items()):
        if len(clips) < 2:
            raise InputError(f"{path}: {len(clips)} clips; --halve-timelines needs two or more")
        first = np.arange(len(clips)) % 2 == 0
        generator(cfg.seed, "halves", number).shuffle(first)
        for split, chosen in zip(SPLITS, (first, ~first), strict=True):
            halves[split][path] = dict(compress(clips.items(), chosen))
    return halves


def equal_shares(sizes: list[int], count: int) -> list[int]:
    """`count` items as so many of each file: equally many, or all where a file has fewer."""
    shares, left = [0] * len(sizes), count
    for place, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], left // (len(sizes) - place))
        left -= shares[i]
    return shares


def choose_clips(files: list[Timeline], count: int, split: str, seed: int) -> Timeline:
    """`count` clips, equally many of each file, a seeded choice in file order; all where there are
    fewer."""
    sizes = [len(clips) for clips in files]
    if count > sum(sizes):
        print(f"{split}: the timeline has {sum(sizes)} clips, not {count}; all are used")
        count = sum(sizes)
    rng, chosen = generator(seed, "choice", SPLITS.index(split)), {}
    for clips, share in zip(files, equal_shares(sizes, count), strict=True):
        names = list(clips)
        some = np.sort(rng.choice(len(names), share, replace=False)) if names else ()
        chosen |= {names[i]: clips[names[i]] for i in some}
    return chosen


def stretched(rng: Random, events: list[Event], cfg: SoundscapesConfig) -> list[Event]:
    """Events of a clip with lengths times random factors, evenly drawn on a log scale.

    Onsets stay. None becomes shorter than the shortest of DESED, reaches over the clip's end or
    comes nearer than DESED's shortest pause to the next of its class (if it was not before).
    """
    found = []
    for event in events:
        length = event.offset - event.onset
        factor = np.exp(rng.uniform(np.log(cfg.stretch_min), np.log(cfg.stretch_max)))
        later = [
            other.onset - GAP_S
            for other in events
            if other.event_label == event.event_label and other.onset > event.onset
        ]
        most = max(min([cfg.clip_s, *later]), event.offset)
        least = event.onset + min(length, SHORTEST_S)
        offset = min(max(event.onset + factor * length, least), most)
        found.append(event._replace(offset=round(float(offset), 3)))
    return found


def given_sound(rng: Random, event: Event, recordings: list[BankSound], snr: tuple) -> PlacedSound:
    """A recording for a given event; of a long part any stretch, of a call its beginning."""
    recording = recordings[rng.integers(len(recordings))]
    first = int(rng.integers(len(recording.parts)))
    start, end = recording.parts[first]
    spare = end - start - round((event.offset - event.onset) * RATE)
    skip = int(rng.integers(spare)) if end - start > LONG_S * RATE and spare > 0 else 0
    return PlacedSound(event, recording, first, skip, float(rng.uniform(*snr)))


def random_sounds(
    rng: Random, label: str, habit: Habit, recordings: list[BankSound], cfg: SoundscapesConfig
) -> list[PlacedSound]:
    """All events of one class in a random clip; they neither overlap nor touch.

    Parts up to 4 s are placed whole; of longer ones a stretch of a drawn duration. Sounds that do
    not fit into the clip together are drawn again, after 20 tries cut to equal shares: the number
    of events never changes.
    """
    snr, clip_ms, gap = (cfg.snr_min_db, cfg.snr_max_db), int(cfg.clip_s * 1000), int(GAP_S * 1000)
    if rng.random() < habit.full:
        return [given_sound(rng, Event(0.0, clip_ms / 1000, label), recordings, snr)]
    count = min(1 + int(rng.poisson(habit.extra)), max(1, int(cfg.clip_s)))  # one a second at most
    for _ in range(REDRAWS):
        sounds, spans = [], []
        for _ in range(count):
            drawn = rng.lognormal(np.log(habit.median_s), habit.sigma)
            drawn = float(np.clip(drawn, SHORTEST_S, max(SHORTEST_S, cfg.clip_s)))
            sound = given_sound(rng, Event(0.0, drawn, label), recordings, snr)
            start, end = sound.recording.parts[sound.first]
            whole = (end - start) / RATE
            span = drawn if whole > LONG_S else max(whole, SHORTEST_S)
            sounds.append(sound)
            spans.append(int(span * 1000))
        spare = clip_ms - sum(spans) - gap * (count - 1)
        if spare >= 0:
            break
    else:
        spans = [min(span, clip_ms // count - gap) for span in spans]
        spare = clip_ms - sum(spans) - gap * (count - 1)
    pauses = np.diff(np.sort(rng.integers(0, spare + 1, count)), prepend=0)
    placed, now = [], 0
    for sound, span, pause in zip(sounds, spans, pauses, strict=True):
        onset = now + int(pause)
        placed.append(sound._replace(event=Event(onset / 1000, (onset + span) / 1000, label)))
        now = onset + span + gap
    return placed


def plan_split(
    cfg: SoundscapesConfig,
    split: str,
    given: dict[Path, Timeline],
    class_map: dict[str, str],
    bank: list[BankSound],
) -> list[PlannedClip]:
    """Every clip of a split: its fold, its events and the recordings that play them."""
    count = cfg.train_clips if split == "train" else cfg.validation_clips
    names = [f"{number:05d}.flac" for number in range(count)]
    timeline = choose_clips([*given.values()], count, split, cfg.seed) if given else {}
    if given:
        names = list(timeline)
    held: dict[tuple[str, int], list[BankSound]] = {}
    for recording in bank:
        held.setdefault((recording.bank_class, recording.fold), []).append(recording)
    usual = Habit(min(0.9, CLASSES_A_CLIP / len(class_map)), 0.7, 0.0, 1.2, 0.8)
    folds = folds_of(split, sorted({fold for _, fold in held}), cfg.validation_fold)
    # Equally often each, in an order that has nothing to do with the timeline's.
    order = generator(cfg.seed, "choice", 2 + SPLITS.index(split)).permutation(
        np.resize(folds, len(names))
    )
    clips = []
    for number, (name, fold) in enumerate(zip(names, order.tolist(), strict=True)):
        rng = generator(cfg.seed, "plan", SPLITS.index(split), number)
        sounds: list[PlacedSound] = []
        events = timeline.get(name, [])
        if split == "train" and cfg.stretches:
            events = stretched(generator(cfg.seed, "stretch", number), events, cfg)
        for event in events:
            choice = held[class_map[event.event_label], fold]
            sounds.append(given_sound(rng, event, choice, (cfg.snr_min_db, cfg.snr_max_db)))
        while not given and not sounds:  # DESED has no clip without a class
            for label in sorted(class_map):
                habit = HABITS.get(label, usual)
                if rng.random() < habit.presence:
                    choice = held[class_map[label], fold]
                    sounds += random_sounds(rng, label, habit, choice, cfg)
        clips.append(
            PlannedClip(split, number, name, fold, tuple(sorted(sounds, key=lambda s: s.event)))
        )
    return clips


def faded(wave: np.ndarray) -> np.ndarray:
    """Copy of a wave (n,) with 10 ms fades at both ends; two such ends add up to 1."""
    size = min(FADE, len(wave) // 2)
    ramp = np.sin(np.pi / 2 * (np.arange(size) + 0.5) / max(size, 1)) ** 2
    wave = wave.astype(np.float64)
    wave[:size] *= ramp
    wave[len(wave) - size :] *= ramp[::-1]
    return wave


def play(wave: np.ndarray, sound: PlacedSound, n: int) -> np.ndarray:
    """(n,): the active parts of a recording one after the other, again and again, until full."""
    out, at, part, skip = np.zeros(n), 0, sound.first, sound.skip
    while at < n:
        start, end = sound.recording.parts[part]
        piece = faded(wave[start + skip : min(end, start + skip + n - at)])
        out[at : at + len(piece)] += piece
        at += max(1, len(piece) - min(FADE, len(piece) // 2)) if at + len(piece) < n else n
        part, skip = (part + 1) % len(sound.recording.parts), 0
    return out


def rms(wave: np.ndarray) -> float:
    """Root mean square of a wave (n,)."""
    return float(np.sqrt(np.mean(wave**2)))


def mix(clip: PlannedClip, cfg: SoundscapesConfig, bank_dir: Path) -> np.ndarray:
    """The clip's wave (n,): background plus every sound at its SNR, peak at most 0.9."""
    n = round(cfg.clip_s * RATE)
    rng = generator(cfg.seed, "background", SPLITS.index(clip.split), clip.number)
    noise = tilted(rng.normal(0, 1, n), rng.uniform(*TILT_DB))
    noise *= 10 ** (rng.uniform(*BACKGROUND_DB) / 20) / rms(noise)
    wave, floor = noise.copy(), rms(noise)
    for sound in clip.sounds:
        start, end = round(sound.event.onset * RATE), min(round(sound.event.offset * RATE), n)
        recorded = np.load(bank_dir / f"{sound.recording.number}.npy", mmap_mode="r")
        played = play(recorded, sound, end - start)
        wave[start:end] += played * (10 ** (sound.snr_db / 20) * floor / max(rms(played), 1e-12))
    return wave * min(1.0, PEAK / np.abs(wave).max())


def render(clip: PlannedClip, cfg: SoundscapesConfig, bank_dir: Path, folder: Path) -> None:
    """Write the clip's FLAC file."""
    path = folder / clip.split / "audio" / clip.filename
    sound = io.BytesIO()
    soundfile.write(sound, mix(clip, cfg, bank_dir), RATE, format="FLAC", subtype="PCM_16")
    write_bytes(path, sound.getvalue())


def in_parallel(function: Callable, items: list, workers: int, told: str) -> list:
    """[function(item)] over processes with a progress bar; one worker stays in this process."""
    bar = partial(tqdm, total=len(items), desc=told, disable=None, leave=False)  # None: no tty
    if workers == 1:
        return list(bar(map(function, items)))
    with process_pool(workers) as pool:
        return list(bar(in_order(pool, function, items)))


def write_clips(path: Path, clips: list[PlannedClip], duration: float) -> None:
    """clips.tsv: a row a clip, the bank recordings it plays joined by semicolons."""
    lines = ["\t".join(CLIP_COLUMNS)]
    for clip in clips:
        played = ";".join(sorted({sound.recording.name for sound in clip.sounds}))
        lines.append(f"{clip.split}\t{clip.filename}\t{clip.fold}\t{duration:.6g}\t{played}")
    write_text(path, "\n".join(lines) + "\n")


def is_complete(cfg: SoundscapesConfig, out: Path) -> bool:
    """True where this very corpus exists; InputError where something else is in its place."""
    path = out / "corpus.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or contents(out)):
            raise InputError(f"--out {cfg.out}: exists and is no corpus; give another --out")
        return False
    made = to_dict(SoundscapesConfig()) | read_json(path, "delete the corpus folder")
    asked = to_dict(cfg)
    if not isinstance(timelines := made["train_timeline"], list):  # an earlier version's: one
        made["train_timeline"] = [timelines] if timelines else []
    for name in ("preset", "out", "workers"):  # none of them changes a sample
        made.pop(name, None)
        asked.pop(name)
    names = sorted(name for name in {*made, *asked} if made.get(name) != asked.get(name))
    if names:
        changes = ", ".join(f"{n} {made.get(n)!r} (now {asked.get(n)!r})" for n in names)
        raise InputError(
            f"--out {cfg.out}: holds a corpus made with {changes}; "
            f"give another --out or delete the folder"
        )
    return True


def read_inputs(
    cfg: SoundscapesConfig,
) -> tuple[list[BankSound], dict[str, str], dict[str, dict[Path, Timeline]]]:
    """Bank (only classes that are played), class map, timelines of each split; checked."""
    bank = list_bank(cfg.bank, cfg.seed)
    bank_classes = sorted({recording.bank_class for recording in bank})
    class_map = read_class_map(cfg.class_map, bank_classes)
    given, needed = timelines_of_splits(cfg), {}
    for split, files in given.items():
        needed[split] = set() if files else {*class_map.values()}
        for path, clips in files.items():
            for label in classes_of(clips):
                if label not in class_map:
                    known = ", ".join(sorted(class_map))
                    raise InputError(
                        f"{path}: label {label!r} has no bank class (there are: {known}); "
                        f"add it to --class-map"
                    )
                needed[split].add(class_map[label])
    check_folds(cfg, bank, needed)
    played = set().union(*needed.values())
    return [recording for recording in bank if recording.bank_class in played], class_map, given


def write_corpus(cfg: SoundscapesConfig, folder: Path) -> list[PlannedClip]:
    """Make the whole corpus inside an empty folder."""
    bank, class_map, given = read_inputs(cfg)
    workers, bank_dir = num_workers(cfg.workers), folder / "bank"
    with writing(bank_dir):
        bank_dir.mkdir()
    bank = in_parallel(partial(decode, seed=cfg.seed, folder=bank_dir), bank, workers, "bank")
    clips: list[PlannedClip] = []
    for split in SPLITS:
        (folder / split / "audio").mkdir(parents=True)
        planned = plan_split(cfg, split, given[split], class_map, bank)
        labels = {clip.filename: [sound.event for sound in clip.sounds] for clip in planned}
        write_labels(folder / split / "labels.tsv", labels)
        clips += planned
    task = partial(render, cfg=cfg, bank_dir=bank_dir, folder=folder)
    in_parallel(task, clips, workers, "clips")
    write_clips(folder / "clips.tsv", clips, round(cfg.clip_s * RATE) / RATE)
    write_json(folder / "corpus.json", to_dict(cfg))
    shutil.rmtree(bank_dir)
    return clips


def summarise(cfg: SoundscapesConfig, clips: list[PlannedClip], seconds: float) -> None:
    """Print what was made."""
    for split in SPLITS:
        chosen = [clip for clip in clips if clip.split == split]
        num_events = sum(len(clip.sounds) for clip in chosen)
        pairs = sum(len({sound.event.event_label for sound in clip.sounds}) for clip in chosen)
        folds = ", ".join(str(fold) for fold in sorted({clip.fold for clip in chosen}))
        print(
            f"{split}: {len(chosen)} clips, {num_events} events, {pairs} pairs, "
            f"{len(chosen) * cfg.clip_s / 3600:.2f} h, bank folds {folds}"
        )
    print(f"corpus {cfg.out}: written in {seconds:.1f} s")


def make_corpus(cfg: SoundscapesConfig) -> int:
    """Make the corpus or say that it is there. An InputError leaves nothing behind."""
    started, out = time.perf_counter(), cfg.out.resolve()
    keep_apart(cfg.out, [cfg.bank, cfg.class_map, *cfg.train_timeline, cfg.validation_timeline])
    if is_complete(cfg, out):
        print(f"corpus {cfg.out} is complete, nothing to do")
        return 0
    with new_folder(out, CORPUS, fresh=True) as folder:
        clips = write_corpus(cfg, folder)
    summarise(cfg, clips, time.perf_counter() - started)
    return 0
