"""The decoder's start: a map resized, beside another one, into a separable convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import runtime
from ..layers import Convolution, Sides, Upsampling
from ..region import Region
from .pooling import is_measure, sized_like
from .separable import Stage, stage_before, stage_behind

_CONCATENATIONS = (torch.cat, torch.concat)


class Resize(NamedTuple):
    """A bilinear interpolation.

    Attributes:
        source: the map that it resizes.
        scale: factor along both axes; None where the size is another map's.
        like: that map.
        align_corners: as in `F.interpolate`.
    """

    source: fx.Node
    scale: tuple[float, float] | None
    like: fx.Node | None
    align_corners: bool


def replace_in(region: Region) -> None:
    """Replace every such start."""
    for node in list(region.graph.nodes):
        if node.op == "call_function" and node.target in _CONCATENATIONS:
            _replace(region, node)


def _replace(region: Region, joined: fx.Node) -> None:
    maps: Any = joined.args[0]
    dim = joined.args[1] if len(joined.args) == 2 else joined.kwargs.get("dim", 0)
    depthwise = region.only_user(joined)
    role = region.role(depthwise)
    if dim not in (1, -3) or not isinstance(maps, (list, tuple)) or len(maps) != 2:
        return
    if not isinstance(role, Convolution) or role.kind != "depthwise" or depthwise is None:
        return
    conv = region.module(depthwise)
    middle, pointwise = stage_behind(region, depthwise)
    pointwise_node = region.only_user(pointwise)
    second = region.role(pointwise_node)
    if not isinstance(second, Convolution) or second.kind != "pointwise" or set(conv.stride) != {1}:  # type: ignore[arg-type]
        return
    assert pointwise_node is not None
    resize, position = _resize_of(region, maps)
    if resize is None:
        return
    low = maps[1 - position]
    end, last = stage_behind(region, pointwise_node)
    nodes = [maps[position], joined, depthwise, *middle.nodes, pointwise_node, *end.nodes]
    if resize.like not in (None, low) or not region.may_join(nodes):
        return
    before, raw = _low_stage(region, low)
    paths = (
        before.norm, region.path(depthwise), middle.norm, region.path(pointwise_node), end.norm,
    )  # fmt: skip
    step = _step(resize, position == 0, role.sides, (before, middle, end))
    region.replace(
        last, [*before.nodes, *nodes], step, (resize.source, raw, *paths), "decoder_conv2d",
        "resize, concatenation, depthwise, pointwise",
    )  # fmt: skip


def _resize_of(region: Region, maps: Any) -> tuple[Resize | None, int]:
    """The resized one of two maps, read by the concatenation only, and its position."""
    for position, node in enumerate(maps):
        if isinstance(node, fx.Node) and region.only_user(node) is not None:
            resize = _resize(region, node)
            if resize is not None and isinstance(maps[1 - position], fx.Node):
                return resize, position
    return None, 0


def _resize(region: Region, node: fx.Node) -> Resize | None:
    role = region.role(node)
    if isinstance(role, Upsampling):
        layer = region.module(node)
        scale = _pair(layer.scale_factor) if layer.size is None else None
        return _known(node.args[0], scale, None, role.align_corners)
    if node.target is not F.interpolate:
        return None
    names = ("input", "size", "scale_factor", "mode", "align_corners")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    source, size, scale = given.pop("input", None), given.pop("size", None), None
    factor, align = given.pop("scale_factor", None), bool(given.pop("align_corners", None))
    if given.pop("mode", None) != "bilinear" or any(given.values()):
        return None
    like = None if size is None else sized_like(size)
    if size is None:
        scale = _pair(factor)
    return _known(source, scale, like, align)


def _known(source: object, scale: Any, like: fx.Node | None, align: bool) -> Resize | None:
    if not isinstance(source, fx.Node) or (scale is None and like is None):
        return None
    return Resize(source, scale, like, align)


def _pair(scale: object) -> tuple[float, float] | None:
    pair = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    if len(pair) != 2 or not all(type(s) in (int, float) for s in pair):
        return None
    return float(pair[0]), float(pair[1])


def _low_stage(region: Region, low: fx.Node) -> tuple[Stage, fx.Node]:
    """Norm and activation of the low-level features, which the op can apply as it reads.

    They then run later than they did, which none can tell who reads nothing but their result.
    """
    measures = [user for user in low.users if is_measure(user)]
    before, source = _stage_but_for(region, low, measures)
    alone = isinstance(source, fx.Node) and region.only_user(source) is not None
    if not before.nodes or not alone or not region.is_fresh(source) or _is_shared(region, before):
        return Stage(), low
    assert isinstance(source, fx.Node)
    for user in measures:  # a norm and an activation keep the size
        user.replace_input_with(low, source)
    return before, source


def _stage_but_for(region: Region, low: fx.Node, measures: list[fx.Node]) -> tuple[Stage, object]:
    """The stage that ends in a node, as if none had asked for the node's shape."""
    for user in measures:
        del low.users[user]
    try:
        return stage_before(region, low)
    finally:
        for user in measures:
            low.users[user] = None


def _is_shared(region: Region, stage: Stage) -> bool:
    """Whether the norm is called elsewhere too, so that the order of calls matters."""
    paths = [region.path(node) for node in region.graph.nodes if region.calls_layer(node)]
    return stage.norm is not None and paths.count(stage.norm) > 1


def _step(
    resize: Resize, encoder_first: bool, sides: Sides, stages: tuple[Stage, Stage, Stage]
) -> Callable[..., Any]:
    scale, align_corners = resize.scale, resize.align_corners
    before, between, behind = (stage.activation for stage in stages)

    def decoder_conv2d(
        x: Tensor,
        low: Tensor,
        norm: nn.Module | None,
        depthwise: nn.Conv2d,
        middle: nn.Module | None,
        pointwise: nn.Conv2d,
        end: nn.Module | None,
    ) -> Tensor:
        if scale is None or runtime.is_scaled(x, low, scale):
            return runtime.decoder(
                x, low, runtime.epilogue(norm, before), depthwise, pointwise,
                sides(depthwise, low), align_corners, encoder_first,
                runtime.epilogue(middle, between), runtime.epilogue(end, behind),
            )  # fmt: skip
        low = runtime.activate(before, low) if norm is None else runtime.norm_act(norm, before, low)
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, low] if encoder_first else [low, x], 1)
        return runtime.separable(
            x, depthwise, pointwise, sides(depthwise, x), "identity",
            runtime.epilogue(middle, between), runtime.epilogue(end, behind), None,
        )  # fmt: skip

    return decoder_conv2d
