"""Precision, recall, density and coverage: equal to the golden numbers and to the public prdc package, independent of order and block size."""

import json
import pathlib
import warnings

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics import MetricWarning, compute_prdc, knn
from metrics.prdc import coverage_ceiling, prdc_of_balls

# Many examples here are small on purpose; what is warned of has its own tests.
pytestmark = pytest.mark.filterwarnings("ignore::metrics.points.MetricWarning")

FIGURES = ("precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def golden():
    with np.load(pathlib.Path(__file__).parent / "data" / "metrics.npz") as data:
        return {"real": data["real"], "fake": data["fake"], "expected": json.loads(str(data["expected"]))}


def gaussians(n=300, m=260, dim=8, seed=0, scale=0.8, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)).astype(dtype), (scale * rng.standard_normal((m, dim))).astype(dtype)


def by_definition(real, fake, k, closed=False):
    """The figures from whole matrices of differences, rounded as metrics.knn says."""
    inside = np.less_equal if closed else np.less

    def distances(a, b):
        squared = ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)
        return np.sqrt(squared.astype(np.promote_types(a.dtype, b.dtype)))

    def radii(points):
        return np.array([np.sort(np.delete(row, index))[k - 1] for index, row in enumerate(distances(points, points))])

    cross = distances(real, fake)
    in_real, in_fake = inside(cross, radii(real)[:, None]), inside(cross, radii(fake)[None])
    return dict(zip(FIGURES, (in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum() / k / len(fake), in_real.any(1).mean())))


@pytest.mark.parametrize("k", [3, 5])
def test_golden_counts_are_exact(golden, k):
    assert compute_prdc(golden["real"], golden["fake"], k) == {name: golden["expected"][f"prdc_k{k}_{name}"] for name in FIGURES}


