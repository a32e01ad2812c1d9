"""Part `sanitize`: compute-sanitizer's memcheck and racecheck over small cases of every op."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .record import Record
from .small_cases import DONE

# Calls of the CUDA interface that may fail and are asked for are torch's own business.
_OPTIONS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
# Told from the statuses of Python and of compute-sanitizer itself.
_FOUND = 86
_TAIL = 3000


class Run(NamedTuple):
    """One tool on one back end."""

    tool: str
    backend: str

    def __str__(self) -> str:
        return f"{self.tool} of {self.backend}"


def find() -> str | None:
    """compute-sanitizer: on PATH, in CUDA_HOME, or beside nvcc."""
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    if nvcc := shutil.which("nvcc"):
        homes.append(Path(nvcc).resolve().parent.parent)
    homes.append(Path("/usr/local/cuda"))
    places = [
        None,
        *(str(home / place) for home in homes for place in ("bin", "compute-sanitizer")),
    ]
    found = (shutil.which("compute-sanitizer", path=place) for place in places)
    return next((path for path in found if path), None)


def run(
    record: Record, sanitizer: str | None, device: str, backends: Sequence[str], deadline: float
) -> None:
    """Run every tool on every back end, all at once, until the deadline."""
    runs = [Run(tool, backend) for tool in _OPTIONS for backend in backends]
    if sanitizer is None:
        record.leave_out(*(f"{one} (compute-sanitizer was not found)" for one in runs))
        record.finish()
        return
    # Without the caching allocator every tensor has bounds of its own.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = [
        subprocess.Popen(
            _command(sanitizer, one, device),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for one in runs
    ]
    for one, process in zip(runs, running, strict=True):
        _collect(record, one, process, deadline)
    record.finish()


def _command(sanitizer: str, one: Run, device: str) -> list[str]:
    return [
        *(sanitizer, "--tool", one.tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"),
        *_OPTIONS[one.tool],
        *(sys.executable, "-m", "gpu_check.small_cases", one.backend, device),
    ]


def _collect(record: Record, one: Run, process: subprocess.Popen[str], deadline: float) -> None:
    try:
        output, _ = process.communicate(timeout=max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        record.leave_out(f"{one} (out of time)")
        return
    row = judged(process.returncode, output)
    record.add({**one._asdict(), **row, "output": output[-_TAIL:]})
    print(f"{one}: {row['verdict']}", flush=True)
    if row["verdict"] == "errors":
        record.problem(f"{one}: {row['summary']}")
    elif row["verdict"] == "did not run":
        record.leave_out(f"{one} ({row['summary']})")


def judged(status: int, output: str) -> dict[str, Any]:
    """Verdict and summary of one run: "clean", "errors", or "did not run" with the reason.

    Clean is only what ran to its end: the calls were counted and the tool summed up no errors.
    """
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    calls = re.search(rf"(\d+) {DONE}", output)
    counted = int(calls[1]) if calls else 0
    if status == 0 and counted and summaries:
        return {"verdict": "clean", "calls": counted, "summary": summaries[-1]}
    if status == _FOUND:
        summary = summaries[-1] if summaries else "errors without a summary"
        return {"verdict": "errors", "calls": counted, "summary": summary}
    lines = [line.strip("= ") for line in output.splitlines() if line.strip("= ")]
    return {"verdict": "did not run", "calls": counted, "summary": " | ".join(lines[-3:])[:300]}
