"""Blocks laid out as those of packages that are not installed, at a few channels.

Written from the documented structure: names of children, order of layers, what their forwards do
that a recording of them trips over.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from accelerate_blocks import Pooled, bn, conv
from torch import Tensor, nn


def _of(module: str):  # type: ignore[no-untyped-def]
    """Give a class the address of the one that it stands in for."""

    def move(cls: type) -> type:
        cls.__module__ = module
        return cls

    return move


@_of("mmcv.cnn.bricks.conv_module")
class ConvModule(nn.Module):
    """Its forward sets and deletes an attribute of the convolution, if asked to fold the norm."""

    def __init__(self, channels: int, out: int, kernel: int = 1, **more: object) -> None:
        super().__init__()
        self.order, self.norm_name = ("conv", "norm", "act"), "bn"
        self.with_norm = self.with_activation = True
        self.with_explicit_padding = False
        self.efficient_conv_bn_eval_forward = None
        self.conv, self.bn = conv(channels, out, kernel, **more), bn(out)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        for layer in self.order:
            if layer == "conv":
                if self.efficient_conv_bn_eval_forward is not None and not self.bn.training:
                    self.conv.forward = partial(self.efficient_conv_bn_eval_forward, self.conv)
                    x = self.conv(x)
                    del self.conv.forward
                    continue
                x = self.conv(x)
            elif layer == "norm" and norm:
                x = getattr(self, self.norm_name)(x)
            elif layer == "act" and activate:
                x = self.activate(x)
        return x


class DepthwiseSeparableConvModule(nn.Module):
    """mmcv's."""

    def __init__(self, channels: int, out: int, rate: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(
            channels, channels, 3, padding=rate, dilation=rate, groups=channels
        )
        self.pointwise_conv = ConvModule(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class AtrousModules(nn.ModuleList):
    """mmseg's DepthwiseSeparableASPPModule."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [module(x) for module in self]


class SeparableASPPHead(nn.Module):
    """mmseg's DepthwiseSeparableASPPHead: a 3x3 bottleneck, the pooled branch first."""

    def __init__(self) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(8, 6))
        self.aspp_modules = AtrousModules(
            [ConvModule(8, 6), *(DepthwiseSeparableConvModule(8, 6, rate) for rate in (2, 3))]
        )
        self.bottleneck = DepthwiseSeparableConvModule(24, 6)
        self.c1_bottleneck = ConvModule(8, 4)
        self.sep_bottleneck = nn.Sequential(
            DepthwiseSeparableConvModule(10, 6), DepthwiseSeparableConvModule(6, 6)
        )
        self.dropout, self.conv_seg = nn.Dropout2d(0.0), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, x = x, F.max_pool2d(x, 2)
        pooled = self.image_pool(x)
        maps = [F.interpolate(pooled, x.size()[2:], None, "bilinear", False)]
        maps.extend(self.aspp_modules(x))
        x = self.bottleneck(torch.cat(maps, dim=1))
        low = self.c1_bottleneck(low)
        x = F.interpolate(x, low.shape[2:], None, "bilinear", False)
        x = self.sep_bottleneck(torch.cat([x, low], dim=1))
        return self.conv_seg(self.dropout(x))


@_of("detectron2.layers.wrappers")
class Conv2d(nn.Conv2d):
    """A convolution with a norm inside and a function to activate; it asks for types."""

    def __init__(self, *args: object, norm=None, activation=None, **more: object) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, bias=norm is None, **more)  # type: ignore[arg-type]
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0 and isinstance(self.norm, nn.SyncBatchNorm):
            raise ValueError("no empty input")
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class DepthwiseSeparableConv2d(nn.Module):
    """detectron2's."""

    def __init__(self, channels: int, out: int, kernel: int = 3, rate: int = 1) -> None:
        super().__init__()
        self.depthwise = Conv2d(
            channels, channels, kernel, padding=rate * (kernel // 2), dilation=rate,
            groups=channels, norm=bn(channels), activation=F.relu,
        )  # fmt: skip
        self.pointwise = Conv2d(channels, out, 1, norm=bn(out), activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


@_of("detectron2.layers.aspp")
class ASPP(nn.Module):
    """The pooled branch has a bias and no norm; dropout is a function."""

    def __init__(self, dropout: float = 0.0, separable: bool = True) -> None:
        super().__init__()
        self.pool_kernel_size, self.dropout = None, dropout
        branches: list[nn.Module] = [Conv2d(8, 6, 1, norm=bn(6), activation=F.relu)]
        for rate in (2, 3):
            branches.append(
                DepthwiseSeparableConv2d(8, 6, rate=rate)
                if separable
                else Conv2d(8, 6, 3, padding=rate, dilation=rate, norm=bn(6), activation=F.relu)
            )
        branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), Conv2d(8, 6, 1, activation=F.relu)))
        self.convs = nn.ModuleList(branches)
        self.project = Conv2d(24, 8, 1, norm=bn(8), activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(x) for conv in self.convs]
        maps[-1] = F.interpolate(maps[-1], x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.project(torch.cat(maps, dim=1))
        return F.dropout(x, self.dropout, training=self.training) if self.dropout > 0 else x


class DeepLabHead(nn.Module):
    """detectron2's: a 5x5 separable convolution fuses, the low-level features come first."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp = ASPP()
        self.project_conv = Conv2d(8, 4, 1, norm=bn(4), activation=F.relu)
        self.fuse_conv = DepthwiseSeparableConv2d(12, 6, 5)
        self.predictor = Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.aspp(F.max_pool2d(x, 2))
        low = self.project_conv(x)
        y = F.interpolate(y, size=low.size()[2:], mode="bilinear", align_corners=False)
        y = self.fuse_conv(torch.cat([low, y], dim=1))
        return F.interpolate(self.predictor(y), scale_factor=2, mode="bilinear")


class AtrousSeparableConvolution(nn.Module):
    """VainF's, with a bias or without."""

    def __init__(self, channels: int, out: int, rate: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(
                channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=bias
            ),
            nn.Conv2d(channels, out, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class HeadV3Plus(nn.Module):
    """VainF's DeepLabHeadV3Plus, given a dict of features, made separable."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(conv(8, 4), bn(4), nn.ReLU(inplace=True))
        rows = [nn.Sequential(conv(8, 6), bn(6), nn.ReLU(inplace=True))]
        for rate in (2, 3):
            atrous = AtrousSeparableConvolution(8, 6, rate)
            rows.append(nn.Sequential(atrous, bn(6), nn.ReLU(inplace=True)))
        pool = Pooled(nn.AdaptiveAvgPool2d(1), conv(8, 6), bn(6), nn.ReLU(inplace=True))
        self.aspp = _Pyramid([*rows, pool])
        self.classifier = nn.Sequential(
            AtrousSeparableConvolution(12, 6), bn(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        feature = {"low_level": x, "out": F.max_pool2d(x, 2)}
        low = self.project(feature["low_level"])
        y = self.aspp(feature["out"])
        y = F.interpolate(y, size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([low, y], dim=1))


class _Pyramid(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(conv(24, 8), bn(8), nn.ReLU(inplace=True), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))


class XceptionBlock(nn.Module):
    """jfzhang95's: explicit padding, one in-place activation for all, the skip is activated too."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        parts: list[nn.Module] = []
        for _ in range(3):
            parts += [relu, FixedPadding(8, 2), bn(8)]
        self.rep = nn.Sequential(*parts)

    def forward(self, inp: Tensor) -> Tensor:
        x = self.rep(inp)
        skip = inp
        x += skip
        return x


class FixedPadding(nn.Module):
    """jfzhang95's SeparableConv2d."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.conv1 = conv(channels, channels, 3, padding=0, dilation=rate, groups=channels)
        self.bn, self.pointwise = bn(channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.rate, self.rate, self.rate, self.rate))
        return self.pointwise(self.bn(self.conv1(x)))


class BiasedPyramid(nn.Module):
    """bubbliiiing's: biases before norms, means by `torch.mean`, stretched with corners aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.Conv2d(8, 6, 1), bn(6), nn.ReLU(inplace=True))
        for i, rate in ((2, 2), (3, 3)):
            dense = nn.Conv2d(8, 6, 3, padding=rate, dilation=rate)
            setattr(self, f"branch{i}", nn.Sequential(dense, bn(6), nn.ReLU(inplace=True)))
        self.branch5_conv, self.branch5_bn = nn.Conv2d(8, 6, 1), bn(6)
        self.branch5_relu = nn.ReLU(inplace=True)
        self.conv_cat = nn.Sequential(nn.Conv2d(24, 8, 1), bn(8), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        [_, _, row, col] = x.size()
        pooled = torch.mean(torch.mean(x, 2, True), 3, True)
        pooled = self.branch5_relu(self.branch5_bn(self.branch5_conv(pooled)))
        pooled = F.interpolate(pooled, (row, col), None, "bilinear", True)
        maps = [self.branch1(x), self.branch2(x), self.branch3(x), pooled]
        return self.conv_cat(torch.cat(maps, dim=1))


class ModulePyramid(nn.Module):
    """jfzhang95's: branches by name, the pooled one stretched to the size of another's result."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1, self.aspp2, self.aspp3 = (_Atrous(rate) for rate in (1, 2, 3))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)), conv(8, 6), bn(6), nn.ReLU()
        )
        self.conv1, self.bn1, self.relu = conv(24, 8), bn(8), nn.ReLU()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2, x3 = self.aspp1(x), self.aspp2(x), self.aspp3(x)
        x4 = self.global_avg_pool(x)
        x4 = F.interpolate(x4, size=x3.size()[2:], mode="bilinear", align_corners=True)
        x = torch.cat((x1, x2, x3, x4), dim=1)
        return self.dropout(self.relu(self.bn1(self.conv1(x))))


class _Atrous(nn.Module):
    def __init__(self, rate: int) -> None:
        super().__init__()
        if rate == 1:
            self.atrous_conv = conv(8, 6)
        else:
            self.atrous_conv = conv(8, 6, 3, padding=rate, dilation=rate)
        self.bn, self.relu = bn(6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.atrous_conv(x)))
