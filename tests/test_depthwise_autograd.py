"""Registration and derivatives: opcheck, gradcheck, double backward, subsets, transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DepthwiseCase, inputs, leaves, stock_forward
from torch import Tensor
from torch.autograd import forward_ad

import dlv3p_kernels as dk

GEOMETRIES = (
    DepthwiseCase("plain", 3, (5, 4), padding=1, n=1),
    DepthwiseCase("strided-dilated", 3, (6, 7), padding=2, stride=(2, 1), dilation=2, n=2),
    DepthwiseCase("asymmetric", 2, (4, 5), kernel=(2, 3), padding=(0, 2, 1, 0), stride=2, n=2),
    DepthwiseCase("no-bias", 3, (4, 4), kernel=(1, 2), dilation=3, n=1, bias=False),
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
OPS = torch.ops.dlv3p

every_geometry = pytest.mark.parametrize("case", GEOMETRIES, ids=lambda case: case.id)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("nchw", "nhwc"))
every_backend = pytest.mark.parametrize("backend", ("cpu", "reference"))


def ours(case: DepthwiseCase, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The case by the function under test."""
    return dk.depthwise_conv2d(x, weight, bias, case.stride, case.padding, case.dilation)


def arguments_of(
    case: DepthwiseCase, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, ...]:
    """Input, weight and, where the case has one, bias as leaves in float64."""
    x, weight, bias, _ = inputs(case, torch.float64)
    return leaves(x.contiguous(memory_format=layout), weight, bias)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("case", "layout"),
    list(zip(GEOMETRIES, LAYOUTS * 2, strict=True)),
    ids=[case.id for case in GEOMETRIES],
)
def test_opcheck(case: DepthwiseCase, layout: torch.memory_format) -> None:
    x, weight, bias, grad = inputs(case, torch.float32)
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    x, weight = leaves(x, weight, None)
    bias = bias.clone().requires_grad_() if case.bias else None
    geometry = (
        [case.stride] * 2 if isinstance(case.stride, int) else list(case.stride),
        list(case.sides),
        [case.dilation] * 2,
    )
    torch.library.opcheck(OPS.depthwise_conv2d.default, (x, weight, bias, *geometry))
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            OPS.depthwise_conv2d_backward.default,
            (grad.clone().requires_grad_(), x, weight, *geometry, *wanted),
        )


@every_backend
@every_layout
@every_geometry
def test_gradcheck(
    case: DepthwiseCase, layout: torch.memory_format, backend: str, native: None
) -> None:
    with dk.backend(backend):
        assert torch.autograd.gradcheck(
            lambda *t: ours(case, *t), arguments_of(case, layout), fast_mode=False
        )


@every_backend
@every_geometry
def test_gradgradcheck(case: DepthwiseCase, backend: str, native: None) -> None:
    with dk.backend(backend):
        assert torch.autograd.gradgradcheck(lambda *t: ours(case, *t), arguments_of(case))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("wanted", range(1, 8))
def test_gradients_of_a_subset(wanted: int) -> None:
    """Every subset of input, weight and bias may require gradients; the rest get none."""
    case = GEOMETRIES[1]
    x, weight, bias, grad = inputs(case, torch.float64)
    outcomes = []
    for function in (ours, stock_forward):
        tensors = [
            t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate((x, weight, bias))
        ]
        function(case, *tensors).backward(grad)
        outcomes.append([t.grad for t in tensors])
    for index, (got, expected) in enumerate(zip(*outcomes, strict=True)):
        assert (got is None) == (expected is None) == (not wanted >> index & 1)
        if got is not None:
            torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("frozen", (0, 1))
def test_second_derivatives_of_a_subset(frozen: int) -> None:
    """A gradient penalty, with the input or the weight held constant, equals stock's."""
    case = GEOMETRIES[1]
    outcomes = []
    for function in (ours, stock_forward):
        tensors = arguments_of(case)
        tensors[frozen].requires_grad_(False)
        free = [t for t in tensors[:2] if t.requires_grad]
        (slope,) = torch.autograd.grad(
            function(case, *tensors).pow(2).sum(), free, create_graph=True
        )
        outcomes.append(torch.autograd.grad(slope.pow(2).sum(), free)[0])
    torch.testing.assert_close(*outcomes)


@pytest.mark.usefixtures("native")
def test_no_graph_without_gradients() -> None:
    case = GEOMETRIES[0]
    tensors = arguments_of(case)
    expected = ours(case, *tensors)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            output = ours(case, *tensors)
        assert not output.requires_grad
        assert torch.equal(output, expected)
    assert output.is_inference()


@pytest.mark.usefixtures("native")
def test_inplace_change_of_a_saved_tensor_is_noticed() -> None:
    case = GEOMETRIES[0]
    x, weight, bias = arguments_of(case)
    output = ours(case, x, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.usefixtures("native")
def test_activation_checkpointing() -> None:
    case = GEOMETRIES[1]
    plain, checkpointed = arguments_of(case), arguments_of(case)
    ours(case, *plain).pow(2).sum().backward()
    torch.utils.checkpoint.checkpoint(
        lambda *t: ours(case, *t), *checkpointed, use_reentrant=False
    ).pow(2).sum().backward()
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.equal(a.grad, b.grad)


def transformed(function: Callable[..., Tensor]) -> dict[str, object]:
    """Transforms of `torch.func` and forward mode over a loss by the function."""
    case = GEOMETRIES[1]
    x, weight, bias = (t.detach() for t in arguments_of(case))

    def loss(weight: Tensor, x: Tensor, bias: Tensor = bias) -> Tensor:
        return function(case, x, weight, bias).square().sum()

    def one_loss(weight: Tensor, example: Tensor) -> Tensor:
        return loss(weight, example[None])

    with forward_ad.dual_level():
        dual = function(case, forward_ad.make_dual(x, x.square()), weight, bias)
        tangent = forward_ad.unpack_dual(dual).tangent
    return {
        "grad": torch.func.grad(loss, argnums=(0, 1, 2))(weight, x, bias),
        "vmap": torch.func.vmap(one_loss, in_dims=(None, 0))(weight, x),
        "per-example gradients": torch.func.vmap(torch.func.grad(one_loss), (None, 0))(weight, x),
        "jvp": torch.func.jvp(loss, (weight, x), (weight.cos(), x.cos())),
        "hessian": torch.func.hessian(loss)(weight, x),
        "forward mode": tangent,
    }


def test_functional_transforms_run_stock() -> None:
    """They are outside what a registered op can serve, so they take the definition."""
    expected = transformed(stock_forward)
    for name, got in transformed(ours).items():
        torch.testing.assert_close(got, expected[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.usefixtures("native")
def test_functional_transforms_are_refused_where_the_kernels_are_insisted_on() -> None:
    with pytest.raises(RuntimeError, match=r"can not serve depthwise_conv2d: transforms of torch"):
        transformed(ours)
