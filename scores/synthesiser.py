"""Ten built-in sounds, synthesised from a seed.

Shapes: n samples of a sound; waves are (n,)

Every class function takes the maker's generator (what all takes of one dog share), the take's and
the number of samples, and returns a wave (n,) of any level. Maker draws come first.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

RATE = 16_000  # samples a second of everything written; the built-in sounds end at 8 kHz
LONG_S = 4.0  # a longer active part goes on and on (rain, motor): any stretch of it may play
SHORTEST_S = 0.25  # shortest event in DESED; shorter parts are repeated up to it
MAKERS = 4  # dogs, speakers, blenders ... of a class in a fold; no maker is in two folds
STREAMS = ("folds", "maker", "take", "choice", "plan", "background", "halves", "stretch")
# A new one goes to the end: the others' random numbers stay what they were.


class Habit(NamedTuple):
    """How a class occurs: share of clips, mean further events in a clip that has it, share of
    clips it fills, median and log-sigma of the other durations in seconds."""

    presence: float
    extra: float
    full: float
    median_s: float
    sigma: float


HABITS = {  # counted in DESED synthetic21_train, Alarm halfway to the validation set
    "Alarm_bell_ringing": Habit(0.15, 0.3, 0.0, 1.2, 0.8),
    "Blender": Habit(0.10, 0.03, 0.35, 2.0, 0.8),
    "Cat": Habit(0.11, 0.65, 0.0, 0.9, 0.45),
    "Dishes": Habit(0.24, 0.8, 0.0, 0.44, 0.7),
    "Dog": Habit(0.14, 0.6, 0.0, 0.58, 0.8),
    "Electric_shaver_toothbrush": Habit(0.11, 0.0, 0.69, 5.0, 0.4),
    "Frying": Habit(0.135, 0.0, 0.78, 6.5, 0.3),
    "Running_water": Habit(0.12, 0.0, 0.35, 5.5, 0.7),
    "Speech": Habit(0.92, 0.75, 0.0, 1.24, 0.75),
    "Vacuum_cleaner": Habit(0.105, 0.0, 0.8, 6.0, 0.5),
}
CLASSES_A_CLIP = 2.1  # in DESED; decides how often classes occur that are not in the table


def generator(seed: int, stream: str, *index: int) -> np.random.Generator:
    """Random numbers of one purpose and one item: the number of workers cannot change them."""
    return np.random.default_rng([seed, STREAMS.index(stream), *index])


Random = np.random.Generator


def filtered(wave: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Wave (n,) whose spectrum is multiplied by gain(hertz)."""
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return np.fft.irfft(np.fft.rfft(wave) * gain(np.maximum(hertz, 20.0)), len(wave))


def tilted(wave: np.ndarray, db_octave: float) -> np.ndarray:
    """Wave (n,) with another spectral slope; below 40 Hz nothing is left."""
    return filtered(wave, lambda f: (f > 40) * (f / 1000) ** (db_octave / 6.02))


