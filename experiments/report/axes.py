"""Axes of the inline charts: where a value lies, and which values are written beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

LOG_FROM = 30  # largest over smallest value from which an axis of distances is logarithmic


@dataclasses.dataclass(frozen=True)
class Axis:
    """A scale from values to places in a chart.

    Attributes:
        low, high: values at its ends; low < high, and 0 < low where it is logarithmic.
        start, end: their places, in units of the chart.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, to a tenth of a unit."""
        low, high, value = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values on the axis, roughly so many."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... that is not below `least`, at any power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    tens = [value for value in inside if math.isclose(math.log10(value) % 1, 0, abs_tol=1e-9)]
    return tens if len(tens) > 3 else inside


def axis_around(values: Sequence[float], start: float, end: float, *, pad: float = 0.08, floor: float | None = None) -> Axis:
    """An axis with room around its values; not below `floor`, where there is one that no value is below."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * 0.1 or 0.1
    bottom = low - room if floor is None or low < floor else max(low - room, floor)
    return Axis(bottom, high + room, start, end)


def axis_of_heights(values: Sequence[float], start: float, end: float, distances: bool) -> Axis:
    """An axis for curves: from 0, or logarithmic for distances that span more than a picture from 0 could show."""
    low, high = min(values), max(values)
    if distances and low > 0 and high > LOG_FROM * low:
        return Axis(low / 1.15, high * 1.15, start, end, log=True)
    if low < 0:
        return axis_around(values, start, end)
    return Axis(0.0, high * 1.08 or 1.0, start, end)


def tick_text(value: float) -> str:
    """A tick's value, short."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves places apart to at least `gap` between neighbours, as little as need be and within the ends where there is room.

    Args:
        places: wanted, in any order.
        gap: least distance.
        low, high: ends.

    Returns:
        A place for each, in the given order.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    if len(places) > 1:
        gap = min(gap, (high - low) / (len(places) - 1))
    moved = [min(max(places[index], low), high) for index in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved = [min(place, high - gap * (len(moved) - 1 - i)) for i, place in enumerate(moved)]
    found = [0.0] * len(places)
    for index, place in zip(order, moved):
        found[index] = round(place, 1)
    return found
