"""A page to look at and listen to: one folder that a browser opens without server or network.

Run:    python visualize.py --html              # writes runs/slides/report/index.html
        python visualize.py --html --beside runs/best     # two policies side by side
Reads:  what visualize.py has read, the audio of the chosen pairs, report/ of this repository
Writes: <run>/report/{index.html, report.js, vendor/, data/*.js, clips/*.{mp3,webp}}
Shapes: T frames of a pair, P pairs of the split, B bins of a waveform

Pages opened from disk cannot fetch, so data are scripts that call a function of the page. No file
is named after a clip, and nothing that a user named is ever written into the page's markup.
"""

import base64
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from comparison.evaluations import Evaluated, gain_interval, view_of
from config import TrainConfig
from core.errors import InputError
from core.files import new_folder, write_bytes, write_text, writing
from core.names import isolated
from core.settings import to_dict
from core.versions import versions
from figures.plotting import changes
from policy.runfolder import FREE_FIELDS, PAGE, last_ten, unchanged_rewards
from sed import timeline
from sed.audio import read_audio, resample
from sed.caches import Pair
from sed.labels import find_audio
from sed.matching import BINS_MS
from sed.metrics import NAMES

ASSETS = Path(__file__).parent / "page"
CURVES = ("rms", "d_raw", "d_adj", "prob", "t_base")  # the sixth signal is on or off
LEVELS = 65_535  # a signal from 0 to 1 becomes an unsigned 16-bit number
POINTS = 1_000  # of a training curve and of a waveform: more than a screen shows

# ---------------------------------------------------------------------------- script files


