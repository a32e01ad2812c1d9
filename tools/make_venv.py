"""Make a virtual environment that takes over a fitting torch from the interpreter that runs this.

Usage: python tools/make_venv.py FOLDER [--own-torch]

Writes FOLDER/pins.txt, the pins of requirements-dev.txt for `pip install -r` or `-c`. Where the
interpreter already has torch >= 2.10, the environment sees it, and the pins of torch and numpy are
left out, so that pip downloads neither again; that of triton too where it came with that torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import site
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
ROOT = Path(__file__).resolve().parent.parent


def version_of(package: str) -> str | None:
    """The version of a package that this interpreter has; None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_version() -> tuple[int, ...] | None:
    """(major, minor) of the torch that this interpreter has; None without one."""
    version = version_of("torch")
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) if version else None


def inherited_packages() -> list[str]:
    """What comes from this interpreter together with its torch."""
    return ["torch", "numpy", *(["triton"] if version_of("triton") else [])]


def pins(text: str, inherited: Sequence[str] = ()) -> str:
    """The pins of a requirements file without those of the inherited packages."""
    lines = [line for line in text.splitlines() if line.partition("==")[0] not in inherited]
    return "\n".join(lines) + "\n"


def create(folder: Path, inherit: bool, with_pip: bool = True) -> None:
    """Create the environment; with `inherit` it sees the packages of this interpreter too."""
    in_venv = sys.prefix != sys.base_prefix
    builder = venv.EnvBuilder(
        clear=True, with_pip=with_pip, system_site_packages=inherit and not in_venv
    )
    builder.create(folder)
    if inherit and in_venv:
        # `system_site_packages` would skip the virtual environment that this interpreter is.
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "inherited.pth").write_text("\n".join(site.getsitepackages()) + "\n")


def main() -> None:
    """Create the environment named on the command line."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"Python 3.10 or later is needed, {sys.executable} is {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--own-torch", action="store_true", help="do not take over a torch")
    arguments = parser.parse_args()
    found = torch_version()
    inherit = not arguments.own_torch and found is not None and found >= OLDEST_TORCH
    try:
        create(arguments.folder, inherit)
    except Exception as error:  # ensurepip missing, disk full, ...: all end in the same advice
        sys.exit(
            f"no virtual environment at {arguments.folder}: {error}\n"
            "On Debian and Ubuntu install the package python3-venv first."
        )
    requirements = (ROOT / "requirements-dev.txt").read_text()
    (arguments.folder / "pins.txt").write_text(
        pins(requirements, inherited_packages() if inherit else ())
    )
    origin = "torch of this interpreter" if inherit else "its own torch"
    print(f"{arguments.folder}: Python {sys.version.split()[0]}, {origin}")


if __name__ == "__main__":
    main()
