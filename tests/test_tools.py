"""The checks of wheels, compiled libraries and environments catch planted faults."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import audit_abi
import check_wheel
import make_venv
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = sorted((ROOT / "dlv3p_kernels" / "lib").glob("*.so"))
CUDA_LIBRARY = ROOT / "dlv3p_kernels" / "lib" / "libdlv3p_cuda.so"
# A torch without CUDA cannot give these, so the library is not loaded there.
CUDA_SHIMS = {
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
}

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 code")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.skipif(os.environ.get("DLV3P_CUDA") == "0", reason="DLV3P_CUDA=0")
@pytest.mark.skipif(os.environ.get("DLV3P_REQUIRE_NATIVE") != "1", reason="may be incomplete")
def test_cuda_library_is_built_where_nvcc_is() -> None:
    assert CUDA_LIBRARY in LIBRARIES


@pytest.mark.skipif(CUDA_LIBRARY not in LIBRARIES, reason="no CUDA library")
def test_cuda_library_lacks_nothing_but_the_cuda_shims_of_torch() -> None:
    folder = Path(torch.__file__).parent / "lib"
    exported = {
        line.split()[-1]
        for name in ("libtorch.so", "libtorch_cpu.so")
        for line in audit_abi.run("nm", "-D", "--defined-only", str(folder / name)).splitlines()
    }
    needed = audit_abi.undefined_symbols(CUDA_LIBRARY)
    shims = {symbol for symbol in needed if audit_abi.STABLE_SHIM.match(symbol)}
    assert shims & exported, "the library takes nothing from torch"
    assert shims - exported <= CUDA_SHIMS


@pytest.mark.skipif(not LIBRARIES, reason="no compiled library")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_built_libraries_pass_the_audit(library: Path) -> None:
    assert audit_abi.audit(library) == []


def compiled(folder: Path, source: str, *flags: str) -> Path:
    (folder / "op.cpp").write_text(source)
    library = folder / "op.so"
    command = ["c++", "-O2", "-shared", "-fPIC", str(folder / "op.cpp"), "-o", str(library), *flags]
    subprocess.run(command, check=True)
    return library


@needs_compiler
def test_audit_passes_stable_shims_and_the_runtime(tmp_path: Path) -> None:
    source = """
        #include <string>
        extern "C" int aoti_torch_get_dim(void*, long*);
        std::string f(void* t) { long d; aoti_torch_get_dim(t, &d); return std::string(d, 'x'); }
    """
    library = compiled(tmp_path, source)
    assert [*audit_abi.foreign_symbols(library), *audit_abi.foreign_libraries(library)] == []


@needs_compiler
@pytest.mark.parametrize(
    ("source", "symbol"),
    [
        ("namespace at { void f(); } void g() { at::f(); }", "_ZN2at1fEv"),
        ("namespace c10 { extern int f; } int g() { return c10::f; }", "_ZN3c101fE"),
        ('extern "C" void PyErr_Clear(); void g() { PyErr_Clear(); }', "PyErr_Clear"),
    ],
)
def test_audit_catches_unstable_symbols(tmp_path: Path, source: str, symbol: str) -> None:
    found = list(audit_abi.foreign_symbols(compiled(tmp_path, source)))
    assert found == [f"undefined symbol {symbol} is outside the stable ABI"]


@needs_compiler
def test_audit_catches_libraries_and_run_paths(tmp_path: Path) -> None:
    flags = ["-Wl,-rpath,/opt/build:$ORIGIN", "-Wl,--no-as-needed", "-lgomp"]
    found = list(audit_abi.foreign_libraries(compiled(tmp_path, "void f() {}", *flags)))
    assert found == ["needs libgomp.so.1", "run path /opt/build leads out of the wheel"]


@needs_compiler
@needs_x86
def test_audit_catches_avx_that_the_linker_may_share(tmp_path: Path) -> None:
    source = """
        template <class T> __attribute__((noinline)) void scale(T* x, T f) {
          for (int i = 0; i < 64; ++i) x[i] *= f;
        }
        template void scale<float>(float*, float);
        namespace { __attribute__((noinline, used)) void local(float* x) {
          for (int i = 0; i < 64; ++i) x[i] *= 2;
        } }
    """
    found = list(audit_abi.shared_avx(compiled(tmp_path, source, "-O3", "-mavx2")))
    assert found == ["AVX instructions in _Z5scaleIfEvPT_S0_"]
    assert list(audit_abi.shared_avx(compiled(tmp_path, source, "-O3"))) == []


METADATA = "Name: dlv3p_kernels\nRequires-Dist: torch>=2.10\nRequires-Dist: numpy\n"
TAG = "py3-none-linux_x86_64"


def write_wheel(folder: Path, changes: dict[str, str | None], tag: str = TAG) -> list[str]:
    """Write a wheel that is right but for `changes` (None: leave out) and return the objections."""
    info = "dlv3p_kernels-0.1.0.dist-info"
    names = [*check_wheel.REQUIRED, "deeplabv3plus/sample/a.jpg", "deeplabv3plus/sample/a.png"]
    files: dict[str, str | None] = dict.fromkeys(names, "")
    files |= {f"{info}/{name}": "" for name in check_wheel.REQUIRED_IN_DIST_INFO}
    files[f"{info}/METADATA"] = METADATA
    files[f"{info}/WHEEL"] = f"Root-Is-Purelib: false\nTag: {TAG}\n"
    files |= {name.replace("INFO", info): text for name, text in changes.items()}
    path = folder / f"dlv3p_kernels-0.1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if text is not None:
                archive.writestr(name, text)
    return check_wheel.check(path)


@pytest.fixture
def no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries of these wheels are empty files."""
    monkeypatch.setattr(audit_abi, "audit", lambda library: [])


