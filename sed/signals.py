"""The six signals of a (clip, class) pair: loudness and score -> probability, base threshold.

Shapes: S samples, C channels, R loudness values, T frames of a pair, K classes

Formulas: slides, appendix 1; bracketed constants from the original program (see `config.Signal`).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter1d, median_filter

from config import Signal
from sed import timeline
from sed.audio import SHORT_AUDIO, TRUNCATED, fit_length, resample

SIGNALS = ("rms", "d_raw", "d_adj", "prob", "t_base", "binary")
VERSION = 2  # raise it with any change of the numbers; 1: even filters, which lag, on most grids
ORIGINAL_RATE = 32_000  # to which the original program brings all audio, mixed to mono
EPS = 1e-8  # spec: mm(x) = (x - min) / (max - min + eps)

# ---------------------------------------------------------------------------- scaling


def min_max(x: np.ndarray) -> np.ndarray:
    """Scale (.., T) to 0..1 over the frames of each pair; a constant becomes 0."""
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    return (x - low) / (high - low + EPS)


def clip_percentile(x: np.ndarray, percentile: float) -> np.ndarray:
    """Cut the values of each pair, (.., T), above their percentile.

    The percentile is that of `np.percentile`, bit for bit, which takes ten times as long.
    """
    at = (x.shape[-1] - 1) * (percentile / 100)
    low, high = int(at), min(int(at) + 1, x.shape[-1] - 1)
    ordered = np.partition(x, (low, high), axis=-1)
    below, above = ordered[..., low, None], ordered[..., high, None]
    share = at - low
    step = above - below
    cut = below + step * share if share < 0.5 else above - step * (1 - share)
    return np.minimum(x, cut)


# ---------------------------------------------------------------------------- filter lengths


def filter_frames(duration_s: float, frame_s: float, least: int = 1, odd: bool = True) -> int:
    """Length of a filter in frames of the grid at hand: the nearest odd number, at least `least`.

    A filter of odd length is centred on a frame; one of even length would lag. A filter that is
    centred on the edge between two frames needs the nearest even number instead (`odd=False`).
    """
    length = round(duration_s / frame_s, 6)  # 9.999999999 is 10
    return max(least, odd + 2 * round((length - odd) / 2))


SLIDES_FRAME_S = 0.02
SLIDES_FRAMES = {0.16: 8, 4.0: 200}  # the slides' own lengths, kept on their grid to repeat them


def slides_frames(duration_s: float, frame_s: float) -> int:
    """`filter_frames`, but at exactly 20 ms the slides' own even lengths, which lag by a frame."""
    theirs = SLIDES_FRAMES.get(duration_s)
    if theirs is not None and abs(frame_s - SLIDES_FRAME_S) < 1e-6:
        return theirs
    return filter_frames(duration_s, frame_s)


def median(x: np.ndarray, size: int) -> np.ndarray:
    """Median filter of (T,) or (K, T) over time, mirrored at the ends.

    The ends are padded here: scipy 1.17 mirrors wrongly, and not alike at both ends, where a
    filter reaches further than there are frames. Even sizes are the slides', and stay as scipy has
    them.
    """
    num_frames, reach = x.shape[-1], size // 2
    if size % 2 == 0 and reach > num_frames:
        return median_filter(x, (1, size) if x.ndim > 1 else size)
    at = np.arange(-reach, num_frames + reach) % (2 * num_frames)
    padded = x[..., np.minimum(at, 2 * num_frames - 1 - at)]
    # Rows one after the other: the filter of one dimension is the faster one.
    found = median_filter(padded.ravel(), size).reshape(padded.shape)
    return found[..., reach : reach + num_frames]


# ---------------------------------------------------------------------------- loudness


def rms_hop(sample_rate: int, signal: Signal) -> int:
    """Samples between two loudness values."""
    return max(1, round(signal.rms_hop_s * sample_rate))


