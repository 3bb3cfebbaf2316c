"""Denoisers, measures, mixtures, the environment, agents and the commands of studies.denoise."""

import csv
import dataclasses
import functools
import importlib.util
import io
import json
import math
import pickle
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.special import exp1

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")
pytest.importorskip("pystoi")
pytest.importorskip("pywt")
pytest.importorskip("noisereduce")


from core.command import parse
from core.errors import InputError
from scores.synthesiser import synthesise
from studies.denoise import commands, denoisers, environment, table, training
from studies.denoise import data as mixtures
from studies.denoise.data import fitted, mixed
from studies.denoise.denoisers import METHODS, STOP, batch_of
from studies.denoise.environment import AS_IT_IS, DenoiseVectorEnv, Lanes, Scaler
from studies.denoise.settings import (
    COMMANDS,
    FeaturesConfig,
    InferConfig,
    MetricsConfig,
    MixConfig,
    Reward,
    SweepConfig,
    TrainConfig,
    TuneConfig,
)

RATE = 8000
ALGOS = ("ppo", "ppo-separate", "sac", "td3")
EVERY_METHOD = torch.arange(len(METHODS))


@functools.cache
def words() -> np.ndarray:
    """Synthesised speech with pauses, every other sample of its own rate."""
    waves = [synthesise(0, "Speech", 1, take)[::2][:3000] for take in range(4)]
    return np.concatenate([np.pad(wave, (600, 0)) for wave in waves])


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Another stretch of the same speech for each seed."""
    return np.tile(np.roll(words(), -2000 * seed), 2)[: int(seconds * RATE)]


def noisy_speech(seconds: float, snr_db: float = 5.0, seed: int = 0) -> tuple:
    clean = speech(seconds, seed)
    noise = np.random.default_rng(seed).standard_normal(len(clean))
    pair = mixed(clean, noise, snr_db)
    return tuple(wave.astype(np.float32) for wave in pair)


def same(params: float, count: int) -> torch.Tensor:
    return torch.full((count, 3), params)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Built-in mixtures with their features."""
    folder = tmp_path_factory.mktemp("denoise") / "data"
    mixtures.mix(MixConfig(out=folder, clips=(5, 2, 4), join=2))
    tables = tuple(folder / split / "meta.csv" for split in ("train", "validation"))
    mixtures.write_features(FeaturesConfig(meta=tables))
    return folder


@pytest.fixture(scope="module")
def corpus(data) -> environment.Corpus:
    return environment.load_corpus(data / "train" / "features.csv")


def small(data: Path, run: Path, **more) -> TrainConfig:
    sizes = {"total_steps": 16, "num_envs": 4, "rollout_steps": 8, "eval_every": 8}
    sizes |= {"random_steps": 4, "batch_size": 8, "hidden": (8,), "scaler_steps": 32}
    return TrainConfig(features=data / "train" / "features.csv", run=run, **sizes | more)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """A tiny run of each algorithm."""
    folder = tmp_path_factory.mktemp("runs")
    for algo in ALGOS:
        training.train(small(data, folder / algo, algo=algo))
    return {algo: folder / algo for algo in ALGOS}


# ---------------------------------------------------------------------------- denoisers


def test_level_does_not_matter():
    """HEAR's Wiener filter compared power with magnitude, so it depended on the level."""
    _, noisy = noisy_speech(1.0)
    loud = denoisers.denoise(batch_of([noisy] * 4), EVERY_METHOD, same(0.6, 4), RATE)
    for factor in (1e-4, 30.0):
        quiet = batch_of([noisy * factor] * 4)
        out = denoisers.denoise(quiet, EVERY_METHOD, same(0.6, 4), RATE)
        torch.testing.assert_close(out / factor, loud, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 100, 700, 4000])
def test_silence_and_short_clips(length):
    rng = np.random.default_rng(0)
    for wave in (np.zeros(length), rng.standard_normal(length), np.eye(1, length)[0]):
        batch = batch_of([wave] * 4)
        for value in (0.0, 1.0):
            out = denoisers.denoise(batch, EVERY_METHOD, same(value, 4), RATE)
            assert out.shape == (4, length) and out.isfinite().all()
            assert out.any() or not wave.any() or value == 1.0
        assert denoisers.features(batch, RATE).isfinite().all()
        assert denoisers.si_sdr(batch.audio, batch).isfinite().all()


def test_noisereduce_takes_a_clip_shorter_than_its_frame(corpus):
    short = corpus._replace(clips=[corpus.clips[0]._replace(noisy=corpus.clips[0].noisy[:50])])
    (wave,) = environment.noisereduce_waves(short, False, 1.0)
    assert wave.shape == (50,) and np.isfinite(wave).all()


