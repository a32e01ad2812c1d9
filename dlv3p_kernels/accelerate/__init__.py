"""Existing models on the fused kernels: `accelerate`, `restore`."""

from __future__ import annotations

from torch import nn

from . import peers as _peers  # noqa: F401 registers what their layers do
from .finding import Finder
from .swap import swap, swap_back

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module) -> nn.Module:
    """Run what the ops of this package can serve in an existing model on them; in place.

    The forwards of the modules in it are rewritten: separable convolutions with the norms and
    activations around their halves run as `dk.separable_conv2d`, batch norms with what follows them
    as `dk.batch_norm_act`, depthwise convolutions as `dk.depthwise_conv2d`. Parameters, buffers,
    submodules, `state_dict` and hooks stay what they are, so optimisers made before go on working.

    A module that is changed afterwards in a way that the rewritten forward would not notice (a hook
    inside, a layer exchanged, pruned or parametrised) runs its own forward again from then on;
    `accelerate` may be called anew.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    _check("accelerate", model)
    restore(model)
    finder = Finder()
    finder.search(model)
    for module in list(model.modules()):
        if plan := finder.found[id(module)].plan:
            swap(module, plan)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: all modules have their own forwards again.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    _check("restore", model)
    for module in model.modules():
        swap_back(module)
    return model


def _check(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model must be an nn.Module, got {type(model).__name__}")
