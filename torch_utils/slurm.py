"""Slurm: the tasks of a step that `srun` started become ranks, as if torchrun had started them.

A batch script, an interactive shell and a step of one task are no ranks, though Slurm numbers these too: what tells them apart is how
many tasks the step has, which a batch script is not told and a shell is told to be one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from dnnlib import UserError

FIRST_PORT, PORTS = 20000, 10000  # below the range from which systems hand out ports of their own


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _expand(name: str) -> list[str]:
    """One entry of a node list, the first bracket expanded first."""
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\](.*)", name)
    if match is None:
        if not name or set(name) & set("[]"):
            raise ValueError(name)
        return [name]
    head, numbers, tail = match.groups()
    middles = []
    for part in numbers.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if span is None or (span[2] is not None and int(span[2]) < int(span[1])):
            raise ValueError(name)
        middles += [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2] or span[1]) + 1)]
    tails = _expand(tail) if tail else [""]
    return [head + middle + end for middle in middles for end in tails]


def expand_hosts(text: str) -> list[str]:
    """The hosts of a Slurm node list in order: `n[08-10,12],gpu1` is n08, n09, n10, n12, gpu1. Raises UserError if it is no such list."""
    try:
        return [host for name in _split_outside_brackets(text) for host in _expand(name)]
    except ValueError as error:
        raise UserError(f"Slurm's node list {text!r} cannot be read at {str(error)!r}; start the ranks by torchrun") from error


def ranks_of_step(environment: Mapping[str, str]) -> dict[str, str] | None:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of this task, or None where the task is not one of several that srun started.

    The address is the first host of the step and the port follows from the job and the step; either may be set by the user instead.

    Raises:
        UserError: the node list cannot be read.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks < 2 or not {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID"} <= environment.keys():
        return None
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    number = 31 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or expand_hosts(hosts)[0],
        "MASTER_PORT": environment.get("MASTER_PORT") or str(FIRST_PORT + number % PORTS),
    }


def adopt_step() -> None:
    """Gives this process torchrun's variables if srun started it as one of several tasks and torchrun has not set them. Raises UserError as above."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.update(ranks_of_step(os.environ) or {})
