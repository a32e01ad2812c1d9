"""Reads registers, memory and access widths of compiled kernels with cuobjdump and c++filt."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Resource usage and code of one architecture stand under such a line in both kinds of dump.
_ARCHITECTURE = re.compile(r"^arch = sm_(\w+)$")
_CUBIN_ARCHITECTURE = re.compile(r"^\s*code for sm_(\w+)$")
_USAGE_OF = re.compile(r"^\s*Function (\S+):$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_CODE_OF = re.compile(r"^\s*Function : (\S+)$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)")
# Generic LD and ST count as global: ptxas emits them where it cannot tell the address space.
_ACCESSES = {
    "load": {"LDG", "LD"},
    "store": {"STG", "ST"},
    "async_copy": {"LDGSTS", "UBLKCP", "UTMALDG"},
}
# Products of matrices; the newer in its architecture's own form only.
_TENSOR = ("UTCHMMA", "HGMMA", "HMMA")
_DEFAULT_BITS = 32
_RESERVED_SHARED = 1024
_REPORTS_RESERVED = 90
_BULK_BITS = 128  # bulk copies and tensor maps move multiples of 16 bytes


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture.

    `local` is bytes of local memory per thread: spilled registers and arrays that the compiler
    could not keep in registers, which cost the same. `load`, `store` and `async_copy` are the
    widest global accesses of one thread in bits, 0 where there are none. `tensor` is the newest
    kind of tensor core instruction, "" where there is none.
    """

    registers: int
    local: int = 0
    shared: int = 0
    load: int = 0
    store: int = 0
    async_copy: int = 0
    tensor: str = ""

    def as_dict(self) -> dict[str, int | str]:
        """The fields, ready for JSON; most kernels are silent about tensor cores."""
        return {key: value for key, value in asdict(self).items() if value != ""}


# Kernel -> architecture ("90a") -> usage.
Kernels = dict[str, dict[str, Usage]]
# Mangled name, architecture, fields of `Usage`.
Widths = tuple[str, str, dict[str, Any]]


def find_tool(name: str) -> str | None:
    """A CUDA binary utility: on PATH, in CUDA_HOME, beside nvcc, or in the triton package."""
    folders = [
        Path(os.environ[key]) / "bin" for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ
    ]
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    places = [None, *map(str, folders)]
    return next((found for place in places if (found := shutil.which(name, path=place))), None)


def read(binary: Path) -> Kernels:
    """Usage of every kernel of a library or cubin, under readable names.

    Args:
        binary: a shared library with CUDA code, or one cubin.

    Raises:
        FileNotFoundError: there is no cuobjdump on this machine.
    """
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        raise FileNotFoundError("cuobjdump: not on PATH, beside nvcc, nor in the triton package")
    kernels = parse_usage(_lines(cuobjdump, "--dump-resource-usage", str(binary)))
    architectures = sorted({arch for rows in kernels.values() for arch in rows})
    # The code is some 60 MB of text for each architecture: a process each, read as it comes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        dumps = pool.map(lambda arch: _code(cuobjdump, binary, arch), architectures)
        for widths in dumps:
            kernels = with_widths(kernels, widths)
    return renamed(kernels)


def _code(cuobjdump: str, binary: Path, architecture: str) -> list[Widths]:
    only = ["--gpu-architecture", f"sm_{architecture}"] if architecture else []
    return list(parse_code(_lines(cuobjdump, "-sass", *only, str(binary))))


def with_widths(kernels: Kernels, widths: Iterable[Widths]) -> Kernels:
    """The usage with the widths of the accesses filled in."""
    filled = {name: dict(rows) for name, rows in kernels.items()}
    for name, architecture, found in widths:
        rows = filled[name]
        # The usage of a lone cubin does not name its architecture.
        key = architecture if architecture in rows else ""
        usage = rows.pop(key)
        shared = usage.shared - _reserved_shared(architecture, usage.shared)
        rows[architecture] = replace(usage, shared=shared, **found)
    return filled


