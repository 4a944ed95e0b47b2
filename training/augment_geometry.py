"""Geometric augmentations: sampling one affine transform per image, and warping images by it without aliasing.

Colour, filtering, noise and cutout live in their own modules; the order and the public class are in `training.augment`.
Coordinates are in pixels about the image's centre, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from torch_utils.ops.grid_sample import grid_sample
from torch_utils.ops.upfirdn2d import upfirdn2d
from torch_utils.wavelets import SYM6_CENTER
from training.augment_draws import Draws

DENSE_MAX_SIZE = 64
"""Up to this height and width each axis is resampled by one dense matrix, which is faster than filtering there; the numbers are the same."""


@dataclass(frozen=True)
class GeometryOps:
    """Probability multipliers and strengths of the geometric operations; a multiplier of 0 leaves the operation out."""

    xflip: float = 0  # multiplier: mirror left and right
    rotate90: float = 0  # multiplier: rotation by a multiple of 90 degrees
    xint: float = 0  # multiplier: shift by whole pixels
    xint_max: float = 0.125  # largest such shift, as a part of the image's size
    scale: float = 0  # multiplier: isotropic scaling
    rotate: float = 0  # multiplier: rotation by any angle, before and after the anisotropic scaling
    aniso: float = 0  # multiplier: scaling x up as much as y down
    xfrac: float = 0  # multiplier: shift by fractions of pixels
    scale_std: float = 0.2  # standard deviation of log2 of the scale
    rotate_max: float = 1  # largest angle; 1 is the full circle
    aniso_std: float = 0.2  # standard deviation of log2 of the anisotropic scale
    xfrac_std: float = 0.125  # standard deviation of the shift, as a part of the image's size

    def any(self) -> bool:
        """Whether there is anything to do."""
        return any(multiplier > 0 for multiplier in (self.xflip, self.rotate90, self.xint, self.scale, self.rotate, self.aniso, self.xfrac))


class _InverseTransform:
    """Accumulates the map from output positions back to image positions: `position -> linear @ position + shift`.

    The operations are told in the order in which the image goes through them, so each inverse is multiplied from the right.
    """

    def __init__(self, batch: int, device: torch.device):
        self.linear = torch.eye(2, device=device).expand(batch, 2, 2)
        self.shift = torch.zeros([batch, 2, 1], device=device)

    def scale(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """The image grows by factors x and y, each [N]."""
        self.linear = self.linear / torch.stack([x, y], dim=1)[:, None, :]

    def rotate(self, angle: torch.Tensor) -> None:
        """The image turns by `angle` [N] in radians, from y towards x."""
        cos, sin = angle.cos(), angle.sin()
        self.linear = self.linear @ torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)

    def translate(self, offset: torch.Tensor) -> None:
        """The image moves by `offset` [N, 2] pixels."""
        self.shift = self.shift - self.linear @ offset[:, :, None]


def sample_transform(ops: GeometryOps, draws: Draws, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one transform per image (Karras et al. 2020, "Training GANs with Limited Data", appendix B, geometric transformations).

    Returns:
        (linear [N, 2, 2], shift [N, 2, 1]), which take output positions to image positions.
    """
    inverse = _InverseTransform(draws.batch, draws.p.device)
    size = torch.tensor([width, height], dtype=torch.float32).to(draws.p.device, non_blocking=True)
    if ops.xflip > 0:
        mirror = draws.gate(1 - 2 * draws.choice(2), ops.xflip, 1)
        inverse.scale(mirror, torch.ones_like(mirror))
    if ops.rotate90 > 0:
        inverse.rotate(draws.gate(draws.choice(4), ops.rotate90, 0) * (math.pi / 2))
    if ops.xint > 0:
        inverse.translate((draws.gate(draws.symmetric(2) * ops.xint_max, ops.xint, 0) * size).round())
    if ops.scale > 0:
        factor = draws.gate(torch.exp2(draws.normal() * ops.scale_std), ops.scale, 1)
        inverse.scale(factor, factor)
    # Two rotations, each with a probability such that at least one of them happens with probability rotate * p.
    rotate_probability = 1 - (1 - (draws.p * ops.rotate).clamp(0, 1)).sqrt()
    if ops.rotate > 0:
        inverse.rotate(draws.gate_with(draws.symmetric() * (math.pi * ops.rotate_max), rotate_probability, 0))
    if ops.aniso > 0:
        factor = draws.gate(torch.exp2(draws.normal() * ops.aniso_std), ops.aniso, 1)
        inverse.scale(factor, 1 / factor)
    if ops.rotate > 0 and draws.percentile is None:  # a fixed percentile would turn by the same angle twice; the field turns once
        inverse.rotate(draws.gate_with(draws.symmetric() * (math.pi * ops.rotate_max), rotate_probability, 0))
    if ops.xfrac > 0:
        inverse.translate(draws.gate(draws.normal(2) * ops.xfrac_std, ops.xfrac, 0) * size)
    return inverse.linear, inverse.shift


