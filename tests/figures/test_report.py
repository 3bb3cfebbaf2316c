"""The page: its data files, its size, what it needs, and what it does in a real browser."""

import base64
import colorsys
import csv
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import soundfile
from corpora import write_cache
from hypothesis import given
from hypothesis import strategies as st

import evaluate
import preprocess
import visualize
from comparison import evaluations
from config import Bandit, TrainConfig, VisualizeConfig
from core import settings
from core.errors import InputError
from figures import report
from policy import runfolder
from sed import caches, matching

FRAMES, FRAME_S, RATE = 250, 0.02, 16_000  # five seconds
LABELS = ("말소리", '<img src=x onerror="window.broken=1">', "</script><b>Dog's & cat</b>")
CLIPS = [
    "plain.wav",
    "with spaces & 'quotes\".wav",
    "한국어 소리.wav",
    "<img src=x onerror=window.broken=1>.wav",
    "\u2028line${1}`.wav",
]


def write_run(home: Path, audio: bool = True) -> VisualizeConfig:
    """An evaluated run on a small fabricated cache with odd names, with or without sound."""
    folder, rng = home / "audio", np.random.default_rng(3)
    folder.mkdir(parents=True)
    for i, name in enumerate(CLIPS):
        time = np.arange(round(FRAMES * FRAME_S * RATE)) / RATE
        wav = 0.3 * np.sin(2 * np.pi * 200 * (i + 1) * time) * (time % 1 < 0.5)
        soundfile.write(folder / name, wav + rng.normal(0, 0.01, len(time)), RATE)
    lengths = [FRAMES] * (len(CLIPS) * len(LABELS))
    more = {"labels": LABELS, "clips": CLIPS, "audio": folder if audio else None}
    write_cache(home / "cache" / "validation", lengths, seed=5, frame_s=FRAME_S, **more)
    run = home / "run"
    write_policy(run, home / "cache", 0.1, Bandit())
    cfg = replace(TrainConfig(), cache=home / "cache", holdout=0.0)
    preprocess.write_json(run / "config.json", settings.to_dict(cfg))
    rows = [
        f"{i}\t{90 + i % 7}\t{90 + i / 2}\t{1 - i / 50}\t5\t10\t3\t482\t{15 * i}\t0.2\t0.1"
        for i in range(40)
    ]
    (run / "reward_history.tsv").write_text("\n".join(["\t".join(runfolder.HISTORY), *rows, ""]))
    return VisualizeConfig(run=run, cache=home / "cache", html=True, dpi=30)


def write_policy(run: Path, folder: Path, shift: float, bandit: Bandit) -> None:
    """Decisions of a threshold that moves by `shift` to the right side, with noise, evaluated."""
    cache = caches.load_cache(folder / "validation")
    prob, t_base = cache.signals["prob"], cache.signals["t_base"]
    noise = np.random.default_rng(4).normal(0, 0.1, len(prob))
    t_adj = np.clip(t_base + np.where(cache.label, -shift, shift) + noise, 0, 1)
    t_adj = t_adj.astype(np.float32)
    before, after = prob > t_base, prob > t_adj
    results = {"split": "validation", "cache_key": cache.key, "num_pairs": len(cache.pairs)}
    results |= {"num_frames": len(after), **evaluate.tables(cache, after, bandit, cache)}
    results["verdict"] = evaluate.verdict(results)
    found = evaluations.find_matches(evaluations.Evaluated(cache, results, t_adj, before, after))
    results["ends"] = {when: matching.end_errors(some) for when, some in found._asdict().items()}
    run.mkdir()
    decided = {"t_adj": t_adj, "binary": after}
    results["decisions"] = evaluations.digest_of(decided)
    np.savez(run / "decisions.npz", **decided)
    preprocess.write_json(run / "results.json", results)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> VisualizeConfig:
    made = write_run(tmp_path_factory.mktemp("report"))
    visualize.write_page(made)
    return made


@pytest.fixture(scope="module")
def data(cfg) -> evaluations.Evaluated:
    return evaluations.load_evaluated(cfg)


def value_in(path: Path):
    """What a script file hands to the page."""
    return json.loads(re.fullmatch(r"\w+\((.*)\);\n", path.read_text(encoding="ascii"))[1])


def index_of(cfg: VisualizeConfig) -> dict:
    return value_in(cfg.run / "report" / "data" / "index.js")


# ---------------------------------------------------------------------------- script files


@given(st.text() | st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_script_holds_any_value_and_no_markup(value):
    text = report.script("CALL", value)
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text.removeprefix("CALL(").removesuffix(");\n")) == value


def test_names_on_the_page_turn_nothing():
    page = {"per_class": {"\u05e9": 1}, "pairs": [{"clip": "\u202ea.wav", "n": 3, "why": None}]}
    assert report.closed(page) == {
        "per_class": {"\u2068\u05e9\u2069": 1},
        "pairs": [{"clip": "\u2068\u202e\u2069a.wav", "n": 3, "why": None}],
    }


def test_what_is_not_a_number_is_left_out():
    assert report.numbers([0.123456789, float("nan"), float("inf")]) == [0.12346, None, None]
    with pytest.raises(ValueError):
        report.script("CALL", float("nan"))


@given(st.lists(st.booleans(), max_size=40))
def test_runs_of_frames(on):
    found = np.zeros(len(on), bool)
    for first, last in report.runs_of(np.array(on, bool)):
        assert first < last
        found[first:last] = True
    assert found.tolist() == on


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2") / report.LEVELS


