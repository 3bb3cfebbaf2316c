"""Presets, ranges, the command line and JSON: every bad value is refused by name."""

import dataclasses
import importlib
import json
import re
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from config import (
    Bandit,
    DetectConfig,
    EvaluateConfig,
    Events,
    Learning,
    Network,
    PreprocessConfig,
    ScorersConfig,
    Signal,
    SoundscapesConfig,
    TrainConfig,
    VisualizeConfig,
)
from core import command, settings
from core.command import parse
from core.errors import InputError
from core.names import name_flaw
from core.settings import from_dict, to_dict
from core.versions import version_text

SCRIPTS = (
    SoundscapesConfig,
    ScorersConfig,
    PreprocessConfig,
    TrainConfig,
    EvaluateConfig,
    DetectConfig,
    VisualizeConfig,
)
GROUPS = (Signal, Bandit, Network, Learning, Events)


def names(classes):
    return [cls.__name__ for cls in classes]


def leaves(cls, prefix=""):
    """(flag, field, its class) of everything that a script's class takes."""
    for spec in fields(cls):
        hint = typing.get_type_hints(cls)[spec.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{spec.name}.")
        else:
            yield prefix + spec.name.replace("_", "-"), spec, hint


def refused(cls, *args):
    """What is said, in one line, where a command line is refused."""
    with pytest.raises(InputError) as error:
        parse(cls, list(args))
    (text,) = str(error.value).splitlines()
    return text


# ---------------------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", ["slides", "original", "demo"])
@pytest.mark.parametrize("cls", SCRIPTS, ids=names(SCRIPTS))
def test_every_preset_builds_every_config(cls, preset):
    cfg = cls.with_preset(preset)
    assert type(cfg) is cls and cfg.preset == preset
    assert parse(cls, ["--preset", preset]) == cfg


def test_slides_preset_has_the_numbers_of_the_slides():
    cfg = TrainConfig.with_preset("slides")
    bandit, network, learning = cfg.bandit, cfg.network, cfg.learning
    assert (bandit.reading, bandit.boundary_test, bandit.boundary_width) == (
        "independent",
        "before",
        0.2,
    )
    rewards = (bandit.reward_keep, bandit.reward_break, bandit.reward_miss, bandit.reward_fix)
    assert rewards == (0.2, -1.0, -0.2, 1.0)
    sizes = (network.hidden, network.tcn_layers, network.gru_layers, network.transformer_layers)
    assert sizes == (128, 4, 2, 2) and network.width == 256 and network.heads == 4
    assert (learning.lr, learning.batch, learning.replay) == (1e-4, 32, 50_000)
    assert (learning.train_start, learning.frames_per_step) == (2_000, 32)
    epsilon = (learning.epsilon_start, learning.epsilon_end, learning.epsilon_fraction)
    assert epsilon == (1.0, 0.05, 0.7) and learning.epsilon_episodes is None
    assert (learning.episode_order, learning.acting, cfg.passes) == ("shuffled", "eval", None)
    signal = PreprocessConfig.with_preset("slides").signal
    assert (signal.fusion, signal.flat_fallback, signal.flat_range) == ("product", True, 0.03)


def test_original_preset_is_what_produced_the_published_numbers():
    cfg, slides = TrainConfig.with_preset("original"), TrainConfig.with_preset("slides")
    bandit = {"reading": "sequential", "boundary_test": "after", "channel_order": "original"}
    learning = {"episode_order": "sorted", "acting": "dropout", "epsilon_episodes": 20_000}
    assert cfg.bandit == replace(slides.bandit, **bandit)
    assert cfg.learning == replace(slides.learning, **learning)
    assert cfg.network == slides.network
    signal = PreprocessConfig.with_preset("original").signal
    assert signal == Signal(fusion="harmonic", loudness="original")


def test_a_preset_keeps_its_files_apart():
    for preset in ("original", "demo"):
        train, evaluate = TrainConfig.with_preset(preset), EvaluateConfig.with_preset(preset)
        assert (train.run, train.cache) == (evaluate.run, evaluate.cache)
        assert train.run != TrainConfig().run and train.cache != TrainConfig().cache
        assert train.cache == PreprocessConfig.with_preset(preset).cache
        assert evaluate.out is None and VisualizeConfig.with_preset(preset).out is None
    made = SoundscapesConfig.with_preset("demo").out
    assert made == ScorersConfig.with_preset("demo").corpus
    assert made == PreprocessConfig.with_preset("demo").corpus != SoundscapesConfig().out


ORDERS = {
    "before": ["--preset", "original", "--seed", "3", "--learning.batch", "16"],
    "after": ["--seed", "3", "--learning.batch", "16", "--preset", "original"],
    "joined": ["--seed", "3", "--preset=original", "--learning.batch", "16"],
}


@pytest.mark.parametrize("args", ORDERS.values(), ids=ORDERS)
def test_preset_may_stand_anywhere(args):
    expected = TrainConfig.with_preset("original")
    learning = replace(expected.learning, batch=16)
    assert parse(TrainConfig, args) == replace(expected, seed=3, learning=learning)


TWICE = {
    "a number": ["--seed", "1", "--seed", "2"],
    "the preset": ["--preset", "demo", "--preset=original"],
    "joined": ["--seed=1", "--seed=1"],
    "other spelling": ["--checkpoint_every", "1", "--checkpoint-every", "2"],
    "a group": ["--learning.lr", "1", "--seed", "1", "--learning.lr", "2"],
    "for and against": ["--resume", "--no-resume"],
}


@pytest.mark.parametrize("args", TWICE.values(), ids=TWICE)
def test_a_flag_given_twice_is_refused(args):
    with pytest.raises(InputError, match="given 2 times"):
        parse(TrainConfig, args)


@pytest.mark.parametrize(
    "args", ["--map a=A b=B c=C", "--map a=A --map b=B c=C", "--map a=A b=B --map=c=C"]
)
def test_a_flag_of_many_values_adds_up(args):
    given = ["--labels", "l", "--split", "x", "--scores", "s", *args.split(), "--workers", "1"]
    assert parse(PreprocessConfig, given).map == ("a=A", "b=B", "c=C")


def test_the_same_in_scripts_of_several_commands():
    made = {"one": Bandit, "many": DetectConfig, "default": PreprocessConfig(workers=2)}
    assert parse(made, ["many", "--classes", "a", "--classes", "b"]).classes == ("a", "b")
    flags = ["default", "--pairs", "all", "--classes", "a", "--classes", "b"]
    assert parse(made, flags) == PreprocessConfig(workers=2, pairs="all", classes=("a", "b"))
    with pytest.raises(InputError, match="--context is given 2 times"):
        parse(made, ["one", "--context", "1", "--context", "2"])


def test_values_may_begin_with_a_dash_and_be_none():
    clip = parse(VisualizeConfig, ["--clip", "-a.wav", "--event-label=-x"])
    assert (clip.clip, clip.event_label) == ("-a.wav", "-x")
    assert parse(TrainConfig, ["--preset", "original"]).learning.epsilon_episodes == 20_000
    flags = ["--preset", "original", "--learning.epsilon-episodes", "None"]
    assert parse(TrainConfig, flags).learning.epsilon_episodes is None


BAD_NAMES = [
    "",
    " ",
    "a\tb",
    "a\nb",
    "a\rb",
    "a\x00",
    "a\x85b",
    "a\u2028b",
    "..",
    "../a",
    "a/../b",
    "a\\..\\b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_table_can_hold_or_that_lead_elsewhere(name):
    assert name_flaw(name) and name_flaw(name, path=True)


def test_names_of_clips_and_of_classes():
    for name in ("a.wav", "deep/a.wav", "Y--x_30.000", "개.wav", "a b", ".a", "...", "-a", "a..b"):
        assert not name_flaw(name) and not name_flaw(name, path=True)
    for name in ("/m/04rlf", "C:/Windows", "a\\b"):  # a class may be called so, a clip may not
        assert not name_flaw(name) and name_flaw(name, path=True)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "/tmp", "..", ".hidden", "", "a\nb", "a\\b"])
