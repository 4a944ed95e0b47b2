"""The benchmark of nearest neighbours prints one line whose figures follow from its times, and finds its opponents' faults."""

import json
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from bench import knn
from dnnlib import UserError

CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch):
    """Runs the command with a yardstick that is quick to measure."""
    monkeypatch.setattr(knn, "matmul_rate", lambda device: 1e9)

    def run(*options):
        result = CliRunner().invoke(knn.main, ["--n=200", "--dim=16", "--fid-dim=8", *options], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    return run


def test_one_json_line_whose_figures_follow_from_its_times(bench):
    pytest.importorskip("prdc")
    output = bench("--json")
    assert output.count("\n") == 1
    figures = json.loads(output)
    seconds = figures["seconds"]
    assert {"float32", "prdc"} <= set(seconds) == set(figures["memory_gb"])
    assert figures["equal_counts"] is True
    assert figures["speedup"]["float32"] == pytest.approx(seconds["prdc"] / seconds["float32"])
    flop = 2 * 16 * (200 * 200 + 200 * 199)
    assert figures["matmul_fraction"] == pytest.approx(flop / seconds["float32"] / 1e9)
    assert figures["features_gb"] == pytest.approx(2 * 200 * 16 * 4 / 1e9)


def test_the_frechet_distance_is_compared_with_scipy(bench):
    fid = json.loads(bench("--skip-prdc", "--json"))["fid"]
    assert fid["dim"] == 8 and fid["relative_difference"] < 1e-6
    assert fid["speedup"] == pytest.approx(fid["scipy_seconds"] / fid["seconds"])


def test_prdc_and_the_frechet_distance_can_be_left_out(bench):
    table = bench("--skip-prdc", "--fid-dim=0")
    assert "speedup" not in table and "fid" not in table and "matmul_fraction" in table


def test_counts_that_differ_are_told(bench, monkeypatch):
    prdc = pytest.importorskip("prdc")
    right = prdc.compute_prdc
    monkeypatch.setattr(prdc, "compute_prdc", lambda *args: right(*args) | {"recall": 0.123})
    assert json.loads(bench("--json"))["equal_counts"] is False


def test_without_prdc_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "prdc", None)
    result = CliRunner().invoke(knn.main, ["--n=20", "--dim=4", "--fid-dim=0"])
    assert isinstance(result.exception, UserError) and "pip install prdc" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"), [(["--n=5", "--k=5"], "--n=5 points are too few for --k=5 neighbours; at least 6"), (["--device=cuda"], "--device=cuda")]
)
def test_impossible_requests_are_refused(options, message):
    if "--device=cuda" in options and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    result = CliRunner().invoke(knn.main, options)
    assert isinstance(result.exception, UserError) and message in str(result.exception)


def test_the_peak_is_what_was_used_meanwhile():
    size = 200 << 20

    def use():
        # Touched, so that it is there, and held until it has been seen; then given back.
        held = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.3)
        return int(held[-1])

    found, seconds, gigabytes = knn.timed(use, CPU)
    assert found == 1 and seconds > 0
    assert 0.15 < gigabytes < 0.4
    assert knn.timed(lambda: None, CPU)[2] < 0.05


def test_the_rate_of_a_product_is_its_arithmetic_over_its_time(monkeypatch):
    monkeypatch.setattr(knn, "timed", lambda function, device: (function(), 2.0, 0.0))
    assert knn.matmul_rate(CPU, 16) == 2 * 16**3 / 2.0


def test_useful_arithmetic_counts_every_pair_once():
    assert knn.useful_flop(3, 4, 10) == 2 * 10 * (3 * 4 + 3 + 6)
