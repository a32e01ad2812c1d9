"""Time models of other packages as they are and after `dk.accelerate`, in turns.

Usage: python benchmarks/accelerate.py [MODEL ...] [--help]

MODEL is an encoder of segmentation_models_pytorch's DeepLabV3Plus. Writes a table, and with --json
every figure.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlv3p_kernels as dk
from dlv3p_kernels.bench import machine, timing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "peers"))
import torchvision_operators

MODELS = ("tu-xception65", "resnet50", "mobilenet_v2", "efficientnet-b0")
CLASSES = 21


def main() -> None:
    """Time what the command line asks for."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models or MODELS:
        for stride in options.output_stride:
            for dtype in options.dtype:
                row = _row(name, stride, dtype, options)
                rows.append(row)
                print(_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--output-stride", nargs="+", type=int, default=[16])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contiguous", action="store_true", help="instead of channels_last")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _row(name: str, stride: int, dtype: str, options: argparse.Namespace) -> dict[str, object]:
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    stock = _model(name, stride).to(memory_format=layout)  # type: ignore[call-overload]
    ours = dk.accelerate(copy.deepcopy(stock))
    shape = (options.batch, 3, options.size, options.size)
    x = torch.randn(shape).to(memory_format=layout)
    target = torch.randint(0, CLASSES, (options.batch, *shape[2:]))
    context = _context(dtype)
    row: dict[str, object] = {"model": name, "output_stride": stride, "dtype": dtype}
    training: dict[str, timing.Call] = {
        "stock": _step(stock, _stock_loss, x, target, context),
        "ours": _step(ours, _stock_loss, x, target, context),
        "with our loss": _step(ours, _our_loss, x, target, context),
    }
    row["training"] = _times(training, options.rounds)
    for model in (stock, ours):
        model.eval()
    single = x[:1].contiguous(memory_format=layout)
    inference = {n: _inference(m, single, context) for n, m in (("stock", stock), ("ours", ours))}
    row["inference, batch 1"] = _times(inference, options.rounds)
    return row


def _model(name: str, stride: int) -> nn.Module:
    torchvision_operators.declare()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model: nn.Module = smp.DeepLabV3Plus(
        name, encoder_weights=None, classes=CLASSES, encoder_output_stride=stride
    )
    return model


def _context(dtype: str) -> Callable[[], AbstractContextManager[object]]:
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


def _step(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    context: Callable[[], AbstractContextManager[object]],
) -> timing.Call:
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, 0.9)

    def step() -> None:
        optimiser.zero_grad()
        with context():
            value = loss(model, x, target)
        value.backward()
        optimiser.step()

    return step


def _inference(
    model: nn.Module, x: Tensor, context: Callable[[], AbstractContextManager[object]]
) -> timing.Call:
    def infer() -> Tensor:
        with torch.inference_mode(), context():
            result: Tensor = model(x)
            return result

    return infer


def _times(calls: dict[str, timing.Call], rounds: int) -> dict[str, dict[str, float]]:
    samples = timing.interleave(calls, 0.0, rounds)
    figures = {}
    for name, times in samples.items():
        ratio = timing.ratios(samples["stock"], times)
        figures[name] = {
            "milliseconds": timing.Spread.of(times).median,
            "stock over it": ratio.median,
            "lower quartile": ratio.lower,
            "upper quartile": ratio.upper,
        }
    return figures


def _line(row: dict[str, object]) -> str:
    parts = [f"| {row['model']} | {row['output_stride']} | {row['dtype']} |"]
    for what in ("training", "inference, batch 1"):
        figures = row[what]
        assert isinstance(figures, dict)
        parts.append(f"{figures['stock']['milliseconds']:.0f} ms |")
        parts += [f"{f['stock over it']:.2f} |" for n, f in figures.items() if n != "stock"]
    return " ".join(parts)


if __name__ == "__main__":
    main()
