"""Convolution whose weights are scaled per sample by a style, with demodulation (StyleGAN2, section 2.2)."""

from __future__ import annotations

import torch

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulation import epilogue, modulate


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """Convolution of sample n with weight[o, i] * styles[n, i], normalised over (i, kh, kw) if `demodulate`; then noise, bias and activation.

    Computed as one dense convolution between two scalings of the activations. That equals modulating the weights, since the
    style is constant over the image, and avoids a weight tensor and a convolution group per sample.

    Args:
        x: [N, I, H, W].
        weight: [O, I, kh, kw], float32.
        styles: [N, I], float32.
        noise: [N or 1, 1, H * up, W * up], added after the demodulation; None: none.
        up: upsampling factor.
        padding: with respect to the upsampled image.
        resample_filter: low-pass filter for the upsampling.
        flip_weight: as in `conv2d_resample`.
        bias: [O]; None: none.
        act, gain, clamp: as in `bias_act`.

    Returns:
        [N, O, H * up, W * up] in the dtype of x.
    """
    if not demodulate:
        x = _modulated(x, weight, styles, up, padding, resample_filter, flip_weight)
        x = x if noise is None else x + noise.to(x.dtype)
        return bias_act(x, None if bias is None else bias.to(x.dtype), act=act, gain=gain, clamp=clamp, inplace=True)
    if x.dtype == torch.float16:
        # Half precision overflows at 65504: bring weights and styles to magnitudes near one; demodulation undoes the scale.
        fan_in = weight[0].numel()
        weight = weight * (fan_in**-0.5 / weight.abs().amax(dim=[1, 2, 3], keepdim=True))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    x = conv2d_resample(modulate(x, styles), weight.to(x.dtype), f=resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    # sum over (i, kh, kw) of (weight * style)^2, without forming the per-sample weights
    energy = styles.square() @ weight.square().sum(dim=[2, 3]).t()
    return epilogue(x, (energy + 1e-8).rsqrt(), noise, bias, act=act, gain=gain, clamp=clamp)


def _modulated(x, weight, styles, up, padding, resample_filter, flip_weight) -> torch.Tensor:
    """The convolution without demodulation."""
    if weight.shape[2:] != (1, 1) or up > 1 or padding:
        return conv2d_resample(modulate(x, styles), weight.to(x.dtype), f=resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    # One small matrix for each sample, in the order of memory on either side of the product so that its gradient has the layout of x.
    matrices, pixels = (weight.flatten(1) * styles[:, None]).to(x.dtype), x.flatten(2)
    if x.is_contiguous(memory_format=torch.channels_last):
        y = torch.bmm(pixels.transpose(1, 2), matrices.transpose(1, 2)).transpose(1, 2)
    else:
        y = torch.bmm(matrices, pixels)
    return y.unflatten(2, x.shape[2:])
