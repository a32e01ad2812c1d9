"""Fixtures shared by the tests: which back end must run, poisoned memory, number of threads.

`pytest --backend NAME --device DEVICE` chooses the kernels that the tests with the fixture `native`
hold to the cases: "cpu" (the default), "cuda", "triton" (on the CPU with TRITON_INTERPRET=1), or
"emulated", the CUDA kernels compiled for the CPU by tests/emulator.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

# Graphs of torch.compile from before a change of the operators must not be found again.
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")

import pytest
import torch

import dlv3p_kernels as dk
from dlv3p_kernels import _library, backends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default="cpu", help="the kernels under test")
    parser.addoption("--device", default="cpu", help="where their tensors lie")
    parser.addoption("--every", type=int, help="keep this share of the kernels' tests: every n-th")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compact: repeated for every CPU instruction set")
    config.addinivalue_line("markers", "large: too slow where kernels are interpreted or emulated")
    if config.getoption("--backend") == "emulated":
        _add_emulated()
    if config.getoption("--backend") == "triton" and backends.triton_interpreted():
        import triton_interpreter

        triton_interpreter.prepare()


def _add_emulated() -> None:
    from emulator import build

    _library.add("dlv3p_emulated")
    build.load()
    dtypes = backends.BACKENDS["cuda"].dtypes
    backends.BACKENDS["emulated"] = backends.Backend(
        "emulated", "dlv3p_emulated", "cpu", dtypes, lambda: None
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests in dtypes that the back end does not have, and those too slow for it."""
    dtypes = backends.BACKENDS[config.getoption("--backend")].dtypes
    left_out = [
        item
        for item in items
        if "native" in item.fixturenames
        and (parameters := getattr(item, "callspec", None))
        and parameters.params.get("dtype", dtypes[0]) not in dtypes
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    if config.getoption("--backend") == "emulated" or backends.triton_interpreted():
        left_out = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if every := config.getoption("--every"):
        kept = [item for item in items if "native" in item.fixturenames][::every]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(scope="session")
def backend_name(request: pytest.FixtureRequest) -> str:
    """The back end under test."""
    return str(request.config.getoption("--backend"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of the tensors under test."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def native(backend_name: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """Insist on the kernels under test: a call that they cannot serve raises."""
    if reason := backends.BACKENDS[backend_name].missing():
        if os.environ.get("DLV3P_REQUIRE_NATIVE") == "1":
            pytest.fail(f"DLV3P_REQUIRE_NATIVE=1, but {backend_name} is missing: {reason}")
        pytest.skip(reason)
    if backend_name == "emulated":
        _shuffle_threads(request.node.nodeid)
    with dk.backend(backend_name):
        yield


@pytest.fixture
def emulated(backend_name: str, native: None) -> None:
    """For tests of single CUDA kernels."""
    if backend_name != "emulated":
        pytest.skip("the emulator is not the back end under test")


def _shuffle_threads(name: str) -> None:
    """Every test has an order of blocks and threads of its own, the same in every run."""
    from emulator import build

    build.load().set_seed(zlib.crc32(name.encode()))


@pytest.fixture
def poison() -> Iterator[None]:
    """Deterministic mode fills uninitialised memory with NaN, inside C++ ops too."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread during the test: on small maps more of them cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton kernels that the interpreter runs."""
    from triton.runtime.interpreter import InterpretedFunction

    names: list[str] = []
    run_kernel = InterpretedFunction.run

    def note(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        names.append(self.fn.__name__)
        return run_kernel(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", note)
    return names
