"""The DeepLabv3+ model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlv3p_kernels import upsample_argmax, upsample_cross_entropy

from . import _checks
from .aspp import ASPP
from .decoder import Decoder
from .encoders import build_encoder
from .layers import init_weights, resize, set_bn_momentum

_RATES_AT_16 = (6, 12, 18)


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ with atrous separable convolutions in ASPP and decoder.

    Encoder, ASPP, decoder and a bilinear resize of the logits to the input size. Weights start
    random (see `layers.init_weights`); `encoder.load_torchvision` takes those of torchvision's
    ResNet and MobileNetV2.

    Args:
        encoder: `"xception41"`, `"xception65"`, `"xception71"`, `"resnet50"`, `"resnet101"`,
            `"mobilenet_v2"`, or `"timm:NAME"` for a timm model (extra `timm`).
        num_classes: classes to tell apart, at least 1.
        output_stride: ratio of input to encoder output size: 8, 16 or 32.
        in_channels: channels of the images.
        atrous_rates: rates of the ASPP branches, any number of them; None: (6, 12, 18) at output
            stride 16, twice that at 8, half at 32.
        aspp_channels: channels of the ASPP output and of each of its branches.
        low_level_channels: channels the low-level features are reduced to.
        decoder_channels: channels of the two decoder convolutions.
        multi_grid: three factors on the rates of the last encoder blocks, e.g. (1, 2, 4)
            (Xception and ResNet encoders).
        dropout: probability of dropping an element of the ASPP output in training, in [0, 1).
        align_corners: as in `F.interpolate`, for the encoder output and the logits; True is what
            the original does.
        bn_momentum: weight of the newest batch in all running statistics. The original's 3e-4 needs
            some ten thousand steps to forget the initial statistics: right for fine-tuning a
            trained net in a long schedule, useless from scratch in a short one.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range, or the encoder does not exist.
        ImportError: `encoder="timm:..."` without timm installed.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018. Details follow the original TensorFlow code; `docs/model.md` lists
    them.
    """

    def __init__(
        self,
        encoder: str = "xception65",
        num_classes: int = 21,
        output_stride: int = 16,
        *,
        in_channels: int = 3,
        atrous_rates: Sequence[int] | None = None,
        aspp_channels: int = 256,
        low_level_channels: int = 48,
        decoder_channels: int = 256,
        multi_grid: Sequence[int] | None = None,
        dropout: float = 0.1,
        align_corners: bool = True,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self._config = _checks.model_arguments(
            encoder=encoder,
            num_classes=num_classes,
            output_stride=output_stride,
            in_channels=in_channels,
            atrous_rates=atrous_rates,
            aspp_channels=aspp_channels,
            low_level_channels=low_level_channels,
            decoder_channels=decoder_channels,
            multi_grid=multi_grid,
            dropout=dropout,
            align_corners=align_corners,
            bn_momentum=bn_momentum,
        )
        rates = self._config["atrous_rates"] or [
            rate * 16 // output_stride for rate in _RATES_AT_16
        ]
        self.encoder = build_encoder(
            encoder, output_stride, in_channels, self._config["multi_grid"]
        )
        self.aspp = ASPP(self.encoder.out_channels, rates, aspp_channels, dropout)
        self.decoder = Decoder(
            aspp_channels,
            self.encoder.low_level_channels,
            num_classes,
            low_level_channels=low_level_channels,
            channels=decoder_channels,
            align_corners=align_corners,
        )
        for part in (self.aspp, self.decoder):
            init_weights(part)
        nn.init.normal_(self.decoder.classifier.weight, std=0.01)
        set_bn_momentum(self, bn_momentum)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `DeepLabV3Plus(**model.config)` builds the same net."""
        return dict(self._config)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, in_channels, H, W).

        Any H and W from 1 up. Images are floating point, in the dtype of the weights unless under
        autocast.

        Raises:
            TypeError: `images` is no tensor, or of another dtype than the weights.
            ValueError: `images` has the wrong rank, channels or device, is empty in height or
                width, or is a training batch of one that shrinks to a single pixel.
        """
        logits = self.small_logits(images)
        return resize(logits, images.shape[-2:], self._config["align_corners"])

    def small_logits(self, images: Tensor) -> Tensor:
        """Logits at the size of the decoder, a quarter of that of the images.

        `forward` resizes them; loss and classes do not need the resized ones.

        Args:
            images: as in `forward`.

        Returns:
            (N, num_classes, h, w).

        Raises:
            TypeError, ValueError: as `forward`.
        """
        self._check_images(images)
        low_level, encoded = self.encoder(images)
        logits: Tensor = self.decoder(self.aspp(encoded), low_level)
        return logits

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        ignore_index: int = 255,
        *,
        weight: Tensor | None = None,
        check_target: bool = True,
    ) -> Tensor:
        """Mean cross entropy over all pixels that are not `ignore_index`.

        Equals `F.cross_entropy(model(images), target, weight, ignore_index=ignore_index)`, except
        that a batch with no pixel to learn from gives 0 (and zero gradients) where that gives NaN.
        The logits at the size of the images are not made.

        Args:
            images: as in `forward`.
            target: class of each pixel (N, H, W), integers.
            ignore_index: value of pixels to leave out.
            weight: (num_classes,) weights of the classes, which the mean is taken with; None for 1.
            check_target: look for classes out of range. On a GPU this waits for the device; inside
                `torch.compile` it is left out.

        Returns:
            A scalar.

        Raises:
            TypeError: `target` is not a tensor of integers.
            ValueError: `target` does not match `images`, or holds a value that is neither a class
                nor `ignore_index`.
        """
        self._check_images(images)
        _checks.target(target, images, self._config["num_classes"], ignore_index, check_target)
        if target.dtype not in (torch.int64, torch.int32, torch.uint8):
            target = target.long()
        return upsample_cross_entropy(
            self.small_logits(images), target,
            weight=weight, ignore_index=ignore_index,
            align_corners=self._config["align_corners"], all_ignored="zero",
        )  # fmt: skip

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class map (N, H, W), int64, of images as in `forward`: `model.eval()(images).argmax(1)`.

        The model computes in evaluation mode, and is left in the mode it was in. The logits at the
        size of the images are not made; where two are equal but for rounding, either may win.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            logits = self.small_logits(images)
            return upsample_argmax(
                logits, images.shape[-2:], align_corners=self._config["align_corners"]
            )
        finally:
            for module in training:
                module.training = True

    def _check_images(self, images: Tensor) -> None:
        _checks.images(images, self._config["in_channels"], self.decoder.classifier.weight)
        if self.training and images.shape[0] == 1:
            _checks.more_than_one_pixel(images, self._config["output_stride"])
