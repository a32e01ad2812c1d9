"""Install a wheel in a clean environment beside one torch version and run the op tests there.

Usage: python tools/check_wheel_env.py WHEEL [--torch 2.10.0] [--python INTERPRETER] [-k EXPRESSION]

Without --torch, the torch of INTERPRETER is used. The tests are copied out of the repository first,
so that they meet the installed package and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = """
import dlv3p_kernels as dk
status = dk.status()
print(status)
assert "site-packages" in dk.__file__, f"not the installed package: {dk.__file__}"
assert status.cpu.loaded, status.cpu.reason
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", metavar="VERSION", help="install this version")
    parser.add_argument("--python", default=sys.executable, help="interpreter to start from")
    parser.add_argument("--tests", nargs="+", default=["test_depthwise*.py"], metavar="PATTERN")
    parser.add_argument("-k", metavar="EXPRESSION", help="passed on to pytest")
    return parser.parse_args()


def make_environment(folder: Path, arguments: argparse.Namespace) -> str:
    """Create the environment with torch, the wheel and pytest; return its interpreter."""
    own = ["--own-torch"] if arguments.torch else []
    make_venv = [arguments.python, str(ROOT / "tools" / "make_venv.py"), str(folder), *own]
    subprocess.run(make_venv, check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    if arguments.torch:
        subprocess.run([*install, f"torch=={arguments.torch}"], check=True)
    before = torch_version(python)
    pins = (folder / "pins.txt").read_text().splitlines()
    pytest = [pin for pin in pins if pin.startswith("pytest")]
    subprocess.run([*install, str(arguments.wheel.resolve()), *pytest], check=True)
    if torch_version(python) != before:
        sys.exit(f"installing the wheel replaced torch {before} by {torch_version(python)}")
    return python


def torch_version(python: str) -> str:
    """The version of torch that an interpreter has."""
    command = [python, "-c", "import torch; print(torch.__version__)"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{python} has no torch; name a version with --torch")
    return result.stdout.strip()


def main() -> None:
    """Run the check and exit with pytest's status."""
    arguments = parse_arguments()
    os.environ.pop("PYTHONPATH", None)
    os.environ["DLV3P_REQUIRE_NATIVE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder) / "venv", arguments)
        tests = Path(folder) / "tests"
        shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        files = sorted(str(f) for pattern in arguments.tests for f in tests.glob(pattern))
        if not files:
            sys.exit(f"no tests match {arguments.tests}")
        subprocess.run([python, "-c", REPORT], check=True, cwd=folder)
        chosen = ["-k", arguments.k] if arguments.k else []
        command = [python, "-m", "pytest", *chosen, *files]
        sys.exit(subprocess.run(command, cwd=folder).returncode)


if __name__ == "__main__":
    main()
