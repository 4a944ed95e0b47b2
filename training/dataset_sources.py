"""What the conversion tool reads: the choice of a reader, folders, zips and LMDB; and labels from sub-folders.
CIFAR-10, MNIST and the digits themselves are read by dataset_archives.py; what happens to the images afterwards is in dataset_writer.py."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dnnlib import UserError
from training.dataset_archives import is_cifar_name, is_mnist_name, load_digits, read_cifar10, read_mnist
from training.dataset_labels import LABEL_FILE, find_label_file, fit_names, label_array, match_labels, read_label_file, true_name, without_file
from training.image_store import FolderStore, ZipStore, image_names, open_image, open_store

LABEL_CHOICES = ("auto", "subfolders", "json", "none")
DIGITS = "digits"
SHARD_DIGITS = 5
KINDS = f"a folder, a .zip, a *_lmdb folder, cifar-10-python.tar.gz, train-images-idx3-ubyte.gz, or `{DIGITS}`"


@dataclass
class SourceItem:
    """One image before conversion: its name as messages give it, the image (perhaps not decoded yet), and its label if there is one."""

    where: str
    image: Image.Image
    label: int | list | None = None


@dataclass
class Source:
    """A set of images before conversion.

    Attributes:
        count: number of images.
        items: opens the set and walks through it; can be called again.
        about_labels: one sentence on where labels come from.
        label_names: class names in the order of the class numbers, where the source has names.
        others: files of other kinds per suffix, which are passed over.
        check: the command that finds all files that cannot be read, where there is one.
    """

    count: int
    items: Callable[[], Iterator[SourceItem]]
    about_labels: str
    label_names: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)
    check: str = ""


def open_source(source: str, labels: str = "auto", max_images: int | None = None) -> Source:
    """Opens whatever `source` names; `digits` always means the embedded digits (a folder of that name is `./digits`).

    Args:
        source: a folder, a zip, a `*_lmdb` folder, cifar-10-python.tar.gz, an idx3 archive of MNIST, or `digits`.
        labels: "auto" takes dataset.json, else class sub-folders, else the labels of the archive; "none" drops them;
            "json" and "subfolders" insist on theirs.
        max_images: take only the first so many images.

    Raises:
        UserError: unknown, missing or damaged source, no images, or the labels asked for are not there.
    """
    path = pathlib.Path(source)
    is_folder = os.path.isdir(path) and not _is_lmdb(path)
    if source != DIGITS and (is_folder or path.suffix.lower() == ".zip"):
        return open_images(path, labels, max_images)
    if labels not in ("auto", "none"):
        raise UserError(f"--labels={labels} is for folders and zips, but --source={source} is neither; give --labels=auto or none")
    with_labels = labels == "auto"
    if source == DIGITS:
        return from_arrays(source, *load_digits(), with_labels, max_images)
    if not os.path.exists(path):
        raise UserError(f"--source={source} does not exist; give {KINDS}")
    if _is_lmdb(path):
        return open_lmdb(path, max_images)
    if is_cifar_name(path):
        return from_arrays(source, *read_cifar10(path), with_labels, max_images)
    if is_mnist_name(path):
        return from_arrays(source, *read_mnist(path, with_labels), with_labels, max_images)
    raise UserError(f"--source={source} is of no known kind; give {KINDS}")


def from_arrays(where: str, images: np.ndarray, labels: np.ndarray | None, with_labels: bool, max_images: int | None) -> Source:
    """A source whose images lie in memory: uint8 [N, H, W] or [N, H, W, C], labels int [N]."""
    count = len(images[:max_images])

    def items() -> Iterator[SourceItem]:
        for index in range(count):
            yield SourceItem(f"image {index} of {where}", Image.fromarray(images[index]), int(labels[index]) if with_labels else None)

    about = f"{int(labels.min())} to {int(labels.max())}, its own" if with_labels else "none (--labels=none)"
    return Source(count, items, about)


# Folders and zips.


def open_images(path: pathlib.Path, labels: str, max_images: int | None) -> Source:
    """A folder or zip of images, in the order of their sorted names. Raises UserError as open_source does."""
    store = open_store(path)
    every = image_names(store)
    if not every:
        raise UserError(f"--source={path} holds no images (.png, .jpg, ...)")
    names = every[:max_images]
    values, label_names, about = _choose_labels(store, every, names, labels)

    def items() -> Iterator[SourceItem]:
        for index, name in enumerate(names):
            where = store.where(name)
            yield SourceItem(where, open_image(store.read(name), where), None if values is None else values[index])

    used = {find_label_file(store), *every}
    others = Counter(pathlib.PurePosixPath(name).suffix.lower() or "no suffix" for name in store.names if name not in used)
    return Source(len(names), items, about, label_names, others, f"dataset_tool.py check {path}")


def _choose_labels(store: FolderStore | ZipStore, every: list[str], names: list[str], labels: str) -> tuple[list | None, list[str], str]:
    """(labels of `names` or None, class names, a sentence saying where they come from)."""
    if labels == "none":
        return None, [], "none (--labels=none)"
    file = read_label_file(store) if labels in ("auto", "json") else None
    if labels == "json" and (file is None or file.table is None):
        raise UserError(f"--labels=json, but {store.path} has no {LABEL_FILE} with labels at its root")
    if file is not None and file.table is None:
        return None, [], f"none ({LABEL_FILE} says so)"
    if file is not None:
        every, names = file.own_names(every), file.own_names(names)
        table = fit_names(file.table, every)
        # Entries of images that were deleted do no harm, as officially, where every image has its label; --labels=json insists on the whole file.
        stale = without_file(table, every) if labels == "auto" and all(name in table for name in every) else []
        for name in stale:
            del table[name]
        values = match_labels(names, table, every, file.where)
        label_array(values, file.where)
        dropped = f", {len(stale)} of its entries left out, whose files do not exist (first: {stale[0]})" if stale else ""
        return values, file.names, f"from {find_label_file(store)}{dropped}"
    classes, reason = class_folders(every, forced=labels == "subfolders")
    if not classes and labels == "subfolders":
        raise UserError(f"--labels=subfolders, but in {store.path} {reason}; every image must lie in one of at least two class folders")
    if not classes:
        return None, [], f"none (no {LABEL_FILE}, and {reason})"
    order, about = class_order(set(classes.values()))
    number = {name: index for index, name in enumerate(order)}
    values = [number[classes[name]] for name in names]
    return values, list(map(true_name, order)), f"from {len(order)} sub-folders, in the order of their {about}"


def class_order(folders: set[str]) -> tuple[list[str], str]:
    """The folders in the order of the class numbers, and what they are ordered by: names, or numbers where all names are, so that 2 precedes 10."""
    if all(name.isascii() and name.isdigit() for name in folders):
        return sorted(folders, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name)), "numbers"
    return sorted(folders), "names"


def class_folders(names: list[str], forced: bool = False) -> tuple[dict[str, str], str]:
    """The class folder of every image name, or nothing and the reason why there are no classes.

    A class is the outermost folder in which the images differ. Folders named by five digits are how this project and
    others cut a large set into parts, so they count as classes only when `forced`.
    """
    parts = {name: name.split("/")[:-1] for name in names}
    first, last = min(parts.values()), max(parts.values())
    depth = next((level for level, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    outside = [name for name in names if len(parts[name]) <= depth]
    if len(outside) == len(names):
        return {}, "all images lie in one folder"
    if outside:
        return {}, f"{len(outside)} images lie outside of the sub-folders (first: {outside[0]})"
    classes = {name: parts[name][depth] for name in names}
    if not forced and all(folder.isdigit() and len(folder) == SHARD_DIGITS for folder in set(classes.values())):
        return {}, "sub-folders named by five digits are parts of a set, not classes, unless --labels=subfolders is given"
    return classes, ""


# Data sets of their own kind.


def _is_lmdb(path: pathlib.Path) -> bool:
    return os.path.isdir(path) and (path.name.endswith("_lmdb") or os.path.isfile(path / "data.mdb"))


def open_lmdb(path: pathlib.Path, max_images: int | None) -> Source:
    """An LMDB whose values are image files, as LSUN's, in the order of the keys; unlabelled. Raises UserError if lmdb is not installed."""
    try:
        import lmdb
    except ImportError as error:
        raise UserError(f"--source={path} is an LMDB, which needs the package lmdb: pip install lmdb") from error

    def opened():
        return lmdb.open(str(path), readonly=True, lock=False)

    def items() -> Iterator[SourceItem]:
        with opened() as database, database.begin(write=False) as transaction:
            for index, (key, value) in enumerate(transaction.cursor()):
                if index == count:
                    return
                where = f"record {key.decode('utf-8', 'replace')!r} of {path}"
                yield SourceItem(where, open_image(bytes(value), where))

    try:
        with opened() as database:
            found = database.stat()["entries"]
    except lmdb.Error as error:
        raise UserError(f"--source={path} is not an LMDB that can be read: {error}") from error
    if found == 0:
        raise UserError(f"--source={path} is an LMDB without records")
    count = found if max_images is None else min(found, max_images)
    return Source(count, items, "none (an LMDB has none)")
