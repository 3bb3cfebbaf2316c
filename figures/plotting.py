"""One look for all figures: colours, page, legend, axes, and how a picture is written.

Shapes: T frames of a pair

One table of colours for all figures; red is always the base threshold, green the DQN's. A change
is dark green, dark red or grey: better, worse, may be chance.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from comparison.evaluations import View
from comparison.scoring import in_the_noise
from core.files import whole
from core.versions import versions
from sed.timeline import Event

if TYPE_CHECKING:  # matplotlib is imported where a figure is drawn: it builds a font cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "prob": "#1f4fd8",
    "t_base": "#d62728",
    "t_adj": "#16913a",
    "label": "#8f8f8f",
    "rms": "#7a4fb5",
    "d_raw": "#b07a12",
    "d_adj": "#7f4f24",
    "audio": "#a3b1c6",
    "constant": "#111111",
    "fixed": "#ffe484",
    "broken": "#f4a3c4",
    "tp": "#7cc7c0",
    "fp": "#f5a65b",
    "fn": "#c77dba",
    "epsilon": "#e8890c",
    "logged": "#5b3a00",
    "steps": "#0e7c86",
    "reward": "#bcd3ea",
    "avg10": "#23618f",
    "yardstick": "#66799c",
    "accuracy": "#2f4b7c",
    "iou": "#e0a100",
    "f1": "#d45087",
    "supervised": "#8e44ad",
    "ceiling": "#a9b0ba",
    "events": "#c2571a",
    "best": "#2b3a55",
    "data": "#dfe5ee",
    "convolution": "#cfe3ff",
    "recurrent": "#d3f0d8",
    "attention": "#e6d9f7",
    "linear": "#ffe3c2",
    "good": "#0d7031",
    "bad": "#b3161c",
    "quiet": "#54606f",
}
TEXT = {
    "prob": "Prob95",
    "t_base": "Base_T",
    "t_adj": "DQN_T",
    "rms": "RMS",
    "d_adj": "Adjusted score D_adj",
    "label": "Ground Truth",
    "accuracy": "Accuracy",
    "iou": "IoU",
    "f1": "Frame F1",
}
MOST_CLASSES = 24  # more rows than this do not fit a figure
PAGE = (13.33, 7.5)  # inches: a 16:9 slide, so that the font sizes below are the slide's
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "figure.titlesize": 18,
    "figure.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a label may hold $ and _
}


def page(
    title: str, rows: int = 1, cols: int = 1, height: float = PAGE[1], **layout: Any
) -> tuple["Figure", np.ndarray]:
    """Empty figure of slide size -> the figure and its axes (rows, cols)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE[0], height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle("\n".join(fill(line, 84) for line in title.split("\n")))
    return figure, figure.subplots(rows, cols, squeeze=False, **layout)


