"""Part `bench`: ours, stock PyTorch and a copy in turns; a row is timed once it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from dlv3p_kernels.bench import machine
from dlv3p_kernels.bench.timing import Call, Clock, Spread, interleave

from . import cases
from .cases import Case
from .contenders import Row, Setting
from .record import Record
from .subjects import SUBJECTS

_LEAST_ROUNDS = 5
ROW_SECONDS = 0.5
_LARGE_COPY_BYTES = 2**30


class RowLike(Protocol):
    """What can be timed."""

    setting: Setting
    failures: dict[str, str]

    @property
    def seconds(self) -> float:
        """What it takes at least; with less time left it is not begun."""

    def contenders(self) -> dict[str, Call]:
        """Those that run and whose results are right."""

    def result(self, spreads: Mapping[str, Spread], rounds: int) -> dict[str, Any]:
        """What there is to record, ready for JSON."""


MakeRow = Callable[[Setting], RowLike]


def plan(families: Mapping[str, Sequence[Case]]) -> Iterator[Callable[[Setting], Row]]:
    """The rows in the order of their weight: bfloat16 first, the convolution before the rest.

    Subjects of families that have no cases are left out.
    """
    for dtype in cases.DTYPES.values():
        for subject in SUBJECTS:
            for case in families.get(subject.family, ()):
                yield partial(Row, subject, case, dtype)


def run(
    record: Record,
    setting: Setting,
    clock: Clock,
    rows: Sequence[MakeRow],
    deadline: float,
    row_seconds: float = ROW_SECONDS,
) -> None:
    """Time the rows until the deadline (of `time.monotonic`)."""
    record.data["large_copy_gbps"] = large_copy_gbps(setting.device, clock)
    record.data["under_load"] = machine.nvidia_smi() if setting.device != "cpu" else {}
    made = [make(setting) for make in rows]
    broken = False
    for i, row in enumerate(made):
        # The first is timed in any case.
        if broken or (i and time.monotonic() + row.seconds > deadline):
            record.leave_out(str(row))
        else:
            broken = _add_row(record, row, clock, row_seconds)
    record.finish()


def _add_row(record: Record, row: RowLike, clock: Clock, seconds: float) -> bool:
    """Time a row; whether the device is of no use any more."""
    try:
        result = time_row(row, clock, seconds)
    except Exception as error:
        record.problem(f"{row}: {type(error).__name__}: {str(error).strip()[:300]}")
        return "CUDA error" in str(error)
    record.add(result)
    print(line(result), flush=True)
    for name, text in row.failures.items():
        if name.split()[0] in row.setting.backends:
            record.problem(f"{row}: {name}: {text}")
    return False


def time_row(row: RowLike, clock: Clock, seconds: float) -> dict[str, Any]:
    """One row as plain dictionaries."""
    samples = interleave(row.contenders(), seconds, _LEAST_ROUNDS, clock)
    spreads = {name: Spread.of(times) for name, times in samples.items()}
    return row.result(spreads, min(len(times) for times in samples.values()))


def large_copy_gbps(device: str, clock: Clock, size: int = _LARGE_COPY_BYTES) -> float:
    """GB/s, read and written, of a copy that no cache holds; the fastest of some."""
    size = size if device != "cpu" else 2**24
    source, to = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    source.zero_()
    return max(2 * size / clock(lambda: to.copy_(source), 3) / 1e9 for _ in range(5))


def line(result: Mapping[str, Any]) -> str:
    """One row for the terminal."""
    times = ", ".join(f"{name} {s['median']:.4f}" for name, s in result["ms"].items())
    failed = "".join(f"; {name} FAILED: {text}" for name, text in result["failures"].items())
    return f"{result['subject']}, {result['case']}, {result['dtype']}: {times} ms{failed}"
