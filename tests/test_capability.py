"""The compact cases on every CPU instruction set, each in a process of its own.

Like PyTorch, the library reads `ATEN_CPU_CAPABILITY` once, when it is first used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_files import PARITY_FILES

TESTS = Path(__file__).resolve().parent
CAPABILITIES = ("default", "avx2", "avx512")


def run_python(capability: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The interpreter under a limited instruction set, in the folder above the tests."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compact_cases(capability: str) -> None:
    name = run_python(
        capability,
        "-c",
        "import torch, dlv3p_kernels; print(torch.ops.dlv3p.cpu_capability(),"
        " torch.backends.cpu.get_cpu_capability())",
    )
    assert name.returncode == 0, name.stderr
    ours, torchs = name.stdout.lower().split()
    if torchs != capability:
        pytest.skip(f"this machine has no {capability}")
    assert ours.startswith(capability)
    files = [str(TESTS / name) for name in PARITY_FILES]
    options = ("-m", "compact", "-k", "test_kernel", "-p", "no:cacheprovider", "-o", "addopts=")
    result = run_python(capability, "-m", "pytest", *options, *files)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "skipped" not in result.stdout


def test_this_process_runs_the_widest(native: None) -> None:
    """Where nothing limits it, the library is no narrower than PyTorch itself."""
    if "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("ATEN_CPU_CAPABILITY limits this process")
    widest = torch.backends.cpu.get_cpu_capability().lower()
    if widest not in CAPABILITIES:
        pytest.skip(f"no kernels of our own for {widest}")
    assert torch.ops.dlv3p.cpu_capability().lower().startswith(widest)
