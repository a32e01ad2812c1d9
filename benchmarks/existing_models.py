"""Time models of other packages as they are and after `dk.accelerate`, in turns.

Usage: python benchmarks/existing_models.py [MODEL ...] [--output DIR] [--help]

MODEL is an encoder of segmentation_models_pytorch's DeepLabV3Plus. Nothing is timed before results
agree. Prints a line for each row; records are those of `dlv3p bench`, which also prints their table
(`dlv3p bench --table DIR/cpu/existing_models.json`).
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlv3p_kernels as dk
from dlv3p_kernels.bench import accuracy, machine, memory, report, timing
from dlv3p_kernels.bench.goals import Goal
from dlv3p_kernels.bench.layers import Timed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "peers"))
import torchvision_operators

OP = "existing_models"
MODELS = ("tu-xception65", "resnet50", "mobilenet_v2", "efficientnet-b0")
CLASSES = 21
# A training step with our loss, by encoder and output stride.
GOALS = {
    ("tu-xception65", 16): 1.6, ("tu-xception65", 8): 2.0,
    ("resnet50", 16): 1.25, ("resnet50", 8): 1.5,
    ("mobilenet_v2", 16): 1.5, ("efficientnet-b0", 16): 1.5,
}  # fmt: skip
NOT_SLOWER = Goal(True, 0.97, None)
_CHECKED_SIZE = 64

Context = Callable[[], AbstractContextManager[object]]


def main() -> int:
    """Time what the command line asks for; 1 where a result was wrong."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    facts = machine.facts()
    rows = []
    for name in options.models or MODELS:
        for stride in options.output_stride:
            for dtype in options.dtype:
                row = _row(name, stride, dtype, options)
                rows.append(row)
                print(_line(row), flush=True)
                # After each: a row takes minutes, and may be the last one.
                _write({"op": OP, "machine": facts, "rows": rows}, options)
    return int(any(row["failures"] for row in rows))


def _write(recorded: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        report.write_json(options.json, recorded)
    if options.output:
        report.write_json(options.output / "cpu" / f"{OP}.json", recorded)
        (options.output / "cpu" / f"{OP}.md").write_text(report.markdown(recorded))


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--output-stride", nargs="+", type=int, choices=(8, 16), default=[16])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contiguous", action="store_true", help="instead of channels_last")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"write DIR/cpu/{OP}.*")
    return parser


