"""One short table of the recorded runs of all ops, for the README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_HEAD = ("op", "case", "dtype", "forward", "training", "memory")
_LAYOUT = "channels_last"


def markdown(folder: Path, ops: Mapping[str, ModuleType]) -> str:
    """The `quick` cases of every op that has a record `folder/STEM.json`, channels_last.

    Args:
        folder: of the records.
        ops: modules of the benchmarks by stem, in the order of the table.

    Returns:
        Markdown: the table, and a line for each machine and commit that records come from.
    """
    lines = ["| " + " | ".join(_HEAD) + " |", "| --- | --- | --- | ---: | ---: | ---: |"]
    sources: dict[str, list[str]] = {}
    for stem, module in ops.items():
        path = folder / f"{stem}.json"
        if not path.exists():
            continue
        recorded = json.loads(path.read_text())
        sources.setdefault(_source(recorded["machine"]), []).append(f"`{stem}`")
        lines += ["| " + " | ".join(cells) + " |" for cells in _rows(stem, module, recorded)]
    notes = [f"{', '.join(stems)}: {source}." for source, stems in sources.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _rows(stem: str, module: ModuleType, recorded: Mapping[str, Any]) -> Iterator[list[str]]:
    names = {str(case) for case in module.CASES if case.quick}
    for row in recorded["rows"]:
        if row["case"] in names and row["layout"] == _LAYOUT:
            yield [f"`{stem}`", row["case"], row["dtype"], *_figures(row)]


def _figures(row: Mapping[str, Any]) -> list[str]:
    if row["failures"]:
        return ["FAILED", "-", "-"]
    forward = row.get("inference") or row["forward"]
    training = row.get("step") or row.get("backward")
    return [_times(forward), _times(training), _memory(row)]


def _times(timed: Mapping[str, Any] | None) -> str:
    if not timed:
        return "-"
    stock, ours = (timed[name]["median"] for name in ("stock_ms", "ours_ms"))
    return f"{_short(stock)} -> {_short(ours)} ms, **{timed['ratio']['median']:.2f}x**"


def _memory(row: Mapping[str, Any]) -> str:
    """What a layer keeps for backward; of a loss, which keeps next to nothing, the peak."""
    memory = row.get("memory")
    if not memory:
        return "-"
    kind = "kept" if "inference" in row else "peak"
    stock, ours = (memory[name][kind] for name in ("stock", "ours"))
    return f"{kind} {_short(stock / 1e6)} -> {_short(ours / 1e6)} MB, **{ours / stock:.2f}x**"


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _source(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['cpu_capability']}, torch"
        f" {machine['torch']}, commit {machine['git_commit']}, {str(machine['date'])[:10]}"
    )
