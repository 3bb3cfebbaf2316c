"""Active learning: official file formats, classifier, strategies, resumption, commands, tables."""

import dataclasses
import gzip
import hashlib
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

pytest.importorskip("sklearn")

from core.command import parse
from core.errors import InputError
from core.settings import to_dict
from policy.runfolder import digest, read_checkpoint
from sed.metrics import student_mean
from studies.active_learning import classifier as networks
from studies.active_learning import commands, strategies, tables
from studies.active_learning import images as loaders
from studies.active_learning.classifier import (
    augment,
    fit,
    learning_rate,
    make_classifier,
    normalisation,
    predict,
)
from studies.active_learning.commands import (
    AGENT,
    Run,
    finish,
    generator,
    open_bench,
    play,
    play_all,
    stored,
)
from studies.active_learning.images import CIFAR, FASHION, Official, load_images
from studies.active_learning.settings import COMMANDS, REPLAY, STRATEGIES, CompareConfig, settle
from studies.active_learning.strategies import (
    SELECT,
    UNCERTAINTY,
    Selector,
    View,
    badge,
    balance,
    highest,
    k_centre,
    make_states,
    ranking,
)
from studies.active_learning.tables import Finished, area, wins

CPU = torch.device("cpu")
TINY = ("--cycles", "3", "--first", "20", "--per-cycle", "10", "--epochs", "1", "--width", "2")
FEW = (*TINY, "--workers", "1", "--device", "cpu")


def main(args: list[str]) -> None:
    commands.main(parse(COMMANDS, args))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def small_study(out: Path, **changes) -> CompareConfig:
    """Settled digits study of seconds."""
    sizes = {"cycles": 3, "first": 20, "per_cycle": 10, "epochs": 1, "width": 2, "seeds": 1}
    return settle(CompareConfig(out=out, workers=1, device="cpu", **(sizes | changes)))


@pytest.fixture(scope="module")
def bench():
    return open_bench("digits", None, CPU)


# ---------------------------------------------------------------------------- official formats


def cifar_bytes(labels: np.ndarray, pixels: np.ndarray, coarse: bool) -> bytes:
    """Records as on the authors' page: (superclass,) class, then the planes R, G, B."""
    columns = [labels[:, None].astype(np.uint8), pixels.reshape(len(pixels), -1)]
    return np.concatenate([np.full((len(labels), 1), 7, np.uint8)] * coarse + columns, 1).tobytes()


