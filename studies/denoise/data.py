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
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, new_folder, whole, write_bytes
from core.names import csv_cell, csv_text
from core.stored import read_json, read_text, write_json
from scores.corpora import AUDIO, PEAK, list_bank
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


class Source(NamedTuple):
    """A recording of speech or noise."""

    name: str
    group: str  # speaker, or noise class
    path: Path | tuple[str, int, int]  # or class, fold and take of a synthesised one
    fold: int = 0


def read_source(source: Source, sample_rate: int, seed: int, speech: bool) -> np.ndarray:
    """Wave (S,) of a recording, synthesised or not; never silent."""
    if isinstance(source.path, Path):
        wave = read_wave(source.path, sample_rate, speech)
    else:
        wave = resample(synthesise(seed, *source.path), RATE, sample_rate)
    if not wave.any():
        raise InputError(f"{source.name}: is all zero; remove it")
    return wave


def list_speech(folder: Path | None) -> list[Source]:
    """Recordings with their speakers. Raises InputError for a folder without any."""
    if folder is None:
        takes = [("Speech", fold, take) for fold in range(1, 6) for take in range(BUILT_IN_TAKES)]
        return [Source(f"{c}/{f}-{t}", f"{f}{t % MAKERS}", (c, f, t)) for c, f, t in takes]
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in AUDIO and p.name[0] != ".")
    if not files:
        raise InputError(f"--clean {folder}: no <speaker>/*({', '.join(AUDIO)}) found")
    return [Source(f"{path.parent.name}/{path.name}", path.parent.name, path) for path in files]


def list_noise(folder: Path | None, seed: int) -> list[Source]:
    """Recordings with class and fold; speech is no noise here."""
    found = []
    for one in list_bank(folder, seed, "--noise"):
        if folder or one.bank_class != "Speech":
            path = one.source if folder else (one.bank_class, one.fold, one.source)
            found.append(Source(one.name, one.bank_class, path, one.fold))
    return found


def split_sources(cfg: MixConfig) -> dict[str, tuple[dict[str, list[Source]], list[Source]]]:
    """Split -> its speakers with their recordings, and its noise."""
    speech, noise = list_speech(cfg.clean), list_noise(cfg.noise, cfg.seed)
    speakers = sorted({source.group for source in speech})
    needed = sum(cfg.speakers) + 1
    if len(speakers) < needed:
        raise InputError(f"--clean {cfg.clean}: {len(speakers)} speakers, {needed} are needed")
    order = [speakers[i] for i in np.random.default_rng([cfg.seed, 0]).permutation(len(speakers))]
    validation, test = cfg.speakers
    own = {
        "train": (order[validation + test :], {n.fold for n in noise} - set(cfg.folds)),
        "validation": (order[:validation], {cfg.folds[0]}),
        "test": (order[validation : validation + test], {cfg.folds[1]}),
    }
    found = {}
    for split, (who, folds) in own.items():
        mine = {name: [source for source in speech if source.group == name] for name in who}
        sounds = [source for source in noise if source.fold in folds]
        if not sounds:
            have = sorted({source.fold for source in noise})
            raise InputError(f"--folds {cfg.folds}: no noise for {split}; the folds are {have}")
        found[split] = (mine, sounds)
    return found


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


