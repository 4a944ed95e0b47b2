#!/usr/bin/env python3
"""Train a GAN: StyleGAN2-ADA's command line, with pairing regularization.

The paper's method is one option away:

    python train.py --outdir=runs --data=cifar10.zip --cond=1 --cfg=cifar --aug=ada --pairing-weight=0.05
"""

from __future__ import annotations

import json
import os
import sys

import click
import torch

from dnnlib import EasyDict, UserError
from dnnlib.cli import run_command
from dnnlib.download import is_url
from metrics.registry import check_detectors, parse_metrics
from torch_utils import distributed
from training import config
from training.dataset import ImageFolderDataset
from training.options import Options, add_options
from training.run_files import RunDir
from training.training_loop import training_loop


def inspect_data(options: Options) -> config.DataInfo:
    """Opens the training set and says what the configuration needs to know of it. Raises UserError if it cannot be trained on."""
    if options.data is None:
        raise UserError("--data is missing: give a folder or zip made by dataset_tool.py")
    dataset = ImageFolderDataset(options.data, use_labels=options.cond)
    info = config.DataInfo(
        dataset.name, len(dataset), dataset.resolution, dataset.num_channels, dataset.label_dim, dataset.labels_in_file
    )
    dataset.close()
    return info


def check_before_start(args: EasyDict) -> None:
    """What would otherwise fail after hours: unknown metrics, detectors that cannot be had, a missing network to start from."""
    check_detectors(parse_metrics(args.metrics, args.detector))
    source = args.get("resume_pkl")
    if source is not None and not is_url(source) and not os.path.isfile(source):
        raise UserError(f"--resume={source}: no such file; give a snapshot, a URL or a named source")


def configure(options: Options, typed: set[str], device: torch.device) -> EasyDict:
    """The whole configuration of a new run."""
    if options.outdir is None:
        raise UserError("--outdir is missing: give the folder for the run folders")
    data = inspect_data(options)
    args = config.resolve(options, typed, data, device)
    args.run_dir = config.next_run_dir(options.outdir, config.run_description(options, typed, data))
    return args


def run_rank(args: EasyDict, device: torch.device, continued: bool) -> None:
    """Trains in this process, as one of torchrun's or alone."""
    device = distributed.join(device)
    try:
        args.run_dir = distributed.broadcast_object(args.run_dir)
        if distributed.rank() == 0 and not continued:
            RunDir.create(args)
        distributed.broadcast_object(None)  # the folder is there before anyone looks into it
        training_loop(args, device, distributed.world_size(), continued)
    finally:
        distributed.leave()


def open_run(options: Options, typed: set[str]) -> tuple[EasyDict, torch.device]:
    """The configuration of the run to continue. Raises UserError if other options are given with it, or the place has changed."""
    others = sorted(typed - {"continue_run", "dry_run", "gpus"})
    if others:
        raise UserError(f"--continue-run takes all options from the run folder; leave out --{others[0].replace('_', '-')}")
    run, args = RunDir.open(options.continue_run)
    args.run_dir = str(run.path)
    if "gpus" in typed and options.gpus != args.num_gpus:
        raise UserError(f"--gpus={options.gpus}: the run was started with --gpus={args.num_gpus}, which an exact continuation keeps")
    return args, config.choose_device(args.device)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(**given) -> None:
    """Train a GAN on a folder or zip of images made by dataset_tool.py."""
    typed = {name for name, value in given.items() if value is not None}
    options = Options(**{name: given[name] for name in typed})
    if distributed.launched() and "gpus" not in typed:
        options.gpus = distributed.announced_world_size()
    if options.continue_run is not None:
        args, device = open_run(options, typed)
    else:
        device = config.choose_device(options.device)
        args = configure(options, typed, device)
    check_before_start(args)
    if options.dry_run:
        print(json.dumps(args, indent=2))
        return
    if distributed.launched():
        if distributed.announced_world_size() != args.num_gpus:
            raise UserError(f"--gpus={args.num_gpus}, but torchrun started {distributed.announced_world_size()} processes")
    elif args.num_gpus > 1:
        distributed.launch_local(os.path.abspath(__file__), sys.argv[1:], args.num_gpus)
        return
    run_rank(args, device, continued=options.continue_run is not None)


add_options(main)

if __name__ == "__main__":
    run_command(main)
