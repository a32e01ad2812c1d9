"""Thin driver of the native build in CMakeLists.txt; everything else stands in pyproject.toml.

Environment: DLV3P_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARIES = Path("dlv3p_kernels") / "lib"

NEEDS_TORCH = """
dlv3p_kernels compiles against the torch that it will run with, and torch cannot be imported here.
Install torch first, then:

    pip install --no-build-isolation .

or install a wheel of dlv3p_kernels, which needs neither torch nor a compiler to be installed.
"""
NO_COMPILER = """
dlv3p_kernels: no C++ compiler found (CXX, c++, g++, clang++): installing without compiled kernels.
Everything works on stock PyTorch; `dlv3p doctor` says what is missing.
"""


def _has_compiler() -> bool:
    return any(name and shutil.which(name) for name in (os.getenv("CXX"), "c++", "g++", "clang++"))


def _torch_folder() -> Path:
    # Found, not imported: importing takes seconds and is not needed.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(NEEDS_TORCH)
    return Path(spec.origin).parent


def _architectures(editable: bool) -> str | None:
    """TORCH_CUDA_ARCH_LIST, or for an editable install the GPUs of this machine, or the default.

    Without a GPU an editable install is compiled for one architecture, to see that it compiles:
    all of them take minutes.
    """
    if named := os.getenv("TORCH_CUDA_ARCH_LIST"):
        return named
    if not editable:
        return None
    versions: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        versions = sorted({line.strip() for line in found.stdout.splitlines() if line.strip()})
        versions = [] if found.returncode else versions
    return ";".join("9.0a" if version == "9.0" else version for version in versions or ["9.0"])


class BuildNative(build_ext):
    """Runs CMake; the libraries go to dlv3p_kernels/lib, in place for an editable install."""

    def run(self) -> None:
        """Configure, build and install the libraries, or say why not."""
        if not _has_compiler():
            print(NO_COMPILER, file=sys.stderr)
            return
        target = (ROOT if self.inplace else Path(self.build_lib).resolve()) / LIBRARIES
        # An editable install is built again and again: a fixed folder makes that incremental.
        work = (ROOT / "build" if self.inplace else Path(self.build_temp).resolve()) / "native"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "DLV3P_TORCH_DIR": _torch_folder(),
            "DLV3P_CUDA": os.getenv("DLV3P_CUDA", "auto"),
            "DLV3P_CUDA_ARCHITECTURES": _architectures(bool(self.inplace)),
        }
        flags = [f"-D{name}={value}" for name, value in options.items() if value]
        jobs = os.getenv("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", work, *flags], check=True)
        subprocess.run(["cmake", "--build", work, "--parallel", jobs], check=True)
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cmake", "--install", work, "--prefix", target], check=True)

    def get_outputs(self) -> list[str]:
        """The installed libraries, which setuptools cannot know."""
        return [str(path) for path in (Path(self.build_lib) / LIBRARIES).glob("*")]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing to link back: an editable install builds in place."""
        return {}


class PlatformWheel(bdist_wheel):
    """Any Python, this platform: the libraries use no Python symbols."""

    def finalize_options(self) -> None:
        """Mark the wheel as one with compiled code."""
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        """The tag py3-none-<platform>."""
        return "py3", "none", super().get_tag()[2]


setup(
    # A name for setuptools to call BuildNative for; CMake knows the sources.
    ext_modules=[Extension("dlv3p_kernels.lib", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
