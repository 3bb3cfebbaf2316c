"""The slides' figures from a run folder and its cache: PNG files, axes in seconds.

Run:    python visualize.py                     # every figure of runs/slides
        python visualize.py --run runs/demo --cache cache/demo
        python visualize.py --clip a.wav --event-label Speech     # one (clip, class) pair only
        python visualize.py --html              # and a page to look at and listen to
        python visualize.py --html --beside runs/best     # the page of two policies
        python visualize.py --table runs/table  # figures of evaluate.py --compare
Reads:  <run>/{config.json, reward_history.tsv, results.json, decisions.npz}, <cache>/<split>/;
        with --table what figures/table_figures.py reads
Writes: <run>/figures/*.png or <table>/figures/*.png, or the folder --out; with --html <run>/report/
Shapes: T frames of a pair, N frames of all pairs together, P pairs
"""

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from config import SUPERVISED, Bandit, TrainConfig, VisualizeConfig
from core.command import parse_first, run_script

if __name__ == "__main__":  # before torch, which takes seconds to import
    parse_first(VisualizeConfig)

import numpy as np
from torch import nn

from comparison.evaluations import (
    Evaluated,
    Matches,
    View,
    as_title,
    find_matches,
    load_evaluated,
    policy_name,
    short,
    view_of,
)
from comparison.scoring import TABLE, TRIVIAL
from core.files import is_ours, keep_apart, made, own_folder, whole
from core.stored import read_json
from figures import table_figures
from figures.plotting import (
    COLOURS,
    MOST_CLASSES,
    PAGE,
    TEXT,
    Drawn,
    bars,
    draw_curves,
    each_figure,
    legend,
    look,
    name_rows,
    page,
    percent,
    points,
    row_value,
    save,
    scale,
    shade_changes,
    time_axis,
    tone,
    unit_axis,
)
from figures.report import Shown, write_report
from policy import runfolder
from policy.bandit import epsilon_at, hold_out
from policy.network import QNetwork, make_network
from sed.audio import read_audio
from sed.caches import load_cache
from sed.labels import find_audio
from sed.matching import Match
from sed.metrics import DRAWS, NAMES, counts_in

if TYPE_CHECKING:  # matplotlib is imported where a figure is drawn: it builds a font cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# ---------------------------------------------------------------------------- what is drawn


class TrainingLog(NamedTuple):
    """A run's settings, its history (a row an episode) and the number of planned episodes."""

    config: TrainConfig
    history: dict[str, np.ndarray]
    planned: int
    schedule: int  # episodes that epsilon was planned for; fewer where a run got more passes


def load_training(cfg: VisualizeConfig) -> TrainingLog:
    """Settings and reward history of the run."""
    cure = f"python DQN.py --run {cfg.run} --cache {cfg.cache}"
    stored = read_json(cfg.run / "config.json", f"run: {cure}")
    config = runfolder.config_of(TrainConfig, stored)
    history = runfolder.read_history(cfg.run)
    planned = int(history["Episode"].max()) + 1
    folder = cfg.cache / config.split
    steps = config.method in ("events", *SUPERVISED)  # episodes are gradient steps
    if (folder / "manifest.json").exists() and not steps:  # a run that was stopped has planned more
        train, _ = hold_out(load_cache(folder), config)
        planned = max(planned, (config.passes or 1) * len(train))
    best = cfg.run / "best.pt"
    schedule = planned
    if best.exists():
        facts = runfolder.facts_of(runfolder.read_checkpoint(best), best)
        schedule = facts.info.get("planned", planned)
    return TrainingLog(config, history, planned, schedule)


def focus_pair(data: Evaluated) -> tuple[int, str]:
    """The pair whose F1 rose most, of those that sound in a part of the clip only; and a word on
    this choice."""
    before, after = (data.scores(on)["f1"] for on in (data.before, data.after))
    true = counts_in(data.cache, map(np.ones_like, data.cache.cut(data.after))).tp
    share = true / np.diff(data.cache.offsets)
    partly = (share > 0) & (share < 1)
    index = int(np.argmax(np.where(partly | ~partly.any(), after - before, -np.inf)))
    change = f"F1 {100 * before[index]:.1f} to {100 * after[index]:.1f} %"
    among = f"{partly.sum():,} pairs with pauses" if partly.any() else "all pairs"
    return index, f"chosen: largest gain ({change}) of {among}"


def titled(what: str, view: View, why: str) -> str:
    """Title of a figure of one pair, with the reason why it is this pair where we chose it."""
    return f"{what}: {view.name}" + f"\n{why}" * bool(why)


# ---------------------------------------------------------------------------- figures of a pair


TUNED_RULE = "best per-class threshold on d_adj"


def constant_thresholds(results: dict[str, Any], event_label: str) -> list[tuple[str, float]]:
    """What they are and the thresholds of the figure, highest first: the slides' high and low one,
    and between them the one that was tuned on the training clips for this class, where it was."""
    what, middle = "Middle threshold (none was tuned: no training cache)", 0.5
    if rule := next((row for row in results["yardsticks"] if row["name"] == TUNED_RULE), None):
        tuned = rule["params"]["classes"]
        middle = tuned.get(event_label, rule["params"]["fallback"])["t"]
        whom = "this class" if event_label in tuned else "all classes (this one is not among them)"
        what = f"Threshold tuned on the training clips for {whom}"
    levels = [("High threshold", 0.9), ("Low threshold", 0.1), (what, middle)]
    return sorted(levels, key=lambda level: -level[1])


