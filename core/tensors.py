"""Checkpoints and other files of tensors, read back: no code runs, nothing damaged is believed.

Reads:  files that torch.save wrote
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from core.errors import InputError
from core.stored import CHECKSUM, regular, why

MOST_PARTS = 1_000_000  # of a checkpoint; lists in lists can claim any number in a few bytes
NetworkT = TypeVar("NetworkT", bound=torch.nn.Module)


def digest(value: Any) -> str:
    """SHA-256 of nested dictionaries, lists, tensors and plain values, independent of the file."""
    state = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                state.update(f"{{{key}".encode())
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            state.update(f"[{len(item)}".encode())
            for each in item:
                feed(each)
        elif isinstance(item, torch.Tensor):
            state.update(f"{item.dtype}{tuple(item.shape)}".encode())
            flat = item.detach().cpu().contiguous().reshape(-1)
            if len(flat) < 2:  # of so few numbers any stride counts as contiguous
                flat = flat.clone(memory_format=torch.contiguous_format)
            state.update(flat.view(torch.uint8).numpy())
        else:
            state.update(repr(item).encode())

    feed(value)
    return state.hexdigest()


def parts_of(content: Any) -> Iterator[Any]:
    """Every tensor and plain value; ValueError where there are too many to be ours."""
    waiting, count = [content], 0
    while waiting:
        item = waiting.pop()
        count += 1
        if count > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS:,} parts")
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        else:
            yield item


def check_archive(path: Path) -> None:
    """ValueError where a file is not the zip file that torch.save writes, or does not match its own
    checksums.

    torch does not look at them, and would unpack what is compressed, of any size.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"PK\3\4":
            raise ValueError("not what torch.save writes since PyTorch 1.6")
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("compressed, which torch.save never writes")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} does not match its checksum")


def read_tensors(path: Path, device: torch.device | str = "cpu", trust: bool = False) -> Any:
    """A file of tensors and plain containers; anything else in it only where `trust` allows code.

    InputError where it is damaged or claims more than it holds.
    """
    size = regular(path).st_size
    try:
        if not trust:
            check_archive(path)
        content = torch.load(path, map_location=device, weights_only=not trust)
        for part in parts_of(content):
            if isinstance(part, torch.Tensor) and part.numel() * part.element_size() > size:
                raise ValueError("a tensor that claims more than the file holds")
    except Exception as error:  # pickle, zip and torch each have their own errors
        # torch's own text advises to load without safety
        known = isinstance(error, (ValueError, OSError))
        text = why(error) if known else type(error).__name__
        raise InputError(f"{path}: damaged, or not a file of tensors ({text})") from None
    return content


@cache
def note_no_digest(path: Path) -> None:
    """Say once that a checkpoint is older than digests."""
    print(f"note: {path} carries no digest (older version), so changes in it may go unseen")


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """What `read_checkpoint` reads: the content with its digest."""
    content = {name: item for name, item in content.items() if name != CHECKSUM}
    return content | {CHECKSUM: digest(content)}


def write_checkpoint(path: Path, content: dict[str, Any], flush: bool = False) -> None:
    """Write what `read_checkpoint` reads; `flush`: onto the disk, to outlast a power failure."""
    with open(path, "wb") as stream:
        torch.save(with_digest(content), stream)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A dictionary that `with_digest` has closed, without its digest, which is compared.

    One without, of an older version or of others, is read too; of ours that is said.
    """
    content = read_tensors(path, device)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    if not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: not a checkpoint (a part without a name)")
    expected = content.pop(CHECKSUM, None)
    if expected is None:
        if not all(isinstance(item, torch.Tensor) for item in content.values()):
            note_no_digest(path)
        return content
    try:
        found = digest(content)
    except (RuntimeError, ValueError, RecursionError) as error:  # tensors of a kind we never write
        raise InputError(f"{path}: damaged ({why(error)})") from None
    if found != expected:
        raise InputError(f"{path}: damaged: its content does not match its digest")
    return content


def check_weights(expected: dict[str, torch.Tensor], weights: Any, path: Path) -> None:
    """InputError naming the file whose weights do not fit a network's in every name and shape."""
    if not isinstance(weights, dict) or not all(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    ):
        raise InputError(f"{path}: weights do not fit the network: they are no tensors")
    odd = sorted(expected.keys() ^ weights.keys(), key=str)
    odd += [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    if odd:
        raise InputError(f"{path}: weights do not fit the network: {len(odd)}, first {odd[0]}")


def fitted(make: Callable[[], NetworkT], weights: Any, path: Path) -> NetworkT:
    """A network with the weights of a checkpoint, built once they are known to fit.

    The sizes come from the file: a network of any size is compared without memory first. InputError
    naming the file where the weights do not fit.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    check_weights(expected, weights, path)
    network = make()
    network.load_state_dict(weights)
    return network
