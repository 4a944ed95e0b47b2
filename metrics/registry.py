"""From metric names to result lines: checks the names, plans the fewest passes that serve all of them, runs these, and records the protocol.

The entries themselves are in `metrics.protocols`, the two sides of a comparison in `metrics.sides`, the lines on disk in `metrics.report`.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dnnlib import UserError
from metrics import report
from metrics.detectors import Detector, check_detector, detector_name, get_detector
from metrics.feature_cache import FeatureCache
from metrics.features import succeed_together
from metrics.prdc import coverage_ceiling
from metrics.protocols import ALIASES, METRICS, Inputs, Protocol
from metrics.sides import DataSide, FeatureRequest, FileSide, GeneratorSide, PassOptions, Side, check_sizes, has_flips
from torch_utils.distributed import broadcast_object, gather_objects, rank, world_size


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """A metric as asked for: its protocol, the detector it uses (None where it has none), and the name that its results carry."""

    protocol: Protocol
    detector: str | None
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
        spec = None if protocol.detector is None else detector or protocol.detector
        suffix = "" if spec is None or detector_name(spec) == protocol.detector else f"_{detector_name(spec)}"
        specs.append(MetricSpec(protocol, spec, protocol.name + suffix))
    return list(dict.fromkeys(specs))


def check_detectors(specs: Iterable[MetricSpec]) -> None:
    """Makes sure that every detector is at hand, downloading where needed, so that nothing fails after hours of training.

    Raises:
        UserError: a detector that is unknown, damaged or cannot be downloaded.
    """
    for detector in dict.fromkeys(spec.detector for spec in specs if spec.detector is not None):
        check_detector(detector)


def compute_metrics(
    names: Iterable[str],
    *,
    G: torch.nn.Module,
    dataset: Any,
    device: torch.device | str,
    make_dataset: Callable[..., Any] | None = None,
    metric_seed: int = 0,
    batch_gen: int | None = None,
    batch_detector: int = 64,
    truncation_psi: float = 1.0,
    cache: bool = True,
    cache_dir: Any = None,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> list[dict]:
    """Measures a generator against a data set; one pass over the data and one over the generator serve all metrics.

    Real images: `make_dataset(max_size=None, xflip=False)` (and `make_dataset(max_size=None)` for the legacy `fid50k`, `kid50k`, `pr50k3`)
    builds the variant of the training set that the protocols prescribe. Without `make_dataset` the metrics take `dataset` as it is, and the
    record says whether it held mirrored copies.

    Args:
        names: metrics, as in `list_metrics()`.
        G: generator on `device`: z_dim, c_dim, img_resolution and G(z, c, truncation_psi=, noise_mode="const") -> [-1, 1].
        dataset: items (uint8 [C, H, W], label), len(), get_labels, get_details, label_dim, resolution, fingerprint(), as ImageFolderDataset.
        device: of generator, detectors and distances.
        metric_seed: of latents, labels and subsets; truncation_psi: of the generated images.
        batch_gen: images per generator call; default by resolution.
        batch_detector: images per detector call.
        cache: keep features of real images on disk, in `cache_dir` or the project's cache folder; `log` receives lines about it.
        options: detector, workers, progress and on_failure, as `compare` takes them.

    Returns:
        Lines, and raises UserError, as `compare`.
    """
    device = torch.device(device)
    real = DataSide(make_dataset or (lambda **overrides: dataset), cache=FeatureCache(cache_dir, enabled=cache, log=log))
    sampling = {"seed": metric_seed, "truncation_psi": truncation_psi, "batch": batch_gen, "batch_detector": batch_detector}
    fake = succeed_together(lambda: GeneratorSide(G, real.dataset() if G.c_dim > 0 else None, device, given=dataset, **sampling))
    return compare(names, real=real, fake=fake, device=device, metric_seed=metric_seed, batch_detector=batch_detector, **options)


def compare(
    names: Iterable[str],
    *,
    real: Side | None,
    fake: Side,
    device: torch.device | str,
    detector: str | None = None,
    metric_seed: int = 0,
    batch_detector: int = 64,
    workers: int = 3,
    progress: bool = False,
    on_failure: Callable[[str, UserError], None] | None = None,
) -> list[dict]:
    """Compares two sides by any metrics; one pass over each serves all of them. Under torch.distributed every rank calls it and gets the same.

    Args:
        names: metrics, as in `list_metrics()`.
        real, fake: what is compared; `real` may be None for metrics that look at generated images only.
        device: of detectors and distances.
        detector: replaces the protocols' detectors; see `parse_metrics`.
        metric_seed: of what the metrics draw themselves.
        batch_detector: images per detector call.
        workers: processes that read a large data set.
        progress: show progress bars on stderr.
        on_failure: receives the name and error of a metric that cannot be computed, which is then left out; without it the error is raised.

    Returns:
        One line per metric: {"results", "metric", "total_time", "total_time_str", "num_gpus", "protocol"}; passes count in full for each.

    Raises:
        UserError: unknown metric, detector not at hand, sides that do not fit together or the metric, values that are not finite, or whatever
            else goes wrong in a metric that one rank computes; on every rank alike. Any other error is one rank's own, and the others are left
            waiting: let it end the process.
    """
    started = time.time()
    comparison = _Comparison(real, fake, torch.device(device), metric_seed)
    outcomes = comparison.plan(parse_metrics(names, detector), raising=on_failure is None)
    jobs = [outcome for outcome in outcomes if isinstance(outcome, _Job)]
    comparison.collect(jobs, PassOptions(batch_detector, comparison.device, workers, progress))
    setup_time = time.time() - started
    done = {job.spec: comparison.finish(job, setup_time) for job in sorted(jobs, key=_only_on_rank_0)}
    results = broadcast_object([done[outcome.spec] if isinstance(outcome, _Job) else outcome for outcome in outcomes])
    return _report_outcomes(results, on_failure)


def planned_protocols(
    names: Iterable[str], *, real: Side | None, fake: Side, device: torch.device | str, detector: str | None = None, metric_seed: int = 0
) -> dict[str, dict]:
    """The protocol that the line of each metric would record, by metric, without measuring anything; arguments as `compare`."""
    comparison = _Comparison(real, fake, torch.device(device), metric_seed)
    jobs = comparison.plan(parse_metrics(names, detector), raising=True)
    return {job.spec.name: comparison.record(job) for job in jobs}


@dataclasses.dataclass
class _Job:
    """One metric with what it needs from either side; requests are None where it looks at no image of that side through a detector."""

    spec: MetricSpec
    detector: Detector | None
    num_real: int
    num_fake: int
    real: FeatureRequest | None
    fake: FeatureRequest | None


def _only_on_rank_0(job: _Job) -> bool:
    # Metrics that every rank takes part in come first: the other ranks would have to wait for rank 0 in the middle of them.
    return job.spec.protocol.collect is not None


class _Comparison:
    """The work of `compare`."""

    def __init__(self, real: Side | None, fake: Side, device: torch.device, seed: int):
        self.real, self.fake, self.device, self.seed = real, fake, device, seed
        self.collected_real: dict[FeatureRequest, dict] = {}
        self.collected_fake: dict[FeatureRequest, dict] = {}
        self.balls: dict[tuple, list[tuple[int, bool]]] = {}
        self.shared: dict[tuple, dict] = {}

    def plan(self, specs: list[MetricSpec], raising: bool) -> list:
        """A job for each metric, or (name, error) where some rank cannot compute it and nothing is to be raised; the same on every rank."""
        jobs, failures = [], []
        for spec in specs:
            if raising and any(failures):
                break
            try:
                jobs.append(self._job(spec))
                failures.append(None)
            except UserError as error:
                jobs.append(None)
                failures.append(error)
        outcomes = []
        # A rank that gave up early has nothing to say about the metrics behind.
        for spec, job, *found in itertools.zip_longest(specs, jobs, *gather_objects(failures)):
            failure = next(filter(None, found), None)
            if failure is not None and raising:
                raise failure
            outcomes.append(job if failure is None else (spec.name, failure))
        return outcomes

    def _job(self, spec: MetricSpec) -> _Job:
        """Loads what a metric needs and settles how many images it compares."""
        protocol = spec.protocol
        sides = [self.fake] + ([self.real] if protocol.needs_real else [])
        self._check(spec, sides)
        detector = _load_detector(spec, sides, self.device)
        real = self.real.available(protocol.keep_flips) if protocol.needs_real else None
        num_real, num_fake = protocol.counts(real, self.fake.available())
        if protocol.collect is None:
            return _Job(spec, detector, 0, num_fake, None, None)
        for side, count in zip(sides, (num_fake, num_real)):
            if count < 2:
                raise UserError(f"{spec.name} needs at least 2 images on either side, but {side.name} holds {count}")
        request = self.real.request(detector, protocol.collect, num_real, protocol.sampled, protocol.keep_flips) if num_real else None
        return _Job(spec, detector, num_real, num_fake, request, self.fake.request(detector, protocol.collect, num_fake, sampled=True))

    def _check(self, spec: MetricSpec, sides: list[Side | None]) -> None:
        """Raises UserError where a metric does not make sense for what is compared."""
        protocol = spec.protocol
        if None in sides:
            raise UserError(f"{spec.name} compares with real images; name them by --real (or --data)")
        if protocol.needs_generator and self.fake.G is None:
            raise UserError(f"{spec.name} needs the generator itself, but {self.fake.name} holds only what one made; name a network")
        files = [side.name for side in sides if isinstance(side, FileSide)]
        if files and protocol.output != "features":
            raise UserError(f"{spec.name} needs {protocol.output} of the detector, but {files[0]} holds features; name the images themselves")
        if protocol.needs_real:
            check_sizes(sides, protocol.keep_flips)
        elif self.real is not None and self.fake.G is not None:
            check_sizes([self.fake, self.real])
        for side in sides if protocol.needs_classes else []:
            side.check_classes()

    def collect(self, jobs: list[_Job], options: PassOptions) -> None:
        """Fills the requests of all jobs by one pass over each side."""
        for job in jobs:
            if job.spec.protocol.k is not None:
                self.balls.setdefault((job.real, job.fake), []).append((job.spec.protocol.k, job.spec.protocol.closed))
        if any(job.real for job in jobs):
            self.collected_real = self.real.collect({job.real: job.detector for job in jobs if job.real}, options)
        if any(job.fake for job in jobs):
            self.collected_fake = self.fake.collect({job.fake: job.detector for job in jobs if job.fake}, options)

    def finish(self, job: _Job, setup_time: float) -> tuple | None:
        """(line, None) or (name, error) of a metric; None on other ranks than 0 where they have no part in it.

        Whatever goes wrong in what one rank does alone is such an error: the others wait, and the other metrics' figures shall not be lost.
        """
        alone = _only_on_rank_0(job) or world_size() == 1
        if alone and rank() != 0:
            return None
        try:
            return self._line(job, setup_time), None
        except UserError as error:
            return job.spec.name, error
        except Exception as error:
            if not alone:
                raise
            traceback.print_exc()
            reason = " ".join(str(error).split())[:300]
            return job.spec.name, UserError(f"{job.spec.name} cannot be computed: {type(error).__name__}{reason and f' ({reason})'}")

    def _line(self, job: _Job, setup_time: float) -> dict:
        """The result line of a metric."""
        protocol, started = job.spec.protocol, time.time()
        inputs = Inputs(
            real=self.collected_real.get(job.real, {}),
            fake=self.collected_fake.get(job.fake, {}),
            seed=self.seed,
            device=self.device,
            balls=self.balls.get((job.real, job.fake), ()),
            shared=self.shared.setdefault((job.real, job.fake), {}),
            labels=lambda: (self.real.labels(job.real), self.fake.labels(job.fake)),
            generator=self.fake if self.fake.G is not None else None,
            detector=job.detector,
        )
        figures = protocol.figures(inputs, protocol)
        results = {job.spec.name + suffix: float(value) for suffix, value in figures.items()}
        seconds = time.time() - started + (setup_time if job.fake else 0)
        return report.result_line(job.spec.name, results, seconds, world_size(), self.record(job) | inputs.notes)

    def record(self, job: _Job) -> dict:
        """Everything that a figure depends on besides what is measured."""
        protocol = job.spec.protocol
        probing = protocol.collect is None
        labels = None  # the data set that labels of generated images are drawn from
        if self.fake.G is not None and self.fake.G.c_dim > 0:
            labels = self.fake.given if probing else self.fake.drawn_from
        source = labels if probing or self.real is None else None
        record = {
            "detector": job.detector.name if job.detector else None,
            "detector_digest": job.detector.digest if job.detector else None,
            "n_real": job.num_real,
            "real_choice": _choice(job.real),
            "n_fake": job.num_fake,
            "k": protocol.k,
            "seed": self.seed,
            "xflip": job.real.xflip if job.real else probing and labels is not None and has_flips(labels),
            "resize": job.detector.resize if job.detector else None,
            "truncation_psi": self.fake.truncation_psi if self.fake.G is not None else None,
            "dataset": source.fingerprint() if source is not None else self.real and self.real.fingerprint(protocol.keep_flips),
            "code_version": report.CODE_VERSION,
            **protocol.parameters,
        }
        if self.fake.G is None:
            record["fake_choice"] = _choice(job.fake) + ", shuffled" * protocol.shuffled
        if protocol.k is not None:
            record["inside"] = "distance <= radius" if protocol.closed else "distance < radius"
        if protocol.has_coverage:
            record["coverage_ceiling"] = coverage_ceiling(job.num_real, job.num_fake, protocol.k)
        if protocol.chance is not None:
            record["chance"] = protocol.chance
        return record


def _choice(request: FeatureRequest | None) -> str:
    return "random" if request is not None and request.population else "first"


def _load_detector(spec: MetricSpec, sides: list[Side], device: torch.device) -> Detector | None:
    """The detector of a metric; where all sides are files, what these say about it."""
    if spec.detector is None:
        return None
    files = [side.file for side in sides if isinstance(side, FileSide)]
    for file in files:
        if file.detector != detector_name(spec.detector):
            raise UserError(f"{file.path} holds features of detector {file.detector}, but {spec.name} uses {detector_name(spec.detector)}")
    if len(files) == len(sides):
        network = Detector(files[0].detector, files[0].digest, "features", files[0].resize, run=None)
    else:
        network = get_detector(spec.detector, device, spec.protocol.output)
    for file in files:
        if file.digest != network.digest:
            raise UserError(f"{file.path} was made by another file of detector {network.name} (digest {file.digest[:12]}, not {network.digest[:12]})")
    return network


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
