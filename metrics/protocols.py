"""The named metrics: which detector looks at how many real and generated images, and what is computed from its features.

A metric's name pins its protocol, one entry of METRICS. Numbers follow StyleGAN2-ADA where the name is StyleGAN2-ADA's. Choosing entries by
name and running them is `metrics.registry`'s work; the arithmetic is in one file per metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from metrics.classwise import classwise_coverage, classwise_fid
from metrics.collectors import Collector, Moments, Rows
from metrics.collision import collision_within, near_share, typical_radius
from metrics.detectors import Detector
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import kernel_distance
from metrics.latent_identification import latent_identification
from metrics.nearest import nearest_distances
from metrics.perceptual_path_length import PATH_LENGTHS, perceptual_path_length
from metrics.prdc import prdc_of_balls
from metrics.sides import SELECTION_SEED, GeneratorSide

PROBE_STEPS, PROBE_BATCH, PROBE_HELD_OUT = 2000, 64, 160


@dataclasses.dataclass
class Inputs:
    """What a metric is computed from.

    Attributes:
        real: collected tensors of the real images ({} where the protocol needs none).
        fake: collected tensors of the generated images.
        seed: of what the metric draws itself.
        device: where distances are computed.
        balls: (k, closed) of all metrics on the same tensors.
        shared: results that these metrics share.
        labels: gives the labels of the real and of the generated images.
        generator: the network, where there is one.
        detector: the network that looks at the images, where there is one.
        notes: what the metric found that its figures are to be read against; it goes on record with the protocol.
    """

    real: dict[str, torch.Tensor]
    fake: dict[str, torch.Tensor]
    seed: int
    device: torch.device
    balls: Sequence[tuple[int, bool]] = ()
    shared: dict = dataclasses.field(default_factory=dict)
    labels: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
    generator: GeneratorSide | None = None
    detector: Detector | None = None
    notes: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One named metric.

    Attributes:
        name: as asked for, also the stem of its result keys.
        detector: the protocol's own detector; None where none looks.
        collect: Moments or Rows, gathered from both sides; None where the metric runs the generator itself, on every rank.
        figures: computes {suffix of the result key: value}.
        max_real: real images at most; None takes all, 0 none.
        sampled: of a larger data set take a random `max_real` images, the same ones always; else the first in order, as StyleGAN2-ADA, which on
            a data set sorted by class are images of a few classes only.
        num_fake: generated images (of path length: pairs of them).
        matched: as many images on either side, at most `num_fake`.
        keep_flips: mirrored copies of the data set count as real images, where the data set has them.
        output: what the detector gives.
        k: nearest neighbours, where the metric has them.
        closed: whether a point on the rim of a neighbourhood lies inside (`<=`, StyleGAN2-ADA) or not (`<`, Naeem et al.).
        has_coverage: whether coverage is among the figures, so that its ceiling belongs on record.
        needs_generator: whether features are not enough.
        needs_classes: whether the images must have labels.
        shuffled: images of a folder, which stand in the order of their names, are taken in random order, always the same: the figure is of parts
            of them, which shall not be its sub-folders.
        parameters: what else the figure depends on, as it goes on record.
        chance: the figure where images have nothing to do with their latents; None where that is not known before.
    """

    name: str
    detector: str | None
    collect: Callable[[int], Collector] | None
    figures: Callable[[Inputs, Protocol], dict[str, float]]
    max_real: int | None = None
    num_fake: int = 50_000
    sampled: bool = False
    matched: bool = False
    keep_flips: bool = False
    output: str = "features"
    k: int | None = None
    closed: bool = False
    has_coverage: bool = False
    needs_generator: bool = False
    needs_classes: bool = False
    shuffled: bool = False
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    chance: float | None = None

    @property
    def needs_real(self) -> bool:
        """Whether real images are looked at."""
        return self.max_real != 0

    def counts(self, real: int | None, fake: int | None = None) -> tuple[int, int]:
        """(real, generated) images of this protocol, given how many are available; None: as many as wanted, on either side."""
        num_real = self.num_fake if real is None else real
        num_real = num_real if self.max_real is None else min(num_real, self.max_real)
        if not self.matched:
            return num_real, self.num_fake if fake is None else min(self.num_fake, fake)
        matched = num_real if fake is None else min(num_real, fake)
        return matched, matched


