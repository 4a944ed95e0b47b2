"""The native passes of `torch_utils.ops.modulation` as torch sees them. The structure mirrors csrc/modulation.h."""

from __future__ import annotations

import ctypes
import functools

import torch

from torch_utils import custom_ops
from torch_utils.ops.native import DTYPE_NUMBERS, NAMESPACE

_int32, _int64, _double, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _ModulationArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "noise_per_sample")),
        *((name, _int64) for name in ("n", "pixels", "channels")),
        *((name, _double) for name in ("alpha", "gain", "clamp")),
    ]


_POINTERS = {"modulate": 3, "modulate_backward": 5, "epilogue": 5, "epilogue_backward": 9}


@functools.cache
def _library() -> ctypes.CDLL:
    """The CPU library with the passes' signatures declared; an address without one would be cut to 32 bits."""
    library = custom_ops.load("cpu")
    for name, count in _POINTERS.items():
        function = getattr(library, f"{name}_cpu")
        function.argtypes, function.restype = [_pointer] * (1 + count) + [_int32], _int32
    return library


@functools.lru_cache(maxsize=512)
def _arguments(dtype, shape, noise_per_sample, slope, gain, clamp):
    n, channels, height, width = shape
    return ctypes.byref(_ModulationArgs(DTYPE_NUMBERS[dtype], noise_per_sample, n, height * width, channels, slope, gain, clamp))


def _call(name: str, x: torch.Tensor, noise: torch.Tensor | None, numbers: tuple[float, float, float], *tensors: torch.Tensor | None) -> None:
    """Runs a function of the library on the tensors' memory; `x` is in channels_last."""
    library = _library()
    args = _arguments(x.dtype, x.shape, noise is not None and noise.shape[0] == x.shape[0], *numbers)
    error = getattr(library, f"{name}_cpu")(args, *(None if t is None else t.data_ptr() for t in tensors), torch.get_num_threads())
    if error:
        raise RuntimeError(f"native {name}: {library.error_text(error).decode()} (error {error})")


def _dense(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _sums(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


_UNUSED = (1.0, 1.0, -1.0)


def _modulate(x, styles):
    y, (styles,) = _like(x), _dense(styles)
    _call("modulate", x, None, _UNUSED, x, styles, y)
    return y


def _modulate_backward(dy, x, styles):
    dx, dstyles, (styles,) = _like(x), _sums(x), _dense(styles)
    _call("modulate_backward", x, None, _UNUSED, x, styles, dy.contiguous(memory_format=torch.channels_last), dx, dstyles)
    return dx, dstyles


def _epilogue(x, scale, noise, bias, slope, gain, clamp):
    y, (scale, noise, bias) = _like(x), _dense(scale, noise, bias)
    _call("epilogue", x, noise, (slope, gain, clamp), x, scale, noise, bias, y)
    return y


def _epilogue_backward(dy, x, scale, noise, bias, slope, gain, clamp):
    dx, dscale, dbias, dnoise = _like(x), _sums(x), _sums(x), x.new_empty([x.shape[0], 1, *x.shape[2:]], dtype=torch.float32)
    scale, noise, bias = _dense(scale, noise, bias)
    dy = dy.contiguous(memory_format=torch.channels_last)
    _call("epilogue_backward", x, noise, (slope, gain, clamp), x, scale, noise, bias, dy, dx, dscale, dbias, dnoise)
    return dx, dscale, dbias, dnoise


def _fake_backward(dy, x, *others):
    return _like(x), _sums(x)


def _fake_epilogue_backward(dy, x, *others):
    return _like(x), _sums(x), _sums(x), x.new_empty([x.shape[0], 1, *x.shape[2:]], dtype=torch.float32)


_EPILOGUE = "Tensor x, Tensor scale, Tensor? noise, Tensor? bias, float slope, float gain, float clamp"
_OPS = {
    "modulate(Tensor x, Tensor styles) -> Tensor": (_modulate, lambda x, styles: _like(x)),
    "modulate_backward(Tensor dy, Tensor x, Tensor styles) -> (Tensor, Tensor)": (_modulate_backward, _fake_backward),
    f"epilogue({_EPILOGUE}) -> Tensor": (_epilogue, lambda x, *others: _like(x)),
    f"epilogue_backward(Tensor dy, {_EPILOGUE}) -> (Tensor, Tensor, Tensor, Tensor)": (_epilogue_backward, _fake_epilogue_backward),
}
_declarations = torch.library.Library(NAMESPACE, "FRAGMENT")
for _schema, (_run, _fake) in _OPS.items():
    _name = _schema.partition("(")[0]
    # The result's layout follows from the inputs', so a compiler must hand them over as they were when it traced.
    _declarations.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    _declarations.impl(_name, _run, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_declarations)
ops = getattr(torch.ops, NAMESPACE)
