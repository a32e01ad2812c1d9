"""`dk.accelerate` and `dk.restore` on nets of stock layers: what is replaced, and that nothing else
changes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dlv3p_kernels as dk
from dlv3p_kernels.accelerate.swap import is_swapped, plan_of


class Separable(nn.Module):
    """Depthwise - BN - ReLU - pointwise - BN - ReLU."""

    def __init__(self, channels: int, out_channels: int, rate: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        return self.relu(self.bn2(self.pointwise(x)))


class Residual(nn.Module):
    """A dense convolution, BN, sum, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)) + x)


class ActivatesItsInput(nn.Module):
    """An in-place ReLU on a tensor that the sum reads too, as in several ports of Xception."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.body = Separable(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        return self.body(self.relu(x)) + x


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        Separable(8, 16, rate=2),
        Residual(16),
        ActivatesItsInput(16),
        nn.Conv2d(16, 4, 1),
    ).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return model


def images() -> Tensor:
    return torch.randn(
        2, 3, 21, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def outcome(model: nn.Module) -> list[Tensor]:
    """Output, gradients and buffers of a step."""
    output = model(images())
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), list(model.parameters()))
    return [output, *gradients, *model.buffers()]


def ops_of(model: nn.Module) -> list[str]:
    """The ops that the plans of a model call."""
    plans = [plan for module in model.modules() if (plan := plan_of(module))]
    return sorted(r.op for plan in plans for r in plan.replacements)


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [True, False])
def test_same_outcome_by_our_ops(train: bool) -> None:
    model = net().train(train)
    expected = outcome(copy.deepcopy(model))
    assert dk.accelerate(model) is model
    assert ops_of(model).count("separable_conv2d") >= 2
    assert "batch_norm_act" in ops_of(model)
    assert_same(outcome(model), expected)


def test_the_ops_do_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlv3p_kernels.accelerate import runtime

    calls = []
    original = runtime.separable_conv2d

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(runtime, "separable_conv2d", counted)
    dk.accelerate(net())(images())
    assert len(calls) == 2


def test_parameters_keys_and_classes_stay() -> None:
    model = net()
    tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
    keys = list(model.state_dict())
    dk.accelerate(model)
    assert tensors == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert keys == list(model.state_dict())
    assert isinstance(model[1], Separable)
    untouched = net()
    untouched.load_state_dict(model.state_dict())
    model.load_state_dict(untouched.state_dict())


def test_restore_undoes_it() -> None:
    model = net()
    classes = [type(module) for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    assert dk.restore(dk.accelerate(model)) is model
    assert classes == [type(module) for module in model.modules()]
    assert attributes == [set(module.__dict__) for module in model.modules()]
    assert not any(is_swapped(module) for module in model.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickled(m)])
def test_copies_and_pickles_are_accelerated(again: Callable[[nn.Module], nn.Module]) -> None:
    model = dk.accelerate(net().eval())
    copied = again(model)
    assert ops_of(copied) == ops_of(model)
    assert_same(outcome(copied), outcome(model))


def pickled(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def test_an_optimiser_made_before_goes_on_working() -> None:
    models = [net(), net()]
    optimisers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    dk.accelerate(models[0])
    for _ in range(3):
        for model, optimiser in zip(models, optimisers, strict=True):
            optimiser.zero_grad()
            model(images()).square().mean().backward()
            optimiser.step()
    assert_same(list(models[0].state_dict().values()), list(models[1].state_dict().values()))


def test_hooks_inside_run_and_switch_the_plan_off() -> None:
    model = dk.accelerate(net())
    seen = []
    handle = model[1].pointwise.register_forward_hook(lambda *_: seen.append(1))
    expected = outcome(copy.deepcopy(net()))
    assert_same(outcome(model), expected)
    assert seen
    handle.remove()


def test_frozen_norms_stay_frozen() -> None:
    models = [net(), net()]
    for model in models:
        model.train()
        model[1].bn1.eval()
    dk.accelerate(models[0])
    assert_same(outcome(models[0]), outcome(models[1]))


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match=r"accelerate: model must be an nn.Module, got int"):
        dk.accelerate(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"restore: model must be an nn.Module, got int"):
        dk.restore(3)  # type: ignore[arg-type]
