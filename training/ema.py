"""The moving average of the generator's weights that images are made with."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_beta(batch_size: int, cur_nimg: int, ema_kimg: float, rampup: float | None) -> float:
    """How much of the average stays at a step.

    Args:
        batch_size: images of the step.
        cur_nimg: images before it.
        ema_kimg: half-life in thousand images.
        rampup: bounds the half-life by this share of `cur_nimg`, so that a young average forgets its start; None: no bound.
    """
    half_life = ema_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, cur_nimg * rampup)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, beta: float) -> None:
    """Moves every parameter of G_ema towards G's by 1 - beta and copies the buffers (w_avg among them)."""
    get_ema_multi_avg_fn(beta)(list(G_ema.parameters()), list(G.parameters()), None)
    for ours, theirs in zip(G_ema.buffers(), G.buffers()):
        ours.copy_(theirs)