def test_golden_precision_and_recall_with_closed_balls(golden):
    found = compute_prdc(golden["real"], golden["fake"], 3, closed=True)
    for name in ("precision", "recall"):
        assert np.float32(found[name]) == np.float32(golden["expected"][f"pr_k3_{name}"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m", "dim", "k"), [(700, 650, 2, 3), (600, 800, 16, 5), (500, 500, 64, 1), (40, 10, 300, 8)])
def test_equals_the_public_package(n, m, dim, k, dtype):
    prdc = pytest.importorskip("prdc")
    real, fake = gaussians(n, m, dim, seed=n, dtype=dtype)
    assert compute_prdc(real, fake, k) == prdc.compute_prdc(real, fake, k)


def awkward(kind, n, m, dim, dtype):
    """Two sets that are hard to compare in few bits."""
    rng = np.random.default_rng(n)
    real, fake = rng.standard_normal((n, dim)), rng.standard_normal((m, dim))
    if kind == "tied":
        real, fake = rng.integers(0, 4, (n, dim)), rng.integers(0, 4, (m, dim))
    elif kind == "copies":
        real = real[rng.integers(0, n // 3, n)]
        fake[: m // 2] = real[: m // 2]
    elif kind == "clusters":
        centres = rng.standard_normal((5, dim))
        real, fake = (centres[rng.integers(0, 5, len(points))] + 1e-3 * points for points in (real, fake))
    elif kind == "large mean":
        real, fake = real + 1000, fake + 1000
    elif kind == "tiny":
        real, fake = real * 1e-3, fake * 1e-3
    return real.astype(dtype), fake.astype(dtype)


KINDS = ("normal", "tied", "copies", "clusters", "large mean", "tiny")
SHAPES = [(90, 80, 2, 3), (80, 100, 7, 1), (100, 70, 90, 5)]


@pytest.mark.parametrize("screening", [None, "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind, dtype, screening):
    for n, m, dim, k in SHAPES:
        real, fake = awkward(kind, n, m, dim, dtype)
        wide = [points.astype(np.promote_types(dtype, np.float32)) for points in (real, fake)]
        for closed in (False, True):
            expected = by_definition(*wide, k, closed)
            assert compute_prdc(real, fake, k, closed=closed, screening=screening) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copies"])
def test_equals_the_public_package_on_awkward_sets(kind, dtype):
    # Its distances between copies are what rounding leaves, not 0.
    prdc = pytest.importorskip("prdc")
    for n, m, dim, k in SHAPES:
        real, fake = awkward(kind, n, m, dim, dtype)
        for screening in ("bfloat16", "float32"):
            assert compute_prdc(real, fake, k, screening=screening) == prdc.compute_prdc(real, fake, k)


def test_a_large_mean_in_float32_counts_as_float64_does():
    real, fake = awkward("large mean", 300, 300, 48, np.float32)
    expected = compute_prdc(real.astype(np.float64), fake.astype(np.float64), 5)
    assert compute_prdc(real, fake, 5) == expected == compute_prdc(real, fake, 5, screening="bfloat16")
    assert 0 < expected["coverage"] < 1


def test_several_balls_at_once_equal_each_alone():
    real, fake = awkward("tied", 120, 110, 6, np.float32)
    balls = [(3, True), (5, False), (3, False)]
    together = prdc_of_balls(real, fake, balls, block=50)
    assert together == [compute_prdc(real, fake, k, closed=closed) for k, closed in balls]
    assert together[0] != together[2]


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_definition_at_ties(closed, dtype):
    # Integer points: squared distances are exact and many of them equal.
    rng = np.random.default_rng(1)
    real, fake = (rng.integers(0, 5, (size, 3)).astype(dtype) for size in (120, 90))
    expected = by_definition(real, fake, 3, closed)
    assert compute_prdc(real, fake, 3, closed=closed) == pytest.approx(expected, abs=1e-12)
    assert by_definition(real, fake, 3, True) != by_definition(real, fake, 3, False)


@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_blocks_equal_the_whole(block):
    real, fake = gaussians()
    assert compute_prdc(real, fake, 4, block=block) == compute_prdc(real, fake, 4)


def test_blocks_of_one_point_equal_the_whole():
    real, fake = gaussians(30, 20)
    assert compute_prdc(real, fake, 4, block=1) == compute_prdc(real, fake, 4)


def test_order_of_rows_does_not_matter():
    real, fake = gaussians()
    rng = np.random.default_rng(3)
    assert compute_prdc(rng.permutation(real), rng.permutation(fake), 5, block=50) == compute_prdc(real, fake, 5)


def test_swapping_the_sets_swaps_precision_and_recall():
    real, fake = gaussians()
    there, back = compute_prdc(real, fake, 3), compute_prdc(fake, real, 3)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    assert there["precision"] != there["recall"]


def test_types_and_a_large_common_mean_do_not_matter():
    real, fake = gaussians()
    expected = compute_prdc(real, fake, 3)
    assert compute_prdc(torch.from_numpy(real), torch.from_numpy(fake), 3) == expected
    # Multiples of 2^-6 stay exact when 1000 is added, so only a loss of precision inside could change the figures.
    coarse = [np.round(points * 64) / 64 for points in (real, fake)]
    shifted = [points + np.float32(1000) for points in coarse]
    assert compute_prdc(*shifted, 3) == compute_prdc(*coarse, 3)


def test_rotating_the_features_does_not_matter():
    real, fake = gaussians(dtype=np.float64)
    rotation, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((8, 8)))
    assert compute_prdc(real @ rotation, fake @ rotation, 3) == compute_prdc(real, fake, 3)


def test_scaling_by_a_power_of_two_does_not_matter():
    real, fake = gaussians()
    assert compute_prdc(real * 2**-20, fake * 2**-20, 3) == compute_prdc(real, fake, 3)


@pytest.mark.parametrize("k", [3, 5])
def test_a_perfect_generator_reaches_the_ceiling(k):
    found = np.mean([compute_prdc(*gaussians(400, 400, 4, seed=seed, scale=1), k)["coverage"] for seed in range(8)])
    assert coverage_ceiling(400, 400, k) == pytest.approx(1 - 2**-k, abs=2e-3)
    assert found == pytest.approx(coverage_ceiling(400, 400, k), abs=0.015)


def test_the_ceiling_of_unequal_sets():
    found = np.mean([compute_prdc(*gaussians(200, 50, 3, seed=seed, scale=1), 3)["coverage"] for seed in range(30)])
    assert found == pytest.approx(coverage_ceiling(200, 50, 3), abs=0.02)


def test_coverage_sees_many_to_one_collapse_that_recall_misses():
    rng = np.random.default_rng(0)
    real, fake = gaussians(1000, 1000, 4, scale=1)
    collapsed = fake.copy()
    # Nine latents in ten give nearly one image; the rest still spread over everything the data do.
    collapsed[100:] = fake[0] + 1e-3 * rng.standard_normal((900, 4)).astype(np.float32)
    healthy, sick = compute_prdc(real, fake, 3), compute_prdc(real, collapsed, 3)
    assert sick["recall"] > healthy["recall"] - 0.05
    assert sick["coverage"] < healthy["coverage"] / 2


def test_copies_make_open_balls_empty_and_closed_ones_points():
    rng = np.random.default_rng(5)
    real = np.repeat(rng.standard_normal((20, 6)).astype(np.float32), 4, axis=0)
    open_balls, closed_balls = compute_prdc(real, real, 3), compute_prdc(real, real, 3, closed=True)
    assert set(open_balls.values()) == {0.0}
    assert (closed_balls["precision"], closed_balls["recall"], closed_balls["coverage"]) == (1.0, 1.0, 1.0)
    # Each fake lies in the four balls of its own copies and in no other.
    assert closed_balls["density"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("closed", [False, True])
def test_bounds_on_squares_decide_as_roots_do(dtype, closed):
    rng = np.random.default_rng(0)
    squares = np.concatenate([10.0 ** rng.uniform(-30, 30, 2000), [0, 1, 4]]).astype(dtype)
    bound = knn.radius_bound(torch.from_numpy(squares), closed).numpy()
    steps = [squares]
    for _ in range(4):
        steps = [np.nextafter(steps[0], dtype(0)), *steps, np.nextafter(steps[-1], dtype(np.inf))]
    near = np.stack(steps)
    roots, radius = np.sqrt(near), np.sqrt(squares)
    assert np.array_equal(near < bound, roots <= radius if closed else roots < radius)
    assert not np.array_equal(near < bound, near <= squares if closed else near < squares)


def warned(real, fake, k=3):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compute_prdc(real, fake, k)
    assert all(issubclass(warning.category, MetricWarning) and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_sound_input_warns_of_nothing():
    assert warned(*gaussians(50, 50, 8)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prdc_of_balls(*gaussians(20, 10, 30), [(3, False)])


def test_unequal_numbers_are_warned_of_with_the_ceiling():
    (message,) = warned(*gaussians(200, 50, 8))
    ceiling, usual = coverage_ceiling(200, 50, 3), coverage_ceiling(200, 200, 3)
    assert f"200 real with 50 fake points: a perfect generator reaches {ceiling:.3f} with such numbers and k = 3, and {usual:.3f}" in message
    assert ceiling < 0.5 < usual


def test_fewer_points_than_dimensions_are_warned_of():
    (message,) = warned(*gaussians(20, 20, 30))
    assert message.startswith("20 real and 20 fake points in 30 dimensions are few")


def test_copies_are_warned_of():
    real, fake = gaussians(50, 50, 8)
    fake[:3] = fake[4]
    (message,) = warned(real, fake)
    assert message.startswith("4 of 50 fake points have an exact copy among the fake points")
    # A fake that is a copy of a real point is no copy within its set.
    fake = gaussians(50, 50, 8)[1]
    fake[0] = real[0]
    assert warned(real, fake) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    real, fake = gaussians(20, 20)
    fake[3, 2] = bad
    with pytest.raises(UserError, match=r"fake features hold NaN or infinity in 1 of 20 rows"):
        compute_prdc(real, fake, 3)


@pytest.mark.parametrize(
    ("real_shape", "fake_shape", "k", "message"),
    [
        ((3, 4), (9, 4), 3, "3 real points are too few for 3 nearest neighbours; at least 4"),
        ((9, 4), (3, 4), 3, "3 fake points are too few"),
        ((9, 4), (9, 5), 3, "real features have 4 dimensions and fake features 5"),
        ((9, 4, 1), (9, 4), 3, "real features have shape"),
        ((0, 4), (9, 4), 3, "real features have shape"),
        ((9, 4), (9, 4), 0, "at least 1"),
        ((1, 4), (9, 4), 1, "1 real points are too few"),
        ((9, 4), (0, 4), 3, "fake features have shape"),
        ((9, 0), (9, 0), 3, "real features have shape"),
    ],
)
def test_impossible_requests_are_refused(real_shape, fake_shape, k, message):
    with pytest.raises(UserError, match=message):
        compute_prdc(np.ones(real_shape, np.float32), np.ones(fake_shape, np.float32), k)


def test_no_balls_are_refused():
    with pytest.raises(UserError, match="at least one is needed"):
        prdc_of_balls(*gaussians(20, 20), [])


@pytest.mark.gpu
def test_the_gpu_counts_as_the_cpu():
    real, fake = gaussians(3000, 2500, 64)
    assert compute_prdc(real, fake, 5, device="cuda", block=1000) == compute_prdc(real, fake, 5)
