"""The lint of the native sources catches planted violations and passes the sources as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_sources
import pytest

ROOT = Path(__file__).resolve().parent.parent


def plant(root: Path, files: dict[str, str]) -> list[str]:
    """Write the files and return what the lint says, paths relative to `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = check_sources.check(root)
    return [f"{v.path.relative_to(root.resolve())}:{v.line}: {v.message}" for v in found]


def test_sources_keep_the_rules() -> None:
    assert list((ROOT / "csrc").rglob("*_kernel.*")), "rule 3 would check nothing"
    assert [str(v) for v in check_sources.check(ROOT / "csrc")] == []


@pytest.mark.parametrize(
    "header",
    ["ATen/ATen.h", "c10/util/Half.h", "torch/extension.h", "torch/torch.h", "torch/all.h",
     "Python.h", "pybind11/pybind11.h"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["cpu/op.cpp", "cuda/op.cu", "common/op.h"])
@pytest.mark.parametrize("line", ["#include <{}>", '  #  include "{}"'])
def test_unstable_headers_are_caught(tmp_path: Path, header: str, name: str, line: str) -> None:
    found = plant(tmp_path, {name: "\n" + line.format(header) + "\n"})
    assert found == [f"{name}:2: {header} is outside the stable ABI"]


def test_stable_headers_and_comments_pass(tmp_path: Path) -> None:
    source = """
        // #include <ATen/ATen.h>
        /* #include <c10/util/Half.h>
           kernel<<<1, 2>>>(); */
        #include <torch/csrc/stable/tensor.h>
        #include <torch/headeronly/core/ScalarType.h>
        const char* text = "#include <Python.h> // <<<";
    """
    assert plant(tmp_path, {"cuda/op.cu": source, "common/tensor.h": source}) == []


def test_torch_in_device_code_is_caught(tmp_path: Path) -> None:
    found = plant(tmp_path, {"cuda/op.cuh": "#include <torch/csrc/stable/tensor.h>\n"})
    assert found == ["cuda/op.cuh:1: torch/csrc/stable/tensor.h reaches op.cuh; keep torch out"]


def test_torch_in_device_code_is_caught_through_a_header(tmp_path: Path) -> None:
    found = plant(
        tmp_path,
        {
            "cuda/op.cuh": '#include "../common/shapes.h"\n',
            "common/shapes.h": '#include "common/tensor.h"\n',
            "common/tensor.h": "\n#include <torch/headeronly/util/Half.h>\n",
        },
    )
    assert found == [
        "common/tensor.h:2: torch/headeronly/util/Half.h reaches op.cuh; keep torch out"
    ]


@pytest.mark.parametrize("line", ["op<<<grid, block>>>(x);", "cudaLaunchKernelEx(&c, op, x);"])
def test_launch_in_device_code_is_caught(tmp_path: Path, line: str) -> None:
    found = plant(tmp_path, {"cuda/op.cuh": f"// one\n{line}\n", "cuda/op.cu": line})
    assert found == ["cuda/op.cuh:2: a launch belongs into the .cu file"]


@pytest.mark.parametrize("header", ["vector", "algorithm", "string", "cmath", "math.h"])
def test_library_headers_in_code_per_instruction_set_are_caught(
    tmp_path: Path, header: str
) -> None:
    files = {
        "cpu/op_kernel.cpp": '#include <cstdint>\n#include "vec.h"\n',
        "cpu/vec.h": f"#include <immintrin.h>\n#include <{header}>\n",
        "cpu/op.cpp": f"#include <{header}>\n",
    }
    found = plant(tmp_path, files)
    assert found == [f"cpu/vec.h:2: <{header}> in code compiled per instruction set"]


@pytest.mark.parametrize("call", ["std::min(a, b)", "std :: max(a, b)", "std::move(a)"])
def test_library_templates_in_code_per_instruction_set_are_caught(
    tmp_path: Path, call: str
) -> None:
    name = call.split("(")[0].replace(" ", "")
    found = plant(tmp_path, {"cpu/op_kernel.cpp": f"std::memcpy(a, b, 4);\nauto c = {call};\n"})
    assert found == [f"cpu/op_kernel.cpp:2: {name} in code compiled per instruction set"]


def test_command_line_reports_and_fails(tmp_path: Path) -> None:
    (tmp_path / "op.h").write_text("#include <Python.h>\n")
    command = [sys.executable, str(ROOT / "tools" / "check_sources.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "op.h:1: Python.h is outside the stable ABI" in result.stdout
    (tmp_path / "op.h").write_text("#include <cstdint>\n")
    assert subprocess.run(command, capture_output=True).returncode == 0
