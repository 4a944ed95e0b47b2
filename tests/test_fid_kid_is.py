"""FID, KID and IS: equal to the golden numbers, to closed forms, and to loops over their definitions."""

import json
import pathlib

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics import frechet_distance, inception_score, kernel_distance


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).parent / "data" / "metrics.npz") as data:
        return {name: data[name] for name in ("real", "fake", "probs")} | {"expected": json.loads(str(data["expected"]))}


def moments(features):
    features = features.astype(np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False, bias=True)


def test_golden_frechet_distance(golden):
    found = frechet_distance(*moments(golden["real"]), *moments(golden["fake"]))
    assert found == pytest.approx(golden["expected"]["fid"], rel=1e-6)


def test_golden_kernel_distance(golden):
    # One subset of all rows, so that the draw only orders them.
    real, fake = golden["real"][:400], golden["fake"][:400]
    assert kernel_distance(real, fake, num_subsets=1) == pytest.approx(golden["expected"]["kid_one_subset_of_first_min(n,m)"], rel=1e-6)


def test_golden_inception_score(golden):
    mean, deviation = inception_score(golden["probs"])
    assert mean == pytest.approx(golden["expected"]["is_mean"], rel=1e-6)
    assert deviation == pytest.approx(golden["expected"]["is_std"], rel=1e-6)


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    a, b = rng.uniform(0.1, 3, (2, 12))
    mu_a, mu_b = rng.standard_normal((2, 12))
    found = frechet_distance(mu_a, rotation @ np.diag(a) @ rotation.T, mu_b, rotation @ np.diag(b) @ rotation.T)
    assert found == pytest.approx(((mu_a - mu_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


def test_frechet_distance_is_symmetric_and_takes_tensors():
    rng = np.random.default_rng(1)
    a, b = moments(rng.standard_normal((50, 9))), moments(rng.standard_normal((60, 9)) * 2 + 1)
    there = frechet_distance(*a, *b)
    assert frechet_distance(*b, *a) == pytest.approx(there, rel=1e-10)
    assert frechet_distance(*map(torch.from_numpy, (*a, *b))) == there


@pytest.mark.parametrize("rows", [1, 2, 20, 500])
def test_frechet_distance_to_itself_is_zero_even_with_fewer_rows_than_dimensions(rows):
    features = 10 * np.random.default_rng(2).standard_normal((rows, 200))
    mu, sigma = features.mean(axis=0), np.cov(features, rowvar=False, bias=True) if rows > 1 else np.zeros((200, 200))
    assert frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-8 * max(np.trace(sigma), 1))


def test_frechet_distance_refuses_what_does_not_fit():
    eye = np.eye(3)
    with pytest.raises(UserError, match="shapes"):
        frechet_distance(np.zeros(3), eye, np.zeros(4), np.eye(4))
    with pytest.raises(UserError, match="sigma_gen holds NaN"):
        frechet_distance(np.zeros(3), eye, np.zeros(3), eye * np.nan)


def test_kernel_distance_equals_a_loop_over_pairs():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((7, 5)), rng.standard_normal((7, 5)) + 0.5

    def kernel(a, b):
        return (a @ b / 5 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 42
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    assert kernel_distance(x, y, num_subsets=3) == pytest.approx(within - 2 * across, rel=1e-10)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(4)
    same = [kernel_distance(*rng.standard_normal((2, 100, 8)), num_subsets=4, max_subset_size=50) for _ in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert kernel_distance(rng.standard_normal((100, 8)), rng.standard_normal((100, 8)) + 1) > 1


def test_kernel_distance_draws_from_its_own_seed():
    rng = np.random.default_rng(5)
    real, gen = rng.standard_normal((2, 60, 4))
    np.random.seed(0)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = kernel_distance(real, gen, num_subsets=5, max_subset_size=10, seed=1)
    assert kernel_distance(real, gen, num_subsets=5, max_subset_size=10, seed=1) == first
    assert kernel_distance(real, gen, num_subsets=5, max_subset_size=10, seed=2) != first
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def test_kernel_distance_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="3 dimensions"):
        kernel_distance(np.ones((9, 3)), np.ones((9, 4)))
    with pytest.raises(UserError, match="two rows"):
        kernel_distance(np.ones((1, 3)), np.ones((9, 3)))
    with pytest.raises(UserError, match="generated features hold NaN"):
        kernel_distance(np.ones((9, 3)), np.full((9, 3), np.nan))


def test_inception_score_between_its_bounds():
    assert inception_score(np.full((50, 7), 1 / 7)) == pytest.approx((1, 0))
    # Sure of every class and every class equally often in each split: the number of classes.
    assert inception_score(np.tile(np.eye(5), (10, 1)), num_splits=10) == pytest.approx((5, 0))


def test_inception_score_splits_are_contiguous():
    probs = np.repeat(np.eye(4), 5, axis=0)
    assert inception_score(probs, num_splits=4) == pytest.approx((1, 0))
    mean, deviation = inception_score(np.concatenate([probs, np.tile(np.eye(4), (5, 1))]), num_splits=2)
    assert (mean, deviation) == pytest.approx((4, 0))
    mean, deviation = inception_score(np.concatenate([np.tile(np.eye(1, 4), (4, 1)), np.eye(4)]), num_splits=2)
    assert (mean, deviation) == pytest.approx((2.5, 1.5))


def test_inception_score_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="no probabilities"):
        inception_score(np.full((20, 4), 0.5))
    with pytest.raises(UserError, match="no probabilities"):
        inception_score(np.tile([1.5, -0.5], (20, 1)))
    with pytest.raises(UserError, match="9 rows cannot be cut into 10 splits"):
        inception_score(np.full((9, 4), 0.25))
