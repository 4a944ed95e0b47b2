"""Collision equals its definition, depends on neither order, rotation nor block size, and tells a many-to-one map from an isometry."""

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics.collision import collision, collision_within, near_share, typical_radius


def brute_force(latents, features, real, k):
    """The definition on whole matrices of differences."""

    def distances(points):
        return np.sqrt(((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2))

    pairs = np.triu_indices(len(latents), 1)
    latent_pairs, feature_pairs = distances(latents)[pairs], distances(features)[pairs]
    radii = np.sort(distances(real), axis=1)[:, k]  # column 0 is the point itself
    far = latent_pairs > np.sort(latent_pairs)[(len(latent_pairs) - 1) // 2]
    return float((feature_pairs[far] < np.sort(radii)[(len(radii) - 1) // 2]).mean())


def example(n=300, m=200, dim=6, scale=0.15, seed=0):
    """Latents, features that collide in part, and real features, float32."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 3)).astype(np.float32)
    x = scale * np.sin(3 * z @ rng.standard_normal((3, dim))).astype(np.float32)
    return z, x.astype(np.float32), (0.3 * rng.standard_normal((m, dim))).astype(np.float32)


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "m"), [(300, 200), (301, 151), (3, 4), (4, 5), (18, 60)])
def test_equals_the_definition(n, m, k):
    z, x, real = example(n, m)
    assert collision(z, x, real, k) == pytest.approx(brute_force(z, x, real, k), abs=1e-12)


def test_the_example_is_in_between():
    assert 0.1 < collision(*example()) < 0.9


def test_median_is_exact_at_ties():
    # Integer latents: few distances, so the median is shared by many pairs, none of which is far.
    rng = np.random.default_rng(3)
    z, (_, x, real) = rng.integers(0, 3, (120, 2)).astype(np.float32), example(120)
    assert collision(z, x, real) == pytest.approx(brute_force(z, x, real, 3), abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64, 299, 10_000])
def test_blocks_equal_the_whole(block):
    z, x, real = example() if block > 1 else example(40, 30)
    assert collision(z, x, real, block=block) == collision(z, x, real)


def test_order_does_not_matter():
    z, x, real = example()
    order = np.random.default_rng(1).permutation(len(z))
    assert collision(z[order], x[order], real[::-1].copy()) == collision(z, x, real)
    assert collision(z[order], x, real) != collision(z, x, real)


def test_rotation_and_scale_do_not_matter():
    z, x, real = (a.astype(np.float64) for a in example())
    expected = collision(z, x, real)
    turn = rotation(6)
    assert collision(5 * z @ rotation(3) + 2, 0.1 * x @ turn + 7, 0.1 * real @ turn + 7) == pytest.approx(expected, abs=1e-4)


def test_one_image_for_all_latents_collides_always():
    z, x, real = example()
    assert collision(z, np.zeros_like(x), real) == 1


@pytest.mark.parametrize(("m", "k"), [(400, 3), (400, 12), (1600, 12)])
def test_images_unrelated_to_latents_collide_by_chance(m, k):
    rng = np.random.default_rng(0)
    z, x, real = rng.standard_normal((1500, 2)), rng.random((1500, 2)), rng.random((m, 2))
    assert collision(z, x, real, k) == pytest.approx(k / m, rel=0.2)


def test_where_data_crowd_images_unrelated_to_latents_collide_as_often_as_the_data():
    rng = np.random.default_rng(0)

    def draw(count):
        return rng.standard_normal((count, 2)) * np.where(rng.random((count, 1)) < 0.3, 0.1, 1)

    real = draw(400)
    among_real = near_share(real, typical_radius(real))
    assert among_real > 4 * 3 / 400  # not the share of the data in the median ball
    assert collision(rng.standard_normal((1500, 2)), draw(1500), real) == pytest.approx(among_real, rel=0.3)


@pytest.mark.parametrize("block", [None, 7])
def test_the_share_of_near_pairs_is_counted_over_all_pairs(block):
    points = np.array([[0.0], [0.5], [2.0], [3.0]], dtype=np.float32)
    assert near_share(points, 1.0, block=block) == 1 / 6  # nearer, not as near
    _, x, _ = example()
    distances = np.sqrt(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2))[np.triu_indices(len(x), 1)]
    assert near_share(x, 0.2, block=block) == pytest.approx((distances < 0.2).mean(), abs=1e-12)
    with pytest.raises(UserError, match="1 real points make no pair"):
        near_share(points[:1], 1.0)


def test_isometry_collides_never():
    z = np.random.default_rng(0).standard_normal((2000, 8))
    real = np.random.default_rng(1).standard_normal((1000, 8)) @ rotation(8)
    assert collision(z, z @ rotation(8), real) == 0


def test_folding_two_halves_together_collides_as_often_as_counted():
    # Two sides of four clusters each. The far pairs are those across; when the sides coincide, a quarter of them share a cluster.
    rng = np.random.default_rng(0)
    clusters = np.tile(np.repeat(10 * np.eye(4), 25, axis=0), (2, 1))
    latents = np.concatenate([np.repeat([[-10.0], [10.0]], 100, axis=0), clusters + 0.1 * rng.standard_normal((200, 4))], axis=1)
    folded = latents * [0, 1, 1, 1, 1]
    real = latents + rng.standard_normal((200, 5))
    assert collision(latents, latents, real) == 0
    assert collision(latents, folded, real) == pytest.approx(1 / 4, abs=0.01)


def test_tensors_and_arrays_agree_and_half_precision_is_widened():
    z, x, real = example()
    assert collision(*(torch.from_numpy(a) for a in (z, x, real))) == collision(z, x, real)
    halves = [torch.from_numpy(a).half() for a in (z, x, real)]
    assert collision(*halves) == collision(*(a.float() for a in halves))


def test_radius_is_the_median_and_grows_with_k():
    real = np.arange(9.0)[:, None] ** 2  # neighbours at odd distances: 1, 1, 3, 5, ... 15
    assert typical_radius(real, 1) == 7
    assert typical_radius(real, 2) > typical_radius(real, 1)


def test_within_no_radius_nothing_collides_and_within_any_all():
    z, x, _ = example()
    assert collision_within(z, x, 0.0) == 0
    assert collision_within(z, x, 1e9) == 1


def bad_inputs():
    z, x, real = example(20, 20)
    nan = x.copy()
    nan[3, 1] = np.nan
    return [
        ((z[:-1], x, real), "19 latents and 20 fake"),
        ((z, nan, real), "NaN"),
        ((z / 0, x, real), "latent features hold NaN"),
        ((z, x, real[:3]), "3 real points are too few"),
        ((z, x[:, :4], real), "4 dimensions"),
        ((z[:2], x[:2], real), "at least 3"),
        ((np.ones_like(z), x, real), "latents that differ"),
        ((z, x, np.zeros_like(real)), "copies"),
        ((z[0], x, real), "matrix"),
    ]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", range(9))
def test_bad_input_is_one_sentence(case):
    with np.errstate(divide="ignore"):
        arguments, words = bad_inputs()[case]
    with pytest.raises(UserError, match=words):
        collision(*arguments)


def test_no_neighbours_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        collision(*example(), nearest_k=0)
