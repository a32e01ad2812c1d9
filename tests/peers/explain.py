"""`python -m dlv3p_kernels explain`, where the registry's torchvision does not load.

Usage: python tests/peers/explain.py smp:DeepLabV3Plus:resnet50
"""

from __future__ import annotations

import sys

import torchvision_operators

from dlv3p_kernels.__main__ import main

if __name__ == "__main__":
    torchvision_operators.declare()
    sys.exit(main(["explain", *sys.argv[1:]]))
