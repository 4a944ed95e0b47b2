"""Whole data sets as arrays: CIFAR-10's and MNIST's own archives, read as data (nothing in them is executed), and scikit-learn's digits.
Folders, zips, LMDB and the choice of a reader are in dataset_sources.py."""

from __future__ import annotations

import gzip
import math
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np

from dnnlib import UserError
from torch_utils.safe_pickle import PickleMachine, RefusedPickle

CIFAR_BATCHES = [f"cifar-10-batches-py/data_batch_{index}" for index in range(1, 6)]
CIFAR_SHAPE = (3, 32, 32)
MNIST_IMAGES = "-images-idx3-ubyte.gz"
MNIST_LABELS = "-labels-idx1-ubyte.gz"
MNIST_EDGE = 28
MNIST_PADDING = 2
DIGIT_LEVELS = 16
ARCHIVE_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError)
LAYOUT_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
CIFAR_BATCH_BYTES = 1 << 26  # a batch has 31 million
CIFAR_ARCHIVE_BYTES = 1 << 28  # unpacked it has 186 million
IDX_BYTES = 1 << 30  # the largest of MNIST's relatives (EMNIST by class) has 547 million
DEFLATE_RATIO = 1032  # the most that deflate can make of a byte


def is_cifar_name(path: pathlib.Path) -> bool:
    """Whether the file name is that of CIFAR-10's Python archive."""
    return path.name.startswith("cifar-10-python") and path.name.endswith((".tar.gz", ".tgz"))


def is_mnist_name(path: pathlib.Path) -> bool:
    """Whether the file name is that of MNIST's (or Fashion-MNIST's) images."""
    return path.name.endswith(MNIST_IMAGES)


# CIFAR-10.


class _PickledDtype:
    """A dtype as the pickle describes it; only unsigned bytes are of use."""

    def __init__(self, code: str = "", *_flags):
        self.code = code

    def set_state(self, state):
        """Takes byte order and alignment, which mean nothing for single bytes."""
        self.layout = state


class _PickledArray:
    """An array as the pickle describes it: shape, element type and bytes."""

    def __init__(self, *_placeholder):
        self.values: np.ndarray | None = None

    def set_state(self, state):
        """Takes the array out of numpy's state tuple."""
        _version, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _PickledDtype) or dtype.code != "u1" or is_fortran:
            raise RefusedPickle("holds an array that is not one of bytes in C order")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.values = np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _encoded(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_BUILDERS = {
    "numpy.core.multiarray._reconstruct": _PickledArray,
    "numpy._core.multiarray._reconstruct": _PickledArray,
    "numpy.ndarray": lambda: None,  # which array pickles pass about but which is never needed here
    "numpy.dtype": _PickledDtype,
    "_codecs.encode": _encoded,
}


def read_cifar_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, 32, 32, 3], labels int64 [N]) of one pickled batch of CIFAR-10.

    Raises:
        UserError: the pickle is damaged, holds something else, or names code to be run (nothing of it is run).
    """
    try:
        batch = PickleMachine(_BUILDERS).load(data)
        pixels, labels = batch["data"].values, np.array(batch["labels"], dtype=np.int64)
        images = pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    except RefusedPickle as error:
        raise UserError(f"{where} is not a batch of CIFAR-10: it {error}; nothing of it was run") from error
    except LAYOUT_ERRORS as error:
        raise UserError(f"{where} is not a batch of CIFAR-10: its layout is unknown ({type(error).__name__}: {error})") from error
    if labels.shape != images.shape[:1] or not ((labels >= 0) & (labels < 10)).all():
        raise UserError(f"{where} is not a batch of CIFAR-10: {len(images)} images need as many labels from 0 to 9")
    return np.ascontiguousarray(images), labels


def read_cifar10(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The 50,000 training images of cifar-10-python.tar.gz in its order: (uint8 [N, 32, 32, 3], labels int64 [N]).

    Raises:
        UserError: the archive is torn or holds something else.
    """
    batches = {}
    try:
        # As a stream, from first to last: what is skipped is unpacked too, and the bound holds for all of it.
        with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, CIFAR_ARCHIVE_BYTES), mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in CIFAR_BATCHES or not member.isfile():
                    continue
                if member.size > CIFAR_BATCH_BYTES:
                    raise UserError(f"{path} is not CIFAR-10's Python archive: its {name} has {member.size:,} bytes")
                batches[name] = read_cifar_batch(archive.extractfile(member).read(), f"{name} in {path}")
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path} is not a whole .tar.gz ({error}); fetch it again") from error
    absent = [name for name in CIFAR_BATCHES if name not in batches]
    if absent:
        raise UserError(f"{path} is not CIFAR-10's Python archive: it lacks {absent[0]}")
    images, labels = (np.concatenate(parts) for parts in zip(*(batches[name] for name in CIFAR_BATCHES)))
    return images, labels


