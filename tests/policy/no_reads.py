"""Modes that refuse whatever a GPU would have to be waited for."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class ReadBack(AssertionError):
    """Something waited for the device."""


class NoOpReads(TorchDispatchMode):
    """Refuses operators whose result, or its shape, is known only when the device is done."""

    READS = (
        aten._local_scalar_dense,
        aten.nonzero,
        aten.masked_select,
        aten.equal,
        aten.bincount,
        aten._unique,
        aten._unique2,
        aten.unique_dim,
        aten.unique_consecutive,
        aten.unique_dim_consecutive,
    )
    INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, kwargs = func.overloadpacket, kwargs or {}
        by_mask = packet in self.INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        repeats = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        if packet in self.READS or by_mask or repeats:
            raise ReadBack(str(func))
        return func(*args, **kwargs)


class NoHostCopies(TorchFunctionMode):
    """Refuses copies to the host, and tensors made of its numbers, which are brought to the device
    with a wait; on a CPU no operator is called for them."""

    READS = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist)
    READS += (torch.tensor, torch.as_tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = [*args[1:], *(kwargs or {}).values()]
        to_host = func is torch.Tensor.to and any(str(x) == "cpu" for x in given)
        if func in self.READS or to_host:
            raise ReadBack(str(func))
        return func(*args, **(kwargs or {}))


META = torch.device("meta")


class NoCrossings(TorchDispatchMode):
    """Refuses operators between host and device, as which the meta device stands: uploads too, as
    one from pageable memory is waited for. Allowed is a copy that is asked not to block."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        parts = tree_leaves((args, kwargs, found))
        places = {part.device for part in parts if isinstance(part, torch.Tensor)}
        if len(places) > 1 and not (func.overloadpacket is aten.copy_ and args[2:] == (True,)):
            raise ReadBack(str(func))
        return found


def on_meta(trainer: Any) -> Any:
    """The trainer with its tensors on the meta device, which cannot be read. Optimizers stand
    still: Adam has no kernel there."""

    def moved(x: Any) -> Any:
        if isinstance(x, torch.Tensor | torch.nn.Module):
            return x.to(META)
        if isinstance(x, torch.device):
            return META
        if isinstance(x, torch.optim.Optimizer):
            x.step = lambda: None
        elif isinstance(x, dict):
            return {name: moved(each) for name, each in x.items()}
        elif isinstance(x, tuple | list):
            parts = map(moved, x)
            return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
        return x

    for name, value in vars(trainer).items():
        setattr(trainer, name, moved(value))
    return trainer
