"""The GPU's way of acting and learning, run on the CPU: same transitions and steps; batch sizes."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import write_cache
from no_reads import NoCrossings, NoHostCopies, NoOpReads, ReadBack, on_meta

import DQN
from config import Bandit, Learning, Network, TrainConfig
from core.errors import InputError
from core.ranks import ALONE, Ranks, pick_device
from DQN import GraphTrainer, QNetwork, Trainer
from policy import device, supervised
from policy.apply import greedy_actions
from policy.bandit import delta_table, make_states, to_device
from policy.runfolder import digest
from sed.caches import load_cache

TINY = Network(hidden=8, heads=2, dropout=0.0)
CPU = torch.device("cpu")
WIDE = {"boundary_width": 0.5, "max_delta": 0.5}  # stores many frames, not all
READINGS = {
    "independent": Bandit(**WIDE),
    "sequential": Bandit(
        reading="sequential", boundary_test="after", channel_order="original", **WIDE
    ),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("device") / "cache" / "train"
    write_cache(folder, [40, 30, 1, 45, 25, 40, 35])
    return load_cache(folder)


def config(bandit, **changes) -> TrainConfig:
    given = {"lanes": 4, "batch": 16, "train_start": 20, "lr": 3e-3, "replay": 30} | changes
    return TrainConfig(
        bandit=bandit, network=TINY, learning=Learning(**given), holdout=0.0, passes=1
    )


def played(trainer) -> list:
    ended = []
    while not trainer.done:
        ended += trainer.tick()
    trainer.read_sums()
    return ended


@pytest.mark.parametrize("reading", READINGS)
def test_fixed_shapes_give_what_the_plain_steps_give(cache, reading):
    """A ring of 30 rows overflows several times; lanes run empty at the end."""
    plain, fixed = (kind(config(READINGS[reading]), cache, CPU) for kind in (Trainer, GraphTrainer))
    assert played(plain) == played(fixed)
    fixed.own_state()  # brings the count from the device
    assert plain.replay.count == fixed.replay.count > 2 * plain.replay.capacity
    for name, column in plain.replay.columns.items():
        assert torch.equal(column, fixed.replay.columns[name]), name
    assert plain.progress["steps"] == fixed.progress["steps"] > 4
    for name in ("loss_sum", "q_sum"):
        assert plain.progress[name] == pytest.approx(fixed.progress[name], rel=1e-3)
    for one, other in zip(plain.network.parameters(), fixed.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def full_ring(reading: str, cache) -> GraphTrainer:
    """In the middle of a run: how many transitions are stored is known without asking."""
    trainer = GraphTrainer(config(READINGS[reading]), cache, CPU)
    while len(trainer.replay) < trainer.replay.capacity or not trainer.progress["steps"]:
        trainer.tick()
    return trainer


def steps_without_reading(trainer: GraphTrainer) -> None:
    """Every lane acts once, and a batch is learned from."""
    active = np.flatnonzero(trainer.episode >= 0)
    with NoHostCopies(), NoOpReads():
        trainer.act(active, *trainer.draw(active))
        trainer.gradient_step()


@pytest.mark.parametrize("reading", READINGS)
def test_acting_and_learning_read_nothing_back(cache, reading):
    """What a CUDA graph could not record, and what a GPU would have to be waited for."""
    trainer = full_ring(reading, cache)
    count, steps = int(trainer.count), trainer.progress["steps"]
    steps_without_reading(trainer)
    assert int(trainer.count) > count and trainer.progress["steps"] == steps + 1
    plain = Trainer(config(READINGS[reading]), cache, CPU)
    with pytest.raises(ReadBack), NoHostCopies(), NoOpReads():
        plain.act(np.arange(4), *plain.draw(np.arange(4)))


@pytest.mark.parametrize("reading", READINGS)
def test_steps_bring_nothing_but_what_is_drawn(cache, reading):
    """On a device that cannot be read; what goes there is asked not to block."""
    trainer = on_meta(full_ring(reading, cache))
    trainer.replay.columns = {name: column[:-1] for name, column in trainer.ring.items()}
    active, sent = np.flatnonzero(trainer.episode >= 0), []
    real = trainer.send
    trainer.send = lambda target, values: [sent.append(target), real(target, values)][1]
    delta_table(trainer.bandit, trainer.device)  # brought there once
    with NoHostCopies(), NoCrossings():
        trainer.act(active, *trainer.draw(active))
        trainer.gradient_step()
        with pytest.raises(ReadBack):
            trainer.table.copy_(torch.ones(4))
    assert [target.device.type for target in sent] == ["meta"] * 2


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.detach().clone().__setitem__(x > 0, 0.0),
        lambda x: x.detach().clone().index_put_((x > 0,), x.new_zeros(())),
        lambda x: torch.equal(x, x),
        lambda x: x.detach().unique(),
        lambda x: x.detach().unique_consecutive(),
        lambda x: x.argmax(1).bincount(),
        lambda x: x.repeat_interleave(x.argmax(1), 0),
        lambda x: x.detach().cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.tolist(),
        lambda x: x.detach().numpy(),
        lambda x: torch.tensor([0.0], device=x.device),
    ],
)
def test_a_read_would_be_found(cache, reads):
    """The test above fails where the network, its acting or its learning, reads a value."""
    trainer = full_ring("independent", cache)
    trainer.network.register_forward_hook(lambda module, given, out: [reads(out), out][1])
    with pytest.raises(ReadBack):
        steps_without_reading(trainer)


def test_the_sums_are_asked_for_once_a_tick(cache, monkeypatch):
    """Of several episodes that end together the first has the loss, as ever."""
    trainer, asked = full_ring("independent", cache), []
    monkeypatch.setattr(
        GraphTrainer, "read_sums", lambda self: asked.append(Trainer.read_sums(self))
    )
    found = [DQN.record(trainer, None, episode, [1, 2, 3, 4]) for episode in (0, 1, 2)]
    assert len(asked) == 1 and ["loss" in one for one in found] == [True, False, False]
    assert found[0]["loss"] > 0 and not trainer.sums.any()


def test_fixed_steps_resume_where_they_were(cache):
    cfg = config(READINGS["sequential"])
    calm, first, second = (GraphTrainer(cfg, cache, CPU) for _ in range(3))
    rows = played(calm)
    begun = []
    while first.progress["finished"] < 4:
        begun += first.tick()
    second.restore(first.state())
    assert begun + played(second) == rows
    for one, other in zip(calm.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_is_found_when_it_is_read(cache):
    trainer = GraphTrainer(config(Bandit(boundary_width=1, max_delta=1)), cache, CPU)
    trainer.table = torch.full((4,), float("inf"))
    while not trainer.progress["steps"]:
        trainer.tick()
    with pytest.raises(InputError, match="not finite at or before gradient step 1"):
        trainer.state()


@pytest.mark.parametrize("way", ["capturable", "fused"])
def test_a_resumed_adam_counts_its_steps_on_the_device(way):
    """The state of a CPU run, whose groups say no; the meta device stands for a GPU."""
    cpu = torch.nn.Parameter(torch.ones(3))
    plain = torch.optim.Adam([cpu], 1e-2)
    cpu.grad = torch.ones(3)
    plain.step()
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3, device="meta"))], 1e-2)
    adam.param_groups[0][way] = True
    Trainer.load_optimizer(adam, plain.state_dict())
    (moments,) = adam.state.values()
    assert {value.device.type for value in moments.values()} == {"meta"}
    assert adam.param_groups[0][way] and not plain.param_groups[0][way]
    Trainer.load_optimizer(plain, plain.state_dict())
    assert plain.state[cpu]["step"] == 1


def test_moments_are_made_without_moving_a_weight():
    weight = torch.nn.Parameter(torch.randn(7))
    before, optimizer = weight.detach().clone(), torch.optim.Adam([weight], 1e-2)
    device.make_moments(optimizer)
    assert torch.equal(weight, before)
    steps = []
    for fresh in (False, True):
        one = torch.nn.Parameter(before.clone())
        adam = torch.optim.Adam([one], 1e-2)
        if fresh:
            device.make_moments(adam)
        one.grad = torch.ones(7)
        adam.step()
        steps.append(one.detach())
    assert torch.equal(*steps)


# ---------------------------------------------------------------------------- CUDA graphs


@pytest.fixture
def on_the_cpu(monkeypatch):
    """What records on a GPU, here: its random numbers are the CPU's."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))


