"""Each term of the losses against its closed form: D is linear in the image and G in w, so that gradients can be written down."""

import functools

import pytest
import torch
import torch.nn.functional as F
from test_loss import batch, small, term_of
from torch import nn

from pairing.losses import infonce, mode_seeking
from torch_utils import training_stats
from training import objectives
from training.loss import StyleGAN2Loss
from training.phases import trainable

Z, LAYERS, SHAPE = 3, 4, (3, 2, 2)
PIXELS = 12
GAIN = 3.0


class LinearG(nn.Module):
    """Every layer's w is a multiple of z, and every pixel a sum over all of them."""

    def __init__(self, generator):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(Z, generator=generator, dtype=torch.float64) + 0.5)
        self.weight = nn.Parameter(torch.randn(LAYERS, Z, PIXELS, generator=generator, dtype=torch.float64))

    def mapping(self, z, c, skip_w_avg_update=False):
        return (z * self.scale)[:, None].repeat(1, LAYERS, 1)

    def synthesis(self, ws):
        return torch.einsum("nlk,lkp->np", ws, self.weight).view(-1, *SHAPE)


class LinearD(nn.Module):
    """One scalar product."""

    def __init__(self, generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(PIXELS, generator=generator, dtype=torch.float64))

    def forward(self, img, c):
        return img.flatten(1) @ self.weight[:, None]


class LinearP(nn.Module):
    """A matrix for images and one for latents."""

    def __init__(self, generator):
        super().__init__()
        self.image = nn.Parameter(torch.randn(PIXELS, 5, generator=generator, dtype=torch.float64))
        self.latent = nn.Parameter(torch.randn(Z, 5, generator=generator, dtype=torch.float64))

    def embed_image(self, img):
        return F.normalize(img.flatten(1) @ self.image, dim=1)

    def embed_latent(self, z):
        return F.normalize(z @ self.latent, dim=1)


def linear(pairing=False, **settings):
    """G, D, P and a loss of them, all of whose terms but the adversarial one are off unless asked for."""
    generator = torch.Generator().manual_seed(0)
    G, D, P = (kind(generator).requires_grad_(False) for kind in (LinearG, LinearD, LinearP))
    settings = dict(style_mixing_prob=0, pl_weight=0, r1_gamma=0) | ({"pairing_weight": 0.5} if pairing else {}) | settings
    loss = StyleGAN2Loss("cpu", G.mapping, G.synthesis, D, pairing=term_of(P, settings), **settings)
    loss.pl_mean = loss.pl_mean.double()
    return G, D, P, loss


def samples():
    """Real images, latents and empty labels of a batch of six."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(6, *SHAPE, generator=generator, dtype=torch.float64)
    return real, torch.randn(6, Z, generator=generator, dtype=torch.float64), torch.zeros(6, 0)


def accumulate(loss, phase, *modules):
    """Adds the gradients of GAIN times a phase's loss to what the modules have."""
    real, z, c = samples()
    with trainable(*modules):
        loss.accumulate_gradients(phase, real, c, z, c, gain=GAIN)


@pytest.fixture
def seen(monkeypatch):
    """The statistics that are reported, by name."""
    reported = {}
    monkeypatch.setattr(training_stats, "report", lambda name, value: reported.update({name: value}))
    return reported


# The adversarial terms.


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_the_discriminator_raises_its_logits_of_reals_and_lowers_those_of_fakes(objective):
    G, D, _, loss = linear(objective=objective)
    real, z, c = samples()
    fake = G.synthesis(G.mapping(z, c))
    lead = D(fake, c) - D(real, c)
    up, down = (lead.sigmoid(), lead.sigmoid()) if objective == "relativistic" else ((-D(real, c)).sigmoid(), D(fake, c).sigmoid())
    accumulate(loss, "Dmain", D)
    torch.testing.assert_close(D.weight.grad, GAIN * (down * fake.flatten(1) - up * real.flatten(1)).mean(dim=0))


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_the_generator_raises_the_logits_of_its_images(objective):
    G, D, _, loss = linear(objective=objective)
    real, z, c = samples()
    ws = G.mapping(z, c)
    behind = -D(G.synthesis(ws), c) + (D(real, c) if objective == "relativistic" else 0)
    accumulate(loss, "Gmain", G)
    torch.testing.assert_close(G.weight.grad, -GAIN / len(z) * torch.einsum("no,nlk,p->lkp", behind.sigmoid(), ws, D.weight))
    assert D.weight.grad is None


