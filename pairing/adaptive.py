"""Adaptive pairing weight: lambda steered so that the identification accuracy stays at a target, as ADA steers p.

An extension of this project, off by default; the paper uses one fixed weight.
"""

from __future__ import annotations

import torch

MAX_FACTOR = 10.0  # lambda stays between 0 and ten times its initial value


def adapt_weight(weight: torch.Tensor, initial: float, accuracy: torch.Tensor, target: float, nimg: int, kimg: float = 100) -> torch.Tensor:
    """One step of the controller: up while accuracy is below the target, down while above.

    Args:
        weight: current lambda, scalar tensor.
        initial: lambda at the start; it takes `kimg` thousand images to move by as much.
        accuracy: top-1 identification accuracy since the last step, 0 to 1.
        target: accuracy to keep, 0 to 1.
        nimg: images since the last step.

    Returns:
        The new lambda, between 0 and ten times the initial one.
    """
    step = initial * nimg / (kimg * 1000)
    return (weight + step * torch.sign(target - accuracy)).clamp(0, MAX_FACTOR * initial)
