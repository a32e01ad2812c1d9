"""Batch norm with residual and activation in one pass: checks, choice of back end, function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _checks, dispatch, reference
from ..fusion import BatchNorm
from . import _epilogue, _group
from ._common import activation_code, vector_dtype
from ._norm_operators import IDENTITY, values_per_channel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OP = "batch_norm_act"


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "identity",
    residual: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Batch norm, then a residual added, then an activation, in one pass each way.

    Equivalent to

        z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        act(z + residual)

    with the sum rounded once, from float32. The running statistics are updated in place where
    `training` is set. Backward keeps `x` and computes the rest anew, instead of keeping the input
    of each step. Works under autograd (to any order), autocast (as `F.batch_norm`, in the dtype of
    `x`), `torch.compile(fullgraph=True)` and `torch.export`.

    Args:
        x: input (N, C, H, W), channels_last or contiguous; float32, bfloat16, float16, float64 on
            CPU. Other ranks, as `F.batch_norm` takes them, run stock PyTorch.
        running_mean: (C,) or None.
        running_var: (C,) or None, together with `running_mean`.
        weight: (C,) or None for 1; of the dtype of `x`, or float32 (float64 for float64 `x`).
        bias: (C,) or None for 0; the same.
        training: normalise by the statistics of the batch, instead of the running ones. Without
            running statistics it has to be set.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        activation: "identity", "relu", "relu6" or "silu".
        residual: of the shape of `x`, or None.
        group: processes whose batches count as one, as in `nn.SyncBatchNorm`; None for this one.

    Returns:
        A tensor of the shape of `x`.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape or device does not fit, running statistics are missing, or there is a
            single value per channel to normalise by; the message names the argument.

    Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, algorithms 1 and 2.
    """
    shared = _group.name_of(group) if training else _group.ALONE
    code = _check(
        x, running_mean, running_var, weight, bias, training, activation, residual, shared
    )
    name = dispatch.choose(_call(x, training, code, residual, shared))
    norm = BatchNorm(
        running_mean, running_var, weight, bias, training, momentum, eps, activation, group
    )
    if name == dispatch.REFERENCE:
        return reference.batch_norm_act(x, norm, residual)
    if shared != _group.ALONE:
        return _over_processes(dispatch.operators(name), x, norm, residual)
    return _by_kernels(
        dispatch.operators(name),
        x, running_mean, running_var, weight, bias, training, momentum, eps, code, residual,
    )  # fmt: skip


def _over_processes(ops: Any, x: Tensor, norm: BatchNorm, residual: Tensor | None) -> Tensor:
    stage = _epilogue.checked(_OP, "norm", norm, x.size(1), x)
    with torch.no_grad():
        mean, var = ops.batch_norm_stats(x)
    stage = stage.measured(ops, mean, var, values_per_channel(x))
    output: Tensor = ops.batch_norm_normalise(
        x, *stage.vectors, residual, stage.activation, stage.group
    )
    return output


def _by_kernels(
    ops: Any,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: int,
    residual: Tensor | None,
) -> Tensor:
    dtype = vector_dtype(x)
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    mean, var = (None if t is None else t.to(dtype) for t in (running_mean, running_var))
    if not training and mean is not None and var is not None:
        invstd = torch.rsqrt(var + eps)
        fixed: Tensor = ops.batch_norm_apply(x, mean, invstd, weight, bias, residual, activation)
        return fixed
    output: Tensor
    output, _, _, new_mean, new_var = ops.batch_norm_act(
        x, weight, bias, mean, var, residual, activation, momentum, eps
    )
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.copy_(new_mean)
            running_var.copy_(new_var)
    return output


def _check(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    activation: str,
    residual: Tensor | None,
    shared: str,
) -> int:
    """Raise unless the arguments fit each other; the number of the activation."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{_OP}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"{_OP}: x must have at least 2 dimensions, got shape {tuple(x.shape)}")
    _checks.tensor(_OP, "x", x, x.dim())
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{_OP}: running_mean and running_var must both be given, or neither")
    if running_mean is None and not training:
        raise ValueError(f"{_OP}: running_mean must be given where training is not set, got None")
    vectors = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias,
    }  # fmt: skip
    for name, vector in vectors.items():
        if vector is not None:
            _checks.channel_vector(_OP, name, vector, x.size(1), x, (x.dtype, vector_dtype(x)))
    if residual is not None:
        _check_residual(residual, x)
    if training and shared == _group.ALONE and x.numel() == x.size(1):
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size"
            f" {torch.Size(x.shape)}"
        )
    return activation_code(_OP, "activation", activation)


def _check_residual(residual: Tensor, x: Tensor) -> None:
    _checks.tensor(_OP, "residual", residual, x.dim())
    if residual.shape != x.shape:
        raise ValueError(
            f"{_OP}: residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if residual.device != x.device:
        raise ValueError(f"{_OP}: residual must be on x's device {x.device}, got {residual.device}")


def _call(
    x: Tensor, training: bool, activation: int, residual: Tensor | None, group: str
) -> dispatch.Call:
    unfit = _unfit(x, residual)
    ahead = dispatch.no_gpu_record(x)
    # Stock PyTorch has no synchronised batch norm on CPUs.
    if x.device.type == "cpu" and not unfit and group == _group.ALONE:
        ahead = _cpu_stock_is_ahead(x, training, activation != IDENTITY or residual is not None)
    return dispatch.Call(_OP, x, unfit, ahead)


# Where the lines cross on the CPU (docs/norm.md): on smaller maps calling our operators takes
# longer than the work, or stock PyTorch, which has one step to do, is as fast.
_SMALL = 2**18
_LARGE = 2**23


def _cpu_stock_is_ahead(x: Tensor, training: bool, fused: bool) -> str | None:
    """Why stock PyTorch is the faster one; compiled code has no sizes to choose by."""
    if not fused and not training:
        return "known statistics and nothing to fuse with: stock is as fast"
    if torch.compiler.is_compiling():
        return None
    if x.numel() < _SMALL:
        return f"{x.numel()} elements are few: calling the kernels would take longer than the work"
    # Stock PyTorch takes several times as long for contiguous float32 as for channels_last.
    slow_stock = x.is_contiguous() and x.dtype == torch.float32
    if not fused and not slow_stock and x.numel() < _LARGE:
        return f"nothing to fuse with, and {x.numel()} elements are moderate: stock is as fast"
    return None


def _unfit(x: Tensor, residual: Tensor | None) -> str | None:
    if x.dim() != 4:
        return f"the kernels take maps of 4 dimensions, the input has {x.dim()}"
    if x.numel() == 0:
        return "the input is empty"
    if residual is not None and residual.dtype != x.dtype:
        return f"the residual is {residual.dtype}, the input {x.dtype}"
    return None


def _explain(
    *, momentum: float, eps: float, group: ProcessGroup | None, **arguments: Any
) -> dispatch.Call:
    shared = _group.name_of(group) if arguments["training"] else _group.ALONE
    code = _check(**arguments, shared=shared)
    return _call(arguments["x"], arguments["training"], code, arguments["residual"], shared)


dispatch.CALLS[batch_norm_act] = _explain
