"""Loss and prediction on resized logits, in one pass over the logits.

A lane is a column of an interval of rows (resize.py): pixels one below the other between the same
two rows of cells, ROWS of them at a time. The logits are mixed along columns once for all of these.
Sums of exponentials are kept relative to a running maximum, block by block of classes.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .upsample_tiles import (
    add_exponentials,
    all_mixed,
    block_of,
    class_offset,
    columns_of,
    corners_of,
    filled,
    load_block,
    load_class_weights,
    load_label_weight,
    load_mixed,
    load_target,
    mixed,
    plane_of,
    row_range,
    rows_of,
    sum_class_weights,
)

RUNTIME = ["images", "height", "width", "out_height", "out_width", "scale_h", "inverse_h",
           "scale_w", "target_n", "target_h", "target_w", "ignore_index", "smoothing"]  # fmt: skip


@triton.jit
def add_classes(
    state, corners, columns, rows, weight, block, plane,
    BLOCK: tl.constexpr, CLASSES: tl.constexpr, NHWC: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of exponentials of all rows with one more block of classes.

    Where labels are smoothed, also the sums of weighted distances to a level, which is the maximum
    of the first block: large logits then cancel nothing.
    """
    maxima, totals, levels, distances = state
    start, counts = block_of(block, BLOCK, CLASSES)
    above, below = load_block(corners, columns, start, plane, BLOCK, NHWC)
    weights = load_class_weights(weight, start, counts, BLOCK, SMOOTH)
    new_maxima = ()
    new_totals = ()
    new_levels = ()
    new_distances = ()
    for t in tl.static_range(len(rows)):
        values = all_mixed(above, below, rows[t])
        maximum, total = add_exponentials(maxima[t], totals[t], values, counts)
        new_maxima = new_maxima + (maximum,)
        new_totals = new_totals + (total,)
        if SMOOTH:
            level = tl.where(maxima[t] == float("-inf"), maximum, levels[t])
            distance = distances[t]
            for i in tl.static_range(BLOCK):
                distance = distance + weights[i] * (values[i] - level)
            new_levels = new_levels + (level,)
            new_distances = new_distances + (distance,)
    return new_maxima, new_totals, new_levels, new_distances


