"""Damaged and hostile files: refused in one line or read as they were, never believed.

Run:    python tests/scripts/test_fuzz.py 300   # the table of docs/results/damage.md, about 20 s

Every reader sees files that are damaged at random places, seeded. Four things may happen: the file
is refused with an InputError; it is read as before (the damage lies where nothing is); it is text
or sound without a checksum, and another valid file now, which must be read to the letter; or it is
believed though changed, which is a failure, as is any other exception, 20 s or 2 GB.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # run as a program
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from corpora import SMALLEST, write_cache, write_policy  # noqa: E402

import config  # noqa: E402
import dasm  # noqa: E402
import detect  # noqa: E402
import DQN  # noqa: E402
import evaluate  # noqa: E402
import preprocess  # noqa: E402
import scorers  # noqa: E402
import soundscapes  # noqa: E402
from comparison import evaluations, systems  # noqa: E402
from config import Bandit, EvaluateConfig, TrainConfig, VisualizeConfig  # noqa: E402
from core import command  # noqa: E402
from core.errors import InputError  # noqa: E402
from core.settings import to_dict  # noqa: E402
from core.stored import file_sha256, read_json  # noqa: E402
from core.tensors import digest, read_checkpoint, with_digest  # noqa: E402
from figures import table_figures  # noqa: E402
from policy import apply, heartbeat, runfolder  # noqa: E402
from policy.supervised import SupervisedTrainer  # noqa: E402
from scores import crnn, score_files  # noqa: E402
from sed import caches, timeline  # noqa: E402
from sed.audio import read_audio  # noqa: E402
from sed.labels import read_labels  # noqa: E402
from sed.timeline import Event, frame_edges, write_labels  # noqa: E402

CPU = torch.device("cpu")
MOST_S, MOST_BYTES = 20, 2 << 30

# ---------------------------------------------------------------------------- limits


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Inside, more than 20 s of CPU or 2 GB more than now is an exception."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {MOST_S} s of CPU")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = pages * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, MOST_S)  # a busy machine makes no reader slow
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---------------------------------------------------------------------------- mutations


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one accident: flipped bits, cut, lost, doubled, moved, overwritten."""
    out, size = bytearray(data), len(data)
    # Half of the accidents hit the first or last 300 bytes, where headers and directories are.
    near = int(rng.integers(min(300, size)))
    at = int(rng.choice([near, size - 1 - near, *rng.integers(size, size=2)]))
    count = int(rng.integers(1, 1 + min(64, size - at)))
    kind = rng.integers(9)
    if kind <= 2:
        for place in [at, *rng.integers(size, size=int(rng.integers(0, 3)))]:
            out[int(place)] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        out[at] = int(rng.integers(256))
    elif kind == 4:
        del out[at:]
    elif kind == 5:
        del out[at : at + count]
    elif kind == 6:
        out[at:at] = out[at : at + count]
    elif kind == 7:
        out[at : at + count] = rng.choice([b"\0", b"\xff", b"9"]) * count
    else:
        out[at:at] = rng.integers(256, size=count, dtype=np.uint8).tobytes()
    return bytes(out)


def spots(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*place, key)
        if isinstance(item, (dict, list)):
            yield from spots(item, (*place, key))


