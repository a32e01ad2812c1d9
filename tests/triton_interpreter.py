"""Makes Triton's interpreter round as GPUs do, and several times faster.

Converting float32 to bfloat16, it cuts bits off, where GPUs (and the compiled kernels) round to the
nearest; here it rounds too. Products of bfloat16 matrices it forms of their bits, as if those were
integers; here of their values.

It replaces the functions of `triton.language` by its own at every launch, and again at every call
of a device function; and it computes each integer operation once more in 64 bits, to look for
overflow. Here the first is done once per launch and the second left out; results stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
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


def prepare() -> None:
    """Change the interpreter for the rest of the process."""
    _patch_once_a_launch()
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    _round_to_bfloat16()
    _multiply_bfloat16()


def _round_to_bfloat16() -> None:
    convert = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return convert(self, source, kind)
        values = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        bits = values.view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits.reshape(source.data.shape), tl.bfloat16)

    interpreter.InterpreterBuilder.cast_impl = cast


def _multiply_bfloat16() -> None:
    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _as_float32(a), _as_float32(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    values = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, tl.float32)


def _patch_once_a_launch() -> None:
    patch_language = interpreter._patch_lang

    def patch_once(function: Callable[..., Any]) -> _Scope | None:
        is_launch = not _patched
        namespace = id(function.__globals__)
        if namespace in _patched:
            return None
        _patched.add(namespace)
        scope = patch_language(function)
        # Triton 3.6 converts an array of one element, which NumPy 2.4 refuses.
        tl.tensor.__index__ = lambda self: int(self.handle.data.item())
        return _Scope(scope.restore) if is_launch else None

    interpreter._patch_lang = patch_once
