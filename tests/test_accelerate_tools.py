"""Accelerated models under torch.compile, torch.export, DDP, several threads."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate_agreement import counts, swapped
from accelerate_blocks import InPlaceSum, Separable, bn, conv
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import dlv3p_kernels as dk

pytestmark = pytest.mark.usefixtures("one_thread", "native")
OPS = ("separable_conv2d", "batch_norm_act")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Separable(), InPlaceSum())


def _input(seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(4, 8, 13, 15).to(memory_format=torch.channels_last)


def _close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class _Recorder:
    """A back end of torch.compile that runs the graph and keeps the names of its operators."""

    def __init__(self) -> None:
        self.operators: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        for module in graph.modules():
            if isinstance(module, torch.fx.GraphModule):
                self.operators |= {str(node.target) for node in module.graph.nodes}
        return graph

    def has_ours(self) -> bool:
        return any("dlv3p" in name for name in self.operators)


@pytest.mark.parametrize("training", (True, False))
def test_compiled_after(training: bool) -> None:
    torch._dynamo.reset()
    plain, ours, recorder = _model().train(training), _model().train(training), _Recorder()
    compiled = torch.compile(dk.accelerate(ours), fullgraph=True, backend=recorder)
    _close(compiled(_input()), plain(_input()))
    assert recorder.has_ours()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_compiled_before() -> None:
    """A model compiled and run already is compiled anew."""
    torch._dynamo.reset()
    plain, ours, recorder = _model().eval(), _model().eval(), _Recorder()
    compiled = torch.compile(ours, fullgraph=True, backend=recorder)
    _close(compiled(_input()), plain(_input()))
    assert not recorder.has_ours()
    dk.accelerate(compiled)
    assert swapped(ours)
    _close(compiled(_input()), plain(_input()))
    assert recorder.has_ours()


def test_compiled_code_minds_later_alterations() -> None:
    torch._dynamo.reset()
    plain, ours = _model().eval(), dk.accelerate(_model().eval())
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    compiled(_input())
    for model in (plain, ours):
        model[0][2] = nn.Hardtanh()
    _close(compiled(_input()), plain(_input()))


def test_exported() -> None:
    model = _model().eval()
    expected = model(_input())
    dk.accelerate(model)
    program = torch.export.export(model, (_input(),))
    assert any("dlv3p" in str(node.target) for node in program.graph.nodes)
    _close(program.module()(_input()), expected)


def test_traced_by_fx_and_vmapped_as_before() -> None:
    """Transforms of torch.func run stock PyTorch, as for the ops themselves."""
    model = _model().eval()
    x = torch.stack([_input(1), _input(2)])
    expected = torch.stack([model(part) for part in x])
    dk.accelerate(model)
    with dk.backend("auto"):
        _close(torch.func.vmap(model)(x), expected)


def test_threads_share_a_model() -> None:
    model = dk.accelerate(_model().eval())
    expected, got = model(_input()), [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: got.__setitem__(i, model(_input()))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in got)


def _worker(rank: int, folder: str, when: str, synchronised: bool) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = _model()
    if synchronised:
        # One block counts the batches of both processes, the other its own process's.
        alone = [dist.new_group([r]) for r in (0, 1)]
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        model = nn.Sequential(convert(model[0]), convert(model[1], alone[rank]))
    if when == "before":
        dk.accelerate(model)
    # DistributedDataParallel refuses synchronised norms on CPUs.
    wrapped = model if synchronised else DistributedDataParallel(model)
    if when == "after":
        dk.accelerate(wrapped)
    with dk.backend("cpu"):
        for step in range(2):
            wrapped(_input(10 * step + rank)).square().mean().backward()
    assert set(counts(wrapped)) == set(OPS)
    torch.save(
        ({n: p.grad for n, p in model.named_parameters()}, model.state_dict()), f"{folder}/{rank}"
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("when", ("before", "after"))
def test_distributed(when: str, tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path), when, False), nprocs=2)
    (grads, state), (other, _) = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    replicas = [copy.deepcopy(_model()) for _ in range(2)]
    for step in range(2):
        for rank, replica in enumerate(replicas):
            replica(_input(10 * step + rank)).square().mean().backward()
    for name, grad in grads.items():
        assert torch.equal(grad, other[name]), name
        mean = sum(dict(r.named_parameters())[name].grad for r in replicas) / 2
        largest = max(float(g.abs().max()) for g in grads.values())
        torch.testing.assert_close(grad, mean, rtol=0, atol=1e-4 * largest)
    for name, value in replicas[0].state_dict().items():
        torch.testing.assert_close(state[name], value)


def test_distributed_with_synchronised_norms(tmp_path: Path) -> None:
    """Two processes with half of the batch each are one with all of it, in norms of both."""
    mp.spawn(_worker, (str(tmp_path), "before", True), nprocs=2)
    states = [torch.load(tmp_path / str(rank))[1] for rank in (0, 1)]
    whole, halves = _model(), [_model()[1], _model()[1]]
    for step in range(2):
        middle = whole[0](torch.cat([_input(10 * step + rank) for rank in (0, 1)]))
        for half, part in zip(halves, middle.chunk(2), strict=True):
            half(part)
    for state, half in zip(states, halves, strict=True):
        expected = {f"0.{n}": v for n, v in whole[0].state_dict().items()}
        expected |= {f"1.{n}": v for n, v in half.state_dict().items()}
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(states[0]["1.bn1.running_mean"], states[1]["1.bn1.running_mean"])


@pytest.mark.parametrize("when", ("before", "after"))
def test_sharded(when: str) -> None:
    """Layers whose parameters are sharded run their own forwards, with the hooks that gather."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        expected = _model()(_input())
        model = _model()
        if when == "after":
            dk.accelerate(model)
        mesh = init_device_mesh("cpu", (1,))
        for module in (*model, model):
            fully_shard(module, mesh=mesh)
        if when == "before":
            dk.accelerate(model)
        with dk.backend("auto"):
            got = model(_input())
            got.square().mean().backward()
        _close(got, expected)
        assert all(p.grad is not None for p in model.parameters())
        dk.restore(model)
    finally:
        dist.destroy_process_group()


def test_plans_know_a_norm_without_activation_by_itself() -> None:
    model = nn.Sequential(nn.Sequential(conv(8, 8), bn(8)), nn.Sigmoid())
    assert counts(dk.accelerate(model)) == {"batch_norm_act": 1}
