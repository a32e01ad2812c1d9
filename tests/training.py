"""Training steps that every layer has to stand, beside the stock layers it replaces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlv3p_kernels.bench import accuracy

Inputs = Callable[[torch.dtype], Sequence[Tensor]]


def state_of(layer: nn.Module) -> dict[str, Tensor]:
    """Gradients, parameters and buffers."""
    grads = {f"grad {name}": p.grad for name, p in layer.named_parameters()}
    return grads | dict(layer.state_dict())


def assert_checkpoints(
    ours: nn.Module, stocks: nn.Module, inputs: Inputs, reentrant: bool, tolerance: float = 0.0
) -> None:
    """As without, to the bit or to a relative tolerance; the second forward counts the batch again,
    as in stock PyTorch.
    """
    plain = copy.deepcopy(ours)
    found = []
    for layer in (ours, stocks):
        output = checkpoint(layer, *_leaves(inputs), use_reentrant=reentrant)
        output.sin().sum().backward()
        found.append(state_of(layer))
    torch.testing.assert_close(*found)
    plain(*_leaves(inputs)).sin().sum().backward()
    for name, parameter in plain.named_parameters():
        again = found[0][f"grad {name}"]
        torch.testing.assert_close(parameter.grad, again, rtol=tolerance, atol=tolerance / 10)


def _leaves(inputs: Inputs) -> list[Tensor]:
    given = inputs(torch.float64)
    return [t.detach().requires_grad_(t.is_floating_point()) for t in given]


def assert_trains_in_mixed_precision(
    ours: nn.Module, stocks: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> None:
    """Three steps by `GradScaler`, the second of which overflows and is left out.

    Parameters and running statistics are as exact as those of stock layers.
    """
    start = {name: t.double().clone() for name, t in ours.state_dict().items()}
    exact = copy.deepcopy(stocks).double()
    for layer, kind in ((ours, dtype), (stocks, dtype), (exact, None)):
        _mixed_steps(layer, inputs, kind)
    for name, value in exact.state_dict().items():
        found = [layer.state_dict()[name].double() for layer in (ours, stocks)]
        moved = (value - start[name]).numpy()  # what the steps have done, which is small
        errors = [accuracy.error(t - start[name], moved) for t in found]
        limit = accuracy.allowed(errors[1], accuracy.rounding_unit(dtype))
        assert errors[0] <= limit, f"{name}: {errors[0]:.3g}, allowed {limit:.3g}"


def _mixed_steps(layer: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> None:
    """Train; with `dtype` under autocast."""
    mixed = dtype is not None
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=mixed, init_scale=256.0)
    for step in range(3):
        optimiser.zero_grad()
        given = inputs(torch.float32 if mixed else torch.float64)
        given = [t * (1 + step) if t.is_floating_point() else t for t in given]
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            output = layer(*given)
        assert not output.dim() or output.dtype == (dtype or torch.float64)
        loss = output.to(given[0].dtype).square().mean()
        if step != 1:
            scaler.scale(loss).backward()
            scaler.step(optimiser)
        elif mixed:
            scaler.scale(loss * torch.inf).backward()
            scaler.step(optimiser)
        scaler.update()
    assert not mixed or scaler.get_scale() == 128.0
