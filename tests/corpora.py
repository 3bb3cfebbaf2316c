"""Small fabricated caches for the tests: random but plausible signals with known labels."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

import preprocess
from config import Signal, to_dict


def write_cache(
    folder: Path,
    lengths: list[int],
    seed: int = 0,
    frame_s: float = 0.02,
    labels: tuple[str, ...] = ("Dog", "Speech"),
    clips: list[str] | None = None,
    audio: Path | None = None,
) -> None:
    """One shard of pairs of the given lengths, one clip for each round of `labels`; `clips` are
    their file names."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    values, truths, pairs = [], [], []
    for index, length in enumerate(lengths):
        label = np.zeros(length, bool)
        first = int(rng.integers(0, max(1, length * 2 // 3)))
        label[first : first + int(rng.integers(length // 8 + 1, length // 2 + 2))] = True
        noise = gaussian_filter1d(rng.normal(0, 1, length), 6) * 1.2
        d_raw = 1 / (1 + np.exp(-(2.0 * label - 1.0 + 2.0 * noise)))
        loud = gaussian_filter1d(label * rng.uniform(0.3, 1) + rng.normal(0, 0.6, length), 4)
        rms = preprocess.min_max(np.abs(loud))
        values.append(preprocess.compute_signals(rms, d_raw, frame_s, Signal()))
        truths.append(label)
        name = labels[index % len(labels)]
        clip = index // len(labels)
        filename = clips[clip] if clips else f"{clip}.wav"
        pairs.append(preprocess.Pair(filename, name, length, frame_s))
    path = folder / "shard-00000.npz"
    preprocess.write_shard(path, values, truths)
    entry = {"file": path.name, "inputs": "", "failed": [], "notices": {}, "pairs": pairs}
    entry["sha256"] = preprocess._sha256(path)
    signal = to_dict(Signal())
    manifest = {
        "format": preprocess.FORMAT,
        "split": folder.name,
        "key": preprocess.config_key_of(signal, [entry]),
        "signal": signal,
        "scores": {"source": "fabricated"},
        "audio": str(audio) if audio else None,
        "left_out": [],
        "versions": {},
        "shards": [entry],
    }
    preprocess.write_json(folder / "manifest.json", manifest)
