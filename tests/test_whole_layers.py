"""torch.compile, torch.export, autocast, `GradScaler` and checkpointing of the layers that are more
than one convolution: the pyramid, the decoder, the loss on resized logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from aspp_layers import pyramids
from decoder_cases import DecoderCase, arguments
from decoder_layers import decoders, maps
from disturbed import Disturbed
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from training import assert_checkpoints, assert_trains_in_mixed_precision

import dlv3p_kernels as dk
from dlv3p_kernels import dispatch
from dlv3p_kernels.bench import accuracy

pytestmark = pytest.mark.usefixtures("native", "one_thread")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Head(nn.Module):
    """A layer, and the loss of its resized logits by ours or by stock functions."""

    def __init__(self, layer: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.loss = layer, loss

    def forward(self, x: Tensor, low_level: Tensor, target: Tensor) -> Tensor:
        """The mean loss."""
        return self.loss(self.layer(x, low_level), target)


def stock_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The two steps of stock PyTorch."""
    z = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(z, target, ignore_index=255)


def heads() -> tuple[Head, Head]:
    """A decoder of 4 classes with its loss."""
    ours, stocks = decoders(activation="silu")
    return Head(ours, dk.nn.UpsampleCrossEntropyLoss(ignore_index=255)), Head(stocks, stock_loss)


def one_map(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (6, 7)) -> list[Tensor]:
    """Of the pyramid."""
    return maps(source=size, n=8, channels=(6, 1), dtype=dtype)[:1]


def two_maps(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (9, 11)) -> list[Tensor]:
    """Of the decoder."""
    return maps(size=size, n=3, dtype=dtype)


def with_target(
    dtype: torch.dtype = torch.float32, size: tuple[int, int] = (9, 11)
) -> list[Tensor]:
    """Of the decoder and its loss."""
    target = torch.randint(4, (3, 30, 41), generator=torch.Generator().manual_seed(2))
    target[:, :3] = 255
    return [*two_maps(dtype, size), target]


class Family(NamedTuple):
    """Layers of ours and of stock PyTorch, their inputs, the operator that has to be in graphs of
    training and of inference."""

    layers: Callable[[], tuple[nn.Module, nn.Module]]
    inputs: Callable[..., Sequence[Tensor]]
    operators: tuple[str, str]


