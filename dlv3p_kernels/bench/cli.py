"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import dispatch
from .._native import status
from . import aspp, decoder, depthwise, machine, norm, report, separable, summary, upsample

# By stem, in the order of the help text.
_OPS: dict[str, Any] = {
    "depthwise": depthwise,
    "norm": norm,
    "separable": separable,
    "aspp": aspp,
    "decoder": decoder,
    "upsample": upsample,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dlv3p bench`.

    Args:
        argv: the arguments after `bench`; those of the process where left out.

    Returns:
        0; 1 where a result was wrong or there are no compiled kernels to time.
    """
    options = _parser().parse_args(argv)
    if options.table:
        print(report.markdown(json.loads(options.table.read_text())), end="")
        return 0
    if options.summary:
        print(summary.markdown(options.summary, _OPS), end="")
        return 0
    if not status().cpu.loaded:
        print(f"nothing to time: {status().cpu}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    facts = machine.facts()
    with dispatch.backend(options.backend):
        recorded = report.record(_OPS[options.op].OP, _run(options), facts)
    _deliver(recorded, options)
    return int(any(row["failures"] for row in recorded["rows"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dlv3p bench",
        description="Time ops and layers against stock PyTorch, in turns.",
    )
    parser.add_argument("op", nargs="?", choices=tuple(_OPS), default="depthwise")
    parser.add_argument(
        "--backend", choices=("auto", "cpu"), default="auto", help="cpu: never stock PyTorch"
    )
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--dtype", nargs="+", choices=depthwise.DTYPES, default=None, metavar="D")
    parser.add_argument("--layout", nargs="+", choices=depthwise.LAYOUTS, default=None)
    parser.add_argument("--case", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a few cases, a second each")
    parser.add_argument("--seconds", type=float, help="time for each direction of a row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write DIR/cpu/OP.*")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print a recorded table")
    parser.add_argument(
        "--summary", type=Path, metavar="DIR", help="only print a short table of DIR/OP.json"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _run(options: argparse.Namespace) -> list[report.Row]:
    op = _OPS[options.op]
    seconds = options.seconds or (0.5 if options.quick else 2.0)
    rows = []
    for case in op.CASES:
        if (options.quick and not case.quick) or (options.case or "") not in str(case):
            continue
        for dtype in options.dtype or ("float32", "bfloat16"):
            for layout in options.layout or op.DEFAULT_LAYOUTS:
                row = op.run(case, dtype, layout, seconds)
                print(report.line(report.plain(row)), file=sys.stderr, flush=True)
                rows.append(row)
    return rows


def _deliver(recorded: dict[str, object], options: argparse.Namespace) -> None:
    table = report.markdown(recorded)
    if options.json:
        report.write_json(options.json, recorded)
    if options.output:
        folder = options.output / "cpu"
        report.write_json(folder / f"{options.op}.json", recorded)
        (folder / f"{options.op}.md").write_text(table)
    if options.markdown:
        print(table, end="")
