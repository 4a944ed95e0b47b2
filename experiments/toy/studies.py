"""The studies of the paper's toy section: a distribution with the one set of settings that all methods share on it.

The settings were chosen on seeds from 1000 up, by looking at all methods at once, and fixed before the reported seeds (0 and up) were run.
"""

from __future__ import annotations

import dataclasses

from dnnlib import UserError
from experiments.toy.distributions import GRID, PACGAN_GRID, PACGAN_RING, RING, VERTICAL, VERTICAL_FAR, Target
from experiments.toy.methods import Settings


@dataclasses.dataclass(frozen=True)
class Study:
    """A distribution and what all methods share on it.

    Attributes:
        name: how options and files call it.
        title: for headings.
        distribution: the target.
        settings: weights, optimiser and length of the training.
    """

    name: str
    title: str
    distribution: Target
    settings: Settings


_ALL = (
    Study("vertical", "Vertical Gaussians", VERTICAL, Settings(r1_gamma=0.2)),
    Study("vertical-far", "Vertical Gaussians, further apart", VERTICAL_FAR, Settings(r1_gamma=0.2)),
    Study("ring", "Ring", RING, Settings(lr=5e-4, r1_gamma=0.03)),
    Study("grid", "Grid of 25 Gaussians", GRID, Settings(steps=8000, r1_gamma=0.01)),
    Study("pacgan-ring", "PacGAN's ring of 8 Gaussians", PACGAN_RING, Settings(steps=4000)),
    Study("pacgan-grid", "PacGAN's grid of 25 Gaussians", PACGAN_GRID, Settings(steps=4000)),
)
STUDIES = {study.name: study for study in _ALL}


def find_study(name: str) -> Study:
    """The study of that name. Raises UserError if there is none."""
    if name not in STUDIES:
        raise UserError(f"there is no study {name!r}; choose among {', '.join(STUDIES)}")
    return STUDIES[name]
