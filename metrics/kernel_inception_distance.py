"""Kernel distance (KID, Bińkowski et al. 2018): the unbiased squared MMD with a cubic polynomial kernel, averaged over random subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from metrics.knn import as_features


def kernel_distance(real: Any, gen: Any, num_subsets: int = 100, max_subset_size: int = 1000, seed: int = 0) -> float:
    """Mean unbiased squared MMD between subsets of the two sets, with the kernel (x.y / D + 1)^3; not multiplied by 1000.

    A subset has min(N, M, max_subset_size) rows of each set, drawn without replacement, the generated rows first.

    Args:
        real: [N, D] features, numpy array or tensor.
        gen: [M, D] features.
        num_subsets: how many subsets are averaged.
        max_subset_size: rows of each set in a subset at most.
        seed: seeds the draws; the global generators are not touched.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than two rows per subset.
    """
    real, gen = as_features(real, "real"), as_features(gen, "generated")
    if real.shape[1] != gen.shape[1]:
        raise UserError(f"real features have {real.shape[1]} dimensions and generated features {gen.shape[1]}; both must come from one detector")
    size = min(len(real), len(gen), max_subset_size)
    if size < 2 or num_subsets < 1:
        raise UserError(f"{num_subsets} subsets of {size} rows give no kernel distance; at least one subset of two rows is needed")
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(num_subsets):
        x = gen[torch.from_numpy(rng.choice(len(gen), size, replace=False)).to(gen.device)].to("cpu", torch.float64)
        y = real[torch.from_numpy(rng.choice(len(real), size, replace=False)).to(real.device)].to("cpu", torch.float64)
        total += _unbiased_mmd(x, y)
    return total / num_subsets


def _unbiased_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Squared MMD of two sets of equal size [m, D]: pairs within a set exclude a row with itself."""
    size, dim = x.shape

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.t() / dim + 1).pow(3)

    within = kernel(x, x) + kernel(y, y)
    within_mean = (within.sum() - within.diagonal().sum()) / (size * (size - 1))
    return float(within_mean - 2 * kernel(x, y).mean())
