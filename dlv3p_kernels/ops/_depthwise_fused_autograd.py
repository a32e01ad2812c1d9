"""Derivatives of the fused depthwise convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference

_IDENTITY = 0
# Positions among the inputs of the operator.
_X, _WEIGHT, _BIAS, _IN_SCALE, _IN_SHIFT, _OUT_SCALE, _OUT_SHIFT = 0, 1, 2, 6, 7, 9, 10


def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Keep the inputs; of the results only what the derivative of the statistics needs."""
    (x, weight, bias, *ctx.geometry, in_scale, in_shift, ctx.in_activation,
     out_scale, out_shift, ctx.out_activation, ctx.statistics) = inputs  # fmt: skip
    ctx.vector_dtype = output[1].dtype
    result, mean = output[:2] if ctx.statistics else (None, None)
    ctx.save_for_backward(x, weight, bias, in_scale, in_shift, out_scale, out_shift, result, mean)


def backward(ops: Any, ctx, grad, grad_mean, grad_var):  # type: ignore[no-untyped-def]
    """Back through statistics or epilogue, convolution and prologue; recomputes what it needs."""
    (x, weight, bias, in_scale, in_shift, out_scale, out_shift, result, mean) = ctx.saved_tensors
    prologue = (in_scale, in_shift, ctx.in_activation)
    epilogue = (out_scale, out_shift, ctx.out_activation)
    need = ctx.needs_input_grad
    if torch.is_grad_enabled():  # derivatives of the derivatives are wanted as well
        arguments = (x, weight, bias, *ctx.geometry, *prologue, *epilogue, ctx.statistics)
        return _by_reference(arguments, need, (grad, grad_mean, grad_var))
    grads: list[Tensor | None] = [None] * len(need)
    if ctx.statistics:
        grad = _through_statistics(grad, result, mean, grad_mean, grad_var)
    elif out_scale is not None or ctx.out_activation != _IDENTITY:
        # In float32: a rounded result could lie on the other side of the activation's corner.
        wide = [t if t is None else t.to(ctx.vector_dtype) for t in (x, weight, bias)]
        raw = ops.depthwise_conv2d_fused(
            *wide, *ctx.geometry, *prologue, None, None, _IDENTITY, False
        )[0]
        wide_grad = grad.to(ctx.vector_dtype)
        wide_grad, grads[_OUT_SCALE], grads[_OUT_SHIFT] = _through_affine(
            ops, wide_grad, raw, *epilogue
        )
        grad = wide_grad.to(grad.dtype)
    need_input = need[_X] or need[_IN_SCALE] or need[_IN_SHIFT]
    if need_input or need[_WEIGHT]:
        grads[_X], grads[_WEIGHT], grads[_IN_SCALE], grads[_IN_SHIFT] = (
            ops.depthwise_conv2d_fused_backward(
                grad, x, weight, *ctx.geometry, *prologue, need_input, need[_WEIGHT]
            )
        )
    if need[_BIAS]:
        grads[_BIAS] = grad.sum((0, 2, 3))
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))


def _through_statistics(
    grad: Tensor, result: Tensor, mean: Tensor, grad_mean: Tensor, grad_var: Tensor
) -> Tensor:
    """mean = sum(y) / count and var = sum((y - mean)^2) / count, added to the result's own."""
    count = result.numel() // result.size(1)
    slope = (2 / count) * grad_var
    level = grad_mean / count - slope * mean
    return (grad + slope[:, None, None] * result + level[:, None, None]).to(result.dtype)


def _through_affine(
    ops: Any, grad: Tensor, raw: Tensor, scale: Tensor | None, shift: Tensor | None, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The epilogue is a batch norm with mean 0 and deviation 1: its backward serves."""
    zero = raw.new_zeros(raw.size(1))
    affine = (raw, zero, torch.ones_like(zero), scale, shift, None, activation)
    grad_shift, grad_scale = ops.batch_norm_backward_reduce(grad, *affine)
    grad_raw, _ = ops.batch_norm_backward_apply(grad, *affine, None, None, 1, False)
    return grad_raw, grad_scale, grad_shift


def _by_reference(
    arguments: tuple[Any, ...], need: tuple[bool, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    wanted = [a for a, needs in zip(arguments, need, strict=True) if needs]
    results = reference.depthwise_conv2d_fused(*arguments)
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs], wanted, [g for _, g in pairs],
            create_graph=True, allow_unused=True,
        )
    )  # fmt: skip
    return tuple(next(found) if needs else None for needs in need)
