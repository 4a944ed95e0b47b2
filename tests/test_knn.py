"""Nearest neighbours: bounds that hold whatever is rounded, and searches that find what all exact distances would say."""

import math

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics import kd_tree, knn, neighbours, points, screening
from metrics.collision import near_share, typical_radius

PRECISIONS = list(screening.LADDER)
CPU = torch.device("cpu")


def make(kind, n=150, dim=40, seed=0, dtype=torch.float32):
    """Features [n, dim] of one kind."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, dim))
    centres = np.random.default_rng(9).standard_normal((6, dim))
    rows = {
        "normal": lambda: normal,
        "tied": lambda: rng.integers(0, 4, (n, dim)),
        "binary": lambda: rng.integers(0, 2, (n, dim)),
        "copies": lambda: normal[rng.integers(0, n // 6, n)],
        "one point": lambda: np.repeat(normal[:1], n, axis=0),
        "clusters": lambda: centres[rng.integers(0, 6, n)] + 1e-4 * normal,
        "large mean": lambda: 1000 + normal,
        "tiny": lambda: 1e-12 * normal,
        "huge": lambda: 1e18 * normal,
        "outlier": lambda: normal * np.where(np.arange(n) == 7, 1e6, 1)[:, None],
        "sparse": lambda: normal * (rng.random((n, dim)) < 0.05),
        # Every coordinate is rounded the same way, as far as bfloat16 rounds: errors add up instead of cancelling.
        "one-sided": lambda: (1 + 2.0**-8 - 2.0**-15) * 2.0 ** rng.integers(-2, 1, (n, 1)) * rng.choice([-1, 1], (n, 1)) * np.ones(dim),
    }[kind]()
    return torch.from_numpy(np.asarray(rows, dtype=np.float64)).to(dtype)


KINDS = ("normal", "tied", "binary", "copies", "one point", "clusters", "large mean", "tiny", "huge", "outlier", "sparse", "one-sided")


def sets(kind, dim=40, dtype=torch.float32, block=None, n=150, m=130):
    real, fake = make(kind, n, dim, 0, dtype), make(kind, m, dim, 1, dtype)
    if kind == "copies":
        fake[: m // 4] = real[: m // 4]
    return points.make_point_sets(real, fake, CPU, block)


def all_squared(a, b):
    """Every squared distance [N, M], as the definition says, in units of the scale, not yet rounded."""
    wide = [torch.from_numpy(points.features.numpy().astype(np.float64)) for points in (a, b)]
    return (wide[0][:, None] - wide[1][None]).square().sum(dim=2) * a.scale**2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_distance_leaves_its_interval(kind, precision):
    for dim in (3, 40, 513):
        a, b = sets(kind, dim, n=60, m=50)
        exact = all_squared(a, b)
        screens = screening.Screen(a, precision), screening.Screen(b, precision)
        bounds = screens[0].lower_bounds((0, 60), screens[1], (0, 50))
        rows, columns = torch.meshgrid(torch.arange(60), torch.arange(50), indexing="ij")
        low, high = (end.reshape(60, 50) for end in screens[0].interval(rows.flatten(), screens[1], columns.flatten(), bounds.flatten()))
        assert (bounds.double() <= exact).all() and (low <= exact).all() and (exact <= high).all()


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.04), ("float32", 2e-3), ("float64", 1e-11)])
def test_intervals_are_narrow(precision, most):
    a, b = sets("normal", 2000)
    screens = screening.Screen(a, precision), screening.Screen(b, precision)
    bounds = screens[0].lower_bounds((0, 150), screens[1], (0, 130))
    pick = torch.arange(130)
    low, high = screens[0].interval(pick, screens[1], pick, bounds[pick, pick])
    assert ((high - low) / high).max() < most
    # What rounding does to the rows themselves is most of what the interval allows for.
    assert screens[0].firm.sum() < {"bfloat16": 0.005, "float32": 6e-4, "float64": 1e-12}[precision] * screens[0].norms.sum()


def test_the_bound_for_bfloat16_is_not_loose():
    """Rows that are rounded all one way come close to the most that rounding is said to do."""
    a, b = sets("one-sided", 512)
    for point_set in (a, b):
        point_set.centre.zero_()
    screens = screening.Screen(a, "bfloat16"), screening.Screen(b, "bfloat16")
    product = screens[0]._rounded(0, 150).double() @ screens[1]._rounded(0, 130).double().t()
    error = (screens[0].norms[:, None] + screens[1].norms - 2 * product - all_squared(a, b)).abs()
    assert 0.4 < (error / (screens[0].firm[:, None] + screens[1].firm)).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_are_those_of_all_distances(kind, dtype):
    for precision, block, k in [("bfloat16", None, 5), ("bfloat16", 20, 1), ("float32", 64, 3), ("float64", 37, 4)]:
        (a, _) = sets(kind, dtype=dtype, block=block)
        expected = all_squared(a, a).fill_diagonal_(torch.inf).sort(dim=1).values[:, :k].to(dtype)
        assert torch.equal(knn.k_nearest(a, k, "real", precision), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_near_pairs_are_those_of_all_distances(kind, dtype):
    for precision, block, closed in [("bfloat16", None, False), ("float32", 64, True), ("float64", 37, True), ("bfloat16", 11, True)]:
        a, b = sets(kind, dtype=dtype, block=block)
        bounds = [torch.stack([knn.radius_bound(knn.k_nearest(own, k, "real")[:, -1], closed) for k in (2, 5)]) for own in (a, b)]
        exact = all_squared(a, b).to(dtype)
        found = torch.full([2, 2, len(a), len(b)], False)
        for rows, columns, values in knn.near_pairs(a, bounds[0], b, bounds[1], precision):
            for ball in range(2):
                assert not found[0, ball, rows, columns].any()
                found[0, ball, rows, columns] = values < bounds[0][ball, rows]
                found[1, ball, rows, columns] = values < bounds[1][ball, columns]
        expected = torch.stack([exact < bounds[0].unsqueeze(2), exact < bounds[1].unsqueeze(1)])
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_finds_the_same(kind, dtype):
    for dim in range(1, kd_tree.MAX_DIM + 1):
        a, b = sets(kind, dim, dtype)
        assert kd_tree.serves(a)
        nearest = [kd_tree.k_nearest(own, 3) for own in (a, b)]
        assert torch.equal(nearest[0], neighbours.k_nearest(a, 3))
        bounds = [knn.radius_bound(own[:, -1].to(dtype), True).unsqueeze(0) for own in nearest]
        inside = []
        for pairs in (kd_tree.near_pairs(a, bounds[0], b, bounds[1]), neighbours.near_pairs(a, bounds[0], b, bounds[1])):
            rows, columns, values = (torch.cat(parts) for parts in zip(*pairs))
            in_a, in_b = values < bounds[0][0, rows], values < bounds[1][0, columns]
            assert len(set(zip(rows[in_a].tolist(), columns[in_a].tolist()))) == int(in_a.sum())
            inside.append([set(zip(rows[which].tolist(), columns[which].tolist())) for which in (in_a, in_b)])
        assert inside[0] == inside[1]


def test_the_tree_lists_few_pairs_at_once(monkeypatch):
    a, b = sets("normal", 2)
    bounds = [knn.radius_bound(knn.k_nearest(own, 5, "real")[:, -1], False).unsqueeze(0) for own in (a, b)]
    whole = [torch.cat(parts) for parts in zip(*kd_tree.near_pairs(a, bounds[0], b, bounds[1]))]
    monkeypatch.setattr(kd_tree, "PAIRS", 20)
    parts = list(kd_tree.near_pairs(a, bounds[0], b, bounds[1]))
    assert len(parts) > 5 and max(len(part[0]) for part in parts) <= 20 + 130
    assert all(torch.equal(one, torch.cat(other)) for one, other in zip(whole, zip(*parts)))
    assert torch.equal(kd_tree.k_nearest(a, 5), neighbours.k_nearest(a, 5))


def test_candidates_are_thinned_out_without_loss(monkeypatch):
    expected = knn.k_nearest(sets("normal")[0], 4, "real")
    monkeypatch.setattr(neighbours, "SHORTLIST", 0)
    thinned = []
    thin_out = neighbours.Shortlist._thin_out
    monkeypatch.setattr(neighbours.Shortlist, "_thin_out", lambda self: thinned.append(thin_out(self)))
    assert torch.equal(knn.k_nearest(sets("normal", block=10)[0], 4, "real"), expected)
    assert len(thinned) > 2


@pytest.mark.parametrize(("kind", "last"), [("normal", "bfloat16"), ("clusters", "float64"), ("one point", "float64")])
def test_what_bounds_cannot_tell_apart_is_bounded_more_finely(kind, last, monkeypatch):
    used = []

    class Spy(screening.Screen):
        def __init__(self, points, precision):
            used.append(precision)
            super().__init__(points, precision)

    monkeypatch.setattr(neighbours, "Screen", Spy)
    a, _ = sets(kind, 64, n=600)
    knn.k_nearest(a, 3, "real", "bfloat16")
    assert used[0] == "bfloat16" and used[-1] == last and len(used) == PRECISIONS.index(last) + 1


@pytest.mark.parametrize("setting", ["medium", "high", "highest"])
def test_the_precision_of_float32_products_may_be_anything(setting):
    """PyTorch multiplies float32 matrices in bfloat16 where a program asks for it and the processor can."""
    before = torch.get_float32_matmul_precision()
    a, b = sets("normal", 600)
    exact = all_squared(a, b)
    try:
        torch.set_float32_matmul_precision(setting)
        screens = screening.Screen(a, "float32"), screening.Screen(b, "float32")
        bounds = screens[0].lower_bounds((0, 150), screens[1], (0, 130))
        rows, columns = (index.flatten() for index in torch.meshgrid(torch.arange(150), torch.arange(130), indexing="ij"))
        low, high = screens[0].interval(rows, screens[1], columns, bounds.flatten())
    finally:
        torch.set_float32_matmul_precision(before)
    assert (low <= exact.flatten()).all() and (exact.flatten() <= high).all()


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx512_bf16": False, "amx_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, False),  # slower than float32, measured
        ({"avx512_bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_is_made_for_it(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert screening.has_fast_bfloat16(CPU) is fast and not screening.has_fast_bfloat16(torch.device("cuda"))


def test_bfloat16_is_chosen_by_capability(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert [screening.choose_precision(CPU, dim) for dim in (8, 64, 4096)] == ["float64", "float32", "bfloat16"]
    assert screening.choose_precision(torch.device("cuda"), 4096) == "float32"
    assert screening.choose_precision(CPU, 4096, "float32") == "float32"
    assert screening.choose_precision(CPU, 1 << 21) == "float64"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert screening.choose_precision(CPU, 4096) == "float32"
    with pytest.raises(UserError, match="the screening precision is 'fp8'; known are bfloat16, float32, float64"):
        screening.choose_precision(CPU, 4096, "fp8")


def test_rows_that_are_not_kept_are_rounded_again(monkeypatch):
    a, _ = sets("normal", 64)
    expected = knn.k_nearest(a, 5, "real", "bfloat16")
    monkeypatch.setattr(screening, "KEPT_BYTES", 0)
    assert screening.Screen(a, "bfloat16")._kept is None
    assert torch.equal(knn.k_nearest(a, 5, "real", "bfloat16"), expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (16, 16), (7, 9), (8, 1), (1, 24)])
def test_positions_are_those_of_the_true_entries(shape):
    mask = torch.from_numpy(np.random.default_rng(shape[0]).random(shape) < 0.3)
    for entries in (mask, mask.t(), torch.zeros_like(mask), torch.ones_like(mask)):
        rows, columns = neighbours.positions(entries)
        assert set(zip(rows.tolist(), columns.tolist())) == set(map(tuple, entries.nonzero().tolist()))
        assert len(rows) == int(entries.sum())


def test_rounding_up_never_rounds_down():
    values = torch.from_numpy(10.0 ** np.random.default_rng(0).uniform(-40, 40, 1000))
    values = torch.cat([values, torch.tensor([0.0, math.inf, -math.inf, 1.0, 1 + 2.0**-40], dtype=torch.float64)])
    rounded = neighbours.rounded_up(values, torch.float32)
    assert rounded.dtype == torch.float32 and (rounded.double() >= values).all()
    assert (torch.nextafter(rounded, torch.tensor(-math.inf)).double()[:1000] < values[:1000]).all()


@pytest.mark.parametrize("kind", ["normal", "tied", "large mean", "clusters", "copies"])
def test_whole_blocks_of_distances_are_exact(kind):
    for dtype in (torch.float32, torch.float64):
        a, b = sets(kind, dtype=dtype, block=50)
        found = torch.full([len(a), len(b)], torch.nan, dtype=dtype)
        for rows, columns, squared in knn.cross_blocks(a, b):
            found[rows, columns] = squared
        expected = all_squared(a, b).to(dtype)
        torch.testing.assert_close(found, expected, rtol=2e-7 if dtype == torch.float32 else 1e-9, atol=0)
        assert torch.equal(found == 0, expected == 0)


def test_the_distance_to_the_kth_neighbour_is_in_the_units_of_the_features():
    for scale in (1.0, 2.0**-30, 2.0**20):
        features = make("normal") * scale
        a, _ = points.make_point_sets(features, features, CPU)
        expected = all_squared(a, a).fill_diagonal_(torch.inf).sort(dim=1).values[:, 2] / a.scale**2
        assert torch.equal(knn.kth_distance(a, 3, "real"), expected.float().sqrt())


@pytest.mark.parametrize(("dtype", "exponents"), [(torch.float32, (-100, -83, 83, 120)), (torch.float64, (-1000, -532, 532, 1000))])
def test_no_power_of_two_is_too_small_or_too_large(dtype, exponents):
    """Squares in the units of the features would vanish or overflow."""
    features = {exponent: make("normal", dim=6, dtype=torch.float32).to(dtype) * math.ldexp(1.0, exponent) for exponent in (0, *exponents)}
    expected, *others = (points.make_point_sets(rows, rows, CPU, 64)[0] for rows in features.values())
    kth, blocks = knn.kth_distance(expected, 3, "real"), [block for _, _, block in knn.cross_blocks(expected, expected)]
    assert kth.min() > 0
    for exponent, other in zip(exponents, others):
        assert torch.equal(knn.kth_distance(other, 3, "real").double() / math.ldexp(1.0, exponent), kth.double())
        assert torch.equal(knn.k_nearest(other, 3, "real", "float64"), knn.k_nearest(expected, 3, "real", "float64"))
        assert all(map(torch.equal, blocks, (block for _, _, block in knn.cross_blocks(other, other))))
        rows = features[exponent]
        near = near_share(rows, typical_radius(rows))
        assert near == near_share(features[0], typical_radius(features[0])) > 0


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(np.ones((3, 2), np.float16), torch.float32), (torch.ones(3, 2).bfloat16(), torch.float32), (np.ones((3, 2), np.int64), torch.float64)],
)
def test_features_of_any_type_become_floats(values, dtype):
    assert knn.as_features(values, "real").dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_finds_the_same(kind):
    a, b = sets(kind, 64)
    on_gpu, _ = points.make_point_sets(a.features, b.features, torch.device("cuda"))  # both sets: distances are in units of their common scale
    assert torch.equal(knn.k_nearest(on_gpu, 4, "real").cpu(), knn.k_nearest(a, 4, "real"))