ODD = (None, True, -1, 10**30, 1e300, "", "../../evil", [], {}, [[]], "\ud800", 0.5)


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one value changed, lost, renamed or of another type, as an editor would."""
    value = json.loads(data)
    places = list(spots(value))
    *parents, key = places[int(rng.integers(len(places)))]
    home = value
    for parent in parents:
        home = home[parent]
    kind = rng.integers(4)
    if kind == 0:
        del home[key]
    elif kind == 1 and isinstance(home, dict):
        home[f"{key}_"] = home.pop(key)
    elif kind == 2 and isinstance(home[key], (int, float)):
        home[key] = home[key] + (1 if isinstance(home[key], int) else 1e-3)
    else:
        home[key] = ODD[int(rng.integers(len(ODD)))]
    return json.dumps(value, indent=1).encode()


# ---------------------------------------------------------------------------- what is read


class Target(NamedTuple):
    """A file, and what a reader takes from it: anything that `digest` can tell apart."""

    path: Path
    read: Callable[[], Any]
    # Of files without a checksum: whether what was read is what the damaged file says.
    letter: Callable[[Any, bytes], bool] | None = None


def policy_content(path: Path) -> Any:
    """Everything of a policy that decides."""
    policy = apply.load_policy(path, CPU)
    facts = (to_dict(policy.bandit), policy.signal, policy.info, policy.classes)
    gate = policy.gate and [policy.gate.thresholds, policy.gate.fallback]
    return [policy.network.state_dict(), facts, gate]


def cache_content(folder: Path) -> Any:
    """Everything of a cache that is used."""
    cache = caches.load_cache(folder)
    arrays = [torch.from_numpy(array) for array in (*cache.signals.values(), cache.label)]
    facts = {name: item for name, item in cache.manifest.items() if name != "shards"}
    return [arrays, cache.pairs, cache.clips, facts]


def score_content(path: Path) -> Any:
    """Scores of all clips of a source, in the order of their names."""
    source = score_files.open_scores(path)
    clips = [source.read(clip) for clip in sorted(source.clips())]
    arrays = [[torch.tensor(array) for array in clip if array is not None] for clip in clips]
    return [sorted(source.classes), arrays]


def cells_of(data: bytes) -> list[list[str]]:
    """Cells of every line, read another way than the suite does."""
    text = data.decode("utf-8-sig", "replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [[cell.strip() for cell in line.split("\t")] for line in lines]


def number(cell: str) -> float:
    """A cell as a number; NaN where it is none. Python alone would read 1_0 as 10."""
    try:
        return float("nan" if "_" in cell else cell)
    except ValueError:
        return float("nan")


def labels_to_the_letter(clips: dict[str, list[Event]], data: bytes) -> bool:
    """Every event stands in a line of the file, and every line that has one was read."""
    lines = [row for row in cells_of(data)[1:] if any(row)]
    written = Counter()
    for row in lines:
        times = [number(cell) for cell in row[1:3]]
        if np.isfinite(times).all() and len(times) == 2:
            written[row[0], *times, row[3]] += 1
    read = Counter((name, *event) for name, events in clips.items() for event in events)
    return read == written and set(clips) == {row[0] for row in lines}


def scores_to_the_letter(content: Any, data: bytes) -> bool:
    """Every score and edge of the one clip is a cell of the file."""
    head, *lines = [row for row in cells_of(data) if any(row)]
    classes, ((values, edges),) = content
    table = np.array([[number(cell) for cell in row] for row in lines])
    order = [head.index(name) for name in classes]
    same = np.array_equal(values.numpy(), table[:, order].T.astype(np.float32))
    times = np.array_equal(edges.numpy()[1:-1], table[1:, 0]) and edges[-1] == table[-1, 1]
    return same and times and len(classes) == len(head) - 2


def whole_audio(path: Path) -> Any:
    """Samples and rate. What is wrong with a recording is a ValueError, which names no file."""
    try:
        wav, rate = read_audio(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return [torch.tensor(wav), rate]


def make_targets(home: Path) -> dict[str, Target]:
    """Every kind of file that the suite reads back, small, as its own writers write it."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    cache, run = home / "cache", home / "run"
    for split, seed in (("train", 0), ("validation", 1)):
        write_cache(cache / split, [40, 31, 25, 18], seed=seed)
    best = write_policy(run, cache / "train")
    cfg = TrainConfig(cache=cache, run=run, bandit=Bandit(context=3), network=SMALLEST)
    preprocess.write_json(run / "config.json", to_dict(cfg))
    trainer = DQN.Trainer(cfg, caches.load_cache(cache / "train"), CPU)
    runfolder.write_checkpoint(run / "last.pt", trainer.state())
    with heartbeat.Heartbeat(run, {"episodes": 9, "frames": 900}, 1) as beat:
        beat(trainer.progress)
    baseline = TrainConfig(cache=cache, method="classifier", network=SMALLEST)
    trainer = SupervisedTrainer(baseline, caches.load_cache(cache / "train"), CPU)
    (home / "baseline").mkdir()
    runfolder.write_checkpoint(home / "baseline" / "best.pt", trainer.policy())
    show, table = VisualizeConfig(run=run, cache=cache), home / "table"
    against = EvaluateConfig(cache=cache, compare=("rules", str(run)), out=table, workers=1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main(EvaluateConfig(run=run, cache=cache))
        evaluate.main(against)
    judged = caches.load_cache(cache / "validation")
    labels = {f"{i}.wav": [Event(0.1 * i, 0.5 + i, "Dog")] * (i % 3) for i in range(12)}
    write_labels(home / "labels.tsv", labels)
    write_labels(home / "one.tsv", {"odd.wav": [Event(0.1, 0.2, "Dog")]})
    (home / "tsv").mkdir()
    edges, values = frame_edges(25, 0.02), rng.random((3, 25))
    score_files.write_scores(home / "tsv" / "a.tsv", edges, ["Cat", "Dog", "Speech"], values)
    clips = [timeline.ClipScores(rng.random((2, 20)), frame_edges(20, 0.02)) for _ in range(3)]
    named = ((f"{i}", clip) for i, clip in enumerate(clips))
    score_files.write_archive(home / "scores.npz", ["Cat", "Dog"], named, {"made": "here"})
    wav = 0.3 * np.sin(np.arange(4000) / 9) + rng.normal(0, 0.05, 4000)
    for name in ("a.flac", "a.wav", "a.ogg", "a.mp3"):
        soundfile.write(home / name, wav, 16_000)
    network = crnn.CRNN(4, np.zeros(64, np.float32), np.ones(64, np.float32), np.full(2, 0.5))
    crnn.write_scorer(home / "scorer.pt", crnn.Scorer(network, ["Cat", "Dog"]), 4)
    queries = {"classes": ["a"], "prompts": ["b"], "vectors": torch.randn(1, dasm.WIDTH)}
    torch.save(with_digest(queries), home / "queries.pt")
    store = systems.store_of(best, judged)
    rules = replace_fit(systems.fitted_rules, judged, against)
    sound = {  # without checksums any samples are valid ones; what counts is how it ends
        name: Target(home / name, lambda name=name: whole_audio(home / name), lambda *_: True)
        for name in ("a.wav", "a.ogg", "a.mp3")
    }
    return {
        "shard": Target(
            cache / "train" / "shard-00000.npz", lambda: cache_content(cache / "train")
        ),
        "manifest": Target(
            cache / "train" / "manifest.json", lambda: cache_content(cache / "train")
        ),
        "checkpoint best.pt": Target(best, lambda: policy_content(best)),
        "checkpoint last.pt": Target(run / "last.pt", lambda: read_checkpoint(run / "last.pt")),
        "checkpoint of a baseline": Target(
            home / "baseline" / "best.pt",
            lambda: apply.load_policy(home / "baseline" / "best.pt", CPU).network.state_dict(),
        ),
        "config.json": Target(
            run / "config.json",
            lambda: to_dict(runfolder.config_of(TrainConfig, read_json(run / "config.json", ""))),
        ),
        "status.json": Target(run / "status.json", lambda: heartbeat.read_beat(run)),
        "results.json": Target(
            run / "results.json", lambda: evaluations.load_evaluated(show).results
        ),
        "decisions.npz": Target(
            run / "decisions.npz",
            lambda: [torch.tensor(a) for a in evaluations.load_evaluated(show)[2:5]],
        ),
        "results.json of a table": Target(
            table / "results.json", lambda: table_figures.load_table(table).results
        ),
        "pairs.csv of a table": Target(
            table / "pairs.csv",
            lambda: [
                torch.from_numpy(f1) for f1 in table_figures.load_table(table).pairs.f1.values()
            ],
        ),
        "stored decisions": Target(
            store,
            lambda: [torch.tensor(x) for x in systems.stored_decisions(store, judged)[:3]],
        ),
        "rules.json": Target(table / "rules.json", rules),
        "label TSV": Target(
            home / "labels.tsv", lambda: read_labels(home / "labels.tsv"), labels_to_the_letter
        ),
        "score TSV": Target(
            home / "tsv" / "a.tsv", lambda: score_content(home / "tsv"), scores_to_the_letter
        ),
        "score NPZ": Target(home / "scores.npz", lambda: score_content(home / "scores.npz")),
        "FLAC": Target(home / "a.flac", lambda: whole_audio(home / "a.flac")),
        **{f"{name.partition('.')[2].upper()}": target for name, target in sound.items()},
        "scorer.pt": Target(
            home / "scorer.pt",
            lambda: crnn.load_scorer(home / "scorer.pt", CPU).network.state_dict(),
        ),
        "queries.pt": Target(
            home / "queries.pt", lambda: dasm.load_queries(home / "queries.pt", ["a"])
        ),
    }


def replace_fit(fitted: Callable, cache: Any, cfg: EvaluateConfig) -> Callable[[], Any]:
    """Reads the stored rules; where they would be tuned anew, they count as refused."""
    train = caches.load_cache(cfg.cache / "train")

    def read() -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise InputError("would be tuned again")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "tuning", refuse)
            with fitted(train, None, cfg) as tuned:
                return [rule._asdict() for rule in tuned()]

    return read