def test_a_split_is_the_plain_name_of_a_folder(name):
    given = {"labels": Path("l"), "scores": Path("s")}
    for cls, key, more in (
        (PreprocessConfig, "split", given),
        (TrainConfig, "split", {}),
        (EvaluateConfig, "split", {}),
        (EvaluateConfig, "train_split", {}),
    ):
        with pytest.raises(ValueError, match=key.replace("_", "-")):
            cls(**{key: name}, **more)
        assert getattr(cls(**{key: "dev-2"}, **more), key) == "dev-2"


def test_flags_win_over_the_preset():
    flags = ["--bandit.reading", "independent", "--run", "elsewhere", "--preset", "original"]
    cfg = parse(TrainConfig, flags)
    assert (cfg.bandit.reading, cfg.run) == ("independent", Path("elsewhere"))
    assert (cfg.bandit.boundary_test, cfg.learning.acting) == ("after", "dropout")


# ---------------------------------------------------------------------------- derived values


def test_shifts_of_the_threshold():
    bandit = Bandit()
    assert bandit.deltas == pytest.approx([i / 50 for i in range(-10, 11)])
    assert (bandit.deltas[0], bandit.deltas[10], bandit.deltas[20]) == (-0.2, 0.0, 0.2)
    assert bandit.no_change == 10
    few = Bandit(num_actions=5, max_delta=0.1, boundary_width=0.1)
    assert few.deltas == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1]) and few.no_change == 2