def write_cifar(name: str, folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All files of a binary version, with two images each; what they hold."""
    layout, held = CIFAR[name], {}
    folder.mkdir(parents=True)
    for file in (*layout.train, layout.test):
        labels = rng.integers(layout.num_classes, size=2)
        pixels = rng.integers(256, size=(2, 3, 32, 32), dtype=np.uint8)
        (folder / file).write_bytes(cifar_bytes(labels, pixels, name == "cifar100"))
        held[file] = (labels, pixels)
    names = "".join(f"class {i}\n" for i in range(layout.num_classes))
    (folder / layout.names).write_text(names + "\n")
    return held


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_as_its_page_says(name, tmp_path, rng):
    layout = CIFAR[name]
    held = write_cifar(name, tmp_path / layout.folder, rng)
    images = load_images(name, tmp_path)
    labels, pixels = (np.concatenate(p) for p in zip(*map(held.get, layout.train), strict=True))
    assert images.train.dtype == torch.uint8
    assert np.array_equal(images.train, pixels) and np.array_equal(images.train_labels, labels)
    assert np.array_equal(images.test_labels, held[layout.test][0])
    assert np.array_equal(images.test, held[layout.test][1])
    assert images.classes[-1] == f"class {layout.num_classes - 1}"
    assert "checksum unknown" in images.source


def pack(name: str, folder: Path, monkeypatch) -> Path:
    """The files as an archive that passes for the official one; its path."""
    layout = CIFAR[name]
    path = folder / "elsewhere" / layout.archive.name
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / layout.folder, layout.folder)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    published = Official(layout.archive.name, path.as_uri(), md5)
    monkeypatch.setitem(CIFAR, name, layout._replace(archive=published))
    return path


def test_archive_is_downloaded_checked_and_read(tmp_path, rng, monkeypatch, capfd):
    held = write_cifar("cifar10", tmp_path / "cifar-10-batches-bin", rng)
    path = pack("cifar10", tmp_path, monkeypatch)
    images = load_images("cifar10", tmp_path / "empty")
    assert "100%" in capfd.readouterr().err and "checksum right" in images.source
    assert np.array_equal(images.test, held["test_batch.bin"][1]) and len(images.train) == 10
    kept = tmp_path / "empty" / path.name
    assert kept.read_bytes() == path.read_bytes() and not list(tmp_path.rglob("*.tmp"))
    path.unlink()  # what is there is not downloaded again
    assert torch.equal(load_images("cifar10", tmp_path / "empty").train, images.train)
    kept.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not the official file: MD5"):
        load_images("cifar10", tmp_path / "empty")


def test_another_file_behind_the_address_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "page").write_text("<html>")
    layout = CIFAR["cifar10"]
    wrong = layout.archive._replace(url=(tmp_path / "page").as_uri())
    monkeypatch.setitem(CIFAR, "cifar10", layout._replace(archive=wrong))
    with pytest.raises(InputError, match="not the official file"):
        load_images("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_no_network_is_one_line(name, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9/file.gz"
    for key, layout in CIFAR.items():
        gone = layout.archive._replace(url=nowhere)
        monkeypatch.setitem(CIFAR, key, layout._replace(archive=gone))
    monkeypatch.setattr(loaders, "FASHION", tuple(f._replace(url=nowhere) for f in FASHION))
    with pytest.raises(InputError, match=r"cannot be downloaded \(.*; put .* into") as caught:
        load_images(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_cifar_is_named(tmp_path, rng):
    folder = tmp_path / "files"
    held = write_cifar("cifar10", folder, rng)
    first = folder / "data_batch_1.bin"
    good = first.read_bytes()
    first.write_bytes(good[:-1])
    with pytest.raises(InputError, match=r"data_batch_1.bin: 6145 bytes are not records of 3073"):
        load_images("cifar10", folder)
    labels, pixels = held["data_batch_1.bin"]
    first.write_bytes(cifar_bytes(np.array([labels[0], 200]), pixels, False))
    with pytest.raises(InputError, match=r"data_batch_1.bin: record 1 has label 200; 10 classes"):
        load_images("cifar10", folder)
    first.write_bytes(good)
    (folder / "batches.meta.txt").write_text("cat\n")
    with pytest.raises(InputError, match="1 class names instead of 10"):
        load_images("cifar10", folder)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_3.bin: not found"):
        load_images("cifar10", folder)


def test_a_part_is_drawn_evenly_and_read_back(tmp_path, rng, monkeypatch, capsys):
    """The command, on an archive that passes for the official one."""
    layout = CIFAR["cifar10"]
    folder = tmp_path / layout.folder
    held = write_cifar("cifar10", folder, rng)
    pixels = rng.integers(256, size=(60, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(60) % 10
    for file in (*layout.train, layout.test):
        (folder / file).write_bytes(cifar_bytes(labels, pixels, False))
    assert held
    pack("cifar10", tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    main(["draw", "--train", "40", "--test", "20"])
    assert "checksum right" in capsys.readouterr().out
    part = load_images("cifar10", Path("data/cifar10-small"))
    assert torch.bincount(part.train_labels).tolist() == [4] * 10
    assert torch.bincount(part.test_labels).tolist() == [2] * 10
    for image, label in zip(part.train.numpy(), part.train_labels, strict=True):
        assert labels[(pixels == image).all((1, 2, 3)).argmax()] == label
    with pytest.raises(InputError, match="is there already"):
        main(["draw", "--train", "40", "--test", "20"])
    for flags in (["--train", "44", "--test", "10"], ["--train", "40", "--test", "70"]):
        with pytest.raises(InputError, match="class"):
            main(["draw", "--out", "data/other", *flags])
        assert not Path("data/other").exists()


def idx_bytes(array: np.ndarray) -> bytes:
    """IDX as on the MNIST page: 0, 0, 8, number of axes, axes as big-endian int32, bytes."""
    axes = np.array(array.shape, dtype=">i4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + axes + array.astype(np.uint8).tobytes()


def write_fashion(folder: Path, rng: np.random.Generator) -> list[np.ndarray]:
    """The four unpacked files, five training and three test images; what they hold."""
    arrays = []
    for count in (5, 3):
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        images[0] = 77
        arrays += [images, rng.integers(10, size=count)]
    folder.mkdir()
    for file, array in zip(FASHION, arrays, strict=True):
        (folder / file.name.removesuffix(".gz")).write_bytes(idx_bytes(array))
    return arrays


def test_fashion_mnist_is_read_as_its_page_says(tmp_path, rng, monkeypatch):
    arrays = write_fashion(tmp_path / "plain", rng)
    images = load_images("fashion-mnist", tmp_path / "plain")
    assert images.train.shape == (5, 3, 32, 32) and images.test.shape == (3, 3, 32, 32)
    assert np.array_equal(images.train_labels, arrays[1])
    assert np.array_equal(images.test_labels, arrays[3])
    assert (images.train[0] == 77).all()  # enlarging keeps what is flat
    assert torch.equal(images.train[:, 0], images.train[:, 2])
    assert np.array_equal(images.train[:, 0, 0, 0], arrays[0][:, 0, 0])  # corners stay corners
    packed = tmp_path / "packed"
    packed.mkdir()
    files = []
    for file in FASHION:
        raw = gzip.compress((tmp_path / "plain" / file.name.removesuffix(".gz")).read_bytes())
        (packed / file.name).write_bytes(raw)
        files.append(file._replace(md5=hashlib.md5(raw).hexdigest()))
    with pytest.raises(InputError, match=r"train-images.*not the official file"):
        load_images("fashion-mnist", packed)
    monkeypatch.setattr(loaders, "FASHION", tuple(files))
    again = load_images("fashion-mnist", packed)
    assert torch.equal(again.train, images.train) and "checksums right" in again.source


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: b"\x00\x00\x0d" + raw[3:], "not an IDX file"),
        (lambda raw: raw[:-1], "do not hold"),
        (lambda raw: raw[:6], "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_damaged_idx_is_named(spoil, said, tmp_path, rng):
    write_fashion(tmp_path / "files", rng)
    path = tmp_path / "files" / "t10k-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte: .*{said}"):
        load_images("fashion-mnist", tmp_path / "files")


def test_fashion_images_and_labels_must_fit(tmp_path, rng):
    write_fashion(tmp_path / "files", rng)
    (tmp_path / "files" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4)))
    with pytest.raises(InputError, match="train-images"):
        load_images("fashion-mnist", tmp_path / "files")
    (tmp_path / "files" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="train-labels-idx1-ubyte: not found"):
        load_images("fashion-mnist", tmp_path / "files")


def test_real_cifar_images(shared_data):
    folder = shared_data / "cifar10_small"
    images = load_images("cifar10", folder)
    assert images.train.shape == (4000, 3, 32, 32) and images.test.shape == (1000, 3, 32, 32)
    assert torch.bincount(images.train_labels).tolist() == [400] * 10
    assert images.classes[0] == "airplane" and images.classes[9] == "truck"
    mean, std = normalisation(images.train)
    # Of all 50,000 images: 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616.
    assert np.allclose(mean.flatten() / 255, [0.4914, 0.4822, 0.4465], atol=0.02)
    assert np.allclose(std.flatten() / 255, [0.2470, 0.2435, 0.2616], atol=0.02)
    neighbours = (images.train[:, :, :, 1:].int() - images.train[:, :, :, :-1].int()).abs()
    assert neighbours.double().mean() < 15  # rows and planes are where they belong


def test_digits_are_split_once(bench):
    images = bench.images
    assert len(images.train) == 1297 and len(images.test) == 500
    assert torch.bincount(images.test_labels).min() > 35
    assert int(images.train.max()) == 240
    assert bench.key == open_bench("digits", None, CPU).key


# ---------------------------------------------------------------------------- classifier


def test_resnet18_is_the_cifar_form():
    images = load_images("digits", Path())._replace(train=torch.zeros(1, 3, 32, 32))
    network = make_classifier("resnet18", 64, images, 0, CPU)
    assert sum(weight.numel() for weight in network.parameters()) == 11_173_962
    network = make_classifier("resnet18", 4, images, 0, CPU).eval()
    trunk = list(network.trunk)[:-2]
    assert torch.nn.Sequential(*trunk)(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 4, 4)
    logits, features = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10) and features.shape == (2, 32)


def test_weights_come_from_their_seed(bench):
    state = torch.get_rng_state()
    one, same, other = (make_classifier("small", 4, bench.images, s, CPU) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(one.state_dict()) == digest(same.state_dict()) != digest(other.state_dict())


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_image_is_a_crop_of_the_padded_one(flip, rng):
    pixels = torch.from_numpy(rng.integers(1, 256, size=(40, 3, 5, 6), dtype=np.uint8))
    draws = torch.Generator().manual_seed(0)
    after = augment(pixels, 2, flip, draws)
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = []
    for image, result in zip(padded, after.numpy(), strict=True):
        choices = {
            (mirrored, top, left): version[:, top : top + 5, left : left + 6]
            for mirrored, version in enumerate((image, image[:, :, ::-1]))
            for top in range(5)
            for left in range(5)
        }
        (match,) = (key for key, crop in choices.items() if np.array_equal(crop, result))
        found.append(match)
    mirrored, top, left = zip(*found, strict=True)
    assert set(mirrored) == ({0, 1} if flip else {0})
    assert set(top) == set(left) == set(range(5))
    assert torch.equal(augment(pixels, 2, flip, torch.Generator().manual_seed(0)), after)


def test_nothing_to_augment_is_nothing(rng):
    pixels = torch.from_numpy(rng.integers(256, size=(4, 3, 8, 8), dtype=np.uint8))
    assert torch.equal(augment(pixels, 0, False, torch.Generator()), pixels)


def test_learning_rate_falls_where_the_slides_say():
    cfg = settle(CompareConfig(dataset="cifar10"))
    rates = [learning_rate(cfg, epoch) for epoch in range(200)]
    assert set(rates[:160]) == {0.1} and np.allclose(rates[160:], 0.01)


def test_prediction_is_in_evaluation_mode_and_batches_change_nothing(bench, monkeypatch):
    classifier = make_classifier("small", 4, bench.images, 0, CPU)
    cfg = settle(CompareConfig(epochs=3))
    fit(classifier, bench.images, torch.arange(100), bench.norm, cfg, torch.Generator())
    before = digest(classifier.state_dict())
    whole = predict(classifier.train(), bench.images.test, bench.norm)
    monkeypatch.setattr(networks, "PREDICT_BATCH", 99)
    parts = predict(classifier.train(), bench.images.test, bench.norm)
    assert digest(classifier.state_dict()) == before
    assert torch.allclose(whole.probabilities, parts.probabilities, atol=1e-6)
    assert torch.allclose(whole.features, parts.features, atol=1e-5)
    assert torch.allclose(whole.probabilities.sum(1), torch.ones(500), atol=1e-5)


def test_batches_of_an_epoch_are_equal(bench, monkeypatch):
    sizes = []
    monkeypatch.setattr(networks, "augment", lambda p, *_: sizes.append(len(p)) or p)
    classifier = make_classifier("small", 2, bench.images, 0, CPU)
    cfg = settle(CompareConfig(epochs=1))
    fit(classifier, bench.images, torch.arange(100), bench.norm, cfg, torch.Generator())
    assert sizes == [25] * 4


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_few_channels_do_not_crash_the_interpreter(width, network, rng, bench):
    """torch's channels-last convolution on a CPU did."""
    pixels = torch.from_numpy(rng.integers(256, size=(40, 3, 32, 32), dtype=np.uint8))
    images = bench.images._replace(train=pixels, train_labels=torch.arange(40) % 10)
    classifier = make_classifier(network, width, images, 0, CPU)
    assert all(weight.is_contiguous() for weight in classifier.parameters())
    cfg = settle(CompareConfig(dataset="cifar10", epochs=1, batch=20, lr=0.01))
    norm = normalisation(pixels)
    fit(classifier, images, torch.arange(40), norm, cfg, torch.Generator().manual_seed(0))
    assert predict(classifier, pixels, norm).probabilities.shape == (40, 10)
    with pytest.raises(ValueError, match="at least 2"):
        CompareConfig(width=1)


def test_divergence_is_said(bench):
    classifier = make_classifier("small", 2, bench.images, 0, CPU)
    with torch.no_grad():
        classifier.head.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="smaller --lr"):
        predict(classifier, bench.images.test, bench.norm)


