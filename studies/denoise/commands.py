"""Does reinforcement learning choose denoisers better than a constant chain? The study's commands.

Run:    python -m studies.denoise mix | features | train | tune | metrics | infer | sweep | cross
Reads:  data/denoise/<split>/{meta.csv, features.csv}, runs/denoise/*
Writes: runs/denoise/<name>/{model.zip, agent.json, metrics.json, history.csv}; others: --help

Needs requirements-studies.txt. README.md has the formulas, the tables and the verdict.
"""

import itertools
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import soundfile
import torch

from core.errors import InputError
from core.files import Kind, check_file, keep_apart, made, own_folder
from core.names import name_flaw
from core.processes import ENDS_WITH_PARENT
from core.settings import from_dict, to_dict
from core.stored import read_json, write_json
from studies.denoise import cross, data, environment, settings, table
from studies.denoise.data import MEASURES, write_csv
from studies.denoise.denoisers import batch_of, pystoi_pair, si_sdr
from studies.denoise.environment import Agent, Chain, Choice, load_agent, load_corpus
from studies.denoise.settings import InferConfig, SweepConfig, TrainConfig, TuneConfig
from studies.denoise.training import train

NOISEREDUCE = [(steady, share) for steady in (False, True) for share in (0.3, 0.5, 0.7, 0.85, 1.0)]


def tune(cfg: TuneConfig) -> None:
    """Write the constant chain and the setting of noisereduce that gain most on training clips."""
    keep_apart(cfg.out, [cfg.features])
    check_file(cfg.out, '{\n "chain"')
    corpus = load_corpus(cfg.features)
    order = np.random.default_rng(cfg.seed).permutation(len(corpus.clips))
    few = corpus.some(order[: cfg.clips])
    began = time.perf_counter()
    chain = environment.tune_constant(few, cfg)
    many = corpus.some(order[: 4 * cfg.clips])
    finalists = [chain[:length] for length in range(len(chain) + 1)]
    chosen = [environment.evaluate(many, cfg, environment.constant(one)) for one in finalists]
    gains = [float(one.gain.mean()) for one in chosen]
    chain = finalists[int(np.argmax(gains))]
    print(f"constant chain: {max(gains):+.4f}  {environment.told(chain)}")
    reduced = {}
    for steady, share in NOISEREDUCE:
        waves = environment.noisereduce_waves(few, steady, share)
        gain = reduced[steady, share] = float(environment.judged(few, cfg, waves).gain.mean())
        print(f"noisereduce stationary={steady} prop_decrease={share}: {gain:+.4f}")
    steady, share = max(reduced, key=reduced.get)
    content = {"chain": chain, "told": environment.told(chain), "gain": max(gains)}
    content |= {"clips": len(many.clips), "task": cfg.task}
    content["noisereduce"] = {"stationary": steady, "prop_decrease": share}
    content["seconds"] = round(time.perf_counter() - began, 1)
    with made(cfg.out.parent):
        write_json(cfg.out, content)
    print(f"baselines: {cfg.out}")


MOST_APART = 0.1  # share by which a clean recording may be longer or shorter than the noisy one


