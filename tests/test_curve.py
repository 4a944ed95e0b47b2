"""Curves are read from metric lines and drawn; damaged or missing lines are named."""

import json

import pytest

from dnnlib import UserError
from experiments.curve import plot_curves, read_curves


def write(run, kimgs, values, name="fid10k_embedded"):
    lines = [{"results": {name: v}, "snapshot_pkl": f"network-snapshot-{k:06d}.safetensors"} for k, v in zip(kimgs, values)]
    (run / f"metric-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_points_rise_in_kimg_and_the_last_measurement_counts(tmp_path):
    write(tmp_path, [20, 0, 10, 10], [3.0, 9.0, 7.0, 6.0])
    write(tmp_path, [10], [0.5], name="coverage_embedded")
    curves = read_curves(tmp_path)
    assert curves == {"fid10k_embedded": [(0, 9.0), (10, 6.0), (20, 3.0)], "coverage_embedded": [(10, 0.5)]}
    plot_curves(curves, tmp_path / "curve.png", "a run")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_missing_and_damaged_lines_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no metric-\*\.jsonl"):
        read_curves(tmp_path)
    (tmp_path / "metric-fid10k.jsonl").write_text('{"results": {}}\n')
    with pytest.raises(UserError, match=r"metric-fid10k\.jsonl, line 1"):
        read_curves(tmp_path)
