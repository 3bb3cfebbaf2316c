"""Every script and every README command, as a user types them, on a tiny corpus.

The commands run in their README order in one folder; only sizes are added (`SMALL`).
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure

import preprocess
from benchmarks import structure
from config import Bandit, Network
from DQN import QNetwork
from scores import corpora
from sed import caches, labels

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = "--network.tcn-layers 1 --network.gru-layers 1 --network.transformer-layers 1"
NETWORK = f"--network.hidden 8 --network.heads 2 {LAYERS}"
TINY = f"{NETWORK} --learning.train-start 64 --learning.lanes 8"
SMALL = {
    "soundscapes.py": "--train-clips 8 --validation-clips 4 --clip-s 2 --workers 1",
    "scorers.py": "--epochs 1 --channels 4 --workers 1",
    "preprocess.py": "--workers 1",
    "DQN.py": f"{TINY} --device cpu --passes 1",
    "-m studies.gym": "--steps 300 --learning.train-start 100 --learning.lanes 8",
    "evaluate.py": "--device cpu --workers 1",
    "detect.py": "--device cpu",
    "visualize.py": "--dpi 40",
}


# In the order in which a reader would try them. Of docs/scores.md the section with scores of this
# workspace; test_docs_scores.py has the others.
PAGES = ("comparison", "policy", "page", "detect", "files", "dasm", "gym", "long-runs", "slides")
TEXTS = [ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in PAGES)]


def commands() -> list[str]:
    """`python SCRIPT ..` lines of the bash blocks of README and docs/, in order, each once."""
    texts = [path.read_text(encoding="utf-8") for path in TEXTS]
    scores = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    texts += re.findall(r"(?ms)^## Two forms of scores$.*?(?=^## )", scores)
    blocks = [block for text in texts for block in re.findall(r"(?s)```bash\n(.*?)```", text)]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("python ")))


def small(command: str) -> list[str]:
    """Script and flags of a README line, with small sizes in place of its own."""
    script, *flags = shlex.split(command)[1:]
    if script == "-m":
        script = f"-m {flags.pop(0)}"
    if script == "DQN.py" and "--digest" not in flags and "--resume" not in flags:
        flags.append("--overwrite")
    sizes = [] if "--digest" in flags else shlex.split(SMALL[script])
    if script == "DQN.py" and "--method" in flags:  # a supervised baseline explores nothing
        sizes = f"{NETWORK} --passes 1 --device cpu".split()
    if script == "DQN.py" and "best" in flags:
        sizes = ["--events.hidden", "8", "--passes", "20", "--device", "cpu"]
    for flag in set(sizes[::2]) & set(flags):
        at = flags.index(flag)
        del flags[at : at + 2]
    return [script, *flags, *sizes]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a README line in `folder` as a process of its own."""
    words = command.split(" | ")
    script, *flags = small(words[0])
    started = script.split() if script.startswith("-m ") else [str(ROOT / script)]
    line = shlex.join([sys.executable, *started, *flags])
    line = " | ".join(["set -o pipefail; " + line, *words[1:]])
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environ, capture_output=True, text=True, timeout=300
    )


