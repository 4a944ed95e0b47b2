"""How runs over training are drawn: paths in the planes of two figures, and curves over kimg. What is drawn is settled in `metrics.trajectories`.

Figures are built without pyplot, so none stays open behind the caller's back. Colours are those of Okabe and Ito, which people with any
kind of colour vision tell apart, and every line has a marker of its own besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from metrics.runs import Group, Point, direction

WIDTH, NARROW = 9.0, 6.0  # inches, the narrow one for a single panel; a README shows them about two thirds as large as they are saved
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # the second and third round of colours
INK, FAINT = "#222222", "#8a8a8a"
TITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 11, 9, 7.5
LOG_FROM = 30  # largest over smallest distance from which the axis is logarithmic
HALO = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}


def draw_planes(groups: Sequence[Group], planes: Sequence[Any], points: Mapping[str, Point], title: str, caption: str) -> Figure:
    """Paths over training, one panel per plane, one line per group; the band is the hull of its runs.

    Args:
        groups: runs to draw.
        planes: with attributes x and y, names of figures.
        points: a point of each figure, for what its protocol says.
        title: above everything, may be empty.
        caption: small print below.
    """
    reading = "Each path runs along its arrows from the first snapshot (hollow) to the last (large); numbers are kimg."
    reading += " Shaded: all seeds." if any(len(group.runs) > 1 for group in groups) else ""
    figure, axes = _new_figure(groups, len(planes), 2, 3.7, title, f"{reading}\n{caption}")
    for axis, plane in zip(axes, planes):
        drawn = [_draw_path(axis, group, plane, _style(index)) for index, group in enumerate(groups) if group.having(plane.x, plane.y)]
        axis.set_xlabel(plane.x, fontsize=LABEL_SIZE)
        axis.set_ylabel(plane.y, fontsize=LABEL_SIZE)
        axis.margins(0.12)
        _leave_out_the_negative(axis)
        if not plane.y.endswith("_recall"):
            _draw_ceiling(axis, points[plane.y])
        _write_kimg(axis, drawn)
    return figure


def draw_curves(groups: Sequence[Group], points: Mapping[str, Point], title: str, caption: str) -> Figure:
    """Curves over training, one panel per figure in `points`, one line per group; thin lines are its runs, the band reaches over them."""
    figure, axes = _new_figure(groups, len(points), 3, 2.3, title, caption)
    for index, (axis, (name, point)) in enumerate(zip(axes, points.items())):
        for number, group in enumerate(groups):
            _draw_curve(axis, group, name, _style(number))
        axis.set_title(name, fontsize=LABEL_SIZE, color=INK)
        axis.set_ylabel(f"{way} is better" if (way := direction(name)) else "", fontsize=SMALL_SIZE, color=FAINT)
        if index >= len(points) - 3:
            axis.set_xlabel("thousand real images (kimg)", fontsize=SMALL_SIZE)
        _set_scale(axis, name, groups)
        if name.endswith("_coverage") or name == point.metric:
            _draw_ceiling(axis, point)
    return figure


def _new_figure(groups: Sequence[Group], panels: int, columns: int, height: float, title: str, caption: str) -> tuple[Figure, list[Axes]]:
    """A figure with its legend and texts, and empty axes of this height for every panel, row by row."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    texts = 0.6 + 0.14 * (caption.count("\n") + 1) + (0.2 * len(groups) if len(groups) > 1 else 0)
    figure = Figure(figsize=(WIDTH if columns > 1 else NARROW, rows * height + texts), layout="constrained")
    axes = [figure.add_subplot(rows, columns, panel + 1) for panel in range(panels)]
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=SMALL_SIZE, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=6.5, color=FAINT, x=0.01, ha="left")
    if len(groups) > 1:
        handles = [axes[0].plot([], [], label=_legend_text(group), markersize=5, **_style(index))[0] for index, group in enumerate(groups)]
        legend = figure.legend(handles=handles, loc="outside upper left", fontsize=LABEL_SIZE, frameon=False, title=title or None)
        legend.set_alignment("left")
        legend.get_title().set_fontsize(TITLE_SIZE)
    elif title:
        figure.suptitle(title, fontsize=TITLE_SIZE, color=INK)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the group of this number."""
    return {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "linestyle": DASHES[index // 7 % 3], "linewidth": 1.6}


def _legend_text(group: Group) -> str:
    return group.label if len(group.runs) == 1 else f"{group.label}  ({len(group.runs)} seeds)"


def _draw_curve(axis: Axes, group: Group, name: str, style: Mapping[str, Any]) -> None:
    runs = group.having(name)
    if not runs:
        return
    if len(runs) > 1:
        for run in runs:
            axis.plot(list(run.points[name]), [point.value for point in run.points[name].values()], color=style["color"], linewidth=0.6, alpha=0.5)
    for (band,) in group.stretches(name):
        if len(band.values) > 1:
            axis.fill_between(band.kimg, band.values.min(axis=0), band.values.max(axis=0), color=style["color"], alpha=0.18, linewidth=0)
        axis.plot(band.kimg, band.mean, markersize=3, **style | ({"linestyle": ":"} if band.is_of_fewer else {}))


def _set_scale(axis: Axes, name: str, groups: Sequence[Group]) -> None:
    """From 0, or logarithmic where distances span more than a picture from 0 could show."""
    values = [point.value for group in groups for run in group.having(name) for point in run.points[name].values()]
    if direction(name) == "lower" and min(values) > 0 and max(values) > LOG_FROM * min(values):
        axis.set_yscale("log")
    elif min(values) >= 0:
        axis.set_ylim(0, max(values) * 1.08 or 1)


def _leave_out_the_negative(axis: Axes) -> None:
    """Figures of a plane are shares: the margin below 0 is just wide enough for a marker."""
    axis.set_xlim(left=max(axis.get_xlim()[0], -0.03 * axis.get_xlim()[1]))
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.03 * axis.get_ylim()[1]))


def _draw_ceiling(axis: Axes, point: Point) -> None:
    """A line at the coverage of a perfect generator, where the data come near enough for it to be seen beside them."""
    ceiling = (point.protocol or {}).get("coverage_ceiling")
    if ceiling is None or axis.get_ylim()[1] < ceiling / 2:
        return
    axis.axhline(ceiling, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axis.annotate("a perfect generator", (0.02, ceiling), (0, 2), axis.get_yaxis_transform(), "offset points", fontsize=6.5, color=FAINT)
    axis.set_ylim(top=max(axis.get_ylim()[1], ceiling * 1.07))


def _draw_path(axis: Axes, group: Group, plane: Any, style: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
    """Draws the mean path of a group and the hull of its runs. Returns (kimg [T], path [T, 2], colour)."""
    x, y = group.bands(plane.x, plane.y)
    path, runs = np.stack([x.mean, y.mean], axis=1), np.stack([x.values, y.values], axis=2)
    if len(runs) > 1 and len(path) > 0:
        axis.add_patch(PathPatch(_tube(runs), facecolor=style["color"], alpha=0.15, linewidth=0))
        axis.update_datalim(runs.reshape(-1, 2))
    axis.plot(*path.T, markersize=2.5, **style)
    if len(path) > 1:
        axis.plot(*path[0], markersize=6, markerfacecolor="white", markeredgewidth=1.4, **style)
    if len(path) > 0:
        axis.plot(*path[-1], markersize=8, markeredgecolor="white", zorder=4, **style)
    for across, up in group.stretches(plane.x, plane.y)[1:]:  # of the runs that go on alone
        axis.plot(across.mean, up.mean, markersize=2.5, **style | {"linestyle": ":"})
    return x.kimg, path, style["color"]


def _tube(runs: np.ndarray) -> Path:
    """The area [R, T, 2] that the runs sweep: hulls of all points of neighbouring snapshots, as one path so that overlaps are not darker."""
    hulls = [convex_hull(runs[:, max(t - 1, 0) : t + 1].reshape(-1, 2)) for t in range(runs.shape[1])]
    return Path.make_compound_path(*(Path(np.concatenate([hull, hull[:1]]), closed=True) for hull in hulls))


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners [H, 2] of the convex hull of points [N, 2], counter-clockwise (A. M. Andrew's monotone chain); of fewer than 3, the points."""
    ordered = np.unique(points, axis=0)
    if len(ordered) < 3:
        return ordered
    return np.array([*_lower_chain(ordered)[:-1], *_lower_chain(ordered[::-1])[:-1]])


