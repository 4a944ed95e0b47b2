"""The comparison of loss curves sees a precision that differs by more than seeds do, and only such a one."""

import json
import random

import pytest

from bench.precision_curves import compare, draw, read_curve
from dnnlib import UserError


def runs(shift, seeds=4, start=0):
    draws = random.Random(start)
    return {seed: {4.0 * tick: 1 / (1 + tick) + draws.gauss(shift, 0.1) for tick in range(50)} for seed in range(seeds)}


def test_the_same_distribution_stays_within_the_spread_of_seeds():
    figures = compare({"fp32": runs(0, start=1), "bf16": runs(0, start=2)})
    assert figures["spread"] == pytest.approx(0.1, rel=0.2)
    assert figures["ratio"] == pytest.approx((2 / 4) ** 0.5, rel=0.3)


def test_a_shift_beyond_the_spread_shows_whichever_way_it_goes():
    for shift in (-0.5, 0.5):
        assert compare({"fp32": runs(0), "bf16": runs(shift)})["ratio"] > 3


def test_only_shared_ticks_are_compared():
    shorter = {seed: dict(list(curve.items())[:10]) for seed, curve in runs(0, start=2).items()}
    beginning = {seed: dict(list(curve.items())[:10]) for seed, curve in runs(0).items()}
    assert compare({"fp32": runs(0), "bf16": shorter}) == compare({"fp32": beginning, "bf16": shorter})
    with pytest.raises(UserError, match="at least one tick"):
        compare({"fp32": runs(0), "bf16": {seed: {1.0: 0.0} for seed in range(2)}})


def test_a_curve_is_read_where_it_was_reported_and_drawn(tmp_path):
    lines = [{"Progress/kimg": {"num": 1, "mean": k}, "Loss/G/loss": {"num": k, "mean": 2.0 * k}} for k in (0, 4, 8)]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(tmp_path, "Loss/G/loss") == {4: 8.0, 8: 16.0}
    draw({"Loss/G/loss": {"fp32": runs(0), "bf16": runs(0)}}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
