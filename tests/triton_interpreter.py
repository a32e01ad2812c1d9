"""Makes Triton's interpreter several times faster for kernels that are built of many functions.

It replaces the functions of `triton.language` by its own at every launch, and again at every call
of a device function; and it computes each integer operation once more in 64 bits, to look for
overflow. Here the first is done once per launch and the second left out; results stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


class _Scope:
    """Takes the interpreter's functions out again, and remembers that they are out."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def restore(self) -> None:
        self._restore()
        _patched.clear()


# The namespaces of functions, by id, whose language has been replaced in the current launch.
_patched: set[int] = set()


def make_faster() -> None:
    """For the rest of the process."""
    patch_language = interpreter._patch_lang

    def patch_once(function: Callable[..., Any]) -> _Scope | None:
        is_launch = not _patched
        namespace = id(function.__globals__)
        if namespace in _patched:
            return None
        _patched.add(namespace)
        scope = patch_language(function)
        return _Scope(scope.restore) if is_launch else None

    interpreter._patch_lang = patch_once
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
