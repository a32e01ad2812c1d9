"""`dlv3p bench separable` and `aspp`: rows, totals, memory, and the gate on correctness."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deeplabv3plus.encoders.xception import Xception
from deeplabv3plus.layers import SeparableConv2d
from torch import nn

import dlv3p_kernels as dk
from dlv3p_kernels.bench import aspp, goals, layers, main, memory, report, separable
from dlv3p_kernels.bench.stock import stock_of

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.usefixtures("one_thread")]

SEPARABLE = (
    separable.Case(24, 16, 9, stride=2, residual=True, count=3),
    separable.Case(16, 40, 9, "DBRWBR", dilation=2, count=1),
    separable.Case(16, 8, 8, "DWBR", dilation=6),
)
ASPP = (
    aspp.Case(2, 24, 16, 9, (2, 4), True, layers.Goals(None, goals.PYRAMID, goals.KEPT)),
    aspp.Case(1, 24, 16, 9, (2,)),
    aspp.Case(2, 24, 16, 9, (2, 4), False, layers.Goals()),
)


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separable, "CASES", SEPARABLE)
    monkeypatch.setattr(aspp, "CASES", ASPP)


def bench(op: str, folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit status and record of a short run."""
    common = (op, "--threads", "1", "--seconds", "0.01", "--backend", "cpu")
    status = main([*common, "--output", str(folder), *arguments])
    return status, json.loads((folder / "cpu" / f"{op}.json").read_text())


@pytest.mark.parametrize("op", (separable, aspp))
def test_records_every_row(op, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = op.__name__.split(".")[-1]
    status, record = bench(stem, tmp_path, "--markdown")
    assert status == 0 and record["op"] == op.OP
    assert len(record["rows"]) == 2 * len(op.CASES)
    for row in record["rows"]:
        assert (row["route"], row["layout"]) == ("cpu", "channels_last")
        for part in ("inference", "step"):
            assert row[part]["rounds"] >= (3 if op is aspp else 5)
        for part in ("inference", "step", "memory"):
            assert (row[part]["verdict"] is None) == (row[part]["goal"] is None)
        kept = {name: row["memory"][name]["kept"] for name in ("stock", "ours")}
        assert 0 < kept["ours"] < kept["stock"] <= row["memory"]["stock"]["peak"]
    table = capsys.readouterr().out
    assert table == report.markdown(record) == (tmp_path / f"cpu/{stem}.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| 1x", "| 2x"))]
    assert len(rows) == len(record["rows"]) and {line.count("|") for line in rows} == {20}


def test_totals_count_every_layer_of_the_net(tmp_path: Path) -> None:
    _, record = bench("separable", tmp_path, "--dtype", "float32")
    first, second, _ = record["rows"]
    stock, ours = (
        3 * first["step"][name]["median"] + second["step"][name]["median"]
        for name in ("stock_ms", "ours_ms")
    )
    (line,) = [text for text in report.markdown(record).splitlines() if text.startswith("* ")]
    assert line.startswith("* float32, channels_last: 4 layers of Xception-65 together, ")
    assert f"step {stock:.0f} -> {ours:.0f} ms ({stock / ours:.2f}x)" in line


def test_the_list_is_that_of_the_net() -> None:
    """Shapes, orders, rates and residuals of all separable layers, by a pass without values."""
    found: Counter[separable.Case] = Counter()

    def note(layer: nn.Module, inputs: tuple) -> None:
        assert isinstance(layer, SeparableConv2d)
        x, residual = (*inputs, None)[:2]
        order = "RDBWB" if layer.pre_activation == "relu" else "DBRWBR"
        case = separable.Case(
            x.size(1), layer.pointwise.out_channels, x.size(2), order,
            layer.depthwise.stride[0], layer.depthwise.dilation[0], residual is not None,
        )  # fmt: skip
        found[case] += 1

    with torch.device("meta"):
        net = Xception("xception65").eval()
        for layer in net.modules():
            if isinstance(layer, SeparableConv2d):
                layer.register_forward_pre_hook(note)
        with torch.no_grad(), dk.backend("reference"):
            net(torch.empty(1, 3, 513, 513))
    listed = {replace(case, count=0, quick=False): case.count for case in separable.XCEPTION}
    assert found == listed and found.total() == 63


@pytest.mark.parametrize("case", ASPP, ids=str)
def test_stock_layers_stand_for_ours(case: aspp.Case) -> None:
    layer = case.layer()
    layers.fill(layer, pixels=162)
    stock = stock_of(layer)
    assert list(stock.state_dict()) == list(layer.state_dict())
    assert not any(type(m).__module__.startswith("dlv3p_kernels.nn") for m in stock.modules())


@pytest.mark.parametrize("name", ("depthwise.weight", "pointwise_bn.bias"))
def test_wrong_result_is_not_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of 1 % in one channel of a parameter fails the row and the command."""
    honest = layers.stock_of

    def off(layer: nn.Module) -> nn.Module:
        stock = honest(layer)
        with torch.no_grad():
            stock.get_parameter(name)[0] *= 1.01
        return stock

    monkeypatch.setattr(layers, "stock_of", off)
    status, record = bench("separable", tmp_path, "--dtype", "float32", "--case", "DBRWBR")
    assert status == 1
    (row,) = record["rows"]
    assert row["failures"] and row["inference"] is row["step"] is row["memory"] is None
    assert "FAILED: inference: error" in (tmp_path / "cpu/separable.md").read_text()


def test_wrong_gradient_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[:, -1] *= 1.01
            return grad

    class Wrong(separable.SeparableConv2d):
        def forward(self, input, residual=None):
            return super().forward(Off.apply(input), residual)

    monkeypatch.setattr(separable, "SeparableConv2d", Wrong)
    status, record = bench("separable", tmp_path, "--dtype", "float32", "--case", "DWBR")
    assert status == 1
    (failure,) = record["rows"][0]["failures"]
    assert failure.startswith("input gradient: error 0.0")


def test_kept_is_what_backward_needs() -> None:
    """Storages, once each: x for the gradient of the weight, the result of ReLU for two."""
    weight = torch.ones(1, requires_grad=True)
    x = torch.randn(2**18)
    found = memory.of_step(
        lambda: (x * weight).relu().square().sum(), lambda y: y.backward(), [weight]
    )
    assert found.kept == 2 * x.nbytes


def test_peak_counts_what_lives_together() -> None:
    def forward() -> torch.Tensor:
        first = torch.empty(2**20)
        second = torch.empty(2**19)
        del first
        third = torch.empty(2**19)
        return second + third

    found = memory.of_step(forward, lambda y: torch.empty(2**18), [])
    assert (found.kept, found.peak) == (0, 4 * (2**20 + 2**19))
