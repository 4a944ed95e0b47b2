"""Converts image collections to data sets for training, and checks data sets.

The work is done in training/dataset_sources.py (reading), dataset_writer.py and dataset_dest.py (converting) and dataset_check.py (checking)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import click
import tqdm

from dnnlib import UserError
from dnnlib.cli import run_command
from dnnlib.format import printable
from dnnlib.signals import STOP_SIGNALS, exit_code
from training.dataset_check import check_dataset, format_report
from training.dataset_dest import is_zip_name, left_overs
from training.dataset_labels import LABEL_FILE
from training.dataset_sources import DIGITS, LABEL_CHOICES, open_source
from training.dataset_writer import FILTERS, MODES, TRANSFORMS, WIDE_RANGE, Summary, convert_dataset, count_table, make_transform

MAX_CLASS_NAMES = 30


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--source", metavar="PATH", help="Folder or zip of images, *_lmdb, cifar-10-python.tar.gz, train-images-idx3-ubyte.gz, or `digits`")
@click.option("--dest", metavar="PATH", help="Zip (name ends in .zip) or new folder to write")
@click.option("--max-images", type=click.IntRange(min=1), help="Take only the first images of the source")
@click.option("--resize-filter", type=click.Choice(list(FILTERS)), default="lanczos", show_default=True, help="Filter for resizing")
@click.option("--transform", type=click.Choice(TRANSFORMS), help="Crop before resizing")
@click.option("--width", type=click.IntRange(min=1), help="Width of the written images in pixels")
@click.option("--height", type=click.IntRange(min=1), help="Height of the written images in pixels")
@click.option("--labels", type=click.Choice(LABEL_CHOICES), default="auto", show_default=True, help="auto: dataset.json, else sub-folders")
@click.option("--convert", type=click.Choice(list(MODES)), help="Make all images RGB, grey or RGB + alpha  [default: leave them as they are]")
def main(ctx, source, dest, max_images, resize_filter, transform, width, height, labels, convert):
    """Converts images to a data set for training: PNG files of one size with a dataset.json, in a zip or folder.

    \b
    python dataset_tool.py --source=digits --dest=digits.zip
    python dataset_tool.py --source=photos --dest=photos.zip --transform=center-crop --width=256 --height=256
    python dataset_tool.py check photos.zip
    """
    if ctx.invoked_subcommand is not None:
        given = [name for name, value in (("--source", source), ("--dest", dest)) if value is not None]
        if given:
            raise UserError(f"`{ctx.invoked_subcommand}` takes no {given[0]}; give the path alone")
        return
    for name, value in (("--source", source), ("--dest", dest)):
        if value is None:
            raise UserError(f"{name} is missing; see `python dataset_tool.py --help`")
    check_places(source, dest)
    resize = make_transform(transform, width, height, resize_filter)
    opened = open_source(source, labels, max_images)
    click.echo(f"{source}: {opened.count} images, labels: {printable(opened.about_labels)}")
    if opened.others:
        click.echo(f"files of other kinds, passed over: {printable(count_table(opened.others))}")
    for path in left_overs(dest):
        click.echo(f"{printable(str(path))} is what a killed conversion has left; remove it, unless another one is running")
    with leaving_nothing():
        summary = convert_dataset(opened, dest, resize, convert, lambda items: tqdm.tqdm(items, total=opened.count, unit="image", disable=None))
    print_summary(dest, summary, opened.label_names)


def check_places(source: str, dest: str) -> None:
    """Raises UserError where source and destination are in each other's way, or the source may mean two things."""
    if source == DIGITS and os.path.exists(DIGITS):
        raise UserError(
            f"--source={DIGITS} means the digits that come with this tool, but there is a {DIGITS} here: give ./{DIGITS} for it, "
            f"or for the tool's own digits this command in another folder"
        )
    if source == DIGITS or not os.path.exists(source):
        return
    if os.path.exists(dest) and os.path.samefile(source, dest):
        raise UserError(f"--dest={dest} is the source itself; give another name")
    inside = pathlib.Path(os.path.realpath(dest)).is_relative_to(os.path.realpath(source))
    if inside and os.path.isdir(source) and not is_zip_name(pathlib.Path(dest)):
        raise UserError(f"--dest={dest} lies in --source={source}, which would hold its own copies then; give a folder outside of it, or a .zip")


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """Signals that ask this process to end make it leave by way of its clean-up, as Ctrl-C does; its exit code is 128 + the signal's number."""

    def leave(number: int, _) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second wish would interrupt the clean-up
        sys.exit(exit_code(number))

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, leave) for number in STOP_SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_summary(dest: str, summary: Summary, label_names: list[str]) -> None:
    """Says on stdout what was written, with the number of images per class."""
    left_out = f", {summary.left_out} too small and left out" if summary.left_out else ""
    click.echo(f"{dest}: {summary.written} images, {summary.size[0]}x{summary.size[1]} {summary.mode}{left_out}")
    if summary.wide:
        click.echo(f"  {summary.wide} of 16 bits, of which the upper 8 were kept; their largest value is {summary.peak:,} of {WIDE_RANGE - 1:,}")
    counts = Counter(label for label in summary.labels if isinstance(label, int))
    for label in sorted(counts)[:MAX_CLASS_NAMES]:
        name = f" = {printable(label_names[label])}" if label < len(label_names) else ""
        click.echo(f"  label {label}{name}: {counts[label]}")
    if len(counts) > MAX_CLASS_NAMES:
        names = f"; their names are in its {LABEL_FILE}" if label_names else ""
        click.echo(f"  and {len(counts) - MAX_CLASS_NAMES} more labels{names}")


@main.command()
@click.argument("path")
def check(path):
    """Reads every image of a folder or zip, prints sizes, modes and labels, and ends with code 2 if it cannot be trained on."""
    report = check_dataset(path, lambda names: tqdm.tqdm(names, unit="image", disable=None))
    click.echo(format_report(report))
    if report.problems:
        raise UserError(f"{path} cannot be trained on: {report.problems[0]}")


if __name__ == "__main__":
    run_command(main)
