"""Hand-made generators compute what they promise, and the figures tell invertible from folded ones and collapsed from faithful ones."""

import json

import pytest
import torch

from experiments.toy.controls import affine, control_generators, measure_controls, run_control
from experiments.toy.models import apply_stack


@pytest.mark.parametrize("fold", [False, True])
def test_affine_generators_are_exact(fold):
    draw = torch.Generator().manual_seed(0)
    matrix, offset, z = torch.randn([2, 2], generator=draw), torch.randn([2], generator=draw), torch.randn([50, 2], generator=draw)
    wanted = torch.stack([z[:, 0].abs() if fold else z[:, 0], z[:, 1]], dim=1) @ matrix + offset
    torch.testing.assert_close(apply_stack(affine(matrix, offset, fold), z.unsqueeze(0))[0], wanted, rtol=1e-5, atol=1e-5)


def test_an_invertible_generator_can_be_collapsed():
    rows = measure_controls(num=2000)
    exact, spot, folded, line = (rows[name] for name in ("one mode, exactly", "a spot in one mode", "one mode, folded", "a line"))
    for row in (exact, spot):  # invertible, and yet most of the target is missing
        assert row["folded"] == 0 and row["identification"] > 0.5 and row["modes"] == 1 and row["coverage"] < 0.25
    assert exact["precision"] > 0.9 and spot["coverage"] < 0.08
    assert folded["folded"] == pytest.approx(0.5, abs=0.05) and folded["modes"] == 1
    assert line["squeeze"] < 1e-6 and line["modes"] == 5


def test_the_control_writes_its_page(tmp_path, monkeypatch):
    quick = {"precision": 1.0, "recall": 0.5, "coverage": 0.25, "modes": 1.0, "collision": 0.0, "squeeze": 0.1, "folded": 0.0, "identification": 0.9}
    monkeypatch.setattr("experiments.toy.controls.measure", lambda G, *_, **__: [quick] * len(G[0]))
    files = run_control(tmp_path)
    assert [path.name for path in files] == ["control.json", "control.md", "control.png", "control.svg"]
    assert list(json.loads(files[0].read_text())["rows"]) == list(control_generators())
    assert "| one mode, folded | 1 | 0.5 | 0.25 |" in files[1].read_text()
