"""Curves over training: what was recorded of losses, accuracies and weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from experiments.toy.figures import INK, LABEL_SIZE, SMALL_SIZE, WIDTH, new_figure, plain_axes
from experiments.toy.figures_charts import PALETTE


def training_curves(steps: torch.Tensor, quantities: Mapping[str, Mapping[str, torch.Tensor]], title: str, caption: str = "") -> Figure:
    """One panel per quantity, a colour per method, the same in all panels: a thin line per seed and their mean.

    Args:
        steps: of the records [T].
        quantities: {name: {method: values [S, T] of S seeds}}; the first has all methods, since the legend stands in its panel.
        title, caption: above and below.
    """
    figure = new_figure(WIDTH / len(quantities) + 0.6, title, caption)
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    colours = dict(zip(dict.fromkeys(method for curves in quantities.values() for method in curves), PALETTE))
    for axis, (name, curves) in zip(axes, quantities.items()):
        for method, values in curves.items():
            axis.plot(steps, values.T, color=colours[method], linewidth=0.5, alpha=0.4)
            axis.plot(steps, values.mean(dim=0), color=colours[method], linewidth=2, label=method)
        axis.set_title(name, fontsize=LABEL_SIZE, color=INK)
        axis.set_xlabel("step", fontsize=SMALL_SIZE, color=INK)
        axis.set_ylim(bottom=0)
        plain_axes(axis)
    axes[0].legend(fontsize=SMALL_SIZE, frameon=False)
    return figure
