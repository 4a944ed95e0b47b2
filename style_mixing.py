"""Command: a table of images, each with the coarse layout of one seed and the styles of another."""

from __future__ import annotations

import click
import torch

from dnnlib import EasyDict, UserError
from dnnlib.cli import MAX_SEED, IntRangeList, run_command
from training.config import choose_device
from training.generator_cli import check_truncation, chosen_class, load_generator, progress, writable_folder
from training.images import save_image_grid, save_png
from training.options import DEVICES
from training.sampling import Renderer, default_batch, mix_styles, one_hot, seed_latents

DEFAULT_STYLES = range(7)


@click.command()
@click.option("--network", help="Network: a snapshot (.safetensors) or a StyleGAN2-ADA .pkl, as file or URL", metavar="FILE|URL", required=True)
@click.option("--rows", "row_seeds", help="Seeds of the rows, whose other layers are kept", type=IntRangeList(MAX_SEED), required=True)
@click.option("--cols", "col_seeds", help="Seeds of the columns, whose --styles are put in", type=IntRangeList(MAX_SEED), required=True)
@click.option("--styles", help="Layers that take the column's w  [default: 0-6, as far as there are so many]", type=IntRangeList())
@click.option("--trunc", help="Truncation psi; 1 is none", type=float, default=1, show_default=True)
@click.option("--class", "class_index", help="Class, for a network with labels", type=click.IntRange(min=0))
@click.option("--noise-mode", help="Noise inputs", type=click.Choice(["const", "random", "none"]), default="const", show_default=True)
@click.option("--outdir", help="Where to write", metavar="DIR", required=True)
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
def main(**options) -> None:
    """Mixes the styles of two lists of seeds: grid.png, and every image of it as ROW-COLUMN.png (SEED-SEED.png is the unmixed one).

    \b
    # the columns give the coarse layers, the rows the fine ones
    python style_mixing.py --network=NET --rows=85,100,75 --cols=55,821,1789 --styles=0-6 --outdir=out
    # one class of a network with labels
    python style_mixing.py --network=NET --rows=0-3 --cols=4-7 --class=2 --styles=0-3 --outdir=out
    """
    opts = EasyDict(options)
    seeds = list(dict.fromkeys([*opts.row_seeds, *opts.col_seeds]))
    device = choose_device(opts.device)
    G = load_generator(opts.network).to(device)
    opts.class_index = chosen_class(opts.class_index, G)
    check_truncation(opts.trunc, G)
    styles = _layers(opts.styles, G.num_ws)
    outdir = writable_folder(opts.outdir)
    renderer = Renderer(G, device, default_batch(G.img_size, device), opts.trunc, opts.noise_mode)
    z = seed_latents(seeds, G.z_dim)
    ws = dict(zip(seeds, renderer.map(z, one_hot([opts.class_index] * len(z), G.c_dim))))
    # What a row and a column of the same seed give is the image of that seed.
    cells = dict.fromkeys([*((seed, seed) for seed in seeds), *((row, col) for row in opts.row_seeds for col in opts.col_seeds)])
    mixed = torch.stack([mix_styles(ws[row], ws[col], styles) for row, col in cells])
    pictures = dict(zip(cells, progress(renderer.render(mixed, [row for row, _ in cells]), len(cells))))
    for (row, col), picture in pictures.items():
        save_png(picture, outdir / f"{row}-{col}.png")
    _save_table(pictures, opts.row_seeds, opts.col_seeds, outdir / "grid.png")
    print(f"wrote {outdir / 'grid.png'} and {len(pictures)} single images; layers {_as_ranges(styles)} of {G.num_ws} come from the columns")


def _layers(styles: list[int] | None, num_ws: int) -> list[int]:
    """The layers of --styles, rising."""
    if styles is None:
        return [layer for layer in DEFAULT_STYLES if layer < num_ws]
    if unknown := [layer for layer in styles if layer >= num_ws]:
        raise UserError(f"--styles={_as_ranges(styles)} names layer {unknown[0]}, but the network has the layers 0 to {num_ws - 1}")
    return sorted(set(styles))


def _as_ranges(numbers: list[int]) -> str:
    """`0-2,5` for [0, 1, 2, 5]."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _save_table(pictures: dict[tuple[int, int], torch.Tensor], rows: list[int], cols: list[int], path) -> None:
    """The columns' own images on top, the rows' own images on the left, the corner black."""
    cells = [torch.zeros_like(next(iter(pictures.values()))), *(pictures[col, col] for col in cols)]
    for row in rows:
        cells += [pictures[row, row], *(pictures[row, col] for col in cols)]
    save_image_grid(torch.stack(cells), path, (len(cols) + 1, len(rows) + 1))


if __name__ == "__main__":
    run_command(main)
