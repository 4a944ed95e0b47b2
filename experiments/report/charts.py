"""Charts as inline SVG: paths of two figures against each other, and curves over training. They are whole without a script.

What page.js moves is marked: `.now` is a series' point at the chosen time (its places at all steps in `data-at`), `.leg` a part of a path that ends
at a step, `.cursor` the time on a curve's axis, and `.dot` a measurement with its words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.axes import Axis, axis_around, axis_of_heights, tick_text
from experiments.report.figures import kind_of, title_of
from experiments.report.labels import LABEL_HEIGHT, Box, Place, box_around, column_labels, label_near, places_near, text
from experiments.report.looks import style
from experiments.report.markup import Markup, element, join, number
from experiments.report.studies import Series, Study
from metrics.runs import Band, direction
from metrics.trajectories import Plane
from metrics.trajectory_figures import convex_hull

MOST_BANDS = 4  # series of which the areas of their seeds can be told from each other
PLANE_SIZE = (400, 340)
CURVE_SIZE = (400, 220)
LEFT, TOP, RIGHT, BOTTOM = 44, 20, 12, 38
LABEL_ROOM = 126  # beside the curves


def plane_chart(study: Study, plane: Plane) -> Markup:
    """Paths of the series of a study in the plane of two figures, with the area that their seeds sweep."""
    stretches = {series: found for series in study.series if (found := series.stretches(plane.x, plane.y))}
    pairs = [(series, pair) for series, found in stretches.items() for pair in found]
    width, height = PLANE_SIZE
    x = axis_around([v for _, pair in pairs for v in pair[0].values.flat], LEFT, width - RIGHT, floor=0)
    y = axis_around([v for _, pair in pairs for v in pair[1].values.flat], height - BOTTOM, TOP, floor=0)
    names = title_of(plane.x), title_of(plane.y)
    parts = [_frame(x, y, names[0], names[1]), _ceiling(study, plane.y, x, y)]
    parts += [_hulls(series, pair, x, y) for series, pair in pairs if len(pair[0].values) > 1 and has_bands(study)]
    ends: dict[Series, Place] = {}
    taken: list[Box] = []
    crossed: list[Box] = []
    for series, (across, up) in pairs:
        path = [(x.at(a), y.at(b)) for a, b in zip(across.mean, up.mean)]
        says = [f"{names[0].lower()} {_spread(across, t)}, {names[1].lower()} {_spread(up, t)}" for t in range(len(path))]
        parts.append(_path(series, study.steps, across, path, says))
        ends[series] = path[-1]  # of the longest runs
        taken.append(box_around(path[-1], 7))
        crossed += [box_around(place, 3) for place in _along(path)]
    room = (LEFT + 2, TOP - 4, width + 8, height - BOTTOM)
    for series, place in ends.items():  # a name covers no other and no end of a path, and no path either where that can be
        parts.append(label_near(series, place, places_near(), room, taken, crossed) or label_near(series, place, places_near(), room, taken))
    what = f"{names[1]} against {names[0].lower()} over training"
    said = (names[1].lower(), names[0].lower())
    last = "; ".join(f"{series.label} {said[0]} {_spread(up, -1)}, {said[1]} {_spread(across, -1)}" for series, (across, up) in pairs)
    return _chart(what, f"{what}. Last snapshots: {last}.", PLANE_SIZE, parts, "plane")


def curve_chart(study: Study, figure: str, still: bool = False) -> Markup:
    """A figure of the series of a study over training, with each seed and the band from their lowest to their highest.

    Args:
        study: whose.
        figure: which.
        still: one line per series that does not move with the chosen time and has no words at its points, a tenth of the text.
    """
    bands = [(series, band) for series in study.series for (band,) in series.stretches(figure)]
    seeds = {series: [run.points[figure] for run in series.group.having(figure)] for series, _ in bands}
    values = [point.value for runs in seeds.values() for run in runs for point in run.values()]
    kimg = [k for runs in seeds.values() for run in runs for k in run]
    width, height = CURVE_SIZE
    x = Axis(min(kimg), max(kimg) if max(kimg) > min(kimg) else min(kimg) + 1, LEFT, width - LABEL_ROOM)
    y = axis_of_heights(values, height - BOTTOM, TOP, direction(figure) == "lower")
    parts = [_frame(x, y, "thousand real images (kimg)", ""), _ceiling(study, figure, x, y)]
    if not still:
        parts.append(element("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=height - BOTTOM, **_steps([(x.at(k), 0) for k in study.steps])))
    parts += [_ribbon(series, band, x, y) for series, band in bands if len(band.values) > 1 and has_bands(study)]
    parts += [_thread(series, run, x, y) for series, runs in seeds.items() if len(runs) > 1 for run in runs]
    ends: dict[Series, Place] = {}  # of the longest runs, which the names stand beside
    crossed: list[Box] = []
    for series, band in bands:
        path = [(x.at(k), y.at(value)) for k, value in zip(band.kimg, band.mean)]
        ends[series] = path[-1]
        crossed += [box_around(place, 3) for place in _along(path)]
        says = [_spread(band, t) for t in range(len(path))]
        parts.append(_line(series, band, path) if still else _path(series, study.steps, band, path, says))
    parts += column_labels(ends, (x.start, TOP - 4, x.end, height - BOTTOM), crossed)
    last = "; ".join(f"{series.label} {_spread(band, -1)}" for series, band in bands)
    return _chart(title_of(figure), f"{title_of(figure)} over training. Last snapshots: {last}.", CURVE_SIZE, parts, "curve")


def has_bands(study: Study) -> bool:
    """Whether the areas that seeds sweep are drawn: those of many series hide each other."""
    return sum(any(series.bands(figure) for figure in study.points) for series in study.series) <= MOST_BANDS


def _chart(title: str, words: str, size: tuple[int, int], parts: Sequence[Markup | None], kind: str) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {size[0]} {size[1]}", role="img", aria_label=words, class_=f"chart {kind}", data_title=title)


def _frame(x: Axis, y: Axis, below: str, beside: str) -> Markup:
    """Grid lines, ticks and the names of the axes."""
    parts = []
    for value in y.ticks(5):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y.at(value), y2=y.at(value), class_="grid"))
        parts.append(text(tick_text(value), x.start - 6, y.at(value) + 3.5, "tick", text_anchor="end"))
    for value in x.ticks(5):
        parts.append(element("line", x1=x.at(value), x2=x.at(value), y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(text(tick_text(value), x.at(value), y.start + 16, "tick", text_anchor="middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text(below, (x.start + x.end) / 2, y.start + 32, "name", text_anchor="middle"))
    if beside:
        parts.append(text(beside, x.start - 38, y.end - 9, "name"))
    return element("g", *parts, aria_hidden="true")


def _ceiling(study: Study, figure: str, x: Axis, y: Axis) -> Markup | None:
    """A line at the coverage of a perfect generator, where the data come near enough for it to be on the chart."""
    ceiling = (study.points[figure].protocol or {}).get("coverage_ceiling") if kind_of(figure) == "coverage" else None
    if ceiling is None or not y.low < ceiling < y.high:
        return None
    line = element("line", x1=x.start, x2=x.end, y1=y.at(ceiling), y2=y.at(ceiling), class_="ceiling")
    return join(line, text("a perfect generator", x.start + 4, y.at(ceiling) - 4, "tick"))


def _steps(places: Sequence[Place | None]) -> dict[str, str]:
    """Attributes of something that is moved: its places at all steps, null before it is there, and the last one as it stands."""
    last = next((place for place in reversed(places) if place is not None), None)
    at = json.dumps([None if place is None else list(place) for place in places], separators=(",", ":"))
    return {"data_at": at} | ({} if last is None else {"transform": f"translate({last[0]} {last[1]})"})


def _path(series: Series, steps: Sequence[int], band: Band, path: Sequence[Place], says: Sequence[str]) -> Markup:
    """A mean path: its legs, a dot per snapshot, and the point that stands for the chosen time."""
    parts, kimg = [], band.kimg.tolist()
    for (x0, y0), (x1, y1), k in zip(path, path[1:], kimg[1:]):
        parts.append(element("path", d=f"M{x0} {y0}L{x1} {y1}", class_="leg", data_step=steps.index(k)))
    for (x, y), k, words in zip(path, kimg, says):
        tip = f"{series.label} at {k:,} kimg: {words}" + (f", {len(band.values)} of {band.of} seeds" if band.is_of_fewer else "")
        first = " first" if k == kimg[0] and len(path) > 1 and not band.is_of_fewer else ""
        parts.append(element("circle", element("title", tip), cx=x, cy=y, r=3.2 if first else 2.4, class_=f"dot{first}"))
    places = dict(zip(kimg, path))
    reached: list[Place | None] = []
    for step in steps:
        reached.append(places.get(step, reached[-1] if reached else None))
    parts.append(element("g", element("circle", r=5.5), class_="now", **_steps(reached)))
    return element("g", *parts, class_=_kind(series, band))


def _line(series: Series, band: Band, path: Sequence[Place]) -> Markup:
    """A mean path that stays as it is."""
    leg = element("path", d="M" + "L".join(f"{x} {y}" for x, y in path), class_="leg")
    return element("g", leg, class_=_kind(series, band))


def _kind(series: Series, band: Band) -> str:
    """The classes of a mean path."""
    return f"series {style(series)}" + (" fewer" if band.is_of_fewer else "")


def _hulls(series: Series, pair: Sequence[Band], x: Axis, y: Axis) -> Markup:
    """The area that the seeds sweep: hulls of the points of neighbouring snapshots, as one path so that overlaps are not darker."""
    runs = np.stack([pair[0].values, pair[1].values], axis=2)
    parts = []
    for t in range(runs.shape[1]):
        corners = convex_hull(runs[:, max(t - 1, 0) : t + 1].reshape(-1, 2))
        parts.append("M" + "L".join(f"{x.at(a)} {y.at(b)}" for a, b in corners) + "Z")
    return element("path", d="".join(parts), class_=f"band {style(series)}")


def _ribbon(series: Series, band: Band, x: Axis, y: Axis) -> Markup:
    top = [f"{x.at(k)} {y.at(v)}" for k, v in zip(band.kimg, band.values.max(axis=0))]
    bottom = [f"{x.at(k)} {y.at(v)}" for k, v in zip(band.kimg, band.values.min(axis=0))]
    return element("path", d="M" + "L".join(top + bottom[::-1]) + "Z", class_=f"band {style(series)}")


def _thread(series: Series, points: Any, x: Axis, y: Axis) -> Markup:
    """One seed's own curve."""
    places = " ".join(f"{x.at(k)},{y.at(point.value)}" for k, point in points.items())
    return element("polyline", points=places, class_=f"thread {style(series)}")


def _along(path: Sequence[Place]) -> list[Place]:
    """A path's places, and places between them close enough for no label to fit in."""
    found = [*path]
    for (x0, y0), (x1, y1) in zip(path, path[1:]):
        pieces = int(np.hypot(x1 - x0, y1 - y0) // LABEL_HEIGHT) + 1
        found += [(x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces) for i in range(1, pieces)]
    return found


def _spread(band: Band, t: int) -> str:
    """Mean and range over the seeds at one snapshot."""
    values = band.values[:, t]
    if len(values) == 1:
        return number(values[0])
    return f"{number(band.mean[t])} ({number(values.min())} to {number(values.max())})"
