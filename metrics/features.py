"""Passes over data and generator: images in order through detectors, their features into statistics or rows.

One pass serves any number of detectors and collectors, each of which takes the images that its metric asks for. Under torch.distributed
the batches are dealt to the ranks in turn and gathered in order, so every rank count sees the same batches and gives the same figures; rank 0
collects. What a pass draws comes from its own seed, and the training generators are left alone.

Which metric needs what is `metrics.registry`'s business; caching is `metrics.feature_cache`'s.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cores import available_cores
from dnnlib.workers import ReadAhead
from metrics.collectors import FeatureConsumer
from metrics.detectors import Detector
from torch_utils.distributed import gather_objects, rank, world_size
from torch_utils.pixels import to_uint8

LATENT_BLOCK = 64  # Latents and labels are drawn in blocks of this size, each from its own seed, whatever the batch size or the rank.
WORKERS_FROM = 4096  # Fewer images than this are read in the process itself: starting workers costs more than it saves.


class DataSource:
    """Images of a data set in its own order.

    Args:
        dataset: len() and item i -> (uint8 [C, H, W], label).
        device: where the images go.
        workers: reader processes; used for large passes only.
        indices: the images of the pass; None: all.
    """

    def __init__(self, dataset: Any, device: torch.device, workers: int = 0, indices: np.ndarray | None = None):
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices
        self.device = device
        self.workers = min(workers, available_cores())
        self.bad_images = 0  # Bytes are always finite.

    def batches(self, spans: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yields the images [n, C, H, W] of each span (first, last + 1)."""
        indices = [self.indices[first:last].tolist() for first, last in spans]
        workers = self.workers if sum(map(len, indices)) >= WORKERS_FROM else 0
        pinned = self.device.type == "cuda"
        for images in ReadAhead(_ImagesOnly(self.dataset), batch_sampler=indices, num_workers=workers, pin_memory=pinned):
            yield images.to(self.device, non_blocking=True)


class _ImagesOnly(torch.utils.data.Dataset):
    """The images of a data set without their labels."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.dataset[index][0]))


def made_size(G: Any) -> tuple[int, int]:
    """(height, width) of a generator's images in pixels: its `img_size`, or the square that its `img_resolution` is the edge of."""
    return getattr(G, "img_size", None) or (G.img_resolution, G.img_resolution)


