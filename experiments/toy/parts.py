"""What training and measuring one model left behind, as one file: DIR/parts/STUDY/METHOD/seed-NNN.safetensors.

A part is written whole or not at all, and carries the protocol it was made by, so that tables and figures of the same study share it and a
stopped run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import safetensors
import safetensors.torch
import torch

from dnnlib import UserError, atomic_write_bytes, make_folder
from dnnlib.json_files import parse_json
from experiments.toy.models import Stack
from torch_utils.checkpoint import read_tensors

METADATA_KEY = "part"


@dataclasses.dataclass
class Part:
    """One trained and measured model.

    Attributes:
        study, method, seed: what was trained.
        measures: figure by name.
        G: weights of the generator, a stack of one.
        snapshots: generators during training by step; kept for the first seed only.
        history: losses over training, {"step": [T], name: [T]}.
    """

    study: str
    method: str
    seed: int
    measures: dict[str, float]
    G: Stack
    snapshots: dict[int, Stack]
    history: dict[str, torch.Tensor]


def part_path(out: pathlib.Path, study: str, method: str, seed: int) -> pathlib.Path:
    """Where the part of a model lies."""
    folder = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
    return out / "parts" / study / folder / f"seed-{seed:03d}.safetensors"


def save_part(part: Part, out: pathlib.Path, protocol: dict[str, Any]) -> None:
    """Writes a part with the protocol it was made by (JSON-able). Raises UserError if that is impossible."""
    tensors = {f"G.{index}": tensor for index, tensor in enumerate(part.G)}
    tensors |= {f"snapshot.{step}.{index}": tensor for step, stack in part.snapshots.items() for index, tensor in enumerate(stack)}
    tensors |= {f"history.{name}": values for name, values in part.history.items()}
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    described = {"study": part.study, "method": part.method, "seed": part.seed, "measures": part.measures, "protocol": protocol}
    path = part_path(out, part.study, part.method, part.seed)
    make_folder(path.parent)
    atomic_write_bytes(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(described)}))


def load_part(path: pathlib.Path) -> tuple[Part, dict[str, Any]]:
    """Reads a part and the protocol it was made by. Raises UserError if the file is damaged or no part."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            described = parse_json((file.metadata() or {})[METADATA_KEY])
            tensors = read_tensors(file)
        snapshots = {int(name.split(".")[1]) for name in tensors if name.startswith("snapshot.")}
        part = Part(
            study=described["study"],
            method=described["method"],
            seed=described["seed"],
            measures=described["measures"],
            G=_stack(tensors, "G"),
            snapshots={step: _stack(tensors, f"snapshot.{step}") for step in sorted(snapshots)},
            history={name.removeprefix("history."): tensor for name, tensor in tensors.items() if name.startswith("history.")},
        )
        return part, described["protocol"]
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or no part of a toy experiment; remove it, and it is made anew") from error


def _stack(tensors: dict[str, torch.Tensor], prefix: str) -> Stack:
    return [tensors[f"{prefix}.{index}"] for index in range(sum(name.startswith(f"{prefix}.") for name in tensors))]
