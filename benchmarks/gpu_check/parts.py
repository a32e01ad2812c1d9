"""The parts of the check by name, and what each of them gets to know."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dlv3p_kernels.backends import BACKENDS
from dlv3p_kernels.bench import machine
from dlv3p_kernels.bench.timing import Clock, CudaClock, cpu_clock

from . import bench, cases, dispatch_probe, layer_rows, parity, sanitize
from .contenders import Setting
from .record import Record

# Inputs of successive calls take this much together, several times any L2 cache.
_ROTATE_BYTES = 2**28
_DRY_ROW_SECONDS = 0.01


@dataclass(frozen=True)
class Context:
    """Where to run and to write.

    `dry` is a run on the CPU that only shows that the check itself works.
    """

    folder: Path
    seconds: float
    backends: tuple[str, ...]
    commit: str | None = None
    dry: bool = False

    @property
    def device(self) -> str:
        """Of the tensors."""
        return "cpu" if self.dry else "cuda"

    @property
    def usable(self) -> tuple[str, ...]:
        """The back ends that are there."""
        return tuple(name for name in self.backends if BACKENDS[name].missing() is None)

    def machine(self) -> dict[str, object]:
        """What the results depend on."""
        facts = machine.facts()
        if facts["git_commit"] is None:
            facts["git_commit"] = self.commit
        return {**facts, "dry_run": True} if self.dry else {**facts, **machine.cuda_facts()}


def results_folder(output: Path, dry: bool) -> Path:
    """A folder for the device; no dry run can land in that of a GPU."""
    name = "dry run" if dry else torch.cuda.get_device_name()
    return output / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run(name: str, context: Context) -> None:
    """Run one part to its end or to its time limit; what it found is in its file."""
    deadline = time.monotonic() + context.seconds
    record = Record(context.folder, name, context.machine())
    for backend in context.backends:
        if reason := BACKENDS[backend].missing():
            record.problem(f"{backend} is missing: {reason}")
    _RUN[name](record, context, deadline)


def _parity(record: Record, context: Context, deadline: float) -> None:
    shares = parity.shares(context.usable, parity.test_files(), os.cpu_count() or 1)
    parity.run(record, context.device, shares, deadline)


def _sanitize(record: Record, context: Context, deadline: float) -> None:
    sanitize.run(record, sanitize.find(), context.device, context.usable, deadline)


def _dispatch(record: Record, context: Context, deadline: float) -> None:
    probes = dispatch_probe.plan(cases.DRY_DEPTHWISE if context.dry else cases.DEPTHWISE)
    dispatch_probe.run(record, context.device, _clock(context), list(probes), deadline)


def _bench(record: Record, context: Context, deadline: float) -> None:
    rows = bench.plan(cases.DRY_FAMILIES if context.dry else cases.FAMILIES)
    _timed(record, context, deadline, list(rows))


def _layers(record: Record, context: Context, deadline: float) -> None:
    layers = cases.DRY_LAYERS if context.dry else cases.LAYERS
    _timed(record, context, deadline, list(layer_rows.plan(layers, compiled=not context.dry)))


def _timed(
    record: Record, context: Context, deadline: float, rows: Sequence[bench.MakeRow]
) -> None:
    setting = Setting(context.device, context.usable, _ROTATE_BYTES)
    seconds = bench.ROW_SECONDS
    if context.dry:
        setting = replace(setting, rotate_bytes=0, compiled_dtypes=())
        seconds = _DRY_ROW_SECONDS
    bench.run(record, setting, _clock(context), rows, deadline, seconds)


def _clock(context: Context) -> Clock:
    return cpu_clock if context.dry else CudaClock()


_RUN: dict[str, Callable[[Record, Context, float], None]] = {
    "parity": _parity,
    "sanitize": _sanitize,
    "dispatch": _dispatch,
    "bench": _bench,
    "layers": _layers,
}
