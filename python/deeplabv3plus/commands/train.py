"""`dlv3p train`."""

from __future__ import annotations

import argparse
import math
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from deeplabv3plus.checkpoint import BEST_NAME, CHECKPOINT_NAME, Checkpoint
from deeplabv3plus.data import VOCSegmentation, sample_path
from deeplabv3plus.render import save_curves
from deeplabv3plus.training.config import SAMPLE, TrainConfig
from deeplabv3plus.training.log import LOG_NAME, read_log
from deeplabv3plus.training.trainer import Trainer, resumed_config

CURVES_NAME = "curves.png"


def run(args: argparse.Namespace) -> int:
    """Train as asked; return 0, or 128 + the number of the signal that ended the run early."""
    trainer = _resumed(args) if args.resume is not None else _fresh(args)
    print(describe(trainer), flush=True)
    stopped = trainer.fit()
    write_curves(trainer)
    if stopped is not None:
        name = signal.Signals(stopped).name
        print(f"{name}: stopped after step {trainer.step} of {trainer.config.steps}, saved")
        print(f"continue with: dlv3p train --resume --output {trainer.output}")
        return 128 + stopped
    print(f"held-out part after {trainer.step} steps: mean IoU {trainer.scores['miou']:.3f}")
    print(f"written to {trainer.output}: {CHECKPOINT_NAME}, {BEST_NAME}, {LOG_NAME}, {CURVES_NAME}")
    return 0


def describe(trainer: Trainer) -> str:
    """Return one line on what is about to be trained."""
    config = trainer.config
    pairs = f"{len(trainer.train_pairs)} + {len(trainer.val_pairs)} pictures"
    kind = "bfloat16" if trainer.bfloat16 else "float32"
    return (
        f"{config.encoder}, output stride {config.output_stride}, {len(trainer.classes)} classes, "
        f"{pairs}, steps {trainer.step} to {config.steps}, {trainer.device}, {kind}, "
        f"into {trainer.output}"
    )


def write_curves(trainer: Trainer) -> None:
    """Draw the log of the run, as far as it came, into its folder."""
    config = trainer.config
    rows = read_log(trainer.output / LOG_NAME)
    title = f"DeepLabv3+, {config.encoder}, output stride {config.output_stride}"
    if rows:
        save_curves(trainer.output / CURVES_NAME, rows, trainer.classes, title)


def _fresh(args: argparse.Namespace) -> Trainer:
    output = Path(args.output)
    earlier = output / CHECKPOINT_NAME
    if earlier.exists() and not args.overwrite:
        raise ValueError(
            f"{earlier} exists: "
            "--resume continues it, --overwrite replaces it, or name another --output"
        )
    train, val = _pairs(args.data)
    changes = _changes(args)
    base = TrainConfig() if args.data else SAMPLE
    if args.epochs is not None:
        changes["steps"] = math.ceil(
            args.epochs * len(train) / changes.get("batch_size", base.batch_size)
        )
    return Trainer(replace(base, **changes), train, val, output)


def _resumed(args: argparse.Namespace) -> Trainer:
    path = Path(args.resume) if args.resume else Path(args.output) / CHECKPOINT_NAME
    if args.epochs is not None or args.overwrite:
        raise ValueError(
            "--resume: continues a run as it was set up, without --epochs and --overwrite"
        )
    state = Checkpoint.load(path)
    config = resumed_config(state, _changes(args), str(path))
    trainer = Trainer(config, *_pairs(args.data or state.training["data"]), path.parent)
    trainer.resume(state, str(path))
    return trainer


def _pairs(data: str | None) -> tuple[VOCSegmentation, VOCSegmentation]:
    folder = Path(data) if data else sample_path()
    return VOCSegmentation(folder, "train"), VOCSegmentation(folder, "val")


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    names = [item.name for item in fields(TrainConfig)]
    return {name: value for name in names if (value := getattr(args, name)) is not None}
