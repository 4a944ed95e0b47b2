"""Plans: which runs a set of experiments needs at a budget, with what commands, what of them exists, and what is left to do. Starts nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from dnnlib import UserError, atomic_write_text
from dnnlib.json_files import read_json
from experiments.images.budgets import Budget, find_budget
from experiments.images.experiments import ImageExperiment, choose
from experiments.images.folder_lock import wait_for
from experiments.images.methods import HALF, METHODS, R1_WEIGHT, Method
from experiments.images.planned_config import configuration, fingerprint, inspect_data, same_data
from experiments.images.run_state import RunState, look, measured_snapshots, run_folders, sheet_snapshot
from metrics.registry import parse_metrics
from metrics.report import lines_path, read_lines
from training.config import DataInfo
from training.dataset_sources import DIGITS, open_source
from training.dataset_writer import convert_dataset, make_transform
from training.run_files import RunDir

PLAN_FILE = "plan.json"
KEYS_FILE = "keys.txt"
RUNS = "runs"
SMOKE_DATA, SMOKE_IMAGES, SMOKE_SIZE = "data/digits.zip", 240, 16


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the user asks for.

    Attributes:
        names: experiments.
        budget: its name.
        out: results folder.
        data: training set; None: the budget's.
        seeds: number of seeds, counted from 0; None: the budget's.
        device: of train.py.
        gpus: processes of each run.
        precision: of train.py; None: the budget's.
    """

    names: tuple[str, ...]
    budget: str
    out: pathlib.Path
    data: str | None = None
    seeds: int | None = None
    device: str = "auto"
    gpus: int = 1
    precision: str | None = None


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run, shared by all experiments that need it.

    Attributes:
        key: name of its folder in DIR/runs.
        experiments: that need it.
        method, setting, seed, kimg: what it is.
        parent: folder that holds the run folder which train.py makes.
        arguments: of train.py for a new run.
        measuring: arguments of calc_metrics.py, after --network and --metrics.
        looking: arguments of `calc_metrics.py show`, after --fake and --out; empty where no sheets are wanted.
        metrics, end_metrics, detector: what is measured of every snapshot, and of that of the planned end alone.
        options: what training_options.json will hold.
        snapshots: number of them that will be there, about.
        gpus: processes.
    """

    key: str
    experiments: tuple[str, ...]
    method: str
    setting: str
    seed: int
    kimg: int
    parent: pathlib.Path
    arguments: tuple[str, ...]
    measuring: tuple[str, ...]
    looking: tuple[str, ...]
    metrics: tuple[str, ...]
    end_metrics: tuple[str, ...]
    detector: str | None
    options: dict[str, Any]
    snapshots: int
    gpus: int

    @property
    def command(self) -> str:
        """The training as a user would type it."""
        return shlex.join(["python", "train.py", *self.arguments])

    def look(self) -> RunState:
        """What exists of it. Raises UserError if its folder holds a run with other settings."""
        state = look(self.parent, self.options, self.metrics, self.detector)
        if not state.finished or state.archived:
            return state
        end, last = (RunDir(state.path).snapshot(kimg).name for kimg in (state.end, state.kimg))
        names = [spec.name for spec in parse_metrics(self.end_metrics, self.detector)]
        end_measured = not names or end in measured_snapshots(state.path, names)
        return dataclasses.replace(state, end_measured=end_measured, looked_at=not self.looking or sheet_snapshot(state.path) == last)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of some experiments at one budget."""

    choice: Choice
    budget: Budget
    experiments: tuple[ImageExperiment, ...]
    data: str
    data_info: DataInfo
    seeds: int
    runs: tuple[PlannedRun, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that is measured of any run."""
        return tuple(dict.fromkeys(metric for run in self.runs for metric in (*run.metrics, *run.end_metrics)))


def run_key(budget: str, setting: str, method: str, seed: int) -> str:
    """Name of a run's folder."""
    return f"{budget}-{setting}-{METHODS[method].slug}-seed{seed}"


def make_plan(choice: Choice) -> Plan:
    """Works out every run, its commands and its configuration.

    Raises:
        UserError: unknown experiment or budget, no data, options that train.py refuses, the folder's plan of the budget is on other data
            or of another precision, or its runs were measured against other data.
    """
    budget, experiments = find_budget(choice.budget), choose(choice.names)
    data_path = choice.data or budget.data or _digits(choice.out)
    data = inspect_data(data_path)
    if not data.labels_in_file:
        raise UserError(f"--data={data_path} has no labels, and the experiments train on classes; give a labelled set")
    if saved := read_plans(choice.out).get(choice.budget):
        new = {"data": data_path, "fingerprint": fingerprint(data_path), "precision": choice.precision}
        _check_same_terms(choice.budget, new, saved, plan_path(choice.out))
    seeds = budget.seeds if choice.seeds is None else choice.seeds
    wanted: dict[tuple[str, str], dict[str, ImageExperiment]] = {}
    for experiment in experiments:
        for row in experiment.rows:
            if row.method:
                wanted.setdefault((budget.setting(row.setting), row.method), {})[experiment.name] = experiment
    runs = [
        _plan_run(choice, budget, METHODS[method], setting, seed, tuple(wanting.values()), data_path, data)
        for seed in range(seeds)  # all methods under one seed first: they can be compared before all is done
        for (setting, method), wanting in wanted.items()
    ]
    for run in runs:
        check_measured_on(data_path, run, run_folders(run.parent))
    return Plan(choice, budget, tuple(experiments), data_path, data, seeds, tuple(runs))


def check_measured_on(data: str, run: PlannedRun, folders: Sequence[pathlib.Path]) -> None:
    """Raises UserError if folders of a run were measured against other data: no table could hold them beside new ones."""
    names = [spec.name for spec in parse_metrics(run.metrics, run.detector)]
    for path, name in itertools.product(folders, names):
        last = {str(line.get("snapshot_pkl")): line.get("protocol") for line in read_lines(path, name)}  # which counts of a repeated one
        found = [protocol["dataset"] for protocol in last.values() if isinstance(protocol, dict) and protocol.get("dataset")]
        if any(digest != fingerprint(data) for digest in found):
            raise UserError(
                f"--data={data} holds other images or labels than those that {lines_path(path, name)} was measured against; "
                "give the data set that was there, or another --out"
            )


def _check_same_terms(budget: str, new: dict[str, Any], saved: dict[str, Any], path: pathlib.Path) -> None:
    """Raises UserError if a plan that `path` holds of this budget differs in what tables say once for all of their runs."""
    data, precision = new["data"], new["precision"]
    told = new["fingerprint"] and saved["fingerprint"]
    other = new["fingerprint"] != saved["fingerprint"] if told else not same_data(data, saved["data"])
    if other and data == saved["data"]:
        raise UserError(f"--data={data} holds other images or labels than when {path} was written; put back what was there, or give another --out")
    elsewhere = f"has a plan of this budget with {{}}, and the tables of a folder are of one kind; take another folder, or remove {path} (runs stay)"
    if other:
        raise UserError(f"--data={data}: {path} {elsewhere.format('--data=' + saved['data'])}")
    own = find_budget(budget).precision
    if (found := precision or own) != (old := saved["precision"] or own):
        raise UserError(f"--precision={found}: {path} {elsewhere.format(f'--precision={old}')}")


def _plan_run(
    choice: Choice, budget: Budget, method: Method, setting: str, seed: int, experiments: tuple[ImageExperiment, ...], data_path: str, data: DataInfo
) -> PlannedRun:
    regime = budget.regimes[setting]
    gamma = budget.r1_weight(setting, method.augmentation).gamma
    key = run_key(budget.name, setting, method.name, seed)
    parent = choice.out / RUNS / key
    arguments = [f"--outdir={parent.as_posix()}", f"--data={data_path}", *budget.options]
    arguments += [option.replace(R1_WEIGHT, f"{gamma:g}").replace(HALF, str(max(regime.kimg // 2, 1))) for option in method.options]
    arguments += [f"--gamma={gamma:g}", f"--seed={seed}", f"--kimg={regime.kimg}", "--metrics=none"]
    arguments += [f"--subset={regime.subset}"] if regime.subset is not None else []
    precision = choice.precision or budget.precision
    arguments += [f"--precision={precision}"] if precision != "auto" else []
    arguments += [f"--device={choice.device}"] if choice.device != "auto" else []
    arguments += [f"--gpus={choice.gpus}"] if choice.gpus > 1 else []
    how = [f"--detector={budget.detector}"] if budget.detector else []
    how += [f"--device={choice.device}"] if choice.device != "auto" else []
    measuring = [*how, f"--data={data_path}"]  # of a subset, too, all; and it may have moved since the training
    looking = [f"--real={data_path}", *how, *budget.looking] if seed == 0 else []  # pages show one run of a method
    return PlannedRun(
        key=key,
        experiments=tuple(experiment.name for experiment in experiments),
        method=method.name,
        setting=setting,
        seed=seed,
        kimg=regime.kimg,
        parent=parent,
        arguments=tuple(arguments),
        measuring=tuple(measuring),
        looking=tuple(looking),
        metrics=budget.metrics,
        end_metrics=budget.end_metrics([column for experiment in experiments for column in experiment.columns]),
        detector=budget.detector,
        options=configuration(arguments, data),
        snapshots=-(-regime.kimg // budget.spacing) + 1,
        gpus=choice.gpus,
    )


def _digits(out: pathlib.Path) -> str:
    """The training set of the smoke budget, written into the results folder if it is not there yet."""
    path = out / SMOKE_DATA
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        source = open_source(DIGITS, max_images=SMOKE_IMAGES)
        convert_dataset(source, str(path), make_transform(None, SMOKE_SIZE, SMOKE_SIZE, "box"))
    return path.as_posix()


# Of a budget in plan.json, what kind each field is.
PLAN_FIELDS = {"seeds": int, "data": str, "fingerprint": str | None, "device": str, "gpus": int, "precision": str | None, "runs": dict}


def plan_path(out: pathlib.Path) -> pathlib.Path:
    """Where a results folder keeps what was planned in it."""
    return out / PLAN_FILE


def read_plans(out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Budget -> {"experiments", "seeds", "data", ...} of a results folder; empty without plans. Raises UserError for a damaged file."""
    path = plan_path(out)
    if not path.is_file():
        return {}
    try:
        plans = read_json(path)["budgets"]
        for name, plan in plans.items():
            find_budget(name)
            choose(plan["experiments"])
            plan.setdefault("fingerprint", None)  # a plan from before it was kept
            for field, kinds in PLAN_FIELDS.items():
                if not isinstance(plan[field], kinds) or isinstance(plan[field], bool):
                    raise TypeError(f"{field} is {plan[field]!r}")
            seeds = [plan["seeds"], *plan.setdefault("seeds_of", {}).values()]
            if min(*seeds, plan["gpus"]) < 1 or not all(isinstance(key, str) for key in plan.get("costed", [])):
                raise ValueError(f"seeds {seeds}, {plan['gpus']} processes, costed {plan.get('costed')}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no plan ({type(error).__name__}: {error}); remove it and plan again, the runs stay") from error
    return plans


def remember_plan(plan: Plan, seconds: float | None) -> None:
    """Adds a plan to DIR/plan.json: experiments of one budget add up. `seconds` is what it was found to take; None: unknown."""
    path = plan_path(plan.choice.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wait_for(path.with_suffix(".lock")):  # another process may be adding one
        write_plans(path, join_plans(read_plans(plan.choice.out), {plan.budget.name: _described(plan, seconds)}, path))


def _described(plan: Plan, seconds: float | None) -> dict[str, Any]:
    """What plan.json holds of a plan."""
    names = [experiment.name for experiment in plan.experiments]
    runs = {run.key: {"method": run.method, "setting": run.setting, "seed": run.seed, "kimg": run.kimg, "command": run.command} for run in plan.runs}
    return {
        "experiments": names,
        "seeds": plan.seeds,
        "seeds_of": dict.fromkeys(names, plan.seeds),
        "data": plan.data,
        "fingerprint": fingerprint(plan.data),
        "device": plan.choice.device,
        "gpus": plan.choice.gpus,
        "precision": plan.choice.precision,
        "costed": names if seconds is not None else [],
        "runs": runs,
    }


def join_plans(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]], path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The budgets of two plan.json as one: experiments add up, each with the larger number of seeds; the rest is that of the newer.

    Args:
        old: as `read_plans` gives them.
        new: the same.
        path: where the old ones are, for the message.

    Raises:
        UserError: they are on different data, or of different precisions.
    """
    joined = dict(old)
    for budget, plan in new.items():
        if before := old.get(budget):
            _check_same_terms(budget, plan, before, path)
            seeds_of = _seeds_of(before)
            plan = plan | {
                "experiments": list(dict.fromkeys([*before["experiments"], *plan["experiments"]])),
                "seeds": max(before["seeds"], plan["seeds"]),
                "seeds_of": seeds_of | {name: max(seeds, seeds_of.get(name, 0)) for name, seeds in _seeds_of(plan).items()},
                "costed": list(dict.fromkeys([*before.get("costed", []), *plan.get("costed", [])])),
                "runs": before["runs"] | plan["runs"],
                "fingerprint": plan["fingerprint"] or before["fingerprint"],
            }
        joined[budget] = plan
    return joined


def _seeds_of(plan: dict[str, Any]) -> dict[str, int]:
    """Seeds of every experiment; a plan from before these were kept has one number for all."""
    return dict.fromkeys(plan["experiments"], plan["seeds"]) | plan["seeds_of"]


def write_plans(path: pathlib.Path, plans: dict[str, dict[str, Any]]) -> None:
    """Writes what `read_plans` reads."""
    atomic_write_text(path, json.dumps({"budgets": plans}, indent=1) + "\n")


def write_keys(plan: Plan) -> pathlib.Path:
    """Writes the keys of a plan's runs, one per line, for a queue that makes them by number (`reproduce.py make`). Returns the file."""
    path = plan.choice.out / KEYS_FILE
    atomic_write_text(path, "".join(f"{run.key}\n" for run in plan.runs))
    return path
