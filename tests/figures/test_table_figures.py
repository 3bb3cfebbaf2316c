"""Figures of a comparison: the numbers they hold, what they leave out, what stops them."""

import csv
import json
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from corpora import write_cache
from matplotlib.colors import to_hex
from matplotlib.ticker import ScalarFormatter

import DQN
import visualize
from comparison import scoring
from comparison.systems import BASE, GATED, Member, System, from_checkpoint, store_of
from config import EvaluateConfig, Events, Network, TrainConfig, VisualizeConfig
from core.errors import InputError
from figures import table_figures
from figures.plotting import COLOURS
from figures.table_figures import KINDS, load_first_policy, load_table
from policy import runfolder
from preprocess import write_json
from sed import matching
from sed.caches import load_cache

LENGTHS = [90, 80, 75, 60, 91, 100, 66, 70]
OWN = {"comparison", "per_class_gains", "ends"}  # need results.json and pairs.csv only
EVERY = OWN | {"policy_map", "best_worst"}
BEST = "per-class threshold"


def write_policy(run: Path, train: Path, seed: int) -> Path:
    """A checkpoint with random weights: what a training run leaves, without the training."""
    network = Network(hidden=8, heads=2, tcn_layers=2, gru_layers=1, transformer_layers=1)
    cfg = TrainConfig(cache=train.parent, run=run, network=network, seed=seed)
    trainer = DQN.Trainer(cfg, load_cache(train), torch.device("cpu"))
    with torch.no_grad():
        trainer.network.head[2].weight *= 20  # so that actions differ between frames
    run.mkdir(parents=True)
    runfolder.write_checkpoint(run / "best.pt", trainer.policy())
    return run / "best.pt"


def systems_of(cache, checkpoints: list[Path]) -> list[System]:
    """A row of every kind, two seeds of the policy, and all of them gated over all pairs."""
    label, base = cache.label, cache.signals["binary"] > 0.5
    rng = np.random.default_rng(0)

    def wrong(share: float) -> Member:
        return Member("made up", label ^ (rng.random(len(label)) < share), 0.0)

    policies = [
        from_checkpoint(path, cache, EvaluateConfig(device="cpu"))[1] for path in checkpoints
    ]
    rows = [
        System(BASE, "base", "", [Member(str(cache.folder), base, 0.0)]),
        System("DQN", "policy", "2 seeds", policies),
        System("classifier", "supervised", "2 seeds", [wrong(0.2), wrong(0.1)]),
        System("all off", "rule", "", [Member("", np.zeros_like(label), 0.0)]),
        System(BEST, "rule", "t", [wrong(0.02)]),
        System("events", "events", "", [wrong(0.25)]),
        System("by labels (ceiling)", "ceiling", "", [Member("", label, 0.0)]),
    ]
    if cache.queries == "all":
        there = cache.present[cache.frames_of_pair]
        gated = [
            row._replace(
                name=f"{row.name}, {GATED}",
                gated=True,
                members=[member._replace(decided=member.pred & there) for member in row.members],
            )
            for row in rows[:2]
        ]
        rows += gated
    return rows


