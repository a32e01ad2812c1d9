"""Layers forward and backward at a higher precision, with how far floating point may be off.

A chain of layers is run once, in NumPy, and each result carries two first-order bounds of what
rounding does to it. They follow from the definition alone: every sum adds the absolute values of
its terms, and every step hands on what was off before.

Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., sections 3.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Grads = dict[str, "Sized"]
AXES = (0, 2, 3)


class Sized(NamedTuple):
    """A value, and how far it may be off.

    Attributes:
        value: as exact as the array's type.
        error: in rounding units of the type of sums.
        stored: in rounding units of the type of maps, each of which is rounded when it is stored.
    """

    value: Array
    error: Array
    stored: Array

    @classmethod
    def given(cls, value: Array) -> Sized:
        """What is exact."""
        return cls(value, np.zeros_like(value), np.zeros_like(value))

    def kept(self) -> Sized:
        """As a map, rounded to its type."""
        return self._replace(stored=self.stored + abs(self.value))

    def times(self, factor: Sized) -> Sized:
        """Product, rounded."""
        value = self.value * factor.value
        return Sized(
            value,
            self.error * abs(factor.value) + abs(self.value) * factor.error + abs(value),
            self.stored * abs(factor.value) + abs(self.value) * factor.stored,
        )

    def plus(self, other: Sized) -> Sized:
        """Sum, rounded; its terms may cancel."""
        terms = abs(self.value) + abs(other.value)
        error = self.error + other.error + terms
        return Sized(self.value + other.value, error, self.stored + other.stored)

    def minus(self, other: Sized) -> Sized:
        """Difference, the same."""
        return self.plus(other._replace(value=-other.value))

    def total(self) -> Sized:
        """Sum of all values of a channel."""
        terms = abs(self.value).sum(AXES)
        return Sized(self.value.sum(AXES), self.error.sum(AXES) + terms, self.stored.sum(AXES))

    def mean(self) -> Sized:
        """Mean of all values of a channel."""
        count = self.value.size // self.value.shape[1]
        return Sized(*(part / count for part in self.total()))

    def per_channel(self) -> Sized:
        """A vector as the factor of a map."""
        return Sized(*(part[:, None, None] for part in self))


class Depthwise:
    """Depthwise convolution; padding is (left, right, top, bottom)."""

    def __init__(
        self,
        weight: Array,
        bias: Array | None,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        output_size: tuple[int, int],
    ) -> None:
        self.weight, self.bias = weight, bias
        self._padding = padding
        self._steps = (stride, dilation, output_size)

    def forward(self, x: Sized) -> Sized:
        """The result as it is stored."""
        self._x = x
        return _with_bias(_linear(self._convolve, self.weight, x), self.bias).kept()

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradients by input, weight and bias."""
        shape = self._x.value.shape
        grads = {"weight": _bilinear(self._correlate, grad, self._x)}
        if self.bias is not None:
            grads["bias"] = grad.total()
        below = _linear(lambda w, g: self._transposed(w, g, shape), self.weight, grad)
        return below.kept(), grads

    def _taps(self) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
        stride, dilation, output_size = self._steps
        for i, j in np.ndindex(*self.weight.shape[2:]):
            rows, columns = (
                slice(at * d, at * d + (n - 1) * s + 1, s)
                for at, d, n, s in zip((i, j), dilation, output_size, stride, strict=True)
            )
            yield i, j, (rows, columns)

    def _padded(self, x: Array) -> Array:
        left, right, top, bottom = self._padding
        return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))

    def _convolve(self, weight: Array, x: Array) -> Array:
        padded = self._padded(x)
        return sum(padded[:, :, r, c] * weight[:, :, i, j, None] for i, j, (r, c) in self._taps())

    def _transposed(self, weight: Array, grad: Array, shape: tuple[int, ...]) -> Array:
        padded = self._padded(np.zeros(shape, grad.dtype))
        for i, j, (rows, columns) in self._taps():
            padded[:, :, rows, columns] += grad * weight[:, :, i, j, None]
        left, _, top, _ = self._padding
        return padded[:, :, top : top + shape[2], left : left + shape[3]]

    def _correlate(self, grad: Array, x: Array) -> Array:
        padded = self._padded(x)
        found = np.zeros_like(self.weight)
        for i, j, (rows, columns) in self._taps():
            found[:, 0, i, j] = (padded[:, :, rows, columns] * grad).sum(AXES)
        return found


