"""The native bias_act as torch sees it, and its derivatives: autograd functions that torch.compile and torch.func both see through.

The ops themselves have no derivative. The structure mirrors csrc/abi.h.
"""

from __future__ import annotations

import ctypes
import functools

import torch

from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import positional, recorded
from torch_utils.ops.bias_act import ACTIVATIONS, NO_CLAMP, SLOPES
from torch_utils.ops.native import DTYPE_NUMBERS, NAMESPACE, call, declare

ACT_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}

_int32, _int64, _double = ctypes.c_int32, ctypes.c_int64, ctypes.c_double


class _BiasActArgs(ctypes.Structure):
    _fields_ = [
        *((name, _int32) for name in ("dtype", "act", "order")),
        *((name, _int64) for name in ("size", "channels", "step")),
        *((name, _double) for name in ("alpha", "gain", "clamp")),
    ]


@functools.lru_cache(maxsize=512)
def _arguments(*numbers):
    return ctypes.byref(_BiasActArgs(*numbers))


def _run(order, x, b, y, dy, ddy, dim, act, alpha, gain, clamp) -> torch.Tensor:
    """One pass over dense memory; all tensors are brought into the layout of the first that is there of y, x and dy."""
    like = x if y is None else y
    out = torch.empty_like(dy if like is None else like)  # dense, whatever that one is
    if out.numel() == 0:
        return out
    layout = out.stride()
    if any(t is not None and t.shape != out.shape for t in (x, y, dy, ddy)) or (b is not None and b.shape != out.shape[dim : dim + 1]):
        found = ", ".join(str(list(t.shape)) for t in (x, b, y, dy, ddy) if t is not None)
        raise ValueError(f"native bias_act: operands are of one shape, but for a bias along axis {dim}; found {found}")
    operands = [t if t is None or t.stride() == layout else torch.empty_like(out).copy_(t) for t in (x, y, dy, ddy)]
    channels, step = (1, 1) if b is None else (b.shape[0], layout[dim] if b.shape[0] > 1 else 1)
    b = b if b is None else b.contiguous()
    args = _arguments(DTYPE_NUMBERS[out.dtype], act, order, out.numel(), channels, step, alpha, gain, clamp)
    call("bias_act", out, args, operands[0], b, *operands[1:], out)
    return out


def _run_forward(x, b, dim, act, alpha, gain, clamp):
    return _run(0, x, b, None, None, None, dim, act, alpha, gain, clamp)


def _run_backward(dy, x, b, y, dim, act, alpha, gain, clamp):
    return _run(1, x, b, y, dy, None, dim, act, alpha, gain, clamp)


def _run_double_backward(dy, ddy, x, b, dim, act, alpha, gain, clamp):
    return _run(2, x, b, None, dy, ddy, dim, act, alpha, gain, clamp)


def _fake_forward(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def _fake_backward(dy, x, b, y, dim, act, alpha, gain, clamp):
    return torch.empty_like(y if y is not None else x if x is not None else dy)


def _fake_double_backward(dy, ddy, x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


_SHAPE_OF_ACT = "int dim, int act, float alpha, float gain, float clamp) -> Tensor"
_OPS = {
    f"bias_act(Tensor x, Tensor? b, {_SHAPE_OF_ACT}": (_run_forward, _fake_forward),
    f"bias_act_backward(Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_SHAPE_OF_ACT}": (_run_backward, _fake_backward),
    f"bias_act_double_backward(Tensor dy, Tensor ddy, Tensor x, Tensor? b, {_SHAPE_OF_ACT}": (_run_double_backward, _fake_double_backward),
}
_declarations = torch.library.Library(NAMESPACE, "FRAGMENT")
declare(_declarations, _OPS)
_ops = getattr(torch.ops, NAMESPACE)


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


backend.register_native("bias_act", bias_act)
