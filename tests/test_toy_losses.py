"""The losses of the plane against their closed forms: who wins, and by which weight each penalty enters."""

import torch
import torch.nn.functional as F

from experiments.toy.methods import METHODS, Settings
from experiments.toy.models import apply_stack
from experiments.toy.studies import STUDIES
from experiments.toy.trainer import Trainer


def trained_for_none(name, **settings):
    """A trainer of two models, a batch of real samples, latents, and the samples made from them."""
    trainer = Trainer(METHODS[name], Settings(batch=16, **settings), STUDIES["ring"].distribution, [0, 1])
    real, z, _ = next(trainer.batches())
    return trainer, real, z, apply_stack(trainer.G, z).detach()


def test_reals_win_the_discriminators_relativistic_loss_and_fakes_the_generators():
    trainer, real, z, fake = trained_for_none("RpGAN")
    lead = apply_stack(trainer.D, real) - apply_stack(trainer.D, fake)
    torch.testing.assert_close(trainer.d_losses(real, fake)["D"], F.softplus(-lead).mean(dim=(1, 2)))
    torch.testing.assert_close(trainer.g_losses(real, fake, z)["G"], F.softplus(lead).mean(dim=(1, 2)))


def test_both_penalties_are_half_of_one_gamma_times_the_squared_slope():
    trainer, real, _, fake = trained_for_none("R3GAN", r1_gamma=0.4)
    losses = trainer.d_losses(real, fake)
    for name, x in (("R1", real), ("R2", fake)):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(apply_stack(trainer.D, x).sum(), x)
        torch.testing.assert_close(losses[name], 0.4 / 2 * slope.square().sum(dim=2).mean(dim=1))
