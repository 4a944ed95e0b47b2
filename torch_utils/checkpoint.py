"""Files that hold tensors: network snapshots (safetensors) and training states (torch.save, plain data only).

Reading either one runs no code from the file. This module knows no network class: a network is a record of its class
name, its constructor arguments and its tensors. Foreign pickles are read by torch_utils.legacy; building modules from
records is training.networks' business.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from dnnlib import UserError, atomic_path
from dnnlib.json_files import parse_json
from torch_utils.allocator import is_out_of_memory
from torch_utils.safe_pickle import RefusedPickle
from torch_utils.torch_files import check_archive, obstacle

FORMAT_NAME = "pairing-gan-networks"
FORMAT_VERSION = 1
# One key only: safetensors writes several metadata keys in a random order, and the same networks should give the same bytes.
METADATA_KEY = "pairing_gan"
MAX_TENSORS, MAX_NETWORKS = 10_000, 16  # of one file; the largest networks have some 300 tensors each
NUMBER_TYPES = frozenset(["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"])


@dataclasses.dataclass
class NetworkRecord:
    """A network as data: `class_name` such as "training.networks.Generator", `kwargs` that JSON can hold, `tensors` by state-dict name."""

    class_name: str
    kwargs: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save_networks(path: str | os.PathLike, records: Mapping[str, NetworkRecord], meta: Mapping[str, Any] | None = None) -> None:
    """Writes networks to one safetensors file, whole or not at all; the same records give the same bytes.

    Args:
        path: the file, usually network-snapshot-KKKKKK.safetensors.
        records: networks by name (G_ema, G, D, P); tensors may live on any device, share memory or have any strides.
        meta: anything JSON can hold, such as training_set_kwargs and cur_nimg.

    Raises:
        UserError: the file cannot be written.
        ValueError: a network's name contains a dot, which separates it from the tensor names.
        TypeError: the constructor arguments or `meta` are not JSON material.
    """
    tensors: dict[str, torch.Tensor] = {}
    networks: dict[str, dict] = {}
    for name, record in records.items():
        if not name or "." in name:
            raise ValueError(f"a network's name must be free of dots, not {name!r}")
        networks[name] = {"class_name": record.class_name, "kwargs": record.kwargs}
        tensors.update({f"{name}.{key}": _own_copy(tensor) for key, tensor in record.tensors.items()})
    description = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "digest": tensors_digest(tensors),
        "networks": networks,
        "meta": dict(meta or {}),
    }
    data = safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(description)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_networks(path: str | os.PathLike) -> tuple[dict[str, NetworkRecord], dict[str, Any]]:
    """Reads what `save_networks` wrote: (records by network name, meta), tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, of a newer format, or not a network file of this project.
    """
    path = _existing_file(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = read_tensors(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        if zipfile.is_zipfile(path):
            raise UserError(f"{path} is a zip file, as training states are; a network snapshot is expected") from error
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); a network snapshot is expected") from error
    description = _parse_description(path, metadata)
    if description["digest"] != tensors_digest(tensors):
        raise UserError(f"{path} is damaged: its weights do not match the digest written with them; use another snapshot or a fresh copy")
    return _split_records(path, description["networks"], tensors), description["meta"]


def read_tensors(file: Any) -> dict[str, torch.Tensor]:
    """The tensors of an opened safetensors file, in memory of their own.

    Raises:
        safetensors.SafetensorError: more tensors, or other types of numbers, than any file of this project has.
    """
    names = list(file.keys())
    if len(names) > MAX_TENSORS:
        raise safetensors.SafetensorError(f"{len(names):,} tensors")
    if odd := [name for name in names if file.get_slice(name).get_dtype() not in NUMBER_TYPES]:
        raise safetensors.SafetensorError(f"a tensor of type {file.get_slice(odd[0]).get_dtype()}")
    # Cloned, because the originals are windows into the mapped file, which may be replaced or cut short later.
    return {name: file.get_tensor(name).clone() for name in names}


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file from the tensors as they lie in memory, without a copy of them; atomic only on a path from dnnlib.atomic_path.

    Raises:
        OSError, safetensors.SafetensorError: the folder is missing or the disk is full.
    """
    path = pathlib.Path(path)
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    path.chmod(mode)  # as any other file: safetensors makes files that only their owner can read


