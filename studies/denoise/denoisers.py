"""Four classical denoisers, what a policy may see of a clip, and what denoising is judged by.

Shapes: B clips of a batch, padded to S samples; F bins, T frames of a spectrum; K bands

Everything is batched and indifferent to level: a clip is divided by its RMS first. Clips of a batch
may have different lengths; each gets what it would get alone.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import librosa
import numpy as np
import pystoi
import pywt
import torch
from pystoi.utils import _resample_window_oct, thirdoct
from scipy.special import exp1
from torch.nn import functional

METHODS = ("spectral_sub", "lsa", "spectral_gate", "wavelet")
STOP = len(METHODS)  # the choice after the last method: leave the audio as it is
PARAMETERS = ("strength", "depth", "tracking")  # 0..1 each; see `settings`
WINDOW_S = 0.032  # frame of the spectra; half overlapped, square root of a Hann window
TINY = 1e-12  # power of a bin, where the clip's mean square is 1
WAVELET, WAVELET_LEVELS = "db8", 6
BLOCK_S = 0.25  # the wavelet's local noise level is a median over this long
BANDS = 24
FEATURES = (
    *(f"{kind}_{band:02d}" for kind in ("level", "spread", "floor") for band in range(BANDS)),
    *("log_duration", "zcr", "crest_db", "flatness_db", "energy_spread_db", "snr_estimate_db"),
)
SILENCE_DB = -30.0  # SI-SDR of an output that has nothing of the reference


class Batch(NamedTuple):
    """Clips padded with zeros."""

    audio: torch.Tensor  # (B, S) float32
    lengths: torch.Tensor  # (B,) int64, samples

    def inside(self) -> torch.Tensor:
        """Which samples (B, S) are of the clip."""
        return torch.arange(self.audio.shape[1]) < self.lengths[:, None]


def batch_of(waves: list[np.ndarray]) -> Batch:
    """Waves (S,) of any lengths -> one batch."""
    tensors = [torch.from_numpy(np.asarray(wave, dtype=np.float32)) for wave in waves]
    lengths = torch.tensor([len(wave) for wave in waves])
    return Batch(torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths)


def level(batch: Batch) -> torch.Tensor:
    """RMS (B, 1) of each clip; 1 where it is silent, so that one can divide by it."""
    rms = (batch.audio.double().square().sum(1) / batch.lengths.clamp(min=1)).sqrt()
    return torch.where(rms > 0, rms, 1.0).float()[:, None]


def frame_size(sample_rate: int) -> int:
    """Samples of a frame, even."""
    return 2 * round(WINDOW_S * sample_rate / 2)


@lru_cache
def window(size: int) -> torch.Tensor:
    """Square root of a Hann window: analysis times synthesis adds up to 1 at half overlap."""
    return torch.hann_window(size).sqrt()


def spectrum(audio: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """(B, S) -> (B, F, T) complex; T = 2 + ceil(S / half a frame)."""
    size = frame_size(sample_rate)
    pad = -audio.shape[1] % (size // 2) + size // 2
    padded = functional.pad(audio, (0, pad))
    shape = {"n_fft": size, "hop_length": size // 2, "window": window(size)}
    return torch.stft(padded, center=True, pad_mode="constant", return_complex=True, **shape)


def from_spectrum(bins: torch.Tensor, num_samples: int, sample_rate: int) -> torch.Tensor:
    """Inverse of `spectrum` -> (B, S)."""
    size = frame_size(sample_rate)
    length = (bins.shape[2] - 1) * (size // 2)
    shape = {"n_fft": size, "hop_length": size // 2, "window": window(size)}
    return torch.istft(bins, center=True, length=length, **shape)[:, :num_samples]


def frames_inside(batch: Batch, num_frames: int, sample_rate: int) -> torch.Tensor:
    """Which frames (B, T) have their centre in the clip."""
    hop = frame_size(sample_rate) // 2
    return torch.arange(num_frames) * hop <= batch.lengths[:, None]


class Settings(NamedTuple):
    """What the parameters 0..1 mean, the same for every method; (B, 1) each."""

    over: torch.Tensor  # factor on the noise power
    floor: torch.Tensor  # smallest gain
    seconds: torch.Tensor  # time constant of the noise estimate
    tracking: torch.Tensor  # as given


def settings(params: torch.Tensor) -> Settings:
    """Parameters (B, 3), 0..1: strength, noise taken for -6 dB .. +9 dB of its estimate; depth, at
    most 3 .. 30 dB of attenuation; tracking, a noise estimate of 2 s .. 50 ms."""
    strength, depth, tracking = params.float().clamp(0, 1).split(1, dim=1)
    over = 10 ** ((15 * strength - 6) / 10)
    floor = 10 ** (-(3 + 27 * depth) / 20)
    return Settings(over, floor, 2.0 * 0.025**tracking, tracking)


def first_noise(power: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Noise power (B, F) to begin with: the quietest stretch of 8 frames in each bin.

    The smallest of many means lies below the mean; factor 2 is about right for 3 s.
    """
    frames = min(8, power.shape[2])
    means = functional.avg_pool1d(power, frames, max(1, frames // 2))
    complete = functional.avg_pool1d(inside[:, None].float(), frames, max(1, frames // 2)) > 0.99
    quietest = torch.where(complete, means, math.inf).amin(2)
    return torch.where(quietest.isfinite(), 2 * quietest, power[:, :, 0]).clamp(min=TINY)


def noise_power(
    power: torch.Tensor, inside: torch.Tensor, seconds: torch.Tensor, sample_rate: int
) -> torch.Tensor:
    """Noise power (B, F, T) that follows changes; bins of the clip's mean square 1.

    T. Gerkmann, R. C. Hendriks, "Unbiased MMSE-based noise power estimation with low complexity and
    low tracking delay", IEEE TASLP 2012: each bin's noise is the observation weighted by the
    probability that speech is absent, smoothed with the time constant `seconds` (B, 1).
    """
    prior = 10**1.5  # a-priori SNR where speech is present: 15 dB (their equation 17)
    keep = torch.exp(-(frame_size(sample_rate) // 2) / sample_rate / seconds)
    noise, present = first_noise(power, inside), torch.full(power.shape[:2], 0.5)
    track = torch.empty(power.shape[2], *power.shape[:2])
    for t, now in enumerate(power.permute(2, 0, 1).contiguous()):
        odds = (1 + prior) * torch.exp(now / noise * (-prior / (1 + prior)))
        speech = 1 / (1 + odds)
        present.mul_(0.9).add_(speech, alpha=0.1)  # stuck near 1: let some of it through
        speech = torch.where(present > 0.99, speech.clamp(max=0.99), speech)
        estimate = torch.lerp(now, noise, speech)
        noise = torch.lerp(estimate, noise, keep).clamp_(min=TINY)
        track[t] = noise
    return track.permute(1, 2, 0)


# Power and noise (B, F, T), settings (B, 1) -> gain (B, F, T), 0..1.


def subtraction_gain(power: torch.Tensor, noise: torch.Tensor, to: Settings) -> torch.Tensor:
    """Power spectral subtraction, over-subtraction and floor (Berouti et al., ICASSP 1979)."""
    left = 1 - to.over[..., None] * noise / power.clamp(min=TINY)
    return left.clamp(min=0).sqrt().maximum(to.floor[..., None])


@lru_cache
def half_exp1() -> tuple[float, float, torch.Tensor]:
    """Table of E1(v) / 2 over log v: first log v, step, values."""
    logs = np.linspace(math.log(1e-6), math.log(60.0), 600)
    return logs[0], logs[1] - logs[0], torch.from_numpy(0.5 * exp1(np.exp(logs))).float()


def lsa_gain(power: torch.Tensor, noise: torch.Tensor, to: Settings) -> torch.Tensor:
    """Log-spectral amplitude estimator, decision-directed (Ephraim, Malah, IEEE TASSP 1985)."""
    first, step, table = half_exp1()
    posterior = (power / (to.over[..., None] * noise)).clamp(1e-6, 1e6).permute(2, 0, 1)
    fresh = 0.04 * (posterior - 1).clamp(min=0)  # weight .98 at 8 ms is .96 at 16 ms
    gains = torch.empty_like(fresh)
    before = torch.ones_like(fresh[0])  # amplitude^2 over noise, of the previous frame
    for t, now in enumerate(posterior.contiguous()):
        prior = (0.96 * before + fresh[t]).clamp(min=10**-2.5)
        wiener = prior / (1 + prior)
        place = ((wiener * now).log() - first).div_(step).clamp_(0, len(table) - 1.001)
        low = place.long()
        gain = wiener * torch.exp(torch.lerp(table[low], table[low + 1], place - low))
        gains[t] = gain.clamp_(max=1)
        before = gain.square() * now
    return gains.permute(1, 2, 0).maximum(to.floor[..., None])


def gate_gain(power: torch.Tensor, noise: torch.Tensor, to: Settings) -> torch.Tensor:
    """Bins 6 dB above the noise pass, the mask smoothed over 3 bins and 5 frames."""
    passed = (power > 4 * to.over[..., None] * noise).float()
    smooth = functional.avg_pool2d(passed[:, None], (3, 5), 1, (1, 2))[:, 0]
    return torch.lerp(to.floor[..., None], torch.ones(()), smooth)


GAINS = (subtraction_gain, lsa_gain, gate_gain)


def local_scale(detail: torch.Tensor, block: int) -> torch.Tensor:
    """Median of the magnitudes (B, n), NaN where there is none, in blocks -> (B, n)."""
    n = detail.shape[1]
    padded = functional.pad(detail, (0, -n % block), value=math.nan)
    medians = padded.reshape(len(detail), -1, block).nanmedian(2).values
    return medians.repeat_interleave(block, dim=1)[:, :n]


def wavelet_shrink(batch: Batch, params: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Soft thresholds on the details (B, S); each level's noise is its own median magnitude.

    D. L. Donoho, "De-noising by soft-thresholding", IEEE TIT 1995; a coefficient keeps at least the
    share `floor`. Tracking moves from the clip's median to that of blocks of 250 ms.
    """
    to = settings(params)
    levels = min(WAVELET_LEVELS, pywt.dwt_max_level(batch.audio.shape[1], WAVELET))
    if levels == 0:
        return batch.audio
    taps = pywt.Wavelet(WAVELET).dec_len
    coarse, *details = pywt.wavedec(batch.audio.numpy(), WAVELET, "zero", levels)
    lengths, kept = batch.lengths, []
    for rank, array in enumerate(reversed(details), 1):  # finest first
        detail = torch.from_numpy(np.ascontiguousarray(array))
        lengths = (lengths + taps - 1) // 2
        here = torch.arange(detail.shape[1]) < lengths[:, None]
        size = torch.where(here, detail.abs(), math.nan)
        overall = size.nanmedian(1, keepdim=True).values
        local = local_scale(size, max(16, round(BLOCK_S * sample_rate / 2**rank)))
        local = torch.where(local.isnan(), overall, local).clamp(min=TINY)
        sigma = overall.clamp(min=TINY) ** (1 - to.tracking) * local**to.tracking / 0.6745
        shrunk = (detail.abs() - to.over.sqrt() * sigma).maximum(to.floor * detail.abs())
        kept.append((detail.sign() * shrunk).nan_to_num(0).numpy())
    out = pywt.waverec([coarse, *reversed(kept)], WAVELET, "zero")
    return torch.from_numpy(np.ascontiguousarray(out[:, : batch.audio.shape[1]]))


def denoise(
    batch: Batch, methods: torch.Tensor, params: torch.Tensor, sample_rate: int
) -> torch.Tensor:
    """One step for each clip: method (B,) 0 .. STOP, parameters (B, 3) 0..1 -> audio (B, S)."""
    scale = level(batch)
    audio = batch.audio / scale
    out = audio.clone()
    rows = torch.nonzero(methods < len(GAINS))[:, 0]
    if len(rows):
        part = Batch(audio[rows], batch.lengths[rows])
        to = settings(params[rows])
        bins = spectrum(part.audio, sample_rate)
        # Frames hold the power of a window's worth of samples; the mean square is wanted.
        power = bins.real.square().add_(bins.imag.square()) / (frame_size(sample_rate) / 2)
        inside = frames_inside(part, power.shape[2], sample_rate)
        noise = noise_power(power, inside, to.seconds, sample_rate)
        gain = torch.empty_like(power)
        for number, gain_of in enumerate(GAINS):
            mine = torch.nonzero(methods[rows] == number)[:, 0]
            if len(mine):
                mine_to = Settings(*(value[mine] for value in to))
                gain[mine] = gain_of(power[mine], noise[mine], mine_to)
        out[rows] = from_spectrum(bins * gain, audio.shape[1], sample_rate)
    rows = torch.nonzero(methods == METHODS.index("wavelet"))[:, 0]
    if len(rows):
        part = Batch(audio[rows], batch.lengths[rows])
        out[rows] = wavelet_shrink(part, params[rows], sample_rate)
    return torch.where((methods == STOP)[:, None], batch.audio, out * scale) * batch.inside()


@lru_cache
def mel_bands(sample_rate: int) -> torch.Tensor:
    """(K, F) triangles on the mel scale."""
    size = frame_size(sample_rate)
    bands = librosa.filters.mel(sr=sample_rate, n_fft=size, n_mels=BANDS, norm=None)
    bands[bands.sum(1) == 0, 0] = 1.0  # narrower than a bin: at very low rates only
    return torch.from_numpy(bands)


def decibel(power: torch.Tensor) -> torch.Tensor:
    """Power relative to the clip's mean square -> dB, at least -80."""
    return 10 * torch.log10(power.clamp(min=1e-8))


def quantile_inside(values: torch.Tensor, inside: torch.Tensor, share: float) -> torch.Tensor:
    """Quantile over the frames (B, K, T) of the clip -> (B, K)."""
    ranked = torch.where(inside[:, None], values, math.inf).sort(2).values
    place = (share * (inside.sum(1) - 1)).long()[:, None, None].expand(-1, values.shape[1], 1)
    return ranked.gather(2, place)[:, :, 0]


def features(batch: Batch, sample_rate: int) -> torch.Tensor:
    """What can be seen of the audio as it is now -> (B, len(FEATURES)), any level the same.

    Per band: mean level, spread over time, and the 10 % quietest frames as the noise floor, dB.
    """
    audio = batch.audio / level(batch)
    power = spectrum(audio, sample_rate).abs().square() / (frame_size(sample_rate) / 2)
    inside = frames_inside(batch, power.shape[2], sample_rate)
    count = inside.sum(1, keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:  # over time: (B, K, T) -> (B, K)
        return (values * inside[:, None]).sum(2) / count

    def spread(values: torch.Tensor) -> torch.Tensor:
        return (values - mean(values)[..., None]).square().mul(inside[:, None]).sum(2).div(count)

    bands = mel_bands(sample_rate) @ power / BANDS
    curves = decibel(bands)
    total = decibel(power.mean(1, keepdim=True))
    floor = quantile_inside(curves, inside, 0.1)
    loudest = audio.abs().amax(1, keepdim=True)
    crossings = (audio[:, 1:] * audio[:, :-1] < 0).sum(1, keepdim=True)
    flatness = mean(decibel(power.clamp(min=1e-8)).mean(1, keepdim=True) - total)
    columns = (
        decibel(mean(bands)),
        spread(curves).sqrt(),
        floor,
        torch.log(batch.lengths[:, None].clamp(min=1) / sample_rate),
        crossings / batch.lengths[:, None].clamp(min=1),
        decibel(loudest.square()),
        flatness,
        spread(total).sqrt(),
        decibel(mean(power.mean(1, keepdim=True))) - quantile_inside(total, inside, 0.1),
    )
    return torch.cat([column.float() for column in columns], dim=1)


def si_sdr(clean: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio (B,), dB, within -30 .. 100.

    J. Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, equation 3, means removed.
    Silence explains nothing of the reference, so it gets the lowest value, not 0 dB.
    """
    reference, estimate = clean.double(), (batch.audio / level(batch)).double()
    count = batch.lengths.clamp(min=1)

    def covariance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # what is padded is zero
        return torch.einsum("bs,bs->b", a, b) - a.sum(1) * b.sum(1) / count

    shared = covariance(reference, estimate).square() / covariance(reference, reference)
    ratio = shared / (covariance(estimate, estimate) - shared).clamp(min=0)
    value = (10 * torch.log10(ratio)).nan_to_num(nan=SILENCE_DB)  # 0 / 0: one of them is silent
    return value.clamp(SILENCE_DB, 100.0)


# C. H. Taal et al., IEEE TASLP 2011; J. Jensen, C. H. Taal, IEEE/ACM TASLP 2016. pystoi is the
# reference; the lower part is its computation for a batch, with what depends on the clean clip done
# once, because training and searches ask for it at every step.

STOI_RATE, STOI_FRAME, STOI_FFT, STOI_BANDS, SEGMENT = 10_000, 256, 512, 15, 30


def pystoi_pair(clean: np.ndarray, audio: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """STOI and ESTOI by pystoi; NaN where too little speech is left to measure (it says 1e-5)."""
    if reference_of(clean, sample_rate) is None:
        return math.nan, math.nan
    values = (pystoi.stoi(clean, audio, sample_rate, extended=more) for more in (False, True))
    return tuple(float(value) for value in values)


class Reference(NamedTuple):
    """What STOI needs of a clean clip."""

    kept: torch.Tensor  # (n,) its frames within 40 dB of the loudest
    bands: torch.Tensor  # (n - 1, 15) its third-octave amplitudes


@lru_cache
def resampler(sample_rate: int) -> tuple[torch.Tensor, int, int, int]:
    """Polyphase filters (up, 1, taps) of pystoi's resampler: weights, up, down, padding."""
    shared = math.gcd(STOI_RATE, sample_rate)
    up, down = STOI_RATE // shared, sample_rate // shared
    taps = _resample_window_oct(up, down)
    taps, half = up * taps / taps.sum(), len(taps) // 2
    reach = -(-half // up) + down  # input samples on each side
    offsets = np.arange(-reach, reach + down)
    # out[up m + r] = sum over i of in[down m + i] taps[half + down r - up i]
    place = half + down * np.arange(up)[:, None] - up * offsets
    inside = (place >= 0) & (place < len(taps))
    weights = np.where(inside, taps[np.clip(place, 0, len(taps) - 1)], 0.0)
    return torch.from_numpy(weights)[:, None], up, down, reach


def at_stoi_rate(audio: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """(B, S) -> (B, S') at 10 kHz, as pystoi does it."""
    if sample_rate == STOI_RATE:
        return audio
    weights, up, down, reach = resampler(sample_rate)
    length = -(-audio.shape[1] * up // down)
    padded = functional.pad(audio, (reach, reach + down))[:, None]
    phases = functional.conv1d(padded, weights.to(audio.dtype), stride=down)
    return phases.transpose(1, 2).reshape(len(audio), -1)[:, :length]


def stoi_window(dtype: torch.dtype) -> torch.Tensor:
    """MATLAB's Hann window: without the zeros at its ends."""
    return torch.hann_window(STOI_FRAME + 2, periodic=False, dtype=torch.float64)[1:-1].to(dtype)


def cut(audio: torch.Tensor) -> torch.Tensor:
    """(B, S) -> windowed frames (B, n, 256), half overlapped, the last complete one left out."""
    hop = STOI_FRAME // 2
    count = max(0, -(-(audio.shape[1] - STOI_FRAME) // hop))
    if count == 0:
        return audio.new_zeros(len(audio), 0, STOI_FRAME)
    return audio.unfold(1, STOI_FRAME, hop)[:, :count] * stoi_window(audio.dtype)


def third_octaves(frames: torch.Tensor) -> torch.Tensor:
    """Kept frames (B, n, 256), added up again -> amplitudes (B, n - 1, 15)."""
    hop = STOI_FRAME // 2
    blocks = functional.pad(frames[..., :hop], (0, 0, 0, 1))
    blocks = blocks + functional.pad(frames[..., hop:], (0, 0, 1, 0))
    again = torch.cat((blocks[:, :-2], blocks[:, 1:-1]), 2) * stoi_window(frames.dtype)
    power = torch.fft.rfft(again, STOI_FFT).abs().square()
    matrix = torch.from_numpy(thirdoct(STOI_RATE, STOI_FFT, STOI_BANDS, 150)[0]).to(power.dtype)
    return (power @ matrix.T).sqrt()


def reference_of(clean: np.ndarray, sample_rate: int) -> Reference | None:
    """Clean clip (S,) -> what STOI needs of it, or None where its speech is too short (0.4 s)."""
    frames = cut(at_stoi_rate(torch.from_numpy(np.asarray(clean, np.float64))[None], sample_rate))
    energy = 20 * torch.log10(frames.norm(dim=2)[0] + np.finfo(float).eps)
    kept = torch.nonzero(energy > energy.amax() - 40)[:, 0] if len(energy) else energy.long()
    if len(kept) - 1 < SEGMENT:
        return None
    return Reference(kept, third_octaves(frames[:, kept])[0].float())


def unit(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Mean removed and norm 1 along a dimension; zero where nothing varies."""
    values = values - values.mean(dim, keepdim=True)
    return values * values.square().sum(dim, keepdim=True).clamp(min=1e-24).rsqrt()


def correlations(x: torch.Tensor, y: torch.Tensor, every: int) -> tuple[float, float]:
    """STOI and ESTOI of the amplitudes (n, 15) of a clean clip and of what became of it."""
    # (15, 30, M): sums over bands or over a segment's frames then run along contiguous memory.
    x, y = (bands.T.unfold(1, SEGMENT, every).transpose(1, 2).contiguous() for bands in (x, y))
    rows, power = unit(x, 1), x.square().sum(1, keepdim=True)
    scale = (power / y.square().sum(1, keepdim=True).clamp(min=1e-24)).sqrt()
    clipped = (y * scale).minimum(x * (1 + 10 ** (15 / 20)))
    plain, count = (rows * unit(clipped, 1)).sum(), STOI_BANDS * x.shape[2]
    extended = (unit(rows, 0) * unit(unit(y, 1), 0)).sum()
    return float(plain) / count, float(extended) / (SEGMENT * x.shape[2])


def stoi_pair(
    references: list[Reference], batch: Batch, sample_rate: int, every: int = 1
) -> torch.Tensor:
    """STOI and ESTOI (B, 2) of a batch against its references.

    `every` > 1 takes every so many of the segments, which overlap by 29 of 30 frames anyway.
    """
    audio = batch.audio / level(batch)
    frames = cut(at_stoi_rate(audio, sample_rate))
    values = []  # clip by clip: its segments then fit the processor's cache
    for reference, own in zip(references, frames, strict=True):
        heard = third_octaves(own[None, reference.kept])[0]
        values.append(correlations(reference.bands, heard, every))
    return torch.tensor(values)
