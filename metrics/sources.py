"""What a comparison has on its sides: images of a data set, of a generator, or features saved in a file.

Every side gives a metric the tensors it wants (`Want`), in one pass over its images for all metrics together. Reading images and running
detectors is the work of `metrics.features`; what is wanted comes from `metrics.registry`; feature files are `metrics.feature_files`' format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from metrics.collectors import Collector, Rows, Taker
from metrics.detectors import Detector
from metrics.feature_cache import FeatureCache
from metrics.feature_files import FeatureFile
from metrics.features import DataSource, GeneratorSource, evaluating, full_precision, run_pass
from torch_utils.distributed import broadcast_object, rank

SELECTION_SEED = 0  # of sampled images; part of the protocols, so not the metric seed
GENERATED_PIXELS = 4 * 1024 * 1024  # in flight: StyleGAN2-ADA's batch of 4 at 1024x1024, more at smaller sizes
CHUNK = 4096  # rows of a feature file that a collector takes at a time


@dataclasses.dataclass(frozen=True)
class Want:
    """The tensors that a metric needs from one side; metrics share those whose wants are equal.

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
            len(), get_label, get_details, label_dim, fingerprint(), and resolution or image_shape.
        name: how messages name it.
        cache: where features are kept from one command to the next; None keeps them only as long as this object lives.
    """

    G = None

    def __init__(self, make_dataset: Callable[..., Any], name: str = "the data set", cache: FeatureCache | None = None):
        self.make_dataset = make_dataset
        self.name = name
        self.cache = cache or FeatureCache(enabled=False)
        self._variants: dict[bool, tuple[Any, str]] = {}
        self._kept: dict[Want, dict] = {}

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

    def want(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> Want:
        """What `count` of the images give; `sampled` takes a random choice of a larger set, else the first are taken."""
        dataset, fingerprint = self._variant(keep_flips)
        population = len(dataset) if sampled and count < len(dataset) else None
        return Want(fingerprint, has_flips(dataset), detector.digest, detector.output, collect, count, population)

    def collect(self, wants: dict[Want, Detector], options: PassOptions) -> dict[Want, dict]:
        """Tensors of every want, on rank 0: those that are known, the others from one pass over each variant."""
        found: dict[Want, dict] = {}
        if rank() == 0:
            known = {want: self._kept.get(want) or self.cache.load(_cache_key(want, network)) for want, network in wants.items()}
            found = {want: tensors for want, tensors in known.items() if tensors is not None}
        missing = [want for want, absent in zip(wants, broadcast_object([want not in found for want in wants])) if absent]
        for dataset, fingerprint in {fingerprint: (data, fingerprint) for data, fingerprint in self._variants.values()}.values():
            group = {want: wants[want] for want in missing if want.source == fingerprint}
            chosen = {want: want.indices() for want in group}
            if group:
                union = np.unique(np.concatenate(list(chosen.values())))
                positions = {want: np.searchsorted(union, indices) for want, indices in chosen.items()}
                found |= _collect(DataSource(dataset, options.device, options.workers, union), group, positions, options, self.name)
        if rank() == 0:
            for want in missing:
                self.cache.save(_cache_key(want, wants[want]), found[want])
        self._kept |= found
        return found

    def check_classes(self) -> None:
        """Raises UserError unless the images have labels."""
        if self.dataset().label_dim == 0:
            raise UserError(f"{self.name} has no labels, which a figure per class needs; give it a dataset.json with classes")

    def labels(self, want: Want) -> torch.Tensor:
        """Labels [count, label_dim] of the images of a want."""
        dataset = self.dataset()
        return torch.from_numpy(np.stack([dataset.get_label(int(index)) for index in want.indices()]))

    def image(self, want: Want, number: int) -> torch.Tensor:
        """One of the images of a want, uint8 [C, H, W]."""
        return torch.from_numpy(np.ascontiguousarray(self.dataset()[int(want.indices()[number])][0]))


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
        self.batch = batch or max(min(GENERATED_PIXELS // G.img_resolution**2, batch_detector), 1)
        self.drawn_from = labels
        self._fingerprint = fingerprint
        self.source = GeneratorSource(G, labels, device, seed=seed, batch=self.batch, truncation_psi=truncation_psi, stream=stream)

    def fingerprint(self, keep_flips: bool = False) -> str:
        """Of the network, where it was given."""
        return self._fingerprint

    def image_size(self, keep_flips: bool = False) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.G.img_resolution, self.G.img_resolution

    def available(self, keep_flips: bool = False) -> None:
        """None: as many images as are wanted."""
        return

    def want(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> Want:
        """What the first `count` images give."""
        return Want(self._fingerprint, False, detector.digest, detector.output, collect, count)

    def collect(self, wants: dict[Want, Detector], options: PassOptions) -> dict[Want, dict]:
        """Tensors of every want from one pass, on rank 0."""
        with evaluating(self.G):
            return _collect(self.source, wants, {want: want.indices() for want in wants}, options, f"images of {self.name}")

    def check_classes(self) -> None:
        """Raises UserError unless the generator takes labels."""
        if self.G.c_dim == 0:
            raise UserError(f"{self.name} takes no labels, which a figure per class needs; measure a conditional network")

    def labels(self, want: Want) -> torch.Tensor:
        """Labels [count, c_dim] of the images of a want."""
        return self.source.inputs(0, want.count)[1]

    def image(self, want: Want, number: int) -> torch.Tensor:
        """One of the images of a want, made again, uint8 [C, H, W] on the CPU."""
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

    def want(self, detector: Detector, collect: Callable, count: int, sampled: bool, keep_flips: bool = False) -> Want:
        """What `count` of the rows give, chosen as those of a data set."""
        population = self.available() if sampled and count < self.available() else None
        return Want(self.file.source, False, detector.digest, detector.output, collect, count, population)

    def collect(self, wants: dict[Want, Detector], options: PassOptions) -> dict[Want, dict]:
        """Tensors of every want, on rank 0."""
        if rank() != 0:
            return {}
        return {want: self._tensors(want) for want in wants}

    def _tensors(self, want: Want) -> dict:
        collector = want.collect(want.count)
        for part in np.array_split(want.indices(), -(-want.count // CHUNK)):
            collector.add(self.file.rows[torch.from_numpy(part)])
        return collector.tensors()

    def check_classes(self) -> None:
        """Raises UserError unless the file holds labels."""
        if self.file.labels is None:
            raise UserError(f"{self.name} holds no labels, which a figure per class needs; save the features of a labelled set")

    def labels(self, want: Want) -> torch.Tensor:
        """Labels [count, label_dim] of the images of a want."""
        return self.file.labels[torch.from_numpy(want.indices())]


Side = DataSide | GeneratorSide | FileSide


class Images(Sequence):
    """The images of a want, each read or made only when it is asked for: item i is uint8 [C, H, W]."""

    def __init__(self, side: DataSide | GeneratorSide, want: Want):
        self.side, self.want = side, want

    def __len__(self) -> int:
        return self.want.count

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.side.image(self.want, range(self.want.count)[number])


def _collect(source: Any, wants: dict[Want, Detector], positions: dict[Want, np.ndarray], options: PassOptions, name: str) -> dict[Want, dict]:
    """One pass that fills every want from its `positions` in it; rows that several wants ask for are kept once. On rank 0."""
    passes, filled = [], []
    for kind in dict.fromkeys((want.detector, want.output) for want in wants):
        group = [want for want in wants if (want.detector, want.output) == kind]
        takers = []
        for sharing in ([want for want in group if want.collect is Rows], *([want] for want in group if want.collect is not Rows)):
            if sharing:
                union = np.unique(np.concatenate([positions[want] for want in sharing]))
                takers.append(Taker(sharing[0].collect(len(union)), union))
                filled.append((sharing, takers[-1]))
        passes.append((wants[group[0]], takers))
    if passes:
        run_pass(source, passes, batch=options.batch, device=options.device, progress=name if options.progress else None)
    if rank() != 0:
        return {}
    return {want: _part(taker, positions[want]) for sharing, taker in filled for want in sharing}


def _part(taker: Taker, positions: np.ndarray) -> dict:
    """The tensors of some of a taker's images; a view of the rows where these are the first ones."""
    tensors = taker.collector.tensors()
    if len(positions) == len(taker.positions):
        return tensors
    places = np.searchsorted(taker.positions, positions)
    first = places[-1] == len(places) - 1
    return {"rows": tensors["rows"][: len(places)] if first else tensors["rows"][torch.from_numpy(places)]}


def _cache_key(want: Want, detector: Detector) -> dict:
    return {
        "dataset": want.source,
        "detector": detector.name,
        "digest": want.detector,
        "output": want.output,
        "collect": want.collect.__name__,
        "count": want.count,
        "population": want.population,
        "xflip": want.xflip,
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
