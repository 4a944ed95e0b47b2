"""How much space a plan needs, against what is free."""

from __future__ import annotations

import functools
import json
import types

import torch

from dnnlib import UserError
from experiments.images.plan import Plan, PlannedRun
from training import disk
from training.config import DataInfo
from training.disk import GB, free_bytes
from training.run_files import as_easydict
from training.state import build_networks


def needed_bytes(plan: Plan) -> int:
    """What the runs that are left will write, about."""
    return sum(_needed(run, plan.data_info) for run in plan.runs)


def check_disk(plan: Plan) -> None:
    """Raises UserError if the plan does not fit the disk."""
    need, free = needed_bytes(plan), free_bytes(plan.choice.out)
    if need > free:
        raise UserError(
            f"the plan needs about {need / GB:.1f} GB at --out={plan.choice.out} and {free / GB:.1f} GB are free; "
            "make room, name another folder, or plan fewer experiments or seeds"
        )


def _needed(run: PlannedRun, data: DataInfo) -> int:
    """What a run will write, about: snapshots, states and sheets."""
    state = run.look()
    if state.finished:
        return 0
    sizes = _sizes(json.dumps(run.options), data)
    return disk.needed_bytes(sizes, max(run.snapshots - state.snapshots, 1), run.options.get("keep_snapshots", 0))


@functools.cache
def _sizes(options: str, data: DataInfo) -> disk.Sizes:
    """Sizes of the files of a run with these options, from networks without memory."""
    shape = types.SimpleNamespace(label_dim=data.label_dim, resolution=data.resolution, num_channels=data.num_channels)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        networks = build_networks(as_easydict(json.loads(options)), shape)
    return disk.predict_sizes(networks, data.size, data.num_channels, data.length)
