"""What can stand before or behind a convolution and be fused into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ChannelAffine(NamedTuple):
    """`activation(x * scale + shift)` with one scale and one shift per channel.

    What batch norm with known statistics and an activation amount to; fused into a convolution in
    front of it (prologue) or behind it (epilogue).

    Attributes:
        scale: (C,) float32 (float64 for float64 maps), or None together with `shift`.
        shift: the same.
        activation: "identity", "relu", "relu6" or "silu".
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "identity"


class BatchNorm(NamedTuple):
    """`activation(F.batch_norm(x, ...))`, fused into the convolution that makes `x`.

    Attributes:
        running_mean: (C,) or None; updated in place where `training` is set.
        running_var: the same, together with `running_mean`.
        weight: (C,) or None for 1.
        bias: (C,) or None for 0.
        training: normalise by the statistics of the batch, instead of the running ones. Without
            running statistics it has to be set.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        activation: "identity", "relu", "relu6" or "silu".
        group: processes whose batches count as one, as in `nn.SyncBatchNorm`; None for this one.

    Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, algorithms 1 and 2.
    """

    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "identity"
    group: ProcessGroup | None = None


Epilogue: TypeAlias = ChannelAffine | BatchNorm


class Branch(NamedTuple):
    """One convolution of an atrous spatial pyramid, and what stands behind it; stride 1, same size.

    Dense, of any odd kernel, 1x1 included, without `dw_weight`; separable with it.

    Attributes:
        weight: (C', C, kh, kw); (C', C, 1, 1) behind `dw_weight`.
        epilogue: behind the convolution.
        bias: (C',) or None.
        dilation: atrous rate of the convolution, the depthwise one if there is one.
        dw_weight: (C, 1, kh, kw) or None.
        dw_epilogue: behind the depthwise convolution.
        dw_bias: (C,) or None.
    """

    weight: Tensor
    epilogue: Epilogue | None = None
    bias: Tensor | None = None
    dilation: int = 1
    dw_weight: Tensor | None = None
    dw_epilogue: Epilogue | None = None
    dw_bias: Tensor | None = None
