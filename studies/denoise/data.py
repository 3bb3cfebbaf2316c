"""Noisy speech for the denoising study: mixtures, their table, features and what was measured.

Run:    python -m studies.denoise mix; python -m studies.denoise features
Reads:  <clean>/<speaker>/*, <noise>/<class>/*; <split>/meta.csv, <split>/features.csv
Writes: <out>/<split>/{clean,noisy}/<utt_id>.wav, <out>/<split>/meta.csv and features.csv
Shapes: S samples of a clip

No speaker and no noise recording is in two splits. Paths in the tables are relative to the table's
own folder. Without folders of your own, speech and noise are synthesised by soundscapes.py.
"""

import ast
import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, new_folder, whole, write_bytes
from core.names import csv_cell, csv_text
from core.stored import read_json, read_text, write_json
from scores.corpora import AUDIO, PEAK, BankSound, list_bank
from scores.synthesiser import MAKERS, RATE, synthesise
from sed.audio import read_samples, resample
from studies.denoise import denoisers
from studies.denoise.settings import FeaturesConfig, MixConfig

META = (
    *("utt_id", "split", "clean_path", "noisy_path", "clean_source", "noise_source", "scene"),
    *("macro_scene", "snr_db", "duration_sec", "speaker_id", "fold"),
)
MEASURES = ("si_sdr", "stoi", "estoi")
NOISY = tuple(f"noisy_{name}" for name in MEASURES)
BUILT_IN_TAKES = 40  # synthesised utterances of a fold: 10 of each of its 4 speakers
REDRAWS = 20  # tries for a stretch of noise that is not a pause
PAUSE_S = 0.05, 0.3  # shortest and longest between recordings, seconds
BATCH = 32


def read_channels(path: Path) -> tuple[np.ndarray, int]:
    """Samples (S, channels) float32 and their rate. InputError names an unusable file."""
    try:
        return read_samples(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; replace or remove it") from None


def read_wave(path: Path, sample_rate: int, speech: bool = False) -> np.ndarray:
    """Mono wave (S,) float32 at `sample_rate`. InputError names an unusable file.

    Speech of a lower rate is refused: the band above it would hold noise alone, and a low-pass
    would win.
    """
    samples, rate = read_channels(path)
    if speech and rate < sample_rate:
        raise InputError(
            f"{path}: has {rate} Hz, but {sample_rate} Hz is wanted: above {rate // 2} Hz there"
            f" would be noise alone; give --sample-rate {rate}"
        )
    return resample(samples.mean(axis=1), rate, sample_rate)


def read_source(source: BankSound, cfg: MixConfig, speech: bool) -> np.ndarray:
    """Wave (S,) of a recording, synthesised or not; never silent."""
    if isinstance(source.source, Path):
        wave = read_wave(source.source, cfg.sample_rate, speech)
    else:
        made = synthesise(cfg.seed, source.bank_class, source.fold, source.source)
        wave = resample(made, RATE, cfg.sample_rate)
    if not wave.any():
        raise InputError(f"{source.name}: is all zero; remove it")
    return wave


def list_speech(folder: Path | None) -> dict[str, list[BankSound]]:
    """Speaker -> recordings. Raises InputError for a folder without any."""
    found: dict[str, list[BankSound]] = {}
    if folder is None:
        for fold, take in product(range(1, 6), range(BUILT_IN_TAKES)):
            sound = BankSound(take, f"Speech/{fold}-{take}", "Speech", fold, take)
            found.setdefault(f"{fold}{take % MAKERS}", []).append(sound)
        return found
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in AUDIO and p.name[0] != ".")
    if not files:
        raise InputError(f"--clean {folder}: no <speaker>/*({', '.join(AUDIO)}) found")
    for number, path in enumerate(files):
        speaker = path.parent.name
        sound = BankSound(number, f"{speaker}/{path.name}", speaker, 0, path)
        found.setdefault(speaker, []).append(sound)
    return found


class Part(NamedTuple):
    """Clips that one generator draws."""

    name: str  # of the split, or of speaker and fold
    speakers: dict[str, list[BankSound]]
    noises: list[BankSound]
    count: int


