"""The CUDA kernels on the emulated GPU under AddressSanitizer and UBSan.

Each run is a process of its own, which the sanitizers' libraries have to be loaded into first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import build

ROOT = Path(__file__).resolve().parent.parent
SELF_TEST = """
import sys
sys.path.insert(0, "tests")
import torch
from emulator import build
build.load()
torch.ops.dlv3p_selftest.bad_access(torch.ones(64), int(sys.argv[1]))
"""


def run_sanitized(*arguments: str) -> tuple[int, str]:
    """Exit status and output of Python with the sanitized module."""
    result = subprocess.run(
        [sys.executable, *arguments],
        env=build.sanitizer_environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (0, "AddressSanitizer: heap-buffer-overflow.*WRITE of size 4.*bad_access_kernel"),
        (1, "AddressSanitizer: heap-buffer-overflow.*READ of size 4.*bad_access_kernel"),
        (8, r"selftest_memory.cu:\d+:\d+: runtime error: signed integer overflow"),
    ],
    ids=["global write", "dynamic shared read", "overflow"],
)
def test_planted_errors_are_found(mode: int, message: str) -> None:
    status, output = run_sanitized("-c", SELF_TEST, str(mode))
    assert status != 0
    assert re.search(message, output, re.DOTALL), output


@pytest.mark.parametrize(
    "stem", ["depthwise_parity", "norm_parity", "upsample_parity", "decoder_values"]
)
def test_kernels(stem: str) -> None:
    """The compact cases once more; also all of the emulator is under the sanitizers then."""
    arguments = ["--backend", "emulated", "-m", "compact", f"tests/test_{stem}.py"]
    status, output = run_sanitized("-m", "pytest", "-p", "no:cacheprovider", *arguments)
    assert status == 0, output
    assert re.search(r"^[1-9]\d* passed", output, re.MULTILINE), output
