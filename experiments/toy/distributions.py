"""Target distributions in the plane, each with exact samples, density, support and modes."""

from __future__ import annotations

import dataclasses
import math

import torch

SUPPORT_STDS = 3.0  # a point is on the support, or of high quality, within so many standard deviations (Lin et al. 2018, PacGAN)


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Round Gaussians of one standard deviation and equal weight.

    Attributes:
        name: for headings.
        centres: (x, y) of each mode.
        std: standard deviation of each mode, along both axes.
    """

    name: str
    centres: tuple[tuple[float, float], ...]
    std: float

    @property
    def modes(self) -> torch.Tensor:
        """Centres [K, 2]."""
        return torch.tensor(self.centres)

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """n points [n, 2], float32."""
        modes = self.modes
        chosen = torch.randint(len(modes), [n], generator=generator)
        return modes[chosen] + self.std * torch.randn([n, 2], generator=generator)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) [N] of points [N, 2], in float64."""
        squared = torch.cdist(x.double(), self.modes.double()).square() / self.std**2
        return (-squared / 2).logsumexp(dim=1) - math.log(len(self.centres) * 2 * math.pi * self.std**2)

    def nearest_mode(self, x: torch.Tensor) -> torch.Tensor:
        """Index of the nearest mode [N] of points [N, 2]."""
        return torch.cdist(x.double(), self.modes.double()).argmin(dim=1)

    def on_support(self, x: torch.Tensor) -> torch.Tensor:
        """Whether points [N, 2] lie within three standard deviations of a mode; 98.9% of real ones do."""
        return torch.cdist(x.double(), self.modes.double()).amin(dim=1) <= SUPPORT_STDS * self.std


@dataclasses.dataclass(frozen=True)
class Ring:
    """A circle of uniform density with Gaussian noise across it. Its "modes" are equal arcs, which all hold the same mass.

    Attributes:
        name: for headings.
        radius: of the circle.
        std: standard deviation of the distance from the centre.
        arcs: number of arcs.
    """

    name: str
    radius: float
    std: float
    arcs: int = 36

    @property
    def modes(self) -> torch.Tensor:
        """Middles of the arcs [arcs, 2]."""
        angles = (torch.arange(self.arcs) + 0.5) * (2 * math.pi / self.arcs)
        return self.radius * torch.stack([angles.cos(), angles.sin()], dim=1)

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """n points [n, 2], float32."""
        angles = 2 * math.pi * torch.rand([n], generator=generator)
        radii = self.radius + self.std * torch.randn([n], generator=generator)
        return radii[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) [N] of points [N, 2], in float64. A negative radius comes out on the other side, so both signs count."""
        r = x.double().norm(dim=1)
        radial = torch.logaddexp(-((r - self.radius) ** 2) / (2 * self.std**2), -((r + self.radius) ** 2) / (2 * self.std**2))
        return radial - math.log(self.std * math.sqrt(2 * math.pi)) - torch.log(2 * math.pi * r)

    def nearest_mode(self, x: torch.Tensor) -> torch.Tensor:
        """Index of the arc [N] that points [N, 2] are in, by their angle."""
        turns = torch.atan2(x[:, 1].double(), x[:, 0].double()) / (2 * math.pi) % 1.0
        return (turns * self.arcs).long().clamp(max=self.arcs - 1)

    def on_support(self, x: torch.Tensor) -> torch.Tensor:
        """Whether points [N, 2] lie within three standard deviations of the circle; 99.7% of real ones do."""
        return (x.double().norm(dim=1) - self.radius).abs() <= SUPPORT_STDS * self.std


Target = GaussianMixture | Ring


def grid(name: str, side: int, spacing: float, std: float) -> GaussianMixture:
    """side x side Gaussians, centred on the origin."""
    offsets = [(index - (side - 1) / 2) * spacing for index in range(side)]
    return GaussianMixture(name, tuple((x, y) for x in offsets for y in offsets), std)


def circle_of_gaussians(name: str, number: int, radius: float, std: float) -> GaussianMixture:
    """Gaussians at equal angles on a circle, the first on the x axis."""
    angles = [2 * math.pi * index / number for index in range(number)]
    return GaussianMixture(name, tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles), std)


# The paper gives no sizes; those of Lin et al. (PacGAN, NeurIPS 2018, section 4.1) are published.
VERTICAL = GaussianMixture("Vertical Gaussians", tuple((0.0, 2.0 * index) for index in range(-2, 3)), std=0.3)
VERTICAL_FAR = dataclasses.replace(VERTICAL, name="Vertical Gaussians, further apart", std=0.2)
RING = Ring("Ring", radius=1.0, std=0.05)
GRID = grid("Grid of 25 Gaussians", 5, spacing=0.5, std=0.06)
PACGAN_RING = circle_of_gaussians("PacGAN's ring of 8 Gaussians", 8, radius=1.0, std=0.01)
PACGAN_GRID = grid("PacGAN's grid of 25 Gaussians", 5, spacing=2.0, std=0.05)
