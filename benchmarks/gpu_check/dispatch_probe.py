"""Part `dispatch`: what stock PyTorch runs for each depthwise case, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dlv3p_kernels.bench.timing import Clock

from .cases import DTYPES, LAYOUTS, Case
from .record import Record
from .subjects import DepthwiseBackward, DepthwiseForward, Subject, Tensors

_REPEATS = 3
_NAME_LENGTH = 120


class Probe(NamedTuple):
    """One convolution of stock PyTorch."""

    case: Case
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{self.case}, {self.dtype}, {self.layout}"


def plan(cases: Sequence[Case]) -> Iterator[Probe]:
    """bfloat16 first."""
    for dtype in DTYPES:
        for layout in LAYOUTS:
            yield from (Probe(case, dtype, layout) for case in cases)


def run(
    record: Record, device: str, clock: Clock, probes: Sequence[Probe], deadline: float
) -> None:
    """Probe until the deadline (of `time.monotonic`)."""
    for i, probe in enumerate(probes):
        if time.monotonic() > deadline:
            record.leave_out(*map(str, probes[i:]))
            break
        row = _row(probe, device, clock)
        record.add(row)
        print(f"{probe}: {row.get('backend', row.get('failure'))}", flush=True)
    record.finish()


def _row(probe: Probe, device: str, clock: Clock) -> dict[str, Any]:
    row: dict[str, Any] = {**probe._asdict(), "case": str(probe.case)}
    try:
        return {**row, **_facts(probe, device, clock)}
    except RuntimeError as error:  # a combination that stock PyTorch does not have
        return {**row, "failure": str(error).strip()[:300]}


def _facts(probe: Probe, device: str, clock: Clock) -> dict[str, Any]:
    case, dtype = probe.case, DTYPES[probe.dtype]
    layout = LAYOUTS[probe.layout]
    backward = DepthwiseBackward()
    tensors = backward.tensors(case, dtype, device)
    tensors = {
        name: t if name == "weight" else t.contiguous(memory_format=layout)
        for name, t in tensors.items()
    }
    return {
        "backend": _backend(case, tensors["x"], tensors["weight"]),
        "forward": _direction(DepthwiseForward(), probe, tensors, clock),
        "backward": _direction(backward, probe, tensors, clock),
    }


def _backend(case: Case, x: Tensor, weight: Tensor) -> str:
    stride, _, dilation = case.geometry
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    chosen = torch._C._select_conv_backend(
        x, weight, None, stride, dilation, dilation, False, [0, 0], case.c
    )
    return str(chosen).split(".")[-1]


def _direction(subject: Subject, probe: Probe, tensors: Tensors, clock: Clock) -> dict[str, Any]:
    call = subject.stock(probe.case, tensors, lambda function: function)
    results = call()
    milliseconds = 1e3 * clock(call, _REPEATS)
    moved = subject.bytes_moved(probe.case, DTYPES[probe.dtype])
    return {
        "ms": milliseconds,
        "gbps": moved / milliseconds / 1e6,
        "channels_last": results[0].is_contiguous(memory_format=torch.channels_last),
        "kernels": kernels(call, tensors["x"].device.type),
    }


def kernels(call: Callable[[], object], device: str) -> list[str]:
    """Names of what runs on the device (of operators where that is the CPU), the slowest first."""
    on_cuda = device == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        call()
        if on_cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    return [event.key[:_NAME_LENGTH] for event in events]
