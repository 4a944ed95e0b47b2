#!/usr/bin/env python3
"""Train a GAN: StyleGAN2-ADA's command line, with pairing regularization.

The paper's method is one option away:

    python train.py --outdir=runs --data=cifar10.zip --cond=1 --cfg=cifar --aug=ada --pairing-weight=0.05
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import torch

from dnnlib import EasyDict, UserError
from dnnlib.cli import USER_ERROR, run_command
from dnnlib.download import is_url
from dnnlib.files import nearest_folder
from dnnlib.signals import exit_code
from metrics.detectors import trust_detector
from metrics.registry import check_detectors, parse_metrics
from torch_utils import distributed, slurm
from training import config, run_names
from training.boards import import_wandb
from training.options import GroupedCommand, Options, add_options, flag_name
from training.run_files import RunDir, as_easydict
from training.stopping import Abandoned
from training.training_loop import training_loop

UNSAID = {"run_dir", "path"}  # settings of a run of which another value is no reason for a note


def check_outdir(outdir: str) -> None:
    """Raises UserError if no folder can be made at `outdir`; makes none itself."""
    place = nearest_folder(outdir)
    if not (os.path.isdir(place) and os.access(place, os.W_OK)):
        found = "not writable" if os.path.isdir(place) else "no folder"
        raise UserError(f"--outdir={outdir}: {place} is {found}; give a place that can be written to")


def check_resume(source: str | None) -> None:
    """Raises UserError if the network to start from is a file that does not exist."""
    if source is not None and not is_url(source) and not os.path.isfile(source):
        found = "this is a folder" if os.path.isdir(source) else "no such file"
        raise UserError(f"--resume={source}: {found}; give a snapshot, a URL or a named source")


def check_processes(num_gpus: int, device: torch.device) -> None:
    """Raises UserError if the ranks were started in another number, or this machine has fewer devices of this kind than are to be."""
    if distributed.launched():
        if (found := distributed.announced_world_size()) != num_gpus:
            raise UserError(f"--gpus={num_gpus}, but torchrun or srun started {found} processes; start {num_gpus} of them")
        return
    here = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, num_gpus)
    if num_gpus > here:
        raise UserError(f"--gpus={num_gpus}: this machine has {here} device(s) of kind {device.type}; lower --gpus, or use --device=cpu")


def inspect_data(options: Options) -> config.DataInfo:
    """What the configuration needs to know of the training set. Raises UserError if there is none or it cannot be trained on."""
    if options.data is None:
        raise UserError("--data is missing: give a folder or zip made by dataset_tool.py")
    return config.DataInfo.of(options.data, use_labels=options.cond)


def configure(options: Options, typed: set[str], device: torch.device) -> EasyDict:
    """The whole configuration of a new run."""
    if options.outdir is None:
        raise UserError("--outdir is missing: give the folder for the run folders")
    check_outdir(options.outdir)
    data = inspect_data(options)
    args = config.resolve(options, typed, data, device)
    named = run_names.is_run_name(options.outdir)
    args.run_dir = options.outdir if named else run_names.next_run_dir(options.outdir, run_names.run_description(options, typed, data.name))
    return args


@contextlib.contextmanager
def own_run_dir(args: EasyDict, outdir: str | None) -> Iterator[None]:
    """Within: a new run has the next number of `outdir` for itself, whatever starts there at the same time; with a name of its own it needs none."""
    if os.path.abspath(args.run_dir) == os.path.abspath(outdir or args.run_dir) or not distributed.announced_first():
        yield
        return
    with run_names.reserved_run_dir(outdir, os.path.basename(args.run_dir).partition("-")[2]) as args.run_dir:
        yield


def run_rank(args: EasyDict, device: torch.device, continued: bool, rank_timeout: float) -> int:
    """Trains in this process, alone or as one of several ranks. Returns the exit code: 0, or that of the signal that has ended the run early."""
    device = distributed.join(device, rank_timeout)
    try:
        args.update(distributed.broadcast_object({name: args[name] for name in ("run_dir", "ops") if name in args}))
        distributed.advise(f"go on from its last state with --continue-run={args.run_dir}")
        stop = training_loop(args, device, distributed.world_size(), continued)
    except Abandoned as error:
        distributed.leave(error, code=exit_code(error.number))
        return exit_code(error.number)
    except BaseException as error:
        distributed.leave(error, code=USER_ERROR if isinstance(error, UserError) else 1)
        raise
    distributed.leave()
    return exit_code(stop) if stop else 0


def open_run(options: Options, typed: set[str]) -> tuple[EasyDict, torch.device]:
    """The configuration of the run to continue.

    Raises:
        UserError: other options are given with it than its length, the place of its data and where it reports to, or the place has changed.
    """
    others = sorted(typed - {"continue_run", "kimg", "data", "wandb", "dry_run", "gpus", "rank_timeout", "trust_detector"})
    if others:
        raise UserError(
            f"--continue-run takes all options but --kimg, --data and --wandb from the run folder; leave out {flag_name(others[0])}"
        )
    run, args = RunDir.open(options.continue_run, "--continue-run")
    args.run_dir = str(run.path)
    if "data" in typed:
        args.training_set_kwargs.path = options.data  # it may have moved; its digest is compared later
    if "kimg" in typed:
        args.total_kimg = options.kimg
    if "wandb" in typed:
        config.report_to(args, options.wandb)
    if "gpus" in typed and options.gpus != args.num_gpus:
        raise UserError(f"--gpus={options.gpus}: the run was started with --gpus={args.num_gpus}, which an exact continuation keeps")
    return args, config.choose_device(args.device)


def reopen_run(options: Options, typed: set[str]) -> tuple[EasyDict, torch.device]:
    """The configuration of the run that --outdir names, to go on with it: the same command was given again.

    Raises:
        UserError: a setting that matters is another one; names the first.
    """
    run, found = RunDir.open(options.outdir, "--outdir")
    if options.device not in ("auto", found.device):
        raise UserError(f"--device={options.device}: the run in {run.path} was started on {found.device}, which an exact continuation keeps")
    again = dataclasses.replace(options, device=found.device)
    if not typed & {"precision", "fp32"}:
        again.precision = found.get("precision", again.precision)  # what `auto` meant where the run was started
    device = distributed.own_device(config.choose_device(found.device))
    wanted = as_easydict(json.loads(json.dumps(config.resolve(again, typed, inspect_data(again), device))))
    if "kimg" in typed:
        found.total_kimg = wanted.total_kimg  # no step depends on how many follow
    if "wandb" in typed:
        config.report_to(found, options.wandb)
    if different := list(config.differences(found, wanted)):
        raise UserError(f"{run.path}: {_most_telling(different, typed)}; give the settings of the run, or another --outdir")
    for name, old, new in config.differences(found, wanted, UNSAID):
        print(f"Note: {name} stays {old!r}, as the run was started, not {new!r}.", file=sys.stderr)
    found.run_dir = str(run.path)
    found.training_set_kwargs.path = wanted.training_set_kwargs.path  # the data may have moved; their digest is compared later
    return found, device


def _most_telling(different: Sequence[tuple[str, Any, Any]], typed: set[str]) -> str:
    """Of settings that differ, of which one option may change several, the one that says most: a value of an option, if possible of a given one."""
    given = {flag_name(name) for name in typed}

    def rank(one: tuple[str, Any, Any]) -> tuple[bool, bool, bool]:
        name, old, new = one
        option = config.option_of(name)
        return isinstance(old or new, Mapping), option is None, option not in given

    name, *values = min(different, key=rank)
    option = config.option_of(name)
    then, now = ("absent from" if value is None else f"{value!r} in" for value in values)
    return f"{f'{option}, {name},' if option else name} is {then} the run and {now} this command"


@click.command(cls=GroupedCommand, context_settings={"help_option_names": ["-h", "--help"]})
def main(**given) -> int:
    """Train a GAN on a folder or zip of images made by dataset_tool.py.

    \b
    python train.py --outdir=runs --data=datasets/photos.zip --mirror=1
    python train.py --outdir=runs --data=datasets/photos.zip --mirror=1 --pairing-weight=0.05
    python train.py --continue-run=runs/00000-photos-mirror-auto1
    """
    typed = {name for name, value in given.items() if value is not None}
    options = Options(**{name: given[name] for name in typed})
    slurm.adopt_step()
    if distributed.launched() and "gpus" not in typed:
        options.gpus = distributed.announced_world_size()
    continued = options.continue_run is not None or RunDir.is_at(options.outdir)
    if options.continue_run is not None:
        args, device = open_run(options, typed)
    elif continued:
        args, device = reopen_run(options, typed)
    else:
        device = distributed.own_device(config.choose_device(options.device))
        args = configure(options, typed, device)
        check_resume(args.get("resume_pkl"))
    metrics = parse_metrics(args.metrics, args.detector)
    if options.dry_run:
        print(json.dumps(args, indent=2))
        return 0
    if continued and RunDir(args.run_dir).is_finished(args.total_kimg, [spec.name for spec in metrics]):
        print(f"{args.run_dir} is finished: {args.total_kimg} kimg.")
        return 0
    if not os.path.exists(path := args.training_set_kwargs.get("path", "")):  # a new run's has been opened already
        raise UserError(f"{args.run_dir}: its data set {path} is not there; say with --data where it is now")
    check_processes(args.num_gpus, device)
    if args.get("wandb"):
        import_wandb(args.wandb)
    if options.trust_detector:
        trust_detector(args.detector)
    check_detectors(metrics)  # a detector that cannot be had would be noticed after the first snapshot only
    if args.num_gpus > 1 and not distributed.launched():
        distributed.launch_local(os.path.abspath(__file__), sys.argv[1:], args.num_gpus)
    with contextlib.nullcontext() if continued else own_run_dir(args, options.outdir):
        return run_rank(args, device, continued, options.rank_timeout)


add_options(main)

if __name__ == "__main__":
    run_command(main)
