"""Every number and path of the suite: typed, explained, checked. No torch, no numpy.

A field belongs to the group whose change it invalidates: `Signal` the cache, `Bandit` what a
Q-value means, `Network` the weights, `Learning` the run. Sources in the help texts: "slides" is the
published slide deck, "original" the authors' program where the slides are silent.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from core.names import name_flaw
from core.settings import (
    MOST_BATCH,
    MOST_CLIPS,
    MOST_LANES,
    MOST_PROCESSES,
    MOST_SEED,
    Checked,
    number,
    require,
    split_name,
)

# For the scores of any detector; made by `python -m studies.pretrain`.
PRETRAINED = Path(__file__).resolve().parent / "policy" / "pretrained.pt"
SUPERVISED = ("classifier", "rewards")  # methods that learn from labels, without trying
PresetName = Literal["slides", "original", "demo", "best"]
Device = Literal["auto", "cpu", "cuda"]


def check(cfg: Checked, ok: bool, name: str, rule: str) -> None:
    """ValueError naming a field's flag, the rule and the value unless `ok`."""
    require(ok, cfg.flag(name), rule, getattr(cfg, name))


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
    score_mix: float = number(0.7, 0, 1)  # share of the filtered score in D_adj (slides)
    fusion: Literal["product", "harmonic"] = "product"
    """r * D_adj (slides) or 2 / (1/r + 1/D_adj) (original)"""
    prob_sigma_s: ClassVar[float] = 0.04  # Gaussian over the probability; slides: 2 frames
    background_s: ClassVar[float] = 4.0  # median filter of the loudness; slides: 200 frames
    background_sigma_s: ClassVar[float] = 0.06  # over background and anti-mask; slides: 3 frames
    beta: float = number(1.2, above=0, high=100)
    """exponent of the anti-mask (1 - D_adj)^beta (original)"""
    flat_fallback: bool = True  # flat score: loudness alone (original)
    flat_range: float = number(0.03, 0, 1)  # largest max - min of a flat score (original)


