"""Pairing weights that move: lambda steered so that the identification accuracy stays at a target, as ADA steers p, or rising from 0.

Extensions of this project, off by default; the paper uses one fixed weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MAX_FACTOR = 10.0  # lambda stays between 0 and ten times its initial value
KIMG_TO_MOVE = 100  # thousand images in which lambda can move by its initial value


def adapt_weight(weight: torch.Tensor, initial: float, accuracy: torch.Tensor, target: float, nimg: int) -> torch.Tensor:
    """One step of the controller: up while accuracy is below the target, down while above.

    Args:
        weight: current lambda, scalar tensor.
        initial: lambda at the start; it takes `KIMG_TO_MOVE` thousand images to move by as much.
        accuracy: top-1 identification accuracy since the last step, 0 to 1.
        target: accuracy to keep, 0 to 1.
        nimg: images since the last step.

    Returns:
        The new lambda, between 0 and ten times the initial one.
    """
    step = initial * nimg / (KIMG_TO_MOVE * 1000)
    return (weight + step * torch.sign(target - accuracy)).clamp(0, MAX_FACTOR * initial)


class PairingController:
    """Collects identification accuracies and moves the pairing weight every few batches; the host never waits for the device.

    Args:
        weight: scalar tensor, adjusted in place; its value now is the initial lambda.
        target: accuracy to keep, 0 to 1.
        interval: batches between adjustments.
    """

    def __init__(self, weight: torch.Tensor, target: float, interval: int):
        self.weight, self.target, self.interval = weight, target, interval
        self.initial = float(weight)
        self.accuracies = torch.zeros([2], device=weight.device)  # their sum and number since the last adjustment

    def record(self, accuracy: torch.Tensor) -> None:
        """Notes the accuracy (scalar) of one round."""
        self.accuracies += torch.stack([accuracy.detach().float(), torch.ones_like(accuracy, dtype=torch.float32)])

    def update(self, batches_done: int, batch_size: int, all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Adjusts the weight if `batches_done` is a multiple of the interval; `all_reduce` sums a tensor over ranks."""
        if batches_done % self.interval:
            return
        total, count = all_reduce(self.accuracies.clone())
        self.weight.copy_(adapt_weight(self.weight, self.initial, total / count, self.target, batch_size * self.interval))
        self.accuracies.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weight and what was collected since the last adjustment, as copies."""
        return {"weight": self.weight.clone(), "accuracies": self.accuracies.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores `state_dict`; the weight is written in place."""
        self.weight.copy_(state["weight"])
        self.accuracies.copy_(state["accuracies"])


class PairingWarmUp:
    """Lets the pairing weight rise linearly, final * min(images / (kimg * 1000), 1): at the start images do not tell their latents apart.

    Args:
        weight: scalar tensor, set in place; its value now is the one to arrive at.
        kimg: thousand images until then.
    """

    def __init__(self, weight: torch.Tensor, kimg: int):
        self.weight, self.final, self.kimg = weight, float(weight), kimg
        weight.zero_()

    def update(self, batches_done: int, batch_size: int, all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Sets the weight for the next batch."""
        self.weight.fill_(self.final * min(batches_done * batch_size / (self.kimg * 1000), 1))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weight, as a copy."""
        return {"weight": self.weight.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores `state_dict`."""
        self.weight.copy_(state["weight"])
