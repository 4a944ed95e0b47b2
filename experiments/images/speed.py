"""How long things take on this machine: seconds per kimg of training and per measured snapshot, from a short probe, kept in DIR/speed.json."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dnnlib import UserError, atomic_write_text
from dnnlib.json_files import read_json, read_json_lines
from experiments.images.commands import parse_options
from experiments.images.folder_lock import wait_for
from experiments.images.plan import Plan, PlannedRun
from experiments.images.run_state import run_folders
from experiments.images.work import SCRIPTS, Stop, execute, metrics_command
from metrics.registry import check_detectors, parse_metrics
from training import config
from training.run_files import RunDir

SPEED_FILE = "speed.json"
PROBE_SECONDS = 180  # after which the first step has to do
PROBE_KIMG = {"cuda": 12}  # on a GPU the first steps choose kernels and record graphs
# Of the other options it counts that they are given.
BY_VALUE = ("--aug", "--precision", "--objective", "--pairing-dim", "--pairing-width", "--pairing-view", "--pairing-mode", "--pairing-space")


def machine() -> str:
    """This machine, as far as speed depends on it."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    processor = _processor()
    return ", ".join([platform.node(), f"{os.cpu_count()} x {processor}", *(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))])


def _processor() -> str:
    """Its name where Linux tells it, else its kind."""
    file = pathlib.Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")] if file.is_file() else []
    return names[0] if names else platform.machine()


def cost_class(run: PlannedRun) -> str:
    """What a run's seconds per kimg depend on: device, processes, preset and the parts of the method, not their weights."""
    options, _ = parse_options(run.arguments)
    parts = [config.choose_device(options.device).type if options.device == "auto" else options.device, f"{run.gpus} process(es)", options.cfg]
    for argument in run.arguments:
        name, _, value = argument.partition("=")
        if name in BY_VALUE:
            parts.append(f"{name[2:]} {value}")
        elif name.startswith(("--pairing-", "--ms-", "--r2-")):
            parts.append(name[2:])
    return ", ".join(parts)


def metric_class(run: PlannedRun, metrics: Sequence[str]) -> str:
    """What the seconds that a run's snapshot takes to be measured depend on."""
    return f"{cost_class(run).rpartition(', aug')[0]}: {','.join(metrics)} by {run.detector or 'their own detectors'}"


def metric_classes(run: PlannedRun) -> dict[str, tuple[str, ...]]:
    """The metrics of every snapshot, and those of the last alone where there are any, each by their `metric_class`."""
    return {metric_class(run, metrics): metrics for metrics in (run.metrics, run.end_metrics) if metrics}


@dataclasses.dataclass(frozen=True)
class Left:
    """Seconds of training and of measuring that a run takes still; None: not known."""

    training: float | None
    measuring: float | None

    @property
    def total(self) -> float | None:
        """Both."""
        return None if self.training is None or self.measuring is None else self.training + self.measuring


