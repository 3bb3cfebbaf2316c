"""Modes that refuse whatever a GPU would have to be waited for."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
    """Refuses copies to the host; on a CPU no operator is called for them."""

    READS = (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = [*args[1:], *(kwargs or {}).values()]
        to_host = func is torch.Tensor.to and any(str(x) == "cpu" for x in given)
        if func in self.READS or to_host:
            raise ReadBack(str(func))
        return func(*args, **(kwargs or {}))
