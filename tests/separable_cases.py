"""The separable convolutions that every back end is held to, and stock PyTorch's way to do them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cases import Geometry, Pair
from torch import Tensor

from dlv3p_kernels import BatchNorm, ChannelAffine

EPS = 1e-3
MOMENTUM = 0.3
Format = torch.memory_format
NCHW, NHWC = torch.contiguous_format, torch.channels_last
Function = Callable[..., Tensor]
Tensors = dict[str, Tensor]


class Stage(NamedTuple):
    """What stands before, between or behind the halves; written as "KIND ACTIVATION".

    Kinds: "batch", batch norm by the batch; "bare", the same without weight, bias and running
    statistics; "fixed", batch norm by the running statistics; "affine", scale and shift; "alone",
    nothing but the activation.
    """

    kind: str
    activation: str

    @property
    def by_batch(self) -> bool:
        """Whether the statistics are those of the batch."""
        return self.kind in ("batch", "bare")

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of its vectors, as in `nn.BatchNorm2d`."""
        every = ("weight", "bias", "running_mean", "running_var")
        return {"batch": every, "fixed": every, "affine": every[:2]}.get(self.kind, ())


class Staged:
    """What a case's fields say of its stages."""

    before: str
    middle: str
    end: str

    @property
    def stages(self) -> dict[str, Stage]:
        """What there is, by where it stands."""
        texts = {"before": self.before, "middle": self.middle, "end": self.end}
        return {at: Stage(*text.split()) for at, text in texts.items() if text}


