"""FID, KID and inception score equal those of the public torch-fidelity package, from the same features. Skipped where it is not installed."""

import numpy as np
import pytest
import torch

from metrics import frechet_distance_of_features, inception_score, kernel_distance

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed: pip install torch-fidelity")


def feature_sets(dim, rows=(500, 600)):
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.2, 1.5, dim)
    return [rng.standard_normal((count, dim)) * spread + shift for count, shift in zip(rows, (0.0, 0.3))]


@pytest.mark.parametrize("dim", [4, 64, 300])
def test_fid_is_theirs(dim):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sets = feature_sets(dim)
    (theirs,) = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(rows)) for rows in sets), verbose=False).values()
    # They divide covariances by N - 1 and we, as StyleGAN2-ADA, by N: scaled about their mean, our features have their covariance.
    scaled = [rows.mean(0) + (rows - rows.mean(0)) * (len(rows) / (len(rows) - 1)) ** 0.5 for rows in sets]
    assert frechet_distance_of_features(*scaled) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("dim", [4, 64, 300])
def test_kid_is_theirs(dim):
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, gen = feature_sets(dim, rows=(500, 500))
    # Of the whole sets, so that which rows are drawn does not matter.
    options = {"kid_subsets": 1, "kid_subset_size": 500, "rng_seed": 0, "verbose": False}
    kernel = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    theirs = kid_features_to_metric(torch.from_numpy(real), torch.from_numpy(gen), **options, **kernel)
    ours = kernel_distance(real, gen, num_subsets=1, max_subset_size=500)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_inception_score_is_theirs():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(2 * np.random.default_rng(1).standard_normal((1000, 20)))
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    mean, deviation = inception_score(logits.softmax(dim=1), num_splits=10)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)