def test_a_clip_in_a_batch_is_as_if_alone():
    waves = [noisy_speech(seconds, seed=i)[1] for i, seconds in enumerate((1.0, 0.4, 0.73))]
    batch = batch_of(waves)
    for method in range(len(METHODS)):
        out = denoisers.denoise(batch, torch.full((3,), method), same(0.5, 3), RATE)
        for wave, mine in zip(waves, out, strict=True):
            alone = denoisers.denoise(batch_of([wave]), torch.tensor([method]), same(0.5, 1), RATE)
            torch.testing.assert_close(mine[: len(wave)], alone[0], rtol=1e-3, atol=1e-5)
            assert not mine[len(wave) :].any()
    seen = denoisers.features(batch, RATE)
    for wave, mine in zip(waves, seen, strict=True):
        torch.testing.assert_close(
            mine, denoisers.features(batch_of([wave]), RATE)[0], atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_removes_white_noise(method):
    pairs = [noisy_speech(1.5, 5.0, seed) for seed in range(3)]
    clean, noisy = (batch_of(list(waves)) for waves in zip(*pairs, strict=True))
    rows = torch.full((3,), METHODS.index(method))
    strength = 0.0 if method == "wavelet" else 0.4
    params = torch.tensor([[strength, 0.6, 0.2]]).repeat(3, 1)
    out = denoisers.denoise(noisy, rows, params, RATE)
    gain = denoisers.si_sdr(clean.audio, noisy._replace(audio=out))
    gain -= denoisers.si_sdr(clean.audio, noisy)
    assert gain.min() > 0.5, gain


def test_strength_is_not_inverted():
    """More strength leaves less; in HEAR's Wiener filter strength 1 changed nothing."""
    _, noisy = noisy_speech(1.0)
    for method in range(len(METHODS)):
        params = torch.tensor([[s, 1.0, 0.4] for s in (0.0, 0.5, 1.0)])
        out = denoisers.denoise(batch_of([noisy] * 3), torch.full((3,), method), params, RATE)
        left = out.square().mean(1)
        assert left[0] > left[1] > left[2]


def test_stop_leaves_the_audio_alone():
    batch = batch_of([noisy_speech(0.5)[1]])
    out = denoisers.denoise(batch, torch.tensor([STOP]), same(1.0, 1), RATE)
    assert torch.equal(out, batch.audio)


def test_noise_estimate_follows_a_change():
    noise = np.random.default_rng(0).standard_normal(4 * RATE)
    noise[2 * RATE :] *= 10 ** (10 / 20)
    batch = batch_of([noise])
    power = denoisers.spectrum(batch.audio, RATE).abs().square()
    inside = denoisers.frames_inside(batch, power.shape[2], RATE)
    track = denoisers.noise_power(power, inside, torch.tensor([[0.1]]), RATE)[0].mean(0)
    true = power[0].mean(0)
    half = len(track) // 2
    for part in (slice(half // 2, half - 5), slice(half + half // 2, 2 * half)):
        assert abs(10 * torch.log10(track[part].mean() / true[part].mean())) < 1.5


def test_lsa_gain_is_the_formula():
    first, step, table = denoisers.half_exp1()
    logs = first + step * np.arange(len(table))
    np.testing.assert_allclose(table, 0.5 * exp1(np.exp(logs)), rtol=1e-5)
    # one frame: a-priori SNR .96 + .04 (posterior - 1)
    power, noise = torch.full((1, 1, 1), 5.0), torch.ones(1, 1, 1)
    to = denoisers.Settings(*(torch.tensor([[value]]) for value in (1.0, 0.0, 0.1, 0.5)))
    prior = 0.96 + 0.04 * 4
    wiener = prior / (1 + prior)
    expected = wiener * math.exp(0.5 * exp1(wiener * 5))
    assert float(denoisers.lsa_gain(power, noise, to)) == pytest.approx(expected, rel=1e-3)


# ---------------------------------------------------------------------------- measures


def test_si_sdr_is_the_formula():
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1000))
    estimate = 0.7 * clean + 0.3 * noise + 5.0  # an offset does not matter
    x, y = clean - clean.mean(), estimate - estimate.mean()
    target = (x @ y) / (x @ x) * x
    expected = 10 * np.log10((target @ target) / ((y - target) @ (y - target)))
    waves = [estimate, 0.01 * estimate, clean]
    found = denoisers.si_sdr(batch_of([clean] * 3).audio, batch_of(waves))
    np.testing.assert_allclose(found, [expected, expected, 100.0], atol=1e-3)


def test_silence_is_not_rewarded():
    """torchmetrics and HEAR give 0 dB to silence, which beats a noisy clip below 0 dB."""
    clean = batch_of([speech(0.5)])
    silent = clean._replace(audio=torch.zeros_like(clean.audio))
    assert float(denoisers.si_sdr(clean.audio, silent)[0]) == denoisers.SILENCE_DB


@pytest.mark.parametrize("rate", [8000, 16000])
def test_stoi_is_pystois(rate):
    pairs = [noisy_speech(seconds, seed=seed) for seed, seconds in enumerate((1.2, 0.9))]
    references = [denoisers.reference_of(clean, rate) for clean, _ in pairs]
    long = [i for i, reference in enumerate(references) if reference is not None]
    pairs, references = [pairs[i] for i in long], [references[i] for i in long]
    found = denoisers.stoi_pair(references, batch_of([noisy for _, noisy in pairs]), rate)
    expected = [denoisers.pystoi_pair(clean, noisy, rate) for clean, noisy in pairs]
    assert len(pairs) and np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    few = denoisers.stoi_pair(references, batch_of([noisy for _, noisy in pairs]), rate, 4)
    np.testing.assert_allclose(few, expected, atol=0.02)


def test_too_short_for_stoi_is_nan():
    """pystoi says 1e-5, which a mean would take for a result."""
    clean, noisy = noisy_speech(0.25)
    assert all(math.isnan(value) for value in denoisers.pystoi_pair(clean, noisy, RATE))


def test_features_do_not_see_the_level():
    _, noisy = noisy_speech(1.0)
    one, other = denoisers.features(batch_of([noisy, 0.003 * noisy]), RATE)
    torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)
    assert one.shape == (len(denoisers.FEATURES),)


