"""Why a back end serves a call, and why the others do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor, nn

from . import dispatch
from .accelerate.report import Report, explain_model


@dataclass(frozen=True)
class Verdict:
    """What the choice of a back end made of one of them."""

    backend: str
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The verdict on every back end for one call; printable.

    Attributes:
        op: name of the op.
        requested: what `dk.backend` was set to.
        chosen: the back end that serves the call; None where the requested one can not.
        verdicts: one for each back end.
    """

    op: str
    requested: str
    chosen: str | None
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        width = max(len(v.backend) for v in self.verdicts)
        served = f"served by {self.chosen!r}" if self.chosen else "raises RuntimeError"
        lines = [f"{self.op} with backend {self.requested!r}: {served}"]
        for verdict in self.verdicts:
            mark = "->" if verdict.chosen else "  "
            lines.append(f"{mark} {verdict.backend:<{width}}  {verdict.reason}")
        return "\n".join(lines)


@overload
def explain(  # type: ignore[overload-overlap]
    op: nn.Module, example: Tensor | None = None, /
) -> Report: ...
@overload
def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation: ...
def explain(op: Any, *args: Any, **kwargs: Any) -> Explanation | Report:
    """Say which back end would serve a call of an op, and why not the others; runs nothing.

        print(dk.explain(dk.depthwise_conv2d, x, weight, padding=12, dilation=12))

    Or say of a model what `dk.accelerate` replaces, or would replace, and why not the rest:

        print(dk.explain(model))

    Args:
        op: a public op of this package, such as `dk.depthwise_conv2d`, or a module.
        *args: the op's arguments; for a module perhaps an input to estimate shares by,
        **kwargs: as in the call.

    Returns:
        A printable `Explanation`, with a verdict on every back end; a `Report` for a module.

    Raises:
        TypeError: `op` is not an op of this package.
        Whatever `op` raises for bad arguments.
    """
    if isinstance(op, nn.Module):
        return explain_model(op, *args, **kwargs)
    if op not in dispatch.CALLS:
        known = ", ".join(sorted(f"dk.{name.__name__}" for name in dispatch.CALLS))
        raise TypeError(f"explain: op must be one of {known}, got {op!r}")
    arguments = inspect.signature(op).bind(*args, **kwargs)
    arguments.apply_defaults()
    call = dispatch.CALLS[op](**arguments.arguments)
    try:
        chosen = dispatch.choose(call)
    except RuntimeError:
        chosen = None
    names = (*dispatch.BACKENDS, dispatch.REFERENCE)
    verdicts = tuple(Verdict(name, name == chosen, _reason(name, chosen, call)) for name in names)
    return Explanation(call.op, dispatch.current(), chosen, verdicts)


def _reason(name: str, chosen: str | None, call: dispatch.Call) -> str:
    requested = dispatch.current()
    if reason := dispatch.why_not(name, call):
        return f"cannot: {reason}"
    if requested not in ("auto", name):
        return f"can; {requested!r} was requested"
    if name == chosen:
        return _why(name, call)
    if call.stock_is_ahead and name == call.x.device.type:
        return f"can, but {call.stock_is_ahead}"
    return f"can; {chosen!r} is preferred"


def _why(name: str, call: dispatch.Call) -> str:
    if dispatch.current() != "auto":
        return "requested"
    if name != dispatch.REFERENCE:
        return "compiled kernels for the input's device"
    return call.stock_is_ahead or "no kernel can serve the call"
