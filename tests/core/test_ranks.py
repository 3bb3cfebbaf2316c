"""Two processes on one job: their numbers, resumption, a killed one, evaluating, preprocessing."""

import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write_cache, write_policy
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import parse_args

import evaluate
import preprocess
from config import Bandit, EvaluateConfig, Learning, Network, PreprocessConfig, TrainConfig
from core import ranks
from core.errors import InputError
from core.files import contents
from core.ranks import Ranks
from DQN import Trainer, main
from policy import runfolder
from sed.caches import load_cache

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = Network(hidden=4, tcn_layers=1, gru_layers=1, transformer_layers=1, heads=1, tcn_groups=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def as_rank(rank: int, size: int, port: str, folder: Path, work, args: tuple) -> None:
    """What torchrun does for a process, then `work`."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in given.items()})
    os.chdir(folder)
    work(*args)


def start(context, folder: Path, size: int, work, *args):
    port = free_port()
    processes = [
        context.Process(target=as_rank, args=(rank, size, port, folder, work, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def join(processes) -> list[int]:
    for process in processes:
        process.join(100)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "cache" / "train", [60, 40, 50, 60, 45, 55, 60, 40])
    return tmp_path


def config(**changes) -> TrainConfig:
    learning = Learning(lanes=4, batch=8, train_start=64, lr=3e-3, frames_per_step=16)
    bandit = Bandit(boundary_width=1, max_delta=1)  # every frame is stored: learning starts early
    base = {"cache": Path("cache"), "run": Path("runs/a"), "network": TINY, "holdout": 0.25}
    base |= {"bandit": bandit, "learning": learning, "device": "cpu", "passes": 1}
    return TrainConfig(**(base | changes))


def content_of(run: Path) -> dict:
    return runfolder.read_checkpoint(run / "last.pt")


# ---------------------------------------------------------------------------- one process


def test_one_process_is_the_identity():
    alone = Ranks()
    x = torch.ones(2)
    alone.average([x])
    assert alone.total(x) is x and x.tolist() == [1, 1]
    assert alone.gather(3) == [3] and alone.any(True, False) == [True, False]
    assert alone.owns(np.arange(3)).all() and alone.share(32, "x") == 32 and alone.leads


def test_torchrun_with_one_process_gives_the_plain_result(folder, fork_server):
    main(config(run=Path("runs/plain")))
    assert join(start(fork_server, folder, 1, main, config(run=Path("runs/one")))) == [0]
    plain, one = (content_of(Path("runs") / name) for name in ("plain", "one"))
    assert runfolder.digest(plain) == runfolder.digest(one)


def test_deal_is_even_in_both_kinds():
    first = np.array([True, True, False, True, False, True, False])
    dealt = np.stack([Ranks(rank, 3).deal(first) for rank in range(3)])
    assert (dealt.sum(0) == 1).all() and set(dealt.sum(1)) <= {2, 3}
    assert set((dealt & first).sum(1)) <= {1, 2}


def test_a_batch_must_be_even():
    with pytest.raises(InputError, match=r"--learning.batch 32 cannot be split evenly over 3"):
        Ranks(0, 3).share(32, "learning.batch")


# ---------------------------------------------------------------------------- torchrun's flags


def documented() -> dict[str, str]:
    """Every torchrun command with a script of the README and of the scripts' own texts, and its
    line's beginning."""
    found = {}
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*.py")]:
        for start, command in re.findall(
            r"(?m)(.*?)(torchrun(?: --\S*)* \S+\.py[^`#\n]*)", path.read_text(encoding="utf-8")
        ):
            found[command.strip()] = start.strip()
    return found


def test_torchrun_reads_the_commands_as_they_are_meant(monkeypatch):
    """By its own parser: the script with all of its flags, none of them taken for torchrun's."""
    commands = documented()
    assert len(commands) >= 6
    monkeypatch.setattr(sys, "argv", ["DQN.py", "--run", "my run", "--overwrite"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    printed = [runfolder.resume_command(2), runfolder.resume_command(4)]
    for command in [*commands, *printed]:
        words = shlex.split(command)
        at = words.index("--")
        args = parse_args(words[1:])
        assert [args.training_script, *args.training_script_args] == words[at + 1 :]
        assert int(args.nproc_per_node) >= 2
    assert parse_args(shlex.split(printed[1])[1:]).nnodes == "2"
    assert shlex.split(printed[0])[-3:] == ["--run", "my run", "--resume"]


# ---------------------------------------------------------------------------- two processes


class Mirror(Ranks):
    """Two processes with the same data: sums double, means stay."""

    def total(self, tensor):
        return tensor.mul_(2)

    def gather(self, value):
        return [value, value]


def test_the_global_batch_is_kept(folder):
    """Each of two processes holds half of the replay, samples half a batch, steps as often."""
    cache = load_cache(folder / "cache" / "train")
    alone, half = Trainer(config(), cache, CPU), Trainer(config(), cache, CPU, Mirror(1, 2))
    sizes = []
    sample = half.replay.sample
    half.replay.sample = lambda n, rng: sizes.append(n) or sample(n, rng)
    while not half.done:
        assert [episode for episode, _ in alone.tick()] == [episode for episode, _ in half.tick()]
    assert set(sizes) == {4} and half.replay.capacity == 25_000
    assert alone.progress["frames"] == half.progress["frames"]
    assert 0 < half.progress["steps"] <= alone.progress["steps"]


@pytest.mark.parametrize("reading", ["independent", "sequential"])
def test_processes_share_the_frames_of_a_tick(folder, reading):
    """Every frame is looked at by one process; what asks the network is split evenly, and in the
    sequential reading a pair stays where it is."""
    cache = load_cache(folder / "cache" / "train")
    bandit = Bandit(boundary_width=1, max_delta=1, reading=reading)
    learning = replace(config().learning, train_start=40_000)  # weights that step would differ
    cfg = config(bandit=bandit, learning=learning)
    both, asked = [Trainer(cfg, cache, CPU, Mirror(rank, 2)) for rank in (0, 1)], []
    for trainer in both:

        def spy(lane, choice, greedy, act=trainer.act):
            asked.append(greedy.sum())
            act(lane, choice, greedy)

        trainer.act = spy
    while not both[0].done:
        ended = [[episode for episode, _ in trainer.tick()] for trainer in both]
        assert ended[0] == ended[1]
    frames, pairs = (
        [trainer.replay.columns[name][: trainer.replay.count].tolist() for trainer in both]
        for name in ("frame", "pair")
    )
    assert not set(frames[0]) & set(frames[1])
    assert len(frames[0]) + len(frames[1]) == both[0].progress["frames"] == both[0].total_frames
    counts = np.array(asked).reshape(-1, 2)  # of each tick and process
    if reading == "sequential":
        assert not set(pairs[0]) & set(pairs[1])
    else:
        assert set(pairs[0]) == set(pairs[1]) and np.ptp(counts, axis=1).max() == 1


def two_lives(cfg: TrainConfig, next_port: str) -> None:
    """A signal to the second process stops both; then they go on."""
    tick = Trainer.tick

    def stopped(trainer):
        if trainer.progress["finished"] >= 3 and not trainer.ranks.leads:
            os.kill(os.getpid(), signal.SIGTERM)
            Trainer.tick = tick
        return tick(trainer)

    Trainer.tick = stopped
    assert main(cfg) == 128 + signal.SIGTERM
    Trainer.tick = tick
    os.environ["MASTER_PORT"] = next_port
    assert content_of(cfg.run)["info"]["finished"] < 12
    assert main(replace(cfg, resume=True)) == 0


def test_two_processes_resume_bit_exact_and_only_as_two(folder, fork_server):
    cfg = config(run=Path("runs/calm"), passes=2)
    calm = start(fork_server, folder, 2, main, cfg)
    again = replace(cfg, run=Path("runs/lives"))
    lives = start(fork_server, folder, 2, two_lives, again, free_port())
    assert join([*calm, *lives]) == [0] * 4
    calm, lives = (content_of(Path("runs") / name) for name in ("calm", "lives"))
    assert len(calm["others"]) == 1
    for key in ("network", "optimizer", "replay", "lanes", "rng", "info", "others"):
        assert runfolder.digest(calm[key]) == runfolder.digest(lives[key]), key
    counts = [part["replay"]["count"] for part in (calm, *calm["others"])]
    assert all(counts) and calm["info"]["steps"] > 3
    history = runfolder.read_history(Path("runs/calm"))
    assert sorted(history["Episode"]) == list(range(calm["info"]["finished"]))
    with pytest.raises(InputError, match=r"begun with 2 process\(es\), cannot go on with 1"):
        main(replace(cfg, resume=True))


def leave_alone(place: str) -> None:
    """Train with another process that ends in the middle of it, without a word."""
    tick = Trainer.tick

    def ends(trainer):
        if os.environ["RANK"] == "1" and trainer.progress["steps"] == 2:
            os._exit(0)
        return tick(trainer)

    Trainer.tick = ends
    try:
        main(config(run=Path("runs") / place))
    except InputError as error:
        Path(f"{place}.txt").write_text(str(error))


def test_a_process_that_waits_for_an_ended_one_says_so(folder, fork_server):
    assert join(start(fork_server, folder, 2, leave_alone, "left")) == [0, 0]
    said = Path("left.txt").read_text()
    assert said.startswith("another process of this job has ended (")


def kill_second(cfg: TrainConfig, folder: str) -> None:
    """A worker of torchrun; the second one is killed in the middle of its first life."""
    os.chdir(folder)
    if os.environ["RANK"] == "1" and not ranks.restarted():
        tick = Trainer.tick

        def fatal(trainer):
            if trainer.progress["finished"] >= 3:
                time.sleep(0.1)  # so that the other one is waiting for it
                os.kill(os.getpid(), signal.SIGKILL)
            return tick(trainer)

        Trainer.tick = fatal
    main(cfg)


def launch(folder: Path, work, cfg: TrainConfig) -> None:
    """torchrun's own engine, without its command line."""
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        max_restarts=1,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    elastic_launch(how, work)(cfg, str(folder))


def test_a_killed_process_restarts_and_the_run_goes_on(folder, fork_server):
    cfg = config(run=Path("runs/killed"), checkpoint_minutes=1e-9)
    launch(folder, kill_second, cfg)
    assert join(start(fork_server, folder, 2, main, config(run=Path("runs/calm")))) == [0, 0]
    calm, killed = (content_of(Path("runs") / name) for name in ("calm", "killed"))
    for key in ("network", "optimizer", "replay", "info", "others"):
        assert runfolder.digest(calm[key]) == runfolder.digest(killed[key]), key
    texts = [Path(f"runs/{name}/reward_history.tsv").read_bytes() for name in ("calm", "killed")]
    assert texts[0] == texts[1]


# ---------------------------------------------------------------------------- evaluate, preprocess


def test_two_processes_decide_what_one_decides(folder, fork_server):
    write_cache(folder / "cache" / "validation", [60, 40, 50, 60, 45], seed=3)
    path = write_policy(folder / "runs" / "p", folder / "cache" / "train")
    one = EvaluateConfig(checkpoint=path, out=Path("runs/one"), device="cpu", batch=16)
    evaluate.main(one)
    two = replace(one, out=Path("runs/two"))
    assert join(start(fork_server, folder, 2, evaluate.main, two)) == [0, 0]
    results = [json.loads(Path(f"runs/{n}/results.json").read_text()) for n in ("one", "two")]
    assert [found.pop("processes") for found in results] == [1, 2]
    for found in results:
        del found["deciding_seconds"], found["sha256"]
    assert results[0] == results[1]
    for name in ("events.tsv", "onsets.tsv"):
        assert Path(f"runs/one/{name}").read_bytes() == Path(f"runs/two/{name}").read_bytes()


def write_inputs(folder: Path, clips: int) -> PreprocessConfig:
    """Labels and scores without audio: a class, some frames."""
    rng = np.random.default_rng(0)
    rows = ["filename\tonset\toffset\tevent_label"]
    (folder / "scores").mkdir()
    for clip in range(clips):
        rows.append(f"{clip}.wav\t0.1\t0.4\tDog")
        lines = ["onset\toffset\tDog"]
        for frame, score in enumerate(rng.random(30)):
            lines.append(f"{0.02 * frame:.2f}\t{0.02 * (frame + 1):.2f}\t{score:.4f}")
        (folder / "scores" / f"{clip}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "labels.tsv").write_text("\n".join(rows) + "\n")
    given = {"split": "train", "labels": Path("labels.tsv"), "scores": Path("scores")}
    return PreprocessConfig(cache=Path("one"), workers=1, **given)


def few_clips_a_shard(cfg: PreprocessConfig) -> None:
    preprocess.CLIPS_PER_SHARD = 2
    preprocess.main(cfg)


def test_two_processes_make_the_cache_that_one_makes(folder, fork_server, monkeypatch, capsys):
    cfg = replace(write_inputs(folder, 8), allow_missing=True)
    (folder / "scores" / "4.tsv").unlink()
    monkeypatch.setattr(preprocess, "CLIPS_PER_SHARD", 2)
    preprocess.main(cfg)
    two = replace(cfg, cache=Path("two"))
    assert join(start(fork_server, folder, 2, few_clips_a_shard, two)) == [0, 0]
    caches = [load_cache(Path(name) / "train") for name in ("one", "two")]
    assert caches[0].key == caches[1].key and caches[0].pairs == caches[1].pairs
    missing = [cache.manifest["left_out"] for cache in caches]
    assert missing[0] == missing[1] == ["4.wav: no scores in scores"]
    assert len(caches[1].manifest["shards"]) == 4 and not list(Path("two").glob(".*"))
    shards = [f"shard-0000{i}.npz" for i in range(4)]
    assert contents(Path("two/train")) == ["left_out.tsv", "manifest.json", *shards]
    capsys.readouterr()
    preprocess.main(two)  # one process takes over what two have made
    assert "taken over from an earlier run: 4 of 4" in capsys.readouterr().out
