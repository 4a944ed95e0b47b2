"""Gap and spacing equal their definition, are 1 for samples of the data, and tell images left out from images that crowd."""

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics import compute_prdc, nearest_distances

DIM = 6


def draw(count, seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((count, DIM))).astype(np.float32)


def brute_force(real, fake):
    def distances(a, b):
        return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=2))

    def among(points):
        found = distances(points, points)
        np.fill_diagonal(found, np.inf)
        return found.min(axis=1).mean()

    return {"gap": distances(real, fake).min(axis=1).mean() / among(real), "spacing": among(fake) / among(real)}


@pytest.mark.parametrize(("n", "m"), [(2, 2), (150, 90), (300, 301)])
@pytest.mark.parametrize("block", [None, 7, 64])
def test_equal_the_definition_whatever_the_blocks(n, m, block):
    real, fake = draw(n, 0), draw(m, 1, 0.7)
    assert nearest_distances(real, fake, block=block) == pytest.approx(brute_force(real, fake), rel=1e-6)


def test_samples_of_the_data_have_both_at_1_and_copies_no_gap():
    real = draw(2000, 0)
    assert nearest_distances(real, draw(2000, 1)) == pytest.approx({"gap": 1.0, "spacing": 1.0}, abs=0.02)
    assert nearest_distances(real, real.copy()) == {"gap": 0.0, "spacing": 1.0}


def test_a_mode_that_is_missing_opens_the_gap_and_crowds_the_rest():
    real = np.concatenate([draw(500, 0), draw(500, 1) + 30])
    whole, half = (np.concatenate([draw(500, 2), draw(500, 3) + shift]) for shift in (30, 0))
    full, missing = nearest_distances(real, whole), nearest_distances(real, half)
    assert missing["gap"] > 3 * full["gap"] and missing["spacing"] < full["spacing"] < 1.05


def test_images_that_scatter_raise_recall_and_not_the_nearness_to_the_data():
    """Recall alone takes a wide cloud for a varied one; coverage, gap and spacing do not."""
    real = draw(1000, 0)
    near, wide = draw(1000, 1), draw(1000, 1, 1.6)
    assert compute_prdc(real, wide)["recall"] > compute_prdc(real, near)["recall"]
    assert compute_prdc(real, wide)["coverage"] < compute_prdc(real, near)["coverage"]
    narrow, spread = nearest_distances(real, near), nearest_distances(real, wide)
    assert spread["gap"] > narrow["gap"] and spread["spacing"] == pytest.approx(1.6 * narrow["spacing"], rel=1e-5)


def test_neither_order_rotation_shift_nor_unit_matter():
    real, fake = draw(200, 0), draw(200, 1, 0.8)
    expected = nearest_distances(real, fake)
    order = np.random.default_rng(2).permutation(200)
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)
    assert nearest_distances(real[order], fake[order[::-1]]) == pytest.approx(expected, rel=1e-12)
    assert nearest_distances(1000 * real @ turn + 5, 1000 * fake @ turn + 5) == pytest.approx(expected, rel=1e-4)
    halves = nearest_distances(torch.from_numpy(real).half(), torch.from_numpy(fake).half())
    assert halves == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (draw(1, 0), draw(5, 1), "1 real points are too few for 1 nearest neighbours; at least 2 are needed"),
        (draw(5, 0), draw(1, 1), "1 fake points are too few"),
        (draw(5, 0), draw(5, 1)[:, :3], "real features have 6 dimensions and fake features 3"),
        (np.repeat(draw(3, 0), 2, axis=0), draw(5, 1), "each of the 6 real points has a copy of itself"),
        (draw(5, 0) * np.nan, draw(5, 1), "finite"),
    ],
)
def test_bad_input_is_told(real, fake, message):
    with pytest.raises(UserError, match=message):
        nearest_distances(real, fake)
