"""The built-in scorer: a compact CRNN, cross-fitted so that no clip is scored by a network that
heard its recordings.

Shapes: K classes, T frames; values (K, T) in 0..1; B clips, S samples
"""

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from config import ScorersConfig
from core.errors import InputError
from core.files import (
    MARKER,
    Kind,
    contents,
    discard,
    kind_of,
    lock,
    mark,
    scratch_folder,
    whole,
    writing,
)
from core.names import isolated, name_flaw
from core.processes import in_order, num_workers, process_pool
from core.ranks import pick_device
from core.settings import config_key, to_dict
from core.stored import check_form, is_count, is_text, read_json, write_json
from core.tensors import fitted, read_checkpoint, write_checkpoint
from scores.score_files import SCORES, write_scores
from sed.audio import read_samples, resample
from sed.labels import clip_id, read_labels, records
from sed.timeline import CLIP_COLUMNS, SPLITS, Event, classes_of, frame_edges, label_frames


@dataclass(frozen=True)
class CorpusClip:
    """One audio file of the corpus; `filename` is unique within its split only."""

    split: str
    filename: str
    fold: str
    audio: Path
    events: list[Event]


def read_corpus(corpus: Path) -> list[CorpusClip]:
    """Clips of both splits in the order of clips.tsv.

    Raises InputError where a file is missing, or clips.tsv and labels.tsv name different clips.
    """
    listing = corpus / "clips.tsv"
    if not listing.is_file():
        raise InputError(f"corpus {corpus}: no clips.tsv; run python soundscapes.py first")
    rows = records(listing)
    if not rows or any(row.get(name) is None for row in rows for name in CLIP_COLUMNS[:3]):
        raise InputError(f"{listing}: expected columns {', '.join(CLIP_COLUMNS)} and a row a clip")
    labels = {split: read_labels(corpus / split / "labels.tsv") for split in SPLITS}
    clips: list[CorpusClip] = []
    for row in rows:
        split, filename = row["split"], row["filename"]
        if filename not in labels.get(split, {}):
            raise InputError(f"{listing}: clip {filename} of {split} is not in its labels.tsv")
        events = labels[split].pop(filename)
        audio = corpus / split / "audio" / filename
        if not audio.is_file():
            raise InputError(f"{audio}: no such audio file; run python soundscapes.py again")
        clips.append(CorpusClip(split, filename, row["fold"], audio, events))
    for split, rest in labels.items():
        for filename in rest:
            raise InputError(f"{listing}: clip {filename} of {split}/labels.tsv is not listed")
    if len({(clip.split, clip_id(clip.filename)) for clip in clips}) < len(clips):
        raise InputError(f"{listing}: two clips of a split differ in their extension only")
    folds = {clip.fold for clip in clips if clip.split == "train"}
    if len(folds) < 2:
        raise InputError(
            f"{listing}: all training clips are of fold {next(iter(folds), 'none')!r}; a clip must"
            " be scored by a network that never heard its recordings, so two folds are needed"
        )
    return clips


VERSION = 1  # raise it with any change below that changes scores
SAMPLE_RATE = 16_000
HOP = 320  # samples a frame: 20 ms
FRAME_S = HOP / SAMPLE_RATE
N_FFT = 1024
N_MELS = 64
STEP = 4  # frames that the network decides at once
RARE = 0.3  # weight of a frame in which a class sounds: (off / on frames) ** RARE


def log_mel(path: Path) -> np.ndarray:
    """Features of an audio file, (T, N_MELS) float16.

    Raises InputError naming a file that cannot be read or holds no usable samples.
    """
    try:
        wav, rate = read_samples(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return features_of(wav, rate)


@cache
def mel_tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Window (N_FFT,) and Slaney's mel bank (N_MELS, N_FFT / 2 + 1), made once."""
    from librosa.filters import mel  # half a second to import

    bank = torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS))
    return torch.hann_window(N_FFT), bank


