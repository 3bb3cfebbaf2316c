"""What something was trained on, held against what it is applied to: what is said, what refused."""

import json
from dataclasses import replace

import pytest
import torch
from corpora import write_cache, write_policy

import evaluate
import preprocess
from comparison.systems import find_systems
from config import EvaluateConfig, Signal
from core.errors import InputError
from core.settings import to_dict
from policy import runfolder
from sed.caches import load_cache
from sed.provenance import Origin, held_against, origin_of

KNOWN = {"frame_s": 0.02, "audio": True, "classes": ["Dog", "Speech"]}


def origin(signal=None, **facts):
    facts = KNOWN | {"formulas": preprocess.FORMULAS} | facts
    return Origin(to_dict(Signal()) if signal is None else signal, facts)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Caches of another kind each: usual, of long frames without audio, of other classes."""
    home = tmp_path_factory.mktemp("caches")
    for split in ("train", "validation"):
        write_cache(home / "usual" / split, [60] * 8, audio=home)
        write_cache(home / "coarse" / split, [60] * 8, frame_s=0.064)
        write_cache(home / "birds" / split, [60] * 8, labels=("Owl", "Wren"), audio=home)
        write_cache(home / "some" / split, [60] * 8, labels=("Owl", "Dog"), audio=home)
    write_policy(home / "run", home / "usual" / "train")
    return home


def cache_of(home, name):
    return load_cache(home / name / "validation")


def test_nothing_is_said_where_all_is_the_same(home):
    usual = cache_of(home, "usual")
    assert held_against("it", origin_of(usual), usual) == []
    assert held_against("it", Origin(None, {}), usual) == []  # nothing is known


def test_frames_audio_and_new_classes_are_said(home):
    notes = held_against("it", origin(), cache_of(home, "coarse"), window=21)
    assert len(notes) == 2
    assert "64 ms" in notes[0] and "20 ms" in notes[0] and "1.34 s here" in notes[0]
    assert "with audio" in notes[1] and "without audio" in notes[1]
    (note,) = held_against("it", origin(), cache_of(home, "some"))
    assert "not trained on Owl" in note
    assert held_against("it", origin(frame_s=0.0201), cache_of(home, "usual")) == []


def test_classes_that_were_never_absent_are_said_where_they_may_be(tmp_path):
    for split, absent in (("everywhere", ()), ("some", (0, 3))):
        write_cache(tmp_path / split, [60] * 8, absent=absent)
    trained = origin_of(load_cache(tmp_path / "everywhere"))
    assert trained.facts["never_absent"] == ["Dog", "Speech"]
    (note,) = held_against("it", trained, load_cache(tmp_path / "some"))
    assert "no clip without Dog, Speech" in note and "tag gate" in note
    one = Origin(trained.signal, trained.facts | {"never_absent": ["Speech"]})
    assert "Dog" not in held_against("it", one, load_cache(tmp_path / "some"))[0]
    assert held_against("it", trained, load_cache(tmp_path / "everywhere")) == []
    assert origin_of(load_cache(tmp_path / "some")).facts["never_absent"] == []


def test_entirely_other_classes_are_refused_unless_meant(home):
    birds = cache_of(home, "birds")
    with pytest.raises(InputError, match=r"Dog, Speech.*Owl, Wren.*--other-classes"):
        held_against("it", origin(), birds)
    (note,) = held_against("it", origin(), birds, allowed=True)
    assert "not trained on Owl, Wren" in note


def test_other_formulas_are_refused_and_flat_scores_are_said(home):
    usual, signal = cache_of(home, "usual"), to_dict(Signal())
    (note,) = held_against("it", origin(signal | {"flat_fallback": False}), usual)
    assert "flat scores" in note and "flat_fallback False -> True" in note
    # Without audio no score falls back, so nothing differs.
    silent = replace(usual, manifest=usual.manifest | {"audio": None})
    flat = origin(signal | {"flat_fallback": False}, audio=False)
    assert held_against("it", flat, silent) == []
    for name, value in {"beta": 1.3, "loudness": "original"}.items():
        with pytest.raises(InputError, match=f"other signals .*{name}"):
            held_against("it", origin(signal | {name: value}), usual)


def test_an_older_version_of_the_formulas(home):
    """It had fewer settings and filters that lagged, but for those of 20 ms."""
    signal = {k: v for k, v in to_dict(Signal()).items() if k != "loudness"}
    old = Origin(signal, {k: v for k, v in KNOWN.items() if k != "classes"})
    (note,) = held_against("it", old, cache_of(home, "usual"))
    assert "version 1 of the formulas" in note
    with pytest.raises(InputError, match=r"version 1 of the formulas.*train it again"):
        held_against("it", old, cache_of(home, "coarse"))


# ---------------------------------------------------------------------------- in the scripts


def config(home, tmp_path, name, **changes):
    given = {"cache": home / name, "out": tmp_path / "out", "device": "cpu", "workers": 1}
    given |= {} if "compare" in changes else {"run": home / "run"}
    return EvaluateConfig(**(given | changes))


def test_evaluate_says_it_and_keeps_it(home, tmp_path, capsys):
    evaluate.main(config(home, tmp_path, "coarse"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["notes"]) == 2
    text = capsys.readouterr().out
    assert all(f"note: {note}\n" in text for note in results["notes"])
    with pytest.raises(InputError, match="--other-classes"):
        evaluate.main(config(home, tmp_path, "birds"))
    evaluate.main(config(home, tmp_path, "birds", other_classes=True))
    evaluate.main(config(home, tmp_path, "usual"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["notes"] == []


def test_yardsticks_are_tuned_on_what_they_judge(home, tmp_path):
    mixed = tmp_path / "mixed"
    write_cache(mixed / "train", [60] * 8, frame_s=0.064)
    write_cache(mixed / "validation", [60] * 8, audio=home)
    evaluate.main(config(home, tmp_path, "usual", cache=mixed))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["notes"]) == 2 and all("each baseline" in note for note in results["notes"])


def test_a_table_says_it_of_every_row(home, tmp_path, capsys):
    cfg = config(home, tmp_path, "coarse", compare=(f"DQN={home / 'run'}", "rules"), threads=1)
    evaluate.main(cfg)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["notes"]) == 2 and "best.pt was trained with audio" in results["notes"][1]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("Note: ") == 2 and "64 ms" in table
    with pytest.raises(InputError, match="--other-classes"):
        cfg = config(home, tmp_path, "birds", compare=(str(home / "run"),))
        find_systems(cfg, *(load_cache(home / "birds" / s) for s in ("validation", "train")))


def test_checkpoints_know_their_data_and_what_made_them(home):
    content = runfolder.read_checkpoint(home / "run" / "best.pt")
    known = content["info"]["trained_on"]
    assert (known["audio"], known["classes"]) == (True, ["Dog", "Speech"])
    assert known["formulas"] == preprocess.FORMULAS
    instructions = torch.backends.cpu.get_cpu_capability()
    assert content["versions"]["processor"].endswith(instructions)
    assert content["kernels"] == torch.__config__.show()
