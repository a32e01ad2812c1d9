"""What the kernels on resized logits share: lanes, classes in registers, sums of exponentials.

Every kernel has the classes of a pixel in one thread, as tuples of one-dimensional tiles: sums and
maxima over classes need no exchange, any number of classes wastes nothing, and one source serves
both memory formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .resize import cells_of, first_pixel, interval_of, shares_of

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def cell_offset(
    image, row, column, height, width, CLASSES: tl.constexpr, NHWC: tl.constexpr
):
    """Offset of class 0 of a cell."""
    if NHWC:
        return ((image * height + row) * width + column) * CLASSES
    else:
        return (image * CLASSES * height + row) * width + column


@triton.jit
def plane_of(height, width, WIDE: tl.constexpr):
    """Elements from a class to the next in contiguous maps."""
    if WIDE:
        return height.to(tl.int64) * width
    else:
        return height * width


@triton.jit
def class_offset(k, plane, NHWC: tl.constexpr):
    """Offset of class k from class 0."""
    if NHWC:
        return k
    else:
        return k * plane


@triton.jit
def columns_of(
    images, height, out_width, LANES: tl.constexpr, WIDE: tl.constexpr
):
    """Image, interval of rows and column of every lane, and whether the lane is one.

    A lane is a column of an interval of rows. Lanes behind the last repeat the last image: what
    they load exists.
    """
    lane = tl.program_id(0)
    if WIDE:
        lane = lane.to(tl.int64)
    lane = lane * LANES + tl.arange(0, LANES)
    strip = lane // out_width
    image = strip // (height + 1)
    interval = (strip % (height + 1)).to(tl.int32) - 1
    column = (lane % out_width).to(tl.int32)
    return tl.minimum(image, images - 1), interval, column, image < images


@triton.jit
def corners_of(
    logits, image, interval, column, height, width, scale_w,
    CLASSES: tl.constexpr, NHWC: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Pointers to class 0 of the four cells around a lane's pixels, and its shares of columns."""
    across = interval_of(column, scale_w, ALIGN)
    top, bottom = cells_of(interval, height)
    left, right = cells_of(across, width)
    corners = (
        logits + cell_offset(image, top, left, height, width, CLASSES, NHWC),
        logits + cell_offset(image, top, right, height, width, CLASSES, NHWC),
        logits + cell_offset(image, bottom, left, height, width, CLASSES, NHWC),
        logits + cell_offset(image, bottom, right, height, width, CLASSES, NHWC),
    )
    return corners, shares_of(column, across, scale_w, ALIGN)


@triton.jit
def load_mixed(first, second, shares):
    """shares[0] * first + shares[1] * second, where infinities are what stock makes of them."""
    return tl.load(first).to(tl.float32) * shares[0] + tl.load(second).to(tl.float32) * shares[1]


@triton.jit
def block_of(block, BLOCK: tl.constexpr, CLASSES: tl.constexpr):
    """First class of a block, and how often each of its classes counts; empty where all do.

    The last block ends with the last class: it may begin with classes that the one in front of it
    has had, which count 0 times. No maximum notices them.
    """
    start = block * BLOCK
    counts = ()
    if CLASSES % BLOCK > 0:
        start = tl.minimum(start, CLASSES - BLOCK)
        for i in tl.static_range(BLOCK):
            counts = counts + (tl.where(start + i >= block * BLOCK, 1.0, 0.0),)
    return start, counts


@triton.jit
def load_block(corners, shares, start, plane, COUNT: tl.constexpr, NHWC: tl.constexpr):
    """COUNT classes from `start` on, above and below the pixels of every lane."""
    above = ()
    below = ()
    for i in tl.static_range(COUNT):
        at = class_offset(start + i, plane, NHWC)
        above = above + (load_mixed(corners[0] + at, corners[1] + at, shares),)
        below = below + (load_mixed(corners[2] + at, corners[3] + at, shares),)
    return above, below


@triton.jit
def interpolated(above, below, shares):
    """All classes of one pixel of every lane."""
    values = ()
    for i in tl.static_range(len(above)):
        values = values + (above[i] * shares[0] + below[i] * shares[1],)
    return values


@triton.jit
def rows_of(interval, first, last, scale_h, ROWS: tl.constexpr, ALIGN: tl.constexpr):
    """Shares of the ROWS pixels from `first` on; of the last one again behind it."""
    shares = ()
    for t in tl.static_range(ROWS):
        row = tl.minimum(first + t, tl.maximum(last - 1, 0))
        shares = shares + (shares_of(row, interval, scale_h, ALIGN),)
    return shares


