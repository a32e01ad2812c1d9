"""`benchmarks/existing_models.py`, on a net that stands in for the peers' ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import existing_models
import pytest
from accelerate_blocks import Separable, bn, conv
from torch import Tensor, nn

from dlv3p_kernels.bench import cli

pytestmark = pytest.mark.usefixtures("native")


class Net(nn.Module):
    """Built as segmentation_models_pytorch's are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, 3, stride=4), bn(8), nn.ReLU(), nn.Dropout(0.5))
        self.decoder = Separable(8, 8)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(8, existing_models.CLASSES, 1), nn.UpsamplingBilinear2d(scale_factor=4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(self.encoder(x)))


def _run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, list[dict[str, object]]]:
    monkeypatch.setattr(existing_models, "_model", lambda name, stride: Net())
    arguments = ["resnet50", "--size", "32", "--rounds", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", *arguments, *options, "--output", str(folder)])
    status = existing_models.main()
    return status, json.loads((folder / "cpu/existing_models.json").read_text())["rows"]


def test_records_are_those_of_dlv3p_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = _run(tmp_path, monkeypatch, "--dtype", "float32", "bfloat16")
    assert status == 0 and [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert row["case"] == "resnet50 OS16 2x32x32" and row["failures"] == []
        assert row["step_with_our_loss"]["goal"]["ratio"] == 1.25
        for part in ("inference", "step", "step_with_our_loss"):
            assert row[part]["ratio"]["median"] > 0 and row[part]["rounds"] == 2
        memory = row["memory"]
        assert memory["our loss"]["kept"] < memory["ours"]["kept"] < memory["stock"]["kept"]
    capsys.readouterr()
    assert cli.main(["--table", str(tmp_path / "cpu/existing_models.json")]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "cpu/existing_models.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_wrong_results_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(model: Net) -> Net:
        model.decoder[4].weight.data[0] *= 1.01
        return model

    monkeypatch.setattr(existing_models.dk, "accelerate", off)
    status, (row,) = _run(tmp_path, monkeypatch)
    assert status == 1 and "output off by" in row["failures"][0]
    assert row["step"] is row["inference"] is row["memory"] is None
    assert "FAILED" in (tmp_path / "cpu/existing_models.md").read_text()