# Warping. Pixel j of the image, padded by reflection by its size - 1 on both sides ("padded pixel"), lies at sample 2j of a lattice twice as fine.
# The output is first sampled on such a lattice too, wider than the output by the support of the filter that brings it down again.


@dataclass(frozen=True)
class _Axis:
    """One axis of the warp: image size, and the range of the padded image's fine lattice that the warp can touch."""

    size: int
    start: int
    stop: int

    @property
    def span(self) -> int:
        return self.stop - self.start

    def resampled(self, taps: int) -> int:
        """Fine samples on the output side."""
        return 2 * self.size + taps - 2


def warp(images: torch.Tensor, linear: torch.Tensor, shift: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Moves images by an affine transform, sampled bilinearly at twice the resolution between a pair of low-pass filters.

    What lies outside of an image is its mirror image, as far as size - 1 pixels on each side, and zero beyond that.

    Args:
        images: float [N, C, H, W].
        linear: [N, 2, 2] and
        shift: [N, 2, 1], taking output positions to image positions.
        taps: [12], the sym6 low-pass filter with sum 1.

    Returns:
        [N, C, H, W], linear in the images and differentiable any number of times with respect to them.
    """
    height, width = images.shape[2:]
    x, y = _touched_ranges(linear, shift, width, height, len(taps))
    dense = max(height, width) <= DENSE_MAX_SIZE
    fine = (_enlarge_dense if dense else _enlarge_filtered)(images, x, y, taps)
    sampled = grid_sample(fine, _sampling_grid(linear, shift, x, y, len(taps), images.shape))
    return _shrink_dense(sampled, x, y, taps) if dense else upfirdn2d(sampled, taps, down=2, flip_filter=True)


def _touched_ranges(linear: torch.Tensor, shift: torch.Tensor, width: int, height: int, num_taps: int) -> tuple[_Axis, _Axis]:
    """The parts of the fine lattice that the output's positions reach. They change the speed, never the numbers.

    On a CPU the parts are read off the transformed corners; elsewhere that would make the host wait for the device, so all of the lattice is used.
    """
    full = [_Axis(size, 0, 2 * (3 * size - 2)) for size in (width, height)]
    if linear.device.type != "cpu":
        return full[0], full[1]
    size = torch.tensor([[width], [height]])
    reach = size / 2 + num_taps / 4 - 0.25
    signs = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]])
    positions = _lattice_index(linear @ (reach * signs + 0.25) + shift, size)
    lowest, highest = positions.amin(dim=(0, 2)).floor() - 1, positions.amax(dim=(0, 2)).ceil() + 2
    return tuple(_clip(axis, int(low), int(high)) for axis, low, high in zip(full, lowest.tolist(), highest.tolist()))


def _clip(full: _Axis, start: int, stop: int) -> _Axis:
    start = min(max(start, 0), full.stop - 1)
    return _Axis(full.size, start, min(max(stop, start + 1), full.stop))


def _lattice_index(position, size):
    """Sample of the padded image's fine lattice at a position about the image's centre."""
    return 2 * position + 3 * (size - 1)


def _sampling_grid(linear: torch.Tensor, shift: torch.Tensor, x: _Axis, y: _Axis, num_taps: int, shape: torch.Size) -> torch.Tensor:
    """Where each fine sample of the output lies on the touched part of the image's lattice, in the units of `grid_sample`: [N, h, w, 2]."""
    device = linear.device
    size, start, span, extent = torch.tensor(
        [[x.size, y.size], [x.start, y.start], [x.span, y.span], [x.resampled(num_taps), y.resampled(num_taps)]], dtype=torch.float32
    ).to(device, non_blocking=True)
    # affine_grid hands out positions in [-1, 1]; a fine sample is half a pixel wide, and the filter's centre lies half a sample beside its middle.
    to_index = 4 / span[:, None]
    offset = (2 * (_lattice_index(0, size) - start) + 1) / span - 1
    shift = to_index * (shift + linear.sum(dim=2, keepdim=True) * 0.25) + offset[:, None]
    linear = to_index * linear * (extent / 4)
    return F.affine_grid(torch.cat([linear, shift], dim=2), [shape[0], shape[1], y.resampled(num_taps), x.resampled(num_taps)], align_corners=False)


def reflected_indices(size: int, margin: int, device: torch.device) -> torch.Tensor:
    """Image indices of positions -margin to size - 1 + margin under reflection about the edge pixels, repeated as often as needed."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(-margin, size + margin, device=device).remainder(period)
    return torch.minimum(position, (period - position).clamp(max=size - 1) if size > 1 else position)


def _enlarge_matrix(axis: _Axis, taps: torch.Tensor) -> torch.Tensor:
    """[span, size]: padding by reflection, zero insertion and low-pass filtering of one axis as one matrix."""
    fine = torch.arange(axis.start, axis.stop, device=taps.device)[:, None]
    padded = torch.arange(3 * axis.size - 2, device=taps.device)[None, :]
    tap = fine - 2 * padded + SYM6_CENTER
    inside = (tap >= 0) & (tap < len(taps))
    weights = torch.where(inside, 2 * taps[tap.clamp(0, len(taps) - 1)], 0)
    source = reflected_indices(axis.size, axis.size - 1, taps.device)
    return weights.new_zeros([axis.span, axis.size]).index_add_(1, source, weights)


def _shrink_matrix(axis: _Axis, taps: torch.Tensor) -> torch.Tensor:
    """[size, resampled]: low-pass filtering and dropping every other sample of one axis as one matrix."""
    tap = torch.arange(axis.resampled(len(taps)), device=taps.device)[None, :] - 2 * torch.arange(axis.size, device=taps.device)[:, None]
    return torch.where((tap >= 0) & (tap < len(taps)), taps[tap.clamp(0, len(taps) - 1)], 0)


def _apply_matrices(images: torch.Tensor, along_x: torch.Tensor, along_y: torch.Tensor) -> torch.Tensor:
    """`along_y @ image @ along_x^T` for every channel of every image."""
    return along_y.to(images.dtype) @ (images @ along_x.to(images.dtype).t())


def _enlarge_dense(images: torch.Tensor, x: _Axis, y: _Axis, taps: torch.Tensor) -> torch.Tensor:
    return _apply_matrices(images, _enlarge_matrix(x, taps), _enlarge_matrix(y, taps))


def _shrink_dense(fine: torch.Tensor, x: _Axis, y: _Axis, taps: torch.Tensor) -> torch.Tensor:
    return _apply_matrices(fine, _shrink_matrix(x, taps), _shrink_matrix(y, taps))


def _enlarge_filtered(images: torch.Tensor, x: _Axis, y: _Axis, taps: torch.Tensor) -> torch.Tensor:
    """As `_enlarge_dense`, by padding no more than the touched range and the filter's support ask for."""
    reflection, padding = [], []
    for axis in (x, y):
        first = min(max((axis.start - len(taps) + SYM6_CENTER + 2) // 2, 0), axis.size - 1)
        last = max(min((axis.stop - 1 + SYM6_CENTER) // 2, 3 * axis.size - 3), 2 * axis.size - 2)
        reflection += [axis.size - 1 - first, last - (2 * axis.size - 2)]
        before = len(taps) - 1 - SYM6_CENTER - (axis.start - 2 * first)
        padding += [before, axis.span + len(taps) - 1 - 2 * (last - first + 1) - before]
    return upfirdn2d(F.pad(images, reflection, mode="reflect"), taps, up=2, padding=padding, gain=4)
