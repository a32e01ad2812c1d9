"""Batches for training, from any number of worker processes in one fixed order."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deeplabv3plus.data.augment import AugmentedDataset
from deeplabv3plus.data.order import batch_keys


def training_batches(
    data: AugmentedDataset,
    batch_size: int,
    start: int,
    stop: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, masks) of steps `start` to `stop - 1`.

    Both are uint8, of shape (N, 3, crop, crop) and (N, crop, crop).

    The batches are the same for any number of `workers`, and those of a step do not depend on
    `start`. PyTorch's global random state is left alone.
    """
    keys = batch_keys(len(data), batch_size, data.run_seed, start, stop)
    loader = DataLoader(
        data,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
        # Without a generator of its own a DataLoader draws from the global one.
        generator=torch.Generator().manual_seed(data.run_seed),
    )
    yield from loader


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent wants to finish its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
