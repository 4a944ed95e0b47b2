"""The controller of adaptive discriminator augmentation: raises the augmentation strength p while the discriminator overfits, lowers it otherwise.

The augmentations themselves are in `training.augment`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ADA_TARGET = 0.6
ADA_KIMG = 500


def adjust_strength(p: torch.Tensor, mean_sign: torch.Tensor, target: float, num_images: int, ada_kimg: float) -> torch.Tensor:
    """One adjustment of p (Karras et al. 2020, "Training GANs with Limited Data", section 3, heuristic r_t).

    Args:
        p: scalar, the strength so far.
        mean_sign: scalar, E[sign D(real)] in [-1, 1]; near 1 when the discriminator knows the training images by heart. If it is not a number,
            because no logits were seen, p stays.
        target: the mean sign to hold.
        num_images: real images since the last adjustment.
        ada_kimg: thousands of images in which p can go from 0 to 1.

    Returns:
        scalar in [0, 1], on the device of `p`.
    """
    direction = torch.sign(mean_sign - target).nan_to_num(nan=0.0)
    return (p + direction * (num_images / (ada_kimg * 1000))).clamp(0, 1)


class AdaController:
    """Collects the signs of the discriminator's logits for real images and adjusts p every few batches.

    Nothing here makes the host wait for the device.

    Args:
        p: scalar tensor, adjusted in place; usually the buffer `p` of the AugmentPipe.
        target: the mean sign to hold, in [0, 1].
        interval: batches between adjustments.
        ada_kimg: thousands of images in which p can go from 0 to 1.

    Raises:
        ValueError: target, interval or ada_kimg outside of their ranges.
    """

    def __init__(self, p: torch.Tensor, target: float, interval: int, ada_kimg: float):
        if not 0 <= target <= 1:
            raise ValueError(f"the ADA target is {target}, it has to be between 0 and 1")
        if interval < 1 or ada_kimg <= 0:
            raise ValueError(f"the ADA interval is {interval} batches and ada_kimg is {ada_kimg}, they have to be at least 1 and above 0")
        self.p = p
        self.target = target
        self.interval = interval
        self.ada_kimg = ada_kimg
        # Sum of the signs and their number since the last adjustment.
        self.signs = torch.zeros([2], device=p.device)

    def record(self, real_logits: torch.Tensor) -> None:
        """Notes the signs of D's logits for (augmented) real images, any shape; a logit that is not a number does not count."""
        logits = real_logits.detach().flatten().float()
        known = logits.isnan().logical_not()
        signs = torch.where(known, logits, 0).sign()
        self.signs += torch.stack([signs.sum(), known.sum().to(signs.dtype)])

    def update(self, batches_done: int, batch_size: int, all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> bool:
        """Adjusts p if `batches_done` is a multiple of the interval, and starts to collect anew; otherwise does nothing.

        Args:
            batches_done: batches trained so far, this one included.
            batch_size: real images per batch over all ranks.
            all_reduce: sums a tensor over the ranks and returns the sum; None where there is one rank.

        Returns:
            Whether p was due for adjustment.
        """
        if batches_done % self.interval != 0:
            return False
        total, count = self.signs if all_reduce is None else all_reduce(self.signs.clone())
        self.p.copy_(adjust_strength(self.p, total / count, self.target, batch_size * self.interval, self.ada_kimg))
        self.signs.zero_()
        return True

    def state_dict(self) -> dict[str, torch.Tensor]:
        """p and what was collected since the last adjustment, as copies."""
        return {"p": self.p.clone(), "signs": self.signs.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state_dict` returned; p is written in place."""
        self.p.copy_(state["p"])
        self.signs.copy_(state["signs"])
