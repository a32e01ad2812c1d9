"""Checkpoints: what is written is read, other models are named, a failed write harms nothing."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from deeplabv3plus import DeepLabV3Plus
from deeplabv3plus.atomic import write_bytes
from deeplabv3plus.checkpoint import Checkpoint, load_weights
from deeplabv3plus.classes import ClassSet

CONFIG = {
    "encoder": "mobilenet_v2",
    "num_classes": 3,
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
    "atrous_rates": (2, 3),
}


def _checkpoint(model: DeepLabV3Plus) -> Checkpoint:
    return Checkpoint(model.config, model.state_dict(), ClassSet(("a", "b", "c")), 33, step=7)


@pytest.fixture(scope="module")
def model() -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus(**CONFIG)


def test_round_trip(model: DeepLabV3Plus, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "model.pt"
    _checkpoint(model).save(path)
    state = Checkpoint.load(path)
    assert (state.step, state.window, state.classes.names) == (7, 33, ("a", "b", "c"))
    rebuilt = state.build_model()
    assert not rebuilt.training and rebuilt.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value)
    assert os.listdir(path.parent) == ["model.pt"]


def test_average_is_what_predicts(model: DeepLabV3Plus, tmp_path: Path) -> None:
    state = _checkpoint(model)
    state.average = {name: torch.full_like(value, 3) for name, value in state.weights.items()}
    state.save(tmp_path / "model.pt")
    rebuilt = Checkpoint.load(tmp_path / "model.pt").build_model()
    assert all((value == 3).all() for value in rebuilt.state_dict().values())


def test_weights_of_another_model_are_named(model: DeepLabV3Plus) -> None:
    other = DeepLabV3Plus(**{**CONFIG, "num_classes": 5, "atrous_rates": (2,)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(model, other.state_dict(), "some.pt")
    message = str(caught.value)
    assert message.startswith("some.pt: weights of another model")
    lost = sorted(model.state_dict().keys() - other.state_dict().keys())
    assert f"{len(lost)} missing (aspp.atrous.1." in message
    assert f", and {len(lost) - 3} more)" in message
    assert "of another shape" in message and "(8, 24, 1, 1) for (8, 32, 1, 1)" in message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"12 unexpected|unexpected \("):
        load_weights(other, model.state_dict(), "some.pt")


class _Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off", pickle.dumps(_Bomb(), 2)])
def test_files_that_are_no_checkpoint(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt: not a readable checkpoint"):
        Checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()


def test_other_contents_and_no_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt: expected a checkpoint of format .* got None"):
        Checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"none.pt: no such checkpoint"):
        Checkpoint.load(tmp_path / "none.pt")


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: what a full disk does, at a known place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_leaves_the_earlier_checkpoint(model: DeepLabV3Plus, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    _checkpoint(model).save(path)
    before = path.read_bytes()
    with (
        _largest_file(len(before) // 2),
        pytest.raises(OSError, match=r"model.pt: could not be written .*earlier file is intact"),
    ):
        _checkpoint(model).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_crash_before_the_rename_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def crash(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"new"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer" and os.listdir(tmp_path) == ["file"]
