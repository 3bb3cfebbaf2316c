"""Labelled images for the active learning study, read from the official files.

Reads:  CIFAR-10 and CIFAR-100 (binary versions), Fashion-MNIST (IDX files), scikit-learn's digits
Writes: what is downloaded, into the folder of the files
Shapes: N images of C channels, H x W pixels

Archives must be the official ones, by their MD5; they are read where they lie, not unpacked.
Unpacked files are taken from anybody: their checksum is unknown, so format and size are checked.
"""

import gzip
import hashlib
import shutil
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from core.command import needed
from core.errors import InputError
from core.files import Kind, made, new_folder, whole, write_bytes
from studies.active_learning.settings import DatasetName

SIZE = 32  # pixels, of everything but the digits
TIMEOUT_S = 30.0


class Images(NamedTuple):
    """A data set in memory, all on one device."""

    train: torch.Tensor  # (N, C, H, W) uint8
    train_labels: torch.Tensor  # (N,) int64
    test: torch.Tensor  # (N, C, H, W) uint8
    test_labels: torch.Tensor  # (N,) int64
    classes: tuple[str, ...]
    source: str  # where it came from, and whether its checksum was checked


class Official(NamedTuple):
    """A file as its authors publish it."""

    name: str
    url: str
    md5: str


def published(home: str, name: str, md5: str) -> Official:
    """A file of a web folder."""
    return Official(name, f"{home}/{name}", md5)


class Cifar(NamedTuple):
    """Layout of a binary version: label bytes, then planes R, G, B, row by row."""

    archive: Official
    folder: str  # inside the archive
    train: tuple[str, ...]
    test: str
    names: str  # a class a line
    label_bytes: int  # CIFAR-100 has the superclass before the class
    num_classes: int


