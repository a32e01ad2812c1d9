"""Fixtures shared by the tests: which back end must run, poisoned memory, number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import dlv3p_kernels as dk


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compact: repeated for every CPU instruction set")


@pytest.fixture
def native() -> Iterator[None]:
    """Insist on the compiled CPU kernels: a call that they cannot serve raises."""
    library = dk.status().cpu
    if not library.loaded:
        if os.environ.get("DLV3P_REQUIRE_NATIVE") == "1":
            pytest.fail(f"DLV3P_REQUIRE_NATIVE=1, but {library}")
        pytest.skip(str(library))
    with dk.backend("cpu"):
        yield


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