def warm_up(work):
    """In place of `graph_of`: the same runs of `work` as in recording, then plain calls."""
    for _ in range(4):
        work()
    return work


def fails(work):
    """In place of `graph_of`: recording fails after the warm-up, with several lines."""
    for _ in range(3):
        work()
    raise RuntimeError("operation not permitted\nmore of it")


@pytest.mark.parametrize("way", [warm_up, fails])
@pytest.mark.parametrize("reading", READINGS)
def test_recording_changes_no_number(cache, monkeypatch, capsys, on_the_cpu, reading, way):
    """Recorded at the start or after a resumption: as by plain steps, with dropout."""
    monkeypatch.setattr(device, "graph_of", way)
    cfg = config(READINGS[reading])
    cfg = replace(cfg, network=replace(TINY, dropout=0.2))
    plain = GraphTrainer(cfg, cache, CPU)  # each sets the seed of the dropout of all
    rows, state = played(plain), digest(plain.state())
    recorded = GraphTrainer(cfg, cache, CPU)
    recorded.record()
    assert played(recorded) == rows and digest(recorded.state()) == state
    begun, first = GraphTrainer(cfg, cache, CPU), []
    while begun.progress["finished"] < 4:
        first += begun.tick()
    kept, resumed = begun.state(), GraphTrainer(cfg, cache, CPU)
    resumed.restore(kept)
    resumed.record()
    assert first + played(resumed) == rows and digest(resumed.state()) == state
    note = "note: no CUDA graphs (operation not permitted); plain steps instead\n"
    assert capsys.readouterr().out == (2 * note if way is fails else "")


