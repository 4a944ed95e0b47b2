"""Pairing losses as pure functions: latent identification (InfoNCE), its binary form, and the mode-seeking baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def infonce(e_x: torch.Tensor, e_z: torch.Tensor, tau: float, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which latent made each image? Paper, equation (1), with s_ij = <e_x_i, e_z_j> / tau.

    Args:
        e_x: image embeddings [..., N, D], unit rows; leading dimensions are separate tasks.
        e_z: latent embeddings [..., M, D], unit rows; M >= N if negatives were gathered elsewhere.
        tau: temperature, above 0.
        targets: index into e_z of each image's own latent [N]; None: 0..N-1.

    Returns:
        The mean loss (log M when nothing is known, 0 when all is certain) and the top-1 accuracy of each task, float32 [...].
    """
    # float32 and log-sum-exp: at tau = 0.1 the logits reach +-10, and exp of a half-precision sum loses the tail.
    logits = e_x.float() @ e_z.float().transpose(-1, -2) / tau
    if targets is None:
        targets = torch.arange(logits.shape[-2], device=logits.device)
    rows = logits.shape[:-1]
    losses = F.cross_entropy(logits.flatten(0, -2), targets.expand(rows).flatten(), reduction="none").view(rows)
    accuracy = (logits.detach().argmax(dim=-1) == targets).float().mean(dim=-1)
    return losses.mean(dim=-1), accuracy


def random_derangement(n: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> torch.Tensor:
    """A random permutation of 0..n-1 without a fixed point: one random cycle through all. n >= 2."""
    cycle = torch.randperm(n, device=device, generator=generator)
    permutation = torch.empty_like(cycle)
    permutation[cycle] = cycle.roll(1)
    return permutation


def binary_pairing(e_x: torch.Tensor, e_z: torch.Tensor, tau: float, permutation: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Is this the latent that made the image? Matched pairs against pairs made by one permutation (paper, section 3.2).

    Args:
        e_x, e_z: embeddings [..., N, D], unit rows, N >= 2; leading dimensions are separate tasks.
        tau: temperature of the logit <e_x, e_z> / tau.
        permutation: latent index of each mismatched pair [..., N], without fixed points; None: one for all tasks, drawn from the global generator.

    Returns:
        The mean logistic loss (2 log 2 when nothing is known) and the accuracy over matched and mismatched pairs of each task, float32 [...].
    """
    e_x, e_z = e_x.float(), e_z.float()
    if permutation is None:
        permutation = random_derangement(e_x.shape[-2], e_x.device)
    matched = (e_x * e_z).sum(dim=-1) / tau
    mismatched = (e_x * e_z.take_along_dim(permutation.unsqueeze(-1), dim=-2)).sum(dim=-1) / tau
    loss = (F.softplus(-matched) + F.softplus(mismatched)).mean(dim=-1)
    accuracy = ((matched.detach() > 0).float().mean(dim=-1) + (mismatched.detach() <= 0).float().mean(dim=-1)) / 2
    return loss, accuracy


def mode_seeking(img_a: torch.Tensor, img_b: torch.Tensor, z_a: torch.Tensor, z_b: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Mode-seeking loss: 1 / (mean |img_a - img_b| / mean |z_a - z_b| + eps), small when far latents give far images.

    Mao et al., CVPR 2019. Images [N, C, H, W] and latents [N, z_dim] of two batches under the same labels.
    """
    ratio = (img_a.float() - img_b.float()).abs().mean() / (z_a.float() - z_b.float()).abs().mean()
    return 1 / (ratio + eps)
