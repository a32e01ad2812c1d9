"""The batch-norm layer with residual and activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import batch_norm_act
from ..reference import ACTIVATIONS


class BatchNormAct2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, then a residual added, then an activation, in one pass each way.

    Arguments, parameters, buffers and state_dict are those of `nn.BatchNorm2d`, so checkpoints load
    both ways. Dtypes and result as in `dlv3p_kernels.batch_norm_act`.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics; None for their plain average.
        affine: whether to learn a scale and a shift per channel.
        track_running_stats: whether to keep running statistics, and to use them in evaluation.
        activation: "identity", "relu", "relu6" or "silu".
        device: as in `nn.BatchNorm2d`.
        dtype: as in `nn.BatchNorm2d`.

    Raises:
        ValueError: `activation` is none of these.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"BatchNormAct2d: activation must be one of {tuple(ACTIVATIONS)},"
                f" got {activation!r}"
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise (N, C, H, W), add `residual` of the same shape if given, activate."""
        self._check_input_dim(input)
        by_batch = self.training or self.running_mean is None
        update = self.training and self.track_running_stats
        return batch_norm_act(
            input,
            self.running_mean if update or not by_batch else None,
            self.running_var if update or not by_batch else None,
            self.weight,
            self.bias,
            by_batch,
            self._count_batch() if update else 0.0,
            self.eps,
            activation=self.activation,
            residual=residual,
        )

    def _count_batch(self) -> float:
        """The weight of this batch in the running statistics."""
        if self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def extra_repr(self) -> str:
        """The arguments, as printed."""
        return f"{super().extra_repr()}, activation={self.activation}"
