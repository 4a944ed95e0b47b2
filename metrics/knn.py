"""Nearest-neighbour distances between sets of feature vectors: exact, in bounded memory, on any device that has float64.

What a distance is stands in `metrics.points`; how those that matter are found in `metrics.neighbours` and, in few dimensions, `metrics.kd_tree`;
what is counted with them in `metrics.prdc`. A point is never its own neighbour, but a copy of it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dnnlib import UserError
from metrics import kd_tree, neighbours
from metrics.points import MetricWarning, PointSet, as_features, cross_blocks, distance_device, make_point_sets

__all__ = [
    "MetricWarning",
    "PointSet",
    "as_features",
    "check_k",
    "cross_blocks",
    "distance_device",
    "k_nearest",
    "kth_distance",
    "make_point_sets",
    "near_pairs",
    "radius_bound",
]


def check_k(points: PointSet, k: int, name: str) -> None:
    """Refuses a number of neighbours that the points of a set do not have.

    Raises:
        UserError: k below 1, or fewer than k + 1 points.
    """
    if k < 1:
        raise UserError(f"the number of nearest neighbours is {k}; it must be at least 1")
    if len(points) < k + 1:
        raise UserError(f"{len(points)} {name} points are too few for {k} nearest neighbours; at least {k + 1} are needed")


def k_nearest(points: PointSet, k: int, name: str, screening: str | None = None) -> torch.Tensor:
    """Rounded squared distances [N, k] from every point to its k nearest others in rising order, in units of the set's scale.

    Args:
        points: N points.
        k: neighbours, at least 1.
        name: what messages call the points.
        screening: precision that pairs are first compared in: bfloat16, float32 or float64; it changes no result. None: the fastest.

    Raises:
        UserError: fewer than k + 1 points.
    """
    check_k(points, k, name)
    found = kd_tree.k_nearest(points, k) if screening is None and kd_tree.serves(points) else neighbours.k_nearest(points, k, screening)
    return found.to(points.dtype)


def kth_distance(points: PointSet, k: int, name: str) -> torch.Tensor:
    """Distance [N] of every point to its k-th nearest other point of the same set, rounded to the precision of the features.

    Raises:
        UserError: fewer than k + 1 points.
    """
    return points.distances(k_nearest(points, k, name)[:, -1])


def near_pairs(
    a: PointSet, a_bounds: torch.Tensor, b: PointSet, b_bounds: torch.Tensor, screening: str | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields (rows of a, rows of b, values) of the pairs that are nearer than a bound of either point, as `neighbours.near_pairs`."""
    if screening is None and kd_tree.serves(a):
        return kd_tree.near_pairs(a, a_bounds, b, b_bounds)
    return neighbours.near_pairs(a, a_bounds, b, b_bounds, screening)


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
