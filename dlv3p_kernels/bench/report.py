"""Records of a benchmark run: a JSON file, and the Markdown table made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import depthwise, norm
from .goals import Goal

_HEAD = (
    "case (N=2)",
    "dtype",
    "layout",
    "fwd by",
    *("stock fwd ms", "ours fwd ms", "ratio", "ours/copy", "goal"),
    *("stock bwd ms", "ours bwd ms", "ratio", "ours/copy", "goal"),
)
_TEXT_COLUMNS = (0, 1, 2, 3, 8, 13)
_NORM_HEAD = (
    *("case (N=2)", "dtype", "layout", "ours by"),
    *("stock fwd ms", "ours fwd ms", "ratio", "ours/copy"),
    *("stock step ms", "ours step ms", "ratio", "ours/copy"),
)
_NORM_TEXT_COLUMNS = (0, 1, 2, 3)

Row = depthwise.Row | norm.Row


def plain(row: Row) -> dict[str, Any]:
    """One row as plain dictionaries."""
    made = {**asdict(row), "case": str(row.case)}
    return made if isinstance(row, norm.Row) else {**made, "extra": row.case.extra}


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
    rows = recorded["rows"]
    if recorded["op"] == norm.OP:
        table = _table(_NORM_HEAD, _NORM_TEXT_COLUMNS, [_norm_cells(row) for row in rows])
        summary = _norm_summary(rows)
    else:
        table = _table(_HEAD, _TEXT_COLUMNS, [_cells(row) for row in rows])
        summary = _summary(rows)
    return f"{_about(recorded['machine'])}\n\n{table}\n\n{summary}\n"


def _table(head: Sequence[str], text_columns: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if i in text_columns else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def line(row: Mapping[str, Any]) -> str:
    """One recorded row as a line for the terminal."""
    name = f"{row['case']} {row['dtype']} {row['layout']}"
    if row["failures"]:
        return f"{name}: FAILED, " + "; ".join(row["failures"])
    parts = []
    for direction in ("forward", "backward", "step"):
        if timed := row.get(direction):
            verdict = f", {timed['verdict'] or 'extra'}" if "verdict" in timed else ""
            parts.append(
                f"{direction} {timed['stock_ms']['median']:.2f} ->"
                f" {timed['ours_ms']['median']:.2f} ms ({timed['ratio']['median']:.2f}x,"
                f" {timed['copies']['median']:.1f} copies{verdict})"
            )
    return f"{name}: " + ", ".join(parts)


def _about(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads,"
        f" {machine['cpu_capability']}; torch {machine['torch']},"
        f" commit {machine['git_commit']}, {str(machine['date'])[:10]}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    case = row["case"] + (" (extra)" if row["extra"] else "")
    cells = [case, row["dtype"], row["layout"], row["route"]]
    if row["failures"]:
        return cells + ["FAILED: " + "; ".join(row["failures"])] + ["-"] * (len(_HEAD) - 5)
    for direction in ("forward", "backward"):
        cells += _timed_cells(row[direction])
    return cells


def _timed_cells(timed: Mapping[str, Any]) -> list[str]:
    goal = Goal(**timed["goal"])
    path = "fast" if goal.stock_is_fast else "slow"
    result = f"{goal}: {timed['verdict']}" if timed["verdict"] else "none"
    return [
        f"{timed['stock_ms']['median']:.2f}",
        f"{timed['ours_ms']['median']:.2f}",
        f"{timed['ratio']['median']:.2f}x",
        f"{timed['copies']['median']:.1f}",
        f"stock {path}; {result}",
    ]


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [
        row[direction]["verdict"]
        for row in rows
        if not row["failures"]
        for direction in ("forward", "backward")
    ]
    counts = {name: verdicts.count(name) for name in ("met", "close", "missed")}
    failed = sum(bool(row["failures"]) for row in rows)
    return (
        f"Goals met {counts['met']}, close (0.95x or more of a fast stock) {counts['close']},"
        f" missed {counts['missed']}; rows with wrong results: {failed}."
    )


def _norm_cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["case"], row["dtype"], row["layout"], row["route"]]
    if row["failures"]:
        failed = "FAILED: " + "; ".join(row["failures"])
        return [*cells, failed] + ["-"] * (len(_NORM_HEAD) - 5)
    for part in ("forward", "step"):
        timed = row[part]
        cells += [
            f"{timed['stock_ms']['median']:.2f}",
            f"{timed['ours_ms']['median']:.2f}",
            f"{timed['ratio']['median']:.2f}x",
            f"{timed['copies']['median']:.1f}",
        ]
    return cells


def _norm_summary(rows: Sequence[Mapping[str, Any]]) -> str:
    ratios = [
        row[part]["ratio"]["median"]
        for row in rows
        if not row["failures"]
        for part in ("forward", "step")
    ]
    slower = sum(ratio < 1 for ratio in ratios)
    failed = sum(bool(row["failures"]) for row in rows)
    return f"Slower than stock: {slower} of {len(ratios)}; rows with wrong results: {failed}."
