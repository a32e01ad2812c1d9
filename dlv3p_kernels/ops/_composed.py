"""Operators that every namespace has: composed of others, until a back end has kernels for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from .._library import for_each


class Operator(NamedTuple):
    """All there is to an operator.

    Attributes:
        schema: arguments and results.
        composition: of the operators of a namespace, its first argument.
        fake: shapes and dtypes of the results.
        backward: from a namespace, the context and the gradients; None where there is none.
        setup_context: what is kept for it.
    """

    schema: str
    composition: Callable[..., Any]
    fake: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    setup_context: Callable[..., Any] | None = None


def register_composed(operators: Mapping[str, Operator], derived: str) -> None:
    """Define the operators, by name, in every namespace.

    Deriving one that has no derivative is an error that points to `derived`, which has one.
    """

    @for_each
    def register(library: torch.library.Library) -> None:
        ops = getattr(torch.ops, library.ns)
        for name, operator in operators.items():
            library.define(name + operator.schema)
            qualified = f"{library.ns}::{name}"
            torch.library.register_fake(qualified, operator.fake, lib=library)
            library.impl(name, partial(operator.composition, ops), "CompositeExplicitAutograd")
            backward = (
                partial(_no_derivative, name, derived)
                if operator.backward is None
                else partial(operator.backward, ops)
            )
            torch.library.register_autograd(
                qualified, backward, setup_context=operator.setup_context, lib=library
            )


def _no_derivative(name: str, derived: str, ctx, *_grads):  # type: ignore[no-untyped-def]
    raise RuntimeError(f"{name} has no derivative; {derived} has one")
