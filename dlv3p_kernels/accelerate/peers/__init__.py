"""Layers of other packages: what they do, and forwards that can be traced; none is imported."""

from . import detectron2, openmmlab, segmentation_models, timm, transformers  # noqa: F401
