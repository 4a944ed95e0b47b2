"""Faults on demand: signals, exceptions and failing writes at a chosen step of a run, and how to tell that a run has got over them."""

import contextlib
import errno
import json
import os
import pathlib
import tempfile

import pytest
from tiny_runs import CPU, learned_stats

from torch_utils import checkpoint
from training.run_files import RunDir
from training.state import TrainingState
from training.training_loop import training_loop


def step_with(number, action):
    """A replacement of TrainingState.step that calls `action(state)` before its step of that number, counted from 1 in this process."""
    step, count = TrainingState.step, []

    def faulty(self, images, labels):
        count.append(1)
        if len(count) == number:
            action(self)
        step(self, images, labels)

    return faulty


def run_on(args, **patches):
    """Trains on in the folder of the configuration, or begins in it, with attributes replaced by "module.attribute" or "TrainingState.step".

    Returns:
        What training_loop returns.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            if name == "step":
                patch.setattr(TrainingState, "step", value)
            else:
                patch.setattr(f"training.training_loop.{name}", value)
        return training_loop(args, CPU, 1, continued=RunDir.is_at(args.run_dir))


def sending(number):
    """Sends this process a signal, which arrives before the next line of Python."""
    return lambda *_, **__: os.kill(os.getpid(), number)


def raising(error):
    """Raises."""

    def action(*_, **__):
        raise error

    return action


@contextlib.contextmanager
def disk_full(patch, fits):
    """Within, a file whose name passes `fits` is written by half, and then there is no room left."""
    write = pathlib.Path.write_bytes

    def write_half(path, data):
        if not fits(path.name):
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.context() as inner:
        inner.setattr(pathlib.Path, "write_bytes", write_half)
        yield


def figures_of(run_dir):
    """The lines of metric-*.jsonl as (file, snapshot, results)."""
    lines = []
    for path in sorted(pathlib.Path(run_dir).glob("metric-*.jsonl")):
        lines += [(path.name, line["snapshot_pkl"], line["results"]) for line in map(json.loads, path.read_text().splitlines())]
    return lines


def events_of(run_dir, name):
    """(step, value) of a TensorBoard scalar, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # TensorBoard reads files in the order of their names, which hold the second and a count without leading zeros: several of one process
    # and one second, which only a test makes, would come in any order.
    files = sorted(pathlib.Path(run_dir).glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            pathlib.Path(folder, f"events.out.tfevents.{number:03d}").symlink_to(path.resolve())
        board = EventAccumulator(folder)
        board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def assert_same_run(ours, theirs):
    """Same pictures, weights, statistics and figures, nothing missing, nothing twice, nothing left over."""
    ours, theirs = pathlib.Path(ours), pathlib.Path(theirs)
    kept = [path.name for path in theirs.iterdir() if path.suffix in (".safetensors", ".png", ".pt", ".jsonl", ".json")]
    assert sorted(kept) == sorted(path.name for path in ours.iterdir() if not path.name.startswith("events.") and path.name != "log.txt")
    for name in kept:
        if name.endswith((".safetensors", ".png")):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert learned_stats(ours) == learned_stats(theirs)
    assert figures_of(ours) == figures_of(theirs)
    last = RunDir(theirs).states()[-1]
    digests = [checkpoint.load_state(RunDir(run).state(last))["training"]["counters"] for run in (ours, theirs)]
    assert digests[0] == digests[1]
