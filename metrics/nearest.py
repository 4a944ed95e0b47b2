"""How far real images are from the nearest generated one, and generated images from each other, in terms of what real images have among themselves.

Recall and coverage count points in balls. Recall's balls are as large as the generated images are far from each other, so that it can rise
because they come nearer to the data, or because they scatter. These two figures tell one from the other, without balls and without k.
"""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError
from metrics import knn


def nearest_distances(
    real_features: Any, fake_features: Any, *, device: torch.device | str | None = None, block: int | None = None
) -> dict[str, float]:
    """Mean distances to the nearest neighbour, over that of the real points to their nearest other one.

        gap         of a real point to the nearest fake: what the generator leaves out, and by how far. Before it is divided, it is what work on
                    point clouds calls minimum matching distance (Achlioptas et al. 2018). Copies of the data bring it to 0.
        spacing     of a fake to the nearest other fake: below 1 where the generated images crowd, as those of a collapsed generator do, above
                    1 where they scatter more than the data.

    Both are about 1 where N = M and both sets are samples of the same distribution. Distances shrink as points become more: compare values of
    equal N and M only.

    Args:
        real_features: [N, D] numpy array or tensor of any float type.
        fake_features: [M, D], the same D.
        device: where to compute; default is the device of `real_features`.
        block: rows per block of distances; bounds memory, changes no result.

    Returns:
        {"gap", "spacing"}, both at least 0.

    Raises:
        UserError: features that are not finite matrices of one width, fewer than two points in either set, or real points that are all copies.
    """
    real, fake = knn.as_features(real_features, "real"), knn.as_features(fake_features, "fake")
    reals, fakes = knn.make_point_sets(real, fake, torch.device(device) if device is not None else real.device, block)
    among_real, among_fake = (_mean(knn.kth_distance(points, 1, name)) for points, name in ((reals, "real"), (fakes, "fake")))
    if among_real == 0:
        raise UserError(f"each of the {len(reals):,} real points has a copy of itself, so that there is no measure; distinct real data is needed")
    nearest = torch.full([len(reals)], torch.inf, dtype=reals.dtype, device=reals.features.device)
    for rows, _, squared in knn.cross_blocks(reals, fakes):
        nearest[rows] = torch.minimum(nearest[rows], squared.amin(dim=1))
    return {"gap": _mean(reals.distances(nearest)) / among_real, "spacing": among_fake / among_real}


def _mean(distances: torch.Tensor) -> float:
    return float(distances.to(torch.float64).mean())