def draw_thresholds(view: View, results: dict[str, Any], why: str) -> "Figure":
    """Detection under a high, a tuned and a low constant threshold (slides, page 3)."""
    title = titled("Detection under constant thresholds", view, why)
    figure, axes = page(title, 6, sharex=True, height_ratios=(5, 2) * 3)
    levels = constant_thresholds(results, view.pair.event_label)
    for (name, threshold), curve, row in zip(levels, axes[::2, 0], axes[1::2, 0], strict=True):
        found = view.signals["d_adj"] > threshold
        f1 = view.scores(found)["f1"]
        curve.set_title(f"{name}, {threshold:.3g}: frame F1 {percent(f1)}")
        curve.plot(view.centres, view.signals["d_adj"], **look("d_adj", "Frame-level score D_adj"))
        curve.axhline(threshold, **look("constant", "Constant threshold"))
        unit_axis(curve, "Score")
        time_axis(row, view.edges[0], view.edges[-1])
        for y, cell, text, on in (
            (1, "tp", "TP: found", found & view.label),
            (1, "fp", "FP: false alarm", found & ~view.label),
            (0, "tp", "TP: found", found & view.label),
            (0, "fn", "FN: missed", ~found & view.label),
        ):
            bars(row, view.events(on), y, cell, text, cell.upper())
        row.set_yticks([1, 0], ["SED", "True"])
        row.set_ylim(-0.6, 1.6)
        row.grid(False)
        row.spines[:].set_visible(False)
    for ax in axes[:-1, 0]:
        ax.set_xlabel("")
        ax.tick_params(bottom=False)
    return legend(figure)


FUSED = {"product": "RMS x score", "harmonic": "Harmonic mean of RMS and score"}


def draw_preprocessing(view: View, fusion: str, why: str) -> "Figure":
    """RMS, score as heat strip, RMS x score, dynamic threshold (slides, page 5)."""
    figure, axes = page(titled("Preprocessing", view, why), 2, 2)
    first, last = view.edges[0], view.edges[-1]
    panels = {
        "1  RMS": ("Normalised loudness", "rms"),
        "2  Score: raw (heat strip) and adjusted": ("Score", "d_adj"),
        f"3  {FUSED.get(fusion, 'RMS and score fused')}": ("Probability", "prob"),
        "4  Dynamic threshold": ("Probability, threshold", "prob", "t_base"),
    }
    for ax, (title, (what, *names)) in zip(axes.flat, panels.items(), strict=True):
        ax.set_title(title)
        if "d_adj" in names:
            raw = view.signals["d_raw"][None]
            strip = ax.imshow(raw, aspect="auto", extent=(first, last, -0.04, 1.06))
            figure.colorbar(strip, ax=ax, label="Raw score (0 to 1)", pad=0.02)
            ax.plot(view.centres, view.signals["d_adj"], color="white", linewidth=4.5)
            ax.grid(False)
        draw_curves(ax, view, *names)
        time_axis(ax, first, last)
        unit_axis(ax, what)
    return legend(figure)


def in_lanes(boxes: list[dict[str, Any]]) -> list[int]:
    """Lane of each box, so that none overlaps another in its lane; the surest ones come first."""
    taken: list[list[tuple[float, float]]] = [[] for _ in boxes]  # a lane for each is enough
    lane = [0] * len(boxes)
    for i in sorted(range(len(boxes)), key=lambda i: -boxes[i]["confidence"]):
        onset, offset = boxes[i]["onset"], boxes[i]["offset"]
        free = (all(b <= onset or offset <= a for a, b in spans) for spans in taken)
        lane[i] = next(k for k, is_free in enumerate(free) if is_free)
        taken[lane[i]].append((onset, offset))
    return lane


MOST_LANES = 16  # less sure candidates than these are not drawn


