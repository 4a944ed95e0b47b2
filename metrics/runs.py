"""Measured runs: the metric-*.jsonl of run directories as points over training, checked to be comparable, and runs grouped by their settings.

Drawing them is `metrics.trajectories`' work; the lines themselves are written by `metrics.report`.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from dnnlib import UserError
from dnnlib.json_files import parse_json, read_json
from metrics.report import without_notes

OPTIONS_FILE = "training_options.json"
SEED = "random_seed"
DATA_PATH = "training_set_kwargs.path"
# How long a run is, what it writes and measures, and where; none of it changes the networks after a given number of images.
BOOKKEEPING = {SEED, "run_dir", "metrics", "detector", "metric_seed", "keep_snapshots", "best_metric", "wandb", "data_loader_kwargs"}
BOOKKEEPING |= {"image_snapshot_ticks", "network_snapshot_ticks", "total_kimg"}
# Beginnings of the figures that are better when lower, and endings of those for which neither way is better.
_LOWER_IS_BETTER = ("fid", "kid", "ppl", "collision", "nearest", "gap")
NEITHER = ("_std", "_density", "spacing")
ABSENT = object()
NEAR = 0.015  # snapshots whose kimg differ by no more than this share are one: the ticks of a run that was taken further lie elsewhere


def direction(figure: str) -> str:
    """Which way a figure, column or signal is better: "higher", "lower", or nothing where neither plainly is."""
    if "/" in figure or figure.endswith(NEITHER) or figure.startswith("density"):  # a slash: no measurement but a statistic of the training
        return ""
    return "lower" if figure.lower().startswith(_LOWER_IS_BETTER) else "higher"


@dataclasses.dataclass(frozen=True)
class Point:
    """One figure of one snapshot.

    Attributes:
        value: finite.
        metric: name of the metric that the figure belongs to.
        protocol: how it was measured; None where the line does not say (those of StyleGAN2-ADA).
        where: file and line, for messages.
    """

    value: float
    metric: str
    protocol: dict | None
    where: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: as given.
        settings: its training_options.json as {dotted name: value} without seed and bookkeeping; None where there is no such file.
        seed: of the training; None where it is not known.
        points: {figure: {kimg: point}}, kimg (thousand real images seen) rising.
    """

    path: pathlib.Path
    settings: dict[str, Any] | None
    seed: int | None
    points: dict[str, dict[int, Point]]