def test_window_and_channels():
    assert Bandit().window == 21 and Bandit(context=0).window == 1
    assert Bandit().channels == ("rms", "d_raw", "d_adj", "prob", "t_base", "binary")
    original = ("d_raw", "d_adj", "prob", "rms", "t_base", "binary")
    assert Bandit(channel_order="original").channels == original


# ---------------------------------------------------------------------------- bad values


def test_every_number_has_a_range_check():
    for cls in (*SCRIPTS, *GROUPS):
        for spec in fields(cls):
            hint = typing.get_type_hints(cls)[spec.name]
            numeric = {int, float} & {hint, *typing.get_args(hint)}
            assert bool(numeric) == ("low" in spec.metadata), f"{cls.__name__}.{spec.name}"


NUMBERS = {
    flag if script is TrainConfig else f"{script.__name__}.{flag}": (script, flag, spec, hint)
    for script in SCRIPTS
    for flag, spec, hint in leaves(script)
    if "low" in spec.metadata
}


@pytest.mark.parametrize(("cls", "flag", "spec", "hint"), NUMBERS.values(), ids=NUMBERS)
def test_out_of_range_is_refused_by_name(cls, flag, spec, hint):
    whole = int in (hint, *typing.get_args(hint))
    low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
    rules = {  # the nearest value outside: what the message must say
        low - (1 if whole else 0.001): f"at least {low:g}",
        above: f"above {above:g}",
        high + (1 if whole else 0.001): f"at most {high:g}",
    }
    for value, rule in rules.items():
        if abs(value) < float("inf"):
            text = refused(cls, f"--{flag}", str(value))
            assert f"--{flag} must be" in text and rule in text, text
            assert re.search(rf"but {value}(\.0)? was given", text), text
    for word in ["1.5"] if whole else ["nan", "inf"]:
        text = refused(cls, f"--{flag}", word)
        assert f"--{flag}" in text and word in text


