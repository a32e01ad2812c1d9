"""Who takes part in the timing of a row, on which copies of its tensors, and who is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlv3p_kernels import dispatch
from dlv3p_kernels.bench import accuracy
from dlv3p_kernels.bench.timing import Call, Spread

from .cases import LAYOUTS, Case
from .subjects import Results, Subject, Tensors, Wrap

# The right results are computed on so many channels, spread over all blocks.
_CHECKED_CHANNELS = 32
_MOST_COPIES = 8
COPY = "copy"
STOCK = "stock contiguous"


@dataclass(frozen=True)
class Setting:
    """Where and how rows are run.

    `rotate_bytes`: calls go through copies of the tensors that together take this much, so that
    none of them finds its input in the cache.
    """

    device: str
    backends: tuple[str, ...]
    rotate_bytes: int
    compiled_dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)

    def copies(self, moved: int) -> int:
        """How many copies of tensors of so many bytes calls go through."""
        return max(1, min(_MOST_COPIES, -(-self.rotate_bytes // moved)))


@dataclass
class Row:
    """The contenders of one subject, case and dtype; what failed is in `failures` by contender."""

    subject: Subject
    case: Case
    dtype: torch.dtype
    setting: Setting
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.subject.name}, {self.case}, {str(self.dtype).removeprefix('torch.')}"

    def contenders(self) -> dict[str, Call]:
        """Those that run and whose results are right, each with one call that warms it up, and a
        copy of the input.
        """
        tensors = self.subject.tensors(self.case, self.dtype, self.setting.device)
        exact = _Exact(self.subject, self.case, tensors)
        thunks: dict[str, list[Callable[[], Results]]] = {}
        stock_results: Results | None = None
        for name, layout, make in self._makers():
            try:
                made = [make(t) for t in self._copies(tensors, LAYOUTS[layout])]
                results = made[0]()
                if name == STOCK:
                    stock_results = results
                if wrong := exact.objections(results, stock_results or results):
                    self.failures[name] = "; ".join(wrong)
                    continue
            except Exception as error:  # whatever it is, the other contenders go on
                self.failures[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
                continue
            thunks[name] = made
        calls = {name: rotating(made) for name, made in thunks.items()}
        return {**calls, COPY: self._copy(tensors["x"])}

    def result(self, spreads: Mapping[str, Spread], rounds: int) -> dict[str, Any]:
        """Times and bandwidths, ready for JSON."""
        moved = self.subject.bytes_moved(self.case, self.dtype)
        copied = 2 * self.dtype.itemsize * self.case.n * self.case.c * self.case.size**2
        copy_gbps = _gbps(copied, spreads[COPY])
        gbps = {name: _gbps(moved, s) for name, s in spreads.items() if name != COPY}
        return {
            "subject": self.subject.name,
            "family": self.subject.family,
            "forward": self.subject.forward,
            "case": str(self.case),
            "channels": self.case.c,
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": moved,
            "rounds": rounds,
            "ms": {name: asdict(spread) for name, spread in spreads.items()},
            "gbps": {**gbps, COPY: copy_gbps},
            "of_copy": {name: value / copy_gbps for name, value in gbps.items()},
            "failures": self.failures,
        }

    def _makers(self) -> Iterator[tuple[str, str, Callable[[Tensors], Callable[[], Results]]]]:
        """Name, layout, and what makes the call from the tensors; stock PyTorch first."""
        subject, case = self.subject, self.case
        for layout in reversed(LAYOUTS):
            yield f"stock {layout}", layout, lambda t: subject.stock(case, t, _plain)
        if self.dtype in self.setting.compiled_dtypes:
            wrap = compiling_once()
            for layout in LAYOUTS:
                yield f"compiled {layout}", layout, lambda t: subject.stock(case, t, wrap)
        for backend, layout in itertools.product(self.setting.backends, LAYOUTS):
            call = partial(subject.ours, dispatch.operators(backend), case)
            yield f"{backend} {layout}", layout, partial(partial, call)

    def _copies(self, tensors: Tensors, layout: torch.memory_format) -> list[Tensors]:
        count = self.setting.copies(self.subject.bytes_moved(self.case, self.dtype))
        return [
            {name: _in_layout(t, layout).clone() for name, t in tensors.items()}
            for _ in range(count)
        ]

    def _copy(self, x: Tensor) -> Call:
        count = self.setting.copies(2 * x.nbytes)
        pairs = [(torch.empty_like(x), x.clone()) for _ in range(count)]
        return rotating([partial(to.copy_, source) for to, source in pairs])


class _Exact:
    """The results in float64 on some channels, and how far off others may be."""

    def __init__(self, subject: Subject, case: Case, tensors: Tensors) -> None:
        checked = _CHECKED_CHANNELS if subject.by_channel else case.c
        spread = torch.linspace(0, case.c - 1, min(case.c, checked))
        self.few = spread.round().long().unique()
        self.by_channel = subject.by_channel
        self.names = subject.results
        few_case = Case(case.n, len(self.few), case.size, case.dilation, case.stride)
        wide = {name: _wide(self._pick(t)) for name, t in tensors.items()}
        exact = tuple(t.detach() for t in subject.stock(few_case, wide, _plain)())
        self.values = [_array(t) for t in exact]
        self.magnitudes = [_array(t) for t in subject.magnitudes(few_case, wide, exact)]

    def objections(self, results: Results, stock: Results) -> list[str]:
        """What is less exact than the accuracy rule allows."""
        found = []
        for name, result, theirs, value, magnitude in zip(
            self.names, results, stock, self.values, self.magnitudes, strict=True
        ):
            error = accuracy.error(self._pick(result), value)
            limit = accuracy.allowed(
                accuracy.error(self._pick(theirs), value),
                accuracy.floor(result.dtype, value, magnitude),
            )
            if not error <= limit:
                found.append(f"{name}: error {error:.3g}, allowed {limit:.3g}")
        return found

    def _pick(self, t: Tensor) -> Tensor:
        """The channels of a map (N, C, H, W), a vector (C) or filters (C, 1, kh, kw)."""
        if not self.by_channel:
            return t
        few = self.few.to(t.device)
        return t[:, few] if t.dim() == 4 and t.size(1) > 1 else t[few]


def compiling_once() -> Wrap:
    """`torch.compile` that compiles a function once for all copies of a row's tensors."""
    torch._dynamo.reset()
    # Graphs are kept for more than one backward.
    torch._functorch.config.donated_buffer = False
    made: dict[object, Callable[..., object]] = {}

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        code = function.__code__
        if code not in made:
            made[code] = torch.compile(function, dynamic=False)
        return made[code]

    return wrap


def _gbps(moved: int, spread: Spread) -> float:
    return moved / spread.median / 1e6


def _wide(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _array(t: Tensor) -> np.ndarray:
    return t.detach().cpu().numpy()


def _in_layout(t: Tensor, layout: torch.memory_format) -> Tensor:
    """Maps in the given layout; vectors and filters as they are."""
    return t.contiguous(memory_format=layout) if t.dim() == 4 and t.size(1) > 1 else t


def rotating(calls: Sequence[Call]) -> Call:
    """Each of the calls in its turn."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _plain(function: Callable[..., object]) -> Callable[..., object]:
    return function
