"""The rewritten forward of one module, and what it relies on."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

from torch import fx, nn

from . import layers, patterns, runtime, tracing
from .region import Region, Replacement

_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# Functions are settings too: some layers keep their activation as one.
_SIMPLE = (bool, int, float, str, type(None), tuple, list, FunctionType, BuiltinFunctionType)


class Guard(NamedTuple):
    """A layer that the rewritten forward takes to be as it was.

    Attributes:
        path: names of the submodules down to it.
        cls: its class before `accelerate`.
        settings: its attributes, as far as they are numbers, strings, functions and the like.
    """

    path: tuple[str, ...]
    cls: type
    settings: tuple[tuple[str, object], ...]


class Plan:
    """A rewritten forward.

    It holds no module and no tensor, so that copies of a module share it; a pickle leaves it out,
    and unpickling makes it anew.

    Attributes:
        arity: the number of arguments it takes.
        run: called with the module and these.
        replacements: what in it calls which op.
        calls: paths of the submodules that it still calls.
        guards: what it relies on.
    """

    def __init__(
        self,
        arity: int,
        run: Callable[..., Any],
        replacements: tuple[Replacement, ...],
        calls: tuple[str, ...],
        guards: tuple[Guard, ...],
    ) -> None:
        self.arity, self.run = arity, run
        self.replacements, self.calls, self.guards = replacements, calls, guards

    def stands(self, root: nn.Module) -> bool:
        """Whether all layers are still as they were: same classes and settings, and no hooks."""
        if layers.hooked_globally():
            return False
        return all(_holds(root, guard) for guard in self.guards)

    def __deepcopy__(self, memo: dict[int, object]) -> Plan:
        return self

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


def leaf_plan(module: nn.Module) -> Plan:
    """The plan of a layer by itself.

    Raises:
        Untraceable: no op serves it; the message says why.
    """
    role = layers.role_of(module)
    if role is None:
        raise tracing.Untraceable(layers.altered(module) or "its class or settings are not known")
    if isinstance(role, layers.Convolution) and role.kind == "depthwise":
        sides = role.sides
        run = lambda self, x: runtime.depthwise(sides, self, x)  # noqa: E731
        replacement = Replacement("depthwise_conv2d", "depthwise", ("",))
    elif isinstance(role, layers.Norm):
        activation = role.activation
        run = lambda self, x: runtime.norm_act(self, activation, x)  # noqa: E731
        words = "batch norm" + ("" if activation == "identity" else f", {activation}")
        replacement = Replacement("batch_norm_act", words, ("",))
    else:
        raise tracing.Untraceable("no op serves it by itself")
    paths = ["", *role.children]
    return Plan(1, run, (replacement,), (), tuple(_guard(module, path) for path in paths))


def region_of(module: nn.Module, inline: Callable[[nn.Module], bool]) -> tuple[Region, list[str]]:
    """The graph of a forward, the same in training and evaluation, and what was looked into.

    Raises:
        Untraceable: there is none; the message says why.
    """
    modes = [child.training for child in module.modules()]
    try:
        traces = []
        for mode in (True, False):
            for child in module.modules():
                child.__dict__["training"] = mode
            traces.append(tracing.trace(module, inline))
    finally:
        for child, mode in zip(module.modules(), modes, strict=True):
            child.__dict__["training"] = mode
    (graph, inlined), (other, _) = traces
    if _text(graph) != _text(other):
        raise tracing.Untraceable("its forward does other things in evaluation than in training")
    return Region(module, graph), inlined


def region_plan(region: Region, inlined: list[str]) -> Plan | None:
    """The plan of a module by the graph of its forward; None where there is nothing to replace."""
    patterns.replace_in(region)
    if not region.replacements:
        return None
    root = region.root
    guards = [_guard(root, path) for path in ("", *inlined, *sorted(region.covered))]
    calls = {region.path(node) for node in region.graph.nodes if region.calls_layer(node)}
    # A call of part of a layer that was looked into is no call of its forward.
    calls -= {"", *inlined}
    return Plan(
        tracing.arity(root),
        _compiled(region.graph),
        tuple(region.replacements),
        tuple(sorted(calls)),
        tuple(guards),
    )


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<dlv3p_kernels.accelerate>", "exec"), scope)
    run: Callable[..., Any] = scope["forward"]
    return run


def _text(graph: fx.Graph) -> str:
    return "\n".join(node.format_node() or "" for node in graph.nodes)


def _guard(root: nn.Module, path: str) -> Guard:
    module = root.get_submodule(path)
    names = tuple(path.split(".")) if path else ()
    return Guard(names, layers.plain_class(module), tuple(_settings(module).items()))


def _settings(module: nn.Module) -> dict[str, object]:
    """Attributes that a forward could ask for, and that can be compared."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return {}  # read at every call
    return {
        name: tuple(value) if type(value) is list else value
        for name, value in module.__dict__.items()
        if type(value) in _SIMPLE and not _is_internal(name)
    }


def _is_internal(name: str) -> bool:
    return name in ("training", "call_super_init", "_is_full_backward_hook", "_dlv3p_plan")


def _holds(root: nn.Module, guard: Guard) -> bool:
    module: nn.Module | None = root
    for name in guard.path:
        assert module is not None
        module = module._modules.get(name)
        if module is None:
            return False
    assert module is not None
    if layers.plain_class(module) is not guard.cls:
        return False
    if guard.path and layers.altered(module):  # those of the root run around its forward
        return False
    attributes = module.__dict__
    for name, value in guard.settings:
        now = attributes.get(name)
        if (tuple(now) if type(now) is list else now) != value:
            return False
    return True