@dataclasses.dataclass(frozen=True)
class Band:
    """A figure over training for several runs.

    Attributes:
        kimg: int [T], at which every one of the runs was measured; where runs differ by up to `NEAR`, that of the first.
        values: float64 [runs, T].
        of: number of runs that have the figure, among which these may be the ones that went on alone.
    """

    kimg: np.ndarray
    values: np.ndarray
    of: int

    @property
    def is_of_fewer(self) -> bool:
        """Whether some of the runs ended before."""
        return len(self.values) < self.of

    @property
    def mean(self) -> np.ndarray:
        """Over the runs, [T]."""
        return self.values.mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ by seed and length only.

    Attributes:
        label: what tells the group from the others.
        runs: its members, at least one.
    """

    label: str
    runs: tuple[Run, ...]

    def having(self, *figures: str) -> list[Run]:
        """The runs with all of these figures."""
        return [run for run in self.runs if all(figure in run.points for figure in figures)]

    def bands(self, *figures: str) -> list[Band]:
        """One band per figure, all over the same runs and kimg: the runs that have all figures, where all of these were measured."""
        runs = self.having(*figures)
        measured = [sorted(set.intersection(*(set(run.points[figure]) for figure in figures))) for run in runs]
        places = [[_nearest(own, k) for own in measured] for k in (measured[0] if runs else ())]
        places = [place for place in places if None not in place]
        kimg = np.array([place[0] for place in places], dtype=int)
        table = [[[run.points[figure][place[r]].value for place in places] for r, run in enumerate(runs)] for figure in figures]
        return [Band(kimg, np.array(values, dtype=float).reshape(len(runs), len(kimg)), len(runs)) for values in table]

    def stretches(self, *figures: str) -> list[list[Band]]:
        """The `bands` of all runs, then those of the runs that go on alone, and so forth; none where the runs share nothing.

        A further stretch begins where the one before it ends, with the values that its own runs have there: no mean jumps because others stop.
        """
        found: list[list[Band]] = []
        runs, start = self.having(*figures), 0
        while runs:
            bands = Group(self.label, tuple(runs)).bands(*figures)
            kept = bands[0].kimg >= start * (1 - NEAR)
            if kept.sum() < (2 if found else 1):
                break
            found.append([Band(band.kimg[kept], band.values[:, kept], found[0][0].of if found else band.of) for band in bands])
            start = int(bands[0].kimg[-1])
            ends = [max(set.intersection(*(set(run.points[figure]) for figure in figures))) for run in runs]
            runs = [run for run, end in zip(runs, ends) if end > start * (1 + NEAR)]
        return found


def _nearest(measured: Sequence[int], kimg: int) -> int | None:
    """The one of `measured`, which rise, that counts as `kimg`; None if there is none."""
    place = bisect.bisect_left(measured, kimg)
    found = min(measured[max(place - 1, 0) : place + 1], key=lambda k: abs(k - kimg), default=None)
    return found if found is not None and abs(found - kimg) <= NEAR * kimg else None


def load_runs(paths: Iterable[pathlib.Path | str]) -> list[Run]:
    """Reads run directories; of repeated measurements of a snapshot the last in the file counts, and a last line that was torn does not.

    Args:
        paths: folders with metric-*.jsonl, and training_options.json where settings are to be known; repetitions are dropped.

    Raises:
        UserError: no folder, one without a finite figure, or as `read_run`; or figures that were measured by different protocols.
    """
    folders = {pathlib.Path(path).resolve(): pathlib.Path(path) for path in paths}
    if not folders:
        raise UserError("no run is given; name at least one folder with metric-*.jsonl")
    runs = [read_run(folder) for folder in folders.values()]
    if unmeasured := next((run.path for run in runs if not run.points), None):
        raise UserError(f"{unmeasured} holds no measurements (metric-*.jsonl); measure its snapshots with calc_metrics.py first")
    check_protocols(runs)
    return runs


def read_run(folder: pathlib.Path) -> Run:
    """Reads one run directory as `load_runs` does; without points where no figure of it was measured, or none that is finite.

    Raises:
        UserError: a damaged line or options file, or a figure that was measured by different protocols.
    """
    found: dict[str, dict[int, Point]] = {}
    for path in sorted(folder.glob("metric-*.jsonl")):
        _read_lines(path, found)
    points = {figure: dict(sorted(points.items())) for figure, points in sorted(found.items())}
    options = read_options(folder)
    if options is None:
        run = Run(folder, None, None, points)
    else:
        run = Run(folder, _settings(options, points), options.get(SEED), points)
    check_protocols([run])
    return run


def _settings(options: Mapping[str, Any], points: Mapping[str, Mapping[int, Point]]) -> dict[str, Any]:
    """What two runs have to share to be of one group."""
    settings = flatten(options, BOOKKEEPING)
    told = any((point.protocol or {}).get("dataset") for of_figure in points.values() for point in of_figure.values())
    if told and isinstance(path := settings.get(DATA_PATH), str):
        # What the data are is told by the digest of those that a run was measured against, which check_protocols compares, and by their name.
        settings[DATA_PATH] = re.split(r"[/\\]", path)[-1]
    return settings


def _read_lines(path: pathlib.Path, found: dict[str, dict[int, Point]]) -> None:
    """Adds the points of one metric-*.jsonl to `found`."""
    metric = path.stem.removeprefix("metric-")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines = data.removesuffix(b"\n").split(b"\n")
    for number, text in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            line = parse_json(text)
            snapshot = re.search(r"snapshot-(\d+)", line["snapshot_pkl"])
            values = {figure: float(value) for figure, value in line["results"].items()}
            protocol = line.get("protocol")
            if not isinstance(protocol, (dict, type(None))):
                raise ValueError("a protocol that is no table")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if number == len(lines) and not data.endswith(b"\n"):  # torn by a kill: whoever measures next writes in its place
                continue
            raise UserError(f"{where}, is no whole metric line of a snapshot; remove that line or measure again") from error
        if snapshot is None:  # of a file that tells no moment: a copy of network-snapshot-best, or somebody else's network
            continue
        for figure, value in values.items():
            if not math.isfinite(value):  # of a network that diverged: no measurement, which others may follow
                continue
            found.setdefault(figure, {})[int(snapshot[1])] = Point(value, metric, protocol, where)


def read_options(run: pathlib.Path) -> dict[str, Any] | None:
    """The training_options.json of a run folder; None where there is no such file. Raises UserError if it cannot be read or is damaged."""
    path = run / OPTIONS_FILE
    if not path.is_file():
        return None
    try:
        options = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); make it readable") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from error
    if not isinstance(options, dict):
        raise UserError(f"{path} is damaged (it holds no table of options); restore it from a copy")
    return options


def with_figures(runs: Sequence[Run], names: Iterable[str]) -> list[Run]:
    """The same runs with some of their figures alone: those of which a name is the whole or the last part, as recall of prdc10k5_recall.

    Raises:
        UserError: no run has a figure of some name.
    """
    known = sorted({figure for run in runs for figure in run.points})
    kept = {name: [figure for figure in known if figure == name or figure.endswith(f"_{name}")] for name in names}
    if lacking := next((name for name, figures in kept.items() if not figures), None):
        raise UserError(f"--figures names {lacking!r}, which no run has; measured are {', '.join(known)}")
    chosen = {figure for figures in kept.values() for figure in figures}
    return [dataclasses.replace(run, points={figure: run.points[figure] for figure in run.points if figure in chosen}) for run in runs]


def flatten(options: Mapping[str, Any], leave_out: Set[str] = frozenset(), prefix: str = "") -> dict[str, Any]:
    """{"loss_kwargs.r1_gamma": 10, ...} in the given order, without the names to leave out at any depth."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if name in leave_out:
            continue
        if isinstance(value, dict) and value:
            flat |= flatten(value, leave_out, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_protocols(runs: Sequence[Run]) -> None:
    """Makes sure that every figure was measured in one way in all runs.

    Raises:
        UserError: it was not; the sentence names the figure, the two lines and what differs.
    """
    first: dict[str, Point] = {}
    for run in runs:
        for figure, points in run.points.items():
            for point in points.values():
                known = first.setdefault(figure, point)
                if differences := protocol_differences(known.protocol, point.protocol):
                    found = "; ".join(f"{name} is {a} in the first and {b} in the second" for name, (a, b) in differences.items())
                    raise UserError(f"{figure} of {known.where}, and of {point.where}, cannot be compared: {found}; measure both by one protocol")


def protocol_differences(a: Mapping | None, b: Mapping | None) -> dict[str, tuple[str, str]]:
    """What differs between the protocols of two result lines, as {name: (in a, in b)} in words; empty where they can be compared."""
    if (a is None) != (b is None):
        return {"protocol": tuple("not recorded" if protocol is None else "recorded" for protocol in (a, b))}
    a, b = without_notes(a or {}), without_notes(b or {})
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name, ABSENT) != b.get(name, ABSENT)]
    return {name: (_in_words(a.get(name, ABSENT)), _in_words(b.get(name, ABSENT))) for name in names}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs whose settings agree, in order of their first members; a run without known settings stands alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = str(run.path.resolve()) if run.settings is None else json.dumps(run.settings, sort_keys=True)
        groups.setdefault(key, []).append(run)
    members = list(groups.values())
    labels = _labels([group[0].settings for group in members if group[0].settings is not None])
    return [Group(_run_name(group) if group[0].settings is None or len(members) == 1 else next(labels), tuple(group)) for group in members]


