"""Whether an accelerated model does what the untouched one does, by the accuracy rule.

The untouched model in float64 is exact. Errors are relative L2 norms, one for each tensor; none of
the accelerated model's may be more than twice the worst of the untouched model in the same dtype,
in either memory layout, beside a floor: what one rounding of the input and of every parameter makes
of the exact results, times the root of the number of layers, which each round once more. Gradients
of shifts in front of a batch norm are zero but for rounding: a tensor of under a tenth of the
largest norm of its kind is measured by that.

Deep nets amplify rounding at every optimiser step, ten- to hundredfold, so that in float32
several say little: large models are compared over one. What five steps would add up, such as a
wrong gradient, momentum or running statistic, is looked for in float64 by the same rule, with the
untouched model in one layout as exact and in the other as stock. An error of 1e-10 passes, as a
single rounding to float32 would be 600 times that; larger ones only as far as rounding is
amplified, and mistakes would be amplified alike. What is left after five steps is the part of the
rounding along the few directions that grow fastest, about normal and of a size that one run of
stock only samples: five of its deviations pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dlv3p_kernels as dk
from dlv3p_kernels.accelerate.counting import by_op
from dlv3p_kernels.accelerate.swap import is_swapped, plan_of
from dlv3p_kernels.bench import accuracy

Tensors = dict[str, Tensor]
Results = dict[str, Tensors]
LAYOUTS = (torch.channels_last, torch.contiguous_format)
_FIVE_STEPS = 5
_DOUBLE_FLOOR, _DEVIATIONS = 1e-10, 5.0
# Stock PyTorch has to be at least so exact for a comparison to say something.
_MOST_IN_DOUBLE, _MOST_IN_FLOAT = 1e-5, 0.05


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


def run(model: nn.Module, x: Tensor, steps: int = 5) -> Results:
    """Outputs, gradients, losses and statistics of some optimiser steps, then of evaluation."""
    training = model.training
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    found: Results = {"outputs": {}, "losses": {}, "gradients": {}, "state": {}}
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
    ours = dk.accelerate(_in(model, layout))
    assert counts(ours) == expected, counts(ours)
    assert ours.state_dict().keys() == model.state_dict().keys()
    _assert_same_in_double(copy.deepcopy(model).double(), x.double(), layout)
    _assert_accurate(model, ours, x, layout, steps)
    run(model, x, steps)
    for name, counter in model.state_dict().items():
        if not counter.is_floating_point():
            assert torch.equal(ours.state_dict()[name], counter), name


def _assert_same_in_double(model: nn.Module, x: Tensor, layout: torch.memory_format) -> None:
    other = next(f for f in LAYOUTS if f is not layout)
    runs = _Runs(
        exact=run(_in(model, layout), _in(x, layout), _FIVE_STEPS),
        stock=[run(_in(model, other), _in(x, other), _FIVE_STEPS)],
        rounded=run(_rounded(model, x.dtype), _jittered(x, x.dtype), _FIVE_STEPS),
        got=run(dk.accelerate(_in(model, layout)), _in(x, layout), _FIVE_STEPS),
    )
    _assert_rule(runs, _layers(model), _MOST_IN_DOUBLE, _DEVIATIONS, _DOUBLE_FLOOR)


def _assert_accurate(
    model: nn.Module, ours: nn.Module, x: Tensor, layout: torch.memory_format, steps: int
) -> None:
    runs = _Runs(
        exact=run(copy.deepcopy(model).double(), x.double(), steps),
        stock=[run(_in(model, f), _in(x, f), steps) for f in LAYOUTS],
        rounded=run(_rounded(model, x.dtype), _jittered(x.double(), x.dtype), steps),
        got=run(ours, _in(x, layout), steps),
    )
    _assert_rule(runs, _layers(model), _MOST_IN_FLOAT)


class _Runs(NamedTuple):
    """Results of the untouched model, exact, as stock PyTorch rounds and perturbed; and ours."""

    exact: Results
    stock: list[Results]
    rounded: Results
    got: Results


def _assert_rule(
    runs: _Runs, layers: int, most: float, factor: float = 1.0, least_limit: float = 0.0
) -> None:
    for kind, values in runs.exact.items():
        got = runs.got[kind]
        assert got.keys() == values.keys()
        least = max((float(v.norm()) for v in values.values()), default=0.0) / 10
        worst = max((_worst(s[kind], values, least) for s in runs.stock), default=0.0)
        floor = math.sqrt(layers) * _worst(runs.rounded[kind], values, least)
        limit = max(factor * accuracy.allowed(worst, floor), least_limit)
        assert worst < most, f"{kind}: stock is off by {worst:.3g}, too much to compare with"
        for name, value in values.items():
            error = _error(got[name], value, least)
            assert error <= limit, f"{kind} {name}: {error:.3g}, allowed {limit:.3g}"


def _worst(results: Tensors, exact: Tensors, least: float) -> float:
    return max((_error(results[n], v, least) for n, v in exact.items()), default=0.0)


def _in(value: Any, layout: torch.memory_format) -> Any:
    """A copy of a model or tensor in a layout."""
    return copy.deepcopy(value).to(memory_format=layout)


def _layers(model: nn.Module) -> int:
    return sum(not any(True for _ in module.children()) for module in model.modules())


def _jittered(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding up or down for each element; in float64 one step of the format."""
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(0, 2, exact.shape, generator=generator) * 2 - 1
    unit = max(accuracy.rounding_unit(dtype), torch.finfo(exact.dtype).eps)
    return exact * (1 + unit * signs)


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
