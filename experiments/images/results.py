"""What finished runs say, as tables: `load_run` reads any run folder, `load_tables` the tables of a results folder."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dnnlib import UserError
from dnnlib.json_files import read_json_lines
from experiments.images.budgets import BUDGETS, Budget, find_budget
from experiments.images.claims import CLAIMS, Verdict, at_stage, judge
from experiments.images.experiments import EXPERIMENTS, LAST, ImageExperiment, Row, choose
from experiments.images.methods import recognise
from experiments.images.plan import RUNS, read_plans, run_key
from experiments.images.planned_config import difference
from experiments.images.run_state import read_options, run_folders
from experiments.paper.checks import Rows, mean_interval
from metrics.registry import parse_metrics
from metrics.report import is_finite
from metrics.runs import BOOKKEEPING, DATA_PATH, SEED, Group, check_protocols, flatten, load_runs, read_run
from training.run_files import RunDir

BASELINE = "StyleGAN2"
PRECISION_NAMES = {"bfloat16": "bf16", "float16": "fp16"}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Figures of one run.

    Attributes:
        method: name as in `experiments.images.methods`, or a description of the options where it is none of these.
        seed: of the training.
        path: the run folder.
        budget, setting: of the plan that made the run; empty for a run from elsewhere.
        kimg: thousand real images seen at the last snapshot.
        figures: figure, named as in metric-*.jsonl -> kimg -> value.
        protocols: figure -> how it was measured, as its last line says; {} where it does not say.
        seconds: running time of the training; 0 where it is not known.
        trained: thousand real images seen in that time.
    """

    method: str
    seed: int
    path: pathlib.Path
    budget: str
    setting: str
    kimg: int
    figures: dict[str, dict[int, float]]
    protocols: dict[str, dict]
    seconds: float
    trained: float


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row: a method's figures over its seeds beside the paper's.

    Attributes:
        method: name of the row.
        kimg: where the row looks; 0 for published figures alone.
        runs: those that were measured there, by seed.
        ours: column -> (mean, sample standard deviation; NaN for one run); without columns that no run has.
        paper: column -> published figure.
        fewer: column -> number of runs that have the figure, where these are not all of `runs`.
    """

    method: str
    kimg: int
    runs: tuple[RunResult, ...]
    ours: dict[str, tuple[float, float]]
    paper: dict[str, float]
    fewer: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a row's figures differ from its baseline's, taken within each seed.

    Attributes:
        method: of the row, or its label where it is told by its R1 weight.
        baseline: of the other one, StyleGAN2 with the same augmentation in the same setting at the same length; of StyleGAN2 under another R1
            weight, StyleGAN2 under the usual one.
        column: of the figure.
        mean: of the row's figure less the baseline's over the seeds that both have.
        interval: of the mean, 95%; None where the seeds spread too little to tell.
        seeds: so many, at least two.
        images: how many both were trained on, in words.
        kimg: where both rows look.
    """

    method: str
    baseline: str
    column: str
    mean: float
    interval: tuple[float, float] | None
    seeds: int
    images: str
    kimg: int


@dataclasses.dataclass(frozen=True)
class TableResult:
    """A table or figure of the paper, or an experiment of this project, at one budget.

    Attributes:
        name: as on the command line.
        title: one sentence.
        budget_name: name of the budget; empty for none.
        budget: what the budget is in short, its name included.
        detector: detectors that looked, as the protocols say.
        columns: in order.
        rows: in order; those without runs too.
        claims: verdicts.
        note: what a reader must know: settings, what is missing.
        differences: of the rows from their baselines, by row and column, where two seeds or more are there.
        training: how many images the runs saw, and in which precision.
    """

    name: str
    title: str
    budget_name: str
    budget: str
    detector: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    claims: tuple[Verdict, ...]
    note: str
    differences: tuple[Difference, ...] = ()
    training: str = ""


def load_run(path: pathlib.Path) -> RunResult:
    """Reads any run folder of train.py, measured or not.

    Raises:
        UserError: no training_options.json, or damaged files.
    """
    try:
        return _load_run(path)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} holds options or figures in no known form ({type(error).__name__}: {error}); restore its files") from error


def _load_run(path: pathlib.Path) -> RunResult:
    options = read_options(path)
    measured = read_run(path)
    figures = {figure: {kimg: point.value for kimg, point in points.items()} for figure, points in measured.points.items()}
    protocols = {figure: list(points.values())[-1].protocol or {} for figure, points in measured.points.items()}
    budget, setting = _origin(path)
    last = _last_stats(path)
    reached = [*RunDir(path).snapshots(), *(kimg for points in figures.values() for kimg in points)]
    return RunResult(
        method=recognise(options),
        seed=int(options.get("random_seed", 0)),
        path=path,
        budget=budget,
        setting=setting,
        kimg=max(reached, default=int(last.get("Progress/kimg", {}).get("mean", 0))),
        figures=figures,
        protocols=protocols,
        seconds=float(last.get("Timing/total_sec", {}).get("mean", 0)),
        trained=float(last.get("Progress/kimg", {}).get("mean", 0)),
    )