def run_here(script: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script or module as `__main__` in this process; it ends with SystemExit."""
    monkeypatch.setattr(sys, "argv", [script, *flags])
    if script.startswith("-m "):
        runpy.run_module(script.removeprefix("-m "), run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / script), run_name="__main__")


def run_there(command: str, folder: Path) -> None:
    """Run a README line in `folder` without starting Python, its built-in sounds a few."""
    script, *flags = small(command)
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.chdir(folder)
        patch.setattr(corpora, "TAKES", 1)  # all of a bank are made, few are played
        run_here(script, flags, patch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert not stop.value.code, command


def write_bank(folder: Path) -> None:
    """Two classes, ten recordings each: tones and noise bursts."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    for take in range(10):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(300, 900) * time)
        for name, wav in (("Beep", tone), ("Hiss", rng.normal(0, 0.1, 8000))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name / f"{take}.wav", wav, 16000)


def write_original_files(folder: Path) -> None:
    """What the original authors would have: per-pair NPZ files and a bare state dict."""
    (folder / "npz" / "validation").mkdir(parents=True)
    cache = caches.load_cache(folder / "cache" / "validation")
    for index, pair in enumerate(cache.pairs):
        values = cache.of_pair(index)
        arrays = {theirs: values[ours] for ours, theirs in preprocess.ORIGINAL_NAMES.items()}
        name = preprocess.npz_name(pair.filename, pair.event_label)
        np.savez(folder / "npz" / "validation" / name, **arrays)
    torch.manual_seed(0)
    torch.save(QNetwork(Bandit(), Network()).state_dict(), folder / "dqn_threshold.pt")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a tiny corpus where the README's commands expect their inputs."""
    folder = tmp_path_factory.mktemp("workspace")
    run_there("python soundscapes.py", folder)
    run_there("python scorers.py", folder)
    shutil.copytree(folder / "data" / "builtin", folder / "data" / "demo")
    for split in preprocess.SPLITS:
        home = folder / "data" / "builtin" / split
        for name in ("audio", "scores"):
            shutil.copytree(home / name, folder / name / split)
        (folder / "labels").mkdir(exist_ok=True)
        shutil.copy(home / "labels.tsv", folder / "labels" / f"{split}.tsv")
    write_bank(folder / "bank")
    run_there("python preprocess.py --split validation", folder)
    write_original_files(folder)
    for script in ("preprocess.py", "DQN.py", "evaluate.py", "visualize.py --html"):  # make demo
        run_there(f"python {script} --preset demo", folder)
    return folder


def test_the_demo_leaves_what_it_promises(workspace):
    run_folder = workspace / "runs" / "demo"
    results = json.loads((run_folder / "results.json").read_text())
    assert results["num_pairs"] == len(caches.load_cache(workspace / "cache/demo/validation").pairs)
    assert len(results["yardsticks"]) >= 10
    assert (run_folder / "events.tsv").exists()
    assert len(list((run_folder / "figures").glob("*.png"))) >= 10
    assert (run_folder / "report" / "index.html").exists()


def readme_lines(workspace: Path) -> list[str]:
    """The README's commands; the pair that it names is one of the full demo's."""
    shutil.rmtree(workspace / "runs" / "sb3", ignore_errors=True)  # the other test's
    pair = caches.load_cache(workspace / "cache" / "demo" / "validation").pairs[0]
    chosen = f"--clip {pair.filename} --event-label {pair.event_label}"
    return [re.sub(r"--clip \S+ --event-label \S+", chosen, line) for line in commands()]


@pytest.mark.slow  # starting Python thirty times takes minutes; the next test runs them all too
def test_readme_commands_as_processes(workspace):
    for line in readme_lines(workspace):
        done = run(line, workspace)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr


def test_readme_commands(workspace, monkeypatch, capfd):
    """Every command runs as `__main__`, one after the other in this process.

    Pictures are only written: those of `make demo` above are drawn, as all are by the slow test.
    """
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b""))
    lines = readme_lines(workspace)
    assert len(lines) > 20
    monkeypatch.chdir(workspace)
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1)}
    for line in lines:
        script, *flags = small(line.split(" | ")[0])
        with pytest.raises(SystemExit) as stop:
            run_here(script, flags, monkeypatch)
        text = capfd.readouterr()
        assert not stop.value.code, f"{line}\n{text.out[-2000:]}\n{text.err[-2000:]}"
        if "| grep gain" in line:
            names = [row.split(":")[0] for row in text.out.splitlines() if row[:5] == "gain_"]
            assert {"gain_accuracy", "gain_iou", "gain_f1"} <= set(names)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    events = labels.read_labels(workspace / "runs" / "mine" / "events.tsv")
    assert set(events) <= {path.name for path in (workspace / "audio" / "validation").iterdir()}


