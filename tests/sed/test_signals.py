"""The six signals against slow versions written from the specification; centred filters."""

import math

import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines import csebbs
from baselines.tuned_rules import MEDIAN_S
from config import PreprocessConfig, Signal
from sed import signals
from sed.signals import SIGNALS, compute_signals, filter_frames, loudness, loudness_on_grid, min_max

# ---------------------------------------------------------------------------- slow versions


def mm(x, eps=1e-8):
    low, high = min(x), max(x)
    return [(v - low) / (high - low + eps) for v in x]


def clip95(x):
    ordered, at = sorted(x), 0.95 * (len(x) - 1)
    low = math.floor(at)
    high = min(low + 1, len(x) - 1)
    top = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return [min(v, top) for v in x]


def mirrored(x, i):
    """scipy's default border: d c b a | a b c d | d c b a."""
    i %= 2 * len(x)
    return x[i] if i < len(x) else x[2 * len(x) - 1 - i]


def median(x, size):
    """scipy's windows of even size reach one frame further to the left; of the two middle values
    the upper one counts."""
    first = -(size // 2)
    return [
        sorted(mirrored(x, i + k) for k in range(first, first + size))[size // 2]
        for i in range(len(x))
    ]


def gauss(x, sigma):
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-reach, reach + 1)]
    return [
        sum(w * mirrored(x, i + k - reach) for k, w in enumerate(weights)) / sum(weights)
        for i in range(len(x))
    ]


def slow_signals(rms, score, fusion="product", flat=0.03, alpha=0.7):
    """Specification, section 2, on frames of 20 ms -> d_adj, prob, t_base."""
    s1 = median(score, 5)
    s_med, s_pow = median(s1, 8), [v**2.2 for v in s1]
    mix = [0.7 * a + 0.3 * b for a, b in zip(mm(s_med), mm(s_pow), strict=True)]
    d_adj = mm(clip95(mix))
    if max(score) - min(score) < flat:
        ordered, at = sorted(rms), 0.1 * (len(rms) - 1)
        low = math.floor(at)
        p10 = ordered[low] + (at - low) * (ordered[min(low + 1, len(rms) - 1)] - ordered[low])
        mean = sum(rms) / len(rms)
        std = math.sqrt(sum((v - mean) ** 2 for v in rms) / len(rms))
        return d_adj, list(rms), [min(max(min(p10, mean - std), 0), 1)] * len(rms)
    fused = []
    for r, d in zip(rms, d_adj, strict=True):
        harmonic = 2 / (1 / r + 1 / d) if r > 0 and d > 0 else 0
        fused.append(r * d if fusion == "product" else harmonic)
    prob = gauss(mm(clip95(fused)), 2)
    background = gauss(median(rms, 200), 3)
    away = gauss([(1 - d) ** 1.2 for d in d_adj], 3)
    return d_adj, prob, mm([alpha * b * w for b, w in zip(background, away, strict=True)])


