"""The settings of a training run: one table for the class, the command line and the checkpoint."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal

DEFAULT_OUTPUT = "dlv3p-output"
"""Folder that `train` writes to and `evaluate` and `segment` look in."""


def _option(
    default: Any,
    help_text: str,
    *,
    choices: tuple = (),
    least: float | None = None,
    free: bool = False,
) -> Any:
    """Declare a setting; `free` ones may change when a run is resumed, others define the run."""
    return field(
        default=default,
        metadata={"help": help_text, "choices": choices, "least": least, "free": free},
    )


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults are those of the paper's VOC runs (section 4).

    Raises:
        TypeError, ValueError: a value of the wrong type, or out of its range or choices; the
            message names it.
    """

    encoder: str = _option(
        "xception65", "encoder, e.g. xception65, resnet50, mobilenet_v2, timm:NAME"
    )
    output_stride: int = _option(
        16, "input size over size of the encoder's output", choices=(8, 16, 32)
    )
    aspp_channels: int = _option(256, "channels of the atrous pyramid", least=1)
    decoder_channels: int = _option(256, "channels of the decoder", least=1)
    low_level_channels: int = _option(
        48, "channels of the low-level features in the decoder", least=1
    )
    dropout: float = _option(0.1, "dropout before the decoder", least=0)
    encoder_weights: str = _option(
        "", "file with weights of the encoder to start from (torchvision keys)", free=True
    )
    steps: int = _option(
        30_000, "optimizer steps in all; the learning rate ends at 0 there", least=1
    )
    batch_size: int = _option(16, "images a step", least=1)
    crop: int = _option(513, "side of the training crops in pixels", least=1)
    scale_min: float = _option(0.5, "smallest random scale", least=1e-3)
    scale_max: float = _option(2.0, "largest random scale", least=1e-3)
    flips: Literal["none", "horizontal", "all"] = _option(
        "horizontal", "random flips", choices=("none", "horizontal", "all")
    )
    jitter: float = _option(0.0, "random change of brightness, contrast, colour", least=0)
    optimizer: str = _option("sgd", "optimizer", choices=("sgd", "adamw"))
    lr: float = _option(0.007, "learning rate at the start", least=0)
    power: float = _option(0.9, "power of the poly learning-rate schedule", least=0)
    warmup: int = _option(0, "steps over which the learning rate first rises", least=0)
    momentum: float = _option(0.9, "momentum (SGD) or first beta (AdamW)", least=0)
    weight_decay: float = _option(4e-5, "weight decay of the convolution weights", least=0)
    class_weights: str = _option(
        "none", "weights of the classes in the loss", choices=("none", "balanced")
    )
    bn_momentum: float = _option(
        0.1, "weight of the newest batch in the running statistics", least=1e-6
    )
    ema: float = _option(0.0, "decay of a moving average of the weights, 0 = off", least=0)
    amp: str = _option(
        "auto",
        "mixed precision; auto = bf16 where the hardware has it",
        choices=("auto", "bf16", "off"),
    )
    channels_last: bool = _option(True, "channels_last memory format")
    seed: int = _option(0, "seed of weights, data order, augmentation, dropout", least=0)
    eval_every: int = _option(
        1000,
        "steps between evaluations on the held-out part, 0 = at the end only",
        least=0,
        free=True,
    )
    checkpoint_every: int = _option(
        0, "steps between checkpoints, 0 = as often as 5%% of the time allows", least=0, free=True
    )
    workers: int = _option(0, "processes that prepare batches", least=0, free=True)
    threads: int = _option(0, "CPU threads, 0 = PyTorch's choice", least=0, free=True)
    device: str = _option("auto", "auto, cpu, cuda or cuda:N", free=True)

    def __post_init__(self) -> None:
        """Check every value against its range or choices."""
        for item in fields(self):
            _check(item, getattr(self, item.name))
        if self.scale_max < self.scale_min:
            raise ValueError(
                f"scale_max: expected at least scale_min = {self.scale_min}, got {self.scale_max}"
            )

    def model_arguments(self) -> dict[str, Any]:
        """Return the settings that are arguments of `DeepLabV3Plus`."""
        names = (
            "encoder",
            "output_stride",
            "aspp_channels",
            "decoder_channels",
            "low_level_channels",
            "dropout",
            "bn_momentum",
        )
        return {name: getattr(self, name) for name in names}

    def resumed_with(self, changes: dict[str, Any]) -> TrainConfig:
        """Return these settings with `changes`, all of which must leave the run's result alone.

        Raises:
            ValueError: a change to a setting that defines the run; the message names them.
        """
        fixed = {item.name for item in fields(self) if not item.metadata["free"]}
        broken = [
            name
            for name, value in changes.items()
            if name in fixed and value != getattr(self, name)
        ]
        if broken:
            was = ", ".join(
                f"{name} {getattr(self, name)} (asked: {changes[name]})" for name in broken
            )
            raise ValueError(f"a resumed run keeps its settings, but these differ: {was}")
        return replace(self, **changes)


def _check(item: Field, value: Any) -> None:
    choices, least = item.metadata["choices"], item.metadata["least"]
    wanted = (int, float) if isinstance(item.default, float) else type(item.default)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError(f"{item.name}: expected {type(item.default).__name__}, got {value!r}")
    if choices and value not in choices:
        raise ValueError(
            f"{item.name}: expected one of {', '.join(map(str, choices))}, got {value!r}"
        )
    if least is not None and not value >= least:
        raise ValueError(f"{item.name}: expected at least {least}, got {value}")


SAMPLE = TrainConfig(
    encoder="mobilenet_v2",
    aspp_channels=64,
    decoder_channels=64,
    low_level_channels=24,
    steps=250,
    batch_size=8,
    crop=192,
    scale_min=0.7,
    scale_max=1.5,
    flips="all",
    optimizer="adamw",
    lr=5e-3,
    warmup=5,
    weight_decay=1e-2,
    class_weights="balanced",
    ema=0.98,
    eval_every=25,
)
"""Settings for the sample that ships with the package: minutes on two CPU cores."""
