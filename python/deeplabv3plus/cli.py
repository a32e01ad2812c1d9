"""The command `dlv3p`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import Field, asdict, fields
from types import ModuleType
from typing import Any

from deeplabv3plus.training.config import DEFAULT_OUTPUT, SAMPLE, TrainConfig

_TRAIN_EXTRA = ("PIL", "tqdm", "matplotlib")
_BAD_INPUT = (ValueError, TypeError, OSError, FloatingPointError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dlv3p` with `arguments` (default: those of the process) and return its exit status.

    0 = done, 2 = bad input (one line on stderr), 128 + n = ended by signal n.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    try:
        if arguments[:1] == ["bench"]:
            # The benchmark has options of its own.
            return _command("bench").run([word for word in arguments[1:] if word != "--debug"])
        args = build_parser().parse_args(arguments)
        return _command(args.command).run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `dlv3p doctor | head`: no error. What is still
        # buffered goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _BAD_INPUT as error:
        if debug:
            raise
        print(f"dlv3p: error: {_explain(error)}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlv3p", description="DeepLabv3+: train it, score it, use it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add = {
        name: commands.add_parser(name, help=text, description=text, parents=[common])
        for name, text in (
            ("doctor", "report what this machine has and what is missing"),
            ("bench", "time the kernels against stock PyTorch (options: dlv3p bench --help)"),
            ("train", "train a model; without --data, on the sample that ships with the package"),
            ("evaluate", "print the mean IoU and the IoU of each class"),
            ("segment", "write masks and overlays of pictures"),
        )
    }
    _train_options(add["train"])
    for name in ("evaluate", "segment"):
        _model_options(add[name])
    add["evaluate"].add_argument(
        "--data", metavar="DIR", help="folder in the PASCAL VOC layout (default: the sample)"
    )
    add["evaluate"].add_argument(
        "--split", default="val", help="list in ImageSets/Segmentation (default: val)"
    )
    add["segment"].add_argument(
        "image", metavar="IMAGE|DIR", help="a picture, or a folder of pictures"
    )
    add["segment"].add_argument(
        "-o", "--output", metavar="OUT", required=True, help="folder for the results"
    )
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="CKPT", help=f"checkpoint (default: {DEFAULT_OUTPUT}/best.pt)"
    )
    parser.add_argument(
        "--window",
        type=_count,
        help="side of the sliding window, 0 = whole picture (default: crop)",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="X",
        help="sizes to look at each picture in, e.g. 0.75 1 1.25; logits are averaged (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="look at each picture mirrored as well")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=_count, default=0, help="CPU threads, 0 = PyTorch's choice"
    )


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", help="folder in the PASCAL VOC layout (default: the sample)"
    )
    parser.add_argument(
        "--output", metavar="DIR", default=DEFAULT_OUTPUT, help="results (default: %(default)s)"
    )
    parser.add_argument(
        "--resume", metavar="CKPT", nargs="?", const="", help="continue a run exactly where it was"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    parser.add_argument(
        "--epochs", type=float, help="length of the run in passes over the data, instead of --steps"
    )
    for item in fields(TrainConfig):
        _add_setting(parser, item)


def _sample_settings() -> dict[str, Any]:
    usual, sample = asdict(TrainConfig()), asdict(SAMPLE)
    return {name: value for name, value in sample.items() if value != usual[name]}


def _add_setting(parser: argparse.ArgumentParser, item: Field) -> None:
    flag = "--" + item.name.replace("_", "-")
    text = item.metadata["help"]
    if isinstance(item.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        return
    shown = f" (default: {item.default})" if item.default != "" else ""
    parser.add_argument(
        flag,
        type=type(item.default),
        choices=item.metadata["choices"] or None,
        metavar=_metavar(item),
        help=text + shown,
    )


def _metavar(item: Field) -> str | None:
    return (
        None
        if item.metadata["choices"]
        else {int: "N", float: "X", str: "NAME"}[type(item.default)]
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _command(name: str) -> ModuleType:
    if name == "doctor":
        return importlib.import_module("deeplabv3plus.doctor")
    return importlib.import_module(f"deeplabv3plus.commands.{name}")


def _explain(error: BaseException) -> str:
    """Return an error in one line."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _TRAIN_EXTRA:
        return f'{error.name} is not installed: pip install "dlv3p_kernels[train]"'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A data-loader worker puts the traceback before the message.
    return lines[-1].partition(": ")[2] if "DataLoader worker" in lines[0] else " ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
