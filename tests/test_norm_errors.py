"""Wrong arguments: the exception, and a message that names argument, expectation and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dlv3p_kernels as dk

X = torch.zeros(2, 4, 6, 5)
V = torch.ones(4)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "x is a list": ({"x": [1.0]}, TypeError, ("x", "torch.Tensor", "list")),
    "x of one dimension": ({"x": X[0, 0, 0]}, ValueError, ("x", "at least 2", "(5,)")),
    "x integer": ({"x": X.long()}, TypeError, ("x", "floating point", "int64")),
    "one running statistic": ({"running_var": None}, ValueError, ("running_var", "both")),
    "no statistics to use": (
        {"running_mean": None, "running_var": None},
        ValueError,
        ("running_mean", "training is not set", "None"),
    ),
    "weight is a number": ({"weight": 1.0}, TypeError, ("weight", "torch.Tensor", "float")),
    "weight length": ({"weight": V[:3]}, ValueError, ("weight", "4 elements", "3")),
    "weight rank": ({"weight": V[:, None]}, ValueError, ("weight", "1 dimensions", "(4, 1)")),
    "weight dtype": (
        {"weight": V.half()},
        TypeError,
        ("weight", "torch.float32", "torch.float16"),
    ),
    "bias device": ({"bias": V.to("meta")}, ValueError, ("bias", "device cpu", "meta")),
    "running_mean length": ({"running_mean": V[:1]}, ValueError, ("running_mean", "4", "1")),
    "residual shape": ({"residual": X[:1]}, ValueError, ("residual", "(2, 4, 6, 5)", "(1, 4")),
    "residual rank": ({"residual": V}, ValueError, ("residual", "4 dimensions", "(4,)")),
    "residual device": (
        {"residual": X.to("meta")},
        ValueError,
        ("residual", "device cpu", "meta"),
    ),
    "activation": ({"activation": "gelu"}, ValueError, ("activation", "silu", "gelu")),
}


@pytest.mark.parametrize("backend", ("auto", "reference"))
@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument(name: str, backend: str) -> None:
    change, kind, words = WRONG[name]
    arguments = {"x": X, "running_mean": V, "running_var": V} | change
    with dk.backend(backend), pytest.raises(kind) as caught:
        dk.batch_norm_act(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("shape", ((1, 4, 1, 1), (1, 4)))
def test_one_value_per_channel_cannot_be_normalised(shape: tuple[int, ...]) -> None:
    """With the words of stock PyTorch."""
    said = []
    for function in (dk.batch_norm_act, F.batch_norm):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
            function(torch.zeros(shape), V.clone(), V.clone(), training=True)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("change", "words"),
    (
        ({0: X.double()}, "grad_output must have the shape and dtype"),
        ({0: X[:1]}, "grad_output must have the shape and dtype"),
        ({1: X[0]}, "expected 4 dimensions"),
        ({2: V[:3]}, "mean must be one value per channel"),
        ({3: V.double()}, "invstd must be one value per channel"),
        ({4: V[:1]}, "weight must be one value per channel"),
        ({5: V[:, None]}, "bias must be one value per channel"),
        ({6: X[..., :1]}, "residual must have the shape and dtype"),
        ({7: 4}, "unknown activation"),
    ),
)
def test_raw_op_refuses_what_would_read_out_of_bounds(change: dict[int, Any], words: str) -> None:
    """The ops can be called without the Python checks; they must not touch foreign memory."""
    arguments = [X, X, V, V, V, V, X, 1]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dlv3p.batch_norm_backward_reduce(*arguments)
    if 0 not in change:
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dlv3p.batch_norm_apply(*arguments[1:])


@pytest.mark.usefixtures("native")
def test_raw_finalise_refuses_vectors_that_do_not_fit() -> None:
    for wrong in (V[:3], V.double(), V[:, None]):
        with pytest.raises(RuntimeError, match="vectors of one length"):
            torch.ops.dlv3p.batch_norm_finalise(V, V, 2, V, wrong, 0.1, 1e-5)