def mix_split(
    cfg: MixConfig,
    folder: Path,
    split: str,
    sources: tuple[dict[str, list[Source]], list[Source]],
    groups: dict[str, str],
    place: tuple[int, int],
) -> list[dict]:
    """Write clips into <folder>/{clean,noisy} -> their rows of meta.csv.

    `place` has the number of the clips' generator and how many there are.
    """
    (speakers, noises), (number_, count) = sources, place
    rng = np.random.default_rng([cfg.seed, 1 + number_])
    queues = {name: endless(recordings, rng) for name, recordings in speakers.items()}
    sounds, rows = endless(noises, rng), []
    for kind in ("clean", "noisy"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc=split, unit="clip", leave=False):
        speaker = list(speakers)[index % len(speakers)]
        said = [next(queues[speaker]) for _ in range(cfg.join)]
        waves = [read_source(source, cfg.sample_rate, cfg.seed, speech=True) for source in said]
        clean = joined(waves, cfg.sample_rate, rng)
        sound = next(sounds)
        noise = read_source(sound, cfg.sample_rate, cfg.seed, speech=False)
        snr_db = float(rng.choice(cfg.snr_db))
        stem = re.sub(r"[^\w-]+", "_", Path(said[0].name).stem)
        utt_id = f"{speaker}_{stem}_mix{number_ * cfg.cells + index:05d}_snr{snr_db:g}"
        pair = mixed(clean, fitted(noise, len(clean), rng), snr_db)
        for kind, wave in zip(("clean", "noisy"), pair, strict=True):
            write_wave(folder / kind / f"{utt_id}.wav", wave, cfg.sample_rate)
        row = {"utt_id": utt_id, "split": split, "scene": sound.group, "fold": sound.fold}
        row |= {f"{kind}_path": f"{kind}/{utt_id}.wav" for kind in ("clean", "noisy")}
        row |= {"clean_source": "+".join(source.name for source in said)}
        row |= {"noise_source": sound.name, "macro_scene": str(groups.get(sound.group, ""))}
        row |= {"snr_db": f"{snr_db:.1f}", "speaker_id": speaker}
        rows.append(row | {"duration_sec": f"{len(clean) / cfg.sample_rate:.3f}"})
    return rows


def mix_cells(cfg: MixConfig, folder: Path, groups: dict[str, str]) -> None:
    """Every speaker with every fold of the noise, all in one table."""
    speech, noise = list_speech(cfg.clean), list_noise(cfg.noise, cfg.seed)
    speakers, folds, rows = {s.group for s in speech}, {s.fold for s in noise}, []
    for speaker in sorted(speakers):
        mine = {speaker: [source for source in speech if source.group == speaker]}
        for fold in sorted(folds):
            sources = mine, [source for source in noise if source.fold == fold]
            place = len(rows) // cfg.cells, cfg.cells
            rows += mix_split(cfg, folder, f"{speaker}, fold {fold}", sources, groups, place)
    write_csv(folder / "meta.csv", META, rows)
    print(f"{len(rows)} clips: {len(speakers)} speakers x {len(folds)} folds x {cfg.cells}")


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
    sources = {} if cfg.cells else split_sources(cfg)
    with new_folder(cfg.out, MIXTURES) as folder:
        if cfg.cells:
            mix_cells(cfg, folder, groups)
        for place, split in enumerate(sources):
            count = cfg.clips[place]
            rows = mix_split(cfg, folder / split, split, sources[split], groups, (place, count))
            write_csv(folder / split / "meta.csv", META, rows)
            speakers, noises = sources[split]
            seconds = sum(float(row["duration_sec"]) for row in rows)
            print(
                f"{split}: {len(rows)} clips, {seconds / 60:.1f} min, speakers"
                f" {', '.join(speakers)}, {len({row['noise_source'] for row in rows})} of"
                f" {len(noises)} noise recordings"
            )
        settings = {key: str(value) for key, value in vars(cfg).items()}
        write_json(folder / "mix.json", settings)
    print(f"mixtures: {cfg.out}")


class Clip(NamedTuple):
    """A noisy clip with its reference."""

    row: dict[str, str]  # of meta.csv
    clean: np.ndarray  # (S,) float32
    noisy: np.ndarray  # (S,) float32
    reference: denoisers.Reference | None  # None: too short for STOI


def read_table(path: Path, needed: tuple[str, ...], cure: str) -> list[dict[str, str]]:
    """Rows of a CSV that must have some columns; InputError says how to make it."""
    if not path.is_file():
        raise InputError(f"{path}: not found; {cure}")
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, cure), newline=""))
        rows = [{k: csv_text(v) if isinstance(v, str) else v for k, v in r.items()} for r in reader]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read ({error}); {cure}") from None
    missing = [f"no column {name}" for name in needed if name not in (reader.fieldnames or ())]
    short = (f"row {n} has no {k}" for n, row in enumerate(rows, 1) for k in needed if not row[k])
    what = [*missing, *(() if missing else short), *(() if rows else ["no rows"])]
    if what:
        raise InputError(f"{path}: {what[0]}; {cure}")
    return rows


MAKE_META = "run: python -m studies.denoise mix"


