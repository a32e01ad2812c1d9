"""Whether an accelerated model does what the untouched one does, by the accuracy rule.

The untouched model in float64 is exact. Errors are relative L2 norms, one for each tensor; none of
the accelerated model's may be more than twice the worst of the untouched model in the same dtype,
in either memory layout, beside a floor: what one rounding of the input and of every parameter makes
of the exact results, times the root of the number of layers, which each round once more. Gradients
of shifts in front of a batch norm are zero but for rounding: a tensor of under a tenth of the
largest norm of its kind is measured by that.

Deep nets amplify rounding at every optimiser step, so that after several a difference in float32
says little: large models are compared over one. What five steps would add up, such as a wrong
gradient, momentum or running statistic, is looked for in float64, where rounding stays out of sight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import dlv3p_kernels as dk
from dlv3p_kernels.accelerate.counting import by_op
from dlv3p_kernels.accelerate.swap import is_swapped, plan_of
from dlv3p_kernels.bench import accuracy

Tensors = dict[str, Tensor]
LAYOUTS = (torch.channels_last, torch.contiguous_format)
_FIVE_STEPS = 5
# In float64 rounding is 1e-16, and five steps of the nets here made up to 1e-10 of it; in float32
# a rounding alone, anywhere, is 6e-8, and a real error is larger by far.
_DOUBLE_TOLERANCE = 1e-8


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_in(v)]
    return []


def counts(model: nn.Module) -> dict[str, int]:
    return dict(by_op(model, plan_of))


def run(model: nn.Module, x: Tensor, steps: int = 5) -> dict[str, Tensors]:
    """Outputs, gradients, losses and statistics of some optimiser steps, then of evaluation."""
    training = model.training
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    found: dict[str, Tensors] = {"outputs": {}, "losses": {}, "gradients": {}, "state": {}}
    for step in range(steps):
        optimiser.zero_grad()
        outputs = tensors_in(model(x.clone()))
        generator = torch.Generator().manual_seed(step)
        loss = sum(
            (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).mean()
            + o.square().mean()
            for o in outputs
        )
        loss.backward()
        if step == 0:
            found["outputs"] = {f"train.{i}": o.detach() for i, o in enumerate(outputs)}
            found["gradients"] = {
                name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
            }
        found["losses"][str(step)] = loss.detach()
        optimiser.step()
    found["state"] = {
        name: t.detach().clone() for name, t in model.state_dict().items() if t.is_floating_point()
    }
    model.eval()
    with torch.no_grad():
        outputs = tensors_in(model(x.clone()))
    found["outputs"] |= {f"eval.{i}": o for i, o in enumerate(outputs)}
    model.train(training)
    return found


def assert_agree(
    model: nn.Module,
    x: Tensor,
    expected: dict[str, int],
    layout: torch.memory_format = torch.channels_last,
    prepare: Callable[[nn.Module], object] = lambda model: None,
    steps: int = 5,
) -> None:
    """Accelerated, the model makes the expected calls of ops and agrees with itself untouched.

    In its own dtype over `steps` optimiser steps, in float64 over five.
    """
    prepare(model)
    ours = dk.accelerate(copy.deepcopy(model).to(memory_format=layout))
    assert counts(ours) == expected
    assert ours.state_dict().keys() == model.state_dict().keys()
    _assert_same_in_double(copy.deepcopy(model).double(), x.double(), layout)
    _assert_accurate(model, ours, x, layout, steps)
    run(model, x, steps)
    for name, counter in model.state_dict().items():
        if not counter.is_floating_point():
            assert torch.equal(ours.state_dict()[name], counter), name


def _assert_same_in_double(model: nn.Module, x: Tensor, layout: torch.memory_format) -> None:
    ours = dk.accelerate(copy.deepcopy(model).to(memory_format=layout))
    got = run(ours, x.to(memory_format=layout), _FIVE_STEPS)
    for kind, values in run(model, x, _FIVE_STEPS).items():
        assert got[kind].keys() == values.keys()
        least = _least(values)
        for name, value in values.items():
            error = _error(got[kind][name], value, least)
            assert error <= _DOUBLE_TOLERANCE, f"float64 {kind} {name}: {error:.3g}"


def _assert_accurate(
    model: nn.Module, ours: nn.Module, x: Tensor, layout: torch.memory_format, steps: int
) -> None:
    exact = run(copy.deepcopy(model).double(), x.double(), steps)
    stock = [
        run(copy.deepcopy(model).to(memory_format=f), x.to(memory_format=f), steps) for f in LAYOUTS
    ]
    rounded = run(_rounded(model, x.dtype), _jittered(x.double(), x.dtype), steps)
    got = run(ours, x.to(memory_format=layout), steps)
    layers = sum(not any(True for _ in module.children()) for module in model.modules())
    for kind, values in exact.items():
        assert got[kind].keys() == values.keys()
        least = _least(values)
        worst = max(
            (_error(s[kind][n], v, least) for s in stock for n, v in values.items()), default=0.0
        )
        floor = math.sqrt(layers) * max(
            (_error(rounded[kind][n], v, least) for n, v in values.items()), default=0.0
        )
        assert worst < 0.05, f"{kind}: stock is off by {worst:.3g}, too much to compare with"
        for name, value in values.items():
            error = _error(got[kind][name], value, least)
            limit = accuracy.allowed(worst, floor)
            assert error <= limit, f"{kind} {name}: {error:.3g}, allowed {limit:.3g}"


def _least(values: Tensors) -> float:
    return max((float(v.norm()) for v in values.values()), default=0.0) / 10


def _jittered(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding up or down for each element."""
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(0, 2, exact.shape, generator=generator) * 2 - 1
    return exact * (1 + accuracy.rounding_unit(dtype) * signs)


def _rounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(_jittered(parameter, dtype))
    return twin


def _error(result: Tensor, exact: Tensor, least: float) -> float:
    return float((result.double() - exact).norm()) / max(float(exact.norm()), least, 1e-30)


def swapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_swapped(module)]
