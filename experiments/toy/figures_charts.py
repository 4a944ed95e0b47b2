"""Charts of the experiments: density along the ring, heat maps of the sweep, and where in the latent plane a generator squeezes or folds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Rectangle

from experiments.toy.distributions import Ring
from experiments.toy.figures import FAINT, INK, LABEL_SIZE, PRIOR_RADIUS, SMALL_SIZE, WIDTH, new_figure, plain_axes, target_sample

# Okabe and Ito's palette, told apart by most colour-blind readers ("Color Universal Design", 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NEARLY_EMPTY = 0.25
RING_ANGLES, RING_LAYERS = 36, 8  # cells of the ring; 10,000 exact samples put 35 +- 6 into each


def ring_density(curves: Mapping[str, torch.Tensor], ring: Ring, title: str, caption: str = "") -> Figure:
    """How evenly the samples fill the ring, 1 where the density is the target's.

    Above, the ring of the first seed unrolled: across, the angle; upwards, from the inner to the outer edge in eighths of equal mass. In the
    middle, the density by angle of every seed. Below, the cells sorted from the densest to the emptiest: each seed is dense elsewhere, so by
    angle a mean would look even where no seed is, and only the sorted profiles can be averaged. The dotted profile is
    that of 10,000 exact samples. Cells under a quarter of the target's density are called nearly empty.

    Args:
        curves: {method: samples [S, N, 2] of S seeds}.
        ring: target.
        title, caption: above and below.
    """
    cells = {method: np.stack([cell_density(x, ring) for x in samples]) for method, samples in curves.items()}
    by_angle = {method: density.mean(axis=1) for method, density in cells.items()}
    reference = _sorted_cells(cell_density(target_sample(ring), ring)[None])[0]
    figure = new_figure(5.6, title, caption)
    axes = figure.subplots(3, len(curves), sharey="row", squeeze=False, height_ratios=[0.8, 1, 1.2])
    for column, (method, density) in enumerate(cells.items()):
        colour = PALETTE[column % len(PALETTE)]
        image = axes[0, column].imshow(density[0], extent=(0, 360, 0, 1), origin="lower", aspect="auto", cmap="inferno", vmin=0, vmax=4)
        axes[1, column].plot((np.arange(RING_ANGLES) + 0.5) * 360 / RING_ANGLES, by_angle[method].T, color=colour, linewidth=0.7, alpha=0.7)
        profiles = _sorted_cells(density)
        share = (np.arange(len(reference)) + 0.5) / len(reference)
        axes[2, column].plot(share, profiles.T, color=colour, linewidth=0.5, alpha=0.5)
        axes[2, column].plot(share, profiles.mean(axis=0), color=colour, linewidth=2)
        axes[2, column].plot(share, reference, color=INK, linewidth=1, linestyle=(0, (1, 1)))
        axes[0, column].set_title(f"{method}\n{np.mean(density < NEARLY_EMPTY):.0%} of the ring nearly empty", fontsize=LABEL_SIZE, color=INK)
        axes[0, column].set(xticks=[0, 180, 360], yticks=[0, 1], yticklabels=["inner", "outer"])
        axes[1, column].set(xlim=(0, 360), xticks=[0, 180, 360], ylim=(0, 1.05 * max(map(np.max, by_angle.values()))))
        axes[1, column].set_xlabel("angle in degrees", fontsize=SMALL_SIZE, color=INK)
        axes[2, column].set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(0, 5))
        axes[2, column].set_xlabel("share of the ring's cells", fontsize=SMALL_SIZE, color=INK)
    _finish_ring(figure, axes, image)
    return figure


def cell_density(x: torch.Tensor, ring: Ring) -> np.ndarray:
    """Samples [N, 2] per cell of the ring over the count that an exact model would have there [8 across, 36 angles].

    Cells hold equal mass of the target; the innermost and the outermost also count what lies off the ring on their side.
    """
    angle = dataclasses.replace(ring, arcs=RING_ANGLES).nearest_mode(x)
    across = torch.special.ndtr((x.double().norm(dim=1) - ring.radius) / ring.std)
    layer = (across * RING_LAYERS).long().clamp(max=RING_LAYERS - 1)
    counts = torch.bincount(layer * RING_ANGLES + angle, minlength=RING_LAYERS * RING_ANGLES)
    return counts.view(RING_LAYERS, RING_ANGLES).numpy() * (RING_LAYERS * RING_ANGLES / len(x))


def _sorted_cells(density: np.ndarray) -> np.ndarray:
    """Densities [S, layers, angles] of each seed from the highest to the lowest [S, cells]."""
    return -np.sort(-density.reshape(len(density), -1), axis=1)


def _finish_ring(figure: Figure, axes: np.ndarray, image: AxesImage) -> None:
    for axis in axes.flatten():
        plain_axes(axis, locate=False)
    for axis in axes[1:].flatten():
        axis.axhline(1, color=FAINT, linewidth=0.8, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis, name in zip(axes[:, 0], ("first seed, unrolled", "density by angle", "density, sorted")):
        axis.set_ylabel(name, fontsize=SMALL_SIZE, color=INK)
    bar = figure.colorbar(image, ax=axes[0], pad=0.01, aspect=12, extend="max")
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5)


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A table of values between 0 and 1 as colours.

    Attributes:
        title: above it.
        values: [R, C]; NaN where training failed.
        row_labels, column_labels: R and C of them.
        row_name, column_name: what varies over the rows and over the columns.
        marked: (row, column) of the paper's own setting, if it is in the map.
    """

    title: str
    values: np.ndarray
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    row_name: str = ""
    column_name: str = ""
    marked: tuple[int, int] | None = None


