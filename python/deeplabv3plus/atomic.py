"""Files that are either the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`: written beside it, flushed to the disk, then renamed over it.

    Raises:
        OSError: nothing was replaced (full disk, no permission, ...); the message names `path`.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        kept = "; the earlier file is intact" if path.exists() else ""
        raise OSError(f"{path}: could not be written ({error.strerror or error}){kept}") from error


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry of the renamed file, where the file system has such a thing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
