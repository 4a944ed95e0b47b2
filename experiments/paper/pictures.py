"""Which pictures belong to which experiment, drawn from its parts; seed 0 wherever one model is shown."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from matplotlib.figure import Figure

from experiments.paper.toy_experiments import Experiment
from experiments.toy.figures import Panel, film_strip, save_figure, scatter_panels
from experiments.toy.figures_charts import expansion_panels, latent_grid, ring_density
from experiments.toy.figures_training import training_curves
from experiments.toy.figures_transport import transport_panels
from experiments.toy.measures import samples_and_jacobians, singular_values
from experiments.toy.methods import find_method
from experiments.toy.models import Stack, apply_stack
from experiments.toy.parts import Part
from experiments.toy.studies import Study, find_study

SHOWN = 10_000  # samples per panel
SHOWN_IN_FILM = 3_000
LATENT_SEED = 1

Parts = Mapping[str, Sequence[Part]]


def draw(experiment: Experiment, parts: Parts, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws an experiment's pictures as OUT/NAME.png and .svg, or OUT/NAME-KIND.png and .svg where there are several.

    Args:
        experiment: what was run.
        parts: method -> models in the order of the seeds.
        out: an existing folder.

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be written.
    """
    study = find_study(experiment.study)
    files = []
    for kind in PICTURES[experiment.name]:
        stem = experiment.name if kind == PICTURES[experiment.name][0] else f"{experiment.name}-{kind}"
        files += save_figure(DRAWN_BY[kind](study, parts), out / stem)
    return files


def latents(n: int) -> torch.Tensor:
    """The latents [n, 2] that all pictures show."""
    return torch.randn([n, 2], generator=torch.Generator().manual_seed(LATENT_SEED))


def panel(part: Part, G: Stack, n: int) -> Panel:
    """What a generator of a model makes of the shown latents."""
    z = latents(n)
    return Panel(part.method, apply_stack(G, z.unsqueeze(0))[0], z)


def measured_panels(parts: Parts) -> list[Panel]:
    """One panel per method: its first seed's samples, with that model's figures."""
    letters = {"P": "precision", "R": "recall", "C": "coverage"}
    panels = []
    for part in (own[0] for own in parts.values()):
        shown = panel(part, part.G, SHOWN)
        panels.append(Panel(shown.title, shown.samples, shown.latents, {letter: part.measures[name] for letter, name in letters.items()}))
    return panels


def _scatter(study: Study, parts: Parts) -> Figure:
    return scatter_panels(measured_panels(parts), study.distribution, study.title)


def _transport(study: Study, parts: Parts) -> Figure:
    return transport_panels(measured_panels(parts), study.distribution, f"{study.title}: where the latents go")


def _film(study: Study, parts: Parts) -> Figure:
    rows = {}
    for method, own in parts.items():
        stacks = {**own[0].snapshots, study.settings.steps: own[0].G}
        rows[method] = {step: panel(own[0], stack, SHOWN_IN_FILM) for step, stack in stacks.items()}
    return film_strip(rows, study.distribution, f"{study.title}: the same latents during training")


def _density(study: Study, parts: Parts) -> Figure:
    z = latents(SHOWN).unsqueeze(0)
    samples = {method: torch.cat([apply_stack(part.G, z) for part in own]) for method, own in parts.items()}
    return ring_density(samples, study.distribution, f"{study.title}: density along it, one line per seed")


def _expansion(study: Study, parts: Parts) -> Figure:
    z, fields = latent_grid(), {}
    for method, own in parts.items():
        _, jacobian = samples_and_jacobians(own[0].G, z)
        fields[method] = singular_values(jacobian)[1][0]
    return expansion_panels(fields, f"{study.title}: how far latents are kept apart")


def _weights(study: Study, parts: Parts) -> Figure:
    def curves(name: str, methods: Iterable[str]) -> dict[str, torch.Tensor]:
        return {method: torch.stack([part.history[name] for part in parts[method]]) for method in methods}

    found = {"weight lambda": curves("pairing weight", parts)}
    batch = study.settings.batch
    accuracies = {"infonce": f"latent found among {batch}\nchance {1 / batch:.3f}", "binary": "pairs told from mismatches\nchance 0.5"}
    for pairing, says in accuracies.items():  # of different tasks, so never on one axis
        if methods := [method for method in parts if find_method(method).pairing == pairing]:
            found[says] = curves("accuracy", methods)
    found["pairing loss x lambda"] = curves("pairing", parts)
    steps = next(iter(parts.values()))[0].history["step"]
    return training_curves(steps, found, f"{study.title}: pairing during training, one line per seed")


PICTURES: dict[str, tuple[str, ...]] = {
    "table1": ("film", "expansion"),
    "table2": ("film", "expansion"),
    "tableA": ("scatter", "film"),
    "figure1": ("transport", "scatter"),
    "far": ("transport", "film"),
    "figure2": ("scatter", "density"),
    "figure6": ("scatter",),
    "figure7": ("scatter",),
    "rpgan": ("scatter", "density"),
    "pacgan-ring": ("scatter",),
    "pacgan-grid": ("scatter",),
    "adaptive": ("weights", "scatter"),
    "variants": ("scatter", "weights"),
}
DRAWN_BY: dict[str, Callable[[Study, Parts], Figure]] = {
    "scatter": _scatter,
    "transport": _transport,
    "film": _film,
    "density": _density,
    "expansion": _expansion,
    "weights": _weights,
}
