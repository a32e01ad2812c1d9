"""The mean over a map, and the size of a map, in the ways that forwards write them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .. import layers
from ..region import Region

_MEANS = (torch.mean, "mean")


def global_mean(region: Region, node: object) -> tuple[list[fx.Node], fx.Node] | None:
    """The nodes that make the mean over a map, one pixel in size, and the map.

    Each of the nodes has a single user.
    """
    if not isinstance(node, fx.Node) or not node.args or region.only_user(node) is None:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if _is_pooling(region, node):
        return [node], source
    axes = _mean_axes(node)
    if axes == {2, 3}:
        return [node], source
    if axes in ({2}, {3}) and axes | _mean_axes(source) == {2, 3} and region.only_user(source):
        first = source.args[0]
        return ([source, node], first) if isinstance(first, fx.Node) else None
    return None


def _is_pooling(region: Region, node: fx.Node) -> bool:
    if node.op == "call_module":
        layer = region.module(node)
        exact = layers.plain_class(layer) is nn.AdaptiveAvgPool2d
        return exact and not region.is_altered(node) and layer.output_size in (1, (1, 1))
    size = node.args[1] if len(node.args) == 2 else node.kwargs.get("output_size")
    return node.target is F.adaptive_avg_pool2d and size in (1, (1, 1))


def _mean_axes(node: fx.Node) -> set[int]:
    """The axes of a (N, C, H, W) map over which a mean goes; none where it does not keep them."""
    if node.op not in ("call_function", "call_method") or node.target not in _MEANS:
        return set()
    given = {**dict(zip(("input", "dim", "keepdim"), node.args, strict=False)), **node.kwargs}
    given.setdefault("dim", given.pop("axis", None))
    given.pop("input", None)
    axes, kept = given.pop("dim"), given.pop("keepdim", False)
    axes = (axes,) if isinstance(axes, int) else axes
    if kept is not True or given or not isinstance(axes, (tuple, list)):
        return set()
    return {axis % 4 for axis in axes} if all(type(axis) is int for axis in axes) else set()


def sized_like(size: object) -> fx.Node | None:
    """The node whose height and width a size is."""
    if isinstance(size, fx.Node):
        whole, part = size.args if len(size.args) == 2 else (None, None)
        is_end = isinstance(part, slice) and part in (slice(-2, None), slice(2, None))
        is_item = size.target is operator.getitem
        return _shape_of(whole) if is_end and is_item else None
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        return None
    sources = {_axis_of(node, axis) for axis, node in enumerate(size, start=2)}
    return sources.pop() if len(sources) == 1 else None


def is_measure(node: fx.Node) -> bool:
    """Whether a node asks a map for its shape."""
    if node.op == "call_method":
        return node.target == "size"
    return node.target is getattr and node.args[1:] == ("shape",)


def _axis_of(node: Any, axis: int) -> fx.Node | None:
    """What a node is the size of, along this axis."""
    if not isinstance(node, fx.Node) or len(node.args) != 2 or node.kwargs:
        return None
    if node.args[1] not in (axis, axis - 4):
        return None
    if node.target is operator.getitem:
        return _shape_of(node.args[0])
    is_size = node.op == "call_method" and node.target == "size"
    return node.args[0] if is_size and isinstance(node.args[0], fx.Node) else None


def _shape_of(node: object) -> fx.Node | None:
    if not isinstance(node, fx.Node) or not node.args or node.kwargs:
        return None
    is_shape = node.target is getattr and node.args[1:] == ("shape",)
    is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    source = node.args[0]
    return source if (is_shape or is_size) and isinstance(source, fx.Node) else None
