"""The Markdown summary of a device's results, from the files of its parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import goals

PARTS = ("parity", "sanitize", "dispatch", "bench", "layers")
DRY = "DRY RUN ON A CPU: it shows that the check works. Nothing below is a GPU result."
_MOST_LISTED = 40

Data = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Write README.md from the parts that the folder has; returns its path."""
    path = folder / "README.md"
    files = [folder / f"{part}.json" for part in PARTS]
    path.write_text(markdown([json.loads(file.read_text()) for file in files if file.exists()]))
    return path


def markdown(parts: Sequence[Data]) -> str:
    """The whole summary."""
    machine = parts[0]["machine"]
    blocks = [f"# GPU check: {machine.get('gpu', 'no GPU')}"]
    if machine.get("dry_run"):
        blocks.append(DRY)
    for data in parts:
        blocks += [f"## {data['part']}", _about(data), *_TABLES[data["part"]](data)]
        for title in ("problems", "left_out"):
            if data[title]:
                blocks.append(_listed(title.replace("_", " ").capitalize(), data[title]))
    return "\n\n".join(blocks) + "\n"


def _about(data: Data) -> str:
    machine = data["machine"]
    named = {
        "driver": "driver_version",
        "CUDA": "cuda",
        "cuDNN": "cudnn",
        "torch": "torch",
        "triton": "triton",
        "commit": "git_commit",
        "SM clock found": "clocks.sm",
        "of at most": "clocks.max.sm",
    }
    facts = ", ".join(f"{name} {machine[key]}" for name, key in named.items() if machine.get(key))
    return f"{data['status']} in {data['seconds']} s on {str(machine['date'])[:10]}; {facts}"


def _listed(title: str, lines: Sequence[str]) -> str:
    shown = [f"* {line}" for line in lines[:_MOST_LISTED]]
    if len(lines) > _MOST_LISTED:
        shown.append(f"* and {len(lines) - _MOST_LISTED} more, in the JSON file")
    return f"{title}:\n\n" + "\n".join(shown)


def _parity(data: Data) -> Iterator[str]:
    rows = []
    for backend, shares in groupby(data["rows"], key=lambda row: row["backend"]):
        counts: Counter[str] = Counter()
        for share in shares:
            counts += Counter(share["counts"]) + Counter(not_run=share["not_run"])
        names = ("passed", "failed", "skipped", "not_run")
        rows.append([backend, *(str(counts[name]) for name in names)])
    yield _table(["back end", "passed", "failed", "skipped", "not run"], rows)


def _sanitize(data: Data) -> Iterator[str]:
    head = ["tool", "back end", "verdict", "calls", "summary"]
    fields = ("tool", "backend", "verdict", "calls", "summary")
    yield _table(head, [[str(row[name]) for name in fields] for row in data["rows"]])


def _dispatch(data: Data) -> Iterator[str]:
    head = ["case", "dtype", "layout", "backend", "direction", "ms", "GB/s", "slowest kernels"]
    lines = []
    for row in data["rows"]:
        where = [row["case"], row["dtype"], row["layout"]]
        if "failure" in row:
            lines.append([*where, "failed", "", "", "", row["failure"].splitlines()[0]])
            continue
        for direction in ("forward", "backward"):
            found = row[direction]
            names = "; ".join(f"`{name}`" for name in found["kernels"][:2])
            figures = [f"{found['ms']:.4f}", f"{found['gbps']:.0f}"]
            lines.append([*where, row["backend"], direction, *figures, names])
    yield _table(head, lines)


def _copy(data: Data) -> str:
    clocks = data.get("under_load", {})
    after = f"; SM clock after it {clocks['clocks.sm']} MHz" if "clocks.sm" in clocks else ""
    copy = data.get("large_copy_gbps", 0)
    return f"A copy of 1 GiB runs at {copy:.0f} GB/s, read and written{after}."


def _bench(data: Data) -> Iterator[str]:
    yield _copy(data)
    yield "\n".join(f"* {line}" for line in goals.verdicts(data["rows"]))
    for subject in dict.fromkeys(row["subject"] for row in data["rows"]):
        found = [row for row in data["rows"] if row["subject"] == subject]
        names = list(dict.fromkeys(name for row in found for name in row["ms"]))
        head = ["case", "dtype", *(f"{name} ms" for name in names), "best of ours", "% of copy"]
        head += ["x stock channels_last", "x stock contiguous"]
        yield f"### {subject}\n\n" + _table(head, [_bench_line(row, names) for row in found])


def _bench_line(row: Data, names: Sequence[str]) -> list[str]:
    best = goals.best(row)
    share = f"{100 * row['of_copy'][best]:.0f}" if best else "-"
    ratios = [goals.speed_up(row, f"stock {layout}") for layout in ("channels_last", "contiguous")]
    shown = [f"{ratio:.2f}" if ratio else "-" for ratio in ratios]
    return [
        row["case"],
        row["dtype"],
        *_medians(row, names),
        best or "none is right",
        share,
        *shown,
    ]


def _layers(data: Data) -> Iterator[str]:
    yield _copy(data)
    yield "\n".join(f"* {line}" for line in goals.layer_verdicts(data["rows"]))
    names = list(dict.fromkeys(name for row in data["rows"] for name in row["ms"]))
    head = ["layer", "case", "dtype", *(f"{name} ms" for name in names)]
    head += ["floor of an H100 ms", *(f"{name} kept/peak MB" for name in names)]
    yield _table(head, [_layer_line(row, names) for row in data["rows"]])


def _layer_line(row: Data, names: Sequence[str]) -> list[str]:
    memory = [
        f"{row['memory'][name]['kept'] / 1e6:.0f}/{row['memory'][name]['peak'] / 1e6:.0f}"
        if name in row["memory"]
        else "-"
        for name in names
    ]
    start = [row["subject"], row["case"], row["dtype"], *_medians(row, names)]
    return [*start, f"{row['floor_ms']:.4f}", *memory]


def _medians(row: Data, names: Sequence[str]) -> list[str]:
    return [f"{row['ms'][name]['median']:.4f}" if name in row["ms"] else "-" for name in names]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_TABLES = {
    "parity": _parity,
    "sanitize": _sanitize,
    "dispatch": _dispatch,
    "bench": _bench,
    "layers": _layers,
}
