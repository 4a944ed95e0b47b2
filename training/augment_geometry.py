"""Geometric augmentations: sampling one affine transform per image, and warping images by it without aliasing.

Colour, filtering, noise and cutout live in their own modules; the order and the public class are in `training.augment`.
Coordinates are in pixels about the image's centre, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from torch_utils.band_matrix import band_matrix, fold_reflection
from torch_utils.ops import backend
from torch_utils.ops.grid_sample import grid_sample
from torch_utils.ops.upfirdn2d import upfirdn2d
from torch_utils.wavelets import SYM6_CENTER
from training.augment_draws import Draws

DENSE_MAX_SIZE = {"reference": 256, "native": 32}
"""Up to this height and width each axis is resampled by one dense matrix, beyond it by filtering, by the ops in use. The numbers are the same;
on a CPU the matrices are 13 times as fast as the reference op at 32 pixels and 3 times at 256, the native op 1.6 times as fast as the matrices
at 64 and 3 times at 256, forward."""


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

    def active(self) -> bool:
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
        self.linear = _multiply(self.linear, torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2))

    def translate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """The image moves by x and y pixels, each [N]."""
        self.shift = self.shift - _multiply(self.linear, torch.stack([x, y], dim=1)[:, :, None])


def _multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[N, 2, 2] times [N, 2, k] in full precision: a reduced-precision matrix product would move images by visible parts of a pixel."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(dim=2)


def sample_transform(ops: GeometryOps, draws: Draws, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one transform per image (Karras et al. 2020, "Training GANs with Limited Data", appendix B, geometric transformations).

    Returns:
        (linear [N, 2, 2], shift [N, 2, 1]), which take output positions to image positions.
    """
    inverse = _InverseTransform(draws.batch, draws.p.device)
    if ops.xflip > 0:
        mirror = draws.gate(1 - 2 * draws.choice(2), ops.xflip, 1)
        inverse.scale(mirror, torch.ones_like(mirror))
    if ops.rotate90 > 0:
        inverse.rotate(draws.gate(draws.choice(4), ops.rotate90, 0) * (math.pi / 2))
    if ops.xint > 0:
        x, y = draws.gate(draws.symmetric(2) * ops.xint_max, ops.xint, 0).unbind(dim=1)
        inverse.translate((x * width).round(), (y * height).round())
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
        x, y = draws.gate(draws.normal(2) * ops.xfrac_std, ops.xfrac, 0).unbind(dim=1)
        inverse.translate(x * width, y * height)
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
    dense = max(height, width) <= DENSE_MAX_SIZE[backend.implementation(images.device.type)]
    fine = (_enlarge_dense if dense else _enlarge_filtered)(images, x, y, taps)
    sampled = grid_sample(fine, _sampling_grid(linear, shift, x, y, len(taps)).to(images.dtype))
    return _shrink_dense(sampled, x, y, taps) if dense else upfirdn2d(sampled, taps, down=2, flip_filter=True)


def _output_positions(axis: _Axis, num_taps: int, device: torch.device) -> torch.Tensor:
    """Positions along one axis, about the image's centre, of the fine samples that the output is made of: [resampled]."""
    return (torch.arange(axis.resampled(num_taps), device=device) - SYM6_CENTER) / 2 - (axis.size - 1) / 2


def _lattice_index(position: torch.Tensor | float, size: int) -> torch.Tensor | float:
    """Sample of the padded image's fine lattice at a position about the image's centre."""
    return 2 * position + 3 * (size - 1)


def _reads_positions(device: torch.device) -> bool:
    """Whether values on that device are at hand for the host without waiting."""
    return device.type == "cpu"


def _touched_ranges(linear: torch.Tensor, shift: torch.Tensor, width: int, height: int, num_taps: int) -> list[_Axis]:
    """For x and y, the part of the fine lattice that the output's positions reach. It changes the speed, never the numbers.

    On a CPU it is read off the transformed corners. Elsewhere that would make the host wait for the device, so it is the whole lattice.
    """
    full = [_Axis(size, 0, 2 * (3 * size - 2)) for size in (width, height)]
    if not _reads_positions(linear.device):
        return full
    ends_x, ends_y = (_output_positions(axis, num_taps, linear.device)[[0, -1]] for axis in full)
    corners = _multiply(linear, torch.cartesian_prod(ends_x, ends_y).t()[None]) + shift
    touched = []
    for axis, positions in zip(full, corners.unbind(dim=1)):
        index = _lattice_index(positions, axis.size)
        # One sample more on each side, because the positions are computed again, with another rounding, for the grid.
        start = min(max(math.floor(index.min().item()) - 1, 0), axis.stop - 1)
        stop = max(min(math.ceil(index.max().item()) + 2, axis.stop), start + 1)
        touched.append(_Axis(axis.size, start, stop))
    return touched


def _sampling_grid(linear: torch.Tensor, shift: torch.Tensor, x: _Axis, y: _Axis, num_taps: int) -> torch.Tensor:
    """Where each fine sample of the output lies on the touched part of the image's lattice, in the units of `grid_sample`: [N, h, w, 2]."""
    columns = _output_positions(x, num_taps, linear.device)[:, None]
    rows = _output_positions(y, num_taps, linear.device)[:, None, None]
    by_column, by_row, constant = [], [], []
    for i, axis in enumerate((x, y)):
        unit = 2 / axis.span
        by_column.append(linear[:, i, 0] * (2 * unit))
        by_row.append(linear[:, i, 1] * (2 * unit))
        constant.append(shift[:, i, 0] * (2 * unit) + ((_lattice_index(0, axis.size) - axis.start + 0.5) * unit - 1))
    by_column, by_row, constant = (torch.stack(values, dim=1)[:, None, None, :] for values in (by_column, by_row, constant))
    return (by_column * columns + constant) + by_row * rows


def _enlarge_matrix(axis: _Axis, taps: torch.Tensor) -> torch.Tensor:
    """[span, size]: padding by reflection, zero insertion and low-pass filtering of one axis as one matrix."""
    fine = torch.arange(axis.start, axis.stop, device=taps.device)[:, None]
    padded = torch.arange(3 * axis.size - 2, device=taps.device)[None, :]
    return fold_reflection(band_matrix(2 * taps, fine - 2 * padded + SYM6_CENTER), axis.size)


def _shrink_matrix(axis: _Axis, taps: torch.Tensor) -> torch.Tensor:
    """[size, resampled]: low-pass filtering and dropping every other sample of one axis as one matrix."""
    fine = torch.arange(axis.resampled(len(taps)), device=taps.device)[None, :]
    return band_matrix(taps, fine - 2 * torch.arange(axis.size, device=taps.device)[:, None])


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
