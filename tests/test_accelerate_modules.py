"""What accelerated modules are to everything around them: hooks, copies, pickles, compilers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from accelerate_agreement import counts, swapped
from accelerate_blocks import InPlaceSum, Pyramid, Separable, bn, conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import dlv3p_kernels as dk
from dlv3p_kernels.accelerate.plan import Plan
from dlv3p_kernels.accelerate.swap import plan_of

pytestmark = pytest.mark.usefixtures("one_thread", "native")
ALL = {"separable_conv2d": 1, "batch_norm_act": 2, "aspp": 1}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Separable(), InPlaceSum(), Pyramid())


def _input() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8, 13, 15).to(memory_format=torch.channels_last)


def _runs_plans(model: nn.Module, x: Tensor, run: list[str]) -> Tensor:
    """Run the model and note whose plans ran."""
    for name, module in model.named_modules():
        if plan := plan_of(module):
            kept = plan.run

            def noted(*args: object, kept=kept, name=name) -> object:  # type: ignore[no-untyped-def]
                run.append(name)
                return kept(*args)

            module.__dict__["_dlv3p_plan"] = Plan(
                plan.arity, noted, plan.replacements, plan.calls, plan.guards
            )
    result: Tensor = model(x.clone())
    return result


def test_same_tensors_keys_and_modules() -> None:
    model = _model()
    before = {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    keys, modules = list(model.state_dict()), {n: id(m) for n, m in model.named_modules()}
    assert dk.accelerate(model) is model and counts(model) == ALL
    assert before == {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    assert keys == list(model.state_dict()) and modules == {
        n: id(m) for n, m in model.named_modules()
    }
    assert isinstance(model[0], Separable) and isinstance(model[0][0], nn.Conv2d)


def test_restore_undoes_it_exactly() -> None:
    model = _model()
    classes = [type(m) for m in model.modules()]
    attributes = [sorted(m.__dict__) for m in model.modules()]
    expected = model.eval()(_input())
    dk.accelerate(model)
    dk.accelerate(model)
    assert swapped(model) and dk.restore(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [sorted(m.__dict__) for m in model.modules()] == attributes
    assert torch.equal(model(_input()), expected)
    dk.restore(model)


def test_an_optimiser_made_before_goes_on() -> None:
    model = _model()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    dk.accelerate(model)
    before = model[0][0].weight.clone()
    model(_input()).square().mean().backward()
    optimiser.step()
    assert not torch.equal(model[0][0].weight, before)


def test_round_trip_of_a_state_dict_is_exact() -> None:
    ours, plain = dk.accelerate(_model()), _model()
    ours(_input())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    back = dk.accelerate(_model())
    back.load_state_dict(plain.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, back.state_dict()[name])
    assert torch.equal(ours.eval()(_input()), back.eval()(_input()))


@pytest.mark.parametrize("how", ("deepcopy", "pickle", "torch.save"))
def test_copies_are_accelerated_and_independent(how: str) -> None:
    model = dk.accelerate(_model()).eval()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert swapped(twin) == swapped(model) and counts(twin) == ALL
    run: list[str] = []
    assert torch.equal(_runs_plans(twin, _input(), run), model(_input()))
    assert run
    twin[0][0].weight.data.zero_()
    assert model[0][0].weight.abs().sum() > 0
    dk.restore(twin)
    assert not swapped(twin)


def _hook(model: nn.Module) -> None:
    model[0][2].register_forward_hook(lambda module, args, output: output * 2)


def _pre_hook(model: nn.Module) -> None:
    model[0][3].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def _full_backward_hook(model: nn.Module) -> None:
    model[0][1].register_full_backward_hook(lambda module, grads, more: (grads[0] * 2,))


def _parametrize(model: nn.Module) -> None:
    parametrizations.weight_norm(model[0][0])


def _old_weight_norm(model: nn.Module) -> None:
    weight_norm(model[0][3])


def _spectral_norm(model: nn.Module) -> None:
    spectral_norm(model[0][3]).eval()


def _prune(model: nn.Module) -> None:
    prune.random_unstructured(model[0][0], "weight", 0.5)


def _exchange(model: nn.Module) -> None:
    model[0][2] = nn.Hardtanh()


def _replace_forward(model: nn.Module) -> None:
    model[0][3].forward = lambda x: x * 3


def _settings(model: nn.Module) -> None:
    model[0][0].padding_mode = "circular"
    model[0][0]._reversed_padding_repeated_twice = [1, 1, 1, 1]


class _LoRA(nn.Module):
    """A wrapper as low-rank adapters are."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, conv(8, 2), conv(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def _lora(model: nn.Module) -> None:
    model[0][3] = _LoRA(model[0][3])


ALTERATIONS = [
    _hook, _pre_hook, _full_backward_hook, _parametrize, _old_weight_norm, _spectral_norm, _prune,
    _exchange, _replace_forward, _settings, _lora,
]  # fmt: skip