def features_of(wav: np.ndarray, rate: int) -> np.ndarray:
    """Samples (S,) or (S, C) -> (T, N_MELS) float16; frame t is centred on [t, t + 1) * HOP.

    The power of several channels is their mean: that of their mix is none where they cancel.
    """
    channels = np.atleast_2d(resample(wav, rate, SAMPLE_RATE).T)  # (C, S)
    num_samples = channels.shape[1]
    num_frames = -(-num_samples // HOP)
    left = (N_FFT - HOP) // 2
    padded = np.zeros((len(channels), (num_frames - 1) * HOP + N_FFT), dtype=np.float32)
    padded[:, left : left + num_samples] = channels[:, : padded.shape[1] - left]
    window, bank = mel_tables()
    spectrum = torch.stft(
        torch.from_numpy(padded), N_FFT, HOP, window=window, center=False, return_complex=True
    )  # (C, N_FFT / 2 + 1, T)
    power = bank @ spectrum.abs().square().mean(0)  # (N_MELS, T)
    return torch.log(power + 1e-6).T.numpy().astype(np.float16)


class Store(NamedTuple):
    """Features and labels of all clips back to back; clip i is rows starts[i] .. starts[i + 1]."""

    features: np.ndarray  # (rows, N_MELS) float16, mapped from disk: shared by all processes
    targets: np.ndarray  # (rows, K) bool
    starts: np.ndarray  # (clips + 1,)

    @classmethod
    def open(cls, folder: Path) -> "Store":
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls._fields))

    def clip(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (T, N_MELS) and targets (T, K), float32."""
        rows = slice(self.starts[i], self.starts[i + 1])
        return self.features[rows].astype(np.float32), self.targets[rows].astype(np.float32)


def write_store(
    folder: Path, clips: list[CorpusClip], classes: list[str], pool: ProcessPoolExecutor
) -> None:
    """Compute features in the pool and write the arrays that `Store.open` reads."""
    found = in_order(pool, log_mel, (clip.audio for clip in clips))
    features = list(tqdm(found, total=len(clips), desc="features", unit="clip"))
    targets = []
    for clip, frames in zip(clips, features, strict=True):
        edges = frame_edges(len(frames), FRAME_S)
        targets.append(np.stack([label_frames(clip.events, c, edges) for c in classes], axis=1))
    starts = np.cumsum([0] + [len(frames) for frames in features])
    arrays = (np.concatenate(features), np.concatenate(targets), starts)
    for name, array in zip(Store._fields, arrays, strict=True):
        with writing(folder / f"{name}.npy"):
            np.save(folder / f"{name}.npy", array)


class CRNN(nn.Module):
    """Log-mel (B, T, N_MELS) -> logits (B, T, K)."""

    def __init__(self, channels: int, mean: np.ndarray, std: np.ndarray, rates: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))  # (N_MELS,)
        self.register_buffer("std", torch.from_numpy(std))
        # A quarter of the time steps makes four times the epochs; the head gives all frames back.
        self.blocks = nn.Sequential(
            self.block(1, channels, 5, 2, (2, 2)),
            self.block(channels, 2 * channels, 3, 1, (1, 4)),
            self.block(2 * channels, 4 * channels, 3, 1, (1, 4)),
        )  # N_MELS = 64 bands -> 32 -> 16 -> 4 -> 1
        self.gru = nn.GRU(4 * channels, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(4 * channels + 128, STEP * len(rates))
        with torch.no_grad():  # start from the share of frames in which each class sounds
            self.head.bias.copy_(torch.logit(torch.from_numpy(rates).repeat(STEP)))

    @staticmethod
    def block(inputs: int, outputs: int, kernel: int, stride: int, pool: tuple) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool))

    def forward(self, mel: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """`real` (B, T) is 1 in frames of the clip, 0 in padding."""
        num_frames = mel.shape[1]
        x = (mel - self.mean) / self.std * real[..., None]  # (B, T, N_MELS)
        x = nn.functional.pad(x, (0, 0, 0, -num_frames % STEP))  # whole steps of STEP frames
        x = x[:, None].to(memory_format=torch.channels_last)  # twice as fast on a CPU
        x = self.blocks(x).squeeze(3).transpose(1, 2)  # (B, ceil(T / STEP), 4 * channels)
        x = x * real[:, ::STEP, None]
        x = torch.cat([x, self.gru(x)[0]], dim=2)  # (B, ceil(T / STEP), 4 * channels + 128)
        return self.head(x).unflatten(2, (STEP, -1)).flatten(1, 2)[:, :num_frames]


def augment(mel: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple:
    """Turn a clip in time, change its gain, hide a few bands and a short stretch of time."""
    shift = int(rng.integers(len(mel)))
    mel, target = np.roll(mel, shift, axis=0), np.roll(target, shift, axis=0)
    floor = mel.mean(axis=0)  # (N_MELS,)
    band, width = rng.integers(N_MELS), rng.integers(9)
    mel[:, band : band + width] = floor[band : band + width]
    start, length = rng.integers(len(mel)), rng.integers(max(len(mel) // 25, 1))
    mel[start : start + length] = floor
    return mel + np.float32(rng.uniform(-1.5, 1.5)), target


def make_batch(
    store: Store, chosen: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips (B,) -> mel (B, T, N_MELS), target (B, T, K), real (B, T); shorter ones padded."""
    pairs = [augment(*store.clip(i), rng) for i in chosen]
    shape = (len(pairs), max(len(mel) for mel, _ in pairs))
    mels = np.zeros((*shape, N_MELS), dtype=np.float32)
    targets = np.zeros((*shape, store.targets.shape[1]), dtype=np.float32)
    real = np.zeros(shape, dtype=np.float32)
    for b, (mel, target) in enumerate(pairs):
        mels[b, : len(mel)], targets[b, : len(mel)], real[b, : len(mel)] = mel, target, 1
    return torch.from_numpy(mels), torch.from_numpy(targets), torch.from_numpy(real)


VALIDATION = "validation"  # the fit on all training clips


@dataclass(frozen=True)
class Fit:
    """One network: the clips (indices into the store) it is trained on and those it scores."""

    stream: int  # its own random numbers, whichever process runs it
    name: str
    train: list[int]
    score: list[int]


def plan(clips: list[CorpusClip]) -> list[Fit]:
    """One fit a training fold, scoring that fold, then one on all of them for validation."""
    train = [i for i, clip in enumerate(clips) if clip.split == "train"]
    rest = [i for i, clip in enumerate(clips) if clip.split == "validation"]
    fits = []
    for stream, fold in enumerate(sorted({clips[i].fold for i in train})):
        inside = [i for i in train if clips[i].fold == fold]
        outside = [i for i in train if clips[i].fold != fold]
        fits.append(Fit(stream, f"fold {fold}", outside, inside))
    return [*fits, Fit(len(fits), VALIDATION, train, rest)]


def class_rates(store: Store, chosen: list[int]) -> np.ndarray:
    """(K,) float32: share of the frames of some clips in which each class sounds."""
    targets = np.concatenate([store.clip(i)[1] for i in chosen])  # (rows, K)
    return targets.mean(axis=0).clip(1e-3, 0.5)


def train_network(
    cfg: ScorersConfig, store: Store, fit: Fit, device: torch.device
) -> tuple[CRNN, list[int]]:
    """A trained network, and the sorted clips that it really was shown.

    Weights are drawn and batches made on the host, so that they are the same on every device.
    """
    rng = np.random.default_rng([cfg.seed, fit.stream])
    torch.manual_seed(int(rng.integers(2**63)))  # weights only
    frames = np.concatenate([store.clip(i)[0] for i in fit.train])  # (rows, N_MELS)
    rates = class_rates(store, fit.train)
    net = CRNN(cfg.channels, frames.mean(axis=0), frames.std(axis=0) + 1e-3, rates)
    net = net.to(device).train()
    del frames
    # Without a weight rare classes hardly ever reach 0.5; with the full one, everything does.
    weight = torch.from_numpy(((1 - rates) / rates) ** RARE).to(device)  # (K,)
    loss_of = nn.BCEWithLogitsLoss(reduction="none", pos_weight=weight)
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=0.01)
    num_batches = -(-len(fit.train) // cfg.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, cfg.epochs * num_batches)
    seen: set[int] = set()
    for _ in range(cfg.epochs):
        for chosen in np.array_split(rng.permutation(fit.train), num_batches):
            mel, target, real = (part.to(device) for part in make_batch(store, chosen, rng))
            loss = loss_of(net(mel, real), target)  # (B, T, K)
            loss = (loss.mean(dim=2) * real).sum() / real.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            seen.update(chosen.tolist())
    return net.eval(), sorted(seen)


TOGETHER = 4  # clips from which on their number changes no score on a CPU


class Scorer(NamedTuple):
    """A trained network and its classes."""

    network: CRNN
    classes: list[str]

    @torch.inference_mode()
    def scores_of(self, features: np.ndarray) -> torch.Tensor:
        """Features (T, N_MELS) of one clip -> scores (T, K), 0..1; no batch, so that a score does
        not depend on its neighbours' lengths."""
        mel = torch.from_numpy(features.astype(np.float32)).to(self.network.mean.device)
        return self.network(mel[None], torch.ones(1, len(mel), device=mel.device))[0].sigmoid()

    @torch.inference_mode()
    def scores_of_many(self, features: list[np.ndarray]) -> list[np.ndarray]:
        """Features (T, N_MELS) of some clips -> scores (K, T) float32 of each.

        Clips of one length go through the network together, where there are at least `TOGETHER`;
        that rounds in another way than one clip alone, by some 1e-6.
        """
        alike: dict[int, list[int]] = {}
        for i, each in enumerate(features):
            alike.setdefault(len(each), []).append(i)
        found: dict[int, torch.Tensor] = {}
        for length, some in alike.items():
            if len(some) < TOGETHER:
                found |= {i: self.scores_of(features[i]) for i in some}
                continue
            mel = torch.from_numpy(np.stack([features[i] for i in some]).astype(np.float32))
            mel = mel.to(self.network.mean.device)
            real = torch.ones(len(some), length, device=mel.device)
            found |= zip(some, self.network(mel, real).sigmoid(), strict=True)
        return [found[i].T.cpu().numpy() for i in range(len(features))]

    def score_recording(self, wav: np.ndarray, rate: int) -> np.ndarray:
        """Samples (S,) or (S, C) -> scores (K, T) float32, the numbers of the score files."""
        return self.scores_of(features_of(wav, rate)).T.cpu().numpy()


SCORER = "scorer.pt"  # beside the corpus: the network that scored the validation clips
MOST_RECORD = 1 << 31  # bytes of it
RECORD = "scorer.json"  # beside it: what the score files follow from
SCRATCH = Kind("", ("features.npy", "targets.npy", "starts.npy", SCORER, "*/*.tsv"))


def write_scorer(path: Path, scorer: Scorer, channels: int) -> None:
    """Keep a network. Raises WriteError."""
    content = {
        "version": VERSION,
        "channels": channels,
        "classes": scorer.classes,
        "network": scorer.network.state_dict(),
    }
    with whole(path) as temporary:
        write_checkpoint(temporary, content)


def load_scorer(path: Path, device: torch.device) -> Scorer:
    """Read `scorer.pt` without running code from it; InputError where it is none."""
    if not path.is_file():
        cure = f"python scorers.py --corpus {path.parent} writes one"
        raise InputError(f"{path}: no such scorer; {cure}")
    content = read_checkpoint(path, device)
    try:
        check_form(content, {"version": is_count, "channels": is_count, "classes": [is_text]})
        if not (content["classes"] and 1 <= content["channels"] < 1 << 20):
            raise ValueError("no usable sizes")
        if flaws := [name for name in content["classes"] if name_flaw(name)]:
            raise ValueError(f"class {flaws[0]!r}")
    except ValueError as error:
        raise InputError(f"{path}: damaged, or no scorer of scorers.py ({error})") from None
    version, classes = content["version"], list(content["classes"])
    if version != VERSION:
        cure = f"run python scorers.py --corpus {path.parent} again"
        raise InputError(f"{path}: made by version {version} of the scorer, not {VERSION}; {cure}")

    def make() -> CRNN:
        mean, std = np.zeros((2, N_MELS), np.float32)  # apart in memory: both are loaded into
        return CRNN(content["channels"], mean, std, np.full(len(classes), 0.5, np.float32))

    return Scorer(fitted(make, content.get("network"), path).to(device).eval(), classes)


def fit_and_score(
    cfg: ScorersConfig,
    fit: Fit,
    folder: Path,
    clips: list[CorpusClip],
    classes: list[str],
    device: torch.device,
) -> dict[str, Any]:
    """Train one network and write the score files of its clips below `folder`; returns a record."""
    began = time.monotonic()
    pick_device(device.type, 1)  # here, so that only a process that fits opens a GPU
    store = Store.open(folder)
    net, seen = train_network(cfg, store, fit, device)
    scorer = Scorer(net, classes)
    if fit.name == VALIDATION:
        write_scorer(folder / SCORER, scorer, cfg.channels)
    rates = torch.from_numpy(class_rates(store, fit.train))  # (K,)
    bce = nn.functional.binary_cross_entropy
    losses = []
    for i in fit.score:
        mel, target = store.clip(i)
        target = torch.from_numpy(target)
        scores = scorer.scores_of(mel).cpu()  # (T, K)
        with torch.inference_mode():
            losses.append([float(bce(p, target)) for p in (scores, rates.expand_as(target))])
        path = folder / clips[i].split / f"{clip_id(clips[i].filename)}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scores(path, frame_edges(len(mel), FRAME_S), classes, scores.T.numpy())
    bces = np.mean(losses, axis=0).tolist() if losses else [None, None]
    return {
        "name": fit.name,
        "trained_on": [clips[i].filename for i in seen],
        "trained_folds": sorted({clips[i].fold for i in seen}),
        "scored": [clips[i].filename for i in fit.score],
        "bce": bces[0],
        "bce_of_rates": bces[1],  # of one who knows only how often each class sounds
        "seconds": time.monotonic() - began,
    }


def scorer_key(cfg: ScorersConfig, clips: list[CorpusClip], classes: list[str]) -> str:
    """Hash of all that the scores follow from; audio counts by its size, which is quick to see."""
    settings = {
        "version": VERSION,
        "epochs": cfg.epochs,
        "lr": cfg.lr,
        "batch": cfg.batch,
        "channels": cfg.channels,
    }
    facts = [
        (clip.split, clip.filename, clip.fold, clip.events, clip.audio.stat().st_size)
        for clip in clips
    ]
    return config_key(settings, cfg.seed, classes, facts)


def check_scores(folder: Path, record: dict[str, Any]) -> None:
    """InputError where a folder of scores, or a file in it, was not written by this script."""
    if not folder.exists():
        return
    written = {f"{clip_id(name)}.tsv" for fit in record.get("fits", ()) for name in fit["scored"]}
    ours = kind_of(folder) == SCORES.name
    if others := sorted(set(contents(folder)) - (written if ours else set())):
        cure = "move the folder away"
        raise InputError(f"{folder}: {others[0]} was not written by scorers.py; {cure}")


def is_done(cfg: ScorersConfig, clips: list[CorpusClip], classes: list[str], key: str) -> bool:
    """Whether the corpus holds these very scores; says what it will replace otherwise.

    Raises InputError where score files or a scorer lie that this script has not written.
    """
    path, folders = cfg.corpus / RECORD, {split: cfg.corpus / split / "scores" for split in SPLITS}
    record: dict[str, Any] = {}
    if path.exists():
        cure = "remove it and the folders of scores"
        record = read_json(path, cure, most=MOST_RECORD)
        try:
            check_form(record, {"key": is_text, "fits": [{"scored": [is_text]}]})
        except ValueError:
            raise InputError(f"{path}: not written by scorers.py; {cure}") from None
    elif (cfg.corpus / SCORER).exists():
        raise InputError(f"{cfg.corpus / SCORER}: not written by scorers.py; move it away")
    for folder in folders.values():
        check_scores(folder, record)
    if not record:
        return False
    files = (folders[clip.split] / f"{clip_id(clip.filename)}.tsv" for clip in clips)
    if record["key"] == key and all(map(Path.is_file, files)) and (cfg.corpus / SCORER).is_file():
        print(f"{cfg.corpus}: score files are up to date (scorer {key}), nothing to do")
        return True
    why = "incomplete" if record["key"] == key else "of another configuration or corpus"
    print(f"{cfg.corpus}: the score files there are {why}; scoring again")
    return False


def score_corpus(
    cfg: ScorersConfig,
    folder: Path,
    clips: list[CorpusClip],
    classes: list[str],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Fit every scorer and write all score files below `folder`; a record of each fit.

    One thread each: two processes beat two threads on small batches, and sums keep their order.
    Features are computed on the CPU, so that on a GPU there are at most as many processes as fits.
    """
    fits = plan(clips)
    start = partial(pick_device, "cpu", 1)
    with process_pool(min(num_workers(cfg.workers), len(clips)), start) as pool:
        write_store(folder, clips, classes, pool)
        # The fit on all clips takes longest: it starts first.
        given = (folder, clips, classes, device)
        tasks = [pool.submit(fit_and_score, cfg, fit, *given) for fit in reversed(fits)]
        for _ in tqdm(as_completed(tasks), total=len(tasks), desc="fits", unit="fit"):
            pass
        return [task.result() for task in reversed(tasks)]


def publish(cfg: ScorersConfig, folder: Path, record: dict[str, Any]) -> None:
    """Move score files and network into place; until then scorer.json has no key."""
    path = cfg.corpus / RECORD
    write_json(path, {**record, "key": ""})
    for split in SPLITS:
        target = cfg.corpus / split / "scores"
        discard(target, SCORES)
        with writing(target):
            mark(folder / split, SCORES)
            (folder / split).replace(target)
    with writing(cfg.corpus / SCORER):
        (folder / SCORER).replace(cfg.corpus / SCORER)
    write_json(path, record)


def make_scores(cfg: ScorersConfig) -> None:
    """Score every clip of a corpus out of fold, unless it is done. InputError for a bad corpus, or
    a device that is not there."""
    began = time.monotonic()
    device = pick_device(cfg.device, torch.get_num_threads())
    clips = read_corpus(cfg.corpus)
    classes = classes_of({f"{clip.split}/{clip.filename}": clip.events for clip in clips})
    key = scorer_key(cfg, clips, classes)
    if is_done(cfg, clips, classes, key):
        return
    with lock(cfg.corpus), scratch_folder(cfg.corpus / ".scores.partial", SCRATCH) as folder:
        done = score_corpus(cfg, folder, clips, classes, device)
        seconds = [fit.pop("seconds") for fit in done]
        record = {"key": key, "marker": MARKER, "config": to_dict(cfg), "classes": classes}
        publish(cfg, folder, record | {"fits": done})
    print(f"scorer, on {device}: {len(classes)} classes: {', '.join(map(isolated, classes))}")
    for fit, taken in zip(done, seconds, strict=True):
        if fit["scored"]:
            print(
                f"  {fit['name']}: fitted on {len(fit['trained_on'])} clips in {taken:.0f} s;"
                f" cross-entropy of {len(fit['scored'])} unheard clips {fit['bce']:.3f}"
                f" (class frequencies alone: {fit['bce_of_rates']:.3f})"
            )
    print(f"network for new recordings: {cfg.corpus / SCORER}")
    print(f"score files: {cfg.corpus}/<split>/scores, {time.monotonic() - began:.0f} s in all")
