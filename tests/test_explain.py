"""`dk.explain` for an op call: one verdict for every back end, and they are what then happens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from test_backend import Calls

import dlv3p_kernels as dk
from dlv3p_kernels import backends

X, WEIGHT = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
NAMES = (*backends.BACKENDS, "reference")


@pytest.fixture(autouse=True)
def automatic() -> None:
    with dk.backend("auto"):
        yield


def verdicts(explanation: object) -> dict[str, str]:
    return {v.backend: v.reason for v in explanation.verdicts}


def test_every_back_end_has_a_verdict_and_one_is_chosen(native: None) -> None:
    with dk.backend("auto"):
        explanation = dk.explain(dk.depthwise_conv2d, X, WEIGHT)
    assert tuple(v.backend for v in explanation.verdicts) == NAMES
    assert [v.backend for v in explanation.verdicts if v.chosen] == ["cpu"]
    assert explanation.chosen == "cpu"
    assert "takes tensors on cuda" in verdicts(explanation)["cuda"]
    text = str(explanation)
    assert text.startswith("depthwise_conv2d with backend 'auto': served by 'cpu'")
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("op", (dk.depthwise_conv2d, dk.depthwise_conv2d_with_statistics))
def test_explaining_runs_nothing(op, native: None) -> None:
    with Calls() as calls, dk.backend("auto"):
        explanation = dk.explain(op, X, WEIGHT, prologue=dk.ChannelAffine(activation="relu"))
    assert explanation.chosen == "cpu"
    assert not calls.names


def test_batch_norm(native: None) -> None:
    running = (torch.zeros(4), torch.ones(4))
    with dk.backend("auto"):
        explanation = dk.explain(dk.batch_norm_act, X, *running, training=True, activation="relu")
    assert explanation.op == "batch_norm_act"
    assert explanation.chosen in ("cpu", "reference")
    assert tuple(v.backend for v in explanation.verdicts) == NAMES
    with pytest.raises(ValueError, match="activation must be one of"):
        dk.explain(dk.batch_norm_act, X, *running, activation="tanh")


def test_what_no_kernel_serves(native: None) -> None:
    with dk.backend("auto"):
        explanation = dk.explain(dk.depthwise_conv2d, X, torch.randn(8, 1, 3, 3))
    assert explanation.chosen == "reference"
    assert "channel multiplier 2 is not 1" in verdicts(explanation)["cpu"]


def test_where_stock_is_ahead(native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlv3p_kernels.ops import _depthwise

    monkeypatch.setattr(_depthwise, "_ONEDNN_DTYPES", (torch.float32,))
    with dk.backend("auto"):
        x = X.contiguous(memory_format=torch.channels_last)
        explanation = dk.explain(dk.depthwise_conv2d, x, WEIGHT)
    assert explanation.chosen == "reference"
    assert "oneDNN" in verdicts(explanation)["cpu"]
    assert "oneDNN" in verdicts(explanation)["reference"]


def test_insisting_on_what_cannot_serve() -> None:
    with dk.backend("cuda"):
        explanation = dk.explain(dk.depthwise_conv2d, X, WEIGHT)
        assert explanation.chosen is None
        assert "raises RuntimeError" in str(explanation)
        with pytest.raises(RuntimeError, match="can not serve depthwise_conv2d"):
            dk.depthwise_conv2d(X, WEIGHT)


def test_bad_arguments_raise_as_in_the_call() -> None:
    with pytest.raises(ValueError, match="stride must be at least 1"):
        dk.explain(dk.depthwise_conv2d, X, WEIGHT, stride=0)


@pytest.mark.parametrize("op", (torch.relu, None, "depthwise_conv2d"))
def test_what_is_no_op(op) -> None:
    with pytest.raises(TypeError, match=r"op must be one of .*dk\.depthwise_conv2d"):
        dk.explain(op, X, WEIGHT)


@pytest.mark.parametrize(
    ("name", "expected"), (("reference", "reference"), ("nonsense", "DLV3P_BACKEND must be one of"))
)
def test_environment_variable(name: str, expected: str) -> None:
    code = "import dlv3p_kernels as dk; print(dk.status().backend)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DLV3P_BACKEND": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in result.stdout + result.stderr
    assert (result.returncode == 0) == (name == "reference")