def parse_usage(lines: Iterable[str]) -> Kernels:
    """Registers and memory by mangled name; architecture "" where the dump names none."""
    kernels: Kernels = {}
    architecture = name = ""
    for line in lines:
        if match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := _USAGE_OF.match(line):
            name = match[1]
        elif name and (match := _USAGE.search(line)):
            registers, stack, shared, local = map(int, match.groups())
            kernels.setdefault(name, {})[architecture] = Usage(registers, stack + local, shared)
            name = ""
    return kernels


def _reserved_shared(architecture: str, shared: int) -> int:
    """What the system takes of the shared memory of a block, which is reported from 9.0 on."""
    newer = int(architecture.rstrip("af")) >= _REPORTS_RESERVED
    return _RESERVED_SHARED if newer and shared >= _RESERVED_SHARED else 0


def parse_code(lines: Iterable[str]) -> Iterator[Widths]:
    """Widest accesses by mangled name and architecture."""
    architecture = ""
    name = None
    widths: dict[str, Any] = {}
    for line in lines:
        if match := _INSTRUCTION.match(line):
            kind, bits = access(match[1])
            if kind:
                widths[kind] = max(bits, widths.get(kind, 0))
            elif (opcode := match[1].split(".")[0]) in _TENSOR:
                widths["tensor"] = min(opcode, widths.get("tensor", opcode), key=_TENSOR.index)
        elif match := _ARCHITECTURE.match(line) or _CUBIN_ARCHITECTURE.match(line):
            if name:
                yield name, architecture, widths
            name, architecture = None, match[1]
        elif match := _CODE_OF.match(line):
            if name:
                yield name, architecture, widths
            name, widths = match[1], {}
    if name:
        yield name, architecture, widths


def access(instruction: str) -> tuple[str | None, int]:
    """Kind and bits per thread of a global access such as "LDG.E.128"; (None, 0) for others."""
    opcode, *modifiers = instruction.split(".")
    kind = next((kind for kind, opcodes in _ACCESSES.items() if opcode in opcodes), None)
    if kind is None:
        return None, 0
    if opcode in ("UBLKCP", "UTMALDG"):
        return kind, _BULK_BITS
    # "ENL2.256" is the 256-bit form of the newest architectures, "U16" and "S8" are narrow ones.
    sizes = [
        int(m[1]) for m in (re.fullmatch(r"[US]?(8|16|64|128|256)", x) for x in modifiers) if m
    ]
    return kind, max(sizes, default=_DEFAULT_BITS)


def renamed(kernels: Kernels) -> Kernels:
    """The same with demangled, shortened names."""
    names = list(kernels)
    demangled = _output("c++filt", stdin="\n".join(names)).splitlines() if names else []
    return {readable(long): kernels[short] for short, long in zip(names, demangled, strict=True)}


_SHORTER = (
    (re.compile(r"\(anonymous namespace\)::|_INTERNAL_\w+?::|\bdlv3p::"), ""),
    (re.compile(r"__nv_bfloat16"), "bfloat16"),
    (re.compile(r"__half"), "half"),
    (re.compile(r"\((?:int|long|bool|unsigned int|unsigned long)\)"), ""),
    (re.compile(r"\((\w+)\)(\d+)"), r"\1 \2"),
    (re.compile(r"\b(\d+)u?l?\b"), r"\1"),
    (re.compile(r" >"), ">"),
)


def readable(demangled: str) -> str:
    """Function and template arguments alone: "depthwise_fwd_kernel<half, 8>"."""
    text = demangled
    for pattern, short in _SHORTER:
        text = pattern.sub(short, text)
    text = text.removeprefix("void ")
    return _before_parameters(text)


def _before_parameters(text: str) -> str:
    """Cuts at the "(" of the parameter list, which stands outside all angle brackets."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:i]
    return text


def _lines(*command: str) -> Iterator[str]:
    """Standard output of a command as it comes; CalledProcessError where it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _output(*command: str, stdin: str | None = None) -> str:
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout
