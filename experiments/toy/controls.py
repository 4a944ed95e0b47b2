"""Generators made by hand, to see what each figure can and cannot tell: above all that a generator can be invertible and still collapsed.

All of them are exact multilayer perceptrons of the experiments' shape, aimed at one mode of the vertical Gaussians.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch

from dnnlib import atomic_write_text
from experiments.toy.figures import Panel, save_figure, scatter_panels
from experiments.toy.measures import NUM_SAMPLES, measure
from experiments.toy.models import SLOPE, WIDTH, Stack, apply_stack
from experiments.toy.studies import STUDIES

STUDY = STUDIES["vertical"]
SHOWN = 5_000
COLUMNS = ("precision", "recall", "coverage", "modes", "collision", "squeeze", "folded", "identification")


def affine(matrix: torch.Tensor, offset: torch.Tensor, fold: bool = False) -> Stack:
    """The generator z -> z @ matrix + offset, or (|z_1|, z_2) @ matrix + offset, as a stack of one.

    LeakyReLU(a) - LeakyReLU(-a) is (1 + slope) a and LeakyReLU(a) + LeakyReLU(-a) is (1 - slope) |a|, so four hidden units carry two coordinates
    through a layer exactly.

    Args:
        matrix: [2, 2].
        offset: [2].
        fold: whether the first latent coordinate enters by its absolute value.
    """
    pairs = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    joined = pairs.t() / (1 + SLOPE)
    first = joined.clone()
    if fold:
        first[:2, 0] = 1 / (1 - SLOPE)
    spread, inner, last = torch.zeros(2, WIDTH), torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, 2)
    spread[:, :4], inner[:4, :4], last[:4] = pairs, first @ pairs, joined @ matrix
    biases = torch.zeros(1, WIDTH), torch.zeros(1, WIDTH), offset.view(1, 2)
    return [tensor.unsqueeze(0) for weight, bias in zip((spread, inner, last), biases) for tensor in (weight, bias)]


def control_generators() -> dict[str, Stack]:
    """The hand-made generators by what they do."""
    mode, std = STUDY.distribution.modes[0], STUDY.distribution.std
    identity = torch.eye(2)
    return {
        "one mode, exactly": affine(std * identity, mode),
        "a spot in one mode": affine(0.2 * std * identity, mode),
        "one mode, folded": affine(std * identity, mode, fold=True),
        "a line": affine(torch.diag(torch.tensor([0.0, 2.0])), STUDY.distribution.modes.mean(dim=0)),
    }


def measure_controls(num: int = NUM_SAMPLES) -> dict[str, dict[str, float]]:
    """Every figure of each hand-made generator, measured side by side with `num` samples."""
    generators = control_generators()
    side_by_side = [torch.cat(layers) for layers in zip(*generators.values())]
    return dict(zip(generators, measure(side_by_side, STUDY.distribution, STUDY.settings, num=num)))


def run_control(out: pathlib.Path) -> list[pathlib.Path]:
    """Measures and draws the hand-made generators: control.json, control.md, control.png and control.svg in an existing folder.

    Raises:
        UserError: a file cannot be written.
    """
    generators, rows = control_generators(), measure_controls()
    z = torch.randn([SHOWN, 2], generator=torch.Generator().manual_seed(1))
    letters = {"P": "precision", "R": "recall", "C": "coverage"}
    panels = []
    for name, G in generators.items():
        numbers = {letter: rows[name][figure] for letter, figure in letters.items()}
        panels.append(Panel(name, apply_stack(G, z.unsqueeze(0))[0], z, numbers))
    files = save_figure(scatter_panels(panels, STUDY.distribution, "Generators made by hand"), out / "control")
    atomic_write_text(out / "control.json", json.dumps({"rows": rows, "study": STUDY.name}, indent=1) + "\n")
    atomic_write_text(out / "control.md", page(rows))
    return [out / "control.json", out / "control.md", *files]


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The figures of the hand-made generators as a Markdown page."""
    lines = ["# Generators made by hand", "", "![Generators made by hand](control.png)", ""]
    lines += ["| generator | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.3g}" for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"
