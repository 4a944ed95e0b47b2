"""Measures a trained network: FID, KID, IS, precision, recall, density and coverage by name, from one pass over data and generator.

    python calc_metrics.py --network=runs/00000-.../network-snapshot-001000.safetensors --metrics=fid50k_full,pr50k3,coverage

The metrics are in the package `metrics`; this file only connects them to a network file, a data set and the screen.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

import click
import torch

from dnnlib import EasyDict, UserError, download
from dnnlib.cli import CommaList, run_command
from metrics import registry, report
from training.config import choose_device
from training.dataset import ImageFolderDataset
from training.networks import load_network

DATASET_OPTIONS = ("path", "use_labels", "max_size", "xflip", "random_seed")


@click.command()
@click.option("--network", help="Network file or URL", metavar="PATH", required=True)
@click.option("--metrics", help="Comma-separated metrics, or none", metavar="a,b", type=CommaList(), default="fid50k_full", show_default=True)
@click.option("--data", help="Data set to compare with, folder or zip  [default: the network's own]", metavar="PATH")
@click.option("--mirror", help="Whether mirrored copies count as data for fid50k, kid50k, pr50k3  [default: as in training]", type=bool)
@click.option("--gpus", help="Number of processes; more than 1 through torchrun", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", help="Where to compute", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--detector", help="inception, vgg16, embedded or a TorchScript file  [default: each metric's own]", metavar="NAME|PATH")
@click.option("--metric-seed", help="Seed of latents, labels and subsets", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--batch", help="Images per detector call", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--verbose", help="Show progress and the use of the cache", type=bool, default=True, show_default=True)
@click.option("--no-cache", help="Compute the features of real images anew and keep none", is_flag=True)
def main(**options: Any) -> None:
    """Measures a trained network against its data set.

    Prints a table and one JSON line per metric, and appends the lines to metric-NAME.jsonl beside a network that lies in its run directory.
    """
    opts = EasyDict(options)
    specs = registry.parse_metrics(opts.metrics, opts.detector)
    device = _start(opts.device, opts.gpus)
    registry.check_detectors(specs)
    G, dataset_kwargs = _load(opts.network, device, opts.data, opts.mirror)

    def make_dataset(**overrides: Any) -> ImageFolderDataset:
        return ImageFolderDataset(**{**dataset_kwargs, **overrides})

    chatty = opts.verbose and _rank() == 0
    lines = registry.compute_metrics(
        opts.metrics,
        G=G,
        dataset=make_dataset(),
        make_dataset=make_dataset,
        device=device,
        detector=opts.detector,
        metric_seed=opts.metric_seed,
        batch_detector=opts.batch,
        cache=not opts.no_cache,
        progress=chatty,
        log=(lambda text: print(text, file=sys.stderr)) if chatty else None,
    )
    if _rank() == 0:
        _publish(lines, opts.network)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _start(device: str, gpus: int) -> torch.device:
    """Chooses the device and joins the other processes where torchrun started some."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if gpus > 1 and ranks != gpus:
        raise UserError(f"--gpus={gpus} needs that many processes, found {ranks}; start it by `torchrun --nproc-per-node={gpus} calc_metrics.py ...`")
    chosen = choose_device(device)
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if chosen.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def _load(network: str, device: torch.device, data: str | None, mirror: bool | None) -> tuple[torch.nn.Module, dict]:
    """The averaged generator of a network file or URL, and the arguments of the data set to compare it with."""
    networks = load_network(download.fetch(network))
    if "G_ema" not in networks:
        raise UserError(f"--network={network} holds no generator G_ema; give a snapshot that train.py wrote, or a StyleGAN2-ADA .pkl")
    return networks.G_ema.to(device), _dataset_kwargs(networks.meta, networks.G_ema, data, mirror)


def _dataset_kwargs(meta: dict, G: torch.nn.Module, data: str | None, mirror: bool | None) -> dict:
    """Arguments of the data set: those of the training, changed by --data and --mirror."""
    trained_on = meta.get("training_set_kwargs") or {}
    kwargs = {key: trained_on[key] for key in DATASET_OPTIONS if key in trained_on}
    if data is not None:
        kwargs = {"path": data, "xflip": kwargs.get("xflip", False)}
    if "path" not in kwargs:
        raise UserError("--data is missing, and the network does not name the data set it was trained on; give a folder or zip")
    kwargs["use_labels"] = G.c_dim > 0
    if mirror is not None:
        kwargs["xflip"] = mirror
    return kwargs


def _publish(lines: list[dict], network: str) -> None:
    """Prints the table and the JSON lines, and keeps the lines where the network lies in a run directory."""
    run_dir = pathlib.Path(network).parent
    in_run = not download.is_url(network) and (run_dir / "training_options.json").is_file()
    stamped = [report.stamp_line(line, network, run_dir if in_run else None) for line in lines]
    if stamped:
        print(report.format_table(stamped))
    for line in stamped:
        print(json.dumps(line))
        if in_run:
            report.write_line(line, run_dir)


if __name__ == "__main__":
    run_command(main)
