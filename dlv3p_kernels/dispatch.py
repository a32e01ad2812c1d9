"""Which back end serves a call: the user's choice, and for each back end why it can not serve."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import torch
from torch.autograd import forward_ad

from . import _native

BackendName = Literal["auto", "cuda", "triton", "cpu", "reference"]
_NAMES: tuple[str, ...] = ("auto", "cuda", "triton", "cpu", "reference")

_current: str = "auto"


class backend:
    """Choose the back end that serves the ops, as a context manager or as a setter.

    `dk.backend("reference")` switches at once; used in a `with` statement it switches back at the
    end. The choice is global to the process, like `torch.use_deterministic_algorithms`.

    Args:
        name: `"auto"` takes the compiled kernels where they cover a call and stock PyTorch
            elsewhere; `"reference"` always runs stock PyTorch; `"cpu"`, `"cuda"` and `"triton"`
            insist on that back end and raise where it can not serve a call.

    Raises:
        ValueError: `name` is none of these.
    """

    def __init__(self, name: BackendName) -> None:
        global _current
        if name not in _NAMES:
            raise ValueError(f"backend: name must be one of {_NAMES}, got {name!r}")
        self._previous = _current
        _current = name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _current
        _current = self._previous


def current() -> str:
    """The name last chosen with `backend`, `"auto"` at the start."""
    return _current


_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def why_not(name: str, x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why the kernels of back end `name` can not serve a depthwise call; None where they can."""
    if name not in _DTYPES:
        return "it has no Triton kernel yet"
    library = _native.CPU if name == "cpu" else _native.CUDA
    if x.device.type != name:
        return f"the input is on {x.device}"
    if not library.loaded:
        return library.reason
    if x.dtype not in _DTYPES[name]:
        return f"no kernel for {x.dtype}"
    if weight.size(0) != x.size(1):
        return f"channel multiplier {weight.size(0) // max(x.size(1), 1)} is not 1"
    # Registered autograd formulas serve neither; forward mode would even drop tangents silently.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "transforms of torch.func and forward-mode derivatives run stock PyTorch"
    return None


Route = Literal["kernel", "onednn", "reference"]


def route(
    x: torch.Tensor, weight: torch.Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> Route:
    """Who serves this depthwise call: our kernels, oneDNN forward and our gradients, or stock.

    Raises:
        RuntimeError: a back end was insisted on and can not serve the call; says why.
    """
    if _current == "reference":
        return "reference"
    if _current != "auto":
        if reason := why_not(_current, x, weight):
            raise RuntimeError(f"backend {_current!r} can not serve depthwise_conv2d: {reason}")
        return "kernel"
    # The CUDA kernel is asked for by name until recorded GPU results show it ahead.
    if why_not("cpu", x, weight):
        return "reference"
    return "onednn" if _onednn_is_fast(x, padding, dilation) else "kernel"


# oneDNN computes this many neighbouring pixels at once and needs the left padding to fit in; beyond
# it falls back to a dense convolution: 13 to 40 times slower for 2048x33x33 (benchmarks/results/).
_AVX512 = torch.cpu._is_avx512_supported()
_ONEDNN_MOST_PADDING = 6 if _AVX512 else 3
_ONEDNN_DTYPES: tuple[torch.dtype, ...] = ()
if torch.backends.mkldnn.is_available() and torch.cpu._is_avx2_supported():
    _ONEDNN_DTYPES = (torch.float32, torch.bfloat16) if _AVX512 else (torch.float32,)


def _onednn_is_fast(x: torch.Tensor, padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether the forward is one that oneDNN, through stock PyTorch, does faster than the gather.

    So it is recorded (benchmarks/results/cpu/depthwise_kernel.json) for channels_last on its fast
    path. Contiguous input it reorders both ways, which only bfloat16 makes up for. Gradients of
    dilated convolutions have no fast path there; all gradients run on our kernels.
    """
    symmetric = padding[0] == padding[1] and padding[2] == padding[3]
    fits = max(*padding, *dilation) <= _ONEDNN_MOST_PADDING
    if x.dtype not in _ONEDNN_DTYPES or not (symmetric and fits):
        return False
    if x.is_contiguous():
        return x.dtype == torch.bfloat16
    return x.is_contiguous(memory_format=torch.channels_last)
