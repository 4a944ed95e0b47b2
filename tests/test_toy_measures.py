"""Toy measures of generators whose figures are known: the identity, a point, a fold, exact samples; and batched = one at a time."""

import dataclasses
import math

import pytest
import torch

from dnnlib import UserError
from experiments.toy import measures
from experiments.toy.distributions import GRID, PACGAN_GRID, PACGAN_RING, RING, VERTICAL
from experiments.toy.measures import MEASURES, measure, mode_figures, samples_and_jacobians, singular_values
from experiments.toy.methods import Settings
from experiments.toy.models import SLOPE, WIDTH, initial_stack
from experiments.toy.trainer import stream as training_stream
from metrics.prdc import compute_prdc, coverage_ceiling

SETTINGS = Settings()
NUM = 1500


def linear(matrix, shift=(0.0, 0.0)):
    """A generator x = matrix z + shift: LeakyReLU of h and of -h differ by (1 + slope) h."""
    w1, w2, w3 = torch.zeros(1, 2, WIDTH), torch.zeros(1, WIDTH, WIDTH), torch.zeros(1, WIDTH, 2)
    for axis in range(2):
        plus, minus = 2 * axis, 2 * axis + 1
        w1[0, axis, plus], w1[0, axis, minus] = 1, -1
        for out, sign in ((plus, 1), (minus, -1)):
            w2[0, plus, out], w2[0, minus, out] = sign / (1 + SLOPE), -sign / (1 + SLOPE)
            w3[0, out] = sign / (1 + SLOPE) * torch.tensor(matrix, dtype=torch.float32)[:, axis]
    zero = torch.zeros(1, 1, WIDTH)
    return [w1, zero, w2, zero, w3, torch.tensor([[shift]], dtype=torch.float32)]


def fold():
    """x = (|z1|, z2), creased at z1 = 0: |h| is a sum of LeakyReLUs of h and of -h."""
    G = linear([[0.0, 0.0], [0.0, 1.0]])
    G[2][0, :2, :2] = torch.eye(2)  # h and -h pass through both layers; the negative one shrinks twice
    G[4][0, :2, 0] = 1 / (1 - SLOPE**2)
    return G


def stacked(*generators):
    return [torch.cat(tensors) for tensors in zip(*generators)]


IDENTITY = linear([[1.0, 0.0], [0.0, 1.0]])
POINT = linear([[0.0, 0.0], [0.0, 0.0]], (0.0, 2.0))