def test_pair_files_hold_what_the_cache_holds(cfg, data):
    rows = index_of(cfg)["pairs"]
    assert [row["n"] for row in rows] == list(range(len(data.cache.pairs)))
    for row in rows:
        n, pair = value_in(cfg.run / "report" / "data" / f"pair-{row['n']:05d}.js")
        view = evaluations.view_of(data, n)
        assert (row["clip"], row["label"]) == (view.pair.filename, view.pair.event_label)
        (did,), (listed,) = pair["policies"], row["policies"]
        for name in report.CURVES:
            np.testing.assert_allclose(unpack(pair["signals"][name]), view.signals[name], atol=1e-5)
        np.testing.assert_allclose(unpack(did["t_adj"]), view.signals["t_adj"], atol=1e-5)
        changed, right = view.before != view.after, view.after == view.label
        assert pair["before"] == report.runs_of(view.before)
        assert pair["label"] == report.runs_of(view.label)
        on = {"after": view.after, "fixed": changed & right, "broken": changed & ~right}
        for name, frames in on.items():
            assert did[name] == report.runs_of(frames)
        assert listed["fixed"] == on["fixed"].sum() and listed["broken"] == on["broken"].sum()


def test_files_have_numbers_for_names_and_each_clip_is_there_once(cfg):
    folder = cfg.run / "report"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    ours = {name for name in names if not name.startswith("vendor/")}
    clips = {f"clips/{i:05d}.{kind}" for i in range(len(CLIPS)) for kind in ("mp3", "webp")}
    pairs = {f"data/pair-{i:05d}.js" for i in range(len(CLIPS) * len(LABELS))}
    files = {"index.html", "report.js", "data/index.js", "data/others.js", *clips, *pairs}
    assert ours == {".threshold-dqn", *files}


def test_five_hundred_pairs_fit(cfg):
    """The worst case, 500 clips of ten seconds with one pair each, from these of five seconds."""
    folder = cfg.run / "report"
    clips = sum(path.stat().st_size for path in (folder / "clips").iterdir()) / len(CLIPS)
    pairs = list((folder / "data").glob("pair-*.js"))
    pair = sum(path.stat().st_size for path in pairs) / len(pairs)
    assert 500 * 2 * (clips + pair) < 60e6


# ---------------------------------------------------------------------------- choices


@given(st.lists(st.sampled_from([-0.3, -0.1, 0, 0, 0.2]), min_size=1, max_size=60), st.integers(1))
def test_a_spread_of_pairs(gains, count):
    both = np.array([gains, gains]).T
    chosen = report.choose_pairs(both, count)
    assert len(chosen) == min(count, len(gains))
    assert chosen == report.choose_pairs(both, count) and list(chosen) == sorted(chosen)
    best, worst = (
        [gains[i] for i, why in chosen.items() if why == kind] for kind in ("best", "worst")
    )
    assert len(best) == len(worst) == len(chosen) // 3
    rest = [gain for i, gain in enumerate(gains) if chosen.get(i) not in ("best", "worst")]
    if best and rest:
        assert min(best) >= max(rest) and max(worst) <= min(rest)


def test_typical_pairs_lie_between():
    gains = np.arange(100.0)
    chosen = report.choose_pairs(np.stack([gains, gains], axis=1), 12)
    typical = [i for i, why in chosen.items() if why == "typical"]
    assert len(typical) == 4 and np.ptp(np.diff(sorted(typical))) <= 1
    assert abs(np.mean(typical) - 49.5) < 1


def test_fewer_pairs(cfg, data, tmp_path, capsys):
    report.write_report([report.Shown(tmp_path, data, None)], 4)
    page = value_in(tmp_path / "report" / "data" / "index.js")
    assert len(page["pairs"]) == 4 and page["policies"][0]["training"] is None
    assert "(4 pairs, " in capsys.readouterr().out
    others = value_in(tmp_path / "report" / "data" / "others.js")
    left = {(clip, others["labels"][k]) for clip, ks in others["clips"] for k in ks}
    shown = {(row["clip"], row["label"]) for row in page["pairs"]}
    every = {(pair.filename, pair.event_label) for pair in data.cache.pairs}
    assert left == every - shown and not left & shown


def test_pairs_are_chosen_among_the_present_ones(data, tmp_path, monkeypatch):
    """F1 of an absent pair is 0 or 100 %, so these would be all the best and all the worst."""
    present = np.ones(len(data.cache.pairs), bool)
    report.write_folder(tmp_path / "before", [report.Shown(tmp_path, data, None)], 3)
    rows = value_in(tmp_path / "before" / "data" / "index.js")["pairs"]
    best = next(row["n"] for row in rows if row["why"] == "best")
    present[best] = False
    monkeypatch.setattr(type(data.cache), "present", present)
    report.write_folder(tmp_path / "after", [report.Shown(tmp_path, data, None)], 3)
    rows = value_in(tmp_path / "after" / "data" / "index.js")["pairs"]
    assert best not in [row["n"] for row in rows if row["why"] == "best"]
    assert [row["present"] for row in rows] == [row["n"] != best for row in rows]


# ---------------------------------------------------------------------------- two policies


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> VisualizeConfig:
    """A page of the policy and of a better one, on the same cache."""
    made = write_run(tmp_path_factory.mktemp("beside"))
    better = made.run.parent / "better <b>"
    write_policy(better, made.cache, 0.3, Bandit(max_delta=1.0))
    made = replace(made, run=better, beside=made.run)
    visualize.write_page(made)
    return made


