"""Compiles the emulator and the CUDA sources into a Python module, and loads it.

Objects are kept under build/emulator/, named by a hash of everything that goes into them.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "build" / "emulator"
TORCH = Path(torch.__file__).resolve().parent
TORCH_TARGET = "TORCH_TARGET_VERSION=0x020a000000000000"  # as in CMakeLists.txt
MODULE = "dlv3p_emulator"
# Environment variables: 1 makes load() take the sanitized variant; patterns such as "norm* reduce*"
# leave out all other CUDA sources, so that work on one does not wait for another to compile.
SANITIZE = "DLV3P_EMULATOR_SANITIZE"
SOURCES = "DLV3P_EMULATOR_SOURCES"
JOBS = 2

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_SYMBOL = re.compile(r"^([0-9a-f]+) ([0-9a-f]+) (\w) (?:void )?(dlv3p::.*)$", re.MULTILINE)
_NOT_OF_KERNELS = ("dlv3p::(anonymous namespace)::", "dlv3p::emulator::")
_FLAGS = [
    "-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden",
    # Kernels round after every operation, as the compiler for GPUs is free not to.
    "-ffp-contract=off",
    "-DDLV3P_EMULATED",
]  # fmt: skip
_CHECKS = ["-O1", "-fsanitize=alignment,null,bounds", "-fno-sanitize-recover=all"]  # see ubsan.cpp
# Without optimisation, which would take longer than the run.
_SANITIZE = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


class BuildError(RuntimeError):
    """The compiler or linker failed; the message holds what it said."""


@functools.cache
def load(sanitize: bool | None = None) -> ModuleType:
    """Build what is not built yet and load the module, which registers the operators.

    Args:
        sanitize: the variant under AddressSanitizer and UBSan, whose library the process must have
            preloaded (`sanitizer_environment`); by default what the environment asks for.

    Raises:
        BuildError: a source does not compile.
    """
    if sanitize is None:
        sanitize = os.environ.get(SANITIZE) == "1"
    path = build(sanitize)
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._set_symbols(*_symbols(path))
    return module


def sanitizer_environment() -> dict[str, str]:
    """Environment of a process that can load the sanitized variant, and does."""
    preload = [
        _tool_output("-print-file-name=" + name) for name in ("libasan.so", "libstdc++.so.6")
    ]
    return os.environ | {
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(preload),
        # Python and torch keep what they allocate; the leaks of interest are none of ours.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def sources() -> list[Path]:
    """Everything that is compiled."""
    patterns = os.environ.get(SOURCES, "*").split()
    return [
        *sorted({p for name in patterns for p in (ROOT / "csrc" / "cuda").glob(f"{name}.cu")}),
        *sorted(HERE.glob("*.cpp")),
        *sorted(HERE.glob("*.cu")),
    ]


def build(sanitize: bool = False) -> Path:
    """Compile and link what changed; the path of the module."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with _lock(OUTPUT / "lock"), ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda source: compile_object(source, sanitize), sources()))
        return _link(objects, sanitize)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Of two processes one builds, the other waits and finds it built."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_object(source: Path, sanitize: bool) -> Path:
    """Compile one source, unless the result is there; the path of the object file."""
    command = [*compile_command(source, sanitize), "-c"]
    return _make(OUTPUT / f"{source.stem}-{_hash(command, with_headers(source))}.o", command)


def compile_command(source: Path, sanitize: bool) -> list[str]:
    """What compiles a source, in folder ROOT; the action and the output are not part of it."""
    binding = source.stem == "module"
    checks = _SANITIZE if sanitize else _CHECKS if source.suffix == ".cu" else ["-O1"]
    command = [_compiler(), *_FLAGS, *([] if binding else checks)]
    # Relative to ROOT, as messages shall name the sources.
    command += ["-Itests/emulator", "-Icsrc/cuda", f"-isystem{TORCH / 'include'}"]
    # pybind11 comes with torch, whose copy refuses to be combined with the stable ABI.
    command.append(f"-isystem{sysconfig.get_path('include')}" if binding else f"-D{TORCH_TARGET}")
    return [*command, "-x", "c++", os.path.relpath(source, ROOT)]


def _link(objects: list[Path], sanitize: bool) -> Path:
    command = [_compiler(), "-shared", "-Wl,-Bsymbolic", *(_SANITIZE if sanitize else [])]
    command += [str(path.relative_to(ROOT)) for path in objects]
    command += [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    folder = OUTPUT / _hash(command, [])
    folder.mkdir(exist_ok=True)
    return _make(folder / f"{MODULE}.so", command)


def _make(path: Path, command: list[str]) -> Path:
    """Run the command unless its result is there; it appears under its name when it is whole."""
    if path.exists():
        return path
    part = path.with_suffix(".part")
    result = subprocess.run([*command, "-o", str(part)], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        hint = f"(To build only some of csrc/cuda: {SOURCES}='norm* reduce*')"
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}{hint}")
    part.replace(path)
    return path


def with_headers(source: Path) -> list[Path]:
    """A source and the project's headers that it includes, directly or not."""
    found = [source]
    for path in found:
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            candidates = (path.parent / name, HERE / name, ROOT / "csrc" / "cuda" / name)
            header = next((c.resolve() for c in candidates if c.is_file()), None)
            if header and header not in found:
                found.append(header)
    return found


def _hash(command: list[str], files: list[Path]) -> str:
    text = "\n".join([*command, _compiler_version(), torch.__version__, sys.version])
    digest = hashlib.sha256(text.encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _symbols(module: Path) -> tuple[dict[int, str], list[tuple[int, int]]]:
    """Names of the functions, and offset and size of static shared memory, from the symbol table.

    Static shared memory is what is local to a function of namespace dlv3p and not constant; host
    functions stand in an unnamed namespace.
    """
    output = subprocess.run(
        ["nm", "--print-size", "--demangle", "--defined-only", str(module)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    functions: dict[int, str] = {}
    shared: list[tuple[int, int]] = []
    for address, size, kind, name in _SYMBOL.findall(output):
        if kind in "tTwW":
            functions[int(address, 16)] = _short_name(name)
        elif kind in "bBuvV" and ")::" in name and not name.startswith(_NOT_OF_KERNELS):
            shared.append((int(address, 16), int(size, 16)))
    return functions, shared


def _short_name(signature: str) -> str:
    """`depthwise_fwd_kernel<BFloat16, 8>` from the demangled signature."""
    name = re.sub(r"dlv3p::|c10::|\(anonymous namespace\)::", "", signature)
    return name.split("(")[0]


@functools.cache
def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise BuildError("the emulator needs g++")
    return compiler


@functools.cache
def _compiler_version() -> str:
    return _tool_output("--version")


def _tool_output(argument: str) -> str:
    command = [_compiler(), argument]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
