"""Pictures out of tensors: bytes, sheets, PNG files, and animations (GIF, MP4); and which real images a sheet shows.

Everything is written whole or not at all. What the images show, and how they are made, is not this module's business.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from dnnlib import UserError, atomic_path
from torch_utils.pixels import to_uint8

PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ANIMATION_SUFFIXES = (".gif", ".mp4")
GIF_FPS = 50  # players take a frame of one hundredth of a second for a mistake


class LabelledImages(Protocol):
    """What the choice of real images asks of a data set."""

    has_labels: bool

    def __len__(self) -> int:
        """Number of images."""

    def get_details(self, idx: int) -> Any:
        """An object with `raw_label`: an integer, or a vector of numbers."""


def default_grid(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of a sheet of images of this size in pixels: about 7680x4320 in all, within 7..32 columns and 4..32 rows."""
    return min(max(7680 // width, 7), 32), min(max(4320 // height, 4), 32)


def grid_indices(dataset: LabelledImages, grid: tuple[int, int], seed: int = 0) -> list[int]:
    """Which images of a data set a sheet of real images shows, row by row.

    Without labels: a random choice. With labels: one label per row, in rising order and from the start again when the labels run
    out, and in each row a random choice of the images with that label. Where there are fewer images than cells they repeat.

    Args:
        dataset: the data set.
        grid: columns and rows.
        seed: the choice is a function of it and of the labels.
    """
    columns, rows = grid
    random = np.random.RandomState(seed)
    if not dataset.has_labels:
        order = random.permutation(len(dataset))
        return [int(order[cell % len(order)]) for cell in range(columns * rows)]
    groups: dict[tuple[float, ...], list[int]] = {}
    for index in range(len(dataset)):
        label = tuple(np.atleast_1d(dataset.get_details(index).raw_label).tolist())
        groups.setdefault(label, []).append(index)
    members = [random.permutation(groups[label]) for label in sorted(groups)]
    indices = []
    for row in range(rows):
        group, turn = members[row % len(members)], row // len(members)
        indices += [int(group[(turn * columns + column) % len(group)]) for column in range(columns)]
    return indices


def make_sheet(images: torch.Tensor | np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """Images side by side, row by row.

    Args:
        images: [N, C, H, W], in [-1, 1] or uint8, at most as many as the grid has cells; the rest of it stays black.
        grid: columns and rows.

    Returns:
        uint8 [C, rows * H, columns * W] on the CPU.
    """
    columns, rows = grid
    images = to_uint8(torch.as_tensor(images)).cpu()
    count, channels, height, width = images.shape
    if count > columns * rows:
        raise ValueError(f"{count} images do not fit {columns} x {rows} cells")
    cells = images.new_zeros(columns * rows, channels, height, width)
    cells[:count] = images
    return cells.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def to_pil(image: torch.Tensor | np.ndarray) -> PIL.Image.Image:
    """One image [C, H, W], in [-1, 1] or uint8, as a PIL image: 1 channel grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Raises:
        ValueError: another number of channels.
    """
    array = to_uint8(torch.as_tensor(image)).cpu().permute(1, 2, 0).contiguous().numpy()
    if array.shape[2] not in PIL_MODES:
        raise ValueError(f"an image has 1 to 4 channels, not {array.shape[2]}")
    return PIL.Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def save_png(image: torch.Tensor | np.ndarray, path: str | os.PathLike) -> None:
    """Writes one image [C, H, W], in [-1, 1] or uint8, as PNG. Raises UserError where the file cannot be written."""
    with atomic_path(path) as temporary:
        to_pil(image).save(temporary, format="PNG")


def save_image_grid(images: torch.Tensor | np.ndarray, path: str | os.PathLike, grid: tuple[int, int]) -> None:
    """Writes a sheet of images (see make_sheet) as PNG. Raises UserError where the file cannot be written."""
    save_png(make_sheet(images, grid), path)


def enlarge(image: torch.Tensor, smallest: int) -> torch.Tensor:
    """An image [C, H, W] with every pixel repeated by the smallest whole factor that makes both sides at least `smallest` pixels."""
    factor = max(1, math.ceil(smallest / min(image.shape[-2:])))
    return image.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def check_animation_path(path: str | os.PathLike, fps: float = 1) -> pathlib.Path:
    """The path of an animation of `fps` frames per second, if it can be written here.

    Raises:
        UserError: it ends in neither .gif nor .mp4, a GIF is to show more than GIF_FPS, or the optional package that encodes MP4 is missing.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in ANIMATION_SUFFIXES:
        raise UserError(f"an animation ends in {' or '.join(ANIMATION_SUFFIXES)}, which {path} does not")
    if path.suffix.lower() == ".mp4":
        _encoder()
    elif fps > GIF_FPS:
        raise UserError(f"{path} cannot show {fps:g} frames per second; a GIF shows {GIF_FPS} at most, and a name ending in .mp4 shows more")
    return path


def write_animation(frames: Iterable[torch.Tensor], path: str | os.PathLike, fps: float) -> None:
    """Writes frames [C, H, W] as GIF or MP4, as the name says. See write_gif and write_mp4."""
    path = check_animation_path(path, fps)
    (write_mp4 if path.suffix.lower() == ".mp4" else write_gif)(frames, path, fps)


def write_gif(frames: Iterable[torch.Tensor], path: str | os.PathLike, fps: float) -> None:
    """Writes an endlessly looping GIF with one palette per frame.

    Args:
        frames: images [C, H, W] of one size, in [-1, 1] or uint8, taken one at a time; alpha is composed over white.
        path: the file.
        fps: frames per second, at most GIF_FPS. A GIF counts hundredths of a second: its frames take one more or less, the whole is as long as asked.

    Raises:
        UserError: the file cannot be written.
        ValueError: there are no frames.
    """
    opaque = (_lasting(_opaque(frame), round(100 * (index + 1) / fps) - round(100 * index / fps)) for index, frame in enumerate(frames))
    first = _first_of(opaque)
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=opaque, loop=0)


def write_mp4(frames: Iterable[torch.Tensor], path: str | os.PathLike, fps: float) -> None:
    """Writes an H.264 video that common players accept.

    Args:
        frames: images [C, H, W] of one size, in [-1, 1] or uint8, taken one at a time; alpha is composed over white. An odd last
            row or column is repeated, since the format needs even sides.
        path: the file.
        fps: frames per second.

    Raises:
        UserError: the optional package imageio-ffmpeg is missing, the encoder failed, or the file cannot be written.
        ValueError: there are no frames.
    """
    encoder = _encoder()
    arrays = (_even_sides(np.asarray(_opaque(frame).convert("RGB"))) for frame in frames)
    first = _first_of(arrays)
    height, width = first.shape[:2]
    with atomic_path(path) as temporary:
        options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "ffmpeg_log_level": "error"}
        writer = encoder.write_frames(str(temporary), (width, height), **options)
        try:
            writer.send(None)
            writer.send(np.ascontiguousarray(first))
            for array in arrays:
                writer.send(np.ascontiguousarray(array))
        finally:
            writer.close()
        if not _plays(encoder, temporary):
            raise UserError(f"cannot write {path}: the video encoder failed, or the disk is full; a name ending in .gif needs no encoder")


def _encoder() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError("MP4 needs the package imageio-ffmpeg: `pip install imageio-ffmpeg`, or choose a name ending in .gif") from error
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError("MP4 needs ffmpeg, which imageio-ffmpeg does not find here; install ffmpeg, or choose a name ending in .gif") from error
    return imageio_ffmpeg


def _plays(encoder: Any, path: pathlib.Path) -> bool:
    """Whether a video has frames that can be found: ffmpeg writes where they are at the very end, and its own end is not told."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        return encoder.count_frames_and_secs(str(path))[0] > 0
    except RuntimeError:
        return False


def _lasting(image: PIL.Image.Image, hundredths: int) -> PIL.Image.Image:
    """The image, to be shown for that many hundredths of a second, where PIL looks for that."""
    image.info["duration"] = 10 * hundredths
    return image


def _first_of(items: Iterator[Any]) -> Any:
    for item in items:
        return item
    raise ValueError("an animation needs at least one frame")


def _opaque(frame: torch.Tensor | np.ndarray) -> PIL.Image.Image:
    """A frame without alpha, as grey or RGB: video has no transparency."""
    image = to_pil(frame)
    if image.mode not in ("LA", "RGBA"):
        return image
    white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _even_sides(array: np.ndarray) -> np.ndarray:
    return np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
