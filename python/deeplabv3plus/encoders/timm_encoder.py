"""Any convolutional timm model as encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import dlv3p_kernels as dk

from .base import Encoder

_LOW_LEVEL_STRIDE = 4
_NATIVE_STRIDE = 32


class TimmEncoder(Encoder):
    """A timm model, built with `features_only=True` and `output_stride`.

    Its plain depthwise `nn.Conv2d` layers become `dk.nn.DepthwiseConv2d` with the same parameters;
    subclasses, such as the dynamically padded layers of `tf_` models, stay. Low-level features: the
    model's own at stride 4.

    Weights start random; `encoder.model` has the keys of `timm.create_model(name,
    features_only=True)`, so pretrained ones load by `load_state_dict`.

    Args:
        name: timm model name, e.g. `"tf_efficientnet_b0"`.
        output_stride: 8, 16 or 32.
        in_channels: channels of the images.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm does not know the model, or it has no map at stride 4 or at
            `output_stride`.
    """

    def __init__(self, name: str, output_stride: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.model: Any = _create(name, output_stride, in_channels)
        strides = self.model.feature_info.reduction()
        channels = self.model.feature_info.channels()
        if _LOW_LEVEL_STRIDE not in strides or strides[-1] != output_stride:
            raise ValueError(
                f"encoder timm:{name} cannot be used with output_stride {output_stride}: needed are"
                f" maps at stride {_LOW_LEVEL_STRIDE} and, last, {output_stride}; it has {strides}"
            )
        if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
            raise ValueError(f"encoder timm:{name} cannot be used: its maps are not (N, C, H, W)")
        # The last of the maps at stride 4 is the deepest.
        self._low_level = len(strides) - 1 - strides[::-1].index(_LOW_LEVEL_STRIDE)
        self.low_level_channels = channels[self._low_level]
        self.out_channels = channels[-1]
        swap_depthwise(self.model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features at stride 4 and output at `output_stride`."""
        maps = self.model(images)
        return maps[self._low_level], maps[-1]


def _create(name: str, output_stride: int, in_channels: int) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f'encoder timm:{name} needs timm: pip install "dlv3p_kernels[timm]"'
        ) from error
    if not timm.is_model(name):
        raise ValueError(f"encoder timm:{name}: timm {timm.__version__} has no model {name!r}")
    # Many nets have no such argument, but all they need is to be left at their native stride.
    stride: dict[str, Any] = (
        {} if output_stride == _NATIVE_STRIDE else {"output_stride": output_stride}
    )
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **stride)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"encoder timm:{name} cannot be built as features with output_stride {output_stride}:"
            f" {str(error) or 'timm does not support it'}"
        ) from error


def swap_depthwise(model: nn.Module) -> None:
    """Replace every plain depthwise `nn.Conv2d` by `dk.nn.DepthwiseConv2d`, in place.

    The new layers hold the same parameter objects under the same names.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1:
                setattr(parent, name, _as_depthwise(layer))


def _as_depthwise(layer: nn.Conv2d) -> dk.nn.DepthwiseConv2d:
    kept = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    arguments: dict[str, Any] = {name: getattr(layer, name) for name in kept}
    new = dk.nn.DepthwiseConv2d(
        **arguments, bias=layer.bias is not None, padding_mode=layer.padding_mode, device="meta"
    )
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)