def _row(name: str, stride: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    stock = _model(name, stride).to(memory_format=layout)  # type: ignore[call-overload]
    ours = dk.accelerate(copy.deepcopy(stock))
    context = _context(dtype)
    row: dict[str, Any] = {
        "case": f"{name} OS{stride} {options.batch}x{options.size}x{options.size}",
        "dtype": dtype,
        "layout": "contiguous" if options.contiguous else "channels_last",
        "route": "cpu" if dk.status().cpu.loaded else "reference",
        "failures": _failures(stock, ours, dtype, context, layout),
        "inference": None,
        "step": None,
        "step_with_our_loss": None,
        "memory": None,
    }
    if row["failures"]:
        return row
    shape = (options.batch, 3, options.size, options.size)
    x = torch.randn(shape).to(memory_format=layout)
    target = torch.randint(0, CLASSES, (options.batch, *shape[2:]))
    steps = {
        "stock": _Step(stock, _stock_loss, x, target, context),
        "ours": _Step(ours, _stock_loss, x, target, context),
        "our loss": _Step(ours, _our_loss, x, target, context),
    }
    samples = timing.interleave(dict(steps), 0.0, options.rounds)
    aim = GOALS.get((name, stride))
    row["step"] = _timed(samples, "ours", NOT_SLOWER)
    row["step_with_our_loss"] = _timed(
        samples, "our loss", None if aim is None else Goal(False, aim, None)
    )
    row["memory"] = {n: asdict(step.memory()) for n, step in steps.items()}
    single = x[:1].contiguous(memory_format=layout)
    models = {"stock": stock.eval(), "ours": ours.eval()}
    calls = {n: _inference(model, single, context) for n, model in models.items()}
    row["inference"] = _timed(timing.interleave(calls, 0.0, options.rounds), "ours", NOT_SLOWER)
    return row


def _timed(samples: dict[str, list[float]], name: str, goal: Goal | None) -> dict[str, Any]:
    ratio = timing.ratios(samples["stock"], samples[name])
    verdict = None if goal is None else goal.verdict(ratio.median, 0.0)
    before, after = (timing.Spread.of(samples[n]) for n in ("stock", name))
    return asdict(Timed(before, after, ratio, len(samples[name]), goal, verdict))


def _model(name: str, stride: int) -> nn.Module:
    torchvision_operators.declare()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model: nn.Module = smp.DeepLabV3Plus(
        name, encoder_weights=None, classes=CLASSES, encoder_output_stride=stride
    )
    return model


def _failures(
    stock: nn.Module, ours: nn.Module, dtype: str, context: Context, layout: torch.memory_format
) -> list[str]:
    """What is not right about a training pass without dropout, in float64 as the exact one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, _CHECKED_SIZE, _CHECKED_SIZE, generator=generator)
    exact = _without_dropout(stock).double()(x.double()).detach()
    x = x.to(memory_format=layout)
    errors = []
    for model in (stock, ours):
        with context():
            result = _without_dropout(model)(x)
        errors.append(float((result.detach().double() - exact).norm() / exact.norm()))
    floor = accuracy.rounding_unit(getattr(torch, dtype))
    limit = accuracy.allowed(errors[0], floor)
    return [] if errors[1] <= limit else [f"output off by {errors[1]:.3g}, allowed {limit:.3g}"]


def _without_dropout(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    if hasattr(twin.encoder, "_drop_connect_rate"):
        twin.encoder._drop_connect_rate = 0.0
    return twin


def _context(dtype: str) -> Context:
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast("cpu", torch.bfloat16)


def _stock_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(model(x), target)


def _our_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Loss of the logits before they are resized, as docs/accelerate.md tells."""
    parts = dict(model.named_children())
    logits = parts["segmentation_head"].get_submodule("0")(parts["decoder"](parts["encoder"](x)))
    return dk.upsample_cross_entropy(logits, target, align_corners=True)


class _Step:
    """A training step; the gradients and the optimiser's state live on."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
        x: Tensor,
        target: Tensor,
        context: Context,
    ) -> None:
        self.model, self.loss, self.x, self.target, self.context = model, loss, x, target, context
        self.optimiser = torch.optim.SGD(model.parameters(), 1e-3, 0.9)

    def forward(self) -> Tensor:
        self.optimiser.zero_grad()
        with self.context():
            return self.loss(self.model, self.x, self.target)

    def __call__(self) -> None:
        self.forward().backward()
        self.optimiser.step()

    def memory(self) -> memory.Memory:
        return memory.of_step(self.forward, Tensor.backward, self.model.parameters())


def _inference(model: nn.Module, x: Tensor, context: Context) -> timing.Call:
    def infer() -> Tensor:
        with torch.inference_mode(), context():
            result: Tensor = model(x)
            return result

    return infer


def _line(row: dict[str, Any]) -> str:
    if row["failures"]:
        return f"{row['case']} {row['dtype']}: FAILED, {'; '.join(row['failures'])}"
    texts = []
    for part in ("inference", "step", "step_with_our_loss"):
        timed = row[part]
        times = f"{timed['stock_ms']['median']:.0f} -> {timed['ours_ms']['median']:.0f} ms"
        texts.append(f"{part.replace('_', ' ')} {times} ({timed['ratio']['median']:.2f}x)")
    kept = row["memory"]["our loss"]["kept"] / row["memory"]["stock"]["kept"]
    return f"{row['case']} {row['dtype']}: {', '.join(texts)}, kept {kept:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
