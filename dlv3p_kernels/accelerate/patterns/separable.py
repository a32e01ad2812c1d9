"""Activation, depthwise convolution, norm, activation, pointwise convolution, norm, activation.

A sum may come last; all but the convolutions are optional.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from .. import runtime
from ..layers import Activation, Convolution, Norm, Padding, Sides
from ..region import Region


@dataclass
class Stage:
    """Norm and activation behind a convolution.

    Attributes:
        nodes: that do it.
        norm: path of the batch norm.
        activation: "identity", "relu", "relu6" or "silu".
    """

    nodes: list[fx.Node] = field(default_factory=list)
    norm: str | None = None
    activation: str = "identity"


def replace_in(region: Region) -> None:
    """Replace every separable convolution."""
    for node in list(region.graph.nodes):
        role = region.role(node)
        if isinstance(role, Convolution) and role.kind == "pointwise":
            _replace(region, node)


def stage_before(region: Region, node: object) -> tuple[Stage, object]:
    """The stage whose result is `node`, read by one node only, and what goes into it."""
    stage = Stage()
    for kind in (Activation, Norm):
        role = region.role(node)
        if not isinstance(role, kind) or not isinstance(node, fx.Node):
            continue
        if region.only_user(node) is None:
            break
        if isinstance(role, Norm):
            if role.activation != "identity":
                if stage.activation != "identity":
                    break
                stage.activation = role.activation
            stage.norm = region.path(node)
        else:
            stage.activation = role.name
        stage.nodes.insert(0, node)
        node = node.args[0]
    return stage, node


def stage_behind(region: Region, node: fx.Node) -> tuple[Stage, fx.Node]:
    """The stage that reads the result of `node`, and the node that ends it."""
    stage = Stage()
    for kind in (Norm, Activation):
        user = region.only_user(node)
        role = region.role(user)
        if user is None or not isinstance(role, kind) or stage.activation != "identity":
            continue
        if isinstance(role, Norm):
            stage.norm, stage.activation = region.path(user), role.activation
        else:
            stage.activation = role.name
        stage.nodes.append(user)
        node = user
    return stage, node


def _replace(region: Region, pointwise: fx.Node) -> None:
    middle, depthwise = stage_before(region, pointwise.args[0])
    role = region.role(depthwise)
    if not isinstance(role, Convolution) or role.kind != "depthwise":
        return
    assert isinstance(depthwise, fx.Node)
    if region.only_user(depthwise) is None:
        return
    nodes = [depthwise, *middle.nodes, pointwise]
    start, extra = _padding(region, depthwise, nodes)
    before, start = _activation(region, start, nodes)
    end, last = stage_behind(region, pointwise)
    nodes += end.nodes
    residual, last = _sum(region, last, nodes)
    if not region.may_join(nodes):
        return
    step = _step(role.sides, extra, before, middle.activation, end.activation)
    paths = (region.path(depthwise), middle.norm, region.path(pointwise), end.norm)
    words = _words(before, middle, end, residual is not None)
    region.replace(last, nodes, step, (start, *paths, residual), "separable_conv2d", words)


def _padding(
    region: Region, depthwise: fx.Node, nodes: list[fx.Node]
) -> tuple[object, tuple[int, ...]]:
    """What is padded before the depthwise convolution, and by how much."""
    start = depthwise.args[0]
    role = region.role(start)
    padded = isinstance(role, Padding) and min(role.sides) >= 0
    if padded and isinstance(start, fx.Node) and region.only_user(start):
        nodes.append(start)
        return start.args[0], role.sides  # type: ignore[return-value, union-attr]
    return start, (0, 0, 0, 0)


def _activation(region: Region, start: object, nodes: list[fx.Node]) -> tuple[str, object]:
    """The activation before it all, and what goes into that."""
    role = region.role(start)
    alone = isinstance(start, fx.Node) and region.only_user(start)
    # Behind a batch norm it costs nothing.
    if isinstance(role, Activation) and alone and not isinstance(region.role(start.args[0]), Norm):  # type: ignore[attr-defined]
        nodes.append(start)  # type: ignore[arg-type]
        return role.name, start.args[0]  # type: ignore[attr-defined]
    return "identity", start


def _sum(region: Region, last: fx.Node, nodes: list[fx.Node]) -> tuple[object, fx.Node]:
    """What is added last, and the node that ends it all."""
    user = region.only_user(last)
    if user is None or not region.is_sum(user) or not region.may_join([*nodes, user]):
        return None, last
    if isinstance(region.role(region.only_user(user)), Activation):
        return None, last  # the op activates before it adds; batch_norm_act adds first
    nodes.append(user)
    return next(arg for arg in user.args if arg is not last), user


def _words(before: str, middle: Stage, end: Stage, residual: bool) -> str:
    words = [] if before == "identity" else [before]
    for name, stage in (("depthwise", middle), ("pointwise", end)):
        words.append(name)
        words += ["batch norm"] if stage.norm else []
        words += [] if stage.activation == "identity" else [stage.activation]
    return ", ".join([*words, *(["sum"] if residual else [])])


def _step(sides: Sides, extra: tuple[int, ...], before: str, between: str, behind: str) -> Any:
    def separable_conv2d(
        x: Tensor,
        depthwise: nn.Conv2d,
        middle: nn.Module | None,
        pointwise: nn.Conv2d,
        end: nn.Module | None,
        residual: Tensor | None,
    ) -> Tensor:
        if x.dim() == 3 and middle is None and end is None and residual is None:
            return separable_conv2d(x[None], depthwise, None, pointwise, None, None)[0]
        padding = runtime.padded_sides(sides, depthwise, x, extra)
        return runtime.separable(
            x, depthwise, pointwise, padding, before,
            runtime.epilogue(middle, between), runtime.epilogue(end, behind), residual,
        )  # fmt: skip

    return separable_conv2d
