"""What the common names in network pickles stand for: tables, sets, the tensors of torch, the numbers and arrays of numpy.

Builders for torch_utils.safe_pickle; each makes inert data and refuses what no network file holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch_utils.safe_pickle import GlobalName, RefusedPickle
from torch_utils.torch_files import read_storage

MAX_COUNT = 2**40  # of numbers in a tensor, and along an axis of it
MAX_AXES = 8
DTYPES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])


class Dtype:
    """A numpy number type: its code, and its byte order once the pickle has told."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in DTYPES:
            raise RefusedPickle("holds a numpy number of an unknown type")
        self.code, self.order = code, "="

    def set_state(self, state: Any) -> None:
        """Takes the byte order out of numpy's state tuple."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise RefusedPickle("holds a numpy number type of unknown byte order")
        self.order = order

    def numbers(self) -> np.dtype:
        """What numpy calls it."""
        return np.dtype(self.code).newbyteorder(self.order)


@dataclasses.dataclass
class Storage:
    """The memory of a tensor, all of it as one row of numbers."""

    flat: torch.Tensor


class NumpyArray:
    """An array of numpy, once the pickle has told its content."""

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend
        self._values: np.ndarray | None = None

    def take(self) -> np.ndarray | None:
        """The content, read-only, at the first call; None later, so that a file gets no more out of its bytes than it has."""
        values, self._values = self._values, None
        return values

    def set_state(self, state: Any) -> None:
        """Takes shape, number type, order and bytes out of numpy's state tuple."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedPickle("holds a damaged numpy array")
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray) or not _are_counts(shape) or len(shape) > MAX_AXES:
            raise RefusedPickle("holds a numpy array of something else than numbers")
        if len(data) != math.prod(shape) * dtype.numbers().itemsize or not data:
            raise RefusedPickle("holds a numpy array whose shape does not fit its bytes")
        self._spend(len(data))
        self._values = np.frombuffer(data, dtype.numbers()).reshape(shape, order="F" if by_columns is True else "C")


class Builders:
    """What the names in a network file stand for. No file may make more tensor bytes than it is long."""

    def __init__(self, file_size: int) -> None:
        self._storage_budget = file_size
        self._tensor_budget = file_size

    def table(self) -> dict[str, Callable[..., Any]]:
        """Builders by full name."""
        return {
            "collections.OrderedDict": _empty_dict,
            "dnnlib.util.EasyDict": _empty_dict,
            "builtins.set": _small_set,
            "torch.storage._load_from_bytes": self.storage,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "numpy.dtype": Dtype,
            "numpy.core.multiarray.scalar": _numpy_scalar,
            "numpy._core.multiarray.scalar": _numpy_scalar,
            "numpy.ndarray": _not_called,
            "numpy.core.multiarray._reconstruct": self.empty_array,
            "numpy._core.multiarray._reconstruct": self.empty_array,
            "numpy.core.numeric._frombuffer": self.array,
            "numpy._core.numeric._frombuffer": self.array,
        }

    def storage(self, data: Any) -> Storage:
        """The stored memory."""
        if not isinstance(data, bytes):
            raise RefusedPickle("holds a tensor without its bytes")
        self._spend(len(data))
        try:
            return Storage(read_storage(data))
        except RefusedPickle as error:
            raise RefusedPickle(f"holds a tensor whose bytes are damaged or hold something else: that {error}") from error

    def empty_array(self, kind: Any, *_: Any) -> NumpyArray:
        """An array whose content follows, as pickles before protocol 5 have it."""
        if type(kind) is not GlobalName or kind.name != "numpy.ndarray":
            raise RefusedPickle("holds a numpy array of an unknown kind")
        return NumpyArray(self._spend)

    def array(self, data: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
        """An array with its content, as protocol 5 has it."""
        result = NumpyArray(self._spend)
        result.set_state((1, shape, dtype, order == "F", data))
        return result

    def _spend(self, count: int) -> None:
        self._storage_budget -= count
        if self._storage_budget < 0:
            raise RefusedPickle("unfolds the same bytes into more tensors than it is long")

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        """A tensor with its own contiguous memory."""
        if not isinstance(storage, Storage) or not _are_counts(size) or not _are_counts(stride) or not _are_counts((offset,)):
            raise RefusedPickle("describes a tensor by something else than memory, offset, shape and strides")
        if len(size) != len(stride) or len(size) > MAX_AXES:
            raise RefusedPickle("describes a tensor whose shape and strides do not match")
        flat, count = storage.flat, math.prod(size)
        self._tensor_budget -= count * flat.element_size()
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride)) if count else -1
        # An empty tensor may not have the other extents of one that no memory could hold: torch multiplies them.
        if self._tensor_budget < 0 or last >= flat.numel() or math.prod(max(extent, 1) for extent in size) >= MAX_COUNT:
            raise RefusedPickle("describes a tensor larger than its memory")
        return flat.as_strided(size, stride, offset if count else 0).clone(memory_format=torch.contiguous_format)


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)


def _empty_dict() -> dict:
    return {}


def _not_called(*_: Any) -> None:
    raise RefusedPickle("makes a numpy array of nothing")


def _small_set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple) or len(items) > 100 or not all(isinstance(item, str | int) for item in items):
        raise RefusedPickle("holds a set of something else than a few names")
    return set(items)


def _parameter(tensor: Any, *_: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise RefusedPickle("holds a parameter that is not a tensor")
    return tensor


def _numpy_scalar(dtype: Any, data: Any) -> int | float | bool:
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise RefusedPickle("holds a damaged numpy number")
    if len(data) != dtype.numbers().itemsize:
        raise RefusedPickle("holds a numpy number of the wrong length")
    return np.frombuffer(data, dtype.numbers())[0].item()
