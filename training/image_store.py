"""Where the files of a data set lie: a folder or a zip, read by name; and how one image file becomes an array.
Which images a training set selects, and their labels, live in dataset.py and dataset_labels.py."""

from __future__ import annotations

import io
import os
import pathlib
import struct
import threading
import zipfile
import zlib

import numpy as np
from PIL import Image

from dnnlib import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp"})
# A fixed list, because PIL's own includes formats that start external programs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "TGA")
CHANNELS_OF_MODE = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)
CHANGED = "has changed since this process began to read the data set; bring back what it held, and give the same command again"


class FolderStore:
    """The files below a folder. Names are relative to it, with forward slashes; hidden files are left out.

    A file whose checksum has been asked for is known from then on: reading it with other bytes in it is refused.

    Raises:
        UserError: the folder cannot be listed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.names = sorted(self._walk())
        self._known: dict[str, tuple[int, int]] = {}

    def _walk(self) -> list[str]:
        found = []
        for folder, subfolders, files in os.walk(self.path, onerror=self._cannot_list):
            subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
            relative = pathlib.Path(folder).relative_to(self.path)
            found.extend((relative / name).as_posix() for name in files if not _is_hidden(name))
        return found

    def _cannot_list(self, error: OSError) -> None:
        raise UserError(f"cannot list the folder {error.filename}: {error.strerror}")

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises UserError if it cannot be read."""
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {self.path / name}: {error.strerror or error}") from error
        if name in self._known and self._known[name] != _checksum(data):
            raise UserError(f"{self.path / name} {CHANGED}")
        return data

    def checksums(self, names: list[str]) -> list[tuple[int, int]]:
        """(size, CRC-32) of each named file; reads all of them."""
        self._known |= {name: _checksum(self.read(name)) for name in names}
        return [self._known[name] for name in names]

    def check_unchanged(self) -> None:
        """Reads every known file again. Raises UserError at the first that has changed."""
        for name in self._known:
            self.read(name)

    def where(self, name: str) -> str:
        """How messages name one file."""
        return str(self.path / name)

    def close(self) -> None:
        """Nothing is held open between reads, so there is nothing to let go of."""
        return


class ZipStore:
    """The files in a zip, stored or compressed. It is opened anew in every process, so data-loader workers never share a file position.

    Raises:
        UserError: no whole zip file, an encrypted one, or one with names that point outside of it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._members = {}
        self._stamp = _stamp(self.path)
        for info in self._open().infolist():
            name = self._checked_name(info)
            if not info.is_dir() and not any(_is_hidden(part) for part in name.split("/")):
                self._members[name] = info.filename
        self.names = sorted(self._members)

    def _checked_name(self, info: zipfile.ZipInfo) -> str:
        name = normal_name(info.filename)
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or ":" in parts[0]:
            raise UserError(f"{self.path} is refused: its member {info.filename!r} points outside of the zip")
        if info.flag_bits & 1:
            raise UserError(f"{self.path} is encrypted (member {info.filename!r}); a zip without password is needed")
        return name

    def _open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._zip is None or self._owner != os.getpid():
                self.check_unchanged()
                try:
                    self._zip = zipfile.ZipFile(self.path)
                except READ_ERRORS as error:
                    raise UserError(f"{self.path} is not a whole zip file ({_reason(error)}); copy or create it again") from error
                self._owner = os.getpid()
            return self._zip

    def read(self, name: str) -> bytes:
        """The bytes of one file, its CRC checked. Raises UserError if it cannot be read whole."""
        try:
            return self._open().read(self._members[name])
        except READ_ERRORS as error:
            raise UserError(f"cannot read {self.where(name)}: {_reason(error)}") from error

    def checksums(self, names: list[str]) -> list[tuple[int, int]]:
        """(size, CRC-32) of each named file, from the directory of the zip."""
        archive = self._open()
        infos = [archive.getinfo(self._members[name]) for name in names]
        return [(info.file_size, info.CRC) for info in infos]

    def check_unchanged(self) -> None:
        """Raises UserError if the zip is not the file that it was at first, by size and time."""
        if _stamp(self.path) != self._stamp:
            raise UserError(f"{self.path} {CHANGED}")

    def where(self, name: str) -> str:
        """How messages name one file."""
        return f"{name} in {self.path}"

    def close(self) -> None:
        """Closes the zip; a later read opens it again, if it is still the same."""
        if self._zip is not None and self._owner == os.getpid():
            self._zip.close()
        self._zip = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "names": self.names, "_members": self._members, "_stamp": self._stamp}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _zip=None, _owner=0, _lock=threading.Lock())


def _checksum(data: bytes) -> tuple[int, int]:
    return len(data), zlib.crc32(data)


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """Size and time of last change of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def open_store(path: str | os.PathLike) -> FolderStore | ZipStore:
    """Opens a folder or a zip. Raises UserError if `path` is neither, or is not whole."""
    path = pathlib.Path(path)
    if os.path.isdir(path):
        return FolderStore(path)
    if not os.path.exists(path):
        raise UserError(f"data set {path} does not exist; give a folder or a zip of images")
    if path.suffix.lower() != ".zip":
        raise UserError(f"data set {path} is neither a folder nor a .zip; convert it with dataset_tool.py")
    return ZipStore(path)


def image_names(store: FolderStore | ZipStore) -> list[str]:
    """The names of the image files, sorted: the order in which a data set numbers them."""
    return [name for name in store.names if pathlib.PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]


def normal_name(name: str) -> str:
    """A file name with forward slashes and without a leading `./`, whichever system wrote it."""
    name = name.replace("\\", "/")
    return name[2:] if name.startswith("./") else name


def open_image(data: bytes, where: str) -> Image.Image:
    """The image of a file, header read only. Raises UserError, naming `where`, if it is no image."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except READ_ERRORS as error:
        raise UserError(f"{where} is not an image that can be read ({_reason(error)})") from error


def load_pixels(image: Image.Image, where: str) -> None:
    """Decodes the whole of an image. Raises UserError, naming `where`, if it is torn."""
    try:
        image.load()
    except READ_ERRORS as error:
        raise UserError(f"{where} is a torn image ({_reason(error)})") from error


def decode_array(data: bytes, where: str) -> np.ndarray:
    """The pixels of an image file as uint8 [C, H, W], C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.

    Raises:
        UserError: no image, a torn one, or another colour mode.
    """
    image = open_image(data, where)
    if image.mode not in CHANNELS_OF_MODE:
        raise UserError(f"{where} has colour mode {image.mode}, not grey or RGB with or without alpha; convert the set with dataset_tool.py")
    load_pixels(image, where)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_hidden(name: str) -> bool:
    # Finder and this project's own temporary files; they end in .png but are no images.
    return name.startswith(".") or name == "__MACOSX"


def _reason(error: BaseException) -> str:
    """The first line of what went wrong; PIL prints whole buffers in some messages."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    text = str(getattr(error, "strerror", None) or error).splitlines()
    return text[0][:120] if text else type(error).__name__
