"""The conversion itself: colour modes, crops and sizes, and a zip or folder of PNG files with dataset.json as training reads them.
What is converted comes from dataset_sources.py, where it goes is dataset_dest.py; the same source and options always give the same bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dnnlib import UserError
from torch_utils.image_size import SIZES, nearest_size, start_of
from training.dataset_dest import open_dest
from training.dataset_labels import LABEL_FILE
from training.dataset_sources import Source, SourceItem
from training.image_store import CHANNELS_OF_MODE, central_part, load_pixels, upright

FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
TRANSFORMS = ("center-crop", "center-crop-wide")
MODES = {"rgb": "RGB", "l": "L", "rgba": "RGBA"}
WIDE_RANGE = 1 << 16
DIMMEST_PEAK = WIDE_RANGE // 8  # of a whole source of 16 bits: below it the values are of fewer bits, and come out almost black
SURVEY_IMAGES = 2000
TABLE_ROWS = 8

Transform = Callable[[Image.Image], Image.Image | None]


@dataclass
class Summary:
    """What a conversion wrote: number of images, those left out as too small, (width, height) in pixels, colour mode, images per label; and of how
    many images, of more than 8 bits, the upper 8 bits were kept, with the largest value in all of these."""

    written: int = 0
    left_out: int = 0
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    labels: list = field(default_factory=list)
    wide: int = 0
    peak: int = 0


# Colour modes.


def plain_mode(image: Image.Image, where: str, convert: str | None = None) -> Image.Image:
    """The image as L, LA, RGB or RGBA: palettes and transparent colours resolved, 1 and 16 bits as 8, CMYK and the like as RGB, then converted
    where asked.

    Of 16 bits the upper 8 are kept, in every image alike: to scale an image by its own brightest value would change what the images are to each
    other. Grey values of 32 bits are read as 16.

    Args:
        image: a decoded image.
        where: its name in messages.
        convert: "rgb", "l", "rgba", or None to leave it; alpha that goes is laid over white.

    Raises:
        UserError: a mode that has no such form, or values beyond 16 bits.
    """
    mode, clear = image.mode, image.info.get("transparency")
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if mode == "PA" or clear is not None else "RGB")
    elif mode in ("1", "L", "RGB") and clear is not None:  # one colour stands for "transparent", as PNG has it
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    elif is_wide(image):
        image = _narrowed(image, where, clear)
    elif mode not in CHANNELS_OF_MODE:
        raise UserError(f"{where} has colour mode {mode}, which has no form as grey or RGB of 8 bits")
    target = MODES[convert] if convert else image.mode
    if image.mode in ("LA", "RGBA") and target in ("L", "RGB"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == target else image.convert(target)


def is_wide(image: Image.Image) -> bool:
    """Whether the image holds grey values of 16 or 32 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _narrowed(image: Image.Image, where: str, clear: int | None) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high >= WIDE_RANGE:
        raise UserError(f"{where} holds values from {low:,} to {high:,}; scale the whole set to 0 .. {WIDE_RANGE - 1:,}, all images by one factor")
    grey = (values >> 8).astype(np.uint8)
    return Image.fromarray(grey if clear is None else np.stack([grey, np.where(values == clear, 0, 255).astype(np.uint8)], axis=2))


# Sizes.


def make_transform(name: str | None, width: int | None, height: int | None, resize_filter: str) -> Transform:
    """The function that brings an image to its size; it returns None for an image that is to be left out.

    Args:
        name: None scales to width x height (each its own if not given), whatever the shape; "center-crop" takes the largest centred part of that
            shape first; "center-crop-wide" takes a centred band and sets it, scaled to width x height, into a black width x width square.
        width: target width in pixels.
        height: target height in pixels.
        resize_filter: "box" or "lanczos".

    Raises:
        UserError: a crop without width and height, or one whose sizes do not fit it.
    """
    resample = FILTERS[resize_filter]
    if name is None:
        return lambda image: _scaled(image, width or image.width, height or image.height, resample)
    if width is None or height is None:
        raise UserError(f"--transform={name} needs both --width and --height")
    if name == "center-crop":
        return lambda image: _scaled(central_part(image, width, height), width, height, resample)
    if height > width:
        raise UserError(f"--transform=center-crop-wide needs a --height of at most --width, but they are {height} and {width}")
    return lambda image: _wide(image, width, height, resample)


