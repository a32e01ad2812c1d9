"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Shows how a run from step `start` to `stop` gets on, with loss and held-out mean IoU.

    On a terminal a bar on stderr; elsewhere a line on stdout after each evaluation.
    """

    def __init__(self, start: int, stop: int, show: bool) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=stop,
            initial=start,
            unit="step",
            disable=not (show and terminal),
            file=sys.stderr,
            dynamic_ncols=True,
        )
        self._lines = show and not terminal
        self._stop = stop
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
        if self._lines and "miou" in row:
            values = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {int(row['step'])} of {self._stop}: {values}", flush=True)
