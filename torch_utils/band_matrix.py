"""Filtering along one axis as a matrix: for images of some hundred pixels one dense product is faster than padding and convolving.

Only public operators with a fixed order of summation, so the matrices are the same bit for bit on every call.
"""

from __future__ import annotations

import torch


def band_matrix(taps: torch.Tensor, tap_index: torch.Tensor) -> torch.Tensor:
    """Writes filter taps into a matrix.

    Args:
        taps: [..., T].
        tap_index: whole numbers [rows, columns]: which tap stands where; outside of 0 to T - 1 the entry is 0.

    Returns:
        [..., rows, columns].
    """
    last = taps.shape[-1] - 1
    return torch.where((tap_index >= 0) & (tap_index <= last), taps[..., tap_index.clamp(0, last)], 0)


def fold_reflection(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Turns a map from a padded axis into one from the axis itself, padded by reflection about its outermost pixels.

    Args:
        matrix: [..., rows, margin + size + margin].
        size: pixels of the axis, at least 1. A margin beyond size - 1 reflects again at the far end, as often as needed; a single pixel repeats.

    Returns:
        [..., rows, size]: for every image, `folded @ image` equals `matrix @ padded image`.
    """
    margin = (matrix.shape[-1] - size) // 2
    if size == 1:
        return matrix.sum(dim=-1, keepdim=True)
    if margin > size - 1:
        matrix = fold_reflection(matrix, size + 2 * (size - 1))
        margin = size - 1
    before, inside, after = matrix.split([margin, size, margin], dim=-1)
    folded = inside.clone()
    folded[..., 1 : margin + 1] += before.flip(-1)
    folded[..., size - 1 - margin : size - 1] += after.flip(-1)
    return folded
