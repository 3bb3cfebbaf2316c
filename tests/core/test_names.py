"""core/names.py: names that users gave cannot run, form rows, or turn the text after them."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.names import csv_cell, csv_text, isolated, latex, markdown

HARMLESS = ("Dog", "Alarm_bell_ringing", "a.b-c.wav", "1", "-3.5", "+2e-3", "", "x=1", "a@b")


@pytest.mark.parametrize("text", HARMLESS)
def test_csv_cells_that_are_no_formula_stay(text):
    assert csv_cell(text) == text


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_a_formula_is_defused(sign):
    text = f'{sign}HYPERLINK("http://evil")'
    assert csv_cell(text) == f"'{text}"


@given(st.text())
def test_csv_text_is_the_inverse(text):
    cell = csv_cell(text)
    assert csv_text(cell) == text
    assert cell[:1] not in ("=", "@") and (cell[:1] not in ("+", "-") or float(cell) is not None)


@given(st.lists(st.text("=+-@'\",;\n a"), min_size=1, max_size=4))
def test_cells_survive_the_file(names):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(map(csv_cell, names))
    stream.seek(0)
    assert [csv_text(cell) for cell in next(csv.reader(stream))] == names


MARKDOWN = {
    "Alarm_bell_ringing": "Alarm_bell_ringing",
    "-0.30 [-1.2, +0.4]": "-0.30 [-1.2, +0.4]",
    "a|b": r"a\|b",
    "*x*": r"\*x\*",
    "_x_": r"\_x\_",
    "[x](javascript:y)": r"[x\](javascript:y)",
    "![x](y)": r"![x\](y)",
    "<img src=x onerror=y>": r"\<img src=x onerror=y>",
    "&lt;b>": r"\&lt;b>",
    "R & B": "R & B",
    "a\nb\tc": "a b c",
    "`x`": r"\`x\`",
    "C#": r"C\#",
    r"a\|b": r"a\\\|b",
}


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown(text):
    assert markdown(text) == MARKDOWN[text]


LATEX = {
    "T_base": r"T\_base",
    r"\input{x}": r"\textbackslash{}input\{x\}",
    "50 % & $x$ #1": r"50 \% \& \$x\$ \#1",
    "a~b^c": r"a\textasciitilde{}b\textasciicircum{}c",
    "±0.1": r"$\pm$0.1",
    "[x] y": "{[}x] y",
    "*x": "{*}x",
    "a\nb": "a b",
    "<a|b>": r"\textless{}a\textbar{}b\textgreater{}",
}


@pytest.mark.parametrize("text", LATEX)
def test_latex(text):
    assert latex(text) == LATEX[text]


# ---------------------------------------------------------------------------- writing direction

HEBREW, ARABIC, OVERRIDE = "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d", "\u202e"
NAMES = (HEBREW, f"{HEBREW} 12.wav", f"{OVERRIDE}gpj.exe", f"a\u2067{ARABIC}", "a\u2069\u202eb")
NAMES += (f"{HEBREW}, {ARABIC} x", "\u200f", "\u2068", "\u2069", "\u2069\u2068\u2069")


def left_open(text: str) -> tuple[int, list[str]]:
    """Right-to-left characters outside every isolate, and isolates that are open at the end."""
    loose, stack = 0, []
    for sign in text:
        kind = unicodedata.bidirectional(sign)
        if kind in ("LRI", "RLI", "FSI"):
            stack.append(kind)
        elif kind == "PDI":
            stack = stack[:-1]
        elif kind in ("R", "AL", "RLE", "RLO", "LRE", "LRO", "PDF") and not stack:
            loose += 1
    return loose, stack


@pytest.mark.parametrize("name", NAMES)
def test_a_name_does_not_turn_what_follows(name):
    text = isolated(f"{name}: 12 frames (3 %)")
    assert left_open(text) == (0, [])
    assert text.endswith(": 12 frames (3 %)")
    assert isolated(text) == text


@given(
    st.text("ab 1\u05d0\u0627\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
)
def test_nothing_is_left_open(text):
    assert left_open(isolated(text)) == (0, [])
    for sign in "ab1\u05d0\u0627\u202e\u200f":  # nothing but isolates is added
        assert isolated(text).count(sign) == text.count(sign)


@given(st.text("abc dé漢\u0300|0:"))
def test_other_text_stays(text):
    assert isolated(text) == text
