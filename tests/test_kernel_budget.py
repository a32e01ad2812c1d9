"""The compiled GPU kernels keep their budget, and the check of that reports planted faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import kernel_budget
import pytest
from gpu_code import machine_code, table, triton_kernels
from gpu_code.budget import Budget, TensorCores, WideAccess, difference
from gpu_code.machine_code import Kernels, Usage
from kernel_budget import SOURCES, Source

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
needs_cuobjdump = pytest.mark.skipif(
    machine_code.find_tool("cuobjdump") is None, reason="no cuobjdump"
)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    found = SOURCES[request.param]
    if reason := found.why_not():
        if request.param == "cuda" and shutil.which("nvcc") and required():
            pytest.fail(f"nvcc is there, but {reason}")
        pytest.skip(reason)
    return found


def required() -> bool:
    return os.environ.get("DLV3P_REQUIRE_NATIVE") == "1" and os.environ.get("DLV3P_CUDA") != "0"


def test_kernels_keep_their_budget(source: Source) -> None:
    assert kernel_budget.check(source) == []


@needs_nvcc
@pytest.mark.skipif(not required(), reason="not a build that must be whole")
@pytest.mark.skipif(bool(os.environ.get("TORCH_CUDA_ARCH_LIST")), reason="chosen by hand")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="built for the local GPU alone")
def test_budget_and_library_cover_every_architecture() -> None:
    record = json.loads((kernel_budget.LIBRARY.parent / "build.json").read_text())["CUDA"]
    assert all(f"{arch}-real" in record for arch in ARCHITECTURES)
    budget = Budget.load(kernel_budget.FOLDER / "cuda.json")
    for name, rows in budget.compilers["nvcc 13.0"].items():
        assert set(rows) == set(ARCHITECTURES), name


def test_document_shows_the_budget() -> None:
    assert kernel_budget.DOCUMENT.read_text() == kernel_budget.document_text(), "run `make budget`"


USAGE = """
Fatbin elf code:
arch = sm_90a
 Function _Z1kPf:
  REG:64 STACK:8 SHARED:1536 LOCAL:4 CONSTANT[0]:568
 Function _Z1zPf:
  REG:10 STACK:0 SHARED:0 LOCAL:0
arch = sm_100
 Function _Z1kPf:
  REG:32 STACK:0 SHARED:0 LOCAL:0
"""
CODE = """
arch = sm_90a
		Function : _Z1kPf
        /*0010*/                   LDG.E.U16 R2, desc[UR4][R2.64] ;   /* 0x0000 */
        /*0020*/              @!P0 LDG.E.128.CONSTANT R8, [R4.64] ;   /* 0x0000 */
        /*0030*/              @UP1 STG.E.64 [R4.64], R8 ;             /* 0x0000 */
        /*0040*/                   STS.128 [R4], R8 ;                 /* 0x0000 */
        /*0050*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0070*/                   HGMMA.64x256x16.F32.BF16 R24, R4, gdesc[UR4], R24 ;
		Function : _Z1zPf
        /*0010*/                   EXIT ;
arch = sm_100
		Function : _Z1kPf
        /*0010*/                   LDG.E.ENL2.256 R2, R8, [R2.64] ;
