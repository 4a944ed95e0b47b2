"""Sheets of small images side by side with captions, drawn with Pillow. Which images, and what is said about them, is `metrics.show`'s business."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from dnnlib import UserError, atomic_path
from metrics.detectors.images import to_rgb_uint8

EDGE = 128  # pixels of an image on the sheet
COLUMNS = 4  # cells per row, so that a sheet of pairs can be read at the width of a README
GAP, INNER_GAP, MARGIN = 14, 2, 10
FONT_SIZE, HEADING_SIZE = 15, 18
PAPER, INK, FAINT = "white", "#222222", "#666666"


def draw_sheet(cells: Sequence[tuple[Sequence[Any], Sequence[str]]], heading: Sequence[str], path: pathlib.Path) -> None:
    """Writes a PNG of cells in rows, each a few images beside each other with lines of text below.

    Args:
        cells: (uint8 images [C, H, W] with C = 1 to 4, captions); every cell has as many images and captions as the first one.
        heading: lines above, the first one stronger; they are wrapped to the width.
        path: the file.

    Raises:
        UserError: an image of another kind, or a file that cannot be written.
    """
    text, title = (ImageFont.load_default(size) for size in (FONT_SIZE, HEADING_SIZE))
    images, captions = (len(part) for part in cells[0]) if cells else (2, 0)
    cell_width = images * EDGE + (images - 1) * INNER_GAP
    cell_height = EDGE + captions * (FONT_SIZE + 3) + 4
    width = 2 * MARGIN + COLUMNS * cell_width + (COLUMNS - 1) * GAP
    fonts = [title] + [text] * len(heading)
    lines = [(line, font) for part, font in zip(heading, fonts) for line in _wrap(part, font, width - 2 * MARGIN)]
    top = MARGIN + len(lines) * (HEADING_SIZE + 5) + GAP
    sheet = Image.new("RGB", (width, top + math.ceil(len(cells) / COLUMNS) * (cell_height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (line, font) in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * (HEADING_SIZE + 5)), line, INK if font is title else FAINT, font)
    for index, (pictures, words) in enumerate(cells):
        left = MARGIN + index % COLUMNS * (cell_width + GAP)
        upper = top + index // COLUMNS * (cell_height + GAP)
        for number, picture in enumerate(pictures):
            sheet.paste(thumbnail(picture), (left + number * (EDGE + INNER_GAP), upper))
        for number, line in enumerate(words):
            pen.text((left, upper + EDGE + 3 + number * (FONT_SIZE + 3)), line, INK if number == 0 else FAINT, text)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _wrap(line: str, font: Any, width: int) -> list[str]:
    """A line cut at spaces to fit into a width in pixels."""
    lines = [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def thumbnail(image: Any) -> Image.Image:
    """One image as RGB inside a square of EDGE pixels, small ones enlarged by a whole factor so that their pixels stay visible, large ones scaled.

    Args:
        image: uint8 [C, H, W], tensor or array.

    Raises:
        UserError: an image of another kind.
    """
    tensor = torch.as_tensor(image).cpu()
    if tensor.ndim != 3:
        raise UserError(f"an image to show has shape {list(tensor.shape)}; [channels, height, width] is needed")
    picture = Image.fromarray(to_rgb_uint8(tensor[None])[0].permute(1, 2, 0).contiguous().numpy())
    longest = max(picture.size)
    if longest <= EDGE:
        factor = EDGE // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        picture = picture.resize([max(round(side * EDGE / longest), 1) for side in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("RGB", (EDGE, EDGE), PAPER)
    square.paste(picture, ((EDGE - picture.width) // 2, (EDGE - picture.height) // 2))
    return square