def _lower_chain(ordered: np.ndarray) -> list[np.ndarray]:
    """The part of a hull that lies to the right of the way from the first of the points, sorted along x, to the last."""
    chain: list[np.ndarray] = []
    for point in ordered:
        while len(chain) > 1 and np.linalg.det([chain[-1] - chain[-2], point - chain[-1]]) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _write_kimg(axis: Axes, drawn: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> None:
    """Arrows along the longest steps of every path, and kimg at its ends and its middle where there is room."""
    limits = np.array([axis.get_xlim(), axis.get_ylim()])
    low, size = limits[:, 0], limits[:, 1] - limits[:, 0]
    taken: list[np.ndarray] = []
    for _, path, colour in drawn:
        steps = np.linalg.norm(np.diff(path, axis=0) / size, axis=1)
        for step in np.argsort(-steps, kind="stable")[:4]:
            if steps[step] > 0.04:
                middle, way = (path[step] + path[step + 1]) / 2, path[step + 1] - path[step]
                arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
                axis.annotate("", middle + 0.02 / steps[step] * way, middle - 0.02 / steps[step] * way, arrowprops=arrow)
    # Ends first, of all paths, then middles: what does not fit is left out.
    for part in (-1, 0, None):
        for kimg, path, colour in drawn:
            index = len(path) // 2 if part is None else part
            if len(path) == 0 or (len(path) == 1 and part != -1) or (len(path) < 4 and part is None):
                continue
            place = (path[index] - low) / size
            if all(abs(place[0] - other[0]) > 0.09 or abs(place[1] - other[1]) > 0.05 for other in taken):
                taken.append(place)
                side = {"ha": "right", "xytext": (-6, 4)} if place[0] > 0.85 else {"ha": "left", "xytext": (6, 4)}
                axis.annotate(f"{kimg[index]:,}", path[index], textcoords="offset points", fontsize=SMALL_SIZE, color=colour, bbox=HALO, **side)
