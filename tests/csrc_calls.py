"""The C interface of torch_utils/ops/csrc for the tests: compiles it with g++ and calls it on tensors, without the loader."""

from __future__ import annotations

import ctypes
import math
import pathlib
import subprocess
import types
from collections.abc import Iterable

import torch

from torch_utils.ops.bias_act import ACTIVATIONS
from torch_utils.ops.upfirdn2d import filter_size

CSRC = pathlib.Path(__file__).parent.parent / "torch_utils" / "ops" / "csrc"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FLAGS = ["-std=c++17", "-fopenmp", "-fno-math-errno", "-fPIC", "-Wall", "-Wextra", "-Werror"]


class Functions(types.SimpleNamespace):
    """Functions of a library by name, None where it has none of that name."""

    def __getattr__(self, name: str) -> None:
        return None


class Upfirdn2dArgs(ctypes.Structure):
    """The struct of abi.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ["dtype", "fw", "fh", "separable", "up_x", "up_y", "down_x", "down_y", "flip"]]
    _fields_ += [(name, ctypes.c_int64) for name in ["n", "c", "in_h", "in_w", "out_h", "out_w", "pad_x0", "pad_y0"]]
    _fields_ += [("x_stride", ctypes.c_int64 * 4), ("y_stride", ctypes.c_int64 * 4), ("gain", ctypes.c_double)]


class BiasActArgs(ctypes.Structure):
    """The struct of abi.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ["dtype", "act", "order"]]
    _fields_ += [(name, ctypes.c_int64) for name in ["size", "channels", "step"]]
    _fields_ += [(name, ctypes.c_double) for name in ["alpha", "gain", "clamp"]]


def compiled(target: pathlib.Path, sources: Iterable[pathlib.Path], *flags: str) -> pathlib.Path:
    """Compiles C++ sources with g++ and returns the target."""
    command = ["g++", *FLAGS, *flags, f"-I{CSRC}", *map(str, sources), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


def declared(library: ctypes.CDLL) -> Functions:
    """The functions of a CPU library, or of csrc_threads.cpp, with their types. Apart from what others declare of the same library."""
    functions = {}
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, signature in {
        "upfirdn2d_cpu": [pointer] * 4 + [number],
        "bias_act_cpu": [pointer] * 7 + [number],
        "upfirdn2d_threads": [pointer] * 4 + [number],
        "bias_act_threads": [pointer] * 3 + [number],
        "fits_32_bits_threads": [pointer] * 2,
    }.items():
        if hasattr(library, name):
            functions[name] = ctypes.CFUNCTYPE(number, *signature)((name, library))
    return Functions(**functions)


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's numbers are; None for none."""
    return None if tensor is None else tensor.data_ptr()


def upfirdn2d_args(x, f, y, up, down, padding, flip, gain) -> Upfirdn2dArgs:
    """The struct for tensors x, f, y, with up, down as (x, y) and padding as (x0, x1, y0, y1)."""
    args = Upfirdn2dArgs(DTYPES[x.dtype], *filter_size(f), f.ndim == 1, *up, *down, flip, *x.shape, *y.shape[2:], padding[0], padding[2])
    args.x_stride[:], args.y_stride[:], args.gain = x.stride(), y.stride(), gain
    return args


def output_like(x, f, up, down, padding) -> torch.Tensor:
    """An uninitialised result of upfirdn2d, in the layout of x."""
    (fw, fh), (x0, x1, y0, y1) = filter_size(f), padding
    size = [*x.shape[:2], (x.shape[2] * up[1] + y0 + y1 - fh) // down[1] + 1, (x.shape[3] * up[0] + x0 + x1 - fw) // down[0] + 1]
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.full(size, math.nan, dtype=x.dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def upfirdn2d(call, x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip=False, gain=1.0, last=1, out=None) -> torch.Tensor:
    """The op by way of `call`, upfirdn2d_cpu with `last` threads, or upfirdn2d_threads with `last` for several channels at once."""
    y = output_like(x, f, up, down, padding) if out is None else out
    args = upfirdn2d_args(x, f, y, up, down, padding, flip, gain)
    assert call(ctypes.byref(args), address(x), address(f), address(y), last) == 0
    return y


def bias_act_args(like, dim, act, alpha, gain, clamp, order) -> BiasActArgs:
    """The struct for operands like the tensor `like`."""
    args = BiasActArgs(DTYPES[like.dtype], list(ACTIVATIONS).index(act), order, like.numel(), like.shape[dim], like.stride(dim))
    args.alpha, args.gain, args.clamp = alpha, gain, -1.0 if clamp is None else clamp
    return args


def bias_act(library, args, x, b, saved_y=None, dy=None, ddy=None, threads=1, wide=False) -> torch.Tensor:
    """The op or a derivative; x may be None where saved_y is not. A library of csrc_threads.cpp may take several elements at once."""
    out = torch.full_like(dy if x is None else x, math.nan)
    operands = [address(t) for t in (x, b, saved_y, dy, ddy)]
    if library.bias_act_cpu:
        error = library.bias_act_cpu(ctypes.byref(args), *operands, address(out), threads)
    else:
        error = library.bias_act_threads(ctypes.byref(args), (ctypes.c_void_p * 5)(*operands), address(out), wide)
    assert error == 0
    return out
