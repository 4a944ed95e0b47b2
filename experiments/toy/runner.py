"""Trains and measures the models of a study side by side on all cores, and keeps each as a part (experiments.toy.parts).

Models of one method are stacked, ten seeds at a time, and every worker process takes one stack on one core: two workers with a thread each
do about twice what one process with two threads does on matrices of this size.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dnnlib import UserError
from dnnlib.cores import available_cores
from dnnlib.format import format_time
from experiments.toy.measures import NEAREST_K, NUM_SAMPLES, measure
from experiments.toy.methods import Method, find_method
from experiments.toy.parts import Part, load_part, part_path, save_part
from experiments.toy.studies import Study
from experiments.toy.trainer import train
from torch_utils.allocator import MALLOC_VARIABLES

SEEDS_PER_JOB = 10
FILM_SEED = 0
FILM_STEPS = (0, 100, 300, 1000, 3000)  # states that are kept of that seed, besides the last


@dataclasses.dataclass(frozen=True)
class Job:
    """Some seeds of one method in one study, trained as one stack; finished parts go to `out`."""

    study: Study
    method: Method
    seeds: tuple[int, ...]
    out: pathlib.Path


def protocol(study: Study, method: Method) -> dict[str, Any]:
    """All that the figures of a model depend on besides its seed, as JSON holds it."""
    distribution = {"kind": type(study.distribution).__name__, **dataclasses.asdict(study.distribution)}
    if "centres" in distribution:
        distribution["centres"] = [list(centre) for centre in distribution["centres"]]
    settings, terms = dataclasses.asdict(study.settings), dataclasses.asdict(method)
    return {"distribution": distribution, "settings": settings, "method": terms, "k": NEAREST_K, "real": NUM_SAMPLES, "generated": NUM_SAMPLES}


def run_parts(
    study: Study,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: pathlib.Path,
    *,
    again: bool = False,
    workers: int | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, list[Part]]:
    """The parts of all methods under all seeds; those that `out` lacks are trained and measured first.

    Args:
        again: make all anew.
        workers: processes; 0: none but this one. Default is one per core.
        progress: told of every finished stack.

    Returns:
        Method -> parts in the order of `seeds`.

    Raises:
        UserError: unknown method, diverged model, unwritable folder, or a part that was made with other settings; it names the difference.
    """
    chosen = [find_method(name) for name in methods]
    jobs = [job for method in chosen for job in unfinished(study, method, seeds, out, again=again)]
    run_jobs(jobs, workers, progress)
    return {method.name: [load_part(part_path(out, study.name, method.name, seed))[0] for seed in seeds] for method in chosen}


def unfinished(study: Study, method: Method, seeds: Sequence[int], out: pathlib.Path, *, again: bool = False) -> list[Job]:
    """What is left to do of one method. Raises UserError if a part was made with other settings."""
    missing = [seed for seed in seeds if again or not _is_finished(study, method, seed, out)]
    return [Job(study, method, tuple(missing[i : i + SEEDS_PER_JOB]), out) for i in range(0, len(missing), SEEDS_PER_JOB)]


def run_jobs(jobs: Sequence[Job], workers: int | None = None, progress: Callable[[str], None] = print) -> None:
    """Runs all jobs and tells `progress` of each that is done. Raises UserError if a model diverges or a part cannot be written."""
    start = time.time()
    for done, job in enumerate(_finished(jobs, workers), start=1):
        seeds = f"seed {job.seeds[0]}" if len(job.seeds) == 1 else f"seeds {job.seeds[0]} to {job.seeds[-1]}"
        progress(f"{job.study.title}: {job.method.name}, {seeds} ({done} of {len(jobs)}, {format_time(time.time() - start)})")


def run_job(job: Job) -> Job:
    """Trains and measures one stack and writes its parts."""
    study, method = job.study, job.method
    trained = train(method, study.settings, study.distribution, job.seeds, snapshots=FILM_STEPS)
    measured = measure(trained.G, study.distribution, study.settings)
    for index, seed in enumerate(job.seeds):
        own = slice(index, index + 1)
        snapshots = {step: [tensor[own] for tensor in stack] for step, stack in trained.snapshots.items()} if seed == FILM_SEED else {}
        history = {name: values if name == "step" else values[:, index] for name, values in trained.history.items()}
        part = Part(study.name, method.name, seed, measured[index], [tensor[own] for tensor in trained.G], snapshots, history)
        save_part(part, job.out, protocol(study, method))
    return job


def _is_finished(study: Study, method: Method, seed: int, out: pathlib.Path) -> bool:
    path = part_path(out, study.name, method.name, seed)
    if not path.exists():
        return False
    made_by = load_part(path)[1]
    wanted = protocol(study, method)
    if made_by != wanted:
        raise UserError(f"{path} was made with other settings ({difference(made_by, wanted)}); give another --out, or --again to replace it")
    return True


def difference(old: Any, new: Any, name: str = "") -> str:
    """The first place at which two JSON-like values differ, as `settings.lr 0.002 instead of 0.001`; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if found := difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")):
                return found
        return ""
    return "" if old == new else f"{name} {old} instead of {new}"


def _finished(jobs: Sequence[Job], workers: int | None) -> Iterator[Job]:
    """Runs the jobs, the longest first, and yields each when it is done."""
    workers = min(len(jobs), available_cores() if workers is None else workers)
    if workers == 0:
        yield from map(run_job, jobs)
        return
    longest_first = sorted(jobs, key=lambda job: -len(job.seeds) * (1 + job.method.r1 + job.method.r2 + bool(job.method.pairing)))
    with environment(MALLOC_VARIABLES):
        pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        try:
            futures = [pool.submit(run_job, job) for job in longest_first]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that start within; what the user has set stays."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
