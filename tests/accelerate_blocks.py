"""Small models, each with one thing in it that an acceleration could get wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels: int, out: int, kernel: int = 1, **more: object) -> nn.Conv2d:
    more.setdefault("padding", kernel // 2)
    return nn.Conv2d(channels, out, kernel, bias=False, **more)  # type: ignore[arg-type]


def depthwise(channels: int, **more: object) -> nn.Conv2d:
    return conv(channels, channels, 3, groups=channels, **more)


def bn(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


class Separable(nn.Sequential):
    """Everything once."""

    def __init__(self, channels: int = 8, out: int = 8, **more: object) -> None:
        super().__init__(
            depthwise(channels, **more), bn(channels), nn.ReLU(),
            conv(channels, out), bn(out), nn.ReLU(inplace=True),
        )  # fmt: skip


class InPlaceSkip(nn.Module):
    """As in jfzhang95's Xception: the first activation overwrites what the skip adds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), depthwise(8), bn(8), conv(8, 8), bn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class InPlaceFeature(nn.Module):
    """A map that is kept, and then overwritten by its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = conv(8, 8), bn(8), nn.ReLU(inplace=True)
        self.behind = conv(8, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn(self.conv(x))
        kept = [x]
        return [*kept, self.behind(self.relu(x))]


class InPlaceSum(nn.Module):
    """As in ResNets: `out += identity` and one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(8, 8, 3), bn(8)
        self.conv2, self.bn2 = conv(8, 8, 3), bn(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class TwiceNormed(nn.Module):
    """The norm's result is needed before its activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(8, 8), bn(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) + x


class Stretched(nn.Module):
    """A sum whose second term is a value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.dw, self.pw, self.bn = depthwise(8), conv(8, 8), bn(8)
        self.conv, self.bn2 = conv(8, 8), bn(8)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return self.bn(self.pw(self.dw(x))) + mean + F.relu(self.bn2(self.conv(x)) + mean)


class Padded(nn.Module):
    """Asymmetric zeros before a convolution of stride 2, by a child and by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.dw = depthwise(8, padding=0, stride=2)
        self.dw.stride = [2, 2]  # type: ignore[assignment]
        self.pw, self.bn = conv(8, 8), bn(8)
        self.second, self.last = depthwise(8, padding=0), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.pw(self.dw(self.pad(x)))))
        return self.last(self.second(F.pad(x, (2, 0, 1, 1))))


class DilatedPointwise(nn.Sequential):
    """As smp leaves it behind: rates on convolutions of one tap."""

    def __init__(self) -> None:
        super().__init__(
            depthwise(8, dilation=2, padding=2), conv(8, 8, dilation=2), bn(8), nn.ReLU()
        )


class SharedWeights(nn.Module):
    """One separable convolution and one norm, used twice each."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Separable()
        self.norm = bn(8)
        self.conv1, self.conv2 = conv(8, 8), conv(8, 8)
        self.conv2.weight = self.conv1.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(self.block(x))))
        return F.relu(self.norm(self.conv2(self.block(x))))


class Pyramid(nn.Module):
    """As torchvision's and segmentation_models_pytorch's ASPP, pooled branch first or last."""

    def __init__(self, pooling_first: bool = False, separable: bool = True) -> None:
        super().__init__()
        branches: list[nn.Module] = [nn.Sequential(conv(8, 6), bn(6), nn.ReLU())]
        for rate in (2, 3):
            halves = [depthwise(8, padding=rate, dilation=rate), conv(8, 6)]
            dense = [conv(8, 6, 3, padding=rate, dilation=rate)]
            branches.append(nn.Sequential(*(halves if separable else dense), bn(6), nn.ReLU()))
        pooled = Pooled(nn.AdaptiveAvgPool2d(1), conv(8, 6), bn(6), nn.ReLU())
        branches.insert(0 if pooling_first else len(branches), pooled)
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(conv(24, 8), bn(8), nn.ReLU(), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))


class Pooled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for layer in self:
            x = layer(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