def read_meta(path: Path) -> list[dict[str, str]]:
    """Rows of a meta.csv; of its columns only those that are used are demanded."""
    rows = read_table(path, ("utt_id", "clean_path", "noisy_path", "snr_db"), MAKE_META)
    for row in rows:
        try:
            float(row["snr_db"])
        except ValueError as error:
            raise InputError(f"{path}: snr_db of {row['utt_id']}: {error}") from None
    return rows


def rate_of(table: Path, rows: list[dict[str, str]]) -> int:
    """Sample rate of a table's clips."""
    return read_channels(table.parent / rows[0]["noisy_path"])[1]


def read_clips(table: Path, rows: list[dict[str, str]], sample_rate: int) -> list[Clip]:
    """Audio of a table's rows, mono, at `sample_rate`. InputError names what cannot be used."""
    clips, short = [], []
    for row in rows:
        clean, noisy = (
            read_wave(table.parent / row[f"{kind}_path"], sample_rate)
            for kind in ("clean", "noisy")
        )
        if len(clean) != len(noisy):
            raise InputError(
                f"{table}: {row['utt_id']} has {len(clean)} clean and {len(noisy)} noisy samples"
            )
        if not clean.any():
            raise InputError(f"{table}: the clean clip of {row['utt_id']} is silent; remove it")
        reference = denoisers.reference_of(clean, sample_rate)
        if reference is None:
            short.append(row["utt_id"])
        clips.append(Clip(row, clean, noisy, reference))
    if short:
        names = ", ".join(short[:3])
        print(f"{table}: {len(short)} of {len(rows)} clips too short for STOI, e.g. {names}")
    return clips


def measure(
    clips: list[Clip], waves: list[np.ndarray], sample_rate: int, stride: int = 1
) -> np.ndarray:
    """SI-SDR, STOI, ESTOI (n, 3) of denoised waves; NaN where a clip is too short for STOI.

    `stride` > 1 takes every so many of STOI's segments.
    """
    values = np.full((len(clips), len(MEASURES)), math.nan)
    for first in range(0, len(clips), BATCH):
        here = slice(first, first + BATCH)
        clean = denoisers.batch_of([clip.clean for clip in clips[here]])
        batch = denoisers.batch_of(waves[here])
        values[here, 0] = denoisers.si_sdr(clean.audio, batch).numpy()
        values[here, 1:] = stoi_of(clips[here], batch, sample_rate, stride)
    return values


def stoi_of(clips: list[Clip], batch: denoisers.Batch, sample_rate: int, stride: int) -> np.ndarray:
    """STOI and ESTOI (B, 2) of a batch, as in `measure`."""
    values = np.full((len(clips), 2), math.nan)
    if long := [i for i, clip in enumerate(clips) if clip.reference is not None]:
        part = denoisers.Batch(batch.audio[long], batch.lengths[long])
        references = [clips[i].reference for i in long]
        values[long] = denoisers.stoi_pair(references, part, sample_rate, stride).numpy()
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
    torch.set_num_threads(1)
    for table in cfg.meta:
        path = table.with_name("features.csv")
        keep_apart(path, cfg.meta, "--meta")
        rows = read_meta(table)[: cfg.limit]
        check_file(path, ",".join((*rows[0], *NOISY)), "--meta")
        sample_rate = rate_of(table, rows)
        clips = read_clips(table, rows, sample_rate)
        noisy = [clip.noisy for clip in clips]
        scores = measure(clips, noisy, sample_rate)
        parts = [noisy[first : first + BATCH] for first in range(0, len(clips), BATCH)]
        batches = map(denoisers.batch_of, parts)
        seen = np.concatenate([denoisers.features(batch, sample_rate) for batch in batches])
        out = [
            row
            | dict(zip(NOISY, (f"{value:.6f}" for value in score), strict=True))
            | dict(zip(denoisers.FEATURES, (f"{value:.9g}" for value in values), strict=True))
            for row, score, values in zip(rows, scores, seen, strict=True)
        ]
        write_csv(path, (*rows[0], *NOISY, *denoisers.FEATURES), out)
        print(f"{path}: {len(out)} clips, {len(denoisers.FEATURES)} features")
