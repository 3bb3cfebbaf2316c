"""Recordings: opened with care, read once from front to back, held against what they claim.

Reads:  wav, flac, ogg, mp3 and whatever else libsndfile knows
Writes: nothing
Shapes: S samples, C channels
Next:   scorers.py
"""

import hashlib
from pathlib import Path

import numpy as np
import soundfile

from core.errors import InputError
from core.stored import regular

BLOCK = 1 << 22  # samples that memory is taken for at once, whatever a header claims
# Silence packs best: a FLAC frame of 4,608 samples takes 10 bytes, an Opus packet of 960 takes 3.
MOST_PER_BYTE = 1_000  # samples of a channel
FLAC_TYPES = {"PCM_16": "int16", "PCM_24": "int32"}  # as they are read; 24 bits are the upper ones
# RFC 9639, 9.1.2: sample rates by their code in the header of a frame, from code 1 on
FLAC_RATES = (88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FLAC_RATES += (96_000,)


class CheckedAudio:
    """An open recording. ValueError says what is wrong with it, here and while reading.

    A FLAC file carries the MD5 of its samples, which libsndfile does not look at: they are compared
    where the file is read to its end.
    """

    def __init__(self, path: Path) -> None:
        try:
            size = regular(path).st_size
            self.stream = soundfile.SoundFile(path)
        except InputError as error:
            raise ValueError(str(error).removeprefix(f"{path}: ")) from None
        except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            raise ValueError(f"cannot be read ({error})") from None
        self.frames, self.samplerate = self.stream.frames, self.stream.samplerate
        self.at, self.md5 = 0, hashlib.md5(usedforsecurity=False)
        self.dtype, self.expected = "float32", b""
        try:
            if self.frames >= 2**62:  # how libsndfile says that it does not know
                raise ValueError("its header does not say how long it is; convert it once")
            if self.frames > MOST_PER_BYTE * size:
                claims = f"its header claims {self.frames:,} samples"
                raise ValueError(f"{claims}, which {size:,} bytes cannot hold")
            if self.stream.format == "FLAC" and self.stream.subtype in FLAC_TYPES:
                self._look_into_flac(path)
        except ValueError:
            self.close()
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
        if 1 <= code <= len(FLAC_RATES) and FLAC_RATES[code - 1] != self.samplerate:
            rates = f"{self.samplerate} Hz, its frames {FLAC_RATES[code - 1]} Hz"
            raise ValueError(f"its header claims {rates}")
        if any(md5):
            self.dtype, self.expected = FLAC_TYPES[self.stream.subtype], md5

    def read(self, count: int = -1) -> np.ndarray:
        """The next samples (S, C), float32, all by default; fewer where a damaged file ends early.

        After a shorter read the recording is at its end.
        """
        left = self.frames - self.at
        left = left if count < 0 else min(count, left)
        blocks = [np.zeros((0, self.stream.channels), np.float32)]
        while left > 0:
            block = self._read_block(min(left, max(1, BLOCK // self.stream.channels)))
            self.at, left = self.at + len(block), left - len(block)
            blocks.append(block)
            if not len(block):
                if self.expected:
                    raise ValueError(f"ends at {self.at:,} of {self.frames:,} samples")
                break
        if self.expected and self.at == self.frames and self.md5.digest() != self.expected:
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

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def __enter__(self) -> "CheckedAudio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_samples(path: Path) -> tuple[np.ndarray, int]:
    """All samples (S, C) float32 of a recording, finite, and its rate. ValueError as above."""
    with CheckedAudio(path) as recording:
        wav = recording.read()
    if not len(wav) or not np.isfinite(wav).all():
        raise ValueError("samples are not finite" if len(wav) else "no samples")
    if len(wav) < recording.frames and path.suffix.lower() != ".mp3":  # whose length is estimated
        raise ValueError(f"ends at {len(wav):,} of {recording.frames:,} samples")
    return wav, recording.samplerate
