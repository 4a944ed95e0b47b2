"""Scatter figures of the plane: samples over their target, coloured by the latent that made them, and how any figure is saved.

Figures are built without pyplot, so none is kept open behind the caller's back. Those of transport and of modes are in figures_transport, curves
and heat maps in figures_charts.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dnnlib import UserError, atomic_path, atomic_write_text
from experiments.toy.distributions import Target

WIDTH = 9.0  # inches
DPI = 130  # of the PNG, and of what is rasterised inside the SVG
INK, FAINT = "#222222", "#8a8a8a"
TITLE_SIZE, LABEL_SIZE, SMALL_SIZE = 11, 8.5, 7
HALO = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}  # behind text over points
PRIOR_RADIUS = 3.2  # a standard normal latent is inside with probability 0.994
TARGET_POINTS = 10_000
TARGET_SEED = 0

# OKLab to linear sRGB (B. Ottosson, "A perceptual color space for image processing", 2020): equal steps look equally large.
OKLAB_TO_LMS = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
LMS_TO_RGB = np.array(
    [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965], [-0.0041960863, -0.7034186147, 1.7076147010]]
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one method made.

    Attributes:
        title: the method's name.
        samples: [N, 2].
        latents: [N, 2], row i made sample i.
        numbers: shown under the title, such as {"P": 0.97, "R": 0.95, "C": 0.86}.
    """

    title: str
    samples: torch.Tensor
    latents: torch.Tensor
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The title over its numbers."""
        return "\n".join(filter(None, [self.title, self.written_numbers]))

    @property
    def written_numbers(self) -> str:
        """The numbers in one line, without the leading zero as in the paper's tables."""
        return "  ".join(f"{name} {value:.2f}".replace(" 0.", " .") for name, value in self.numbers.items())


@dataclasses.dataclass(frozen=True)
class Extent:
    """The part of the plane that all panels of a figure show."""

    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def aspect(self) -> str:
        """"equal", unless the target is so thin that its inside would not be seen."""
        ratio = (self.y[1] - self.y[0]) / (self.x[1] - self.x[0])
        return "equal" if 0.5 <= ratio <= 2 else "auto"

    def share_outside(self, samples: torch.Tensor) -> float:
        """Share of samples [N, 2] that are not shown."""
        inside = (samples >= torch.tensor([self.x[0], self.y[0]])) & (samples <= torch.tensor([self.x[1], self.y[1]]))
        return 1 - float(inside.all(dim=1).double().mean())


