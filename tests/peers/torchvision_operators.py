"""The registry's torchvision does not load beside a torch without CUDA: it asks for operators.

Declaring the two that it registers kernels of makes it, timm and segmentation_models_pytorch
importable. They are never called here.
"""

from __future__ import annotations

import importlib.util

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []


def declare() -> None:
    """Declare the operators where torchvision is there and they are not."""
    if _LIBRARIES or importlib.util.find_spec("torchvision") is None:
        return
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _LIBRARIES.append(library)