"""


def test_dumps_are_read() -> None:
    usage = machine_code.parse_usage(USAGE.splitlines())
    kernels = machine_code.with_widths(usage, machine_code.parse_code(CODE.splitlines()))
    # 1024 bytes of shared memory are the system's.
    assert kernels == {
        "_Z1kPf": {"90a": Usage(64, 12, 512, 128, 64, 128, "HGMMA"), "100": Usage(32, 0, 0, 256)},
        "_Z1zPf": {"90a": Usage(10)},
    }


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void dlv3p::fwd_kernel<__nv_bfloat16, (int)8>(dlv3p::P)", "fwd_kernel<bfloat16, 8>"),
        ("void dlv3p::k<__half, (dlv3p::Act)1, (bool)1>(dlv3p::P)", "k<half, Act 1, 1>"),
        ("dlv3p::(anonymous namespace)::k(void (*)(int), int)", "k"),
        ("void dlv3p::k<dlv3p::Tile<float, 4>, 3l>(dlv3p::P<float>)", "k<Tile<float, 4>, 3>"),
    ],
)
def test_names_are_short(demangled: str, name: str) -> None:
    assert machine_code.readable(demangled) == name


def compiled(folder: Path, source: str, *flags: str) -> Usage:
    (folder / "k.cu").write_text(source)
    command = ["nvcc", "-cubin", "-arch=sm_90a", *flags, "-o", "k.cubin", "k.cu"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    ((_, rows),) = machine_code.read(folder / "k.cubin").items()
    return rows["90a"]


SPILLING = """
__global__ void k(float* x, int n) {
  float a[40];
#pragma unroll
  for (int i = 0; i < 40; i++) a[i] = x[i * n + threadIdx.x];
  for (int j = 0; j < n; j++)
#pragma unroll
    for (int i = 0; i < 40; i++) a[i] = a[i] * a[(i + 7) % 40] + x[j];
#pragma unroll
  for (int i = 0; i < 40; i++) x[i * n + threadIdx.x] = a[i];
}
"""


@needs_nvcc
@needs_cuobjdump
def test_planted_spills_are_reported(tmp_path: Path) -> None:
    usage = compiled(tmp_path, SPILLING, "-maxrregcount=24")
    assert usage.registers <= 24
    assert usage.local > 0
    (text,) = Budget(4, ()).objections("unknown compiler", {"k": {"90a": usage}})
    assert text == f"k [90a]: {usage.local} bytes of local memory (spills), meant are 0"
    assert compiled(tmp_path, SPILLING).local == 0


COPY = "__global__ void k(const {0}* x, {0}* y) {{ y[threadIdx.x] = x[threadIdx.x]; }}"
WIDE = WideAccess(kernels="^k", why="packs", load=128, store=128)


@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize(("element", "bits"), [("float4", 128), ("float2", 64), ("char", 8)])
def test_planted_narrow_accesses_are_reported(tmp_path: Path, element: str, bits: int) -> None:
    usage = compiled(tmp_path, COPY.format(element))
    assert (usage.load, usage.store, usage.async_copy) == (bits, bits, 0)
    found = Budget(4, (WIDE,)).objections("unknown compiler", {"k": {"90a": usage}})
    assert len(found) == (0 if bits == 128 else 2)


GOOD = Usage(registers=64, local=0, shared=512, load=128, store=128)
KERNELS: Kernels = {"k<8>": {"80": replace(GOOD, local=16), "90a": GOOD}, "r": {"90a": GOOD}}
BUDGET = Budget(4, (WIDE,), {"nvcc 13.0": KERNELS})


def changed(**changes: int) -> list[str]:
    kernels = {**KERNELS, "k<8>": {**KERNELS["k<8>"], "90a": replace(GOOD, **changes)}}
    return BUDGET.objections("nvcc 13.0", kernels)


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"registers": 69}, "69 registers, budget 64 (and 4 allowed)"),
        ({"shared": 513}, "513 bytes of shared memory, budget 512"),
    ],
)
def test_growth_is_reported(changes: dict[str, int], objection: str) -> None:
    assert changed(**changes) == [f"k<8> [90a]: {objection}"]


def test_what_is_allowed_is_not_reported() -> None:
    assert changed() == []
    assert changed(registers=68, shared=0, load=256) == []


def test_lost_wide_access_breaks_rule_and_budget() -> None:
    assert changed(load=32) == [
        "k<8> [90a]: widest global load is 32 bits, meant are 128 (packs)",
        "k<8> [90a]: widest global load is 32 bits, budget 128",
    ]


def test_rules_about_no_kernel_are_reported() -> None:
    found = Budget(4, (WIDE,)).objections("unknown compiler", {"r": {"90a": GOOD}})
    assert found == ["wide_access: no kernel matches '^k'"]


def test_lost_tensor_cores_are_reported() -> None:
    rule = TensorCores("^k", "a product", {"90a": "HGMMA", "80": "HMMA"})
    budget = Budget(4, (), tensor_cores=(rule,))
    rows = {"80": replace(GOOD, tensor="HMMA"), "90a": replace(GOOD, tensor="HGMMA"), "100": GOOD}
    assert budget.objections("unknown compiler", {"k": rows, "r": {"90a": GOOD}}) == []
    rows |= {"80": GOOD, "90a": replace(GOOD, tensor="HMMA")}
    assert budget.objections("unknown compiler", {"k": rows}) == [
        "k [80]: tensor cores by none, meant is HMMA (a product)",
        "k [90a]: tensor cores by HMMA, meant is HGMMA (a product)",
    ]
    assert budget.objections("unknown compiler", {"r": {"90a": GOOD}}) == [
        "tensor_cores: no kernel matches '^k'"
    ]


def test_tensor_cores_are_stored(tmp_path: Path) -> None:
    rule = TensorCores("^k", "a product", {"90a": "HGMMA"})
    kernels = {"k": {"90a": replace(GOOD, tensor="HGMMA"), "80": GOOD}}
    budget = Budget(4, (), {"triton 3.7": kernels}, (rule,))
    budget.save(tmp_path / "triton.json")
    assert Budget.load(tmp_path / "triton.json") == budget
    assert difference(kernels, {"k": {"90a": GOOD, "80": GOOD}}) == [
        "  k [90a]: tensor HGMMA -> none"
    ]


def test_local_memory_may_not_grow_anywhere() -> None:
    rows = {"80": replace(GOOD, local=17), "90a": GOOD}
    found = BUDGET.objections("nvcc 13.0", {**KERNELS, "k<8>": rows})
    assert found == ["k<8> [80]: 17 bytes of local memory (spills), budget 16"]


def test_new_and_missing_kernels_are_reported() -> None:
    found = BUDGET.objections("nvcc 13.0", {"k<8>": KERNELS["k<8>"], "s": {"90a": GOOD}})
    assert found == ["s: not in the budget (new)", "r: in the budget, not compiled"]


def test_new_architectures_are_reported() -> None:
    found = BUDGET.objections("nvcc 13.0", {**KERNELS, "r": {"90a": GOOD, "110": GOOD}})
    assert found == ["r [110]: architecture not in the budget"]


def test_regenerating_writes_the_file_and_shows_the_difference(tmp_path: Path) -> None:
    other = {"k<8>": {"90a": GOOD}}
    BUDGET.with_entry("nvcc 12.8", other).save(tmp_path / "cuda.json")
    new: Kernels = {"k<8>": {"90a": replace(GOOD, registers=70, load=32)}, "s": {"80": GOOD}}
    source = SOURCES["cuda"]._replace(compiler=lambda: "nvcc 13.0", kernels=lambda: new)
    changes, objections = kernel_budget.regenerate(source, tmp_path)
    assert changes == [
        "- r",
        "+ s",
        "  k<8> [80]: architecture gone",
        "  k<8> [90a]: registers 64 -> 70, load 128 -> 32",
    ]
    assert objections == ["k<8> [90a]: widest global load is 32 bits, meant are 128 (packs)"]
    written = Budget.load(tmp_path / "cuda.json")
    assert written == Budget(4, (WIDE,), {"nvcc 12.8": other, "nvcc 13.0": new})
    assert difference(written.compilers["nvcc 13.0"], new) == []
    assert kernel_budget.check(source, tmp_path) == objections


def test_budget_keeps_its_architectures(tmp_path: Path) -> None:
    BUDGET.save(tmp_path / "cuda.json")
    source = SOURCES["cuda"]._replace(
        compiler=lambda: "nvcc 13.0", kernels=lambda: {"r": {"90a": GOOD}}
    )
    refusal = "nothing written: there is no code for 80"
    assert kernel_budget.regenerate(source, tmp_path) == ([], [refusal])
    assert Budget.load(tmp_path / "cuda.json") == BUDGET


def test_table_groups_the_variants_of_a_kernel() -> None:
    kernels = {"k<8>": {"80": GOOD}, "k<1>": {"80": replace(GOOD, registers=40, load=16)}}
    text = table.markdown("CUDA", Budget(4, (), {"nvcc 13.0": kernels}))
    assert text.splitlines()[-1] == "| `k` | 2 | 40-64 | 0 | 512 | 16-128 | 128 | 0 |"
    assert "registers 8.0 |" in text
    with pytest.raises(ValueError, match="markers"):
        table.replaced("no markers", "budget", text)


def test_triton_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets Triton kernels")
    if machine_code.find_tool("cuobjdump") is None:
        pytest.skip("no cuobjdump")
    from triton_copy import copy_kernel

    signature = {"x": "*bf16", "y": "*bf16", "n": "i32:16"}
    spec = triton_kernels.Spec("copy", copy_kernel, signature, {"BLOCK": 1024}, 4, 1)
    for aligned, store in ((True, 128), (False, 16)):
        if not aligned:
            spec = spec._replace(signature={**signature, "y": "*bf16:2"})
        (tmp_path / "copy.cubin").write_bytes(triton_kernels.compiled(spec, 90))
        usage = machine_code.read(tmp_path / "copy.cubin")["copy_kernel"]["90a"]
        assert (usage.load, usage.store, usage.local) == (128, store, 0)
    with pytest.raises(RuntimeError, match="copy does not compile for 90"):
        triton_kernels.compiled(spec._replace(signature={**signature, "x": "i32"}), 90)
