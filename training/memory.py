"""What is said when there is no memory left for a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dnnlib import EasyDict, UserError
from torch_utils.allocator import is_out_of_memory


@contextlib.contextmanager
def memory_explained(args: EasyDict, device: torch.device) -> Iterator[None]:
    """Turns running out of memory within the block into a UserError that names --batch-gpu, and --graphs where that is on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        graphs = "--graphs=off, which takes less, or " if args.get("graphs") == "on" else ""
        choice = f"free memory there and give the same command again, or start a new run with {graphs}a lower --batch-gpu"
        raise UserError(f"out of memory on {device} at --batch-gpu={args.batch_gpu}: {choice}") from error
