"""The one seam between an op and its implementations: a policy for the process, and a table of native implementations.

An op that has one function for all of it calls `native(name, x)`; where that gives a callable, it is used instead of the reference. Others,
which are native for some arguments only, ask `is_native`. Either builds or loads the library of native ops for a type of device where that has
not been done; importing this module does neither.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable

import torch

from dnnlib import UserError
from torch_utils.toolchain import BuildError

POLICIES = ("auto", "native", "reference")
# What the native ops compute with, on every type of device that there are any for.
DTYPES = {
    "cpu": frozenset({torch.float32, torch.float64, torch.bfloat16}),
    "cuda": frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
}

_natives: dict[str, Callable] = {}
_policy = "auto"


def register_native(name: str, implementation: Callable) -> None:
    """Registers a faster implementation of the op `name`; it must equal the reference in value and in first and second gradients."""
    _natives[name] = implementation


def set_policy(policy: str) -> None:
    """Chooses the implementations of this process: `reference`, `native` (required), or `auto` (native where they can be built).

    Raises:
        UserError: unknown policy.
    """
    global _policy
    if policy not in POLICIES:
        raise UserError(f"--ops={policy}: unknown, choose one of {', '.join(POLICIES)}")
    _policy = policy


def implementation(device_type: str, try_out: bool = True) -> str:
    """What ops run on devices of a type (`cpu`, `cuda`, ...), `native` or `reference`: for the record of a run.

    Builds or loads the native ops if the policy wants them and that has not been done. To be called before the first step, so that a build
    neither happens in the middle of one nor during the capture of a CUDA graph.

    Args:
        try_out: also run them once, on this process's device. False is for a process that only starts others: what has run on a GPU keeps
            memory there for as long as its process lives.

    Raises:
        UserError: the policy is `native`, and they cannot be had.
    """
    return "native" if is_native(device_type, try_out) else "reference"


def is_native(device_type: str, try_out: bool = True) -> bool:
    """Whether native ops run on devices of this type. As `implementation`."""
    if _policy == "reference" or device_type not in DTYPES:
        return False
    failure = _load(device_type, try_out)
    if failure is not None and _policy == "native":
        raise UserError(f"--ops=native: {failure}; or use --ops=reference")
    return failure is None


# A compiler of graphs shall neither look into this nor guard on it: what is in use does not change while a process trains. The mark is all
# that torch.compiler.assume_constant_result makes, which imports the whole compiler for it: half the time in which a command starts.
is_native._dynamo_marked_constant = True


def native(name: str, x: torch.Tensor) -> Callable | None:
    """The native implementation of the op `name` for tensors like `x` under the current policy, or None: run the reference.

    Raises:
        UserError: the policy is `native`, and there are no native ops to be had for the device.
    """
    device_type = x.device.type
    if not is_native(device_type) or x.dtype not in DTYPES[device_type]:
        return None
    return _natives.get(name)


@functools.cache
def _load(kind: str, try_out: bool) -> BuildError | None:
    """Makes the native ops ready, once; returns why that is impossible, after a warning, or None."""
    worker = torch.utils.data.get_worker_info() is not None
    try:
        # They import this module and the ops that they implement, so they come in at the first use.
        importlib.import_module("torch_utils.ops.native").load(kind, build=not worker, try_out=try_out)
    except BuildError as error:
        if _policy == "auto" and not worker:
            print(f"Warning: the reference ops run instead of native ones: {error}", file=sys.stderr, flush=True)
        return error
    return None
