"""The Triton kernels as a package: imported late, complete, no burden where Triton is missing."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import dlv3p_kernels.triton as kernels

BLOCK_TRITON = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
"""


def run(code: str) -> str:
    """What a new process prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_does_not_import_triton() -> None:
    loaded = run(
        "import torch, sys; before = set(sys.modules); import dlv3p_kernels\n"
        "print([m for m in set(sys.modules) - before if m.split('.')[0] == 'triton'])"
    )
    assert loaded.strip() == "[]"


def test_without_triton_the_package_works_and_says_so() -> None:
    message = run(
        BLOCK_TRITON + "import torch, dlv3p_kernels as dk\n"
        "x, weight = torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3)\n"
        "assert dk.depthwise_conv2d(x, weight).eq(9).all()\n"
        "dk.backend('triton')\n"
        "try:\n    dk.depthwise_conv2d(x, weight)\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    assert "backend 'triton' can not serve depthwise_conv2d" in message


def test_every_op_has_a_kernel() -> None:
    """Of those in the namespace all that are not made of others, and some that could be."""
    registered = {name for names in kernels.OPS.values() for name in names}
    defined = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dlv3p_triton::")
    }
    composed = {
        name
        for name in defined
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            f"dlv3p_triton::{name}", "CompositeExplicitAutograd"
        )
    }
    assert defined - composed <= registered <= defined
    for name in registered:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dlv3p_triton::{name}", "CUDA")


def test_every_kernel_is_in_the_budget() -> None:
    pytest.importorskip("triton")
    modules = [
        importlib.import_module(f"{kernels.__name__}.{found.name}")
        for found in pkgutil.iter_modules(kernels.__path__)
    ]
    names = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    specs = importlib.import_module(f"{kernels.__name__}.specs").COMPILE_SPECS
    assert names == {spec[1].__name__ for spec in specs}
