"""Audit of the compiled libraries: what they need from the machine that loads them.

Usage: python tools/audit_abi.py LIBRARY [LIBRARY ...]

1. Undefined symbols come from the C and C++ runtime or are C shims of the LibTorch stable ABI.
2. Needed libraries are libtorch.so and the C and C++ runtime; no run path leads out of the wheel.
3. AVX instructions stand in functions of anonymous namespaces only, which are chosen at run time:
   anything the linker may share between translation units must run on every x86-64 CPU.
4. `torch-abi-audit --check torch`, where it is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Versioned by the C and C++ runtime, weak hooks of the compiler's start files, stable ABI shims.
RUNTIME_VERSION = re.compile(r"@@?(GLIBC|GLIBCXX|CXXABI|GCC|LIBATOMIC)_")
STABLE_SHIM = re.compile(r"(aoti_torch_|torch_)\w+$")
START_FILES = {
    "_ITM_deregisterTMCloneTable",
    "_ITM_registerTMCloneTable",
    "__cxa_finalize",
    "__gmon_start__",
}
NEEDED = re.compile(
    r"libtorch\.so|(libstdc\+\+|libgcc_s|libc|libm|libdl|libpthread|librt)\.so\.\d+|ld-linux.*"
)
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
AVX = re.compile(r"^\s*[0-9a-f]+:\s+v[a-z]")
ANONYMOUS = re.compile(r"_GLOBAL__N_1")


def run(*command: str) -> str:
    """Standard output of a command of binutils."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def undefined_symbols(library: Path) -> list[str]:
    """What the loader has to find elsewhere, with versions."""
    dump = run("nm", "-D", "--undefined-only", "--with-symbol-versions", str(library))
    return [line.split()[-1] for line in dump.splitlines()]


def foreign_symbols(library: Path) -> Iterator[str]:
    """Undefined symbols that are neither of the runtime nor stable shims."""
    for symbol in undefined_symbols(library):
        known = STABLE_SHIM.match(symbol) or symbol in START_FILES
        if not known and not RUNTIME_VERSION.search(symbol):
            yield f"undefined symbol {symbol} is outside the stable ABI"


def foreign_libraries(library: Path) -> Iterator[str]:
    """Needed libraries and run paths that another machine may lack."""
    for line in run("readelf", "-dW", str(library)).splitlines():
        tag, _, value = line.partition("[")
        value = value.rstrip("]")
        if "(NEEDED)" in tag and not NEEDED.fullmatch(value):
            yield f"needs {value}"
        if "(RPATH)" in tag or "(RUNPATH)" in tag:
            away = [path for path in value.split(":") if not path.startswith("$ORIGIN")]
            yield from (f"run path {path} leads out of the wheel" for path in away)


def shared_avx(library: Path) -> Iterator[str]:
    """Functions with AVX instructions that the linker may share between translation units."""
    function = ""
    found: set[str] = set()
    for line in run("objdump", "-d", "--no-show-raw-insn", str(library)).splitlines():
        if match := FUNCTION.match(line):
            function = match[1]
        elif AVX.match(line) and not ANONYMOUS.search(function) and function not in found:
            found.add(function)
            yield f"AVX instructions in {function}"


def torch_abi_audit(library: Path) -> Iterator[str]:
    """What `torch-abi-audit` objects to."""
    command = shutil.which("torch-abi-audit") or shutil.which(
        "torch-abi-audit", path=str(Path(sys.executable).parent)
    )
    if command is None:
        return
    result = subprocess.run(
        [command, "--check", "torch", "--verbose", str(library.resolve())],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        yield f"torch-abi-audit: {result.stdout.strip() or result.stderr.strip()}"


def audit(library: Path) -> list[str]:
    """Every objection to one library."""
    checks = (foreign_symbols, foreign_libraries, shared_avx, torch_abi_audit)
    return [objection for check in checks for objection in check(library)]


def main() -> None:
    """Audit the libraries named on the command line; exit 1 if there are objections."""
    if len(sys.argv) < 2:
        sys.exit("name at least one library")
    objections = 0
    for name in sys.argv[1:]:
        found = audit(Path(name))
        objections += len(found)
        print(f"{name}: {'ABI audit passed' if not found else ''}")
        for objection in found:
            print(f"  {objection}")
    sys.exit(1 if objections else 0)


if __name__ == "__main__":
    main()