@pytest.mark.usefixtures("no_audit")
def test_wheel_check_passes_a_right_wheel(tmp_path: Path) -> None:
    assert write_wheel(tmp_path, {}) == []


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({"dlv3p_kernels/lib/libdlv3p_cpu.so": None}, "lib/libdlv3p_cpu.so is missing"),
        ({"INFO/licenses/LICENSE": None}, "licenses/LICENSE is missing"),
        ({"deeplabv3plus/sample/a.jpg": None}, "the sample holds no jpg"),
        ({"tests/test_op.py": ""}, "tests/test_op.py does not belong"),
        ({"dlv3p_kernels/op.cpp": ""}, "dlv3p_kernels/op.cpp does not belong"),
        ({"dlv3p_kernels/lib/libtorch.so": ""}, "lib/libtorch.so is bundled"),
        ({"dlv3p_kernels/lib/libgomp.so.1": ""}, "lib/libgomp.so.1 is bundled"),
        ({"INFO/METADATA": METADATA + "Requires-Dist: tqdm\n"}, "the core requires"),
        ({"INFO/WHEEL": f"Root-Is-Purelib: true\nTag: {TAG}\n"}, "pure Python"),
        ({"INFO/WHEEL": "Root-Is-Purelib: false\nTag: py3-none-any\n"}, "file name says"),
        ({"dlv3p_kernels/lib/build.json": str(ROOT)}, "build.json names the build folder"),
    ],
)
def test_wheel_check_catches(
    tmp_path: Path, changes: dict[str, str | None], objection: str
) -> None:
    (found,) = write_wheel(tmp_path, changes)
    assert objection in found


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize("tag", ["cp311-cp311-linux_x86_64", "py3-none-any"])
def test_wheel_check_catches_a_wrong_tag(tmp_path: Path, tag: str) -> None:
    (found,) = write_wheel(tmp_path, {}, tag)
    assert "py3-none-PLATFORM" in found


def test_inherited_torch_drops_its_pins() -> None:
    text = 'torch==2.13.0\nnumpy==2.4.6; python_version >= "3.11"\ntorch-abi-audit==1\nruff==1\n'
    assert make_venv.pins(text) == text
    assert make_venv.pins(text, ["torch", "numpy"]) == "torch-abi-audit==1\nruff==1\n"


@pytest.mark.parametrize(("triton", "names"), [("3.6.0", ["torch", "numpy", "triton"]),
                                               (None, ["torch", "numpy"])])  # fmt: skip
def test_inherited_torch_brings_its_triton(
    monkeypatch: pytest.MonkeyPatch, triton: str | None, names: list[str]
) -> None:
    monkeypatch.setattr(make_venv, "version_of", {"triton": triton}.get)
    assert make_venv.inherited_packages() == names


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13)), ("2.9.1", (2, 9)), ("3.0.0a0", (3, 0))]
)
def test_torch_version_is_read(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(make_venv.importlib.metadata, "version", lambda name: version)
    assert make_venv.torch_version() == expected


def test_environment_sees_the_torch_of_its_interpreter(tmp_path: Path) -> None:
    make_venv.create(tmp_path / "venv", inherit=True, with_pip=False)
    code = "import sys, torch; print(sys.prefix, torch.__version__)"
    python = tmp_path / "venv" / "bin" / "python"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    version = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == [str(tmp_path / "venv"), version.stdout.split()[1]]
