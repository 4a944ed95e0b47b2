"""Runs over training: curves of every figure, and the paths of precision against recall and coverage, as pictures and as JSON.

    plot(load_runs(["runs/00000-a", "runs/00001-b"]), pathlib.Path("compared"))

writes compared-planes and compared-curves as .png and .svg, and compared.json with every number in them. Runs that differ by seed and length only
are one line, their mean, with a band from the lowest to the highest. Reading and grouping is `metrics.runs`, drawing `metrics.trajectory_figures`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import matplotlib

from dnnlib import UserError, atomic_path, atomic_write_text, make_folder
from metrics import trajectory_figures
from metrics.runs import Group, Point, Run, group_runs, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plane", "find_planes", "load_runs", "markdown_tables", "plot"]

DPI = 130
SUFFIXES = (".png", ".svg", ".json")
ONE_CLASS = re.compile(r"_class\d+$")  # Figures of single classes are in the JSON; a picture of all of them would show nothing.


@dataclasses.dataclass(frozen=True)
class Plane:
    """Two figures against each other: `x`, a precision, and `y`, a recall or coverage of the same detector and k."""

    x: str
    y: str


def plot(runs: Sequence[Run], out: pathlib.Path | str, title: str = "", names: Sequence[str] = ()) -> list[pathlib.Path]:
    """Draws runs and writes what was drawn.

    Args:
        runs: as `load_runs` returns them.
        out: the files' common beginning; a suffix .png, .svg or .json is dropped. The folder is created.
        title: heading; default is none, or the run's name where there is one line only.
        names: of the lines, in the order of their first runs; default is what tells them apart.

    Returns:
        The files written: the planes where a precision was measured along with a recall or a coverage, the curves of what some run measured more
        than once (of everything, where there is nothing such), all numbers.

    Raises:
        UserError: different protocols, another number of names than of lines, or the files cannot be written.
    """
    out = pathlib.Path(out)
    stem = out.with_suffix("") if out.suffix.lower() in SUFFIXES else out
    make_folder(stem.parent)
    groups, planes = _named(group_runs(runs), names), find_planes(runs)
    points = _any_points(runs)
    title = title or (groups[0].label if len(groups) == 1 else "")
    written = []
    if planes:
        caption = describe_protocols(points[figure] for plane in planes for figure in (plane.x, plane.y))
        written += _save(trajectory_figures.draw_planes(groups, planes, points, title, caption), _beside(stem, "-planes"))
    shown = _with_course(runs, {figure: point for figure, point in points.items() if not ONE_CLASS.search(figure)})
    written += _save(trajectory_figures.draw_curves(groups, shown, title, describe_protocols(shown.values())), _beside(stem, "-curves"))
    numbers = _beside(stem, ".json")
    atomic_write_text(numbers, json.dumps(as_json(groups, planes, points), indent=1) + "\n")
    return [*written, numbers]


def _named(groups: list[Group], names: Sequence[str]) -> list[Group]:
    """The groups under the user's names for them, if there are any."""
    if names and len(names) != len(groups):
        found = "; ".join(group.label for group in groups)
        raise UserError(f"--names has {len(names)} names for {len(groups)} lines ({found}); give one for each, in this order")
    return [dataclasses.replace(group, label=name) for group, name in zip(groups, names)] or groups


def _beside(stem: pathlib.Path, ending: str) -> pathlib.Path:
    return stem.with_name(stem.name + ending)  # with_suffix would cut a name such as pairing0.05


