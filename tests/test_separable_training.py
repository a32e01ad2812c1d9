"""Training with separable convolutions: checkpointing, accumulation, mixed precision, processes."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from aspp_layers import pyramids
from separable_cases import SeparableCase, call
from separable_layers import layers
from separable_outcomes import inputs
from torch import Tensor, nn
from training import assert_checkpoints, assert_trains_in_mixed_precision, state_of

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("native", "one_thread")

ORDERS = {
    "head": {"padding": 2, "dilation": 2},
    "trunk": {
        "padding": 1, "pre_activation": "relu", "depthwise_activation": "identity",
        "pointwise_activation": "identity",
    },
}  # fmt: skip
every_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


def images(n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed, in channels_last."""
    x = torch.randn(n, 6, 8, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@every_order
@pytest.mark.parametrize("reentrant", (False, True), ids=("saved-tensors", "reentrant"))
def test_activation_checkpointing(order: dict[str, object], reentrant: bool) -> None:
    pair = layers(**order, dtype=torch.float64)
    assert_checkpoints(*pair, lambda dtype: [images(dtype=dtype)], reentrant)


@every_order
def test_gradient_accumulation(order: dict[str, object]) -> None:
    """Backwards of several batches, some of them at once, add up as in stock PyTorch."""
    ours, stocks = layers(**order, dtype=torch.float64)
    for layer in (ours, stocks):
        layer(images()).sin().sum().backward()
        (layer(images(2)).sin().sum() + layer(-images()).cos().sum()).backward()
    torch.testing.assert_close(state_of(ours), state_of(stocks))


def test_a_graph_kept_may_be_derived_again() -> None:
    ours, _ = layers(padding=1, dtype=torch.float64)
    x = images().requires_grad_()
    output = ours(x).sin().sum()
    first, second = (
        torch.autograd.grad(output, (x, *ours.parameters()), retain_graph=keep)
        for keep in (True, False)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@every_order
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_mixed_precision_with_a_scaler(order: dict[str, object], dtype: torch.dtype) -> None:
    pair = layers(**order)
    assert_trains_in_mixed_precision(*pair, lambda d: [images(dtype=d)], dtype)


# --- several processes ----------------------------------------------------------------------------

C = SeparableCase
Found = dict[object, dict[str, Tensor]]
SHARED = (
    C("shared-head", 11, 5, (6, 7), middle="batch relu", end="batch relu", n=4),
    C("shared-trunk", 7, 16, (6, 5), "alone relu", "batch identity", "batch identity", n=4,
      residual=True),
    C("shared-smp", 7, 16, (6, 5), end="batch silu", n=4),
    C("shared-middle", 7, 16, (6, 5), middle="bare silu", n=4),
    C("shared-pixels", 7, 3, (1, 1), middle="batch identity", end="batch relu", n=4),
)  # fmt: skip
SPLITS = ((2, 2), (1, 3))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, backend_name: str, device: str) -> list[Found]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_process, (str(folder), backend_name, device), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.id)
def test_two_processes_together_are_one(
    case: SeparableCase, split: tuple[int, int], halves: list[Found], device: str
) -> None:
    """As `nn.SyncBatchNorm`: outputs, gradients and running statistics of the whole batch."""
    parts = [half[case.id, split] for half in halves]
    for name, expected in _steps(case, device).items():
        first, second = (part[name] for part in parts)
        if name in ("output", "inference", "x", "residual"):
            got = torch.cat([first, second])
        elif "running" in name:
            assert torch.equal(first, second), name
            got = first
        else:
            got = first + second  # as data-parallel training adds them
        torch.testing.assert_close(got, expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ("layer", "aspp"))
def test_converted_layers_find_the_processes(name: str, halves: list[Found]) -> None:
    ours = _seeded_layer(name)
    ours(images(4)).sin().sum().backward()
    parts = [half[name] for half in halves]
    for key, value in state_of(ours).items():
        got = parts[0][key] + parts[1][key] if key.startswith("grad") else parts[0][key]
        torch.testing.assert_close(got, value, msg=lambda m, k=key: f"{k}: {m}")


def test_one_value_per_channel_in_each_process(halves: list[Found]) -> None:
    got = torch.cat([half["single value"]["output"] for half in halves])
    expected = dk.batch_norm_act(images(2)[..., :1, :1], None, None, training=True)
    torch.testing.assert_close(got, expected)


def _process(rank: int, folder: str, backend_name: str, device: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    found: Found = {}
    with dk.backend(backend_name):
        for case in SHARED:
            for split in SPLITS:
                begin = sum(split[:rank])
                part = slice(begin, begin + split[rank])
                found[case.id, split] = _steps(case, device, part, torch.distributed.group.WORLD)
        value = images(2)[rank : rank + 1, :, :1, :1]  # as behind image pooling
        alone = dk.batch_norm_act(
            value, None, None, training=True, group=torch.distributed.group.WORLD
        )
        found["single value"] = {"output": alone}
        for name in ("layer", "aspp"):
            layer = nn.SyncBatchNorm.convert_sync_batchnorm(_seeded_layer(name))
            share = images(4)[:1] if rank == 0 else images(4)[1:]
            layer(share).sin().sum().backward()
            found[name] = state_of(layer)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _seeded_layer(name: str) -> nn.Module:
    torch.manual_seed(5)
    made = pyramids() if name == "aspp" else layers(padding=1, dtype=torch.float64)
    return made[0].double()


def _steps(
    case: SeparableCase, device: str, part: slice = slice(None), group: object = None
) -> dict[str, Tensor]:
    """Outputs without and with gradients, gradients, running statistics of two batches."""
    dtype = torch.float64 if device == "cpu" else torch.float32
    given, grad = inputs(case, dtype)
    tensors = {n: t[part] if n in ("x", "residual") else t.clone() for n, t in given.items()}
    tensors = {n: t.detach().to(device) for n, t in tensors.items()}

    def shared(*arguments: object, **epilogues: object) -> Tensor:
        for at in ("dw_epilogue", "pw_epilogue"):
            if isinstance(epilogues[at], dk.BatchNorm):
                epilogues[at] = epilogues[at]._replace(group=group)
        return dk.separable_conv2d(*arguments, **epilogues)

    with torch.no_grad():
        inference = call(case, shared, tensors)
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if "running" not in n}
    output = call(case, shared, tensors)
    grads = torch.autograd.grad(output, list(leaves.values()), grad[part].to(device))
    found = {n: t.detach() for n, t in tensors.items() if "running" in n}
    found |= dict(zip(leaves, grads, strict=True))
    return found | {"output": output.detach(), "inference": inference}