@pytest.mark.parametrize("when", ("before", "after"))
@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_altered_layers_are_left_alone(alter, when: str) -> None:  # type: ignore[no-untyped-def]
    plain = _model()
    torch.manual_seed(5)
    alter(plain)
    ours = _model()
    if when == "after":
        dk.accelerate(ours)
    torch.manual_seed(5)
    alter(ours)
    if when == "before":
        dk.accelerate(ours)
        assert "separable_conv2d" not in counts(ours)
    results = []
    for model in (plain, ours):
        torch.manual_seed(6)
        x = _input().requires_grad_()
        output = model(x)
        output.square().mean().backward()
        results.append((output, x.grad))
    (expected, expected_grad), (got, grad) = results
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    scale = float(expected_grad.abs().max())
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=2e-4 * scale)


def test_hooks_of_the_modules_themselves_still_run() -> None:
    model, seen = dk.accelerate(_model()), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    run: list[str] = []
    _runs_plans(model, _input(), run)
    assert seen and "0" in run


def test_global_hooks_see_every_layer() -> None:
    model, seen = dk.accelerate(_model()), set()
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, o: seen.add(id(m)))
    try:
        model(_input())
    finally:
        handle.remove()
    assert {id(m) for m in model.modules() if not isinstance(m, nn.ModuleList)} <= seen


def test_quantised_models_are_left_alone() -> None:
    quantised = torch.ao.nn.quantized.Conv2d(8, 8, 1)
    model = nn.Sequential(quantised, nn.ReLU())
    dk.accelerate(model)
    assert not swapped(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_models_prepared_for_quantisation_are_left_alone() -> None:
    """Fake quantisation is a layer of its own class, observers are hooks."""
    from torch.ao import quantization

    model = _model()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(model)
    expected = copy.deepcopy(prepared)(_input())
    dk.accelerate(prepared)
    assert not {type(m).__name__ for m in prepared.modules()} & {"AcceleratedConv2d"}
    run: list[str] = []
    torch.testing.assert_close(_runs_plans(prepared, _input(), run), expected)
    assert not run


class _Effects(nn.Module):
    """What must not be recorded once and for all, one thing in each of its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.calls, self.kept = conv(8, 8), bn(8), 0, []

    def block(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class _Attribute(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.block(x)


class _List(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return self.block(x)


class _Random(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + torch.rand(1)


class _Context(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.block(x)


class _Mode(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x * 2 if self.training else x


class _Type(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x * 2 if isinstance(x, Tensor) else x


class _Value(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x * 2 if x.sum() > 0 else x


def _doubled(x: Tensor) -> Tensor:
    return x * 2 if isinstance(x, Tensor) else x


class _Function(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        return _doubled(self.block(x))


class _Method(_Effects):
    def doubled(self, x: Tensor) -> Tensor:
        return _doubled(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubled(self.block(x))


class _Inherited(_Type):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class _Pure(_Effects):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


EFFECTS = (
    _Attribute, _List, _Random, _Context, _Mode, _Type, _Value, _Function, _Method, _Inherited,
)  # fmt: skip


@pytest.mark.parametrize("cls", EFFECTS, ids=lambda cls: cls.__name__.strip("_").lower())
def test_forwards_that_cannot_be_recorded_stay(cls: type[_Effects]) -> None:
    assert plan_of(dk.accelerate(_Pure())) is not None
    model = cls()
    torch.manual_seed(3)
    expected = copy.deepcopy(model)(_input())
    dk.accelerate(model)
    assert plan_of(model) is None and model.calls == 0 and model.kept == []
    assert swapped(model) == ["bn"]
    torch.manual_seed(3)
    torch.testing.assert_close(model(_input()), expected)
    model(_input())
    assert model.calls == (2 if cls is _Attribute else 0)
    assert len(model.kept) == (2 if cls is _List else 0)


class _Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(8, 8), bn(8)

    def forward(self, x: Tensor, factor: float = 1.0, *, skip: Tensor | None = None) -> Tensor:
        x = torch.relu(self.bn(self.conv(x))) * factor
        return x if skip is None else x + skip


def test_other_arguments_than_usual_run_the_forward_itself() -> None:
    model = _Optional().eval()
    x = _input()
    expected = [model(x), model(x, 3.0), model(x, skip=x), model(x=x)]
    run: list[str] = []
    dk.accelerate(model)
    got = [_runs_plans(model, x, run), model(x, 3.0), model(x, skip=x), model(x=x)]
    assert run == ["", "bn", "bn", "bn"]  # where the forward itself runs, its layers have plans
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_modules_are_accelerated() -> None:
    for function in (dk.accelerate, dk.restore):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
            function("model")  # type: ignore[arg-type]


def test_moves_and_casts() -> None:
    model = dk.accelerate(_model()).double()
    assert model(_input().double()).dtype == torch.float64
    model.to("meta").eval()
    with dk.backend("auto"):
        assert model(_input().double().to("meta")).device.type == "meta"
