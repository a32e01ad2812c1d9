"""`dlv3p segment`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from deeplabv3plus.commands.common import load_model
from deeplabv3plus.data.voc import list_images, read_image
from deeplabv3plus.inference import predict_classes
from deeplabv3plus.render import save_mask, save_overlay


def run(args: argparse.Namespace) -> int:
    """Write mask and overlay of each picture."""
    if args.threads:
        torch.set_num_threads(args.threads)
    images = list_images(args.image)
    _refuse_same_names(images)
    model, state, _ = load_model(args.weights, args.device)
    window = state.window if args.window is None else args.window
    output = Path(args.output)
    for path in tqdm(images, unit="picture", disable=len(images) == 1):
        image = read_image(path)
        classes_map = predict_classes(model, image, window, scales=args.scales, flip=args.flip)
        save_mask(output / f"{path.stem}.png", classes_map, state.classes)
        save_overlay(output / f"{path.stem}_overlay.png", image, classes_map, state.classes)
    print(f"{len(images)} masks and overlays in {output}")
    return 0


def _refuse_same_names(images: list[Path]) -> None:
    stems = [path.stem for path in images]
    twice = next((path for path in images if stems.count(path.stem) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{twice}: another picture in the folder has the same name but for its ending"
        )
