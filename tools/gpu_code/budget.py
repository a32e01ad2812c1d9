"""The checked-in budget of the GPU kernels, and how compiled kernels are held to it.

A budget file has one entry for each compiler version, because another one allots other registers.
Where the compiler at hand has no entry, the rules that need none still hold: no local memory on
9.0a, and wide accesses and tensor cores where the file says that they are meant.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .machine_code import Kernels, Usage

# Where goals are set: no kernel may use local memory there.
NO_LOCAL_MEMORY = ("90", "90a")
_WIDTHS = {"load": "global load", "store": "global store", "async_copy": "asynchronous copy"}


@dataclass(frozen=True)
class WideAccess:
    """A rule: kernels whose name matches access global memory at least this wide, in bits."""

    kernels: str
    why: str
    load: int = 0
    store: int = 0
    async_copy: int = 0

    def objections(self, name: str, usage: Usage) -> Iterator[str]:
        """What `usage` lacks, where the rule is about this kernel."""
        if not re.search(self.kernels, name):
            return
        for width, text in _WIDTHS.items():
            wanted, found = getattr(self, width), getattr(usage, width)
            if found < wanted:
                yield f"widest {text} is {found} bits, meant are {wanted} ({self.why})"


@dataclass(frozen=True)
class TensorCores:
    """A rule: kernels whose name matches have this instruction, for each architecture named."""

    kernels: str
    why: str
    tensor: dict[str, str]

    def objections(self, name: str, arch: str, usage: Usage) -> Iterator[str]:
        """What `usage` lacks, where the rule is about this kernel and architecture."""
        wanted = self.tensor.get(arch, "")
        if wanted and re.search(self.kernels, name) and usage.tensor != wanted:
            yield f"tensor cores by {usage.tensor or 'none'}, meant is {wanted} ({self.why})"


@dataclass(frozen=True)
class Budget:
    """What `benchmarks/budget/*.json` holds."""

    register_allowance: int
    wide_access: tuple[WideAccess, ...]
    compilers: dict[str, Kernels] = field(default_factory=dict)
    tensor_cores: tuple[TensorCores, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Budget:
        """Read a budget file."""
        stored = json.loads(path.read_text())
        compilers = {
            compiler: {
                name: {arch: Usage(**usage) for arch, usage in rows.items()}
                for name, rows in kernels.items()
            }
            for compiler, kernels in stored["compilers"].items()
        }
        rules = tuple(WideAccess(**rule) for rule in stored["wide_access"])
        tensor = tuple(TensorCores(**rule) for rule in stored.get("tensor_cores", ()))
        return cls(stored["register_allowance"], rules, compilers, tensor)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all, one line for each kernel and architecture."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(_as_text(self))
        os.replace(partial, path)

    def with_entry(self, compiler: str, kernels: Kernels) -> Budget:
        """The same with this compiler's entry replaced."""
        return replace(self, compilers={**self.compilers, compiler: kernels})

    def objections(self, compiler: str, kernels: Kernels) -> list[str]:
        """Everything that is not as the budget has it; empty where it is kept."""
        found = list(self.rule_objections(kernels))
        if compiler in self.compilers:
            found += self._entry_objections(self.compilers[compiler], kernels)
        return found

    def rule_objections(self, kernels: Kernels) -> Iterator[str]:
        """What breaks the rules that hold with every compiler."""
        for name, arch, usage in _rows(kernels):
            if arch in NO_LOCAL_MEMORY and usage.local:
                yield f"{name} [{arch}]: {usage.local} bytes of local memory (spills), meant are 0"
            for rule in self.wide_access:
                for text in rule.objections(name, usage):
                    yield f"{name} [{arch}]: {text}"
            for tensor_rule in self.tensor_cores:
                for text in tensor_rule.objections(name, arch, usage):
                    yield f"{name} [{arch}]: {text}"
        for kind in ("wide_access", "tensor_cores"):
            for pattern in (rule.kernels for rule in getattr(self, kind)):
                if not any(re.search(pattern, name) for name in kernels):
                    yield f"{kind}: no kernel matches {pattern!r}"

    def _entry_objections(self, entry: Kernels, kernels: Kernels) -> Iterator[str]:
        yield from (f"{name}: not in the budget (new)" for name in sorted(kernels.keys() - entry))
        yield from (
            f"{name}: in the budget, not compiled" for name in sorted(entry.keys() - kernels)
        )
        for name, arch, usage in _rows(kernels):
            if name not in entry:
                continue
            if arch not in entry[name]:
                yield f"{name} [{arch}]: architecture not in the budget"
                continue
            for text in self._worse(entry[name][arch], usage):
                yield f"{name} [{arch}]: {text}"

    def _worse(self, allowed: Usage, usage: Usage) -> Iterator[str]:
        if usage.registers > allowed.registers + self.register_allowance:
            yield (
                f"{usage.registers} registers, budget {allowed.registers}"
                f" (and {self.register_allowance} allowed)"
            )
        if usage.local > allowed.local:
            yield f"{usage.local} bytes of local memory (spills), budget {allowed.local}"
        if usage.shared > allowed.shared:
            yield f"{usage.shared} bytes of shared memory, budget {allowed.shared}"
        for width, text in _WIDTHS.items():
            if getattr(usage, width) < getattr(allowed, width):
                yield (
                    f"widest {text} is {getattr(usage, width)} bits,"
                    f" budget {getattr(allowed, width)}"
                )


def difference(old: Kernels, new: Kernels) -> list[str]:
    """Every change from one set of kernels to another, one line each."""
    lines = [f"- {name}" for name in sorted(old.keys() - new)]
    lines += [f"+ {name}" for name in sorted(new.keys() - old)]
    for name in sorted(old.keys() & new):
        for arch in sorted(old[name].keys() | new[name]):
            before, after = old[name].get(arch), new[name].get(arch)
            if before != after:
                lines.append(f"  {name} [{arch}]: {_change(before, after)}")
    return lines


def _change(before: Usage | None, after: Usage | None) -> str:
    if before is None or after is None:
        return "architecture added" if before is None else "architecture gone"
    old, new = before.as_dict(), after.as_dict()
    keys = [key for key in vars(after) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys)


def _rows(kernels: Kernels) -> Iterator[tuple[str, str, Usage]]:
    for name, rows in sorted(kernels.items()):
        for arch, usage in sorted(rows.items()):
            yield name, arch, usage


def _as_text(budget: Budget) -> str:
    rules = [
        {key: value for key, value in vars(rule).items() if value} for rule in budget.wide_access
    ]
    head: dict[str, Any] = {
        "register_allowance": budget.register_allowance,
        "wide_access": rules,
    }
    if budget.tensor_cores:
        head["tensor_cores"] = [vars(rule) for rule in budget.tensor_cores]
    # Sorted, a line for each architecture: changes are readable in a diff.
    compilers = ",\n".join(
        f"  {json.dumps(compiler)}: {{\n{_kernels_text(kernels)}\n  }}"
        for compiler, kernels in sorted(budget.compilers.items())
    )
    opening = json.dumps(head, indent=1).rstrip("}").rstrip()
    return f'{opening},\n "compilers": {{\n{compilers}\n }}\n}}\n'


def _kernels_text(kernels: Kernels) -> str:
    blocks = []
    for name, rows in sorted(kernels.items()):
        lines = ",\n".join(
            f"    {json.dumps(arch)}: {json.dumps(usage.as_dict())}"
            for arch, usage in sorted(rows.items())
        )
        blocks.append(f"   {json.dumps(name)}: {{\n{lines}\n   }}")
    return ",\n".join(blocks)
