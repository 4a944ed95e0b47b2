"""Where the files of a data set lie: a folder or a zip, read by name; and how one image file becomes an array.
Which images a training set selects, and their labels, live in dataset.py and dataset_labels.py."""

from __future__ import annotations

import bisect
import hashlib
import io
import os
import pathlib
import re
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import ExifTags, Image

from dnnlib import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp"})
# A fixed list, because PIL's own includes formats that start external programs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "TGA")
CHANNELS_OF_MODE = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
# What zipfile and PIL raise on damaged bytes.
READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
# What systems keep in a folder of images or at the root of a disk: previews, deleted files, what only root may list.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF tag Orientation, from the pixels as they are stored to the picture
MAX_FILE_BYTES = 1 << 29  # of one image file; what an uncompressed picture of PIL's largest size needs
MAX_PIXELS = 1 << 26  # of an image to train on: 8192 x 8192; PIL itself refuses sources from 179 million on
DEFLATE_RATIO = 1032  # the most that deflate can make of a byte
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LOCAL_HEADER_BYTES = 30
MAX_TIME = (1 << 63) - 1  # disks can hold times of last change that 64 bits of nanoseconds cannot
DRIVE = re.compile(r"[A-Za-z]:")
CHANGED = "has changed since this process began to read the data set; bring back what it held, and give the same command again"

# Where Pillow only warns, at half of what it refuses, the limits here have decided already; its warning names neither the file nor what to do.
# For the whole process, since a filter around each read would make every other warning appear again and again, and threads would mix theirs up.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class FolderStore:
    """The files below a folder, links to folders included. Names are relative to it, with forward slashes; hidden files are left out.

    A file that was read is known from then on: reading it with other bytes in it is refused, and to see that it is the same, its size and time
    are looked at before its bytes.

    Raises:
        UserError: the folder cannot be listed, or a link in it leads to a folder that holds the link.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.names = sorted(self._walk())
        # One row per name, arrays because a set may have millions: size and CRC-32, size and time of last change. -1: not read yet.
        self._known = np.full([len(self.names), 2], -1, dtype=np.int64)
        self._stamps = np.full([len(self.names), 2], -1, dtype=np.int64)

    def _walk(self) -> list[str]:
        found = []
        above = {str(self.path): frozenset({os.path.realpath(self.path)})}  # where a folder really is, and those that it lies in
        for folder, subfolders, files in os.walk(self.path, onerror=self._cannot_list, followlinks=True):
            subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
            holders = above.pop(folder)
            for path in (os.path.join(folder, name) for name in subfolders):
                if (real := os.path.realpath(path)) in holders:
                    raise UserError(f"cannot list the folder {self.path}: {path} leads back to {real}, in which it lies; remove the link there")
                above[path] = holders | {real}
            relative = pathlib.Path(folder).relative_to(self.path)
            found.extend((relative / name).as_posix() for name in files if not _is_hidden(name))
        return found

    def _cannot_list(self, error: OSError) -> None:
        raise UserError(f"cannot list the folder {error.filename}: {error.strerror}")

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of one file. Raises UserError if it cannot be read, is no regular file, or is longer than `max_bytes`."""
        path = self.path / name
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise UserError(f"cannot read {path}: it is no regular file")
            if status.st_size > max_bytes:
                raise UserError(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read")
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        found, number = _checksum(data), self._number(name)
        if self._known[number, 0] >= 0 and tuple(self._known[number].tolist()) != found:
            raise UserError(f"{path} {CHANGED}")
        self._known[number] = found
        self._stamps[number] = _stamp_of(status)  # of before: a file that changes meanwhile is looked at again
        return data

    def _number(self, name: str) -> int:
        """Which of the sorted names this is."""
        return bisect.bisect_left(self.names, name)

    def checksums(self, names: list[str]) -> list[tuple[int, int]]:
        """(size, CRC-32) of each named file; reads those that were not read yet."""
        numbers = [self._number(name) for name in names]
        self._look_again(numbers)
        return [tuple(row) for row in self._known[numbers].tolist()]

    def check_unchanged(self) -> None:
        """Raises UserError at the first of the known files that holds other bytes now."""
        self._look_again(np.flatnonzero(self._known[:, 0] >= 0).tolist())

    def _look_again(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if tuple(self._stamps[number].tolist()) != _stamp(self.path / self.names[number]):
                self.read(self.names[number])

    def where(self, name: str) -> str:
        """How messages name one file."""
        return str(self.path / name)

    def close(self) -> None:
        """Nothing is held open between reads, so there is nothing to let go of."""
        return


class ZipStore:
    """The files in a zip, stored or deflated. It is opened anew in every process, so data-loader workers never share a file position.

    What its directory says is checked at opening: no member is longer than its packed bytes can hold, and no two share bytes. Reading a member
    takes no more memory than the directory announces.

    Raises:
        UserError: no whole zip file, an encrypted one, one with names that point outside of it, links or two files of one name, or one
            whose directory lies about sizes.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._stamp, self._digest = _stamp(self.path), ""
        self._members, self._digest = self._look_through(self._open())
        self.names = sorted(self._members)

    def _look_through(self, archive: zipfile.ZipFile) -> tuple[dict[str, str], str]:
        """The members by the names that they have here, and a digest of all names, sizes and CRCs. Raises UserError as the class says."""
        infos = archive.infolist()
        members: dict[str, str] = {}
        for info in infos:
            name = self._checked_name(info)
            if info.is_dir() or any(_is_hidden(part) for part in name.split("/")):
                continue
            if name in members:
                raise UserError(f"{self.path} holds two files named {name!r}; create it again")
            members[name] = info.filename
        self._check_places(infos)
        digest = hashlib.sha256()
        for line in sorted(f"{info.filename}\0{info.file_size}\0{info.CRC:08x}\n" for info in infos):
            digest.update(line.encode(errors="surrogateescape"))
        return members, digest.hexdigest()

    def _checked_name(self, info: zipfile.ZipInfo) -> str:
        name = normal_name(info.filename)
        if not info.filename:
            raise UserError(f"{self.path} is refused: it has a member without a name; create it again")
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or DRIVE.match(name):
            raise UserError(f"{self.path} is refused: its member {info.filename!r} points outside of the zip")
        if info.flag_bits & 1:
            raise UserError(f"{self.path} is encrypted (member {info.filename!r}); a zip without password is needed")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{self.path} is refused: its member {info.filename!r} is a symbolic link; zip the files themselves")
        if info.compress_type not in PLAIN_METHODS:
            raise UserError(f"{self.path} is compressed by a method other than deflate (member {info.filename!r}); create it again with that one")
        most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO)
        if info.file_size > most:
            raise UserError(f"{self.path} is refused: its member {info.filename!r} claims more than {info.compress_size:,} packed bytes can hold")
        return name

    def _check_places(self, infos: list[zipfile.ZipInfo]) -> None:
        """Refuses members that share bytes: a few kilobytes could stand for terabytes that way."""
        end = 0
        for start, length, name in sorted((info.header_offset, LOCAL_HEADER_BYTES + info.compress_size, info.filename) for info in infos):
            if start < end:
                raise UserError(f"{self.path} is refused: its member {name!r} overlaps the one before it")
            end = start + length

    def _open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._zip is None or self._owner != os.getpid():
                self._zip, self._owner = self._opened(), os.getpid()
            return self._zip

    def _opened(self) -> zipfile.ZipFile:
        """What lies at the path now. One of another size or time (a copy put back, a touch) is taken for the same if its directory is."""
        stamp = _stamp(self.path)
        try:
            archive = zipfile.ZipFile(self.path)
        except READ_ERRORS as error:
            if stamp != self._stamp:
                raise UserError(f"{self.path} {CHANGED}") from error
            raise UserError(f"{self.path} is not a whole zip file ({_reason(error)}); copy or create it again") from error
        if stamp != self._stamp:
            if self._look_through(archive)[1] != self._digest:
                raise UserError(f"{self.path} {CHANGED}")
            self._stamp = stamp
        return archive

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of one file, its CRC checked. Raises UserError if it cannot be read whole, or is longer than `max_bytes`."""
        try:
            archive = self._open()
            info = archive.getinfo(self._members[name])
            if info.file_size > max_bytes:
                raise UserError(f"{self.where(name)} has {info.file_size:,} bytes; at most {max_bytes:,} are read")
            with archive.open(info) as member:
                # A number, since without one zipfile inflates all that is there before it looks at the size.
                return member.read(info.file_size)
        except READ_ERRORS as error:
            raise UserError(f"cannot read {self.where(name)}: {_reason(error)}") from error

    def checksums(self, names: list[str]) -> list[tuple[int, int]]:
        """(size, CRC-32) of each named file, from the directory of the zip."""
        archive = self._open()
        infos = [archive.getinfo(self._members[name]) for name in names]
        return [(info.file_size, info.CRC) for info in infos]

    def check_unchanged(self) -> None:
        """Raises UserError if the zip does not hold what it held at first: by size and time, and where these are others by names, sizes and CRCs."""
        with self._lock:
            if _stamp(self.path) != self._stamp:
                # Read on from the new file: the old one may have been overwritten in place, with its members elsewhere.
                self._zip, self._owner = self._opened(), os.getpid()

    def where(self, name: str) -> str:
        """How messages name one file."""
        return f"{name} in {self.path}"

    def close(self) -> None:
        """Closes the zip; a later read opens it again, if it is still the same."""
        if self._zip is not None and self._owner == os.getpid():
            self._zip.close()
        self._zip = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "names": self.names, "_members": self._members, "_digest": self._digest, "_stamp": self._stamp}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _zip=None, _owner=0, _lock=threading.Lock())


