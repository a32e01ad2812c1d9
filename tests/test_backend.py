"""The choice of back end and the report of what was built and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dlv3p_kernels as dk
from dlv3p_kernels import _native, dispatch

X = torch.ones(1, 4, 5, 5)
WEIGHT = torch.ones(4, 1, 3, 3)


class Calls(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operators() -> list[str]:
    """The convolutions that one call runs."""
    with Calls() as calls:
        dk.depthwise_conv2d(X, WEIGHT)
    return [name for name in calls.names if "conv" in name]


@pytest.fixture(autouse=True)
def automatic() -> None:
    """Every test starts with, and gives back, the default choice."""
    with dk.backend("auto"):
        yield


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nothing was compiled."""
    for name in ("CPU", "CUDA"):
        absent = _native.NativeLibrary(name.lower(), None, False, "not built: for this test")
        monkeypatch.setattr(_native, name, absent)


def test_auto_takes_the_kernel(native: None) -> None:
    with dk.backend("auto"):
        assert operators() == ["dlv3p.depthwise_conv2d.default"]


def test_reference_takes_stock() -> None:
    with dk.backend("reference"):
        assert operators() == ["aten.convolution.default"]


def test_auto_without_library_takes_stock(without_library: None) -> None:
    assert operators() == ["aten.convolution.default"]


def test_insisting_without_library_raises(without_library: None) -> None:
    with dk.backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu'.*not built: for this test"):
        operators()


@pytest.mark.parametrize("name", ("cuda", "triton"))
def test_insisting_on_what_cannot_serve_a_cpu_tensor_raises(name: str) -> None:
    with dk.backend(name), pytest.raises(RuntimeError, match=f"backend '{name}' can not serve"):
        operators()


def test_insisting_on_the_cpu_for_another_device_raises() -> None:
    with dk.backend("cpu"), pytest.raises(RuntimeError, match="the input is on meta"):
        dk.depthwise_conv2d(X.to("meta"), WEIGHT.to("meta"))


def test_meta_tensors_take_stock() -> None:
    assert dk.depthwise_conv2d(X.to("meta"), WEIGHT.to("meta")).shape == (1, 4, 3, 3)


def test_setter() -> None:
    dk.backend("reference")
    assert dispatch.current() == dk.status().backend == "reference"
    dk.backend("auto")
    assert dispatch.current() == "auto"


def test_nesting() -> None:
    with dk.backend("reference"):
        with dk.backend("cpu"):
            assert dispatch.current() == "cpu"
            with dk.backend("cpu"):
                pass
            assert dispatch.current() == "cpu"
        assert dispatch.current() == "reference"
    assert dispatch.current() == "auto"


def test_exception_switches_back() -> None:
    with pytest.raises(KeyError), dk.backend("reference"):
        raise KeyError
    assert dispatch.current() == "auto"


@pytest.mark.parametrize("name", ("gpu", "CPU", "", None, 3))
def test_bad_name(name: object) -> None:
    with pytest.raises(ValueError, match=r"backend: name must be one of .*'reference'") as caught:
        dk.backend(name)
    assert repr(name) in str(caught.value)
    assert dispatch.current() == "auto"


def test_status_is_printable_and_json() -> None:
    status = dk.status()
    facts = json.loads(json.dumps(status.as_dict()))
    assert facts["version"] == dk.__version__
    assert facts["torch"] == torch.__version__
    assert facts["backend"] == "auto"
    assert facts["cpu"]["loaded"] == status.cpu.loaded
    text = str(status)
    triton = f"triton: {facts['triton'] or 'not installed'}"
    for part in (dk.__version__, torch.__version__, "cpu:", "cuda:", triton, status.cuda.reason):
        assert part in text


def test_status_names_the_instruction_set(native: None) -> None:
    capability = dk.status().cpu_capability
    assert capability == torch.ops.dlv3p.cpu_capability()
    assert capability in str(dk.status())


def test_status_says_why_not(without_library: None) -> None:
    status = dk.status()
    assert not status.cpu.loaded
    assert status.cpu_capability is None
    assert str(status).count("not built: for this test") == 2
