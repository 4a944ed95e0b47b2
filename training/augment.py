"""The augmentation pipe of StyleGAN2-ADA and its presets. What each step does lives in augment_geometry, augment_color and augment_corruption."""

from __future__ import annotations

import dataclasses

import torch

from torch_utils.wavelets import sym2_filter_bank, sym6_lowpass
from training.augment_color import ColorOps, augment_color
from training.augment_corruption import CorruptionOps, add_noise, cut_out, filter_bands
from training.augment_draws import Draws
from training.augment_geometry import GeometryOps, sample_transform, warp

_BLIT = ("xflip", "rotate90", "xint")
_GEOM = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_FILTER, _NOISE, _CUTOUT = ("imgfilter",), ("noise",), ("cutout",)

AUGPIPE_PRESETS: dict[str, dict[str, float]] = {
    name: dict.fromkeys(ops, 1)
    for name, ops in {
        "blit": _BLIT,
        "geom": _GEOM,
        "color": _COLOR,
        "filter": _FILTER,
        "noise": _NOISE,
        "cutout": _CUTOUT,
        "bg": _BLIT + _GEOM,
        "bgc": _BLIT + _GEOM + _COLOR,
        "bgcf": _BLIT + _GEOM + _COLOR + _FILTER,
        "bgcfn": _BLIT + _GEOM + _COLOR + _FILTER + _NOISE,
        "bgcfnc": _BLIT + _GEOM + _COLOR + _FILTER + _NOISE + _CUTOUT,
    }.items()
}
"""Arguments of `AugmentPipe` by the name of --augpipe."""


class AugmentPipe(torch.nn.Module):
    """Random augmentations, each image its own, that a GAN's discriminator sees instead of the images themselves.

    The whole is differentiable with respect to the images, any number of times. Random numbers come from torch's global generator of the images'
    device. The buffer `p` (scalar, initially 1) is the overall strength; each operation happens with probability multiplier * p.

    Args:
        settings: multipliers and strengths, named and with the defaults as in `GeometryOps`, `ColorOps` and `CorruptionOps`:
            xflip, rotate90, xint, xint_max, scale, rotate, aniso, xfrac, scale_std, rotate_max, aniso_std, xfrac_std,
            brightness, contrast, lumaflip, hue, saturation, brightness_std, contrast_std, hue_max, saturation_std,
            imgfilter, imgfilter_bands, imgfilter_std, noise, cutout, noise_std, cutout_size. Every multiplier is 0 by default.

    Raises:
        TypeError: a setting that does not exist.
    """

    def __init__(self, **settings):
        super().__init__()
        self.geometry, self.color, self.corruption = _split_settings(settings, (GeometryOps, ColorOps, CorruptionOps))
        bands = self.corruption.imgfilter_bands
        bank = sym2_filter_bank()
        if len(bands) != len(bank):
            raise ValueError(f"imgfilter_bands has one multiplier for each of the {len(bank)} bands, found {len(bands)}")
        self.register_buffer("p", torch.ones([]))
        self.register_buffer("Hz_geom", torch.tensor(sym6_lowpass(), dtype=torch.float32))
        self.register_buffer("Hz_fbank", torch.tensor(bank, dtype=torch.float32))

    def forward(self, images: torch.Tensor, debug_percentile: float | None = None) -> torch.Tensor:
        """Augments images.

        Args:
            images: float32 [N, C, H, W] with 1 to 4 channels, in [-1, 1]: luminance, luminance and opacity, RGB, or RGB and opacity.
                Colour leaves an opacity as it is; everything else treats it like the other channels.
            debug_percentile: in (0, 1); replaces every random draw by this percentile of its distribution and opens every gate.

        Returns:
            [N, C, H, W]; not clipped to [-1, 1].

        Raises:
            ValueError: another number of dimensions or channels.
        """
        if images.ndim != 4 or not 1 <= images.shape[1] <= 4:
            raise ValueError(f"the augmentation pipe takes images [N, 1..4, H, W], found shape {list(images.shape)}")
        images = images.contiguous()
        draws = Draws(images.shape[0], self.p, debug_percentile)
        if self.geometry.active():
            linear, shift = sample_transform(self.geometry, draws, width=images.shape[3], height=images.shape[2])
            images = warp(images, linear, shift, self.Hz_geom)
        if self.color.active():
            images = augment_color(images, self.color, draws)
        if self.corruption.imgfilter > 0:
            images = filter_bands(images, self.corruption, draws, self.Hz_fbank)
        if self.corruption.noise > 0:
            images = add_noise(images, self.corruption, draws)
        if self.corruption.cutout > 0:
            images = cut_out(images, self.corruption, draws)
        return images


def _split_settings(settings: dict, groups: tuple[type, ...]) -> list:
    """One object per dataclass in `groups`, each made of the settings that are its fields."""
    remaining, made = dict(settings), []
    for group in groups:
        names = {field.name for field in dataclasses.fields(group)}
        made.append(group(**{name: remaining.pop(name) for name in list(remaining) if name in names}))
    if remaining:
        raise TypeError(f"AugmentPipe has no setting named {', '.join(sorted(remaining))}")
    return made