def closed(value: Any) -> Any:
    """A value with every text in it isolated: no name turns what stands after it."""
    if isinstance(value, dict):
        return {isolated(key): closed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [closed(item) for item in value]
    return isolated(value) if isinstance(value, str) else value


def script(call: str, value: Any) -> str:
    """JavaScript that hands `value` to `call`. No `<` or `&` is left: nothing can end a script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # in JSON they occur inside strings only
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"{call}({text});\n"


def packed(values: np.ndarray) -> str:
    """0..1 -> base64 of little-endian 16-bit numbers."""
    levels = np.round(np.clip(values, 0, 1) * LEVELS).astype("<u2")
    return base64.b64encode(levels.tobytes()).decode("ascii")


def runs_of(on: np.ndarray) -> list[list[int]]:
    """(T,) bool -> [first frame, frame after the last] of each run."""
    return np.stack(timeline.runs_of(on), axis=1).tolist()


def numbers(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Values as short JSON numbers; what is not finite becomes null."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


# ---------------------------------------------------------------------------- which pairs


def choose_pairs(gains: np.ndarray, count: int) -> dict[int, str]:
    """(P, 2) gain of F1 and accuracy -> pair and why: a third best, a third worst, and typical ones
    at evenly spaced ranks between them. Ties go by position, so a rerun chooses the same."""
    order = np.lexsort((np.arange(len(gains)), -gains[:, 1], -gains[:, 0])).tolist()
    third = min(count, len(order)) // 3
    best, worst = order[:third], order[len(order) - third :]
    middle = order[third : len(order) - third]
    wanted = min(count, len(order)) - 2 * third
    places = (np.arange(wanted) + 0.5) * len(middle) / max(1, wanted)
    typical = [middle[int(place)] for place in places]
    reasons = [(best, "best"), (typical, "typical"), (worst, "worst")]
    return dict(sorted((index, why) for some, why in reasons for index in some))


# ---------------------------------------------------------------------------- sound and picture


def write_mp3(path: Path, wav: np.ndarray, sample_rate: int) -> None:
    """(S,) as MP3 of constant rate, 64 kbit/s, at 44.1 or 48 kHz.

    At these rates the decoded sound begins where the recording does (at 11 to 24 kHz it is up to
    0.1 s late), and MP3 frames, to which browsers seek, are shortest: 26 or 24 ms.
    """
    rate = 44_100 if 44_100 % sample_rate == 0 else 48_000
    wav = resample(wav, sample_rate, rate)
    bits = {"bitrate_mode": "CONSTANT", "compression_level": 0.88}  # 64 of 320 .. 32 kbit/s
    sound = io.BytesIO()
    soundfile.write(sound, np.clip(wav, -1, 1), rate, format="MP3", **bits)
    write_bytes(path, sound.getvalue())


def write_spectrogram(path: Path, wav: np.ndarray, sample_rate: int) -> dict[str, Any]:
    """Log-mel spectrogram of (S,) as a picture; returns the seconds it spans and its Hz marks."""
    import librosa  # slow to import; only needed where there is audio
    from matplotlib.image import imsave

    size = 2 ** round(math.log2(max(64, 0.064 * sample_rate)))
    hop = max(size // 4, math.ceil(len(wav) / 4_000))  # at most 4,000 columns
    bands = 96 if sample_rate >= 8_000 else 40
    mel = librosa.feature.melspectrogram(
        y=wav, sr=sample_rate, n_fft=size, hop_length=hop, n_mels=bands
    )
    level = librosa.power_to_db(mel, ref=max(1e-10, float(mel.max())), top_db=70)
    look = {"cmap": "magma", "vmin": -70, "vmax": 0, "format": "webp"}
    with writing(path):
        imsave(path, level[::-1], pil_kwargs={"quality": 75}, **look)
    top = librosa.hz_to_mel(sample_rate / 2)
    marks = [hz for hz in (500, 1_000, 2_000, 4_000, 8_000, 16_000) if hz <= sample_rate / 2]
    step = hop / sample_rate  # column j is centred on j * step
    span = [-step / 2, (level.shape[1] - 0.5) * step]
    return {"span": span, "marks": [[hz, float(librosa.hz_to_mel(hz) / top)] for hz in marks]}


def write_sound(folder: Path, number: int, source: Path) -> dict[str, Any]:
    """Sound and spectrogram of a clip; returns its length in seconds, where the spectrogram lies,
    and its waveform: lowest and highest sample of each of at most POINTS equal bins.

    ValueError where the audio cannot be read.
    """
    wav, sample_rate = read_audio(source)
    write_mp3(folder / f"{number:05d}.mp3", wav, sample_rate)
    picture = write_spectrogram(folder / f"{number:05d}.webp", wav, sample_rate)
    bins = min(POINTS, len(wav))
    starts = (np.arange(bins) * len(wav)) // bins
    ends = (least.reduceat(wav, starts) / 2 + 0.5 for least in (np.minimum, np.maximum))
    low, high = map(packed, ends)
    return {"duration": len(wav) / sample_rate, "low": low, "high": high, **picture}


def sounds_of(data: Evaluated, chosen: Iterable[int], folder: Path) -> dict[str, dict[str, Any]]:
    """Write each clip of the chosen pairs once -> its sound, by file name, in order of number.

    Clips whose audio is not at hand are left out; the page says so.
    """
    folder.mkdir()
    home, sounds = data.cache.manifest.get("audio"), {}
    names = list(dict.fromkeys(data.cache.pairs[index].filename for index in chosen))
    for name in tqdm(names if home else [], desc="Sounds", unit="clip"):
        source = find_audio(Path(home), name)
        if source is not None:
            try:
                sounds[name] = write_sound(folder, len(sounds), source)
            except ValueError as error:
                print(f"  without sound: {isolated(str(source))}: {error}")
    return sounds


# ---------------------------------------------------------------------------- what the page shows


class Shown(NamedTuple):
    """A policy of the page: its run folder, evaluation and, where there is one, its training."""

    run: Path
    data: Evaluated
    training: tuple[TrainConfig, dict[str, np.ndarray]] | None


def policy_of_pair(data: Evaluated, index: int) -> dict[str, Any]:
    """What a policy did in one pair; `boxes` where it chose among events."""
    view = view_of(data, index)
    runs = {name: runs_of(on) for name, on in ({"after": view.after} | changes(view)).items()}
    shifted = packed(view.signals["t_adj"]) if "t_adj" in view.signals else None
    return {"t_adj": shifted, **runs, "boxes": (data.boxes or {}).get(index)}


def pair_data(shown: list[Shown], index: int, sound: dict[str, Any] | None) -> dict[str, Any]:
    """One pair's signals, and the decisions of each policy."""
    view = view_of(shown[0].data, index)
    return {
        "frames": len(view.label),
        "frame_s": view.pair.frame_s,
        "start_s": view.pair.start_s,
        "signals": {name: packed(view.signals[name]) for name in CURVES},
        "label": runs_of(view.label),
        "before": runs_of(view.before),
        "policies": [policy_of_pair(each.data, index) for each in shown],
        "sound": sound,
    }


def pair_rows(
    shown: list[Shown], chosen: dict[int, str], sounds: Iterable[str]
) -> list[dict[str, Any]]:
    """The list of pairs: what the page filters and sorts by; `sounds`: clips in order of number."""
    first = shown[0].data
    before = first.scores(first.before)
    after = [each.data.scores(each.data.after) for each in shown]
    number = {name: i for i, name in enumerate(sounds)}

    def row(index: int, pair: Pair, why: str) -> dict[str, Any]:
        def did(data: Evaluated, scores: dict[str, np.ndarray]) -> dict[str, Any]:
            counts = {name: int(on.sum()) for name, on in changes(view_of(data, index)).items()}
            return {"after": numbers(scores[name][index] for name in NAMES), **counts}

        return {
            "n": index,
            "clip": pair.filename,
            "label": pair.event_label,
            "why": why,
            "present": bool(first.cache.present[index]),
            "sound": number.get(pair.filename),
            "before": numbers(before[name][index] for name in NAMES),
            "policies": [did(each.data, some) for each, some in zip(shown, after, strict=True)],
        }

    return [row(index, first.cache.pairs[index], why) for index, why in chosen.items()]


def other_pairs(data: Evaluated, chosen: dict[int, str]) -> dict[str, Any]:
    """The pairs of the split that are not on the page: labels, and by clip the numbers of its."""
    labels = sorted({pair.event_label for pair in data.cache.pairs})
    number, clips = {label: i for i, label in enumerate(labels)}, {}
    for index, pair in enumerate(data.cache.pairs):
        if index not in chosen:
            clips.setdefault(pair.filename, []).append(number[pair.event_label])
    return {"labels": labels, "clips": list(clips.items())}


def training_curves(training: tuple[TrainConfig, dict[str, np.ndarray]] | None) -> dict | None:
    """History in the order of finishing; of a long run each point is the mean of some episodes."""
    if training is None:
        return None
    config, history = training
    count = len(history["Reward"])
    each = max(1, math.ceil(count / POINTS))
    starts, ones = np.arange(0, count, each), np.ones(count)
    steps = np.maximum(0, np.diff(history["Steps"], prepend=0))  # a row without a step has no loss
    if config.method == "events":  # a row is a gradient step; of a few the loss is their mean
        steps = (history["Loss"] > 0).astype(float)
    columns = {"loss": (history["Loss"], steps), "epsilon": (history["Epsilon"], ones)}
    if config.method != "events":
        columns["reward"], columns["avg10"] = (history["Reward"], ones), (history["Avg10"], ones)
        columns["unchanged"] = (last_ten(unchanged_rewards(history, config.bandit)), ones)
        if "Q" in history:  # older runs have none
            columns["q"] = (history["Q"], steps)
    curves = {}
    for name, (values, weights) in columns.items():
        total = np.add.reduceat(np.where(weights > 0, values * weights, 0), starts)
        weight = np.add.reduceat(weights, starts)
        curves[name] = numbers(np.where(weight > 0, total / np.maximum(weight, 1), np.nan))
    middle = starts + (np.diff(np.append(starts, count)) + 1) / 2
    return {"episodes": count, "each": each, "x": middle.tolist(), **curves}


def data_facts(data: Evaluated) -> list[list[str]]:
    """What was evaluated, as rows of name and value."""
    cache, results = data.cache, data.results
    hours = sum(pair.num_frames * pair.frame_s for pair in cache.pairs) / 3600
    steps = sorted({f"{1000 * pair.frame_s:g} ms" for pair in cache.pairs})
    return [
        ["Split", results["split"]],
        ["Pairs (clip and class)", f"{len(cache.pairs):,}"],
        ["Clips", f"{len({pair.filename for pair in cache.pairs}):,}"],
        ["Classes", f"{len({pair.event_label for pair in cache.pairs}):,}"],
        ["Frames", f"{len(cache.label):,} of {', '.join(steps)}"],
        ["Length of all pairs", f"{hours:.2f} h, on for {100 * cache.label.mean():.1f} %"],
        ["Left out", f"{len(cache.manifest.get('left_out') or [])} clips"],
        ["Scores from", str((cache.manifest.get("scores") or {}).get("source", "unknown"))],
        ["Cache", f"{cache.folder} (key {cache.key})"],
        *(["Note", note] for note in results.get("notes", [])),
    ]


def settings(data: Evaluated, config: TrainConfig | None) -> dict[str, list[list[Any]]]:
    """Every setting by group: name, value, and the value of the slides where it differs."""
    groups: dict[str, list[list[Any]]] = {"run": []}
    usual = to_dict(TrainConfig())
    for name, value in (to_dict(config) if config else {}).items():
        group, rows, base = "run", {name: value}, usual
        if isinstance(value, dict):
            group, rows, base = name, value, usual[name]
        for key, x in rows.items():
            other = None if x == base[key] or key in FREE_FIELDS else str(base[key])
            groups.setdefault(group, []).append([key, str(x), other])
    signal = data.cache.manifest.get("signal") or {}
    groups["signal"] = [[key, str(value), None] for key, value in signal.items()]
    groups["made with"] = [[key, value, None] for key, value in versions().items()]
    return {name: rows for name, rows in groups.items() if rows}


SHOWN = ("after", "gain", "interval", "num_clips", "per_class", "yardsticks", "ends", "pooled")
SHOWN += ("fixed_frames", "broken_frames", "threshold_selection", "verdict")


def policy_data(shown: Shown, name: str) -> dict[str, Any]:
    """A policy's results and training; `all_pairs` where absent classes were asked for too, `curve`
    where events can be swept by confidence: `what`, `confidence`, `precision`, `recall`, `f1`."""
    results = shown.data.results
    return {
        "name": name,
        "checkpoint": str(results.get("checkpoint", "")),
        "results": {key: results[key] for key in SHOWN},
        "settings": settings(shown.data, shown.training and shown.training[0]),
        "training": training_curves(shown.training),
        "all_pairs": results.get("all_pairs"),
        "curve": results.get("curve"),
        "shifts": shown.data.t_adj is not None,
    }


def difference(shown: list[Shown]) -> dict[str, Any] | None:
    """The second policy minus the first over the present pairs, paired; None for one policy."""
    if len(shown) == 1:
        return None
    ours, theirs = (each.data.scores(each.data.after) for each in shown[::-1])
    cache = shown[0].data.cache
    gain = {name: float((ours[name] - theirs[name])[cache.present].mean()) for name in NAMES}
    return {"gain": gain, "interval": gain_interval(cache, ours, theirs, cache.present)}


# ---------------------------------------------------------------------------- the folder


def copy_assets(folder: Path) -> None:
    """Page, script and libraries with their licences."""
    for path in ASSETS.rglob("*"):
        if path.is_file():
            name = "index.html" if path.name == "template.html" else path.relative_to(ASSETS)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, path.read_bytes())


