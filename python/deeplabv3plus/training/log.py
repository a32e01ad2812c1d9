"""The log of a run: a CSV file, and TensorBoard if that is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from deeplabv3plus.atomic import write_bytes

LOG_NAME = "log.csv"
Row = dict[str, float]


class RunLog:
    """Appends one row a step to `folder/log.csv`; columns without a value in a step stay empty.

    On resuming, rows of steps after `step` (done, but lost with the killed run) are dropped.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file holds a line that is no row of numbers.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int) -> None:
        self.path = folder / LOG_NAME
        self.columns = ["step", *columns]
        earlier = [row for row in read_log(self.path) if row["step"] <= step] if step else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_formatted(row) for row in earlier)
        write_bytes(self.path, text.getvalue().encode())
        self._board = _tensorboard(folder / "tensorboard", step)

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row; it must have `step`.

        Raises:
            OSError: it could not be written; the message names the file.
        """
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(_formatted(row))
        except OSError as error:
            raise OSError(f"{self.path}: could not be written ({error.strerror})") from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[Row]:
    """Return the rows of a log; a row has the columns that have a value. A missing file has none.

    A last line cut off by a crash is left out.

    Raises:
        ValueError: a line is no row of numbers.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(whole)
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: not a training log ({error})") from error
    if any("step" not in row for row in rows):
        raise ValueError(f"{path}: not a training log (a line without a step)")
    return rows


def _formatted(row: Mapping[str, float]) -> dict[str, str]:
    return {
        name: str(int(value)) if name == "step" else f"{value:.6g}" for name, value in row.items()
    }


def _tensorboard(folder: Path, step: int) -> Any:
    if util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
