"""Where runs are made: on this machine, several at once, or as jobs of Slurm. Both call `work.make_run`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import queue
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from dnnlib import UserError, atomic_write_text
from dnnlib.cores import available_cores
from dnnlib.json_files import read_json
from experiments.images.plan import PlannedRun
from experiments.images.work import ROOT, Outcome, Stop, make_run

Report = Callable[[PlannedRun, str], None]  # told a run and what is being done to it
Slots = tuple[dict[str, str], ...]  # places for runs on this machine: an environment each
SLURM_LOGS = "slurm"
JOBS_FILE = "jobs.json"
POLL_SECONDS = 2.0
QUEUE_SECONDS = 15.0  # between two questions to Slurm, which answers all of a site
QUEUE_TIMEOUT = 60.0
LIVE_STATES = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUE", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
LOST_SECONDS = 30.0  # after a job has left the queue, within which its result must be seen


def local_slots(device: str, gpus: int, workers: int | None) -> Slots:
    """One slot per core, with a thread each, or per GPU (per `gpus` of them); or as many as asked for, that share what there is.

    Raises:
        UserError: fewer GPUs than a run needs.
    """
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if count == 0:
        if device == "cuda":
            raise UserError("--device=cuda: torch finds no CUDA device here, use --device=cpu")
        number = workers or max(available_cores() // gpus, 1)
        threads = str(max(available_cores() // (number * gpus), 1))
        return ({"OMP_NUM_THREADS": threads},) * number
    if gpus > count:
        raise UserError(f"--gpus={gpus}: this machine has {count} GPU(s)")
    sets = [",".join(map(str, range(first, first + gpus))) for first in range(0, count - gpus + 1, gpus)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(visible) >= count and all(visible):  # numbers within what this process may see
        sets = [",".join(visible[int(number)] for number in group.split(",")) for group in sets]
    number = workers or len(sets)
    threads = str(max(available_cores() // (number * gpus), 1))
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
    """Makes each run as a job of Slurm, and yields its outcome when it ends. The jobs go on if this process ends; a later one finds
    them in the queue, or their runs.

    Args:
        parameters: of submitit (`slurm_partition`, `timeout_min`, ...).

    Raises:
        UserError: submitit is not installed, or Slurm is not here or refuses.
    """
    if shutil.which("squeue") is None:
        raise UserError("--launcher=slurm: there is no squeue on this machine; start this where jobs of Slurm can be submitted")
    waiting, refused = submit(runs, out, parameters)
    yield from refused
    for run, job in waiting:
        report(run, f"job {job.job_id}")
    unseen: dict[str, float] = {}
    asked = -math.inf
    while waiting and not stop.is_set():
        for run, job in [(run, job) for run, job in waiting if job.done()]:
            waiting.remove((run, job))
            yield _outcome(run, job)
        # A Slurm without accounting forgets a job that was cancelled or killed, and submitit would wait for it for ever.
        if time.time() - asked >= QUEUE_SECONDS:
            asked = time.time()
            if (queued := queued_jobs([job.job_id for _, job in waiting])) is not None:
                unseen = {job.job_id: unseen.get(job.job_id, asked) for _, job in waiting if job.job_id not in queued}
        for run, job in [(run, job) for run, job in waiting if time.time() - unseen.get(job.job_id, math.inf) > LOST_SECONDS]:
            waiting.remove((run, job))
            yield Outcome(run.key, f"job {job.job_id} is not in the queue any more and left no result; see {job.paths.stderr}")
        time.sleep(POLL_SECONDS if waiting else 0)


def queued_jobs(ids: Sequence[str]) -> set[str] | None:
    """Those of the jobs that Slurm has still, waiting or running; None where it does not answer, which says nothing about them."""
    command = ["squeue", "--noheader", "--jobs", ",".join(ids), "--states", "all", "--format", "%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode == 0:
        rows = [line.split() for line in answer.stdout.splitlines()]
        return {row[0] for row in rows if len(row) == 2 and row[1].startswith(LIVE_STATES)}
    if "invalid job id" not in answer.stderr.lower():
        return None
    if len(ids) == 1:
        return set()  # forgotten
    single = [queued_jobs([name]) for name in ids]
    return None if None in single else set().union(*single)


def submit(runs: Sequence[PlannedRun], out: pathlib.Path, parameters: dict[str, object]) -> tuple[list[tuple], list[Outcome]]:
    """Hands the runs to Slurm, but for those whose jobs of an earlier call are in its queue still.

    Returns:
        Pairs of run and job, and the outcomes of runs that Slurm did not take after it had taken others.

    Raises:
        UserError: as `launch_slurm`.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher=slurm needs the package submitit; install it with pip install submitit") from error
    folder = (out / SLURM_LOGS).absolute()
    known = _read_jobs(folder)
    earlier = {run.key: known[run.key] for run in runs if run.key in known}
    # One that has left its result is over, though Slurm may show it as completing for some seconds.
    earlier = {key: job for key, job in earlier.items() if not submitit.SlurmJob(folder, job).paths.result_pickle.exists()}
    queued = queued_jobs(list(earlier.values())) if earlier else set()
    if queued is None:
        raise UserError("--launcher=slurm: squeue does not say whether jobs of an earlier call still wait; try again when it answers")
    threads = parameters.get("cpus_per_task", parameters.get("slurm_cpus_per_task", 1))
    jobs: list[tuple] = []
    for place, run in enumerate(runs):
        if earlier.get(run.key) in queued:
            jobs.append((run, submitit.SlurmJob(folder, earlier[run.key])))
            continue
        try:
            with _importable_elsewhere():
                executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
                executor.update_parameters(**parameters)
                there = dataclasses.replace(run, parent=run.parent.absolute())
                job = executor.submit(make_run, there, {"OMP_NUM_THREADS": f"{threads}"})
        except (OSError, RuntimeError, ValueError, TypeError, NameError, submitit.core.utils.FailedJobError) as error:
            reason = f"the jobs cannot be handed over: {' '.join(str(error).split())[:300]}"
            if not jobs:
                raise UserError(f"--launcher=slurm: {reason}") from error
            rest = [left for left in runs[place:] if earlier.get(left.key) not in queued]
            jobs += [(left, submitit.SlurmJob(folder, earlier[left.key])) for left in runs[place:] if earlier.get(left.key) in queued]
            return jobs, [Outcome(left.key, reason) for left in rest]
        jobs.append((run, job))
        known[run.key] = job.job_id
        atomic_write_text(folder / JOBS_FILE, json.dumps(known, indent=1) + "\n")
    return jobs, []


def _read_jobs(folder: pathlib.Path) -> dict[str, str]:
    """Key of a run -> its last job. Raises UserError for a damaged file."""
    path = folder / JOBS_FILE
    if not path.is_file():
        return {}
    try:
        jobs = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it if no jobs of this folder wait in Slurm's queue") from error
    if not isinstance(jobs, dict) or not all(isinstance(job, str) and job for job in jobs.values()):
        raise UserError(f"{path} names no jobs; remove it if no jobs of this folder wait in Slurm's queue")
    return jobs


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