@triton.jit
def log_softmax_sums(
    corners, columns, rows, weight, plane, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
    NHWC: tl.constexpr, SMOOTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """`add_classes` over all classes."""
    ROWS: tl.constexpr = len(rows)
    MORE: tl.constexpr = len(rows) if SMOOTH else 0
    maxima = filled(float("-inf"), ROWS, LANES)
    totals = filled(0.0, ROWS, LANES)
    levels = filled(0.0, MORE, LANES)
    distances = filled(0.0, MORE, LANES)
    for block in range((CLASSES + BLOCK - 1) // BLOCK):
        maxima, totals, levels, distances = add_classes(
            (maxima, totals, levels, distances), corners, columns, rows, weight, block, plane,
            BLOCK, CLASSES, NHWC, SMOOTH,
        )  # fmt: skip
    return maxima, totals, levels, distances


@triton.jit(do_not_specialize=RUNTIME)
def upsample_loss_fwd_kernel(
    logits, target, weight, loss, logsumexp, images, height, width, out_height, out_width,
    scale_h, inverse_h, scale_w, target_n, target_h, target_w, ignore_index, smoothing,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SMOOTH: tl.constexpr,
    ALIGN: tl.constexpr, NHWC: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Cross entropy of every pixel, 0 where ignored, and log-sum-exp.

    `target_n`, `target_h` and `target_w` are the strides of the target.
    """
    image, interval, column, lane_ok = columns_of(images, height, out_width, LANES, WIDE)
    corners, columns = corners_of(
        logits, image, interval, column, height, width, scale_w, CLASSES, NHWC, ALIGN
    )
    first, last = row_range(interval, height, out_height, scale_h, inverse_h, ALIGN)
    plane = plane_of(height, width, WIDE)
    most = tl.max(tl.where(lane_ok, last - first, 0), 0)
    labels = target + image * target_n + column * target_w
    weight_sum = sum_class_weights(weight, CLASSES, SMOOTH)
    for group in range((most + ROWS - 1) // ROWS):
        row = first + group * ROWS
        rows = rows_of(interval, row, last, scale_h, ROWS, ALIGN)
        maxima, totals, levels, distances = log_softmax_sums(
            corners, columns, rows, weight, plane, CLASSES, BLOCK, NHWC, SMOOTH, LANES
        )
        for t in tl.static_range(ROWS):
            ok = lane_ok & (row + t < last)
            label, counted, valid = load_target(
                labels + (row + t) * target_h, ok, ignore_index, CLASSES
            )
            at = class_offset(label, plane, NHWC)
            above = load_mixed(corners[0] + at, corners[1] + at, columns)
            below = load_mixed(corners[2] + at, corners[3] + at, columns)
            own = mixed(above, below, rows[t])
            log_sum = tl.log(totals[t])
            value = load_label_weight(weight, label, valid) * (log_sum + (maxima[t] - own))
            if SMOOTH:
                spread = weight_sum * (log_sum + (maxima[t] - levels[t])) - distances[t]
                value = value * (1.0 - smoothing) + spread * (smoothing / CLASSES)
            there = (image * out_height + row + t) * out_width + column
            tl.store(loss + there, tl.where(counted, value, 0.0), mask=ok)
            sum_ = tl.where(totals[t] > 0.0, maxima[t] + log_sum, float("nan"))
            tl.store(logsumexp + there, sum_, mask=ok)


@triton.jit
def better(best, index, values, start):
    """Largest value and its class with more classes; the first of equals, NaN above everything."""
    for i in tl.static_range(len(values)):
        taken = ~(values[i] <= best) & (best == best)
        best = tl.where(taken, values[i], best)
        index = tl.where(taken, start + i, index)
    return best, index


@triton.jit
def compare_classes(
    state, corners, columns, rows, block, plane,
    BLOCK: tl.constexpr, CLASSES: tl.constexpr, NHWC: tl.constexpr, PROBABILITY: tl.constexpr,
):  # fmt: skip
    """Largest logits, their classes, sums of exponentials of all rows with one more block."""
    maxima, indices, totals = state
    start, counts = block_of(block, BLOCK, CLASSES)
    above, below = load_block(corners, columns, start, plane, BLOCK, NHWC)
    new_maxima = ()
    new_indices = ()
    new_totals = ()
    for t in tl.static_range(len(rows)):
        values = all_mixed(above, below, rows[t])
        maximum, index = better(maxima[t], indices[t], values, start)
        if PROBABILITY:
            _, total = add_exponentials(maxima[t], totals[t], values, counts)
            new_totals = new_totals + (total,)
        new_maxima = new_maxima + (maximum,)
        new_indices = new_indices + (index,)
    return new_maxima, new_indices, new_totals


@triton.jit(do_not_specialize=RUNTIME)
def upsample_argmax_kernel(
    logits, index, probability, images, height, width, out_height, out_width,
    scale_h, inverse_h, scale_w,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr,
    NHWC: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Class of the largest logit of every pixel and, where `probability` is given, its share."""
    image, interval, column, lane_ok = columns_of(images, height, out_width, LANES, WIDE)
    corners, columns = corners_of(
        logits, image, interval, column, height, width, scale_w, CLASSES, NHWC, ALIGN
    )
    first, last = row_range(interval, height, out_height, scale_h, inverse_h, ALIGN)
    plane = plane_of(height, width, WIDE)
    most = tl.max(tl.where(lane_ok, last - first, 0), 0)
    PROBABILITY: tl.constexpr = probability is not None
    SUMS: tl.constexpr = ROWS if probability is not None else 0
    for group in range((most + ROWS - 1) // ROWS):
        row = first + group * ROWS
        rows = rows_of(interval, row, last, scale_h, ROWS, ALIGN)
        maxima = filled(float("-inf"), ROWS, LANES)
        indices = filled(0, ROWS, LANES, tl.int32)
        totals = filled(0.0, SUMS, LANES)
        for block in range((CLASSES + BLOCK - 1) // BLOCK):
            maxima, indices, totals = compare_classes(
                (maxima, indices, totals), corners, columns, rows, block, plane,
                BLOCK, CLASSES, NHWC, PROBABILITY,
            )  # fmt: skip
        for t in tl.static_range(ROWS):
            ok = lane_ok & (row + t < last)
            there = (image * out_height + row + t) * out_width + column
            tl.store(index + there, indices[t].to(index.dtype.element_ty), mask=ok)
            if PROBABILITY:
                share = tl.where(totals[t] > 0.0, 1.0 / totals[t], float("nan"))
                tl.store(probability + there, share, mask=ok)