def latent_colours(z: torch.Tensor) -> np.ndarray:
    """A colour for every latent: the hue is its direction, dark grey in the middle and bright and saturated far out.

    Brightness and saturation follow the share of the prior that is nearer to the middle, so all colours are equally frequent in a faithful map.

    Args:
        z: latents [N, 2] of a standard normal prior.

    Returns:
        sRGB [N, 3] between 0 and 1.

    Raises:
        UserError: the latents are not in the plane.
    """
    if z.ndim != 2 or z.shape[1] != 2:
        raise UserError(f"latents of shape {list(z.shape)} cannot be coloured; the figures need z_dim 2")
    points = z.double().numpy()
    angle = np.arctan2(points[:, 1], points[:, 0])
    inner = 1 - np.exp(-np.square(points).sum(axis=1) / 2)
    lightness, chroma = 0.35 + 0.40 * inner, 0.02 + 0.16 * inner
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    linear = ((lab @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def target_extent(distribution: Target) -> Extent:
    """The target's box, from 10,000 samples, with a margin of a tenth; a thin target gets relatively more on its short side."""
    real = target_sample(distribution)
    low, high = real.amin(dim=0), real.amax(dim=0)
    margin = ((high - low) * (high - low).amax()).sqrt() / 10
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    return Extent((x0, x1), (y0, y1))


def target_sample(distribution: Target) -> torch.Tensor:
    """The real samples [10000, 2] that figures show: always the same."""
    return distribution.sample(TARGET_POINTS, torch.Generator().manual_seed(TARGET_SEED))


def scatter_panels(panels: Sequence[Panel], distribution: Target, title: str, caption: str = "") -> Figure:
    """Samples of each method over the target in one shared scale, as in the paper's Figures 2, 6 and 7.

    The first panel is the key: the prior, each latent in its colour; the second is the target. Where colours mix, far latents go to one place;
    where a colour has no room, its latents are squeezed.

    Args:
        panels: one per method.
        distribution: target.
        title, caption: above and below.
    """
    extent = target_extent(distribution)
    count = len(panels) + 2
    columns = count if extent.aspect == "auto" else min(count, 3 if count in (3, 5, 6) else 4)
    rows = math.ceil(count / columns)
    height = 4.2 if extent.aspect == "auto" else WIDTH / columns + 0.3
    figure = new_figure(rows * height + 0.55, title, caption)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    draw_prior(axes[0])
    axes[0].set_title("latents and their colours", fontsize=LABEL_SIZE, color=INK)
    draw_target(axes[1], distribution, extent)
    axes[1].scatter(*target_sample(distribution).T.numpy(), s=1.2, color=FAINT, linewidths=0, rasterized=True)
    axes[1].set_title("target", fontsize=LABEL_SIZE, color=INK)
    for axis, panel in zip(axes[2:], panels):
        draw_panel(axis, panel, distribution, extent)
        axis.set_title(panel.heading, fontsize=LABEL_SIZE, color=INK)
        axis.tick_params(labelleft=axis.get_subplotspec().is_first_col())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure


def film_strip(rows: Mapping[str, Mapping[int, Panel]], distribution: Target, title: str, caption: str = "") -> Figure:
    """Training as a film: a row per method, a column per training step, all in one scale and coloured by latent.

    Args:
        rows: {method: {step: what it made then}}; a Panel's title is not shown, its numbers are.
        distribution: target.

    Raises:
        UserError: the methods were not recorded at the same steps.
    """
    steps = [list(films) for films in rows.values()]
    if any(other != steps[0] for other in steps):
        raise UserError(f"a film strip needs every method at the same steps, found {', '.join(map(str, steps))}")
    extent = target_extent(distribution)
    side = WIDTH / (len(steps[0]) + 0.3)
    figure = new_figure(len(rows) * side * (1.0 if extent.aspect == "equal" else 1.25) + 0.9, title, caption)
    axes = figure.subplots(len(rows), len(steps[0]), squeeze=False)
    for row, (method, films) in enumerate(rows.items()):
        for axis, (step, panel) in zip(axes[row], films.items()):
            draw_panel(axis, panel, distribution, extent, size=0.7)
            axis.set(xticks=[], yticks=[])
            heading = [f"step {step:,}" if row == 0 else "", panel.written_numbers]
            axis.set_title("\n".join(filter(None, heading)), fontsize=SMALL_SIZE, color=INK, pad=3)
        axes[row, 0].set_ylabel(method, fontsize=LABEL_SIZE, color=INK)
    return figure


def new_figure(height: float, title: str, caption: str = "") -> Figure:
    """An empty figure of the common width, `height` inches high, with its title and, in small print, its caption."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, fontsize=TITLE_SIZE, color=INK)
    if caption:
        figure.supxlabel(caption, fontsize=SMALL_SIZE, color="#555555")
    return figure


def draw_panel(axis: Axes, panel: Panel, distribution: Target, extent: Extent, size: float = 1.6) -> None:
    """Samples coloured by latent over the target, with the share of samples outside in the corner. `size` of a point in square points."""
    draw_target(axis, distribution, extent)
    axis.scatter(*panel.samples.T.numpy(), s=size, c=latent_colours(panel.latents), linewidths=0, rasterized=True)
    outside = extent.share_outside(panel.samples)
    if outside:
        text = f"{outside:.1%} outside" if outside >= 0.001 else "<0.1% outside"
        axis.text(0.97, 0.01, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=SMALL_SIZE, color="#555555", bbox=HALO)


def draw_target(axis: Axes, distribution: Target, extent: Extent) -> None:
    """The target as a light grey cloud, and the axes' limits and look."""
    axis.imshow(
        density_image(distribution, extent),
        extent=(*extent.x, *extent.y),
        origin="lower",
        cmap="Greys",
        vmin=0,
        vmax=1,
        aspect=extent.aspect,
        interpolation="bilinear",
    )
    axis.set(xlim=extent.x, ylim=extent.y)
    plain_axes(axis)


def density_image(distribution: Target, extent: Extent, pixels: int = 400) -> np.ndarray:
    """Grey [pixels, pixels] between 0 and 0.3: the target's density up to its highest value, by its square root so that tails are seen."""
    x, y = torch.linspace(*extent.x, pixels), torch.linspace(*extent.y, pixels)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2).view(-1, 2)
    log_density = distribution.log_density(points).view(pixels, pixels)
    return 0.3 * ((log_density - log_density.max()) / 2).exp().numpy()


def draw_prior(axis: Axes, points: int = 5000) -> None:
    """The colour key: latents of the standard normal prior, each in its colour."""
    z = torch.randn([points, 2], generator=torch.Generator().manual_seed(TARGET_SEED))
    axis.scatter(*z.T.numpy(), s=1.6, c=latent_colours(z), linewidths=0, rasterized=True)
    axis.set(xlim=(-PRIOR_RADIUS, PRIOR_RADIUS), ylim=(-PRIOR_RADIUS, PRIOR_RADIUS), aspect="equal")
    plain_axes(axis)


def plain_axes(axis: Axes, locate: bool = True) -> None:
    """Small ticks, few of them unless they are set already (`locate` False), and a thin frame."""
    if locate:
        axis.locator_params(nbins=4)
    axis.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5, colors="#555555")
    for spine in axis.spines.values():
        spine.set(linewidth=0.5, color=FAINT)


def save_figure(figure: Figure, stem: pathlib.Path) -> list[pathlib.Path]:
    """Writes stem.png and stem.svg, each whole or not at all; the same data give the same bytes.

    Returns:
        The two paths.

    Raises:
        UserError: the folder is missing or not writable.
    """
    png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with atomic_path(png) as temporary:
        temporary.write_bytes(smaller_png(drawn.getvalue()))
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "toy"}):
        figure.savefig(text, format="svg", dpi=DPI, metadata={"Date": None})
    atomic_write_text(svg, re.sub(r"(?<=data:image/png;base64,)[\w+/=\s]+", _smaller_base64, text.getvalue()))
    return [png, svg]


def smaller_png(data: bytes) -> bytes:
    """A PNG with 256 colours of its own: clouds of coloured points take a third of the room and look the same."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        # With alpha Pillow divides the colours by an octree, which keeps rare hues; its median cut for RGB spends them on the greys of the page.
        image.convert("RGBA").quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def _smaller_base64(found: re.Match[str]) -> str:
    return base64.b64encode(smaller_png(base64.b64decode(found[0]))).decode()
