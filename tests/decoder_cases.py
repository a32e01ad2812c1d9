"""The cases of the decoder's convolution, and stock PyTorch's way to compute them.

`results` runs a case through a function with the signature of `dk.decoder_conv2d`; `stock` is the
one of stock PyTorch, whose float64 results are the exact ones. The norms by the batch come with
`silu`: behind a corner that is far off they would take each other's gradients away.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import dlv3p_kernels as dk
from dlv3p_kernels import BatchNorm, ChannelAffine
from dlv3p_kernels.bench.accuracy import allowed, error, floor, rounding_unit

Format = torch.memory_format
NCHW, NHWC = torch.contiguous_format, torch.channels_last
Function = Callable[..., Tensor]
Maps = Callable[[Tensor], Tensor]
_ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu}
# Deviations between the norms' results and the corners of the activations, mostly: rounding there
# would decide whether a gradient passes.
_OFF_CORNER = 4.0


@dataclass(frozen=True)
class DecoderCase:
    """One call. `low`, `middle` and `end` name what stands in the three places: "" for nothing, an
    activation after a batch norm by the batch, "fixed-" before it for running statistics,
    "affine-" for a ChannelAffine, "only-" for an activation alone."""

    id: str
    c: tuple[int, int]
    source: tuple[int, int]
    size: tuple[int, int]
    out: int = 11
    n: int = 2
    kernel: tuple[int, int] = (3, 3)
    padding: int | tuple[int, ...] = 1
    dilation: int = 1
    align_corners: bool = False
    encoder_first: bool = True
    bias: bool = False
    low: str = "silu"
    middle: str = "silu"
    end: str = "silu"
    compact: bool = False
    large: bool = False

    @property
    def takes_long(self) -> bool:
        """Where kernels are interpreted or emulated."""
        return self.n * sum(self.c) * self.size[0] * self.size[1] > 15_000


C = DecoderCase
DECODER_CASES = (
    # Ratios of the nets: sizes that divide and that do not, both conventions, both orders.
    C("33-129", (17, 6), (33, 33), (129, 129)),
    C(
        "129-align",
        (6, 17),
        (33, 33),
        (129, 129),
        align_corners=True,
        encoder_first=False,
        large=True,
    ),
    C("9-33", (24, 16), (9, 9), (33, 33), align_corners=True, n=3, compact=True),
    C("9-33-half", (33, 9), (9, 9), (33, 33), encoder_first=False, low="fixed-relu6"),
    C("8-32", (16, 8), (8, 8), (32, 32), compact=True),
    C("8-32-align", (40, 7), (8, 8), (32, 32), align_corners=True, encoder_first=False),
    C("widths", (64, 48), (3, 3), (9, 9), out=40, align_corners=True),
    C("blocks", (150, 40), (3, 4), (5, 11), out=8, encoder_first=False),
    # One cell, thin maps, the same size, smaller ones.
    C("1-7", (8, 5), (1, 1), (7, 7), compact=True),
    C("1-7-align", (5, 8), (1, 1), (7, 7), align_corners=True, encoder_first=False),
    C("to-1", (7, 9), (4, 3), (1, 1), n=17, align_corners=True),
    C("thin", (9, 4), (1, 6), (13, 1), n=3),
    C("row", (4, 3), (2, 5), (1, 23), n=3, align_corners=True),
    C("same-size", (9, 7), (6, 5), (6, 5)),
    C("down", (12, 9), (7, 7), (5, 5), compact=True),
    C("down-align", (12, 9), (15, 13), (4, 7), align_corners=True, encoder_first=False),
    C("up-and-down", (9, 4), (3, 17), (14, 6)),
    C("one-channel", (1, 1), (3, 4), (9, 7)),
    # Other kernels and paddings.
    C("5x5", (19, 6), (5, 4), (17, 15), kernel=(5, 5), padding=2, end="relu", compact=True),
    C("5x3", (7, 10), (4, 5), (12, 13), kernel=(5, 3), padding=(2, 1), align_corners=True),
    C("valid", (9, 5), (4, 4), (11, 10), padding=0),
    C("one-sided", (9, 5), (4, 4), (11, 10), padding=(2, 0, 0, 3), encoder_first=False),
    C("rate-2", (18, 5), (5, 5), (19, 18), padding=2, dilation=2),
    C("1x1", (9, 5), (4, 4), (9, 10), kernel=(1, 1), padding=0, middle="fixed-silu"),
    # Several pieces of an image, and several images in a piece.
    C("pieces", (49, 15), (3, 500), (19, 2050), n=1, out=4, large=True),
    C("pieces-5x5", (33, 31), (5, 129), (12, 2049), out=4, kernel=(5, 5), padding=2, large=True),
    C("images", (16, 8), (2, 2), (5, 5), n=40),
    # What may stand between, and what may be left out.
    C("plain", (9, 6), (4, 5), (13, 12), low="", middle="", end="", bias=True, compact=True),
    C("biases", (9, 6), (4, 5), (13, 12), middle="fixed-silu", end="fixed-silu", bias=True),
    C("batch-bias", (9, 6), (4, 5), (13, 12), end="affine-silu", bias=True),
    C("relu", (9, 6), (4, 5), (13, 12), low="relu", middle="fixed-relu", end="fixed-relu"),
    C("relu-middle", (9, 6), (4, 5), (13, 12), low="fixed-relu", middle="relu6", end="fixed-relu"),
    C("only", (9, 6), (4, 5), (13, 12), low="only-silu", middle="only-silu", end="only-silu"),
    C("fixed", (9, 6), (4, 5), (13, 12), low="fixed-relu", middle="fixed-relu", end="fixed-relu"),
    C("affine-silu", (9, 6), (4, 5), (13, 12), low="affine-silu", middle="affine-relu", end=""),
    C(
        "identity",
        (9, 6),
        (4, 5),
        (13, 12),
        low="identity",
        middle="fixed-identity",
        end="fixed-identity",
    ),
)


@cache
def tensors(case: DecoderCase) -> dict[str, Tensor]:
    """Every tensor of a case, in float64; the same at every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    channels = sum(case.c)
    taps = case.kernel[0] * case.kernel[1]
    made = {
        "x": normal(case.n, case.c[0], *case.source),
        "low_level": normal(case.n, case.c[1], *case.size),
        "dw_weight": normal(channels, 1, *case.kernel, scale=taps**-0.5),
        "pw_weight": normal(case.out, channels, 1, 1, scale=channels**-0.5),
    }
    if case.bias:
        made |= {"dw_bias": normal(channels), "pw_bias": normal(case.out)}
    for place, size in (("low", case.c[1]), ("middle", channels), ("end", case.out)):
        kind = getattr(case, place)
        if not kind or kind.startswith("only-"):
            continue
        weight = normal(size).abs() + 0.5
        sign = torch.where(torch.arange(size) % 4 == 3, -1.0, 1.0)
        made[f"{place}_weight"] = weight
        made[f"{place}_bias"] = normal(size) if "silu" in kind else _OFF_CORNER * weight * sign
        if not kind.startswith("affine-"):
            made[f"{place}_mean"] = normal(size, scale=0.1)
            made[f"{place}_var"] = normal(size).exp()
    return made


