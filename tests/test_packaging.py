"""What the package promises to whoever installs it: metadata, requirements, what may be absent."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_wheel
import pytest

import dlv3p_kernels as dk

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_ROOTS = {"dlv3p_kernels": ROOT, "deeplabv3plus": ROOT / "python"}
APPLICATION_LIBRARIES = ("PIL", "tqdm", "matplotlib", "timm", "triton")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Package -> version of requirements-dev.txt, as this interpreter reads it."""
    versions: dict[str, str] = {}
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        match = re.fullmatch(r'([\w.-]+)==([\w.]+)(?:; python_version (>=|<) "3\.(\d+)")?', line)
        assert match, f"not a pin: {line}"
        name, version, relation, minor = match.groups()
        newer = minor is None or sys.version_info >= (3, int(minor))
        if minor is None or newer == (relation == ">="):
            assert normalised(name) not in versions, f"{name} is pinned twice"
            versions[normalised(name)] = version
    return versions


def run_python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def configuration() -> dict[str, Any]:
    """pyproject.toml as setuptools understands it, version and packages filled in."""
    from setuptools.config.pyprojecttoml import read_configuration

    return read_configuration(str(ROOT / "pyproject.toml"))


def test_version_has_one_source(configuration: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", dk.__version__)
    assert configuration["project"]["version"] == dk.__version__ == dk.status().version


def test_core_requirements_and_extras(configuration: dict[str, Any]) -> None:
    project = configuration["project"]
    assert project["dependencies"] == ["torch>=2.10", "numpy"]
    assert project["requires-python"] == ">=3.10"
    extras = project["optional-dependencies"]
    assert set(extras) == {"train", "triton", "timm", "dev"}
    assert set(extras["train"]) == {"pillow", "tqdm", "matplotlib"}


def test_build_never_fetches_torch() -> None:
    names = [re.match(r"[\w-]+", line)[0] for line in PYPROJECT["build-system"]["requires"]]
    assert set(names) == {"setuptools", "cmake", "ninja"}


def test_every_package_ships(configuration: dict[str, Any]) -> None:
    found = set(configuration["tool"]["setuptools"]["packages"])
    folders = {
        path.parent.relative_to(root).as_posix().replace("/", ".")
        for name, root in PACKAGE_ROOTS.items()
        for path in (root / name).rglob("*.py")
    }
    assert found == folders


@pytest.mark.parametrize("name", PACKAGE_ROOTS)
def test_type_hints_are_announced(name: str) -> None:
    assert (PACKAGE_ROOTS[name] / name / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][name]


@pytest.mark.parametrize(("command", "target"), PYPROJECT["project"]["scripts"].items())
def test_commands_exist(command: str, target: str) -> None:
    module, function = target.split(":")
    assert command == "dlv3p"
    assert callable(getattr(importlib.import_module(module), function))


def test_development_requirements_are_whole_and_free_of_a_second_torch() -> None:
    versions = pinned()
    assert versions["torch"] == "2.13.0"
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = {"numpy", "setuptools", "cmake", "ninja", *extras["train"], *extras["dev"]}
    assert needed <= set(versions)
    for name in set(versions) - {"torch"}:
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        bare = {re.match(r"[\w.-]+", r)[0] for r in requirements if "extra ==" not in r}
        assert not bare & {"torch", "torchvision", "triton"}, name


def test_pre_commit_uses_the_pinned_versions() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"additional_dependencies: \[([\w-]+)==([\w.]+)\]", text)
    assert {name for name, _ in hooks} == {"ruff", "clang-format"}
    assert dict(hooks).items() <= pinned().items()


