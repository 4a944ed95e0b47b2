"""Training runs of a few seconds: a tiny data set, configurations of real commands shrunk to a few channels, and how to look at what a run left."""

import json
import pathlib
import re

import torch
from image_sets import pngs, write_zip

from metrics.detectors import trust_detector
from training import config
from training.dataset import ImageFolderDataset
from training.options import Options
from training.training_loop import training_loop

CPU = torch.device("cpu")
CLASSES = 3


class PoolDetector(torch.nn.Module):
    """A detector that costs nothing: mean colours of quarters of the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 12]."""
        return torch.nn.functional.adaptive_avg_pool2d(images.to(torch.float32), 2).flatten(1)


class BrokenDetector(torch.nn.Module):
    """A detector that always fails."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises."""
        raise RuntimeError("this detector is broken")
        return images


def write_data(path, count=60, size=8, mode="RGB"):
    """A zip of random images with labels, `size` being an edge or (width, height). Returns its path as text."""
    files = pngs(count, mode=mode, size=(size, size) if isinstance(size, int) else size)
    return str(write_zip(pathlib.Path(path), files, [[name, index % CLASSES] for index, name in enumerate(files)]))


def write_detector(path, kind=PoolDetector):
    """A TorchScript detector. Returns its path as text."""
    torch.jit.script(kind()).save(str(path))
    trust_detector(str(path), remember=False)
    return str(path)


def data_info(path, cond=True):
    """What the configuration wants to know of a data set."""
    dataset = ImageFolderDataset(path, use_labels=cond)
    size = dataset.resolution, dataset.num_channels, dataset.label_dim
    return config.DataInfo(dataset.name, len(dataset), *size, dataset.labels_in_file, dataset.start_grid)


def shrink(args):
    """The same configuration with networks of eight channels."""
    width = dict(channel_base=64, channel_max=8)
    args.G_kwargs.update(z_dim=8, w_dim=8)
    args.G_kwargs.synthesis_kwargs.update(width)
    args.D_kwargs.update(width)
    if "P_kwargs" in args:
        args.P_kwargs.update(embed_dim=8, channel_base=64, channel_max=8, latent_features=16)
    return args


def tiny_args(data, run_dir, cond=True, **typed):
    """The configuration that train.py would make of these options, shrunk; metrics are off unless asked for."""
    typed = dict(metrics=[], cond=cond) | typed
    args = config.resolve(Options(data=data, outdir="unused", **typed), set(typed), data_info(data, cond), CPU)
    args.run_dir = str(run_dir)
    return shrink(args)


def train(data, run_dir, **typed):
    """Trains from the start. Returns the run folder."""
    training_loop(tiny_args(data, run_dir, **typed), CPU, 1)
    return pathlib.Path(run_dir)


def stats_of(run_dir):
    """The lines of stats.jsonl."""
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "stats.jsonl").read_text().splitlines()]


def learned_stats(run_dir):
    """What stats.jsonl says, without what a clock or the machine decides, as (line, name, figure) -> number. Compare by approx:
    sums are differences of what the process has added up so far, so their last digits depend on what ran before."""
    numbers = {}
    for index, line in enumerate(stats_of(run_dir)):
        kept = {name: figures for name, figures in line.items() if not re.match("Timing|Resources|timestamp", name)}
        numbers.update({(index, name, figure): value for name, figures in kept.items() for figure, value in figures.items()})
    return numbers