@dataclass(frozen=True, kw_only=True)
class Bandit(Checked):
    """State, actions and rewards; a change gives Q-values another meaning."""

    GROUP: ClassVar[str] = "bandit"
    context: int = number(10, 0, 200)  # frames on each side of the centre (slides)
    num_actions: int = number(21, 3, 127)  # threshold steps, odd (slides)
    max_delta: float = number(0.2, above=0, high=1)  # largest threshold shift, probability (slides)
    boundary_width: float = number(0.2, above=0, high=1)
    """stored if |prob - threshold| is at most this (slides)"""
    boundary_test: Literal["before", "after"] = "before"
    """test before acting (slides) or after (original)"""
    reading: Literal["independent", "sequential"] = "independent"
    """past decisions: no (slides), yes (original)"""
    channel_order: Literal["slides", "original"] = "slides"  # rms or d_raw first
    reward_keep: ClassVar[float] = 0.2  # right stays right; rewards: slides
    reward_break: ClassVar[float] = -1.0  # right becomes wrong
    reward_miss: ClassVar[float] = -0.2  # wrong stays wrong
    reward_fix: ClassVar[float] = 1.0  # wrong becomes right

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = "odd, so that a shift of 0.0 is one of the actions"
        check(self, self.num_actions % 2 == 1, "num_actions", odd)
        # Beyond it no action matters, none is chosen, and replay would see action 0.0 only.
        rule = f"at most bandit.max-delta = {self.max_delta:g} in the independent reading"
        fits = self.reading == "sequential" or self.boundary_width <= self.max_delta
        check(self, fits, "boundary_width", rule)

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
    hidden: int = number(128, 4, 4096)  # TCN channels, GRU units per direction (slides)
    tcn_layers: int = number(4, 1, 8)  # convolutions, dilation 1, 2, 4, .. (slides)
    tcn_kernel: ClassVar[int] = 3  # frames, odd: the frame stays in the middle; original
    tcn_groups: int = number(4, 1)  # groups of the group normalisation (original)
    gru_layers: int = number(2, 1, 8)  # bidirectional GRU layers (slides)
    transformer_layers: int = number(2, 1, 16)  # Transformer encoder layers (slides)
    heads: int = number(4, 1)  # attention heads (original)
    feedforward: ClassVar[int] = 2  # inner width / width; original: 512 / 256
    dropout: float = number(0.1, 0, 0.9)  # dropout of the Transformer (original)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"a divisor of network.hidden = {self.hidden}"
        check(self, self.hidden % self.tcn_groups == 0, "tcn_groups", rule)
        rule = f"a divisor of the Transformer's width {self.width} (2 x network.hidden)"
        check(self, self.width % self.heads == 0, "heads", rule)

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
    lr: float = number(1e-4, above=0, high=1)  # Adam's learning rate, constant (slides)
    batch: int = number(32, 1, MOST_BATCH)  # transitions in a gradient step (slides)
    frames_per_step: int = number(32, 1)  # frames for each gradient step (original)
    lanes: int = number(32, 1, MOST_LANES)  # pairs that advance together
    replay: int = number(50_000, 1, 100_000_000)  # transitions kept (slides)
    train_start: int = number(2_000, 1)  # transitions stored before learning (slides)
    epsilon_start: float = number(1.0, 0, 1)  # first exploration rate (slides)
    epsilon_end: float = number(0.05, 0, 1)  # last exploration rate (slides)
    epsilon_fraction: ClassVar[float] = 0.7  # of the episodes; slides: 20,000 of 28,592
    epsilon_episodes: int | None = number(None, 1)
    """episodes of decay (default: 70 %; original: 20,000)"""
    episode_order: Literal["shuffled", "sorted"] = "shuffled"  # by seed, or by file name (original)
    acting: Literal["eval", "dropout"] = "eval"  # dropout while acting: off, or on (original)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"at most learning.epsilon-start = {self.epsilon_start:g}"
        check(self, self.epsilon_end <= self.epsilon_start, "epsilon_end", rule)

    def check_replay(self) -> None:
        """ValueError where the replay memory suits neither the lanes nor the batch."""
        rule = f"at least learning.lanes = {self.lanes} (one tick may store that many)"
        check(self, self.replay >= self.lanes, "replay", rule)
        rule = f"below learning.replay = {self.replay} (learning would never start)"
        check(self, self.train_start < self.replay, "train_start", rule)
        rule = f"at least learning.batch = {self.batch}"
        check(self, self.train_start >= self.batch, "train_start", rule)


@dataclass(frozen=True, kw_only=True)
class Events(Checked):
    """Networks, training and decision of `--method events`."""

    GROUP: ClassVar[str] = "events"
    folds: ClassVar[int] = 4  # groups of clips that are left out, if no bank folds are known
    members: int = number(1, 1, 16)  # networks for each left-out group
    tag_limit: float = number(0.03, 0, 1)  # clip-level score up to which a query is empty
    class_context: bool = True  # a vector for each class
    hidden: int = number(32, 4, 4096)  # width of the frame network
    layers: int = number(7, 1, 12)  # convolutions, dilation 1, 2, 4, ..
    kernel: ClassVar[int] = 3  # steps of 40 ms, odd: the step stays in the middle
    dropout: ClassVar[float] = 0.1  # behind each layer, of frames and of boxes
    batch: int = number(32, 1)  # queries in a gradient step
    lr: float = number(3e-3, above=0, high=1)  # peak learning rate (AdamW, one-cycle)
    weight_decay: ClassVar[float] = 1e-2  # of AdamW
    box_hidden: ClassVar[int] = 64  # width of the two layers that value a box
    box_passes: ClassVar[float] = 2.5  # passes over the boxes for each pass over the queries
    box_batch: int = number(256, 1)  # boxes in a gradient step
    frame_weight: ClassVar[float] = 1.0  # of the frame F1; the other weights are relative to it
    micro_weight: float = number(0.5, 0)  # weight of micro-F1 over frames
    collar_weight: float = number(1.0, 0)  # weight of event F1 (collars)
    overlap_weight: float = number(1.0, 0)  # weight of intersection F1


# ---------------------------------------------------------------------------- one class a script


def check_classes(names: tuple[str, ...]) -> None:
    """ValueError where a name of --classes cannot be written into a table."""
    for name in names:
        require(not name_flaw(name), "classes", "names of classes", repr(name))


