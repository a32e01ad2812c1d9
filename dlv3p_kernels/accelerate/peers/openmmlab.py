"""mmcv: its convolution with norm and activation, in an order of the user's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import tracing


def _forward(self: Any, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
    """The forward of ConvModule, whose own exchanges the convolution's for a while.

    It does so where `efficient_conv_bn_eval` was asked for.
    """
    if getattr(self, "efficient_conv_bn_eval_forward", None) is not None:
        raise tracing.Untraceable("it folds its norm into the convolution itself")
    for layer in self.order:
        if layer == "conv":
            x = self.conv(self.padding_layer(x) if self.with_explicit_padding else x)
        elif layer == "norm" and norm and self.with_norm:
            x = getattr(self, self.norm_name)(x)
        elif layer == "act" and activate and self.with_activation:
            x = self.activate(x)
    return x


tracing.FORWARDS["mmcv.cnn.bricks.conv_module.ConvModule"] = _forward