AUGMENTED = [
    ("Gmain", "logistic", ["fake"]),
    ("Gmain", "relativistic", ["fake", "real"]),
    ("Dmain", "logistic", ["fake", "real"]),
    ("Dmain", "relativistic", ["fake", "real"]),
    ("Dreg", "logistic", ["fake", "real"]),
    ("Dreg", "relativistic", ["fake", "real"]),
    ("Dboth", "logistic", ["fake", "real", "fake", "real"]),
]


@pytest.mark.parametrize(("phase", "objective", "kinds"), AUGMENTED)
def test_the_discriminator_sees_augmented_images_alone(phase, objective, kinds):
    G, D, _, _ = linear()
    taken, judged = [], []
    pipe = lambda img: taken.append(img.detach()) or img * 2  # noqa: E731
    judge = lambda img, c: judged.append(img.detach()) or D(img, c)  # noqa: E731
    penalties = dict(r1_gamma=1, r2_gamma=1)
    loss = StyleGAN2Loss("cpu", G.mapping, G.synthesis, judge, pipe, style_mixing_prob=0, pl_weight=0, objective=objective, **penalties)
    real, z, c = samples()
    images = {"real": real, "fake": G.synthesis(G.mapping(z, c))}
    accumulate(loss, phase, G if phase.startswith("G") else D)
    assert len(taken) == len(judged) == len(kinds)
    for before, after, kind in zip(taken, judged, kinds):
        assert torch.equal(before, images[kind]) and torch.equal(after, images[kind] * 2)


# Gradient penalties.


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
@pytest.mark.parametrize(("r1", "r2"), [(0.3, 0), (0, 0.5), (0.3, 0.5)])
def test_each_penalty_has_its_own_gamma_and_goes_through_the_augmentation(r1, r2, objective):
    _, D, _, loss = linear(r1_gamma=r1, r2_gamma=r2, objective=objective, augment_pipe=lambda img: img * 2)
    accumulate(loss, "Dreg", D)
    torch.testing.assert_close(D.weight.grad, GAIN * 4 * (r1 + r2) * D.weight)  # gamma / 2 * |2 a|^2, twice the a that D had without pipe


# Path lengths.


def test_path_lengths_are_drawn_to_their_running_mean(monkeypatch):
    G, _, _, loss = linear(pl_weight=0.7, pl_decay=0.25, pl_batch_shrink=2)
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)  # for half of the batch
    monkeypatch.setattr(objectives, "path_lengths", functools.partial(objectives.path_lengths, noise=noise))
    # The images' Jacobian is the weight, whatever the w: lengths and their gradients are these in every round.
    pulls = torch.einsum("lkp,np->nlk", G.weight, noise.flatten(1))
    lengths = pulls.square().sum(dim=2).mean(dim=1).sqrt()
    slopes = torch.einsum("nlk,np,n->nlkp", pulls, noise.flatten(1), 1 / (LAYERS * lengths))
    mean = torch.zeros([], dtype=torch.float64)
    for _ in range(3):
        G.zero_grad()
        accumulate(loss, "Greg", G)
        mean = mean + 0.25 * (lengths.mean() - mean)
        torch.testing.assert_close(loss.pl_mean, mean)
        expected = torch.einsum("n,nlkp->lkp", 2 * (lengths - mean), slopes) / len(lengths)
        torch.testing.assert_close(G.weight.grad, GAIN * 0.7 * expected)
        assert G.scale.grad is None  # lengths are those of w, not of z


# Pairing.


def test_pairing_moves_the_pairing_network_by_gain_and_weight():
    G, _, P, loss = linear(pairing=True, pairing_weight=0.3)
    accumulate(loss, "Gmain", G, P)
    _, z, c = samples()
    with trainable(P):
        pairing, _ = infonce(P.embed_image(G.synthesis(G.mapping(z, c))), P.embed_latent(z), 0.1)
        expected = torch.autograd.grad(GAIN * 0.3 * pairing, [P.image, P.latent])
    # Logits of pairs are float32: rounding is a ten-millionth of terms that cancel in part.
    torch.testing.assert_close([P.image.grad, P.latent.grad], list(expected), rtol=1e-5, atol=1e-6)


