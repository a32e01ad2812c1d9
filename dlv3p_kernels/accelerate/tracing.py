"""What a module's own forward does with its children, as a graph; or why that can not be told.

Only a forward without side effects has the same graph at every call. What would be lost or frozen
by recording it once (attributes set, random numbers drawn, contexts, questions about types or about
autograd) makes a forward untraceable, and the module keeps it.
"""

from __future__ import annotations

import dis
import inspect
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import layers

Forward = Callable[..., Any]
# Forwards of classes whose own can not be traced, written so that they can; by the class's name.
FORWARDS: dict[str, Forward] = {}

_EFFECTS = {
    "STORE_ATTR": "sets attributes",
    "DELETE_ATTR": "deletes attributes",
    "STORE_GLOBAL": "sets globals",
    "SETUP_WITH": "opens a context",
    "BEFORE_WITH": "opens a context",
    "LOAD_SPECIAL": "opens a context",
    "YIELD_VALUE": "is a generator",
    "IMPORT_NAME": "imports",
}
# What is asked once while tracing may be answered otherwise at the next call.
_QUESTIONS = frozenset(
    [
        "isinstance",
        "issubclass",
        "type",
        "print",
        "warn",
        "checkpoint",
        "is_grad_enabled",
        "is_autocast_enabled",
        "is_autocast_cache_enabled",
        "is_compiling",
        "is_exporting",
        "is_tensor",
        "random",
        "rand",
        "randn",
        "randint",
        "is_cuda",
        "is_contiguous",
        "is_torch_compiling",
        "stride",
    ]
)
_MOST_ARGUMENTS = 4
_CONTAINERS = {list, dict, set, OrderedDict}


class Untraceable(Exception):
    """The message says why."""


def arity(module: nn.Module) -> int:
    """How many arguments the traced forward takes: those without a default."""
    forward = _traceable_forward(module)
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    required = [p for p in parameters if p.default is p.empty]
    if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required):
        raise Untraceable("its forward takes a variable number of arguments")
    if not 1 <= len(required) <= _MOST_ARGUMENTS:
        raise Untraceable(f"its forward takes {len(required)} arguments")
    return len(required)


def trace(root: nn.Module, inline: Callable[[nn.Module], bool]) -> tuple[fx.Graph, list[str]]:
    """The graph of a forward, and the paths of the children whose forwards are part of it.

    Args:
        root: the module.
        inline: which of its submodules to look into.

    Raises:
        Untraceable: the forward has no fixed graph; the message says why.
    """
    if reason := refusal(root):
        raise Untraceable(reason)
    tracer = _Tracer(inline)
    before = _State(root)
    try:
        with _with_forward(root, _wrapped(root, arity(root))), _NoTensors():
            graph = tracer.trace(root)
    except Exception as error:  # whatever a foreign forward raises when it meets a proxy
        raise Untraceable(_first_line(error)) from error
    finally:
        changed = before.restore()
    if changed:
        raise Untraceable("its forward has side effects")
    return graph, tracer.inlined


class _NoTensors(TorchDispatchMode):
    """While tracing there are proxies; to compute with tensors would be to compute only once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise Untraceable("its forward computes with tensors of its own")


class _State:
    """What a forward could change: attributes of every submodule, random numbers."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = list(root.modules())
        self._attributes = [_copied(module) for module in self._modules]
        self._random = random.getstate()

    def restore(self) -> bool:
        """Set everything back; whether anything had changed."""
        changed = random.getstate() != self._random
        random.setstate(self._random)
        for module, before in zip(self._modules, self._attributes, strict=True):
            if _same(before, _copied(module)):
                continue
            changed = True
            module.__dict__.clear()
            module.__dict__.update(before)
        return changed


def _copied(module: nn.Module) -> dict[str, Any]:
    """Attributes, and what lists and dicts among them hold."""
    return {
        name: value.copy() if type(value) in _CONTAINERS else value
        for name, value in module.__dict__.items()
    }


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    try:
        return a == b
    except Exception:  # tensors among them were replaced, and have no truth
        return False


def refusal(module: nn.Module) -> str | None:
    """Why the forward must not be traced, as far as its code tells; None where it may."""
    if reason := layers.altered(module):
        return reason
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return f"it is a {type(module).__name__}"
    if layers.name_of(layers.plain_class(module)) in FORWARDS:
        return None
    return _refusal_of(layers.plain_class(module))  # type: ignore[arg-type]


class _Tracer(fx.Tracer):
    def __init__(self, inline: Callable[[nn.Module], bool]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._inline = inline
        self.inlined: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the graph holds a call of `m`, instead of what `m` does."""
        return not self._inline(m)

    def call_module(
        self, m: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call, or look into it."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        if refused := refusal(m):
            raise Untraceable(refused)
        if path not in self.inlined:
            self.inlined.append(path)
        return _traceable_forward(m)(m, *args, **kwargs)


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that a graph holds a call of, instead of what the function does."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                args = tuple(_as_proxy(value.tracer, arg) for arg in args)
                return value.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _as_proxy(tracer: Any, value: Any) -> Any:
    if not isinstance(value, nn.Module):
        return value
    return tracer.create_proxy("get_attr", tracer.path_of_module(value) or layers.ITSELF, (), {})


def _traceable_forward(module: nn.Module) -> Forward:
    cls = layers.plain_class(module)
    return FORWARDS.get(layers.name_of(cls), cls.forward)


def _wrapped(module: nn.Module, count: int) -> Forward:
    """The forward with exactly so many arguments; the tracer would make more of them otherwise."""
    forward = _traceable_forward(module)
    wrappers: tuple[Forward, ...] = (
        lambda self, a: forward(self, a),
        lambda self, a, b: forward(self, a, b),
        lambda self, a, b, c: forward(self, a, b, c),
        lambda self, a, b, c, d: forward(self, a, b, c, d),
    )
    return wrappers[count - 1]


@contextmanager
def _with_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Give the module another forward for a while; the tracer looks it up in the class."""
    cls = module.__class__
    module.__class__ = type(cls.__name__, (layers.plain_class(module),), {"forward": forward})
    try:
        yield
    finally:
        module.__class__ = cls


@cache
def _refusal_of(cls: type[nn.Module]) -> str | None:
    forward: Any = cls.forward
    if not isinstance(forward, FunctionType):
        return "its forward is not a Python function"
    if hasattr(forward, "__wrapped__"):
        return "its forward is decorated"
    for code in _codes(cls, forward):
        for instruction in dis.get_instructions(code):
            if effect := _EFFECTS.get(instruction.opname):
                return f"its forward {effect}"
        if asked := sorted(_QUESTIONS.intersection(code.co_names)):
            return f"its forward calls {asked[0]}"
    return None


def _codes(cls: type, forward: FunctionType) -> Iterator[CodeType]:
    """The code of a forward, of functions inside it, and of those that it may call.

    That is methods of the class and of those it comes from, and functions that it knows by name,
    except those of PyTorch, which treat what is recorded as they treat tensors.
    """
    pending, seen = [forward], set()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        codes = [function.__code__]
        for code in codes:
            yield code
            codes.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
            for name in code.co_names:
                methods = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
                reached = methods if "super" in code.co_names else methods[:1]
                known = [*reached, function.__globals__.get(name)]
                pending.extend(f for f in known if _may_ask(f))


def _may_ask(function: object) -> bool:
    if not isinstance(function, FunctionType):
        return False
    return function.__module__.partition(".")[0] != "torch"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, Untraceable):
        return text[0]
    return f"its forward has no fixed graph ({type(error).__name__}: {text[0] if text else ''})"