# Checksums are those of https://www.cs.toronto.edu/~kriz/cifar.html and, for Fashion-MNIST, of the
# README of https://github.com/zalandoresearch/fashion-mnist
CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
CIFAR = {
    "cifar10": Cifar(
        published(CIFAR_URL, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        label_bytes=1,
        num_classes=10,
    ),
    "cifar100": Cifar(
        published(CIFAR_URL, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        label_bytes=2,
        num_classes=100,
    ),
}
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION = tuple(
    published(FASHION_URL, f"{name}-ubyte.gz", md5)
    for name, md5 in (
        ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
)
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
DIGITS_TEST = 500  # of 1,797; which ones never changes


def md5_of(path: Path) -> str:
    """MD5 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def download(file: Official, path: Path) -> None:
    """Fetch a file with a progress bar, whole or not at all.

    InputError where it cannot be had, or is not the official one.
    """
    try:
        with (
            made(path.parent),
            urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as answer,
            whole(path) as temporary,
        ):
            total = int(answer.headers.get("Content-Length") or 0) or None
            bar = tqdm.wrapattr(answer, "read", total=total, desc=file.name)
            with open(temporary, "wb") as stream, bar as source:
                shutil.copyfileobj(source, stream)
            if (found := md5_of(temporary)) != file.md5:
                kept = "nothing is kept"
                raise InputError(f"{file.url}: not the official file (MD5 {found}); {kept}")
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error or type(error).__name__
        cure = f"put {file.name} into {path.parent}, or name its folder with --data"
        raise InputError(f"{file.url} cannot be downloaded ({reason}); {cure}") from None


def official(file: Official, folder: Path) -> Path:
    """Path of an official file, downloaded where it is missing; InputError for another content."""
    path = folder / file.name
    if not path.exists():
        download(file, path)
    elif (found := md5_of(path)) != file.md5:
        raise InputError(f"{path}: not the official file: MD5 {found} instead of {file.md5}")
    return path


def read_records(raw: bytes, layout: Cifar, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of a CIFAR binary file -> images (N, 3, 32, 32) uint8, labels (N,) int64.

    The class is the last label byte. InputError naming the file for a wrong size or label.
    """
    record = layout.label_bytes + 3 * SIZE * SIZE
    if not raw or len(raw) % record:
        raise InputError(f"{file}: {len(raw)} bytes are not records of {record} bytes each")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    if (wrong := np.flatnonzero(labels >= layout.num_classes)).size:
        label = f"record {wrong[0]} has label {labels[wrong[0]]}"
        raise InputError(f"{file}: {label}; {layout.num_classes} classes begin at 0")
    return rows[:, layout.label_bytes :].reshape(-1, 3, SIZE, SIZE), labels


def load_cifar(name: str, folder: Path) -> Images:
    """CIFAR-10 or CIFAR-100 from unpacked files in `folder`, else from the official archive.

    InputError where a file is damaged, or missing before one that is there.
    """
    layout = CIFAR[name]
    train, others = layout.train, (layout.test, layout.names)
    places = [place for place in (folder, folder / layout.folder) if (place / layout.test).exists()]
    if places:
        present = [(places[0] / file).exists() for file in train]
        count = [*present, False].index(False)
        if not count or any(present[count:]):  # a gap would be a silently smaller training set
            raise InputError(f"{places[0] / train[count]}: not found")
        train = train[:count]
        raw = {file: (places[0] / file).read_bytes() for file in (*train, *others)}
        source = f"{places[0]}, {count} of {len(present)} training files, checksum unknown"
    else:
        path = official(layout.archive, folder)
        try:
            with tarfile.open(path) as archive:
                inside = {file: f"{layout.folder}/{file}" for file in (*train, *others)}
                raw = {file: archive.extractfile(at).read() for file, at in inside.items()}
        except (tarfile.TarError, KeyError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        source = f"{path}, checksum right"
    parts = zip(*(read_records(raw[file], layout, file) for file in train), strict=True)
    images, labels = (np.concatenate(part) for part in parts)
    test, test_labels = read_records(raw[layout.test], layout, layout.test)
    lines = raw[layout.names].decode("utf-8", "replace").splitlines()
    classes = tuple(line.strip() for line in lines if line.strip())
    if len(classes) != layout.num_classes:
        expected = f"{len(classes)} class names instead of {layout.num_classes}"
        raise InputError(f"{layout.names}: {expected}")
    return Images(
        *map(torch.from_numpy, (images, labels, test.copy(), test_labels)), classes, source
    )


def even_choice(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places (count,) of images, as many of each class; InputError where a class has too few."""
    classes = np.unique(labels)
    each = count // len(classes)
    if not each or count % len(classes):
        raise InputError(f"{count} images: must be a multiple of the {len(classes)} classes")
    places = [np.flatnonzero(labels == name) for name in classes]
    least = min(len(place) for place in places)
    if least < each:
        raise InputError(f"{count} images: {each} of each class are wanted, one class has {least}")
    chosen = np.concatenate([rng.choice(place, each, replace=False) for place in places])
    return rng.permutation(chosen)


PART = Kind(
    "part of a data set",
    tuple(file for one in CIFAR.values() for file in (one.names, *one.train, one.test)),
)


def write_cifar(name: str, images: Images, train: int, test: int, folder: Path) -> None:
    """A part of CIFAR-10 or CIFAR-100 in the official layout, in a new folder, whole or not at all.

    InputError where there are too few images.
    """
    layout = CIFAR[name]
    names = "\n".join(images.classes) + "\n"
    content = {layout.names: names.encode()}
    parts = (
        (layout.train[0], images.train, images.train_labels, train),
        (layout.test, images.test, images.test_labels, test),
    )
    for place, (file, pixels, labels, count) in enumerate(parts):
        rng = np.random.default_rng([0, place])
        rows = even_choice(labels.numpy(), count, rng)
        column = labels.numpy()[rows, None].astype(np.uint8)
        columns = [np.zeros_like(column)] * (layout.label_bytes - 1)  # the superclass is not kept
        columns += [column, pixels.numpy()[rows].reshape(len(rows), -1)]
        content[file] = np.concatenate(columns, 1).tobytes()
    with new_folder(folder, PART, fresh=True) as work:
        for file, raw in content.items():
            write_bytes(work / file, raw)


def read_idx(raw: bytes, where: object) -> np.ndarray:
    """An IDX file of bytes -> array; InputError naming the file where it is none.

    Layout: two zero bytes, type 8 (unsigned byte), number of axes, each axis as big-endian int32.
    """
    axes = raw[3] if len(raw) > 3 else 0
    if raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * axes:
        raise InputError(f"{where}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, dtype=">i4", count=axes, offset=4).astype(int)
    if (shape <= 0).any() or len(raw) != 4 + 4 * axes + shape.prod():
        raise InputError(f"{where}: {len(raw)} bytes do not hold {tuple(shape.tolist())} bytes")
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def load_fashion(folder: Path) -> Images:
    """Fashion-MNIST from unpacked IDX files in `folder`, else from the official gz files.

    As in the source: bilinear from 28 to 32 pixels, the one channel three times.
    """
    plain = [folder / file.name.removesuffix(".gz") for file in FASHION]
    unpacked, arrays = any(path.exists() for path in plain), []
    for file, path in zip(FASHION, plain, strict=True):
        if not unpacked:
            path = official(file, folder)
        elif not path.exists():
            raise InputError(f"{path}: not found")
        try:
            raw = path.read_bytes()
            arrays.append(read_idx(raw if unpacked else gzip.decompress(raw), path))
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
    source = f"{folder}, checksum unknown" if unpacked else f"{folder}, checksums right"
    pairs = []
    for images, labels, file in ((*arrays[:2], FASHION[0]), (*arrays[2:], FASHION[2])):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            shapes = f"{images.shape} and labels {labels.shape}"
            raise InputError(f"{folder}: {file.name}: images {shapes}, not (N, 28, 28) and (N,)")
        if labels.max() >= len(FASHION_CLASSES):
            raise InputError(f"{folder}: {file.name}: label {labels.max()} is none of 0 to 9")
        pixels = torch.from_numpy(images.copy())[:, None].float()
        large = functional.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear").round()
        pairs += [large.byte().repeat(1, 3, 1, 1), torch.from_numpy(labels.astype(np.int64))]
    return Images(*pairs, FASHION_CLASSES, source)


def load_digits() -> Images:
    """scikit-learn's 1,797 digits of 8 x 8 pixels (1, 8, 8), 500 of them as test set."""
    bunch = needed("sklearn.datasets", "python -m studies.active_learning").load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(bunch.target)))
    pixels = torch.from_numpy(bunch.images * 15).byte()[order][:, None]  # 0..16 -> 0..240
    pair = pixels, torch.from_numpy(bunch.target.astype(np.int64))[order]
    parts = (part[some] for some in (slice(DIGITS_TEST, None), slice(DIGITS_TEST)) for part in pair)
    classes = tuple(str(name) for name in bunch.target_names)
    return Images(*parts, classes, "embedded in scikit-learn")


def load_images(name: DatasetName, folder: Path | None) -> Images:
    """A data set on the CPU; files in `folder` (None: data/images), downloaded where missing."""
    if name == "digits":
        return load_digits()
    folder = folder or Path("data/images")
    return load_fashion(folder) if name == "fashion-mnist" else load_cifar(name, folder)


def to_device(images: Images, device: torch.device) -> Images:
    """The same with all tensors on a device."""
    return Images(*(part.to(device) for part in images[:4]), images.classes, images.source)
