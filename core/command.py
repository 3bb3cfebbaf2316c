"""The command line: help, flags that are mistaken, presets, and how a script ends."""

import ast
import dataclasses
import difflib
import errno
import inspect
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, TextIO

from core.errors import InputError
from core.names import isolated
from core.processes import ENDS_WITH_PARENT, end_with


def needed(module: str, script: str) -> ModuleType:
    """Import a module of requirements-studies.txt, or one of a study that imports such; InputError
    where one is not installed.

    `script` is the file that the user started, for the message.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "studies":  # a fault of ours
            raise
        cure = "run: pip install -r requirements-studies.txt"
        raise InputError(f"{Path(script).name} needs {error.name}; {cure}") from None


def flag_in(args: list[str], flag: str) -> str | None:
    """Value of a flag before the command line is parsed: it chooses the defaults of the others."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        if arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def flags_of(cls: type, prefix: str = "--") -> dict[str, Any]:
    """Flags of a config class and their types."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        flag = f"{prefix}{name}".replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= flags_of(hint, f"{flag}.")
        elif typing.get_origin(hint) is not ClassVar:
            found[flag] = hint
    return found


# What other tools, or other scripts of ours, call a flag, and what it may be here: the first that a
# script has is suggested.
LENGTH = ("passes", "epochs", "total-steps", "steps", "learning.budget")  # of a training
ELSEWHERE = {
    word: flags
    for words, flags in (
        ("epochs epoch num-epochs max-epochs n-epochs episodes", LENGTH),
        (
            "lr learning-rate actor-lr critic-lr",
            ("learning.lr", "events.lr", "learning-rate", "lr"),
        ),
        ("batch-size bs", ("learning.batch", "batch", "batch-size")),
        ("gpu gpus cuda cpu", ("device",)),
        ("workers num-workers jobs", ("workers", "threads")),
        ("threshold", ("min-confidence",)),
        ("wandb", ("wandb-project",)),
        ("verbose", ()),
        ("output output-dir out", ("out", "run", "cache")),
        ("input", ("audio", "labels", "run")),
        ("run", ("policy",)),
        ("policy", ("run",)),
        ("checkpoint model", ("policy", "checkpoint", "init")),
        ("ckpt weights", ("checkpoint", "init", "policy")),
        ("data data-dir", ("cache", "corpus", "labels")),
        ("name", ("run",)),
        ("random-state", ("seed",)),
        ("warmup-steps", ("random-steps",)),
        ("log-dir", ("run", "out")),
    )
    for word in words.split()
}


def check_known(args: list[str], known: Iterable[str]) -> None:
    """InputError for a flag that a script does not have; it names the nearest one."""
    whole = {flag.split(".")[-1]: flag for flag in reversed(list(known))}
    for arg in args:
        name = flag_of(arg)
        if name is None or name in known or name in ("--help", "--version"):
            continue
        word = name.removeprefix("--")
        near = [f"--{flag}" for flag in ELSEWHERE.get(word, ()) if f"--{flag}" in known]
        near += [whole[word]] if word in whole else []
        if word not in ELSEWHERE:  # there the nearest spelling means another thing
            words = [flag.removeprefix("--") for flag in known]  # the dashes are alike in all
            near += [f"--{flag}" for flag in difflib.get_close_matches(word, words, 1, 0.65)]
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise InputError(f"{arg.partition('=')[0]}: no such flag; {hint}")


def flag_of(arg: str) -> str | None:
    """The flag that a word of the command line gives, `--no-gate` being `--gate`; None: a value."""
    if not re.match(r"--[A-Za-z]", arg):
        return None
    return re.sub(r"(^--|\.)no-", r"\1", arg.partition("=")[0].replace("_", "-"))


def takes_many(hint: Any) -> bool:
    """Whether a type has any number of values."""
    return typing.get_origin(hint) is tuple and Ellipsis in typing.get_args(hint)


def once_each(args: list[str], flags: dict[str, Any]) -> dict[str, list[str]]:
    """Each flag of a command line: its spelling, then its words; where it takes many, they add up.

    InputError where another flag is given twice, and for a word that no flag stands before.
    """
    given: dict[str, list[list[str]]] = {}  # flag -> the words of each time that it is given
    for arg in args:
        flag = flag_of(arg)
        if flag is not None:
            name, equals, value = arg.partition("=")
            words = [name.replace("_", "-"), *[value] * bool(equals)]
            given.setdefault(flag, []).append(words)
        elif given:
            words.append(arg)
        else:
            raise InputError(f"{arg}: no flag stands before it; see --help")
    for flag, times in given.items():
        if len(times) > 1 and not takes_many(flags[flag]):
            both = " and ".join(" ".join(words) for words in times)
            raise InputError(f"{flag} is given {len(times)} times: {both}; give it once")
    return {
        flag: times[0] + [word for words in times[1:] for word in words[1:]]
        for flag, times in given.items()
    }


NEEDS = {int: "a whole number", float: "a number", bool: "without a value"}


def value_of(words: list[str], hint: Any) -> Any:
    """What a flag's words, its spelling first, mean in its type; InputError says what it needs."""
    flag, *values = words
    kinds, need = typing.get_args(hint), NEEDS.get(hint)
    if typing.get_origin(hint) is tuple:
        kinds = kinds[:1] * len(values) if takes_many(hint) else kinds
        if len(kinds) == len(values):
            return tuple(value_of([flag, v], kind) for v, kind in zip(values, kinds, strict=True))
        need = f"{len(kinds)} values"
    elif type(None) in kinds:
        return None if values == ["None"] else value_of(words, kinds[0])
    elif hint is bool and not values:
        return flag == flag_of(flag)
    elif flag != flag_of(flag):
        raise InputError(f"{flag}: no such flag; see --help")
    elif typing.get_origin(hint) is Literal:
        if len(values) == 1 and values[0] in kinds:
            return values[0]
        need = f"one of {', '.join(kinds)}"
    elif hint is not bool and len(values) == 1:
        with suppress(ValueError):
            return hint(values[0])
    need = need or "one value"
    raise InputError(f"{flag} must be {need} but {' '.join(values) or 'nothing'} was given")


