"""Command: images from a trained network, one file per seed, one sheet of many, or a walk through latent space."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import click
import torch
from click.core import ParameterSource

from dnnlib import EasyDict, UserError
from dnnlib.cli import MAX_SEED, IntRangeList, run_command
from training.config import choose_device
from training.generator_cli import check_truncation, chosen_class, load_generator, progress, writable_folder
from training.images import check_animation_path, enlarge, save_image_grid, save_png, write_animation
from training.options import DEVICES
from training.projection import read_projection
from training.sampling import Renderer, default_batch, one_hot, plan_sheet, seed_latents, walk_latents, walk_ws

SMALLEST_FRAME = 256


class GridSize(click.ParamType):
    """`8x4` as (8, 4): columns and rows; `auto` stays."""

    name = "COLUMNSxROWS"

    def convert(self, value, param, ctx):
        """Parses the text; fails through click, which names the option."""
        if not isinstance(value, str) or value == "auto":
            return value
        columns, _, rows = value.lower().partition("x")
        if not (columns.isdecimal() and rows.isdecimal() and int(columns) and int(rows)):
            self.fail(f"{value!r} is neither columns x rows, such as 8x4, nor auto", param, ctx)
        return int(columns), int(rows)


@click.command()
@click.option("--network", help="Network: a snapshot (.safetensors) or a StyleGAN2-ADA .pkl, as file or URL", metavar="FILE|URL", required=True)
@click.option("--seeds", help="Random seeds, such as 0,3,10-20", type=IntRangeList(MAX_SEED))
@click.option("--trunc", help="Truncation psi; 1 is none", type=float, default=1, show_default=True)
@click.option("--class", "class_index", help="Class, for a network with labels", type=click.IntRange(min=0))
@click.option("--noise-mode", help="Noise inputs", type=click.Choice(["const", "random", "none"]), default="const", show_default=True)
@click.option("--projected-w", help="Images from the w of a projection (.npz) instead of seeds", metavar="FILE")
@click.option("--outdir", help="Where to write", metavar="DIR", required=True)
@click.option("--batch", help="Images at a time; changes speed and rounding  [default: by resolution and device]", type=click.IntRange(min=1))
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option(
    "--grid",
    help="One sheet, grid.png, instead of single images; rows are classes without --class",
    type=GridSize(),
    is_flag=False,
    flag_value="auto",
)
@click.option("--walk", help="A walk through the seeds, below --outdir; NAME/ is a folder of frames", metavar="NAME.gif|NAME.mp4|NAME/")
@click.option("--walk-space", help="Interpolate z on a sphere or w on lines", type=click.Choice(["z", "w"]), default="z", show_default=True)
@click.option("--loop", help="Whether the walk returns to the first seed or ends on the last", type=bool, default=True, show_default=True)
@click.option("--frames", help="Frames of the walk from one seed to the next", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--fps", help="Frames of the walk per second", type=click.FloatRange(min=1, max=120), default=30, show_default=True)
def main(**options) -> None:
    """Generates images from a trained network.

    \b
    # single images, seed0000.png to seed0007.png
    python generate.py --network=NET --seeds=0-7 --trunc=0.7 --outdir=out
    # a sheet with one class per row
    python generate.py --network=NET --seeds=0-15 --grid --outdir=out
    # a walk through four seeds
    python generate.py --network=NET --seeds=1,5,8,9 --walk=walk.gif --outdir=out
    # one way from seed 1 to seed 5 in 61 single pictures, straight through w
    python generate.py --network=NET --seeds=1,5 --walk=walk/ --walk-space=w --loop=false --frames=60 --outdir=out
    """
    opts = EasyDict(options)
    _check_options(opts)
    device = choose_device(opts.device)
    G = load_generator(opts.network).to(device)
    ws = read_projection(opts.projected_w, G) if opts.projected_w is not None else None
    opts.class_index = chosen_class(opts.class_index, G, required=opts.grid is None and opts.projected_w is None)
    check_truncation(opts.trunc, G)
    sheet = None
    if opts.grid is not None:
        sheet = plan_sheet(None if opts.grid == "auto" else opts.grid, opts.seeds, opts.class_index, G.c_dim, G.img_size)
    outdir = writable_folder(opts.outdir)
    if opts.walk is not None:
        writable_folder(outdir / opts.walk if _is_folder(opts.walk) else (outdir / opts.walk).parent, "--walk")
    renderer = Renderer(G, device, opts.batch or default_batch(G.img_size, device), opts.trunc, opts.noise_mode)
    if ws is not None:
        _write_files(renderer.render(ws, range(len(ws))), [outdir / f"proj{index:02d}.png" for index in range(len(ws))])
    elif sheet is not None:
        pictures = list(progress(renderer.render_seeds(sheet.seeds, sheet.classes), len(sheet.seeds)))
        save_image_grid(torch.stack(pictures), outdir / "grid.png", sheet.grid)
        print(f"wrote {outdir / 'grid.png'} ({sheet.grid[0]} columns, {sheet.grid[1]} rows)")
    elif opts.walk is not None:
        _write_walk(renderer, opts, outdir / opts.walk)
    else:
        pictures = renderer.render_seeds(opts.seeds, [opts.class_index] * len(opts.seeds))
        _write_files(pictures, [outdir / f"seed{seed:04d}.png" for seed in opts.seeds])


def _check_options(opts: EasyDict) -> None:
    """What can be known to be wrong before anything is read."""
    chosen = [name for name in ("projected_w", "grid", "walk") if opts[name] is not None]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join('--' + name.replace('_', '-') for name in chosen)} exclude each other; give one of them")
    if not opts.seeds and opts.projected_w is None and (opts.grid is None or opts.seeds is not None):
        raise UserError("--seeds is missing; give for example --seeds=0-15 (or --projected-w=FILE, or --grid)")
    if opts.walk is not None:
        if pathlib.PurePath(opts.walk).is_absolute() or ".." in pathlib.PurePath(opts.walk).parts:
            raise UserError(f"--walk={opts.walk} leads out of --outdir, below which it is written; give a name, such as walk.gif")
        if not _is_folder(opts.walk):
            _check_animation(opts)
        if len(opts.seeds) < 2:
            raise UserError("--walk goes from seed to seed and needs at least two --seeds, but there is one")
    for name in _ignored(opts):
        if click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT:
            shown = next(option.opts[0] for option in main.params if option.name == name)
            print(f"note: {shown} has no effect {'with --projected-w' if opts.projected_w is not None else 'without an animated --walk'}")


def _ignored(opts: EasyDict) -> list[str]:
    """Names of the options that are not looked at because of others."""
    of_walks = ["walk_space", "loop", "frames", "fps"]
    if opts.projected_w is not None:
        return ["seeds", "trunc", "class_index", *of_walks]
    if opts.walk is None:
        return of_walks
    return ["fps"] if _is_folder(opts.walk) else []


def _check_animation(opts: EasyDict) -> None:
    """Raises UserError where the file of --walk cannot be written."""
    try:
        check_animation_path(opts.walk, opts.fps)
    except UserError as error:
        raise UserError(f"--walk={opts.walk}: {error}; a folder of frames ends in /") from error


def _write_files(pictures: Iterable[torch.Tensor], paths: list[pathlib.Path]) -> None:
    for picture, path in zip(progress(pictures, len(paths)), paths, strict=True):
        save_png(picture, path)
    print(f"wrote {len(paths)} image{'s' * (len(paths) > 1)}: {paths[0]}{f' to {paths[-1].name}' * (len(paths) > 1)}")


def _is_folder(walk: str) -> bool:
    """Whether --walk asks for a folder of frames."""
    return walk.endswith(("/", os.sep))


def _write_walk(renderer: Renderer, opts: EasyDict, path: pathlib.Path) -> None:
    """The walk as frames of the network's size, or as an animation, where small images are enlarged since players blur them otherwise."""
    z = seed_latents(opts.seeds, renderer.G.z_dim)
    if opts.walk_space == "z":
        z = walk_latents(z, opts.frames, opts.loop)
    ws = renderer.map(z, one_hot([opts.class_index] * len(z), renderer.G.c_dim))
    if opts.walk_space == "w":
        ws = walk_ws(ws, opts.frames, opts.loop)
    pictures = renderer.render(ws, range(len(ws)))
    if _is_folder(opts.walk):
        _refuse_older_frames(opts.walk, path, len(ws))
        _write_files(pictures, [path / f"frame{index:05d}.png" for index in range(len(ws))])
        return
    write_animation((enlarge(picture, SMALLEST_FRAME) for picture in progress(pictures, len(ws))), path, opts.fps)
    print(f"wrote {path} ({len(ws)} frames, {len(ws) / opts.fps:.1f} seconds)")


def _refuse_older_frames(walk: str, folder: pathlib.Path, count: int) -> None:
    """Raises UserError where a longer walk left frames that would follow on those of this one."""
    older = [path.name for path in sorted(folder.glob("frame*.png")) if path.stem[5:].isdecimal() and int(path.stem[5:]) >= count]
    if older:
        raise UserError(f"--walk={walk} has {count} frames, but {older[0]} of a longer walk lies there; remove it, or name another folder")


if __name__ == "__main__":
    run_command(main)
