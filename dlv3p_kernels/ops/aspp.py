"""Atrous spatial pyramid pooling: checks, choice of back end, public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks, dispatch, reference
from ..fusion import Branch, Epilogue
from . import _epilogue
from ._aspp_branches import AsppBranches, BranchPlan
from ._aspp_projection import project
from ._epilogue import Stage
from ._norm_operators import IDENTITY, values_per_channel
from .separable import finished

_OP = "aspp"


def aspp(
    x: Tensor,
    branches: Sequence[Branch],
    weight: Tensor,
    *,
    pooling: Branch | None = None,
    pooling_first: bool = False,
    bias: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Atrous spatial pyramid pooling: branches, image pooling, projection.

    Equivalent to

        maps = [branch(x) for branch in branches]
        pooled = F.interpolate(pooling(x.mean((2, 3), keepdim=True)), x.shape[-2:], mode="bilinear")
        maps = [pooled, *maps] if pooling_first else [*maps, pooled]
        epilogue(F.conv2d(torch.cat(maps, 1), weight, bias))

    where a branch is its convolutions, each with its epilogue. (Bilinear interpolation of a single
    pixel is a broadcast, whatever `align_corners` is.)

    The pooled branch is constant over the map, so its projection is one bias per image; the
    activated maps and their concatenation never exist. What is kept for backward is `x`, the raw
    results of the branches and of the projection. Works under autograd, autocast and
    `torch.compile(fullgraph=True)`.

    Args:
        x: input (N, C, H, W), channels_last (fastest) or contiguous; float32, bfloat16, float16,
            float64 on CPU.
        branches: at least one; strides are 1 and paddings keep the size, so kernels are odd.
        weight: of the projection (C'', sum of the branches' C', 1, 1), the input channels in the
            order of the concatenation.
        pooling: a pointwise branch, applied to the mean over the map; or None.
        pooling_first: whether it stands first in the concatenation, instead of last.
        bias: of the projection (C'',) or None.
        epilogue: behind the projection.

    Returns:
        (N, C'', H, W).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or device does not fit, or a batch has a single value per channel to
            normalise by (with `pooling`, a batch of one in training); the message names the
            argument.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017,
    section 3.3; with separable branches, Chen et al., ECCV 2018, section 3.1.
    """
    a = _prepare(x, branches, weight, pooling, pooling_first, bias, epilogue)
    name = dispatch.choose(a.call)
    if name == dispatch.REFERENCE:
        everything = (a.branches, a.weight, a.pooling, pooling_first, a.bias, epilogue)
        return reference.aspp(a.x, *everything)
    return _by_kernels(name, a)


class _Arguments(NamedTuple):
    """Arguments checked."""

    call: dispatch.Call
    x: Tensor
    branches: list[Branch]
    middles: list[Stage]
    ends: list[Stage]
    weight: Tensor
    pooling: Branch | None
    pooling_end: Stage
    pooling_first: bool
    bias: Tensor | None
    end: Stage

    @property
    def split_weight(self) -> tuple[Tensor, Tensor | None]:
        """The projection of the branches, and that of the pooled one."""
        if self.pooling is None:
            return self.weight, None
        pooled, all_ = self.pooling.weight.size(0), self.weight.size(1)
        if self.pooling_first:
            return self.weight[:, pooled:], self.weight[:, :pooled]
        return self.weight[:, : all_ - pooled], self.weight[:, all_ - pooled :]


def _by_kernels(name: str, a: _Arguments) -> Tensor:
    ops = dispatch.operators(name)
    maps, between, mean = _branches(name, ops, a)
    weight, pooled_weight = a.split_weight
    projected = project(ops, maps, between, weight, a.bias)
    if a.pooling is not None and pooled_weight is not None:
        pooled = F.conv2d(mean[:, :, None, None], a.pooling.weight, a.pooling.bias)
        pooled = _finished(ops, pooled, a.pooling_end)
        projected = projected + F.conv2d(pooled, pooled_weight)
    return _finished(ops, projected, a.end)


def _finished(ops: Any, raw: Tensor, end: Stage) -> Tensor:
    """Norm and activation behind a raw result."""
    if end.by_batch:
        mean, var = _measure(ops, raw)
        end = end.measured(ops, mean, var, values_per_channel(raw))
    return finished(ops, raw, end, None)


