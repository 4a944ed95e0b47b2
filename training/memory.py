"""What is said when there is no memory left for a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dnnlib import EasyDict, UserError

# How PyTorch's RuntimeErrors begin or go on where the system has refused memory.
REFUSALS = ("can't allocate memory", "bad_alloc", "CUDA out of memory", "MPS backend out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSALS)


@contextlib.contextmanager
def memory_explained(args: EasyDict, device: torch.device) -> Iterator[None]:
    """Turns running out of memory within the block into a UserError that names --batch-gpu."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        choice = "free memory there and give the same command again, or start a new run with a lower --batch-gpu"
        raise UserError(f"out of memory on {device} at --batch-gpu={args.batch_gpu}: {choice}") from error
