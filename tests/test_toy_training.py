"""Toy training: stacked models equal separate ones, hand-written gradients equal autograd's, every method runs on every distribution."""

import math

import pytest
import torch
from torch import nn

from bench.toy_speed import PlainTrainer
from dnnlib import UserError
from experiments.toy import distributions
from experiments.toy.methods import METHODS, Method, Settings, find_method
from experiments.toy.models import SLOPE, apply_stack, frozen, initial_stack, value_and_slope
from experiments.toy.studies import STUDIES, find_study
from experiments.toy.trainer import Trainer, stream, train
from training import objectives

FEW = Settings(steps=3, batch=16)


def generators(n, offset=0):
    return [torch.Generator().manual_seed(offset + i) for i in range(n)]


def as_modules(stack, index):
    """One model of a stack as nn.Linear layers."""
    layers = []
    for weight, bias in zip(stack[::2], stack[1::2]):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[index].detach().t().clone(), bias[index, 0].detach().clone()
        layers += [linear, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


def test_a_stack_equals_separate_networks_with_gradients():
    stack = initial_stack(2, 3, generators(4))
    x = torch.randn([4, 7, 2], generator=torch.Generator().manual_seed(9), requires_grad=True)
    dy = torch.randn([4, 7, 3], generator=torch.Generator().manual_seed(8))
    y = apply_stack(stack, x)
    gradients = torch.autograd.grad(y, [x, *stack], dy)
    for index in range(4):
        network, own = as_modules(stack, index), x[index].detach().requires_grad_()
        expected = network(own)
        torch.testing.assert_close(y[index], expected)
        inner = torch.autograd.grad(expected, [own, *network.parameters()], dy[index])
        torch.testing.assert_close(gradients[0][index], inner[0])
        for found, wanted in zip(gradients[1:], inner[1:]):
            torch.testing.assert_close(found[index].t().reshape(wanted.shape), wanted)


def test_slope_and_its_gradient_equal_double_backward():
    stack = [tensor.double().detach().requires_grad_() for tensor in initial_stack(4, 1, generators(2))]
    x = torch.randn([2, 6, 4], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, slope = value_and_slope(stack, x)
    loss = (y * torch.arange(6).view(1, 6, 1)).sum() + slope.square().sum()
    found = torch.autograd.grad(loss, stack)
    for index in range(2):
        network, own = as_modules(stack, index), x[index].clone().requires_grad_()
        logits = network(own)
        penalty = objectives.gradient_penalty(logits, own)
        torch.testing.assert_close(slope[index].square().sum(dim=1), penalty)
        wanted = torch.autograd.grad((logits * torch.arange(6).view(6, 1)).sum() + penalty.sum(), list(network.parameters()), allow_unused=True)
        for ours, theirs in zip(found, wanted):
            torch.testing.assert_close(ours[index].t().reshape(theirs.shape), theirs)


def test_frozen_weights_get_no_gradient_but_the_input_does():
    stack = initial_stack(2, 1, generators(2))
    x = torch.randn([2, 5, 2], generator=torch.Generator().manual_seed(1), requires_grad=True)
    apply_stack(frozen(stack), x).sum().backward()
    assert x.grad.abs().sum() > 0 and all(tensor.grad is None for tensor in stack)


@pytest.mark.parametrize("name", METHODS)
def test_training_in_a_stack_equals_training_alone(name):
    # To the last bit on the processors we have, for batches that fill its vectors; another matrix library may block a batched product by the
    # number of matrices, and Adam's first steps turn rounding of a gradient near 0 into a part of the step of 1e-3. Hence the tolerance.
    study = STUDIES["vertical"]
    together = train(METHODS[name], FEW, study.distribution, [3, 0, 7], record_every=1)
    for index, seed in enumerate([3, 0, 7]):
        alone = train(METHODS[name], FEW, study.distribution, [seed], record_every=1)
        for joint, single in zip(together.G + together.D, alone.G + alone.D):
            assert len(single) == 1
            torch.testing.assert_close(joint[index], single[0], rtol=1e-5, atol=1e-5)
        assert together.history.keys() == alone.history.keys()


@pytest.mark.parametrize("name", ["GAN", "GAN+R1", "GAN+Pairing", "GAN+Pairing+R1"])
def test_training_equals_plain_pytorch(name):
    method, study = METHODS[name], STUDIES["ring"]
    settings = Settings(batch=32)
    trainer, plain = Trainer(method, settings, study.distribution, [5]), PlainTrainer(method, settings)
    plain.G, plain.D = as_modules(trainer.G, 0), as_modules(trainer.D, 0)
    if trainer.P:
        plain.e_x, plain.e_z = as_modules(trainer.P[0], 0), as_modules(trainer.P[1], 0)
    plain.make_optimizers()
    batches = trainer.batches()
    for _ in range(5):
        real, z_d, z_g = next(batches)
        trainer.step(real, z_d, z_g)
        plain.step(real[0], z_d[0], z_g[0])
    for ours, theirs in ((trainer.G, plain.G), (trainer.D, plain.D)):
        for found, wanted in zip(ours, theirs.parameters()):
            # Five steps of 1e-3 each; where a gradient is near 0, Adam turns rounding into a part of a step.
            torch.testing.assert_close(found[0].detach().t().reshape(wanted.shape), wanted.detach(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_every_distribution(study, method):
    before = initial_stack(2, 2, [stream(0, "G")])
    trained = train(METHODS[method], FEW, STUDIES[study].distribution, [0], snapshots=[0], record_every=1)
    assert all(torch.equal(a, b) for a, b in zip(trained.snapshots[0], before))
    assert all(not torch.equal(a, b) for a, b in zip(trained.G, before))
    terms = {"R1": METHODS[method].r1, "R2": METHODS[method].r2, "pairing": METHODS[method].pairing, "mode seeking": METHODS[method].mode_seeking}
    for name, wanted in terms.items():
        assert (name in trained.history) == bool(wanted), name
    assert all(values.isfinite().all() for values in trained.history.values())


def test_a_seed_gives_all_methods_the_same_start_and_data():
    study = STUDIES["grid"]
    trainers = [Trainer(METHODS[name], FEW, study.distribution, [4]) for name in ("GAN", "GAN+Pairing+R1", "R3GAN")]
    for other in trainers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(trainers[0].G + trainers[0].D, other.G + other.D))
        assert all(torch.equal(a, b) for a, b in zip(next(trainers[0].batches()), next(other.batches())))


def test_pairing_leaves_the_discriminators_loss_alone():
    study = STUDIES["ring"]
    plain, paired = (Trainer(METHODS[name], FEW, study.distribution, [1]) for name in ("GAN", "GAN+Pairing"))
    real, z_d, z_g = next(plain.batches())
    assert torch.equal(plain.step(real, z_d, z_g)["D"], paired.step(real, z_d, z_g)["D"])


def test_an_adaptive_weight_moves_towards_its_target_and_a_fixed_one_stays():
    study = STUDIES["ring"]
    settings = Settings(steps=40, batch=16, pairing_target=1.0)
    fixed = train(METHODS["GAN+Pairing+R1"], settings, study.distribution, [0], record_every=1).history["pairing weight"]
    rising = train(METHODS["GAN+Pairing(adaptive)+R1"], settings, study.distribution, [0, 1], record_every=1).history["pairing weight"]
    assert (fixed == settings.pairing_weight).all()
    assert (rising[-1] > settings.pairing_weight).all() and (rising.diff(dim=0) >= 0).all()


def test_packing_joins_neighbours():
    trainer = Trainer(METHODS["PacGAN2"], FEW, STUDIES["ring"].distribution, [0])
    x = torch.randn([1, 16, 2], generator=torch.Generator().manual_seed(0))
    logits, _ = trainer._judge(trainer.D, x, False)
    assert logits.shape == (1, 8, 1)
    torch.testing.assert_close(logits[:, 0], apply_stack(trainer.D, x[:, :2].reshape(1, 1, 4))[:, 0])


def test_divergence_is_reported_with_its_seed():
    with pytest.raises(UserError, match=r"GAN\+R1 diverged .* seed 2"):
        train(METHODS["GAN+R1"], Settings(steps=2, batch=16, r1_gamma=math.inf), STUDIES["ring"].distribution, [2])


def test_unknown_names_and_an_odd_batch_are_refused():
    with pytest.raises(UserError, match=r"'WGAN'.*GAN\+R1"):
        find_method("WGAN")
    with pytest.raises(UserError, match=r"'torus'.*ring"):
        find_study("torus")
    with pytest.raises(UserError, match="batch is 6; PacGAN2 needs a multiple of 4"):
        Trainer(METHODS["PacGAN2"], Settings(batch=6), STUDIES["ring"].distribution, [0])


@pytest.mark.parametrize("name", STUDIES)
def test_density_integrates_to_one_and_matches_the_samples(name):
    target = STUDIES[name].distribution
    generator = torch.Generator().manual_seed(0)
    x = target.sample(20000, generator)
    # Importance sampling from a wider copy of the samples: the mean of p / q is 1 if p is a density.
    wide = x + target.std * torch.randn(x.shape, generator=generator)
    if isinstance(target, distributions.GaussianMixture):
        q = distributions.GaussianMixture("wide", target.centres, target.std * math.sqrt(2)).log_density(wide)
        assert math.isclose((target.log_density(wide) - q).exp().mean().item(), 1, abs_tol=0.02)
    else:
        points = torch.cartesian_prod(*[torch.linspace(-3, 3, 1201, dtype=torch.float64) * target.radius / 2] * 2)
        area = (3 * target.radius / 1200) ** 2
        assert math.isclose(float(target.log_density(points).exp().sum()) * area, 1, abs_tol=0.01)
    share = {distributions.GaussianMixture: 0.98889, distributions.Ring: 0.9973}[type(target)]
    assert math.isclose(target.on_support(x).double().mean().item(), share, abs_tol=0.004)
    counts = torch.bincount(target.nearest_mode(x), minlength=len(target.modes)) / len(x)
    assert len(counts) == len(target.modes) and torch.allclose(counts, torch.full_like(counts, 1 / len(counts)), atol=0.01)


def test_published_sizes():
    ring, grid = distributions.PACGAN_RING, distributions.PACGAN_GRID
    assert len(ring.centres) == 8 and ring.std == 0.01 and torch.allclose(ring.modes.norm(dim=1), torch.ones(8))
    assert sorted({x for x, _ in grid.centres}) == [-4, -2, 0, 2, 4] and len(grid.centres) == 25 and grid.std == 0.05


def test_methods_differ_and_are_found_by_name():
    assert len({repr(method).replace(method.name, "") for method in METHODS.values()}) == len(METHODS)
    assert find_method("GAN") == Method("GAN")
