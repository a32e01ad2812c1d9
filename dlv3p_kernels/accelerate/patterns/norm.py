"""Batch norm, then perhaps a sum, then perhaps an activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from .. import runtime
from ..layers import Activation, Norm
from ..region import Region


def replace_in(region: Region) -> None:
    """Replace every batch norm that has something to be fused with."""
    for node in list(region.graph.nodes):
        role = region.role(node)
        if isinstance(role, Norm):
            _replace(region, node, role)


def _replace(region: Region, node: fx.Node, role: Norm) -> None:
    nodes, activation, residual = [node], role.activation, None
    user = region.only_user(node)
    if role.activation == "identity" and user is not None:
        if region.is_sum(user):
            residual = next(arg for arg in user.args if arg is not node)
            nodes.append(user)
            user = region.only_user(user)
        behind = region.role(user)
        if isinstance(behind, Activation) and user is not None:
            activation = behind.name
            nodes.append(user)
    if len(nodes) == 1 and role.activation == "identity":
        return
    words = ["batch norm", *(["sum"] if residual else [])]
    words += [] if activation == "identity" else [activation]
    region.replace(
        nodes[-1], nodes, _step(activation), (node.args[0], region.path(node), residual),
        "batch_norm_act", ", ".join(words),
    )  # fmt: skip


def _step(activation: str) -> Any:
    def batch_norm_act(x: Tensor, norm: nn.Module, residual: Tensor | None) -> Tensor:
        return runtime.norm_act(norm, activation, x, residual)

    return batch_norm_act
