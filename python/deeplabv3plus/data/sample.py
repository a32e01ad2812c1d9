"""The data set that ships with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def sample_path() -> Path:
    """Return the folder of the sample: 27 + 9 tiles of a tissue section, VOC layout, 4 classes.

    Raises:
        FileNotFoundError: the package was installed without its data, or as a zip file.
    """
    folder = resources.files("deeplabv3plus") / "sample"
    if not isinstance(folder, Path) or not (folder / "ImageSets").is_dir():
        raise FileNotFoundError(
            f"{folder}: the sample is not installed as files; install the package unzipped"
        )
    return folder
