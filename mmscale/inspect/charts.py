"""Geometry of the page's charts: bars in per cent of the width, axis marks in round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 48
# A range wider than this factor is drawn on a logarithmic axis.
_WIDE = 60.0
_MARKS = 6


@dataclass(frozen=True)
class Bar:
    """``x`` and ``width`` in per cent of the chart's width, ``height`` of its height; ``says`` on
    hovering.
    """

    x: float
    width: float
    height: float
    says: str


@dataclass(frozen=True, kw_only=True)
class HistogramRow:
    """One set's distribution: its bars, number of values and, in words, its middle and its
    range.
    """

    name: str
    number: int
    count: int
    middle: str
    span: str
    bars: list[Bar]


@dataclass(frozen=True)
class Histogram:
    """A distribution for every set over one axis. ``marks``: (position in per cent, words)."""

    title: str
    unit: str
    rows: list[HistogramRow]
    marks: list[tuple[float, str]]
    logarithmic: bool

    @property
    def same(self) -> str | None:
        """The value in words, where all sets have that one alone."""
        spans = {(row.middle, row.span) for row in self.rows}
        middle, span = next(iter(spans))
        return middle if len(spans) == 1 and span == f"{middle} to {middle}" else None


def histogram(
    title: str, unit: str, values: list[tuple[str, NDArray[np.float64]]]
) -> Histogram | None:
    """The distributions of each set's values, whole numbers where all are; None where no set has
    any.

    Each row is scaled to its own highest bar, so that small sets can be compared with large ones.
    """
    present = [(number, name, array) for number, (name, array) in enumerate(values) if len(array)]
    if not present:
        return None
    everything = np.concatenate([array for _, _, array in present])
    low, high = float(everything.min()), float(everything.max())
    whole = bool((everything == np.rint(everything)).all())
    logarithmic = low > 0 and high > _WIDE * low
    edges = _edges(low, high, whole, logarithmic)
    places = _place(edges, edges, logarithmic)
    rows = []
    for number, name, array in present:
        counts = np.histogram(array, edges)[0]
        top = counts.max()
        bars = [
            Bar(
                round(places[i], 3),
                round(places[i + 1] - places[i], 3),
                round(100.0 * count / top, 2),
                f"{_range(edges[i], edges[i + 1], whole)} {unit}: {count:,}".replace("  ", " "),
            )
            for i, count in enumerate(counts.tolist())
            if count
        ]
        lowest, highest = number_text(float(array.min())), number_text(float(array.max()))
        middle = number_text(float(np.median(array)))
        rows.append(
            HistogramRow(
                name=name,
                number=number,
                count=len(array),
                middle=middle,
                span=f"{lowest} to {highest}",
                bars=bars,
            )
        )
    marks = (
        _log_marks(edges[0], edges[-1]) if logarithmic else _round_marks(edges[0], edges[-1], whole)
    )
    positions = _place(np.array(marks), edges, logarithmic)
    words = [(round(p, 2), number_text(m)) for p, m in zip(positions, marks, strict=True)]
    return Histogram(title, unit, rows, words, logarithmic)


def number_text(value: float) -> str:
    """Three significant digits, or all digits of a whole number, with thousands set apart."""
    if value == round(value) and abs(value) < 1e15:
        return f"{round(value):,}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _edges(low: float, high: float, whole: bool, logarithmic: bool) -> NDArray[np.float64]:
    if low == high:
        margin = 0.5 if whole else abs(low) / 1000
        return np.array([low - margin, low + margin])
    if logarithmic:
        # Bins narrower than 1 would show gaps between whole numbers that are none.
        return (
            np.unique(np.floor(np.geomspace(low, high + 1, BINS + 1))) - 0.5
            if whole
            else np.geomspace(low, high, BINS + 1)
        )
    if whole:
        step = max(1, math.ceil((high - low + 1) / BINS))
        return np.arange(low - 0.5, high + step, step)
    return np.linspace(low, high, BINS + 1)


def _place(
    values: NDArray[np.float64], edges: NDArray[np.float64], logarithmic: bool
) -> NDArray[np.float64]:
    if logarithmic:
        values, edges = np.log(values), np.log(edges)
    return 100.0 * (values - edges[0]) / (edges[-1] - edges[0])


def _round_marks(low: float, high: float, whole: bool) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``, about _MARKS of
    them.
    """
    rough = (high - low) / _MARKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(step, 1.0) if whole else step
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_marks(low: float, high: float) -> list[float]:
    marks = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    inside = [mark for mark in marks if low <= mark <= high]
    return inside if len(inside) <= 2 * _MARKS else inside[::3]


def _range(low: float, high: float, whole: bool) -> str:
    if not whole:
        return f"{number_text(low)} to {number_text(high)}"
    first, last = math.ceil(low), math.ceil(high) - 1
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