def draw_boxes(view: View, boxes: list[dict[str, Any]], why: str, known: bool = False) -> "Figure":
    """Score and loudness, the candidates with their confidences, the decision over the truth.

    `known`: the class is known to sound, so frames were decided and no candidate was emitted.
    """
    lanes = in_lanes(boxes)
    shown = [(box, lane) for box, lane in zip(boxes, lanes, strict=True) if lane < MOST_LANES]
    title = f"Candidates: {len(shown)} of {len(boxes)} drawn"
    rows = {"height_ratios": (3, 4, 2), "sharex": True}
    figure, axes = page(titled("A policy over events", view, why), 3, **rows)
    score, candidates, decision = axes[:, 0]
    score.set_title("Raw score of the SED model and loudness")
    score.plot(view.centres, view.signals["d_raw"], **look("d_raw", "Raw score"))
    draw_curves(score, view, "rms")
    unit_axis(score, "Score, loudness")
    candidates.set_title(f"{title}, the surest below; a number is a confidence of 0.3 or more")
    for box, lane in shown:
        width, sure = box["offset"] - box["onset"], box["confidence"]
        edge = COLOURS["constant"] if box["chosen"] else "white"
        bar = {"color": COLOURS["t_adj"], "alpha": 0.12 + 0.88 * sure, "height": 0.8}
        candidates.barh(lane, width, left=box["onset"], **bar)
        candidates.barh(lane, width, 0.8, box["onset"], color="none", edgecolor=edge, linewidth=1.6)
        if sure >= 0.3:
            middle = (box["onset"] + box["offset"]) / 2
            candidates.text(middle, lane, f"{sure:.2f}", ha="center", va="center", fontsize=9)
    candidates.fill_between([], [], alpha=0.5, **look("t_adj", "Candidate, darker: surer"))
    if any(box["chosen"] for box in boxes):
        edge = {"facecolor": "none", "edgecolor": COLOURS["constant"], "linewidth": 1.6}
        candidates.fill_between([], [], label="Emitted", **edge)
    candidates.set_ylim(-0.6, max(2, *(lane for _, lane in shown), 0) + 0.6)
    candidates.set_yticks([])
    candidates.grid(False)
    how = ": the class is known to sound, so frames are decided and no candidate is emitted"
    decision.set_title("Decision over ground truth" + how * known)
    draw_decision(decision, view, view.after, "t_adj", "Decision")
    time_axis(decision, view.edges[0], view.edges[-1])
    return legend(figure)


THREE = "All three: on where Prob95 is above the threshold"


def draw_decision(ax: "Axes", view: View, on: np.ndarray, colour: str, text: str) -> None:
    """Decisions (T,) of a pair as steps over its ground truth."""
    ax.stairs(view.label, view.edges, fill=True, alpha=0.6, **look("label"))
    ax.stairs(on, view.edges, linewidth=2.5, **look(colour, text))
    ax.set_yticks([0, 1], ["off", "on"])
    ax.set_ylim(-0.06, 1.12)


def draw_signals(view: View, why: str) -> "Figure":
    """Prob95 / thresholds / all three, shaded where the decision changed (slides, page 11)."""
    none = "" if (view.before != view.after).any() else " (no decision changed)"
    figure, axes = page(titled(f"Prob95 and thresholds{none}", view, why), 3, sharex=True)
    panels = {
        "Prob95": ("Probability", "prob"),
        "Thresholds: Base_T and DQN_T": ("Threshold", "t_base", "t_adj"),
        THREE: ("Probability,\nthreshold", "prob", "t_base", "t_adj"),
    }
    for ax, (title, (what, *names)) in zip(axes[:, 0], panels.items(), strict=True):
        ax.set_title(title)
        draw_curves(ax, view, *names)
        unit_axis(ax, what)
        entry = "{} by the DQN ({} of {} frames)" if title == THREE else "_"  # _: none
        shade_changes(ax, view, entry)
    time_axis(axes[2, 0], view.edges[0], view.edges[-1])
    return legend(figure)


def draw_deciding(data: Evaluated, index: int, why: str) -> "Figure | str":
    """What a policy decided a pair by: thresholds or candidates."""
    view = view_of(data, index)
    if data.t_adj is not None:
        return draw_signals(view, why)
    if data.boxes is None:
        return "this policy shifts no threshold; --html shows its decisions"
    known = data.cache.queries == "present"
    return draw_boxes(view, data.boxes.get(index, []), why, known)


def draw_decisions(view: View, why: str, who: str) -> "Figure":
    """Base decision and that of the policy, named `who`, over ground truth (slides, page 11)."""
    figure, axes = page(titled("Decisions over ground truth", view, why), 2, sharex=True)
    base = ("Base decision", view.before, "t_base")
    rows = [base, (f"{as_title(who)} decision", view.after, "t_adj")]
    for ax, (text, on, colour) in zip(axes[:, 0], rows, strict=True):
        scores = view.scores(on)
        ax.set_title(f"{text}: " + ", ".join(f"{TEXT[n]} {percent(scores[n])}" for n in NAMES))
        draw_decision(ax, view, on, colour, text)
        ax.set_ylabel("Decision")
    time_axis(axes[1, 0], view.edges[0], view.edges[-1])
    return legend(figure)


CLOSE_UP_S = 0.75  # an onset that was further off does not fit a close-up


def choose_onset(both: list[tuple[Match, Match]]) -> tuple[Match, Match, bool] | None:
    """The onset that the DQN moved closest to the truth (largest move first), base and DQN, and
    whether it did. Only onsets that can be heard."""
    errors = [
        (round(abs(dqn.late_s()), 6), -round(abs(base.late_s()), 6), i)
        for i, (base, dqn) in enumerate(both)
        if dqn.heard("onset")
    ]
    moved = [row for row in errors if row[0] < -row[1]]
    near = [row for row in moved if -row[1] <= CLOSE_UP_S]
    if not errors:
        return None
    return *both[min(near or moved or errors)[2]], bool(moved)


NO_EVENT = "none of the events found before and after suits it"