def names_of(shown: list[Shown]) -> list[str]:
    """What the page calls the policies: the name of the run folder, its path where that is twice
    the same."""
    names = [each.run.resolve().name for each in shown]
    return names if len(set(names)) == len(names) else [str(each.run) for each in shown]


def write_folder(folder: Path, shown: list[Shown], count: int) -> int:
    """Everything of the page; returns the number of pairs on it."""
    copy_assets(folder)
    data = shown[0].data
    before, after = map(data.scores, (data.before, data.after))
    gains = np.stack([after[name] - before[name] for name in ("f1", "accuracy")], axis=1)
    gains[~data.cache.present] = 0  # of an absent pair F1 is 0 or 100 %: they would fill the page
    chosen = choose_pairs(gains, count)
    sounds = sounds_of(data, chosen, folder / "clips")
    results, names = data.results, names_of(shown)
    page = {
        "split": results["split"],
        "num_pairs": results["num_pairs"],
        "known": data.cache.queries == "present",
        "present_pairs": results.get("present_pairs", results["num_pairs"]),
        "num_frames": results.get("present_frames", results["num_frames"]),
        "before": results["before"],
        "facts": data_facts(data),
        "policies": [policy_data(*each) for each in zip(shown, names, strict=True)],
        "difference": difference(shown),
        "error_bins": BINS_MS.tolist(),
        "audio": bool(data.cache.manifest.get("audio")),
        "pairs": pair_rows(shown, chosen, sounds),
    }

    def write(name: str, call: str, value: Any) -> None:
        write_text(folder / "data" / f"{name}.js", script(call, value))

    (folder / "data").mkdir()
    write("index", "REPORT", closed(page))
    write("others", "REPORT_OTHERS", closed(other_pairs(data, chosen)))
    for index in chosen:
        content = pair_data(shown, index, sounds.get(data.cache.pairs[index].filename))
        write(f"pair-{index:05d}", "REPORT_PAIR", [index, content])
    return len(chosen)


def write_report(shown: list[Shown], count: int) -> None:
    """Write report/ of the first policy's run whole, in place of an earlier one; prints the page's
    path. InputError for policies that decided on different splits or caches, and for results of an
    older version."""
    run, first = shown[0].run, shown[0].data
    for each in shown:
        if missing := [name for name in SHOWN if name not in each.data.results]:
            cure = f"run: python evaluate.py --run {each.run} --cache {first.cache.folder.parent}"
            raise InputError(f"{each.run / 'results.json'}: no {', '.join(missing)}; {cure}")
        for key in ("split", "cache_key"):
            ours, theirs = first.results[key], each.data.results[key]
            if ours != theirs:
                raise InputError(
                    f"{each.run / 'results.json'}: {key} {theirs}, but {ours} in {run}; evaluate"
                    " both on the same cache"
                )
    folder = run / "report"
    with new_folder(folder, PAGE) as partial:
        pairs = write_folder(partial, shown, count)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"report: {folder / 'index.html'} ({pairs} pairs, {size / 1e6:.1f} MB)")
