"""Fréchet distance between two Gaussians fitted to features (FID, Heusel et al. 2017), from their moments or from rows of features.

Passing images through a detector and gathering moments on the way is the work of `metrics.features` and its collectors.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from dnnlib import UserError
from metrics.knn import as_features

WELL_CONDITIONED = 1e-10  # Smallest squared Cholesky pivot, relative to the largest variance, that rounding cannot have made.
TOLERANCE = 1e-7  # Error expected at worst, relative to the distance, up to which the quick way to the trace of the root is taken.
ROUNDING = torch.finfo(torch.float64).eps  # Of the eigenvalues of a symmetric matrix, relative to the largest.
SLACK = 1e-2  # Asymmetry and negative eigenvalues that rounding to half precision explains, relative to the largest entry and eigenvalue.
ROWS_AT_ONCE = 4096  # Rows that are widened to float64 at a time.


def frechet_distance(mu_real: Any, sigma_real: Any, mu_gen: Any, sigma_gen: Any) -> float:
    """Squared Fréchet (2-Wasserstein) distance of N(mu_r, S_r) and N(mu_g, S_g): |mu_r - mu_g|^2 + Tr(S_r + S_g - 2 (S_r S_g)^(1/2)).

    It is zero exactly where both moments agree, symmetric, unchanged by a rotation of the feature space, and grows with the square of a common
    scale. As an estimate from N samples it is biased upwards, by about a constant over N that depends on the distribution (Bińkowski et al.
    2018, Chong & Forsyth 2020): a perfect generator does not reach 0, and only figures for equal numbers of images can be compared.

    Computed in float64 on the CPU. With S_r = A A^T the trace of the root is the sum of the roots of the eigenvalues of A^T S_g A: never complex,
    and no root of a general matrix is needed. Where small eigenvalues would let rounding show (covariances that are singular or nearly equal),
    it is the sum of the singular values of A^T B with S_g = B B^T, at two to three times the cost. A and B span only the ranges of their
    covariances, so that with fewer samples than dimensions no rounding of null directions is magnified.

    Args:
        mu_real, mu_gen: [D] means, arrays or tensors of any real type, on any device.
        sigma_real, sigma_gen: [D, D] covariances, symmetric and without negative eigenvalues beyond rounding.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        UserError: shapes that do not fit together, values that are not finite, or matrices that are no covariances.
    """
    means = [_as_double(mu, name) for mu, name in ((mu_real, "mu_real"), (mu_gen, "mu_gen"))]
    sigmas = [_as_double(sigma, name) for sigma, name in ((sigma_real, "sigma_real"), (sigma_gen, "sigma_gen"))]
    dim = means[0].numel()
    shapes = [list(tensor.shape) for tensor in means + sigmas]
    if shapes != [[dim], [dim], [dim, dim], [dim, dim]]:
        raise UserError(f"means and covariances have shapes {shapes}; two vectors [D] and two matrices [D, D] of one D are needed")
    sigmas = [_symmetric(sigma, name) for sigma, name in zip(sigmas, ("sigma_real", "sigma_gen"))]
    shift_and_traces = float((means[0] - means[1]).square().sum() + sigmas[0].trace() + sigmas[1].trace())
    root = _root(sigmas[0])
    trace_of_root, error = _trace_by_eigenvalues(root, sigmas[1])
    if 2 * error > TOLERANCE * (shift_and_traces - 2 * trace_of_root):
        trace_of_root = _nuclear_norm(root.t() @ _root(sigmas[1]))
    return max(shift_and_traces - 2 * trace_of_root, 0.0)


def frechet_distance_of_features(real: Any, gen: Any) -> float:
    """`frechet_distance` of the Gaussians fitted to two sets of feature rows, covariances divided by N as StyleGAN2-ADA does.

    Where neither set has more rows than dimensions, no [D, D] matrix is formed, and the result is as exact as the features.

    Args:
        real: [N, D] features, array or tensor of any real type, on any device.
        gen: [M, D] features.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than two rows in a set.

    Warns:
        UserWarning: N or M is not above D; the covariance is then singular, and the bias may exceed the distance.
    """
    sets = [as_features(real, "real"), as_features(gen, "generated")]
    if sets[0].shape[1] != sets[1].shape[1]:
        found = f"real features have {sets[0].shape[1]} dimensions and generated features {sets[1].shape[1]}"
        raise UserError(f"{found}; both must come from one detector")
    rows, dim = min(map(len, sets)), sets[0].shape[1]
    if rows < 2:
        raise UserError(f"{rows} row of features gives no Fréchet distance; at least two in each set are needed")
    if rows <= dim:
        found = f"the Fréchet distance is computed from {rows:,} rows of {dim:,} dimensions"
        warnings.warn(f"{found}: with so few it is mostly bias; use far more rows than dimensions", UserWarning, stacklevel=2)
    return distance_of_fitted_gaussians(*sets)


def distance_of_fitted_gaussians(real: torch.Tensor, gen: torch.Tensor) -> float:
    """`frechet_distance_of_features` of finite rows [N, D] and [M, D], without its checks and its warning."""
    sets = real, gen
    if max(map(len, sets)) > real.shape[1]:
        (mu_real, sigma_real), (mu_gen, sigma_gen) = (feature_moments(features) for features in sets)
        return frechet_distance(mu_real, sigma_real, mu_gen, sigma_gen)
    wide = [features.to("cpu", torch.float64) for features in sets]
    means = [features.mean(dim=0) for features in wide]
    roots = [(features - mean) / len(features) ** 0.5 for features, mean in zip(wide, means)]
    shift_and_traces = float((means[0] - means[1]).square().sum() + roots[0].square().sum() + roots[1].square().sum())
    return max(shift_and_traces - 2 * _nuclear_norm(roots[0] @ roots[1].t()), 0.0)


def feature_moments(features: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and covariance [D, D] of feature rows [N, D], divided by N: float64 on the CPU, computed where the features are.

    The mean is subtracted first, so that the covariance keeps its precision beside a large mean.

    Raises:
        UserError: features that are not a finite matrix.
    """
    features = as_features(features, "given")
    device = "cpu" if features.device.type == "mps" else features.device
    mean = sum(rows.to(device, torch.float64).sum(dim=0) for rows in features.split(ROWS_AT_ONCE)) / len(features)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=device)
    for rows in features.split(ROWS_AT_ONCE):
        centred = rows.to(device, torch.float64) - mean
        scatter.addmm_(centred.t(), centred)
    return mean.cpu(), (scatter / len(features)).cpu()