def test_readme_names_every_script_and_no_other():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)`", text))
    assert {path.name for path in ROOT.glob("*.py")} <= named
    assert named <= {path.name for path in structure.modules().values()}
    folders = set(re.findall(r"`(\w+)/`", text))
    assert set(structure.LEVEL) - {"config", "scripts"} <= folders


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "docs" / "scores.md"], ids=lambda path: path.stem)
def test_links_exist(path):
    for target, anchor in re.findall(
        r"\]\(([^)#:]*)#?([^):]*)\)", path.read_text(encoding="utf-8")
    ):
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, (target, anchor)


def test_the_original_preset_trains_and_evaluates(workspace, monkeypatch):
    """The slides' preset is the README's, without a flag."""
    monkeypatch.chdir(workspace)
    flags = "--preset original --cache cache/test-original"
    for line in (
        f"python preprocess.py {flags} --corpus data/builtin",
        f"python DQN.py {flags} --run runs/test-original",
        f"python evaluate.py {flags} --run runs/test-original",
    ):
        script, *rest = small(line)
        with pytest.raises(SystemExit) as stop:
            run_here(script, rest, monkeypatch)
        assert not stop.value.code
    config = json.loads((workspace / "runs" / "test-original" / "config.json").read_text())
    assert (config["preset"], config["bandit"]["reading"]) == ("original", "sequential")


MISTAKES = [
    ("DQN.py --cache nowhere", "no manifest in nowhere/train; run: python preprocess.py"),
    ("DQN.py --run runs/none --resume", "runs/none/last.pt: not found"),
    ("DQN.py --digest labels/train.tsv", "labels/train.tsv: damaged, or not a file of tensors"),
    ("evaluate.py --run runs/none", "runs/none/best.pt: not found; train first"),
    ("evaluate.py --run runs/demo --cache nowhere", "no manifest in nowhere/validation"),
    ("evaluate.py --compare runs/none --out x", "runs/none not found; give a run folder"),
    ("evaluate.py --cache cache/demo --compare typo.tsv --out x", "typo.tsv not found"),
    ("DQN.py --method rewards --cache nowhere", "no manifest in nowhere/train; run: python"),
    ("visualize.py --table runs/none", "runs/none"),
    ("visualize.py --run runs/none", "runs/none"),
    ("visualize.py --preset demo --clip no.wav --event-label Dog", "no pair no.wav / Dog"),
    ("preprocess.py --labels none.tsv --split x --audio audio --scores scores", "none.tsv"),
    ("soundscapes.py --out data/x --bank nowhere", "nowhere"),
    ("scorers.py --corpus nowhere", "nowhere"),
    ("detect.py --preset demo", "nothing to do: give --audio, --scores, or both"),
    ("detect.py --policy none.pt --audio audio --out a.tsv", "none.pt: not found"),
    (
        "detect.py --preset demo --audio nowhere --out a.tsv",
        "--audio nowhere: no such file or folder",
    ),
    ("preprocess.py --corpus typo", "no corpus there; make one: python soundscapes.py"),
    ("DQN.py --cache cache/demo --run labels", "holds other files and no run"),
    ("DQN.py --cache cache/demo --run dqn_threshold.pt", "is a file, not a folder"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistakes_get_one_line_and_exit_code_2(workspace, monkeypatch, capfd, line, message):
    """The script runs as `__main__` in this process: the same path without starting Python."""
    script, *flags = line.split()
    monkeypatch.chdir(workspace)
    with pytest.raises(SystemExit) as stop:
        run_here(script, flags, monkeypatch)
    assert stop.value.code == 2
    text = capfd.readouterr().err
    errors = [row for row in text.splitlines() if row.startswith(f"{script}: error: ")]
    assert len(errors) == 1 and message in errors[0], text


def test_a_mistake_of_a_started_script(workspace, run_script):
    done = run_script("DQN.py", "--cache", "nowhere", cwd=workspace)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("DQN.py: error: no manifest in nowhere/train")


# ---------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("script", ["soundscapes", "preprocess"])
def test_workers_need_no_torch(script):
    """A worker process imports the script that started it: with torch each would take seconds."""
    code = f"import sys, {script}; print('torch' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def programs() -> list[str]:
    """Everything that can be started, as runpy takes it: scripts, and modules beside them."""
    modules = [path for wing in ("studies", "benchmarks") for path in (ROOT / wing).rglob("*.py")]
    started = [
        path
        for path in (*ROOT.glob("*.py"), *modules)
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in started)
    return sorted(name.removesuffix(".__main__") for name in names)


def test_help_needs_no_torch():
    """Help is printed before torch is imported, which takes seconds; all programs in one process,
    which starts once."""
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    try:\n        runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as stop:\n        assert not stop.code, name\n"
        "    assert 'torch' not in sys.modules, name"
    )
    words = [sys.executable, "-c", code, *programs()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") > 10 and len(programs()) > 20


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("DQN.py --epochs 3", "--passes"),
        ("DQN.py --lr 1e-3", "--learning.lr"),
        ("detect.py --model a.pt", "--policy"),
        ("preprocess.py --num-workers 2", "--workers"),
        ("visualize.py --tabel runs/t", "--table"),
    ],
)
def test_an_unknown_flag_names_ours(line, flag):
    script, *flags = line.split()
    words = [sys.executable, str(ROOT / script), *flags]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and flag in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_run_folder_stands_for_its_policy_and_a_table_need_not_be_kept(workspace, capfd):
    audio = "data/demo/validation/audio/00000.flac"
    for policy in ("runs/demo", "runs/demo/best.pt"):
        line = f"python detect.py --policy {policy} --audio {audio} --out one.tsv --overwrite"
        run_there(line, workspace)
    before = sorted((workspace / "runs").iterdir())
    run_there("python evaluate.py --cache cache/demo --compare A=runs/demo rules", workspace)
    assert "| A |" in capfd.readouterr().out
    assert sorted((workspace / "runs").iterdir()) == before
