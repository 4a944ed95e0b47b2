"""Random draws for the augmentation pipe, with the switch that replaces every one of them by a fixed percentile. No augmentation lives here."""

from __future__ import annotations

import torch


class Draws:
    """Per-image random numbers, from torch's global generator of the device: those draws belong to the training state.

    Nothing here reads a value back to the host, so the draws run ahead of a GPU.

    Args:
        batch: number of images N.
        p: scalar tensor in [0, 1], the overall strength; gates open with this probability times a multiplier. Its device is used.
        percentile: replaces every draw by this percentile of its distribution and opens every gate; None draws at random.
    """

    def __init__(self, batch: int, p: torch.Tensor, percentile: float | None = None):
        self.batch = batch
        self.p = p
        self.percentile = percentile

    def uniform(self, *shape: int) -> torch.Tensor:
        """[N, *shape], uniform in [0, 1)."""
        if self.percentile is not None:
            return torch.full([self.batch, *shape], float(self.percentile), device=self.p.device)
        return torch.rand([self.batch, *shape], device=self.p.device)

    def symmetric(self, *shape: int) -> torch.Tensor:
        """[N, *shape], uniform in [-1, 1)."""
        return self.uniform(*shape) * 2 - 1

    def choice(self, count: int) -> torch.Tensor:
        """[N], whole numbers 0 to count - 1, as floating point."""
        return (self.uniform() * count).floor()

    def normal(self, *shape: int) -> torch.Tensor:
        """[N, *shape], standard normal. A percentile q gives erfinv(2q - 1), as in StyleGAN2-ADA: the quantile without its factor sqrt(2)."""
        if self.percentile is not None:
            return torch.erfinv(self.symmetric(*shape))
        return torch.randn([self.batch, *shape], device=self.p.device)

    def half_normal(self, *shape: int) -> torch.Tensor:
        """[N, *shape], absolute value of a standard normal. A percentile q gives erfinv(q)."""
        if self.percentile is not None:
            return torch.erfinv(self.uniform(*shape))
        return self.normal(*shape).abs()

    def gate(self, value: torch.Tensor, multiplier: float, neutral: float) -> torch.Tensor:
        """`value` [N, ...] for images whose gate opens (probability multiplier * p), `neutral` for the others."""
        return self.gate_with(value, self.p * multiplier, neutral)

    def gate_with(self, value: torch.Tensor, probability: torch.Tensor, neutral: float) -> torch.Tensor:
        """As `gate`, with the probability itself (scalar tensor); one gate per image."""
        if self.percentile is not None:
            return value
        is_open = torch.rand([self.batch] + [1] * (value.ndim - 1), device=self.p.device) < probability
        return torch.where(is_open, value, neutral)