def _scaled(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _wide(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image | None:
    # The band's height is measured at the target's scale, as published LSUN sets have it: larger images come out stretched.
    band = int(np.rint(width * image.height / image.width))
    if image.width < width or band < height:
        return None
    image = image.crop((0, (image.height - band) // 2, image.width, (image.height + band) // 2))
    canvas = Image.new(image.mode, (width, width), _black(image.mode))
    canvas.paste(_scaled(image, width, height, resample), (0, (width - height) // 2))
    return canvas


def _black(mode: str) -> tuple[int, ...]:
    colour = (0,) * CHANNELS_OF_MODE[mode]
    return colour[:-1] + (255,) if mode.endswith("A") else colour


# Conversion.


def convert_dataset(source: Source, dest: str | os.PathLike, transform: Transform, convert: str | None = None, progress: Callable = iter) -> Summary:
    """Writes the whole source to a zip or folder, all of it or nothing.

    Args:
        source: what to convert.
        dest: a file name ending in .zip, or a folder that is empty or does not exist.
        transform: from make_transform.
        convert: "rgb", "l", "rgba", or None to leave colours as they are.
        progress: wraps the iterator over the images, to show how far it is.

    Raises:
        UserError: torn images, images of 16 bits that use the lower ones alone, images of several sizes or modes, or of one that no
            network makes, nothing to write, or `dest` cannot be written.
    """
    summary = Summary()
    entries = []
    with open_dest(dest) as write:
        for item in progress(_decoded(source)):
            image = transform(plain_mode(upright(item.image), item.where, convert))
            if is_wide(item.image):
                summary.wide, summary.peak = summary.wide + 1, max(summary.peak, int(np.asarray(item.image).max(initial=0)))
            if image is None:
                summary.left_out += 1
                continue
            _check_alike(image, item, summary, source, convert)
            number = f"{summary.written:08d}"
            name = f"{number[:5]}/img{number}.png"
            write(name, encode_png(image))
            entries.append([name, item.label])
            summary.written += 1
        if summary.written == 0:
            raise UserError(f"nothing to write to {dest}: all {summary.left_out} images are smaller than --width and --height")
        if summary.wide and summary.peak < DIMMEST_PEAK:
            raise UserError(
                f"the {summary.wide} images of 16 or 32 bits in --source would come out almost black: of 16 bits the upper 8 are kept, but "
                f"no value is above {summary.peak:,} of {WIDE_RANGE - 1:,}; scale all of them by the same factor, or save them with 8 bits"
            )
        summary.labels = [label for _, label in entries if label is not None]
        content = {"labels": entries if summary.labels else None}
        if summary.labels and source.label_names:
            content["label_names"] = source.label_names  # for people; training and the official reader look at "labels" alone
        write(LABEL_FILE, json.dumps(content).encode())
    return summary


def _decoded(source: Source) -> Iterator[SourceItem]:
    """The items of a source, their pixels read. An error about one file says how to find all such files."""
    try:
        for item in source.items():
            load_pixels(item.image, item.where)
            yield item
    except UserError as error:
        raise UserError(f"{error}; `{source.check}` finds all that cannot be read" if source.check else str(error)) from error


def _check_alike(image: Image.Image, item: SourceItem, summary: Summary, source: Source, convert: str | None) -> None:
    """The first image sets size and mode, all others must follow."""
    if summary.written == 0:
        summary.size, summary.mode = image.size, image.mode
        if start_of(image.height, image.width) is None:
            height, width = nearest_size(image.height, image.width)
            raise UserError(
                f"{item.where} comes out as {image.width}x{image.height} pixels, but images must be {SIZES}: "
                f"try --transform=center-crop --width={width} --height={height}"
            )
    if image.mode != summary.mode:
        modes = _survey(source, lambda other: plain_mode_name(other.image, other.where, convert))
        raise UserError(
            f"{item.where} has colour mode {image.mode}, the images before it {summary.mode} (in {modes}); "
            f"give --convert=rgb, l or rgba to make them alike"
        )
    if image.size != summary.size:
        sizes = _survey(source, lambda other: "{}x{}".format(*other.image.size))
        raise UserError(
            f"{item.where} comes out as {image.width}x{image.height} pixels, the images before it as {summary.size[0]}x{summary.size[1]} "
            f"(sizes as stored, in {sizes}); give --width and --height to make them alike"
        )


def plain_mode_name(image: Image.Image, where: str, convert: str | None = None) -> str:
    """The mode that plain_mode would give, by the header alone. Raises UserError where plain_mode would."""
    pixel = Image.new(image.mode, (1, 1))
    pixel.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return plain_mode(pixel, where, convert).mode


def _survey(source: Source, describe: Callable[[SourceItem], str]) -> str:
    """How many images of a source are like what, by their headers. Of a large source its beginning: whoever waits has made a mistake."""
    counts: Counter = Counter()
    with contextlib.suppress(UserError):  # of a file that cannot be read either, which is not what the message is about
        counts.update(map(describe, itertools.islice(source.items(), SURVEY_IMAGES)))
    seen = counts.total()
    return f"{'all' if seen == source.count else f'the first {seen:,}'}: {count_table(counts)}"


def count_table(counts: Counter) -> str:
    """`name: count, ...`, the most frequent first; the rest together."""
    rows = counts.most_common()
    rest = sum(count for _, count in rows[TABLE_ROWS:])
    return ", ".join([f"{name}: {count}" for name, count in rows[:TABLE_ROWS]] + ([f"others: {rest}"] if rest else []))


def encode_png(image: Image.Image) -> bytes:
    """An uncompressed PNG of the pixels alone, without profiles or comments of the source."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="png", compress_level=0, optimize=False)
    return buffer.getvalue()
