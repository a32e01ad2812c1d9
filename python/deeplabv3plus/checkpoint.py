"""Checkpoints: written atomically, read without running code from them, checked on loading."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeplabv3plus.atomic import write_bytes
from deeplabv3plus.classes import ClassSet
from deeplabv3plus.model import DeepLabV3Plus

FORMAT = "deeplabv3plus-checkpoint-1"
CHECKPOINT_NAME = "checkpoint.pt"
BEST_NAME = "best.pt"


@dataclass
class Checkpoint:
    """A trained model, and the state of its training if it is to be continued.

    Args:
        model_config: arguments of `DeepLabV3Plus`.
        weights: the trained state dict.
        classes: names and colours.
        window: side of the training crop in pixels, the window for larger pictures.
        step: optimizer steps taken.
        average: state dict of the moving average, used for prediction where there is one.
        training: optimizer, random states, settings; empty in a file for prediction only.
        scores: the last held-out scores.
    """

    model_config: dict[str, Any]
    weights: Mapping[str, Tensor]
    classes: ClassSet
    window: int
    step: int = 0
    average: Mapping[str, Tensor] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to `path`, atomically.

        Raises:
            OSError: it could not be written; an earlier file of that name is intact.
        """
        state = {"format": FORMAT, **vars(self), "classes": self.classes.state()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read `path`, tensors on the CPU. Only plain data is read (`weights_only=True`).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a checkpoint of this program, or a damaged one.
        """
        state = read_plain(path, "checkpoint")
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}, got {found}")
        del state["format"]
        return cls(**{**state, "classes": ClassSet.from_state(state["classes"])})

    def build_model(self, name: str = "checkpoint") -> DeepLabV3Plus:
        """Return the model for prediction: moving average if there is one, eval mode, on the CPU.

        Raises:
            ValueError: the weights do not fit the model; the message lists keys and starts with
                `name`.
        """
        model = DeepLabV3Plus(**self.model_config)
        load_weights(model, self.average or self.weights, name)
        return model.eval()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy `weights` into `model`, all or nothing.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the message starts with
            `name`, gives the number of each and shows a few.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    faults = [
        _fault("missing", missing),
        _fault("unexpected", unexpected),
        _fault("of another shape", shapes),
    ]
    if any(faults):
        raise ValueError(
            f"{name}: weights of another model; keys " + "; ".join(filter(None, faults))
        )
    model.load_state_dict(weights)


def _fault(kind: str, keys: list[str], shown: int = 3) -> str:
    if not keys:
        return ""
    rest = f", and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:shown])}{rest})"


def read_plain(path: Path, kind: str) -> Any:
    """Return what `torch.save` wrote to `path`, tensors on the CPU, if it is plain data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not written by `torch.save`, damaged, or with code in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises whatever it stumbles over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable {kind} ({reason})") from error
