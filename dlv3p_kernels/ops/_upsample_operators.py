"""The operators on resized logits in every namespace: schemas, fake tensors, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._library import LIBRARY, for_each
from ._common import empty_in_format_of, vector_dtype

_OPTIONS = "int ignore_index, float label_smoothing, bool align_corners"
# target and grad_loss may have any strides: what a sum hands back has all strides 0.
_SCHEMAS = {
    "upsample_cross_entropy": (
        f"(Tensor logits, Tensor target, Tensor? weight, {_OPTIONS})"
        " -> (Tensor loss, Tensor logsumexp)"
    ),
    "upsample_cross_entropy_backward": (
        "(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, Tensor logsumexp,"
        f" {_OPTIONS}) -> Tensor"
    ),
    # What a mean divides by; `like` are the logits, whose dtype decides that of the sum.
    "class_weight_sum": (
        "(Tensor target, Tensor? weight, int ignore_index, Tensor like) -> Tensor"
    ),
    "upsample_argmax": (
        "(Tensor logits, SymInt[2] size, bool align_corners, bool return_probability,"
        " bool as_uint8) -> (Tensor index, Tensor probability)"
    ),
}

# --- fake tensors ---------------------------------------------------------------------------------


def _fake_cross_entropy(logits, target, *_):  # type: ignore[no-untyped-def]
    made = logits.new_empty(target.shape, dtype=vector_dtype(logits))
    return made, torch.empty_like(made)


def _fake_cross_entropy_backward(_grad, logits, *_):  # type: ignore[no-untyped-def]
    return empty_in_format_of(logits, tuple(logits.shape))


def _fake_class_weight_sum(_target, _weight, _ignore_index, like):  # type: ignore[no-untyped-def]
    return like.new_empty((), dtype=vector_dtype(like))


def _fake_argmax(logits, size, _align_corners, return_probability, as_uint8):  # type: ignore[no-untyped-def]
    shape = (logits.size(0), *size)
    index = logits.new_empty(shape, dtype=torch.uint8 if as_uint8 else torch.int64)
    dtype = vector_dtype(logits)
    return index, logits.new_empty(shape if return_probability else 0, dtype=dtype)


_FAKES: dict[str, Callable[..., Any]] = {
    "upsample_cross_entropy": _fake_cross_entropy,
    "upsample_cross_entropy_backward": _fake_cross_entropy_backward,
    "class_weight_sum": _fake_class_weight_sum,
    "upsample_argmax": _fake_argmax,
}

# --- derivatives ----------------------------------------------------------------------------------


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    logits, target, weight, *ctx.options = inputs
    _, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(logits, target, weight, logsumexp)


def _backward(ops: Any, ctx, grad_loss, _grad_logsumexp):  # type: ignore[no-untyped-def]
    logits, target, weight, logsumexp = ctx.saved_tensors
    if torch.is_grad_enabled():  # derivatives of the derivatives are wanted as well
        grad = _by_reference(grad_loss, logits, target, weight, ctx.options)
    else:
        grad = ops.upsample_cross_entropy_backward(
            grad_loss, logits, target, weight, logsumexp, *ctx.options
        )
    return grad, None, None, None, None, None


def _by_reference(grad_loss: Tensor, logits: Tensor, target, weight, options) -> Tensor:  # type: ignore[no-untyped-def]
    """The same as a graph of stock PyTorch, which autograd derives further."""
    loss, _ = reference.upsample_cross_entropy(logits, target, weight, *options)
    (grad,) = torch.autograd.grad(loss, logits, grad_loss, create_graph=True)
    return grad


def _no_derivative(_ctx, *_grads):  # type: ignore[no-untyped-def]
    raise RuntimeError(
        "upsample_cross_entropy_backward has no derivative; upsample_cross_entropy has one"
    )


def _setup_constant(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


# --- registration ---------------------------------------------------------------------------------


@for_each
def _register(library: torch.library.Library) -> None:
    ops = getattr(torch.ops, library.ns)
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{library.ns}::{name}", _FAKES[name], lib=library)
    derivatives: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "upsample_cross_entropy": (partial(_backward, ops), _setup_context),
        "class_weight_sum": (_no_derivative, _setup_constant),
        "upsample_argmax": (_no_derivative, _setup_constant),
    }
    for name in _SCHEMAS:
        backward, setup_context = derivatives.get(name, (_no_derivative, None))
        torch.library.register_autograd(
            f"{library.ns}::{name}", backward, setup_context=setup_context, lib=library
        )


# Compiled kernels register under CPU and CUDA and win; every other device runs the definition.
for _name in _SCHEMAS:
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
