"""Loading of the compiled libraries, and a report of what was built, loaded, and why not."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ._library import LIBRARY

_FOLDER = Path(__file__).resolve().parent / "lib"
_BUILD_RECORD = _FOLDER / "build.json"


@dataclass(frozen=True)
class NativeLibrary:
    """One compiled library of the package: where it is, whether it loaded, and why not."""

    name: str
    path: str | None
    loaded: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'loaded' if self.loaded else 'not loaded'} ({self.reason})"


@dataclass(frozen=True)
class Status:
    """What `dlv3p_kernels` found on this machine; printable."""

    version: str
    torch: str
    cpu: NativeLibrary
    cuda: NativeLibrary
    triton: str | None
    cpu_capability: str | None
    build: dict[str, object]
    backend: str

    def as_dict(self) -> dict[str, object]:
        """The report as plain dictionaries, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"dlv3p_kernels {self.version} on torch {self.torch}, backend {self.backend!r}",
            f"  {self.cpu}",
            f"  {self.cuda}",
            f"  triton: {self.triton or 'not installed'}",
        ]
        if self.cpu_capability:
            lines.append(f"  CPU kernels use {self.cpu_capability}")
        if self.build:
            lines.append("  built with " + ", ".join(f"{k} {v}" for k, v in self.build.items()))
        return "\n".join(lines)


def _load(name: str, why_not: str | None) -> NativeLibrary:
    path = _FOLDER / f"libdlv3p_{name}.so"
    if not path.exists():
        return NativeLibrary(name, None, False, "not built: this install has no compiled library")
    if why_not:
        return NativeLibrary(name, str(path), False, why_not)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # a library built against something this process lacks
        return NativeLibrary(name, str(path), False, str(error))
    return NativeLibrary(name, str(path), True, path.name)


def _why_not_cuda() -> str | None:
    # CPU-only torch lacks the stream functions that the library links to.
    return None if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"


LIBRARY.define("cpu_capability() -> str")

CPU = _load("cpu", None)
CUDA = _load("cuda", _why_not_cuda())


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def status() -> Status:
    """What was built and loaded, and why not.

    Returns:
        A printable `Status`; `status().as_dict()` gives plain dictionaries.
    """
    from . import dispatch
    from ._version import __version__

    return Status(
        version=__version__,
        torch=torch.__version__,
        cpu=CPU,
        cuda=CUDA,
        triton=_triton_version(),
        cpu_capability=torch.ops.dlv3p.cpu_capability() if CPU.loaded else None,
        build=json.loads(_BUILD_RECORD.read_text()) if _BUILD_RECORD.exists() else {},
        backend=dispatch.current(),
    )