def without_copies(runs: Sequence[RunResult]) -> tuple[list[RunResult], list[str]]:
    """Each training once: of runs with equal options, seed and data the longest, and a sentence for every one that is left out."""
    kept: dict[str, RunResult] = {}
    said = []
    for run in sorted(runs, key=lambda run: run.kimg, reverse=True):
        options = flatten(read_options(run.path), BOOKKEEPING - {SEED})
        told = next((protocol["dataset"] for protocol in run.protocols.values() if protocol.get("dataset")), None)
        first = kept.setdefault(json.dumps(options | ({DATA_PATH: told} if told else {}), sort_keys=True), run)
        if first.path.resolve() != run.path.resolve():
            said.append(f"{run.path} has the seed and the options of {first.path} and is left out: it is no second seed")
    return [run for run in runs if any(run is other for other in kept.values())], said


def unusable(run: RunResult) -> list[str]:
    """A sentence for every file of a run in which a snapshot has no finite figures."""
    said = []
    for file in sorted(run.path.glob("metric-*.jsonl")):
        lines = read_json_lines(file)
        lost = {line.get("snapshot_pkl") for line in lines} - {line.get("snapshot_pkl") for line in lines if is_finite(line)}
        said += [f"{file} has figures of {min(map(str, lost))} that are not finite; they are left out"] if lost else []
    return said


def load_longest(parent: pathlib.Path) -> RunResult | None:
    """The run in the folder of a planned run; of several the longest, None without any. Raises UserError as `load_run`."""
    return max(map(load_run, run_folders(parent)), key=lambda run: run.kimg, default=None)


def load_tables(out: pathlib.Path) -> list[TableResult]:
    """The tables of every experiment that was planned in a results folder, as far as they are filled.

    Raises:
        UserError: a damaged plan or run, or runs of one table that were measured by different protocols.
    """
    tables = []
    for name, plan in read_plans(out).items():
        loaders: dict[int, _Loader] = {}
        for experiment in choose(sorted(plan["experiments"], key=list(EXPERIMENTS).index)):  # whatever was planned first
            seeds = plan["seeds_of"].get(experiment.name, plan["seeds"])
            loader = loaders.setdefault(seeds, _Loader(out, find_budget(name), seeds, pathlib.Path(plan["data"]).name))
            tables.append(loader.table(experiment))
    return tables


