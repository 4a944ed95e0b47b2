"""The speed benchmark prints one JSON line whose figures follow from its times."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from bench import conv_rate, toy_speed, train_speed
from dnnlib import UserError
from training.options import Options

CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch):
    """Runs the command with a convolution that is quick to measure."""
    monkeypatch.setattr(train_speed, "conv_rate", lambda device: conv_rate.conv_rate(device, channels=16, resolution=8, batch=4, repeats=1))

    def run(*options):
        result = CliRunner().invoke(train_speed.main, ["--device=cpu", "--repeats=1", *options], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    return run


def test_one_json_line_with_its_figures(bench):
    output = bench("--cfg=demo", "--resolution=8", "--batch=8", "--precision=fp32", "--json")
    assert output.count("\n") == 1
    figures = json.loads(output)
    assert {"sec_per_kimg", "phase_seconds", "conv_peak_fraction", "peak_memory_gb", "images_per_sec", "torch", "threads"} <= set(figures)
    assert set(figures["phase_seconds"]) == {"Gmain", "Dmain", "Dreg", "ema"}
    times = figures["phase_seconds"]
    step = times["Gmain"] + times["Dmain"] + times["Dreg"] / 16 + times["ema"]
    assert figures["sec_per_kimg"] == pytest.approx(step / 8 * 1000)
    assert figures["images_per_sec"] == pytest.approx(8 / step)
    assert figures["conv_peak_fraction"] is None  # the public count is known for the CIFAR presets at 32x32 only
    assert 0 < figures["peak_memory_gb"] < 10


def test_useful_work_is_counted_for_cifar_small(bench):
    figures = json.loads(bench("--cfg=cifar-small", "--batch=2", "--aug=ada", "--p=0.3", "--json"))
    assert figures["useful_gflop_per_image"] == pytest.approx(99 / 64)
    rate = figures["images_per_sec"] * figures["useful_gflop_per_image"]
    assert figures["conv_peak_fraction"] == pytest.approx(rate / figures["conv_gflops"])
    assert (figures["aug"], figures["p"]) == ("fixed", 0.3)


def test_the_cost_of_pairing_is_measured(bench):
    table = bench("--cfg=demo", "--resolution=8", "--batch=8", "--pairing-weight=0.05")
    (line,) = (line for line in table.splitlines() if line.startswith("pairing_cost"))
    assert math.isfinite(float(line.split()[1])) and float(line.split()[1]) > -0.9


def test_ada_needs_its_probability():
    result = CliRunner().invoke(train_speed.main, ["--aug=ada"])
    assert isinstance(result.exception, UserError) and "--p" in str(result.exception)


def test_every_phase_moves_the_weights_that_are_timed():
    """What is measured is training: the networks are others afterwards."""
    state = train_speed.build_state(Options(cfg="demo", data="random", batch=8, aug="noaug"), 8, cond=False, device=CPU)
    before = [torch.cat([p.detach().flatten() for p in module.parameters()]) for module in (state.G, state.D, state.G_ema)]
    times = train_speed.phase_times(state, 1)
    after = [torch.cat([p.detach().flatten() for p in module.parameters()]) for module in (state.G, state.D, state.G_ema)]
    assert all(len(values) == 1 and values[0] > 0 for values in times.values())
    assert not any(torch.equal(a, b) for a, b in zip(before, after))


def test_the_rate_of_a_convolution_is_its_arithmetic_over_the_best_time(monkeypatch):
    """Forward and both gradients, two operations for each multiplication with its addition."""
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(conv_rate.time, "perf_counter", lambda: next(clock))
    assert conv_rate.conv_rate(CPU, channels=8, resolution=4, batch=3, repeats=3) == 3 * (2 * 3 * 8 * 8 * 9 * 4 * 4) / 2.0


@pytest.mark.slow
def test_toy_speed_compares_both_ways_in_one_line():
    result = CliRunner().invoke(toy_speed.main, ["--steps=2", "--repeats=1", "--workers=1", "--json"], catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert result.exit_code == 0 and figures["models"] == 10
    assert set(figures["model_steps_per_second"]) == set(toy_speed.NAMES)
    assert figures["speedup"] == pytest.approx(figures["side_by_side"] / figures["one_at_a_time"], abs=0.05)
