"""The loss layer on resized logits."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..ops import upsample_cross_entropy


class UpsampleCrossEntropyLoss(nn.CrossEntropyLoss):
    """`nn.CrossEntropyLoss` of logits resized bilinearly to the size of their target.

    Arguments and state_dict are those of `nn.CrossEntropyLoss`; the others, dtypes and result are
    as in `dlv3p_kernels.upsample_cross_entropy`.

    Args:
        weight: (K,) weights of the classes, or None for 1.
        ignore_index: value of pixels to leave out.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].
        align_corners: as in `F.interpolate`.
        top_k_percent_pixels: share of all pixels, those with the highest losses; None for all.
        ohem_threshold: probability below which pixels count; None for all.
        ohem_min_kept: pixels per image that count whatever their probability.
        all_ignored: what a mean over no pixels is, "nan" or "zero".
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
        *,
        align_corners: bool = False,
        top_k_percent_pixels: float | None = None,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 100_000,
        all_ignored: Literal["nan", "zero"] = "nan",
    ) -> None:
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.align_corners = align_corners
        self.top_k_percent_pixels = top_k_percent_pixels
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.all_ignored: Literal["nan", "zero"] = all_ignored

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, K, h, w) for classes (N, H, W)."""
        return upsample_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,  # type: ignore[arg-type]
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
            top_k_percent_pixels=self.top_k_percent_pixels,
            ohem_threshold=self.ohem_threshold,
            ohem_min_kept=self.ohem_min_kept,
            all_ignored=self.all_ignored,
        )
