"""Command: converts a network pickle of StyleGAN2-ADA or StyleGAN3 (`--cfg=stylegan2`) into a safetensors snapshot, running nothing of it."""

from __future__ import annotations

import click

from dnnlib.cli import run_command
from dnnlib.download import fetch
from torch_utils.checkpoint import NetworkRecord, save_networks
from torch_utils.legacy import read_pickle


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
    records, meta = read_pickle(fetch(source))
    if force_fp16:
        for record in records.values():
            _force_fp16(record)
    save_networks(dest, records, {"training_set_kwargs": meta["training_set_kwargs"]})
    for name, record in records.items():
        count = sum(tensor.numel() for tensor in record.tensors.values())
        print(f"{name:<6} {record.class_name:<32} {len(record.tensors):>4} tensors {count:>12,} numbers")
    print(f"wrote {dest}")


def _force_fp16(record: NetworkRecord) -> None:
    """What StyleGAN2-ADA's own converter does under this option."""
    target = record.kwargs["synthesis_kwargs"] if record.class_name.endswith("Generator") else record.kwargs
    target.update(num_fp16_res=4, conv_clamp=256)


if __name__ == "__main__":
    run_command(main)
