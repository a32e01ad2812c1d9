"""Gradient of the loss by the logits: every cell gathers from the pixels around it.

A lane is a column of intervals (resize.py), the pixels between the same four cells, and walks down
the intervals of a band of rows of cells. It makes the exponentials of its pixels once and sums them
into the four cells by their shares, in registers. A cell is complete with what the interval above
has left for it and with what the lane on its left has for its right cell. Nothing is added in
memory: a cell is written once, and every run sums in the same order.

The interval above the band and the lane in front of the first belong to others and are made twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .resize import cells_of, first_pixel, shares_of
from .upsample_tiles import (
    all_mixed,
    cell_offset,
    class_offset,
    exponential,
    filled,
    load_class_weights,
    load_label_weight,
    load_target,
    mixed,
    plane_of,
    row_range,
    stacked,
    sum_class_weights,
)

RUNTIME = ["images", "height", "width", "out_height", "out_width", "scale_h", "inverse_h",
           "scale_w", "inverse_w", "bands", "band_rows", "grad_n", "grad_h", "grad_w", "target_n",
           "target_h", "target_w", "ignore_index", "smoothing"]  # fmt: skip


@triton.jit
def intervals_of(images, width, bands, LANES: tl.constexpr, WIDE: tl.constexpr):
    """Image, band and interval of columns of every lane, and whether the lane is one.

    Programs overlap by a lane. Lanes behind the last repeat the last image.
    """
    lane = tl.program_id(0)
    if WIDE:
        lane = lane.to(tl.int64)
    lane = tl.maximum(lane * (LANES - 1) + tl.arange(0, LANES) - 1, 0)
    strip = lane // (width + 1)
    image = strip // bands
    across = (lane % (width + 1)).to(tl.int32) - 1
    return tl.minimum(image, images - 1), (strip % bands).to(tl.int32), across, image < images


@triton.jit
def receiving(shares, interval, cells):
    """Shares of the two cells of an interval; all to the one that exists, at both ends."""
    inside = (interval >= 0) & (interval < cells - 1)
    first = tl.where(inside, shares[0], tl.where(interval < 0, 0.0, 1.0))
    return first, tl.where(inside, shares[1], tl.where(interval < 0, 1.0, 0.0))


@triton.jit
def load_cells(logits, start, plane, COUNT: tl.constexpr, NHWC: tl.constexpr):
    """COUNT classes of a cell of every lane."""
    values = ()
    for i in tl.static_range(COUNT):
        at = class_offset(start + i, plane, NHWC)
        values = values + (tl.load(logits + at).to(tl.float32),)
    return values


@triton.jit
def added(totals, share, terms):
    """totals + share * terms, class by class."""
    values = ()
    for i in tl.static_range(len(totals)):
        values = values + (totals[i] + share * terms[i],)
    return values


@triton.jit
def load_factors(
    grad, target, weight, ok, ignore_index, smoothing, weight_sum,
    CLASSES: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Class of a pixel, and what multiplies probability, one-hot and class weights."""
    label, counted, valid = load_target(target, ok, ignore_index, CLASSES)
    by_loss = tl.where(counted, tl.load(grad, mask=ok, other=0.0).to(tl.float32), 0.0)
    own = tl.where(counted, load_label_weight(weight, label, valid), 0.0)
    if SMOOTH:
        own = own * (1.0 - smoothing)
        spread = smoothing / CLASSES
        return label, by_loss * (own + weight_sum * spread), by_loss * own, by_loss * spread
    else:
        return label, by_loss * own, by_loss * own, 0.0


