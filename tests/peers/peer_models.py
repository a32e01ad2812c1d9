"""Peers' models with random weights; dropout is off, as its masks depend on dtype and layout."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
import torchvision_operators
from torch import nn

_PACKAGES = {
    "smp": "segmentation_models_pytorch",
    "timm": "timm",
    "torchvision": "torchvision.models",
    "transformers": "transformers",
}


def package(peer: str) -> ModuleType:
    """The peer, or the reason to skip."""
    torchvision_operators.declare()
    try:
        return importlib.import_module(_PACKAGES[peer])
    except ImportError as error:
        pytest.skip(f"{_PACKAGES[peer]} cannot be imported: {error}")


def build(text: str, output_stride: int = 16) -> nn.Module:
    """`smp:CLASS:ENCODER`, `timm:NAME`, `torchvision:NAME` or `transformers:CLASS`."""
    peer, name, *rest = text.split(":")
    home = package(peer)
    torch.manual_seed(0)
    if peer == "smp":
        options = {"encoder_output_stride": output_stride} if "DeepLab" in name else {}
        model = getattr(home, name)(rest[0], encoder_weights=None, classes=5, **options)
    elif peer == "timm":
        model = home.create_model(name, pretrained=False, num_classes=5)
    elif peer == "torchvision":
        home = importlib.import_module("torchvision.models.segmentation")
        model = getattr(home, name)(weights=None, weights_backbone=None, num_classes=5)
    else:
        config = home.MobileNetV2Config(num_labels=5, depth_multiplier=0.5, output_stride=8)
        model = getattr(home, name)(config)
    return _settled(model)


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "_drop_connect_rate"):
            module._drop_connect_rate = 0.0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model
