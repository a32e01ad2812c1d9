"""A pytest plugin: writes every outcome as it comes, stops at a deadline, runs one share of many.

Loaded with `-p gpu_check.pytest_record`; made for runs that may be killed at any time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

_SHORT = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("gpu_check")
    group.addoption("--record", type=Path, required=True, help="file for one JSON line per test")
    group.addoption("--seconds", type=float, required=True, help="no test starts after this time")
    group.addoption("--share", default="0/1", help="I/N: every Nth test, beginning with the Ith")


def pytest_configure(config: pytest.Config) -> None:
    """Start the clock."""
    config.pluginmanager.register(_Recorder(config), "gpu_check_recorder")


class _Recorder:
    def __init__(self, config: pytest.Config) -> None:
        self._deadline = time.monotonic() + config.getoption("--seconds")
        self._index, self._count = map(int, config.getoption("--share").split("/"))
        self._file = config.getoption("--record").open("w", buffering=1)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep this share of the tests."""
        items[:] = items[self._index :: self._count]
        self._write(selected=len(items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note what runs: a test that takes the process down is the last one so noted."""
        self._write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome: of the call, or of what kept it from happening."""
        if report.when == "call" or report.outcome != "passed":
            why = str(report.longrepr)[-_SHORT:] if report.outcome != "passed" else ""
            self._write(test=report.nodeid, outcome=report.outcome, why=why)

    def pytest_runtest_protocol(self) -> None:
        """Stop before a test that would begin too late."""
        if time.monotonic() > self._deadline:
            pytest.exit("out of time", returncode=0)

    def _write(self, **entry: object) -> None:
        self._file.write(json.dumps(entry) + "\n")
