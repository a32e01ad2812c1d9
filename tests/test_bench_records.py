"""The recorded runs, and the pages that show them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlv3p_kernels.bench import main, report

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "cpu"
OPS = ("depthwise", "norm", "separable", "aspp", "decoder", "upsample")


def summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints."""
    assert main(["--summary", str(folder)]) == 0
    return capsys.readouterr().out


def test_readme_shows_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    table = summary(RECORDS, capsys)
    for op in OPS:
        assert table.count(f"| `{op}` |") >= 2
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, shown = page.partition("<!-- benchmark table: begin -->\n")
    assert shown.startswith(table + "<!-- benchmark table: end -->"), "dlv3p bench --summary"


@pytest.mark.parametrize("op", OPS)
def test_tables_are_those_of_the_records(op: str) -> None:
    recorded = json.loads((RECORDS / f"{op}.json").read_text())
    assert (RECORDS / f"{op}.md").read_text() == report.markdown(recorded)
    assert not any(row["failures"] for row in recorded["rows"])


def test_summary_of_failures_and_of_ops_without_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads((RECORDS / "upsample.json").read_text())
    row = next(row for row in recorded["rows"] if row["case"].startswith("21x"))
    recorded["rows"] = [row | {"failures": ["loss: error 1"]}]
    (tmp_path / "upsample.json").write_text(json.dumps(recorded))
    lines = summary(tmp_path, capsys).splitlines()
    assert lines[2] == f"| `upsample` | {row['case']} | {row['dtype']} | FAILED | - | - |"
    assert lines[4].startswith("`upsample`: ")
    assert len(lines) == 5
