"""Giving a module another forward by giving it another class, and taking that back."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from . import layers
from .plan import Plan

_PLAN = "_dlv3p_plan"


def swap(module: nn.Module, plan: Plan) -> None:
    """Let the module run by its plan."""
    module.__class__ = _accelerated(layers.plain_class(module))  # type: ignore[arg-type]
    module.__dict__[_PLAN] = plan


def swap_back(module: nn.Module) -> bool:
    """Undo `swap`; whether there was anything to undo."""
    if not is_swapped(module):
        return False
    module.__class__ = layers.plain_class(module)
    module.__dict__.pop(_PLAN, None)
    return True


def is_swapped(module: nn.Module) -> bool:
    """Whether the module runs by a plan."""
    return "_dlv3p_original" in type(module).__dict__


def plan_of(module: nn.Module) -> Plan | None:
    """The plan that the module runs by."""
    plan: Plan | None = module.__dict__.get(_PLAN)
    return plan


@cache
def _accelerated(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass whose forward follows the plan while the plan stands."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get(_PLAN)
        if plan is not None and not kwargs and len(args) == plan.arity and plan.stands(self):
            return plan.run(self, *args)
        return original.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        rebuild, arguments, *rest = super(cls, self).__reduce_ex__(protocol)  # type: ignore[str-unpack]
        if arguments[:1] == (cls,):  # classes made here have no name that a pickle could find
            return (_rebuilt, (original, rebuild, arguments[1:]), *rest)
        return (rebuild, arguments, *rest)

    def setstate(self: nn.Module, state: dict[str, Any]) -> None:
        super(cls, self).__setstate__(state)  # type: ignore[misc]
        if self.__dict__.get(_PLAN) is None:
            from .finding import plan_again

            self.__dict__[_PLAN] = plan_again(self)

    members = {
        "_dlv3p_original": original,
        layers.ITSELF: property(lambda self: self),
        "forward": forward,
        "__reduce_ex__": reduce,
        "__setstate__": setstate,
        "__module__": original.__module__,
        "__qualname__": f"Accelerated{original.__qualname__}",
        "__doc__": original.__doc__,
    }
    cls: type[nn.Module] = type(f"Accelerated{original.__name__}", (original,), members)
    return cls


def _rebuilt(original: type[nn.Module], rebuild: Any, arguments: tuple[Any, ...]) -> nn.Module:
    """An empty module of the accelerated class, for unpickling."""
    module: nn.Module = rebuild(_accelerated(original), *arguments)  # type: ignore[arg-type]
    return module
