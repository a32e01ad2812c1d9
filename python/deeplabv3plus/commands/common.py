"""What the commands that use a trained model share."""

from __future__ import annotations

from pathlib import Path

from deeplabv3plus.checkpoint import BEST_NAME, Checkpoint
from deeplabv3plus.model import DeepLabV3Plus
from deeplabv3plus.training.config import DEFAULT_OUTPUT
from deeplabv3plus.training.precision import pick_device


def load_model(weights: str | None, device: str) -> tuple[DeepLabV3Plus, Checkpoint, Path]:
    """Return the model on its device, its checkpoint, and the checkpoint's path.

    Raises:
        FileNotFoundError: no such file; without `weights`, no run in the default folder.
        ValueError: no such device, or not a checkpoint of this program.
    """
    path = Path(weights or Path(DEFAULT_OUTPUT) / BEST_NAME)
    if weights is None and not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; train a model first (dlv3p train), or name one with --weights"
        )
    state = Checkpoint.load(path)
    model = state.build_model(str(path))
    return model.to(pick_device(device)), state, path
