"""The graph of one module's forward, on which the patterns are found and replaced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import layers
from .layers import Activation, Padding, Role, Same

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu",
    F.relu_: "relu", F.relu6: "relu6", F.silu: "silu",
}  # fmt: skip
# Calls of a function on a map and a layer, by the function: what the layer does in it.
CALLS: dict[Any, Callable[[nn.Module], Role | None]] = {}
_METHODS = {"relu": "relu", "relu_": "relu"}
_IN_PLACE = {torch.relu_, F.relu_, "relu_", operator.iadd, "add_"}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True)
class Replacement:
    """What one call of an op stands for.

    Attributes:
        op: name of the op, as in `dk.separable_conv2d`.
        pattern: what was recognised, in words.
        paths: the layers, relative to the module whose forward was rewritten.
    """

    op: str
    pattern: str
    paths: tuple[str, ...]


class Region:
    """A module and the graph of its forward."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.graph = graph
        self.replacements: list[Replacement] = []
        self.covered: set[str] = set()
        self._settle()

    def path(self, node: fx.Node) -> str:
        """The layer that a node calls, relative to the root."""
        layer = node.args[1] if node.target in CALLS else node
        assert isinstance(layer, fx.Node)
        return "" if layer.target == layers.ITSELF else str(layer.target)

    def calls_layer(self, node: fx.Node) -> bool:
        """Whether a node calls a layer."""
        return node.op == "call_module" or node.target in CALLS

    def module(self, node: fx.Node) -> nn.Module:
        """The layer that a node calls."""
        return self.root.get_submodule(self.path(node))

    def is_altered(self, node: fx.Node) -> bool:
        """Whether a call of the layer is more than its class says."""
        return layers.altered(self.module(node)) is not None

    def role(self, node: object) -> Role | None:
        """What a node does, where the kernels know it and it overwrites nothing from outside."""
        if isinstance(node, fx.Node) and node.target in CALLS:
            layer = self.module(node)
            return None if layers.altered(layer) else CALLS[node.target](layer)
        if not isinstance(node, fx.Node) or len(node.args) != 1 or node.kwargs.keys() - {"inplace"}:
            return self._padding(node)
        role: Role | None = None
        if node.op == "call_module" and not node.kwargs:
            role = layers.role_of(self.module(node))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            in_place = bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE
            role = Activation(_FUNCTIONS[node.target], in_place)
        elif node.op == "call_method" and node.target in _METHODS:
            role = Activation(_METHODS[str(node.target)], node.target in _IN_PLACE)
        if isinstance(role, Activation) and role.inplace and not self.is_fresh(node.args[0]):
            return None
        return role

    def is_sum(self, node: fx.Node) -> bool:
        """Whether a node is the sum of two maps."""
        is_call = node.op in ("call_function", "call_method") and node.target in _SUMS
        two = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
        if not (is_call and two and not node.kwargs):
            return False
        return node.target not in _IN_PLACE or self.is_fresh(node.args[0])

    def is_fresh(self, node: object) -> bool:
        """Whether a node made its result itself, so that none outside sees it overwritten."""
        if not isinstance(node, fx.Node):
            return False
        if node.op == "call_module":
            role = layers.role_of(self.module(node))
            if isinstance(role, Activation) and role.inplace:
                return self.is_fresh(node.args[0])
            return role is not None and not isinstance(role, Same)
        if node.target in CALLS:
            return self.role(node) is not None
        if node.target in _IN_PLACE:
            return self.is_fresh(node.args[0])
        return node.op == "call_function" and node.target in (operator.add, torch.add, torch.cat)

    def only_user(self, node: fx.Node) -> fx.Node | None:
        """The node that reads the result, where there is a single one that reads it once."""
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        reads = [arg for arg in user.all_input_nodes if arg is node]
        twice = sum(arg is node for arg in user.args) > 1
        return None if twice or len(reads) != 1 else user

    def replace(
        self, last: fx.Node, nodes: Iterable[fx.Node], step: Callable[..., Any],
        arguments: tuple[object, ...], op: str, pattern: str, extra: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Put one call of `step` in the place of `nodes`, whose last is `last`.

        `arguments` are nodes, modules' paths as strings, or None. `extra` are the paths of layers
        that `step` reads beside those of `nodes`.
        """
        consumed = set(nodes)
        with self.graph.inserting_before(last):
            values = tuple(
                self.graph.get_attr(a or layers.ITSELF) if isinstance(a, str) else a
                for a in arguments
            )
            call = self.graph.call_function(step, values)  # type: ignore[arg-type]
        last.replace_all_uses_with(call)
        paths = [self.path(n) for n in self.graph.nodes if n in consumed and self.calls_layer(n)]
        for node in reversed([n for n in self.graph.nodes if n in consumed]):
            self.graph.erase_node(node)
        paths.extend(extra)
        self.cover(paths)
        self.replacements.append(Replacement(op, pattern, tuple(paths)))

    def cover(self, paths: Iterable[str]) -> None:
        """Note that layers are no longer called."""
        for path in paths:
            self.covered.add(path)
            role = layers.role_of(self.root.get_submodule(path))
            self.covered.update(f"{path}.{name}" for name in getattr(role, "children", ()))

    def may_join(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether the nodes may all run when the last of them does: nothing writes in between."""
        consumed = set(nodes)
        order = list(self.graph.nodes)
        positions = [i for i, node in enumerate(order) if node in consumed]
        between = order[positions[0] : positions[-1]]
        return all(node in consumed or self._is_pure(node) for node in between)

    def _is_pure(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            if self.role(node) is not None:
                return True
            module = self.module(node)
            stock = layers.is_stock(module) and not layers.altered(module)
            return stock and not getattr(module, "inplace", False)
        if node.op == "call_method":
            return not str(node.target).endswith("_")
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "")
            is_operator = getattr(node.target, "__module__", None) == "_operator"
            writes = name.endswith("_") or (is_operator and name.startswith(("i", "set")))
            return not writes and not node.kwargs.get("inplace")
        return True

    def _padding(self, node: object) -> Role | None:
        if not isinstance(node, fx.Node) or node.target is not F.pad:
            return None
        names = ("input", "pad", "mode", "value")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        sides = given.get("pad")
        if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
            return None
        if not isinstance(sides, (list, tuple)) or not all(type(s) is int for s in sides):
            return None
        left, right, top, bottom = (*sides, 0, 0)[:4]
        return Padding((left, right, top, bottom)) if len(sides) in (2, 4) else None

    def _settle(self) -> None:
        """Make the flow of values that in-place layers hide explicit; drop layers that do nothing.

        Behind an in-place layer its input holds its result: who reads the input reads that.
        """
        for node in list(self.graph.nodes):
            if isinstance(self.role(node), Same):
                node.replace_all_uses_with(node.args[0])
                self.covered.add(str(node.target))
                self.graph.erase_node(node)
            elif self._overwrites(node):
                order = {n: i for i, n in enumerate(self.graph.nodes)}
                source = node.args[0]
                for user in list(source.users):
                    if order[user] > order[node]:
                        user.replace_input_with(source, node)

    def _overwrites(self, node: fx.Node) -> bool:
        role = self.role(node)
        if isinstance(role, Activation):
            return role.inplace
        return self.is_sum(node) and node.target in _IN_PLACE
