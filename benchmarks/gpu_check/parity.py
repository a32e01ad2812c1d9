"""Part `parity`: the tests of the kernels, on the GPU, for every back end; shares run side by side.

The files are those that `make test` repeats for every back end (tests/parity_files.py), and
tests/test_gpu.py with what only a GPU can show.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import Record

ROOT = Path(__file__).resolve().parents[2]
# A test that has started may take so long before its process is killed.
_GRACE_SECONDS = 20
_MOST_SHARES = 4
_CORES_PER_SHARE = 2


@dataclass(frozen=True)
class Share:
    """One pytest process: a part of the tests for one back end."""

    backend: str
    files: tuple[str, ...]
    index: int
    count: int

    def command(self, device: str, record: Path, seconds: float) -> list[str]:
        """Run with options of its own, whatever plugins are installed."""
        return [
            *(sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider"),
            *("-p", "gpu_check.pytest_record", "--record", str(record)),
            *("--seconds", f"{seconds:.0f}", "--share", f"{self.index}/{self.count}"),
            *("--backend", self.backend, "--device", device, *self.files),
        ]


def test_files() -> tuple[str, ...]:
    """Paths of the tests that every back end has to pass."""
    listed = runpy.run_path(str(ROOT / "tests" / "parity_files.py"))["PARITY_FILES"]
    return (*(f"tests/{name}" for name in listed), "tests/test_gpu.py")


def shares(backends: Sequence[str], files: tuple[str, ...], cores: int) -> list[Share]:
    """As many processes for each back end as there are cores for."""
    count = max(1, min(_MOST_SHARES, cores // (_CORES_PER_SHARE * len(backends))))
    return [Share(name, files, i, count) for name in backends for i in range(count)]


def run(record: Record, device: str, parts: Sequence[Share], deadline: float) -> None:
    """Run all shares at once until the deadline (of `time.monotonic`)."""
    environment = os.environ | {"DLV3P_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "2"}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{i}.jsonl" for i in range(len(parts))]
        seconds = deadline - time.monotonic() - _GRACE_SECONDS
        running = []
        for share, log in zip(parts, logs, strict=True):
            command = share.command(device, log, seconds)
            with log.with_suffix(".txt").open("w") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            running.append(process)
        for share, log, process in zip(parts, logs, running, strict=True):
            _collect(record, share, log, _wait(process, deadline))
    record.finish()


def _wait(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """How the process ended where that was not by itself."""
    try:
        status = process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "killed, out of time"
    # 1: tests failed, which their own lines tell.
    return None if status in (0, 1) else f"ended with status {status}"


def _collect(record: Record, share: Share, log: Path, ended: str | None) -> None:
    row = {"backend": share.backend, "share": f"{share.index + 1}/{share.count}"}
    outcome = summary(_entries(log))
    for failure in outcome["failures"]:
        record.problem(f"{share.backend}: {failure['test']} {failure['outcome']}")
    if ended:
        text = log.with_suffix(".txt").read_text()[-1500:]
        row |= {"ended": ended, "output": text}
        record.problem(f"{share.backend}: {ended} in {outcome['unfinished'] or 'the set-up'}")
    if outcome["not_run"]:
        record.leave_out(f"{outcome['not_run']} tests of {share.backend}, share {row['share']}")
    record.add({**row, **outcome})
    print(f"{share.backend} {row['share']}: {outcome['counts']}", flush=True)


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    if log.exists():
        yield from (json.loads(line) for line in log.read_text().splitlines() if line.endswith("}"))


def summary(entries: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Counts, failures and the reasons of skips from the lines of a recorded run."""
    outcomes: dict[str, dict[str, Any]] = {}
    selected, started = 0, []
    for entry in entries:
        selected = entry.get("selected", selected)
        if "started" in entry:
            started.append(entry["started"])
        elif "test" in entry and outcomes.get(entry["test"], {}).get("outcome") != "failed":
            outcomes[entry["test"]] = entry
    counts = Counter(entry["outcome"] for entry in outcomes.values())
    unfinished = [test for test in started if test not in outcomes]
    return {
        "selected": selected,
        "counts": dict(counts),
        "not_run": selected - len(outcomes),
        "unfinished": unfinished[-1] if unfinished else None,
        "failures": [entry for entry in outcomes.values() if entry["outcome"] == "failed"],
        "skips": Counter(e["why"] for e in outcomes.values() if e["outcome"] == "skipped"),
    }
