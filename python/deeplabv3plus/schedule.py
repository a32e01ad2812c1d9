"""The learning rate as a function of the step."""

from __future__ import annotations


def poly(step: int, steps: int, power: float = 0.9, warmup: int = 0) -> float:
    """Return the factor on the base learning rate at `step` of `steps`, counted from 0.

    `(1 - step / steps) ** power`, the "poly" policy of DeepLab (Chen et al., "DeepLab: Semantic
    Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs",
    section 4.1), times a linear rise over the first `warmup` steps.

    Raises:
        ValueError: `step` outside `0..steps`, or a negative `warmup`.
    """
    if not 0 <= step <= steps or warmup < 0:
        raise ValueError(
            f"step: expected 0 <= step <= {steps} and warmup >= 0, got {step} and {warmup}"
        )
    rise = min(1.0, (step + 1) / (warmup + 1))
    return rise * (1 - step / steps) ** power if steps else rise
