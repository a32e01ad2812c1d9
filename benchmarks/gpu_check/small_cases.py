"""Runs every operator of a back end on a few small cases: what compute-sanitizer looks at.

Usage: python -m gpu_check.small_cases BACKEND [DEVICE]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Conv2d

from dlv3p_kernels import dispatch, nn, reference

from .cases import LAYOUTS

DONE = "calls done"
# (n, channels, height, width), kernel, stride, padding, dilation: packs of 16 bytes and single
# elements, ragged maps, padding beyond the map.
_SHAPES: tuple[tuple[tuple[int, int, int, int], int, int, int, int], ...] = (
    ((2, 64, 9, 11), 3, 1, 2, 2),
    ((1, 17, 8, 7), 3, 2, 1, 1),
    ((2, 24, 7, 6), 5, 1, 2, 1),
    ((1, 8, 5, 5), 3, 1, 12, 12),
)
_DTYPES = (torch.float32, torch.bfloat16)
_ACTIVATIONS = range(len(reference.ACTIVATIONS))


def main() -> None:
    """Run all calls and say how many they were."""
    backend, device = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda"
    count = 0
    for dtype, layout in itertools.product(_DTYPES, LAYOUTS.values()):
        for shape in _SHAPES:
            ops = dispatch.operators(backend)
            count += sum(1 for _ in calls(ops, device, dtype, layout, *shape))
        with dispatch.backend(cast("dispatch.BackendName", backend)):
            count += sum(1 for _ in layers(device, dtype, layout))
    if device == "cuda":
        torch.cuda.synchronize()
    print(count, DONE)


def calls(
    ops: Any,
    device: str,
    dtype: torch.dtype,
    layout: torch.memory_format,
    shape: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Iterator[object]:
    """The results of every operator of the package on one shape."""
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(shape[1], 1, kernel, kernel, device=device).to(dtype)
    scale, shift = torch.randn(2, shape[1], device=device)
    geometry = ([stride] * 2, [padding] * 4, [dilation] * 2)
    output = ops.depthwise_conv2d(x, weight, shift.to(dtype), *geometry)
    yield output
    grad = torch.randn_like(output)
    yield ops.depthwise_conv2d_backward(grad, x, weight, *geometry, True, True)
    yield from _fused(ops, x, weight, grad, scale, shift, geometry)
    yield from _separable(ops, x, weight, scale, shift, geometry)
    yield from _norm(ops, x, scale, shift)
    yield from _resized(ops, x)


def layers(device: str, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[object]:
    """Results and gradients of whole layers, in evaluation and in training."""
    for made in (
        nn.ASPP(24, 17, (2, 12)),
        nn.ASPP(17, 16, (2,), separable=False),
        nn.SeparableConv2d(24, 40, 3, 2, 1, pre_activation="relu", depthwise_activation="identity"),
        nn.SeparableConv2d(17, 24, 3, 1, 6, 6, depthwise_norm=False),
    ):
        layer = made.to(device, dtype)
        channels = next(m for m in layer.modules() if isinstance(m, Conv2d)).in_channels
        x = torch.randn(2, channels, 9, 11, device=device).to(dtype)
        x = x.contiguous(memory_format=layout).requires_grad_()
        for training in (False, True):
            output = layer.train(training)(x)
            yield output
            yield torch.autograd.grad(output.float().square().sum(), [x, *layer.parameters()])


def _fused(
    ops: Any, x: Tensor, weight: Tensor, grad: Tensor, scale: Tensor, shift: Tensor, geometry: Any
) -> Iterator[object]:
    for activation in _ACTIVATIONS:
        before, behind = (scale, shift, activation), (shift, scale, activation)
        yield ops.depthwise_conv2d_fused(x, weight, None, *geometry, *before, *behind, False)
        yield ops.depthwise_conv2d_fused(x, weight, None, *geometry, *before, None, None, 0, True)
        yield ops.depthwise_conv2d_fused_backward(grad, x, weight, *geometry, *before, True, True)


def _separable(
    ops: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, geometry: Any
) -> Iterator[object]:
    mixing = torch.randn(24, x.size(1), 1, 1, device=x.device).to(x.dtype)
    behind = torch.randn(2, 24, device=x.device)
    for activation in _ACTIVATIONS:
        depthwise = (x, weight, shift.to(x.dtype), *geometry, scale, shift, activation)
        yield ops.depthwise_conv2d_statistics(*depthwise)
        between = (shift, scale, activation, mixing, behind[0].to(x.dtype))
        raw, _, _ = ops.separable_conv2d_fused(*depthwise, *between, None, None, 0, None, True)
        yield raw
        finish = (*behind, activation, raw, False)
        yield ops.separable_conv2d_fused(*depthwise, *between, *finish)


def _norm(ops: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[object]:
    count = x.numel() // x.size(1)
    mean, var = ops.batch_norm_stats(x)
    yield mean
    finalised = ops.batch_norm_finalise(mean, var, count, mean, var, 0.1, 1e-5)
    yield finalised
    for activation, residual in itertools.product(_ACTIVATIONS, (None, x)):
        arguments = (x, mean, finalised[0], weight, bias, residual, activation)
        yield ops.batch_norm_apply(*arguments)
        sums = ops.batch_norm_backward_reduce(x, *arguments)
        yield sums
        yield ops.batch_norm_backward_apply(x, *arguments, *sums, count, residual is not None)


def _resized(ops: Any, logits: Tensor) -> Iterator[object]:
    """The channels are classes; larger, smaller and of the same size."""
    n, classes, height, width = logits.shape
    weight = torch.rand(classes, device=logits.device)
    for size in ([4 * height + 1, 4 * width], [height, width], [3, 2]):
        target = torch.randint(-1, classes, (n, *size), device=logits.device)
        yield ops.class_weight_sum(target, weight, -1, logits)
        for weights, smoothing, align_corners in ((None, 0.0, True), (weight, 0.1, False)):
            options = (-1, smoothing, align_corners)
            loss, logsumexp = ops.upsample_cross_entropy(logits, target, weights, *options)
            yield loss
            yield ops.upsample_cross_entropy_backward(
                loss, logits, target, weights, logsumexp, *options
            )
        for probability in (False, True):
            yield ops.upsample_argmax(logits, size, False, probability, True)


if __name__ == "__main__":
    main()
