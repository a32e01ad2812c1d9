"""The definition of every op in stock PyTorch: what the kernels must equal, and the fall-back.

Arguments are normalised as in `torch.ops.dlv3p`: `stride` and `dilation` are (height, width),
`padding` is (left, right, top, bottom), and an activation is its number in `ACTIVATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# By name, in the order of csrc/common/activation.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
}
_ACTIVATIONS = tuple(ACTIVATIONS.values())


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Depthwise convolution: (N, C, H, W) and (C * multiplier, 1, kh, kw)."""
    x, symmetric = _split_padding(x, padding)
    return F.conv2d(x, weight, bias, stride, symmetric, dilation, groups=x.size(1))


def depthwise_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise_conv2d` by input and weight; an empty tensor where not needed."""
    padded, symmetric = _split_padding(x, padding)
    grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, padded, weight, None, stride, symmetric, dilation, False, [0, 0],
        x.size(1), [need_input, need_weight, False],
    )  # fmt: skip
    if grad_padded is not None and padded is not x:
        left, _, top, _ = padding
        grad_padded = grad_padded[..., top : top + x.size(2), left : left + x.size(3)]
    return (
        grad_padded if grad_padded is not None else x.new_empty(0),
        grad_weight if grad_weight is not None else x.new_empty(0),
    )


def depthwise_conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    out_activation: int,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Affine and activation, depthwise convolution, affine and activation or channel statistics."""
    z = channel_affine(x, in_scale, in_shift, in_activation)
    raw = depthwise_conv2d(z, weight, bias, stride, padding, dilation)
    output = channel_affine(raw, out_scale, out_shift, out_activation)
    vector_dtype = torch.promote_types(x.dtype, torch.float32)
    if not statistics:
        return output, x.new_empty(0, dtype=vector_dtype), x.new_empty(0, dtype=vector_dtype)
    var, mean = torch.var_mean(output.to(vector_dtype), (0, 2, 3), correction=0)
    return output, mean, var


def depthwise_conv2d_fused_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    in_activation: int,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the convolution of `channel_affine(x, ...)` by x, weight, scale and shift."""
    wide = _wide(x)
    argument = wide
    if in_scale is not None and in_shift is not None:
        argument = wide * _per_channel(in_scale) + _per_channel(in_shift)
    z = _ACTIVATIONS[in_activation](argument).to(x.dtype)
    grad_z, grad_weight = depthwise_conv2d_backward(
        grad, z, weight, stride, padding, dilation, need_input, need_weight
    )
    empty = wide.new_empty(0)
    if not need_input:
        return x.new_empty(0), grad_weight, empty, empty
    grad_argument = _through_activation(_wide(grad_z), argument, in_activation)
    if in_scale is None:
        return grad_argument.to(x.dtype), grad_weight, empty, empty
    grad_input = (grad_argument * _per_channel(in_scale)).to(x.dtype)
    sums = ((grad_argument * wide).sum((0, 2, 3)), grad_argument.sum((0, 2, 3)))
    return grad_input, grad_weight, *sums


def channel_affine(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: int
) -> Tensor:
    """`activation(x * scale + shift)` per channel, in the dtype of `x`."""
    if scale is None or shift is None:
        return _ACTIVATIONS[activation](x)
    return _ACTIVATIONS[activation](x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel."""
    var, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0)
    return mean, var


def batch_norm_finalise(
    mean: Tensor,
    var: Tensor,
    count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / sqrt(var + eps), and the running statistics after `count` more values per channel."""
    invstd = torch.rsqrt(var + eps)
    if running_mean is None or running_var is None:
        return invstd, mean.new_empty(0), mean.new_empty(0)
    unbiased = var * (count / max(count - 1, 1))
    return (
        invstd,
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def batch_norm_apply(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    """act((x - mean) * invstd * weight + bias + residual)."""
    z = _batch_norm(_normalised(x, mean, invstd), weight, bias, residual)
    return _like(x, _ACTIVATIONS[activation](z))


def batch_norm_backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """Sums of g and of g times the normalised input; g is the gradient before the activation."""
    normalised = _normalised(x, mean, invstd)
    g = _through_activation(grad, _batch_norm(normalised, weight, bias, residual), activation)
    return g.sum((0, 2, 3)), (g * normalised).sum((0, 2, 3))


def batch_norm_backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    sum_grad: Tensor | None,
    sum_grad_normalised: Tensor | None,
    count: int,
    need_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by input and residual; through the statistics as well where the sums are given."""
    normalised = _normalised(x, mean, invstd)
    g = _through_activation(grad, _batch_norm(normalised, weight, bias, residual), activation)
    inner = g
    if sum_grad is not None and sum_grad_normalised is not None:
        inner = g - _per_channel(sum_grad / count)
        inner = inner - normalised * _per_channel(sum_grad_normalised / count)
    scale = invstd if weight is None else invstd * weight
    grad_residual = _like(x, g) if need_residual else x.new_empty(0)
    return _like(x, inner * _per_channel(scale)), grad_residual


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    activation: int,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch norm, residual and activation; updates the running statistics in place."""
    z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _ACTIVATIONS[activation](z if residual is None else z + residual)


def _like(x: Tensor, result: Tensor) -> Tensor:
    """`result` in the dtype and memory format of `x`; contiguous where that has neither format."""
    nhwc = x.stride(1) == 1 and not x.is_contiguous()
    return result.to(x.dtype).contiguous(
        memory_format=torch.channels_last if nhwc else torch.contiguous_format
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _normalised(x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    return (_wide(x) - _per_channel(mean)) * _per_channel(invstd)


def _batch_norm(
    normalised: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    z = normalised if weight is None else normalised * _per_channel(weight)
    z = z if bias is None else z + _per_channel(bias)
    return z if residual is None else z + residual


def _through_activation(grad: Tensor, z: Tensor, activation: int) -> Tensor:
    """The gradient at `z` from the one at its activation; 0 at the corners, as autograd has it."""
    grad = grad.to(z.dtype)
    if activation == 0:
        return grad
    if activation == 1:
        return torch.ops.aten.threshold_backward(grad, z, 0)
    if activation == 2:
        return torch.ops.aten.hardtanh_backward(grad, z, 0, 6)
    return torch.ops.aten.silu_backward(grad, z)


def _split_padding(x: Tensor, padding: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Convolutions take symmetric padding only; anything else is padded beforehand."""
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return x, [top, left]
    return F.pad(x, list(padding)), [0, 0]
