"""Fréchet distance between two Gaussians fitted to features (FID, Heusel et al. 2017). Gathering the statistics is `metrics.features`' work."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError

WELL_CONDITIONED = 1e-10  # Smallest squared Cholesky pivot, relative to the largest variance, that rounding cannot have made.


def frechet_distance(mu_real: Any, sigma_real: Any, mu_gen: Any, sigma_gen: Any) -> float:
    """|mu_r - mu_g|^2 + Tr(S_r + S_g - 2 (S_r S_g)^(1/2)), in float64 on the CPU.

    The trace of the root is the sum of the roots of the eigenvalues of A^T S A, where S is one covariance and A A^T the other: symmetric, so
    they are real and not negative, and no general matrix root is needed. A spans only the range of its covariance, which keeps the rounding
    noise of null directions (fewer samples than dimensions) out of the sum, where the root would magnify it.

    Args:
        mu_real, mu_gen: [D] means, numpy arrays or tensors.
        sigma_real, sigma_gen: [D, D] covariances.

    Raises:
        UserError: shapes that do not fit together, or values that are not finite.
    """
    means = [_as_double(mu, name) for mu, name in ((mu_real, "mu_real"), (mu_gen, "mu_gen"))]
    sigmas = [_as_double(sigma, name) for sigma, name in ((sigma_real, "sigma_real"), (sigma_gen, "sigma_gen"))]
    dim = means[0].numel()
    shapes = [list(tensor.shape) for tensor in means + sigmas]
    if shapes != [[dim], [dim], [dim, dim], [dim, dim]]:
        raise UserError(f"means and covariances have shapes {shapes}; two vectors [D] and two matrices [D, D] of one D are needed")
    # Either covariance may give the root; the one of lower rank makes the smaller product.
    root, other = min(zip(map(_root, sigmas), reversed(sigmas)), key=lambda pair: pair[0].shape[1])
    trace_of_root = torch.linalg.eigvalsh(root.t() @ other @ root).clamp(min=0).sqrt().sum()
    distance = (means[0] - means[1]).square().sum() + sigmas[0].trace() + sigmas[1].trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def _root(sigma: torch.Tensor) -> torch.Tensor:
    """A [D, rank] with A A^T = sigma: the Cholesky factor, or one from eigenvectors where sigma is singular or nearly so."""
    factor, failed = torch.linalg.cholesky_ex(sigma)
    if not failed and factor.diagonal().amin().square() > WELL_CONDITIONED * sigma.diagonal().amax():
        return factor
    values, vectors = torch.linalg.eigh((sigma + sigma.t()) / 2)
    kept = values > values.abs().amax() * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _as_double(values: Any, name: str) -> torch.Tensor:
    """`values` as a finite float64 tensor on the CPU."""
    tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinity; the Fréchet distance needs finite feature statistics")
    return tensor
