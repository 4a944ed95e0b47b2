"""The native passes of `torch_utils.ops.modulation` as torch sees them. The structure mirrors csrc/modulation.h."""

from __future__ import annotations

import ctypes
import functools

import torch

from torch_utils import custom_ops
from torch_utils.ops.modulation import check_shapes, small_dtype
from torch_utils.ops.native import DTYPE_NUMBERS, NAMESPACE, call, declare

_int32, _int64, _double = ctypes.c_int32, ctypes.c_int64, ctypes.c_double


class _ModulationArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "noise_per_sample", "channels_last", "aligned")),
        *((name, _int64) for name in ("n", "pixels", "channels")),
        *((name, _double) for name in ("alpha", "gain", "clamp")),
    ]


@functools.lru_cache(maxsize=512)
def _arguments(dtype, shape, noise_per_sample, channels_last, aligned, slope, gain, clamp):
    n, channels, height, width = shape
    numbers = (DTYPE_NUMBERS[dtype], noise_per_sample, channels_last, aligned, n, height * width, channels, slope, gain, clamp)
    return ctypes.byref(_ModulationArgs(*numbers))


@functools.cache
def _parts_function():
    function = custom_ops.load("cuda").modulation_parts_cuda
    function.argtypes, function.restype = [ctypes.c_void_p] * 3, _int32
    return function


@functools.lru_cache(maxsize=512)
def _parts_on_cuda(*of_arguments) -> tuple[int, int]:
    over_pixels, over_channels = _int64(), _int64()
    error = _parts_function()(_arguments(*of_arguments), ctypes.byref(over_pixels), ctypes.byref(over_channels))
    if error:
        raise RuntimeError(f"native modulation_parts on cuda: error {error}")
    return over_pixels.value, over_channels.value


class _Pass:
    """One pass over `x`, in channels_last or, on CUDA, in NCHW, and over tensors like it. All of them are dense, or are made so.

    Args:
        x: [N, C, H, W].
        noise: of the epilogue.
        numbers: slope, gain and clamp of the epilogue.
        others: tensors that are read along with x, brought into its layout.
    """

    def __init__(self, x, noise=None, numbers=(1.0, 1.0, -1.0), others=()):
        self.layout = _layout(x)
        self.x = x = x.contiguous(memory_format=self.layout)
        self.others = [t.contiguous(memory_format=self.layout) for t in others]
        self.y = _like(x)
        aligned = all(t.data_ptr() % 16 == 0 for t in (x, self.y, *self.others))
        per_sample = noise is not None and noise.shape[0] == x.shape[0]
        self._key = (x.dtype, x.shape, per_sample, self.layout == torch.channels_last, aligned, *numbers)

    def sums(self, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Room for `count` sums over pixels [parts, N, C], and one over channels [parts, N, H * W]. To be added up over the parts."""
        x = self.x
        over_pixels, over_channels = _parts_on_cuda(*self._key) if x.is_cuda and x.numel() else (1, 1)
        new = functools.partial(x.new_empty if x.numel() else x.new_zeros, dtype=small_dtype(x))
        return [new([over_pixels, *x.shape[:2]]) for _ in range(count)], new([over_channels, x.shape[0], x.shape[2] * x.shape[3]])

    def run(self, name: str, *tensors: torch.Tensor | None) -> None:
        """Calls a function of the library."""
        call(name, self.x, _arguments(*self._key), *tensors)


def _layout(x: torch.Tensor) -> torch.memory_format:
    """The layout that `x` has, possibly with gaps, or else is brought into."""
    last = x.is_contiguous(memory_format=torch.channels_last) or x.device.type == "cpu" or (x.stride(1) == 1 and not x.is_contiguous())
    return torch.channels_last if last else torch.contiguous_format


def _dense(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=_layout(x))


def _total(parts: torch.Tensor) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(dim=0)


def _modulate(x, styles):
    check_shapes(x, styles)
    this, (styles,) = _Pass(x), _dense(styles)
    this.run("modulate", this.x, styles, this.y)
    return this.y


def _modulate_backward(dy, x, styles):
    check_shapes(x, styles, dy=dy)
    this, (styles,) = _Pass(x, others=[dy]), _dense(styles)
    (dstyles,), _ = this.sums(1)
    this.run("modulate_backward", this.x, styles, *this.others, this.y, dstyles)
    return this.y, _total(dstyles)


def _epilogue(x, scale, noise, bias, slope, gain, clamp):
    check_shapes(x, scale, noise, bias)
    this, small = _Pass(x, noise, (slope, gain, clamp)), _dense(scale, noise, bias)
    this.run("epilogue", this.x, *small, this.y)
    return this.y


def _epilogue_backward(dy, x, scale, noise, bias, slope, gain, clamp):
    check_shapes(x, scale, noise, bias, dy)
    this, small = _Pass(x, noise, (slope, gain, clamp), [dy]), _dense(scale, noise, bias)
    (dscale, dbias), dnoise = this.sums(2)
    this.run("epilogue_backward", this.x, *small, *this.others, this.y, dscale, dbias, None if noise is None else dnoise)
    dnoise = x.new_empty([0], dtype=dscale.dtype) if noise is None else _total(dnoise).view(len(x), 1, *x.shape[2:])
    return this.y, _total(dscale), dbias.sum(dim=[0, 1]), dnoise


def _fake_forward(x, scale, noise=None, bias=None, *numbers):
    check_shapes(x, scale, noise, bias)
    return _like(x)


def _fake_backward(dy, x, scale, noise=None, bias=None, *numbers):
    check_shapes(x, scale, noise, bias, dy)
    return _like(x), x.new_empty(x.shape[:2], dtype=small_dtype(x))


def _fake_epilogue_backward(dy, x, scale, noise, bias, *numbers):
    dx, dscale = _fake_backward(dy, x, scale, noise, bias)
    dnoise = [0] if noise is None else [x.shape[0], 1, *x.shape[2:]]
    return dx, dscale, dscale.new_empty(x.shape[1:2]), dscale.new_empty(dnoise)


_EPILOGUE = "Tensor x, Tensor scale, Tensor? noise, Tensor? bias, float slope, float gain, float clamp"
_OPS = {
    "modulate(Tensor x, Tensor styles) -> Tensor": (_modulate, _fake_forward),
    "modulate_backward(Tensor dy, Tensor x, Tensor styles) -> (Tensor, Tensor)": (_modulate_backward, _fake_backward),
    f"epilogue({_EPILOGUE}) -> Tensor": (_epilogue, _fake_forward),
    f"epilogue_backward(Tensor dy, {_EPILOGUE}) -> (Tensor, Tensor, Tensor, Tensor)": (_epilogue_backward, _fake_epilogue_backward),
}
_declarations = torch.library.Library(NAMESPACE, "FRAGMENT")
declare(_declarations, _OPS)
ops = getattr(torch.ops, NAMESPACE)
