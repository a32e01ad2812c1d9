"""What the tests of single CUDA kernels share."""

from __future__ import annotations

from collections.abc import Callable

from emulator import build


def launched(call: Callable[[], object]) -> list[str]:
    """Names of the kernels that `call()` launches, without their template arguments."""
    emulator = build.load()
    emulator.reset()
    call()
    return [name.split("<")[0] for name in emulator.launches()]
