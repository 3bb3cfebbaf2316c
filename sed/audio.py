"""Recordings: opened with care, read once from front to back, held against what they claim.

Reads:  wav, flac, ogg, mp3 and whatever else libsndfile knows
Shapes: S samples, C channels
"""

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

from core.errors import InputError
from core.stored import regular

TRUNCATED = "audio ends before its header says"
SHORT_AUDIO = 0.1  # share of a recording that may be missing at its end
# libsndfile's own words (wav.c, aiff.c, w64.c, au.c) for a size in the header that is not the
# file's; what lies within SLACK are writers that count the header wrong.
PROMISED = r"(?mi)^ *(?:RIFF|Riff size|FORM|Data Size) *: (\d+) \(should be (\d+)\)"
SLACK = 64  # bytes
BLOCK = 1 << 22  # samples that memory is taken for at once, whatever a header claims
# Silence packs best: a FLAC frame of 4,608 samples takes 10 bytes, an Opus packet of 960 takes 3.
MOST_PER_BYTE = 1_000  # samples of a channel
FLAC_TYPES = {"PCM_16": "int16", "PCM_24": "int32"}  # as they are read; 24 bits are the upper ones
# RFC 9639, 9.1.2: sample rates by their code in the header of a frame, from code 1 on
FLAC_RATES = (88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FLAC_RATES += (96_000,)


class AudioFile:
    """An open recording, or the bytes of one, read from front to back. ValueError says what is
    wrong with it, here and while reading.

    A FLAC file carries the MD5 of its samples, which libsndfile does not look at: they are compared
    where the file is read to its end. `truncated`: the header promises more than there is; known
    when the file is opened (wav, aiff) or when its end was read (others).
    """

    def __init__(self, path: Path | bytes) -> None:
        try:
            in_memory = isinstance(path, bytes)
            size = len(path) if in_memory else regular(path).st_size
            self.stream = soundfile.SoundFile(io.BytesIO(path) if in_memory else path)
        except InputError as error:
            raise ValueError(str(error).removeprefix(f"{path}: ")) from None
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise ValueError(f"cannot be read ({error})") from None
        self.num_samples, self.sample_rate = self.stream.frames, self.stream.samplerate
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.dtype, self.expected = "float32", b""
        self.truncated, self.taken = False, 0  # samples that were read
        self.at, self.held = 0, np.zeros((0, self.stream.channels), np.float32)  # see `span`
        try:
            if self.num_samples == 0:
                raise ValueError("no samples")
            if self.num_samples >= 2**62:  # how libsndfile says that it does not know
                raise ValueError("its header does not say how long it is; convert it once")
            if self.num_samples > MOST_PER_BYTE * size:
                claims = f"its header claims {self.num_samples:,} samples"
                raise ValueError(f"{claims}, which {size:,} bytes cannot hold")
            for promised, there in re.findall(PROMISED, self.stream.extra_info):
                if int(promised) > int(there) + SLACK:
                    self._ends_at(self.num_samples, self.num_samples * int(promised) / int(there))
            flac = self.stream.format == "FLAC" and self.stream.subtype in FLAC_TYPES
            if flac and not in_memory:
                self._look_into_flac(path)
        except ValueError:
            self.stream.close()
            raise

    def _look_into_flac(self, path: Path) -> None:
        """Note the MD5 of all samples. ValueError where stream and first frame differ in rate."""
        with open(path, "rb") as stream:
            if stream.read(4) != b"fLaC":  # another tag before it
                return
            # RFC 9639, 8.1 and 8.2: blocks of metadata, the last one marked, before the frames; the
            # first one ends with the MD5, which is 0 where the writer did not know it.
            last, md5 = False, b""
            while not last and len(head := stream.read(4)) == 4:
                last, block = head[0] >= 128, stream.read(int.from_bytes(head[1:]))
                md5 = md5 or block[18:34]
            frame = stream.read(4)
        code = frame[2] & 15 if len(frame) == 4 and frame[0] == 255 else 0
        if 1 <= code <= len(FLAC_RATES) and FLAC_RATES[code - 1] != self.sample_rate:
            rates = f"{self.sample_rate} Hz, its frames {FLAC_RATES[code - 1]} Hz"
            raise ValueError(f"its header claims {rates}")
        if any(md5):
            self.dtype, self.expected = FLAC_TYPES[self.stream.subtype], md5

    @property
    def duration_s(self) -> float:
        """Length in seconds, as far as it is known by now."""
        return self.num_samples / self.sample_rate

    def _ends_at(self, num_samples: int, promised: float) -> None:
        """Take the end that was found for the end; ValueError where it is not near the promise."""
        if num_samples < (1 - SHORT_AUDIO) * promised or self.expected:
            ends, should = (n / self.sample_rate for n in (num_samples, promised))
            raise ValueError(f"truncated: ends at {ends:.2f} s, its header says {should:.2f} s")
        self.num_samples, self.truncated = num_samples, True

    def read(self, num_samples: int | None = None) -> np.ndarray:
        """The next samples (S, C), float32, all by default; fewer where the file ends early.

        After a shorter read the recording is at its end.
        """
        left = self.num_samples - self.taken
        left = left if num_samples is None else min(num_samples, left)
        blocks = [np.zeros((0, self.stream.channels), np.float32)]
        while left > 0:
            block = self._read_block(min(left, max(1, BLOCK // self.stream.channels)))
            if not len(block):
                self._ends_at(self.taken, self.num_samples)
                break
            if not np.isfinite(block).all():
                raise ValueError("samples are not finite")
            self.taken, left = self.taken + len(block), left - len(block)
            blocks.append(block)
        if self.expected and self.taken == self.num_samples and self.md5.digest() != self.expected:
            raise ValueError("damaged: its samples do not match its MD5")
        return blocks[1] if len(blocks) == 2 else np.concatenate(blocks)

    def _read_block(self, count: int) -> np.ndarray:
        """Up to so many samples (S, C), float32, from 32-bit or shorter ones without rounding."""
        try:
            wav = self.stream.read(count, dtype=self.dtype, always_2d=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot be read ({error})") from None
        if self.dtype == "float32":
            return wav
        upper = wav.astype(f"<i{wav.itemsize}").view(np.uint8)  # 24 bits: without the lowest byte
        self.md5.update(upper if self.dtype == "int16" else upper.reshape(-1, 4)[:, 1:].tobytes())
        return wav.astype(np.float32) * np.float32(2.0 ** (1 - 8 * wav.itemsize))

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


def audio_seconds(path: Path | bytes) -> float:
    """Length of a recording as its header says it. ValueError says what is wrong with it."""
    with AudioFile(path) as audio:
        return audio.duration_s


def wav_from(wav: np.ndarray, sample_rate: int, start_s: float) -> np.ndarray:
    """Samples (S,) or (S, C) from `start_s` on; zeros first where that is before the recording."""
    start = round(start_s * sample_rate)
    return wav[start:] if start >= 0 else np.pad(wav, [(-start, 0), *[(0, 0)] * (wav.ndim - 1)])


def fit_length(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut (a view), or pad with zeros at the end: (S,) or (S, C)."""
    missing = max(0, num_samples - len(wav))
    if not missing:
        return wav[:num_samples]
    return np.pad(wav[:num_samples], [(0, missing), *[(0, 0)] * (wav.ndim - 1)])


def resample(wav: np.ndarray, rate: int, target: int) -> np.ndarray:
    """(S,) or (S, C) at another sample rate, ceil(S * target / rate) samples.

    As `librosa.resample` and `librosa.load` do it by default: SoX resampler, high quality.
    """
    if rate == target:
        return wav
    return fit_length(soxr.resample(wav, rate, target, "HQ"), -(-len(wav) * target // rate))