def _run_name(group: Sequence[Run]) -> str:
    """The folder's name; without its number where it stands for several runs."""
    name = group[0].path.resolve().name
    return name if len(group) == 1 else re.sub(r"^\d+-", "", name)


def _labels(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is particular about each of several settings that all differ.

    Options that belong to a part which some runs do not have (a pairing network, say) are summed up by the first of them.
    """
    columns: dict[str, tuple] = {}
    for name in dict.fromkeys(name for table in settings for name in table):
        column = tuple(table.get(name, ABSENT) for table in settings)
        if len(set(map(_in_words, column))) > 1:
            columns[name] = column
    varying = [name for name, column in columns.items() if len({_in_words(value) for value in column if value is not ABSENT}) > 1]
    told = {_presence(columns[name]) for name in varying}
    shown: dict[tuple, str] = {}
    for name, column in columns.items():
        if name in varying or _presence(column) not in told:
            told.add(_presence(column))
            shown.setdefault((name.split(".")[-1], *map(_in_words, column)), name)  # one learning rate for two optimizers is said once
    leaves = [name.split(".")[-1] for name in shown.values()]
    words = {name: leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(shown.values(), leaves)}
    for index in range(len(settings)):
        values = [(words[name], columns[name][index]) for name in words]
        had = [f"{word} {_in_words(value)}" for word, value in values if value is not ABSENT]
        yield ", ".join(had) or "without " + " and ".join(word for word, _ in values) if values else "same settings"


def _presence(column: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(value is not ABSENT for value in column)


def _in_words(value: Any) -> str:
    """A setting or protocol entry as short text; of a long digest the beginning."""
    if value is ABSENT:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{32,}", text) else text