def _epilogue(kind: str, place: str, given: dict[str, Tensor]) -> BatchNorm | ChannelAffine | None:
    if not kind:
        return None
    activation = kind.split("-")[-1]
    if kind.startswith("only-"):
        return ChannelAffine(activation=activation)
    weight, bias = given[f"{place}_weight"], given[f"{place}_bias"]
    if kind.startswith("affine-"):
        return ChannelAffine(weight, bias, activation)
    return BatchNorm(
        given[f"{place}_mean"], given[f"{place}_var"], weight, bias,
        not kind.startswith("fixed-"), 0.3, activation=activation,
    )  # fmt: skip


def arguments(
    case: DecoderCase,
    dtype: torch.dtype,
    layouts: tuple[Format, Format] = (NCHW, NCHW),
    view: Maps = lambda t: t,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The tensors of a case in a dtype; the maps as `view` stores them in the two formats."""
    found = {}
    for name, t in tensors(case).items():
        on_map = name in ("x", "low_level")
        wide = t.dim() == 1 and not name.endswith(("dw_bias", "pw_bias"))
        found[name] = t.to(device, torch.promote_types(dtype, torch.float32) if wide else dtype)
        if on_map:
            layout = layouts[name == "low_level"]
            found[name] = view(found[name].contiguous(memory_format=layout))
    return {name: t.detach().clone() if t.dim() == 1 else t for name, t in found.items()}


def call(case: DecoderCase, function: Function, given: dict[str, Tensor]) -> Tensor:
    """The function on these tensors."""
    return function(
        given["x"], given["low_level"], given["dw_weight"], given["pw_weight"],
        given.get("dw_bias"), given.get("pw_bias"), case.padding, case.dilation,
        align_corners=case.align_corners, encoder_first=case.encoder_first,
        low_level_prologue=_epilogue(case.low, "low", given),
        dw_epilogue=_epilogue(case.middle, "middle", given),
        pw_epilogue=_epilogue(case.end, "end", given),
    )  # fmt: skip


def results(
    case: DecoderCase,
    function: Function,
    given: dict[str, Tensor],
    grad_layout: Format = NCHW,
) -> dict[str, Tensor]:
    """Output, every gradient and the running statistics after the call."""
    buffers = {name: t for name, t in given.items() if name.endswith(("_mean", "_var"))}
    leaves = {name: t.requires_grad_() for name, t in given.items() if name not in buffers}
    output = call(case, function, given)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    grad = grad.to(output).contiguous(memory_format=grad_layout)
    grads = torch.autograd.grad(output, list(leaves.values()), grad)
    found = {"output": output.detach()}
    found |= {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    return found | buffers


def _behind(z: Tensor, epilogue: BatchNorm | ChannelAffine | None) -> Tensor:
    if epilogue is None:
        return z
    if isinstance(epilogue, BatchNorm):
        e = epilogue
        z = F.batch_norm(
            z, e.running_mean, e.running_var, e.weight, e.bias, e.training, e.momentum, e.eps
        )
    elif epilogue.scale is not None and epilogue.shift is not None:
        z = (z * epilogue.scale[:, None, None] + epilogue.shift[:, None, None]).to(z.dtype)
    return _ACTIVATIONS[epilogue.activation](z)


def stock(
    x: Tensor,
    low_level: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    padding: int | tuple[int, ...],
    dilation: int,
    *,
    align_corners: bool,
    encoder_first: bool,
    low_level_prologue: BatchNorm | ChannelAffine | None,
    dw_epilogue: BatchNorm | ChannelAffine | None,
    pw_epilogue: BatchNorm | ChannelAffine | None,
    stored: Callable[[str, Tensor], Tensor] = lambda name, z: z,
) -> Tensor:
    """Step by step, every map made; all pass through `stored`."""
    low_level = stored("low", _behind(low_level, low_level_prologue))
    size = low_level.shape[2:]
    x = stored("resized", F.interpolate(x, size, mode="bilinear", align_corners=align_corners))
    z = torch.cat([x, low_level] if encoder_first else [low_level, x], 1)
    if isinstance(padding, tuple) and len(padding) == 4:
        z, padding = F.pad(z, padding), 0
    z = stored("depthwise", F.conv2d(z, dw_weight, dw_bias, 1, padding, dilation, z.size(1)))
    z = stored("middle", _behind(z, dw_epilogue))
    z = stored("pointwise", F.conv2d(z, pw_weight, pw_bias))
    return stored("end", _behind(z, pw_epilogue))


@cache
def stock_results(
    case: DecoderCase, dtype: torch.dtype, layout: Format = NCHW
) -> dict[str, Tensor]:
    """`results` of stock PyTorch; contiguous it is the more exact, as a rule."""
    return results(case, stock, arguments(case, dtype, (layout, layout)), layout)


@cache
def exact(case: DecoderCase, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """The same in float64, from tensors rounded to `dtype`.

    With a seed every map between the steps, and every gradient on its way back, is off by at most
    the rounding unit of `dtype`: what storing it in that may do to it.
    """
    given = {name: t.double().clone() for name, t in arguments(case, dtype).items()}
    if not seed:
        return results(case, stock, given)
    generator = torch.Generator().manual_seed(seed)

    def disturbed(t: Tensor) -> Tensor:
        noise = 2 * torch.rand(t.shape, generator=generator, dtype=torch.float64) - 1
        return t * (1 + rounding_unit(dtype) * noise)

    def stored(_name: str, z: Tensor) -> Tensor:
        z = disturbed(z)
        z.register_hook(disturbed)
        return z

    return results(case, partial(stock, stored=stored), given)


def stock_errors(
    case: DecoderCase, dtype: torch.dtype, name: str, layouts: tuple[Format, ...]
) -> Iterator[float]:
    """Errors of stock PyTorch in these formats, and of float64 where it stores maps in `dtype`.

    On small maps one run says little about how far rounding goes: a norm takes away most of what
    comes from the scale and shift of the one before, and what is left may be right by luck.
    """
    value = exact(case, dtype)[name].numpy()
    for layout in layouts:
        yield error(stock_results(case, dtype, layout)[name], value)
    for seed in () if case.large else range(1, 9):
        yield error(exact(case, dtype, seed)[name], value)


@cache
def magnitudes(case: DecoderCase, dtype: torch.dtype) -> dict[str, float]:
    """Of what is a sum: the largest sum of its terms' absolute values."""
    given = {name: t.double().clone() for name, t in arguments(case, dtype).items()}
    maps: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}

    def stored(name: str, z: Tensor) -> Tensor:
        maps[name] = z.detach().abs()
        z.register_hook(lambda grad: grads.update({name: grad.abs()}))
        return z

    values = results(case, partial(stock, stored=stored), given)
    pixels = (0, 2, 3)
    order = ("resized", "low") if case.encoder_first else ("low", "resized")
    source = torch.cat([maps[name] for name in order], 1)
    found = {
        "grad_pw_weight": torch.einsum("nohw,nchw->oc", grads["pointwise"], maps["middle"]),
        "grad_pw_bias": grads["pointwise"].sum(pixels),
        "grad_dw_bias": grads["depthwise"].sum(pixels),
        # At most the largest pixel times every gradient.
        "grad_dw_weight": (source.amax((2, 3), keepdim=True) * grads["depthwise"]).sum(pixels),
    }
    for place, before in (("low", "low_level"), ("middle", "depthwise"), ("end", "pointwise")):
        x = given[before].detach().abs() if before == "low_level" else maps[before]
        spread = x.square().mean(pixels, keepdim=True).sqrt()
        found[f"grad_{place}_bias"] = grads[place].sum(pixels)
        found[f"grad_{place}_weight"] = (grads[place] * x / spread).sum(pixels)
        # Sums may run around any of the values, which is taken away and added.
        found[f"{place}_mean"] = x.mean(pixels) + 2 * x.amax(pixels)
        found[f"{place}_var"] = x.square().mean(pixels)
    # A gradient by a map has as many terms as the kernel has taps, and each comes from a sum, that
    # over the channels of the pointwise result, through what stands in the middle.
    mixed = torch.einsum("nohw,oc->nchw", grads["pointwise"], given["pw_weight"][..., 0, 0].abs())
    mixed = mixed.detach() * grads["depthwise"].max() / grads["middle"].max()
    taps = F.conv_transpose2d(
        grads["depthwise"] + mixed, given["dw_weight"].detach().abs(), dilation=case.dilation,
        groups=source.size(1),
    )  # fmt: skip
    for name, place in (("grad_low_level", "low"), ("grad_x", "resized")):
        first = (place == "resized") == case.encoder_first
        size = grads[place].size(1)
        sums = taps[:, :size] if first else taps[:, -size:]
        found[name] = values[name].abs().max() * sums / grads[place].max()
    return {name: float(sums.detach().max()) for name, sums in found.items()}


