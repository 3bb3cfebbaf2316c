"""Every command of the studies' pages, in the order of its page, with small sizes.

A page's `bash` blocks are read as a shell reads them; only sizes are replaced (`SMALL`). What comes
from outside (DATA, recordings, archives) is made small before.
"""

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sklearn")
pytest.importorskip("pystoi")
pytest.importorskip("pywt")
pytest.importorskip("noisereduce")
pytest.importorskip("Box2D")
pytest.importorskip("pygame")

from scores.synthesiser import synthesise

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"--total-steps": "256", "--eval-every": "256", "--scaler-steps": "32"}
TRAINING_OF_A_ROUND = {"--total-steps": "256", "--eval-every": "256"}
ACTIVE = {"--cycles": "3", "--epochs": "1", "--first": "20", "--per-cycle": "10", "--width": "2"}
ACTIVE |= {"--workers": "1", "--network": "small", "--batch": "16"}
DQN = {"--learning.budget": "40", "--learning.epsilon-span": "20", "--checking.every": "500"}
SMALL: dict[str, dict[str, dict[str, str]]] = {  # package -> command -> flags that are replaced
    "studies.denoise": {
        "mix": {"--clips": "4 3 3", "--join": "1"},
        "features": {},
        "train": {
            **TRAINING,
            "--rollout-steps": "64",
            "--batch-size": "32",
            "--random-steps": "32",
        },
        "tune": {"--clips": "1", "--beam": "1", "--max-steps": "1"},
        "metrics": {"--sample-size": "2"},
        "infer": {},
        "sweep": {},
        "cross": {**TRAINING_OF_A_ROUND, "--rounds": "diagonal", "--max-steps": "1"},
    },
    "studies.active_learning": {
        "compare": ACTIVE | {"--seeds": "1"},
        "steps": ACTIVE | {"--seeds": "1", "--gradient-steps": "2 200"},
        "repeats": ACTIVE | {"--repeats": "1"},
        "evaluate": {},
        "draw": {"--train": "60", "--test": "20"},
    },
    "studies.classic": {
        "value-iteration": {"--episodes": "3"},
        "q-value-iteration": {"--episodes": "3"},
        "td": {"--learning.steps": "500"},
        "q-learning": {"--learning.steps": "500", "--episodes": "3"},
        "angle": {},
        "genetic": {"--learning.generations": "1", "--learning.episodes": "1"},
        "reinforce": {"--learning.steps": "6000", "--checking.every": "3000"},
        "dqn": DQN,
        "score": {},
        "render": {"--frames": "3"},
        "table": {"--seeds": "1"},
    },
}


def lines_of(package: str) -> list[str]:
    """`python -m <package> ..` lines of a page's bash blocks."""
    text = (ROOT / package.replace(".", "/") / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.S)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in blocks.splitlines()]
    return [line for line in lines if line.startswith(f"python -m {package}")]


def words_of(line: str) -> list[str]:
    """What a shell makes of a line: braces, quotes and $( ) are resolved where it runs."""
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return told.stdout.split("\0")[3:-1]


def small(package: str, words: list[str]) -> list[str]:
    """The words with small sizes; a flag's values are replaced, never given twice."""
    known = SMALL[package]
    command = words[0] if words and not words[0].startswith("-") else "compare"
    flags = dict(known[command])
    out, skip = [], False
    for word in words:
        if word.startswith("--"):
            skip = word in flags
        if not skip:
            out.append(word)
    return [*out, *(part for flag, value in flags.items() for part in (flag, *value.split()))]


@pytest.fixture
def run(run_module) -> Callable[[str, str], None]:
    """A line of a page, in this process."""

    def told(package: str, line: str) -> None:
        code, _, err = run_module(package, *small(package, words_of(line)))
        assert code == 0, (line, err)

    return told


def write_voice(folder: Path, speaker: str, rate: int, count: int) -> None:
    """Synthesised words of one speaker."""
    (folder / speaker).mkdir(parents=True)
    for take in range(count):
        wave = synthesise(0, "Speech", 1, take)
        soundfile.write(folder / speaker / f"{take}.wav", np.tile(wave, 2)[: rate + take], rate)