@pytest.fixture(scope="module")
def known():
    """Measures of the identity, of a point on a mode and of a fold, against the vertical Gaussians."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "PROBE_STEPS", 200)
        return measure(stacked(IDENTITY, POINT, fold()), VERTICAL, SETTINGS, num=NUM)


def test_every_measure_is_described_and_finite(known):
    for row in known:
        assert list(row) == list(MEASURES)
        assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())


def test_identity_stretches_nothing_and_is_identified(known):
    row = known[0]
    assert row["stretch"] == pytest.approx(1) and row["squeeze"] == pytest.approx(1)
    assert row["folded"] == 0
    assert row["collision"] < 0.01
    assert row["identification"] > 0.4


def test_point_is_one_mode_that_all_latents_share(known):
    row = known[1]
    assert row["collision"] == 1
    assert row["stretch"] == row["squeeze"] == row["folded"] == 0
    assert row["identification"] == pytest.approx(1 / 64)
    assert row["modes"] == 1 and row["high quality"] == 1
    assert row["reverse KL"] == pytest.approx(math.log(5))
    assert row["recall"] == 0


def test_fold_is_seen_by_folded_and_by_identification(known):
    assert known[2]["folded"] == pytest.approx(0.5, abs=0.04)
    assert known[2]["identification"] < 0.9 * known[0]["identification"]
    assert known[2]["stretch"] == pytest.approx(1) and known[2]["squeeze"] == pytest.approx(1)  # only the sign tells


@pytest.mark.parametrize("matrix", [[[3.0, 0.0], [0.0, 0.5]], [[0.0, -0.5], [3.0, 0.0]], [[1.0, 2.0], [0.5, -3.0]], [[0.0, 2.0], [0.0, 1.0]]])
def test_singular_values_are_those_of_the_matrix(matrix):
    z = torch.randn([50, 2], generator=torch.Generator().manual_seed(0))
    x, jacobian = samples_and_jacobians(linear(matrix, (1.0, -2.0)), z)
    torch.testing.assert_close(x[0], z @ torch.tensor(matrix).T + torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(jacobian[0], torch.tensor(matrix).expand(50, 2, 2))
    larger, smaller = singular_values(jacobian[0])
    expected = torch.linalg.svdvals(torch.tensor(matrix).double())
    torch.testing.assert_close(larger, expected[0].expand(50), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(smaller.abs(), expected[1].expand(50), rtol=1e-6, atol=1e-6)
    sign = torch.linalg.det(torch.tensor(matrix)).sign()
    assert (smaller * sign >= 0).all()


def test_jacobian_equals_finite_differences():
    G = [tensor.detach().double() for tensor in initial_stack(2, 2, [torch.Generator().manual_seed(seed) for seed in range(3)])]
    z = torch.randn([40, 2], generator=torch.Generator().manual_seed(5)).double()
    _, jacobian = samples_and_jacobians(G, z)
    h = 1e-6
    for axis in range(2):
        step = h * torch.eye(2).double()[axis]
        slope = (samples_and_jacobians(G, z + step)[0] - samples_and_jacobians(G, z - step)[0]) / (2 * h)
        torch.testing.assert_close(jacobian[..., axis], slope, rtol=1e-6, atol=1e-6)


def test_scaling_the_output_scales_the_expansion():
    G = initial_stack(2, 2, [torch.Generator().manual_seed(1)])
    z = torch.randn([500, 2], generator=torch.Generator().manual_seed(2))
    once, thrice = (measures.expansion(samples_and_jacobians([*G[:4], scale * G[4], G[5]], z)[1][0]) for scale in (1.0, 3.0))
    assert thrice["stretch"] == pytest.approx(3 * once["stretch"], rel=1e-5)
    assert thrice["squeeze"] == pytest.approx(3 * once["squeeze"], rel=1e-5)
    assert thrice["folded"] == once["folded"]
    assert once["stretch"] > once["squeeze"] > 0


def test_a_reflection_is_no_fold_and_a_line_has_no_sides():
    z = torch.randn([200, 2], generator=torch.Generator().manual_seed(0))
    for matrix in ([[1.0, 0.0], [0.0, -1.0]], [[1.0, 2.0], [0.3, 0.6]]):
        figures = measures.expansion(samples_and_jacobians(linear(matrix), z)[1][0])
        assert figures["folded"] == 0


def test_batched_equals_one_at_a_time_and_seeds_count(monkeypatch):
    monkeypatch.setattr(measures, "PROBE_STEPS", 20)
    G = [tensor.detach() for tensor in initial_stack(2, 2, [torch.Generator().manual_seed(seed) for seed in range(3)])]
    together = measure(G, RING, SETTINGS, num=400)
    apart = [measure([tensor[index : index + 1] for tensor in G], RING, SETTINGS, num=400)[0] for index in range(3)]
    for row, own in zip(together, apart):
        assert row == pytest.approx(own, abs=5e-3)
        assert row["collision"] == own["collision"] and row["coverage"] == own["coverage"]
    assert measure(G, RING, SETTINGS, num=400) == together
    assert measure(G, RING, SETTINGS, seed=1, num=400) != together


def test_measuring_draws_from_no_global_stream(monkeypatch):
    monkeypatch.setattr(measures, "PROBE_STEPS", 2)
    before = torch.get_rng_state()
    measure(IDENTITY, GRID, SETTINGS, num=100)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_streams_are_none_of_training():
    evaluation = [torch.rand(4, generator=measures.stream(seed, name)) for seed in range(3) for name in measures.STREAMS]
    training = [torch.rand(4, generator=training_stream(seed, name)) for seed in range(100) for name in ("G", "D", "P", "data", "permutation")]
    drawn = {tuple(values.tolist()) for values in evaluation + training}
    assert len(drawn) == len(evaluation) + len(training)


@pytest.mark.parametrize("target", [VERTICAL, RING, GRID, PACGAN_RING, PACGAN_GRID], ids=lambda target: target.name)
def test_exact_samples_are_perfect(target):
    n = 4000
    real, fake = (target.sample(n, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    figures = {**compute_prdc(real, fake, 3), **mode_figures(fake, target)}
    assert figures["coverage"] == pytest.approx(coverage_ceiling(n, n, 3), abs=0.02)
    assert figures["precision"] > 0.95 and figures["recall"] > 0.95
    assert figures["density"] == pytest.approx(1, abs=0.03)
    assert figures["modes"] == len(target.modes) and 0.7 < figures["thinnest mode"] <= 1
    assert figures["high quality"] > 0.98
    assert 0 <= figures["reverse KL"] < 0.01


def test_reverse_kl_of_half_the_modes_is_log_two_and_far_samples_capture_none():
    x = torch.cat([mode.expand(10, 2) for mode in PACGAN_RING.modes[::2]])
    half = mode_figures(x, PACGAN_RING)
    assert half["modes"] == 4 and half["thinnest mode"] == 0 and half["reverse KL"] == pytest.approx(math.log(2))
    between = mode_figures(0.5 * x, PACGAN_RING)
    assert between["modes"] == between["high quality"] == 0
    assert between["reverse KL"] == pytest.approx(half["reverse KL"])


def test_latents_must_be_planar():
    with pytest.raises(UserError, match="z_dim is 3"):
        measure(initial_stack(3, 2, [torch.Generator()]), GRID, dataclasses.replace(SETTINGS, z_dim=3))


def test_generators_that_give_nan_are_refused(monkeypatch):
    monkeypatch.setattr(measures, "PROBE_STEPS", 2)
    with pytest.raises(UserError, match="NaN"):
        measure([*IDENTITY[:5], torch.full([1, 1, 2], math.nan)], GRID, SETTINGS, num=100)