# ---------------------------------------------------------------------------- the trial

COLUMNS = ("tried", "refused", "unchanged", "valid", "changed")


def trial(name: str, target: Target, count: int) -> dict[str, int]:
    """Damage a file so many times and count what its reader makes of it."""
    rng, data = np.random.default_rng([count, *name.encode()]), target.path.read_bytes()
    original = digest(target.read())
    counts = dict.fromkeys(COLUMNS, 0)
    try:
        while counts["tried"] < count:
            by_editor = target.path.suffix == ".json" and rng.random() < 0.5
            mutant = (edited if by_editor else damaged)(data, rng)
            if mutant == data:
                continue
            counts["tried"] += 1
            target.path.write_bytes(mutant)
            said = io.StringIO()
            try:
                with limits(), contextlib.redirect_stdout(said):
                    found = target.read()
                    same = digest(found) == original
            except InputError as error:
                assert "\n" not in str(error), (name, str(error))
                counts["refused"] += 1
                continue
            if found is None:  # a heartbeat that is not believed
                counts["refused"] += 1
            elif same:
                counts["unchanged"] += 1
            elif target.letter is not None and target.letter(found, mutant):
                counts["valid"] += 1
            else:
                counts["changed"] += 1
                (target.path.parent / f"believed-{target.path.name}").write_bytes(mutant)
    finally:
        target.path.write_bytes(data)
    return counts


