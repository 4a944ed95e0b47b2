"""Which runs of a page belong together, and as what they are drawn: runs of one setting and budget that were measured alike are a study, and the
seeds of one method a group in it. Reading and grouping is the work of `metrics.runs`; charts are made from what stands here in `charts`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dnnlib import UserError
from dnnlib.json_files import read_json
from experiments.images.budgets import BUDGETS
from experiments.report.figures import rank
from metrics.runs import BOOKKEEPING, OPTIONS_FILE, SEED, Band, Group, Point, Run, check_protocols, group_runs, read_run
from metrics.trajectories import ONE_CLASS, Plane, find_planes

if TYPE_CHECKING:
    from experiments.images.results import RunResult, TableResult


LONGEST_LABEL = 17  # letters beside a curve
COLOURS = 8  # page.css has so many
NEAR = 0.02  # of a kimg: measurements this far apart are of one time, for snapshots of equal runs may be a little apart
SOLID = 4  # of them are drawn in whole lines; every further series has dashes beside its colour
# The methods that have the same look in every study: one colour each, with ADA the same one dashed.
LOOKS = {"StyleGAN2": 0, "Pairing-GAN": 1, "MS-GAN(+R1)": 2}
LOOKS |= {f"{method}-ADA": look + COLOURS for method, look in LOOKS.items()}


@dataclasses.dataclass(frozen=True, eq=False)  # one series is one, and a key by what it is
class Series:
    """The seeds of one method in a study.

    Attributes:
        label: the method, with what tells it from others of that name.
        short: the label where it is short enough to stand in a chart, else its number in the study, which the legend explains.
        look: the number of its colour and dashes, its own in the study.
        group: its runs as `metrics.runs` has them; those without measurements have no points.
        results: the same runs, in the same order.
    """

    label: str
    short: str
    look: int
    group: Group
    results: tuple[RunResult, ...]

    @property
    def made_once(self) -> bool:
        """Whether its runs are of so many seeds; a run may have been made twice."""
        return len({run.seed for run in self.group.runs}) == len(self.group.runs)

    def band(self, figure: str) -> Band | None:
        """A figure over training at the kimg that all measured seeds share; None where there is none."""
        bands = self.bands(figure)
        return bands[0] if bands else None

    def bands(self, *figures: str) -> list[Band]:
        """The same for several figures, of the seeds and at the kimg that have all of them; empty where there are none."""
        bands = self.group.bands(*figures) if self.group.having(*figures) else []
        return bands if bands and len(bands[0].kimg) else []

    def stretches(self, *figures: str) -> list[list[Band]]:
        """`bands`, and then those of the seeds that go on alone (`metrics.runs.Group.stretches`)."""
        return self.group.stretches(*figures)


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that may be compared.

    Attributes:
        title: setting and budget in words.
        series: one per method.
        planes: pairs of figures to draw against each other.
        points: figure -> a measurement of it, for what its protocol says; figures of single classes are left out.
        setting: name of the setting; empty for runs from elsewhere.
    """

    title: str
    series: tuple[Series, ...]
    planes: tuple[Plane, ...]
    points: dict[str, Point]
    setting: str = ""

    @functools.cached_property
    def steps(self) -> list[int]:
        """Every kimg at which something is drawn, rising."""
        drawn = [(figure,) for figure in self.points] + [(plane.x, plane.y) for plane in self.planes]  # a plane's runs are those with both
        stretches = [bands for series in self.series for figures in drawn for bands in series.stretches(*figures)]
        return sorted({int(kimg) for bands in stretches for kimg in bands[0].kimg})

    @functools.cached_property
    def start(self) -> int:
        """The place among the steps of the last one that all series have reached under all of their seeds: where they can be compared."""
        ends = []
        for series in self.series:
            bands = [band for figure in self.points if (band := series.band(figure)) is not None]
            ends += [max(int(band.kimg[-1]) for band in bands)] if bands else []
        end = min(ends, default=0) * (1 + NEAR)
        return max((place for place, step in enumerate(self.steps) if step <= end), default=len(self.steps) - 1)

    @functools.cached_property
    def curves(self) -> list[str]:
        """Figures that were measured at more than one time; all of them where none was."""
        over_time = [figure for figure in self.points if any(len(band.kimg) > 1 for series in self.series for band in series.bands(figure))]
        return over_time or list(self.points)


def collect(tables: Sequence[TableResult], runs: Sequence[RunResult]) -> list[RunResult]:
    """All runs of a page in the order of its tables, each once."""
    found: dict[pathlib.Path, RunResult] = {}
    for run in [*(run for table in tables for row in table.rows for run in row.runs), *runs]:
        found.setdefault(run.path.resolve(), run)
    return list(found.values())


def find_studies(results: Sequence[RunResult]) -> tuple[list[Study], list[str]]:
    """Sorts runs into studies.

    Args:
        results: as `collect` returns them.

    Returns:
        The studies, in order of their first runs, and a sentence for every run whose measurements cannot be used.
    """
    settings: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        settings.setdefault((result.setting, result.budget), []).append(result)
    studies, problems = [], []
    for (setting, budget), members in settings.items():
        loaded = [_load(result, problems) for result in members]
        title = " · ".join(filter(None, (setting_words(setting, budget), budget and f"{budget} budget"))) or "Runs"
        parts = _comparable(loaded)
        for number, part in enumerate(parts, start=1):
            name = title if len(parts) == 1 else f"{title} · protocol {number}"
            studies.append(_make_study(name, setting, part, {result.path.resolve(): result for result in members}))
    return studies, problems