class GeneratorSource:
    """Images of a generator for latents and labels that depend on nothing but `seed` and the image's number.

    Args:
        G: module with z_dim, c_dim and G(z, c, truncation_psi=, noise_mode="const") -> images [-1, 1], on `device`.
        dataset: labels are those of its items, drawn uniformly; only asked where c_dim > 0.
        device: where G is.
        seed: of latents and labels.
        batch: images per call of G.
        truncation_psi: 1 is no truncation.
        stream: sources of one seed and different streams share no latents.

    Raises:
        UserError: the generator takes labels and the data set has none of that length.
    """

    def __init__(self, G: Any, dataset: Any, device: torch.device, seed: int = 0, batch: int = 4, truncation_psi: float = 1.0, stream: int = 0):
        self.G = G
        self.dataset = dataset
        self.device = device
        self.seed = seed
        self.stream = stream
        self.batch = batch
        self.truncation_psi = truncation_psi
        self.bad_images: int | torch.Tensor = 0
        if G.c_dim > 0 and dataset is None:
            raise UserError(f"the generator takes labels of length {G.c_dim}, and there is no data set to take them from; name one, with labels")
        if G.c_dim > 0 and G.c_dim != dataset.label_dim:
            found = f"the generator takes labels of length {G.c_dim}, the labels of the data set have length {dataset.label_dim}"
            raise UserError(f"{found}; measure it against its own data set, with labels")

    def inputs(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [n, z_dim] and labels [n, c_dim] of the images first..last-1, float32 on the CPU."""
        blocks = [self._block(block) for block in range(first // LATENT_BLOCK, (last - 1) // LATENT_BLOCK + 1)]
        offset = first // LATENT_BLOCK * LATENT_BLOCK
        z, c = (np.concatenate(parts)[first - offset : last - offset] for parts in zip(*blocks))
        return torch.from_numpy(z), torch.from_numpy(c)

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, number, self.stream])
        z = rng.standard_normal((LATENT_BLOCK, self.G.z_dim), dtype=np.float32)
        if self.G.c_dim == 0:
            return z, np.zeros((LATENT_BLOCK, 0), dtype=np.float32)
        items = rng.integers(len(self.dataset), size=LATENT_BLOCK)
        return z, self.dataset.get_labels(items).astype(np.float32, copy=False)

    def batches(self, spans: Sequence[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yields uint8 images [n, C, H, W] of each span (first, last + 1)."""
        self.bad_images = 0
        for first, last in spans:
            z, c = (part.to(self.device) for part in self.inputs(first, last))
            images = [self._generate(*part) for part in zip(z.split(self.batch), c.split(self.batch))]
            yield torch.cat(images)

    def _generate(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        images = self.G(z, c, truncation_psi=self.truncation_psi, noise_mode="const")
        self.bad_images = self.bad_images + (~torch.isfinite(images).flatten(1).all(dim=1)).sum()
        return to_uint8(images)


def run_pass(
    source: Any,
    detectors: Sequence[tuple[Detector, Sequence[FeatureConsumer]]],
    *,
    batch: int,
    device: torch.device,
    progress: str | None = None,
) -> None:
    """Feeds the images of `source` through every detector until each collector has its rows.

    Args:
        source: batches(spans) yields uint8 images on `device`; bad_images counts those that were not finite before.
        detectors: (detector, consumers of its features); the detector stops where its last consumer does.
        batch: images per detector call.
        device: of images and detectors.
        progress: name of a progress bar on stderr; None shows none.

    Raises:
        UserError: images that cannot be read, a detector that fails on them, or features or images that are not finite; on every rank alike. Any
            other error is raised on its own rank only: it ends the process, and the others learn of it from that.
    """
    total = max(consumer.stop for _, consumers in detectors for consumer in consumers)
    own_rank, ranks = rank(), world_size()
    spans = [(first, min(first + batch, total)) for first in range(0, total, batch)]
    rounds = [spans[first : first + ranks] for first in range(0, len(spans), ranks)]
    own = iter(source.batches([spans_of_round[own_rank] for spans_of_round in rounds if own_rank < len(spans_of_round)]))
    with torch.no_grad(), full_precision(), _progress_bar(progress if own_rank == 0 else None, total) as bar:
        for spans_of_round in rounds:
            first = spans_of_round[0][0]
            looking = [(detector, consumers) for detector, consumers in detectors if first < max(consumer.stop for consumer in consumers)]
            rows, failure = [None] * len(looking), None
            try:
                if own_rank < len(spans_of_round):  # The last round may have fewer batches than there are ranks.
                    images = next(own)
                    rows = [detector(images) for detector, _ in looking]
            except UserError as error:
                failure = error
            if _sum_over_ranks(failure is not None, device):
                raise_together(failure)
            for (detector, consumers), own_rows in zip(looking, rows):
                features = _gather(own_rows, [last - first for first, last in spans_of_round], batch, device)
                if not torch.isfinite(features).all():
                    raise UserError(f"detector {detector.name} returns features with NaN or infinity; use another file or another --detector")
                if own_rank == 0:
                    for consumer in consumers:
                        consumer.take(features, first)
            bar.update(spans_of_round[-1][1] - spans_of_round[0][0])
    bad_images = _sum_over_ranks(source.bad_images, device)
    if bad_images:
        raise UserError(f"the generator makes NaN or infinity in {bad_images:,} of {total:,} images; a figure of them would mean nothing")


def _progress_bar(name: str | None, total: int) -> tqdm:
    """A bar on stderr, silent without a name; in a log file it writes a line now and then only."""
    return tqdm(total=total, desc=name, unit="img", disable=name is None, mininterval=0.5 if sys.stderr.isatty() else 20)


def _gather(features: torch.Tensor | None, sizes: list[int], batch: int, device: torch.device) -> torch.Tensor:
    """Rows of all ranks in rank order; `sizes` says how many rows each rank has, None stands for no rows on this one."""
    ranks = world_size()
    if ranks == 1:
        return features
    width = features.shape[1] if features is not None else 0
    if len(sizes) < ranks:  # A rank without rows may not know how wide they are.
        widest = torch.tensor(width, device=device)
        dist.all_reduce(widest, op=dist.ReduceOp.MAX)
        width = int(widest)
    padded = torch.zeros(batch, width, device=device)
    if features is not None:
        padded[: len(features)] = features
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


def _sum_over_ranks(count: int | torch.Tensor, device: torch.device) -> int:
    if world_size() == 1:
        return int(count)
    total = torch.as_tensor(count, device=device, dtype=torch.int64)
    dist.all_reduce(total)
    return int(total)


def raise_together(failure: UserError | None) -> None:
    """To be called by all ranks alike: raises on each of them the first rank's failure that has one."""
    failures = [error for error in gather_objects(failure) if error is not None]
    if failures:
        raise failures[0]


def succeed_together(work: Callable[[], Any]) -> Any:
    """What `work` gives, on every rank its own, provided that it succeeds on all of them.

    Raises:
        UserError: it did on some rank; on every rank alike.
    """
    value, failure = None, None
    try:
        value = work()
    except UserError as error:
        failure = error
    raise_together(failure)
    return value


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts a module and all its parts into eval mode, and each back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switches TF32 off on CUDA, because figures must not depend on a training run's speed settings, and restores the settings afterwards.

    What it does not reach are convolutions of a TorchScript file that was traced with TF32 on: tracing writes that down in the file.
    """
    flags, names = _tf32_settings()
    before = [(place, name, value) for place, name in (*flags, *names) if (value := _setting(place, name)) is not None]
    try:
        # A flag sets the names, too, so that afterwards the two agree: PyTorch raises an error where it reads a flag that its names contradict.
        for place, name in flags:
            setattr(place, name, False)
        for place, name in names:
            setattr(place, name, "ieee")
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _tf32_settings() -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
    """(where, name) of what decides on TF32: a flag per library and, since PyTorch 2.9, a name per operator."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    operators = products, getattr(convolutions, "conv", None), getattr(convolutions, "rnn", None)
    names = [(operator, "fp32_precision") for operator in operators if hasattr(operator, "fp32_precision")]
    return [(products, "allow_tf32"), (convolutions, "allow_tf32")], names


def _setting(place: Any, name: str) -> Any:
    """What is set; None where that cannot be read, since a flag and the names contradict each other already."""
    try:
        return getattr(place, name)
    except RuntimeError:
        return None
