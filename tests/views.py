"""Other ways of storing a map: windows, slices, permutations, addresses that are not aligned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NHWC = torch.channels_last
View = Callable[[Tensor], Tensor]


def inside(
    x: Tensor,
    before: int,
    after: int,
    dims: tuple[int, ...],
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """`x` as a window of a larger tensor of NaN in the given layout."""
    shape = [n + (before + after) * (d in dims) for d, n in enumerate(x.shape)]
    host = x.new_full(shape, float("nan"))
    host = host.contiguous(memory_format=layout)
    for d in dims:
        host = host.narrow(d, before, x.size(d))
    return host.copy_(x)


def every_second(x: Tensor, dim: int) -> Tensor:
    """`x` as every second element of a larger tensor along one dimension."""
    shape = list(x.shape)
    shape[dim] *= 2
    index = [slice(None)] * 4
    index[dim] = slice(None, None, 2)
    return x.new_full(shape, float("nan"))[tuple(index)].copy_(x)


def permuted(*order: int) -> View:
    """The tensor stored with its dimensions in the given order."""
    back = [order.index(d) for d in range(4)]
    return lambda x: x.permute(order).contiguous().permute(back)


def misaligned(layout: torch.memory_format) -> View:
    """The tensor one element past an aligned address."""

    def make(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=layout)
        storage = x.new_full((x.numel() + 1,), float("nan"))
        return storage.as_strided(x.shape, x.stride(), 1).copy_(x)

    return make


READ_IN_PLACE = {
    "channel-slice-nhwc": lambda x: inside(x, 3, 5, (1,), NHWC),
    "channel-slice-nchw": lambda x: inside(x, 3, 5, (1,)),
    "crop-nhwc": lambda x: inside(x, 2, 1, (2, 3), NHWC),
    "crop-nchw": lambda x: inside(x, 2, 1, (2, 3)),
    "crop-and-slice-nhwc": lambda x: inside(x, 1, 3, (1, 2, 3), NHWC),
    "batch-slice-nhwc": lambda x: inside(x, 1, 1, (0,), NHWC),
    "misaligned-nhwc": misaligned(NHWC),
    "misaligned-nchw": misaligned(torch.contiguous_format),
    "rows-skipped": lambda x: every_second(x, 2),
    "stored-hwnc": permuted(2, 3, 0, 1),
    "stored-whnc": permuted(3, 2, 0, 1),
    "stored-chnw": permuted(1, 2, 0, 3),
}
COPIED = {
    "stored-nwhc-columns-skipped": lambda x: every_second(x, 3),
    "stored-ncwh": permuted(0, 1, 3, 2),
    "stored-chwn": permuted(1, 2, 3, 0),
}

VIEWS = READ_IN_PLACE | COPIED
