"""The scaling benchmark: figures of two real ranks in one JSON line, and the arithmetic between them."""

import json
import pathlib
import re

import pytest
import torch
from click.testing import CliRunner

from bench import scaling
from bench.train_speed import build_state
from training.options import Options


def test_two_ranks_give_one_line_of_figures():
    result = CliRunner().invoke(scaling.main, ["--cfg=demo", "--resolution=8", "--batch=4", "--repeats=1", "--json"], catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    figures = json.loads(result.stdout)
    assert figures["ranks"] == 2 and figures["batch_per_rank"] == 4
    assert figures["step_over_compute"] == pytest.approx(figures["step_sec"] / figures["compute_sec"])  # of one run; else a median of ratios
    assert set(figures["exchange_sec"]) == set(figures["gradient_floats"]) == {"Gmain", "Dmain", "Dreg"}
    assert min(figures["compute_sec"], figures["step_sec"], figures["gather_sec"], *figures["exchange_sec"].values()) > 0
    assert figures["exchange_sec_per_step"] == pytest.approx(
        figures["exchange_sec"]["Gmain"] + figures["exchange_sec"]["Dmain"] + figures["exchange_sec"]["Dreg"] / 16
    )


def test_a_message_has_every_parameter_of_its_phase():
    state = build_state(Options(cfg="demo", data="random", batch=4, aug="noaug", pairing_weight=0.05), 8, cond=False, device=torch.device("cpu"))
    sizes = scaling.gradient_sizes(state)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in (("G", state.G), ("D", state.D), ("P", state.P))}
    assert sizes == {"Gmain": count["G"] + count["P"], "Dmain": count["D"], "Dreg": count["D"]}
    assert scaling.sizes_per_step(sizes, state) == count["G"] + count["P"] + count["D"] * (1 + 1 / 16)


def test_the_expected_step_is_compute_with_one_rank_and_grows_with_ranks():
    steps = [scaling.expected_step(0.02, 170.0, 2, ranks, 400.0) for ranks in (1, 2, 8, 64)]
    assert steps[0] == 0.02 and steps == sorted(steps)
    assert scaling.expected_step(0.02, 400.0, 0, 2, 400.0) == pytest.approx(0.02 + 1e-3)


def test_the_table_of_expected_steps_follows_from_the_formula():
    text = (pathlib.Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [int(ranks) for ranks, _ in rows] == [1, 2, 4, 8, 16, 32, 64]
    for ranks, cells in ((int(ranks), cells.split(" | ")) for ranks, cells in rows):
        presets = [(170.5, 22.4e-3, 2.06), (228.5, 224e-3, 2.31)]
        links = [400, 400 if ranks <= 8 else 12.5]
        steps = [scaling.expected_step(compute, size, messages, ranks, link) for size, compute, messages in presets for link in links]
        assert cells == [f"{step * 1e3:.1f} ms, {1000 / (64 * ranks) * step:.3g}" for step in steps]
