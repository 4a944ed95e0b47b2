"""Pictures in a run folder: where they are, and the part of them that a page shows and an archive keeps.

They are PNG as train.py writes it, or WebP in an archived run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from dnnlib import UserError
from experiments.images.run_state import SHEET
from experiments.report.studies import read_options
from torch_utils.image_size import written_size

MOST_SNAPSHOTS = 8  # per run; the first and the last are among them
FEWEST_SNAPSHOTS = 2
MOST_PICTURES = 300
BLOCK = (256, 320)  # pixels, of cells of at most CELL
CELL = 64
MOST_CELLS = (8, 10)
SHEET_WIDTH = 900
REALS, UNCOVERED = "reals", pathlib.Path(SHEET).stem
ARCHIVED = ".webp"
SUFFIXES = (".png", ARCHIVED)
SAMPLES = re.compile(r"fakes(_init|\d*)\.(png|webp)")


@dataclasses.dataclass(frozen=True)
class Block:
    """The upper left cells of a sheet, so many rows and columns of them; no rows where its cells are not known, which leaves the whole sheet."""

    image: Image.Image
    rows: int = 0
    columns: int = 0


def find_picture(run: pathlib.Path, stem: str) -> pathlib.Path | None:
    """The picture of that name; None where there is none."""
    return next((path for suffix in SUFFIXES if (path := run / f"{stem}{suffix}").is_file()), None)


def sample_sheets(run: pathlib.Path, end: int, most: int = MOST_SNAPSHOTS) -> dict[int, pathlib.Path]:
    """kimg, rising -> sheet of samples, of a run that ends at `end` kimg: at most so many, evenly spaced, the first and the last among them."""
    found: dict[int, pathlib.Path] = {}
    for path in sorted(run.glob("fakes*"), key=lambda path: "_init" not in path.name):  # of kimg 0 the numbered one counts
        if match := SAMPLES.fullmatch(path.name):
            number = "0" if match[1] == "_init" else match[1] or end  # a run that was tidied up may have one without a number
            found[int(number)] = path
    return {kimg: found[kimg] for kimg in _evenly(sorted(found), most)}


def snapshots_shown(runs: int) -> int:
    """How many snapshots of each of so many runs a page shows."""
    return min(max(MOST_PICTURES // max(runs, 1), FEWEST_SNAPSHOTS), MOST_SNAPSHOTS)


def _evenly(values: Sequence[int], most: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def read_picture(path: pathlib.Path) -> Image.Image:
    """A picture in RGB. Raises UserError where it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {path.as_posix()} is left out, it cannot be read ({error})") from error


def read_block(path: pathlib.Path, options: Mapping[str, Any]) -> Block:
    """What a page shows of a sheet of samples or reals; of an archived one all, since an archive keeps no more.

    Args:
        path: the sheet.
        options: of its run, by dotted names.

    Raises:
        UserError: the picture is damaged.
    """
    sheet, cut_already = read_picture(path), path.suffix == ARCHIVED
    height, width = written_size(options.get("training_set_kwargs.resolution")) or (0, 0)
    shown = min(width, CELL)
    if cut_already and width and sheet.width % shown == 0:
        # It was scaled as a whole, so that the height of a row need not be whole.
        return Block(sheet, max(round(sheet.height * width / (shown * height)), 1), sheet.width // shown)
    if cut_already or not width or sheet.width % width or sheet.height % height:
        return Block(at_most(sheet, BLOCK[0]))
    columns = min(MOST_CELLS[0], max(BLOCK[0] // shown, 1), sheet.width // width)
    rows = min(MOST_CELLS[1], max(BLOCK[1] * width // (shown * height), 1), sheet.height // height)
    return Block(at_most(sheet.crop((0, 0, columns * width, rows * height)), columns * shown), rows, columns)


def small_pictures(run: pathlib.Path, end: int, snapshots: int) -> dict[str, Image.Image]:
    """Name -> what a page shows of a run that ends at `end` kimg: samples of so many snapshots, reals, uncovered reals; none that is damaged."""
    options = read_options(run)
    sheets = {f"fakes{kimg:06d}": path for kimg, path in sample_sheets(run, end, snapshots).items()}
    sheets |= {REALS: path} if (path := find_picture(run, REALS)) else {}
    pictures = {}
    for name, path in sheets.items():
        with contextlib.suppress(UserError):
            pictures[name] = read_block(path, options).image
    if path := find_picture(run, UNCOVERED):
        with contextlib.suppress(UserError):
            pictures[UNCOVERED] = at_most(read_picture(path), SHEET_WIDTH)
    return pictures


def at_most(image: Image.Image, width: int) -> Image.Image:
    """A picture made smaller, if it is wider than that."""
    if image.width <= width:
        return image
    return image.resize((width, max(round(image.height * width / image.width), 1)), Image.Resampling.LANCZOS)
