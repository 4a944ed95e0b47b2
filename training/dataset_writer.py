"""The conversion itself: colour modes, crops and sizes, and a zip or folder of PNG files with dataset.json as training reads them.
What is converted comes from dataset_sources.py; the same source and options always give the same bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pathlib
import shutil
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dnnlib import UserError, atomic_path
from training.dataset_labels import LABEL_FILE
from training.dataset_sources import Source, SourceItem
from training.image_store import CHANNELS_OF_MODE, SYSTEM_FOLDERS, load_pixels, upright

FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
TRANSFORMS = ("center-crop", "center-crop-wide")
MODES = {"rgb": "RGB", "l": "L", "rgba": "RGBA"}
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
SURVEY_IMAGES = 2000
TABLE_ROWS = 8

Transform = Callable[[Image.Image], Image.Image | None]
Write = Callable[[str, bytes], None]


@dataclass
class Summary:
    """What a conversion wrote: number of images, those left out as too small, edge in pixels, colour mode, images per label."""

    written: int = 0
    left_out: int = 0
    edge: int = 0
    mode: str = ""
    labels: list = field(default_factory=list)


# Colour modes.


def plain_mode(image: Image.Image, where: str, convert: str | None = None) -> Image.Image:
    """The image as L, LA, RGB or RGBA: palettes resolved, 1 and 16 bits as 8, CMYK and the like as RGB, then converted where asked.

    Args:
        image: a decoded image.
        where: its name in messages.
        convert: "rgb", "l", "rgba", or None to leave it; alpha that goes is laid over white.

    Raises:
        UserError: a mode that has no such form.
    """
    mode = image.mode
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    elif mode == "I" or mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif mode not in CHANNELS_OF_MODE:
        raise UserError(f"{where} has colour mode {mode}, which has no form as grey or RGB of 8 bits")
    target = MODES[convert] if convert else image.mode
    if image.mode in ("LA", "RGBA") and target in ("L", "RGB"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == target else image.convert(target)


# Sizes.


def make_transform(name: str | None, width: int | None, height: int | None, resize_filter: str) -> Transform:
    """The function that brings an image to its size; it returns None for an image that is to be left out.

    Args:
        name: None scales to width x height (each its own if not given), whatever the shape; "center-crop" takes the largest centred
            square first; "center-crop-wide" takes a centred band and sets it, scaled to width x height, into a black width x width square.
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
        return lambda image: _scaled(_central_square(image), width, height, resample)
    if height > width:
        raise UserError(f"--transform=center-crop-wide needs a --height of at most --width, but they are {height} and {width}")
    return lambda image: _wide(image, width, height, resample)


