"""Figures: complete, titled, labelled in units, one colour a signal; odd pairs, missing inputs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import soundfile
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

import config
import evaluate
import preprocess
import visualize
from comparison import evaluations
from config import Bandit, TrainConfig, VisualizeConfig
from core import settings
from core.errors import InputError
from core.files import contents
from core.stored import file_sha256
from figures import plotting
from policy import runfolder
from sed import caches, matching, metrics
from sed.matching import Match
from sed.signals import min_max
from sed.timeline import Event, frame_edges, frames_to_events

RUN_FIGURES = {
    *("thresholds", "preprocessing", "signals", "decisions", "onset", "events", "epsilon"),
    *("avg10", "before_after", "network", "yardsticks", "per_class"),
}
PAIR_FIGURES = {"preprocessing", "signals", "decisions", "onset", "events"}
ODD = "Cat_$ 50%/dish$ & ^co\\"  # mathtext, path and TeX characters


def clip_of(filename: str, label: str, frames: int, frame_s: float, truth: np.ndarray) -> tuple:
    """A clip record with the events of its only pair."""
    edges = frame_edges(frames, frame_s)
    events = frames_to_events(truth, label, edges)
    return caches.ClipRecord(filename, float(edges[-1]), events, None)


class Folders:
    """A cache with two splits and an evaluated run on it, small and made up."""

    def __init__(self, home: Path):
        self.cfg = VisualizeConfig(run=home / "run", cache=home / "cache", dpi=40)
        self.cfg.run.mkdir()

    def write_cache(self, split: str, rows: list[tuple]) -> None:
        """Rows of (file name, label, T, frame_s, truth, score)."""
        folder, signal = self.cfg.cache / split, config.Signal()
        folder.mkdir(parents=True)
        rng, values = np.random.default_rng(1), []
        for _, _, frames, frame_s, truth, score in rows:
            rms = min_max(truth + 0.2 * rng.random(frames))
            values.append(preprocess.compute_signals(rms, score, frame_s, signal))
        caches.write_shard(folder / "shard-00000.npz", values, [row[4] for row in rows])
        shard = {
            "file": "shard-00000.npz",
            "sha256": file_sha256(folder / "shard-00000.npz"),
            "pairs": [row[:4] for row in rows],
            "clips": [clip_of(*row[:5]) for row in rows],
            **{"inputs": "", "failed": [], "notices": {}},
        }
        manifest = {"format": caches.FORMAT, "key": split, "audio": None, "shards": [shard]}
        manifest |= {"queries": "present", "classes": sorted({row[1] for row in rows})}
        manifest |= {
            "signal": settings.to_dict(signal),
            "split": split,
            "scores": {},
            "left_out": [],
        }
        manifest |= {"signal": settings.to_dict(signal), "formulas": preprocess.FORMULAS}
        preprocess.write_json(folder / "manifest.json", manifest)

    def write_results(self, t_adj: np.ndarray | None = None) -> None:
        """Decisions of a threshold near the truth (or the one given), and their results."""
        cache = caches.load_cache(self.cfg.cache / "validation")
        prob, t_base = cache.signals["prob"], cache.signals["t_base"]
        if t_adj is None:
            t_adj = np.clip(t_base + np.where(cache.label, -0.2, 0.2), 0, 1)
        after = prob > t_adj
        run = self.cfg.run
        decided = {"t_adj": t_adj.astype(np.float32), "binary": after}
        np.savez(run / "decisions.npz", **decided)
        train = caches.load_cache(self.cfg.cache / "train")
        results = {"split": "validation", "cache_key": cache.key, "num_pairs": len(cache.pairs)}
        results |= {"num_frames": len(after), **evaluate.tables(cache, after, Bandit(), train)}
        results["verdict"] = evaluate.verdict(results)
        results["decisions"] = evaluations.digest_of(decided)
        data = evaluations.Evaluated(cache, results, t_adj, prob > t_base, after)
        found = evaluations.find_matches(data)._asdict()
        results["ends"] = {when: matching.end_errors(some) for when, some in found.items()}
        preprocess.write_json(run / "results.json", results)

    def write_history(self, episodes: int) -> None:
        """A run of that many episodes, with the settings of a small network."""
        network = config.Network(hidden=16)
        cfg = replace(TrainConfig(), network=network, cache=self.cfg.cache, holdout=0.0)
        preprocess.write_json(self.cfg.run / "config.json", settings.to_dict(cfg))
        lines = ["\t".join(runfolder.HISTORY)]
        for i in range(episodes):
            epsilon = visualize.epsilon_at(i, 4, cfg.learning)
            lines.append(
                f"{i}\t{90 + i}\t{90 + i / 2}\t{epsilon}\t5\t10\t3\t482\t{15 * i}\t0.2\t0.1"
            )
        (self.cfg.run / "reward_history.tsv").write_text("\n".join(lines) + "\n")


def odd_pairs(rng: np.random.Generator) -> list[tuple]:
    """Pairs of two grids and odd names; one is on all the time, one never."""
    rows = []
    shapes = [(500, 0.02), (156, 0.064), (500, 0.02), (100, 0.02)]
    names = [("a.wav", "Speech"), ("b_$1$.wav", ODD), ("on.wav", "Speech"), ("off.wav", "Dog")]
    for (frames, frame_s), (filename, label) in zip(shapes, names, strict=True):
        truth = np.zeros(frames, dtype=bool)
        truth[frames // 5 : frames // 2] = True
        truth[:] = {"on.wav": True, "off.wav": False}.get(filename, truth)
        late = np.roll(truth, frames // 50)
        score = np.clip(0.1 + 0.7 * late + 0.1 * rng.random(frames), 0, 1)
        rows.append((filename, label, frames, frame_s, truth, score))
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    made = Folders(tmp_path_factory.mktemp("visualize"))
    made.write_cache("validation", odd_pairs(np.random.default_rng(0)))
    made.write_cache("train", odd_pairs(np.random.default_rng(1)))
    made.write_results()
    made.write_history(3)
    return made


@pytest.fixture(scope="module")
def drawn(folders) -> dict:
    return {name.removesuffix(".png"): figure for name, figure in visualize.figures(folders.cfg)}


@pytest.fixture
def copied(folders, tmp_path) -> VisualizeConfig:
    """The same inputs, free to be damaged."""
    shutil.copytree(folders.cfg.run, tmp_path / "run")
    return replace(folders.cfg, run=tmp_path / "run")


# ---------------------------------------------------------------------------- every figure


def test_every_figure_is_made(drawn):
    assert {name for name, figure in drawn.items() if not isinstance(figure, str)} == RUN_FIGURES


@pytest.mark.parametrize("name", sorted(RUN_FIGURES))
def test_title_units_legend(drawn, name):
    figure = drawn[name]
    assert figure.get_suptitle()
    assert figure.legends and all(text.get_text() for text in figure.legends[0].get_texts())
    for ax in figure.axes:
        for axis, ticks in ((ax.xaxis, "labelbottom"), (ax.yaxis, "labelleft")):
            numbers = isinstance(axis.get_major_formatter(), ScalarFormatter)
            shown = ax.axison and axis.get_visible() and len(axis.get_ticklocs()) > 0
            if shown and numbers and axis.get_tick_params().get(ticks, True):
                label = axis.get_label_text()
                assert "(" in label, f"{name}: {axis.axis_name} axis without a unit: {label!r}"


def colour_of(handle: object) -> str:
    """Colour of a legend entry: line, bars, steps or shade."""
    if isinstance(handle, BarContainer):
        handle = handle.patches[0]
    if isinstance(handle, Line2D):
        return to_hex(handle.get_color())
    colour = np.ravel(handle.get_facecolor())
    return to_hex(handle.get_edgecolor() if colour[3] == 0 else colour[:3])


def test_one_colour_a_signal(drawn):
    assert len(set(visualize.COLOURS.values())) == len(visualize.COLOURS)
    seen: dict[str, str] = {}
    for figure in drawn.values():
        for ax in figure.axes:
            for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
                name, colour = text.partition(":")[0], colour_of(handle)
                assert seen.setdefault(name, colour) == colour, name
                assert colour in visualize.COLOURS.values(), name
    signals = {"Prob95": "prob", "Base_T": "t_base", "DQN_T": "t_adj", "Ground Truth": "label"}
    signals |= {"Base Threshold": "t_base", "DQN Threshold": "t_adj"}
    for text, name in signals.items():
        assert seen[text] == visualize.COLOURS[name]


def test_time_axes_are_seconds(drawn):
    """The chosen pair is 10 s (500 x 20 ms) or 9.984 s (156 x 64 ms) long, not 0..1."""
    for name in ("thresholds", "preprocessing", "signals", "decisions"):
        first, last = drawn[name].axes[0].get_xlim()
        assert first == 0 and last in (10.0, pytest.approx(9.984))


def test_network_sizes_come_from_the_config(drawn):
    texts = " ".join(text.get_text() for text in drawn["network"].axes[0].texts)
    for part in ("16 x 21", "32 x 21", "32 x 1", "21 x 1", "6 x 21", "1, 2, 4, 8"):
        assert part in texts


def test_epsilon_follows_the_plan(drawn):
    planned, logged = drawn["epsilon"].axes[0].lines
    assert len(planned.get_ydata()) == 4  # four training pairs, one pass, three finished
    np.testing.assert_allclose(logged.get_ydata(), planned.get_ydata()[:3])


def test_never_shifting_is_drawn(drawn):
    (line,) = [line for line in drawn["avg10"].axes[0].lines if "never" in line.get_label()]
    np.testing.assert_allclose(line.get_ydata(), 0.2 * (482 + 3) - 0.2 * (5 + 10))


def test_import_and_drawing_leave_the_style_alone(folders):
    before = dict(matplotlib.rcParams)
    for _ in visualize.figures(folders.cfg):
        assert dict(matplotlib.rcParams) == before


# ---------------------------------------------------------------------------- files


def test_files_are_written_and_printed(folders, tmp_path, capsys):
    cfg = replace(folders.cfg, out=tmp_path / "figures", dpi=30)
    assert visualize.main(cfg) == 0
    files = {f"{name}.png" for name in RUN_FIGURES}
    assert set(contents(cfg.out)) == files
    assert set(capsys.readouterr().out.split()) == {str(cfg.out / name) for name in files}
    for path in cfg.out.glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_one_pair_with_odd_names(folders, tmp_path, capsys):
    cfg = replace(folders.cfg, out=tmp_path, clip="b_$1$.wav", event_label=ODD, dpi=30)
    visualize.main(cfg)
    prefix = "pair-b__1_-Cat__50_dish_co_-"
    assert set(contents(tmp_path)) == {f"{prefix}{n}.png" for n in PAIR_FIGURES}
    titles = [figure.get_suptitle() for _, figure in visualize.figures(cfg)]
    assert any("$1$" in title and "Cat_$" in title for title in titles)


@pytest.mark.parametrize(("clip", "label"), [("on.wav", "Speech"), ("off.wav", "Dog")])
def test_a_pair_without_any_onset(folders, tmp_path, capsys, clip, label):
    cfg = replace(folders.cfg, out=tmp_path, clip=clip, event_label=label, dpi=30)
    assert visualize.main(cfg) == 0
    assert len(list(tmp_path.iterdir())) >= 3
    assert "onset.png: not drawn" in capsys.readouterr().out


def test_one_pair_needs_no_training_log(copied, tmp_path):
    (copied.run / "reward_history.tsv").unlink()
    (copied.run / "config.json").unlink()
    cfg = replace(copied, out=tmp_path / "out", clip="a.wav", event_label="Speech", dpi=30)
    assert visualize.main(cfg) == 0


def test_waveform_where_there_is_audio(folders, tmp_path, monkeypatch):
    wav = np.random.default_rng(0).normal(0, 0.1, 80_000)
    soundfile.write(tmp_path / "a.wav", wav, 8_000)
    data = visualize.load_evaluated(folders.cfg)
    monkeypatch.setitem(data.cache.manifest, "audio", str(tmp_path))
    found = visualize.find_matches(data)
    own = found._make([m for m in some if m.filename == "a.wav"] for some in found)
    figure = visualize.draw_onset(data, own)
    assert "Audio signal" in [text.get_text() for text in figure.legends[0].get_texts()]


# ---------------------------------------------------------------------------- choices


def test_nothing_changed_is_said(folders, copied):
    made = Folders.__new__(Folders)
    made.cfg = copied
    cache = caches.load_cache(copied.cache / "validation")
    made.write_results(cache.signals["t_base"])
    drawn = dict(visualize.figures(copied))
    assert isinstance(drawn["events.png"], str)
    assert "no decision changed" in drawn["signals.png"].get_suptitle()
    assert "none was moved" in drawn["onset.png"].get_suptitle()


def found(clip: str, true: tuple, base: tuple, dqn: tuple) -> tuple[Match, Match]:
    """The matches of base and DQN with one true event, times in seconds."""
    events = [Event(*times, "x") for times in (true, base, dqn)]
    return tuple(Match(clip, events[0], event, 10.0) for event in events[1:])


def test_onset_choice():
    exact_from_far = found("a", (1, 2), (1.4, 2), (1, 2))
    exact_from_near = found("b", (1, 2), (1.1, 2), (1, 2))
    worse = found("c", (1, 2), (1, 2), (1.1, 2))
    at_start = found("d", (0, 2), (0.5, 2), (0, 2))
    some = [worse, exact_from_near, exact_from_far, at_start]
    assert visualize.choose_onset(some) == (*exact_from_far, True)
    assert visualize.choose_onset([worse]) == (*worse, False)
    assert visualize.choose_onset([at_start]) is None


def test_the_reason_for_a_pair_stands_in_the_title(folders, drawn):
    data = visualize.load_evaluated(folders.cfg)
    index, _ = visualize.focus_pair(data)
    view = visualize.view_of(data, index)
    for name in ("thresholds", "preprocessing", "signals", "decisions"):
        title = drawn[name].get_suptitle()
        assert view.name in title and "gain" in title
        assert "of 2 pairs with pauses" in title
    assert "moved" in drawn["onset"].get_suptitle() and "improved" in drawn["events"].get_suptitle()
    asked = replace(folders.cfg, clip="a.wav", event_label="Speech")
    assert "gain" not in dict(visualize.figures(asked))["pair-a-Speech-signals.png"].get_suptitle()


# ---------------------------------------------------------------------------- what is drawn


def test_the_tuned_threshold_is_drawn(folders, drawn):
    results = json.loads((folders.cfg.run / "results.json").read_text())
    (rule,) = [row for row in results["yardsticks"] if row["name"] == visualize.TUNED_RULE]
    data = visualize.load_evaluated(folders.cfg)
    index, _ = visualize.focus_pair(data)
    tuned = rule["params"]["classes"][data.cache.pairs[index].event_label]["t"]
    axes = drawn["thresholds"].axes[::2]
    levels = [
        line.get_ydata()[0] for ax in axes for line in ax.lines if len(set(line.get_ydata())) == 1
    ]
    assert levels == sorted([0.9, tuned, 0.1], reverse=True) and tuned not in (0.9, 0.1)
    for level, ax in zip(levels, axes, strict=True):
        assert f"{level:.3g}: " in ax.get_title("left")
    assert sum("tuned" in ax.get_title("left") for ax in axes) == 1
    results["yardsticks"] = []  # nothing was tuned without a training cache
    assert [t for _, t in visualize.constant_thresholds(results, "Dog")] == [0.9, 0.5, 0.1]
    results["yardsticks"] = [rule]
    other = visualize.constant_thresholds(results, "a class that was not in training")
    assert rule["params"]["fallback"]["t"] in [t for _, t in other]


@pytest.mark.parametrize(
    ("low", "high", "clips", "kind"),
    [
        (0.01, 0.02, 9, "good"),
        (-0.02, -0.01, 9, "bad"),
        (-0.01, 0.02, 9, "quiet"),
        (0.01, 0.01, 1, "quiet"),
    ],
)
def test_what_fell_is_marked(folders, low, high, clips, kind):
    results = visualize.load_evaluated(folders.cfg).results
    intervals = {name: [low, high] for name in metrics.NAMES}
    results = results | {"num_clips": clips, "interval": intervals}
    if fell := high < 0:
        results |= {"before": results["after"], "after": results["before"]}
    table, ax = visualize.draw_before_after(results).axes
    cells = table.tables[0].get_celld()
    for row, name in enumerate(metrics.NAMES, start=1):
        text = cells[row, 3].get_text()
        gain = 100 * (results["after"][name] - results["before"][name])
        said = [f"{gain:+.2f}", f"{100 * low:+.2f}", f"{100 * high:+.2f}", "▼" if fell else "▲"]
        assert all(part in text.get_text() for part in said)
        assert to_hex(text.get_color()) == visualize.COLOURS[kind]
    assert {to_hex(t.get_color()) for t in ax.texts if t.get_weight() == "bold"} == {
        visualize.COLOURS[kind]
    }


def test_yardsticks_are_sorted_with_paired_intervals(folders, drawn):
    results = visualize.load_evaluated(folders.cfg).results
    figure, ours = drawn["yardsticks"], results["after"]
    rows = {row["name"]: row for row in results["yardsticks"]}
    rows |= {"Before: Base_T": results["before"] | {"interval": results["interval"]}}
    shown = [text.get_text().partition(" (t")[0] for text in figure.axes[0].get_yticklabels()]
    f1 = {**{name: row["f1"] for name, row in rows.items()}, "After: DQN_T": ours["f1"]}
    values = [next(v for k, v in f1.items() if name.startswith(k)) for name in shown]
    assert values == sorted(values, reverse=True) and len(shown) == len(f1)
    for ax, metric in zip(figure.axes, metrics.NAMES, strict=True):
        first, last = ax.get_xlim()
        spans = {
            line.get_ydata()[0]: line.get_xdata()
            for line in ax.lines
            if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
        }
        for i, name in enumerate(shown):
            row = next((row for key, row in rows.items() if name.startswith(key)), None)
            if row is None or -i not in spans:  # the DQN itself; a row off the scale
                assert row is None or not first <= 100 * row[metric] <= last
                continue
            low, high = row["interval"][metric]
            assert spans[-i] == pytest.approx([100 * (ours[metric] - x) for x in (high, low)])
    assert figure.axes[0].get_xlim()[0] > 0  # cut to what differs


def test_gains_of_classes_have_intervals_and_no_negative_zero(folders, copied):
    path = copied.run / "results.json"
    results = json.loads(path.read_text())
    row = results["per_class"]["Speech"]
    row["after"] = {name: row["before"][name] - 1e-5 for name in metrics.NAMES}
    figure = visualize.draw_per_class(results)
    (ax,) = figure.axes
    said = [text.get_text() for text in ax.texts]
    assert len(said) == 3 * len(results["per_class"]) and "0.0" in said and "-0.0" not in said
    (whiskers, *_) = ax.collections
    names = sorted(results["per_class"], key=lambda n: (-results["per_class"][n]["pairs"], n))
    ends = [segment[:, 0] for segment in whiskers.get_segments()]
    expected = [100 * np.array(results["per_class"][n]["interval"]["accuracy"]) for n in names]
    np.testing.assert_allclose(ends, expected)


def test_base_is_broader_where_the_dqn_covers_it(drawn):
    lines = {line.get_label(): line for line in drawn["signals"].axes[2].lines}
    assert lines["Base_T"].get_linewidth() > 2 * lines["DQN_T"].get_linewidth()
    assert lines["Base_T"].get_zorder() < lines["DQN_T"].get_zorder()


def test_no_exploration_no_figure(folders):
    run = visualize.load_training(folders.cfg)
    over_events = run._replace(config=TrainConfig(method="events"))
    never = replace(run.config.learning, epsilon_start=0.0, epsilon_end=0.0)
    for one in (over_events, run._replace(config=replace(run.config, learning=never))):
        assert isinstance(visualize.draw_epsilon(one), str)


@pytest.mark.parametrize("installed", [True, False])
def test_names_in_other_scripts(tmp_path, capsys, monkeypatch, recwarn, installed):
    """With a font for them they are drawn; without one a single note says so."""
    if installed and len(plotting.fonts()) == 1:
        pytest.skip("no font with Korean characters; on Debian: apt-get install fonts-noto-cjk")
    if not installed:
        monkeypatch.setattr(plotting, "fonts", lambda: ["DejaVu Sans"])
    plotting.say_boxes.cache_clear()
    for name in ("one", "two"):
        figure, axes = plotting.page("말소리 in 話し声.wav", height=2)
        axes[0, 0].set_xticks([0, 1], ["소리", "声"])
        plotting.write(figure, tmp_path / f"{name}.png", 30, "a test")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == (not installed) and not recwarn.list


def test_a_font_that_was_installed_since_is_found(monkeypatch):
    """matplotlib keeps the list of fonts that it once made."""
    plotting.fonts.cache_clear()
    if len(plotting.fonts()) == 1:
        pytest.skip("no font with Korean characters; on Debian: apt-get install fonts-noto-cjk")
    manager = matplotlib.font_manager.fontManager
    files = {font.fname for font in manager.ttflist if font.name in plotting.CJK}
    older = [font for font in manager.ttflist if font.fname not in files]
    monkeypatch.setattr(manager, "ttflist", older)
    plotting.fonts.cache_clear()
    assert len(plotting.fonts()) > 1


def test_focus_prefers_pairs_that_are_partly_on(folders):
    data = visualize.load_evaluated(folders.cfg)
    index, _ = visualize.focus_pair(data)
    assert 0 < visualize.view_of(data, index).label.mean() < 1


@pytest.mark.parametrize("length", [1, 9, 10, 25])
def test_last_ten_against_a_loop(length):
    values = np.random.default_rng(length).normal(size=length)
    slow = [values[max(0, i - 9) : i + 1].mean() for i in range(length)]
    np.testing.assert_allclose(runfolder.last_ten(values), slow)


# ---------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("results.json", "evaluate.py"),
        ("decisions.npz", "evaluate.py"),
        ("config.json", "DQN.py"),
        ("reward_history.tsv", "DQN.py"),
    ],
)
def test_missing_and_damaged_files_name_the_command(copied, file, command):
    (copied.run / file).write_bytes(b"{\n1\t2\n1\t2\t3\n")
    with pytest.raises(InputError, match=command):
        list(visualize.figures(copied))
    (copied.run / file).unlink()
    with pytest.raises(InputError, match=f"{file}: not found; run: python {command}"):
        list(visualize.figures(copied))


def test_settings_of_an_older_version(copied):
    path = copied.run / "config.json"
    settings = json.loads(path.read_text())
    del settings["events"]["lr"], settings["looks"]
    preprocess.write_json(path, settings)
    assert visualize.load_training(copied).config.network.hidden == 16


def test_history_without_an_episode(copied):
    (copied.run / "reward_history.tsv").write_text("\t".join(runfolder.HISTORY) + "\n")
    with pytest.raises(InputError, match=r"no finished episode; run: python DQN\.py"):
        list(visualize.figures(copied))


def test_decisions_of_another_cache(copied):
    path = copied.run / "results.json"
    results = json.loads(path.read_text()) | {"cache_key": "another"}
    preprocess.write_json(path, results)
    with pytest.raises(InputError, match=r"another cache .*run: python evaluate\.py"):
        list(visualize.figures(copied))


def test_what_a_policy_was_not_trained_on_is_said(copied, capsys):
    path = copied.run / "results.json"
    results = json.loads(path.read_text()) | {"notes": ["it was trained on 20 ms"]}
    preprocess.write_json(path, results)
    next(visualize.figures(copied))
    assert "note: it was trained on 20 ms\n" in capsys.readouterr().out


def test_unknown_pair(folders):
    with pytest.raises(InputError, match=r"no pair nobody\.wav / Speech"):
        list(visualize.figures(replace(folders.cfg, clip="nobody.wav", event_label="Speech")))


def test_every_figure_is_known_to_the_run_folder():
    """What starting a run anew deletes: all figures that there are, and nothing else."""
    names = {f"{name}.png" for name in {*RUN_FIGURES, "loss"}}  # of a policy over events
    known = set(runfolder.FIGURES.files) - {"pair-*.png"}
    assert names == known