class _Bounded:
    """The reading end of a stream that may give so many bytes and no more."""

    def __init__(self, stream: IO[bytes], max_bytes: int):
        self._stream, self._left = stream, max_bytes

    def read(self, size: int) -> bytes:
        """As of any file. Raises tarfile.ReadError where more than the bound would be read."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("it unpacks to more than such an archive holds")
        return data


# MNIST.


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """A gzipped idx file of unsigned bytes as an array of `dimensions` dimensions. Raises UserError if it is torn or something else."""
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) as packed:
            start = packed.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, dimensions]):
                raise UserError(f"{path} is not an idx file of bytes in {dimensions} dimension(s)")
            shape = struct.unpack(f">{dimensions}I", start[4:])
            count = math.prod(shape)
            if count > min(IDX_BYTES, DEFLATE_RATIO * path.stat().st_size):
                raise UserError(f"{path} is torn: its header announces {_product(shape)} bytes, far more than a file of its length can hold")
            data = packed.read(count + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; MNIST's labels must lie beside its images (or give --labels=none)") from error
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path} is not a whole .gz ({error}); fetch it again") from error
    if len(data) != count:
        raise UserError(f"{path} is torn: its header announces {_product(shape)} bytes, {'more' if len(data) > count else len(data)} follow")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _product(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def read_mnist(path: pathlib.Path, with_labels: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """MNIST's images, padded with zeros from 28x28 to 32x32, with the labels beside them: (uint8 [N, 32, 32], uint8 [N] or None).

    Raises:
        UserError: a file is torn, missing, or holds something else.
    """
    images = read_idx(path, 3)
    if images.shape[1:] != (MNIST_EDGE, MNIST_EDGE) or len(images) == 0:
        raise UserError(f"{path} holds {len(images)} images of {images.shape[2]}x{images.shape[1]} pixels; MNIST's are {MNIST_EDGE}x{MNIST_EDGE}")
    labels = None
    if with_labels:
        labels = read_idx(path.with_name(path.name.removesuffix(MNIST_IMAGES) + MNIST_LABELS), 1)
        if len(labels) != len(images):
            raise UserError(f"{path} holds {len(images)} images, but the file of labels beside it {len(labels)} labels")
    border = (MNIST_PADDING, MNIST_PADDING)
    return np.pad(images, [(0, 0), border, border]), labels


# The digits of scikit-learn.


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, as 32x32: (uint8 [1797, 32, 32], labels int64 [1797]).

    They are enlarged three times and get a margin of four pixels, so that digits set side by side can be told apart.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    fading = np.pad(digits.images, [(0, 0), (1, 1), (1, 1)])  # one dark pixel around, or strokes at the edge would end abruptly
    return np.pad(enlarge(fading, 3), [(0, 0), (1, 1), (1, 1)]), digits.target.astype(np.int64)


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Grey images of 0..16 enlarged by Catmull-Rom splines: [N, H, W] -> uint8 [N, H*factor, W*factor] of 0..255.

    In whole numbers throughout, so that every machine makes the same bytes. Pixels beyond the edge repeat the edge.
    """
    denominator = 2 * (2 * factor) ** 3
    levels = images.astype(np.int64)
    for axis in (1, 2):
        matrix = _spline_matrix(levels.shape[axis], factor)
        levels = np.moveaxis(np.moveaxis(levels, axis, -1) @ matrix.T, -1, axis)
    whole = DIGIT_LEVELS * denominator**2
    return np.clip((levels * 255 * 2 + whole) // (2 * whole), 0, 255).astype(np.uint8)


def _spline_matrix(size: int, factor: int) -> np.ndarray:
    """int64 [size*factor, size]; the entries of a row add up to 2 * (2*factor)**3."""
    matrix = np.zeros([size * factor, size], dtype=np.int64)
    for row in range(size * factor):
        # Pixel centres: output row sits at (row + 1/2) / factor - 1/2, in steps of 1 / (2 * factor).
        base, t = divmod(2 * row + 1 - factor, 2 * factor)
        for tap, weight in enumerate(_catmull_rom(t, 2 * factor)):
            matrix[row, min(max(base + tap - 1, 0), size - 1)] += weight
    return matrix


def _catmull_rom(t: int, steps: int) -> list[int]:
    """The four weights at t / steps between the second and the third point, times 2 * steps**3."""
    one, two, three = t * steps**2, t**2 * steps, t**3
    return [-one + 2 * two - three, 2 * steps**3 - 5 * two + 3 * three, one + 4 * two - 3 * three, -two + three]
