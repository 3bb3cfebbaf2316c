"""soundscapes.py: labels are where the sound is, folds never mix, same seed same bytes."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import soundscapes
from config import SoundscapesConfig
from core import files
from core.errors import InputError
from scores import corpora, synthesiser
from sed.labels import read_labels
from sed.timeline import SPLITS, Event, classes_of, write_labels

RATE = 16_000
ESC_10 = {
    "Dog": "Dog_bark",
    "Cat": "Rooster",
    "Dishes": "Person_sneeze",
    "Speech": "Baby_cry",
    "Alarm_bell_ringing": "Clock_tick",
    "Blender": "Chainsaw",
    "Electric_shaver_toothbrush": "Helicopter",
    "Frying": "Fire_crackling",
    "Running_water": "Rain",
    "Vacuum_cleaner": "Sea_waves",
}
TIMELINE = {
    "0.wav": [Event(1.0, 1.8, "Dog"), Event(4.0, 7.313, "Rain")],
    "1.wav": [Event(0.0, 5.0, "Rain"), Event(6.25, 6.5, "Dog"), Event(7.0, 9.999, "Dog")],
    "2.wav": [],
    "Y-a_10.000_20.000.wav": [Event(2.5, 4.0, "Dog"), Event(3.0, 10.0, "Rain")],
}


def make_bank(folder: Path, short: list[str], long: list[str], prefix: bool = True) -> Path:
    """Five recordings a class: two calls in silence (`short`) or 6 s of noise (`long`)."""
    rng = np.random.default_rng(0)
    for name in short + long:
        (folder / name).mkdir(parents=True)
        for fold in range(1, 6):
            wave = 0.2 * rng.normal(size=6 * RATE)
            if name in short:
                calls = np.zeros(3 * RATE)
                calls[RATE // 2 : RATE] = wave[: RATE // 2]
                calls[2 * RATE : 2 * RATE + 12_800] = wave[:12_800]
                wave = calls
            stem = f"{fold}-{name}" if prefix else f"{name}{fold}"
            soundfile.write(folder / name / f"{stem}.wav", wave.clip(-1, 1), RATE)
    return folder


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return make_bank(tmp_path_factory.mktemp("bank"), ["Dog"], ["Rain"])


@pytest.fixture
def cfg(tmp_path, bank) -> SoundscapesConfig:
    """Eight given training clips and four validation clips from the two-class bank."""
    repeated = {f"{i}{name}": events for i in range(2) for name, events in TIMELINE.items()}
    write_labels(tmp_path / "train.tsv", repeated)
    write_labels(tmp_path / "validation.tsv", TIMELINE)
    return SoundscapesConfig(
        out=tmp_path / "corpus",
        bank=bank,
        train_timeline=(tmp_path / "train.tsv",),
        validation_timeline=tmp_path / "validation.tsv",
        train_clips=8,
        validation_clips=4,
        workers=1,
    )


def changed(cfg: SoundscapesConfig, **values) -> SoundscapesConfig:
    return dataclasses.replace(cfg, **values)


def refused(cfg: SoundscapesConfig, *words: str) -> None:
    """main raises a one-line InputError with these words and leaves nothing behind."""
    with pytest.raises(InputError) as error:
        soundscapes.main(cfg)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not cfg.out.exists()
    assert not list(cfg.out.parent.glob(".*partial"))


def listed(corpus: Path) -> list[dict[str, str]]:
    lines = (corpus / "clips.tsv").read_text().splitlines()
    return [dict(zip(lines[0].split("\t"), r.split("\t"), strict=True)) for r in lines[1:]]


def contents(corpus: Path) -> dict[str, bytes]:
    files = [p for p in corpus.rglob("*") if p.is_file() and p.name != "corpus.json"]
    return {str(p.relative_to(corpus)): p.read_bytes() for p in files}


def test_labels_are_where_the_sound_is_and_durations_are_the_timelines(cfg):
    soundscapes.main(changed(cfg, snr_min_db=60.0, snr_max_db=60.0))
    labels = read_labels(cfg.out / "validation" / "labels.tsv")
    expected = {name.removesuffix(".wav") + ".flac": ev for name, ev in TIMELINE.items()}
    assert {name: sorted(events) for name, events in expected.items()} == labels
    for name, events in labels.items():
        wave, rate = soundfile.read(cfg.out / "validation" / "audio" / name)
        assert rate == RATE and len(wave) == 10 * RATE and 0 < np.abs(wave).max() <= 0.91
        level = np.sqrt(np.mean(wave.reshape(-1, RATE // 100) ** 2, axis=1))
        centres = (np.arange(len(level)) + 0.5) / 100
        inside = np.zeros(len(level), bool)
        edge = np.zeros(len(level), bool)  # blocks that a fade or the label's own end runs through
        for e in events:
            inside |= (centres > e.onset) & (centres < e.offset)
            edge |= (np.abs(centres - e.onset) < 0.016) | (np.abs(centres - e.offset) < 0.016)
        if events:
            loud = level[inside & ~edge].min()
            assert loud > 100 * level[~inside & ~edge].max(), name  # 40 dB, in every block


def test_folds_never_mix(cfg):
    soundscapes.main(cfg)
    rows = listed(cfg.out)
    assert [r["split"] for r in rows] == ["train"] * 8 + ["validation"] * 4
    assert sorted(r["fold"] for r in rows[:8]) == list("11223344")
    for row in rows:
        played = [name for name in row["recordings"].split(";") if name]
        assert all(Path(name).name.startswith(row["fold"] + "-") for name in played)
        assert (row["fold"] == "5") == (row["split"] == "validation")
        assert float(row["duration"]) == 10
        assert (cfg.out / row["split"] / "audio" / row["filename"]).exists()
    assert [r["recordings"] for r in rows if r["filename"] == "2.flac"] == [""]


def test_a_bank_without_folds_is_split_by_the_seed(tmp_path):
    folder = make_bank(tmp_path / "plain", ["Dog", "Hen"], [], prefix=False)
    first, again, other = (corpora.list_bank(folder, seed) for seed in (0, 0, 1))
    assert first == again and first != other
    for name in ("Dog", "Hen"):
        assert sorted(r.fold for r in first if r.bank_class == name) == [1, 2, 3, 4, 5]


def test_same_seed_same_bytes_whatever_the_workers(cfg, tmp_path):
    configs = [changed(cfg, out=tmp_path / str(workers), workers=workers) for workers in (1, 2)]
    configs.append(changed(cfg, out=tmp_path / "other", seed=1))
    for each in configs:
        soundscapes.main(each)
    one, two, other = (contents(each.out) for each in configs)
    assert len(one) == 12 + 3 + 1  # and the marker
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith(".flac"))


def test_a_longer_timeline_is_sampled_and_a_shorter_one_used_whole(cfg, capsys):
    soundscapes.main(changed(cfg, train_clips=3, validation_clips=50))
    chosen = list(read_labels(cfg.out / "train" / "labels.tsv"))
    names = [n.removesuffix(".wav") + ".flac" for n in read_labels(cfg.train_timeline[0])]
    assert len(chosen) == 3 and chosen == sorted(chosen, key=names.index)
    assert len(read_labels(cfg.out / "validation" / "labels.tsv")) == 4
    printed = capsys.readouterr().out
    assert "has 4 clips, not 50" in printed and "train: 3 clips" in printed


def test_rerun_skips_and_another_config_is_refused(cfg, capsys):
    soundscapes.main(cfg)
    before = contents(cfg.out)
    capsys.readouterr()
    soundscapes.main(changed(cfg, workers=2))
    assert "complete, nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"seed 0 \(now 7\).*delete the folder"):
        soundscapes.main(changed(cfg, seed=7))
    (cfg.out / "corpus.json").write_text("{")
    with pytest.raises(InputError, match=r"corpus\.json"):
        soundscapes.main(cfg)
    (cfg.out / "corpus.json").unlink()
    with pytest.raises(InputError, match="is no corpus"):
        soundscapes.main(cfg)
    assert contents(cfg.out) == before


def test_a_plan_stays_what_it_was_where_no_option_changes_it(cfg):
    """Which recordings play when, as corpora made before there were several timelines have them."""
    digests = []
    for each in (cfg, changed(cfg, train_timeline=(), validation_timeline=None)):
        bank, class_map, given = corpora.read_inputs(each)
        bank = [r._replace(parts=((100, 30_000), (40_000, 45_000))) for r in bank]
        for split in SPLITS:
            clips = corpora.plan_split(each, split, given[split], class_map, bank)
            rows = [
                (c.filename, c.fold, *((*s.event, s.recording.name, *s[2:]) for s in c.sounds))
                for c in clips
            ]
            digests.append(hashlib.sha256(repr(rows).encode()).hexdigest()[:12])
    assert digests == ["184ee715afb8", "b8487a22d16a", "0332863d7477", "806ccad0fe80"]


def test_a_corpus_of_an_earlier_version_is_complete(cfg, capsys):
    soundscapes.main(cfg)
    made = json.loads((cfg.out / "corpus.json").read_text())
    for name in ("halve_timelines", "stretch_min", "stretch_max", "sha256"):
        made.pop(name)
    made["train_timeline"] = made["train_timeline"][0]
    (cfg.out / "corpus.json").write_text(json.dumps(made))
    capsys.readouterr()
    soundscapes.main(cfg)
    assert "complete, nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"halve_timelines False \(now True\)"):
        soundscapes.main(changed(cfg, halve_timelines=True))


def test_clips_of_several_timelines_are_equally_many_and_keep_apart(cfg, tmp_path):
    both = (cfg.train_timeline[0], cfg.validation_timeline)  # 8 and 4 clips, four names in common
    several = changed(cfg, train_timeline=both, train_clips=6)
    _, _, given = corpora.read_inputs(several)
    chosen = corpora.choose_clips([*given["train"].values()], 6, "train", 0)
    assert [name.split("-")[0] for name in chosen] == ["train"] * 3 + ["validation"] * 3

    assert corpora.equal_shares([8, 4], 11) == [7, 4]
    assert corpora.equal_shares([2, 9, 3], 9) == [2, 4, 3]
    soundscapes.main(several)
    for name, events in read_labels(several.out / "train" / "labels.tsv").items():
        stem, _, own = name.removesuffix(".flac").partition("-")
        source = read_labels(both[stem == "validation"])
        assert events == sorted(source[f"{own}.wav"])
    refused(changed(several, out=tmp_path / "b", train_timeline=both[:1] * 2), "a second", "train")


def test_halved_timelines_train_and_validate_with_other_clips_of_the_same_files(cfg):
    halved = changed(cfg, halve_timelines=True)
    found = [
        corpora.timelines_of_splits(each) for each in (halved, halved, changed(halved, seed=1))
    ]
    assert found[0] == found[1] != found[2]
    whole = corpora.read_timelines([*cfg.train_timeline, cfg.validation_timeline], cfg)
    for path, clips in whole.items():
        halves = [found[0][split][path] for split in SPLITS]
        assert len(halves[0]) == len(halves[1]) == len(clips) / 2
        assert halves[0].keys().isdisjoint(halves[1]) and halves[0] | halves[1] == clips
    soundscapes.main(changed(halved, train_clips=6, validation_clips=4))
    rows = listed(cfg.out)
    names = [{r["filename"] for r in rows if r["split"] == split} for split in SPLITS]
    assert len(names[0]) == 6 and len(names[1]) == 4 and not names[0] & names[1]
    assert {name.split("-")[0] for name in names[1]} == {"train", "validation"}


def test_stretched_lengths(cfg, tmp_path):
    rng = np.random.default_rng(0)
    free = [Event(1.0, 2.0, "Dog")] * 2000
    long = changed(cfg, stretch_min=0.5, stretch_max=2.0, clip_s=10.0)
    factors = np.array([e.offset - e.onset for e in corpora.stretched(rng, free, long)])
    assert 0.5 <= factors.min() < 0.51 and 1.98 < factors.max() <= 2.0
    assert abs(np.log2(factors).mean()) < 0.04  # halved as often as doubled
    events = [Event(0.0, 1.0, "Dog"), Event(0.5, 0.7, "Rain"), Event(1.3, 3.0, "Dog")]
    events += [Event(3.05, 9.0, "Dog")]
    wider = corpora.stretched(rng, events, changed(long, stretch_min=2.0))
    assert wider == [
        Event(0.0, 1.15, "Dog"),  # 0.15 s before the next of its class
        Event(0.5, 0.9, "Rain"),
        Event(1.3, 3.0, "Dog"),  # was nearer already
        Event(3.05, 10.0, "Dog"),  # the clip ends
    ]
    shorter = corpora.stretched(rng, events, changed(long, stretch_min=0.1, stretch_max=0.1))
    assert [round(e.offset - e.onset, 3) for e in shorter] == [0.25, 0.2, 0.25, 0.595]
    soundscapes.main(long)
    for split, path in zip(SPLITS, (*cfg.train_timeline, cfg.validation_timeline), strict=True):
        labels, given = read_labels(cfg.out / split / "labels.tsv"), read_labels(path)
        onsets, offsets = (
            [[e[k] for e in sorted(labels[n.replace(".wav", ".flac")])] for n in given]
            for k in (0, 1)
        )
        assert onsets == [[e.onset for e in sorted(events)] for events in given.values()]
        same = offsets == [[e.offset for e in sorted(events)] for events in given.values()]
        assert same == (split == "validation")
    again = changed(long, out=tmp_path / "again", workers=2)
    soundscapes.main(again)
    assert contents(again.out) == contents(cfg.out)


def test_options_that_would_do_nothing_are_refused(cfg, tmp_path):
    for options in ({"halve_timelines": True}, {"stretch_max": 2.0}):
        with pytest.raises(ValueError, match="given with a timeline"):
            SoundscapesConfig(**options)
    with pytest.raises(ValueError, match="stretch-max must be at least stretch-min = 2"):
        changed(cfg, stretch_min=2.0)
    path = tmp_path / "one.tsv"
    write_labels(path, {"0.wav": TIMELINE["0.wav"]})
    refused(changed(cfg, train_timeline=(path,), halve_timelines=True), "one.tsv", "two or more")


def test_class_map(cfg, tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text("event_label\tbank_class\nDog\tRain\nRain\tDog\n")
    soundscapes.main(changed(cfg, class_map=path))
    row = next(r for r in listed(cfg.out) if r["filename"] == "0.flac")
    assert row["recordings"] == "Dog/5-Dog.wav;Rain/5-Rain.wav"
    assert json.loads((cfg.out / "corpus.json").read_text())["class_map"] == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label\tclass\nDog\tDog\n", ("line 1", "event_label, bank_class")),
        ("event_label\tbank_class\nDog\tRian\n", ("line 2", "'Rian'", "'Rain'")),
        ("event_label\tbank_class\nDog\tDog\nDog\tRain\n", ("line 3", "twice")),
        ("event_label\tbank_class\nDog\n", ("line 2", "expected")),
        ("event_label\tbank_class\n", ("no rows",)),
        ("event_label\tbank_class\nDog\tDog\n", ("train.tsv", "'Rain'", "--class-map")),
    ],
)
def test_bad_class_maps(cfg, tmp_path, text, words):
    (tmp_path / "map.tsv").write_text(text)
    refused(changed(cfg, class_map=tmp_path / "map.tsv"), *words)


def test_bad_timelines(cfg, tmp_path):
    path = tmp_path / "bad.tsv"
    bad = changed(cfg, train_timeline=(path,))
    write_labels(path, {"0.wav": [Event(1.0, 2.0, "Bagpipe")]})
    refused(bad, "bad.tsv", "'Bagpipe'", "Dog, Rain")
    write_labels(path, {"0.wav": [Event(11.0, 12.0, "Dog")]})
    refused(bad, "bad.tsv", "0.wav", "11 .. 12", "--clip-s")
    write_labels(path, {"0.wav": [], "0.flac": []})
    refused(bad, "two clips would be 0.flac")


def test_an_event_past_the_end_is_cut_and_said(cfg, tmp_path, capsys):
    path = tmp_path / "late.tsv"
    write_labels(path, {"0.wav": [Event(8.0, 10.115, "Dog")]})
    soundscapes.main(changed(cfg, train_timeline=(path,), train_clips=1))
    assert "1 events of" in capsys.readouterr().out
    labels = read_labels(cfg.out / "train" / "labels.tsv")
    assert labels == {"0.flac": [Event(8.0, 10.0, "Dog")]}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", ["garbage", "silent", "empty", "antiphase"])
def test_damaged_bank_files(cfg, tmp_path, damage, workers):
    folder = make_bank(tmp_path / "bank", ["Dog"], ["Rain"])
    path = folder / "Dog" / "3-Dog.wav"
    tone = np.sin(np.arange(RATE)) / 2
    if damage == "garbage":
        path.write_bytes(b"RIFF is not enough")
    else:
        waves = {"silent": np.zeros(RATE), "empty": np.zeros(0)}
        soundfile.write(path, waves.get(damage, np.stack([tone, -tone], axis=1)), RATE)
    refused(changed(cfg, bank=folder, workers=workers), "3-Dog.wav", "replace")


def test_a_truncated_flac_is_named(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 5 * RATE), RATE)
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(InputError, match=r"cut\.flac"):
        corpora.read_recording(path)


def test_bad_banks(cfg, tmp_path):
    refused(changed(cfg, bank=tmp_path / "nowhere"), "nowhere", "folder per class")
    refused(changed(cfg, validation_fold=9), "--validation-fold 9", "[1, 2, 3, 4, 5]")
    folder = make_bank(tmp_path / "bank", ["Dog"], ["Rain"])
    (folder / "Dog" / "2-Dog.wav").unlink()
    refused(changed(cfg, bank=folder), "'Dog'", "fold 2", "train")
    (folder / "Dog" / "1-a;b.wav").touch()
    refused(changed(cfg, bank=folder), "semicolon")


def test_other_rates_and_channels_become_16_khz_mono(tmp_path):
    t = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], axis=1) / 2, 44_100)
    wave = corpora.read_recording(tmp_path / "a.wav")
    assert wave.dtype == np.float32 and len(wave) == RATE
    assert np.abs(np.fft.rfft(wave)).argmax() == 440


def test_active_parts_leave_the_silence_out():
    wave = np.zeros(3 * RATE)
    wave[RATE // 2 : RATE] = wave[2 * RATE : 2 * RATE + 8_000] = 0.3
    noisy = wave + np.random.default_rng(0).normal(0, 0.003, len(wave))
    for each in (wave, noisy):
        assert corpora.active_parts(each) == ((8_000, 16_000), (32_000, 40_000))
    assert corpora.active_parts(np.full(1_000, 0.1)) == ((0, 1_000),)


@pytest.fixture(scope="module")
def random_plan(tmp_path_factory) -> list[corpora.PlannedClip]:
    """400 random clips of the ten DESED classes, planned and not rendered."""
    long = [name for name, habit in synthesiser.HABITS.items() if habit.full]
    short = [name for name in synthesiser.HABITS if name not in long]
    folder = make_bank(tmp_path_factory.mktemp("desed"), short, long)
    cfg = SoundscapesConfig(bank=folder, train_clips=400, validation_clips=1)
    listing, class_map, given = corpora.read_inputs(cfg)
    assert given == {"train": {}, "validation": {}}
    decoded = [corpora.decode(r, 0, tmp_path_factory.getbasetemp()) for r in listing]
    return corpora.plan_split(cfg, "train", {}, class_map, decoded)


def test_random_timeline_statistics(random_plan):
    pairs: dict[str, list[float]] = {}
    for clip in random_plan:
        for label in {s.event.event_label for s in clip.sounds}:
            events = [s.event for s in clip.sounds if s.event.event_label == label]
            pairs.setdefault(label, []).append(sum(e.offset - e.onset for e in events) / 10)
    assert 1.8 < sum(len(shares) for shares in pairs.values()) / 400 < 2.5
    assert 350 < len(pairs["Speech"]) < 395
    assert 60 < len(pairs["Dishes"]) < 140
    for label in ("Vacuum_cleaner", "Frying", "Electric_shaver_toothbrush"):
        assert np.mean(pairs[label]) > 0.7 and np.mean(np.array(pairs[label]) == 1) > 0.45
    assert 0.3 < np.mean(pairs["Running_water"]) < 0.85
    assert 0.25 < np.mean([share for shares in pairs.values() for share in shares]) < 0.5


def test_random_events_are_whole_calls_that_never_touch(random_plan):
    for clip in random_plan:
        for label in classes_of({"": [s.event for s in clip.sounds]}):
            sounds = [s for s in clip.sounds if s.event.event_label == label]
            for s in sounds:
                start, end = s.recording.parts[s.first]
                assert 0 <= s.event.onset < s.event.offset <= 10
                if end - start < 4 * RATE:
                    assert round((s.event.offset - s.event.onset) * RATE) == end - start
            for a, b in itertools.pairwise(sounds):
                assert b.event.onset - a.event.offset > 0.149


@pytest.mark.parametrize("clip_s", [0.5, 1.0, 3.0])
def test_every_drawn_event_survives_crowded_clips(clip_s):
    cfg = SoundscapesConfig(clip_s=clip_s)
    recording = corpora.BankSound(0, "a", "a", 1, 0, ((0, 30_000),))
    habit = synthesiser.Habit(1.0, 9.0, 0.0, 1.0, 0.5)
    for seed in range(50):
        sounds = corpora.random_sounds(np.random.default_rng(seed), "a", habit, [recording], cfg)
        poisson = np.random.default_rng(seed)
        poisson.random()
        assert len(sounds) == min(1 + poisson.poisson(9.0), max(1, int(clip_s)))
        edges = [edge for s in sounds for edge in s.event[:2]]
        assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= clip_s
        assert all(edge > 0.05 for edge in np.diff(edges))


def test_built_in_recordings():
    for name in synthesiser.BUILT_IN:
        waves = [synthesiser.synthesise(0, name, fold, take) for fold, take in ((1, 0), (2, 0))]
        assert all(np.isfinite(w).all() and 0.05 < np.abs(w).max() <= 1 for w in waves)
        assert np.array_equal(waves[0], synthesiser.synthesise(0, name, 1, 0))
        others = [waves[1], synthesiser.synthesise(1, name, 1, 0)]
        assert not any(np.array_equal(waves[0], other) for other in others)
        assert (waves[0].size > 4 * RATE) == (synthesiser.HABITS[name].full > 0)


def test_all_built_in(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "TAKES", 1)
    cfg = SoundscapesConfig(out=tmp_path / "a", train_clips=6, validation_clips=3, workers=2)
    soundscapes.main(cfg)
    labels = read_labels(cfg.out / "train" / "labels.tsv")
    assert len(labels) == 6 and all(labels.values())
    assert set(classes_of(labels)) <= set(synthesiser.BUILT_IN)
    assert {r["fold"] for r in listed(cfg.out) if r["split"] == "validation"} == {"5"}
    assert files.contents(cfg.out) == [
        "clips.tsv",
        "corpus.json",
        "train",
        "validation",
    ]


def test_real_recordings_on_real_timelines(tmp_path, shared_data):
    rows = [f"{label}\t{played}" for label, played in ESC_10.items()]
    (tmp_path / "map.tsv").write_text("event_label\tbank_class\n" + "\n".join(rows) + "\n")
    cfg = SoundscapesConfig(
        out=tmp_path / "corpus",
        bank=shared_data / "esc10",
        class_map=tmp_path / "map.tsv",
        train_timeline=(shared_data / "desed_timelines" / "synthetic21_train.tsv",),
        validation_timeline=shared_data / "desed_timelines" / "synthetic21_validation.tsv",
        train_clips=12,
        validation_clips=6,
        workers=2,
    )
    soundscapes.main(cfg)
    for split, count in (("train", 12), ("validation", 6)):
        source = read_labels(shared_data / "desed_timelines" / f"synthetic21_{split}.tsv")
        labels = read_labels(cfg.out / split / "labels.tsv")
        assert len(labels) == count
        for name, events in labels.items():
            assert events == source[name.replace(".flac", ".wav")]
    played = {"train": set(), "validation": set()}
    for row in listed(cfg.out):
        played[row["split"]] |= set(filter(None, row["recordings"].split(";")))
    assert played["train"] and not played["train"] & played["validation"]
