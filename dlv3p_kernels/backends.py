"""The back ends: where their ops are registered, what they take, and whether they are there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import _native


@dataclass(frozen=True)
class Backend:
    """One set of kernels.

    Attributes:
        name: as in `dk.backend(name)`.
        namespace: its ops are `torch.ops.<namespace>.*`.
        device: the type of the devices whose tensors it takes.
        dtypes: the element types it has kernels for.
        missing: why it can not be used in this process; None where it can.
    """

    name: str
    namespace: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]

    def why_not(self, x: torch.Tensor) -> str | None:
        """Why it can not serve an op on `x`; None where it can."""
        if x.device.type != self.device:
            return f"it takes tensors on {self.device}, the input is on {x.device}"
        if reason := self.missing():
            return reason
        if x.dtype not in self.dtypes:
            return f"it has no kernel for {x.dtype}"
        return None


def triton_interpreted() -> bool:
    """Whether Triton kernels run in the interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):  # blocked
        return False


_TRITON_INSTALLED = _triton_installed()
_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu",
            "dlv3p",
            "cpu",
            (*_HALF_AND_SINGLE, torch.float64),
            lambda: None if _native.CPU.loaded else _native.CPU.reason,
        ),
        Backend(
            "cuda",
            "dlv3p",
            "cuda",
            _HALF_AND_SINGLE,
            lambda: None if _native.CUDA.loaded else _native.CUDA.reason,
        ),
        Backend(
            "triton",
            "dlv3p_triton",
            "cpu" if triton_interpreted() else "cuda",
            _HALF_AND_SINGLE,
            lambda: None if _TRITON_INSTALLED else "triton is not installed",
        ),
    )
}