def draw_onset(data: Evaluated, matches: Matches) -> "Figure | str":
    """Audio around an onset with the true, the base and the DQN's onset (slides, page 10)."""
    both = matches.both()
    if (chosen := choose_onset(both)) is None:
        return NO_EVENT
    base, dqn, moved = chosen
    onset = dqn.true.onset
    view = view_of(data, data.cache.find(dqn.filename, dqn.true.event_label))
    which = "moved closest to the truth" if moved else "none was moved towards the truth"
    why = f"chosen: {which}, of {len(both):,} events found before and after"
    figure, axes = page(titled("Onset close-up", view, why))
    ax = axes[0, 0]
    reach = max(0.4, *(1.6 * abs(match.late_s()) for match in (base, dqn)))
    first, last = max(0.0, onset - reach), min(view.edges[-1], onset + reach)
    draw_audio(ax, data, view, first, last)
    ax.axvline(onset, linewidth=9, alpha=0.6, **look("label", f"True onset: {onset:.3f} s"))
    for match, colour, who, line, above in (  # both can be seen where they are one
        (base, "t_base", "Base", "--", 3),
        (dqn, "t_adj", as_title(policy_name(data.results)), "-", 2),
    ):
        late = round(1000 * match.late_s())
        error = f"{abs(late)} ms {'late' if late > 0 else 'early'}" if late else "exact"
        text = f"{who} onset: {match.found.onset:.3f} s, {error}"
        place = {"linewidth": 3, "linestyle": line, "zorder": above}
        ax.axvline(match.found.onset, **place, **look(colour, text))
    if base.found.onset != dqn.found.onset:
        arrow = {"arrowstyle": "-|>", "color": COLOURS["t_adj"], "lw": 2}
        ends = (dqn.found.onset, 0.93), (base.found.onset, 0.93)
        ax.annotate("", *ends, xycoords=ax.get_xaxis_transform(), arrowprops=arrow)
    time_axis(ax, first, last)
    frames = f"frames of {1000 * view.pair.frame_s:g} ms"
    ax.set_title(f"Decisions are in {frames}; the true onset is the label file's")
    return legend(figure)


def draw_audio(ax: "Axes", data: Evaluated, view: View, first: float, last: float) -> None:
    """The waveform between two times where the audio is at hand, else the loudness."""
    folder, wav = data.cache.manifest.get("audio"), None
    if folder and (path := find_audio(Path(folder), view.pair.filename)):
        with suppress(ValueError):  # not readable any more: the loudness is in the cache
            wav, sample_rate = read_audio(path)
    if wav is None:
        ax.plot(view.centres, view.signals["rms"], **look("rms"))
        unit_axis(ax, "Normalised loudness")
        return
    start = int(first * sample_rate)
    part = wav[start : int(last * sample_rate) + 1]
    time = (start + np.arange(len(part))) / sample_rate
    ax.plot(time, part, linewidth=0.8, **look("audio", "Audio signal"))
    ax.set_ylabel("Amplitude (full scale = 1)")


def draw_events(data: Evaluated, matches: Matches) -> "Figure | str":
    """Bars of an event that was narrowed and of one that was widened (slides, page 11)."""
    both = matches.both()
    kinds: dict[str, list[tuple[float, int]]] = {"Narrowed": [], "Widened": []}
    for i, (base, dqn) in enumerate(both):
        gain = round(base.wrong_s() - dqn.wrong_s(), 6)
        was, now = (match.found.offset - match.found.onset for match in (base, dqn))
        if gain > 0 and round(now - was, 6):
            kinds["Narrowed" if now < was else "Widened"].append((gain, -i))
    none = "".join(f"; none usefully {kind.lower()}" for kind in kinds if not kinds[kind])
    best = {kind: both[-max(found)[1]] for kind, found in kinds.items() if found}
    if not best:
        return NO_EVENT
    why = f"chosen: the most improved of {len(both):,} found before and after{none}"
    name = as_title(policy_name(data.results)) if data.t_adj is None else "DQN Threshold"
    title = f"Events under Base Threshold and {name}\n{why}"
    figure, axes = page(title, 1, len(best), 5.6)
    rows = [("Ground Truth", "label"), ("Base Threshold", "t_base"), (name, "t_adj")]
    for ax, (kind, (base, dqn)) in zip(axes[0], best.items(), strict=True):
        view = view_of(data, data.cache.find(dqn.filename, dqn.true.event_label))
        three = (dqn.true, base.found, dqn.found)
        wrong = f"{base.wrong_s():.2f} s to {dqn.wrong_s():.2f} s"
        title = fill(f"{kind}: {view.name}", 48)
        ax.set_title(f"{title}\nonset error + offset error: {wrong}")
        first, last = min(e.onset for e in three), max(e.offset for e in three)
        margin = 0.15 * (last - first)
        time_axis(ax, max(0.0, first - margin), min(view.edges[-1], last + margin))
        names = []
        for y, ((text, colour), event) in enumerate(zip(rows, three, strict=True)):
            bars(ax, [event], -y, colour, text)
            names.append(f"{text}\n{event.onset:.2f} to {event.offset:.2f} s")
        for edge in dqn.true[:2]:
            ax.axvline(edge, linestyle=":", **look("constant", "True onset and offset"))
        ax.set_yticks([0, -1, -2], names)
        ax.grid(False)
    return legend(figure)


# ---------------------------------------------------------------------------- figures of the run


