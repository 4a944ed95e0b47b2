"""Command: converts a network pickle of StyleGAN2-ADA or StyleGAN3 (`--cfg=stylegan2`) into a safetensors snapshot, running nothing of it.

`load_network_pkl` does the same for notebooks, straight to networks.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import BinaryIO

import click

from dnnlib import EasyDict, UserError
from dnnlib.cli import run_command
from dnnlib.download import fetch
from torch_utils.checkpoint import NetworkRecord, save_networks
from torch_utils.legacy import read_pickle
from training.networks import build_network, is_snapshot, load_network


@click.command()
@click.option("--source", help="Network pickle to convert, a file or a URL", metavar="PKL", required=True)
@click.option("--dest", help="Snapshot to write", metavar="SAFETENSORS", required=True)
@click.option("--force-fp16", help="Give the networks four resolutions in 16 bits, clamped at 256", type=bool, default=False, show_default=True)
def main(source: str, dest: str, force_fp16: bool) -> None:
    """Converts a network pickle into a safetensors snapshot of this project.

    Nothing in the pickle is executed; a file that asks for anything else than the layers of these networks is refused.

    \b
    python legacy.py --source=ffhq.pkl --dest=ffhq.safetensors
    """
    path = fetch(source)
    if is_snapshot(path):
        raise UserError(f"--source={source} is a snapshot of this project already; use it as it is")
    records, meta = read_pickle(path)
    if force_fp16:
        for record in records.values():
            _force_fp16(record)
    for name, record in records.items():
        build_network(record, f"{name} of --source={source}")  # refuses what could be written and not be loaded
    if pathlib.Path(dest).suffix != ".safetensors":
        print(f"note: {dest} will be a safetensors file, whatever its name says; only this project's tools read it as a network")
    save_networks(dest, records, {"training_set_kwargs": meta["training_set_kwargs"]})
    for name, record in records.items():
        count = sum(tensor.numel() for tensor in record.tensors.values())
        print(f"{name:<6} {record.class_name:<32} {len(record.tensors):>4} tensors {count:>12,} numbers")
    print(f"wrote {dest}")


def load_network_pkl(f: BinaryIO | str | os.PathLike) -> EasyDict:
    """The networks of a .pkl of StyleGAN2-ADA or of a snapshot of this project; nothing in the file is executed.

    Args:
        f: a file opened for reading bytes, as `dnnlib.util.open_url` gives it, or a path or URL.

    Returns:
        As `training.networks.load_network`: modules by name ('G_ema', 'G', 'D', and 'P' if there is one) on the CPU, and 'meta'.

    Raises:
        UserError: missing, damaged or foreign file, or one that is open as text.
    """
    if isinstance(f, str | os.PathLike):
        return load_network(fetch(f))
    if not isinstance(f.read(0), bytes):
        raise UserError("the network file is open as text; open it for reading bytes, with mode 'rb'")
    name = pathlib.PurePath(str(getattr(f, "name", ""))).name or "network"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        with open(path, "wb") as copy:
            shutil.copyfileobj(f, copy)
        return load_network(path)


def _force_fp16(record: NetworkRecord) -> None:
    """What StyleGAN2-ADA's own converter does under this option."""
    target = record.kwargs["synthesis_kwargs"] if record.class_name.endswith("Generator") else record.kwargs
    target.update(num_fp16_res=4, conv_clamp=256)


if __name__ == "__main__":
    run_command(main)