# ---------------------------------------------------------------------------- mixtures


def test_splits_share_nothing_and_have_the_ratio(data):
    tables = {
        split: mixtures.read_meta(data / split / "meta.csv")
        for split in ("train", "validation", "test")
    }
    assert tuple(tables["train"][0]) == mixtures.META
    for column in ("speaker_id", "noise_source"):
        values = [{row[column] for row in rows} for rows in tables.values()]
        assert not (values[0] & values[1] | values[0] & values[2] | values[1] & values[2])
    for split, rows in tables.items():
        for row in rows:
            clean, noisy = (
                soundfile.read(data / split / row[f"{kind}_path"])[0] for kind in ("clean", "noisy")
            )
            ratio = 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2))
            assert ratio == pytest.approx(float(row["snr_db"]), abs=0.1)
            assert float(row["duration_sec"]) == pytest.approx(len(clean) / RATE, abs=1e-3)


def test_real_recordings_are_mixed(shared_data, tmp_path):
    cfg = MixConfig(
        out=tmp_path / "mix",
        clean=shared_data / "fsdd",
        noise=shared_data / "esc10",
        clips=(3, 1, 2),
    )
    mixtures.mix(cfg)
    rows = mixtures.read_meta(cfg.out / "test" / "meta.csv")
    assert all("/5-" in row["noise_source"] and "+" in row["clean_source"] for row in rows)
    with pytest.raises(InputError, match="give --sample-rate 8000"):  # a low-pass would win
        mixtures.mix(
            MixConfig(
                out=tmp_path / "up",
                clean=shared_data / "fsdd",
                noise=shared_data / "esc10",
                sample_rate=16000,
            )
        )


def test_short_noise_is_not_looped():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(500).astype(np.float32)
    out = fitted(noise, 4000, rng)
    assert out.shape == (4000,) and (out == 0).sum() > 1000
    assert fitted(noise, 100, rng).shape == (100,)


def test_mistakes_are_one_line(data, tmp_path):
    with pytest.raises(InputError, match="exists"):
        mixtures.mix(MixConfig(out=data))
    (tmp_path / "one" / "speaker").mkdir(parents=True)
    soundfile.write(tmp_path / "one" / "speaker" / "a.wav", np.ones(800), RATE)
    with pytest.raises(InputError, match="1 speakers, 4 are needed"):
        mixtures.mix(MixConfig(out=tmp_path / "new", clean=tmp_path / "one"))
    with pytest.raises(InputError, match=r"studies\.denoise features"):
        environment.load_corpus(tmp_path / "features.csv")
    (tmp_path / "meta.csv").write_text("utt_id,clean_path,noisy_path,snr_db\na,b.wav\n")
    with pytest.raises(InputError, match=r"meta\.csv: row 1 has no noisy_path; run: "):
        mixtures.read_meta(tmp_path / "meta.csv")
    soundfile.write(tmp_path / "b.wav", np.ones(800) / 2, RATE)
    (tmp_path / "meta.csv").write_text("utt_id,clean_path,noisy_path,snr_db\na,b.wav,b.wav,5\n")
    with pytest.raises(InputError, match=r"meta\.csv: no clip is long enough for STOI"):
        table.read_corpus(MetricsConfig(meta=tmp_path / "meta.csv"))
    (tmp_path / "meta.csv").write_text("utt_id,clean_path,noisy_path,snr_db\na,b.wav,c.wav,5dB\n")
    with pytest.raises(InputError, match=r"meta\.csv: snr_db of a: .*'5dB'"):
        mixtures.read_meta(tmp_path / "meta.csv")
    with pytest.raises(InputError, match=r"--noise .*nowhere: no <class>"):
        mixtures.mix(MixConfig(out=tmp_path / "new", noise=tmp_path / "nowhere"))
    here = TrainConfig(features=Path("features.csv"))  # in the folder of the training clips
    assert here.validation == Path("../validation/features.csv")
    with pytest.raises(InputError, match="speaker_id"):
        own = data / "train" / "features.csv"
        training.train(small(data, tmp_path / "run", validation_features=own))