def write_table(folder: Path, cache, systems: list[System]) -> None:
    """What evaluate.py --compare writes."""
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ranked", lambda cache: False)  # pairs of a clip differ in length
        patch.setattr(
            scoring.tag_gate, "tagging", lambda gate, cache: {"precision": 1.0, "recall": 1.0}
        )
        results = scoring.measure(systems, cache, 1)
        scoring.write_table(folder, results, systems, cache)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Tables `present` and `all` with the caches, checkpoints and decisions behind them."""
    folder = tmp_path_factory.mktemp("comparison_figures")
    for queries, absent in (("present", ()), ("all", (1, 6))):
        caches = folder / f"cache-{queries}"
        write_cache(caches / "train", LENGTHS, seed=1, absent=absent)
        write_cache(caches / "validation", LENGTHS, seed=2, absent=absent)
        cache = load_cache(caches / "validation")
        paths = [
            write_policy(folder / f"run-{queries}-{seed}", caches / "train", seed)
            for seed in (0, 1)
        ]
        write_table(folder / queries, cache, systems_of(cache, paths))
    return folder


@pytest.fixture(scope="module", params=["present", "all"])
def table(request, home):
    return load_table(home / request.param)


@pytest.fixture(scope="module")
def drawn(table) -> dict:
    figures = table_figures.figures(table.folder, "slides")
    return {name.removesuffix(".png"): figure for name, figure in figures}


@pytest.fixture
def damaged(home, tmp_path) -> Path:
    """A copy of the table of present pairs, free to be damaged."""
    shutil.copytree(home / "present", tmp_path / "table")
    return tmp_path / "table"


def change(folder: Path, **values: object) -> None:
    path = folder / "results.json"
    write_json(path, json.loads(path.read_text()) | values)


def draw(folder: Path) -> dict:
    return dict(table_figures.figures(folder, "slides"))


def f1_of(table, name: str) -> np.ndarray:
    """F1 of the pairs, straight from pairs.csv."""
    with open(table.folder / "pairs.csv", newline="") as stream:
        return np.array([float(line[f"{name}: f1"]) for line in csv.DictReader(stream)])


# ---------------------------------------------------------------------------- every figure


def test_every_figure_is_made_and_explains_itself(drawn):
    assert set(drawn) == EVERY
    for name, figure in drawn.items():
        assert "pairs" in figure.get_suptitle(), name
        assert figure.legends or all(ax.get_legend() for ax in figure.axes), name
        for ax in figure.axes:
            for axis, ticks in ((ax.xaxis, "labelbottom"), (ax.yaxis, "labelleft")):
                numbers = isinstance(axis.get_major_formatter(), ScalarFormatter)
                shown = ax.axison and len(axis.get_ticklocs()) > 0
                if shown and numbers and axis.get_tick_params().get(ticks, True):
                    assert "(" in axis.get_label_text(), f"{name}: {axis.axis_name} without a unit"


def test_files_are_written_and_printed(home, tmp_path, capsys):
    shutil.copytree(home / "present", tmp_path / "table")
    before = dict(matplotlib.rcParams)
    cfg = VisualizeConfig(table=tmp_path / "table", dpi=30)
    assert visualize.main(cfg) == 0
    assert dict(matplotlib.rcParams) == before
    files = {f"{name}.png" for name in EVERY}
    folder = tmp_path / "table" / "figures"
    assert {path.name for path in folder.iterdir()} == files
    assert set(capsys.readouterr().out.split()) == {str(folder / name) for name in files}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.iterdir())


# ---------------------------------------------------------------------------- the whole table


def test_rows_are_sorted_and_hold_their_numbers(table, drawn):
    metrics = scoring.HEADLINE[table.results["queries"]]
    by = scoring.DECISIVE[table.results["queries"]]
    rows = sorted(table.results["entrants"], key=lambda row: -row["mean"][by])
    axes = drawn["comparison"].axes
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        row["name"].replace(GATED, "gated") for row in rows
    ]
    assert "sorted" in axes[metrics.index(by)].get_title("left")
    for ax, metric in zip(axes, metrics, strict=True):
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
        points = {line.get_ydata()[0]: line for line in dots}
        spans = {
            (line.get_ydata()[0], line.get_linewidth()): line.get_xdata()
            for line in ax.lines
            if line.get_marker() == "None" and line.get_ydata()[0] == line.get_ydata()[1]
        }
        texts = {t.get_position()[1]: t.get_text() for t in ax.texts if "scale" not in t.get_text()}
        low, high = ax.get_xlim()
        for i, row in enumerate(rows):
            value, std = 100 * row["mean"][metric], 100 * row["std"][metric]
            assert texts[-i].startswith(f"{value:.1f}")
            if not low <= value <= high:
                assert row["name"] == "all off" and -i not in points
                continue
            point = points[-i]
            assert point.get_xdata() == pytest.approx([value])
            assert to_hex(point.get_color()) == COLOURS[KINDS[row["kind"]][0]]
            hollow = to_hex(point.get_markerfacecolor()) == "#ffffff"
            assert hollow == (GATED in row["name"])
            assert spans[-i, 1.8] == pytest.approx(100 * np.array(row["interval"][metric]))
            assert ((-i, 9) in spans) == (len(row["members"]) == 2)
            if len(row["members"]) == 2:
                assert spans[-i, 9] == pytest.approx([value - std, value + std])
                assert f"± {std:.1f}" in texts[-i]


def test_legend_names_the_kinds_there_are(table, drawn):
    handles, texts = drawn["comparison"].axes[0].get_legend_handles_labels()
    shown = dict(zip(texts, handles, strict=True))
    for kind, (colour, text) in KINDS.items():
        assert any(row["kind"] == kind for row in table.results["entrants"])
        assert to_hex(shown[text].get_markerfacecolor()) == COLOURS[colour]
    assert ("Hollow: behind the tag gate" in texts) == (table.results["queries"] == "all")


def test_reference_lines(table, drawn):
    metrics = scoring.HEADLINE[table.results["queries"]]
    assert table.results["best_opponent"] == BEST
    for ax, metric in zip(drawn["comparison"].axes, metrics, strict=True):
        for name, text in ((BASE, f"Level of {BASE}"), (BEST, f"Best baseline: {BEST}")):
            (line,) = [line for line in ax.lines if line.get_label() == text]
            assert line.get_xdata() == pytest.approx([100 * table.rows[name]["mean"][metric]] * 2)


# ---------------------------------------------------------------------------- classes, ends


def test_gains_by_class_are_of_present_pairs(table, drawn):
    (ax,) = drawn["per_class_gains"].axes
    pairs = load_cache(Path(table.results["cache"]))
    label = np.array([pair.event_label for pair in pairs.pairs])
    names = [text.get_text().partition("\n") for text in ax.get_yticklabels()]
    assert {name for name, _, _ in names} == {"All classes", "Dog", "Speech"}
    markers = [line for line in ax.lines if line.get_marker() not in ("None", None)]
    for i, (name, _, count) in enumerate(names):
        chosen = pairs.present & ((label == name) | (name == "All classes"))
        assert count == f"pairs: {chosen.sum()}"
        rows = {name: name for name in ("DQN", "classifier")} | {BEST: f"Best baseline: {BEST}"}
        for row, text in rows.items():
            gain = 100 * (f1_of(table, row) - f1_of(table, BASE))[chosen].mean()
            near = [
                line.get_xdata()[0]
                for line in markers
                if line.get_label() == text and abs(line.get_ydata()[0] + i) < 0.5
            ]
            assert near == pytest.approx([gain])
    assert {line.get_label() for line in markers} == {"DQN", "classifier", f"Best baseline: {BEST}"}


def test_a_table_of_an_older_version_is_read(home, damaged):
    """There a supervised baseline was called a twin."""
    results = json.loads((damaged / "results.json").read_text())
    for row in results["entrants"]:
        if row["kind"] == "supervised":
            row["kind"] = "twin"
    change(damaged, **results)
    table = load_table(damaged)
    assert table.rows == load_table(home / "present").rows
    assert table.bare("supervised") == ["classifier"]


def test_gains_are_over_the_t_base_of_the_row(damaged):
    results = json.loads((damaged / "results.json").read_text())
    results["entrants"][1]["base"] = "events"
    change(damaged, **results)
    table = load_table(damaged)
    (ax,) = table_figures.draw_class_gains(table).axes
    (point,) = [
        line
        for line in ax.lines
        if line.get_label() == "DQN\nover events" and abs(line.get_ydata()[0]) < 0.5
    ]
    gain = 100 * (f1_of(table, "DQN") - f1_of(table, "events")).mean()
    assert point.get_xdata() == pytest.approx([gain])


def test_ends_show_shares_counts_and_medians(table, drawn):
    axes = drawn["ends"].axes
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[0].get_ylim() == axes[1].get_ylim()
    for ax, end in zip(axes, matching.ENDS, strict=True):
        steps = dict(zip([BASE, "DQN", BEST], ax.patches, strict=True))
        for name, patch in steps.items():
            found = table.rows[name]["ends"][end]
            share = 100 * np.array(found["histogram"]) / found["events"]
            np.testing.assert_allclose(patch.get_data().values, share)
            label = patch.get_label()
            assert f"{found['events']} {end}s" in label and f"{found['median_ms']:.0f} ms" in label


def test_a_row_without_a_matched_event(damaged):
    results = json.loads((damaged / "results.json").read_text())
    results["entrants"][1]["ends"] = {end: {"events": 0} for end in matching.ENDS}
    change(damaged, **results)
    labels = draw(damaged)["ends.png"].axes[0].get_legend_handles_labels()[1]
    assert "DQN\n0 onsets" in labels


# ---------------------------------------------------------------------------- what a policy does


def test_shifts_by_distance_and_class_against_a_loop(table):
    policy = load_first_policy(table, "slides")
    cache = policy.data.cache
    found = table_figures.shift_map(policy)
    cells: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    for index, pair in enumerate(cache.pairs):
        for frame in range(*cache.offsets[index : index + 2]):
            t_base, shifted = float(cache.signals["t_base"][frame]), policy.data.t_adj[frame]
            distance = float(cache.signals["prob"][frame]) - t_base
            for b in range(table_figures.STEPS):
                if found.edges[b] <= distance < found.edges[b + 1]:
                    cell = (found.classes.index(pair.event_label), b)
                    changed = policy.data.before[frame] != policy.data.after[frame]
                    cells.setdefault(cell, []).append((shifted - t_base, changed))
    assert found.frames.sum() == sum(map(len, cells.values())) > 40
    for cell, rows in cells.items():
        assert found.frames[cell] == len(rows)
        assert found.mean_shift[cell] == pytest.approx(np.mean([shift for shift, _ in rows]))
        assert found.changed[cell] == sum(changed for _, changed in rows)
    assert np.isnan(found.mean_shift[found.frames == 0]).all()
    assert found.frames_of_class.sum() == len(cache.label)
    assert (policy.data.before != policy.data.after).sum() == found.changed.sum()


def test_map_shows_the_shifts(table, drawn):
    found = table_figures.shift_map(load_first_policy(table, "slides"))
    top, ax = drawn["policy_map"].axes[:2]
    order = np.lexsort((found.classes, -found.frames_of_class))
    np.testing.assert_allclose(
        ax.collections[0].get_array().filled(np.nan), found.mean_shift[order]
    )
    assert ax.get_yticklabels()[0].get_text().startswith(found.classes[order[0]])
    heights = top.patches[0].get_data().values
    np.testing.assert_allclose(
        heights, 100 * found.frames.sum(axis=0) / found.frames_of_class.sum()
    )
    assert "first of 2 seeds" in drawn["policy_map"].get_suptitle()


def test_best_and_worst_are_the_extreme_present_pairs(table):
    data = load_first_policy(table, "slides").data
    best, worst, (before, after) = table_figures.best_and_worst(data)
    gain = {i: after[i] - before[i] for i in np.flatnonzero(data.cache.present)}
    assert [gain[i] for i in best] == sorted((g for g in gain.values() if g > 0), reverse=True)[:3]
    assert [gain[i] for i in worst] == sorted(g for g in gain.values() if g < 0)[:3]
    assert len(best) + len(worst) > 1
    np.testing.assert_allclose(before, f1_of(table, BASE), atol=1e-6)


def test_worst_pair_is_drawn_with_its_signals(table, drawn):
    data = load_first_policy(table, "slides").data
    _, worst, (before, after) = table_figures.best_and_worst(data)
    curves, strip = drawn["best_worst"].axes[1], drawn["best_worst"].axes[3]
    pair = data.cache.pairs[worst[0]]
    title = f"Hurts, F1 {100 * before[worst[0]]:.1f} to {100 * after[worst[0]]:.1f}"
    assert curves.get_title("left") == f"{title}: {pair.event_label} in {pair.filename}"
    span = slice(*data.cache.offsets[worst[0] : worst[0] + 2])
    lines = {line.get_label(): line.get_ydata() for line in curves.lines}
    for text, values in (
        ("Prob95", data.cache.signals["prob"]),
        ("Base_T", data.cache.signals["t_base"]),
        ("DQN_T", data.t_adj),
    ):
        np.testing.assert_array_equal(lines[text], values[span])
    assert strip.get_xlim() == (0, pair.edges[-1])
    assert [text.get_text() for text in strip.get_yticklabels()] == ["Base", "DQN", "Truth"]


def test_a_policy_that_changes_nothing(table):
    policy = load_first_policy(table, "slides")
    same = policy.data._replace(after=policy.data.before)
    assert table_figures.best_and_worst(same)[:2] == ([], [])
    figure = table_figures.draw_best_worst(policy._replace(data=same), "")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no further pair where it helps"]


def test_decisions_on_another_cache(home, tmp_path):
    """A policy of NAME=PATH@CACHE is drawn with the signals that it decided on."""
    caches = tmp_path / "other"
    shutil.copytree(home / "cache-present" / "train", caches / "train")
    shutil.copytree(home / "cache-present" / "validation", caches / "validation")
    path = caches / "validation" / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"key": "another"})
    cache = load_cache(home / "cache-present" / "validation")
    checkpoint = write_policy(tmp_path / "run", caches / "train", 3)
    cfg = EvaluateConfig(
        cache=home / "cache-present",
        compare=(f"DQN={checkpoint}@{caches}",),
        out=tmp_path / "table",
        device="cpu",
    )
    rows = scoring.find_systems(cfg, cache, cache)
    write_table(cfg.out, cache, rows)
    policy = load_first_policy(load_table(cfg.out), "slides")
    assert policy.data.cache.folder == caches / "validation"
    assert (policy.data.after == rows[1].members[0].pred).all()


# ---------------------------------------------------------------------------- what is missing


def test_without_a_policy_two_figures_are_left_out(home, tmp_path, capsys):
    cache = load_cache(home / "cache-present" / "validation")
    rows = systems_of(cache, [])
    write_table(tmp_path / "table", cache, [row for row in rows if row.kind in ("base", "rule")])
    cfg = VisualizeConfig(table=tmp_path / "table", out=tmp_path / "elsewhere", dpi=30)
    assert visualize.main(cfg) == 0
    assert {path.stem for path in cfg.out.glob("*.png")} == OWN
    said = capsys.readouterr().out
    for name in EVERY - OWN:
        assert f"{name}.png: not drawn, the table has no policy" in said


def test_a_policy_over_events_has_no_map_of_shifts(home, tmp_path, capsys):
    """A table whose only policy is the preset best, as the benchmark's."""
    cache = load_cache(home / "cache-present" / "validation")
    run, small = tmp_path / "run", Events(hidden=8, layers=2, batch=4, box_batch=32)
    settings = {"method": "events", "events": small, "holdout": 0.0, "looks": 1, "passes": 2}
    DQN.main(TrainConfig(cache=home / "cache-present", run=run, device="cpu", **settings))
    member = from_checkpoint(run / "best.pt", cache, EvaluateConfig(device="cpu"))[1]
    base = systems_of(cache, [])[0]
    write_table(tmp_path / "table", cache, [base, System("best", "policy", "", [member])])
    cfg = VisualizeConfig(table=tmp_path / "table", out=tmp_path / "elsewhere", dpi=30)
    capsys.readouterr()
    assert visualize.main(cfg) == 0
    assert {path.stem for path in cfg.out.glob("*.png")} == EVERY - {"policy_map"}
    said = capsys.readouterr().out
    assert "policy_map.png: not drawn, best decides events and shifts no threshold" in said
    axes = draw(tmp_path / "table")["best_worst.png"].axes
    names = [[text.get_text() for text in ax.get_yticklabels()] for ax in axes]
    assert ["Base", "Policy", "Truth"] in names  # where it helps, or hurts


