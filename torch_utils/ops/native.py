"""The native ops as torch sees them: declared with torch.library, differentiable twice, computed by the libraries of `torch_utils.custom_ops`.

The ops themselves have no derivative; those are autograd functions around them (here for bias_act, in `torch_utils.ops.upfirdn2d` for the other
one), which torch.compile and torch.func both see through. The structures mirror csrc/abi.h.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import importlib
from collections.abc import Callable, Mapping

import torch

from torch_utils import custom_ops
from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import positional, recorded
from torch_utils.ops.bias_act import ACTIVATIONS, NO_CLAMP, SLOPES
from torch_utils.ops.upfirdn2d import output_size
from torch_utils.toolchain import BuildError

NAMESPACE = "pairing_gan"
DTYPE_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ACT_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}

_int32, _int64, _double, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Upfirdn2dArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "fw", "fh", "separable", "up_x", "up_y", "down_x", "down_y", "flip")),
        *((name, _int64) for name in ("n", "c", "in_h", "in_w", "out_h", "out_w", "pad_x0", "pad_y0")),
        *((name, _int64 * 4) for name in ("x_stride", "y_stride")),
        ("gain", _double),
    ]


class _BiasActArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "act", "order")),
        *((name, _int64) for name in ("size", "channels", "step")),
        *((name, _double) for name in ("alpha", "gain", "clamp")),
    ]


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
    if not try_out:
        return
    # In a thread of its own, because tracing, transforms and modes of torch are properties of the thread that first needs the op.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", torch.cuda.current_device())
        thread.submit(_check, device).result()


def _check(device: torch.device) -> None:
    """Runs an op of each source: a GPU whose driver is too old, or code made for another one, shows here and not in the middle of a run."""
    passes = importlib.import_module("torch_utils.ops.native_modulation")  # which imports this module
    try:
        x = torch.tensor([[[[-3.0, 1.0]]]], device=device)
        y = _run_bias_act(0, x, None, None, None, None, 1, ACT_NUMBERS["lrelu"], 0.5, 2.0, 2.5)
        y = _run_upfirdn2d(y, x[0, 0], [1, 1], [1, 1], [0] * 4, True, 1.0)
        x, scale, noise, bias = x.view(1, 2, 1, 1), x.new_tensor([[0.5, 2.0]]), x.new_ones([1, 1, 1, 1]), x.new_tensor([-0.5, 0.25])
        x = passes.ops.modulate(x, scale)
        results = [y, x, *passes.ops.epilogue_backward(torch.ones_like(x), x, scale, noise, bias, 0.5, 2.0, NO_CLAMP)]
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


# ---- upfirdn2d


def _result_shape(x: torch.Tensor, f: torch.Tensor, up, down, padding) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the result: in channels_last if `x` is laid out like that, possibly with gaps, else in NCHW."""
    n, c, *_ = x.shape
    h, w = output_size(x, f, up, down, padding)
    if x.stride(1) == 1 and c > 1 and not x.is_contiguous():
        return (n, c, h, w), (h * w * c, 1, w * c, c)
    return (n, c, h, w), (c * h * w, h * w, w, 1)


@functools.lru_cache(maxsize=512)
def _upfirdn2d_args(dtype, x_shape, x_stride, y_shape, y_stride, f_shape, up, down, padding, flip_filter, gain):
    """A pointer to the structure, kept because it is the same in every step of a training run."""
    (n, c, in_h, in_w), (_, _, out_h, out_w), fw, fh = x_shape, y_shape, f_shape[-1], f_shape[0]
    numbers = (DTYPE_NUMBERS[dtype], fw, fh, len(f_shape) == 1, *up, *down, flip_filter, n, c, in_h, in_w, out_h, out_w, padding[0], padding[2])
    return ctypes.byref(_Upfirdn2dArgs(*numbers, (_int64 * 4)(*x_stride), (_int64 * 4)(*y_stride), gain))