NAMES = (
    *("shard", "manifest", "checkpoint best.pt", "checkpoint last.pt", "checkpoint of a baseline"),
    *("config.json", "status.json", "results.json", "decisions.npz", "results.json of a table"),
    *("pairs.csv of a table", "stored decisions", "rules.json", "label TSV", "score TSV"),
    *("score NPZ", "FLAC", "WAV", "OGG", "MP3", "scorer.pt", "queries.pt"),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    found = make_targets(tmp_path_factory.mktemp("fuzz"))
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_never_believed(targets, name, count):
    counts = trial(name, targets[name], count)
    assert counts["changed"] == 0 and counts["refused"] > 0


# ---------------------------------------------------------------------------- hostile files


@pytest.fixture
def spoiled(targets) -> Iterator[dict[str, Target]]:
    """The files of the trials, as they were again after the test."""
    paths = {target.path for target in targets.values()}
    before = {path: path.read_bytes() for path in paths}
    yield targets
    for path, data in before.items():
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def fails(read: Callable[[], Any]) -> str:
    """The one line with which a reader refuses, within the limits."""
    with limits(), pytest.raises(InputError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


def sign(path: Path) -> None:
    """Give a shard that was changed the right checksum in its manifest."""
    manifest = path.parent / "manifest.json"
    if manifest.exists():
        content = json.loads(manifest.read_text())
        content["shards"][0]["sha256"] = file_sha256(path)
        preprocess.write_json(manifest, content)


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


ARRAYS = {
    "shard": "prob",
    "decisions.npz": "t_adj",
    "stored decisions": "action",
    "score NPZ": "values",
}
TENSORS = ("checkpoint best.pt", "checkpoint last.pt", "checkpoint of a baseline", "scorer.pt")
TENSORS += ("queries.pt",)
OURS = ("manifest", "config.json", "results.json", "results.json of a table", "rules.json")


@pytest.mark.parametrize("name", ARRAYS)
def test_no_object_is_taken_from_an_array(spoiled, name, tmp_path):
    path, marker = spoiled[name].path, tmp_path / "ran"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | {ARRAYS[name]: np.array([Bomb(marker)], object)}))
    sign(path)
    assert "Python objects" in fails(spoiled[name].read)
    assert not marker.exists()


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bare", [False, True])
def test_no_code_runs_from_a_checkpoint(spoiled, name, bare, tmp_path):
    path, marker = spoiled[name].path, tmp_path / "ran"
    if bare:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save(torch.load(path, weights_only=True) | {"more": Bomb(marker)}, path)
    fails(spoiled[name].read)
    assert not marker.exists()
    assert pickle.loads(pickle.dumps(Bomb(marker))) is None and marker.exists()  # it would have


