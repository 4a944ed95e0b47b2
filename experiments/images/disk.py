"""How much space a plan needs, against what is free."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import types

import torch

from dnnlib import UserError
from experiments.images.plan import Plan, PlannedRun
from training.config import DataInfo
from training.run_files import STATES_KEPT, as_easydict
from training.state import build_networks

PICTURE_BYTES = 3 * 2**20  # a sheet of fakes
FLOAT = 4
GB = 1e9


def needed_bytes(plan: Plan) -> int:
    """What the runs that are left will write, about."""
    return sum(_needed(run, plan.data_info) for run in plan.runs)


def free_bytes(folder: pathlib.Path) -> int:
    """Free space where the folder is or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_disk(plan: Plan) -> None:
    """Raises UserError if the plan does not fit the disk."""
    need, free = needed_bytes(plan), free_bytes(plan.choice.out)
    if need > free:
        raise UserError(
            f"the plan needs about {need / GB:.1f} GB at --out={plan.choice.out} and {free / GB:.1f} GB are free; "
            "make room, name another folder, or plan fewer experiments or seeds"
        )


def _needed(run: PlannedRun, data: DataInfo) -> int:
    """Snapshots to come, their pictures, and the states that are kept."""
    state = run.look()
    if state.finished:
        return 0
    per_snapshot, per_state = _sizes(json.dumps(run.options), data)
    return max(run.snapshots - state.snapshots, 1) * (per_snapshot + PICTURE_BYTES) + STATES_KEPT * per_state


@functools.cache
def _sizes(options: str, data: DataInfo) -> tuple[int, int]:
    """Bytes of a snapshot and of a training state: weights are float32, and Adam keeps two numbers more for each."""
    shape = types.SimpleNamespace(label_dim=data.label_dim, resolution=data.resolution, num_channels=data.num_channels)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        networks = build_networks(as_easydict(json.loads(options)), shape)
    counts = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    everything = sum(counts.values())
    return FLOAT * (everything + counts["G"]), FLOAT * (3 * everything + counts["G"])