def parts_of(cfg: MixConfig) -> list[Part]:
    """The three splits; or, for `cross`, every speaker with every fold of the noise."""
    speech = list_speech(cfg.clean)
    noise = list_bank(cfg.noise, cfg.seed, "--noise")
    if cfg.noise is None:
        noise = [sound for sound in noise if sound.bank_class != "Speech"]
    speakers, folds = sorted(speech), sorted({sound.fold for sound in noise})
    if cfg.cells:
        own = {
            f"{name}, fold {fold}": ([name], {fold}, cfg.cells)
            for name, fold in product(speakers, folds)
        }
    else:
        validation, test = cfg.speakers
        if len(speakers) <= validation + test:
            few = f"{len(speakers)} speakers, {validation + test + 1} are needed"
            raise InputError(f"--clean {cfg.clean}: {few}")
        rng = np.random.default_rng([cfg.seed, 0])
        order = [speakers[i] for i in rng.permutation(len(speakers))]
        own = {
            "train": (order[validation + test :], {*folds} - {*cfg.folds}, cfg.clips[0]),
            "validation": (order[:validation], {cfg.folds[0]}, cfg.clips[1]),
            "test": (order[validation : validation + test], {cfg.folds[1]}, cfg.clips[2]),
        }
    parts = []
    for name, (mine, held, count) in own.items():
        sounds = [sound for sound in noise if sound.fold in held]
        if not sounds:
            raise InputError(f"--folds {cfg.folds}: no noise for {name}; the folds are {folds}")
        parts.append(Part(name, {speaker: speech[speaker] for speaker in mine}, sounds, count))
    return parts


def endless(items: list, rng: np.random.Generator) -> Iterator:
    """One random order of all after the other."""
    while True:
        for index in rng.permutation(len(items)):
            yield items[index]


