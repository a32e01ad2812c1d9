"""Metrics, learning-rate schedule and moving average against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from deeplabv3plus.classes import ClassSet
from deeplabv3plus.ema import ModelEMA
from deeplabv3plus.evaluation import score_table, scores
from deeplabv3plus.metrics import ConfusionMatrix
from deeplabv3plus.schedule import poly
from torch import nn


def test_iou_counted_by_hand() -> None:
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([[0, 0, 1], [1, 2, 255]]), torch.tensor([[0, 1, 1], [1, 0, 3]]))
    iou = confusion.iou()
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert math.isnan(iou[3])  # neither there nor predicted
    assert confusion.mean_iou() == pytest.approx(1 / 3)
    assert confusion.accuracy() == pytest.approx(3 / 5)


def test_iou_of_batches_is_that_of_the_whole() -> None:
    random = torch.Generator().manual_seed(0)
    truth, guess = (torch.randint(0, 3, (4, 9, 7), generator=random) for _ in range(2))
    whole, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(truth, guess)
    for one, other in zip(truth, guess, strict=True):
        parts.update(one, other)
    assert torch.equal(whole.matrix, parts.matrix)
    for number, value in enumerate(whole.iou()):
        hit, either = (
            ((truth == number) & (guess == number)),
            ((truth == number) | (guess == number)),
        )
        assert value == pytest.approx(float(hit.sum() / either.sum()))


def test_confusion_without_pixels_is_nan_and_scores_leave_it_out() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(torch.full((2, 2), 255), torch.zeros(2, 2, dtype=torch.long))
    assert math.isnan(confusion.mean_iou()) and math.isnan(confusion.accuracy())
    assert scores(confusion, ClassSet(("a", "b"))) == {}
    assert "nan" in score_table(confusion, ClassSet(("a", "b")))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 3), "^prediction: expected shape"),
        (torch.tensor([2]), torch.tensor([0]), "^truth: expected classes 0 to 1, got up to 2"),
        (torch.tensor([0]), torch.tensor([5]), "^prediction: expected classes 0 to 1, got up to 5"),
    ],
)
def test_confusion_checks(truth: torch.Tensor, prediction: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(truth, prediction)


def test_poly_schedule() -> None:
    assert poly(0, 100) == 1 and poly(100, 100) == 0
    assert poly(50, 100) == pytest.approx(0.5**0.9)
    assert poly(50, 100, power=1) == pytest.approx(0.5)
    assert [poly(step, 10, power=0, warmup=3) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    with pytest.raises(ValueError, match=r"^step: expected 0 <= step <= 10"):
        poly(11, 10)


def test_moving_average_follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEMA(model, 0.5)
    expected = model[0].weight.detach().clone()
    for update in range(8):
        with torch.no_grad():
            model[0].weight += 1
        model[1].num_batches_tracked += 1
        model[1].running_mean += 2
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.model[0].weight, expected)
    assert ema.model[1].num_batches_tracked == 8
    assert 0 < ema.model[1].running_mean[0] < model[1].running_mean[0]
    assert not ema.model[0].weight.requires_grad
    with pytest.raises(ValueError, match=r"^decay: "):
        ModelEMA(model, 1.0)
