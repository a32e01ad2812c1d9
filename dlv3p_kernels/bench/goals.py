"""What the CPU kernels aim at; those of the depthwise convolution by how stock runs the case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["forward", "backward"]
Verdict = Literal["met", "close", "missed"]

# Stock PyTorch keeps its fast forward up to this atrous rate; it has no fast dilated gradients.
_FAST_FORWARD_DILATION = 6
# The channel count of the ASPP, where the atrous rates are large and the aims the highest.
_ASPP_CHANNELS = 2048
_CLOSE = 0.95


@dataclass(frozen=True)
class Goal:
    """The least speed-up over stock PyTorch, and the most time in copies of the input."""

    stock_is_fast: bool
    ratio: float
    copies: float | None

    def verdict(self, ratio: float, copies: float) -> Verdict:
        """Whether figures reach the goal; "close" is within 5 % of equal to a fast stock."""
        if ratio >= self.ratio and (self.copies is None or copies <= self.copies):
            return "met"
        return "close" if self.stock_is_fast and ratio >= _CLOSE else "missed"

    def __str__(self) -> str:
        text = f">= {self.ratio:g}x"
        return text if self.copies is None else f"{text}, <= {self.copies:g} copies"


# A separable layer, inference or training step.
NOT_SLOWER = Goal(True, 1, None)
# A training step of an ASPP of separable branches at output stride 16.
PYRAMID = Goal(False, 4, None)
# What a layer keeps between forward and backward, as a share of what stock layers keep.
KEPT = 0.45


def goal(direction: Direction, channels: int, dilation: int) -> Goal:
    """The goal of a case; "backward" is input and weight gradient together."""
    forward = direction == "forward"
    if dilation <= (_FAST_FORWARD_DILATION if forward else 1):
        return Goal(True, 1, None)
    if channels == _ASPP_CHANNELS:
        return Goal(False, 25, 3) if forward else Goal(False, 20, 6)
    return Goal(False, 6, None)
