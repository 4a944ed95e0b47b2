"""From metric names to result lines: checks the names, plans the fewest passes that serve all of them, runs these, and records the protocol.

The entries themselves are in `metrics.protocols`, the passes in `metrics.features`, the lines on disk in `metrics.report`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dnnlib import UserError
from metrics import report
from metrics.detectors import Detector, check_detector, detector_name, get_detector
from metrics.feature_cache import FeatureCache
from metrics.features import DataSource, GeneratorSource, Taker, evaluating, rank_and_count, run_pass
from metrics.prdc import coverage_ceiling
from metrics.protocols import ALIASES, METRICS, Inputs, Protocol, selection

# Pixels of generated images in flight; StyleGAN2-ADA's batch of 4 at 1024x1024, more at smaller sizes.
GENERATED_PIXELS = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """A metric as asked for: its protocol, the detector it uses, and the name that its results carry."""

    protocol: Protocol
    detector: str
    name: str


def list_metrics() -> list[str]:
    """The names of all metrics."""
    return list(METRICS)


def parse_metrics(names: Iterable[str], detector: str | None = None) -> list[MetricSpec]:
    """Checks metric names and pairs each with its detector; repetitions are dropped.

    Args:
        names: as in `list_metrics()`.
        detector: used for all instead of the protocols' own; metrics whose own it is not carry its name, as in `coverage_embedded`.

    Raises:
        UserError: an unknown name.
    """
    specs = []
    for asked in names:
        protocol = METRICS.get(ALIASES.get(asked, asked))
        if protocol is None:
            raise UserError(f"--metrics: {asked!r} is no known metric; known are: {', '.join(list_metrics())} (or none)")
        spec = detector or protocol.detector
        suffix = "" if detector_name(spec) == protocol.detector else f"_{detector_name(spec)}"
        specs.append(MetricSpec(protocol, spec, protocol.name + suffix))
    return list(dict.fromkeys(specs))


def check_detectors(specs: Iterable[MetricSpec]) -> None:
    """Makes sure that every detector is at hand, downloading where needed, so that nothing fails after hours of training.

    Raises:
        UserError: a detector that is unknown, damaged or cannot be downloaded.
    """
    for detector in dict.fromkeys(spec.detector for spec in specs):
        check_detector(detector)


@dataclasses.dataclass(frozen=True)
class _Want:
    """The tensors that a metric needs from one side: dataclass fields make it the key under which metrics share them."""

    side: str  # fingerprint of the data set, or "generator"
    detector: str
    output: str
    collect: Callable
    count: int
    population: int | None = None  # images to choose `count` from at random; None: the first ones


@dataclasses.dataclass
class _Job:
    """One metric with everything that its result line says."""

    spec: MetricSpec
    detector: Detector
    dataset: Any
    real: _Want
    fake: _Want


def compute_metrics(
    names: Iterable[str],
    *,
    G: torch.nn.Module,
    dataset: Any,
    device: torch.device | str,
    make_dataset: Callable[..., Any] | None = None,
    detector: str | None = None,
    metric_seed: int = 0,
    batch_gen: int | None = None,
    batch_detector: int = 64,
    truncation_psi: float = 1.0,
    cache: bool = True,
    cache_dir: Any = None,
    workers: int = 3,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
    on_failure: Callable[[str, UserError], None] | None = None,
) -> list[dict]:
    """Measures a generator; one pass over the data and one over the generator serve all metrics.

    Real images: `make_dataset(max_size=None, xflip=False)` (and `make_dataset(max_size=None)` for the legacy `fid50k`, `kid50k`, `pr50k3`)
    builds the variant of the training set that the protocols prescribe. Without `make_dataset` the metrics take `dataset` as it is, and the
    record says whether it held mirrored copies. Under torch.distributed every rank calls this function and gets the same lines.

    Args:
        names: metrics, as in `list_metrics()`.
        G: generator on `device`: z_dim, c_dim, img_resolution and G(z, c, truncation_psi=, noise_mode="const") -> [-1, 1].
        dataset: items (uint8 [C, H, W], label), len(), get_label, get_details, label_dim, resolution, fingerprint(), as ImageFolderDataset.
        device: of generator, detectors and distances.
        detector: replaces the protocols' detectors; see `parse_metrics`.
        metric_seed: of latents, labels and subsets; truncation_psi: of the generated images.
        batch_gen: images per generator call; default by resolution.
        batch_detector: images per detector call.
        cache: keep features of real images on disk, in `cache_dir` or the project's cache folder; `log` receives lines about it.
        workers: processes that read a large data set.
        progress: show progress bars on stderr.
        on_failure: receives the name and error of a metric that cannot be computed, which is then left out; without it the error is raised.

    Returns:
        One line per metric: {"results", "metric", "total_time", "total_time_str", "num_gpus", "protocol"}; passes count in full for each.

    Raises:
        UserError: unknown metric, detector not at hand, data set and generator that do not fit, values that are not finite.
    """
    started = time.time()
    device = torch.device(device)
    jobs = _plan(parse_metrics(names, detector), make_dataset or (lambda **overrides: dataset), device, G)
    if not jobs:
        return []
    options = {"batch": batch_detector, "device": device}
    collected = _real_features(jobs, FeatureCache(cache_dir, enabled=cache, log=log), workers, options, progress)
    batch_gen = batch_gen or max(min(GENERATED_PIXELS // G.img_resolution**2, batch_detector), 1)
    labels = next((job.dataset for job in jobs if not job.spec.protocol.keep_flips), jobs[0].dataset)
    source = GeneratorSource(G, labels, device, seed=metric_seed, batch=batch_gen, truncation_psi=truncation_psi)
    with evaluating(G):
        collected |= _collect(source, [(job.fake, job.detector) for job in jobs], options, "generated images" if progress else None)
    setup_time = time.time() - started
    outcomes = _finish(jobs, collected, metric_seed, truncation_psi, device, setup_time) if rank_and_count()[0] == 0 else None
    return _report_outcomes(_broadcast(outcomes), on_failure)


def _plan(specs: list[MetricSpec], make_dataset: Callable[..., Any], device: torch.device, G: Any) -> list[_Job]:
    """Loads data sets and detectors and settles what each metric needs."""
    variants: dict[bool, tuple[Any, str]] = {}
    jobs = []
    for spec in specs:
        protocol = spec.protocol
        if protocol.keep_flips not in variants:
            variant = make_dataset(max_size=None) if protocol.keep_flips else make_dataset(max_size=None, xflip=False)
            if variant.resolution != G.img_resolution:
                made, held = (f"{edge}x{edge}" for edge in (G.img_resolution, variant.resolution))
                raise UserError(f"the generator makes {made} images, the data set holds {held}; measure it against images of its own size")
            variants[protocol.keep_flips] = variant, variant.fingerprint()
        variant, fingerprint = variants[protocol.keep_flips]
        network = get_detector(spec.detector, device, protocol.output)
        num_real, num_fake = protocol.counts(len(variant))
        kind = (network.digest, protocol.output, protocol.collect)
        population = len(variant) if protocol.sampled and num_real < len(variant) else None
        jobs.append(_Job(spec, network, variant, _Want(fingerprint, *kind, num_real, population), _Want("generator", *kind, num_fake)))
    return jobs


def _real_features(jobs: list[_Job], store: FeatureCache, workers: int, options: dict, progress: bool) -> dict[_Want, dict]:
    """Tensors of the real side, from the cache or from a pass over each variant of the data set."""
    wanted = {job.real: job for job in jobs if job.real.count > 0}
    found: dict[_Want, dict] = {}
    if rank_and_count()[0] == 0:
        found = {want: tensors for want, job in wanted.items() if (tensors := store.load(_cache_key(want, job))) is not None}
    missing = [want for want, absent in zip(wanted, _broadcast([want not in found for want in wanted])) if absent]
    for side in dict.fromkeys(want.side for want in missing):
        wants = [want for want in missing if want.side == side]
        chosen = {want: selection(want.count, want.population) for want in wants}
        union = np.unique(np.concatenate(list(chosen.values())))
        positions = {want: np.searchsorted(union, indices) for want, indices in chosen.items()}
        source = DataSource(wanted[wants[0]].dataset, options["device"], workers, union)
        pairs = [(want, wanted[want].detector) for want in wants]
        tensors = _collect(source, pairs, options, "real images" if progress else None, positions)
        for want in tensors:
            store.save(_cache_key(want, wanted[want]), tensors[want])
        found |= tensors
    return found


def _cache_key(want: _Want, job: _Job) -> dict:
    return {
        "dataset": want.side,
        "detector": job.detector.name,
        "digest": want.detector,
        "output": want.output,
        "collect": want.collect.__name__,
        "count": want.count,
        "population": want.population,
        "xflip": _has_flips(job.dataset),
    }


def _collect(
    source: Any, wants: list[tuple[_Want, Detector]], options: dict, progress: str | None, positions: dict[_Want, np.ndarray] | None = None
) -> dict[_Want, dict]:
    """One pass that fills every want, each from its `positions` in the pass or from the first images; the tensors are there on rank 0 only."""
    detectors: dict[tuple, tuple[Detector, list]] = {}
    collectors = {}
    for want, network in dict(wants).items():
        collectors[want] = want.collect(want.count)
        taker = Taker(collectors[want], None if positions is None else positions[want])
        detectors.setdefault((want.detector, want.output), (network, []))[1].append(taker)
    if collectors:
        run_pass(source, list(detectors.values()), progress=progress, **options)
    if rank_and_count()[0] != 0:
        return {}
    return {want: collector.tensors() for want, collector in collectors.items()}


def _finish(jobs: list[_Job], collected: dict, seed: int, truncation_psi: float, device: torch.device, setup_time: float) -> list:
    """(line, None) or (name, error) of each metric, computed from the collected tensors."""
    shared: dict[tuple, dict] = {}
    outcomes = []
    for job in jobs:
        started = time.time()
        protocol = job.spec.protocol
        inputs = Inputs(collected.get(job.real, {}), collected[job.fake], seed, device, shared.setdefault((job.real, job.fake), {}))
        try:
            figures = protocol.figures(inputs, protocol)
        except UserError as error:
            outcomes.append((job.spec.name, error))
            continue
        results = {job.spec.name + suffix: float(value) for suffix, value in figures.items()}
        record = _record(job, seed, truncation_psi)
        outcomes.append((report.result_line(job.spec.name, results, setup_time + time.time() - started, rank_and_count()[1], record), None))
    return outcomes


def _record(job: _Job, seed: int, truncation_psi: float) -> dict:
    """Everything that a figure depends on besides the network."""
    protocol = job.spec.protocol
    record = {
        "detector": job.detector.name,
        "detector_digest": job.detector.digest,
        "n_real": job.real.count,
        "real_choice": "random" if job.real.population else "first",
        "n_fake": job.fake.count,
        "k": protocol.k,
        "seed": seed,
        "xflip": _has_flips(job.dataset) if job.real.count else False,
        "resize": job.detector.resize,
        "truncation_psi": truncation_psi,
        "dataset": job.real.side,
        "code_version": report.CODE_VERSION,
    }
    if protocol.k is not None:
        record["inside"] = "distance <= radius" if protocol.closed else "distance < radius"
    if protocol.has_coverage:
        record["coverage_ceiling"] = coverage_ceiling(job.real.count, job.fake.count, protocol.k)
    return record


def _has_flips(dataset: Any) -> bool:
    """Whether the data set holds mirrored copies, which come after all others."""
    return bool(dataset.get_details(len(dataset) - 1).xflip)


def _report_outcomes(outcomes: list, on_failure: Callable[[str, UserError], None] | None) -> list[dict]:
    lines = []
    for outcome, error in outcomes:
        if error is None:
            lines.append(outcome)
        elif on_failure is None:
            raise error
        else:
            on_failure(outcome, error)
    return lines


def _broadcast(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if rank_and_count()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
