"""The examples of the README and of the pages run as they stand."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deeplabv3plus.training import config

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What examples may ask for beyond what the tests have.
OPTIONAL = ("segmentation_models_pytorch", "timm", "torchvision", "transformers")


def examples(page: Path) -> str:
    """All Python of a page, which goes on from block to block."""
    return "\n".join(_BLOCK.findall(page.read_text(encoding="utf-8")))


PAGES = [page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if examples(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = examples(page)
    for package in OPTIONAL:
        if f"import {package}" in code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SAMPLE", replace(config.SAMPLE, steps=2, batch_size=2, crop=65))
    torch.manual_seed(0)
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_there_are_examples() -> None:
    assert len(PAGES) > 5
