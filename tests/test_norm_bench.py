"""`dlv3p bench norm`: rows, table, and the gate on correctness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlv3p_kernels.bench import main, norm, report

pytestmark = pytest.mark.usefixtures("native")


def bench(folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit status and record of a short run."""
    common = ("norm", "--threads", "1", "--seconds", "0.01", "--backend", "cpu")
    status = main([*common, "--output", str(folder), *arguments])
    return status, json.loads((folder / "cpu/norm.json").read_text())


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (norm.Case(40, 9), norm.Case(24, 7, relu=False, residual=True))
    monkeypatch.setattr(norm, "CASES", cases)


def test_records_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = bench(tmp_path, "--markdown")
    assert status == 0 and record["op"] == "batch_norm_act"
    assert len(record["rows"]) == 2 * 2 * 2
    for row in record["rows"]:
        assert row["route"] == "cpu"
        for part in ("forward", "step"):
            assert row[part]["rounds"] >= 5
    table = capsys.readouterr().out
    assert table == report.markdown(record) == (tmp_path / "cpu/norm.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| 40x", "| 24x"))]
    assert len(rows) == 8 and {line.count("|") for line in rows} == {13}


@pytest.mark.parametrize("channel", (0, -1))
def test_wrong_result_is_not_timed(
    channel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of 1 % in one channel fails the row and the command."""
    honest = norm.batch_norm_act

    def wrong(x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        scale = torch.ones(x.size(1), 1, 1)
        scale[channel] = 1.01
        return (honest(x, *arguments, **options) * scale).to(x.dtype)

    monkeypatch.setattr(norm, "batch_norm_act", wrong)
    monkeypatch.setattr(norm._Bench, "route", lambda self: "cpu")
    status, record = bench(tmp_path, "--dtype", "float32")
    assert status == 1
    assert all(row["failures"] and row["forward"] is None for row in record["rows"])
    assert (tmp_path / "cpu/norm.md").read_text().count("FAILED") == len(record["rows"]) == 4
