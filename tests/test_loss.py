"""Losses equal the golden gradients; each term moves the networks it should and no other."""

import functools
import math

import pytest
import torch
from test_networks import CONFIGS, golden, near

from pairing.losses import infonce, mode_seeking
from pairing.negatives import extra_latents
from pairing.network import PairingNetwork
from pairing.term import PairingTerm
from torch_utils import training_stats
from training import objectives
from training.loss import StyleGAN2Loss
from training.networks import Discriminator, Generator
from training.phases import trainable


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg"])
def test_phase_gradients_equal_golden(name, phase):
    config, t, G, D = golden(name)
    for p in [p for n, p in G.named_parameters() if n.endswith("noise_strength")]:
        p.data.zero_()
    for module in (G, D):
        module.train().requires_grad_(False)
    loss = StyleGAN2Loss("cpu", G.mapping, G.synthesis, D, **config["loss"])
    module = G if phase.startswith("G") else D
    with trainable(module):
        loss.accumulate_gradients(phase, t["real"], t["c"], t["z"], t["c2"], sync=True, gain=1)
    expected = {k.removeprefix(f"grad.{phase}."): v for k, v in t.items() if k.startswith(f"grad.{phase}.")}
    prefix = "G." if phase.startswith("G") else "D."
    ours = {prefix + k: v for k, v in gradients(module).items()}
    assert expected and set(ours) <= {prefix + n for n, _ in module.named_parameters()}
    for key, value in expected.items():
        if key in ours:
            near(ours[key], value, 1e-3)
        else:  # a bias that the penalty does not depend on: no gradient is a zero gradient
            assert value.abs().max() == 0
    other = D if module is G else G
    assert not gradients(other)
    if phase == "Gmain":
        near(G.mapping.w_avg, t["w_avg_after_one_training_pass"], 1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_path_lengths_equal_golden(name):
    _, t, G, _ = golden(name)
    G.load_state_dict({k[7:]: v for k, v in t.items() if k.startswith("eval.G.")}, strict=False)
    for p in [p for n, p in G.named_parameters() if n.endswith("noise_strength")]:
        p.data.zero_()
    G.eval().requires_grad_(True)
    ws = G.mapping(t["z"], t["c2"])
    lengths = objectives.path_lengths(G.synthesis(ws, noise_mode="none"), ws, t["pl.noise"])
    near(lengths, t["pl.lengths"], 1e-4)
    penalty = (lengths - 0.5).square().mean()
    near(penalty, t["pl.penalty_with_mean_0.5"], 1e-4)
    penalty.backward()
    ours = gradients(G)
    for key, value in t.items():
        if key.startswith("grad.pl.G."):
            near(ours[key.removeprefix("grad.pl.G.")], value, 1e-3)


def small(c_dim=3, **loss_kwargs):
    torch.manual_seed(0)
    width = dict(channel_base=128, channel_max=8)
    # Without noise inputs, whose gradients depend on the position in the random stream.
    G = Generator(8, c_dim, 8, 16, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=dict(width, use_noise=False))
    D = Discriminator(c_dim, 16, 3, **width, mapping_kwargs={"num_layers": 1}, epilogue_kwargs={"mbstd_group_size": 1})
    P = PairingNetwork(8, 16, 3, embed_dim=8)
    for module in (G, D, P):
        module.train().requires_grad_(False)
    kwargs = dict(style_mixing_prob=0, pl_weight=0, r1_gamma=1) | loss_kwargs
    return G, D, P, StyleGAN2Loss("cpu", G.mapping, G.synthesis, D, pairing=term_of(P, kwargs), **kwargs)


def term_of(P, kwargs):
    """The pairing term that the pairing_ options among `kwargs` ask for, which are taken out of it; None without a weight."""
    chosen = {name.removeprefix("pairing_"): kwargs.pop(name) for name in list(kwargs) if name.startswith("pairing_")}
    return PairingTerm(P, **(dict(tau=0.1, mode="infonce", space="z", gather=True) | chosen)) if chosen else None


def batch(n=4, c_dim=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    c = torch.eye(c_dim)[torch.randint(c_dim, [2, n], generator=g)]
    return torch.randn(n, 3, 16, 16, generator=g), c[0], torch.randn(n, 8, generator=g), c[1]


def flat(module):
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in module.parameters()])


