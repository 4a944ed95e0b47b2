"""What surrounds the dense convolution of a modulated one: scaling of the channels before it; demodulation, noise, bias and activation after it.

Each of the two is one pass over the activations where the native ops run (on a CPU in channels_last, on CUDA in NCHW, too), and so is its
gradient, which sums the gradients of the small operands on the way. Elsewhere it is a composition of PyTorch's operators, the reference.
"""

from __future__ import annotations

import torch

from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import composed, positional
from torch_utils.ops.bias_act import ACTIVATIONS, NO_CLAMP, SLOPES, bias_act


def modulate(x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W] times styles [N, C], in the dtype of x.

    Raises:
        ValueError: other shapes.
    """
    if _runs_native(x):
        return _Modulate.apply(x, styles.to(small_dtype(x)))
    check_shapes(x, styles)
    return x * styles.to(x.dtype)[:, :, None, None]


def epilogue(
    x: torch.Tensor,
    scale: torch.Tensor,
    noise: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """clamp(gain * act(x * scale + noise + bias)), in the dtype of x.

    Args:
        x: [N, C, H, W]; may be overwritten, since nothing else needs its values.
        scale: [N, C].
        noise: [N or 1, 1, H, W]; None: none.
        bias: [C]; None: none.
        act: an activation of `bias_act`.
        gain: None: the activation's default.
        clamp: bound on the magnitude of the result; None: unbounded.

    Raises:
        ValueError: other shapes.
    """
    gain = ACTIVATIONS[act].gain if gain is None else float(gain)
    if act in SLOPES and _runs_native(x):
        small = [None if t is None else t.to(small_dtype(x)) for t in (scale, noise, bias)]
        return _Epilogue.apply(x, *small, SLOPES[act], gain, NO_CLAMP if clamp is None else float(clamp))
    check_shapes(x, scale, noise, bias)
    # Where act(g u) = g act(u), the gain goes into the small tensors instead of over the activations once more.
    fold = gain if act in SLOPES and gain > 0 else 1.0
    scale, noise, bias = (None if t is None else (t * fold).to(x.dtype) for t in (scale, noise, bias))
    scale = scale[:, :, None, None]
    x = x * scale if bias is None else torch.addcmul(bias[:, None, None], x, scale)
    x = x if noise is None else x.add_(noise)
    return bias_act(x, act=act, gain=gain / fold, clamp=clamp, inplace=True)


def check_shapes(
    x: torch.Tensor, scale: torch.Tensor, noise: torch.Tensor | None = None, bias: torch.Tensor | None = None, dy: torch.Tensor | None = None
) -> None:
    """Raises a ValueError where the operands do not belong together: native passes would read beside them, the reference would broadcast.

    Each op asks once, whatever it is made of. `scale` is that of `epilogue` or the styles of `modulate`; `dy` is the gradient of the result.
    """
    n, c, *pixels = x.shape if x.ndim == 4 else (-1, -1)
    right = scale.shape == (n, c) and (bias is None or bias.shape == (c,)) and (dy is None or dy.shape == x.shape)
    if right and (noise is None or noise.shape == (n, 1, *pixels) or noise.shape == (1, 1, *pixels)):
        return
    given = {"x": x, "styles or scale": scale, "noise": noise, "bias": bias, "gradient": dy}
    found = ", ".join(f"{name} {list(t.shape)}" for name, t in given.items() if t is not None)
    raise ValueError(f"x is [N, C, H, W] and takes styles or scale [N, C], noise [N or 1, 1, H, W], bias [C], gradient as x; found {found}")


def small_dtype(x: torch.Tensor) -> torch.dtype:
    """What the native passes take styles, scales, noise and biases in, and sum their gradients in."""
    return torch.promote_types(x.dtype, torch.float32)


def _runs_native(x: torch.Tensor) -> bool:
    """Whether the native passes take `x`."""
    kind = x.device.type
    if composed() or x.dtype not in backend.DTYPES.get(kind, ()):
        return False
    dense = x.is_contiguous(memory_format=torch.channels_last) or (kind == "cuda" and x.is_contiguous())
    return dense and backend.is_native(kind)


class _Modulate(torch.autograd.Function):
    """The native pass; its gradient is one, too, unless it is to be differentiated again."""

    @staticmethod
    @positional
    def forward(x, styles):
        return _ops().modulate(x, styles)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy):
        x, styles = ctx.saved_tensors
        if not _is_differentiated():
            return _ops().modulate_backward(dy, x, styles)
        return dy * styles.to(dy.dtype)[:, :, None, None], _sum_to(dy * x, [2, 3])


class _Epilogue(torch.autograd.Function):
    """As `_Modulate`."""

    @staticmethod
    @positional
    def forward(x, scale, noise, bias, slope, gain, clamp):
        return _ops().epilogue(x, scale, noise, bias, slope, gain, clamp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, noise, bias, ctx.slope, ctx.gain, ctx.clamp = inputs
        ctx.save_for_backward(x, scale, noise, bias)

    @staticmethod
    def backward(ctx, dy):
        x, scale, noise, bias = ctx.saved_tensors
        settings = ctx.slope, ctx.gain, ctx.clamp
        if not _is_differentiated():
            dx, dscale, dbias, dnoise = _ops().epilogue_backward(dy, x, scale, noise, bias, *settings)
        else:
            du = dy * _derivative(x, scale, noise, bias, *settings)
            dx, dscale = du * scale.to(du.dtype)[:, :, None, None], _sum_to(du * x, [2, 3])
            dbias, dnoise = _sum_to(du, [0, 2, 3]), _sum_to(du, [1], keepdim=True)
        if noise is not None and noise.shape[0] < dnoise.shape[0]:
            dnoise = dnoise.sum(dim=0, keepdim=True)
        return dx, dscale, None if noise is None else dnoise, None if bias is None else dbias, None, None, None


def _is_differentiated() -> bool:
    """Whether the gradient at hand may itself be differentiated, so that it is to be made of PyTorch's operators."""
    return torch.is_grad_enabled() or composed()


@torch.no_grad()
def _derivative(x, scale, noise, bias, slope, gain, clamp) -> torch.Tensor:
    """Of the epilogue with respect to x * scale + noise + bias; constant between the kinks, so that its own derivative is zero."""
    u = x.to(scale.dtype) * scale[:, :, None, None]
    u = u if bias is None else u + bias[:, None, None]
    u = u if noise is None else u + noise
    derivative = torch.where(u > 0, u.new_full([], gain), u.new_full([], gain * slope))
    if clamp >= 0:
        derivative = torch.where((u * derivative).abs() > clamp, 0.0, derivative)
    return derivative.to(x.dtype)


def _sum_to(x: torch.Tensor, dims: list[int], keepdim: bool = False) -> torch.Tensor:
    return x.sum(dim=dims, keepdim=keepdim, dtype=small_dtype(x))


def _ops():
    """The native ops, which come in when the library is there."""
    from torch_utils.ops.native_modulation import ops

    return ops