def _scaled(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _central_square(image: Image.Image) -> Image.Image:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.crop((left, top, left + edge, top + edge))


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
        UserError: torn images, images of several sizes or modes, no square, no power of two, nothing to write, or `dest` cannot be written.
    """
    summary = Summary()
    entries = []
    with open_dest(dest) as write:
        for item in progress(source.items()):
            load_pixels(item.image, item.where)
            image = transform(plain_mode(upright(item.image), item.where, convert))
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
        summary.labels = [label for _, label in entries if label is not None]
        write(LABEL_FILE, json.dumps({"labels": entries if summary.labels else None}).encode())
    return summary


def _check_alike(image: Image.Image, item: SourceItem, summary: Summary, source: Source, convert: str | None) -> None:
    """The first image sets size and mode, all others must follow."""
    if summary.written == 0:
        summary.edge, summary.mode = image.width, image.mode
        if image.width != image.height or image.width < 4 or image.width & (image.width - 1):
            edge = max(1 << (min(image.size).bit_length() - 1), 4)
            raise UserError(
                f"{item.where} comes out as {image.width}x{image.height} pixels, but images must be square with a power of two as edge: "
                f"try --transform=center-crop --width={edge} --height={edge}"
            )
    if image.mode != summary.mode:
        modes = _survey(source, lambda other: plain_mode_name(other.image, other.where, convert))
        raise UserError(
            f"{item.where} has colour mode {image.mode}, the images before it {summary.mode} (in {modes}); "
            f"give --convert=rgb, l or rgba to make them alike"
        )
    if image.size != (summary.edge, summary.edge):
        sizes = _survey(source, lambda other: "{}x{}".format(*other.image.size))
        raise UserError(
            f"{item.where} comes out as {image.width}x{image.height} pixels, the images before it as {summary.edge}x{summary.edge} "
            f"(sizes as stored, in {sizes}); give --width and --height to make them alike"
        )


def plain_mode_name(image: Image.Image, where: str, convert: str | None = None) -> str:
    """The mode that plain_mode would give, by the header alone. Raises UserError where plain_mode would."""
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    return plain_mode(Image.new(image.mode, (1, 1)), where, convert).mode


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


# Destinations.


@contextlib.contextmanager
def open_dest(dest: str | os.PathLike) -> Iterator[Write]:
    """Yields write(name, data) for a zip or a folder. It appears under its name when the block ends well; after any error nothing is left.

    Raises:
        UserError: the destination is a folder with something in it, a file that is no zip, or cannot be written.
    """
    dest = pathlib.Path(dest)
    is_zip = dest.suffix.lower() == ".zip"
    is_folder = os.path.isdir(dest)
    if is_folder and is_zip:
        raise UserError(f"--dest={dest} is a folder, though its name ends in .zip; give another name")
    if is_folder and _is_filled(dest):
        raise UserError(f"--dest={dest} is a folder with something in it; give an empty or new one, or a .zip")
    if os.path.exists(dest) and not is_folder and not is_zip:
        raise UserError(f"--dest={dest} exists and is neither a .zip nor a folder; give another name")
    with _parents(dest), _zip_writer(dest) if is_zip else _folder_writer(dest) as write:
        yield write


def _is_filled(folder: pathlib.Path) -> bool:
    try:
        return any(path.name not in SYSTEM_FOLDERS and not _is_left_over(path, folder) for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"--dest={folder} cannot be listed: {error.strerror}") from error


def _is_left_over(path: pathlib.Path, dest: pathlib.Path) -> bool:
    """Whether this is what a conversion into `dest` that was killed has left in it."""
    return path.name.startswith(f".{dest.absolute().name}.") and path.suffix == ".tmp"


@contextlib.contextmanager
def _parents(dest: pathlib.Path) -> Iterator[None]:
    """Makes the folders above `dest`, and removes those again if the block fails."""
    new = [folder for folder in dest.absolute().parents if not os.path.exists(folder)]
    try:
        dest.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror} ({error.filename})") from error
    try:
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _move_into(folder: pathlib.Path, dest: pathlib.Path) -> None:
    """Moves what is in a folder to another on the same disk, the labels last: without them the set is not whole."""
    moved: list[pathlib.Path] = []
    try:
        for child in sorted(folder.iterdir(), key=lambda path: (path.name == LABEL_FILE, path.name)):
            os.rename(child, dest / child.name)
            moved.append(dest / child.name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _zip_writer(dest: pathlib.Path) -> Iterator[Write]:
    with atomic_path(dest) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.create_system = 3  # Unix everywhere, so that bytes do not depend on the system
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def _folder_writer(dest: pathlib.Path) -> Iterator[Write]:
    there = os.path.isdir(dest)  # and perhaps a link, the place of a volume, or in a folder that is not the user's: it is filled, not replaced
    temporary = (dest if there else dest.absolute().parent) / f".{dest.absolute().name}.{uuid.uuid4().hex[:8]}.tmp"

    for old in [path for path in dest.iterdir() if _is_left_over(path, dest)] if there else []:
        shutil.rmtree(old, ignore_errors=True)

    def write(name: str, data: bytes) -> None:
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_bytes(data)

    try:
        temporary.mkdir()
        yield write
        if there:
            _move_into(temporary, dest)
        else:
            os.rename(temporary, dest)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