class Pointwise:
    """1x1 convolution."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: Sized) -> Sized:
        """The result as it is stored."""
        self._x = x
        return _with_bias(_linear(_mix, self.weight[:, :, 0, 0], x), self.bias).kept()

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradients by input, weight and bias."""
        grads = {"weight": _bilinear(_outer, grad, self._x)}
        if self.bias is not None:
            grads["bias"] = grad.total()
        return _linear(_mix, self.weight[:, :, 0, 0].T, grad).kept(), grads


class Dense(Depthwise):
    """Convolution from every channel to every other; stride, padding and dilation as above."""

    def _convolve(self, weight: Array, x: Array) -> Array:
        padded = self._padded(x)
        return sum(_mix(weight[:, :, i, j], padded[:, :, r, c]) for i, j, (r, c) in self._taps())

    def _transposed(self, weight: Array, grad: Array, shape: tuple[int, ...]) -> Array:
        padded = self._padded(np.zeros(shape, grad.dtype))
        for i, j, (rows, columns) in self._taps():
            padded[:, :, rows, columns] += _mix(weight[:, :, i, j].T, grad)
        left, _, top, _ = self._padding
        return padded[:, :, top : top + shape[2], left : left + shape[3]]

    def _correlate(self, grad: Array, x: Array) -> Array:
        padded = self._padded(x)
        found = np.zeros_like(self.weight)
        for i, j, (rows, columns) in self._taps():
            found[:, :, i, j] = _outer(grad, padded[:, :, rows, columns])[:, :, 0, 0]
        return found


def _mix(weight: Array, x: Array) -> Array:
    n, _, h, w = x.shape
    return (weight @ x.reshape(n, x.shape[1], h * w)).reshape(n, -1, h, w)


def _outer(grad: Array, x: Array) -> Array:
    rows, others = (np.moveaxis(t, 1, 0).reshape(t.shape[1], -1) for t in (grad, x))
    return (rows @ others.T)[:, :, None, None]


def _linear(function, weight: Array, x: Sized) -> Sized:  # type: ignore[no-untyped-def]
    """A linear function of `x` with exact weights."""
    size = abs(weight)
    return Sized(
        function(weight, x.value),
        function(size, abs(x.value) + x.error),
        function(size, x.stored),
    )


def _bilinear(function, a: Sized, b: Sized) -> Sized:  # type: ignore[no-untyped-def]
    """Sums of products of `a` and `b`."""
    size_a, size_b = abs(a.value), abs(b.value)
    return Sized(
        function(a.value, b.value),
        function(size_a, size_b + b.error) + function(a.error, size_b),
        function(size_a, b.stored) + function(a.stored, size_b),
    )


def _with_bias(x: Sized, bias: Array | None) -> Sized:
    if bias is None:
        return x
    size = abs(bias)[:, None, None]
    return Sized(x.value + bias[:, None, None], x.error + size, x.stored)


class Norm:
    """`activation((x - mean) / sqrt(var + eps) * weight + bias)`, by the batch or `statistics`."""

    def __init__(
        self,
        statistics: tuple[Array, Array] | None,
        eps: float,
        weight: Array | None,
        bias: Array | None,
        activation: str,
    ) -> None:
        self.statistics, self.eps = statistics, eps
        self.weight, self.bias = weight, bias
        self.activation = activation

    def forward(self, x: Sized) -> Sized:
        """The result as it is stored; the point of the activation is left in `z`."""
        self.mean, self.var = self._moments(x)
        invstd = _inverse_root(self.var, self.eps).per_channel()
        weight = np.ones_like(invstd.value) if self.weight is None else self._map(self.weight)
        self._scale = invstd.times(Sized.given(weight))
        self._normalised = x.minus(self.mean.per_channel()).times(invstd)
        self.z = self._normalised.times(Sized.given(weight))
        if self.bias is not None:
            self.z = self.z.plus(Sized.given(self._map(self.bias)))
        return activated(self.activation, self.z).kept()

    def _moments(self, x: Sized) -> tuple[Sized, Sized]:
        if self.statistics is not None:
            mean, var = self.statistics
            return Sized.given(mean), Sized.given(var)
        mean = x.mean()
        deviation = x.minus(mean.per_channel())
        return mean, deviation.times(deviation).mean()

    @staticmethod
    def _map(vector: Array) -> Array:
        return vector[:, None, None]

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradients by input and, where the case has them, weight and bias."""
        g = grad.times(slope(self.activation, self.z))
        by_bias, by_weight = g.total(), g.times(self._normalised).total()
        inner = g
        if self.statistics is None:
            count = g.value.size // g.value.shape[1]
            shares = (Sized(*(part / count for part in t)) for t in (by_bias, by_weight))
            mean, slant = (share.per_channel() for share in shares)
            inner = g.minus(mean).minus(self._normalised.times(slant))
        grads = {}
        if self.weight is not None:
            grads["weight"] = by_weight
        if self.bias is not None:
            grads["bias"] = by_bias
        return inner.times(self._scale).kept(), grads


def _inverse_root(var: Sized, eps: float) -> Sized:
    value = 1 / np.sqrt(var.value + np.asarray(eps, var.value.dtype))
    half_cube = value**3 / 2
    return Sized(value, var.error * half_cube + value, var.stored * half_cube)


class Activation:
    """What is rounded once, with no numbers of its own."""

    def __init__(self, activation: str) -> None:
        self.activation = activation

    def forward(self, x: Sized) -> Sized:
        """The result as it is stored; the point of the activation is left in `z`."""
        self.z = x
        return activated(self.activation, x).kept()

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradient by the input."""
        return grad.times(slope(self.activation, self.z)).kept(), {}


