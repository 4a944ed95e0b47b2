"""The map of latents: which far latents share their images, and where to draw them on a plane. Pure functions of matrices."""

from __future__ import annotations

import dataclasses

import torch

from dnnlib import UserError
from metrics.collision import collision_within


@dataclasses.dataclass(frozen=True)
class Collisions:
    """Far pairs of latents with near images, as `metrics.collision` defines them.

    Attributes:
        share: of the far pairs whose images are near: the figure of `metrics.collision` for these latents.
        per_latent: share of each latent's far partners whose images are near [N], 0..1.
        partner: of each latent, the far one with the nearest image [N]; itself where no other is far.
        distance: between the features of the two [N].
    """

    share: float
    per_latent: torch.Tensor
    partner: torch.Tensor
    distance: torch.Tensor


def find_collisions(latents: torch.Tensor, features: torch.Tensor, radius: float) -> Collisions:
    """Who collides with whom, over all pairs at once: for a few thousand latents.

    Args:
        latents: [N, d], N at least 3.
        features: of their images [N, D].
        radius: features nearer than this are near: that of a typical real image.

    Raises:
        UserError: as `metrics.collision.collision_within`.
    """
    share = collision_within(latents, features, radius)
    between_latents, between_images = (torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") for x in (latents, features))
    rows, columns = torch.triu_indices(len(latents), len(latents), offset=1)
    far = between_latents > between_latents[rows, columns].median()
    far.fill_diagonal_(False)
    near = far & (between_images < radius)
    distance, partner = between_images.masked_fill(~far, torch.inf).min(dim=1)
    alone = ~far.any(dim=1)
    partner[alone] = torch.arange(len(latents))[alone]
    per_latent = near.sum(dim=1) / far.sum(dim=1).clamp(min=1)
    return Collisions(share, per_latent, partner, distance.masked_fill(alone, 0))


def plane(points: torch.Tensor) -> torch.Tensor:
    """The points [N, D] seen from where they spread most: their first two principal components [N, 2], divided by the larger one's deviation.

    Each axis points to where its largest entry of the direction is positive, so that the picture does not flip from one call to the next.

    Raises:
        UserError: points that are not finite.
    """
    if not bool(points.isfinite().all()):
        raise UserError("points with NaN or infinity have no place on a plane; the generator is broken")
    centred = points.double() - points.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    axes = directions[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    seen = centred @ axes.t()
    if seen.shape[1] < 2:
        seen = torch.cat([seen, seen.new_zeros(len(seen), 2 - seen.shape[1])], dim=1)
    deviation = seen.std(dim=0, correction=0).max()
    return (seen / deviation if deviation > 0 else seen).float()