# ---------------------------------------------------------------------------- strategies


def test_state_is_probabilities_maximum_margin_entropy():
    p = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    entropy = -(0.2 * np.log(0.2) + 0.5 * np.log(0.5) + 0.3 * np.log(0.3))
    expected = [[0.2, 0.5, 0.3, 0.5, 0.2, entropy], [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]]
    assert torch.allclose(make_states(p), torch.tensor(expected, dtype=torch.float32))


def test_uncertainty_takes_the_least_certain():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05], [0.6, 0.2, 0.2]])
    first = {name: int(highest(score(p), 1)) for name, score in UNCERTAINTY.items()}
    assert first == {"margin": 0, "least-confidence": 1, "entropy": 1}
    assert highest(UNCERTAINTY["margin"](p), 3).tolist() == [0, 1, 3]


def test_ranking_is_the_area_under_the_roc_curve(rng):
    scores, errors = rng.integers(5, size=80).astype(float), rng.random(80) < 0.3
    found = ranking(torch.from_numpy(scores), torch.from_numpy(errors))
    assert found == pytest.approx(roc_auc_score(errors, scores))
    assert np.isnan(ranking(torch.zeros(3), torch.ones(3, dtype=torch.bool)))


def test_balance_is_the_effective_share_of_the_classes():
    assert balance(torch.arange(10), 10) == pytest.approx(1.0)
    assert balance(torch.tensor([3, 3, 3]), 10) == pytest.approx(0.1)
    assert balance(torch.tensor([0, 0, 5, 5]), 10) == pytest.approx(0.2)


