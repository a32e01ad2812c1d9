"""Whole layers against stock layers: separable convolutions, ASPP, decoder; both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from dlv3p_kernels import dispatch
from dlv3p_kernels.bench.layers import Bench
from dlv3p_kernels.bench.timing import Call, Spread

from . import floors
from .cases import LAYOUTS, Layer
from .contenders import Setting, rotating

_LAYOUT = "channels_last"
STOCK, COMPILED = f"stock {_LAYOUT}", f"compiled {_LAYOUT}"
# With CUDA graphs the inputs would be copied at every call; launches are not timed anyway.
_MODE = "max-autotune-no-cudagraphs"
_COMPILING_SECONDS = 75.0
_DTYPE = torch.bfloat16


def plan(layers: Sequence[Layer], compiled: bool = True) -> Iterator[Callable[[Setting], LayerRow]]:
    """Ours and stock layers first; then the same against compiled ones, which take their time."""
    for against in (False, True) if compiled else (False,):
        for layer in layers:
            yield from (partial(LayerRow, layer, training, against) for training in (False, True))


@dataclass
class LayerRow:
    """The contenders of one layer; what failed is in `failures` by contender."""

    layer: Layer
    training: bool
    compiled: bool
    setting: Setting
    failures: dict[str, str] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        against = " against compiled" if self.compiled else ""
        return f"{self.layer.case}, {self._direction}{against}"

    @property
    def seconds(self) -> float:
        """What it takes at least."""
        return _COMPILING_SECONDS if self.compiled else 0.0

    @property
    def _direction(self) -> str:
        return "training" if self.training else "inference"

    def contenders(self) -> dict[str, Call]:
        """Those that run and whose results are right."""
        bench = self.layer.case.bench(_DTYPE, LAYOUTS[_LAYOUT], self.setting.device)
        exact = bench.exact(self.training)
        stock = bench.results(bench.stock, self.training)
        copies = bench.copies(self.setting.copies(sum(t.nbytes for t in bench.inputs)))
        calls: dict[str, Call] = {}
        for name, layer, backend in self._makers(bench):
            try:
                with dispatch.backend(backend):
                    results = bench.results(layer, self.training)
                    if wrong := exact.objections(results, stock):
                        self.failures[name] = "; ".join(wrong)
                        # How torch.compile rounds is not for us to judge; its time counts.
                        if name != COMPILED:
                            continue
                    if self.training:
                        self.memory[name] = asdict(bench.memory(layer))
            except Exception as error:  # whatever it is, the other contenders go on
                self.failures[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
                continue
            directions = [b.step(layer) if self.training else b.infer(layer) for b in copies]
            calls[name] = partial(_on, backend, rotating(directions))
        return calls

    def _makers(self, bench: Bench) -> Iterator[tuple[str, nn.Module, dispatch.BackendName]]:
        """Name, layer and back end."""
        yield STOCK, bench.stock, "auto"
        if self.compiled:
            torch._dynamo.reset()
            compiled = torch.compile(bench.stock, mode=_MODE, dynamic=False)
            yield COMPILED, cast("nn.Module", compiled), "auto"
        for backend in self.setting.backends:
            yield f"{backend} {_LAYOUT}", bench.ours, cast("dispatch.BackendName", backend)

    def result(self, spreads: Mapping[str, Spread], rounds: int) -> dict[str, Any]:
        """Times, share of the floor and memory, ready for JSON."""
        floor = floors.milliseconds(self.layer.case, self.training)
        return {
            "subject": f"{self.layer.name}, {self._direction}",
            "case": str(self.layer.case),
            "dtype": str(_DTYPE).removeprefix("torch."),
            "rounds": rounds,
            "ms": {name: asdict(spread) for name, spread in spreads.items()},
            "floor_ms": floor,
            "of_floor": {name: floor / spread.median for name, spread in spreads.items()},
            "memory": self.memory,
            "goal": asdict(self.layer.training if self.training else self.layer.inference),
            "failures": self.failures,
        }


def _on(backend: dispatch.BackendName, call: Call) -> object:
    with dispatch.backend(backend):
        return call()