@triton.jit
def add_pixel(
    sums, upper, lower, shares, received, logsumexp, factors, ok, start, weights,
    CLASSES: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Sums over the pixels of a column for the upper and the lower cells, with one more pixel."""
    label, by_probability, by_one_hot, by_weight = factors
    for_upper = ()
    for_lower = ()
    for i in tl.static_range(len(upper)):
        if CLASSES > 1:
            probability = exponential(mixed(upper[i], lower[i], shares) - logsumexp)
        else:  # 1 to the last bit, as in stock; NaN stays
            probability = 1.0 + (logsumexp - logsumexp)
        term = probability * by_probability - tl.where(label == start + i, by_one_hot, 0.0)
        if SMOOTH:
            term = term - by_weight * weights[i]
        for_upper = for_upper + (tl.where(ok, sums[0][i] + received[0] * term, sums[0][i]),)
        for_lower = for_lower + (tl.where(ok, sums[1][i] + received[1] * term, sums[1][i]),)
    return for_upper, for_lower


@triton.jit
def store_cells(
    result, at, left, right, ok, start, own, plane,
    PADDED: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Each lane's sums for its left cell and its neighbour's for the right one.

    `at` is the offset of the cell; classes in front of `own` are another program's.
    """
    neighbour = tl.maximum(tl.arange(0, LANES) - 1, 0)
    totals = ()
    for i in tl.static_range(len(left)):
        total = left[i] + tl.gather(right[i], neighbour, 0)
        totals = totals + (total.to(result.dtype.element_ty),)
    if NHWC:  # the classes of a cell are adjacent: as few accesses as can be
        i = tl.arange(0, PADDED)[None, :]
        there = (i < len(left)) & (start + i >= own)
        tile = stacked(totals, PADDED)
        tl.store(result + (at[:, None] + start + i), tile, mask=ok[:, None] & there)
    else:
        for i in tl.static_range(len(left)):
            k = tl.full([LANES], start + i, tl.int32)
            there = at + class_offset(start + i, plane, NHWC)
            tl.store(result + there, totals[i], mask=ok & (k >= own))


@triton.jit(do_not_specialize=RUNTIME)
def upsample_loss_bwd_kernel(
    grad, logits, target, weight, logsumexp, result, images, height, width, out_height, out_width,
    scale_h, inverse_h, scale_w, inverse_w, bands, band_rows, grad_n, grad_h, grad_w,
    target_n, target_h, target_w, ignore_index, smoothing,
    CLASSES: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, SMOOTH: tl.constexpr,
    ALIGN: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """COUNT classes of `band_rows` rows of cells. Strides of gradient and target as given."""
    image, band, across, lane_ok = intervals_of(images, width, bands, LANES, WIDE)
    own = tl.program_id(1) * COUNT
    start = tl.minimum(own, CLASSES - COUNT)
    weights = load_class_weights(weight, start, (), COUNT, SMOOTH)
    weight_sum = sum_class_weights(weight, CLASSES, SMOOTH)
    plane = plane_of(height, width, WIDE)
    left, right = cells_of(across, width)
    first_column = first_pixel(across, width, out_width, scale_w, inverse_w, ALIGN)
    last_column = first_pixel(across + 1, width, out_width, scale_w, inverse_w, ALIGN)
    most_columns = tl.max(tl.where(lane_ok, last_column - first_column, 0), 0)
    grad = grad + image * grad_n
    target = target + image * target_n
    logsumexp = logsumexp + image * out_height * out_width
    owned = lane_ok & (tl.arange(0, LANES) > 0) & (across >= 0)
    interval = band * band_rows - 1
    row = tl.maximum(interval, 0)
    at = cell_offset(image, row, left, height, width, CLASSES, NHWC)
    upper_left = load_cells(logits + at, start, plane, COUNT, NHWC)
    at = cell_offset(image, row, right, height, width, CLASSES, NHWC)
    upper_right = load_cells(logits + at, start, plane, COUNT, NHWC)
    for_left = filled(0.0, COUNT, LANES)
    for_right = filled(0.0, COUNT, LANES)
    for step in range(band_rows + 1):
        row = tl.minimum(interval + 1, height - 1)
        at = cell_offset(image, row, left, height, width, CLASSES, NHWC)
        lower_left = load_cells(logits + at, start, plane, COUNT, NHWC)
        at = cell_offset(image, row, right, height, width, CLASSES, NHWC)
        lower_right = load_cells(logits + at, start, plane, COUNT, NHWC)
        first, last = row_range(interval, height, out_height, scale_h, inverse_h, ALIGN)
        below_left = filled(0.0, COUNT, LANES)
        below_right = filled(0.0, COUNT, LANES)
        most_rows = tl.max(tl.where(lane_ok, last - first, 0), 0)
        for c in range(most_columns):
            x = first_column + c
            horizontal = shares_of(x, across, scale_w, ALIGN)
            upper = all_mixed(upper_left, upper_right, horizontal)
            lower = all_mixed(lower_left, lower_right, horizontal)
            for_upper = filled(0.0, COUNT, LANES)
            for_lower = filled(0.0, COUNT, LANES)
            for r in range(most_rows):
                y = first + r
                ok = lane_ok & (y < last) & (x < last_column)
                factors = load_factors(
                    grad + y * grad_h + x * grad_w, target + y * target_h + x * target_w,
                    weight, ok, ignore_index, smoothing, weight_sum, CLASSES, SMOOTH,
                )  # fmt: skip
                vertical = shares_of(y, interval, scale_h, ALIGN)
                lse = tl.load(logsumexp + y * out_width + x, mask=ok, other=0.0)
                for_upper, for_lower = add_pixel(
                    (for_upper, for_lower), upper, lower, vertical,
                    receiving(vertical, interval, height), lse, factors, ok, start, weights,
                    CLASSES, SMOOTH,
                )  # fmt: skip
            received = receiving(horizontal, across, width)
            for_left = added(for_left, received[0], for_upper)
            for_right = added(for_right, received[1], for_upper)
            below_left = added(below_left, received[0], for_lower)
            below_right = added(below_right, received[1], for_lower)
        complete = owned & (step > 0) & (interval < height)
        at = cell_offset(image, interval, across, height, width, CLASSES, NHWC)
        store_cells(result, at, for_left, for_right, complete, start, own, plane,
                    PADDED, NHWC, LANES)  # fmt: skip
        for_left = below_left
        for_right = below_right
        upper_left = lower_left
        upper_right = lower_right
        interval += 1