class Speed:
    """Measured seconds of this machine.

    Args:
        out: results folder that holds the file.
    """

    def __init__(self, out: pathlib.Path):
        self.path, self.name = out / SPEED_FILE, machine()
        machines = _read(self.path)
        own = machines.get(self.name, {"sec_per_kimg": {}, "sec_per_snapshot": {}})
        self.training: dict[str, float] = own["sec_per_kimg"]
        self.measuring: dict[str, float] = own["sec_per_snapshot"]
        self._known = dict(self.training), dict(self.measuring)

    def save(self) -> None:
        """Adds what is new to the file, which other processes may have written meanwhile, and takes over what they found."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with wait_for(self.path.with_suffix(".lock")):
            machines = _read(self.path)
            own = machines.setdefault(self.name, {"sec_per_kimg": {}, "sec_per_snapshot": {}})
            for found, known, kept in zip((self.training, self.measuring), self._known, (own["sec_per_kimg"], own["sec_per_snapshot"])):
                kept |= {kind: seconds for kind, seconds in found.items() if known.get(kind) != seconds}
                found |= kept
            self._known = dict(self.training), dict(self.measuring)
            atomic_write_text(self.path, json.dumps({"machines": machines}, indent=1) + "\n")

    def left(self, run: PlannedRun) -> Left:
        """What is left of a run takes so long."""
        state = run.look()
        to_train = 0 if state.finished else run.kimg - state.kimg
        to_measure = max((state.snapshots if state.finished else run.snapshots) - state.measured, 0)
        ends = int(bool(run.end_metrics) and not (state.finished and state.end_measured))
        parts = [
            _times(number, self.measuring.get(metric_class(run, metrics)))
            for number, metrics in ((to_measure, run.metrics), (ends, run.end_metrics))
        ]
        return Left(_times(to_train, self.training.get(cost_class(run))), None if None in parts else sum(parts))

    def learn(self, run: PlannedRun, path: pathlib.Path) -> None:
        """Takes the speed of a run that has just been made here."""
        if (measured := sec_per_kimg(path)) is not None:
            self.training[cost_class(run)] = measured
            self.save()

    def probe(self, plan: Plan, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Measures what the plan needs and is not known: trains a bit of one run of each kind, and measures its snapshots.

        Raises:
            UserError: a probe fails.
        """
        waiting = [run for run in plan.runs if not run.look().is_measured]
        kinds = {cost_class(run): run for run in reversed(waiting) if cost_class(run) not in self.training}
        covered = {*self.measuring, *(metrics for run in kinds.values() for metrics in metric_classes(run))}
        for run in waiting:
            if not metric_classes(run).keys() <= covered:
                kinds[cost_class(run)] = run
                covered |= metric_classes(run).keys()
        with_metrics = bool(kinds) and _can_measure(plan, say)
        for number, (kind, run) in enumerate(kinds.items(), start=1):
            say(f"Measuring this machine's speed, {number} of {len(kinds)}: {kind}")
            self._probe_run(run, environment, with_metrics)
            self.save()

    def _probe_run(self, run: PlannedRun, environment: Mapping[str, str], with_metrics: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="probe-") as folder:
            place = pathlib.Path(folder)
            output = place / "output.txt"
            kimg = min(PROBE_KIMG.get(cost_class(run).partition(",")[0], 1), run.kimg)
            arguments = _replaced(run.arguments, {"--outdir": place.as_posix(), "--kimg": kimg, "--tick": max(kimg // 3, 1), "--snap": 1000})
            with _Deadline(PROBE_SECONDS) as stop:
                try:
                    execute([str(SCRIPTS / "train.py"), *arguments], output, environment, stop)
                except UserError:
                    if not stop.is_set():
                        raise
            paths = run_folders(place)
            speed = (sec_per_kimg(paths[-1]) or first_step(paths[-1], run)) if paths else None
            if speed is None:
                raise UserError(f"a run of {cost_class(run)} does not make one step in {PROBE_SECONDS} seconds here; take a smaller budget")
            self.training[cost_class(run)] = speed
            snapshots = RunDir(paths[-1]).snapshots()
            if not with_metrics or not snapshots:
                return
            for kind, metrics in metric_classes(run).items():
                if kind not in self.measuring:
                    network = paths[-1] if metrics == run.metrics else RunDir(paths[-1]).snapshot(snapshots[-1])
                    start = time.time()
                    execute(metrics_command(run, network, metrics), output, environment)
                    self.measuring[kind] = (time.time() - start) / (len(snapshots) if metrics == run.metrics else 1)


class _Deadline:
    """A `Stop` that is set after some seconds."""

    def __init__(self, seconds: float):
        self.stop = Stop()
        self.timer = threading.Timer(seconds, self.stop.set)
        self.timer.daemon = True

    def __enter__(self) -> Stop:
        self.timer.start()
        return self.stop

    def __exit__(self, *_) -> None:
        self.timer.cancel()


def _can_measure(plan: Plan, say: Callable[[str], None]) -> bool:
    """Whether the detectors are at hand; if not, says why the time that metrics take stays unknown."""
    try:
        check_detectors(parse_metrics(plan.metrics, plan.budget.detector))
        return True
    except UserError as error:
        say(f"The time that metrics take cannot be measured: {error}")
        return False


def _times(number: int, seconds: float | None) -> float | None:
    return 0.0 if number == 0 else None if seconds is None else number * seconds


def first_step(path: pathlib.Path, run: PlannedRun) -> float | None:
    """Seconds per kimg by the phases of the first step alone, which is slower than those that follow; None if it was not made."""
    stats = stats_lines(path)
    if not stats:
        return None
    phases = {name: stats[0].get(f"Timing/{name}", {}).get("mean", 0) for name in ("Gmain", "Dmain", "Greg", "Dreg")}
    milliseconds = phases["Gmain"] + phases["Dmain"] + phases["Greg"] / 4 + phases["Dreg"] / 16
    return milliseconds / run.options["batch_size"]


def sec_per_kimg(path: pathlib.Path) -> float | None:
    """The median over a run's ticks but the first, which starts everything up; None if there is no other."""
    values = [line["Timing/sec_per_kimg"]["mean"] for line in stats_lines(path)[1:]]
    return statistics.median(values) if values else None


def stats_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a run's stats.jsonl."""
    return read_json_lines(path / "stats.jsonl")


def schedule(seconds: Sequence[float], workers: int) -> float:
    """Time until all are done, each worker taking the next in order."""
    busy = [0.0] * max(workers, 1)
    for value in seconds:
        index = busy.index(min(busy))
        busy[index] += value
    return max(busy)


def _replaced(arguments: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Arguments with other values for some options."""
    kept = [argument for argument in arguments if argument.partition("=")[0] not in values]
    return [*kept, *(f"{name}={value}" for name, value in values.items())]


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        machines = read_json(path)["machines"]
        if all({"sec_per_kimg", "sec_per_snapshot"} <= own.keys() for own in machines.values()):
            return machines
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); remove it, speeds are measured again") from error
    raise UserError(f"{path} is not in the expected form; remove it, speeds are measured again")