def setting_words(setting: str, budget: str) -> str:
    """A setting as a heading; its name where its budget does not know it."""
    regime = BUDGETS[budget].regimes.get(setting) if budget in BUDGETS else None
    if regime is None:
        return setting
    images = "All images" if regime.subset is None else f"{regime.subset:,} images"
    augmentation = {"ada": " with ADA", "noaug": " without augmentation"}.get(setting.partition("-")[0], "")
    weight = f", R1 weight {regime.r1.gamma:g}" if regime.r1 else ""
    return images + augmentation + (", long" if setting.endswith("-long") else "") + weight


def _load(result: RunResult, problems: list[str]) -> Run:
    """A run with its measurements; without them where there are none, or none that can be used."""
    try:
        return read_run(result.path)
    except UserError as error:
        problems.append(f"The measurements of {result.path.as_posix()} are left out of the charts: {error}.")
    settings = {name: value for name, value in read_options(result.path).items() if not BOOKKEEPING & set(name.split("."))}
    return Run(result.path, settings or None, result.seed, {})


def read_options(run: pathlib.Path) -> dict[str, Any]:
    """The options of a run as {dotted name: value}; empty where there is no such file, or none that can be read."""
    try:
        options = read_json(run / OPTIONS_FILE)
    except (OSError, ValueError):
        return {}
    return flatten(options) if isinstance(options, dict) else {}


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss_kwargs.r1_gamma": 10, ...} in the given order."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in as few parts as it takes for every figure of a part to be measured by one protocol; runs without figures join the first."""
    parts: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: not run.points):
        home = next((part for part in parts if _agree([*part, run])), None)
        if home is None:
            parts.append([run])
        else:
            home.append(run)
    order = {id(run): place for place, run in enumerate(runs)}
    return [sorted(part, key=lambda run: order[id(run)]) for part in parts]


def _agree(runs: Sequence[Run]) -> bool:
    try:
        check_protocols(runs)
    except UserError:
        return False
    return True


def _make_study(title: str, setting: str, runs: Sequence[Run], results: Mapping[pathlib.Path, RunResult]) -> Study:
    groups = group_runs(runs)
    members = [tuple(results[run.path.resolve()] for run in group.runs) for group in groups]
    labels, series = _labels(groups, [found[0].method for found in members]), []
    for label, look, group, found in zip(labels, looks_of(labels), groups, members):
        order = sorted(range(len(found)), key=lambda place: found[place].seed if found[place].seed is not None else math.inf)
        group = Group(label, tuple(group.runs[place] for place in order))
        short = label if len(label) <= LONGEST_LABEL else f"no. {len(series) + 1}"
        series.append(Series(label, short, look, group, tuple(found[place] for place in order)))
    points = {figure: next(iter(values.values())) for run in runs for figure, values in run.points.items() if not ONE_CLASS.search(figure)}
    points = {figure: points[figure] for figure in sorted(points, key=rank) if any(one.bands(figure) for one in series)}
    planes = [plane for plane in find_planes(runs) if {plane.x, plane.y} <= points.keys() and any(one.bands(plane.x, plane.y) for one in series)]
    return Study(title, tuple(series), tuple(planes), points, setting)


def looks_of(labels: Sequence[str]) -> list[int]:
    """Looks of the series of a study: LOOKS where it names one, and for the others colours that these do not have, as long as there are any."""
    kept = {LOOKS[label] for label in labels if label in LOOKS}
    taken = {look % COLOURS for look in kept}
    free = sorted(set(range(len(labels) + COLOURS * 2)) - kept, key=lambda look: (look % COLOURS in taken, look))
    others = iter(free)
    return [LOOKS[label] if label in LOOKS else next(others) for label in labels]


def _labels(groups: Sequence[Group], methods: Sequence[str]) -> list[str]:
    """The groups' methods; where several groups are of one method, with what differs between these."""
    labels = list(methods)
    for method, number in Counter(methods).items():
        if number > 1:
            places = [place for place, name in enumerate(methods) if name == method]
            namesakes = [run for place in places for run in groups[place].runs]
            for place, group in zip(places, group_runs(namesakes)):
                labels[place] = f"{method}, {group.label}"
    return labels


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, NaN of one value alone."""
    values = [float(value) for value in values]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def seed_of(result: RunResult) -> str:
    """A run's seed in words."""
    return "seed unknown" if result.seed is None else f"seed {result.seed}"


def path_text(path: pathlib.Path, root: pathlib.Path) -> str:
    """A run's path, from the report's folder where it lies inside; of others the last two names, since a page is passed on without its machine."""
    resolved, top = path.resolve(), root.resolve()
    return (resolved.relative_to(top) if resolved.is_relative_to(top) else pathlib.PurePath(*resolved.parts[-2:])).as_posix()


def options_that_differ(options: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the options that are not the same in all runs, seed and bookkeeping left out."""
    names = {name for table in options for name in table if not (BOOKKEEPING | {SEED}) & set(name.split("."))}
    return {name for name in names if len({json.dumps(table.get(name), sort_keys=True) for table in options}) > 1}
