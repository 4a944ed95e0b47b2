"""Collision: the share of far latent pairs whose images are near, a direct test for many-to-one generators.

Distances are those of `metrics.knn`, block by block in bounded memory. All pairs count, and the median over them is exact whatever their number:
it is found digit by digit in two passes over the distances, never by keeping them. Time grows with the square of the number of latents, so
callers pass a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dnnlib import UserError
from metrics import knn

DIGIT = 16  # bits of a distance that one pass over all pairs decides


def collision(latents: Any, features: Any, real_features: Any, nearest_k: int = 3, *, block: int | None = None) -> float:
    """Share of latent pairs farther apart than the median pair whose features are nearer than the typical radius of the real data.

    0 for a generator that keeps far latents apart, 1 for one that maps all of them to one image. Perfect images that have nothing to do with
    their latents collide as often as the data do, which `near_share` tells for the real features and `typical_radius`: read small values
    against it. It is k / M for data spread evenly, and more for data that crowd somewhere, where the typical ball holds more than k others.
    Collision does not ask where the images are: a generator can be free of it and far from the data.

    Args:
        latents: [N, d] numpy array or tensor, compared in float32.
        features: of the images made from them, in the same order [N, D].
        real_features: [M, D].
        nearest_k: neighbours that set a real point's radius.
        block: rows per block of distances; bounds memory, changes no result.

    Returns:
        Share in 0..1 of the pairs that are strictly farther apart than the median.

    Raises:
        UserError: as `typical_radius` and `collision_within`, or features of different dimensions.
    """
    features, real = knn.as_features(features, "fake"), knn.as_features(real_features, "real")
    if features.shape[1] != real.shape[1]:
        raise UserError(f"fake features have {features.shape[1]} dimensions and real features {real.shape[1]}; both must come from one detector")
    return collision_within(latents, features, typical_radius(real, nearest_k, block=block), block=block)


def typical_radius(real_features: Any, nearest_k: int = 3, *, block: int | None = None) -> float:
    """Median distance of the real points [M, D] to their k-th nearest other point; of an even number, the lower middle one.

    Raises:
        UserError: features that are not a finite matrix, fewer than k + 1 points, or a radius of 0, under which nothing is near.
    """
    points = _point_set(knn.as_features(real_features, "real"), block)
    radius = float(knn.kth_distance(points, nearest_k, "real").median())
    if radius == 0:
        raise UserError(f"half of the {len(points):,} real points or more have {nearest_k} copies of themselves; distinct real data is needed")
    return radius


def near_share(features: Any, radius: float, *, block: int | None = None) -> float:
    """Share of the pairs of different rows of features [N, D] that are nearer than the radius.

    Raises:
        UserError: features that are not a finite matrix, or fewer than 2 rows.
    """
    points = _point_set(knn.as_features(features, "real"), block)
    if len(points) < 2:
        raise UserError(f"{len(points)} real points make no pair; at least 2 are needed")
    limit = radius * points.scale
    near = sum(int(torch.count_nonzero(squared.sqrt() < limit)) for squared in _pairs(points))
    return near / (len(points) * (len(points) - 1) // 2)


def collision_within(latents: Any, features: Any, radius: float, *, block: int | None = None) -> float:
    """`collision` for a known radius: share of the pairs farther apart than the median latent pair whose features are nearer than it.

    Raises:
        UserError: matrices that are not finite, different numbers of rows, fewer than 3, or no pair farther apart than the median one.
    """
    latents, features = knn.as_features(latents, "latent"), knn.as_features(features, "fake")
    if len(latents) != len(features):
        raise UserError(f"there are {len(latents):,} latents and {len(features):,} fake features; each feature needs the latent that made it")
    if len(latents) < 3:
        raise UserError(f"{len(latents)} latents are too few for pairs that are near and far; at least 3 are needed")
    z, x = _point_set(latents.float().to(features.device), block), _point_set(features, block)
    median, limit = _median_pair(z), radius * x.scale
    num_far, num_collided = 0, 0
    for latent_pairs, feature_pairs in zip(_pairs(z), _pairs(x)):
        far = latent_pairs > median
        num_far += int(torch.count_nonzero(far))
        num_collided += int(torch.count_nonzero(far & (feature_pairs.sqrt() < limit)))
    if num_far == 0:
        raise UserError(f"no pair of the {len(latents):,} latents is farther apart than the median pair; latents that differ are needed")
    return num_collided / num_far


def _point_set(features: torch.Tensor, block: int | None) -> knn.PointSet:
    return knn.make_point_sets(features, features, features.device, block)[0]


def _pairs(points: knn.PointSet) -> Iterator[torch.Tensor]:
    """Squared distances of all pairs of different points, in units of the set's scale: each pair once, block by block [P].

    The order depends on the number of points and the block.
    """
    for first, last in points.blocks():
        own, rest = (knn.PointSet(points.features[first:end], points.centre, points.dtype, points.block, points.scale) for end in (last, len(points)))
        for _, columns, squared in knn.cross_blocks(own, rest):
            if columns.start == 0:  # the block of `own` with itself
                yield squared[torch.ones_like(squared, dtype=torch.bool).triu_(1)]
            else:
                yield squared.flatten()


def _median_pair(points: knn.PointSet) -> float:
    """Median squared distance over all pairs of float32 points, in units of the set's scale; of an even number, the lower middle one."""
    # Floats that are not negative are ordered as their bits are, read as integers: count by the upper half of the bits, then by the lower.
    rank = (len(points) * (len(points) - 1) // 2 - 1) // 2
    found = 0
    for shift in (DIGIT, 0):
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64, device=points.features.device)
        for squared in _pairs(points):
            bits = squared.view(torch.int32).to(torch.int64)
            bits = bits[bits >> (shift + DIGIT) == found]
            counts += torch.bincount((bits >> shift) % (1 << DIGIT), minlength=1 << DIGIT)
        upto = counts.cumsum(dim=0)
        digit = int((upto <= rank).sum())
        rank -= int(upto[digit - 1]) if digit else 0
        found = found << DIGIT | digit
    return float(torch.tensor(found, dtype=torch.int32).view(torch.float32))
