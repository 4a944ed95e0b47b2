"""Feature vectors as the nearest-neighbour metrics take them, and what a distance between two of them is.

One definition serves every metric built on distances. The squared distance of two rows is the sum of their squared differences, computed in
float64 and rounded once to the precision of the features (float32, or float64 where the features are); the distance is its square root,
rounded to the same precision. Ties are ties of rounded distances, the same on every device, for every block size and for data with any mean.

How the few distances that matter are found among all of them is the work of `metrics.neighbours`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib import UserError

BLOCK_CPU, BLOCK_GPU, MIN_BLOCK = 2048, 8192, 256  # rows
BLOCK_ENTRIES = 1 << 24  # feature values in a block, unless that makes blocks of fewer than MIN_BLOCK rows
PAIR_ENTRIES = 1 << 20  # feature values on either side of the pairs whose distances are summed at once
SAFE_SCALES = 2.0**-200, 2.0**200  # between these, squares of unscaled float64 differences are far from their limits; float32 features always are
MOST_EXPONENT = 1023  # of a scale


class MetricWarning(UserWarning):
    """Input for which a figure is computed as asked for, but is not what it seems."""


def as_features(values: Any, name: str) -> torch.Tensor:
    """Checks a feature matrix and returns it as a float32 or float64 tensor [N, D], on the device it is on.

    Half precision becomes float32, integers float64.

    Raises:
        UserError: not two-dimensional, empty, or not finite everywhere.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise UserError(f"{name} features have shape {list(tensor.shape)}; a matrix [points, dimensions] with at least one of each is needed")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    elif tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    bad = sum(int((~torch.isfinite(part)).any(dim=1).sum()) for part in tensor.split(MIN_BLOCK))
    if bad:
        raise UserError(f"{name} features hold NaN or infinity in {bad:,} of {len(tensor):,} rows; only finite features can be compared")
    return tensor


def distance_device(device: torch.device) -> torch.device:
    """The device on which distances are computed: `device`, or the CPU where `device` has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


class PointSet:
    """Feature vectors ready for distance computations.

    Args:
        features: [N, D] float tensor, on the device of the computation.
        centre: [D] float64, a point amid the features: products of centred rows are smaller, and so are their errors.
        dtype: precision to which distances are rounded.
        block: rows per block.
        scale: power of two that brings the centred features to the order of 1, so that squares neither overflow nor vanish.
    """

    def __init__(self, features: torch.Tensor, centre: torch.Tensor, dtype: torch.dtype, block: int, scale: float = 1.0):
        self.features = features
        self.centre = centre
        self.dtype = dtype
        self.block = block
        self.scale = scale

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self, size: int | None = None) -> list[tuple[int, int]]:
        """(first, last + 1) row numbers of each block of `size` rows; None: the set's own."""
        size = size or self.block
        return [(first, min(first + size, len(self))) for first in range(0, len(self), size)]

    def centred(self, first: int, last: int) -> torch.Tensor:
        """Rows first..last-1 less the centre, scaled: float64 [n, D]."""
        rows = self.features[first:last].to(torch.float64, copy=True)
        return rows.sub_(self.centre).mul_(self.scale)

    def distances(self, squared: torch.Tensor) -> torch.Tensor:
        """Distances in the units of the features, for rounded squared ones in units of the scale."""
        # Roots first: squares in the units of the features may be too large or too small for their type.
        return (squared.sqrt().to(torch.float64) / self.scale).to(squared.dtype)

    def recentred(self) -> PointSet:
        """The same points around their own centre."""
        return PointSet(self.features, _centre(self.features), self.dtype, self.block, self.scale)


def make_point_sets(real: torch.Tensor, fake: torch.Tensor, device: torch.device, block: int | None = None) -> tuple[PointSet, PointSet]:
    """Two point sets with one centre (near the mean of `real`), one scale and one precision.

    Args:
        real, fake: matrices of `as_features`.
        device: where distances are computed.
        block: rows per block; it bounds memory and changes no result. None: what suits the device and the dimensions.

    Raises:
        UserError: the sets differ in dimension.
    """
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real features have {real.shape[1]} dimensions and fake features {fake.shape[1]}; both must come from one detector")
    device = distance_device(device)
    block = block or _block_rows(device, real.shape[1])
    dtype = torch.promote_types(real.dtype, fake.dtype)
    real, fake = real.to(device), fake.to(device)
    centre = _centre(real)
    scale = _scale([real, fake], centre)
    return PointSet(real, centre, dtype, block, scale), PointSet(fake, centre, dtype, block, scale)


