"""How long things take on this machine: seconds per kimg of training and per measured snapshot, kept in DIR/speed.json."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError, atomic_write_text
from dnnlib.json_files import read_json, read_json_lines
from experiments.images.folder_lock import wait_for
from experiments.images.plan import PlannedRun
from experiments.images.planned_config import parse_options
from experiments.images.run_state import RunState
from training import config

SPEED_FILE = "speed.json"
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


def cost_class(run: PlannedRun, sharing: int = 1, threads: int = 1) -> str:
    """What a run's seconds per kimg depend on: device, processes, preset and the parts of the method, not their weights.

    Args:
        run: which.
        sharing: number of runs on its GPU.
        threads: number of its cores, where there is no GPU.
    """
    options, _ = parse_options(run.arguments)
    parts = [config.choose_device(options.device).type if options.device == "auto" else options.device, f"{run.gpus} process(es)", options.cfg]
    for argument in run.arguments:
        name, _, value = argument.partition("=")
        if name in BY_VALUE:
            parts.append(f"{name[2:]} {value}")
        elif name.startswith(("--pairing-", "--ms-", "--r2-")):
            parts.append(name[2:])
    parts += [f"{sharing} share a GPU"] if sharing > 1 else []
    parts += [f"{threads} threads"] if threads > 1 else []
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

    Attributes:
        training: `cost_class` -> seconds per kimg; None: that number of runs does not fit the GPU.
        measuring: `metric_class` -> seconds per snapshot.
        sharing: number of runs on a GPU, in what is asked and learned of them.
        threads: number of cores of each of them, without a GPU.
    """

    def __init__(self, out: pathlib.Path):
        self.sharing = self.threads = 1
        self.path, self.name = out / SPEED_FILE, machine()
        machines = _read(self.path)
        own = machines.get(self.name, {"sec_per_kimg": {}, "sec_per_snapshot": {}})
        self.training: dict[str, float | None] = own["sec_per_kimg"]
        self.measuring: dict[str, float] = own["sec_per_snapshot"]
        self._known = dict(self.training), dict(self.measuring)

    def save(self) -> None:
        """Adds what is new to the file, which other processes may have written meanwhile, and takes over what they found."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with wait_for(self.path.with_suffix(".lock")):
            machines = _read(self.path)
            own = machines.setdefault(self.name, {"sec_per_kimg": {}, "sec_per_snapshot": {}})
            for found, known, kept in zip((self.training, self.measuring), self._known, (own["sec_per_kimg"], own["sec_per_snapshot"])):
                kept |= {kind: seconds for kind, seconds in found.items() if kind not in known or known[kind] != seconds}
                found |= kept
            self._known = dict(self.training), dict(self.measuring)
            atomic_write_text(self.path, json.dumps({"machines": machines}, indent=1) + "\n")

    def kind(self, run: PlannedRun) -> str:
        """The run's `cost_class` beside as many others as there are."""
        return cost_class(run, self.sharing, self.threads)

    def left(self, run: PlannedRun) -> Left:
        """What is left of a run takes so long."""
        state = run.look()
        if state.archived and not state.finished:  # it cannot go on, and has to be made anew
            state = RunState()
        to_train = 0 if state.finished else run.kimg - state.kimg
        to_measure = max((state.snapshots if state.finished else run.snapshots) - state.measured, 0)
        ends = int(bool(run.end_metrics) and not (state.finished and state.end_measured))
        parts = [
            _times(number, self.measuring.get(metric_class(run, metrics)))
            for number, metrics in ((to_measure, run.metrics), (ends, run.end_metrics))
        ]
        return Left(_times(to_train, self.training.get(self.kind(run))), None if None in parts else sum(parts))

    def learn(self, run: PlannedRun, path: pathlib.Path, since: float = 0.0) -> None:
        """Takes the speed of a run that has been made here since that time. Where runs share a GPU it says little: the last ones have more of it."""
        if self.sharing == 1 and (measured := sec_per_kimg(path, since)) is not None:
            self.training[self.kind(run)] = measured
            self.save()


def join_speeds(out: pathlib.Path, to: pathlib.Path) -> None:
    """Adds the machines of a results folder to those of another. Raises UserError where a file of them is damaged."""
    machines = _read(to / SPEED_FILE)
    for name, own in _read(out / SPEED_FILE).items():
        known = machines.setdefault(name, {})
        machines[name] = {table: known.get(table, {}) | seconds for table, seconds in own.items()}
    if machines:
        atomic_write_text(to / SPEED_FILE, json.dumps({"machines": machines}, indent=1) + "\n")


def _times(number: int, seconds: float | None) -> float | None:
    return 0.0 if number == 0 else None if seconds is None else number * seconds


def sec_per_kimg(path: pathlib.Path, since: float = 0.0) -> float | None:
    """The median over a run's ticks from a Unix time on, but for the first, which starts everything up; None if there is no other."""
    lines = [line for line in stats_lines(path) if line.get("timestamp", since) >= since]  # another machine may have begun the run
    values = [line["Timing/sec_per_kimg"]["mean"] for line in lines[1:]]
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