def renames(texts: tuple[str, ...]) -> dict[str, str]:
    """`--map`: class name in the scores -> in the labels. ValueError where one is not
    SCORES=LABELS, or names a class twice."""
    for text in texts:
        name, _, label = text.partition("=")
        require(bool(name and label), "map", "SCORES=LABELS, e.g. dog=Dog,", text)
        require(not name_flaw(label), "map", "SCORES=LABELS with a name", repr(text))
    found = dict(text.split("=", 1) for text in texts)
    once = len(found) == len(texts)
    require(once, "map", "given once for each class of the scores", " ".join(texts))
    return found


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


@dataclass(frozen=True, kw_only=True)
class Script(Checked):
    """Base of the config classes that a preset sets."""

    PRESETS = PRESETS
    NOT_MINE = ("out",)  # it follows from the run folder

    preset: PresetName = "slides"  # set of defaults; other flags win


@dataclass(frozen=True, kw_only=True)
class SoundscapesConfig(Script):
    """Make a strongly labelled corpus: timeline + sound bank -> audio, labels, clip list."""

    NOT_MINE = ()

    out: Path = Path("data/builtin")  # corpus folder to write
    bank: Path | None = None  # sound bank, a folder a class (default: the built-in synthesiser)
    class_map: Path | None = None  # TSV `event_label, bank_class` (default: equal names)
    train_timeline: tuple[Path, ...] = ()  # DESED TSVs of training events (default: random)
    validation_timeline: Path | None = None  # DESED TSV of validation events (default: random)
    halve_timelines: bool = False  # matched splits: half of each TSV's clips in either
    stretch_min: float = number(1.0, 0.1, 10)  # least factor on the length of a training event
    stretch_max: float = number(1.0, 0.1, 10)  # largest factor; drawn evenly on a log scale
    train_clips: int = number(240, 1, MOST_CLIPS)  # training clips
    validation_clips: int = number(120, 1, MOST_CLIPS)  # validation clips
    validation_fold: int = number(5, 1)  # bank fold of the validation clips; the others train
    clip_s: float = number(10.0, 0.5, 3600)  # clip length, seconds (DESED: 10)
    snr_min_db: float = number(0.0, -40, 60)  # softest event above the background, dB
    snr_max_db: float = number(25.0, -40, 60)  # loudest event above the background, dB
    seed: int = number(0, 0, MOST_SEED)  # seed of the whole corpus
    workers: int | None = number(None, 1, MOST_PROCESSES)  # processes (default: all cores)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"at least snr-min-db = {self.snr_min_db:g}"
        check(self, self.snr_max_db >= self.snr_min_db, "snr_max_db", rule)
        rule = f"at least stretch-min = {self.stretch_min:g}"
        check(self, self.stretch_max >= self.stretch_min, "stretch_max", rule)
        given = self.train_timeline or (self.validation_timeline and self.halve_timelines)
        rule = "given with a timeline: --train-timeline FILE"
        require(bool(given) or not self.halve_timelines, "halve-timelines", rule, True)
        require(bool(given) or not self.stretches, "stretch-min, --stretch-max", rule, "them")

    @property
    def stretches(self) -> bool:
        """Whether the lengths of training events are changed."""
        return (self.stretch_min, self.stretch_max) != (1, 1)


@dataclass(frozen=True, kw_only=True)
class ScorersConfig(Script):
    """Train the built-in scorer on a corpus, cross-fitted over bank folds; write score files."""

    corpus: Path = Path("data/builtin")  # corpus folder of soundscapes.py
    convert: Path | None = None  # instead: scores (TSVs or NPZ) to write in the other form
    out: Path | None = None  # with --convert: NAME.npz, or a folder for TSVs
    epochs: int = number(12, 1)  # passes over the training clips for each fit
    lr: float = number(4e-3, above=0, high=1)  # peak learning rate (Adam, one-cycle)
    batch: int = number(8, 1, MOST_BATCH)  # clips in a gradient step
    channels: int = number(24, 4, 1024)  # width of the CRNN's first convolution
    seed: int = number(0, 0, MOST_SEED)  # weights, order, augmentation
    device: Device = "auto"  # auto: CUDA if present
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

    classes_from: Path | None = None  # label TSV with the classes
    query_file: Path | None = None  # instead: a class a line, after a tab its prompt
    prompt_style: Literal["spaces", "raw"] = "spaces"
    """words of a class name, or the name itself (original)"""
    mga_clap: Path  # root of an MGA-CLAP checkout
    mga_weights: Path  # MGA-CLAP's model.pt
    bert: Path  # bert-base-uncased: config.json and vocabulary
    trust_pickle: bool = False  # load weights that hold Python objects (can run code)
    out: Path = Path("queries.pt")  # file to write: classes, prompts, vectors
    device: Device = "auto"  # auto: CUDA if present
    threads: int | None = number(None, 1, MOST_PROCESSES)  # CPU threads (default: all cores)

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.classes_from is None) != (self.query_file is None)
        rule = "given, or --query-file instead of it,"
        require(one, self.flag("classes_from"), rule, "both" if self.query_file else "neither")


