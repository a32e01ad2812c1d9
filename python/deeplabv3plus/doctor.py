"""What this machine has, what is missing, and the line that fixes it; needs no extra."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import torch
import torch.nn.functional as F

import dlv3p_kernels as dk

_TRAIN_LIBRARIES = {"PIL": "pillow", "tqdm": "tqdm", "matplotlib": "matplotlib"}
_OPTIONAL_LIBRARIES = {"tensorboard": "tensorboard", "timm": "timm"}
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def run(args: argparse.Namespace) -> int:
    """Print the report (no options); return 0 if the kernels give right results here, else 1."""
    lines, fixes = report()
    print("\n".join(lines))
    broken = self_check()
    agreement = "depthwise convolution and its gradients agree with stock PyTorch"
    print(f"\nself-check: {broken or agreement}")
    print("\n".join(f"to do: {fix}" for fix in fixes) if fixes else "nothing is missing")
    return 1 if broken else 0


def report() -> tuple[list[str], list[str]]:
    """Return the lines of the report, and for each thing missing the line that fixes it."""
    lines = [
        str(dk.status()),
        "",
        f"Python     {platform.python_version()} ({sys.executable})",
        f"torch      {torch.__version__}, CUDA {torch.version.cuda or 'no'}",
        f"system     {platform.platform()}",
        f"CPU        {cpu_name()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads in use, {torch.backends.cpu.get_cpu_capability()}",
        f"GPU        {gpu_names()}",
        f"triton     {_version('triton') or 'not installed'}",
    ]
    lines += [f"{name:<10} {_tool_version(name)}" for name in ("c++", "nvcc", "cmake", "ninja")]
    libraries = _TRAIN_LIBRARIES | _OPTIONAL_LIBRARIES
    lines += [
        f"{package:<10} {_version(name, package) or 'not installed'}"
        for name, package in libraries.items()
    ]
    return lines, _fixes()


def self_check() -> str:
    """Return what is wrong with a small convolution and its gradients here, or nothing."""
    generator = torch.Generator().manual_seed(0)
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        inputs = [
            torch.randn(2, 8, 9, 9, generator=generator),
            torch.randn(8, 1, 3, 3, generator=generator),
        ]
        try:
            ours = _results(dk.depthwise_conv2d, [tensor.to(device) for tensor in inputs])
        except Exception as error:  # the report has to come out whatever a broken build raises
            return f"FAILED on {device}: {type(error).__name__}: {error}"
        stock = _results(_stock, [tensor.double().to(device) for tensor in inputs])
        for mine, exact in zip(ours, stock, strict=True):
            if not torch.allclose(mine.double(), exact, rtol=1e-4, atol=1e-4):
                off = float((mine.double() - exact).abs().max())
                return f"FAILED on {device}: results differ by {off:.2g}"
    return ""


def _stock(x: torch.Tensor, weight: torch.Tensor, padding: int, dilation: int) -> torch.Tensor:
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def _results(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves, padding=2, dilation=2)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def cpu_name() -> str:
    """Return the name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> str:
    """Return the names of the GPUs that PyTorch sees."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (
        ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        or "none that PyTorch can use"
    )


def _fixes() -> list[str]:
    fixes = []
    status = dk.status()
    if not status.cpu.loaded:
        compiler = "" if _compiler() else "install a C++ compiler (e.g. apt install g++), then "
        fixes.append(f"no compiled CPU kernels, stock PyTorch is used: {compiler}{_REBUILD}")
    if torch.cuda.is_available() and not status.cuda.loaded and not _version("triton"):
        fixes.append("no GPU kernels: pip install triton, or with nvcc on PATH " + _REBUILD)
    if any(util.find_spec(name) is None for name in _TRAIN_LIBRARIES):
        fixes.append(
            'train, evaluate and segment need more libraries: pip install "dlv3p_kernels[train]"'
        )
    return fixes


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _tool_version(name: str) -> str:
    path = _compiler() if name == "c++" else shutil.which(name)
    if path is None:
        return "not found"
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    lines = output.strip().splitlines() or ["unknown version"]
    # nvcc gives its release in the last but one line, the others in the first.
    line = next((line for line in lines if "release" in line), lines[0])
    return f"{path} ({line})"


def _version(module: str, package: str | None = None) -> str | None:
    if util.find_spec(module) is None:
        return None
    try:
        return metadata.version(package or module)
    except metadata.PackageNotFoundError:
        return getattr(importlib.import_module(module), "__version__", "unknown version")