def _checksum(data: bytes) -> tuple[int, int]:
    return len(data), zlib.crc32(data)


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """Size and time of last change of a file; None where there is none."""
    try:
        return _stamp_of(path.stat())
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns & MAX_TIME


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


def central_part(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of the shape width x height, to the pixel."""
    scale = min(image.width / width, image.height / height)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (image.width - inner[0]) // 2, (image.height - inner[1]) // 2
    return image.crop((left, top, left + inner[0], top + inner[1]))


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as its camera meant it: turned or mirrored as EXIF says. EXIF data that cannot be read turn nothing, as in viewers."""
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says of a decoded image that its camera meant it turned or mirrored; `decode_array` leaves the pixels as they are stored."""
    return _turn(image) is not None


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except READ_ERRORS:
        return None


def decode_array(data: bytes, where: str) -> np.ndarray:
    """The pixels of an image file as uint8 [C, H, W], C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.

    Raises:
        UserError: no image, a torn one, one of more than MAX_PIXELS pixels, or another colour mode.
    """
    image = open_image(data, where)
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{where} is {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} pixels are read for training")
    if image.mode not in CHANNELS_OF_MODE:
        raise UserError(f"{where} has colour mode {image.mode}, not grey or RGB with or without alpha; convert the set with dataset_tool.py")
    load_pixels(image, where)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_hidden(name: str) -> bool:
    # Names with a dot are Finder's and this project's own temporary files; some end in .png but are no images.
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _reason(error: BaseException) -> str:
    """The first line of what went wrong; PIL prints whole buffers in some messages."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    text = str(getattr(error, "strerror", None) or error).splitlines()
    return text[0][:120] if text else type(error).__name__
