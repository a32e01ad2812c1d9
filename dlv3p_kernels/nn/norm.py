"""The batch-norm layer with residual and activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..reference import ACTIVATIONS
from ._norm_state import apply_batch_norm


class BatchNormAct2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, then a residual added, then an activation, in one pass each way.

    Arguments, parameters, buffers and state_dict are those of `nn.BatchNorm2d`, so checkpoints load
    both ways. Dtypes and result as in `dlv3p_kernels.batch_norm_act`.

    `nn.SyncBatchNorm.convert_sync_batchnorm` takes it for an `nn.BatchNorm2d` and would drop the
    activation. For nets that are to be converted, keep an `nn.BatchNorm2d` and call
    `dk.nn.apply_batch_norm` on it.

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

    _dlv3p_calls_ops = True

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
        return apply_batch_norm(self, input, self.activation, residual)

    def extra_repr(self) -> str:
        """The arguments, as printed."""
        return f"{super().extra_repr()}, activation={self.activation}"