@triton.jit
def row_range(interval, height, out_height, scale_h, inverse_h, ALIGN: tl.constexpr):
    """First pixel of an interval of rows, and the first behind it."""
    first = first_pixel(interval, height, out_height, scale_h, inverse_h, ALIGN)
    return first, first_pixel(interval + 1, height, out_height, scale_h, inverse_h, ALIGN)


@triton.jit
def filled(value, COUNT: tl.constexpr, LANES: tl.constexpr, DTYPE: tl.constexpr = tl.float32):
    """A tuple of COUNT tiles full of `value`."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.full([LANES], value, DTYPE),)
    return tiles


@triton.jit
def load_class_weights(weight, start, counts, COUNT: tl.constexpr, USED: tl.constexpr):
    """Weights of COUNT classes as scalars, 1 where there are none; an empty tuple if not USED.

    They are multiplied by `counts`, if it is not empty.
    """
    weights = ()
    if USED:
        for i in tl.static_range(COUNT):
            value = 1.0
            if weight is not None:
                value = tl.load(weight + start + i).to(tl.float32)
            if len(counts) > 0:
                value = value * counts[i]
            weights = weights + (value,)
    return weights


@triton.jit
def sum_class_weights(weight, CLASSES: tl.constexpr, USED: tl.constexpr):
    """Sum of the weights of all classes; 0 if not USED."""
    if USED:
        if weight is not None:
            k = tl.arange(0, triton.next_power_of_2(CLASSES))
            return tl.sum(tl.load(weight + k, mask=k < CLASSES, other=0.0).to(tl.float32), 0)
        else:
            return CLASSES * 1.0
    else:
        return 0.0


@triton.jit
def load_target(target, ok, ignore_index, CLASSES: tl.constexpr):
    """Class of every lane, 0 where there is none to read; whether it counts, and is a class."""
    label = tl.load(target, mask=ok, other=0).to(tl.int64)
    counted = ok & (label != ignore_index.to(tl.int64))
    valid = counted & (label >= 0) & (label < CLASSES)
    return tl.where(valid, label, 0).to(tl.int32), counted, valid


@triton.jit
def load_label_weight(weight, label, valid):
    """Weights of the lanes' own classes; NaN where the target is no class, so that it shows."""
    if weight is not None:
        return tl.where(valid, tl.load(weight + label).to(tl.float32), float("nan"))
    else:
        return tl.where(valid, 1.0, float("nan"))


@triton.jit
def base_of(maximum):
    """What exponents are relative to: the maximum in powers of two, 0 if that is minus infinity."""
    return tl.where(maximum == float("-inf"), 0.0, maximum * LOG2E)


@triton.jit
def largest_of(maximum, values):
    """The largest; NaN only by chance, as the sum of exponentials tells of it."""
    for i in tl.static_range(len(values)):
        maximum = tl.maximum(maximum, values[i])
    return maximum


@triton.jit
def add_exponentials(maximum, total, values, counts):
    """The maximum and the sum of exp2(x * log2(e) - base) with more values, `counts` times each."""
    largest = largest_of(maximum, values)
    base = base_of(largest)
    total = total * tl.exp2(maximum * LOG2E - base)
    for i in tl.static_range(len(values)):
        value = tl.exp2(tl.fma(values[i], LOG2E, -base))
        if len(counts) > 0:
            value = value * counts[i]
        total = total + value
    return largest, total


@triton.jit
def log_of_sum(maximum, total):
    """log(sum(exp(x - maximum))): `base` was rounded, which the fma takes out again."""
    return tl.log(total) - LN2 * tl.fma(maximum, LOG2E, -base_of(maximum))


@triton.jit
def joined_halves(parts):
    """The first half of a tuple of tiles joined to the second, along a new last axis."""
    joined = ()
    for i in tl.static_range(len(parts) // 2):
        joined = joined + (tl.join(parts[i], parts[i + len(parts) // 2]),)
    return joined


@triton.jit
def stacked(tiles, SIZE: tl.constexpr):
    """A (lanes, SIZE) tile of one-dimensional ones, filled up with the first; SIZE is 2^n <= 32."""
    parts = tiles
    for _ in tl.static_range(SIZE - len(tiles)):
        parts = parts + (tiles[0],)
    for _ in tl.static_range(5):
        if len(parts) > 1:  # the last join tells even from odd
            parts = joined_halves(parts)
    return tl.reshape(parts[0], [tiles[0].shape[0], SIZE])
