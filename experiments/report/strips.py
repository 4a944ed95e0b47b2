"""The small figures in the cells of tables: a dot at a mean and a line as long as its spread, on a scale that the column's cells share."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.axes import Axis
from experiments.report.markup import Markup, element

WIDTH, HEIGHT = 96, 16
MARGIN = 6  # at both ends of a scale


def ruler_around(values: Sequence[float]) -> Axis | None:
    """The scale from the least value to the largest; None where there is no room between them."""
    if not values or max(values) <= min(values):
        return None
    return Axis(min(values), max(values), MARGIN, WIDTH - MARGIN)


def ruler_about_0(values: Sequence[float]) -> Axis | None:
    """The scale that reaches as far as the largest of the values on both sides of 0; None where all are 0."""
    reach = max(map(abs, values), default=0.0)
    return ruler_around((-reach, reach))


def strip(ruler: Axis, mean: float, ends: tuple[float, float] | None, tick: float | None, kind: str) -> Markup:
    """The figure of one cell.

    Args:
        ruler: the scale.
        mean: where the dot is.
        ends: of the line; it stops where the scale does, with an arrowhead if it goes on; None: no line.
        tick: where an upright line is; None: nowhere.
        kind: class of that line.
    """
    middle, (left, right) = HEIGHT / 2, (2, WIDTH - 2)
    parts = [element("line", x1=left, x2=right, y1=middle, y2=middle, class_="rail")]
    if ends is not None:
        low, high = map(ruler.at, ends)
        parts.append(element("line", x1=max(low, left), x2=min(high, right), y1=middle, y2=middle, class_="spread"))
        beyond = [(left, 1)] * (low < left) + [(right, -1)] * (high > right)
        parts += [element("path", d=f"M{x + 5 * to} {middle - 5}L{x} {middle}L{x + 5 * to} {middle + 5}", class_="beyond") for x, to in beyond]
    if tick is not None:
        parts.append(element("line", x1=ruler.at(tick), x2=ruler.at(tick), y1=2, y2=HEIGHT - 2, class_=kind))
    parts.append(element("circle", cx=ruler.at(mean), cy=middle, r=3.5, class_="mean"))
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="strip", aria_hidden="true")
