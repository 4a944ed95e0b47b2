"""Features and statistics of real images on disk, keyed by content: data set fingerprint, detector digest and protocol, never by a path.

An entry is a safetensors file with its key and a checksum of its tensors. One that cannot be read, is of another version of this code or does
not match is discarded and computed again.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable

import safetensors
import torch

from dnnlib import UserError, atomic_path, download
from dnnlib.format import printable
from dnnlib.json_files import parse_json
from torch_utils.checkpoint import read_tensors, write_tensors

FORMAT = 1  # Part of every key: raise it when features of the same images, detector and protocol would come out differently.


class FeatureCache:
    """A folder of cached tensors.

    Args:
        folder: default is `feature-cache` in the project's cache folder; created on the first write.
        enabled: False finds nothing and keeps nothing.
        log: receives one line per entry that is used or rebuilt.
    """

    def __init__(self, folder: pathlib.Path | str | None = None, enabled: bool = True, log: Callable[[str], None] | None = None):
        self.enabled = enabled
        self.folder = None if not enabled else pathlib.Path(folder) if folder is not None else download.cache_place("feature-cache")
        self.log = log or (lambda line: None)

    def path(self, key: dict) -> pathlib.Path:
        """The file of an entry; `key` is a JSON-able description of everything that its content depends on."""
        return self.folder / f"{key['detector']}-{hashlib.sha256(_key_text(key).encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: dict) -> dict[str, torch.Tensor] | None:
        """The tensors of an entry, or None where it is absent, damaged, of another version or not allowed."""
        if not self.enabled or not self.path(key).is_file():
            return None
        path = self.path(key)
        try:
            with safetensors.safe_open(path, framework="pt") as handle:
                entry = parse_json((handle.metadata() or {}).get("entry", "{}"))
                tensors = read_tensors(handle)
                entry = entry if isinstance(entry, dict) else {}
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            self.log(f"cached features {path} cannot be read ({printable(str(error))[:200]}) and are computed again")
            return None
        if entry.get("key") != _key_text(key):
            self.log(f"cached features {path} are of another version and are computed again")
            return None
        if entry.get("checksum") != tensors_checksum(tensors):
            self.log(f"cached features {path} are damaged and are computed again")
            return None
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors.values()):
            self.log(f"cached features {path} hold what no detector gives and are computed again")
            return None
        self.log(f"using cached features {path}")
        return tensors

    def save(self, key: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Writes an entry, whole or not at all. A folder that cannot be written costs time later but no figure now, so it is only logged."""
        if not self.enabled:
            return
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                write_tensors(temporary, tensors, metadata={"entry": _entry_text(key, tensors)})
        except (UserError, OSError, safetensors.SafetensorError) as error:
            self.log(f"the features of real images are not kept: {error}")


def _key_text(key: dict) -> str:
    return json.dumps({"format": FORMAT, **key}, sort_keys=True)


def _entry_text(key: dict, tensors: dict[str, torch.Tensor]) -> str:
    # One text, because the order of several in the file would not be fixed.
    return json.dumps({"key": _key_text(key), "checksum": tensors_checksum(tensors)})


def tensors_checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 over names, shapes and bytes of CPU tensors, 8 hex digits."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        value = zlib.crc32(f"{name}{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"", value)
    return f"{value:08x}"
