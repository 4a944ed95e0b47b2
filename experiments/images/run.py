"""Executes plans: refuses what cannot work before anything starts, makes what is missing, keeps failures apart, and can be killed at any time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from dnnlib import UserError
from experiments.images.board import Board
from experiments.images.disk import check_disk
from experiments.images.folder_lock import hold
from experiments.images.guard import QUEUE_SIGNALS
from experiments.images.launchers import Slots, launch_local, launch_slurm
from experiments.images.plan import Choice, Plan, PlannedRun, read_plans, remember_plan
from experiments.images.probe import places
from experiments.images.run_state import run_folders
from experiments.images.speed import Speed
from experiments.images.work import Outcome, Stop
from metrics.registry import check_detectors, parse_metrics

LAUNCHERS = ("local", "slurm")


@dataclasses.dataclass(frozen=True)
class How:
    """How a plan is executed.

    Attributes:
        launcher: local or slurm.
        workers: runs at once on this machine; None: one per core, or on each GPU as many as are fastest.
        slurm: parameters of submitit's Slurm executor.
        confirmed: whether the user has said yes to the paper budget.
    """

    launcher: str = "local"
    workers: int | None = None
    slurm: dict[str, object] = dataclasses.field(default_factory=dict)
    confirmed: bool = False


def run_plan(plan: Plan, how: How, log: Callable[[str], None] = lambda text: None) -> list[Outcome]:
    """Makes every run of a plan that is not measured yet.

    Args:
        plan: what to make.
        how: where.
        log: told every event where the screen shows a table instead.

    Returns:
        The outcomes that are failures; empty if all is measured now.

    Raises:
        UserError: the folder is in use, holds runs of other settings or has no room, a detector is not at hand, or the paper budget was not
            planned and confirmed. Nothing is started then.
    """
    out = plan.choice.out
    with hold(out, f"--out={out}"):
        check_may_run(plan, how)
        waiting = [run for run in plan.runs if not run.look().is_measured]
        check_can_make(plan)
        speed = Speed(out)
        with signals_as_interrupt():
            slots = places(plan, how.workers, speed, functools.partial(print, flush=True)) if how.launcher == "local" else None
        remember_plan(plan, None)
        print(f"{len(plan.runs)} runs, {len(plan.runs) - len(waiting)} of them measured already.", flush=True)
        return _make(plan, waiting, how, slots, speed, log) if waiting else []


def check_can_make(plan: Plan) -> None:
    """Raises UserError if the disk has no room for what is left of a plan, or a detector for it is not at hand."""
    check_disk(plan)
    if not all(run.look().is_measured for run in plan.runs):
        check_detectors(parse_metrics(plan.metrics, plan.budget.detector))


def check_may_run(plan: Plan, how: How) -> None:
    """Raises UserError if the paper budget, which takes days, was not planned with its cost and confirmed."""
    if plan.budget.name != "paper":
        return
    names = [experiment.name for experiment in plan.experiments]
    costed = read_plans(plan.choice.out).get("paper", {}).get("costed", [])
    if missing := [name for name in names if name not in costed]:
        where = " on a GPU node (srun)" if how.launcher == "slurm" else ""
        raise UserError(f"--budget=paper takes days to weeks: see what {missing[0]} costs first, by `{_planning(plan.choice, missing)}`{where}")
    if not how.confirmed:
        raise UserError("--budget=paper takes as long as its plan says; add --yes to start it")


def _planning(choice: Choice, names: Sequence[str]) -> str:
    """The command that plans experiments by the options of a choice."""
    options = {field.name: getattr(choice, field.name) for field in dataclasses.fields(Choice) if field.name != "names"}
    given = {name: value for name, value in options.items() if value is not None and (name, value) not in {("device", "auto"), ("gpus", 1)}}
    return shlex.join(["python", "reproduce.py", "plan", *names, *(f"--{name}={value}" for name, value in given.items())])


def _make(plan: Plan, waiting: Sequence[PlannedRun], how: How, slots: Slots | None, speed: Speed, log: Callable[[str], None]) -> list[Outcome]:
    stop, board = Stop(), Board(waiting, log=log)
    by_key = {run.key: run for run in waiting}
    failures: list[Outcome] = []
    try:
        with signals_as_interrupt():
            if slots is None:
                outcomes = launch_slurm(waiting, plan.choice.out, how.slurm, stop, board.set)
            else:
                outcomes = launch_local(waiting, slots, stop, board.set)
            for outcome in outcomes:
                run = by_key[outcome.key]
                board.set(run, f"failed: {outcome.error}" if outcome.error else "measured")
                failures += [outcome] if outcome.error else []
                if outcome.trained and how.launcher == "local":
                    _learn(speed, run, outcome.since)
    except KeyboardInterrupt:
        stop.set()
        raise
    finally:
        board.close()
    return failures


def _learn(speed: Speed, run: PlannedRun, since: float) -> None:
    """Takes over the speed of a run that began at that time; what stands in the way is told, and no reason to end a plan."""
    try:
        speed.learn(run, run_folders(run.parent)[-1], since)
    except (UserError, OSError, LookupError, TypeError, ValueError) as error:
        print(f"The speed of {run.key} is not kept ({type(error).__name__}: {error}).", flush=True)


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Within the block the signals that queues send do what Ctrl-C does, so that what was started is ended, with a state to go on from."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in QUEUE_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def planned_run(plans: Sequence[Plan], key: str) -> PlannedRun:
    """The run of that key. Raises UserError if no plan has it."""
    for plan in plans:
        for run in plan.runs:
            if run.key == key:
                return run
    raise UserError(f"no plan in this folder has a run {key!r}; `reproduce.py plan` lists them")
