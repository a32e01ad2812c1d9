"""Builds the compiled libraries for the local GPU, where those that are there do not fit.

Uses nothing of the package, which loads the libraries when it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ROOT / "dlv3p_kernels" / "lib"
_WORK = ROOT / "build" / "gpu-check"
# Code for it runs on this capability alone, and is what the kernels are tuned for.
_SPECIFIC = {"9.0": "9.0a"}


def why_unfit(capability: str | None, root: Path = ROOT, libraries: Path = LIBRARIES) -> str | None:
    """Why the built libraries do not serve a GPU of that capability; None where they do.

    Args:
        capability: "9.0", or None where there is no GPU: then any will do.
        root: the checkout.
        libraries: the folder of the built libraries.
    """
    built = [libraries / name for name in ("libdlv3p_cpu.so", "libdlv3p_cuda.so", "build.json")]
    for path in built:
        if not path.exists():
            return f"{path.name} is missing"
    sources = [root / "CMakeLists.txt", *(p for p in (root / "csrc").rglob("*") if p.is_file())]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    # Every build writes its record anew, but only the library whose sources have changed.
    if newest.stat().st_mtime > built[2].stat().st_mtime:
        return f"{newest.relative_to(root)} is newer than the libraries"
    architectures = str(json.loads(built[2].read_text()).get("CUDA", ""))
    if capability and f"{architecture(capability).replace('.', '')}-real" not in architectures:
        return f"they hold no code for {capability}: {architectures or 'no CUDA'}"
    return None


def architecture(capability: str) -> str:
    """The architecture to compile for."""
    return _SPECIFIC.get(capability, capability)


def build(capability: str | None) -> str | None:
    """Build in place; the end of the output where that fails."""
    cmake = _tool("cmake")
    if cmake is None:
        return "cmake: not beside the interpreter, not on PATH"
    folder = str(Path(cmake).parent)
    environment = os.environ | {"PATH": os.pathsep.join([folder, os.environ["PATH"]])}
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    configure = [cmake, *_generator(), "-S", str(ROOT), "-B", str(_WORK), *_options(capability)]
    for command in (
        configure,
        [cmake, "--build", str(_WORK), "--parallel", jobs],
        [cmake, "--install", str(_WORK), "--prefix", str(LIBRARIES)],
    ):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            return (result.stdout + result.stderr)[-3000:]
    return None


def _generator() -> list[str]:
    ninja = _tool("ninja")
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []


def _options(capability: str | None) -> list[str]:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        sys.exit(f"gpu-check: {sys.executable} has no torch")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "DLV3P_TORCH_DIR": str(Path(torch.origin).parent),
        "DLV3P_CUDA": "1",
    }
    if capability:
        options["DLV3P_CUDA_ARCHITECTURES"] = architecture(capability)
    return [f"-D{name}={value}" for name, value in options.items()]


def _tool(name: str) -> str | None:
    """A program of the interpreter's environment, or on PATH."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)
