"""The losses of one training phase: adversarial terms, R1/R2, path length, pairing and mode seeking, accumulated as gradients.

Which networks a phase moves, how often and with which optimiser is the training loop's business (training.phases).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pairing.losses import mode_seeking
from pairing.term import FullBatch, PairingTerm
from torch_utils import training_stats
from torch_utils.distributed import mean_over_ranks_
from training import objectives

PHASES = ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth")


class StyleGAN2Loss:
    """Gradients of the StyleGAN2 losses and of the pairing term, phase by phase.

    Args:
        device: where the networks live.
        G_mapping, G_synthesis, D: the networks, or callables that run them.
        augment_pipe: applied to whatever D sees; None: nothing is.
        style_mixing_prob: probability that a batch is made from two latents.
        r1_gamma, r2_gamma: weights of the gradient penalty on real and on generated images; each penalty is gamma / 2 * |gradient|^2.
        pl_batch_shrink, pl_decay, pl_weight: path length regularisation: batch divisor, decay of the running mean, weight.
        objective: 'logistic' or 'relativistic'.
        pairing: the pairing term of the generator's loss; None: there is none.
        ms_weight: weight of the mode-seeking baseline.
        on_real_logits: receives D's logits of the real images of every round; None: nobody does.
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
        pairing: PairingTerm | None = None,
        ms_weight: float = 0,
        on_real_logits: Callable[[torch.Tensor], None] | None = None,
        compiled: tuple[Callable, Callable, Callable] | None = None,
    ):
        self.device, self.augment_pipe, self.on_real_logits = device, augment_pipe, on_real_logits
        self._plain = (G_mapping, G_synthesis, D)
        self._compiled = compiled or self._plain
        self.G_mapping, self.G_synthesis, self.D = self._plain
        self.style_mixing_prob, self.r1_gamma, self.r2_gamma, self.objective = style_mixing_prob, r1_gamma, r2_gamma, objective
        self.pl_batch_shrink, self.pl_decay, self.pl_weight = pl_batch_shrink, pl_decay, pl_weight
        self.pl_mean = torch.zeros([], device=device)
        self.pairing, self.ms_weight = pairing, ms_weight

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

    def _generator_main(self, real_img, real_c, z, c, gain, full: FullBatch) -> None:
        half = len(z) // 2
        if self.ms_weight > 0:
            # Mode seeking compares images of two latents under one label: both halves of the batch share their labels.
            c = _first_half_twice(c)
            full = full._replace(c=_first_half_twice(full.c.unflatten(0, (len(z), -1))).flatten(0, 1))  # as in the other rounds
        img, _, plain_ws = self.run_G(z, c)
        judged = img if self.pairing is None and not self.ms_weight else training_stats.report_grad_norm("Loss/G/grad_norm", img, gain)
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
        if self.style_mixing_prob > 0 and (self.pairing is not None or self.ms_weight > 0):
            img = self.G_synthesis(plain_ws)  # a mixed image comes from two latents: both terms are about what one latent makes
        if self.pairing is not None:
            loss = loss + self.pairing(img, plain_ws, full, self.G_mapping, self.D, gain)
        if self.ms_weight > 0:
            sought = training_stats.report_grad_norm("Loss/ms/grad_norm", img, gain)
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

    def _judge_real(self, real_img, real_c) -> torch.Tensor:
        logits = self.run_D(real_img, real_c)
        training_stats.report("Loss/scores/real", logits)
        training_stats.report("Loss/signs/real", logits.sign())
        if self.on_real_logits is not None:
            self.on_real_logits(logits)
        return logits

    def _discriminator_main(self, real_img, real_c, z, c, gain) -> None:
        fake_logits = self.run_D(self._fake_images(z, c), c)
        training_stats.report("Loss/scores/fake", fake_logits)
        training_stats.report("Loss/signs/fake", fake_logits.sign())
        if self.objective == "relativistic":
            loss = objectives.relativistic_loss(winner_logits=self._judge_real(real_img, real_c), loser_logits=fake_logits)
            training_stats.report("Loss/D/loss", loss)
        else:
            # The two halves of the logistic loss part here: the graph of the fakes is freed before the reals are run.
            fake_loss = objectives.discriminator_fake_loss(fake_logits)
            (fake_loss.mean() * gain).backward()
            loss = objectives.discriminator_real_loss(self._judge_real(real_img, real_c))
            training_stats.report("Loss/D/loss", fake_loss.detach() + loss)
        (loss.mean() * gain).backward()

    def _discriminator_reg(self, real_img, real_c, z, c, gain) -> None:
        if self.r2_gamma > 0:
            fake_img = self._fake_images(z, c).requires_grad_()
            (self._penalty("r2", self.run_D(fake_img, c), fake_img, self.r2_gamma) * gain).backward()
        if self.r1_gamma > 0:
            real_img = real_img.detach().requires_grad_()
            (self._penalty("r1", self._judge_real(real_img, real_c), real_img, self.r1_gamma) * gain).backward()

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
        full: FullBatch | None = None,
    ) -> None:
        """Adds gain times the gradients of `phase`'s mean loss to the networks' .grad.

        Every loss is a mean over the samples given, so with gain = 1 / rounds the rounds of an accumulation sum to the
        gradient of one big batch (except that path length's mean, mode seeking and binary pairing see one round at a time).

        Args:
            phase: one of `PHASES` (Gboth and Dboth: main and reg, one after the other); the networks that it does not train have requires_grad off.
            real_img, real_c: real images [N, C, H, W] in -1..1 and labels [N, c_dim].
            gen_z, gen_c: latents [N, z_dim] and labels [N, c_dim] of the images to generate; the relativistic objective takes real_c for both, since
                it compares a real and a generated image of one class.
            sync: kept from StyleGAN2-ADA's signature; the training loop exchanges gradients itself, after the last round.
            gain: factor on the loss.
            full: what the samples are a round of; None: they are the full batch of this rank.

        Raises:
            ValueError: unknown phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, found {phase!r}")
        full = full or FullBatch(gen_z, gen_c, real_c, slice(None))
        if self.objective == "relativistic":
            gen_c, full = real_c, full._replace(c=full.real_c)
        self.G_mapping, self.G_synthesis, self.D = self._compiled if phase.endswith("main") else self._plain
        if phase in ("Gmain", "Gboth"):
            self._generator_main(real_img, real_c, gen_z, gen_c, gain, full)
        if phase in ("Greg", "Gboth") and self.pl_weight > 0:
            self._generator_reg(gen_z, gen_c, gain)
        if phase in ("Dmain", "Dboth"):
            self._discriminator_main(real_img, real_c, gen_z, gen_c, gain)
        if phase in ("Dreg", "Dboth"):
            self._discriminator_reg(real_img, real_c, gen_z, gen_c, gain)


def _first_half_twice(x: torch.Tensor) -> torch.Tensor:
    """Rows 0 to N / 2 - 1 and the same again; the last row of an odd number stays."""
    half = len(x) // 2
    return torch.cat([x[:half], x[:half], x[2 * half :]])
