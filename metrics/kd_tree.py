"""Nearest neighbours and near pairs in few dimensions, where a k-d tree looks at few of all pairs. On the CPU.

The tree proposes pairs, from balls a trifle larger than asked for; what counts are their exact distances, as in `metrics.neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial import KDTree

from metrics.points import PointSet, exact_squared, places

MAX_DIM = 4  # beyond, products of matrices are as fast
ROOM = 1 + 1e-12  # many times what the tree's own arithmetic is off by
PAIRS = 1 << 21  # pairs listed at once, unless one ball holds more


def serves(points: PointSet) -> bool:
    """Whether the tree is the faster way for such points."""
    return points.features.device.type == "cpu" and points.features.shape[1] <= MAX_DIM


def k_nearest(points: PointSet, k: int) -> torch.Tensor:
    """As `neighbours.k_nearest`: exact squared distances [N, k] to the k nearest others in rising order, in units of the set's scale."""
    rows = _scaled(points)
    tree = KDTree(rows)
    # The nearest of all is the point itself, or a copy of it.
    farthest = tree.query(rows, k + 1, workers=torch.get_num_threads())[0][:, k]
    nearest = torch.zeros([len(points), k], dtype=torch.float64)
    for centres, partners in _within(tree, rows, farthest):
        others = centres != partners
        centres, partners = centres[others], partners[others]
        exact = exact_squared(points, centres, points, partners)
        order = exact.argsort(stable=True)
        order = order[centres[order].argsort(stable=True)]
        centres, exact = centres[order], exact[order]
        place = places(centres, len(points))
        near = place < k
        nearest[centres[near], place[near]] = exact[near]
    return nearest


def near_pairs(
    a: PointSet, a_bounds: torch.Tensor, b: PointSet, b_bounds: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """As `neighbours.near_pairs`."""
    a_rows, b_rows = _scaled(a), _scaled(b)
    a_limits, b_limits = (bounds.amax(dim=0).to(torch.float64) for bounds in (a_bounds, b_bounds))

    def values(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return exact_squared(a, rows, b, columns).to(a.dtype).to(torch.float64)

    for rows, columns in _within(KDTree(b_rows), a_rows, a_limits.sqrt().numpy()):
        yield rows, columns, values(rows, columns)
    for columns, rows in _within(KDTree(a_rows), b_rows, b_limits.sqrt().numpy()):
        found = values(rows, columns)
        # Pairs below a bound of `a` have been found above.
        new = found >= a_limits[rows]
        yield rows[new], columns[new], found[new]


def _scaled(points: PointSet) -> np.ndarray:
    """The features [N, D] in float64. They are not centred, which would round them."""
    return (points.features.to(torch.float64) * points.scale).numpy()


def _within(tree: KDTree, centres: np.ndarray, radii: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (centre, point of the tree) [P] of all pairs nearer than the radius of the centre, and of few others; none where it is 0."""
    workers = torch.get_num_threads()
    balls = np.flatnonzero(radii > 0)
    radii = radii[balls] * ROOM
    sizes = tree.query_ball_point(centres[balls], radii, return_length=True, workers=workers)
    groups = np.cumsum(sizes) // PAIRS
    for group in np.split(np.arange(len(balls)), np.flatnonzero(np.diff(groups)) + 1):
        lists = tree.query_ball_point(centres[balls[group]], radii[group], workers=workers)
        points = np.concatenate([np.asarray(found, dtype=np.int64) for found in lists]) if len(lists) else np.empty(0, np.int64)
        yield torch.from_numpy(balls[group].repeat(sizes[group])), torch.from_numpy(points)
