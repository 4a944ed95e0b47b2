"""Whole data sets as arrays: CIFAR-10's and MNIST's own archives, read as data (nothing in them is executed), and scikit-learn's digits.
Folders, zips, LMDB and the choice of a reader are in dataset_sources.py."""

from __future__ import annotations

import gzip
import io
import pathlib
import pickle
import struct
import tarfile
import zlib

import numpy as np

from dnnlib import UserError

CIFAR_BATCHES = [f"cifar-10-batches-py/data_batch_{index}" for index in range(1, 6)]
CIFAR_SHAPE = (3, 32, 32)
MNIST_IMAGES = "-images-idx3-ubyte.gz"
MNIST_LABELS = "-labels-idx1-ubyte.gz"
MNIST_EDGE = 28
MNIST_PADDING = 2
DIGIT_LEVELS = 16
ARCHIVE_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError)
PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, MemoryError)


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

    def __setstate__(self, state):
        self.layout = state  # byte order and alignment, which mean nothing for single bytes


class _PickledArray:
    """An array as the pickle describes it: shape, element type and bytes."""

    def __init__(self, *_placeholder):
        self.values: np.ndarray | None = None

    def __setstate__(self, state):
        _version, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _PickledDtype) or dtype.code != "u1" or is_fortran:
            raise pickle.UnpicklingError("an array that does not hold bytes in C order")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.values = np.frombuffer(data, dtype=np.uint8).reshape(shape)


class _ArrayType:
    """Stands for numpy.ndarray, which array pickles pass about but which is never needed here."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, strings, bytes, numbers and byte arrays. Every other name in the pickle is refused."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _ArrayType,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): lambda text, _encoding="latin1": text.encode("latin1"),
    }

    def find_class(self, module: str, name: str):
        """The harmless stand-in of an allowed name."""
        try:
            return self.ALLOWED[module, name]
        except KeyError as error:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed") from error


def read_cifar_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, 32, 32, 3], labels int64 [N]) of one pickled batch of CIFAR-10.

    Raises:
        UserError: the pickle is damaged, holds something else, or names code to be run (nothing of it is run).
    """
    try:
        batch = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        pixels, labels = batch["data"].values, np.array(batch["labels"], dtype=np.int64)
        images = pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    except PICKLE_ERRORS as error:
        raise UserError(f"{where} is not a batch of CIFAR-10: {error}") from error
    if labels.shape != images.shape[:1] or not ((labels >= 0) & (labels < 10)).all():
        raise UserError(f"{where} is not a batch of CIFAR-10: {len(images)} images need as many labels from 0 to 9")
    return np.ascontiguousarray(images), labels


def read_cifar10(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The 50,000 training images of cifar-10-python.tar.gz in its order: (uint8 [N, 32, 32, 3], labels int64 [N]).

    Raises:
        UserError: the archive is torn or holds something else.
    """
    batches = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
            absent = [name for name in CIFAR_BATCHES if name not in members]
            if absent:
                raise UserError(f"{path} is not CIFAR-10's Python archive: it lacks {absent[0]}")
            for name in CIFAR_BATCHES:
                batches.append(read_cifar_batch(archive.extractfile(members[name]).read(), f"{name} in {path}"))
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path} is not a whole .tar.gz ({error}); fetch it again") from error
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    return images, labels


# MNIST.


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """A gzipped idx file of unsigned bytes as an array of `dimensions` dimensions. Raises UserError if it is torn or something else."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; MNIST's labels must lie beside its images (or give --labels=none)") from error
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path} is not a whole .gz ({error}); fetch it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is not an idx file of bytes in {dimensions} dimension(s)")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != int(np.prod(shape, dtype=object)):
        raise UserError(f"{path} is torn: its header announces {'x'.join(map(str, shape))} bytes, {len(data) - header} follow")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


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
