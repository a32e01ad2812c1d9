"""Budget of the GPU kernels: registers, memory and access widths, per architecture.

Usage: python tools/kernel_budget.py [--check] [--only cuda|triton]

Without --check: writes benchmarks/budget/*.json and the tables of docs/gpu.md anew and prints what
changed; rules that are broken are printed too and make it exit with 1, whatever was written. With
--check: compares only, and exits with 1 where a kernel is worse than its budget, new or gone.

Needs no GPU. CUDA kernels are read from the built library, Triton kernels are compiled.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_code import machine_code, table, triton_kernels
from gpu_code.budget import Budget, difference
from gpu_code.machine_code import Kernels

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "budget"
DOCUMENT = ROOT / "docs" / "gpu.md"
LIBRARY = ROOT / "dlv3p_kernels" / "lib" / "libdlv3p_cuda.so"
MARKER = "kernel budget"


class Source(NamedTuple):
    """A kind of kernels: where its budget lies, what compiled it, how it is read."""

    title: str
    file: str
    why_not: Callable[[], str | None]
    compiler: Callable[[], str]
    kernels: Callable[[], Kernels]


def _why_not_cuda() -> str | None:
    if not LIBRARY.exists():
        return "libdlv3p_cuda.so is not built (no nvcc?)"
    return None if machine_code.find_tool("cuobjdump") else "there is no cuobjdump"


def _cuda_compiler() -> str:
    record = json.loads((LIBRARY.parent / "build.json").read_text())
    return _family("nvcc", record["CUDA"])


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec(triton_kernels.PACKAGE) is None:
        return "there are no Triton kernels"
    return None if machine_code.find_tool("cuobjdump") else "there is no cuobjdump"


def _triton_compiler() -> str:
    import triton

    return _family("triton", triton.__version__)


def _family(name: str, version: str) -> str:
    """Versions that differ after the second number allot the same registers."""
    return f"{name} {'.'.join(version.split('.')[:2])}"


SOURCES = {
    "cuda": Source(
        "CUDA C++", "cuda.json", _why_not_cuda, _cuda_compiler, lambda: machine_code.read(LIBRARY)
    ),
    "triton": Source(
        "Triton", "triton.json", _why_not_triton, _triton_compiler, triton_kernels.read
    ),
}


def check(source: Source, folder: Path = FOLDER) -> list[str]:
    """What is not as the budget has it."""
    return Budget.load(folder / source.file).objections(source.compiler(), source.kernels())


def regenerate(source: Source, folder: Path = FOLDER) -> tuple[list[str], list[str]]:
    """Write the budget anew; returns the changes, and the rules that are broken.

    Nothing is written where the kernels are compiled for fewer architectures than before.
    """
    path = folder / source.file
    budget, compiler, kernels = Budget.load(path), source.compiler(), source.kernels()
    before = budget.compilers.get(compiler, {})
    if lost := _architectures(before) - _architectures(kernels):
        return [], [f"nothing written: there is no code for {', '.join(sorted(lost))}"]
    changes = difference(before, kernels)
    budget.with_entry(compiler, kernels).save(path)
    return changes, list(budget.rule_objections(kernels))


def _architectures(kernels: Kernels) -> set[str]:
    return {arch for rows in kernels.values() for arch in rows}


def document_text(folder: Path = FOLDER) -> str:
    """docs/gpu.md with the tables of the budget files."""
    tables = [
        table.markdown(source.title, Budget.load(folder / source.file))
        for source in SOURCES.values()
    ]
    return table.replaced(DOCUMENT.read_text(), MARKER, "\n\n".join(tables))


def main(argv: Sequence[str] | None = None) -> int:
    """Check or regenerate; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--only", choices=SOURCES, help="one kind of kernels")
    options = parser.parse_args(argv)
    bad = False
    for name in [options.only] if options.only else SOURCES:
        bad |= _run(SOURCES[name], options.check)
    if not options.check:
        DOCUMENT.write_text(document_text())
    return int(bad)


def _run(source: Source, only_check: bool) -> bool:
    """Do one kind and report; whether something is wrong."""
    if reason := source.why_not():
        print(f"{source.title}: left out, {reason}")
        return False
    known = source.compiler() in Budget.load(FOLDER / source.file).compilers
    changes, objections = ([], check(source)) if only_check else regenerate(source)
    counts = f"{len(changes)} changes, {len(objections)} objections"
    print(f"{source.title}, {source.compiler()}: {counts}")
    if only_check and not known:
        print("  this compiler is not in the budget: only the rules that hold for all were checked")
    for line in (*changes, *objections):
        print(f"  {line}")
    return bool(objections)


if __name__ == "__main__":
    sys.exit(main())
