"""Ranks: joining a group started by torchrun, starting local ranks, and exchanging gradients in one flat message."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from dnnlib import UserError


def launched() -> bool:
    """True in a process that torchrun started."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process's rank, 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def announced_world_size() -> int:
    """Processes that torchrun announced, before the group is joined; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def launch_local(script: str, arguments: Sequence[str], num_ranks: int) -> NoReturn:
    """Starts `script` with `arguments` in `num_ranks` processes on this machine through torch's own launcher, waits, and ends this process.

    The exit code is 0, or that of the first rank that failed (each prints its own reason). The process ends at once: the launcher's store
    and timers keep threads of their own, which now and then abort an interpreter that shuts down beneath them.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_ranks, 1)))
    code = 0
    try:
        torchrun(["--standalone", f"--nproc-per-node={num_ranks}", script, *arguments])
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        print(f"Error: rank {number} ended with exit code {failure.exitcode}; its own message is above", file=sys.stderr)
        code = max(failure.exitcode, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join(device: torch.device) -> torch.device:
    """Joins the group that torchrun announced (nccl on CUDA, gloo elsewhere); returns this rank's device.

    Raises:
        UserError: this machine has fewer GPUs than local ranks.
    """
    if not launched():
        return device
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"local rank {local_rank} needs a GPU of its own, this machine has {torch.cuda.device_count()}; lower --gpus")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave(together: bool = True) -> None:
    """Leaves the group, if there is one, while the interpreter is still whole.

    Args:
        together: all ranks come here, and none goes before the last has; False: after an error, when others may be stuck or gone.
    """
    if dist.is_available() and dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Adds up a tensor over ranks, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def exchange_gradients(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Averages gradients over ranks and makes them finite: NaN becomes 0, infinities +-1e5 (as in the field).

    All gradients go into one flat tensor, of which each parameter's .grad is a view afterwards: one message between ranks, and one
    kernel on a GPU where there would be one per parameter. A parameter without a gradient takes part with zeros, so that all ranks
    send the same message and Adam's moments decay for it as for the others.

    Returns:
        How many values were not finite, a scalar on the gradients' device.
    """
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    if world_size() > 1:
        dist.all_reduce(flat)
        flat /= world_size()
    bad = (~torch.isfinite(flat)).sum()
    torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)
    return bad
