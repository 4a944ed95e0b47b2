"""Nearest-neighbour distances between sets of feature vectors, block by block in bounded memory, on any device that has float64.

One definition of a distance serves every metric built on it: the squared distance is computed in float64, rounded once to the precision of
the features (float32, or float64 where the features are), and its square root is rounded to the same precision. Ties are therefore ties of
rounded distances, the same on every device and for every block size. Rows nearer than about 3e-7 of their length from the centre are one
point, at distance 0. A point is never its own neighbour: the diagonal is masked, whatever the distances say.

What is counted with these distances lives in `metrics.prdc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dnnlib import UserError

# Squared distance below which two rows are the same point, relative to the sum of their squared norms: what float64 cancellation leaves.
SAME_POINT = 1e-13
BLOCK_CPU, BLOCK_GPU = 2048, 8192


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
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).any(dim=1).sum())
        raise UserError(f"{name} features hold NaN or infinity in {bad:,} of {len(tensor):,} rows; only finite features can be compared")
    return tensor


def distance_device(device: torch.device) -> torch.device:
    """The device on which distances are computed: `device`, or the CPU where `device` has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


class PointSet:
    """Feature vectors ready for distance computations: rows are centred and widened to float64 only a block at a time.

    Args:
        features: [N, D] float tensor, on the device of the computation.
        centre: [D] float64; subtracting it keeps the matmul form of the distance exact where all features share a large mean.
        dtype: precision to which distances are rounded.
        block: rows per block.
    """

    def __init__(self, features: torch.Tensor, centre: torch.Tensor, dtype: torch.dtype, block: int):
        self.features = features
        self.centre = centre
        self.dtype = dtype
        self.block = block

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> list[tuple[int, int]]:
        """(first, last + 1) row numbers of each block."""
        return [(first, min(first + self.block, len(self))) for first in range(0, len(self), self.block)]

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows first..last-1 centred in float64, followed by 1 and their squared norm: [n, D + 2]."""
        rows = self.features[first:last].to(torch.float64) - self.centre
        norms = rows.square().sum(dim=1, keepdim=True)
        return torch.cat([rows, torch.ones_like(norms), norms], dim=1)


def make_point_sets(real: torch.Tensor, fake: torch.Tensor, device: torch.device, block: int | None = None) -> tuple[PointSet, PointSet]:
    """Two point sets with one centre (near the mean of `real`) and one precision. Block size only bounds memory, results do not depend on it.

    Raises:
        UserError: the sets differ in dimension.
    """
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real features have {real.shape[1]} dimensions and fake features {fake.shape[1]}; both must come from one detector")
    device = distance_device(device)
    block = block or (BLOCK_GPU if device.type == "cuda" else BLOCK_CPU)
    dtype = torch.promote_types(real.dtype, fake.dtype)
    real, fake = real.to(device), fake.to(device)
    centre = _centre(real, block)
    return PointSet(real, centre, dtype, block), PointSet(fake, centre, dtype, block)


def _centre(features: torch.Tensor, block: int) -> torch.Tensor:
    """About the mean [D] of the rows, in float64, on a grid of powers of two a little finer than the spread of each feature.

    On such a grid the subtraction keeps coarse values (integers, say) exact, and with them the ties between their distances.
    """
    mean = torch.stack([chunk.sum(dim=0, dtype=torch.float64) for chunk in features.split(block)]).sum(dim=0) / len(features)
    spread = features.amax(dim=0).to(torch.float64) - features.amin(dim=0).to(torch.float64)
    grid = torch.exp2(torch.floor(torch.log2(spread)) - 4)
    return torch.where(spread > 0, torch.round(mean / grid) * grid, features[0].to(torch.float64))


def _squared_distances(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Squared distances [n, m] between two blocks made by `PointSet.rows`, rounded to `dtype`."""
    # One product gives |a|^2 + |b|^2 - 2 a.b: [a, 1, |a|^2] times [-2 b, |b|^2, 1]. Passes over the result cost as much as small products.
    right = torch.cat([-2 * b[:, :-2], b[:, -1:], b[:, -2:-1]], dim=1)
    squared = (a @ right.t()).to(dtype)
    # Where two rows coincide their norms are equal, so twice one of them stands for the sum.
    return squared.masked_fill_(squared <= (2 * SAME_POINT * a[:, -1:]).to(dtype), 0)


def kth_neighbour(points: PointSet, k: int, name: str) -> torch.Tensor:
    """Squared distance [N] of every point to its k-th nearest other point of the same set.

    Each pair of blocks is computed once and serves both of its sides.

    Raises:
        UserError: fewer than k + 1 points.
    """
    if k < 1:
        raise UserError(f"the number of nearest neighbours is {k}; it must be at least 1")
    if len(points) < k + 1:
        raise UserError(f"{len(points)} {name} points are too few for {k} nearest neighbours; at least {k + 1} are needed")
    nearest = torch.full((len(points), k), torch.inf, dtype=points.dtype, device=points.features.device)
    blocks = points.blocks()
    for index, (first, last) in enumerate(blocks):
        own = points.rows(first, last)
        for other_first, other_last in blocks[index:]:
            same = other_first == first
            squared = _squared_distances(own, own if same else points.rows(other_first, other_last), points.dtype)
            if same:
                squared.fill_diagonal_(torch.inf)
            else:
                _keep_smallest(nearest[other_first:other_last], squared.t().contiguous())
            _keep_smallest(nearest[first:last], squared)
    return nearest.amax(dim=1)


def _keep_smallest(nearest: torch.Tensor, squared: torch.Tensor) -> None:
    """Merges the columns of `squared` [n, m] into the k smallest values found so far [n, k], in place."""
    k = nearest.shape[1]
    found = squared.topk(min(k, squared.shape[1]), dim=1, largest=False, sorted=False).values
    nearest.copy_(torch.cat([nearest, found], dim=1).topk(k, dim=1, largest=False, sorted=False).values)


def cross_blocks(a: PointSet, b: PointSet) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yields (rows of a, rows of b, squared distances [n, m]) over all pairs of blocks; every pair of points appears once."""
    for first, last in a.blocks():
        own = a.rows(first, last)
        for other_first, other_last in b.blocks():
            squared = _squared_distances(own, b.rows(other_first, other_last), a.dtype)
            yield slice(first, last), slice(other_first, other_last), squared


def radius_bound(squared_radius: torch.Tensor, closed: bool) -> torch.Tensor:
    """The bound [N] for which `squared < bound` says exactly what comparing the rounded distances says.

    With `closed` that is `distance <= radius`, else `distance < radius`. Rounding the root merges neighbouring squares, so comparing the
    squares with the squared radius would decide some ties differently.
    """
    squared = squared_radius.cpu().numpy()
    radius = np.sqrt(squared)
    direction = squared.dtype.type(np.inf if closed else 0)
    bound = squared.copy()
    while True:
        step = np.nextafter(bound, direction)
        moves = (np.sqrt(step) == radius) & (step != bound)
        if not moves.any():
            break
        bound = np.where(moves, step, bound)
    if closed:
        bound = np.nextafter(bound, direction)
    return torch.from_numpy(bound).to(squared_radius.device)