@dataclass(frozen=True, kw_only=True)
class DasmScoreConfig(Checked):
    """Audio -> frame and clip-level scores by DASM, for the classes of a query file."""

    dasm_repo: Path  # root of a Transformer4SED checkout
    dasm_config: Path  # config.yaml beside the weights (text_query)
    dasm_weights: Path  # text-query checkpoint of DASM
    queries: Path = Path("queries.pt")  # file of `dasm.py embed`
    audio: Path  # folder of recordings; DESED: the original 44.1 kHz
    labels: Path | None = None  # label TSV of clips and classes (default: the whole folder)
    out: Path  # folder to write, for `preprocess.py --scores`
    temperature: float = number(0.5, above=0)  # divisor of the logits before the sigmoid (original)
    batch: int = number(4, 1, MOST_BATCH)  # clips in a forward pass
    cut_long: bool = False  # score only the first 10 s of longer recordings
    allow_missing: bool = False  # leave out clips without readable audio
    device: Device = "auto"  # auto: CUDA if present
    threads: int | None = number(None, 1, MOST_PROCESSES)  # CPU threads (default: all cores)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Script):
    """Audio + scores + labels -> the six signals -> cache/<split>."""

    cache: Path = Path("cache")  # folder of the caches, a folder a split
    corpus: Path = Path("data/builtin")  # corpus folder, unless --labels is given
    split: str | None = split_name(None)  # train or validation (default: both)
    labels: Path | None = None  # label TSV (filename, onset, offset, event_label), or folder
    audio: Path | None = None  # audio folder (default: none, loudness is 1)
    scores: Path | None = None  # score folder (TSV a clip: onset, offset, classes), or NPZ
    validation_share: float | None = number(None, above=0, high=0.9)
    """share of the labelled clips drawn for validation"""
    seed: int = number(0, 0)  # seed of --validation-share
    clips: Path | None = None  # table of clips: filename with split or recording
    cut_scores: bool = False  # cut scores at the end of the audio
    map: tuple[str, ...] = ()  # class names, SCORES=LABELS, e.g. dog=Dog
    pairs: Literal["present", "all"] = "present"  # classes queried for a clip (slides: present)
    classes: tuple[str, ...] = ()  # more classes to query, with --pairs all
    import_npz: Path | None = None  # NPZ files of the original program, instead of audio and scores
    import_frame_s: float = number(0.02, 1e-4, 3600)  # frame length of imported files, seconds
    allow_missing: bool = False  # leave out clips without readable audio or scores
    replace: bool = False  # replace a cache of other inputs
    workers: int | None = number(None, 1, MOST_PROCESSES)  # processes (default: all cores)
    signal: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "used together with --pairs all"
        check(self, not self.classes or self.pairs == "all", "classes", rule)
        check_classes(self.classes)
        if self.labels is None:
            given = ("audio", "scores", "map", "import_npz", "validation_share", "clips")
            for name in given:
                check(self, not getattr(self, name), name, "given together with --labels")
            return
        drawn = self.validation_share is not None or self.clips is not None
        rule = "given with --labels (or --validation-share, or --clips, instead of it)"
        check(self, (self.split is not None) != drawn, "split", rule)
        seeded = self.validation_share is not None or self.seed == 0
        check(self, seeded, "seed", "given together with --validation-share")
        heard = self.audio is not None or not self.cut_scores
        check(self, heard, "cut_scores", "given together with --audio")
        if self.import_npz is None:
            rule = "given with --labels (or --import-npz instead of --audio and --scores)"
            check(self, self.scores is not None, "scores", rule)
        else:
            rule = "present with --import-npz, which has no other pairs,"
            check(self, self.pairs == "present", "pairs", rule)
            for name in ("audio", "scores", "map"):
                check(self, not getattr(self, name), name, "left out with --import-npz")
        renames(self.map)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Script):
    """Train the threshold policy on cache/train and write a run folder."""

    cache: Path = Path("cache")  # folder of the caches
    split: str = split_name("train")  # cache to train on
    run: Path = Path("runs/slides")  # run folder to write
    passes: int | None = number(None, 1)
    """passes over the pairs (default: slides 1, events 6; more if few)"""
    holdout: float = number(0.1, 0, 0.9)  # share of training clips held out to choose best.pt
    looks: int = number(10, 1)  # evaluations on the held-out clips
    checkpoint_every: int = number(2_000, 1)  # episodes between numbered checkpoints (original)
    checkpoint_minutes: float = number(5.0, above=0)  # minutes between writes of last.pt
    resume: bool = False  # go on from last.pt
    overwrite: bool = False  # replace an earlier run
    init: Path | None = None  # checkpoint with the initial weights; events: to recalibrate
    digest: Path | None = None  # print the hash of a checkpoint and stop
    status: Path | None = None  # print the state of a run and stop
    wandb_project: str | None = None  # log to this project of Weights & Biases as well
    seed: int = number(0, 0, MOST_SEED)  # weights, exploration, replay, episode order
    device: Device = "auto"  # auto: CUDA if present
    threads: int = number(1, 1, MOST_PROCESSES)  # CPU threads; the number changes rounding
    cuda_steps: Literal["auto", "plain", "graphs"] = "auto"  # gradient steps on a GPU
    method: Literal["windowed", "events", "classifier", "rewards"] = "windowed"
    """frames (slides), events, or supervised"""
    bandit: Bandit = field(default_factory=Bandit)
    network: Network = field(default_factory=Network)
    learning: Learning = field(default_factory=Learning)
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.resume and self.overwrite), "resume", "used without --overwrite", "both")
        apart = self.init is None or self.init.resolve().parent != self.run.resolve()
        check(self, apart, "init", f"outside --run {self.run}, which is written,")
        steps, method = self.cuda_steps, f"with --method {self.method}"
        fits = self.device != "cpu" or steps != "graphs"
        check(self, fits, "cuda_steps", "auto or plain on a CPU")
        windowed = self.method == "windowed"
        check(self, windowed or steps == "auto", "cuda_steps", f"auto {method}")
        if windowed:
            self.learning.check_replay()
        if self.method in SUPERVISED:
            independent = self.bandit.reading == "independent"
            check(self.bandit, independent, "reading", f"independent {method}")
            for spec in fields(Learning):
                alone = spec.name in ("lr", "batch", "frames_per_step")
                alone = alone or getattr(self.learning, spec.name) == spec.default
                rule = f"left alone {method}, which tries nothing out,"
                check(self.learning, alone, spec.name, rule)
        # No flag that does nothing: each method has its own groups.
        others = ("bandit", "network", "learning") if self.method == "events" else ("events",)
        for name in others:
            same = getattr(self, name) == type(getattr(self, name))()
            rule = f"left alone {method}, which has no such part,"
            require(same, f"{name}.*", rule, "another value")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Script):
    """Accuracy, IoU and F1 of a policy before and after, with baselines; tables of many."""

    run: Path = Path("runs/slides")  # run folder: best.pt is read, results are written
    checkpoint: Path | None = None  # instead: a checkpoint, or dqn_threshold.pt (original)
    out: Path | None = None  # folder of the results (default: the run folder)
    cache: Path = Path("cache")  # folder of the caches
    split: str = split_name("validation")  # cache to report on
    train_split: str = split_name("train")  # cache to tune the baselines on
    compare: tuple[str, ...] = ()
    """systems of one table: PATH, NAME=PATH, NAME=SEED0,SEED1 or rules"""
    workers: int | None = number(None, 1, MOST_PROCESSES)
    """processes of --compare (default: all cores)"""
    full: bool = False  # print every class and baseline
    other_classes: bool = False  # apply a policy to entirely new classes
    batch: int | None = number(None, 1, MOST_BATCH)  # frames in a forward pass (default: measured)
    device: Device = "auto"  # auto: CUDA if present
    threads: int = number(1, 1, MOST_PROCESSES)  # CPU threads

    def __post_init__(self) -> None:
        super().__post_init__()
        apart = self.checkpoint is None or self.out is not None
        check(self, apart, "out", "given together with --checkpoint")
        usual = self.PRESETS[self.preset].get("run", type(self).run)
        run = None if self.run == usual else self.run
        fits = not self.checkpoint or self.run in (usual, type(self).run)  # as nobody gave it
        require(fits, "run", "left out with --checkpoint", run)
        unused = {"checkpoint": self.checkpoint, "full": self.full, "run": run}
        for name, value in unused.items() if self.compare else ():
            require(not value, name, "left out with --compare", value)


