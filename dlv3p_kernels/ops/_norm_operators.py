"""The operators of batch norm in every namespace: schemas, fake tensors, derivatives.

`batch_norm_act` is made of the others, which are also what a batch norm over several processes
needs: the statistics or the sums of each are merged between two of them (docs/norm.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._library import LIBRARY, for_each
from ..fusion import BatchNorm
from . import _group
from ._common import empty_in_format_of, vector_dtype

IDENTITY = 0
_ARGUMENTS = (
    "Tensor input, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, Tensor? residual,"
    " int activation"
)
_SCHEMAS = {
    "batch_norm_stats": "(Tensor input) -> (Tensor mean, Tensor var)",
    "batch_norm_finalise": (
        "(Tensor mean, Tensor var, SymInt count, Tensor? running_mean, Tensor? running_var,"
        " float momentum, float eps) -> (Tensor invstd, Tensor running_mean, Tensor running_var)"
    ),
    "batch_norm_apply": f"({_ARGUMENTS}) -> Tensor",
    # The same, where mean and invstd are those of the batch and are derived through.
    "batch_norm_normalise": f"({_ARGUMENTS}, str group) -> Tensor",
    "batch_norm_backward_reduce": (
        f"(Tensor grad_output, {_ARGUMENTS}) -> (Tensor sum_grad, Tensor sum_grad_normalised)"
    ),
    "batch_norm_backward_apply": (
        f"(Tensor grad_output, {_ARGUMENTS}, Tensor? sum_grad, Tensor? sum_grad_normalised,"
        " SymInt count, bool need_residual) -> (Tensor grad_input, Tensor grad_residual)"
    ),
    "batch_norm_act": (
        "(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,"
        " Tensor? residual, int activation, float momentum, float eps)"
        " -> (Tensor output, Tensor mean, Tensor invstd, Tensor running_mean, Tensor running_var)"
    ),
}


def values_per_channel(x: Tensor) -> int:
    """N * H * W."""
    return x.size(0) * x.size(2) * x.size(3)


def _batch_norm_act(ops: Any, x, weight, bias, running_mean, running_var, *rest):  # type: ignore[no-untyped-def]
    residual, activation, momentum, eps = rest
    mean, var = ops.batch_norm_stats(x)
    invstd, new_mean, new_var = ops.batch_norm_finalise(
        mean, var, values_per_channel(x), running_mean, running_var, momentum, eps
    )
    output = ops.batch_norm_apply(x, mean, invstd, weight, bias, residual, activation)
    return output, mean, invstd, new_mean, new_var


def _batch_norm_normalise(ops: Any, *arguments):  # type: ignore[no-untyped-def]
    return ops.batch_norm_apply(*arguments[:-1])


_COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "batch_norm_act": _batch_norm_act,
    "batch_norm_normalise": _batch_norm_normalise,
}

# --- fake tensors ---------------------------------------------------------------------------------


def _vector(x: Tensor, wanted: bool = True) -> Tensor:
    return x.new_empty(x.size(1) if wanted else 0, dtype=vector_dtype(x))


def _fake_stats(x):  # type: ignore[no-untyped-def]
    return _vector(x), _vector(x)


def _fake_finalise(mean, _var, _count, running_mean, running_var, _momentum, _eps):  # type: ignore[no-untyped-def]
    kept = running_mean is not None and running_var is not None
    running = mean.new_empty(mean.size(0) if kept else 0)
    return torch.empty_like(mean), running, torch.empty_like(running)


def _fake_apply(x, *_):  # type: ignore[no-untyped-def]
    return empty_in_format_of(x, tuple(x.shape))


def _fake_backward_reduce(_grad, x, *_):  # type: ignore[no-untyped-def]
    return _vector(x), _vector(x)


def _fake_backward_apply(_grad, x, *rest):  # type: ignore[no-untyped-def]
    shape = tuple(x.shape)
    return empty_in_format_of(x, shape), (
        empty_in_format_of(x, shape) if rest[-1] else x.new_empty(0)
    )


def _fake_batch_norm_act(x, _weight, _bias, running_mean, running_var, *_):  # type: ignore[no-untyped-def]
    kept = running_mean is not None and running_var is not None
    running = (_vector(x, kept), _vector(x, kept))
    return empty_in_format_of(x, tuple(x.shape)), _vector(x), _vector(x), *running


_FAKES: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _fake_stats,
    "batch_norm_finalise": _fake_finalise,
    "batch_norm_apply": _fake_apply,
    "batch_norm_normalise": _fake_apply,
    "batch_norm_backward_reduce": _fake_backward_reduce,
    "batch_norm_backward_apply": _fake_backward_apply,
    "batch_norm_act": _fake_batch_norm_act,
}

# --- derivatives ----------------------------------------------------------------------------------


def _setup_context_act(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, _, _, residual, ctx.activation, _, ctx.eps = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(x, *statistics[:2], *_needed(weight, bias, residual, ctx.activation))


def _needed(
    weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, activation: int
) -> tuple[Tensor | None, ...]:
    """Bias and residual only move the point at which the activation is derived."""
    return (weight, None, None) if activation == IDENTITY else (weight, bias, residual)


def _backward_act(ops: Any, ctx, grad, *_statistics):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    x, _, _, *affine = saved
    need = ctx.needs_input_grad
    wanted = (need[0], need[1], need[2], need[5])
    if torch.is_grad_enabled():  # derivatives of the derivatives are wanted as well

        def definition(x, weight, bias, residual):  # type: ignore[no-untyped-def]
            activation = tuple(reference.ACTIVATIONS)[ctx.activation]
            norm = BatchNorm(None, None, weight, bias, True, 0.0, ctx.eps, activation)
            return reference.batch_norm_act(x, norm, residual)

        grads = _by_reference(definition, grad, x, affine, wanted)
    else:
        grads = _gradients(ops, grad, saved, ctx.activation, wanted, _group.ALONE)
    return grads[0], grads[1], grads[2], None, None, grads[3], None, None, None


def _setup_context_apply(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, mean, invstd, weight, bias, residual, ctx.activation = inputs
    ctx.save_for_backward(x, mean, invstd, *_needed(weight, bias, residual, ctx.activation))


def _backward_apply(ops: Any, ctx, grad):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    x, mean, invstd, *affine = saved
    need = ctx.needs_input_grad
    if need[1] or need[2]:
        raise RuntimeError(
            "batch_norm_apply has no gradient by mean and invstd; batch_norm_act derives through"
            " the statistics of its batch"
        )
    wanted = (need[0], *need[3:6])
    if torch.is_grad_enabled():

        def definition(x, *affine):  # type: ignore[no-untyped-def]
            return reference.batch_norm_apply(x, mean, invstd, *affine, ctx.activation)

        grads = _by_reference(definition, grad, x, affine, wanted)
    else:
        grads = _gradients(ops, grad, saved, ctx.activation, wanted, None)
    return grads[0], None, None, *grads[1:], None


def _setup_context_normalise(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *inputs, ctx.group = inputs
    _setup_context_apply(ctx, inputs, output)


def _backward_normalise(ops: Any, ctx, grad):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError(
            "batch_norm_normalise has no second derivative; dk.backend('reference') has"
        )
    need = ctx.needs_input_grad
    wanted = (need[0], *need[3:6])
    grads = _gradients(ops, grad, ctx.saved_tensors, ctx.activation, wanted, ctx.group)
    return grads[0], None, None, *grads[1:], None, None


def _gradients(ops: Any, grad, saved, activation: int, wanted, batch_of: str | None):  # type: ignore[no-untyped-def]
    """Gradients by input, weight, bias and residual, None where not wanted.

    `batch_of` names the processes whose batch the statistics are of, None where they are fixed.
    """
    training = batch_of is not None
    x = saved[0]
    need_input, need_weight, need_bias, need_residual = wanted
    arguments = (grad, *saved, activation)
    by_bias = by_weight = by_input = by_residual = None
    if need_weight or need_bias or (need_input and training):
        by_bias, by_weight = ops.batch_norm_backward_reduce(*arguments)
    through_activation = need_residual and activation != IDENTITY
    if need_input or through_activation:
        sums: tuple[Any, Any] = (by_bias, by_weight)
        count = values_per_channel(x)
        if batch_of:
            sums, count = _group.means(*sums, count, batch_of), 1
        elif not training:
            sums = (None, None)
        by_input, by_residual = ops.batch_norm_backward_apply(
            *arguments, *sums, count, through_activation
        )
    if need_residual and not through_activation:
        by_residual = grad
    grads = (by_input, by_weight, by_bias, by_residual)
    return tuple(g if want else None for g, want in zip(grads, wanted, strict=True))


def _by_reference(definition: Any, grad, x, affine, wanted):  # type: ignore[no-untyped-def]
    """The same as a graph of stock PyTorch, which autograd derives further."""
    weight, bias, residual = affine
    if bias is None and wanted[2]:
        bias = torch.zeros_like(x[0, :, 0, 0], dtype=vector_dtype(x), requires_grad=True)
    if residual is None and wanted[3]:
        residual = torch.zeros_like(x, requires_grad=True)
    inputs = (x, weight, bias, residual)
    output = definition(*inputs)
    leaves = [t for t, want in zip(inputs, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(output, leaves, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def _no_derivative(name: str, ctx, *_grads):  # type: ignore[no-untyped-def]
    raise RuntimeError(f"{name} has no derivative; batch_norm_act and batch_norm_apply have one")


# --- registration ---------------------------------------------------------------------------------


@for_each
def _register(library: torch.library.Library) -> None:
    ops = getattr(torch.ops, library.ns)
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{library.ns}::{name}", _FAKES[name], lib=library)
    for name, composition in _COMPOSITIONS.items():
        library.impl(name, partial(composition, ops), "CompositeExplicitAutograd")
    derivatives = {
        "batch_norm_act": (partial(_backward_act, ops), _setup_context_act),
        "batch_norm_apply": (partial(_backward_apply, ops), _setup_context_apply),
        "batch_norm_normalise": (partial(_backward_normalise, ops), _setup_context_normalise),
    }
    for name in _SCHEMAS:
        backward, setup_context = derivatives.get(name, (partial(_no_derivative, name), None))
        torch.library.register_autograd(
            f"{library.ns}::{name}", backward, setup_context=setup_context, lib=library
        )


# Compiled kernels register under CPU and CUDA and win; every other device runs the definition.
for _name in _SCHEMAS:
    if _name not in _COMPOSITIONS:
        LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
