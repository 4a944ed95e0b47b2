"""Small data sets for the tests of data: random images in zips and folders, and calls of the conversion tool."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from dnnlib import UserError

SHAPES = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}


def random_image(seed, mode="RGB", size=(16, 16)):
    """A PIL image of random pixels, size (width, height)."""
    pixels = np.random.RandomState(seed).randint(0, 256, size=(size[1], size[0], *SHAPES[mode]), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, kind="png", **options):
    """The image as a file of the given kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed, mode="RGB", size=(16, 16)):
    """A PNG file of random pixels."""
    return encode(random_image(seed, mode, size))


def write_zip(path, files, labels=None, method=zipfile.ZIP_STORED):
    """A zip of {name: bytes}, with dataset.json if labels are given. Returns the path."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in with_labels(files, labels).items():
            archive.writestr(name, data)
    return path


def write_folder(path, files, labels=None):
    """A folder of {name: bytes}, with dataset.json if labels are given. Returns the path."""
    for name, data in with_labels(files, labels).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def with_labels(files, labels):
    """The files and, if labels are given as a list of [name, label] or "null", dataset.json."""
    if labels is None:
        return files
    return {**files, "dataset.json": json.dumps({"labels": None if labels == "null" else labels}).encode()}


def pngs(count, **options):
    """{name: bytes} of `count` random PNG files."""
    return {f"00000/img{index:08d}.png": png(index, **options) for index in range(count)}


def tool(*args):
    """Runs the command in this process; a user's mistake stays an exception."""
    dataset_tool.main.main([str(arg) for arg in args], standalone_mode=False)


def convert(source, dest, *options):
    """Converts one set to another. Returns the destination."""
    tool(f"--source={source}", f"--dest={dest}", *options)
    return dest


def labels_of(path):
    """The labels in the dataset.json of a zip."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))["labels"]


def refused(tmp_path, message, *args):
    """The command must fail with this message and leave the folder as it was."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        tool(*args)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