def test_base_alone_has_no_gains(home, tmp_path):
    cache = load_cache(home / "cache-present" / "validation")
    write_table(tmp_path / "table", cache, systems_of(cache, [])[:1])
    figures = draw(tmp_path / "table")
    assert "neither a policy nor" in figures["per_class_gains.png"]
    assert not isinstance(figures["comparison.png"], str)


@pytest.mark.parametrize("file", ["results.json", "pairs.csv"])
def test_missing_and_damaged_files_name_the_command(damaged, file):
    (damaged / file).write_bytes(b'{\n"a\xff')
    with pytest.raises(InputError, match=rf"{file}: .*run: python evaluate\.py --compare"):
        draw(damaged)
    (damaged / file).unlink()
    with pytest.raises(InputError, match=rf"{file}: not found; run: python evaluate\.py --compare"):
        draw(damaged)
    assert not (damaged / "figures").exists()


def test_results_of_a_single_run(damaged):
    write_json(damaged / "results.json", {"split": "validation", "before": {}})
    with pytest.raises(InputError, match="not of such a comparison"):
        draw(damaged)


@pytest.mark.parametrize("end", [-1, -20])
def test_cut_pairs(damaged, end):
    """A line less, and a line that breaks off."""
    path = damaged / "pairs.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) if end == -1 else "".join(lines)[:end])
    with pytest.raises(InputError, match=r"pairs\.csv: not the file"):
        draw(damaged)


