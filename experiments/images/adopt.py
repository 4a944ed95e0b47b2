"""Takes runs that were made by hand into a results folder, if they are what its plan would make."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

from dnnlib import UserError
from experiments.images.folder_lock import hold
from experiments.images.methods import METHODS, recognise
from experiments.images.plan import Choice, Plan, PlannedRun, check_measured_on, make_plan, read_plans, remember_plan
from experiments.images.run_state import RUN_FOLDER, look_at, read_options, run_folders, settings_difference
from metrics.runs import OPTIONS_FILE, SEED

LARGEST_SEED = 99  # all runs up to an adopted one's seed are planned


def adopt(paths: list[pathlib.Path], choice: Choice, copy: bool = False) -> list[PlannedRun]:
    """Puts finished runs where the plan of `choice` looks for them, as links or copies. All are checked before the first is taken.

    Args:
        paths: run folders, or folders that hold one.
        choice: the plan; its seeds are raised to those of the runs. Device and processes are those of the folder's plan, where it has one.
        copy: copy the folders instead of linking to them.

    Returns:
        The planned runs that are there now, in the order of `paths`.

    Raises:
        UserError: a run is not finished, or its options are not those of any planned run; the difference is named.
    """
    folders = [_run_folder(path) for path in paths]
    seeds = max([choice.seeds or 0, *(_seed(folder) + 1 for folder in folders)])
    saved = read_plans(choice.out).get(choice.budget, {})
    where = {name: saved[name] for name in ("device", "gpus") if name in saved}
    plan = make_plan(dataclasses.replace(choice, seeds=seeds, **where))
    with hold(choice.out, f"--out={choice.out}"):
        taken = [(folder, _counterpart(folder, plan)) for folder in folders]
        keys = [run.key for _, run in taken]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"two of the runs are {twice[0]}; give one of them")
        for folder, run in taken:
            check_measured_on(plan.data, run, [folder])
        for folder, run in taken:
            _take(folder, run, copy)
        remember_plan(_for_runs(plan, [run for _, run in taken]), None)
    return [run for _, run in taken]


def _run_folder(path: pathlib.Path) -> pathlib.Path:
    """The run folder itself, or the only one in a folder."""
    inside = run_folders(path)
    if (path / OPTIONS_FILE).is_file() or not inside:
        return path
    if len(inside) > 1:
        raise UserError(f"{path} holds {len(inside)} runs; name them one by one")
    return inside[0]


def _for_runs(plan: Plan, runs: list[PlannedRun]) -> Plan:
    """The plan of those experiments alone that need one of the runs."""
    names = {name for run in runs for name in run.experiments}
    experiments = tuple(experiment for experiment in plan.experiments if experiment.name in names)
    return dataclasses.replace(plan, experiments=experiments, runs=tuple(run for run in plan.runs if names & set(run.experiments)))


def _seed(folder: pathlib.Path) -> int:
    """The seed of a run. Raises UserError if it is none that plans have."""
    seed = read_options(folder).get(SEED, 0)
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{folder} has the seed {seed!r}, and plans count theirs from 0 up to {LARGEST_SEED} at most")
    return seed


def _counterpart(folder: pathlib.Path, plan: Plan) -> PlannedRun:
    """The planned run that a folder is."""
    options = read_options(folder)
    method, seed = recognise(options), _seed(folder)
    candidates = [run for run in plan.runs if (run.method, run.seed) == (method, seed)]
    if not candidates:
        known = ", ".join(dict.fromkeys(run.method for run in plan.runs))
        of = "is not in this plan" if method in METHODS else "is no method of this project"
        raise UserError(f"{folder}: {method} {of}, which has {known}")
    candidates.sort(key=lambda run: run.kimg, reverse=True)  # plans may want a method at several lengths: the longest that it is finished for
    differences = [(settings_difference(options, run.options), run) for run in candidates]
    fitting = [(look_at(folder, run.kimg, run.metrics, run.detector), run) for changed, run in differences if not changed]
    for state, run in fitting:
        if state.finished:
            return run
    if fitting:
        state, run = fitting[-1]
        raise UserError(f"{folder} is not finished: {state.kimg} of {run.kimg} kimg; finish it with train.py --continue-run first")
    changed, run = min(differences, key=lambda found: abs(found[1].kimg - int(options.get("total_kimg", 0))))
    raise UserError(f"{folder} is not {run.key}: {changed}")


def _take(folder: pathlib.Path, run: PlannedRun, copy: bool) -> None:
    there = run_folders(run.parent)
    if folder.resolve() in [path.resolve() for path in there]:
        return
    if there:
        raise UserError(f"{run.parent} holds {there[0].name} already; move it away to take {folder}")
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        name = folder.resolve().name
        target = run.parent / (name if RUN_FOLDER.match(name) else f"00000-{name}")  # as train.py names them, and as they are looked for
        if copy:
            _copy(folder, target)
        else:
            target.symlink_to(folder.resolve(), target_is_directory=True)
    except shutil.Error as error:  # of all files that could not be copied: the first
        source, _, reason = error.args[0][0]
        raise UserError(f"cannot copy {source} into {run.parent}: {reason}") from error
    except OSError as error:
        raise UserError(f"cannot take {folder} into {run.parent}: {error.strerror or error}") from error


def _copy(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a run under another name first, so that none is ever taken for whole that is not."""
    unfinished = target.parent / f".{target.name}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process left
    try:
        shutil.copytree(folder, unfinished)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