@pytest.mark.parametrize("mode", ["infonce", "binary"])
@pytest.mark.parametrize("space", ["z", "w"])
def test_pairing_gradient_reaches_G_and_P_and_never_D(mode, space):
    G, D, P, loss = small(pairing_weight=0.5, pairing_mode=mode, pairing_space=space)
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", *batch())
    assert flat(P).abs().max() > 0 and flat(G).abs().max() > 0 and not gradients(D)
    with_pairing = flat(G)
    G2, _, _, plain = small()
    with trainable(G2):
        plain.accumulate_gradients("Gmain", *batch())
    assert not torch.allclose(with_pairing, flat(G2), rtol=1e-3)
    with trainable(D):
        loss.accumulate_gradients("Dmain", *batch())
    assert flat(D).abs().max() > 0
    P.zero_grad()
    _, D2, _, plain = small()
    with trainable(D2):
        plain.accumulate_gradients("Dmain", *batch())
    assert flat(P).abs().max() == 0
    assert torch.allclose(flat(D), flat(D2), atol=1e-6)  # both saw the same images


def test_joint_loss_is_adversarial_plus_lambda_times_pairing():
    """Equation (3): the gradient is linear in lambda."""
    grads = []
    for weight in (0.0, 0.3, 0.6):
        G, _, P, loss = small(pairing_weight=weight)
        with trainable(G, P):
            loss.accumulate_gradients("Gmain", *batch())
        grads.append(flat(G))
    torch.testing.assert_close(grads[2] - grads[1], grads[1] - grads[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("term, chosen", [("pairing", dict(pairing_weight=0.3)), ("ms", dict(ms_weight=2.0))])
def test_gradient_norms_of_the_terms_are_those_of_each_image(term, chosen, monkeypatch):
    seen = {}
    monkeypatch.setattr(training_stats, "report", lambda name, value: seen.setdefault(name, torch.as_tensor(value)))
    G, D, P, loss = small(**chosen)
    real, real_c, z, c = batch()
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", real, real_c, z, c, gain=0.25)
    c = c if term == "pairing" else torch.cat([c[:2], c[:2]])
    img = G.synthesis(G.mapping(z, c)).detach().requires_grad_()
    if term == "pairing":
        extra = 0.3 * infonce(P.embed_image(img), P.embed_latent(z), 0.1)[0]
    else:
        extra = 2 * mode_seeking(img[:2], img[2:], z[:2], z[2:])
    for name, value in (("G", objectives.generator_loss(D(img, c)).mean()), (term, extra)):
        expected = torch.autograd.grad(value, img)[0].flatten(1).norm(dim=1) * len(img)
        torch.testing.assert_close(seen[f"Loss/{name}/grad_norm"], expected, rtol=1e-4, atol=1e-6)


def test_features_of_D_are_paired_through_D_which_learns_nothing_from_it(monkeypatch):
    seen = {}
    monkeypatch.setattr(training_stats, "report", lambda name, value: seen.setdefault(name, torch.as_tensor(value)))
    G, D, _, loss = small(pairing_weight=0.3, pairing_features=True)
    loss.pairing.P = P = PairingNetwork(8, 16, 3, embed_dim=8, feature_channels=D.feature_channels)
    real, real_c, z, c = batch()
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", real, real_c, z, c)
    assert flat(P).abs().max() > 0 and not gradients(D)
    img = G.synthesis(G.mapping(z, c)).detach().requires_grad_()
    expected, _ = infonce(P.embed_image(D.features(img)), P.embed_latent(z), 0.1)
    torch.testing.assert_close(seen["Loss/pairing/loss"], expected)
    norms = torch.autograd.grad(0.3 * expected, img)[0].flatten(1).norm(dim=1) * len(img)
    assert norms.min() > 0
    torch.testing.assert_close(seen["Loss/pairing/grad_norm"], norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", ["z", "w"])
def test_extra_negatives_are_told_from_the_batchs(space, monkeypatch):
    seen = {}
    monkeypatch.setattr(training_stats, "report", lambda name, value: seen.setdefault(name, value))
    G, _, P, loss = small(pairing_weight=1, pairing_space=space, pairing_extra=9, pairing_near=0.3)
    real, real_c, z, c = batch()
    torch.manual_seed(5)
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", real, real_c, z, c)
    torch.manual_seed(5)
    latents, labels = torch.cat([z, extra_latents(z, 9, 0.3)]), torch.cat([c, c[torch.arange(9) % len(c)]])
    ws = G.mapping(latents, labels)
    expected, _ = infonce(P.embed_image(G.synthesis(ws[: len(z)])), P.embed_latent(latents if space == "z" else ws[:, 0]), 0.1)
    torch.testing.assert_close(seen["Loss/pairing/loss"], expected)


@pytest.mark.parametrize("objective", ["logistic", "relativistic"])
@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dreg"])
def test_accumulated_rounds_equal_one_big_batch(objective, phase):
    """Minibatch std is off and the pairing term absent, as both see one round at a time."""
    real, real_c, z, c = batch(8)
    grads = []
    for rounds in (1, 4):
        G, D, _, loss = small(objective=objective, r2_gamma=0.5)
        module = G if phase == "Gmain" else D
        with trainable(module):
            for part in zip(*(t.chunk(rounds) for t in (real, real_c, z, c))):
                loss.accumulate_gradients(phase, *part, gain=1 / rounds)
        grads.append(flat(module))
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("whole", "parts"), [("Gboth", ["Gmain", "Greg"]), ("Dboth", ["Dmain", "Dreg"])])
def test_gboth_and_dboth_are_the_sums_of_their_parts(whole, parts, monkeypatch):
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) / 16  # of path lengths, for half of the batch
    monkeypatch.setattr(objectives, "path_lengths", functools.partial(objectives.path_lengths, noise=noise))

    def gradient(*phases):
        G, D, _, loss = small(pl_weight=2, r2_gamma=0.3)
        module = G if whole.startswith("G") else D
        with trainable(module):
            for phase in phases:
                loss.accumulate_gradients(phase, *batch())
        return flat(module)

    torch.testing.assert_close(gradient(whole), gradient(*parts), rtol=1e-4, atol=1e-6)  # sums of float32 in another order
    for part in parts:
        assert not torch.allclose(gradient(whole), gradient(part), rtol=1e-2)


@pytest.mark.parametrize(("name", "gamma"), [("r1", 3.0), ("r2", 0.5)])
def test_r1_and_r2_are_half_gamma_times_the_squared_gradient(name, gamma, monkeypatch):
    """Against a discriminator with a known gradient: D(x) = <a, x>, so each penalty is gamma / 2 * |a|^2."""
    seen = {}
    monkeypatch.setattr(training_stats, "report", lambda name, value: seen.setdefault(name, value))
    *_, loss = small()
    a = torch.randn(3, 4, 4, dtype=torch.float64)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = (x * a).sum(dim=[1, 2, 3])[:, None]
    torch.testing.assert_close(loss._penalty(name, logits, x, gamma), gamma / 2 * a.square().sum())
    torch.testing.assert_close(seen[f"Loss/{name}_penalty"], a.square().sum().expand(5))
    torch.testing.assert_close(seen["Loss/D/reg"], gamma / 2 * a.square().sum().expand(5))


def test_relativistic_objective_depends_on_differences_only():
    real, fake = torch.randn(6, 1), torch.randn(6, 1)
    a = objectives.relativistic_loss(real, fake)
    torch.testing.assert_close(a, objectives.relativistic_loss(real + 5, fake + 5))
    assert (objectives.relativistic_loss(real + 1, fake) < a).all()


@pytest.mark.parametrize("phase", ["Gmain", "Dmain"])
def test_the_relativistic_objective_compares_images_of_one_class(phase):
    G, D, _, _ = small()
    labels = []
    judge = lambda img, c: labels.append(c) or D(img, c)  # noqa: E731
    loss = StyleGAN2Loss("cpu", G.mapping, G.synthesis, judge, objective="relativistic", style_mixing_prob=0, pl_weight=0)
    real, real_c, z, c = batch()
    with trainable(G if phase == "Gmain" else D):
        loss.accumulate_gradients(phase, real, real_c, z, c)
    assert len(labels) == 2 and all(torch.equal(seen, real_c) for seen in labels) and not torch.equal(c, real_c)


def test_mode_seeking_pairs_latents_under_one_label():
    seen = []
    G, D, _, _ = small()
    loss = StyleGAN2Loss("cpu", lambda z, c: seen.append(c) or G.mapping(z, c), G.synthesis, D, ms_weight=1.0, style_mixing_prob=0, pl_weight=0)
    with trainable(G):
        loss.accumulate_gradients("Gmain", *batch(5))
    assert torch.equal(seen[0][:2], seen[0][2:4]) and gradients(G) and not gradients(D)


def test_style_mixing_swaps_the_tail_and_keeps_the_plain_ws():
    *_, loss = small(style_mixing_prob=1.0)
    _, _, z, c = batch()
    _, ws, plain = loss.run_G(z, c)
    same = (ws == plain).all(dim=2).all(dim=0)
    assert same[0] and not same[-1] and torch.equal(same, same.sort(descending=True).values)


def test_without_style_mixing_nothing_is_mixed_and_nothing_drawn():
    G, _, _, loss = small(style_mixing_prob=0.0)
    _, _, z, c = batch()
    state = torch.get_rng_state()
    img, ws, plain = loss.run_G(z, c)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(ws, plain) and torch.equal(img, G.synthesis(G.mapping(z, c)))


def test_a_share_of_the_batches_is_mixed():
    *_, loss = small(style_mixing_prob=0.25)
    loss.G_synthesis = lambda ws: ws
    _, _, z, c = batch(1)
    mixed = sum(not torch.equal(*loss.run_G(z, c)[1:]) for _ in range(400))
    assert abs(mixed - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)  # four deviations of a seeded count


def test_unknown_phase_is_refused():
    *_, loss = small()
    with pytest.raises(ValueError, match="Gmain"):
        loss.accumulate_gradients("G", *batch())
