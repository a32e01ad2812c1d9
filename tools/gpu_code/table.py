"""The budget as Markdown tables, and their place in a document between two markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from .budget import Budget
from .machine_code import Kernels, Usage

_HEAD = ("kernel", "variants", "local bytes", "shared bytes", "load", "store", "async copy")


def markdown(title: str, budget: Budget) -> str:
    """One table for each compiler of the budget."""
    parts = [
        f"{title}, {compiler}:\n\n{_table(kernels)}"
        for compiler, kernels in sorted(budget.compilers.items())
    ]
    return "\n\n".join(parts)


def replaced(document: str, name: str, content: str) -> str:
    """The document with `content` between the markers "<!-- NAME: begin -->" and "... end -->".

    Raises:
        ValueError: the markers are not there.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    text, count = pattern.subn(lambda _: f"{content}\n", document)
    if count != 1:
        raise ValueError(f"expected the markers {begin} and {end} once, found {count}")
    return text


def _table(kernels: Kernels) -> str:
    architectures = sorted(
        {arch for rows in kernels.values() for arch in rows}, key=lambda a: int(a.rstrip("a"))
    )
    registers = [f"registers {_version(arch)}" for arch in architectures]
    head = [*_HEAD[:2], *registers, *_HEAD[2:]]
    lines: list[Sequence[str]] = [head, ["---", *["---:"] * (len(head) - 1)]]
    for function, names in groupby(sorted(kernels), key=_function):
        variants = [kernels[name] for name in names]
        lines.append([f"`{function}`", str(len(variants)), *_cells(variants, architectures)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(variants: Sequence[dict[str, Usage]], architectures: Sequence[str]) -> Iterable[str]:
    for arch in architectures:
        yield _range(rows[arch].registers for rows in variants if arch in rows)
    usages = [usage for rows in variants for usage in rows.values()]
    for field in ("local", "shared", "load", "store", "async_copy"):
        yield _range(getattr(usage, field) for usage in usages)


def _function(name: str) -> str:
    return re.split(r"[<\[]", name)[0]


def _version(architecture: str) -> str:
    """ "90a" -> "9.0a"."""
    digits = architecture.rstrip("a")
    return f"{digits[:-1]}.{digits[-1]}{architecture[len(digits) :]}"


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if len(found) < 2:
        return str(found[0]) if found else "-"
    return f"{found[0]}-{found[-1]}"
