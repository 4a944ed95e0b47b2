"""The losses of one training phase: adversarial terms, R1/R2, path length, pairing and mode seeking, accumulated as gradients.

Which networks a phase moves, how often and with which optimiser is the training loop's business (training.phases).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from pairing.losses import binary_pairing, infonce, mode_seeking
from pairing.negatives import LatentGather, further_latents
from torch_utils import training_stats
from torch_utils.distributed import mean_over_ranks_
from training import objectives

PHASES = ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth")
PAIRING_MODES = ("infonce", "binary")
PAIRING_SPACES = ("z", "w")


class Whole(NamedTuple):
    """The batch of a rank that a round of an accumulation is a part of: the latents that pairing chooses among are those of all of it.

    Attributes:
        z: latents [B, z_dim] of the images to generate.
        c: their labels [B, c_dim]; real_c: those of the real images.
        rows: which of the B rows the round has.
    """

    z: torch.Tensor
    c: torch.Tensor
    real_c: torch.Tensor
    rows: slice


class StyleGAN2Loss:
    """Gradients of the StyleGAN2 losses and of the pairing term, phase by phase.

    Args:
        device: where the networks live.
        G_mapping, G_synthesis, D: the networks, or callables that run them; with pairing_features D has its network's `features`.
        augment_pipe: applied to whatever D sees; None: nothing is.
        style_mixing_prob: probability that a batch is made from two latents.
        r1_gamma, r2_gamma: weights of the gradient penalty on real and on generated images; each penalty is gamma / 2 * |gradient|^2.
        pl_batch_shrink, pl_decay, pl_weight: path length regularisation: batch divisor, decay of the running mean, weight.
        objective: 'logistic' or 'relativistic'.
        P: pairing network; None: no pairing term.
        pairing_weight: lambda of the paper's equation (3).
        pairing_tau: temperature.
        pairing_mode: 'infonce' (equation 1) or 'binary' (section 3.2's simple instantiation).
        pairing_space: latents that P sees, 'z' or 'w'. w is data to the pairing term: no gradient flows back through it.
        pairing_gather: use the latents of all ranks as negatives.
        pairing_shuffle: a control: each image is paired with the latent of another, so that there is nothing to be learned.
        pairing_features: P sees D's features of the images instead of the images. D itself learns nothing from the pairing term.
        pairing_extra: further latents drawn as negatives in every round, for 'infonce'.
        pairing_near: how far from the batch's own latents they are drawn, 0 to 1; 1: independently.
        ms_weight: weight of the mode-seeking baseline.
        on_real_logits, on_accuracy: receive D's logits of real images and the pairing accuracy of every round, for the controllers.
        compiled: faster (G_mapping, G_synthesis, D) for the phases without second derivatives; None: the same ones.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: Callable,
        G_synthesis: Callable,
        D: Callable,
        augment_pipe: nn.Module | None = None,
        style_mixing_prob: float = 0.9,
        r1_gamma: float = 10,
        pl_batch_shrink: int = 2,
        pl_decay: float = 0.01,
        pl_weight: float = 2,
        r2_gamma: float = 0,
        objective: str = "logistic",
        P: nn.Module | None = None,
        pairing_weight: float = 0,
        pairing_tau: float = 0.1,
        pairing_mode: str = "infonce",
        pairing_space: str = "z",
        pairing_gather: bool = True,
        pairing_shuffle: bool = False,
        pairing_features: bool = False,
        pairing_extra: int = 0,
        pairing_near: float = 1.0,
        ms_weight: float = 0,
        on_real_logits: Callable[[torch.Tensor], None] | None = None,
        on_accuracy: Callable[[torch.Tensor], None] | None = None,
        compiled: tuple[Callable, Callable, Callable] | None = None,
    ):
        self.on_real_logits, self.on_accuracy = on_real_logits, on_accuracy
        self.device, self.augment_pipe = device, augment_pipe
        self._plain = (G_mapping, G_synthesis, D)
        self._compiled = compiled or self._plain
        self.G_mapping, self.G_synthesis, self.D = self._plain
        self.style_mixing_prob, self.r1_gamma, self.r2_gamma, self.objective = style_mixing_prob, r1_gamma, r2_gamma, objective
        self.pl_batch_shrink, self.pl_decay, self.pl_weight = pl_batch_shrink, pl_decay, pl_weight
        self.pl_mean = torch.zeros([], device=device)
        self.P, self.pairing_tau, self.pairing_mode, self.pairing_space = P, pairing_tau, pairing_mode, pairing_space
        self.pairing_gather, self.pairing_shuffle, self.ms_weight = pairing_gather, pairing_shuffle, ms_weight
        self.pairing_features, self.pairing_extra, self.pairing_near = pairing_features, pairing_extra, pairing_near
        # A tensor, so that the adaptive controller can move it without rebuilding anything.
        self.pairing_weight = torch.tensor(float(pairing_weight), device=device)

    # Forward passes.

    def run_G(self, z: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images [N, C, H, W], the ws that made them and, before style mixing, the ws of z alone."""
        ws = plain_ws = self.G_mapping(z, c)
        if self.style_mixing_prob > 0:
            num_ws = ws.shape[1]
            cutoff = torch.randint(1, num_ws, [], device=self.device)
            mixed = torch.rand([], device=self.device) < self.style_mixing_prob
            other = self.G_mapping(torch.randn_like(z), c, skip_w_avg_update=True)
            swap = mixed & (torch.arange(num_ws, device=self.device) >= cutoff)
            ws = torch.where(swap[None, :, None], other, ws)
        return self.G_synthesis(ws), ws, plain_ws

    def run_D(self, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Logits [N, 1] of the augmented images."""
        return self.D(img if self.augment_pipe is None else self.augment_pipe(img), c)

    # Terms.

    def embed_further(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Embeddings of the further negatives [pairing_extra, embed_dim]."""
        latent = further_latents(z, self.pairing_extra, self.pairing_near)
        if self.pairing_space == "w":
            with torch.no_grad():
                labels = c[torch.arange(len(latent), device=c.device) % len(c)]
                latent = self.G_mapping(latent, labels, skip_w_avg_update=True)[:, 0]
        return self.P.embed_latent(latent)

    def candidates(self, plain_ws: torch.Tensor, whole: Whole) -> torch.Tensor:
        """The latents that an image may come from, as P sees them: those of the whole batch [B, z_dim or w_dim], whatever a round has of it."""
        if self.pairing_space == "z":
            latent = whole.z
        elif len(plain_ws) == len(whole.z):
            latent = plain_ws[:, 0].detach()
        else:
            with torch.no_grad():
                latent = self.G_mapping(whole.z, whole.c, skip_w_avg_update=True)[:, 0]
            latent[whole.rows] = plain_ws[:, 0].detach()
        return latent.roll(1, dims=0) if self.pairing_shuffle else latent

    def pairing_term(self, img: torch.Tensor, plain_ws: torch.Tensor, whole: Whole, gain: float = 1) -> torch.Tensor:
        """The unweighted pairing loss of a round, reported with its accuracy and, in a backward pass of `gain`, with its gradient.

        Args:
            img: images [N, C, H, W] of the round, none of them mixed of two latents.
            plain_ws: the ws [N, num_ws, w_dim] that made them.
            whole: the batch that the round is a part of.
            gain: factor on the loss.
        """
        if self.pairing_mode == "binary":  # which judges pairs of one round
            whole = Whole(whole.z[whole.rows], whole.c[whole.rows], whole.real_c[whole.rows], slice(None))
        e_z = self.P.embed_latent(self.candidates(plain_ws, whole))
        # The other ranks' latents travel while the image tower runs.
        gather = LatentGather(e_z) if self.pairing_gather and self.pairing_mode == "infonce" else None
        seen = _watched("pairing", img, gain)
        e_x = self.P.embed_image(self.D.features(seen) if self.pairing_features else seen)
        if self.pairing_mode == "binary":
            loss, accuracy = binary_pairing(e_x, e_z, self.pairing_tau)
        else:
            e_z, places = (e_z, torch.arange(len(e_z), device=e_z.device)) if gather is None else gather.finish()
            if self.pairing_extra:
                e_z = torch.cat([e_z, self.embed_further(whole.z, whole.c)])
            loss, accuracy = infonce(e_x, e_z, self.pairing_tau, places[whole.rows])
        training_stats.report("Loss/pairing/loss", loss)
        training_stats.report("Loss/pairing/accuracy", accuracy)
        training_stats.report("Loss/pairing/weight", self.pairing_weight)
        if self.on_accuracy is not None:
            self.on_accuracy(accuracy)
        return loss

    def _generator_main(self, real_img, real_c, z, c, gain, whole: Whole) -> None:
        half = len(z) // 2
        if self.ms_weight > 0:
            # Mode seeking compares images of two latents under one label: both halves of the batch share their labels.
            c = _first_half_twice(c)
            whole = whole._replace(c=_first_half_twice(whole.c.unflatten(0, (len(z), -1))).flatten(0, 1))  # as in the other rounds
        img, _, plain_ws = self.run_G(z, c)
        judged = img if self.P is None and not self.ms_weight else _watched("G", img, gain)
        logits = self.run_D(judged, c)
        training_stats.report("Loss/scores/fake", logits)
        training_stats.report("Loss/signs/fake", logits.sign())
        if self.objective == "relativistic":
            with torch.no_grad():
                real_logits = self.run_D(real_img, real_c)
            if self.ms_weight > 0 and c.shape[1] > 0:
                real_logits = _first_half_twice(real_logits)  # a generated image is compared with a real one of its class
            loss = objectives.relativistic_loss(winner_logits=logits, loser_logits=real_logits)
        else:
            loss = objectives.generator_loss(logits)
        training_stats.report("Loss/G/loss", loss)
        loss = loss.mean()
        if self.style_mixing_prob > 0 and (self.P is not None or self.ms_weight > 0):
            img = self.G_synthesis(plain_ws)  # a mixed image comes from two latents: both terms are about what one latent makes
        if self.P is not None:
            loss = loss + self.pairing_weight * self.pairing_term(img, plain_ws, whole, gain)
        if self.ms_weight > 0:
            sought = _watched("ms", img, gain)
            seeking = mode_seeking(sought[:half], sought[half : 2 * half], z[:half], z[half : 2 * half])
            training_stats.report("Loss/ms/loss", seeking)
            loss = loss + self.ms_weight * seeking
        (loss * gain).backward()

    def _generator_reg(self, z, c, gain) -> None:
        n = max(len(z) // self.pl_batch_shrink, 1)
        img, ws, _ = self.run_G(z[:n], c[:n])
        lengths = objectives.path_lengths(img, ws)
        mean = mean_over_ranks_(lengths.detach().mean())
        # A constant of this step: its own gradient would be a hundredth (pl_decay) of how far the batch's mean is from it.
        self.pl_mean.copy_(self.pl_mean.lerp(mean, self.pl_decay))  # in place: a CUDA graph knows addresses
        penalty = (lengths - self.pl_mean).square()
        training_stats.report("Loss/pl_penalty", penalty)
        training_stats.report("Loss/G/reg", penalty * self.pl_weight)
        (penalty.mean() * self.pl_weight * gain).backward()

    def _fake_images(self, z, c) -> torch.Tensor:
        with torch.no_grad():
            return self.run_G(z, c)[0]

    def _report_real(self, logits: torch.Tensor) -> None:
        training_stats.report("Loss/scores/real", logits)
        training_stats.report("Loss/signs/real", logits.sign())
        if self.on_real_logits is not None:
            self.on_real_logits(logits)

    def _discriminator(self, real_img, real_c, z, c, gain, main: bool, reg: bool) -> None:
        r1, r2 = reg and self.r1_gamma > 0, reg and self.r2_gamma > 0
        fake_img = fake_logits = None
        if main or r2:
            fake_img = self._fake_images(z, c).requires_grad_(r2)
            fake_logits = self.run_D(fake_img, c)
        if main:
            training_stats.report("Loss/scores/fake", fake_logits)
            training_stats.report("Loss/signs/fake", fake_logits.sign())
        fake_loss = 0
        if self.objective == "logistic" and fake_logits is not None:
            # The two halves of the logistic loss part here: the graph of the fakes is freed before the reals are run.
            fake_loss = objectives.discriminator_fake_loss(fake_logits)
            penalty = self._penalty("r2", fake_logits, fake_img, self.r2_gamma) if r2 else 0
            (((fake_loss.mean() if main else 0) + penalty) * gain).backward()
            fake_loss = fake_loss.detach()
        terms = []
        if self.objective == "relativistic" and r2:
            terms.append(self._penalty("r2", fake_logits, fake_img, self.r2_gamma))
        if main or r1:
            real_img = real_img.detach().requires_grad_(r1)
            real_logits = self.run_D(real_img, real_c)
            self._report_real(real_logits)
            if main and self.objective == "logistic":
                real_loss = objectives.discriminator_real_loss(real_logits)
                training_stats.report("Loss/D/loss", fake_loss + real_loss)
                terms.append(real_loss.mean())
            elif main:
                pair_loss = objectives.relativistic_loss(winner_logits=real_logits, loser_logits=fake_logits)
                training_stats.report("Loss/D/loss", pair_loss)
                terms.append(pair_loss.mean())
            if r1:
                terms.append(self._penalty("r1", real_logits, real_img, self.r1_gamma))
        if terms:
            (sum(terms) * gain).backward()

    def _penalty(self, name: str, logits: torch.Tensor, img: torch.Tensor, gamma: float) -> torch.Tensor:
        penalty = objectives.gradient_penalty(logits, img)
        training_stats.report(f"Loss/{name}_penalty", penalty)
        training_stats.report("Loss/D/reg", penalty * (gamma / 2))
        return penalty.mean() * (gamma / 2)

    # The training loop's entry.

    def accumulate_gradients(
        self,
        phase: str,
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor,
        sync: bool = True,
        gain: float = 1,
        whole: Whole | None = None,
    ) -> None:
        """Adds gain times the gradients of `phase`'s mean loss to the networks' .grad.

        Every loss is a mean over the samples given, so with gain = 1 / rounds the rounds of an accumulation sum to the
        gradient of one big batch (except that path length's mean, mode seeking and binary pairing see one round at a time).

        Args:
            phase: one of `PHASES`; the networks that the phase does not train have requires_grad off.
            real_img, real_c: real images [N, C, H, W] in -1..1 and labels [N, c_dim].
            gen_z, gen_c: latents [N, z_dim] and labels [N, c_dim] of the images to generate; the relativistic objective takes real_c for both, since
                it compares a real and a generated image of one class.
            sync: kept from the field's signature; the training loop exchanges gradients itself, after the last round.
            gain: factor on the loss.
            whole: what the samples are a round of; None: they are the whole batch of this rank.

        Raises:
            ValueError: unknown phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, found {phase!r}")
        whole = whole or Whole(gen_z, gen_c, real_c, slice(None))
        if self.objective == "relativistic":
            gen_c, whole = real_c, whole._replace(c=whole.real_c)
        self.G_mapping, self.G_synthesis, self.D = self._compiled if phase.endswith("main") else self._plain
        if phase in ("Gmain", "Gboth"):
            self._generator_main(real_img, real_c, gen_z, gen_c, gain, whole)
        if phase in ("Greg", "Gboth") and self.pl_weight > 0:
            self._generator_reg(gen_z, gen_c, gain)
        if phase.startswith("D"):
            main, reg = phase in ("Dmain", "Dboth"), phase in ("Dreg", "Dboth")
            if main or (reg and (self.r1_gamma > 0 or self.r2_gamma > 0)):
                self._discriminator(real_img, real_c, gen_z, gen_c, gain, main, reg)


def _first_half_twice(x: torch.Tensor) -> torch.Tensor:
    """Rows 0 to N / 2 - 1 and the same again; the last row of an odd number stays."""
    half = len(x) // 2
    return torch.cat([x[:half], x[:half], x[2 * half :]])


def _watched(term: str, img: torch.Tensor, gain: float) -> torch.Tensor:
    """The same images, by a path of their own on which the norm of a term's gradient, its weight included, is reported image by image."""

    def report(gradient: torch.Tensor) -> None:
        norms = gradient.detach().float().flatten(1).norm(dim=1)
        training_stats.report(f"Loss/{term}/grad_norm", norms * (len(norms) / gain))  # every loss is a mean over the images

    img = img.view_as(img)
    if img.requires_grad:
        img.register_hook(report)
    return img


@contextlib.contextmanager
def trainable(*modules: nn.Module) -> Iterator[None]:
    """Within: the modules' parameters take gradients. After: they do not, so no other phase reaches them."""
    for module in modules:
        module.requires_grad_(True)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(False)