def heat_maps(grid: Sequence[Sequence[HeatMap]], title: str, caption: str = "") -> Figure:
    """Heat maps in rows and columns, all on one scale from 0 to 1, each cell with its number and the paper's setting framed."""
    columns = max(len(line) for line in grid)
    cell = min(0.34, WIDTH / columns / (max(len(heat.column_labels) for line in grid for heat in line) + 2))
    height = sum(max(len(heat.row_labels) for heat in line) * cell + 0.75 for line in grid) + 0.7
    figure = new_figure(height, title, caption)
    axes = figure.subplots(len(grid), columns, squeeze=False)
    for line, heats in zip(axes, grid):
        for axis, heat in zip(line, heats):
            image = _draw_heat(axis, heat)
        for axis in line[len(heats) :]:
            axis.set_axis_off()
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5)
    return figure


def _draw_heat(axis: Axes, heat: HeatMap) -> AxesImage:
    values = np.ma.masked_invalid(np.asarray(heat.values, dtype=float))
    axis.set_facecolor("#dddddd")
    image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = "–" if value is np.ma.masked else f"{value:.2f}".removeprefix("0")
        axis.text(column, row, text, ha="center", va="center", fontsize=SMALL_SIZE, color=INK if text == "–" or value > 0.6 else "white")
    if heat.marked is not None:
        row, column = heat.marked
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=2))
    axis.set_xticks(range(len(heat.column_labels)), heat.column_labels)
    axis.set_yticks(range(len(heat.row_labels)), heat.row_labels)
    axis.set_title(heat.title, fontsize=LABEL_SIZE, color=INK)
    axis.set_xlabel(heat.column_name, fontsize=SMALL_SIZE, color=INK)
    axis.set_ylabel(heat.row_name, fontsize=SMALL_SIZE, color=INK)
    axis.tick_params(labelsize=SMALL_SIZE, length=0, colors=INK)
    axis.spines[:].set_visible(False)
    return image


def latent_grid(pixels: int = 200) -> torch.Tensor:
    """Latents [pixels * pixels, 2] on a square lattice over the prior's disc, row by row from below: where `expansion_panels` wants values."""
    line = torch.linspace(-PRIOR_RADIUS, PRIOR_RADIUS, pixels)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=2).view(-1, 2)


def expansion_panels(fields: Mapping[str, torch.Tensor], title: str, caption: str = "") -> Figure:
    """The latent plane per method, dark where the generator squeezes it to a line or a point, orange lines where it folds over.

    Args:
        fields: {method: smaller singular value of the Jacobian at `latent_grid`, with the determinant's sign [pixels * pixels]}.
        title, caption: above and below; the circles hold 39% and 86% of the prior.
    """
    logarithms = {method: field.double().abs().clamp(min=1e-6).log10() for method, field in fields.items()}
    low, high = np.percentile(torch.cat(list(logarithms.values())).numpy(), [2, 98])
    figure = new_figure(WIDTH / (len(fields) + 0.3) + 0.7, title, caption)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    box = (-PRIOR_RADIUS, PRIOR_RADIUS, -PRIOR_RADIUS, PRIOR_RADIUS)
    for axis, (method, field) in zip(axes, fields.items()):
        pixels = math.isqrt(len(field))
        image = axis.imshow(logarithms[method].view(pixels, pixels).numpy(), extent=box, origin="lower", cmap="cividis", vmin=low, vmax=high)
        if field.min() < 0 < field.max():
            axis.contour(field.view(pixels, pixels).numpy(), levels=[0], extent=box, colors=PALETTE[1], linewidths=0.8)
        for radius in (1, 2):
            axis.add_patch(Circle((0, 0), radius, fill=False, edgecolor="white", linewidth=0.6, linestyle=(0, (3, 3))))
        axis.set_title(method, fontsize=LABEL_SIZE, color=INK)
        plain_axes(axis)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=30)
    bar.set_label("log10 of the smaller singular value", fontsize=SMALL_SIZE)
    bar.ax.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5)
    return figure
