"""Batch norm over several processes: statistics and sums merged among a process group.

A group is known by its name, "" being this process alone, as operators take strings but no groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fusion import BatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ALONE = ""


def name_of(group: ProcessGroup | None) -> str:
    """The name of a group, as the operators take it."""
    return ALONE if group is None or group.size() == 1 else group.group_name


def _all_reduce(values: Tensor, group: str) -> Tensor:
    collectives = torch.ops._c10d_functional
    total: Tensor = collectives.wait_tensor(collectives.all_reduce(values, "sum", group))
    return total


def merged(mean: Tensor, var: Tensor, count: int, group: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of the values of all processes.

    Source: Chan et al., "Algorithms for computing the sample variance", 1983, formula 2.1 in its
    form for many parts.
    """
    mine = mean.new_full((1,), count)
    first = _all_reduce(torch.cat([mean * mine, mine]), group)
    total = first[-1:]
    common = first[:-1] / total
    squares = _all_reduce(mine * (var + (mean - common).square()), group)
    return common, squares / total, total


def finalise(
    mean: Tensor, var: Tensor, count: Tensor, norm: BatchNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """As the operator `batch_norm_finalise`, with a count that is known on the device alone."""
    invstd = torch.rsqrt(var + norm.eps)
    if norm.running_mean is None or norm.running_var is None:
        return invstd, mean.new_empty(0), mean.new_empty(0)
    unbiased = var * (count / (count - 1).clamp(min=1))
    return (
        invstd,
        torch.lerp(norm.running_mean.to(mean.dtype), mean, norm.momentum),
        torch.lerp(norm.running_var.to(var.dtype), unbiased, norm.momentum),
    )


def means(by_bias: Tensor, by_weight: Tensor, count: int, group: str) -> tuple[Tensor, Tensor]:
    """Means over all values of what was summed over those of this process."""
    if group == ALONE:
        return by_bias / count, by_weight / count
    mine = by_bias.new_full((1,), count)
    totals = _all_reduce(torch.cat([by_bias, by_weight, mine]), group)
    both = totals[:-1] / totals[-1:]
    return both[: by_bias.numel()], both[by_bias.numel() :]