def band(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """Wave (n,) through a soft band from `low` to `high` hertz."""
    return filtered(wave, lambda f: 1 / ((1 + (low / f) ** 4) * (1 + (f / high) ** 4)))


def resonant(wave: np.ndarray, centres: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """Wave (n,) through parallel resonances (hertz), each softer than the one below it."""
    centres, widths = np.broadcast_arrays(centres, widths)

    def gain(f: np.ndarray) -> np.ndarray:
        peaks = 1 / (1 + ((f[:, None] - centres) / (widths / 2)) ** 2)
        return peaks @ (0.7 ** np.arange(len(centres))) + 0.003

    return filtered(wave, gain)


def wander(rng: Random, n: int, rate: float, depth_db: float) -> np.ndarray:
    """Gain (n,) that drifts `rate` times a second by about `depth_db`."""
    knots = rng.normal(0, depth_db, int(n / RATE * rate) + 3)
    return 10 ** (np.interp(np.arange(n) * rate / RATE, np.arange(len(knots)), knots) / 20)


def harmonics(pitch: np.ndarray, rolloff: float) -> np.ndarray:
    """Voice source (n,) along a pitch track (n,) in hertz; harmonic k has amplitude k^-rolloff."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    count = min(40, int(7600 / pitch.max()))  # nothing above 7.6 kHz, so nothing folds back
    return sum(np.sin(k * phase) * k**-rolloff for k in range(1, count + 1))


def strikes(
    n: int, times: np.ndarray, levels: np.ndarray, partials: np.ndarray, decay_s: float
) -> np.ndarray:
    """Struck metal (n,): at each time (seconds) all partials (hertz), high ones decaying faster."""
    t = np.arange(n) / RATE
    taus = decay_s * (partials[0] / partials) ** 0.5
    ring = (np.exp(-t / taus[:, None]) * np.sin(2 * np.pi * partials[:, None] * t)).sum(axis=0)
    hits = np.zeros(n)
    hits[np.minimum((times * RATE).astype(int), n - 1)] = levels
    size = 2 * n  # twice the length: what rings past the end does not come back at the start
    return np.fft.irfft(np.fft.rfft(hits, size) * np.fft.rfft(ring, size), size)[:n]


def motor(
    maker: Random, take: Random, n: int, pitch: tuple, whine: tuple, slope: tuple, wobble: float
) -> np.ndarray:
    """Motor (n,): a buzz of `pitch` hertz, `whine` of it against noise, spectral `slope`."""
    hertz, share = maker.uniform(*pitch), maker.uniform(*whine)
    slope_db, body = maker.uniform(*slope), maker.uniform(300, 3500, 3)
    pace = 1 + take.normal(0, 0.04) + 0.01 * wobble * np.cumsum(take.normal(0, 0.002, n))
    pace = pace * (1 - take.uniform(0.1, 0.5) * np.exp(-np.arange(n) / RATE / 0.15))  # spins up
    buzz = 2 * (np.cumsum(hertz * pace) / RATE % 1) - 1
    wave = share * tilted(buzz, -1.0) / 0.6 + (1 - share) * take.normal(0, 1, n)
    wave = resonant(tilted(wave, slope_db), np.sort(body), 500.0)
    return wave * wander(take, n, take.uniform(1, 8), wobble)


def impulses(rng: Random, n: int, a_second: float) -> np.ndarray:
    """Random clicks (n,) of exponential level."""
    hits = np.zeros(n)
    count = rng.poisson(a_second * n / RATE) + 1
    hits[rng.integers(0, n, count)] = rng.exponential(1, count) * rng.choice([-1, 1], count)
    return hits


def alarm(maker: Random, take: Random, n: int) -> np.ndarray:
    """Bell, beeper or two-tone siren."""
    kind, hertz, rate = maker.integers(3), maker.uniform(600, 3200), maker.uniform(2, 9)
    ratios = np.sort(np.append(1.0, maker.uniform(1.2, 3.4, 4)))
    hertz *= 1 + take.normal(0, 0.04)
    t = np.arange(n) / RATE
    if kind == 0:
        times = np.arange(0, n / RATE, 1 / (2 * rate)) + take.uniform(0, 0.01)
        levels = take.uniform(0.5, 1, len(times))
        return strikes(n, times, levels, np.minimum(hertz * ratios, 7500), 0.25)
    gate = 0.5 + 0.5 * np.tanh(8 * np.sin(2 * np.pi * rate * t + take.uniform(0, 1)))
    if kind == 1:
        return harmonics(np.full(n, hertz), 1.2) * (0.02 + gate)
    return harmonics(hertz * (0.75 + 0.25 * gate), 2.0)


def cat(maker: Random, take: Random, n: int) -> np.ndarray:
    """A meow: pitch and mouth open and close again."""
    hertz, harsh = maker.uniform(330, 800), maker.uniform(0.05, 0.4)
    tract = maker.uniform(0.85, 1.25)
    x = np.linspace(0, 1, n)
    arch = np.sin(np.pi * x ** take.uniform(0.5, 1.2))
    shiver = 0.02 * np.sin(2 * np.pi * take.uniform(5, 9) * x * n / RATE)
    source = harmonics(hertz * (1 + take.uniform(0.05, 0.35) * arch + shiver), 1.0)
    source = source + harsh * take.normal(0, 1, n)
    closed = resonant(source, tract * np.array([600.0, 2300.0, 3600.0]), 350.0)
    opened = resonant(source, tract * np.array([1100.0, 1700.0, 3400.0]), 350.0)
    return (closed * (1 - arch) + opened * arch) * arch**0.5


def dishes(maker: Random, take: Random, n: int) -> np.ndarray:
    """Clinks: inharmonic partials, short decay, irregular."""
    hertz, decay_s = maker.uniform(700, 2600), maker.uniform(0.02, 0.12)
    ratios = np.sort(np.append(1.0, maker.uniform(1.2, 4.5, 5)))
    count = 1 + take.poisson(4 * n / RATE)
    times = np.append(0.0, take.uniform(0, n / RATE, count))
    levels = take.exponential(1, count + 1) + 0.2
    partials = np.minimum(hertz * ratios * (1 + take.normal(0, 0.05)), 7500)
    wave = strikes(n, times, levels, partials, decay_s)
    return wave + 0.3 * strikes(n, times, levels, partials * 0.37, decay_s / 2)


def dog(maker: Random, take: Random, n: int) -> np.ndarray:
    """Barks: steep start, falling pitch, rough."""
    hertz, rough = maker.uniform(250, 750), maker.uniform(0.2, 0.8)
    mouth = np.sort(maker.uniform(500, 2600, 3))
    count = max(1, round(n / RATE / take.uniform(0.2, 0.35)))
    x = np.linspace(0, count, n, endpoint=False)
    inside, bark = x % 1, x.astype(int)
    levels = take.uniform(0.5, 1, count)[bark]
    pitch = hertz * take.uniform(0.9, 1.1, count)[bark] * (1.25 - 0.5 * inside)
    envelope = np.minimum(inside / 0.06, 1) * np.exp(-inside * take.uniform(2.5, 5)) * levels
    source = harmonics(pitch, 0.8) + rough * take.normal(0, 1, n)
    return resonant(source, mouth, 400.0) * envelope


def frying(maker: Random, take: Random, n: int) -> np.ndarray:
    """Hiss with crackles."""
    low, rate, share = maker.uniform(600, 3000), maker.uniform(15, 160), maker.uniform(0.2, 2.5)
    crackle = resonant(impulses(take, n, rate), np.sort(maker.uniform(1500, 6500, 3)), 1200.0)
    hiss = band(take.normal(0, 0.02, n), low, 9000) * wander(take, n, 2, 1.5)
    return hiss / hiss.std() + share * crackle / crackle.std()


def water(maker: Random, take: Random, n: int) -> np.ndarray:
    """Stream of noise with bubbles."""
    low, high = maker.uniform(200, 1500), maker.uniform(2500, 8000)
    rate, share = maker.uniform(10, 120), maker.uniform(0.2, 2.0)
    bubbles = resonant(impulses(take, n, rate), np.sort(maker.uniform(400, 3000, 4)), 120.0)
    stream = band(take.normal(0, 1, n), low, high) * wander(take, n, take.uniform(2, 8), 1.5)
    return stream / stream.std() + share * bubbles / bubbles.std()


def speech(maker: Random, take: Random, n: int) -> np.ndarray:
    """Syllables: three vowels of one mouth, hissing consonants between them."""
    hertz, tract = maker.uniform(85, 260), maker.uniform(0.85, 1.2)
    rate, breath = maker.uniform(3, 6.5), maker.uniform(0.02, 0.3)
    count = max(1, round(rate * n / RATE))
    x = np.linspace(0, count, n, endpoint=False)
    melody = np.interp(x, np.arange(count + 1), take.normal(1, 0.1, count + 1))
    source = harmonics(hertz * melody * (1.1 - 0.2 * x / count), 0.9)
    source = source + breath * take.normal(0, 1, n)
    vowels = np.array([[300, 2250, 3000], [730, 1150, 2450], [400, 850, 2300]]) * tract
    said = take.integers(0, 3, count)
    wave = np.zeros(n)
    for v, formants in enumerate(vowels):
        weight = np.interp(x - 0.5, np.arange(count), (said == v).astype(float))
        wave += weight * resonant(source, formants, np.array([90.0, 120.0, 180.0]))
    envelope = np.sin(np.pi * (x % 1)) ** 0.6 * take.uniform(0.4, 1, count)[x.astype(int)]
    hiss = band(take.normal(0, 1, n), 2500, 7000) * np.exp(-(((x % 1) - 0.08) ** 2) / 0.004)
    return wave / wave.std() * envelope + take.uniform(0.1, 0.8) * hiss


BUILT_IN: dict[str, Callable[[Random, Random, int], np.ndarray]] = {
    "Alarm_bell_ringing": alarm,
    # hertz, tone against noise, dB an octave, unsteadiness: the ranges overlap on purpose
    "Blender": partial(motor, pitch=(120, 380), whine=(0.2, 0.6), slope=(-2, 2), wobble=2.5),
    "Cat": cat,
    "Dishes": dishes,
    "Dog": dog,
    "Electric_shaver_toothbrush": partial(
        motor, pitch=(80, 260), whine=(0.4, 0.8), slope=(0, 4), wobble=2.0
    ),
    "Frying": frying,
    "Running_water": water,
    "Speech": speech,
    "Vacuum_cleaner": partial(
        motor, pitch=(150, 480), whine=(0.05, 0.4), slope=(-4, 0), wobble=0.8
    ),
}


def synthesise(seed: int, bank_class: str, fold: int, take: int) -> np.ndarray:
    """Built-in recording (S,) float32, the same for the same four arguments."""
    index, habit = list(BUILT_IN).index(bank_class), HABITS[bank_class]
    maker = generator(seed, "maker", index, fold, take % MAKERS)
    rng = generator(seed, "take", index, fold, take)
    seconds = rng.uniform(5, 8)  # long enough that a stretch can be chosen
    if not habit.full:
        seconds = np.clip(rng.lognormal(np.log(habit.median_s), habit.sigma), SHORTEST_S, LONG_S)
    # Whole blocks of 10 ms: lengths with small prime factors, which the FFT is quick with.
    wave = BUILT_IN[bank_class](maker, rng, int(seconds * 100) * RATE // 100)
    wave = tilted(wave, rng.uniform(-3, 3))  # another microphone and distance
    return (wave / np.abs(wave).max() * rng.uniform(0.1, 0.9)).astype(np.float32)
