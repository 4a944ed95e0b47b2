"""The pairing term of the generator's loss: the task that is set, the latents to choose among, and what is reported of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from pairing.losses import binary_pairing, infonce
from pairing.negatives import INDEPENDENT, LatentGather, extra_latents
from torch_utils import training_stats

PAIRING_MODES = ("infonce", "binary")
PAIRING_SPACES = ("z", "w")


class FullBatch(NamedTuple):
    """All latents and labels of this rank's batch, of which a round of gradient accumulation sees `rows`; pairing chooses among all of them.

    Attributes:
        z: latents [B, z_dim] of the images to generate.
        c: their labels [B, c_dim]; real_c: those of the real images.
        rows: which of the B rows the round has.
    """

    z: torch.Tensor
    c: torch.Tensor
    real_c: torch.Tensor
    rows: slice


class PairingTerm:
    """lambda * L_pair of the paper's equation (3), for one round of images at a time.

    Args:
        P: pairing network.
        weight: lambda.
        tau: temperature.
        mode: 'infonce' (equation 1) or 'binary' (section 3.2's simple instantiation), which judges the pairs of one round.
        space: latents that P sees, 'z' or 'w'. w is data to the term: no gradient flows back through it.
        gather: use the latents of all ranks as negatives.
        shuffle: a control: each image is paired with the latent of another. All that can be learned is that an image's own latent is never the
            answer, which is worth log(B / (B - 1)), .016 at B = 64.
        features: P sees D's features of the images instead of the images. D itself learns nothing from the term.
        extra: latents drawn as additional negatives in every round, for 'infonce'.
        near: how far from the batch's own latents they are drawn, 0 to 1; 1: independently.

    Attributes:
        weight: lambda as a scalar tensor where P is, so that a controller can move it in place.
        on_accuracy: receives the accuracy of every round; None: nobody does.
    """

    def __init__(
        self,
        P: nn.Module,
        weight: float,
        tau: float,
        mode: str,
        space: str,
        gather: bool,
        shuffle: bool = False,
        features: bool = False,
        extra: int = 0,
        near: float = INDEPENDENT,
    ):
        self.P, self.tau, self.mode, self.space = P, tau, mode, space
        self.gather, self.shuffle, self.features, self.extra, self.near = gather, shuffle, features, extra, near
        self.weight = torch.tensor(float(weight), device=next(P.parameters()).device)
        self.on_accuracy: Callable[[torch.Tensor], None] | None = None

    def __call__(self, img: torch.Tensor, ws: torch.Tensor, batch: FullBatch, G_mapping: Callable, D: Callable, gain: float = 1) -> torch.Tensor:
        """The weighted loss of a round, a scalar. Loss, accuracy and weight are reported, and in a backward pass the gradient's norm.

        Args:
            img: images [N, C, H, W] of the round, each made from one latent.
            ws: the ws [N, num_ws, w_dim] that made them.
            batch: the batch that the round is a part of.
            G_mapping: maps latents and labels to ws.
            D: has the `features` that P sees instead of the images, if it does.
            gain: factor on the loss in the backward pass.
        """
        if self.mode == "binary":
            batch = FullBatch(batch.z[batch.rows], batch.c[batch.rows], batch.real_c[batch.rows], slice(None))
        e_z = self.P.embed_latent(self._candidates(ws, batch, G_mapping))
        # The other ranks' latents travel while the image tower runs.
        gathered = LatentGather(e_z) if self.gather and self.mode == "infonce" else None
        seen = training_stats.report_grad_norm("Loss/pairing/grad_norm", img, gain)
        e_x = self.P.embed_image(D.features(seen) if self.features else seen)
        if self.mode == "binary":
            loss, accuracy = binary_pairing(e_x, e_z, self.tau)
        else:
            e_z, own = (e_z, torch.arange(len(e_z), device=e_z.device)) if gathered is None else gathered.finish()
            if self.extra:
                e_z = torch.cat([e_z, self._embed_extra(batch, G_mapping)])
            loss, accuracy = infonce(e_x, e_z, self.tau, own[batch.rows])
        training_stats.report("Loss/pairing/loss", loss)
        training_stats.report("Loss/pairing/accuracy", accuracy)
        training_stats.report("Loss/pairing/weight", self.weight)
        if self.on_accuracy is not None:
            self.on_accuracy(accuracy)
        return self.weight * loss

    def _candidates(self, ws: torch.Tensor, batch: FullBatch, G_mapping: Callable) -> torch.Tensor:
        """The latents that an image may come from, as P sees them: those of the full batch [B, z_dim or w_dim], whatever a round has of it."""
        if self.space == "z":
            latent = batch.z
        elif len(ws) == len(batch.z):
            latent = ws[:, 0].detach()
        else:
            with torch.no_grad():
                latent = G_mapping(batch.z, batch.c, skip_w_avg_update=True)[:, 0]
            latent[batch.rows] = ws[:, 0].detach()
        return latent.roll(1, dims=0) if self.shuffle else latent

    def _embed_extra(self, batch: FullBatch, G_mapping: Callable) -> torch.Tensor:
        """Embeddings of the extra negatives [extra, embed_dim]."""
        latent = extra_latents(batch.z, self.extra, self.near)
        if self.space == "w":
            with torch.no_grad():
                labels = batch.c[torch.arange(len(latent), device=batch.c.device) % len(batch.c)]
                latent = G_mapping(latent, labels, skip_w_avg_update=True)[:, 0]
        return self.P.embed_latent(latent)