def test_nothing_of_others_is_removed(data, runs, tmp_path):
    """Foreign folders, other runs, what somebody put into a folder of ours, the own inputs."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years")
    for name in ("ppo", "table"):
        shutil.copytree(runs["ppo"], tmp_path / name)
    (tmp_path / "ppo" / "notes.txt").write_text("mine")
    (tmp_path / "ppo" / "metrics.json").unlink()  # a run that was stopped
    (tmp_path / "table" / ".threshold-dqn").unlink()
    (tmp_path / "table" / "agent.json").unlink()  # not known to be ours any more
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for folder, overwrite in (("theirs", True), ("table", True), ("ppo", False)):
        with pytest.raises(InputError, match=folder):
            training.train(small(data, tmp_path / folder, overwrite=overwrite))
    own = tmp_path / "data" / "train"
    with pytest.raises(InputError, match="input"):
        training.train(small(tmp_path / "data", own, overwrite=True))
    for out in ("theirs", "data", "ppo"):
        with pytest.raises(InputError, match=out):
            mixtures.mix(MixConfig(out=tmp_path / out, overwrite=True))
    with pytest.raises(InputError, match="input"):
        mixtures.mix(MixConfig(out=tmp_path, clean=tmp_path / "theirs", overwrite=True))
    for kind in ("out", "plot_dir", "output_dir"):
        with pytest.raises(InputError, match="theirs"):
            commands.main(MetricsConfig(**{kind: tmp_path / "theirs"}, tuned=tmp_path / "x"))
    with pytest.raises(InputError, match="theirs"):
        commands.sweep(SweepConfig(config=sweep_file(tmp_path), output_root=tmp_path / "theirs"))
    (tmp_path / "x.json").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "theirs" / "thesis.tex").read_text() == "years"
    training.train(small(data, tmp_path / "ppo", overwrite=True))
    assert (tmp_path / "ppo" / "notes.txt").read_text() == "mine"


def sweep_file(folder: Path) -> Path:
    """A sweep of nothing."""
    path = folder / "x.json"
    path.write_text('{"experiments": []}')
    return path


def test_files_of_others_are_not_replaced(data, runs, tmp_path):
    wav, table = tmp_path / "a.wav", data / "train" / "features.csv"
    soundfile.write(wav, np.zeros(800), RATE)
    (tmp_path / "b.csv").write_text("theirs")
    before = wav.read_bytes(), table.read_bytes()
    for output in (wav, tmp_path / "b.csv"):
        cfg = InferConfig(checkpoint=(runs["ppo"],), input=wav, output=output)
        with pytest.raises(InputError, match="--output"):
            commands.infer(cfg)
    cfg = InferConfig(checkpoint=(runs["ppo"],), input=wav, output=tmp_path / "c.xyz")
    with pytest.raises(InputError, match="--output"):
        commands.infer(cfg)
    for out in (table, tmp_path / "b.csv"):
        with pytest.raises(InputError, match="--out"):
            commands.tune(TuneConfig(features=table, out=out))
    with pytest.raises(InputError, match="input"):
        mixtures.write_features(FeaturesConfig(meta=(table,)))
    assert (wav.read_bytes(), table.read_bytes()) == before
    assert (tmp_path / "b.csv").read_text() == "theirs"


# ---------------------------------------------------------------------------- environment


def test_environment_keeps_the_rules(corpus):
    for algo in ALGOS:
        envs = DenoiseVectorEnv(corpus, Reward(), 3, algo)
        seen, _ = envs.reset(seed=0)
        envs.action_space.seed(0)
        for _ in range(4):
            assert envs.observation_space.contains(seen)
            seen, rewards, over, truncated, infos = envs.step(envs.action_space.sample())
            assert rewards.shape == (3,) and np.isfinite(rewards).all() and not truncated.any()
            assert over.any() == ("final_obs" in infos)


def one_lane(corpus, task, clip, scaler=AS_IT_IS) -> Lanes:
    """An episode of a clip."""
    lanes = Lanes(corpus, task, 1, scaler)
    lanes.start(0, clip)
    return lanes


def tick(lanes: Lanes, *action: int) -> tuple[float, bool]:
    """One step by an action of ppo-separate -> reward, whether the episode is over."""
    reward, over = lanes.tick(*environment.read_actions("ppo-separate", np.array([action])))
    return float(reward[0]), bool(over[0])


def test_observation_changes_with_the_audio(corpus):
    """HEAR's agent saw the features of the noisy clip at every step."""
    wide = Scaler(np.zeros(environment.OBSERVATION), np.full(environment.OBSERVATION, 100.0))
    lanes = one_lane(corpus, Reward(), 0, wide)
    before = lanes.states()[0]
    tick(lanes, 0, 3, 5, 2)
    before, after = 100 * before, 100 * lanes.states()[0]
    seen = len(denoisers.FEATURES)
    assert np.abs(after[:seen] - before[:seen]).max() > 1.0
    np.testing.assert_allclose(after[:seen], denoisers.features(lanes.batch(), RATE)[0], atol=1e-4)
    names = dict(zip(environment.MEMORY, after[seen:], strict=True))
    assert names["spectral_sub"] == 1 and names["lsa"] == 0 and names["removed_db"] > 0
    assert names["strength"] == pytest.approx(0.6) and names["share_of_steps"] == pytest.approx(
        1 / 3
    )


def test_reward_is_the_gain(corpus):
    task = Reward(diversity_weight=0.2, quality_stride=1)
    late = Reward(quality_interval=0, quality_stride=1)
    actions = [[1, 2, 3, 2], [1, 0, 3, 2], [3, 0, 1, 0]]
    paid, clip = [], corpus.clips[2]
    for lanes in (one_lane(corpus, task, 2), one_lane(corpus, late, 2)):
        for action in actions:
            reward, over = tick(lanes, *action)
            paid.append(reward)
    assert over
    wave = lanes.batch().audio[0].numpy()
    scores = mixtures.measure([clip], [wave], RATE)
    gain = (environment.worth(scores, task) - environment.worth(corpus.scores[2:3], task))[0]
    assert sum(paid[:3]) == pytest.approx(gain - 0.1 + 0.2, abs=1e-4)  # the same, then another
    assert sum(paid[3:]) == pytest.approx(gain, abs=1e-4)
    exact = denoisers.pystoi_pair(clip.clean, wave, RATE)
    assert lanes.scores[0, 1:].tolist() == pytest.approx(exact, abs=1e-4)