OUT_OF_RANGE = [  # by hand, so that a lost range is seen
    (TrainConfig, "--bandit.num-actions", "1"),
    (TrainConfig, "--bandit.num-actions", "129"),
    (TrainConfig, "--bandit.context", "-1"),
    (TrainConfig, "--bandit.max-delta", "0"),
    (TrainConfig, "--bandit.max-delta", "1.01"),
    (TrainConfig, "--bandit.boundary-width", "0"),
    (TrainConfig, "--learning.lr", "0"),
    (TrainConfig, "--learning.lanes", "0"),
    (TrainConfig, "--learning.epsilon-start", "1.1"),
    (TrainConfig, "--learning.epsilon-end", "-0.1"),
    (TrainConfig, "--learning.epsilon-episodes", "0"),
    (TrainConfig, "--network.dropout", "1"),
    (TrainConfig, "--network.tcn-groups", "0"),
    (TrainConfig, "--holdout", "1"),
    (TrainConfig, "--passes", "0"),
    (PreprocessConfig, "--signal.clip-percentile", "101"),
    (PreprocessConfig, "--signal.score-mix", "1.5"),
    (PreprocessConfig, "--signal.beta", "0"),
    (PreprocessConfig, "--import-frame-s", "0"),
    (PreprocessConfig, "--workers", "0"),
    (SoundscapesConfig, "--clip-s", "0"),
    (EvaluateConfig, "--batch", "0"),
    (EvaluateConfig, "--threads", "0"),
    (DetectConfig, "--block-s", "0.1"),
    (DetectConfig, "--min-duration", "-1"),
    (VisualizeConfig, "--dpi", "10"),
]

LABELS, AUDIO, SCORES = ["--labels", "l.tsv"], ["--audio", "a"], ["--scores", "s"]
SPLIT, NPZ = ["--split", "train"], ["--import-npz", "n"]
COMBINATIONS = [
    (TrainConfig, ["--bandit.num-actions", "20"], "--bandit.num-actions must be odd, 20"),
    (TrainConfig, ["--network.heads", "3"], "--network.heads must be a divisor 256 3"),
    (TrainConfig, ["--network.tcn-groups", "3"], "--network.tcn-groups must be a divisor 128 3"),
    (
        TrainConfig,
        ["--learning.epsilon-start", "0.1", "--learning.epsilon-end", "0.2"],
        "--learning.epsilon-end must be at most learning.epsilon-start = 0.1 0.2",
    ),
    (
        TrainConfig,
        ["--learning.replay", "2000"],
        "--learning.train-start must be below learning.replay = 2000 but 2000",
    ),
    (
        TrainConfig,
        ["--learning.train-start", "31"],
        "--learning.train-start must be at least learning.batch = 32 but 31",
    ),
    (TrainConfig, ["--resume", "--overwrite"], "--resume must be used without --overwrite but"),
    (PreprocessConfig, [*LABELS, *AUDIO, *SCORES], "--split must be given with --labels"),
    (PreprocessConfig, [*LABELS, *SPLIT, *AUDIO], "--scores must be given with --labels"),
    (PreprocessConfig, ["--validation-share", "0.2"], "--validation-share must be given together"),
    (PreprocessConfig, ["--clips", "c"], "--clips must be given together with --labels"),
    (PreprocessConfig, [*LABELS, *SPLIT, *SCORES, "--clips", "c"], "--split must be given with"),
    (PreprocessConfig, [*LABELS, *SPLIT, *SCORES, "--seed", "1"], "--seed must be given together"),
    (PreprocessConfig, [*LABELS, *SPLIT, *SCORES, "--cut-scores"], "--cut-scores must be given"),
    (DetectConfig, [*SCORES, "--cut-scores"], "--cut-scores must be given together with --audio"),
    (PreprocessConfig, ["--classes", "Dog"], "--classes must be used together with --pairs all"),
    (
        PreprocessConfig,
        [*LABELS, *SPLIT, "--import-npz", "n", "--pairs", "all"],
        "--pairs must be present with --import-npz",
    ),
    (PreprocessConfig, [*LABELS, *SPLIT, *AUDIO], "--scores must be given with --labels"),
    (PreprocessConfig, AUDIO, "--audio must be given with --labels but a was given"),
    (PreprocessConfig, SCORES, "--scores must be given with --labels but s was given"),
    (PreprocessConfig, NPZ, "--import-npz must be given with --labels but n was given"),
    (
        PreprocessConfig,
        [*LABELS, *SPLIT, *NPZ, *AUDIO],
        "--audio must be left out with --import-npz but a was given",
    ),
    (
        DetectConfig,
        [*SCORES, "--scorer", "s.pt"],
        "--scorer must be left out with --scores but s.pt",
    ),
    (DetectConfig, ["--map", "a=b"], "--map must be given together with --scores"),
    (DetectConfig, [*SCORES, "--map", "a"], "--map must be SCORES=LABELS, e.g. dog=Dog, but a was"),
    (EvaluateConfig, ["--compare", "rules", "--full"], "--full must be left out with --compare"),
    (
        EvaluateConfig,
        ["--preset", "demo", "--compare", "rules", "--run", "runs/slides"],
        "--run must be left out with --compare but runs/slides",
    ),
    (
        EvaluateConfig,
        ["--checkpoint", "a.pt", "--out", "o", "--run", "runs/mine"],
        "--run must be left out with --checkpoint but runs/mine",
    ),
    (VisualizeConfig, ["--clip", "a.wav"], "--event-label must be given with --clip"),
    (VisualizeConfig, ["--event-label", "Dog"], "--event-label must be given with --clip but Dog"),
    (VisualizeConfig, ["--table", "t", "--html"], "--table must be used without --clip and --html"),
    (
        VisualizeConfig,
        ["--table", "t", "--clip", "a.wav", "--event-label", "Dog"],
        "--table must be used without --clip and --html but t",
    ),
    (
        SoundscapesConfig,
        ["--snr-min-db", "10", "--snr-max-db", "5"],
        "--snr-max-db must be at least snr-min-db = 10 but 5",
    ),
    (TrainConfig, ["--preset", "slide"], "--preset slides original demo slide"),
    (TrainConfig, ["--preset=slide"], "--preset slides original demo slide"),
    (TrainConfig, ["--bandit.reading", "both"], "--bandit.reading independent sequential both"),
    (TrainConfig, ["--device", "gpu"], "--device auto cpu cuda gpu"),
    (TrainConfig, ["--seed", "many"], "--seed many"),
    (TrainConfig, ["--learning.lr", "many"], "--learning.lr many"),
    (TrainConfig, ["--learning.epsilon-episodes", "nan"], "--learning.epsilon-episodes nan"),
    (TrainConfig, ["stray"], "stray"),
    (TrainConfig, ["--seed"], "--seed must be a whole number but nothing was given"),
    (TrainConfig, ["--seed", "1", "2"], "--seed must be a whole number but 1 2 was given"),
    (TrainConfig, ["--resume", "yes"], "--resume must be without a value but yes was given"),
    (TrainConfig, ["--no-seed"], "--no-seed no such flag"),
    (DetectConfig, [*SCORES, "--map", "long name/" * 15], "--map must be " + "long name/" * 15),
]


