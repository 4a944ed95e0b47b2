"""Labels of a data set: finding and reading dataset.json, matching it with the images that exist, and the arrays made of it.
Labels from sub-folders, which only the conversion tool knows, live in dataset_sources.py."""

from __future__ import annotations

import contextlib
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dnnlib import UserError
from dnnlib.json_files import parse_json
from training.image_store import FolderStore, ZipStore, image_names, normal_name

LABEL_FILE = "dataset.json"
FIRST_NAMES = 3
MAX_CLASSES = 100_000  # labels become vectors of so many numbers
SPARSE_CLASSES = 10_000  # class numbers up to here need not be in proportion to the number of images
MAX_BYTES_PER_FILE = 1 << 16  # of dataset.json: room for the path of a file and a vector of thousands of numbers


@dataclass
class LabelFile:
    """What dataset.json says.

    Attributes:
        where: the file as messages name it.
        folder: the folder that it lies in, "" or ending in a slash.
        table: labels by file name, normalised and relative to that folder; None where the file says that there are none.
        names: the classes' names in the order of their numbers, where the file has them under "label_names"; training needs none.
    """

    where: str
    folder: str
    table: dict[str, int | list] | None
    names: list[str] = field(default_factory=list)

    def own_names(self, names: Iterable[str]) -> list[str]:
        """How the table calls images, all of which lie in its folder."""
        return [name[len(self.folder) :] for name in names]


def find_label_file(store: FolderStore | ZipStore) -> str | None:
    """The name of dataset.json: at the root, else in the outermost folder that holds all images, as in a zip of a folder. None: there is none."""
    if LABEL_FILE in store.names:
        return LABEL_FILE
    nested = [name for name in store.names if name.endswith(f"/{LABEL_FILE}")]
    images = image_names(store) if nested else []
    for name in sorted(nested, key=len):
        folder = name.removesuffix(LABEL_FILE)
        if images and images[0].startswith(folder) and images[-1].startswith(folder):  # and so do those sorted between them
            return name
    return None


def read_label_file(store: FolderStore | ZipStore) -> LabelFile | None:
    """What dataset.json says; None without such a file.

    Raises:
        UserError: the file is not of the form {"labels": [[name, label], ...]}, or far too long for so many images.
    """
    name = find_label_file(store)
    if name is None:
        return None
    where, folder = store.where(name), name.removesuffix(LABEL_FILE)
    try:
        size = MAX_BYTES_PER_FILE * (len(store.names) + 16)
        content = parse_json(store.read(name, size), size)  # bytes: with a byte order mark, or in UTF-16, as Windows' editors and shells write it
    except ValueError as error:
        raise UserError(f"{where} is not a JSON file: {error}") from error
    content = content if isinstance(content, dict) else {}
    entries, names = content.get("labels", "nothing"), content.get("label_names")
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []  # official sets have none
    if entries is None:
        return LabelFile(where, folder, None, names)
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries):
        raise UserError(f'{where} must hold {{"labels": [["name.png", label], ...]}} or {{"labels": null}}')
    return LabelFile(where, folder, {normal_name(entry): label for entry, label in entries}, names)


def fit_names(table: Mapping[str, int | list], known: Iterable[str]) -> dict[str, int | list]:
    """The table with entries that no file is called by under the name of the one file that they mean: macOS writes accents as characters of
    their own, and zips made there do not say that their names are UTF-8, so that they are read as cp437."""
    fitted, existing = dict(table), set(known)
    strays = [entry for entry in table if entry not in existing]
    forms: dict[str, list[str]] = {}
    for name in existing.difference(table) if strays else ():
        forms.setdefault(true_name(name), []).append(name)
    for entry in strays:
        meant = forms.get(true_name(entry), [])
        if len(meant) == 1 and meant[0] not in fitted:
            fitted[meant[0]] = fitted.pop(entry)
    return fitted


def true_name(name: str) -> str:
    """A file name as its owner would write it: composed accents, and UTF-8 that was read as cp437 read anew."""
    if name.isascii():
        return name
    with contextlib.suppress(UnicodeError):  # where it was no such thing
        name = name.encode("cp437").decode("utf-8")
    return unicodedata.normalize("NFC", name)


def match_labels(names: Sequence[str], table: Mapping[str, int | list], known: Iterable[str], where: str) -> list[int | list]:
    """The label of each name in `names`, in that order.

    Args:
        names: the images that need a label.
        table: labels by name, as `fit_names` gives it.
        known: all images that exist; a label of any other name is a mistake.
        where: the label file as messages name it.

    Raises:
        UserError: images without label, or labels without image; with their number and the first of them.
    """
    absent = without_file(table, known)
    if absent:
        raise UserError(f"{where} names {len(absent)} of {len(table)} files that do not exist (first: {_first(absent)}); remove these entries")
    # Refused, where the official tool drops all labels without a word: who has labelled a set would notice at --cond=1, after the conversion.
    missing = [name for name in names if table.get(name) is None]
    if missing:
        raise UserError(f"{where} has no label for {len(missing)} of {len(names)} images (first: {_first(missing)}); label all of them or none")
    return [table[name] for name in names]


def without_file(table: Mapping[str, int | list], known: Iterable[str]) -> list[str]:
    """The entries of a table whose file does not exist."""
    existing = set(known)
    return [name for name in table if name not in existing]


def label_array(labels: Sequence[int | list], where: str) -> np.ndarray:
    """Labels as one array: int64 [N] of classes, or float32 [N, D] of vectors.

    Raises:
        UserError: labels are neither all class numbers >= 0 nor all vectors of one length, or a class number is far beyond the number of images.
    """
    wanted = "either class numbers from 0 or vectors of one length"
    lengths = {len(label) if isinstance(label, list) else 0 for label in labels}
    if len(lengths) > 1:
        raise UserError(f"{where} mixes labels of several kinds or lengths; it must hold {wanted}")
    numbers = labels if lengths == {0} else itertools.chain.from_iterable(labels)
    # Before numpy sees them, which would give every label the room of the longest text.
    if not labels or not {int, float}.issuperset(map(type, numbers)):
        raise UserError(f"{where} holds labels such as {str(labels[0] if labels else labels)[:40]!r}; it must hold {wanted}")
    array = np.array(labels)
    if array.dtype.kind not in "iuf":  # a number beyond 64 bits
        raise UserError(f"{where} holds a label of more than 64 bits; it must hold {wanted}")
    if array.ndim == 2:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{where} holds label vectors that are not finite; it must hold {wanted}")
        return array
    odd = np.flatnonzero((array < 0) | (array != np.floor(array)) | ~np.isfinite(array))
    if odd.size:
        raise UserError(f"{where} holds the label {labels[odd[0]]}; it must hold {wanted}")
    if array.max() >= min(max(SPARSE_CLASSES, len(labels)), MAX_CLASSES):
        raise UserError(f"{where} holds the label {labels[array.argmax()]} for {len(labels)} images; number the classes from 0 on")
    return array.astype(np.int64)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:FIRST_NAMES])
