"""Precision, recall, density and coverage of generated features against real ones, from one set of nearest-neighbour distances.

Sources: Kynkäänniemi et al. 2019 (improved precision and recall), Naeem et al. 2020 (density and coverage). Distances come from
`metrics.knn`; which points are compared, and how many, is a protocol's business (`metrics.registry`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from metrics import knn


def compute_prdc(
    real_features: Any,
    fake_features: Any,
    nearest_k: int = 5,
    *,
    closed: bool = False,
    device: torch.device | str | None = None,
    block: int | None = None,
) -> dict[str, float]:
    """Precision, recall, density and coverage with open balls, or closed ones as StyleGAN2-ADA counts its precision and recall.

    The ball around a point reaches to its k-th nearest other point of the same set. Precision is the share of fakes inside any real ball,
    recall the share of reals inside any fake ball, density the mean number of real balls a fake lies in, over k (it may exceed 1), and
    coverage the share of real balls that hold a fake.

    Args:
        real_features: [N, D] numpy array or tensor.
        fake_features: [M, D] numpy array or tensor.
        nearest_k: neighbours that set the radius of a ball, self not counted.
        closed: False counts `distance < radius`, as Naeem et al.'s code; True counts `distance <= radius`, as StyleGAN2-ADA.
        device: where to compute; default is the device of `real_features`.
        block: rows per block of distances; bounds memory, changes no result.

    Returns:
        {"precision", "recall", "density", "coverage"}. With open balls, k or more copies of a point make its ball empty.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than k + 1 points in either set.
    """
    real = knn.as_features(real_features, "real")
    fake = knn.as_features(fake_features, "fake")
    reals, fakes = knn.make_point_sets(real, fake, torch.device(device) if device is not None else real.device, block)
    real_bound = knn.radius_bound(knn.kth_neighbour(reals, nearest_k, "real"), closed).unsqueeze(1)
    fake_bound = knn.radius_bound(knn.kth_neighbour(fakes, nearest_k, "fake"), closed).unsqueeze(0)
    covered, recalled, precise = (torch.zeros(n, dtype=torch.bool, device=real_bound.device) for n in (len(reals), len(reals), len(fakes)))
    hits = 0
    for rows, columns, squared in knn.cross_blocks(reals, fakes):
        inside = squared < real_bound[rows]
        hits += int(torch.count_nonzero(inside))
        covered[rows] |= inside.any(dim=1)
        precise[columns] |= inside.any(dim=0)
        recalled[rows] |= (squared < fake_bound[:, columns]).any(dim=1)
    return {
        "precision": int(precise.sum()) / len(fakes),
        "recall": int(recalled.sum()) / len(reals),
        "density": (1 / nearest_k) * (hits / len(fakes)),
        "coverage": int(covered.sum()) / len(reals),
    }


def coverage_ceiling(num_real: int, num_fake: int, nearest_k: int) -> float:
    """Expected coverage of a perfect generator: 1 - prod_{i<k} (N - 1 - i) / (M + N - 1 - i), about 1 - 2^-k where N = M.

    A ball stays empty when the k nearest of the N - 1 + M other points, all from one distribution, are all real.
    """
    return 1 - math.prod((num_real - 1 - i) / (num_fake + num_real - 1 - i) for i in range(nearest_k))