def filled(given: Any, values: dict[str, Any], prefix: str = "--") -> Any:
    """A config: what flags say, else the defaults of a class, or of an instance."""
    cls, changes, missing = class_of(given), {}, []
    hints = typing.get_type_hints(cls)
    for spec in fields(cls):
        flag = f"{prefix}{spec.name}".replace("_", "-")
        default = default_of(given, spec)
        if dataclasses.is_dataclass(hints[spec.name]):
            changes[spec.name] = filled(default, values, f"{flag}.")
        elif flag in values:
            changes[spec.name] = values[flag]
        elif default is dataclasses.MISSING:
            missing.append(flag)
    if missing:
        raise InputError(f"{', '.join(missing)} must be given; see --help")
    try:
        return cls(**changes) if cls is given else dataclasses.replace(given, **changes)
    except ValueError as error:
        raise InputError(str(error)) from None


def metavar(hint: Any) -> str:
    """How a value of a type is written: INT, PATH, one|another, TEXT .. (any number)."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, kinds))
    if typing.get_origin(hint) is tuple:
        return " ".join(".." if kind is Ellipsis else metavar(kind) for kind in kinds)
    return "|".join(map(metavar, kinds)) or {str: "TEXT"}.get(hint, hint.__name__.upper())


def texts_of(cls: type) -> dict[str, str]:
    """Field -> the text that stands under it in the source, or else the comment behind it."""
    texts = {}
    for base in (base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)):
        source = textwrap.dedent(inspect.getsource(base))
        (node,) = ast.parse(source).body
        lines = source.splitlines()
        for name, text in pairwise([*node.body, node]):
            if isinstance(name, ast.AnnAssign):
                behind = lines[name.end_lineno - 1].partition("  # ")[2]
                texts[name.target.id] = text.value.value if isinstance(text, ast.Expr) else behind
    return texts


def class_of(given: Any) -> type:
    """A config class, or that of an instance."""
    return given if isinstance(given, type) else type(given)


def default_of(given: Any, spec: dataclasses.Field) -> Any:
    """Default of a field of a config class, or of an instance, which holds it."""
    if not isinstance(given, type):
        return getattr(given, spec.name)
    made = spec.default_factory
    return spec.default if made is dataclasses.MISSING else made()


def option_lines(given: Any, prefix: str = "") -> list[str]:
    """A line for each option of a config class (or of an instance, which holds the defaults); each
    group behind them, under a line of its own."""
    cls = class_of(given)
    hints, texts, lines, groups = typing.get_type_hints(cls), texts_of(cls), [], []
    for spec in fields(cls):
        name, hint = prefix + spec.name.replace("_", "-"), hints[spec.name]
        value = default_of(given, spec)
        if dataclasses.is_dataclass(hint):
            groups += [f"{spec.name}: {summary(hint)}", *option_lines(value, f"{name}.")]
            continue
        head = f"--{name} {metavar(hint)}"
        if hint is bool:
            head, value = f"--{name}, --{prefix}no-{name.removeprefix(prefix)}", "on" * value
        if isinstance(value, tuple):
            value = " ".join(map(str, value))
        default = "required" if value is dataclasses.MISSING else value
        long = len(str(default)) > 40  # its text describes it
        shown = "" if default in (None, "") or long else f" [{default}]"
        lines.append(f"  {head:<31}  {texts.get(spec.name, '')}{shown}")
    return lines + groups


def summary(cls: type) -> str:
    """First line of a class's docstring."""
    return cls.__doc__.partition("\n")[0]


