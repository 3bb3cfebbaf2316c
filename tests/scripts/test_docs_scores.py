"""Every block and command of docs/scores.md, on the data that it speaks of."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_detect import write_policy
from test_forms import write_corpus

import detect
import DQN
import preprocess
from config import PRETRAINED, Bandit, DetectConfig, PreprocessConfig, TrainConfig
from core.command import parse
from policy.apply import load_policy
from policy.event_policy import EventTrainer
from scores.score_files import open_scores
from sed.caches import Cache, load_cache
from sed.labels import read_labels
from sed.timeline import Event, frame_edges, write_audacity, write_labels

ROOT = Path(__file__).resolve().parent.parent.parent
SECTIONS = {
    part.splitlines()[0]: part
    for part in (ROOT / "docs" / "scores.md").read_text(encoding="utf-8").split("\n## ")
}
RATE = 16_000
CPU = torch.device("cpu")


def blocks(title: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SECTIONS[title], flags=re.S)


def command(title: str, index: int = 0) -> list[str]:
    """Script and flags of a command of a section."""
    lines = "".join(blocks(title, "bash")).strip().splitlines()
    return shlex.split(lines[index])[1:]


def run(title: str, index: int = 0) -> Cache:
    """Run a preprocessing command of a section as it stands; its cache."""
    script, *flags = command(title, index)
    assert script == "preprocess.py"
    cfg = parse(PreprocessConfig, [*flags, "--workers", "1"])
    preprocess.main(cfg)
    return load_cache(cfg.cache / (cfg.split or "train"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE))
    soundfile.write(path, wav.astype(np.float32), RATE)


def check_cache(cache: Cache, values: np.ndarray, pair: tuple[str, str]) -> np.ndarray:
    """The raw scores of a pair are those that went in; its label."""
    index = cache.find(*pair)
    found = cache.of_pair(index)
    np.testing.assert_allclose(found["d_raw"], values, atol=2e-6)
    return found["label"]


# ---------------------------------------------------------------------------- sections


def test_sed_scores_eval(here):
    write = pytest.importorskip("sed_scores_eval").io.write_sed_scores
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    rng, edges = np.random.default_rng(0), np.arange(157) * 0.064
    values = {name: rng.random((156, 2)) for name in ("a", "b")}
    frames = {
        name: create_score_dataframe(table, edges, ["Dog", "Vacuum_cleaner"])
        for name, table in values.items()
    }
    (here / "metadata").mkdir()
    write(frames, here / "baseline_scores")
    (here / "baseline_scores" / "audio_durations.tsv").write_text("filename\tduration\na.wav\t10\n")
    truth = {"a.wav": [Event(1, 10.0, "Dog")], "b.wav": [Event(0, 3, "Vacuum_cleaner")]}
    write_labels(here / "metadata" / "ground_truth.tsv", truth)
    cache = run("sed_scores_eval, DESED baselines")
    label = check_cache(cache, values["a"][:, 0], ("a.wav", "Dog"))
    centres = np.arange(156) * 0.064 + 0.032
    assert np.array_equal(label, centres >= 1) and cache.durations["a.wav"] == 10.0
    assert cache.truth == truth


def test_scores_of_the_dcase_baseline(here, shared_data):
    home = shared_data / "dcase2023_baseline"
    (here / "metadata").symlink_to(home / "metadata")
    (here / "baseline_scores").symlink_to(home / "baseline2_run1_scores")
    flags = command("sed_scores_eval, DESED baselines")[1:]
    cfg = parse(PreprocessConfig, [*flags, "--workers", "1", "--allow-missing"])
    preprocess.main(cfg)
    cache = load_cache(cfg.cache / cfg.split)
    assert len(cache.clips) == 20 and len(cache.classes) == 10
    assert set(np.diff(cache.offsets)) == {156}


def test_panns(here):
    rng = np.random.default_rng(0)
    names = ["Speech", "Dog", "Domestic animals, pets", *map(str, range(524))]
    outputs = {name: rng.random((1001, 527), dtype=np.float32) for name in ("a", "b")}
    clipwise = {name: frames.max(axis=0) for name, frames in outputs.items()}
    exec(blocks("Arrays", "python")[0], {"outputs": outputs, "clipwise": clipwise, "labels": names})
    noise(here / "audio" / "a.wav", 10.0)
    noise(here / "audio" / "b.wav", 6.3)
    truth = {"a.wav": [Event(1, 2, "dog")], "b.wav": [Event(0.5, 6.2, "speech")]}
    write_labels(here / "labels.tsv", truth)
    cache = run("Arrays", 0)
    check_cache(cache, outputs["a"][:1000, 1], ("a.wav", "dog"))
    label = check_cache(cache, outputs["b"][:630, 0], ("b.wav", "speech"))
    assert label.sum() == 570
    tag = dict(zip(cache.classes, cache.clips[0].tag, strict=True))
    assert tag == pytest.approx({"dog": clipwise["a"][1], "speech": clipwise["a"][0]})


def test_models_for_audioset_strong(here):
    rng, mids = np.random.default_rng(0), ["/m/04rlf", "/m/0bt9lr", "/t/dd00125"]
    logits = {"b0RFKhbpFJA_30000": rng.normal(0, 3, (3, 250)).astype(np.float32)}
    exec(blocks("Arrays", "python")[1], {"logits": logits, "mids": mids})
    head = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    rows = "b0RFKhbpFJA_30000\t0.0\t10.0\t/m/04rlf\nb0RFKhbpFJA_30000\t3.2\t4.0\t/m/0bt9lr\n"
    (here / "audioset_eval_strong.tsv").write_text(head + rows)
    cache = run("Arrays", 1)
    values = 1 / (1 + np.exp(-logits["b0RFKhbpFJA_30000"]))
    check_cache(cache, values[0], ("b0RFKhbpFJA_30000", "/m/04rlf"))
    label = check_cache(cache, values[1], ("b0RFKhbpFJA_30000", "/m/0bt9lr"))
    assert label.sum() == 20 and cache.pairs[0].frame_s == pytest.approx(0.04)


def test_few_labelled_clips_or_none(here):
    """Scores alone, then recalibrated; the cross-validation is tried in test_crossval.py."""
    title = "Few labelled clips, or none"
    write_corpus(here)
    (here / "policy").mkdir()
    shutil.copy(PRETRAINED, here / "policy")
    detect.main(parse(DetectConfig, command(title)[1:]))
    events = read_labels(here / "events.tsv")
    cache = run(title, 1)
    assert set(events) == {clip.filename for clip in cache.clips} and cache.queries == "all"
    assert DQN.main(parse(TrainConfig, [*command(title, 2)[1:], "--device", "cpu"])) == 0
    assert load_policy(here / "runs/recalibrated/best.pt", CPU).classes == tuple(cache.classes)
    assert "studies.crossval" in command(title, 3) and "studies.pretrain" in command(title, 4)


@pytest.mark.parametrize("step", [3.0, 1.5])
def test_birdnet(here, step):
    rows = [(3.0, "Blackbird", 0.8), (6.0, "Great Tit", 0.4), (6.0, "Blackbird", 0.9)]
    rows += [(4.5, "Blackbird", 0.7), (0.0, "Wren", 0.9)] * (step == 1.5)
    head = "Start (s),End (s),Scientific name,Common name,Confidence\n"
    text = "".join(f"{t},{t + 3.0},Turdus,{name},{value}\n" for t, name, value in rows)
    (here / "birdnet").mkdir()
    (here / "birdnet" / "20230101_000000.BirdNET.results.csv").write_text(head + text)
    block = blocks("BirdNET", "python")[0].replace("step, species = 3.0", f"step, species = {step}")
    exec(block, {"seconds": {"20230101_000000": 14.0}})
    noise(here / "recordings" / "20230101_000000.WAV", 14.0)
    (here / "raven").mkdir()
    table = (
        "Selection\tView\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\tWaveform 1\t3\t9\tBlackbird\n"
    )
    (here / "raven" / "20230101_000000.Table.1.selections.txt").write_text(table)
    cache = run("BirdNET")
    pair = cache.pairs[0]
    assert pair[:2] == ("20230101_000000", "Blackbird") and pair.frame_s == step
    label = cache.of_pair(0)["label"]
    if step == 3.0:
        check_cache(cache, [0, 0.8, 0.9, 0, 0], pair[:2])
        assert label.tolist() == [False, True, True, False, False] and pair.start_s == 0
    else:
        check_cache(cache, [0, 0, 0.8, 0.7, 0.9, 0, 0, 0, 0], pair[:2])
        assert pair.start_s == 0.75 and pair.edges[2:6].tolist() == [3.75, 5.25, 6.75, 8.25]
        assert label.tolist() == [False, True, True, True, True] + 4 * [False]


def test_silero_vad(here):
    rng = np.random.default_rng(0)
    probabilities = {"a": rng.random(313).tolist(), "b": rng.random(197).tolist()}
    exec(blocks("Silero VAD", "python")[0], {"probabilities": probabilities})
    noise(here / "audio" / "a.wav", 10.0)
    noise(here / "audio" / "b.flac", 6.3)
    write_audacity(here / "tracks" / "a.txt", [Event(1.0, 2.0, "Speech")])
    write_audacity(here / "tracks" / "b.txt", [])
    cache = run("Silero VAD")
    label = check_cache(cache, probabilities["a"], ("a", "Speech"))
    assert label.sum() == 31 and len(cache.pairs) == 2 and cache.durations["b"] == 6.3


def test_arrays_in_events_out(here, capsys):
    write_corpus(here)
    for split in ("train", "validation"):
        preprocess.main(
            PreprocessConfig(
                cache=here / "cache",
                split=split,
                labels=here / "labels.tsv",
                scores=here / "scores",
                pairs="all",
                workers=1,
            )
        )
    write_policy(here / "runs" / "mine", here / "cache", Bandit())
    np.save(here / "scores.npy", open_scores(here / "scores").read("c0").values[:2])
    capsys.readouterr()
    (block,) = blocks("Arrays in, events out", "python")
    space: dict = {}
    exec(block, space)
    assert space["events"] and len(block.strip().splitlines()) <= 10
    assert len(capsys.readouterr().out.splitlines()) == len(space["events"])


def test_two_splits_of_one_folder(here):
    write_corpus(here)
    title = "One folder, two splits, or K parts"
    train = run(title)
    held = load_cache(here / "cache" / "mine" / "validation")
    assert len(train.clips) == 4 and len(held.clips) == 1
    rows = [f"{clip.filename},train" for clip in train.clips] + [
        f"{held.clips[0].filename},validation"
    ]
    (here / "clips.tsv").write_text("filename,split\n" + "\n".join(rows))
    assert run(title, 1).key == train.key
    assert load_cache(here / "cache" / "listed" / "validation").key == held.key


def test_every_command_is_tried():
    forms = "Two forms of scores"  # with those of the README in test_scripts.py
    here = [title for title in SECTIONS if title != forms]
    count = sum("".join(blocks(title, "bash")).count("python ") for title in here)
    # One above for each; cross-validation in test_crossval.py, pretraining in test_pretrain.py.
    assert count == 13
    assert blocks(forms, "bash")


def test_the_python_of_the_readme(here, capsys, monkeypatch):
    """Arrays in: a policy is trained and evaluated, and finds the events of a new clip."""
    monkeypatch.setattr(EventTrainer, "FLOOR", 150)  # enough for scores as clear as these
    rng, names = np.random.default_rng(0), ["Dog", "Speech"]
    space: dict = {"names": names, "data": {}}
    for split in ("train", "validation"):
        scores, events = {}, {}
        for number in range(6):
            begin, edges = int(rng.integers(10, 50)), frame_edges(100, 0.02)
            on = np.zeros((2, 100), bool)
            on[number % 2, begin : begin + 40] = True
            scores[f"{split}{number}"] = np.where(on, 0.9, 0.1) + rng.uniform(-0.05, 0.05, (2, 100))
            event = Event(edges[begin], edges[begin + 40], names[number % 2])
            events[f"{split}{number}"] = [event]
        space["data"][split] = scores, events
    space["new_scores"] = scores["validation1"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?s)^## From Python$.*?```python\n(.*?)```", text, flags=re.M)
    exec(block, space)
    assert "verdict: policy (macro-F1 " in capsys.readouterr().out
    (found,) = space["found"]
    true = events["validation1"][0]
    assert found.event_label == true.event_label
    assert abs(found.onset - true.onset) < 0.1 and abs(found.offset - true.offset) < 0.1