def claims(path: Path, name: str, rows: int) -> None:
    """Give an array of an .npz file a header that claims so many rows."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            if member == f"{name}.npy":
                stream = io.BytesIO()
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(stream, header)
                data = stream.getvalue() + bytes(64)
            archive.writestr(zipfile.ZipInfo(member), data)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("rows", [10**12, 2**62])
def test_a_header_that_claims_terabytes_is_not_believed(spoiled, name, rows):
    claims(spoiled[name].path, ARRAYS[name], rows)
    sign(spoiled[name].path)
    assert "claims" in fails(spoiled[name].read)


def bomb(path: Path, member: str, size: int) -> None:
    """A zip file that unpacks to so many zero bytes behind the header of an array."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w", force_zip64=True) as out,
    ):
        out.write(stream.getvalue())
        for _ in range(size >> 20):
            out.write(bytes(1 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
def test_a_zip_bomb_is_not_unpacked(spoiled, name):
    path = spoiled[name].path
    with np.load(path) as stored:
        arrays = dict(stored)
    del arrays[ARRAYS[name]]
    np.savez(path, **arrays)
    bomb(path, f"{ARRAYS[name]}.npy", 3 << 30)
    sign(path)
    assert path.stat().st_size < 1 << 25
    fails(spoiled[name].read)


@pytest.mark.parametrize("name", TENSORS)
def test_a_compressed_checkpoint_is_not_unpacked(spoiled, name):
    """torch.save never compresses, torch.load would unpack anything."""
    path = spoiled[name].path
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    assert "compressed" in fails(spoiled[name].read)


def test_a_checkpoint_that_claims_a_large_network_takes_no_memory(spoiled):
    path = spoiled["checkpoint best.pt"].path
    content = runfolder.read_checkpoint(path)
    stored = json.loads(content["config"])
    stored["network"] |= {"hidden": 4096, "transformer_layers": 16}
    runfolder.write_checkpoint(path, content | {"config": json.dumps(stored)})
    assert "do not fit" in fails(spoiled["checkpoint best.pt"].read)


def test_a_tensor_that_repeats_itself_for_terabytes_is_refused(spoiled):
    path = spoiled["checkpoint best.pt"].path
    content = torch.load(path, weights_only=True)
    torch.save(content | {"more": torch.zeros(1).expand(10**12)}, path)
    assert "claims more" in fails(spoiled["checkpoint best.pt"].read)


def test_lists_in_lists_that_claim_any_number_are_refused(spoiled):
    path, lists = spoiled["checkpoint best.pt"].path, [0]
    for _ in range(60):
        lists = [lists, lists]
    torch.save(torch.load(path, weights_only=True) | {"more": lists}, path)
    fails(spoiled["checkpoint best.pt"].read)


@pytest.mark.parametrize("name", [*OURS, "status.json"])
@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 100_000, "NaN", ""])
def test_no_json_is_too_deep(spoiled, name, text):
    spoiled[name].path.write_text(text)
    if name == "status.json":
        with limits():
            assert spoiled[name].read() is None
    else:
        fails(spoiled[name].read)


