"""Labels of a data set: reading dataset.json, matching it with the images that exist, and the arrays made of it.
Labels from sub-folders, which only the conversion tool knows, live in dataset_sources.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from dnnlib import UserError
from dnnlib.json_files import parse_json
from training.image_store import FolderStore, ZipStore, normal_name

LABEL_FILE = "dataset.json"
FIRST_NAMES = 3
MAX_CLASSES = 100_000  # labels become vectors of so many numbers
SPARSE_CLASSES = 10_000  # class numbers up to here need not be in proportion to the number of images
MAX_BYTES_PER_FILE = 1 << 16  # of dataset.json: room for the path of a file and a vector of thousands of numbers


def read_label_table(store: FolderStore | ZipStore) -> dict[str, int | list] | None:
    """The labels in dataset.json by normalised file name; None without such a file or where its labels are null.

    Raises:
        UserError: the file is not of the form {"labels": [[name, label], ...]}, or far too long for so many images.
    """
    if LABEL_FILE not in store.names:
        return None
    where = store.where(LABEL_FILE)
    try:
        size = MAX_BYTES_PER_FILE * (len(store.names) + 16)
        content = parse_json(store.read(LABEL_FILE, size).decode("utf-8"), size)
    except ValueError as error:
        raise UserError(f"{where} is not a JSON file: {error}") from error
    entries = content.get("labels", "nothing") if isinstance(content, dict) else "nothing"
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries):
        raise UserError(f'{where} must hold {{"labels": [["name.png", label], ...]}} or {{"labels": null}}')
    return {normal_name(name): label for name, label in entries}


def match_labels(names: Sequence[str], table: dict[str, int | list], known: Iterable[str], where: str) -> list[int | list]:
    """The label of each name in `names`, in that order.

    Args:
        names: the images that need a label.
        table: labels by name.
        known: all images that exist; a label of any other name is a mistake.
        where: the label file as messages name it.

    Raises:
        UserError: images without label, or labels without image; with their number and the first of them.
    """
    existing = set(known)
    absent = [name for name in table if name not in existing]
    if absent:
        raise UserError(f"{where} names {len(absent)} of {len(table)} files that do not exist (first: {_first(absent)}); remove these entries")
    missing = [name for name in names if table.get(name) is None]
    if missing:
        raise UserError(f"{where} has no label for {len(missing)} of {len(names)} images (first: {_first(missing)}); label all of them or none")
    return [table[name] for name in names]


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