def _trace_by_eigenvalues(root: torch.Tensor, sigma: torch.Tensor) -> tuple[float, float]:
    """Trace of the root of A A^T S by the eigenvalues of A^T S A, and its error if those of the eigenvalues do not cancel."""
    values = torch.linalg.eigvalsh(root.t() @ sigma @ root).clamp(min=0)
    noise = ROUNDING * values.amax() if len(values) else values.new_zeros(())
    # An error of e in a value moves its root by no more than e / root, and by no more than the root of e.
    error = torch.minimum(noise / values.sqrt().clamp(min=torch.finfo(torch.float64).tiny), noise.sqrt()).sum()
    return float(values.sqrt().sum()), float(error)


def _nuclear_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix).sum())


def _root(sigma: torch.Tensor) -> torch.Tensor:
    """A [D, rank] with A A^T = sigma: the Cholesky factor, or one from eigenvectors where sigma is singular or nearly so."""
    factor, failed = torch.linalg.cholesky_ex(sigma)
    if not failed and factor.diagonal().amin().square() > WELL_CONDITIONED * sigma.diagonal().amax():
        return factor
    values, vectors = torch.linalg.eigh(sigma)
    if values[0] < -SLACK * values.abs().amax():
        raise UserError(f"a matrix given as covariance has the eigenvalue {float(values[0]):.3g}; those of covariances are not negative")
    kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _symmetric(sigma: torch.Tensor, name: str) -> torch.Tensor:
    """`sigma` without the asymmetry that rounding leaves."""
    excess = sigma - sigma.t()
    if excess.abs().max() > SLACK * sigma.abs().max():
        raise UserError(f"{name} is not symmetric, so it is no covariance matrix")
    return sigma - excess / 2


def _as_double(values: Any, name: str) -> torch.Tensor:
    """`values` as a finite float64 tensor on the CPU."""
    tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinity; the Fréchet distance needs finite feature statistics")
    return tensor