class _Loader:
    """Reads the runs of one budget, under so many seeds, once."""

    def __init__(self, out: pathlib.Path, budget: Budget, seeds: int, data: str):
        self.out, self.budget, self.seeds, self.data = out, budget, seeds, data
        self._runs: dict[str, RunResult | None] = {}
        self._odd: dict[str, str] = {}  # key of a run that is no part of its row -> why

    def table(self, experiment: ImageExperiment) -> TableResult:
        """One experiment's table."""
        columns = tuple(column for column in experiment.columns if self.budget.figure(column))
        rows = tuple(self._row(row, columns) for row in experiment.rows)
        runs = list({run.path: run for row in rows for run in row.runs}.values())
        check_protocols(load_runs([run.path for run in runs]) if runs else [])
        return TableResult(
            name=experiment.name,
            title=experiment.title,
            budget_name=self.budget.name,
            budget=self.budget.title,
            detector=self._detector(runs),
            columns=columns,
            rows=rows,
            claims=tuple(self._verdict(name, experiment, columns) for name in experiment.claims),
            note=self._note(experiment, columns),
            differences=self._differences(experiment, rows, columns),
            training=self._training(experiment, runs),
        )

    def _training(self, experiment: ImageExperiment, runs: Sequence[RunResult]) -> str:
        """The training set, how much of it, and the precisions of the runs that are there."""
        sizes = dict.fromkeys(self._images(row) for row in experiment.rows if row.method)
        return ", ".join([self.data, " or ".join(sizes), *sorted({_precision(read_options(run.path)) for run in runs})])

    def _images(self, row: Row) -> str:
        """How many images a row's runs are trained on, in words."""
        size = self.budget.regimes[self.budget.setting(row.setting)].subset
        return "all images" if size is None else f"{size:,} images"

    def _run(self, row: Row, seed: int) -> RunResult | None:
        """The run of a row under a seed, if it is there and is what its folder says."""
        key = self._key(row, seed)
        if key not in self._runs:
            self._load_seeds(row)
        return self._runs[key]

    def _key(self, row: Row, seed: int) -> str:
        return run_key(self.budget.name, self.budget.setting(row.setting), row.method, seed)

    def _load_seeds(self, row: Row) -> None:
        """Reads the runs of a row under all seeds; those of another method, or of other settings than most, are left out with a reason."""
        options: dict[str, dict[str, Any]] = {}
        for key in (self._key(row, seed) for seed in range(self.seeds)):
            run = self._runs[key] = load_longest(self.out / RUNS / key)
            if run is not None and run.method != row.method:
                self._runs[key], self._odd[key] = None, f"is a run of {run.method}"
            elif run is not None:
                options[key] = read_options(run.path)
        alike = {key: [other for other in options if not difference(options[other], options[key], as_planned=False)] for key in options}
        model = max(alike, key=lambda key: len(alike[key]), default=None)  # of equally many those of the first seed
        for key in options:
            if key not in alike[model]:
                changed = difference(options[key], options[model], as_planned=False)
                self._runs[key], self._odd[key] = None, f"has other settings than {model} ({changed})"

    def _kimg(self, row: Row) -> int:
        return self.budget.regimes[self.budget.setting(row.setting)].all_marks[row.mark]

    def _row(self, row: Row, columns: Sequence[str]) -> TableRow:
        if not row.method:
            return TableRow(row.label, 0, (), {}, _of(row.paper, columns))
        found = [run for seed in range(self.seeds) if (run := self._run(row, seed)) and self._values(run, row, columns)]
        ours, fewer = {}, {}
        for column in columns:
            values = [values[column] for run in found if column in (values := self._values(run, row, columns))]
            if values:
                ours[column] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
                fewer |= {column: len(values)} if len(values) < len(found) else {}
        label = row.label.format(kimg=self._kimg(row)) if row.label else row.method
        return TableRow(label, self._kimg(row), tuple(found), ours, _of(row.paper, columns), fewer)

    def _values(self, run: RunResult, row: Row, columns: Sequence[str]) -> dict[str, float]:
        """Column -> the run's figure where the row looks: the snapshot nearest to it, at most half a spacing away."""
        values = {}
        for column in columns:
            points = run.figures.get(self.budget.figure(column), {})
            nearest = min(points, key=lambda kimg: abs(kimg - self._kimg(row)), default=None)
            if nearest is not None and abs(nearest - self._kimg(row)) <= self.budget.spacing // 2:
                values[column] = points[nearest]
        return values

    def _differences(self, experiment: ImageExperiment, rows: Sequence[TableRow], columns: Sequence[str]) -> tuple[Difference, ...]:
        """Of every row from the StyleGAN2 of its augmentation, setting and length; of StyleGAN2 with another R1 weight from that with the usual."""
        found = []
        for row, shown in zip(experiment.rows, rows):
            name = BASELINE + ("-ADA" if row.method.endswith("-ADA") else "")
            setting = self.budget.setting(row.setting)
            usual = self.budget.regimes[setting].usual if row.method else ""
            wanted = name, usual if usual and row.method == name else setting, row.mark
            pairs = [pair for pair in zip(experiment.rows, rows) if (pair[0].method, self.budget.setting(pair[0].setting), pair[0].mark) == wanted]
            if not row.method or (row.method == name and not usual) or not pairs:
                continue
            (base, other), own = pairs[0], {run.seed: self._values(run, row, columns) for run in shown.runs}
            names = (shown.method, other.method) if usual else (row.method, name)
            others = {run.seed: self._values(run, base, columns) for run in other.runs}
            for column in columns:
                gains = [own[seed][column] - others[seed][column] for seed in own if column in own[seed] and column in others.get(seed, {})]
                if len(gains) > 1:
                    place = self._images(row), shown.kimg
                    found.append(Difference(*names, column, statistics.fmean(gains), mean_interval(gains), len(gains), *place))
        return tuple(found)

    def _verdict(self, name: str, experiment: ImageExperiment, columns: Sequence[str]) -> Verdict:
        """Judges a claim by the seeds that all of its methods have."""
        wanted = {row.method: row for row in experiment.rows if row.method in CLAIMS[name].methods}
        seeds = [seed for seed in range(self.seeds) if all(self._is_filled(row, seed, columns) for row in wanted.values())]
        runs = {method: [self._run(row, seed) for seed in seeds] for method, row in wanted.items()}
        rows: Rows = {method: {} for method in wanted}
        for method, own in runs.items():
            values = [self._values(run, wanted[method], columns) for run in own]
            rows[method] = {column: [found[column] for found in values] for column in columns if all(column in found for found in values)}
        end = max(map(self._kimg, wanted.values())) + self.budget.spacing // 2  # an adopted run may be longer
        return judge(name, rows, [kimg for kimg in self._add_stages(rows, runs, columns) if kimg <= end])

    def _add_stages(self, rows: Rows, runs: Mapping[str, Sequence[RunResult]], columns: Sequence[str]) -> list[int]:
        """Adds the figures at all stages that the runs share, the untrained start left out, to `rows`. Returns the stages."""
        paths = [run.path for own in runs.values() for run in own]
        if not paths:
            return []
        loaded = {run.path: run for run in load_runs(paths)}
        figures = [self.budget.figure(column) for column in columns]
        bands = Group("", tuple(loaded[path] for path in paths)).bands(*figures)
        for column, band in zip(columns, bands):
            for place, kimg in enumerate(band.kimg.tolist()):
                values = iter(band.values[:, place].tolist())
                for method, own in runs.items():
                    rows[method][at_stage(column, kimg)] = [next(values) for _ in own]
        return [kimg for kimg in bands[0].kimg.tolist() if kimg > 0]

    def _is_filled(self, row: Row, seed: int, columns: Sequence[str]) -> bool:
        """Whether the run of a row has all figures where the row looks; in the middle of runs, those that are measured there."""
        run = self._run(row, seed)
        wanted = columns if row.mark == LAST else [column for column in columns if self.budget.columns[column][0] in self.budget.metrics]
        return run is not None and self._values(run, row, wanted).keys() == set(wanted)

    def _detector(self, runs: Sequence[RunResult]) -> str:
        names = {protocol["detector"] for run in runs for protocol in run.protocols.values() if protocol.get("detector")}
        return ", ".join(sorted(names or {spec.detector for spec in parse_metrics(self.budget.metrics, self.budget.detector) if spec.detector}))

    def _note(self, experiment: ImageExperiment, columns: Sequence[str]) -> str:
        """The budget's note, lengths, R1's weights with their reasons, and how many runs do not fill their rows yet."""
        own = [row for row in experiment.rows if row.method]
        kimg = sorted({self._kimg(row) for row in own})
        weights = {}
        for row in own:
            setting, augmentation = self.budget.setting(row.setting), "ada" if row.method.endswith("-ADA") else "noaug"
            weight = self.budget.r1_weight(setting, augmentation)
            weights[f"R1 {weight.gamma:g} with {augmentation} ({weight.reason})"] = None
        lengths = ", ".join(f"{value:,}" for value in kimg)
        parts = [self.budget.note, *([self.budget.beside] if self.budget.beside and any(row.paper for row in experiment.rows) else [])]
        parts += [f"Measured at {lengths} kimg.", f"{'; '.join(weights)}."]
        parts += [f"Published figures: {experiment.source}."] if experiment.source else []
        odd = {key: self._odd[key] for row in own for seed in range(self.seeds) if (key := self._key(row, seed)) in self._odd}
        parts += [f"Left out: {key} {reason}." for key, reason in odd.items()]
        return " ".join(parts + self._missing(own, columns))

    def _missing(self, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
        """How many runs are planned and not there, and how many are there and not measured in all of their rows; rows at two lengths share theirs."""
        wanted = [(self._key(row, seed), row, seed) for row in rows for seed in range(self.seeds)]
        there = {key for key, row, seed in wanted if self._run(row, seed) is not None}
        absent = {key for key, *_ in wanted} - there - self._odd.keys()
        short = {key for key, row, seed in wanted if key in there and not self._is_filled(row, seed, columns)}
        words = [f"Runs that are not measured in all of their rows yet: {len(short)} of {len(there)}."] if short else []
        return words + ([f"Planned runs that are not there: {len(absent)}."] if absent else [])


def _precision(options: Mapping[str, Any]) -> str:
    """Of a training: fp32, or what its lower layers compute in."""
    layers = options.get("D_kwargs", {})
    return PRECISION_NAMES.get(layers.get("low_precision"), "fp16") if layers.get("num_fp16_res") else "fp32"


def _of(figures: dict[str, float], columns: Sequence[str]) -> dict[str, float]:
    return {column: figures[column] for column in columns if column in figures}


def _origin(path: pathlib.Path) -> tuple[str, str]:
    """Budget and setting that the name of a run's parent folder says; empty for others."""
    name = path.absolute().parent.name
    for budget in BUDGETS.values():
        for setting in sorted(budget.regimes, key=len, reverse=True):
            if name.startswith(f"{budget.name}-{setting}-"):
                return budget.name, setting
    return "", ""


def _last_stats(path: pathlib.Path) -> dict[str, Any]:
    """The last whole line of stats.jsonl; empty without one."""
    lines = read_json_lines(path / "stats.jsonl")
    return lines[-1] if lines else {}
