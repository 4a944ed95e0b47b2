"""Kernel distance (KID, Bińkowski et al. 2018): the unbiased squared MMD with a cubic polynomial kernel, averaged over random subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from metrics.knn import as_features, distance_device


def kernel_distance(
    real: Any, gen: Any, num_subsets: int = 100, max_subset_size: int = 1000, seed: int = 0, *, device: torch.device | str | None = None
) -> float:
    """Mean unbiased squared MMD between subsets of the two sets, with the kernel (x.y / D + 1)^3; not multiplied by 1000.

    A subset has min(N, M, max_subset_size) rows of each set, drawn without replacement, the generated rows first. Its estimate leaves out the
    pairs of a row with itself, which makes it unbiased: for equal distributions it is 0 in expectation, at any size, so it scatters around 0 and
    is negative about as often as not. A negative result says "no difference seen", and should be reported as it is; cutting it off at 0 would
    bring back a bias. Unlike FID, results for different numbers of images can be compared, only their spread differs.

    Args:
        real: [N, D] features, array or tensor of any real type, on any device; computed in float64.
        gen: [M, D] features.
        num_subsets: how many subsets are averaged; they overlap, so their spread over its root understates the error of the mean.
        max_subset_size: rows of each set in a subset at most.
        seed: seeds the draws; the global generators are not touched.
        device: where to compute; default is where each set is, if that is one device with float64, else the CPU.

    Returns:
        The estimate, of either sign.

    Raises:
        UserError: features that are not finite matrices of one width, or fewer than two rows per subset.
    """
    real, gen = as_features(real, "real"), as_features(gen, "generated")
    if real.shape[1] != gen.shape[1]:
        raise UserError(f"real features have {real.shape[1]} dimensions and generated features {gen.shape[1]}; both must come from one detector")
    size = min(len(real), len(gen), max_subset_size)
    if size < 2 or num_subsets < 1:
        raise UserError(f"{num_subsets} subsets of {size} rows give no kernel distance; at least one subset of two rows is needed")
    device = distance_device(torch.device(device or (real.device if real.device == gen.device else "cpu")))
    # The bits of the first latents of this seed as well: NumPy fills seeds up with zeros, and [seed, 0, 0] is theirs. That does no harm, for
    # which rows are drawn has nothing to do with what images are in them; and figures on record were drawn so.
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(num_subsets):
        x, y = (_draw(rows, size, rng).to(device, torch.float64) for rows in (gen, real))
        total += _unbiased_mmd(x, y)
    return total / num_subsets


def _draw(rows: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """`size` of the rows, without replacement."""
    return rows[torch.from_numpy(rng.choice(len(rows), size, replace=False)).to(rows.device)]


def _unbiased_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Squared MMD of two sets of equal size [m, D]: pairs within a set exclude a row with itself."""
    size, dim = x.shape

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.t() / dim + 1).pow(3)

    within = kernel(x, x) + kernel(y, y)
    within_mean = (within.sum() - within.diagonal().sum()) / (size * (size - 1))
    return float(within_mean - 2 * kernel(x, y).mean())
