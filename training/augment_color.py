"""Colour augmentations: one affine map of the colour space per image, sampled and applied. No geometry and no pixel neighbourhoods here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from training.augment_draws import Draws


@dataclass(frozen=True)
class ColorOps:
    """Probability multipliers and strengths of the colour operations; a multiplier of 0 leaves the operation out."""

    brightness: float = 0  # multiplier: add a constant
    contrast: float = 0  # multiplier: scale about zero
    lumaflip: float = 0  # multiplier: negate the luminance, keep the hue
    hue: float = 0  # multiplier: turn the hue
    saturation: float = 0  # multiplier: scale the distance from grey
    brightness_std: float = 0.2  # standard deviation of the constant
    contrast_std: float = 0.5  # standard deviation of log2 of the contrast
    hue_max: float = 1  # largest turn; 1 is the full circle
    saturation_std: float = 1  # standard deviation of log2 of the saturation

    def active(self) -> bool:
        """Whether there is anything to do."""
        return any(multiplier > 0 for multiplier in (self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation))


def augment_color(images: torch.Tensor, ops: ColorOps, draws: Draws) -> torch.Tensor:
    """Draws one colour transform per image and applies it (Karras et al. 2020, "Training GANs with Limited Data", appendix B, color transformations).

    Three and four channels are red, green, blue and possibly an opacity, which stays as it is. One and two channels are a luminance and possibly
    an opacity; a luminance behaves as a grey RGB image, so hue and saturation do nothing to it and draw no random numbers.

    Args:
        images: float [N, C, H, W] with 1 to 4 channels.
        ops: what to do and how strongly.
        draws: the random numbers.

    Returns:
        [N, C, H, W].
    """
    is_color = images.shape[1] >= 3
    zero = torch.zeros([draws.batch], device=draws.p.device)
    brightness, along, across, angle = zero, zero + 1, zero + 1, zero
    if ops.brightness > 0:
        brightness = draws.gate(draws.normal() * ops.brightness_std, ops.brightness, 0)
    if ops.contrast > 0:
        along = across = draws.gate(torch.exp2(draws.normal() * ops.contrast_std), ops.contrast, 1)
    if ops.lumaflip > 0:
        along = along * draws.gate(1 - 2 * draws.choice(2), ops.lumaflip, 1)
    if ops.hue > 0 and is_color:
        angle = draws.gate(draws.symmetric() * (math.pi * ops.hue_max), ops.hue, 0)
    if ops.saturation > 0 and is_color:
        across = across * draws.gate(torch.exp2(draws.normal() * ops.saturation_std), ops.saturation, 1)
    offset = (along * brightness).to(images.dtype).view(-1, 1, 1, 1)
    if not is_color:
        return _replace_leading(images, torch.addcmul(offset, images[:, :1], along.to(images.dtype).view(-1, 1, 1, 1)))
    matrix = _grey_axis_matrix(along, across, angle).to(images.dtype)
    mixed = torch.baddbmm(offset[:, 0], matrix, images[:, :3].flatten(2))
    return _replace_leading(images, mixed.view(images.shape[0], 3, *images.shape[2:]))


def _grey_axis_matrix(along: torch.Tensor, across: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """[N, 3, 3]: a factor [N] along the grey axis, a factor [N] in the plane across it, and a turn about it by an angle [N].

    Every one of the operations keeps that axis and treats red, green and blue alike, so the matrix is circulant. It is the sum of `along` times the
    projection on the axis v = (1, 1, 1)/sqrt(3), `across` times the cosine times the projection on the plane, and `across` times the sine times v x.
    """
    cos, sin = across * angle.cos(), across * angle.sin() / math.sqrt(3)
    same = (along + 2 * cos) / 3
    after, before = (along - cos) / 3 + sin, (along - cos) / 3 - sin
    return torch.stack([same, before, after, after, same, before, before, after, same], dim=1).view(-1, 3, 3)


def _replace_leading(images: torch.Tensor, leading: torch.Tensor) -> torch.Tensor:
    """`images` with its first channels replaced by `leading`; the rest is an opacity that colours leave alone."""
    if leading.shape[1] == images.shape[1]:
        return leading
    return torch.cat([leading, images[:, leading.shape[1] :]], dim=1)
