"""Wrong arguments: the exception, and a message that names argument, expectation and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dlv3p_kernels as dk

X = torch.zeros(2, 4, 6, 5)
WEIGHT = torch.zeros(4, 1, 3, 3)
BIAS = torch.zeros(4)

WRONG: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "x is a list": ({"x": [1.0]}, TypeError, ("x", "torch.Tensor", "list")),
    "x unbatched": ({"x": X[0]}, ValueError, ("x", "4 dimensions", "(4, 6, 5)")),
    "x integer": ({"x": X.long()}, TypeError, ("x", "floating point", "int64")),
    "x complex": ({"x": X.cfloat()}, TypeError, ("x", "floating point", "complex64")),
    "x without channels": ({"x": X[:, :0]}, ValueError, ("x", "one channel", "(2, 0, 6, 5)")),
    "weight missing": ({"weight": None}, TypeError, ("weight", "torch.Tensor", "NoneType")),
    "weight rank": ({"weight": WEIGHT[:, 0]}, ValueError, ("weight", "4 dimensions", "(4, 3, 3)")),
    "weight channels": ({"weight": WEIGHT[:3]}, ValueError, ("weight", "C = 4", "(3, 1, 3, 3)")),
    "weight of a dense convolution": (
        {"weight": torch.zeros(4, 4, 3, 3)},
        ValueError,
        ("weight", "(C * multiplier, 1, kh, kw)", "(4, 4, 3, 3)"),
    ),
    "weight of no filters": ({"weight": WEIGHT[:0]}, ValueError, ("weight", "(0, 1, 3, 3)")),
    "weight without taps": ({"weight": WEIGHT[..., :0]}, ValueError, ("weight", "(4, 1, 3, 0)")),
    "weight dtype": (
        {"weight": WEIGHT.half()},
        TypeError,
        ("weight", "x's dtype torch.float32", "torch.float16"),
    ),
    "weight device": (
        {"weight": WEIGHT.to("meta")},
        ValueError,
        ("weight", "x's device cpu", "meta"),
    ),
    "bias is a number": ({"bias": 1.0}, TypeError, ("bias", "torch.Tensor", "float")),
    "bias rank": ({"bias": BIAS[None]}, ValueError, ("bias", "1 dimensions", "(1, 4)")),
    "bias length": ({"bias": BIAS[:3]}, ValueError, ("bias", "4 elements", "got 3")),
    "bias dtype": ({"bias": BIAS.double()}, TypeError, ("bias", "float32", "float64")),
    "bias device": ({"bias": BIAS.to("meta")}, ValueError, ("bias", "device cpu", "meta")),
    "stride zero": ({"stride": 0}, ValueError, ("stride", "at least 1", "got 0")),
    "stride of a pair": ({"stride": (1, -2)}, ValueError, ("stride", "at least 1", "(1, -2)")),
    "stride fraction": ({"stride": 1.5}, TypeError, ("stride", "int", "1.5")),
    "stride bool": ({"stride": True}, TypeError, ("stride", "int", "True")),
    "stride of three": ({"stride": (1, 1, 1)}, ValueError, ("stride", "2 ints", "(1, 1, 1)")),
    "padding negative": ({"padding": -1}, ValueError, ("padding", "at least 0", "got -1")),
    "padding word": ({"padding": "same"}, TypeError, ("padding", "int", "'same'")),
    "padding of three": ({"padding": (1, 2, 3)}, ValueError, ("padding", "2 or 4", "(1, 2, 3)")),
    "padding fractions": ({"padding": (1, 0.5)}, TypeError, ("padding", "ints", "(1, 0.5)")),
    "padding one side negative": (
        {"padding": (0, 0, -1, 0)},
        ValueError,
        ("padding", "at least 0", "(0, 0, -1, 0)"),
    ),
    "dilation zero": ({"dilation": 0}, ValueError, ("dilation", "at least 1", "got 0")),
    "dilation none": ({"dilation": None}, TypeError, ("dilation", "int", "None")),
    "kernel larger than the rows": (
        {"dilation": (3, 1)},
        ValueError,
        ("output height", "6 with padding (0, 0)", "spans 7"),
    ),
    "kernel larger than the columns": (
        {"dilation": (1, 4), "padding": (1, 2, 0, 0)},
        ValueError,
        ("output width", "5 with padding (1, 2)", "spans 9"),
    ),
}


@pytest.mark.parametrize(("change", "exception", "words"), WRONG.values(), ids=WRONG)
def test_wrong_argument(
    change: dict[str, Any], exception: type[Exception], words: tuple[str, ...]
) -> None:
    arguments = {"x": X, "weight": WEIGHT, "bias": BIAS} | change
    with pytest.raises(exception) as caught:
        dk.depthwise_conv2d(**arguments)
    assert type(caught.value) is exception
    message = str(caught.value)
    assert message.startswith("depthwise_conv2d: ")
    for word in words:
        assert word in message, message


def test_right_arguments_pass() -> None:
    assert dk.depthwise_conv2d(X, WEIGHT, BIAS).shape == (2, 4, 4, 3)


LAYER_WRONG: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "groups": ({"groups": 2}, ValueError, ("groups", "in_channels = 4", "got 2")),
    "out_channels": ({"out_channels": 6}, ValueError, ("out_channels", "divisible")),
    "padding": ({"padding": None}, TypeError, ("padding", "int", "None")),
    "padding numbers": ({"padding": (1, 2, 3)}, ValueError, ("padding", "2 or 4", "(1, 2, 3)")),
    "padding word": ({"padding": "full"}, ValueError, ("padding", "'full'")),
    "padding_mode": ({"padding_mode": "wrap"}, ValueError, ("padding_mode", "'wrap'")),
}


@pytest.mark.parametrize(("change", "exception", "words"), LAYER_WRONG.values(), ids=LAYER_WRONG)
def test_wrong_argument_of_the_layer(
    change: dict[str, Any], exception: type[Exception], words: tuple[str, ...]
) -> None:
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3} | change
    with pytest.raises(exception) as caught:
        dk.nn.DepthwiseConv2d(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("x", "weight", "grad", "words"),
    (
        (X, WEIGHT[:3], torch.zeros(2, 4, 4, 3), "one filter per channel"),
        (X, WEIGHT.double(), torch.zeros(2, 4, 4, 3), "differ in dtype"),
        (X, WEIGHT, torch.zeros(2, 4, 5, 3), "does not match the output"),
        (X, WEIGHT, torch.zeros(2, 4, 4, 3).double(), "does not match the output"),
    ),
    ids=("filters", "dtype", "gradient size", "gradient dtype"),
)
def test_raw_op_refuses_what_would_read_out_of_bounds(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, words: str
) -> None:
    """The ops can be called without the Python checks; they must not touch foreign memory."""
    geometry = ([1, 1], [0, 0, 0, 0], [1, 1])
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dlv3p.depthwise_conv2d_backward(grad, x, weight, *geometry, True, True)


@pytest.mark.usefixtures("native")
def test_raw_op_refuses_a_bias_of_another_length_or_dtype() -> None:
    geometry = ([1, 1], [0, 0, 0, 0], [1, 1])
    for bias in (torch.zeros(3), torch.zeros(4).half()):
        with pytest.raises(RuntimeError, match="bias"):
            torch.ops.dlv3p.depthwise_conv2d(X, WEIGHT, bias, *geometry)
