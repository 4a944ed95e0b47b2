"""Where runs are made: on this machine, several at once, or as jobs of Slurm. Both call `work.make_run`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from dnnlib import UserError
from experiments.images.commands import ROOT
from experiments.images.plan import PlannedRun
from experiments.images.work import Outcome, Stop, make_run

Report = Callable[[PlannedRun, str], None]  # told a run and what is being done to it
Slots = tuple[dict[str, str], ...]  # places for runs on this machine: an environment each
SLURM_LOGS = "slurm"
POLL_SECONDS = 2.0
LOST_SECONDS = 30.0  # after a job has left the queue, within which its result must be seen


def cores() -> int:
    """Cores that this process may use; a queue or a container may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_slots(device: str, gpus: int, workers: int | None) -> Slots:
    """One slot per core, with a thread each, or per GPU (per `gpus` of them); or as many as asked for, that share what there is.

    Raises:
        UserError: fewer GPUs than a run needs.
    """
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if count == 0:
        if device == "cuda":
            raise UserError("--device=cuda: torch finds no CUDA device here, use --device=cpu")
        number = workers or max(cores() // gpus, 1)
        threads = str(max(cores() // (number * gpus), 1))
        return ({"OMP_NUM_THREADS": threads},) * number
    if gpus > count:
        raise UserError(f"--gpus={gpus}: this machine has {count} GPU(s)")
    sets = [",".join(map(str, range(first, first + gpus))) for first in range(0, count - gpus + 1, gpus)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(visible) >= count and all(visible):  # numbers within what this process may see
        sets = [",".join(visible[int(number)] for number in group.split(",")) for group in sets]
    number = workers or len(sets)
    threads = str(max(cores() // (number * gpus), 1))
    return tuple({"CUDA_VISIBLE_DEVICES": sets[index % len(sets)], "OMP_NUM_THREADS": threads} for index in range(number))


def launch_local(runs: Sequence[PlannedRun], slots: Slots, stop: Stop, report: Report) -> Iterator[Outcome]:
    """Makes the runs on this machine, as many at once as there are slots, in order; yields each outcome as it comes."""
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for environment in slots:
        free.put(environment)

    def work(run: PlannedRun) -> Outcome:
        environment = free.get()
        try:
            return make_run(run, environment, lambda step: report(run, step), stop) if not stop.is_set() else Outcome(run.key, "stopped")
        finally:
            free.put(environment)

    pool = concurrent.futures.ThreadPoolExecutor(len(slots))
    try:
        futures = [pool.submit(work, run) for run in runs]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    finally:
        if any(not future.done() for future in futures):
            stop.set()
        pool.shutdown(cancel_futures=True)


def launch_slurm(runs: Sequence[PlannedRun], out: pathlib.Path, parameters: dict[str, object], stop: Stop, report: Report) -> Iterator[Outcome]:
    """Makes each run as a job of Slurm, and yields its outcome when it ends. The jobs go on if this process ends; a later one finds their runs.

    Args:
        parameters: of submitit (`slurm_partition`, `timeout_min`, ...).

    Raises:
        UserError: submitit is not installed, or Slurm is not here or refuses.
    """
    jobs = submit(runs, out, parameters)
    for run, job in jobs:
        report(run, f"job {job.job_id}")
    waiting, unseen = list(jobs), {}
    while waiting and not stop.is_set():
        for run, job in [(run, job) for run, job in waiting if job.done()]:
            waiting.remove((run, job))
            yield _outcome(run, job)
        # A Slurm without accounting forgets a job that was cancelled or killed, and submitit would wait for it for ever.
        unseen = {job.job_id: unseen.get(job.job_id, time.time()) for _, job in waiting if not _in_queue(job)}
        for run, job in [(run, job) for run, job in waiting if time.time() - unseen.get(job.job_id, math.inf) > LOST_SECONDS]:
            waiting.remove((run, job))
            yield Outcome(run.key, f"job {job.job_id} is not in the queue any more and left no result; see {job.paths.stderr}")
        time.sleep(POLL_SECONDS if waiting else 0)


def _in_queue(job) -> bool:
    """Whether Slurm has the job still; it answers with an error where it has forgotten it."""
    answer = subprocess.run(["squeue", "--noheader", "--jobs", str(job.job_id), "--states", "all", "--format", "%T"], capture_output=True, text=True)
    return any(state in answer.stdout for state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED"))


def submit(runs: Sequence[PlannedRun], out: pathlib.Path, parameters: dict[str, object]) -> list[tuple]:
    """Hands the runs to Slurm; pairs of run and job. Raises UserError as `launch_slurm`."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher=slurm needs the package submitit; install it with pip install submitit") from error
    threads = parameters.get("cpus_per_task", parameters.get("slurm_cpus_per_task", 1))
    try:
        with _importable_elsewhere():
            executor = submitit.AutoExecutor(folder=(out / SLURM_LOGS).absolute(), cluster="slurm")
            executor.update_parameters(**parameters)
            absolute = [dataclasses.replace(run, parent=run.parent.absolute()) for run in runs]
            return [(run, executor.submit(make_run, there, {"OMP_NUM_THREADS": f"{threads}"})) for run, there in zip(runs, absolute)]
    except (OSError, RuntimeError, ValueError, TypeError, NameError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--launcher=slurm: the jobs cannot be handed over: {' '.join(str(error).split())[:300]}") from error


@contextlib.contextmanager
def _importable_elsewhere() -> Iterator[None]:
    """Jobs take over the environment in which they are submitted; within the block it says where this project lies."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _outcome(run: PlannedRun, job) -> Outcome:
    """What a job returned, or why it returned nothing."""
    try:
        return job.result()
    except Exception as error:  # submitit passes on whatever happened on the other machine
        return Outcome(run.key, f"job {job.job_id} failed: {' '.join(str(error).split())[-300:]}")