def test_stop_ends_the_episode(corpus):
    reward, over = tick(one_lane(corpus, Reward(diversity_weight=1.0), 1), STOP, 0, 0, 0)
    assert over and reward == pytest.approx(0, abs=1e-3)


def test_lanes_go_like_one_environment(corpus):
    envs = DenoiseVectorEnv(corpus, Reward(), 3, "ppo-separate")
    seen = envs.reset(seed=3)[0]
    alone = [one_lane(corpus, Reward(), clip) for clip in envs.lanes.clip]
    assert len({*envs.lanes.clip}) == 3
    rng = np.random.default_rng(0)
    for _ in range(5):
        before = np.concatenate([lanes.states() for lanes in alone])
        np.testing.assert_allclose(before, seen, atol=1e-3)
        actions = rng.integers(0, envs.single_action_space.nvec, (3, 4))
        seen, rewards, over, _, infos = envs.step(actions)
        for place, action in enumerate(actions):
            reward, ended = tick(alone[place], *action)
            assert rewards[place] == pytest.approx(reward, abs=1e-4) and over[place] == ended
            if ended:
                last = alone[place].states()[0]
                np.testing.assert_allclose(infos["final_obs"][place], last, atol=1e-3)
                alone[place].start(0, envs.lanes.clip[place])


def test_every_choice_is_as_likely_as_the_others():
    """HEAR rounded a float: the outer methods had half the range of the inner ones."""
    rng = np.random.default_rng(0)
    for algo in ("ppo-separate", "sac"):
        space = environment.action_space(algo)
        space.seed(0)
        actions = np.stack([space.sample() for _ in range(2000)])
        choices, params = environment.read_actions(algo, actions)
        assert np.bincount(choices, minlength=5).min() > 330
        assert params.min() >= 0 and params.max() <= 1
    order = rng.permutation(5)  # the number of a method means nothing to the box
    box = np.zeros((5, 8), np.float32)
    box[np.arange(5), order] = 1
    assert (environment.read_actions("td3", box)[0] == order).all()


def test_unmeasurable_clips_do_not_stop_training(corpus):
    short = corpus.clips[0]._replace(reference=None)
    other = corpus._replace(
        clips=[short], seen=corpus.seen[:1], scores=np.array([[5.0, np.nan, np.nan]])
    )
    lanes = Lanes(other, Reward(), 1, AS_IT_IS)
    lanes.start(0, 0)
    reward, _ = lanes.tick(np.array([0]), np.full((1, 3), 0.5))
    assert np.isfinite(reward).all()


# ---------------------------------------------------------------------------- agents


@pytest.mark.parametrize("algo", ALGOS)
def test_a_run_can_be_loaded_and_chooses_the_same(algo, runs, corpus):
    agent = environment.load_agent(runs[algo])
    content = json.loads((runs[algo] / "agent.json").read_text())
    np.testing.assert_allclose(agent.scaler.mean, content["scaler"]["mean"])
    raw = np.random.default_rng(0).standard_normal((7, environment.OBSERVATION)).astype(np.float32)
    choices, params = agent.choose(raw, 0)
    library = __import__("stable_baselines3")
    model = getattr(library, algo.partition("-")[0].upper()).load(runs[algo] / "model.zip")
    expected, _ = model.predict(agent.scaler(raw), deterministic=True)
    expected = environment.read_actions(algo, expected)
    np.testing.assert_array_equal(choices, expected[0])
    np.testing.assert_allclose(params, expected[1], atol=1e-5)
    found = environment.evaluate(corpus, agent.task, agent.choose)
    assert all(len(chain) <= 3 for chain in found.chains) and np.isfinite(found.gain).all()


def test_scaler_saw_training_clips_only(runs, corpus, data):
    cfg = small(data, runs["ppo"])
    again = environment.fit_scaler(corpus, cfg)
    loaded = environment.load_agent(runs["ppo"]).scaler
    np.testing.assert_allclose(again.mean, loaded.mean)
    np.testing.assert_allclose(again.std, loaded.std)


