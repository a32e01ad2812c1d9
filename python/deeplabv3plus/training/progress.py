"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A bar on stderr over the steps `start` to `stop`, with loss and held-out mean IoU."""

    def __init__(self, start: int, stop: int, show: bool) -> None:
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            disable=not show,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        self._loss = 0.0

    def __enter__(self) -> Progress:
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def show(self, row: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Advance by one step; the loss is smoothed."""
        self._loss = row["loss"] if not self._loss else 0.9 * self._loss + 0.1 * row["loss"]
        shown = {"loss": f"{self._loss:.3f}"}
        if "miou" in scores:
            shown["mIoU"] = f"{scores['miou']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