def infer(cfg: InferConfig) -> None:
    """Denoise one recording at its own rate; the chosen chain is printed."""
    names = [environment.home_of(path).name for path in cfg.checkpoint]
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint: two folders have the same name: {', '.join(names)}")
    agents = [load_agent(path) for path in cfg.checkpoint]
    kind = cfg.output.suffix[1:] or "wav"
    if not soundfile.check_format(kind, "PCM_16"):
        raise InputError(f"--output {cfg.output}: no format of 16 bits; give .wav or .flac")
    paths = [cfg.output]
    if len(agents) > 1:
        paths = [cfg.output.with_stem(f"{cfg.output.stem}__{name}") for name in names]
    for path in paths:
        keep_apart(path, [cfg.input, cfg.clean], "--output")
        if path.exists():
            raise InputError(f"--output {path}: is there already; remove it or give another name")
    samples, rate = data.read_channels(cfg.input)
    noisy = samples.mean(axis=1)
    if samples.shape[1] > 1:
        print(f"note: {cfg.input} has {samples.shape[1]} channels; the mean of them is denoised")
    clean = read_clean(cfg, len(noisy), rate) if cfg.clean else None
    for name, agent, path in zip(names, agents, paths, strict=True):
        if rate < agent.sample_rate:
            learned = f"{name} learned from {agent.sample_rate} Hz"
            print(f"note: {cfg.input} has {rate} Hz, {learned}; it may choose badly")
        wave, chain, expected = denoised(noisy, rate, agent, cfg.max_steps)
        peak = max(1.0, float(np.abs(wave).max()))
        if peak > 1:
            print(f"note: {path} is {20 * np.log10(peak):.1f} dB softer, or it would clip")
        with made(path.parent):
            data.write_wave(path, wave / peak, rate, kind)
        print(f"{name}: {environment.told(chain)}")
        print(f"  expected return {expected:+.2f} (leave it alone: 0)\n{path}")
        if clean is not None:
            print_scores(clean, noisy, wave, rate)


def denoised(
    noisy: np.ndarray, rate: int, agent: Agent, max_steps: int | None
) -> tuple[np.ndarray, Chain, float]:
    """Wave, chain, and what the policy expected of it before its first choice."""
    expected: list[float] = []

    def choose(raw: np.ndarray, step: int) -> Choice:
        expected.append(float(agent.value(raw)[0]))
        return agent.choose(raw, step)

    most = max_steps or agent.task.max_steps
    (wave,), (chain,) = environment.run_chains([noisy], rate, most, choose, agent.sample_rate)
    return wave, chain, expected[0]


def read_clean(cfg: InferConfig, length: int, rate: int) -> np.ndarray:
    """The clean recording at the noisy one's rate; its length may differ a little, and is cut."""
    clean = data.read_wave(cfg.clean, rate)
    if abs(len(clean) - length) > MOST_APART * length:
        apart = f"has {len(clean) / rate:.2f} s, the noisy recording {length / rate:.2f} s"
        raise InputError(f"{cfg.clean}: {apart}; give the recording that the noise was added to")
    if not clean.any():
        raise InputError(f"--clean {cfg.clean}: is silent; give the recording without the noise")
    if len(clean) != length:
        print(f"note: measured over the first {min(len(clean), length)} samples of both")
    return clean


def print_scores(clean: np.ndarray, noisy: np.ndarray, wave: np.ndarray, rate: int) -> None:
    """SI-SDR, STOI, ESTOI before and after."""
    count = min(len(clean), len(noisy))
    for name, audio in (("noisy", noisy[:count]), ("denoised", wave[:count])):
        value = float(si_sdr(batch_of([clean[:count]]).audio, batch_of([audio]))[0])
        stoi, estoi = pystoi_pair(clean[:count], audio, rate)
        print(f"  {name:9s} SI-SDR {value:6.2f} dB  STOI {stoi:.3f}  ESTOI {estoi:.3f}")


