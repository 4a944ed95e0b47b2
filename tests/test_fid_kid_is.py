"""FID, KID and IS: equal to the golden numbers, to closed forms, to loops over their definitions, and the same whatever must not matter."""

import json
import pathlib

import numpy as np
import pytest
import scipy.linalg
import torch

from dnnlib import UserError
from metrics import frechet_distance, frechet_inception_distance, inception_score, kernel_distance
from metrics.frechet_inception_distance import feature_moments, frechet_distance_of_features


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).parent / "data" / "metrics.npz") as data:
        return {name: data[name] for name in ("real", "fake", "probs")} | {"expected": json.loads(str(data["expected"]))}


def moments(features):
    features = features.astype(np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False, bias=True)


def correlated(rows, dim, seed, decay=2.0, shift=0.0):
    """Rows of a Gaussian whose standard deviations fall off like those of a detector's features, float64."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.standard_normal((dim, dim)))[0] * np.logspace(0, -decay, dim)
    return rng.standard_normal((rows, dim)) @ mixing.T + shift


def frechet_by_nuclear_norm(real, gen):
    """The distance of two sets of rows from the singular values of their centred products: exact at any rank, no covariance formed."""
    a, b = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows)) for rows in (real, gen))
    shift = real.mean(axis=0) - gen.mean(axis=0)
    return shift @ shift + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()


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


@pytest.mark.parametrize("dim", [8, 96, 200])
def test_frechet_distance_equals_the_one_with_a_root_of_the_product(dim):
    (mu_a, a), (mu_b, b) = moments(correlated(3 * dim, dim, seed=1)), moments(correlated(4 * dim, dim, seed=2, shift=0.01))
    root = scipy.linalg.sqrtm(a @ b)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    assert frechet_distance(mu_a, a, mu_b, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rows", [(30, 30), (30, 90), (90, 30), (30, 400), (400, 30), (2, 400), (61, 60)])
def test_frechet_distance_of_singular_covariances(rows):
    real, gen = correlated(rows[0], 60, seed=3), correlated(rows[1], 60, seed=4)
    expected = frechet_by_nuclear_norm(real, gen)
    assert frechet_distance(*moments(real), *moments(gen)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_covariances_with_disjoint_ranges():
    a, b = np.diag([3.0, 2, 1, 0, 0, 0, 0]), np.diag([0, 0, 0, 5.0, 4, 0, 0])
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((7, 7)))[0]
    zero = np.zeros(7)
    assert frechet_distance(zero, rotation @ a @ rotation.T, zero, rotation @ b @ rotation.T) == pytest.approx(15, rel=1e-7)


@pytest.mark.parametrize("decay", [6, 9, 12, 15])
def test_frechet_distance_of_nearly_singular_covariances(decay):
    # Variances over many orders of magnitude, and shared eigenvectors, so that the distance is known.
    rng = np.random.default_rng(decay)
    rotation = np.linalg.qr(rng.standard_normal((80, 80)))[0]
    a = np.logspace(0, -decay, 80)
    b = a * rng.uniform(0.5, 2, 80)
    sigmas = [(matrix + matrix.T) / 2 for matrix in (rotation * a @ rotation.T, rotation * b @ rotation.T)]
    found = frechet_distance(np.zeros(80), sigmas[0], np.zeros(80), sigmas[1])
    assert found == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-6)


def test_frechet_distance_by_singular_values_agrees_with_that_by_eigenvalues(monkeypatch):
    a, b = moments(correlated(300, 50, seed=6)), moments(correlated(300, 50, seed=7))
    quick = frechet_distance(*a, *b)
    monkeypatch.setattr(frechet_inception_distance, "TOLERANCE", -1)
    assert frechet_distance(*a, *b) == pytest.approx(quick, rel=1e-9)


def test_frechet_distance_under_rotation_and_scale():
    a, b = correlated(300, 40, seed=8), correlated(200, 40, seed=9, shift=0.1)
    rotation = np.linalg.qr(np.random.default_rng(10).standard_normal((40, 40)))[0]
    expected = frechet_distance(*moments(a), *moments(b))
    assert frechet_distance(*moments(a @ rotation), *moments(b @ rotation)) == pytest.approx(expected, rel=1e-9)
    for scale in (1e-3, 1e3):
        assert frechet_distance(*moments(scale * a), *moments(scale * b)) == pytest.approx(scale**2 * expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1), (torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_frechet_distance_takes_moments_of_any_precision(dtype, tolerance):
    values = [*moments(correlated(300, 12, seed=11)), *moments(2 * correlated(300, 12, seed=12, shift=1))]
    found = frechet_distance(*(torch.from_numpy(value).to(dtype) for value in values))
    assert found == pytest.approx(frechet_distance(*values), rel=tolerance)


@pytest.mark.parametrize("rows", [(500, 300), (20, 30), (20, 300), (40, 40)])
def test_frechet_distance_of_features_is_that_of_their_moments(rows):
    real, gen = correlated(rows[0], 40, seed=13), correlated(rows[1], 40, seed=14, shift=0.2)
    if min(rows) <= 40:
        with pytest.warns(UserWarning, match="rows of 40 dimensions: with so few it is mostly bias"):
            found = frechet_distance_of_features(real, torch.from_numpy(gen))
    else:
        found = frechet_distance_of_features(real, torch.from_numpy(gen))
    assert found == pytest.approx(frechet_by_nuclear_norm(real, gen), rel=1e-7)
    assert found == pytest.approx(frechet_distance(*moments(real), *moments(gen)), rel=1e-6)


def test_order_of_rows_and_size_of_chunks_do_not_matter_to_moments(monkeypatch):
    features = correlated(101, 7, seed=15)
    mean, covariance = feature_moments(features)
    assert mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False, bias=True), rtol=0, atol=1e-15)
    monkeypatch.setattr(frechet_inception_distance, "ROWS_AT_ONCE", 10)
    for rows in (features, features[np.random.default_rng(16).permutation(101)]):
        torch.testing.assert_close(feature_moments(rows), (mean, covariance), rtol=1e-12, atol=1e-15)


def test_moments_keep_their_precision_beside_a_large_mean():
    features = (correlated(500, 10, seed=17) * 1024).round() / 1024  # so that adding a mean is exact in float32
    shifted = torch.from_numpy(features).to(torch.float32) + 1024
    torch.testing.assert_close(feature_moments(shifted)[1], feature_moments(features)[1], rtol=1e-10, atol=1e-14)


def test_frechet_distance_shrinks_to_zero_as_one_over_the_number_of_rows():
    rng = np.random.default_rng(18)
    bias = [np.mean([frechet_distance_of_features(*rng.standard_normal((2, rows, 8))) for _ in range(10)]) for rows in (200, 800)]
    assert bias[0] > 0 and bias[0] / bias[1] == pytest.approx(4, rel=0.25)


def test_frechet_distance_refuses_what_does_not_fit():
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(UserError, match="shapes"):
        frechet_distance(zero, eye, np.zeros(4), np.eye(4))
    with pytest.raises(UserError, match="sigma_gen holds NaN"):
        frechet_distance(zero, eye, zero, eye * np.nan)
    with pytest.raises(UserError, match="sigma_gen is not symmetric"):
        frechet_distance(zero, eye, zero, np.triu(np.ones((3, 3))))
    with pytest.raises(UserError, match="eigenvalue -1"):
        frechet_distance(zero, np.diag([2.0, 1, -1]), zero, eye)
    with pytest.raises(UserError, match="1 row of features"):
        frechet_distance_of_features(np.ones((1, 3)), np.ones((9, 3)))
    with pytest.raises(UserError, match="3 dimensions and generated features 4"):
        frechet_distance_of_features(np.ones((9, 3)), np.ones((9, 4)))
    with pytest.raises(UserError, match="NaN or infinity in 1 of 9 rows"):
        frechet_distance_of_features(np.ones((9, 3)), np.where(np.arange(9)[:, None] == 4, np.nan, np.ones((9, 3))))


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


def test_kernel_distance_of_subsets_is_the_mean_over_its_draws():
    real, gen = correlated(50, 6, seed=19), correlated(40, 6, seed=20, shift=0.3)
    rng = np.random.default_rng(7)
    expected = []
    for _ in range(5):
        x, y = gen[rng.choice(40, 12, replace=False)], real[rng.choice(50, 12, replace=False)]
        xx, yy, xy = ((a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        expected.append((xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (12 * 11) - 2 * xy.mean())
    assert kernel_distance(real, gen, num_subsets=5, max_subset_size=12, seed=7) == pytest.approx(np.mean(expected), rel=1e-10)


def test_kernel_distance_is_symmetric_and_sees_neither_order_nor_rotation():
    # One subset of all rows, so that the draw only orders them.
    real, gen = correlated(60, 9, seed=21), correlated(60, 9, seed=22, shift=0.2)
    rng = np.random.default_rng(23)
    rotation = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    expected = kernel_distance(real, gen, num_subsets=1)
    assert kernel_distance(gen, real, num_subsets=1) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(rng.permutation(real), rng.permutation(gen), num_subsets=1) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(real @ rotation, gen @ rotation, num_subsets=1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_kernel_distance_is_computed_in_float64_whatever_it_is_given(kind):
    real, gen = (correlated(80, 16, seed=seed).astype(np.float16) for seed in (24, 25))
    expected = kernel_distance(real.astype(np.float64), gen.astype(np.float64), num_subsets=3, max_subset_size=30)
    for dtype in (np.float16, np.float32):
        assert kernel_distance(kind(real.astype(dtype)), kind(gen.astype(dtype)), 3, 30, device="cpu") == expected


@pytest.mark.gpu
def test_kernel_distance_is_the_same_on_a_gpu():
    real, gen = (torch.from_numpy(correlated(80, 16, seed=seed)).to(torch.float32) for seed in (24, 25))
    expected = kernel_distance(real, gen, 3, 30)
    assert kernel_distance(real, gen, 3, 30, device="cuda") == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(real.cuda(), gen, 3, 30) == expected
    assert kernel_distance(real.cuda(), gen.cuda(), 3, 30) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(real.cuda(), gen) == pytest.approx(frechet_distance_of_features(real, gen), rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_negative_about_as_often_as_not():
    rng = np.random.default_rng(26)
    signs = [kernel_distance(*rng.standard_normal((2, 40, 8)), num_subsets=1) < 0 for _ in range(60)]
    assert 15 < sum(signs) < 55


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


def test_inception_score_equals_a_loop_over_rows_and_classes():
    probs = np.random.default_rng(27).dirichlet(np.full(6, 0.3), size=47)
    scores = []
    for split in range(4):
        part = probs[split * 47 // 4 : (split + 1) * 47 // 4]
        marginal = part.mean(axis=0)
        divergences = [sum(p * np.log(p / q) for p, q in zip(row, marginal) if p > 0) for row in part]
        scores.append(np.exp(np.mean(divergences)))
    assert inception_score(probs, num_splits=4) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


def test_inception_score_sees_neither_the_order_within_a_split_nor_that_of_the_classes():
    rng = np.random.default_rng(28)
    probs = rng.dirichlet(np.ones(5), size=40)
    expected = pytest.approx(inception_score(probs, num_splits=2), rel=1e-12)
    assert inception_score(np.concatenate([rng.permutation(probs[:20]), rng.permutation(probs[20:])]), num_splits=2) == expected
    assert inception_score(probs[:, rng.permutation(5)], num_splits=2) == expected
    assert inception_score(torch.from_numpy(probs), num_splits=2) == expected
    assert inception_score(probs.astype(np.float32), num_splits=2) == pytest.approx(inception_score(probs, num_splits=2), rel=1e-6)


def test_inception_score_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="no probabilities"):
        inception_score(np.full((20, 4), 0.5))
    with pytest.raises(UserError, match="no probabilities"):
        inception_score(np.tile([1.5, -0.5], (20, 1)))
    with pytest.raises(UserError, match="9 rows cannot be cut into 10 splits"):
        inception_score(np.full((9, 4), 0.25))
