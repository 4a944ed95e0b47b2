"""Image-space filtering, additive noise and cutout: the last three steps of the augmentation pipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_utils.band_matrix import band_matrix, fold_reflection
from training.augment_draws import Draws

# The power of natural images falls with frequency; so much of it is expected in each band of the filter bank, lowest band first.
_EXPECTED_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)


@dataclass(frozen=True)
class CorruptionOps:
    """Probability multipliers and strengths of filtering, noise and cutout; a multiplier of 0 leaves the operation out."""

    imgfilter: float = 0  # multiplier: amplify or damp frequency bands
    imgfilter_bands: tuple[float, ...] = (1, 1, 1, 1)  # further multiplier for each band, lowest first
    imgfilter_std: float = 1  # standard deviation of log2 of a band's amplification
    noise: float = 0  # multiplier: add white noise
    cutout: float = 0  # multiplier: set a square to zero
    noise_std: float = 0.1  # scale of the half-normal distribution of the noise's strength
    cutout_size: float = 0.5  # side of the square, as a part of the image's size


def filter_bands(images: torch.Tensor, ops: CorruptionOps, draws: Draws, bank: torch.Tensor) -> torch.Tensor:
    """Amplifies frequency bands at random, at constant expected power (Karras et al. 2020, appendix B, image-space filtering).

    Outside of an image lies its reflection about the edge pixels, repeated as often as the filter's width asks for; from 22 pixels on, with the
    bank of 43 taps, once is enough and this is the usual reflection padding.

    Args:
        images: float [N, C, H, W].
        ops: what to do and how strongly.
        draws: the random numbers.
        bank: [bands, taps], symmetric filters that add up to an impulse.

    Returns:
        [N, C, H, W].
    """
    gains = _band_gains(ops, draws).to(images.dtype)
    bank = bank.to(images.dtype)
    along_y = _filter_matrices(gains, bank, images.shape[2])
    along_x = along_y if images.shape[3] == images.shape[2] else _filter_matrices(gains, bank, images.shape[3])
    n, c, h, w = images.shape
    filtered = torch.bmm(images.reshape(n, c * h, w), along_x.transpose(1, 2)).view(n, c, h, w)
    return along_y[:, None] @ filtered


def _band_gains(ops: CorruptionOps, draws: Draws) -> torch.Tensor:
    """[N, bands]: the product of one normalised amplification per band whose gate opens."""
    amplifications, normalizer = [], torch.ones([draws.batch], device=draws.p.device)
    for multiplier, power in zip(ops.imgfilter_bands, _EXPECTED_POWER):
        factor = draws.gate(torch.exp2(draws.normal() * ops.imgfilter_std), ops.imgfilter * multiplier, 1)
        amplifications.append(factor)
        # Amplifying this band alone changes the expected power from 1 to this.
        normalizer = normalizer * (1 - power + power * factor.square()).rsqrt()
    return torch.stack(amplifications, dim=1) * normalizer[:, None]


def _filter_matrices(gains: torch.Tensor, bank: torch.Tensor, size: int) -> torch.Tensor:
    """[N, size, size]: each image's filter along one axis, with its reflecting edges, as a matrix."""
    radius = bank.shape[1] // 2
    padded = torch.arange(size + 2 * radius, device=bank.device)[None, :]
    bands = fold_reflection(band_matrix(bank, padded - torch.arange(size, device=bank.device)[:, None]), size)
    return (gains @ bands.flatten(1)).view(-1, size, size)


def add_noise(images: torch.Tensor, ops: CorruptionOps, draws: Draws) -> torch.Tensor:
    """Adds white noise of a random strength per image."""
    strength = draws.gate(draws.half_normal() * ops.noise_std, ops.noise, 0)
    return images + (draws.normal(*images.shape[1:]) * strength.view(-1, 1, 1, 1)).to(images.dtype)


def cut_out(images: torch.Tensor, ops: CorruptionOps, draws: Draws) -> torch.Tensor:
    """Sets a square about a random point to zero; the part of it outside of the image is lost."""
    height, width = images.shape[2:]
    center = draws.uniform(2)
    size = draws.gate(torch.full([draws.batch], ops.cutout_size, device=draws.p.device), ops.cutout, 0)
    outside = []
    for axis, length in enumerate((width, height)):
        position = (torch.arange(length, device=draws.p.device) + 0.5) / length
        outside.append((position - center[:, axis, None]).abs() >= size[:, None] / 2)
    keep = outside[0][:, None, None, :] | outside[1][:, None, :, None]
    return images * keep