def loudness(wav: np.ndarray, sample_rate: int, signal: Signal) -> np.ndarray:
    """Samples (S,) or (S, C) -> (R,) normalised log-RMS: mm(clip95(log(1 + RMS))), 0..1.

    Value j is of a window centred on sample j * `rms_hop`, zeros outside the recording; the power
    of several channels is the mean of their squares. The numbers are those of
    `librosa.feature.rms`, bit for bit.
    """
    power = np.square(np.atleast_2d(wav.T))
    power = power.mean(axis=0) if len(power) > 1 else power[0]
    size, hop = max(1, round(signal.rms_window_s * sample_rate)), rms_hop(sample_rate, signal)
    windows = sliding_window_view(np.pad(power, size // 2), size)[::hop]  # (R, window)
    rms = np.sqrt(windows.mean(axis=1))
    return min_max(clip_percentile(np.log1p(rms.astype(np.float64)), signal.clip_percentile))


def on_grid(x: np.ndarray, step: float, num_frames: int) -> np.ndarray:
    """Linear interpolation of (R,) to (T,) frames, the first at 0, the last at the end.

    Value j lies at j * `step`, in shares of the time that the frames span; after the last one it
    goes on.
    """
    return np.interp(np.linspace(0, 1, num_frames), np.arange(len(x)) * step, x)


def loudness_on_grid(
    wav: np.ndarray, sample_rate: int, duration_s: float, num_frames: int, signal: Signal
) -> np.ndarray:
    """Normalised loudness (T,) of samples (S,) or (S, C) over the time that T frames span.

    Each value lies at its own time. The original program puts the last one on the last frame, which
    stretches time by up to a hop.
    """
    wav = fit_length(wav, round(duration_s * sample_rate))
    if signal.loudness == "original":
        mono = wav if wav.ndim == 1 else wav.mean(axis=1)
        x = loudness(resample(mono, sample_rate, ORIGINAL_RATE), ORIGINAL_RATE, signal)
        return on_grid(x, 1 / max(1, len(x) - 1), num_frames)
    step = rms_hop(sample_rate, signal) / max(1, len(wav))
    return on_grid(loudness(wav, sample_rate, signal), step, num_frames)


# ---------------------------------------------------------------------------- score


def adjust_score(d_raw: np.ndarray, frame_s: float, signal: Signal) -> np.ndarray:
    """Raw scores (.., T) -> D_adj: twice median filtered, sharpened, mixed, cut, scaled."""
    smooth = median(d_raw, slides_frames(signal.score_median_s, frame_s))
    again = median(smooth, slides_frames(signal.score_median2_s, frame_s))
    power = smooth**signal.score_power
    mix = signal.score_mix * min_max(again) + (1 - signal.score_mix) * min_max(power)
    return min_max(clip_percentile(mix, signal.clip_percentile))


def tag_of(values: np.ndarray, frame_s: float, signal: Signal) -> np.ndarray:
    """Scores (K, T) -> (K,) clip-level scores: the maximum after the first median filter (k1).

    It spans three frames at least, so that it takes away a peak that is too short to be a sound.
    """
    size = filter_frames(signal.score_median_s, frame_s, least=3)
    return median(values, size).max(axis=1)


# ---------------------------------------------------------------------------- the six signals


def fuse(rms: np.ndarray, d_adj: np.ndarray, frame_s: float, signal: Signal) -> np.ndarray:
    """Loudness (T,) and scores (.., T) -> probabilities (.., T)."""
    # The original adds eps to avoid dividing by zero.
    harmonic = 2 / (1 / (rms + EPS) + 1 / (d_adj + EPS))
    fused = rms * d_adj if signal.fusion == "product" else harmonic
    scaled = min_max(clip_percentile(fused, signal.clip_percentile))
    return gaussian_filter1d(scaled, signal.prob_sigma_s / frame_s)


def dynamic_threshold(
    rms: np.ndarray, d_adj: np.ndarray, frame_s: float, signal: Signal
) -> np.ndarray:
    """Base thresholds (.., T): background loudness (T,) where the class is not.

    The slides' factor alpha = 0.7 is left out: the min-max that follows cancels it.
    """
    sigma = signal.background_sigma_s / frame_s
    background = median(rms, slides_frames(signal.background_s, frame_s))
    anti_mask = gaussian_filter1d((1 - d_adj) ** signal.beta, sigma)
    return min_max(gaussian_filter1d(background, sigma) * anti_mask)


def falls_back(rms: np.ndarray | None, d_raw: np.ndarray, signal: Signal) -> np.ndarray:
    """Whether each score (.., T) has so little contrast that loudness decides alone (original
    program): (..) bool.

    Without audio it never does: there the score is all that is known.
    """
    contrast = d_raw.max(axis=-1).astype(np.float64) - d_raw.min(axis=-1)
    return (contrast < signal.flat_range) & (rms is not None and signal.flat_fallback)


def compute_signals(
    rms: np.ndarray | None, d_raw: np.ndarray, frame_s: float, signal: Signal
) -> dict[str, np.ndarray]:
    """Loudness (T,) (None: no audio, 1 everywhere) and raw scores of one pair, (T,), or of several
    classes of a clip, (K, T) -> the six signals, float32, each of the scores' shape.

    `binary` is decided on the stored float32 values, so that every reader repeats it exactly.
    """
    flat = falls_back(rms, d_raw, signal)
    d_raw = d_raw.astype(np.float64)
    rms = np.ones(d_raw.shape[-1]) if rms is None else rms.astype(np.float64)
    d_adj = adjust_score(d_raw, frame_s, signal)
    prob = fuse(rms, d_adj, frame_s, signal)
    t_base = dynamic_threshold(rms, d_adj, frame_s, signal)
    if flat.any():
        threshold = np.clip(min(np.percentile(rms, 10), rms.mean() - rms.std()), 0, 1)
        prob = np.where(flat[..., None], rms, prob)
        t_base = np.where(flat[..., None], threshold, t_base)
    rms = np.broadcast_to(rms, d_raw.shape)
    values = {"rms": rms, "d_raw": d_raw, "d_adj": d_adj, "prob": prob, "t_base": t_base}
    values = {name: array.astype(np.float32, order="C") for name, array in values.items()}
    values["binary"] = (values["prob"] > values["t_base"]).astype(np.float32)
    return values


PADDED = "scores run past the end of the audio (silence assumed)"
LONGER = "audio goes on after the last frame of the scores (cut there)"
SILENT = "audio is all zero"
CUT = "events reach past the last frame (cut there)"
TOO_SHORT = "events cover no frame centre, so the pair is off everywhere"
DISAGREE = "imported decisions differ from prob > threshold in some frames"
NO_AUDIO = "no audio (--audio not given): the normalised loudness is 1 everywhere"
FELL_BACK = "score of little contrast: loudness decides alone (--signal.flat-range)"
WINDOWS = "windows: a score stands for one step around its window's centre"
NOTICES = (PADDED, LONGER, TRUNCATED, SILENT, CUT, TOO_SHORT, DISAGREE, NO_AUDIO, FELL_BACK)
NOTICES += (WINDOWS,)


def check_duration(duration: float, scores: timeline.ClipScores) -> str:
    """The notice on audio of `duration` seconds that differs from its scores by over a frame.

    ValueError above a tenth: a header with a wrong sample rate, scores of another clip.
    """
    end, slack = float(scores.edges[-1]), scores.frame_s + 1e-6
    if abs(end - duration) > max(slack, SHORT_AUDIO * max(end, duration)):
        cure = "look at the sample rate in its header, and whether these are its scores"
        if end > duration:
            cure += "; where the model padded its input, --cut-scores cuts them"
        raise ValueError(f"audio lasts {duration:.2f} s, its scores {end:.2f} s; {cure}")
    if abs(end - duration) <= slack:
        return ""
    return PADDED if end > duration else LONGER


def clip_tag(scores: timeline.ClipScores, signal: Signal) -> np.ndarray:
    """(K,) clip-level score of each class: the source's own, or `signals.tag_of` its frames."""
    if scores.tag is not None:
        return scores.tag
    return tag_of(scores.values, scores.frame_s, signal)
