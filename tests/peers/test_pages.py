"""What README.md and docs/accelerate.md show of other packages' models is what comes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from peer_models import package

import dlv3p_kernels as dk
from dlv3p_kernels.__main__ import main

pytestmark = pytest.mark.usefixtures("native")
ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "accelerate.md", ROOT / "README.md"


def test_snippets_run() -> None:
    package("smp")
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert tuple(names["classes"].shape) == (2, 128, 128)


@pytest.mark.parametrize("page", (PAGE, README), ids=lambda page: page.name)
def test_report_is_as_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package("smp")
    with dk.backend("auto"):
        assert main(["explain", "smp:DeepLabV3Plus:resnet50"]) == 0
    said = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(r"^(accelerate: .*?)\n```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for line in shown.splitlines() if not line.strip().startswith("...")]
    assert [line for line in said if line in lines] == lines
    if left_out := re.search(r"\((\d+) lines of the same", shown):
        kinds = sum(line.startswith("  encoder") for line in said)
        assert kinds == sum(line.startswith("  encoder") for line in lines) + int(left_out[1])
