"""Windows, scales and mirrored pictures together, and pictures without resized logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplabv3plus import DeepLabV3Plus, cli, inference
from deeplabv3plus.checkpoint import Checkpoint
from deeplabv3plus.inference import Passes, predict_classes, predict_logits
from deeplabv3plus.normalisation import normalise
from test_cli import TINY_OPTIONS
from torch import Tensor, nn
from voc_folder import make_folder, make_pair

IMAGE = make_pair(0)[0]


class ColumnNumber(nn.Module):
    """Logit 0 is the number of the column in the window, logit 1 the width of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        columns = torch.arange(float(width)).expand(n, 1, height, width)
        return torch.cat([columns, torch.full_like(columns, float(width))], 1)


@pytest.fixture(scope="module", params=(True, False), ids=("aligned", "not aligned"))
def model(request: pytest.FixtureRequest) -> DeepLabV3Plus:
    """A small net with large logits of its own."""
    torch.manual_seed(0)
    net = DeepLabV3Plus(
        "mobilenet_v2", 3, aspp_channels=8, decoder_channels=8, low_level_channels=4,
        align_corners=request.param,
    ).eval()  # fmt: skip
    nn.init.normal_(net.decoder.classifier.weight)
    return net


def whole(model: DeepLabV3Plus, image: np.ndarray) -> Tensor:
    """Logits of a picture taken as it is."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    with torch.no_grad():
        return model(normalise(pixels))[0]


def assert_classes(classes: np.ndarray, logits: Tensor) -> None:
    """The classes have the largest logits, but for rounding."""
    chosen = logits.gather(0, torch.from_numpy(classes).long()[None])[0]
    assert classes.dtype == np.uint8
    torch.testing.assert_close(chosen, logits.amax(0))


def test_mirrored_picture_comes_back_mirrored() -> None:
    logits = predict_logits(ColumnNumber(), IMAGE, flip=True)
    assert (logits[0] == (IMAGE.shape[1] - 1) / 2).all()


def test_scales_are_resized_back_and_averaged() -> None:
    logits = predict_logits(ColumnNumber(), IMAGE, scales=(0.5, 1.0, 2.0))
    assert logits.shape == (2, 40, 48)
    torch.testing.assert_close(logits[1], torch.full((40, 48), (24 + 48 + 96) / 3))
    ramp = [torch.arange(float(w)).expand(1, 1, 2, w) for w in (24, 48, 96)]
    expected = sum(F.interpolate(r, (2, 48), mode="bilinear")[0, 0, 0] for r in ramp) / 3
    torch.testing.assert_close(logits[0], expected.expand(40, 48))


def test_windows_keep_their_size_at_every_scale() -> None:
    logits = predict_logits(ColumnNumber(), IMAGE, 20, scales=(0.25, 1.0, 2.0))
    torch.testing.assert_close(logits[1], torch.full((40, 48), (12 + 20 + 20) / 3))


@pytest.mark.parametrize("flip", (False, True))
@pytest.mark.parametrize("window", (0, 48))
def test_a_whole_picture_needs_no_resized_logits(
    model: DeepLabV3Plus, window: int, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(model, IMAGE)
    if flip:
        expected = (expected + whole(model, IMAGE[:, ::-1]).flip(-1)) / 2
    torch.testing.assert_close(predict_logits(model, IMAGE, window, flip=flip), expected)
    monkeypatch.setattr(inference, "predict_logits", None)
    assert_classes(predict_classes(model, IMAGE, window, flip=flip), expected)


@pytest.mark.parametrize(
    "passes", ({"window": 33}, {"window": 33, "flip": True}, {"scales": (0.75, 1.5)}), ids=str
)
def test_other_pictures_take_the_largest_mean(model: DeepLabV3Plus, passes: dict[str, Any]) -> None:
    logits = predict_logits(model, IMAGE, **passes)
    assert_classes(predict_classes(model, IMAGE, **passes), logits)


def test_bad_passes() -> None:
    for words, arguments in (
        ("window: expected at least 0", (-1,)),
        ("scales: expected positive numbers", (0, ())),
        ("scales: expected positive numbers", (0, (1.0, 0.0))),
        ("scales: expected positive numbers", (0, (float("inf"),))),
    ):
        with pytest.raises(ValueError, match=words):
            Passes(*arguments)


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options reach the prediction; a window of the training crop where none is given."""
    folder, output = make_folder(tmp_path), tmp_path / "run"
    options = ["--data", str(folder), "--output", str(output), "--steps=1", *TINY_OPTIONS]
    assert cli.main(["train", *options]) == 0
    weights = output / "best.pt"
    crop = Checkpoint.load(weights).window
    seen: list[object] = []

    def classes(net: nn.Module, image: np.ndarray, window: int, **others: Any) -> np.ndarray:
        seen.append((window, *others["scales"], others["flip"]))
        return predict_classes(net, image, window, **others)

    monkeypatch.setattr("deeplabv3plus.evaluation.predict_classes", classes)
    monkeypatch.setattr("deeplabv3plus.commands.segment.predict_classes", classes)
    common = ["--weights", str(weights), "--device", "cpu", "--threads", "1"]
    more = ["--flip", "--scales", "0.5", "1"]
    assert cli.main(["evaluate", "--data", str(folder), *common, *more]) == 0
    assert set(seen) == {(crop, 0.5, 1.0, True)}
    picture = next((folder / "JPEGImages").iterdir())
    masks = tmp_path / "masks"
    assert cli.main(["segment", str(picture), "-o", str(masks), *common, "--window", "0"]) == 0
    assert seen[-1] == (0, 1.0, False)
    capsys.readouterr()
    assert cli.main(["segment", str(picture), "-o", str(masks), *common, "--scales", "0"]) == 2
    assert "scales: expected positive numbers" in capsys.readouterr().err
