"""How far a result may be off: the one rule that the tests and the benchmarks share.

A result passes where `error(ours) <= 2 * error(stock, same dtype) + floor`, with `error` the
largest absolute error relative to the largest exact value. Nothing in it is picked by hand. The
floor is there because stock PyTorch may be right to the last bit by luck (or by summing one term):

    floor = u(dtype) + u(accumulator) * condition

`u` is the rounding unit, half of `eps`: writing a sum in `dtype` alone costs up to u(dtype) of the
largest value, and summing in another order changes it by about one rounding of the largest
intermediate sum, which the sum of the absolute terms bounds. `condition` is that bound relative to
the largest exact value. The accumulator is float32, float64 for float64.

Source: N. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 4.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def error(result: Tensor, exact: np.ndarray) -> float:
    """Largest absolute error of `result` relative to the largest value of `exact`.

    NaN where `result` is NaN anywhere; where `exact` is zero everywhere, 0 for zeros and infinity
    for anything else.
    """
    if exact.size == 0:
        return 0.0
    worst = np.abs(result.detach().double().cpu().numpy() - exact).max()
    largest = np.abs(exact).max()
    if largest == 0:
        return 0.0 if worst == 0 else float("nan" if np.isnan(worst) else "inf")
    return float(worst / largest)


def floor(dtype: torch.dtype, exact: np.ndarray, magnitude: np.ndarray) -> float:
    """The error that rounding alone explains.

    Args:
        dtype: of the result.
        exact: the exact values.
        magnitude: of the same shape, the sums of the absolute values of the terms of `exact`.
    """
    if exact.size == 0 or not (largest := np.abs(exact).max()):
        return 0.0
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    condition = float(magnitude.max() / largest)
    return rounding_unit(dtype) + rounding_unit(accumulator) * condition


def rounding_unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def allowed(stock_error: float, floor: float) -> float:
    """The largest error that passes, from the error of stock PyTorch in the same dtype."""
    return 2 * stock_error + floor