def exact_squared(a: PointSet, rows: torch.Tensor, b: PointSet, partners: torch.Tensor) -> torch.Tensor:
    """Squared distances [P] in float64, in units of the sets' scale, of the pairs (rows[p] of `a`, partners[p] of `b`), before they are rounded."""
    dim, device = a.features.shape[1], rows.device
    found = torch.empty(len(rows), dtype=torch.float64, device=device)
    step = max(PAIR_ENTRIES // dim, 1)
    # Buffers that stay: fresh memory would cost as much as the arithmetic.
    narrow = [points.features.new_empty([step, dim]) for points in (a, b)]
    wide = torch.empty([2, step, dim], dtype=torch.float64, device=device)
    # Scaling is exact, so that it may come last, where it costs nothing, unless a square would overflow or vanish before.
    before, after = (1.0, a.scale**2) if SAFE_SCALES[0] < a.scale < SAFE_SCALES[1] else (a.scale, 1.0)
    for first in range(0, len(rows), step):
        count = min(step, len(rows) - first)
        for side, points, chosen in zip(range(2), (a, b), (rows, partners)):
            wide[side, :count] = torch.index_select(points.features, 0, chosen[first : first + count], out=narrow[side][:count])
        differences = wide[0, :count].sub_(wide[1, :count])
        if before != 1:
            differences.mul_(before)
        torch.sum(differences.square_(), dim=1, out=found[first : first + count])
    return found.mul_(after)


def cross_blocks(a: PointSet, b: PointSet) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yields (rows of a, rows of b, rounded squared distances [n, m]) over all pairs of blocks; every pair of points appears once.

    The distances are in units of the sets' scale: `PointSet.distances` gives them in those of the features.
    """
    for first, last in a.blocks():
        own = a.centred(first, last)
        for other_first, other_last in b.blocks():
            other = b.centred(other_first, other_last)
            norms = own.square().sum(dim=1, keepdim=True) + other.square().sum(dim=1)
            squared = torch.addmm(norms, own, other.t(), alpha=-2)
            # Between near points little is left of the norms but their rounding.
            near = (squared <= 2**-20 * norms).nonzero()
            squared[near[:, 0], near[:, 1]] = exact_squared(a, near[:, 0] + first, b, near[:, 1] + other_first)
            yield slice(first, last), slice(other_first, other_last), squared.to(a.dtype)


def places(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Place of each entry among the entries of its row, from 0, for row numbers [P] below `count` in rising order."""
    sizes = torch.bincount(rows, minlength=count)
    starts = sizes.cumsum(dim=0) - sizes
    return torch.arange(len(rows), device=rows.device) - starts[rows]


def _block_rows(device: torch.device, dim: int) -> int:
    most = BLOCK_GPU if device.type == "cuda" else BLOCK_CPU
    return min(most, max(MIN_BLOCK, BLOCK_ENTRIES // dim))


def _centre(features: torch.Tensor) -> torch.Tensor:
    """About the mean [D] of the rows, in float64, on a grid of powers of two a little finer than the spread of each feature.

    On such a grid the subtraction keeps coarse values (integers, say) exact.
    """
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in features.split(MIN_BLOCK)]).sum(dim=0) / len(features)
    spread = features.amax(dim=0).to(torch.float64) - features.amin(dim=0).to(torch.float64)
    grid = torch.exp2(torch.floor(torch.log2(spread)) - 4)
    return torch.where(spread > 0, torch.round(mean / grid) * grid, features[0].to(torch.float64))


def _scale(sets: list[torch.Tensor], centre: torch.Tensor) -> float:
    """The power of two that brings the largest centred feature to between 1 and 2; 1 where all are 0."""
    corners = torch.stack([corner.to(torch.float64) for features in sets for corner in (features.amin(dim=0), features.amax(dim=0))])
    extent = float((corners - centre).abs().max())
    return math.ldexp(1.0, min(-math.floor(math.log2(extent)), MOST_EXPONENT)) if extent > 0 else 1.0
