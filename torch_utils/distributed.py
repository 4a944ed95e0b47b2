"""Ranks: joining a group started by torchrun or srun, starting local ranks, and exchanging gradients in one flat message.

Ranks that wait for one that is gone or hangs are ended by the roll call (torch_utils.roll_call), not by timeouts of the messages: rank 0
may be busy with metrics for hours while the others wait for it in good order.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from dnnlib import UserError
from dnnlib.cores import available_cores
from dnnlib.log import say_at_last
from dnnlib.signals import STOP_SIGNALS, exit_code
from torch_utils.roll_call import RollCall

JOIN_SECONDS = 600.0  # within which all ranks must have come: machines that start cold need minutes
LEAVE_SECONDS = 30.0  # within which a rank that fails is to have left: others that are gone may keep it for as long as a message may take
MESSAGE_TIMEOUT = datetime.timedelta(days=7)

_roll_call: RollCall | None = None


def launched() -> bool:
    """True in a process that torchrun started, or srun after `slurm.adopt_step`."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """This process's rank, 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def announced_world_size() -> int:
    """Processes that were started together, before the group is joined; 1 if this one was started alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def announced_first() -> bool:
    """Whether this process will be rank 0, before the group is joined."""
    return not launched() or os.environ.get("RANK") == "0"


def launch_local(script: str, arguments: Sequence[str], num_ranks: int) -> NoReturn:
    """Starts `script` with `arguments` in `num_ranks` processes on this machine through torch's own launcher, waits, and ends this process.

    The exit code is 0, or that of the first rank that failed (each prints its own reason). The process ends at once: the launcher's store
    and timers keep threads of their own, which now and then abort an interpreter that shuts down beneath them.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(available_cores() // num_ranks, 1)))
    # SIGQUIT, which ends a process at once, has to be among them: ranks have sessions of their own and would outlive the launcher.
    signals = [number.name for number in STOP_SIGNALS] + ["SIGQUIT"] * hasattr(signal, "SIGQUIT")
    passed_on = [f"--signals-to-handle={','.join(signals)}"] if hasattr(LaunchConfig, "signals_to_handle") else []  # torch 2.9 may not have it
    code = 0
    try:
        torchrun(["--standalone", f"--nproc-per-node={num_ranks}", *passed_on, script, *arguments])
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        if failure.exitcode < 0:
            say_at_last(f"Error: rank {number} was ended by {signal.Signals(-failure.exitcode).name}")
        elif code not in map(exit_code, STOP_SIGNALS):
            say_at_last(f"Error: rank {number} ended with exit code {code}; its own message is above")
    except SignalException as stop:
        code = exit_code(stop.sigval)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            stream.flush()
    os._exit(code)


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank, if it is to have one: that of its number on this machine, or the only one that its launcher lets it see.

    It becomes the process's current device. To be called before anything runs on a GPU: whatever runs on that of another rank keeps memory there.

    Raises:
        UserError: this machine has fewer GPUs than local ranks.
    """
    if device.type != "cuda" or not launched():
        return device
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if count == 1 and os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ["WORLD_SIZE"]:
        local_rank = 0  # with --gpus-per-task, Slurm shows each task its own GPU alone
    if local_rank >= count:
        raise UserError(f"local rank {local_rank} needs a GPU of its own, this machine has {count}; lower --gpus")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def join(device: torch.device, rank_timeout: float = 0) -> torch.device:
    """Joins the group that torchrun or srun announced (nccl on CUDA, gloo elsewhere); returns this rank's device.

    Args:
        rank_timeout: seconds that a rank may be stuck before the others end (and half of that silent); 0: they wait for ever.

    Raises:
        UserError: this machine has fewer GPUs than local ranks, or not all ranks have come.
    """
    global _roll_call
    if not launched():
        return device
    device = own_device(device)
    address = os.environ["MASTER_ADDR"]
    try:
        store, own_rank, size = next(rendezvous("env://", timeout=datetime.timedelta(seconds=JOIN_SECONDS)))
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        if rank_timeout > 0 and size > 1:
            _roll_call = RollCall(store, own_rank, size, address, rank_timeout, JOIN_SECONDS)
    except dist.DistError as error:
        raise UserError(f"the ranks cannot meet at {address}:{os.environ['MASTER_PORT']}: {' '.join(str(error).split())[:200]}") from error
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=own_rank, world_size=size, timeout=MESSAGE_TIMEOUT)
    return device


def leave(error: BaseException | None = None, code: int = 1) -> None:
    """Leaves the group, if there is one, while the interpreter is still whole.

    Args:
        error: None: all ranks come here, and none goes before the last has. Else what ends this rank, when others may be stuck or gone.
        code: after an error, the exit code with which this rank will end and the others shall. A rank of a group that is still there after
            `LEAVE_SECONDS` is ended.
    """
    global _roll_call
    if error is None and world_size() > 1:
        arrive()
        dist.barrier()
    if _roll_call is not None:
        _roll_call.leave(error, code)
        _roll_call = None
    if dist.is_available() and dist.is_initialized():
        if error is not None:
            timer = threading.Timer(LEAVE_SECONDS, _give_up, [error, code])
            timer.daemon = True
            timer.start()
        dist.destroy_process_group()


def advise(text: str) -> None:
    """Says what a user can do when a rank is lost, the end of the sentence that the others print."""
    if _roll_call is not None:
        _roll_call.advice = text


def _give_up(error: BaseException, code: int) -> NoReturn:
    """Says why this rank ends, which nobody else will, and ends it."""
    try:
        say_at_last("".join(traceback.format_exception(error)).rstrip())
    finally:
        os._exit(code)


def arrive() -> None:
    """To be called before each exchange, by all ranks alike: it shows who is late."""
    if _roll_call is not None:
        _roll_call.arrive()


def stepped(place: str) -> None:
    """Says that a step is done and how far the run is now, such as '12.3 kimg'."""
    if _roll_call is not None:
        _roll_call.stepped(place)


def busy(task: str) -> contextlib.AbstractContextManager:
    """Within: this rank does what may take longer than a step, such as metrics, and the others do not give it up."""
    return contextlib.nullcontext() if _roll_call is None else _roll_call.busy(task)


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    arrive()
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    arrive()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks_(value: torch.Tensor) -> torch.Tensor:
    """Adds up a tensor over ranks, in place, and returns it."""
    if world_size() > 1:
        arrive()
        dist.all_reduce(value)
    return value


def mean_over_ranks_(value: torch.Tensor) -> torch.Tensor:
    """Averages a tensor over ranks, in place, and returns it."""
    return sum_over_ranks_(value).div_(world_size()) if world_size() > 1 else value


def exchange_gradients(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Averages gradients over ranks and makes them finite: NaN becomes 0, infinities +-1e5 (as in StyleGAN2-ADA).

    All gradients go into one flat tensor, of which each parameter's .grad is a view afterwards: one message between ranks, and one
    kernel on a GPU where there would be one per parameter. A parameter without a gradient takes part with zeros, so that all ranks
    send the same message and Adam's moments decay for it as for the others.

    Returns:
        How many values were not finite, a scalar on the gradients' device.
    """
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    mean_over_ranks_(flat)
    bad = (~torch.isfinite(flat)).sum()
    torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)
    return bad
