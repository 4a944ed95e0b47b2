"""The native upfirdn2d as torch sees it; `torch_utils.ops.upfirdn2d` differentiates it. The structure mirrors csrc/abi.h."""

from __future__ import annotations

import ctypes
import functools

import torch

from torch_utils.ops import backend
from torch_utils.ops.native import DTYPE_NUMBERS, NAMESPACE, call, declare
from torch_utils.ops.upfirdn2d import output_size

_int32, _int64, _double = ctypes.c_int32, ctypes.c_int64, ctypes.c_double


class _Upfirdn2dArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "fw", "fh", "separable", "up_x", "up_y", "down_x", "down_y", "flip")),
        *((name, _int64) for name in ("n", "c", "in_h", "in_w", "out_h", "out_w", "pad_x0", "pad_y0")),
        *((name, _int64 * 4) for name in ("x_stride", "y_stride")),
        ("gain", _double),
    ]


def _result_shape(x: torch.Tensor, f: torch.Tensor, up, down, padding) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the result: in channels_last if `x` is laid out like that, possibly with gaps, else in NCHW."""
    n, c, *_ = x.shape
    h, w = output_size(x, f, up, down, padding)
    if x.stride(1) == 1 and c > 1 and not x.is_contiguous():
        return (n, c, h, w), (h * w * c, 1, w * c, c)
    return (n, c, h, w), (c * h * w, h * w, w, 1)


@functools.lru_cache(maxsize=512)
def _arguments(dtype, x_shape, x_stride, y_shape, y_stride, f_shape, up, down, padding, flip_filter, gain):
    """A pointer to the structure, kept because it is the same in every step of a training run."""
    (n, c, in_h, in_w), (_, _, out_h, out_w), fw, fh = x_shape, y_shape, f_shape[-1], f_shape[0]
    numbers = (DTYPE_NUMBERS[dtype], fw, fh, len(f_shape) == 1, *up, *down, flip_filter, n, c, in_h, in_w, out_h, out_w, padding[0], padding[2])
    return ctypes.byref(_Upfirdn2dArgs(*numbers, (_int64 * 4)(*x_stride), (_int64 * 4)(*y_stride), gain))


def _run(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    shape, strides = _result_shape(x, f, up, down, padding)
    y = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    if x.numel() == 0 or y.numel() == 0:
        return y.zero_()
    f = f.contiguous()
    args = _arguments(x.dtype, x.shape, x.stride(), shape, strides, f.shape, tuple(up), tuple(down), tuple(padding), flip_filter, gain)
    call("upfirdn2d", x, args, x, f, y)
    return y


def _fake(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    return x.new_empty_strided(*_result_shape(x, f, up, down, padding))


_OPS = {
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor": (
        _run,
        _fake,
    ),
}
_declarations = torch.library.Library(NAMESPACE, "FRAGMENT")
declare(_declarations, _OPS)
backend.register_native("upfirdn2d", getattr(torch.ops, NAMESPACE).upfirdn2d.default)
