"""Plans as text: every run with its command, what exists of it and what is left, then time and space in all."""

from __future__ import annotations

from dnnlib.format import format_time
from experiments.images.budgets import BUDGETS
from experiments.images.disk import needed_bytes
from experiments.images.experiments import EXPERIMENTS
from experiments.images.methods import METHODS
from experiments.images.plan import Plan, PlannedRun
from experiments.images.speed import Left, Speed, schedule
from training.disk import GB, free_bytes

UNKNOWN = "time unknown"


def overview() -> str:
    """One line per image experiment and per budget."""
    width = max(map(len, [*EXPERIMENTS, *BUDGETS]))
    lines = [f"{name:{width}}  {experiment.title}" for name, experiment in EXPERIMENTS.items()]
    return "\n".join([*lines, "", "Budgets:", *(f"{name:{width}}  {budget.title}" for name, budget in BUDGETS.items())])


def show_plan(plan: Plan, speed: Speed, slots: int) -> str:
    """The plan as text.

    Args:
        plan: what is planned.
        speed: of this machine.
        slots: runs made at once.
    """
    lines = [f"Plan at budget {plan.budget.title}", f"Training set: {plan.data}, {plan.data_info.length:,} images; {plan.seeds} seed(s)", ""]
    for run in plan.runs:
        lines += [_describe(run, speed), f"    {run.command}", f"    {_measuring(run)}"]
    return "\n".join([*lines, "", *_weights(plan), _time(plan, speed, slots), _space(plan)])


def training_left(plan: Plan, speed: Speed, slots: int) -> float | None:
    """Time until all is trained; None if the speed of some run is not known."""
    seconds = [speed.left(run).training for run in plan.runs]
    return None if None in seconds else schedule(seconds, slots)


def _describe(run: PlannedRun, speed: Speed) -> str:
    left = _in_words(speed.left(run))
    return f"{run.key}  [{run.look()}]  {run.method}, seed {run.seed}, {run.kimg:,} kimg, {left}  (for {', '.join(run.experiments)})"


def _measuring(run: PlannedRun) -> str:
    detector = f" by {run.detector}" if run.detector else ""
    at_end = f", {','.join(run.end_metrics)} of the last one" if run.end_metrics else ""
    return f"then {','.join(run.metrics)}{detector} of about {run.snapshots} snapshots{at_end}"


def _weights(plan: Plan) -> list[str]:
    """R1's weights with their reasons."""
    found = {}
    for run in plan.runs:
        augmentation = METHODS[run.method].augmentation
        weight = plan.budget.r1_weight(run.setting, augmentation)
        found[f"R1 {weight.gamma:g} in {run.setting} with {augmentation}: {weight.reason}."] = None
    return list(found)


def _time(plan: Plan, speed: Speed, slots: int) -> str:
    states = [run.look() for run in plan.runs]
    done, missing = sum(state.is_measured for state in states), sum(state.path is None for state in states)
    counts = f"{len(states)} runs: {done} measured, {len(states) - done - missing} begun, {missing} missing."
    seconds = training_left(plan, speed, slots)
    if seconds is None:
        return f"{counts} The time it takes is not known: plan without --no-probe to measure this machine's speed."
    totals = [speed.left(run).total for run in plan.runs]
    if None in totals:
        return f"{counts} Training takes about {format_time(seconds)} on {speed.name}, {slots} at once; what measuring adds is not known."
    return f"{counts} About {format_time(schedule(totals, slots))} on {speed.name}, {slots} at once."


def _in_words(left: Left) -> str:
    if left.training is None:
        return UNKNOWN
    return f"{format_time(left.training)} of training left" if left.measuring is None else f"{format_time(left.total)} left"


def _space(plan: Plan) -> str:
    need, free = needed_bytes(plan), free_bytes(plan.choice.out)
    fits = "" if need <= free else ": it does not fit"
    return f"Disk: about {need / GB:.1f} GB needed, {free / GB:.1f} GB free{fits}."