def view_of(rng: np.random.Generator, count: int = 60) -> View:
    p = torch.from_numpy(rng.dirichlet(np.ones(4), count)).float()
    features = torch.from_numpy(rng.normal(size=(count, 5))).float()
    return View(p, features, torch.from_numpy(rng.normal(size=(9, 5))).float())


def test_k_centre_is_the_greedy_rule(rng):
    view = view_of(rng)
    centres = list(view.labelled_features.double().numpy())
    points, expected = view.features.double().numpy(), []
    for _ in range(12):
        far = [min(np.linalg.norm(x - c) for c in centres) for x in points]
        expected.append(int(np.argmax(far)))
        centres.append(points[expected[-1]])
    assert k_centre(view, 12).tolist() == expected


def test_badge_is_k_means_plus_plus_on_gradient_embeddings(rng):
    view = view_of(rng)
    error = view.probabilities - torch.nn.functional.one_hot(view.probabilities.argmax(1), 4)
    embedding = (error[:, :, None] * view.features[:, None]).flatten(1)  # (U, K F)
    draws, at = torch.Generator().manual_seed(3), int(embedding.norm(dim=1).argmax())
    expected, nearest = [at], torch.full((60,), torch.inf)
    for _ in range(11):
        nearest = nearest.minimum((embedding - embedding[expected[-1]]).square().sum(1))
        expected.append(int(torch.multinomial(nearest, 1, generator=draws)))
    assert badge(view, 12, torch.Generator().manual_seed(3)).tolist() == expected


