"""What a run says before and after: an estimate, how much it will learn, a summary.

Reads:  <run>/reward_history.tsv
"""

import time
from typing import Any

import numpy as np
import torch

from core.errors import InputError
from policy.bandit import decide
from policy.device import wait
from sed.caches import listed
from sed.metrics import mean_f1
from sed.provenance import NO_NEGATIVES

# ---------------------------------------------------------------------------- before and after


def announce(trainer: Any) -> None:
    """Say what is about to happen: device, memory, pairs, steps, estimated time."""
    cfg, order, learning = trainer.cfg, trainer.order, trainer.learning
    lengths = np.diff(trainer.cache.offsets)[order]
    steps = trainer.gradient_steps(cfg.passes)
    resident = trainer.signals.channels.numel() * 4 + trainer.signals.label.numel()
    ring = sum(column.numel() * column.element_size() for column in trainer.replay.columns.values())
    inside = trainer.acts.mean()
    epsilons = trainer.epsilon(np.arange(len(order)))
    asked = lengths.sum() * (1 if trainer.sequential else inside) * (1 - epsilons.mean())
    asked /= trainer.ranks.size
    step_s, frame_s = measure_speed(trainer)
    seconds = (step_s * steps + frame_s * asked) * (1 - trainer.progress["steps"] / max(steps, 1))
    name = str(trainer.device)
    if trainer.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = f"{torch.cuda.get_device_name()} ({free / 1e9:.1f} of {total / 1e9:.1f} GB free)"
    print(
        f"device {name}, {trainer.ranks.size} process(es), {cfg.threads} thread(s); network"
        f" {sum(p.numel() for p in trainer.network.parameters()):,} parameters;"
        f" signals {resident / 1e6:.1f} MB, replay {ring / 1e6:.1f} MB\n"
        f"{len(order) // cfg.passes} training pairs, {len(trainer.held_out)} held out,"
        f" {len(order)} episodes, {lengths.sum():,} frames,"
        f" {inside:.1%} inside the boundary, about {steps:,} gradient steps;"
        f" {trainer.bandit.reading} reading\n"
        f"estimated time {seconds / 60:.0f} min, run folder {cfg.run}"
    )
    if epsilons[-1] > learning.epsilon_end + 1e-9:
        cure = f"--learning.epsilon-episodes {round(0.7 * len(order))} falls over 70 % of them"
        print(f"note: epsilon will fall to {epsilons[-1]:.2f} in {len(order)} episodes; {cure}")


def refuse_no_step(trainer: Any) -> None:
    """InputError where a run would end before it learns."""
    passes = trainer.cfg.passes
    if trainer.gradient_steps(passes) == 0:
        stored = round(passes * trainer.pass_frames * trainer.stored_share)
        raise InputError(
            f"--passes {passes} makes no gradient step: about {stored:,} transitions would be"
            f" stored, and learning waits for more than {trainer.learning.train_start:,}"
            " (--learning.train-start); leave out --passes, which makes as many as learning needs"
        )


def warn(trainer: Any) -> None:
    """Say where a run makes fewer gradient steps than a policy needs, and which classes every
    training clip has, or every pair that is learned from."""
    passes, steps = trainer.cfg.passes, trainer.gradient_steps(trainer.cfg.passes)
    if steps < trainer.FLOOR:
        print(
            f"note: about {steps:,} gradient steps are too few, a policy needs {trainer.FLOOR:,};"
            f" leave out --passes {passes}, or give more"
        )
    if names := trainer.facts["never_absent"]:
        print(f"note: {trainer.cache.folder}: {NO_NEGATIVES.format(listed(names))}")


def measure_speed(trainer: Any) -> tuple[float, float]:
    """Seconds of a gradient step and of deciding a frame; random state and weights untouched."""
    shape = (trainer.batch, len(trainer.bandit.channels), trainer.bandit.window)
    states, times = torch.zeros(shape, device=trainer.device), []
    with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
        for grad in (True, True, False, False):
            began = time.perf_counter()
            with torch.set_grad_enabled(grad):
                loss = trainer.network.train(grad)(states).square().mean()
            if grad:
                loss.backward()
            trainer.network.zero_grad()
            wait(trainer.device)
            times.append(time.perf_counter() - began)
    return min(times[:2]), min(times[2:]) / len(states)


def summarise(trainer: Any, frames: int, seconds: float) -> None:
    """`key: value` lines that grep can read."""
    held_out, progress = trainer.held_out, trainer.progress
    print(f"episodes: {progress['finished']}")
    print(f"gradient_steps: {progress['steps']}")
    print(f"train_seconds: {seconds:.1f}")
    print(f"train_frames_per_s: {frames / seconds:.0f}")
    curve, said = trainer.learned()
    for name, value in curve.items():
        print(f"{name}: {value}")
    if len(held_out):
        some = trainer.cache_of(held_out)
        base = decide(some.signals["prob"], some.signals["t_base"])
        before, best = mean_f1(some, base, np.arange(len(held_out))), progress["best_f1"]
        print(f"held_out_f1_before: {before:.4f}")
        print(f"held_out_f1_best: {best:.4f} (episode {progress['best_episode']})")
        print(f"held_out_f1_last: {progress['last_f1']:.4f}")
        if best <= before:
            print("note: on the held-out clips the policy is no better than its base threshold")
        elif progress["last_f1"] < before:
            print("note: the run ended below the base threshold; best.pt is of an earlier episode")
        said += (
            f"; on {len(held_out)} held-out pairs F1 is {100 * best:.1f} % at its best, with the"
            f" base threshold alone {100 * before:.1f} %"
        )
    else:
        said += "; no pairs were held out, so evaluate.py says what the policy is worth"
    print(f"in words: {said}")
    print(f"policy: {trainer.cfg.run / 'best.pt'}")
