"""The Markdown table of each op's rows, as recorded, and the line below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .goals import Goal

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """How to show rows.

    Attributes:
        head: names of the columns; the first four are of text.
        cells: what a row that was timed has behind those four.
        summary: what to say of all rows.
        text: names of further columns of text.
    """

    head: tuple[str, ...]
    cells: Callable[[Mapping[str, Any]], list[str]]
    summary: Callable[[Rows], str]
    text: tuple[str, ...] = ("goal",)

    def markdown(self, rows: Rows) -> str:
        """The table and the summary."""
        rule = ["---" if i < 4 or h in self.text else "---:" for i, h in enumerate(self.head)]
        lines = (self.head, rule, *map(self._line, rows))
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{table}\n\n{self.summary(rows)}"

    def _line(self, row: Mapping[str, Any]) -> list[str]:
        case = row["case"] + (" (extra)" if row.get("extra") else "")
        start = [case, row["dtype"], row["layout"], row["route"]]
        if row["failures"]:
            failed = "FAILED: " + "; ".join(row["failures"])
            return [*start, failed] + ["-"] * (len(self.head) - 5)
        return start + self.cells(row)


def _times(timed: Mapping[str, Any]) -> list[str]:
    return [
        f"{timed['stock_ms']['median']:.2f}",
        f"{timed['ours_ms']['median']:.2f}",
        f"{timed['ratio']['median']:.2f}x",
    ]


def _times_and_copies(timed: Mapping[str, Any]) -> list[str]:
    return [*_times(timed), f"{timed['copies']['median']:.1f}"]


def _timed(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if not row["failures"]]


def _failed(rows: Rows) -> str:
    return f"rows with wrong results: {len(rows) - len(_timed(rows))}."


def _counted(rows: Rows, verdicts: Sequence[str | None]) -> str:
    counts = {name: verdicts.count(name) for name in ("met", "close", "missed")}
    return (
        f"Goals met {counts['met']}, close (0.95x or more of a fast stock) {counts['close']},"
        f" missed {counts['missed']}; {_failed(rows)}"
    )


# --- depthwise convolution ------------------------------------------------------------------------


def _depthwise_cells(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for direction in ("forward", "backward"):
        timed = row[direction]
        goal = Goal(**timed["goal"])
        path = "fast" if goal.stock_is_fast else "slow"
        result = f"{goal}: {timed['verdict']}" if timed["verdict"] else "none"
        cells += [*_times_and_copies(timed), f"stock {path}; {result}"]
    return cells


def _depthwise_summary(rows: Rows) -> str:
    directions = ("forward", "backward")
    return _counted(rows, [row[d]["verdict"] for row in _timed(rows) for d in directions])


DEPTHWISE = Table(
    (
        *("case (N=2)", "dtype", "layout", "fwd by"),
        *("stock fwd ms", "ours fwd ms", "ratio", "ours/copy", "goal"),
        *("stock bwd ms", "ours bwd ms", "ratio", "ours/copy", "goal"),
    ),
    _depthwise_cells,
    _depthwise_summary,
)


# --- batch norm -----------------------------------------------------------------------------------


def _norm_cells(row: Mapping[str, Any]) -> list[str]:
    return [*_times_and_copies(row["forward"]), *_times_and_copies(row["step"])]


def _slower(rows: Rows) -> str:
    timed = [row[part] for row in _timed(rows) for part in ("forward", "step")]
    ratios = [part["ratio"]["median"] for part in timed if part]
    slower = sum(ratio < 1 for ratio in ratios)
    return f"Slower than stock: {slower} of {len(ratios)}; {_failed(rows)}"


NORM = Table(
    (
        *("case (N=2)", "dtype", "layout", "ours by"),
        *("stock fwd ms", "ours fwd ms", "ratio", "ours/copy"),
        *("stock step ms", "ours step ms", "ratio", "ours/copy"),
    ),
    _norm_cells,
    _slower,
)


# --- loss and classes of resized logits -----------------------------------------------------------


def _upsample_cells(row: Mapping[str, Any]) -> list[str]:
    cells = _times_and_copies(row["forward"])
    if not row["step"]:
        return cells + ["-"] * 7
    peaks = [row["memory"][name]["peak"] for name in ("stock", "ours")]
    megabytes = [f"{peak / 1e6:.1f}" for peak in peaks]
    return [*cells, *_times_and_copies(row["step"]), *megabytes, f"{peaks[1] / peaks[0]:.3f}x"]


UPSAMPLE = Table(
    (
        *("case (N=2)", "dtype", "layout", "ours by"),
        *("stock fwd ms", "ours fwd ms", "ratio", "ours/copy"),
        *("stock step ms", "ours step ms", "ratio", "ours/copy"),
        *("stock peak MB", "ours peak MB", "peak"),
    ),
    _upsample_cells,
    _slower,
)


# --- separable convolution and ASPP ---------------------------------------------------------------

_PARTS = ("inference", "step", "memory")


def _layer_cells(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for part in ("inference", "step"):
        timed = row[part]
        goal = f"{Goal(**timed['goal'])}: {timed['verdict']}" if timed["goal"] else "none"
        cells += [*_times(timed), goal]
    memory = row["memory"]
    for kind in ("kept", "peak"):
        stock, ours = memory["stock"][kind], memory["ours"][kind]
        cells += [f"{stock / 1e6:.1f}", f"{ours / 1e6:.1f}", f"{ours / stock:.2f}x"]
    cells.append(f"<= {memory['goal']:g}x: {memory['verdict']}" if memory["goal"] else "none")
    return cells


def _layer_summary(rows: Rows) -> str:
    verdicts = [row[part]["verdict"] for row in _timed(rows) for part in _PARTS]
    lines = [_counted(rows, verdicts)]
    for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in rows):
        same = [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)]
        listed = [row for row in _timed(same) if row["count"]]
        if sum(row["count"] for row in listed) > 1:
            lines.append(f"* {dtype}, {layout}: {_total(listed)}")
    return "\n".join(lines)


def _total(rows: Rows) -> str:
    """All layers of Xception-65 among the rows together, each as often as it has it."""
    texts = [f"{sum(row['count'] for row in rows)} layers of Xception-65 together"]
    for part in ("inference", "step"):
        stock, ours = (
            sum(row["count"] * row[part][name]["median"] for row in rows)
            for name in ("stock_ms", "ours_ms")
        )
        texts.append(f"{part} {stock:.0f} -> {ours:.0f} ms ({stock / ours:.2f}x)")
    stock, ours = (
        sum(row["count"] * row["memory"][name]["kept"] for row in rows) / 1e6
        for name in ("stock", "ours")
    )
    return ", ".join([*texts, f"kept for backward {stock:.0f} -> {ours:.0f} MB"])


LAYERS = Table(
    (
        *("case", "dtype", "layout", "ours by"),
        *("stock inference ms", "ours inference ms", "ratio", "goal"),
        *("stock step ms", "ours step ms", "ratio", "goal"),
        *("stock kept MB", "ours kept MB", "kept"),
        *("stock peak MB", "ours peak MB", "peak", "goal of kept"),
    ),
    _layer_cells,
    _layer_summary,
    ("goal", "goal of kept"),
)


# --- models of other packages ---------------------------------------------------------------------


def _model_cells(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for part in ("inference", "step", "step_with_our_loss"):
        timed = row[part]
        goal = f"{Goal(**timed['goal'])}: {timed['verdict']}" if timed["goal"] else "none"
        cells += [*_times(timed), goal]
    memory = row["memory"]
    for kind in ("kept", "peak"):
        stock = memory["stock"][kind]
        ratios = [f"{memory[name][kind] / stock:.2f}x" for name in ("ours", "our loss")]
        cells += [f"{stock / 1e6:.0f}", *ratios]
    return cells


def _model_summary(rows: Rows) -> str:
    parts = ("inference", "step", "step_with_our_loss")
    return _counted(rows, [row[part]["verdict"] for row in _timed(rows) for part in parts])


MODELS = Table(
    (
        *("model", "dtype", "layout", "ours by"),
        *("stock inference ms (N=1)", "ours inference ms", "ratio", "goal"),
        *("stock step ms", "ours step ms", "ratio", "goal"),
        *("stock step ms", "ours with our loss ms", "ratio", "goal"),
        *("stock kept MB", "kept", "kept, our loss"),
        *("stock peak MB", "peak", "peak, our loss"),
    ),
    _model_cells,
    _model_summary,
)