def test_two_policies_stand_side_by_side(two):
    page = index_of(two)
    runs = [two.run, two.beside]
    assert [policy["name"] for policy in page["policies"]] == [run.name for run in runs]
    both = [evaluations.load_evaluated(replace(two, run=run, beside=None)) for run in runs]
    for policy, data in zip(page["policies"], both, strict=True):
        assert policy["results"]["after"] == data.results["after"]
        assert policy["results"]["verdict"] == data.results["verdict"]
    assert page["policies"][0]["training"] is None and page["policies"][1]["training"]
    f1 = [data.results["after"]["f1"] for data in both]
    assert page["difference"]["gain"]["f1"] == pytest.approx(f1[1] - f1[0])
    low, high = page["difference"]["interval"]["f1"]
    assert low <= f1[1] - f1[0] <= high < 0
    for row in page["pairs"]:
        n, pair = value_in(two.run / "report" / "data" / f"pair-{row['n']:05d}.js")
        for did, data in zip(pair["policies"], both, strict=True):
            view = evaluations.view_of(data, n)
            assert did["after"] == report.runs_of(view.after)
            np.testing.assert_allclose(unpack(did["t_adj"]), view.signals["t_adj"], atol=1e-5)


def test_policies_of_different_caches_are_refused(cfg, data, tmp_path):
    for key in ("split", "cache_key"):
        other = data._replace(results=data.results | {key: "another"})
        shown = [report.Shown(tmp_path, data, None), report.Shown(tmp_path / "b", other, None)]
        with pytest.raises(InputError, match=f"{key} another"):
            report.write_report(shown, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [{}, {"html": True, "run": Path("runs/best")}])
def test_beside_needs_a_page_and_another_run(more):
    with pytest.raises(ValueError, match="--beside must be"):
        VisualizeConfig(beside=Path("runs/best"), **more)


def test_runs_of_one_name_are_told_apart(data):
    shown = [report.Shown(Path(home) / "run", data, None) for home in ("a", "b")]
    assert report.names_of(shown) == ["a/run", "b/run"]


# ---------------------------------------------------------------------------- sound


@pytest.mark.parametrize("sample_rate", [8_000, 10_000, 16_000, 22_050, 44_100, 96_000])
def test_mp3_keeps_the_clock(tmp_path, sample_rate):
    """Length and the place of a click are those of the recording, within a millisecond."""
    wav = np.zeros(2 * sample_rate, np.float32)
    wav[sample_rate : sample_rate + sample_rate // 100] = 0.9
    report.write_mp3(tmp_path / "a.mp3", wav, sample_rate)
    heard, rate = soundfile.read(tmp_path / "a.mp3")
    assert len(heard) == 2 * rate
    first = np.flatnonzero(np.abs(heard) > 0.4)[0] / rate
    assert abs(first - 1) < 0.001


def test_a_page_without_sound(tmp_path, capsys):
    made = write_run(tmp_path, audio=False)
    visualize.write_page(made)
    assert not index_of(made)["audio"]
    assert all(row["sound"] is None for row in index_of(made)["pairs"])
    assert not list((made.run / "report" / "clips").iterdir())


def test_damaged_audio_is_named_and_left_out(tmp_path, capsys):
    made = write_run(tmp_path)
    (tmp_path / "audio" / CLIPS[0]).write_bytes(b"no sound")
    (tmp_path / "audio" / CLIPS[1]).unlink()
    visualize.write_page(made)
    assert f"without sound: {tmp_path / 'audio' / CLIPS[0]}" in capsys.readouterr().out
    sounds = {row["clip"]: row["sound"] for row in index_of(made)["pairs"]}
    assert [sounds[name] for name in CLIPS] == [None, None, 0, 1, 2]


# ---------------------------------------------------------------------------- the folder


def test_a_rerun_replaces_the_page_whole(tmp_path, capsys):
    made = write_run(tmp_path)
    for name in ("report.js", "data/index.js", "clips/00099.mp3"):  # of an older version
        (made.run / "report" / name).parent.mkdir(parents=True, exist_ok=True)
        (made.run / "report" / name).write_text("old")
    (made.run / ".report.partial").mkdir()
    assert visualize.main(made) == 0
    assert {path.name for path in made.run.iterdir() if path.is_dir()} == {"figures", "report"}
    assert not (made.run / "report" / "clips" / "00099.mp3").exists()
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"report: {made.run}/report/index.html \(15 pairs, \d\.\d MB\)", last)


def test_a_policy_without_a_log_gets_the_page_only(tmp_path, capsys):
    made = write_run(tmp_path)
    (made.run / "config.json").unlink()
    (made.run / "reward_history.tsv").unlink()
    assert visualize.main(replace(made, pairs=3)) == 0
    assert index_of(made)["policies"][0]["training"] is None
    assert not (made.run / "figures").exists()


def test_results_of_an_older_version(tmp_path):
    made = write_run(tmp_path)
    path = made.run / "results.json"
    results = json.loads(path.read_text())
    del results["interval"]
    preprocess.write_json(path, results)
    with pytest.raises(InputError, match=r"no interval; run: python evaluate\.py"):
        visualize.write_page(made)
    assert not (made.run / "report").exists()


def test_one_pair_and_the_page_exclude_each_other():
    with pytest.raises(ValueError, match="--html must be used without --clip"):
        VisualizeConfig(html=True, clip="a.wav", event_label="Speech")


def test_a_long_history_becomes_means():
    count = 2 * report.POINTS + 1
    history = {name: np.arange(count, dtype=float) for name in runfolder.HISTORY}
    history["Loss"] = np.where(np.arange(count) % 3, np.nan, 7.0)
    history["Steps"] = np.repeat(np.arange(count), 3)[:count].astype(float)
    curves = report.training_curves((TrainConfig(), history))
    assert curves["each"] == 3 and len(curves["x"]) == len(curves["reward"]) == 667
    assert curves["x"][0] == 2 and curves["reward"][0] == 1  # episodes 1, 2, 3: rewards 0, 1, 2
    assert set(curves["loss"]) == {None, 7.0}


