"""Files of torch.save as data: the memory of a tensor in its old format, and the contents of a new one before torch opens it.

Torch's own reader of plain data runs nothing either, but it makes what it is told to make: a kilobyte may ask it for a terabyte.
What the tensors belong to is the business of checkpoint.py and legacy.py.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from typing import Any

import torch

from torch_utils.safe_pickle import PickleMachine, RefusedPickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class _Memory:
    """What a file says of the memory of tensors: number type, the key of its bytes, how many numbers."""

    def __init__(self, name: Any) -> None:
        if not isinstance(name, tuple) or len(name) < 5 or name[0] != "storage" or not _is_count(name[4]) or not isinstance(name[2], str):
            raise RefusedPickle("holds something else where a tensor's memory belongs")
        kind = getattr(name[1], "name", "").removeprefix("torch.")
        if kind not in _STORAGES:
            raise RefusedPickle("holds a tensor of an unknown number type")
        self.dtype, self.key, self.count = _STORAGES[kind], name[2], name[4]


class _Table(dict):
    """An OrderedDict of the file."""

    def set_state(self, state: Any) -> None:
        """Takes its attributes, in which torch keeps version numbers, and which are of no use here."""
        self.attributes = state


def read_storage(data: bytes) -> torch.Tensor:
    """The memory of a tensor in torch's format of before 1.6, as StyleGAN pickles hold it: all of it as one row of numbers.

    Raises:
        RefusedPickle: damaged, or something else.
    """
    stream = io.BytesIO(data)
    machine = PickleMachine({f"torch.{name}": _never for name in _STORAGES}, persistent=_Memory)
    magic, protocol, system, memory, keys = (machine.load(stream) for _ in range(5))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedPickle("holds a tensor in an unknown format")
    if not isinstance(memory, _Memory) or keys != [memory.key]:
        raise RefusedPickle("holds something else where a tensor's memory belongs")
    head = stream.read(8)
    content = data[stream.tell() :]
    if len(head) != 8 or struct.unpack("<q", head)[0] != memory.count or len(content) != memory.count * memory.dtype.itemsize:
        raise RefusedPickle("holds a tensor of another length than it says")
    return torch.frombuffer(bytearray(content), dtype=memory.dtype) if content else torch.empty(0, dtype=memory.dtype)


def check_archive(path: str | os.PathLike) -> None:
    """Makes sure that a file of torch.save holds plain data and tensors only, all of whose bytes are in it, and matches its checksums.

    Raises:
        RefusedPickle: it does not; the text continues a sentence that begins with the file's name.
        OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError: as zipfile, for damaged archives.
    """
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos.values())
        if packed or len(infos) != len(archive.infolist()) or sum(info.file_size for info in infos.values()) > os.path.getsize(path):
            raise RefusedPickle("claims to hold more than its length")
        # Torch writes a checksum for every entry but does not look at it when it reads.
        if archive.testzip() is not None:
            raise RefusedPickle("is damaged: its contents do not match their checksums")
        roots = [name.removesuffix("data.pkl") for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise RefusedPickle("is no file of plain data and tensors")
        sizes = {name.removeprefix(f"{roots[0]}data/"): info.file_size for name, info in infos.items() if name.startswith(f"{roots[0]}data/")}
        PickleMachine(_checkers(), persistent=lambda name: _checked_memory(name, sizes)).load(archive.read(f"{roots[0]}data.pkl"))


def obstacle(value: torch.Tensor | torch.dtype) -> str | None:
    """Why `check_archive` would refuse a file with this in it, the rest of a sentence about it; None: it would not."""
    dtype = value if isinstance(value, torch.dtype) else value.dtype
    if str(dtype).removeprefix("torch.") not in _DTYPE_NAMES:
        return f"is of type {dtype}"
    if isinstance(value, torch.dtype):
        return None
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        return f"is a tensor of layout {value.layout} on {value.device}, not plain memory"
    if value.__dict__:
        return f"is a tensor with the attribute {min(value.__dict__)}"
    if value.storage_offset() + value.numel() > value.untyped_storage().nbytes() // value.itemsize:
        return "is a tensor larger than its memory, as expand makes them"
    return None


def _checkers() -> dict[str, Any]:
    """Builders that make nothing: what a training state may name."""
    types = {f"torch.{name}": _never for name in (*_STORAGES, *_DTYPE_NAMES)}
    return types | {
        "collections.OrderedDict": _Table,
        "torch._utils._rebuild_tensor_v2": _check_tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": lambda extents: extents,
        "_codecs.encode": lambda *_: b"",  # how protocol 2 writes bytes
        "torch.device": lambda *names: names,
    }


def _checked_memory(name: Any, sizes: dict[str, int]) -> _Memory:
    memory = _Memory(name)
    if sizes.get(memory.key) != memory.count * memory.dtype.itemsize:
        raise RefusedPickle("holds a tensor of another length than it says")
    return memory


def _check_tensor(memory: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
    """A tensor may not be larger than its memory: one number could stand for a terabyte by strides of 0."""
    if not isinstance(memory, _Memory) or not _is_count(offset) or not all(isinstance(x, tuple) and all(map(_is_count, x)) for x in (size, stride)):
        raise RefusedPickle("describes a tensor by something else than memory, offset, shape and strides")
    if offset + math.prod(size) > memory.count:
        raise RefusedPickle("describes a tensor larger than its memory")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _never(*_: Any) -> None:
    raise RefusedPickle("calls a number type")