def text_of(value: Any) -> str:
    """A setting as part of a folder's name, without = and comma; 0.00003 stays 3e-05."""
    if isinstance(value, (list, tuple)):
        return "x".join(text_of(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "-")


def plan(cfg: SweepConfig) -> list[tuple[str, dict[str, Any], TrainConfig]]:
    """Experiment, swept settings and config of all trainings, checked before the first starts."""
    try:
        experiments = read_json(cfg.config, "give a list of experiments")["experiments"]
        found = [
            (
                str(one["name"]),
                {"algo": one.get("algo", "ppo"), **one.get("base_args", {})},
                {name: list(values) for name, values in one.get("sweep_params", {}).items()},
            )
            for one in experiments
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--config {cfg.config}: not a list of experiments ({error!r})") from None
    names = [name for name, *_ in found]
    if len(set(names)) < len(names):
        raise InputError(f"--config {cfg.config}: two experiments have the same name")
    planned = []
    for name, base, grid in found:
        if flaw := name_flaw(name, path=True):  # it becomes a folder
            raise InputError(f"--config {cfg.config}: the name {name!r} {flaw}")
        if cfg.features:
            base.setdefault("features", str(cfg.features))
        if cfg.wandb_project:
            base["wandb_project"] = cfg.wandb_project
        for index, values in enumerate(itertools.product(*grid.values())):
            swept = dict(zip(grid, values, strict=True))
            tag = "_".join(f"{key}-{text_of(value)}" for key, value in swept.items()) or "base"
            folder = cfg.output_root / name / f"{index:02d}_{tag}"
            given = {**base, **swept, "run": str(folder), "overwrite": True}
            try:
                training = from_dict(TrainConfig, to_dict(TrainConfig()) | given)
            except InputError as error:
                raise InputError(f"--config {cfg.config}: {name}: {error}") from None
            planned.append((name, swept, training))
    return planned


def words_of(cfg: TrainConfig) -> list[str]:
    words = ["train"]
    for name, value in vars(cfg).items():
        if value is not None and value is not False:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def result_of(cfg: TrainConfig) -> dict[str, Any] | None:
    """metrics.json of a run with exactly these settings; None: there is no such run."""
    path = cfg.folder / "metrics.json"
    if not path.exists():
        return None
    found = read_json(path, "delete the folder")
    return found if found.get("args") == to_dict(cfg) else None


SWEEP = Kind("sweep", older=(("summary.csv", ""), ("*/*/agent.json", "algo")))


def sweep(cfg: SweepConfig) -> int:
    """One process after the other; a failure does not stop the rest. Exit code 1 if any did."""
    keep_apart(cfg.output_root, [cfg.config, cfg.features], "--output-root")
    planned = plan(cfg)
    with own_folder(cfg.output_root, SWEEP, flag="--output-root"):
        rows: list[dict[str, Any]] = []
        for place, (name, swept, training) in enumerate(planned, 1):
            folder = training.folder
            print(f"[{place}/{len(planned)}] {folder}", flush=True)
            if result_of(training) is None:
                folder.parent.mkdir(exist_ok=True)
                log = folder.with_name(folder.name + ".log")
                with open(log, "w", encoding="utf-8") as stream:
                    command = [sys.executable, "-m", "studies.denoise", *words_of(training)]
                    environ = os.environ | {ENDS_WITH_PARENT: "1"}
                    done = subprocess.run(command, stdout=stream, stderr=stream, env=environ)
                if done.returncode:
                    print(f"  failed with exit code {done.returncode}; see {log}")
            metrics = result_of(training)
            row = {"experiment": name, "run": folder.name, "algo": training.algo, **swept}
            row["finished"] = metrics is not None
            if metrics is not None:
                row |= {name: metrics["best"][name] for name in ("validation_gain", *MEASURES)}
                row["steps_per_s"] = metrics["steps_per_s"]
                print(f"  validation gain {row['validation_gain']:+.4f}")
            rows.append(row)
            columns = tuple(dict.fromkeys(key for row in rows for key in row))
            write_csv(cfg.output_root / "summary.csv", columns, rows)
        print(f"summary: {cfg.output_root / 'summary.csv'}")
        return int(not all(row["finished"] for row in rows))


RUN = {
    settings.MixConfig: data.mix,
    settings.FeaturesConfig: data.write_features,
    TrainConfig: train,
    TuneConfig: tune,
    SweepConfig: sweep,
    settings.CrossConfig: cross.cross,
    InferConfig: infer,
    settings.MetricsConfig: table.metrics,
}


def main(cfg: Any) -> int | None:
    torch.set_num_threads(1)  # small tensors are slower on two
    return RUN[type(cfg)](cfg)
