"""Measures this machine's speed by training a bit of each kind of run, and how many runs a GPU makes best at once."""

from __future__ import annotations

import collections
import concurrent.futures
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dnnlib import UserError
from experiments.images.launchers import Slots, local_slots
from experiments.images.plan import Plan, PlannedRun
from experiments.images.run_state import run_folders
from experiments.images.speed import Speed, cost_class, metric_classes, sec_per_kimg, stats_lines
from experiments.images.work import OUTPUT, SCRIPTS, Stop, execute, metrics_command
from metrics.registry import check_detectors, parse_metrics
from training.run_files import RunDir

PROBE_SECONDS = 180  # after which the first step has to do
PROBE_KIMG = {"cuda": 24}  # on a GPU the first steps choose kernels and record graphs
PROBE_TICKS = 6
SHARED_AT_MOST = 4  # runs on one GPU
WORTH = 1.1  # by which one more run on a GPU must raise what all of them train in a second, since it makes each of them later

Say = Callable[[str], None]


def places(plan: Plan, workers: int | None, speed: Speed, say: Say, measure: bool = True) -> Slots:
    """Where this machine makes a plan's runs: as many at once as asked for, else one per core, or on each GPU as many as train most together.

    Tells `speed` what each of them has.

    Args:
        plan: whose runs.
        workers: runs at once; None: not said.
        speed: what is known of this machine, and what is measured now is added.
        say: told what is measured.
        measure: whether runs may be tried side by side; if not, only what is known counts.

    Raises:
        UserError: fewer GPUs than a run needs, or a trial of a single run fails.
    """
    slots = local_slots(plan.choice.device, plan.choice.gpus, workers)
    sets = len({slot.get("CUDA_VISIBLE_DEVICES", number) for number, slot in enumerate(slots)})
    on_gpu = "CUDA_VISIBLE_DEVICES" in slots[0]
    if workers is None and plan.choice.gpus == 1 and on_gpu:
        waiting = [run for run in plan.runs if run.kimg > PROBE_KIMG["cuda"] and not run.look().finished]  # shorter ones are made sooner than tried
        most = min(SHARED_AT_MOST, -(-len(waiting) // sets))
        if most > 1 and (number := _best_sharing(waiting, most, slots[0], speed, say if measure else None)) > 1:
            say(f"{number} runs share a GPU: together they train faster than fewer would. --workers={sets} makes one at a time on each.")
            slots = local_slots(plan.choice.device, plan.choice.gpus, sets * number)
    speed.sharing, speed.threads = (-(-len(slots) // sets), 1) if on_gpu else (1, int(slots[0]["OMP_NUM_THREADS"]))
    return slots


def best_sharing(seconds: Sequence[float | None]) -> int:
    """The number of runs at once after which one more does not raise what they train together by `WORTH`.

    Args:
        seconds: per kimg of each run where one, two, three ... share a GPU; None: they do not fit.
    """
    best, together = 1, 0.0
    for number, value in enumerate(seconds, start=1):
        if value is None or number / value < WORTH * together:
            break
        best, together = number, number / value
    return best


def _best_sharing(waiting: Sequence[PlannedRun], most: int, environment: Mapping[str, str], speed: Speed, say: Say | None) -> int:
    """How many of the waiting runs should share a GPU, by the kind that most are of. What is not known is tried, but for `say` None."""
    kind, _ = collections.Counter(map(cost_class, waiting)).most_common(1)[0]
    run = next(run for run in waiting if cost_class(run) == kind)
    seconds: list[float | None] = []
    while len(seconds) < most and best_sharing(seconds) >= len(seconds):
        number = len(seconds) + 1
        shared = cost_class(run, number)
        if shared not in speed.training:
            if say is None:
                break
            say(f"Measuring how fast {number} run(s) at once train on a GPU: {kind}")
            try:
                with tempfile.TemporaryDirectory(prefix="probe-") as folder:
                    speed.training[shared] = _train_a_bit(run, number, environment, pathlib.Path(folder))
            except UserError as error:
                if number == 1:
                    raise
                say(f"{number} at once do not work here: {error}")
                speed.training[shared] = None
            speed.save()
        seconds.append(speed.training[shared])
    return best_sharing(seconds)


def probe(plan: Plan, speed: Speed, environment: Mapping[str, str], say: Say) -> None:
    """Measures what a plan needs and is not known: trains a bit of one run of each kind, beside as many others as share its GPU, and
    measures its snapshots.

    Raises:
        UserError: a probe fails.
    """
    waiting = [run for run in plan.runs if not run.look().is_measured]
    kinds = {speed.kind(run): run for run in reversed(waiting) if speed.kind(run) not in speed.training}
    covered = {*speed.measuring, *(metrics for run in kinds.values() for metrics in metric_classes(run))}
    for run in waiting:
        if not metric_classes(run).keys() <= covered:
            kinds[speed.kind(run)] = run
            covered |= metric_classes(run).keys()
    with_metrics = bool(kinds) and _can_measure(plan, say)
    for number, (kind, run) in enumerate(kinds.items(), start=1):
        say(f"Measuring this machine's speed, {number} of {len(kinds)}: {kind}")
        with tempfile.TemporaryDirectory(prefix="probe-") as folder:
            speed.training[kind] = _train_a_bit(run, speed.sharing, environment, pathlib.Path(folder))
            if with_metrics:
                _measure_a_bit(run, speed, environment, pathlib.Path(folder) / "0")
        speed.save()


def _train_a_bit(run: PlannedRun, number: int, environment: Mapping[str, str], folder: pathlib.Path) -> float:
    """Seconds per kimg of each of `number` copies of a run at once, made in folders 0, 1, ... of the given one. Raises UserError if one fails."""
    stop = Stop()
    timer = threading.Timer(PROBE_SECONDS, stop.set)
    timer.daemon = True
    timer.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(number) as pool:
            copies = [pool.submit(_train_copy, run, folder / str(copy), environment, stop) for copy in range(number)]
            try:
                speeds = [copy.result() for copy in concurrent.futures.as_completed(copies)]
            finally:
                stop.set()  # the pool waits for all of them, also after an interrupt
    finally:
        timer.cancel()
    if None in speeds:
        raise UserError(f"a run of {cost_class(run, number)} does not make one step in {PROBE_SECONDS} seconds here; take a smaller budget")
    return statistics.mean(speeds)


def _train_copy(run: PlannedRun, place: pathlib.Path, environment: Mapping[str, str], stop: Stop) -> float | None:
    """Seconds per kimg of a bit of a run until it is done or stopped; None if it made no step."""
    place.mkdir()
    kimg = min(PROBE_KIMG.get(cost_class(run).partition(",")[0], 1), run.kimg)
    values = {"--outdir": place.as_posix(), "--kimg": kimg, "--tick": max(kimg // PROBE_TICKS, 1), "--snap": 1000}
    try:
        execute([str(SCRIPTS / "train.py"), *_replaced(run.arguments, values)], place / OUTPUT, environment, stop)
    except UserError:
        if not stop.is_set():
            stop.set()  # the others are of no use any more
            raise
    paths = run_folders(place)
    return (sec_per_kimg(paths[-1]) or first_step(paths[-1], run)) if paths else None


def _measure_a_bit(run: PlannedRun, speed: Speed, environment: Mapping[str, str], place: pathlib.Path) -> None:
    """Adds the seconds that the run's metrics take of a snapshot that `_train_copy` left in a folder, if it left one."""
    path = run_folders(place)[-1]
    snapshots = RunDir(path).snapshots()
    for kind, metrics in metric_classes(run).items() if snapshots else ():
        if kind not in speed.measuring:
            network = path if metrics == run.metrics else RunDir(path).snapshot(snapshots[-1])
            start = time.perf_counter()
            execute(metrics_command(run, network, metrics), place / OUTPUT, environment)
            speed.measuring[kind] = (time.perf_counter() - start) / (len(snapshots) if metrics == run.metrics else 1)


def first_step(path: pathlib.Path, run: PlannedRun) -> float | None:
    """Seconds per kimg by the phases of the first step alone, which is slower than those that follow; None if it was not made."""
    stats = stats_lines(path)
    if not stats:
        return None
    phases = {name: stats[0].get(f"Timing/{name}", {}).get("mean", 0) for name in ("Gmain", "Dmain", "Greg", "Dreg")}
    milliseconds = phases["Gmain"] + phases["Dmain"] + phases["Greg"] / 4 + phases["Dreg"] / 16
    return milliseconds / run.options["batch_size"]


def _can_measure(plan: Plan, say: Say) -> bool:
    """Whether the detectors are at hand; if not, says why the time that metrics take stays unknown."""
    try:
        check_detectors(parse_metrics(plan.metrics, plan.budget.detector))
        return True
    except UserError as error:
        say(f"The time that metrics take cannot be measured: {error}")
        return False


def _replaced(arguments: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Arguments with other values for some options."""
    kept = [argument for argument in arguments if argument.partition("=")[0] not in values]
    return [*kept, *(f"{name}={value}" for name, value in values.items())]