def write_noise(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for fold in (1, 2):
        for name in ("Rain", "Dog"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            wave = rng.normal(0, 0.1, 3 * 16000)
            soundfile.write(folder / name / f"{fold}-1-A.wav", wave, 16000)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder of its own, one thread."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for what a command starts itself


@pytest.mark.parametrize("package", SMALL)
def test_every_command_is_on_its_page(package):
    said = {line.split()[3] if len(line.split()) > 3 else "compare" for line in lines_of(package)}
    assert {word for word in said if not word.startswith("-")} <= set(SMALL[package])
    named = importlib.import_module(f"{package}.settings")
    known = named.COMMANDS if hasattr(named, "COMMANDS") else named.commands([])
    text = (ROOT / package.replace(".", "/") / "README.md").read_text(encoding="utf-8")
    assert not [name for name in known if f"{name}" not in text]


def test_a_log_gets_few_lines_of_a_progress_bar():
    """No terminal: the first and the last line of a second's work, not one each 0.1 s."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
    command = [sys.executable, "-m", "studies.classic", "td"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 2, done.stderr


MISTAKES = [
    ("active_learning", "steps --epochs x", "--epochs must be a whole number but x was given"),
    ("active_learning", "--strategies dqn", "--strategies must be a list with random but"),
    ("active_learning", "--data x", "--data must be left out, as the digits are in scikit-learn,"),
    ("active_learning", "--cycles 1", "--cycles must be at least 2 but 1 was given"),
    ("active_learning", "steps --gradient-steps 5", "--gradient-steps must be two or more"),
    ("active_learning", "--epoch 1", "--epoch: no such flag; did you mean --epochs?"),
    ("active_learning", "evaluate", "--classifier must be given; see --help"),
    ("classic", "dqn --learning.lr -3", "--learning.lr must be above 0 but -3.0 was given"),
    ("classic", "reinforce --learning.steps 100", "--learning.steps must be 5000 or more, which"),
    (
        "classic",
        "reinforce --learning.steps None",
        "--learning.steps must be a number, or --learning.iterations, but None was given",
    ),
    ("classic", "dqn --settings x", "--settings must be one of tuned, lecture, tutorial but x was"),
    ("classic", "dqn --no-seed", "--no-seed: no such flag"),
    ("classic", "dqn --dobule", "--dobule: no such flag; did you mean --double?"),
    ("classic", "play", "a command is needed: value-iteration, q-value-iteration, td, q-learning,"),
    ("denoise", "train --batch-size 100", "--rollout-steps must be a multiple of --batch-size 100"),
    ("denoise", "train --warmup-steps 1", "--warmup-steps: no such flag; did you mean --random-"),
    ("denoise", "train --log-dir x", "--log-dir: no such flag; did you mean --run?"),
    ("denoise", "mix --clips 1 2", "--clips must be 3 values but 1 2 was given"),
    ("denoise", "mix --overwrite yes", "--overwrite must be without a value but yes was given"),
    ("denoise", "infer noisy.wav", "noisy.wav: no flag stands before it; see --help"),
    ("denoise", "train --total-step 1", "--total-step: no such flag; did you mean --total-steps?"),
    ("gym", "--steps", "--steps must be a whole number but nothing was given"),
    ("gym", "--step 1", "--step: no such flag; did you mean --steps?"),
    ("crossval", "--labels x", "--scores must be given; see --help"),
    ("crossval", "--label x", "--label: no such flag; did you mean --labels?"),
    ("ablation", "x", "x: nothing may be given; run: python -m studies.ablation"),
    ("benchmark", "x", "x/esc10: not found; give the folder that holds it"),
    ("dcase", "x", "x/dcase2023_baseline: not found; give the folder that holds it"),
    ("vad", "--data x", "--data: no such flag; see --help"),
    ("pretrain", "x", "x: no clips.tsv with folds; give corpora of soundscapes.py"),
    (
        "reproduce",
        "tables",
        "give all [DATA] | benchmark [DATA] | dcase [DATA] | vad [DATA] | demo",
    ),
]


@pytest.mark.parametrize(("study", "words", "said"), MISTAKES)
def test_a_mistake_is_one_line(study, words, said, run_module):
    """As a user starts it: what is wrong, what was given, what to do; exit code 2."""
    code, out, err = run_module(f"studies.{study}", *words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"python -m studies.{study}: error: {said}")


@pytest.mark.slow  # a minute
def test_denoise_page(run):
    for speaker in ("george", "jackson", "lucas"):
        write_voice(Path("DATA/fsdd"), speaker, 8000, 3)
    write_noise(Path("DATA/esc10"))
    for voice in ("awb", "slt"):
        write_voice(Path("data/flite"), voice, 16000, 3)
    soundfile.write("noisy.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    experiments = """{"experiments": [{"name": "small", "algo": "ppo", "base_args":
        {"total_steps": 64, "rollout_steps": 64, "batch_size": 32, "scaler_steps": 32}}]}"""
    Path("experiments.json").write_text(experiments)
    lines = lines_of("studies.denoise")
    assert len(lines) >= 10
    for line in lines:
        if "--cells" in line:
            line = re.sub(r"--cells \d+", "--cells 1", line)
        if " cross " in line:  # the others' training is tested elsewhere
            line = re.sub(r" --agents( [a-z]\S*)+", "", line) + " --agents ppo"
        run("studies.denoise", line)


def write_archive(monkeypatch) -> None:
    """A small archive in the official layout that passes for CIFAR-10's."""
    from studies.active_learning.images import CIFAR

    rng, layout = np.random.default_rng(0), CIFAR["cifar10"]
    folder = Path("unpacked") / layout.folder
    folder.mkdir(parents=True)
    for file in (*layout.train, layout.test):
        labels = (np.arange(40) % 10).astype(np.uint8)
        pixels = rng.integers(256, size=(40, 3072), dtype=np.uint8)
        (folder / file).write_bytes(np.column_stack((labels, pixels)).tobytes())
    (folder / layout.names).write_text("".join(f"class {i}\n" for i in range(10)))
    path = Path("data/images") / layout.archive.name
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, layout.folder)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    archive = layout.archive._replace(md5=md5)
    monkeypatch.setitem(CIFAR, "cifar10", layout._replace(archive=archive))


def test_active_learning_page(run, monkeypatch):
    write_archive(monkeypatch)
    lines = lines_of("studies.active_learning")
    assert len(lines) >= 8
    for line in lines:
        if "compare" in line or line.split()[3:4] in ([], ["--dataset"]):
            line += " --gradient-steps 3"
        run("studies.active_learning", line)


def test_classic_page(run, monkeypatch):
    from studies.classic import agents, commands

    def few(env, network, seed):
        return agents.play(agents.make_envs(env, 2, 20), agents.acting(network), seed).returns

    monkeypatch.setattr(agents, "EPISODES", 2)
    monkeypatch.setattr(agents, "fresh_returns", few)
    monkeypatch.setattr(commands, "process_pool", None)  # tables are tested elsewhere: read only
    lines = lines_of("studies.classic")
    assert len(lines) >= 10
    tables = [line for line in lines if " table" in line]
    for line in lines:
        if line not in tables:
            run("studies.classic", line)
    for line in tables:
        command, *rest = words_of(line)
        env = rest[rest.index("--env") + 1] if "--env" in rest else "CartPole-v1"
        cfg = importlib.import_module("studies.classic.settings").TableConfig(env=env, seeds=1)
        for (one,) in list(commands.rows_of(cfg).values())[:1]:
            commands.train(shrunk(one), progress=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commands, "result_of", stored)
            run("studies.classic", f"{line} --present" if "--present" not in line else line)
        assert command == "table"


def shrunk(one):
    """A row's training, tiny."""
    import dataclasses

    if hasattr(one.learning, "budget"):
        small_one = dataclasses.replace(one.learning, budget=300, start_steps=150)
    else:
        small_one = dataclasses.replace(one.learning, steps=one.learning.max_steps * 11)
    checking = dataclasses.replace(one.checking, every=100)
    return dataclasses.replace(one, learning=small_one, checking=checking, overwrite=True)


def stored(cfg):
    """The result of a shrunk training, as if it had the page's settings."""
    import json

    return json.loads((cfg.out / "result.json").read_text(encoding="utf-8"))
