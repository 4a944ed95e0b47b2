"""The training set: which images of a folder or zip it holds, in which order, with which flips and labels.
Files are read by image_store.py, batches are made by data_loader.py, foreign formats are converted by dataset_tool.py."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from dnnlib import EasyDict, UserError
from torch_utils.image_size import SIZES, SQUARE, start_of, written_size
from training.dataset_labels import LABEL_FILE, fit_names, label_array, match_labels, read_label_file
from training.image_store import FolderStore, ZipStore, decode_array, image_names, open_store


class ImageFolderDataset:
    """Images of a folder or zip as uint8 arrays, with labels from its dataset.json.

    Images are numbered in the order of their sorted names. `max_size` keeps a random part of them, in the same order;
    `xflip` appends a mirrored copy of every kept image. Only the first image is read at construction; the others are
    checked against it when they are read. Objects can be pickled and used by data-loader workers.

    Args:
        path: folder or zip.
        use_labels: False gives every image an empty label.
        max_size: number of images to keep, 1 to all; None keeps all.
        xflip: double the set by mirrored copies.
        random_seed: chooses the images under `max_size`.
        resolution: the expected edge of squares, or [height, width]; None takes what is found.
        any_size: take images of any one size, to be looked at only; networks need certain sizes (torch_utils.image_size).
        store: the files, opened before: what is known of them is not read again.

    Raises:
        UserError: missing or torn set, no images, of a size that networks do not make (unless `any_size`), `max_size` out of range, labels missing
            or not matching.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        random_seed: int = 0,
        resolution: int | list[int] | None = None,
        any_size: bool = False,
        store: FolderStore | ZipStore | None = None,
    ):
        self.path = pathlib.Path(path)
        self.store = open_store(self.path) if store is None else store
        self._names = image_names(self.store)
        if not self._names:
            raise UserError(f"data set {self.path} holds no images (.png, .jpg, ...)")
        self._image_shape = list(self._decode(self._names[0]).shape)
        if not any_size:
            self._check_size(resolution)
        self._raw_labels = self._load_labels() if use_labels else np.zeros([len(self._names), 0], dtype=np.float32)
        # Once, for every item asks: a search through the labels of a million images takes longer than reading one.
        self._label_dim = int(self._raw_labels.max()) + 1 if self.has_onehot_labels else self._raw_labels.shape[1]
        self._raw_idx = self._select(max_size, random_seed)
        self._xflip = np.zeros(self._raw_idx.size, dtype=bool)
        if xflip:
            self._xflip = np.repeat([False, True], self._raw_idx.size)
            self._raw_idx = np.tile(self._raw_idx, 2)

    def _check_size(self, expected: int | list[int] | None) -> None:
        height, width = self._image_shape[1:]
        first = self.store.where(self._names[0])
        if start_of(height, width) is None:
            raise UserError(f"{first} is {width}x{height} pixels; images must be {SIZES}: see dataset_tool.py")
        if expected is not None and (wanted := written_size(expected)) != (height, width):
            asked = "{1}x{0}".format(*wanted) if wanted else str(expected)[:40]
            raise UserError(f"{first} is {width}x{height} pixels, but {asked} is asked for")

    def _load_labels(self) -> np.ndarray:
        file = read_label_file(self.store)
        if file is None or file.table is None:
            found = f"its {LABEL_FILE} says that there are none" if file else f"it has no {LABEL_FILE}"
            raise UserError(f"--cond needs labels, but data set {self.path} is unlabelled: {found}; dataset_tool.py makes labels from sub-folders")
        names = file.own_names(self._names)
        return label_array(match_labels(names, fit_names(file.table, names), names, file.where), file.where)

    def _select(self, max_size: int | None, random_seed: int) -> np.ndarray:
        raw_idx = np.arange(len(self._names), dtype=np.int64)
        if max_size is None or max_size == raw_idx.size:
            return raw_idx
        if not 1 <= max_size <= raw_idx.size:
            raise UserError(f"max_size (--subset) is {max_size}, but data set {self.path} holds {raw_idx.size} images: give 1 to {raw_idx.size}")
        np.random.RandomState(random_seed).shuffle(raw_idx)
        return np.sort(raw_idx[:max_size])

    # Items.

    def __len__(self) -> int:
        return self._raw_idx.size

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [C, H, W] and label float32 [label_dim] of one item. Raises UserError if its file is torn or unlike the first."""
        image = self.read_raw(int(self._raw_idx[idx]))
        if self._xflip[idx]:
            image = image[:, :, ::-1]
        return np.array(image, order="C"), self.get_label(idx)

    def read_raw(self, raw_idx: int) -> np.ndarray:
        """Image number `raw_idx` of all files, never flipped, uint8 [C, H, W]. Raises UserError if its file is torn or unlike the first."""
        image = self._decode(self._names[raw_idx])
        if list(image.shape) != self._image_shape:
            found, wanted = (f"{width}x{height} with {channels} channel(s)" for channels, height, width in (image.shape, self._image_shape))
            where = self.store.where(self._names[raw_idx])
            raise UserError(f"{where} is {found}, the first image {wanted}; see `dataset_tool.py check {self.path}`")
        return image

    def _decode(self, name: str) -> np.ndarray:
        return decode_array(self.store.read(name), self.store.where(name))

    def get_label(self, idx: int) -> np.ndarray:
        """The label of one item, float32 [label_dim]; classes are one-hot."""
        return self.get_labels(np.asarray([idx]))[0]

    def get_labels(self, indices: np.ndarray) -> np.ndarray:
        """The labels of several items, float32 [len(indices), label_dim]; classes are one-hot."""
        raw = self._raw_labels[self._raw_idx[indices]]
        if not self.has_onehot_labels:
            return raw.copy()
        onehot = np.zeros([raw.size, self.label_dim], dtype=np.float32)
        onehot[np.arange(raw.size), raw] = 1
        return onehot

    @property
    def classes(self) -> np.ndarray | None:
        """The class of every item, int64 [N]; None where labels are no classes."""
        return self._raw_labels[self._raw_idx].astype(np.int64) if self.has_onehot_labels else None

    def get_details(self, idx: int) -> EasyDict:
        """EasyDict(raw_idx, xflip, raw_label) of one item: its number among all files, whether it is mirrored, its label as written in the file."""
        raw_idx = int(self._raw_idx[idx])
        return EasyDict(raw_idx=raw_idx, xflip=bool(self._xflip[idx]), raw_label=self._raw_labels[raw_idx].copy())

    # Facts about the set.

    @property
    def name(self) -> str:
        """The stem of the folder or zip."""
        return pathlib.Path(os.path.abspath(self.path)).stem

    @property
    def raw_indices(self) -> np.ndarray:
        """For every item the number of its file, int64 [N]."""
        return self._raw_idx.copy()

    @property
    def flips(self) -> np.ndarray:
        """For every item whether it is mirrored, bool [N]."""
        return self._xflip.copy()

    @property
    def image_shape(self) -> list[int]:
        """[channels, height, width]."""
        return list(self._image_shape)

    @property
    def num_channels(self) -> int:
        """1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
        return self._image_shape[0]

    @property
    def resolution(self) -> int:
        """The edge of square images in pixels; of others the one that their networks' blocks are counted by (torch_utils.image_size)."""
        return self._start()[0]

    @property
    def start_grid(self) -> tuple[int, int]:
        """(height, width) of the grid that networks double until it is an image."""
        return self._start()[1]

    def _start(self) -> tuple[int, tuple[int, int]]:
        height, width = self._image_shape[1:]
        return start_of(height, width) or (height, SQUARE)  # images of any size are looked at only

    @property
    def label_shape(self) -> list[int]:
        """[label_dim]."""
        return [self.label_dim]

    @property
    def label_dim(self) -> int:
        """Length of a label; for classes the largest one of the whole set plus one, whatever `max_size` keeps; 0 without labels."""
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        """Whether labels are in use."""
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are classes."""
        return self._raw_labels.ndim == 1

    @property
    def labels_in_file(self) -> bool:
        """Whether dataset.json holds labels, in use or not. A file of that name that holds something else holds none."""
        try:
            file = read_label_file(self.store)
        except UserError:
            return False
        return file is not None and file.table is not None

    @property
    def labels_usable(self) -> bool:
        """Whether dataset.json holds labels that fit the images, in use or not."""
        try:
            return self._load_labels().size > 0
        except UserError:
            return False

    def fingerprint(self) -> str:
        """Hex digest of the content: names, sizes and CRCs of the files, which of them are items, flips, labels.
        The same for a folder and a zip of it, wherever they lie; a folder is read whole for it."""
        digest = hashlib.sha256()
        for name, (size, crc) in zip(self._names, self.store.checksums(self._names), strict=True):
            digest.update(f"{name}\0{size}\0{crc:08x}\n".encode(errors="surrogateescape"))  # names on a disk need not be UTF-8
        for array in (self._raw_idx, self._xflip, self._raw_labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raises UserError if the files are known to have changed since they were first read."""
        self.store.check_unchanged()

    def close(self) -> None:
        """Closes the zip; a later read opens it again."""
        self.store.close()


def data_to_compare(**arguments: Any) -> ImageFolderDataset:
    """The data set that a network is measured against: with its labels where they can be used, even if the network takes none.

    So its fingerprint, by which figures and cached features are known, is one for all networks, with labels or without.

    Args:
        arguments: of `ImageFolderDataset`.

    Raises:
        UserError: as ImageFolderDataset.
    """
    dataset = ImageFolderDataset(**arguments)
    if dataset.has_labels or not dataset.labels_usable:
        return dataset
    return ImageFolderDataset(**{**arguments, "use_labels": True, "store": dataset.store})


def load_array(dataset: ImageFolderDataset) -> np.ndarray:
    """Every image that the data set uses, once, unflipped, in the order of the files: uint8 [number of images, C, H, W].

    Item i of the data set is row `numpy.searchsorted(numpy.unique(raw_indices), raw_indices[i])`, mirrored where `flips[i]`.
    Raises UserError if any file is torn or unlike the first.
    """
    used = np.unique(dataset.raw_indices)
    images = np.empty([used.size, *dataset.image_shape], dtype=np.uint8)
    for row, raw_idx in enumerate(used.tolist()):
        images[row] = dataset.read_raw(raw_idx)
    return images