def legend(figure: "Figure", columns: int = 6, note: str | None = None) -> "Figure":
    """One legend under the panels, each signal once, under a note on how to read them."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place = {"loc": "outside lower center", "ncols": min(columns, len(entries))}
    figure.legend(list(entries.values()), list(entries), title=note, title_fontsize=12, **place)
    return figure


def look(colour: str, text: str | None = None) -> dict[str, Any]:
    """Colour and legend entry of a signal."""
    return {"color": COLOURS[colour], "label": text or TEXT[colour]}


def time_axis(ax: "Axes", first: float, last: float) -> None:
    """Seconds from `first` to `last`."""
    ax.set_xlim(first, last)
    ax.set_xlabel("Time (s)")


def unit_axis(ax: "Axes", what: str) -> None:
    """A 0..1 axis."""
    ax.set_ylim(-0.04, 1.06)
    ax.set_ylabel(f"{what}\n(0 to 1)")


def bars(ax: "Axes", on: list[Event], y: float, colour: str, text: str, mark: str = "") -> None:
    """A row of bars, onset to offset; `mark` is written into those wide enough for it."""
    spans = [(event.onset, event.offset - event.onset) for event in on]
    ax.broken_barh(spans, (y - 0.4, 0.8), lw=0, **look(colour, text))
    first, last = ax.get_xlim()
    for onset, duration in spans:
        if mark and duration > 0.025 * (last - first):
            ax.text(onset + duration / 2, y, mark, ha="center", va="center_baseline", fontsize=11)


def percent(value: float) -> str:
    """0.7828 -> 78.28 %"""
    return f"{100 * value:.2f} %"


def points(value: float, digits: int = 2) -> str:
    """0.0093 -> +0.93; what rounds to zero has no sign."""
    text = f"{100 * value:+.{digits}f}"
    return text if float(text) else text[1:]


def tone(results: dict[str, Any], low: float, high: float) -> str:
    """Colour of a difference by its interval: `quiet` where it may be chance."""
    return "quiet" if in_the_noise(results, low, high) else "good" if low > 0 else "bad"


def draw_curves(ax: "Axes", view: View, *names: str) -> None:
    """Signals over seconds; the base threshold is a broad pale line below the DQN's, so that it is
    seen where the DQN leaves it as it is."""
    for name in names:
        under = name == "t_base" and "t_adj" in names
        below = {"linewidth": 5, "alpha": 0.55, "zorder": 1.9} if under else {}
        ax.plot(view.centres, view.signals[name], **below, **look(name))


def changes(view: View) -> dict[str, np.ndarray]:
    """(T,) bool: where the policy fixed a decision, and where it broke one."""
    changed, right = view.before != view.after, view.after == view.label
    return {"fixed": changed & right, "broken": changed & ~right}


def shade_changes(ax: "Axes", view: View, text: str) -> None:
    """Stripes behind curves; `text`: a legend entry for Fixed or Broken, so many of T frames."""
    for cell, on in changes(view).items():
        entry = text.format(cell.capitalize(), on.sum(), len(on))
        for event in view.events(on):
            ax.axvspan(event.onset, event.offset, lw=0, zorder=0, **look(cell, entry))


def scale(ax: "Axes", ends: Any) -> None:
    """The axis of a figure of rows, from the lowest to the highest of some shares, in percent."""
    first, last = 100 * np.min(ends), 100 * np.max(ends)
    margin = 0.05 * max(last - first, 1)
    ax.set_xlim(first - margin, last + margin)
    ax.grid(axis="y", visible=False)
    ax.tick_params(left=False)


def stripe(ax: "Axes", i: int) -> None:
    """Every other row of a figure of rows is pale."""
    if i % 2:
        ax.axhspan(-i - 0.5, -i + 0.5, color="#f4f6f9", lw=0, zorder=0)


def name_rows(ax: "Axes", names: list[str], bold: Iterable[bool] = ()) -> None:
    """Names beside a figure of rows, the first on top; those in bold type where `bold` is given."""
    ax.set_yticks(-np.arange(len(names)), names)
    ax.set_ylim(-len(names) + 0.4, 0.6)
    for text, strong in zip(ax.get_yticklabels(), bold, strict=False):
        text.set_weight("bold" if strong else "normal")


def row_value(ax: "Axes", i: int, value: float, text: str, bold: bool, colour: str) -> bool:
    """The number of row i beside it; whether the value is on the scale, which is said if not."""
    stripe(ax, i)
    place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 11}
    ax.text(1.02, -i, text, weight="bold" if bold else "normal", **place)
    first, last = ax.get_xlim()
    if first <= value <= last:
        return True
    at, side, said = 0.99, "right", "off the scale ▸"
    if value < first:
        at, side, said = 0.01, "left", "◂ off the scale"
    white = {"facecolor": "white", "lw": 0, "pad": 1}
    ax.text(at, -i, said, ha=side, color=colour, bbox=white, **place)
    return False


def styled(draw: Callable) -> Callable:
    """What draws and writes figures, in the suite's style."""

    @functools.wraps(draw)
    def drawn(*args: Any, **more: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **more)

    return drawn


Drawn = Iterator[tuple[str, "Figure | str"]]


def each_figure(drawings: dict[str, Callable[[], "Figure | str"]], prefix: str = "") -> Drawn:
    """(file name, figure); a text says why a figure is left out."""
    for name, draw in drawings.items():
        yield f"{prefix}{name}.png", styled(draw)()


# Fonts that draw Chinese, Japanese and Korean names, those of Linux, macOS and Windows.
CJK = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR", "NanumGothic")
CJK += ("WenQuanYi Zen Hei", "Apple SD Gothic Neo", "Hiragino Sans", "PingFang SC")
CJK += ("Malgun Gothic", "Yu Gothic", "Microsoft YaHei")


@functools.cache
def fonts() -> list[str]:
    """The usual font, then those for what it lacks, as far as they are installed."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    def found() -> list[str]:
        installed = {font.name for font in fontManager.ttflist}
        return [name for name in CJK if name in installed]

    if not found():  # matplotlib keeps a list of fonts: one installed since is not in it
        for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
            with suppress(OSError, RuntimeError, ValueError):  # not one that it can read
                fontManager.addfont(path)
    return ["DejaVu Sans", *found()]


@functools.cache
def say_boxes() -> None:
    """Say, once, that some characters cannot be drawn."""
    print(
        "note: no installed font has some characters of the names, they are drawn as boxes;"
        " on Debian and Ubuntu: apt install fonts-noto-cjk"
    )


def write(figure: "Figure", path: Path, dpi: int, what: str) -> None:
    """The figure as a PNG file, whole or not at all; prints its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        save(figure, temporary, dpi, what)
    print(path)


def save(figure: "Figure", path: Path, dpi: int, what: str) -> None:
    """The figure as a PNG file.

    Characters that no installed font has are drawn as boxes, and one note says so.
    """
    import matplotlib
    from matplotlib.text import Text

    about = {"Description": f"{what}, made with {versions()}"}
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts())
    style = STYLE | {"font.family": fonts()}  # of ticks, which are made while drawing
    heard = warnings.catch_warnings(record=True, action="always")
    with matplotlib.rc_context(style), heard as caught:
        figure.savefig(path, dpi=dpi, format="png", metadata=about)
    for warning in caught:
        if str(warning.message).startswith("Glyph "):
            say_boxes()
        else:
            place = warning.filename, warning.lineno
            warnings.warn_explicit(warning.message, warning.category, *place)