@dataclass(frozen=True)
class SeparableCase(Geometry, Staged):
    """One separable convolution; `mean` is about how far the biases move the maps from 0."""

    id: str
    c: int
    out: int
    size: Pair
    before: str = ""
    middle: str = ""
    end: str = ""
    kernel: Pair = (3, 3)
    stride: int | Pair = 1
    padding: int | Pair | tuple[int, int, int, int] = 1
    dilation: int | Pair = 1
    n: int = 2
    bias: bool = False
    residual: bool = False
    compact: bool = False
    mean: float = 0

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The low precisions cannot hold the values where means are far from 0."""
        wide = (torch.float32, torch.float64)
        return wide if self.mean else (*wide, torch.bfloat16, torch.float16)


def _atrous(rate: int) -> dict[str, int]:
    return {"padding": rate, "dilation": rate}


C = SeparableCase
SEPARABLE_CASES = (
    # Nothing between the halves: smp, VainF, DeepCAM.
    C("smp", 16, 24, (9, 11), end="batch relu", compact=True),
    C("smp-fixed", 17, 16, (9, 11), end="fixed relu", **_atrous(2)),
    C("smp-d6", 37, 16, (9, 11), end="batch relu", n=1, **_atrous(6)),
    C("bare-halves", 7, 17, (9, 11), compact=True),
    C("biases", 16, 3, (7, 8), bias=True, residual=True),
    # Batch norm without activation between them: the trunks of TensorFlow, timm and jfzhang95.
    C("trunk", 37, 17, (9, 9), middle="batch identity", end="batch identity", compact=True),
    C("trunk-fixed", 16, 16, (9, 11), middle="fixed identity", end="fixed identity", residual=True),
    C("trunk-pre", 17, 17, (9, 11), "alone relu", "batch identity", "batch identity",
      residual=True, compact=True),
    C("trunk-pre-fixed", 64, 17, (8, 7), "alone relu", "fixed identity", "fixed identity",
      residual=True, **_atrous(2)),
    C("trunk-728", 728, 24, (4, 5), "alone relu", "batch identity", "batch identity", n=1,
      residual=True, **_atrous(2)),
    C("trunk-same-s2", 16, 24, (10, 11), "alone relu", "batch identity", "batch identity",
      stride=2, padding=(0, 1, 1, 1)),
    # Batch norm and ReLU behind both: the heads of TensorFlow, mmsegmentation, detectron2.
    C("head", 16, 17, (9, 11), middle="batch relu", end="batch relu", compact=True),
    C("head-fixed-d6", 37, 16, (9, 11), middle="fixed relu", end="fixed relu", **_atrous(6)),
    C("head-304", 304, 16, (7, 5), middle="batch relu", end="batch relu", n=1),
    C("head-33", 16, 7, (33, 33), middle="batch relu", end="batch relu", n=1, **_atrous(12)),
    C("head-beyond-map", 17, 16, (5, 7), middle="batch relu", end="batch relu", n=3, **_atrous(18)),
    C("head-mixed", 16, 16, (6, 7), middle="batch relu", end="fixed silu", residual=True),
    # MobileNetV2, EfficientNet, timm's pre-activation.
    C("inverted", 64, 16, (9, 8), middle="batch relu6", end="batch identity", residual=True,
      compact=True),
    C("inverted-fixed-s2", 37, 17, (9, 8), middle="fixed relu6", end="fixed identity", stride=2),
    C("silu-k5", 16, 17, (9, 11), middle="batch silu", end="batch silu", kernel=(5, 5), padding=2),
    C("pre-silu", 17, 16, (7, 9), "affine silu", "alone silu", "affine silu", residual=True),
    # Scale and shift, biases, activations without either.
    C("affine", 16, 37, (7, 9), "affine relu", "affine relu", "affine relu6", compact=True),
    C("affine-bias", 7, 16, (9, 8), "affine relu6", "affine identity", "affine identity",
      bias=True, residual=True),
    C("bias-relu", 17, 16, (8, 9), middle="alone relu", end="alone relu", bias=True, residual=True),
    C("bias-batch", 16, 7, (6, 9), middle="batch relu", end="bare silu", bias=True),
    C("bias-far-mean", 17, 16, (9, 11), middle="batch relu", end="batch relu", bias=True,
      mean=1e3),
    C("bare-norms", 17, 7, (6, 9), "affine identity", "bare relu", "bare identity", residual=True),
    # Sizes: single channels and pixels, thin maps, kernels that are not square.
    C("c1", 1, 1, (9, 11), middle="batch relu", end="batch relu", n=3, compact=True),
    C("c3-s2", 3, 16, (13, 10), middle="fixed relu", kernel=(5, 5), padding=(1, 2), stride=2),
    C("k1x3", 7, 3, (6, 9), middle="batch relu", kernel=(1, 3), stride=(1, 2), padding=(0, 1)),
    C("pixel", 17, 16, (1, 1), middle="fixed relu", end="fixed relu", n=1),
    C("pixels", 16, 3, (1, 1), middle="batch identity", end="batch identity", n=3, residual=True),
    C("thin-high", 17, 7, (23, 1), "alone relu", "batch relu", "batch relu", **_atrous(2)),
    C("thin-wide", 7, 17, (1, 31), middle="affine silu", end="batch relu6", n=3),
)  # fmt: skip


# --- stock PyTorch --------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu,
}  # fmt: skip


def epilogue_of(case: Staged, at: str, t: Tensors) -> BatchNorm | ChannelAffine | None:
    """A stage as the ops take it; running statistics are copied, as batches change them."""
    stage = case.stages.get(at)
    if stage is None:
        return None
    vectors = [t.get(f"{at}_{name}") for name in ("weight", "bias")]
    if stage.kind in ("affine", "alone"):
        return ChannelAffine(*vectors, stage.activation)
    running = [t.get(f"{at}_running_{name}") for name in ("mean", "var")]
    return BatchNorm(*running, *vectors, stage.by_batch, MOMENTUM, EPS, stage.activation)


def before_activation(x: Tensor, e: BatchNorm | ChannelAffine | None) -> Tensor:
    """Norm, or scale and shift, by stock PyTorch."""
    if isinstance(e, BatchNorm):
        return F.batch_norm(
            x, e.running_mean, e.running_var, e.weight, e.bias, e.training, e.momentum, e.eps
        )
    if e is None or e.scale is None or e.shift is None:
        return x
    return x * e.scale[:, None, None] + e.shift[:, None, None]


def behind(x: Tensor, e: BatchNorm | ChannelAffine | None) -> Tensor:
    return x if e is None else ACTIVATIONS[e.activation](before_activation(x, e)).to(x.dtype)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Pair,
    padding: tuple[int, int, int, int],
    dilation: int | Pair,
) -> Tensor:
    """`F.conv2d` of one group per channel; padding is (left, right, top, bottom)."""
    left, right, top, bottom = padding
    symmetric = (top, left)
    if (left, top) != (right, bottom):
        x, symmetric = F.pad(x, padding), (0, 0)
    return F.conv2d(x, weight, bias, stride, symmetric, dilation, groups=x.size(1))


def stock(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    stride: int | Pair,
    padding: tuple[int, int, int, int],
    dilation: int | Pair,
    *,
    prologue: ChannelAffine | None,
    dw_epilogue: BatchNorm | ChannelAffine | None,
    pw_epilogue: BatchNorm | ChannelAffine | None,
    residual: Tensor | None,
) -> Tensor:
    """The layers one after another; padding is (left, right, top, bottom)."""
    x = depthwise(behind(x, prologue), dw_weight, dw_bias, stride, padding, dilation)
    x = behind(F.conv2d(behind(x, dw_epilogue), pw_weight, pw_bias), pw_epilogue)
    return x if residual is None else x + residual


def call(case: SeparableCase, function: Function, t: Tensors) -> Tensor:
    """The case by a function with the signature of `dk.separable_conv2d`."""
    return function(
        t["x"], t["dw_weight"], t["pw_weight"], t.get("dw_bias"), t.get("pw_bias"),
        case.stride, case.sides, case.dilation,
        prologue=epilogue_of(case, "before", t),
        dw_epilogue=epilogue_of(case, "middle", t),
        pw_epilogue=epilogue_of(case, "end", t),
        residual=t.get("residual"),
    )  # fmt: skip
