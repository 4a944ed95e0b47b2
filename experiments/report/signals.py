"""What runs said about themselves while they trained (stats.jsonl) as figures over training: is the pairing task solved, who wins?"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from dnnlib import UserError
from experiments.report.figures import SIGNALS
from experiments.report.studies import Series, Study
from metrics.runs import Group, Point, Run
from training.history import STATS_FILE, read_signals

MOST_POINTS = 40  # of a curve
SAME = 1e-9


def signals_of(study: Study) -> Study | None:
    """The same runs with their training signals for figures; those that never change are left out. None where there are none."""
    read = {id(run): _read(run.path, SIGNALS) for series in study.series for run in series.group.runs}
    last = max((kimg for points in read.values() for values in points.values() for kimg in values), default=0)
    series = [_with(one, read, last // MOST_POINTS + 1) for one in study.series]
    names = {name for one in series for run in one.group.runs for name in run.points}
    points = {}
    for name in sorted(names, key=list(SIGNALS).index):
        found = [point for one in series for run in one.group.runs for point in run.points.get(name, {}).values()]
        values = [point.value for point in found]
        if max(values) - min(values) > SAME and any(one.bands(name) for one in series):
            points[name] = found[0]
    return Study(study.title, tuple(series), (), points) if points else None


def _with(series: Series, read: dict[int, dict[str, dict[int, Point]]], spacing: int) -> Series:
    """A series with signals, at most one per `spacing` kimg."""
    runs = []
    for run in series.group.runs:
        thin = {name: {kimg: values[kimg] for kimg in {k // spacing: k for k in values}.values()} for name, values in read[id(run)].items()}
        runs.append(Run(run.path, run.settings, run.seed, thin))
    return dataclasses.replace(series, group=Group(series.label, tuple(runs)))


def with_signals(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The same runs with statistics of their stats.jsonl for further figures. Raises UserError for one that none of the runs has."""
    read = [_read(run.path, names) for run in runs]
    for name in names:
        if not any(name in points for points in read):
            known = sorted({known for run in runs for known in read_signals(run.path)})
            raise UserError(f"no run has the statistic {name!r}; in {STATS_FILE} are {', '.join(known) or 'none'}")
    return [dataclasses.replace(run, points=run.points | points) for run, points in zip(runs, read)]


def _read(run: pathlib.Path, names: Iterable[str]) -> dict[str, dict[int, Point]]:
    """Signal -> kimg, rising -> its mean over a tick; of equal kimg the last counts."""
    file, read = run / STATS_FILE, read_signals(run)
    found = {name: {int(kimg): Point(mean, STATS_FILE, {}, f"{file}") for kimg, mean in read[name]} for name in names if name in read}
    return {name: dict(sorted(points.items())) for name, points in found.items()}