def test_graphs_that_were_asked_for_are_made_or_refused(cache, monkeypatch, on_the_cpu):
    monkeypatch.setattr(device, "graph_of", fails)
    cfg = replace(config(READINGS["independent"]), cuda_steps="graphs")
    said = (
        r"^--cuda-steps graphs: no CUDA graphs \(operation not permitted\); use --cuda-steps plain$"
    )
    with pytest.raises(InputError, match=said):
        GraphTrainer(cfg, cache, CPU).record()


def test_graphs_that_cannot_be_are_refused_before_the_run(cache, tmp_path):
    """Several processes record none, nor does a machine without a GPU that `auto` finds."""
    cfg = replace(config(READINGS["independent"]), cuda_steps="graphs", run=tmp_path / "run")
    with pytest.raises(InputError, match=r"^--cuda-steps graphs trains in one process; leave out"):
        DQN.train(cfg, torch.device("cuda"), Ranks(1, 2), cache)
    with pytest.raises(InputError, match=r"^--cuda-steps graphs: no CUDA device; use --cuda-steps"):
        DQN.train(cfg, CPU, ALONE, cache)
    assert not cfg.run.exists()


class Capture:
    """A recording whose end fails, as in torch: its stream stays the current one."""

    def __init__(self, graph):
        torch.cuda.set_stream("capturing")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        raise RuntimeError("capture_end failed")


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch):
    calls = []

    class Stream:
        def wait_stream(self, other):
            calls.append(other)

    before = Stream()
    current = [before]
    fake = {
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: current[-1],
        "set_stream": current.append,
        "CUDAGraph": lambda: None,
        "graph": Capture,
    }
    for name, part in fake.items():
        monkeypatch.setattr(torch.cuda, name, part)
    with pytest.raises(RuntimeError, match="capture_end failed"):
        device.graph_of(lambda: calls.append("work"))
    assert current == [before, "capturing", before]
    assert calls[0] is before and calls[1:4] == ["work"] * 3 and calls[-1] == "work"


# ---------------------------------------------------------------------------- batch sizes


def test_a_small_job_is_not_measured(cache):
    bandit = READINGS["independent"]
    network = QNetwork(bandit, TINY)
    signals = to_device(cache, bandit, CPU)
    assert device.fastest_batch(network, signals, bandit) == device.CPU_BATCHES[0]


