"""`python -m dlv3p_kernels explain PEER:...`: what `dk.accelerate` would do with a known model.

python -m dlv3p_kernels explain smp:DeepLabV3Plus:resnet50
python -m dlv3p_kernels explain timm:xception65
python -m dlv3p_kernels explain torchvision:deeplabv3_resnet50
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from torch import nn

from .explain import explain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its arguments; those of the process where left out.

    Returns:
        0; 2 where there is no such model.
    """
    parser = argparse.ArgumentParser(prog="python -m dlv3p_kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("explain", help="report on a model, with random weights")
    command.add_argument("model", help="smp:CLASS:ENCODER, timm:NAME or torchvision:NAME")
    command.add_argument("--output-stride", type=int, choices=(8, 16), help="smp's encoders")
    options = parser.parse_args(argv)
    try:
        model = _build(options.model, options.output_stride)
    except Exception as error:  # a missing package, an unknown name: one line says it
        print(f"explain: {options.model}: {error}", file=sys.stderr)
        return 2
    print(explain(model))
    return 0


def _build(text: str, output_stride: int | None) -> nn.Module:
    peer, *names = text.split(":")
    if peer == "smp" and len(names) == 2:
        smp = importlib.import_module("segmentation_models_pytorch")
        extra = {} if output_stride is None else {"encoder_output_stride": output_stride}
        model: nn.Module = getattr(smp, names[0])(names[1], encoder_weights=None, **extra)
    elif peer == "timm" and len(names) == 1:
        model = importlib.import_module("timm").create_model(names[0], pretrained=False)
    elif peer == "torchvision" and len(names) == 1:
        package = "segmentation" if "deeplab" in names[0] else ""
        home = importlib.import_module(f"torchvision.models.{package}".rstrip("."))
        weights = {"weights_backbone": None} if package else {}
        model = getattr(home, names[0])(weights=None, **weights)
    else:
        raise ValueError("expected smp:CLASS:ENCODER, timm:NAME or torchvision:NAME")
    return model


if __name__ == "__main__":
    sys.exit(main())
