"""Every number and path of the suite: typed, explained, checked. No torch, no numpy.

A field belongs to the group whose change it invalidates: `Signal` the cache, `Bandit` what a
Q-value means, `Network` the weights, `Learning` the run. Sources in the help texts: "slides" is the
published slide deck, "original" the authors' program where the slides are silent.
"""

import ast
import dataclasses
import difflib
import errno
import hashlib
import inspect
import json
import math
import os
import re
import signal
import sys
import textwrap
import threading
import time
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from itertools import pairwise
from multiprocessing import active_children, get_context
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from core.errors import InputError as InputError
from core.files import whole as whole
from core.files import write_text as write_text
from core.names import isolated

SUPERVISED = ("classifier", "rewards")  # methods that learn from labels, without trying
PresetName = Literal["slides", "original", "demo", "best"]
Device = Literal["auto", "cpu", "cuda"]


def needed(module: str, script: str) -> ModuleType:
    """Import a module of requirements-studies.txt; InputError where it is not installed.

    `script` is the file that the user started, for the message.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        cure = "run: pip install -r requirements-studies.txt"
        raise InputError(f"{Path(script).name} needs {error.name}; {cure}") from None


# ---------------------------------------------------------------------------- checked fields


LARGEST = 1_000_000_000  # of a number without a limit of its own: more is a slip, or fills memory
MOST_SEED = 2**63 - 1
MOST_PROCESSES = 1024  # and threads
MOST_CLIPS = 1_000_000
MOST_BATCH = 1_000_000
MOST_LANES = 100_000


def number(default: Any, low: float = -LARGEST, high: float = LARGEST, *, above: float = -math.inf):
    """A numeric field with its allowed range: `low <= value <= high` and `value > above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def split_name(default: Any):
    """A field that names a split: the plain name of a folder, no path."""
    return field(default=default, metadata={"split": True})


def require(ok: bool, flag: str, rule: str, value: Any) -> None:
    """Raise ValueError naming flag, rule and value unless `ok`."""
    if not ok:
        raise ValueError(f"--{flag} must be {rule} but {str(value)[:200]} was given")


UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # tabs, line breaks, ..


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


class Checked:
    """Base of every config class: checks `number` and `split_name` fields after construction.

    A constant (ClassVar) is stored with the fields, as one that was a field once: caches,
    checkpoints and their keys stay what they were.
    """

    GROUP: ClassVar[str] = ""
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> `field` or `group.field` -> default
    NOT_MINE: ClassVar[tuple[str, ...]] = ()  # keys of presets that are other scripts'

    @classmethod
    def with_preset(cls, name: str) -> Any:
        """Default instance under a preset."""
        changes: dict[str, dict[str, Any]] = {"": {"preset": name}}
        names = {spec.name for spec in fields(cls)}
        for key, value in cls.PRESETS[name].items():
            group, _, leaf = key.rpartition(".")
            if group in names or (not group and leaf in names - {*cls.NOT_MINE}):
                changes.setdefault(group, {})[leaf] = value
        base = cls()
        for group in [key for key in changes if key]:
            changes[""][group] = dataclasses.replace(getattr(base, group), **changes[group])
        return dataclasses.replace(base, **changes[""])

    def flag(self, name: str) -> str:
        """Command-line spelling of a field, e.g. `bandit.num-actions`."""
        return (f"{self.GROUP}." if self.GROUP else "") + name.replace("_", "-")

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if "split" in spec.metadata and value is not None:
                plain = not name_flaw(value, path=True) and "/" not in value and value[0] != "."
                rule = "the plain name of a folder, e.g. train,"
                require(plain, self.flag(spec.name), rule, repr(value))
            if "low" not in spec.metadata or value is None:
                continue
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            finite = real and (isinstance(value, int) or math.isfinite(value))
            require(finite, self.flag(spec.name), "a finite number", value)
            low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
            rules = [f"at least {low:g}"] * (low > -LARGEST or value < low)
            rules += [f"above {above:g}"] * math.isfinite(above)
            rules += [f"at most {high:g}"] * (high < LARGEST or value > high)
            rule = " and ".join(rules)
            require(low <= value <= high and value > above, self.flag(spec.name), rule, value)


# ---------------------------------------------------------------------------- shared groups


@dataclass(frozen=True, kw_only=True)
class Signal(Checked):
    """Loudness and score -> probability and base threshold; a change needs a new cache."""

    GROUP: ClassVar[str] = "signal"
    loudness: Literal["channels", "original"] = "channels"
    """all channels, or mono at 32 kHz (original)"""
    rms_window_s: ClassVar[float] = 0.064  # original: librosa, 2048 samples at 32 kHz
    rms_hop_s: ClassVar[float] = 0.016  # original: 512 samples at 32 kHz
    clip_percentile: float = number(95.0, above=0, high=100)
    """upper limit of loudness, score, probability (slides)"""
    score_median_s: ClassVar[float] = 0.1  # k1, first median filter; original: 5 frames of 20 ms
    score_median2_s: ClassVar[float] = 0.16  # k2, second one; original: 8 frames
    score_power: ClassVar[float] = 2.2  # of the sharpened score; slides
    score_mix: float = number(0.7, 0, 1)
    """share of the filtered score in D_adj (slides)"""
    fusion: Literal["product", "harmonic"] = "product"
    """r * D_adj (slides) or 2 / (1/r + 1/D_adj) (original)"""
    prob_sigma_s: ClassVar[float] = 0.04  # Gaussian over the probability; slides: 2 frames
    background_s: ClassVar[float] = 4.0  # median filter of the loudness; slides: 200 frames
    background_sigma_s: ClassVar[float] = 0.06  # over background and anti-mask; slides: 3 frames
    beta: float = number(1.2, above=0, high=100)
    """exponent of the anti-mask (1 - D_adj)^beta (original)"""
    flat_fallback: bool = True
    """flat score: loudness alone (original)"""
    flat_range: float = number(0.03, 0, 1)
    """largest max - min of a flat score (original)"""


@dataclass(frozen=True, kw_only=True)
class Bandit(Checked):
    """State, actions and rewards; a change gives Q-values another meaning."""

    GROUP: ClassVar[str] = "bandit"
    context: int = number(10, 0, 200)
    """frames on each side of the centre (slides)"""
    num_actions: int = number(21, 3, 127)
    """threshold steps, odd (slides)"""
    max_delta: float = number(0.2, above=0, high=1)
    """largest threshold shift, probability (slides)"""
    boundary_width: float = number(0.2, above=0, high=1)
    """stored if |prob - threshold| is at most this (slides)"""
    boundary_test: Literal["before", "after"] = "before"
    """test before acting (slides) or after (original)"""
    reading: Literal["independent", "sequential"] = "independent"
    """past decisions: no (slides), yes (original)"""
    channel_order: Literal["slides", "original"] = "slides"
    """rms or d_raw first"""
    reward_keep: ClassVar[float] = 0.2  # right stays right; rewards: slides
    reward_break: ClassVar[float] = -1.0  # right becomes wrong
    reward_miss: ClassVar[float] = -0.2  # wrong stays wrong
    reward_fix: ClassVar[float] = 1.0  # wrong becomes right

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = "odd, so that a shift of 0.0 is one of the actions"
        require(self.num_actions % 2 == 1, self.flag("num_actions"), odd, self.num_actions)
        # Beyond it no action matters, none is chosen, and replay would see action 0.0 only.
        width = self.boundary_width
        rule = f"at most bandit.max-delta = {self.max_delta:g} in the independent reading"
        fits = self.reading == "sequential" or width <= self.max_delta
        require(fits, self.flag("boundary_width"), rule, width)

    @property
    def window(self) -> int:
        """W, frames in a state."""
        return 2 * self.context + 1

    @property
    def deltas(self) -> tuple[float, ...]:
        """Threshold shift of each action, rising, 0.0 in the middle."""
        half = self.num_actions // 2
        return tuple(self.max_delta * (i - half) / half for i in range(self.num_actions))

    @property
    def no_change(self) -> int:
        """Index of the action that leaves the threshold alone."""
        return self.num_actions // 2

    @property
    def channels(self) -> tuple[str, ...]:
        """Signal names in the order in which the network sees them."""
        if self.channel_order == "original":
            return ("d_raw", "d_adj", "prob", "rms", "t_base", "binary")
        return ("rms", "d_raw", "d_adj", "prob", "t_base", "binary")


@dataclass(frozen=True, kw_only=True)
class Network(Checked):
    """Sizes of the Q-network; a change gives other weights."""

    GROUP: ClassVar[str] = "network"
    hidden: int = number(128, 4, 4096)
    """TCN channels, GRU units per direction (slides)"""
    tcn_layers: int = number(4, 1, 8)
    """convolutions, dilation 1, 2, 4, .. (slides)"""
    tcn_kernel: ClassVar[int] = 3  # frames, odd: the frame stays in the middle; original
    tcn_groups: int = number(4, 1)
    """groups of the group normalisation (original)"""
    gru_layers: int = number(2, 1, 8)
    """bidirectional GRU layers (slides)"""
    transformer_layers: int = number(2, 1, 16)
    """Transformer encoder layers (slides)"""
    heads: int = number(4, 1)
    """attention heads (original)"""
    feedforward: ClassVar[int] = 2  # inner width / width; original: 512 / 256
    dropout: float = number(0.1, 0, 0.9)
    """dropout of the Transformer (original)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = f"a divisor of network.hidden = {self.hidden}"
        require(
            self.hidden % self.tcn_groups == 0, self.flag("tcn_groups"), groups, self.tcn_groups
        )
        heads = f"a divisor of the Transformer's width {self.width} (2 x network.hidden)"
        require(self.width % self.heads == 0, self.flag("heads"), heads, self.heads)

    @property
    def width(self) -> int:
        """Transformer width: both GRU directions."""
        return 2 * self.hidden

    @property
    def inner(self) -> int:
        """Width of the Transformer's feed-forward layers."""
        return self.feedforward * self.width


@dataclass(frozen=True, kw_only=True)
class Learning(Checked):
    """Training of the Q-network."""

    GROUP: ClassVar[str] = "learning"
    lr: float = number(1e-4, above=0, high=1)
    """Adam's learning rate, constant (slides)"""
    batch: int = number(32, 1, MOST_BATCH)
    """transitions in a gradient step (slides)"""
    frames_per_step: int = number(32, 1)
    """frames for each gradient step (original)"""
    lanes: int = number(32, 1, MOST_LANES)
    """pairs that advance together"""
    replay: int = number(50_000, 1, 100_000_000)
    """transitions kept (slides)"""
    train_start: int = number(2_000, 1)
    """transitions stored before learning (slides)"""
    epsilon_start: float = number(1.0, 0, 1)
    """first exploration rate (slides)"""
    epsilon_end: float = number(0.05, 0, 1)
    """last exploration rate (slides)"""
    epsilon_fraction: ClassVar[float] = 0.7  # of the episodes; slides: 20,000 of 28,592
    epsilon_episodes: int | None = number(None, 1)
    """episodes of decay (default: 70 %; original: 20,000)"""
    episode_order: Literal["shuffled", "sorted"] = "shuffled"
    """by seed, or by file name (original)"""
    acting: Literal["eval", "dropout"] = "eval"
    """dropout while acting: off, or on (original)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"at most learning.epsilon-start = {self.epsilon_start:g}"
        require(
            self.epsilon_end <= self.epsilon_start, self.flag("epsilon_end"), rule, self.epsilon_end
        )

    def check_replay(self) -> None:
        """ValueError where the replay memory suits neither the lanes nor the batch."""
        rule = f"at least learning.lanes = {self.lanes} (one tick may store that many)"
        require(self.replay >= self.lanes, self.flag("replay"), rule, self.replay)
        rule = f"below learning.replay = {self.replay} (learning would never start)"
        require(self.train_start < self.replay, self.flag("train_start"), rule, self.train_start)
        rule = f"at least learning.batch = {self.batch}"
        require(self.train_start >= self.batch, self.flag("train_start"), rule, self.train_start)


@dataclass(frozen=True, kw_only=True)
class Events(Checked):
    """Networks, training and decision of `--method events`."""

    GROUP: ClassVar[str] = "events"
    folds: ClassVar[int] = 4  # groups of clips that are left out, if no bank folds are known
    members: int = number(1, 1, 16)
    """networks for each left-out group"""
    tag_limit: float = number(0.03, 0, 1)
    """clip-level score up to which a query is empty"""
    class_context: bool = True
    """a vector for each class"""
    hidden: int = number(32, 4, 4096)
    """width of the frame network"""
    layers: int = number(7, 1, 12)
    """convolutions, dilation 1, 2, 4, .."""
    kernel: ClassVar[int] = 3  # steps of 40 ms, odd: the step stays in the middle
    dropout: ClassVar[float] = 0.1  # behind each layer, of frames and of boxes
    batch: int = number(32, 1)
    """queries in a gradient step"""
    lr: float = number(3e-3, above=0, high=1)
    """peak learning rate (AdamW, one-cycle)"""
    weight_decay: ClassVar[float] = 1e-2  # of AdamW
    box_hidden: ClassVar[int] = 64  # width of the two layers that value a box
    box_passes: ClassVar[float] = 2.5  # passes over the boxes for each pass over the queries
    box_batch: int = number(256, 1)
    """boxes in a gradient step"""
    frame_weight: ClassVar[float] = 1.0  # of the frame F1; the other weights are relative to it
    micro_weight: float = number(0.5, 0)
    """weight of micro-F1 over frames"""
    collar_weight: float = number(1.0, 0)
    """weight of event F1 (collars)"""
    overlap_weight: float = number(1.0, 0)
    """weight of intersection F1"""


# ---------------------------------------------------------------------------- one class a script


def check_classes(names: tuple[str, ...]) -> None:
    """ValueError where a name of --classes cannot be written into a table."""
    for name in names:
        require(not name_flaw(name), "classes", "names of classes", repr(name))


def check_map(texts: tuple[str, ...]) -> None:
    """ValueError where one is not SCORES=LABELS, or names a class twice."""
    for text in texts:
        name, _, label = text.partition("=")
        require(bool(name and label), "map", "SCORES=LABELS, e.g. dog=Dog,", text)
        require(not name_flaw(label), "map", "SCORES=LABELS with a name", repr(text))
    names = [text.partition("=")[0] for text in texts]
    once = len(set(names)) == len(names)
    require(once, "map", "given once for each class of the scores", " ".join(texts))


# Dotted field name -> value; a key counts for every script class that has such a field.
PRESETS: dict[str, dict[str, Any]] = {
    "slides": {},
    # What produced the published numbers, where it differs from what the slides say.
    "original": {
        "run": Path("runs/original"),
        "policy": Path("runs/original/best.pt"),
        "cache": Path("cache/original"),
        "signal.fusion": "harmonic",
        "signal.loudness": "original",
        "bandit.reading": "sequential",
        "bandit.boundary_test": "after",
        "bandit.channel_order": "original",
        "learning.episode_order": "sorted",
        "learning.acting": "dropout",
        "learning.epsilon_episodes": 20_000,
    },
    # A small run that shows the whole path on two CPU cores within ten minutes.
    "demo": {
        "run": Path("runs/demo"),
        "policy": Path("runs/demo/best.pt"),
        "cache": Path("cache/demo"),
        "corpus": Path("data/demo"),
        "out": Path("data/demo"),
        "train_clips": 200,
        "validation_clips": 100,
        "network.hidden": 32,
        "learning.lr": 1e-3,
    },
    # Not the slides: boxes instead of frames. Trained on a cache of all pairs.
    "best": {
        "run": Path("runs/best"),
        "policy": Path("runs/best/best.pt"),
        "method": "events",
        "looks": 1,
        "holdout": 0.0,  # the learning-rate schedule ends the run: its last policy is taken
    },
}


class Script(Checked):
    """Base of the config classes that a preset sets."""

    PRESETS = PRESETS
    NOT_MINE = ("out",)  # it follows from the run folder


@dataclass(frozen=True, kw_only=True)
class SoundscapesConfig(Script):
    """Make a strongly labelled corpus: timeline + sound bank -> audio, labels, clip list."""

    NOT_MINE: ClassVar[tuple[str, ...]] = ()

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    out: Path = Path("data/builtin")
    """corpus folder to write"""
    bank: Path | None = None
    """sound bank, a folder a class (default: the built-in synthesiser)"""
    class_map: Path | None = None
    """TSV `event_label, bank_class` (default: equal names)"""
    train_timeline: Path | None = None
    """DESED TSV of training events (default: random)"""
    validation_timeline: Path | None = None
    """DESED TSV of validation events (default: random)"""
    train_clips: int = number(240, 1, MOST_CLIPS)
    """training clips"""
    validation_clips: int = number(120, 1, MOST_CLIPS)
    """validation clips"""
    validation_fold: int = number(5, 1)
    """bank fold of the validation clips; the others train"""
    clip_s: float = number(10.0, 0.5, 3600)
    """clip length, seconds (DESED: 10)"""
    snr_min_db: float = number(0.0, -40, 60)
    """softest event above the background, dB"""
    snr_max_db: float = number(25.0, -40, 60)
    """loudest event above the background, dB"""
    seed: int = number(0, 0, MOST_SEED)
    """seed of the whole corpus"""
    workers: int | None = number(None, 1, MOST_PROCESSES)
    """processes (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"at least snr-min-db = {self.snr_min_db:g}"
        require(self.snr_max_db >= self.snr_min_db, self.flag("snr_max_db"), rule, self.snr_max_db)


@dataclass(frozen=True, kw_only=True)
class ScorersConfig(Script):
    """Train the built-in scorer on a corpus, cross-fitted over bank folds; write score files."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    corpus: Path = Path("data/builtin")
    """corpus folder of soundscapes.py"""
    convert: Path | None = None
    """instead: scores (TSVs or NPZ) to write in the other form"""
    out: Path | None = None
    """with --convert: NAME.npz, or a folder for TSVs"""
    epochs: int = number(12, 1)
    """passes over the training clips for each fit"""
    lr: float = number(4e-3, above=0, high=1)
    """peak learning rate (Adam, one-cycle)"""
    batch: int = number(8, 1, MOST_BATCH)
    """clips in a gradient step"""
    channels: int = number(24, 4, 1024)
    """width of the CRNN's first convolution"""
    seed: int = number(0, 0, MOST_SEED)
    """weights, order, augmentation"""
    workers: int | None = number(None, 1, MOST_PROCESSES)
    """processes, a fit each (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = (self.convert is None) == (self.out is None)
        given = self.convert if self.out is None else self.out
        require(both, "convert", "given together with --out", given)


@dataclass(frozen=True, kw_only=True)
class DasmEmbedConfig(Checked):
    """Class names -> text queries of DASM, by the text encoder of MGA-CLAP."""

    classes_from: Path | None = None
    """label TSV with the classes"""
    query_file: Path | None = None
    """instead: a class a line, after a tab its prompt"""
    prompt_style: Literal["spaces", "raw"] = "spaces"
    """words of a class name, or the name itself (original)"""
    mga_clap: Path
    """root of an MGA-CLAP checkout"""
    mga_weights: Path
    """MGA-CLAP's model.pt"""
    bert: Path
    """bert-base-uncased: config.json and vocabulary"""
    trust_pickle: bool = False
    """load weights that hold Python objects (can run code)"""
    out: Path = Path("queries.pt")
    """file to write: classes, prompts, vectors"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int | None = number(None, 1, MOST_PROCESSES)
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.classes_from is None) != (self.query_file is None)
        rule = "given, or --query-file instead of it,"
        require(one, self.flag("classes_from"), rule, "both" if self.query_file else "neither")


@dataclass(frozen=True, kw_only=True)
class DasmScoreConfig(Checked):
    """Audio -> frame and clip-level scores by DASM, for the classes of a query file."""

    dasm_repo: Path
    """root of a Transformer4SED checkout"""
    dasm_config: Path
    """config.yaml beside the weights (text_query)"""
    dasm_weights: Path
    """text-query checkpoint of DASM"""
    queries: Path = Path("queries.pt")
    """file of `dasm.py embed`"""
    audio: Path
    """folder of recordings; DESED: the original 44.1 kHz"""
    labels: Path | None = None
    """label TSV of clips and classes (default: the whole folder)"""
    out: Path
    """folder to write, for `preprocess.py --scores`"""
    temperature: float = number(0.5, above=0)
    """divisor of the logits before the sigmoid (original)"""
    batch: int = number(4, 1, MOST_BATCH)
    """clips in a forward pass"""
    cut_long: bool = False
    """score only the first 10 s of longer recordings"""
    allow_missing: bool = False
    """leave out clips without readable audio"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int | None = number(None, 1, MOST_PROCESSES)
    """CPU threads (default: all cores)"""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Script):
    """Audio + scores + labels -> the six signals -> cache/<split>."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    cache: Path = Path("cache")
    """folder of the caches, a folder a split"""
    corpus: Path = Path("data/builtin")
    """corpus folder, unless --labels is given"""
    split: str | None = split_name(None)
    """train or validation (default: both)"""
    labels: Path | None = None
    """label TSV (filename, onset, offset, event_label), or folder"""
    audio: Path | None = None
    """audio folder (default: none, loudness is 1)"""
    scores: Path | None = None
    """score folder (TSV a clip: onset, offset, classes), or NPZ"""
    validation_share: float | None = number(None, above=0, high=0.9)
    """share of the labelled clips drawn for validation"""
    seed: int = number(0, 0)
    """seed of --validation-share"""
    clips: Path | None = None
    """table of clips: filename with split or recording"""
    cut_scores: bool = False
    """cut scores at the end of the audio"""
    map: tuple[str, ...] = ()
    """class names, SCORES=LABELS, e.g. dog=Dog"""
    pairs: Literal["present", "all"] = "present"
    """classes queried for a clip (slides: present)"""
    classes: tuple[str, ...] = ()
    """more classes to query, with --pairs all"""
    import_npz: Path | None = None
    """NPZ files of the original program, instead of audio and scores"""
    import_frame_s: float = number(0.02, 1e-4, 3600)
    """frame length of imported files, seconds"""
    allow_missing: bool = False
    """leave out clips without readable audio or scores"""
    replace: bool = False
    """replace a cache of other inputs"""
    workers: int | None = number(None, 1, MOST_PROCESSES)
    """processes (default: all cores)"""
    signal: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "used together with --pairs all"
        require(not self.classes or self.pairs == "all", "classes", rule, self.classes)
        check_classes(self.classes)
        if self.labels is None:
            given = ("audio", "scores", "map", "import_npz", "validation_share", "clips")
            for name in given:
                value = getattr(self, name)
                require(not value, self.flag(name), "given together with --labels", value)
            return
        drawn = self.validation_share is not None or self.clips is not None
        rule = "given with --labels (or --validation-share, or --clips, instead of it)"
        require((self.split is not None) != drawn, "split", rule, self.split)
        seeded = self.validation_share is not None or self.seed == 0
        require(seeded, "seed", "given together with --validation-share", self.seed)
        heard = self.audio is not None or not self.cut_scores
        require(heard, "cut-scores", "given together with --audio", self.audio)
        if self.import_npz is None:
            rule = "given with --labels (or --import-npz instead of --audio and --scores)"
            require(self.scores is not None, "scores", rule, None)
        else:
            rule = "present with --import-npz, which has no other pairs,"
            require(self.pairs == "present", "pairs", rule, self.pairs)
            for name in ("audio", "scores", "map"):
                value = getattr(self, name)
                require(not value, name, "left out with --import-npz", value)
        check_map(self.map)

    @property
    def rename(self) -> dict[str, str]:
        """Class name in the scores -> class name in the labels."""
        return dict(text.split("=", 1) for text in self.map)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Script):
    """Train the threshold policy on cache/train and write a run folder."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    cache: Path = Path("cache")
    """folder of the caches"""
    split: str = split_name("train")
    """cache to train on"""
    run: Path = Path("runs/slides")
    """run folder to write"""
    passes: int | None = number(None, 1)
    """passes over the pairs (default: slides 1, events 6; more of few)"""
    holdout: float = number(0.1, 0, 0.9)
    """share of training clips held out to choose best.pt"""
    looks: int = number(10, 1)
    """evaluations on the held-out clips"""
    checkpoint_every: int = number(2_000, 1)
    """episodes between numbered checkpoints (original)"""
    checkpoint_minutes: float = number(5.0, above=0)
    """minutes between writes of last.pt"""
    resume: bool = False
    """go on from last.pt"""
    overwrite: bool = False
    """replace an earlier run"""
    init: Path | None = None
    """checkpoint with the initial weights"""
    digest: Path | None = None
    """print the hash of a checkpoint and stop"""
    status: Path | None = None
    """print the state of a run and stop"""
    seed: int = number(0, 0, MOST_SEED)
    """weights, exploration, replay, episode order"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int = number(1, 1, MOST_PROCESSES)
    """CPU threads; the number changes rounding"""
    cuda_steps: Literal["auto", "plain", "graphs", "graphs-bf16"] = "auto"
    """gradient steps on a GPU"""
    method: Literal["windowed", "events", "classifier", "rewards"] = "windowed"
    """frames (slides), events, or a supervised baseline"""
    bandit: Bandit = field(default_factory=Bandit)
    network: Network = field(default_factory=Network)
    learning: Learning = field(default_factory=Learning)
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.resume and self.overwrite), "resume", "used without --overwrite", "both")
        apart = self.init is None or self.init.resolve().parent != self.run.resolve()
        require(apart, self.flag("init"), f"outside --run {self.run}, which is written,", self.init)
        graphs = self.device != "cpu" or self.cuda_steps in ("auto", "plain")
        require(graphs, self.flag("cuda_steps"), "auto or plain on a CPU", self.cuda_steps)
        graphs = self.method == "windowed" or self.cuda_steps == "auto"
        require(
            graphs, self.flag("cuda_steps"), f"auto with --method {self.method}", self.cuda_steps
        )
        # No flag that does nothing: each method has its own.
        own = {"events": ("events",)}
        own |= dict.fromkeys(("windowed", *SUPERVISED), ("network", "learning"))
        groups = {name: type(getattr(self, name))() for each in own.values() for name in each}
        unused = {
            name: (getattr(self, name), default)
            for name, default in groups.items()
            if name not in own[self.method]
        }
        if self.method == "windowed":
            self.learning.check_replay()
        if self.method in SUPERVISED:
            reading = self.bandit.reading
            rule = f"independent with --method {self.method}"
            require(reading == "independent", "bandit.reading", rule, reading)
            rule = f"left alone with --method {self.method}, which tries nothing out,"
            for spec in fields(Learning):
                given = getattr(self.learning, spec.name)
                alone = spec.name in ("lr", "batch", "frames_per_step") or given == spec.default
                require(alone, self.learning.flag(spec.name), rule, given)
        if self.method == "events":
            unused["bandit"] = (self.bandit, Bandit())
        for name, (given, default) in unused.items():
            rule = f"left alone with --method {self.method}, which has no such part,"
            require(given == default, f"{name}.*", rule, "another value")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Script):
    """Accuracy, IoU and F1 of a policy before and after, with baselines; tables of many."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    run: Path = Path("runs/slides")
    """run folder: best.pt is read, results are written"""
    checkpoint: Path | None = None
    """instead: a checkpoint, or dqn_threshold.pt (original)"""
    out: Path | None = None
    """folder of the results (default: the run folder)"""
    cache: Path = Path("cache")
    """folder of the caches"""
    split: str = split_name("validation")
    """cache to report on"""
    train_split: str = split_name("train")
    """cache to tune the baselines on"""
    compare: tuple[str, ...] = ()
    """systems of one table: PATH, NAME=PATH, NAME=SEED0,SEED1 or rules"""
    workers: int | None = number(None, 1, MOST_PROCESSES)
    """processes of the event metrics (default: all cores)"""
    full: bool = False
    """print every class and baseline"""
    other_classes: bool = False
    """apply a policy to entirely new classes"""
    batch: int | None = number(None, 1, MOST_BATCH)
    """frames in a forward pass (default: measured)"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int = number(1, 1, MOST_PROCESSES)
    """CPU threads"""

    def __post_init__(self) -> None:
        super().__post_init__()
        apart = self.checkpoint is None or self.out is not None
        require(apart, self.flag("out"), "given together with --checkpoint", self.out)
        alone = not self.compare or self.checkpoint is None
        require(alone, "checkpoint", "left out with --compare", self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class DetectConfig(Script):
    """Unlabelled recordings (or their scores) in, sound events out, with a trained policy."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    policy: Path = Path("runs/slides/best.pt")
    """checkpoint, or dqn_threshold.pt (original)"""
    audio: Path | None = None
    """recording or folder (default: none, scores alone)"""
    scores: Path | None = None
    """scores of the recordings (default: the built-in scorer)"""
    map: tuple[str, ...] = ()
    """class names, SCORES=EVENTS, e.g. dog=Dog"""
    scorer: Path | None = None
    """scorer.pt (default: of the policy's corpus)"""
    cut_scores: bool = False
    """cut scores at the end of the audio"""
    classes: tuple[str, ...] = ()
    """classes to look for (default: all scored ones)"""
    out: Path = Path("events.tsv")
    """event TSV to write"""
    audacity: Path | None = None
    """folder of Audacity label files to write"""
    gate: bool = True
    """close classes of a low clip-level score"""
    block_s: float | None = number(None, 0.5, 3600)
    """block of a long recording, seconds (default: a training clip)"""
    other_classes: bool = False
    """apply a policy to entirely new classes"""
    min_duration: float = number(0.0, 0)
    """shortest event, seconds"""
    merge_gap: float = number(0.0, 0)
    """longest gap that is closed, seconds"""
    min_confidence: float = number(0.0, 0, 1)
    """lowest confidence, of a policy over events"""
    batch: int = number(256, 1, MOST_BATCH)
    """frames in a forward pass"""
    device: Device = "auto"
    """auto: CUDA if present"""
    threads: int = number(1, 1, MOST_PROCESSES)
    """CPU threads"""

    def __post_init__(self) -> None:
        super().__post_init__()
        apart = self.scores is None or self.scorer is None
        require(apart, self.flag("scorer"), "left out with --scores", self.scorer)
        unused = self.map and self.scores is None
        require(not unused, self.flag("map"), "given together with --scores", self.map)
        both = self.audio is not None and self.scores is not None
        rule = "given together with --audio and --scores"
        require(both or not self.cut_scores, self.flag("cut_scores"), rule, self.cut_scores)
        check_map(self.map)
        check_classes(self.classes)

    @property
    def rename(self) -> dict[str, str]:
        """Class name in the scores -> class name in the events."""
        return dict(text.split("=", 1) for text in self.map)


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig(Script):
    """The slides' figures from a run folder and its cache."""

    preset: PresetName = "slides"
    """set of defaults; other flags win"""
    run: Path = Path("runs/slides")
    """run folder, evaluated"""
    cache: Path = Path("cache")
    """folder of the caches"""
    out: Path | None = None
    """folder of the PNG files (default: figures/ in the run folder)"""
    table: Path | None = None
    """instead: folder of a comparison"""
    clip: str | None = None
    """one pair only: its file name"""
    event_label: str | None = None
    """one pair only: its label"""
    dpi: int = number(150, 30, 600)
    """resolution, dots per inch"""
    html: bool = False
    """write report/index.html as well"""
    beside: Path | None = None
    """second run folder, for the page"""
    pairs: int = number(100, 1)
    """pairs on the page"""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "given together with --clip"
        require(
            (self.clip is None) == (self.event_label is None), "event-label", rule, self.event_label
        )
        require(not (self.html and self.clip), "html", "used without --clip", self.clip)
        other = self.beside is None or (self.html and self.beside != self.run)
        require(other, "beside", "used with --html, and another folder than --run", self.beside)
        alone = self.table is None or not (self.html or self.clip)
        require(alone, "table", "used without --clip and --html", self.table)


# ---------------------------------------------------------------------------- presets


# ---------------------------------------------------------------------------- command line, JSON


def flag_in(args: list[str], flag: str) -> str | None:
    """Value of a flag before the command line is parsed: it chooses the defaults of the others."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        if arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def flags_of(cls: type, prefix: str = "--") -> dict[str, bool]:
    """Flags of a config class: whether each takes any number of values."""
    found: dict[str, bool] = {}
    for name, hint in typing.get_type_hints(cls).items():
        flag = f"{prefix}{name}".replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= flags_of(hint, f"{flag}.")
        elif typing.get_origin(hint) is not ClassVar:
            found[flag] = typing.get_origin(hint) is tuple and Ellipsis in typing.get_args(hint)
    return found


# What other tools call it: the first of ours that a script has is suggested.
ELSEWHERE = {
    "epochs": ("passes",),
    "epoch": ("passes", "epochs"),
    "lr": ("learning.lr", "events.lr"),
    "learning-rate": ("learning.lr", "events.lr", "lr"),
    "batch-size": ("learning.batch", "batch"),
    "gpu": ("device",),
    "cuda": ("device",),
    "num-workers": ("workers",),
    "jobs": ("workers",),
    "output": ("out", "run"),
    "output-dir": ("out", "run"),
    "input": ("audio", "labels", "run"),
    "model": ("policy", "checkpoint"),
    "ckpt": ("policy", "checkpoint", "init"),
    "weights": ("policy", "checkpoint", "init"),
    "data": ("cache", "corpus", "labels"),
    "data-dir": ("cache", "corpus", "labels"),
    "name": ("run",),
    "random-state": ("seed",),
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
        near += difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise InputError(f"{arg.partition('=')[0]}: no such flag; {hint}")


def flag_of(arg: str) -> str | None:
    """The flag that a word of the command line gives, `--no-gate` being `--gate`; None: a value."""
    if not re.match(r"--[A-Za-z]", arg):
        return None
    return re.sub(r"(^--|\.)no-", r"\1", arg.partition("=")[0].replace("_", "-"))


def once_each(args: list[str], many: set[str]) -> list[str]:
    """The command line with each flag once: those of `many` values add up.

    InputError where another flag is given twice: the parser would take the last one in silence.
    """
    command: list[str] = []  # what stands before the first flag
    given: dict[str, list[list[str]]] = {}  # flag -> the words of each time that it is given
    words = command
    for arg in args:
        flag = flag_of(arg)
        if flag is None:
            words.append(arg)
            continue
        name, equals, value = arg.partition("=")
        words = [name.replace("_", "-"), *[value] * bool(equals)]
        given.setdefault(flag, []).append(words)
    found = command
    for flag, times in given.items():
        if len(times) > 1 and flag not in many:
            both = " and ".join(" ".join(words) for words in times)
            raise InputError(f"{flag} is given {len(times)} times: {both}; give it once")
        found = found + times[0] + [word for words in times[1:] for word in words[1:]]
    return found


def metavar(hint: Any) -> str:
    """How a value of a type is written: INT, PATH, one|another, TEXT .. (any number)."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, kinds))
    if typing.get_origin(hint) is tuple:
        return " ".join(".." if kind is Ellipsis else metavar(kind) for kind in kinds)
    return "|".join(map(metavar, kinds)) or {str: "TEXT"}.get(hint, hint.__name__.upper())


def texts_of(cls: type) -> dict[str, str]:
    """Field -> the line that stands under it in the source."""
    texts = {}
    for base in (base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for name, text in pairwise(node.body):
            if isinstance(name, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[name.target.id] = text.value.value
    return texts


def option_lines(given: Any, prefix: str = "") -> list[str]:
    """A line for each option of a config class (or of an instance, which holds the defaults); each
    group behind them, under a line of its own."""
    cls = given if isinstance(given, type) else type(given)
    hints, texts, lines, groups = typing.get_type_hints(cls), texts_of(cls), [], []
    for spec in fields(cls):
        name, hint = prefix + spec.name.replace("_", "-"), hints[spec.name]
        value = spec.default
        if cls is not given:
            value = getattr(given, spec.name)
        elif spec.default_factory is not dataclasses.MISSING:
            value = spec.default_factory()
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
        kinds = {name: kind if isinstance(kind, type) else type(kind) for name, kind in cls.items()}
        lines = [f"  {name:<16} {summary(kind)}" for name, kind in kinds.items()]
        head = f"usage: {script} COMMAND [--OPTION VALUE ..]; options: COMMAND --help"
        return "\n".join([head, "", *lines])
    given = cls
    if isinstance(cls, dict):
        script, given = f"{script} {args[0]}", cls[args[0]]
    elif "preset" in [spec.name for spec in fields(cls)]:
        given = preset_of(cls, args)
    kind = given if isinstance(given, type) else type(given)
    head = f"usage: {script} [--OPTION VALUE ..]; defaults in brackets"
    return "\n".join([head, summary(kind), "", *option_lines(given)])


def preset_of(cls: type, args: list[str]) -> Any:
    """The defaults that a command line asks for; an unknown preset is the parser's to refuse."""
    name = flag_in(args, "--preset")
    return cls.with_preset(name if name in cls.PRESETS else next(iter(cls.PRESETS)))


def plain_words(text: str) -> list[str]:
    """The command line of a script without flags; `--help` prints `text`, its docstring.

    Raises InputError for a flag.
    """
    args = sys.argv[1:]
    if {"-h", "--help"} & set(args):
        print(text.strip())
        sys.exit(0)
    check_known(args, ())
    return args


def parse(cls: type | dict[str, Any], args: list[str] | None = None) -> Any:
    """Command line -> config; a bad flag or value is explained on stderr, exit code 2.

    A dictionary is a script with several commands: the first word says which class is meant. An
    instance in place of a class holds the defaults. Raises InputError for a flag given twice.
    """
    args = sys.argv[1:] if args is None else args
    if {"-h", "--help"} & set(args):
        print(help_text(cls, args))
        sys.exit(0)
    meant = cls.get(args[0] if args else "") if isinstance(cls, dict) else cls
    meant = meant if isinstance(meant, type) or meant is None else type(meant)
    if "--version" in args:
        from core.versions import versions  # torch takes seconds to import

        print("\n".join(f"{name}: {text}" for name, text in versions().items()))
        sys.exit(0)
    if meant:
        flags = flags_of(meant)
        check_known(args, flags)
        args = once_each(args, {flag for flag, several in flags.items() if several})
    elif isinstance(cls, dict):
        got = f"{args[0]} was given" if args else "none was given"
        raise InputError(f"a command is needed: {', '.join(cls)}; {got}")
    import tyro  # the only place that knows the parser; help and mistakes need not wait for it

    if isinstance(cls, dict):
        kinds = []
        for name, given in cls.items():
            kind = given if isinstance(given, type) else type(given)
            more = {} if kind is given else {"default": given}
            about = tyro.conf.subcommand(name, **more)
            kinds.append(typing.Annotated[kind, about])
        return tyro.cli(typing.Union[tuple(kinds)], args=args, prog=program())  # noqa: UP007
    if "preset" not in [spec.name for spec in fields(cls)]:
        return tyro.cli(cls, args=args)
    return tyro.cli(cls, default=preset_of(cls, args), args=args)


_parsed: list[Any] = []  # by `parse_first`, for `run_script`


def parse_first(cls: type | dict[str, Any], answer: Callable[[Any], bool] | None = None) -> None:
    """Parse the command line of a script that is run, before it imports torch, which takes seconds:
    help, mistakes, and what `answer` does (True: all is done) end here."""

    def parsed() -> int | None:
        _parsed[:] = [parse(cls)]
        return 0 if answer is not None and answer(_parsed[0]) else None

    run_main(parsed, ends=False)


def run_script(cls: type | dict[str, Any], main: Callable[[Any], int | None]) -> None:
    """Run with the parsed command line."""
    run_main(lambda: main(_parsed.pop() if _parsed else parse(cls)))


def program() -> str:
    """What the user started: `DQN.py`, or `python -m studies.classic`."""
    script, spec = Path(sys.argv[0]).name, getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.parent}" if script == "__main__.py" and spec else script


def run_main(main: Callable[[], int | None], ends: bool = True) -> None:
    """Run, and turn a user's mistake or a failing disk into one line and exit code 2.

    Without `ends`, what returns no exit code goes on.
    """
    script = program()

    def fail(text: str, code: int = 2) -> None:
        close_bars()
        print(f"{script}: {text}", file=sys.stderr)
        sys.exit(code)

    if os.environ.pop(ENDS_WITH_PARENT, None):
        end_with(os.getppid())
    if not sys.stderr.isatty():  # in a log a line a minute is enough; tqdm reads it when imported
        os.environ.setdefault("TQDM_MININTERVAL", "60")
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


def close_bars() -> None:
    """End the line of every open progress bar: what is said next stands on one of its own."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def stored_hints(cls: type) -> dict[str, Any]:
    """Type of each field and constant of a config, in the order in which they are written."""
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name != "GROUP"}


def to_dict(cfg: Any) -> dict[str, Any]:
    """Config -> plain dictionary for JSON (paths become strings)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {name: plain(getattr(value, name)) for name in stored_hints(type(value))}
        return str(value) if isinstance(value, Path) else value

    return plain(cfg)


def _is_kind(value: Any, hint: Any) -> bool:
    """Whether a JSON value suits a field's type, e.g. `Path | None`."""
    json_types = {Path: (str,), float: (float, int)}
    kinds = typing.get_args(hint) or (hint,)
    return any(type(value) in json_types.get(kind, (kind,)) for kind in kinds)


def from_dict(cls: type, data: dict[str, Any]) -> Any:
    """Inverse of `to_dict`. Unknown and missing keys raise InputError with the nearest name, and so
    does another value of a constant."""
    if not isinstance(data, dict):
        raise InputError(f"{cls.__name__}: expected a dictionary, found {type(data).__name__}")
    hints = stored_hints(cls)
    names = [spec.name for spec in fields(cls)]
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{cls.__name__}: unknown key {key!r}{hint}")
    missing = [name for name in names if name not in data]
    if missing:
        raise InputError(f"{cls.__name__}: missing key {missing[0]!r}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        if typing.get_origin(hint) is ClassVar:
            fixed = getattr(cls, name)
            if type(value) not in (int, float) or value != fixed:
                text = f"{name} is fixed at {fixed} in this version, not {value!r}"
                raise InputError(f"{cls.__name__}: {text}")
            continue
        if dataclasses.is_dataclass(hint):
            value = from_dict(hint, value)
        elif typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise InputError(
                    f"{cls.__name__}: {name} must be one of {typing.get_args(hint)}, not {value!r}"
                )
        elif typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
            (kind, _) = typing.get_args(hint)  # tuple[kind, ...]: JSON has lists only
            if not all(_is_kind(item, kind) for item in value):
                raise InputError(f"{cls.__name__}: {name} must hold {kind.__name__}, not {value!r}")
            value = tuple(value)
        elif not _is_kind(value, hint):
            kind = getattr(hint, "__name__", hint)
            raise InputError(f"{cls.__name__}: {name} must be of type {kind}, not {value!r}")
        elif value is not None and Path in (hint, *typing.get_args(hint)):
            value = Path(value)
        values[name] = value
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{cls.__name__}: {error}") from None


def config_key(*groups: Any) -> str:
    """Short hash of config groups; equal keys mean interchangeable artefacts."""
    text = json.dumps([to_dict(group) for group in groups], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def num_cores() -> int:
    """Cores that this process may run on; only Linux knows of fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_workers(workers: int | None) -> int:
    """Processes to use: the given number, else one a core, shared with the others that torchrun
    started on this machine."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return workers or max(1, num_cores() // together)


ENDS_WITH_PARENT = "ENDS_WITH_PARENT"  # set for a script that another one starts; see `run_main`
GRACE_S = 30.0  # for a training to save, as torchrun grants it


def end_with(parent: int, save: bool = False) -> None:
    """From now on this process ends with process `parent`, which started it: kill -9 included.

    A thread looks twice a second who the parent is now. With `save` it plays SIGTERM first, which
    a training answers by writing its checkpoint.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if save:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(parent: int, initializer: Callable[[], None] | None) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if initializer:
        initializer()


@contextmanager
def process_pool(
    workers: int, initializer: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Spawned worker processes that end with the parent: an error, Ctrl-C or kill -9 stops them.

    Forking after threads were started can deadlock, so they are spawned.
    """
    start = partial(_start_worker, os.getpid(), initializer)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
            process.join()  # it may be writing where the caller cleans up next
        raise
    pool.shutdown()


WAITING = 4  # tasks a core that are handed to a pool before their turn


def in_order(
    pool: ProcessPoolExecutor, work: Callable[[Any], Any], tasks: Iterable[Any]
) -> Iterator[Any]:
    """`pool.map`, but tasks are made and results held a few at a time, however many there are."""
    waiting: deque[Future] = deque()
    for task in tasks:
        if len(waiting) == WAITING * num_cores():
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, task))
    while waiting:
        yield waiting.popleft().result()
