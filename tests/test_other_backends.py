"""The tests of parity once more, each file in a process of its own, for the back ends that run on
the CPU only by a detour: Triton's interpreter, and the CUDA kernels in the emulator.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from parity_files import PARITY_FILES

TESTS = Path(__file__).resolve().parent
# A share with no factor in common with the numbers of dtypes, layouts and fusions: every case runs,
# each time in others of them. `pytest --backend NAME` alone runs everything.
EVERY = {"triton": 5, "emulated": 1}
# Where a case has many dtypes, layouts and fusions; the pyramid is made of operators that other
# files test, and each of its tests runs dozens of kernels.
RARER = {
    ("triton", "test_depthwise_parity.py"): 11,
    ("triton", "test_depthwise_fused.py"): 11,
    ("triton", "test_aspp_parity.py"): 13,
}
# Run whole, beside the files of parity.
MORE_FILES = {
    "triton": (
        "test_triton_kernels.py",
        "test_separable_triton.py",
        "test_decoder_triton.py",
        "test_aspp_triton.py",
        "test_triton_upsample.py",
    ),
    "emulated": (
        "test_emulated_kernels.py",
        "test_emulated_decoder.py",
        "test_emulated_upsample.py",
    ),
}
ENVIRONMENT = {"triton": {"TRITON_INTERPRET": "1"}, "emulated": {}}


def why_not(backend: str) -> str | None:
    """What the machine lacks for the detour; None where it lacks nothing."""
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    return None if shutil.which(os.environ.get("CXX", "g++")) else "there is no C++ compiler"


@pytest.mark.parametrize(
    ("backend", "file"),
    [(backend, file) for backend in EVERY for file in (*PARITY_FILES, *MORE_FILES[backend])],
)
def test_kernels_of(backend: str, file: str) -> None:
    if reason := why_not(backend):
        pytest.skip(reason)
    every = RARER.get((backend, file), EVERY[backend])
    share = ["--every", str(every)] if file in PARITY_FILES else []
    result = run_tests(file, "--backend", backend, *share, **ENVIRONMENT[backend])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout, result.stdout[-500:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 0, result.stdout[-500:]


def run_tests(file: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test file in a new process, where kernels that are missing are a failure."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore",
         "-o", "addopts=", *arguments, str(TESTS / file)],
        env={**os.environ, **environment, "DLV3P_REQUIRE_NATIVE": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_a_missing_back_end_is_a_failure() -> None:
    """DLV3P_REQUIRE_NATIVE leaves nothing out silently."""
    result = run_tests(PARITY_FILES[0], "--backend", "cuda", "-x", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert "DLV3P_REQUIRE_NATIVE=1, but cuda is missing" in result.stdout or (
        "can not serve" in result.stdout
    )
