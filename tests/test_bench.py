"""The benchmark harness: turns, goals, the gate on correctness, records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlv3p_kernels.bench import accuracy, depthwise, goals, main, report, timing

pytestmark = pytest.mark.usefixtures("native")

SMALL = (
    depthwise.Case(40, 9, 2),
    depthwise.Case(40, 9, 1, stride=2, kernel=5, extra=True),
)


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "CASES", SMALL)


def bench(folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit status and record of a short run."""
    file = folder / "record.json"
    status = main(
        ["depthwise", "--threads", "1", "--seconds", "0.01", "--json", str(file), *arguments]
    )
    return status, json.loads(file.read_text())


def test_contenders_take_turns() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = timing.interleave(contenders, seconds=0, least=3)
    assert [len(s) for s in samples.values()] == [3, 3, 3]
    turns = [a for a, b in zip(order, [*order[1:], ""], strict=True) if a != b]
    assert turns == list("abc" * 4)


def test_spread_and_ratios() -> None:
    assert timing.ratios([2, 4, 9, 8, 10], [2, 2, 3, 2, 2]) == timing.Spread(3, 2, 4)


@pytest.mark.parametrize(
    ("direction", "channels", "dilation", "expected"),
    (
        ("forward", 2048, 6, goals.Goal(True, 1, None)),
        ("forward", 2048, 12, goals.Goal(False, 25, 3)),
        ("backward", 2048, 6, goals.Goal(False, 20, 6)),
        ("forward", 728, 2, goals.Goal(True, 1, None)),
        ("backward", 728, 2, goals.Goal(False, 6, None)),
        ("backward", 304, 1, goals.Goal(True, 1, None)),
    ),
)
def test_goals(
    direction: goals.Direction, channels: int, dilation: int, expected: goals.Goal
) -> None:
    assert goals.goal(direction, channels, dilation) == expected


def test_verdicts() -> None:
    fast, slow = goals.Goal(True, 1, None), goals.Goal(False, 25, 3)
    assert [fast.verdict(r, 9) for r in (1.0, 0.95, 0.94)] == ["met", "close", "missed"]
    assert [slow.verdict(*figures) for figures in ((25, 3), (25, 3.1), (24.9, 3))] == [
        "met",
        "missed",
        "missed",
    ]


def test_run_records_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = bench(tmp_path, "--markdown")
    assert status == 0
    assert len(record["rows"]) == 2 * 2 * 2
    assert {"cpu", "cores", "threads", "torch", "git_commit", "cpu_capability", "date"} <= set(
        record["machine"]
    )
    for row in record["rows"]:
        for direction in ("forward", "backward"):
            timed = row[direction]
            assert timed["stock_ms"]["lower"] <= timed["stock_ms"]["median"]
            assert timed["rounds"] >= 5
            assert (timed["verdict"] is None) == row["extra"]
    table = capsys.readouterr().out
    assert table == report.markdown(record)
    rows = [line for line in table.splitlines() if line.startswith("| 40x")]
    assert len(rows) == 8 and {line.count("|") for line in rows} == {15}
    assert sum("(extra)" in line for line in rows) == 4


def test_recorded_table_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, record = bench(tmp_path, "--dtype", "float32", "--layout", "contiguous")
    capsys.readouterr()
    assert main(["--table", str(tmp_path / "record.json")]) == 0
    assert capsys.readouterr().out == report.markdown(record)


def test_output_folder(tmp_path: Path) -> None:
    bench(tmp_path, "--output", str(tmp_path), "--case", "d=2", "--dtype", "float32")
    record = json.loads((tmp_path / "cpu/depthwise.json").read_text())
    assert [row["case"] for row in record["rows"]] == ["40x9x9 d=2"] * 2
    assert (tmp_path / "cpu/depthwise.md").read_text() == report.markdown(record)


@pytest.mark.parametrize("what", (0, 1, 2))
def test_wrong_result_is_not_timed(
    what: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of 1 % in output or gradient of one channel fails the row and the command."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, channels, scale_output, scale_gradient):
            ctx.scale = torch.ones(channels)
            ctx.scale[-1] = scale_gradient
            ctx.shape = (-1, 1, 1, 1) if x.size(0) == channels else (1, -1, 1, 1)
            scale = torch.ones(channels)
            scale[-1] = scale_output
            return x * scale.view(ctx.shape).to(x.dtype)

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.scale.view(ctx.shape).to(grad.dtype), None, None, None

    honest = depthwise.depthwise_conv2d

    def wrong(x: torch.Tensor, weight: torch.Tensor, *arguments: object) -> torch.Tensor:
        if what == 1:
            x = Off.apply(x, x.size(1), 1, 1.01)
        if what == 2:
            weight = Off.apply(weight, x.size(1), 1, 1.01)
        output = honest(x, weight, *arguments)
        return Off.apply(output, x.size(1), 1.01, 1) if what == 0 else output

    monkeypatch.setattr(depthwise, "depthwise_conv2d", wrong)
    status, record = bench(tmp_path, "--dtype", "float32", "--markdown")
    assert status == 1
    names = ("output", "input gradient", "weight gradient")
    for row in record["rows"]:
        assert row["forward"] is None
        assert [text.split(":")[0] for text in row["failures"]] == [names[what]]
    assert capsys.readouterr().out.count("FAILED") == len(record["rows"]) == 4


@pytest.mark.parametrize("arguments", (["--threads", "0"], ["--dtype", "int8"], ["pooling"]))
def test_bad_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_accuracy_rule() -> None:
    """Where stock is exact by luck, one rounding of result and sum is allowed and no more."""
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64).numpy()
    floor = accuracy.floor(torch.bfloat16, exact, abs(exact))
    assert floor == 2.0**-8 + 2.0**-24
    assert accuracy.error(torch.tensor([1.0, -4.5]), exact) == 0.125
    assert accuracy.allowed(0.125, floor) == 0.25 + floor
    nan = accuracy.error(torch.tensor([1.0, float("nan")]), exact)
    assert not nan <= accuracy.allowed(1, 1)
    zeros = exact * 0
    assert accuracy.error(torch.zeros(2), zeros) == 0
    assert accuracy.error(torch.tensor([0.0, 1e-30]), zeros) == float("inf")
    assert accuracy.floor(torch.float32, zeros, abs(exact)) == 0
