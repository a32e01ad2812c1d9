"""`python -m dlv3p_kernels explain MODEL`: what `dk.accelerate` would do with a model.

python -m dlv3p_kernels explain smp:DeepLabV3Plus:resnet50
python -m dlv3p_kernels explain timm:xception65
python -m dlv3p_kernels explain torchvision:deeplabv3_resnet50
python -m dlv3p_kernels explain transformers:MobileNetV2ForSemanticSegmentation
python -m dlv3p_kernels explain my_models.py:make_model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import model_names
from .explain import explain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its arguments; those of the process where left out.

    Returns:
        0; 2 where there is no such model, or its package can not be imported.
    """
    parser = argparse.ArgumentParser(prog="python -m dlv3p_kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("explain", help="report on a model, with random weights")
    forms = ", ".join(model_names.FORMS)
    command.add_argument("model", help=f"one of {forms}; a factory is called without arguments")
    command.add_argument("--output-stride", type=int, choices=(8, 16), help="of smp's encoders")
    options = parser.parse_args(argv)
    try:
        model = model_names.build(options.model, options.output_stride)
    except Exception as error:  # a missing package, an unknown name: one line says it
        print(f"explain: {options.model}: {error}", file=sys.stderr)
        return 2
    print(explain(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