@pytest.mark.parametrize("rule", [k_centre, lambda v, n: badge(v, n, torch.Generator())])
def test_copies_of_an_image_are_not_bought_twice(rule, rng):
    view = view_of(rng, 6)
    copies = View(view.probabilities[[0] * 6], view.features[[0] * 6], view.features[:1])
    assert sorted(rule(copies, 6).tolist()) == list(range(6))


def test_selector_stores_as_many_skipped_images(rng):
    selector = Selector(4, 1e-3, 0, CPU)
    states = make_states(view_of(rng).probabilities)
    chosen, wrong = torch.tensor([5, 7, 30]), torch.tensor([True, False, True])
    selector.store(states, chosen, wrong, rng)
    columns = {name: column[:6] for name, column in selector.replay.columns.items()}
    assert len(selector.replay) == 6
    assert columns["action"].tolist() == [1, 1, 1, 0, 0, 0]
    assert columns["reward"].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert torch.equal(columns["state"][:3], states[chosen])
    others = [int((states == row).all(1).nonzero()) for row in columns["state"][3:]]
    assert len({5, 7, 30, *others}) == 6


def test_selector_learns_where_the_classifier_is_wrong(rng):
    selector = Selector(4, 1e-2, 0, CPU)
    states = make_states(view_of(rng, 400).probabilities)
    wrong = states[:, 4] < 0.5  # the maximum
    selector.store(states, torch.arange(300), wrong[:300], rng)
    selector.learn(300, rng)
    scores = selector.scores(states[300:])
    # Ten seeds had 0.77 to 0.96, and an error of 0.05 to 0.16; knowing nothing: 0 and 0.5.
    assert scores[wrong[300:]].mean() - scores[~wrong[300:]].mean() > 0.5
    assert (scores - wrong[300:].float()).abs().mean() < 0.3
    skip = selector.network(states)[:, 1 - SELECT]
    assert skip.abs().mean() < 0.1  # what is skipped pays nothing


# ---------------------------------------------------------------------------- runs