def draw_epsilon(run: TrainingLog) -> "Figure | str":
    """Exploration rate over episodes, planned and logged, with the gradient steps."""
    learning = run.config.learning
    if run.config.method != "windowed":
        return "this policy does not explore: the rewards of all actions are known"
    if not max(learning.epsilon_start, learning.epsilon_end):
        return "this run does not explore: epsilon is 0"
    figure, axes = page("Epsilon decay over the episodes of this run")
    ax, order = axes[0, 0], np.argsort(run.history["Episode"])
    rows = {name: values[order] for name, values in run.history.items()}
    planned = [epsilon_at(episode, run.schedule, learning) for episode in range(run.planned)]
    text = f"Planned: {learning.epsilon_start:g} to {learning.epsilon_end:g}"
    ax.fill_between(range(run.planned), planned, color=COLOURS["epsilon"], alpha=0.12)
    ax.plot(planned, linewidth=5, alpha=0.7, **look("epsilon", text))
    ax.plot(rows["Episode"], rows["Epsilon"], "--", **look("logged", "Logged"))
    ax.set_xlabel(f"Episode (one pair each; {len(order):,} of {run.planned:,} finished)")
    unit_axis(ax, "Epsilon: share of random actions")
    ax.set_xlim(0, max(1, run.planned - 1))
    ax.xaxis.get_major_locator().set_params(integer=True)
    twin, steps = ax.twinx(), np.maximum.accumulate(rows["Steps"])
    text, most = f"Gradient steps: {steps[-1]:,.0f} in all", max(1, steps[-1])
    twin.plot(rows["Episode"], steps, ":", **look("steps", text))
    twin.set_ylabel("Gradient steps (number so far)")
    twin.set_ylim(-0.04 * most, 1.06 * most)
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    return legend(figure)


def draw_loss(run: TrainingLog) -> "Figure":
    """Loss of a policy over events by gradient step; its rewards are of two kinds."""
    figure, axes = page("Loss over the gradient steps of this run")
    ax, loss = axes[0, 0], run.history["Loss"]
    some = np.flatnonzero(loss > 0)  # of a few steps there is one loss, their mean
    ax.plot(some + 1, loss[some], **look("avg10", "Binary cross-entropy"))
    ax.set_title("First the networks of frames, then those of boxes, which begin anew")
    ax.set_xlabel("Gradient step (an episode of this run)")
    ax.set_ylabel("Loss (mean over the networks)")
    ax.set_xlim(0, len(loss) + 1)
    ax.set_ylim(0)
    return legend(figure)


