"""`dlv3p bench`: a front for the benchmark of the kernels."""

from __future__ import annotations

import importlib
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Hand all arguments to the benchmark and return its exit status."""
    return importlib.import_module("dlv3p_kernels.bench").main(list(arguments))
