"""Which replacements of an accelerated model take effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from torch import nn

from .plan import Plan
from .region import Replacement

Planned = Callable[[nn.Module], Plan | None]


def effective(model: nn.Module, plan_of: Planned) -> Iterator[tuple[str, nn.Module, Replacement]]:
    """Path and module of every rewritten forward that runs, with each of its replacements.

    A rewritten forward passes by those of the modules that it looks into.
    """
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, Replacement]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        plan = plan_of(module)
        if plan is None:
            names = [name for name, _ in module.named_children()]
        else:
            names = list(plan.calls)
            for replacement in plan.replacements:
                yield path, module, replacement
        for name in names:
            yield from visit(f"{path}.{name}" if path else name, module.get_submodule(name))

    yield from visit("", model)


def by_op(model: nn.Module, plan_of: Planned) -> Counter[str]:
    """How many calls of each op there are."""
    return Counter(replacement.op for _, _, replacement in effective(model, plan_of))