BLOCK = """
import importlib, pkgutil, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_kernels_never_import_the_application(tmp_path: Path) -> None:
    blocked = ("deeplabv3plus", *APPLICATION_LIBRARIES)
    code = BLOCK.format(blocked=blocked) + (
        "import dlv3p_kernels\n"
        "for module in pkgutil.walk_packages(dlv3p_kernels.__path__, 'dlv3p_kernels.'):\n"
        "    if module.name.endswith('__main__') or '.triton.' in module.name:\n        continue\n"
        "    importlib.import_module(module.name)\n"
        "    print(module.name)\n"
    )
    result = run_python(code, tmp_path, ROOT)
    assert result.returncode == 0, result.stderr
    assert "dlv3p_kernels.ops.depthwise" in result.stdout.split()


def test_model_and_command_import_without_the_extras(tmp_path: Path) -> None:
    code = BLOCK.format(blocked=APPLICATION_LIBRARIES) + (
        "import torch, deeplabv3plus.cli\n"
        "from deeplabv3plus import DeepLabV3Plus\n"
        "model = DeepLabV3Plus(encoder='mobilenet_v2', num_classes=3).eval()\n"
        "print(tuple(model(torch.zeros(1, 3, 33, 33)).shape))\n"
    )
    result = run_python(code, tmp_path, ROOT, ROOT / "python")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 3, 33, 33)"


def copy_of_kernels(folder: Path) -> Path:
    """The kernel package without compiled libraries."""
    copy = folder / "dlv3p_kernels"
    shutil.copytree(
        ROOT / "dlv3p_kernels", copy, ignore=shutil.ignore_patterns("lib", "__pycache__")
    )
    return copy


WITHOUT_LIBRARY = """
import torch, torch.nn.functional as F
import dlv3p_kernels as dk
print(dk.__file__)
print(dk.status())
assert not dk.status().cpu.loaded
x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
x.requires_grad_(), w.requires_grad_()
ours = dk.depthwise_conv2d(x, w, padding=2, dilation=2)
stock = F.conv2d(x, w, padding=2, dilation=2, groups=8)
assert torch.equal(ours, stock)
g = torch.randn_like(ours)
for a, b in zip(torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(stock, (x, w), g)):
    torch.testing.assert_close(a, b)
try:
    with dk.backend("cpu"):
        dk.depthwise_conv2d(x, w)
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("backend('cpu') without a library did not raise")
"""


def test_works_without_compiled_libraries_and_says_so(tmp_path: Path) -> None:
    copy = copy_of_kernels(tmp_path)
    result = run_python(WITHOUT_LIBRARY, tmp_path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(copy)), result.stdout
    assert "cpu: not loaded (not built" in result.stdout
    assert "'cpu' can not serve depthwise_conv2d: not built" in result.stdout


def test_survives_a_library_that_does_not_load(tmp_path: Path) -> None:
    library = copy_of_kernels(tmp_path) / "lib" / "libdlv3p_cpu.so"
    library.parent.mkdir()
    library.write_bytes(b"not a library")
    result = run_python(WITHOUT_LIBRARY, tmp_path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"cpu: not loaded \(.*libdlv3p_cpu\.so.*\)", result.stdout), result.stdout


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """The sources that a build starts from, without anything built."""
    tree = tmp_path / "source"
    built = shutil.ignore_patterns("lib", "__pycache__", "*.egg-info")
    for name in ("dlv3p_kernels", "python", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=built)
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def test_wheel_builds_without_a_compiler_and_says_so(source_tree: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in {"CXX", "PYTHONPATH"}}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    result = subprocess.run(
        [*command, "--no-index", "--wheel-dir", "dist", "."],
        cwd=source_tree,
        env=environment | {"PATH": str(source_tree)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no C++ compiler found" in result.stdout + result.stderr
    (wheel,) = (source_tree / "dist").glob("*.whl")
    missing = "dlv3p_kernels/lib/libdlv3p_cpu.so is missing"
    assert check_wheel.check(wheel) == [missing]


def test_build_without_torch_stops_with_the_command_to_use(source_tree: Path) -> None:
    import setuptools

    (source_tree / "tools").mkdir()
    for name in ("setuptools", "_distutils_hack"):
        there = Path(setuptools.__file__).parent.with_name(name)
        (source_tree / "tools" / name).symlink_to(there)
    result = subprocess.run(
        [sys.executable, "-S", "setup.py", "build_ext"],  # -S: no site-packages, so no torch
        cwd=source_tree,
        env=os.environ | {"PYTHONPATH": str(source_tree / "tools")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "pip install --no-build-isolation ." in result.stderr
    assert "Traceback" not in result.stderr