class MapMean:
    """Mean over the map, which is kept as a map of one pixel."""

    def forward(self, x: Sized) -> Sized:
        """The mean as it is stored."""
        self._size = x.value.shape[2:]
        return _map_sum(x, self._size[0] * self._size[1]).kept()

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradient by the input."""
        count = self._size[0] * self._size[1]
        terms = (grad.value, grad.error + abs(grad.value), grad.stored)
        return _repeated(Sized(*(t / count for t in terms)), self._size).kept(), {}


class Broadcast:
    """One pixel repeated over a map."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def forward(self, x: Sized) -> Sized:
        """The map."""
        return _repeated(x, self._size)

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradient by the input."""
        return _map_sum(grad, 1).kept(), {}


def _map_sum(x: Sized, count: int) -> Sized:
    """The sum over each map, divided."""
    terms = (x.value, x.error + abs(x.value), x.stored)
    return Sized(*(t.sum((2, 3), keepdims=True) / count for t in terms))


def _repeated(x: Sized, size: tuple[int, int]) -> Sized:
    return Sized(*(np.broadcast_to(t, (*t.shape[:2], *size)) for t in x))


class Steps:
    """Layers one after another, by name; those that are None are left out."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers = {name: layer for name, layer in layers.items() if layer is not None}

    def forward(self, x: Sized) -> Sized:
        """Result of the last one."""
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def backward(self, grad: Sized) -> tuple[Sized, Grads]:
        """Gradients by the input, and by what the layers have, as LAYER_NAME."""
        found = {}
        for at, layer in reversed(self.layers.items()):
            grad, own = layer.backward(grad)
            found |= {f"{at}_{name}": g for name, g in own.items()}
        return grad, found


# The corners of an activation, and the largest values of its first and second derivative elsewhere.
CORNERS = {"identity": (), "relu": (0,), "relu6": (0, 6), "silu": ()}
_STEEPEST = {"identity": 1.0, "relu": 1.0, "relu6": 1.0, "silu": 1.1}
_CURVATURE = {"identity": 0.0, "relu": 0.0, "relu6": 0.0, "silu": 0.5}


def activated(name: str, z: Sized) -> Sized:
    """The activation of `z`."""
    steepest = _STEEPEST[name]
    value = z.value
    if name == "silu":
        value = z.value * _sigmoid(z.value)
    elif name != "identity":
        value = np.clip(z.value, 0, 6 if name == "relu6" else np.inf)
    rounding = abs(value) if name == "silu" else 0
    return Sized(value, z.error * steepest + rounding, z.stored * steepest)


def slope(name: str, z: Sized) -> Sized:
    """The derivative at `z`, which is not at a corner."""
    if name == "silu":
        sigmoid = _sigmoid(z.value)
        value = sigmoid * (1 + z.value * (1 - sigmoid))
    elif name == "identity":
        value = np.ones_like(z.value)
    else:
        top = 6 if name == "relu6" else np.inf
        value = ((z.value > 0) & (z.value < top)).astype(z.value.dtype)
    curvature = _CURVATURE[name]
    return Sized(value, curvature * z.error, curvature * z.stored)


def _sigmoid(z: Array) -> Array:
    return (1 + np.tanh(z / 2)) / 2
