"""Pad, upsample, filter and downsample a batch of images: the resampling op of the networks and of the augmentation pipe.

The op is linear in the image and its adjoint is the same op with the filter flipped and up/down exchanged. That is how it is
differentiated here, to any order. The filter is a constant: no gradient flows into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import composed, positional, recorded

Padding = int | Sequence[int]
SEPARABLE_TAPS = 8  # 1-D filters with at least so many taps stay 1-D and are applied along each axis in turn


def setup_filter(
    f: torch.Tensor | np.ndarray | Sequence | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Makes a FIR filter for `upfirdn2d`.

    Args:
        f: [taps] or [height, width] coefficients, a number, or None for the identity.
        device: where to put it; None: where `f` is, or the default device.
        normalize: divide by the sum, so that constant images stay as they are.
        flip_filter: mirror the filter along every axis.
        gain: overall factor on the signal's magnitude.
        separable: keep a 1-D filter as it is, to be applied along both axes; None: from 8 taps on.

    Returns:
        float32 [taps] if separable, else [height, width].

    Raises:
        ValueError: `f` is empty, has more than two dimensions, is 2-D and asked to be separable, or is separable and of a negative gain.
    """
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=device)
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"a filter is [taps] or [height, width] and not empty, found shape {list(f.shape)}")
    if f.ndim == 0:
        f = f.unsqueeze(0)
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= SEPARABLE_TAPS
    if separable and f.ndim == 2:
        raise ValueError("a 2-D filter cannot be kept separable")
    if separable and gain < 0:
        raise ValueError(f"a separable filter is applied twice, which makes a gain of at least 0, found {gain}")
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    # A separable filter is applied twice, each time with the square root of the gain.
    return f * gain ** (f.ndim / 2)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A scale factor as (x, y)."""
    x, y = (value, value) if isinstance(value, int) else value
    if not (isinstance(x, int) and isinstance(y, int) and x >= 1 and y >= 1):
        raise ValueError(f"scale factors are integers of at least 1, found {value}")
    return x, y


def parse_padding(padding: Padding) -> tuple[int, int, int, int]:
    """Padding as (x0, x1, y0, y1) from one number, (x, y), or all four; negative values crop."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    values = tuple(int(p) for p in padding)
    if len(values) == 2:
        return values[0], values[0], values[1], values[1]
    if len(values) != 4:
        raise ValueError(f"padding is one number, (x, y) or (x0, x1, y0, y1), found {padding}")
    return values


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter in taps; (1, 1) for None."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def _zero_insert_and_pad(x: torch.Tensor, up: tuple[int, int], padding: tuple[int, int, int, int]) -> torch.Tensor:
    """Puts up-1 zeros behind every pixel, then pads or crops. One allocation, in the memory layout of `x`."""
    (n, c, h, w), (ux, uy), (x0, x1, y0, y1) = x.shape, up, padding
    height, width = h * uy + y0 + y1, w * ux + x0 + x1
    # Not by torch's memory formats, of which torch.func.vmap knows none; nor may what is batched be copied into what is not.
    last = c > 1 and x.stride(1) == 1
    y = x.new_zeros([n, height, width, c]).permute(0, 3, 1, 2) if last else x.new_zeros([n, c, height, width])
    # The first source pixel that lands inside, where cropping cuts some off, and where it lands.
    sx, sy = max(-(x0 // ux), 0), max(-(y0 // uy), 0)
    dx, dy = sx * ux + x0, sy * uy + y0
    target = y[:, :, dy::uy, dx::ux]
    rows, columns = min(target.shape[2], h - sy), min(target.shape[3], w - sx)
    if rows > 0 and columns > 0:
        target[:, :, :rows, :columns].copy_(x[:, :, sy : sy + rows, sx : sx + columns])
    return y


def _depthwise(x: torch.Tensor, kernel: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> torch.Tensor:
    """Correlates every channel with the same [kh, kw] kernel. `stride` and `padding` are (y, x)."""
    c = x.shape[1]
    weight = kernel.to(x.dtype)[None, None].repeat(c, 1, 1, 1)
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=c)


def output_size(x: torch.Tensor, f: torch.Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]) -> tuple[int, int]:
    """(height, width) of what `upfirdn2d` makes of `x`."""
    (fw, fh), (x0, x1, y0, y1) = filter_size(f), padding
    height, width = x.shape[2] * up[1] + y0 + y1 - fh, x.shape[3] * up[0] + x0 + x1 - fw
    return height // down[1] + 1, width // down[0] + 1


def _resample(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    """The op itself in plain PyTorch, without differentiation."""
    if 0 in x.shape[:2]:
        return x.new_zeros([*x.shape[:2], *output_size(x, f, up, down, padding)])
    f = f * (gain if f.ndim == 2 else abs(gain) ** 0.5)
    if not flip_filter:  # convolution: the correlation kernel is the mirrored filter
        f = f.flip(list(range(f.ndim)))
    x0, x1, y0, y1 = padding
    if up == (1, 1) and x0 == x1 >= 0 and y0 == y1 >= 0:
        conv_padding = (y0, x0)
    else:
        x, conv_padding = _zero_insert_and_pad(x, up, padding), (0, 0)
    if f.ndim == 2:
        return _depthwise(x, f, (down[1], down[0]), conv_padding)
    x = _depthwise(x, f[None, :], (1, down[0]), (0, conv_padding[1]))
    f = -f if gain < 0 else f  # its root has no sign
    return _depthwise(x, f[:, None], (down[1], 1), (conv_padding[0], 0))


def _without_derivative(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    """The op by the implementation that the policy asks for. Native ones take float32 filters: another was made by hand, for more digits."""
    native = backend.native("upfirdn2d", x) if f.dtype == torch.float32 else None
    return (native or _resample)(x, f, up, down, padding, flip_filter, gain)


def _differentiable(x, f, up, down, padding, flip_filter, gain) -> torch.Tensor:
    """The op, recorded for differentiation where there will be any; that costs as much time as a small image."""
    if composed():
        return _resample(x, f, up, down, padding, flip_filter, gain)
    return (_UpFirDn2d.apply if recorded(x) else _without_derivative)(x, f, up, down, padding, flip_filter, gain)


class _UpFirDn2d(torch.autograd.Function):
    """The op with its adjoint as backward; the adjoint goes through this class again, so every order exists."""

    @staticmethod
    @positional
    def forward(x, f, up, down, padding, flip_filter, gain):
        return _without_derivative(x, f, up, down, padding, flip_filter, gain)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain = inputs
        ctx.save_for_backward(f)
        ctx.sizes = (*x.shape[2:], *output.shape[2:])

    @staticmethod
    def backward(ctx, dy):
        (f,) = ctx.saved_tensors
        (in_h, in_w, out_h, out_w), (fw, fh) = ctx.sizes, filter_size(f)
        (ux, uy), (dx, dy_step), (x0, _, y0, _) = ctx.up, ctx.down, ctx.padding
        padding = (
            fw - x0 - 1,
            in_w * ux - out_w * dx + x0 - ux + 1,
            fh - y0 - 1,
            in_h * uy - out_h * dy_step + y0 - uy + 1,
        )
        grad = _differentiable(dy, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain)
        return grad, None, None, None, None, None, None


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Per channel: insert zeros (`up`), pad or crop, filter, keep every `down`-th pixel.

    Args:
        x: images [N, C, H, W].
        f: float32 filter [taps] (applied along both axes) or [height, width]; None is the identity.
        up, down: integer factors, one number or (x, y).
        padding: on the upsampled image, one number, (x, y) or (x0, x1, y0, y1); negative values crop.
        flip_filter: False is a convolution, True a correlation.
        gain: factor on the signal's magnitude.

    Returns:
        [N, C, (H * up + y0 + y1 - taps) // down + 1, (likewise)], in the dtype and memory layout of `x`.

    Raises:
        ValueError: wrong ranks, factors, or an output without pixels.
    """
    if x.ndim != 4:
        raise ValueError(f"images are [N, C, H, W], found shape {list(x.shape)}")
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    if f.ndim not in (1, 2):
        raise ValueError(f"a filter is [taps] or [height, width], found shape {list(f.shape)}")
    up, down, padding = _pair(up), _pair(down), parse_padding(padding)
    (fw, fh), (x0, x1, y0, y1) = filter_size(f), padding
    if x.shape[3] * up[0] + x0 + x1 < fw or x.shape[2] * up[1] + y0 + y1 < fh:
        raise ValueError(f"the padded image is smaller than the filter ({fw}x{fh} taps): {list(x.shape)}, up {up}, padding {padding}")
    return _differentiable(x, f, up, down, padding, flip_filter, float(gain))


def filter2d(x: torch.Tensor, f: torch.Tensor | None, padding: Padding = 0, flip_filter: bool = False, gain: float = 1) -> torch.Tensor:
    """Filters without resampling; the image keeps its size, plus `padding`. Arguments as in `upfirdn2d`."""
    (fw, fh), (x0, x1, y0, y1) = filter_size(f), parse_padding(padding)
    around = (x0 + fw // 2, x1 + (fw - 1) // 2, y0 + fh // 2, y1 + (fh - 1) // 2)
    return upfirdn2d(x, f, padding=around, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: torch.Tensor, f: torch.Tensor | None, up: int | Sequence[int] = 2, padding: Padding = 0, flip_filter: bool = False, gain: float = 1
) -> torch.Tensor:
    """Enlarges by `up`: [N, C, H*up, W*up] plus `padding`, brightness kept. Arguments as in `upfirdn2d`."""
    (ux, uy), (fw, fh), (x0, x1, y0, y1) = _pair(up), filter_size(f), parse_padding(padding)
    around = (x0 + (fw + ux - 1) // 2, x1 + (fw - ux) // 2, y0 + (fh + uy - 1) // 2, y1 + (fh - uy) // 2)
    return upfirdn2d(x, f, up=up, padding=around, flip_filter=flip_filter, gain=gain * ux * uy)


def downsample2d(
    x: torch.Tensor, f: torch.Tensor | None, down: int | Sequence[int] = 2, padding: Padding = 0, flip_filter: bool = False, gain: float = 1
) -> torch.Tensor:
    """Shrinks by `down`: [N, C, H/down, W/down] plus `padding`, brightness kept. Arguments as in `upfirdn2d`."""
    (dx, dy), (fw, fh), (x0, x1, y0, y1) = _pair(down), filter_size(f), parse_padding(padding)
    around = (x0 + (fw - dx + 1) // 2, x1 + (fw - dx) // 2, y0 + (fh - dy + 1) // 2, y1 + (fh - dy) // 2)
    return upfirdn2d(x, f, down=down, padding=around, flip_filter=flip_filter, gain=gain)
