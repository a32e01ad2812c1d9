"""Part `bench`: ours, stock PyTorch and a copy in turns; a row is timed once it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from dlv3p_kernels.bench import machine
from dlv3p_kernels.bench.timing import Clock, Spread, interleave

from . import cases
from .cases import Case
from .contenders import COPY, Row, Setting
from .record import Record
from .subjects import SUBJECTS

_LEAST_ROUNDS = 5
_ROW_SECONDS = 0.5
_LARGE_COPY_BYTES = 2**30


def plan(depthwise: Sequence[Case], norm: Sequence[Case]) -> Iterator[Callable[[Setting], Row]]:
    """The rows in the order of their weight: bfloat16 first, the convolution before the rest."""
    for dtype in cases.DTYPES.values():
        for subject in SUBJECTS:
            for case in depthwise if subject.family == "depthwise" else norm:
                yield partial(Row, subject, case, dtype)


def run(
    record: Record,
    setting: Setting,
    clock: Clock,
    rows: Sequence[Callable[[Setting], Row]],
    deadline: float,
    row_seconds: float = _ROW_SECONDS,
) -> None:
    """Time the rows until the deadline (of `time.monotonic`)."""
    record.data["large_copy_gbps"] = large_copy_gbps(setting.device, clock)
    record.data["under_load"] = machine.nvidia_smi() if setting.device != "cpu" else {}
    for i, make in enumerate(rows):
        broken = _add_row(record, make(setting), clock, row_seconds)
        if broken or time.monotonic() > deadline:
            record.leave_out(*(str(left(setting)) for left in rows[i + 1 :]))
            break
    record.finish()


def _add_row(record: Record, row: Row, clock: Clock, seconds: float) -> bool:
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


def time_row(row: Row, clock: Clock, seconds: float) -> dict[str, Any]:
    """One row as plain dictionaries."""
    samples = interleave(row.contenders(), seconds, _LEAST_ROUNDS, clock)
    spreads = {name: Spread.of(times) for name, times in samples.items()}
    moved = row.subject.bytes_moved(row.case, row.dtype)
    copied = 2 * row.dtype.itemsize * row.case.n * row.case.c * row.case.size**2
    copy_gbps = _gbps(copied, spreads[COPY])
    gbps = {name: _gbps(moved, s) for name, s in spreads.items() if name != COPY}
    return {
        "subject": row.subject.name,
        "family": row.subject.family,
        "forward": row.subject.forward,
        "case": str(row.case),
        "channels": row.case.c,
        "dtype": str(row.dtype).removeprefix("torch."),
        "bytes": moved,
        "rounds": len(samples[COPY]),
        "ms": {name: asdict(spread) for name, spread in spreads.items()},
        "gbps": {**gbps, COPY: copy_gbps},
        "of_copy": {name: value / copy_gbps for name, value in gbps.items()},
        "failures": row.failures,
    }


def _gbps(moved: int, spread: Spread) -> float:
    return moved / spread.median / 1e6


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