def assert_parity(case: DecoderCase, dtype: torch.dtype, found: dict[str, Tensor]) -> None:
    """As exact as stock PyTorch; in float64, where that is the measure, the same."""
    layouts = (NCHW,) if found["output"].is_contiguous() else (NCHW, NHWC)
    for name, ours in found.items():
        value, theirs = exact(case, dtype)[name], stock_results(case, dtype)[name]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        if name == "grad_dw_bias" and case.middle == "silu":
            assert not ours.any()  # what stock has is rounding
        elif dtype == torch.float64:
            # No measure is wider: far below what any rounding to float32 would make.
            assert error(ours, value.numpy()) <= 2**-16 * rounding_unit(torch.float32), name
        else:
            array = value.numpy()
            got = error(ours, array)
            size = abs(array)
            size.flat[0] = max(size.flat[0], magnitudes(case, dtype).get(name, 0.0))
            rounding, limit = floor(dtype, array, size), 0.0
            for stocks in stock_errors(case, dtype, name, layouts):  # most pass by the first one
                limit = max(limit, allowed(stocks, rounding))
                if got <= limit:
                    break
            assert got <= limit, f"{name}: error {got:.3g}, at most {limit:.3g}"


def ours(*args: object, **options: object) -> Tensor:
    """`dk.decoder_conv2d`."""
    return dk.decoder_conv2d(*args, **options)  # type: ignore[arg-type]
