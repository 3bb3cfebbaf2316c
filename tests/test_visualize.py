"""Figures: complete, titled, labelled in units, one colour a signal; odd pairs and missing inputs.

Next:   README.md
"""

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
import metrics
import preprocess
import runfolder
import visualize
from config import InputError, TrainConfig, VisualizeConfig
from core.files import contents
from timeline import Event, frame_edges, frames_to_events

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
    return preprocess.ClipRecord(filename, float(edges[-1]), events, None)


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
            rms = preprocess.min_max(truth + 0.2 * rng.random(frames))
            values.append(preprocess.compute_signals(rms, score, frame_s, signal))
        preprocess.write_shard(folder / "shard-00000.npz", values, [row[4] for row in rows])
        shard = {
            "file": "shard-00000.npz",
            "sha256": preprocess._sha256(folder / "shard-00000.npz"),
            "pairs": [row[:4] for row in rows],
            "clips": [clip_of(*row[:5]) for row in rows],
            **{"inputs": "", "failed": [], "notices": {}},
        }
        manifest = {"format": preprocess.FORMAT, "key": split, "audio": None, "shards": [shard]}
        manifest |= {"queries": "present", "classes": sorted({row[1] for row in rows})}
        manifest |= {"signal": config.to_dict(signal), "split": split, "scores": {}, "left_out": []}
        manifest |= {"signal": config.to_dict(signal), "formulas": preprocess.FORMULAS}
        preprocess.write_json(folder / "manifest.json", manifest)

    def write_results(self, t_adj: np.ndarray | None = None) -> None:
        """Decisions of a threshold near the truth (or the one given), and their results."""
        cache = preprocess.load_cache(self.cfg.cache / "validation")
        prob, t_base = cache.signals["prob"], cache.signals["t_base"]
        if t_adj is None:
            t_adj = np.clip(t_base + np.where(cache.label, -0.2, 0.2), 0, 1)
        after = prob > t_adj
        run = self.cfg.run
        np.savez(run / "decisions.npz", t_adj=t_adj.astype(np.float32), binary=after)
        labels = np.array([pair.event_label for pair in cache.pairs])
        both = [
            metrics.count_pairs(on, cache.label, cache.offsets) for on in (prob > t_base, after)
        ]
        before, now = (metrics.mean_over_pairs(counts) for counts in both)
        tables = [metrics.per_class(counts, labels) for counts in both]
        classes = {
            name: {"pairs": row["pairs"], "before": row, "after": tables[1][name]}
            for name, row in tables[0].items()
        }
        results = {"split": "validation", "cache_key": cache.key, "num_pairs": len(cache.pairs)}
        results |= {"num_frames": len(after), "before": before, "after": now, "per_class": classes}
        wrong = (prob > t_base) != cache.label, after != cache.label
        results["fixed_frames"] = int((wrong[0] & ~wrong[1]).sum())
        results["broken_frames"] = int((~wrong[0] & wrong[1]).sum())
        results["yardsticks"] = [
            {"name": "all on", "setting": None, **before},
            {"name": "best per-class threshold on d_adj", "setting": "a 0.1, " * 20, **now},
        ]
        preprocess.write_json(run / "results.json", results)

    def write_history(self, episodes: int) -> None:
        """A run of that many episodes, with the settings of a small network."""
        network = config.Network(hidden=16)
        cfg = replace(TrainConfig(), network=network, cache=self.cfg.cache, holdout=0.0)
        preprocess.write_json(self.cfg.run / "config.json", config.to_dict(cfg))
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
    assert {name for name, figure in drawn.items() if figure is not None} == RUN_FIGURES


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
    figure = visualize.draw_onset(data, visualize.find_matches(data, [0]))
    assert "Audio signal" in [text.get_text() for text in figure.legends[0].get_texts()]


# ---------------------------------------------------------------------------- choices


def test_nothing_changed_is_said(folders, copied):
    made = Folders.__new__(Folders)
    made.cfg = copied
    cache = preprocess.load_cache(copied.cache / "validation")
    made.write_results(cache.signals["t_base"])
    drawn = dict(visualize.figures(copied))
    assert drawn["events.png"] is None
    assert "no decision changed" in drawn["signals.png"].get_suptitle()
    assert "no onset was moved" in drawn["onset.png"].get_suptitle()


def event(onset: float, offset: float) -> Event:
    return Event(onset, offset, "x")


def test_onset_choice():
    true = event(1.0, 2.0)
    exact_from_far = visualize.Match(0, true, event(1.4, 2), event(1.0, 2))
    exact_from_near = visualize.Match(1, true, event(1.1, 2), event(1.0, 2))
    worse = visualize.Match(2, true, event(1.0, 2), event(1.1, 2))
    at_start = visualize.Match(3, event(0.0, 2.0), event(0.5, 2), event(0.0, 2))
    matches = [worse, exact_from_near, exact_from_far, at_start]
    assert visualize.choose_onset(matches) == (exact_from_far, True)
    assert visualize.choose_onset([worse]) == (worse, False)
    assert visualize.choose_onset([at_start]) is None


def test_focus_prefers_pairs_that_are_partly_on(folders):
    data = visualize.load_evaluated(folders.cfg)
    assert 0 < visualize.view_of(data, visualize.focus_pair(data)).label.mean() < 1


@pytest.mark.parametrize("length", [1, 9, 10, 25])
def test_last_ten_against_a_loop(length):
    values = np.random.default_rng(length).normal(size=length)
    slow = [values[max(0, i - 9) : i + 1].mean() for i in range(length)]
    np.testing.assert_allclose(visualize.last_ten(values), slow)


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
    del settings["dense"]["known_head"], settings["looks"]
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
    names = {f"{name}.png" for name in RUN_FIGURES}
    known = set(runfolder.FIGURES.files) - {"pair-*.png"}
    assert names == known
