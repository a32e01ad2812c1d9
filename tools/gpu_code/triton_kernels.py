"""Compiles the Triton kernels of the package for GPUs that need not be there.

A module of `dlv3p_kernels.triton` lists what is compiled in `COMPILE_SPECS`: tuples of name, jit
function, signature, constants, number of warps and number of stages. The signature gives the types
of all other arguments as Triton's ahead-of-time tools write them: "*bf16", "i32", with the divisor
of their value behind ("i32:16"); that of a pointer without one is 16, as torch allocates. Triton
specialises a launch in the same way; without it no access would be wide.
"""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import machine_code
from .machine_code import Kernels

CAPABILITIES = (80, 90, 100)
_WARP = 32
# As the launchers have it: the default differs between versions of Triton.
_OPTIONS = {"enable_fp_fusion": True}
PACKAGE = "dlv3p_kernels.triton"


class Spec(NamedTuple):
    """One specialisation of a kernel."""

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int


def specs() -> Iterator[Spec]:
    """Every entry of every `COMPILE_SPECS`; the module is named in front.

    Raises:
        ValueError: a name stands twice.
    """
    seen: set[str] = set()
    package = importlib.import_module(PACKAGE)
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{PACKAGE}.{found.name}")
        for entry in getattr(module, "COMPILE_SPECS", ()):
            spec = Spec(*entry)
            if spec.name in seen:
                raise ValueError(f"COMPILE_SPECS: {spec.name} stands twice")
            seen.add(spec.name)
            yield spec


def read() -> Kernels:
    """Usage of every kernel on every capability."""
    kernels: Kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs():
            rows = kernels[spec.name] = {}
            for capability in CAPABILITIES:
                cubin = Path(folder) / "kernel.cubin"
                cubin.write_bytes(compiled(spec, capability))
                (usage,) = machine_code.read(cubin).values()
                rows.update(usage)
    return kernels


def compiled(spec: Spec, capability: int) -> bytes:
    """The machine code of one kernel.

    Raises:
        RuntimeError: it does not compile; names the entry.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(spec.function, *_source_arguments(spec))
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, **_OPTIONS}
    target = GPUTarget("cuda", capability, _WARP)
    try:
        return triton.compile(source, target=target, options=options).asm["cubin"]
    except Exception as error:  # Triton raises many kinds, none of which names the entry
        raise RuntimeError(f"{spec.name} does not compile for {capability}: {error}") from error


def _source_arguments(spec: Spec) -> tuple[dict[str, str], dict[str, Any], dict[tuple, list]]:
    """Signature, constants and attributes, the last by position in the argument list."""
    signature: dict[str, str] = {}
    attributes: dict[tuple, list] = {}
    for position, name in enumerate(spec.function.arg_names):
        kind, _, divisor = spec.signature.get(name, "constexpr").partition(":")
        if name in spec.constants:
            kind = "constexpr"
        signature[name] = kind
        if kind.startswith("*") or divisor:
            attributes[(position,)] = [["tt.divisibility", int(divisor or 16)]]
    return signature, dict(spec.constants), attributes
