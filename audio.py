"""Recordings: opened, checked, read once from front to back; all channels, at any sample rate.

Reads:  wav, flac, ogg, mp3 and whatever else libsndfile knows
Writes: nothing
Shapes: S samples, C channels
Next:   signals.py
"""

import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

TRUNCATED = "audio ends before its header says"
SHORT_AUDIO = 0.1  # share of a recording that may be missing at its end
# libsndfile's own words (wav.c, aiff.c, w64.c, au.c) for a size in the header that is not the
# file's; what lies within SLACK are writers that count the header wrong.
PROMISED = r"(?mi)^ *(?:RIFF|Riff size|FORM|Data Size) *: (\d+) \(should be (\d+)\)"
SLACK = 64  # bytes


class AudioFile:
    """An open audio file, read from front to back. ValueError says what is wrong with it.

    `truncated`: the header promises more than there is; known when the file is opened (wav, aiff)
    or when its end was read (others).
    """

    def __init__(self, path: Path) -> None:
        try:
            self.stream = soundfile.SoundFile(path)
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise ValueError(f"cannot be read ({error})") from None
        self.num_samples, self.sample_rate = self.stream.frames, self.stream.samplerate
        self.truncated, self.taken = False, 0  # samples that were read
        self.at, self.held = 0, np.zeros((0, self.stream.channels), np.float32)  # see `span`
        try:
            if self.num_samples == 0:
                raise ValueError("no samples")
            if self.num_samples >= 2**62:  # how libsndfile says that it does not know
                raise ValueError("its header does not say how long it is; convert it once")
            for promised, there in re.findall(PROMISED, self.stream.extra_info):
                if int(promised) > int(there) + SLACK:
                    self.ends_at(self.num_samples, self.num_samples * int(promised) / int(there))
        except ValueError:
            self.stream.close()
            raise

    @property
    def duration_s(self) -> float:
        """Length in seconds, as far as it is known by now."""
        return self.num_samples / self.sample_rate

    def ends_at(self, num_samples: int, promised: float) -> None:
        """Take the end that was found for the end; ValueError where it is not near the promise."""
        if num_samples < (1 - SHORT_AUDIO) * promised:
            ends, should = (n / self.sample_rate for n in (num_samples, promised))
            raise ValueError(f"truncated: ends at {ends:.2f} s, its header says {should:.2f} s")
        self.num_samples, self.truncated = num_samples, True

    def read(self, num_samples: int) -> np.ndarray:
        """The next samples (S, C), float32; fewer where the file ends early."""
        try:
            wav = self.stream.read(num_samples, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot be read ({error})") from None
        if not np.isfinite(wav).all():
            raise ValueError("samples are not finite")
        expected = min(num_samples, self.num_samples - self.taken)
        self.taken += len(wav)
        if len(wav) < expected:
            self.ends_at(self.taken, self.num_samples)
        return wav

    def span(self, start_s: float, stop_s: float) -> np.ndarray:
        """Samples (S, C) of a time span, which may not start before the last one did.

        Zeros follow where the file ends.
        """
        start, stop = round(start_s * self.sample_rate), round(stop_s * self.sample_rate)
        wanted = min(stop, self.num_samples) - self.at - len(self.held)
        if wanted > 0:
            self.held = np.concatenate([self.held, self.read(wanted)])
        self.held, self.at = self.held[start - self.at :], start
        return fit_length(self.held, stop - start)

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def read_samples(path: Path) -> tuple[np.ndarray, int]:
    """Audio file -> (S, C) float32 and sample rate. ValueError says what is wrong with it."""
    with AudioFile(path) as audio:
        return audio.read(audio.num_samples), audio.sample_rate


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """`read_samples`, mixed to mono: (S,)."""
    wav, sample_rate = read_samples(path)
    return wav.mean(axis=1), sample_rate


def fit_length(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut, or pad with zeros at the end: (S,) or (S, C)."""
    missing = max(0, num_samples - len(wav))
    return np.pad(wav[:num_samples], [(0, missing), *[(0, 0)] * (wav.ndim - 1)])


def resample(wav: np.ndarray, rate: int, target: int) -> np.ndarray:
    """(S,) or (S, C) at another sample rate, ceil(S * target / rate) samples.

    As `librosa.resample` and `librosa.load` do it by default: SoX resampler, high quality.
    """
    if rate == target:
        return wav
    return fit_length(soxr.resample(wav, rate, target, "HQ"), -(-len(wav) * target // rate))