@dataclass(frozen=True, kw_only=True)
class DetectConfig(Script):
    """Unlabelled recordings (or their scores) in, sound events out, with a trained policy."""

    policy: Path | None = None  # checkpoint, or dqn_threshold.pt (default: the one for any scores)
    audio: Path | None = None  # recording or folder (default: none, scores alone)
    scores: Path | None = None  # scores of the recordings (default: the built-in scorer)
    map: tuple[str, ...] = ()  # class names, SCORES=EVENTS, e.g. dog=Dog
    scorer: Path | None = None  # scorer.pt (default: of the policy's corpus)
    cut_scores: bool = False  # cut scores at the end of the audio
    classes: tuple[str, ...] = ()  # classes to look for (default: all scored ones)
    out: Path = Path("events.tsv")  # event TSV to write
    overwrite: bool = False  # replace an earlier result
    audacity: Path | None = None  # folder of Audacity label files to write
    gate: bool = True  # close classes of a low clip-level score
    block_s: float | None = number(None, 0.5, 3600)
    """block of a long recording, seconds (default: a training clip)"""
    other_classes: bool = False  # apply a policy to entirely new classes
    min_duration: float = number(0.0, 0)  # shortest event, seconds
    merge_gap: float = number(0.0, 0)  # longest gap that is closed, seconds
    min_confidence: float = number(0.0, 0, 1)  # lowest confidence, of a policy over events
    batch: int = number(256, 1, MOST_BATCH)  # frames in a forward pass
    device: Device = "auto"  # auto: CUDA if present
    threads: int = number(1, 1, MOST_PROCESSES)  # CPU threads

    def __post_init__(self) -> None:
        super().__post_init__()
        scored = self.scores is not None
        check(self, not scored or self.scorer is None, "scorer", "left out with --scores")
        check(self, scored or not self.map, "map", "given together with --scores")
        cut = not self.cut_scores or (scored and self.audio is not None)
        check(self, cut, "cut_scores", "given together with --audio and --scores")
        renames(self.map)
        check_classes(self.classes)


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig(Script):
    """The slides' figures from a run folder and its cache."""

    run: Path = Path("runs/slides")  # run folder, evaluated
    cache: Path = Path("cache")  # folder of the caches
    out: Path | None = None  # folder of the PNG files (default: figures/ in the run folder)
    table: Path | None = None  # instead: folder of a comparison
    clip: str | None = None  # one pair only: its file name
    event_label: str | None = None  # one pair only: its label
    dpi: int = number(150, 30, 600)  # resolution, dots per inch
    html: bool = False  # write report/index.html as well
    beside: Path | None = None  # second run folder, for the page
    pairs: int = number(100, 1)  # pairs on the page

    def __post_init__(self) -> None:
        super().__post_init__()
        both = (self.clip is None) == (self.event_label is None)
        check(self, both, "event_label", "given together with --clip")
        require(not (self.html and self.clip), "html", "used without --clip", self.clip)
        other = self.beside is None or (self.html and self.beside != self.run)
        check(self, other, "beside", "used with --html, and another folder than --run")
        alone = self.table is None or not (self.html or self.clip)
        check(self, alone, "table", "used without --clip and --html")