def test_brackets_inside_other_files(spoiled):
    path = spoiled["score NPZ"].path
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | {"meta": np.array("[" * 200_000)}))
    assert "JSON" in fails(spoiled["score NPZ"].read)
    path = spoiled["checkpoint best.pt"].path
    content = runfolder.read_checkpoint(path)
    runfolder.write_checkpoint(path, content | {"config": "[" * 200_000})
    fails(spoiled["checkpoint best.pt"].read)


def test_absurd_numbers_in_a_config(spoiled):
    path = spoiled["config.json"].path
    own = json.loads(path.read_text())
    for group, name, value in (
        ("", "passes", 999_999_999_999),
        ("", "seed", 10**400),
        ("network", "hidden", 10**12),
        ("learning", "replay", 10**12),
        ("learning", "lanes", 10**9),
    ):
        changed = {name: value} if not group else {group: own[group] | {name: value}}
        preprocess.write_json(path, own | changed)
        assert name.replace("_", "-") in fails(spoiled["config.json"].read)


def test_more_episodes_than_a_run_can_have(targets):
    home = targets["manifest"].path.parent.parent
    cfg = TrainConfig(cache=home, run=home / "never", passes=900_000_000)
    assert "--passes" in fails(lambda: DQN.train(cfg, CPU, DQN.ALONE))


@pytest.mark.parametrize("samples", [2**36 - 1, 10**9])
def test_a_flac_that_claims_gigabytes(spoiled, samples):
    """The total number of samples has 36 bits (RFC 9639, 8.2)."""
    path = spoiled["FLAC"].path
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    path.write_bytes(data)
    assert "samples" in fails(spoiled["FLAC"].read)


def test_a_flac_that_was_cut_or_relabelled(spoiled):
    path = spoiled["FLAC"].path
    original = path.read_bytes()
    data = bytearray(original)
    data[24:26] = struct.pack(">H", 3_000)  # fewer samples than there are
    path.write_bytes(data)
    assert "MD5" in fails(spoiled["FLAC"].read)
    data = bytearray(original)
    data[18] ^= 0x01  # another sample rate: 20 bits from byte 18 on
    path.write_bytes(data)
    assert "Hz" in fails(spoiled["FLAC"].read)


# ---------------------------------------------------------------------------- what is no file


