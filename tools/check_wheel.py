"""Check a built wheel: tag, contents, requirements, and the libraries inside.

Usage: python tools/check_wheel.py WHEEL [WHEEL ...]
"""

from __future__ import annotations

import email
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import audit_abi

ROOT = Path(__file__).resolve().parent.parent
FILE_NAME = re.compile(r"dlv3p_kernels-[^-]+-(py3-none-(manylinux_\d+_\d+|linux)_\w+)\.whl")
REQUIRED = (
    "dlv3p_kernels/__init__.py",
    "dlv3p_kernels/py.typed",
    "dlv3p_kernels/lib/libdlv3p_cpu.so",
    "deeplabv3plus/__init__.py",
    "deeplabv3plus/py.typed",
    "deeplabv3plus/sample/LICENSE",
    "deeplabv3plus/sample/ImageSets/Segmentation/train.txt",
    "deeplabv3plus/sample/ImageSets/Segmentation/val.txt",
)
REQUIRED_IN_DIST_INFO = ("licenses/LICENSE", "entry_points.txt", "METADATA", "WHEEL")
CORE_REQUIREMENTS = {"torch>=2.10", "numpy"}


class Wheel:
    """The parts of a wheel that the checks look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = zipfile.ZipFile(path)
        self.names = [name for name in self.archive.namelist() if not name.endswith("/")]
        self.dist_info = next(n.split("/")[0] for n in self.names if ".dist-info/" in n)

    def headers(self, name: str) -> Message:
        """The headers of METADATA or WHEEL."""
        return email.message_from_bytes(self.archive.read(f"{self.dist_info}/{name}"))

    def libraries(self) -> list[str]:
        """Names of the shared libraries inside."""
        return [name for name in self.names if re.search(r"\.so(\.|$)", name)]


def wrong_tag(wheel: Wheel) -> Iterator[str]:
    """One wheel serves every CPython 3 on its platform."""
    match = FILE_NAME.fullmatch(wheel.path.name)
    if match is None:
        yield "the file name is not dlv3p_kernels-VERSION-py3-none-PLATFORM.whl"
        return
    headers = wheel.headers("WHEEL")
    if headers.get_all("Tag") != [match[1]]:
        yield f"file name says {match[1]}, WHEEL says {headers.get_all('Tag')}"
    if headers["Root-Is-Purelib"] != "false":
        yield "marked as a pure Python wheel"


def wrong_contents(wheel: Wheel) -> Iterator[str]:
    """What must be inside is inside, and nothing else."""
    wanted = [*REQUIRED, *(f"{wheel.dist_info}/{name}" for name in REQUIRED_IN_DIST_INFO)]
    yield from (f"{name} is missing" for name in wanted if name not in wheel.names)
    for suffix in ("jpg", "png"):
        if not any(re.match(rf"deeplabv3plus/sample/.*\.{suffix}$", n) for n in wheel.names):
            yield f"the sample holds no {suffix}"
    allowed = {"dlv3p_kernels", "deeplabv3plus", wheel.dist_info}
    for name in wheel.names:
        if name.split("/")[0] not in allowed or re.search(r"__pycache__|\.(cpp|cuh?|h|o)$", name):
            yield f"{name} does not belong into the wheel"
    for name in wheel.libraries():
        if not re.fullmatch(r"dlv3p_kernels/lib/libdlv3p_\w+\.so", name):
            yield f"{name} is bundled; torch and the system provide their own"


def wrong_requirements(wheel: Wheel) -> Iterator[str]:
    """The core asks for torch and numpy alone."""
    lines = wheel.headers("METADATA").get_all("Requires-Dist") or []
    core = {line for line in lines if "extra ==" not in line}
    if core != CORE_REQUIREMENTS:
        yield f"the core requires {sorted(core)}, expected {sorted(CORE_REQUIREMENTS)}"


def build_paths(wheel: Wheel) -> Iterator[str]:
    """Paths of the machine that built the wheel."""
    for name in wheel.names:
        if str(ROOT).encode() in wheel.archive.read(name):
            yield f"{name} names the build folder {ROOT}"


def wrong_libraries(wheel: Wheel) -> Iterator[str]:
    """The libraries pass the ABI audit."""
    with tempfile.TemporaryDirectory() as folder:
        for name in wheel.libraries():
            library = Path(wheel.archive.extract(name, folder))
            yield from (f"{name}: {objection}" for objection in audit_abi.audit(library))


def check(path: Path) -> list[str]:
    """Every objection to one wheel."""
    wheel = Wheel(path)
    checks = (wrong_tag, wrong_contents, wrong_requirements, build_paths, wrong_libraries)
    return [objection for each in checks for objection in each(wheel)]


def main() -> None:
    """Check the wheels named on the command line; exit 1 if there are objections."""
    if len(sys.argv) < 2:
        sys.exit("name at least one wheel")
    objections = 0
    for name in sys.argv[1:]:
        found = check(Path(name))
        objections += len(found)
        size = Path(name).stat().st_size / 2**20
        print("\n  ".join([f"{name}: {size:.1f} MiB, {len(found)} objections", *found]))
    sys.exit(1 if objections else 0)


if __name__ == "__main__":
    main()
