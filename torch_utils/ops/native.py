"""What the native ops have in common: how they are loaded, tried out, declared with torch.library, and called in `torch_utils.custom_ops`' libraries.

The ops are in `native_upfirdn2d`, `native_bias_act` and `native_modulation`, which import this module. They have no derivative; those are autograd
functions around them, in `native_bias_act` and, for the others, beside the reference.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import importlib
from collections.abc import Callable, Mapping

import torch

from torch_utils import custom_ops
from torch_utils.ops.bias_act import ACTIVATIONS, NO_CLAMP
from torch_utils.toolchain import BuildError

NAMESPACE = "pairing_gan"
DTYPE_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FORMS = ("native_upfirdn2d", "native_bias_act", "native_modulation")

_int32, _pointer = ctypes.c_int32, ctypes.c_void_p

# The libraries' functions and the pointers to tensors that each takes: to numbers like those of x (x), to the small tensors of modulation.h (s),
# to a filter (f).
FUNCTIONS = {"upfirdn2d": "xfx", "bias_act": "xxxxxx"}
FUNCTIONS |= {"modulate": "xsx", "modulate_backward": "xsxxs", "epilogue": "xsssx", "epilogue_backward": "xsssxxsss"}
CHECKED = [9.5, -1.5, 2.0, 0.5, 4.0, -1.5, 4.0, 1.0, 2.0, 3.0]  # results of `_check`
_functions: dict[tuple[str, str], Callable] = {}  # by name and kind of device


def load(kind: str, build: bool = True, try_out: bool = True) -> None:
    """Makes the ops ready on devices of type `kind`, `cpu` or `cuda`; `build` as in `custom_ops.load`, `try_out` as in `backend.implementation`.

    Raises:
        BuildError: the library cannot be built or loaded, or, tried out, does not compute what it should.
    """
    library = custom_ops.load(kind, build)
    where = [_int32] if kind == "cpu" else [_int32, _pointer]  # threads, or device and stream
    try:
        for name, pointers in FUNCTIONS.items():
            function = getattr(library, f"{name}_{kind}")
            function.argtypes, function.restype = [_pointer] * (1 + len(pointers)) + where, _int32
            _functions[name, kind] = function
        library.error_text.argtypes, library.error_text.restype = [_int32], ctypes.c_char_p
    except AttributeError as error:
        raise BuildError(f"the library of native ops for {kind} is incomplete ({error}); reinstall this package") from error
    _functions["error_text", kind] = library.error_text
    for form in FORMS:
        importlib.import_module(f"torch_utils.ops.{form}")
    if not try_out:
        return
    # In a thread of its own, because tracing, transforms and modes of torch are properties of the thread that first needs the op.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", torch.cuda.current_device())
        thread.submit(_check, device).result()


def _check(device: torch.device) -> None:
    """Runs an op of each source: a GPU whose driver is too old, or code made for another one, shows here and not in the middle of a run."""
    ops, lrelu = getattr(torch.ops, NAMESPACE), list(ACTIVATIONS).index("lrelu")
    try:
        x = torch.tensor([[[[-3.0, 1.0]]]], device=device)
        y = ops.bias_act(x, None, 1, lrelu, 0.5, 2.0, 2.5)
        y = ops.upfirdn2d(y, x[0, 0], [1, 1], [1, 1], [0] * 4, True, 1.0)
        x, scale, noise, bias = x.view(1, 2, 1, 1), x.new_tensor([[0.5, 2.0]]), x.new_ones([1, 1, 1, 1]), x.new_tensor([-0.5, 0.25])
        x = ops.modulate(x, scale)
        results = [y, x, *ops.epilogue_backward(torch.ones_like(x), x, scale, noise, bias, 0.5, 2.0, NO_CLAMP)]
        found = torch.cat([t.flatten() for t in results]).tolist()
    except RuntimeError as error:
        raise BuildError(f"the native ops for {device.type} do not run here: {error} (see python -m torch_utils.doctor)") from error
    if found != CHECKED:
        raise BuildError(f"the native ops for {device.type} compute {found} where {CHECKED} is right; the compiler is at fault, take another one")


@functools.cache
def _dtypes(name: str, dtype: torch.dtype) -> list[torch.dtype]:
    """Of the tensors that a function of the library takes, given that of x."""
    kinds = {"x": dtype, "s": torch.promote_types(dtype, torch.float32), "f": torch.float32}
    return [kinds[kind] for kind in FUNCTIONS[name]]


def call(name: str, x: torch.Tensor, args: ctypes.Structure, *tensors: torch.Tensor | None) -> None:
    """Runs a function of the library on the tensors' memory, on the device of `x`.

    Raises:
        RuntimeError: a tensor is on another device or of another dtype than belongs to `x`, or the device refuses.
    """
    device = x.device
    for t, dtype in zip(tensors, _dtypes(name, x.dtype), strict=True):
        if t is not None and t.device != device:
            raise RuntimeError(f"native {name}: operands are on {device} and on {t.device}; bring them to one device")
        if t is not None and t.dtype != dtype:
            raise RuntimeError(f"native {name}: an operand is {t.dtype} where {dtype} belongs, beside {x.dtype}; convert it")
    if x.is_cuda:
        kind, where = "cuda", (x.device.index, torch.cuda.current_stream(x.device).cuda_stream)
    else:
        kind, where = "cpu", (torch.get_num_threads(),)
    error = _functions[name, kind](args, *(None if t is None else t.data_ptr() for t in tensors), *where)
    if error:
        raise RuntimeError(f"native {name} on {kind}: {_functions['error_text', kind](error).decode()} (error {error})")


# The result's layout follows from the inputs', so a compiler must hand them over as they were when it traced. Where torch has no tag for
# that, it keeps at least the order of their strides, and the ops make do with it.
_AS_TRACED = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)


def declare(library: torch.library.Library, ops: Mapping[str, tuple[Callable, Callable]]) -> None:
    """Declares ops by their schemas; each has its implementation for all devices, and one that makes results without numbers in them."""
    for schema, (run, fake) in ops.items():
        name = schema.partition("(")[0]
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, _AS_TRACED))
        for key in ("CPU", "CUDA"):
            library.impl(name, run, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
