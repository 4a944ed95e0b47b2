"""The named metrics: which detector looks at how many real and generated images, and what is computed from its features.

A metric's name pins its protocol, one entry of METRICS. Numbers follow StyleGAN2-ADA where the name is StyleGAN2-ADA's. Choosing entries by
name and running them is `metrics.registry`'s work; the arithmetic is in one file per metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from metrics.features import Collector, Moments, Rows
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import kernel_distance
from metrics.prdc import compute_prdc

SELECTION_SEED = 0  # of sampled real images; part of the protocol, so not the metric seed


@dataclasses.dataclass
class Inputs:
    """What a metric is computed from.

    Attributes:
        real: collected tensors of the real images ({} where the protocol needs none).
        fake: collected tensors of the generated images.
        seed: of what the metric draws itself.
        device: where distances are computed.
        shared: results that metrics on the same tensors share.
    """

    real: dict[str, torch.Tensor]
    fake: dict[str, torch.Tensor]
    seed: int
    device: torch.device
    shared: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One named metric.

    Attributes:
        name: as asked for, also the stem of its result keys.
        detector: the protocol's own detector.
        collect: Moments or Rows, gathered from both sides.
        figures: computes {suffix of the result key: value}.
        max_real: real images at most; None takes all, 0 none.
        sampled: of a larger data set take a random `max_real` images, the same ones always; else the first in order, as StyleGAN2-ADA, which on
            a data set sorted by class are images of a few classes only.
        num_fake: generated images.
        matched: generate as many images as there are real ones, both at most `num_fake`.
        keep_flips: mirrored copies of the data set count as real images, where the data set has them.
        output: what the detector gives.
        k: nearest neighbours, where the metric has them.
        closed: whether a point on the rim of a neighbourhood lies inside (`<=`, StyleGAN2-ADA) or not (`<`, Naeem et al.).
        has_coverage: whether coverage is among the figures, so that its ceiling belongs on record.
    """

    name: str
    detector: str
    collect: Callable[[int], Collector]
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

    def counts(self, available: int) -> tuple[int, int]:
        """(real, generated) images of this protocol for a data set of `available` images."""
        num_real = available if self.max_real is None else min(self.max_real, available)
        return num_real, num_real if self.matched else self.num_fake


def selection(count: int, population: int | None) -> np.ndarray:
    """Which images of a data set stand for it: rising indices, int64 [count]; the first, or a random choice among `population`."""
    if population is None:
        return np.arange(count)
    return np.sort(np.random.RandomState(SELECTION_SEED).permutation(population)[:count])


def _fid(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    real, fake = inputs.real, inputs.fake
    return {"": frechet_distance(real["mu"], real["sigma"], fake["mu"], fake["sigma"])}


def _kid(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    return {"": kernel_distance(inputs.real["rows"], inputs.fake["rows"], num_subsets=100, max_subset_size=1000, seed=inputs.seed)}


def _is(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
    mean, deviation = inception_score(inputs.fake["rows"], num_splits=10)
    return {"_mean": mean, "_std": deviation}


def _neighbours(*names: str, suffixes: bool = True) -> Callable[[Inputs, Protocol], dict[str, float]]:
    """Figures of compute_prdc: those in `names`, each with its name as suffix, or a single one without."""

    def figures(inputs: Inputs, protocol: Protocol) -> dict[str, float]:
        key = (protocol.k, protocol.closed)
        if key not in inputs.shared:
            rows = inputs.real["rows"], inputs.fake["rows"]
            inputs.shared[key] = compute_prdc(*rows, protocol.k, closed=protocol.closed, device=inputs.device)
        return {f"_{name}" if suffixes else "": inputs.shared[key][name] for name in names}

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
    Protocol("is50k", "inception", Rows, _is, max_real=0, output="probabilities"),
    Protocol("pr50k3_full", "vgg16", Rows, _PR, max_real=200_000, k=3, closed=True),
    Protocol("pr50k3", "vgg16", Rows, _PR, max_real=50_000, keep_flips=True, k=3, closed=True),
    Protocol("coverage", "vgg16", Rows, _COVERAGE, max_real=50_000, sampled=True, matched=True, k=3, has_coverage=True),
    Protocol("density50k3", "vgg16", Rows, _DENSITY, max_real=50_000, sampled=True, matched=True, k=3),
    Protocol("prdc50k3", "vgg16", Rows, _PRDC, max_real=50_000, sampled=True, matched=True, k=3, has_coverage=True),
    Protocol("prdc10k5", "vgg16", Rows, _PRDC, max_real=10_000, sampled=True, matched=True, k=5, has_coverage=True),
)

METRICS: dict[str, Protocol] = {entry.name: entry for entry in _ENTRIES}
ALIASES = {"coverage50k3": "coverage"}
