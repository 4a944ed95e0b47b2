"""Reads every image of a set and says whether it can be trained on, and if not, which images are in the way.
Used by `dataset_tool.py check`; training itself checks each image as it reads it (dataset.py)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dnnlib import UserError
from dnnlib.format import printable
from torch_utils.image_size import SIZES, start_of
from training.dataset_labels import find_label_file, fit_names, label_array, match_labels, read_label_file
from training.dataset_sources import class_folders
from training.image_store import CHANNELS_OF_MODE, FolderStore, ZipStore, image_names, is_turned, load_pixels, open_image, open_store

FIRST = 3
LABEL_ROWS = 100
UNREADABLE_ROWS = 100


@dataclass
class CheckReport:
    """What was found in a set.

    Attributes:
        path: the folder or zip.
        images: number of image files.
        sizes: images per "WxH".
        modes: images per colour mode.
        labels: images per label, "(none)" for those without.
        unreadable: names of the files that cannot be read.
        problems: why it cannot be trained on, one sentence each; empty if it can.
        notes: what else is worth knowing.
    """

    path: str
    images: int = 0
    sizes: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_dataset(path: str | os.PathLike, progress: Callable = iter) -> CheckReport:
    """Decodes every image of a folder or zip and matches its labels.

    Args:
        path: folder or zip.
        progress: wraps the iterator over the names, to show how far it is.

    Raises:
        UserError: the set cannot be opened at all.
    """
    store = open_store(path)
    names = image_names(store)
    report = CheckReport(str(path), len(names))
    if not names:
        report.problems.append("it holds no images (.png, .jpg, ...)")
        return report
    _check_images(store, names, report, progress)
    _check_labels(store, names, report)
    used = {find_label_file(store), *names}
    others = [name for name in store.names if name not in used]
    if others:
        report.notes.append(f"{len(others)} other files are passed over (first: {_first(others)})")
    return report


def _check_images(store: FolderStore | ZipStore, names: list[str], report: CheckReport, progress: Callable) -> None:
    kinds, turned, reason = {}, [], ""
    for name in progress(names):
        try:
            image = open_image(store.read(name), store.where(name))
            load_pixels(image, store.where(name))
        except UserError as error:
            report.unreadable.append(name)
            reason = reason or str(error)
        else:
            kinds[name] = ("{}x{}".format(*image.size), image.mode)
            if is_turned(image):
                turned.append(name)
    report.sizes.update(size for size, _ in kinds.values())
    report.modes.update(mode for _, mode in kinds.values())
    if report.unreadable:
        report.problems.append(f"{len(report.unreadable)} image(s) cannot be read (first: {_first(report.unreadable)}): {reason}")
    if turned:
        report.notes.append(
            f"{len(turned)} image(s) are stored turned or mirrored, as their EXIF data say (first: {_first(turned)}); "
            f"training shows them as they are stored, and `dataset_tool.py --source=... --dest=...` turns them upright"
        )
    for what, counts, position in (("size", report.sizes, 0), ("colour mode", report.modes, 1)):
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [f"{name} {kind[position]}" for name, kind in kinds.items() if kind[position] != usual]
            report.problems.append(f"{len(odd)} image(s) have another {what} than {usual} (first: {_first(odd)})")
    if unfit := [size for size in report.sizes if start_of(*reversed([int(edge) for edge in size.split("x")])) is None]:
        found = f"{unfit[0]} pixels" if len(unfit) == 1 else f"of {len(unfit)} sizes (first: {_first(unfit)})"
        report.problems.append(f"{sum(report.sizes[size] for size in unfit)} image(s) are {found}, not {SIZES}")
    for mode in sorted(set(report.modes) - set(CHANNELS_OF_MODE)):
        report.problems.append(f"{report.modes[mode]} image(s) have the colour mode {mode}, not grey or RGB with or without alpha")


def _check_labels(store: FolderStore | ZipStore, names: list[str], report: CheckReport) -> None:
    try:
        file = read_label_file(store)
        if file is None or file.table is None:
            report.labels["(none)"] = len(names)
            if file is None and class_folders(names)[0]:
                report.notes.append("it has sub-folders that look like classes; `dataset_tool.py --source=... --dest=...` makes labels of them")
            return
        names = file.own_names(names)
        table = fit_names(file.table, names)
        for name in names:
            label = table.get(name)
            report.labels[_label_name(label)] += 1
        label_array(match_labels(names, table, names, file.where), file.where)
    except UserError as error:
        report.problems.append(str(error))


def format_report(report: CheckReport) -> str:
    """The report as a table of sizes, modes and labels, then the problems and notes, one per line."""
    lines = [f"{report.path}: {report.images} images"]
    for title, counts in (("size", report.sizes), ("mode", report.modes), ("label", report.labels)):
        rows = sorted(counts.items(), key=_label_order) if title == "label" else counts.most_common()
        lines += ["", f"{title:<16}{'images':>10}"] + [f"{name:<16}{count:>10}" for name, count in rows[:LABEL_ROWS]]
        if len(rows) > LABEL_ROWS:
            rest = [count for _, count in rows[LABEL_ROWS:]]
            lines.append(f"{f'{len(rest)} more':<16}{sum(rest):>10}")
    if report.unreadable:
        lines += ["", "cannot be read", *map(printable, report.unreadable[:UNREADABLE_ROWS])]
        if len(report.unreadable) > UNREADABLE_ROWS:
            lines.append(f"and {len(report.unreadable) - UNREADABLE_ROWS} more")
    lines += ["", *(f"problem: {printable(text)}" for text in report.problems), *(f"note: {printable(text)}" for text in report.notes)]
    lines.append("This set can be trained on." if not report.problems else "This set cannot be trained on as it is.")
    return "\n".join(lines)


def _label_name(label: Any) -> str:
    """How the table calls a label: numbers as they are, of others the kind."""
    if isinstance(label, int | float):
        return str(label)
    return "(none)" if label is None else "(vector)" if isinstance(label, list) else "(other)"


def _label_order(row: tuple[str, int]) -> tuple:
    name = row[0]
    return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def _first(names: list[str]) -> str:
    return ", ".join(names[:FIRST])
