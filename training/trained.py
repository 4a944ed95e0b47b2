"""What the commands that use a trained generator share: reading it, checking options against it, and a folder to write into.

How images are made of it is `training.sampling`'s business.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable

import torch
import tqdm

from dnnlib import UserError
from dnnlib.download import fetch
from training.networks import Generator, load_network


def load_generator(network: str) -> Generator:
    """G_ema of --network, a snapshot or a .pkl of StyleGAN2-ADA as file or URL: on the CPU, in eval mode, without gradients.

    Raises:
        UserError: missing, damaged or foreign file, or one without G_ema.
    """
    networks = load_network(fetch(network))
    if "G_ema" not in networks:
        raise UserError(f"--network={network} holds no G_ema; a snapshot of a training run does")
    return networks.G_ema


def check_class(class_index: int | None, G: Generator, required: bool = True) -> None:
    """Refuses a class that the generator does not have, and none where it needs one.

    Raises:
        UserError: --class for a network without labels, outside its classes, or missing although `required`.
    """
    if class_index is not None and G.c_dim == 0:
        raise UserError(f"--class={class_index} is given, but the network was trained without labels; leave it out")
    if class_index is not None and class_index >= G.c_dim:
        raise UserError(f"--class={class_index} is outside the network's classes, 0 to {G.c_dim - 1}")
    if class_index is None and G.c_dim > 0 and required:
        raise UserError(f"--class is missing, and the network has labels; give --class=0 to --class={G.c_dim - 1}")


def check_truncation(trunc: float, G: Generator) -> None:
    """Refuses truncation where the generator keeps no mean of w to truncate towards. Raises UserError."""
    if trunc != 1 and not hasattr(G.mapping, "w_avg"):
        raise UserError(f"--trunc={trunc} needs the mean of w, which this network does not keep; leave it out")


def writable_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The folder, made where it is missing, after a test that files can be written into it. Raises UserError where they cannot."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"the output folder {path} cannot be written to: {error.strerror or error}") from error
    return folder


def progress(items: Iterable[torch.Tensor], total: int) -> Iterable[torch.Tensor]:
    """The items, with a progress bar on a terminal and nothing elsewhere."""
    return tqdm.tqdm(items, total=total, unit="img", leave=False, disable=None)
