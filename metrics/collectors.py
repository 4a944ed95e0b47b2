"""What becomes of features: their mean and covariance, or the rows themselves, and which images of a pass each collector takes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class Collector(Protocol):
    """Takes `limit` feature rows of a pass."""

    limit: int

    def add(self, features: torch.Tensor) -> None:
        """Takes float32 features [n, D], the next in order, never past the limit."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was collected, on the CPU."""


class FeatureConsumer:
    """Hands a collector its own rows of a pass.

    Args:
        collector: receives the rows in order.
        positions: rising numbers of its images in the pass, int64 [collector.limit]; None: the first ones.
    """

    def __init__(self, collector: Collector, positions: np.ndarray | None = None):
        self.collector = collector
        self.positions = np.arange(collector.limit) if positions is None else positions
        self.stop = int(self.positions[-1]) + 1

    def take(self, features: torch.Tensor, first: int) -> None:
        """Offers the features [n, D] of images first .. first + n - 1."""
        low, high = np.searchsorted(self.positions, [first, first + len(features)])
        if high > low:
            self.collector.add(features[torch.from_numpy(self.positions[low:high] - first).to(features.device)])


class Moments:
    """Mean [D] and covariance [D, D], divided by N, accumulated in float64."""

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0
        self._sum: torch.Tensor | None = None
        self._outer: torch.Tensor | None = None

    def add(self, features: torch.Tensor) -> None:
        """Adds rows [n, D]."""
        wide = features.to("cpu" if features.device.type == "mps" else features.device).to(torch.float64)
        if self._sum is None:
            self._sum = wide.new_zeros(wide.shape[1])
            self._outer = wide.new_zeros(wide.shape[1], wide.shape[1])
        self.count += len(wide)
        self._sum += wide.sum(dim=0)
        self._outer.addmm_(wide.t(), wide)

    def tensors(self) -> dict[str, torch.Tensor]:
        """{"mu", "sigma"} in float64."""
        mean = self._sum / self.count
        covariance = self._outer / self.count - torch.outer(mean, mean)
        return {"mu": mean.cpu(), "sigma": covariance.cpu()}


class Rows:
    """The feature rows themselves."""

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0
        self._rows: torch.Tensor | None = None

    def add(self, features: torch.Tensor) -> None:
        """Appends rows [n, D]."""
        if self._rows is None:
            self._rows = torch.empty(self.limit, features.shape[1])
        self._rows[self.count : self.count + len(features)] = features.cpu()
        self.count += len(features)

    def tensors(self) -> dict[str, torch.Tensor]:
        """{"rows": float32 [N, D]}."""
        return {"rows": self._rows[: self.count]}