def ends(cfg: CompareConfig, run: Run, bench) -> dict:
    """A run's last state, without its times."""
    assert sum(play(run, cfg, bench)) == cfg.cycles
    state = read_checkpoint(run.folder(cfg) / "state.pt")
    return {name: value for name, value in state.items() if name != "seconds"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_and_a_resumed_run_is_the_same(strategy, tmp_path, bench):
    run = Run(0, strategy, 5 * strategy.startswith("dqn"), int(strategy == "dqn-warm"))
    carry_over = strategy == "dqn"
    straight = small_study(tmp_path / "straight", carry_over=carry_over)
    whole = ends(straight, run, bench)
    broken = small_study(tmp_path / "broken", carry_over=carry_over)
    for _ in range(2 * broken.cycles):  # killed again and again, after one more cycle each time
        player = play(run, broken, bench)
        next(player)
        next(player, None)
    assert digest(ends(broken, run, bench)) == digest(whole)
    bought = whole["labelled"]
    assert len(bought) == 40 and len(bought.unique()) == 40
    assert len(whole["accuracy"]) == 3 and len(whole["wrong"]) == 2
    assert (run.folder(straight) / "classifier.pt").exists()


def test_runs_of_a_seed_share_their_start(tmp_path, bench):
    cfg = small_study(tmp_path)
    states = {
        run.name: ends(cfg, run, bench)
        for run in (Run(0, "random", 0), Run(0, "margin", 0), Run(0, "dqn", 3), Run(0, "dqn", 9))
    }
    starts = {tuple(state["labelled"][:20].tolist()) for state in states.values()}
    firsts = {state["accuracy"][0] for state in states.values()}
    assert len(starts) == len(firsts) == 1
    # No gradient step comes before the first query: the slides' DQN rows share cycle 2 as well.
    three, nine = states["dqn-3"], states["dqn-9"]
    assert torch.equal(three["labelled"][:30], nine["labelled"][:30])
    assert three["accuracy"][1] == nine["accuracy"][1]
    # All of it: the first query of a network that knows nothing may happen to be margin's.
    assert not torch.equal(three["labelled"], states["margin"]["labelled"])
    other = ends(cfg, Run(1, "random", 0), bench)
    assert not torch.equal(other["labelled"][:20], states["random"]["labelled"][:20])


def test_a_warm_start_is_margins_first_query(tmp_path, bench):
    cfg = small_study(tmp_path)
    warm, margin = (
        ends(cfg, run, bench) for run in (Run(0, "dqn-warm", 5, 1), Run(0, "margin", 0))
    )
    assert torch.equal(warm["labelled"][:30], margin["labelled"][:30])
    assert warm["as_margin"][0] == 1.0 and margin["as_margin"] == [1.0, 1.0]
    assert warm["selector"]["count"] == 40
    twice = ends(cfg, Run(0, "dqn-warm", 5, 2), bench)
    assert torch.equal(twice["labelled"], margin["labelled"])  # the DQN has not chosen yet
    assert twice["selector"]["count"] == 40 and twice["ranking"] != margin["ranking"]


def test_rewards_are_the_classifiers_errors(tmp_path, bench):
    """What the replay holds, from the outside: a fresh classifier of the first cycle."""
    cfg = small_study(tmp_path)
    state = ends(cfg, Run(0, "dqn", 5), bench)
    first = read_checkpoint(tmp_path / "seed-0" / "first.pt")
    classifier = make_classifier("small", 2, bench.images, 0, CPU)
    classifier.load_state_dict(first["weights"])
    outlook = predict(classifier, bench.images.train, bench.norm)
    bought = state["labelled"][20:30]
    wrong = outlook.probabilities[bought].argmax(1) != bench.images.train_labels[bought]
    replay = state["selector"]["replay"]
    assert torch.equal(replay["reward"][:10], wrong.float())
    assert torch.equal(replay["state"][:10], make_states(outlook.probabilities[bought]))
    assert state["wrong"][0] == pytest.approx(float(wrong.double().mean()))


def test_carry_over_goes_on_with_the_old_weights(tmp_path, bench, monkeypatch):
    made = []
    make = commands.new_classifier
    monkeypatch.setattr(
        commands, "new_classifier", lambda *args: made.append(args[3]) or make(*args)
    )
    ends(small_study(tmp_path / "fresh"), Run(0, "random", 0), bench)
    assert made == [1, 1, 2, 3]  # first cycle of the seed, its holder, then one for each cycle
    made.clear()
    ends(small_study(tmp_path / "kept", carry_over=True), Run(0, "random", 0), bench)
    assert made == [1, 1]


def test_other_settings_are_refused_by_name(tmp_path, bench):
    cfg, run = small_study(tmp_path), Run(0, "margin", 0)
    ends(cfg, run, bench)
    with pytest.raises(InputError, match=r"--epochs 1, not 2; give --overwrite or another --out"):
        next(play(run, dataclasses.replace(cfg, epochs=2), bench))
    with pytest.raises(InputError, match="other images"):
        next(play(run, cfg, bench._replace(key="0")))
    next(play(run, dataclasses.replace(cfg, dqn_lr=1e-2), bench))  # not of margin's business
    play_all([run], dataclasses.replace(cfg, epochs=2, overwrite=True))
    assert stored(cfg, run, bench.key)["epochs"] == 1


def test_generators_depend_on_seed_purpose_and_cycle():
    keys = [(0, AGENT, 0), (1, AGENT, 0), (0, AGENT, 1), (0, 0, 0)]
    draws = [int(generator(*key).integers(2**60)) for key in keys]
    assert len(set(draws)) == 4 and draws[0] == int(generator(0, AGENT).integers(2**60))


def test_too_many_labels_are_refused(tmp_path):
    cfg = small_study(tmp_path, per_cycle=700)
    with pytest.raises(InputError, match=r"1,420 labels are to be bought, there are 1,297 images"):
        play_all([Run(0, "random", 0)], cfg)


# ---------------------------------------------------------------------------- commands


def test_compare_writes_its_tables_and_a_classifier_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["random", "margin", "dqn"]
    main(["compare", *FEW, "--seeds", "2", "--gradient-steps", "3", "--strategies", *names])
    folder = tmp_path / "runs" / "active-digits"
    printed = capsys.readouterr().out
    table = (folder / "compare" / "table.md").read_text()
    assert table in printed and "DQN, 3 steps against margin" in table
    results = json.loads((folder / "compare" / "results.json").read_text())
    assert results["strategies"] == ["random", "margin", "dqn-3"] and results["seeds"] == [0, 1]
    assert np.shape(results["accuracy"]) == (3, 2, 3)
    lines = (folder / "compare" / "accuracy.tsv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 * 3
    assert (folder / "compare" / "accuracy.png").stat().st_size > 10_000
    main(["evaluate", "--classifier", str(folder / "seed-1" / "dqn-3" / "classifier.pt")])
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert said["accuracy"] == f"{100 * results['accuracy'][2][1][-1]:.2f}"
    assert said["labels"] == "40" and len(said) == 3 + 10


def test_steps_choose_and_repeats_take_the_best(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    with pytest.raises(InputError, match=r"run `steps` first, or give --gradient-steps"):
        main(["repeats", *FEW, *out])
    main(["steps", *FEW, *out, "--gradient-steps", "1", "4", "--seeds", "2"])
    results = json.loads((tmp_path / "steps" / "results.json").read_text())
    assert results["best_steps"] in (1, 4)
    assert max(results["wins"].values()) == results["wins"][f"dqn-{results['best_steps']}"]
    printed = capsys.readouterr().out
    assert "Best by that count" in printed and "DQN, 4 steps against random" in printed
    main(["repeats", *FEW, *out, "--repeats", "2"])
    repeats = json.loads((tmp_path / "repeats" / "results.json").read_text())
    assert repeats["gradient_steps"] == results["best_steps"] and repeats["seeds"] == [1, 2]
    assert repeats["strategies"] == ["random", "margin", f"dqn-{results['best_steps']}"]


def test_the_program_ends_with_one_line(tmp_path, monkeypatch, run_module):
    """As a user starts it: an archive that is not the official one."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    monkeypatch.chdir(tmp_path)
    code, out, err = run_module("studies.active_learning", "--dataset", "cifar10")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("python -m studies.active_learning: error: data/images/cifar-10-binary")
    assert not (tmp_path / "runs").exists()


def test_the_slides_protocol_is_the_default_of_their_data_sets():
    ten, hundred = (settle(CompareConfig(dataset=name)) for name in ("cifar10", "cifar100"))
    assert (ten.first, ten.per_cycle, hundred.first, hundred.per_cycle) == (1000, 1000, 2000, 2000)
    expected = {"cycles": 10, "network": "resnet18", "width": 64, "epochs": 200, "batch": 128}
    expected |= {"lr": 0.1, "dqn_lr": 1e-3}
    assert (networks.MOMENTUM, networks.WEIGHT_DECAY, networks.DECAY_AT) == (0.9, 5e-4, 0.8)
    assert (strategies.HIDDEN, REPLAY, strategies.BATCH) == (128, 10_000, 64)
    for cfg in (ten, hundred, settle(CompareConfig(dataset="fashion-mnist"))):
        assert expected.items() <= to_dict(cfg).items()
        assert cfg.augmentation == (4, True)
    assert CompareConfig().augmentation == (1, False)


# ---------------------------------------------------------------------------- tables


def outcome_of(accuracy: np.ndarray, names: list[str]) -> Finished:
    rows = dict(zip(names, np.asarray(accuracy, dtype=float), strict=True))
    seeds, cycles = np.shape(accuracy)[1:]
    more = {key: {name: np.zeros((seeds, cycles - 1)) for name in names} for key in tables.QUERIES}
    return Finished(list(range(seeds)), 100 * np.arange(1, cycles + 1), rows, rows, more)


def test_area_is_the_mean_accuracy_over_labels():
    assert area(np.array([0.5, 0.5, 0.5]), np.array([10, 20, 40])) == pytest.approx(0.5)
    assert area(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 3])) == pytest.approx(2.5 / 3)


def test_paired_interval_is_students(rng):
    first, second = rng.normal(size=(2, 8))
    mean, low, high = student_mean(first - second)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert mean == pytest.approx((first - second).mean())
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_verdict_follows_the_interval(rng):
    noise = rng.normal(scale=1e-3, size=(3, 6, 4))
    levels = np.array([0.5, 0.7, 0.6])[:, None, None]
    text = tables.verdict(outcome_of(levels + noise, ["random", "margin", "dqn-200"]))
    over, under = text.splitlines()
    assert "against random" in over and over.endswith(": above")
    assert "against margin" in under and under.endswith(": below")
    same = tables.verdict(outcome_of(0.5 + noise, ["random", "margin", "dqn-200"]))
    assert same.count("cannot be told apart") == 2
    alone = tables.verdict(outcome_of((levels + noise)[:, :1], ["random", "margin", "dqn"]))
    assert alone.count("one seed, so nothing is shown") == 2


def test_rows_name_the_rule_of_the_first_queries():
    outcome = outcome_of(np.zeros((2, 1, 3)), ["random", "dqn-warm3-200"])
    assert outcome.spoken("dqn-warm3-200") == "margin 3 times, then DQN, 200 steps"
    other = outcome._replace(warm_start="least-confidence")
    assert other.spoken("dqn-warm1-50") == "least confidence once, then DQN, 50 steps"
    assert "| least confidence 3 times, then DQN, 200 steps |" in tables.accuracy_table(other)


def test_no_difference_is_not_minus_nothing():
    assert tables.points((-1e-9, -0.01, 0.02)) == "+0.00 [-1.00, +2.00]"


def test_wins_leave_out_the_cycles_before_learning():
    rows = [[[0.1, 0.2, 0.9, 0.9]], [[0.1, 0.2, 0.5, 0.6]], [[0.1, 0.2, 0.4, 0.6]]]
    outcome = outcome_of(rows, ["random", "dqn-100", "dqn-200"])
    assert wins(outcome) == {"dqn-100": 2, "dqn-200": 1}  # a tie counts for both


def test_worker_processes_change_no_number(tmp_path, bench, monkeypatch):
    """The path of the workers, in a thread: starting processes takes a test too long."""
    monkeypatch.setattr(commands, "process_pool", lambda _, start: ThreadPoolExecutor(1))
    cfg = small_study(tmp_path / "two", cycles=2)
    runs = [Run(seed, "dqn", 3) for seed in (0, 1)]
    play_all(runs, dataclasses.replace(cfg, workers=2))
    assert (tmp_path / "two" / "seed-1" / "dqn-3" / "classifier.pt").exists()
    alone = small_study(tmp_path / "one", cycles=2)
    for run in runs:
        assert digest(ends(cfg, run, bench)) == digest(ends(alone, run, bench))


def test_collected_results_stand_where_they_belong(tmp_path, bench):
    cfg = small_study(tmp_path)
    runs = [run for seed in (0, 1) for run in (Run(seed, "random", 0), Run(seed, "dqn", 3))]
    outcome = finish(runs, cfg)
    assert list(outcome.accuracy) == ["random", "dqn-3"] and outcome.seeds == [0, 1]
    assert outcome.labels.tolist() == [20, 30, 40]
    for run in runs:
        state = read_checkpoint(run.folder(cfg) / "state.pt")
        found = outcome.accuracy[run.name][outcome.seeds.index(run.seed)]
        assert found.tolist() == state["accuracy"]
    lines = tables.as_tsv(outcome).splitlines()[1:]
    assert all(a < b for a, b in pairwise([int(line.split("\t")[3]) for line in lines[:3]]))
