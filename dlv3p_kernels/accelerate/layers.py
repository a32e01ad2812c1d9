"""What a layer does, in the terms of the kernels; layers are known by their exact class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from .. import _checks

# The attribute by which the graph of a module's forward names that module.
ITSELF = "_dlv3p_itself"

# Zeros around a convolution's input, as (left, right, top, bottom).
Sides: TypeAlias = Callable[[nn.Module, Tensor], list[int]]


@dataclass(frozen=True)
class Convolution:
    """A convolution with zeros around its input.

    Attributes:
        kind: "depthwise" of multiplier 1, "pointwise" of stride 1 and no padding, or "dense".
        sides: the padding, which some classes make depend on the input.
        children: names of submodules that its forward calls.
    """

    kind: Literal["depthwise", "pointwise", "dense"]
    sides: Sides
    children: tuple[str, ...] = ()


@dataclass(frozen=True)
class Norm:
    """A batch norm, and the activation that its class may apply too.

    Attributes:
        activation: "identity", "relu", "relu6" or "silu".
        children: names of submodules that its forward calls.
    """

    activation: str = "identity"
    children: tuple[str, ...] = ()


@dataclass(frozen=True)
class Activation:
    """An activation that the kernels have; `inplace` overwrites its input."""

    name: str
    inplace: bool = False


@dataclass(frozen=True)
class Same:
    """A layer that returns its input."""


@dataclass(frozen=True)
class Upsampling:
    """Bilinear interpolation by a fixed factor."""

    align_corners: bool


@dataclass(frozen=True)
class Padding:
    """Zeros around a map, as (left, right, top, bottom)."""

    sides: tuple[int, int, int, int]


Role: TypeAlias = Convolution | Norm | Activation | Same | Upsampling | Padding

# By module path and qualified name of the class, so that no peer has to be imported.
ROLES: dict[str, Callable[[nn.Module], Role | None]] = {}


def name_of(cls: type) -> str:
    """Module path and qualified name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before `accelerate`."""
    cls: type[nn.Module] = type(module)
    original: type[nn.Module] = cls.__dict__.get("_dlv3p_original", cls)
    return original


def role_of(module: nn.Module) -> Role | None:
    """What the layer does; None where it is nothing that the kernels know, or may be altered."""
    if altered(module):
        return None
    find = ROLES.get(name_of(plain_class(module)))
    return None if find is None else find(module)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def altered(module: nn.Module) -> str | None:
    """Why a call of the module is more than its class says; None where it is not."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks (pruning, weight norm and spectral norm are hooks too)"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    return None


def role(*names: str) -> Callable[[Callable[..., Role | None]], Callable[..., Role | None]]:
    """Register what the layers of these classes do."""

    def register(find: Callable[..., Role | None]) -> Callable[..., Role | None]:
        ROLES.update(dict.fromkeys(names, find))
        return find

    return register


def convolution(
    conv: nn.Conv2d, sides: Sides, children: tuple[str, ...] = (), padded: bool = False
) -> Convolution | None:
    """The role of a convolution; `padded` says that `sides` are not those of `conv.padding`."""
    if conv.padding_mode != "zeros":
        return None
    if conv.groups == conv.in_channels == conv.out_channels > 1:
        return Convolution("depthwise", sides, children)
    strides = set(conv.stride)
    unpadded = not padded and conv.padding not in ("same",) and set(conv.padding) <= {0, *"valid"}
    # With one tap, "same" padding is none, and the dilation does not matter.
    kept = padded or unpadded or conv.padding == "same"
    if kept and set(conv.kernel_size) == {1} and conv.groups == 1 and strides == {1}:
        return Convolution("pointwise", sides, children)
    return Convolution("dense", sides, children) if conv.groups == 1 else None


def own_sides(conv: nn.Module, x: Tensor) -> list[int]:
    """The padding of an `nn.Conv2d`."""
    assert isinstance(conv, nn.Conv2d)
    if not isinstance(conv.padding, str):
        return _checks.padding("Conv2d", conv.padding)
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    height, width = (
        rate * (size - 1) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    return [width // 2, width - width // 2, height // 2, height - height // 2]


@role("torch.nn.modules.conv.Conv2d")
def _conv2d(conv: nn.Conv2d) -> Role | None:
    return convolution(conv, own_sides)


@role("torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.batchnorm.SyncBatchNorm")
def _batch_norm(norm: nn.Module) -> Role:
    return Norm()


@role("torch.nn.modules.activation.ReLU")
def _relu(layer: nn.ReLU) -> Role:
    return Activation("relu", layer.inplace)


@role("torch.nn.modules.activation.ReLU6")
def _relu6(layer: nn.ReLU6) -> Role | None:
    is_relu6 = (layer.min_val, layer.max_val) == (0, 6)
    return Activation("relu6", layer.inplace) if is_relu6 else None


@role("torch.nn.modules.activation.SiLU")
def _silu(layer: nn.SiLU) -> Role:
    return Activation("silu", layer.inplace)


@role("torch.nn.modules.linear.Identity")
def _identity(layer: nn.Identity) -> Role:
    return Same()


@role("torch.nn.modules.upsampling.Upsample", "torch.nn.modules.upsampling.UpsamplingBilinear2d")
def _upsample(layer: nn.Upsample) -> Role | None:
    if layer.mode != "bilinear" or layer.recompute_scale_factor:
        return None
    return Upsampling(bool(layer.align_corners))


@role("torch.nn.modules.padding.ZeroPad2d", "torch.nn.modules.padding.ConstantPad2d")
def _zero_pad(layer: nn.ConstantPad2d) -> Role | None:
    left, right, top, bottom = layer.padding
    return Padding((left, right, top, bottom)) if layer.value == 0 else None


def is_stock(module: nn.Module) -> bool:
    """Whether the class comes with PyTorch."""
    return plain_class(module).__module__.partition(".")[0] == "torch"


def calls_ops(module: nn.Module) -> bool:
    """Whether the class says, by an attribute of this name, that its forward is made of the ops."""
    return bool(getattr(plain_class(module), "_dlv3p_calls_ops", False))


def hooked_globally() -> bool:
    """Whether hooks are set that see every module."""
    m = torch.nn.modules.module
    return bool(
        m._global_forward_hooks
        or m._global_forward_pre_hooks
        or m._global_backward_hooks
        or m._global_backward_pre_hooks
    )
