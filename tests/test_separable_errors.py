"""Wrong arguments: the exception, and a message that names argument, expectation and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dlv3p_kernels as dk
from dlv3p_kernels import BatchNorm, ChannelAffine

X = torch.zeros(2, 4, 6, 5)
DW, PW = torch.zeros(4, 1, 3, 3), torch.zeros(7, 4, 1, 1)
V, W = torch.ones(4), torch.ones(7)
META = torch.device("meta")
Wrong = dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]]
TENSORS: Wrong = {
    "x is a list": ({"x": [1.0]}, TypeError, ("x ", "torch.Tensor", "list")),
    "x of three dimensions": ({"x": X[0]}, ValueError, ("x ", "4 dimensions", "(4, 6, 5)")),
    "x integer": ({"x": X.long()}, TypeError, ("x ", "floating point", "int64")),
    "x without channels": ({"x": X[:, :0]}, ValueError, ("x ", "one channel", "(2, 0, 6, 5)")),
    "dw_weight is None": ({"dw_weight": None}, TypeError, ("dw_weight", "Tensor", "NoneType")),
    "dw_weight rank": ({"dw_weight": DW[0]}, ValueError, ("dw_weight", "4 dim", "(1, 3, 3)")),
    "dw_weight dtype": (
        {"dw_weight": DW.double()}, TypeError, ("dw_weight", "torch.float32", "torch.float64"),
    ),
    "dw_weight device": ({"dw_weight": DW.to(META)}, ValueError, ("dw_weight", "cpu", "meta")),
    "dw_weight filters": (
        {"dw_weight": DW[:3]}, ValueError, ("dw_weight", "C = 4", "(3, 1, 3, 3)"),
    ),
    "dw_weight not depthwise": (
        {"dw_weight": torch.zeros(4, 4, 3, 3)}, ValueError, ("dw_weight", "(4, 4, 3, 3)"),
    ),
    "dw_weight without taps": (
        {"dw_weight": DW[..., :0]}, ValueError, ("dw_weight", "kernel", "(4, 1, 3, 0)"),
    ),
    "dw_bias length": ({"dw_bias": W}, ValueError, ("dw_bias", "4 elements", "7")),
    "dw_bias dtype": ({"dw_bias": V.half()}, TypeError, ("dw_bias", "float32", "float16")),
    "pw_weight is a number": ({"pw_weight": 1.0}, TypeError, ("pw_weight", "Tensor", "float")),
    "pw_weight rank": ({"pw_weight": PW[..., 0, 0]}, ValueError, ("pw_weight", "4 dim", "(7, 4)")),
    "pw_weight dtype": ({"pw_weight": PW.half()}, TypeError, ("pw_weight", "float32", "float16")),
    "pw_weight device": ({"pw_weight": PW.to(META)}, ValueError, ("pw_weight", "cpu", "meta")),
    "pw_weight channels": (
        {"pw_weight": PW[:, :3]}, ValueError, ("pw_weight", "(C', 4, 1, 1)", "(7, 3, 1, 1)"),
    ),
    "pw_weight kernel": (
        {"pw_weight": torch.zeros(7, 4, 3, 3)}, ValueError, ("pw_weight", "(7, 4, 3, 3)"),
    ),
    "pw_weight empty": ({"pw_weight": PW[:0]}, ValueError, ("pw_weight", "(0, 4, 1, 1)")),
    "pw_bias length": ({"pw_bias": V}, ValueError, ("pw_bias", "7 elements", "4")),
    "pw_bias rank": ({"pw_bias": W[None]}, ValueError, ("pw_bias", "1 dim", "(1, 7)")),
    "pw_bias device": ({"pw_bias": W.to(META)}, ValueError, ("pw_bias", "cpu", "meta")),
    "residual is a list": ({"residual": [0]}, TypeError, ("residual", "torch.Tensor", "list")),
    "residual of x's shape": (
        {"residual": X}, ValueError, ("residual", "(2, 7, 4, 3)", "(2, 4, 6, 5)"),
    ),
    "residual device": (
        {"residual": torch.zeros(2, 7, 4, 3, device=META)}, ValueError, ("residual", "cpu", "meta"),
    ),
}  # fmt: skip
SIZES: Wrong = {
    "stride zero": ({"stride": 0}, ValueError, ("stride", "at least 1", "0")),
    "stride three": ({"stride": (1, 1, 1)}, ValueError, ("stride", "2 ints", "(1, 1, 1)")),
    "stride a float": ({"stride": 1.5}, TypeError, ("stride", "int", "1.5")),
    "padding negative": ({"padding": (0, -1)}, ValueError, ("padding", "at least 0", "-1")),
    "padding three": ({"padding": (1, 1, 1)}, ValueError, ("padding", "2 or 4", "(1, 1, 1)")),
    "dilation text": ({"dilation": "6"}, TypeError, ("dilation", "int", "'6'")),
    "kernel beyond the map": (
        {"dilation": 3}, ValueError, ("output height", "positive", "x is 6", "spans 7"),
    ),
}  # fmt: skip
TRAINED = BatchNorm(W, W, training=True)
STAGES: Wrong = {
    "prologue a norm": ({"prologue": BatchNorm(V, V)}, TypeError, ("prologue", "ChannelAffine")),
    "prologue a pair": ({"prologue": (V, V)}, TypeError, ("prologue", "ChannelAffine", "tuple")),
    "prologue scale alone": (
        {"prologue": ChannelAffine(V)}, ValueError, ("prologue", "both scale and shift"),
    ),
    "prologue length": (
        {"prologue": ChannelAffine(W, W)}, ValueError, ("prologue.scale", "4 elements", "7"),
    ),
    "prologue activation": (
        {"prologue": ChannelAffine(activation="gelu")}, ValueError,
        ("prologue.activation", "silu", "gelu"),
    ),
    "dw_epilogue a function": (
        {"dw_epilogue": torch.relu}, TypeError, ("dw_epilogue", "ChannelAffine or a BatchNorm"),
    ),
    "dw_epilogue length": (
        {"dw_epilogue": BatchNorm(V, W)}, ValueError, ("dw_epilogue.running_var", "4 el", "7"),
    ),
    "dw_epilogue without statistics": (
        {"dw_epilogue": BatchNorm()}, ValueError, ("dw_epilogue.running_mean", "training"),
    ),
    "pw_epilogue one statistic": (
        {"pw_epilogue": BatchNorm(W, training=True)}, ValueError,
        ("pw_epilogue", "both running_mean and running_var"),
    ),
    "pw_epilogue weight length": (
        {"pw_epilogue": BatchNorm(W, W, V)}, ValueError, ("pw_epilogue.weight", "7 el", "4"),
    ),
    "pw_epilogue bias dtype": (
        {"pw_epilogue": BatchNorm(W, W, W, W.half())}, TypeError,
        ("pw_epilogue.bias", "torch.float32", "torch.float16"),
    ),
    "pw_epilogue device": (
        {"pw_epilogue": BatchNorm(W.to(META), W)}, ValueError,
        ("pw_epilogue.running_mean", "cpu", "meta"),
    ),
    "pw_epilogue activation": (
        {"pw_epilogue": BatchNorm(W, W, activation="tanh")}, ValueError,
        ("pw_epilogue.activation", "relu6", "tanh"),
    ),
    "pw_epilogue scale dtype": (
        {"pw_epilogue": ChannelAffine(W.double(), W)}, TypeError,
        ("pw_epilogue.scale", "torch.float32", "torch.float64"),
    ),
    "a single value per channel": (
        {"x": X[:1, :, :3, :3], "pw_epilogue": TRAINED}, ValueError,
        ("x ", "more than one value per channel"),
    ),
}  # fmt: skip
WRONG = TENSORS | SIZES | STAGES


@pytest.mark.parametrize("backend", ("auto", "reference"))
@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument(name: str, backend: str) -> None:
    change, kind, words = WRONG[name]
    arguments = {"x": X, "dw_weight": DW, "pw_weight": PW} | change
    with dk.backend(backend), pytest.raises(kind) as caught:
        dk.separable_conv2d(**arguments)
    for word in ("separable_conv2d: ", *words):
        assert word in str(caught.value)


@pytest.mark.usefixtures("native")
def test_an_error_leaves_running_statistics_alone() -> None:
    """All is checked before the first batch norm counts its batch."""
    middle, end = BatchNorm(V.clone(), V.clone(), training=True), TRAINED
    with pytest.raises(ValueError, match="residual"):
        dk.separable_conv2d(
            torch.randn(2, 4, 6, 5), DW, PW, dw_epilogue=middle, pw_epilogue=end, residual=X
        )
    assert torch.equal(middle.running_mean, V) and torch.equal(middle.running_var, V)


@pytest.mark.usefixtures("native")
def test_kernels_say_what_they_do_not_take() -> None:
    wide = torch.zeros(8, 1, 3, 3)
    with pytest.raises(RuntimeError, match="channel multiplier 2 is not 1"):
        dk.separable_conv2d(X, wide, torch.zeros(7, 8, 1, 1))
    with dk.backend("auto"):
        assert dk.separable_conv2d(X, wide, torch.zeros(7, 8, 1, 1)).shape == (2, 7, 4, 3)


DEPTHWISE = (X, DW, None, [1, 1], [1, 1, 1, 1], [1, 1], None, None, 0)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("change", "words"),
    (
        ({1: DW[:3]}, "one filter per channel"),
        ({1: DW.double()}, "differ in dtype"),
        ({2: V[:3]}, "bias"),
        ({6: V}, "scale"),
        ({6: V[:3], 7: V}, "one element per"),
        ({8: 4}, "unknown activation"),
        ({9: V, 10: V.double()}, "one element per"),
        ({12: PW[:, :3]}, "pw_weight must be"),
        ({12: PW.double()}, "pw_weight must be"),
        ({13: V}, "pw_bias must be"),
        ({13: W.half()}, "pw_bias must be"),
        ({14: W, 15: V}, "out_shift must be"),
        ({14: W.double(), 15: W}, "out_scale must be"),
        ({16: 4}, "unknown activation"),
        ({17: X}, "residual must have"),
        ({17: torch.zeros(2, 7, 6, 5).half()}, "residual must have"),
        ({16: 1, 18: True}, "statistics are those"),
        ({0: X[:0]}, "the input is empty"),
    ),
)
def test_raw_op_refuses_what_would_read_out_of_bounds(change: dict[int, Any], words: str) -> None:
    """The ops can be called without the Python checks; they must not touch foreign memory."""
    arguments = [*DEPTHWISE, None, None, 0, PW, None, None, None, 0, None, False]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dlv3p.separable_conv2d_fused(*arguments)
    if max(change) < len(DEPTHWISE):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dlv3p.depthwise_conv2d_statistics(*arguments[: len(DEPTHWISE)])