def draw_avg10(run: TrainingLog) -> "Figure":
    """Reward and avg10 over episodes, with what action 0.0 would have been paid (page 10)."""
    figure, axes = page("Avg10 over episodes")
    ax, rows = axes[0, 0], run.history
    unchanged = runfolder.last_ten(runfolder.unchanged_rewards(rows, run.config.bandit))
    count = len(rows["Episode"])
    done, mark = np.arange(1, count + 1), "." if count < 10 else ""
    for values, line, width, colour, text in (
        (rows["Reward"], "-", 0.9, "reward", "Reward"),
        (unchanged, "--", 1.4, "t_base", "Avg10 of never shifting (Base_T kept)"),
        (rows["Avg10"], "-", 2.2, "avg10", "Avg10: mean reward of the last 10 episodes"),
    ):
        ax.plot(done, values, linestyle=line, linewidth=width, marker=mark, **look(colour, text))
    ax.set_xlim(0, count + 1)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("Episode (in the order of finishing)")
    ax.set_ylabel("Reward of an episode (sum over its frames)")
    tenth = max(1, count // 10)
    dqn, base = (
        f"{values[:tenth].mean():.1f} / {values[-tenth:].mean():.1f}"
        for values in (rows["Avg10"], unchanged)  # as the log says it
    )
    part = "tenth" if tenth > 1 else "episode"
    ax.set_title(f"Avg10 in the first / last {part}: DQN {dqn}, never shifting {base}")
    return legend(figure)


def judged_pairs(results: dict[str, Any]) -> str:
    """How many pairs the slides' metrics are of; on all pairs the present ones only."""
    total = results["num_pairs"]
    count = results.get("present_pairs", total)
    return f"{total:,} pairs" if count == total else f"{count:,} present of {total:,} pairs"


def draw_before_after(results: dict[str, Any], threshold: bool = True) -> "Figure":
    """Table and bars of the metrics (slides, page 10); `threshold`: there is a DQN_T."""
    pairs, before, after = judged_pairs(results), results["before"], results["after"]
    who = policy_name(results)
    title = f"Before and after the {who}: {pairs}, {results['split']} split"
    figure, axes = page(title, 1, 2, width_ratios=(7, 5))
    table, ax = axes[0]
    table.set_axis_off()
    was, now = f"Before {who} (Base_T)", f"After {who}" + " (DQN_T)" * threshold
    heads = [text.replace(" (", "\n(") for text in (was, now)]
    cells, tones = [["Metric", *heads, "Gain (points)\n95 % interval"]], []
    for x, name in enumerate(NAMES):
        gain, span = after[name] - before[name], results["interval"][name]
        mark = f"{'▼' if gain < 0 else '▲'} {points(gain)}"
        ends = f"{mark}\n{' to '.join(map(points, span))}"
        cells.append([TEXT[name], percent(before[name]), percent(after[name]), ends])
        tones.append(COLOURS[tone(results, *span)])
        top = 100 * max(before[name], after[name]) + 7
        ax.text(x, top, mark, ha="center", weight="bold", color=tones[x])
    drawn = table.table(
        cells, bbox=(0, 0.3, 1, 0.66), cellLoc="center", colWidths=(0.19, 0.25, 0.25, 0.31)
    )
    drawn.auto_set_font_size(False)
    for (row, column), cell in drawn.get_celld().items():
        cell.set(edgecolor="#d5dae1", facecolor="white" if row else "#eef2f8")
        cell.set_text_props(size=15, weight="normal" if row and column != 2 else "bold")
        if row and column == 3:
            cell.set_text_props(color=tones[row - 1])
    frames = results.get("present_frames", results["num_frames"])
    counts = [f"{n:,}" for n in (results["fixed_frames"], results["broken_frames"], frames)]
    text = (
        "Each metric per pair, then the mean over {}.\n{} decisions fixed, {} broken, of {} frames."
        "\n▲ rose, ▼ fell; grey: may be chance, as the interval"
        f"\n({DRAWS:,} bootstraps of clips) covers 0."
    )
    table.text(0, 0.05, text.format(pairs, *counts), linespacing=1.6)
    for x, values, colour, text in ((-0.2, before, "t_base", was), (0.2, after, "t_adj", now)):
        place, height = np.arange(len(NAMES)) + x, [100 * values[name] for name in NAMES]
        ax.bar_label(ax.bar(place, height, 0.38, **look(colour, text)), fmt="%.1f", padding=2)
    ax.set_xticks(range(len(NAMES)), [TEXT[name] for name in NAMES])
    ax.set_ylim(0, 115)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("Mean over pairs (%); above: gain (points)")
    ax.grid(axis="x", visible=False)
    return legend(figure)


def network_boxes(network: QNetwork, bandit: Bandit) -> list[tuple[str, str, str, int, int]]:
    """(kind, name, inside, channels out, frames out) of each stage, read off the network."""
    convs = [part for part in network.tcn if isinstance(part, nn.Conv1d)]
    dilations = ", ".join(str(conv.dilation[0]) for conv in convs)
    gru, layers, window = network.gru, network.transformer.layers, bandit.window
    heads, inner = layers[0].self_attn.num_heads, layers[0].linear1.out_features
    width, hidden = network.head[0].in_features, network.head[0].out_features
    answers, name = network.head[-1].out_features, "Q-values"
    low, high = bandit.deltas[0], bandit.deltas[-1]
    tcn = f"{len(convs)} x Conv1d\nkernel {convs[0].kernel_size[0]}\ndilation\n{dilations}"
    recurrent = f"{gru.num_layers} layers\n{gru.hidden_size} units\nper direction"
    attention = f"{len(layers)} layers\n{heads} heads\nfeed-forward\n{inner}\n\ncentre frame\nout"
    head = f"Linear {width}\nto {hidden}\n\nLinear {hidden}\nto {answers}"
    values = f"one for each\nshift of Base_T\n\n{low:+.2f} to\n{high:+.2f}\n\nthe best acts"
    if answers == 1:
        name, values = "Log odds", "that the\ncentre frame\nis on\n\non above 0"
    return [
        ("data", "State", "\n".join(bandit.channels), len(bandit.channels), window),
        ("convolution", "TCN", tcn, convs[-1].out_channels, window),
        ("recurrent", "BiGRU", recurrent, 2 * gru.hidden_size, window),
        ("attention", "Transformer", attention, width, 1),
        ("linear", "Head", head, answers, 1),
        ("data", name, values, answers, 1),
    ]


def draw_network(run: TrainingLog) -> "Figure":
    """The Q-network as a row of boxes, sizes from the run's config."""
    from matplotlib.patches import FancyBboxPatch

    config = run.config
    network = make_network(config.method, config.bandit, config.network)
    boxes = network_boxes(network, config.bandit)
    parameters = sum(weights.numel() for weights in network.parameters())
    figure, axes = page(f"Q-network: {parameters:,} parameters", height=5.0)
    ax, shape = axes[0, 0], {"boxstyle": "round,pad=0,rounding_size=0.05", "edgecolor": "#5a6b85"}
    arrow = {"arrowstyle": "-|>", "color": "#333333", "lw": 1.8}
    for i, (kind, name, inside, channels, frames) in enumerate(boxes):
        text = {"label": kind.capitalize(), "facecolor": COLOURS[kind]}
        ax.add_patch(FancyBboxPatch((i + 0.08, 0.2), 0.76, 0.68, **shape, **text))
        middle = {"x": i + 0.46, "ha": "center", "va": "top"}
        ax.text(y=0.84, s=name, weight="bold", fontsize=15, **middle)
        ax.text(y=0.74, s=inside, linespacing=1.4, **middle)
        ax.text(y=0.16, s=f"{channels} x {frames}", weight="bold", fontsize=15, **middle)
        if i:
            ax.annotate("", (i + 0.08, 0.54), (i - 0.16, 0.54), arrowprops=arrow)
    ax.text(len(boxes) / 2, 0.02, "Under each box: channels x frames that leave it", ha="center")
    ax.set(xlim=(0, len(boxes)), ylim=(0, 0.9))
    ax.set_axis_off()
    return legend(figure)


def draw_yardsticks(results: dict[str, Any], threshold: bool = True) -> "Figure":
    """Before, after and the yardsticks by F1, one panel a metric; `threshold`: there is a DQN_T."""
    who = policy_name(results)
    base = {"name": "Before: Base_T", "kind": "base", "interval": results["interval"]}
    name = "After: DQN_T" if threshold else f"After: {who}"
    ours = {"name": name, "kind": "policy", "interval": None}
    rows = [base | results["before"], ours | results["after"], *results["yardsticks"]]
    rows.sort(key=lambda row: -row["f1"])
    where = f"{judged_pairs(results)}, {results['split']} split"
    title = f"Rules beside the {who}, best F1 first: {where}"
    height = max(PAGE[1], 3 + 0.4 * len(rows))
    figure, axes = page(title, 1, len(NAMES), height, sharey=True)
    for ax, metric in zip(axes[0], NAMES, strict=True):
        draw_yardstick(ax, rows, metric, results["after"][metric], who)
    names = []
    for row in rows:
        setting = str(row.get("setting") or "")
        more = f" ({setting})" if 0 < len(setting) <= 24 else ""  # longer ones: results.json
        names.append(short(row["name"] + more, 46))
    name_rows(axes[0, 0], names, [row["kind"] in ("base", "policy") for row in rows])
    note = (
        f"Lines: the {who}'s value minus the 95 % interval of its (paired) difference to the row.\n"
        f"A line that reaches the dotted one: the row and the {who} cannot be told apart."
    )
    return legend(figure, 5, note)


# kind of a row -> colour, legend entry, {} the policy's name
YARDSTICKS = table_figures.KINDS | {
    "base": ("t_base", "Before {}"),
    "policy": ("t_adj", "After {}"),
}


def draw_yardstick(
    ax: "Axes", rows: list[dict[str, Any]], metric: str, ours: float, who: str
) -> None:
    """One metric of all rows: points, whiskers, numbers, the level of the policy, named `who`."""
    spans = [
        np.array([row[metric], row[metric]])
        if row["interval"] is None
        else ours - np.array(row["interval"][metric])[::-1]
        for row in rows
    ]
    near = [span for span, row in zip(spans, rows, strict=True) if row["name"] not in TRIVIAL]
    scale(ax, near)
    ax.axvline(100 * ours, linestyle=":", **look("t_adj", f"Level of the {who}"))
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        colour, text = YARDSTICKS[row["kind"]]
        value, bold = 100 * row[metric], row["kind"] in ("base", "policy")
        if not row_value(ax, i, value, f"{value:.1f}", bold, COLOURS[colour]):
            continue
        ax.plot(100 * span, [-i, -i], color=COLOURS[colour])
        ax.plot([value], [-i], "o", markersize=8, **look(colour, text.format(who)))
    ax.set_title(TEXT[metric])
    ax.set_xlabel("Mean over pairs (%)")


def draw_per_class(results: dict[str, Any]) -> "Figure":
    """Gain of each class in points: accuracy, IoU, F1, with intervals."""
    table = results["per_class"]
    names = sorted(table, key=lambda name: (-table[name]["pairs"], name))[:MOST_CLASSES]
    which = f" ({len(names)} most frequent of {len(table)})" if len(names) < len(table) else ""
    title = f"Gain of the {policy_name(results)} by class{which}: {results['split']} split"
    figure, axes = page(title, height=max(PAGE[1], 2 + 0.65 * len(names)))
    ax, place = axes[0, 0], -np.arange(len(names))
    for i, metric in enumerate(NAMES):
        gains = np.array([table[n]["after"][metric] - table[n]["before"][metric] for n in names])
        ends = np.array([table[n]["interval"][metric] for n in names])
        y = place + 0.27 * (1 - i)
        ax.barh(y, 100 * gains, 0.26, **look(metric))
        ax.hlines(y, *(100 * ends.T), color=COLOURS["constant"], linewidth=1.2)
        # beside bar and line, on the side where the bar points to
        right = np.round(100 * gains, 1) >= 0
        edge = np.where(right, np.maximum(gains, ends[:, 1]), np.minimum(gains, ends[:, 0]))
        for at, row, gain, side in zip(100 * edge, y, gains, right, strict=True):
            where = {"xytext": (4 if side else -4, 0), "textcoords": "offset points"}
            where |= {"ha": "left" if side else "right", "va": "center", "fontsize": 10.5}
            ax.annotate(points(gain, 1), (at, row), **where)
    ax.axvline(0, color=COLOURS["constant"], linewidth=1)
    ax.use_sticky_edges = False  # leave room for the numbers on both sides of 0
    ax.margins(x=0.1, y=0.02)
    ax.set_yticks(place, [f"{short(name, 30)}\npairs: {table[name]['pairs']}" for name in names])
    ax.set_xlabel("Gain: after minus before, mean over the pairs of the class (percentage points)")
    ax.grid(axis="y", visible=False)
    note = f"Lines: 95 % of {DRAWS:,} bootstraps of clips; one that covers 0 may be chance"
    return legend(figure, note=note)


# ---------------------------------------------------------------------------- all of them

Drawings = dict[str, Callable[[], "Figure | str"]]


def pair_drawings(data: Evaluated, index: int, matches: Matches, why: str = "") -> Drawings:
    """Figures that one pair, chosen because of `why`, is enough for; events are of `matches`."""
    view = view_of(data, index)
    fusion = (data.cache.manifest["signal"] or {}).get("fusion", "")  # imported signals: unknown
    return {
        "preprocessing": lambda: draw_preprocessing(view, fusion, why),
        "signals": lambda: draw_deciding(data, index, why),
        "decisions": lambda: draw_decisions(view, why, policy_name(data.results)),
        "onset": lambda: draw_onset(data, matches),
        "events": lambda: draw_events(data, matches),
    }


def run_drawings(data: Evaluated, run: TrainingLog) -> Drawings:
    """Every figure of the slides; pair and events are chosen as the clearest of the split."""
    index, why = focus_pair(data)
    threshold = data.t_adj is not None
    learning = {
        "epsilon": lambda: draw_epsilon(run),
        "avg10": lambda: draw_avg10(run),
        "network": lambda: draw_network(run),
    }
    if run.config.method == "events":
        learning = {"loss": lambda: draw_loss(run)}
    return {
        "thresholds": lambda: draw_thresholds(view_of(data, index), data.results, why),
        **pair_drawings(data, index, find_matches(data), why),
        "before_after": lambda: draw_before_after(data.results, threshold),
        **learning,
        "yardsticks": lambda: draw_yardsticks(data.results, threshold),
        "per_class": lambda: draw_per_class(data.results),
    }


def safe(text: str) -> str:
    """Text as a part of a file name on any system."""
    return re.sub(r"[^\w.-]+", "_", text)[:80]


def figures(cfg: VisualizeConfig) -> Drawn:
    """(file name, figure); a text says why a figure is left out."""
    data, prefix = load_evaluated(cfg), ""
    for note in data.results.get("notes", []):  # older results have none
        print(f"note: {note}")
    if cfg.clip is None:
        drawings = run_drawings(data, load_training(cfg))
    else:
        index = data.cache.find(cfg.clip, cfg.event_label)
        asked = (cfg.clip, cfg.event_label)
        found = [
            [match for match in some if (match.filename, match.true.event_label) == asked]
            for some in find_matches(data)
        ]
        drawings = pair_drawings(data, index, Matches(*found))
        prefix = f"pair-{safe(Path(cfg.clip).stem)}-{safe(cfg.event_label)}-"
    yield from each_figure(drawings, prefix)


def write_figures(drawn: Drawn, folder: Path, dpi: int, what: str) -> None:
    """Write all figures or none; prints each file, and why one is left out."""
    files = []
    with made(folder), ExitStack() as stack:
        for name, figure in drawn:
            if isinstance(figure, str):
                print(f"{name}: not drawn, {figure}")
                continue
            files.append(folder / name)
            save(figure, stack.enter_context(whole(files[-1])), dpi, what)
    print("\n".join(map(str, files)))


def write_page(cfg: VisualizeConfig) -> None:
    """The page of figures/report.py. A policy without a log, as an imported one, has no curves."""
    shown = []
    for run in filter(None, (cfg.run, cfg.beside)):
        own = replace(cfg, run=run, beside=None)
        training = load_training(own)[:2] if (run / "config.json").exists() else None
        shown.append(Shown(run, load_evaluated(own), training))
    write_report(shown, cfg.pairs)


def main(cfg: VisualizeConfig) -> int:
    """Draw every figure, then write the page where it is wanted: its path is the last line.

    Without a training log, which most figures need, there is the page only.
    """
    home, kinds = cfg.run, (runfolder.EVALUATION, runfolder.RUN)
    if cfg.table is not None:
        home, kinds = cfg.table, (TABLE,)
    drawn = cfg.table is not None or not cfg.html or (cfg.run / "config.json").exists()
    out = cfg.out or home / "figures"
    if cfg.out is not None:
        inputs = [home, cfg.beside, cfg.cache, cfg.cache / "train", cfg.cache / "validation"]
        keep_apart(cfg.out, inputs)
    with ExitStack() as held:
        ours = any(is_ours(home, kind) for kind in kinds)  # else reading it says what it lacks
        if ours and (cfg.html or cfg.out is None):
            held.enter_context(own_folder(home, *kinds))
        if cfg.out is not None and drawn:
            held.enter_context(own_folder(cfg.out, runfolder.FIGURES))
        if cfg.table is not None:
            found = table_figures.figures(cfg.table, cfg.preset)
            write_figures(found, out, cfg.dpi, f"table {cfg.table}")
        elif drawn:
            write_figures(figures(cfg), out, cfg.dpi, f"run {cfg.run}")
        if cfg.html:
            write_page(cfg)
    return 0


if __name__ == "__main__":
    run_script(VisualizeConfig, main)
