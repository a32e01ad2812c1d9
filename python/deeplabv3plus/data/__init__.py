"""Reading, checking, augmenting and ordering segmentation data (needs the extra `train`)."""

from __future__ import annotations

from deeplabv3plus.data.augment import Augmentation, AugmentedDataset
from deeplabv3plus.data.loader import training_batches
from deeplabv3plus.data.order import batch_keys
from deeplabv3plus.data.sample import sample_path
from deeplabv3plus.data.voc import VOCSegmentation

__all__ = [
    "Augmentation",
    "AugmentedDataset",
    "VOCSegmentation",
    "batch_keys",
    "sample_path",
    "training_batches",
]
