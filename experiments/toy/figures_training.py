"""Curves over training: what was recorded of losses, accuracies and weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from experiments.toy.figures import INK, LABEL_SIZE, SMALL_SIZE, WIDTH, new_figure, plain_axes
from experiments.toy.figures_charts import PALETTE


def training_curves(steps: torch.Tensor, quantities: Mapping[str, Mapping[str, torch.Tensor]], title: str, caption: str = "") -> Figure:
    """One panel per quantity, a colour per method: a thin line per seed and their mean.

    Args:
        steps: of the records [T].
        quantities: {name: {method: values [S, T] of S seeds}}.
        title, caption: above and below.
    """
    figure = new_figure(WIDTH / 3 + 0.6, title, caption)
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axis, (name, curves) in zip(axes, quantities.items()):
        for colour, (method, values) in zip(PALETTE, curves.items()):
            axis.plot(steps, values.T, color=colour, linewidth=0.5, alpha=0.4)
            axis.plot(steps, values.mean(dim=0), color=colour, linewidth=2, label=method)
        axis.set_title(name, fontsize=LABEL_SIZE, color=INK)
        axis.set_xlabel("step", fontsize=SMALL_SIZE, color=INK)
        axis.set_ylim(bottom=0)
        plain_axes(axis)
    axes[0].legend(fontsize=SMALL_SIZE, frameon=False)
    return figure
