"""Adversarial objectives and gradient penalties as pure functions, shared by images and toys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

OBJECTIVES = ("logistic", "relativistic")


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating logistic loss of G, per sample: -log sigmoid(D(fake)). Goodfellow et al. 2014."""
    return F.softplus(-fake_logits)


def discriminator_fake_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Logistic loss of D on generated images, per sample: -log(1 - sigmoid(D(fake)))."""
    return F.softplus(fake_logits)


def discriminator_real_loss(real_logits: torch.Tensor) -> torch.Tensor:
    """Logistic loss of D on real images, per sample: -log sigmoid(D(real))."""
    return F.softplus(-real_logits)


def relativistic_loss(winner_logits: torch.Tensor, loser_logits: torch.Tensor) -> torch.Tensor:
    """Relativistic pairing loss, per pair: -log sigmoid(D(winner) - D(loser)).

    D's loss takes reals as winners, G's takes fakes (RpGAN; Jolicoeur-Martineau 2018, Huang et al. 2024).
    """
    return F.softplus(loser_logits - winner_logits)


def gradient_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """|d logits / d images|^2 per sample [N], with a graph: R1 on real images, R2 on generated ones (Mescheder et al. 2018).

    Args:
        logits: D's output [N, 1] (or [N]), made from `images`.
        images: [N, ...], requires grad. Samples couple only through minibatch statistics, as in the field.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """|J_w^T y| per sample [N], with a graph, for image-sized noise y ~ N(0, 1 / (H W)) (StyleGAN2, section 3.2).

    Args:
        images: [N, C, H, W], made from `ws`.
        ws: [N, num_ws, w_dim], requires grad; squares are summed over w_dim and averaged over num_ws.
        noise: y, already divided by sqrt(H W); None: drawn from the global generator.
    """
    if noise is None:
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
