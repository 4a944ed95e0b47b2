"""Space on the disk: how much a run will still write, against what is free.

Sizes are predicted from the networks before there are files, and measured off the files after that.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from dnnlib import UserError
from dnnlib.files import nearest_folder
from training.images import default_grid
from training.run_files import STATES_KEPT, RunDir

FLOAT = 4
GB = 1e9
SPARE = 2**16  # of a file: names, arguments, random states
BEST = 1  # snapshots kept besides --keep: the best one


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of a snapshot, a training state and a sheet of fakes."""

    snapshot: int
    state: int
    picture: int


def predict_sizes(networks: Mapping[str, nn.Module], size: tuple[int, int], channels: int, num_images: int) -> Sizes:
    """Sizes of the files of a run.

    Args:
        networks: G, D and, if there is one, P; also on the meta device. Weights are float32, and Adam keeps two numbers more for each.
        size, channels: (height, width) and channels of the images.
        num_images: in the training set, whose order is part of a state.
    """
    tensors = {name: sum(tensor.numel() for tensor in network.state_dict().values()) for name, network in networks.items()}
    trained = sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    both = FLOAT * (sum(tensors.values()) + tensors["G"])  # G_ema is another G
    height, width = size
    columns, rows = default_grid(width, height)
    return Sizes(both + SPARE, both + FLOAT * 2 * trained + 8 * num_images + SPARE, columns * rows * height * width * channels)


def measure_sizes(run: RunDir, predicted: Sizes) -> Sizes:
    """Sizes of the newest files of a run; where there is none, as predicted."""
    paths = [run.snapshot(max(run.snapshots(), default=0)), run.state(max(run.states(), default=0)), *sorted(run.path.glob("fakes[0-9]*.png"))[-1:]]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    return Sizes(*(found or said for found, said in zip([*sizes, 0][:3], dataclasses.astuple(predicted))))


def snapshots_left(args: Mapping[str, Any], cur_nimg: int) -> int:
    """Snapshots that a run will still write, about; one comes after its first tick and one at its end."""
    spacing = max(args["kimg_per_tick"] * 1000, args["batch_size"]) * args["network_snapshot_ticks"]
    return -(-max(args["total_kimg"] * 1000 - cur_nimg, 0) // spacing) + (cur_nimg == 0)


def needed_bytes(sizes: Sizes, left: int, keep: int = 0, snapshots: int = 0, states: int = 0) -> int:
    """What the rest of a run adds at its fullest moment, when a file has been written and the one that it replaces is still there.

    Args:
        left: snapshots to come.
        keep: as --keep; 0: all.
        snapshots, states: already there.
    """
    if left == 0:
        return 0
    most = min(snapshots + left, keep + BEST + STATES_KEPT + 1) if keep else snapshots + left
    more_states = max(min(states + left, STATES_KEPT + 1) - states, 0)
    return max(most - snapshots, 0) * sizes.snapshot + more_states * sizes.state + left * sizes.picture


def free_bytes(folder: pathlib.Path) -> int:
    """Free space where the folder is or will be; unlimited where the file system tells no size, as /proc or some network drives."""
    try:
        usage = shutil.disk_usage(nearest_folder(folder))
    except OSError:  # a drive that is not there: making the folder will say so
        return sys.maxsize
    return usage.free if usage.total else sys.maxsize


class DiskWatch:
    """Compares what a run needs with what is free, at its start and at every snapshot.

    Args:
        run: its folder, there or not.
        args: its configuration.
        predicted: sizes of its files.
    """

    def __init__(self, run: RunDir, args: Mapping[str, Any], predicted: Sizes):
        self.run, self.args, self.predicted = run, args, predicted
        self._told = False

    def check_start(self) -> None:
        """Raises UserError if the place has no room for a snapshot and a state."""
        free, least = free_bytes(self.run.path), self.predicted.snapshot + self.predicted.state
        if free < least:
            raise UserError(
                f"--outdir={self.run.path.parent}: a snapshot and its training state need {least / GB:.2f} GB and {free / GB:.2f} GB are free; "
                "make room or give another place"
            )

    def look(self, cur_nimg: int) -> list[str]:
        """A line to print if the rest of the run does not fit and the last look did not say so."""
        exists = self.run.path.is_dir()
        sizes = measure_sizes(self.run, self.predicted) if exists else self.predicted
        there = (len(self.run.snapshots()), len(self.run.states())) if exists else (0, 0)
        left, keep, free = snapshots_left(self.args, cur_nimg), self.args.get("keep_snapshots") or 0, free_bytes(self.run.path)
        need = needed_bytes(sizes, left, keep, *there)
        fits, told, self._told = need <= free, self._told, need > free
        if fits or told:
            return []
        counts = range(keep - 1 if keep else there[0] + left, 0, -1)
        fitting = next((count for count in counts if needed_bytes(sizes, left, count, *there) <= free), None)
        advice = f"--keep={fitting} would fit" if fitting else "even --keep=1 would not fit"
        return [f"Warning: the rest of the run needs about {need / GB:.2f} GB for {left} snapshots and {free / GB:.2f} GB are free; {advice}."]