def _save(figure: Figure, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes stem.png and stem.svg; the same data give the same bytes."""
    png, svg = _beside(stem, ".png"), _beside(stem, ".svg")
    with atomic_path(png) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "metrics"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    atomic_write_text(svg, text.getvalue())
    return [png, svg]


def _any_points(runs: Sequence[Run]) -> dict[str, Point]:
    """One point of every figure, sorted by name; they share metric and protocol."""
    return {figure: next(iter(points.values())) for figure, points in sorted({f: p for run in runs for f, p in run.points.items()}.items())}


def _with_course(runs: Sequence[Run], points: dict[str, Point]) -> dict[str, Point]:
    """Those figures that some run measured more than once, or all where there is none: a panel of single dots beside curves says nothing."""
    return {figure: point for figure, point in points.items() if any(len(run.points.get(figure, ())) > 1 for run in runs)} or points


def find_planes(runs: Sequence[Run]) -> list[Plane]:
    """Pairs every recall and every coverage with the precision of the same metric, or else of one with the same detector and k."""
    points = _any_points(runs)
    precisions = [figure for figure in points if figure.endswith("_precision")]
    planes = []
    for figure, point in points.items():
        if not (figure.endswith(("_recall", "_coverage")) or (figure == point.metric and figure.startswith("coverage"))):
            continue
        partners = [name for name in precisions if points[name].metric == point.metric or _same_balls(points[name], point)]
        partners.sort(key=lambda name: points[name].metric != point.metric)
        if partners:
            planes.append(Plane(partners[0], figure))
    return sorted(planes, key=lambda plane: (plane.x, "recall" not in plane.y))


def _same_balls(a: Point, b: Point) -> bool:
    """Whether two figures look at neighbourhoods of one kind."""
    return None not in (a.protocol, b.protocol) and all(a.protocol.get(name) == b.protocol.get(name) for name in ("detector_digest", "dataset", "k"))


def describe_protocols(points: Iterable[Point]) -> str:
    """One line per metric that says how it was measured; none for what has an empty protocol, the training's own statistics."""
    metrics = {point.metric: point.protocol for point in points if point.protocol != {}}
    return "\n".join(f"{name}: {_describe(protocol)}" for name, protocol in sorted(metrics.items()))


def _describe(protocol: dict | None) -> str:
    if protocol is None:
        return "protocol not recorded"
    parts = [f"detector {protocol['detector']} {str(protocol.get('detector_digest'))[:8]}"] if protocol.get("detector") else []
    parts += [f"{protocol[key]:,} {what}" for key, what in (("n_real", "real"), ("n_fake", "generated")) if protocol.get(key)]
    parts += [f"k = {protocol['k']}"] if protocol.get("k") else []
    parts += [f"coverage at most about {protocol['coverage_ceiling']:.3f}"] if protocol.get("coverage_ceiling") else []
    parts += [f"data {protocol['dataset'][:8]}"] if protocol.get("dataset") else []
    return ", ".join(parts)


def as_json(groups: Sequence[Group], planes: Sequence[Plane], points: dict[str, Point]) -> dict:
    """Everything that is drawn: protocols, and per group the mean, lowest and highest over its runs, and every run's own numbers."""
    return {
        "protocols": {figure: point.protocol for figure, point in points.items()},
        "planes": [dataclasses.asdict(plane) for plane in planes],
        "groups": [
            {
                "label": group.label,
                "figures": {figure: _band_json(group, figure) for figure in points if group.having(figure)},
                "runs": [_run_json(run) for run in group.runs],
            }
            for group in groups
        ],
    }


def _band_json(group: Group, figure: str) -> dict:
    (band,) = group.bands(figure)
    bounds = {"mean": band.mean, "low": band.values.min(axis=0), "high": band.values.max(axis=0)}
    return {"num_runs": len(band.values), "kimg": band.kimg.tolist(), **{name: values.tolist() for name, values in bounds.items()}}


def _run_json(run: Run) -> dict:
    figures = {figure: {"kimg": list(points), "value": [point.value for point in points.values()]} for figure, points in run.points.items()}
    return {"path": str(run.path), "seed": run.seed, "figures": figures}


def markdown_tables(runs: Sequence[Run], names: Sequence[str] = ()) -> str:
    """The curves as one Markdown table per group, a row per snapshot; means over the runs of a group, or over those of them that go on.

    Args:
        runs, names: as `plot` takes them.
    """
    return "\n\n".join(_table(group) for group in _named(group_runs(runs), names))


def _table(group: Group) -> str:
    figures = [figure for figure in _any_points(group.runs) if not ONE_CLASS.search(figure)]
    columns: dict[str, dict[int, float]] = {figure: {} for figure in figures}
    seeds: dict[int, int] = {}
    for figure in figures:
        for (band,) in group.stretches(figure):
            for kimg, mean in zip(band.kimg.tolist(), band.mean.tolist()):
                columns[figure].setdefault(kimg, mean)  # where a stretch begins all runs count
                seeds[kimg] = max(seeds.get(kimg, 0), len(band.values))
    heading = f"{group.label} ({len(group.runs)} run{'s' * (len(group.runs) > 1)})"
    uneven = len(set(seeds.values())) > 1
    head = ["kimg", *(["runs"] if uneven else []), *figures]
    lines = [heading, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for kimg in sorted(seeds):
        cells = [f"{columns[figure][kimg]:.4g}" if kimg in columns[figure] else "" for figure in figures]
        lines.append("| " + " | ".join([str(kimg), *([str(seeds[kimg])] if uneven else []), *cells]) + " |")
    return "\n".join(lines)
