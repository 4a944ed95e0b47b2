"""Pictures on the page: samples, real images and those that are not covered, encoded so that one file holds them all."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from dnnlib import UserError
from dnnlib.json_files import read_json
from experiments.images.run_state import SHEET_NUMBERS, sheet_snapshot
from experiments.report.looks import style
from experiments.report.markup import Markup, count, element, join, number
from experiments.report.run_pictures import (
    BLOCK,
    CELL,
    REALS,
    SHEET_WIDTH,
    UNCOVERED,
    at_most,
    find_picture,
    read_block,
    read_picture,
    sample_sheets,
    snapshots_shown,
)
from experiments.report.studies import Series, Study, read_options, seed_of
from torch_utils.image_size import written_size

if TYPE_CHECKING:
    from experiments.images.results import RunResult

FEW = 4  # blocks that have room beside each other at their full size
PAGE_BYTES = 4_900_000  # of a page with its pictures, which take what the rest leaves of it
LEVELS = ((1.0, 82), (1.0, 70), (1.0, 55), (1.0, 40), (0.75, 45), (0.6, 40), (0.6, 28), (0.5, 30), (0.35, 25))  # scale, WebP quality
TRIED = 24
REDUCED = "To fit into one file pictures are stored at {percent}% of their resolution{pixels} and drawn larger."
URI_HEAD = "data:image/webp;base64,"


@dataclasses.dataclass(eq=False)
class Picture:
    """One picture of the page.

    Attributes:
        image: its pixels.
        alt: what it shows, in words.
        run: whose it is.
        kimg: when, in thousand real images.
        source: where it becomes text, a data URI; empty before `encode`.
        scale: at which it was encoded.
    """

    image: Image.Image
    alt: str
    run: RunResult
    kimg: int
    source: str = ""
    scale: float = 1.0


@dataclasses.dataclass(eq=False)
class Gallery:
    """The pictures of a study: real images, samples of every run by series, and a sheet of uncovered reals per series that has one."""

    study: Study
    reals: list[Picture]
    samples: dict[Series, list[Picture]]
    uncovered: dict[Series, Picture]

    @property
    def pictures(self) -> list[Picture]:
        """All of them."""
        return [*self.reals, *(picture for row in self.samples.values() for picture in row), *self.uncovered.values()]


def make_galleries(studies: Sequence[Study], problems: list[str]) -> list[Gallery]:
    """Reads the pictures of all runs, as many as one page holds; `encode` makes them text.

    Args:
        studies: whose runs are looked through.
        problems: gets a sentence for every picture that cannot be read.
    """
    snapshots = snapshots_shown(sum(len(series.results) for study in studies for series in study.series))
    return [_collect(study, snapshots, problems) for study in studies]


def _collect(study: Study, snapshots: int, problems: list[str]) -> Gallery:
    samples, uncovered = {}, {}
    reals: list[Picture] = []
    for series in study.series:
        rows = [picture for result in series.results for picture in _samples(series, result, snapshots, problems)]
        if rows:
            samples[series] = rows
        for result in series.results:
            if not reals and (path := find_picture(result.path, REALS)):
                reals = _blocks(path, result, "Real training images", 0, problems)
            if series not in uncovered and (path := find_picture(result.path, UNCOVERED)):
                for sheet in _uncovered(path, series, result, problems):
                    uncovered[series] = sheet
    return Gallery(study, reals, samples, uncovered)


def _samples(series: Series, result: RunResult, snapshots: int, problems: list[str]) -> list[Picture]:
    words = f"Samples of {series.label}, {seed_of(result)}"
    sheets = sample_sheets(result.path, result.kimg, snapshots)
    return [block for kimg, path in sheets.items() for block in _blocks(path, result, f"{words}, at {kimg:,} kimg", kimg, problems)]


def _blocks(path: pathlib.Path, result: RunResult, words: str, kimg: int, problems: list[str]) -> list[Picture]:
    """The part of a sheet that the page shows; nothing of one that cannot be read."""
    options = read_options(result.path)
    try:
        block = read_block(path, options)
    except UserError as error:
        problems.append(f"{error}.")
        return []
    if block.rows:
        by_class = ", a class per row" if options.get("training_set_kwargs.use_labels") is True else ""
        words += f": {count(block.rows, 'row')} of {count(block.columns, 'image')}{by_class}"
    return [Picture(block.image, f"{words}.", result, kimg)]


def _uncovered(path: pathlib.Path, series: Series, result: RunResult, problems: list[str]) -> list[Picture]:
    """The sheet of uncovered reals; nothing of one that cannot be read."""
    when = f" at {kimg:,} kimg" if (kimg := sheet_kimg(result.path)) is not None else ""
    words = f"Pairs of images, left a real one that {series.label} does not cover{when}, right the generated one nearest to it."
    try:
        return [Picture(at_most(read_picture(path), SHEET_WIDTH), words, result, result.kimg)]
    except UserError as error:
        problems.append(f"{error}.")
        return []


def encode_to_fit(galleries: Sequence[Gallery], page: str) -> None:
    """Turns all pictures into data URIs that fit into what a page leaves of PAGE_BYTES.

    Args:
        galleries: whose pictures.
        page: the page with all pictures still empty.
    """
    pictures = [picture for gallery in galleries for picture in gallery.pictures]
    room = PAGE_BYTES - len(page.encode("utf-8")) - len(pictures) * (len(URI_HEAD) + 3)  # text of whole groups of four letters
    room -= 2 * len(REDUCED) + 100  # of both sections of pictures
    encode(pictures, max(room, 0) * 3 // 4)


def encode(pictures: Sequence[Picture], limit: int) -> None:
    """Turns pictures into data URIs of WebP, at the best of LEVELS at which all of them together take at most `limit` bytes, or else the last."""
    for level, (scale, quality) in enumerate(LEVELS):
        last = level == len(LEVELS) - 1
        some = pictures[:: -(-len(pictures) // TRIED)] if pictures else []
        if not last and sum(len(_webp(picture.image, scale, quality)) for picture in some) * len(pictures) > 1.1 * limit * len(some):
            continue
        data = [_webp(picture.image, scale, quality) for picture in pictures]
        if last or sum(map(len, data)) <= limit:
            for picture, body in zip(pictures, data):
                picture.source, picture.scale = URI_HEAD + base64.b64encode(body).decode("ascii"), scale
            return


def reduced_words(galleries: Sequence[Gallery]) -> Markup | None:
    """How much smaller than in the runs the pictures are stored, and what that makes of a sample; None where they are not."""
    pictures = [picture for gallery in galleries for picture in gallery.pictures]
    scale = min((picture.scale for picture in pictures), default=1.0)
    if scale == 1:
        return None
    size = written_size(read_options(pictures[0].run.path).get("training_set_kwargs.resolution"))
    pixels = f" ({round(size[1] * scale)} pixels for {size[1]})" if size and size[1] <= CELL else ""
    return element("p", REDUCED.format(percent=round(100 * scale), pixels=pixels), class_="reading")


def _webp(image: Image.Image, scale: float, quality: int) -> bytes:
    if scale < 1:
        image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def samples_block(gallery: Gallery, name: str) -> Markup | None:
    """Samples of the methods side by side, with a slider over the snapshots and a choice of the seed; None where there are no sheets.

    Without a script the last snapshots of the first seed stand there.

    Args:
        gallery: encoded.
        name: of the block, for the ids of its controls.
    """
    if not gallery.samples:
        return None
    pictures = [picture for row in gallery.samples.values() for picture in row]
    steps = sorted({picture.kimg for picture in pictures})
    seeds = sorted({str(picture.run.seed) for picture in pictures}, key=lambda seed: (len(seed), seed))
    figures = [_stack("Real images", "training set", [(gallery.reals[0], True)], "reals")] if gallery.reals else []
    for series, row in gallery.samples.items():
        shown = [picture for picture in row if str(picture.run.seed) == seeds[0]] or row
        last = max(shown, key=lambda picture: picture.kimg)
        figures.append(_stack(series.label, _when(last), [(picture, picture is last) for picture in row], style(series)))
    row = "stacks few" if len(figures) <= FEW else "stacks"
    return element("div", _controls(steps, seeds, name, gallery.study.title), element("div", *figures, class_=row), class_="samples")


def _controls(steps: Sequence[int], seeds: Sequence[str], name: str, title: str) -> Markup:
    slider = element("input", type="range", id=f"{name}-time", min=0, max=max(len(steps) - 1, 0), value=len(steps) - 1, step=1)
    parts = [element("label", "Snapshot", for_=f"{name}-time"), slider, element("output", f"{steps[-1]:,} kimg", for_=f"{name}-time")]
    if len(seeds) > 1:
        chosen = [element("option", seed, value=seed) for seed in seeds]
        parts += [element("label", "Seed", for_=f"{name}-seed"), element("select", *chosen, id=f"{name}-seed")]
    whose = {"role": "group", "aria_label": f"Samples of {title}"}
    return element("div", *parts, class_="controls", hidden=True, data_steps=" ".join(map(str, steps)), **whose)


def _when(picture: Picture) -> str:
    return f"{picture.kimg:,} kimg, {seed_of(picture.run)}"


def _stack(label: str, when: str, pictures: Sequence[tuple[Picture, bool]], kind: str) -> Markup:
    """Pictures of which one is seen."""
    images = []
    for picture, seen in pictures:
        where = {} if kind == "reals" else {"data_seed": picture.run.seed, "data_kimg": picture.kimg, "data_when": _when(picture)}
        width, height = picture.image.size
        tiny = "tiny" if width < BLOCK[0] // 2 else None
        where |= {"width": width, "height": height, "class_": tiny, "hidden": not seen}
        images.append(element("img", src=picture.source, alt=picture.alt, decoding="async", **where))
    caption = element("figcaption", element("strong", label), " ", element("span", when, class_="when"))
    return element("figure", caption, *images, class_=f"stack {kind}")


def uncovered_block(gallery: Gallery) -> Markup | None:
    """Sheets of real images that no sample came near, one per method that has one; None where none has."""
    figures = []
    for series, picture in gallery.uncovered.items():
        image = element("img", src=picture.source, alt=picture.alt, width=picture.image.width, height=picture.image.height)
        caption = element("figcaption", element("strong", series.label), " ", uncovered_words(picture.run))
        figures.append(element("figure", caption, image, _pairs(series, picture.run), class_=f"sheet {style(series)}"))
    return element("div", join(figures), class_="sheets") if figures else None


def sheet_kimg(path: pathlib.Path) -> int | None:
    """When the sheets of a run folder were made, in thousand real images; None where they do not say."""
    found = re.search(r"snapshot-(\d+)", sheet_snapshot(path))
    return int(found[1]) if found else None


def _pairs(series: Series, run: RunResult) -> Markup | None:
    """What is written under the pairs of a sheet, which may be too small to be read there; None where the numbers do not lie beside it."""
    try:
        pairs = read_json(run.path / SHEET_NUMBERS)["uncovered"]
        words = [
            f"real {int(pair['real'])}, generated {int(pair['fake'])}: {number(pair['distance'])}, {number(pair['ratio'])} radii; "
            f"1 of {int(pair['stands_for'])} like it"
            for pair in pairs
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    summary = element("summary", f"The pairs of {series.label} in words, row by row")
    return element("details", summary, element("ol", *(element("li", each) for each in words), class_="pairs")) if words else None


def uncovered_words(run: RunResult) -> str:
    """How many real images a run does not cover and when, where the numbers lie beside its sheet."""
    kimg = sheet_kimg(run.path)
    whose = seed_of(run) + ("" if kimg is None else f" at {kimg:,} kimg")
    try:
        look = read_json(run.path / SHEET_NUMBERS)
        share = f"{int(look['num_uncovered']):,} of {int(look['num_real']):,} real images have no generated one in their neighbourhood"
        return f"{whose}: {share} (k = {int(look['k'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{whose}: real images without a generated one in their neighbourhood"