def test_the_control_pairs_each_image_with_the_latent_of_its_neighbour(seen):
    for shuffle in (False, True):
        G, _, P, loss = linear(pairing=True, pairing_shuffle=shuffle)
        accumulate(loss, "Gmain", G, P)
        _, z, c = samples()
        expected, _ = infonce(P.embed_image(G.synthesis(G.mapping(z, c))), P.embed_latent(z.roll(1, 0) if shuffle else z), 0.1)
        torch.testing.assert_close(seen["Loss/pairing/loss"], expected)


def test_a_mixed_image_is_judged_and_the_plain_one_is_paired(seen):
    G, D, P, loss = linear(pairing=True, style_mixing_prob=1.0)
    accumulate(loss, "Gmain", G, P)
    _, z, c = samples()
    plain = G.synthesis(G.mapping(z, c))
    expected, _ = infonce(P.embed_image(plain), P.embed_latent(z), 0.1)
    torch.testing.assert_close(seen["Loss/pairing/loss"], expected)
    assert not torch.allclose(seen["Loss/scores/fake"], D(plain, c))


def test_mode_seeking_looks_at_what_one_latent_makes(seen):
    G, D, _, loss = linear(ms_weight=1.0, style_mixing_prob=1.0)
    accumulate(loss, "Gmain", G)
    _, z, c = samples()
    plain = G.synthesis(G.mapping(z, c))
    torch.testing.assert_close(seen["Loss/ms/loss"], mode_seeking(plain[:3], plain[3:], z[:3], z[3:]))
    assert not torch.allclose(seen["Loss/scores/fake"], D(plain, c))


@pytest.mark.parametrize("labelled", [True, False])
def test_mode_seeking_compares_images_of_one_class_with_the_relativistic_objective_too(labelled, monkeypatch):
    G, D, _, loss = linear(ms_weight=1.0, objective="relativistic")
    real, z, c = samples()
    c = torch.eye(6) if labelled else c
    judged, paired = [], []
    monkeypatch.setattr(loss, "run_D", lambda img, labels: judged.append((img, labels)) or D(img, labels))
    compare = objectives.relativistic_loss
    monkeypatch.setattr(objectives, "relativistic_loss", lambda **logits: paired.append(logits["loser_logits"]) or compare(**logits))
    with trainable(G):
        loss.accumulate_gradients("Gmain", real, c, z, c)
    (_, made), (seen_real, of_real) = judged
    assert torch.equal(seen_real, real) and torch.equal(of_real, c)  # whole, as D is trained on them
    order = [0, 1, 2, 0, 1, 2] if labelled else list(range(6))
    assert torch.equal(made, c[order]) and torch.equal(paired[0], D(real, c)[order])


def test_w_is_data_to_the_pairing_term():
    G, D, P, loss = linear(pairing=True, pairing_space="w")
    accumulate(loss, "Gmain", G, P)
    _, z, c = samples()
    with trainable(G):
        ws = G.mapping(z, c)
        img = G.synthesis(ws)
        pairing, _ = infonce(P.embed_image(img), P.embed_latent(ws[:, 0].detach()), 0.1)
        expected = torch.autograd.grad(GAIN * (objectives.generator_loss(D(img, c)).mean() + 0.5 * pairing), [G.scale, G.weight])
    # Logits of pairs are float32: rounding is a ten-millionth of terms that cancel in part.
    torch.testing.assert_close([G.scale.grad, G.weight.grad], list(expected), rtol=1e-5, atol=1e-6)


ASIDE = {"style mixing": dict(style_mixing_prob=1.0), "extra negatives": dict(pairing_weight=1, pairing_space="w", pairing_extra=9)}


@pytest.mark.parametrize("name", ASIDE)
def test_the_batchs_own_latents_alone_move_the_mean_of_w(name):
    G, _, P, loss = small(**ASIDE[name])
    other = small()[0]
    real, real_c, z, c = batch()
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", real, real_c, z, c)
    other.mapping(z, c)
    assert torch.equal(G.mapping.w_avg, other.mapping.w_avg) and other.mapping.w_avg.any()
