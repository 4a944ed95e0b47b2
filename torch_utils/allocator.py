"""The memory of tensors: how the C library hands it out on a CPU, and which errors say that there is none left."""

from __future__ import annotations

import ctypes
import functools
import platform

import torch

# Numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GROWTH = 1 << 26  # bytes by which the heap grows
# Variables for a process that is to start. glibc gives blocks of over 128 KiB back to the system when they are freed, and a fresh page costs more
# than the arithmetic done on it.
MALLOC_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
# How PyTorch's RuntimeErrors begin or go on where the system has refused memory.
REFUSALS = ("can't allocate memory", "bad_alloc", "CUDA out of memory", "MPS backend out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSALS)


@functools.cache
def keep_freed_memory() -> bool:
    """Lets this process keep the memory of tensors that it has freed, for the next ones of their size; returns whether it will.

    By default glibc gives the memory of large tensors back to the system, which then hands out zeroed pages one by one at the next
    allocation: up to a fifth of the time of a training step on a CPU. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: GROWTH}
    return min(mallopt(name, value) for name, value in settings.items()) == 1