def help_text(cls: type | dict[str, Any], args: list[str]) -> str:
    """What `--help` prints: an option a line, or the commands of a script that has several."""
    script = program()
    if isinstance(cls, dict) and (not args or args[0] not in cls):
        lines = [f"  {name:<17} {summary(class_of(kind))}" for name, kind in cls.items()]
        head = f"usage: {script} COMMAND [--OPTION VALUE ..]; options: COMMAND --help"
        return "\n".join([head, "", *lines])
    given = cls
    if isinstance(cls, dict):
        script, given = f"{script} {args[0]}", cls[args[0]]
    elif "preset" in [spec.name for spec in fields(cls)]:
        given = preset_of(cls, args)
    head = f"usage: {script} [--OPTION VALUE ..]; defaults in brackets"
    return "\n".join([head, summary(class_of(given)), "", *option_lines(given)])


def preset_of(cls: type, args: list[str]) -> Any:
    """The defaults that a command line asks for; an unknown preset is the parser's to refuse."""
    name = flag_in(args, "--preset")
    return cls.with_preset(name if name in cls.PRESETS else next(iter(cls.PRESETS)))


def answer_about(args: list[str], help_of: Callable[[], str]) -> None:
    """`--help` and `--version`: print the answer and end."""
    if {"-h", "--help"} & set(args):
        print(help_of())
        sys.exit(0)
    if "--version" in args:
        from core.versions import version_text  # torch takes seconds to import

        print(version_text())
        sys.exit(0)


def parse(cls: type | dict[str, Any] | str, args: list[str] | None = None) -> Any:
    """Command line -> config. Raises InputError for a bad flag or value and a flag given twice.

    A dictionary is a script with several commands: the first word says which class is meant. An
    instance in place of a class holds the defaults. A text is the docstring of a script without
    flags, which is given its words.
    """
    args = sys.argv[1:] if args is None else args
    if isinstance(cls, str):
        answer_about(args, cls.strip)
        check_known(args, ())
        return args
    answer_about(args, lambda: help_text(cls, args))
    given = cls
    if isinstance(cls, dict):
        if not args or args[0] not in cls:
            got = f"{args[0]} was given" if args else "none was given"
            raise InputError(f"a command is needed: {', '.join(cls)}; {got}")
        given, args = cls[args[0]], args[1:]
    flags = flags_of(class_of(given))
    check_known(args, flags)
    found = once_each(args, flags)
    values = {flag: value_of(words, flags[flag]) for flag, words in found.items()}
    if "--preset" in flags and isinstance(given, type):
        given = preset_of(given, args)
    return filled(given, values)