def test_a_size_is_timed_between_waits(cache, monkeypatch):
    """The warm-up has ended before the clock starts."""
    bandit, calls = READINGS["independent"], []
    monkeypatch.setattr(device, "SMALL_JOB", 1)
    monkeypatch.setattr(device, "wait", lambda _: calls.append("wait"))
    clock = lambda: [calls.append("clock"), float(len(calls))][1]  # noqa: E731
    monkeypatch.setattr(device.time, "perf_counter", clock)
    device.fastest_batch(QNetwork(bandit, TINY), to_device(cache, bandit, CPU), bandit)
    assert calls and calls == ["wait", "clock"] * len(device.CPU_BATCHES) * 2


@pytest.mark.parametrize("method", ["windowed", "rewards"])
def test_held_out_pairs_are_decided_in_the_batch_that_is_fastest(cache, monkeypatch, method):
    """A GPU in name only: what is decided there is asked for 7 frames at a time."""
    cfg = replace(config(READINGS["independent"]), holdout=0.4)
    kind = Trainer
    if method == "rewards":
        learning = Learning(batch=16, lr=3e-3)
        cfg = replace(cfg, method=method, learning=learning)
        kind = supervised.SupervisedTrainer
    trainer, given = kind(cfg, cache, CPU), []
    trainer.device = torch.device("cuda")
    monkeypatch.setattr(supervised, "fastest_batch", lambda *_: 7)
    real = supervised.decisions
    decide = lambda *args, **more: [given.append(args[3]), real(*args, **more)][1]  # noqa: E731
    monkeypatch.setattr(supervised, "decisions", decide)
    assert 0 <= trainer.held_out_f1() <= 1 and given == [7]


@pytest.mark.parametrize("favoured", [64, 512])
def test_the_fastest_size_is_taken(cache, monkeypatch, favoured):
    bandit = READINGS["independent"]
    network = QNetwork(bandit, TINY)
    signals = to_device(cache, bandit, CPU)
    spent = {256: 1.0, 64: 1.0, 128: 1.0, 512: 1.0} | {favoured: 1e-6}
    now = [0.0]

    def tick(states):
        now[0] += spent.get(len(states), 0.0) * len(states)
        return torch.zeros(len(states), 21)

    monkeypatch.setattr(device, "SMALL_JOB", 1)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(network, "forward", tick)
    assert device.fastest_batch(network, signals, bandit) == favoured


def test_a_size_with_other_numbers_is_not_taken(cache, monkeypatch):
    """On a CPU the choice must not change a decision."""
    bandit = READINGS["independent"]
    network = QNetwork(bandit, TINY)
    now = [0.0]

    def odd(states):
        now[0] += 1e-6 if len(states) == 512 else 1.0
        return torch.full((len(states), 21), float(len(states) == 512))

    monkeypatch.setattr(device, "SMALL_JOB", 1)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(network, "forward", odd)
    assert device.fastest_batch(network, to_device(cache, bandit, CPU), bandit) != 512


def test_every_size_decides_alike(cache):
    """Frame for frame the same actions at each size that may be chosen, both readings."""
    for bandit in READINGS.values():
        torch.manual_seed(0)
        network, signals = QNetwork(bandit, TINY), to_device(cache, bandit, CPU)
        with torch.no_grad():
            network.head[2].weight *= 20
        found = [greedy_actions(network, signals, bandit, n) for n in device.CPU_BATCHES]
        states = make_states(signals, torch.zeros(9).long(), torch.arange(9), bandit)
        gaps = network(states).topk(2).values.diff().abs()
        assert gaps.min() > 1e-6  # no two actions tie here
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_gpu_computes_in_float32_everywhere(monkeypatch):
    fake = {"is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda _: None}
    for name, answer in fake.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        assert pick_device("auto", 1) == torch.device("cuda", 0)
        assert not any(place.allow_tf32 for place in places)
        kinds = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
        assert not any(kind.fp32_precision == "tf32" for kind in kinds)
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
