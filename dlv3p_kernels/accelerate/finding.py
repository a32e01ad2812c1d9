"""Which modules of a model can run by a plan, and why the others can not."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from torch import fx, nn

from . import layers, plan
from .plan import Plan
from .region import Region
from .tracing import Untraceable

_MOST_CONVOLUTIONS = 3


@dataclass
class Finding:
    """What was made of one module.

    Attributes:
        plan: what it can run by.
        reason: why there is none.
    """

    plan: Plan | None = None
    reason: str = ""


@dataclass
class Finder:
    """Looks at a model, from the inside out.

    Attributes:
        found: by the modules' ids.
    """

    found: dict[int, Finding] = field(default_factory=dict)
    _inlined: set[int] = field(default_factory=set)

    def search(self, model: nn.Module) -> None:
        """Look at a module after all modules in it."""
        if layers.calls_ops(model):
            already = Finding(reason="it runs on the ops already")
            self.found.update(dict.fromkeys(map(id, model.modules()), already))
            return
        for child in model.children():
            if id(child) not in self.found:
                self.search(child)
        self.found[id(model)] = self._look_at(model)

    def _look_at(self, module: nn.Module) -> Finding:
        if _is_foreign(module):
            return Finding(reason="quantised or compiled modules are left alone")
        try:
            if layers.name_of(layers.plain_class(module)) in layers.ROLES:
                return Finding(plan.leaf_plan(module))
            if layers.is_stock(module) and not _is_container(module):
                return Finding(reason="no op serves it")
            region, inlined = plan.region_of(module, self._looks_into)
            if _is_small(region):
                self._inlined.add(id(module))
            found = plan.region_plan(region, inlined)
        except Untraceable as error:
            return Finding(reason=str(error))
        return Finding(found, "" if found else "nothing in it that the ops could be fused from")

    def _looks_into(self, module: nn.Module) -> bool:
        return id(module) in self._inlined


def plan_again(module: nn.Module) -> Plan | None:
    """The plan of a module that has lost it."""
    finder = Finder()
    finder.search(module)
    return finder.found[id(module)].plan


def _is_container(module: nn.Module) -> bool:
    return layers.plain_class(module).forward is nn.Sequential.forward


def _is_foreign(module: nn.Module) -> bool:
    home = layers.plain_class(module).__module__
    return home.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic", "torchao."))


def _is_small(region: Region) -> bool:
    """Whether the graph is a piece of a block, which the graph around it should see into.

    A block by itself is not: what goes wrong in one must leave its neighbours alone. One that
    returns several maps is, as the graph around it could not tell them apart.
    """
    convolutions = 0
    for node in region.graph.nodes:
        if region.is_sum(node) or (node.op == "placeholder" and node.prev.op == "placeholder"):
            return False
        if node.op == "call_module":
            role = region.role(node)
            module = region.module(node)
            if role is None and (not layers.is_stock(module) or layers.altered(module)):
                return False
            convolutions += isinstance(role, layers.Convolution)
        elif node.target is operator.iadd:
            return False
    (result,) = region.graph.output_node().args
    several = not isinstance(result, fx.Node)
    return convolutions <= _MOST_CONVOLUTIONS or several or _is_container(region.root)
