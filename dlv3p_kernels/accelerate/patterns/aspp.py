"""Atrous spatial pyramid pooling: branches, their concatenation, its projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import layers, runtime
from ..layers import Convolution
from ..region import Region
from .pooling import global_mean, is_measure, sized_like
from .separable import Stage, stage_before, stage_behind

_CONCATENATIONS = (torch.cat, torch.concat)


class Branch(NamedTuple):
    """Layers of one branch, by their paths.

    Attributes:
        nodes: that make it up.
        convolution: of a dense branch, or the pointwise half of a separable one.
        end: behind it.
        depthwise: the depthwise half.
        middle: behind that.
        pooled: whether the branch is of the mean over the map.
    """

    nodes: list[fx.Node]
    convolution: str
    end: Stage
    depthwise: str | None = None
    middle: Stage | None = None
    pooled: bool = False


def replace_in(region: Region) -> None:
    """Replace every pyramid."""
    for node in list(region.graph.nodes):
        if node.op == "call_function" and node.target in _CONCATENATIONS:
            _replace(region, node)


def _replace(region: Region, joined: fx.Node) -> None:
    maps = joined.args[0]
    dim = joined.args[1] if len(joined.args) == 2 else joined.kwargs.get("dim", 0)
    projection = region.only_user(joined)
    if dim not in (1, -3) or not isinstance(maps, (list, tuple)) or projection is None:
        return
    role = region.role(projection)
    if not isinstance(role, Convolution) or role.kind != "pointwise":
        return
    undo = _measure_sources(region, maps)
    if not _replace_branches(region, maps, joined, projection):
        undo()


def _replace_branches(
    region: Region, maps: Sequence[Any], joined: fx.Node, projection: fx.Node
) -> bool:
    found = [_branch(region, node) for node in maps]
    branches = [branch for branch, _ in (pair for pair in found if pair)]
    sources = {source for _, source in (pair for pair in found if pair)}
    if len(branches) != len(maps) or len(sources) != 1:
        return False
    if not _fits_op(branches) or not _sizes_are_of(maps, branches, *sources):
        return False
    end, last = stage_behind(region, projection)
    nodes = [n for branch in branches for n in branch.nodes]
    nodes += [joined, projection, *end.nodes]
    if not region.may_join(nodes):
        return False
    parts: list[str | None] = [region.path(projection), end.norm]
    for branch in branches:
        middle = branch.middle.norm if branch.middle else None
        parts += [branch.convolution, branch.end.norm, branch.depthwise, middle]
    words = f"ASPP of {len(branches)} branches"
    region.replace(last, nodes, _step(branches, end), (*sources, *parts), "aspp", words)
    return True


def _fits_op(branches: list[Branch]) -> bool:
    """The op has branches of one activation, of which the first or the last may be pooled."""
    pooled = [i for i, branch in enumerate(branches) if branch.pooled]
    plain = {branch.end.activation for branch in branches if not branch.pooled}
    normed = {branch.end.norm is None for branch in branches if not branch.pooled}
    at_an_end = not pooled or (len(pooled) == 1 and pooled[0] in (0, len(branches) - 1))
    # A lone branch beside the pooled one has nothing to gain.
    return len(plain) == len(normed) == 1 and at_an_end and len(branches) - len(pooled) > 1


def _branch(region: Region, node: object) -> tuple[Branch, fx.Node] | None:
    """The branch that ends in a node, and the map that it starts from."""
    stretched = _interpolated(node)
    if stretched is not None:
        assert isinstance(node, fx.Node)
        return _pooled_branch(region, node, stretched)
    end, convolution = stage_before(region, node)
    role = region.role(convolution)
    if not isinstance(role, Convolution) or not isinstance(convolution, fx.Node):
        return None
    if region.only_user(convolution) is None:
        return None
    path = region.path(convolution)
    nodes = [convolution, *end.nodes]
    if role.kind == "pointwise":
        middle, depthwise = stage_before(region, convolution.args[0])
        first = region.role(depthwise)
        if isinstance(first, Convolution) and first.kind == "depthwise":
            assert isinstance(depthwise, fx.Node)
            if region.only_user(depthwise) is None or not _keeps_size(region, depthwise):
                return None
            nodes += [depthwise, *middle.nodes]
            branch = Branch(nodes, path, end, region.path(depthwise), middle)
            return _with_source(branch, depthwise.args[0])
        if middle.nodes:
            return None
    elif not _keeps_size(region, convolution):
        return None
    return _with_source(Branch(nodes, path, end), convolution.args[0])


def _with_source(branch: Branch, source: object) -> tuple[Branch, fx.Node] | None:
    return (branch, source) if isinstance(source, fx.Node) else None


def _pooled_branch(
    region: Region, node: fx.Node, stretched: fx.Node
) -> tuple[Branch, fx.Node] | None:
    end, convolution = stage_before(region, stretched)
    role = region.role(convolution)
    if not isinstance(convolution, fx.Node) or not isinstance(role, Convolution):
        return None
    pooled = global_mean(region, convolution.args[0])
    if role.kind != "pointwise" or pooled is None:
        return None
    nodes, source = pooled
    if region.only_user(node) is None or region.only_user(convolution) is None:
        return None
    nodes = [*nodes, convolution, *end.nodes, node]
    return Branch(nodes, region.path(convolution), end, pooled=True), source


def _interpolated(node: object) -> fx.Node | None:
    """What a bilinear interpolation to a given size is applied to."""
    if not isinstance(node, fx.Node) or node.target is not F.interpolate:
        return None
    given = {**dict(zip(("input", "size", "scale_factor", "mode"), node.args, strict=False)),
             **node.kwargs}  # fmt: skip
    given.pop("align_corners", None)  # one pixel is stretched the same way
    source = given.pop("input", None)
    if given.pop("mode", None) != "bilinear" or given.pop("size", None) is None or any(
        value not in (None, False) for value in given.values()
    ):  # fmt: skip
        return None
    return source if isinstance(source, fx.Node) else None


def _measure_sources(region: Region, maps: Sequence[Any]) -> Callable[[], None]:
    """Let sizes asked of a branch's result be asked of the map that is pooled; returns the undoing.

    They are the same where all branches keep the size, which is for the caller to see to.
    """
    moved: list[tuple[fx.Node, fx.Node, fx.Node]] = []
    for node in maps:
        stretched = _interpolated(node)
        branch = None if stretched is None else _pooled_branch(region, node, stretched)
        asked = None if branch is None else sized_like(_size(node))
        if branch is None or asked is None or asked not in maps:
            continue
        for user in list(asked.users):
            if is_measure(user):
                user.replace_input_with(asked, branch[1])
                moved.append((user, branch[1], asked))

    def undo() -> None:
        for user, source, asked in moved:
            user.replace_input_with(source, asked)

    return undo


def _sizes_are_of(maps: Any, branches: list[Branch], source: fx.Node) -> bool:
    """Whether pooled branches are stretched to the size of the map that they pool."""
    pairs = zip(maps, branches, strict=True)
    return all(sized_like(_size(node)) is source for node, branch in pairs if branch.pooled)


def _size(interpolation: fx.Node) -> object:
    given = interpolation.args
    return given[1] if len(given) > 1 else interpolation.kwargs["size"]


def _keeps_size(region: Region, node: fx.Node) -> bool:
    """Whether an odd, square-rated convolution of stride 1 is padded to keep the size."""
    conv, role = region.module(node), region.role(node)
    assert isinstance(conv, nn.Conv2d) and isinstance(role, Convolution)
    padded_alike = role.sides is layers.own_sides
    if set(conv.stride) != {1} or len(set(conv.dilation)) != 1 or not padded_alike:
        return False
    if not all(size % 2 for size in conv.kernel_size):
        return False
    whole = tuple(
        rate * (size - 1) // 2 for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    return conv.padding == "same" or tuple(conv.padding) == whole


def _step(branches: list[Branch], end: Stage) -> Callable[..., Any]:
    plans = [
        (b.end.activation, b.middle.activation if b.middle else "identity", b.pooled)
        for b in branches
    ]
    pooling_first = branches[0].pooled

    def aspp(x: Tensor, projection: nn.Conv2d, norm: nn.Module | None, *parts: Any) -> Tensor:
        made, pooling = [], None
        for i, (behind, between, pooled) in enumerate(plans):
            branch = runtime.branch(*parts[4 * i : 4 * i + 4], behind, between)  # type: ignore[call-arg]
            if pooled:
                pooling = branch
            else:
                made.append(branch)
        return runtime.aspp(
            x, made, projection, pooling, pooling_first, runtime.epilogue(norm, end.activation)
        )

    return aspp