def save_state(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Writes a training state, whole or not at all.

    Args:
        path: the file, usually training-state-KKKKKK.pt.
        state: nested dictionaries, lists and tuples of tensors, numbers, strings, bytes, booleans and None.

    Raises:
        UserError: the file cannot be written.
        TypeError: the state holds something that `load_state` would refuse; the message names its place.
    """
    _check_plain(state, "state")
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        remembering = _Remembering(handle)
        try:
            torch.save(dict(state), remembering)
        except RuntimeError as error:  # torch's archive writer reports a failed write of the handle this way, without its reason
            raise remembering.error or OSError(f"the file could not be written whole ({_first_line(error)})") from error


class _Remembering:
    """A file opened for writing that keeps the error by which a write failed."""

    def __init__(self, handle: BinaryIO):
        self._handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._handle.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._handle.flush()


def load_state(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `save_state` wrote, with tensors on the CPU; refuses anything but plain data and tensors.

    Raises:
        UserError: the file is missing, damaged, or holds something else than a training state.
        MemoryError, RuntimeError: there is no memory for it.
    """
    path = _existing_file(path)
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except RefusedPickle as error:
        raise UserError(f"{path} {error}; use another training state or a fresh copy") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the decoder raises a dozen types on damaged bytes; all mean the same to the user
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged or holds more than plain data and tensors; a training state is expected") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; a training state (a dictionary) is expected")
    return state


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of CPU tensors, independent of their order in the mapping."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous CPU copy with its own memory: safetensors refuses shared memory and would misread strides."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _existing_file(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not os.path.isfile(path):  # not Path.is_file: it raises where a folder may not be searched
        raise UserError(f"{path} is {'a folder' if os.path.isdir(path) else 'missing'}; an existing file is expected")
    return path


def _parse_description(path: pathlib.Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The JSON that save_networks put into the metadata, checked for its form."""
    if METADATA_KEY not in metadata:
        raise UserError(f"{path} is a safetensors file without the description of networks that this project's snapshots carry")
    try:
        description = parse_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise UserError(f"{path} is damaged: its description of networks is not JSON") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT_NAME:
        raise UserError(f"{path} describes another format than {FORMAT_NAME}; a network snapshot of this project is expected")
    if description.get("version") != FORMAT_VERSION:
        raise UserError(f"{path} has format version {str(description.get('version'))[:40]}; this code reads version {FORMAT_VERSION}")
    if not isinstance(description.get("networks"), dict) or not isinstance(description.get("meta"), dict) or "digest" not in description:
        raise UserError(f"{path} is damaged: its description of networks is incomplete")
    return description


def _split_records(path: pathlib.Path, networks: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, NetworkRecord]:
    """One record per described network; every tensor must belong to one of them."""
    records: dict[str, NetworkRecord] = {}
    if len(networks) > MAX_NETWORKS:
        raise UserError(f"{path} describes {len(networks):,} networks; a snapshot has at most {MAX_NETWORKS}")
    for name, entry in networks.items():
        valid = isinstance(entry, dict) and isinstance(entry.get("class_name"), str) and isinstance(entry.get("kwargs"), dict)
        if not valid:
            raise UserError(f"{path} is damaged: its description of network {name[:100]!r} lacks the class name or the constructor arguments")
        records[name] = NetworkRecord(entry["class_name"], entry["kwargs"], {})
    for key, tensor in tensors.items():
        name, _, tensor_name = key.partition(".")
        if name not in records or not tensor_name:
            raise UserError(f"{path} is damaged: tensor {key[:100]!r} belongs to none of its networks")
        records[name].tensors[tensor_name] = tensor
    return records


def _check_plain(value: Any, place: str) -> None:
    """Raises TypeError at the first thing that a reader without code execution would refuse."""
    kind = type(value)
    if kind in (type(None), bool, int, float, str, bytes, torch.Size, torch.device):
        return
    if kind in (torch.Tensor, torch.nn.Parameter, torch.dtype):
        if reason := obstacle(value):
            raise TypeError(f"{place} {reason}; only plain tensors can be read back safely")
    elif kind in (dict, collections.OrderedDict):
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{place} has a key of type {type(key).__name__}; only strings and integers can be read back safely")
            _check_plain(entry, f"{place}[{key!r}]")
    elif kind in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{place}[{index}]")
    else:
        raise TypeError(f"{place} is a {kind.__module__}.{kind.__qualname__}; only plain data and tensors can be read back safely")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