_parsed: list[Any] = []  # by `parse_first`, for `run_script`


def parse_first(
    cls: type | dict[str, Any] | str, answer: Callable[[Any], bool] | None = None
) -> None:
    """Parse the command line of a script that is run, before it imports torch, which takes seconds:
    help, mistakes, and what `answer` does (True: all is done) end here."""

    def parsed() -> int | None:
        _parsed[:] = [parse(cls)]
        return 0 if answer is not None and answer(_parsed[0]) else None

    run_main(parsed, ends=False)


def run_script(cls: type | dict[str, Any] | str, main: Callable[[Any], int | None]) -> None:
    """Run with the parsed command line."""
    run_main(lambda: main(_parsed.pop() if _parsed else parse(cls)))


def started_module() -> str | None:
    """The module that `python -m` has started, e.g. studies.classic; None: a script was started."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.origin is None or Path(spec.origin) != Path(sys.argv[0]):
        return None
    return spec.name.removesuffix(".__main__")


def program() -> str:
    """What the user started: `DQN.py`, or `python -m studies.classic`."""
    name = started_module()
    return f"python -m {name}" if name else Path(sys.argv[0]).name


def run_main(main: Callable[[], int | None], ends: bool = True) -> None:
    """Run, and turn a user's mistake or a failing disk into one line and exit code 2.

    Without `ends`, what returns no exit code goes on.
    """
    if os.environ.pop(ENDS_WITH_PARENT, None):
        end_with(os.getppid())
    with ExitStack() as log:
        if not sys.stderr.isatty():
            # Bars in a log show a line a minute. tqdm reads this when it is imported.
            os.environ.setdefault("TQDM_MININTERVAL", "60")
            os.environ.setdefault("TQDM_MINITERS", "1")  # else its monitor adds lines of its own
            log.enter_context(redirect_stderr(BarLines(sys.stderr)))
        guarded(main, ends)


class BarLines:
    """Standard error that is no terminal: what a progress bar shows is a line, a minute apart.

    A bar goes back to the start of its line before each text, and ends the line when it closes.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.shown = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text; of a bar's the line."""
        bar = text.startswith("\r")
        line = text.strip("\r ") + "\n"
        if not (line == "\n" if bar else self.shown and text == "\n"):
            self.stream.write(line if bar else text)
        self.shown = bar
        return len(text)


def guarded(main: Callable[[], int | None], ends: bool) -> None:
    """What `run_main` does, once the streams are set."""
    script = program()

    def fail(text: str, code: int = 2) -> None:
        if "tqdm" in sys.modules:  # what is said stands on a line of its own
            for bar in list(sys.modules["tqdm"].tqdm._instances):
                bar.close()
        print(f"{script}: {text}", file=sys.stderr)
        sys.exit(code)

    try:
        code = main()
        sys.stdout.flush()
        if ends or code is not None:
            sys.exit(code or 0)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (InputError, OSError) as error:  # OSError: a folder without rights
        text = str(error)
        try:
            sys.stdout.flush()
        except OSError as failed:
            error = failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
            # Files of ours are named by what writes them.
            text = f"standard output or a temporary file cannot be written ({error.strerror})"
        fail(f"error: {isolated(text)}")
    except BrokenProcessPool:
        fail("error: a worker process died, probably for lack of memory; try --workers 1")
    except (RuntimeError, MemoryError) as error:
        text = str(error).splitlines()[0] if str(error) else "out of memory"
        full = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(word in text.lower() for word in full):
            raise
        cure = "a smaller --batch or network, or --device cpu"
        fail(f"error: {text}; try {cure}")
    except KeyboardInterrupt:
        fail("interrupted", 130)
