"""Small fabricated caches and policies for the tests: plausible signals with known labels."""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

import preprocess
from config import Bandit, Network, Signal, TrainConfig
from core.settings import to_dict
from core.stored import file_sha256
from DQN import Trainer
from policy import runfolder
from policy.bandit import make_states
from sed import caches
from sed.signals import min_max
from sed.timeline import frame_edges, frames_to_events


def write_cache(
    folder: Path,
    lengths: list[int],
    seed: int = 0,
    frame_s: float = 0.02,
    labels: tuple[str, ...] = ("Dog", "Speech"),
    clips: list[str] | None = None,
    audio: Path | None = None,
    absent: tuple[int, ...] = (),
    start_s: float = 0.0,
) -> None:
    """One shard of pairs of the given lengths, one clip for each round of `labels`; `clips` are
    their file names. Pairs of the indices `absent` have no event, which makes a cache of all pairs.
    `start_s`: as of windows that overlap, see `frame_edges`.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    values, truths, pairs = [], [], []
    records: dict[str, caches.ClipRecord] = {}
    for index, length in enumerate(lengths):
        label = np.zeros(length, bool)
        first = int(rng.integers(0, max(1, length * 2 // 3)))
        label[first : first + int(rng.integers(length // 8 + 1, length // 2 + 2))] = True
        if index in absent:
            label[:] = False
        noise = gaussian_filter1d(rng.normal(0, 1, length), 6) * 1.2
        d_raw = 1 / (1 + np.exp(-(2.0 * label - 1.0 + 2.0 * noise)))
        loud = gaussian_filter1d(label * rng.uniform(0.3, 1) + rng.normal(0, 0.6, length), 4)
        rms = min_max(np.abs(loud))
        values.append(preprocess.compute_signals(rms, d_raw, frame_s, Signal()))
        truths.append(label)
        name = labels[index % len(labels)]
        clip = index // len(labels)
        filename = clips[clip] if clips else f"{clip}.wav"
        pairs.append(caches.Pair(filename, name, length, frame_s, start_s))
        edges = frame_edges(length, frame_s, start_s)
        record = records.setdefault(
            filename, caches.ClipRecord(filename, 0.0, [], [0.0] * len(labels))
        )
        record.events.extend(frames_to_events(label, name, edges))
        record.tag[sorted(labels).index(name)] = float(d_raw.max())
        records[filename] = record._replace(duration_s=max(record.duration_s, edges[-1]))
    path = folder / "shard-00000.npz"
    caches.write_shard(path, values, truths)
    entry = {"file": path.name, "inputs": "", "failed": [], "notices": {}, "pairs": pairs}
    entry["clips"] = list(records.values())
    entry["sha256"] = file_sha256(path)
    signal = to_dict(Signal())
    manifest = {
        "format": caches.FORMAT,
        "split": folder.name,
        "queries": "all" if absent else "present",
        "classes": sorted(labels),
        "key": caches.config_key_of(signal, [entry]),
        "signal": signal,
        "formulas": preprocess.FORMULAS,
        "scores": {"source": "fabricated"},
        "audio": str(audio) if audio else None,
        "left_out": [],
        "versions": {},
        "shards": [entry],
    }
    preprocess.write_json(folder / "manifest.json", manifest)


SMALLEST = Network(
    hidden=4, tcn_layers=1, gru_layers=1, transformer_layers=1, heads=1, tcn_groups=1
)


def write_policy(
    run: Path, cache_folder: Path, seed: int = 0, bandit: Bandit | None = None
) -> Path:
    """best.pt with random weights that act: what a training run leaves, without the training."""
    cfg = TrainConfig(
        cache=cache_folder.parent,
        run=run,
        bandit=bandit or Bandit(context=3),
        network=SMALLEST,
        seed=seed,
    )
    trainer = Trainer(cfg, caches.load_cache(cache_folder), torch.device("cpu"))
    network, signals = trainer.network.eval(), trainer.signals
    frame = torch.arange(len(trainer.cache.label))
    with torch.no_grad():  # large and centred on these frames, so that actions differ between them
        network.head[2].weight *= 20
        owner = torch.from_numpy(trainer.cache.frames_of_pair)
        q_values = network(make_states(signals, owner, frame, trainer.bandit))
        network.head[2].bias -= q_values.mean(0)
    run.mkdir(parents=True, exist_ok=True)
    runfolder.write_checkpoint(run / "best.pt", trainer.policy())
    return run / "best.pt"
