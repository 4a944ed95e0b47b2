"""The sides of a measurement out of what a user names: networks with the data they were trained on, run directories, images, feature files.

What a side gives to a metric is the business of `metrics.sides`; options and screen are that of calc_metrics.py.
"""

from __future__ import annotations

import glob
import os
import pathlib
import re
from typing import Any

import torch

from dnnlib import EasyDict, UserError, download
from metrics.feature_files import is_feature_file, load_features
from metrics.sides import DataSide, FileSide, GeneratorSide, Side
from training.dataset import ImageFolderDataset, data_to_compare
from training.networks import load_network
from training.run_files import BEST_LINK

DATASET_OPTIONS = ("path", "use_labels", "max_size", "xflip", "random_seed")
NETWORK_SUFFIXES = (".safetensors", ".pkl")
REAL_STREAM = 1  # so that a network on the real side shares no latent with one on the other


def find_networks(given: str) -> list[str]:
    """The network files that --network names: itself, those of a run directory, or those that a pattern matches, by directory and kimg.

    Raises:
        UserError: a directory or a pattern without networks.
    """
    if download.is_url(given):
        return [given]
    if os.path.isfile(given):
        return [_itself(given)]
    places = [given] if os.path.isdir(given) else sorted(glob.glob(given))
    if not places and not glob.has_magic(given):
        return [given]  # reading it will tell what is wrong with it
    found = []
    for place in places:
        if not os.path.isdir(place):
            found += [place] if place.endswith(NETWORK_SUFFIXES) else []
            continue
        there = [path for suffix in NETWORK_SUFFIXES for path in glob.glob(os.path.join(glob.escape(place), f"network-snapshot-*{suffix}"))]
        # The best is one of the others; where links have become files, as in a copy from another machine, nothing says which.
        found += [path for path in there if os.path.basename(path) != BEST_LINK] or there
    if not found:
        raise UserError(f"--network={given} holds no network-snapshot-*.safetensors or .pkl; give a network, a run directory, or a pattern of these")
    return sorted(set(map(_itself, found)), key=lambda path: (os.path.dirname(path), _kimg(path), path))


def _itself(path: str) -> str:
    """The snapshot that network-snapshot-best.safetensors leads to, so that it is measured under its own name and once."""
    if os.path.basename(path) != BEST_LINK or not os.path.islink(path):
        return path
    return os.path.join(os.path.dirname(path), os.path.basename(os.readlink(path)))


def _kimg(path: str) -> int:
    numbers = re.findall(r"\d+", pathlib.Path(path).stem)
    return int(numbers[-1]) if numbers else 0


def load_generator_and_data(network: str, device: torch.device, data: str | None, mirror: bool | None) -> tuple[torch.nn.Module, dict]:
    """The averaged generator of a network file or URL, and the arguments of the data set to compare it with."""
    networks = _load_networks(network)
    return networks.G_ema.to(device), dataset_kwargs(networks.meta, networks.G_ema, data, mirror)


def _load_networks(network: str) -> EasyDict:
    networks = load_network(download.fetch(network))
    if "G_ema" not in networks:
        raise UserError(f"--network={network} holds no generator G_ema; give a snapshot that train.py wrote, or a StyleGAN2-ADA .pkl")
    return networks


def dataset_kwargs(meta: dict, G: torch.nn.Module, data: str | None, mirror: bool | None) -> dict:
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


def _whole_dataset(kwargs: dict) -> ImageFolderDataset:
    """The data set, also of a network that learned a part of it: whichever way a network is named, its labels are drawn from all of them."""
    return ImageFolderDataset(**{**kwargs, "max_size": None, "xflip": False})


def generator_side(opts: EasyDict, G: torch.nn.Module, labels: Any, **options: Any) -> GeneratorSide:
    """The side of a generator, by the options of the command; `labels` and the others as GeneratorSide takes them."""
    return GeneratorSide(G, labels, opts.run_on, seed=opts.metric_seed, batch_detector=opts.batch, **options)


def open_side(opts: EasyDict, given: str, role: str, needs_labels: bool = False) -> Side:
    """A side of a comparison: a folder or zip of images, a feature file, or a network.

    Args:
        opts: data, metric_seed and batch as options of calc_metrics.py; `run_on` is the device, `cache` a FeatureCache.
        given: what --real or --fake names; role: "real" or "fake".
        needs_labels: whether labels that do not fit the images are an error; else such images are taken without labels.

    Raises:
        UserError: none of these, or one that cannot be read.
    """
    name = f"--{role}={given}"
    path = pathlib.Path(given)
    if path.is_dir() or path.suffix.lower() == ".zip":
        dataset = data_to_compare(path=given, any_size=True)
        if needs_labels and dataset.labels_in_file and not dataset.has_labels:
            dataset = ImageFolderDataset(given, use_labels=True, any_size=True)  # which tells what is wrong with them
        return DataSide(lambda **overrides: dataset, name, opts.cache)
    if path.is_file() and is_feature_file(path):
        return FileSide(load_features(path))
    if path.suffix not in NETWORK_SUFFIXES and not download.is_url(given):
        raise UserError(f"{name} is no folder or .zip of images, no network (.safetensors, .pkl) and no feature file")
    local = download.fetch(given)
    networks = _load_networks(str(local))
    G = networks.G_ema.to(opts.run_on)
    labels = trained_on = None
    if G.c_dim > 0:
        kwargs = dataset_kwargs(networks.meta, G, opts.data, None)
        labels, trained_on = _whole_dataset(kwargs), ImageFolderDataset(**kwargs)
    fingerprint = download.file_digest(local) if role == "real" else "generator"
    stream = REAL_STREAM if role == "real" else 0
    return generator_side(opts, G, labels, given=trained_on, name=name, stream=stream, fingerprint=fingerprint)
