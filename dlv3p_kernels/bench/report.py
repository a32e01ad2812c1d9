"""Records of a benchmark run: a JSON file, and the Markdown table made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import aspp, decoder, depthwise, layers, norm, separable, tables, upsample

_TABLES = {
    depthwise.OP: tables.DEPTHWISE,
    norm.OP: tables.NORM,
    separable.OP: tables.LAYERS,
    aspp.OP: tables.LAYERS,
    decoder.OP: tables.LAYERS,
    upsample.OP: tables.UPSAMPLE,
    "existing_models": tables.MODELS,
}

Row = depthwise.Row | norm.Row | layers.Row | upsample.Row


def plain(row: Row) -> dict[str, Any]:
    """One row as plain dictionaries."""
    made = {**asdict(row), "case": str(row.case)}
    return {**made, "extra": row.case.extra} if isinstance(row, depthwise.Row) else made


def record(op: str, rows: Sequence[Row], machine: Mapping[str, object]) -> dict[str, Any]:
    """The run of an op as plain dictionaries, ready for JSON."""
    return {
        "op": op,
        "machine": dict(machine),
        "rows": [plain(row) for row in rows],
    }


def write_json(path: Path, recorded: Mapping[str, Any]) -> None:
    """Write the record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(recorded, indent=1) + "\n")
    os.replace(partial, path)


def markdown(recorded: Mapping[str, Any]) -> str:
    """The table, under a line about the machine."""
    table = _TABLES[recorded["op"]].markdown(recorded["rows"])
    return f"{_about(recorded['machine'])}\n\n{table}\n"


def line(row: Mapping[str, Any]) -> str:
    """One recorded row as a line for the terminal."""
    name = f"{row['case']} {row['dtype']} {row['layout']}"
    if row["failures"]:
        return f"{name}: FAILED, " + "; ".join(row["failures"])
    directions = ("inference", "forward", "backward", "step")
    parts = [_timed(direction, row[direction]) for direction in directions if row.get(direction)]
    if memory := row.get("memory"):
        parts.append(f"kept {memory['ours']['kept'] / memory['stock']['kept']:.2f}x")
    return f"{name}: " + ", ".join(parts)


def _timed(direction: str, timed: Mapping[str, Any]) -> str:
    facts = [f"{timed['ratio']['median']:.2f}x"]
    if "copies" in timed:
        facts.append(f"{timed['copies']['median']:.1f} copies")
    if "verdict" in timed:
        facts.append(timed["verdict"] or "no goal")
    times = f"{timed['stock_ms']['median']:.2f} -> {timed['ours_ms']['median']:.2f} ms"
    return f"{direction} {times} ({', '.join(facts)})"


def _about(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads,"
        f" {machine['cpu_capability']}; torch {machine['torch']},"
        f" commit {machine['git_commit']}, {str(machine['date'])[:10]}"
    )
