"""The operator namespaces: each back end that needs one has its own, all with the same schemas."""

from __future__ import annotations

from collections.abc import Callable

import torch

Register = Callable[[torch.library.Library], None]

_registrations: list[Register] = []
# Compiled kernels, told apart by the device of the tensors; falls back to stock PyTorch.
LIBRARY = torch.library.Library("dlv3p", "DEF")
TRITON = torch.library.Library("dlv3p_triton", "DEF")
_libraries = [LIBRARY, TRITON]


def for_each(register: Register) -> Register:
    """Run `register(library)` for every namespace, and for those that `add` makes later."""
    _registrations.append(register)
    for library in _libraries:
        register(library)
    return register


def add(namespace: str) -> torch.library.Library:
    """A further namespace with every schema, fake and derivative of the package, no kernels."""
    library = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    for register in _registrations:
        register(library)
    return library
