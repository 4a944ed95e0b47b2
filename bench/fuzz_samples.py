"""What the sound files of the fuzzed readers are made of: tiny networks, pickles of other programs, TorchScript, pictures and labels."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.networks import Discriminator, Generator

EDGE = 8


def tiny_networks() -> dict[str, torch.nn.Module]:
    """G_ema and D of a few channels, conditional, always the same."""
    sizes = {"channel_base": 32, "channel_max": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G = Generator(4, 2, 4, EDGE, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={**sizes, "num_fp16_res": 1, "conv_clamp": 256})
        return {"G_ema": G, "D": Discriminator(2, EDGE, 3, **sizes)}


class Call:
    """In a hand-written pickle: the call of a named global."""

    def __init__(self, name: str, *args: Any):
        self.module, _, self.name = name.rpartition(".")
        self.args = args


def as_persistent(module: torch.nn.Module) -> Call:
    """A module as StyleGAN2-ADA pickles it."""
    state = {
        "_parameters": {name: stored_tensor(value) for name, value in module._parameters.items() if value is not None},
        "_buffers": {name: stored_tensor(value) for name, value in module._buffers.items() if value is not None},
        "_modules": {name: as_persistent(child) for name, child in module._modules.items() if child is not None},
        "_init_args": (),
        "_init_kwargs": {name: value for name, value in getattr(module, "init_kwargs", {}).items() if name != "low_precision"},
    }
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": type(module).__name__, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def stored_tensor(tensor: torch.Tensor) -> Call:
    """A tensor as a plain pickle holds it, its memory in torch's old format."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    memory = Call("torch.storage._load_from_bytes", tensor._typed_storage().__reduce__()[1][0])
    return Call("torch._utils._rebuild_tensor_v2", memory, 0, tuple(tensor.shape), tensor.stride(), False, Call("collections.OrderedDict"))


def pickled(value: Any) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + emit(value) + b"."


def emit(value: Any) -> bytes:
    """Pickle opcodes (protocol 2) of plain data and calls, as older writers lay them out."""
    if isinstance(value, Call):
        return b"c" + f"{value.module}\n{value.name}\n".encode() + emit(tuple(value.args)) + b"R"
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    if not isinstance(value, dict):
        raise TypeError(f"no opcodes for a {type(value).__name__}")
    return b"}(" + b"".join(emit(key) + emit(entry) for key, entry in value.items()) + b"u"


class PlainDetector(torch.nn.Module):
    """A detector as users bring theirs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).flatten(1)


class HostileDetector(torch.nn.Module):
    """A detector that writes a file of its choice as soon as it is loaded."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).flatten(1)

    @torch.jit.export
    def __getstate__(self):
        return self.target

    @torch.jit.export
    def __setstate__(self, state: str):
        self.target = state
        torch.save(torch.zeros(1), state)
        self.training = False


def pictures_of_noise(count: int = 4) -> dict[str, bytes]:
    """PNG files by name."""
    rng = np.random.default_rng(0)
    pictures = {}
    for index in range(count):
        with io.BytesIO() as buffer:
            Image.fromarray(rng.integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)).save(buffer, "png")
            pictures[f"0000{index % 2}/img{index:04d}.png"] = buffer.getvalue()
    return pictures


def labels_of(names: Iterable[str]) -> bytes:
    """A dataset.json with classes."""
    return json.dumps({"labels": [[name, index % 3] for index, name in enumerate(names)]}).encode()
