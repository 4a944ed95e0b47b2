"""Command: `python -m experiments.explore RUN`, a page on this machine about a run's generator."""

from __future__ import annotations

import os
import pathlib
import threading
from typing import Any

import click

from dnnlib import UserError
from dnnlib.download import fetch
from experiments.explore.model import Explorer
from experiments.explore.server import Pages, Server
from metrics.feature_cache import FeatureCache
from training.config import choose_device
from training.dataset import ImageFolderDataset
from training.networks import Generator, load_network
from training.options import DEVICES
from training.run_files import RunDir


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--data", help="Real images, folder or zip  [default: all of the set that the network learned from]", metavar="PATH")
@click.option("--snapshot", help="Snapshot of the run, in thousands of images  [default: the last]", type=click.IntRange(min=0), metavar="KIMG")
@click.option("--latents", help="Latents on the map", type=click.IntRange(3, 4000), default=1000, show_default=True)
@click.option("--real", help="Real images to compare with", type=click.IntRange(4, 200_000), default=10_000, show_default=True)
@click.option("--port", help="Port of 127.0.0.1; 0 takes a free one", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
def main(run: str, data: str | None, snapshot: int | None, latents: int, real: int, port: int, device: str) -> None:
    """Shows a run's generator in a browser: truncation, class, seeds, interpolation, nearest real images, and which far latents collide.

    RUN is a run folder or a network. The page is served on 127.0.0.1 until Ctrl-C, to this machine only; nothing is written but the cache of
    the real images' features.

    \b
    python -m experiments.explore runs/00000-cifar10
    """
    server = make_server(run, data, snapshot, latents, real, port, device)
    print(f"serving {server.url} (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
        print("ended", flush=True)
        # Threads may be inside torch, which aborts when the interpreter is taken down around them; nothing is left to be tidied up.
        os._exit(0)


def make_server(run: str, data: str | None, snapshot: int | None, latents: int, real: int, port: int, device: str) -> Server:
    """The server with its background work begun; arguments as the command's.

    Raises:
        UserError: no run, no network or no images there, or images that do not fit the network.
    """
    path = find_network(run, snapshot)
    networks = load_network(path)
    if "G_ema" not in networks:
        raise UserError(f"{path} holds no G_ema; a snapshot of a training run does")
    G: Generator = networks.G_ema
    dataset = open_images(data, networks.meta, path)
    explorer = Explorer(G, dataset, choose_device(device), latents, real, FeatureCache(log=print))
    server = Server(Pages(explorer, describe(path, G, dataset, explorer)), port)
    threading.Thread(target=explorer.work, daemon=True).start()
    return server


def find_network(run: str, snapshot: int | None) -> pathlib.Path:
    """The snapshot of a run folder, the last one by default; a network's file or URL is taken as it is. Raises UserError where there is none."""
    if not pathlib.Path(run).is_dir():
        if snapshot is not None:
            raise UserError(f"--snapshot={snapshot} chooses one of a run folder, but {run} is not a folder")
        return fetch(run)
    folder = RunDir(run)
    found = folder.snapshots()
    if not found:
        raise UserError(f"{run} holds no network-snapshot-*.safetensors; give the folder of a run, or a network")
    if snapshot is not None and snapshot not in found:
        raise UserError(f"--snapshot={snapshot}: {run} holds the snapshots {', '.join(map(str, found))}")
    return folder.snapshot(found[-1] if snapshot is None else snapshot)


def open_images(data: str | None, meta: dict[str, Any], path: pathlib.Path) -> ImageFolderDataset:
    """The real images, with labels where they have some. Raises UserError where there are none."""
    place = data or (meta.get("training_set_kwargs") or {}).get("path")
    if not place:
        raise UserError(f"{path} does not say which images it learned; give them with --data")
    if data is None and not pathlib.Path(place).exists():
        raise UserError(f"the images that {path} learned, {place}, are not there; give them with --data")
    dataset = ImageFolderDataset(place)
    return ImageFolderDataset(place, use_labels=True) if dataset.labels_in_file else dataset


def describe(path: pathlib.Path, G: Generator, dataset: ImageFolderDataset, explorer: Explorer) -> dict[str, Any]:
    """What the page says about the run."""
    return {
        "network": path.name,
        "run": path.resolve().parent.name,
        "data": dataset.name,
        "width": G.img_size[1],
        "height": G.img_size[0],
        "classes": G.c_dim,
        "truncation": hasattr(G.mapping, "w_avg"),
        "latents": explorer.num_latents,
        "real": explorer.num_real,
    }
