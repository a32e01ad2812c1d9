"""What a part has found, written to its file as it comes, so that a crash loses nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlv3p_kernels.bench.report import write_json

RUNNING, COMPLETE, CUT_SHORT = "running", "complete", "cut short"


class Record:
    """The JSON file of one part: machine, status, rows, what was left out, what is wrong.

    `status` is "running" until the part ends: a file that still says so belongs to a part that was
    stopped from outside. `problems` are findings that make the check fail.
    """

    def __init__(self, folder: Path, part: str, machine: Mapping[str, object]) -> None:
        self.path = folder / f"{part}.json"
        self._start = time.monotonic()
        self.data: dict[str, Any] = {
            "part": part,
            "machine": dict(machine),
            "status": RUNNING,
            "seconds": 0.0,
            "problems": [],
            "left_out": [],
            "rows": [],
        }
        self.write()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one result."""
        self.data["rows"].append(dict(row))
        self.write()

    def leave_out(self, *names: str) -> None:
        """Name what there was no time or no means for."""
        self.data["left_out"] += names

    def problem(self, text: str) -> None:
        """Add a finding that makes the check fail."""
        self.data["problems"].append(text)
        self.write()

    def finish(self) -> None:
        """The part came to its end."""
        self.data["status"] = CUT_SHORT if self.data["left_out"] else COMPLETE
        self.write()

    def write(self) -> None:
        """Write the file as it stands."""
        self.data["seconds"] = round(time.monotonic() - self._start, 1)
        write_json(self.path, self.data)


def mark_stopped(path: Path, reason: str) -> dict[str, Any]:
    """Say in the file of a part that it did not come to its end; returns what the file holds."""
    if not path.exists():
        return {"status": reason, "problems": [reason]}
    data: dict[str, Any] = json.loads(path.read_text())
    if data["status"] == RUNNING:
        data["status"] = reason
        data["problems"].append(reason)
        write_json(path, data)
    return data