def _fid(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    real, fake = inputs.real, inputs.fake
    return {"": frechet_distance(real["mu"], real["sigma"], fake["mu"], fake["sigma"])}


def _kid(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    sampling = {"num_subsets": 100, "max_subset_size": 1000, "seed": inputs.seed}
    return {"": kernel_distance(inputs.real["rows"], inputs.fake["rows"], **sampling, device=inputs.device)}


def _is(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    rows = inputs.fake["rows"]
    if inputs.generator is None and protocol.shuffled:
        rows = rows[torch.from_numpy(np.random.RandomState(SELECTION_SEED).permutation(len(rows)))]
    mean, deviation = inception_score(rows, num_splits=10)
    return {"_mean": mean, "_std": deviation}


def _path_length(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    side = inputs.generator
    options = {**protocol.parameters, "num_samples": protocol.num_fake, "seed": inputs.seed, "truncation_psi": side.truncation_psi}
    return {"": perceptual_path_length(side.G, side.given, inputs.device, distance=inputs.detector, **options)}


def _pairing_accuracy(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    side = inputs.generator
    options = {"generator_batch": side.batch, "seed": inputs.seed, "truncation_psi": side.truncation_psi}
    return {"": latent_identification(side.G, side.given, inputs.device, **protocol.parameters, **options)}


def _collision(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    real, fake = inputs.real["rows"].to(inputs.device), inputs.fake["rows"].to(inputs.device)
    radius = typical_radius(real, protocol.k)
    inputs.notes["among_real"] = near_share(real, radius)
    return {"": collision_within(inputs.generator.source.inputs(0, len(fake))[0], fake, radius)}


def _nearest(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    found = nearest_distances(inputs.real["rows"], inputs.fake["rows"], device=inputs.device)
    return {f"_{name}": value for name, value in found.items()}


def _classwise_fid(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    real, fake = inputs.labels()
    return classwise_fid(inputs.real["rows"], real, inputs.fake["rows"], fake)


def _classwise_coverage(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    real, fake = inputs.labels()
    return classwise_coverage(inputs.real["rows"], real, inputs.fake["rows"], fake, protocol.k, device=inputs.device)


def _neighbours(*names: str, suffixes: bool = True) -> Callable[[Inputs, Protocol], dict[str, float]]:
    """Figures of neighbourhoods: those in `names`, each with its name as suffix, or a single one without."""

    def figures(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
        own = (protocol.k, protocol.closed)
        if own not in inputs.shared:
            real, fake = inputs.real["rows"], inputs.fake["rows"]
            # One search for neighbours serves every metric on these rows; a k that they are too few for must not take the others along.
            balls = list(dict.fromkeys([own, *(ball for ball in inputs.balls if ball[0] < min(len(real), len(fake)))]))
            inputs.shared.update(zip(balls, prdc_of_balls(real, fake, balls, device=inputs.device)))
        return {f"_{name}" if suffixes else "": inputs.shared[own][name] for name in names}

    return figures


_PR = _neighbours("precision", "recall")
_PRDC = _neighbours("precision", "recall", "density", "coverage")
_COVERAGE = _neighbours("coverage", suffixes=False)
_DENSITY = _neighbours("density", suffixes=False)

_ENTRIES = (
    Protocol("fid50k_full", "inception", Moments, _fid),
    Protocol("fid50k", "inception", Moments, _fid, max_real=50_000, keep_flips=True),
    Protocol("fid10k", "inception", Moments, _fid, max_real=10_000, sampled=True, num_fake=10_000),
    Protocol("kid50k_full", "inception", Rows, _kid, max_real=1_000_000),
    Protocol("kid50k", "inception", Rows, _kid, max_real=50_000, keep_flips=True),
    Protocol("kid10k", "inception", Rows, _kid, max_real=10_000, sampled=True, num_fake=10_000),
    Protocol("is50k", "inception", Rows, _is, max_real=0, output="probabilities", shuffled=True),
    Protocol("pr50k3_full", "vgg16", Rows, _PR, max_real=200_000, k=3, closed=True),
    Protocol("pr50k3", "vgg16", Rows, _PR, max_real=50_000, keep_flips=True, k=3, closed=True),
    Protocol("coverage", "vgg16", Rows, _COVERAGE, max_real=50_000, sampled=True, matched=True, k=3, has_coverage=True),
    Protocol("density50k3", "vgg16", Rows, _DENSITY, max_real=50_000, sampled=True, matched=True, k=3),
    Protocol("prdc50k3", "vgg16", Rows, _PRDC, max_real=50_000, sampled=True, matched=True, k=3, has_coverage=True),
    Protocol("prdc10k5", "vgg16", Rows, _PRDC, max_real=10_000, sampled=True, matched=True, k=5, has_coverage=True),
    Protocol("nearest10k", "vgg16", Rows, _nearest, max_real=10_000, sampled=True, matched=True),
    Protocol("fid10k_classwise", "inception", Rows, _classwise_fid, max_real=10_000, sampled=True, num_fake=10_000, needs_classes=True),
    Protocol("coverage_classwise", "vgg16", Rows, _classwise_coverage, max_real=50_000, sampled=True, matched=True, k=3, needs_classes=True),
    Protocol("collision", "vgg16", Rows, _collision, max_real=10_000, sampled=True, num_fake=10_000, k=3, needs_generator=True),
    Protocol(
        "pairing_acc",
        None,
        None,
        _pairing_accuracy,
        max_real=0,
        num_fake=(PROBE_STEPS + PROBE_HELD_OUT) * PROBE_BATCH,
        needs_generator=True,
        parameters={"steps": PROBE_STEPS, "batch": PROBE_BATCH, "held_out": PROBE_HELD_OUT},
        chance=1 / PROBE_BATCH,
    ),
    *(
        Protocol(
            name,
            "vgg16",
            None,
            _path_length,
            max_real=0,
            output="lpips",
            needs_generator=True,
            parameters={"epsilon": 1e-4, "batch": 2, **options},
        )
        for name, options in PATH_LENGTHS.items()
    ),
)

METRICS: dict[str, Protocol] = {entry.name: entry for entry in _ENTRIES}
ALIASES = {"coverage50k3": "coverage"}
