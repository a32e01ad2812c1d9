"""The main job on real input: one training step, stock against ours, then a run on the sample.

python -m deeplabv3plus.demo --output demo-output
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import dlv3p_kernels as dk
from deeplabv3plus.classes import IGNORE_INDEX
from deeplabv3plus.commands.train import CURVES_NAME, describe, write_curves
from deeplabv3plus.data import VOCSegmentation, sample_path, training_batches
from deeplabv3plus.doctor import cpu_name, gpu_names
from deeplabv3plus.evaluation import score_table
from deeplabv3plus.inference import predict_classes
from deeplabv3plus.metrics import ConfusionMatrix
from deeplabv3plus.normalisation import normalise
from deeplabv3plus.render import Panel, save_comparison
from deeplabv3plus.training.config import SAMPLE, TrainConfig
from deeplabv3plus.training.trainer import Trainer
from dlv3p_kernels.bench.memory import peak_of
from dlv3p_kernels.dispatch import BackendName

WANTED_MIOU = 0.45
TRAINING_SECONDS = 150.0
"""What the run should take at most; a slower machine takes fewer steps."""
LEAST_STEPS = 150
PICTURE_NAME = "predictions.png"
REPEATS = 7


@dataclass(frozen=True)
class StepCost:
    """Median seconds of a training step, and the most bytes that it has allocated at a time."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class StepComparison:
    """One training step with stock layers and with ours: what it costs, and the differences.

    `logits` and `gradients` are the largest absolute differences, each relative to the largest
    absolute value of its kind; on a CPU in float64, elsewhere in float32.
    """

    stock: StepCost
    ours: StepCost
    logits: float
    gradients: float

    def __str__(self) -> str:
        stock, ours = self.stock, self.ours
        return (
            f"stock {1000 * stock.seconds:.0f} ms, ours {1000 * ours.seconds:.0f} ms, "
            f"{stock.seconds / ours.seconds:.2f} times as fast\n"
            f"peak memory: stock {stock.peak / 1e6:.0f} MB, ours {ours.peak / 1e6:.0f} MB, "
            f"{ours.peak / stock.peak:.2f} times as much\n"
            f"largest difference: logits {self.logits:.1e} of the largest logit, "
            f"gradients {self.gradients:.1e} of the largest gradient"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return 0 if the held-out mean IoU is at least 0.45, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", default="demo-output", metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: what fits in 150 s)")
    args = parser.parse_args(arguments)
    print(_environment(), flush=True)
    comparison = compare_step(SAMPLE, REPEATS)
    print(
        f"one training step, batch {SAMPLE.batch_size}, crop {SAMPLE.crop}: {comparison}",
        flush=True,
    )
    config = replace(SAMPLE, steps=args.steps or _steps_that_fit(comparison.ours.seconds))
    trainer = train(config, Path(args.output))
    reached = show_predictions(trainer)
    print(f"held-out mean IoU {reached:.3f} (wanted: at least {WANTED_MIOU})")
    return 0 if reached >= WANTED_MIOU else 1


def compare_step(config: TrainConfig, repeats: int) -> StepComparison:
    """Measure one training step in turn with stock layers and with ours, on one batch."""
    trainer = _trainer(config, Path(os.devnull))
    images, masks = next(iter(training_batches(trainer.data, config.batch_size, 0, 1)))
    seconds: dict[BackendName, list[float]] = {"reference": [], "auto": []}
    for repeat in range(repeats + 1):
        for backend, times in seconds.items():
            with dk.backend(backend):
                spent = _time_step(trainer, images, masks)
            if repeat:  # the first round warms up
                times.append(spent)
    stock, ours = (_outcome(trainer, images, masks, backend) for backend in seconds)
    differences = [
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(stock, ours, strict=True)
    ]
    costs = []
    for backend, times in seconds.items():
        trainer.optimizer.zero_grad()  # what the step before has left is not of this one
        with dk.backend(backend):
            peak = peak_of(lambda: trainer.backward(images, masks), trainer.device.type)
        costs.append(StepCost(statistics.median(times), peak))
    return StepComparison(costs[0], costs[1], differences[0], differences[1])


def train(config: TrainConfig, output: Path) -> Trainer:
    """Train on the sample from scratch; log and curves go to `output`."""
    trainer = _trainer(config, output)
    print(describe(trainer), flush=True)
    start = time.perf_counter()
    stopped = trainer.fit()
    if stopped is not None:
        raise SystemExit(128 + stopped)
    print(f"trained {trainer.step} steps in {time.perf_counter() - start:.0f} s, scores included")
    write_curves(trainer)
    return trainer


def show_predictions(trainer: Trainer) -> float:
    """Print the scores on the held-out tiles, draw them as one PNG, and return the mean IoU."""
    pairs, model = trainer.val_pairs, trainer.prediction_model.eval()
    panels = []
    confusion = ConfusionMatrix(len(trainer.classes))
    for index, name in enumerate(pairs.names):
        image, truth = pairs[index]
        guess = predict_classes(model, image, trainer.config.crop)
        confusion.update(torch.from_numpy(truth), torch.from_numpy(guess))
        panels.append(Panel(name, image, truth, guess))
    print(score_table(confusion, trainer.classes))
    path = trainer.output / PICTURE_NAME
    title = f"Held-out tiles after {trainer.step} steps, mean IoU {confusion.mean_iou():.2f}"
    save_comparison(path, panels, trainer.classes, title)
    print(f"pictures: {path}, {trainer.output / CURVES_NAME}")
    return confusion.mean_iou()


def _trainer(config: TrainConfig, output: Path) -> Trainer:
    folder = sample_path()
    return Trainer(config, VOCSegmentation(folder, "train"), VOCSegmentation(folder, "val"), output)


def _time_step(trainer: Trainer, images: Tensor, masks: Tensor) -> float:
    start = time.perf_counter()
    trainer.backward(images, masks)
    trainer.optimizer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - start


def _outcome(trainer: Trainer, images: Tensor, masks: Tensor, backend: BackendName) -> list[Tensor]:
    """Return the logits and all gradients of one training step in the widest type of kernels.

    In float32, what rounding does to a net at its start would hide a real difference.
    """
    dtype = torch.float64 if trainer.device.type == "cpu" else torch.float32
    torch.manual_seed(0)  # the same elements are dropped
    model = copy.deepcopy(trainer.model).to(dtype).train()
    parameters = list(model.parameters())
    target = masks.to(trainer.device).long()
    with dk.backend(backend):
        logits = model(normalise(images.to(trainer.device)).to(dtype))
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)
        gradients = torch.autograd.grad(loss, parameters)
    return [logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])]


def _steps_that_fit(step_seconds: float) -> int:
    return max(LEAST_STEPS, min(SAMPLE.steps, int(TRAINING_SECONDS / step_seconds)))


def _environment() -> str:
    compiled = "compiled" if dk.status().cpu.loaded else "not compiled"
    return (
        f"{cpu_name()}, {torch.get_num_threads()} threads, GPU: {gpu_names()}, "
        f"torch {torch.__version__}, dlv3p_kernels {dk.__version__}, CPU kernels {compiled}"
    )


if __name__ == "__main__":
    sys.exit(main())
