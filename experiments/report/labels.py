"""Names beside the ends of series in charts, each tied to its own end by a line where it does not stand right beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.axes import spread_out
from experiments.report.looks import style
from experiments.report.markup import Markup, element, join
from experiments.report.studies import Series

LETTER = 7.2  # width of one, for the room that a label takes
LABEL_HEIGHT = 13
BESIDE = 13  # from the end of a path to its name, up to which no line need tie them
MOVED = 3  # names in a column that are this far from their ends get a line
DISTANCES = (24, 38, 54, 72)
DIRECTIONS = 12

Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Offset = tuple[str, float, float]  # anchor, and distances from the end of the path to the base line of the name

NEXT_TO: list[Offset] = [("start", 10, 4), ("end", -10, 4), ("middle", 0, -11), ("middle", 0, 20)]


def text(words: str, x: float, y: float, kind: str, **more: Any) -> Markup:
    """Words in a chart."""
    return element("text", words, x=round(x, 1), y=round(y, 1), class_=kind, **more)


def places_near() -> list[Offset]:
    """Where a name may stand around the end of its path, the nearest first."""
    found = list(NEXT_TO)
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            dx, dy = (distance * way(2 * math.pi * step / DIRECTIONS) for way in (math.cos, math.sin))
            found.append(("middle" if abs(dx) < 1 else "start" if dx > 0 else "end", dx, dy + 4))
    return found


def box_around(place: Place, reach: float) -> Box:
    """The box that reaches so far from a place on all sides."""
    return place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach


def label_near(series: Series, place: Place, offsets: Sequence[Offset], room: Box, taken: list[Box], crossed: Sequence[Box] = ()) -> Markup | None:
    """A series' name near the end of its path, which is then taken; None where there is no room.

    Args:
        series: whose.
        place: the end of its path.
        offsets: where it may stand, the best first.
        room: what it may not leave.
        taken: boxes that it may not cover; gets the name's own.
        crossed: further ones.
    """
    words = series.short
    wide = len(words) * LETTER
    for anchor, dx, dy in offsets:
        x, base = place[0] + dx, place[1] + dy
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        box = (left, base - LABEL_HEIGHT + 3, left + wide, base + 3)
        inside = left > room[0] and box[2] < room[2] and box[1] > room[1] and box[3] < room[3]
        if inside and not any(_overlap(box, other) for boxes in (taken, crossed) for other in boxes):
            taken.append(box)
            label = text(words, x, base, f"label {style(series)}", text_anchor=anchor)
            return label if (anchor, dx, dy) in NEXT_TO else join(_tie(series, place, (x, base - 4)), label)
    return None


def column_labels(ends: Mapping[Series, Place], room: Box, crossed: Sequence[Box]) -> list[Markup]:
    """Names beside the ends of curves: of those that end before the others right there, if that covers nothing, and of the rest in a column.

    Args:
        ends: series -> where its curve ends.
        room: of the curves; the column is on its right.
        crossed: boxes around all curves.
    """
    taken = [box_around(place, 6) for place in ends.values()]
    found, column = [], []
    for series, place in ends.items():
        early = place[0] < room[2] - BESIDE
        label = label_near(series, place, NEXT_TO, (room[0], room[1], room[2] + 4, room[3]), taken, crossed) if early else None
        if label is None:
            column.append(series)
        else:
            found.append(label)
    heights = spread_out([ends[series][1] for series in column], LABEL_HEIGHT, room[1] + 8, room[3])
    for series, height in zip(column, heights):
        end, x = ends[series], room[2] + 20
        if abs(height - end[1]) > MOVED or end[0] < room[2] - 1:
            found.append(_tie(series, end, (x, height)))
        found.append(text(series.short, x + 3, height + 4, f"label {style(series)}"))
    return found


def _tie(series: Series, end: Place, name: Place) -> Markup:
    """The line between the end of a path and its name."""
    (x, y), (to_x, to_y) = end, name
    return element("path", d=f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}", class_=f"tie {style(series)}")


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
