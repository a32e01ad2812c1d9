"""What is timed: operators of a back end, and the stock PyTorch that gives the same results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlv3p_kernels import reference

from .cases import Case

Tensors = dict[str, Tensor]
Results = tuple[Tensor, ...]
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
_RELU = list(reference.ACTIVATIONS).index("relu")
_EPS = 1e-5
_MOMENTUM = 0.1
_IGNORE = -100
# Where a rounding may decide whether a gradient passes the ReLU, none is sent.
_CORNER = 1 / 16


class Subject(ABC):
    """One op or chain of ops.

    Attributes:
        name: as in the tables.
        results: names of the results.
        maps: the least number of maps that go to or come from memory, (of the input's size, of the
            output's size).
        family: which of `cases.FAMILIES` it is timed on.
        forward: whether it is a forward.
        by_channel: whether channels have nothing to do with each other, so that some of them can be
            checked without the rest.
    """

    name: str
    results: tuple[str, ...]
    maps: tuple[int, int]
    family: str
    forward: bool
    by_channel = True

    def bytes_moved(self, case: Case, dtype: torch.dtype) -> int:
        """What has to be read and written at least; the vectors are left out."""
        of_input = case.n * case.c * case.size**2
        of_output = case.n * case.c * case.output_size**2
        return dtype.itemsize * (self.maps[0] * of_input + self.maps[1] * of_output)

    @abstractmethod
    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """Normally distributed arguments, the same at every call."""

    @abstractmethod
    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """The results by the operators of a back end."""

    @abstractmethod
    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """A function that gives the results by stock PyTorch, its module code under `wrap`."""

    @abstractmethod
    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """Sizes of the sums of the absolute terms of the results, for the floor of the accuracy."""


def normal(seed: int, device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normally distributed values that depend on the seed and the kind of device only."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _gradients(output: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], Results]:
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


def _absolute(t: Tensors) -> Tensors:
    return {name: value.abs() for name, value in t.items()}


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class DepthwiseForward(Subject):
    """The convolution."""

    name, maps = "depthwise forward", (1, 1)
    results: tuple[str, ...] = ("output",)
    family, forward = "depthwise", True

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """x and weight."""
        return {
            "x": normal(0, device, dtype, case.n, case.c, case.size, case.size),
            "weight": normal(1, device, dtype, case.c, 1, 3, 3),
        }

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """One operator."""
        return (ops.depthwise_conv2d(t["x"], t["weight"], None, *case.geometry),)

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """F.conv2d."""
        function = wrap(_convolution(case))
        return lambda: (function(t["x"], t["weight"]),)

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """The same sums of absolute values."""
        return self.stock(case, _absolute(t), _same)()


def _convolution(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: F.conv2d(
        x, weight, None, case.stride, case.dilation, case.dilation, groups=case.c
    )


class DepthwiseBackward(DepthwiseForward):
    """Input and weight gradient together."""

    name, maps = "depthwise backward", (2, 1)
    results, forward = ("grad_input", "grad_weight"), False

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """The gradient of the output as well."""
        size = case.output_size
        grad = normal(2, device, dtype, case.n, case.c, size, size)
        return {**super().tensors(case, dtype, device), "grad": grad}

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """One operator."""
        grad_input, grad_weight = ops.depthwise_conv2d_backward(
            t["grad"], t["x"], t["weight"], *case.geometry, True, True
        )
        return grad_input, grad_weight

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """Autograd of F.conv2d."""
        leaves = [_leaf(t["x"]), _leaf(t["weight"])]
        return _gradients(wrap(_convolution(case))(*leaves), leaves, t["grad"])


class DepthwiseFused(DepthwiseForward):
    """Previous batch norm and ReLU, convolution, statistics for the next batch norm."""

    name = "affine + ReLU + depthwise + statistics"
    results = ("output", "mean", "var")

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """Scale and shift as well."""
        vectors = {
            name: normal(seed, device, torch.float32, case.c)
            for seed, name in ((3, "scale"), (4, "shift"))
        }
        return {**super().tensors(case, dtype, device), **vectors}

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """One operator."""
        output, mean, var = ops.depthwise_conv2d_fused(*self._arguments(case, t))
        return output, mean, var

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """The definition."""
        function = wrap(reference.depthwise_conv2d_fused)
        return lambda: function(*self._arguments(case, t))

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """The same of absolute values; of the variance, those of the squares."""
        output, mean, _ = self.stock(case, _absolute(t), _same)()
        return output, mean, output.square().mean((0, 2, 3))

    @staticmethod
    def _arguments(case: Case, t: Tensors) -> tuple[Any, ...]:
        return (
            t["x"], t["weight"], None, *case.geometry, t["scale"], t["shift"], _RELU,
            None, None, 0, True,
        )  # fmt: skip


class NormForward(Subject):
    """Batch norm with the statistics of the batch, and ReLU."""

    name, maps = "batch norm + ReLU, training, forward", (2, 1)
    results: tuple[str, ...] = ("output",)
    family, forward = "norm", True

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """x off centre, weight and bias."""
        offset = normal(1, device, torch.float32, case.c, 1, 1)
        x = normal(0, device, torch.float32, case.n, case.c, case.size, case.size) + offset
        return {
            "x": x.to(dtype),
            "weight": normal(2, device, torch.float32, case.c),
            "bias": normal(3, device, torch.float32, case.c),
        }

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """Statistics, then one pass."""
        mean, invstd = _statistics(ops, t["x"])
        output = ops.batch_norm_apply(t["x"], mean, invstd, t["weight"], t["bias"], None, _RELU)
        return (output,)

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """F.batch_norm and F.relu."""
        function = wrap(_norm_relu)
        return lambda: (function(t["x"], t["weight"], t["bias"]),)

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """What is subtracted and added."""
        var, mean = torch.var_mean(t["x"], (0, 2, 3), correction=0)
        scale = (t["weight"].abs() * torch.rsqrt(var + _EPS))[:, None, None]
        return (
            (t["x"].abs() + mean.abs()[:, None, None]) * scale + t["bias"].abs()[:, None, None],
        )


class NormBackward(NormForward):
    """Gradients of the same, by input, weight and bias."""

    name, maps = "batch norm + ReLU, training, backward", (5, 0)
    results, forward = ("grad_input", "grad_weight", "grad_bias"), False

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """The gradient of the output, and the saved statistics."""
        t = super().tensors(case, dtype, device)
        mean, invstd = _statistics(reference, t["x"])
        normalised = (t["x"].float() - mean[:, None, None]) * invstd[:, None, None]
        z = normalised * t["weight"][:, None, None] + t["bias"][:, None, None]
        grad = normal(4, device, dtype, *t["x"].shape).masked_fill(z.abs() < _CORNER, 0)
        return {**t, "grad": grad, "mean": mean, "invstd": invstd}

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """The sums, then one pass."""
        arguments = (t["grad"], t["x"], t["mean"], t["invstd"], t["weight"], t["bias"], None, _RELU)
        sum_grad, sum_normalised = ops.batch_norm_backward_reduce(*arguments)
        count = t["x"].numel() // t["x"].size(1)
        grad_input, _ = ops.batch_norm_backward_apply(
            *arguments, sum_grad, sum_normalised, count, False
        )
        return grad_input, sum_normalised, sum_grad

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """Autograd of F.batch_norm and F.relu."""
        leaves = [_leaf(t[name]) for name in ("x", "weight", "bias")]
        return _gradients(wrap(_norm_relu)(*leaves), leaves, t["grad"])

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """The sums of absolute values; the input gradient is no long sum."""
        normalised = (t["x"] - t["mean"][:, None, None]) * t["invstd"][:, None, None]
        grad = t["grad"].abs()
        sums = (grad * normalised.abs()).sum((0, 2, 3)), grad.sum((0, 2, 3))
        return exact[0].abs(), *sums


def _statistics(ops: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = ops.batch_norm_stats(x)
    count = x.numel() // x.size(1)
    return mean, ops.batch_norm_finalise(mean, var, count, None, None, _MOMENTUM, _EPS)[0]


def _norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True, _MOMENTUM, _EPS))


class ResizedLoss(Subject):
    """Cross entropy of logits resized to four times their size, and its gradient."""

    name, maps = "resized cross entropy, with gradient", (3, 0)
    results: tuple[str, ...] = ("loss", "grad_input")
    family, forward, by_channel = "upsample", False, False
    # int64 targets twice; loss and log-sum-exp, the second read again.
    _bytes_per_pixel = 2 * 8 + 3 * 4

    def bytes_moved(self, case: Case, dtype: torch.dtype) -> int:
        """The pixels as well."""
        pixels = case.n * _resized_size(case.size) ** 2
        return super().bytes_moved(case, dtype) + self._bytes_per_pixel * pixels

    def tensors(self, case: Case, dtype: torch.dtype, device: str) -> Tensors:
        """Logits and targets."""
        size = _resized_size(case.size)
        generator = torch.Generator(device).manual_seed(1)
        shape = (case.n, size, size)
        target = torch.randint(case.c, shape, generator=generator, device=device)
        x = 3 * normal(0, device, torch.float32, case.n, case.c, case.size, case.size)
        return {"x": x.to(dtype), "target": target}

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """Two operators, the gradient of a sum between them."""
        x, target = t["x"], t["target"]
        loss, logsumexp = ops.upsample_cross_entropy(x, target, None, _IGNORE, 0.0, False)
        grad = ops.upsample_cross_entropy_backward(
            loss.new_ones(()).expand_as(loss), x, target, None, logsumexp, _IGNORE, 0.0, False
        )
        return loss, grad

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """F.interpolate, F.cross_entropy and autograd."""
        function, leaf = wrap(_resized_loss), _leaf(t["x"])

        def step() -> Results:
            loss = function(leaf, t["target"])
            return loss.detach(), *torch.autograd.grad(loss.sum(), leaf)

        return step

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """Exponents are differences of rounded numbers."""
        label, size = t["target"][:, None], _resized_size(case.size)
        z, z_size = _resized(t["x"], size), _resized(t["x"].abs(), size)
        logsumexp = z.logsumexp(1, keepdim=True)
        loss = (z_size.gather(1, label) + logsumexp.abs())[:, 0]
        terms = (z - logsumexp).exp() * (1 + z_size + logsumexp.abs())
        terms.scatter_add_(1, label, torch.ones_like(terms[:, :1]))
        leaf = _leaf(t["x"])
        return loss, *torch.autograd.grad(_resized(leaf, size), leaf, terms)


class ResizedClasses(ResizedLoss):
    """The most probable class of every pixel of resized logits, and its probability."""

    name, maps = "classes of resized logits", (1, 0)
    results, forward = ("probability",), True
    _bytes_per_pixel = 8 + 4

    def ours(self, ops: Any, case: Case, t: Tensors) -> Results:
        """One operator; which of two nearly equal classes it names is left open."""
        size = _resized_size(case.size)
        _, probability = ops.upsample_argmax(t["x"], [size, size], False, True, False)
        return (probability,)

    def stock(self, case: Case, t: Tensors, wrap: Wrap) -> Callable[[], Results]:
        """F.interpolate, softmax and max."""
        function, size = wrap(_resized_classes), _resized_size(case.size)
        return lambda: function(t["x"], size)[:1]

    def magnitudes(self, case: Case, t: Tensors, exact: Results) -> Results:
        """Exponents are differences of rounded numbers."""
        size = _resized_size(case.size)
        z, z_size = _resized(t["x"], size), _resized(t["x"].abs(), size)
        return (exact[0] * (1 + z_size.amax(1) + z.logsumexp(1).abs()),)


def _resized_size(size: int) -> int:
    return 4 * (size - 1) + 1


def _resized(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


def _resized_loss(x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(_resized(x, target.size(1)), target, reduction="none")


def _resized_classes(x: Tensor, size: int) -> Results:
    probability, index = _resized(x, size).softmax(1).max(1)
    return probability, index


SUBJECTS: tuple[Subject, ...] = (
    DepthwiseForward(),
    DepthwiseBackward(),
    DepthwiseFused(),
    NormForward(),
    NormBackward(),
    ResizedLoss(),
    ResizedClasses(),
)