class Bomb:
    """Unpickling it is noticed."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_loading_runs_no_code(runs, tmp_path):
    source, folder = runs["sac"], tmp_path / "bad"
    folder.mkdir()
    (folder / "agent.json").write_text((source / "agent.json").read_text())
    bomb = io.BytesIO()
    torch.save({"weights": Bomb()}, bomb)
    for name, content in (("data", pickle.dumps(Bomb())), ("policy.pth", bomb.getvalue())):
        with (
            zipfile.ZipFile(source / "model.zip") as old,
            zipfile.ZipFile(folder / "model.zip", "w") as new,
        ):
            for entry in old.namelist():
                new.writestr(entry, content if entry == name else old.read(entry))
        if name == "data":
            environment.load_agent(folder)  # not opened at all
        else:
            with pytest.raises(InputError, match="is not a run"):
                environment.load_agent(folder)


def test_same_seed_same_policy(runs, data, tmp_path):
    training.train(small(data, tmp_path / "again", algo="ppo"))
    first, second = (
        (folder / "history.csv").read_text().splitlines()
        for folder in (runs["ppo"], tmp_path / "again")
    )
    rows = [list(csv.DictReader(lines)) for lines in (first, second)]
    for one, other in zip(*rows, strict=True):
        for name in ("step", "train_return", "validation_gain", "stoi"):
            assert one[name] == other[name]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(run / "model.zip") as archive:
        return torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_resumed_run_equals_an_uninterrupted_one(algo, data, tmp_path, monkeypatch, capsys):
    """Bit for bit, also where the replay is full, exploration draws random actions, and no look
    was due where it stopped."""
    sizes = {"algo": algo, "total_steps": 32, "random_steps": 12, "replay": 24}
    looks = iter([*range(1, 5)] * 2)
    real = environment.evaluate

    def better_each_time(*args):  # so that the last weights are the kept ones
        found = real(*args)
        return found._replace(gain=found.gain + 1000 * next(looks))

    monkeypatch.setattr(environment, "evaluate", better_each_time)
    training.train(small(data, tmp_path / "straight", **sizes))
    broken = small(data, tmp_path / "broken", **sizes)
    received, ticks = [], []
    real_step = DenoiseVectorEnv.step

    def step(envs, actions):  # a signal comes in the third tick of every start
        ticks.append(envs)
        received.extend([15] * (len(ticks) == 3))
        return real_step(envs, actions)

    monkeypatch.setattr(DenoiseVectorEnv, "step", step)
    monkeypatch.setattr(training, "catch_signals", lambda: ticks.clear() or received)
    program = importlib.util.find_spec("studies.denoise.__main__")  # as by `python -m`
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", program)
    monkeypatch.setattr(sys, "argv", [program.origin, "train", "--run", "a b", "--overwrite"])
    again = "\n  python -m studies.denoise train --run 'a b' --resume\n"
    for steps in (16,) if algo.startswith("ppo") else (12, 24):
        assert training.train(broken) == 128 + 15
        assert f"saved after {steps} steps; to go on, run:{again}" in capsys.readouterr().out
        broken = dataclasses.replace(broken, resume=True)
        received.clear()
    assert training.train(broken) == 0
    rows = []
    for name in ("straight", "broken"):
        with open(tmp_path / name / "history.csv", newline="") as stream:
            rows.append(list(csv.DictReader(stream)))
    for one, other in zip(*rows, strict=True):
        for name in ("step", "train_return", "validation_gain", "estoi"):
            assert one[name] == other[name]
    first, second = weights_of(tmp_path / "straight"), weights_of(tmp_path / "broken")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not (tmp_path / "broken" / "last.pt").exists()


def test_what_cannot_be_resumed_is_refused(data, runs, tmp_path, monkeypatch):
    cfg = small(data, tmp_path / "run")
    with pytest.raises(InputError, match="leave out --resume"):
        training.train(dataclasses.replace(cfg, resume=True))
    shutil.copytree(runs["ppo"], tmp_path / "done")
    with pytest.raises(InputError, match="holds a finished run; give --overwrite"):
        training.train(small(data, tmp_path / "done", resume=True))
    monkeypatch.setattr(training, "catch_signals", lambda: [15])
    assert training.train(cfg) == 128 + 15
    with pytest.raises(InputError, match="--overwrite"):
        training.train(cfg)
    with pytest.raises(InputError, match="gamma"):
        training.train(dataclasses.replace(cfg, resume=True, gamma=0.5))


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"rollout_steps": 10}, "num-envs"),
        ({"batch_size": 3}, "batch-size"),
        ({"batch_size": 1}, "batch-size"),
        ({"total_steps": 7}, "total-steps"),
        ({"algo": "sac", "random_steps": 16}, "random-steps"),
    ],
)
def test_rollout_and_batch_must_fit(more, flag, data, tmp_path):
    with pytest.raises(ValueError, match=flag):
        small(data, tmp_path / "run", **more)


def test_the_library_has_nothing_to_warn_of(data, tmp_path, recwarn):
    training.train(small(data, tmp_path / "run", algo="ppo"))
    assert not [one for one in recwarn if "batch" in str(one.message)]


def test_wandb_only_where_it_is_asked_for(data, tmp_path, monkeypatch):
    assert "wandb" not in sys.modules
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(InputError, match="pip install wandb"):
        training.train(small(data, tmp_path / "run", wandb_project="x"))


# ---------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "tune.json"
    table = data / "train" / "features.csv"
    commands.tune(TuneConfig(features=table, out=path, clips=1, beam=1, max_steps=1))
    return path


def test_tuning_gains_on_what_it_is_tuned_on(tuned):
    chain, *_ = table.read_tuned(tuned)
    assert json.loads(tuned.read_text())["gain"] >= -1e-3 and len(chain) <= 1


def test_metrics_has_every_row(runs, tuned, data, tmp_path, capsys):
    cfg = MetricsConfig(
        checkpoint=(f"PPO={runs['ppo']}", f"others={runs['sac']},{runs['td3']}"),
        meta=data / "test" / "meta.csv",
        tuned=tuned,
        out=tmp_path / "out",
        plot_dir=tmp_path / "plots",
        output_dir=tmp_path / "samples",
    )
    commands.main(cfg)
    with open(tmp_path / "out" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    members = {"noisy": 1, "constant chain": 1, "random policy": 5, "noisereduce": 1}
    members |= {"noisereduce, tuned": 1, "PPO": 1, "others": 2}
    for name, count in members.items():
        assert sum(row["model"] == name for row in rows) == 4 * count
    first = next(row for row in rows if row["model"] == "PPO")
    clip = mixtures.read_meta(data / "test" / "meta.csv")[0]
    clean, noisy = (
        soundfile.read(data / "test" / clip[f"{kind}_path"], dtype="float32")[0]
        for kind in ("clean", "noisy")
    )
    agent = environment.load_agent(runs["ppo"])
    (wave,), (chain,) = environment.run_chains([noisy], RATE, 3, agent.choose)
    value = float(denoisers.si_sdr(batch_of([clean]).audio, batch_of([wave]))[0])
    assert float(first["si_sdr"]) == pytest.approx(value, abs=1e-3)
    assert first["chain"] == environment.told(chain)
    names = {path.name for path in (tmp_path / "plots").glob("*.png")}
    assert names == {"si_sdr.png", "stoi.png", "estoi.png", "gaps.png", "curves.png"}
    with open(tmp_path / "samples" / "samples.csv", newline="") as stream:
        samples = list(csv.DictReader(stream))
    assert len(samples) == 3 and len(list((tmp_path / "samples").glob("*.wav"))) == 9
    assert "against the constant chain" in capsys.readouterr().out


def test_who_leaves_alone_and_who_hurts():
    chain = [(0, (0.0, 0.0, 0.0))]
    scores = np.zeros((1, 4, 4))
    scores[0, :, 3] = 1.0, -0.04, -0.06, -3.0
    rows = [table.Row("a|b", "policy", scores, [[[], chain, chain, [*chain, *chain]]], [])]
    lines = table.chain_lines([table.Row("noisy", "noisy", scores, [], []), *rows])
    assert len(lines) == 5 and lines[2].startswith("| a\\|b | 1.00 | 25% | 50% | spectral_sub 50%;")


def test_measurements_outlive_a_reworded_comment(tmp_path):
    """What was measured is known by the code, not by its comments."""
    path = tmp_path / "some.py"
    module = types.ModuleType("some")
    module.__file__ = str(path)
    path.write_text('"""Before."""\n\n\ndef f(x):\n    """One."""\n    return 2 * x  # why\n')
    before = mixtures.code_of(module)
    path.write_text('"""After."""\ndef f(x):\n    """Other."""\n    # another\n    return 2 * x\n')
    assert mixtures.code_of(module) == before
    path.write_text('"""After."""\ndef f(x):\n    """Other."""\n    return 3 * x\n')
    assert mixtures.code_of(module) != before


def infer(*words: object) -> None:
    commands.main(parse(COMMANDS, ["infer", *map(str, words)]))


def test_infer_keeps_the_inputs_rate(runs, tmp_path, capsys):
    stereo = np.random.default_rng(0).standard_normal((12000, 2)) / 10
    soundfile.write(tmp_path / "in.wav", stereo, 11025)
    given = ("--input", tmp_path / "in.wav", "--output", tmp_path / "out.wav")
    infer("--checkpoint", runs["ppo"] / "model.zip", runs["sac"], *given)
    for name in ("ppo", "sac"):
        wave, rate = soundfile.read(tmp_path / f"out__{name}.wav")
        assert rate == 11025 and wave.shape == (12000,)
    told = capsys.readouterr().out
    assert "ppo: " in told and "leave it alone: 0" in told and told.count("note") == 1
    assert "in.wav has 2 channels; the mean of them is denoised\n" in told
    soundfile.write(tmp_path / "in.wav", stereo, 4000)
    infer("--checkpoint", runs["ppo"], *given)
    assert "it may choose badly" in capsys.readouterr().out  # less than what the policy knows
    assert soundfile.info(tmp_path / "out.wav").samplerate == 4000


def test_the_policys_features_are_those_of_its_own_rate():
    """A chain that looks at the features sees the same of 8 kHz and of the same at 16 kHz."""
    _, noisy = noisy_speech(1.5)
    wide = mixtures.resample(noisy, RATE, 2 * RATE)
    shown = []

    def choose(raw, step):
        shown.append(raw[0, : len(denoisers.FEATURES)])
        return np.array([STOP]), np.zeros((1, 3))

    environment.run_chains([noisy], RATE, 1, choose)
    environment.run_chains([wide], 2 * RATE, 1, choose, RATE)
    assert np.abs(shown[0] - shown[1]).mean() < 1.0  # dB


def test_infer_does_not_clip(runs, tmp_path, monkeypatch, capsys):
    quiet = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    soundfile.write(tmp_path / "in.wav", quiet, RATE)
    monkeypatch.setattr(commands, "denoised", lambda noisy, *_: (40 * noisy, [], 0.0))
    infer(
        *("--checkpoint", runs["ppo"], "--input", tmp_path / "in.wav"),
        *("--output", tmp_path / "out.wav"),
    )
    wave, _ = soundfile.read(tmp_path / "out.wav")
    assert np.abs(wave).max() == pytest.approx(1.0, abs=1e-3)
    assert np.corrcoef(wave, quiet)[0, 1] > 0.9999  # scaled, not cut
    assert "softer" in capsys.readouterr().out


def test_a_clean_recording_of_slightly_other_length_is_cut(runs, tmp_path, capsys):
    clean, noisy = noisy_speech(2.0)
    soundfile.write(tmp_path / "noisy.wav", noisy, RATE)
    given = ("--checkpoint", runs["ppo"], "--input", tmp_path / "noisy.wav")
    given += ("--output", tmp_path / "out.wav", "--clean", tmp_path / "clean.wav")
    said = []
    for length in (len(clean), len(clean) - 160, len(clean) + 160):
        wave = np.resize(clean, length)
        soundfile.write(tmp_path / "clean.wav", wave, RATE)
        (tmp_path / "out.wav").unlink(missing_ok=True)
        infer(*given)
        said.append(capsys.readouterr().out)
    assert "first 15840 samples" in said[1] and "first 16000 samples" in said[2]
    levels = [re.findall(r"noisy +SI-SDR +(-?[0-9.]+)", text)[0] for text in said]
    assert float(levels[0]) == pytest.approx(float(levels[2]), abs=0.01)
    assert float(levels[0]) == pytest.approx(float(levels[1]), abs=0.5)
    soundfile.write(tmp_path / "clean.wav", clean[: len(clean) // 2], RATE)
    (tmp_path / "out.wav").unlink()
    with pytest.raises(InputError, match=r"clean\.wav"):
        infer(*given)
    soundfile.write(tmp_path / "clean.wav", np.zeros(len(clean)), RATE)
    with pytest.raises(InputError, match=r"clean\.wav: is silent"):
        infer(*given)


def test_metrics_without_tune_takes_the_librarys_defaults(runs, data, tmp_path, capsys):
    cfg = MetricsConfig(
        checkpoint=(str(runs["ppo"] / "model.zip"),),
        meta=data / "test" / "meta.csv",
        tuned=tmp_path / "none.json",
        out=tmp_path / "out",
        plot_dir=tmp_path / "plots",
    )
    commands.main(cfg)
    said = capsys.readouterr().out
    assert "defaults" in said and "tune" in said
    names = [one["name"] for one in json.loads((tmp_path / "out/results.json").read_text())["rows"]]
    assert names == ["noisy", "random policy", "noisereduce", "ppo"]


def test_sweep_goes_on_where_it_was(data, tmp_path, monkeypatch):
    base = {k: v for k, v in vars(small(data, tmp_path)).items() if k not in ("run", "features")}
    base = {key: base[key] for key in ("total_steps", "num_envs", "rollout_steps", "batch_size")}
    base |= {"hidden": [8], "scaler_steps": 32, "random_steps": 8}
    grid = {"learning_rate": [3e-5], "diversity_weight": [0.0, 0.1]}
    one = {"name": "ppo_small", "algo": "ppo", "base_args": base, "sweep_params": grid}
    path = tmp_path / "experiments.json"
    path.write_text(json.dumps({"experiments": [one]}))
    cfg = SweepConfig(
        config=path, features=data / "train" / "features.csv", output_root=tmp_path / "sweep"
    )
    started = []

    real = commands.subprocess.run

    def run(command, **more):
        if command[1:3] != ["-m", "studies.denoise"]:  # git, asked for the version
            return real(command, **more)
        started.append(command)
        if len(started) == 1:  # the first one breaks
            return type("Done", (), {"returncode": 1})
        commands.main(parse(COMMANDS, command[3:]))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(commands.subprocess, "run", run)
    assert commands.sweep(cfg) == 1  # one failed, the others were done
    assert len(started) == 2 and started[0][0] == sys.executable
    assert commands.sweep(cfg) == 0 and len(started) == 3  # only the one that was missing
    names = sorted(folder.name for folder in (tmp_path / "sweep" / "ppo_small").iterdir())
    assert "00_learning_rate-3e-05_diversity_weight-0" in names
    with open(tmp_path / "sweep" / "summary.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 and all(math.isfinite(float(row["validation_gain"])) for row in rows)
    path.write_text(json.dumps({"experiments": [one | {"base_args": {"total_step": 1}}]}))
    with pytest.raises(InputError, match="did you mean 'total_steps'"):
        commands.sweep(cfg)
    for more, said in (
        ({"name": "../elsewhere"}, "'../elsewhere' leads out of its folder"),
        ({"sweep_params": {"stoi_weight": 10.0}}, "'float' object is not iterable"),
        ({"base_args": [1]}, "not a list of experiments"),
    ):
        path.write_text(json.dumps({"experiments": [one | more]}))
        with pytest.raises(InputError, match=said):
            commands.sweep(cfg)


def test_a_mistake_ends_with_one_line(run_module):
    code, out, err = run_module("studies.denoise", "infer", "--checkpoint", "nowhere")
    assert (code, out) == (2, "")
    missing = "nowhere/agent.json: not found; train first: python -m studies.denoise train"
    assert err == f"python -m studies.denoise: error: {missing}\n"


def test_a_missing_package_is_named(run_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystoi", None)  # not installed
    for name in ("commands", "denoisers"):
        monkeypatch.delitem(sys.modules, f"studies.denoise.{name}")
    code, out, err = run_module("studies.denoise", "infer")
    text = "needs pystoi; run: pip install -r requirements-studies.txt"
    assert (code, out) == (2, "") and err.endswith(f"{text}\n") and err.count("\n") == 1


def test_seed_decides_the_order(corpus):
    lanes = DenoiseVectorEnv(corpus, Reward(), 3)
    first = lanes.reset(seed=5)[0]
    assert np.array_equal(first, lanes.reset(seed=5)[0])
    assert not np.array_equal(first, lanes.reset(seed=6)[0])
