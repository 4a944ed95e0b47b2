"""What a comparison has on its sides: images of a data set, of a generator, or features saved in a file.

Every side gives a metric the tensors it requests (`FeatureRequest`), in one pass over its images for all metrics together. Reading images and running
detectors is the work of `metrics.features`; what is wanted comes from `metrics.registry`; feature files are `metrics.feature_files`' format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from metrics.collectors import Collector, FeatureConsumer, Rows
from metrics.detectors import Detector
from metrics.feature_cache import FeatureCache
from metrics.feature_files import FeatureFile
from metrics.features import DataSource, GeneratorSource, evaluating, full_precision, made_size, run_pass
from torch_utils.distributed import broadcast_object, rank

SELECTION_SEED = 0  # of sampled images; part of the protocols, so not the metric seed
GENERATED_PIXELS = 4 * 1024 * 1024  # in flight: StyleGAN2-ADA's batch of 4 at 1024x1024, more at smaller sizes
CHUNK = 4096  # rows of a feature file that a collector takes at a time


@dataclasses.dataclass(frozen=True)
class FeatureRequest:
    """The tensors that a metric needs from one side; metrics share those whose requests are equal.

    Attributes:
        source: fingerprint of the images.
        xflip: whether they hold mirrored copies.
        detector: digest of the detector; output: which of its outputs.
        collect: what becomes of the features.
        count: number of images.
        population: images to choose them from at random; None takes the first ones.
    """

    source: str
    xflip: bool
    detector: str
    output: str
    collect: Callable[[int], Collector]
    count: int
    population: int | None = None

    def indices(self) -> np.ndarray:
        """Which images these are, rising, int64 [count]."""
        return selection(self.count, self.population)


@dataclasses.dataclass(frozen=True)
class PassOptions:
    """How a pass is made: images per detector call, where, by how many reading processes, and whether progress is shown on stderr."""

    batch: int
    device: torch.device
    workers: int = 0
    progress: bool = False


def selection(count: int, population: int | None) -> np.ndarray:
    """Which images of a set stand for it: rising indices, int64 [count]; the first, or a random choice among `population`."""
    if population is None:
        return np.arange(count)
    return np.sort(np.random.RandomState(SELECTION_SEED).permutation(population)[:count])


class DataSide:
    """Images of a data set.

    Args:
        make_dataset: called with max_size=None and, for the set without mirrored copies, xflip=False; returns items (uint8 [C, H, W], label) with
            len(), get_labels, get_details, label_dim, fingerprint(), and resolution or image_shape.
        name: how messages name it.
        cache: where features are kept from one command to the next; None keeps them only as long as this object lives.
    """

    G = None

    def __init__(self, make_dataset: Callable[..., Any], name: str = "the data set", cache: FeatureCache | None = None):
        self.make_dataset = make_dataset
        self.name = name
        self.cache = cache or FeatureCache(enabled=False)
        self._variants: dict[bool, tuple[Any, str]] = {}
        self._kept: dict[FeatureRequest, dict] = {}

    def dataset(self, keep_flips: bool = False) -> Any:
        """The images with or without the mirrored copies that training may have added."""
        return self._variant(keep_flips)[0]

    def fingerprint(self, keep_flips: bool = False) -> str:
        """Of the content of that variant."""
        return self._variant(keep_flips)[1]

    def _variant(self, keep_flips: bool) -> tuple[Any, str]:
        if keep_flips not in self._variants:
            dataset = self.make_dataset(max_size=None) if keep_flips else self.make_dataset(max_size=None, xflip=False)
            self._variants[keep_flips] = dataset, dataset.fingerprint()
        return self._variants[keep_flips]

    def image_size(self, keep_flips: bool = False) -> tuple[int, int]:
        """(width, height) in pixels."""
        dataset = self.dataset(keep_flips)
        return (dataset.image_shape[2], dataset.image_shape[1]) if hasattr(dataset, "image_shape") else (dataset.resolution, dataset.resolution)

    def available(self, keep_flips: bool = False) -> int:
        """Number of images."""
        return len(self.dataset(keep_flips))

    def request(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> FeatureRequest:
        """What `count` of the images give; `sampled` takes a random choice of a larger set, else the first are taken."""
        dataset, fingerprint = self._variant(keep_flips)
        population = len(dataset) if sampled and count < len(dataset) else None
        return FeatureRequest(fingerprint, has_flips(dataset), detector.digest, detector.output, collect, count, population)

    def collect(self, requests: dict[FeatureRequest, Detector], options: PassOptions) -> dict[FeatureRequest, dict]:
        """Tensors of every request, on rank 0: those that are known, the others from one pass over each variant."""
        found: dict[FeatureRequest, dict] = {}
        if rank() == 0:
            known = {request: self._kept.get(request) or self.cache.load(_cache_key(request, network)) for request, network in requests.items()}
            found = {request: tensors for request, tensors in known.items() if tensors is not None}
        missing = [request for request, absent in zip(requests, broadcast_object([request not in found for request in requests])) if absent]
        for fingerprint, dataset in self._by_fingerprint().items():
            group = {request: requests[request] for request in missing if request.source == fingerprint}
            chosen = {request: request.indices() for request in group}
            if group:
                union = np.unique(np.concatenate(list(chosen.values())))
                positions = {request: np.searchsorted(union, indices) for request, indices in chosen.items()}
                found |= _collect(DataSource(dataset, options.device, options.workers, union), group, positions, options, self.name)
        if rank() == 0:
            for request in missing:
                self.cache.save(_cache_key(request, requests[request]), found[request])
        self._kept |= found
        return found

    def check_classes(self) -> None:
        """Raises UserError unless the images have labels."""
        if self.dataset().label_dim == 0:
            raise UserError(f"{self.name} has no labels, which a figure per class needs; give it a dataset.json with classes")

    def labels(self, request: FeatureRequest) -> torch.Tensor:
        """Labels [count, label_dim] of the images of a request."""
        return torch.from_numpy(self._by_fingerprint()[request.source].get_labels(request.indices()))

    def image(self, request: FeatureRequest, number: int) -> torch.Tensor:
        """One of the images of a request, uint8 [C, H, W]."""
        return torch.from_numpy(np.ascontiguousarray(self._by_fingerprint()[request.source][int(request.indices()[number])][0]))

    def _by_fingerprint(self) -> dict[str, Any]:
        """Fingerprint -> data set; one where it has no flips, of which both variants are the same."""
        return {fingerprint: dataset for dataset, fingerprint in self._variants.values()}


class GeneratorSide:
    """Images of a generator, as many as are wanted.

    Args:
        G: as `metrics.features.GeneratorSource` takes it, with img_resolution.
        labels: data set whose items' labels are drawn; only asked where G takes labels.
        device: where G is.
        seed, truncation_psi, stream: as GeneratorSource takes them.
        batch: images per call of G; default by resolution, at most `batch_detector`.
        given: data set whose labels path length and pairing accuracy draw: the one that training used, flips and all; default `labels`.
        name: how messages name it.
        fingerprint: of the network, where it stands for real images.
    """

    def __init__(
        self,
        G: Any,
        labels: Any,
        device: torch.device,
        *,
        seed: int = 0,
        truncation_psi: float = 1.0,
        stream: int = 0,
        batch: int | None = None,
        batch_detector: int = 64,
        given: Any = None,
        name: str = "the generator",
        fingerprint: str = "generator",
    ):
        self.G = G
        self.given = labels if given is None else given
        self.name = name
        self.truncation_psi = truncation_psi
        self.batch = batch or max(min(GENERATED_PIXELS // math.prod(made_size(G)), batch_detector), 1)
        self.drawn_from = labels
        self._fingerprint = fingerprint
        self.source = GeneratorSource(G, labels, device, seed=seed, batch=self.batch, truncation_psi=truncation_psi, stream=stream)

    def fingerprint(self, keep_flips: bool = False) -> str:
        """Of the network, where it was given."""
        return self._fingerprint

    def image_size(self, keep_flips: bool = False) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width = made_size(self.G)
        return width, height

    def available(self, keep_flips: bool = False) -> None:
        """None: as many images as are wanted."""
        return

    def request(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> FeatureRequest:
        """What the first `count` images give."""
        return FeatureRequest(self._fingerprint, False, detector.digest, detector.output, collect, count)

    def collect(self, requests: dict[FeatureRequest, Detector], options: PassOptions) -> dict[FeatureRequest, dict]:
        """Tensors of every request from one pass, on rank 0."""
        with evaluating(self.G):
            return _collect(self.source, requests, {request: request.indices() for request in requests}, options, f"images of {self.name}")

    def check_classes(self) -> None:
        """Raises UserError unless the generator takes labels."""
        if self.G.c_dim == 0:
            raise UserError(f"{self.name} takes no labels, which a figure per class needs; measure a conditional network")

    def labels(self, request: FeatureRequest) -> torch.Tensor:
        """Labels [count, c_dim] of the images of a request."""
        return self.source.inputs(0, request.count)[1]

    def image(self, request: FeatureRequest, number: int) -> torch.Tensor:
        """One of the images of a request, made again, uint8 [C, H, W] on the CPU."""
        with evaluating(self.G), full_precision(), torch.no_grad():
            return next(self.source.batches([(number, number + 1)]))[0].cpu()


class FileSide:
    """Features that an earlier command saved.

    Args:
        file: the features, as `metrics.feature_files.load_features` reads them.
    """

    G = None

    def __init__(self, file: FeatureFile):
        self.file = file
        self.name = str(file.path)

    def fingerprint(self, keep_flips: bool = False) -> str:
        """Of the images that the features were made of."""
        return self.file.source

    def image_size(self, keep_flips: bool = False) -> tuple[int, int]:
        """(width, height) of these images in pixels."""
        return self.file.image_size

    def available(self, keep_flips: bool = False) -> int:
        """Number of images."""
        return len(self.file.rows)

    def request(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> FeatureRequest:
        """What `count` of the rows give, chosen as those of a data set."""
        population = self.available() if sampled and count < self.available() else None
        return FeatureRequest(self.file.source, False, detector.digest, detector.output, collect, count, population)

    def collect(self, requests: dict[FeatureRequest, Detector], options: PassOptions) -> dict[FeatureRequest, dict]:
        """Tensors of every request, on rank 0."""
        if rank() != 0:
            return {}
        return {request: self._tensors(request) for request in requests}

    def _tensors(self, request: FeatureRequest) -> dict:
        collector = request.collect(request.count)
        for part in np.array_split(request.indices(), -(-request.count // CHUNK)):
            collector.add(self.file.rows[torch.from_numpy(part)])
        return collector.tensors()

    def check_classes(self) -> None:
        """Raises UserError unless the file holds labels."""
        if self.file.labels is None:
            raise UserError(f"{self.name} holds no labels, which a figure per class needs; save the features of a labelled set")

    def labels(self, request: FeatureRequest) -> torch.Tensor:
        """Labels [count, label_dim] of the images of a request."""
        return self.file.labels[torch.from_numpy(request.indices())]


Side = DataSide | GeneratorSide | FileSide


class Images(Sequence):
    """The images of a request, each read or made only when it is asked for: item i is uint8 [C, H, W]."""

    def __init__(self, side: DataSide | GeneratorSide, request: FeatureRequest):
        self.side, self.request = side, request

    def __len__(self) -> int:
        return self.request.count

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.side.image(self.request, range(self.request.count)[number])


def _collect(
    source: Any, requests: dict[FeatureRequest, Detector], positions: dict[FeatureRequest, np.ndarray], options: PassOptions, name: str
) -> dict[FeatureRequest, dict]:
    """One pass that fills every request from its `positions` in it; rows that several requests ask for are kept once. On rank 0."""
    passes, filled = [], []
    for kind in dict.fromkeys((request.detector, request.output) for request in requests):
        group = [request for request in requests if (request.detector, request.output) == kind]
        consumers = []
        for sharing in ([request for request in group if request.collect is Rows], *([request] for request in group if request.collect is not Rows)):
            if sharing:
                union = np.unique(np.concatenate([positions[request] for request in sharing]))
                consumers.append(FeatureConsumer(sharing[0].collect(len(union)), union))
                filled.append((sharing, consumers[-1]))
        passes.append((requests[group[0]], consumers))
    if passes:
        run_pass(source, passes, batch=options.batch, device=options.device, progress=name if options.progress else None)
    if rank() != 0:
        return {}
    return {request: _part(consumer, positions[request]) for sharing, consumer in filled for request in sharing}


def _part(consumer: FeatureConsumer, positions: np.ndarray) -> dict:
    """The tensors of some of a consumer's images; a view of the rows where these are the first ones."""
    tensors = consumer.collector.tensors()
    if len(positions) == len(consumer.positions):
        return tensors
    places = np.searchsorted(consumer.positions, positions)
    first = places[-1] == len(places) - 1
    return {"rows": tensors["rows"][: len(places)] if first else tensors["rows"][torch.from_numpy(places)]}


def _cache_key(request: FeatureRequest, detector: Detector) -> dict:
    return {
        "dataset": request.source,
        "detector": detector.name,
        "digest": request.detector,
        "output": request.output,
        "collect": request.collect.__name__,
        "count": request.count,
        "population": request.population,
        "xflip": request.xflip,
    }


def has_flips(dataset: Any) -> bool:
    """Whether the data set holds mirrored copies, which come after all others."""
    return bool(dataset.get_details(len(dataset) - 1).xflip)


def check_sizes(sides: Iterable[Side], keep_flips: bool = False) -> None:
    """Raises UserError where sides hold images of different sizes: a detector would compare resampling with content."""
    sizes = {side: "{}x{}".format(*side.image_size(keep_flips)) for side in sides}
    if len(set(sizes.values())) > 1:
        (fake, made), (real, held) = list(sizes.items())[:2]
        verb = "makes" if fake.G is not None else "holds"
        raise UserError(f"{fake.name} {verb} {made} images, {real.name} holds {held}; measure it against images of its own size")
