"""Names that users gave, where they are printed or put into a table: text, never a command."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# A spreadsheet runs a cell that begins with one of these (OWASP, CSV Injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(text: str) -> str:
    """A name as a cell of a CSV file; `csv_text` is the inverse. A number is no formula."""
    if not text.lstrip("'").startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def csv_text(cell: str) -> str:
    """What `csv_cell` made a cell of."""
    return cell[1:] if cell[:1] == "'" and csv_cell(cell[1:]) == cell else cell


def one_line(text: str) -> str:
    """Line ends and other control characters as spaces."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


# CommonMark 2.4 allows a backslash before any of these. An underscore inside a word and brackets
# that make no link mean nothing, so they stay as they are.
MARKDOWN = re.compile(
    r"[\\`*|<~$#]|\](?=[(\[:])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])", flags=re.UNICODE
)


def markdown(text: str) -> str:
    """Text in a cell or a line of Markdown as it is read."""
    return isolated(MARKDOWN.sub(lambda found: f"\\{found[0]}", one_line(text)))


LATEX = {c: f"\\{c}" for c in "%&_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}


def latex(text: str) -> str:
    """Text in a cell of a LaTeX table. `[` and `*` would be arguments of the line end before."""
    plain = "".join(LATEX.get(c, c) for c in one_line(text) if not _marks_direction(c))
    return f"{{{plain[0]}}}{plain[1:]}" if plain[:1] in ("[", "*") else plain


# ---------------------------------------------------------------------------- writing direction

OPEN, CLOSE = "\u2068", "\u2069"  # first strong isolate and its end (Unicode Annex 9, 2.4)
STARTS, END = ("LRI", "RLI", "FSI"), "PDI"
EMBEDDINGS = ("LRE", "RLE", "LRO", "RLO", "PDF")


def _marks_direction(sign: str) -> bool:
    """Whether a character is invisible and only says how others are written."""
    kind = unicodedata.bidirectional(sign)
    return kind in (*STARTS, END, *EMBEDDINGS) or sign in "\u200e\u200f\u061c"


def _turns(sign: str) -> bool:
    """Whether a character can turn what stands around it."""
    return unicodedata.bidirectional(sign) in ("R", "AL", *STARTS, END, *EMBEDDINGS)


def _closed(run: str) -> str:
    """A run in an isolate of its own, the isolates that it opens or closes itself evened out."""
    depth = missing = 0
    for sign in run:
        kind = unicodedata.bidirectional(sign)
        depth += (kind in STARTS) - (kind == END)
        if depth < 0:
            depth, missing = 0, missing + 1
    if run[0] == OPEN and run[-1] == CLOSE and depth == missing == 0:
        return run
    return OPEN * (missing + 1) + run + CLOSE * (depth + 1)


def isolated(text: str) -> str:
    """Text whose right-to-left parts do not turn what stands after them.

    Each such part, spaces and digits between its letters included, is closed in itself. Other text
    comes back as it is, and so does what was isolated before.
    """
    places = [] if text.isascii() else [i for i, sign in enumerate(text) if _turns(sign)]
    parts, done = [], 0
    while places:
        first = last = places.pop(0)
        while places and all(unicodedata.bidirectional(c) != "L" for c in text[last : places[0]]):
            last = places.pop(0)
        parts += [text[done:first], _closed(text[first : last + 1])]
        done = last + 1
    return "".join([*parts, text[done:]])


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of a Markdown table; cells are written as they are."""
    lines = [header, *rows]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return [head, "|---" * len(header) + "|", *body]


UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # tabs, line breaks, ..


@lru_cache(4096)  # the classes of every score file
def name_flaw(name: str, *, path: bool = False) -> str:
    """What is wrong with a name from outside: of a class, or (`path`) of a clip; empty if nothing.

    Names are written into TSVs, and a clip's name is a path below some folder, to be read or
    written: it may not leave that folder. A class may be called `/m/04rlf`, as in AudioSet.
    """
    if not name.strip():
        return "is empty"
    if UNWRITABLE.search(name):
        return "holds a tab, a line break or another character that no table can hold"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of its folder (..)"
    if path and (name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name)):
        return "is an absolute path; give it relative to its folder"
    if path and "\\" in name:
        return "holds a backslash; write / between folders"
    return ""