def refused(capsys: Any, main: Callable[[], Any]) -> str:
    """The one line with which a script ends, exit code 2, within the limits."""
    capsys.readouterr()
    with limits(), pytest.raises(SystemExit) as end:
        command.run_main(main)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert end.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def commands(home: Path, odd: Path) -> dict[str, Callable[[], Any]]:
    """A command for every flag that takes a file, with something odd in its place."""
    cache, tsv, best = home / "cache", home / "tsv", home / "run" / "best.pt"
    made = {"cache": home / "made", "split": "train", "workers": 1}
    listed = {"labels": home / "one.tsv", "scores": tsv}
    soundscape = {"out": home / "made", "workers": 1, "train_clips": 1, "validation_clips": 1}
    out, events = home / "out", home / "events.tsv"
    return {
        "--labels": lambda: preprocess.main(
            config.PreprocessConfig(**made, **(listed | {"labels": odd}))
        ),
        "--scores": lambda: preprocess.main(
            config.PreprocessConfig(**made, **(listed | {"scores": odd}))
        ),
        "--convert": lambda: scorers.main(config.ScorersConfig(convert=odd, out=home / "x.npz")),
        "--policy": lambda: detect.main(config.DetectConfig(policy=odd, scores=tsv, out=events)),
        "--scores of detect": lambda: detect.main(
            config.DetectConfig(policy=best, scores=odd, out=events)
        ),
        "--scorer": lambda: detect.main(
            config.DetectConfig(policy=best, audio=home / "a.wav", scorer=odd, out=events)
        ),
        "--audio": lambda: detect.main(
            config.DetectConfig(policy=best, audio=odd, scores=tsv, out=events)
        ),
        "--checkpoint": lambda: evaluate.main(EvaluateConfig(checkpoint=odd, out=out, cache=cache)),
        "--compare": lambda: evaluate.main(
            EvaluateConfig(compare=(f"x={odd}",), out=out, cache=cache)
        ),
        "--digest": lambda: DQN.main(TrainConfig(digest=odd)),
        "--class-map": lambda: soundscapes.main(
            config.SoundscapesConfig(**soundscape, class_map=odd)
        ),
        "--train-timeline": lambda: soundscapes.main(
            config.SoundscapesConfig(**soundscape, train_timeline=(odd,))
        ),
        "--query-file": lambda: dasm.read_query_file(odd, "raw"),
        "--queries": lambda: dasm.load_queries(odd, []),
    }


KINDS = ("pipe", "socket", "device", "folder")


@pytest.mark.parametrize("flag", commands(Path(), Path()))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused(targets, tmp_path, capsys, monkeypatch, kind, flag):
    """A pipe would be waited for, a device read forever."""
    home = targets["label TSV"].path.parent
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    odd = Path("odd.tsv" if flag == "--compare" else "odd.npz" if "score" in flag else "odd")
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(odd))
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        odd.mkdir()
    assert "odd" in refused(capsys, commands(home, odd)[flag])


def test_a_table_of_one_line(targets, tmp_path, capsys):
    home, odd = targets["label TSV"].path.parent, tmp_path / "odd.tsv"
    with open(odd, "wb") as stream:
        for _ in range(200):
            stream.write(b"0.5\t" * (1 << 18))
    for flag in ("--labels", "--compare", "--class-map", "--train-timeline", "--query-file"):
        assert "longer than" in refused(capsys, commands(home, odd)[flag])
    (tmp_path / "scores").mkdir()
    odd.rename(tmp_path / "scores" / "odd.tsv")
    for flag in ("--scores", "--convert", "--scores of detect"):
        assert "odd.tsv" in refused(capsys, commands(home, tmp_path / "scores")[flag])


# ---------------------------------------------------------------------------- the table


def main(count: int) -> None:
    """Print the table of docs/results/damage.md."""
    import tempfile

    print(
        "| file | tried | refused | read as before | another valid file | believed though changed |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for kind, target in make_targets(Path(name)).items():
            counts = trial(kind, target, count)
            print(
                f"| {kind} | {' | '.join(str(counts[column]) for column in COLUMNS)} |", flush=True
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