@pytest.mark.parametrize(("cls", "flag", "value"), OUT_OF_RANGE)
def test_known_ranges(cls, flag, value):
    assert f"{flag} must be" in refused(cls, flag, value)


@pytest.mark.parametrize(("cls", "args", "words"), COMBINATIONS)
def test_bad_command_line_says_what_is_wrong(cls, args, words):
    """The message holds these words in this order."""
    text = refused(cls, *args)
    assert re.search(".*".join(map(re.escape, words.split())), text), text
    assert "None was given" not in text and "True was given" not in text


@dataclasses.dataclass(frozen=True)
class Mistaken:
    """Flags of a study, spelled as there."""

    out: Path = Path("out")
    learning_rate: float = 0.1
    total_steps: int = 1


@pytest.mark.parametrize(
    ("cls", "flag", "ours"),
    [
        (TrainConfig, "--sead", "--seed"),
        (TrainConfig, "--learning.batchs", "--learning.batch"),
        (TrainConfig, "--bandit.num-action", "--bandit.num-actions"),
        (TrainConfig, "--epochs", "--passes"),
        (TrainConfig, "--max-epochs", "--passes"),
        (TrainConfig, "--bs", "--learning.batch"),
        (TrainConfig, "--gpus", "--device"),
        (TrainConfig, "--num-workers", "--threads"),
        (TrainConfig, "--verbose", "--help"),  # nearest in letters would be --overwrite
        (EvaluateConfig, "--threshold", "--help"),  # and --threads
        (DetectConfig, "--threshold", "--min-confidence"),
        (TrainConfig, "--signal.beta", "--help"),
        (PreprocessConfig, "--learning.lr", "--help"),
        (DetectConfig, "--epochs", "--help"),  # nearest in letters would be --policy
        (DetectConfig, "--run", "--policy"),
        (EvaluateConfig, "--policy", "--run"),
        (TrainConfig, "--episodes", "--passes"),
        (DetectConfig, "--dropout", "--help"),  # nearest in letters would be --out
        (VisualizeConfig, "--batch", "--help"),  # and --cache
        (TrainConfig, "--foo", "--help"),  # the dashes do not make it --out
        (Mistaken, "--foo", "--help"),
        (Mistaken, "--lr", "--learning-rate"),
        (Mistaken, "--epochs", "--total-steps"),
    ],
)
def test_an_unknown_flag_is_named_with_the_nearest(cls, flag, ours):
    for args in ([flag, "1"], [f"{flag}=1"]):
        with pytest.raises(InputError, match=rf"^{flag}: .*{ours}\b"):
            parse(cls, args)