def slow_loudness(wav, window, hop):
    """(S, C), centred windows, zeros outside: mm(clip95(log(1 + RMS)))."""
    levels, size = [], window * wav.shape[1]
    for centre in range(0, len(wav) + 1, hop):
        inside = wav[max(0, centre - window // 2) : centre + window // 2]
        levels.append(math.log1p(math.sqrt(sum(float(v) ** 2 for v in inside.flat) / size)))
    return mm(clip95(levels))


def slow_on_grid(x, hop, num_samples, num_frames):
    """Value j is of sample j * hop; frame t looks at t / (T - 1) of all samples."""
    found = []
    for t in range(num_frames):
        at = t / max(1, num_frames - 1) * num_samples / hop
        low = min(math.floor(at), len(x) - 1)
        high = min(low + 1, len(x) - 1)
        found.append(x[low] + (at - low) * (x[high] - x[low]))
    return np.array(found)


def random_pair(seed, num_frames=230):
    """Loudness (0..1) and score (0.05..0.9) of T frames, with bursts and plateaus."""
    rng = np.random.default_rng(seed)
    rms = rng.random(num_frames) * np.repeat(rng.random(num_frames // 10 + 1), 10)[:num_frames]
    score = np.repeat(rng.random(num_frames // 15 + 1), 15)[:num_frames] * rng.random(num_frames)
    score[20:40], score[60:80] = 0, 1
    return min_max(rms), (0.05 + 0.85 * score).astype(np.float32)


# ---------------------------------------------------------------------------- formulas

VALUES = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=40)


@given(VALUES)
def test_min_max_and_percentile(x):
    assert min_max(np.array(x)) == pytest.approx(mm(x))
    assert signals.clip_percentile(np.array(x), 95) == pytest.approx(clip95(x))


def test_a_constant_becomes_zero():
    assert min_max(np.full(5, 0.7)).tolist() == [0] * 5


@pytest.mark.parametrize("fusion", ["product", "harmonic"])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 60, 230])
def test_signals_against_the_specification(fusion, num_frames):
    rms, score = random_pair(num_frames, num_frames)
    signal = Signal(fusion=fusion)
    values = compute_signals(rms, score, 0.02, signal)
    if num_frames == 1:  # a single frame has no contrast at all
        assert values["prob"] == pytest.approx(rms)
        return
    d_adj, prob, t_base = slow_signals(rms.tolist(), score.tolist(), fusion)
    assert values["rms"] == pytest.approx(rms, abs=1e-6)
    assert np.array_equal(values["d_raw"], score)
    assert values["d_adj"] == pytest.approx(d_adj, abs=1e-5)
    assert values["prob"] == pytest.approx(prob, abs=1e-5)
    assert values["t_base"] == pytest.approx(t_base, abs=1e-5)


@pytest.mark.parametrize("spread", [0.0, 0.029, 0.031])
def test_flat_score_falls_back_on_loudness(spread):
    rms, _ = random_pair(3)
    rms = 0.5 + 0.5 * rms if spread else rms
    score = np.linspace(0.4, 0.4 + spread, len(rms))
    values = compute_signals(rms, score, 0.02, Signal())
    _, prob, t_base = slow_signals(rms.tolist(), score.tolist())
    assert values["prob"] == pytest.approx(prob, abs=1e-5)
    assert values["t_base"] == pytest.approx(t_base, abs=1e-5)
    assert (values["prob"] == values["rms"]).all() == (spread < 0.03)
    off = compute_signals(rms, score, 0.02, Signal(flat_fallback=False))
    _, prob, t_base = slow_signals(rms.tolist(), score.tolist(), flat=-1)
    assert off["prob"] == pytest.approx(prob, abs=1e-5)
    assert off["t_base"] == pytest.approx(t_base, abs=1e-5)


def test_alpha_cancels():
    rms, score = (x.tolist() for x in random_pair(1))
    with_alpha = slow_signals(rms, score, alpha=0.7)[2]
    assert with_alpha == pytest.approx(slow_signals(rms, score, alpha=1.0)[2], abs=1e-6)


def test_constants_on_frames_of_20_ms(monkeypatch):
    seen = {"median_filter": [], "gaussian_filter1d": []}
    for name in seen:
        real = getattr(signals, name)

        def spy(x, size, name=name, real=real):
            seen[name].append(size)
            return real(x, size)

        monkeypatch.setattr(signals, name, spy)
    rms, score = random_pair(0)
    compute_signals(rms, score, 0.02, Signal())
    assert sorted(seen["median_filter"]) == [5, 8, 200]
    assert sorted(seen["gaussian_filter1d"]) == pytest.approx([2, 3, 3], abs=1e-12)
    for sizes in seen.values():
        sizes.clear()
    compute_signals(rms, score, 0.064, Signal())
    assert sorted(seen["median_filter"]) == [1, 3, 63]
    assert sorted(seen["gaussian_filter1d"]) == pytest.approx([0.625, 0.9375, 0.9375])
    compute_signals(rms, score, 10.0, Signal())  # no window is shorter than a frame
    assert min(seen["median_filter"]) == 1


@given(VALUES, VALUES, st.sampled_from(["product", "harmonic"]), st.booleans())
def test_signals_are_float32_within_0_and_1_and_decided_strictly(rms, score, fusion, fallback):
    size = min(len(rms), len(score))
    signal = Signal(fusion=fusion, flat_fallback=fallback)
    values = compute_signals(np.array(rms[:size]), np.array(score[:size]), 0.02, signal)
    assert set(values) == set(SIGNALS)
    for name, array in values.items():
        assert array.dtype == np.float32 and array.shape == (size,), name
        assert (array >= 0).all() and (array <= 1).all(), name
    assert np.array_equal(values["binary"] == 1, values["prob"] > values["t_base"])
    assert set(values["binary"]) <= {0.0, 1.0}


def test_equal_is_off():
    """Silence under a flat score: probability and threshold are both 0."""
    values = compute_signals(np.zeros(10), np.full(10, 0.5), 0.02, Signal())
    assert (values["prob"] == values["t_base"]).all() and not values["binary"].any()


# ---------------------------------------------------------------------------- centred filters


@given(st.floats(0, 10), st.floats(1e-3, 2), st.sampled_from([1, 3]))
def test_filters_have_the_nearest_centred_length(duration_s, frame_s, least):
    length = round(duration_s / frame_s, 6)
    odd, even = (
        filter_frames(duration_s, frame_s, least),
        filter_frames(duration_s, frame_s, 2, False),
    )
    assert odd % 2 == 1 and (odd == least or abs(odd - length) <= 1)
    assert even % 2 == 0 and (even == 2 or abs(even - length) <= 1)
    assert isinstance(odd, int) and isinstance(even, int)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([1, 3, 5, 17, 63, 201]))
def test_median_filters_are_mirrored_at_the_ends(x, size):
    """Also where they reach further than there are frames."""
    assert signals.median(np.array(x), size).tolist() == median(x, size)
    assert signals.median(np.array([x, x]), size).tolist() == [median(x, size)] * 2


def test_the_slides_lengths_stay_on_their_grid_only():
    """5, 8 and 200 frames of 20 ms; another length at 20 ms, or these on another grid, is odd."""
    lengths = [signals.slides_frames(s, 0.02) for s in (0.1, 0.16, 4.0, 0.2, 2.0)]
    assert lengths == [5, 8, 200, 9, 101]
    assert signals.slides_frames(0.16, 9.98 / 499) == 8  # as scores of three decimals give it
    for frame_s in (0.01, 0.016, 0.0201, 0.032, 0.04, 0.064):
        assert all(signals.slides_frames(s, frame_s) % 2 for s in (0.1, 0.16, 4.0))


GRIDS_S = (0.01, 0.016, 0.032, 0.04, 0.064)


@pytest.mark.parametrize("frame_s", GRIDS_S)
@pytest.mark.parametrize("fusion", ["product", "harmonic"])
@pytest.mark.parametrize("audio", [True, False])
@given(st.integers(0, 1000), st.integers(1, 400))
def test_time_reversed_input_gives_time_reversed_signals(frame_s, fusion, audio, seed, num_frames):
    rms, score = (x[:num_frames] for x in random_pair(seed, 400))
    rms, signal = rms if audio else None, Signal(fusion=fusion, flat_fallback=False)
    there = compute_signals(rms, score, frame_s, signal)
    back = compute_signals(rms if rms is None else rms[::-1], score[::-1], frame_s, signal)
    for name in ("rms", "d_raw", "d_adj", "prob", "t_base"):
        assert back[name][::-1] == pytest.approx(there[name], abs=2e-6), name
    clear = np.abs(there["prob"] - there["t_base"]) > 1e-5
    assert (back["binary"][::-1] == there["binary"])[clear].all()
    tags = [signals.tag_of(x[None], frame_s, signal) for x in (score, score[::-1])]
    assert tags[0] == tags[1]


@pytest.mark.parametrize("frame_s", [*GRIDS_S, 0.02])
@given(st.integers(0, 1000), st.integers(1, 200))
def test_time_reversed_scores_give_the_rules_reversed_signals(frame_s, seed, num_frames):
    """Median filters of every length, and the boxes of change detection."""
    score = np.random.default_rng(seed).random(num_frames)
    for seconds in MEDIAN_S:
        size = filter_frames(seconds, frame_s)
        assert (signals.median(score[::-1], size)[::-1] == signals.median(score, size)).all()
    for filter_s in csebbs.FILTERS_S:
        for by, limits in csebbs.MERGE.items():
            setting = {"filter_s": filter_s, "by": by, "limit": limits[0]}
            there = csebbs.boxes_of(score, frame_s, setting)
            back = csebbs.boxes_of(score[::-1], frame_s, setting)
            assert (num_frames - back.end[::-1]).tolist() == there.begin.tolist()
            assert (num_frames - back.begin[::-1]).tolist() == there.end.tolist()
            assert back.confidence[::-1] == pytest.approx(there.confidence)


@pytest.mark.parametrize("frame_s", [*GRIDS_S, 0.02])
def test_one_frame_is_no_sound(frame_s):
    """The clip-level score, which the tag gate reads, takes a single high frame away; three stay.

    At 10 ms four frames are needed: the filter spans 0.1 s there.
    """
    values = np.full((2, round(10 / frame_s)), 0.08)
    values[0, 40] = 0.85
    values[1, 40:46] = 0.85
    assert signals.tag_of(values, frame_s, Signal()).tolist() == [0.08, 0.85]


# ---------------------------------------------------------------------------- loudness


@pytest.mark.parametrize(
    ("sample_rate", "window", "hop"), [(32_000, 2048, 512), (16_000, 1024, 256)]
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_loudness_is_centred_log_rms(sample_rate, window, hop, channels):
    rng = np.random.default_rng(0)
    wav = rng.normal(0, 0.2, (sample_rate // 4 + 100, channels))
    wav = (wav * np.linspace(0, 1, len(wav))[:, None]).astype(np.float32)
    found = loudness(wav, sample_rate, Signal())
    assert found == pytest.approx(slow_loudness(wav, window, hop), abs=1e-4)
    assert len(found) == 1 + len(wav) // hop
    if channels == 1:
        assert (loudness(wav[:, 0], sample_rate, Signal()) == found).all()


def test_loudness_is_that_of_librosa():
    wav = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    for rate in (16_000, 22_050, 44_100):
        size, hop = round(0.064 * rate), round(0.016 * rate)
        rms = librosa.feature.rms(y=wav, frame_length=size, hop_length=hop)[0].astype(np.float64)
        level = min_max(signals.clip_percentile(np.log1p(rms), 95))
        assert (loudness(wav, rate, Signal()) == level).all()


def test_loudness_of_silence_and_of_a_few_samples():
    assert not loudness(np.zeros(16_000, np.float32), 16_000, Signal()).any()
    assert np.isfinite(loudness(np.ones(3, np.float32), 16_000, Signal())).all()
    assert not loudness_on_grid(np.zeros((1, 1), np.float32), 16_000, 1e-6, 1, Signal()).any()


def burst(rate, at_s, seconds=10.0):
    """Noise around one moment, (S, 1)."""
    time = np.arange(round(rate * seconds)) / rate
    wav = np.random.default_rng(0).normal(0, 0.1, len(time)) * (np.abs(time - at_s) < 0.1)
    return wav.astype(np.float32)[:, None]


def test_channels_in_antiphase_are_heard():
    mono = burst(16_000, 3.0)
    expected = loudness_on_grid(mono, 16_000, 10.0, 500, Signal())
    both = np.hstack([mono, -mono])
    assert (loudness_on_grid(both, 16_000, 10.0, 500, Signal()) == expected).all()
    mix = Signal(loudness="original")  # the authors' mono mix, where they cancel
    assert not loudness_on_grid(both, 16_000, 10.0, 500, mix).any()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("at_s", [0.5, 9.5])
def test_loudness_lies_at_its_own_time(rate, at_s):
    """A hop of 16 ms is no whole number of samples at 44.1 kHz; that may not stretch time."""
    signal = Signal(clip_percentile=100)
    found = loudness_on_grid(burst(rate, at_s), rate, 10.0, 10_001, signal)
    centre = (found * np.linspace(0, 10, 10_001)).sum() / found.sum()
    assert centre == pytest.approx(at_s, abs=0.004)


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100])
@pytest.mark.parametrize("seconds", [10.0, 4.99])
def test_the_original_hears_a_mono_mix_at_32_khz(rate, seconds):
    """librosa.load, librosa.feature.rms, numpy.interp, as the authors' program does it."""
    signal = PreprocessConfig.with_preset("original").signal
    num_samples = round(seconds * rate)
    wav = np.random.default_rng(0).normal(0, 0.1, (num_samples, 2)).astype(np.float32)
    wav *= np.linspace(0, 1, num_samples, dtype=np.float32)[:, None]
    mono = librosa.to_mono(wav.T)
    resampled = librosa.resample(mono, orig_sr=rate, target_sr=32_000)
    rms = librosa.feature.rms(y=resampled, frame_length=2048, hop_length=512)[0]
    level = np.array(mm(clip95(np.log1p(rms.astype(np.float64)).tolist())))
    expected = np.interp(np.linspace(0, 1, 500), np.linspace(0, 1, len(level)), level)
    found = loudness_on_grid(wav, rate, seconds, 500, signal)
    assert found == pytest.approx(expected, abs=1e-6)
    usual = np.abs(loudness_on_grid(mono, rate, seconds, 500, Signal()) - expected).max()
    assert usual > 1e-3 or (rate != 44_100 and seconds == 10.0)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(16_000, 50), (2_500, 50), (12_800, 50), (300, 4), (1280, 1)]
)
def test_interpolation_puts_first_on_first_and_the_end_on_the_end(num_samples, num_frames):
    x = np.random.default_rng(0).random(1 + num_samples // 256)
    found = signals.on_grid(x, 256 / num_samples, num_frames)
    assert len(found) == num_frames and found[0] == x[0]
    assert found == pytest.approx(slow_on_grid(x, 256, num_samples, num_frames))
    if num_samples % 256 == 0 and num_frames > 1:
        assert found[-1] == pytest.approx(x[-1])


# ---------------------------------------------------------------------------- without audio


@given(VALUES)
def test_without_audio_the_score_decides_alone(score):
    score = np.array(score)
    values = compute_signals(None, score, 0.064, Signal())
    assert (values["rms"] == 1).all()
    off = compute_signals(np.ones(len(score)), score, 0.064, Signal(flat_fallback=False))
    assert all(np.array_equal(values[name], off[name]) for name in SIGNALS)


def test_a_score_of_little_contrast_is_on_without_audio():
    """Its pair was never on while loudness 1 stood in for it."""
    score = np.full(156, 0.001)
    score[40:60] = 0.02
    values = compute_signals(None, score, 0.064, Signal())
    assert values["binary"][42:58].all() and not values["binary"][80:].any()
    assert signals.falls_back(np.ones(156), score, Signal())
    assert not signals.falls_back(None, score, Signal())
    assert not signals.falls_back(np.ones(156), score, Signal(flat_fallback=False))
