"""What the commands that use a trained generator share: reading it, checking options against it, and a folder to write into.

How images are made of it is `training.sampling`'s business.
"""

from __future__ import annotations

import math
import pathlib
import tempfile
from collections.abc import Iterable

import torch
import tqdm

from dnnlib import UserError
from dnnlib.download import fetch
from training.images import PIL_MODES
from training.networks import Generator, load_network


def load_generator(network: str) -> Generator:
    """G_ema of --network, a snapshot or a .pkl of StyleGAN2-ADA as file or URL: on the CPU, in eval mode, without gradients.

    Raises:
        UserError: missing, damaged or foreign file, one without G_ema, or one whose images no picture file can hold.
    """
    networks = load_network(fetch(network))
    if "G_ema" not in networks:
        raise UserError(f"--network={network} holds no G_ema; a snapshot of a training run does")
    if networks.G_ema.img_channels not in PIL_MODES:
        raise UserError(f"--network={network} makes images of {networks.G_ema.img_channels} channels; pictures have 1 to 4")
    return networks.G_ema


def chosen_class(class_index: int | None, G: Generator, required: bool = True) -> int | None:
    """The class to make images of; None without one. As in StyleGAN2-ADA, --class has no effect on a network without labels, and that is said.

    Raises:
        UserError: a class outside the network's, or none although `required`.
    """
    if class_index is not None and G.c_dim == 0:
        print(f"note: --class={class_index} has no effect, since the network was trained without labels")
        return None
    if class_index is not None and class_index >= G.c_dim:
        raise UserError(f"--class={class_index} is outside the network's classes, 0 to {G.c_dim - 1}")
    if class_index is None and G.c_dim > 0 and required:
        raise UserError(f"--class is missing, and the network has labels; give --class=0 to --class={G.c_dim - 1}")
    return class_index


def check_truncation(trunc: float, G: Generator) -> None:
    """Refuses truncation that is no number, or where the generator keeps no mean of w to truncate towards. Raises UserError."""
    if not math.isfinite(trunc):
        raise UserError(f"--trunc={trunc} is no finite number; 1 leaves images as they are, 0 gives the mean image")
    if trunc != 1 and not hasattr(G.mapping, "w_avg"):
        raise UserError(f"--trunc={trunc} needs the mean of w, which this network does not keep; leave it out")


def writable_folder(path: str | pathlib.Path, option: str = "--outdir") -> pathlib.Path:
    """The folder of an option, made where it is missing, after a test that files can be written into it. Raises UserError where they cannot."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option}: the folder {path} cannot be written to: {error.strerror or error}") from error
    return folder


def progress(items: Iterable[torch.Tensor], total: int) -> Iterable[torch.Tensor]:
    """The items, with a progress bar on a terminal and nothing elsewhere."""
    return tqdm.tqdm(items, total=total, unit="img", leave=False, disable=None)