GOOD = [
    (TrainConfig, ["--learning.train-start", "32"]),
    (TrainConfig, ["--learning.epsilon-start", "0.3", "--learning.epsilon-end", "0.3"]),
    (TrainConfig, ["--holdout", "0", "--bandit.context", "0"]),
    (TrainConfig, ["--network.hidden", "4", "--network.heads", "8"]),
    (PreprocessConfig, [*LABELS, *SPLIT, *AUDIO, *SCORES]),
    (PreprocessConfig, [*LABELS, *SPLIT, *NPZ]),
    (PreprocessConfig, ["--signal.no-flat-fallback", "--workers", "None"]),
    (VisualizeConfig, ["--clip", "a.wav", "--event-label", "Dog"]),
    (EvaluateConfig, ["--preset", "demo", "--compare", "rules", "--run", "runs/demo"]),
    (VisualizeConfig, ["--table", "runs/table", "--out", "figures"]),
    (SoundscapesConfig, ["--snr-min-db", "-5", "--snr-max-db", "-5"]),
]


@pytest.mark.parametrize(("cls", "args"), GOOD)
def test_values_on_the_edge_are_accepted(cls, args):
    assert isinstance(parse(cls, args), cls)


# ---------------------------------------------------------------------------- help


def shown_help(cls, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        parse(cls, [*args, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("cls", SCRIPTS, ids=names(SCRIPTS))
def test_help_has_a_line_for_each_flag(cls, capsys):
    _, summary, empty, *lines = shown_help(cls, capsys)
    assert summary == cls.__doc__.splitlines()[0] and not empty
    options = [line for line in lines if line.startswith("  --")]
    titles = [line.partition(":")[0] for line in lines if not line.startswith("  ")]
    assert [re.match(r"  --([a-z0-9.-]+)", line)[1] for line in options] == [
        flag for flag, _, _ in sorted(leaves(cls), key=lambda leaf: leaf[0].count("."))
    ]
    hints = typing.get_type_hints(cls).items()
    assert titles == [name for name, hint in hints if dataclasses.is_dataclass(hint)]
    assert all(re.search(r"\S  +\S", line) for line in options)  # a text behind the flag
    assert not [line for line in options if len(line) > 100]


@pytest.mark.parametrize("study", ["classic", "active_learning", "denoise"])
def test_help_of_studies_has_a_line_for_each_flag(study):
    module = importlib.import_module(f"studies.{study}.settings")
    for name, given in (module.commands([]) if study == "classic" else module.COMMANDS).items():
        lines = command.help_text({name: given}, [name]).splitlines()[3:]
        kind = given if isinstance(given, type) else type(given)
        assert len([line for line in lines if line.startswith("  --")]) == len(list(leaves(kind)))
        assert not [line for line in lines if len(line) > 100 or line.startswith("   ")]


def test_a_script_without_flags_prints_its_text_and_refuses_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "all", "data"])
    assert command.parse("A study.") == ["all", "data"]
    monkeypatch.setattr(sys, "argv", ["study.py", "all", "--seeds", "3"])
    with pytest.raises(InputError, match="--seeds: no such flag"):
        command.parse("A study.")
    monkeypatch.setattr(sys, "argv", ["study.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        command.parse("A study.")
    assert stop.value.code == 0 and capsys.readouterr().out == "A study.\n"
    monkeypatch.setattr(sys, "argv", ["study.py", "all", "--version"])
    with pytest.raises(SystemExit) as stop:
        command.parse("A study.")
    assert stop.value.code == 0 and capsys.readouterr().out == version_text() + "\n"


def test_help_shows_choices_defaults_and_the_preset(capsys):
    lines = shown_help(TrainConfig, capsys, "--preset", "demo")
    assert len(lines) <= 80
    (hidden,) = [line for line in lines if "--network.hidden" in line]
    assert hidden.startswith("  --network.hidden INT ") and hidden.endswith(" [32]")
    (device,) = [line for line in lines if "--device" in line]
    assert " --device auto|cpu|cuda " in device and device.endswith(" [auto]")
    (signal,) = [x for x in shown_help(PreprocessConfig, capsys) if "flat-fallback" in x]
    assert "--signal.flat-fallback, --signal.no-flat-fallback" in signal and "[on]" in signal


def test_help_of_a_script_with_commands(capsys):
    commands = {"train": TrainConfig, "look": replace(EvaluateConfig(), threads=3)}
    lines = shown_help(commands, capsys)
    assert [line.split()[0] for line in lines[2:]] == ["train", "look"]
    (threads,) = [line for line in shown_help(commands, capsys, "look") if "--threads" in line]
    assert threads.endswith(" [3]")
    for args, given in ([], "none"), (["learn"], "learn"):
        with pytest.raises(InputError, match=f"a command is needed: train, look; {given} was"):
            parse(commands, args)


# ---------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("preset", ["slides", "original", "demo"])
@pytest.mark.parametrize("cls", SCRIPTS, ids=names(SCRIPTS))
def test_json_round_trip(cls, preset):
    cfg = cls.with_preset(preset)
    again = from_dict(cls, json.loads(json.dumps(to_dict(cfg))))
    assert again == cfg
    assert all(type(getattr(again, s.name)) is type(getattr(cfg, s.name)) for s in fields(cls))


@pytest.mark.parametrize("cls", GROUPS, ids=names(GROUPS))
def test_json_round_trip_of_a_group(cls):
    assert from_dict(cls, json.loads(json.dumps(to_dict(cls())))) == cls()


def test_unknown_and_missing_keys():
    data = to_dict(TrainConfig())
    with pytest.raises(InputError, match="unknown key 'sede'; did you mean 'seed'"):
        from_dict(TrainConfig, data | {"sede": 1})
    with pytest.raises(InputError, match=r"TrainConfig: unknown key 'zzzzzz'$"):
        from_dict(TrainConfig, data | {"zzzzzz": 1})
    with pytest.raises(InputError, match="Bandit: unknown key 'num_action'; did you mean 'num_ac"):
        from_dict(TrainConfig, data | {"bandit": data["bandit"] | {"num_action": 5}})
    for name in data:
        rest = {key: value for key, value in data.items() if key != name}
        with pytest.raises(InputError, match=f"TrainConfig: missing key '{name}'"):
            from_dict(TrainConfig, rest)


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("", "seed", "1", "seed must be of type int, not '1'"),
        ("", "seed", 1.5, "seed must be of type int, not 1.5"),
        ("", "seed", True, "seed"),
        ("", "seed", None, "seed must be of type int, not None"),
        ("", "seed", -1, "--seed must be at least 0 but -1 was given"),
        ("", "holdout", float("nan"), "--holdout must be a finite number but nan was given"),
        ("", "cache", 5, "cache must be of type Path, not 5"),
        ("", "cache", None, "cache must be of type Path, not None"),
        ("", "split", 3, "split must be of type str, not 3"),
        ("", "resume", "yes", "resume must be of type bool, not 'yes'"),
        ("", "resume", 1, "resume must be of type bool, not 1"),
        ("", "digest", [], "digest must be of type"),
        ("", "device", "gpu", "device must be one of ('auto', 'cpu', 'cuda'), not 'gpu'"),
        ("", "device", ["cpu"], "device must be one of"),
        ("", "bandit", None, "Bandit: expected a dictionary, found NoneType"),
        ("", "bandit", [1], "Bandit: expected a dictionary, found list"),
        ("bandit", "num_actions", 20, "--bandit.num-actions must be odd"),
        ("bandit", "reading", "both", "Bandit: reading must be one of"),
        ("network", "hidden", None, "Network: hidden must be of type int, not None"),
        ("learning", "batch", "32", "Learning: batch must be of type int, not '32'"),
        ("learning", "lr", "1e-4", "Learning: lr must be of type float, not '1e-4'"),
    ],
)
def test_wrong_values_in_json(group, key, value, message):
    data = to_dict(TrainConfig())
    changed = data | {group: data[group] | {key: value}} if group else data | {key: value}
    with pytest.raises(InputError) as error:
        from_dict(TrainConfig, changed)
    assert message in str(error.value)


def test_json_whole_numbers_and_nulls_where_they_fit():
    data = to_dict(TrainConfig())
    data["bandit"] |= {"boundary_width": 1, "max_delta": 1}
    data["learning"]["epsilon_episodes"] = None
    cfg = from_dict(TrainConfig, data | {"digest": "a/last.pt"})
    assert cfg.bandit.boundary_width == 1 and cfg.digest == Path("a/last.pt")
    with pytest.raises(InputError, match="expected a dictionary, found list"):
        from_dict(TrainConfig, [1])


def test_config_key_follows_every_field():
    keys = {settings.config_key(Signal())}
    for spec in fields(Signal):
        value = getattr(Signal(), spec.name)
        others = {"fusion": "harmonic", "loudness": "original"}
        if spec.name in others:
            changed = others[spec.name]
        else:
            changed = not value if isinstance(value, bool) else value * 0.9
        keys.add(settings.config_key(replace(Signal(), **{spec.name: changed})))
    assert len(keys) == 1 + len(fields(Signal))
    assert settings.config_key(Signal()) in keys


KEYS = {  # of the first versions, in which the constants were fields
    Signal: "d8e564202e7ee033",
    Bandit: "ac801ef46e2be66c",
    Network: "846c512bc3d0cc31",
    Learning: "f3b13d7b4fe837ec",
    Events: "175877333ed8e9fe",
}


@pytest.mark.parametrize("cls", GROUPS, ids=names(GROUPS))
def test_a_constant_is_stored_as_the_field_that_it_was(cls):
    assert settings.config_key(cls()) == KEYS[cls]
    stored = to_dict(cls())
    constants = set(stored) - {spec.name for spec in fields(cls)}
    for name in constants:
        assert from_dict(cls, {k: v for k, v in stored.items() if k != name}) == cls()
        with pytest.raises(InputError, match=f"{name} is fixed at .* in this version, not 7"):
            from_dict(cls, stored | {name: 7})
    assert constants


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1


# ---------------------------------------------------------------------------- run_script


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        (None, 0, ""),
        (7, 7, ""),
        (InputError("labels x.tsv: gone"), 2, "DQN.py: error: labels x.tsv: gone\n"),
        (KeyboardInterrupt(), 130, "DQN.py: interrupted\n"),
    ],
)
def test_run_script_ends_without_a_traceback(monkeypatch, capsys, result, code, message):
    monkeypatch.setattr(sys, "argv", ["somewhere/DQN.py", "--seed", "4"])

    def main(cfg):
        assert cfg.seed == 4
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(SystemExit) as stop:
        command.run_script(TrainConfig, main)
    assert stop.value.code == code
    assert capsys.readouterr().err == message