FAMILIES = {
    "aspp": Family(lambda: pyramids(activation="silu"), one_map, ("aspp_projection",) * 2),
    "aspp-dense": Family(
        lambda: pyramids(activation="silu", separable=False, pooling_first=True), one_map,
        ("aspp_projection",) * 2,
    ),
    "decoder": Family(
        lambda: decoders(activation="silu", align_corners=True), two_maps,
        ("decoder_conv2d", "decoder_conv2d_fused"),
    ),
    "loss": Family(heads, with_target, ("upsample_cross_entropy",) * 2),
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
MODES = pytest.mark.parametrize("training", (True, False), ids=("training", "evaluation"))


def outcome(layer: nn.Module, call: object, given: Sequence[Tensor]) -> list[Tensor]:
    """Output, gradients and buffers after one step."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in given]
    output = call(*leaves)
    wanted = [t for t in leaves if t.requires_grad]
    grads = torch.autograd.grad(output.square().sum(), (*wanted, *layer.parameters()))
    return [output, *grads, *(b.clone() for b in layer.buffers())]


def assert_same(
    compiled: nn.Module, plain: nn.Module, graph: object, given: Sequence[Tensor]
) -> None:
    """Everything the same, and the output stored in the same way."""
    found, expected = outcome(compiled, graph, given), outcome(plain, plain, given)
    assert found[0].stride() == expected[0].stride()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@MODES
@every_family
def test_compile(family: Family, training: bool) -> None:
    plain = family.layers()[0].train(training).double()
    compiled = copy.deepcopy(plain)
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    assert_same(compiled, plain, graph, family.inputs(torch.float64))


@pytest.mark.parametrize("family", (FAMILIES["aspp"], FAMILIES["loss"]), ids=("aspp", "loss"))
def test_compile_with_dynamic_sizes(family: Family) -> None:
    """What is compiled for the first size serves every other, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")
    plain = family.layers()[0].double()
    compiled = copy.deepcopy(plain)
    graph = torch.compile(compiled, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for size in ((9, 11), (12, 14), (7, 13)):
        assert_same(compiled, plain, graph, family.inputs(torch.float64, size))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1] > 0, counts
    assert f"dlv3p.{family.operators[0]}" in counter.graphs[-1].code


@MODES
@every_family
def test_export(family: Family, training: bool) -> None:
    layer = family.layers()[0].train(training).requires_grad_(training)
    given = tuple(family.inputs())
    auto = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    sizes = tuple(auto if t.is_floating_point() else None for t in given)
    program = torch.export.export(layer, given, dynamic_shapes=(*sizes,))
    targets = " ".join(str(node.target) for node in program.graph.nodes)
    assert f"dlv3p.{family.operators[not training]}" in targets
    for size in ((9, 11), (5, 17)):
        given = family.inputs(size=size)
        torch.testing.assert_close(program.module()(*given), layer(*given))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@MODES
@every_family
def test_autocast_casts_as_stock_does(family: Family, training: bool, dtype: torch.dtype) -> None:
    """Dtypes as in stock layers, and by the accuracy rule as exact."""
    ours, theirs = (layer.train(training) for layer in family.layers())
    exact = copy.deepcopy(theirs).double()

    def under_autocast(layer: nn.Module) -> Callable[..., Tensor]:
        def call(*given: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return layer(*given)

        return call

    found = [outcome(layer, under_autocast(layer), family.inputs()) for layer in (ours, theirs)]
    once_more = copy.deepcopy(exact)
    values = outcome(exact, exact, family.inputs(torch.float64))
    with Disturbed(dtype, seed=1):  # what low precision may well do where stock was lucky
        other = outcome(once_more, once_more, family.inputs(torch.float64))
    for got, want, also, value in zip(*found, other, values, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        reference = value.detach().numpy()
        ours_off, *stocks_off = (accuracy.error(t, reference) for t in (got, want, also))
        assert ours_off <= accuracy.allowed(max(stocks_off), accuracy.rounding_unit(dtype))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@every_family
def test_mixed_precision_with_a_scaler(family: Family, dtype: torch.dtype) -> None:
    assert_trains_in_mixed_precision(*family.layers(), family.inputs, dtype)


@pytest.mark.parametrize("reentrant", (False, True), ids=("saved-tensors", "reentrant"))
@every_family
def test_activation_checkpointing(family: Family, reentrant: bool) -> None:
    ours, stocks = (layer.double() for layer in family.layers())
    # The last bits of the decoder's products of matrices differ from call to call.
    has_decoder = any(isinstance(m, dk.nn.Decoder) for m in ours.modules())
    tolerance = 1e-12 if has_decoder else 0.0
    assert_checkpoints(ours, stocks, family.inputs, reentrant, tolerance)


CHECKS = ("test_schema", "test_faketensor")


def test_opcheck_of_the_decoder(backend_name: str, device: str) -> None:
    """Of the operator that is derived, and of the pieces that are not."""
    ops = dispatch.operators(backend_name)
    case = DecoderCase("opcheck", (3, 2), (2, 3), (5, 4), out=4, bias=True)
    t = arguments(case, torch.float32, device=device)
    low = (t["low_weight"], t["low_bias"], 1)
    half = (t["dw_weight"], t["dw_bias"], [1, 1, 1, 1], [1, 1])
    source = (t["x"], t["low_level"], True, False, *low, *half)
    middle = (t["middle_mean"], t["middle_weight"], t["middle_weight"], t["middle_bias"], 1)
    product = (t["pw_weight"], t["pw_bias"])
    torch.library.opcheck(ops.decoder_conv2d_statistics.default, source, test_utils=CHECKS)
    torch.library.opcheck(ops.decoder_depthwise.default, (*source, *middle[2:]), test_utils=CHECKS)
    back = (torch.ones(2, 5, 5, 4, device=device), *source[:8], *half[2:], True, True, True)
    torch.library.opcheck(ops.decoder_depthwise_backward.default, back, test_utils=CHECKS)
    fused = (*source, *middle[2:], *product, t["end_weight"], t["end_bias"], 3, False)
    torch.library.opcheck(ops.decoder_conv2d_fused.default, fused, test_utils=CHECKS)
    for tensor in (t["x"], t["low_level"], t["dw_weight"], t["pw_weight"]):
        tensor.requires_grad_()
    torch.library.opcheck(
        ops.decoder_conv2d.default, (*source, *middle, False, "", *product, False)
    )


@pytest.mark.parametrize("keep", (False, True))
def test_opcheck_of_the_passes_of_separable_backward(
    keep: bool, backend_name: str, device: str
) -> None:
    """Where nothing is kept between the passes, and where it is."""
    ops = dispatch.operators(backend_name)
    x, weight = torch.randn(2, 3, 5, 4, device=device), torch.randn(3, 1, 3, 3, device=device)
    grad, pw_weight = torch.randn(2, 4, 5, 4, device=device), torch.randn(4, 3, 1, 1, device=device)
    vectors = [torch.rand(3, device=device) for _ in range(4)]
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1])
    given = (grad, x, weight, None, *geometry, None, None, 0, *vectors, 1, pw_weight)
    first = ops.separable_conv2d_backward_reduce
    torch.library.opcheck(first.default, (*given, True, True, keep), test_utils=CHECKS)
    kept = first(*given, True, True, True)[-1] if keep else None
    second = (*given, kept, vectors[0], vectors[1], True, True)
    torch.library.opcheck(ops.separable_conv2d_backward_apply.default, second, test_utils=CHECKS)


def test_opcheck_of_the_projection(backend_name: str, device: str) -> None:
    """Of a pyramid: the operator that is derived, and the pieces that are not."""
    ops = dispatch.operators(backend_name)
    maps = [torch.randn(2, c, 5, 4, device=device) for c in (3, 2)]
    vectors = [torch.rand(5, device=device) for _ in range(4)]
    weight, bias = torch.randn(4, 5, 1, 1, device=device), torch.randn(4, device=device)
    grad = torch.randn(2, 4, 5, 4, device=device)
    fused = (maps, *vectors[:2], 1, weight, bias)
    torch.library.opcheck(ops.aspp_projection_fused.default, fused, test_utils=CHECKS)
    given = (grad, maps, *vectors, 1, weight)
    torch.library.opcheck(
        ops.aspp_projection_backward_reduce.default, (*given, True, True), test_utils=CHECKS
    )
    torch.library.opcheck(
        ops.aspp_projection_backward_apply.default, (*given, *vectors[:2]), test_utils=CHECKS
    )
    for tensor in (*maps, vectors[2], weight):
        tensor.requires_grad_()
    derived = (maps, *vectors, 1, False, "", weight, bias)
    torch.library.opcheck(ops.aspp_projection.default, derived)
