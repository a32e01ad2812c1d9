"""Rules for the native sources that no compiler checks.

Usage: python tools/check_sources.py [FOLDER]      (default: csrc/ of this repository)

1. Nothing under csrc/ includes ATen/, c10/, torch/extension.h, torch/torch.h or Python.h: one wheel
   runs on every torch >= 2.10 and CPython >= 3.10 only through the LibTorch stable ABI.
2. A `.cuh` holds kernels and device functions: no torch header, not even through another header,
   and no launch, so that it compiles in a second and also runs without a GPU.
3. Sources compiled once per instruction set (cpu/*_kernel.*, and the headers they include) use only
   the headers and names of the standard library that emit no code. The linker keeps one copy of a
   function template for the whole library; if it keeps the AVX-512 copy, older CPUs crash in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = {".h", ".hpp", ".cuh", ".c", ".cpp", ".cc", ".cu", ".inc"}
FORBIDDEN = re.compile(r"ATen/|c10/|torch/extension\.h$|torch/(all|torch)\.h$|Python\.h$|pybind11/")
PER_ISA_HEADERS = {"cstddef", "cstdint", "cstring", "immintrin.h", "type_traits", "utility"}
PER_ISA_NAMES = re.compile(
    r"""std\s*::\s*(?!(
        u?int(8|16|32|64|ptr)_t | size_t | ptrdiff_t | mem(cpy|set|move|cmp)
      | is_\w+ | conditional(_t)? | enable_if(_t)? | remove_\w+ | integral_constant
      | (make_)?(index|integer)_sequence | true_type | false_type | void_t | declval
    )\b)(\w+)""",
    re.VERBOSE,
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
LAUNCH = re.compile(r"<<<|\bcudaLaunchKernel")
CODE_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


@dataclass(frozen=True)
class Violation:
    """One line that breaks a rule."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def code_lines(path: Path) -> list[str]:
    """The lines of a source with its comments blanked out, so that numbers stay right."""

    def blank(match: re.Match[str]) -> str:
        return match[1] or "\n" * match[0].count("\n")

    return CODE_OR_COMMENT.sub(blank, path.read_text(encoding="utf-8")).split("\n")


def includes(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, header, whether in quotes) of every #include."""
    for number, line in enumerate(code_lines(path), 1):
        if match := INCLUDE.match(line):
            yield number, match[2], match[1] == '"'


def resolve(header: str, path: Path, root: Path) -> Path | None:
    """The project header that a quoted include names; None for one from elsewhere."""
    for candidate in (path.parent / header, root / header):
        if candidate.is_file():
            return candidate.resolve()
    return None


def with_headers(path: Path, root: Path) -> list[Path]:
    """A source and every project header that it includes, directly or not."""
    found = [path.resolve()]
    for source in found:
        for _, header, _ in includes(source):
            target = resolve(header, source, root)
            if target and target not in found:
                found.append(target)
    return found


def check_stable_abi(path: Path) -> Iterator[Violation]:
    """Rule 1 for one file."""
    for number, header, _ in includes(path):
        if FORBIDDEN.match(header):
            yield Violation(path, number, f"{header} is outside the stable ABI")


def check_device_code(path: Path, root: Path) -> Iterator[Violation]:
    """Rule 2 for one `.cuh` and what it includes."""
    for source in with_headers(path, root):
        for number, header, _ in includes(source):
            if header.startswith("torch/"):
                yield Violation(source, number, f"{header} reaches {path.name}; keep torch out")
    for number, line in enumerate(code_lines(path), 1):
        if LAUNCH.search(line):
            yield Violation(path, number, "a launch belongs into the .cu file")


def check_per_isa(path: Path, root: Path) -> Iterator[Violation]:
    """Rule 3 for one `*_kernel.*` and what it includes."""
    for source in with_headers(path, root):
        for number, header, quoted in includes(source):
            if not quoted and header not in PER_ISA_HEADERS:
                yield Violation(source, number, f"<{header}> in code compiled per instruction set")
        for number, line in enumerate(code_lines(source), 1):
            for match in PER_ISA_NAMES.finditer(line):
                name = match[0].replace(" ", "")
                yield Violation(source, number, f"{name} in code compiled per instruction set")


def check(root: Path) -> list[Violation]:
    """Every violation under `root`, a folder laid out like csrc/, each once."""
    found: dict[Violation, None] = {}
    for path in sorted(p.resolve() for p in root.rglob("*") if p.suffix in SUFFIXES):
        found |= dict.fromkeys(check_stable_abi(path))
        if path.suffix == ".cuh":
            found |= dict.fromkeys(check_device_code(path, root))
        if path.parent.name == "cpu" and path.stem.endswith("_kernel"):
            found |= dict.fromkeys(check_per_isa(path, root))
    return list(found)


def main() -> None:
    """Print the violations under the folder named on the command line; exit 1 if there are any."""
    default = Path(__file__).resolve().parent.parent / "csrc"
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if not root.is_dir():
        sys.exit(f"{root} is not a folder")
    violations = check(root)
    print("\n".join(map(str, violations)) or f"{root}: source rules kept")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