def test_another_cache(damaged):
    change(damaged, cache_key="another")
    with pytest.raises(InputError, match=r"made from another cache than .*run evaluate\.py --comp"):
        draw(damaged)


def test_cache_gone(damaged):
    change(damaged, cache="nowhere/validation")
    with pytest.raises(InputError, match=r"nowhere/validation: cache of .* not found; run this in"):
        draw(damaged)


def test_checkpoint_or_decisions_gone(home, damaged, tmp_path):
    shutil.copytree(home / "run-present-0", tmp_path / "run")
    results = json.loads((damaged / "results.json").read_text())
    results["entrants"][1]["members"][0]["source"] = str(tmp_path / "run" / "best.pt")
    change(damaged, **results)
    cache = load_cache(home / "cache-present" / "validation")
    store = store_of(tmp_path / "run" / "best.pt", cache)
    assert len(draw(damaged)) == len(EVERY)
    store.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"\.npz: damaged"):
        draw(damaged)
    store.unlink()
    with pytest.raises(InputError, match=r"\.npz: decisions of DQN not found; run evaluate\.py"):
        draw(damaged)
    (tmp_path / "run" / "best.pt").unlink()
    with pytest.raises(InputError, match=r"best\.pt: checkpoint of DQN not found; run evaluate"):
        draw(damaged)
