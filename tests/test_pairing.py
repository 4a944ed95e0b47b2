"""Pairing losses equal hand-written loops, notice a shuffle, and gather over ranks without changing the gradient."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from pairing import negatives
from pairing.adaptive import PairingWarmUp, adapt_weight
from pairing.losses import binary_pairing, infonce, mode_seeking, random_derangement
from pairing.negatives import LatentGather, extra_latents
from pairing.network import PairingNetwork
from torch_utils.distributed import leave


def unit(n, d, seed, dtype=torch.float32):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_infonce_equals_a_float64_loop(tau):
    e_x, e_z = unit(9, 5, 0), unit(9, 5, 1)
    total, hits = 0.0, 0
    for i in range(9):
        scores = [sum(float(a) * float(b) for a, b in zip(e_x[i], e_z[j])) / tau for j in range(9)]
        top = max(scores)
        total -= scores[i] - (top + math.log(sum(math.exp(s - top) for s in scores)))
        hits += scores.index(top) == i
    loss, accuracy = infonce(e_x, e_z, tau)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total / 9, rel=1e-5)
    assert accuracy.item() == pytest.approx(hits / 9)


def test_infonce_limits_and_half_precision_input():
    e = torch.eye(8)
    loss, accuracy = infonce(e, e, 0.01)
    assert loss < 1e-6 and accuracy == 1
    constant = F.normalize(torch.ones(8, 8), dim=1)
    assert infonce(constant, constant, 0.1)[0].item() == pytest.approx(math.log(8), rel=1e-5)
    assert infonce(e.bfloat16(), e.bfloat16(), 0.1)[0].dtype == torch.float32
    assert torch.isfinite(infonce(e * 100, e * 100, 1e-3)[0])


def test_infonce_is_invariant_to_a_joint_permutation_and_notices_a_shuffle():
    e_x = unit(16, 8, 0)
    e_z = F.normalize(e_x + 0.1 * unit(16, 8, 1), dim=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    loss, accuracy = infonce(e_x, e_z, 0.1)
    torch.testing.assert_close(infonce(e_x[order], e_z[order], 0.1)[0], loss)
    shuffled, shuffled_accuracy = infonce(e_x, e_z[random_derangement(16)], 0.1)
    assert shuffled > loss + 1 and shuffled_accuracy < accuracy


def test_targets_select_the_own_latent_among_gathered_ones():
    e_x, e_z = unit(4, 6, 0), unit(12, 6, 1)
    targets = torch.arange(4) + 8
    reordered = torch.cat([e_z[8:], e_z[:8]])
    for a, b in zip(infonce(e_x, e_z, 0.1, targets), infonce(e_x, reordered, 0.1)):
        torch.testing.assert_close(a, b)


def test_leading_dimensions_are_separate_tasks():
    draw = torch.Generator().manual_seed(0)
    e_x, e_z = (torch.nn.functional.normalize(torch.randn([3, 8, 5], generator=draw), dim=2) for _ in range(2))
    permutation = torch.stack([random_derangement(8, generator=draw) for _ in range(3)])
    for joint, single in (
        (infonce(e_x, e_z, 0.2), [infonce(a, b, 0.2) for a, b in zip(e_x, e_z)]),
        (infonce(e_x, e_z, 0.2, torch.arange(8).flip(0)), [infonce(a, b, 0.2, torch.arange(8).flip(0)) for a, b in zip(e_x, e_z)]),
        (binary_pairing(e_x, e_z, 0.2, permutation), [binary_pairing(a, b, 0.2, p) for a, b, p in zip(e_x, e_z, permutation)]),
    ):
        for values, wanted in zip(joint, zip(*single)):
            torch.testing.assert_close(values, torch.stack(wanted))


@pytest.mark.parametrize("n", [2, 3, 64])
def test_derangement_has_no_fixed_point(n):
    for seed in range(20):
        p = random_derangement(n, generator=torch.Generator().manual_seed(seed))
        assert (p != torch.arange(n)).all() and torch.equal(p.sort().values, torch.arange(n))


def test_binary_pairing_equals_its_formula():
    e_x, e_z = unit(6, 4, 0), unit(6, 4, 1)
    permutation = torch.tensor([1, 2, 0, 4, 5, 3])
    loss, accuracy = binary_pairing(e_x, e_z, 0.5, permutation)
    pairs = [(i, i, 1) for i in range(6)] + [(i, int(permutation[i]), 0) for i in range(6)]
    logits = torch.stack([e_x[i] @ e_z[j] / 0.5 for i, j, _ in pairs])
    labels = torch.tensor([float(y) for *_, y in pairs])
    torch.testing.assert_close(loss, 2 * F.binary_cross_entropy_with_logits(logits, labels))
    assert accuracy.item() == pytest.approx(((logits > 0) == (labels > 0)).float().mean().item())


def test_mode_seeking_equals_its_formula_and_falls_with_distance():
    g = torch.Generator().manual_seed(0)
    a, b, za, zb = (torch.randn(4, *shape, generator=g) for shape in ([3, 8, 8], [3, 8, 8], [5], [5]))
    expected = 1 / ((a - b).abs().mean() / (za - zb).abs().mean() + 1e-5)
    torch.testing.assert_close(mode_seeking(a, b, za, zb), expected)
    assert mode_seeking(a, a + 2 * (b - a), za, zb) < mode_seeking(a, b, za, zb)
    assert mode_seeking(a, a, za, zb).item() == pytest.approx(1e5, rel=1e-3)


@pytest.mark.parametrize("resolution,channels", [(8, 1), (32, 3), (64, 4)])
def test_network_gives_unit_rows_at_every_size(resolution, channels):
    P = PairingNetwork(12, resolution, channels, embed_dim=16)
    e_x, e_z = P(torch.randn(3, channels, resolution, resolution), torch.randn(3, 12))
    assert e_x.shape == e_z.shape == (3, 16)
    for e in (e_x, e_z):
        torch.testing.assert_close(e.norm(dim=1), torch.ones(3))
    z = torch.randn(2, 12)
    torch.testing.assert_close(P.embed_latent(z), P.embed_latent(3 * z))  # second-moment normalisation
    with pytest.raises(ValueError, match="power of two"):
        PairingNetwork(12, 4, 3)


def test_width_multiplies_both_towers_and_not_the_embedding():
    plain, wide = PairingNetwork(12, 32, 3, embed_dim=16), PairingNetwork(12, 32, 3, embed_dim=16, width=3)
    for (name, a), b in zip(plain.named_parameters(), wide.parameters()):
        first, last = name.startswith(("image_tower.0", "latent_tower.0")), name.startswith(("image_head.1", "latent_tower.2"))
        shape = [size if last else 3 * size for size in a.shape[:1]] + [size if first else 3 * size for size in a.shape[1:2]]
        assert list(b.shape) == [*shape, *a.shape[2:]], name
    e_x, e_z = wide(torch.randn(2, 3, 32, 32), torch.randn(2, 12))
    assert e_x.shape == e_z.shape == (2, 16)


def test_a_coarse_view_hides_what_is_finer():
    P = PairingNetwork(12, 32, 3, embed_dim=16, view=8)
    img = torch.randn(2, 3, 32, 32, requires_grad=True)
    fine = torch.randn(2, 3, 8, 4, 8, 4)
    fine = (fine - fine.mean(dim=(3, 5), keepdim=True)).reshape(2, 3, 32, 32)
    torch.testing.assert_close(P.embed_image(img + fine), P.embed_image(img))
    assert (PairingNetwork(12, 32, 3, embed_dim=16).embed_image(img + fine) - P.embed_image(img)).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(P.embed_image(img)[:, 0].sum(), img)
    cells = gradient.reshape(2, 3, 8, 4, 8, 4)
    torch.testing.assert_close(cells, cells[:, :, :, :1, :, :1].expand_as(cells))  # and so nothing finer is asked of the generator
    for view in (4, 12, 64):
        with pytest.raises(ValueError, match="view is a power of two from 8 to img_resolution = 32"):
            PairingNetwork(12, 32, 3, view=view)


def test_features_in_place_of_images_are_seen_by_direction_alone():
    P = PairingNetwork(12, 32, 3, embed_dim=16, feature_channels=10)
    assert not list(P.image_tower.parameters())
    features = torch.randn(3, 10, 4, 4)
    e_x = P.embed_image(features)
    torch.testing.assert_close(e_x.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(P.embed_image(100 * features), e_x)
    torch.testing.assert_close(P.embed_image(features.to(torch.bfloat16)), P.embed_image(features.to(torch.bfloat16).float()))
    with pytest.raises(ValueError, match="view = 8 is one of images, and feature_channels = 10 takes none"):
        PairingNetwork(12, 32, 3, view=8, feature_channels=10)


def test_network_learns_to_identify_latents_of_an_invertible_map_and_not_of_a_collapsed_one():
    torch.manual_seed(0)
    mixing = torch.randn(8, 3 * 16 * 16) / 3
    accuracies = {}
    for name, keep in (("invertible", 1.0), ("collapsed", 0.0)):
        P = PairingNetwork(8, 16, 3, embed_dim=16)
        optimizer = torch.optim.Adam(P.parameters(), lr=2e-3, betas=(0.0, 0.99))
        for _ in range(60):
            z = torch.randn(32, 8)
            img = (z * keep @ mixing).view(-1, 3, 16, 16)
            loss, accuracy = infonce(*P(img, z), 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracies[name] = accuracy.item()
    assert accuracies["invertible"] > 0.8 > 0.2 > accuracies["collapsed"]


def test_adaptive_weight_moves_towards_the_target_within_its_bounds():
    weight = torch.tensor(0.05)
    assert adapt_weight(weight, 0.05, torch.tensor(0.5), 0.9, nimg=1000) > weight
    assert adapt_weight(weight, 0.05, torch.tensor(0.99), 0.9, nimg=1000) < weight
    assert adapt_weight(weight, 0.05, torch.tensor(1.0), 0.9, nimg=10**9) == 0
    assert adapt_weight(weight, 0.05, torch.tensor(0.0), 0.9, nimg=10**9).item() == pytest.approx(0.5)
    assert adapt_weight(weight, 0.05, torch.tensor(0.0), 0.9, nimg=100_000).item() == pytest.approx(0.1)


def _joint_gradient(rank, world_size, file, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    P = PairingNetwork(6, 8, 3, embed_dim=8)
    img = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).chunk(world_size)[rank].requires_grad_()
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(2)).chunk(world_size)[rank]
    gather = LatentGather(P.embed_latent(z))
    e_x = P.embed_image(img)
    e_z, targets = gather.finish()
    loss, _ = infonce(e_x, e_z, 0.1, targets)
    loss.backward()
    for p in P.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world_size
    mean_loss = loss.detach().clone()
    dist.all_reduce(mean_loss)
    results[rank] = (mean_loss / world_size, [p.grad for p in P.parameters()], img.grad / world_size)
    leave()  # together: a rank that goes while another still talks to it may abort


def test_two_ranks_with_gathering_equal_one_rank_with_the_joined_batch(tmp_path):
    with mp.Manager() as manager:
        runs = {}
        for world_size in (1, 2):
            results = manager.dict()
            mp.spawn(_joint_gradient, args=(world_size, tmp_path / f"rendezvous{world_size}", results), nprocs=world_size)
            runs[world_size] = dict(results)
    one, two = runs[1][0], runs[2]
    torch.testing.assert_close(two[0][0], one[0])
    for ours, expected in zip(two[0][1], one[1]):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat([two[0][2], two[1][2]]), one[2], rtol=1e-4, atol=1e-7)


class _Network:
    """torch.distributed of two ranks that hold the same, with a note of when a message leaves and when it is waited for."""

    def __init__(self, notes):
        self.notes = notes

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def get_rank(self):
        return 1

    def all_gather(self, parts, own, async_op):
        assert async_op
        for part in parts:
            part.copy_(own)
        self.notes.append("latents leave")
        return self.message("latents are here")

    def all_reduce(self, value, async_op):
        assert async_op
        value.mul_(2)
        self.notes.append("gradients leave")
        return self.message("gradients are here")

    def message(self, note):
        return type("Work", (), {"wait": lambda _: self.notes.append(note)})()


def test_messages_travel_while_images_are_embedded(monkeypatch):
    notes = []
    monkeypatch.setattr(negatives, "dist", _Network(notes))
    P = PairingNetwork(6, 8, 3, embed_dim=8)
    P.image_tower.register_forward_hook(lambda *_: notes.append("images embedded"))
    P.image_tower[0].weight.register_hook(lambda _: notes.append("image gradients"))
    P.latent_tower[-1].weight.register_hook(lambda _: notes.append("latent gradients"))
    gather = LatentGather(P.embed_latent(torch.randn(3, 6)))
    e_x = P.embed_image(torch.randn(3, 3, 8, 8))
    e_z, targets = gather.finish()
    assert e_z.shape == (6, 8) and targets.tolist() == [3, 4, 5]
    infonce(e_x, e_z, 0.1, targets)[0].backward()
    forward = ["latents leave", "images embedded", "latents are here"]
    assert notes == forward + ["gradients leave", "image gradients", "gradients are here", "latent gradients"]


@pytest.mark.parametrize("distance", [0.2, 0.5, 1.0])
def test_extra_latents_are_as_likely_as_others_and_as_near_as_asked(distance):
    torch.manual_seed(0)
    z = torch.randn(50, 400)
    drawn = extra_latents(z, 120, distance)
    assert drawn.shape == (120, 400) and drawn.mean().abs() < 0.02 and abs(drawn.std() - 1) < 0.02
    around = z[torch.arange(120) % 50]
    correlation = (drawn * around).mean()
    assert correlation.item() == pytest.approx(math.sqrt(1 - distance**2), abs=0.02)
    assert not torch.equal(drawn, extra_latents(z, 120, distance))


def test_the_warm_up_ends_at_the_weight_and_goes_on_from_a_state():
    def weights(batches, state=None):
        weight = torch.tensor(0.2)
        warm_up = PairingWarmUp(weight, kimg=1)
        if state is not None:
            warm_up.load_state_dict(state)
        seen = [weight.item()]
        for done in batches:
            warm_up.update(done, 100, lambda total: total)
            seen.append(weight.item())
        return seen, warm_up.state_dict()

    seen, _ = weights(range(1, 14))
    assert seen == pytest.approx([0.02 * min(done, 10) for done in range(14)])
    _, state = weights(range(1, 6))
    assert weights(range(6, 14), state)[0] == seen[5:]
