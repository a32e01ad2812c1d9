"""`dlv3p bench upsample`: rows, table, and the gate on correctness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlv3p_kernels.bench import main, report, upsample

pytestmark = pytest.mark.usefixtures("native")


def bench(folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit status and record of a short run."""
    common = ("upsample", "--threads", "1", "--seconds", "0.01", "--backend", "cpu")
    status = main([*common, "--output", str(folder), *arguments])
    return status, json.loads((folder / "cpu/upsample.json").read_text())


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tuple(upsample.Case(7, 9, 33, loss) for loss in (True, False))
    monkeypatch.setattr(upsample, "CASES", cases)


def test_records_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = bench(tmp_path, "--markdown")
    assert status == 0 and record["op"] == "upsample_cross_entropy"
    assert len(record["rows"]) == 2 * 2 * 2
    for row in record["rows"]:
        assert row["route"] == "cpu" and row["forward"]["rounds"] >= 5
        of_classes = row["case"].endswith("classes")
        assert (row["step"] is None) == (row["memory"] is None) == of_classes
        if not of_classes:
            assert row["memory"]["ours"]["peak"] < row["memory"]["stock"]["peak"]
    table = capsys.readouterr().out
    assert table == report.markdown(record) == (tmp_path / "cpu/upsample.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| 7x9x9 -> 33x33")]
    assert len(rows) == 8 and {line.count("|") for line in rows} == {16}


@pytest.mark.parametrize("function", ("upsample_cross_entropy", "upsample_argmax"))
def test_wrong_result_is_not_timed(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pixel that is off fails the row and the command."""
    honest = getattr(upsample, function)

    def wrong(*arguments: object, **options: object) -> torch.Tensor:
        result = honest(*arguments, **options).clone()
        result[0, 5, 6] = (result[0, 5, 6] + 1) % 7
        return result

    monkeypatch.setattr(upsample, function, wrong)
    monkeypatch.setattr(upsample._Bench, "route", lambda self: "cpu")
    kind = "loss" if function == "upsample_cross_entropy" else "classes"
    status, record = bench(tmp_path, "--dtype", "float32", "--case", kind)
    assert status == 1
    assert all(row["failures"] and row["forward"] is None for row in record["rows"])
    assert (tmp_path / "cpu/upsample.md").read_text().count("FAILED") == len(record["rows"]) == 2
