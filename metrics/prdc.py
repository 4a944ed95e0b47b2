"""Precision, recall, density and coverage of generated features against real ones, from one set of nearest-neighbour distances.

Sources: Kynkäänniemi et al. 2019 (improved precision and recall), Naeem et al. 2020 (density and coverage). Distances come from
`metrics.knn`; which points are compared, and how many, is a protocol's business (`metrics.registry`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from dnnlib import UserError
from metrics import knn


def compute_prdc(
    real_features: Any,
    fake_features: Any,
    nearest_k: int = 5,
    *,
    closed: bool = False,
    device: torch.device | str | None = None,
    block: int | None = None,
    screening: str | None = None,
) -> dict[str, float]:
    """Precision, recall, density and coverage with open balls, or closed ones as StyleGAN2-ADA counts its precision and recall.

    The ball around a point reaches to its k-th nearest other point of the same set; the balls of a set stand for the support of the
    distribution it was drawn from. With N real points x_i and M fakes y_j,

        precision   share of the fakes that lie in the ball of some x_i: fidelity, upset by a real outlier, whose ball is large
        recall      share of the reals that lie in the ball of some y_j: diversity, upset by a generated outlier
        density     mean over the fakes of (number of balls of the x_i that hold it) / k: fidelity; 1 in expectation for samples of the
                    same distribution, more where fakes crowd in dense regions
        coverage    share of the x_i whose ball holds a fake: diversity. For N = M and samples of the same distribution it is about
                    1 - 2^-k, not 1 (`coverage_ceiling`), and it rises with M / N: compare values of equal N, M and k only

    These are estimates from finite samples and depend on N, M and k. They are not random: equal input gives equal output, and neither the
    order of the rows, nor the device, nor `block`, nor `screening` matters. Distances are Euclidean, computed as float64 numbers would
    give them and rounded to the precision of the features, so a large common mean costs no accuracy and counts are exact.

    Args:
        real_features: [N, D] numpy array or tensor of any float type; integers are taken as float64.
        fake_features: [M, D], the same D.
        nearest_k: neighbours k that set the radius of a ball, the point itself not counted.
        closed: False counts `distance < radius`, as Naeem et al.'s code; True counts `distance <= radius`, as StyleGAN2-ADA.
        device: where to compute; default is the device of `real_features`.
        block: rows per block of distances; bounds memory, changes no result.
        screening: bfloat16, float32 or float64: in what precision pairs are first compared; changes no result. Default is the fastest.

    Returns:
        {"precision", "recall", "density", "coverage"}: shares in 0..1, density at least 0. With open balls, k or more copies of a point
        make its ball empty.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than k + 1 points in either set.

    Warns:
        MetricWarning: fewer points than dimensions; N different from M, with the ceiling of coverage; or points with copies of themselves.
    """
    real, fake = knn.as_features(real_features, "real"), knn.as_features(fake_features, "fake")
    (figures,), copies = _measure(real, fake, [(nearest_k, closed)], device, block, screening)
    for message in _doubts(real, fake, nearest_k, copies):
        warnings.warn(message, knn.MetricWarning, stacklevel=2)
    return figures


def prdc_of_balls(
    real_features: Any,
    fake_features: Any,
    balls: Sequence[tuple[int, bool]],
    *,
    device: torch.device | str | None = None,
    block: int | None = None,
    screening: str | None = None,
) -> list[dict[str, float]]:
    """`compute_prdc` for several (nearest_k, closed) at little more than the cost of one, in their order; warns of nothing.

    Raises:
        UserError: as `compute_prdc`, or no balls.
    """
    if not balls:
        raise UserError("no (nearest_k, closed) is given; at least one is needed")
    real, fake = knn.as_features(real_features, "real"), knn.as_features(fake_features, "fake")
    return _measure(real, fake, balls, device, block, screening)[0]


def coverage_ceiling(num_real: int, num_fake: int, nearest_k: int) -> float:
    """Expected coverage of a perfect generator: 1 - prod_{i<k} (N - 1 - i) / (M + N - 1 - i), about 1 - 2^-k where N = M.

    A ball stays empty when the k nearest of the N - 1 + M other points, all from one distribution, are all real.
    """
    return 1 - math.prod((num_real - 1 - i) / (num_fake + num_real - 1 - i) for i in range(nearest_k))


def _measure(
    real: torch.Tensor,
    fake: torch.Tensor,
    balls: Sequence[tuple[int, bool]],
    device: torch.device | str | None,
    block: int | None,
    screening: str | None,
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """The figures for each kind of balls; and how many points of either set have a copy in it."""
    sets = knn.make_point_sets(real, fake, torch.device(device) if device is not None else real.device, block)
    bounds, copies = [], {}
    for points, name in zip(sets, ("real", "fake")):
        for k, _ in balls:
            knn.check_k(points, k, name)
    for points, name in zip(sets, ("real", "fake")):
        nearest = knn.k_nearest(points, max(k for k, _ in balls), name, screening)
        copies[name] = int(torch.count_nonzero(nearest[:, 0] == 0))
        bounds.append(torch.stack([knn.radius_bound(nearest[:, k - 1], closed) for k, closed in balls]))
    return _count(sets, bounds, [k for k, _ in balls], screening), copies


def _count(sets: Sequence[knn.PointSet], bounds: Sequence[torch.Tensor], ks: Sequence[int], screening: str | None) -> list[dict[str, float]]:
    """The figures from the bounds [S, N] and [S, M] on rounded squared distances below which a point is in a ball."""
    (reals, fakes), (real_bounds, fake_bounds) = sets, bounds
    hits = [0] * len(ks)
    covered, recalled = (torch.zeros_like(real_bounds, dtype=torch.bool) for _ in range(2))
    precise = torch.zeros_like(fake_bounds, dtype=torch.bool)
    for rows, columns, values in knn.near_pairs(reals, real_bounds, fakes, fake_bounds, screening):
        for ball in range(len(ks)):
            in_real, in_fake = values < real_bounds[ball, rows], values < fake_bounds[ball, columns]
            hits[ball] += int(torch.count_nonzero(in_real))
            covered[ball, rows[in_real]] = True
            precise[ball, columns[in_real]] = True
            recalled[ball, rows[in_fake]] = True
    return [
        {
            "precision": int(precise[ball].sum()) / len(fakes),
            "recall": int(recalled[ball].sum()) / len(reals),
            "density": (1 / k) * (hits[ball] / len(fakes)),
            "coverage": int(covered[ball].sum()) / len(reals),
        }
        for ball, k in enumerate(ks)
    ]


def _doubts(real: torch.Tensor, fake: torch.Tensor, nearest_k: int, copies: dict[str, int]) -> list[str]:
    """What a reader of the figures should know about the input, a sentence each."""
    (num_real, dim), num_fake = real.shape, len(fake)
    doubts = []
    if min(num_real, num_fake) < dim:
        doubts.append(
            f"{num_real:,} real and {num_fake:,} fake points in {dim:,} dimensions are few: with fewer points than dimensions the figures depend "
            "on the number of points as much as on the distributions, so compare them with figures of the same numbers only"
        )
    if num_real != num_fake:
        ceiling, usual = (coverage_ceiling(num_real, number, nearest_k) for number in (num_fake, num_real))
        doubts.append(
            f"coverage compares {num_real:,} real with {num_fake:,} fake points: a perfect generator reaches {ceiling:.3f} with such numbers and "
            f"k = {nearest_k}, and {usual:.3f} with equal ones, so compare it with figures of the same numbers only"
        )
    for name, points in (("real", real), ("fake", fake)):
        if copies[name]:
            doubts.append(
                f"{copies[name]:,} of {len(points):,} {name} points have an exact copy among the {name} points: copies count as neighbours and "
                "shrink the balls around them, so remove them unless they are meant"
            )
    return doubts
