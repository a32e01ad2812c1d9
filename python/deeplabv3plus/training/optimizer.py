"""The optimizer of a run."""

from __future__ import annotations

from torch import nn, optim

from deeplabv3plus.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> optim.Optimizer:
    """Return SGD with momentum, or AdamW; norms and biases have no weight decay."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return optim.SGD(groups, lr=config.lr, momentum=config.momentum)