def _measure(ops: Any, raw: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        mean, var = ops.batch_norm_stats(raw)
    return mean, var


def _branches(name: str, ops: Any, a: _Arguments) -> tuple[list[Tensor], Stage, Tensor]:
    """Raw results of the branches, what stands behind all of them, the mean of the map."""
    by_batch = a.ends[0].by_batch
    ours = [i for i, branch in enumerate(a.branches) if _is_ours(branch)]
    plans, tensors = [], []
    for i in ours:
        middle = a.middles[i]
        if middle.by_batch:
            with torch.no_grad():
                mean, var = ops.depthwise_conv2d_statistics(
                    *_depthwise_arguments(a.x, a.branches[i]), None, None, IDENTITY
                )
            count = a.x.numel() // a.x.size(1)
            middle = middle.measured(ops, mean, var, count)
        plans.append(_plan(a.x, a.branches[i], middle))
        branch = a.branches[i]
        tensors += [branch.weight, branch.bias, branch.dw_weight, branch.dw_bias, *middle.vectors]
    pooled = a.pooling is not None
    results = AsppBranches.apply(name, tuple(plans), pooled, by_batch, a.x, *tensors)
    raws, mean, vectors = results[: len(ours)], results[len(ours)], results[len(ours) + 1 :]
    maps, ends = [], []
    for i, (branch, end) in enumerate(zip(a.branches, a.ends, strict=True)):
        if i in ours:
            j = ours.index(i)
            raw, statistics = raws[j], vectors[2 * j : 2 * j + 2]
        else:
            raw = reference.dense_branch(a.x, branch)
            statistics = _measure(ops, raw) if by_batch else ()
        maps.append(raw)
        if by_batch:
            mean_of, var_of = statistics
            end = end.measured(ops, mean_of, var_of, values_per_channel(raw))
        ends.append(end)
    return maps, _side_by_side(ends, [m.size(1) for m in maps]), mean


def _is_ours(branch: Branch) -> bool:
    """Whether the branch is made of products of matrices and depthwise convolutions."""
    return branch.dw_weight is not None or tuple(branch.weight.shape[2:]) == (1, 1)


def _depthwise_arguments(x: Tensor, branch: Branch) -> tuple[Any, ...]:
    assert branch.dw_weight is not None
    return x, branch.dw_weight, branch.dw_bias, *_geometry(branch)


def _geometry(branch: Branch) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of the depthwise half."""
    assert branch.dw_weight is not None
    rate = branch.dilation
    height, width = (rate * (size - 1) // 2 for size in branch.dw_weight.shape[2:])
    return [1, 1], [width, width, height, height], [rate, rate]


def _plan(x: Tensor, branch: Branch, middle: Stage) -> BranchPlan:
    geometry = None if branch.dw_weight is None else _geometry(branch)
    return BranchPlan(geometry, middle.activation, middle.by_batch, middle.group)


def _side_by_side(ends: list[Stage], sizes: list[int]) -> Stage:
    """One stage for maps that are read side by side; they share their activation and their kind."""
    if all(end.mean is None for end in ends):
        return ends[0]
    like = next(end.mean for end in ends if end.mean is not None)

    def column(position: int, neutral: float) -> Tensor:
        parts = []
        for end, size in zip(ends, sizes, strict=True):
            vector = end.vectors[position]
            parts.append(like.new_full((size,), neutral) if vector is None else vector)
        return torch.cat(parts)

    return ends[0]._replace(
        mean=column(0, 0), invstd=column(1, 1), weight=column(2, 1), bias=column(3, 0)
    )


def _prepare(
    x: Tensor,
    branches: Sequence[Branch],
    weight: Tensor,
    pooling: Branch | None,
    pooling_first: bool,
    bias: Tensor | None,
    epilogue: Epilogue | None,
) -> _Arguments:
    _checks.tensor(_OP, "x", x, 4)
    if not branches:
        raise ValueError(f"{_OP}: branches must hold at least one Branch, got none")
    channels = x.size(1)
    cast = [_cast(f"branches[{i}]", x, branch) for i, branch in enumerate(branches)]
    pooled = None if pooling is None else _cast("pooling", x, pooling)
    x, weight, bias = _checks.autocast(x, _checks.tensor(_OP, "weight", weight, 4), bias)
    middles, ends = [], []
    for i, branch in enumerate(cast):
        middle, end = _check_branch(f"branches[{i}]", x, branch)
        middles.append(middle)
        ends.append(end)
    pooling_end = Stage()
    if pooled is not None:
        pooling_end = _check_pooling(x, pooled)
    widths = [branch.weight.size(0) for branch in (*cast, *([pooled] if pooled else []))]
    _check_projection(x, weight, bias, sum(widths))
    end = _epilogue.checked(_OP, "epilogue", epilogue, weight.size(0), x)
    if any(s.by_own_batch for s in (*middles, *ends, end)) and x.numel() == channels:
        raise ValueError(f"{_OP}: x must have more than one value per channel to train batch norm")
    call = dispatch.Call(_OP, x, _unfit(x, ends), dispatch.no_gpu_record(x))
    return _Arguments(
        call, x, cast, middles, ends, weight, pooled, pooling_end, pooling_first, bias, end
    )


def _cast(name: str, x: Tensor, branch: object) -> Branch:
    """The branch with its weights in the autocast dtype, where autocast is on."""
    if not isinstance(branch, Branch):
        raise TypeError(f"{_OP}: {name} must be a Branch, got {type(branch).__name__}")
    _checks.tensor(_OP, f"{name}.weight", branch.weight, 4)
    _, weight, bias = _checks.autocast(x, branch.weight, branch.bias)
    if branch.dw_weight is None:
        return branch._replace(weight=weight, bias=bias)
    _checks.tensor(_OP, f"{name}.dw_weight", branch.dw_weight, 4)
    _, dw_weight, dw_bias = _checks.autocast(x, branch.dw_weight, branch.dw_bias)
    return branch._replace(weight=weight, bias=bias, dw_weight=dw_weight, dw_bias=dw_bias)


def _check_branch(name: str, x: Tensor, branch: Branch) -> tuple[Stage, Stage]:
    """What stands between its halves and behind it."""
    weight, channels = branch.weight, x.size(1)
    _checks.integers(_OP, f"{name}.dilation", branch.dilation, (1,), 1)
    kernels = [("weight", weight)]
    middle = Stage()
    if branch.dw_weight is not None:
        kernels.append(("dw_weight", branch.dw_weight))
        expected = (channels, 1)
        if tuple(branch.dw_weight.shape[:2]) != expected:
            raise ValueError(
                f"{_OP}: {name}.dw_weight must be ({channels}, 1, kh, kw), one filter per channel"
                f" of x, got shape {tuple(branch.dw_weight.shape)}"
            )
        middle = _epilogue.checked(_OP, f"{name}.dw_epilogue", branch.dw_epilogue, channels, x)
    for field, kernel in kernels:
        _checks.same_kind(_OP, f"{name}.{field}", kernel, "x", x)
        if kernel.size(2) % 2 == 0 or kernel.size(3) % 2 == 0:
            raise ValueError(
                f"{_OP}: {name}.{field} must have an odd kernel, got shape {tuple(kernel.shape)}"
            )
    pointwise = tuple(weight.shape[2:]) == (1, 1)
    if weight.size(1) != channels or (branch.dw_weight is not None and not pointwise):
        wanted = "1, 1" if branch.dw_weight is not None else "kh, kw"
        raise ValueError(
            f"{_OP}: {name}.weight must be (C', {channels}, {wanted}), got shape"
            f" {tuple(weight.shape)}"
        )
    for field, vector, size in (
        ("bias", branch.bias, weight.size(0)), ("dw_bias", branch.dw_bias, channels),
    ):  # fmt: skip
        if vector is not None:
            _checks.channel_vector(_OP, f"{name}.{field}", vector, size, x, (x.dtype,))
    return middle, _epilogue.checked(_OP, f"{name}.epilogue", branch.epilogue, weight.size(0), x)


def _check_pooling(x: Tensor, pooling: Branch) -> Stage:
    if not _is_ours(pooling) or pooling.dw_weight is not None:
        raise ValueError(
            f"{_OP}: pooling must be a pointwise branch, got weight of shape"
            f" {tuple(pooling.weight.shape)}"
        )
    _, end = _check_branch("pooling", x, pooling)
    if end.by_own_batch and x.size(0) == 1:
        raise ValueError(
            f"{_OP}: x must hold more than one image to train the batch norm of pooling, got one"
        )
    return end


def _check_projection(x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> None:
    _checks.same_kind(_OP, "weight", weight, "x", x)
    if tuple(weight.shape[1:]) != (channels, 1, 1):
        raise ValueError(
            f"{_OP}: weight must be (C'', {channels}, 1, 1), an input channel for each channel of"
            f" the branches, got shape {tuple(weight.shape)}"
        )
    if bias is not None:
        _checks.channel_vector(_OP, "bias", bias, weight.size(0), x, (x.dtype,))


def _unfit(x: Tensor, ends: list[Stage]) -> str | None:
    if x.numel() == 0:
        return "the input is empty"
    if len({(end.activation, end.by_batch, end.group) for end in ends}) > 1:
        return "the branches differ in activation or in where their norms' statistics come from"
    return None


def _explain(**arguments: Any) -> dispatch.Call:
    return _prepare(**arguments).call


dispatch.CALLS[aspp] = _explain
