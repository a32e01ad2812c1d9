"""What all encoders have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class Encoder(nn.Module):
    """An image encoder whose output stride is set by atrous rates.

    `forward` maps images (N, in_channels, H, W) to a pair: low-level features
    (N, low_level_channels, ceil(H / 4), ceil(W / 4)) for the decoder and the encoder output
    (N, out_channels, ceil(H / output_stride), ceil(W / output_stride)).
    """

    low_level_channels: int
    out_channels: int
    output_stride: int

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features and encoder output."""
        raise NotImplementedError


def atrous_schedule(
    strides: Sequence[int], output_stride: int, start: int = 1
) -> list[tuple[int, int]]:
    """Stride and atrous rate of each unit of a net that is held at `output_stride`.

    Once the stride so far has reached `output_stride`, a unit that would stride keeps the
    resolution instead, and the units **after** it are dilated by as much. The unit itself stays at
    the rate before ("contracted" first unit), as in the original and in torchvision.

    Args:
        strides: stride of each unit of the undilated net.
        output_stride: wanted ratio of input to output size.
        start: stride of what comes before the first unit.
    """
    current, rate = start, 1
    schedule = []
    for stride in strides:
        if current < output_stride:
            schedule.append((stride, 1))
            current *= stride
        else:
            schedule.append((1, rate))
            rate *= stride
    return schedule


def load_classifier_weights(
    encoder: nn.Module, state_dict: Mapping[str, Tensor], ignored: Sequence[str]
) -> None:
    """Load the weights of an image classifier into the encoder that has the same keys.

    Args:
        encoder: where to load, in place.
        state_dict: the classifier's weights.
        ignored: prefixes of keys the encoder has no use for.

    Raises:
        ValueError: after leaving out the ignored keys, some are missing, unexpected or of another
            shape; the message names them. Nothing has been loaded then.
    """
    given = {key: value for key, value in state_dict.items() if not key.startswith(tuple(ignored))}
    own = encoder.state_dict()
    # Files older than PyTorch 0.4.1 lack these counters; only cumulative averaging reads them.
    for key in own.keys() - given.keys():
        if key.endswith("num_batches_tracked"):
            given[key] = own[key]
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": sorted(
            key for key in own.keys() & given.keys() if own[key].shape != given[key].shape
        ),
    }
    found = [f"{what}: {', '.join(keys[:8])}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"state_dict does not fit {type(encoder).__name__}; keys " + "; keys ".join(found)
        )
    encoder.load_state_dict(given)
