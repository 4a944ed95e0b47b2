"""The toy experiments of the paper and this project's additions to them, as data: one entry each. `experiments.paper.run` runs them."""

from __future__ import annotations

import dataclasses

from dnnlib import UserError
from experiments.paper import numbers
from experiments.paper.numbers import Figures

PRDC = ("precision", "recall", "coverage", "density")
MANY_TO_ONE = ("collision", "squeeze", "folded", "identification")
MODES = ("modes", "thinnest mode", "high quality", "reverse KL")
OF_MIXTURES = (*PRDC, *MODES, *MANY_TO_ONE)

FOUR = ("GAN", "GAN+R1", "GAN+Pairing", "GAN+Pairing+R1")
GRID_ROWS = ("GAN", "GAN+R1", "GAN+Pairing", "GAN+Pairing+R1", "MS-GAN+R1")
PACGAN_ROWS = ("GAN", "PacGAN2", "GAN+R1", "GAN+Pairing", "GAN+Pairing+R1")
PACGAN_PAIRS = (("GAN+Pairing", "GAN"), ("GAN+Pairing", "PacGAN2"), ("GAN+R1", "GAN"), ("GAN+Pairing+R1", "GAN+R1"))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One table or figure: methods compared on one study.

    Attributes:
        name: how the command and its files call it.
        title: one sentence.
        study: name of the distribution with its settings (experiments.toy.studies).
        methods: rows, in order (experiments.toy.methods).
        columns: figures that the table shows, in order; the result file holds all.
        paper: published figures of those rows, where there are any.
        source: where they stand; empty without any.
        claims: ids of the claims to judge (experiments.paper.claims).
        aims: whether to hold our means against the published ones.
        comparisons: pairs of methods whose differences are listed with their intervals.
    """

    name: str
    title: str
    study: str
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    paper: Figures = dataclasses.field(default_factory=dict)
    source: str = ""
    claims: tuple[str, ...] = ()
    aims: bool = False
    comparisons: tuple[tuple[str, str], ...] = ()


def _from_paper(figures: Figures, place: str, methods: tuple[str, ...]) -> dict:
    return {"paper": {method: figures[method] for method in methods if method in figures}, "source": f"{numbers.PAPER}, {place}"}


_ALL = (
    Experiment(
        "table1",
        "Table 1: four GANs learn a vertical mixture of Gaussians.",
        "vertical",
        FOUR,
        OF_MIXTURES,
        **_from_paper(numbers.TABLE1, "Table 1", FOUR),
        claims=("C1", "C1b", "C1b-shares"),
        aims=True,
    ),
    Experiment(
        "table2",
        "Table 2: four GANs learn a ring of uniform density.",
        "ring",
        FOUR,
        OF_MIXTURES,
        **_from_paper(numbers.TABLE2, "Table 2", FOUR),
        claims=("C2",),
        aims=True,
    ),
    Experiment(
        "tableA",
        "Appendix A: five GANs, mode seeking among them, learn a grid of 25 Gaussians.",
        "grid",
        GRID_ROWS,
        OF_MIXTURES,
        **_from_paper(numbers.TABLE_A, "Appendix A", GRID_ROWS),
        claims=("C3",),
        aims=True,
    ),
    Experiment(
        "figure1",
        "Figure 1: where the latents of four GANs go on the vertical mixture.",
        "vertical",
        FOUR,
        (*PRDC, "modes", "thinnest mode", *MANY_TO_ONE),
        **_from_paper(numbers.TABLE1, "Table 1", FOUR),
        claims=("C1b", "C1b-shares"),
    ),
    Experiment(
        "far",
        "Table 1 with the modes further apart: which methods starve a mode.",
        "vertical-far",
        FOUR,
        OF_MIXTURES,
        claims=("C1", "C1b", "C1b-shares"),
    ),
    Experiment(
        "figure2",
        "Figure 2: how four GANs fill the ring.",
        "ring",
        FOUR,
        (*PRDC, *MANY_TO_ONE),
        **_from_paper(numbers.TABLE2, "Table 2", FOUR),
    ),
    Experiment(
        "figure6",
        "Figure 6: how three GANs fill the grid.",
        "grid",
        ("GAN", "GAN+R1", "GAN+Pairing+R1"),
        (*PRDC, "modes", "thinnest mode", *MANY_TO_ONE),
        **_from_paper(numbers.TABLE_A, "Appendix A", ("GAN", "GAN+R1", "GAN+Pairing+R1")),
    ),
    Experiment(
        "figure7",
        "Figure 7: the grid under R3GAN, MS-GAN and Pairing-GAN.",
        "grid",
        ("R3GAN", "MS-GAN+R1", "GAN+Pairing+R1"),
        (*PRDC, "modes", "thinnest mode", *MANY_TO_ONE),
        **_from_paper(numbers.TABLE_A, "Appendix A", ("MS-GAN+R1", "GAN+Pairing+R1")),
        comparisons=(("GAN+Pairing+R1", "R3GAN"), ("GAN+Pairing+R1", "MS-GAN+R1")),
    ),
    Experiment(
        "rpgan",
        "From vanilla GAN to RpGAN on the ring, with and without pairing.",
        "ring",
        ("GAN", "RpGAN", "RpGAN+Pairing", "R3GAN", "R3GAN+Pairing"),
        OF_MIXTURES,
        **_from_paper(numbers.TABLE2, "Table 2", ("GAN",)),
        comparisons=(("RpGAN", "GAN"), ("RpGAN+Pairing", "RpGAN"), ("R3GAN+Pairing", "R3GAN")),
    ),
    Experiment(
        "pacgan-ring",
        "PacGAN's ring of 8 Gaussians: packing against pairing.",
        "pacgan-ring",
        PACGAN_ROWS,
        OF_MIXTURES,
        paper=numbers.PACGAN_RING,
        source=numbers.PACGAN,
        comparisons=PACGAN_PAIRS,
    ),
    Experiment(
        "pacgan-grid",
        "PacGAN's grid of 25 Gaussians: packing against pairing.",
        "pacgan-grid",
        PACGAN_ROWS,
        OF_MIXTURES,
        paper=numbers.PACGAN_GRID,
        source=numbers.PACGAN,
        comparisons=PACGAN_PAIRS,
    ),
    Experiment(
        "adaptive",
        "An adaptive pairing weight against the fixed one on the ring.",
        "ring",
        ("GAN+Pairing+R1", "GAN+Pairing(adaptive)+R1"),
        OF_MIXTURES,
        **_from_paper(numbers.TABLE2, "Table 2", ("GAN+Pairing+R1",)),
        comparisons=(("GAN+Pairing(adaptive)+R1", "GAN+Pairing+R1"),),
    ),
    Experiment(
        "variants",
        "Binary pairing against InfoNCE on the ring.",
        "ring",
        ("GAN+Pairing+R1", "GAN+Pairing(binary)+R1"),
        OF_MIXTURES,
        **_from_paper(numbers.TABLE2, "Table 2", ("GAN+Pairing+R1",)),
        comparisons=(("GAN+Pairing(binary)+R1", "GAN+Pairing+R1"),),
    ),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def choose_experiments(names: tuple[str, ...]) -> list[Experiment]:
    """The experiments of those names, without repetitions, or all of them for ("all",).

    Raises:
        UserError: an unknown name, or none at all.
    """
    if names == ("all",):
        return list(EXPERIMENTS.values())
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        found = f"there is no experiment {unknown[0]!r}" if unknown else "no experiment is named"
        raise UserError(f"{found}; choose among {', '.join(EXPERIMENTS)}, or all")
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]