def _run_upfirdn2d(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    shape, strides = _result_shape(x, f, up, down, padding)
    y = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    if x.numel() == 0 or y.numel() == 0:
        return y.zero_()
    f = f.contiguous()
    args = _upfirdn2d_args(x.dtype, x.shape, x.stride(), shape, strides, f.shape, tuple(up), tuple(down), tuple(padding), flip_filter, gain)
    call("upfirdn2d", x, args, x, f, y)
    return y


def _fake_upfirdn2d(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    return x.new_empty_strided(*_result_shape(x, f, up, down, padding))


# ---- bias_act


@functools.lru_cache(maxsize=512)
def _bias_act_args(*numbers):
    return ctypes.byref(_BiasActArgs(*numbers))


def _run_bias_act(order, x, b, y, dy, ddy, dim, act, alpha, gain, clamp) -> torch.Tensor:
    """One pass over dense memory; all tensors are brought into the layout of the first that is there of y, x and dy."""
    like = x if y is None else y
    out = torch.empty_like(dy if like is None else like)  # dense, whatever that one is
    if out.numel() == 0:
        return out
    layout = out.stride()
    operands = [t if t is None or t.stride() == layout else torch.empty_like(out).copy_(t) for t in (x, y, dy, ddy)]
    channels, step = (1, 1) if b is None else (b.shape[0], layout[dim] if b.shape[0] > 1 else 1)
    b = b if b is None else b.contiguous()
    args = _bias_act_args(DTYPE_NUMBERS[out.dtype], act, order, out.numel(), channels, step, alpha, gain, clamp)
    call("bias_act", out, args, operands[0], b, *operands[1:], out)
    return out


def _run_forward(x, b, dim, act, alpha, gain, clamp):
    return _run_bias_act(0, x, b, None, None, None, dim, act, alpha, gain, clamp)


def _run_backward(dy, x, b, y, dim, act, alpha, gain, clamp):
    return _run_bias_act(1, x, b, y, dy, None, dim, act, alpha, gain, clamp)


def _run_double_backward(dy, ddy, x, b, dim, act, alpha, gain, clamp):
    return _run_bias_act(2, x, b, None, dy, ddy, dim, act, alpha, gain, clamp)


def _fake_forward(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def _fake_backward(dy, x, b, y, dim, act, alpha, gain, clamp):
    return torch.empty_like(y if y is not None else x if x is not None else dy)


def _fake_double_backward(dy, ddy, x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


# ---- declarations

_SHAPE_OF_ACT = "int dim, int act, float alpha, float gain, float clamp) -> Tensor"
_OPS = {
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor": (
        _run_upfirdn2d,
        _fake_upfirdn2d,
    ),
    f"bias_act(Tensor x, Tensor? b, {_SHAPE_OF_ACT}": (_run_forward, _fake_forward),
    f"bias_act_backward(Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_SHAPE_OF_ACT}": (_run_backward, _fake_backward),
    f"bias_act_double_backward(Tensor dy, Tensor ddy, Tensor x, Tensor? b, {_SHAPE_OF_ACT}": (_run_double_backward, _fake_double_backward),
}
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


_declarations = torch.library.Library(NAMESPACE, "DEF")
declare(_declarations, _OPS)
_ops = getattr(torch.ops, NAMESPACE)


# ---- differentiation of bias_act


def _sum_for_bias(dx: torch.Tensor, dim: int) -> torch.Tensor:
    """The gradient of a bias from that of what it was added to."""
    inner, outer = list(range(dim + 1, dx.ndim)), list(range(dim))
    # Along rows first, which is many times faster than all at once in NCHW; sums of low precision are kept in float32 in between.
    total = dx.sum(inner, dtype=torch.promote_types(dx.dtype, torch.float32)) if inner else dx
    return (total.sum(outer) if outer else total).to(dx.dtype)


class _BiasAct(torch.autograd.Function):
    """bias_act. Where the derivative follows from the result, only that is kept, which the next layer keeps anyway."""

    @staticmethod
    @positional
    def forward(x, b, dim, act, alpha, gain, clamp):
        return _ops.bias_act.default(x, b, dim, ACT_NUMBERS[act], alpha, gain, clamp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, b, *ctx.spec = inputs
        _, act, alpha, gain, clamp = ctx.spec
        if act == "linear" and clamp == NO_CLAMP:
            ctx.save_for_backward(None, None, None)
        elif act in SLOPES and gain > 0 and alpha >= 0:
            ctx.save_for_backward(None, None, output)
        else:
            ctx.save_for_backward(x, b, None)

    @staticmethod
    def backward(ctx, dy):
        dx = _bias_act_backward(dy, *ctx.saved_tensors, *ctx.spec)
        db = _sum_for_bias(dx, ctx.spec[0]) if ctx.needs_input_grad[1] else None
        return dx, db, None, None, None, None, None


def _bias_act_backward(dy, x, b, y, dim, act, alpha, gain, clamp):
    """The gradient with respect to x, itself differentiable where anything can be asked of it."""
    if act == "linear" and clamp == NO_CLAMP:
        return dy if gain == 1 else dy * gain
    if recorded(dy) or (act not in SLOPES and recorded(x, b)):
        return _BiasActBackward.apply(dy, x, b, y, dim, act, alpha, gain, clamp)
    # The derivative of a piecewise linear activation is constant: autograd is not to look for another in the op, which has none.
    x, b, y = (None if t is None else t.detach() for t in (x, b, y))
    return _ops.bias_act_backward.default(dy, x, b, y, dim, ACT_NUMBERS[act], alpha, gain, clamp)


class _BiasActBackward(torch.autograd.Function):
    """The gradient of bias_act. It is linear in dy, so that its derivative there is itself."""

    @staticmethod
    @positional
    def forward(dy, x, b, y, dim, act, alpha, gain, clamp):
        return _ops.bias_act_backward.default(dy, x, b, y, dim, ACT_NUMBERS[act], alpha, gain, clamp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, b, y, *ctx.spec = inputs
        ctx.curved = ctx.spec[1] not in SLOPES
        ctx.save_for_backward(dy if ctx.curved else None, x, b, y)

    @staticmethod
    def backward(ctx, ddx):
        dy, x, b, y = ctx.saved_tensors
        d_dy = _bias_act_backward(ddx, x, b, y, *ctx.spec) if ctx.needs_input_grad[0] else None
        d_x = d_b = None
        if ctx.curved and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            d_x = _BiasActDoubleBackward.apply(dy, ddx, x, b, *ctx.spec)
            d_b = _sum_for_bias(d_x, ctx.spec[0]) if ctx.needs_input_grad[2] else None
        return d_dy, d_x, d_b, None, None, None, None, None, None


class _BiasActDoubleBackward(torch.autograd.Function):
    """What the gradient's gradient says about x; has no derivative of its own."""

    @staticmethod
    @positional
    def forward(dy, ddy, x, b, dim, act, alpha, gain, clamp):
        return _ops.bias_act_double_backward.default(dy, ddy, x, b, dim, ACT_NUMBERS[act], alpha, gain, clamp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.act = inputs[5]

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(f"the native bias_act differentiates {ctx.act} twice, not three times; set the policy of ops to reference")


def bias_act(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """`torch_utils.ops.bias_act.bias_act` with every argument given."""
    if b is None and act == "linear" and gain == 1 and clamp is None:
        return x
    b = None if b is None else b.to(x.dtype)
    dim = dim % x.ndim if x.ndim else 0
    clamp = NO_CLAMP if clamp is None else float(clamp)
    if recorded(x, b):
        return _BiasAct.apply(x, b, dim, act, alpha, gain, clamp)
    return _ops.bias_act.default(x, b, dim, ACT_NUMBERS[act], alpha, gain, clamp)


backend.register_native("upfirdn2d", _ops.upfirdn2d.default)
backend.register_native("bias_act", bias_act)
