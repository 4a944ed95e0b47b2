"""Command: the w of a trained network whose image looks most like a given picture."""

from __future__ import annotations

import pathlib
import time

import click
import numpy as np
import PIL.Image
import torch
import tqdm

from dnnlib import EasyDict, UserError, atomic_path
from dnnlib.cli import MAX_SEED, run_command
from metrics.detectors import trust_detector
from torch_utils.pixels import from_uint8
from training.config import choose_device
from training.generator_cli import chosen_class, load_generator, progress, writable_folder
from training.image_store import central_part, load_pixels, open_image, upright
from training.images import PIL_MODES, check_animation_path, enlarge, save_png, write_animation
from training.networks import Generator
from training.options import DEVICES
from training.perceptual import perceptual_distance
from training.projection import Projection, Settings, project
from training.sampling import Renderer, default_batch, one_hot

VIDEO_FPS = 30
SMALLEST_FRAME = 256


@click.command()
@click.option("--network", help="Network: a snapshot (.safetensors) or a StyleGAN2-ADA .pkl, as file or URL", metavar="FILE|URL", required=True)
@click.option("--target", help="Picture to project; its middle is brought to the network's size", metavar="FILE", required=True)
@click.option("--num-steps", help="Steps of the search", type=click.IntRange(min=1), default=Settings.num_steps, show_default=True)
@click.option("--seed", help="Seed of the search", type=click.IntRange(0, MAX_SEED), default=Settings.seed, show_default=True)
@click.option("--save-video", help="A video of the search, proj.mp4  [default: if imageio-ffmpeg is installed]", type=bool)
@click.option("--outdir", help="Where to write", metavar="DIR", required=True)
@click.option("--class", "class_index", help="Class, for a network with labels", type=click.IntRange(min=0))
@click.option("--distance", help="lpips (VGG16), embedded, a copy of vgg16.pt, or auto: lpips if available", default="auto", show_default=True)
@click.option("--trust-detector", help="Run the file of --distance, now and later: TorchScript is a program", is_flag=True)
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
def main(**options) -> None:
    """Projects a picture into the w space of a trained network: target.png, proj.png, projected_w.npz and proj.mp4.

    \b
    python projector.py --network=NET --target=face.png --outdir=out
    # what generate.py makes of the result
    python generate.py --network=NET --projected-w=out/projected_w.npz --outdir=out
    """
    opts = EasyDict(options)
    wants_video = _can_write_video(opts.save_video)
    device = choose_device(opts.device)
    G = load_generator(opts.network).to(device)
    opts.class_index = chosen_class(opts.class_index, G)
    picture = read_target(opts.target, G)
    if opts.trust_detector:
        _trust(opts.distance)
    distance = perceptual_distance(opts.distance, device)
    outdir = writable_folder(opts.outdir)
    c = one_hot([opts.class_index], G.c_dim)[0] if G.c_dim > 0 else None
    target = from_uint8(picture)
    start = time.monotonic()
    with tqdm.tqdm(total=opts.num_steps, unit="step", leave=False, disable=None) as bar:

        def advance(step: int, value: float) -> None:
            bar.set_postfix_str(f"distance {value:.4f}", refresh=False)
            bar.update()

        found = project(G, target, distance, c, Settings(num_steps=opts.num_steps, seed=opts.seed), advance)
    renderer = Renderer(G, device, default_batch(G.img_size, device))
    seconds = time.monotonic() - start
    _save(found, picture, renderer, outdir)
    print(f"projected in {seconds:.1f} seconds: {distance.name} distance {found.distances[-1]:.4f}, {found.distances[0]:.4f} at the start")
    if wants_video:
        _save_video(found, picture, renderer, outdir / "proj.mp4")
    print(f"wrote {', '.join(['target.png', 'proj.png', 'projected_w.npz'] + ['proj.mp4'] * wants_video)} to {outdir}")


def _trust(distance: str) -> None:
    """Lets the file of --distance run. Raises UserError where there is none."""
    if distance in ("auto", "lpips", "embedded"):
        print(f"note: --trust-detector has no effect with --distance={distance}, which runs no file of yours")
        return
    try:
        trust_detector(distance)
    except UserError as error:
        raise UserError(f"--distance={distance}: {error}") from error


def read_target(path: str, G: Generator) -> torch.Tensor:
    """The middle of a picture, in the shape, at the size and with the channels of a network: uint8 [C, H, W].

    A picture of another size is cropped and resampled (Lanczos), as StyleGAN2-ADA does, and that is said.

    Raises:
        UserError: missing, torn or no picture, or one with more than 8 bits per channel.
    """
    try:
        image = open_image(pathlib.Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"--target={path} cannot be read: {error.strerror or error}") from error
    if image.mode[0] in "IF":
        raise UserError(f"--target={path} has more than 8 bits per channel (mode {image.mode}); save it as an ordinary PNG or JPEG")
    load_pixels(image, path)
    image = upright(image)
    wanted = G.img_size[1], G.img_size[0]
    width, height = image.size
    if image.has_transparency_data and "A" not in PIL_MODES[G.img_channels]:
        print(f"note: {path} has transparency, which the network has not; the colours stored beneath it are projected")
    try:
        image = image.convert(PIL_MODES[G.img_channels])
    except ValueError as error:
        raise UserError(f"--target={path} cannot be used ({error}); save it as an RGB PNG or JPEG") from error
    if image.size != wanted:
        image = central_part(image, *wanted)
        middle = f"its middle {image.width}x{image.height}"
        print(f"note: {path} is {width}x{height} pixels; {middle} is resampled to the network's {wanted[0]}x{wanted[1]}")
        image = image.resize(wanted, PIL.Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _can_write_video(wanted: bool | None) -> bool:
    """Whether to write a video. Raises UserError where it is asked for and cannot be written."""
    if wanted is False:
        return False
    try:
        check_animation_path("proj.mp4")
    except UserError as error:
        if wanted:
            raise UserError(f"--save-video=true: {error}") from error
        print(f"note: there will be no proj.mp4: {error}")
        return False
    return True


def _save(found: Projection, picture: torch.Tensor, renderer: Renderer, outdir: pathlib.Path) -> None:
    """The target, the result and its image as generate.py makes it, with the network's own noise."""
    ws = found.steps[-1].repeat(1, renderer.G.num_ws, 1)
    save_png(picture, outdir / "target.png")
    save_png(next(renderer.render(ws, [0])), outdir / "proj.png")
    with atomic_path(outdir / "projected_w.npz") as temporary:
        np.savez(temporary, w=ws.numpy())


def _save_video(found: Projection, picture: torch.Tensor, renderer: Renderer, path: pathlib.Path) -> None:
    """Target and search side by side, a frame per step."""
    ws = found.steps[:, None].repeat(1, renderer.G.num_ws, 1)
    pictures = progress(renderer.render(ws, range(len(ws))), len(ws))
    write_animation((enlarge(torch.cat([picture, image], dim=2), SMALLEST_FRAME) for image in pictures), path, VIDEO_FPS)


if __name__ == "__main__":
    run_command(main)
