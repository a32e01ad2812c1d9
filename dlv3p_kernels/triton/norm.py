"""Launchers of the batch-norm ops; arguments as in `dlv3p_kernels.reference`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import launch
from .norm_kernels import (
    batch_norm_apply_kernel,
    batch_norm_bwd_apply_kernel,
    batch_norm_bwd_reduce_kernel,
    batch_norm_finalise_kernel,
    batch_norm_stats_kernel,
)

_FINALISE_CHANNELS = 128


class _Blocks(NamedTuple):
    """Sizes of a map as the kernels take them, and the tile."""

    sizes: tuple[int, int, int, int]
    constants: dict[str, Any]
    tile: launch.Tile

    @classmethod
    def of(cls, x: Tensor, nhwc: bool) -> _Blocks:
        batch, channels, height, width = x.shape
        images, plane = (1, batch * height * width) if nhwc else (batch, height * width)
        unit = launch.unit_of(channels if nhwc else plane)
        tile, chunks = launch.plane_tile_of(nhwc, channels, images, plane, x)
        fast = (channels // unit, plane) if nhwc else (channels, plane // unit)
        return cls(
            (images, *fast, chunks), {"UNIT": unit, **tile.constants, **launch.OPTIONS}, tile
        )


def batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel."""
    channels = x.size(1)
    if not x.numel():
        mean = x.new_full((channels,), torch.nan, dtype=torch.float32)
        return mean, mean.clone()
    nhwc = launch.is_nhwc(x)
    with torch.cuda.device_of(x):
        blocks = _Blocks.of(x, nhwc)
        partials = launch.workspace(x, blocks.tile.programs, launch.MOMENT_ROWS, channels)
        batch_norm_stats_kernel[blocks.tile.grid](
            launch.dense(x, nhwc), partials, *blocks.sizes, **blocks.constants
        )
        return launch.merged_moments(partials)


def batch_norm_finalise(
    mean: Tensor,
    var: Tensor,
    count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / sqrt(var + eps), and the running statistics after `count` more values per channel."""
    channels = mean.size(0)
    kept = running_mean is not None and running_var is not None
    invstd = torch.empty_like(mean)
    running = mean.new_empty(2, channels if kept else 0)
    new_mean, new_var = (row.clone() for row in running)
    if channels:
        with torch.cuda.device_of(mean):
            batch_norm_finalise_kernel[(triton.cdiv(channels, _FINALISE_CHANNELS),)](
                mean.contiguous(), var.contiguous(),
                running_mean.contiguous() if kept and running_mean is not None else None,
                running_var.contiguous() if kept and running_var is not None else None,
                invstd, new_mean, new_var, channels, count / max(count - 1, 1), momentum, eps,
                CHANNELS=_FINALISE_CHANNELS, **launch.OPTIONS,
            )  # fmt: skip
    return invstd, new_mean, new_var


def batch_norm_apply(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    """act((x - mean) * invstd * weight + bias + residual)."""
    nhwc = launch.is_nhwc(x)
    result = launch.empty_map(x, tuple(x.shape), nhwc)
    if x.numel():
        with torch.cuda.device_of(x):
            blocks = _Blocks.of(x, nhwc)
            batch_norm_apply_kernel[blocks.tile.grid](
                *_inputs(x, mean, invstd, weight, bias, residual, nhwc), result, *blocks.sizes,
                ACTIVATION=activation, **blocks.constants,
            )  # fmt: skip
    return result


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """Sums of g and of g times the normalised input; g is the gradient before the activation."""
    channels = x.size(1)
    sums = x.new_zeros(2, channels, dtype=torch.float32)
    if x.numel():
        nhwc = launch.is_nhwc(x)
        with torch.cuda.device_of(x):
            blocks = _Blocks.of(x, nhwc)
            partials = launch.workspace(x, blocks.tile.programs, 2, channels)
            batch_norm_bwd_reduce_kernel[blocks.tile.grid](
                launch.dense(grad, nhwc), *_inputs(x, mean, invstd, weight, bias, residual, nhwc),
                partials, *blocks.sizes, ACTIVATION=activation, **blocks.constants,
            )  # fmt: skip
            launch.summed(partials, 0, sums)
    return sums[0].clone(), sums[1].clone()


def batch_norm_backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    sum_grad: Tensor | None,
    sum_grad_normalised: Tensor | None,
    count: int,
    need_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by input and residual; through the statistics as well where the sums are given."""
    nhwc = launch.is_nhwc(x)
    shape = tuple(x.shape)
    by_input = launch.empty_map(x, shape, nhwc)
    by_residual = launch.empty_map(x, shape, nhwc) if need_residual else None
    if x.numel():
        with torch.cuda.device_of(x):
            blocks = _Blocks.of(x, nhwc)
            batch_norm_bwd_apply_kernel[blocks.tile.grid](
                launch.dense(grad, nhwc), *_inputs(x, mean, invstd, weight, bias, residual, nhwc),
                launch.vector(sum_grad), launch.vector(sum_grad_normalised), by_input, by_residual,
                *blocks.sizes, count, ACTIVATION=activation, **blocks.constants,
            )  # fmt: skip
    return by_input, x.new_empty(0) if by_residual is None else by_residual


def _inputs(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    nhwc: bool,
) -> tuple[Tensor | None, ...]:
    vectors = (launch.vector(v) for v in (mean, invstd, weight, bias))
    return (
        launch.dense(x, nhwc), *vectors, None if residual is None else launch.dense(residual, nhwc)
    )  # fmt: skip
