"""Facts about the machine and the software that figures are recorded with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from .._native import status

_ROOT = Path(__file__).resolve().parents[2]


def facts() -> dict[str, object]:
    """What timings depend on, ready for JSON."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
        "cpu_capability": status().cpu_capability,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "dlv3p_kernels": status().version,
        "git_commit": _git_commit(),
        "build": status().build,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout, "-dirty" with local changes; None for an installed package."""
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
