"""`python -m gpu_check [PART ...]`: see the package's documentation."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import build

# Also the shares of the time that is left; "all together in under 9 minutes".
WEIGHTS = {"parity": 4.0, "sanitize": 1.5, "dispatch": 1.0, "bench": 4.0, "layers": 3.0}
_TOTAL_SECONDS = 515.0
# From the end of a part's time until it is killed.
_GRACE_SECONDS = 12.0
NO_GPU = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0, or 1 where something is wrong, or 2 where there is no GPU."""
    options = _parser().parse_args(argv)
    start = time.monotonic()
    if options.child:
        _child(options)
        return 0
    if unknown := set(options.parts) - set(WEIGHTS):
        sys.exit(f"gpu-check: no part {', '.join(sorted(unknown))}; there are {', '.join(WEIGHTS)}")
    gpu = torch.cuda.is_available()
    if options.build == "auto" and not options.dry_run:
        _build(".".join(map(str, torch.cuda.get_device_capability())) if gpu else None)
    _report_means()
    if not gpu and not options.dry_run:
        print(_no_gpu(), file=sys.stderr)
        return NO_GPU
    return _run_parts(options, start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-check", description="Proof and timing on a GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(WEIGHTS)}")
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], metavar="NAME")
    parser.add_argument("--output", type=Path, default=build.ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=_TOTAL_SECONDS, help="for all parts")
    parser.add_argument("--build", choices=("auto", "never"), default="auto")
    parser.add_argument("--commit", help="recorded where the checkout has no .git")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, to test the check")
    parser.add_argument("--child", metavar="PART", help=argparse.SUPPRESS)
    return parser


def _build(capability: str | None) -> None:
    reason = build.why_unfit(capability)
    if reason is None:
        print("libraries: used as they are", flush=True)
        return
    print(f"libraries: building, since {reason}", flush=True)
    if failure := build.build(capability):
        print(f"libraries: NOT BUILT\n{failure}", file=sys.stderr)


def _report_means() -> None:
    """What the parts will find, as far as it shows without a GPU."""
    import dlv3p_kernels as dk

    from . import parity, sanitize

    print(dk.status())
    print("compute-sanitizer:", sanitize.find() or "not found")
    print("tests:", *parity.test_files(), flush=True)


def _no_gpu() -> str:
    built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return (
        f"gpu-check: no CUDA GPU was found (torch {torch.__version__}, built {built};"
        f" {sys.executable}). Nothing was run on a GPU and no result was written."
    )


def _run_parts(options: argparse.Namespace, start: float) -> int:
    from . import parts, record, summary

    names = options.parts or list(WEIGHTS)
    folder = parts.results_folder(options.output, options.dry_run)
    bad = False
    for i, name in enumerate(names):
        left = options.seconds - (time.monotonic() - start)
        seconds = left * WEIGHTS[name] / sum(WEIGHTS[later] for later in names[i:])
        file = folder / f"{name}.json"
        file.unlink(missing_ok=True)
        ended = _in_own_process(name, options, seconds)
        data = record.mark_stopped(file, ended or "stopped")
        bad |= bool(data["problems"])
        print(f"{name}: {data['status']}, {len(data['problems'])} problems", flush=True)
    path = summary.write(folder)
    print(f"results: {path} and the JSON files beside it")
    return int(bad)


def _in_own_process(name: str, options: argparse.Namespace, seconds: float) -> str | None:
    """Run a part so that what takes it down does not take down the others; how it ended if so."""
    command = [sys.executable, "-m", "gpu_check", "--child", name, "--output", str(options.output)]
    command += ["--seconds", f"{seconds - _GRACE_SECONDS:.1f}", "--backends", *options.backends]
    command += ["--commit", options.commit] if options.commit else []
    command += ["--dry-run"] if options.dry_run else []
    print(f"{name}: {seconds:.0f} s", flush=True)
    try:
        status = subprocess.run(command, timeout=max(seconds, 1), check=False).returncode
    except subprocess.TimeoutExpired:
        return "killed, out of time"
    return f"ended with status {status}" if status else None


def _child(options: argparse.Namespace) -> None:
    from . import parts

    folder = parts.results_folder(options.output, options.dry_run)
    context = parts.Context(
        folder, options.seconds, tuple(options.backends), options.commit, options.dry_run
    )
    parts.run(options.child, context)


if __name__ == "__main__":
    sys.exit(main())