def test_vendored_files_are_those_of_the_table():
    home = report.ASSETS / "vendor"
    with open(home / "VENDOR.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    files = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert files == {"VENDOR.tsv", *(row["file"] for row in rows)}
    for row in rows:
        content = (home / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"], row["file"]
        assert row["version"] and row["licence"] and f"{row['name']}/LICENSE" in files


def test_nothing_of_ours_points_to_the_network_or_writes_markup():
    for name in ("template.html", "report.js"):
        text = (report.ASSETS / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write", text)
        assert not re.search(r"\bfetch\(|XMLHttpRequest|\beval\(", text)


def colours_of(theme: str) -> dict[str, str]:
    text = (report.ASSETS / "template.html").read_text(encoding="utf-8")
    start = ':root[data-theme="dark"]' if theme == "dark" else ":root {"
    block = text[text.index(start) :].partition("}")[0]
    return dict(re.findall(r"--([\w-]+): (#\w{6});", block))


def test_colours_are_those_of_the_figures():
    light = colours_of("light")
    for name in (
        "prob",
        "t_base",
        "t_adj",
        "good",
        "bad",
        "quiet",
        "label",
        "rms",
        "d_raw",
        "d_adj",
        "fixed",
        "broken",
    ):
        assert light[name] == visualize.COLOURS[name]
    assert set(light) == set(colours_of("dark"))


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    colours = colours_of(theme)
    for ground in ("page", "card", "soft"):
        for text in ("text", "quiet", "good", "bad", "accent"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["accent"], colours["on-accent"]) >= 4.5
    for curve in ("prob", "t_base", "t_adj", "t_adj2", "rms", "d_raw", "d_adj", "label"):
        assert contrast(colours[curve], colours["card"]) >= 3, curve


# ---------------------------------------------------------------------------- in a browser

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update")
FLAGS += ("--autoplay-policy=no-user-gesture-required", "--mute-audio")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Debian's Chromium, headless, with a profile of its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser) -> Iterator:
    """`opened(folder, hash, **context)` -> a ready page; fails at the end on any console message,
    page error, or request for anything outside the report's folder."""
    problems, contexts = [], []

    def open_page(folder: Path, hash: str = "", **more):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | more))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        home = folder.resolve().as_uri() + "/"
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith(home) else problems.append(f"request: {r.url}"),
        )
        page.goto(f"{home}index.html{hash}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A sound that is no longer wanted is dropped while it loads.
    assert not [text for text in problems if not re.match(r"failed: .*\.mp3$", text)]


@pytest.fixture
def page(opened, cfg):
    """The report, its pairs shown, the first one chosen."""
    page = opened(cfg.run / "report", "#view=pairs")
    page.wait_for_selector("html[data-pair]")
    return page


def shown(page) -> int:
    """The pair that is drawn."""
    return int(page.evaluate("document.documentElement.dataset.pair"))


def wait_pair(page, n: int) -> None:
    page.wait_for_function(f"document.documentElement.dataset.pair === '{n}'", polling=20)


def numbers_in(page) -> list[int]:
    """Pairs in the list, in its order."""
    return page.eval_on_selector_all("#list button", "all => all.map(x => +x.dataset.n)")


def sound(page) -> SimpleNamespace:
    text = "(({currentTime, paused, duration}) => ({currentTime, paused, duration}))"
    return SimpleNamespace(**page.evaluate(f"{text}(document.querySelector('#audio'))"))


def plot_box(page, name: str = "main") -> dict:
    return page.locator(f"#panel-{name} .u-over").bounding_box()


def test_opens_with_an_overview(opened, cfg, data):
    page = opened(cfg.run / "report")
    print(f"opened in {page.evaluate('document.documentElement.dataset.openMs')} ms")
    text = page.inner_text("#overview")
    for when in ("before", "after"):
        for value in data.results[when].values():
            assert f"{100 * value:.2f}" in text
    low, high = data.results["interval"]["f1"]
    assert f"[{100 * low:+.2f}, {100 * high:+.2f}]".replace("-", "−") in text
    for row in data.results["yardsticks"]:
        assert row["name"] in text
    for part in ("Training", "Gain by class", "Onset and offset errors", "Configuration", "Data"):
        assert part in text
    assert data.results["verdict"] in text
    top = page.locator(".verdict").bounding_box()
    assert top["y"] < 120
    for part in ("Reward", "Avg10", "Epsilon", "Loss", "Q:"):
        assert part in text
    assert page.locator("#overview canvas").count() == 6
    assert page.evaluate("performance.now()") < 30_000


def test_names_are_text(opened, cfg):
    page = opened(cfg.run / "report")
    assert all(label in page.inner_text("#overview") for label in LABELS)
    page.click("#tab-pairs")
    page.wait_for_selector("html[data-pair]")
    assert page.locator("#class option").all_inner_texts() == ["all classes", *sorted(LABELS)]
    texts = page.locator("#list button span.clip").evaluate_all(
        "all => all.map(x => x.textContent)"
    )
    assert set(texts) == set(CLIPS)
    for row in index_of(cfg)["pairs"]:
        page.click(f"#list button[data-n='{row['n']}']")
        wait_pair(page, row["n"])
        assert page.text_content("#pair-label") == row["label"]
        assert page.text_content("#pair-clip").startswith(row["clip"])
    assert page.evaluate("window.broken") is None
    assert page.locator("body img, body b:text('Dog')").count() == 0


def test_filter_search_sort(page, cfg):
    rows = {row["n"]: row for row in index_of(cfg)["pairs"]}
    gain = {n: row["policies"][0]["after"][2] - row["before"][2] for n, row in rows.items()}
    for sort, order in (
        ("gain", lambda n: (-gain[n], n)),
        ("loss", lambda n: (gain[n], n)),
        ("broken", lambda n: (-rows[n]["policies"][0]["broken"], n)),
        ("fixed", lambda n: (-rows[n]["policies"][0]["fixed"], n)),
    ):
        page.select_option("#sort", sort)
        assert numbers_in(page) == sorted(rows, key=order)
    page.select_option("#class", label=LABELS[1])
    assert {rows[n]["label"] for n in numbers_in(page)} == {LABELS[1]}
    page.fill("#search", "한국")
    assert [rows[n]["clip"] for n in numbers_in(page)] == [CLIPS[2]]
    wait_pair(page, numbers_in(page)[0])  # the chosen pair is always one of the list
    page.fill("#search", "nothing like it")
    page.wait_for_function("document.querySelector('#count').textContent.includes('nor in')")
    assert numbers_in(page) == []


def test_a_pair_shows_the_numbers_of_the_cache(page, data):
    for n in (7, 2):
        page.click(f"#list button[data-n='{n}']")
        wait_pair(page, n)
        view = evaluations.view_of(data, n)
        box = plot_box(page)
        for frame in (20, 111):
            share = (frame + 0.5) / FRAMES
            page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
            for name in (*report.CURVES, "t_adj"):
                value = view.signals[name][frame]
                near = {f"{view.signals[name][f]:.3f}" for f in (frame - 1, frame, frame + 1)}
                assert page.text_content(f"#value-{name}") in near, (name, value)
        counts = page.inner_text("#pair-scores")
        changed = view.before != view.after
        assert f"{(changed & (view.after == view.label)).sum()} fixed" in counts
        assert f"{(changed & (view.after != view.label)).sum()} broken" in counts
        switch = float(page.evaluate("document.documentElement.dataset.switchMs"))
        print(f"switched in {switch} ms")


def test_plays_with_a_moving_cursor(page):
    cursor = "new DOMMatrix(getComputedStyle(document.querySelector('.playhead')).transform).m41"
    page.wait_for_function("document.querySelector('#audio').readyState >= 3")
    assert abs(sound(page).duration - FRAMES * FRAME_S) < 0.1
    before = page.evaluate(cursor)
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#audio').currentTime > 0.3")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#audio').paused")
    page.wait_for_timeout(60)
    share = sound(page).currentTime / (FRAMES * FRAME_S)
    assert page.evaluate(cursor) - before == pytest.approx(share * plot_box(page)["width"], abs=12)
    assert page.inner_text("#play") == "Play"


def test_the_browser_hears_what_was_recorded(page, tmp_path):
    """A click at 1 s is decoded at 1 s, so cursor and signals share a clock."""
    wav = np.zeros(2 * RATE, np.float32)
    wav[RATE : RATE + RATE // 50] = 0.9 * np.sin(np.arange(RATE // 50))
    report.write_mp3(tmp_path / "click.mp3", wav, RATE)
    decode = """async (text) => {
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const sound = await new OfflineAudioContext(1, 48000, 48000).decodeAudioData(bytes.buffer);
      const first = sound.getChannelData(0).findIndex((x) => Math.abs(x) > 0.3);
      return [sound.duration, first / sound.sampleRate];
    }"""
    content = base64.b64encode((tmp_path / "click.mp3").read_bytes()).decode()
    duration, first = page.evaluate(decode, content)
    assert duration == pytest.approx(2, abs=0.001) and first == pytest.approx(1, abs=0.002)


def test_click_seeks(page):
    for name in ("spectrogram", "wave", "main", "scores", "strips"):
        box, share = plot_box(page, name), 0.2 + 0.1 * len(name) / 2
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_function("!document.querySelector('#audio').seeking")
        assert sound(page).currentTime == pytest.approx(share * FRAMES * FRAME_S, abs=0.02)


def drag(page, first: float, last: float) -> None:
    box = plot_box(page)
    page.mouse.move(box["x"] + first * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + (first + last) / 2 * box["width"], box["y"] + 40)
    page.mouse.move(box["x"] + last * box["width"], box["y"] + 40)
    page.mouse.up()


def test_a_selection_loops(page):
    drag(page, 0.4, 0.46)  # 2.0 to 2.3 s
    first, last = page.evaluate("state.selection")
    assert (first, last) == (pytest.approx(2.0, abs=0.02), pytest.approx(2.3, abs=0.02))
    page.keyboard.press("l")
    page.keyboard.press("Space")
    times = []
    for _ in range(12):
        page.wait_for_timeout(100)
        times.append(sound(page).currentTime)
    assert not sound(page).paused and min(np.diff(times)) < 0  # it went back
    assert min(times) > first - 0.05 and max(times) < last + 0.25
    page.keyboard.press("Escape")
    assert page.evaluate("state.selection") is None


def test_jumps_to_changed_stretches(page, cfg):
    order = numbers_in(page)
    n, first = shown(page), None
    pair = value_in(cfg.run / "report" / "data" / f"pair-{n:05d}.js")[1]["policies"][0]
    wanted = sorted(a * FRAME_S for a, _ in [*pair["fixed"], *pair["broken"]])
    for expected in wanted[:3]:
        page.keyboard.press("n")
        page.wait_for_function(f"Math.abs(state.at - {expected}) < 1e-6", polling=20)
        first = max(0, expected - 0.5)
        assert page.evaluate("state.selection[0]") == pytest.approx(first)
        assert "in this pair" in page.inner_text("#status")
    assert not sound(page).paused  # it is heard, not only seen
    page.wait_for_function("document.querySelector('#audio').paused")  # up to its end, then silent
    assert sound(page).currentTime == pytest.approx(page.evaluate("state.selection[1]"), abs=0.3)
    later = [
        m for m in order[order.index(n) + 1 :] if index_of(cfg)["pairs"][m]["policies"][0]["broken"]
    ]
    for _ in range(len(pair["broken"]) + 1):  # past the last one of this pair
        page.keyboard.press("b")
        page.wait_for_timeout(150)
    wait_pair(page, later[0])
    assert page.inner_text("#status").startswith("broken: ")
    page.click("#next-fixed")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('fixed: ')")


def test_keyboard(page):
    order = numbers_in(page)
    assert shown(page) == order[0]
    for key, place in (("ArrowDown", 1), ("ArrowRight", 2), ("ArrowUp", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        wait_pair(page, order[place])
    current = page.locator("#list button[aria-current='true']")
    assert int(current.get_attribute("data-n")) == order[0]
    page.keyboard.press("/")
    page.keyboard.type("a b ")  # spaces are typed, not played
    assert page.input_value("#search") == "a b " and sound(page).paused
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press(".")
    page.wait_for_function("Math.abs(document.querySelector('#audio').currentTime - 0.5) < 0.01")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or page.evaluate("document.activeElement === document.body")
    page.focus("#next-broken")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('broken: ')")


def ranges(page) -> list[list[float]]:
    return page.evaluate("panels.map(p => [p.scales.x.min, p.scales.x.max])")


def test_zoom_and_pan_together(page):
    whole = [0, FRAMES * FRAME_S]
    assert ranges(page) == [whole] * len(ranges(page))
    box = plot_box(page, "scores")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.wheel(0, -100)
    page.wait_for_function("panels.every(p => p.scales.x.max - p.scales.x.min < 4.1)")
    assert len({tuple(each) for each in ranges(page)}) == 1
    assert np.mean(ranges(page)[0]) == pytest.approx(2.5, abs=0.05)
    start = ranges(page)[0][0]
    page.keyboard.press("]")
    page.wait_for_function(f"panels.every(p => p.scales.x.min > {start} + 0.1)")
    assert len({tuple(each) for each in ranges(page)}) == 1
    page.keyboard.press("0")
    page.wait_for_function("panels.every(p => p.scales.x.min === 0)")
    assert ranges(page) == [whole] * len(ranges(page))
    drag(page, 0.2, 0.6)
    page.keyboard.press("z")
    page.wait_for_function("panels.every(p => p.scales.x.min > 0.9)")
    np.testing.assert_allclose(ranges(page), [[1.0, 3.0]] * len(ranges(page)), atol=0.03)


def test_deep_link(opened, cfg):
    page = opened(cfg.run / "report", "#pair=7")
    wait_pair(page, 7)
    assert not page.is_visible("#overview")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("location.hash !== '#pair=7'")
    page.evaluate("location.hash = '#pair=3'")
    wait_pair(page, 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, cfg, scheme):
    page = opened(cfg.run / "report", "#view=pairs", color_scheme=scheme)
    colour = "getComputedStyle(document.body).backgroundColor"

    def lightness() -> float:
        return colorsys.rgb_to_hls(*map(int, re.findall(r"\d+", page.evaluate(colour))[:3]))[1]

    assert (lightness() > 128) == (scheme == "light")
    page.click("#theme")
    assert (lightness() > 128) == (scheme == "dark")


def test_fits_1024_pixels(opened, cfg):
    page = opened(cfg.run / "report", viewport={"width": 1024, "height": 700})
    wide = "(id) => { const x = document.querySelector(id); return x.scrollWidth - x.clientWidth; }"
    assert page.evaluate(wide, "#overview") <= 0
    page.click("#tab-pairs")
    page.wait_for_selector("html[data-pair]")
    for part in ("html", "#view", "#side"):
        assert page.evaluate(wide, part) <= 0, part


def test_works_without_sound(opened, tmp_path):
    made = write_run(tmp_path, audio=False)
    visualize.write_page(made)
    page = opened(made.run / "report", "#view=pairs")
    page.wait_for_selector("html[data-pair]")
    assert page.inner_text("#note").startswith("No sound: ")
    assert page.is_disabled("#play") and not page.is_visible("#panel-wave")
    page.keyboard.press("n")
    page.wait_for_function("state.selection !== null")
    box = plot_box(page)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert page.inner_text("#clock").startswith("2.5")


# ---------------------------------------------------------------------------- grey, honest, narrow


def colours_of_gains(page, name: str) -> set[str]:
    """Text colours, #rrggbb, of the differences in the rows that begin with a name."""
    code = """(name) => [...document.querySelectorAll("#overview tr")]
      .filter((row) => row.cells[0].textContent === name)
      .flatMap((row) => [...row.querySelectorAll("td:has(small)")])
      .map((cell) => getComputedStyle(cell).color)"""
    numbers = [re.findall(r"\d+", text)[:3] for text in page.evaluate(code, name)]
    return {"#" + "".join(f"{int(number):02x}" for number in three) for three in numbers}


def test_what_may_be_chance_is_grey(opened, tmp_path):
    """Whatever the sign: an interval that covers zero, or one of a single clip."""
    made = write_run(tmp_path)
    path = made.run / "results.json"
    results = json.loads(path.read_text())
    rows = {"good": [0.01, 0.02], "bad": [-0.02, -0.01], "quiet": [-0.01, 0.02]}
    names = list(results["per_class"])
    for name, ends in zip(names, rows.values(), strict=True):
        results["per_class"][name]["interval"] = dict.fromkeys(("accuracy", "iou", "f1"), ends)
    preprocess.write_json(path, results)
    visualize.write_page(replace(made, pairs=1))
    page = opened(made.run / "report")
    palette = colours_of("light")
    for name, kind in zip(names, rows, strict=True):
        assert colours_of_gains(page, name) == {palette[kind]}, kind
    results["num_clips"] = 1
    preprocess.write_json(path, results)
    visualize.write_page(replace(made, pairs=1))
    page = opened(made.run / "report")
    assert colours_of_gains(page, "Gain (points)") == {palette["quiet"]}


def test_an_empty_list_says_why(opened, data, tmp_path):
    """A pair that is merely not on the page is not denied."""
    report.write_report([report.Shown(tmp_path, data, None)], 4)
    listed = value_in(tmp_path / "report" / "data" / "index.js")["pairs"]
    on_page = {(row["clip"], row["label"]) for row in listed}
    pairs = [(pair.filename, pair.event_label) for pair in data.cache.pairs]
    clip, label = next(pair for pair in pairs if pair not in on_page)
    page = opened(tmp_path / "report", "#view=pairs")
    page.select_option("#class", label=label)
    page.fill("#search", clip)
    page.wait_for_function("document.querySelector('#count').textContent.includes('--pairs')")
    said = page.inner_text("#count")
    assert f"{label} in {clip}" in said and f"--pairs {len(pairs)}" in said
    page.fill("#search", "nothing like it")
    page.wait_for_function("document.querySelector('#count').textContent.includes('nor in')")
    page.fill("#search", "")
    page.select_option("#class", label="all classes")
    assert len(numbers_in(page)) == 4 and "4 of 4" in page.inner_text("#count")


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("context", [{"viewport": {"width": 683, "height": 768}}, PHONE])
def test_one_column(opened, cfg, context):
    page = opened(cfg.run / "report", **context)
    width, height = context["viewport"].values()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    title = page.locator("h1").bounding_box()
    assert title["width"] > 100 and title["height"] < 60
    for card in page.locator("#overview > .cards > .card").all():
        assert card.bounding_box()["width"] > width - 30
    page.click("#tab-pairs")
    page.wait_for_selector("html[data-pair]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = plot_box(page)
    assert box["width"] > 0.65 * width and box["y"] + box["height"] / 2 < height
    first = shown(page)
    page.keyboard.press("ArrowDown")  # scrolls, as there is more below
    page.wait_for_function("scrollY > 0")
    assert shown(page) == first
    page.click("#next-pair")
    page.wait_for_function(f"document.documentElement.dataset.pair !== '{first}'", polling=20)
    assert not page.is_visible("#list")
    page.click("#choose")
    page.click(f"#list button[data-n='{first}']")
    wait_pair(page, first)
    assert not page.is_visible("#list")


def touch(page, *steps: list[tuple[float, float]], panel: str = "main") -> None:
    """Fingers on a plot: each step has a place for each finger, as shares of its size."""
    box, session = plot_box(page, panel), page.context.new_cdp_session(page)
    for i, places in enumerate(steps):
        points = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": k}
            for k, (x, y) in enumerate(places)
        ]
        kind = "touchMove" if i else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_fingers(opened, cfg):
    page = opened(cfg.run / "report", "#view=pairs", **PHONE)
    page.wait_for_selector("html[data-pair]")
    page.locator("#panel-main").scroll_into_view_if_needed()
    touch(page, [(0.4, 0.5)], [(0.5, 0.5)], [(0.6, 0.5)])  # drag: select
    page.wait_for_function("state.selection !== null")
    seconds = FRAMES * FRAME_S
    chosen = page.evaluate("state.selection")
    assert chosen == pytest.approx([0.4 * seconds, 0.6 * seconds], abs=0.15)
    touch(page, [(0.2, 0.5)])  # tap: seek
    page.wait_for_function(f"Math.abs(state.time - {0.2 * seconds}) < 0.1")
    touch(page, [(0.4, 0.5), (0.6, 0.5)], [(0.3, 0.5), (0.7, 0.5)], [(0.2, 0.5), (0.8, 0.5)])
    page.wait_for_function(f"state.range[1] - state.range[0] < {0.5 * seconds}")
    first, last = page.evaluate("state.range")
    assert (first + last) / 2 == pytest.approx(seconds / 2, abs=0.2)
    assert page.evaluate("state.selection") == chosen  # two fingers select nothing
    top = page.evaluate("scrollY")
    touch(page, [(0.5, 0.9)], [(0.5, 0.5)], [(0.5, 0.1)], [(0.5, -0.5)])  # up and down: scroll
    page.wait_for_function(f"scrollY !== {top}")
    assert page.evaluate("state.selection") == chosen


def test_keys_are_in_view(opened, cfg):
    page = opened(cfg.run / "report", "#view=pairs", viewport={"width": 1366, "height": 768})
    page.wait_for_selector("html[data-pair]")
    help_ = page.locator(".help").bounding_box()
    assert help_["y"] > 600 and help_["y"] + help_["height"] <= 768
    for key in ("space", "n", "f", "b", "l", "z", "esc"):
        assert page.locator(f".help kbd:text-is('{key}')").is_visible()
    assert page.locator("#panel-strips").bounding_box()["y"] + 100 < help_["y"]  # so are the plots


# ---------------------------------------------------------------------------- two policies, events


def test_the_other_policy(opened, two):
    page = opened(two.run / "report", "#view=overview")
    text = page.inner_text("#overview")
    names = [run.name for run in (two.run, two.beside)]
    for policy in index_of(two)["policies"]:
        assert policy["results"]["verdict"] in text and f"Configuration: {policy['name']}" in text
    assert f"{names[1]} minus {names[0]}" in text and page.locator("#overview b b").count() == 0
    page.click("#tab-pairs")
    page.wait_for_selector("html[data-pair]")
    n = shown(page)
    row = next(row for row in index_of(two)["pairs"] if row["n"] == n)
    for i, name in enumerate(names):
        page.click(f"#pair-scores button:text-is('{name}')")
        assert page.evaluate("state.policy") == i
        did = row["policies"][i]
        assert f"{did['fixed']} fixed" in page.inner_text(f"#pair-scores tr:has-text('{name}')")
        gains = {each["n"]: each["policies"][i]["after"][2] - each["before"][2]
                 for each in index_of(two)["pairs"]}  # fmt: skip
        assert numbers_in(page) == sorted(gains, key=lambda m: (-gains[m], m))
        pair = value_in(two.run / "report" / "data" / f"pair-{n:05d}.js")[1]["policies"][i]
        assert page.evaluate("mine().stretches.length") == len(pair["fixed"] + pair["broken"])
    page.keyboard.press("p")
    assert page.evaluate("state.policy") == 0
    assert page.is_visible("#value-t_adj") and page.is_visible("#value-t_adj2")


@pytest.mark.parametrize("ours", ["DQN", "policy"])  # the latter of one over events
def test_the_table_of_all_pairs_stands_under_the_verdict(opened, data, tmp_path, ours):
    """Best macro-F1 first; what may be chance is grey, the policy's own row has no difference."""
    rows = {
        "T_base": {"macro_f1": 0.2, "behind": [0.3, 0.2, 0.4]},
        ours: {"macro_f1": 0.5, "behind": [0.0, 0.0, 0.0]},
        "a rule": {"macro_f1": 0.48, "behind": [0.02, -0.01, 0.05]},
    }
    rows = {name: row | {"micro_f1": 0.6, "false_alarms": 0.1} for name, row in rows.items()}
    given = data._replace(results=data.results | {"all_pairs": rows})
    report.write_folder(tmp_path / "report", [report.Shown(tmp_path, given, None)], 3)
    page = opened(tmp_path / "report", "#view=overview")
    page.wait_for_selector("h2:has-text('All pairs')")
    found = page.eval_on_selector_all(
        "section:has(> h2:text-is('All pairs')) tbody tr",
        "rows => rows.map((r) => [...r.cells].map((c) => c.innerText.trim()))",
    )
    assert [row[0] for row in found] == [ours, "a rule", "T_base"]
    assert [row[1] for row in found] == ["50.00", "48.00", "20.00"]
    assert found[0][-1] == "" and found[1][-1].startswith("+2.00")
    last = "section:has(> h2:text-is('All pairs')) tbody tr:nth-child({}) td:last-child"
    kinds = [page.get_attribute(last.format(i), "class").split()[0] for i in (2, 3)]
    assert kinds[0] != kinds[1] == "good"


def test_candidates_and_their_curve(opened, data, tmp_path):
    """A policy over events: its candidates are named under the pointer, its curve is drawn."""
    both = {"confidence": 0.9, "chosen": True, "values": {"iou": 0.75}}
    boxes = [
        {"onset": 1.0, "offset": 2.0, **both},
        {"onset": 1.5, "offset": 3.0, "confidence": 0.2, "chosen": False, "values": {}},
    ]
    curve = {"what": "Event F1", "confidence": [0.0, 0.5, 1.0], "precision": [0.2, 0.5, 0.9]}
    curve |= {"recall": [0.9, 0.5, 0.0], "f1": [0.3, 0.5, 0.0]}
    given = data._replace(results=data.results | {"curve": curve}, boxes={0: boxes})
    report.write_report([report.Shown(tmp_path, given, None)], 15)
    page = opened(tmp_path / "report")
    assert "Operating curve" in page.inner_text("#overview")
    page.evaluate("location.hash = '#pair=0'")
    wait_pair(page, 0)
    box = plot_box(page, "boxes")
    for time, said in ((1.2, 1), (1.7, 2), (2.5, 1), (4.0, 0)):
        page.mouse.move(box["x"] + time / (FRAMES * FRAME_S) * box["width"], box["y"] + 5)
        assert page.locator("#candidates:visible li").count() == said
    page.mouse.move(box["x"] + 1.7 / (FRAMES * FRAME_S) * box["width"], box["y"] + 5)
    first, second = page.locator("#candidates li").all_inner_texts()
    assert first == "1.00 to 2.00 s, confidence 0.90, expected IoU 0.75"
    assert second == "1.50 to 3.00 s, confidence 0.20"
    page.evaluate("report.known = false")  # all pairs: events are emitted
    page.mouse.move(box["x"] + 1.8 / (FRAMES * FRAME_S) * box["width"], box["y"] + 5)
    said = page.locator("#candidates li").all_inner_texts()
    assert said == [f"emitted: {first}", f"not emitted: {second}"]
    page.evaluate("location.hash = '#pair=1'")
    wait_pair(page, 1)
    assert not page.is_visible("#panel-boxes")  # no candidate, no panel
    page = opened(tmp_path / "report", "#pair=0", **PHONE)
    wait_pair(page, 0)
    page.locator("#panel-boxes").scroll_into_view_if_needed()
    touch(page, [(1.7 / (FRAMES * FRAME_S), 0.5)], panel="boxes")  # what a finger names stays
    assert page.locator("#candidates:visible li").all_inner_texts() == [first, second]
    touch(page, [(0.1, 0.5)], panel="strips")
    assert not page.is_visible("#candidates")


# ---------------------------------------------------------------------------- another browser


@pytest.mark.parametrize("size", ["1366,768", "390,844"])
def test_firefox_draws_it_too(cfg, tmp_path, size):
    firefox = shutil.which("firefox-esr")
    if firefox is None:
        pytest.skip("no firefox-esr; on Debian: apt-get install firefox-esr")
    picture, profile = tmp_path / "page.png", tmp_path / "profile"
    profile.mkdir()
    (profile / "user.js").write_text('user_pref("ui.systemUsesDarkTheme", 0);')
    url = f"{(cfg.run / 'report' / 'index.html').resolve().as_uri()}#view=pairs"
    command = [firefox, "--headless", "--profile", profile, "--window-size", size]
    subprocess.run([*command, "--screenshot", picture, url], check=True, timeout=120)
    pixels = np.round(255 * matplotlib.image.imread(picture)[..., :3]).astype(int)
    assert pixels.shape[1] == int(size.partition(",")[0])
    for name in ("prob", "t_adj", "fixed"):  # what the script draws, in the colours of the page
        colour = [int(colours_of("light")[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(-1) < 8).sum() > 100, name
