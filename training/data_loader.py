"""Endless batches of a training set: the order of the images, and the two ways of fetching them.
Small sets live on the training device as one uint8 tensor, large ones stream through worker processes; both give the same batches."""

from __future__ import annotations

import contextlib
import copy
import re
import traceback
from collections.abc import Iterator

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.cores import available_cores
from dnnlib.workers import ReadAhead
from training.dataset import ImageFolderDataset, load_array

WINDOW = 0.5
RESIDENT_BYTES = 2 << 30
PREFETCH_FACTOR = 2
LOST_READER = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)|shared memory(\(shm\)| object)"  # in what torch raises


class IndexStream:
    """An endless order of 0 .. length-1 by windowed shuffling, dealt out to several replicas in turn.

    The order is walked round and round. Behind the walk, each entry is exchanged with a random one of the share `window` of
    all entries that was passed last: every round has another order, and no image comes back before 1 - window of a round has gone by.
    A round need not hold every image once, the first one neither; in the long run all come equally often.
    All replicas walk the same order and replica r takes every `num_replicas`-th entry from r on: together they see what one would see.

    Args:
        length: number of items, at least 1.
        seed: chooses the order, 0 to 2**32 - 1.
        rank: this replica, below num_replicas.
        num_replicas: number of replicas.
        window: share of the items that an exchange can reach; below 2 items the order stays as it is.
    """

    def __init__(self, length: int, seed: int = 0, rank: int = 0, num_replicas: int = 1, window: float = WINDOW):
        self._random = np.random.RandomState(seed % (1 << 32))
        self._order = np.arange(length, dtype=np.int64)
        self._random.shuffle(self._order)
        self._reach = int(np.rint(length * window))
        self._rank, self._num_replicas = rank, num_replicas
        self._position = 0

    def take(self, count: int) -> np.ndarray:
        """This replica's next `count` indices, int64 [count]; every replica must take as many."""
        total = count * self._num_replicas
        entries = (self._position + np.arange(total, dtype=np.int64)) % self._order.size
        reached = np.zeros(0) if self._reach < 2 else (entries - self._random.randint(self._reach, size=total)) % self._order.size
        taken = np.empty(total, dtype=np.int64)
        # One after the other: an exchange may move an entry that this very call reaches later.
        for step in range(total):
            here = entries[step]
            taken[step] = self._order[here]
            if self._reach >= 2:
                there = reached[step]
                self._order[here], self._order[there] = self._order[there], self._order[here]
        self._position += total
        return taken[self._rank :: self._num_replicas]

    def state_dict(self) -> dict:
        """Order, random state and position: tensors and numbers only. It is the same on every replica."""
        _, keys, offset, _, _ = self._random.get_state(legacy=True)
        return {
            "order": torch.from_numpy(self._order.copy()),
            "random_keys": torch.from_numpy(keys.astype(np.int64)),
            "random_offset": int(offset),
            "position": self._position,
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state` was taken. Raises UserError if that was a data set of another length."""
        order = state["order"].cpu().numpy().astype(np.int64)
        if order.size != self._order.size:
            raise UserError(f"the saved state is of a data set of {order.size} items (--data, --subset, --mirror), this one has {self._order.size}")
        self._order = order.copy()
        keys = state["random_keys"].cpu().numpy().astype(np.uint32)
        self._random.set_state(("MT19937", keys, int(state["random_offset"]), 0, 0.0))
        self._position = int(state["position"])


class LabelTable:
    """The labels of all items on a device; classes as numbers, since their one-hot vectors would take gigabytes for a million images of a thousand.

    Args:
        dataset: the training set.
        device: where the labels are wanted.
    """

    def __init__(self, dataset: ImageFolderDataset, device: torch.device):
        classes = dataset.classes
        self._label_dim, self._are_classes = dataset.label_dim, classes is not None
        values = classes if self._are_classes else dataset.get_labels(np.arange(len(dataset)))
        self._values = torch.from_numpy(values).to(device)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        """float32 [len(indices), label_dim]."""
        values = self._values[indices]
        if not self._are_classes:
            return values
        onehot = torch.zeros([len(values), self._label_dim], device=values.device)
        return onehot.scatter_(1, values[:, None], 1)  # F.one_hot may wait for the device


class _Loader:
    """What both loaders share: `next` gives (images uint8 [N, C, H, W], labels float32 [N, label_dim]) on the device, for ever."""

    def __init__(self, dataset: ImageFolderDataset, stream: IndexStream, batch_size: int, device: torch.device):
        self._dataset, self._stream, self._batch_size, self._device = dataset, stream, batch_size, device

    def __iter__(self):
        return self

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on with the next batch: tensors and numbers only."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Goes on with the batch after the one that was fetched last when `state` was taken. Raises UserError on a data set of another length."""
        self._stream.load_state_dict(state)

    def close(self) -> None:
        """Lets go of memory and processes; the loader is of no use afterwards."""
        self._dataset.close()


class ResidentLoader(_Loader):
    """The whole data set as one uint8 tensor on the device; a batch is an indexed copy of it."""

    def __init__(self, dataset: ImageFolderDataset, stream: IndexStream, batch_size: int, device: torch.device):
        super().__init__(dataset, stream, batch_size, device)
        _, rows = np.unique(dataset.raw_indices, return_inverse=True)
        self._images = torch.from_numpy(load_array(dataset)).to(device)
        self._labels = LabelTable(dataset, device)
        self._rows = torch.from_numpy(rows.reshape(-1)).to(device)
        self._flips = torch.from_numpy(dataset.flips).to(device)
        self._any_flips = bool(dataset.flips.any())
        dataset.close()

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        indices = torch.from_numpy(np.ascontiguousarray(self._stream.take(self._batch_size)))
        if self._device.type == "cuda":
            indices = indices.pin_memory()  # else the copy would wait for the device
        indices = indices.to(self._device, non_blocking=True)
        images = self._images[self._rows[indices]]
        if self._any_flips:
            images = torch.where(self._flips[indices].reshape(-1, 1, 1, 1), images.flip(3), images)
        return images, self._labels[indices]

    def close(self) -> None:
        """Lets go of the tensors; the loader is of no use afterwards."""
        super().close()
        self._images = self._labels = None


@contextlib.contextmanager
def readers_explained(*signs: type[Exception]) -> Iterator[None]:
    """Turns the loss of a worker process within, or of the memory it shares, into a UserError that names --workers and Docker's --shm-size.

    Args:
        signs: exceptions that can have no other reason in this block.
    """
    try:
        yield
    except (RuntimeError, *signs) as error:
        if not isinstance(error, signs) and not re.search(LOST_READER, str(error)):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what holds the other workers, whose end this process would wait for
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1].split(". ")[0].rstrip(".")  # after the worker's traceback
        choice = "give it more memory, above all shared memory (docker run --shm-size=8g), or take fewer --workers (0: none)"
        if "Too many open files" in reason:
            choice = "allow more open files (ulimit -n), or take fewer --workers (0: none)"
        raise UserError(f"a process that reads images is lost ({reason}); {choice}") from error


class StreamingLoader(_Loader):
    """Batches read by worker processes, some ahead of the training."""

    def __init__(self, dataset: ImageFolderDataset, stream: IndexStream, batch_size: int, device: torch.device, workers: int):
        super().__init__(dataset, stream, batch_size, device)
        self._workers = min(workers, available_cores())  # more of them would only wait for each other
        self._batches: ReadAhead | None = None

    def _start(self) -> ReadAhead:
        # Workers run ahead, so they follow a copy; the stream of this object stands where the training stands.
        ahead = _BatchSampler(copy.deepcopy(self._stream), self._batch_size)
        return ReadAhead(
            _BatchReader(self._dataset),
            batch_size=None,
            sampler=ahead,
            num_workers=self._workers,
            prefetch_factor=PREFETCH_FACTOR if self._workers else None,
            pin_memory=self._device.type == "cuda",
        )

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._batches is None:
            self._batches = self._start()
        with readers_explained(ConnectionError, EOFError):  # by which it shows that a worker ends while it sends
            images, labels, error = next(self._batches)
        if error:
            raise UserError(error)
        self._stream.take(self._batch_size)
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def load_state_dict(self, state: dict) -> None:
        """Goes on with the batch after the one that was fetched last when `state` was taken. Raises UserError on a data set of another length."""
        super().load_state_dict(state)
        self._end()

    def close(self) -> None:
        """Ends the workers; the next batch would start them again."""
        self._end()
        super().close()

    def _end(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class _BatchSampler:
    """The indices of one batch after another, as DataLoader wants them: iterated in the main process."""

    def __init__(self, stream: IndexStream, batch_size: int):
        self._stream, self._batch_size = stream, batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            yield self._stream.take(self._batch_size)


class _BatchReader:
    """Reads whole batches in a worker. A user's mistake travels back as text, because workers wrap exceptions in their tracebacks."""

    def __init__(self, dataset: ImageFolderDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, str]:
        labels = torch.from_numpy(self._dataset.get_labels(indices))
        try:
            images = np.stack([self._dataset[index][0] for index in indices.tolist()])
        except UserError as error:
            return torch.zeros(0), labels, str(error)
        batch = torch.from_numpy(images), labels
        if torch.utils.data.get_worker_info() is not None:
            # Else the thread that sends it would do so, lose the batch where there is no room, and leave its receiver waiting for ever.
            batch = tuple(part.share_memory_() for part in batch)
        return *batch, ""


def resident_bytes(dataset: ImageFolderDataset) -> int:
    """Memory that the whole data set takes on a device: uint8 images, each once, and their labels, in bytes."""
    images = np.unique(dataset.raw_indices).size * int(np.prod(dataset.image_shape))
    return images + len(dataset) * (8 if dataset.has_onehot_labels else 4 * dataset.label_dim)


def open_loader(
    dataset: ImageFolderDataset,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
    rank: int = 0,
    num_replicas: int = 1,
    workers: int = 3,
    resident: bool | None = None,
) -> ResidentLoader | StreamingLoader:
    """An endless iterator over shuffled batches, (images uint8 [N, C, H, W], labels float32 [N, label_dim]) on `device`.

    Args:
        dataset: the training set.
        batch_size: images per batch of this replica.
        device: where the batches go.
        seed: chooses the order; must be the same on all replicas.
        rank: this replica.
        num_replicas: all replicas together walk through the order that one alone would walk through.
        workers: processes that read ahead when streaming; 0 reads in this process.
        resident: keep the whole set on `device`; None does so up to 2 GiB.

    Raises:
        UserError: batch_size below 1; when resident, any file that is torn or unlike the first (else `next` raises it).
    """
    if batch_size < 1:
        raise UserError(f"the batch size per process is {batch_size}; it must be at least 1")
    device = torch.device(device)
    stream = IndexStream(len(dataset), seed=seed, rank=rank, num_replicas=num_replicas)
    if resident if resident is not None else resident_bytes(dataset) <= RESIDENT_BYTES:
        return ResidentLoader(dataset, stream, batch_size, device)
    return StreamingLoader(dataset, stream, batch_size, device, workers)
