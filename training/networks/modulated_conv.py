"""Convolution whose weights are scaled per sample by a style, with demodulation (StyleGAN2, section 2.2)."""

from __future__ import annotations

import torch

from torch_utils.ops.conv2d_resample import conv2d_resample


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
    gain: float = 1,
) -> torch.Tensor:
    """gain * (convolution of sample n with weight[o, i] * styles[n, i], normalised over (i, kh, kw) if `demodulate`, + noise + bias).

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
        gain: factor on all of it.

    Returns:
        [N, O, H * up, W * up] in the dtype of x.
    """
    if demodulate and x.dtype == torch.float16:
        # Half precision overflows at 65504: bring weights and styles to magnitudes near one; demodulation undoes the scale.
        fan_in = weight[0].numel()
        weight = weight * (fan_in**-0.5 / weight.abs().amax(dim=[1, 2, 3], keepdim=True))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    x = x * styles.to(x.dtype)[:, :, None, None]
    bias = None if bias is None else (bias * gain).to(x.dtype)
    noise = None if noise is None else (noise * gain).to(x.dtype)
    if not demodulate:
        weight = (weight * gain).to(x.dtype)
        x = conv2d_resample(x, weight, f=resample_filter, up=up, padding=padding, flip_weight=flip_weight, bias=bias)
        return x if noise is None else x + noise
    x = conv2d_resample(x, weight.to(x.dtype), f=resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    # sum over (i, kh, kw) of (weight * style)^2, without forming the per-sample weights
    energy = styles.square() @ weight.square().sum(dim=[2, 3]).t()
    scale = ((energy + 1e-8).rsqrt() * gain).to(x.dtype)[:, :, None, None]
    x = x * scale if bias is None else torch.addcmul(bias[:, None, None], x, scale)
    return x if noise is None else x.add_(noise)
