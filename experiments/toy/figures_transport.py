"""Figures of where the latents go: the transport from the prior to the target, with a close look into each mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from experiments.toy.distributions import GaussianMixture, Target
from experiments.toy.figures import (
    FAINT,
    INK,
    LABEL_SIZE,
    PRIOR_RADIUS,
    SMALL_SIZE,
    WIDTH,
    Panel,
    latent_colours,
    new_figure,
    target_extent,
    target_sample,
)

LINES = 300  # latents whose way is drawn
PRIOR_SCALE = 0.65  # half height of the prior, with the target's half height as 1
PRIOR_MIDDLE = -1.5  # x of the prior's middle in that unit
CLOSE_UP_STDS = 3.5  # radius of a close-up
CLOSE_UP_GAP = 0.15  # between the target and the close-ups, in half heights
MAX_SHARES = 8  # modes whose share is written


def transport_panels(panels: Sequence[Panel], distribution: Target, title: str, caption: str = "") -> Figure:
    """The way from the prior on the left to the target on the right, per method, as in the paper's Figure 1.

    Latents and samples carry the latent's colour; 300 of them are joined by a line. Gaussians one above the other are drawn once more, magnified,
    in circles of 3.5 standard deviations to the right, with the share of all samples that are nearest to each.

    Args:
        panels: one per method.
        distribution: target.
        title, caption: above and below.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(WIDTH, title, caption)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels):
        _draw_transport(axis, panel, distribution)
        axis.set_title(panel.heading, fontsize=LABEL_SIZE, color=INK)
    for axis in axes:
        axis.set_axis_off()
    ratio = float(np.ptp(axes[0].get_ylim()) / np.ptp(axes[0].get_xlim()))
    figure.set_size_inches(WIDTH, rows * (WIDTH / columns * ratio + 0.4) + 0.5)
    return figure


def _draw_transport(axis: Axes, panel: Panel, distribution: Target) -> None:
    """One method's prior, lines and samples, in the target's coordinates: the prior is scaled to the target's height and put to its left."""
    extent = target_extent(distribution)
    unit = (extent.y[1] - extent.y[0]) / 2
    middle = torch.tensor([extent.x[0] + PRIOR_MIDDLE * unit, sum(extent.y) / 2])
    latents = panel.latents * (PRIOR_SCALE * unit / PRIOR_RADIUS) + middle
    colours = latent_colours(panel.latents)
    axis.scatter(*target_sample(distribution).T.numpy(), s=1.0, color="#dedede", linewidths=0, rasterized=True, zorder=0)
    ends = torch.stack([latents[:LINES], panel.samples[:LINES]], dim=1).numpy()
    axis.add_collection(LineCollection(list(ends), colors=colours[:LINES], linewidths=0.4, alpha=0.4, zorder=1, rasterized=True))
    for points in (latents, panel.samples):
        axis.scatter(*points.T.numpy(), s=1.4, c=colours, linewidths=0, rasterized=True, zorder=2)
    _name(axis, float(middle[0]), extent.y[1], "latents")
    _name(axis, sum(extent.x) / 2, extent.y[1], "samples")
    right = extent.x[1]
    if len(distribution.modes) <= MAX_SHARES and len(distribution.modes[:, 1].unique()) == len(distribution.modes):
        right = _draw_close_ups(axis, panel, distribution, right + CLOSE_UP_GAP * unit, unit)
    axis.set(xlim=(float(middle[0]) - PRIOR_SCALE * unit, right), ylim=extent.y, aspect="equal")


def _draw_close_ups(axis: Axes, panel: Panel, distribution: GaussianMixture, left: float, unit: float) -> float:
    """Magnified circles of modes one above the other, and the modes' shares. Returns where the drawing ends on the right."""
    modes, real = distribution.modes, target_sample(distribution)
    radius = 0.46 * float(modes[:, 1].sort().values.diff().min())
    scale = radius / (CLOSE_UP_STDS * distribution.std)
    colours = latent_colours(panel.latents)
    _name(axis, left + radius, target_extent(distribution).y[1], "close up")
    nearest = distribution.nearest_mode(panel.samples)
    for index, mode in enumerate(modes):
        centre = torch.tensor([left + radius, float(mode[1])])
        axis.add_patch(Circle(centre.tolist(), radius, facecolor="none", edgecolor=FAINT, linewidth=0.5))
        for points, looks in ((real, {"color": "#dedede", "s": 0.8}), (panel.samples, {"c": colours, "s": 0.9})):
            seen = (points - mode).norm(dim=1) < CLOSE_UP_STDS * distribution.std
            shown = (points[seen] - mode) * scale + centre
            looks = {**looks, "c": looks["c"][seen.numpy()]} if "c" in looks else looks
            axis.scatter(*shown.T.numpy(), linewidths=0, rasterized=True, **looks)
        share = float((nearest == index).double().mean())
        axis.text(left + 2.2 * radius, float(mode[1]), f"{share:.0%}", va="center", fontsize=SMALL_SIZE, color=INK)
    return left + 2.2 * radius + 0.25 * unit


def _name(axis: Axes, x: float, y: float, name: str) -> None:
    axis.text(x, y, name, ha="center", va="top", fontsize=SMALL_SIZE, color="#555555")
