"""`dlv3p evaluate`."""

from __future__ import annotations

import argparse

import torch

from deeplabv3plus.commands.common import load_model
from deeplabv3plus.data import VOCSegmentation, sample_path
from deeplabv3plus.evaluation import evaluate, score_table


def run(args: argparse.Namespace) -> int:
    """Print the scores of a trained model on a split."""
    if args.threads:
        torch.set_num_threads(args.threads)
    model, state, path = load_model(args.weights, args.device)
    pairs = VOCSegmentation(args.data or sample_path(), args.split)
    if pairs.classes.names != state.classes.names:
        raise ValueError(
            f"{path}: trained for the classes {', '.join(state.classes.names)}, "
            f"but {pairs.root} has {', '.join(pairs.classes.names)}"
        )
    window = state.window if args.window is None else args.window
    print(f"{path} (step {state.step}) on {len(pairs)} pictures of {pairs.root}, list {args.split}")
    confusion = evaluate(model, pairs, window, scales=args.scales, flip=args.flip)
    print(score_table(confusion, state.classes))
    return 0
