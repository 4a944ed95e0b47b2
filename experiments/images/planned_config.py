"""Command lines of train.py read as train.py reads them, so that what a run would be is known before it is started."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from dnnlib import EasyDict, UserError
from metrics.runs import SEED
from training import config
from training.dataset import ImageFolderDataset
from training.options import Options, add_options

UNPLANNED = config.NOT_COMPARED - {"network_snapshot_ticks"}  # what does not tell a planned run from another; its snapshots do, its length does not


def parse_options(arguments: Sequence[str]) -> tuple[Options, set[str]]:
    """Options of a command line of train.py, and the names of those that it gives.

    Raises:
        UserError: train.py would not take them.
    """
    try:
        given = add_options(click.Command("train.py")).make_context("train.py", list(arguments)).params
    except click.ClickException as error:
        raise UserError(f"train.py does not take {' '.join(arguments)}: {error.format_message()}") from error
    typed = {name for name, value in given.items() if value is not None}
    return Options(**{name: given[name] for name in typed}), typed


def inspect_data(path: str) -> config.DataInfo:
    """What the configuration needs to know of a labelled data set. Raises UserError if there is none or it cannot be read."""
    if not pathlib.Path(path).exists():
        raise UserError(f"--data={path}: no such file or folder; make it with dataset_tool.py, or name another place")
    return config.DataInfo.of(path, use_labels=True)


def configuration(arguments: Sequence[str], data: config.DataInfo) -> EasyDict:
    """What training_options.json of a command line of train.py would hold, without the run folder. Raises UserError as train.py would."""
    options, typed = parse_options(arguments)
    # The plan may be made elsewhere than the run, so a device that is not here is no reason to fail.
    device = config.choose_device(options.device) if options.device == "auto" else torch.device(options.device)
    return config.resolve(options, typed, data, device, ops="reference")  # which no run is known by


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], as_planned: bool = True) -> str:
    """The first setting in which two configurations differ, as "batch_size 32 instead of 64"; empty if what is trained is the same.

    Args:
        as_planned: whether seeds, that of a subset included, and the spacing of snapshots count.
    """
    for name, old, new in config.differences(found, wanted, UNPLANNED if as_planned else config.NOT_COMPARED | {SEED}):
        return f"{name} {_in_words(old)} instead of {_in_words(new)}"
    return ""


def same_data(a: str, b: str) -> bool:
    """Whether two data sets hold the same images and labels, wherever they lie; of one that cannot be read the name decides."""
    if pathlib.Path(a).absolute() == pathlib.Path(b).absolute():
        return True
    if not pathlib.Path(a).exists() or not pathlib.Path(b).exists():
        return pathlib.Path(a).name == pathlib.Path(b).name
    return fingerprint(a) == fingerprint(b)


def fingerprint(path: str) -> str:
    """Digest of a labelled data set, as protocols of measurements name it."""
    return _fingerprint(path, pathlib.Path(path).stat().st_mtime_ns)


@functools.cache
def _fingerprint(path: str, changed: int) -> str:
    """Digest of a data set as it was at that time."""
    dataset = ImageFolderDataset(path, use_labels=True)
    digest = dataset.fingerprint()
    dataset.close()
    return digest


def _in_words(value: Any) -> str:
    return "absent" if value is None else str(value)
