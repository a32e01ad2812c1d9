"""Which back end serves a call: the user's choice, and for each back end why it can not serve."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from torch.autograd import forward_ad

from .backends import BACKENDS

BackendName = Literal["auto", "cuda", "triton", "cpu", "reference"]
REFERENCE = "reference"


def _names() -> tuple[str, ...]:
    return ("auto", *BACKENDS, REFERENCE)


def _checked(name: str, source: str) -> str:
    if name not in _names():
        raise ValueError(f"{source} must be one of {_names()}, got {name!r}")
    return name


_current: str = _checked(os.environ.get("DLV3P_BACKEND", "auto"), "DLV3P_BACKEND")


class backend:
    """Choose the back end that serves the ops, as a context manager or as a setter.

    `dk.backend("reference")` switches at once; used in a `with` statement it switches back at the
    end. The choice is global to the process, like `torch.use_deterministic_algorithms`. At the
    start it is `"auto"`, or what the environment variable `DLV3P_BACKEND` names.

    Args:
        name: `"auto"` takes our kernels where they cover a call and are the faster ones, and stock
            PyTorch elsewhere; `"reference"` always runs stock PyTorch; `"cpu"`, `"cuda"` (compiled)
            and `"triton"` insist on that back end and raise where it can not serve a call.

    Raises:
        ValueError: `name` is none of these.
    """

    def __init__(self, name: BackendName) -> None:
        global _current
        self._previous = _current
        _current = _checked(name, "backend: name")

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _current
        _current = self._previous


def current() -> str:
    """The name last chosen with `backend`, `"auto"` at the start."""
    return _current


class Call(NamedTuple):
    """What the choice of a back end depends on.

    Attributes:
        op: name of the op.
        x: its input.
        unfit: why no kernel at all can serve this call; None where one may.
        stock_is_ahead: why `auto` prefers stock PyTorch, although a kernel of the input's device
            could serve; None where it does not.
    """

    op: str
    x: torch.Tensor
    unfit: str | None = None
    stock_is_ahead: str | None = None


def no_gpu_record(x: torch.Tensor) -> str | None:
    """Why `auto` prefers stock PyTorch on GPUs: kernels have to be shown ahead first."""
    return "no recorded GPU result shows our kernels ahead" if x.device.type == "cuda" else None


def why_not(name: str, call: Call) -> str | None:
    """Why back end `name` can not serve `call`; None where it can."""
    if name == REFERENCE:
        return None
    if reason := BACKENDS[name].why_not(call.x):
        return reason
    if call.unfit:
        return call.unfit
    # Registered autograd formulas serve neither; forward mode would even drop tangents silently.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "transforms of torch.func and forward-mode derivatives run stock PyTorch"
    return None


def choose(call: Call) -> str:
    """The name of the back end that serves `call`.

    Raises:
        RuntimeError: a back end was insisted on and can not serve the call; says why.
    """
    if _current != "auto":
        if reason := why_not(_current, call):
            raise RuntimeError(f"backend {_current!r} can not serve {call.op}: {reason}")
        return _current
    # The compiled kernels of the input's device; Triton is asked for by name until GPU results
    # are recorded.
    name = call.x.device.type
    if name not in BACKENDS or call.stock_is_ahead or why_not(name, call):
        return REFERENCE
    return name


def operators(name: str) -> Any:
    """The ops of a back end: `torch.ops.<namespace>`."""
    return getattr(torch.ops, BACKENDS[name].namespace)


# Public op -> the function that turns its arguments, all of them by name, into a Call.
CALLS: dict[Callable[..., Any], Callable[..., Call]] = {}