def joined(waves: list[np.ndarray], sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Recordings with pauses before, between and after; one alone stays as it is."""
    if len(waves) == 1:
        return waves[0]
    pauses = rng.uniform(*PAUSE_S, len(waves) + 1) * sample_rate
    silences = [np.zeros(int(pause), np.float32) for pause in pauses]
    parts = [part for pair in zip(silences, waves, strict=False) for part in pair]
    return np.concatenate([*parts, silences[-1]])


def fitted(noise: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (length,): a random stretch of a longer recording, or pieces of a shorter one.

    A stretch is drawn again where it is mostly a pause (under a tenth of the recording's power).
    A shorter recording is not looped: 1 to 4 pieces, half of it or more each, at random places.
    """
    for _ in range(REDRAWS):
        if len(noise) >= length:
            start = rng.integers(0, len(noise) - length + 1)
            out = noise[start : start + length]
        else:
            out = np.zeros(length, np.float32)
            for _ in range(rng.integers(1, 5)):
                size = int(len(noise) * rng.uniform(0.5, 1)) or 1
                first, at = rng.integers(0, len(noise) - size + 1), rng.integers(0, length)
                piece = noise[first : first + size][: length - at]
                out[at : at + len(piece)] += piece
        if np.mean(out**2) > 0.1 * np.mean(noise**2):
            return out
    return np.resize(noise, length)  # nearly all of it is pauses: then all of it


def mixed(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """Clean and noisy (S,) with the wanted ratio, scaled together where the sum would clip."""
    clean, noise = clean.astype(np.float64), noise.astype(np.float64)
    ratio = np.mean(clean**2) / (np.mean(noise**2) * 10 ** (snr_db / 10))
    noisy = clean + math.sqrt(ratio) * noise
    scale = min(1.0, PEAK / max(np.abs(noisy).max(), np.abs(clean).max()))
    return scale * clean, scale * noisy


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """A table, whole or not at all."""
    with whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(csv_cell, columns))
        cells = ([str(row.get(name, "")) for name in columns] for row in rows)
        writer.writerows(map(csv_cell, row) for row in cells)


def write_wave(path: Path, wave: np.ndarray, sample_rate: int, kind: str = "wav") -> None:
    """A recording of 16 bits, whole or not at all."""
    sound = io.BytesIO()
    soundfile.write(sound, wave, sample_rate, subtype="PCM_16", format=kind)
    write_bytes(path, sound.getvalue())


def mix_part(
    cfg: MixConfig, folder: Path, part: Part, number: int, groups: dict[str, str]
) -> list[dict[str, Any]]:
    """Write clips into <folder>/{clean,noisy} -> their rows of meta.csv."""
    rng = np.random.default_rng([cfg.seed, 1 + number])
    queues = {name: endless(recordings, rng) for name, recordings in part.speakers.items()}
    sounds, rows = endless(part.noises, rng), []
    for kind in ("clean", "noisy"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(part.count), desc=part.name, unit="clip", leave=False):
        speaker = list(queues)[index % len(queues)]
        said = [next(queues[speaker]) for _ in range(cfg.join)]
        waves = [read_source(source, cfg, speech=True) for source in said]
        clean = joined(waves, cfg.sample_rate, rng)
        sound = next(sounds)
        noise = read_source(sound, cfg, speech=False)
        snr_db = float(rng.choice(cfg.snr_db))
        stem = re.sub(r"[^\w-]+", "_", Path(said[0].name).stem)
        utt_id = f"{speaker}_{stem}_mix{number * cfg.cells + index:05d}_snr{snr_db:g}"
        row = {"utt_id": utt_id, "split": part.name, "speaker_id": speaker, "fold": sound.fold}
        row |= {"clean_source": "+".join(source.name for source in said)}
        row |= {"noise_source": sound.name, "scene": sound.bank_class}
        row |= {"macro_scene": groups.get(sound.bank_class, ""), "snr_db": f"{snr_db:.1f}"}
        row["duration_sec"] = f"{len(clean) / cfg.sample_rate:.3f}"
        pair = mixed(clean, fitted(noise, len(clean), rng), snr_db)
        for kind, wave in zip(("clean", "noisy"), pair, strict=True):
            row[f"{kind}_path"] = f"{kind}/{utt_id}.wav"
            write_wave(folder / kind / f"{utt_id}.wav", wave, cfg.sample_rate)
        rows.append(row)
    return rows


MIXTURES = Kind(
    "folder of mixtures",
    (
        "mix.json",
        *(f"{home}{file}" for home in ("", "*/") for file in ("meta.csv", "features.csv")),
        *(f"{home}{kind}/*.wav" for home in ("", "*/") for kind in ("clean", "noisy")),
    ),
    (("mix.json", "snr_db"), ("mix.json", "speakers")),
)


def mix(cfg: MixConfig) -> None:
    """All three splits, or the cells of `cross`; whole or not at all."""
    if cfg.out.exists() and not cfg.overwrite:
        raise InputError(f"{cfg.out} exists; give --overwrite or another --out")
    keep_apart(cfg.out, [cfg.clean, cfg.noise, cfg.macro_scenes], replaced=True)
    if cfg.clean is None and cfg.sample_rate > RATE:
        raise InputError(f"--sample-rate {cfg.sample_rate}: synthesised speech has {RATE} Hz")
    groups = {}
    if cfg.macro_scenes:
        groups = read_json(cfg.macro_scenes, "give a JSON dictionary: noise class, its group")
    parts = parts_of(cfg)
    with new_folder(cfg.out, MIXTURES) as folder:
        tables: dict[Path, list[dict[str, Any]]] = {}
        for number, part in enumerate(parts):
            home = folder if cfg.cells else folder / part.name
            rows = mix_part(cfg, home, part, number, groups)
            tables.setdefault(home, []).extend(rows)
            if not cfg.cells:
                minutes = sum(float(row["duration_sec"]) for row in rows) / 60
                print(
                    f"{part.name}: {len(rows)} clips, {minutes:.1f} min, speakers"
                    f" {', '.join(part.speakers)}, {len({row['noise_source'] for row in rows})} of"
                    f" {len(part.noises)} noise recordings"
                )
        for home, rows in tables.items():
            write_csv(home / "meta.csv", META, rows)
        if cfg.cells:  # one table
            speakers, folds = ({row[name] for row in rows} for name in ("speaker_id", "fold"))
            print(f"{len(rows)} clips: {len(speakers)} speakers x {len(folds)} folds x {cfg.cells}")
        write_json(folder / "mix.json", {key: str(value) for key, value in vars(cfg).items()})
    print(f"mixtures: {cfg.out}")


class Clip(NamedTuple):
    """A noisy clip with its reference."""

    row: dict[str, str]  # of meta.csv
    clean: np.ndarray  # (S,) float32
    noisy: np.ndarray  # (S,) float32
    reference: denoisers.Reference | None  # None: too short for STOI


def read_table(path: Path, needed: tuple[str, ...], cure: str) -> list[dict[str, str]]:
    """Rows of a CSV that must have some columns; InputError says how to make it."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, cure), newline=""))
        rows = [{k: csv_text(v) if isinstance(v, str) else v for k, v in r.items()} for r in reader]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read ({error}); {cure}") from None
    flaws = [f"no column {name}" for name in needed if name not in (reader.fieldnames or ())]
    if not flaws:
        cells = ((n, name) for n, row in enumerate(rows, 1) for name in needed if not row[name])
        flaws = [f"row {n} has no {name}" for n, name in cells] if rows else ["no rows"]
    if flaws:
        raise InputError(f"{path}: {flaws[0]}; {cure}")
    return rows


def read_meta(path: Path) -> list[dict[str, str]]:
    """Rows of a meta.csv; of its columns only those that are used are demanded."""
    needed = ("utt_id", "clean_path", "noisy_path", "snr_db")
    rows = read_table(path, needed, "run: python -m studies.denoise mix")
    for row in rows:
        try:
            float(row["snr_db"])
        except ValueError as error:
            raise InputError(f"{path}: snr_db of {row['utt_id']}: {error}") from None
    return rows


def read_clips(table: Path, rows: list[dict[str, str]]) -> tuple[list[Clip], int]:
    """Mono audio of a table's rows -> clips, their sample rate: that of the first noisy one.

    InputError names what cannot be used.
    """
    _, sample_rate = read_channels(table.parent / rows[0]["noisy_path"])
    clips, short = [], []
    for row in rows:
        clean, noisy = (
            read_wave(table.parent / row[f"{kind}_path"], sample_rate)
            for kind in ("clean", "noisy")
        )
        if len(clean) != len(noisy):
            found = f"{len(clean)} clean and {len(noisy)} noisy samples"
            raise InputError(f"{table}: {row['utt_id']} has {found}")
        if not clean.any():
            raise InputError(f"{table}: the clean clip of {row['utt_id']} is silent; remove it")
        clips.append(Clip(row, clean, noisy, denoisers.reference_of(clean, sample_rate)))
        if clips[-1].reference is None:
            short.append(row["utt_id"])
    if short:
        names = ", ".join(short[:3])
        print(f"{table}: {len(short)} of {len(rows)} clips too short for STOI, e.g. {names}")
    return clips, sample_rate


def batches(waves: Sequence[np.ndarray]) -> Iterator[tuple[slice, denoisers.Batch]]:
    """BATCH waves (S,) after the other: where they are, and they."""
    for first in range(0, len(waves), BATCH):
        here = slice(first, first + BATCH)
        yield here, denoisers.batch_of(list(waves[here]))


def waves_of(batch: denoisers.Batch) -> list[np.ndarray]:
    """Inverse of `denoisers.batch_of`."""
    return [wave[:n] for wave, n in zip(batch.audio.numpy(), batch.lengths, strict=True)]


def measure(
    clips: list[Clip], waves: Sequence[np.ndarray], sample_rate: int, stride: int = 1
) -> np.ndarray:
    """Scores (n, 3) of denoised waves, as `scores_of`."""
    found = [scores_of(clips[i], batch, sample_rate, stride) for i, batch in batches(waves)]
    return np.concatenate(found)


def scores_of(
    clips: list[Clip],
    batch: denoisers.Batch,
    sample_rate: int,
    stride: int,
    due: np.ndarray | None = None,
) -> np.ndarray:
    """SI-SDR, STOI, ESTOI (B, 3) of a batch; NaN where a clip is too short for STOI, and where STOI
    is not `due` (B,). `stride` > 1 takes every so many of STOI's segments."""
    values = np.full((len(clips), len(MEASURES)), math.nan)
    clean = denoisers.batch_of([clip.clean for clip in clips])
    values[:, 0] = denoisers.si_sdr(clean.audio, batch).numpy()
    wanted = np.array([clip.reference is not None for clip in clips]) & (due is None or due)
    if len(rows := np.flatnonzero(wanted)):
        part = denoisers.Batch(batch.audio[rows], batch.lengths[rows])
        references = [clips[i].reference for i in rows]
        values[rows, 1:] = denoisers.stoi_pair(references, part, sample_rate, stride).numpy()
    return values


def code_of(module: ModuleType) -> str:
    """A module's code without comments and docstrings, to know by it what it computed: measurements
    outlive a reworded text."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        named = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if named and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def write_features(cfg: FeaturesConfig) -> None:
    """features.csv beside each table: the table, what the noisy clips score, their features."""
    for table in cfg.meta:
        path = table.with_name("features.csv")
        keep_apart(path, cfg.meta, "--meta")
        rows = read_meta(table)[: cfg.limit]
        check_file(path, ",".join((*rows[0], *NOISY)), "--meta")
        clips, sample_rate = read_clips(table, rows)
        noisy = [clip.noisy for clip in clips]
        scores = measure(clips, noisy, sample_rate)
        seen = [denoisers.features(batch, sample_rate) for _, batch in batches(noisy)]
        columns = (*rows[0], *NOISY, *denoisers.FEATURES)
        for row, score, values in zip(rows, scores, np.concatenate(seen), strict=True):
            row |= zip(NOISY, (f"{value:.6f}" for value in score), strict=True)
            row |= zip(denoisers.FEATURES, (f"{value:.9g}" for value in values), strict=True)
        write_csv(path, columns, rows)
        print(f"{path}: {len(rows)} clips, {len(denoisers.FEATURES)} features")
