"""What TF32 would change: operands of matrix products rounded to its mantissa, on any device.

TF32 keeps the range of float32 and 10 bits of mantissa for the operands of products; sums stay
float32 (NVIDIA, "Ampere Architecture", 2020).
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Where the operands stand among the arguments; what is added stays float32.
OPERANDS = {
    aten.mm: slice(0, 2),
    aten.bmm: slice(0, 2),
    aten.addmm: slice(1, 3),
    aten.baddbmm: slice(1, 3),
    aten.convolution: slice(0, 2),
    aten._scaled_dot_product_flash_attention_for_cpu: slice(0, 3),
}


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Float32 to the nearest number with 10 bits of mantissa; ties to the even one."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class TF32(TorchDispatchMode):
    """Products of some code as with TF32. Composite operators are taken apart, so that the products
    inside them are met too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        where = OPERANDS.get(func.overloadpacket, slice(0))
        args = list(args)
        args[where] = [rounded(x) if x.dtype == torch.float32 else x for x in args[where]]
        return func(*args, **kwargs)
