"""The goals of the GPU kernels, and what recorded rows of part `bench` say about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

Row = Mapping[str, Any]
_GOAL_CHANNELS = (256, 728, 2048)
_FORWARD, _BACKWARD = "depthwise forward", "depthwise backward"
_OF_COPY = {_FORWARD: 0.80, _BACKWARD: 0.65}
_SPEED_UP = 3.0
_FAST = "channels_last"
_STOCK_FAST, _COMPILED_FAST = f"stock {_FAST}", f"compiled {_FAST}"
# Of what ours keeps of stock and compiled layers between forward and backward.
_KEPT = {_STOCK_FAST: 0.45, _COMPILED_FAST: 0.7}


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each goal: how many of the rows reach it; goals without rows are left out."""
    for subject, share in _OF_COPY.items():
        yield from _counted(
            f"{subject}, {_FAST}, C in {_GOAL_CHANNELS}: at least {share:.0%} of the copy",
            [_of_copy(row) >= share for row in _depthwise(rows, subject, _is_goal_channel)],
        )
    depthwise = list(_depthwise(rows, _FORWARD)) + list(_depthwise(rows, _BACKWARD))
    yield from _counted(
        "depthwise, channels_last: faster than stock",
        [
            ratio > 1
            for row in depthwise
            if (ratio := speed_up(row, _STOCK_FAST, _FAST)) is not None
        ],
    )
    for layout in (_FAST, "contiguous"):
        ratios = [
            ratio
            for row in depthwise
            if row["dtype"] == "bfloat16"
            and (ratio := speed_up(row, f"stock {layout}", layout)) is not None
        ]
        if ratios:
            mean = geometric_mean(ratios)
            met = "met" if mean >= _SPEED_UP else "missed"
            yield (
                f"depthwise, bfloat16, {layout}: geometric mean {mean:.2f}x of stock in the same"
                f" layout over {len(ratios)} rows, goal {_SPEED_UP:g}x: {met}"
            )


def layer_verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each layer and direction; against compiled layers where they were timed."""
    for row in rows:
        over = _COMPILED_FAST if _COMPILED_FAST in row["ms"] else _STOCK_FAST
        name = best(row, _FAST)
        if name is None or over not in row["ms"]:
            yield f"{row['subject']}, {row['case']}: nothing to compare"
            continue
        ratio = row["ms"][over]["median"] / row["ms"][name]["median"]
        facts = [_fact(ratio, row["goal"][over.split()[0]], f"{{:.2f}}x as fast as {over}")]
        share = row["goal"]["of_floor"]
        if share is not None and over == _STOCK_FAST:
            facts.append(_fact(row["of_floor"][name], share, "{:.2f} of the floor"))
        if (kept := kept_share(row, over)) is not None:
            met = "met" if kept <= _KEPT[over] else "missed"
            facts.append(f"keeps {kept:.2f}x as much (goal {_KEPT[over]:g}x: {met})")
        yield f"{row['subject']}, {row['case']}: {name} " + ", ".join(facts)


def kept_share(row: Row, over: str) -> float | None:
    """What our fastest keeps between forward and backward, as a share of what another keeps."""
    memory, name = row["memory"], best(row, _FAST)
    if name not in memory or over not in memory:
        return None
    return float(memory[name]["kept"] / memory[over]["kept"])


def _fact(value: float, goal: float, text: str) -> str:
    return f"{text.format(value)} (goal {goal:g}: {'met' if value >= goal else 'missed'})"


def best(row: Row, layout: str = "") -> str | None:
    """Our fastest contender, in one layout or in any."""
    ours = [
        name
        for name in row["ms"]
        if name.split()[0] not in ("stock", "compiled", "copy") and name.endswith(layout)
    ]
    return min(ours, key=lambda name: row["ms"][name]["median"], default=None)


def speed_up(row: Row, over: str, layout: str = "") -> float | None:
    """How many times as fast our fastest is as another contender; None where one is missing."""
    name = best(row, layout)
    if name is None or over not in row["ms"]:
        return None
    return float(row["ms"][over]["median"] / row["ms"][name]["median"])


def _of_copy(row: Row) -> float:
    name = best(row, _FAST)
    return float(row["of_copy"][name]) if name else 0.0


def _is_goal_channel(row: Row) -> bool:
    return row["channels"] in _GOAL_CHANNELS


def _depthwise(
    rows: Sequence[Row], subject: str, keep: Callable[[Row], bool] = lambda row: True
) -> Iterator[Row]:
    return (row for row in rows if row["subject"] == subject and keep(row))


def _counted(goal: str, met: Sequence[bool]) -> Iterator[str]:
    if met:
        yield f"{goal}: {sum(met)} of {len(met)} rows"
