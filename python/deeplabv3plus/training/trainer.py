"""The training loop, and the state it continues from."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeplabv3plus.checkpoint import BEST_NAME, CHECKPOINT_NAME, Checkpoint, load_weights
from deeplabv3plus.data import Augmentation, AugmentedDataset, VOCSegmentation, training_batches
from deeplabv3plus.ema import ModelEMA
from deeplabv3plus.evaluation import evaluate, scores
from deeplabv3plus.model import DeepLabV3Plus
from deeplabv3plus.normalisation import normalise
from deeplabv3plus.schedule import poly
from deeplabv3plus.training.config import TrainConfig
from deeplabv3plus.training.interrupt import Interrupt
from deeplabv3plus.training.log import RunLog
from deeplabv3plus.training.objective import Objective
from deeplabv3plus.training.optimizer import build_optimizer
from deeplabv3plus.training.precision import autocast, pick_device, use_bfloat16
from deeplabv3plus.training.progress import Progress
from deeplabv3plus.training.setup import build_model, class_pixels
from deeplabv3plus.training.timer import SaveTimer


class Trainer:
    """Trains a DeepLabv3+ on a folder in the VOC layout and keeps its files in `output`.

    Files: `checkpoint.pt` (everything needed to continue), `best.pt` (the weights with the best
    held-out mean IoU), `log.csv`.

    Args:
        config: settings of the run.
        train_pairs: what to learn from.
        val_pairs: the held-out part, for the scores.
        output: folder for the results, made if missing.
        show_progress: draw a progress bar.

    Raises:
        ValueError: no such device, or as `DeepLabV3Plus`.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_pairs: VOCSegmentation,
        val_pairs: VOCSegmentation,
        output: Path,
        show_progress: bool = True,
    ) -> None:
        self.config = config
        self.output = output
        self.show_progress = show_progress
        self.device = pick_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.train_pairs = train_pairs
        self.val_pairs = val_pairs
        self.classes = train_pairs.classes
        self.data = AugmentedDataset(train_pairs, _augmentation(config), config.seed)
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.classes), self.device)
        self.optimizer = build_optimizer(self.model, config)
        self.ema = ModelEMA(self.model, config.ema) if config.ema else None
        counts = class_pixels(train_pairs) if config.class_weights == "balanced" else None
        self.objective = Objective(counts, self.device)
        self.bfloat16 = use_bfloat16(config.amp, self.device)
        self.step = 0
        self.best = -math.inf
        self.scores: dict[str, float] = {}

    @property
    def checkpoint_path(self) -> Path:
        """Return the path of the file a run continues from."""
        return self.output / CHECKPOINT_NAME

    def fit(self, until: int | None = None) -> int | None:
        """Train up to step `until` (default: all of them), then save.

        Returns:
            The number of the signal (SIGINT, SIGTERM) that ended it early, after the step it came
            in and with that step saved; None if none did.

        Raises:
            FloatingPointError: the loss is not finite; the checkpoint stays that of a step before.
            OSError: a file could not be written; the earlier checkpoint is intact.
        """
        stop = self.config.steps if until is None else min(until, self.config.steps)
        columns = ["epoch", "lr", "loss", "seconds", *scores_columns(self.classes.names)]
        log = RunLog(self.output, columns, self.step)
        try:
            with (
                Interrupt() as interrupt,
                Progress(self.step, stop, self.show_progress) as progress,
            ):
                self._run(stop, log, interrupt, progress)
        finally:
            log.close()
        return interrupt.signal

    def _run(self, stop: int, log: RunLog, interrupt: Interrupt, progress: Progress) -> None:
        batches = training_batches(
            self.data,
            self.config.batch_size,
            self.step,
            stop,
            self.config.workers,
            self.device.type == "cuda",
        )
        timer = SaveTimer(self.config.checkpoint_every)
        started = time.perf_counter()
        for images, masks in batches:
            row = self._train_step(images, masks)
            if self._evaluation_due():
                row |= self._evaluate()
            row["seconds"] = time.perf_counter() - started
            started = time.perf_counter()
            log.add(row)
            progress.show(row, self.scores)
            if self.step == stop or interrupt.signal is not None or timer.due(self.step):
                timer.time(self.save)
            if interrupt.signal is not None:
                break

    def _train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        rate = self.config.lr * poly(
            self.step, self.config.steps, self.config.power, self.config.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.backward(images, masks)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} at step {self.step + 1}; a lower lr or amp off may help"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        epoch = self.step * self.config.batch_size / len(self.train_pairs)
        return {"step": self.step, "epoch": epoch, "lr": rate, "loss": loss}

    def backward(self, images: Tensor, masks: Tensor) -> float:
        """Return the loss of one batch (as from `training_batches`) and leave its gradients."""
        self.model.train()
        inputs = normalise(images.to(self.device, non_blocking=True))
        if self.config.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        target = masks.to(self.device, non_blocking=True).long()
        with autocast(self.device, self.bfloat16):
            loss = self.objective(self.model, inputs, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return float(loss.detach())

    def _evaluation_due(self) -> bool:
        every = self.config.eval_every
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    @property
    def prediction_model(self) -> DeepLabV3Plus:
        """Return the moving average if there is one, else the model."""
        return self.model if self.ema is None else self.ema.model

    def _evaluate(self) -> dict[str, float]:
        model = self.prediction_model
        with autocast(self.device, self.bfloat16):
            self.scores = scores(evaluate(model, self.val_pairs, self.config.crop), self.classes)
        if self.scores.get("miou", -math.inf) > self.best:
            self.best = self.scores["miou"]
            best = self._checkpoint()
            best.weights, best.average = best.average or best.weights, None
            best.save(self.output / BEST_NAME)
        return self.scores

    def save(self) -> None:
        """Write `checkpoint.pt` with everything that `resume` needs."""
        state = self._checkpoint()
        state.training = {
            "config": asdict(self.config),
            "data": str(self.train_pairs.root.resolve()),
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "best": self.best,
            "random": _random_states(self.device),
        }
        state.save(self.checkpoint_path)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model_config=self.model.config,
            weights=self.model.state_dict(),
            classes=self.classes,
            window=self.config.crop,
            step=self.step,
            average=self.ema.model.state_dict() if self.ema else None,
            scores=self.scores,
        )

    def resume(self, state: Checkpoint, name: str) -> None:
        """Continue from `state`: weights, average, optimizer, step, random states.

        Raises:
            ValueError: of another model or of other classes; the message starts with `name`.
        """
        if state.classes.names != self.classes.names:
            raise ValueError(
                f"{name}: trained for the classes {', '.join(state.classes.names)}, "
                f"but the data has {', '.join(self.classes.names)}"
            )
        load_weights(self.model, state.weights, name)
        if self.ema is not None and state.average is not None:
            load_weights(self.ema.model, state.average, name)
            self.ema.updates = state.training["ema_updates"]
        self.optimizer.load_state_dict(state.training["optimizer"])
        self.step, self.best, self.scores = state.step, state.training["best"], state.scores
        _restore_random(state.training["random"], self.device)


def resumed_config(state: Checkpoint, changes: dict[str, Any], name: str) -> TrainConfig:
    """Return the settings of the run in `state` with `changes`; see `TrainConfig.resumed_with`.

    Raises:
        ValueError: `state` has no training run to continue, or a change would alter it; the message
            starts with `name`.
    """
    if not state.training:
        raise ValueError(f"{name}: weights for prediction only, not the state of a training run")
    try:
        config = TrainConfig(**state.training["config"]).resumed_with(changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    # They are part of the checkpoint; the file may be gone.
    return replace(config, encoder_weights="")


def scores_columns(names: tuple[str, ...]) -> list[str]:
    """Return the names of the scores in the log."""
    return ["miou", "accuracy", *(f"iou/{name}" for name in names)]


def _augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(
        config.crop, (config.scale_min, config.scale_max), config.flips, config.jitter
    )


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
