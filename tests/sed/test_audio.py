"""The one reader of recordings: spans, ends that come too early, headers that are wrong, rates."""

import struct

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sed.audio import AudioFile, fit_length, read_audio, read_samples, resample

RATE = 8_000


def noise(num_samples, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, (num_samples, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """1.03 s of stereo noise: file and samples."""
    path, wav = tmp_path_factory.mktemp("audio") / "a.wav", noise(8240, 2)
    soundfile.write(path, wav, RATE, subtype="FLOAT")
    return path, wav


def test_all_channels_and_their_mix(stereo):
    path, wav = stereo
    found, rate = read_samples(path)
    assert rate == RATE and np.array_equal(found, wav)
    assert np.array_equal(read_audio(path)[0], wav.mean(axis=1))
    with AudioFile(path) as audio:
        assert audio.duration_s == 1.03 and not audio.truncated


@given(st.lists(st.tuples(st.floats(0, 0.4), st.floats(0.01, 0.8)), min_size=1, max_size=8))
def test_every_span_of_a_file(stereo, steps):
    path, wav = stereo
    start = 0.0
    with AudioFile(path) as audio:
        for step, length in steps:
            start = min(start + step, 1.0)
            first, last = round(start * RATE), round((start + length) * RATE)
            expected = fit_length(wav[first:], last - first)
            assert np.array_equal(audio.span(start, start + length), expected)


# ---------------------------------------------------------------------------- headers


def cut(path, samples_left, width):
    """Take samples from the end of a file, and leave its header alone."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - width * (RATE - samples_left)])


@pytest.mark.parametrize(
    ("kind", "subtype", "width"),
    [("WAV", "PCM_16", 2), ("WAV", "FLOAT", 4), ("AIFF", "PCM_16", 2), ("RF64", "PCM_16", 2)],
)
def test_a_header_that_promises_more_than_there_is(tmp_path, kind, subtype, width):
    path = tmp_path / "a"
    soundfile.write(path, noise(RATE), RATE, subtype, format=kind)
    with AudioFile(path) as audio:
        assert not audio.truncated
    cut(path, round(0.95 * RATE), width)
    with AudioFile(path) as audio:
        assert audio.truncated and audio.duration_s == pytest.approx(0.95, abs=0.01)
        assert len(audio.read(audio.num_samples)) == audio.num_samples
    soundfile.write(path, noise(RATE), RATE, subtype, format=kind)
    cut(path, RATE // 2, width)
    with pytest.raises(ValueError, match=r"truncated: ends at 0\.50 s, its header says"):
        AudioFile(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 16_000 + 8, 16_000 - 8])
def test_sizes_that_writers_do_not_know_or_count_wrong(tmp_path, size):
    """Streamed files say that they end never; some programs count the header twice."""
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(RATE), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    if size > 0xF0000000:
        content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    with AudioFile(path) as audio:
        assert audio.num_samples == RATE and not audio.truncated


def test_an_end_that_comes_early_is_found_when_it_is_read(stereo):
    """As in an MP3 whose header is off."""
    path, wav = stereo
    with AudioFile(path) as audio:
        audio.num_samples = 8500
        assert np.array_equal(audio.span(0, 1.2), fit_length(wav, 9600))
        assert audio.truncated and audio.duration_s == 1.03
    with AudioFile(path) as audio:
        audio.num_samples = 16_000
        with pytest.raises(ValueError, match=r"ends at 1\.03 s, its header says 2\.00 s"):
            audio.span(0, 2)


@pytest.mark.parametrize(
    ("values", "message"), [([], "no samples"), ([0, np.nan], "not finite"), (None, "cannot be")]
)
def test_what_is_no_recording(tmp_path, values, message):
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    if values is not None:
        soundfile.write(path, np.array(values, np.float32), RATE, "FLOAT")
    with pytest.raises(ValueError, match=message):
        read_samples(path)


# ---------------------------------------------------------------------------- sample rates


@pytest.mark.parametrize("rates", [(44_100, 32_000), (16_000, 32_000), (48_000, 16_000)])
@pytest.mark.parametrize("num_samples", [7, 12_345])
def test_resampling_is_that_of_librosa(rates, num_samples):
    wav = noise(num_samples, 2)
    found = resample(wav, *rates)
    for channel in range(2):
        mono = wav[:, channel]
        expected = librosa.resample(mono, orig_sr=rates[0], target_sr=rates[1])
        assert np.array_equal(resample(mono, *rates), expected)
        assert np.array_equal(found[:, channel], expected)
    assert resample(wav, RATE, RATE) is wav
